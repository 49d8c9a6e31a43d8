package mesh

import (
	"cmp"
	"strings"
)

// KindPod is the Kind of workloads that are pods.
const KindPod = "Pod"

// WorkloadKey names a workload. An object made again under the same name has the same key and another UID.
type WorkloadKey struct {
	Cluster   ClusterID
	Kind      string
	Namespace string
	Name      string
}

// Locality says where a workload runs, from the widest to the narrowest; unknown parts are empty.
type Locality struct {
	Region, Zone, SubZone string
}

// Compare orders localities by region, zone and sub-zone.
func (l Locality) Compare(o Locality) int {
	return cmp.Or(strings.Compare(l.Region, o.Region), strings.Compare(l.Zone, o.Zone), strings.Compare(l.SubZone, o.SubZone))
}

// Workload is something that runs: a pod. Whether it is ready its endpoints say; that it ends, it says first itself.
type Workload struct {
	Key         WorkloadKey
	UID         string
	Addresses   []string
	Network     string // in which others reach its addresses; empty: they do from everywhere
	HostNetwork bool   // its addresses are the node's and name nobody
	Identity    Identity
	Labels      map[string]string
	Locality    Locality
	Node        NodeKey           // on which it runs
	TLS         bool              // a proxy in front of it accepts mutual TLS of the mesh
	Ending      bool              // it is told to end, as its applications are by now
	Owner       string            // the Deployment, StatefulSet, Job … that made it, or its own name
	App         string            // canonical service
	Revision    string            // canonical revision
	Ports       map[string]uint32 // container ports by name
}

// EndpointKey names an address that serves a port of a service in a cluster.
type EndpointKey struct {
	Service ServiceKey
	Cluster ClusterID
	Port    string // name of the service's port
	Address string
	Target  uint32
}

// Compare orders keys by service, port, address, target and cluster.
func (k EndpointKey) Compare(o EndpointKey) int {
	return cmp.Or(k.Service.Compare(o.Service), cmp.Compare(k.Port, o.Port), cmp.Compare(k.Address, o.Address), cmp.Compare(k.Target, o.Target),
		cmp.Compare(k.Cluster, o.Cluster))
}

// Address is an address within a cluster: in another it may be another's.
type Address struct {
	Cluster ClusterID
	IP      string
}

// Compare orders addresses by cluster.
func (a Address) Compare(o Address) int {
	return cmp.Or(cmp.Compare(a.Cluster, o.Cluster), cmp.Compare(a.IP, o.IP))
}

// Endpoint is one address that serves a port of a service.
type Endpoint struct {
	Key      EndpointKey
	Workload WorkloadKey // whose address it is; zero if nobody's that the mesh knows
	Ready    bool        // takes new connections; others are kept here, and dropped where they are sent
	Zone     string      // of an address that belongs to no known workload
	Node     NodeKey     // on which it is; zero if that is not said
}

// ServicePort is a port of a service by its name, which finds its endpoints: all, or those on a node.
type ServicePort struct {
	Service ServiceKey
	Port    string
	Node    NodeKey
}

// Phase is how far a namespace has come into the mesh.
type Phase string

// Served is the phase in which a namespace's objects appear in what proxies get. Before it the mesh's root may not be there,
// after it another mesh may be.
const Served Phase = "Member"

// NodeKey names a node of a cluster; the zero key names none.
type NodeKey struct {
	Cluster ClusterID
	Name    string
}

// Compare orders keys by name and cluster.
func (k NodeKey) Compare(o NodeKey) int {
	return cmp.Or(cmp.Compare(k.Name, o.Name), cmp.Compare(k.Cluster, o.Cluster))
}

// NamespaceKey names a namespace of a cluster.
type NamespaceKey struct {
	Cluster ClusterID
	Name    string
}

// Membership says that a namespace of one cluster belongs to the mesh.
type Membership struct {
	Namespace   string
	UID         string
	Phase       Phase
	Labels      map[string]string
	Annotations map[string]string
}
