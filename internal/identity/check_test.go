package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	securityv1 "istio.io/api/security/v1alpha1"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

const (
	own    = "heddle.dev/istio-system-1/mesh-1"
	other  = "heddle.dev/istio-system-2/mesh-2"
	cds    = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	syncz  = "istio.io/debug/syncz"
	system = "istio-system-1"
)

// world is one call and all that is known about it. The zero change of it is a call that passes.
type world struct {
	request   Request
	review    Review
	reviewErr error
	reviews   int
	clusters  []mesh.ClusterID
	members   []string
	pods      map[string]Pod
	shared    bool
}

func (w *world) Tokens(c mesh.ClusterID) (TokenChecker, bool) {
	return w, slices.Contains(w.clusters, c)
}

func (w *world) Review(context.Context, string, []string) (Review, error) {
	w.reviews++
	return w.review, w.reviewErr
}

func (w *world) Member(_ mesh.ClusterID, namespace string) bool {
	return slices.Contains(w.members, namespace)
}

func (w *world) Pod(_ context.Context, _ mesh.ClusterID, namespace, name, uid string) (Pod, bool) {
	p, ok := w.pods[namespace+"/"+name]
	p.Deleted = p.Deleted || p.UID != uid
	return p, ok
}

func (w *world) Gone(mesh.ClusterID, string, string, string) bool { return false }

func honest() *world {
	return &world{
		request: Request{
			Token: "t", Cluster: "Kubernetes", Type: cds,
			Node: Node{ID: "sidecar~10.0.0.1~web-1.shop~shop.svc.cluster.local", Namespace: "shop", ServiceAccount: "web", Cluster: "Kubernetes"},
		},
		review: Review{
			Cluster: "Kubernetes", Audiences: []string{own}, Username: "system:serviceaccount:shop:web",
			Groups: []string{"system:serviceaccounts", "system:serviceaccounts:shop"}, PodName: "web-1", PodUID: "u1",
		},
		clusters: []mesh.ClusterID{"Kubernetes"},
		members:  []string{"shop", "pay", system},
		pods:     map[string]Pod{"shop/web-1": {UID: "u1", ServiceAccount: "web", ProxyType: "sidecar"}},
	}
}

// istioctl is the call of an administrator's token: not bound to a pod, for the audience that all meshes share.
func istioctl(w *world) {
	w.request.Type, w.request.Node = syncz, Node{ID: "sidecar~0.0.0.0~debug~cluster.local"}
	w.review = Review{
		Cluster: "Kubernetes", Audiences: []string{mesh.SharedAudience}, Username: "system:serviceaccount:" + system + ":reader",
		Groups: []string{"system:serviceaccounts"},
	}
}

func (w *world) gate(refused *Refusal) *Gate {
	return &Gate{
		Audience: own, AcceptShared: w.shared, RootNamespace: system, TrustDomain: "cluster.local", Home: "Kubernetes",
		Clusters: w, Members: w, Pods: w,
		Refused: func(_ context.Context, r Refusal) { *refused = r },
	}
}

// try returns the error of the call at CA or xDS.
func (w *world) try(t *testing.T, a *Authority, service string, checks Checks, refused *Refusal) error {
	t.Helper()
	if service == "xds" {
		_, err := w.gate(refused).Admit(t.Context(), w.request, checks)
		return err
	}
	md := metadata.MD{}
	if w.request.Token != "" {
		md.Set("authorization", "Bearer "+w.request.Token)
	}
	if w.request.Cluster != "" {
		md.Set("clusterid", string(w.request.Cluster))
	}
	in := &securityv1.IstioCertificateRequest{Csr: string(request(t, &x509.CertificateRequest{}))}
	if w.request.Impersonate != "" {
		in.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{"ImpersonatedIdentity": structpb.NewStringValue(w.request.Impersonate)}}
	}
	s := &Service{Authority: a, Gate: w.gate(refused), Checks: checks, Now: time.Now, Log: slog.New(slog.DiscardHandler)}
	raw, err := proto.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	return s.serve(&stream{ctx: metadata.NewIncomingContext(t.Context(), md), message: raw})
}

