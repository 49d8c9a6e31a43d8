package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	statusv3 "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/obs"
	"github.com/heddle-mesh/heddle/internal/xds"
	"github.com/heddle-mesh/heddle/internal/xds/xdstest"
)

// tokens are podsOnly without an API server, of a cluster.
type tokens struct{ cluster mesh.ClusterID }

func (tokens) Tokens(c mesh.ClusterID) (identity.TokenChecker, bool) {
	return tokens{c}, c == "c1" || c == "c2"
}

func (t tokens) Review(_ context.Context, token string, audiences []string) (identity.Review, error) {
	f := strings.Split(token, ":")
	if len(f) != 4 {
		return identity.Review{}, fmt.Errorf("token %q", token)
	}
	r := identity.Review{Cluster: t.cluster, Username: "system:serviceaccount:" + f[0] + ":" + f[1], Groups: []string{"system:serviceaccounts"}}
	if f[2] != "" {
		r.PodName, r.PodUID = f[2], "uid-of-"+f[2]
	}
	if slices.Contains(audiences, f[3]) {
		r.Audiences = []string{f[3]}
	}
	return r, nil
}

// namespaces are the members of a mesh.
type namespaces []string

func (n namespaces) Member(_ mesh.ClusterID, namespace string) bool {
	return slices.Contains(n, namespace)
}

// hall is admission and debugging of a plane that is fed by hand, with clients on a connection in memory.
type hall struct {
	*plane
	*world
	admission *clients
	server    *xds.Server
	conn      *grpc.ClientConn
	refused   chan identity.Refusal
	rejected  chan rejection
	profiling atomic.Pointer[string] // why profiles may not be taken; nil: they may
}

func newHall(t *testing.T) *hall {
	t.Helper()
	o := Options{Mesh: "one", Namespace: system, Revision: "default", Cluster: "c1", PodName: "istiod-1", APIVersion: "v1.30.3", Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Level: &obs.Level{}}
	h := &hall{world: newWorld("one"), plane: &plane{Options: o, registry: obs.Registry()}, refused: make(chan identity.Refusal, 100), rejected: make(chan rejection, 100)}
	pods := newPods(h.Pipeline)
	h.gate = &identity.Gate{
		Audience: audience, RootNamespace: system, TrustDomain: "cluster.local", Home: "c1",
		Clusters: tokens{}, Members: namespaces{system, "shop"}, Pods: pods,
		Refused: func(_ context.Context, r identity.Refusal) { h.refused <- r },
	}
	h.profiling.Store(new("profiles are off here"))
	d := &debug{options: o, pipeline: h.Pipeline, meters: h.graph.Meters, admin: &obs.Admin{Log: o.Log, Level: o.Level, Profiling: func(context.Context) error {
		if why := h.profiling.Load(); why != nil {
			return errors.New(*why)
		}
		return nil
	}}}
	h.admission = &clients{rejected: func(_ context.Context, r rejection) { h.rejected <- r }, gate: h.gate, pipeline: h.Pipeline, debug: d}
	h.server = xds.NewServer(xds.Options{Log: o.Log, Types: pushOrder, Admit: h.admission.admit, ControlPlane: o.identifier()})
	d.server = h.server
	h.debug.Store(d)
	h.graph.OnPublish(func(rev graph.Rev) {
		h.server.Publish(uint64(rev), h.Changes(), sessions(h.Moved())...)
		pods.wake()
	})
	for _, ns := range []string{system, "shop"} {
		h.set(&heddlev1alpha1.Membership{
			ObjectMeta: metav1.ObjectMeta{Name: ns}, Spec: heddlev1alpha1.MembershipSpec{Namespace: ns, Phase: heddlev1alpha1.Member},
		}, false)
	}
	for pod, ns := range map[string]string{"cart-1": "shop", "gw-1": system} { // that their kubelets have just begun
		h.set(&corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: pod, UID: types.UID("uid-of-" + pod)}, Spec: corev1.PodSpec{ServiceAccountName: "cart"},
		}, false)
	}
	ctx, cancel := context.WithCancel(context.Background())
	rounds := make(chan error)
	go func() { rounds <- h.graph.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-rounds
	})
	if err := h.graph.WaitRev(t.Context(), h.graph.Staged()); err != nil {
		t.Fatal(err)
	}

	listener := bufconn.Listen(1 << 16)
	g := grpc.NewServer(xds.ServerCodec())
	h.server.Register(g)
	ended := make(chan error)
	go func() { ended <- g.Serve(listener) }()
	var err error
	h.conn, err = grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.conn.Close()
		g.Stop()
		<-ended
	})
	return h
}

