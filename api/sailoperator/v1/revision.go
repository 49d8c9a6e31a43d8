package v1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// IstioRevision is one control plane. The operator makes it; users read it.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=istio-io,shortName=istiorev
// +kubebuilder:printcolumn:name="Namespace",type=string,priority=1,JSONPath=`.spec.namespace`
// +kubebuilder:printcolumn:name="Profile",type=string,priority=1,JSONPath=`.spec.values.profile`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Status",type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name="In use",type=string,JSONPath=`.status.conditions[?(@.type=="InUse")].status`
// +kubebuilder:printcolumn:name="Version",type=string,JSONPath=`.spec.version`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name == 'default' ? (!has(self.spec.values) || !has(self.spec.values.revision) || size(self.spec.values.revision) == 0) : (has(self.spec.values) && has(self.spec.values.revision) && self.spec.values.revision == self.metadata.name)",message="spec.values.revision must equal metadata.name, or be empty if the name is default"
type IstioRevision struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec IstioRevisionSpec `json:"spec"`
	// +optional
	Status RevisionStatus `json:"status,omitempty"`
}

// IstioRevisionSpec is an IstioSpec with its version and values resolved.
//
// +kubebuilder:validation:XValidation:rule="has(self.values) && has(self.values.global) && has(self.values.global.istioNamespace) && self.values.global.istioNamespace == self.__namespace__",message="spec.values.global.istioNamespace must equal spec.namespace"
type IstioRevisionSpec struct {
	// Version is a concrete version of Istio's API.
	// +kubebuilder:validation:Pattern=`^v1\.[0-9]+\.[0-9]+(-[a-z]+\.[0-9a-f]+)?$`
	// +kubebuilder:validation:MaxLength=64
	Version string `json:"version"`
	// Namespace is the mesh's system namespace.
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="Value is immutable"
	Namespace string `json:"namespace"`
	// +optional
	Values *Values `json:"values,omitempty"`
}

// RevisionStatus is what the operator last saw of a control plane.
type RevisionStatus struct {
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// State is Healthy, or the reason of the first condition that is not true.
	// +optional
	State string `json:"state,omitempty"`
	// IstioVersion is the version of Istio's API that runs.
	// +optional
	IstioVersion string `json:"istioVersion,omitempty"`
	// HeddleVersion is the build that serves it.
	// +optional
	HeddleVersion string `json:"heddleVersion,omitempty"`
}

// IstioRevisionList is a list of revisions.
//
// +kubebuilder:object:root=true
type IstioRevisionList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []IstioRevision `json:"items"`
}

// IstioRevisionTag is another name for a revision; the tag named default also answers istio-injection=enabled.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=istio-io,shortName=istiorevtag
// +kubebuilder:printcolumn:name="Status",type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name="In use",type=string,JSONPath=`.status.conditions[?(@.type=="InUse")].status`
// +kubebuilder:printcolumn:name="Revision",type=string,JSONPath=`.status.istioRevision`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type IstioRevisionTag struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec IstioRevisionTagSpec `json:"spec"`
	// +optional
	Status IstioRevisionTagStatus `json:"status,omitempty"`
}

// IstioRevisionTagSpec names what the tag stands for.
type IstioRevisionTagSpec struct {
	TargetRef TargetRef `json:"targetRef"`
}

// TargetRef names an Istio, whose active revision the tag follows, or one IstioRevision.
type TargetRef struct {
	// +kubebuilder:validation:Enum=Istio;IstioRevision
	Kind string `json:"kind"`
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
}

// IstioRevisionTagStatus is what the operator last saw. Both names are empty while the target is unresolved.
type IstioRevisionTagStatus struct {
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// +optional
	State string `json:"state,omitempty"`
	// IstiodNamespace is the system namespace of the target.
	// +optional
	IstiodNamespace string `json:"istiodNamespace"`
	// IstioRevision is the revision that the tag stands for.
	// +optional
	IstioRevision string `json:"istioRevision"`
}

// IstioRevisionTagList is a list of tags.
//
// +kubebuilder:object:root=true
type IstioRevisionTagList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []IstioRevisionTag `json:"items"`
}
