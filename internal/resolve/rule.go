package resolve

import (
	"reflect"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// RulesKey names the rules of a namespace for a host, exact or with a wildcard, as they write it.
type RulesKey struct{ Host, Namespace string }

// Rules are the rules of one namespace for one host, merged for those who see the same of them.
type Rules struct {
	Own       mesh.Rule // for clients of the namespace itself; zero if there is none, as the others
	Everybody mesh.Rule // for clients of namespaces that no rule names
	Clients   []View    // for connected clients of namespaces for which that is not true; sorted
}

func (rs Rules) of(client string) mesh.Rule {
	i, found := slices.BinarySearchFunc(rs.Clients, client, func(v View, c string) int { return strings.Compare(v.Client, c) })
	if found {
		return rs.Clients[i].Rule
	}
	return rs.Everybody
}

// RulesOf merges the rules of a key. Of the root namespace's own clients only rules kept to that namespace come before the
// service's. It is done here once, and not for each service that the host may mean; and for connected clients only, however
// many namespaces a rule is exported to.
func RulesOf(r *graph.Reader, t *Tables, id mesh.ID, k RulesKey, rows []*graph.Row[mesh.ObjectKey, mesh.Rule]) Rules {
	root := t.ConfigOf(r, id).RootNamespace
	var rules []mesh.Rule
	for _, row := range rows {
		rules = append(rules, row.Val)
	}
	slices.SortFunc(rules, func(a, b mesh.Rule) int { return a.Compare(b.Object) })
	merged := map[string]mesh.Rule{} // by which of the rules are seen
	of := func(seen func(mesh.Rule) bool) mesh.Rule {
		var which strings.Builder
		for _, rule := range rules {
			if seen(rule) {
				which.WriteByte('1')
			} else {
				which.WriteByte('0')
			}
		}
		m, ok := merged[which.String()]
		if !ok {
			for i, rule := range rules {
				if which.String()[i] == '1' {
					m = merge(m, rule)
				}
			}
			merged[which.String()] = m
		}
		return m
	}
	out := Rules{Everybody: of(func(rule mesh.Rule) bool { return rule.Export.All })}
	names := map[string]bool{}
	if t.Used(r, id, k.Namespace) {
		names[k.Namespace] = true
		out.Own = of(func(rule mesh.Rule) bool {
			return k.Namespace != root || !rule.Export.All && slices.Equal(rule.Export.Namespaces, []string{root})
		})
	}
	for _, rule := range rules {
		for _, ns := range Reach(r, t, id, rule.Export) {
			names[ns] = true
		}
	}
	for _, ns := range sorted(names) {
		v := View{Client: ns, Rule: of(func(rule mesh.Rule) bool { return rule.Export.Sees(ns) })}
		if !same(v.Rule, out.Everybody) {
			out.Clients = append(out.Clients, v)
		}
	}
	return out
}

// hostRules are the rules that may be for a host, by how specific the host is that they write, the most specific first.
type hostRules struct {
	own           map[string]mesh.Rule // the first, by client namespace
	service, root []Rules
}

// rulesOf gathers the rules that may be for a service.
func rulesOf(r *graph.Reader, t *Tables, s mesh.Service) hostRules {
	root := t.ConfigOf(r, s.Key.Mesh).RootNamespace
	out := hostRules{own: map[string]mesh.Rule{}}
	for _, pattern := range patterns(r, t, s.Key.Host) {
		for _, row := range graph.Find(r, t.ByHost, pattern) {
			if _, ok := out.own[row.Key.Namespace]; !ok {
				out.own[row.Key.Namespace] = row.Val.Own
			}
		}
		if rs, ok := graph.Get(r, t.Rules, RulesKey{pattern, s.Key.Namespace}); ok {
			out.service = append(out.service, rs)
		}
		if rs, ok := graph.Get(r, t.Rules, RulesKey{pattern, root}); ok {
			out.root = append(out.root, rs)
		}
	}
	return out
}

// patterns returns the hosts that a rule for a host may write, the most specific first: the host, and for each domain above it,
// wildcards for part of the label below, as long as some rule has them, and then the one for all of it.
func patterns(r *graph.Reader, t *Tables, host string) []string {
	out := []string{host}
	for rest := strings.TrimPrefix(host, "*."); ; {
		_, after, more := strings.Cut(rest, ".")
		if !more {
			break
		}
		out = append(append(out, parts(r, t, after, host)...), "*."+after)
		rest = after
	}
	if host != "*" {
		out = append(out, "*")
	}
	return out
}

// parts returns the wildcards for part of a label below a domain that may fit a host, the longest first. It looks at how long
// they are, and not at each: whoever writes thousands concerns services that end so.
func parts(r *graph.Reader, t *Tables, domain, host string) (out []string) {
	label := len(host) - len(".") - len(domain)
	label -= strings.LastIndexByte(host[:label], '.') + 1
	lengths, _ := graph.Get(r, t.Parts, domain)
	for _, n := range lengths {
		if n <= label {
			out = append(out, "*"+host[len(host)-len(domain)-len(".")-n:])
		}
	}
	return out
}

// PartOf returns under what the table Parts has a host that has a wildcard for part of a label: the domain above it.
func PartOf(host string) []string {
	if part, domain, _ := strings.Cut(host, "."); len(part) > 1 && part[0] == '*' {
		return []string{domain}
	}
	return nil
}

// PartsOf returns how many letters of the label the rules under one domain name, each number once.
func PartsOf(rows []*graph.Row[RulesKey, Rules]) []int {
	var out []int
	for _, row := range rows {
		out = append(out, strings.IndexByte(row.Key.Host+".", '.')-len("*"))
	}
	slices.SortFunc(out, func(a, b int) int { return b - a })
	return slices.Compact(out)
}

// of chooses what clients of a namespace keep to when they call the service: a rule of their own namespace, else one of the
// service's, else one of the root namespace, and in each the one for the most specific host. Rules of one namespace for one
// host are one rule. The empty client stands for namespaces that nothing names.
func (h hostRules) of(client string) mesh.Rule {
	if rule, ok := h.own[client]; ok {
		return rule
	}
	for _, rules := range slices.Concat(h.service, h.root) {
		if rule := rules.of(client); rule.Host != "" {
			return rule
		}
	}
	return mesh.Rule{}
}

// clients returns the namespaces whose clients may keep to something else than everybody.
func (h hostRules) clients() []string {
	set := map[string]bool{}
	for ns := range h.own {
		set[ns] = true
	}
	for _, rules := range slices.Concat(h.service, h.root) {
		for _, v := range rules.Clients {
			set[v.Client] = true
		}
	}
	return sorted(set)
}

// same spares the look at what a rule says if there is none, as for nearly every service.
func same(a, b mesh.Rule) bool {
	return a.Host == b.Host && (a.Host == "" || reflect.DeepEqual(a, b))
}

// merge adds the newer rule to the older: its subsets, and its policy if there is none yet. A newer rule that some client
// of the older one does not see stays out.
func merge(older, newer mesh.Rule) mesh.Rule {
	if older.Host == "" {
		return newer
	}
	for _, ns := range older.Export.Namespaces {
		if !newer.Export.Sees(ns) {
			return older
		}
	}
	if older.Export.All && !newer.Export.All {
		return older
	}
	if !older.HasPolicy {
		older.HasPolicy, older.Traffic = newer.HasPolicy, newer.Traffic
	}
	subsets := slices.Clone(older.Subsets)
	for _, s := range newer.Subsets {
		if !slices.ContainsFunc(subsets, func(o mesh.Subset) bool { return o.Name == s.Name }) {
			subsets = append(subsets, s)
		}
	}
	older.Subsets = subsets
	return older
}
