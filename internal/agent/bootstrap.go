package agent

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"time"
)

type object = map[string]any

const (
	readiness, prometheus = "readiness", "prometheus" // Envoy's own listeners
	maxConnections        = 1<<31 - 1
)

// xdsSocket and adminSocket lie in the agent's directory: discovery and secrets towards Envoy, and Envoy's admin.
func (c Config) xdsSocket() string   { return filepath.Join(c.Dir, "XDS") }
func (c Config) adminSocket() string { return filepath.Join(c.Dir, "admin.sock") }

// Bootstrap returns the configuration that Envoy starts with, in JSON: unlike in YAML, no bare word turns into a boolean.
func Bootstrap(c Config) ([]byte, error) {
	api := "GRPC"
	if c.Delta {
		api = "DELTA_GRPC"
	}
	fromADS := object{"ads": object{}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
	b := object{
		"node":  object{"id": c.NodeID, "cluster": c.NodeCluster, "metadata": c.Metadata},
		"admin": object{"address": object{"pipe": object{"path": c.adminSocket(), "mode": 0o600}}},
		"dynamic_resources": object{
			"lds_config": fromADS, "cds_config": fromADS,
			"ads_config": object{
				"api_type": api, "transport_api_version": "V3", "set_node_on_first_message_only": true,
				// The agent ends Envoy's stream when the plane ends its own; Envoy's 30 s would outlast most outages.
				"grpc_services": []object{{"envoy_grpc": object{
					"cluster_name": "xds-grpc",
					"retry_policy": object{"retry_back_off": object{"base_interval": "0.2s", "max_interval": "2s"}},
				}}},
			},
		},
		"static_resources": object{
			"clusters": []object{
				grpcCluster("xds-grpc", c.xdsSocket()), grpcCluster("sds-grpc", c.xdsSocket()),
				cluster("agent", socket("127.0.0.1", c.StatusPort)),
				cluster("prometheus_stats", object{"pipe": object{"path": c.adminSocket()}}),
			},
			"listeners": []object{
				c.listener(prometheus, c.StatsPort, "/stats/prometheus", "prometheus_stats"),
				c.listener(readiness, c.ReadyPort, "/healthz/ready", "agent"),
			},
		},
		"stats_config": object{
			"use_all_default_tags": false, "stats_tags": statsTags(),
			"stats_matcher": object{"inclusion_list": object{"patterns": c.Stats.patterns()}},
		},
		"layered_runtime": object{"layers": []object{{"name": "static", "static_layer": object{
			"re2.max_program_size.error_level": 32768,
		}}}},
		"overload_manager": object{"resource_monitors": []object{{ // without it Envoy warns at each start
			"name": "envoy.resource_monitors.global_downstream_max_connections",
			"typed_config": object{
				"@type":                             "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
				"max_active_downstream_connections": maxConnections,
			},
		}}},
	}
	return json.MarshalIndent(b, "", " ")
}

func socket(address string, port int) object {
	return object{"socket_address": object{"address": address, "port_value": port}}
}

// cluster names its statistics with the ; that statsTags looks for.
func cluster(name string, address object) object {
	return object{
		"name": name, "alt_stat_name": name + ";", "type": "STATIC", "connect_timeout": "1s",
		"load_assignment": object{"cluster_name": name, "endpoints": []object{{"lb_endpoints": []object{{"endpoint": object{"address": address}}}}}},
	}
}

func grpcCluster(name, path string) object {
	c := cluster(name, object{"pipe": object{"path": path}})
	c["typed_extension_protocol_options"] = object{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": object{
		"@type":                "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
		"explicit_http_config": object{"http2_protocol_options": object{}},
	}}
	return c
}

// listener serves one path of a cluster on every address of the pod.
func (c Config) listener(name string, port int, path, to string) object {
	hcm := object{
		"@type":       "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
		"stat_prefix": name + ";",
		"http_filters": []object{{"name": "envoy.filters.http.router", "typed_config": object{
			"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
		}}},
		"route_config": object{"virtual_hosts": []object{{
			"name": name, "domains": []string{"*"},
			"routes": []object{{"match": object{"path": path}, "route": object{"cluster": to}}},
		}}},
	}
	l := object{
		"name": name, "stat_prefix": name + ";", "address": socket("0.0.0.0", port), "ignore_global_conn_limit": true,
		"filter_chains": []object{{"filters": []object{{"name": "envoy.filters.network.http_connection_manager", "typed_config": hcm}}}},
	}
	v4, v6 := c.families()
	if v6 {
		l["additional_addresses"] = []object{{"address": socket("::", port)}}
	}
	if v6 && !v4 {
		l["address"] = socket("::", port)
		delete(l, "additional_addresses")
	}
	return l
}

func (c Config) families() (v4, v6 bool) {
	for _, a := range c.Addresses {
		v4, v6 = v4 || a.Is4(), v6 || a.Is6()
	}
	return v4, v6
}

// statsTags takes names that end in ; out of statistics: by default Envoy would cut `outbound|80||a.b.svc` at its first dot.
func statsTags() []object {
	tag := func(name, regex string) object { return object{"tag_name": name, "regex": regex} }
	return []object{
		tag("cluster_name", `^cluster\.(([^;]+);\.)`),
		tag("http_conn_manager_prefix", `^http\.(([^;]+);\.)`),
		tag("tcp_prefix", `^tcp\.(([^;]+);\.)`),
		tag("listener_address", `^listener\.(([^;]+);\.)`),
		tag("response_code", `_rq(_(\d{3}))$`),
		tag("response_code_class", `_rq(_(\dxx))$`),
	}
}

// patterns is Istio's inclusion list, and what shows whether mutual TLS works: the list is what keeps 1,000 clusters from
// costing 30 MB of statistics.
func (s StatsMatcher) patterns() []object {
	var list []object
	for _, p := range append([]string{
		"cluster_manager", "listener_manager", "server", "control_plane", "cluster.xds-grpc", "wasm", "reporter=", "istio",
	}, s.Prefixes...) {
		list = append(list, object{"prefix": p})
	}
	for _, p := range append([]string{"no_filter_chain_match", ".downstream_cx_active"}, s.Suffixes...) {
		list = append(list, object{"suffix": p})
	}
	list = append(list, object{"contains": ".ssl."})
	for _, p := range s.Regexps {
		list = append(list, object{"safe_regex": object{"regex": p}})
	}
	return list
}

// Args returns Envoy's command line for the bootstrap in the file.
func Args(c Config, bootstrap string) []string {
	family := "v4"
	if c.Addresses[0].Is6() {
		family = "v6"
	}
	args := []string{
		"-c", bootstrap, "--concurrency", fmt.Sprint(c.Concurrency),
		"--disable-hot-restart", // needs /dev/shm, and dies with the thread that started it
		"--drain-time-s", fmt.Sprint(max(int(c.Drain/time.Second), 1)), "--drain-strategy", "immediate",
		"--local-address-ip-version", family, "--file-flush-interval-msec", "1000", "--skip-deprecated-logs",
		"-l", c.LogLevel, "--component-log-level", c.LogByPart,
	}
	if c.Override != "" {
		args = append(args, "--config-yaml", c.Override)
	}
	return args
}
