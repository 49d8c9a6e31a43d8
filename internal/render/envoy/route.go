package envoy

import (
	"fmt"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previousv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/heddle-mesh/heddle/internal/resolve"
)

// Routes renders the route configuration of a port, but for its virtual hosts.
func Routes(name string) *routev3.RouteConfiguration {
	return &routev3.RouteConfiguration{
		Name:                           name,
		ValidateClusters:               wrapperspb.Bool(false), // clusters come and go by another type
		MaxDirectResponseBodySizeBytes: number(1 << 20),
		IgnorePortInHostMatching:       true,
	}
}

// Sniffed renders the route configuration of a port of unknown protocol.
func Sniffed(s resolve.SniffedSpec) *routev3.RouteConfiguration {
	r := Routes(s.Name)
	r.VirtualHosts = []*routev3.VirtualHost{Host(s.Host)}
	return r
}

// Host renders the virtual host of a service.
func Host(s resolve.HostSpec) *routev3.VirtualHost {
	route := routeTo(s.Cluster)
	route.Decorator = &routev3.Decorator{Operation: s.Name + "/*"}
	action := route.GetRoute()
	action.RetryPolicy = &routev3.RetryPolicy{
		RetryOn:    "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
		NumRetries: number(2),
		RetryHostPredicate: []*routev3.RetryPolicy_RetryHostPredicate{{
			Name:       "envoy.retry_host_predicates.previous_hosts",
			ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: pack(&previousv3.PreviousHostsPredicate{})},
		}},
		HostSelectionRetryMaxAttempts: 5,
	}
	if s.Outside {
		route.TypedPerFilterConfig = map[string]*anypb.Any{alpnFilter: pack(&routev3.FilterConfig{Disabled: true})}
	}
	return &routev3.VirtualHost{Name: s.Name, Domains: s.Domains, Routes: []*routev3.Route{route}, IncludeRequestAttemptCount: true}
}

// CatchAll renders the virtual host of requests for hosts that the mesh does not know. Their routes neither retry nor
// decorate: a failure reaches the client as it is.
func CatchAll(p resolve.ProxySpec) *routev3.VirtualHost {
	h := &routev3.VirtualHost{Name: "allow_any", Domains: []string{"*"}, IncludeRequestAttemptCount: true}
	route := routeTo(passthroughCluster)
	route.Name = h.Name
	if p.RegistryOnly {
		h.Name = "block_all"
		route = &routev3.Route{Name: h.Name, Match: anything(), Action: &routev3.Route_DirectResponse{
			DirectResponse: &routev3.DirectResponseAction{Status: 502},
		}}
	}
	h.Routes = []*routev3.Route{route}
	return h
}

func inboundRoute(cluster string, servicePort uint32) *routev3.RouteConfiguration {
	r := Routes(cluster)
	route := routeTo(cluster)
	route.GetRoute().RetryPolicy = &routev3.RetryPolicy{RetryOn: "reset-before-request", NumRetries: number(2)}
	r.VirtualHosts = []*routev3.VirtualHost{{
		Name: fmt.Sprintf("inbound|http|%d", servicePort), Domains: []string{"*"}, Routes: []*routev3.Route{route},
	}}
	r.IgnorePortInHostMatching, r.MaxDirectResponseBodySizeBytes = false, nil
	return r
}

func anything() *routev3.RouteMatch {
	return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}
}

// routeTo sends everything to a cluster and leaves time limits to the ends; a gRPC client's own deadline is not enforced.
func routeTo(cluster string) *routev3.Route {
	return &routev3.Route{Name: "default", Match: anything(), Action: &routev3.Route_Route{Route: &routev3.RouteAction{
		ClusterSpecifier:  &routev3.RouteAction_Cluster{Cluster: cluster},
		Timeout:           span(0),
		MaxStreamDuration: &routev3.RouteAction_MaxStreamDuration{MaxStreamDuration: span(0), GrpcTimeoutHeaderMax: span(0)},
	}}}
}
