package graph

import (
	"fmt"
	"hash/maphash"
	"reflect"
	"slices"

	"github.com/heddle-mesh/heddle/internal/trie"
)

// Row is one row of a table.
type Row[K comparable, V any] struct {
	Key K
	Val V

	// Numbers: its own, as long as there is a row of its key, and in a derived table that of the input that emitted it.
	at, by uint32
}

type rows[K comparable, V any] = trie.Map[K, Row[K, V]]

// Change is what one round did to one key. Had and Has tell whether the row was there before and is there now.
type Change[K comparable, V any] struct {
	Key      K
	Old, New V
	Had, Has bool
}

// change is a row before and after a round; nil if it was or is not there.
type change[K comparable, V any] struct{ old, new *Row[K, V] }

func (c change[K, V]) key() K {
	if c.new != nil {
		return c.new.Key
	}
	return c.old.Key
}

// Table is a set of rows that others can read.
type Table[K comparable, V any] struct {
	meter
	equal   func(a, b V) bool
	tip     rows[K, V] // rows as of the round under way; owned by the graph
	changes []change[K, V]
	numbers numbers
	readers[K]
	hashes map[*Row[K, V]]uint64 // of the values, if the graph is strict
}

func (t *Table[K, V]) init(equal func(a, b V) bool) {
	if equal == nil {
		equal = func(a, b V) bool { return reflect.DeepEqual(a, b) }
	}
	t.equal = equal
	seed := maphash.MakeSeed()
	t.tip = trie.New(func(k K) uint64 { return maphash.Comparable(seed, k) }, func(row *Row[K, V]) K { return row.Key })
	t.readers.keys = newArena[K, set]()
}

// Lookup returns the row k of the latest published revision. A later call never sees an older revision, of this table or
// of another. Safe for concurrent use; never waits for a round.
func (t *Table[K, V]) Lookup(k K) (V, bool) {
	if row := t.published().Get(k); row != nil {
		return row.Val, true
	}
	var none V
	return none, false
}

// All returns the rows of the latest published revision, in no particular order. Safe for concurrent use; never waits for a round.
func (t *Table[K, V]) All() []Row[K, V] {
	var rows []Row[K, V]
	t.published().Each(func(row *Row[K, V]) { rows = append(rows, Row[K, V]{Key: row.Key, Val: row.Val}) })
	return rows
}

// Changed returns what the round just published changed, one Change a key, in no particular order. It belongs to the graph's
// goroutine: call it inside OnPublish, or between two Steps.
func (t *Table[K, V]) Changed() []Change[K, V] {
	var out []Change[K, V]
	for _, c := range t.changes {
		p := Change[K, V]{Key: c.key()}
		if c.old != nil {
			p.Old, p.Had = c.old.Val, true
		}
		if c.new != nil {
			p.New, p.Has = c.new.Val, true
		}
		out = append(out, p)
	}
	return out
}

func (t *Table[K, V]) published() rows[K, V] {
	v := t.graph.view.Load()
	if t.pos >= len(v.tables) {
		return rows[K, V]{}
	}
	tip, _ := v.tables[t.pos].(rows[K, V])
	return tip
}

func (t *Table[K, V]) current(k K) (v V, ok bool) {
	if row := t.tip.Get(k); row != nil {
		return row.Val, true
	}
	return v, false
}

// set makes row the row of k, or removes it if row is nil; one of equal value stays. It is called at most once a round for a key.
func (t *Table[K, V]) set(rev Rev, k K, row *Row[K, V]) {
	old := t.tip.Get(k)
	switch {
	case old == row, old != nil && row != nil && t.equal(old.Val, row.Val):
		return
	case row == nil:
		t.tip.Delete(uint64(rev), k)
	case old == nil:
		row.at = t.numbers.take()
		t.tip.Put(uint64(rev), row)
	default:
		row.at = old.at
		t.tip.Put(uint64(rev), row)
	}
	t.changes = append(t.changes, change[K, V]{old, row})
}

// finish tells the readers of what has changed.
func (t *Table[K, V]) finish() bool {
	for _, c := range t.changes {
		t.touch(t.graph, c.key())
	}
	t.rows.Store(int64(t.tip.Len()))
	return len(t.changes) > 0
}

func (t *Table[K, V]) stats() *meter { return &t.meter }
func (t *Table[K, V]) snapshot() any { return t.tip }

