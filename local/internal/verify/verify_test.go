package verify

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// all calls f for each script, rendered in each way in which it can be.
func all(t *testing.T, f func(t *testing.T, o Options, text []byte)) {
	s0, err := Document("s0")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range Scripts() {
		for _, form := range append([]string{""}, SelectorForms...) {
			for _, names := range []Names{s0, Random(7)} {
				t.Run(path.Join(name, form, strconv.FormatUint(names.Seed, 10)), func(t *testing.T) {
					o := Options{Script: name, Names: names, Selectors: form, Checkout: "/src"}
					text, err := render(o)
					if err != nil {
						t.Fatal(err)
					}
					f(t, o, text)
				})
			}
		}
	}
}

// A script that names a thing by a document's name would prove nothing.
func TestScriptsRenderWithOtherNames(t *testing.T) {
	all(t, func(t *testing.T, o Options, text []byte) {
		for _, n := range []string{"mesh-1", "app-ns-", "usergroup-", "istio-system-1"} {
			if o.Names.Seed != 0 && bytes.Contains(text, []byte(n)) {
				t.Errorf("names %q though other names were given", n)
			}
		}
	})
}

// Every script is without fault, and each of its lines knows where it stands.
func TestScriptsAreRead(t *testing.T) {
	all(t, func(t *testing.T, o Options, text []byte) {
		s, err := read(o.Script, text, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range s.rows { // or --all-red would look at it nowhere
			if file, _, _ := strings.Cut(r.place, ":"); !slices.Contains(Scripts(), strings.TrimSuffix(file, ".txtar")) {
				t.Errorf("row %s stands in %s, which is no script", r.id, file)
			}
		}
		lines, err := split(o.Script, text, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range lines {
			file, n, _ := strings.Cut(l.place, ":")
			source, err := scripts.ReadFile("scripts/" + file)
			if err != nil {
				source, err = scripts.ReadFile("scripts/lib/" + file)
			}
			at, atoiErr := strconv.Atoi(n)
			if err := errors.Join(err, atoiErr); err != nil {
				t.Fatalf("%q stands at %q: %v", l.words, l.place, err)
			}
			if have := strings.Split(string(source), "\n")[at-1]; !strings.HasPrefix(have, l.words[0]) {
				t.Errorf("%q does not stand at %s, where there is %q", l.words, l.place, have)
			}
		}
	})
}

// Nothing of a script is run of which something could not be run, or could not fail.
func TestFaultsOfScripts(t *testing.T) {
	for _, tt := range []struct{ name, script, fault string }{
		{"an unknown command", "run true\nouut two", `t.txtar:4: there is no command "ouut"`},
		{"a command of testscript", "skip", `t.txtar:3: there is no command "skip"`},
		{"one that ends the script", "stop", `t.txtar:3: there is no command "stop"`},
		{"a negation", "run true\n! out two", `t.txtar:4: there is no command "!"`},
		{"a condition", "run true\n[unix] out two", `t.txtar:4: there is no command "[unix]"`},
		{"an invalid pattern", "run true\nout '('", `t.txtar:4: REGEXP "(": error parsing regexp`},
		{"an invalid pattern among others", "run true\nnotout a 'b)' c", `t.txtar:4: REGEXP "b)"`},
		{"an invalid pattern to wait for", "until 1s true '['", `t.txtar:3: REGEXP "["`},
		{"a pattern that matches anything", "run true\nout '.*'", `t.txtar:4: REGEXP ".*": it matches anything`},
		{"too few arguments", "run true\ncount 7", `t.txtar:4: 1 arguments; usage: count N REGEXP`},
		{"too many arguments", "run echo one\nout one", `t.txtar:3: 2 arguments; usage: run LINE`},
		{"a pattern that is missing", "run true\nout", `t.txtar:4: 0 arguments`},
		{"no number", "run true\ncount many x", `t.txtar:4: N "many"`},
		{"no exit code", "run true\ncode -1", `t.txtar:4: N "-1"`},
		{"no time", "until soon true x", `t.txtar:3: WITHIN "soon"`},
		{"no time at all", "until 0s true x", `t.txtar:3: WITHIN "0s"`},
		{"no such mesh", "enrol x ns app 1 3\nout OK", `t.txtar:3: PLANE "3"`},
		{"no such need", "needs luck", `t.txtar:3: PEER "luck"`},
		{"no such deviation", "deviates D-00", `t.txtar:3: DEVIATION "D-00"`},
		{"a row without a check", "do true\nrow B b\ndo true", `t.txtar:4: row B checks nothing`},
		{"a row that prints only", "run true\nprint", `t.txtar:1: row A checks nothing`},
		{"a row that is there already", "run true\nout x\nrow A again\nrun true\nout x", `t.txtar:5: row A is there already, at t.txtar:1`},
		{"a run that nobody looks at", "run one\nrun two\nout x", `t.txtar:3: nobody looks at what run prints`},
		{"the last run", "run one\nout x\nrun two", `t.txtar:5: nobody looks at what run prints`},
		{"a refusal that nobody looks at", "enrol x ns app 1 2\nrun two\nout x", `t.txtar:3: nobody looks at what enrol prints`},
		{"a check of nothing", "row B b\nout x", `t.txtar:4: out follows nothing that was run`},
		{"a check of an event", "event e\nout x", `t.txtar:4: out follows nothing that was run`},
		{"what was never kept", "run true\nsame y", `t.txtar:4: nothing is kept as y before`},
		{"what is kept later", "run true\ndiffers y\nrun true\nkeep y", `t.txtar:4: nothing is kept as y before`},
		{"what is kept for nobody", "run true\nkeep y", `t.txtar:4: nothing is compared with what is kept as y`},
		{"an event that is none", "until 1s@e true x", `t.txtar:3: there is no event e before`},
		{"a quote that is not closed", "run 'true", `t.txtar:3: a quote is not closed`},
		{"a variable that is replaced", "run true\nout ^$HOME", `t.txtar:4: a $ outside of quotes`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ran := filepath.Join(t.TempDir(), "ran")
			script := "row A 'something is done'\ndo 'touch " + ran + "'\n" + tt.script + "\n"
			_, err := runText(t.Context(), Options{Script: "t", Checkout: t.TempDir(), Out: io.Discard}, []byte(withPlaces("t.txtar", script)))
			if err == nil || !strings.Contains(err.Error(), tt.fault) {
				t.Errorf("the fault is %v, want %s", err, tt.fault)
			}
			if _, err := os.Stat(ran); err == nil {
				t.Error("the script was run")
			}
		})
	}
	for name, script := range map[string]string{"nothing": "", "a comment": "# no row\n", "what comes before a row": "run true\nout x\n"} {
		if _, err := runText(t.Context(), Options{Script: "t", Checkout: t.TempDir(), Out: io.Discard}, []byte(script)); err == nil {
			t.Errorf("a script of %s is green", name)
		}
	}
	script := "row A a\nouut two\nrun true\nout '('\n"
	_, err := runText(t.Context(), Options{Script: "t", Checkout: t.TempDir(), Out: io.Discard}, []byte(withPlaces("t.txtar", script)))
	if err == nil || !strings.Contains(err.Error(), "t.txtar:2:") || !strings.Contains(err.Error(), "t.txtar:4:") {
		t.Errorf("not all faults are named: %v", err)
	}
}

func TestRandomNamesAreLabels(t *testing.T) {
	label := regexp.MustCompile(`^[a-z][a-z0-9-]{1,38}[a-z]$`)
	for seed := range uint64(500) {
		n := Random(seed)
		for _, w := range []string{n.Sys1, n.Sys2, n.Mesh1, n.Mesh2, n.Label, n.Value1, n.Value2, n.App1, n.App2, n.App3, n.Sleep, n.Httpbin} {
			if !label.MatchString(w) {
				t.Errorf("seed %d: %q is not a label", seed, w)
			}
		}
		if n.Port < 1 || n.Port > 65535 || n.Port == 53 || n.Port >= 15000 && n.Port < 15100 {
			t.Errorf("seed %d: port %d", seed, n.Port)
		}
		if n != Random(seed) {
			t.Errorf("seed %d gives two sets of names", seed)
		}
	}
}

// red runs a script and returns the rows that are red, in a row.
func red(t *testing.T, o Options, script string) string {
	t.Helper()
	out := &bytes.Buffer{}
	o.Script, o.Checkout, o.Out = "t", t.TempDir(), out
	rows, err := runText(t.Context(), o, []byte(script))
	if err != nil {
		t.Fatal(err)
	}
	t.Log(out)
	var ids string
	for _, r := range rows {
		if r.Red() {
			ids += r.ID
		}
	}
	return ids
}

// The engine itself: a row is red for what was not seen, for the right reason, and later rows still run.
func TestRows(t *testing.T) {
	if got := red(t, Options{}, `
row A 'output is compared'
run 'echo one; echo two >&2; exit 3'
out '^one$' '^two$'
code 3
count 2 '^.+$'
row B 'what is missing makes a row red'
run 'echo one'
out three
row C 'and what should not be there'
run 'echo one'
notout one
row D 'output is kept and compared'
run 'echo one'
keep x
run 'echo one'
same x
run 'echo two'
differs x
row E 'until waits'
until 5s 'echo >> $W/f; wc -l < $W/f' '^[3-9]'
row F 'a different exit code is red'
run true
code 1
row G 'one of several codes is not'
run 'exit 7'
code 5 7
row H 'files are there'
run 'cat $W/file'
out '^inside$'
-- file --
inside
`); got != "BCF" {
		t.Errorf("red are %s, want BCF", got)
	}
}

// What does not end as it should is red, though nothing that is looked for says so.
func TestUnexpectedEnds(t *testing.T) {
	if got := red(t, Options{}, `
row A 'there is no such program'
run nosuchprogram
notout x
row B 'nor is there for a change'
do nosuchprogram
run true
notout x
row C 'a change fails'
do 'exit 4'
run 'echo one'
out one
row D 'a change fails last'
run 'echo one'
out one
do false
row E 'a refusal is what is wanted'
do 'exit 1'
code 1
row F 'a function that is not there, among others'
run 'nosuchfunction && echo one'
notout one
row G 'no cluster to ask'
rights 1 ns
notout x
row H 'what was killed'
run 'echo one; kill -9 $$'
out one
`); got != "ABCDFGH" {
		t.Errorf("red are %s, want ABCDFGH", got)
	}
}

// What is waited for is seen when it has ended as it should, too: with 0, or as the row asks.
func TestUntilMindsHowALineEnds(t *testing.T) {
	if got := red(t, Options{}, `
row A 'it prints what is wanted, and fails'
until 50ms 'echo done; exit 3' done
row B 'the same, once more'
do 'touch $W/b'
until 10s 'echo done; rm $W/b && exit 3; true' done
row C 'it fails as it is to'
until 10s 'echo done; exit 3' done
code 2 3
row D 'it fails otherwise'
until 50ms 'echo done; exit 4' done
code 2 3
row E 'it is to fail, and does not'
until 50ms 'echo done' done
code 1
row F 'the asked code is of that line alone'
until 10s 'echo done; exit 3' done
code 3
until 50ms 'echo done; exit 3' done
`); got != "ADEF" {
		t.Errorf("red are %s, want ADEF", got)
	}
}

// A bound is held by the end of what was seen, from the event that it speaks of, and what hangs is killed.
func TestTimeBounds(t *testing.T) {
	began := time.Now()
	if got := red(t, Options{}, `
row A 'what is seen too late'
until 50ms 'sleep 1; echo done' done
row B 'what is seen, and goes on'
until 50ms 'echo done; sleep 60' done
row C 'what leaves a child behind that goes on'
until 50ms 'sleep 60 | cat; echo done' done
row D 'in time since the event'
event e
until 60s@e 'echo done' done
row E 'too late since the event'
do 'sleep 0.1'
until 50ms@e 'echo done' done
`); got != "ABCE" {
		t.Errorf("red are %s, want ABCE", got)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("what hangs went on for %s", took)
	}
}

// A run that was interrupted has not seen what it did not look at.
func TestInterruptedRun(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	out := writer(func(b []byte) {
		if bytes.HasPrefix(b, []byte("A ")) {
			cancel()
		}
	})
	const script = "row A a\nrun 'echo one'\nout one\nrow B b\nuntil 1h 'echo one' two\n"
	rows, err := runText(ctx, Options{Script: "t", Checkout: t.TempDir(), Out: out}, []byte(script))
	if !errors.Is(err, context.Canceled) || len(rows) != 1 {
		t.Errorf("interrupted between rows: %d rows, error %v", len(rows), err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	out = writer(func(b []byte) {
		if bytes.HasPrefix(b, []byte("$ echo")) {
			cancel()
		}
	})
	rows, err = runText(ctx, Options{Script: "t", Checkout: t.TempDir(), Out: out, Verbose: true}, []byte(script))
	if !errors.Is(err, context.Canceled) || len(rows) != 0 {
		t.Errorf("interrupted in a row: %d rows, error %v", len(rows), err)
	}
}

// The machine is busy from one line of a script to a later one, and no longer than the run.
func TestBusy(t *testing.T) {
	for name, c := range map[string]struct {
		idle, red string
		cut       bool
	}{
		"idle":              {idle: "do idle\n", red: ""},
		"forgotten":         {},
		"interrupted":       {cut: true},
		"idle before it is": {idle: "do 'rm $W/busy; idle'\n", red: "B"}, // as when the time ran out
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var loops []int // file descriptors
			file := filepath.Join(t.TempDir(), "pids")
			out := writer(func(b []byte) {
				if !bytes.HasPrefix(b, []byte("A ")) {
					return
				}
				pids, err := os.ReadFile(file)
				if err != nil {
					t.Error(err)
				}
				for _, s := range strings.Fields(string(pids)) {
					pid, _ := strconv.Atoi(s)
					fd, err := unix.PidfdOpen(pid, 0)
					if err != nil {
						t.Errorf("process %q is gone with its line: %v", s, err)
						continue
					}
					loops = append(loops, fd)
					if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0); n != 0 || err != nil {
						t.Errorf("process %s ended with its line: %v", s, err)
					}
				}
				if c.cut {
					cancel()
				}
			})
			rows, err := runText(ctx, Options{Script: "t", Checkout: t.TempDir(), Out: out},
				[]byte("row A a\ndo 'busy 60; jobs -p >"+file+"'\ncode 0\nrow B b\n"+c.idle+"run 'echo one'\nout one\n"))
			if (err != nil) != c.cut {
				t.Error(err)
			}
			var red string
			for _, r := range rows {
				if r.Red() {
					red += r.ID
				}
			}
			if red != c.red || len(loops) == 0 {
				t.Errorf("red are %q, want %q; %d processes", red, c.red, len(loops))
			}
			for _, fd := range loops {
				if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000); n != 1 || err != nil {
					t.Errorf("a loop goes on after the run: %v", err)
				}
				_ = unix.Close(fd)
			}
		})
	}
}

