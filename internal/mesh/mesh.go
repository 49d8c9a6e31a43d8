// Package mesh is the vocabulary of Heddle: plain values that every stage of the control plane hands to the next.
// It knows no clock, lock, wire format or Kubernetes type, and imports nothing of ours.
package mesh

import (
	"strings"
)

// ID names a mesh: the name of its Istio object, unique in the cluster that defines it.
type ID string

// ClusterID names a Kubernetes cluster, as proxies carry it in CLUSTER_ID.
type ClusterID string

// Ref points at the object that a value came from. It is comparable and may be a map key.
type Ref struct {
	Cluster   ClusterID // empty where only one cluster is meant
	Kind      string    // as the API spells it: PeerAuthentication
	Namespace string    // empty for a cluster-scoped object
	Name      string
}

// String returns "Kind namespace/name", the form used in findings, statuses and logs.
func (r Ref) String() string {
	if r.Namespace == "" {
		return r.Kind + " " + r.Name
	}
	return r.Kind + " " + r.Namespace + "/" + r.Name
}

// Compare orders references by kind, namespace, name and cluster.
func (r Ref) Compare(o Ref) int {
	if c := strings.Compare(r.Kind, o.Kind); c != 0 {
		return c
	}
	if c := strings.Compare(r.Namespace, o.Namespace); c != 0 {
		return c
	}
	if c := strings.Compare(r.Name, o.Name); c != 0 {
		return c
	}
	return strings.Compare(string(r.Cluster), string(o.Cluster))
}

// Finding is a user's mistake, found by pure code and shown where the user looks: in a status, a condition, `heddle check`.
type Finding struct {
	About   Ref
	Reason  string // CamelCase, stable, usable as a condition reason
	Message string // one sentence that names object, field and what to do
}

// UnreadableAnnotation is on an object whose spec could not be read, and says why. The reader sets it, in what it hands on only.
const UnreadableAnnotation = "heddle.dev/unreadable"

// DefaultTrustDomain is that of a mesh whose configuration names none.
const DefaultTrustDomain = "cluster.local"

// SharedAudience is the audience of the tokens of stock agents and of istioctl, equal in every mesh.
const SharedAudience = "istio-ca"

// Audience is the audience of a mesh's own tokens; system is the namespace of its control plane.
func Audience(system string, id ID) string { return "heddle.dev/" + system + "/" + string(id) }

// Identity is who a workload is inside its mesh.
type Identity struct {
	TrustDomain    string
	Namespace      string
	ServiceAccount string
}

// String returns the SPIFFE URI, spiffe://<trust domain>/ns/<namespace>/sa/<service account>.
func (i Identity) String() string {
	return IdentitiesOf(i.TrustDomain, i.Namespace) + "sa/" + i.ServiceAccount
}

// IdentitiesOf returns what the SPIFFE URIs of all workloads of a namespace begin with, and no others.
func IdentitiesOf(trustDomain, namespace string) string {
	return "spiffe://" + trustDomain + "/ns/" + namespace + "/"
}