// stream is one call of the CA.
type stream struct {
	grpc.ServerStream
	ctx     context.Context
	message []byte
	reads   int
}

func (s *stream) Context() context.Context { return s.ctx }
func (s *stream) SendMsg(any) error        { return nil }
func (s *stream) RecvMsg(m any) error {
	s.reads++
	return proto.Unmarshal(s.message, m.(proto.Message))
}

func request(t *testing.T, template *x509.CertificateRequest) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func without(checks Checks, name string) Checks {
	del := func(list []Check) []Check {
		return slices.DeleteFunc(slices.Clone(list), func(c Check) bool { return c.Name == name })
	}
	return Checks{First: del(checks.First), Rest: del(checks.Rest)}
}

// Every row is refused by the check it names and by no other: with that check taken out, it passes.
func TestRefusedCalls(t *testing.T) {
	type change func(*world)
	user := func(name string) change { return func(w *world) { w.review.Username = name } }
	node := func(n Node) change { return func(w *world) { w.request.Node = n } }
	claim := func(f func(*Node)) change { return func(w *world) { f(&w.request.Node) } }
	audiences := func(a ...string) change { return func(w *world) { w.review.Audiences = a } }
	proxyType := func(typ, made string) change {
		return func(w *world) {
			w.request.Node.ID = typ + "~10.0.0.1~web-1.shop~shop.svc.cluster.local"
			if made == "" {
				delete(w.pods, "shop/web-1")
				return
			}
			w.pods["shop/web-1"] = Pod{UID: "u1", ServiceAccount: "web", ProxyType: made}
		}
	}
	both := []struct {
		name, check string
		change      change
	}{
		{"no token", "token-present", func(w *world) { w.request.Token = "" }},
		{"clusterid unknown", "cluster-known", func(w *world) { w.request.Cluster, w.review.Cluster, w.request.Node.Cluster = "mars", "mars", "mars" }},
		{"token expired", "token-valid", func(w *world) { w.reviewErr = errors.New("token has expired") }},
		{"token of a deleted pod", "token-valid", func(w *world) { w.reviewErr = errors.New("pod has been invalidated"); w.pods = nil }},
		{"token signed by another cluster", "token-valid", func(w *world) { w.reviewErr = errors.New("invalid bearer token") }},
		{"API server does not answer", "token-valid", func(w *world) { w.reviewErr = context.DeadlineExceeded }},
		{"clusterid forged: another cluster of the mesh", "cluster-validated", func(w *world) {
			w.clusters = append(w.clusters, "east")
			w.request.Cluster, w.request.Node.Cluster = "east", "east"
		}},
		{"clusterid forged: home cluster left out", "cluster-validated", func(w *world) { w.request.Cluster, w.review.Cluster = "", "east" }},
		{"audience of another mesh", "audience", audiences(other)},
		{"audience of the API server", "audience", audiences("https://kubernetes.default.svc")},
		{"no audience", "audience", audiences()},
		{"shared audience", "shared-audience", audiences(mesh.SharedAudience)},
		{"audience like ours", "audience", audiences(own+"0", "heddle.dev/istio-system-1/mesh")},
		{"audience of another mesh and the shared one", "shared-audience", audiences(other, mesh.SharedAudience)},
		{"user with the name of a service account", "service-account", func(w *world) { w.review.Groups = []string{"system:authenticated"} }},
		{"user of a certificate", "service-account", func(w *world) {
			user("kubernetes-admin")(w)
			node(Node{ID: "sidecar~10.0.0.1~web-1.~x", Cluster: "Kubernetes"})(w)
			w.members, w.pods = []string{""}, nil
		}},
		{"node", "service-account", func(w *world) {
			user("system:node:n1")(w)
			node(Node{ID: "sidecar~10.0.0.1~web-1.~x", Cluster: "Kubernetes"})(w)
			w.members, w.pods = []string{""}, nil
		}},
		{"namespace of another mesh", "member", func(w *world) { w.members = []string{system} }},
		{"namespace that leaves", "member", func(w *world) { w.members = []string{"pay"} }},
		{"namespace of no mesh, stock agent's audience", "member", func(w *world) {
			w.shared, w.members = true, nil
			audiences(mesh.SharedAudience)(w)
		}},
		{"token not bound to a pod", "pod-bound", func(w *world) {
			w.review.PodName, w.review.PodUID, w.pods = "", "", nil
			w.request.Node.ID = "sidecar~10.0.0.1~.shop~shop.svc.cluster.local"
		}},
		{"token with a pod's name alone", "pod-bound", func(w *world) { w.review.PodUID, w.pods = "", nil }},
		{"pod replaced by one of its name", "pod-deleted", func(w *world) { w.review.PodUID = "u0" }},
		{"pod deleted, token not yet", "pod-deleted", func(w *world) {
			w.pods["shop/web-1"] = Pod{UID: "u1", ServiceAccount: "web", ProxyType: "sidecar", Deleted: true}
		}},
		{"pod runs as another account", "pod-account", func(w *world) { w.pods["shop/web-1"] = Pod{UID: "u1", ServiceAccount: "db"} }},
	}
	caOnly := []struct {
		name, check string
		change      change
	}{
		{"identity of another asked", "impersonation", func(w *world) { w.request.Impersonate = "spiffe://cluster.local/ns/pay/sa/db" }},
		{"own identity asked by impersonation", "impersonation", func(w *world) { w.request.Impersonate = "spiffe://cluster.local/ns/shop/sa/web" }},
	}
	xdsOnly := []struct {
		name, check string
		change      change
	}{
		{"config of Istio's MCP form", "type-served", func(w *world) { w.request.Type = "networking.istio.io/v1/Gateway" }},
		{"no type", "type-served", func(w *world) { w.request.Type = "" }},
		{"type that begins like debug", "type-served", func(w *world) { w.request.Type = "istio.io/debugger" }},
		{"debug by a workload", "debug-namespace", func(w *world) { w.request.Type = syncz }},
		{"debug by a workload with the shared audience", "debug-namespace", func(w *world) { istioctl(w); user("system:serviceaccount:shop:web")(w) }},
		{"config dump of others by a workload", "debug-namespace", func(w *world) { w.request.Type = "istio.io/debug" }},
		{"debug by another mesh's administrator", "member", func(w *world) { istioctl(w); w.members = []string{"shop"} }},
		{"debug with another mesh's audience", "audience", func(w *world) { istioctl(w); audiences(other)(w) }},
		{"node id of another pod", "node-id", claim(func(n *Node) { n.ID = "sidecar~10.0.0.1~web-2.shop~shop.svc.cluster.local" })},
		{"node id of another namespace", "node-id", claim(func(n *Node) { n.ID = "sidecar~10.0.0.1~web-1.pay~pay.svc.cluster.local" })},
		{"node id with a field more", "node-id", claim(func(n *Node) { n.ID += "~x" })},
		{"node id empty but for the type", "node-id", claim(func(n *Node) { n.ID = "sidecar" })},
		{"metadata of another namespace", "node-namespace", claim(func(n *Node) { n.Namespace = "pay" })},
		{"metadata without namespace", "node-namespace", claim(func(n *Node) { n.Namespace = "" })},
		{"metadata of the root namespace", "node-namespace", claim(func(n *Node) { n.Namespace = system })},
		{"metadata of another account", "node-account", claim(func(n *Node) { n.ServiceAccount = "db" })},
		{"metadata without account", "node-account", claim(func(n *Node) { n.ServiceAccount = "" })},
		{"metadata of another cluster", "node-cluster", claim(func(n *Node) { n.Cluster = "east" })},
		{"metadata without cluster", "node-cluster", claim(func(n *Node) { n.Cluster = "" })},
		{"router by a sidecar", "node-type", proxyType("router", "sidecar")},
		{"waypoint by a sidecar", "node-type", proxyType("waypoint", "sidecar")},
		{"ztunnel by a router", "node-type", proxyType("ztunnel", "router")},
		{"router by a pod not known yet", "node-type", proxyType("router", "")},
		{"type that does not exist", "node-type", proxyType("istiod", "istiod")},
	}
	type row struct {
		service     string
		name, check string
		change      change
	}
	var rows []row
	for _, r := range both {
		rows = append(rows, row{"ca", r.name, r.check, r.change}, row{"xds", r.name, r.check, r.change})
	}
	for _, r := range caOnly {
		rows = append(rows, row{"ca", r.name, r.check, r.change})
	}
	for _, r := range xdsOnly {
		rows = append(rows, row{"xds", r.name, r.check, r.change})
	}

	a := newRoot(t, time.Now())
	lists := map[string]Checks{"ca": CAChecks(), "xds": XDSChecks()}
	used := map[string]bool{}
	for _, r := range rows {
		t.Run(r.service+"/"+r.name, func(t *testing.T) {
			w := honest()
			r.change(w)
			var refused Refusal
			err := w.try(t, a, r.service, lists[r.service], &refused)
			if status.Convert(err).Message() != opaque || refused.Check != r.check || refused.Reason == "" || refused.Service != r.service {
				t.Errorf("refusal is %+v with error %v, want check %s and an opaque error", refused, err, r.check)
			}
			if c := status.Code(err); c != codes.Unauthenticated && (r.service == "ca" || c != codes.PermissionDenied) {
				t.Errorf("code is %s", c)
			}
			if err := w.try(t, a, r.service, without(lists[r.service], r.check), &refused); err != nil {
				t.Errorf("without %s it is refused by %s: %s", r.check, refused.Check, refused.Reason)
			}
		})
		used[r.service+"/"+r.check] = true
	}
	for service, list := range lists {
		for _, c := range slices.Concat(list.First, list.Rest) {
			if !used[service+"/"+c.Name] {
				t.Errorf("no row is refused by %s at %s", c.Name, service)
			}
		}
	}
}