func (h *hall) connect(t *testing.T, form xdstest.Form, token string, node *corev3.Node) *xdstest.Client {
	t.Helper()
	c, err := xdstest.Connect(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token), h.conn, form, node)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (h *hall) proxy(t *testing.T, form xdstest.Form, pod string) *xdstest.Client {
	t.Helper()
	return h.connect(t, form, "shop:cart:"+pod+":"+audience, nodeOf(t, "shop", pod))
}

// ask is one request of a debug type by a token of the system namespace, as istioctl makes it.
func (h *hall) ask(t *testing.T, typeURL string, names ...string) (*xdstest.Response, error) {
	t.Helper()
	c := h.connect(t, xdstest.Delta, system+":istiod::istio-ca", &corev3.Node{Id: "debug~0.0.0.0~istioctl~cluster.local"})
	if err := c.Subscribe(typeURL, names...); err != nil {
		t.Fatal(err)
	}
	return c.Next()
}

const proxyID = "cart-1.shop"

// The sync status says of each type what the client has said.
func TestSyncStatus(t *testing.T) {
	for _, form := range xdstest.Forms {
		t.Run(form.String(), func(t *testing.T) {
			h := newHall(t)
			c := h.proxy(t, form, "cart-1")
			if got := h.statuses(t); len(got) != 0 {
				t.Fatalf("before any client: %v", got)
			}
			clusters := subscribe(t, c, clusterType)
			h.want(t, map[string]string{"Cluster": "STALE"})
			if err := c.Ack(clusters); err != nil {
				t.Fatal(err)
			}
			// The answer to the next request says that the server has read what came before it.
			listeners := subscribe(t, c, listenerType)
			h.want(t, map[string]string{"Cluster": "SYNCED", "Listener": "STALE"})
			if err := c.Nack(listeners, "no such filter"); err != nil {
				t.Fatal(err)
			}
			if form == xdstest.Delta { // comes again in halves, so that what is alone to blame is told
				if err := c.Nack(next(t, c), "no such filter"); err != nil {
					t.Fatal(err)
				}
			}
			if r := <-h.rejected; r.client != "cart-1.shop" || r.typeURL != listenerType || r.detail != "no such filter" {
				t.Errorf("told of %+v", r)
			}
			response, err := h.ask(t, syncURL)
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range response.Resources {
				var x statusv3.ClientConfig
				if err := a.UnmarshalTo(&x); err != nil {
					t.Fatal(err)
				}
				for _, s := range x.GetGenericXdsConfigs() {
					if s.GetTypeUrl() == listenerType && (s.GetConfigStatus() != statusv3.ConfigStatus_ERROR || s.GetErrorState().GetDetails() != "no such filter") {
						t.Errorf("listeners are %v", s)
					}
				}
				if x.GetNode().GetId() != proxyID || x.GetNode().GetMetadata().GetFields()["CLUSTER_ID"].GetStringValue() != "c1" {
					t.Errorf("node is %v", x.GetNode())
				}
			}
		})
	}
}

