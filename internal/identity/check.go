package identity

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// SharedAudience is the audience of stock agents and of istioctl, equal in every mesh.
const SharedAudience = "istio-ca"

const (
	accountPrefix = "system:serviceaccount:"
	accountGroup  = "system:serviceaccounts"
	debugType     = "istio.io/debug" // and what begins with it and a slash: what istioctl asks over xDS
	typePrefix    = "type.googleapis.com/"
)

// TokenChecker asks one API server whose a token is. It reports only audiences that are both the token's and asked for.
// A token that is not valid is an error, as is an API server that does not answer.
type TokenChecker interface {
	Review(ctx context.Context, token string, audiences []string) (Review, error)
}

// Review is what the API server says of a token.
type Review struct {
	Cluster   mesh.ClusterID // whose API server says so
	Audiences []string
	Username  string   // system:serviceaccount:NAMESPACE:NAME
	Groups    []string // holds system:serviceaccounts
	PodName   string   // empty if the token is not bound to a pod
	PodUID    string
}

// account splits the user name of a service account; empty strings for others.
func (r Review) account() (namespace, name string) {
	if rest, ok := strings.CutPrefix(r.Username, accountPrefix); ok {
		namespace, name, _ = strings.Cut(rest, ":")
	}
	return namespace, name
}

// Clusters finds the token checker of a cluster by the name that proxies carry.
type Clusters interface {
	Tokens(cluster mesh.ClusterID) (TokenChecker, bool)
}

// Members tells whether a namespace belongs to the mesh now.
type Members interface {
	Member(cluster mesh.ClusterID, namespace string) bool
}

// Pods finds what the plane's own watch knows of a pod.
type Pods interface {
	Pod(cluster mesh.ClusterID, namespace, name string) (Pod, bool)
}

// Pod is what the checks need of a pod.
type Pod struct {
	UID            string
	ServiceAccount string
	ProxyType      string // what it was made to run: sidecar, router, waypoint or ztunnel
	// Deleted is a pod seen gone. It is remembered for 70 s: a TokenReview accepts its token for up to 60 s after
	// deletionTimestamp and 10 s from its cache.
	Deleted bool
}

// Node is what an xDS client says of itself; nothing of it is believed before it is compared.
type Node struct {
	ID             string // type~ip~pod.namespace~domain
	Namespace      string // metadata NAMESPACE
	ServiceAccount string // metadata SERVICE_ACCOUNT, may be empty
	Cluster        string // metadata CLUSTER_ID, may be empty
}

// Type returns the first field of the id, and Name the third.
func (n Node) Type() string { t, _, _ := strings.Cut(n.ID, "~"); return t }

// Name returns the third field of the id, <pod>.<namespace>; empty if the id has not four fields.
func (n Node) Name() string {
	f := strings.Split(n.ID, "~")
	if len(f) != 4 {
		return ""
	}
	return f[2]
}

// Request is one call to be authenticated.
type Request struct {
	Token       string
	Cluster     mesh.ClusterID // of metadata clusterid; empty means the home cluster
	Type        string         // xDS: type URL of the first request
	Node        Node           // xDS
	Impersonate string         // CA: the identity asked for in place of the caller's own
	Peer        string         // address, for the log
}

// debug tells whether an xDS client asks for what istioctl asks.
func (r Request) debug() bool { return isDebug(r.Type) }

func isDebug(typeURL string) bool {
	return typeURL == debugType || strings.HasPrefix(typeURL, debugType+"/")
}

// RequestOf reads token, cluster and peer out of the metadata of a gRPC call.
func RequestOf(ctx context.Context) Request {
	md, _ := metadata.FromIncomingContext(ctx)
	r := Request{Peer: peerOf(ctx)}
	for _, v := range md.Get("authorization") {
		if scheme, token, ok := strings.Cut(v, " "); ok && strings.EqualFold(scheme, "Bearer") {
			r.Token = strings.TrimSpace(token)
			break
		}
	}
	if v := md.Get("clusterid"); len(v) > 0 {
		r.Cluster = mesh.ClusterID(v[0])
	}
	return r
}

