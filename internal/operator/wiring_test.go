package operator

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// world is a fake API server with the mesh m (system namespace sys, member app), as the operator has written it.
type world struct {
	client.WithWatch
	t      *testing.T
	scheme *runtime.Scheme

	istios      *istios
	revisions   *revisions
	memberships *membership
}

func newWorld(t *testing.T, values string) *world {
	t.Helper()
	scheme, err := Scheme()
	if err != nil {
		t.Fatal(err)
	}
	namespace := func(name, d string) client.Object {
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), Labels: map[string]string{"d": d}}}
	}
	w := &world{t: t, scheme: scheme}
	w.WithWatch = fake.NewClientBuilder().WithScheme(scheme).
		WithStatusSubresource(&sailv1.Istio{}, &sailv1.IstioRevision{}, &heddlev1alpha1.Membership{}).
		WithIndex(&heddlev1alpha1.Membership{}, byName, func(o client.Object) []string { return []string{o.GetName()} }).
		WithIndex(&heddlev1alpha1.Membership{}, byMesh, meshLabel).WithIndex(&rbacv1.RoleBinding{}, byMesh, meshLabel).
		WithIndex(&corev1.Namespace{}, byLabel, namespaceLabels).
		WithObjects(namespace(Namespace, ""), namespace("sys", "m"), namespace("app", "m"), &sailv1.Istio{
			ObjectMeta: metav1.ObjectMeta{Name: "m", UID: "m", Generation: 1},
			Spec:       sailv1.IstioSpec{Namespace: "sys", Version: DefaultVersion, Values: &sailv1.Values{Raw: []byte(values)}},
		}).Build()
	log := slog.New(slog.DiscardHandler)
	claimed := &table{client: w}
	w.istios = &istios{client: w, live: w, rivals: rivalsIn(w), table: claimed, namespace: Namespace, events: &events.FakeRecorder{}}
	w.revisions = &revisions{client: w, live: w, namespace: Namespace, log: log, now: time.Now}
	w.memberships = &membership{client: w, live: w, table: claimed, log: log, events: &events.FakeRecorder{}, now: time.Now, leaving: map[types.UID]time.Time{}}
	w.reconcile(w.istios, "m")
	w.reconcile(w.revisions, "m")
	w.reconcile(w.memberships, "sys")
	w.reconcile(w.memberships, "app")
	return w
}

func (w *world) reconcile(r reconcile.Reconciler, name string) reconcile.Result {
	w.t.Helper()
	result, err := r.Reconcile(w.t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Name: name}})
	if err != nil {
		w.t.Fatal(err)
	}
	return result
}

// get reads an object by the name that it has.
func (w *world) get(o client.Object) {
	w.t.Helper()
	if err := w.Get(w.t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
		w.t.Fatal(err)
	}
}

// operate runs the controllers until the test ends. What happens to objects is told to them by the result only.
func (w *world) operate() *informers {
	w.t.Helper()
	told := &informers{scheme: w.scheme, by: map[schema.GroupVersionKind]*informer{}}
	mapper := meta.NewDefaultRESTMapper(nil)
	for _, kind := range []string{"Istio", "IstioRevision"} {
		mapper.Add(sailv1.GroupVersion.WithKind(kind), meta.RESTScopeRoot)
	}
	mgr, err := manager.New(&rest.Config{}, manager.Options{
		Scheme: w.scheme, Logger: logr.Discard(), Metrics: server.Options{BindAddress: "0"},
		Controller:     config.Controller{SkipNameValidation: new(true)}, // they are unique in a process, not in a test
		MapperProvider: func(*rest.Config, *http.Client) (meta.RESTMapper, error) { return mapper, nil },
		NewCache:       func(*rest.Config, cache.Options) (cache.Cache, error) { return told, nil },
		NewClient:      func(*rest.Config, client.Options) (client.Client, error) { return w, nil },
	})
	if err != nil {
		w.t.Fatal(err)
	}
	all := wiring{mgr: mgr}
	if err := errors.Join(all.istios(w.istios, told, told), all.revisions(w.revisions, told), all.memberships(w.memberships)); err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- mgr.Start(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Error(err)
		}
	})
	return told
}