// Whom listeners let in counts as a part of them: tools know no column for it.
func TestSyncStatusOfTrust(t *testing.T) {
	for _, form := range xdstest.Forms {
		t.Run(form.String(), func(t *testing.T) {
			h := newHall(t)
			c := h.proxy(t, form, "cart-1")
			check(t, c.Ack(subscribe(t, c, listenerType)))
			trust := subscribe(t, c, secretType, "heddle/members")
			h.want(t, map[string]string{"Listener": "STALE"})
			check(t, c.Ack(trust))
			clusters := subscribe(t, c, clusterType) // the answer says that the server has read what came before
			h.want(t, map[string]string{"Cluster": "STALE", "Listener": "SYNCED"})
			check(t, c.Ack(clusters))
			if code, body := h.debug.Load().page("why?proxyID=" + proxyID + "&resource=heddle/members"); code != 200 || !strings.Contains(string(body), `"Origin": "MeshConfig one"`) {
				t.Errorf("why: %d %s", code, body)
			}
			h.Trusted.Set(mesh.ObjectKey{Cluster: "c1", Name: "new"}, struct{}{})
			check(t, c.Nack(next(t, c), "no such name"))
			if r := <-h.rejected; r.typeURL != secretType || r.detail != "no such name" {
				t.Errorf("told of %+v", r)
			}
			h.want(t, map[string]string{"Cluster": "SYNCED", "Listener": "ERROR"})
		})
	}
}

// statuses asks as istioctl does: by type, for the one proxy.
func (h *hall) statuses(t *testing.T) map[string]string {
	t.Helper()
	response, err := h.ask(t, syncURL)
	if err != nil {
		t.Fatal(err)
	}
	var identifier struct{ Component, ID string }
	if err := json.Unmarshal([]byte(response.ControlPlane), &identifier); err != nil || identifier.Component != "istiod" || identifier.ID != "istiod-1" {
		t.Errorf("answered by %q", response.ControlPlane)
	}
	out := map[string]string{}
	for _, a := range response.Resources {
		var c statusv3.ClientConfig
		if err := a.UnmarshalTo(&c); err != nil {
			t.Fatal(err)
		}
		for _, x := range c.GetGenericXdsConfigs() {
			out[short(x.GetTypeUrl())] = x.GetConfigStatus().String()
		}
	}
	return out
}

