package control

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/resolve"
)

type findingKey struct {
	About   mesh.Ref
	Number  int    // in the object, in its own order
	Message string // of what lies between objects
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

// notRead says that an object is in a cluster in which its kind is not read.
func (p *Pipeline) notRead(about mesh.Ref) mesh.Finding {
	return mesh.Finding{About: about, Reason: "ClusterNotRead", Message: fmt.Sprintf(
		"has no effect in cluster %s: Istio's objects of the mesh are read in cluster %s, for namespaces of their name in every cluster; apply it there", about.Cluster, p.home)}
}

// differing says in what an object of a service is not what an older one in another cluster is, which counts.
func differing(s mesh.Service, own mesh.ServiceRecord) mesh.Finding {
	return mesh.Finding{About: own.Ref, Reason: "ClustersDiffer", Message: fmt.Sprintf(
		"says of %s another thing in cluster %s than in cluster %s, where it is older and counts: make them say the same",
		own.Differs, own.Ref.Cluster, s.Ref.Cluster)}
}

// unmade says which object a row is about that could not be made.
func (p *Pipeline) unmade(f graph.Fault) mesh.Finding {
	about := mesh.Ref{Kind: "Mesh", Name: string(p.id)}
	service := func(k mesh.ServiceKey) {
		if s, ok := p.tables.Services.Lookup(k); ok {
			about = s.Ref
		}
	}
	accepting := func(has func(resolve.InboundSpec) bool) {
		for _, row := range p.inbound.All() {
			pod := mesh.Ref{Cluster: row.Key.Cluster, Kind: row.Key.Kind, Namespace: row.Key.Namespace, Name: row.Key.Name}
			if has(row.Val) && (about.Kind != mesh.KindPod || pod.Compare(about) < 0) { // the first of those of one side
				about = pod
			}
		}
	}
	switch k := f.Key.(type) {
	case resolve.InboundPort:
		accepting(func(s resolve.InboundSpec) bool { return slices.Contains(s.Ports, k) })
	case resolve.InboundKey:
		accepting(func(s resolve.InboundSpec) bool { return s.Key() == k })
	case resolve.ClusterKey:
		service(k.Service)
	case resolve.AssignmentKey:
		service(k.Service)
	case mesh.ServiceKey:
		service(k)
	case resolve.Chain:
		for _, row := range p.tables.Services.All() {
			if strings.HasSuffix(k.Cluster, "|"+row.Key.Host) || strings.HasPrefix(k.Route, row.Key.Host+":") {
				about = row.Val.Ref
			}
		}
	case resolve.Content: // of a virtual host, which several views of a service may have
		for _, row := range p.hosts.All() {
			if row.Val.ID == k {
				about = row.Val.Owner.Ref
			}
		}
	}
	why, _, _ := strings.Cut(f.Err.Error(), "\n")
	return mesh.Finding{About: about, Reason: "NotMade", Message: fmt.Sprintf(
		"proxies keep what they have, as its change can't be given to them: mend it, or a rule for it (%s)", why)}
}
