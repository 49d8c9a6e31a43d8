package identity

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
)

const (
	peerAsks  = 8     // TokenReviews under way for one peer's address, of the 64 that a plane has under way
	peerWaits = 1_000 // callers from one address that wait for theirs; a cluster's gateway may stand for all that is behind it
)

var errCrowd = errors.New("too many calls from this address wait for their tokens to be reviewed")

// peers keeps a stranger from filling the queue of TokenReviews: each address has a small part of it, and a queue of its
// own. Its zero value is ready.
type peers struct {
	mu    sync.Mutex // guards the field below
	lanes map[string]*lane
}

type lane struct {
	in    int           // asking and waiting; guarded by peers.mu
	slots chan struct{} // holds one for each that asks
}

// enter returns when a caller at addr may ask; leave must be called once it has.
func (p *peers) enter(ctx context.Context, addr string) (leave func(), err error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = addr // of no network, in tests
	}
	p.mu.Lock()
	l := p.lanes[host]
	if l == nil {
		l = &lane{slots: make(chan struct{}, peerAsks)}
		if p.lanes == nil {
			p.lanes = map[string]*lane{}
		}
		p.lanes[host] = l
	}
	if l.in >= peerAsks+peerWaits {
		p.mu.Unlock()
		return nil, errCrowd
	}
	l.in++
	p.mu.Unlock()
	out := func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if l.in--; l.in == 0 {
			delete(p.lanes, host)
		}
	}
	select {
	case l.slots <- struct{}{}:
		return func() { <-l.slots; out() }, nil
	case <-ctx.Done():
		out()
		return nil, fmt.Errorf("wait for the token's review: %w", ctx.Err())
	}
}
