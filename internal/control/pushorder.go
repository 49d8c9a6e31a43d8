package control

import "github.com/heddle-mesh/heddle/internal/xds"

// Type URLs of what the pipeline makes.
const (
	clusterType    = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	assignmentType = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	listenerType   = "type.googleapis.com/envoy.config.listener.v3.Listener"
	routeType      = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	secretType     = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
)

// pushOrder are the types that proxies may subscribe to, in the order in which a push sends them. An assignment follows its
// cluster whenever the cluster is sent: Envoy warms a changed cluster until it gets one, and does not ask. A secret refers to
// nothing, so whom a proxy no longer trusts waits for no other answer of the proxy's.
var pushOrder = []xds.TypeRule{
	{URL: secretType, Order: 0},
	{URL: clusterType, Wildcard: true, Order: 1},
	{URL: assignmentType, Order: 2, ResendAfter: clusterType},
	{URL: listenerType, Wildcard: true, Order: 3, Composed: true},
	{URL: routeType, Order: 4, Composed: true},
	{URL: "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig", Order: 5, NeverRemove: true},
	{URL: "type.googleapis.com/istio.networking.nds.v1.NameTable", Wildcard: true, Order: 6},
	{URL: "type.googleapis.com/istio.mesh.v1alpha1.ProxyConfig", Wildcard: true, Order: 7},
}
