package control

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"flag"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/meshtest"
	"github.com/heddle-mesh/heddle/internal/resolve"
	"github.com/heddle-mesh/heddle/internal/xds"
)

var update = flag.Bool("update", false, "rewrite what the golden files want")

// held is what the groups hold after some rounds, as a server keeps it.
type held map[xds.Group]map[string]map[string]xds.Resource // by type URL and name

func (h held) apply(changes []xds.Change) {
	for _, c := range changes {
		if h[c.Group] == nil {
			h[c.Group] = map[string]map[string]xds.Resource{}
		}
		if h[c.Group][c.Type] == nil {
			h[c.Group][c.Type] = map[string]xds.Resource{}
		}
		for _, r := range c.Set {
			h[c.Group][c.Type][r.Name] = r
		}
		for _, name := range c.Remove {
			delete(h[c.Group][c.Type], name)
		}
	}
}

// noStore keeps no root: that of a test dies with it.
type noStore struct{}

func (noStore) Load(context.Context) (map[string][]byte, error) { return nil, nil }
func (noStore) Create(context.Context, map[string][]byte) error { return nil }

// testRoot is the root of all worlds.
var testRoot = sync.OnceValue(func() string {
	a, err := identity.Open(context.Background(), nil, noStore{}, mesh.DefaultTrustDomain, time.Now())
	if err != nil {
		panic(err)
	}
	return a.Roots()
})

// world is a mesh fed by hand.
type world struct {
	*Pipeline
	graph   *graph.Graph
	held    held
	cluster mesh.ClusterID // of the objects that are set, and of who connects
}

// in returns the same world, as another of its clusters is fed.
func (w *world) in(c mesh.ClusterID) *world {
	other := *w
	other.cluster = c
	return &other
}

func newWorld(id mesh.ID) *world {
	g := graph.New(graph.Options{Strict: true, Workers: 2})
	w := &world{graph: g, held: held{}, cluster: "c1", Pipeline: NewPipeline(g, Options{Mesh: id, Namespace: "istio-system", Revision: "default", Cluster: "c1"})}
	w.Roots.Set(id, testRoot())
	g.OnPublish(func(graph.Rev) {
		w.held.apply(w.Changes())
		w.Moved()
	})
	return w
}

// arrival is a client that connects, as an object of a world; removed, it leaves.
type arrival struct {
	metav1.ObjectMeta
	addresses []string
	node      string
}

// set stages an object, or its removal.
func (w *world) set(o metav1.Object, remove bool) {
	switch o := o.(type) {
	case *heddlev1alpha1.Membership:
		stage(w.Memberships, w.cluster, o, remove)
		if k := (mesh.ObjectKey{Cluster: w.cluster, Name: o.Spec.Namespace}); remove || !joins(o.Spec.Phase) {
			w.Trusted.Delete(k)
		} else {
			w.Trusted.Set(k, struct{}{})
		}
	case *corev1.Node:
		stage(w.Nodes, w.cluster, o, remove)
	case *corev1.Service:
		stage(w.Sources.Services, w.cluster, o, remove)
	case *discoveryv1.EndpointSlice:
		stage(w.EndpointSlices, w.cluster, o, remove)
	case *corev1.Pod:
		stage(w.Pods, w.cluster, o, remove)
	case *securityv1.PeerAuthentication:
		stage(w.PeerAuthentications, w.cluster, o, remove)
	case *networkingv1.DestinationRule:
		stage(w.DestinationRules, w.cluster, o, remove)
	case *arrival:
		k := mesh.WorkloadKey{Cluster: w.cluster, Kind: mesh.KindPod, Namespace: o.Namespace, Name: o.Name}
		if remove {
			w.presence.source.Delete(k)
		} else {
			w.presence.source.Set(k, resolve.Client{Workload: k, Labels: o.Labels, Addresses: o.addresses, Node: nodeNamed(w.cluster, o.node)})
		}
	}
}

func nodeNamed(c mesh.ClusterID, name string) mesh.NodeKey {
	if name == "" {
		return mesh.NodeKey{}
	}
	return mesh.NodeKey{Cluster: c, Name: name}
}

