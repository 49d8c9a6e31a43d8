// Package meshtest runs real parts for tests: the pinned Envoy, pods as network namespaces, a certificate authority.
// It is imported by tests only.
package meshtest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"sigs.k8s.io/yaml"
)

// Wait bounds every wait for a condition of a running part.
const Wait = 30 * time.Second

// Envoy returns the path of the pinned Envoy: $HEDDLE_ENVOY, or what heddle-local has in its cache.
func Envoy(t testing.TB) string {
	t.Helper()
	path := os.Getenv("HEDDLE_ENVOY")
	if path == "" {
		var images struct {
			Envoy struct {
				SHA256 string `json:"sha256"`
			} `json:"envoy"`
		}
		table, err := os.ReadFile(filepath.Join(Root(t), "local/images.yaml"))
		if err == nil {
			err = yaml.Unmarshal(table, &images)
		}
		if err != nil || len(images.Envoy.SHA256) < 12 {
			t.Fatalf("find the pinned Envoy: %v", err)
		}
		path = filepath.Join("/var/cache/heddle-local", "envoy-"+images.Envoy.SHA256[:12], "envoy")
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("the pinned Envoy is not there (%v): run `cd local && go run ./cmd/image -envoy`, or set HEDDLE_ENVOY", err)
	}
	return path
}

// Root returns the directory of the main module, in or below which tests run.
func Root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	for err == nil && dir != "/" {
		if _, err := os.Stat(filepath.Join(dir, "local/images.yaml")); err == nil {
			return dir
		}
		dir = filepath.Dir(dir)
	}
	t.Fatalf("not inside a checkout: %v", err)
	return ""
}

// Validate fails t unless the pinned Envoy accepts the messages: listeners, clusters, assignments, route configurations and
// secrets, as they would come over xDS, in one static bootstrap. Names must be unique by type.
func Validate(t testing.TB, messages ...proto.Message) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "envoy.json")
	config, err := static(messages)
	if err == nil {
		err = os.WriteFile(file, config, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), Envoy(t), "--mode", "validate", "--disable-hot-restart", "-l", "error", "-c", file).CombinedOutput()
	if err != nil {
		t.Errorf("Envoy rejects the configuration: %v\n%s", err, out)
	}
}

// static returns a bootstrap that holds the messages. What refers to ADS or to the agent's secrets finds a cluster of that name.
func static(messages []proto.Message) ([]byte, error) {
	b := &bootstrapv3.Bootstrap{
		Node: &corev3.Node{Id: "validate", Cluster: "validate"},
		DynamicResources: &bootstrapv3.Bootstrap_DynamicResources{AdsConfig: &corev3.ApiConfigSource{
			ApiType: corev3.ApiConfigSource_DELTA_GRPC, TransportApiVersion: corev3.ApiVersion_V3,
			GrpcServices: []*corev3.GrpcService{{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
				EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: "xds-grpc"},
			}}},
		}},
		StaticResources: &bootstrapv3.Bootstrap_StaticResources{Clusters: []*clusterv3.Cluster{{Name: "xds-grpc"}, {Name: "sds-grpc"}}},
	}
	s := b.StaticResources
	for _, m := range messages {
		switch m := m.(type) {
		case *listenerv3.Listener:
			s.Listeners = append(s.Listeners, m)
		case *clusterv3.Cluster:
			s.Clusters = append(s.Clusters, m)
		case *endpointv3.ClusterLoadAssignment:
			s.Clusters = append(s.Clusters, &clusterv3.Cluster{Name: "assignment of " + m.GetClusterName(), LoadAssignment: m})
		case *tlsv3.Secret:
			s.Secrets = append(s.Secrets, m)
		case *routev3.RouteConfiguration:
			l, err := routeListener(m)
			if err != nil {
				return nil, err
			}
			s.Listeners = append(s.Listeners, l)
		default:
			return nil, fmt.Errorf("a %s cannot be loaded statically", m.ProtoReflect().Descriptor().FullName())
		}
	}
	return protojson.Marshal(b)
}

