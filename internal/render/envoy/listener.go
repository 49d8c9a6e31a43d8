package envoy

import (
	"cmp"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	statev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	setstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	httpinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	uuidv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/request_id/uuid/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/resolve"
)

const alpnFilter = "envoy.filters.http.set_filter_state"

// Listener renders an outbound listener, but for its filter chains. It is never bound: virtualOutbound hands over what was sent
// to its addresses.
func Listener(s resolve.ListenerSpec, p resolve.ProxySpec) *listenerv3.Listener {
	l := &listenerv3.Listener{
		Name:             s.Name,
		BindToPort:       wrapperspb.Bool(false),
		TrafficDirection: corev3.TrafficDirection_OUTBOUND,
		AccessLog:        unmatchedLog(p.AccessLog),
	}
	bind(l, s.Port, s.Addresses...)
	if !s.Inspected {
		return l
	}
	l.ListenerFilters = []*listenerv3.ListenerFilter{httpInspector(nil)}
	l.ListenerFiltersTimeout = span(p.DetectionTimeout)
	l.ContinueOnListenerFiltersTimeout = true
	if s.Else == "" {
		l.DefaultFilterChain = &listenerv3.FilterChain{Name: "PassthroughFilterChain", Filters: tcpProxy(unknown(p), p.AccessLog)}
	} else {
		l.DefaultFilterChain = &listenerv3.FilterChain{Filters: tcpProxy(s.Else, p.AccessLog)}
	}
	return l
}

// OutboundChain renders a filter chain of an outbound listener.
func OutboundChain(c resolve.Chain, p resolve.ProxySpec) *listenerv3.FilterChain {
	if c.Route == "" {
		return &listenerv3.FilterChain{Filters: tcpProxy(cmp.Or(c.Cluster, passthroughCluster), p.AccessLog)}
	}
	m := manager("outbound_"+c.Stat, p.AccessLog)
	m.RouteSpecifier = &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{RouteConfigName: c.Route, ConfigSource: ads(0)}}
	if c.Sniffed {
		m.HttpFilters = append([]*hcmv3.HttpFilter{meshHTTPFilter()}, m.HttpFilters...)
	}
	return &listenerv3.FilterChain{
		FilterChainMatch: &listenerv3.FilterChainMatch{TransportProtocol: "raw_buffer", ApplicationProtocols: plainHTTP},
		Filters:          []*listenerv3.Filter{http(m)},
	}
}

// plainHTTP is what the HTTP inspector says of a connection that carries requests.
var plainHTTP = []string{"http/1.1", "h2c"}

// VirtualOutbound renders the listener to which the workload's connections are redirected. Those that no other listener is
// for end here.
func VirtualOutbound(p resolve.ProxySpec, ipv6 bool) *listenerv3.Listener {
	l := &listenerv3.Listener{
		Name: "virtualOutbound", UseOriginalDst: truth(), TrafficDirection: corev3.TrafficDirection_OUTBOUND,
		AccessLog: unmatchedLog(p.AccessLog),
		FilterChains: []*listenerv3.FilterChain{
			{
				Name:             "virtualOutbound-blackhole",
				FilterChainMatch: &listenerv3.FilterChainMatch{DestinationPort: number(outboundPort)},
				Filters:          tcpProxy(blackHoleCluster, p.AccessLog),
			},
			{Name: "virtualOutbound-catchall-tcp", Filters: tcpProxy(unknown(p), p.AccessLog)},
		},
	}
	bindAll(l, outboundPort, ipv6)
	return l
}

// unknown returns the cluster of destinations that the mesh does not know.
func unknown(p resolve.ProxySpec) string {
	if p.RegistryOnly {
		return blackHoleCluster
	}
	return passthroughCluster
}

func bindAll(l *listenerv3.Listener, port uint32, ipv6 bool) {
	if ipv6 {
		bind(l, port, "0.0.0.0", "::")
	} else {
		bind(l, port, "0.0.0.0")
	}
}

func bind(l *listenerv3.Listener, port uint32, addresses ...string) {
	l.Address = address(addresses[0], port)
	for _, a := range addresses[1:] {
		l.AdditionalAddresses = append(l.AdditionalAddresses, &listenerv3.AdditionalAddress{Address: address(a, port)})
	}
}

func listenerFilter(name string, config proto.Message, disabled *listenerv3.ListenerFilterChainMatchPredicate) *listenerv3.ListenerFilter {
	return &listenerv3.ListenerFilter{
		Name: name, ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: pack(config)}, FilterDisabled: disabled,
	}
}

func httpInspector(disabled *listenerv3.ListenerFilterChainMatchPredicate) *listenerv3.ListenerFilter {
	return listenerFilter("envoy.filters.listener.http_inspector", &httpinspectorv3.HttpInspector{}, disabled)
}

func filter(name string, config proto.Message) *listenerv3.Filter {
	return &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(config)}}
}

func http(m *hcmv3.HttpConnectionManager) *listenerv3.Filter {
	return filter("envoy.filters.network.http_connection_manager", m)
}

func tcpProxy(cluster string, l mesh.AccessLog) []*listenerv3.Filter {
	return []*listenerv3.Filter{filter("envoy.filters.network.tcp_proxy", &tcpv3.TcpProxy{
		StatPrefix:       cluster + ";",
		ClusterSpecifier: &tcpv3.TcpProxy_Cluster{Cluster: cluster},
		AccessLog:        accessLog(l),
	})}
}

// manager returns a connection manager without routes. Outbound it has no server name of its own: a reply made here reads
// "server: envoy", as one passed through does.
func manager(stat string, l mesh.AccessLog) *hcmv3.HttpConnectionManager {
	return &hcmv3.HttpConnectionManager{
		StatPrefix:                   stat + ";",
		CodecType:                    hcmv3.HttpConnectionManager_AUTO,
		StreamIdleTimeout:            span(0), // bounds belong to routes
		UseRemoteAddress:             wrapperspb.Bool(false),
		NormalizePath:                truth(),
		PathWithEscapedSlashesAction: hcmv3.HttpConnectionManager_KEEP_UNCHANGED,
		UpgradeConfigs:               []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
		RequestIdExtension: &hcmv3.RequestIDExtension{TypedConfig: pack(&uuidv3.UuidRequestIdConfig{
			UseRequestIdForTraceSampling: truth(),
		})},
		AccessLog: accessLog(l),
		HttpFilters: []*hcmv3.HttpFilter{
			{Name: "envoy.filters.http.router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(&routerv3.Router{})}},
		},
	}
}

// meshHTTPFilter has the requests of a listener offer meshHTTP to the server, whatever their cluster offers.
func meshHTTPFilter() *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: alpnFilter, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(&setstatev3.Config{
		OnRequestHeaders: []*statev3.FilterStateValue{{
			Key: &statev3.FilterStateValue_ObjectKey{ObjectKey: "envoy.network.application_protocols"},
			Value: &statev3.FilterStateValue_FormatString{FormatString: &corev3.SubstitutionFormatString{
				Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
					Specifier: &corev3.DataSource_InlineString{InlineString: meshHTTP},
				}},
			}},
			SharedWithUpstream: statev3.FilterStateValue_ONCE,
		}},
	})}}
}
