package control

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	"istio.io/api/networking/v1alpha3"
	"istio.io/api/security/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/resolve"
	"github.com/heddle-mesh/heddle/internal/xds"
)

// dice makes random objects of a small world, so that they often concern each other.
type dice struct{ *rand.Rand }

func (d dice) namespace() string { return fmt.Sprintf("n%d", d.IntN(4)) }
func (d dice) one(of ...string) string {
	return of[d.IntN(len(of))]
}

func (d dice) meta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: d.namespace(), Name: name, CreationTimestamp: metav1.NewTime(time.Unix(int64(d.IntN(3)), 0)),
		Labels: map[string]string{"app": d.one("x", "y"), "version": d.one("v1", "v2")},
	}
}

func (d dice) object() metav1.Object {
	switch d.IntN(28) / 2 {
	case 0:
		ns := d.namespace()
		if d.IntN(4) == 0 {
			return d.system(d.one("east", "west"))
		}
		return &heddlev1alpha1.Membership{
			ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: ns},
			Spec:       heddlev1alpha1.MembershipSpec{Namespace: ns, Phase: heddlev1alpha1.Phase(d.one("Member", "Member", "Member", "Member", "Member", "Member", "Joining", "Leaving"))},
		}
	case 1:
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: d.one("k1", "k2"), Labels: map[string]string{corev1.LabelTopologyZone: d.one("z1", "z2")}}}
	case 2, 3, 4:
		return d.service()
	case 5, 6:
		return d.slice()
	case 7, 8:
		o := &corev1.Pod{ObjectMeta: d.meta(d.one("p1", "p2", "p3"))}
		o.Labels["security.istio.io/tlsMode"] = d.one("istio", "istio", "off")
		o.Spec = corev1.PodSpec{ServiceAccountName: d.one("s1", "s2"), NodeName: d.one("k1", "k2"), HostNetwork: d.IntN(8) == 0}
		if d.IntN(3) == 0 {
			maps.Copy(o.Labels, d.network())
		}
		if d.IntN(8) == 0 {
			o.DeletionTimestamp = &metav1.Time{Time: time.Unix(1000, 0)}
		}
		o.Status = corev1.PodStatus{Phase: corev1.PodPhase(d.one("Running", "Running", "Running", "Failed")), PodIP: d.address(o.Namespace)}
		return o
	case 9:
		return d.policy()
	case 10, 11:
		return &arrival{d.meta(d.one("p1", "p2", "p3", "p4")), []string{d.one("10.9.9.9", "fd00::9")}, d.one("", "k1", "k2")}
	default:
		return d.rule()
	}
}

// system is the membership that says on which network the cluster is.
func (d dice) system(network string) *heddlev1alpha1.Membership {
	return &heddlev1alpha1.Membership{
		ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "istio-system"},
		Spec:       heddlev1alpha1.MembershipSpec{Namespace: "istio-system", Phase: heddlev1alpha1.Member, Labels: map[string]string{"topology.istio.io/network": network}},
	}
}

// everywhere is a service that stays, with endpoints in each cluster.
func everywhere() *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "n0", Name: "everywhere"},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.0.1.9", Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	}
}

func everywhereIn(address string) *discoveryv1.EndpointSlice {
	name, port := "http", int32(8080)
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "n0", Name: "everywhere", Labels: map[string]string{discoveryv1.LabelServiceName: "everywhere"}},
		Endpoints:  []discoveryv1.Endpoint{{Addresses: []string{address}}},
		Ports:      []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
	}
}

func (d dice) network() map[string]string {
	return map[string]string{"topology.istio.io/network": d.one("east", "west")}
}

func (d dice) address(namespace string) string {
	return fmt.Sprintf("10.%s.0.%d", namespace[1:], d.IntN(3))
}

