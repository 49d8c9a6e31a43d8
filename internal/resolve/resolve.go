// Package resolve decides which names each audience of a mesh holds, and gathers for each name everything that its message
// depends on. What it returns are specs: plain values of which a renderer makes messages without looking anything up.
package resolve

import (
	"crypto/sha256"
	"encoding/json"
	"slices"

	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Audience is a set of clients that are told the same: all of a mesh, or those of one of its namespaces.
type Audience struct {
	Mesh      mesh.ID
	Namespace string // empty: all
}

// Scope is what translation may know of a client.
type Scope struct {
	Mesh     mesh.ID
	Workload mesh.WorkloadKey
	// Labels and Ports, by name, are what the client says of itself. They serve its inbound side until the workload is known.
	Labels map[string]string
	Ports  map[string]uint32
}

// Holdings returns the layers that a client of the scope holds; of two resources with one name the later layer's counts.
// What is particular to its workload is found by InboundKey.
func Holdings(s Scope) []Audience {
	return []Audience{{Mesh: s.Mesh}, {Mesh: s.Mesh, Namespace: s.Workload.Namespace}}
}

// Tables are what resolving reads.
type Tables struct {
	Config     *graph.Table[mesh.ID, mesh.Config]
	Members    *graph.Table[string, mesh.Membership]
	Services   *graph.Table[mesh.ServiceKey, mesh.Service]
	Workloads  *graph.Table[mesh.WorkloadKey, mesh.Workload]
	Backends   *graph.Table[mesh.ServiceKey, Backends]
	ByAlias    *graph.Index[string, mesh.ServiceKey, mesh.Service]            // services that are another name of a host
	ByVirtual  *graph.Index[string, mesh.ServiceKey, mesh.Service]            // services that own an address
	BySelector *graph.Index[SelectorKey, mesh.ServiceKey, mesh.Service]       // services that may select a workload
	ByAddress  *graph.Index[string, mesh.WorkloadKey, mesh.Workload]          // workloads that own an address
	ByService  *graph.Index[mesh.ServiceKey, mesh.EndpointKey, mesh.Endpoint] // all endpoints of a service
	ByPort     *graph.Index[mesh.ServicePort, mesh.EndpointKey, mesh.Endpoint]
	ByHost     *graph.Index[string, mesh.ObjectKey, mesh.Rule]       // rules by their host as written
	ByNS       *graph.Index[string, mesh.ObjectKey, mesh.PeerPolicy] // policies by namespace
}

// SelectorKey finds the services whose selector has a label as the first of its pairs, and by it the few that may select a
// workload with that label.
type SelectorKey struct{ Namespace, Label, Value string }

// ConfigOf reads the configuration of a mesh.
func (t *Tables) ConfigOf(r *graph.Reader, id mesh.ID) mesh.Config {
	c, _ := graph.Get(r, t.Config, id)
	return c
}

// Serves reports whether a namespace's objects count, and its clients are served.
func (t *Tables) Serves(r *graph.Reader, namespace string) bool {
	m, ok := graph.Get(r, t.Members, namespace)
	return ok && m.Phase == mesh.Served
}

// sum hashes a value for a key that stands for content; specs hold nothing that JSON leaves out.
func sum(v any) [sha256.Size]byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // specs are plain values
	}
	return sha256.Sum256(b)
}

func sorted(set map[string]bool) []string {
	out := make([]string, 0, len(set))
	for s := range set {
		out = append(out, s)
	}
	slices.Sort(out)
	return out
}
