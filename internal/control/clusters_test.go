package control

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	statusv3 "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/resolve"
	"github.com/heddle-mesh/heddle/internal/xds/xdstest"
)

// twoClusters are what each of two clusters has: one namespace, one service, and one pod behind it, of the same names and at
// the same pod address. All else differs, but that each has another service at the other's address of the first.
var twoClusters = map[mesh.ClusterID]string{
	"c1": `
{kind: Membership, metadata: {name: shop}, spec: {namespace: shop, phase: Member}}
---
{kind: Service, metadata: {name: web, namespace: shop, creationTimestamp: "2020-01-01T00:00:00Z"}, spec: {clusterIP: 10.96.0.1, selector: {app: web},
  ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 90, targetPort: 9090}]}}
---
{kind: Service, metadata: {name: db, namespace: shop}, spec: {clusterIP: 10.96.0.2, selector: {app: db}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 90, targetPort: 9090}]}}
---
kind: EndpointSlice
metadata: {name: web-x, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.0.0.1], conditions: {ready: true}}]
ports: [{name: http, port: 8080}, {name: tcp, port: 9090}]
---
{kind: Pod, metadata: {name: web-1, namespace: shop, labels: {app: web, security.istio.io/tlsMode: istio}}, spec: {serviceAccountName: one},
  status: {podIP: 10.0.0.1, phase: Running}}
`,
	"c2": `
{kind: Membership, metadata: {name: shop}, spec: {namespace: shop, phase: Member}}
---
{kind: Service, metadata: {name: web, namespace: shop, creationTimestamp: "2021-01-01T00:00:00Z"}, spec: {clusterIP: 10.96.0.2, selector: {tier: front},
  ports: [{name: http, port: 80, targetPort: 8088}, {name: tcp, port: 90, targetPort: 9099}]}}
---
{kind: Service, metadata: {name: mail, namespace: shop}, spec: {clusterIP: 10.96.0.1, selector: {app: mail}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 90, targetPort: 9090}]}}
---
kind: EndpointSlice
metadata: {name: web-x, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.0.0.1], conditions: {ready: true}}]
ports: [{name: http, port: 8088}, {name: tcp, port: 9099}]
---
{kind: Pod, metadata: {name: web-1, namespace: shop, labels: {app: web, tier: front}}, spec: {serviceAccountName: two},
  status: {podIP: 10.0.0.1, phase: Running}}
`,
}

// newClusters are two clusters of one mesh, and the proxies of their pods.
func newClusters(t *testing.T) (w *world, proxies map[mesh.ClusterID]mesh.WorkloadKey) {
	t.Helper()
	w, proxies = newWorld("a"), map[mesh.ClusterID]mesh.WorkloadKey{}
	for c, docs := range twoClusters {
		w.in(c).apply(t, docs)
		proxies[c] = w.in(c).connect("shop", "web-1", "10.0.0.1")
	}
	w.graph.Step()
	return w, proxies
}

func (w *world) apply(t *testing.T, docs string) {
	t.Helper()
	objects, _ := parse(t, []byte(docs))
	for _, o := range objects {
		w.set(o, false)
	}
	w.graph.Step()
}

// away takes back the objects of documents.
func (w *world) away(t *testing.T, docs string) {
	t.Helper()
	objects, _ := parse(t, []byte(docs))
	for _, o := range objects {
		w.set(o, true)
	}
	w.graph.Step()
}

func wantText(t *testing.T, what, got, want string) {
	t.Helper()
	if strings.TrimSpace(got) != strings.TrimSpace(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", what, got, want)
	}
}

func (w *world) found() string {
	var b strings.Builder
	for _, f := range w.Findings() {
		fmt.Fprintf(&b, "%s %s: %s: %s\n", f.About.Cluster, f.About, f.Reason, f.Message)
	}
	return b.String()
}

// outbound prints the listeners for services' addresses, and where they send connections, and the hosts of port 80.
func (w *world) outbound(t *testing.T, k mesh.WorkloadKey) string {
	t.Helper()
	held := w.holds(k)
	var b strings.Builder
	for _, name := range sortedNames(held[listenerType]) {
		if strings.HasPrefix(name, "10.") {
			b.WriteString(chainsView(t, w, held, name))
		}
	}
	return b.String() + hostsView(t, w, held, "80")
}

