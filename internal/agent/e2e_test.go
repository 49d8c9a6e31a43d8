//go:build e2e

package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	securityv1 "istio.io/api/security/v1alpha1"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/meshtest"
	"github.com/heddle-mesh/heddle/internal/xds"
)

const (
	clusterType  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	listenerType = "type.googleapis.com/envoy.config.listener.v3.Listener"
)

func TestBootstrapIsValid(t *testing.T) {
	envoy := meshtest.Envoy(t)
	for name, c := range variants(t) {
		t.Run(name, func(t *testing.T) {
			b, err := Bootstrap(c)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "envoy.json")
			write(t, path, string(b))
			out, err := exec.Command(envoy, append(Args(c, path), "--mode", "validate")...).CombinedOutput()
			if err != nil || strings.Contains(string(out), "[warning]") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// A pod's own bootstrap is merged over the agent's.
func TestBootstrapOverride(t *testing.T) {
	s := newStand(t, true)
	port := freePort(t)
	override, err := json.Marshal(object{"static_resources": object{"listeners": []object{{
		"name": "own", "address": socket("127.0.0.1", port), "filter_chains": []object{{"filters": []object{says("own")}}},
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	s.config.Override = string(override)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { s.ended <- Run(ctx, s.config, slog.New(slog.NewTextHandler(t.Output(), nil))) }()
	s.publish(1, clusterType, "c", &clusterv3.Cluster{Name: "c", ConnectTimeout: durationpb.New(time.Second)})
	s.publish(2, listenerType, "INBOUND", plain(t, "INBOUND", freePort(t)))
	eventually(t, 10*time.Second, "the pod's own listener and the agent's", func() bool {
		return s.get(port, "/") == "200 OK\nown" && s.get(s.config.ReadyPort, "/healthz/ready") == "200 OK\n"
	})
	if err := Request(t.Context(), s.config.StatusPort, "POST", "drain", io.Discard); err != nil {
		t.Error(err)
	}
	http.DefaultClient.CloseIdleConnections() // or the agent waits for them
	cancel()
	if err := <-s.ended; err != nil {
		t.Error(err)
	}
}

// seal is a resource that Envoy gets.
func seal(t *testing.T, typeURL, name string, m proto.Message) xds.Resource {
	t.Helper()
	r, err := xds.Seal(typeURL, name, "", m)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

const types = "type.googleapis.com/envoy.extensions."

// says is a filter that answers every request with body.
func says(body string) object {
	return object{"name": "hcm", "typed_config": object{
		"@type":        types + "filters.network.http_connection_manager.v3.HttpConnectionManager",
		"stat_prefix":  "test;",
		"http_filters": []object{{"name": "router", "typed_config": object{"@type": types + "filters.http.router.v3.Router"}}},
		"route_config": object{"virtual_hosts": []object{{"name": "all", "domains": []string{"*"}, "routes": []object{{
			"match": object{"prefix": "/"}, "direct_response": object{"status": 200, "body": object{"inline_string": body}},
		}}}}},
	}}
}

func listenerOf(t *testing.T, o object) *listenerv3.Listener {
	t.Helper()
	b, err := json.Marshal(o)
	l := new(listenerv3.Listener)
	if err == nil {
		err = protojson.Unmarshal(b, l)
	}
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// plain is a listener of that direction that anybody may call.
func plain(t *testing.T, direction string, port int) *listenerv3.Listener {
	t.Helper()
	return listenerOf(t, object{
		"name": direction, "traffic_direction": direction, "address": socket("127.0.0.1", port),
		"filter_chains": []object{{"filters": []object{says(direction)}}},
	})
}

// mutualTLS is a listener that says body to who shows a certificate of the mesh.
func mutualTLS(t *testing.T, port int, body string) *listenerv3.Listener {
	t.Helper()
	sds := func(name string) object {
		return object{"name": name, "sds_config": object{
			"resource_api_version": "V3", "initial_fetch_timeout": "0s",
			"api_config_source": object{
				"api_type": "GRPC", "transport_api_version": "V3", "set_node_on_first_message_only": true,
				"grpc_services": []object{{"envoy_grpc": object{"cluster_name": "sds-grpc"}}},
			},
		}}
	}
	return listenerOf(t, object{
		"name": "inbound", "traffic_direction": "INBOUND", "address": socket("127.0.0.1", port),
		"filter_chains": []object{{
			"filters": []object{says(body)},
			"transport_socket": object{"name": "tls", "typed_config": object{
				"@type":                      types + "transport_sockets.tls.v3.DownstreamTlsContext",
				"require_client_certificate": true,
				"common_tls_context": object{
					"tls_certificate_sds_secret_configs":   []object{sds(ownSecret)},
					"validation_context_sds_secret_config": sds(rootSecret),
				},
			}},
		}},
	})
}

// freePort is one that nobody listens on now.
func freePort(t *testing.T) int {
	t.Helper()
	l, port := listen(t)
	_ = l.Close()
	return port
}

// eventually waits for ok, at most for the given time, looking every 20 ms: what is waited for is another process.
func eventually(t *testing.T, atMost time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > atMost {
			t.Fatalf("not within %s: %s", atMost, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(start)
}

// stand is a plane and an agent with a real Envoy.
type stand struct {
	*testing.T
	config    Config
	authority *identity.Authority
	xds       *xds.Server
	address   string
	server    *grpc.Server
	client    *http.Client
	ended     chan error

	mu    sync.Mutex
	nacks []string
}

// Three groups of facts about a whole agent: what it waits for, what it renews, and how it ends.
func TestAgentWithEnvoy(t *testing.T) {
	for _, form := range []string{"delta", "sotw"} {
		t.Run(form, func(t *testing.T) { testAgent(t, form == "delta") })
	}
}

func testAgent(t *testing.T, delta bool) {
	s := newStand(t, delta)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		s.ended <- Run(ctx, s.config, slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})))
	}()

	// Without listeners from the plane the pod is not ready.
	s.publish(1, clusterType, "c", &clusterv3.Cluster{Name: "c", ConnectTimeout: durationpb.New(time.Second)})
	eventually(t, 10*time.Second, "Envoy waits for listeners", func() bool {
		return strings.Contains(s.get(s.config.StatusPort, "/healthz/ready"), "503 Service")
	})
	port := freePort(t)
	s.publish(2, listenerType, "inbound", mutualTLS(t, port, "one"))
	took := eventually(t, 10*time.Second, "ready", func() bool { return s.get(s.config.ReadyPort, "/healthz/ready") == "200 OK\n" })
	t.Logf("ready %s after the listener was published", took)
	if got := s.get(s.config.StatsPort, "/stats/prometheus"); !strings.HasPrefix(got, "200 OK\n# TYPE") {
		t.Errorf("Envoy's metrics: %.80s", got)
	}
	if got := s.get(s.config.StatusPort, "/stats/prometheus"); !strings.Contains(got, "\nheddle_agent_certificate_expiry") || !strings.Contains(got, "envoy_server_live") {
		t.Errorf("merged metrics: %.80s", got)
	}
	if got := s.get(s.config.AdminPort, "/config_dump?mask=dynamic_active_secrets"); !strings.HasPrefix(got, "200") || strings.Contains(got, "PRIVATE KEY") {
		t.Errorf("secrets in the dump: %.200s", got)
	}

	// Mutual TLS with the workload's own certificate, renewed without a pause.
	first, body := s.hello(port)
	if body != "one" || first.URIs[0].String() != "spiffe://cluster.local/ns/shop/sa/web" {
		t.Fatalf("%q from %s", body, first.URIs)
	}
	eventually(t, s.config.CertLife, "renewal", func() bool {
		next, _ := s.hello(port)
		return next.SerialNumber.Cmp(first.SerialNumber) != 0
	})

	// The plane goes; traffic and readiness stay. A change made meanwhile is live within 5 s of its return.
	s.server.Stop()
	if _, body := s.hello(port); body != "one" {
		t.Errorf("without a plane: %q", body)
	}
	s.xds = s.newServer()
	s.publish(3, clusterType, "c", &clusterv3.Cluster{Name: "c", ConnectTimeout: durationpb.New(time.Second)})
	s.publish(4, listenerType, "inbound", mutualTLS(t, port, "two"))
	time.Sleep(3 * time.Second) // so that back-off has grown; nothing happens here that could be waited for
	s.start(s.address)
	took = eventually(t, 5*time.Second, "the change is live", func() bool { _, body := s.hello(port); return body == "two" })
	t.Logf("change live %s after the plane's return", took)

	// A rejected listener is told with Envoy's text, and changes nothing.
	bad := mutualTLS(t, port, "three")
	bad.FilterChains[0].Filters[0].Name = ""
	bad.FilterChains[0].Filters[0].ConfigType = nil
	s.publish(5, listenerType, "inbound", bad)
	eventually(t, 5*time.Second, "rejection", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.nacks) > 0 })
	if _, body := s.hello(port); body != "two" {
		t.Errorf("after a rejection: %q", body)
	}

	// The end, as of a native sidecar: drained and unready, open connections are waited for, then all is over.
	conn, err := tls.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), s.client.Transport.(*http.Transport).TLSClientConfig)
	if err != nil {
		t.Fatal(err)
	}
	if err := Request(t.Context(), s.config.StatusPort, "POST", "drain", io.Discard); err != nil {
		t.Error(err)
	}
	start := time.Now()
	cancel()
	eventually(t, time.Second, "unready", func() bool { return !strings.HasPrefix(s.get(s.config.ReadyPort, "/healthz/ready"), "200") })
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	if err := <-s.ended; err != nil {
		t.Error(err)
	}
	if d := time.Since(start); d < quiet || d > s.config.EndDrain {
		t.Errorf("ended after %s", d)
	}
	if files, _ := filepath.Glob(filepath.Join(s.config.Dir, "*")); len(files) > 0 {
		for _, f := range files {
			if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), "PRIVATE KEY") {
				t.Errorf("a key lies in %s", f)
			}
		}
	}
}

// From a native sidecar's preStop on, the application may work for the rest of the pod's grace period: its own calls go on as if
// nothing were, over the connections that it has and over new ones, in HTTP/1 and 2, while who calls the pod is sent away. That
// holds past the time after which Envoy closes the drained listeners.
func TestDrainLeavesOutboundAlone(t *testing.T) {
	s := newStand(t, true)
	s.config.Drain = 2 * time.Second
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { s.ended <- Run(ctx, s.config, slog.New(slog.NewTextHandler(t.Output(), nil))) }()
	in, out := freePort(t), freePort(t)
	s.publish(1, clusterType, "c", &clusterv3.Cluster{Name: "c", ConnectTimeout: durationpb.New(time.Second)})
	s.publish(2, listenerType, "INBOUND", plain(t, "INBOUND", in))
	s.publish(3, listenerType, "OUTBOUND", plain(t, "OUTBOUND", out))
	eventually(t, 10*time.Second, "ready", func() bool {
		return s.get(s.config.ReadyPort, "/healthz/ready") == "200 OK\n" && strings.HasSuffix(s.get(in, "/"), "INBOUND") && strings.HasSuffix(s.get(out, "/"), "OUTBOUND")
	})

	// ask calls over the connection of client, and tells whether that was a new one and whether the answer ends it.
	ask := func(client *http.Client, port int) (fresh, last bool) {
		t.Helper()
		trace := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { fresh = !i.Reused }})
		r, err := http.NewRequestWithContext(trace, http.MethodGet, "http://127.0.0.1:"+strconv.Itoa(port), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatal(resp.Status, err)
		}
		return fresh, resp.Close
	}
	clients := map[string]*http.Client{}
	for _, version := range []string{"HTTP/1", "HTTP/2"} {
		p := new(http.Protocols)
		p.SetHTTP1(version == "HTTP/1")
		p.SetUnencryptedHTTP2(version == "HTTP/2")
		transport := &http.Transport{Protocols: p}
		defer transport.CloseIdleConnections()
		clients[version] = &http.Client{Transport: transport}
		if fresh, last := ask(clients[version], out); !fresh || last {
			t.Fatalf("%s before the drain: new connection %v, ended %v", version, fresh, last)
		}
		ask(clients[version], in)
	}

	if err := Request(t.Context(), s.config.StatusPort, "POST", "drain", io.Discard); err != nil {
		t.Fatal(err)
	}
	if got := s.get(s.config.ReadyPort, "/healthz/ready"); !strings.HasPrefix(got, "503") {
		t.Errorf("draining, readiness says %s", got)
	}
	if _, last := ask(clients["HTTP/1"], in); !last {
		t.Error("who calls the pod may keep the connection")
	}
	ask(clients["HTTP/2"], in) // its answer brings a GOAWAY
	eventually(t, time.Second, "GOAWAY to who calls the pod", func() bool { fresh, _ := ask(clients["HTTP/2"], in); return fresh })
	calls := func() {
		t.Helper()
		for version, client := range clients {
			for range 3 {
				if fresh, last := ask(client, out); fresh || last {
					t.Errorf("%s of the application: new connection %v, ended %v", version, fresh, last)
				}
			}
		}
		if got := s.get(out, "/"); !strings.HasSuffix(got, "OUTBOUND") {
			t.Errorf("a new connection of the application: %s", got)
		}
	}
	calls()
	eventually(t, 4*s.config.Drain, "the drained listener is closed", func() bool { return strings.Contains(s.get(in, "/"), "refused") })
	calls()
	http.DefaultClient.CloseIdleConnections() // or the agent waits for them
	cancel()
	if err := <-s.ended; err != nil {
		t.Error(err)
	}
}

