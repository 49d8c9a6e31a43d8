package meshtest

import (
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// recorder takes the place of a test that is expected to fail.
type recorder struct {
	testing.TB
	failed bool
}

func (r *recorder) Errorf(string, ...any) { r.failed = true }

// Validate loads every kind of message, and notices a fault in each.
func TestValidate(t *testing.T) {
	ads := `{"ads": {}, "resource_api_version": "V3"}`
	good := map[proto.Message]string{
		&clusterv3.Cluster{}:                `{"name": "c", "type": "EDS", "eds_cluster_config": {"eds_config": ` + ads + `}}`,
		&endpointv3.ClusterLoadAssignment{}: `{"cluster_name": "c", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": "10.0.0.1", "port_value": 80}}}}]}]}`,
		&routev3.RouteConfiguration{}:       `{"name": "80", "validate_clusters": true, "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "elsewhere"}}]}]}`,
		&listenerv3.Listener{}: `{"name": "l", "bind_to_port": false, "address": {"socket_address": {"address": "0.0.0.0", "port_value": 80}}, "filter_chains": [{"filters": [{"name": "hcm",
			"typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
			"stat_prefix": "s", "rds": {"route_config_name": "80", "config_source": ` + ads + `},
			"http_filters": [{"name": "r", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}}]}]}`,
		&tlsv3.Secret{}: `{"name": "s", "validation_context": {"match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"prefix": "spiffe://td/"}}],
			"trusted_ca": {"filename": "/etc/ssl/certs/ca-certificates.crt"}}}`,
	}
	var all []proto.Message
	for m, text := range good {
		if err := protojson.Unmarshal([]byte(text), m); err != nil {
			t.Fatal(err)
		}
		all = append(all, m)
	}
	Validate(t, all...)

	for _, bad := range []proto.Message{
		&clusterv3.Cluster{Name: "c", ConnectTimeout: durationpb.New(-time.Second)},
		&endpointv3.ClusterLoadAssignment{},
		&routev3.RouteConfiguration{Name: "r", VirtualHosts: []*routev3.VirtualHost{{Name: "v"}}},
		&listenerv3.Listener{Name: "l"},
		&tlsv3.Secret{Name: "s", Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{{}},
		}}},
	} {
		r := &recorder{TB: t}
		if Validate(r, bad); !r.failed {
			t.Errorf("Envoy accepts %s {%v}", bad.ProtoReflect().Descriptor().Name(), bad)
		}
	}
}
