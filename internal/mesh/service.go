package mesh

import (
	"cmp"
	"slices"
	"strings"
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

// Service is a name that clients call, the same in every cluster that has an object of it. Join makes one of several.
type Service struct {
	Object   // the oldest
	Key      ServiceKey
	Name     string // the first label of a Kubernetes host
	Headless bool   // clients pick a workload themselves
	Unready  bool   // its endpoints take connections whether they are ready or not
	Local    bool   // clients use endpoints on their own node, or none
	Alias    string // host that this one is another name of; such a service has no ports
	Ports    []Port
	Export   Visibility
	Accounts []string        // service accounts, as SPIFFE URIs, that serve it beside those of its endpoints
	Records  []ServiceRecord // one of each cluster that has it, in order of clusters
}

// ServiceRecord is what holds for a service in one cluster only: who lives in another knows nothing of it.
type ServiceRecord struct {
	Object
	Addresses []string          // virtual IPs, the primary one first
	Ports     []Port            // as this cluster's workloads serve them
	Selector  map[string]string // which workloads of its namespace it is made of; nil: none
	Differs   string            // the fields of which the service says what an older object in another cluster does
}

// In returns what a service is in a cluster, and false if it is not there.
func (s Service) In(c ClusterID) (ServiceRecord, bool) {
	i, found := slices.BinarySearchFunc(s.Records, c, func(r ServiceRecord, c ClusterID) int { return cmp.Compare(r.Ref.Cluster, c) })
	if !found {
		return ServiceRecord{}, false
	}
	return s.Records[i], true
}

// Join makes one service of what the objects of its name say in one cluster each: what they say differently is as the oldest one
// has it; the accounts are those of all, as are their records. There must be one at least.
func Join(objects []Service) Service {
	if len(objects) == 1 {
		return objects[0]
	}
	out := slices.MinFunc(objects, func(a, b Service) int { return a.Compare(b.Object) })
	out.Accounts, out.Records = nil, nil
	for _, o := range objects {
		out.Accounts = append(out.Accounts, o.Accounts...)
		for _, r := range o.Records {
			r.Differs = strings.Join(o.differs(out), ", ")
			out.Records = append(out.Records, r)
		}
	}
	slices.Sort(out.Accounts)
	out.Accounts = slices.Compact(out.Accounts)
	slices.SortFunc(out.Records, func(a, b ServiceRecord) int { return cmp.Compare(a.Ref.Cluster, b.Ref.Cluster) })
	return out
}

// differs returns what two services say differently that must be one. Where a port leads to is each cluster's own affair.
func (s Service) differs(o Service) (fields []string) {
	served := func(p, q Port) bool { return p.Number == q.Number && p.Name == q.Name && p.Protocol == q.Protocol }
	for _, f := range []struct {
		name string
		same bool
	}{
		{"ports", slices.EqualFunc(s.Ports, o.Ports, served)},
		{"clusterIP: None", s.Headless == o.Headless},
		{"publishNotReadyAddresses", s.Unready == o.Unready},
		{"internalTrafficPolicy", s.Local == o.Local},
		{"externalName", s.Alias == o.Alias},
		{"exportTo", s.Export.All == o.Export.All && slices.Equal(s.Export.Namespaces, o.Export.Namespaces)},
	} {
		if !f.same {
			fields = append(fields, f.name)
		}
	}
	return fields
}