type writer func([]byte)

func (w writer) Write(b []byte) (int, error) { w(b); return len(b), nil }

// On a cluster where nothing was done nothing is to be seen, and it costs little to say so.
func TestLookOnly(t *testing.T) {
	tries := filepath.Join(t.TempDir(), "tries")
	began := time.Now()
	if got := red(t, Options{LookOnly: true}, `
row A 'what is done is not there'
do 'echo one'
out one
row B 'nor does it end as it should'
do true
code 0
row C 'what is looked for once is not found'
until 1h 'echo try >>`+tries+`; echo two' one
until 1h 'sleep 600' two
row D 'what is there anyway'
do 'echo one'
run 'echo one'
out one
row E 'no load is sent'
load x ns app to service 50
run 'echo one'
out one
`); got != "ABC" {
		t.Errorf("red are %s, want ABC", got)
	}
	if seen, err := os.ReadFile(tries); err != nil || string(seen) != "try\n" {
		t.Errorf("tried %q, want once: %v", seen, err)
	}
	if took := time.Since(began); took > time.Minute {
		t.Errorf("a red row was looked at on and on, for %s", took)
	}
}

// Rows of another script can be left out, where that one is run too.
func TestOwnRows(t *testing.T) {
	text := withPlaces("t.txtar", "row A a\nrun 'echo one'\nout one\n") + withPlaces("other.txtar", "row B b\nrun 'echo one'\nout one\n")
	for own, want := range map[bool]int{false: 2, true: 1} {
		rows, err := runText(t.Context(), Options{Script: "t", Checkout: t.TempDir(), Out: io.Discard, OwnRows: own}, []byte(text))
		if err != nil || len(rows) != want || rows[0].ID != "A" {
			t.Errorf("own: %t: rows %v, error %v", own, rows, err)
		}
	}
}

