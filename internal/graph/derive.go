package graph

import (
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
)

// TableOptions configures a derived table. The zero value works.
type TableOptions[V any] struct {
	// Equal tells whether a new output is the same as the last, and nobody need know; nil means reflect.DeepEqual.
	Equal func(a, b V) bool
	// Prefer tells whether a owns a key rather than b when two inputs emit it. If it prefers neither, or is nil, the input
	// whose key comes first in order owns it. When the owner's output goes, the next in line takes the key over.
	Prefer func(a, b V) bool
}

// primary is what a derived table has one evaluation for each row of.
type primary[K comparable, V any] interface {
	stats() *meter
	changed() []news[K, V] // of the round under way
}

// input is a row of the primary table. Its value is nil if it has gone.
type input[K comparable, V any] struct {
	key *K
	val *V
}

// news is an input that came, changed or has gone, and its number, which from the next round on may be another's if it has gone.
type news[K comparable, V any] struct {
	at uint32
	input[K, V]
}

// Derive adds a table to g that holds what f emits for each row of from. f runs again when that row or something it read
// through r changes, and what it no longer emits is removed. It must be pure; r and emit are valid until it returns.
// Of two values that one call emits for one key, Prefer decides, then the first stays.
// PK needs an order, as K does for [NewIndex].
func Derive[PK comparable, PV any, K comparable, V any](g *Graph, name string, from *Table[PK, PV], o TableOptions[V],
	f func(r *Reader, k PK, v PV, emit func(K, V)),
) *Table[K, V] {
	return derive(g, name, from, o, f)
}

// Group adds a table to g that holds what f emits for each key of ix, with all rows under it, in order of their keys. Slice
// and rows are shared: do not change them. Else as Derive.
func Group[IK, K comparable, V any, OK comparable, OV any](g *Graph, name string, ix *Index[IK, K, V], o TableOptions[OV],
	f func(r *Reader, ik IK, rows []*Row[K, V], emit func(OK, OV)),
) *Table[OK, OV] {
	return derive(g, name, ix, o, func(r *Reader, ik IK, rows []*Row[K, V], emit func(OK, OV)) {
		r.rows += uint64(len(rows))
		f(r, ik, rows, emit)
	})
}

func derive[PK comparable, PV any, K comparable, V any](g *Graph, name string, from primary[PK, PV], o TableOptions[V],
	f func(*Reader, PK, PV, func(K, V)),
) *Table[K, V] {
	d := &derived[PK, PV, K, V]{
		Table: &Table[K, V]{}, from: from, f: f, prefer: o.Prefer, order: ordering[PK](name),
		contested: map[K][]*Row[K, V]{},
	}
	if d.prefer == nil {
		d.prefer = func(V, V) bool { return false }
	}
	d.init(o.Equal)
	g.join(d, name)
	from.stats().mustPrecede(&d.meter)
	return d.Table
}

type derived[PK comparable, PV any, K comparable, V any] struct {
	*Table[K, V]
	from   primary[PK, PV]
	f      func(*Reader, PK, PV, func(K, V))
	prefer func(a, b V) bool
	order  func(a, b PK) int

	tasks     pages[task[PK, PV, K, V]] // by the number of their input
	faults    map[PK]struct{}           // rows that the graph knows as faulty
	dirty     []uint32                  // tasks to evaluate in the next step, besides those whose row of from changed
	contested map[K][]*Row[K, V]        // outputs of several tasks for one key, in order of the inputs; a lone one is in the table
	workers   []*worker[PK, PV, K, V]
}

// task is the evaluation for one row of the primary table. The zero task is that of no row.
type task[PK comparable, PV any, K comparable, V any] struct {
	input[PK, PV]
	dirty bool
	deps  []ref
	outs  []*Row[K, V]
}

// turn is a task's part in a step, and what it changes.
type turn[PK comparable, PV any, K comparable, V any] struct {
	number uint32
	*task[PK, PV, K, V]

	newDeps        []ref
	moved          bool // newDeps differ from deps
	dropped, added []*Row[K, V]
	fault          error
}

func (d *derived[PK, PV, K, V]) mark(row uint32) {
	if t := d.tasks.at(row); !t.dirty {
		t.dirty = true
		d.dirty = append(d.dirty, row)
	}
}

