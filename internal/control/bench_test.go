package control

import (
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

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

// city is a mesh of equal services spread over namespaces, each with the same number of ready pods.
type city struct {
	*Pipeline
	graph      *graph.Graph
	namespaces int
	pods       int // of a service
	published  []xds.Change
}

// newCity has ten namespaces, in each of which clients are connected.
func newCity(services, pods int) *city {
	c := newRegion(10, services, pods)
	for s := range min(services, 10) {
		c.connect(s, 0)
	}
	c.graph.Step()
	return c
}

// newRegion is a city in which nobody is connected.
func newRegion(namespaces, services, pods int) *city {
	g := graph.New(graph.Options{})
	c := &city{graph: g, namespaces: namespaces, pods: pods, Pipeline: NewPipeline(g, Options{Mesh: "a", Namespace: "istio-system", Cluster: "c1"})}
	g.OnPublish(func(graph.Rev) { c.published = c.Changes() })
	c.Roots.Set("a", testRoot())
	for i := range namespaces {
		ns := fmt.Sprintf("n%d", i)
		c.Trusted.Set(mesh.ObjectKey{Cluster: "c1", Name: ns}, struct{}{})
		c.Memberships.Set(mesh.ObjectKey{Cluster: "c1", Namespace: "istio-system", Name: ns}, &heddlev1alpha1.Membership{
			Spec: heddlev1alpha1.MembershipSpec{Namespace: ns, Phase: heddlev1alpha1.Member},
		})
	}
	for s := range services {
		c.build(s)
	}
	g.Step()
	return c
}

// build stages a service and its pods.
func (c *city) build(s int) {
	k := c.service(s)
	labels := map[string]string{"app": k.Name, "security.istio.io/tlsMode": "istio"}
	c.Sources.Services.Set(k, &corev1.Service{Spec: corev1.ServiceSpec{
		ClusterIP: fmt.Sprintf("10.%d.%d.%d", 96+s/62500, s/250%250, s%250), Selector: map[string]string{"app": k.Name},
		Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)}},
	}})
	for p := range c.pods {
		c.Pods.Set(c.pod(s, p), &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Labels: labels},
			Spec:       corev1.PodSpec{ServiceAccountName: k.Name, NodeName: machine(p)},
			Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: podIP(s, p)},
		})
	}
	c.endpoints(s, true)
}

// connect has the proxy of a pod count as connected.
func (c *city) connect(s, p int) {
	pod := c.pod(s, p)
	k := mesh.WorkloadKey{Cluster: pod.Cluster, Kind: mesh.KindPod, Namespace: pod.Namespace, Name: pod.Name}
	c.presence.source.Set(k, resolve.Client{Workload: k})
}

func (c *city) service(s int) mesh.ObjectKey {
	return mesh.ObjectKey{Cluster: "c1", Namespace: fmt.Sprintf("n%d", s%c.namespaces), Name: fmt.Sprintf("s%d", s)}
}

func (c *city) pod(s, p int) mesh.ObjectKey {
	k := c.service(s)
	k.Name = fmt.Sprintf("%s-%d", k.Name, p)
	return k
}

// machine is the node on which the pods of one number run.
func machine(p int) string { return fmt.Sprintf("k%d", p) }

func podIP(s, p int) string { return fmt.Sprintf("10.%d.%d.%d", s/250, s%250, p) }

// endpoints writes the slice of a service; its first pod is ready or not.
func (c *city) endpoints(s int, first bool) {
	k, name, port := c.service(s), "http", int32(8080)
	o := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{discoveryv1.LabelServiceName: k.Name}}}
	o.Ports = []discoveryv1.EndpointPort{{Name: &name, Port: &port}}
	for p := range c.pods {
		ready, node := p > 0 || first, machine(p)
		o.Endpoints = append(o.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{podIP(s, p)}, Conditions: discoveryv1.EndpointConditions{Ready: &ready},
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: c.pod(s, p).Name}, NodeName: &node,
		})
	}
	c.EndpointSlices.Set(k, o)
}

// rendered returns how many messages, and parts of composites, were made so far, by table.
func (c *city) rendered() map[string]uint64 {
	out := map[string]uint64{}
	for _, m := range c.graph.Meters() {
		if strings.HasPrefix(m.Name, "rendered.") || strings.HasPrefix(m.Name, "composed.") {
			out[m.Name] = m.Evaluated
		}
	}
	return out
}