func (h *hall) want(t *testing.T, want map[string]string) {
	t.Helper()
	if got := h.statuses(t); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// read is the node as it comes.
func read(t *testing.T, n *corev3.Node) xds.Node {
	t.Helper()
	raw, err := proto.Marshal(n)
	if err != nil {
		t.Fatal(err)
	}
	return xds.ReadNode(raw)
}

// The four ways in which a client and what it was sent may stand to each other have names that istioctl knows.
func TestSyncNames(t *testing.T) {
	session := &xds.Session{ID: proxyID, Meta: newClient(identity.Caller{}, read(t, nodeOf(t, "shop", "cart-1")), mesh.WorkloadKey{})}
	for sync, want := range map[xds.Sync]string{xds.NotSent: "NOT_SENT", xds.Synced: "SYNCED", xds.Stale: "STALE", xds.Rejected: "ERROR"} {
		got := syncStatus(xds.ClientStatus{Session: session, Types: []xds.TypeStatus{{URL: clusterType, Sync: sync, Error: "text"}}})
		if s := got.GetGenericXdsConfigs()[0]; s.GetConfigStatus().String() != want {
			t.Errorf("%v is %v, want %s", sync, s.GetConfigStatus(), want)
		}
	}
}

// What istioctl and heddle ask by the debug types, and how it is refused.
func TestQuestions(t *testing.T) {
	h := newHall(t)
	subscribe(t, h.proxy(t, xdstest.Delta, "cart-1"), clusterType)
	for _, c := range []struct {
		typeURL string
		names   []string
		want    []string // types of the answer, in any order
		text    string   // in the first
		code    codes.Code
	}{
		{typeURL: syncURL, want: []string{"type.googleapis.com/envoy.service.status.v3.ClientConfig"}},
		{typeURL: configDumpURL, names: []string{proxyID}, want: []string{
			"type.googleapis.com/envoy.admin.v3.ClustersConfigDump", "type.googleapis.com/envoy.admin.v3.ListenersConfigDump", "type.googleapis.com/envoy.admin.v3.RoutesConfigDump",
		}, text: "PassthroughCluster"},
		{typeURL: configDumpURL, names: []string{"nobody.shop"}},
		{typeURL: configDumpURL, code: codes.InvalidArgument},
		{typeURL: debugURL, names: []string{"syncz"}, want: []string{debugURL}, text: proxyID},
		{typeURL: debugURL, names: []string{"config_dump?proxyID=" + proxyID}, want: []string{debugURL}, text: "PassthroughCluster"},
		{typeURL: debugURL, names: []string{"config_dump?proxyID=nobody.shop"}, want: []string{debugURL}, text: notConnected},
		{typeURL: debugURL, names: []string{"nothing"}, want: []string{debugURL}, text: "404"},
		{typeURL: debugURL, names: []string{"a", "b"}, code: codes.InvalidArgument},
		{typeURL: debugURL + "/other", code: codes.InvalidArgument},
	} {
		response, err := h.ask(t, c.typeURL, c.names...)
		if status.Code(err) != c.code {
			t.Errorf("%s %v: %v, want %v", c.typeURL, c.names, err, c.code)
		}
		if err != nil {
			continue
		}
		var types []string
		text := ""
		for _, a := range response.Resources {
			types = append(types, a.GetTypeUrl())
			text += string(a.GetValue())
		}
		if slices.Sort(types); !slices.Equal(types, c.want) && len(response.Names) != len(c.want) {
			t.Errorf("%s %v: got %v, want %v", c.typeURL, c.names, types, c.want)
		}
		if !strings.Contains(text, c.text) {
			t.Errorf("%s %v: no %q in %q", c.typeURL, c.names, c.text, text)
		}
	}
}

// Who may ask what, once a stream is admitted: proxies nothing about others, istioctl nothing that proxies hold.
func TestMayAsk(t *testing.T) {
	h := newHall(t)
	inside := func(pod string) *corev3.Node {
		n := nodeOf(t, system, pod)
		return n
	}
	for name, c := range map[string]struct {
		token string
		node  *corev3.Node
		first string
		then  string
		code  codes.Code
	}{
		"a proxy, of the others":                   {"shop:cart:cart-1:" + audience, nodeOf(t, "shop", "cart-1"), clusterType, syncURL, codes.PermissionDenied},
		"a proxy, of a page":                       {"shop:cart:cart-1:" + audience, nodeOf(t, "shop", "cart-1"), clusterType, debugURL, codes.PermissionDenied},
		"a proxy of the system namespace":          {system + ":cart:gw-1:" + audience, inside("gw-1"), clusterType, syncURL, codes.OK},
		"istioctl, of what proxies do not hold":    {system + ":istiod::istio-ca", &corev3.Node{Id: "x"}, syncURL, "type.googleapis.com/x", codes.PermissionDenied},
		"istioctl, of another page":                {system + ":istiod::istio-ca", &corev3.Node{Id: "x"}, syncURL, configDumpURL, codes.InvalidArgument}, // names none
		"a stranger's token":                       {"shop:cart::istio-ca", &corev3.Node{Id: "x"}, syncURL, "", codes.PermissionDenied},
		"the shared audience for what proxies get": {"shop:cart:cart-1:istio-ca", nodeOf(t, "shop", "cart-1"), clusterType, "", codes.Unauthenticated},
	} {
		t.Run(name, func(t *testing.T) {
			client := h.connect(t, xdstest.SotW, c.token, c.node)
			if err := client.Subscribe(c.first); err != nil {
				t.Fatal(err)
			}
			_, err := client.Next()
			if c.then != "" {
				if err != nil {
					t.Fatal(err)
				}
				if err := client.Subscribe(c.then); err != nil {
					t.Fatal(err)
				}
				_, err = client.Next()
			}
			if status.Code(err) != c.code {
				t.Errorf("got %v, want %v", err, c.code)
			}
		})
	}
}

// A client counts as connected until the last of its streams has ended, and a while longer: one that comes back finds what was
// made for it.
func TestPresence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld("one")
		stream := func() context.CancelFunc {
			ctx, cancel := context.WithCancel(t.Context())
			w.Connect(ctx, clientOf(identity.Caller{Cluster: "c1", Pod: "cart-1", Identity: mesh.Identity{Namespace: "shop"}}, read(t, nodeOf(t, "shop", "cart-1"))))
			return cancel
		}
		connected := func(want int) {
			t.Helper()
			synctest.Wait()
			w.graph.Step()
			if all := w.presence.source.All(); len(all) != want {
				t.Errorf("connected are %v, want %d", all, want)
			}
		}
		first := stream()
		connected(1)
		second := stream()
		first()
		time.Sleep(2 * lingers)
		connected(1)
		second()
		time.Sleep(lingers - time.Second)
		connected(1)
		third := stream()
		time.Sleep(2 * lingers)
		connected(1)
		third()
		time.Sleep(lingers + time.Second)
		connected(0)
		if len(w.presence.streams)+len(w.presence.leaving) > 0 {
			t.Errorf("streams are %v, leaving %v", w.presence.streams, w.presence.leaving)
		}
	})
}

