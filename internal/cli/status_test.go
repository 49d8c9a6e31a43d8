package cli

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statusv3 "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	corev1 "k8s.io/api/core/v1"
)

func syncz(t *testing.T, id string, now time.Time, s ...statusv3.ConfigStatus) *statusv3.ClientConfig {
	t.Helper()
	meta, err := structpb.NewStruct(map[string]any{"CLUSTER_ID": "Kubernetes", "NAMESPACE": id[strings.LastIndex(id, ".")+1:], "ISTIO_VERSION": "1.30.3"})
	if err != nil {
		t.Fatal(err)
	}
	c := &statusv3.ClientConfig{Node: &corev3.Node{Id: id, Metadata: meta}}
	for i, url := range []string{"envoy.config.cluster.v3.Cluster", "envoy.config.listener.v3.Listener", "envoy.config.endpoint.v3.ClusterLoadAssignment", "envoy.config.route.v3.RouteConfiguration", "envoy.config.core.v3.TypedExtensionConfig", "istio.networking.nds.v1.NameTable"} {
		if i < len(s) {
			c.GenericXdsConfigs = append(c.GenericXdsConfigs, &statusv3.ClientConfig_GenericXdsConfig{
				TypeUrl: "type.googleapis.com/" + url, ConfigStatus: s[i], LastUpdated: timestamppb.New(now.Add(-239 * time.Second)),
			})
		}
	}
	return c
}

