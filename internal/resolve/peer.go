package resolve

import (
	"cmp"
	"maps"
	"slices"

	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Peering is what one workload's proxy accepts.
type Peering struct {
	Mode  mesh.PeerMode // of ports that Ports does not name
	Ports map[uint32]mesh.PeerMode
	From  []mesh.Ref // the policies that say so, the widest first
}

// At returns what is accepted on a port of the workload.
func (p Peering) At(port uint32) mesh.PeerMode {
	if m, ok := p.Ports[port]; ok {
		return m
	}
	return p.Mode
}

// PeeringOf combines the policies of the root namespace and of the workload's own: the narrower wins, what it leaves unset it
// inherits, and at each level the oldest counts. Without any, everything is accepted.
func PeeringOf(root, own []mesh.PeerPolicy, labels map[string]string) Peering {
	p := Peering{Mode: mesh.PeerPermissive}
	wide := func(q mesh.PeerPolicy) bool { return q.Selector == nil }
	narrow := func(q mesh.PeerPolicy) bool { return q.Selector != nil && mesh.Selects(q.Selector, labels) }
	for _, level := range []struct {
		policies []mesh.PeerPolicy
		applies  func(mesh.PeerPolicy) bool
	}{{root, wide}, {own, wide}, {own, narrow}} {
		policy, ok := oldest(level.policies, level.applies)
		if !ok || slices.Contains(p.From, policy.Ref) {
			continue
		}
		p.From = append(p.From, policy.Ref)
		p.Mode = cmp.Or(policy.Mode, p.Mode)
		if policy.Selector == nil {
			continue
		}
		for port, mode := range policy.Ports {
			if p.Ports == nil {
				p.Ports = map[uint32]mesh.PeerMode{}
			}
			p.Ports[port] = cmp.Or(mode, p.Mode)
		}
	}
	return p
}

func oldest(policies []mesh.PeerPolicy, applies func(mesh.PeerPolicy) bool) (best mesh.PeerPolicy, ok bool) {
	for _, p := range policies {
		if applies(p) && (!ok || p.Compare(best.Object) < 0) {
			best, ok = p, true
		}
	}
	return best, ok
}

// PeeringFor returns what the proxy of a workload accepts. It looks at the policies only that may be for it.
func PeeringFor(r *graph.Reader, t *Tables, id mesh.ID, w mesh.Workload) Peering {
	var root, own []mesh.PeerPolicy
	find := func(to *[]mesh.PeerPolicy, k SelectorKey) {
		for _, row := range graph.Find(r, t.ByLabel, k) {
			*to = append(*to, row.Val)
		}
	}
	find(&root, SelectorKey{Namespace: t.ConfigOf(r, id).RootNamespace})
	find(&own, SelectorKey{Namespace: w.Key.Namespace})
	for _, label := range slices.Sorted(maps.Keys(w.Labels)) {
		find(&own, SelectorKey{Namespace: w.Key.Namespace, Label: label, Value: w.Labels[label]})
	}
	return PeeringOf(root, own, w.Labels)
}

// PolicyKeys returns under what ByLabel finds a policy: it is for workloads of its namespace in every cluster.
func PolicyKeys(p mesh.PeerPolicy) []SelectorKey {
	return []SelectorKey{selectorKey("", p.Namespace, p.Selector)}
}