func (d dice) service() *corev1.Service {
	o := &corev1.Service{ObjectMeta: d.meta(d.one("a", "b", "c"))}
	o.Spec.ClusterIP = d.one("None", fmt.Sprintf("10.%s.1.%d", o.Namespace[1:], d.IntN(4)))
	o.Spec.Selector = map[string]string{"app": d.one("x", "y")}
	if d.IntN(2) == 0 {
		local := corev1.ServiceInternalTrafficPolicyLocal
		o.Spec.InternalTrafficPolicy = &local
	}
	if d.IntN(6) == 0 {
		o.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "a." + d.namespace() + ".svc.cluster.local"}
	}
	if d.IntN(3) == 0 {
		o.Annotations = map[string]string{"networking.istio.io/exportTo": d.one(".", "~", "n1,n2", "*")}
	}
	for i := range d.IntN(3) {
		o.Spec.Ports = append(o.Spec.Ports, corev1.ServicePort{
			Name: d.one("http", "tcp", "grpc", "what") + fmt.Sprintf("-%d", i), Port: int32(80 + i), TargetPort: intstr.FromInt32(int32(8080 + d.IntN(2))),
		})
	}
	return o
}

func (d dice) slice() *discoveryv1.EndpointSlice {
	o := &discoveryv1.EndpointSlice{ObjectMeta: d.meta(d.one("a", "b", "b2"))}
	o.Labels = map[string]string{discoveryv1.LabelServiceName: d.one("a", "b", "c")}
	for range d.IntN(3) {
		ready := d.IntN(3) > 0
		e := discoveryv1.Endpoint{Addresses: []string{d.address(o.Namespace)}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}
		if d.IntN(3) > 0 {
			e.TargetRef = &corev1.ObjectReference{Kind: "Pod", Name: d.one("p1", "p2", "p3")}
		}
		if node := d.one("", "k1", "k2"); node != "" {
			e.NodeName = &node
		}
		o.Endpoints = append(o.Endpoints, e)
	}
	for i := range 2 {
		name, port := d.one("http", "tcp", "grpc", "what")+fmt.Sprintf("-%d", i), int32(8080+d.IntN(2))
		o.Ports = append(o.Ports, discoveryv1.EndpointPort{Name: &name, Port: &port})
	}
	return o
}

func (d dice) policy() *securityv1.PeerAuthentication {
	mode := func() *v1beta1.PeerAuthentication_MutualTLS {
		return &v1beta1.PeerAuthentication_MutualTLS{Mode: v1beta1.PeerAuthentication_MutualTLS_Mode(d.IntN(4))}
	}
	o := &securityv1.PeerAuthentication{ObjectMeta: d.meta(d.one("a", "b"))}
	o.Spec.Mtls = mode()
	if d.IntN(2) == 0 {
		o.Spec.Selector = &typev1beta1.WorkloadSelector{MatchLabels: map[string]string{"app": d.one("x", "y")}}
		o.Spec.PortLevelMtls = map[uint32]*v1beta1.PeerAuthentication_MutualTLS{8080: mode(), 9999: mode()}
	}
	return o
}

func (d dice) rule() *networkingv1.DestinationRule {
	policy := func() *v1alpha3.TrafficPolicy {
		if d.IntN(3) == 0 {
			return nil
		}
		return &v1alpha3.TrafficPolicy{Tls: &v1alpha3.ClientTLSSettings{Mode: v1alpha3.ClientTLSSettings_TLSmode(d.IntN(4))}}
	}
	o := &networkingv1.DestinationRule{ObjectMeta: d.meta(d.one("a", "b"))}
	o.Spec.Host = d.one("a", "b", "a."+d.namespace()+".svc.cluster.local", "*."+d.namespace()+".svc.cluster.local", "*", d.one("*a.", "*b.")+d.namespace()+".svc.cluster.local")
	o.Spec.TrafficPolicy = policy()
	if d.IntN(2) == 0 {
		o.Spec.ExportTo = []string{d.one(".", "~", "n2", "*")}
	}
	for range d.IntN(2) {
		o.Spec.Subsets = append(o.Spec.Subsets, &v1alpha3.Subset{Name: d.one("v1", "v2"), Labels: map[string]string{"version": "v1"}, TrafficPolicy: policy()})
	}
	return o
}

