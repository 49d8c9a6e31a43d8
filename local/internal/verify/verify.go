// Package verify runs a document's commands in order against a cluster and compares what is seen with what is to be seen.
//
// A script is a testscript file with commands of its own:
//
//	row ID 'what is to be seen'        begins a row of the table; what follows belongs to it
//	needs peer                         leaves the row out where there is no unmodified istioctl
//	run 'shell line'                   runs a line as the document has it, to look at something
//	do 'shell line'                    the same, to change something
//	until 30s 'shell line' REGEXP…     runs a line again and again until its output matches all and it ends with 0, or as a
//	                                   `code` after it says; the try that does so has ended 30 s after the line before, and
//	                                   one that goes on longer is killed
//	until 30s@NAME 'shell line' REGEXP… the same, 30 s after an earlier `event NAME`
//	out REGEXP…, notout REGEXP…        what the last line printed (both streams), line anchors as in (?m)
//	count N REGEXP                     how many of its lines match
//	code N…                            how it ended: one of these; without it, with 0
//	same NAME                          its output equals what an earlier `keep NAME` kept; `differs NAME` is the opposite
//	print                              prints what the last line printed below the table
//	deviates D-93                      the next line or what it prints is not the document's; why is in deviations.txt
//
// A script is read in full before anything of it is run: what could not be run, or could not fail, is a fault of the script,
// and nothing is run. A failing check makes its row red and nothing else: the script goes on to its end.
package verify

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// library is shell functions for scripts and controls.
//
//go:embed lib.sh
var library string

const (
	pollEvery = 200 * time.Millisecond // of `until`
	lineEnds  = 10 * time.Minute       // for any line that has no time of its own; then it is killed
	pipesEnd  = time.Second            // after a killed line, for what it left behind and still holds its output
	maxSeen   = 2000                   // bytes of what was seen in place of what was to be seen
)

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
	Peer       string // where an unmodified istioctl lies; empty: rows that need it are left out
	Checkout   string // where samples/ lies; scripts run in it
	Kubeconfig string
	Out        io.Writer // gets the table and, for red rows, what was seen
	Verbose    bool      // print each line that is run
	LookOnly   bool      // change nothing (leave out every `do`) and wait for nothing
	OwnRows    bool      // leave out rows that the script includes from another one
}

// path finds heddle, istioctl, oc and kubectl of the checkout first.
func (o Options) path() string { return o.Bin + ":" + os.Getenv("PATH") }

// Row is one thing to be seen.
type Row struct {
	ID, Want string
	Seen     string // empty if all was as wanted; else the first thing that was not
	Lacks    string // what it cannot be looked at without, if that was not there: then the row was left out
	Took     time.Duration
}

// Red tells whether something was not as wanted.
func (r Row) Red() bool { return r.Seen != "" }

// Judge says whether exactly the rows of red are red. If so it prints that, and how many were left out; if not the error
// says the same and names what is otherwise.
func Judge(out io.Writer, rows []Row, red []string) error {
	var wrong, left []string
	for _, r := range rows {
		switch {
		case r.Lacks != "":
			left = append(left, fmt.Sprintf("%s (needs %s)", r.ID, r.Lacks))
		case r.Red() != slices.Contains(red, r.ID):
			wrong = append(wrong, r.ID)
		}
	}
	for _, id := range red {
		if !slices.ContainsFunc(rows, func(r Row) bool { return r.ID == id }) {
			wrong = append(wrong, id+" (no such row)")
		}
	}
	also := ""
	if len(left) > 0 {
		also = fmt.Sprintf("; %d left out: %s", len(left), strings.Join(left, ", "))
	}
	if len(wrong) > 0 {
		return fmt.Errorf("%d of %d rows are not as they should be: %s%s", len(wrong), len(rows)-len(left), strings.Join(wrong, ", "), also)
	}
	fmt.Fprintf(out, "\nAll %d rows are as they should be%s\n", len(rows)-len(left), also)
	return nil
}

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
	s, err := read(o.Script, text, dir)
	if err != nil {
		return nil, fmt.Errorf("script %s is not run, as it has faults:\n%w", o.Script, err)
	}
	library, err := fill(library, o.Names)
	if err != nil {
		return nil, err
	}
	lib := filepath.Join(dir, "lib.sh")
	if err := os.WriteFile(lib, library, 0o600); err != nil {
		return nil, err
	}
	r := &run{
		ctx: ctx, o: o, kept: map[string]string{}, events: map[string]time.Time{}, loads: map[string]*load{}, leaves: map[string]*x509svid.SVID{},
		env: []string{
			"PATH=" + o.path(), "HOME=" + os.Getenv("HOME"), "TMPDIR=" + dir, "BASH_ENV=" + lib, "W=" + filepath.Join(dir, "script-"+o.Script),
			"SEED=" + strconv.FormatUint(o.Seed, 10), "KUBECONFIG=" + o.Kubeconfig, "PEER=" + o.Peer, "HEDDLE_INSTANCE=" + o.Instance,
		},
	}
	defer func() {
		for _, l := range r.loads {
			l.stop("")
		}
	}()
	fmt.Fprintf(o.Out, "%-8s  %-88s  %-4s  %s\n", "ITEM", "TO BE SEEN", "SEEN", "TIME")
	for _, spec := range s.rows {
		if file, _, _ := strings.Cut(spec.place, ":"); o.OwnRows && file != o.Script+".txtar" {
			continue
		}
		r.look(spec)
		if err := ctx.Err(); err != nil {
			return r.rows, fmt.Errorf("script %s ended at row %s: %w", o.Script, spec.id, err)
		}
	}
	r.print(s.deviations)
	return r.rows, nil
}

