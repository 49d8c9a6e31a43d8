// Package graph keeps derived tables equal to a full recomputation, in rounds; readers see one revision. It knows no domain type.
//
// A [Source] is fed from outside. [Derive] runs a pure function for each row of one table and [Group] for each key of an
// [Index]; inside it [Get] and [Find] are the only ways to read further tables, and each call records what it read, absent
// keys too. A table can only name tables built before it, so the order of construction is a topological order and a cycle
// cannot be written. One goroutine drains what is staged and brings the tables up to date in that order: each row that is
// out of date is evaluated once a round, however many of its inputs moved, and a row whose output is equal to the last one
// wakes nobody. Then the round is published as one revision.
//
// Values belong to the graph from Set or emit on: nobody may change them, or what they point to, ever again
// (Options.Strict holds tests to that). Functions given to the graph must be pure: they may be called again at any time
// and, for rows of one table, at the same time.
//
// A panic in a function given to Derive or Group is logged with the table, the key and the stack, and counted
// ([Meter.Panics], [Graph.Faults]); the row keeps what it emitted last until one of its inputs changes. One object that a translation
// chokes on must not take its mesh's control plane down, and again at every restart. A panic anywhere else (equality,
// preference, index keys, OnPublish) breaks an invariant: it ends the process, and its text names table and key.
package graph

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"maps"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Rev numbers the rounds of one Graph, from 1.
type Rev uint64

const (
	defaultQuiet = 5 * time.Millisecond   // shorter doubles the rounds of a rollout, longer is felt by every change in it
	defaultMax   = 100 * time.Millisecond // bound on what a stream of changes, none a quiet gap apart, may delay the first
)

// Options configures a Graph. The zero value works.
type Options struct {
	// Log receives panics of user functions; nil discards them.
	Log *slog.Logger
	// Quiet is how long nothing may be staged before a round starts, and Max bounds the wait of the first change staged.
	// A change that comes a quiet gap or more after the last round does not wait at all. Zero means 5 ms and 100 ms.
	Quiet, Max time.Duration
	// Workers bounds how many rows of a table are evaluated at a time; zero means GOMAXPROCS.
	Workers int
	// Strict is for tests: every round hashes every value and panics if one was changed after the graph got it, and
	// a panic in a user function is passed on rather than survived.
	Strict bool
}

// Graph is a set of tables that are brought up to date together. Build all of it first, then Run or Step it.
type Graph struct {
	opts    Options
	nodes   []node // in order of construction
	sinks   []func(Rev)
	changed []node // of the last round; settled by the next

	owned atomic.Bool // Run or Step is active
	view  atomic.Pointer[view]
	seed  maphash.Seed // of deepHash

	faulty sync.Mutex // guards faults
	faults map[faultKey]Fault

	batch sync.RWMutex // held for reading by Batch, for writing while a round takes what is staged

	mu            sync.Mutex // guards the fields below and what every Source has staged
	begun, ended  Rev
	notify        chan struct{} // closed and replaced when a round has ended
	first, latest time.Time     // when the first and the last of what is staged came; zero if nothing is
	wake          chan struct{} // holds a token if something is staged and Run has not seen it yet
}

// view is what readers see: the rows of every table at one revision, by table position.
type view struct {
	rev     Rev
	changed Rev // the last one that changed something
	tables  []any
}

// node is one step of a round: a source, a derived table or an index.
type node interface {
	stats() *meter
	step(rev Rev) bool // brings the node up to date with the ones before it; reports whether it changed
	settle()           // forgets what changed
	snapshot() any     // the rows to publish; nil for an index
	verify()           // panics if a value was changed after the graph got it

	// link and unlink note that a row, by, reads the key of this number, or no longer does.
	link(key uint32, by ref)
	unlink(key uint32, by ref)
}