func (d dice) config() *meshv1alpha1.MeshConfig {
	return &meshv1alpha1.MeshConfig{
		RootNamespace: "n0", AccessLogFile: d.one("", "/dev/stdout"), EnableAutoMtls: wrapperspb.Bool(d.IntN(4) > 0),
		TrustDomain: d.one("", "td"), ProtocolDetectionTimeout: durationpb.New(time.Duration(d.IntN(2)) * time.Second),
		OutboundTrafficPolicy: &meshv1alpha1.MeshConfig_OutboundTrafficPolicy{Mode: meshv1alpha1.MeshConfig_OutboundTrafficPolicy_Mode(d.IntN(2))},
	}
}

// history is what was set and not removed, by cluster.
type history map[mesh.ClusterID]map[string]metav1.Object

// set stages an object, or its removal.
func (h history) set(w *world, o metav1.Object, remove bool) {
	w.set(o, remove)
	if h[w.cluster] == nil {
		h[w.cluster] = map[string]metav1.Object{}
	}
	id := fmt.Sprintf("%T %s/%s", o, o.GetNamespace(), o.GetName())
	if h[w.cluster][id] = o; remove {
		delete(h[w.cluster], id)
	}
}

// step stages a few random changes, most of them in the first of two clusters.
func (h history) step(d dice, w *world) {
	for range 1 + d.IntN(4) {
		o, remove := d.object(), d.IntN(4) == 0
		h.set(w.in(mesh.ClusterID(d.one("c1", "c1", "c2"))), o, remove)
	}
	w.graph.Step()
}

// join makes every namespace a member, so that a history has something to begin with.
func (h history) join(w *world, namespaces ...string) {
	for _, ns := range namespaces {
		h.set(w, &heddlev1alpha1.Membership{
			ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: ns},
			Spec:       heddlev1alpha1.MembershipSpec{Namespace: ns, Phase: heddlev1alpha1.Member},
		}, false)
	}
}

// lines prints what groups hold, whatever the order in which it came.
func (h held) lines() map[string]string {
	out := map[string]string{}
	for group, types := range h {
		for typ, resources := range types {
			for name, r := range resources {
				out[fmt.Sprintf("%s %s %s", group, short(typ), name)] = r.Version + " " + r.Origin
			}
		}
	}
	return out
}

// What a pipeline holds after any history is what it makes of the objects that are left, all at once.
func TestPipelineEqualsRecomputation(t *testing.T) {
	compared, nodes, clusters, networks := 0, map[string]int{}, map[string]int{}, map[string]int{}
	for seed := range uint64(12) {
		d := dice{rand.New(rand.NewPCG(seed, 1))}
		h, w := history{}, newWorld("a")
		h.join(w, "n0", "n1", "n2")
		h.join(w.in("c2"), "n0", "n1", "n3")
		if seed%2 == 1 {
			h.set(w.in("c1"), d.system("east"), false)
			h.set(w.in("c2"), d.system("west"), false)
			h.set(w, everywhere(), false)
			h.set(w, everywhereIn("10.0.0.0"), false)
			h.set(w.in("c2"), everywhereIn("10.0.0.1"), false)
		}
		var config *meshv1alpha1.MeshConfig
		for round := range 60 {
			if d.IntN(8) == 0 {
				config = d.config()
				w.MeshConfig.Set("a", config)
			}
			h.step(d, w)
			if round%6 != 5 {
				continue
			}
			fresh := newWorld("a")
			for c, objects := range h {
				for _, o := range objects {
					fresh.in(c).set(o, false)
				}
			}
			if config != nil {
				fresh.MeshConfig.Set("a", config)
			}
			fresh.graph.Step()
			got, want := w.held.lines(), fresh.held.lines()
			compared += len(want)
			for k := range want {
				if at := strings.Split(k, "/"); at[0] == "layer" { // /mesh/cluster/namespace/families/network/node
					clusters[at[2]]++
					networks[at[5]]++
					nodes[at[2]+"/"+strings.Fields(at[6])[0]]++
				}
				if got[k] != want[k] {
					t.Errorf("seed %d, round %d: %s is %q, recomputed %q", seed, round, k, got[k], want[k])
				}
			}
			for k := range got {
				if _, ok := want[k]; !ok {
					t.Errorf("seed %d, round %d: %s is left over", seed, round, k)
				}
			}
			if t.Failed() {
				return
			}
		}
	}
	if compared < 1500 {
		t.Errorf("%d resources were compared, too few to tell", compared)
	}
	if nodes["c1/k1"] < 100 || nodes["c1/k2"] < 100 {
		t.Errorf("of nodes, %v were compared, too few to tell", nodes)
	}
	if networks["east"]+networks["west"] < 20 {
		t.Errorf("of networks, %v were compared, too few to tell", networks)
	}
	if clusters["c1"] < 500 || clusters["c2"] < 300 {
		t.Errorf("of clusters, %v were compared, too few to tell", clusters)
	}
}

