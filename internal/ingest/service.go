package ingest

import (
	"cmp"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Service reads a Service, as it is in its cluster. UDP and SCTP ports are left out; proxies do not carry them.
func Service(c mesh.Config, k mesh.ObjectKey, s *corev1.Service) mesh.Service {
	out := mesh.Service{
		Object:   object("Service", k, &s.ObjectMeta),
		Key:      serviceKey(c, k.Namespace, k.Name),
		Name:     k.Name,
		Headless: s.Spec.ClusterIP == corev1.ClusterIPNone,
		Unready:  s.Spec.PublishNotReadyAddresses,
		Export:   visibility(list(s.Annotations[exportToAnnotation]), c.ServiceExportTo, k.Namespace),
		Accounts: list(s.Annotations["alpha.istio.io/canonical-serviceaccounts"]),
	}
	for _, account := range list(s.Annotations["alpha.istio.io/kubernetes-serviceaccounts"]) {
		id := mesh.Identity{TrustDomain: c.TrustDomains[0], Namespace: k.Namespace, ServiceAccount: account}
		out.Accounts = append(out.Accounts, id.String())
	}
	own := mesh.ServiceRecord{Object: out.Object}
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		out.Headless, out.Records = false, []mesh.ServiceRecord{own}
		out.Alias = strings.ToLower(strings.TrimSuffix(s.Spec.ExternalName, "."))
		return out
	}
	own.Selector = s.Spec.Selector
	if !out.Headless {
		own.Addresses = addresses(s.Spec)
		out.Local = keepsToNode(s.Spec)
	}
	for _, p := range s.Spec.Ports {
		if p.Protocol != "" && p.Protocol != corev1.ProtocolTCP {
			continue
		}
		port := mesh.Port{Number: uint32(p.Port), Name: p.Name, TargetName: p.TargetPort.StrVal}
		appProtocol := ""
		if p.AppProtocol != nil {
			appProtocol = *p.AppProtocol
		}
		port.Protocol = protocol(appProtocol, p.Name, port.Number)
		// Requests share a listener on every address, where the proxy's own already is: these are told by their service's.
		if mesh.ProxyPort(port.Number) && port.Protocol.IsHTTP() {
			port.Protocol = mesh.Auto
		}
		if port.TargetName == "" {
			port.Target = uint32(p.TargetPort.IntVal)
			if port.Target == 0 {
				port.Target = port.Number
			}
		}
		out.Ports = append(out.Ports, port)
	}
	own.Ports = out.Ports
	out.Records = []mesh.ServiceRecord{own}
	return out
}

func keepsToNode(s corev1.ServiceSpec) bool {
	p := s.InternalTrafficPolicy
	return p != nil && *p == corev1.ServiceInternalTrafficPolicyLocal
}

// ServiceFindings tells what a Service asks for that is not acted on.
func ServiceFindings(_ mesh.Config, k mesh.ObjectKey, s *corev1.Service) []mesh.Finding {
	d := s.Spec.TrafficDistribution
	if d == nil || *d == "" || keepsToNode(s.Spec) {
		return nil
	}
	return []mesh.Finding{{
		About: object("Service", k, &s.ObjectMeta).Ref, Reason: "LocalityIgnored",
		Message: fmt.Sprintf("spec.trafficDistribution: %s is not acted on: clients use endpoints everywhere, so do not rely on it to keep traffic on a node or in a zone", *d),
	}}
}

func serviceKey(c mesh.Config, namespace, name string) mesh.ServiceKey {
	return mesh.ServiceKey{Mesh: c.Mesh, Namespace: namespace, Host: name + "." + namespace + ".svc." + c.Domain}
}

func addresses(s corev1.ServiceSpec) []string {
	if len(s.ClusterIPs) > 0 {
		return canonicals(s.ClusterIPs)
	}
	return canonicals([]string{s.ClusterIP})
}

