package resolve

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Socket is where connections are sent to.
type Socket struct {
	Mesh    mesh.ID
	Address mesh.Address // as clients of its cluster know it; zero: every address that no other socket has
	Port    uint32
}

// at returns the socket of another address in the same cluster.
func (k Socket) at(ip string) Socket {
	k.Address.IP = ip
	return k
}

// BindingKey names a service's wish for the connections to a socket.
type BindingKey struct {
	Socket  Socket
	Service mesh.ServiceKey
}

// Compare orders keys by socket and service.
func (k BindingKey) Compare(o BindingKey) int {
	return cmp.Or(cmp.Compare(k.Socket.Mesh, o.Socket.Mesh), k.Socket.Address.Compare(o.Socket.Address),
		cmp.Compare(k.Socket.Port, o.Socket.Port), k.Service.Compare(o.Service))
}

// Claim is by what a service wants a socket; the lower comes first.
type Claim uint8

const (
	Own     Claim = iota // the address is the service's own
	Listed               // a slice names it, and a known pod of the service's namespace has it
	Unknown              // a slice names it, and no known pod of the service's namespace has it
	Passed               // as Unknown, for clients who go by nothing that the service says: it is let pass
)

// Binding is a service's wish for the connections to a socket.
type Binding struct {
	mesh.Object // in the cluster of the socket; of a socket that is in none, the service's
	Protocol    mesh.Protocol
	Addresses   []string // of the service, the primary one first: one listener has all of them that it gets
	Claim       Claim
	Barred      string   // why it can't have the socket, whoever else wants it; empty: it can
	Nobodys     bool     // no pod is known, or named, that has the address
	All         bool     // everybody sees it; else Clients do
	Clients     []string // who sees it
	Near        []string // of an Unknown one, who goes by the service
	Open        bool     // of an Unknown one, that it is let pass for all others who see it
}

// each calls f for each namespace, empty for everybody, with the wish that holds for its clients.
func (b Binding) each(f func(client string, b Binding)) {
	if b.Claim == Unknown {
		for _, c := range b.Near {
			f(c, b)
		}
		if !b.Open {
			return
		}
		b.Claim = Passed
	}
	if b.All {
		f("", b)
		return
	}
	for _, c := range b.Clients {
		f(c, b)
	}
}

// Bindings emits what a service wants. Requests on one port share a socket, whatever their destination; other protocols are
// told apart by the service's addresses, or the addresses of its endpoints if it has none of its own.
func Bindings(r *graph.Reader, t *Tables, s mesh.Service, emit func(BindingKey, Binding)) {
	var reach []string
	if !s.Export.All {
		if reach, _ = graph.Get(r, t.Reach, s.Key); len(reach) == 0 {
			return
		}
	}
	var backends Backends
	var nearby []string
	if s.Headless {
		if backends, _ = graph.Get(r, t.Backends, s.Key); len(backends.Unowned) > 0 {
			nearby = near(r, t, s)
		}
	}
	for _, p := range s.Ports {
		b := Binding{Object: s.Object, Protocol: p.Protocol, All: s.Export.All, Clients: reach}
		add := func(address mesh.Address, b Binding) {
			emit(BindingKey{Socket{s.Key.Mesh, address, p.Number}, s.Key}, b)
		}
		if p.Protocol.IsHTTP() {
			add(mesh.Address{}, b)
			continue
		}
		for _, own := range s.Records {
			b.Object, b.Addresses = own.Object, own.Addresses
			for _, a := range own.Addresses {
				add(mesh.Address{Cluster: own.Ref.Cluster, IP: a}, b)
			}
		}
		open := len(backends.Nobodys) > 0 && passed(r, t, s, p.Number)
		for _, a := range backends.Addresses {
			own, ok := s.In(a.Cluster)
			if !ok {
				continue
			}
			b := b
			b.Object, b.Addresses, b.Claim, b.Barred = own.Object, []string{a.IP}, Listed, barred(r, t, s, a)
			if _, unowned := slices.BinarySearchFunc(backends.Unowned, a, mesh.Address.Compare); unowned && b.Barred == "" {
				_, b.Nobodys = slices.BinarySearchFunc(backends.Nobodys, a, mesh.Address.Compare)
				b.Claim, b.Near, b.Open = Unknown, nearby, b.Nobodys && open
			}
			add(a, b)
		}
	}
}

