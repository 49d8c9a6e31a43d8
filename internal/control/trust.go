package control

import (
	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/render/envoy"
	"github.com/heddle-mesh/heddle/internal/resolve"
	"github.com/heddle-mesh/heddle/internal/xds"
)

// trust builds the one secret that says whom the mesh's proxies let in. It is apart from the listeners that refer to it, so that
// a namespace which comes or goes changes no listener: Envoy ends the connections of one that it replaces.
func (p *Pipeline) trust(g *graph.Graph) {
	t := &p.tables
	t.Trusted = graph.NewIndex(p.Trusted.Table, "trusted.mesh", func(mesh.ObjectKey, struct{}) []mesh.ID { return []mesh.ID{p.id} })
	specs := graph.Derive(g, "trust", p.Roots.Table, graph.TableOptions[resolve.TrustSpec]{},
		func(r *graph.Reader, id mesh.ID, roots string, emit func(mesh.ID, resolve.TrustSpec)) {
			emit(id, resolve.Trust(r, t, id, roots))
		})
	p.place(secretType, graph.Derive(g, "rendered.trust", specs, sealedOnce,
		func(_ *graph.Reader, id mesh.ID, s resolve.TrustSpec, emit func(place, xds.Resource)) {
			m := envoy.Trust(s)
			emit(place{groupOf(resolve.Layer{Mesh: id}), m.GetName()}, seal(secretType, m.GetName(), s.Origin, m))
		}))
}

// toldMembers are the namespaces whose workloads may call CA and xDS: members that the mesh's proxies are told of. So nobody has a
// certificate before the word goes out that it counts, however long a round takes. It implements identity.Members.
type toldMembers struct {
	members *members
	told    *graph.Table[mesh.ObjectKey, struct{}] // Sources.Trusted
}

func (a toldMembers) Member(cluster mesh.ClusterID, namespace string) bool {
	_, told := a.told.Lookup(mesh.ObjectKey{Cluster: cluster, Name: namespace})
	return told && a.members.Member(cluster, namespace)
}