// A client has the services' addresses of its own cluster, whoever has them in another.
func TestAddressesOfOwnCluster(t *testing.T) {
	w, proxies := newClusters(t)
	wantText(t, "c1", w.outbound(t, proxies["c1"]), `
at 10.96.0.1:90
-> tcp outbound|90||web.shop.svc.cluster.local
at 10.96.0.2:90
-> tcp outbound|90||db.shop.svc.cluster.local
db.shop.svc.cluster.local:80: db.shop.svc.cluster.local db.shop.svc.cluster.local. db db.shop.svc db.shop 10.96.0.2 -> outbound|80||db.shop.svc.cluster.local
mail.shop.svc.cluster.local:80: mail.shop.svc.cluster.local mail.shop.svc.cluster.local. mail mail.shop.svc mail.shop -> outbound|80||mail.shop.svc.cluster.local
web.shop.svc.cluster.local:80: web.shop.svc.cluster.local web.shop.svc.cluster.local. web web.shop.svc web.shop 10.96.0.1 -> outbound|80||web.shop.svc.cluster.local
allow_any: * -> PassthroughCluster`)
	wantText(t, "c2", w.outbound(t, proxies["c2"]), `
at 10.96.0.1:90
-> tcp outbound|90||mail.shop.svc.cluster.local
at 10.96.0.2:90
-> tcp outbound|90||web.shop.svc.cluster.local
db.shop.svc.cluster.local:80: db.shop.svc.cluster.local db.shop.svc.cluster.local. db db.shop.svc db.shop -> outbound|80||db.shop.svc.cluster.local
mail.shop.svc.cluster.local:80: mail.shop.svc.cluster.local mail.shop.svc.cluster.local. mail mail.shop.svc mail.shop 10.96.0.1 -> outbound|80||mail.shop.svc.cluster.local
web.shop.svc.cluster.local:80: web.shop.svc.cluster.local web.shop.svc.cluster.local. web web.shop.svc web.shop 10.96.0.2 -> outbound|80||web.shop.svc.cluster.local
allow_any: * -> PassthroughCluster`)
	wantText(t, "findings", w.found(), "")
}

// A workload is selected by the services of its own cluster, and its proxy accepts what these say.
func TestInboundOfOwnCluster(t *testing.T) {
	w, proxies := newClusters(t)
	for c, want := range map[mesh.ClusterID]string{"c1": "8080 9090", "c2": "8088 9099"} {
		wantText(t, string(c), w.inboundPorts(proxies[c]), want)
	}
	// A service without selector is in front of what its own cluster's slices list.
	w.in("c2").apply(t, `
{kind: Service, metadata: {name: web, namespace: shop, creationTimestamp: "2021-01-01T00:00:00Z"}, spec: {clusterIP: 10.96.0.2, ports: [{name: http, port: 80, targetPort: 8088}]}}`)
	for c, want := range map[mesh.ClusterID]string{"c1": "8080 9090", "c2": "8088"} {
		wantText(t, string(c)+" without selector", w.inboundPorts(proxies[c]), want)
	}
}

