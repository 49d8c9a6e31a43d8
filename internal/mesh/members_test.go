package mesh

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func in(key string, values ...string) Selector { return Selector{{Key: key, Op: In, Values: values}} }

func at(s int64) time.Time { return time.Unix(s, 0) }

func TestMembers(t *testing.T) {
	a := Mesh{ID: "a", System: "sys-a", Selectors: []Selector{in("d", "a")}, Created: at(1)}
	b := Mesh{ID: "b", System: "sys-b", Selectors: []Selector{in("d", "b")}, Created: at(2)}
	with := func(m Mesh, f func(*Mesh)) Mesh { f(&m); return m }
	ns := func(name, holder string, labels ...string) Namespace {
		n := Namespace{Name: name, Holder: ID(holder), Labels: map[string]string{}}
		for _, l := range labels {
			k, v, _ := strings.Cut(l, "=")
			n.Labels[k] = v
		}
		return n
	}
	for _, c := range []struct {
		name       string
		namespaces []Namespace
		meshes     []Mesh
		members    string
		findings   []string // mesh, reason, and what the message must name
	}{
		{name: "labels decide, the system namespace too", namespaces: []Namespace{ns("x", "", "d=a"), ns("sys-b", "", "d=b"), ns("y", "")}, meshes: []Mesh{b, a}, members: "sys-b:b x:a"},
		{
			name: "any selector is enough, within one all requirements hold", members: "r:a x:a",
			namespaces: []Namespace{ns("x", "", "d=a", "app=h"), ns("y", "", "d=a"), ns("r", "", "region=us")},
			meshes:     []Mesh{with(a, func(m *Mesh) { m.Selectors = []Selector{append(in("d", "a"), in("app", "h")...), in("region", "us")} })},
		},
		{name: "a system namespace without the label is a finding", namespaces: []Namespace{ns("sys-a", "")}, meshes: []Mesh{a}, findings: []string{"a SystemNamespaceNotSelected sys-a"}},
		{
			name: "alone, a mesh without selectors has every namespace", namespaces: []Namespace{ns("sys-a", ""), ns("kube-system", "")}, members: "kube-system:a sys-a:a",
			meshes: []Mesh{with(a, func(m *Mesh) { m.Selectors = nil })},
		},
		{name: "an empty selector is as none", namespaces: []Namespace{ns("x", "")}, members: "x:a", meshes: []Mesh{with(a, func(m *Mesh) { m.Selectors = []Selector{{}} })}},
		{
			name: "beside an older mesh, one without selectors is refused", namespaces: []Namespace{ns("x", "", "d=a"), ns("z", "")}, members: "x:a",
			meshes: []Mesh{a, with(b, func(m *Mesh) { m.Selectors = nil })}, findings: []string{"b SelectsEverything mesh a"},
		},
		{
			name: "beside an older mesh without selectors, every other is refused", namespaces: []Namespace{ns("x", "", "d=b")}, members: "x:a",
			meshes: []Mesh{with(a, func(m *Mesh) { m.Selectors = nil }), b}, findings: []string{"b SelectsEverything mesh a"},
		},
		{
			name: "an older mesh that loses its selectors takes nobody's members", namespaces: []Namespace{ns("x", "b", "d=b")}, members: "x:b",
			meshes: []Mesh{with(a, func(m *Mesh) { m.Selectors = nil }), b}, findings: []string{"a NamespaceTaken mesh b", "b SelectsEverything mesh a"},
		},
		{
			name: "the older mesh has what two select", namespaces: []Namespace{ns("x", "", "d=a", "e=1")}, members: "x:a",
			meshes: []Mesh{a, with(b, func(m *Mesh) { m.Selectors = []Selector{in("e", "1")} })}, findings: []string{"b NamespaceTaken namespace x"},
		},
		{
			name: "the holder keeps what an older mesh selects later", namespaces: []Namespace{ns("x", "b", "d=a", "e=1")}, members: "x:b",
			meshes: []Mesh{a, with(b, func(m *Mesh) { m.Selectors = []Selector{in("e", "1")} })}, findings: []string{"a NamespaceTaken namespace x"},
		},
		{name: "a holder that selects no longer gives way", namespaces: []Namespace{ns("x", "b", "d=a")}, meshes: []Mesh{a, b}, members: "x:a"},
		{name: "one system namespace, one mesh", namespaces: []Namespace{ns("x", "", "d=b")}, meshes: []Mesh{a, with(b, func(m *Mesh) { m.System = "sys-a" })}, findings: []string{"b SystemNamespaceTaken sys-a"}},
		{
			name: "a system namespace is no other mesh's, whoever is older", namespaces: []Namespace{ns("sys-b", "", "d=a"), ns("sys-a", "", "d=b")},
			meshes: []Mesh{a, b}, findings: []string{
				"a NamespaceTaken namespace sys-b matches the selectors of mesh a and is the system namespace of mesh b", "a SystemNamespaceNotSelected sys-a",
				"b NamespaceTaken namespace sys-a matches the selectors of mesh b and is the system namespace of mesh a", "b SystemNamespaceNotSelected sys-b",
			},
		},
		{
			name: "a mesh keeps a namespace that a later one takes for its system", namespaces: []Namespace{ns("sys-b", "a", "d=a")}, members: "sys-b:a",
			meshes: []Mesh{a, b}, findings: []string{"a NamespaceTaken system namespace of mesh b", "b SystemNamespaceNotSelected sys-b"},
		},
		{
			name: "the system namespace of a mesh that is refused is as any other", namespaces: []Namespace{ns("sys-b", "", "d=a")}, members: "sys-b:a",
			meshes: []Mesh{a, with(b, func(m *Mesh) { m.Selectors = nil })}, findings: []string{"b SelectsEverything mesh a"},
		},
		{name: "one selector, one mesh", meshes: []Mesh{a, with(b, func(m *Mesh) { m.Selectors = []Selector{in("d", "a")} })}, findings: []string{"b SelectorTaken d In a"}},
		{name: "not created yet is after all", meshes: []Mesh{with(a, func(m *Mesh) { m.Created = time.Time{} }), with(b, func(m *Mesh) { m.System = "sys-a" })}, findings: []string{"a SystemNamespaceTaken sys-a"}},
		{
			name: "an invalid selector keeps what is held and gets nothing", namespaces: []Namespace{ns("x", "b"), ns("y", "")}, members: "x:b",
			meshes: []Mesh{a, with(b, func(m *Mesh) { m.Selectors = []Selector{{{Key: "e", Op: Exists, Values: []string{"v"}}}} })}, findings: []string{`b InvalidSelector "e": Exists`},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			members, findings := Members(c.namespaces, c.meshes)
			var got []string
			for _, m := range members {
				got = append(got, m.Namespace+":"+string(m.Mesh))
			}
			if strings.Join(got, " ") != c.members {
				t.Errorf("members %q, want %q", got, c.members)
			}
			if len(findings) != len(c.findings) {
				t.Fatalf("findings %v, want %v", findings, c.findings)
			}
			for i, f := range findings {
				want := strings.SplitN(c.findings[i], " ", 3)
				if f.About.Name != want[0] || f.Reason != want[1] || !strings.Contains(f.Message, want[2]) {
					t.Errorf("finding %v, want %v", f, want)
				}
			}
		})
	}
}

