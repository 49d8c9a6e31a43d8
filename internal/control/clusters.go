package control

import (
	"google.golang.org/protobuf/proto"

	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/render/envoy"
	"github.com/heddle-mesh/heddle/internal/resolve"
	"github.com/heddle-mesh/heddle/internal/xds"
)

// clusters builds clusters and their assignments: entries say which layer holds which variant, each variant is rendered once.
func (p *Pipeline) clusters(g *graph.Graph) {
	t := &p.tables
	entries := graph.Derive(g, "entries", t.Services, graph.TableOptions[resolve.Entry]{},
		func(r *graph.Reader, _ mesh.ServiceKey, s mesh.Service, emit func(resolve.EntryKey, resolve.Entry)) {
			resolve.Entries(r, t, s, func(k resolve.EntryKey, e resolve.Entry, _ resolve.Said, _ map[string]string) { emit(k, e) })
		})
	labels := graph.Derive(g, "assignments.labels", t.Services, graph.TableOptions[map[string]string]{},
		func(r *graph.Reader, _ mesh.ServiceKey, s mesh.Service, emit func(resolve.AssignmentKey, map[string]string)) {
			resolve.Entries(r, t, s, func(_ resolve.EntryKey, e resolve.Entry, _ resolve.Said, labels map[string]string) {
				emit(e.Assignment, labels)
			})
		})
	clusters := graph.Derive(g, "clusters", t.Services, graph.TableOptions[resolve.ClusterSpec]{},
		func(r *graph.Reader, _ mesh.ServiceKey, s mesh.Service, emit func(resolve.ClusterKey, resolve.ClusterSpec)) {
			gathered := map[resolve.ClusterKey]bool{{}: true} // zero in a layer of a node
			resolve.Entries(r, t, s, func(_ resolve.EntryKey, e resolve.Entry, said resolve.Said, _ map[string]string) {
				if gathered[e.Cluster] {
					return
				}
				gathered[e.Cluster] = true
				if spec, ok := resolve.Cluster(r, t, e.Cluster, said); ok {
					emit(e.Cluster, spec)
				}
			})
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