// inboundPorts are those behind services.
func (w *world) inboundPorts(k mesh.WorkloadKey) string {
	var out []string
	for name := range w.holds(k)[clusterType] {
		if port, ok := strings.CutPrefix(name, "inbound|"); ok {
			out = append(out, strings.TrimSuffix(port, "||"))
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// An endpoint's address is that of a workload of its own cluster, and names nobody elsewhere.
func TestEndpointsOfTheirOwnCluster(t *testing.T) {
	w, proxies := newClusters(t)
	for _, c := range []mesh.ClusterID{"c1", "c2"} {
		wantText(t, string(c), endpointsView(t, w.holds(proxies[c])[assignmentType]["outbound|80||web.shop.svc.cluster.local"]), `
// weight 2
  10.0.0.1:8080 workload=web-1;shop;web;;c1 tlsMode=istio
  10.0.0.1:8088 workload=web-1;shop;web;;c2`)
	}
	cluster := protojson.Format(open(t, w.holds(proxies["c1"])[clusterType]["outbound|80||web.shop.svc.cluster.local"], &clusterv3.Cluster{}))
	for _, account := range []string{"one", "two"} {
		if !strings.Contains(cluster, "spiffe://cluster.local/ns/shop/sa/"+account) {
			t.Errorf("service account %s is not among the names of %s", account, cluster)
		}
	}
}

// A namespace that leaves the mesh in one cluster leaves what it is in the other.
func TestLeavingInOneCluster(t *testing.T) {
	w, proxies := newClusters(t)
	before := w.outbound(t, proxies["c1"])
	w.in("c2").apply(t, `{kind: Membership, metadata: {name: shop}, spec: {namespace: shop, phase: Leaving}}`)
	if groups, needs := w.Groups(proxies["c2"]); len(groups) > 0 || needs != toCome {
		t.Errorf("a client of the cluster that has left holds %v", groups)
	}
	hosts := strings.Split(before, "\n")
	want := strings.Join(slices.DeleteFunc(hosts, func(l string) bool { return strings.HasPrefix(l, "mail.") }), "\n")
	wantText(t, "the other", w.outbound(t, proxies["c1"]), want)
	wantText(t, "the other", endpointsView(t, w.holds(proxies["c1"])[assignmentType]["outbound|80||web.shop.svc.cluster.local"]), `
// weight 1
  10.0.0.1:8080 workload=web-1;shop;web;;c1 tlsMode=istio`)
	for c, want := range map[mesh.ClusterID]bool{"c1": true, "c2": false} {
		if m, ok := w.Member(c, "shop"); !ok || (m.Phase == mesh.Served) != want {
			t.Errorf("in %s the namespace is %v", c, m.Phase)
		}
	}
}

// Istio's objects are read in the plane's own cluster, and hold for namespaces of their name in all: one elsewhere is told that
// it has no effect.
func TestPoliciesOfHome(t *testing.T) {
	w, proxies := newClusters(t)
	const strict = `{kind: PeerAuthentication, metadata: {name: strict, namespace: shop}, spec: {mtls: {mode: STRICT}}}`
	const plain = `{kind: DestinationRule, metadata: {name: web, namespace: shop}, spec: {host: web, trafficPolicy: {tls: {mode: DISABLE}}}}`
	mode := func(c mesh.ClusterID) mesh.PeerMode {
		p, _ := w.tables.Peerings.Lookup(proxies[c])
		return p.At(8080)
	}
	const web = "outbound|80||web.shop.svc.cluster.local"
	w.in("c2").apply(t, strict)
	w.in("c2").apply(t, plain)
	for _, c := range []mesh.ClusterID{"c1", "c2"} {
		if got := mode(c); got != mesh.PeerPermissive {
			t.Errorf("a policy of c2 has %s accept %v", c, got)
		}
		if got := securedView(t, w, w.holds(proxies[c]), web); got == "plain text\n" {
			t.Errorf("a rule of c2 counts in %s", c)
		}
	}
	wantText(t, "findings", w.found(), `
c2 DestinationRule shop/web: ClusterNotRead: has no effect in cluster c2: Istio's objects of the mesh are read in cluster c1, for namespaces of their name in every cluster; apply it there
c2 PeerAuthentication shop/strict: ClusterNotRead: has no effect in cluster c2: Istio's objects of the mesh are read in cluster c1, for namespaces of their name in every cluster; apply it there`)
	w.apply(t, strict)
	w.apply(t, plain)
	for _, c := range []mesh.ClusterID{"c1", "c2"} {
		if got := mode(c); got != mesh.PeerStrict {
			t.Errorf("a policy of c1 has %s accept %v", c, got)
		}
		wantText(t, string(c), securedView(t, w, w.holds(proxies[c]), web), "plain text")
	}
}

// Of what the objects of a service say of it differently, the oldest one's counts; when it goes, the next one's does.
func TestServiceOfClusters(t *testing.T) {
	w, proxies := newClusters(t)
	const other = `
{kind: Service, metadata: {name: web, namespace: shop, creationTimestamp: "2021-01-01T00:00:00Z", annotations: {alpha.istio.io/canonical-serviceaccounts: "spiffe://x/c2"}},
  spec: {clusterIP: 10.96.0.2, selector: {tier: front}, ports: [{name: tcp-web, port: 80, targetPort: 8088}, {name: tcp, port: 91, targetPort: 9099}]}}`
	w.in("c2").apply(t, other)
	wantText(t, "findings", w.found(), `
c2 Service shop/web: ClustersDiffer: says of ports another thing in cluster c2 than in cluster c1, where it is older and counts: make them say the same`)
	ports := func(c mesh.ClusterID) (out []string) {
		for _, name := range sortedNames(w.holds(proxies[c])[clusterType]) {
			if strings.HasSuffix(name, "||web.shop.svc.cluster.local") {
				out = append(out, name)
			}
		}
		return out
	}
	want := []string{"outbound|80||web.shop.svc.cluster.local", "outbound|90||web.shop.svc.cluster.local"}
	for _, c := range []mesh.ClusterID{"c1", "c2"} {
		if got := ports(c); !slices.Equal(got, want) {
			t.Errorf("clients of %s have clusters %v, want %v", c, got, want)
		}
	}
	wantText(t, "in front of c2's", w.inboundPorts(proxies["c2"]), "8088 9099")
	accounts := securedView(t, w, w.holds(proxies["c1"]), want[0])
	if !strings.Contains(accounts, "spiffe://x/c2") || !strings.Contains(accounts, "spiffe://cluster.local/ns/shop/sa/one") {
		t.Errorf("the names of the service are %s", accounts)
	}

	w.away(t, `{kind: Service, metadata: {name: web, namespace: shop}}`)
	want[1] = "outbound|91||web.shop.svc.cluster.local"
	for _, c := range []mesh.ClusterID{"c1", "c2"} {
		if got := ports(c); !slices.Equal(got, want) {
			t.Errorf("without the older object clients of %s have clusters %v, want %v", c, got, want)
		}
	}
	if got := w.outbound(t, proxies["c1"]); strings.Contains(got, "10.96.0.1") {
		t.Errorf("without the older object its address is still there: %s", got)
	}
	wantText(t, "in front of c1's", w.inboundPorts(proxies["c1"]), "")
	wantText(t, "findings", w.found(), "")
}

// A headless service's endpoints are called at their addresses, by clients of the cluster that has them.
func TestHeadlessOfClusters(t *testing.T) {
	w, proxies := newClusters(t)
	for c, address := range map[mesh.ClusterID]string{"c1": "10.0.0.1", "c2": "10.0.0.7"} {
		w.in(c).apply(t, fmt.Sprintf(`
{kind: Service, metadata: {name: set, namespace: shop}, spec: {clusterIP: None, selector: {app: set}, ports: [{name: tcp, port: 95}]}}
---
kind: EndpointSlice
metadata: {name: set-x, namespace: shop, labels: {kubernetes.io/service-name: set}}
addressType: IPv4
endpoints: [{addresses: [%s], conditions: {ready: true}}]
ports: [{name: tcp, port: 95}]
`, address))
	}
	for c, want := range map[mesh.ClusterID]string{"c1": "10.0.0.1_95", "c2": "10.0.0.7_95"} {
		var got []string
		for name := range w.holds(proxies[c])[listenerType] {
			if strings.HasSuffix(name, "_95") {
				got = append(got, name)
			}
		}
		if !slices.Equal(got, []string{want}) {
			t.Errorf("clients of %s have listeners %v, want %s", c, got, want)
		}
	}
	wantText(t, "findings", w.found(), `
c2 Service shop/set: AddressUnknown: port 95: connections to an address of its endpoints are its own for clients of namespace shop, and of others with a rule for set.shop.svc.cluster.local, only, as no known pod of shop has it: what is nobody's may be anybody's`)
}

// A pod's address is its namespace's in its own cluster only.
func TestTakenAddressOfCluster(t *testing.T) {
	w, _ := newClusters(t)
	const headless = `
{kind: Membership, metadata: {name: other}, spec: {namespace: other, phase: Member}}
---
{kind: Service, metadata: {name: set, namespace: other}, spec: {clusterIP: None, ports: [{name: tcp, port: 95}]}}
---
kind: EndpointSlice
metadata: {name: set-x, namespace: other, labels: {kubernetes.io/service-name: set}}
addressType: IPv4
endpoints: [{addresses: [10.0.0.9], conditions: {ready: true}}, {addresses: [10.96.0.8], conditions: {ready: true}}]
ports: [{name: tcp, port: 95}]
`
	w.apply(t, headless)
	// Both are somebody's in the other cluster.
	w.in("c2").apply(t, `
{kind: Pod, metadata: {name: web-9, namespace: shop}, status: {podIP: 10.0.0.9, phase: Running}}
---
{kind: Service, metadata: {name: late, namespace: shop}, spec: {clusterIP: 10.96.0.8, ports: [{name: tcp, port: 95}]}}`)
	wantText(t, "findings, none of which says that somebody has an address", w.found(), `
c1 Service other/set: AddressUnknown: port 95: connections to an address of its endpoints are its own for clients of namespace other, and of others with a rule for set.other.svc.cluster.local, only, as no known pod of other has it: what is nobody's may be anybody's`)
}

// Where all is in one cluster, a client of it has no more than before, and nothing is made for another.
func TestNothingForUnusedClusters(t *testing.T) {
	w, proxies := newClusters(t)
	w.presence.source.Delete(proxies["c2"])
	w.graph.Step()
	for group := range w.held {
		for typ, resources := range w.held[group] {
			if len(resources) > 0 && strings.Contains(string(group), "c2") {
				t.Errorf("%d of %s are made for group %s, which nobody holds", len(resources), short(typ), group)
			}
		}
	}
}

// Two proxies of one name in two clusters are two: each has its own row in what istioctl is told, is asked by its cluster's name
// where that is needed, and what becomes of one leaves the other alone.
func TestProxiesOfOneName(t *testing.T) {
	h := newHall(t)
	pod := func(label string) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "cart-1", UID: "uid-of-cart-1", Labels: map[string]string{"app": label}},
			Spec:       corev1.PodSpec{ServiceAccountName: "cart"}, Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.1"},
		}
	}
	settle := func() {
		if err := h.graph.WaitRev(t.Context(), h.graph.Staged()); err != nil {
			t.Fatal(err)
		}
	}
	h.in("c2").set(&heddlev1alpha1.Membership{
		ObjectMeta: metav1.ObjectMeta{Name: "shop"}, Spec: heddlev1alpha1.MembershipSpec{Namespace: "shop", Phase: heddlev1alpha1.Member},
	}, false)
	h.in("c2").set(pod("cart"), false)
	settle()
	streams := map[mesh.ClusterID]*xdstest.Client{}
	for _, c := range []mesh.ClusterID{"c1", "c2"} {
		node := nodeOf(t, "shop", "cart-1")
		node.Metadata.Fields["CLUSTER_ID"] = structpb.NewStringValue(string(c))
		ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer shop:cart:cart-1:"+audience, "clusterid", string(c))
		stream, err := xdstest.Connect(ctx, h.conn, xdstest.Delta, node)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Ack(subscribe(t, stream, listenerType)); err != nil {
			t.Fatal(err)
		}
		streams[c] = stream
	}

	response, err := h.ask(t, syncURL)
	if err != nil {
		t.Fatal(err)
	}
	var rows []string
	for _, a := range response.Resources {
		var x statusv3.ClientConfig
		if err := a.UnmarshalTo(&x); err != nil {
			t.Fatal(err)
		}
		rows = append(rows, x.GetNode().GetMetadata().GetFields()["CLUSTER_ID"].GetStringValue()+" "+x.GetNode().GetId())
	}
	slices.Sort(rows)
	if want := []string{"c1 cart-1.shop", "c2 cart-1.shop"}; !slices.Equal(rows, want) {
		t.Errorf("rows are %v, want %v", rows, want)
	}

	h.in("c2").set(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "cart"},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.1", Selector: map[string]string{"app": "cart"}, Ports: []corev1.ServicePort{{Name: "tcp", Port: 90}}},
	}, false)
	settle()
	d := h.admission.debug
	next(t, streams["c2"]) // its inbound side has moved, and what it was sent can be asked for
	for _, c := range []struct {
		page, proxyID, want, not string
		code                     int
	}{
		{page: "why", proxyID: "cart-1.shop", want: "cart-1.shop is in several clusters: name one of c1/cart-1.shop, c2/cart-1.shop", code: 404},
		{page: "config_dump", proxyID: "cart-1.shop", want: "cart-1.shop is in several clusters: name one of c1/cart-1.shop, c2/cart-1.shop", code: 404},
		{page: "why", proxyID: "c3/cart-1.shop", want: notConnected, code: 404},
		{page: "why", proxyID: "c1/cart-1.shop", want: "virtualInbound", not: "10.96.0.1_90", code: 200},
		{page: "why", proxyID: "c2/cart-1.shop", want: "10.96.0.1_90", code: 200},
		{page: "config_dump", proxyID: "c1/cart-1.shop", want: "virtualInbound", not: "10.96.0.1_90", code: 200},
		{page: "config_dump", proxyID: "c2/cart-1.shop", want: "10.96.0.1_90", code: 200},
	} {
		code, body := d.page(c.page + "?proxyID=" + c.proxyID)
		if code != c.code || !strings.Contains(string(body), c.want) || c.not != "" && strings.Contains(string(body), c.not) {
			t.Errorf("%s of %s is %d %s", c.page, c.proxyID, code, body)
		}
	}
	if _, err := h.ask(t, configDumpURL, "cart-1.shop"); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a name that two have is answered by %v", err)
	}

	h.server.Close(inNamespace(mesh.NamespaceKey{Cluster: "c2", Name: "shop"}), errLeft("shop", "one"))
	if err := ends(streams["c2"]); status.Code(err) != codes.PermissionDenied {
		t.Errorf("the stream of the namespace that leaves ends with %v", err)
	}
	if code, _ := d.page("why?proxyID=cart-1.shop"); code != 200 {
		t.Error("the other's stream has ended too")
	}
}