func TestAdmittedCalls(t *testing.T) {
	a := newRoot(t, time.Now())
	for _, tc := range []struct {
		name, service string
		change        func(*world)
	}{
		{"workload", "ca", func(*world) {}},
		{"workload", "xds", func(*world) {}},
		{"home cluster by default", "ca", func(w *world) { w.request.Cluster = "" }},
		{"both audiences", "xds", func(w *world) { w.review.Audiences = []string{own, mesh.SharedAudience} }},
		{"pod not known yet", "xds", func(w *world) { w.pods = nil }},
		{"stock agent where its audience is taken", "ca", func(w *world) { w.shared, w.review.Audiences = true, []string{mesh.SharedAudience} }},
		{"istioctl", "xds", istioctl},
		{"gateway", "xds", func(w *world) {
			w.request.Node.ID = "router~10.0.0.1~web-1.shop~shop.svc.cluster.local"
			w.pods["shop/web-1"] = Pod{UID: "u1", ServiceAccount: "web", ProxyType: "router"}
		}},
	} {
		t.Run(tc.service+"/"+tc.name, func(t *testing.T) {
			w := honest()
			tc.change(w)
			var refused Refusal
			checks := CAChecks()
			if tc.service == "xds" {
				checks = XDSChecks()
			}
			if err := w.try(t, a, tc.service, checks, &refused); err != nil {
				t.Errorf("refused by %s: %s", refused.Check, refused.Reason)
			}
		})
	}
}

