package verify

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// scripts/lib has definitions that scripts use.
//
//go:embed scripts/*.txtar scripts/lib/*.txtar
var scripts embed.FS

// deviations is the list of all that is run or looked for otherwise than the documents have it, one a line: number and why.
//
//go:embed deviations.txt
var deviations string

// Scripts returns the names of what can be run.
func Scripts() []string {
	files, _ := fs.Glob(scripts, "scripts/*.txtar") // the pattern is valid
	var names []string
	for _, f := range files {
		names = append(names, strings.TrimSuffix(path.Base(f), ".txtar"))
	}
	return names
}

// Deviations returns the list, one a line.
func Deviations() []string { return strings.Split(strings.TrimSpace(deviations), "\n") }

// A line of a script is known by its file and number there. Rendering, which includes one script in another, would lose
// them: so each line that begins with a command begins with its place between two marks until it is rendered.
var (
	place       = regexp.MustCompile("\x00([^\x00]*)\x00")
	commandLine = regexp.MustCompile(`^[^\s{'#]`)
)

func withPlaces(name, text string) string {
	lines := strings.SplitAfter(text, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, "-- ") { // files follow
			break
		}
		if commandLine.MatchString(l) {
			lines[i] = fmt.Sprintf("\x00%s:%d\x00%s", name, i+1, l)
		}
	}
	return strings.Join(lines, "")
}

// render fills the names into a script. Scripts may include each other: {{template "checks.txtar" .}}.
func render(o Options) ([]byte, error) {
	t := template.New("").Option("missingkey=error").Funcs(template.FuncMap{"dict": dict})
	for _, pattern := range []string{"scripts/*.txtar", "scripts/lib/*.txtar"} {
		files, err := fs.Glob(scripts, pattern)
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			text, err := scripts.ReadFile(f)
			if err == nil {
				_, err = t.New(path.Base(f)).Parse(withPlaces(path.Base(f), string(text)))
			}
			if err != nil {
				return nil, fmt.Errorf("read the scripts: %w", err)
			}
		}
	}
	if !slices.Contains(Scripts(), o.Script) {
		return nil, fmt.Errorf("there is no script %q; there are %s", o.Script, strings.Join(Scripts(), ", "))
	}
	var b bytes.Buffer
	err := t.ExecuteTemplate(&b, o.Script+".txtar", struct {
		Names
		Selectors string
	}{o.Names, o.Selectors})
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

// line is a line of a script that is not empty.
type line struct {
	place string
	words []string
}

// row is a row of the table before it was looked at.
type row struct {
	place, id, want string
	needs           string // what it cannot be looked at without; "" for nothing
	actions         []*action
	judged          bool // by something that can be red
}

// action is something that is run, and what is made of its output before the next one is.
type action struct {
	line
	command
	uses []line   // checks, and what keeps the output or prints it
	ends []string // the codes of a `code` among the uses
}

// script is what was read and found to be without fault.
type script struct {
	rows       []*row
	deviations []string // of the list
}

