package control

import (
	"context"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/resolve"
)

// lingers is how long a client counts as connected after its last stream: proxies that change replicas or lose a connection are
// back within seconds, and what is made for their scopes need not be made again.
const lingers = time.Minute

// presence feeds the graph with the clients that are connected. The zero value with a source works.
type presence struct {
	source *graph.Source[mesh.WorkloadKey, resolve.Client]

	mu      sync.Mutex // guards the fields below, and the order in which the source is told
	streams map[mesh.WorkloadKey]int
	leaving map[mesh.WorkloadKey]*time.Timer
}

// Connect has a client count as connected until ctx ends, and a while longer. It may have several streams; what the last one
// said of it counts.
func (p *Pipeline) Connect(ctx context.Context, c resolve.Client) {
	p.presence.enter(c)
	context.AfterFunc(ctx, func() { p.presence.leave(c.Workload) })
}

func (p *presence) enter(c resolve.Client) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.streams == nil {
		p.streams, p.leaving = map[mesh.WorkloadKey]int{}, map[mesh.WorkloadKey]*time.Timer{}
	}
	p.streams[c.Workload]++
	if t := p.leaving[c.Workload]; t != nil {
		t.Stop()
		delete(p.leaving, c.Workload)
	}
	p.source.Set(c.Workload, c)
}

func (p *presence) leave(k mesh.WorkloadKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.streams[k]--; p.streams[k] > 0 {
		return
	}
	delete(p.streams, k)
	p.leaving[k] = time.AfterFunc(lingers, func() { p.forget(k) })
}

func (p *presence) forget(k mesh.WorkloadKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.streams[k] > 0 { // it came back while this waited for the lock
		return
	}
	delete(p.leaving, k)
	p.source.Delete(k)
}