// What changes is rendered once, whatever else there is.
func TestRenderedOnce(t *testing.T) {
	c := newCity(40, 3)
	for s := range 40 {
		for p := range 3 {
			c.connect(s, p)
		}
	}
	c.graph.Step()
	for name, n := range c.rendered() {
		if strings.HasPrefix(name, "composed.inbound") && n != 1 {
			t.Errorf("120 equal workloads have %d inbound listeners", n)
		}
	}
	for _, step := range []struct {
		what   string
		change func()
		want   map[string]uint64
	}{
		{"a pod is no longer ready", func() { c.endpoints(7, false) }, map[string]uint64{"rendered.assignments": 1}},
		{"it is ready again", func() { c.endpoints(7, true) }, map[string]uint64{"rendered.assignments": 1}},
		{"a service has another address", func() {
			k := c.service(7)
			old, _ := c.Sources.Services.Lookup(k)
			o := old.DeepCopy()
			o.Spec.ClusterIP = "10.97.0.1"
			c.Sources.Services.Set(k, o)
		}, map[string]uint64{
			"rendered.hosts":  2,      // its virtual host for everybody, and for its own namespace
			"composed.routes": 1 + 10, // put together of parts that are there
		}},
	} {
		before := c.rendered()
		step.change()
		c.graph.Step()
		for name, n := range c.rendered() {
			if got := n - before[name]; got != step.want[name] {
				t.Errorf("%s: %s made %d, want %d", step.what, name, got, step.want[name])
			}
		}
	}
}

// evaluated returns how many rows were computed so far, of all tables.
func (c *city) evaluated() map[string]uint64 {
	out := map[string]uint64{}
	for _, m := range c.graph.Meters() {
		out[m.Name] = m.Evaluated
	}
	return out
}

// read returns how many rows were read so far to compute others.
func (c *city) read() (n uint64) {
	for _, m := range c.graph.Meters() {
		n += m.Read
	}
	return n
}

// work is what a change costs in rows computed, by table, and resources published.
func (c *city) work(change func()) (rows map[string]uint64, published int) {
	before := c.evaluated()
	c.published = nil
	change()
	c.graph.Step()
	rows = c.evaluated()
	for name, n := range rows {
		if rows[name] = n - before[name]; rows[name] == 0 {
			delete(rows, name)
		}
	}
	for _, ch := range c.published {
		published += len(ch.Set) + len(ch.Remove)
	}
	return rows, published
}

// sameWork fails if one change costs more in one city than in another.
func sameWork(t *testing.T, what string, small, large *city, change func(c *city)) {
	t.Helper()
	few, published := small.work(func() { change(small) })
	many, again := large.work(func() { change(large) })
	if !maps.Equal(few, many) {
		t.Errorf("%s: %v rows are computed, and %v in the larger mesh", what, few, many)
	}
	if published != again || published == 0 {
		t.Errorf("%s: %d resources are published, and %d in the larger mesh", what, published, again)
	}
}

// Namespaces that nobody is connected from cost nothing: neither their own services' names, nor what is exported to them.
func TestOnlyScopesInUse(t *testing.T) {
	small, large := newRegion(5, 50, 1), newRegion(50, 50, 1)
	for _, c := range []*city{small, large} {
		for s := range 5 {
			c.connect(s, 0)
		}
		c.graph.Step()
	}
	everywhere := func(c *city) (out []string) {
		for i := range 1000 {
			out = append(out, fmt.Sprintf("n%d", 5+i)) // these exist in the larger mesh, and nobody is connected there
		}
		return out
	}
	sameWork(t, "a new service", small, large, func(c *city) { c.build(1000) })
	sameWork(t, "a name exported to many", small, large, func(c *city) {
		o := &corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "s1.n1.svc.cluster.local"}}
		o.Annotations = map[string]string{"networking.istio.io/exportTo": "n1," + strings.Join(everywhere(c), ",")}
		c.Sources.Services.Set(mesh.ObjectKey{Cluster: "c1", Namespace: "n1", Name: "alias"}, o)
	})
	sameWork(t, "a service exported to many", small, large, func(c *city) {
		k := c.service(1)
		old, _ := c.Sources.Services.Lookup(k)
		o := old.DeepCopy()
		o.Annotations = map[string]string{"networking.istio.io/exportTo": "n1," + strings.Join(everywhere(c), ",")}
		c.Sources.Services.Set(k, o)
	})
}

