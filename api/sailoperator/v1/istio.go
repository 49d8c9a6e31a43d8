package v1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Names that the API, its users and the operator share.
const (
	// Finalizer keeps a revision or a tag until what it made is gone.
	Finalizer = "sailoperator.io/sail-operator"
	// DefaultName is the revision or tag whose objects carry Istio's names without a suffix.
	DefaultName = "default"
)

// Istio is one mesh: a control plane in a system namespace, and the selectors of the namespaces that it serves.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=istio-io
// +kubebuilder:printcolumn:name="Namespace",type=string,priority=1,JSONPath=`.spec.namespace`
// +kubebuilder:printcolumn:name="Profile",type=string,priority=1,JSONPath=`.spec.profile`
// +kubebuilder:printcolumn:name="Revisions",type=integer,JSONPath=`.status.revisions.total`
// +kubebuilder:printcolumn:name="Ready",type=integer,JSONPath=`.status.revisions.ready`
// +kubebuilder:printcolumn:name="In use",type=integer,JSONPath=`.status.revisions.inUse`
// +kubebuilder:printcolumn:name="Active Revision",type=string,JSONPath=`.status.activeRevisionName`
// +kubebuilder:printcolumn:name="Status",type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name="Version",type=string,JSONPath=`.spec.version`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Istio struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +kubebuilder:default={version: "v1.30.3", namespace: "istio-system", updateStrategy: {type: InPlace}}
	// +optional
	Spec IstioSpec `json:"spec"`
	// +optional
	Status IstioStatus `json:"status,omitempty"`
}

// IstioSpec is what the mesh's owner wants.
//
// +kubebuilder:validation:XValidation:rule="!has(self.values) || !has(self.values.global) || !has(self.values.global.istioNamespace) || self.values.global.istioNamespace == self.__namespace__",message="spec.values.global.istioNamespace must equal spec.namespace"
type IstioSpec struct {
	// Version is a version of Istio's API (v1.30.3), or the newest patch of a minor version (v1.30-latest). status tells
	// which one the installed build serves.
	// +kubebuilder:default="v1.30.3"
	// +kubebuilder:validation:Pattern=`^(master|v1\.[0-9]+(-latest|\.[0-9]+(-[a-z]+\.[0-9a-f]+)?))$`
	// +kubebuilder:validation:MaxLength=64
	// +optional
	Version string `json:"version"`
	// UpdateStrategy says how a new version takes over.
	// +kubebuilder:default={type: InPlace}
	// +optional
	UpdateStrategy UpdateStrategy `json:"updateStrategy,omitempty"`
	// Profile names preset values that Values override.
	// +kubebuilder:validation:Enum=default;demo;empty;openshift;stable
	// +optional
	Profile string `json:"profile,omitempty"`
	// Namespace is the mesh's system namespace. It must exist and belongs to one mesh only.
	// +kubebuilder:default=istio-system
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="Value is immutable"
	// +optional
	Namespace string `json:"namespace"`
	// Values are chart values: meshConfig.discoverySelectors say which namespaces the mesh serves.
	// +optional
	Values *Values `json:"values,omitempty"`
}

// UpdateStrategy says how a new version takes over.
type UpdateStrategy struct {
	// Type: InPlace keeps one revision, named as the Istio object.
	// +kubebuilder:default=InPlace
	// +kubebuilder:validation:Enum=InPlace
	// +optional
	Type string `json:"type,omitempty"`
	// InactiveRevisionDeletionGracePeriodSeconds is how long an unused revision is kept, 30 s unless set.
	// +kubebuilder:validation:Minimum=0
	// +optional
	InactiveRevisionDeletionGracePeriodSeconds *int64 `json:"inactiveRevisionDeletionGracePeriodSeconds,omitempty"`
	// UpdateWorkloads is accepted and has no effect, as upstream.
	// +optional
	UpdateWorkloads bool `json:"updateWorkloads,omitempty"`
}

// IstioStatus is what the operator last saw.
type IstioStatus struct {
	RevisionStatus `json:",inline"`
	// ActiveRevisionName is the IstioRevision that new workloads get.
	// +optional
	ActiveRevisionName string `json:"activeRevisionName,omitempty"`
	// +optional
	Revisions RevisionSummary `json:"revisions,omitempty"`
}

// RevisionSummary counts the revisions of a mesh; -1 if they could not be listed.
type RevisionSummary struct {
	Total int32 `json:"total"`
	Ready int32 `json:"ready"`
	InUse int32 `json:"inUse"`
}

// IstioList is a list of meshes.
//
// +kubebuilder:object:root=true
type IstioList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Istio `json:"items"`
}
