package envoy

import (
	"fmt"
	"math"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/resolve"
)

const (
	connectTimeout = 10 * time.Second
	// A cluster that is sent again warms until its assignment is, too. The server sends it; should it ever not,
	// Envoy goes on with the one that it has.
	assignmentTimeout = 5 * time.Second
)

// Cluster renders a service's cluster.
func Cluster(s resolve.ClusterSpec) *clusterv3.Cluster {
	c := base(s.Name)
	if s.Headless {
		toOriginal(c)
	} else {
		c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}
		c.LbPolicy = clusterv3.Cluster_LEAST_REQUEST
		c.EdsClusterConfig = &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads(assignmentTimeout), ServiceName: s.Name}
	}
	c.Metadata = clusterMetadata(s)
	c.TypedExtensionProtocolOptions = protocolOptions(s)
	switch s.TLS.Security {
	case resolve.AutoMutual:
		c.TransportSocketMatches = []*clusterv3.Cluster_TransportSocketMatch{
			{Name: "tlsMode-istio", Match: fields(map[string]*structpb.Value{"tlsMode": text("istio")}), TransportSocket: meshSocket(s)},
			{Name: "tlsMode-disabled", Match: &structpb.Struct{}, TransportSocket: rawSocket()},
		}
	case resolve.Mutual:
		c.TransportSocket = meshSocket(s)
	case resolve.OutsideTrust:
		c.TransportSocket = outsideSocket(s.TLS)
	}
	return c
}

// base is a cluster without bounds of its own: who wants some says so in a rule.
func base(name string) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name: name, AltStatName: name + ";", ConnectTimeout: span(connectTimeout),
		CircuitBreakers: &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
			MaxConnections: number(math.MaxUint32), MaxPendingRequests: number(math.MaxUint32),
			MaxRequests: number(math.MaxUint32), MaxRetries: number(math.MaxUint32), TrackRemaining: true,
		}}},
	}
}

// toOriginal sends connections to where they were going.
func toOriginal(c *clusterv3.Cluster) {
	c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST}
	c.LbPolicy = clusterv3.Cluster_CLUSTER_PROVIDED
}

func clusterMetadata(s resolve.ClusterSpec) *corev3.Metadata {
	istio := map[string]*structpb.Value{
		"services": structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{
			structpb.NewStructValue(fields(map[string]*structpb.Value{
				"host": text(s.Service.Host), "name": text(s.Label), "namespace": text(s.Service.Namespace),
			})),
		}}),
		"default_original_port": structpb.NewNumberValue(float64(s.Port)),
	}
	if s.Subset != "" {
		istio["subset"] = text(s.Subset)
	}
	if s.Rule != (mesh.Ref{}) {
		istio["config"] = text(fmt.Sprintf("/apis/networking.istio.io/v1/namespaces/%s/destination-rule/%s", s.Rule.Namespace, s.Rule.Name))
	}
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"istio": fields(istio)}}
}

func protocolOptions(s resolve.ClusterSpec) map[string]*anypb.Any {
	o := &httpv3.HttpProtocolOptions{}
	outside := s.TLS.Security == resolve.OutsideTrust && s.TLS.SNI == "" && s.Protocol != mesh.TCP
	switch {
	case s.Protocol == mesh.HTTP2:
		o = http2()
	case s.Protocol == mesh.Auto:
		o = asDownstream()
	case outside:
		o.UpstreamProtocolOptions = &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: &corev3.Http1ProtocolOptions{}},
		}}
	default:
		return nil
	}
	if outside { // the host that was asked for is the server's name
		o.UpstreamHttpProtocolOptions = &corev3.UpstreamHttpProtocolOptions{AutoSni: true, AutoSanValidation: len(s.TLS.Names) == 0 && !s.TLS.Files.Unverified}
	}
	return httpOptions(o)
}

func http2() *httpv3.HttpProtocolOptions {
	return &httpv3.HttpProtocolOptions{UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
		ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}},
		},
	}}
}