// A name at the end of a long chain of names concerns the service that they all mean, and none of them.
func TestChainOfNamesTouchesTheSame(t *testing.T) {
	add := func(c *city, i int) {
		to := "s1.n1.svc.cluster.local"
		if i > 0 {
			to = fmt.Sprintf("a%d.n1.svc.cluster.local", i-1)
		}
		c.Sources.Services.Set(mesh.ObjectKey{Cluster: "c1", Namespace: "n1", Name: fmt.Sprintf("a%d", i)},
			&corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: to}})
	}
	short, long := newRegion(5, 10, 1), newRegion(5, 10, 1)
	for c, n := range map[*city]int{short: 2, long: 200} {
		c.connect(1, 0)
		for i := range n {
			add(c, i)
		}
		c.graph.Step()
	}
	sameWork(t, "a name", short, long, func(c *city) {
		if c == short {
			add(c, 2)
		} else {
			add(c, 200)
		}
	})
}

// What a rule is exported to costs by the namespaces in which somebody is connected, not by how many it names.
func TestRuleCostsByConnected(t *testing.T) {
	few, many := newCity(200, 1), newCity(200, 1)
	rule := func(names int) func(*city) {
		return func(c *city) {
			r := &networkingv1.DestinationRule{}
			r.Spec.Host = "*"
			r.Spec.TrafficPolicy = &v1alpha3.TrafficPolicy{Tls: &v1alpha3.ClientTLSSettings{Mode: v1alpha3.ClientTLSSettings_SIMPLE}}
			for i := range names {
				r.Spec.ExportTo = append(r.Spec.ExportTo, fmt.Sprintf("x%d", i))
			}
			c.DestinationRules.Set(mesh.ObjectKey{Cluster: "c1", Namespace: "n0", Name: "wide"}, r)
		}
	}
	sameWork(t, "a rule", few, many, func(c *city) {
		if c == few {
			rule(1)(c)
		} else {
			rule(1000)(c)
		}
	})
}

// A rule for part of a label that no service ends with concerns none of them, however many such rules there are: who may write a
// rule in one namespace must not keep the plane busy with all others.
func TestRuleForPartOfALabelConcernsWhomItFits(t *testing.T) {
	c := newCity(200, 1)
	rule := func(name, host string) {
		r := &networkingv1.DestinationRule{}
		r.Spec.Host = host
		r.Spec.TrafficPolicy = &v1alpha3.TrafficPolicy{Tls: &v1alpha3.ClientTLSSettings{Mode: v1alpha3.ClientTLSSettings_SIMPLE}}
		c.DestinationRules.Set(mesh.ObjectKey{Cluster: "c1", Namespace: "n0", Name: name}, r)
	}
	rule("first", "*x00.n1.svc.cluster.local")
	c.graph.Step()
	if rows, _ := c.work(func() {
		for i := range 50 {
			rule(fmt.Sprintf("r%d", i), fmt.Sprintf("*y%02d.n1.svc.cluster.local", i))
		}
	}); rows["services.seen"] != 0 {
		t.Errorf("%d services are looked at for rules that fit none", rows["services.seen"])
	}
	// Three letters before the dot, as those above: of services of n1, three end so.
	if rows, _ := c.work(func() { rule("fits", "*s11.n1.svc.cluster.local") }); rows["services.seen"] == 0 || rows["services.seen"] > 3 {
		t.Errorf("%d services are looked at for a rule that fits one", rows["services.seen"])
	}
}

// protect has the pods of a service be told by policy i what they accept.
func (c *city) protect(s, i int, mode v1beta1.PeerAuthentication_MutualTLS_Mode) {
	k := c.service(s)
	o := &securityv1.PeerAuthentication{}
	o.Spec.Selector = &typev1beta1.WorkloadSelector{MatchLabels: map[string]string{"app": k.Name}}
	o.Spec.Mtls = &v1beta1.PeerAuthentication_MutualTLS{Mode: mode}
	k.Name = fmt.Sprintf("p%04d", i) // equally old, so the first by name counts
	c.PeerAuthentications.Set(k, o)
}