// A row that cannot be looked at is neither seen nor forgotten.
func TestLeftOut(t *testing.T) {
	const script = "row A a\nrun 'echo one'\nout one\nrow B b\nneeds peer\nrun '$PEER'\nout one\n"
	for _, tt := range []struct {
		peer string
		red  []string
		last string // line, or the error
	}{
		{"", nil, "All 1 rows are as they should be; 1 left out: B (needs the peer istioctl)"},
		{"", []string{"B"}, "All 1 rows are as they should be; 1 left out: B (needs the peer istioctl)"},
		{"", []string{"A"}, "1 of 1 rows are not as they should be: A; 1 left out: B (needs the peer istioctl)"},
		{"echo one", nil, "All 2 rows are as they should be"},
		{"echo two", nil, "1 of 2 rows are not as they should be: B"},
		{"echo one", []string{"C"}, "1 of 2 rows are not as they should be: C (no such row)"},
	} {
		out := &bytes.Buffer{}
		rows, err := runText(t.Context(), Options{Script: "t", Checkout: t.TempDir(), Out: out, Peer: tt.peer}, []byte(script))
		if err != nil {
			t.Fatal(err)
		}
		if err := Judge(out, rows, tt.red); err != nil {
			out.WriteString(err.Error() + "\n")
		}
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if last := lines[len(lines)-1]; last != tt.last {
			t.Errorf("peer %q, red %v: %s, want %s", tt.peer, tt.red, last, tt.last)
		}
	}
}

