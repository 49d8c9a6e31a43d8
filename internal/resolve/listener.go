package resolve

import (
	"fmt"
	"time"

	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// ListenerKey is a listener's name in a layer.
type ListenerKey struct {
	Layer Layer
	Name  string
}

// ListenerSpec is all that an outbound listener depends on.
type ListenerSpec struct {
	mesh.Object          // the service that has it; of several the oldest
	Name        string   // first address and port
	Addresses   []string // none: every address that no other listener has
	Port        uint32
	Protocol    mesh.Protocol
	Route       string // route configuration of requests; empty for TCP
	Cluster     string // where other connections go; empty: where unknown destinations go
	Proxy       ProxySpec
}

// ProxySpec is what every listener takes from the mesh's configuration.
type ProxySpec struct {
	AccessLog        mesh.AccessLog
	RegistryOnly     bool
	DetectionTimeout time.Duration
	TrustDomains     []string
}

// ProxyOf returns what listeners take from a configuration.
func ProxyOf(c mesh.Config) ProxySpec {
	return ProxySpec{AccessLog: c.AccessLog, RegistryOnly: c.RegistryOnly, DetectionTimeout: c.DetectionTimeout, TrustDomains: c.TrustDomains}
}

// Listeners emits the outbound listeners of a service. Requests on one port share a listener, whatever their destination;
// other protocols are told apart by the service's addresses, or the addresses of its endpoints if it has none of its own.
func Listeners(r *graph.Reader, t *Tables, s mesh.Service, emit func(ListenerKey, ListenerSpec)) {
	proxy := ProxyOf(t.ConfigOf(r, s.Key.Mesh))
	for _, client := range audiences(r, t, s) {
		add := func(spec ListenerSpec, address string) {
			spec.Name = fmt.Sprintf("%s_%d", address, spec.Port)
			emit(ListenerKey{Layer{s.Key.Mesh, client}, spec.Name}, spec)
		}
		for _, p := range s.Ports {
			spec := ListenerSpec{Object: s.Object, Port: p.Number, Protocol: p.Protocol, Proxy: proxy}
			if p.Protocol.IsHTTP() {
				spec.Route = fmt.Sprint(p.Number)
				add(spec, "0.0.0.0")
				continue
			}
			if p.Protocol == mesh.Auto {
				spec.Route = sniffedRoute(s, p)
			}
			spec.Cluster = ClusterName(s.Key, p.Number, "")
			if len(s.Addresses) > 0 {
				spec.Addresses = s.Addresses
				add(spec, s.Addresses[0])
			}
			if s.Headless {
				backends, _ := graph.Get(r, t.Backends, s.Key)
				for _, a := range backends.Addresses {
					if len(graph.Find(r, t.ByVirtual, a)) > 0 {
						continue // slices are written by users: another service's address is not theirs to take
					}
					spec.Addresses = []string{a}
					add(spec, a)
				}
			}
		}
	}
}

func sniffedRoute(s mesh.Service, p mesh.Port) string {
	return fmt.Sprintf("%s:%d", s.Key.Host, p.Number)
}