func newStand(t *testing.T, delta bool) *stand {
	t.Helper()
	dir := t.TempDir()
	s := &stand{T: t, authority: newAuthority(t), ended: make(chan error, 1)}
	s.xds = s.newServer()
	s.start("127.0.0.1:0")
	_, port, _ := net.SplitHostPort(s.address)
	c, err := Read(pod(map[string]string{"INSTANCE_IP": "127.0.0.1", "ISTIO_DELTA_XDS": strconv.FormatBool(delta), "CA_ADDR": "", "PROXY_CONFIG": `{"discoveryAddress":"localhost:` + port + `","terminationDrainDuration":"8s"}`}))
	if err != nil {
		t.Fatal(err)
	}
	c.Binary, c.Dir, c.Token, c.Root = meshtest.Envoy(t), dir, filepath.Join(dir, "token"), filepath.Join(dir, "root")
	c.StatusPort, c.AdminPort, c.ReadyPort, c.StatsPort = freePort(t), freePort(t), freePort(t), freePort(t)
	c.Addresses = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	c.CertLife, c.Concurrency = 6*time.Second, 1
	write(t, c.Token, "t")
	write(t, c.Root, s.authority.Roots())
	s.config = c

	own, err := identity.Obtain(t.Context(), local{s.authority}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	svid, err := x509svid.Parse(own.Chain, own.Key)
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := x509bundle.Parse(svid.ID.TrustDomain(), own.Roots)
	if err != nil {
		t.Fatal(err)
	}
	s.client = &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: tlsconfig.MTLSClientConfig(svid, bundle, tlsconfig.AuthorizeID(svid.ID)),
	}}
	return s
}