func stage[P metav1.Object](s *graph.Source[mesh.ObjectKey, P], c mesh.ClusterID, o P, remove bool) {
	k := mesh.ObjectKey{Cluster: c, Namespace: o.GetNamespace(), Name: o.GetName()}
	if remove {
		s.Delete(k)
	} else {
		s.Set(k, o)
	}
}

// connect has a pod's proxy count as connected.
func (w *world) connect(namespace, pod string, addresses ...string) mesh.WorkloadKey {
	k := mesh.WorkloadKey{Cluster: w.cluster, Kind: mesh.KindPod, Namespace: namespace, Name: pod}
	w.presence.source.Set(k, resolve.Client{Workload: k, Addresses: addresses})
	return k
}

// holds returns by type what a connected proxy holds.
func (w *world) holds(k mesh.WorkloadKey) map[string]map[string]xds.Resource {
	out := map[string]map[string]xds.Resource{clusterType: {}, assignmentType: {}, listenerType: {}, routeType: {}, secretType: {}}
	groups, _ := w.Groups(k)
	for _, g := range groups {
		for typ, resources := range w.held[g] {
			for name, r := range resources {
				if out[typ][name] = r; r.Hides() {
					delete(out[typ], name)
				}
			}
		}
	}
	return out
}

// parse reads the objects and the MeshConfig of YAML documents.
func parse(t *testing.T, docs []byte) (objects []metav1.Object, config *meshv1alpha1.MeshConfig) {
	t.Helper()
	for _, doc := range bytes.Split(docs, []byte("---\n")) {
		if len(bytes.TrimSpace(doc)) == 0 {
			continue
		}
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal(doc, &kind); err != nil {
			t.Fatal(err)
		}
		if kind.Kind == "MeshConfig" {
			config = &meshv1alpha1.MeshConfig{}
			json, err := yaml.YAMLToJSON(doc)
			if err == nil {
				err = protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(json, config)
			}
			if err != nil {
				t.Fatal(err)
			}
			continue
		}
		o, ok := map[string]metav1.Object{
			"Membership": &heddlev1alpha1.Membership{}, "Node": &corev1.Node{}, "Service": &corev1.Service{},
			"EndpointSlice": &discoveryv1.EndpointSlice{}, "Pod": &corev1.Pod{},
			"PeerAuthentication": &securityv1.PeerAuthentication{}, "DestinationRule": &networkingv1.DestinationRule{},
		}[kind.Kind]
		if !ok {
			t.Fatalf("kind %q is not read", kind.Kind)
		}
		if err := yaml.Unmarshal(doc, o); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		objects = append(objects, o)
	}
	return objects, config
}

// TestTranslate holds what a client gets of a world's objects. A file's sections are objects.yaml, client.yaml and what is
// wanted, each named after a view and, where it is of one resource, that resource.
func TestTranslate(t *testing.T) {
	files, err := filepath.Glob("testdata/translate/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a, w, resources := load(t, file)
			meshtest.Validate(t, messages(t, resources)...)
			for i, f := range a.Files {
				what, ok := strings.CutPrefix(f.Name, "want/")
				if !ok {
					continue
				}
				view, name, _ := strings.Cut(what, " ")
				got := []byte(views[view](t, w, resources, name))
				if *update {
					a.Files[i].Data = got
				} else if !bytes.Equal(got, f.Data) {
					t.Errorf("%s: got\n%s\nwant\n%s", f.Name, got, f.Data)
				}
			}
			if *update {
				if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// messages opens everything that a client holds. Files of a client's own certificate are looked for where they are.
func messages(t *testing.T, held map[string]map[string]xds.Resource) []proto.Message {
	t.Helper()
	var out []proto.Message
	for _, typ := range []string{clusterType, assignmentType, listenerType, routeType, secretType} {
		for _, name := range sortedNames(held[typ]) {
			m, err := held[typ][name].Any().UnmarshalNew()
			if err != nil {
				t.Fatal(err)
			}
			if c, ok := m.(*clusterv3.Cluster); ok {
				withFiles(t, c)
			}
			out = append(out, m)
		}
	}
	return out
}

// withFiles gives a cluster that names files of the proxy files that are there: Envoy reads them when it loads the cluster.
func withFiles(t *testing.T, c *clusterv3.Cluster) {
	t.Helper()
	u := &tlsv3.UpstreamTlsContext{}
	if c.GetTransportSocket() == nil || c.GetTransportSocket().GetTypedConfig().UnmarshalTo(u) != nil || u.GetCommonTlsContext().GetValidationContext() == nil {
		return
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	inline := func(kind string, der []byte) *corev3.DataSource {
		return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})}}
	}
	for _, own := range u.GetCommonTlsContext().GetTlsCertificates() {
		own.CertificateChain, own.PrivateKey = inline("CERTIFICATE", cert), inline("PRIVATE KEY", private)
	}
	u.GetCommonTlsContext().GetValidationContext().TrustedCa = inline("CERTIFICATE", cert)
	if err := c.GetTransportSocket().GetTypedConfig().MarshalFrom(u); err != nil {
		t.Fatal(err)
	}
}

