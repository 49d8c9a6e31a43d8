package control

import (
	"cmp"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/resolve"
	"github.com/heddle-mesh/heddle/internal/xds"
)

// Sources are the objects that a mesh is made of, and what its plane knows of it besides. What is staged in them belongs to the graph.
type Sources struct {
	MeshConfig          *graph.Source[mesh.ID, *meshv1alpha1.MeshConfig]
	Memberships         *graph.Source[mesh.ObjectKey, *heddlev1alpha1.Membership]
	Nodes               *graph.Source[mesh.ObjectKey, *corev1.Node]
	Services            *graph.Source[mesh.ObjectKey, *corev1.Service]
	EndpointSlices      *graph.Source[mesh.ObjectKey, *discoveryv1.EndpointSlice]
	Pods                *graph.Source[mesh.ObjectKey, *corev1.Pod]
	PeerAuthentications *graph.Source[mesh.ObjectKey, *securityv1.PeerAuthentication]
	DestinationRules    *graph.Source[mesh.ObjectKey, *networkingv1.DestinationRule]
	Roots               *graph.Source[mesh.ID, string]          // the bundle that workloads trust, in PEM
	Trusted             *graph.Source[mesh.ObjectKey, struct{}] // namespaces whose workloads have certificates that count
}

// Pipeline translates the objects of one mesh into what its proxies hold.
type Pipeline struct {
	*Sources
	id       mesh.ID
	home     mesh.ClusterID
	system   string
	revision string

	tables   resolve.Tables
	findings []*graph.Table[findingKey, mesh.Finding]
	presence presence
	scopes   *graph.Table[mesh.WorkloadKey, resolve.Scope]
	proxies  *graph.Table[mesh.WorkloadKey, proxy]
	placed   []placement
	inbound  *graph.Table[mesh.WorkloadKey, resolve.InboundSpec] // as they should be
	hosts    *graph.Table[resolve.HostKey, resolve.Host]         // as they should be
	faults   func() []graph.Fault
}

// proxy is what a connected client holds: decided in one row, so that nobody puts it together of two revisions.
type proxy struct {
	layers  []resolve.Layer
	inbound resolve.InboundKey // empty: a pod in its node's network has no inbound side
}

// NewPipeline builds the tables of o's mesh in g, in the order in which data flows through them.
func NewPipeline(g *graph.Graph, o Options) *Pipeline {
	p := &Pipeline{id: o.Mesh, home: o.Cluster, system: o.Namespace, revision: o.Revision, faults: g.Faults}
	p.Sources = &Sources{
		MeshConfig:          graph.NewSource[mesh.ID, *meshv1alpha1.MeshConfig](g, "source.meshconfig", same),
		Memberships:         graph.NewSource[mesh.ObjectKey, *heddlev1alpha1.Membership](g, "source.memberships", same),
		Nodes:               graph.NewSource[mesh.ObjectKey, *corev1.Node](g, "source.nodes", same),
		Services:            graph.NewSource[mesh.ObjectKey, *corev1.Service](g, "source.services", same),
		EndpointSlices:      graph.NewSource[mesh.ObjectKey, *discoveryv1.EndpointSlice](g, "source.endpointslices", same),
		Pods:                graph.NewSource[mesh.ObjectKey, *corev1.Pod](g, "source.pods", same),
		PeerAuthentications: graph.NewSource[mesh.ObjectKey, *securityv1.PeerAuthentication](g, "source.peerauthentications", same),
		DestinationRules:    graph.NewSource[mesh.ObjectKey, *networkingv1.DestinationRule](g, "source.destinationrules", same),
		Roots:               graph.NewSource[mesh.ID, string](g, "source.roots", nil),
		Trusted:             graph.NewSource[mesh.ObjectKey, struct{}](g, "source.trusted", nil),
	}
	p.presence.source = graph.NewSource[mesh.WorkloadKey, resolve.Client](g, "source.clients", nil)
	p.records(g)
	p.clusters(g)
	p.listeners(g)
	p.routes(g)
	p.sides(g)
	p.trust(g)
	return p
}

// same: an object that is read again is another; whether that changes anything its record tells.
func same[T any](a, b *T) bool { return a == b }

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
// the round has come that takes the client in, or in which its side can first be made, that is to come, with a Moved. Safe for
// concurrent use.
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
func (p *Pipeline) Member(c mesh.ClusterID, namespace string) (mesh.Membership, bool) {
	return p.tables.Members.Lookup(mesh.NamespaceKey{Cluster: c, Name: namespace})
}
