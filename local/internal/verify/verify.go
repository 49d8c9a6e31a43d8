// Package verify runs a document's commands in order against a cluster and compares what is seen with what is to be seen.
//
// A script is a testscript file with commands of its own:
//
//	row ID 'what is to be seen'      begins a row of the table; the checks that follow belong to it
//	run 'shell line'                 runs a line as the document has it, to look at something
//	do 'shell line'                  the same, to change something
//	until 30s 'shell line' REGEXP…   runs a line again and again until its output matches all
//	out REGEXP…, notout REGEXP…      what the last line printed (both streams), line anchors as in (?m)
//	count N REGEXP                   how many of its lines match
//	code N                           how it ended
//	same NAME                        its output equals what an earlier `keep NAME` kept; `differs NAME` is the opposite
//	print                            prints what the last line printed below the table
//	deviates D-93                    the next line or what it prints is not the document's; why is in deviations.txt
//
// A failing check makes its row red and nothing else: the script goes on to its end.
package verify

import (
	"bytes"
	"context"
	"embed"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

//go:embed scripts/*.txtar
var scripts embed.FS

// library is shell functions for scripts and controls.
//
//go:embed lib.sh
var library string

// deviations is the list of all that is run or looked for otherwise than the documents have it, one a line: number and why.
//
//go:embed deviations.txt
var deviations string

// Scripts returns the names of what can be run.
func Scripts() []string {
	entries, _ := scripts.ReadDir("scripts") // embedded: it is there
	var names []string
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(e.Name(), ".txtar"))
	}
	return names
}

const (
	pollEvery = 200 * time.Millisecond // of `until`
	maxSeen   = 2000                   // bytes of what was seen in place of what was to be seen
)

// Deviations returns the list, one a line.
func Deviations() []string { return strings.Split(strings.TrimSpace(deviations), "\n") }

// SelectorForms are the forms in which S0 can write discovery selectors, other than its own: as expressions, and two of
// which one namespace of each mesh matches both.
var SelectorForms = []string{"expressions", "two"}

// Options of one run.
type Options struct {
	Script     string // s0, s1 …
	Instance   string // the local installation
	Names      Names
	Seed       uint64 // of what a script does at random; 0: it draws one
	Selectors  string // form of S0's discovery selectors: empty as written, or one of SelectorForms
	Bin        string // where heddle, istioctl, oc and kubectl lie
	Peer       string // where an unmodified istioctl lies as peer-istioctl; empty: rows that need it are left out
	Checkout   string // where samples/ lies; scripts run in it
	Kubeconfig string
	Out        io.Writer // gets the table and, for red rows, what was seen
	Verbose    bool      // print each line that is run
	LookOnly   bool      // change nothing (leave out every `do`) and wait for nothing
}

// path finds heddle, istioctl, oc and kubectl of the checkout first.
func (o Options) path() string { return o.Bin + ":" + os.Getenv("PATH") }

// Row is one thing to be seen.
type Row struct {
	ID, Want string
	Seen     string // empty if all was as wanted; else the first thing that was not
	Took     time.Duration
}

// Red tells whether something was not as wanted.
func (r Row) Red() bool { return r.Seen != "" }

// Run runs a script and prints its table. The error is about the run itself; red rows are not an error.
func Run(ctx context.Context, o Options) ([]Row, error) {
	text, err := render(o)
	if err != nil {
		return nil, err
	}
	return runText(ctx, o, text)
}

func runText(ctx context.Context, o Options, text []byte) ([]Row, error) {
	dir, err := os.MkdirTemp("", "heddle-verify-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, o.Script+".txtar")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return nil, err
	}
	library, err := fill(library, o.Names)
	if err != nil {
		return nil, err
	}
	lib := filepath.Join(dir, "lib.sh")
	if err := os.WriteFile(lib, library, 0o600); err != nil {
		return nil, err
	}
	r := &run{ctx: ctx, o: o, kept: map[string]string{}, loads: map[string]*load{}}
	defer func() {
		for _, l := range r.loads {
			l.stop("")
		}
	}()
	t := &harness{verbose: o.Verbose, out: o.Out}
	done := make(chan any)
	go func() { // testscript ends a run by a panic of its own through FailNow
		defer func() { done <- recover() }()
		testscript.RunT(t, testscript.Params{
			Files: []string{file}, WorkdirRoot: dir, ContinueOnError: true, Cmds: r.commands(),
			Setup: func(e *testscript.Env) error {
				e.Setenv("PATH", o.path())
				e.Setenv("BASH_ENV", lib)
				e.Setenv("SEED", strconv.FormatUint(o.Seed, 10))
				e.Setenv("KUBECONFIG", o.Kubeconfig)
				e.Setenv("HOME", os.Getenv("HOME"))
				e.Setenv("PEER", o.Peer)
				e.Setenv("HEDDLE_INSTANCE", o.Instance)
				return nil
			},
		})
	}()
	if p := <-done; p != nil && p != errStop {
		return nil, fmt.Errorf("script %s: %v", o.Script, p)
	}
	r.close()
	if len(r.rows) == 0 {
		return nil, fmt.Errorf("script %s checked nothing: %s", o.Script, t.log.String())
	}
	r.print()
	return r.rows, nil
}

