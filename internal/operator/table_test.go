package operator

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// work is what an edit has cost.
type work struct {
	Namespaces, Istios []string // that were reconciled
	Looked             int      // namespaces that were read
	Asked              int      // rights that were asked for
	Written            int
}

func requested(t *testing.T, h handler.EventHandler, o client.Object) (out []string) {
	t.Helper()
	q := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[reconcile.Request]())
	h.Create(t.Context(), event.CreateEvent{Object: o}, q)
	q.ShutDown()
	for q.Len() > 0 {
		r, _ := q.Get()
		out = append(out, r.Name)
	}
	slices.Sort(out)
	return out
}

// editing makes clusters of so many meshes with four namespaces each, edits the first, and counts the work.
func editing(t *testing.T, meshes int, values func(old string) string) work {
	t.Helper()
	var w work
	count := false
	funcs := writes(&w.Written)
	funcs.List = func(ctx context.Context, c client.WithWatch, l client.ObjectList, opts ...client.ListOption) error {
		err := c.List(ctx, l, opts...)
		if m, ok := l.(*metav1.PartialObjectMetadataList); ok && m.Kind == "NamespaceList" && count {
			w.Looked += len(m.Items)
		}
		return err
	}
	funcs.Get = func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
		if m, ok := o.(*metav1.PartialObjectMetadata); ok && m.Kind == namespaceKind && count {
			w.Looked++
		}
		return c.Get(ctx, key, o, opts...)
	}
	objects := []client.Object{&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: Namespace}}}
	of := func(i int) string { return fmt.Sprint("m", i) }
	for i := range meshes {
		id, system := of(i), fmt.Sprint("sys-", i)
		istio := istioIn(system)
		istio.Name, istio.UID, istio.Generation = id, types.UID(id), 1
		istio.CreationTimestamp = metav1.NewTime(time.Unix(int64(i), 0))
		istio.Spec.Version, istio.Spec.Values = DefaultVersion, &sailv1.Values{Raw: []byte(selecting("d", id))}
		account := planeOf(t, id, system, selecting("d", id)).meta("istiod-" + id)
		objects = append(objects, istio, revisionOf(id, system), &corev1.ServiceAccount{ObjectMeta: account})
		for _, ns := range []string{system, fmt.Sprint("app-", i), fmt.Sprint("shop-", i), fmt.Sprint("free-", i)} {
			d := id
			if strings.HasPrefix(ns, "free") {
				d = "next-" + id
			}
			objects = append(objects, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns, UID: types.UID(ns), Labels: map[string]string{"d": d}}})
		}
	}
	c := store(t, funcs, objects...)
	claimed := &table{client: c}
	namespaces, istioEdits := &edits{table: claimed}, &edits{table: claimed}
	m := membershipOn(c)
	m.table, m.events = claimed, &events.FakeRecorder{}
	r := &istios{client: c, live: c, rivals: rivalsIn(c), table: claimed, namespace: Namespace, events: &events.FakeRecorder{}}
	istio := istioIn("")
	istio.Name = of(0)
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(istio), istio); err != nil {
		t.Fatal(err)
	}
	// The beginning, which does concern all.
	if got := requested(t, namespaces.toNamespaces(), istio); len(got) != 3*meshes {
		t.Fatalf("at first %d namespaces, want %d", len(got), 3*meshes)
	}
	requested(t, istioEdits.toIstios(), istio)
	for _, ns := range []string{"sys-0", "app-0", "shop-0"} {
		if _, err := m.Reconcile(t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Name: ns}}); err != nil {
			t.Fatal(err)
		}
	}
	w.Written = 0

	old := istio.DeepCopy()
	istio.Spec.Values = &sailv1.Values{Raw: []byte(values(string(istio.Spec.Values.Raw)))}
	asked := &reviewer{in: []string{"free-0"}}
	admit := admitOn(t, asked)
	admit.live = c
	if got := admit.Handle(t.Context(), by(t, istio, old)); !got.Allowed {
		t.Fatalf("%+v", got.Result)
	}
	w.Asked = len(asked.asked)
	if err := c.Update(t.Context(), istio); err != nil {
		t.Fatal(err)
	}
	count = true
	w.Namespaces, w.Istios = requested(t, namespaces.toNamespaces(), istio), requested(t, istioEdits.toIstios(), istio)
	if !slices.Contains(w.Istios, istio.Name) { // its own event
		w.Istios = append(w.Istios, istio.Name)
	}
	if len(w.Namespaces)+len(w.Istios) > 20 {
		return w // it is far too much; nobody need wait for it
	}
	for _, id := range w.Istios {
		if _, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Name: id}}); err != nil {
			t.Fatal(err)
		}
	}
	for _, ns := range w.Namespaces {
		if _, err := m.Reconcile(t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Name: ns}}); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// What an edit costs does not grow with the number of other meshes and their namespaces.