// randomSelector draws from so few keys and values that selectors meet often.
func randomSelector(r *rand.Rand) Selector {
	var s Selector
	for range r.IntN(4) {
		q := Requirement{Key: string(rune('k' + r.IntN(2))), Op: []Operator{In, NotIn, Exists, DoesNotExist}[r.IntN(4)]}
		if q.Op == In || q.Op == NotIn {
			for range 1 + r.IntN(2) {
				q.Values = append(q.Values, fmt.Sprint(r.IntN(3)))
			}
		}
		s = append(s, q)
	}
	return s
}

// everyLabels is every set of labels that selectors of randomSelector can tell apart.
func everyLabels() []map[string]string {
	var out []map[string]string
	for _, k := range []string{"", "0", "1", "2", "other"} {
		for _, l := range []string{"", "0", "1", "2", "other"} {
			labels := map[string]string{}
			if k != "" {
				labels["k"] = k
			}
			if l != "" {
				labels["l"] = l
			}
			out = append(out, labels)
		}
	}
	return out
}

func TestSelectorsAgreeWithEnumeration(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		a, b := randomSelector(r), randomSelector(r)
		both := slices.ContainsFunc(everyLabels(), func(l map[string]string) bool { return a.Matches(l) && b.Matches(l) })
		if a.Overlaps(b) != both || b.Overlaps(a) != both {
			t.Fatalf("%q and %q: Overlaps %v, want %v", a, b, a.Overlaps(b), both)
		}
		if a.String() == b.String() {
			for _, l := range everyLabels() {
				if a.Matches(l) != b.Matches(l) {
					t.Fatalf("equal strings %q, but %v tells them apart", a, l)
				}
			}
		}
	}
}

