package graph

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// A model is a random graph over int → int tables together with a plain recomputation of it, which shares no code with the
// engine: every node's function is written once, over an interface that both sides offer.
type model struct {
	g       *Graph
	sources []*Source[int, int]
	tables  []*Table[int, int]               // sources and derived ones, in order
	indexes []*Index[int, int, int]          // one for each table
	naive   []func([]map[int]int)            // fills its own table from those before it
	seen    map[int]map[int]Change[int, int] // last round's changes
}

const (
	keySpace   = 24 // keys of the sources
	indexSpace = 5
)

// reading is what a node's function may ask of tables before it.
type reading interface {
	get(table, k int) (int, bool)
	find(table, ik int) []*Row[int, int]
}

type engineReading struct {
	m *model
	r *Reader
}

func (e engineReading) get(t, k int) (int, bool)        { return Get(e.r, e.m.tables[t], k) }
func (e engineReading) find(t, ik int) []*Row[int, int] { return Find(e.r, e.m.indexes[t], ik) }

type naiveReading []map[int]int

func (n naiveReading) get(t, k int) (int, bool) { v, ok := n[t][k]; return v, ok }

func (n naiveReading) find(t, ik int) []*Row[int, int] {
	var rows []*Row[int, int]
	for _, k := range slices.Sorted(maps.Keys(n[t])) {
		if slices.Contains(indexKeys(k, n[t][k]), ik) {
			rows = append(rows, &Row[int, int]{Key: k, Val: n[t][k]})
		}
	}
	return rows
}

func indexKeys(k, v int) []int { return []int{v % indexSpace, k % indexSpace} } // at times twice the same

func newModel(rnd *rand.Rand, o Options) *model {
	m := &model{g: New(o)}
	for i := range 2 + rnd.IntN(2) {
		s := NewSource[int, int](m.g, fmt.Sprintf("source%d", i), nil)
		m.sources = append(m.sources, s)
		m.add(s.Table, func([]map[int]int) {})
	}
	for range 6 {
		m.derive(rnd)
	}
	return m
}

func (m *model) add(t *Table[int, int], naive func([]map[int]int)) {
	m.tables = append(m.tables, t)
	m.indexes = append(m.indexes, NewIndex(t, t.name+"/index", indexKeys))
	m.naive = append(m.naive, naive)
}

// derive adds a random node: over a table or an index, reading other tables, with outputs that collide.
func (m *model) derive(rnd *rand.Rand) {
	pos := len(m.tables)
	from, other, spread := rnd.IntN(pos), rnd.IntN(pos), 3+rnd.IntN(30)
	overGroup, byValue := rnd.IntN(3) == 0, rnd.IntN(2) == 0
	name := fmt.Sprintf("derived%d", pos)
	prefer := func(a, b int) bool { return a%7 < b%7 } // a weak order: the input decides the rest
	if rnd.IntN(2) == 0 {
		prefer = nil
	}
	f := func(r reading, k int, vals []*Row[int, int], emit func(int, int)) {
		sum := 0
		for i, row := range vals {
			sum = (sum*3 + row.Key*(i+1) + row.Val) % 1000
		}
		at := k
		if byValue {
			at = sum
		}
		if v, ok := r.get(other, at%keySpace); ok {
			sum = (sum + v) % 1000
			for i, row := range r.find(other, v%indexSpace) { // read on what was read
				sum = (sum + (i+1)*row.Val) % 1000
			}
		}
		if sum%5 == 0 {
			return
		}
		emit(at%spread, sum/20) // coarse, so that outputs stay equal at times
		emit((at+sum)%spread, sum%40)
	}
	var t *Table[int, int]
	if overGroup {
		t = Group(m.g, name, m.indexes[from], TableOptions[int]{Prefer: prefer}, func(r *Reader, ik int, rows []*Row[int, int], emit func(int, int)) {
			f(engineReading{m, r}, ik, rows, emit)
		})
	} else {
		t = Derive(m.g, name, m.tables[from], TableOptions[int]{Prefer: prefer}, func(r *Reader, k, v int, emit func(int, int)) {
			f(engineReading{m, r}, k, []*Row[int, int]{{Key: k, Val: v}}, emit)
		})
	}
	m.add(t, func(all []map[int]int) {
		in := map[int][]*Row[int, int]{}
		for k, v := range all[from] {
			in[k] = []*Row[int, int]{{Key: k, Val: v}}
		}
		if overGroup {
			clear(in)
			for ik := range indexSpace {
				if rows := naiveReading(all).find(from, ik); len(rows) > 0 {
					in[ik] = rows
				}
			}
		}
		emit := func(k, v int) {
			if old, ok := all[pos][k]; !ok || prefer != nil && prefer(v, old) {
				all[pos][k] = v
			}
		}
		for _, k := range slices.Sorted(maps.Keys(in)) {
			f(naiveReading(all), k, in[k], emit)
		}
	})
}