// Two meshes that are shown the same objects hold nothing of each other's namespaces: every name, address and identity in
// what a mesh's groups hold is of a namespace that the mesh serves (or is about to, where it says who is let in), though names in all namespaces are equal.
func TestMeshesNeverMix(t *testing.T) {
	traces := regexp.MustCompile(`\bn\d\b|\b10\.\d\.[01]\.\d\b`)
	seen := 0
	for seed := range uint64(6) {
		d := dice{rand.New(rand.NewPCG(seed, 2))}
		worlds := []*world{newWorld("a"), newWorld("b")}
		own := map[mesh.ID][]string{"a": {"n0", "n1"}, "b": {"n2", "n3"}}
		h := history{}
		for _, w := range worlds {
			h.join(w, own[w.Mesh()]...)
			for _, ns := range []string{"n0", "n1", "n2", "n3"} {
				w.connect(ns, "p4", "10.9.9.9")
			}
		}
		for range 60 {
			// Memberships come from the operator, to one mesh each.
			o, remove := d.object(), d.IntN(5) == 0
			for _, w := range worlds {
				if m, ok := o.(*heddlev1alpha1.Membership); !ok || m.Name == own[w.Mesh()][0] || m.Name == own[w.Mesh()][1] {
					w.set(o, remove)
				}
				w.graph.Step()
				seen += checkOwn(t, w, traces)
			}
		}
	}
	if seen < 10000 {
		t.Errorf("%d traces of namespaces were looked at, too few to tell", seen)
	}
}

func checkOwn(t *testing.T, w *world, traces *regexp.Regexp) (seen int) {
	t.Helper()
	for group, types := range w.held {
		for typ, resources := range types {
			for _, r := range resources {
				if r.Hides() {
					continue
				}
				m, err := r.Any().UnmarshalNew()
				if err != nil {
					t.Fatal(err)
				}
				text := string(group) + r.Origin + protojson.Format(m)
				for _, trace := range traces.FindAllString(text, -1) {
					ns := trace
					if trace[0] != 'n' {
						ns = "n" + trace[3:4]
					}
					seen++
					member, ok := w.Member("c1", ns)
					joining := typ == secretType && joins(heddlev1alpha1.Phase(member.Phase)) // trusted before it is served
					if !ok || member.Phase != mesh.Served && !joining {
						t.Fatalf("mesh %s holds %s %s, which speaks of %s", w.Mesh(), group, r.Name, trace)
					}
				}
			}
		}
	}
	return seen
}

// A proxy whose pod the plane has not seen yet is served by what it says of itself, then by the pod.
func TestProvisionalInbound(t *testing.T) {
	w, h := newWorld("a"), history{}
	h.join(w, "n0")
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "n0", Name: "web"}}
	svc.Spec = corev1.ServiceSpec{ClusterIP: "10.0.1.1", Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("web")}}}
	w.set(svc, false)
	w.graph.Step()
	k := mesh.WorkloadKey{Cluster: "c1", Kind: mesh.KindPod, Namespace: "n0", Name: "web-1"}
	inbound := func() string {
		_, needs := w.Groups(k)
		return w.held[needs][listenerType]["virtualInbound"].Version
	}
	if v := inbound(); v != "" {
		t.Fatalf("an inbound listener before anything is known of the workload: %s", v)
	}
	w.presence.source.Set(k, resolve.Client{Workload: k, Labels: map[string]string{"app": "web"}, Ports: map[string]uint32{"web": 8080}})
	w.graph.Step()
	said := inbound()
	if said == "" {
		t.Fatal("no inbound listener by what the client says")
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "n0", Name: "web-1", Labels: map[string]string{"app": "web"}}}
	pod.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}}}}
	pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.1"}
	w.set(pod, false)
	w.graph.Step()
	if v := inbound(); v != said {
		t.Errorf("an equal pod changed the listener from %s to %s", said, v)
	}
	other := pod.DeepCopy()
	other.Labels["app"] = "else"
	w.set(other, false)
	w.graph.Step()
	if v := inbound(); v == said || v == "" {
		t.Errorf("the pod's own labels do not count: listener %q", v)
	}
}