// render fills the names into a script. Scripts may include each other: {{template "checks.txtar" .}}.
func render(o Options) ([]byte, error) {
	t, err := template.New("").Option("missingkey=error").Funcs(template.FuncMap{"dict": dict}).ParseFS(scripts, "scripts/*.txtar")
	if err != nil {
		return nil, fmt.Errorf("read the scripts: %w", err)
	}
	if t = t.Lookup(o.Script + ".txtar"); t == nil {
		return nil, fmt.Errorf("there is no script %q; there are %s", o.Script, strings.Join(Scripts(), ", "))
	}
	var b bytes.Buffer
	err = t.Execute(&b, struct {
		Names
		Selectors string
		Peer      bool
	}{o.Names, o.Selectors, o.Peer != ""})
	return b.Bytes(), err
}

// dict gives a template of a script its arguments: key, value, key, value …
func dict(pairs ...any) map[any]any {
	out := map[any]any{}
	for p := range slices.Chunk(pairs, 2) {
		out[p[0]] = p[1]
	}
	return out
}

type run struct {
	ctx        context.Context
	o          Options
	rows       []Row
	current    *Row
	began      time.Time
	output     string
	code       int
	kept       map[string]string
	loads      map[string]*load // under way
	figures    []string
	deviations []string
}

func (r *run) commands() map[string]func(*testscript.TestScript, bool, []string) {
	commands := map[string]func(*testscript.TestScript, bool, []string){
		"row": func(ts *testscript.TestScript, _ bool, a []string) {
			need(ts, len(a) == 2, "row ID 'what is to be seen'")
			r.close()
			r.current, r.began = &Row{ID: a[0], Want: a[1]}, time.Now()
		},
		"run": func(ts *testscript.TestScript, _ bool, a []string) {
			need(ts, len(a) == 1, "run 'shell line'")
			r.shell(ts, a[0])
		},
		"do": func(ts *testscript.TestScript, _ bool, a []string) {
			need(ts, len(a) == 1, "do 'shell line'")
			if r.output, r.code = "", -1; !r.o.LookOnly {
				r.shell(ts, a[0])
			}
		},
		"until": func(ts *testscript.TestScript, _ bool, a []string) {
			need(ts, len(a) >= 3, "until DURATION 'shell line' REGEXP…")
			limit, err := time.ParseDuration(a[0])
			ts.Check(err)
			for end := time.Now().Add(limit); ; time.Sleep(pollEvery) {
				r.shell(ts, a[1])
				missing := r.missing(ts, a[2:])
				if missing == "" || r.ctx.Err() != nil {
					return
				}
				if r.o.LookOnly || time.Now().After(end) || r.current != nil && r.current.Red() { // a red row stays red
					r.red("after " + a[0] + " no " + missing)
					return
				}
			}
		},
		"out": func(ts *testscript.TestScript, neg bool, a []string) {
			if m := r.missing(ts, a); m != "" {
				r.red("no " + m)
			}
		},
		"notout": func(ts *testscript.TestScript, _ bool, a []string) {
			for _, p := range a {
				if expression(ts, p).MatchString(r.output) {
					r.red("there is " + p)
				}
			}
		},
		"count": func(ts *testscript.TestScript, _ bool, a []string) {
			need(ts, len(a) == 2, "count N REGEXP")
			n, err := strconv.Atoi(a[0])
			ts.Check(err)
			if have := len(expression(ts, a[1]).FindAllString(r.output, -1)); have != n {
				r.red(fmt.Sprintf("%d, not %d, of %s", have, n, a[1]))
			}
		},
		"code": func(ts *testscript.TestScript, _ bool, a []string) {
			need(ts, len(a) == 1, "code N")
			if strconv.Itoa(r.code) != a[0] {
				r.red(fmt.Sprintf("exit code %d, not %s", r.code, a[0]))
			}
		},
		"print": func(_ *testscript.TestScript, _ bool, _ []string) {
			if r.output != "" {
				r.figures = append(r.figures, r.current.ID+": "+strings.TrimSpace(r.output))
			}
		},
		"keep": func(ts *testscript.TestScript, _ bool, a []string) { r.kept[a[0]] = r.output },
		"same": func(ts *testscript.TestScript, _ bool, a []string) {
			if r.kept[a[0]] != r.output || r.output == "" {
				r.red("not the same as " + a[0])
			}
		},
		"differs": func(ts *testscript.TestScript, _ bool, a []string) {
			if r.kept[a[0]] == r.output || r.output == "" || r.kept[a[0]] == "" {
				r.red("not another than " + a[0])
			}
		},
		"deviates": func(ts *testscript.TestScript, _ bool, a []string) {
			need(ts, len(a) == 1, "deviates D-N")
			i := slices.IndexFunc(Deviations(), func(d string) bool { return strings.HasPrefix(d, a[0]+" ") })
			need(ts, i >= 0, "deviates D-N, with a line in deviations.txt")
			if d := Deviations()[i]; !slices.Contains(r.deviations, d) {
				r.deviations = append(r.deviations, d)
			}
		},
	}
	maps.Copy(commands, r.clientCommands())
	return commands
}