// check compares every table with its recomputation, and the changes of the round with the difference to prev.
func (m *model) check(t *testing.T, prev []map[int]int) []map[int]int {
	t.Helper()
	all := make([]map[int]int, len(m.tables))
	for i := range all {
		all[i] = map[int]int{}
		if i < len(m.sources) {
			all[i] = contents(m.tables[i])
		}
		m.naive[i](all)
		if got := contents(m.tables[i]); !maps.Equal(got, all[i]) {
			t.Fatalf("table %s:\n got %v\nwant %v", m.tables[i].name, got, all[i])
		}
		before := map[int]int{}
		if prev != nil {
			before = prev[i]
		}
		after := maps.Clone(before)
		for _, c := range m.seen[i] {
			old, had := before[c.Key]
			if had != c.Had || old != c.Old {
				t.Fatalf("table %s: change %+v, but the row was %v %v", m.tables[i].name, c, old, had)
			}
			if delete(after, c.Key); c.Has {
				after[c.Key] = c.New
			}
		}
		if !maps.Equal(after, all[i]) {
			t.Fatalf("table %s: changes %v lead from %v to %v, not to %v", m.tables[i].name, m.seen[i], before, after, all[i])
		}
	}
	return all
}

// watch keeps the changes of the last round.
func (m *model) watch() {
	m.g.OnPublish(func(Rev) {
		for i, t := range m.tables {
			m.seen[i] = map[int]Change[int, int]{}
			for _, c := range t.Changed() {
				m.seen[i][c.Key] = c
			}
		}
	})
}

func (m *model) step() {
	m.seen = map[int]map[int]Change[int, int]{}
	m.g.Step()
}

func contents(t *Table[int, int]) map[int]int {
	rows := map[int]int{}
	for _, r := range t.All() {
		rows[r.Key] = r.Val
	}
	return rows
}

func (m *model) operate(rnd *rand.Rand) {
	s := m.sources[rnd.IntN(len(m.sources))]
	switch k := rnd.IntN(keySpace); rnd.IntN(12) {
	case 0:
		s.Replace([]Row[int, int]{{Key: k - k%3, Val: rnd.IntN(100)}}, func(k int) bool { return k%3 == 0 })
	case 1, 2, 3:
		s.Delete(k)
	default:
		s.Set(k, rnd.IntN(100))
	}
}

func TestRandomHistoriesEqualRecomputation(t *testing.T) {
	const graphs, rounds = 10, 500
	for seed := range uint64(graphs) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(seed, 1))
			m := newModel(rnd, Options{Workers: 4, Strict: true})
			m.watch()
			var prev []map[int]int
			for range rounds {
				for range rnd.IntN(6) {
					m.operate(rnd)
				}
				m.step()
				prev = m.check(t, prev)
			}
			if left := m.kept(); left > 0 && len(m.sources) > 0 {
				for _, s := range m.sources {
					s.Replace(nil, nil)
				}
				m.step()
				m.check(t, prev)
				m.step() // numbers are given back at the next
				if left := m.kept(); left != 0 {
					t.Errorf("%d dependencies and numbers are left when every row is gone", left)
				}
			}
		})
	}
}

// kept returns how many things the engine remembers of rows.
func (m *model) kept() (n int) {
	for i, t := range m.tables {
		n += t.readers.keys.n + m.indexes[i].readers.keys.n + m.indexes[i].buckets.n + int(t.numbers.next) - len(t.numbers.back)
	}
	return n
}

// FuzzHistory reads a graph (by seed) and a history of operations from bytes.
func FuzzHistory(f *testing.F) {
	f.Add(uint64(1), []byte("set, delete, replace and step in some order"))
	f.Add(uint64(7), []byte{0, 1, 2, 3, 255, 4, 4, 4, 255, 9, 8, 7, 255, 255})
	f.Fuzz(func(t *testing.T, seed uint64, ops []byte) {
		m := newModel(rand.New(rand.NewPCG(seed, 2)), Options{Workers: 2, Strict: true})
		m.watch()
		var prev []map[int]int
		for len(ops) >= 3 && len(ops) < 300 {
			op, k, v := ops[0], int(ops[1])%keySpace, int(ops[2])
			ops = ops[3:]
			s := m.sources[int(op>>4)%len(m.sources)]
			switch op % 5 {
			case 0, 1:
				s.Set(k, v)
			case 2:
				s.Delete(k)
			case 3:
				s.Replace([]Row[int, int]{{Key: k, Val: v}}, func(o int) bool { return o%4 == k%4 })
			default:
				m.step()
				prev = m.check(t, prev)
			}
		}
		m.step()
		m.check(t, prev)
	})
}

// TestArenaHistory holds the arena to a map, whose cells keep their numbers and places while they are there.
func TestArenaHistory(t *testing.T) {
	rnd := rand.New(rand.NewPCG(4, 4))
	type held struct {
		number uint32
		at     *cell[int, int]
	}
	a, want := newArena[int, int](), map[int]held{}
	for range 20000 {
		k := rnd.IntN(300)
		if h, ok := want[k]; ok && rnd.IntN(3) == 0 {
			a.remove(h.number)
			delete(want, k)
		} else if !ok {
			i := a.add(k)
			want[k] = held{i, a.at(i)}
			a.at(i).val = -k
		}
		if a.n != len(want) {
			t.Fatalf("%d cells, want %d", a.n, len(want))
		}
		k = rnd.IntN(300)
		i, ok := a.find(k)
		if h, in := want[k]; ok != in || ok && (i != h.number || a.at(i) != h.at || *h.at != cell[int, int]{k, -k}) {
			t.Fatalf("key %d: found %v as %d, want %v as %+v", k, ok, i, in, h)
		}
	}
	for _, h := range want {
		a.remove(h.number)
	}
	if a.n != 0 || slices.ContainsFunc(a.slots, func(i uint32) bool { return i != 0 }) {
		t.Errorf("%d cells are left of none", a.n)
	}
}