func TestCallerMayAsk(t *testing.T) {
	var refused Refusal
	w := honest()
	workload, err := w.gate(&refused).Admit(t.Context(), w.request, XDSChecks())
	if err != nil {
		t.Fatal(err)
	}
	istioctl(w)
	admin, err := w.gate(&refused).Admit(t.Context(), w.request, XDSChecks())
	if err != nil {
		t.Fatal(err)
	}
	if want := (mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}); workload.Identity != want || workload.Pod != "web-1" || workload.PodUID != "u1" {
		t.Errorf("caller is %+v", workload)
	}
	for _, tc := range []struct {
		caller Caller
		typ    string
		want   bool
	}{{workload, cds, true}, {workload, syncz, false}, {admin, syncz, true}, {admin, cds, false}} {
		if got := tc.caller.MayAsk(tc.typ, system); got != tc.want {
			t.Errorf("%s may ask for %s: %v", tc.caller.Identity, tc.typ, got)
		}
	}
}

// Who shows no token costs no TokenReview.
func TestNoTokenNoReview(t *testing.T) {
	w := honest()
	w.request.Token = ""
	_ = w.try(t, nil, "xds", XDSChecks(), new(Refusal))
	if w.reviews != 0 {
		t.Errorf("a call without a token was reviewed %d times", w.reviews)
	}
	w.request.Token = "t"
	if err := w.try(t, nil, "xds", XDSChecks(), new(Refusal)); err != nil || w.reviews != 1 {
		t.Errorf("an honest call was reviewed %d times: %v", w.reviews, err)
	}
}