// A policy that becomes invalid leaves what it said before, until it is mended or deleted; one that was never valid is strict
// for what it may be meant for, and for nothing outside of its namespace.
func TestInvalidPolicyOpensNothing(t *testing.T) {
	w, h := newWorld("a"), history{}
	h.join(w, "istio-system", "n0", "n1")
	for _, ns := range []string{"n0", "n1"} {
		for _, app := range []string{"x", "y"} {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: app, Labels: map[string]string{"app": app}}}
			pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.1"}
			w.set(pod, false)
		}
	}
	policy := func(uid types.UID, spec string) *securityv1.PeerAuthentication {
		o := &securityv1.PeerAuthentication{ObjectMeta: metav1.ObjectMeta{Namespace: "n0", Name: "a", UID: uid}}
		if err := protojson.Unmarshal([]byte(spec), &o.Spec); err != nil {
			t.Fatal(err)
		}
		return o
	}
	unreadable := func(uid types.UID, spec string) *securityv1.PeerAuthentication {
		o := policy(uid, spec)
		o.Annotations = map[string]string{mesh.UnreadableAnnotation: "no such mode"}
		return o
	}
	otherRevision := policy("1", `{}`)
	otherRevision.Labels = map[string]string{"istio.io/rev": "canary"}
	const (
		forX     = `{"selector": {"matchLabels": {"app": "x"}}}`
		open     = mesh.PeerPermissive
		strict   = mesh.PeerStrict
		lastGood = "LastGoodInForce"
		restart  = "StrictInForce"
	)
	for _, step := range []struct {
		what    string
		set     *securityv1.PeerAuthentication // nil: deleted
		x, y    mesh.PeerMode
		inForce string // reason of the finding that says so
	}{
		{"never valid", unreadable("0", forX), strict, open, restart},
		{"never valid, for others", unreadable("0", `{"selector": {"matchLabels": {"app": "y"}}}`), open, strict, restart},
		{"never valid, for all", unreadable("0", `{}`), strict, strict, restart},
		{"its selector cannot be read", unreadable("0", `{"selector": {}}`), strict, strict, restart},
		{"its selector is refused", policy("0", `{"selector": {"matchLabels": {"app": "-"}}}`), strict, strict, restart},
		{"valid", policy("0", `{"mtls": {"mode": "STRICT"}}`), strict, strict, ""},
		{"unreadable", unreadable("0", forX), strict, strict, lastGood},
		{"refused", policy("0", `{"mtls": {"mode": "PERMISSIVE"}, "portLevelMtls": {"80": {}}}`), strict, strict, lastGood},
		{"no mode of the API", policy("0", `{"mtls": {"mode": 7}}`), strict, strict, lastGood},
		{"mended", policy("0", `{"mtls": {"mode": "DISABLE"}}`), mesh.PeerDisable, mesh.PeerDisable, ""},
		{"unreadable again", unreadable("0", forX), mesh.PeerDisable, mesh.PeerDisable, lastGood},
		{"made again meanwhile", unreadable("1", forX), strict, open, restart},
		{"for another revision", otherRevision, open, open, ""},
		{"back, and unreadable", unreadable("1", forX), strict, open, restart},
		{"deleted", nil, open, open, ""},
		{"made again", unreadable("2", forX), strict, open, restart},
	} {
		if step.set == nil {
			w.set(policy("1", `{}`), true)
		} else {
			w.set(step.set, false)
		}
		w.graph.Step()
		for pod, want := range map[string]mesh.PeerMode{"n0/x": step.x, "n0/y": step.y, "n1/x": open, "n1/y": open} {
			ns, name, _ := strings.Cut(pod, "/")
			p, ok := w.tables.Peerings.Lookup(mesh.WorkloadKey{Cluster: "c1", Kind: mesh.KindPod, Namespace: ns, Name: name})
			if !ok || p.At(80) != want {
				t.Errorf("%s: %s accepts %v, want %v", step.what, pod, p.At(80), want)
			}
		}
		var said []string
		for _, f := range w.Findings() {
			if f.Reason == lastGood || f.Reason == restart {
				said = append(said, f.About.String()+" "+f.Reason)
			}
		}
		var want []string
		if step.inForce != "" {
			want = []string{"PeerAuthentication n0/a " + step.inForce}
		}
		if !slices.Equal(said, want) {
			t.Errorf("%s: said %v, want %v", step.what, said, want)
		}
	}
}

