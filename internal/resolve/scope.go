package resolve

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Kind is what sort of proxy a client is, in the words of its node id.
type Kind string

// The kinds of proxies.
const (
	Sidecar  Kind = "sidecar"
	Router   Kind = "router"
	Waypoint Kind = "waypoint"
)

// Families is a set of address families.
type Families uint8

// The address families.
const (
	IPv4 Families = 1 << iota
	IPv6
)

// FamiliesOf returns the families of addresses; what is no address counts for none.
func FamiliesOf(addresses []string) (f Families) {
	for _, s := range addresses {
		switch a, err := netip.ParseAddr(s); {
		case err != nil:
		case a.Unmap().Is4():
			f |= IPv4
		default:
			f |= IPv6
		}
	}
	return f
}

// Client is a connected proxy by what it says of itself. Its pod, once known, says better; its key and kind were checked.
type Client struct {
	Workload  mesh.WorkloadKey
	Kind      Kind
	Labels    map[string]string
	Ports     map[string]uint32 // by name
	Addresses []string
	Network   string
	Node      mesh.NodeKey // zero: not said
}

// Scope is what translation may know of a client: clients of one scope are told the same, but for their inbound side. What
// tells one workload from another joins it only where an object asks for it.
type Scope struct {
	Mesh      mesh.ID
	Cluster   mesh.ClusterID
	Network   string
	Namespace string
	Kind      Kind
	Families  Families
	Node      mesh.NodeKey // zero: no service asks for it, or it is not known
}

// ScopeOf returns the scope of a client. It returns false while its namespace is not served.
func ScopeOf(r *graph.Reader, t *Tables, id mesh.ID, c Client) (Scope, bool) {
	if !t.Serves(r, c.Workload.Cluster, c.Workload.Namespace) {
		return Scope{}, false
	}
	addresses, network, node := c.Addresses, "", c.Node
	if w, known := graph.Get(r, t.Workloads, c.Workload); known {
		addresses, network, node = w.Addresses, w.Network, w.Node
	} else {
		network = t.ConfigOf(r, id).Network(c.Workload.Cluster, c.Network)
	}
	if !asksNode(r, t, id, c.Workload.Namespace) {
		node = mesh.NodeKey{}
	}
	return Scope{
		Mesh: id, Cluster: c.Workload.Cluster, Network: network, Namespace: c.Workload.Namespace,
		Kind: cmp.Or(c.Kind, Sidecar), Families: FamiliesOf(addresses), Node: node,
	}, true
}

// AskNode emits the layers of everybody, or of namespaces, whose clients see a service that asks for their node.
func AskNode(s mesh.Service, emit func(Layer, struct{})) {
	if !s.Local {
		return
	}
	if s.Export.All {
		emit(Layer{Mesh: s.Key.Mesh}, struct{}{})
		return
	}
	for _, ns := range s.Export.Namespaces {
		emit(Layer{Mesh: s.Key.Mesh, Namespace: ns}, struct{}{})
	}
}

// asksNode reports whether a service that clients of a namespace see asks for their node.
func asksNode(r *graph.Reader, t *Tables, id mesh.ID, namespace string) bool {
	_, all := graph.Get(r, t.ByNode, Layer{Mesh: id})
	_, own := graph.Get(r, t.ByNode, Layer{Mesh: id, Namespace: namespace})
	return all || own
}

// Layer is a set of clients that are told the same of some resources: a scope, cut down to what these resources depend on.
// Empty fields are what they do not depend on.
type Layer struct {
	Mesh      mesh.ID
	Cluster   mesh.ClusterID
	Namespace string
	Families  Families
	Network   string
	Node      string // of Cluster
}

// Layers returns what a client of the scope holds, always in this order: of two resources with one name the later layer's counts.
// What is particular to its workload is found by InboundKey.
func (s Scope) Layers() []Layer {
	f := s.Families | IPv4 // which every kernel has, if only within the pod
	layers := []Layer{
		{Mesh: s.Mesh},
		{Mesh: s.Mesh, Namespace: s.Namespace},
		{Mesh: s.Mesh, Cluster: s.Cluster},
		{Mesh: s.Mesh, Cluster: s.Cluster, Namespace: s.Namespace},
		{Mesh: s.Mesh, Cluster: s.Cluster, Families: f},
		{Mesh: s.Mesh, Cluster: s.Cluster, Namespace: s.Namespace, Families: f},
	}
	if s.Network != "" {
		layers = append(layers, Layer{Mesh: s.Mesh, Network: s.Network}, Layer{Mesh: s.Mesh, Namespace: s.Namespace, Network: s.Network})
	}
	if n := s.Node; n != (mesh.NodeKey{}) {
		layers = append(layers, Layer{Mesh: s.Mesh, Cluster: n.Cluster, Node: n.Name}, Layer{Mesh: s.Mesh, Cluster: n.Cluster, Namespace: s.Namespace, Node: n.Name})
	}
	return layers
}