// networks labels the system namespace of each cluster with the network of its pods.
func (w *world) networks(t *testing.T, of map[mesh.ClusterID]string) {
	t.Helper()
	for c, network := range of {
		labels := ""
		if network != "" {
			labels = "topology.istio.io/network: " + network
		}
		w.in(c).apply(t, fmt.Sprintf(`{kind: Membership, metadata: {name: istio-system}, spec: {namespace: istio-system, phase: Member, labels: {%s}}}`, labels))
	}
}

// Clients are told of endpoints that they can reach: those on their own network, and where one of both says of no network. While
// no two clusters are on different ones, all are reached whatever pods say; and what is said of a network that no cluster is on
// counts for nothing.
func TestEndpointsOfOwnNetwork(t *testing.T) {
	w, proxies := newClusters(t)
	const (
		web = "outbound|80||web.shop.svc.cluster.local"
		c1  = "  10.0.0.1:8080 workload=web-1;shop;web;;c1 tlsMode=istio"
		c2  = "  10.0.0.1:8088 workload=web-1;shop;web;;c2"
		far = "  10.0.0.2:8080 workload=web-2;shop;web;;c1 tlsMode=istio"
		odd = "  10.0.0.4:8080 workload=web-4;shop;web;;c1 tlsMode=istio"
		out = "  10.0.0.5:8088" // an address that no pod has
	)
	w.apply(t, `
kind: EndpointSlice
metadata: {name: web-y, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.0.0.2], conditions: {ready: true}}, {addresses: [10.0.0.4], conditions: {ready: true}}]
ports: [{name: http, port: 8080}]
---
{kind: Pod, metadata: {name: web-2, namespace: shop, labels: {app: web, security.istio.io/tlsMode: istio, topology.istio.io/network: west}},
  status: {podIP: 10.0.0.2, phase: Running}}
---
{kind: Pod, metadata: {name: web-4, namespace: shop, labels: {app: web, security.istio.io/tlsMode: istio, topology.istio.io/network: nowhere}},
  status: {podIP: 10.0.0.4, phase: Running}}
---
{kind: DestinationRule, metadata: {name: web, namespace: shop}, spec: {host: web, exportTo: [.], subsets: [{name: front, labels: {tier: front}}]}}`)
	w.in("c2").apply(t, `
kind: EndpointSlice
metadata: {name: web-y, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.0.0.5], conditions: {ready: true}}]
ports: [{name: http, port: 8088}]`)
	second := w.connect("shop", "web-2", "10.0.0.2")
	unseen := mesh.WorkloadKey{Cluster: "c1", Kind: mesh.KindPod, Namespace: "shop", Name: "new-1"}
	w.presence.source.Set(unseen, resolve.Client{Workload: unseen, Network: "west"})
	silent := w.connect("shop", "new-2", "10.0.0.9")
	nowhere := w.connect("shop", "web-4", "10.0.0.4")
	all := []string{c1, c2, far, odd, out}
	for _, step := range []struct {
		networks                                  map[mesh.ClusterID]string
		first, other, second, odd, unseen, silent []string
		front                                     string // what the first is told of the subset of c2's pods
	}{
		{
			networks: map[mesh.ClusterID]string{},
			first:    all, other: all, second: all, odd: all, unseen: all, silent: all, front: "// weight 1\n" + c2,
		},
		{
			networks: map[mesh.ClusterID]string{"c1": "east", "c2": "west"},
			first:    []string{c1, odd}, other: []string{c2, far, out}, second: []string{c2, far, out},
			odd: []string{c1, odd}, unseen: []string{c2, far, out}, silent: []string{c1, odd},
		},
		{
			networks: map[mesh.ClusterID]string{"c1": "east", "c2": "east"},
			first:    all, other: all, second: all, odd: all, unseen: all, silent: all, front: "// weight 1\n" + c2,
		},
		{
			networks: map[mesh.ClusterID]string{"c1": "east", "c2": ""},
			first:    all, other: all, second: all, odd: all, unseen: all, silent: all, front: "// weight 1\n" + c2,
		},
	} {
		w.networks(t, step.networks)
		w.graph.Step()
		for _, client := range []struct {
			who  string
			k    mesh.WorkloadKey
			want []string
		}{
			{"of c1", proxies["c1"], step.first},
			{"of c2", proxies["c2"], step.other},
			{"of c1 that is in the west", second, step.second},
			{"of c1 that is nowhere", nowhere, step.odd},
			{"of c1 that says so", unseen, step.unseen},
			{"of c1 that says nothing", silent, step.silent},
		} {
			want := fmt.Sprintf("// weight %d\n%s", len(client.want), strings.Join(client.want, "\n"))
			wantText(t, fmt.Sprint(step.networks, ": a client ", client.who), endpointsView(t, w.holds(client.k)[assignmentType][web]), want)
		}
		wantText(t, fmt.Sprint(step.networks, ": the subset"),
			endpointsView(t, w.holds(proxies["c1"])[assignmentType]["outbound|80|front|web.shop.svc.cluster.local"]), step.front)
	}
}

