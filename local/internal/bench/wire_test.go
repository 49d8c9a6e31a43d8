package bench

import (
	"slices"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"
)

func marshal(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func packed(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func edsCluster(name, service string) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{
			ServiceName: service,
			EdsConfig:   &corev3.ConfigSource{ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}},
		},
	}
}

func TestAssignmentOf(t *testing.T) {
	static := edsCluster("c", "")
	static.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
	for want, c := range map[string]*clusterv3.Cluster{"c": edsCluster("c", ""), "s": edsCluster("c", "s"), "": static} {
		if got := assignmentOf(marshal(t, c)); got != want {
			t.Errorf("of %v: %q, want %q", c, got, want)
		}
	}
}

// httpListener asks for routes in a filter chain and in the default one, and has another filter whose fields have the
// connection manager's numbers.
func httpListener(t *testing.T, chain, fallback string) *listenerv3.Listener {
	t.Helper()
	filter := func(route string) []*listenerv3.Filter {
		manager := &hcmv3.HttpConnectionManager{StatPrefix: "x", RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{RouteConfigName: route}}}
		return []*listenerv3.Filter{{Name: "http", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: packed(t, manager)}}}
	}
	other := &tcpv3.TcpProxy{AccessLog: nil, MetadataMatch: &corev3.Metadata{}, ClusterSpecifier: &tcpv3.TcpProxy_Cluster{Cluster: "c"}}
	tcp := &listenerv3.Filter{Name: "tcp", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: packed(t, other)}}
	return &listenerv3.Listener{
		Name:               "l",
		FilterChains:       []*listenerv3.FilterChain{{Filters: filter(chain)}, {Filters: []*listenerv3.Filter{tcp}}, {Filters: filter(chain)}},
		DefaultFilterChain: &listenerv3.FilterChain{Filters: filter(fallback)},
	}
}

func TestRoutesOf(t *testing.T) {
	if got := routesOf(marshal(t, httpListener(t, "80", "8080"))); !slices.Equal(got, []string{"80", "8080"}) {
		t.Errorf("%q", got)
	}
}

func TestRequest(t *testing.T) {
	want := &discoveryv3.DeltaDiscoveryRequest{
		Node: &corev3.Node{Id: "n"}, TypeUrl: typeRoute, ResourceNamesSubscribe: []string{"a", "b"}, ResponseNonce: "1",
	}
	got := new(discoveryv3.DeltaDiscoveryRequest)
	if err := proto.Unmarshal(request(marshal(t, want.GetNode()), typeRoute, []string{"a", "b"}, "1"), got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
		t.Error(d)
	}
}

func TestParseResponse(t *testing.T) {
	c := edsCluster("c", "")
	b := marshal(t, &discoveryv3.DeltaDiscoveryResponse{
		SystemVersionInfo: "v", TypeUrl: typeCluster, Nonce: "7", RemovedResources: []string{"x"},
		Resources: []*discoveryv3.Resource{{Name: "c", Version: "1", Resource: packed(t, c)}, {Name: "d"}},
	})
	r, err := parseResponse(b)
	if err != nil || r.typeURL != typeCluster || r.nonce != "7" || len(r.resources) != 2 || r.resources[1].name != "d" {
		t.Fatalf("%+v, %v", r, err)
	}
	if got := assignmentOf(r.resources[0].body); r.resources[0].name != "c" || got != "c" {
		t.Errorf("%q has the assignment %q", r.resources[0].name, got)
	}
	if _, err := parseResponse(b[:len(b)-1]); err == nil {
		t.Error("half a message was read")
	}
}

// Every mark is found wherever it stands, and no address of an endpoint or client is taken for one.
func TestMarks(t *testing.T) {
	for i := range maxMarks {
		var got []int
		marksIn([]byte("1"+markAddress(i)+"5"+markAddress(0)), func(n int) { got = append(got, n) })
		if !slices.Equal(got, []int{i, 0}) {
			t.Fatalf("mark %d is found as %v", i, got)
		}
	}
	for _, text := range []string{"", markPrefix, "198.19.128.100", "198.18.127.100", "198.18.128.10", "198.18.1.2:198.18.30.100", "198.18.228.100", "198.18.128.200", "198.18.12x.100"} {
		marksIn([]byte(text), func(n int) { t.Errorf("%q has mark %d", text, n) })
	}
}
