package mesh

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Reasons of the findings of Members. All but SystemNamespaceNotSelected refuse something.
const (
	ReasonInvalidSelector            = "InvalidSelector"
	ReasonSystemNamespaceTaken       = "SystemNamespaceTaken"
	ReasonSelectorTaken              = "SelectorTaken"
	ReasonSelectsEverything          = "SelectsEverything"
	ReasonNamespaceTaken             = "NamespaceTaken"
	ReasonSystemNamespaceNotSelected = "SystemNamespaceNotSelected"
)

// Namespace is a namespace that meshes may select.
type Namespace struct {
	Name   string
	Labels map[string]string
	Holder ID // the mesh that it belongs to now, which keeps it as long as it selects it; empty if none
}

// Mesh is what one Istio object claims.
type Mesh struct {
	ID        ID
	System    string     // its system namespace
	Selectors []Selector // any of them selects; none selects every namespace
	Fault     string     // why the selectors could not be read, empty if they could; Selectors are the last known ones then, if any
	Created   time.Time  // decides who claimed first; zero means not created yet, after all others
}

// Member says that a namespace belongs to a mesh.
type Member struct {
	Namespace string
	Mesh      ID
}

// Operator is how a Requirement compares a label.
type Operator string

// The operators of Kubernetes' label selectors.
const (
	In           Operator = "In"
	NotIn        Operator = "NotIn"
	Exists       Operator = "Exists"
	DoesNotExist Operator = "DoesNotExist"
)

// Requirement is a condition on one label. As in Kubernetes, NotIn also holds where the label is absent.
type Requirement struct {
	Key    string
	Op     Operator
	Values []string // of In and NotIn only
}

// Selector holds where all of its requirements hold.
type Selector []Requirement

// Matches reports whether the labels satisfy every requirement; an empty selector matches all.
func (s Selector) Matches(labels map[string]string) bool {
	for _, r := range s {
		v, ok := labels[r.Key]
		switch r.Op {
		case In:
			ok = ok && slices.Contains(r.Values, v)
		case NotIn:
			ok = !ok || !slices.Contains(r.Values, v)
		case Exists:
		case DoesNotExist:
			ok = !ok
		default:
			ok = false
		}
		if !ok {
			return false
		}
	}
	return true
}

// String writes the selector in its normal form: requirements and values sorted and once, "key In a,b;key2 Exists".
// Equal selectors have equal strings. Source: the parameter of the policy heddle-mesh-selectors is made of such lines.
func (s Selector) String() string {
	var out []string
	for _, r := range s {
		text := r.Key + " " + string(r.Op)
		if len(r.Values) > 0 {
			values := slices.Clone(r.Values)
			slices.Sort(values)
			text += " " + strings.Join(slices.Compact(values), ",")
		}
		out = append(out, text)
	}
	slices.Sort(out)
	return strings.Join(slices.Compact(out), ";")
}

var (
	labelName   = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`)
	labelPrefix = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$`)
)

// Validate names every fault that Kubernetes would find.
func (s Selector) Validate() error {
	var faults []error
	for _, r := range s {
		prefix, name, prefixed := strings.Cut(r.Key, "/")
		if !prefixed {
			prefix, name = "x", r.Key
		}
		if !labelPrefix.MatchString(prefix) || !labelName.MatchString(name) {
			faults = append(faults, fmt.Errorf("%q is not a label key", r.Key))
		}
		switch r.Op {
		case In, NotIn:
			if len(r.Values) == 0 {
				faults = append(faults, fmt.Errorf("label %q: %s needs values", r.Key, r.Op))
			}
		case Exists, DoesNotExist:
			if len(r.Values) > 0 {
				faults = append(faults, fmt.Errorf("label %q: %s takes no values", r.Key, r.Op))
			}
		default:
			faults = append(faults, fmt.Errorf("label %q: operator %q is none of In, NotIn, Exists, DoesNotExist", r.Key, r.Op))
		}
		for _, v := range r.Values {
			if v != "" && !labelName.MatchString(v) {
				faults = append(faults, fmt.Errorf("label %q: %q is not a label value", r.Key, v))
			}
		}
	}
	return errors.Join(faults...)
}