// until waits for a condition, which is looked at again at each event of a kind.
func (w *world) until(kind client.ObjectList, holds func(context.Context) bool) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	events, err := w.Watch(ctx, kind)
	if err != nil {
		w.t.Fatal(err)
	}
	defer events.Stop()
	for !holds(ctx) {
		select {
		case <-ctx.Done():
			w.t.Fatal("not within 20 s")
		case <-events.ResultChan():
		}
	}
}

// informers is a cache that knows of events only, which it also tells to those that ask later.
type informers struct {
	cache.Cache
	scheme *runtime.Scheme
	mu     sync.Mutex // guards by
	by     map[schema.GroupVersionKind]*informer
}

func (s *informers) of(o client.Object) (*informer, error) {
	gvk, err := apiutil.GVKForObject(o, s.scheme)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.by[gvk] == nil {
		s.by[gvk] = &informer{}
	}
	return s.by[gvk], err
}

func (s *informers) GetInformer(_ context.Context, o client.Object, _ ...cache.InformerGetOption) (cache.Informer, error) {
	return s.of(o)
}

func (s *informers) WaitForCacheSync(context.Context) bool { return true }

func (s *informers) Start(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// tell sends an event of the kind of o.
func (s *informers) tell(t *testing.T, o client.Object, event func(toolscache.ResourceEventHandler)) {
	t.Helper()
	i, err := s.of(o)
	if err != nil {
		t.Fatal(err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.events = append(i.events, event)
	for _, h := range i.handlers {
		event(h)
	}
}

type informer struct {
	cache.Informer
	mu       sync.Mutex // guards the fields below
	handlers []toolscache.ResourceEventHandler
	events   []func(toolscache.ResourceEventHandler)
}

func (i *informer) AddEventHandlerWithOptions(h toolscache.ResourceEventHandler, _ toolscache.HandlerOptions) (toolscache.ResourceEventHandlerRegistration, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.handlers = append(i.handlers, h)
	for _, event := range i.events {
		event(h)
	}
	return i, nil
}

func (i *informer) HasSynced() bool { return true }

// What the operator wrote comes back after others have changed or deleted it.
func TestDriftIsSetBack(t *testing.T) {
	w := newWorld(t, `{"meshConfig":{"discoverySelectors":[{"matchLabels":{"d":"m"}}]},"pilot":{"autoscaleMin":2}}`)
	told := w.operate()
	metadata := func(o client.Object, kind schema.GroupVersionKind) client.Object {
		m := metadataOf(kind)
		m.Name, m.Namespace, m.OwnerReferences = o.GetName(), o.GetNamespace(), o.GetOwnerReferences()
		return m
	}
	for _, c := range []struct {
		name   string
		object client.Object
		list   client.ObjectList
		change func(client.Object) // nil: it is deleted
		told   client.Object       // as the cache has it; nil: as it is
	}{
		{
			name: "the selectors that the API server reads", list: &corev1.ConfigMapList{},
			object: &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: selectorsName}},
		},
		{
			name: "the autoscaler", list: &autoscalingv2.HorizontalPodAutoscalerList{},
			object: &autoscalingv2.HorizontalPodAutoscaler{ObjectMeta: metav1.ObjectMeta{Namespace: "sys", Name: "istiod-m"}},
		},
		{
			name: "the autoscaler's limit", list: &autoscalingv2.HorizontalPodAutoscalerList{},
			object: &autoscalingv2.HorizontalPodAutoscaler{ObjectMeta: metav1.ObjectMeta{Namespace: "sys", Name: "istiod-m"}},
			change: func(o client.Object) { o.(*autoscalingv2.HorizontalPodAutoscaler).Spec.MaxReplicas = 50 },
		},
		{
			name: "the disruption budget", list: &policyv1.PodDisruptionBudgetList{},
			object: &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "sys", Name: "istiod-m"}},
			told:   metadataOf(policyv1.SchemeGroupVersion.WithKind("PodDisruptionBudget")),
		},
		{
			name: "whom a member's binding binds", list: &rbacv1.RoleBindingList{},
			object: &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: "app", Name: roleMember}},
			change: func(o client.Object) { o.(*rbacv1.RoleBinding).Subjects[0].Name = "default" },
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.t = t
			w.get(c.object)
			was := c.object.DeepCopyObject().(client.Object)
			old, changed := was, c.object
			if c.told != nil {
				old = metadata(was, c.told.GetObjectKind().GroupVersionKind())
			}
			if c.change == nil {
				if err := w.Delete(t.Context(), changed); err != nil {
					t.Fatal(err)
				}
				told.tell(t, old, func(h toolscache.ResourceEventHandler) { h.OnDelete(old) })
			} else {
				c.change(changed)
				if err := w.Update(t.Context(), changed); err != nil {
					t.Fatal(err)
				}
				now := changed.DeepCopyObject()
				told.tell(t, old, func(h toolscache.ResourceEventHandler) { h.OnUpdate(old, now) })
			}
			w.until(c.list, func(ctx context.Context) bool {
				back := was.DeepCopyObject().(client.Object)
				if w.Get(ctx, client.ObjectKeyFromObject(was), back) != nil {
					return false
				}
				back.SetResourceVersion(was.GetResourceVersion())
				return equality.Semantic.DeepEqual(was, back)
			})
		})
	}
}

