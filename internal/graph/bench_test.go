package graph

import (
	"fmt"
	"testing"
)

// fleet is a small control plane: services and pods, endpoints found by service, one assignment and one cluster a service.
type fleet struct {
	g           *Graph
	services    *Source[string, int]
	pods        *Source[podKey, pod]
	assignments *Table[string, int]
}

type podKey struct{ namespace, name string }

type pod struct {
	service, node string
	ready         bool
}

func newFleet(services, pods int) *fleet {
	f := &fleet{g: New(Options{})}
	f.services = NewSource[string, int](f.g, "services", func(a, b int) bool { return a == b })
	f.pods = NewSource[podKey, pod](f.g, "pods", func(a, b pod) bool { return a == b })
	byService := NewIndex(f.pods.Table, "pods/service", func(_ podKey, p pod) []string { return []string{p.service} })
	same := TableOptions[int]{Equal: func(a, b int) bool { return a == b }}
	entries := Derive(f.g, "entries", f.services.Table, same, func(_ *Reader, k string, port int, emit func(string, int)) {
		emit("outbound|"+k, port)
	})
	f.assignments = Derive(f.g, "assignments", entries, same, func(r *Reader, k string, _ int, emit func(string, int)) {
		ready := 0
		for _, row := range Find(r, byService, k[len("outbound|"):]) {
			if row.Val.ready {
				ready++
			}
		}
		emit(k, ready)
	})
	Derive(f.g, "clusters", entries, same, func(_ *Reader, k string, port int, emit func(string, int)) { emit(k, port) })
	f.g.Batch(func() {
		for i := range services {
			f.services.Set(fmt.Sprintf("s%d", i), 80)
		}
		for i := range pods {
			k, p := f.pod(i, services)
			f.pods.Set(k, p)
		}
	})
	return f
}

func (f *fleet) pod(i, services int) (podKey, pod) {
	return podKey{fmt.Sprintf("ns%d", i%100), fmt.Sprintf("pod-%d", i)}, pod{fmt.Sprintf("s%d", i%services), fmt.Sprintf("n%d", i%50), true}
}

func sizes(b *testing.B, f func(b *testing.B, services, pods int)) {
	for _, s := range [][2]int{{100, 500}, {1000, 5000}, {10000, 50000}} {
		b.Run(fmt.Sprintf("services=%d/pods=%d", s[0], s[1]), func(b *testing.B) { f(b, s[0], s[1]) })
	}
}

// BenchmarkFlip is one pod's readiness: one assignment is evaluated, whatever the size.
func BenchmarkFlip(b *testing.B) {
	sizes(b, func(b *testing.B, services, pods int) {
		f := newFleet(services, pods)
		f.g.Step()
		k, p := f.pod(pods/2, services)
		b.ReportAllocs()
		for b.Loop() {
			p.ready = !p.ready
			f.pods.Set(k, p)
			f.g.Step()
			if len(f.assignments.Changed()) != 1 {
				b.Fatal("the flip did not arrive")
			}
		}
	})
}

// BenchmarkColdStart is everything in the first round.
func BenchmarkColdStart(b *testing.B) {
	sizes(b, func(b *testing.B, services, pods int) {
		b.ReportAllocs()
		for b.Loop() {
			b.StopTimer()
			f := newFleet(services, pods)
			b.StartTimer()
			f.g.Step()
		}
	})
}

// BenchmarkPolicies is 1,000 pod events in one round below policies that each read every pod (istio/istio#60366).
func BenchmarkPolicies(b *testing.B) {
	const policies, pods, events = 500, 10000, 1000
	b.Run(fmt.Sprintf("policies=%d/pods=%d/events=%d", policies, pods, events), func(b *testing.B) {
		g := New(Options{})
		pol := NewSource[int, int](g, "policies", nil)
		pod := NewSource[int, int](g, "pods", func(a, b int) bool { return a == b })
		all := NewIndex(pod.Table, "pods/all", func(int, int) []struct{} { return []struct{}{{}} })
		sums := Derive(g, "matched", pol.Table, TableOptions[int]{}, func(r *Reader, k, _ int, emit func(int, int)) {
			sum := 0
			for _, row := range Find(r, all, struct{}{}) {
				sum += row.Val ^ k
			}
			emit(k, sum)
		})
		for i := range policies {
			pol.Set(i, i)
		}
		for i := range pods {
			pod.Set(i, 0)
		}
		g.Step()
		n := 0
		for b.Loop() {
			n++
			for i := range events {
				pod.Set(i, n)
			}
			g.Step()
			if len(sums.Changed()) != policies {
				b.Fatal("not every policy saw the pods")
			}
		}
	})
}

func BenchmarkLookup(b *testing.B) {
	sizes(b, func(b *testing.B, services, pods int) {
		f := newFleet(services, pods)
		f.g.Step()
		k, _ := f.pod(pods/2, services)
		for b.Loop() {
			if _, ok := f.pods.Lookup(k); !ok {
				b.Fatal("absent")
			}
		}
	})
}