// Of two endpoints at one address and port of one network a client is told once, as Envoy knows them by that: of the one that
// accepts mutual TLS, if only one does, as a slice elsewhere that names an address must not have it called in plain text.
func TestEndpointsOfOneAddress(t *testing.T) {
	w, proxies := newClusters(t)
	w.in("c2").apply(t, `
kind: EndpointSlice
metadata: {name: web-x, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.0.0.1], conditions: {ready: true}}, {addresses: [10.0.0.6], conditions: {ready: true}}]
ports: [{name: http, port: 8080}]
---
{kind: Pod, metadata: {name: web-6, namespace: shop, labels: {app: web, security.istio.io/tlsMode: istio}}, status: {podIP: 10.0.0.6, phase: Running}}`)
	w.apply(t, `
kind: EndpointSlice
metadata: {name: web-y, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.0.0.6], conditions: {ready: true}}]
ports: [{name: http, port: 8080}]`)
	wantText(t, "both", endpointsView(t, w.holds(proxies["c2"])[assignmentType]["outbound|80||web.shop.svc.cluster.local"]), `
// weight 2
  10.0.0.1:8080 workload=web-1;shop;web;;c1 tlsMode=istio
  10.0.0.6:8080 workload=web-6;shop;web;;c2 tlsMode=istio`)
}