// local signs without a network.
type local struct{ authority *identity.Authority }

func (l local) CreateCertificate(_ context.Context, in *securityv1.IstioCertificateRequest, _ ...grpc.CallOption) (*securityv1.IstioCertificateResponse, error) {
	return sign(l.authority, in)
}

func (s *stand) newServer() *xds.Server {
	return xds.NewServer(xds.Options{
		Types: []xds.TypeRule{{URL: clusterType, Wildcard: true, Order: 1}, {URL: listenerType, Wildcard: true, Order: 2}},
		Admit: func(context.Context) (xds.Admission, error) {
			return xds.Admission{Enter: func(h xds.Hello) (*xds.Session, error) {
				return &xds.Session{ID: h.Node.ID(), Groups: func() ([]xds.Group, xds.Group) { return []xds.Group{"all"}, "" }, OnNack: func(_, _, detail string, _ []string) {
					s.mu.Lock()
					defer s.mu.Unlock()
					s.nacks = append(s.nacks, detail)
				}}, nil
			}}, nil
		},
	})
}

func (s *stand) start(address string) {
	s.Helper()
	addr, server := plane(s.T, s.authority, address, func(g *grpc.Server) {
		s.xds.Register(g)
		securityv1.RegisterIstioCertificateServiceServer(g, &issuer{authority: s.authority, token: "t"})
	})
	s.address, s.server = addr.String(), server
}

func (s *stand) publish(rev uint64, typeURL, name string, m proto.Message) {
	s.Helper()
	s.xds.Publish(rev, []xds.Change{{Group: "all", Type: typeURL, Set: []xds.Resource{seal(s.T, typeURL, name, m)}}})
}

// get returns the status and body of a page on the pod's loopback, or the error.
func (s *stand) get(port int, path string) string {
	resp, err := http.Get("http://127.0.0.1:" + strconv.Itoa(port) + path)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	return resp.Status + "\n" + string(b)
}

// hello returns Envoy's certificate and its answer over mutual TLS.
func (s *stand) hello(port int) (*x509.Certificate, string) {
	s.Helper()
	resp, err := s.client.Get("https://127.0.0.1:" + strconv.Itoa(port) + "/")
	if err != nil {
		s.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.Fatal(err)
	}
	return resp.TLS.PeerCertificates[0], string(b)
}
