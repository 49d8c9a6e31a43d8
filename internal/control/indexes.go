package control

import (
	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/resolve"
)

// indexes builds what records are found by, and what is gathered of them.
func (p *Pipeline) indexes(g *graph.Graph, endpoints *graph.Table[mesh.EndpointKey, mesh.Endpoint],
	rules *graph.Table[mesh.ObjectKey, mesh.Rule], policies *graph.Table[mesh.ObjectKey, mesh.PeerPolicy],
) {
	t := &p.tables
	t.ByAlias = graph.NewIndex(t.Services, "services.alias", func(_ mesh.ServiceKey, s mesh.Service) []string {
		if s.Alias == "" {
			return nil
		}
		return []string{s.Alias}
	})
	t.ByVirtual = graph.NewIndex(t.Services, "services.address", func(_ mesh.ServiceKey, s mesh.Service) []mesh.Address { return resolve.VirtualKeys(s) })
	t.BySelector = graph.NewIndex(t.Services, "services.selector", func(_ mesh.ServiceKey, s mesh.Service) []resolve.SelectorKey {
		return resolve.SelectorKeys(s)
	})
	t.ByAddress = graph.NewIndex(t.Workloads, "workloads.address", func(k mesh.WorkloadKey, w mesh.Workload) (out []mesh.Address) {
		if w.HostNetwork {
			return nil
		}
		for _, a := range w.Addresses {
			out = append(out, mesh.Address{Cluster: k.Cluster, IP: a})
		}
		return out
	})
	t.ByService = graph.NewIndex(endpoints, "endpoints.service", func(k mesh.EndpointKey, _ mesh.Endpoint) []mesh.ServiceKey {
		return []mesh.ServiceKey{k.Service}
	})
	t.ByBackend = graph.NewIndex(endpoints, "endpoints.address", func(k mesh.EndpointKey, _ mesh.Endpoint) []resolve.Backend {
		return []resolve.Backend{{Mesh: k.Service.Mesh, Namespace: k.Service.Namespace, Address: mesh.Address{Cluster: k.Cluster, IP: k.Address}}}
	})
	t.ByPort = graph.NewIndex(endpoints, "endpoints.port", func(k mesh.EndpointKey, _ mesh.Endpoint) []mesh.ServicePort {
		return []mesh.ServicePort{{Service: k.Service, Port: k.Port}}
	})
	local := graph.Derive(g, "endpoints.local", t.Services, graph.TableOptions[mesh.Endpoint]{},
		func(r *graph.Reader, k mesh.ServiceKey, s mesh.Service, emit func(mesh.EndpointKey, mesh.Endpoint)) {
			if !s.Local {
				return
			}
			for _, row := range graph.Find(r, t.ByService, k) {
				emit(row.Key, row.Val)
			}
		})
	t.LocalTo = graph.NewIndex(local, "endpoints.node", func(k mesh.EndpointKey, e mesh.Endpoint) []mesh.ServicePort {
		return []mesh.ServicePort{{Service: k.Service, Port: k.Port, Node: e.Node}}
	})
	t.ByLabel = graph.NewIndex(policies, "policies.label", func(_ mesh.ObjectKey, p mesh.PeerPolicy) []resolve.SelectorKey {
		return resolve.PolicyKeys(p)
	})
	t.Peerings = graph.Derive(g, "peerings", t.Workloads, graph.TableOptions[resolve.Peering]{},
		func(r *graph.Reader, k mesh.WorkloadKey, w mesh.Workload, emit func(mesh.WorkloadKey, resolve.Peering)) {
			emit(k, resolve.PeeringFor(r, t, p.id, w))
		})
	byHost := graph.NewIndex(rules, "rules.host", func(_ mesh.ObjectKey, r mesh.Rule) []resolve.RulesKey {
		return []resolve.RulesKey{{Host: r.Host, Namespace: r.Namespace}}
	})
	t.Rules = graph.Group(g, "rules.merged", byHost, graph.TableOptions[resolve.Rules]{},
		func(r *graph.Reader, k resolve.RulesKey, rows []*graph.Row[mesh.ObjectKey, mesh.Rule], emit func(resolve.RulesKey, resolve.Rules)) {
			emit(k, resolve.RulesOf(r, t, p.id, k, rows))
		})
	t.ByHost = graph.NewIndex(t.Rules, "rules.own", func(k resolve.RulesKey, rs resolve.Rules) []string {
		if rs.Own.Host == "" {
			return nil
		}
		return []string{k.Host}
	})
	byPart := graph.NewIndex(t.Rules, "rules.part", func(k resolve.RulesKey, _ resolve.Rules) []string { return resolve.PartOf(k.Host) })
	t.Parts = graph.Group(g, "rules.parts", byPart, graph.TableOptions[[]int]{},
		func(_ *graph.Reader, domain string, rows []*graph.Row[resolve.RulesKey, resolve.Rules], emit func(string, []int)) {
			emit(domain, resolve.PartsOf(rows))
		})
	t.Reach = graph.Derive(g, "services.reach", t.Services, graph.TableOptions[[]string]{},
		func(r *graph.Reader, k mesh.ServiceKey, s mesh.Service, emit func(mesh.ServiceKey, []string)) {
			if reach := resolve.Reach(r, t, p.id, s.Export); len(reach) > 0 {
				emit(k, reach)
			}
		})
	t.Backends = graph.Group(g, "backends", t.ByService, graph.TableOptions[resolve.Backends]{},
		func(r *graph.Reader, k mesh.ServiceKey, rows []*graph.Row[mesh.EndpointKey, mesh.Endpoint], emit func(mesh.ServiceKey, resolve.Backends)) {
			emit(k, resolve.BackendsOf(r, t, rows))
		})
	t.Spread = graph.NewIndex(t.Backends, "backends.networks", func(k mesh.ServiceKey, b resolve.Backends) []mesh.ServiceKey {
		if len(b.Networks) == 0 {
			return nil
		}
		return []mesh.ServiceKey{k}
	})
	t.Seen = graph.Derive(g, "services.seen", t.Services, graph.TableOptions[[]resolve.View]{},
		func(r *graph.Reader, k mesh.ServiceKey, s mesh.Service, emit func(mesh.ServiceKey, []resolve.View)) {
			emit(k, resolve.SeenOf(r, t, s))
		})
}