// A system namespace takes its Memberships with it; with it, all come back.
func TestMembersComeBackWithTheSystemNamespace(t *testing.T) {
	w := newWorld(t, selecting("d", "m"))
	told := w.operate()
	app := &heddlev1alpha1.Membership{ObjectMeta: metav1.ObjectMeta{Namespace: "sys", Name: "app"}}
	w.get(app)
	if err := w.Delete(t.Context(), app); err != nil {
		t.Fatal(err)
	}
	sys := namespaces()
	sys.SetName("sys")
	told.tell(t, sys, func(h toolscache.ResourceEventHandler) { h.OnAdd(sys, false) })
	w.until(&heddlev1alpha1.MembershipList{}, func(ctx context.Context) bool {
		return w.Get(ctx, client.ObjectKey{Namespace: "sys", Name: "app"}, &heddlev1alpha1.Membership{}) == nil
	})
}

// serve makes the mesh's control plane ready and reachable, as far as the operator can see. Its validator refuses what it
// must if refuses says so; tried counts how often it was asked.
func (w *world) serve(refuses bool) (tried *int) {
	w.t.Helper()
	const host = "istiod-m.sys.svc"
	crt, key, err := selfSigned(host, time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(crt, key)
	if err != nil {
		w.t.Fatal(err)
	}
	w.revisions.prober = prober{port: "443", dial: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() {
			_ = tls.Server(theirs, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}).Handshake()
			_ = theirs.Close()
		}()
		return ours, nil
	}}
	tried = new(int)
	w.revisions.client = interceptor.NewClient(w, interceptor.Funcs{Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
		if o.GetName() != "invalid-gateway" {
			return c.Create(ctx, o, opts...)
		}
		*tried++
		if refuses {
			return errors.New(`admission webhook "rev.validation.istio.io" denied the request`)
		}
		return nil
	}})
	root := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "sys", Name: rootName}, Data: map[string]string{rootKey: string(crt)}}
	if err := w.Create(w.t.Context(), root); err != nil {
		w.t.Fatal(err)
	}
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "sys", Name: "istiod-m"}}
	w.get(d)
	d.Status = appsv1.DeploymentStatus{Replicas: 1, UpdatedReplicas: 1, ReadyReplicas: 1}
	if err := w.Status().Update(w.t.Context(), d); err != nil {
		w.t.Fatal(err)
	}
	return tried
}

// A validator that was not seen to refuse is tried again for as long as it could be: its mesh selects the system namespace.
func TestValidatorIsTriedAgain(t *testing.T) {
	for _, c := range []struct {
		name, values string
		refuses      bool
		again        bool
		reason       string
		tried        int
	}{
		{name: "refuses", values: selecting("d", "m"), refuses: true, reason: conditionWebhooks, tried: 1},
		{name: "is not asked yet", values: selecting("d", "m"), again: true, reason: "ValidatorNotProven", tried: 1},
		{name: "is never asked", values: selecting("d", "other"), reason: "ValidatorNotProven", tried: 1},
		{name: "is not there", values: `{"meshConfig":{"discoverySelectors":[{"matchLabels":{"d":"m"}}]},"global":{"configValidation":false}}`, reason: conditionWebhooks},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, c.values)
			tried := w.serve(c.refuses)
			again := w.reconcile(w.revisions, "m").RequeueAfter > 0
			rev := &sailv1.IstioRevision{ObjectMeta: metav1.ObjectMeta{Name: "m"}}
			w.get(rev)
			cond := meta.FindStatusCondition(rev.Status.Conditions, conditionWebhooks)
			if again != c.again || cond == nil || cond.Reason != c.reason || *tried != c.tried {
				t.Errorf("tried %d times, again %v, condition %+v", *tried, again, cond)
			}
		})
	}
}

