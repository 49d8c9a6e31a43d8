package envoy

import (
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	originaldstv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/resolve"
)

// InboundListener renders the listener to which connections to the workload are redirected, but for the chains of its ports.
func InboundListener(s resolve.InboundSpec, p resolve.ProxySpec) *listenerv3.Listener {
	l := &listenerv3.Listener{
		Name: "virtualInbound", TrafficDirection: corev3.TrafficDirection_INBOUND, AccessLog: unmatchedLog(p.AccessLog),
		ListenerFilters:                  inspectors(s),
		ListenerFiltersTimeout:           span(p.DetectionTimeout),
		ContinueOnListenerFiltersTimeout: true,
		FilterChains: []*listenerv3.FilterChain{{
			Name:             "virtualInbound-blackhole",
			FilterChainMatch: &listenerv3.FilterChainMatch{DestinationPort: number(inboundPort)},
			Filters:          tcpProxy(blackHoleCluster, p.AccessLog),
		}},
	}
	bindAll(l, inboundPort, s.IPv6)
	return l
}

// side is one filter chain of a port: who it is for, and what it does with them.
type side struct {
	transport string
	alpn      []string
	mutual    bool // TLS of the mesh ends here
	http      bool
}

var (
	offersHTTP = []string{"istio-http/1.0", "istio-http/1.1", "istio-h2"}
	offersTCP  = []string{meshPeer, meshTCP}
	offersMesh = append(append([]string{}, offersTCP...), offersHTTP...)
)

// sides lists the filter chains of a port, by what it carries and what it accepts. TLS that is not the mesh's is the
// application's own, and goes through as it is where plain text may.
func sides(p resolve.InboundPort) []side {
	const tls, raw = "tls", "raw_buffer"
	var out []side
	switch {
	case p.Protocol.IsHTTP():
		switch p.Mode {
		case mesh.PeerStrict:
			out = []side{{tls, nil, true, true}}
		case mesh.PeerDisable:
			out = []side{{raw, nil, false, true}}
		default:
			out = []side{{tls, offersMesh, true, true}, {raw, nil, false, true}}
		}
	case p.Protocol == mesh.TCP:
		switch p.Mode {
		case mesh.PeerStrict:
			out = []side{{tls, nil, true, false}}
		case mesh.PeerDisable:
			out = []side{{raw, nil, false, false}}
		default:
			out = []side{{tls, offersMesh, true, false}, {tls, nil, false, false}, {raw, nil, false, false}}
		}
	default:
		switch p.Mode {
		case mesh.PeerStrict:
			out = []side{{tls, offersHTTP, true, true}, {tls, nil, true, false}}
		case mesh.PeerDisable:
			out = []side{{raw, plainHTTP, false, true}, {raw, nil, false, false}}
		default:
			out = []side{
				{tls, offersHTTP, true, true},
				{raw, plainHTTP, false, true},
				{tls, offersTCP, true, false},
				{raw, nil, false, false},
				{tls, nil, false, false},
			}
		}
	}
	return out
}

// InboundChains renders the filter chains of one port.
func InboundChains(port resolve.InboundPort, p resolve.ProxySpec) []*listenerv3.FilterChain {
	cluster := inboundPassthrough
	if port.Service != 0 {
		cluster = inboundCluster(port.Port)
	}
	var out []*listenerv3.FilterChain
	for _, s := range sides(port) {
		c := &listenerv3.FilterChain{
			Name:             inboundName(port.Port, s.http),
			FilterChainMatch: &listenerv3.FilterChainMatch{TransportProtocol: s.transport, ApplicationProtocols: s.alpn},
		}
		if port.Port != 0 {
			c.FilterChainMatch.DestinationPort = number(port.Port)
		}
		if s.mutual {
			c.TransportSocket = serverSocket()
		}
		if s.http {
			c.Filters = []*listenerv3.Filter{http(inboundManager(cluster, port, p))}
		} else {
			c.Filters = tcpProxy(cluster, p.AccessLog)
		}
		out = append(out, c)
	}
	return out
}

func inboundName(port uint32, http bool) string {
	switch {
	case port != 0:
		return fmt.Sprintf("0.0.0.0_%d", port)
	case http:
		return "virtualInbound-catchall-http"
	default:
		return "virtualInbound"
	}
}

func inboundManager(cluster string, port resolve.InboundPort, p resolve.ProxySpec) *hcmv3.HttpConnectionManager {
	m := manager(fmt.Sprintf("inbound_0.0.0.0_%d", port.Port), p.AccessLog)
	m.ServerName = "istio-envoy"
	m.ServerHeaderTransformation = hcmv3.HttpConnectionManager_OVERWRITE
	m.ForwardClientCertDetails = hcmv3.HttpConnectionManager_APPEND_FORWARD
	m.SetCurrentClientCertDetails = &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{Subject: truth(), Dns: true, Uri: true}
	m.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: inboundRoute(cluster, port.Service)}
	return m
}

// inspectors returns the listener filters: where the connection was going, and what its first bytes say where that
// matters. An inspector holds a connection until the client has spoken, so ports that need none are kept out of it.
func inspectors(s resolve.InboundSpec) []*listenerv3.ListenerFilter {
	out := []*listenerv3.ListenerFilter{listenerFilter("envoy.filters.listener.original_dst", &originaldstv3.OriginalDst{}, nil)}
	if off, needed := disabledOn(s, func(p resolve.InboundPort) bool { return p.Mode != mesh.PeerDisable }); needed {
		out = append(out, listenerFilter("envoy.filters.listener.tls_inspector", &tlsinspectorv3.TlsInspector{}, off))
	}
	off, _ := disabledOn(s, func(p resolve.InboundPort) bool { return p.Protocol == mesh.Auto })
	return append(out, httpInspector(off))
}

// disabledOn returns the predicate that keeps connections out of a filter which the given ports need, and whether any does.
// The filter's wish for port 0 is that for all ports that the spec does not name.
func disabledOn(s resolve.InboundSpec, needs func(resolve.InboundPort) bool) (off *listenerv3.ListenerFilterChainMatchPredicate, needed bool) {
	rest := needs(s.Ports[0])
	named := []uint32{}
	if rest {
		named = append(named, inboundPort)
	}
	for _, p := range s.Ports[1:] {
		if needs(p) != rest {
			named = append(named, p.Port)
		}
	}
	if rest {
		return anyPort(named), true
	}
	if len(named) == 0 {
		return nil, false
	}
	return &listenerv3.ListenerFilterChainMatchPredicate{Rule: &listenerv3.ListenerFilterChainMatchPredicate_NotMatch{NotMatch: anyPort(named)}}, true
}

func anyPort(ports []uint32) *listenerv3.ListenerFilterChainMatchPredicate {
	var rules []*listenerv3.ListenerFilterChainMatchPredicate
	for _, p := range ports {
		rules = append(rules, &listenerv3.ListenerFilterChainMatchPredicate{
			Rule: &listenerv3.ListenerFilterChainMatchPredicate_DestinationPortRange{DestinationPortRange: &typev3.Int32Range{Start: int32(p), End: int32(p) + 1}},
		})
	}
	if len(rules) == 1 {
		return rules[0]
	}
	return &listenerv3.ListenerFilterChainMatchPredicate{Rule: &listenerv3.ListenerFilterChainMatchPredicate_OrMatch{
		OrMatch: &listenerv3.ListenerFilterChainMatchPredicate_MatchSet{Rules: rules},
	}}
}