// read checks a rendered script in full, so that nothing of it is run if it could not be run to its end, or if something
// of it could not fail. It writes the script's files to dir. The error has a line for each fault.
func read(name string, text []byte, dir string) (*script, error) {
	lines, err := split(name, text, dir)
	faults := []error{err}
	s := &script{}
	fault := func(at, format string, args ...any) {
		faults = append(faults, fmt.Errorf("%s: %s", at, fmt.Sprintf(format, args...)))
	}
	var current *row
	var last *action
	ids, kept, unused, events := map[string]string{}, map[string]bool{}, map[string]line{}, map[string]bool{}
	for _, l := range lines {
		c, known := commands[l.words[0]]
		if !known {
			fault(l.place, "there is no command %q", l.words[0])
			continue
		}
		args := l.words[1:]
		if err := c.fits(args); err != nil {
			fault(l.place, "%v; usage: %s", err, c.usage)
			continue
		}
		if current == nil && c.role != begins {
			fault(l.place, "%s stands before the first row", l.words[0])
			continue
		}
		switch c.role {
		case begins:
			current, last = &row{place: l.place, id: args[0], want: args[1]}, nil
			s.rows = append(s.rows, current)
			if at, twice := ids[args[0]]; twice {
				fault(l.place, "row %s is there already, at %s", args[0], at)
			}
			ids[args[0]] = l.place
			continue
		case looks, changes, waits, happens:
			last = &action{line: l, command: c}
			current.actions = append(current.actions, last)
		case checks, keeps:
			if last == nil || last.role == happens {
				fault(l.place, "%s follows nothing that was run", l.words[0])
				continue
			}
			last.uses = append(last.uses, l)
		}
		current.judged = current.judged || c.role == checks || c.role == waits
		switch l.words[0] {
		case "needs":
			current.needs = args[0]
		case "deviates":
			if d := deviation(args[0]); !slices.Contains(s.deviations, d) {
				s.deviations = append(s.deviations, d)
			}
		case "code":
			last.ends = args
		case "keep":
			kept[args[0]], unused[args[0]] = true, l
		case "same", "differs":
			if !kept[args[0]] {
				fault(l.place, "nothing is kept as %s before", args[0])
			}
			delete(unused, args[0])
		case "event":
			events[args[0]] = true
		case "until":
			if _, event, named := strings.Cut(args[0], "@"); named && !events[event] {
				fault(l.place, "there is no event %s before", event)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(unused)) {
		fault(unused[name].place, "nothing is compared with what is kept as %s", name)
	}
	for _, r := range s.rows {
		faults = append(faults, r.proves())
	}
	if len(s.rows) == 0 {
		fault(name, "there is no row")
	}
	return s, errors.Join(faults...)
}

// proves returns an error for what of a row could not make it red.
func (r *row) proves() error {
	var faults []error
	if !r.judged {
		faults = append(faults, fmt.Errorf("%s: row %s checks nothing", r.place, r.id))
	}
	for _, a := range r.actions {
		if a.role == looks && len(a.uses) == 0 {
			faults = append(faults, fmt.Errorf("%s: nobody looks at what %s prints", a.place, a.words[0]))
		}
	}
	return errors.Join(faults...)
}

// split has testscript split a script into words and write its files to dir. Each line reaches it as the words of one
// command, `line`, which runs nothing: of testscript's own commands some would end a script early, and green.
func split(name string, text []byte, dir string) ([]line, error) {
	comment, files, _ := bytes.Cut(append([]byte("\n"), text...), []byte("\n-- "))
	source := strings.Split(strings.TrimPrefix(string(comment), "\n"), "\n")
	places := make([]string, len(source))
	at := name
	var input strings.Builder
	var faults []error
	for i, l := range source {
		if m := place.FindStringSubmatch(l); m != nil {
			at = m[1]
		}
		places[i], l = at, place.ReplaceAllString(l, "")
		if bare, _, _ := strings.Cut(quoted.ReplaceAllString(l, ""), "#"); strings.Contains(bare, "$") {
			faults = append(faults, fmt.Errorf("%s: a $ outside of quotes", at))
		}
		fmt.Fprintf(&input, "line %d %s\n", i, l)
	}
	if len(files) > 0 {
		input.WriteString("-- ")
		input.Write(place.ReplaceAll(files, nil))
	}
	file := filepath.Join(dir, name+".txtar")
	if err := os.WriteFile(file, []byte(input.String()), 0o600); err != nil {
		return nil, err
	}
	var lines []line
	whole := map[int]bool{}
	t := &harness{}
	take := func(_ *testscript.TestScript, _ bool, words []string) {
		i, _ := strconv.Atoi(words[0]) // we wrote it
		whole[i] = true
		if len(words) > 1 {
			lines = append(lines, line{places[i], words[1:]})
		}
	}
	func() {
		defer func() {
			if p := recover(); p != nil && p != errStop {
				panic(p)
			}
		}()
		testscript.RunT(t, testscript.Params{
			Files: []string{file}, WorkdirRoot: dir, ContinueOnError: true, RequireUniqueNames: true,
			Cmds: map[string]func(*testscript.TestScript, bool, []string){"line": take},
		})
	}()
	if len(whole) == 0 {
		return nil, fmt.Errorf("%s: %s", name, t.log.String())
	}
	for i := range source {
		if !whole[i] {
			faults = append(faults, fmt.Errorf("%s: a quote is not closed", places[i]))
		}
	}
	return lines, errors.Join(faults...)
}

var quoted = regexp.MustCompile(`'[^']*'`)

// harness is what testscript runs in, in place of a *testing.T. It ends a run by a panic through FailNow.
type harness struct{ log bytes.Buffer }

var errStop = errors.New("stopped")

func (h *harness) Skip(...any)                        { panic(errStop) }
func (h *harness) Fatal(a ...any)                     { fmt.Fprintln(&h.log, a...); panic(errStop) }
func (h *harness) FailNow()                           { panic(errStop) }
func (h *harness) Parallel()                          {}
func (h *harness) Log(a ...any)                       { fmt.Fprintln(&h.log, a...) }
func (h *harness) Run(_ string, f func(testscript.T)) { f(h) }
func (h *harness) Verbose() bool                      { return false }

// fits tells whether arguments are what the usage names.
func (c command) fits(args []string) error {
	want := strings.Fields(c.usage)[1:]
	more := len(want) > 0 && strings.HasSuffix(want[len(want)-1], "…")
	if len(args) < len(want) || len(args) > len(want) && !more {
		return fmt.Errorf("%d arguments", len(args))
	}
	for i, a := range args {
		kind := strings.TrimSuffix(want[min(i, len(want)-1)], "…")
		if check := kinds[kind]; check != nil {
			if err := check(a); err != nil {
				return fmt.Errorf("%s %q: %w", kind, a, err)
			}
		}
	}
	return nil
}

// kinds says what an argument must be, by its name in the usage; what is not here may be anything.
var kinds = map[string]func(string) error{
	"REGEXP": func(a string) error {
		e, err := compile(a)
		if err == nil && e.MatchString("") && e.MatchString("anything") {
			err = errors.New("it matches anything")
		}
		return err
	},
	"N":         func(a string) error { _, err := strconv.ParseUint(a, 10, 16); return err },
	"PLANE":     func(a string) error { _, err := Names{}.plane(a); return err },
	"MESH":      func(a string) error { _, err := Names{}.plane(a); return err },
	"PEER":      func(a string) error { return oneOf(a, "peer") },
	"DEVIATION": func(a string) error { return oneOf(deviation(a), Deviations()...) },
	"WITHIN": func(a string) error {
		limit, _, _ := strings.Cut(a, "@")
		d, err := time.ParseDuration(limit)
		if err == nil && d <= 0 {
			err = errors.New("nothing ends so early")
		}
		return err
	},
}

// compile reads a pattern, whose anchors are those of lines.
func compile(pattern string) (*regexp.Regexp, error) { return regexp.Compile("(?m)" + pattern) }

func oneOf(a string, all ...string) error {
	if !slices.Contains(all, a) {
		return errors.New("there are " + strings.Join(all, "; "))
	}
	return nil
}

// deviation returns the line of the list that has a number, or "".
func deviation(number string) string {
	for _, d := range Deviations() {
		if strings.HasPrefix(d, number+" ") {
			return d
		}
	}
	return ""
}