// An object of which Envoy would refuse the message, and with it all that comes along, costs its own service only.
func TestBadObjectHurtsNoOther(t *testing.T) {
	c := newCity(20, 1)
	h := held{}
	h.apply(c.published)
	rule := &networkingv1.DestinationRule{}
	rule.Spec.Host = "s0"
	rule.Spec.TrafficPolicy = &v1alpha3.TrafficPolicy{Tls: &v1alpha3.ClientTLSSettings{
		Mode: v1alpha3.ClientTLSSettings_SIMPLE, Sni: strings.Repeat("x", 256), // Envoy takes 255 bytes
	}}
	group, name := groupOf(resolve.Layer{Mesh: "a"}), func(s string) string { return "outbound|80||" + s + ".n0.svc.cluster.local" }
	before := h[group][clusterType][name("s0")].Version
	c.DestinationRules.Set(mesh.ObjectKey{Cluster: "c1", Namespace: "n0", Name: "bad"}, rule)
	k := c.service(10)
	old, _ := c.Sources.Services.Lookup(k)
	good := old.DeepCopy()
	good.Annotations = map[string]string{"alpha.istio.io/canonical-serviceaccounts": "spiffe://x/ns/y/sa/z"}
	c.Sources.Services.Set(k, good)
	c.graph.Step()
	was := h[group][clusterType][name("s10")].Version
	h.apply(c.published)
	if now := h[group][clusterType][name("s0")].Version; now != before {
		t.Errorf("a cluster that Envoy refuses is sent as %s", now)
	}
	if now := h[group][clusterType][name("s10")].Version; now == was {
		t.Error("another service's change is not sent")
	}
	unmade := func() (out []string) {
		for _, f := range c.Findings() {
			out = append(out, f.About.String()+" "+f.Reason)
		}
		return out
	}
	if got := unmade(); !slices.Equal(got, []string{"Service n0/s0 NotMade"}) {
		t.Errorf("findings are %v", got)
	}
	c.DestinationRules.Delete(mesh.ObjectKey{Cluster: "c1", Namespace: "n0", Name: "bad"})
	c.graph.Step()
	if got := unmade(); len(got) > 0 {
		t.Errorf("findings are %v after the rule is gone", got)
	}
}

// A part of a composite that cannot be made leaves in it what was there: without it requests would go where unknown ones do, in
// plain text, and connections past what a policy says. All else goes on, and the finding names the service.
func TestUnmadePartStaysAsItWas(t *testing.T) {
	c := newRegion(10, 20, 1)
	h := held{}
	h.apply(c.published)
	group := groupOf(resolve.Layer{Mesh: "a", Cluster: "c1"})
	hosts := func() map[string][]string {
		m := &routev3.RouteConfiguration{}
		r := h[group][routeType]["80"]
		if err := proto.Unmarshal(r.Any().GetValue(), m); err != nil {
			t.Fatal(err)
		}
		out := map[string][]string{}
		for _, v := range m.GetVirtualHosts() {
			out[v.GetName()] = v.GetDomains()
		}
		return out
	}
	const name = "s0.n0.svc.cluster.local:80"
	before := hosts()[name]
	alias := func(name, to string) mesh.ObjectKey {
		k := mesh.ObjectKey{Cluster: "c1", Namespace: "n1", Name: name}
		c.Sources.Services.Set(k, &corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: to}})
		return k
	}
	bad := alias("no\nname", "s0.n0.svc.cluster.local") // what Envoy refuses as a domain
	alias("good", "s2.n2.svc.cluster.local")
	c.graph.Step()
	h.apply(c.published)
	if now := hosts()[name]; len(before) == 0 || !slices.Equal(before, now) {
		t.Errorf("the host has domains %q, had %q", now, before)
	}
	if now := hosts()["s2.n2.svc.cluster.local:80"]; !slices.Contains(now, "good.n1.svc.cluster.local") {
		t.Errorf("another service's change is not sent: %q", now)
	}
	var found []string
	for _, f := range c.Findings() {
		found = append(found, f.About.String()+" "+f.Reason)
	}
	if !slices.Equal(found, []string{"Service n0/s0 NotMade"}) {
		t.Errorf("findings are %q", found)
	}
	c.build(20)
	c.graph.Step()
	h.apply(c.published)
	if now := hosts(); !slices.Equal(before, now[name]) || len(now["s20.n0.svc.cluster.local:80"]) == 0 {
		t.Errorf("after another service has come, the host has domains %q", now[name])
	}
	c.Sources.Services.Delete(bad)
	c.graph.Step()
	if left := c.Findings(); len(left) > 0 {
		t.Errorf("findings are %v after it is gone", left)
	}
}