// New returns an empty Graph.
func New(o Options) *Graph {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Quiet <= 0 {
		o.Quiet = defaultQuiet
	}
	if o.Max <= 0 {
		o.Max = defaultMax
	}
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	g := &Graph{opts: o, seed: maphash.MakeSeed(), notify: make(chan struct{}), wake: make(chan struct{}, 1)}
	g.view.Store(&view{})
	return g
}

// join gives a new node its place. Building after the first round panics: rows that exist would have passed it by.
func (g *Graph) join(n node, name string) {
	if g.view.Load().rev > 0 {
		panic(fmt.Sprintf("graph: table %q is built after the first round", name))
	}
	*n.stats() = meter{graph: g, name: name, pos: len(g.nodes)}
	g.nodes = append(g.nodes, n)
}

// OnPublish has f called on the graph's goroutine after each round that changed something, with [Table.Changed] valid
// until f returns. Register before Run. f must not call Step, Run or WaitRev; it may stage.
func (g *Graph) OnPublish(f func(Rev)) { g.sinks = append(g.sinks, f) }

// Batch calls f and lets everything that f stages land in one round. Rounds wait for f: keep it short. Batches must not
// be nested, and f must not wait for a round. Safe for concurrent use.
func (g *Graph) Batch(f func()) {
	g.batch.RLock()
	defer g.batch.RUnlock()
	f()
}

// Staged returns the revision that will hold (or holds) everything staged before the call; hand it to WaitRev.
func (g *Graph) Staged() Rev {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.first.IsZero() {
		return g.begun
	}
	return g.begun + 1
}

// WaitRev returns nil when revision r is published and its OnPublish functions have returned, or the error of ctx.
func (g *Graph) WaitRev(ctx context.Context, r Rev) error {
	for {
		g.mu.Lock()
		ended, notify := g.ended, g.notify
		g.mu.Unlock()
		if ended >= r {
			return nil
		}
		select {
		case <-notify:
		case <-ctx.Done():
			return fmt.Errorf("wait for revision %d, published is %d: %w", r, ended, ctx.Err())
		}
	}
}

// Run owns the graph and runs rounds as changes are staged, until ctx ends; then it returns nil.
func (g *Graph) Run(ctx context.Context) error {
	if !g.owned.CompareAndSwap(false, true) {
		return errors.New("graph: Run while another Run or Step owns the graph")
	}
	defer g.owned.Store(false)
	var last time.Time // when the last round ended
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-g.wake:
		}
		for wait := g.gap(last); wait > 0; wait = g.gap(last) {
			timer.Reset(wait)
			select {
			case <-ctx.Done():
				g.wake <- struct{}{} // for another Run
				return nil
			case <-timer.C:
			}
		}
		g.round()
		last = time.Now()
	}
}

// gap returns how long the next round should still wait for more changes.
func (g *Graph) gap(last time.Time) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.first.Sub(last) >= g.opts.Quiet { // nothing was going on
		return 0
	}
	until := g.latest.Add(g.opts.Quiet)
	if limit := g.first.Add(g.opts.Max); limit.Before(until) {
		until = limit
	}
	return time.Until(until)
}

// Step runs one round now, for tests and offline tools, and returns its revision. It panics while Run or Step runs.
func (g *Graph) Step() Rev {
	if !g.owned.CompareAndSwap(false, true) {
		panic("graph: Step while another Run or Step owns the graph")
	}
	defer g.owned.Store(false)
	return g.round()
}

// round takes what is staged, brings every node up to date in order, and publishes.
func (g *Graph) round() Rev {
	for _, n := range g.changed {
		n.settle()
	}
	g.changed = g.changed[:0]
	rev := g.take()
	now := time.Now()
	for _, n := range g.nodes {
		if n.step(rev) {
			g.changed = append(g.changed, n)
		}
		end := time.Now()
		n.stats().nanos.Add(int64(end.Sub(now)))
		now = end
	}
	if g.opts.Strict {
		for _, n := range g.nodes {
			n.verify()
		}
	}
	g.publish(rev)
	if len(g.changed) > 0 {
		for _, f := range g.sinks {
			f(rev)
		}
	}
	g.mu.Lock()
	g.ended = rev
	close(g.notify)
	g.notify = make(chan struct{})
	g.mu.Unlock()
	return rev
}

