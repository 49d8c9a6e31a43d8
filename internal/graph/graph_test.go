package graph

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func strict() *Graph { return New(Options{Strict: true, Workers: 4}) }

// A table that joins two tables derived from one source never sees them at different revisions.
func TestDiamondShowsNoMixedState(t *testing.T) {
	g := strict()
	src := NewSource[string, int](g, "src", nil)
	side := func(name string, add int) *Table[string, int] {
		return Derive(g, name, src.Table, TableOptions[int]{}, func(_ *Reader, k string, v int, emit func(string, int)) { emit(k, v+add) })
	}
	left, right := side("left", 1000), side("right", 2000)
	var evaluations atomic.Int64
	joined := Derive(g, "joined", left, TableOptions[[2]int]{}, func(r *Reader, k string, l int, emit func(string, [2]int)) {
		evaluations.Add(1)
		v, ok := Get(r, right, k)
		if !ok || l-1000 != v-2000 {
			t.Errorf("mixed state: left %d, right %d", l, v)
		}
		emit(k, [2]int{l, v})
	})
	const rounds = 1000
	for i := range rounds {
		src.Set("k", i)
		g.Step()
		if got, _ := joined.Lookup("k"); got != [2]int{i + 1000, i + 2000} {
			t.Fatalf("round %d: %v", i, got)
		}
	}
	if n := evaluations.Load(); n != rounds {
		t.Errorf("%d evaluations in %d rounds", n, rounds)
	}
}

// Many changes below many readers cost each reader one evaluation.
func TestOneEvaluationPerRowAndRound(t *testing.T) {
	const policies, pods = 500, 2000
	g := New(Options{})
	policy := NewSource[int, string](g, "policy", nil)
	pod := NewSource[int, int](g, "pod", nil)
	byNode := NewIndex(pod.Table, "pod/node", func(k, _ int) []int { return []int{k % 4} })
	Derive(g, "matched", policy.Table, TableOptions[int]{}, func(r *Reader, k int, _ string, emit func(int, int)) {
		emit(k, len(Find(r, byNode, k%4)))
	})
	for i := range policies {
		policy.Set(i, "p")
	}
	for i := range pods {
		pod.Set(i, 0)
	}
	g.Step()
	before := evaluated(g, "matched")
	for i := range 1000 {
		pod.Set(i, 1)
	}
	g.Step()
	if n := evaluated(g, "matched") - before; n != policies {
		t.Errorf("%d evaluations for 1000 pod events, want %d", n, policies)
	}
}

func evaluated(g *Graph, name string) uint64 {
	for _, m := range g.Meters() {
		if m.Name == name {
			return m.Evaluated
		}
	}
	return 0
}

// Equal output stops the wave.
func TestEqualOutputWakesNobody(t *testing.T) {
	g := strict()
	src := NewSource[string, int](g, "src", nil)
	half := Derive(g, "half", src.Table, TableOptions[int]{}, func(_ *Reader, k string, v int, emit func(string, int)) { emit(k, v/2) })
	Derive(g, "next", half, TableOptions[int]{}, func(_ *Reader, k string, v int, emit func(string, int)) { emit(k, v) })
	published := 0
	g.OnPublish(func(Rev) { published++ })
	src.Set("k", 4)
	g.Step()
	src.Set("k", 5)
	g.Step()
	if n := evaluated(g, "half"); n != 2 {
		t.Errorf("half evaluated %d times, want 2", n)
	}
	if n := evaluated(g, "next"); n != 1 {
		t.Errorf("next evaluated %d times, want 1", n)
	}
	src.Set("k", 5)
	g.Step()
	if published != 2 {
		t.Errorf("%d publications, want 2: a round that changes nothing publishes nothing", published)
	}
}

// A row that looked for an absent key is evaluated when the key appears, and no longer when it stopped looking.
func TestAbsentKeyIsADependency(t *testing.T) {
	g := strict()
	src := NewSource[string, string](g, "src", nil)
	other := NewSource[string, int](g, "other", nil)
	out := Derive(g, "out", src.Table, TableOptions[int]{}, func(r *Reader, k, at string, emit func(string, int)) {
		v, ok := Get(r, other.Table, at)
		if !ok {
			v = -1
		}
		emit(k, v)
	})
	src.Set("k", "a")
	g.Step()
	want := func(v int) {
		t.Helper()
		if got, _ := out.Lookup("k"); got != v {
			t.Errorf("got %d, want %d", got, v)
		}
	}
	want(-1)
	other.Set("a", 7)
	g.Step()
	want(7)
	src.Set("k", "b")
	g.Step()
	want(-1)
	before := evaluated(g, "out")
	other.Set("a", 8)
	g.Step()
	if evaluated(g, "out") != before {
		t.Error("evaluated for a key that it no longer reads")
	}
}