// Caller is who a call comes from, proved.
type Caller struct {
	Identity mesh.Identity
	Cluster  mesh.ClusterID
	Pod      string // empty for a token that is not bound to a pod, as istioctl's
	PodUID   string
	Debug    bool // may ask for debug types alone
}

// MayAsk tells whether a caller whose stream was admitted may ask for a type on it.
func (c Caller) MayAsk(typeURL string, rootNamespace string) bool {
	if isDebug(typeURL) {
		return c.Identity.Namespace == rootNamespace
	}
	return !c.Debug
}

// Gate authenticates the callers of one plane. Its fields are set before use and not changed after.
type Gate struct {
	Audience      string // the mesh's own, heddle.dev/<system namespace>/<mesh name>
	AcceptShared  bool   // take SharedAudience for everything: the mesh serves stock agents
	RootNamespace string
	TrustDomain   string
	Home          mesh.ClusterID
	Clusters      Clusters
	Members       Members
	Pods          Pods
	// Refused is told of every refusal; the caller hears one opaque text. It must not block.
	Refused func(context.Context, Refusal)
}

// Refusal says why a call was refused, for log, metric and event.
type Refusal struct {
	Service   string // ca or xds
	Check     string // name of the check that refused
	Reason    string
	Peer      string
	Namespace string // as far as the token proved it
	Account   string
	Pod       string
}

// Call is a request on its way through the checks: it looks up each fact when the first check asks for it, so that who
// shows no token costs no TokenReview.
type Call struct {
	Request
	gate *Gate

	reviewed  bool
	review    Review
	reviewErr error
}

// Review returns what the API server says of the token, asked once.
func (c *Call) Review(ctx context.Context) (Review, error) {
	if !c.reviewed {
		c.reviewed = true
		tokens, ok := c.gate.Clusters.Tokens(c.cluster())
		if !ok {
			tokens, ok = c.gate.Clusters.Tokens(c.gate.Home)
		}
		if !ok {
			c.reviewErr = errors.New("no API server is there to check tokens")
			return c.review, c.reviewErr
		}
		c.review, c.reviewErr = tokens.Review(ctx, c.Token, []string{c.gate.Audience, SharedAudience})
	}
	return c.review, c.reviewErr
}

// pod returns the caller's Pod as the plane's watch knows it.
func (c *Call) pod() (Pod, bool) {
	ns, _ := c.review.account()
	return c.gate.Pods.Pod(c.cluster(), ns, c.review.PodName)
}

func (c *Call) cluster() mesh.ClusterID {
	if c.Cluster == "" {
		return c.gate.Home
	}
	return c.Cluster
}

// Check is one reason to refuse a call. A list of checks is evaluated in order up to the first that refuses.
type Check struct {
	Name   string
	Code   codes.Code // what the xDS client is told
	Refuse func(ctx context.Context, c *Call) error
}

// authentication is what every caller passes: whose token is it, and may its holder speak to this mesh at all?
func authentication() []Check {
	return []Check{
		{"token-present", codes.Unauthenticated, tokenPresent},
		{"cluster-known", codes.Unauthenticated, clusterKnown},
		{"token-valid", codes.Unauthenticated, tokenValid},
		{"cluster-validated", codes.Unauthenticated, clusterValidated},
		{"audience", codes.Unauthenticated, audience},
		{"service-account", codes.Unauthenticated, serviceAccount},
		{"member", codes.PermissionDenied, member},
		{"pod-bound", codes.Unauthenticated, podBound},
		{"pod-uid", codes.Unauthenticated, podUID},
		{"pod-deleted", codes.Unauthenticated, podDeleted},
		{"pod-account", codes.PermissionDenied, podAccount},
	}
}

// CAChecks returns what a caller of the CA service passes, in order.
func CAChecks() []Check {
	return append(authentication(), Check{"impersonation", codes.Unauthenticated, impersonation})
}

