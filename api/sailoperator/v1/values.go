package v1

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// Values is a tree of chart values, kept as it was written: what Heddle does not act on is reported, never dropped.
// The API server knows the values that the documents use, and keeps all others at every level, so that admission sees a typo
// and refuses it: pruned, it would be gone, and a selector with it. Programs read Raw.
//
// +kubebuilder:pruning:PreserveUnknownFields
// +kubebuilder:object:generate=false
type Values struct {
	valueSchema `json:",inline"`

	// Raw is a JSON object; nil is an empty one.
	Raw json.RawMessage `json:"-"`
}

// valueSchema and what it consists of only shape the CRD. The API server drops null, as Helm does.
type valueSchema struct {
	// +optional
	Global globalSchema `json:"global,omitempty"`
	// +optional
	MeshConfig *meshConfigSchema `json:"meshConfig,omitempty"`
	// +optional
	Pilot *pilotSchema `json:"pilot,omitempty"`
	// +kubebuilder:validation:Enum="";default;demo;empty;openshift;stable
	// +optional
	Profile string `json:"profile,omitempty"`
	// +optional
	Revision string `json:"revision,omitempty"`
	// +optional
	SidecarInjectorWebhook *injectorSchema `json:"sidecarInjectorWebhook,omitempty"`
}

// +kubebuilder:pruning:PreserveUnknownFields
type globalSchema struct {
	// +optional
	ConfigValidation *bool `json:"configValidation,omitempty"`
	// +optional
	IstioNamespace string `json:"istioNamespace,omitempty"`
	// +optional
	MeshID string `json:"meshID,omitempty"`
	// +optional
	MultiCluster *multiClusterSchema `json:"multiCluster,omitempty"`
	// +optional
	Network string `json:"network,omitempty"`
	// +optional
	Proxy *proxySchema `json:"proxy,omitempty"`
}

// +kubebuilder:pruning:PreserveUnknownFields
type multiClusterSchema struct {
	// +optional
	ClusterName string `json:"clusterName,omitempty"`
}

// +kubebuilder:pruning:PreserveUnknownFields
type proxySchema struct {
	// AutoInject says whether pods of selected namespaces are injected that do not ask for it.
	// +kubebuilder:validation:Enum=enabled;disabled
	// +optional
	AutoInject string `json:"autoInject,omitempty"`
}

// +kubebuilder:pruning:PreserveUnknownFields
type meshConfigSchema struct {
	// DiscoverySelectors say which namespaces the mesh serves: those that one of them matches. A mesh without any serves the
	// whole cluster. Each is two entries in webhook configurations, of which an object of the API server holds no more.
	// +kubebuilder:validation:MaxItems=1000
	// +optional
	DiscoverySelectors []selectorSchema `json:"discoverySelectors,omitempty"`
	// +optional
	TrustDomain string `json:"trustDomain,omitempty"`
}

// +kubebuilder:pruning:PreserveUnknownFields
// +kubebuilder:validation:XValidation:rule="(has(self.matchLabels) && size(self.matchLabels) > 0) || (has(self.matchExpressions) && size(self.matchExpressions) > 0)",message="a selector without requirements would select every namespace: give it matchLabels or matchExpressions, or leave discoverySelectors out for a mesh of the whole cluster"
type selectorSchema struct {
	// +optional
	MatchLabels map[string]string `json:"matchLabels,omitempty"`
	// +optional
	MatchExpressions []requirementSchema `json:"matchExpressions,omitempty"`
}

// +kubebuilder:pruning:PreserveUnknownFields
type requirementSchema struct {
	Key string `json:"key"`
	// +kubebuilder:validation:Enum=In;NotIn;Exists;DoesNotExist
	Operator string `json:"operator"`
	// +optional
	Values []string `json:"values,omitempty"`
}

// +kubebuilder:pruning:PreserveUnknownFields
type pilotSchema struct {
	// +optional
	AutoscaleEnabled *bool `json:"autoscaleEnabled,omitempty"`
	// +kubebuilder:validation:Minimum=1
	// +optional
	AutoscaleMax *int32 `json:"autoscaleMax,omitempty"`
	// +kubebuilder:validation:Minimum=1
	// +optional
	AutoscaleMin *int32 `json:"autoscaleMin,omitempty"`
	// +optional
	CPU *utilizationSchema `json:"cpu,omitempty"`
	// Env are variables of the control plane's container: text, numbers, true or false.
	// +optional
	Env *envSchema `json:"env,omitempty"`
	// +optional
	Memory *utilizationSchema `json:"memory,omitempty"`
	// +kubebuilder:validation:Minimum=0
	// +optional
	ReplicaCount *int32 `json:"replicaCount,omitempty"`
}

// +kubebuilder:pruning:PreserveUnknownFields
type envSchema struct{}

// +kubebuilder:pruning:PreserveUnknownFields
type utilizationSchema struct {
	// +kubebuilder:validation:Minimum=0
	// +optional
	TargetAverageUtilization *int32 `json:"targetAverageUtilization,omitempty"`
}

// +kubebuilder:pruning:PreserveUnknownFields
type injectorSchema struct {
	// +optional
	EnableNamespacesByDefault *bool `json:"enableNamespacesByDefault,omitempty"`
}

// MarshalJSON returns Raw.
func (v Values) MarshalJSON() ([]byte, error) {
	if len(v.Raw) == 0 {
		return []byte("{}"), nil
	}
	return v.Raw, nil
}

// UnmarshalJSON keeps a copy of b, which must be an object or null.
func (v *Values) UnmarshalJSON(b []byte) error {
	b = bytes.TrimSpace(b)
	switch {
	case bytes.Equal(b, []byte("null")):
		v.Raw = nil
	case len(b) > 0 && b[0] == '{':
		v.Raw = bytes.Clone(b)
	default:
		return fmt.Errorf("values must be an object, not %.20q", b)
	}
	return nil
}

// DeepCopyInto copies v to out.
func (v *Values) DeepCopyInto(out *Values) { *out = Values{Raw: bytes.Clone(v.Raw)} }

// DeepCopy returns a copy of v; nil of nil.
func (v *Values) DeepCopy() *Values {
	if v == nil {
		return nil
	}
	out := new(Values)
	v.DeepCopyInto(out)
	return out
}
