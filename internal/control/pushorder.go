package control

import "github.com/heddle-mesh/heddle/internal/xds"

// Type URLs of what the pipeline makes.
const (
	clusterType    = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	assignmentType = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	listenerType   = "type.googleapis.com/envoy.config.listener.v3.Listener"
	routeType      = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
)

// pushOrder are the types that proxies may subscribe to, in the order in which a push sends them. An assignment follows its
// cluster whenever the cluster is sent: Envoy warms a changed cluster until it gets one, and does not ask.
var pushOrder = []xds.TypeRule{
	{URL: clusterType, Wildcard: true, Order: 1},
	{URL: assignmentType, Order: 2, ResendAfter: clusterType},
	{URL: listenerType, Wildcard: true, Order: 3, Composed: true},
	{URL: routeType, Order: 4, Composed: true},
	{URL: "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret", Order: 5},
	{URL: "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig", Order: 6, NeverRemove: true},
	{URL: "type.googleapis.com/istio.networking.nds.v1.NameTable", Wildcard: true, Order: 7},
	{URL: "type.googleapis.com/istio.mesh.v1alpha1.ProxyConfig", Wildcard: true, Order: 8},
}
