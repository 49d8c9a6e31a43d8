package control

import (
	"cmp"
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

	tables      resolve.Tables
	findings    []*graph.Table[findingKey, mesh.Finding]
	claims      *graph.Source[mesh.WorkloadKey, mesh.Workload] // what clients say of themselves, until their pods are known
	inbound     *graph.Table[mesh.WorkloadKey, resolve.InboundSpec]
	provisional *graph.Table[mesh.WorkloadKey, resolve.InboundSpec]
	placed      []placement
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
	About  mesh.Ref
	Number int
}

// NewPipeline builds the tables of o's mesh in g, in the order in which data flows through them.
func NewPipeline(g *graph.Graph, o Options) *Pipeline {
	p := &Pipeline{id: o.Mesh, system: o.Namespace, revision: o.Revision}
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
	p.claims = graph.NewSource[mesh.WorkloadKey, mesh.Workload](g, "source.claims", nil)
	p.records(g)
	p.clusters(g)
	p.listeners(g)
	p.routes(g)
	p.proxies(g)
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
	find(p, g, "endpointslices", p.EndpointSlices.Table, func(c mesh.Config, k mesh.ObjectKey, o *discoveryv1.EndpointSlice) []mesh.Finding {
		_, found := ingest.Endpoints(c, k, o)
		return found
	})
	rules := parsed(p, g, "rules", p.DestinationRules.Table, ingest.Rule)
	policies := parsed(p, g, "policies", p.PeerAuthentications.Table, ingest.PeerPolicy)
	p.indexes(g, endpoints, rules, policies)
}

// reads is Serves for the kinds that may be meant for one revision only.
func (p *Pipeline) reads(r *graph.Reader, namespace string, o metav1.Object) bool {
	rev := o.GetLabels()["istio.io/rev"]
	return (rev == "" || rev == p.revision) && p.tables.Serves(r, namespace)
}

// parsed builds the records of a kind that may be meant for one revision only, and what is found in its objects.
func parsed[O metav1.Object, V any](p *Pipeline, g *graph.Graph, name string, from *graph.Table[mesh.ObjectKey, O],
	parse func(mesh.Config, mesh.ObjectKey, O) (V, bool, []mesh.Finding),
) *graph.Table[mesh.ObjectKey, V] {
	find(p, g, name, from, func(c mesh.Config, k mesh.ObjectKey, o O) []mesh.Finding {
		_, _, found := parse(c, k, o)
		return found
	})
	return graph.Derive(g, name, from, graph.TableOptions[V]{},
		func(r *graph.Reader, k mesh.ObjectKey, o O, emit func(mesh.ObjectKey, V)) {
			if !p.reads(r, k.Namespace, o) {
				return
			}
			if v, ok, _ := parse(p.tables.ConfigOf(r, p.id), k, o); ok {
				emit(k, v)
			}
		})
}