func (d *derived[PK, PV, K, V]) step(rev Rev) bool {
	turns, gone := d.due()
	if len(turns) == 0 {
		return false
	}
	work := turns[gone:]
	d.evaluate(work)
	d.evaluated.Add(uint64(len(work)))
	d.relink(turns)
	claims := map[K][]*Row[K, V]{}
	for i := range turns {
		d.claim(&turns[i], claims)
	}
	d.award(rev, claims)
	for _, t := range turns[:gone] {
		*t.task = task[PK, PV, K, V]{}
	}
	return d.finish()
}

// due returns the tasks whose row is gone, and how many these are, and then those to evaluate.
func (d *derived[PK, PV, K, V]) due() (turns []turn[PK, PV, K, V], gone int) {
	for _, n := range d.from.changed() {
		t := d.tasks.reach(n.at)
		if t.input = n.input; t.val != nil {
			d.mark(n.at)
		} else {
			d.mended(*t.key)
			turns = append(turns, turn[PK, PV, K, V]{number: n.at, task: t, moved: true, dropped: t.outs})
		}
	}
	gone = len(turns)
	turns = slices.Grow(turns, len(d.dirty))
	for _, i := range d.dirty {
		if t := d.tasks.at(i); t.val != nil {
			t.dirty = false
			turns = append(turns, turn[PK, PV, K, V]{number: i, task: t})
		}
	}
	d.dirty = nil
	return turns, gone
}

// relink replaces what the tasks depend on. Links come before unlinks: an unlink may take away an entry that another task was
// just given.
func (d *derived[PK, PV, K, V]) relink(turns []turn[PK, PV, K, V]) {
	self := func(t *turn[PK, PV, K, V]) ref { return ref{uint32(d.pos), t.number} }
	for i := range turns {
		t := &turns[i]
		for _, dep := range t.newDeps { // none unless moved
			d.graph.nodes[dep.node].link(dep.at, self(t))
		}
	}
	for i := range turns {
		t := &turns[i]
		if !t.moved {
			continue
		}
		if len(t.deps) > 0 {
			kept := make(map[ref]bool, len(t.newDeps))
			for _, dep := range t.newDeps {
				kept[dep] = true
			}
			for _, dep := range t.deps {
				if !kept[dep] {
					d.graph.nodes[dep.node].unlink(dep.at, self(t))
				}
			}
		}
		t.deps = t.newDeps
	}
}

// claim takes over what a task no longer emits and what it emits anew, in all that is emitted for the keys concerned.
func (d *derived[PK, PV, K, V]) claim(t *turn[PK, PV, K, V], claims map[K][]*Row[K, V]) {
	for _, row := range t.dropped {
		claims[row.Key] = slices.DeleteFunc(d.emitted(row.Key, claims), func(o *Row[K, V]) bool { return o == row })
	}
	for _, row := range t.added {
		cs := d.emitted(row.Key, claims)
		i, _ := slices.BinarySearchFunc(cs, *t.key, func(o *Row[K, V], k PK) int { return d.order(*d.tasks.at(o.by).key, k) })
		claims[row.Key] = slices.Insert(cs, i, row)
	}
}

// emitted returns what is emitted for k, as far as the step has come.
func (d *derived[PK, PV, K, V]) emitted(k K, claims map[K][]*Row[K, V]) []*Row[K, V] {
	if cs, ok := claims[k]; ok {
		return cs
	}
	if cs, ok := d.contested[k]; ok {
		return cs
	}
	if row := d.tip.Get(k); row != nil {
		return []*Row[K, V]{row}
	}
	return nil
}

// award gives each key to its owner.
func (d *derived[PK, PV, K, V]) award(rev Rev, claims map[K][]*Row[K, V]) {
	var at K
	defer blame(d.name, &at)
	var cs []*Row[K, V]
	for at, cs = range claims {
		var best *Row[K, V]
		for _, row := range cs {
			if best == nil || d.prefer(row.Val, best.Val) {
				best = row
			}
		}
		d.set(rev, at, best)
		if len(cs) > 1 {
			d.contested[at] = cs
			continue
		}
		delete(d.contested, at)
		if row := d.tip.Get(at); row != best { // of equal value, but another's: a lone claim is looked for in the table
			best.at = row.at
			d.tip.Put(uint64(rev), best)
		}
	}
}

