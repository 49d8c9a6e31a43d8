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
	buckets arena[IK, []*Row[K, V]] // in order of keys; the slices are replaced, never changed, as readers hold them
	changes []uint32                // buckets; those that are empty now go when the round is settled
	readers[IK]
}

// NewIndex adds an index of t to its graph. keys returns under what a row is found: any number of keys, repeats do not
// matter. Rows under one key are kept in the order of K: its method Compare(K) int if it has one, else field by field.
// A K without order (a pointer or an interface in it, and no Compare) panics here.
func NewIndex[IK, K comparable, V any](t *Table[K, V], name string, keys func(K, V) []IK) *Index[IK, K, V] {
	ix := &Index[IK, K, V]{of: t, keys: keys, order: ordering[K](name), buckets: newArena[IK, []*Row[K, V]]()}
	ix.readers.keys = newArena[IK, set]()
	t.graph.join(ix, name)
	return ix
}

func (ix *Index[IK, K, V]) stats() *meter { return &ix.meter }
func (ix *Index[IK, K, V]) snapshot() any { return nil }
func (ix *Index[IK, K, V]) verify()       {}

func (ix *Index[IK, K, V]) settle() {
	for _, i := range ix.changes {
		if len(ix.buckets.at(i).val) == 0 {
			ix.buckets.remove(i)
		}
	}
	ix.changes = nil
}

func (ix *Index[IK, K, V]) changed() (out []news[IK, []*Row[K, V]]) {
	for _, i := range ix.changes {
		bucket := ix.buckets.at(i)
		n := news[IK, []*Row[K, V]]{at: i, input: input[IK, []*Row[K, V]]{key: &bucket.key}}
		if len(bucket.val) > 0 {
			n.val = &bucket.val
		}
		out = append(out, n)
	}
	return out
}

// current returns the rows under ik.
func (ix *Index[IK, K, V]) current(ik IK) []*Row[K, V] {
	if i, ok := ix.buckets.find(ik); ok {
		return ix.buckets.at(i).val
	}
	return nil
}

func (ix *Index[IK, K, V]) step(Rev) bool {
	if len(ix.of.changes) == 0 {
		return false
	}
	edits := map[IK]map[K]*Row[K, V]{} // nil: no longer under this key
	edit := func(ik IK, k K, row *Row[K, V]) {
		if edits[ik] == nil {
			edits[ik] = map[K]*Row[K, V]{}
		}
		edits[ik][k] = row
	}
	var at K
	defer blame(ix.name, &at)
	for _, c := range ix.of.changes {
		at = c.key()
		if c.old != nil {
			for _, ik := range ix.keys(at, c.old.Val) {
				edit(ik, at, nil)
			}
		}
		if c.new != nil {
			for _, ik := range ix.keys(at, c.new.Val) {
				edit(ik, at, c.new)
			}
		}
	}
	empty := 0
	for ik, e := range edits {
		i, had := ix.buckets.find(ik)
		if !had {
			i = ix.buckets.add(ik)
		}
		bucket := ix.buckets.at(i)
		if bucket.val = ix.merge(bucket.val, e); len(bucket.val) == 0 {
			empty++
		}
		ix.changes = append(ix.changes, i)
		ix.touch(ix.graph, ik)
	}
	ix.evaluated.Add(uint64(len(ix.of.changes)))
	ix.rows.Store(int64(ix.buckets.n - empty))
	return len(ix.changes) > 0
}

// merge returns a copy of rows with the edits applied.
func (ix *Index[IK, K, V]) merge(rows []*Row[K, V], edits map[K]*Row[K, V]) []*Row[K, V] {
	keys := slices.SortedFunc(maps.Keys(edits), ix.order)
	out := make([]*Row[K, V], 0, len(rows)+len(keys))
	for _, k := range keys {
		i, found := slices.BinarySearchFunc(rows, k, func(r *Row[K, V], k K) int { return ix.order(r.Key, k) })
		out = append(out, rows[:i]...)
		if row := edits[k]; row != nil {
			out = append(out, row)
		}
		if found {
			i++
		}
		rows = rows[i:]
	}
	return append(out, rows...)
}
