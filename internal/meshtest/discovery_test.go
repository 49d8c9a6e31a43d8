//go:build e2e

package meshtest

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/heddle-mesh/heddle/internal/agent"
	"github.com/heddle-mesh/heddle/internal/xds"
)

const (
	clusters    = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	assignments = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	listeners   = "type.googleapis.com/envoy.config.listener.v3.Listener"
	routes      = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"

	ads = `{"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}` // no net: what warms for ever is seen
)

// one is an Envoy that one of our servers feeds over a socket.
type one struct {
	*Proxy
	server *xds.Server
	rev    uint64
	port   int // of the listener
}

func startOne(t *testing.T, delta bool) *one {
	dir, err := os.MkdirTemp("", "heddle") // short: a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	o := &one{port: freePort(t), server: xds.NewServer(xds.Options{
		Types: []xds.TypeRule{
			{URL: clusters, Wildcard: true, Order: 1},
			{URL: assignments, Order: 2, ResendAfter: clusters},
			{URL: listeners, Wildcard: true, Order: 3},
			{URL: routes, Order: 4},
		},
		Admit: func(context.Context) (xds.Admission, error) {
			return xds.Admission{Enter: func(xds.Hello) (*xds.Session, error) {
				return &xds.Session{ID: "one", Groups: func() ([]xds.Group, xds.Group) { return []xds.Group{"all"}, "" }}, nil
			}}, nil
		},
	})}
	c := agent.Config{
		NodeID: "sidecar~127.0.0.1~one.test~test.svc.cluster.local", NodeCluster: "one", Delta: delta, Dir: dir,
		Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, StatusPort: freePort(t), StatsPort: freePort(t), ReadyPort: freePort(t),
	}
	listener, err := net.Listen("unix", filepath.Join(dir, "XDS"))
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(xds.ServerCodec())
	o.server.Register(g)
	served := make(chan error, 1)
	go func() { served <- g.Serve(listener) }()
	t.Cleanup(func() {
		g.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	bootstrap, err := agent.Bootstrap(c)
	if err != nil {
		t.Fatal(err)
	}
	o.Proxy = StartEnvoy(t, bootstrap, filepath.Join(dir, "admin.sock"))
	return o
}

func freePort(t *testing.T) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// publish sends resources, given in JSON by name, as one revision.
func (o *one) publish(t *testing.T, typeURL string, m proto.Message, named map[string]string) {
	t.Helper()
	ch := xds.Change{Group: "all", Type: typeURL}
	for name, text := range named {
		m := proto.Clone(m)
		if err := protojson.Unmarshal([]byte(text), m); err != nil {
			t.Fatal(err)
		}
		r, err := xds.Seal(typeURL, name, "Test "+name, m)
		if err != nil {
			t.Fatal(err)
		}
		ch.Set = append(ch.Set, r)
	}
	o.rev++
	o.server.Publish(o.rev, []xds.Change{ch})
}

// await waits until every type that Envoy has asked for is in the given state and returns what it said of typeURL.
func (o *one) await(t *testing.T, typeURL string, want xds.Sync) (status xds.TypeStatus) {
	t.Helper()
	Await(t, fmt.Sprintf("%s to be %d", typeURL, want), func() (bool, string) {
		for _, c := range o.server.Clients() {
			for _, s := range c.Types {
				if s.URL == typeURL && s.Sync == want {
					status = s
					return true, ""
				}
			}
		}
		return false, fmt.Sprintf("%+v", o.server.Clients())
	})
	return status
}

func (o *one) get(t *testing.T) string {
	t.Helper()
	r, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", o.port))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	return r.Status
}

func cluster(timeout string) string {
	return `{"name": "app", "type": "EDS", "connect_timeout": "` + timeout + `", "eds_cluster_config": {"eds_config": ` + ads + `}}`
}

func (o *one) listener(more string) string {
	return fmt.Sprintf(`{"name": "web", "address": {"socket_address": {"address": "127.0.0.1", "port_value": %d}}, "filter_chains": [{"filters": [%s {"name": "hcm",
		"typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
		"stat_prefix": "web", "rds": {"route_config_name": "web", "config_source": %s},
		"http_filters": [{"name": "r", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}}]}]}`, o.port, more, ads)
}

// A stock Envoy follows our server in both forms: it starts, warms a changed cluster at once, says in its own words what it
// rejects, and serves on meanwhile.
func TestEnvoyFollows(t *testing.T) {
	for name, delta := range map[string]bool{"delta": true, "state of the world": false} {
		t.Run(name, func(t *testing.T) {
			o := startOne(t, delta)
			app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") }))
			defer app.Close()
			host, port, _ := net.SplitHostPort(app.Listener.Addr().String())

			o.publish(t, assignments, &endpointv3.ClusterLoadAssignment{}, map[string]string{"app": `{"cluster_name": "app", "endpoints": [
				{"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": "` + host + `", "port_value": ` + port + `}}}}]}]}`})
			o.publish(t, clusters, &clusterv3.Cluster{}, map[string]string{"app": cluster("1s")})
			o.publish(t, routes, &routev3.RouteConfiguration{}, map[string]string{"web": `{"name": "web", "virtual_hosts": [
				{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "app"}}]}]}`})
			o.publish(t, listeners, &listenerv3.Listener{}, map[string]string{"web": o.listener("")})
			o.AwaitReady(t)
			if got := o.get(t); got != "200 OK" {
				t.Errorf("first request: %s", got)
			}

			// The changed cluster waits for its assignment, which Envoy does not ask for and which has not changed.
			updates := o.Stats(t, "cluster_manager.cds.update_success")["cluster_manager.cds.update_success"]
			began := time.Now()
			o.publish(t, clusters, &clusterv3.Cluster{}, map[string]string{"app": cluster("2s")})
			Await(t, "the changed cluster to be taken", func() (bool, string) {
				s := o.Stats(t, "cluster_manager")
				return s["cluster_manager.cds.update_success"] > updates && s["cluster_manager.warming_clusters"] == 0, fmt.Sprint(s)
			})
			o.await(t, clusters, xds.Synced)
			o.await(t, assignments, xds.Synced)
			t.Logf("the changed cluster was warm after %v", time.Since(began))
			if got := o.get(t); got != "200 OK" {
				t.Errorf("after the cluster's change: %s", got)
			}
			if bad := o.Stats(t, "update_rejected"); sum(bad) != 0 {
				t.Errorf("Envoy rejected: %v", bad)
			}

			o.publish(t, listeners, &listenerv3.Listener{}, map[string]string{"web": o.listener(`{"name": "istio.alpn", "typed_config": {"@type": "type.googleapis.com/google.protobuf.Empty"}},`)})
			status := o.await(t, listeners, xds.Rejected)
			if want := "Didn't find a registered implementation for 'istio.alpn'"; !strings.Contains(status.Error, want) {
				t.Errorf("the rejection reads %q, want Envoy's %q", status.Error, want)
			}
			if got := o.get(t); got != "200 OK" {
				t.Errorf("while a listener is rejected: %s", got)
			}
			o.publish(t, listeners, &listenerv3.Listener{}, map[string]string{"web": o.listener("")})
			o.await(t, listeners, xds.Synced)
		})
	}
}

func sum(stats map[string]int) (n int) {
	for _, v := range stats {
		n += v
	}
	return n
}