// Where there is one network only, it costs nothing that it has a name.
func TestOneNetworkCostsNothing(t *testing.T) {
	plain, named := newCity(20, 3), newRegion(10, 0, 3)
	named.Memberships.Set(mesh.ObjectKey{Cluster: "c1", Namespace: "istio-system", Name: "istio-system"}, &heddlev1alpha1.Membership{
		Spec: heddlev1alpha1.MembershipSpec{Namespace: "istio-system", Phase: heddlev1alpha1.Member, Labels: map[string]string{"topology.istio.io/network": "east"}},
	})
	for s := range 20 {
		named.build(s)
	}
	for s := range 10 {
		named.connect(s, 0)
	}
	named.graph.Step()
	sameWork(t, "an endpoint", plain, named, func(c *city) { c.endpoints(7, false) })
	sameWork(t, "a service", plain, named, func(c *city) { c.build(20) })
	rows := func(c *city) map[string]int {
		out := map[string]int{}
		for _, m := range c.graph.Meters() {
			if strings.HasSuffix(m.Name, "assignments") || m.Name == "entries" {
				out[m.Name] = m.Rows
			}
		}
		return out
	}
	if had, has := rows(plain), rows(named); !maps.Equal(had, has) {
		t.Errorf("there are %v rows, without a name of the network %v", has, had)
	}
}
