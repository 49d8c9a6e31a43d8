package control

import (
	"maps"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/render/envoy"
	"github.com/heddle-mesh/heddle/internal/resolve"
	"github.com/heddle-mesh/heddle/internal/xds"
)

// sides builds what is particular to a client's workload: its inbound side, shared by all that accept the same. That of a
// client whose pod is not known yet goes by what the client says of itself.
func (p *Pipeline) sides(g *graph.Graph) {
	t := &p.tables
	inbound := graph.Derive(g, "inbound", p.scopes, graph.TableOptions[resolve.InboundSpec]{},
		func(r *graph.Reader, k mesh.WorkloadKey, _ resolve.Scope, emit func(mesh.WorkloadKey, resolve.InboundSpec)) {
			w, known := graph.Get(r, t.Workloads, k)
			if !known {
				c, _ := graph.Get(r, p.presence.source.Table, k)
				w = mesh.Workload{Key: k, Labels: c.Labels, Ports: c.Ports, Addresses: c.Addresses}
			}
			if !w.HostNetwork {
				emit(k, resolve.Inbound(r, t, p.id, w))
			}
		})
	specs := graph.Derive(g, "inbound.specs", inbound, graph.TableOptions[resolve.InboundSpec]{},
		func(_ *graph.Reader, _ mesh.WorkloadKey, s resolve.InboundSpec, emit func(resolve.InboundKey, resolve.InboundSpec)) {
			emit(s.Key(), s)
		})
	ports := graph.Derive(g, "inbound.ports", specs, graph.TableOptions[struct{}]{},
		func(_ *graph.Reader, _ resolve.InboundKey, s resolve.InboundSpec, emit func(resolve.InboundPort, struct{})) {
			for _, port := range s.Ports {
				emit(port, struct{}{})
			}
		})
	chains := graph.Derive(g, "rendered.inbound.chains", ports, freshFragment,
		func(r *graph.Reader, k resolve.InboundPort, _ struct{}, emit func(resolve.InboundPort, []xds.Fragment)) {
			emit(k, fragments(filterChains, envoy.InboundChains(k, resolve.ProxyOf(t.ConfigOf(r, p.id)))...))
		})
	composed := graph.Derive(g, "composed.inbound", specs, graph.TableOptions[side]{Equal: side.equal},
		func(r *graph.Reader, k resolve.InboundKey, s resolve.InboundSpec, emit func(resolve.InboundKey, side)) {
			config := t.ConfigOf(r, p.id)
			from := origin(s, config)
			parts, ok := gather(r, chains, s.Ports)
			if !ok { // a port without its chains would be open to what those of all ports accept
				r.Keep()
				return
			}
			in, out := envoy.InboundListener(s, resolve.ProxyOf(config)), envoy.VirtualOutbound(resolve.ProxyOf(config), s.IPv6)
			made := side{listenerType: {
				compose(listenerType, in.GetName(), from, in, parts),
				seal(listenerType, out.GetName(), config.Ref.String(), out),
			}}
			for _, port := range s.Ports {
				target := port.Port
				if port.Service == 0 {
					target = 0
				}
				c := envoy.Inbound(target, s.IPv6)
				made[clusterType] = append(made[clusterType], seal(clusterType, c.GetName(), from, c))
			}
			emit(k, made)
		})
	// A workload whose side cannot be made keeps the last one: moved to another that lacks something it would lose that.
	current := graph.Derive(g, "inbound.made", inbound, graph.TableOptions[resolve.InboundKey]{},
		func(r *graph.Reader, w mesh.WorkloadKey, s resolve.InboundSpec, emit func(mesh.WorkloadKey, resolve.InboundKey)) {
			if _, ok := graph.Get(r, composed, s.Key()); ok {
				emit(w, s.Key())
			} else {
				r.Keep()
			}
		})
	inUse := graph.Derive(g, "inbound.distinct", current, graph.TableOptions[struct{}]{},
		func(_ *graph.Reader, _ mesh.WorkloadKey, k resolve.InboundKey, emit func(resolve.InboundKey, struct{})) {
			emit(k, struct{}{})
		})
	for _, typeURL := range []string{listenerType, clusterType} {
		p.place(typeURL, graph.Derive(g, "placed.inbound."+short(typeURL), inUse, sealedOnce,
			func(r *graph.Reader, k resolve.InboundKey, _ struct{}, emit func(place, xds.Resource)) {
				made, ok := graph.Get(r, composed, k)
				if !ok {
					r.Keep()
				}
				for _, res := range made[typeURL] {
					emit(place{inboundGroup(p.id, k), res.Name}, res)
				}
			}))
	}
	p.inbound = inbound
	p.proxies = graph.Derive(g, "proxies", p.scopes, graph.TableOptions[proxy]{},
		func(r *graph.Reader, k mesh.WorkloadKey, s resolve.Scope, emit func(mesh.WorkloadKey, proxy)) {
			own := proxy{layers: s.Layers()}
			if _, has := graph.Get(r, inbound, k); has {
				var made bool
				if own.inbound, made = graph.Get(r, current, k); !made {
					return
				}
			}
			emit(k, own)
		})
}

// side is what an inbound side is made of, by type, all or nothing of it.
type side map[string][]xds.Resource

func (s side) equal(o side) bool {
	return maps.EqualFunc(s, o, func(a, b []xds.Resource) bool { return slices.EqualFunc(a, b, sealedOnce.Equal) })
}

// origin names what shaped an inbound side: its policies, or else the mesh's configuration.
func origin(s resolve.InboundSpec, c mesh.Config) string {
	if len(s.From) == 0 {
		return c.Ref.String()
	}
	var names []string
	for _, ref := range s.From {
		names = append(names, ref.String())
	}
	return strings.Join(names, ", ")
}