// routeListener returns a listener that serves the routes.
func routeListener(r *routev3.RouteConfiguration) (*listenerv3.Listener, error) {
	r = proto.Clone(r).(*routev3.RouteConfiguration)
	r.ValidateClusters = wrapperspb.Bool(false) // as over RDS; in a listener the default is to look the clusters up
	router, err := anypb.New(&routerv3.Router{})
	if err != nil {
		return nil, err
	}
	hcm, err := anypb.New(&hcmv3.HttpConnectionManager{
		StatPrefix:     "routes",
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: r},
		HttpFilters:    []*hcmv3.HttpFilter{{Name: "router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: router}}},
	})
	if err != nil {
		return nil, err
	}
	return &listenerv3.Listener{
		Name:    "routes of " + r.GetName(),
		Address: &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: "@" + r.GetName()}}},
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
			Name: "hcm", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: hcm},
		}}}},
	}, nil
}

// Proxy is the administration interface of a running Envoy.
type Proxy struct {
	client http.Client
	log    string // file of Envoy's output
	exited <-chan struct{}
}

// StartEnvoy runs Envoy with the bootstrap, in the test's own network namespace, until t ends. admin is the path of the
// socket that the bootstrap gives the administration interface.
func StartEnvoy(t testing.TB, bootstrap []byte, admin string) *Proxy {
	t.Helper()
	file := filepath.Join(t.TempDir(), "envoy.json")
	if err := os.WriteFile(file, bootstrap, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(Envoy(t), "-c", file, "--disable-hot-restart", "--concurrency", "1", "-l", "warning")
	return proxyOf(t, cmd, admin)
}

// proxyOf starts cmd, which runs an Envoy.
func proxyOf(t testing.TB, cmd *exec.Cmd, admin string) *Proxy {
	t.Helper()
	p := &Proxy{client: http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", admin)
		},
	}}}
	p.log, p.exited = start(t, cmd)
	return p
}

// start runs cmd until t ends and shows its output if t failed.
func start(t testing.TB, cmd *exec.Cmd) (log string, exited <-chan struct{}) {
	t.Helper()
	log = filepath.Join(t.TempDir(), "log")
	out, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait() // killed below, or told by who waits for a condition
		close(done)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		select {
		case <-done:
		case <-time.After(5 * time.Second):
			_ = cmd.Process.Kill()
			<-done
		}
		if t.Failed() {
			text, _ := os.ReadFile(log)
			t.Logf("output of %v:\n%s", cmd.Args, text)
		}
	})
	return log, done
}

// Admin returns the answer to a GET of the administration interface.
func (p *Proxy) Admin(path string) (string, error) {
	r, err := p.client.Get("http://admin" + path)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", path, r.Status)
	}
	return string(body), err
}

// Stats returns Envoy's counters and gauges whose names match the regular expression.
func (p *Proxy) Stats(t testing.TB, filter string) map[string]int {
	t.Helper()
	body, err := p.Admin("/stats?format=json&filter=" + filter)
	var answer struct {
		Stats []struct {
			Name  string          `json:"name"`
			Value json.RawMessage `json:"value"`
		} `json:"stats"`
	}
	if err == nil {
		err = json.Unmarshal([]byte(body), &answer)
	}
	if err != nil {
		t.Fatalf("read Envoy's statistics: %v", err)
	}
	stats := map[string]int{}
	for _, s := range answer.Stats {
		if n, err := strconv.Atoi(string(bytes.TrimSpace(s.Value))); err == nil {
			stats[s.Name] = n
		}
	}
	return stats
}

// AwaitReady waits until Envoy accepts connections.
func (p *Proxy) AwaitReady(t testing.TB) {
	t.Helper()
	Await(t, "Envoy to be ready", func() (bool, string) {
		select {
		case <-p.exited:
			t.Fatal("Envoy ended")
		default:
		}
		body, err := p.Admin("/ready")
		if err == nil && strings.HasPrefix(body, "LIVE") {
			return true, ""
		}
		missing, _ := p.Admin("/init_dump") // what it waits for
		return false, fmt.Sprint(body, err, "\n", missing)
	})
}

// Await waits until done returns true, at most Wait, and else fails t with what done said last.
func Await(t testing.TB, what string, done func() (ok bool, state string)) {
	t.Helper()
	end := time.Now().Add(Wait)
	for {
		ok, state := done()
		if ok {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("waited %v for %s: %s", Wait, what, state)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