func TestMembersProperties(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 2000 {
		var meshes []Mesh
		for i := range 1 + r.IntN(4) {
			m := Mesh{ID: ID(rune('a' + i)), System: fmt.Sprint("sys-", r.IntN(5)), Created: at(int64(r.IntN(3)))}
			for range r.IntN(3) {
				m.Selectors = append(m.Selectors, randomSelector(r))
			}
			meshes = append(meshes, m)
		}
		var namespaces []Namespace
		for i, l := range everyLabels() {
			namespaces = append(namespaces, Namespace{Name: fmt.Sprint("sys-", i), Labels: l, Holder: ID(rune('a' + r.IntN(6)))})
		}
		members, findings := Members(namespaces, meshes)

		shuffled := slices.Clone(meshes)
		r.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		again, findingsAgain := Members(namespaces, shuffled)
		if d := cmp.Diff(members, again) + cmp.Diff(findings, findingsAgain); d != "" {
			t.Fatalf("the order of meshes matters: %s", d)
		}
		owner := map[string]ID{}
		for _, m := range members {
			if owner[m.Namespace] != "" {
				t.Fatalf("%s has two meshes", m.Namespace)
			}
			owner[m.Namespace] = m.Mesh
		}
		refused := map[ID]bool{}
		for _, f := range findings {
			refused[ID(f.About.Name)] = refused[ID(f.About.Name)] || f.Reason != ReasonNamespaceTaken && f.Reason != ReasonSystemNamespaceNotSelected
		}
		settled := slices.Clone(namespaces)
		for i, ns := range namespaces {
			settled[i].Holder = owner[ns.Name]
			for _, m := range meshes {
				if m.ID == owner[ns.Name] && !m.Selects(ns.Labels) {
					t.Fatalf("%s is a member of %s, which does not select it", ns.Name, m.ID)
				}
				if m.System == ns.Name && !refused[m.ID] && owner[ns.Name] != "" && owner[ns.Name] != m.ID && owner[ns.Name] != ns.Holder {
					t.Fatalf("%s got %s, the system namespace of %s", owner[ns.Name], ns.Name, m.ID)
				}
				if m.ID == ns.Holder && m.Selects(ns.Labels) && owner[ns.Name] != m.ID {
					t.Fatalf("%s taken from its holder %s", ns.Name, m.ID)
				}
			}
		}
		if same, _ := Members(settled, meshes); cmp.Diff(members, same) != "" {
			t.Fatalf("not settled: %s", cmp.Diff(members, same))
		}
		late := append(slices.Clone(meshes), Mesh{ID: "z", System: "sys-9", Selectors: []Selector{randomSelector(r)}})
		for _, m := range members {
			if got, _ := Members(settled, late); !slices.Contains(got, m) {
				t.Fatalf("a mesh added later took %s from %s", m.Namespace, m.Mesh)
			}
		}
	}
}

