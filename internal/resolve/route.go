package resolve

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// HostKey names a variant of a virtual host.
type HostKey struct {
	Service mesh.ServiceKey
	Port    uint32
	Client  string // the namespace whose clients know it by more names; empty: everybody's variant
}

// HostSpec is all that a virtual host depends on.
type HostSpec struct {
	Name    string // host:port
	Domains []string
	Cluster string
	Outside bool // the cluster's servers are not of the mesh, and must not be offered its protocols
	Origin  string
}

// Hosts emits the virtual hosts of a service's HTTP ports. Clients of the service's own namespace, and those of namespaces
// where it has an alias, know shorter names and have a variant of their own.
func Hosts(r *graph.Reader, t *Tables, s mesh.Service, emit func(HostKey, HostSpec)) {
	var others []mesh.Service
	for _, row := range graph.Find(r, t.ByAlias, s.Key.Host) {
		others = append(others, row.Val)
	}
	clients := audiences(r, t, s)
	if s.Export.All {
		set := map[string]bool{s.Key.Namespace: true}
		for _, a := range others {
			set[a.Key.Namespace] = true
			for _, ns := range a.Export.Namespaces {
				set[ns] = true
			}
		}
		for _, ns := range sorted(set) {
			if t.Serves(r, ns) {
				clients = append(clients, ns)
			}
		}
	}
	for _, client := range clients {
		domains := names(s, client)
		for _, a := range others {
			if a.Export.Sees(client) {
				domains = append(domains, names(a, client)...)
			}
		}
		for _, a := range s.Addresses {
			if strings.Contains(a, ":") {
				a = "[" + a + "]" // as an authority has it
			}
			domains = append(domains, a)
		}
		for _, p := range s.Ports {
			if p.Protocol.IsHTTP() {
				k := HostKey{Service: s.Key, Port: p.Number, Client: client}
				emit(k, HostSpec{
					Name: sniffedRoute(s, p), Domains: domains, Cluster: ClusterKey{Service: s.Key, Port: p.Number}.Name(), Origin: s.Ref.String(),
				})
			}
		}
	}
}

// names returns what clients of a namespace call a service; of a headless one, its pods too. Ports are ignored in matching.
func names(s mesh.Service, client string) []string {
	short := s.Name + "." + s.Key.Namespace
	out := []string{s.Key.Host, s.Key.Host + "."}
	if client == s.Key.Namespace {
		out = append(out, s.Name)
	}
	out = append(out, short+".svc", short)
	if s.Headless {
		for _, name := range out {
			out = append(out, "*."+name)
		}
	}
	return out
}

// PortKey finds the virtual hosts of a port that are a client's own, or with an empty client everybody's.
type PortKey struct {
	Port   uint32
	Client string
}

// RouteKey names the route configuration of a port, as an audience has it.
type RouteKey struct {
	Audience Audience
	Port     uint32
}

// RouteSpec is all that the route configuration of a port depends on, but the virtual hosts themselves.
type RouteSpec struct {
	Name  string
	Hosts []HostKey // in order of their names
	// Origins name the first few services among them.
	Origins []string
}

// Route gathers the virtual hosts of a route configuration: the audience's own variants, and everybody's for the rest.
func Route(r *graph.Reader, byPort *graph.Index[PortKey, HostKey, HostSpec], k RouteKey) RouteSpec {
	hosts := map[mesh.ServiceKey]graph.Row[HostKey, HostSpec]{}
	for _, client := range []string{"", k.Audience.Namespace} {
		for _, row := range graph.Find(r, byPort, PortKey{k.Port, client}) {
			hosts[row.Key.Service] = row
		}
	}
	spec := RouteSpec{Name: fmt.Sprint(k.Port)}
	for _, service := range slices.SortedFunc(maps.Keys(hosts), mesh.ServiceKey.Compare) {
		spec.Hosts = append(spec.Hosts, hosts[service].Key)
		if len(spec.Origins) < 5 {
			spec.Origins = append(spec.Origins, hosts[service].Val.Origin)
		}
	}
	return spec
}

// SniffedSpec is all that the route configuration depends on that requests on a port of unknown protocol take: its listener
// has told the service already, so every host is right.
type SniffedSpec struct {
	Name string
	Host HostSpec
}

// Sniffed emits the route configurations of a service's ports of unknown protocol.
func Sniffed(r *graph.Reader, t *Tables, s mesh.Service, emit func(ListenerKey, SniffedSpec)) {
	for _, v := range views(r, t, s) {
		for _, p := range s.Ports {
			if p.Protocol != mesh.Auto {
				continue
			}
			mode := v.rule.TLS(p.Number, "").Mode
			spec := SniffedSpec{Name: sniffedRoute(s, p), Host: HostSpec{
				Name: sniffedRoute(s, p), Domains: []string{"*"}, Cluster: ClusterKey{Service: s.Key, Port: p.Number}.Name(),
				Outside: mode == mesh.TLSSimple || mode == mesh.TLSMutual, Origin: s.Ref.String(),
			}}
			emit(ListenerKey{Audience{s.Key.Mesh, v.client}, spec.Name}, spec)
		}
	}
}
