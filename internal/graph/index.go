package graph

import (
	"maps"
	"slices"
)

// Index finds the rows of a table by something other than their key.
type Index[IK, K comparable, V any] struct {
	meter
	of      *Table[K, V]
	keys    func(K, V) []IK
	order   func(a, b K) int
	buckets map[IK][]Row[K, V] // in order of keys; replaced, never changed, as readers hold them
	changes []Change[IK, []Row[K, V]]
	readers readers[IK]
}

// NewIndex adds an index of t to its graph. keys returns under what a row is found: any number of keys, repeats do not
// matter. Rows under one key are kept in the order of K: its method Compare(K) int if it has one, else field by field.
// A K without order (a pointer or an interface in it, and no Compare) panics here.
func NewIndex[IK, K comparable, V any](t *Table[K, V], name string, keys func(K, V) []IK) *Index[IK, K, V] {
	ix := &Index[IK, K, V]{of: t, keys: keys, order: ordering[K](name), buckets: map[IK][]Row[K, V]{}}
	t.graph.join(ix, name)
	return ix
}

func (ix *Index[IK, K, V]) stats() *meter { return &ix.meter }
func (ix *Index[IK, K, V]) settle()       { ix.changes = nil }
func (ix *Index[IK, K, V]) top() any      { return nil }
func (ix *Index[IK, K, V]) verify()       {}

func (ix *Index[IK, K, V]) changed() []Change[IK, []Row[K, V]] { return ix.changes }

func (ix *Index[IK, K, V]) current(ik IK) ([]Row[K, V], bool) {
	rows, ok := ix.buckets[ik]
	return rows, ok
}

func (ix *Index[IK, K, V]) step(Rev) bool {
	edits := map[IK]map[K]*V{} // nil: no longer under this key
	edit := func(ik IK, k K, v *V) {
		if edits[ik] == nil {
			edits[ik] = map[K]*V{}
		}
		edits[ik][k] = v
	}
	var at K
	defer blame(ix.name, &at)
	for i := range ix.of.changes {
		c := &ix.of.changes[i]
		at = c.Key
		if c.Had {
			for _, ik := range ix.keys(c.Key, c.Old) {
				edit(ik, c.Key, nil)
			}
		}
		if c.Has {
			for _, ik := range ix.keys(c.Key, c.New) {
				edit(ik, c.Key, &c.New)
			}
		}
	}
	for ik, e := range edits {
		old, had := ix.buckets[ik]
		rows := ix.merge(old, e)
		if len(rows) > 0 {
			ix.buckets[ik] = rows
		} else {
			delete(ix.buckets, ik)
		}
		ix.changes = append(ix.changes, Change[IK, []Row[K, V]]{ik, old, rows, had, len(rows) > 0})
		ix.readers.touch(ik)
	}
	ix.evaluated.Add(uint64(len(ix.of.changes)))
	ix.rows.Store(int64(len(ix.buckets)))
	return len(ix.changes) > 0
}

// merge returns a copy of rows with the edits applied.
func (ix *Index[IK, K, V]) merge(rows []Row[K, V], edits map[K]*V) []Row[K, V] {
	keys := slices.SortedFunc(maps.Keys(edits), ix.order)
	out := make([]Row[K, V], 0, len(rows)+len(keys))
	for _, k := range keys {
		i, found := slices.BinarySearchFunc(rows, k, func(r Row[K, V], k K) int { return ix.order(r.Key, k) })
		out = append(out, rows[:i]...)
		if v := edits[k]; v != nil {
			out = append(out, Row[K, V]{k, *v})
		}
		if found {
			i++
		}
		rows = rows[i:]
	}
	return append(out, rows...)
}
