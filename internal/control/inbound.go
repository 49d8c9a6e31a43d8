package control

import (
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
	p.proxies = graph.Derive(g, "proxies", p.scopes, graph.TableOptions[proxy]{},
		func(r *graph.Reader, k mesh.WorkloadKey, s resolve.Scope, emit func(mesh.WorkloadKey, proxy)) {
			own := proxy{layers: s.Layers()}
			if side, ok := graph.Get(r, inbound, k); ok {
				own.inbound = side.Key()
			}
			emit(k, own)
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
	p.place(listenerType, graph.Derive(g, "composed.inbound", specs, sealedOnce,
		func(r *graph.Reader, k resolve.InboundKey, s resolve.InboundSpec, emit func(place, xds.Resource)) {
			config := t.ConfigOf(r, p.id)
			parts, ok := gather(r, chains, s.Ports)
			if !ok { // a port without its chains would be open to what those of all ports accept
				r.Keep()
				return
			}
			in, out := envoy.InboundListener(s, resolve.ProxyOf(config)), envoy.VirtualOutbound(resolve.ProxyOf(config), s.IPv6)
			emit(place{inboundGroup(p.id, k), in.GetName()}, compose(listenerType, in.GetName(), origin(s, config), in, parts))
			emit(place{inboundGroup(p.id, k), out.GetName()}, seal(listenerType, out.GetName(), config.Ref.String(), out))
		}))
	p.place(clusterType, graph.Derive(g, "rendered.inbound.clusters", specs, sealedOnce,
		func(r *graph.Reader, k resolve.InboundKey, s resolve.InboundSpec, emit func(place, xds.Resource)) {
			for _, port := range s.Ports {
				target := port.Port
				if port.Service == 0 {
					target = 0
				}
				c := envoy.Inbound(target, s.IPv6)
				emit(place{inboundGroup(p.id, k), c.GetName()}, seal(clusterType, c.GetName(), origin(s, t.ConfigOf(r, p.id)), c))
			}
		}))
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