// Overlaps reports whether some set of labels could satisfy both selectors.
func (s Selector) Overlaps(o Selector) bool {
	all := append(slices.Clone(s), o...)
	for _, r := range all {
		switch r.Op {
		case DoesNotExist:
			if slices.ContainsFunc(all, func(q Requirement) bool { return q.Key == r.Key && (q.Op == In || q.Op == Exists) }) {
				return false
			}
		case In:
			if !slices.ContainsFunc(r.Values, func(v string) bool { return all.allows(r.Key, v) }) {
				return false
			}
		}
	}
	return true
}

// allows reports whether key=value breaks no requirement on that key.
func (s Selector) allows(key, value string) bool {
	return !slices.ContainsFunc(s, func(r Requirement) bool {
		return r.Key == key && !Selector{r}.Matches(map[string]string{key: value})
	})
}

// Everything reports whether the mesh selects every namespace.
func (m Mesh) Everything() bool {
	return len(m.Selectors) == 0 || slices.ContainsFunc(m.Selectors, func(s Selector) bool { return len(s) == 0 })
}

// Selects reports whether one of the mesh's selectors matches.
func (m Mesh) Selects(labels map[string]string) bool {
	return m.Everything() || slices.ContainsFunc(m.Selectors, func(s Selector) bool { return s.Matches(labels) })
}

// Known reports whether the mesh says, or is known to have said, what it selects.
func (m Mesh) Known() bool { return m.Fault == "" || len(m.Selectors) > 0 }

func (m Mesh) ref() Ref { return Ref{Kind: "Istio", Name: string(m.ID)} }

func (m Mesh) validate() error {
	var faults []error
	if m.Fault != "" {
		faults = append(faults, errors.New(m.Fault))
	}
	for _, s := range m.Selectors {
		faults = append(faults, s.Validate())
	}
	return errors.Join(faults...)
}

// Claims are what meshes claim, each judged beside the older ones. They do not change: of two, Since tells the difference.
type Claims struct {
	meshes   []Mesh // the oldest first
	refusals map[ID]Finding
	homes    map[string]ID // system namespaces of those that are not refused, or by their unreadable selectors only
}

// Judge decides which meshes can live beside each other. The older claim wins.
func Judge(meshes []Mesh) *Claims {
	c := &Claims{meshes: slices.SortedFunc(slices.Values(meshes), older), refusals: map[ID]Finding{}, homes: map[string]ID{}}
	var first *Mesh // the oldest whose claim counts
	taken := map[string]ID{}
	for i := range c.meshes {
		m := &c.meshes[i]
		if f, bad := c.refused(*m, first, taken); bad {
			c.refusals[m.ID] = f
			if f.Reason != ReasonInvalidSelector {
				continue
			}
		}
		// What cannot be read claims what it did before, unless an older one does.
		if first == nil && m.Known() {
			first = m
		}
		if c.homes[m.System] == "" {
			c.homes[m.System] = m.ID
		}
		for _, s := range m.Selectors {
			if taken[s.String()] == "" {
				taken[s.String()] = m.ID
			}
		}
	}
	return c
}

