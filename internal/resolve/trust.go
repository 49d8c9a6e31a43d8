package resolve

import (
	"slices"

	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// TrustSpec is whom the proxies of a mesh let in by mutual TLS: workloads of some namespaces, by certificates under some roots.
type TrustSpec struct {
	Roots      string   // PEM
	Domains    []string // trust domains that the workloads' identities may be in
	Namespaces []string // sorted
	Origin     string
}

// Trust gathers whom the proxies of a mesh let in. A namespace has one name in all clusters, as identities name no cluster.
func Trust(r *graph.Reader, t *Tables, id mesh.ID, roots string) TrustSpec {
	c := t.ConfigOf(r, id)
	out := TrustSpec{Roots: roots, Domains: c.TrustDomains, Origin: c.Ref.String()}
	for _, row := range graph.Find(r, t.Trusted, id) {
		out.Namespaces = append(out.Namespaces, row.Key.Name)
	}
	slices.Sort(out.Namespaces)
	out.Namespaces = slices.Compact(out.Namespaces)
	return out
}
