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
	for _, f := range slices.SortedFunc(slices.Values(append(selecting(r, t, w), listing(r, t, id, w)...)), func(a, b front) int {
		return a.service.Compare(b.service)
	}) {
		if f.target == 0 || mesh.ProxyPort(f.target) || ports[f.target].Service != 0 {
			continue
		}
		ports[f.target] = InboundPort{Port: f.target, Service: f.port.Number, Protocol: f.port.Protocol, Mode: p.At(f.target)}
	}
	return InboundSpec{
		Ports: slices.SortedFunc(maps.Values(ports), func(a, b InboundPort) int {
			return cmp.Or(cmp.Compare(min(a.Service, 1), min(b.Service, 1)), cmp.Compare(a.Port, b.Port))
		}),
		IPv6: slices.ContainsFunc(w.Addresses, func(a string) bool { return strings.Contains(a, ":") }),
		From: p.From,
	}
}

// front is a service's port in front of one of a workload.
type front struct {
	service mesh.Object
	port    mesh.Port
	target  uint32
}

// selecting returns the ports of services of a workload's own cluster whose selector it has, in order of a service's own.
func selecting(r *graph.Reader, t *Tables, w mesh.Workload) []front {
	var out []front
	for _, label := range slices.Sorted(maps.Keys(w.Labels)) {
		for _, row := range graph.Find(r, t.BySelector, SelectorKey{w.Key.Cluster, w.Key.Namespace, label, w.Labels[label]}) {
			s, _ := row.Val.In(w.Key.Cluster)
			if !mesh.Selects(s.Selector, w.Labels) {
				continue
			}
			for _, p := range s.Ports {
				target := p.Target
				if p.TargetName != "" {
					target = w.Ports[p.TargetName]
				}
				out = append(out, front{s.Object, p, target})
			}
		}
	}
	return out
}

// listing returns the ports of services without selector, of the workload's own cluster and namespace, whose slices have its
// address.
func listing(r *graph.Reader, t *Tables, id mesh.ID, w mesh.Workload) []front {
	var out []front
	for _, address := range w.Addresses {
		for _, row := range graph.Find(r, t.ByBackend, Backend{id, w.Key.Namespace, mesh.Address{Cluster: w.Key.Cluster, IP: address}}) {
			service, _ := graph.Get(r, t.Services, row.Key.Service)
			s, _ := service.In(w.Key.Cluster)
			for _, p := range s.Ports {
				if p.Name == row.Key.Port && len(s.Selector) == 0 {
					out = append(out, front{s.Object, p, row.Key.Target})
				}
			}
		}
	}
	return out
}

// Backend is an address behind services of a namespace.
type Backend struct {
	Mesh      mesh.ID
	Namespace string
	Address   mesh.Address
}

// SelectorKeys returns under what BySelector finds a service.
func SelectorKeys(s mesh.Service) (out []SelectorKey) {
	for _, own := range s.Records {
		if len(own.Selector) > 0 {
			out = append(out, selectorKey(own.Ref.Cluster, s.Key.Namespace, own.Selector))
		}
	}
	return out
}

// VirtualKeys returns under what ByVirtual finds a service.
func VirtualKeys(s mesh.Service) (out []mesh.Address) {
	for _, own := range s.Records {
		for _, a := range own.Addresses {
			out = append(out, mesh.Address{Cluster: own.Ref.Cluster, IP: a})
		}
	}
	return out
}