func TestAnEditCostsWhatItConcerns(t *testing.T) {
	for _, c := range []struct {
		name   string
		values func(string) string
		want   work
	}{
		{"a value that selects nothing", func(old string) string {
			return strings.Replace(old, `{"meshConfig":{`, `{"meshConfig":{"accessLogFile":"/dev/stdout",`, 1)
		}, work{Istios: []string{"m0"}}},
		{"a selector more", func(string) string {
			return `{"meshConfig":{"discoverySelectors":[{"matchLabels":{"d":"m0"}},{"matchLabels":{"d":"next-m0"}}]}}`
		}, work{Namespaces: []string{"app-0", "free-0", "shop-0", "sys-0"}, Istios: []string{"m0"}, Asked: 2}},
		{"another mesh's selector", func(string) string { return selecting("d", "next-m0") }, work{
			Namespaces: []string{"app-0", "free-0", "shop-0", "sys-0"}, Istios: []string{"m0"}, Asked: 2,
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			few, many := editing(t, 3, c.values), editing(t, 60, c.values)
			if d := cmp.Diff(few, many); d != "" {
				t.Errorf("with 3 (-) and 60 (+) meshes: %s", d)
			}
			few.Looked, few.Written = 0, 0
			if d := cmp.Diff(c.want, few); d != "" {
				t.Errorf("-want +got: %s", d)
			}
		})
	}
}

// Whoever is told of a change by an index finds what a look at everything would find.
func TestFindingsByIndexAreThoseOfMembers(t *testing.T) {
	var objects []client.Object
	for i, l := range []string{"d=m1", "d=m2", "d=m1 e=1", "e=1", "e=2 d=m2", "", "d=m3"} {
		objects = append(objects, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("sys-", i), Labels: set(l)}})
	}
	selectors := []string{
		`[{"matchLabels":{"d":"m1"}},{"matchExpressions":[{"key":"e","operator":"Exists"}]}]`,
		`[{"matchLabels":{"d":"m2"}},{"matchExpressions":[{"key":"e","operator":"In","values":["1","2"]},{"key":"d","operator":"DoesNotExist"}]}]`,
		`[{"matchExpressions":[{"key":"d","operator":"NotIn","values":["m1","m2"]}]}]`,
		`[]`,
	}
	var istios []sailv1.Istio
	for i, s := range selectors {
		istio := istioIn(fmt.Sprint("sys-", i))
		istio.Name, istio.CreationTimestamp = fmt.Sprint("m", i), metav1.NewTime(time.Unix(int64(i), 0))
		istio.Spec.Values = &sailv1.Values{Raw: []byte(`{"meshConfig":{"discoverySelectors":` + s + `}}`)}
		istios, objects = append(istios, *istio), append(objects, istio)
	}
	objects = append(objects, memberOf("m1", "sys-1", "sys-4"), memberOf("m2", "evil", "sys-2"))
	c := store(t, interceptor.Funcs{}, objects...)
	namespaces, err := listNamespaces(t.Context(), c, istios)
	if err != nil {
		t.Fatal(err)
	}
	_, all := mesh.Members(namespaces, meshesOf(istios))
	var got []mesh.Finding
	claimed := &table{client: c}
	for _, i := range istios {
		findings, err := claimed.findings(t.Context(), mesh.ID(i.Name))
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, findings...)
	}
	if d := cmp.Diff(all, got); d != "" || len(all) < 4 {
		t.Errorf("%d findings, -all +indexed: %s", len(all), d)
	}
}

// A mesh that is gone is seen by what it held, and a deleted Istio frees those that it kept out.
func TestAnEditReachesWhatItFrees(t *testing.T) {
	one, two := istioIn("sys-1"), istioIn("sys-2")
	one.CreationTimestamp, two.Name = metav1.NewTime(time.Unix(1, 0)), "m2"
	two.CreationTimestamp = metav1.NewTime(time.Unix(2, 0))
	one.Spec.Values = &sailv1.Values{Raw: []byte(selecting("d", "x"))}
	two.Spec.Values = &sailv1.Values{Raw: []byte(`{"meshConfig":{"discoverySelectors":[{"matchLabels":{"d":"x"}},{"matchLabels":{"d":"y"}}]}}`)}
	ns := func(name, d string) *corev1.Namespace {
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"d": d}}}
	}
	c := store(t, interceptor.Funcs{}, one, two, ns("x", "x"), ns("y", "y"), ns("z", "z"), ns("held", "z"), memberOf("m1", "sys-1", "held"), bindingOf("m1", "bound"))
	claimed := &table{client: c}
	namespaces, istioEdits := &edits{table: claimed}, &edits{table: claimed}
	requested(t, namespaces.toNamespaces(), one)
	requested(t, istioEdits.toIstios(), one)
	if err := c.Delete(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(requested(t, namespaces.toNamespaces(), one)); got != "[bound held x y]" {
		t.Errorf("namespaces %s", got)
	}
	if got := fmt.Sprint(requested(t, istioEdits.toIstios(), one)); got != "[m1 m2]" {
		t.Errorf("Istios %s", got)
	}
	if got := requested(t, namespaces.toNamespaces(), two); len(got) > 0 {
		t.Errorf("once more: %v", got)
	}
	if got := fmt.Sprint(requested(t, claimed.toMembers(func(m mesh.Mesh, o client.Object) bool { return string(m.ID) == o.GetName() }), revisionOf("m1", "sys-1"))); got != "[bound held]" {
		t.Errorf("of a mesh that is gone: %s", got)
	}
}
