package resolve

import (
	"reflect"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// matching returns the rules whose host matches, the most specific hosts first.
func matching(r *graph.Reader, t *Tables, host string) [][]mesh.Rule {
	var out [][]mesh.Rule
	find := func(pattern string) {
		var rules []mesh.Rule
		for _, row := range graph.Find(r, t.ByHost, pattern) {
			rules = append(rules, row.Val)
		}
		if len(rules) > 0 {
			slices.SortFunc(rules, func(a, b mesh.Rule) int { return a.Compare(b.Object) })
			out = append(out, rules)
		}
	}
	find(host)
	for rest := host; ; {
		_, after, more := strings.Cut(rest, ".")
		if !more {
			break
		}
		find("*." + after)
		rest = after
	}
	find("*")
	return out
}

// ruleFor chooses what clients of a namespace keep to when they call a service of another: a rule of their own namespace,
// else one of the service's, else one of the root namespace, and in each the one for the most specific host. Rules of one
// namespace for one host are one rule. Of the root namespace's own clients only rules kept to that namespace come first.
// The empty client stands for namespaces that nothing names.
func ruleFor(matching [][]mesh.Rule, client, service, root string) mesh.Rule {
	own := func(r mesh.Rule) bool {
		if client == root && (r.Export.All || !slices.Equal(r.Export.Namespaces, []string{root})) {
			return false
		}
		return client != "" && r.Namespace == client
	}
	from := func(namespace string) func(mesh.Rule) bool {
		return func(r mesh.Rule) bool { return r.Namespace == namespace && r.Export.Sees(client) }
	}
	for _, step := range []func(mesh.Rule) bool{own, from(service), from(root)} {
		for _, rules := range matching {
			var chosen mesh.Rule
			for _, r := range rules {
				if step(r) {
					chosen = merge(chosen, r)
				}
			}
			if chosen.Host != "" {
				return chosen
			}
		}
	}
	return mesh.Rule{}
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

// view is a service as clients of one namespace see it; the empty client is everybody whom no other view names.
type view struct {
	client string
	rule   mesh.Rule
}

// views returns in which ways a service is seen: by everybody if it is exported to all, and by each namespace for which
// that is not true.
func views(r *graph.Reader, t *Tables, s mesh.Service) []view {
	matching := matching(r, t, s.Key.Host)
	root := t.ConfigOf(r, s.Key.Mesh).RootNamespace
	if !s.Export.All {
		var out []view
		for _, ns := range s.Export.Namespaces {
			if t.Serves(r, ns) {
				out = append(out, view{ns, ruleFor(matching, ns, s.Key.Namespace, root)})
			}
		}
		return out
	}
	others := map[string]bool{}
	for _, rules := range matching {
		for _, rule := range rules {
			others[rule.Namespace] = true
			for _, ns := range rule.Export.Namespaces {
				others[ns] = true
			}
		}
	}
	everybody := view{"", ruleFor(matching, "", s.Key.Namespace, root)}
	out := []view{everybody}
	for _, ns := range sorted(others) {
		v := view{ns, ruleFor(matching, ns, s.Key.Namespace, root)}
		if !reflect.DeepEqual(v.rule, everybody.rule) && t.Serves(r, ns) {
			out = append(out, v)
		}
	}
	return out
}
