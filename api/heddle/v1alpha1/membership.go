package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Phase is how far a namespace has come into a mesh, or out of it.
//
// +kubebuilder:validation:Enum=Joining;Member;Leaving
type Phase string

const (
	// Joining: rights are given; the control plane opens its watches and writes its root.
	Joining Phase = "Joining"
	// Member: the control plane serves the namespace.
	Member Phase = "Member"
	// Leaving: the control plane stops serving, closes its watches and deletes its root; rights end
	// once it says so, or after a second.
	Leaving Phase = "Leaving"
)

// Membership says that a namespace belongs to the mesh in whose system namespace the object lies; it is named as
// the namespace. The operator alone writes objects and spec, the control plane only status.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:categories=heddle,singular=membership
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.spec.phase`
// +kubebuilder:printcolumn:name="Watching",type=boolean,JSONPath=`.status.watching`
// +kubebuilder:printcolumn:name="Root",type=boolean,JSONPath=`.status.rootWritten`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Membership struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   MembershipSpec   `json:"spec"`
	Status MembershipStatus `json:"status,omitempty"`
}

// MembershipSpec is what a control plane must know of one of its namespaces.
type MembershipSpec struct {
	// Namespace is the member's name.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace"`
	// UID is the member's UID: a namespace that was deleted and made again is another member.
	UID   types.UID `json:"uid"`
	Phase Phase     `json:"phase"`
	// Labels are those of the namespace that a control plane acts on.
	// +optional
	Labels map[string]string `json:"labels,omitempty"`
	// Annotations are those of the namespace that a control plane acts on.
	// +optional
	Annotations map[string]string `json:"annotations,omitempty"`
	// Kinds are the optional kinds of which the namespace has an object, as plural.group and sorted
	// (destinationrules.networking.istio.io); the control plane opens no watch for others.
	// +optional
	// +listType=set
	Kinds []string `json:"kinds,omitempty"`
}

// MembershipStatus is what the control plane has done. It holds for the Membership with this UID and generation
// only: a patch meant for a deleted object lands on its successor of the same name.
type MembershipStatus struct {
	// Watching: the watches of the namespace are open.
	// +optional
	Watching bool `json:"watching"`
	// RootWritten: the namespace's root ConfigMap holds this mesh's root.
	// +optional
	RootWritten bool `json:"rootWritten"`
	// UID is metadata.uid of the Membership that the status speaks of.
	// +optional
	UID types.UID `json:"uid,omitempty"`
	// Generation is metadata.generation of the Membership that the status speaks of.
	// +optional
	Generation int64 `json:"generation,omitempty"`
	// Conditions: Ready is true while the control plane serves the namespace.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// MembershipList is a list of Memberships.
//
// +kubebuilder:object:root=true
type MembershipList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Membership `json:"items"`
}

// Spoken reports whether the control plane's status speaks of the object as it is now.
func (m *Membership) Spoken() bool {
	return m.Status.UID == m.UID && m.Status.Generation == m.Generation
}