// What the API server is told of a mesh's selectors is what the operator judges by: those of an Istio that is refused for
// another key too, and the last known ones while its own cannot be read, also where the line was lost.
func TestTheLineIsTheClaim(t *testing.T) {
	const bad = `"pilot":{"env":{"POD_NAME":"x"}}`
	sel := func(value string) string {
		return `"meshConfig":{"discoverySelectors":[{"matchLabels":{"d":"` + value + `"}}]}`
	}
	w := newWorld(t, `{`+sel("m")+`}`)
	for _, step := range []struct{ what, values, reason, line string }{
		{"refused for another key", `{` + sel("n") + `,` + bad + `}`, "ReconcileError", "d In n"},
		{"mended", `{` + sel("n") + `}`, "", "d In n"},
		{"unreadable", `{"meshConfig":{"discoverySelectors":[{"matchLabel":{"d":"o"}}]}}`, mesh.ReasonInvalidSelector, "d In n"},
		{"of another type", `{"meshConfig":[]}`, mesh.ReasonInvalidSelector, "d In n"},
	} {
		istio := &sailv1.Istio{ObjectMeta: metav1.ObjectMeta{Name: "m"}}
		w.get(istio)
		istio.Spec.Values = &sailv1.Values{Raw: []byte(step.values)}
		if err := w.Update(t.Context(), istio); err != nil {
			t.Fatal(err)
		}
		for _, lost := range []bool{false, true} {
			lines := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: selectorsName}}
			if lost {
				if err := w.Delete(t.Context(), lines); err != nil {
					t.Fatal(err)
				}
			}
			w.reconcile(w.istios, "m")
			if err := w.Get(t.Context(), client.ObjectKeyFromObject(lines), lines); err != nil || lines.Data["m"] != step.line {
				t.Errorf("%s, lost %v: the line is %q, want %q (%v)", step.what, lost, lines.Data["m"], step.line, err)
			}
		}
		w.get(istio)
		if c := meta.FindStatusCondition(istio.Status.Conditions, "Reconciled"); c == nil || step.reason != "" && c.Reason != step.reason {
			t.Errorf("%s: %+v", step.what, c)
		}
	}
}

// What the API server is told of a mesh that never had a revision goes with its Istio, also where nobody ran to see it go.
func TestTheLineOfAMeshThatIsGone(t *testing.T) {
	w := newWorld(t, `{}`)
	lines := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: selectorsName}}
	refused := &sailv1.Istio{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "n"}, Spec: sailv1.IstioSpec{
		Namespace: "sys-n", Version: DefaultVersion, Values: &sailv1.Values{Raw: []byte(`{"profile":"ambient","meshConfig":{"discoverySelectors":[{"matchLabels":{"d":"n"}}]}}`)},
	}}
	istio := &sailv1.Istio{ObjectMeta: metav1.ObjectMeta{Name: "m"}}
	w.get(istio)
	istio.Spec.Values = &sailv1.Values{Raw: []byte(selecting("d", "m"))} // else it would serve every namespace
	if err := errors.Join(w.Update(t.Context(), istio), w.Create(t.Context(), refused)); err != nil {
		t.Fatal(err)
	}
	w.reconcile(w.istios, "m")
	w.reconcile(w.istios, "n")
	if w.get(lines); lines.Data["n"] != "d In n" || lines.Data["m"] != "d In m" {
		t.Fatalf("before: %v", lines.Data)
	}
	if err := w.Delete(t.Context(), refused); err != nil {
		t.Fatal(err)
	}
	told := w.operate()
	told.tell(t, lines, func(h toolscache.ResourceEventHandler) { h.OnAdd(lines.DeepCopy(), true) })
	w.until(&corev1.ConfigMapList{}, func(ctx context.Context) bool {
		now := &corev1.ConfigMap{}
		return w.Get(ctx, client.ObjectKeyFromObject(lines), now) == nil && now.Data["n"] == "" && now.Data["m"] == "d In m"
	})
	// That of a mesh with a revision stays until its members have left.
	if err := w.Delete(t.Context(), istio); err != nil {
		t.Fatal(err)
	}
	w.reconcile(w.istios, "m")
	if w.get(lines); lines.Data["m"] != "d In m" {
		t.Errorf("while members leave: %v", lines.Data)
	}
}

