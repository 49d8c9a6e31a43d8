package inject

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

const (
	maxReview = 4 << 20  // bytes of a body: an update has the object twice, and etcd takes none of more than 1.5 MiB
	minReview = 16 << 10 // what a review counts for at least, be it small
	maxBodies = 8 << 20  // of all bodies that are read or decided at once
	maxMemory = 32 << 20 // that their objects take
	maxWaits  = 8 << 20  // the part of it that may wait for a Membership: half of what one API server may take
	valueSize = 300      // what a JSON value of two letters becomes: an empty message in a list
	maxQueue  = 1000     // reviews of one peer that wait: an API server has 600 requests under way, unless told otherwise
)

// memoryOf estimates what body takes, decoded: its text several times, and a value after each comma.
func memoryOf(body []byte) int64 {
	return 3*int64(len(body)) + valueSize*int64(bytes.Count(body, []byte(",")))
}

// budget bounds what the reviews under way take. Half of it is one K's at most, so that nobody alone keeps the others out. Nor do
// many: of those who wait, the K goes first that will have been given least, whenever it came. It is weighted fair queueing with
// equal weights (Demers, Keshav, Shenker 1989), in bytes; one that is kept counts once more for each second, as room that nobody gives
// back is what the others wait for.
type budget[K comparable] struct {
	all, each int64

	mu     sync.Mutex // guards the fields below
	taken  int64
	given  int64 // what a K had been given when it was given something last; it never goes back
	came   uint64
	shares map[K]*share
}

// share is what one K takes of a budget.
type share struct {
	taken   int64
	given   int64 // so far; who asks for nothing saves nothing up: at least what budget.given was when it was given something last
	waiting []*bid
}

// bid is what somebody waits for.
type bid struct {
	n     int64
	after uint64        // that many came before
	given chan struct{} // closed when the bytes are the bidder's
	since time.Time     // when that was
}

func newBudget[K comparable](all int64) *budget[K] {
	return &budget[K]{all: all, each: all / 2, shares: map[K]*share{}}
}

var errFull = errors.New("no room")

// acquire waits until there is room for n bytes; it returns an error when ctx ends, or at once if too many wait. The caller calls
// release once.
func (b *budget[K]) acquire(ctx context.Context, of K, n int64) (release func(), err error) {
	return b.take(of, n, func(a *bid) error {
		select {
		case <-a.given: // also for who has no patience left
			return nil
		default:
		}
		select {
		case <-a.given:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
}

// try is acquire without the wait.
func (b *budget[K]) try(of K, n int64) (release func(), err error) {
	return b.take(of, n, func(a *bid) error {
		select {
		case <-a.given:
			return nil
		default:
			return errFull
		}
	})
}

// take queues up, and waits as wait says, which returns nil only for who was given the bytes.
func (b *budget[K]) take(of K, n int64, wait func(*bid) error) (release func(), err error) {
	a := &bid{n: min(max(n, minReview), b.each), given: make(chan struct{})}
	b.mu.Lock()
	s := b.shares[of]
	if s == nil {
		s = &share{}
		b.shares[of] = s
	}
	full := len(s.waiting) >= maxQueue
	if !full {
		b.came++
		a.after = b.came
		s.waiting = append(s.waiting, a)
		b.giveLocked()
	}
	b.mu.Unlock()
	if full {
		return nil, errFull
	}
	release = sync.OnceFunc(func() { b.giveBack(s, a) })
	if err := wait(a); err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// giveBack takes back what was asked for, whether it was given or not.
func (b *budget[K]) giveBack(s *share, a *bid) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.Index(s.waiting, a); i >= 0 {
		s.waiting = slices.Delete(s.waiting, i, i+1)
	} else {
		s.taken -= a.n
		b.taken -= a.n
		s.given += int64(float64(a.n) * time.Since(a.since).Seconds())
	}
	b.giveLocked()
}

// before orders those who wait by what each will have been given with what it waits for.
func (b *budget[K]) before(s, o *share) bool {
	will := func(s *share) int64 { return max(b.given, s.given) + s.waiting[0].n }
	return cmp.Or(cmp.Compare(will(s), will(o)), cmp.Compare(s.waiting[0].after, o.waiting[0].after)) < 0
}

// giveLocked gives to those who wait, as long as there is room for the first of them: who asks for much is passed by only while it
// has its half.
func (b *budget[K]) giveLocked() {
	for {
		var first *share
		for of, s := range b.shares {
			switch {
			case len(s.waiting) == 0:
				if s.taken == 0 && (s.given <= b.given || b.taken == 0) {
					delete(b.shares, of) // nothing to remember
				}
			case s.taken+s.waiting[0].n <= b.each && (first == nil || b.before(s, first)):
				first = s
			}
		}
		if first == nil || b.taken+first.waiting[0].n > b.all {
			return
		}
		a := first.waiting[0]
		first.waiting, a.since = first.waiting[1:], time.Now()
		b.given = max(b.given, first.given)
		first.given = b.given + a.n
		first.taken += a.n
		b.taken += a.n
		close(a.given)
	}
}