// What Since leaves out keeps its owner and its findings, whatever one edit does.
func TestSinceNamesAllThatAnEditChanges(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	random := func(i int) Mesh {
		m := Mesh{ID: ID(rune('a' + i)), System: fmt.Sprint("sys-", r.IntN(5)), Created: at(int64(r.IntN(3)))}
		for range r.IntN(4) {
			m.Selectors = append(m.Selectors, randomSelector(r))
		}
		if r.IntN(8) == 0 {
			m.Selectors, m.Fault = nil, "unreadable"
		}
		return m
	}
	left, told := 0, 0
	for range 3000 {
		var meshes []Mesh
		for i := range 1 + r.IntN(5) {
			meshes = append(meshes, random(i))
		}
		var namespaces []Namespace
		for i, l := range everyLabels() {
			namespaces = append(namespaces, Namespace{Name: fmt.Sprint("sys-", i), Labels: l, Holder: ID(rune('a' + r.IntN(6)))})
		}
		old := Judge(meshes)
		edited := slices.Clone(meshes)
		switch i := r.IntN(len(edited)); r.IntN(3) {
		case 0:
			edited[i] = random(i)
		case 1:
			edited = slices.Delete(edited, i, i+1)
		case 2:
			edited = append(edited, random(len(edited)))
		}
		now := Judge(edited)
		changed := now.Since(old)
		again := map[ID]bool{} // whose findings are asked for again
		for _, m := range changed {
			again[m.ID] = true
		}
		for _, ns := range namespaces {
			touched := slices.ContainsFunc(changed, func(m Mesh) bool { return m.System == ns.Name || m.ID == ns.Holder || m.Selects(ns.Labels) })
			if !touched {
				left++
				if a, b := old.Owner(ns), now.Owner(ns); a != b {
					t.Fatalf("%v went from %q to %q unnoticed by %v:\n%v\n%v", ns, a, b, changed, meshes, edited)
				}
				continue
			}
			told++
			for _, id := range now.Interested(ns) {
				again[id] = true
			}
		}
		for _, m := range edited {
			if d := cmp.Diff(old.Findings(m.ID, namespaces), now.Findings(m.ID, namespaces)); d != "" && !again[m.ID] {
				t.Fatalf("findings about %s changed unnoticed: %s", m.ID, d)
			}
		}
		if len(Judge(meshes).Since(old)) > 0 {
			t.Fatal("nothing was edited, and something has changed")
		}
	}
	if left < 1000 || told < 1000 {
		t.Errorf("%d namespaces were left out, %d were not: the test has no weight", left, told)
	}
}

func TestTheLastClaimOfUnreadableSelectorsIsNamed(t *testing.T) {
	held := Mesh{ID: "a", System: "a-sys", Fault: "typo", Selectors: []Selector{{{"d", In, []string{"1"}}}}, Created: time.Unix(1, 0)}
	same := Mesh{ID: "b", System: "b-sys", Selectors: held.Selectors, Created: time.Unix(2, 0)}
	home := Mesh{ID: "c", System: "a-sys", Selectors: []Selector{{{"d", In, []string{"2"}}}}, Created: time.Unix(3, 0)}
	wide := Mesh{ID: "d", System: "d-sys", Selectors: []Selector{{{"d", Exists, nil}}}, Created: time.Unix(4, 0)}
	members, findings := Members([]Namespace{{Name: "app", Labels: map[string]string{"d": "1"}}}, []Mesh{held, same, home, wide})
	var reasons []string
	for _, f := range findings {
		reasons = append(reasons, f.About.Name+" "+f.Reason)
	}
	want := []string{"a InvalidSelector", "b SelectorTaken", "c SystemNamespaceTaken", "d NamespaceTaken"}
	if len(members) != 0 || !slices.Equal(reasons, want) || !strings.Contains(findings[len(findings)-1].Message, "mend mesh a") {
		t.Errorf("members %v, findings %+v", members, findings)
	}
}
