package cli

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statusv3 "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
)

func syncz(t *testing.T, id string, now time.Time, s ...statusv3.ConfigStatus) *statusv3.ClientConfig {
	t.Helper()
	meta, err := structpb.NewStruct(map[string]any{"CLUSTER_ID": "Kubernetes", "NAMESPACE": id[strings.LastIndex(id, ".")+1:], "ISTIO_VERSION": "1.30.3"})
	if err != nil {
		t.Fatal(err)
	}
	c := &statusv3.ClientConfig{Node: &corev3.Node{Id: id, Metadata: meta}}
	for i, url := range []string{"envoy.config.cluster.v3.Cluster", "envoy.config.listener.v3.Listener", "envoy.config.endpoint.v3.ClusterLoadAssignment", "envoy.config.route.v3.RouteConfiguration", "envoy.config.core.v3.TypedExtensionConfig", "istio.networking.nds.v1.NameTable"} {
		if i < len(s) {
			c.GenericXdsConfigs = append(c.GenericXdsConfigs, &statusv3.ClientConfig_GenericXdsConfig{
				TypeUrl: "type.googleapis.com/" + url, ConfigStatus: s[i], LastUpdated: timestamppb.New(now.Add(-239 * time.Second)),
			})
		}
	}
	return c
}

// MCP-23, D-06, D-07: the documents' columns in their order; all meshes with a column of their own first; the short table.
func TestPrintProxies(t *testing.T) {
	now := time.Now()
	const synced, stale, notSent, failed = statusv3.ConfigStatus_SYNCED, statusv3.ConfigStatus_STALE, statusv3.ConfigStatus_NOT_SENT, statusv3.ConfigStatus_ERROR
	const id = "istiod-mesh-2-abc"
	all := []proxy{
		proxyOf(syncz(t, "sleep-1.app-ns-2", now, synced, stale, failed, notSent, notSent), id, "mesh-2", now),
		proxyOf(syncz(t, "httpbin-1.app-ns-3", now, synced, synced, synced, synced), id, "mesh-2", now),
		proxyOf(syncz(t, "sleep-9.app-ns-1", now, synced, synced, synced, synced, synced, synced), "MISSING", "mesh-1", now),
	}
	for _, c := range []struct {
		name    string
		proxies []proxy
		table   table
		want    string
	}{
		{name: "documents", proxies: all[:2], table: table{byType: true}, want: `
NAME                   CLUSTER        CDS                LDS                EDS                RDS                ECDS         ISTIOD                VERSION
httpbin-1.app-ns-3     Kubernetes     SYNCED (3m59s)     SYNCED (3m59s)     SYNCED (3m59s)     SYNCED (3m59s)     IGNORED      istiod-mesh-2-abc     1.30.3
sleep-1.app-ns-2       Kubernetes     SYNCED (3m59s)     STALE              ERROR              NOT SENT           NOT SENT     istiod-mesh-2-abc     1.30.3
`},
		{name: "all meshes", proxies: all, table: table{byType: true, byMesh: true}, want: `
MESH       NAME                   CLUSTER        CDS                LDS                EDS                RDS                ECDS               NDS                ISTIOD                VERSION
mesh-1     sleep-9.app-ns-1       Kubernetes     SYNCED (3m59s)     SYNCED (3m59s)     SYNCED (3m59s)     SYNCED (3m59s)     SYNCED (3m59s)     SYNCED (3m59s)     MISSING               1.30.3
mesh-2     httpbin-1.app-ns-3     Kubernetes     SYNCED (3m59s)     SYNCED (3m59s)     SYNCED (3m59s)     SYNCED (3m59s)     IGNORED            IGNORED            istiod-mesh-2-abc     1.30.3
mesh-2     sleep-1.app-ns-2       Kubernetes     SYNCED (3m59s)     STALE              ERROR              NOT SENT           NOT SENT           IGNORED            istiod-mesh-2-abc     1.30.3
`},
		{name: "short", proxies: all[1:], want: `
NAME                   CLUSTER        ISTIOD                VERSION     SUBSCRIBED TYPES
httpbin-1.app-ns-3     Kubernetes     istiod-mesh-2-abc     1.30.3      4 (CDS,LDS,EDS,RDS)
sleep-9.app-ns-1       Kubernetes     MISSING               1.30.3      6 (CDS,LDS,EDS,RDS,ECDS,NDS)
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			if err := printProxies(&out, append([]proxy(nil), c.proxies...), c.table); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(strings.TrimPrefix(c.want, "\n"), out.String()); d != "" {
				t.Errorf("-want +got\n%s", d)
			}
		})
	}
}

// world0 is a cluster with the meshes mesh-1, mesh-2 … of system namespaces sys-1, sys-2 …, each with one control plane.
func world0(t *testing.T, meshes int, objects ...client.Object) cluster {
	t.Helper()
	for i := range meshes {
		objects = append(objects, meshObjects(fmt.Sprint("mesh-", i+1), fmt.Sprint("sys-", i+1))...)
	}
	return cluster0(t, nil, objects...)
}

// meshObjects are what the operator makes of a mesh, as far as the verbs look at it.
func meshObjects(name, system string) []client.Object {
	meta := func(o string, owner *metav1.OwnerReference) metav1.ObjectMeta {
		m := metav1.ObjectMeta{Namespace: system, Name: o, UID: types.UID(system + o), Labels: map[string]string{"app": "istiod", "istio": "istiod", revisionLabel: name}}
		if owner != nil {
			owner.Controller = new(true)
			m.OwnerReferences = []metav1.OwnerReference{*owner}
		}
		return m
	}
	i := istio(name, system, `{"matchLabels":{"istio-discovery":"`+name+`"}}`)
	i.UID = types.UID("istio" + name)
	rev := &sailv1.IstioRevision{ObjectMeta: meta(name, &metav1.OwnerReference{Kind: "Istio", Name: name, UID: i.UID}), Spec: sailv1.IstioRevisionSpec{Namespace: system}}
	rev.Namespace = ""
	d := &appsv1.Deployment{ObjectMeta: meta(service(name), &metav1.OwnerReference{Kind: "IstioRevision", Name: rev.Name, UID: rev.UID})}
	set := &appsv1.ReplicaSet{ObjectMeta: meta(d.Name+"-a", &metav1.OwnerReference{Kind: "Deployment", Name: d.Name, UID: d.UID})}
	pod := &corev1.Pod{ObjectMeta: meta(set.Name+"-b", &metav1.OwnerReference{Kind: "ReplicaSet", Name: set.Name, UID: set.UID})}
	pod.Labels[injectLabel] = "false"
	pod.Status.Phase = corev1.PodRunning
	ns := labelled(system, "istio-discovery", name)
	m := member(system, system, heddlev1alpha1.Member)
	return []client.Object{&i, rev, d, set, pod, &ns, &m}
}

// answers makes the cluster's control planes say this, by namespace; the others are silent.
func (c cluster) answers(said map[string]*discoveryv3.DiscoveryResponse) cluster {
	c.ask = func(_ context.Context, p plane, _ string, _ ...string) (*discoveryv3.DiscoveryResponse, error) {
		if a := said[p.namespace]; a != nil {
			return proto.Clone(a).(*discoveryv3.DiscoveryResponse), nil
		}
		return nil, errors.New("nobody there")
	}
	return c
}

// knows is the answer of a control plane about proxies.
func knows(t *testing.T, istiod string, proxies ...*statusv3.ClientConfig) *discoveryv3.DiscoveryResponse {
	t.Helper()
	out := &discoveryv3.DiscoveryResponse{ControlPlane: &corev3.ControlPlane{Identifier: `{"ID":"` + istiod + `","Info":{"version":"1.30.3"}}`}}
	for _, p := range proxies {
		a, err := anypb.New(p)
		if err != nil {
			t.Fatal(err)
		}
		out.Resources = append(out.Resources, a)
	}
	return out
}

// A pod is a control plane because a revision's Deployment owns it, in that revision's system namespace, and for nothing else.
func TestPlanes(t *testing.T) {
	forged := func(namespace, name, kind string, owner types.UID) metav1.ObjectMeta {
		m := metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(namespace + name), Labels: map[string]string{"app": "istiod", revisionLabel: "mesh-1"}}
		if owner != "" {
			m.OwnerReferences = []metav1.OwnerReference{{Kind: kind, Name: "x", UID: owner, Controller: new(true)}}
		}
		return m
	}
	running := func(m metav1.ObjectMeta) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: m, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
	}
	ended := running(forged("sys-1", "ended", "ReplicaSet", "sys-1istiod-mesh-1-a"))
	ended.DeletionTimestamp, ended.Finalizers = &metav1.Time{Time: time.Now()}, []string{"test/held"}
	c := world0(
		t, 2, ended,
		running(forged("app", "labels-only", "", "")),
		running(forged("sys-1", "beside-it", "", "")),
		running(forged("sys-1", "of-nothing", "ReplicaSet", "gone")),
		// A whole chain up to the revision, in a namespace that is not the revision's.
		&appsv1.Deployment{ObjectMeta: forged("app", "istiod-mesh-1", "IstioRevision", "sys-1mesh-1")},
		&appsv1.ReplicaSet{ObjectMeta: forged("app", "set", "Deployment", "appistiod-mesh-1")},
		running(forged("app", "chained", "ReplicaSet", "appset")),
		// A Deployment of another Istio where the operator has not written, or may not write, its own.
		&sailv1.IstioRevision{ObjectMeta: metav1.ObjectMeta{Name: "mesh-3", UID: "m3", OwnerReferences: []metav1.OwnerReference{{Kind: "Istio", Name: "mesh-3", Controller: new(true)}}}, Spec: sailv1.IstioRevisionSpec{Namespace: "sys-3"}},
		&appsv1.Deployment{ObjectMeta: forged("sys-3", "istiod-mesh-3", "", "")},
		&appsv1.ReplicaSet{ObjectMeta: forged("sys-3", "helms", "Deployment", "sys-3istiod-mesh-3")},
		running(forged("sys-3", "of-helm", "ReplicaSet", "sys-3helms")),
		// A revision that nobody's Istio asks for: the operator makes nothing of it.
		&sailv1.IstioRevision{ObjectMeta: metav1.ObjectMeta{Name: "hand", UID: "hand"}, Spec: sailv1.IstioRevisionSpec{Namespace: "app"}},
		&appsv1.Deployment{ObjectMeta: forged("app", "istiod-hand", "IstioRevision", "hand")},
		&appsv1.ReplicaSet{ObjectMeta: forged("app", "hands", "Deployment", "appistiod-hand")},
		running(forged("app", "by-hand", "ReplicaSet", "apphands")),
	)
	for _, x := range []struct{ namespace, revision, want string }{
		{"", "", "sys-1/istiod-mesh-1-a-b sys-2/istiod-mesh-2-a-b"},
		{"sys-2", "", "sys-2/istiod-mesh-2-a-b"},
		{"", "mesh-1", "sys-1/istiod-mesh-1-a-b"},
		{"app", "", ""},
	} {
		all, err := planes(t.Context(), c, x.namespace, x.revision)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, p := range all {
			got = append(got, p.String())
		}
		if strings.Join(got, " ") != x.want {
			t.Errorf("%q %q: %q, want %q", x.namespace, x.revision, got, x.want)
		}
	}
}

// A control plane that is silent, or says what cannot be read, is named and ends nothing for the others.
func TestSomePlanesDoNotAnswer(t *testing.T) {
	now := time.Now()
	const synced = statusv3.ConfigStatus_SYNCED
	bad := &discoveryv3.DiscoveryResponse{Resources: []*anypb.Any{{TypeUrl: "type.googleapis.com/envoy.service.status.v3.ClientConfig", Value: []byte{0xff}}}}
	good := knows(t, "istiod-mesh-1-a-b", syncz(t, "sleep-1.app-1", now, synced))
	some := map[string]*discoveryv3.DiscoveryResponse{"sys-1": good, "sys-2": bad}
	for args, want := range map[string]string{
		"ps": "sleep-1.app-1", "ps -o json": "sleep-1.app-1", "version": "control plane version: 1.30.3, unknown (2 did not answer)", "version -o yaml": "unanswered:\n- 'control plane sys-2",
		"mesh list": "mesh-3", "mesh list -o json": `"connected": 1`,
	} {
		out, err := runVerb(t, world0(t, 3).answers(some), nil, strings.Fields(args)...)
		if ExitCode(err) != 1 || !errors.Is(err, ErrReported) || !strings.Contains(out, want) {
			t.Errorf("%s: %v, want code 1 and %q\n%s", args, err, want, out)
		}
		for _, silent := range []string{"control plane sys-2/istiod-mesh-2-a-b of mesh mesh-2 did not answer: its answer cannot be read", "control plane sys-3/istiod-mesh-3-a-b of mesh mesh-3 did not answer: nobody there"} {
			if !strings.Contains(out, silent) {
				t.Errorf("%s does not say %q:\n%s", args, silent, out)
			}
		}
		out, err = runVerb(t, world0(t, 1).answers(some), nil, strings.Fields(args)...)
		if err != nil || strings.Contains(out, "warning") {
			t.Errorf("%s where all answer: %v\n%s", args, err, out)
		}
	}
	// A table without a line would say that no proxy is connected; nobody knows that.
	out, err := runVerb(t, world0(t, 2).answers(nil), nil, "ps")
	if ExitCode(err) != 2 || !strings.Contains(err.Error(), "sys-1") || !strings.Contains(err.Error(), "sys-2") || strings.Contains(out, "NAME") {
		t.Errorf("%v\n%s", err, out)
	}
	out, err = runVerb(t, world0(t, 0), nil, "ps")
	if ExitCode(err) != 2 || !strings.Contains(err.Error(), "no control plane in the cluster") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err = runVerb(t, world0(t, 0), nil, "version"); err != nil || !strings.Contains(out, "control plane version: none\n") {
		t.Errorf("%v\n%s", err, out)
	}
}

// Who could not look says what it knows by itself, and ends as help says.
func TestVersionWithoutACluster(t *testing.T) {
	a := &app{Options: Options{Name: "heddle", Version: "0.1.0"}, connect: func() (cluster, error) { return cluster{}, errors.New("no cluster") }}
	cmd := a.command()
	var out bytes.Buffer
	cmd.SetArgs([]string{"version"})
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	err := cmd.ExecuteContext(t.Context())
	if ExitCode(err) != 2 || errors.Is(err, ErrReported) || !strings.Contains(err.Error(), "no cluster") || !strings.Contains(out.String(), "heddle version: 0.1.0") {
		t.Errorf("code %d, %v\n%s", ExitCode(err), err, &out)
	}
}

// A silent control plane takes its own time and none of the others'.
func TestEachHasItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		replies := each(t.Context(), make([]plane, asked+1), func(ctx context.Context, _ plane) (time.Duration, error) {
			if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) != answerTime {
				t.Errorf("has until %v", deadline)
			}
			if time.Since(start) == 0 {
				<-ctx.Done()
				return 0, ctx.Err()
			}
			return time.Since(start), nil
		})
		if len(silent(replies)) != asked || replies[asked].said != answerTime {
			t.Errorf("%d silent, the last after %v", len(silent(replies)), replies[asked].said)
		}
	})
}

// CTL-04, L3, T6: which proxies, in which table.
func TestStatusFlags(t *testing.T) {
	now := time.Now()
	const synced, failed = statusv3.ConfigStatus_SYNCED, statusv3.ConfigStatus_ERROR
	refusing := syncz(t, "httpbin-1.app-1", now, failed, synced, synced, synced)
	refusing.GenericXdsConfigs[0].ErrorState = &adminv3.UpdateFailureState{Details: "no such filter\x1b[2J\nmesh-2 forged row"}
	c := world0(t, 2).answers(map[string]*discoveryv3.DiscoveryResponse{
		"sys-1": knows(t, "istiod-mesh-1-a-b", syncz(t, "sleep-1.app-1", now, synced), refusing, syncz(t, "sleep-1.other", now, synced)),
		"sys-2": knows(t, "istiod-mesh-2-a-b", syncz(t, "sleep-2.app-2", now, synced)),
	})
	const long, short = "NAME.*CLUSTER +CDS +LDS +EDS +RDS +ECDS +ISTIOD +VERSION\n", "NAME.*CLUSTER +ISTIOD +VERSION +SUBSCRIBED TYPES\n"
	for _, x := range []struct {
		name, args string
		want, not  string // regular expressions
		code       int
	}{
		{name: "heddle", args: "ps", want: `\AMESH +` + long + `mesh-1 +httpbin-1.app-1 (.*\n){3}mesh-2 +sleep-2.app-2 .*\n\z`},
		{name: "heddle", args: "ps -v 0", want: `\AMESH +` + short},
		{name: "heddle", args: "ps -i sys-2", want: `\A` + long + `sleep-2.app-2 .*\n\z`},
		{name: "istioctl", args: "ps", want: `\A` + short + `httpbin-1.app-1 (.*\n){4}\z`},
		{name: "istioctl", args: "ps -v 1", want: `\A` + long},
		{name: "istioctl", args: "ps -i sys-2", want: `\A` + long + `sleep-2.app-2 .*\n\z`},
		{name: "heddle", args: "ps -n app-1", want: "(?s)httpbin-1.app-1.*sleep-1.app-1", not: "other|app-2"},
		{name: "heddle", args: "ps -o json -n app-1", want: "(?s)sleep-1.app-1.*httpbin-1.app-1", not: "other|sleep-2"},
		{name: "heddle", args: "ps -o yaml -i sys-2", want: "(?m)^resources:\n(.*\n)*.*id: sleep-2.app-2$"},
		{name: "heddle", args: "ps sleep-1.app-1", want: "mesh-1 +sleep-1.app-1 ", not: "httpbin|other|app-2|refused"},
		{name: "heddle", args: "ps sleep-1 -n other", want: "mesh-1 +sleep-1.other ", not: "app-1"},
		{name: "istioctl", args: "ps httpbin-1.app-1 -i sys-1", want: `ERROR .*\n\nCDS refused: no such filter\?\[2J\?mesh-2 forged row\n\z`, not: "sleep"},
		{name: "heddle", args: "ps sleep-3.app-1", want: "the proxy of sleep-3.app-1 is connected to no control plane that answered", code: 2},
		{name: "heddle", args: "ps sleep-1", want: "write POD.NAMESPACE or give -n", code: 2},
		{name: "heddle", args: "ps -o xml", want: `"xml" is no format`, code: 2},
		{name: "heddle", args: "ps -r nope", want: "no control plane in the cluster for revision nope", code: 2},
	} {
		out, err := runNamed(t, x.name, c, nil, strings.Fields(x.args)...)
		if err != nil {
			out += err.Error()
		}
		if ExitCode(err) != x.code || !regexp.MustCompile(x.want).MatchString(out) || x.not != "" && regexp.MustCompile(x.not).MatchString(out) {
			t.Errorf("%s %s: code %d, want %d, %q and not %q:\n%s", x.name, x.args, ExitCode(err), x.code, x.want, x.not, out)
		}
	}
}

// What a control plane says must not write another mesh's row, nor move the cursor.
func TestHostileAnswer(t *testing.T) {
	p := syncz(t, "a\nmesh-1  forged.app-1\t", time.Now())
	p.Node.Metadata.Fields["ISTIO_VERSION"] = structpb.NewStringValue("\x1b]0;x\x07")
	c := world0(t, 1).answers(map[string]*discoveryv3.DiscoveryResponse{"sys-1": knows(t, `x\u001b`, p)})
	for _, args := range []string{"ps", "version"} {
		out, err := runVerb(t, c, nil, args)
		if err != nil || strings.ContainsAny(out, "\x1b\x07\t") || strings.Contains(out, "\nmesh-1  forged") {
			t.Errorf("%v %q", err, out)
		}
	}
}

// ads answers the first request with resources of the sizes that it names, if token and node are what a control plane asks of istioctl.
type ads struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
}

func (ads) StreamAggregatedResources(s discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	md, _ := metadata.FromIncomingContext(s.Context())
	r, err := s.Recv()
	if err != nil {
		return err
	}
	if a := md.Get("authorization"); len(a) != 1 || a[0] != "Bearer t" || r.GetNode().GetId() != "sidecar~127.0.0.1~heddle.sys~sys.svc.cluster.local" || r.GetNode().GetMetadata().GetFields()["NAMESPACE"].GetStringValue() != "sys" {
		return status.Errorf(codes.Unauthenticated, "token %v, node %v", a, r.GetNode())
	}
	out := &discoveryv3.DiscoveryResponse{TypeUrl: r.GetTypeUrl()}
	for _, size := range r.GetResourceNames() {
		n, err := strconv.Atoi(size)
		if err != nil {
			return err
		}
		out.Resources = append(out.Resources, &anypb.Any{Value: make([]byte, n)})
	}
	return s.Send(out)
}

// The plane is believed by its certificate only: root and name.
func TestDiscover(t *testing.T) {
	pool, cert := authority(t, "istiod-r.sys.svc")
	foreign, _ := authority(t, "istiod-r.sys.svc")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(&cert)))
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(s, ads{})
	served := make(chan struct{})
	go func() { defer close(served); _ = s.Serve(l) }()
	defer func() { s.Stop(); <-served }()
	for _, c := range []struct {
		name, host, token string
		roots             *x509.CertPool
		sizes             []string
		err               string
	}{
		{name: "right", host: plane{namespace: "sys", revision: "r"}.host(), token: "t", roots: pool},
		{name: "6,000 proxies", host: "istiod-r.sys.svc", token: "t", roots: pool, sizes: []string{"6000000"}},
		{name: "without end", host: "istiod-r.sys.svc", token: "t", roots: pool, sizes: []string{strconv.Itoa(largestAnswer)}, err: "larger than max"},
		{name: "another mesh's root", host: "istiod-r.sys.svc", token: "t", roots: foreign, err: "certificate signed by unknown authority"},
		{name: "another name", host: plane{namespace: "sys", revision: "default"}.host(), token: "t", roots: pool, err: "istiod.sys.svc"},
		{name: "refused", host: "istiod-r.sys.svc", token: "x", roots: pool, err: "Unauthenticated"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			answer, err := discover(ctx, l.Addr().String(), &tls.Config{RootCAs: c.roots, ServerName: c.host, MinVersion: tls.VersionTLS12}, c.token, "sys", syncType, c.sizes)
			if c.err == "" && (err != nil || answer.GetTypeUrl() != syncType) {
				t.Errorf("%v %v", answer, err)
			}
			if c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("error %v, want %q", err, c.err)
			}
		})
	}
}

func authority(t *testing.T, name string) (*x509.CertPool, tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, DNSNames: []string{name}, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return pool, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// CTL-03: the three lines, and what stands in for no proxy.
func TestPrintVersions(t *testing.T) {
	plane := func(rev, v string) planeVersion { return planeVersion{"istiod", rev, "ns", v} }
	for _, c := range []struct {
		v    versions
		want string
	}{
		{
			versions{Client: "1.30.3", Heddle: "0.1.0", ControlPlane: []planeVersion{plane("mesh-1", "1.30.3"), plane("mesh-2", "1.30.3")}},
			"client version: 1.30.3\ncontrol plane version: 1.30.3\ndata plane version: none\nheddle version: 0.1.0\n",
		},
		{
			versions{Client: "1.30.3", Heddle: "0.1.0", ControlPlane: []planeVersion{plane("a", "1.29.1-beta.0"), plane("b", "1.30.3")}, DataPlane: map[string]int{"1.30.3": 2, "1.29.0": 1}},
			"client version: 1.30.3\ncontrol plane version: 1.29.1-beta.0 (a), 1.30.3 (b)\ndata plane version: 1.29.0 (1 proxy), 1.30.3 (2 proxies)\nheddle version: 0.1.0\n",
		},
	} {
		var out bytes.Buffer
		if err := printVersions(&out, c.v, true); err != nil || out.String() != c.want {
			t.Errorf("%v: got\n%swant\n%s", err, &out, c.want)
		}
	}
}