// asDownstream speaks to the server the version of HTTP that the client speaks.
func asDownstream() *httpv3.HttpProtocolOptions {
	return &httpv3.HttpProtocolOptions{UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_UseDownstreamProtocolConfig{
		UseDownstreamProtocolConfig: &httpv3.HttpProtocolOptions_UseDownstreamHttpConfig{
			HttpProtocolOptions: &corev3.Http1ProtocolOptions{}, Http2ProtocolOptions: &corev3.Http2ProtocolOptions{},
		},
	}}
}

func httpOptions(o *httpv3.HttpProtocolOptions) map[string]*anypb.Any {
	return map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": pack(o)}
}

// Passthrough renders the cluster for destinations that the mesh does not know.
func Passthrough() *clusterv3.Cluster {
	c := base(passthroughCluster)
	toOriginal(c)
	c.TypedExtensionProtocolOptions = httpOptions(asDownstream())
	return c
}

// BlackHole renders the cluster that refuses.
func BlackHole() *clusterv3.Cluster {
	c := base(blackHoleCluster)
	c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
	return c
}

// idleToApplication is how long a connection to the application is kept for another request. Servers close theirs after
// two to five seconds (gunicorn, Node.js, uvicorn, Go with a ReadTimeout), and a request that crosses that is lost: it may
// have been read, so nobody sends it again. A new connection within the pod costs next to nothing.
const idleToApplication = 500 * time.Millisecond

// Inbound renders the cluster of a workload's port, or for port 0 of all that have none. The source address tells the
// redirection that the connection has been through the proxy.
func Inbound(port uint32, ipv6 bool) *clusterv3.Cluster {
	name := inboundPassthrough
	if port != 0 {
		name = inboundCluster(port)
	}
	c := base(name)
	toOriginal(c)
	// A pool that all clients share opens a connection for each request that waits, and serves it by whichever comes free
	// first: the other is left without a request, which some servers allow for a second only. No timer closes those in time
	// on a busy machine. One client's connection has one request to wait for, and uses what it opens.
	c.ConnectionPoolPerDownstreamConnection = true
	c.UpstreamBindConfig = &corev3.BindConfig{SourceAddress: address("127.0.0.6", 0).GetSocketAddress()}
	if ipv6 {
		c.UpstreamBindConfig.ExtraSourceAddresses = []*corev3.ExtraSourceAddress{{Address: address("::6", 0).GetSocketAddress()}}
	}
	o := asDownstream()
	o.CommonHttpProtocolOptions = &corev3.HttpProtocolOptions{IdleTimeout: span(idleToApplication)}
	c.TypedExtensionProtocolOptions = httpOptions(o)
	return c
}

// Assignment renders the endpoints of a cluster.
func Assignment(s resolve.AssignmentSpec) *endpointv3.ClusterLoadAssignment {
	out := &endpointv3.ClusterLoadAssignment{ClusterName: s.Name}
	for _, l := range s.Localities {
		group := &endpointv3.LocalityLbEndpoints{
			LoadBalancingWeight: number(uint32(len(l.Endpoints))),
			Locality:            &corev3.Locality{Region: l.Locality.Region, Zone: l.Locality.Zone, SubZone: l.Locality.SubZone},
		}
		for _, e := range l.Endpoints {
			group.LbEndpoints = append(group.LbEndpoints, endpoint(e))
		}
		out.Endpoints = append(out.Endpoints, group)
	}
	return out
}

func endpoint(e resolve.EndpointSpec) *endpointv3.LbEndpoint {
	out := &endpointv3.LbEndpoint{
		HostIdentifier:      &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address(e.Address, e.Port)}},
		LoadBalancingWeight: number(1),
	}
	metadata := map[string]*structpb.Struct{}
	if e.Workload != "" {
		metadata["istio"] = fields(map[string]*structpb.Value{"workload": text(e.Workload)})
	}
	if e.Mutual {
		metadata["envoy.transport_socket_match"] = fields(map[string]*structpb.Value{"tlsMode": text("istio")})
	}
	if len(metadata) > 0 {
		out.Metadata = &corev3.Metadata{FilterMetadata: metadata}
	}
	return out
}
