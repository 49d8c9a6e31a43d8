package control

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/kube/kubetest"
	"github.com/heddle-mesh/heddle/internal/xds/xdstest"
)

const wait = 20 * time.Second // bound on every wait

// transcript is a log that can be waited for.
type transcript struct {
	mu      sync.Mutex // guards the fields below
	text    bytes.Buffer
	written chan struct{} // closed and replaced at each line
}

func (l *transcript) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.written)
	l.written = make(chan struct{})
	return l.text.Write(line)
}

func (l *transcript) await(t *testing.T, what string) {
	t.Helper()
	late := time.After(wait)
	for {
		l.mu.Lock()
		found, written, text := strings.Contains(l.text.String(), what), l.written, l.text.String()
		l.mu.Unlock()
		if found {
			return
		}
		select {
		case <-written:
		case <-late:
			t.Fatalf("waited %v for %q in the log:\n%s", wait, what, text)
		}
	}
}

// running is a whole plane before an API server in memory. Its servers have a loopback address of their own.
type running struct {
	api   *kubetest.Server
	log   *transcript
	addr  string
	ended chan error
	stop  context.CancelFunc
	wait  time.Duration // Options.OpenWait

	signing string // Options.SigningDir; empty by default
}

func startPlane(t *testing.T) *running {
	t.Helper()
	h := fnv.New32()
	fmt.Fprint(h, os.Getpid(), t.Name())
	n := h.Sum32()
	r := &running{
		api: kubetest.New(t), log: &transcript{written: make(chan struct{})}, ended: make(chan error, 1),
		addr: net.IPv4(127, byte(n>>16)|1, byte(n>>8), byte(n)|1).String(), signing: t.TempDir(),
	}
	r.api.Review = podsOnly
	return r
}

func (r *running) run(t *testing.T) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	r.stop = cancel
	go func() {
		r.ended <- Run(ctx, Options{
			Mesh: "one", Namespace: system, PodName: "istiod-1", Cluster: "c1", Kubeconfig: r.api.Kubeconfig(), SigningDir: r.signing,
			SecureAddr: r.addr + ":15012", HTTPSAddr: r.addr + ":15017", MonitoringAddr: r.addr + ":15014", HTTPAddr: r.addr + ":8080",
			OpenWait: r.wait, Log: slog.New(slog.NewTextHandler(r.log, nil)),
		})
	}()
	t.Cleanup(cancel)
}

// end stops the plane as its kubelet would.
func (r *running) end(t *testing.T) {
	t.Helper()
	r.stop()
	if err := <-r.ended; err != nil {
		t.Errorf("a normal end says %v", err)
	}
}

