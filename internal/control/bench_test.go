package control

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/xds"
)

// city is a mesh of equal services in ten namespaces, each with the same number of ready pods.
type city struct {
	*Pipeline
	graph     *graph.Graph
	pods      int // of a service
	published []xds.Change
}

func newCity(services, pods int) *city {
	g := graph.New(graph.Options{})
	c := &city{graph: g, pods: pods, Pipeline: NewPipeline(g, Options{Mesh: "a", Namespace: "istio-system", Cluster: "c1"})}
	g.OnPublish(func(graph.Rev) { c.published = c.Changes() })
	for i := range 10 {
		ns := fmt.Sprintf("n%d", i)
		c.Memberships.Set(mesh.ObjectKey{Cluster: "c1", Namespace: "istio-system", Name: ns}, &heddlev1alpha1.Membership{
			Spec: heddlev1alpha1.MembershipSpec{Namespace: ns, Phase: heddlev1alpha1.Member},
		})
	}
	for s := range services {
		k := c.service(s)
		labels := map[string]string{"app": k.Name, "security.istio.io/tlsMode": "istio"}
		c.Sources.Services.Set(k, &corev1.Service{Spec: corev1.ServiceSpec{
			ClusterIP: fmt.Sprintf("10.96.%d.%d", s/250, s%250), Selector: map[string]string{"app": k.Name},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)}},
		}})
		for p := range pods {
			c.Pods.Set(c.pod(s, p), &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{ServiceAccountName: k.Name},
				Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: podIP(s, p)},
			})
		}
		c.endpoints(s, true)
	}
	g.Step()
	return c
}

func (c *city) service(s int) mesh.ObjectKey {
	return mesh.ObjectKey{Cluster: "c1", Namespace: fmt.Sprintf("n%d", s%10), Name: fmt.Sprintf("s%d", s)}
}

func (c *city) pod(s, p int) mesh.ObjectKey {
	k := c.service(s)
	k.Name = fmt.Sprintf("%s-%d", k.Name, p)
	return k
}

func podIP(s, p int) string { return fmt.Sprintf("10.%d.%d.%d", s/250, s%250, p) }

// endpoints writes the slice of a service; its first pod is ready or not.
func (c *city) endpoints(s int, first bool) {
	k, name, port := c.service(s), "http", int32(8080)
	o := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{discoveryv1.LabelServiceName: k.Name}}}
	o.Ports = []discoveryv1.EndpointPort{{Name: &name, Port: &port}}
	for p := range c.pods {
		ready := p > 0 || first
		o.Endpoints = append(o.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{podIP(s, p)}, Conditions: discoveryv1.EndpointConditions{Ready: &ready},
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: c.pod(s, p).Name},
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