type claimant struct {
	age  int
	from string
}

// The preferred input owns a key; the next takes it over when the owner's output goes.
func TestKeyOwnership(t *testing.T) {
	for _, tc := range []struct {
		name   string
		prefer func(a, b claimant) bool
		order  []string // of succession
	}{
		{"by age", func(a, b claimant) bool { return a.age < b.age }, []string{"z", "m", "a"}},
		{"by order of inputs", nil, []string{"a", "m", "z"}},
		{"equal age: by order of inputs", func(a, b claimant) bool { return false }, []string{"a", "m", "z"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := strict()
			src := NewSource[string, int](g, "src", nil)
			out := Derive(g, "out", src.Table, TableOptions[claimant]{Prefer: tc.prefer}, func(_ *Reader, k string, age int, emit func(string, claimant)) {
				if age > 0 {
					emit("host", claimant{age, k})
				}
			})
			for age, k := range []string{1: "z", 2: "m", 3: "a"} {
				if k != "" {
					src.Set(k, age)
					g.Step()
				}
			}
			for i, owner := range tc.order {
				if got, _ := out.Lookup("host"); got.from != owner {
					t.Errorf("owner is %q, want %q", got.from, owner)
				}
				if i%2 == 0 {
					src.Delete(owner)
				} else {
					src.Set(owner, 0) // still there, but claims nothing
				}
				g.Step()
			}
			if got, ok := out.Lookup("host"); ok {
				t.Errorf("%v is left when nobody claims the key", got)
			}
		})
	}
}