// refused reports why m cannot live beside those judged before it: first is the oldest of them, taken are their selectors.
func (c *Claims) refused(m Mesh, first *Mesh, taken map[string]ID) (Finding, bool) {
	refuse := func(reason, format string, a ...any) (Finding, bool) {
		return Finding{About: m.ref(), Reason: reason, Message: fmt.Sprintf(format, a...)}, true
	}
	if err := m.validate(); err != nil {
		return refuse(ReasonInvalidSelector, "meshConfig.discoverySelectors of mesh %s: %s", m.ID, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	if other, ok := c.homes[m.System]; ok {
		return refuse(ReasonSystemNamespaceTaken, "mesh %s has the same system namespace as mesh %s (%s); give it one of its own", m.ID, other, m.System)
	}
	if first != nil && first.Everything() {
		return refuse(ReasonSelectsEverything,
			"mesh %s (system namespace %s) has no discovery selectors and serves every namespace, so mesh %s can have none; give mesh %s selectors first",
			first.ID, first.System, m.ID, first.ID)
	}
	if first != nil && m.Everything() {
		return refuse(ReasonSelectsEverything,
			"mesh %s has no discovery selectors and would serve every namespace, also those of mesh %s (system namespace %s); set spec.values.meshConfig.discoverySelectors",
			m.ID, first.ID, first.System)
	}
	for _, s := range m.Selectors {
		if other, ok := taken[s.String()]; ok {
			return refuse(ReasonSelectorTaken, "mesh %s has the same selector as mesh %s (%s); a namespace belongs to one mesh", m.ID, other, s)
		}
	}
	return Finding{}, false
}

// Meshes are all of them, the oldest first. The caller does not change them.
func (c *Claims) Meshes() []Mesh { return c.meshes }

// Mesh returns what the mesh of that name claims.
func (c *Claims) Mesh(id ID) (Mesh, bool) {
	if i := slices.IndexFunc(c.meshes, func(m Mesh) bool { return m.ID == id }); i >= 0 {
		return c.meshes[i], true
	}
	return Mesh{}, false
}

// Owner is the mesh that a namespace belongs to, empty if to none: to its holder while that still selects it, else to the
// oldest mesh that does. A mesh that is refused gets nothing new, but keeps what it holds and still selects: nobody's edit
// takes away another's members. Its system namespace is not implied, but no other mesh gets it. Of a mesh whose selectors
// cannot be read, the last known ones keep younger meshes out.
func (c *Claims) Owner(ns Namespace) ID {
	owner, _ := c.decide(ns)
	return owner
}

// decide is Owner; the claimant is whose selectors decide, and there is no owner while they cannot be read.
func (c *Claims) decide(ns Namespace) (owner, claimant ID) {
	for _, m := range c.meshes {
		fault, bad := c.refusals[m.ID]
		unreadable := fault.Reason == ReasonInvalidSelector
		switch {
		case ns.Holder == m.ID && (unreadable || m.Selects(ns.Labels)):
			return m.ID, m.ID
		case claimant != "" || bad && !unreadable || c.foreign(ns.Name, m.ID) || !m.Known() || !m.Selects(ns.Labels):
		default:
			claimant = m.ID
			if !unreadable {
				owner = m.ID
			}
		}
	}
	return owner, claimant
}

// foreign reports whether a namespace is the system namespace of another mesh.
func (c *Claims) foreign(namespace string, id ID) bool {
	home := c.homes[namespace]
	return home != "" && home != id
}

// Interested are the meshes about which Findings may say something by that namespace, the oldest first.
func (c *Claims) Interested(ns Namespace) []ID {
	var out []ID
	for _, m := range c.meshes {
		if m.System == ns.Name || m.Selects(ns.Labels) {
			out = append(out, m.ID)
		}
	}
	return out
}

// Findings are those about one mesh. The namespaces must include all that it selects and its system namespace.
func (c *Claims) Findings(id ID, namespaces []Namespace) []Finding {
	m, ok := c.Mesh(id)
	if !ok {
		return nil
	}
	if f, bad := c.refusals[id]; bad {
		return []Finding{f}
	}
	var out []Finding
	find := func(reason, format string, a ...any) {
		out = append(out, Finding{About: m.ref(), Reason: reason, Message: fmt.Sprintf(format, a...)})
	}
	homeless := false
	for _, ns := range namespaces {
		if ns.Name == m.System {
			homeless = c.Owner(ns) != id
		}
		if !m.Selects(ns.Labels) {
			continue
		}
		if c.foreign(ns.Name, id) {
			find(ReasonNamespaceTaken,
				"namespace %s matches the selectors of mesh %s and is the system namespace of mesh %s, which no other mesh may have: change its labels or a selector of mesh %[2]s",
				ns.Name, id, c.homes[ns.Name])
		} else if winner, claimant := c.decide(ns); winner == "" {
			find(ReasonNamespaceTaken,
				"namespace %s matches the selectors of mesh %s and the last known ones of mesh %s, whose own cannot be read now: mend mesh %[3]s, or change the labels of the namespace",
				ns.Name, id, claimant)
		} else if winner != id {
			find(ReasonNamespaceTaken,
				"namespace %s matches the selectors of mesh %s and of mesh %s, to which it belongs; a namespace belongs to one mesh: change its labels or a selector",
				ns.Name, id, winner)
		}
	}
	if homeless {
		find(ReasonSystemNamespaceNotSelected,
			"system namespace %s is no member of its own mesh %s, so that mesh-wide policies in it have no effect; give it the labels of a discovery selector",
			m.System, id)
	}
	return out
}

// Since are the meshes of which old, which may be nil, says something else, as they were and as they are. For a namespace that
// none of them selects, holds or has as system namespace, Owner and Findings are what they were.
func (c *Claims) Since(old *Claims) []Mesh {
	if old == nil {
		return c.meshes
	}
	was := map[ID]Mesh{}
	for _, m := range old.meshes {
		was[m.ID] = m
	}
	var out []Mesh
	for _, m := range c.meshes {
		before, ok := was[m.ID]
		delete(was, m.ID)
		if !ok {
			out = append(out, m)
		} else if !m.equal(before) || c.refusals[m.ID] != old.refusals[m.ID] {
			out = append(out, before, m)
		}
	}
	for _, m := range old.meshes {
		if _, gone := was[m.ID]; gone {
			out = append(out, m)
		}
	}
	return out
}

func (m Mesh) equal(o Mesh) bool {
	return m.System == o.System && m.Fault == o.Fault && m.Created.Equal(o.Created) &&
		slices.EqualFunc(m.Selectors, o.Selectors, func(a, b Selector) bool { return a.String() == b.String() })
}

// Members says which mesh each namespace belongs to, sorted by namespace; the findings are sorted by mesh, then as met. See
// Claims.Owner for the rule.
func Members(namespaces []Namespace, meshes []Mesh) ([]Member, []Finding) {
	c := Judge(meshes)
	var members []Member
	for _, ns := range namespaces {
		if id := c.Owner(ns); id != "" {
			members = append(members, Member{Namespace: ns.Name, Mesh: id})
		}
	}
	slices.SortFunc(members, func(a, b Member) int { return strings.Compare(a.Namespace, b.Namespace) })
	var ids []ID
	for _, m := range c.meshes {
		ids = append(ids, m.ID)
	}
	slices.Sort(ids)
	var findings []Finding
	for _, id := range ids {
		findings = append(findings, c.Findings(id, namespaces)...)
	}
	return members, findings
}

// older orders meshes by claim.
func older(a, b Mesh) int {
	switch {
	case a.Created.IsZero() != b.Created.IsZero():
		if a.Created.IsZero() {
			return 1
		}
		return -1
	case !a.Created.Equal(b.Created):
		return a.Created.Compare(b.Created)
	}
	return cmp.Compare(a.ID, b.ID)
}

// Some joins the first three of texts and counts the others: what may be true of every pair of meshes stays one line.
func Some(texts []string) string {
	if rest := len(texts) - 3; rest > 0 {
		return fmt.Sprintf("%s; and %d more", strings.Join(texts[:3], "; "), rest)
	}
	return strings.Join(texts, "; ")
}

// Overlapping names the pairs of meshes of which two selectors could match one namespace, though none may do so yet.
// It returns "selector of mesh X and selector of mesh Y" texts, sorted.
func Overlapping(meshes []Mesh) []string {
	texts := map[string]bool{}
	for i, a := range meshes {
		for _, b := range meshes[:i] {
			for _, s := range a.Selectors {
				for _, o := range b.Selectors {
					if s.Overlaps(o) {
						x := []string{fmt.Sprintf("%q of mesh %s", s, a.ID), fmt.Sprintf("%q of mesh %s", o, b.ID)}
						slices.Sort(x)
						texts[strings.Join(x, " and ")] = true
					}
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(texts))
}
