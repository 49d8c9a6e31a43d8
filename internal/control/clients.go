package control

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/ingest"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/resolve"
	"github.com/heddle-mesh/heddle/internal/xds"
)

// goneFor is how long a deleted pod is remembered: its token passes a TokenReview for up to 60 s after deletionTimestamp,
// and 10 s more from the API server's cache.
const goneFor = 70 * time.Second

// client is what the plane remembers of an admitted proxy. The node that it was made of may be large.
type client struct {
	caller    identity.Caller
	scope     resolve.Scope
	proxyType string // sidecar, router, …
	version   string // of its agent
	proxy     bool   // not a tool that speaks the protocol
}

func newClient(caller identity.Caller, n xds.Node, scope resolve.Scope) *client {
	c := &client{caller: caller, scope: scope, version: n.Meta("ISTIO_VERSION"), proxy: n.HasMeta("PROXY_CONFIG")}
	c.version = c.version[:min(len(c.version), maxVersion)]
	c.proxyType, _, _ = strings.Cut(n.ID(), "~")
	return c
}

const (
	maxVersion = 64       // bytes of ISTIO_VERSION that are kept
	maxLabels  = 64 << 10 // bytes of LABELS that are read
)

// clients admits proxies to xDS and keeps each in the groups that it should hold.
type clients struct {
	rejected func(ctx context.Context, r rejection) // told of each response that a proxy would not take
	gate     *identity.Gate
	pipeline *Pipeline
	debug    *debug

	mu      sync.Mutex // guards streams
	streams map[mesh.WorkloadKey]int
}

// admit is xds.Options.Admit.
func (s *clients) admit(ctx context.Context) (xds.Admission, error) {
	call, err := s.gate.Knock(ctx, "xds", identity.RequestOf(ctx), identity.XDSChecks())
	if err != nil {
		return xds.Admission{}, err
	}
	return xds.Admission{ID: call.Caller(), Enter: func(h xds.Hello) (*xds.Session, error) { return s.enter(ctx, call, h) }}, nil
}

func (s *clients) enter(ctx context.Context, call *identity.Call, h xds.Hello) (*xds.Session, error) {
	caller, err := call.Enter(ctx, func(r *identity.Request) {
		r.Type = h.Type
		r.Node = identity.Node{
			ID:        h.Node.ID(),
			Namespace: h.Node.Meta("NAMESPACE"), ServiceAccount: h.Node.Meta("SERVICE_ACCOUNT"),
			Cluster: h.Node.Meta("CLUSTER_ID"),
		}
	})
	if err != nil {
		return nil, err
	}
	ask := func(ctx context.Context, typeURL string, names []string) ([]xds.Resource, error) {
		if err := s.confirm(caller); err != nil {
			return nil, err
		}
		if !caller.MayAsk(typeURL, s.gate.RootNamespace) {
			return nil, status.Errorf(codes.PermissionDenied, "type %s is not for this caller", typeURL)
		}
		return s.debug.answer(typeURL, names)
	}
	if caller.Debug {
		return &xds.Session{ID: "debug/" + call.Peer, Meta: &client{caller: caller}, Ask: ask}, nil
	}
	c := newClient(caller, h.Node, s.scope(caller, h.Node))
	s.hold(ctx, c.scope.Workload)
	id := call.Node.Name()
	return &xds.Session{
		ID: id, Meta: c, Ask: ask,
		Groups:  func() ([]xds.Group, xds.Group) { return s.pipeline.Groups(c.scope) },
		Confirm: func() error { return s.confirm(caller) },
		OnNack: func(typeURL, version, detail string, origins []string) {
			s.rejected(ctx, rejection{client: id, typeURL: typeURL, version: version, detail: detail, origins: origins})
		},
	}, nil
}

// confirm asks again what may have ended since the checks: who closes streams then did not find this one.
func (s *clients) confirm(c identity.Caller) error {
	if !s.gate.Members.Member(c.Cluster, c.Identity.Namespace) {
		return errLeft(c.Identity.Namespace, s.pipeline.Mesh())
	}
	if p, known := s.gate.Pods.Pod(c.Cluster, c.Identity.Namespace, c.Pod); known && (p.Deleted || p.UID != c.PodUID) {
		return errDeleted
	}
	return nil
}

