package verify

import (
	"bytes"
	"context"
	"io/fs"
	"regexp"
	"strings"
	"testing"
)

// A script whose checks cannot fail, or that names a thing by a document's name, would prove nothing.
func TestScriptsRenderWithOtherNames(t *testing.T) {
	files, err := fs.Glob(scripts, "scripts/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no scripts", err)
	}
	for _, f := range files {
		name := strings.TrimSuffix(strings.TrimPrefix(f, "scripts/"), ".txtar")
		for _, form := range append([]string{""}, SelectorForms...) {
			text, err := render(Options{Script: name, Names: Random(7), Selectors: form, Peer: "/peer", Checkout: "/src"})
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			for _, n := range []string{"mesh-1", "app-ns-", "usergroup-", "istio-system-1"} {
				if bytes.Contains(text, []byte(n)) {
					t.Errorf("%s: names %q though other names were given", name, n)
				}
			}
		}
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

// The engine itself: a row is red for what was not seen, for the right reason, and later rows still run.
func TestRows(t *testing.T) {
	const script = `
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
`
	out := &bytes.Buffer{}
	rows, err := runText(context.Background(), Options{Script: "t", Checkout: t.TempDir(), Out: out}, []byte(script))
	if err != nil {
		t.Fatal(err)
	}
	var red []string
	for _, r := range rows {
		if r.Red() {
			red = append(red, r.ID)
		}
	}
	if got := strings.Join(red, ""); got != "BCF" || len(rows) != 6 {
		t.Errorf("red are %s of %d rows, want BCF of 6\n%s", got, len(rows), out)
	}
}

// What is not as the documents have it is in one list, which stays short and holds nothing that no script needs.
func TestDeviationsAreUsed(t *testing.T) {
	var all strings.Builder
	for _, s := range Scripts() {
		text, err := scripts.ReadFile("scripts/" + s + ".txtar")
		if err != nil {
			t.Fatal(err)
		}
		all.Write(text)
	}
	if n := len(Deviations()); n > 12 {
		t.Errorf("%d deviations, at most 12", n)
	}
	for _, d := range Deviations() {
		if id, _, _ := strings.Cut(d, " "); !strings.Contains(all.String(), "deviates "+id+"\n") {
			t.Errorf("no script needs %s", id)
		}
	}
}

// On a cluster where nothing was done nothing is to be seen.
func TestLookOnly(t *testing.T) {
	const script = `
row A 'what is done is not there'
do 'echo one'
out one
row B 'nor does it end as it should'
do true
code 0
row C 'what is looked for once is not found'
until 1h 'echo two' one
`
	rows, err := runText(context.Background(), Options{Script: "t", Checkout: t.TempDir(), Out: &bytes.Buffer{}, LookOnly: true}, []byte(script))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if !r.Red() {
			t.Errorf("row %s is green", r.ID)
		}
	}
}
