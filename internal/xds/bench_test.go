package xds

import (
	"context"
	"fmt"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// benchClient returns a client of one group that holds and has accepted n clusters.
func benchClient(n int) (*machine, Change) {
	m := newMachine(deltaForm, 1)
	ch := Change{Type: "cds"}
	for i := range n {
		name := fmt.Sprint("cluster-", i)
		ch.Set = append(ch.Set, must(Seal("cds", name, "", route(name, "host"))))
	}
	m.publish(0, ch)
	_ = m.request(&request{typeURL: "cds"}, m.now)
	acceptAll(m)
	return m, ch
}

func acceptAll(m *machine) (bytes int) {
	for {
		due := m.step().send
		if len(due) == 0 {
			return bytes
		}
		for _, r := range due {
			bytes += m.form.encode(r).Len()
			_ = m.request(&request{typeURL: r.typeURL, nonce: r.nonce}, m.now)
		}
	}
}

// BenchmarkChange: one resource changes; what a stream does until the answer is taken.
func BenchmarkChange(b *testing.B) {
	for _, n := range []int{10, 1000, 10_000} {
		b.Run(fmt.Sprintf("resources=%d", n), func(b *testing.B) {
			m, ch := benchClient(n)
			versions := [2]Resource{ch.Set[0], must(Seal("cds", ch.Set[0].Name, "", route(ch.Set[0].Name, "other")))}
			for i := 0; b.Loop(); i++ {
				m.publish(0, Change{Type: "cds", Set: versions[i%2 : i%2+1]})
				acceptAll(m)
			}
		})
	}
}

// BenchmarkConnect: a client asks for everything.
func BenchmarkConnect(b *testing.B) {
	for _, n := range []int{10, 1000, 10_000} {
		b.Run(fmt.Sprintf("resources=%d", n), func(b *testing.B) {
			m, _ := benchClient(n)
			for b.Loop() {
				m.client = newClient(deltaForm, testRules, m.client.names)
				_ = m.request(&request{typeURL: "cds"}, m.now)
				b.SetBytes(int64(acceptAll(m)))
			}
		})
	}
}

// BenchmarkConnectNames: a client asks for the assignment of each cluster by name, as others do, from its first byte to its answer.
func BenchmarkConnectNames(b *testing.B) {
	for _, n := range []int{1000, 10_000} {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			ctx, cancel := context.WithCancel(b.Context())
			c := newCrowd(ctx, n)
			c.connect(1)
			b.ReportAllocs()
			for b.Loop() {
				one, end := context.WithCancel(ctx)
				c.ctx = one
				c.client()
				end()
			}
			cancel()
			c.running.Wait()
		})
	}
}

// BenchmarkClientHeap: what a client takes that has accepted all, without its connection.
func BenchmarkClientHeap(b *testing.B) {
	const clients = 50
	for _, n := range []int{1000, 10_000} {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			for b.Loop() {
				ctx, cancel := context.WithCancel(b.Context())
				c := newCrowd(ctx, n)
				c.connect(clients)
				before, stacks, _ := heap()
				c.connect(clients)
				after, stacksAfter, _ := heap()
				b.ReportMetric((float64(after)-float64(before))/clients, "heap-B/client")
				b.ReportMetric((float64(stacksAfter)-float64(stacks))/clients, "stack-B/client")
				cancel()
				c.running.Wait()
			}
		})
	}
}

// BenchmarkFlip: one assignment changes; its delivery to all clients, and their acceptance.
func BenchmarkFlip(b *testing.B) {
	const clients = 100
	for _, n := range []int{1000, 10_000} {
		b.Run(fmt.Sprintf("services=%d/clients=%d", n, clients), func(b *testing.B) {
			c, versions, end := benchCrowd(b, n, clients)
			_, _, before := heap()
			i := uint64(0)
			for b.Loop() {
				i++
				c.flip(i, versions[i%2])
			}
			_, _, after := heap()
			b.ReportMetric(float64(after-before)/float64(i)/clients, "allocs/flip/client")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(i)/clients, "ns/flip/client")
			end()
		})
	}
}

// BenchmarkPublish: what one change takes of the graph's goroutine, with clients that take nothing.
func BenchmarkPublish(b *testing.B) {
	const clients = 100
	for _, n := range []int{1000, 10_000} {
		b.Run(fmt.Sprintf("services=%d/clients=%d", n, clients), func(b *testing.B) {
			c, versions, end := benchCrowd(b, n, clients)
			for i := uint64(0); b.Loop(); i++ {
				c.Publish(i, []Change{{Group: "all", Type: assignmentURL, Set: versions[i%2 : i%2+1]}})
			}
			end()
		})
	}
}

func benchCrowd(b *testing.B, services, clients int) (c *crowd, versions [2]Resource, end func()) {
	ctx, cancel := context.WithCancel(b.Context())
	c = newCrowd(ctx, services)
	c.connect(clients)
	for i := range versions {
		versions[i] = must(Seal(assignmentURL, c.names[7], "", route(c.names[7], fmt.Sprint("flip", i))))
	}
	return c, versions, func() { cancel(); c.running.Wait() }
}

// BenchmarkAnswer: reading an acceptance.
func BenchmarkAnswer(b *testing.B) {
	q := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: routeType, ResponseNonce: "1c9vx2m0"}
	data := mem.BufferSlice{mem.SliceBuffer(must(proto.Marshal(q)))}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := deltaForm.parseRequest(data, 10, nil); err != nil {
			b.Fatal(err)
		}
	}
}