// An event of a pod, or of a policy for it, touches and reads as many rows among 5,000 pods and policies as among 100.
func TestPodEventTouchesTheSame(t *testing.T) {
	small, large := newRegion(10, 20, 5), newRegion(10, 1000, 5)
	for services, c := range map[int]*city{20: small, 1000: large} {
		c.connect(7, 0)
		for i := range services * c.pods {
			c.protect(i%services, i, v1beta1.PeerAuthentication_MutualTLS_STRICT)
		}
		c.graph.Step()
	}
	edit := func(change func(*corev1.Pod)) func(*city) {
		return func(c *city) {
			old, _ := c.Pods.Lookup(c.pod(7, 0))
			o := old.DeepCopy()
			change(o)
			c.Pods.Set(c.pod(7, 0), o)
		}
	}
	for _, event := range []struct {
		what  string
		stage func(*city)
	}{
		{"a policy for it", func(c *city) { c.protect(7, 7, v1beta1.PeerAuthentication_MutualTLS_DISABLE) }},
		{"other labels of a pod", edit(func(o *corev1.Pod) { o.Labels = map[string]string{"app": "s7", "version": "v2"} })},
		{"a pod that ends", edit(func(o *corev1.Pod) { o.DeletionTimestamp = &metav1.Time{Time: time.Unix(1000, 0)} })},
		{"a pod that goes", func(c *city) { c.Pods.Delete(c.pod(7, 0)) }},
		{"a pod that comes", func(c *city) { c.build(7) }},
	} {
		few, many := small.read(), large.read()
		sameWork(t, event.what, small, large, event.stage)
		if few, many = small.read()-few, large.read()-many; few != many {
			t.Errorf("%s: %d rows are read, and %d in the larger mesh", event.what, few, many)
		}
	}
}

// An assignment is rendered once for all who are sent the same endpoints, whoever has rules of their own.
func TestAssignmentsByContent(t *testing.T) {
	c := newCity(20, 3)
	for i := range 10 {
		r := &networkingv1.DestinationRule{}
		r.Spec.Host = "s7.n7.svc.cluster.local"
		r.Spec.TrafficPolicy = &v1alpha3.TrafficPolicy{Tls: &v1alpha3.ClientTLSSettings{Mode: v1alpha3.ClientTLSSettings_ISTIO_MUTUAL}}
		c.DestinationRules.Set(mesh.ObjectKey{Cluster: "c1", Namespace: fmt.Sprintf("n%d", i), Name: "x"}, r)
	}
	c.graph.Step()
	before := c.rendered()
	_, published := c.work(func() { c.endpoints(7, false) })
	if n := c.rendered()["rendered.assignments"] - before["rendered.assignments"]; n != 1 {
		t.Errorf("%d assignments are rendered for one pod's readiness, want 1", n)
	}
	if published != 10 {
		t.Errorf("%d are published, want one for everybody, and one for each of nine namespaces with a rule of its own", published)
	}
}

// keep has clients of a service use endpoints on their own nodes only.
func (c *city) keep(s int, exportTo string) {
	old, _ := c.Sources.Services.Lookup(c.service(s))
	o, local := old.DeepCopy(), corev1.ServiceInternalTrafficPolicyLocal
	o.Spec.InternalTrafficPolicy = &local
	o.Annotations = map[string]string{"networking.istio.io/exportTo": exportTo}
	c.Sources.Services.Set(c.service(s), o)
}

// nodes returns the nodes that clients of a namespace are told apart by.
func (c *city) nodes(namespace string) (out []string) {
	for _, row := range c.tables.Layers.All() {
		if row.Key.Namespace == namespace && row.Key.Node != "" {
			out = append(out, row.Key.Node)
		}
	}
	slices.Sort(out)
	return out
}