// near are the clients who go by a service at an address that its slices list and no known pod of its namespace has: whose it is
// nobody can tell, so that what the namespace says of it is for the namespace itself, and for whose own rules name the service.
func near(r *graph.Reader, t *Tables, s mesh.Service) []string {
	set := map[string]bool{}
	if own := s.Key.Namespace; s.Export.Sees(own) && t.Used(r, s.Key.Mesh, own) {
		set[own] = true
	}
	seen, _ := graph.Get(r, t.Seen, s.Key)
	for _, v := range seen {
		if v.own() && v.Rule.Host == s.Key.Host {
			set[v.Client] = true
		}
	}
	return sorted(set)
}

// passed reports whether connections of others to such an address are let pass where those to unknown ones are not: by nothing
// that the service says, but not in plain text where a rule for all, or of the service's, would have them secured.
func passed(r *graph.Reader, t *Tables, s mesh.Service, port uint32) bool {
	if !t.ConfigOf(r, s.Key.Mesh).RegistryOnly {
		return false
	}
	seen, _ := graph.Get(r, t.Seen, s.Key)
	return !slices.ContainsFunc(seen, func(v View) bool {
		mode := v.Rule.TLS(port, "").Mode
		return !v.own() && mode != mesh.TLSUnset && mode != mesh.TLSDisable
	})
}

// barred says why a slice may not name an address for a service: slices are written by users, and what is another service's,
// or another namespace's workload's, is not theirs to take.
func barred(r *graph.Reader, t *Tables, s mesh.Service, address mesh.Address) string {
	for _, row := range graph.Find(r, t.ByVirtual, address) {
		return "is the address of " + row.Val.Ref.String()
	}
	for _, row := range graph.Find(r, t.ByAddress, address) {
		if row.Key.Namespace != s.Key.Namespace {
			return "is the address of Pod " + row.Key.Namespace + "/" + row.Key.Name
		}
	}
	return ""
}

// Won is who has the connections to a socket, as clients of a namespace see it.
type Won struct {
	Client  string // empty: everybody whom no other names
	Service mesh.ServiceKey
	Binding
}

// Arbitrate decides between the services that want one socket: by their claims, then the oldest has it. It decides for everybody,
// and for each namespace whose clients see it otherwise.
func Arbitrate(rows []*graph.Row[BindingKey, Binding]) []Won {
	best := map[string]Won{} // of what everybody sees, and of what only clients of a namespace do
	for _, row := range rows {
		row.Val.each(func(c string, b Binding) {
			if w, ok := best[c]; b.Barred == "" && (!ok || before(b, w.Binding)) {
				best[c] = Won{c, row.Key.Service, b}
			}
		})
	}
	everybody, all := best[""]
	if all && rows[0].Key.Socket.Address == (mesh.Address{}) {
		return []Won{everybody} // the listener of requests is the same whoever has it
	}
	var out []Won
	for _, c := range slices.Sorted(maps.Keys(best)) {
		if w := best[c]; c == "" || !all || before(w.Binding, everybody.Binding) {
			out = append(out, w)
		}
	}
	return out
}

func before(a, b Binding) bool { return cmp.Or(cmp.Compare(a.Claim, b.Claim), a.Compare(b.Object)) < 0 }

// winner returns who has a socket as clients of a namespace see it.
func winner(won []Won, client string) (Won, bool) {
	for _, w := range slices.Backward(won) {
		if w.Client == client || w.Client == "" {
			return w, true
		}
	}
	return Won{}, false
}

// Unowned says that a service has a socket for few of those who see it.
func Unowned(k BindingKey) string {
	return fmt.Sprintf("port %d: connections to an address of its endpoints are its own for clients of namespace %[2]s, and of others with a rule for %[3]s, "+
		"only, as no known pod of %[2]s has it: what is nobody's may be anybody's", k.Socket.Port, k.Service.Namespace, k.Service.Host)
}

