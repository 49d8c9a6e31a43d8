package control

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/ingest"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/render/envoy"
	"github.com/heddle-mesh/heddle/internal/resolve"
	"github.com/heddle-mesh/heddle/internal/xds"
)

// Type URLs of what the pipeline makes.
const (
	clusterType    = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	assignmentType = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	listenerType   = "type.googleapis.com/envoy.config.listener.v3.Listener"
	routeType      = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
)

// Field numbers of what composites are made of.
const (
	virtualHosts = 2 // of RouteConfiguration
	filterChains = 3 // of Listener
)

// Sources are the objects that a mesh is made of. What is staged in them belongs to the graph.
type Sources struct {
	MeshConfig          *graph.Source[mesh.ID, *meshv1alpha1.MeshConfig]
	Memberships         *graph.Source[mesh.ObjectKey, *heddlev1alpha1.Membership]
	Nodes               *graph.Source[mesh.ObjectKey, *corev1.Node]
	Services            *graph.Source[mesh.ObjectKey, *corev1.Service]
	EndpointSlices      *graph.Source[mesh.ObjectKey, *discoveryv1.EndpointSlice]
	Pods                *graph.Source[mesh.ObjectKey, *corev1.Pod]
	PeerAuthentications *graph.Source[mesh.ObjectKey, *securityv1.PeerAuthentication]
	DestinationRules    *graph.Source[mesh.ObjectKey, *networkingv1.DestinationRule]
}

// Pipeline translates the objects of one mesh into what its proxies hold.
type Pipeline struct {
	*Sources
	id       mesh.ID
	system   string
	revision string

	tables   resolve.Tables
	findings []*graph.Table[findingKey, mesh.Finding]
	presence presence
	scopes   *graph.Table[mesh.WorkloadKey, resolve.Scope]
	proxies  *graph.Table[mesh.WorkloadKey, proxy]
	placed   []placement
	faults   func() []graph.Fault
}

// proxy is what a connected client holds: decided in one row, so that nobody puts it together of two revisions.
type proxy struct {
	layers  []resolve.Layer
	inbound resolve.InboundKey // empty: a pod in its node's network has no inbound side
}

// place is where a resource is: two groups may hold one name.
type place struct {
	Group xds.Group
	Name  string
}

type placement struct {
	typeURL string
	table   *graph.Table[place, xds.Resource]
}

type findingKey struct {
	About   mesh.Ref
	Number  int    // in the object, in its own order
	Message string // of what lies between objects
}

// NewPipeline builds the tables of o's mesh in g, in the order in which data flows through them.
func NewPipeline(g *graph.Graph, o Options) *Pipeline {
	p := &Pipeline{id: o.Mesh, system: o.Namespace, revision: o.Revision, faults: g.Faults}
	p.Sources = &Sources{
		MeshConfig:          graph.NewSource[mesh.ID, *meshv1alpha1.MeshConfig](g, "source.meshconfig", same),
		Memberships:         graph.NewSource[mesh.ObjectKey, *heddlev1alpha1.Membership](g, "source.memberships", same),
		Nodes:               graph.NewSource[mesh.ObjectKey, *corev1.Node](g, "source.nodes", same),
		Services:            graph.NewSource[mesh.ObjectKey, *corev1.Service](g, "source.services", same),
		EndpointSlices:      graph.NewSource[mesh.ObjectKey, *discoveryv1.EndpointSlice](g, "source.endpointslices", same),
		Pods:                graph.NewSource[mesh.ObjectKey, *corev1.Pod](g, "source.pods", same),
		PeerAuthentications: graph.NewSource[mesh.ObjectKey, *securityv1.PeerAuthentication](g, "source.peerauthentications", same),
		DestinationRules:    graph.NewSource[mesh.ObjectKey, *networkingv1.DestinationRule](g, "source.destinationrules", same),
	}
	p.presence.source = graph.NewSource[mesh.WorkloadKey, resolve.Client](g, "source.clients", nil)
	p.records(g)
	p.clusters(g)
	p.listeners(g)
	p.routes(g)
	p.sides(g)
	return p
}

// same: an object that is read again is another; whether that changes anything its record tells.
func same[T any](a, b *T) bool { return a == b }