// Group evaluates once for each key of its index, with all its rows in order, and takes outputs back with the last row.
func TestGroup(t *testing.T) {
	g := strict()
	pod := NewSource[string, string](g, "pod", nil)
	byNode := NewIndex(pod.Table, "pod/node", func(_, node string) []string { return []string{node, node} })
	list := Group(g, "list", byNode, TableOptions[string]{}, func(_ *Reader, node string, rows []*Row[string, string], emit func(string, string)) {
		var names []string
		for _, r := range rows {
			names = append(names, r.Key)
		}
		emit(node, strings.Join(names, ","))
	})
	for _, k := range []string{"c", "a", "d", "b"} {
		pod.Set(k, "n1")
	}
	pod.Set("e", "n2")
	g.Step()
	want := func(want map[string]string) {
		t.Helper()
		got := map[string]string{}
		for _, r := range list.All() {
			got[r.Key] = r.Val
		}
		if !maps.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	want(map[string]string{"n1": "a,b,c,d", "n2": "e"})
	if n := evaluated(g, "list"); n != 2 {
		t.Errorf("%d evaluations, want one for each node", n)
	}
	pod.Set("b", "n2")
	pod.Delete("a")
	g.Step()
	want(map[string]string{"n1": "c,d", "n2": "b,e"})
	pod.Delete("b")
	pod.Delete("e")
	g.Step()
	want(map[string]string{"n1": "c,d"})
}

// Replace speaks for the keys that it owns and no others, in the order in which things were staged.
func TestReplace(t *testing.T) {
	type rows = map[int]int
	for _, tc := range []struct {
		name string
		do   func(s *Source[int, int])
		want rows
	}{
		{"removes what it owns", func(s *Source[int, int]) { s.Replace([]Row[int, int]{{Key: 2, Val: 20}}, even) }, rows{1: 1, 2: 20}},
		{"nil owns all", func(s *Source[int, int]) { s.Replace([]Row[int, int]{{Key: 1, Val: 1}}, nil) }, rows{1: 1}},
		{"undoes an earlier set", func(s *Source[int, int]) { s.Set(6, 6); s.Replace(nil, even) }, rows{1: 1}},
		{"yields to a later set", func(s *Source[int, int]) { s.Replace(nil, even); s.Set(6, 6) }, rows{1: 1, 6: 6}},
		{"leaves sets of others", func(s *Source[int, int]) { s.Set(3, 3); s.Replace(nil, even) }, rows{1: 1, 3: 3}},
		{"rows survive a second one", func(s *Source[int, int]) {
			s.Replace([]Row[int, int]{{Key: 2, Val: 22}}, even)
			s.Replace(nil, func(k int) bool { return !even(k) })
		}, rows{2: 22}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := strict()
			s := NewSource[int, int](g, "s", nil)
			for _, k := range []int{1, 2, 4} {
				s.Set(k, k)
			}
			g.Step()
			tc.do(s)
			g.Step()
			if got := contents(s.Table); !maps.Equal(got, tc.want) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

func even(k int) bool { return k%2 == 0 }

// Whatever is staged in one Batch is seen in one revision, while others stage and rounds run all the time.
func TestBatchIsAtomic(t *testing.T) {
	g := New(Options{Quiet: time.Microsecond, Max: 10 * time.Microsecond})
	a, b := NewSource[int, int](g, "a", nil), NewSource[int, int](g, "b", nil)
	g.OnPublish(func(rev Rev) {
		x, _ := a.Lookup(0)
		if y, _ := b.Lookup(0); x != y {
			t.Errorf("revision %d: a is %d, b is %d", rev, x, y)
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	var run, stagers sync.WaitGroup
	run.Go(func() {
		if err := g.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	var mu sync.Mutex // one batch at a time, or the two rows could come from two of them
	for i := range 4 {
		stagers.Go(func() {
			for j := range 500 {
				a.Set(1+i, j) // others go on
				mu.Lock()
				g.Batch(func() {
					a.Set(0, i*1000+j)
					b.Set(0, i*1000+j)
				})
				mu.Unlock()
			}
		})
	}
	stagers.Wait()
	if err := g.WaitRev(ctx, g.Staged()); err != nil {
		t.Fatal(err)
	}
	cancel()
	run.Wait()
}

// Readers go on at the revision before while a round runs, and never go back in time between tables.
func TestReadersDoNotWaitForARound(t *testing.T) {
	g := New(Options{})
	src := NewSource[int, int](g, "src", nil)
	inRound, goOn := make(chan struct{}), make(chan struct{})
	out := Derive(g, "out", src.Table, TableOptions[int]{}, func(_ *Reader, k, v int, emit func(int, int)) {
		if v == 2 {
			close(inRound)
			<-goOn
		}
		emit(k, v)
	})
	src.Set(0, 1)
	g.Step()
	src.Set(0, 2)
	done := make(chan Rev)
	go func() { done <- g.Step() }()
	<-inRound
	for _, table := range []*Table[int, int]{src.Table, out} {
		if v, _ := table.Lookup(0); v != 1 {
			t.Errorf("%s shows %d during the round, want 1", table.name, v)
		}
		if rows := table.All(); !slices.Equal(rows, []Row[int, int]{{Key: 0, Val: 1}}) {
			t.Errorf("%s shows %v during the round", table.name, rows)
		}
	}
	if g.Staged() != 2 {
		t.Errorf("Staged is %d in the round that holds everything, want 2", g.Staged())
	}
	close(goOn)
	<-done
	if v, _ := out.Lookup(0); v != 2 {
		t.Errorf("shows %d after the round, want 2", v)
	}
}

func TestWaitRev(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Options{})
		s := NewSource[int, int](g, "s", nil)
		told := Rev(0)
		g.OnPublish(func(r Rev) { told = r })
		ctx, cancel := context.WithCancel(t.Context())
		go g.Run(ctx)
		s.Set(1, 1)
		rev := g.Staged()
		if err := g.WaitRev(ctx, rev); err != nil || told < rev {
			t.Errorf("waited for %d: %v, and OnPublish was last told %d", rev, err, told)
		}
		s.Set(1, 1) // changes nothing, but is a revision one can wait for
		if err := g.WaitRev(ctx, g.Staged()); err != nil {
			t.Error(err)
		}
		cancel()
		if err := g.WaitRev(ctx, rev+100); !errors.Is(err, context.Canceled) {
			t.Errorf("after the end: %v", err)
		}
	})
}

// Rounds start at once when nothing was going on, after a quiet gap otherwise, and at the latest after the maximum.
func TestRoundTiming(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Options{})
		s := NewSource[int, int](g, "s", nil)
		start, n := time.Now(), 0
		var rounds []string
		g.OnPublish(func(Rev) { rounds = append(rounds, fmt.Sprintf("%v:%d", time.Since(start), len(s.Changed()))) })
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go g.Run(ctx)
		set := func() { n++; s.Set(n, n) }
		expect := func(name string, want ...string) {
			t.Helper()
			time.Sleep(time.Second) // of the bubble's clock
			synctest.Wait()
			if !slices.Equal(rounds, want) {
				t.Errorf("%s: rounds (when:changes) %v, want %v", name, rounds, want)
			}
			rounds, start = nil, time.Now()
		}

		set()
		expect("first change", "0s:1")
		set()
		expect("single change after idle", "0s:1")

		for range 4 {
			set()
			time.Sleep(2 * time.Millisecond)
		}
		expect("a burst: the first at once, the rest after a quiet gap", "0s:1", "11ms:3")

		set()
		time.Sleep(5 * time.Millisecond)
		set()
		expect("a quiet gap after a round is idle again", "0s:1", "5ms:1")

		for range 80 {
			set()
			time.Sleep(3 * time.Millisecond)
		}
		// Changes come at 0, 3, …, 237 ms: those at 3 and 105 ms are the first to wait, the last is followed by a gap.
		expect("never quiet: at most the maximum", "0s:1", "103ms:34", "205ms:34", "242ms:11")
	})
}

// What was staged before a Run ended is taken up by the next.
func TestRunAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Options{})
		s := NewSource[int, int](g, "s", nil)
		for i := range 3 {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			s.Set(2*i, i) // first: a Run that has begun with what was left would put this off by the quiet gap
			go func() { done <- g.Run(ctx) }()
			synctest.Wait() // a round at once
			s.Set(2*i+1, i)
			synctest.Wait() // in the quiet gap
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if n := len(s.All()); n != 5 {
			t.Errorf("%d rows are published, want all but the last one staged", n)
		}
	})
}