// errDeleted is what a stream of a deleted pod ends with.
var errDeleted = status.Error(codes.Unauthenticated, "the pod is deleted")

// errLeft is what a stream of a namespace ends with that has left the mesh.
func errLeft(namespace string, id mesh.ID) error {
	return status.Errorf(codes.PermissionDenied, "namespace %s has left mesh %s; restart the pod", namespace, id)
}

// hold keeps what a client says of itself until the last of its streams ends. The pod may never be seen: a stream whose
// groups were taken from a claim that another one's end removed is moved, and claims anew.
func (s *clients) hold(ctx context.Context, k mesh.WorkloadKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams == nil {
		s.streams = map[mesh.WorkloadKey]int{}
	}
	s.streams[k]++
	context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.streams[k]--; s.streams[k] == 0 {
			delete(s.streams, k)
			s.pipeline.claims.Delete(k)
		}
	})
}

// scope is what translation may know of a proxy. The Pod says it; labels and ports of the node's metadata serve inbound
// matching only until the plane's watch has delivered the Pod.
func (s *clients) scope(caller identity.Caller, n xds.Node) resolve.Scope {
	return resolve.Scope{
		Mesh:     s.pipeline.Mesh(),
		Workload: mesh.WorkloadKey{Cluster: caller.Cluster, Kind: mesh.KindPod, Namespace: caller.Identity.Namespace, Name: caller.Pod},
		Labels:   n.MetaStrings("LABELS", maxLabels),
		Ports:    ingest.PodPorts(n.Meta("POD_PORTS")),
	}
}

// gone remembers pods that were deleted, and finds those that are there; it implements identity.Pods.
type gone struct {
	workloads func(mesh.WorkloadKey) (mesh.Workload, bool)
	now       func() time.Time

	mu   sync.Mutex // guards pods and old
	pods map[mesh.WorkloadKey]deletion
	old  []tombstone // in the order of deletion
}

type deletion struct {
	uid string
	at  time.Time
}

type tombstone struct {
	pod mesh.WorkloadKey
	at  time.Time
}

// Pod implements identity.Pods.
func (g *gone) Pod(cluster mesh.ClusterID, namespace, name string) (identity.Pod, bool) {
	k := mesh.WorkloadKey{Cluster: cluster, Kind: mesh.KindPod, Namespace: namespace, Name: name}
	if w, ok := g.workloads(k); ok {
		return identity.Pod{UID: w.UID, ServiceAccount: w.Identity.ServiceAccount, ProxyType: "sidecar"}, true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	d, ok := g.pods[k]
	if !ok || g.now().Sub(d.at) > goneFor {
		return identity.Pod{}, false
	}
	return identity.Pod{UID: d.uid, Deleted: true}, true
}

func newGone(workloads func(mesh.WorkloadKey) (mesh.Workload, bool), now func() time.Time) *gone {
	return &gone{workloads: workloads, now: now, pods: map[mesh.WorkloadKey]deletion{}}
}

// record notes the pods that a round took away and returns the UIDs of those. Pods of a namespace that has left the mesh
// are not deleted, they are only out of sight; they are welcome when it comes back.
func (g *gone) record(changes []graph.Change[mesh.WorkloadKey, mesh.Workload], served identity.Members) map[string]bool {
	now := g.now()
	var uids map[string]bool
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range changes {
		if !c.Had || c.Has && c.New.UID == c.Old.UID || !served.Member(c.Key.Cluster, c.Key.Namespace) {
			continue
		}
		if uids == nil {
			uids = map[string]bool{}
		}
		uids[c.Old.UID] = true
		g.pods[c.Key] = deletion{c.Old.UID, now}
		g.old = append(g.old, tombstone{c.Key, now})
	}
	fresh := slices.IndexFunc(g.old, func(t tombstone) bool { return now.Sub(t.at) <= goneFor })
	if fresh < 0 {
		fresh = len(g.old)
	}
	for _, t := range g.old[:fresh] {
		if g.pods[t.pod].at.Equal(t.at) { // else another pod of that name was deleted later
			delete(g.pods, t.pod)
		}
	}
	g.old = slices.Delete(g.old, 0, fresh)
	return uids
}

// short returns a type URL's last part: Cluster.
func short(typeURL string) string { return typeURL[strings.LastIndexByte(typeURL, '.')+1:] }
