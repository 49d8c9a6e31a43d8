package resolve

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// EntryKey is the name of a cluster, and of its assignment, in a layer.
type EntryKey struct {
	Layer Layer
	Name  string
}

// ClusterKey names a variant of a cluster by what it is, not by who sees it so.
type ClusterKey struct {
	Service mesh.ServiceKey
	Port    uint32
	Subset  string
	Said    Content // of what a rule says of it; zero: none
}

// Compare orders keys by service, port, subset and what is said.
func (k ClusterKey) Compare(o ClusterKey) int {
	return cmp.Or(k.Service.Compare(o.Service), cmp.Compare(k.Port, o.Port), cmp.Compare(k.Subset, o.Subset), k.Said.Compare(o.Said))
}

// Said is what a rule says of a cluster.
type Said struct {
	TLS  mesh.ClientTLS
	Rule mesh.Ref // zero if none applies
}

// AssignmentKey names a variant of an assignment by what it holds, not by who asks for it.
type AssignmentKey struct {
	Service mesh.ServiceKey
	Port    uint32
	Subset  string
	Labels  Content      // of the subset
	Forced  bool         // mutual TLS, whatever the endpoint accepts
	Network string       // of the clients, if they are on one from which some of the endpoints cannot be reached
	Node    mesh.NodeKey // of the clients, if they use endpoints on their own only
}

// Compare orders keys by service, port, subset and what they hold of it.
func (k AssignmentKey) Compare(o AssignmentKey) int {
	forced := map[bool]int{true: 1}
	return cmp.Or(k.Service.Compare(o.Service), cmp.Compare(k.Port, o.Port), cmp.Compare(k.Subset, o.Subset),
		k.Labels.Compare(o.Labels), cmp.Compare(forced[k.Forced], forced[o.Forced]),
		cmp.Compare(k.Network, o.Network), k.Node.Compare(o.Node))
}

// Entry is a cluster and its assignment as a layer has them.
type Entry struct {
	Cluster    ClusterKey // zero in a layer of a node or network, which changes nothing of the cluster
	Assignment AssignmentKey
}

// ClusterName returns the name that every variant of a cluster, and of its assignment, has.
func ClusterName(service mesh.ServiceKey, port uint32, subset string) string {
	return fmt.Sprintf("outbound|%d|%s|%s", port, subset, service.Host)
}

// Entries emits the clusters of a service in each layer that holds them, with what is said of them and, of a subset, its labels.
func Entries(r *graph.Reader, t *Tables, s mesh.Service, emit func(EntryKey, Entry, Said, map[string]string)) {
	seen, _ := graph.Get(r, t.Seen, s.Key)
	for _, v := range seen {
		for _, p := range s.Ports {
			for _, subset := range append([]mesh.Subset{{}}, v.Rule.Subsets...) {
				said := Said{v.Rule.TLS(p.Number, subset.Name), v.Rule.Ref}
				e := Entry{
					ClusterKey{Service: s.Key, Port: p.Number, Subset: subset.Name},
					AssignmentKey{Service: s.Key, Port: p.Number, Subset: subset.Name, Forced: said.TLS.Mode == mesh.TLSMesh},
				}
				if v.Rule.Host != "" {
					e.Cluster.Said = contentOf(said)
				}
				if len(subset.Labels) > 0 {
					e.Assignment.Labels = contentOf(subset.Labels)
				}
				k := EntryKey{Layer{Mesh: s.Key.Mesh, Namespace: v.Client}, ClusterName(s.Key, p.Number, subset.Name)}
				emit(k, e, said, subset.Labels)
				if !s.Local {
					for _, network := range v.Networks {
						k.Layer.Network, e.Cluster, e.Assignment.Network = network, ClusterKey{}, network
						emit(k, e, said, subset.Labels)
					}
					continue // clients use endpoints on their own node, which are on their network
				}
				for _, row := range graph.Find(r, t.NodeLayers, k.Layer) {
					k.Layer, e.Cluster, e.Assignment.Node = row.Key, ClusterKey{}, mesh.NodeKey{Cluster: row.Key.Cluster, Name: row.Key.Node}
					emit(k, e, said, subset.Labels)
				}
			}
		}
	}
}

