package xds

import (
	"hash/maphash"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"weak"

	"github.com/heddle-mesh/heddle/internal/trie"
)

// names is a set of names that clients ask for. It does not change; nil is the empty set. Clients of one scope ask for the
// same names: a nameTable gives them one set.
type names struct {
	set trie.Map[string, string]
	sum uint64 // of the names' hashes, in whatever order they came
}

func (n *names) has(name string) bool { return n != nil && n.set.Get(name) != nil }

func (n *names) rows() trie.Map[string, string] {
	if n == nil {
		return trie.Map[string, string]{}
	}
	return n.set
}

func (n *names) each(visit func(string)) {
	n.rows().Each(func(name *string) { visit(*name) })
}

// diff visits the names that one of two sets has.
func (n *names) diff(o *names, visit func(name string)) {
	trie.Diff(n.rows(), o.rows(), func(name string) {
		if n.has(name) != o.has(name) { // each may have it on its own
			visit(name)
		}
	})
}

func (n *names) equal(o *names) bool {
	if n.sum != o.sum || n.set.Len() != o.set.Len() {
		return false
	}
	equal := true
	n.diff(o, func(string) { equal = false })
	return equal
}

// nameTable knows the sets that are in use; a set that nobody holds any more leaves it. Safe for concurrent use.
type nameTable struct {
	hash  func(string) uint64
	edits atomic.Uint64

	mu   sync.Mutex
	sets map[uint64]weak.Pointer[names] // by sum; of several with one sum, one
}

func newNameTable() *nameTable {
	seed := maphash.MakeSeed() // clients choose names, and must not choose collisions
	return &nameTable{
		hash: func(s string) uint64 { return maphash.String(seed, s) },
		sets: map[uint64]weak.Pointer[names]{},
	}
}

// of returns the set of the names, which it sorts. A set that there is already is found without making another.
func (t *nameTable) of(list []string) *names {
	slices.Sort(list)
	list = slices.Compact(list)
	sum := uint64(0)
	for _, name := range list {
		sum += t.hash(name)
	}
	if n := t.find(sum); n != nil && n.set.Len() == len(list) && !slices.ContainsFunc(list, func(name string) bool { return !n.has(name) }) {
		return n
	}
	return t.change(nil, list, nil)
}

// change returns a set that has what n and add have, but for drop.
func (t *nameTable) change(n *names, add, drop []string) *names {
	out := &names{set: trie.New(t.hash, func(name *string) string { return *name })}
	if n != nil {
		*out = *n
	}
	edit := t.edits.Add(1)
	changed := false
	for _, name := range add {
		if !out.has(name) {
			changed = true
			out.set.Put(edit, &name)
			out.sum += t.hash(name)
		}
	}
	for _, name := range drop {
		if out.has(name) {
			changed = true
			out.set.Delete(edit, name)
			out.sum -= t.hash(name)
		}
	}
	switch {
	case !changed:
		return n
	case out.set.Len() == 0:
		return nil
	}
	return t.share(out)
}

func (t *nameTable) find(sum uint64) *names {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.sets[sum].Value()
}

// share returns the set of the table that equals n, which may be n.
func (t *nameTable) share(n *names) *names {
	t.mu.Lock()
	defer t.mu.Unlock()
	if known := t.sets[n.sum].Value(); known != nil {
		if known.equal(n) {
			return known
		}
		return n
	}
	t.sets[n.sum] = weak.Make(n)
	runtime.AddCleanup(n, t.forget, n.sum)
	return n
}

func (t *nameTable) forget(sum uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sets[sum].Value() == nil { // else it is another's by now
		delete(t.sets, sum)
	}
}
