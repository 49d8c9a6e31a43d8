package resolve

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"strings"

	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// HostKey names a virtual host as clients of a namespace see it.
type HostKey struct {
	Service mesh.ServiceKey
	Port    uint32
	Client  string // the namespace whose clients know it by more names; empty: everybody
}

// Compare orders keys by service, port and client.
func (k HostKey) Compare(o HostKey) int {
	return cmp.Or(k.Service.Compare(o.Service), cmp.Compare(k.Port, o.Port), cmp.Compare(k.Client, o.Client))
}

// HostSpec is all that a virtual host depends on.
type HostSpec struct {
	Name    string // host:port
	Domains []string
	Cluster string
	Outside bool // the cluster's servers are not of the mesh, and must not be offered its protocols
	Origin  string
}

// Content stands for the content of the spec, which clients of several namespaces may have in common.
func (s HostSpec) Content() Content { return contentOf(s) }

// Host is a virtual host and the name of its content.
type Host struct {
	HostSpec
	ID Content
}

// Hosts emits the virtual hosts of a service's HTTP ports. Clients of the service's own namespace, and those of namespaces
// where it has an alias, know shorter names and have a variant of their own.
func Hosts(r *graph.Reader, t *Tables, s mesh.Service, emit func(HostKey, Host)) {
	others := aliased(r, t, s)
	clients := audiences(r, t, s)
	if s.Export.All {
		set := map[string]bool{}
		if t.Used(r, s.Key.Mesh, s.Key.Namespace) {
			set[s.Key.Namespace] = true
		}
		for _, a := range others {
			if t.Used(r, s.Key.Mesh, a.Key.Namespace) {
				set[a.Key.Namespace] = true
			}
			reach, _ := graph.Get(r, t.Reach, a.Key)
			for _, ns := range reach {
				set[ns] = true
			}
		}
		clients = append(clients, sorted(set)...)
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
				spec := HostSpec{
					Name: sniffedRoute(s, p), Domains: domains, Cluster: ClusterName(s.Key, p.Number, ""), Origin: s.Ref.String(),
				}
				emit(HostKey{Service: s.Key, Port: p.Number, Client: client}, Host{spec, spec.Content()})
			}
		}
	}
}

// aliased returns the services that are another name of one, in order of their hosts.
func aliased(r *graph.Reader, t *Tables, s mesh.Service) []mesh.Service {
	var out []mesh.Service
	for _, row := range graph.Find(r, t.ByAlias, s.Key.Host) {
		out = append(out, row.Val)
	}
	return out
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

// RouteKey names the route configuration of a port in a layer.
type RouteKey struct {
	Layer Layer
	Port  uint32
}

// RouteSpec is all that the route configuration of a port depends on, but the virtual hosts themselves.
type RouteSpec struct {
	Name  string
	Hosts []Content // in order of their names
	// Origins name the first few services among them.
	Origins []string
}

// Content stands for the content of the spec, so that layers which have the same share what is composed.
func (s RouteSpec) Content() Content {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q", s.Name, s.Origins)
	for _, host := range s.Hosts {
		h.Write(host[:])
	}
	return Content(h.Sum(nil)[:16])
}

// Route gathers the virtual hosts of a route configuration: the layer's own variants, and everybody's for the rest.
func Route(r *graph.Reader, byPort *graph.Index[PortKey, HostKey, Host], k RouteKey) RouteSpec {
	all := graph.Find(r, byPort, PortKey{k.Port, ""})
	var own []graph.Row[HostKey, Host]
	if k.Layer.Namespace != "" {
		own = graph.Find(r, byPort, PortKey{k.Port, k.Layer.Namespace})
	}
	spec := RouteSpec{Name: fmt.Sprint(k.Port), Hosts: make([]Content, 0, len(all)+len(own))}
	add := func(h Host) {
		spec.Hosts = append(spec.Hosts, h.ID)
		if len(spec.Origins) < 5 {
			spec.Origins = append(spec.Origins, h.Origin)
		}
	}
	for _, row := range all {
		for len(own) > 0 && own[0].Key.Service.Compare(row.Key.Service) < 0 {
			add(own[0].Val)
			own = own[1:]
		}
		if len(own) > 0 && own[0].Key.Service == row.Key.Service {
			continue // the next but one
		}
		add(row.Val)
	}
	for _, row := range own {
		add(row.Val)
	}
	return spec
}

// SniffedSpec is all that the route configuration depends on that requests on a port of unknown protocol take: its listener
// has told the service already, so every host is right.
type SniffedSpec struct {
	Name string
	Host HostSpec
}

// Sniffed emits the route configurations of a service's ports of unknown protocol, and none for a view that has everybody's.
func Sniffed(r *graph.Reader, t *Tables, s mesh.Service, emit func(ListenerKey, SniffedSpec)) {
	seen, _ := graph.Get(r, t.Seen, s.Key)
	for _, p := range s.Ports {
		if p.Protocol != mesh.Auto {
			continue
		}
		outside := func(v View) bool {
			mode := v.Rule.TLS(p.Number, "").Mode
			return mode == mesh.TLSSimple || mode == mesh.TLSMutual
		}
		for _, v := range seen {
			if v.Client != "" && s.Export.All && outside(v) == outside(seen[0]) {
				continue
			}
			spec := SniffedSpec{Name: sniffedRoute(s, p), Host: HostSpec{
				Name: sniffedRoute(s, p), Domains: []string{"*"}, Cluster: ClusterName(s.Key, p.Number, ""),
				Outside: outside(v), Origin: s.Ref.String(),
			}}
			emit(ListenerKey{Layer{s.Key.Mesh, v.Client}, spec.Name}, spec)
		}
	}
}