// A service that is kept to its clients' nodes costs an assignment for each node that has connected clients, of which an
// endpoint's readiness concerns one. Other services, and clients who do not see it, stay as they are.
func TestLocalCostsByNodesInUse(t *testing.T) {
	c, plain := newRegion(10, 40, 3), newRegion(10, 40, 3)
	for _, city := range []*city{c, plain} {
		for s := range 10 {
			city.connect(s, 0)
			city.connect(s, 1)
		}
		city.graph.Step()
	}
	count := func(what string, rendered, published int, change func()) {
		t.Helper()
		before := c.rendered()["rendered.assignments"]
		if _, got := c.work(change); got != published {
			t.Errorf("%s: %d resources are published, want %d", what, got, published)
		}
		if got := int(c.rendered()["rendered.assignments"] - before); got != rendered {
			t.Errorf("%s: %d assignments are rendered, want %d", what, got, rendered)
		}
	}
	if got := c.nodes("n7"); len(got) > 0 {
		t.Errorf("clients are told apart by nodes %v, for which nobody asks", got)
	}
	// Not its namespace's short names, nor its cluster: all three see what they saw. The shared assignment is for unknown nodes.
	count("a service is kept to nodes", 3, 3, func() { c.keep(7, "*") })
	if got, want := c.nodes("n3"), []string{"k0", "k1"}; !slices.Equal(got, want) {
		t.Errorf("clients are told apart by nodes %v, want %v", got, want)
	}
	count("an endpoint on a node is not ready", 1, 1, func() { c.endpoints(7, false) })
	if rows, _ := c.work(func() { c.endpoints(7, true) }); rows["assignments"] != 1 {
		t.Errorf("%d assignments are looked at, want that of the node", rows["assignments"])
	}
	count("a third node has a client", 1, 1, func() { c.connect(3, 2) })
	sameWork(t, "a pod of a service that asks for nothing", plain, c, func(c *city) { c.endpoints(8, false) })
	sameWork(t, "a service that asks for nothing", plain, c, func(c *city) { c.build(40) })
	plain.keep(7, ".")
	plain.graph.Step()
	if mine, others := plain.nodes("n7"), plain.nodes("n3"); !slices.Equal(mine, []string{"k0", "k1"}) || len(others) > 0 {
		t.Errorf("of a service of namespace n7, its clients know nodes %v, others %v", mine, others)
	}
}

// newCountry is a mesh of many namespaces, in five of which clients are connected; also what it holds of the heap.
func newCountry() (c *city, held uint64) {
	empty := heap()
	c = newRegion(400, 4000, 1)
	for s := range 5 {
		c.connect(s, 0)
	}
	c.graph.Step()
	return c, heap() - empty
}

// A large mesh is held in little memory, its objects included, and a service more is no more work than in a small one.
func TestNewServiceInLargeMesh(t *testing.T) {
	small := newRegion(40, 400, 1)
	for s := range 5 {
		small.connect(s, 0)
	}
	small.graph.Step()
	large, held := newCountry()
	if most := uint64(80 << 20); held > most {
		t.Errorf("4,000 services with a pod each take %d bytes of heap, %d for each, want %d at most", held, held/4000, most)
	}
	sameWork(t, "a service", small, large, func(c *city) { c.build(4000) })
}

// BenchmarkNewService is one service more.
func BenchmarkNewService(b *testing.B) {
	b.Run("namespaces=400/services=4000/connected=5", func(b *testing.B) {
		c, held := newCountry()
		b.ReportAllocs()
		n, began := 4000, cpu(b)
		for b.Loop() {
			c.build(n)
			c.graph.Step()
			n++
		}
		b.ReportMetric(float64((cpu(b)-began).Milliseconds())/float64(b.N), "cpu-ms/op")
		b.ReportMetric(float64(held>>20), "heap-MB")
		runtime.KeepAlive(c)
	})
}

// heap is what is in use after a collection, and one more for what pools have kept from the first.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// cpu is the processor time that this process has used.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkReadiness is one pod's readiness: from the object to what a server publishes.
func BenchmarkReadiness(b *testing.B) {
	for _, size := range []struct{ services, pods int }{{100, 5}, {1000, 5}} {
		b.Run(fmt.Sprintf("services=%d/pods=%d", size.services, size.services*size.pods), func(b *testing.B) {
			c := newCity(size.services, size.pods)
			before, ready := c.rendered(), false
			b.ReportAllocs()
			for b.Loop() {
				c.endpoints(7, ready)
				ready = !ready
				c.graph.Step()
				if len(c.published) != 1 || len(c.published[0].Set) != 1 {
					b.Fatalf("published %v", c.published)
				}
			}
			var total uint64
			for name, n := range c.rendered() {
				total += n - before[name]
			}
			b.ReportMetric(float64(total)/float64(b.N), "rendered/op")
		})
	}
}

// BenchmarkStart is a mesh from its objects to all that its clients can hold.
func BenchmarkStart(b *testing.B) {
	b.Run("services=1000/pods=5000", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			newCity(1000, 5)
		}
	})
}