// MCP-23, D-06, D-07: the documents' columns in their order; all meshes with a column of their own first; the short table.
func TestPrintProxies(t *testing.T) {
	now := time.Now()
	const synced, stale, notSent, failed = statusv3.ConfigStatus_SYNCED, statusv3.ConfigStatus_STALE, statusv3.ConfigStatus_NOT_SENT, statusv3.ConfigStatus_ERROR
	id := `{"Component":"istiod","ID":"istiod-mesh-2-abc"}`
	all := []proxy{
		proxyOf(syncz(t, "sleep-1.app-ns-2", now, synced, stale, failed, notSent, notSent), id, "mesh-2", now),
		proxyOf(syncz(t, "httpbin-1.app-ns-3", now, synced, synced, synced, synced), id, "mesh-2", now),
		proxyOf(syncz(t, "sleep-9.app-ns-1", now, synced, synced, synced, synced, synced, synced), "{}", "mesh-1", now),
	}
	for _, c := range []struct {
		name      string
		proxies   []proxy
		verbosity int
		byMesh    bool
		want      string
	}{
		{name: "documents", proxies: all[:2], verbosity: 1, want: `
NAME                   CLUSTER        CDS                LDS                EDS                RDS                ECDS         ISTIOD                VERSION
httpbin-1.app-ns-3     Kubernetes     SYNCED (3m59s)     SYNCED (3m59s)     SYNCED (3m59s)     SYNCED (3m59s)     IGNORED      istiod-mesh-2-abc     1.30.3
sleep-1.app-ns-2       Kubernetes     SYNCED (3m59s)     STALE              ERROR              NOT SENT           NOT SENT     istiod-mesh-2-abc     1.30.3
`},
		{name: "all meshes", proxies: all, verbosity: 1, byMesh: true, want: `
MESH       NAME                   CLUSTER        CDS                LDS                EDS                RDS                ECDS               NDS                ISTIOD                VERSION
mesh-1     sleep-9.app-ns-1       Kubernetes     SYNCED (3m59s)     SYNCED (3m59s)     SYNCED (3m59s)     SYNCED (3m59s)     SYNCED (3m59s)     SYNCED (3m59s)     MISSING               1.30.3
mesh-2     httpbin-1.app-ns-3     Kubernetes     SYNCED (3m59s)     SYNCED (3m59s)     SYNCED (3m59s)     SYNCED (3m59s)     IGNORED            IGNORED            istiod-mesh-2-abc     1.30.3
mesh-2     sleep-1.app-ns-2       Kubernetes     SYNCED (3m59s)     STALE              ERROR              NOT SENT           NOT SENT           IGNORED            istiod-mesh-2-abc     1.30.3
`},
		{name: "short", proxies: all[1:], want: `
NAME                   CLUSTER        ISTIOD                VERSION     SUBSCRIBED TYPES
httpbin-1.app-ns-3     Kubernetes     istiod-mesh-2-abc     1.30.3      4 (CDS,LDS,EDS,RDS)
sleep-9.app-ns-1       Kubernetes     MISSING               1.30.3      6 (CDS,LDS,EDS,RDS,ECDS,NDS)
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			if err := printProxies(&out, append([]proxy(nil), c.proxies...), c.verbosity, c.byMesh); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(strings.TrimPrefix(c.want, "\n"), out.String()); d != "" {
				t.Errorf("-want +got\n%s", d)
			}
		})
	}
}

// A table without a line would say that no proxy is connected; nobody knows that.
func TestStatusOfSilentPlanes(t *testing.T) {
	plane := func(namespace string) *corev1.Pod {
		p := pod(namespace, "istiod", "", "app", "istiod")
		p.Status.Phase = corev1.PodRunning
		return &p
	}
	out, err := runVerb(t, cluster0(t, nil, plane("sys-1"), plane("sys-2")), nil, "ps")
	if err == nil || !strings.Contains(err.Error(), "sys-1") || !strings.Contains(err.Error(), "sys-2") || strings.Contains(out, "NAME") {
		t.Errorf("%v\n%s", err, out)
	}
}

// ads answers the first request, if token and node are what a control plane asks of istioctl.
type ads struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
}

func (ads) StreamAggregatedResources(s discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	md, _ := metadata.FromIncomingContext(s.Context())
	r, err := s.Recv()
	if err != nil {
		return err
	}
	if a := md.Get("authorization"); len(a) != 1 || a[0] != "Bearer t" || r.GetNode().GetId() != "sidecar~127.0.0.1~heddle.sys~sys.svc.cluster.local" || r.GetNode().GetMetadata().GetFields()["NAMESPACE"].GetStringValue() != "sys" {
		return status.Errorf(codes.Unauthenticated, "token %v, node %v", a, r.GetNode())
	}
	return s.Send(&discoveryv3.DiscoveryResponse{TypeUrl: r.GetTypeUrl()})
}

// The plane is believed by its certificate only: root and name.
func TestDiscover(t *testing.T) {
	pool, cert := authority(t, "istiod-r.sys.svc")
	foreign, _ := authority(t, "istiod-r.sys.svc")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(&cert)))
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(s, ads{})
	served := make(chan struct{})
	go func() { defer close(served); _ = s.Serve(l) }()
	defer func() { s.Stop(); <-served }()
	for _, c := range []struct {
		name, host, token string
		roots             *x509.CertPool
		err               string
	}{
		{name: "right", host: plane{namespace: "sys", revision: "r"}.host(), token: "t", roots: pool},
		{name: "another mesh's root", host: "istiod-r.sys.svc", token: "t", roots: foreign, err: "certificate signed by unknown authority"},
		{name: "another name", host: plane{namespace: "sys", revision: "default"}.host(), token: "t", roots: pool, err: "istiod.sys.svc"},
		{name: "refused", host: "istiod-r.sys.svc", token: "x", roots: pool, err: "Unauthenticated"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			answer, err := discover(ctx, l.Addr().String(), &tls.Config{RootCAs: c.roots, ServerName: c.host, MinVersion: tls.VersionTLS12}, c.token, "sys", syncType, nil)
			if c.err == "" && (err != nil || answer.GetTypeUrl() != syncType) {
				t.Errorf("%v %v", answer, err)
			}
			if c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("error %v, want %q", err, c.err)
			}
		})
	}
}

func authority(t *testing.T, name string) (*x509.CertPool, tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, DNSNames: []string{name}, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return pool, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// CTL-03: the three lines, and what stands in for no proxy.
func TestPrintVersions(t *testing.T) {
	plane := func(rev, v string) planeVersion { return planeVersion{"istiod", rev, "ns", release(v)} }
	for _, c := range []struct {
		v    versions
		want string
	}{
		{
			versions{Client: "1.30.3", Heddle: "0.1.0", ControlPlane: []planeVersion{plane("mesh-1", "1.30.3-0123abc-Clean"), plane("mesh-2", "v1.30.3")}},
			"client version: 1.30.3\ncontrol plane version: 1.30.3\ndata plane version: none\nheddle version: 0.1.0\n",
		},
		{
			versions{Client: "1.30.3", Heddle: "0.1.0", ControlPlane: []planeVersion{plane("a", "1.29.1-beta.0-0123abc-Modified"), plane("b", "1.30.3")}, DataPlane: map[string]int{"1.30.3": 2, "1.29.0": 1}},
			"client version: 1.30.3\ncontrol plane version: 1.29.1-beta.0 (a), 1.30.3 (b)\ndata plane version: 1.29.0 (1 proxy), 1.30.3 (2 proxies)\nheddle version: 0.1.0\n",
		},
	} {
		var out bytes.Buffer
		if err := printVersions(&out, c.v, true, ""); err != nil || out.String() != c.want {
			t.Errorf("%v: got\n%swant\n%s", err, &out, c.want)
		}
	}
}
