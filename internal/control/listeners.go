package control

import (
	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/render/envoy"
	"github.com/heddle-mesh/heddle/internal/resolve"
	"github.com/heddle-mesh/heddle/internal/xds"
)

// listeners builds the outbound listeners of services: what they want of each socket, who gets it, and what that makes.
func (p *Pipeline) listeners(g *graph.Graph) {
	t := &p.tables
	bindings := graph.Derive(g, "bindings", t.Services, graph.TableOptions[resolve.Binding]{},
		func(r *graph.Reader, _ mesh.ServiceKey, s mesh.Service, emit func(resolve.BindingKey, resolve.Binding)) {
			resolve.Bindings(r, t, s, emit)
		})
	bySocket := graph.NewIndex(bindings, "bindings.socket", func(k resolve.BindingKey, _ resolve.Binding) []resolve.Socket {
		return []resolve.Socket{k.Socket}
	})
	sockets := graph.Group(g, "sockets", bySocket, graph.TableOptions[[]resolve.Won]{},
		func(_ *graph.Reader, k resolve.Socket, rows []*graph.Row[resolve.BindingKey, resolve.Binding], emit func(resolve.Socket, []resolve.Won)) {
			emit(k, resolve.Arbitrate(rows))
		})
	p.findings = append(p.findings, graph.Group(g, "findings.sockets", bySocket, graph.TableOptions[mesh.Finding]{},
		func(r *graph.Reader, k resolve.Socket, rows []*graph.Row[resolve.BindingKey, resolve.Binding], emit func(findingKey, mesh.Finding)) {
			won, _ := graph.Get(r, sockets, k)
			for _, row := range rows {
				if lost := resolve.Lost(r, t, row.Key, row.Val, won); lost != "" {
					f := mesh.Finding{About: row.Val.Ref, Reason: "AddressTaken", Message: lost}
					emit(findingKey{About: f.About, Message: f.Message}, f)
				}
				if row.Val.Nobodys {
					f := mesh.Finding{About: row.Val.Ref, Reason: "AddressUnknown", Message: resolve.Unowned(row.Key)}
					emit(findingKey{About: f.About, Message: f.Message}, f)
				}
			}
		}))
	specs := graph.Derive(g, "listeners", sockets, graph.TableOptions[resolve.ListenerSpec]{},
		func(r *graph.Reader, k resolve.Socket, won []resolve.Won, emit func(resolve.ListenerKey, resolve.ListenerSpec)) {
			resolve.Listeners(r, t, k, won, sockets, emit)
		})
	distinct := graph.Derive(g, "listeners.chains", specs, graph.TableOptions[struct{}]{},
		func(_ *graph.Reader, _ resolve.ListenerKey, s resolve.ListenerSpec, emit func(resolve.Chain, struct{})) {
			for _, c := range s.Chains {
				emit(c, struct{}{})
			}
		})
	chains := graph.Derive(g, "rendered.chains", distinct, freshFragment,
		func(r *graph.Reader, c resolve.Chain, _ struct{}, emit func(resolve.Chain, []xds.Fragment)) {
			emit(c, fragments(filterChains, envoy.OutboundChain(c, resolve.ProxyOf(t.ConfigOf(r, p.id)))))
		})
	once(p, g, "listeners", listenerType, specs,
		func(k resolve.ListenerKey, _ resolve.ListenerSpec) place { return place{groupOf(k.Layer), k.Name} },
		func(r *graph.Reader, s resolve.ListenerSpec) (xds.Resource, bool) {
			if s.Hidden {
				return xds.Hidden(s.Name, s.Origin), true
			}
			parts, ok := gather(r, chains, s.Chains)
			return compose(listenerType, s.Name, s.Origin, envoy.Listener(s, resolve.ProxyOf(t.ConfigOf(r, p.id))), parts), ok
		})
}
