//go:build e2e

package control

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	statusv3 "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"

	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/meshtest"
	"github.com/heddle-mesh/heddle/internal/obs"
	"github.com/heddle-mesh/heddle/internal/xds"
)

const (
	labCluster = "c1" // as stage has it
	labSystem  = "istio-system"
	webVIP     = "10.96.0.10"
)

// labObjects are a service of three protocols with one pod behind it, and a pod that calls it.
const labObjects = `
{kind: Membership, metadata: {name: shop}, spec: {namespace: shop, phase: Member}}
---
{kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.96.0.10, selector: {app: server},
  ports: [{name: http, port: 80, targetPort: 8080}, {name: http2, port: 81, targetPort: 8080}, {name: tcp, port: 9000, targetPort: 9000}]}}
---
kind: EndpointSlice
metadata: {name: web-x, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [SERVER], conditions: {ready: true}, targetRef: {kind: Pod, name: server}}]
ports: [{name: http, port: 8080}, {name: http2, port: 8080}, {name: tcp, port: 9000}]
---
{kind: Pod, metadata: {name: server, namespace: shop, uid: server, labels: {app: server, security.istio.io/tlsMode: istio}},
  spec: {serviceAccountName: server}, status: {podIP: SERVER, podIPs: [{ip: SERVER}], phase: Running}}
---
{kind: Pod, metadata: {name: client, namespace: shop, uid: client, labels: {app: client, security.istio.io/tlsMode: istio}},
  spec: {serviceAccountName: client}, status: {podIP: CLIENT, podIPs: [{ip: CLIENT}], phase: Running}}
`

// labRule changes the three clusters of the service, and not what they do.
const labRule = `
{kind: DestinationRule, metadata: {name: web, namespace: shop}, spec: {host: web, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}}
`

// lab is a control plane without an API server, whose objects are given by hand, and two pods with agent and Envoy.
type lab struct {
	*Pipeline
	graph          *graph.Graph
	server         *xds.Server
	authority      *identity.Authority
	debug          *debug
	hub            *meshtest.Pod // where the plane listens, without a sidecar
	client, target *meshtest.Pod
	proxies        map[string]*meshtest.Proxy
	open           atomic.Int32 // connections to the server pod's HTTP application, which closes none
}

// labTokens take "NAMESPACE:ACCOUNT:POD" for a token of the mesh.
type labTokens struct{}

func (labTokens) Tokens(c mesh.ClusterID) (identity.TokenChecker, bool) {
	return labTokens{}, c == labCluster
}

func (labTokens) Review(_ context.Context, token string, audiences []string) (identity.Review, error) {
	f := strings.Split(token, ":")
	if len(f) != 3 {
		return identity.Review{}, fmt.Errorf("token %q", token)
	}
	return identity.Review{
		Cluster: labCluster, Audiences: audiences[:1], Username: "system:serviceaccount:" + f[0] + ":" + f[1],
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + f[0]}, PodName: f[2], PodUID: f[2],
	}, nil
}

type labMembers struct{}

func (labMembers) Member(_ mesh.ClusterID, namespace string) bool { return namespace == "shop" }

