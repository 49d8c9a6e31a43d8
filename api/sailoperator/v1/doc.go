// Package v1 holds the kinds of the group sailoperator.io that Heddle serves: a mesh, its revisions and its tags.
//
// +kubebuilder:object:generate=true
// +groupName=sailoperator.io
package v1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the group and version of every kind in this package.
var GroupVersion = schema.GroupVersion{Group: "sailoperator.io", Version: "v1"}

// AddToScheme registers the kinds of this package.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion,
		&Istio{}, &IstioList{}, &IstioRevision{}, &IstioRevisionList{}, &IstioRevisionTag{}, &IstioRevisionTagList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
