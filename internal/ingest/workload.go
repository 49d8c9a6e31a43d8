package ingest

import (
	"cmp"
	"encoding/json"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

const (
	networkLabel      = "topology.istio.io/network"
	tlsModeLabel      = "security.istio.io/tlsMode"
	canonicalName     = "service.istio.io/canonical-name"
	canonicalRevision = "service.istio.io/canonical-revision"
)

// Locality reads where a node is.
func Locality(n *corev1.Node) mesh.Locality {
	return mesh.Locality{
		Region:  n.Labels[corev1.LabelTopologyRegion],
		Zone:    n.Labels[corev1.LabelTopologyZone],
		SubZone: n.Labels["topology.istio.io/subzone"],
	}
}

// labelledLocality reads where a pod says that it is, REGION.ZONE.SUBZONE: labels hold no slash.
func labelledLocality(label string) mesh.Locality {
	region, rest, _ := strings.Cut(label, ".")
	zone, subzone, _ := strings.Cut(rest, ".")
	return mesh.Locality{Region: region, Zone: zone, SubZone: subzone}
}

// Workload reads a pod that runs at a locality. It returns false for a pod that is nobody's peer: it has no address yet,
// or it has ended and its address may be another's by now.
func Workload(c mesh.Config, k mesh.ObjectKey, p *corev1.Pod, at mesh.Locality) (mesh.Workload, bool) {
	if p.Status.PodIP == "" || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return mesh.Workload{}, false
	}
	w := mesh.Workload{
		Key:         mesh.WorkloadKey{Cluster: k.Cluster, Kind: mesh.KindPod, Namespace: k.Namespace, Name: k.Name},
		UID:         string(p.UID),
		Network:     c.Network(k.Cluster, p.Labels[networkLabel]),
		HostNetwork: p.Spec.HostNetwork,
		Identity: mesh.Identity{
			TrustDomain: c.TrustDomains[0], Namespace: k.Namespace,
			ServiceAccount: cmp.Or(p.Spec.ServiceAccountName, "default"),
		},
		Labels:   p.Labels,
		Locality: at,
		Node:     nodeKey(k.Cluster, p.Spec.NodeName),
		TLS:      p.Labels[tlsModeLabel] == "istio",
		Ending:   p.DeletionTimestamp != nil,
		Owner:    owner(k.Name, p),
		Revision: cmp.Or(p.Labels[canonicalRevision], p.Labels["app.kubernetes.io/version"], p.Labels["version"]),
	}
	if l := p.Labels["istio-locality"]; l != "" {
		w.Locality = labelledLocality(l)
	}
	w.App = cmp.Or(p.Labels[canonicalName], p.Labels["app.kubernetes.io/name"], p.Labels["app"], w.Owner)
	ips := []string{p.Status.PodIP}
	for _, ip := range p.Status.PodIPs {
		ips = append(ips, ip.IP)
	}
	w.Addresses = canonicals(ips)
	var ports []corev1.ContainerPort
	for _, container := range p.Spec.Containers {
		ports = append(ports, container.Ports...)
	}
	for _, container := range p.Spec.InitContainers { // a target port may be that of one that goes on running
		if container.RestartPolicy != nil && *container.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			ports = append(ports, container.Ports...)
		}
	}
	w.Ports = portsByName(ports)
	return w, true
}

// nodeKey names a node; that of no name is none.
func nodeKey(c mesh.ClusterID, name string) mesh.NodeKey {
	if name == "" {
		return mesh.NodeKey{}
	}
	return mesh.NodeKey{Cluster: c, Name: name}
}

func portsByName(ports []corev1.ContainerPort) map[string]uint32 {
	var out map[string]uint32
	for _, port := range ports {
		if port.Name == "" || out[port.Name] != 0 || (port.Protocol != "" && port.Protocol != corev1.ProtocolTCP) {
			continue
		}
		if out == nil {
			out = map[string]uint32{}
		}
		out[port.Name] = uint32(port.ContainerPort)
	}
	return out
}

// owner returns what made the pod, by its generated name; of a ReplicaSet, the Deployment behind it.
func owner(name string, p *corev1.Pod) string {
	made, generated := strings.CutSuffix(p.GenerateName, "-")
	if !generated {
		return name
	}
	if hash := p.Labels["pod-template-hash"]; hash != "" {
		made = strings.TrimSuffix(made, "-"+hash)
	}
	return made
}

// PodPorts reads the container ports by name as a proxy's metadata POD_PORTS has them. What it cannot read is left out: the
// pod itself says better in a moment.
func PodPorts(s string) map[string]uint32 {
	var ports []corev1.ContainerPort
	if json.Unmarshal([]byte(s), &ports) != nil {
		return nil
	}
	return portsByName(ports)
}