// Security is how connections of a cluster are secured.
type Security uint8

const (
	Plain        Security = iota
	AutoMutual            // mutual TLS of the mesh with endpoints that accept it, plain text with others
	Mutual                // mutual TLS of the mesh
	OutsideTrust          // TLS as said by a rule, for servers outside the mesh
)

// TLSSpec says how connections of a cluster are secured.
type TLSSpec struct {
	Security Security
	SNI      string
	Names    []string // subject alternative names, one of which the server must have; empty: any under the root
	Files    mesh.ClientTLS
}

// ClusterSpec is all that a service's cluster depends on.
type ClusterSpec struct {
	Name     string
	Service  mesh.ServiceKey
	Label    string // the service's name in its namespace
	Port     uint32
	Subset   string
	Protocol mesh.Protocol
	Headless bool // the destination is the one that the client chose
	TLS      TLSSpec
	Rule     mesh.Ref // zero if none applies
	Origin   string
}

// Cluster gathers the cluster of a key. It returns false if the port is gone.
func Cluster(r *graph.Reader, t *Tables, k ClusterKey, said Said) (ClusterSpec, bool) {
	s, port, ok := servicePort(r, t, k.Service, k.Port)
	if !ok {
		return ClusterSpec{}, false
	}
	origin := s.Ref.String()
	if said.Rule != (mesh.Ref{}) {
		origin += ", " + said.Rule.String()
	}
	return ClusterSpec{
		Name: ClusterName(k.Service, k.Port, k.Subset), Service: k.Service, Label: s.Name, Port: k.Port, Subset: k.Subset, Protocol: port.Protocol,
		Headless: s.Headless, TLS: tlsOf(r, t, t.ConfigOf(r, k.Service.Mesh), s, k, said.TLS), Rule: said.Rule, Origin: origin,
	}, true
}

func servicePort(r *graph.Reader, t *Tables, service mesh.ServiceKey, number uint32) (mesh.Service, mesh.Port, bool) {
	s, _ := graph.Get(r, t.Services, service)
	for _, p := range s.Ports {
		if p.Number == number {
			return s, p, true
		}
	}
	return s, mesh.Port{}, false
}

// tlsOf decides between what a rule says and what the mesh does by itself. A cluster that leaves the choice of the endpoint to
// the client has no metadata to choose by: it uses mutual TLS if every endpoint of the service accepts it.
func tlsOf(r *graph.Reader, t *Tables, c mesh.Config, s mesh.Service, k ClusterKey, said mesh.ClientTLS) TLSSpec {
	out := TLSSpec{}
	backends, _ := graph.Get(r, t.Backends, s.Key)
	switch said.Mode {
	case mesh.TLSUnset:
		switch {
		case !c.AutoMTLS:
		case !s.Headless:
			out.Security = AutoMutual
		case backends.Mutual:
			out.Security = Mutual
		}
	case mesh.TLSMesh:
		out.Security = Mutual
	case mesh.TLSSimple, mesh.TLSMutual:
		return TLSSpec{Security: OutsideTrust, SNI: said.SNI, Names: said.Names, Files: said}
	}
	if out.Security == Plain {
		return out
	}
	out.SNI = cmp.Or(said.SNI, fmt.Sprintf("outbound_.%d_.%s_.%s", k.Port, k.Subset, k.Service.Host))
	if out.Names = said.Names; len(out.Names) == 0 {
		out.Names = aliases(c.TrustDomains, slices.Concat(backends.Accounts, s.Accounts))
	}
	return out
}