// run is a script under way.
type run struct {
	ctx     context.Context
	o       Options
	env     []string
	rows    []Row
	current *Row
	output  string // of the last line
	code    int
	ends    []string // with which codes the line under way shall end
	kept    map[string]string
	events  map[string]time.Time
	loads   map[string]*load // under way
	leaves  map[string]*x509svid.SVID
	figures []string
}

const notDone = -1 // the code of what is left out when nothing may be changed

// look looks at a row. Where nothing may be changed it ends at the first thing that is not as wanted: that is all that
// is asked then.
func (r *run) look(spec *row) {
	began := time.Now()
	r.current = &Row{ID: spec.id, Want: spec.want}
	if spec.needs == "peer" && r.o.Peer == "" {
		r.current.Lacks = "the peer istioctl"
	}
	for _, a := range spec.actions {
		if r.current.Lacks != "" || r.ctx.Err() != nil || r.o.LookOnly && r.current.Red() {
			break
		}
		r.act(a)
	}
	if r.ctx.Err() != nil {
		return // it was not seen to its end
	}
	r.current.Took = time.Since(began)
	seen := "yes"
	switch {
	case r.current.Lacks != "":
		seen = "left out"
	case r.current.Red():
		seen = "NO"
	}
	fmt.Fprintf(r.o.Out, "%-8s  %-88s  %-4s  %.1fs\n", spec.id, spec.want, seen, r.current.Took.Seconds())
	r.rows = append(r.rows, *r.current)
}

func (r *run) act(a *action) {
	args := a.words[1:]
	r.ends = a.ends
	if a.role == changes && r.o.LookOnly {
		r.output, r.code = "", notDone
	} else {
		a.act(r, args)
	}
	if (a.role == looks || a.role == changes) && len(a.ends) == 0 && r.code != 0 && r.code != notDone {
		r.red(fmt.Sprintf("exit code %d", r.code))
	}
	for _, u := range a.uses {
		if what := commands[u.words[0]].use(r, u.words[1:]); what != "" {
			r.red(what)
		}
	}
}

// role says what a command is in its row.
type role int

const (
	begins  role = iota // it
	tells               // something about it
	happens             // nothing is run
	looks               // at something: what it prints must be looked at
	waits               // the same, and looks itself
	changes             // something: left out where nothing may be changed
	checks              // what the last line printed, or how it ended
	keeps               // what the last line printed
)

// command is what a line of a script may begin with. The arguments in its usage have names that say what they must be;
// of the last one there may be more if … follows it.
type command struct {
	usage string
	role  role
	act   func(*run, []string)        // of what runs something
	use   func(*run, []string) string // of what looks at its output; returns what is not as wanted
}

