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
	changed() []Change[K, V]
	current(K) (V, bool)
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

// Group adds a table to g that holds what f emits for each key of ix, with all rows under it, in order of their keys. The
// slice is shared: do not change it. Else as Derive.
func Group[IK, K comparable, V any, OK comparable, OV any](g *Graph, name string, ix *Index[IK, K, V], o TableOptions[OV],
	f func(r *Reader, ik IK, rows []Row[K, V], emit func(OK, OV)),
) *Table[OK, OV] {
	return derive(g, name, ix, o, f)
}

func derive[PK comparable, PV any, K comparable, V any](g *Graph, name string, from primary[PK, PV], o TableOptions[V],
	f func(*Reader, PK, PV, func(K, V)),
) *Table[K, V] {
	d := &derived[PK, PV, K, V]{
		Table: &Table[K, V]{}, from: from, f: f, prefer: o.Prefer, order: ordering[PK](name),
		tasks: map[PK]*task[PK, K, V]{}, claims: map[K][]claim[PK, K, V]{},
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

	tasks   map[PK]*task[PK, K, V]
	faults  map[PK]struct{}         // rows that the graph knows as faulty
	dirty   []*task[PK, K, V]       // to evaluate in the next step, besides those whose row of from changed
	claims  map[K][]claim[PK, K, V] // in order of the inputs; nearly always one
	workers []*worker[PK, PV, K, V]
}

// task is the evaluation for one row of the primary table.
type task[PK comparable, K comparable, V any] struct {
	key   PK
	dirty bool
	gone  bool
	queue *[]*task[PK, K, V] // derived.dirty
	deps  []dependency
	outs  []*Row[K, V]

	*outcome[K, V] // nil between steps
}

// outcome is what an evaluation changed, for its step to take over.
type outcome[K comparable, V any] struct {
	newDeps        []dependency
	moved          bool // newDeps differ from deps
	dropped, added []*Row[K, V]
	fault          error
}

func (t *task[PK, K, V]) markDirty() {
	if !t.dirty {
		t.dirty = true
		*t.queue = append(*t.queue, t)
	}
}

// claim is an output for a key.
type claim[PK comparable, K comparable, V any] struct {
	by  *task[PK, K, V]
	row *Row[K, V]
}

func (d *derived[PK, PV, K, V]) step(rev Rev) bool {
	work, gone := d.due()
	d.evaluate(work)
	d.evaluated.Add(uint64(len(work)))
	d.relink(work, gone)
	touched := map[K]struct{}{}
	for _, t := range append(work, gone...) {
		d.claim(t, touched)
	}
	var at K
	defer blame(d.name, &at)
	for at = range touched {
		d.set(rev, at, d.owner(at))
	}
	return d.finish()
}

// due returns the tasks to evaluate and those whose row is gone.
func (d *derived[PK, PV, K, V]) due() (work, gone []*task[PK, K, V]) {
	for _, c := range d.from.changed() {
		t := d.tasks[c.Key]
		switch {
		case c.Has && t == nil:
			t = &task[PK, K, V]{key: c.Key, queue: &d.dirty}
			d.tasks[c.Key] = t
			t.markDirty()
		case c.Has:
			t.markDirty()
		case t != nil:
			delete(d.tasks, c.Key)
			d.mended(c.Key)
			t.gone, t.outcome = true, &outcome[K, V]{dropped: t.outs}
			gone = append(gone, t)
		}
	}
	work = slices.DeleteFunc(d.dirty, func(t *task[PK, K, V]) bool { return t.gone })
	d.dirty = nil
	for _, t := range work {
		t.dirty, t.outcome = false, &outcome[K, V]{}
	}
	return work, gone
}

// relink replaces what the tasks depend on. Adds come before removes: a remove may take away an entry that another task was
// just given.
func (d *derived[PK, PV, K, V]) relink(work, gone []*task[PK, K, V]) {
	for _, t := range work {
		for _, dep := range t.newDeps { // none unless moved
			dep.add(t)
		}
	}
	for _, t := range append(work, gone...) {
		if !t.moved && !t.gone {
			continue
		}
		kept := make(map[dependency]bool, len(t.newDeps))
		for _, dep := range t.newDeps {
			kept[dep] = true
		}
		for _, dep := range t.deps {
			if !kept[dep] {
				dep.remove(t)
			}
		}
		t.deps = t.newDeps
	}
}

// claim takes over what t no longer emits and what it emits anew, and notes the keys whose owner may have changed.
func (d *derived[PK, PV, K, V]) claim(t *task[PK, K, V], touched map[K]struct{}) {
	for _, row := range t.dropped {
		touched[row.Key] = struct{}{}
		rest := slices.DeleteFunc(d.claims[row.Key], func(c claim[PK, K, V]) bool { return c.by == t })
		if d.claims[row.Key] = rest; len(rest) == 0 {
			delete(d.claims, row.Key)
		}
	}
	for _, row := range t.added {
		touched[row.Key] = struct{}{}
		cs := d.claims[row.Key]
		i, _ := slices.BinarySearchFunc(cs, t.key, func(c claim[PK, K, V], k PK) int { return d.order(c.by.key, k) })
		d.claims[row.Key] = slices.Insert(cs, i, claim[PK, K, V]{t, row})
	}
	t.outcome = nil
}

// owner returns the row that k has, nil if nobody emits it.
func (d *derived[PK, PV, K, V]) owner(k K) (best *Row[K, V]) {
	for _, c := range d.claims[k] {
		if best == nil || d.prefer(c.row.Val, best.Val) {
			best = c.row
		}
	}
	return best
}

// evaluate runs the tasks, on several workers if there are several tasks. In a strict graph it panics if one of them did.
func (d *derived[PK, PV, K, V]) evaluate(work []*task[PK, K, V]) {
	n := min(d.graph.opts.Workers, len(work))
	for len(d.workers) < n {
		d.workers = append(d.workers, newWorker(d))
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	for _, w := range d.workers[:n] {
		loop := func() {
			for i := next.Add(1) - 1; i < int64(len(work)); i = next.Add(1) - 1 {
				w.run(work[i])
			}
		}
		if n == 1 {
			loop() // a single change is not worth a goroutine
		} else {
			wg.Go(loop)
		}
	}
	wg.Wait()
	for _, t := range work {
		if t.fault == nil {
			d.mended(t.key)
			continue
		}
		if d.graph.opts.Strict {
			panic(t.fault.Error())
		}
		d.panics.Add(1)
		if d.faults == nil {
			d.faults = map[PK]struct{}{}
		}
		d.faults[t.key] = struct{}{}
		d.graph.judge(d.name, t.key, t.fault)
		d.graph.opts.Log.Error("table's function panicked; the row keeps its last output",
			slog.String("table", d.name), slog.Any("key", t.key), slog.Any("err", t.fault))
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
	w.reader = Reader{by: &d.meter, seen: map[dependency]struct{}{}}
	w.emit = w.add // bound once
	return w
}

func (w *worker[PK, PV, K, V]) add(k K, v V) {
	i, dup := w.index[k]
	switch {
	case !dup:
		w.index[k] = len(w.rows)
		w.rows = append(w.rows, Row[K, V]{k, v})
	case w.d.prefer(v, w.rows[i].Val):
		w.rows[i].Val = v
	}
}

// run evaluates t and notes what is new. An output equal to the last one keeps its row.
func (w *worker[PK, PV, K, V]) run(t *task[PK, K, V]) {
	defer func() {
		if p := recover(); p != nil {
			t.fault = fmt.Errorf("graph: table %q, key %v: %v\n%s", w.d.name, t.key, p, debug.Stack())
		}
		if t.moved = !slices.Equal(t.deps, w.reader.deps); t.moved {
			t.newDeps = slices.Clone(w.reader.deps)
		}
		clear(w.reader.seen)
		clear(w.rows)
		clear(w.index)
		w.reader.deps, w.rows, w.reader.keep = w.reader.deps[:0], w.rows[:0], false
	}()
	v, _ := w.d.from.current(t.key)
	w.d.f(&w.reader, t.key, v, w.emit)
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
			outs[i] = &row
			added = append(added, &row)
		}
	}
	t.outs, t.dropped, t.added = outs, dropped, added
}
