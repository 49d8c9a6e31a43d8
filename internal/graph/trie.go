package graph

import (
	"math/bits"
	"slices"
)

// trie is a hash array mapped trie. A copy of it is a snapshot: put and delete change in place only the branches made with
// the same edit, and copy the others on the way down. So a round costs what it changes, and readers of the last revision
// share the rest with it.
type trie[K comparable, V any] struct {
	top  *branch[K, V]
	n    int
	hash func(K) uint64
}

// branch holds its used slots only, in the order of the bits. Below the last bit of the hash, slots are a plain list.
type branch[K comparable, V any] struct {
	edit  Rev
	used  uint32
	slots []slot[K, V]
}

// slot holds a row or a branch.
type slot[K comparable, V any] struct {
	row *Row[K, V]
	sub *branch[K, V]
}

const (
	fan      = 5  // bits of the hash that a branch consumes
	hashBits = 64 // from here on, keys of one hash are told apart by comparing
)

func (t trie[K, V]) get(k K) *Row[K, V] {
	h := t.hash(k)
	for b, shift := t.top, 0; b != nil; shift += fan {
		i, ok := b.find(k, h, shift)
		if !ok {
			return nil
		}
		s := b.slots[i]
		if s.sub == nil {
			if s.row.Key == k {
				return s.row
			}
			return nil
		}
		b = s.sub
	}
	return nil
}

// find returns the slot for k, or where it would be. A slot of a row may hold another key.
func (b *branch[K, V]) find(k K, h uint64, shift int) (int, bool) {
	if shift >= hashBits {
		i := slices.IndexFunc(b.slots, func(s slot[K, V]) bool { return s.row.Key == k })
		if i < 0 {
			return len(b.slots), false
		}
		return i, true
	}
	bit := uint32(1) << (h >> shift & (1<<fan - 1))
	return bits.OnesCount32(b.used & (bit - 1)), b.used&bit != 0
}

func (t *trie[K, V]) put(edit Rev, row *Row[K, V]) {
	t.top = t.with(t.top, edit, 0, t.hash(row.Key), row)
}

func (t *trie[K, V]) with(b *branch[K, V], edit Rev, shift int, h uint64, row *Row[K, V]) *branch[K, V] {
	b = b.own(edit)
	i, ok := b.find(row.Key, h, shift)
	if !ok {
		b.slots = slices.Insert(b.slots, i, slot[K, V]{row: row})
		b.mark(h, shift, true)
		t.n++
		return b
	}
	s := &b.slots[i]
	switch {
	case s.sub != nil:
		s.sub = t.with(s.sub, edit, shift+fan, h, row)
	case s.row.Key == row.Key:
		s.row = row
	default: // push the row that is there one level down, where it is counted again
		t.n--
		sub := t.with(nil, edit, shift+fan, t.hash(s.row.Key), s.row)
		*s = slot[K, V]{sub: t.with(sub, edit, shift+fan, h, row)}
	}
	return b
}

// delete removes k, which must be present.
func (t *trie[K, V]) delete(edit Rev, k K) {
	t.top = t.top.without(edit, 0, t.hash(k), k)
	t.n--
}

func (b *branch[K, V]) without(edit Rev, shift int, h uint64, k K) *branch[K, V] {
	b = b.own(edit)
	i, _ := b.find(k, h, shift)
	s := &b.slots[i]
	if s.sub == nil {
		b.slots = slices.Delete(b.slots, i, i+1)
		b.mark(h, shift, false)
		return b
	}
	s.sub = s.sub.without(edit, shift+fan, h, k)
	if len(s.sub.slots) == 1 && s.sub.slots[0].sub == nil {
		*s = s.sub.slots[0]
	}
	return b
}

func (b *branch[K, V]) mark(h uint64, shift int, used bool) {
	if shift >= hashBits {
		return
	}
	bit := uint32(1) << (h >> shift & (1<<fan - 1))
	if b.used &^= bit; used {
		b.used |= bit
	}
}

// own returns b, or a copy of it, for this edit to change.
func (b *branch[K, V]) own(edit Rev) *branch[K, V] {
	switch {
	case b == nil:
		return &branch[K, V]{edit: edit}
	case b.edit == edit:
		return b
	}
	return &branch[K, V]{edit: edit, used: b.used, slots: slices.Clone(b.slots)}
}

func (b *branch[K, V]) each(f func(*Row[K, V])) {
	if b == nil {
		return
	}
	for _, s := range b.slots {
		if s.sub != nil {
			s.sub.each(f)
		} else {
			f(s.row)
		}
	}
}