// Port 15014, by path, by where the caller is, and by its token: all that it serves.
func TestMonitoring(t *testing.T) {
	h := newHall(t)
	h.ready.Store(true)
	h.gate.Refused = nil // more than its channel holds
	const (
		none  = ""
		ours  = system + ":istiod::istio-ca"
		other = "shop:cart::istio-ca"
		wrong = "nonsense"
	)
	all := []string{none, ours, other, wrong}
	ok := func(tokens ...string) map[string]int {
		out := map[string]int{}
		for _, token := range all {
			out[token] = http.StatusUnauthorized
		}
		for _, token := range tokens {
			out[token] = http.StatusOK
		}
		return out
	}
	always := func(code int) map[string]int { return map[string]int{none: code, ours: code, other: code, wrong: code} }
	refused := func(code int) map[string]int { return map[string]int{none: 401, ours: code, other: 401, wrong: 401} }
	rows := map[string]bool{}
	for _, c := range []struct {
		path            string
		loopback, other map[string]int // code by token
		text            string
	}{
		{"/metrics", ok(all...), ok(all...), "go_goroutines"},
		{"/ready", ok(all...), ok(all...), "ready"},
		{"/version", ok(all...), always(404), "1.30.3-heddle."},
		{"//version", ok(all...), always(404), "1.30.3-heddle."},
		{"/debug/syncz", ok(all...), always(404), "[]"},
		{"/debug/clusterz", ok(all...), always(404), `"c1"`},
		{"/debug/list", ok(ours), always(404), "/debug/why"},
		{"/debug/connections", ok(ours), always(404), "totalClients"},
		{"/debug/tables", ok(ours), always(404), "source.services"},
		{"/debug/findings", ok(ours), always(404), "[]"},
		{"/debug/../debug/list", ok(ours), always(404), "/debug/why"},
		{"/debug/syncz/../list", ok(ours), always(404), "/debug/why"},
		{"/debug/config_dump", refused(400), always(404), noProxyID},
		{"/debug/config_dump?proxyID=x.shop", refused(404), always(404), notConnected},
		{"/debug/why?proxyID=x.shop", refused(404), always(404), notConnected},
		{"/debug/syncz%3Fx", refused(404), always(404), ""},
		{"/debug/log", ok(ours), always(404), `{"level":"info","start":"info"}`},
		{"PUT /debug/log?level=info", ok(ours), always(404), `{"level":"info","start":"info"}`},
		{"DELETE /debug/log", ok(ours), always(404), `{"level":"info","start":"info"}`},
		{"/debug/profile?type=heap", refused(403), always(404), "profiles are off here"}, // until they are switched on
		{"/debug/profile?seconds=61", refused(400), always(404), "from 1 to 60"},
		{"/debug/profile/", refused(403), always(404), "profiles are off here"},
		{"/debug/pprof/heap", refused(404), always(404), ""},
		{"/debug/pprof/profile", refused(404), always(404), ""},
		{"/debug/", map[string]int{none: 404, ours: 404, other: 404, wrong: 404}, always(404), ""},
		{"/", always(404), always(404), ""},
	} {
		method, where, given := strings.Cut(c.path, " ")
		if !given {
			method, where = http.MethodGet, c.path
		}
		name, _, _ := strings.Cut(where, "?")
		rows[name] = true
		for from, want := range map[string]map[string]int{"127.0.0.1:5": c.loopback, "[::1]:5": c.loopback, "10.0.0.9:5": c.other, "[fd00::1]:5": c.other, "": c.other} {
			for _, token := range all {
				r := httptest.NewRequest(method, "http://x"+where, http.NoBody)
				r.RemoteAddr = from
				if token != none {
					r.Header.Set("Authorization", "Bearer "+token)
				}
				w := httptest.NewRecorder()
				h.monitoring().ServeHTTP(w, r)
				body, _ := io.ReadAll(w.Body)
				if w.Code != want[token] {
					t.Errorf("%s from %s with token %q: %d %s, want %d", c.path, from, token, w.Code, body, want[token])
				}
				told := w.Code == http.StatusOK || token == ours && slices.Contains([]string{"127.0.0.1:5", "[::1]:5"}, from)
				if told && !strings.Contains(string(body), c.text) {
					t.Errorf("%s: no %q in %s", c.path, c.text, body)
				}
			}
		}
	}
	for path := range h.routes() {
		if !rows[path] {
			t.Errorf("%s is served, and has no row above: who may read it?", path)
		}
	}
}