// XDSChecks returns what an xDS client passes, in order, before its first request is answered.
func XDSChecks() []Check {
	return append(authentication(),
		Check{"type-served", codes.PermissionDenied, typeServed},
		Check{"debug-namespace", codes.PermissionDenied, debugNamespace},
		Check{"node-id", codes.PermissionDenied, nodeID},
		Check{"node-namespace", codes.PermissionDenied, nodeNamespace},
		Check{"node-account", codes.PermissionDenied, nodeAccount},
		Check{"node-cluster", codes.PermissionDenied, nodeCluster},
		Check{"node-type", codes.PermissionDenied, nodeType},
	)
}

// Admit authenticates an xDS client. The error is a gRPC status with an opaque text; Refused hears the reason.
func (g *Gate) Admit(ctx context.Context, r Request, checks []Check) (Caller, error) {
	caller, code := g.pass(ctx, "xds", r, checks)
	if code != codes.OK {
		return Caller{}, status.Error(code, opaque)
	}
	return caller, nil
}

// opaque is all that a refused caller is told; Istio's text.
const opaque = "request authenticate failure"

func (g *Gate) pass(ctx context.Context, service string, r Request, checks []Check) (Caller, codes.Code) {
	c := &Call{Request: r, gate: g}
	for _, check := range checks {
		if err := check.Refuse(ctx, c); err != nil {
			ns, account := c.review.account()
			if g.Refused != nil {
				g.Refused(ctx, Refusal{
					Service: service, Check: check.Name, Reason: err.Error(), Peer: r.Peer,
					Namespace: ns, Account: account, Pod: c.review.PodName,
				})
			}
			return Caller{}, check.Code
		}
	}
	ns, account := c.review.account()
	return Caller{
		Identity: mesh.Identity{TrustDomain: g.TrustDomain, Namespace: ns, ServiceAccount: account},
		Cluster:  c.cluster(), Pod: c.review.PodName, PodUID: c.review.PodUID,
		Debug: r.debug(),
	}, codes.OK
}

func tokenPresent(_ context.Context, c *Call) error {
	if c.Token == "" {
		return errors.New("no bearer token in metadata authorization")
	}
	return nil
}

func clusterKnown(_ context.Context, c *Call) error {
	if _, ok := c.gate.Clusters.Tokens(c.cluster()); !ok {
		return fmt.Errorf("cluster %q is unknown to this mesh, whose home cluster is %q", c.cluster(), c.gate.Home)
	}
	return nil
}

func tokenValid(ctx context.Context, c *Call) error {
	_, err := c.Review(ctx)
	return err
}

func clusterValidated(ctx context.Context, c *Call) error {
	if r, _ := c.Review(ctx); r.Cluster != c.cluster() {
		return fmt.Errorf("token was validated by cluster %q, the caller names %q", r.Cluster, c.cluster())
	}
	return nil
}

// audience stops replay of what another mesh or the API server was shown. Membership, checked after it in every case,
// stops enrolment.
func audience(ctx context.Context, c *Call) error {
	r, _ := c.Review(ctx)
	shared := slices.Contains(r.Audiences, SharedAudience) && (c.gate.AcceptShared || c.debug())
	if shared || slices.Contains(r.Audiences, c.gate.Audience) {
		return nil
	}
	return fmt.Errorf("token is for audiences %q, not for %q", r.Audiences, c.gate.Audience)
}

func serviceAccount(ctx context.Context, c *Call) error {
	r, _ := c.Review(ctx)
	if ns, name := r.account(); ns == "" || name == "" || !slices.Contains(r.Groups, accountGroup) {
		return fmt.Errorf("user %q of groups %q is not a service account", r.Username, r.Groups)
	}
	return nil
}

func member(ctx context.Context, c *Call) error {
	r, _ := c.Review(ctx)
	if ns, _ := r.account(); !c.gate.Members.Member(c.cluster(), ns) {
		return fmt.Errorf("namespace %s is not a member of this mesh", ns)
	}
	return nil
}