// records builds what the objects say, of served namespaces only.
func (p *Pipeline) records(g *graph.Graph) {
	t := &p.tables
	self := graph.NewSource[mesh.ID, string](g, "mesh", nil)
	self.Set(p.id, p.system)
	t.Config = graph.Derive(g, "config", self.Table, graph.TableOptions[mesh.Config]{},
		func(r *graph.Reader, id mesh.ID, system string, emit func(mesh.ID, mesh.Config)) {
			m, _ := graph.Get(r, p.MeshConfig.Table, id)
			emit(id, ingest.Config(id, system, m))
		})
	t.Members = graph.Derive(g, "members", p.Memberships.Table, graph.TableOptions[mesh.Membership]{},
		func(_ *graph.Reader, _ mesh.ObjectKey, o *heddlev1alpha1.Membership, emit func(string, mesh.Membership)) {
			m := ingest.Membership(o)
			emit(m.Namespace, m)
		})
	t.Services = graph.Derive(g, "services", p.Services.Table,
		graph.TableOptions[mesh.Service]{Prefer: func(a, b mesh.Service) bool { return a.Compare(b.Object) < 0 }},
		func(r *graph.Reader, k mesh.ObjectKey, o *corev1.Service, emit func(mesh.ServiceKey, mesh.Service)) {
			if p.tables.Serves(r, k.Namespace) {
				s := ingest.Service(p.tables.ConfigOf(r, p.id), k, o)
				emit(s.Key, s)
			}
		})
	nodes := graph.Derive(g, "nodes", p.Nodes.Table, graph.TableOptions[mesh.Locality]{},
		func(_ *graph.Reader, k mesh.ObjectKey, o *corev1.Node, emit func(mesh.ObjectKey, mesh.Locality)) {
			emit(k, ingest.Locality(o))
		})
	t.Workloads = graph.Derive(g, "workloads", p.Pods.Table, graph.TableOptions[mesh.Workload]{},
		func(r *graph.Reader, k mesh.ObjectKey, o *corev1.Pod, emit func(mesh.WorkloadKey, mesh.Workload)) {
			if !p.tables.Serves(r, k.Namespace) {
				return
			}
			at, _ := graph.Get(r, nodes, mesh.ObjectKey{Cluster: k.Cluster, Name: o.Spec.NodeName})
			if w, ok := ingest.Workload(p.tables.ConfigOf(r, p.id), k, o, at); ok {
				emit(w.Key, w)
			}
		})
	p.inUse(g)
	// While a slice is split its endpoints may be in two.
	endpoints := graph.Derive(g, "endpoints", p.EndpointSlices.Table,
		graph.TableOptions[mesh.Endpoint]{Prefer: func(a, b mesh.Endpoint) bool { return a.Ready && !b.Ready }},
		func(r *graph.Reader, k mesh.ObjectKey, o *discoveryv1.EndpointSlice, emit func(mesh.EndpointKey, mesh.Endpoint)) {
			if !t.Serves(r, k.Namespace) {
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
	rules := parsed(p, g, "rules", p.DestinationRules.Table,
		func(_ *graph.Reader, c mesh.Config, k mesh.ObjectKey, o *networkingv1.DestinationRule) (mesh.Rule, bool, []mesh.Finding) {
			return ingest.Rule(c, k, o)
		})
	policies := safer(p, g, "policies", p.PeerAuthentications.Table, ingest.ValidPeerPolicy, ingest.PeerPolicy)
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
	t.NodeLayers = graph.NewIndex(t.Layers, "layers.node", func(l resolve.Layer, _ struct{}) []resolve.Layer { return resolve.NodeLayerOf(l) })
}

// reads is Serves for the kinds that may be meant for one revision only.
func (p *Pipeline) reads(r *graph.Reader, namespace string, o metav1.Object) bool {
	rev := o.GetLabels()["istio.io/rev"]
	return (rev == "" || rev == p.revision) && p.tables.Serves(r, namespace)
}

// parsed builds the records of a kind that may be meant for one revision only, and what is found in its objects.
func parsed[O metav1.Object, V any](p *Pipeline, g *graph.Graph, name string, from *graph.Table[mesh.ObjectKey, O],
	parse func(*graph.Reader, mesh.Config, mesh.ObjectKey, O) (V, bool, []mesh.Finding),
) *graph.Table[mesh.ObjectKey, V] {
	find(p, g, name, from, func(r *graph.Reader, c mesh.Config, k mesh.ObjectKey, o O) []mesh.Finding {
		_, _, found := parse(r, c, k, o)
		return found
	})
	return graph.Derive(g, name, from, graph.TableOptions[V]{},
		func(r *graph.Reader, k mesh.ObjectKey, o O, emit func(mesh.ObjectKey, V)) {
			if !p.reads(r, k.Namespace, o) {
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
}, V any](p *Pipeline, g *graph.Graph, name string, from *graph.Table[mesh.ObjectKey, O],
	valid func(mesh.Config, mesh.ObjectKey, O) bool,
	parse func(c mesh.Config, k mesh.ObjectKey, o, good O) (V, bool, []mesh.Finding),
) *graph.Table[mesh.ObjectKey, V] {
	good := graph.Derive(g, name+".good", from, graph.TableOptions[O]{Equal: func(a, b O) bool { return a == b }},
		func(r *graph.Reader, k mesh.ObjectKey, o O, emit func(mesh.ObjectKey, O)) {
			switch {
			case !p.reads(r, k.Namespace, o):
			case valid(p.tables.ConfigOf(r, p.id), k, o):
				emit(k, o)
			default:
				r.Keep()
			}
		})
	return parsed(p, g, name, from, func(r *graph.Reader, c mesh.Config, k mesh.ObjectKey, o O) (V, bool, []mesh.Finding) {
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
			if !p.reads(r, k.Namespace, o) {
				return
			}
			for i, f := range find(r, p.tables.ConfigOf(r, p.id), k, o) {
				emit(findingKey{About: f.About, Number: i}, f)
			}
		}))
}

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
	t.ByVirtual = graph.NewIndex(t.Services, "services.address", func(_ mesh.ServiceKey, s mesh.Service) []string { return s.Addresses })
	t.BySelector = graph.NewIndex(t.Services, "services.selector", func(_ mesh.ServiceKey, s mesh.Service) []resolve.SelectorKey {
		return resolve.SelectorKeys(s)
	})
	t.ByAddress = graph.NewIndex(t.Workloads, "workloads.address", func(_ mesh.WorkloadKey, w mesh.Workload) []string {
		if w.HostNetwork {
			return nil
		}
		return w.Addresses
	})
	t.ByService = graph.NewIndex(endpoints, "endpoints.service", func(k mesh.EndpointKey, _ mesh.Endpoint) []mesh.ServiceKey {
		return []mesh.ServiceKey{k.Service}
	})
	t.ByBackend = graph.NewIndex(endpoints, "endpoints.address", func(k mesh.EndpointKey, _ mesh.Endpoint) []resolve.Backend {
		return []resolve.Backend{{Mesh: k.Service.Mesh, Namespace: k.Service.Namespace, Address: k.Address}}
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
		func(r *graph.Reader, k resolve.RulesKey, rows []graph.Row[mesh.ObjectKey, mesh.Rule], emit func(resolve.RulesKey, resolve.Rules)) {
			emit(k, resolve.RulesOf(r, t, p.id, k, rows))
		})
	t.ByHost = graph.NewIndex(t.Rules, "rules.own", func(k resolve.RulesKey, rs resolve.Rules) []string {
		if rs.Own.Host == "" {
			return nil
		}
		return []string{k.Host}
	})
	t.ByPart = graph.NewIndex(t.Rules, "rules.part", func(k resolve.RulesKey, _ resolve.Rules) []string { return resolve.PartOf(k.Host) })
	t.Reach = graph.Derive(g, "services.reach", t.Services, graph.TableOptions[[]string]{},
		func(r *graph.Reader, k mesh.ServiceKey, s mesh.Service, emit func(mesh.ServiceKey, []string)) {
			if reach := resolve.Reach(r, t, p.id, s.Export); len(reach) > 0 {
				emit(k, reach)
			}
		})
	t.Seen = graph.Derive(g, "services.seen", t.Services, graph.TableOptions[[]resolve.View]{},
		func(r *graph.Reader, k mesh.ServiceKey, s mesh.Service, emit func(mesh.ServiceKey, []resolve.View)) {
			emit(k, resolve.SeenOf(r, t, s))
		})
	t.Backends = graph.Group(g, "backends", t.ByService, graph.TableOptions[resolve.Backends]{},
		func(r *graph.Reader, k mesh.ServiceKey, rows []graph.Row[mesh.EndpointKey, mesh.Endpoint], emit func(mesh.ServiceKey, resolve.Backends)) {
			emit(k, resolve.BackendsOf(r, t, rows))
		})
}

// clusters builds clusters and their assignments: entries say which layer holds which variant, each variant is rendered once.
func (p *Pipeline) clusters(g *graph.Graph) {
	t := &p.tables
	entries := graph.Derive(g, "entries", t.Services, graph.TableOptions[resolve.Entry]{},
		func(r *graph.Reader, _ mesh.ServiceKey, s mesh.Service, emit func(resolve.EntryKey, resolve.Entry)) {
			resolve.Entries(r, t, s, func(k resolve.EntryKey, e resolve.Entry, _ resolve.Said, _ map[string]string) { emit(k, e) })
		})
	said := graph.Derive(g, "clusters.said", t.Services, graph.TableOptions[resolve.Said]{},
		func(r *graph.Reader, _ mesh.ServiceKey, s mesh.Service, emit func(resolve.ClusterKey, resolve.Said)) {
			resolve.Entries(r, t, s, func(_ resolve.EntryKey, e resolve.Entry, said resolve.Said, _ map[string]string) {
				if e.Cluster != (resolve.ClusterKey{}) {
					emit(e.Cluster, said)
				}
			})
		})
	labels := graph.Derive(g, "assignments.labels", t.Services, graph.TableOptions[map[string]string]{},
		func(r *graph.Reader, _ mesh.ServiceKey, s mesh.Service, emit func(resolve.AssignmentKey, map[string]string)) {
			resolve.Entries(r, t, s, func(_ resolve.EntryKey, e resolve.Entry, _ resolve.Said, labels map[string]string) {
				emit(e.Assignment, labels)
			})
		})
	clusters := graph.Derive(g, "clusters", said, graph.TableOptions[resolve.ClusterSpec]{},
		func(r *graph.Reader, k resolve.ClusterKey, said resolve.Said, emit func(resolve.ClusterKey, resolve.ClusterSpec)) {
			if spec, ok := resolve.Cluster(r, t, k, said); ok {
				emit(k, spec)
			}
		})
	assignments := graph.Derive(g, "assignments", labels, graph.TableOptions[resolve.AssignmentSpec]{},
		func(r *graph.Reader, k resolve.AssignmentKey, labels map[string]string, emit func(resolve.AssignmentKey, resolve.AssignmentSpec)) {
			if spec, ok := resolve.Assignment(r, t, k, labels); ok {
				emit(k, spec)
			}
		})
	renderedClusters := graph.Derive(g, "rendered.clusters", clusters, sealedOnce,
		func(_ *graph.Reader, k resolve.ClusterKey, s resolve.ClusterSpec, emit func(resolve.ClusterKey, xds.Resource)) {
			emit(k, seal(clusterType, s.Name, s.Origin, envoy.Cluster(s)))
		})
	renderedAssignments := graph.Derive(g, "rendered.assignments", assignments, sealedOnce,
		func(_ *graph.Reader, k resolve.AssignmentKey, s resolve.AssignmentSpec, emit func(resolve.AssignmentKey, xds.Resource)) {
			emit(k, seal(assignmentType, s.Name, s.Origin, envoy.Assignment(s)))
		})
	p.place(clusterType, graph.Derive(g, "placed.clusters", entries, sealedOnce,
		func(r *graph.Reader, k resolve.EntryKey, e resolve.Entry, emit func(place, xds.Resource)) {
			put(r, place{groupOf(k.Layer), k.Name}, e.Cluster, clusters, renderedClusters, emit)
		}))
	p.place(assignmentType, graph.Derive(g, "placed.assignments", entries, sealedOnce,
		func(r *graph.Reader, k resolve.EntryKey, e resolve.Entry, emit func(place, xds.Resource)) {
			put(r, place{groupOf(k.Layer), k.Name}, e.Assignment, assignments, renderedAssignments, emit)
		}))
	p.place(clusterType, graph.Derive(g, "rendered.clusters.fixed", t.Config, sealedOnce,
		func(_ *graph.Reader, id mesh.ID, c mesh.Config, emit func(place, xds.Resource)) {
			for _, m := range []interface {
				proto.Message
				GetName() string
			}{envoy.Passthrough(), envoy.BlackHole()} {
				emit(place{groupOf(resolve.Layer{Mesh: id}), m.GetName()}, seal(clusterType, m.GetName(), c.Ref.String(), m))
			}
		}))
}

// sealedOnce: what comes from an unchanged spec is never rendered again, so equality by content is enough.
var sealedOnce = graph.TableOptions[xds.Resource]{Equal: func(a, b xds.Resource) bool { return a.Version == b.Version && a.Origin == b.Origin }}

// put places what was rendered of a spec. A spec that could not be rendered leaves in place what was there: clients would
// take nothing for a removal.
func put[K comparable, S any](r *graph.Reader, at place, k K, specs *graph.Table[K, S], rendered *graph.Table[K, xds.Resource], emit func(place, xds.Resource)) {
	if _, ok := graph.Get(r, specs, k); !ok {
		return
	}
	if res, ok := graph.Get(r, rendered, k); ok {
		emit(at, res)
	} else {
		r.Keep()
	}
}

func (p *Pipeline) place(typeURL string, t *graph.Table[place, xds.Resource]) {
	p.placed = append(p.placed, placement{typeURL, t})
}

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
		func(_ *graph.Reader, k resolve.Socket, rows []graph.Row[resolve.BindingKey, resolve.Binding], emit func(resolve.Socket, []resolve.Won)) {
			emit(k, resolve.Arbitrate(rows))
		})
	p.findings = append(p.findings, graph.Derive(g, "findings.sockets", bindings, graph.TableOptions[mesh.Finding]{},
		func(r *graph.Reader, k resolve.BindingKey, b resolve.Binding, emit func(findingKey, mesh.Finding)) {
			won, _ := graph.Get(r, sockets, k.Socket)
			if lost := resolve.Lost(r, t, k, b, won); lost != "" {
				f := mesh.Finding{About: b.Ref, Reason: "AddressTaken", Message: lost}
				emit(findingKey{About: f.About, Message: f.Message}, f)
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
		func(r *graph.Reader, s resolve.ListenerSpec) xds.Resource {
			if s.Hidden {
				return xds.Hidden(s.Name, s.Origin)
			}
			var parts []xds.Fragment
			for _, c := range s.Chains {
				f, _ := graph.Get(r, chains, c)
				parts = append(parts, f...)
			}
			return compose(listenerType, s.Name, s.Origin, envoy.Listener(s, resolve.ProxyOf(t.ConfigOf(r, p.id))), parts)
		})
}

// routes builds route configurations. Those of a port are put together of virtual hosts that are rendered once for all.
func (p *Pipeline) routes(g *graph.Graph) {
	t := &p.tables
	hosts := graph.Derive(g, "hosts", t.Services, graph.TableOptions[resolve.Host]{},
		func(r *graph.Reader, _ mesh.ServiceKey, s mesh.Service, emit func(resolve.HostKey, resolve.Host)) {
			resolve.Hosts(r, t, s, emit)
		})
	byPort := graph.NewIndex(hosts, "hosts.port", func(k resolve.HostKey, _ resolve.Host) []resolve.PortKey {
		return []resolve.PortKey{{Port: k.Port, Client: k.Client}}
	})
	distinct := graph.Derive(g, "hosts.distinct", hosts, graph.TableOptions[resolve.HostSpec]{},
		func(_ *graph.Reader, _ resolve.HostKey, h resolve.Host, emit func(resolve.Content, resolve.HostSpec)) {
			emit(h.ID, h.HostSpec)
		})
	rendered := graph.Derive(g, "rendered.hosts", distinct, freshFragment,
		func(_ *graph.Reader, k resolve.Content, s resolve.HostSpec, emit func(resolve.Content, []xds.Fragment)) {
			emit(k, fragments(virtualHosts, envoy.Host(s)))
		})
	catchAll := graph.Derive(g, "rendered.hosts.fixed", t.Config, freshFragment,
		func(_ *graph.Reader, id mesh.ID, c mesh.Config, emit func(mesh.ID, []xds.Fragment)) {
			emit(id, fragments(virtualHosts, envoy.CatchAll(resolve.ProxyOf(c))))
		})
	keys := graph.Derive(g, "routes.keys", hosts, graph.TableOptions[struct{}]{},
		func(_ *graph.Reader, k resolve.HostKey, _ resolve.Host, emit func(resolve.RouteKey, struct{})) {
			emit(resolve.RouteKey{Layer: resolve.Layer{Mesh: k.Service.Mesh, Namespace: k.Client}, Port: k.Port}, struct{}{})
		})
	specs := graph.Derive(g, "routes", keys, sameContent[resolve.RouteSpec](),
		func(r *graph.Reader, k resolve.RouteKey, _ struct{}, emit func(resolve.RouteKey, resolve.RouteSpec)) {
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
		func(r *graph.Reader, s resolve.RouteSpec) xds.Resource {
			var parts []xds.Fragment
			for _, h := range s.Hosts {
				f, _ := graph.Get(r, rendered, h)
				if cut, ok := s.Cut[h]; ok {
					f = fragments(virtualHosts, envoy.Host(cut))
				}
				parts = append(parts, f...)
			}
			last, _ := graph.Get(r, catchAll, p.id)
			return compose(routeType, s.Name, strings.Join(s.Origins, ", "), envoy.Routes(s.Name), append(parts, last...))
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

// freshFragment: a fragment is made again only if its spec has changed, and then it differs.
var freshFragment = graph.TableOptions[[]xds.Fragment]{Equal: func(_, _ []xds.Fragment) bool { return false }}

// contents is a spec that stands for one content.
type contents interface{ Content() resolve.Content }

// sameContent spares the comparison of large specs field by field.
func sameContent[S contents]() graph.TableOptions[S] {
	return graph.TableOptions[S]{Equal: func(a, b S) bool { return a.Content() == b.Content() }}
}

// once builds the resources of specs, one for each content, whatever number of layers has it.
func once[K comparable, S contents](p *Pipeline, g *graph.Graph, name, typeURL string, specs *graph.Table[K, S],
	at func(K, S) place, render func(*graph.Reader, S) xds.Resource,
) {
	ids := graph.Derive(g, name+".contents", specs, graph.TableOptions[resolve.Content]{},
		func(_ *graph.Reader, k K, s S, emit func(K, resolve.Content)) { emit(k, s.Content()) })
	distinct := graph.Derive(g, name+".distinct", ids, sameContent[S](),
		func(r *graph.Reader, k K, id resolve.Content, emit func(resolve.Content, S)) {
			s, _ := graph.Get(r, specs, k)
			emit(id, s)
		})
	composed := graph.Derive(g, "composed."+name, distinct, sealedOnce,
		func(r *graph.Reader, id resolve.Content, s S, emit func(resolve.Content, xds.Resource)) {
			emit(id, render(r, s))
		})
	p.place(typeURL, graph.Derive(g, "placed."+name, ids, sealedOnce,
		func(r *graph.Reader, k K, id resolve.Content, emit func(place, xds.Resource)) {
			s, _ := graph.Get(r, specs, k)
			put(r, at(k, s), id, distinct, composed, emit)
		}))
}

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
			var parts []xds.Fragment
			for _, port := range s.Ports {
				f, _ := graph.Get(r, chains, port)
				parts = append(parts, f...)
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

func groupOf(l resolve.Layer) xds.Group {
	return xds.Group(fmt.Sprintf("layer/%s/%s/%d/%s/%s", l.Mesh, l.Namespace, l.Families, l.Node.Cluster, l.Node.Name))
}

func inboundGroup(id mesh.ID, k resolve.InboundKey) xds.Group {
	return xds.Group("inbound/" + string(id) + "/" + string(k))
}

// finished is where each message and each part of a composite passes between its making and its seal, and so where a patch to
// it belongs. It panics for what Envoy would refuse whole: the graph logs that and keeps the row's last output.
func finished[M proto.Message](m M) M { return envoy.Checked(m) }

func seal(typeURL, name, origin string, m proto.Message) xds.Resource {
	return must(xds.Seal(typeURL, name, origin, finished(m)))
}

func compose(typeURL, name, origin string, header proto.Message, parts []xds.Fragment) xds.Resource {
	return must(xds.Compose(typeURL, name, origin, finished(header), parts))
}

func fragments[M proto.Message](field protowire.Number, ms ...M) []xds.Fragment {
	var out []xds.Fragment
	for _, m := range ms {
		out = append(out, must(xds.NewFragment(field, finished(m))))
	}
	return out
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Mesh returns the mesh's name.
func (p *Pipeline) Mesh() mesh.ID { return p.id }

// Changes returns what the round changed in the groups. Valid inside OnPublish only.
func (p *Pipeline) Changes() []xds.Change {
	type key struct {
		group xds.Group
		typ   string
	}
	changes := map[key]*xds.Change{}
	for _, pl := range p.placed {
		for _, c := range pl.table.Changed() {
			k := key{c.Key.Group, pl.typeURL}
			if changes[k] == nil {
				changes[k] = &xds.Change{Group: k.group, Type: k.typ}
			}
			if c.Has {
				changes[k].Set = append(changes[k].Set, c.New)
			} else {
				changes[k].Remove = append(changes[k].Remove, c.Key.Name)
			}
		}
	}
	var out []xds.Change
	for _, k := range slices.SortedFunc(maps.Keys(changes), func(a, b key) int {
		return cmp.Or(cmp.Compare(a.group, b.group), cmp.Compare(a.typ, b.typ))
	}) {
		out = append(out, *changes[k])
	}
	return out
}

// toCome is the group of a workload's inbound side that is yet to be made; no group has this name.
const toCome xds.Group = "inbound to come"

// Groups returns what a connected client holds, later ones winning by name, and which of it is needed: its inbound side. Until
// the round has come that takes the client in, that is to come, with a Moved. Safe for concurrent use.
func (p *Pipeline) Groups(k mesh.WorkloadKey) (out []xds.Group, needs xds.Group) {
	own, ok := p.proxies.Lookup(k)
	if !ok {
		return nil, toCome
	}
	for _, l := range own.layers {
		out = append(out, groupOf(l))
	}
	if own.inbound == "" {
		return out, ""
	}
	needs = inboundGroup(p.id, own.inbound)
	return append(out, needs), needs
}

// Moved returns the workloads whose Groups the round changed. Valid inside OnPublish only.
func (p *Pipeline) Moved() []mesh.WorkloadKey {
	var out []mesh.WorkloadKey
	for _, c := range p.proxies.Changed() {
		out = append(out, c.Key)
	}
	return out
}

// Workload returns a workload of a served namespace. Safe for concurrent use.
func (p *Pipeline) Workload(k mesh.WorkloadKey) (mesh.Workload, bool) {
	return p.tables.Workloads.Lookup(k)
}

// Member returns what is known of a namespace of the mesh, in whatever phase. Safe for concurrent use.
func (p *Pipeline) Member(namespace string) (mesh.Membership, bool) {
	return p.tables.Members.Lookup(namespace)
}

// Findings returns what is wrong with the objects of the mesh, in order of what they are about. Safe for concurrent use.
func (p *Pipeline) Findings() []mesh.Finding {
	var rows []graph.Row[findingKey, mesh.Finding]
	for _, t := range p.findings {
		rows = append(rows, t.All()...)
	}
	for _, f := range p.faults() {
		found := p.unmade(f)
		rows = append(rows, graph.Row[findingKey, mesh.Finding]{Key: findingKey{About: found.About, Message: found.Message}, Val: found})
	}
	slices.SortFunc(rows, func(a, b graph.Row[findingKey, mesh.Finding]) int {
		return cmp.Or(a.Key.About.Compare(b.Key.About), cmp.Compare(a.Key.Number, b.Key.Number), cmp.Compare(a.Key.Message, b.Key.Message))
	})
	var out []mesh.Finding
	for _, row := range rows {
		out = append(out, row.Val)
	}
	return out
}

// unmade says which object a row is about that could not be made.
func (p *Pipeline) unmade(f graph.Fault) mesh.Finding {
	about := mesh.Ref{Kind: "Mesh", Name: string(p.id)}
	service := func(k mesh.ServiceKey) {
		if s, ok := p.tables.Services.Lookup(k); ok {
			about = s.Ref
		}
	}
	switch k := f.Key.(type) {
	case resolve.ClusterKey:
		service(k.Service)
	case resolve.AssignmentKey:
		service(k.Service)
	case mesh.ServiceKey:
		service(k)
	}
	why, _, _ := strings.Cut(f.Err.Error(), "\n")
	return mesh.Finding{About: about, Reason: "NotMade", Message: fmt.Sprintf(
		"proxies keep what they have, as its change can't be given to them: mend it, or a rule for it (%s)", why)}
}
