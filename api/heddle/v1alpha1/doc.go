// Package v1alpha1 holds the Heddle kinds of the group heddle.dev.
//
// +kubebuilder:object:generate=true
// +groupName=heddle.dev
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the group and version of every kind in this package.
var GroupVersion = schema.GroupVersion{Group: "heddle.dev", Version: "v1alpha1"}

// AddToScheme registers the kinds of this package.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &Membership{}, &MembershipList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