// What could not be made names its service, whatever part of it that is.
func TestUnmadeNamesItsService(t *testing.T) {
	c := newRegion(10, 20, 1)
	for _, k := range []any{
		resolve.Chain{Cluster: "outbound|80||s0.n0.svc.cluster.local"},
		resolve.Chain{Route: "s0.n0.svc.cluster.local:80", Sniffed: true},
		resolve.ClusterKey{Service: mesh.ServiceKey{Mesh: "a", Namespace: "n0", Host: "s0.n0.svc.cluster.local"}},
	} {
		if got := c.unmade(graph.Fault{Key: k, Err: errors.New("no")}).About.String(); got != "Service n0/s0" {
			t.Errorf("%+v is about %s", k, got)
		}
	}
	if got := c.unmade(graph.Fault{Key: resolve.Chain{Route: "80"}, Err: errors.New("no")}).About.String(); got != "Mesh a" {
		t.Errorf("the listener of all requests is about %s", got)
	}
}

// A composite that lacks a part is not made: where there was one of before, that stays.
func TestCompositeWaitsForItsParts(t *testing.T) {
	g, p := graph.New(graph.Options{}), &Pipeline{}
	parts := graph.NewSource[string, []xds.Fragment](g, "parts", nil)
	specs := graph.NewSource[string, resolve.HostSpec](g, "specs", nil)
	at := place{"group", "k"}
	once(p, g, "x", listenerType, specs.Table, func(string, resolve.HostSpec) place { return at },
		func(r *graph.Reader, s resolve.HostSpec) (xds.Resource, bool) {
			f, ok := gather(r, parts.Table, s.Domains)
			return xds.Raw(listenerType, "k", []byte(fmt.Sprint(len(f)))), ok
		})
	step := func(what string, want string, domains ...string) {
		t.Helper()
		if domains != nil {
			specs.Set("k", resolve.HostSpec{Domains: domains})
		}
		g.Step()
		r, ok := p.placed[0].table.Lookup(at)
		if ok != (want != "") || ok && string(r.Any().GetValue()) != want {
			t.Errorf("%s: there is %q, %v; want %q", what, r.Any().GetValue(), ok, want)
		}
	}
	one := make([]xds.Fragment, 1)
	step("before any part", "", "a")
	parts.Set("a", one)
	step("its part has come", "1")
	step("it wants one more", "1", "a", "b")
	step("and another", "1", "a", "b", "c")
	parts.Set("b", one)
	parts.Set("c", one)
	step("they have come", "3")
	parts.Delete("c")
	step("one is gone", "3")
	step("it is no longer wanted", "2", "a", "b")
}

