package mesh

import (
	"cmp"
	"slices"
)

// ObjectKey names an object of one kind.
type ObjectKey struct {
	Cluster   ClusterID
	Namespace string // empty for a cluster-scoped object
	Name      string
}

// Compare orders keys by namespace, name and cluster.
func (k ObjectKey) Compare(o ObjectKey) int {
	return cmp.Or(cmp.Compare(k.Namespace, o.Namespace), cmp.Compare(k.Name, o.Name), cmp.Compare(k.Cluster, o.Cluster))
}

// Object is what a record remembers of the object that it was made of.
type Object struct {
	Ref     Ref
	Created int64 // seconds since 1970; of two that claim one thing the older wins
}

// Compare puts the older object first, and of equally old ones the one whose reference sorts first.
func (o Object) Compare(p Object) int {
	if c := cmp.Compare(o.Created, p.Created); c != 0 {
		return c
	}
	return o.Ref.Compare(p.Ref)
}

// ServiceKey names a service. One host may live in several namespaces; clusters are joined.
type ServiceKey struct {
	Mesh      ID
	Namespace string
	Host      string
}

// Compare orders keys by host, namespace and mesh.
func (k ServiceKey) Compare(o ServiceKey) int {
	return cmp.Or(cmp.Compare(k.Host, o.Host), cmp.Compare(k.Namespace, o.Namespace), cmp.Compare(k.Mesh, o.Mesh))
}

// Protocol is what a port carries, as far as the proxies' configuration depends on it.
type Protocol uint8

const (
	Auto  Protocol = iota // not said: found out for each connection
	TCP                   // opaque bytes, TLS that the application speaks itself included
	HTTP                  // HTTP/1.1
	HTTP2                 // HTTP/2 without TLS, gRPC
)

// IsHTTP reports whether requests are seen without looking at the connection first.
func (p Protocol) IsHTTP() bool { return p == HTTP || p == HTTP2 }

// ProxyPort reports whether a proxy itself is bound to a port on every address: for redirected connections out and in,
// for readiness and for metrics. Nobody else's listener may be there, nor a workload.
func ProxyPort(port uint32) bool {
	return port == 15001 || port == 15006 || port == 15021 || port == 15090
}

// Port is one TCP port of a service.
type Port struct {
	Number     uint32
	Name       string // as EndpointSlices refer to it
	Protocol   Protocol
	Target     uint32 // 0 if TargetName says it
	TargetName string // a port of the workload's containers
}

// Visibility says to which namespaces something is exported.
type Visibility struct {
	All        bool
	Namespaces []string // sorted
}

// Sees reports whether clients in the namespace see it. The empty namespace stands for one that nothing names.
func (v Visibility) Sees(namespace string) bool {
	if v.All {
		return true
	}
	_, found := slices.BinarySearch(v.Namespaces, namespace)
	return found
}

// Service is a name that clients call.
type Service struct {
	Object
	Key       ServiceKey
	Name      string   // the first label of a Kubernetes host
	Addresses []string // virtual IPs, the primary one first
	Headless  bool     // clients pick a workload themselves
	Unready   bool     // its endpoints take connections whether they are ready or not
	Local     bool     // clients use endpoints on their own node, or none
	Alias     string   // host that this one is another name of; such a service has no ports
	Ports     []Port
	Selector  map[string]string // which workloads of its namespace it is made of; nil: none
	Export    Visibility
	Accounts  []string // service accounts, as SPIFFE URIs, that serve it beside those of its endpoints
}