// Once they are switched on, a profile is for who may read the debug pages, over HTTP alone; so is setting the log's level.
func TestAdminPages(t *testing.T) {
	h := newHall(t)
	h.profiling.Store(nil)
	call := func(method, path, token string) (int, string) {
		r := httptest.NewRequest(method, "http://x"+path, http.NoBody)
		r.RemoteAddr = "127.0.0.1:5"
		r.Header.Set("Authorization", "Bearer "+token)
		w := httptest.NewRecorder()
		h.monitoring().ServeHTTP(w, r)
		return w.Code, w.Body.String()
	}
	const ours, other = system + ":istiod::istio-ca", "shop:cart::istio-ca"
	if code, body := call("GET", "/debug/profile?type=heap", ours); code != 200 || !strings.HasPrefix(body, "\x1f\x8b") {
		t.Errorf("a profile: %d %.100q", code, body)
	}
	if code, body := call("GET", "/debug/profile?type=heap", other); code != 401 {
		t.Errorf("a profile for a proxy: %d %.100q", code, body)
	}
	for token, want := range map[string]slog.Level{other: slog.LevelInfo, ours: slog.LevelDebug} {
		if code, body := call("PUT", "/debug/log?level=debug", token); h.Level.Level() != want {
			t.Errorf("%s sets the level: %d %s, which is %s now", token, code, body, h.Level)
		}
		h.Level.Reset()
	}
	for _, page := range []string{"profile?type=heap", "log", "log?level=debug"} {
		response, err := h.ask(t, debugURL, page)
		if err != nil {
			t.Fatal(err)
		}
		if text := string(response.Resources[page].GetValue()); !strings.Contains(text, "over HTTP, on port 15014") || h.Level.Level() != slog.LevelInfo {
			t.Errorf("%s over xDS: %s", page, text)
		}
	}
}

// Before the plane serves there are no debug pages, and it is not ready.
func TestMonitoringBeforeStart(t *testing.T) {
	p := &plane{registry: obs.Registry()}
	for path, want := range map[string]int{"/ready": 503, "/metrics": 200, "/version": 200, "/debug/syncz": 404, "/debug/list": 404} {
		r := httptest.NewRequest(http.MethodGet, path, http.NoBody)
		r.RemoteAddr = "127.0.0.1:5"
		w := httptest.NewRecorder()
		p.monitoring().ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("%s: %d, want %d", path, w.Code, want)
		}
	}
}