// take moves what is staged into the round that begins.
func (g *Graph) take() Rev {
	g.batch.Lock()
	defer g.batch.Unlock()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, n := range g.nodes {
		if s, ok := n.(interface{ takeLocked() }); ok {
			s.takeLocked()
		}
	}
	select {
	case <-g.wake:
	default:
	}
	g.first, g.latest = time.Time{}, time.Time{}
	g.begun++
	return g.begun
}

// stagedLocked notes that something was staged.
func (g *Graph) stagedLocked() {
	g.latest = time.Now()
	if g.first.IsZero() {
		g.first = g.latest
		g.wake <- struct{}{} // never blocks: the token is sent once until take
	}
}

// publish shows the round to readers in one step, so that no reader sees table a of one revision and then table b of an older one.
func (g *Graph) publish(rev Rev) {
	last := g.view.Load()
	now := &view{rev: rev, changed: last.changed, tables: make([]any, len(g.nodes))}
	copy(now.tables, last.tables)
	for _, n := range g.changed {
		now.tables[n.stats().pos], now.changed = n.snapshot(), rev
	}
	g.view.Store(now)
}

// Changed returns the last published revision that changed something, 0 if none did. Its OnPublish functions may be yet to
// return. Safe for concurrent use.
func (g *Graph) Changed() Rev { return g.view.Load().changed }

// meter identifies a node and counts what it does.
type meter struct {
	graph *Graph
	name  string
	pos   int

	rows                    atomic.Int64
	evaluated, read, panics atomic.Uint64
	nanos                   atomic.Int64
}

// Fault is a row whose function panicked when it was called last.
type Fault struct {
	Table string
	Key   any // of the input
	Err   error
}

type faultKey struct {
	table string
	key   any
}

// Faults returns the rows that keep an earlier output as their function panicked, in no particular order. Safe for concurrent use.
func (g *Graph) Faults() []Fault {
	g.faulty.Lock()
	defer g.faulty.Unlock()
	return slices.Collect(maps.Values(g.faults))
}

// judge notes how a row's last call ended.
func (g *Graph) judge(table string, key any, err error) {
	g.faulty.Lock()
	defer g.faulty.Unlock()
	at := faultKey{table, key}
	switch {
	case err == nil:
		delete(g.faults, at)
	case g.faults == nil:
		g.faults = map[faultKey]Fault{at: {table, key, err}}
	default:
		g.faults[at] = Fault{table, key, err}
	}
}

// Meter is what one table or index has cost since the graph was built.
type Meter struct {
	Name      string
	Rows      int           // now; of an index, its distinct keys
	Evaluated uint64        // calls of the table's function; of a source or an index, changes taken in
	Read      uint64        // rows that these calls had from Get, absent ones too, Find and Group
	Panics    uint64        // of these calls
	Time      time.Duration // wall time of the table's part of all rounds
}

// Meters returns the meters of all tables and indexes, in order of construction. Safe for concurrent use once the graph is built.
func (g *Graph) Meters() []Meter {
	ms := make([]Meter, len(g.nodes))
	for i, n := range g.nodes {
		s := n.stats()
		ms[i] = Meter{s.name, int(s.rows.Load()), s.evaluated.Load(), s.read.Load(), s.panics.Load(), time.Duration(s.nanos.Load())}
	}
	return ms
}

// mustPrecede panics unless what a function of r reads was built before the function's own table.
func (m *meter) mustPrecede(r *meter) {
	if m.graph != r.graph || m.pos >= r.pos {
		panic(fmt.Sprintf("graph: table %q reads %q, which was not built before it in the same graph", r.name, m.name))
	}
}

// blame is deferred around calls of user functions that must not panic; at is the key they are called for.
func blame[K any](table string, at *K) {
	if p := recover(); p != nil {
		panic(fmt.Sprintf("graph: table %q, key %v: %v\n%s", table, *at, p, debug.Stack()))
	}
}

