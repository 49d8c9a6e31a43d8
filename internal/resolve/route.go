package resolve

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"hash/maphash"
	"maps"
	"math/bits"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// HostKey names a virtual host as clients of a namespace in a cluster see it.
type HostKey struct {
	Service mesh.ServiceKey
	Port    uint32
	Cluster mesh.ClusterID // whose addresses of the service are among its names
	Client  string         // the namespace whose clients know it by more names; empty: everybody
}

// Compare orders keys by service, port, client and cluster.
func (k HostKey) Compare(o HostKey) int {
	return cmp.Or(k.Service.Compare(o.Service), cmp.Compare(k.Port, o.Port), cmp.Compare(k.Client, o.Client), cmp.Compare(k.Cluster, o.Cluster))
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
	ID    Content
	Owner mesh.Object
}

// Hosts emits the virtual hosts of a service's HTTP ports. Clients of the service's own namespace, and those of namespaces
// where it has an alias, know shorter names and have a variant of their own.
func Hosts(r *graph.Reader, t *Tables, s mesh.Service, emit func(HostKey, Host)) {
	if !slices.ContainsFunc(s.Ports, func(p mesh.Port) bool { return p.Protocol.IsHTTP() }) {
		return // nor is it asked by whom it is called, which for each name in a long chain of names is many
	}
	others := aliased(r, t, s)
	clients := audiences(r, t, s)
	if s.Export.All {
		set := map[string]bool{s.Key.Namespace: true}
		for _, a := range others {
			set[a.Key.Namespace] = true
			reach, _ := graph.Get(r, t.Reach, a.Key)
			for _, ns := range reach {
				set[ns] = true
			}
		}
		clients = append(clients, sorted(set)...)
	}
	for _, client := range clients {
		used := t.clusters(r, s.Key.Mesh, client)
		if len(used) == 0 {
			continue
		}
		domains := names(s, client)
		for _, a := range others {
			if a.Export.Sees(client) {
				domains = append(domains, names(a, client)...)
			}
		}
		for _, c := range used {
			in := slices.Clone(domains)
			own, _ := s.In(c)
			for _, a := range own.Addresses {
				if strings.Contains(a, ":") {
					a = "[" + a + "]" // as an authority has it
				}
				in = append(in, a)
			}
			for _, p := range s.Ports {
				if p.Protocol.IsHTTP() {
					spec := HostSpec{
						Name: sniffedRoute(s.Key, p.Number), Domains: in, Cluster: ClusterName(s.Key, p.Number, ""), Origin: s.Ref.String(),
					}
					emit(HostKey{Service: s.Key, Port: p.Number, Cluster: c, Client: client}, Host{spec, spec.Content(), s.Object})
				}
			}
		}
	}
}

