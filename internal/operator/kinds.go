package operator

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// istioKind is a kind of Istio's API groups.
type istioKind struct {
	Group, Version, Kind, Resource string
}

// istioKinds are all kinds of Istio's API groups, sorted by group and kind.
func istioKinds() []istioKind {
	const extensions, networking, security = "extensions.istio.io", "networking.istio.io", "security.istio.io"
	return []istioKind{
		{extensions, "v1alpha1", "TrafficExtension", "trafficextensions"},
		{extensions, "v1alpha1", "WasmPlugin", "wasmplugins"},
		{networking, "v1", "DestinationRule", "destinationrules"},
		{networking, "v1alpha3", "EnvoyFilter", "envoyfilters"},
		{networking, "v1", "Gateway", "gateways"},
		{networking, "v1beta1", "ProxyConfig", "proxyconfigs"},
		{networking, "v1", "ServiceEntry", "serviceentries"},
		{networking, "v1", "Sidecar", "sidecars"},
		{networking, "v1", "VirtualService", "virtualservices"},
		{networking, "v1", "WorkloadEntry", "workloadentries"},
		{networking, "v1", "WorkloadGroup", "workloadgroups"},
		{security, "v1", "AuthorizationPolicy", "authorizationpolicies"},
		{security, "v1", "PeerAuthentication", "peerauthentications"},
		{security, "v1", "RequestAuthentication", "requestauthentications"},
		{"telemetry.istio.io", "v1", "Telemetry", "telemetries"},
	}
}

// optional reports whether control planes watch the kind only in namespaces that have an object of it. What makes a
// namespace safer never waits for the operator to notice it.
func optional(k istioKind) bool {
	return k.Resource != "peerauthentications" && k.Resource != "authorizationpolicies"
}

// name is how Membership.spec.kinds spells the kind.
func (k istioKind) name() string { return k.Resource + "." + k.Group }

// metadata is an empty object of the kind, of which only metadata is read.
func (k istioKind) metadata() *metav1.PartialObjectMetadata {
	return metadataOf(schema.GroupVersionKind{Group: k.Group, Version: k.Version, Kind: k.Kind})
}

func metadataOf(gvk schema.GroupVersionKind) *metav1.PartialObjectMetadata {
	m := &metav1.PartialObjectMetadata{}
	m.SetGroupVersionKind(gvk)
	return m
}

func metadataListOf(gvk schema.GroupVersionKind) *metav1.PartialObjectMetadataList {
	l := &metav1.PartialObjectMetadataList{}
	gvk.Kind += "List"
	l.SetGroupVersionKind(gvk)
	return l
}