func newLab(t *testing.T, delta bool) *lab {
	t.Helper()
	network, hub := meshtest.NewNetwork(t)
	l := &lab{hub: hub, client: network.Pod(t, "client"), target: network.Pod(t, "server"), proxies: map[string]*meshtest.Proxy{}}

	options := Options{Mesh: "a", Namespace: labSystem, Revision: "default", Cluster: labCluster, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	l.graph = graph.New(graph.Options{Log: options.Log, Strict: true})
	l.Pipeline = NewPipeline(l.graph, options)
	authority, err := identity.Open(t.Context(), nil, noStore{}, mesh.DefaultTrustDomain, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	l.authority = authority
	l.Roots.Set("a", authority.Roots())
	pods := newPods(l.Pipeline)
	gate := &identity.Gate{
		Audience: "heddle.dev/" + labSystem + "/a", RootNamespace: labSystem, TrustDomain: mesh.DefaultTrustDomain, Home: labCluster,
		Clusters: labTokens{}, Members: labMembers{}, Pods: pods,
		Refused: func(_ context.Context, r identity.Refusal) { t.Errorf("refused: %+v", r) },
	}
	l.debug = &debug{options: options, pipeline: l.Pipeline, meters: l.graph.Meters, admin: &obs.Admin{}}
	admission := &clients{
		gate: gate, pipeline: l.Pipeline, debug: l.debug,
		rejected: func(context.Context, rejection) {}, // seen in syncz
	}
	l.server = xds.NewServer(xds.Options{Log: options.Log, Types: pushOrder, Admit: admission.admit})
	l.debug.server = l.server
	l.graph.OnPublish(func(rev graph.Rev) {
		l.server.Publish(uint64(rev), l.Changes(), sessions(l.Moved())...)
		pods.wake()
	})
	l.run(t, l.graph.Run)

	l.MeshConfig.Set("a", &meshv1alpha1.MeshConfig{AccessLogFile: "/dev/stdout"})
	l.apply(t, strings.NewReplacer("SERVER", l.target.Addresses[0].String(), "CLIENT", l.client.Addresses[0].String()).Replace(labObjects))

	serving := authority.Serving([]string{"istiod.istio-system.svc"}, time.Now)
	g := grpc.NewServer(xds.ServerCodec(), grpc.Creds(credentials.NewTLS(&tls.Config{
		GetCertificate: serving.GetCertificate, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"},
	})))
	l.server.Register(g)
	(&identity.Service{Authority: authority, Gate: gate, Checks: identity.CAChecks(), Now: time.Now, Log: options.Log}).Register(g)
	listener := hub.Listen(t, hub.Addresses[0].String()+":15012")
	l.run(t, func(ctx context.Context) error {
		context.AfterFunc(ctx, g.Stop)
		return g.Serve(listener)
	})

	program := meshtest.Program(t, "cmd/heddle-node")
	for _, p := range []*meshtest.Pod{l.client, l.target} {
		l.proxies[p.Name] = p.StartAgent(t, meshtest.Agent{
			Program: program, Namespace: "shop", Account: p.Name, Token: "shop:" + p.Name + ":" + p.Name,
			Discovery: "istiod.istio-system.svc:15012", Address: hub.Addresses[0], Root: authority.Roots(), Env: map[string]string{"ISTIO_DELTA_XDS": fmt.Sprint(delta), "ISTIO_META_CLUSTER_ID": labCluster},
		})
	}
	for _, p := range l.proxies {
		p.AwaitReady(t)
	}
	return l
}

// apply gives the plane objects and waits until they are published.
func (l *lab) apply(t *testing.T, docs string) {
	t.Helper()
	objects, _ := parse(t, []byte(docs))
	w := &world{Pipeline: l.Pipeline, cluster: labCluster}
	for _, o := range objects {
		w.set(o, false)
	}
	if err := l.graph.WaitRev(t.Context(), l.graph.Staged()); err != nil {
		t.Fatal(err)
	}
}

// run calls f until t ends.
func (l *lab) run(t *testing.T, f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// serve runs the server pod's applications: HTTP of both versions, which tells what it saw, and TCP that speaks first.
func (l *lab) serve(t *testing.T) {
	web := &http.Server{Protocols: new(http.Protocols), ReadHeaderTimeout: meshtest.Wait, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s from %s for %s", r.Proto, r.RemoteAddr, r.Header.Get("X-Forwarded-Client-Cert"))
	})}
	web.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			l.open.Add(1)
		case http.StateClosed, http.StateHijacked:
			l.open.Add(-1)
		}
	}
	web.Protocols.SetHTTP1(true)
	web.Protocols.SetUnencryptedHTTP2(true)
	listener := l.target.Listen(t, ":8080")
	l.run(t, func(ctx context.Context) error {
		context.AfterFunc(ctx, func() { web.Close() })
		if err := web.Serve(listener); err != http.ErrServerClosed {
			return err
		}
		return nil
	})
	banner := l.target.Listen(t, ":9000")
	l.run(t, func(ctx context.Context) error {
		context.AfterFunc(ctx, func() { banner.Close() })
		for {
			c, err := banner.Accept()
			if err != nil {
				return nil //nolint:nilerr // closed above
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			fmt.Fprintf(c, "banner for %s\n", host)
			c.Close()
		}
	})
}

// get asks the service from the client pod by HTTP/1.1 or, without upgrade, HTTP/2.
func (l *lab) get(t *testing.T, port string, http2 bool) string {
	t.Helper()
	transport := &http.Transport{DialContext: l.client.Dial, Protocols: new(http.Protocols), DisableKeepAlives: true}
	transport.Protocols.SetHTTP1(!http2)
	transport.Protocols.SetUnencryptedHTTP2(http2)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+webVIP+":"+port+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Host = "web.shop:" + port
	client := http.Client{Transport: transport, Timeout: meshtest.Wait}
	r, err := client.Do(request)
	if err != nil {
		return err.Error()
	}
	defer r.Body.Close()
	body := bufio.NewScanner(r.Body)
	body.Scan()
	return r.Status + " " + body.Text()
}

// direct returns a client outside of the mesh, on a connection of its own to the server pod, that asks for the connection
// which the application is asked by.
func (l *lab) direct(t *testing.T) func() string {
	t.Helper()
	transport := &http.Transport{DialContext: l.hub.Dial, MaxConnsPerHost: 1}
	t.Cleanup(transport.CloseIdleConnections)
	client := http.Client{Transport: transport, Timeout: meshtest.Wait}
	return func() string {
		r, err := client.Get("http://" + net.JoinHostPort(l.target.Addresses[0].String(), "8080"))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Fields(string(body))[2]
	}
}

// banner connects and reads, without having sent a byte.
func (l *lab) banner(t *testing.T) string {
	t.Helper()
	c, err := l.client.Dial(t.Context(), "tcp", webVIP+":9000")
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(line)
}

