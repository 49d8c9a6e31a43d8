package graph

import "hash/maphash"

// arena holds cells by key, and gives each a number that is its own while it is there. What the engine remembers of rows is
// some hundred thousand small things: a map of pointers to them takes twice as much as they do, a pointer twice as much as a
// number, and numbers cost the collector nothing. A cell stays where it is in memory; that of one removed is used again.
type arena[K comparable, T any] struct {
	seed  maphash.Seed
	n     int
	slots []uint32 // numbers, plus one, by the hash of their keys, or in the next slot that was empty; a power of two of them
	pages [][]cell[K, T]
	free  []uint32
}

type cell[K comparable, T any] struct {
	key K
	val T
}

const page = 32 // cells; a table of one row should not take much more than a map does

func newArena[K comparable, T any]() arena[K, T] {
	return arena[K, T]{seed: maphash.MakeSeed(), slots: make([]uint32, 4)}
}

// at returns the cell of a number that find or add has returned.
func (a *arena[K, T]) at(i uint32) *cell[K, T] { return &a.pages[i/page][i%page] }

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
	var i uint32
	if last := len(a.free) - 1; last >= 0 {
		i, a.free = a.free[last], a.free[:last]
	} else {
		i = uint32(a.n - 1) // none is free: every number below is in use
		if i%page == 0 {
			a.pages = append(a.pages, make([]cell[K, T], page))
		}
	}
	a.at(i).key = k
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
	a.free = append(a.free, i)
	a.n--
}