// tokenOf makes a token of "NAMESPACE:ACCOUNT:POD"; without a pod it is bound to none.
func tokenOf(sub, audience string) string {
	return "e30." + base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"sub":%q,"aud":%q,"exp":100000000000,"iss":"us"}`, sub, audience)) + ".e30"
}

// podsOnly takes what tokenOf makes.
func podsOnly(s authenticationv1.TokenReviewSpec) authenticationv1.TokenReviewStatus {
	_, token, _ := strings.Cut(s.Token, ".")
	token, _, _ = strings.Cut(token, ".")
	payload, err := base64.RawURLEncoding.DecodeString(token)
	var said struct{ Sub, Aud string }
	if err == nil {
		err = json.Unmarshal(payload, &said)
	}
	f := append(strings.Split(said.Sub, ":"), said.Aud)
	if err != nil || len(f) != 4 {
		return authenticationv1.TokenReviewStatus{Error: "no token of ours"}
	}
	out := authenticationv1.TokenReviewStatus{Authenticated: true, User: authenticationv1.UserInfo{
		Username: "system:serviceaccount:" + f[0] + ":" + f[1], Groups: []string{"system:serviceaccounts"},
	}}
	if f[2] != "" {
		out.User.Extra = map[string]authenticationv1.ExtraValue{
			"authentication.kubernetes.io/pod-name": {f[2]}, "authentication.kubernetes.io/pod-uid": {"uid-of-" + f[2]},
		}
	}
	if slices.Contains(s.Audiences, f[3]) {
		out.Audiences = []string{f[3]}
	}
	return out
}

const audience = "heddle.dev/istio-system/one"

func settings(name, key, text string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: name}, Data: map[string]string{key: text}}
}

func (r *running) configure() {
	r.api.Put("configmaps", settings("istio", "mesh", "accessLogFile: /dev/stdout"))
	r.api.Put("configmaps", settings("istio-sidecar-injector", "values", "{}"))
}

func (r *running) put(namespace string, phase heddlev1alpha1.Phase) {
	r.api.Put("memberships", &heddlev1alpha1.Membership{
		ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: namespace},
		Spec:       heddlev1alpha1.MembershipSpec{Namespace: namespace, UID: "u", Phase: phase},
	})
}

// get reads a page of one of the plane's servers.
func (r *running) get(t *testing.T, url, token string) (int, string) {
	t.Helper()
	q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		q.Header.Set("Authorization", "Bearer "+token)
	}
	client := http.Client{Timeout: wait, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: r.tls(t)}}
	a, err := client.Do(q)
	if err != nil {
		return 0, err.Error()
	}
	defer a.Body.Close()
	body, err := io.ReadAll(a.Body)
	if err != nil {
		t.Fatal(err)
	}
	return a.StatusCode, string(body)
}

// tls trusts what the plane wrote into its own namespace, and nothing else.
func (r *running) tls(t *testing.T) *tls.Config {
	roots := x509.NewCertPool()
	if pem, ok := r.api.Get("configmaps", system, kube.RootConfigMap, "data", kube.RootKey).(string); ok && !roots.AppendCertsFromPEM([]byte(pem)) {
		t.Fatalf("no certificate in %q", pem)
	}
	return &tls.Config{RootCAs: roots, ServerName: "istiod.istio-system.svc", MinVersion: tls.VersionTLS12}
}

func (r *running) dial(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+r.addr+":15012", grpc.WithTransportCredentials(credentials.NewTLS(r.tls(t))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// proxy connects as a pod's agent does.
func (r *running) proxy(t *testing.T, conn *grpc.ClientConn, form xdstest.Form, namespace, pod string) *xdstest.Client {
	t.Helper()
	c, err := xdstest.Connect(r.as(t, namespace, pod), conn, form, nodeOf(t, namespace, pod))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// as is the context of a pod's calls.
func (r *running) as(t *testing.T, namespace, pod string) context.Context {
	return metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+tokenOf(namespace+":cart:"+pod, audience), "clusterid", "c1")
}

func nodeOf(t *testing.T, namespace, pod string) *corev3.Node {
	t.Helper()
	fields, err := structpb.NewStruct(map[string]any{
		"NAMESPACE": namespace, "SERVICE_ACCOUNT": "cart", "CLUSTER_ID": "c1", "ISTIO_VERSION": "1.30.3", "PROXY_CONFIG": map[string]any{},
		"LABELS": map[string]any{"app": "cart"}, "POD_PORTS": `[{"name":"web","containerPort":8080}]`, "NODE_NAME": "k1",
	})
	if err != nil {
		t.Fatal(err)
	}
	return &corev3.Node{Id: "sidecar~10.0.0.1~" + pod + "." + namespace + "~" + namespace + ".svc.cluster.local", Metadata: fields}
}

// pendingPod has no address yet.
func pendingPod(name string) *corev1.Pod {
	p := cartPod(name)
	p.Status = corev1.PodStatus{Phase: corev1.PodPending}
	return p
}

func cartPod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-of-" + name), Labels: map[string]string{"app": "cart"}},
		Spec:       corev1.PodSpec{ServiceAccountName: "cart"},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.1"},
	}
}

func subscribe(t *testing.T, c *xdstest.Client, typeURL string, names ...string) *xdstest.Response {
	t.Helper()
	if err := c.Subscribe(typeURL, names...); err != nil {
		t.Fatal(err)
	}
	return next(t, c)
}

func next(t *testing.T, c *xdstest.Client) *xdstest.Response {
	t.Helper()
	response, err := c.Next()
	if err != nil {
		t.Fatal(err)
	}
	return response
}

// ends reads until the stream ends.
func ends(c *xdstest.Client) error {
	for {
		if _, err := c.Next(); err != nil {
			return err
		}
	}
}

// A plane is ready when it has settings, members and servers; it serves them until they leave, and ends without a word.
func TestPlane(t *testing.T) {
	r := startPlane(t)
	r.run(t)
	ready := func(want int) {
		t.Helper()
		if code, body := r.get(t, "http://"+r.addr+":8080/ready", ""); code != want {
			t.Errorf("/ready is %d %s, want %d", code, body, want)
		}
	}
	r.log.await(t, "waiting for settings")
	ready(http.StatusServiceUnavailable)
	r.api.Put("configmaps", settings("istio", "mesh", "accessLogFile: [not text]"))
	r.api.Put("configmaps", settings("istio-sidecar-injector", "values", "{}"))
	r.log.await(t, "settings not understood")
	ready(http.StatusServiceUnavailable)

	r.api.Put("pods", pendingPod("cart-1"))
	r.put(system, heddlev1alpha1.Member)
	r.put("shop", heddlev1alpha1.Joining)
	r.configure()
	r.log.await(t, "msg=serving")
	ready(http.StatusOK)
	if code, body := r.get(t, "https://"+r.addr+":15017/ready", ""); code != http.StatusOK {
		t.Errorf("webhooks: %d %s", code, body)
	}
	if code, _ := r.get(t, "https://"+r.addr+":15017/inject", ""); code != http.StatusMethodNotAllowed {
		t.Errorf("GET of /inject: %d", code)
	}
	for token, want := range map[string]int{"": http.StatusUnauthorized, tokenOf(system+":default:", "istio-ca"): http.StatusForbidden} {
		if code, body := r.get(t, "http://"+r.addr+":15014/debug/profile", token); code != want || code == http.StatusForbidden && !strings.Contains(body, "HEDDLE_PROFILES") {
			t.Errorf("a profile with token %q: %d %s, want %d", token, code, body, want)
		}
	}
	if secret := r.api.Get("secrets", system, caSecret, "type"); secret != "istio.io/ca-root" {
		t.Errorf("the mesh's own root is kept as %v", secret)
	}
	root := r.api.Get("configmaps", system, kube.RootConfigMap, "data", kube.RootKey)
	r.api.Await("the mesh's root in shop", func() bool { // which serving does not wait for
		return root != nil && r.api.Get("configmaps", "shop", kube.RootConfigMap, "data", kube.RootKey) == root
	})

	conn := r.dial(t)
	client := r.proxy(t, conn, xdstest.Delta, "shop", "cart-1")
	if err := client.Subscribe(clusterType); err != nil {
		t.Fatal(err)
	}
	r.put("shop", heddlev1alpha1.Member) // until then a proxy of shop has no inbound side, and is told nothing
	if got := next(t, client).Names; !slices.Contains(got, "PassthroughCluster") {
		t.Errorf("clusters are %v", got)
	}
	r.put("shop", heddlev1alpha1.Leaving)
	if err := ends(client); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "namespace shop has left mesh one; restart the pod") {
		t.Errorf("the stream ended with %v", err)
	}
	r.api.Await("the report", func() bool {
		return r.api.Get("memberships", system, "shop", "status", "generation") == r.api.Get("memberships", system, "shop", "metadata", "generation")
	})
	if member := r.api.Get("configmaps", "shop", kube.RootConfigMap, "data", kube.RootKey); member != nil {
		t.Errorf("shop still has root %v", member)
	}
	again := r.proxy(t, conn, xdstest.Delta, "shop", "cart-1")
	if err := again.Subscribe(clusterType); err != nil {
		t.Fatal(err)
	}
	if err := ends(again); status.Code(err) != codes.PermissionDenied || strings.Contains(err.Error(), "shop") {
		t.Errorf("who has left is refused with %v", err)
	}
	conn.Close()
	r.end(t)
}

// Another control plane's root in the system namespace keeps no plane from serving: it says so, and writes its own when the
// other has gone.
func TestForeignRootInSystemNamespace(t *testing.T) {
	r := startPlane(t)
	r.configure()
	r.api.Put("configmaps", &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: kube.RootConfigMap, ManagedFields: []metav1.ManagedFieldsEntry{
			{Manager: "pilot-discovery", FieldsV1: &metav1.FieldsV1{Raw: []byte(`{"f:data":{"f:root-cert.pem":{}}}`)}},
		}},
		Data: map[string]string{kube.RootKey: "theirs"},
	})
	r.run(t)
	r.log.await(t, "msg=serving")
	r.log.await(t, "serving though the mesh's root is not where new pods look for it")
	r.api.Await("an event", func() bool {
		return slices.ContainsFunc(r.api.Requests(), func(q kubetest.Request) bool {
			return strings.HasSuffix(q.Path, "/events") && strings.Contains(q.Body, "ForeignRoot") && strings.Contains(q.Body, "pilot-discovery")
		})
	})
	root := func() any { return r.api.Get("configmaps", system, kube.RootConfigMap, "data", kube.RootKey) }
	if root() != "theirs" {
		t.Error("what another control plane owns was taken")
	}
	r.api.Delete("configmaps", system, kube.RootConfigMap)
	r.api.Await("our root", func() bool { return root() != nil && root() != "theirs" })
	r.end(t)
}

// A plane that ends says nothing of what its clients hold; they keep it.
func TestPlaneEnd(t *testing.T) {
	for _, form := range xdstest.Forms {
		t.Run(form.String(), func(t *testing.T) {
			r := startPlane(t)
			r.configure()
			r.put("shop", heddlev1alpha1.Member)
			r.api.Put("pods", cartPod("cart-1"))
			r.api.Put("services", &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "cart"}, Spec: corev1.ServiceSpec{
				ClusterIP: "10.96.0.1", Ports: []corev1.ServicePort{{Name: "http", Port: 80}},
			}})
			r.run(t)
			r.log.await(t, "msg=serving")
			client := r.proxy(t, r.dial(t), form, "shop", "cart-1")
			const cart = "outbound|80||cart.shop.svc.cluster.local"
			if got := subscribe(t, client, clusterType).Names; !slices.Contains(got, cart) {
				t.Fatalf("clusters are %v", got)
			}
			r.stop()
			if err := ends(client); status.Code(err) != codes.Unavailable {
				t.Errorf("the stream ended with %v", err)
			}
			if client.Held[clusterType][cart] == nil {
				t.Error("the last thing it was told is that the service is gone")
			}
			r.end(t)
		})
	}
}

// A plane is not ready, and takes no stream, until the system namespace is read: its policies make the whole mesh safer.
func TestSystemNamespaceFirst(t *testing.T) {
	r := startPlane(t)
	r.wait = time.Millisecond
	r.configure()
	r.put("shop", heddlev1alpha1.Member)
	r.put("root", heddlev1alpha1.Member)
	r.api.Put("configmaps", settings("istio", "mesh", "rootNamespace: root"))
	r.api.Refuse("root")
	r.run(t)
	r.api.Await("the report of shop", func() bool { return r.api.Get("memberships", system, "shop", "status", "watching") == true })
	r.log.await(t, "waiting for the namespaces whose policies are for all")
	r.api.Await("tries to read the root namespace, for a third of a second", func() bool {
		tries := 0
		for _, q := range r.api.Requests() {
			if strings.Contains(q.Path, "/namespaces/root/") && q.Code == http.StatusForbidden {
				tries++
			}
		}
		return tries >= 25
	})
	if code, _ := r.get(t, "http://"+r.addr+":8080/ready", ""); code != http.StatusServiceUnavailable {
		t.Errorf("/ready is %d though a root namespace is not read", code)
	}
	if c, err := net.Dial("tcp", r.addr+":15012"); err == nil {
		c.Close()
		t.Error("streams are taken though a root namespace is not read")
	}
	r.api.Allow("root")
	r.log.await(t, "msg=serving")
	r.end(t)
}

// A plane that begins while a namespace can't be read takes nothing of it from a proxy that comes from the plane before.
func TestRestartKeeps(t *testing.T) {
	for _, form := range xdstest.Forms {
		t.Run(form.String(), func(t *testing.T) {
			r := startPlane(t)
			r.wait = time.Millisecond
			r.configure()
			name := func(namespace string) string { return "outbound|80||cart." + namespace + ".svc.cluster.local" }
			for i, namespace := range []string{"shop", "pay"} {
				r.put(namespace, heddlev1alpha1.Member)
				r.api.Put("services", &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "cart"}, Spec: corev1.ServiceSpec{
					ClusterIP: fmt.Sprint("10.96.0.", i+1), Ports: []corev1.ServicePort{{Name: "http", Port: 80}},
				}})
			}
			r.api.Put("pods", cartPod("cart-1"))
			r.run(t)
			r.log.await(t, "msg=serving")
			for _, namespace := range []string{"shop", "pay"} {
				r.api.Await("the report of "+namespace, func() bool { return r.api.Get("memberships", system, namespace, "status", "watching") == true })
			}
			client := r.proxy(t, r.dial(t), form, "shop", "cart-1")
			until := func(ok func() bool) {
				t.Helper()
				for !ok() {
					check(t, client.Ack(next(t, client)))
				}
			}
			check(t, client.Subscribe(clusterType))
			until(func() bool {
				return client.Held[clusterType][name("pay")] != nil && client.Held[clusterType][name("shop")] != nil
			})
			check(t, client.Subscribe(routeType, "80"))
			until(func() bool { return client.Held[routeType]["80"] != nil })
			before := client.Held[routeType]["80"].GetValue()
			r.end(t)

			r.api.Refuse("pay")
			r.log = &transcript{written: make(chan struct{})}
			r.run(t)
			r.log.await(t, "msg=serving")
			r.api.Put("services", &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "new"}, Spec: corev1.ServiceSpec{
				ClusterIP: "10.96.0.3", Ports: []corev1.ServicePort{{Name: "http", Port: 80}},
			}})
			conn := r.dial(t)
			check(t, client.Reconnect(r.as(t, "shop", "cart-1"), conn, nodeOf(t, "shop", "cart-1")))
			fresh := r.proxy(t, conn, form, "shop", "cart-1") // holds nothing: it is served what there is
			if got := subscribe(t, fresh, clusterType).Names; !slices.Contains(got, name("shop")) {
				t.Errorf("a new proxy has clusters %v", got)
			}
			const added = "outbound|80||new.shop.svc.cluster.local"
			until(func() bool { return form == xdstest.SotW || client.Held[clusterType][added] != nil })
			if client.Held[clusterType][name("pay")] == nil || !bytes.Equal(client.Held[routeType]["80"].GetValue(), before) {
				t.Error("what could not be read was taken away")
			}
			r.api.Allow("pay")
			until(func() bool {
				return client.Held[clusterType][added] != nil && !bytes.Equal(client.Held[routeType]["80"].GetValue(), before)
			})
			if client.Held[clusterType][name("pay")] == nil {
				t.Error("it was taken away when it could be read")
			}
			r.end(t)
		})
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A deleted pod's stream ends, and its token is good for nothing.
func TestPodDeleted(t *testing.T) {
	r := startPlane(t)
	r.configure()
	r.put("shop", heddlev1alpha1.Member)
	r.api.Put("pods", cartPod("cart-1")) // before the plane begins: made and deleted within one round it would never be seen
	r.run(t)
	r.log.await(t, "msg=serving")
	conn := r.dial(t)
	client := r.proxy(t, conn, xdstest.Delta, "shop", "cart-1")
	subscribe(t, client, listenerType)
	r.api.Delete("pods", "shop", "cart-1")
	if err := ends(client); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "the pod is deleted") {
		t.Errorf("the stream ended with %v", err)
	}
	again := r.proxy(t, conn, xdstest.Delta, "shop", "cart-1")
	if err := again.Subscribe(clusterType); err != nil {
		t.Fatal(err)
	}
	if err := ends(again); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a token of a deleted pod is answered %v", err)
	}
	r.log.await(t, "check=pod-deleted")
	conn.Close()
	r.end(t)
}

// A server that cannot listen ends the process, which says which and why and was never ready.
func TestTakenPort(t *testing.T) {
	for port, what := range map[string]string{"15012": "xDS and CA", "15017": "webhooks", "15014": "monitoring", "8080": "readiness"} {
		t.Run(port, func(t *testing.T) {
			r := startPlane(t)
			taken, err := net.Listen("tcp", r.addr+":"+port)
			if err != nil {
				t.Fatal(err)
			}
			defer taken.Close()
			r.configure()
			r.run(t)
			err = <-r.ended
			if err == nil || !strings.Contains(err.Error(), "serve "+what) || !strings.Contains(err.Error(), r.addr+":"+port+": bind: address already in use") {
				t.Errorf("ended with %v", err)
			}
			r.log.mu.Lock()
			defer r.log.mu.Unlock()
			if strings.Contains(r.log.text.String(), "msg=serving") {
				t.Error("it said that it serves")
			}
		})
	}
}

func TestOptions(t *testing.T) {
	err := Run(t.Context(), Options{})
	if err == nil || !strings.Contains(err.Error(), "HEDDLE_MESH") || !strings.Contains(err.Error(), "POD_NAMESPACE") {
		t.Errorf("got %v, want every fault at once", err)
	}
	for revision, want := range map[string]string{"": "istio", "default": "istio", "canary": "istio-canary"} {
		o := Options{Mesh: "one", Namespace: system, Revision: revision}
		if err := o.defaults(); err != nil {
			t.Fatal(err)
		}
		if got := newConfig(o).meshName(); got != want {
			t.Errorf("revision %q reads ConfigMap %q, want %q", revision, got, want)
		}
	}
}
