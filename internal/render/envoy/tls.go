package envoy

import (
	"cmp"
	"net/netip"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rawv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/resolve"
)

const (
	secretsCluster = "sds-grpc"       // the agent, in the proxy's bootstrap
	trustSecret    = "heddle/members" // from the control plane: whom listeners let in
	// systemRoots is where the proxy's image has the certificate authorities of the outside world.
	systemRoots = "/etc/ssl/certs/ca-certificates.crt"
)

// What a client offers tells the server's listener, before the handshake, for which filter chain a connection is. Names of
// real protocols never stand beside these: the server would agree on one, whatever the request speaks.
const (
	meshHTTP = "istio-http/1.1"
	meshTCP  = "istio"
	meshPeer = "istio-peer-exchange"
)

// offers returns what a cluster offers. A cluster of unknown protocol is used for requests and for bytes: it offers the
// latter, and its HTTP listener overrides that.
func offers(p mesh.Protocol) []string {
	switch p {
	case mesh.HTTP, mesh.HTTP2:
		return []string{meshHTTP}
	case mesh.TCP:
		return []string{meshTCP}
	default:
		return []string{meshPeer, meshTCP}
	}
}

// secret refers to what the agent serves: "default" is the workload's certificate, "ROOTCA" the roots that it came with.
func secret(name string) *tlsv3.SdsSecretConfig {
	return &tlsv3.SdsSecretConfig{Name: name, SdsConfig: &corev3.ConfigSource{
		ResourceApiVersion:  corev3.ApiVersion_V3,
		InitialFetchTimeout: span(0),
		ConfigSourceSpecifier: &corev3.ConfigSource_ApiConfigSource{ApiConfigSource: &corev3.ApiConfigSource{
			ApiType: corev3.ApiConfigSource_GRPC, TransportApiVersion: corev3.ApiVersion_V3, SetNodeOnFirstMessageOnly: true,
			GrpcServices: []*corev3.GrpcService{{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
				EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: secretsCluster},
			}}},
		}},
	}}
}

// meshContext is the part of a mesh connection's TLS that client and server have in common: all but whom they believe.
func meshContext(alpn []string) *tlsv3.CommonTlsContext {
	return &tlsv3.CommonTlsContext{
		AlpnProtocols: alpn,
		TlsParams: &tlsv3.TlsParameters{
			TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2, TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
		},
		TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{secret("default")},
	}
}

func meshSocket(s resolve.ClusterSpec) *corev3.TransportSocket {
	var names []*tlsv3.SubjectAltNameMatcher
	for _, n := range s.TLS.Names {
		names = append(names, exactName(n))
	}
	common := meshContext(offers(s.Protocol))
	common.ValidationContextType = &tlsv3.CommonTlsContext_CombinedValidationContext{
		CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
			DefaultValidationContext:         &tlsv3.CertificateValidationContext{MatchTypedSubjectAltNames: names},
			ValidationContextSdsSecretConfig: secret("ROOTCA"),
		},
	}
	return tlsSocket(&tlsv3.UpstreamTlsContext{Sni: s.TLS.SNI, CommonTlsContext: common})
}

func outsideSocket(t resolve.TLSSpec) *corev3.TransportSocket {
	common := &tlsv3.CommonTlsContext{}
	if t.Files.Mode == mesh.TLSMutual {
		common.TlsCertificates = []*tlsv3.TlsCertificate{{CertificateChain: file(t.Files.Certificate), PrivateKey: file(t.Files.PrivateKey)}}
	}
	if !t.Files.Unverified {
		v := &tlsv3.CertificateValidationContext{TrustedCa: file(cmp.Or(t.Files.CA, systemRoots))}
		for _, n := range t.Names {
			v.MatchTypedSubjectAltNames = append(v.MatchTypedSubjectAltNames, exactName(n))
		}
		common.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: v}
	}
	return tlsSocket(&tlsv3.UpstreamTlsContext{Sni: t.SNI, CommonTlsContext: common})
}

func file(path string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: path}}
}

// exactName matches one subject alternative name, of the type that it looks like.
func exactName(name string) *tlsv3.SubjectAltNameMatcher {
	kind := tlsv3.SubjectAltNameMatcher_DNS
	if strings.Contains(name, "://") {
		kind = tlsv3.SubjectAltNameMatcher_URI
	} else if _, err := netip.ParseAddr(name); err == nil {
		kind = tlsv3.SubjectAltNameMatcher_IP_ADDRESS
	}
	return &tlsv3.SubjectAltNameMatcher{
		SanType: kind, Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: name}},
	}
}

// ciphers of TLS 1.2; those of 1.3 are all fine.
var ciphers = []string{
	"ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256",
	"AES256-GCM-SHA384", "AES128-GCM-SHA256",
}

// serverSocket accepts peers of the mesh, as Trust has them. It waits for that secret for ever rather than let in anybody.
func serverSocket() *corev3.TransportSocket {
	common := meshContext([]string{"h2", "http/1.1"})
	common.TlsParams.CipherSuites = ciphers
	common.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig{
		ValidationContextSdsSecretConfig: &tlsv3.SdsSecretConfig{Name: trustSecret, SdsConfig: ads(0)},
	}
	return tlsSocket(&tlsv3.DownstreamTlsContext{RequireClientCertificate: truth(), CommonTlsContext: common})
}

// Trust renders whom listeners let in. Envoy takes no names for any name, so where nobody is to be let in that is a name which
// nobody has.
func Trust(s resolve.TrustSpec) *tlsv3.Secret {
	v := &tlsv3.CertificateValidationContext{
		// Bytes, as of ROOTCA: istioctl reads no other form.
		TrustedCa: &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: []byte(s.Roots)}},
	}
	for _, ns := range s.Namespaces {
		for _, d := range s.Domains {
			v.MatchTypedSubjectAltNames = append(v.MatchTypedSubjectAltNames, &tlsv3.SubjectAltNameMatcher{
				SanType: tlsv3.SubjectAltNameMatcher_URI,
				Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: mesh.IdentitiesOf(d, ns)}},
			})
		}
	}
	if len(v.MatchTypedSubjectAltNames) == 0 {
		v.MatchTypedSubjectAltNames = []*tlsv3.SubjectAltNameMatcher{exactName("spiffe://")}
	}
	return &tlsv3.Secret{Name: trustSecret, Type: &tlsv3.Secret_ValidationContext{ValidationContext: v}}
}

func tlsSocket(context proto.Message) *corev3.TransportSocket {
	return &corev3.TransportSocket{Name: "envoy.transport_sockets.tls", ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(context)}}
}

func rawSocket() *corev3.TransportSocket {
	return &corev3.TransportSocket{
		Name: "envoy.transport_sockets.raw_buffer", ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(&rawv3.RawBuffer{})},
	}
}