// ref names something of a node by its number there: a row that reads, or a key that is read.
type ref struct{ node, at uint32 }

// dependent is a node whose rows must be evaluated again when something they read changes.
type dependent interface{ mark(row uint32) }

// readers holds who reads which key of one table or index. Keys that nobody reads are not in it.
type readers[K comparable] struct {
	mu   sync.RWMutex // guards the arena, not the sets: these are touched between evaluations only
	keys arena[K, set]
}

// set is who reads one thing. Nearly always that is a handful, and of what concerns a namespace some dozens, for which a map is
// three times as large and no faster.
type set struct {
	few  []ref
	many map[ref]struct{} // in place of few once there are more than fits
}

const fits = 64

func (s *set) add(r ref) {
	switch {
	case s.many != nil:
		s.many[r] = struct{}{}
	case slices.Contains(s.few, r):
	case len(s.few) < fits:
		s.few = append(s.few, r)
	default:
		s.many = map[ref]struct{}{r: {}}
		for _, o := range s.few {
			s.many[o] = struct{}{}
		}
		s.few = nil
	}
}

// remove takes r away and reports whether nobody is left.
func (s *set) remove(r ref) bool {
	if s.many != nil {
		delete(s.many, r)
		return len(s.many) == 0
	}
	s.few = slices.DeleteFunc(s.few, func(o ref) bool { return o == r })
	return len(s.few) == 0
}

// number returns the number of k, which a row is about to read. Safe for concurrent use.
func (rs *readers[K]) number(k K) uint32 {
	rs.mu.RLock()
	i, ok := rs.keys.find(k)
	rs.mu.RUnlock()
	if ok {
		return i
	}
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if i, ok = rs.keys.find(k); !ok {
		i = rs.keys.add(k)
	}
	return i
}

// touch marks every row that read k.
func (rs *readers[K]) touch(g *Graph, k K) {
	i, ok := rs.keys.find(k)
	if !ok {
		return
	}
	mark := func(r ref) { g.nodes[r.node].(dependent).mark(r.at) }
	s := &rs.keys.at(i).val
	for _, r := range s.few {
		mark(r)
	}
	for r := range s.many {
		mark(r)
	}
}

func (rs *readers[K]) link(key uint32, by ref) { rs.keys.at(key).val.add(by) }

func (rs *readers[K]) unlink(key uint32, by ref) {
	if rs.keys.at(key).val.remove(by) {
		rs.keys.remove(key)
	}
}

// Reader records what one evaluation reads. It is valid during the call that it is handed to.
type Reader struct {
	by   *meter
	keep bool
	rows uint64 // read
	deps []ref
	seen map[ref]struct{}
}

// Keep has the row keep what it emitted last, whatever this call emits: for one that finds something it reads not to be had
// for now, by a fault, and must not take that for a removal.
func (r *Reader) Keep() { r.keep = true }

func (r *Reader) record(m *meter, key uint32) {
	d := ref{uint32(m.pos), key}
	if _, ok := r.seen[d]; !ok {
		r.seen[d] = struct{}{}
		r.deps = append(r.deps, d)
	}
}

// Get returns the row k of t and records the dependency, also on a row that is absent.
func Get[K comparable, V any](r *Reader, t *Table[K, V], k K) (V, bool) {
	t.mustPrecede(r.by)
	r.record(&t.meter, t.readers.number(k))
	r.rows++
	return t.current(k)
}

// Find returns the rows of ix under ik, in order of their keys, and records the dependency. Slice and rows are shared: do not
// change them.
func Find[IK, K comparable, V any](r *Reader, ix *Index[IK, K, V], ik IK) []*Row[K, V] {
	ix.mustPrecede(r.by)
	r.record(&ix.meter, ix.readers.number(ik))
	rows := ix.current(ik)
	r.rows += uint64(len(rows))
	return rows
}
