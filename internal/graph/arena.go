package graph

import "hash/maphash"

// What the engine remembers of rows is some hundred thousand small things. It keeps them in pages and means them by numbers: a
// map of pointers to them would take twice as much as they do, a pointer twice as much as a number, and numbers cost the
// collector nothing.

// pages holds things by number. A thing stays where it is in memory. There are never fewer pages than once were needed.
type pages[T any] [][]T

const page = 32 // things; a table of one row should not take much more than a map does

func (p pages[T]) at(i uint32) *T { return &p[i/page][i%page] }

// reach is at for a number that may be new.
func (p *pages[T]) reach(i uint32) *T {
	for int(i/page) >= len(*p) {
		*p = append(*p, make([]T, page))
	}
	return p.at(i)
}

// numbers gives numbers out, the lowest at first. One given back is given out again.
type numbers struct {
	next uint32
	back []uint32
}

func (n *numbers) take() uint32 {
	if last := len(n.back) - 1; last >= 0 {
		i := n.back[last]
		n.back = n.back[:last]
		return i
	}
	n.next++
	return n.next - 1
}

func (n *numbers) give(is ...uint32) { n.back = append(n.back, is...) }

// arena holds things by key, each under a number that is its own while it is there.
type arena[K comparable, T any] struct {
	seed  maphash.Seed
	n     int
	slots []uint32 // numbers, plus one, by the hash of their keys, or in the next slot that was empty; a power of two of them
	cells pages[cell[K, T]]
	numbers
}

type cell[K comparable, T any] struct {
	key K
	val T
}

func newArena[K comparable, T any]() arena[K, T] {
	return arena[K, T]{seed: maphash.MakeSeed(), slots: make([]uint32, 4)}
}

// at returns the cell of a number that find or add has returned.
func (a *arena[K, T]) at(i uint32) *cell[K, T] { return a.cells.at(i) }

func (a *arena[K, T]) find(k K) (uint32, bool) {
	i := a.slots[a.slot(k)]
	return i - 1, i != 0
}

// home returns the first slot that k may have.
func (a *arena[K, T]) home(k K) int {
	return int(maphash.Comparable(a.seed, k) & uint64(len(a.slots)-1))
}

// slot returns the slot of k, or the empty one where it would be.
func (a *arena[K, T]) slot(k K) int {
	s := a.home(k)
	for a.slots[s] != 0 && a.at(a.slots[s]-1).key != k {
		s = (s + 1) & (len(a.slots) - 1)
	}
	return s
}

// add gives k, which must be absent, a cell.
func (a *arena[K, T]) add(k K) uint32 {
	if a.n++; 4*a.n > 3*len(a.slots) {
		old := a.slots
		a.slots = make([]uint32, 2*len(old))
		for _, i := range old {
			if i != 0 {
				a.slots[a.slot(a.at(i-1).key)] = i
			}
		}
	}
	i := a.take()
	a.cells.reach(i).key = k
	a.slots[a.slot(k)] = i + 1
	return i
}

// remove takes away the cell of a number, and closes the gap in the slots behind which others may have been put.
func (a *arena[K, T]) remove(i uint32) {
	mask := len(a.slots) - 1
	gap := a.slot(a.at(i).key)
	for s := (gap + 1) & mask; a.slots[s] != 0; s = (s + 1) & mask {
		if home := a.home(a.at(a.slots[s] - 1).key); (s-home)&mask >= (s-gap)&mask {
			a.slots[gap], gap = a.slots[s], s
		}
	}
	a.slots[gap] = 0
	*a.at(i) = cell[K, T]{}
	a.give(i)
	a.n--
}
