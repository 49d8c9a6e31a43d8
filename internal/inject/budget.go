package inject

import (
	"bytes"
	"context"
	"net/netip"
	"sync"

	"golang.org/x/sync/semaphore"
)

const (
	maxReview = 4 << 20  // bytes of a body: an update has the object twice, and etcd takes none of more than 1.5 MiB
	minReview = 16 << 10 // what a review counts for at least, be it small
	maxBodies = 8 << 20  // of all bodies that are read or decided at once
	maxMemory = 32 << 20 // that their objects take
	valueSize = 300      // what a JSON value of two letters becomes: an empty message in a list
)

// budget bounds what the reviews under way take. Who calls the webhooks is not known, as API servers show no certificate, and a
// plane has some ten megabytes to spare. Half of it is one peer's at most, so that nobody alone keeps the API server out.
type budget struct {
	peer int64
	all  *semaphore.Weighted

	mu    sync.Mutex // guards the field below
	peers map[netip.Addr]*share
}

// memoryOf estimates what body takes, decoded: its text several times, and a value after each comma.
func memoryOf(body []byte) int64 {
	return 3*int64(len(body)) + valueSize*int64(bytes.Count(body, []byte(",")))
}

// share is what one peer takes of a budget; it exists while users > 0.
type share struct {
	*semaphore.Weighted
	users int
}

func newBudget(all int64) *budget {
	return &budget{peer: all / 2, all: semaphore.NewWeighted(all), peers: map[netip.Addr]*share{}}
}

// acquire waits until there is room for n bytes; it returns an error after patience, or when ctx ends. The caller calls release once.
func (b *budget) acquire(ctx context.Context, peer netip.Addr, n int64) (release func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	n = min(max(n, minReview), b.peer)
	b.mu.Lock()
	s := b.peers[peer]
	if s == nil {
		s = &share{Weighted: semaphore.NewWeighted(b.peer)}
		b.peers[peer] = s
	}
	s.users++
	b.mu.Unlock()
	leave := func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if s.users--; s.users == 0 {
			delete(b.peers, peer)
		}
	}
	if err := s.Acquire(ctx, n); err != nil {
		leave()
		return nil, err
	}
	if err := b.all.Acquire(ctx, n); err != nil {
		s.Release(n)
		leave()
		return nil, err
	}
	return func() {
		b.all.Release(n)
		s.Release(n)
		leave()
	}, nil
}