// aliased returns the services that are another name of one, or of another name of it, the nearest first. Names may go in a
// circle.
func aliased(r *graph.Reader, t *Tables, s mesh.Service) []mesh.Service {
	var out []mesh.Service
	seen := map[mesh.ServiceKey]bool{s.Key: true}
	for hosts := []string{s.Key.Host}; len(hosts) > 0; hosts = hosts[1:] {
		for _, row := range graph.Find(r, t.ByAlias, hosts[0]) {
			if !seen[row.Key] {
				seen[row.Key] = true
				out = append(out, row.Val)
				hosts = append(hosts, row.Key.Host)
			}
		}
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
	Port    uint32
	Cluster mesh.ClusterID
	Client  string
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
	// Cut are those of Hosts that older ones have left a part of their domains only: no rendering of theirs is there yet.
	Cut map[Content]HostSpec
	// Origins name the first few services among them.
	Origins []string
	Lost    []LostDomain
}

// LostDomain is a domain that a virtual host does not get, as an older one has it.
type LostDomain struct {
	Domain       string
	Loser, Owner mesh.Ref
}

// Finding tells the loser's object.
func (l LostDomain) Finding(route string) mesh.Finding {
	return mesh.Finding{About: l.Loser, Reason: "HostTaken", Message: fmt.Sprintf(
		"port %s: requests for %s go to %s, which has the same host and is older: give one of them another host or port", route, l.Domain, l.Owner)}
}

// Content stands for the content of the spec, so that layers which have the same share what is composed.
func (s RouteSpec) Content() Content {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q", s.Name, s.Origins, s.Lost)
	for _, host := range s.Hosts {
		h.Write(host[:])
	}
	return Content(h.Sum(nil)[:16])
}

// Route gathers the virtual hosts of a route configuration: the layer's own variants, and everybody's for the rest. Of two that
// want one domain the older has it: Envoy would refuse all of them.
func Route(r *graph.Reader, byPort *graph.Index[PortKey, HostKey, Host], k RouteKey) RouteSpec {
	hosts := graph.Find(r, byPort, PortKey{k.Port, k.Layer.Cluster, ""})
	if k.Layer.Namespace != "" {
		hosts = overlay(hosts, graph.Find(r, byPort, PortKey{k.Port, k.Layer.Cluster, k.Layer.Namespace}))
	}
	spec := RouteSpec{Name: fmt.Sprint(k.Port), Hosts: make([]Content, 0, len(hosts))}
	lost := arbitrate(hosts)
	for i, row := range hosts {
		id := row.Val.ID
		if len(lost[i]) > 0 {
			cut := row.Val.HostSpec
			cut.Domains = slices.DeleteFunc(slices.Clone(cut.Domains), func(d string) bool { _, gone := lost[i][d]; return gone })
			for _, d := range slices.Sorted(maps.Keys(lost[i])) {
				spec.Lost = append(spec.Lost, LostDomain{d, row.Val.Owner.Ref, hosts[lost[i][d]].Val.Owner.Ref})
			}
			if len(cut.Domains) == 0 {
				continue
			}
			if id = cut.Content(); spec.Cut == nil {
				spec.Cut = map[Content]HostSpec{}
			}
			spec.Cut[id] = cut
		}
		spec.Hosts = append(spec.Hosts, id)
		if len(spec.Origins) < 5 {
			spec.Origins = append(spec.Origins, row.Val.Origin)
		}
	}
	return spec
}

// overlay puts own rows in place of those of the same services, and among the rest; all are in order of services.
func overlay(all, own []*graph.Row[HostKey, Host]) []*graph.Row[HostKey, Host] {
	out := make([]*graph.Row[HostKey, Host], 0, len(all)+len(own))
	for _, row := range all {
		for len(own) > 0 && own[0].Key.Service.Compare(row.Key.Service) < 0 {
			out, own = append(out, own[0]), own[1:]
		}
		if len(own) == 0 || own[0].Key.Service != row.Key.Service {
			out = append(out, row)
		}
	}
	return append(out, own...)
}

// arbitrate returns which domains each host loses, and to which one, by position.
func arbitrate(hosts []*graph.Row[HostKey, Host]) map[int]map[string]int {
	owners := map[string]int{} // of those that more than one host may want
	for _, d := range repeated(hosts) {
		owners[d] = -1
	}
	if len(owners) == 0 {
		return nil
	}
	each := func(f func(i, owner int, domain string)) {
		for i, row := range hosts {
			for _, d := range row.Val.Domains {
				if owner, ok := owners[d]; ok {
					f(i, owner, d)
				}
			}
		}
	}
	each(func(i, owner int, d string) {
		if owner < 0 || hosts[i].Val.Owner.Compare(hosts[owner].Val.Owner) < 0 {
			owners[d] = i
		}
	})
	lost := map[int]map[string]int{}
	each(func(i, owner int, d string) {
		if owner != i {
			if lost[i] == nil {
				lost[i] = map[string]int{}
			}
			lost[i][d] = owner
		}
	})
	return lost
}

// repeated returns the domains that more than one host has, and with them perhaps some whose hash another has. It is asked of
// all domains at each change of any, and nearly always there are none: a table of hashes takes a tenth of what a map takes.
func repeated(hosts []*graph.Row[HostKey, Host]) (out []string) {
	n := 0
	for _, row := range hosts {
		n += len(row.Val.Domains)
	}
	seen, seed := make([]uint64, 2<<bits.Len(uint(n))), maphash.MakeSeed()
	for _, row := range hosts {
		for _, d := range row.Val.Domains {
			h := maphash.String(seed, d) | 1 // 0 is an empty slot
			at := h >> 1 & uint64(len(seen)-1)
			for seen[at] != 0 && seen[at] != h {
				at = (at + 1) & uint64(len(seen)-1)
			}
			if seen[at] == h {
				out = append(out, d)
			}
			seen[at] = h
		}
	}
	return out
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
			spec := SniffedSpec{Name: sniffedRoute(s.Key, p.Number), Host: HostSpec{
				Name: sniffedRoute(s.Key, p.Number), Domains: []string{"*"}, Cluster: ClusterName(s.Key, p.Number, ""),
				Outside: outside(v), Origin: s.Ref.String(),
			}}
			emit(ListenerKey{Layer{Mesh: s.Key.Mesh, Namespace: v.Client}, spec.Name}, spec)
		}
	}
}