// A variable that no pod can have, which an older build let through: the Deployment is refused for ever, the bundle is not.
func TestABundleIsWrittenThoughADeploymentIsRefused(t *testing.T) {
	w := newWorld(t, selecting("d", "m"))
	w.serve(true)
	w.revisions.client = interceptor.NewClient(w.revisions.client.(client.WithWatch), interceptor.Funcs{
		Apply: func(ctx context.Context, c client.WithWatch, o runtime.ApplyConfiguration, opts ...client.ApplyOption) error {
			if o.(interface{ GetKind() string }).GetKind() == "Deployment" {
				return errors.New("invalid")
			}
			return c.Apply(ctx, o, opts...)
		},
	})
	if _, err := w.revisions.Reconcile(t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Name: "m"}}); err == nil {
		t.Error("the refusal is not reported")
	}
	hook := &admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "istio-sidecar-injector-m-sys"}}
	w.get(hook)
	if len(hook.Webhooks[0].ClientConfig.CABundle) == 0 {
		t.Error("no bundle")
	}
}

// Ready is said of what is asked for now: by a revision of its Deployment, by an Istio of its revision.
func TestReadyIsOfTheNewestGeneration(t *testing.T) {
	w := newWorld(t, selecting("d", "m"))
	w.serve(true)
	istio := &sailv1.Istio{ObjectMeta: metav1.ObjectMeta{Name: "m"}}
	rev := &sailv1.IstioRevision{ObjectMeta: metav1.ObjectMeta{Name: "m"}}
	ready := func(want metav1.ConditionStatus) {
		t.Helper()
		w.reconcile(w.istios, "m")
		w.get(istio)
		if c := meta.FindStatusCondition(istio.Status.Conditions, "Ready"); c == nil || c.Status != want {
			t.Fatalf("%+v, want %s", c, want)
		}
	}
	w.reconcile(w.revisions, "m")
	ready(metav1.ConditionTrue)

	w.get(rev)
	rev.Generation++
	if err := w.Update(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
	ready(metav1.ConditionUnknown)
	w.reconcile(w.revisions, "m")
	ready(metav1.ConditionTrue)

	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "sys", Name: "istiod-m"}}
	w.get(d)
	d.Generation++
	if err := w.Update(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	w.reconcile(w.revisions, "m")
	ready(metav1.ConditionFalse)
}

func TestUnready(t *testing.T) {
	for _, c := range []struct {
		status  appsv1.DeploymentStatus
		missing string
	}{
		{appsv1.DeploymentStatus{ObservedGeneration: 2, Replicas: 2, UpdatedReplicas: 2, ReadyReplicas: 2}, ""},
		{appsv1.DeploymentStatus{ObservedGeneration: 1, Replicas: 2, UpdatedReplicas: 2, ReadyReplicas: 2}, "has changed"},
		{appsv1.DeploymentStatus{ObservedGeneration: 2, Replicas: 1, ReadyReplicas: 1}, "0 of 1 replicas of Deployment sys/istiod-m are of its newest template"},
		{appsv1.DeploymentStatus{ObservedGeneration: 2, Replicas: 2, UpdatedReplicas: 2, ReadyReplicas: 1}, "1 of 2 replicas of Deployment sys/istiod-m are ready"},
		{appsv1.DeploymentStatus{ObservedGeneration: 2}, "0 of 0"},
	} {
		d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "sys", Name: "istiod-m", Generation: 2}, Status: c.status}
		if got := unready(d); (got == "") != (c.missing == "") || !strings.Contains(got, c.missing) {
			t.Errorf("%+v: %q, want %q", c.status, got, c.missing)
		}
	}
}
