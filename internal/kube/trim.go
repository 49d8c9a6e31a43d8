package kube

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// annotations that ingest reads, of any kind.
var annotations = []string{
	"networking.istio.io/exportTo",
	"networking.istio.io/traffic-distribution",
	"alpha.istio.io/canonical-serviceaccounts",
	"alpha.istio.io/kubernetes-serviceaccounts",
	"istio.io/rev",
	mesh.UnreadableAnnotation,
}

// trimMeta keeps what ingest and the watches need of an object's metadata: names, UID, versions, labels, times.
func trimMeta(m *metav1.ObjectMeta) {
	var kept map[string]string
	for _, name := range annotations {
		if v, ok := m.Annotations[name]; ok {
			if kept == nil {
				kept = map[string]string{}
			}
			kept[name] = v
		}
	}
	m.Annotations, m.ManagedFields, m.OwnerReferences, m.Finalizers = kept, nil, nil, nil
}

func trimService(s *corev1.Service) {
	trimMeta(&s.ObjectMeta)
	s.Status = corev1.ServiceStatus{}
}

func trimSlice(s *discoveryv1.EndpointSlice) {
	trimMeta(&s.ObjectMeta)
	for i := range s.Endpoints {
		s.Endpoints[i].Hints, s.Endpoints[i].DeprecatedTopology = nil, nil
	}
}

func trimPod(p *corev1.Pod) {
	trimMeta(&p.ObjectMeta)
	spec := corev1.PodSpec{
		NodeName: p.Spec.NodeName, ServiceAccountName: p.Spec.ServiceAccountName, HostNetwork: p.Spec.HostNetwork,
		InitContainers: portsOf(p.Spec.InitContainers), Containers: portsOf(p.Spec.Containers),
	}
	status := corev1.PodStatus{Phase: p.Status.Phase, PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs}
	p.Spec, p.Status = spec, status
}

// portsOf keeps of containers what resolves a port's name.
func portsOf(containers []corev1.Container) []corev1.Container {
	var kept []corev1.Container
	for _, c := range containers {
		if len(c.Ports) > 0 {
			kept = append(kept, corev1.Container{Ports: c.Ports, RestartPolicy: c.RestartPolicy})
		}
	}
	return kept
}

func trimNode(n *corev1.Node) {
	trimMeta(&n.ObjectMeta)
	n.Spec = corev1.NodeSpec{}
	n.Status = corev1.NodeStatus{}
}

func trimPeerAuthentication(p *securityv1.PeerAuthentication) {
	trimMeta(&p.ObjectMeta)
	p.Status.Reset()
}

func trimDestinationRule(d *networkingv1.DestinationRule) {
	trimMeta(&d.ObjectMeta)
	d.Status.Reset()
}

func trimConfigMap(c *corev1.ConfigMap) { trimMeta(&c.ObjectMeta) }

// A plane writes a Membership's status; of it only whether a plane has read the namespace is news to another one.
func trimMembership(m *heddlev1alpha1.Membership) {
	trimMeta(&m.ObjectMeta)
	m.Status = heddlev1alpha1.MembershipStatus{Watching: m.Status.Watching, UID: m.Status.UID}
}
