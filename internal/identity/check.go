package identity

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

const (
	accountPrefix = "system:serviceaccount:"
	accountGroup  = "system:serviceaccounts"
	debugType     = "istio.io/debug" // and what begins with it and a slash: what istioctl asks over xDS
	typePrefix    = "type.googleapis.com/"
	maxReason     = 512 // bytes of a refusal's reason
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

// Pods finds what the plane's own watch knows of pods.
type Pods interface {
	// Pod waits a while for the pod of this UID. It is false if the plane can't know, and Deleted if it would.
	Pod(ctx context.Context, cluster mesh.ClusterID, namespace, name, uid string) (Pod, bool)
	// Gone tells at once whether it is known that there is no such pod.
	Gone(cluster mesh.ClusterID, namespace, name, uid string) bool
}

// Pod is what the checks need of a pod.
type Pod struct {
	UID            string
	ServiceAccount string
	ProxyType      string // what it was made to run: sidecar, router, waypoint or ztunnel
	// Deleted: there is no such pod any more, or it has ended. A TokenReview accepts its token for up to 60 s after
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
	Audience      string // the mesh's own, mesh.Audience
	AcceptShared  bool   // take mesh.SharedAudience for everything: the mesh serves stock agents
	RootNamespace string
	TrustDomain   string
	Home          mesh.ClusterID
	Clusters      Clusters
	Members       Members
	Pods          Pods
	// Refused is told of every refusal; the caller hears one opaque text. It must not block.
	Refused func(context.Context, Refusal)

	peers peers
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

// Call is a request on its way through the checks. It looks a fact up when the first check asks for it, so that who shows
// no token costs no TokenReview.
type Call struct {
	Request
	gate    *Gate
	service string
	rest    []Check                // of Enter
	review  func() (Review, error) // asked once
	pod     func() (Pod, bool)     // the caller's Pod as the plane's watch knows it; asked once. A debug client need not be one
}

func (g *Gate) call(ctx context.Context, r Request) *Call {
	if r.Cluster == "" {
		r.Cluster = g.Home
	}
	c := &Call{Request: r, gate: g, review: sync.OnceValues(func() (Review, error) {
		tokens, ok := g.Clusters.Tokens(r.Cluster)
		if !ok {
			tokens, ok = g.Clusters.Tokens(g.Home)
		}
		if !ok {
			return Review{}, errors.New("no API server is there to check tokens")
		}
		leave, err := g.peers.enter(ctx, r.Peer)
		if err != nil {
			return Review{}, err
		}
		defer leave()
		return tokens.Review(ctx, r.Token, []string{g.Audience, mesh.SharedAudience})
	})}
	c.pod = sync.OnceValues(func() (Pod, bool) {
		if c.debug() {
			return Pod{}, false
		}
		caller := c.caller()
		return g.Pods.Pod(ctx, c.Cluster, caller.Identity.Namespace, caller.Pod, caller.PodUID)
	})
	return c
}

// caller is whose the token is, as far as the API server said.
func (c *Call) caller() Caller {
	r, _ := c.review()
	ns, account := r.account()
	return Caller{
		Identity: mesh.Identity{TrustDomain: c.gate.TrustDomain, Namespace: ns, ServiceAccount: account},
		Cluster:  c.Cluster, Pod: r.PodName, PodUID: r.PodUID, Debug: c.debug(),
	}
}

// Check is one reason to refuse a call. A list of checks is evaluated in order up to the first that refuses.
type Check struct {
	Name   string
	Code   codes.Code // what the xDS client is told
	Refuse func(c *Call) error
}

// Checks are those of a service, in order.
type Checks struct {
	First []Check // need what comes before the caller's first message
	Rest  []Check // need what it says
}

// when returns the reason of a refusal if it holds.
func when(refused bool, reason string, args ...any) error {
	if refused {
		return fmt.Errorf(reason, args...)
	}
	return nil
}

// authentication is what every caller passes: whose token is it, and may its holder speak to this mesh at all?
func authentication() Checks {
	return Checks{First: []Check{
		{"token-present", codes.Unauthenticated, func(c *Call) error {
			return when(c.Token == "", "no bearer token in metadata authorization")
		}},
		{"cluster-known", codes.Unauthenticated, func(c *Call) error {
			_, ok := c.gate.Clusters.Tokens(c.Cluster)
			return when(!ok, "cluster %q is unknown to this mesh, whose home cluster is %q", c.Cluster, c.gate.Home)
		}},
		{"token-valid", codes.Unauthenticated, func(c *Call) error {
			_, err := c.review()
			return err
		}},
		{"cluster-validated", codes.Unauthenticated, func(c *Call) error {
			r, _ := c.review()
			return when(r.Cluster != c.Cluster, "token was validated by cluster %q, the caller names %q", r.Cluster, c.Cluster)
		}},
		// The audience stops replay of what another mesh or the API server was shown; membership, asked after it in every
		// case, stops enrolment.
		{"audience", codes.Unauthenticated, func(c *Call) error {
			r, _ := c.review()
			ours := slices.Contains(r.Audiences, c.gate.Audience) || slices.Contains(r.Audiences, mesh.SharedAudience)
			return when(!ours, "token is for audiences %q, not for %q", r.Audiences, c.gate.Audience)
		}},
		{"service-account", codes.Unauthenticated, func(c *Call) error {
			r, _ := c.review()
			ns, account := r.account()
			return when(ns == "" || account == "" || !slices.Contains(r.Groups, accountGroup), "user %q of groups %q is not a service account", r.Username, r.Groups)
		}},
		{"member", codes.PermissionDenied, func(c *Call) error {
			ns := c.caller().Identity.Namespace
			return when(!c.gate.Members.Member(c.Cluster, ns), "namespace %s is not a member of this mesh", ns)
		}},
	}, Rest: []Check{
		{"shared-audience", codes.Unauthenticated, func(c *Call) error {
			r, _ := c.review()
			only := slices.Contains(r.Audiences, mesh.SharedAudience) && !slices.Contains(r.Audiences, c.gate.Audience)
			return when(only && !c.gate.AcceptShared && !c.debug(), "token is for audiences %q, not for %q", r.Audiences, c.gate.Audience)
		}},
		{"pod-bound", codes.Unauthenticated, func(c *Call) error {
			r, _ := c.review()
			return when(!c.debug() && (r.PodName == "" || r.PodUID == ""), "token is not bound to a pod")
		}},
		{"pod-deleted", codes.Unauthenticated, func(c *Call) error {
			p, known := c.pod()
			return when(known && p.Deleted, "pod %s with UID %s is deleted, or it has ended", c.caller().Pod, c.caller().PodUID)
		}},
		{"pod-account", codes.PermissionDenied, func(c *Call) error {
			p, known := c.pod()
			account := c.caller().Identity.ServiceAccount
			return when(known && p.ServiceAccount != account, "token is of service account %s, its pod runs as %s", account, p.ServiceAccount)
		}},
	}}
}

// CAChecks returns what a caller of the CA service passes, in order.
func CAChecks() Checks {
	checks := authentication()
	checks.Rest = append(checks.Rest, Check{"impersonation", codes.Unauthenticated, func(c *Call) error {
		return when(c.Impersonate != "", "the caller asks for identity %q in place of its own; no node proxy is trusted to do so here", c.Impersonate)
	}})
	return checks
}

// XDSChecks returns what an xDS client passes, in order, before its first request is answered.
func XDSChecks() Checks {
	claim := func(name, claimed, proved string) error {
		return when(claimed != proved, "node %s is %q, the token's is %q", name, claimed, proved)
	}
	checks := authentication()
	checks.Rest = append(
		checks.Rest,
		Check{"type-served", codes.PermissionDenied, func(c *Call) error { // Istio also serves its configuration so
			return when(!c.debug() && !strings.HasPrefix(c.Type, typePrefix), "type %q is not served", c.Type)
		}},
		Check{"debug-namespace", codes.PermissionDenied, func(c *Call) error {
			ns := c.caller().Identity.Namespace
			return when(c.debug() && ns != c.gate.RootNamespace, "type %s is for service accounts of namespace %s, the caller is of %s", c.Type, c.gate.RootNamespace, ns)
		}},
		node("node-id", func(c *Call, caller Caller) error {
			return claim("id", c.Node.Name(), caller.Pod+"."+caller.Identity.Namespace)
		}),
		node("node-namespace", func(c *Call, caller Caller) error {
			return claim("metadata NAMESPACE", c.Node.Namespace, caller.Identity.Namespace)
		}),
		node("node-account", func(c *Call, caller Caller) error {
			return claim("metadata SERVICE_ACCOUNT", c.Node.ServiceAccount, caller.Identity.ServiceAccount)
		}),
		node("node-cluster", func(c *Call, caller Caller) error {
			return claim("metadata CLUSTER_ID", c.Node.Cluster, string(caller.Cluster))
		}),
		node("node-type", func(c *Call, caller Caller) error { // any pod may be a sidecar; the others see more
			t := c.Node.Type()
			p, _ := c.pod()
			made := slices.Contains([]string{"router", "waypoint", "ztunnel"}, t) && p.ProxyType == t
			return when(t != "sidecar" && !made, "type %q is not what pod %s was made to run", t, caller.Pod)
		}),
	)
	return checks
}

// node is a check of what an xDS client says of itself; a debug client says nothing that counts.
func node(name string, refuse func(c *Call, caller Caller) error) Check {
	return Check{name, codes.PermissionDenied, func(c *Call) error {
		if c.debug() {
			return nil
		}
		return refuse(c, c.caller())
	}}
}

// Knock evaluates the checks that need of a call of service only what came before its first message. The errors of Knock
// and Enter are gRPC statuses with an opaque text; Refused hears the reason.
func (g *Gate) Knock(ctx context.Context, service string, r Request, checks Checks) (*Call, error) {
	c := g.call(ctx, r)
	c.service, c.rest = service, checks.Rest
	return c, c.pass(ctx, checks.First)
}

// Caller names whom the token that was knocked with is of.
func (c *Call) Caller() string {
	who := c.caller()
	return string(who.Cluster) + "/" + who.Identity.Namespace + "/" + who.Identity.ServiceAccount + "/" + who.Pod
}

// Enter evaluates the other checks, when the caller has said what it wants.
func (c *Call) Enter(ctx context.Context, says func(*Request)) (Caller, error) {
	says(&c.Request)
	if err := c.pass(ctx, c.rest); err != nil {
		return Caller{}, err
	}
	return c.caller(), nil
}

// Admit is Knock and Enter of an xDS client of which all is known.
func (g *Gate) Admit(ctx context.Context, r Request, checks Checks) (Caller, error) {
	c, err := g.Knock(ctx, "xds", r, checks)
	if err != nil {
		return Caller{}, err
	}
	return c.Enter(ctx, func(*Request) {})
}

// AdmitPage holds the caller of an HTTP page to the checks of an xDS client that asks for a debug type. Who is refused has been
// answered.
func (g *Gate) AdmitPage(w http.ResponseWriter, r *http.Request) (Caller, bool) {
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	caller, err := g.Admit(r.Context(), Request{Token: token, Type: debugType, Peer: r.RemoteAddr}, XDSChecks())
	if err != nil {
		http.Error(w, "this page needs a token of a service account of namespace "+g.RootNamespace, http.StatusUnauthorized)
	}
	return caller, err == nil
}

// opaque is all that a refused caller is told; Istio's text.
const opaque = "request authenticate failure"

func (c *Call) pass(ctx context.Context, checks []Check) error {
	for _, check := range checks {
		err := check.Refuse(c)
		if err == nil {
			continue
		}
		reason := err.Error() // with words of the caller's
		reason = strings.ToValidUTF8(reason[:min(len(reason), maxReason)], "?")
		refusal := Refusal{Service: c.service, Check: check.Name, Reason: reason, Peer: c.Peer}
		if c.Token != "" {
			who := c.caller()
			refusal.Namespace, refusal.Account, refusal.Pod = who.Identity.Namespace, who.Identity.ServiceAccount, who.Pod
		}
		if c.gate.Refused != nil {
			c.gate.Refused(ctx, refusal)
		}
		return status.Error(check.Code, opaque)
	}
	return nil
}
