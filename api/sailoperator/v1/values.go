package v1

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// Values is a tree of chart values, kept as it was written: what Heddle does not act on is reported, never dropped.
// The API server knows the fields that its own rules and columns read; programs read Raw.
//
// +kubebuilder:pruning:PreserveUnknownFields
// +kubebuilder:object:generate=false
type Values struct {
	valueSchema `json:",inline"`

	// Raw is a JSON object; nil is an empty one.
	Raw json.RawMessage `json:"-"`
}

// valueSchema only shapes the CRD.
type valueSchema struct {
	// +optional
	Global globalSchema `json:"global,omitempty"`
	// +optional
	Profile string `json:"profile,omitempty"`
	// +optional
	Revision string `json:"revision,omitempty"`
}

// +kubebuilder:pruning:PreserveUnknownFields
type globalSchema struct {
	// +optional
	IstioNamespace string `json:"istioNamespace,omitempty"`
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