// Lost says why a service does not get a socket that it wants, for some of those who see it; empty if it does, or nobody can
// tell: services that share endpoints, as the two of a StatefulSet often do, differ in name only.
func Lost(r *graph.Reader, t *Tables, k BindingKey, b Binding, won []Won) string {
	if k.Socket.Address == (mesh.Address{}) {
		return "" // requests are told apart by their host
	}
	what := "connections to " + k.Socket.Address.IP
	if b.Claim != Own {
		what = "connections to an address of its endpoints" // there may be many
	}
	if b.Barred != "" {
		return fmt.Sprintf("port %d: %s are not its own, as that %s", k.Socket.Port, what, b.Barred)
	}
	clients := b.Clients
	switch {
	case b.Claim == Unknown:
		clients = b.Near // others are not its own in any case
	case b.All:
		seen, _ := graph.Get(r, t.Seen, k.Service)
		clients = nil
		for _, v := range seen { // of everybody, and of those who have rules of their own for it
			clients = append(clients, v.Client)
		}
	}
	for _, c := range clients {
		w, ok := winner(won, c)
		switch {
		case !ok || w.Service == k.Service || b.Claim != Own && w.Claim != Own && alike(r, t, k, b, w, c):
		case w.Claim < b.Claim:
			return fmt.Sprintf("port %d: %s go to %s, as a pod of namespace %s has it", k.Socket.Port, what, w.Ref, w.Service.Namespace)
		default:
			return fmt.Sprintf("port %d: %s go to %s, which has the same address and is older: give one of them another port", k.Socket.Port, what, w.Ref)
		}
	}
	return ""
}

// alike reports whether connections of a client to an endpoint of two services are treated in the same way by either.
func alike(r *graph.Reader, t *Tables, k BindingKey, b Binding, w Won, client string) bool {
	return b.Protocol == w.Protocol &&
		contentOf(secured(r, t, k.Service, k.Socket.Port, client)) == contentOf(secured(r, t, w.Service, k.Socket.Port, client))
}

// secured returns how connections of a client to a service are secured, but for what names the service.
func secured(r *graph.Reader, t *Tables, service mesh.ServiceKey, port uint32, client string) TLSSpec {
	s, _ := graph.Get(r, t.Services, service)
	seen, _ := graph.Get(r, t.Seen, service)
	said := viewOf(seen, client).Rule.TLS(port, "")
	out := tlsOf(r, t, t.ConfigOf(r, service.Mesh), s, ClusterKey{Service: service, Port: port}, said)
	out.SNI, out.Names = said.SNI, said.Names
	return out
}

// ListenerKey is a listener's name in a layer.
type ListenerKey struct {
	Layer Layer
	Name  string
}

// Chain is a filter chain: what is done with which connections.
type Chain struct {
	Route   string // route configuration of requests; empty: bytes, that go to Cluster
	Cluster string // empty: to where they were sent
	Stat    string // names the listener in statistics of requests
	Sniffed bool   // requests among connections of any protocol
}

// ListenerSpec is all that an outbound listener depends on, but what it takes from the mesh's configuration.
type ListenerSpec struct {
	Name      string // first address and port
	Hidden    bool   // there is none, though everybody else has one of this name
	Addresses []string
	Port      uint32
	Chains    []Chain
	Else      string // where connections go that no chain is for: a cluster; empty: where unknown destinations go
	Inspected bool   // the client's first bytes are waited for; else the server may be the first to speak
	Origin    string
}

// Content stands for the content of the spec.
func (s ListenerSpec) Content() Content { return contentOf(s) }

// ProxySpec is what every listener takes from the mesh's configuration.
type ProxySpec struct {
	AccessLog        mesh.AccessLog
	RegistryOnly     bool
	DetectionTimeout time.Duration
}

// ProxyOf returns what listeners take from a configuration.
func ProxyOf(c mesh.Config) ProxySpec {
	return ProxySpec{AccessLog: c.AccessLog, RegistryOnly: c.RegistryOnly, DetectionTimeout: c.DetectionTimeout}
}