// find builds the findings about a kind of objects.
func find[O metav1.Object](p *Pipeline, g *graph.Graph, name string, from *graph.Table[mesh.ObjectKey, O],
	find func(mesh.Config, mesh.ObjectKey, O) []mesh.Finding,
) {
	p.findings = append(p.findings, graph.Derive(g, "findings."+name, from, graph.TableOptions[mesh.Finding]{},
		func(r *graph.Reader, k mesh.ObjectKey, o O, emit func(findingKey, mesh.Finding)) {
			if !p.reads(r, k.Namespace, o) {
				return
			}
			for i, f := range find(p.tables.ConfigOf(r, p.id), k, o) {
				emit(findingKey{f.About, i}, f)
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
	t.ByPort = graph.NewIndex(endpoints, "endpoints.port", func(k mesh.EndpointKey, _ mesh.Endpoint) []mesh.ServicePort {
		return []mesh.ServicePort{{Service: k.Service, Port: k.Port}}
	})
	t.ByHost = graph.NewIndex(rules, "rules.host", func(_ mesh.ObjectKey, r mesh.Rule) []string { return []string{r.Host} })
	t.ByNS = graph.NewIndex(policies, "policies.namespace", func(_ mesh.ObjectKey, p mesh.PeerPolicy) []string { return []string{p.Namespace} })
	t.Backends = graph.Group(g, "backends", t.ByService, graph.TableOptions[resolve.Backends]{},
		func(r *graph.Reader, k mesh.ServiceKey, rows []graph.Row[mesh.EndpointKey, mesh.Endpoint], emit func(mesh.ServiceKey, resolve.Backends)) {
			emit(k, resolve.BackendsOf(r, t, p.id, rows))
		})
}

// clusters builds clusters and their assignments: entries say who holds which variant, each variant is rendered once.
func (p *Pipeline) clusters(g *graph.Graph) {
	t := &p.tables
	entries := graph.Derive(g, "entries", t.Services, graph.TableOptions[resolve.ClusterKey]{},
		func(r *graph.Reader, _ mesh.ServiceKey, s mesh.Service, emit func(resolve.EntryKey, resolve.ClusterKey)) {
			resolve.Entries(r, t, s, emit)
		})
	variants := graph.Derive(g, "variants", entries, graph.TableOptions[struct{}]{},
		func(_ *graph.Reader, _ resolve.EntryKey, k resolve.ClusterKey, emit func(resolve.ClusterKey, struct{})) {
			emit(k, struct{}{})
		})
	clusters := graph.Derive(g, "clusters", variants, graph.TableOptions[resolve.ClusterSpec]{},
		func(r *graph.Reader, k resolve.ClusterKey, _ struct{}, emit func(resolve.ClusterKey, resolve.ClusterSpec)) {
			if spec, ok := resolve.Cluster(r, t, k); ok {
				emit(k, spec)
			}
		})
	assignments := graph.Derive(g, "assignments", variants, graph.TableOptions[resolve.AssignmentSpec]{},
		func(r *graph.Reader, k resolve.ClusterKey, _ struct{}, emit func(resolve.ClusterKey, resolve.AssignmentSpec)) {
			if spec, ok := resolve.Assignment(r, t, k); ok {
				emit(k, spec)
			}
		})
	p.placeEntries(g, clusterType, entries, graph.Derive(g, "rendered.clusters", clusters, sealedOnce,
		func(_ *graph.Reader, k resolve.ClusterKey, s resolve.ClusterSpec, emit func(resolve.ClusterKey, xds.Resource)) {
			emit(k, seal(clusterType, s.Name, s.Origin, envoy.Cluster(s)))
		}))
	p.placeEntries(g, assignmentType, entries, graph.Derive(g, "rendered.assignments", assignments, sealedOnce,
		func(_ *graph.Reader, k resolve.ClusterKey, s resolve.AssignmentSpec, emit func(resolve.ClusterKey, xds.Resource)) {
			emit(k, seal(assignmentType, s.Name, s.Origin, envoy.Assignment(s)))
		}))
	p.place(clusterType, graph.Derive(g, "rendered.clusters.fixed", t.Config, sealedOnce,
		func(_ *graph.Reader, id mesh.ID, c mesh.Config, emit func(place, xds.Resource)) {
			for _, m := range []interface {
				proto.Message
				GetName() string
			}{envoy.Passthrough(), envoy.BlackHole()} {
				emit(place{groupOf(resolve.Audience{Mesh: id}), m.GetName()}, seal(clusterType, m.GetName(), c.Ref.String(), m))
			}
		}))
}

// sealedOnce: what comes from an unchanged spec is never rendered again, so equality by content is enough.
var sealedOnce = graph.TableOptions[xds.Resource]{Equal: func(a, b xds.Resource) bool { return a.Version == b.Version && a.Origin == b.Origin }}

func (p *Pipeline) placeEntries(g *graph.Graph, typeURL string, entries *graph.Table[resolve.EntryKey, resolve.ClusterKey], of *graph.Table[resolve.ClusterKey, xds.Resource]) {
	p.place(typeURL, graph.Derive(g, "placed."+typeURL[strings.LastIndexByte(typeURL, '.')+1:], entries, sealedOnce,
		func(r *graph.Reader, e resolve.EntryKey, k resolve.ClusterKey, emit func(place, xds.Resource)) {
			if res, ok := graph.Get(r, of, k); ok {
				emit(place{groupOf(e.Audience), e.Name}, res)
			}
		}))
}

func (p *Pipeline) place(typeURL string, t *graph.Table[place, xds.Resource]) {
	p.placed = append(p.placed, placement{typeURL, t})
}

// listeners builds the outbound listeners of services. Of two that want one name the older service gets it.
func (p *Pipeline) listeners(g *graph.Graph) {
	specs := graph.Derive(g, "listeners", p.tables.Services,
		graph.TableOptions[resolve.ListenerSpec]{Prefer: func(a, b resolve.ListenerSpec) bool { return a.Compare(b.Object) < 0 }},
		func(r *graph.Reader, _ mesh.ServiceKey, s mesh.Service, emit func(resolve.ListenerKey, resolve.ListenerSpec)) {
			resolve.Listeners(r, &p.tables, s, emit)
		})
	p.place(listenerType, graph.Derive(g, "rendered.listeners", specs, sealedOnce,
		func(_ *graph.Reader, k resolve.ListenerKey, s resolve.ListenerSpec, emit func(place, xds.Resource)) {
			emit(place{groupOf(k.Audience), k.Name}, seal(listenerType, s.Name, s.Ref.String(), envoy.Listener(s)))
		}))
}

// routes builds route configurations. Those of a port are put together of virtual hosts that are rendered once for all.
func (p *Pipeline) routes(g *graph.Graph) {
	t := &p.tables
	hosts := graph.Derive(g, "hosts", t.Services, graph.TableOptions[resolve.HostSpec]{},
		func(r *graph.Reader, _ mesh.ServiceKey, s mesh.Service, emit func(resolve.HostKey, resolve.HostSpec)) {
			resolve.Hosts(r, t, s, emit)
		})
	byPort := graph.NewIndex(hosts, "hosts.port", func(k resolve.HostKey, _ resolve.HostSpec) []resolve.PortKey {
		return []resolve.PortKey{{Port: k.Port, Client: k.Client}}
	})
	rendered := graph.Derive(g, "rendered.hosts", hosts, freshFragment,
		func(_ *graph.Reader, k resolve.HostKey, s resolve.HostSpec, emit func(resolve.HostKey, []xds.Fragment)) {
			emit(k, fragments(virtualHosts, envoy.Host(s)))
		})
	catchAll := graph.Derive(g, "rendered.hosts.fixed", t.Config, freshFragment,
		func(_ *graph.Reader, id mesh.ID, c mesh.Config, emit func(mesh.ID, []xds.Fragment)) {
			emit(id, fragments(virtualHosts, envoy.CatchAll(resolve.ProxyOf(c))))
		})
	keys := graph.Derive(g, "routes.keys", hosts, graph.TableOptions[struct{}]{},
		func(_ *graph.Reader, k resolve.HostKey, _ resolve.HostSpec, emit func(resolve.RouteKey, struct{})) {
			emit(resolve.RouteKey{Audience: resolve.Audience{Mesh: k.Service.Mesh, Namespace: k.Client}, Port: k.Port}, struct{}{})
		})
	specs := graph.Derive(g, "routes", keys, graph.TableOptions[resolve.RouteSpec]{},
		func(r *graph.Reader, k resolve.RouteKey, _ struct{}, emit func(resolve.RouteKey, resolve.RouteSpec)) {
			emit(k, resolve.Route(r, byPort, k))
		})
	p.place(routeType, graph.Derive(g, "composed.routes", specs, sealedOnce,
		func(r *graph.Reader, k resolve.RouteKey, s resolve.RouteSpec, emit func(place, xds.Resource)) {
			var parts []xds.Fragment
			for _, h := range s.Hosts {
				f, _ := graph.Get(r, rendered, h)
				parts = append(parts, f...)
			}
			last, _ := graph.Get(r, catchAll, k.Audience.Mesh)
			emit(place{groupOf(k.Audience), s.Name},
				compose(routeType, s.Name, strings.Join(s.Origins, ", "), envoy.Routes(s.Name), append(parts, last...)))
		}))
	sniffed := graph.Derive(g, "routes.sniffed", t.Services, graph.TableOptions[resolve.SniffedSpec]{},
		func(r *graph.Reader, _ mesh.ServiceKey, s mesh.Service, emit func(resolve.ListenerKey, resolve.SniffedSpec)) {
			resolve.Sniffed(r, t, s, emit)
		})
	p.place(routeType, graph.Derive(g, "rendered.routes.sniffed", sniffed, sealedOnce,
		func(_ *graph.Reader, k resolve.ListenerKey, s resolve.SniffedSpec, emit func(place, xds.Resource)) {
			emit(place{groupOf(k.Audience), s.Name}, seal(routeType, s.Name, s.Host.Origin, envoy.Sniffed(s)))
		}))
}

// freshFragment: a fragment is made again only if its spec has changed, and then it differs.
var freshFragment = graph.TableOptions[[]xds.Fragment]{Equal: func(_, _ []xds.Fragment) bool { return false }}

// proxies builds what is particular to a workload's own proxy, shared by all workloads that accept the same. The inbound
// side of a client whose pod is not known yet goes by what the client says of itself.
func (p *Pipeline) proxies(g *graph.Graph) {
	t := &p.tables
	p.inbound = graph.Derive(g, "inbound", t.Workloads, graph.TableOptions[resolve.InboundSpec]{},
		func(r *graph.Reader, k mesh.WorkloadKey, w mesh.Workload, emit func(mesh.WorkloadKey, resolve.InboundSpec)) {
			if !w.HostNetwork {
				emit(k, resolve.Inbound(r, t, p.id, w))
			}
		})
	p.provisional = graph.Derive(g, "provisional", p.claims.Table, graph.TableOptions[resolve.InboundSpec]{},
		func(r *graph.Reader, k mesh.WorkloadKey, w mesh.Workload, emit func(mesh.WorkloadKey, resolve.InboundSpec)) {
			if _, known := graph.Get(r, t.Workloads, k); !known && p.tables.Serves(r, k.Namespace) {
				emit(k, resolve.Inbound(r, t, p.id, w))
			}
		})
	p.inboundSide(g, "inbound", p.inbound)
	p.inboundSide(g, "provisional", p.provisional)
}

func (p *Pipeline) inboundSide(g *graph.Graph, name string, from *graph.Table[mesh.WorkloadKey, resolve.InboundSpec]) {
	specs := graph.Derive(g, name+".specs", from, graph.TableOptions[resolve.InboundSpec]{},
		func(_ *graph.Reader, _ mesh.WorkloadKey, s resolve.InboundSpec, emit func(resolve.InboundKey, resolve.InboundSpec)) {
			emit(s.Key(), s)
		})
	ports := graph.Derive(g, name+".ports", specs, graph.TableOptions[struct{}]{},
		func(_ *graph.Reader, _ resolve.InboundKey, s resolve.InboundSpec, emit func(resolve.InboundPort, struct{})) {
			for _, port := range s.Ports {
				emit(port, struct{}{})
			}
		})
	chains := graph.Derive(g, "rendered."+name+".chains", ports, freshFragment,
		func(r *graph.Reader, k resolve.InboundPort, _ struct{}, emit func(resolve.InboundPort, []xds.Fragment)) {
			emit(k, fragments(filterChains, envoy.InboundChains(k, resolve.ProxyOf(p.tables.ConfigOf(r, p.id)))...))
		})
	p.place(listenerType, graph.Derive(g, "composed."+name, specs, sealedOnce,
		func(r *graph.Reader, k resolve.InboundKey, s resolve.InboundSpec, emit func(place, xds.Resource)) {
			proxy := resolve.ProxyOf(p.tables.ConfigOf(r, p.id))
			var parts []xds.Fragment
			for _, port := range s.Ports {
				f, _ := graph.Get(r, chains, port)
				parts = append(parts, f...)
			}
			in, out := envoy.InboundListener(s, proxy), envoy.VirtualOutbound(proxy, s.IPv6)
			emit(place{inboundGroup(name, p.id, k), in.GetName()}, compose(listenerType, in.GetName(), origin(s, p.tables.ConfigOf(r, p.id)), in, parts))
			emit(place{inboundGroup(name, p.id, k), out.GetName()}, seal(listenerType, out.GetName(), p.tables.ConfigOf(r, p.id).Ref.String(), out))
		}))
	p.place(clusterType, graph.Derive(g, "rendered."+name+".clusters", specs, sealedOnce,
		func(r *graph.Reader, k resolve.InboundKey, s resolve.InboundSpec, emit func(place, xds.Resource)) {
			for _, port := range s.Ports {
				target := port.Port
				if port.Service == 0 {
					target = 0
				}
				c := envoy.Inbound(target, s.IPv6)
				emit(place{inboundGroup(name, p.id, k), c.GetName()}, seal(clusterType, c.GetName(), origin(s, p.tables.ConfigOf(r, p.id)), c))
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

func groupOf(a resolve.Audience) xds.Group {
	return xds.Group("audience/" + string(a.Mesh) + "/" + a.Namespace)
}

func inboundGroup(side string, id mesh.ID, k resolve.InboundKey) xds.Group {
	return xds.Group(side + "/" + string(id) + "/" + string(k))
}

// seal and compose panic for what Envoy would refuse whole. The graph logs that and keeps the row's last output.
func seal(typeURL, name, origin string, m proto.Message) xds.Resource {
	return must(xds.Seal(typeURL, name, origin, envoy.Checked(m)))
}

func compose(typeURL, name, origin string, header proto.Message, parts []xds.Fragment) xds.Resource {
	return must(xds.Compose(typeURL, name, origin, envoy.Checked(header), parts))
}

func fragments[M proto.Message](field protowire.Number, ms ...M) []xds.Fragment {
	var out []xds.Fragment
	for _, m := range ms {
		out = append(out, must(xds.NewFragment(field, envoy.Checked(m))))
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

// Groups returns what a client of the scope holds, later ones winning by name, and which of it is needed: its inbound
// side. If its workload is not known, that follows, with a Moved, made of what the scope says itself. Safe for concurrent use.
func (p *Pipeline) Groups(s resolve.Scope) (out []xds.Group, needs xds.Group) {
	for _, a := range resolve.Holdings(s) {
		out = append(out, groupOf(a))
	}
	if spec, ok := p.inbound.Lookup(s.Workload); ok {
		own := inboundGroup("inbound", p.id, spec.Key())
		return append(out, own), own
	}
	if spec, ok := p.provisional.Lookup(s.Workload); ok {
		own := inboundGroup("provisional", p.id, spec.Key())
		return append(out, own), own
	}
	if _, known := p.Workload(s.Workload); known || s.Workload.Name == "" {
		return out, "" // a pod in its node's network has no inbound side
	}
	p.claims.Set(s.Workload, mesh.Workload{Key: s.Workload, Labels: s.Labels, Ports: s.Ports})
	return out, toCome
}

// Moved returns the workloads whose Groups the round changed. Valid inside OnPublish only.
func (p *Pipeline) Moved() []mesh.WorkloadKey {
	var out []mesh.WorkloadKey
	for _, c := range p.inbound.Changed() {
		out = append(out, c.Key)
		if _, claimed := p.claims.Lookup(c.Key); claimed && c.Has {
			p.claims.Delete(c.Key)
		}
	}
	for _, c := range p.provisional.Changed() {
		out = append(out, c.Key)
	}
	return out
}

// Workload returns a workload of a served namespace. Safe for concurrent use.
func (p *Pipeline) Workload(k mesh.WorkloadKey) (mesh.Workload, bool) {
	return p.tables.Workloads.Lookup(k)
}

// WorkloadChanges returns the workloads that the round changed. Valid inside OnPublish only.
func (p *Pipeline) WorkloadChanges() []graph.Change[mesh.WorkloadKey, mesh.Workload] {
	return p.tables.Workloads.Changed()
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
	slices.SortFunc(rows, func(a, b graph.Row[findingKey, mesh.Finding]) int {
		return cmp.Or(a.Key.About.Compare(b.Key.About), cmp.Compare(a.Key.Number, b.Key.Number))
	})
	var out []mesh.Finding
	for _, row := range rows {
		out = append(out, row.Val)
	}
	return out
}