func need(ts *testscript.TestScript, ok bool, usage string) {
	if !ok {
		ts.Fatalf("usage: %s", usage)
	}
}

func expression(ts *testscript.TestScript, p string) *regexp.Regexp {
	e, err := regexp.Compile("(?m)" + p)
	ts.Check(err)
	return e
}

// shell runs a line in the checkout, as a reader of the document would.
func (r *run) shell(ts *testscript.TestScript, line string) {
	if r.o.Verbose {
		fmt.Fprintln(r.o.Out, "$ "+line)
	}
	work := ts.MkAbs(".")
	err := ts.Exec("bash", "-c", "cd "+r.o.Checkout+" && W="+work+"; "+line)
	r.output, r.code = ts.ReadFile("stdout")+ts.ReadFile("stderr"), 0
	if exit, ok := err.(interface{ ExitCode() int }); ok {
		r.code = exit.ExitCode()
	} else if err != nil {
		r.code, r.output = 1, r.output+err.Error()
	}
	if r.o.Verbose {
		fmt.Fprint(r.o.Out, r.output)
	}
}

func (r *run) missing(ts *testscript.TestScript, patterns []string) string {
	for _, p := range patterns {
		if !expression(ts, p).MatchString(r.output) {
			return p
		}
	}
	return ""
}

// red notes the first thing of a row that was not as wanted.
func (r *run) red(what string) {
	if r.current == nil {
		r.current = &Row{ID: "-", Want: "a check belongs to a row"}
	}
	if r.current.Seen == "" {
		seen := strings.TrimSpace(r.output)
		if len(seen) > maxSeen {
			seen = seen[:maxSeen] + "…"
		}
		r.current.Seen = what + "; seen: " + seen
	}
}

func (r *run) close() {
	if r.current != nil {
		r.current.Took = time.Since(r.began)
		if len(r.rows) == 0 {
			fmt.Fprintf(r.o.Out, "%-8s  %-88s  %-4s  %s\n", "ITEM", "TO BE SEEN", "SEEN", "TIME")
		}
		seen := "yes"
		if r.current.Red() {
			seen = "NO"
		}
		fmt.Fprintf(r.o.Out, "%-8s  %-88s  %-4s  %.1fs\n", r.current.ID, r.current.Want, seen, r.current.Took.Seconds())
		r.rows = append(r.rows, *r.current)
		r.current = nil
	}
}

// print says what was seen where it was not what was to be seen.
func (r *run) print() {
	for _, row := range r.rows {
		if row.Red() {
			fmt.Fprintf(r.o.Out, "\n%s: %s\n", row.ID, row.Seen)
		}
	}
	if len(r.figures) > 0 {
		fmt.Fprintln(r.o.Out, "\nFigures:")
	}
	for _, f := range r.figures {
		fmt.Fprintln(r.o.Out, "  "+f)
	}
	if len(r.deviations) > 0 {
		fmt.Fprintln(r.o.Out, "\nRun otherwise than the document has it:")
		for _, d := range r.deviations {
			fmt.Fprintln(r.o.Out, "  "+d)
		}
	}
}

// harness is what testscript runs in, in place of a *testing.T.
type harness struct {
	verbose bool
	out     io.Writer
	log     bytes.Buffer
}

var errStop = fmt.Errorf("stopped")

func (h *harness) Skip(a ...any)                      { panic(errStop) }
func (h *harness) Fatal(a ...any)                     { fmt.Fprintln(&h.log, a...); panic(errStop) }
func (h *harness) FailNow()                           { panic(errStop) }
func (h *harness) Parallel()                          {}
func (h *harness) Log(a ...any)                       { fmt.Fprintln(&h.log, a...) }
func (h *harness) Run(_ string, f func(testscript.T)) { f(h) }
func (h *harness) Verbose() bool                      { return false }
