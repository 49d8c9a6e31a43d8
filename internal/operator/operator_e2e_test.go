//go:build e2e

package operator

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// These tests want an API server with the namespace, deployment and garbage collection controllers, and no operator:
//
//	heddle-local --instance op up --nodes 0 --controllers
//	KUBECONFIG=$(heddle-local --instance op kubeconfig) go test -tags e2e ./internal/operator
//
// The operator runs in the test, with the rights of its own service account. Control planes are stood in for by fakePlane.

// cluster is an API server with an operator.
type cluster struct {
	client.WithWatch
	t        *testing.T
	planes   sync.Map // address of a fake control plane, by host name and port
	warnings *warnings
}

// warnings keeps what the API server warned of.
type warnings struct {
	mu    sync.Mutex
	texts []string
}

// HandleWarningHeader is rest.WarningHandler's.
func (w *warnings) HandleWarningHeader(_ int, _, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.texts = append(w.texts, text)
}

func (w *warnings) has(parts ...string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.texts, func(text string) bool {
		return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(text, p) })
	})
}

func startCluster(t *testing.T) *cluster {
	path := os.Getenv("KUBECONFIG")
	if path == "" {
		t.Fatal("set KUBECONFIG to an API server without an operator; see the comment above")
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	must(t, err)
	c := &cluster{t: t, warnings: &warnings{}}
	config.QPS, config.WarningHandler = -1, c.warnings
	scheme, err := Scheme()
	must(t, err)
	c.WithWatch, err = client.NewWithWatch(config, client.Options{Scheme: scheme})
	must(t, err)
	objects, err := Bootstrap(Images{Heddle: "heddle:test", Proxy: "proxy:test"}, Namespace)
	must(t, err)
	objects = slices.DeleteFunc(objects, func(o client.Object) bool { _, ok := o.(*appsv1.Deployment); return ok })
	must(t, Apply(t.Context(), config, objects))
	c.operate(config)
	return c
}

// operate runs the operator for the length of the test.
func (c *cluster) operate(config *rest.Config) {
	conn, err := net.Dial("tcp", strings.TrimPrefix(config.Host, "https://"))
	must(c.t, err)
	own := conn.LocalAddr().(*net.TCPAddr).IP.String()
	must(c.t, conn.Close())
	listener, err := net.Listen("tcp", net.JoinHostPort(own, "0"))
	must(c.t, err)
	port := listener.Addr().(*net.TCPAddr).Port
	must(c.t, listener.Close())

	config = rest.CopyConfig(config)
	config.Impersonate = rest.ImpersonationConfig{
		UserName: "system:serviceaccount:" + Namespace + ":" + operatorAccount, Groups: []string{"system:serviceaccounts", "system:authenticated"},
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Options{
			Config: config, Images: Images{Heddle: "heddle:test", Proxy: "proxy:test"}, Version: "0.1.0-test", NoLease: true, HealthPort: -1,
			Log:        slog.New(slog.NewTextHandler(c.t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo})),
			WebhookURL: fmt.Sprintf("https://%s/validate", net.JoinHostPort(own, fmt.Sprint(port))), WebhookPort: port,
			Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
				if to, ok := c.planes.Load(address); ok {
					address = to.(string)
				}
				return (&net.Dialer{}).DialContext(ctx, network, address)
			},
		})
	}()
	c.t.Cleanup(func() {
		// The webhook dies with the operator; what follows must be able to write Istio objects.
		_ = c.Delete(context.Background(), &admissionv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: operatorName}})
		cancel()
		if err := <-done; err != nil {
			c.t.Errorf("operator: %v", err)
		}
	})
	c.until("the operator's webhook is there", 20*time.Second, &admissionv1.ValidatingWebhookConfigurationList{}, func() bool {
		return c.Get(ctx, client.ObjectKey{Name: operatorName}, &admissionv1.ValidatingWebhookConfiguration{}) == nil
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// until waits for a condition, which is looked at again at each event of a kind.
func (c *cluster) until(what string, limit time.Duration, kind client.ObjectList, holds func() bool) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	w, err := c.Watch(ctx, kind)
	must(c.t, err)
	defer w.Stop()
	for !holds() {
		select {
		case <-ctx.Done():
			c.t.Fatalf("not within %s: %s", limit, what)
		case _, ok := <-w.ResultChan():
			if !ok {
				c.t.Fatalf("the watch ended before: %s", what)
			}
		}
	}
}

func (c *cluster) namespace(name string, labels map[string]string) *corev1.Namespace {
	c.t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	must(c.t, c.Create(c.t.Context(), ns))
	c.t.Cleanup(func() { _ = c.Delete(context.Background(), ns) })
	return ns
}

// as is the same cluster for a user with the rights of a ClusterRole: in one namespace, or in all if it is empty.
func (c *cluster) as(user, role, namespace string) *cluster {
	c.t.Helper()
	subjects := []rbacv1.Subject{{Kind: "User", APIGroup: rbacv1.GroupName, Name: user}}
	var binding client.Object = &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: user}, RoleRef: clusterRole(role), Subjects: subjects}
	if namespace != "" {
		binding = &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: user, Namespace: namespace}, RoleRef: clusterRole(role), Subjects: subjects}
	}
	must(c.t, c.Create(c.t.Context(), binding))
	c.t.Cleanup(func() { _ = c.Delete(context.Background(), binding) })
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	must(c.t, err)
	config.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: []string{"system:authenticated"}}
	own, err := client.NewWithWatch(config, client.Options{Scheme: c.Scheme()})
	must(c.t, err)
	return &cluster{WithWatch: own, t: c.t}
}