// evaluate runs the tasks, on several workers if there are several tasks. In a strict graph it panics if one of them did.
func (d *derived[PK, PV, K, V]) evaluate(work []turn[PK, PV, K, V]) {
	n := min(d.graph.opts.Workers, len(work))
	for len(d.workers) < n {
		d.workers = append(d.workers, newWorker(d))
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	for _, w := range d.workers[:n] {
		loop := func() {
			for i := next.Add(1) - 1; i < int64(len(work)); i = next.Add(1) - 1 {
				w.run(&work[i])
			}
		}
		if n == 1 {
			loop() // a single change is not worth a goroutine
		} else {
			wg.Go(loop)
		}
	}
	wg.Wait()
	for i := range work {
		t := &work[i]
		if t.fault == nil {
			d.mended(*t.key)
			continue
		}
		if d.graph.opts.Strict {
			panic(t.fault.Error())
		}
		d.panics.Add(1)
		if d.faults == nil {
			d.faults = map[PK]struct{}{}
		}
		d.faults[*t.key] = struct{}{}
		d.graph.judge(d.name, *t.key, t.fault)
		d.graph.opts.Log.Error("table's function panicked; the row keeps its last output",
			slog.String("table", d.name), slog.Any("key", *t.key), slog.Any("err", t.fault))
	}
}

// mended has a row forgotten that was faulty.
func (d *derived[PK, PV, K, V]) mended(k PK) {
	if _, ok := d.faults[k]; ok {
		delete(d.faults, k)
		d.graph.judge(d.name, k, nil)
	}
}

// worker evaluates one task at a time. What it holds is used again by the next.
type worker[PK comparable, PV any, K comparable, V any] struct {
	d      *derived[PK, PV, K, V]
	reader Reader
	rows   []Row[K, V]
	index  map[K]int // of rows
	emit   func(K, V)
}

func newWorker[PK comparable, PV any, K comparable, V any](d *derived[PK, PV, K, V]) *worker[PK, PV, K, V] {
	w := &worker[PK, PV, K, V]{d: d, index: map[K]int{}}
	w.reader = Reader{by: &d.meter, seen: map[ref]struct{}{}}
	w.emit = w.add // bound once
	return w
}

func (w *worker[PK, PV, K, V]) add(k K, v V) {
	i, dup := w.index[k]
	switch {
	case !dup:
		w.index[k] = len(w.rows)
		w.rows = append(w.rows, Row[K, V]{Key: k, Val: v})
	case w.d.prefer(v, w.rows[i].Val):
		w.rows[i].Val = v
	}
}

// run evaluates t and notes what is new. An output equal to the last one keeps its row.
func (w *worker[PK, PV, K, V]) run(t *turn[PK, PV, K, V]) {
	defer func() {
		if p := recover(); p != nil {
			t.fault = fmt.Errorf("graph: table %q, key %v: %v\n%s", w.d.name, *t.key, p, debug.Stack())
		}
		if t.moved = !slices.Equal(t.deps, w.reader.deps); t.moved {
			t.newDeps = slices.Clone(w.reader.deps)
		}
		clear(w.reader.seen)
		clear(w.rows)
		clear(w.index)
		w.d.read.Add(w.reader.rows)
		w.reader.deps, w.rows, w.reader.keep, w.reader.rows = w.reader.deps[:0], w.rows[:0], false, 0
	}()
	w.d.f(&w.reader, *t.key, *t.val, w.emit)
	if w.reader.keep {
		return
	}
	outs := make([]*Row[K, V], len(w.rows))
	var dropped, added []*Row[K, V]
	for _, old := range t.outs {
		if i, ok := w.index[old.Key]; ok && w.d.equal(old.Val, w.rows[i].Val) {
			outs[i] = old
		} else {
			dropped = append(dropped, old)
		}
	}
	for i, row := range w.rows {
		if outs[i] == nil {
			row.by = t.number
			outs[i] = &row
			added = append(added, &row)
		}
	}
	t.outs, t.dropped, t.added = outs, dropped, added
}