func load(t *testing.T, file string) (*txtar.Archive, *world, map[string]map[string]xds.Resource) {
	t.Helper()
	a, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld("a")
	var client struct {
		Namespace, Pod, Node string
		Addresses            []string
	}
	for _, f := range a.Files {
		switch f.Name {
		case "objects.yaml":
			objects, config := parse(t, f.Data)
			for _, o := range objects {
				w.set(o, false)
			}
			if config != nil {
				w.MeshConfig.Set("a", config)
			}
		case "client.yaml":
			if err := yaml.UnmarshalStrict(f.Data, &client); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.graph.Step()
	w.set(&arrival{metav1.ObjectMeta{Namespace: client.Namespace, Name: client.Pod}, client.Addresses, client.Node}, false)
	w.graph.Step()
	return a, w, w.holds(mesh.WorkloadKey{Cluster: "c1", Kind: mesh.KindPod, Namespace: client.Namespace, Name: client.Pod})
}

// views are the ways to print what a client holds.
var views = map[string]func(*testing.T, *world, map[string]map[string]xds.Resource, string) string{
	"names":    names,
	"cluster":  message(clusterType),
	"listener": message(listenerType),
	"route":    message(routeType),
	"tls":      tlsView,
	"secured":  securedView,
	"hosts":    hostsView,
	"trust":    trustView,
	"chains":   chainsView,
	"chain": func(t *testing.T, _ *world, held map[string]map[string]xds.Resource, name string) string {
		name, number, _ := strings.Cut(name, " ")
		i, err := strconv.Atoi(number)
		if err != nil {
			t.Fatal(err)
		}
		return asYAML(t, open(t, held[listenerType][name], &listenerv3.Listener{}).GetFilterChains()[i])
	},
	"endpoints": func(t *testing.T, w *world, held map[string]map[string]xds.Resource, name string) string {
		return endpointsView(t, held[assignmentType][name])
	},
	"findings": func(_ *testing.T, w *world, _ map[string]map[string]xds.Resource, _ string) string {
		var b strings.Builder
		for _, f := range w.Findings() {
			fmt.Fprintf(&b, "%s: %s: %s\n", f.About, f.Reason, f.Message)
		}
		return b.String()
	},
}

// names prints all that the client holds, with what each was made from.
func names(_ *testing.T, _ *world, held map[string]map[string]xds.Resource, _ string) string {
	var b strings.Builder
	for _, typ := range []string{clusterType, assignmentType, listenerType, routeType, secretType} {
		for _, name := range sortedNames(held[typ]) {
			fmt.Fprintf(&b, "%s %s  (%s)\n", short(typ), name, held[typ][name].Origin)
		}
	}
	return b.String()
}

func sortedNames(m map[string]xds.Resource) []string {
	var out []string
	for name := range m {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

func open[M proto.Message](t *testing.T, r xds.Resource, m M) M {
	t.Helper()
	if r.Name == "" {
		t.Fatal("the client does not hold it")
	}
	if err := r.Any().UnmarshalTo(m); err != nil {
		t.Fatal(err)
	}
	return m
}

func message(typ string) func(*testing.T, *world, map[string]map[string]xds.Resource, string) string {
	return func(t *testing.T, _ *world, held map[string]map[string]xds.Resource, name string) string {
		t.Helper()
		r := held[typ][name]
		if r.Name == "" {
			return "the client does not hold it\n"
		}
		m, err := r.Any().UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		return asYAML(t, m)
	}
}

func asYAML(t *testing.T, m proto.Message) string {
	t.Helper()
	json, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	out, err := yaml.JSONToYAML(json)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// tlsView prints how a cluster's connections are secured.
func tlsView(t *testing.T, _ *world, held map[string]map[string]xds.Resource, name string) string {
	t.Helper()
	c := open(t, held[clusterType][name], &clusterv3.Cluster{})
	secured := &clusterv3.Cluster{TransportSocket: c.GetTransportSocket(), TransportSocketMatches: c.GetTransportSocketMatches()}
	return asYAML(t, secured)
}

// securedView prints the same in a line.
func securedView(t *testing.T, _ *world, held map[string]map[string]xds.Resource, name string) string {
	t.Helper()
	c := open(t, held[clusterType][name], &clusterv3.Cluster{})
	socket, out := c.GetTransportSocket(), ""
	if m := c.GetTransportSocketMatches(); len(m) > 0 {
		socket, out = m[0].GetTransportSocket(), "where the endpoint can: "
	}
	if socket == nil {
		return "plain text\n"
	}
	u := &tlsv3.UpstreamTlsContext{}
	if err := socket.GetTypedConfig().UnmarshalTo(u); err != nil {
		t.Fatal(err)
	}
	v := u.GetCommonTlsContext().GetValidationContext()
	out += "TLS"
	if combined := u.GetCommonTlsContext().GetCombinedValidationContext(); combined != nil {
		out, v = strings.TrimSuffix(out, "TLS")+"mutual TLS of the mesh", combined.GetDefaultValidationContext()
	}
	out += fmt.Sprintf(" to %q offering %v, names", u.GetSni(), u.GetCommonTlsContext().GetAlpnProtocols())
	for _, n := range v.GetMatchTypedSubjectAltNames() {
		out += " " + n.GetMatcher().GetExact()
	}
	return out + "\n"
}

// trustView prints whom the client lets in, a line for each.
func trustView(t *testing.T, _ *world, held map[string]map[string]xds.Resource, name string) string {
	t.Helper()
	v := open(t, held[secretType][name], &tlsv3.Secret{}).GetValidationContext()
	out := "under another root\n"
	if string(v.GetTrustedCa().GetInlineBytes()) == testRoot() {
		out = "under the mesh's root\n"
	}
	for _, n := range v.GetMatchTypedSubjectAltNames() {
		switch m := n.GetMatcher().GetMatchPattern().(type) {
		case *matcherv3.StringMatcher_Prefix:
			out += n.GetSanType().String() + " " + m.Prefix + "*\n"
		case *matcherv3.StringMatcher_Exact:
			out += n.GetSanType().String() + " " + m.Exact + "\n"
		default:
			t.Errorf("names are matched by %T", m)
		}
	}
	return out
}

// hostsView prints a line for each virtual host.
func hostsView(t *testing.T, _ *world, held map[string]map[string]xds.Resource, name string) string {
	t.Helper()
	r := held[routeType][name]
	if r.Name == "" {
		return "the client does not hold it\n"
	}
	var b strings.Builder
	for _, h := range open(t, r, &routev3.RouteConfiguration{}).GetVirtualHosts() {
		to := h.GetRoutes()[0].GetRoute().GetCluster()
		if d := h.GetRoutes()[0].GetDirectResponse(); d != nil {
			to = fmt.Sprint(d.GetStatus())
		}
		for f := range h.GetRoutes()[0].GetTypedPerFilterConfig() {
			to += " without " + f
		}
		fmt.Fprintf(&b, "%s: %s -> %s\n", h.GetName(), strings.Join(h.GetDomains(), " "), to)
	}
	return b.String()
}

// chainsView prints a line for each listener filter and each filter chain.
func chainsView(t *testing.T, _ *world, held map[string]map[string]xds.Resource, name string) string {
	t.Helper()
	r := held[listenerType][name]
	if r.Name == "" {
		return "the client does not hold it\n"
	}
	l := open(t, r, &listenerv3.Listener{})
	var b strings.Builder
	fmt.Fprintf(&b, "at %s:%d", l.GetAddress().GetSocketAddress().GetAddress(), l.GetAddress().GetSocketAddress().GetPortValue())
	for _, a := range l.GetAdditionalAddresses() {
		fmt.Fprintf(&b, " and %s", a.GetAddress().GetSocketAddress().GetAddress())
	}
	fmt.Fprintln(&b)
	for _, f := range l.GetListenerFilters() {
		fmt.Fprintf(&b, "%s", f.GetName()[strings.LastIndexByte(f.GetName(), '.')+1:])
		if off := f.GetFilterDisabled(); off != nil {
			fmt.Fprintf(&b, " but on %s", ports(off))
		}
		fmt.Fprintln(&b)
	}
	for _, c := range l.GetFilterChains() {
		fmt.Fprintln(&b, chain(t, c))
	}
	if c := l.GetDefaultFilterChain(); c != nil {
		fmt.Fprintln(&b, "else", chain(t, c))
	}
	return b.String()
}

func ports(p *listenerv3.ListenerFilterChainMatchPredicate) string {
	switch {
	case p.GetNotMatch() != nil:
		return "all except " + ports(p.GetNotMatch())
	case p.GetOrMatch() != nil:
		var out []string
		for _, r := range p.GetOrMatch().GetRules() {
			out = append(out, ports(r))
		}
		return strings.Join(out, ", ")
	}
	return fmt.Sprint(p.GetDestinationPortRange().GetStart())
}

func chain(t *testing.T, c *listenerv3.FilterChain) string {
	t.Helper()
	m := c.GetFilterChainMatch()
	out := c.GetName()
	if m.GetDestinationPort() != nil {
		out += fmt.Sprintf(" port %d", m.GetDestinationPort().GetValue())
	}
	if m.GetTransportProtocol() != "" {
		out += " " + m.GetTransportProtocol()
	}
	if len(m.GetApplicationProtocols()) > 0 {
		out += " " + strings.Join(m.GetApplicationProtocols(), ",")
	}
	out += " ->"
	if c.GetTransportSocket() != nil {
		out += " mutual"
	}
	typed, err := c.GetFilters()[0].GetTypedConfig().UnmarshalNew()
	if err != nil {
		t.Fatal(err)
	}
	switch f := typed.(type) {
	case *tcpv3.TcpProxy:
		out += " tcp " + f.GetCluster()
	case *hcmv3.HttpConnectionManager:
		out += " http"
		if f.GetServerName() != "" {
			out += " as " + f.GetServerName()
		}
		for _, h := range f.GetHttpFilters() {
			out += " " + h.GetName()[strings.LastIndexByte(h.GetName(), '.')+1:]
		}
		if rc := f.GetRouteConfig(); rc != nil {
			out += " " + rc.GetVirtualHosts()[0].GetRoutes()[0].GetRoute().GetCluster()
		} else {
			out += " routes " + f.GetRds().GetRouteConfigName()
		}
	}
	return strings.TrimSpace(out)
}

// endpointsView prints a line for each endpoint.
func endpointsView(t *testing.T, r xds.Resource) string {
	t.Helper()
	if r.Name == "" {
		return "the client does not hold it\n"
	}
	a := open(t, r, &endpointv3.ClusterLoadAssignment{})
	var b strings.Builder
	for _, l := range a.GetEndpoints() {
		fmt.Fprintf(&b, "%s/%s/%s weight %d\n", l.GetLocality().GetRegion(), l.GetLocality().GetZone(), l.GetLocality().GetSubZone(), l.GetLoadBalancingWeight().GetValue())
		for _, e := range l.GetLbEndpoints() {
			s := e.GetEndpoint().GetAddress().GetSocketAddress()
			fmt.Fprintf(&b, "  %s:%d", s.GetAddress(), s.GetPortValue())
			for _, k := range []string{"istio", "envoy.transport_socket_match"} {
				for name, v := range e.GetMetadata().GetFilterMetadata()[k].GetFields() {
					fmt.Fprintf(&b, " %s=%s", name, v.GetStringValue())
				}
			}
			fmt.Fprintln(&b)
		}
	}
	return b.String()
}
