package graph

import (
	"errors"
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
		tasks: map[PK]*task[PK, K, V]{}, claims: map[K]*claims[PK, K, V]{},
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
	dirty   []*task[PK, K, V] // to evaluate in the next step, besides those whose row of from changed
	claims  map[K]*claims[PK, K, V]
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

	// Set by an evaluation for the step to take over.
	newDeps []dependency
	newOuts []*Row[K, V]
	moved   bool // newDeps differ from deps
	fault   error
}

func (t *task[PK, K, V]) markDirty() {
	if !t.dirty {
		t.dirty = true
		*t.queue = append(*t.queue, t)
	}
}

// claims are the outputs for one key, in order of the inputs that emitted them. Nearly always there is one.
type claims[PK comparable, K comparable, V any] struct {
	one  claim[PK, K, V]
	more []claim[PK, K, V]
}

type claim[PK comparable, K comparable, V any] struct {
	by  *task[PK, K, V]
	row *Row[K, V]
}

func (d *derived[PK, PV, K, V]) step(rev Rev) bool {
	work, gone := d.due()
	d.evaluate(work)
	d.relink(slices.Clone(work), gone)
	touched := map[K]struct{}{}
	for _, t := range gone {
		d.claim(t, nil, touched)
	}
	for _, t := range work {
		if !slices.Equal(t.outs, t.newOuts) {
			d.claim(t, t.newOuts, touched)
		}
		t.newOuts = nil
	}
	var at K
	defer blame(d.name, &at)
	for at = range touched {
		d.set(rev, at, d.owner(at))
	}
	d.evaluated.Add(uint64(len(work)))
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
			t.gone = true
			gone = append(gone, t)
		}
	}
	work = slices.DeleteFunc(d.dirty, func(t *task[PK, K, V]) bool { return t.gone })
	d.dirty = nil
	for _, t := range work {
		t.dirty = false
	}
	return work, gone
}

// relink replaces what the tasks depend on. Adds come before removes: a remove may take away an entry that another task was
// just given.
func (d *derived[PK, PV, K, V]) relink(work, gone []*task[PK, K, V]) {
	work = slices.DeleteFunc(work, func(t *task[PK, K, V]) bool { return !t.moved })
	for _, t := range work {
		for _, dep := range t.newDeps {
			dep.add(t)
		}
	}
	for _, t := range append(work, gone...) {
		kept := make(map[dependency]bool, len(t.newDeps))
		for _, dep := range t.newDeps {
			kept[dep] = true
		}
		for _, dep := range t.deps {
			if !kept[dep] {
				dep.remove(t)
			}
		}
		t.deps, t.newDeps, t.moved = t.newDeps, nil, false
	}
}

// claim makes outs what t emits, and notes the keys whose owner may have changed.
func (d *derived[PK, PV, K, V]) claim(t *task[PK, K, V], outs []*Row[K, V], touched map[K]struct{}) {
	for _, row := range t.outs {
		touched[row.Key] = struct{}{}
		if cs := d.claims[row.Key]; cs.drop(t) {
			delete(d.claims, row.Key)
		}
	}
	for _, row := range outs {
		touched[row.Key] = struct{}{}
		c := claim[PK, K, V]{t, row}
		if cs := d.claims[row.Key]; cs != nil {
			cs.insert(c, d.order)
		} else {
			d.claims[row.Key] = &claims[PK, K, V]{one: c}
		}
	}
	t.outs = outs
}

// drop removes the claim of t, which is there, and reports whether none is left.
func (cs *claims[PK, K, V]) drop(t *task[PK, K, V]) bool {
	if cs.one.by != t {
		cs.more = slices.DeleteFunc(cs.more, func(c claim[PK, K, V]) bool { return c.by == t })
		return false
	}
	if len(cs.more) == 0 {
		return true
	}
	cs.one, cs.more = cs.more[0], cs.more[1:]
	return false
}

func (cs *claims[PK, K, V]) insert(c claim[PK, K, V], order func(a, b PK) int) {
	if order(c.by.key, cs.one.by.key) < 0 {
		cs.one, c = c, cs.one
	}
	i, _ := slices.BinarySearchFunc(cs.more, c.by.key, func(c claim[PK, K, V], k PK) int { return order(c.by.key, k) })
	cs.more = slices.Insert(cs.more, i, c)
}

// owner returns the row that k has, nil if nobody emits it.
func (d *derived[PK, PV, K, V]) owner(k K) *Row[K, V] {
	cs := d.claims[k]
	if cs == nil {
		return nil
	}
	best := cs.one.row
	for _, c := range cs.more {
		if d.prefer(c.row.Val, best.Val) {
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
	if n == 1 {
		for _, t := range work {
			d.workers[0].run(t)
		}
	} else {
		var next atomic.Int64
		var wg sync.WaitGroup
		for _, w := range d.workers[:n] {
			wg.Go(func() {
				for i := next.Add(1) - 1; i < int64(len(work)); i = next.Add(1) - 1 {
					w.run(work[i])
				}
			})
		}
		wg.Wait()
	}
	for _, t := range work {
		if t.fault != nil && d.graph.opts.Strict {
			panic(t.fault.Error())
		}
		t.fault = nil
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

// run evaluates t and leaves the result in it. Outputs equal to the last ones keep their row, so that the rest of the step
// can compare pointers.
func (w *worker[PK, PV, K, V]) run(t *task[PK, K, V]) {
	defer func() {
		if p := recover(); p != nil {
			t.fault = fmt.Errorf("graph: table %q, key %v: %v\n%s", w.d.name, t.key, p, debug.Stack())
			w.d.panics.Add(1)
			w.d.graph.opts.Log.Error("panic in a table's function; the row keeps its last output",
				slog.String("table", w.d.name), slog.Any("key", t.key), slog.Any("err", errors.New(fmt.Sprint(p))), slog.String("stack", string(debug.Stack())))
			t.newOuts = t.outs
		}
		if t.moved = !slices.Equal(t.deps, w.reader.deps); t.moved {
			t.newDeps = slices.Clone(w.reader.deps)
		}
		w.reader.reset()
		clear(w.rows)
		w.rows = w.rows[:0]
		clear(w.index)
	}()
	v, _ := w.d.from.current(t.key)
	w.d.f(&w.reader, t.key, v, w.emit)
	t.newOuts = w.outs(t)
}

// outs returns what was emitted as rows: the old ones of t where they are equal.
func (w *worker[PK, PV, K, V]) outs(t *task[PK, K, V]) []*Row[K, V] {
	outs := make([]*Row[K, V], len(w.rows))
	for _, old := range t.outs {
		if i, ok := w.index[old.Key]; ok && w.d.equal(old.Val, w.rows[i].Val) {
			outs[i] = old
		}
	}
	for i := range outs {
		if outs[i] == nil {
			row := w.rows[i]
			outs[i] = &row
		}
	}
	if slices.Equal(outs, t.outs) {
		return t.outs
	}
	return outs
}