// protocols by the name that a port's appProtocol, or its name up to the first dash, begins with.
var protocols = map[string]mesh.Protocol{
	"http": mesh.HTTP, "http2": mesh.HTTP2, "grpc": mesh.HTTP2,
	"https": mesh.TCP, "tls": mesh.TCP, "tcp": mesh.TCP, "mongo": mesh.TCP, "mysql": mesh.TCP, "redis": mesh.TCP, "http_proxy": mesh.HTTP,
	"kubernetes.io/h2c": mesh.HTTP2, "kubernetes.io/ws": mesh.HTTP, "kubernetes.io/wss": mesh.TCP,
}

// serverFirst are the ports whose servers usually speak first (SMTP, DNS, MySQL, MongoDB): waiting for the client's
// first bytes would hang.
var serverFirst = map[uint32]bool{25: true, 53: true, 3306: true, 27017: true}

func protocol(appProtocol, name string, port uint32) mesh.Protocol {
	said := appProtocol
	if said == "" {
		said = name
	}
	said = strings.ToLower(said)
	if p, ok := protocols[said]; ok {
		return p
	}
	prefix, _, _ := strings.Cut(said, "-")
	if p, ok := protocols[prefix]; ok {
		return p
	}
	if serverFirst[port] {
		return mesh.TCP
	}
	return mesh.Auto
}

// Endpoints reads a slice. An endpoint that refers to a pod carries the pod's key, which the caller must hold against the
// pod's own addresses: who writes slices does not choose whose identity an address has.
func Endpoints(c mesh.Config, k mesh.ObjectKey, s *discoveryv1.EndpointSlice) ([]mesh.Endpoint, []mesh.Finding) {
	name := s.Labels[discoveryv1.LabelServiceName]
	if name == "" {
		return nil, nil
	}
	if s.AddressType == discoveryv1.AddressTypeFQDN {
		return nil, []mesh.Finding{{
			About: object("EndpointSlice", k, &s.ObjectMeta).Ref, Reason: "AddressTypeUnsupported",
			Message: "addressType FQDN is not served: use addressType IPv4 or IPv6",
		}}
	}
	var out []mesh.Endpoint
	var found []mesh.Finding
	for i, p := range s.Ports {
		if p.Port == nil || (p.Protocol != nil && *p.Protocol != corev1.ProtocolTCP) {
			continue
		}
		if *p.Port < 1 || *p.Port > 65535 { // which the API server takes, and Envoy refuses with all that comes along
			found = append(found, mesh.Finding{
				About: object("EndpointSlice", k, &s.ObjectMeta).Ref, Reason: "Invalid",
				Message: fmt.Sprintf("ports[%d].port: %d is not a port number (1 to 65535): the endpoints at it are left out", i, *p.Port),
			})
			continue
		}
		port := ""
		if p.Name != nil {
			port = *p.Name
		}
		for _, e := range s.Endpoints {
			if len(e.Addresses) == 0 {
				continue
			}
			address, ok := canonical(e.Addresses[0])
			if !ok {
				continue
			}
			ep := mesh.Endpoint{
				Key: mesh.EndpointKey{
					Service: serviceKey(c, k.Namespace, name), Cluster: k.Cluster, Port: port, Address: address, Target: uint32(*p.Port),
				},
				Ready: e.Conditions.Ready == nil || *e.Conditions.Ready,
			}
			if e.Zone != nil {
				ep.Zone = *e.Zone
			}
			if e.NodeName != nil {
				ep.Node = nodeKey(k.Cluster, *e.NodeName)
			}
			if r := e.TargetRef; r != nil && r.Kind == mesh.KindPod {
				ep.Workload = mesh.WorkloadKey{Cluster: k.Cluster, Kind: mesh.KindPod, Namespace: cmp.Or(r.Namespace, k.Namespace), Name: r.Name}
			}
			out = append(out, ep)
		}
	}
	return out, found
}