func TestRunAndStepOwnTheGraph(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Options{})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go g.Run(ctx)
		synctest.Wait()
		if err := g.Run(ctx); err == nil {
			t.Error("a second Run returned nil")
		}
		mustPanic(t, "Step while another Run", func() { g.Step() })
	})
}

// A panic in a table's function is reported with table and key, leaves the last output, and heals.
func TestPanicKeepsLastOutput(t *testing.T) {
	var log bytes.Buffer
	g := New(Options{Log: slog.New(slog.NewTextHandler(&log, nil)), Workers: 2})
	src := NewSource[string, int](g, "src", nil)
	out := Derive(g, "routes", src.Table, TableOptions[int]{}, func(_ *Reader, k string, v int, emit func(string, int)) {
		if v < 0 {
			panic("negative")
		}
		emit(k, v)
	})
	src.Set("good", 1)
	src.Set("shop/cart", 1)
	g.Step()
	src.Set("good", 2)
	src.Set("shop/cart", -1)
	g.Step()
	want := func(good, bad int) {
		t.Helper()
		g, _ := out.Lookup("good")
		if b, _ := out.Lookup("shop/cart"); g != good || b != bad {
			t.Errorf("got %d and %d, want %d and %d", g, b, good, bad)
		}
	}
	want(2, 1)
	for _, part := range []string{"table=routes", "key=shop/cart", "negative", "graph_test.go"} {
		if !strings.Contains(log.String(), part) {
			t.Errorf("log lacks %q: %s", part, log.String())
		}
	}
	if m := g.Meters()[1]; m.Panics != 1 || m.Rows != 2 || m.Evaluated != 4 {
		t.Errorf("meter %+v", m)
	}
	src.Set("shop/cart", 3)
	g.Step()
	want(2, 3)
}

// What breaks the rules of the package panics with a text that names the table, and the key where there is one.
func TestMisuse(t *testing.T) {
	src := func(g *Graph) *Source[string, *int] { return NewSource[string, *int](g, "src", nil) }
	nop := func(*Reader, string, *int, func(string, int)) {}
	for _, tc := range []struct {
		name, want string
		do         func(g *Graph)
	}{
		{"strict passes panics on", `table "out", key k: oops`, func(g *Graph) {
			s := src(g)
			Derive(g, "out", s.Table, TableOptions[int]{}, func(*Reader, string, *int, func(string, int)) { panic("oops") })
			s.Set("k", nil)
			g.Step()
		}},
		{"index keys", `table "ix", key k: oops`, func(g *Graph) {
			s := src(g)
			NewIndex(s.Table, "ix", func(string, *int) []int { panic("oops") })
			s.Set("k", nil)
			g.Step()
		}},
		{"source equality", `table "s", key k: oops`, func(g *Graph) {
			s := NewSource[string](g, "s", func(a, b int) bool { panic("oops") })
			s.Set("k", 1)
			g.Step()
			s.Set("k", 2)
			g.Step()
		}},
		{"value changed after it was staged", `table "src", key k: the value was changed`, func(g *Graph) {
			s, n := src(g), 1
			s.Set("k", &n)
			g.Step()
			n = 2
			g.Step()
		}},
		{"table read before it is built", `"early" reads "late"`, func(g *Graph) {
			s := src(g)
			var late *Source[string, int]
			Derive(g, "early", s.Table, TableOptions[int]{}, func(r *Reader, k string, _ *int, emit func(string, int)) { Get(r, late.Table, k) })
			late = NewSource[string, int](g, "late", nil)
			s.Set("k", nil)
			g.Step()
		}},
		{"table of another graph", `"out" reads "src"`, func(g *Graph) {
			Derive(New(Options{}), "out", src(g).Table, TableOptions[int]{}, nop)
		}},
		{"built too late", `"out" is built after the first round`, func(g *Graph) {
			s := src(g)
			g.Step()
			Derive(g, "out", s.Table, TableOptions[int]{}, nop)
		}},
		{"keys without order", "have no order", func(g *Graph) {
			s := NewSource[struct{ p *int }, int](g, "s", nil)
			NewIndex(s.Table, "ix", func(struct{ p *int }, int) []int { return nil })
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			mustPanic(t, tc.want, func() { tc.do(strict()) })
		})
	}
}