func (c *cluster) label(name string, labels map[string]any) error {
	patch := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	var pairs []string
	for k, v := range labels {
		if v == nil {
			pairs = append(pairs, fmt.Sprintf("%q:null", k))
		} else {
			pairs = append(pairs, fmt.Sprintf("%q:%q", k, v))
		}
	}
	return c.Patch(c.t.Context(), patch, client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{`+strings.Join(pairs, ",")+`}}}`)))
}

func istio(name, namespace, values string) *sailv1.Istio {
	return &sailv1.Istio{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       sailv1.IstioSpec{Namespace: namespace, Version: DefaultVersion, Values: &sailv1.Values{Raw: []byte(values)}},
	}
}

func (c *cluster) mesh(i *sailv1.Istio) *sailv1.Istio {
	c.t.Helper()
	must(c.t, c.Create(c.t.Context(), i))
	c.t.Cleanup(func() { _ = c.Delete(context.Background(), i) })
	return i
}

// fakePlane does what a control plane owes the operator: it serves a certificate of the mesh's root, writes that root, reports
// on Memberships, and says that its Deployment is ready.
type fakePlane struct {
	c    *cluster
	ns   string
	root string
	stop func()
}

func (c *cluster) plane(rev, ns string) *fakePlane {
	c.t.Helper()
	root, cert := authority(c.t, "istiod-"+rev+"."+ns+".svc")
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	must(c.t, err)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_ = conn.(*tls.Conn).Handshake()
			_ = conn.Close()
		}
	}()
	c.planes.Store("istiod-"+rev+"."+ns+".svc:443", listener.Addr().String())
	p := &fakePlane{c: c, ns: ns, root: root}
	ctx, cancel := context.WithCancel(context.Background())
	w, err := c.Watch(ctx, &heddlev1alpha1.MembershipList{}, client.InNamespace(ns))
	must(c.t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for e := range w.ResultChan() {
			if m, ok := e.Object.(*heddlev1alpha1.Membership); ok && e.Type != watch.Deleted && !m.Spoken() {
				p.report(ctx, m)
			}
		}
	}()
	p.stop = func() { cancel(); w.Stop(); <-done }
	c.t.Cleanup(func() { p.stop(); _ = listener.Close() })
	p.writeRoot(ctx, ns)
	p.ready(rev, "True")
	return p
}

func (p *fakePlane) report(ctx context.Context, m *heddlev1alpha1.Membership) {
	in := m.Spec.Phase != heddlev1alpha1.Leaving
	if in {
		p.writeRoot(ctx, m.Spec.Namespace)
	} else {
		_ = p.c.Delete(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: rootName, Namespace: m.Spec.Namespace}})
	}
	old := m.DeepCopy()
	m.Status = heddlev1alpha1.MembershipStatus{Watching: in, RootWritten: in, UID: m.UID, Generation: m.Generation}
	_ = p.c.Status().Patch(ctx, m, client.MergeFrom(old))
}

func (p *fakePlane) writeRoot(ctx context.Context, ns string) {
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: rootName, Namespace: ns}, Data: map[string]string{rootKey: p.root}}
	if err := p.c.Create(ctx, cm); apierrors.IsAlreadyExists(err) {
		_ = p.c.Update(ctx, cm)
	}
}

// ready plays the kubelet of the plane's one pod.
func (p *fakePlane) ready(rev, status string) {
	p.c.t.Helper()
	var pods corev1.PodList
	p.c.until("the pod of "+rev+" is there", 20*time.Second, &corev1.PodList{}, func() bool {
		must(p.c.t, p.c.List(context.Background(), &pods, client.InNamespace(p.ns), client.MatchingLabels{"app": "istiod", labelRevision: rev}))
		return len(pods.Items) > 0
	})
	must(p.c.t, p.c.Status().Patch(p.c.t.Context(), &pods.Items[0], client.RawPatch("application/merge-patch+json",
		[]byte(`{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"`+status+`"}]}}`))))
}

func authority(t *testing.T, host string) (root string, leaf tls.Certificate) {
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(t, err)
		return k
	}
	caKey, leafKey := key(), key()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	must(t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, DNSNames: []string{host},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca, leafKey.Public(), caKey)
	must(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER})), tls.Certificate{Certificate: [][]byte{der}, PrivateKey: leafKey}
}

// memberOf waits until a namespace's Memberships are exactly those of one mesh, in phase Member; none if system is empty.
func (c *cluster) memberOf(ns, system string, limit time.Duration) {
	c.t.Helper()
	c.until(fmt.Sprintf("namespace %s belongs to the mesh in %q", ns, system), limit, &heddlev1alpha1.MembershipList{}, func() bool {
		var list heddlev1alpha1.MembershipList
		must(c.t, c.List(context.Background(), &list, client.MatchingFields{byName: ns}))
		if system == "" {
			return len(list.Items) == 0
		}
		return len(list.Items) == 1 && list.Items[0].Namespace == system && list.Items[0].Spec.Phase == heddlev1alpha1.Member
	})
}

func (c *cluster) rootOf(ns string) string {
	cm := &corev1.ConfigMap{}
	must(c.t, client.IgnoreNotFound(c.Get(c.t.Context(), client.ObjectKey{Namespace: ns, Name: rootName}, cm)))
	return cm.Data[rootKey]
}

func (c *cluster) bound(ns string) string {
	b := &rbacv1.RoleBinding{}
	must(c.t, client.IgnoreNotFound(c.Get(c.t.Context(), client.ObjectKey{Namespace: ns, Name: roleMember}, b)))
	if len(b.Subjects) == 0 {
		return ""
	}
	return b.Subjects[0].Namespace
}

func (c *cluster) condition(i *sailv1.Istio, kind string, status metav1.ConditionStatus, limit time.Duration) *metav1.Condition {
	c.t.Helper()
	var out *metav1.Condition
	c.until(fmt.Sprintf("%s of %s is %s", kind, i.Name, status), limit, &sailv1.IstioList{}, func() bool {
		must(c.t, c.Get(context.Background(), client.ObjectKeyFromObject(i), i))
		out = meta.FindStatusCondition(i.Status.Conditions, kind)
		return out != nil && out.Status == status
	})
	return out
}

func wantErr(t *testing.T, err error, texts ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("not refused, want %q", texts)
		return
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("refused with %q, which does not name %q", err, text)
		}
	}
}

func TestOperator(t *testing.T) {
	c := startCluster(t)
	ctx := t.Context()
	c.namespace("sys-1", map[string]string{"d": "m1"})
	c.namespace("sys-2", map[string]string{"d": "m2"})
	c.namespace("app-1", nil)
	one := c.mesh(istio("m1", "sys-1", selecting("d", "m1")))
	two := c.mesh(istio("m2", "sys-2", selecting("d", "m2")))
	p1, p2 := c.plane("m1", "sys-1"), c.plane("m2", "sys-2")
	c.condition(one, "Ready", metav1.ConditionTrue, 10*time.Second)
	c.condition(two, "Ready", metav1.ConditionTrue, 10*time.Second)

	t.Run("MCP-01 both meshes are healthy", func(t *testing.T) {
		for _, i := range []*sailv1.Istio{one, two} {
			if i.Status.State != "Healthy" || i.Status.Revisions != (sailv1.RevisionSummary{Total: 1, Ready: 1}) || i.Status.ActiveRevisionName != i.Name {
				t.Errorf("%s: %+v", i.Name, i.Status)
			}
		}
	})
	t.Run("OPR-06 owners lead from Istio to Deployment", func(t *testing.T) {
		d, rev := &appsv1.Deployment{}, &sailv1.IstioRevision{}
		must(t, c.Get(ctx, client.ObjectKey{Namespace: "sys-1", Name: "istiod-m1"}, d))
		must(t, c.Get(ctx, client.ObjectKey{Name: metav1.GetControllerOf(d).Name}, rev))
		if o := metav1.GetControllerOf(rev); o == nil || o.UID != one.UID || !slices.Contains(rev.Finalizers, sailv1.Finalizer) {
			t.Errorf("owner of the revision: %v, finalizers %v", o, rev.Finalizers)
		}
	})
	t.Run("the bundle is written once the served certificate chains to it", func(t *testing.T) {
		c.until("bundle", 5*time.Second, &admissionv1.MutatingWebhookConfigurationList{}, func() bool {
			m := &admissionv1.MutatingWebhookConfiguration{}
			must(t, c.Get(ctx, client.ObjectKey{Name: "istio-sidecar-injector-m1-sys-1"}, m))
			return len(m.Webhooks) == 2 && string(m.Webhooks[1].ClientConfig.CABundle) == p1.root
		})
	})
	t.Run("status is true: a plane that is not ready makes its mesh not ready, and no other", func(t *testing.T) {
		before := resourceVersions(t, c, "m2")
		p1.ready("m1", "False")
		c.condition(one, "Ready", metav1.ConditionFalse, 5*time.Second)
		if one.Status.State != "IstiodNotReady" {
			t.Errorf("state %s", one.Status.State)
		}
		p1.ready("m1", "True")
		c.condition(one, "Ready", metav1.ConditionTrue, 5*time.Second)
		if after := resourceVersions(t, c, "m2"); one.Status.State != "Healthy" || fmt.Sprint(before) != fmt.Sprint(after) {
			t.Errorf("state %s; objects of m2 before and after:\n%v\n%v", one.Status.State, before, after)
		}
	})
	t.Run("MCP-17 a label makes a member", func(t *testing.T) {
		must(t, c.label("app-1", map[string]any{"d": "m1", "istio.io/rev": "m1"}))
		c.memberOf("app-1", "sys-1", 2*time.Second)
		if c.bound("app-1") != "sys-1" || c.rootOf("app-1") != p1.root {
			t.Errorf("bound to %q, root of m1: %v", c.bound("app-1"), c.rootOf("app-1") == p1.root)
		}
	})
	t.Run("DSC-08 a revision label without the discovery label is warned of", func(t *testing.T) {
		c.namespace("app-8", map[string]string{"istio.io/rev": "m1"})
		if !c.warnings.has("app-8", "mesh m1", "d In m1") {
			t.Errorf("warnings: %q", c.warnings.texts)
		}
	})
	t.Run("InUse follows labels", func(t *testing.T) {
		c.until("m1 is in use", 2*time.Second, &sailv1.IstioList{}, func() bool {
			must(t, c.Get(ctx, client.ObjectKeyFromObject(one), one))
			return one.Status.Revisions.InUse == 1
		})
	})
	t.Run("kinds tell what exists", func(t *testing.T) {
		dr := istioKind{"networking.istio.io", "v1", "DestinationRule", "destinationrules"}.metadata()
		u, err := applicable(dr)
		must(t, err)
		u.SetName("x")
		u.SetNamespace("app-1")
		u.Object["spec"] = map[string]any{"host": "x"}
		must(t, c.Create(ctx, u))
		c.until("kinds", 2*time.Second, &heddlev1alpha1.MembershipList{}, func() bool {
			m := &heddlev1alpha1.Membership{}
			must(t, c.Get(ctx, client.ObjectKey{Namespace: "sys-1", Name: "app-1"}, m))
			return slices.Equal(m.Spec.Kinds, []string{"destinationrules.networking.istio.io"}) && m.Spec.Phase == heddlev1alpha1.Member
		})
	})
	t.Run("MCP-29 the API server refuses a namespace that two meshes select", func(t *testing.T) {
		// Selectors of the two meshes meet only if one mesh has a second label.
		must(t, c.Get(ctx, client.ObjectKeyFromObject(two), two))
		two.Spec.Values = &sailv1.Values{Raw: []byte(`{"meshConfig":{"discoverySelectors":[{"matchLabels":{"d":"m2"}},{"matchExpressions":[{"key":"e","operator":"Exists"}]}]}}`)}
		must(t, c.Update(ctx, two))
		c.until("the API server knows the selectors", 2*time.Second, &corev1.ConfigMapList{}, func() bool {
			cm := &corev1.ConfigMap{}
			must(t, c.Get(ctx, client.ObjectKey{Namespace: Namespace, Name: selectorsName}, cm))
			return cm.Data["m2"] == "d In m2\ne Exists"
		})
		wantErr(t, c.label("app-1", map[string]any{"e": "1"}), "app-1", "m1", "m2", "a namespace belongs to one mesh")
	})
	t.Run("the selectors that the API server reads come back", func(t *testing.T) {
		must(t, c.Delete(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: selectorsName}}))
		c.until("they are back", 2*time.Second, &corev1.ConfigMapList{}, func() bool {
			cm := &corev1.ConfigMap{}
			must(t, client.IgnoreNotFound(c.Get(ctx, client.ObjectKey{Namespace: Namespace, Name: selectorsName}, cm)))
			return cm.Data["m1"] == "d In m1" && cm.Data["m2"] == "d In m2\ne Exists"
		})
	})
	for _, x := range []struct {
		name  string
		istio *sailv1.Istio
		texts []string
	}{
		{"a selector that matches another mesh's namespace", istio("m3", "sys-3", selecting("istio.io/rev", "m1")), []string{"app-1", "m1", "m3"}},
		{"no selectors beside another mesh", istio("m3", "sys-3", `{}`), []string{"m1", "m3"}},
		{"the same system namespace", istio("m3", "sys-1", selecting("d", "m3")), []string{"m1", "m3", "sys-1"}},
		{"the same selector", istio("m3", "sys-3", selecting("d", "m1")), []string{"m1", "m3", "d In m1"}},
		{"a selector that matches another mesh's system namespace", istio("m3", "sys-3", selecting(corev1.LabelMetadataName, "sys-1")), []string{"m1", "m3", "sys-1"}},
		{"another mesh's member as system namespace", istio("m3", "app-1", selecting("d", "m3")), []string{"m1", "m3", "app-1"}},
		{"a system namespace of the cluster", istio("m3", "kube-system", selecting("d", "m3")), []string{"kube-system"}},
		{"the operator's namespace", istio("m3", Namespace, selecting("d", "m3")), []string{Namespace}},
		{"an invalid selector", istio("m3", "sys-3", `{"meshConfig":{"discoverySelectors":[{"matchExpressions":[{"key":"d","operator":"Is"}]}]}}`), []string{"m3", `"Is"`}},
		{"a name that no Service can have", istio("m.3", "sys-3", selecting("d", "m3")), []string{"m.3"}},
		{"an unknown version", func() *sailv1.Istio {
			i := istio("m3", "sys-3", selecting("d", "m3"))
			i.Spec.Version = "v1.99.0"
			return i
		}(), []string{"v1.99.0"}},
	} {
		t.Run("MCP-29 refused: "+x.name, func(t *testing.T) { wantErr(t, c.Create(ctx, x.istio), x.texts...) })
	}
	t.Run("who extends a mesh must have the right to update its namespaces", func(t *testing.T) {
		role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "make-meshes"}, Rules: []rbacv1.PolicyRule{
			may("sailoperator.io", []string{"istios", "istiorevisions"}, "get", "create", "update", "patch", "delete"),
		}}
		namespaces := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "edit-namespaces"}, Rules: []rbacv1.PolicyRule{
			may("", []string{"namespaces"}, "get", "patch", "update"),
		}}
		for _, r := range []*rbacv1.ClusterRole{role, namespaces} {
			must(t, c.Create(ctx, r))
			t.Cleanup(func() { _ = c.Delete(context.Background(), r) })
		}
		c.namespace("sys-8", map[string]string{"team": "eve"})
		eve := c.as("eve", role.Name, "")
		reaching := func(names string) *sailv1.Istio {
			return istio("m8", "sys-8", `{"meshConfig":{"discoverySelectors":[{"matchExpressions":[{"key":"kubernetes.io/metadata.name","operator":"In","values":[`+names+`]}]}]}}`)
		}
		wantErr(t, eve.Create(ctx, reaching(`"default","kube-system"`)), "eve may not update namespaces default, kube-system, sys-8", "m8")
		wantErr(t, eve.Create(ctx, reaching(`"not-there"`)), "sys-8")
		revision := &sailv1.IstioRevision{ObjectMeta: metav1.ObjectMeta{Name: "m8"}, Spec: sailv1.IstioRevisionSpec{
			Version: DefaultVersion, Namespace: "sys-8", Values: &sailv1.Values{Raw: []byte(`{"revision":"m8","global":{"istioNamespace":"sys-8"},"meshConfig":{"discoverySelectors":[{"matchLabels":{"x":"y"}}]}}`)},
		}}
		wantErr(t, eve.Create(ctx, revision), "eve may not update namespaces sys-8")
		own := c.as("eve-own", role.Name, "")
		binding := &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: "eve-own", Namespace: "sys-8"}, RoleRef: clusterRole(namespaces.Name),
			Subjects: []rbacv1.Subject{{Kind: "User", APIGroup: rbacv1.GroupName, Name: "eve-own"}},
		}
		must(t, c.Create(ctx, binding))
		eight := reaching(`"sys-8"`)
		var err error
		c.until("the binding counts", 3*time.Second, &rbacv1.RoleBindingList{}, func() bool {
			if err = own.Create(ctx, eight, client.DryRunAll); err != nil {
				_ = c.label("sys-8", map[string]any{"tick": fmt.Sprint(time.Now().UnixNano())})
			}
			eight.ResourceVersion, eight.UID = "", ""
			return err == nil
		})
		must(t, own.Create(ctx, eight))
		c.condition(eight, "Reconciled", metav1.ConditionTrue, 5*time.Second)
		eight.Spec = reaching(`"sys-8","default"`).Spec
		wantErr(t, own.Update(ctx, eight), "eve-own may not update namespaces default,")
		must(t, c.Delete(ctx, eight))
		c.gone("m8")
	})
	t.Run("a control plane of somebody else is left alone", func(t *testing.T) {
		c.namespace("sys-5", map[string]string{"d": "m5"})
		labels := map[string]string{"app": "istiod"}
		theirs := &appsv1.Deployment{
			ObjectMeta: metav1.ObjectMeta{Name: "istiod-m5", Namespace: "sys-5", Annotations: map[string]string{"meta.helm.sh/release-name": "r", "meta.helm.sh/release-namespace": "sys-5"}},
			Spec: appsv1.DeploymentSpec{Replicas: new(int32(0)), Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "discovery", Image: "theirs"}}},
			}},
		}
		must(t, c.Create(ctx, theirs))
		five := c.mesh(istio("m5", "sys-5", selecting("d", "m5")))
		cond := c.condition(five, "Reconciled", metav1.ConditionFalse, 5*time.Second)
		if cond.Reason != reasonForeign || !strings.Contains(cond.Message, "Deployment sys-5/istiod-m5 of Helm release sys-5/r") {
			t.Errorf("%+v", cond)
		}
		if left := resourceVersions(t, c, "m5"); len(left) != 1 { // the revision
			t.Errorf("written: %v", left)
		}
		must(t, c.Get(ctx, client.ObjectKeyFromObject(theirs), theirs))
		if theirs.Spec.Template.Spec.Containers[0].Image != "theirs" || len(theirs.OwnerReferences) > 0 {
			t.Errorf("%+v", theirs)
		}
		must(t, c.Delete(ctx, five))
		c.gone("m5")
		must(t, c.Get(ctx, client.ObjectKeyFromObject(theirs), theirs))
	})
	t.Run("what somebody made just before us is given back", func(t *testing.T) {
		c.namespace("sys-4", nil)
		w := writer{c, c, meshOwner("m4")}
		ours := MemberBinding(Plane{Mesh: "m4", Revision: "m4", Namespace: "sys-4", Version: DefaultVersion}, "sys-4")
		account := &corev1.ServiceAccount{TypeMeta: typeMeta("v1", "ServiceAccount"), ObjectMeta: ours.ObjectMeta}
		theirs := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: account.Name, Namespace: "sys-4", Annotations: map[string]string{"a": "b"}}}
		must(t, c.Create(ctx, theirs))
		if err := w.put(ctx, account, nil); !apierrors.IsConflict(err) {
			t.Errorf("made by others: %v", err)
		}
		must(t, c.Get(ctx, client.ObjectKeyFromObject(theirs), theirs))
		if len(theirs.Labels) > 0 || theirs.Annotations["a"] != "b" {
			t.Errorf("%+v", theirs.ObjectMeta)
		}
		// One that was looked at is no other.
		old := metadataOf(corev1.SchemeGroupVersion.WithKind("ServiceAccount"))
		old.UID = "another"
		if err := w.put(ctx, account, old); err == nil {
			t.Error("another object was written")
		}
		must(t, c.Delete(ctx, theirs))
		old.UID = theirs.UID
		if err := w.put(ctx, account, old); err == nil {
			t.Error("an object that is gone was written")
		}
		must(t, w.put(ctx, account, nil))
		if _, err := w.look(ctx, account); err != nil {
			t.Error(err)
		}
	})
	t.Run("S06 its pages are for who may see them", c.pages)
	t.Run("tags whose objects would have one name, or none", func(t *testing.T) {
		tag := func(name, of string) *sailv1.IstioRevisionTag {
			return &sailv1.IstioRevisionTag{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: sailv1.IstioRevisionTagSpec{TargetRef: sailv1.TargetRef{Kind: "Istio", Name: of}}}
		}
		for _, name := range []string{"a.b", strings.Repeat("t", 44)} {
			wantErr(t, c.Create(ctx, tag(name, "m1")), name, "istiod-revision-tag-")
		}
	})
	t.Run("who may not enroll does not", func(t *testing.T) {
		role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "label-namespaces"}, Rules: []rbacv1.PolicyRule{
			may("", []string{"namespaces", "namespaces/status", "namespaces/finalize"}, "get", "patch", "update"),
		}}
		must(t, c.Create(ctx, role))
		t.Cleanup(func() { _ = c.Delete(context.Background(), role) })
		ann := c.as("ann", role.Name, "")
		c.namespace("app-9", nil)
		refused := []string{"ann", "app-9", "m1", "may not enroll"}
		wantErr(t, ann.label("app-9", map[string]any{"d": "m1"}), refused...)
		must(t, ann.label("app-9", map[string]any{"other": "x"}))
		for _, sub := range []string{"status", "finalize"} {
			ns := &corev1.Namespace{}
			must(t, c.Get(ctx, client.ObjectKey{Name: "app-9"}, ns))
			ns.Labels["d"] = "m1"
			wantErr(t, ann.SubResource(sub).Update(ctx, ns), refused...)
			delete(ns.Labels, "d")
			must(t, ann.SubResource(sub).Update(ctx, ns))
		}
	})
	t.Run("who rules a namespace does not write who belongs to it", func(t *testing.T) {
		c.namespace("app-6", nil)
		bob := c.as("bob", "cluster-admin", "app-6")
		forged := &heddlev1alpha1.Membership{
			ObjectMeta: metav1.ObjectMeta{Name: "app-1", Namespace: "app-6", Labels: map[string]string{labelMesh: "m2"}},
			Spec:       heddlev1alpha1.MembershipSpec{Namespace: "app-1", UID: "1", Phase: heddlev1alpha1.Member},
		}
		taken := &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: roleMember, Namespace: "app-6", Labels: map[string]string{labelMesh: "m1"}}, RoleRef: clusterRole("view"),
		}
		for _, o := range []client.Object{forged, taken} {
			wantErr(t, bob.Create(ctx, o), "bob may not create", o.GetName())
			o.SetResourceVersion("")
		}
		// Who may do so everywhere may do it here. Neither counts, and the operator takes its name back.
		must(t, c.Create(ctx, forged))
		wantErr(t, bob.Delete(ctx, forged), "bob may not delete", "app-1")
		must(t, c.Create(ctx, taken))
		c.until("the name is free again", 3*time.Second, &rbacv1.RoleBindingList{}, func() bool {
			return apierrors.IsNotFound(c.Get(ctx, client.ObjectKeyFromObject(taken), taken))
		})
		must(t, c.label("app-1", map[string]any{"tick": "1"}))
		must(t, c.Get(ctx, client.ObjectKey{Namespace: "sys-1", Name: "app-1"}, &heddlev1alpha1.Membership{}))
		if c.bound("app-1") != "sys-1" {
			t.Errorf("app-1 is bound to %q", c.bound("app-1"))
		}
		must(t, c.Delete(ctx, forged))
	})
	t.Run("DSC-12 a new label moves the namespace, root and rights with it", func(t *testing.T) {
		must(t, c.label("app-1", map[string]any{"d": "m2"}))
		c.memberOf("app-1", "sys-2", 2*time.Second)
		if c.bound("app-1") != "sys-2" || c.rootOf("app-1") != p2.root {
			t.Errorf("bound to %q, root of m2: %v", c.bound("app-1"), c.rootOf("app-1") == p2.root)
		}
	})
	t.Run("a dead plane holds nobody up for more than its second", func(t *testing.T) {
		p2.stop()
		must(t, c.label("app-1", map[string]any{"d": "m1"}))
		c.memberOf("app-1", "sys-1", 3*time.Second)
		if c.rootOf("app-1") != p1.root {
			t.Error("the root of the dead plane is still there")
		}
	})
	t.Run("the operator may not bind what is not a mesh's", func(t *testing.T) {
		config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
		must(t, err)
		config.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:" + Namespace + ":operator", Groups: []string{"system:serviceaccounts", "system:authenticated"}}
		op, err := client.New(config, client.Options{Scheme: c.Scheme()})
		must(t, err)
		p := Plane{Mesh: "m1", Revision: "m1", Namespace: "sys-1", Version: DefaultVersion}
		b := MemberBinding(p, "default")
		b.Name, b.RoleRef = "x", clusterRole("cluster-admin")
		wantErr(t, op.Create(ctx, b), "forbidden")
		b = MemberBinding(p, "default")
		b.Subjects[0].Name = "someone"
		wantErr(t, op.Create(ctx, b), "control planes only")
		wantErr(t, op.Delete(ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "cluster-admin"}}), "roles of meshes only")
		wantErr(t, op.Get(ctx, client.ObjectKey{Namespace: "sys-1", Name: "istio-ca-secret"}, &corev1.Secret{}), "forbidden")
		gateway, err := applicable(istioKind{"networking.istio.io", "v1", "Gateway", "gateways"}.metadata())
		must(t, err)
		gateway.SetName("x")
		gateway.SetNamespace("default")
		wantErr(t, op.Create(ctx, gateway), "dry run only")
		must(t, op.Create(ctx, gateway, client.DryRunAll))
	})
	t.Run("a deleted namespace leaves no Membership", func(t *testing.T) {
		ns := c.namespace("app-7", map[string]string{"d": "m1"})
		c.memberOf("app-7", "sys-1", 2*time.Second)
		must(t, c.Delete(ctx, ns))
		c.memberOf("app-7", "", 15*time.Second)
	})
	t.Run("a double match that arises is a condition and takes nothing away", func(t *testing.T) {
		// Without the policy's binding, as in a race, the API server lets the label pass.
		binding := &admissionv1.ValidatingAdmissionPolicyBinding{}
		must(t, c.Get(ctx, client.ObjectKey{Name: policyMembers}, binding))
		must(t, c.Delete(ctx, binding))
		t.Cleanup(func() { binding.ResourceVersion = ""; must(t, c.Create(context.Background(), binding)) })
		c.until("label", 3*time.Second, &corev1.NamespaceList{}, func() bool {
			err := c.label("app-1", map[string]any{"e": "1"})
			if err != nil {
				_ = c.label("app-1", map[string]any{"tick": fmt.Sprint(time.Now().UnixNano())})
			}
			return err == nil
		})
		cond := c.condition(two, conditionExclusive, metav1.ConditionFalse, 3*time.Second)
		for _, text := range []string{"app-1", "m1", "m2"} {
			if !strings.Contains(cond.Message, text) {
				t.Errorf("condition %q does not name %s", cond.Message, text)
			}
		}
		c.memberOf("app-1", "sys-1", time.Second)
		must(t, c.label("app-1", map[string]any{"e": nil}))
		c.condition(two, conditionExclusive, metav1.ConditionTrue, 3*time.Second)
	})
	t.Run("a tag points at its plane and dies with it", func(t *testing.T) {
		tag := &sailv1.IstioRevisionTag{ObjectMeta: metav1.ObjectMeta{Name: "default"}, Spec: sailv1.IstioRevisionTagSpec{TargetRef: sailv1.TargetRef{Kind: "Istio", Name: "m2"}}}
		must(t, c.Create(ctx, tag))
		t.Cleanup(func() { _ = c.Delete(context.Background(), tag) })
		m := &admissionv1.MutatingWebhookConfiguration{}
		c.until("the tag's injector", 3*time.Second, &admissionv1.MutatingWebhookConfigurationList{}, func() bool {
			return c.Get(ctx, client.ObjectKey{Name: "istio-revision-tag-default-sys-2"}, m) == nil
		})
		if len(m.Webhooks) != 8 || m.Webhooks[0].ClientConfig.Service.Name != "istiod-m2" { // 4 × 2 selectors
			t.Errorf("%d entries, service %s", len(m.Webhooks), m.Webhooks[0].ClientConfig.Service.Name)
		}
		validator := &admissionv1.ValidatingWebhookConfiguration{}
		points := func(to, service string, entries int) {
			t.Helper()
			must(t, c.Patch(ctx, tag, client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"targetRef":{"name":"`+to+`"}}}`))))
			c.until("the default validator asks "+service+" alone", 3*time.Second, &admissionv1.ValidatingWebhookConfigurationList{}, func() bool {
				err := c.Get(ctx, client.ObjectKey{Name: "istiod-default-validator"}, validator)
				return err == nil && len(validator.Webhooks) == entries && !slices.ContainsFunc(validator.Webhooks, func(w admissionv1.ValidatingWebhook) bool {
					return w.ClientConfig.Service.Name != service
				})
			})
		}
		points("m1", "istiod-m1", 1)
		points("m2", "istiod-m2", 2)
		c.until("the tag's Service in its former mesh is gone", 3*time.Second, &corev1.ServiceList{}, func() bool {
			return apierrors.IsNotFound(c.Get(ctx, client.ObjectKey{Namespace: "sys-1", Name: "istiod-revision-tag-default"}, &corev1.Service{}))
		})
		before := resourceVersions(t, c, "m1")
		must(t, c.Delete(ctx, two))
		c.until("the tag says that its target is gone", 10*time.Second, &sailv1.IstioRevisionTagList{}, func() bool {
			must(t, c.Get(ctx, client.ObjectKeyFromObject(tag), tag))
			cond := meta.FindStatusCondition(tag.Status.Conditions, "Reconciled")
			return cond != nil && cond.Reason == "RefNotFound"
		})
		c.gone("m2")
		if after := resourceVersions(t, c, "m1"); fmt.Sprint(before) != fmt.Sprint(after) {
			t.Errorf("objects of m1 changed:\n%v\n%v", before, after)
		}
		if c.rootOf("sys-2") != "" {
			t.Error("the dead plane's root is still in its system namespace")
		}
	})
	t.Run("DSC-07 a mesh that is alone may have no selectors, and get them later", func(t *testing.T) {
		must(t, c.Get(ctx, client.ObjectKeyFromObject(one), one))
		one.Spec.Values = &sailv1.Values{Raw: []byte(`{}`)}
		must(t, c.Update(ctx, one))
		c.memberOf("kube-system", "sys-1", 5*time.Second)
		c.memberOf("app-1", "sys-1", 5*time.Second)
		if c.bound("app-1") != "" || !c.boundCluster() {
			t.Error("want one binding for the cluster and none for app-1")
		}
		must(t, c.Get(ctx, client.ObjectKeyFromObject(one), one))
		one.Spec.Values = &sailv1.Values{Raw: []byte(selecting("d", "m1"))}
		must(t, c.Update(ctx, one))
		c.memberOf("kube-system", "", 2*time.Second)
		c.memberOf("app-1", "sys-1", 2*time.Second)
		if c.rootOf("kube-system") != "" || c.bound("app-1") != "sys-1" {
			t.Error("root in kube-system or no binding in app-1")
		}
		c.until("the binding for the cluster is gone", 2*time.Second, &rbacv1.ClusterRoleBindingList{}, func() bool { return !c.boundCluster() })
	})
	t.Run("MCP-40 a deleted mesh leaves the user's objects only", func(t *testing.T) {
		must(t, c.Delete(ctx, one))
		c.gone("m1")
		if c.rootOf("sys-1") != "" || c.rootOf("app-1") != "" {
			t.Error("a root is left")
		}
		u := istioKind{"networking.istio.io", "v1", "DestinationRule", "destinationrules"}.metadata()
		must(t, c.Get(ctx, client.ObjectKey{Namespace: "app-1", Name: "x"}, u))
	})
	t.Run("a mesh named default has Istio's own names", func(t *testing.T) {
		c.namespace("istio-system", nil)
		i := c.mesh(istio("default", "istio-system", `{}`))
		c.until("the revision's webhooks", 10*time.Second, &admissionv1.ValidatingWebhookConfigurationList{}, func() bool {
			return c.Get(ctx, client.ObjectKey{Name: defaultValidatorName}, &admissionv1.ValidatingWebhookConfiguration{}) == nil
		})
		m := &admissionv1.MutatingWebhookConfiguration{}
		must(t, c.Get(ctx, client.ObjectKey{Name: "istio-sidecar-injector"}, m))
		must(t, c.Get(ctx, client.ObjectKey{Name: "istio-validator-istio-system"}, &admissionv1.ValidatingWebhookConfiguration{}))
		must(t, c.Get(ctx, client.ObjectKey{Namespace: "istio-system", Name: "istiod"}, &appsv1.Deployment{}))
		if len(m.Webhooks) != 4 || m.Webhooks[0].ClientConfig.Service.Name != "istiod" {
			t.Errorf("%d entries, service %s", len(m.Webhooks), m.Webhooks[0].ClientConfig.Service.Name)
		}
		must(t, c.Delete(ctx, i))
		c.gone("default")
	})
}

