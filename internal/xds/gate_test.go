package xds

import (
	"context"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

const (
	clusterURL    = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	assignmentURL = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
)

// crowd is a server with clients that have no connection, so that what is counted is the server's. All hold one group of so
// many clusters, ask for an assignment of each, and have accepted both.
type crowd struct {
	*Server
	clients []*pipe
	names   []string
	ctx     context.Context
	ask     mem.BufferSlice // the request of assignments
}

func newCrowd(ctx context.Context, services int) *crowd {
	c := &crowd{ctx: ctx}
	c.Server = NewServer(Options{
		Types: []TypeRule{{URL: clusterURL, Wildcard: true, Order: 1}, {URL: assignmentURL, Order: 2, ResendAfter: clusterURL}},
		Admit: func(context.Context) (Admission, error) {
			return Admission{Enter: func(Hello) (*Session, error) {
				return &Session{Groups: func() ([]Group, Group) { return []Group{"all"}, "" }}, nil
			}}, nil
		},
		MaxStreams: 1000,
	})
	for i := range services {
		c.names = append(c.names, fmt.Sprintf("outbound|80||service-%d.shop.svc.cluster.local", i))
	}
	changes := []Change{{Group: "all", Type: clusterURL}, {Group: "all", Type: assignmentURL}}
	for i := range changes {
		for _, name := range c.names {
			changes[i].Set = append(changes[i].Set, must(Seal(changes[i].Type, name, "", route(name, "first"))))
		}
	}
	c.Publish(1, changes)
	c.ask = wire(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: assignmentURL, ResourceNamesSubscribe: c.names})
	return c
}

// connect adds clients.
func (c *crowd) connect(n int) {
	for range n {
		c.clients = append(c.clients, c.client())
	}
}

func (c *crowd) client() *pipe {
	p := &pipe{ctx: c.ctx, in: make(chan mem.BufferSlice), out: make(chan struct{}, 1)}
	go func() { _ = c.serve(deltaForm, p) }() // ends with the context
	p.in <- wire(&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "p"}, TypeUrl: clusterURL})
	p.accept(clusterURL)
	p.in <- c.ask
	p.accept(assignmentURL)
	return p
}

// flip changes one assignment and has all clients accept it.
func (c *crowd) flip(rev uint64, r Resource) {
	c.Publish(rev, []Change{{Group: "all", Type: assignmentURL, Set: []Resource{r}}})
	for _, p := range c.clients {
		p.accept(assignmentURL)
	}
}

func wire(m proto.Message) mem.BufferSlice {
	return mem.BufferSlice{mem.SliceBuffer(must(proto.Marshal(m)))}
}

// pipe is a client's stream as gRPC would hand it to the server. Once connected the client allocates nothing.
type pipe struct {
	grpc.ServerStream
	ctx   context.Context
	in    chan mem.BufferSlice
	out   chan struct{} // a token for each response
	nonce []byte        // of the last one
	ack   []byte
	data  mem.BufferSlice // of ack
}

func (p *pipe) Context() context.Context     { return p.ctx }
func (p *pipe) SetHeader(metadata.MD) error  { return nil }
func (p *pipe) SendHeader(metadata.MD) error { return nil }
func (p *pipe) SetTrailer(metadata.MD)       {}

func (p *pipe) RecvMsg(m any) error {
	select {
	case m.(*frame).data = <-p.in:
		return nil
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}

func (p *pipe) SendMsg(m any) error {
	_ = fields(m.(*frame).data[0].ReadOnlyData(), func(field protowire.Number, v []byte) {
		if field == 5 {
			p.nonce = append(p.nonce[:0], v...)
		}
	})
	select {
	case p.out <- struct{}{}:
		return nil
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}

// accept takes a response.
func (p *pipe) accept(typeURL string) {
	<-p.out
	before := len(p.ack)
	p.ack = append(appendOpen(p.ack[:0], 2, len(typeURL)), typeURL...)
	p.ack = append(appendOpen(p.ack, 6, len(p.nonce)), p.nonce...)
	if len(p.ack) != before {
		p.data = mem.BufferSlice{mem.SliceBuffer(p.ack)}
	}
	p.in <- p.data
}

func heap() (inuse, stacks, mallocs uint64) {
	runtime.GC()
	runtime.GC() // what the first let go of by cleanup
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc, m.StackInuse, m.Mallocs
}

// TestClientCosts: what a client takes that has accepted all is the same at any number of services, and small.
func TestClientCosts(t *testing.T) {
	const clients, most = 20, 8000
	var costs []float64
	for _, services := range []int{10, 1000, 10_000} { // with the first the runtime makes its goroutines, and reuses them
		synctest.Test(t, func(t *testing.T) {
			c := newCrowd(t.Context(), services)
			c.connect(5) // with them come the names that all ask for
			synctest.Wait()
			before, stacks, _ := heap()
			c.connect(clients)
			synctest.Wait()
			after, stacksAfter, _ := heap()
			costs = append(costs, float64(after-before)/clients)
			t.Logf("%d services: %.0f bytes of heap and %d of stacks a client", services, costs[len(costs)-1], (stacksAfter-stacks)/clients)
			runtime.KeepAlive(c)
		})
	}
	// 9,000 services more are not to cost half a byte each.
	if few, many := costs[1], costs[2]; many > most || many-few > 4500 {
		t.Errorf("a client takes %.0f bytes with 1,000 services and %.0f with 10,000; want at most %d, and the same", few, many, most)
	}
}

// TestFlipAllocations: a change of one assignment that is delivered and accepted costs a client few allocations.
func TestFlipAllocations(t *testing.T) {
	const clients, flips, most = 200, 50, 12
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t.Context(), 1000)
		c.connect(clients)
		versions := [2]Resource{}
		for i := range versions {
			versions[i] = must(Seal(assignmentURL, c.names[7], "", route(c.names[7], fmt.Sprint("flip", i))))
		}
		c.flip(2, versions[1])
		synctest.Wait()
		_, _, before := heap()
		for i := range uint64(flips) {
			c.flip(3+i, versions[i%2])
			synctest.Wait()
		}
		_, _, after := heap()
		each := float64(after-before) / flips / clients
		t.Logf("%.1f allocations a flip and client", each)
		if each > most {
			t.Errorf("%.1f allocations a flip and client, want at most %d", each, most)
		}
	})
}

// TestPublishWaitsForNoStream: the graph's goroutine takes no lock of a stream.
func TestPublishWaitsForNoStream(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c := newCrowd(ctx, 3)
	c.connect(2)
	c.mu.RLock()
	streams := slices.Collect(maps.Keys(c.streams))
	c.mu.RUnlock()
	for _, st := range streams {
		st.mu.Lock()
	}
	done := make(chan struct{})
	go func() {
		c.Publish(2, []Change{{Group: "all", Type: clusterURL, Remove: c.names[:1]}}, "")
		c.Partial(true)
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Error("Publish waits for a stream")
	}
	for _, st := range streams {
		st.mu.Unlock()
	}
	<-done
	cancel()
	c.running.Wait()
}
