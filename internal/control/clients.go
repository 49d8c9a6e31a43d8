package control

import (
	"context"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/ingest"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/resolve"
	"github.com/heddle-mesh/heddle/internal/xds"
)

// client is what the plane remembers of an admitted proxy. The node that it was made of may be large.
type client struct {
	caller    identity.Caller
	workload  mesh.WorkloadKey
	proxyType string // sidecar, router, …
	version   string // of its agent
	proxy     bool   // not a tool that speaks the protocol
}

func newClient(caller identity.Caller, n xds.Node, workload mesh.WorkloadKey) *client {
	c := &client{caller: caller, workload: workload, version: n.Meta("ISTIO_VERSION"), proxy: n.HasMeta("PROXY_CONFIG")}
	c.version = strings.Clone(c.version[:min(len(c.version), maxVersion)]) // not the rest of it too
	kind, _, _ := strings.Cut(n.ID(), "~")
	c.proxyType = strings.Clone(kind)
	return c
}

const (
	maxVersion = 64       // bytes of ISTIO_VERSION that are kept
	maxLabels  = 64 << 10 // bytes of LABELS that are read, and of POD_PORTS
)

// name is what istioctl calls the proxy: POD.NAMESPACE, of which each cluster may have one.
func (c *client) name() string { return c.workload.Name + "." + c.workload.Namespace }

// session names the streams of a proxy, by its cluster too.
func session(k mesh.WorkloadKey) string {
	return string(k.Cluster) + "/" + k.Name + "." + k.Namespace // no name of a pod has a slash
}

func sessions(ks []mesh.WorkloadKey) []string {
	var out []string
	for _, k := range ks {
		out = append(out, session(k))
	}
	return out
}

// clients admits proxies to xDS and keeps each in the groups that it should hold.
type clients struct {
	rejected func(ctx context.Context, r rejection) // told of each response that a proxy would not take
	gate     *identity.Gate
	pipeline *Pipeline
	debug    *debug
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
	said := clientOf(caller, h.Node)
	c := newClient(caller, h.Node, said.Workload)
	s.pipeline.Connect(ctx, said)
	return &xds.Session{
		ID: session(c.workload), Meta: c, Ask: ask,
		Groups:  func() ([]xds.Group, xds.Group) { return s.pipeline.Groups(c.workload) },
		Confirm: func() error { return s.confirm(caller) },
		OnNack:  s.onNack(ctx, c),
	}, nil
}

// onNack is xds.Session.OnNack of one stream. A proxy that asks again for what it rejects must not write our log.
func (s *clients) onNack(ctx context.Context, c *client) func(typeURL, version, detail string, origins []string) {
	var told pace // by type
	return func(typeURL, version, detail string, origins []string) {
		untold, tell := told.allow(typeURL, time.Now())
		s.rejected(ctx, rejection{
			client: c.name(), cluster: c.workload.Cluster, typeURL: typeURL, version: version, detail: detail, origins: origins, quiet: !tell, untold: untold,
		})
	}
}

// confirm asks again what may have ended since the checks: who closes streams then did not find this one.
func (s *clients) confirm(c identity.Caller) error {
	if !s.gate.Members.Member(c.Cluster, c.Identity.Namespace) {
		return errLeft(c.Identity.Namespace, s.pipeline.Mesh())
	}
	if c.Pod != "" && s.gate.Pods.Gone(c.Cluster, c.Identity.Namespace, c.Pod, c.PodUID) {
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

// clientOf is what a proxy says of itself, and translation may know. The Pod says it better; labels, ports, addresses and the
// machine of the node's metadata serve only until the plane's watch has delivered the Pod.
func clientOf(caller identity.Caller, n xds.Node) resolve.Client {
	kind, rest, _ := strings.Cut(n.ID(), "~")
	first, _, _ := strings.Cut(rest, "~")
	said := resolve.Client{
		Workload:  mesh.WorkloadKey{Cluster: caller.Cluster, Kind: mesh.KindPod, Namespace: caller.Identity.Namespace, Name: caller.Pod},
		Kind:      resolve.Kind(strings.Clone(kind)),
		Labels:    n.MetaStrings("LABELS", maxLabels),
		Ports:     ingest.PodPorts(n.MetaText("POD_PORTS", maxLabels)),
		Addresses: ingest.Addresses(n.Meta("INSTANCE_IPS") + "," + first),
	}
	said.Network = strings.Clone(n.Meta("NETWORK"))
	if name := n.Meta("NODE_NAME"); name != "" {
		said.Node = mesh.NodeKey{Cluster: caller.Cluster, Name: name}
	}
	return said
}

// short returns a type URL's last part: Cluster.
func short(typeURL string) string { return typeURL[strings.LastIndexByte(typeURL, '.')+1:] }