// gone waits until the revision is gone, which is the last of a mesh to go.
func (c *cluster) gone(id mesh.ID) {
	c.t.Helper()
	// Kubernetes collects what an Istio owns, and looks for new kinds, as these are, once in 30 s.
	c.until("revision "+string(id)+" is gone", time.Minute, &sailv1.IstioRevisionList{}, func() bool {
		return apierrors.IsNotFound(c.Get(context.Background(), client.ObjectKey{Name: string(id)}, &sailv1.IstioRevision{}))
	})
	if left := resourceVersions(c.t, c, id); len(left) > 0 {
		c.t.Errorf("left of %s: %v", id, left)
	}
}

func (c *cluster) boundCluster() bool {
	return c.Get(c.t.Context(), client.ObjectKey{Name: roleMember + "-m1"}, &rbacv1.ClusterRoleBinding{}) == nil
}

// resourceVersions are those of everything that belongs to a mesh, as text.
func resourceVersions(t *testing.T, c *cluster, id mesh.ID) []string {
	t.Helper()
	var out []string
	for _, l := range []client.ObjectList{
		&appsv1.DeploymentList{}, &corev1.ServiceList{}, &corev1.ServiceAccountList{}, &corev1.ConfigMapList{}, &rbacv1.RoleBindingList{},
		&rbacv1.ClusterRoleBindingList{}, &admissionv1.MutatingWebhookConfigurationList{}, &admissionv1.ValidatingWebhookConfigurationList{},
		&heddlev1alpha1.MembershipList{}, &sailv1.IstioRevisionList{},
	} {
		must(t, c.List(context.Background(), l, client.MatchingLabels{labelMesh: string(id)}))
		must(t, meta.EachListItem(l, func(o runtime.Object) error {
			m := o.(client.Object)
			out = append(out, fmt.Sprintf("%T %s %s", o, name(m), m.GetResourceVersion()))
			return nil
		}))
	}
	return out
}