// A workload whose inbound side cannot be made keeps the last one, with all of its listeners; one that never had any is told
// nothing, as it would have what it brings taken away. A mended one has the new side.
func TestUnmadeInboundSideStaysAsItWas(t *testing.T) {
	c := newCity(20, 1)
	h := held{}
	h.apply(c.published)
	k := mesh.WorkloadKey{Cluster: "c1", Kind: mesh.KindPod, Namespace: "n0", Name: "new"} // whose pod is yet to be read
	side := func() (xds.Group, string) {
		_, needs := c.Groups(k)
		return needs, fmt.Sprint(sortedNames(h[needs][listenerType]), sortedNames(h[needs][clusterType]))
	}
	c.Sources.Services.Set(mesh.ObjectKey{Cluster: "c1", Namespace: "n0", Name: "own"}, &corev1.Service{Spec: corev1.ServiceSpec{
		ClusterIP: "10.200.0.1", Selector: map[string]string{"app": "own"}, Ports: []corev1.ServicePort{{Name: "http", Port: 81, TargetPort: intstr.FromString("web")}},
	}})
	says := func(port uint32) {
		c.presence.source.Set(k, resolve.Client{Workload: k, Labels: map[string]string{"app": "own"}, Ports: map[string]uint32{"web": port}})
		c.graph.Step()
		h.apply(c.published)
	}
	says(8080)
	group, before := side()
	const bad = 70_000 // which Envoy refuses as a port
	says(bad)
	if now, is := side(); now != group || is != before {
		t.Errorf("the side is %s with %s, was %s with %s", now, is, group, before)
	}
	c.presence.source.Delete(k)
	c.graph.Step()
	h.apply(c.published)
	says(bad)
	if groups, needs := c.Groups(k); len(groups) > 0 || needs != toCome {
		t.Errorf("a client whose side was never made holds %v, and needs %s", groups, needs)
	}
	if f := c.Findings(); !slices.ContainsFunc(f, func(f mesh.Finding) bool { return f.About.String() == "Pod n0/new" && f.Reason == "NotMade" }) {
		t.Errorf("findings are %v", f)
	}
	says(9090)
	if now, is := side(); now == group || is != "[virtualInbound virtualOutbound] [InboundPassthroughCluster inbound|9090||]" {
		t.Errorf("the mended side is %s with %s", now, is)
	}
	if f := c.Findings(); len(f) > 0 {
		t.Errorf("findings are %v after it is mended", f)
	}
}

// A port whose only host could never be made has a route all the same, of what goes for unknown hosts: its listener refers to it,
// and takes all connections to the port, whoever they are for.
func TestPortOfUnmadeHostHasRoute(t *testing.T) {
	c := newCity(20, 1)
	c.Sources.Services.Set(mesh.ObjectKey{Cluster: "c1", Namespace: "n0", Name: "new"}, &corev1.Service{Spec: corev1.ServiceSpec{
		ClusterIP: "10.200.0.1", Ports: []corev1.ServicePort{{Name: "http", Port: 8123}},
	}})
	c.Sources.Services.Set(mesh.ObjectKey{Cluster: "c1", Namespace: "n1", Name: "no\nname"}, &corev1.Service{Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeExternalName, ExternalName: "new.n0.svc.cluster.local", // what Envoy refuses as a domain
	}})
	c.graph.Step()
	h := held{}
	h.apply(c.published)
	listener, route := false, false
	for _, group := range h {
		listener = listener || group[listenerType]["0.0.0.0_8123"].Version != ""
		route = route || group[routeType]["8123"].Version != ""
	}
	if !listener || !route {
		t.Errorf("the port has a listener: %v, and a route: %v", listener, route)
	}
}

// Whatever a round does meanwhile, a client of a pod that has its own network needs an inbound side: its groups are never put
// together of two revisions.
func TestGroupsAreOfOneRevision(t *testing.T) {
	w, h := newWorld("a"), history{}
	h.join(w, "n0")
	k := w.connect("n0", "x")
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "n0", Name: "x"}, Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.1"}}
	ended := make(chan struct{})
	var asked, wrong int
	go func() {
		defer close(ended)
		for ; asked < 100_000; asked++ {
			if _, needs := w.Groups(k); needs == "" {
				wrong++
				return
			}
		}
	}()
	for i := 0; ; i++ {
		w.set(pod, i%2 == 1)
		w.graph.Step()
		select {
		case <-ended:
			if wrong > 0 {
				t.Error("a pod with its own network is said to have no inbound side")
			}
			return
		default:
		}
	}
}
