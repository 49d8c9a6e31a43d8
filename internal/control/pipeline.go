package control

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Sources are the objects that a mesh is made of.
type Sources struct {
	MeshConfig          *graph.Source[mesh.ID, *meshv1alpha1.MeshConfig]
	Memberships         *graph.Source[mesh.ObjectKey, *heddlev1alpha1.Membership]
	Nodes               *graph.Source[mesh.ObjectKey, *corev1.Node]
	Services            *graph.Source[mesh.ObjectKey, *corev1.Service]
	EndpointSlices      *graph.Source[mesh.ObjectKey, *discoveryv1.EndpointSlice]
	Pods                *graph.Source[mesh.ObjectKey, *corev1.Pod]
	PeerAuthentications *graph.Source[mesh.ObjectKey, *securityv1.PeerAuthentication]
	DestinationRules    *graph.Source[mesh.ObjectKey, *networkingv1.DestinationRule]
}