func (t *Table[K, V]) settle() {
	for _, c := range t.changes {
		if c.new == nil {
			t.numbers.give(c.old.at)
		}
	}
	t.changes = nil
}

func (t *Table[K, V]) changed() (out []news[K, V]) {
	for _, c := range t.changes {
		if c.new != nil {
			out = append(out, news[K, V]{c.new.at, input[K, V]{&c.new.Key, &c.new.Val}})
		} else {
			out = append(out, news[K, V]{c.old.at, input[K, V]{&c.old.Key, nil}})
		}
	}
	return out
}

func (t *Table[K, V]) verify() {
	hashes := map[*Row[K, V]]uint64{}
	t.tip.Each(func(row *Row[K, V]) {
		hashes[row] = deepHash(t.graph.seed, row.Val)
		if was, ok := t.hashes[row]; ok && was != hashes[row] {
			panic(fmt.Sprintf("graph: table %q, key %v: the value was changed after the graph got it: %+v", t.name, row.Key, row.Val))
		}
	})
	t.hashes = hashes
}

// Source is a table that is fed from outside the graph.
type Source[K comparable, V any] struct {
	*Table[K, V]

	// Guarded by Graph.mu.
	staged map[K]*Row[K, V] // nil: to be removed
	sweeps []func(K) bool   // rows that these own and that are not in staged are to be removed

	// What the round under way has taken from the above.
	taken       map[K]*Row[K, V]
	takenSweeps []func(K) bool
}

// NewSource adds a source to g. The name is for logs and meters. Staging a value equal to the one that is there changes
// nothing; equal nil means reflect.DeepEqual.
func NewSource[K comparable, V any](g *Graph, name string, equal func(a, b V) bool) *Source[K, V] {
	s := &Source[K, V]{Table: &Table[K, V]{}}
	s.init(equal)
	g.join(s, name)
	return s
}

// Set stages a row; the last one staged before a round wins. Safe for concurrent use.
func (s *Source[K, V]) Set(k K, v V) { s.stage(k, &Row[K, V]{Key: k, Val: v}) }

// Delete stages the removal of a row, present or not. Safe for concurrent use.
func (s *Source[K, V]) Delete(k K) { s.stage(k, nil) }

func (s *Source[K, V]) stage(k K, row *Row[K, V]) {
	s.graph.mu.Lock()
	defer s.graph.mu.Unlock()
	s.stageLocked(k, row)
	s.graph.stagedLocked()
}

func (s *Source[K, V]) stageLocked(k K, row *Row[K, V]) {
	if s.staged == nil {
		s.staged = map[K]*Row[K, V]{}
	}
	s.staged[k] = row
}

// Replace stages rows as all that there is of the keys that owned tells: other rows of these are removed, staged ones too.
// owned nil means every key. owned must be pure; it is called under a lock and again in the round. Safe for concurrent use.
func (s *Source[K, V]) Replace(rows []Row[K, V], owned func(K) bool) {
	if owned == nil {
		owned = func(K) bool { return true }
	}
	s.graph.mu.Lock()
	defer s.graph.mu.Unlock()
	for k := range s.staged {
		if owned(k) {
			s.staged[k] = nil
		}
	}
	for _, row := range rows {
		s.stageLocked(row.Key, &row)
	}
	s.sweeps = append(s.sweeps, owned)
	s.graph.stagedLocked()
}

func (s *Source[K, V]) takeLocked() {
	s.taken, s.takenSweeps, s.staged, s.sweeps = s.staged, s.sweeps, nil, nil
}

func (s *Source[K, V]) step(rev Rev) bool {
	var at K
	defer blame(s.name, &at)
	var swept []K
	if len(s.takenSweeps) > 0 {
		s.tip.Each(func(row *Row[K, V]) {
			at = row.Key
			if _, named := s.taken[at]; !named && slices.ContainsFunc(s.takenSweeps, func(owned func(K) bool) bool { return owned(at) }) {
				swept = append(swept, at)
			}
		})
	}
	for _, at = range swept {
		s.set(rev, at, nil)
	}
	var row *Row[K, V]
	for at, row = range s.taken {
		s.set(rev, at, row)
	}
	s.taken, s.takenSweeps = nil, nil
	s.evaluated.Add(uint64(len(s.changes)))
	return s.finish()
}
