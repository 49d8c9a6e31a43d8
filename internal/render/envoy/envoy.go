// Package envoy renders specs as the messages of a stock Envoy 1.40: one value in, one message out, nothing looked up.
// It uses no extension that this Envoy lacks, always typed configuration, and no deprecated field.
package envoy

import (
	"fmt"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filelogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	streamlogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

const (
	passthroughCluster = "PassthroughCluster"
	blackHoleCluster   = "BlackHoleCluster"
	inboundPassthrough = "InboundPassthroughCluster"

	outboundPort = 15001 // the redirected connections of the workload
	inboundPort  = 15006 // and those to it
)

// Checked returns a message that Envoy's own field constraints hold for, and panics for any other: for a message that breaks
// one, Envoy refuses everything that came with it, and a user's object must not do that to others.
func Checked[M proto.Message](m M) M {
	if v, ok := any(m).(interface{ Validate() error }); ok {
		if err := v.Validate(); err != nil {
			panic(err)
		}
	}
	return m
}

// pack wraps a typed configuration. Deterministic, as a resource's version is the hash of its bytes.
func pack(m proto.Message) *anypb.Any {
	a := new(anypb.Any)
	if err := anypb.MarshalFrom(a, Checked(m), proto.MarshalOptions{Deterministic: true}); err != nil {
		panic(err) // only invalid UTF-8 fails, which no API server lets in
	}
	return a
}

func truth() *wrapperspb.BoolValue                         { return wrapperspb.Bool(true) }
func number(n uint32) *wrapperspb.UInt32Value              { return wrapperspb.UInt32(n) }
func span(d time.Duration) *durationpb.Duration            { return durationpb.New(d) }
func text(s string) *structpb.Value                        { return structpb.NewStringValue(s) }
func fields(m map[string]*structpb.Value) *structpb.Struct { return &structpb.Struct{Fields: m} }

func address(ip string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: ip, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}

// ads is the stream that the resource itself came over. After timeout Envoy goes on with what it has; 0 is never.
func ads(timeout time.Duration) *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		ResourceApiVersion:    corev3.ApiVersion_V3,
		InitialFetchTimeout:   span(timeout),
	}
}

// textFormat is Istio's default, which users' log pipelines parse.
const textFormat = `[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% ` +
	`%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% %BYTES_SENT% ` +
	`%DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" ` +
	`"%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% ` +
	`%DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%` + "\n"

// jsonFormat holds the same under Istio's keys.
var jsonFormat = map[string]string{
	"authority": "%REQ(:AUTHORITY)%", "bytes_received": "%BYTES_RECEIVED%", "bytes_sent": "%BYTES_SENT%",
	"connection_termination_details": "%CONNECTION_TERMINATION_DETAILS%", "downstream_local_address": "%DOWNSTREAM_LOCAL_ADDRESS%",
	"downstream_remote_address": "%DOWNSTREAM_REMOTE_ADDRESS%", "duration": "%DURATION%", "method": "%REQ(:METHOD)%",
	"path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%", "protocol": "%PROTOCOL%", "request_id": "%REQ(X-REQUEST-ID)%",
	"requested_server_name": "%REQUESTED_SERVER_NAME%", "response_code": "%RESPONSE_CODE%",
	"response_code_details": "%RESPONSE_CODE_DETAILS%", "response_flags": "%RESPONSE_FLAGS%", "route_name": "%ROUTE_NAME%",
	"start_time": "%START_TIME%", "upstream_cluster": "%UPSTREAM_CLUSTER_RAW%", "upstream_host": "%UPSTREAM_HOST%",
	"upstream_local_address": "%UPSTREAM_LOCAL_ADDRESS%", "upstream_service_time": "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
	"upstream_transport_failure_reason": "%UPSTREAM_TRANSPORT_FAILURE_REASON%", "user_agent": "%REQ(USER-AGENT)%",
	"x_forwarded_for": "%REQ(X-FORWARDED-FOR)%",
}

// accessLog returns the log of requests and connections; nil if there is none.
func accessLog(l mesh.AccessLog) []*accesslogv3.AccessLog {
	if l.Path == "" {
		return nil
	}
	format := &corev3.SubstitutionFormatString{Format: &corev3.SubstitutionFormatString_TextFormatSource{
		TextFormatSource: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: textFormat}},
	}}
	if l.JSON {
		keys := map[string]*structpb.Value{}
		for k, v := range jsonFormat {
			keys[k] = text(v)
		}
		format = &corev3.SubstitutionFormatString{Format: &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: fields(keys)}}
	}
	out := &accesslogv3.AccessLog{}
	switch l.Path {
	// The proxy's user may not open the container's standard output by its path, only write to it.
	case "/dev/stdout":
		out.Name = "envoy.access_loggers.stdout"
		out.ConfigType = &accesslogv3.AccessLog_TypedConfig{TypedConfig: pack(&streamlogv3.StdoutAccessLog{
			AccessLogFormat: &streamlogv3.StdoutAccessLog_LogFormat{LogFormat: format},
		})}
	case "/dev/stderr":
		out.Name = "envoy.access_loggers.stderr"
		out.ConfigType = &accesslogv3.AccessLog_TypedConfig{TypedConfig: pack(&streamlogv3.StderrAccessLog{
			AccessLogFormat: &streamlogv3.StderrAccessLog_LogFormat{LogFormat: format},
		})}
	default:
		out.Name = "envoy.access_loggers.file"
		out.ConfigType = &accesslogv3.AccessLog_TypedConfig{TypedConfig: pack(&filelogv3.FileAccessLog{
			Path: l.Path, AccessLogFormat: &filelogv3.FileAccessLog_LogFormat{LogFormat: format},
		})}
	}
	return []*accesslogv3.AccessLog{out}
}

// unmatchedLog returns a listener's own log: of connections that no filter chain takes, which nothing else would tell of.
func unmatchedLog(l mesh.AccessLog) []*accesslogv3.AccessLog {
	logs := accessLog(l)
	for _, log := range logs {
		log.Filter = &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ResponseFlagFilter{
			ResponseFlagFilter: &accesslogv3.ResponseFlagFilter{Flags: []string{"NR"}},
		}}
	}
	return logs
}

func inboundCluster(port uint32) string { return fmt.Sprintf("inbound|%d||", port) }