// Listeners emits the listener that begins at a socket, in each layer that has another one than everybody, or none.
func Listeners(r *graph.Reader, t *Tables, k Socket, won []Won, sockets *graph.Table[Socket, []Won], emit func(ListenerKey, ListenerSpec)) {
	for _, f := range []Families{IPv4, IPv4 | IPv6} {
		for _, all := range graph.Find(r, t.InClusters, Layer{Mesh: k.Mesh, Families: f}) {
			if c := k.Address.Cluster; c == "" || c == all.Key.Cluster {
				listeners(r, t, k, won, sockets, all.Key, emit)
			}
		}
	}
}

// listeners is Listeners for clients of one cluster and of the same families; all is the layer of everybody among them.
func listeners(r *graph.Reader, t *Tables, k Socket, won []Won, sockets *graph.Table[Socket, []Won], all Layer, emit func(ListenerKey, ListenerSpec)) {
	everybody, had := listener(r, k, won, sockets, "", all.Families)
	if had {
		emit(ListenerKey{all, everybody.Name}, everybody)
	}
	for _, client := range viewers(r, k, won, sockets) {
		own := all
		own.Namespace = client
		if _, used := graph.Get(r, t.Layers, own); !used {
			continue
		}
		spec, has := listener(r, k, won, sockets, client, all.Families)
		switch {
		case !has && had:
			emit(ListenerKey{own, everybody.Name}, ListenerSpec{Name: everybody.Name, Hidden: true, Origin: everybody.Origin})
		case has && !(had && spec.Content() == everybody.Content()):
			emit(ListenerKey{own, spec.Name}, spec)
		}
	}
}

// viewers returns the client namespaces for which a listener at the socket may be another than for everybody.
func viewers(r *graph.Reader, k Socket, won []Won, sockets *graph.Table[Socket, []Won]) []string {
	set := map[string]bool{}
	for _, w := range won {
		for _, a := range w.Addresses {
			others, _ := graph.Get(r, sockets, k.at(a))
			for _, o := range others {
				set[o.Client] = true
			}
		}
		set[w.Client] = true
	}
	delete(set, "")
	return sorted(set)
}

// listener makes the listener that begins at a socket: one for all addresses that its service has got, named after the first.
func listener(r *graph.Reader, k Socket, won []Won, sockets *graph.Table[Socket, []Won], client string, f Families) (ListenerSpec, bool) {
	w, ok := winner(won, client)
	if !ok {
		return ListenerSpec{}, false
	}
	spec := ListenerSpec{Port: k.Port, Origin: w.Ref.String()}
	if k.Address == (mesh.Address{}) {
		if spec.Addresses = []string{"0.0.0.0"}; f&IPv6 != 0 {
			spec.Addresses = append(spec.Addresses, "::")
		}
		spec.Name = fmt.Sprintf("0.0.0.0_%d", k.Port)
		spec.Chains, spec.Inspected = []Chain{{Route: fmt.Sprint(k.Port), Stat: spec.Name}}, true
		return spec, true
	}
	for _, a := range w.Addresses {
		if FamiliesOf([]string{a})&^f != 0 {
			continue
		}
		others, _ := graph.Get(r, sockets, k.at(a))
		if o, ok := winner(others, client); ok && o.Service == w.Service {
			spec.Addresses = append(spec.Addresses, a)
		}
	}
	if len(spec.Addresses) == 0 || spec.Addresses[0] != k.Address.IP {
		return ListenerSpec{}, false
	}
	spec.Name = fmt.Sprintf("%s_%d", k.Address.IP, k.Port)
	cluster := ClusterName(w.Service, k.Port, "")
	switch {
	case w.Claim == Passed:
		spec.Chains = []Chain{{}}
	case w.Protocol == mesh.Auto:
		spec.Chains, spec.Inspected = []Chain{{Route: sniffedRoute(w.Service, k.Port), Stat: spec.Name, Sniffed: true}}, true
		spec.Else = cluster
	default:
		spec.Chains = []Chain{{Cluster: cluster}}
	}
	return spec, true
}

func sniffedRoute(s mesh.ServiceKey, port uint32) string {
	return fmt.Sprintf("%s:%d", s.Host, port)
}
