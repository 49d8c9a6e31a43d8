package inject

import (
	"bytes"
	"context"
	"errors"
	"sync"

	"golang.org/x/sync/semaphore"
)

const (
	maxReview = 4 << 20  // bytes of a body: an update has the object twice, and etcd takes none of more than 1.5 MiB
	minReview = 16 << 10 // what a review counts for at least, be it small
	maxBodies = 8 << 20  // of all bodies that are read or decided at once
	maxMemory = 32 << 20 // that their objects take
	maxWaits  = 8 << 20  // the part of it that may wait for a Membership: half of what one API server may take
	valueSize = 300      // what a JSON value of two letters becomes: an empty message in a list
)

// budget bounds what the reviews under way take. Half of it is one K's at most, so that nobody alone keeps the others out.
type budget[K comparable] struct {
	each int64
	all  *semaphore.Weighted

	mu     sync.Mutex // guards the field below
	shares map[K]*share
}

// memoryOf estimates what body takes, decoded: its text several times, and a value after each comma.
func memoryOf(body []byte) int64 {
	return 3*int64(len(body)) + valueSize*int64(bytes.Count(body, []byte(",")))
}

// share is what one K takes of a budget; it exists while users > 0.
type share struct {
	*semaphore.Weighted
	users int
}

func newBudget[K comparable](all int64) *budget[K] {
	return &budget[K]{each: all / 2, all: semaphore.NewWeighted(all), shares: map[K]*share{}}
}

// acquire waits until there is room for n bytes; it returns an error when ctx ends. The caller calls release once.
func (b *budget[K]) acquire(ctx context.Context, of K, n int64) (release func(), err error) {
	return b.take(of, n, func(s *semaphore.Weighted, n int64) error {
		if s.TryAcquire(n) { // also for who has no patience left
			return nil
		}
		return s.Acquire(ctx, n)
	})
}

var errFull = errors.New("no room")

// try is acquire without the wait.
func (b *budget[K]) try(of K, n int64) (release func(), err error) {
	return b.take(of, n, func(s *semaphore.Weighted, n int64) error {
		if !s.TryAcquire(n) {
			return errFull
		}
		return nil
	})
}

func (b *budget[K]) take(of K, n int64, from func(*semaphore.Weighted, int64) error) (release func(), err error) {
	n = min(max(n, minReview), b.each)
	b.mu.Lock()
	s := b.shares[of]
	if s == nil {
		s = &share{Weighted: semaphore.NewWeighted(b.each)}
		b.shares[of] = s
	}
	s.users++
	b.mu.Unlock()
	leave := func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if s.users--; s.users == 0 {
			delete(b.shares, of)
		}
	}
	if err := from(s.Weighted, n); err != nil {
		leave()
		return nil, err
	}
	if err := from(b.all, n); err != nil {
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