var commands = map[string]command{
	"row":        {usage: "row ID WANT", role: begins},
	"needs":      {usage: "needs PEER", role: tells},
	"deviates":   {usage: "deviates DEVIATION", role: tells},
	"event":      {usage: "event NAME", role: happens, act: func(r *run, a []string) { r.events[a[0]] = time.Now() }},
	"run":        {usage: "run LINE", role: looks, act: func(r *run, a []string) { r.shell(a[0], time.Now().Add(lineEnds)) }},
	"do":         {usage: "do LINE", role: changes, act: func(r *run, a []string) { r.shell(a[0], time.Now().Add(lineEnds)) }},
	"until":      {usage: "until WITHIN LINE REGEXP…", role: waits, act: (*run).until},
	"enrol":      {usage: "enrol NAME NS APP MESH PLANE", role: looks, act: (*run).enrol},
	"dial":       {usage: "dial NAME NS APP PORT", role: looks, act: (*run).dial},
	"load":       {usage: "load NAME NS APP TO SERVICE RATE", role: changes, act: (*run).load},
	"unload":     {usage: "unload NAME", role: looks, act: (*run).unload},
	"unloadless": {usage: "unloadless NAME NS APP", role: looks, act: (*run).unloadless},
	"rights":     {usage: "rights PLANE NS…", role: looks, act: (*run).rights},
	"out": {usage: "out REGEXP…", role: checks, use: func(r *run, a []string) string {
		if m := missing(r.output, a); m != "" {
			return "no " + m
		}
		return ""
	}},
	"notout": {usage: "notout REGEXP…", role: checks, use: func(r *run, a []string) string {
		for _, p := range a {
			if expression(p).MatchString(r.output) {
				return "there is " + p
			}
		}
		return ""
	}},
	"count": {usage: "count N REGEXP", role: checks, use: func(r *run, a []string) string {
		if have := len(expression(a[1]).FindAllString(r.output, -1)); strconv.Itoa(have) != a[0] {
			return fmt.Sprintf("%d, not %s, of %s", have, a[0], a[1])
		}
		return ""
	}},
	"code": {usage: "code N…", role: checks, use: func(r *run, a []string) string {
		if !slices.Contains(a, strconv.Itoa(r.code)) {
			return fmt.Sprintf("exit code %d, not %s", r.code, strings.Join(a, " or "))
		}
		return ""
	}},
	"same": {usage: "same NAME", role: checks, use: func(r *run, a []string) string {
		if r.kept[a[0]] != r.output || r.output == "" {
			return "not the same as " + a[0]
		}
		return ""
	}},
	"differs": {usage: "differs NAME", role: checks, use: func(r *run, a []string) string {
		if r.kept[a[0]] == r.output || r.output == "" || r.kept[a[0]] == "" {
			return "not another than " + a[0]
		}
		return ""
	}},
	"keep": {usage: "keep NAME", role: keeps, use: func(r *run, a []string) string {
		r.kept[a[0]] = r.output
		return ""
	}},
	"print": {usage: "print", role: keeps, use: func(r *run, _ []string) string {
		if r.output != "" {
			r.figures = append(r.figures, r.current.ID+": "+strings.TrimSpace(r.output))
		}
		return ""
	}},
}

func (r *run) until(a []string) {
	limit, event, named := strings.Cut(a[0], "@")
	bound, _ := time.ParseDuration(limit) // the script was read
	from, ends := time.Now(), r.ends
	if named {
		from = r.events[event]
	}
	if len(ends) == 0 {
		ends = []string{"0"}
	}
	for end := from.Add(bound); ; {
		r.shell(a[1], end)
		took := time.Since(from)
		m := missing(r.output, a[2:])
		if m == "" && !slices.Contains(ends, strconv.Itoa(r.code)) {
			m = "exit code " + strings.Join(ends, " or ")
		}
		switch {
		case m == "" && took <= bound:
			return
		case m == "":
			r.red(fmt.Sprintf("only after %.1fs, not within %s", took.Seconds(), a[0]))
			return
		case r.o.LookOnly || took > bound || r.current.Red(): // a red row stays red
			r.red("within " + a[0] + " no " + m)
			return
		}
		select {
		case <-time.After(pollEvery):
		case <-r.ctx.Done():
			return // so does the run
		}
	}
}

// expression returns a pattern of a script that was read, which is valid.
func expression(pattern string) *regexp.Regexp {
	e, err := compile(pattern)
	if err != nil {
		panic(err)
	}
	return e
}

// missing returns the first of patterns that an output does not match.
func missing(output string, patterns []string) string {
	for _, p := range patterns {
		if !expression(p).MatchString(output) {
			return p
		}
	}
	return ""
}

// shell runs a line in the checkout, as a reader of the document would. What has not ended then is killed, with all that
// it started.
func (r *run) shell(line string, end time.Time) {
	if r.o.Verbose {
		fmt.Fprintln(r.o.Out, "$ "+line)
	}
	ctx, cancel := context.WithDeadline(r.ctx, end)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "bash", "-c", line)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = r.o.Checkout, r.env, &stdout, &stderr
	alone(cmd)
	err := cmd.Run()
	r.output, r.code = stdout.String()+stderr.String(), 0
	switch exit := (*exec.ExitError)(nil); {
	case ctx.Err() != nil:
		r.code, r.output = 1, r.output+"killed, as it had not ended\n"
	case errors.As(err, &exit) && exit.Exited():
		r.code = exit.ExitCode()
	case err != nil:
		r.code, r.output = 1, r.output+err.Error()+"\n"
	}
	if r.o.Verbose {
		fmt.Fprint(r.o.Out, r.output)
	}
}

// alone has a command run in a process group of its own, all of which is killed when its context ends.
func alone(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = pipesEnd
}

// red notes the first thing of a row that was not as wanted.
func (r *run) red(what string) {
	if r.current.Red() {
		return
	}
	seen := strings.TrimSpace(r.output)
	if len(seen) > maxSeen {
		seen = seen[:maxSeen] + "…"
	}
	r.current.Seen = what + "; seen: " + seen
}

// print says what was seen where it was not what was to be seen.
func (r *run) print(deviations []string) {
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
	if len(deviations) > 0 {
		fmt.Fprintln(r.o.Out, "\nRun otherwise than the document has it:")
		for _, d := range deviations {
			fmt.Fprintln(r.o.Out, "  "+d)
		}
	}
}