func podBound(ctx context.Context, c *Call) error {
	r, _ := c.Review(ctx)
	if (r.PodName == "" || r.PodUID == "") && !c.debug() {
		return errors.New("token is not bound to a pod")
	}
	return nil
}

func podUID(ctx context.Context, c *Call) error {
	r, _ := c.Review(ctx)
	if p, ok := c.pod(); ok && !c.debug() && p.UID != r.PodUID {
		return fmt.Errorf("token is of pod %s with UID %s, which is %s now", r.PodName, r.PodUID, p.UID)
	}
	return nil
}

func podDeleted(_ context.Context, c *Call) error {
	if p, ok := c.pod(); ok && p.Deleted {
		return fmt.Errorf("pod %s is deleted", c.review.PodName)
	}
	return nil
}

func podAccount(ctx context.Context, c *Call) error {
	r, _ := c.Review(ctx)
	_, account := r.account()
	if p, ok := c.pod(); ok && !c.debug() && p.ServiceAccount != account {
		return fmt.Errorf("token is of service account %s, pod %s runs as %s", account, r.PodName, p.ServiceAccount)
	}
	return nil
}

func impersonation(_ context.Context, c *Call) error {
	if c.Impersonate != "" {
		return fmt.Errorf("the caller asks for identity %q in place of its own; no node proxy is trusted to do so here", c.Impersonate)
	}
	return nil
}

// typeServed refuses the config-serving types of Istio's MCP form (group/version/kind).
func typeServed(_ context.Context, c *Call) error {
	if !c.debug() && !strings.HasPrefix(c.Type, typePrefix) {
		return fmt.Errorf("type %q is not served", c.Type)
	}
	return nil
}

func debugNamespace(ctx context.Context, c *Call) error {
	r, _ := c.Review(ctx)
	if ns, _ := r.account(); c.debug() && ns != c.gate.RootNamespace {
		return fmt.Errorf("type %s is for service accounts of namespace %s, the caller is of %s", c.Type, c.gate.RootNamespace, ns)
	}
	return nil
}

func nodeID(ctx context.Context, c *Call) error {
	r, _ := c.Review(ctx)
	ns, _ := r.account()
	if !c.debug() && c.Node.Name() != r.PodName+"."+ns {
		return fmt.Errorf("node id %q is not of pod %s.%s", c.Node.ID, r.PodName, ns)
	}
	return nil
}

func nodeNamespace(ctx context.Context, c *Call) error {
	r, _ := c.Review(ctx)
	if ns, _ := r.account(); !c.debug() && c.Node.Namespace != ns {
		return fmt.Errorf("node metadata NAMESPACE is %q, the token's is %s", c.Node.Namespace, ns)
	}
	return nil
}

func nodeAccount(ctx context.Context, c *Call) error {
	r, _ := c.Review(ctx)
	if _, account := r.account(); !c.debug() && c.Node.ServiceAccount != account {
		return fmt.Errorf("node metadata SERVICE_ACCOUNT is %q, the token's is %s", c.Node.ServiceAccount, account)
	}
	return nil
}

func nodeCluster(_ context.Context, c *Call) error {
	if !c.debug() && mesh.ClusterID(c.Node.Cluster) != c.cluster() {
		return fmt.Errorf("node metadata CLUSTER_ID is %q, the token was validated by %s", c.Node.Cluster, c.cluster())
	}
	return nil
}

// nodeType lets any pod be a sidecar; the other types see more, and need a pod that was made for it.
func nodeType(_ context.Context, c *Call) error {
	t := c.Node.Type()
	if c.debug() || t == "sidecar" {
		return nil
	}
	if p, ok := c.pod(); ok && slices.Contains([]string{"router", "waypoint", "ztunnel"}, t) && p.ProxyType == t {
		return nil
	}
	return fmt.Errorf("node type %q, which pod %s was not made to run", t, c.review.PodName)
}