// NodeLayerOf returns under what NodeLayers finds a layer of a node: the layer for clients on whatever node.
func NodeLayerOf(l Layer) []Layer {
	if l.Node == "" {
		return nil
	}
	l.Cluster, l.Node = "", ""
	return []Layer{l}
}

// NetworkLayerOf returns under what NetworkLayers finds a layer of a network: the layer for clients on whatever network.
func NetworkLayerOf(l Layer) []Layer {
	if l.Network == "" {
		return nil
	}
	l.Network = ""
	return []Layer{l}
}

// ClusterLayerOf returns under what InClusters finds a layer of a cluster: the layer for clients of whatever cluster.
func ClusterLayerOf(l Layer) []Layer {
	if l.Cluster == "" || l.Node != "" {
		return nil
	}
	l.Cluster = ""
	return []Layer{l}
}

// clusters returns those in which clients of a namespace are connected; of everybody, the plane's own too.
func (t *Tables) clusters(r *graph.Reader, id mesh.ID, namespace string) (out []mesh.ClusterID) {
	for _, row := range graph.Find(r, t.InClusters, Layer{Mesh: id, Namespace: namespace}) {
		out = append(out, row.Key.Cluster)
	}
	if namespace == "" && !slices.Contains(out, t.Home) {
		out = append(out, t.Home)
	}
	return out
}

// Used reports whether clients of a namespace are connected: nothing is made for others.
func (t *Tables) Used(r *graph.Reader, id mesh.ID, namespace string) bool {
	_, ok := graph.Get(r, t.Layers, Layer{Mesh: id, Namespace: namespace})
	return ok
}

// Reach returns the namespaces with connected clients among those that something is exported to by name.
func Reach(r *graph.Reader, t *Tables, id mesh.ID, v mesh.Visibility) []string {
	if v.All {
		return nil
	}
	var out []string
	for _, ns := range v.Namespaces {
		if t.Used(r, id, ns) {
			out = append(out, ns)
		}
	}
	return out
}

// View is how clients of one namespace see a service.
type View struct {
	Client   string // empty: everybody whom no other view names
	Rule     mesh.Rule
	Networks []string // of connected clients from which some of its endpoints cannot be reached
}

// own reports whether the view is that of a namespace by a rule of its own.
func (v View) own() bool { return v.Client != "" && v.Rule.Namespace == v.Client }

// SeenOf returns in which ways connected clients see a service: everybody first if it is exported to all, then each namespace
// for which that is not true.
func SeenOf(r *graph.Reader, t *Tables, s mesh.Service) []View {
	out := views(r, t, s)
	if t.ConfigOf(r, s.Key.Mesh).Networks != nil {
		unreached(r, t, s, out)
	}
	if len(out) == 1 && out[0].Client == "" && out[0].Rule.Host == "" && out[0].Networks == nil {
		return unruled
	}
	return out
}

// unreached notes in views from which networks some of a service's endpoints cannot be reached.
func unreached(r *graph.Reader, t *Tables, s mesh.Service, out []View) {
	for _, row := range graph.Find(r, t.Spread, s.Key) {
		for i := range out {
			for _, l := range graph.Find(r, t.NetworkLayers, Layer{Mesh: s.Key.Mesh, Namespace: out[i].Client}) {
				if slices.ContainsFunc(row.Val.Networks, func(n string) bool { return n != l.Key.Network }) {
					out[i].Networks = append(out[i].Networks, l.Key.Network)
				}
			}
		}
	}
}

func views(r *graph.Reader, t *Tables, s mesh.Service) []View {
	rules := rulesOf(r, t, s)
	if !s.Export.All {
		var out []View
		reach, _ := graph.Get(r, t.Reach, s.Key)
		for _, ns := range reach {
			out = append(out, View{Client: ns, Rule: rules.of(ns)})
		}
		return out
	}
	everybody := View{Rule: rules.of("")}
	out := []View{everybody}
	for _, ns := range rules.clients() {
		if v := (View{Client: ns, Rule: rules.of(ns)}); !same(v.Rule, everybody.Rule) {
			out = append(out, v)
		}
	}
	return out
}

// unruled is how nearly every service is seen: by everybody, and no rule is for it. They share it.
var unruled = []View{{}}

// viewOf returns how clients of a namespace see a service of these views.
func viewOf(seen []View, client string) View {
	for _, v := range slices.Backward(seen) {
		if v.Client == client || v.Client == "" {
			return v
		}
	}
	return View{}
}

// audiences returns the client namespaces that see a service; the empty one is all.
func audiences(r *graph.Reader, t *Tables, s mesh.Service) []string {
	if s.Export.All {
		return []string{""}
	}
	reach, _ := graph.Get(r, t.Reach, s.Key)
	return slices.Clone(reach)
}
