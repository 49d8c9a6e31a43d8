package control

import (
	"strings"

	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/render/envoy"
	"github.com/heddle-mesh/heddle/internal/resolve"
	"github.com/heddle-mesh/heddle/internal/xds"
)

// routes builds route configurations. Those of a port are put together of virtual hosts that are rendered once for all.
func (p *Pipeline) routes(g *graph.Graph) {
	t := &p.tables
	hosts := graph.Derive(g, "hosts", t.Services, graph.TableOptions[resolve.Host]{},
		func(r *graph.Reader, _ mesh.ServiceKey, s mesh.Service, emit func(resolve.HostKey, resolve.Host)) {
			resolve.Hosts(r, t, s, emit)
		})
	distinct := graph.Derive(g, "hosts.distinct", hosts, graph.TableOptions[resolve.HostSpec]{},
		func(_ *graph.Reader, _ resolve.HostKey, h resolve.Host, emit func(resolve.Content, resolve.HostSpec)) {
			emit(h.ID, h.HostSpec)
		})
	rendered := graph.Derive(g, "rendered.hosts", distinct, freshFragment,
		func(_ *graph.Reader, k resolve.Content, s resolve.HostSpec, emit func(resolve.Content, []xds.Fragment)) {
			emit(k, fragments(virtualHosts, envoy.Host(s)))
		})
	// What cannot be rendered stays as it was made last: left out, its requests would go where those for unknown hosts do.
	made := graph.Derive(g, "hosts.made", hosts, graph.TableOptions[resolve.Host]{},
		func(r *graph.Reader, k resolve.HostKey, h resolve.Host, emit func(resolve.HostKey, resolve.Host)) {
			if _, ok := graph.Get(r, rendered, h.ID); ok {
				emit(k, h)
			} else {
				r.Keep()
			}
		})
	parts := graph.Derive(g, "hosts.parts", made, freshFragment,
		func(r *graph.Reader, _ resolve.HostKey, h resolve.Host, emit func(resolve.Content, []xds.Fragment)) {
			if f, ok := graph.Get(r, rendered, h.ID); ok {
				emit(h.ID, f)
			} else {
				r.Keep()
			}
		})
	p.hosts = hosts
	portOf := func(k resolve.HostKey, _ resolve.Host) []resolve.PortKey {
		return []resolve.PortKey{{Port: k.Port, Cluster: k.Cluster, Client: k.Client}}
	}
	ports := graph.NewIndex(hosts, "hosts.port", portOf) // which listeners refer to
	byPort := graph.NewIndex(made, "hosts.made.port", portOf)
	catchAll := graph.Derive(g, "rendered.hosts.fixed", t.Config, freshFragment,
		func(_ *graph.Reader, id mesh.ID, c mesh.Config, emit func(mesh.ID, []xds.Fragment)) {
			emit(id, fragments(virtualHosts, envoy.CatchAll(resolve.ProxyOf(c))))
		})
	specs := graph.Group(g, "routes", ports, sameContent[resolve.RouteSpec](),
		func(r *graph.Reader, at resolve.PortKey, _ []*graph.Row[resolve.HostKey, resolve.Host], emit func(resolve.RouteKey, resolve.RouteSpec)) {
			k := resolve.RouteKey{Layer: resolve.Layer{Mesh: p.id, Cluster: at.Cluster, Namespace: at.Client}, Port: at.Port}
			emit(k, resolve.Route(r, byPort, k))
		})
	p.findings = append(p.findings, graph.Derive(g, "findings.hosts", specs, graph.TableOptions[mesh.Finding]{},
		func(_ *graph.Reader, _ resolve.RouteKey, s resolve.RouteSpec, emit func(findingKey, mesh.Finding)) {
			for _, l := range s.Lost {
				f := l.Finding(s.Name)
				emit(findingKey{About: f.About, Message: f.Message}, f)
			}
		}))
	once(p, g, "routes", routeType, specs,
		func(k resolve.RouteKey, s resolve.RouteSpec) place { return place{groupOf(k.Layer), s.Name} },
		func(r *graph.Reader, s resolve.RouteSpec) (xds.Resource, bool) {
			var all []xds.Fragment
			for _, h := range s.Hosts {
				f, ok := graph.Get(r, parts, h)
				if cut, is := s.Cut[h]; is {
					f, ok = fragments(virtualHosts, envoy.Host(cut)), true
				}
				if !ok {
					return xds.Resource{}, false
				}
				all = append(all, f...)
			}
			last, ok := graph.Get(r, catchAll, p.id)
			return compose(routeType, s.Name, strings.Join(s.Origins, ", "), envoy.Routes(s.Name), append(all, last...)), ok
		})
	sniffed := graph.Derive(g, "routes.sniffed", t.Services, graph.TableOptions[resolve.SniffedSpec]{},
		func(r *graph.Reader, _ mesh.ServiceKey, s mesh.Service, emit func(resolve.ListenerKey, resolve.SniffedSpec)) {
			resolve.Sniffed(r, t, s, emit)
		})
	p.place(routeType, graph.Derive(g, "rendered.routes.sniffed", sniffed, sealedOnce,
		func(_ *graph.Reader, k resolve.ListenerKey, s resolve.SniffedSpec, emit func(place, xds.Resource)) {
			emit(place{groupOf(k.Layer), s.Name}, seal(routeType, s.Name, s.Host.Origin, envoy.Sniffed(s)))
		}))
}