// Nothing is read of a caller of the CA that is not authenticated, and not much is decoded of one that is.
func TestStrangersUnread(t *testing.T) {
	w := honest()
	w.reviewErr = errors.New("no such token")
	s := &Service{Authority: newRoot(t, time.Now()), Gate: w.gate(new(Refusal)), Checks: CAChecks(), Now: time.Now, Log: slog.New(slog.DiscardHandler)}
	call := &stream{ctx: metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer t")), message: make([]byte, 1)}
	if err := s.serve(call); status.Code(err) != codes.Unauthenticated || call.reads != 0 {
		t.Errorf("%d reads, %v", call.reads, err)
	}
	w.reviewErr = nil
	raw, err := proto.Marshal(&securityv1.IstioCertificateRequest{Csr: strings.Repeat("x", 1<<20)})
	if err != nil {
		t.Fatal(err)
	}
	call.message = raw
	if err := s.serve(call); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "at most 81920 are read") {
		t.Errorf("a request of a megabyte: %v", err)
	}
}

// mute is a call whose request does not come.
type mute struct{ stream }

func (m *mute) RecvMsg(any) error {
	<-m.ctx.Done()
	return m.ctx.Err()
}

// Who is known does not hold calls without end either.
func TestRequestThatDoesNotCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Service{Gate: honest().gate(new(Refusal)), Checks: CAChecks(), Now: time.Now, Log: slog.New(slog.DiscardHandler)}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		call := &mute{stream{ctx: metadata.NewIncomingContext(ctx, metadata.Pairs("authorization", "Bearer t"))}}
		if err := s.serve(call); status.Code(err) != codes.DeadlineExceeded || ctx.Err() != nil {
			t.Errorf("ended with %v, the client with %v", err, ctx.Err())
		}
	})
}

// slow answers no review until it is let.
type slow struct {
	*world
	asked chan struct{}
	let   chan struct{}
}

func (s slow) Tokens(mesh.ClusterID) (TokenChecker, bool) { return s, true }

func (s slow) Review(context.Context, string, []string) (Review, error) {
	s.asked <- struct{}{}
	<-s.let
	return Review{}, errors.New("no such token")
}

// One address has a small part of the reviews under way, and a bounded queue; others are not kept waiting by it.
func TestPeersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := slow{honest(), make(chan struct{}, 10_000), make(chan struct{})}
		g := w.gate(new(Refusal))
		g.Refused = nil
		g.Clusters = w
		var wg sync.WaitGroup
		var refused atomic.Int32
		knock := func(peer string) {
			wg.Go(func() {
				if _, err := g.Knock(t.Context(), "xds", Request{Token: "t", Peer: peer}, XDSChecks()); err != nil {
					refused.Add(1)
				}
			})
		}
		for i := range peerAsks + peerWaits + 5 {
			knock(fmt.Sprint("10.0.0.1:", i))
		}
		synctest.Wait()
		if n := len(w.asked); n != peerAsks {
			t.Errorf("%d reviews are under way for one address, want %d", n, peerAsks)
		}
		if n := refused.Load(); n != 5 {
			t.Errorf("%d are refused at once, want 5", n)
		}
		knock("10.0.0.2:1")
		synctest.Wait()
		if n := len(w.asked); n != peerAsks+1 {
			t.Error("another address waits for the first")
		}
		close(w.let)
		wg.Wait()
		if len(g.peers.lanes) != 0 {
			t.Errorf("%d addresses are remembered", len(g.peers.lanes))
		}
	})
}
