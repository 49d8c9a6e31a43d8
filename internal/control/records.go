package control

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/ingest"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/resolve"
)

// records builds what the objects say, of served namespaces only.
func (p *Pipeline) records(g *graph.Graph) {
	t := &p.tables
	t.Home = p.home
	self := graph.NewSource[mesh.ID, string](g, "mesh", nil)
	self.Set(p.id, p.system)
	t.Members = graph.Derive(g, "members", p.Memberships.Table, graph.TableOptions[mesh.Membership]{},
		func(_ *graph.Reader, k mesh.ObjectKey, o *heddlev1alpha1.Membership, emit func(mesh.NamespaceKey, mesh.Membership)) {
			m := ingest.Membership(o)
			emit(mesh.NamespaceKey{Cluster: k.Cluster, Name: m.Namespace}, m)
		})
	systems := graph.NewIndex(t.Members, "members.system", func(k mesh.NamespaceKey, _ mesh.Membership) []string {
		if k.Name != p.system {
			return nil
		}
		return []string{k.Name}
	})
	t.Config = graph.Derive(g, "config", self.Table, graph.TableOptions[mesh.Config]{},
		func(r *graph.Reader, id mesh.ID, system string, emit func(mesh.ID, mesh.Config)) {
			m, _ := graph.Get(r, p.MeshConfig.Table, id)
			c, in := ingest.Config(id, system, m), map[mesh.ClusterID]mesh.Membership{}
			for _, row := range graph.Find(r, systems, system) {
				in[row.Key.Cluster] = row.Val
			}
			c.Networks = ingest.Networks(in)
			emit(id, c)
		})
	inClusters := graph.NewIndex(p.Services.Table, "services.clusters", func(k mesh.ObjectKey, _ *corev1.Service) []mesh.ObjectKey {
		k.Cluster = "" // an object of its name is the same service in each
		return []mesh.ObjectKey{k}
	})
	t.Services = graph.Group(g, "services", inClusters, graph.TableOptions[mesh.Service]{},
		func(r *graph.Reader, _ mesh.ObjectKey, rows []*graph.Row[mesh.ObjectKey, *corev1.Service], emit func(mesh.ServiceKey, mesh.Service)) {
			var objects []mesh.Service
			for _, row := range rows {
				if t.Serves(r, row.Key.Cluster, row.Key.Namespace) {
					objects = append(objects, ingest.Service(t.ConfigOf(r, p.id), row.Key, row.Val))
				}
			}
			if len(objects) > 0 {
				s := mesh.Join(objects)
				emit(s.Key, s)
			}
		})
	nodes := graph.Derive(g, "nodes", p.Nodes.Table, graph.TableOptions[mesh.Locality]{},
		func(_ *graph.Reader, k mesh.ObjectKey, o *corev1.Node, emit func(mesh.NodeKey, mesh.Locality)) {
			emit(mesh.NodeKey{Cluster: k.Cluster, Name: k.Name}, ingest.Locality(o))
		})
	t.Workloads = graph.Derive(g, "workloads", p.Pods.Table, graph.TableOptions[mesh.Workload]{},
		func(r *graph.Reader, k mesh.ObjectKey, o *corev1.Pod, emit func(mesh.WorkloadKey, mesh.Workload)) {
			if !p.tables.Serves(r, k.Cluster, k.Namespace) {
				return
			}
			at, _ := graph.Get(r, nodes, mesh.NodeKey{Cluster: k.Cluster, Name: o.Spec.NodeName})
			if w, ok := ingest.Workload(p.tables.ConfigOf(r, p.id), k, o, at); ok {
				emit(w.Key, w)
			}
		})
	p.inUse(g)
	// While a slice is split its endpoints may be in two.
	endpoints := graph.Derive(g, "endpoints", p.EndpointSlices.Table,
		graph.TableOptions[mesh.Endpoint]{Prefer: func(a, b mesh.Endpoint) bool { return a.Ready && !b.Ready }},
		func(r *graph.Reader, k mesh.ObjectKey, o *discoveryv1.EndpointSlice, emit func(mesh.EndpointKey, mesh.Endpoint)) {
			if !t.Serves(r, k.Cluster, k.Namespace) {
				return
			}
			endpoints, _ := ingest.Endpoints(t.ConfigOf(r, p.id), k, o)
			for _, e := range endpoints {
				emit(e.Key, e)
			}
		})
	find(p, g, "endpointslices", p.EndpointSlices.Table, func(_ *graph.Reader, c mesh.Config, k mesh.ObjectKey, o *discoveryv1.EndpointSlice) []mesh.Finding {
		_, found := ingest.Endpoints(c, k, o)
		return found
	})
	find(p, g, "services", p.Services.Table, func(_ *graph.Reader, c mesh.Config, k mesh.ObjectKey, o *corev1.Service) []mesh.Finding {
		return ingest.ServiceFindings(c, k, o)
	})
	differ := graph.NewIndex(t.Services, "services.differ", func(k mesh.ServiceKey, s mesh.Service) []mesh.ServiceKey {
		if slices.ContainsFunc(s.Records, func(own mesh.ServiceRecord) bool { return own.Differs != "" }) {
			return []mesh.ServiceKey{k}
		}
		return nil
	})
	p.findings = append(p.findings, graph.Group(g, "findings.clusters", differ, graph.TableOptions[mesh.Finding]{},
		func(_ *graph.Reader, _ mesh.ServiceKey, rows []*graph.Row[mesh.ServiceKey, mesh.Service], emit func(findingKey, mesh.Finding)) {
			for _, own := range rows[0].Val.Records {
				if own.Differs != "" {
					f := differing(rows[0].Val, own)
					emit(findingKey{About: f.About, Message: f.Message}, f)
				}
			}
		}))
	rules := parsed(p, g, "rules", "DestinationRule", p.DestinationRules.Table,
		func(_ *graph.Reader, c mesh.Config, k mesh.ObjectKey, o *networkingv1.DestinationRule) (mesh.Rule, bool, []mesh.Finding) {
			return ingest.Rule(c, k, o)
		})
	policies := safer(p, g, "policies", "PeerAuthentication", p.PeerAuthentications.Table, ingest.ValidPeerPolicy, ingest.PeerPolicy)
	p.indexes(g, endpoints, rules, policies)
}