// What a control breaks it mends, also where the run is interrupted, or breaking fails half-way.
func TestControlsMend(t *testing.T) {
	s0, err := Document("s0")
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		breaks     string
		interrupts bool
	}{
		"interrupted while it looks":   {"touch $BROKEN", true},
		"interrupted while it breaks":  {"touch $BROKEN && echo >$PIPE && sleep 60", true},
		"breaking fails in the middle": {"touch $BROKEN && false", false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			broken, pipe := filepath.Join(dir, "broken"), filepath.Join(dir, "pipe")
			if err := unix.Mkfifo(pipe, 0o600); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			out := writer(func(b []byte) {
				if tt.interrupts && bytes.HasPrefix(b, []byte("ITEM")) {
					cancel()
				}
			})
			if strings.Contains(tt.breaks, "$PIPE") {
				go func() {
					_, _ = os.ReadFile(pipe) // until the line has come so far
					cancel()
				}()
			}
			began := time.Now()
			env := strings.NewReplacer("$BROKEN", broken, "$PIPE", pipe).Replace
			err := RunControls(ctx, Options{Names: s0, Checkout: t.TempDir(), Out: out}, []Control{
				{Name: "one", Script: "checks", Break: env(tt.breaks), Mend: env("rm $BROKEN")},
				{Name: "two", Script: "checks", Break: env("touch $BROKEN.two"), Mend: "true"},
			})
			if err == nil || tt.interrupts != errors.Is(err, context.Canceled) {
				t.Errorf("the run ends with %v", err)
			}
			for _, left := range []string{broken, broken + ".two"} {
				if _, err := os.Stat(left); err == nil {
					t.Errorf("%s is there", left)
				}
			}
			if took := time.Since(began); took > 30*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

// Each script has a control that makes rows of it red, or says why it needs none.
func TestScriptsHaveControls(t *testing.T) {
	controls := map[string]bool{}
	for _, c := range Controls() {
		controls[c.Script] = true
		text, err := render(Options{Script: c.Script, Names: Random(7)})
		if err != nil {
			t.Errorf("control %s: %v", c.Name, err)
			continue
		}
		s, err := read(c.Script, text, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if len(c.Red) == 0 {
			t.Errorf("control %s makes nothing red", c.Name)
		}
		for _, id := range c.Red {
			if !slices.ContainsFunc(s.rows, func(r *row) bool { return r.id == id }) {
				t.Errorf("control %s: %s has no row %s", c.Name, c.Script, id)
			}
		}
		for _, text := range []string{c.Break, c.Mend} {
			if _, err := fill(text, Random(7)); err != nil || text == "" {
				t.Errorf("control %s: %q: %v", c.Name, text, err)
			}
		}
	}
	for _, name := range Scripts() {
		if why, without := Uncontrolled[name]; without == controls[name] || without && why == "" {
			t.Errorf("%s: has a control: %t; why it has none: %q", name, controls[name], why)
		}
	}
	for name := range Uncontrolled {
		if !slices.Contains(Scripts(), name) {
			t.Errorf("there is no script %s", name)
		}
	}
}

// What an idle cluster costs is held against bounds that little more breaks.
func TestIdleRowsCanBeRed(t *testing.T) {
	names := Random(7)
	text, err := render(Options{Script: "idle", Names: names})
	if err != nil {
		t.Fatal(err)
	}
	s, err := read("idle", text, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	memory := func(plane, agent string) string {
		return strings.Repeat("plane ns VmRSS: 62.0 MB RssAnon: "+plane+" MB \n", 2) +
			strings.Repeat("agent ns/a VmRSS: 17.2 MB RssAnon: "+agent+" MB \n", 6)
	}
	sent := func(n string) string {
		return `heddle_xds_responses_total{mesh="a"} 7` + "\n" + `heddle_xds_responses_total{mesh="b"} ` + n + "\n"
	}
	good := map[string][]string{
		"responses": {sent("9"), sent("9")}, "asked $(cat $W/since)": {"since 2026-11-30T16:00:00Z\n"},
		`heddle-local logs audit | grep -c "\"verb\":\"watch\""`: {"40\n"}, "resident": {memory("18.0", "6.4")},
	}
	for _, tt := range []struct {
		name, line string
		prints     []string
		want       string
	}{
		{"as measured", "resident", good["resident"], ""},
		{"at the bounds", "resident", []string{memory("20.0", "8.0")}, ""},
		{"small", "resident", []string{memory("9.9", "0.5")}, ""},
		{"a plane above its bound", "resident", []string{memory("20.1", "6.4")}, "G13"},
		{"a plane of 40 MB", "resident", []string{memory("39.9", "6.4")}, "G13"},
		{"an agent above its bound", "resident", []string{memory("18.0", "8.1")}, "G13"},
		{"an agent of 12 MB", "resident", []string{memory("18.0", "12.0")}, "G13"},
		{"a plane that is not there", "resident", []string{strings.Replace(memory("18.0", "6.4"), "plane", "", 1)}, "G13"},
		{"somebody asked", "asked $(cat $W/since)", []string{"system:serviceaccount:ns:a list /api/v1/pods\nsince 2026-11-30T16:00:00Z\n"}, "G8"},
		{"something was sent", "responses", []string{sent("9"), sent("10")}, "G8"},
		{"nothing was ever sent", "responses", []string{sent("0"), sent("0")}, "G8"},
		{"nothing was heard", `heddle-local logs audit | grep -c "\"verb\":\"watch\""`, []string{"0\n"}, "G8"},
	} {
		prints := maps.Clone(good)
		prints[tt.line] = tt.prints
		r := &run{ctx: t.Context(), o: Options{Out: io.Discard}, kept: map[string]string{}}
		for _, spec := range s.rows {
			told := *spec
			told.actions = nil
			for _, a := range spec.actions {
				fake := *a
				fake.act = func(r *run, args []string) {
					r.output, r.code = "", 0
					if p := prints[args[0]]; len(p) > 0 {
						r.output, prints[args[0]] = p[0], p[1:]
					}
				}
				told.actions = append(told.actions, &fake)
			}
			r.look(&told)
		}
		var ids string
		for _, row := range r.rows {
			if row.Red() {
				ids += row.ID
			}
		}
		if ids != tt.want {
			t.Errorf("%s: red is %q, want %q", tt.name, ids, tt.want)
		}
	}
}

// What is not as the documents have it is in one list, which stays short and holds nothing that no script needs; and what
// is replaced by something of ours is named wherever it is.
func TestDeviationsAreSaid(t *testing.T) {
	used := map[string]bool{}
	all(t, func(t *testing.T, o Options, text []byte) {
		s, err := read(o.Script, text, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range s.deviations {
			used[d] = true
		}
		text = place.ReplaceAll(text, nil)
		for number, pattern := range map[string]string{
			"D-95": `\bsamples/`, "D-96": `\bsamples/|--image=\S+ --labels=istio`, "D-97": `(?m)['(;&|$] *oc |^oc `,
		} {
			if at := regexp.MustCompile(pattern).Find(text); at != nil && !slices.Contains(s.deviations, deviation(number)) {
				t.Errorf("%s is not said, though there is %q", number, at)
			}
		}
	})
	if n := len(Deviations()); n > 12 {
		t.Errorf("%d deviations, at most 12", n)
	}
	for _, d := range Deviations() {
		if !used[d] {
			t.Errorf("no script needs %s", d)
		}
	}
}
