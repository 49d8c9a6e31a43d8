// Package trie is a persistent map: a copy of it is a snapshot that shares with its successors what did not change.
package trie

import (
	"math/bits"
	"slices"
)

// Map is a hash array mapped trie. A copy of it is a snapshot: Put and Delete change in place only the branches made with
// the same edit, and copy the others on the way down. So an edit costs what it changes, and readers of a snapshot share the
// rest with it. No two maps that share branches may be changed with one edit. A row knows its key, and is not changed once it is in a map.
type Map[K comparable, R any] struct {
	top  *branch[K, R]
	n    int
	hash func(K) uint64
	key  func(*R) K
}

// branch holds its used slots only, in the order of the bits. Below the last bit of the hash, slots are a plain list.
type branch[K comparable, R any] struct {
	edit  uint64
	used  uint32
	slots []slot[K, R]
}

// slot holds a row or a branch.
type slot[K comparable, R any] struct {
	row *R
	sub *branch[K, R]
}

const (
	fan      = 5  // bits of the hash that a branch consumes
	hashBits = 64 // from here on, keys of one hash are told apart by comparing
)

// New returns an empty map of rows whose key is told by key.
func New[K comparable, R any](hash func(K) uint64, key func(*R) K) Map[K, R] {
	return Map[K, R]{hash: hash, key: key}
}

// Len returns the number of rows.
func (m Map[K, R]) Len() int { return m.n }

// Get returns the row of k; nil if there is none. The zero Map has none.
func (m Map[K, R]) Get(k K) *R {
	if m.top == nil {
		return nil
	}
	return m.get(m.top, k, m.hash(k), 0)
}

func (m *Map[K, R]) get(b *branch[K, R], k K, h uint64, shift int) *R {
	for ; b != nil; shift += fan {
		i, ok := m.find(b, k, h, shift)
		if !ok {
			return nil
		}
		s := b.slots[i]
		if s.sub == nil {
			if m.key(s.row) == k {
				return s.row
			}
			return nil
		}
		b = s.sub
	}
	return nil
}

// find returns the slot for k, or where it would be. A slot of a row may hold another key.
func (m *Map[K, R]) find(b *branch[K, R], k K, h uint64, shift int) (int, bool) {
	if shift >= hashBits {
		i := slices.IndexFunc(b.slots, func(s slot[K, R]) bool { return m.key(s.row) == k })
		if i < 0 {
			return len(b.slots), false
		}
		return i, true
	}
	bit := uint32(1) << (h >> shift & (1<<fan - 1))
	return bits.OnesCount32(b.used & (bit - 1)), b.used&bit != 0
}

// Put makes row the row of its key.
func (m *Map[K, R]) Put(edit uint64, row *R) {
	m.top = m.with(m.top, edit, 0, m.hash(m.key(row)), row)
}

func (m *Map[K, R]) with(b *branch[K, R], edit uint64, shift int, h uint64, row *R) *branch[K, R] {
	b = b.own(edit)
	i, ok := m.find(b, m.key(row), h, shift)
	if !ok {
		b.slots = slices.Insert(b.slots, i, slot[K, R]{row: row})
		b.mark(h, shift, true)
		m.n++
		return b
	}
	s := &b.slots[i]
	switch {
	case s.sub != nil:
		s.sub = m.with(s.sub, edit, shift+fan, h, row)
	case m.key(s.row) == m.key(row):
		s.row = row
	default: // push the row that is there one level down, where it is counted again
		m.n--
		sub := m.with(nil, edit, shift+fan, m.hash(m.key(s.row)), s.row)
		*s = slot[K, R]{sub: m.with(sub, edit, shift+fan, h, row)}
	}
	return b
}

// Delete removes k, which must be present.
func (m *Map[K, R]) Delete(edit uint64, k K) {
	m.top = m.without(m.top, edit, 0, m.hash(k), k)
	m.n--
}

func (m *Map[K, R]) without(b *branch[K, R], edit uint64, shift int, h uint64, k K) *branch[K, R] {
	b = b.own(edit)
	i, _ := m.find(b, k, h, shift)
	s := &b.slots[i]
	if s.sub == nil {
		b.slots = slices.Delete(b.slots, i, i+1)
		b.mark(h, shift, false)
		return b
	}
	s.sub = m.without(s.sub, edit, shift+fan, h, k)
	if len(s.sub.slots) == 1 && s.sub.slots[0].sub == nil {
		*s = s.sub.slots[0]
	}
	return b
}

func (b *branch[K, R]) mark(h uint64, shift int, used bool) {
	if shift >= hashBits {
		return
	}
	bit := uint32(1) << (h >> shift & (1<<fan - 1))
	if b.used &^= bit; used {
		b.used |= bit
	}
}

// own returns b, or a copy of it, for this edit to change.
func (b *branch[K, R]) own(edit uint64) *branch[K, R] {
	switch {
	case b == nil:
		return &branch[K, R]{edit: edit}
	case b.edit == edit:
		return b
	}
	return &branch[K, R]{edit: edit, used: b.used, slots: slices.Clone(b.slots)}
}

// Each visits the rows, in no particular order.
func (m Map[K, R]) Each(visit func(*R)) { m.top.each(visit) }

func (b *branch[K, R]) each(visit func(*R)) {
	if b == nil {
		return
	}
	for _, s := range b.slots {
		s.each(visit)
	}
}

func (s slot[K, R]) each(visit func(*R)) {
	if s.sub != nil {
		s.sub.each(visit)
	} else if s.row != nil {
		visit(s.row)
	}
}

// Diff visits once each key whose row is not the same one in a and b. Where both come from one map, it costs what was changed
// in either since. Both must have one hash.
func Diff[K comparable, R any](a, b Map[K, R], visit func(K)) {
	m := a
	if m.top == nil {
		m = b
	}
	comparison[K, R]{m, visit}.branches(a.top, b.top, 0)
}

type comparison[K comparable, R any] struct {
	maps  Map[K, R] // either: how their keys are found
	visit func(K)
}

func (c comparison[K, R]) branches(a, b *branch[K, R], shift int) {
	switch {
	case a == b:
		return
	case a == nil || b == nil || shift >= hashBits:
		c.slots(slot[K, R]{sub: a}, slot[K, R]{sub: b}, shift)
		return
	}
	i, j := 0, 0
	for used := a.used | b.used; used != 0; used &= used - 1 {
		bit := used & -used
		var x, y slot[K, R]
		if a.used&bit != 0 {
			x = a.slots[i]
			i++
		}
		if b.used&bit != 0 {
			y = b.slots[j]
			j++
		}
		switch {
		case x == y:
		case x.sub != nil && y.sub != nil:
			c.branches(x.sub, y.sub, shift+fan)
		default:
			c.slots(x, y, shift+fan)
		}
	}
}

// slots compares row by row; branches in them are of shift.
func (c comparison[K, R]) slots(x, y slot[K, R], shift int) {
	x.each(func(r *R) {
		if k := c.maps.key(r); c.get(y, k, shift) != r {
			c.visit(k)
		}
	})
	y.each(func(r *R) {
		if k := c.maps.key(r); c.get(x, k, shift) == nil {
			c.visit(k)
		}
	})
}

func (c comparison[K, R]) get(s slot[K, R], k K, shift int) *R {
	switch {
	case s.sub != nil:
		return c.maps.get(s.sub, k, c.maps.hash(k), shift)
	case s.row != nil && c.maps.key(s.row) == k:
		return s.row
	}
	return nil
}