// inUse builds the scopes of connected clients, and the layers for which something is made.
func (p *Pipeline) inUse(g *graph.Graph) {
	t := &p.tables
	t.ByNode = graph.Derive(g, "services.bynode", t.Services, graph.TableOptions[struct{}]{},
		func(_ *graph.Reader, _ mesh.ServiceKey, s mesh.Service, emit func(resolve.Layer, struct{})) {
			resolve.AskNode(s, emit)
		})
	p.scopes = graph.Derive(g, "scopes.clients", p.presence.source.Table, graph.TableOptions[resolve.Scope]{},
		func(r *graph.Reader, k mesh.WorkloadKey, c resolve.Client, emit func(mesh.WorkloadKey, resolve.Scope)) {
			if s, ok := resolve.ScopeOf(r, t, p.id, c); ok {
				emit(k, s)
			}
		})
	distinct := graph.Derive(g, "scopes", p.scopes, graph.TableOptions[struct{}]{},
		func(_ *graph.Reader, _ mesh.WorkloadKey, s resolve.Scope, emit func(resolve.Scope, struct{})) {
			emit(s, struct{}{})
		})
	t.Layers = graph.Derive(g, "layers", distinct, graph.TableOptions[struct{}]{},
		func(_ *graph.Reader, s resolve.Scope, _ struct{}, emit func(resolve.Layer, struct{})) {
			for _, l := range s.Layers() {
				emit(l, struct{}{})
			}
		})
	t.InClusters = graph.NewIndex(t.Layers, "layers.cluster", func(l resolve.Layer, _ struct{}) []resolve.Layer { return resolve.ClusterLayerOf(l) })
	t.NetworkLayers = graph.NewIndex(t.Layers, "layers.network", func(l resolve.Layer, _ struct{}) []resolve.Layer { return resolve.NetworkLayerOf(l) })
	t.NodeLayers = graph.NewIndex(t.Layers, "layers.node", func(l resolve.Layer, _ struct{}) []resolve.Layer { return resolve.NodeLayerOf(l) })
}