// status returns what syncz says of a type, for each proxy.
func (l *lab) status(typeURL string) map[string]*statusv3.ClientConfig_GenericXdsConfig {
	out := map[string]*statusv3.ClientConfig_GenericXdsConfig{}
	for _, c := range l.debug.proxies() {
		for _, x := range syncStatus(c).GetGenericXdsConfigs() {
			if x.GetTypeUrl() == typeURL {
				out[c.Session.Meta.(*client).name()] = x
			}
		}
	}
	return out
}

func (l *lab) await(t *testing.T, typeURL string, want statusv3.ConfigStatus) {
	t.Helper()
	meshtest.Await(t, short(typeURL)+" to be "+want.String(), func() (bool, string) {
		got := l.status(typeURL)
		ok := len(got) == len(l.proxies)
		for _, x := range got {
			ok = ok && x.GetConfigStatus() == want
		}
		return ok, fmt.Sprint(got)
	})
}

// Two pods with our agents and stock Envoys carry HTTP/1.1, HTTP/2 and a protocol in which the server speaks first, under
// mutual TLS, in both forms of discovery; nothing is rejected until the test publishes what must be.
func TestLab(t *testing.T) {
	for name, delta := range map[string]bool{"delta": true, "state of the world": false} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, delta)
			l.serve(t)
			l.traffic(t)
			for pod, p := range l.proxies {
				for stat, n := range p.Stats(t, "update_rejected") {
					if n != 0 {
						t.Errorf("%s: %s is %d", pod, stat, n)
					}
				}
			}

			// Clients share no connection to the application: a pool for all opens one for each request that waits, and leaves it
			// unused if another comes free first. Servers end those soonest.
			one, other := l.direct(t), l.direct(t)
			if first, second, again := one(), other(), one(); first == second || first != again {
				t.Errorf("requests of two clients, and again of the first, came by %s, %s, %s", first, second, again)
			}

			// The proxy ends idle connections to the application, before that does so with a request under way.
			meshtest.Await(t, "the idle connections to the application to be closed", func() (bool, string) {
				n := l.open.Load()
				return n == 0, fmt.Sprint(n, " are open")
			})

			// A changed cluster is warm at once, as Envoy gets its assignment again: without, it would be so for ever.
			modified := map[string]int{}
			const modifications = "cluster_manager.cluster_modified"
			for pod, p := range l.proxies {
				modified[pod] = p.Stats(t, modifications)[modifications]
			}
			l.apply(t, labRule)
			for pod, p := range l.proxies {
				meshtest.Await(t, pod+" to take the changed clusters", func() (bool, string) {
					s := p.Stats(t, "cluster_manager")
					return s[modifications] >= modified[pod]+3 && s["cluster_manager.warming_clusters"] == 0, fmt.Sprint(s)
				})
			}
			l.await(t, clusterType, statusv3.ConfigStatus_SYNCED)
			l.await(t, assignmentType, statusv3.ConfigStatus_SYNCED)
			l.traffic(t)

			bad, err := xds.Seal(listenerType, "bad", "Test bad", &listenerv3.Listener{
				Name: "bad", Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
					Address: "127.0.0.1", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 19080},
				}}},
				FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
					Name: "istio.stats", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: anyOf(t)},
				}}}},
			})
			if err != nil {
				t.Fatal(err)
			}
			everybody := l.everybody(t)
			l.server.Publish(1<<40, []xds.Change{{Group: everybody, Type: listenerType, Set: []xds.Resource{bad}}})
			l.await(t, listenerType, statusv3.ConfigStatus_ERROR)
			for id, x := range l.status(listenerType) {
				const want = "Error adding/updating listener(s) bad: Didn't find a registered implementation for 'istio.stats'"
				if got := x.GetErrorState().GetDetails(); !strings.HasPrefix(got, want) {
					t.Errorf("%s says %q, want %q", id, got, want)
				}
			}
			l.traffic(t)
			l.server.Publish(1<<40+1, []xds.Change{{Group: everybody, Type: listenerType, Remove: []string{"bad"}}})
			l.await(t, listenerType, statusv3.ConfigStatus_SYNCED)
		})
	}
}

// traffic claims what arrives, and that it went through both proxies: the application is spoken to by its own, which names
// the client.
func (l *lab) traffic(t *testing.T) {
	t.Helper()
	for what, got := range map[string]string{
		"HTTP/1.1": l.get(t, "80", false), "HTTP/2.0": l.get(t, "81", true), "banner": l.banner(t),
	} {
		want := []string{"200 OK", what, "127.0.0.6", "URI=spiffe://cluster.local/ns/shop/sa/client"}
		if what == "banner" {
			want = []string{"banner for 127.0.0.6"}
		}
		for _, w := range want {
			if !strings.Contains(got, w) {
				t.Errorf("%s: got %q, want %q in it", what, got, w)
			}
		}
	}
}

// everybody returns a group that both proxies hold.
func (l *lab) everybody(t *testing.T) xds.Group {
	t.Helper()
	for _, c := range l.debug.proxies() {
		groups, _ := c.Session.Groups()
		return groups[0]
	}
	t.Fatal("no proxy is connected")
	return ""
}

func anyOf(t *testing.T) *anypb.Any {
	a, err := anypb.New(&emptypb.Empty{})
	if err != nil {
		t.Fatal(err)
	}
	return a
}
