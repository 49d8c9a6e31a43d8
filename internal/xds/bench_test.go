package xds

import (
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