// aliases expands identities of the mesh to all of its trust domains.
func aliases(domains, ids []string) []string {
	set := map[string]bool{}
	for _, id := range ids {
		set[id] = true
		rest, own := strings.CutPrefix(id, "spiffe://"+domains[0]+"/")
		if !own {
			continue
		}
		for _, d := range domains[1:] {
			set["spiffe://"+d+"/"+rest] = true
		}
	}
	return sorted(set)
}

// Backends is what a service's configuration depends on of all its endpoints, ready or not. It is gathered apart so that an
// endpoint's readiness concerns its assignment only.
type Backends struct {
	Accounts  []string       // identities, as URIs, sorted
	Addresses []mesh.Address // sorted
	Unowned   []mesh.Address // of these, sorted, what no known pod of the service's namespace has
	Nobodys   []mesh.Address // of these, sorted, what no endpoint says to be a pod's either
	Networks  []string       // on which some are, sorted
	Mutual    bool           // there are endpoints whose workloads are known, and all accept mutual TLS of the mesh
}

// BackendsOf gathers the backends of a service from its endpoints.
func BackendsOf(r *graph.Reader, t *Tables, rows []*graph.Row[mesh.EndpointKey, mesh.Endpoint]) Backends {
	accounts, networks := map[string]bool{}, map[string]bool{}
	addresses, unowned, named := map[mesh.Address]bool{}, map[mesh.Address]bool{}, map[mesh.Address]bool{}
	plain := false
	for _, row := range rows {
		address := mesh.Address{Cluster: row.Key.Cluster, IP: row.Key.Address}
		addresses[address] = true
		w, known, foreign := behind(r, t, row.Val)
		if known || foreign {
			networks[networkOf(r, t, row.Key, w)] = true
		}
		if !known || w.Key.Namespace != row.Key.Service.Namespace {
			unowned[address] = true
			if !foreign {
				named[address] = true
			}
		}
		switch {
		case known:
			accounts[w.Identity.String()] = true
			plain = plain || !mutual(r, t, w, row.Key.Target)
		case foreign:
			plain = true
		default: // a pod that has ended, or is yet to be seen: it says nothing about the others
		}
	}
	b := Backends{Mutual: len(accounts) > 0 && !plain}
	b.Accounts, b.Addresses = sorted(accounts), slices.SortedFunc(maps.Keys(addresses), mesh.Address.Compare)
	b.Unowned = slices.SortedFunc(maps.Keys(unowned), mesh.Address.Compare)
	b.Nobodys = slices.DeleteFunc(slices.Clone(b.Unowned), func(a mesh.Address) bool { return named[a] })
	delete(networks, "")
	if len(networks) > 0 {
		b.Networks = sorted(networks)
	}
	return b
}

// networkOf returns the network of an endpoint: that of the workload behind it, else its cluster's.
func networkOf(r *graph.Reader, t *Tables, k mesh.EndpointKey, w mesh.Workload) string {
	if w.Key != (mesh.WorkloadKey{}) {
		return w.Network
	}
	return t.ConfigOf(r, k.Service.Mesh).Network(k.Cluster, "")
}

func mutual(r *graph.Reader, t *Tables, w mesh.Workload, port uint32) bool {
	p, _ := graph.Get(r, t.Peerings, w.Key)
	return w.TLS && p.At(port) != mesh.PeerDisable
}

// behind returns the workload that has an endpoint's address. What the endpoint says of its workload counts only if the
// workload really has that address: slices are written by users. It reports whether the workload is known, and if not, whether
// that is because there is none: an endpoint that names a workload which is yet to be seen, gone, or elsewhere is nobody's to
// connect to, as its address may be another's by now.
func behind(r *graph.Reader, t *Tables, e mesh.Endpoint) (w mesh.Workload, known, foreign bool) {
	if e.Workload != (mesh.WorkloadKey{}) {
		w, ok := graph.Get(r, t.Workloads, e.Workload)
		return w, ok && slices.Contains(w.Addresses, e.Key.Address), false
	}
	rows := graph.Find(r, t.ByAddress, mesh.Address{Cluster: e.Key.Cluster, IP: e.Key.Address})
	for _, row := range rows {
		if row.Val.Ending && len(rows) > 1 {
			continue // the address is its successor's
		}
		if known {
			return mesh.Workload{}, false, false // whose it is remains to be seen
		}
		w, known = row.Val, true
	}
	return w, known, len(rows) == 0
}