func mustPanic(t *testing.T, want string, f func()) {
	t.Helper()
	defer func() {
		t.Helper()
		if p := recover(); p == nil || !strings.Contains(fmt.Sprint(p), want) {
			t.Errorf("panic %v, want one with %q", p, want)
		}
	}()
	f()
}

type byLength string

func (a byLength) Compare(b byLength) int { return len(a) - len(b) }

func TestOrdering(t *testing.T) {
	type inner struct{ b bool }
	type key struct {
		s string
		n [2]int8
		inner
		u uint
	}
	sorted := []key{
		{},
		{u: 1},
		{inner: inner{true}},
		{n: [2]int8{0, 1}},
		{n: [2]int8{1, -1}},
		{n: [2]int8{1, 0}},
		{s: "a", n: [2]int8{-1}},
		{s: "b"},
	}
	compare := ordering[key]("t")
	for i, a := range sorted {
		for j, b := range sorted {
			if got := compare(a, b); got < 0 != (i < j) || got > 0 != (i > j) {
				t.Errorf("compare(%v, %v) = %d", a, b, got)
			}
		}
	}
	if ordering[byLength]("t")("zz", "aaa") >= 0 {
		t.Error("the type's own Compare is not used")
	}
}

// The hash of Strict notices a change anywhere below a value, and nothing else.
func TestDeepHash(t *testing.T) {
	type node struct {
		name  string
		next  *node
		tags  map[string][]byte
		any   any
		when  time.Time
		array [2]float64
		reads atomic.Int32 // may change
	}
	n := &node{name: "a", tags: map[string][]byte{"x": {1}, "y": nil}, any: []int{1}, when: time.Now(), array: [2]float64{1, 2}}
	n.next = n // a cycle
	g := New(Options{})
	last := deepHash(g.seed, n)
	for name, change := range map[string]func(){
		"string":    func() { n.name = "b" },
		"bytes":     func() { n.tags["x"][0]++ },
		"map":       func() { n.tags["z"] = nil },
		"interface": func() { n.any.([]int)[0]++ },
		"time":      func() { n.when = n.when.Add(1) },
		"array":     func() { n.array[1]++ },
		"pointer":   func() { n.next = &node{} },
	} {
		if again := deepHash(g.seed, n); again != last {
			t.Errorf("before the change of %s: the hash differs though nothing changed", name)
		}
		_ = n.when.In(time.Local).String() // fills the location's cache
		n.reads.Add(1)
		if deepHash(g.seed, n) != last {
			t.Errorf("before the change of %s: reading changed the hash", name)
		}
		change()
		now := deepHash(g.seed, n)
		if now == last {
			t.Errorf("%s: a change is not noticed", name)
		}
		last = now
	}
}

// A row that keeps has what it emitted last, and is evaluated again by what it read.
func TestKeep(t *testing.T) {
	g := New(Options{Strict: true})
	src := NewSource[string, int](g, "src", nil)
	rendered := Derive(g, "rendered", src.Table, TableOptions[int]{}, func(_ *Reader, k string, v int, emit func(string, int)) {
		if v >= 0 { // else it can't be had
			emit(k, v)
		}
	})
	placed := Derive(g, "placed", src.Table, TableOptions[int]{}, func(r *Reader, k string, _ int, emit func(string, int)) {
		v, ok := Get(r, rendered, k)
		if !ok {
			r.Keep()
			return
		}
		emit(k, v)
	})
	for _, step := range []struct {
		set, want int
	}{{1, 1}, {-1, 1}, {2, 2}} {
		src.Set("a", step.set)
		g.Step()
		if v, _ := placed.Lookup("a"); v != step.want {
			t.Errorf("after %d the row is %d, want %d", step.set, v, step.want)
		}
	}
	src.Delete("a")
	g.Step()
	if v, ok := placed.Lookup("a"); ok {
		t.Errorf("the row is still %d when its input is gone", v)
	}
}
