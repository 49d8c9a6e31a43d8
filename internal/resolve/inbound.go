package resolve

import (
	"cmp"
	"encoding/hex"
	"maps"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// InboundKey stands for the content of an InboundSpec, so that equal workloads share what is rendered.
type InboundKey string

// InboundPort is what a proxy accepts on one port of its workload.
type InboundPort struct {
	Port     uint32 // of the workload; 0: every port that nothing else names
	Service  uint32 // the service's port in front of it; 0: none, passed through to where it was sent
	Protocol mesh.Protocol
	Mode     mesh.PeerMode
}

// InboundSpec is all that the inbound side of a proxy depends on, but the mesh's configuration.
type InboundSpec struct {
	Ports []InboundPort // passed-through ones first, then by number
	IPv6  bool          // the workload has an IPv6 address
	From  []mesh.Ref    // the policies that shaped it
}

// Key returns the key of the spec's content.
func (s InboundSpec) Key() InboundKey {
	h := sum(s)
	return InboundKey(hex.EncodeToString(h[:16]))
}

// Inbound gathers what the proxy of a workload accepts: on the ports behind its services by their protocol, the oldest
// service first, and whatever comes on others.
func Inbound(r *graph.Reader, t *Tables, id mesh.ID, w mesh.Workload) InboundSpec {
	p := PeeringFor(r, t, id, w)
	ports := map[uint32]InboundPort{0: {Mode: p.Mode}}
	for port, mode := range p.Ports {
		if !mesh.ProxyPort(port) {
			ports[port] = InboundPort{Port: port, Mode: mode}
		}
	}
	for _, s := range selecting(r, t, w) {
		for _, sp := range s.Ports {
			target := sp.Target
			if sp.TargetName != "" {
				target = w.Ports[sp.TargetName]
			}
			if target == 0 || mesh.ProxyPort(target) || ports[target].Service != 0 {
				continue
			}
			ports[target] = InboundPort{Port: target, Service: sp.Number, Protocol: sp.Protocol, Mode: p.At(target)}
		}
	}
	return InboundSpec{
		Ports: slices.SortedFunc(maps.Values(ports), func(a, b InboundPort) int {
			return cmp.Or(cmp.Compare(min(a.Service, 1), min(b.Service, 1)), cmp.Compare(a.Port, b.Port))
		}),
		IPv6: slices.ContainsFunc(w.Addresses, func(a string) bool { return strings.Contains(a, ":") }),
		From: p.From,
	}
}

// selecting returns the services that a workload is part of, the oldest first.
func selecting(r *graph.Reader, t *Tables, w mesh.Workload) []mesh.Service {
	var out []mesh.Service
	for _, label := range slices.Sorted(maps.Keys(w.Labels)) {
		for _, row := range graph.Find(r, t.BySelector, SelectorKey{w.Key.Namespace, label, w.Labels[label]}) {
			if mesh.Selects(row.Val.Selector, w.Labels) {
				out = append(out, row.Val)
			}
		}
	}
	slices.SortFunc(out, func(a, b mesh.Service) int { return a.Compare(b.Object) })
	return out
}

// SelectorKeys returns under what BySelector finds a service.
func SelectorKeys(s mesh.Service) []SelectorKey {
	if len(s.Selector) == 0 {
		return nil
	}
	return []SelectorKey{selectorKey(s.Key.Namespace, s.Selector)}
}