// AssignmentSpec is all that a service's assignment depends on.
type AssignmentSpec struct {
	Name       string
	Localities []LocalitySpec // sorted
	Origin     string
}

// LocalitySpec is the endpoints of one locality.
type LocalitySpec struct {
	Locality  mesh.Locality
	Endpoints []EndpointSpec // sorted by address
}

// EndpointSpec is one endpoint that takes connections.
type EndpointSpec struct {
	Address  string
	Port     uint32
	Mutual   bool   // accepts mutual TLS of the mesh
	Workload string // name;namespace;canonical name;canonical revision;cluster
}

// Assignment gathers the endpoints of a key that are ready, have its labels and can be reached. It returns false if the port is
// gone or clients choose the endpoint themselves.
func Assignment(r *graph.Reader, t *Tables, k AssignmentKey, labels map[string]string) (AssignmentSpec, bool) {
	s, port, ok := servicePort(r, t, k.Service, k.Port)
	if !ok || s.Headless {
		return AssignmentSpec{}, false
	}
	type located struct {
		EndpointSpec
		at mesh.Locality
	}
	var found []located
	for _, row := range endpointsOf(r, t, s, mesh.ServicePort{Service: k.Service, Port: port.Name, Node: k.Node}) {
		if !row.Val.Ready {
			continue
		}
		e := located{EndpointSpec{Address: row.Key.Address, Port: row.Key.Target, Mutual: k.Forced}, mesh.Locality{Zone: row.Val.Zone}}
		w, known, foreign := behind(r, t, row.Val)
		if !known && !foreign {
			continue
		}
		if known {
			e.at = w.Locality
			e.Mutual = k.Forced || mutual(r, t, w, row.Key.Target)
			e.Workload = strings.Join([]string{w.Owner, w.Key.Namespace, w.App, w.Revision, string(w.Key.Cluster)}, ";")
		}
		// The kubelet ends the applications while the EndpointSlice is still to be written.
		if w.Ending && !s.Unready || !mesh.Selects(labels, w.Labels) {
			continue
		}
		if k.Network != "" {
			if n := networkOf(r, t, row.Key, w); n != "" && n != k.Network {
				continue
			}
		}
		n := len(found)
		switch {
		case n == 0 || found[n-1].Address != e.Address || found[n-1].Port != e.Port:
			found = append(found, e)
		case e.Mutual && !found[n-1].Mutual: // two clusters say that it is theirs: what is secured must not be had in plain text
			found[n-1] = e
		}
	}
	at := map[mesh.Locality][]EndpointSpec{}
	for _, e := range found {
		at[e.at] = append(at[e.at], e.EndpointSpec)
	}
	out := AssignmentSpec{Name: ClusterName(k.Service, k.Port, k.Subset), Origin: s.Ref.String()}
	for l, endpoints := range at {
		out.Localities = append(out.Localities, LocalitySpec{l, endpoints})
	}
	slices.SortFunc(out.Localities, func(a, b LocalitySpec) int { return a.Locality.Compare(b.Locality) })
	return out, true
}

// endpointsOf finds the endpoints of a port. Of a service that keeps to its clients' nodes there are none for clients whose
// node is not known: these wait for a moment, where requests that leave their node would break what the service promises.
func endpointsOf(r *graph.Reader, t *Tables, s mesh.Service, at mesh.ServicePort) []*graph.Row[mesh.EndpointKey, mesh.Endpoint] {
	switch {
	case !s.Local:
		return graph.Find(r, t.ByPort, at)
	case at.Node == mesh.NodeKey{}:
		return nil
	}
	return graph.Find(r, t.LocalTo, at)
}