// reads is Serves for the kinds that may be meant for one revision only.
func (p *Pipeline) reads(r *graph.Reader, k mesh.ObjectKey, o metav1.Object) bool {
	rev := o.GetLabels()["istio.io/rev"]
	return (rev == "" || rev == p.revision) && p.tables.Serves(r, k.Cluster, k.Namespace)
}

// parsed builds the records of a kind of Istio's API, whose objects may be meant for one revision only, and what is found in
// them. They count in the plane's own cluster, and there for namespaces of their name in every cluster: else two clusters could
// say different things of one service, and who may write in one of them would speak for all.
func parsed[O metav1.Object, V any](p *Pipeline, g *graph.Graph, name, kind string, from *graph.Table[mesh.ObjectKey, O],
	parse func(*graph.Reader, mesh.Config, mesh.ObjectKey, O) (V, bool, []mesh.Finding),
) *graph.Table[mesh.ObjectKey, V] {
	find(p, g, name, from, func(r *graph.Reader, c mesh.Config, k mesh.ObjectKey, o O) []mesh.Finding {
		if k.Cluster != p.home {
			return []mesh.Finding{p.notRead(mesh.Ref{Cluster: k.Cluster, Kind: kind, Namespace: k.Namespace, Name: k.Name})}
		}
		_, _, found := parse(r, c, k, o)
		return found
	})
	return graph.Derive(g, name, from, graph.TableOptions[V]{},
		func(r *graph.Reader, k mesh.ObjectKey, o O, emit func(mesh.ObjectKey, V)) {
			if k.Cluster != p.home || !p.reads(r, k, o) {
				return
			}
			if v, ok, _ := parse(r, p.tables.ConfigOf(r, p.id), k, o); ok {
				emit(k, v)
			}
		})
}

// safer is parsed for a kind whose objects make safer: parse is told the last version of the object that was valid, the zero O
// if none is known. An object that was deleted and made again has none in common with the one before.
func safer[O interface {
	comparable
	metav1.Object
}, V any](p *Pipeline, g *graph.Graph, name, kind string, from *graph.Table[mesh.ObjectKey, O],
	valid func(mesh.Config, mesh.ObjectKey, O) bool,
	parse func(c mesh.Config, k mesh.ObjectKey, o, good O) (V, bool, []mesh.Finding),
) *graph.Table[mesh.ObjectKey, V] {
	good := graph.Derive(g, name+".good", from, graph.TableOptions[O]{Equal: func(a, b O) bool { return a == b }},
		func(r *graph.Reader, k mesh.ObjectKey, o O, emit func(mesh.ObjectKey, O)) {
			switch {
			case k.Cluster != p.home, !p.reads(r, k, o):
			case valid(p.tables.ConfigOf(r, p.id), k, o):
				emit(k, o)
			default:
				r.Keep()
			}
		})
	return parsed(p, g, name, kind, from, func(r *graph.Reader, c mesh.Config, k mesh.ObjectKey, o O) (V, bool, []mesh.Finding) {
		last, ok := graph.Get(r, good, k)
		if !ok || last.GetUID() != o.GetUID() {
			var none O
			last = none
		}
		return parse(c, k, o, last)
	})
}

// find builds the findings about a kind of objects.
func find[O metav1.Object](p *Pipeline, g *graph.Graph, name string, from *graph.Table[mesh.ObjectKey, O],
	find func(*graph.Reader, mesh.Config, mesh.ObjectKey, O) []mesh.Finding,
) {
	p.findings = append(p.findings, graph.Derive(g, "findings."+name, from, graph.TableOptions[mesh.Finding]{},
		func(r *graph.Reader, k mesh.ObjectKey, o O, emit func(findingKey, mesh.Finding)) {
			if !p.reads(r, k, o) {
				return
			}
			for i, f := range find(r, p.tables.ConfigOf(r, p.id), k, o) {
				emit(findingKey{About: f.About, Number: i}, f)
			}
		}))
}
