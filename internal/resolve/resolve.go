// Package resolve decides which names each set of clients holds, and gathers for each name everything that its message
// depends on. What it returns are specs: plain values of which a renderer makes messages without looking anything up.
package resolve

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"maps"
	"slices"

	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Tables are what resolving reads.
type Tables struct {
	Home          mesh.ClusterID // where the control plane is; what clients of that cluster hold is made before the first connects
	Config        *graph.Table[mesh.ID, mesh.Config]
	Members       *graph.Table[mesh.NamespaceKey, mesh.Membership]
	Services      *graph.Table[mesh.ServiceKey, mesh.Service]
	Workloads     *graph.Table[mesh.WorkloadKey, mesh.Workload]
	Layers        *graph.Table[Layer, struct{}]           // those that connected clients hold, and the mesh's own
	NodeLayers    *graph.Index[Layer, Layer, struct{}]    // layers of nodes, by the layer for clients on whatever node
	NetworkLayers *graph.Index[Layer, Layer, struct{}]    // layers of networks, by the layer for clients on whatever network
	InClusters    *graph.Index[Layer, Layer, struct{}]    // layers of clusters, by the layer for clients of whatever cluster
	ByNode        *graph.Table[Layer, struct{}]           // whose clients, everybody or those of a namespace, see a service that asks for their node
	Peerings      *graph.Table[mesh.WorkloadKey, Peering] // of workloads that are known
	Reach         *graph.Table[mesh.ServiceKey, []string] // connected client namespaces that a service is exported to by name
	Rules         *graph.Table[RulesKey, Rules]
	Parts         *graph.Table[string, []int] // how many letters of a label rules name of hosts that begin within it, by the domain above; the most first
	Seen          *graph.Table[mesh.ServiceKey, []View]
	Backends      *graph.Table[mesh.ServiceKey, Backends]
	Spread        *graph.Index[mesh.ServiceKey, mesh.ServiceKey, Backends]       // of services with endpoints that are on a network
	ByAlias       *graph.Index[string, mesh.ServiceKey, mesh.Service]            // services that are another name of a host
	ByVirtual     *graph.Index[mesh.Address, mesh.ServiceKey, mesh.Service]      // services that own an address
	BySelector    *graph.Index[SelectorKey, mesh.ServiceKey, mesh.Service]       // services that may select a workload
	ByAddress     *graph.Index[mesh.Address, mesh.WorkloadKey, mesh.Workload]    // workloads that own an address
	ByService     *graph.Index[mesh.ServiceKey, mesh.EndpointKey, mesh.Endpoint] // all endpoints of a service
	ByBackend     *graph.Index[Backend, mesh.EndpointKey, mesh.Endpoint]
	ByPort        *graph.Index[mesh.ServicePort, mesh.EndpointKey, mesh.Endpoint]
	LocalTo       *graph.Index[mesh.ServicePort, mesh.EndpointKey, mesh.Endpoint] // by node too, of services that keep to it
	ByHost        *graph.Index[string, RulesKey, Rules]                           // rules with clients of their own namespace, by host as written
	ByLabel       *graph.Index[SelectorKey, mesh.ObjectKey, mesh.PeerPolicy]      // policies that may be for a workload
	Trusted       *graph.Index[mesh.ID, mesh.ObjectKey, struct{}]                 // namespaces whose workloads have certificates that count
}

// SelectorKey finds what has a label as the first pair of its selector, and by it the few things that may select a workload
// with that label; without a label, what has no selector. What is for workloads of every cluster is under none.
type SelectorKey struct {
	Cluster                 mesh.ClusterID
	Namespace, Label, Value string
}

// selectorKey returns under what a selector is found.
func selectorKey(c mesh.ClusterID, namespace string, selector map[string]string) SelectorKey {
	if len(selector) == 0 {
		return SelectorKey{Cluster: c, Namespace: namespace}
	}
	first := slices.Min(slices.Collect(maps.Keys(selector)))
	return SelectorKey{c, namespace, first, selector[first]}
}

// ConfigOf reads the configuration of a mesh.
func (t *Tables) ConfigOf(r *graph.Reader, id mesh.ID) mesh.Config {
	c, _ := graph.Get(r, t.Config, id)
	return c
}

// Serves reports whether a namespace's objects count, and its clients are served.
func (t *Tables) Serves(r *graph.Reader, c mesh.ClusterID, namespace string) bool {
	m, ok := graph.Get(r, t.Members, mesh.NamespaceKey{Cluster: c, Name: namespace})
	return ok && m.Phase == mesh.Served
}

// Content stands for the content of a value: equal contents, equal values.
type Content [16]byte

// Compare orders contents, by nothing that means anything.
func (c Content) Compare(o Content) int { return bytes.Compare(c[:], o[:]) }

func contentOf(v any) Content {
	h := sum(v)
	return Content(h[:16])
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
