package operator

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
)

// store is an API server without rules of its own.
func store(t *testing.T, funcs interceptor.Funcs, objects ...client.Object) client.WithWatch {
	t.Helper()
	scheme, err := Scheme()
	if err != nil {
		t.Fatal(err)
	}
	named := func(o client.Object) []string { return []string{o.GetName()} }
	return fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).WithInterceptorFuncs(funcs).
		WithStatusSubresource(&sailv1.Istio{}, &sailv1.IstioRevision{}, &sailv1.IstioRevisionTag{}).
		WithIndex(&heddlev1alpha1.Membership{}, byName, named).WithIndex(&rbacv1.RoleBinding{}, byName, named).
		WithIndex(&heddlev1alpha1.Membership{}, byMesh, meshLabel).WithIndex(&rbacv1.RoleBinding{}, byMesh, meshLabel).
		WithIndex(&corev1.Namespace{}, byLabel, namespaceLabels).WithReturnManagedFields().Build()
}

// revisionOf is a revision as the operator writes it for the Istio of its name.
func revisionOf(name, namespace string) *sailv1.IstioRevision {
	return &sailv1.IstioRevision{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), OwnerReferences: []metav1.OwnerReference{{
			APIVersion: sailv1.GroupVersion.String(), Kind: "Istio", Name: name, UID: "1", Controller: new(true),
		}}},
		Spec: sailv1.IstioRevisionSpec{Version: DefaultVersion, Namespace: namespace, Values: &sailv1.Values{Raw: []byte(selecting("d", name))}},
	}
}

func memberOf(mesh, system, namespace string) *heddlev1alpha1.Membership {
	return &heddlev1alpha1.Membership{
		ObjectMeta: metav1.ObjectMeta{Name: namespace, Namespace: system, UID: types.UID(system + "/" + namespace), Labels: map[string]string{labelMesh: mesh}},
		Spec:       heddlev1alpha1.MembershipSpec{Namespace: namespace, UID: "1", Phase: heddlev1alpha1.Member},
	}
}

func bindingOf(mesh, namespace string) *rbacv1.RoleBinding {
	return &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{
		Name: roleMember, Namespace: namespace, UID: types.UID(namespace), Labels: map[string]string{labelMesh: mesh},
	}, RoleRef: clusterRole(roleMember)}
}

func held(b *rbacv1.RoleBinding) *rbacv1.RoleBinding {
	b.DeletionTimestamp, b.Finalizers = new(metav1.Now()), []string{"example.com/mine"}
	return b
}

func membershipOn(c client.WithWatch) *membership {
	return &membership{
		client: c, live: c, table: &table{client: c}, log: slog.New(slog.DiscardHandler), events: events.NewFakeRecorder(10), now: time.Now, leaving: map[types.UID]time.Time{},
	}
}

func TestStandingsCountWhatTheOperatorWroteOnly(t *testing.T) {
	for _, c := range []struct {
		name string
		have client.Object
		want int
	}{
		{"in the mesh's system namespace", memberOf("m1", "sys-1", "app"), 1},
		{"in another namespace", memberOf("m1", "evil", "app"), 0},
		{"left by a mesh that is gone", memberOf("m9", "sys-9", "app"), 1},
		{"a binding", bindingOf("m1", "app"), 1},
		{"a binding that a finalizer holds", held(bindingOf("m1", "app")), 0},
	} {
		m := membershipOn(store(t, interceptor.Funcs{}, revisionOf("m1", "sys-1"), c.have))
		have, err := m.standings(t.Context(), m.live, "app")
		if err != nil || len(have) != c.want {
			t.Errorf("%s: %v, %v", c.name, have, err)
		}
	}
}

func TestHoldersCountInSystemNamespaces(t *testing.T) {
	ns := func(name string) *corev1.Namespace {
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	}
	c := store(t, interceptor.Funcs{}, ns("app"), ns("other"), memberOf("m1", "sys-1", "app"), memberOf("m1", "evil", "other"))
	got, err := listNamespaces(t.Context(), c, []sailv1.Istio{{ObjectMeta: metav1.ObjectMeta{Name: "m1"}, Spec: sailv1.IstioSpec{Namespace: "sys-1"}}})
	if err != nil || len(got) != 2 || got[0].Holder != "m1" || got[1].Holder != "" {
		t.Errorf("%v, %v", got, err)
	}
}

func TestUninstallWaitsForItsOwnMembersOnly(t *testing.T) {
	r := &revisions{client: store(t, interceptor.Funcs{}, memberOf("m1", "evil", "app"), held(bindingOf("m1", "app")), bindingOf("m2", "shop"))}
	if members, bound, err := r.members(t.Context(), "m1", "sys-1"); err != nil || len(members)+len(bound) > 0 {
		t.Errorf("waits for %v and %v, %v", members, bound, err)
	}
	r.client = store(t, interceptor.Funcs{}, memberOf("m1", "sys-1", "app"), bindingOf("m1", "shop"))
	if members, bound, err := r.members(t.Context(), "m1", "sys-1"); err != nil || len(members) != 1 || !bound["shop"] {
		t.Errorf("waits for %v and %v, %v", members, bound, err)
	}
}

func TestUninstallLeavesBindingsOfOthers(t *testing.T) {
	rev := revisionOf("m1", "sys-1")
	rev.DeletionTimestamp, rev.Finalizers = new(metav1.Now()), []string{sailv1.Finalizer}
	ours, theirs := bindingOf("m1", "sys-1"), bindingOf("m1", "sys-1")
	ours.Name, theirs.Name = roleSystem, "copied"
	c := store(t, interceptor.Funcs{}, rev, ours, theirs)
	r := &revisions{client: c, live: c, namespace: Namespace, log: slog.New(slog.DiscardHandler)}
	if _, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(rev)}); err != nil {
		t.Fatal(err)
	}
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(ours), ours); !apierrors.IsNotFound(err) {
		t.Errorf("the mesh's own binding: %v", err)
	}
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(theirs), theirs); err != nil {
		t.Errorf("a binding that the operator may not delete: %v", err)
	}
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(rev), rev); !apierrors.IsNotFound(err) {
		t.Errorf("the revision: %v", err)
	}
}

func TestNoMemberOfARevisionMadeByHand(t *testing.T) {
	ns := func(name string) *corev1.Namespace {
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"d": "m1"}}}
	}
	istio := istioIn("sys-1")
	istio.Spec.Values = &sailv1.Values{Raw: []byte(selecting("d", "m1"))}
	rev, made := revisionOf("m1", "sys-1"), revisionOf("m1", "evil")
	made.OwnerReferences = nil
	for want, rev := range map[string]*sailv1.IstioRevision{"m1": rev, "": made} {
		c := store(t, interceptor.Funcs{}, ns("app"), ns("sys-1"), ns("evil"), istio, rev)
		if got, err := membershipOn(c).want(t.Context(), "app", nil); err != nil || string(got.mesh) != want {
			t.Errorf("with a control plane in %s: mesh %q, %v", rev.Spec.Namespace, got.mesh, err)
		}
	}
}

func TestAMeshLeavesThoughAnotherCannot(t *testing.T) {
	denied := errors.New("denied")
	c := store(t, interceptor.Funcs{Delete: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
		if _, ok := o.(*rbacv1.RoleBinding); ok {
			return denied
		}
		return c.Delete(ctx, o, opts...)
	}}, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "app"}}, revisionOf("m1", "sys-1"), memberOf("m1", "sys-1", "app"), bindingOf("a", "app"))
	_, err := membershipOn(c).Reconcile(t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Name: "app"}})
	m := &heddlev1alpha1.Membership{}
	if gerr := c.Get(t.Context(), client.ObjectKey{Namespace: "sys-1", Name: "app"}, m); gerr != nil {
		t.Fatal(gerr)
	}
	if !errors.Is(err, denied) || m.Spec.Phase != heddlev1alpha1.Leaving {
		t.Errorf("phase %s, error %v", m.Spec.Phase, err)
	}
}

// The API server refuses to change the role of a binding, as another version of the operator may have made it.
func TestABindingOfAnotherRoleIsMadeAnew(t *testing.T) {
	taken := bindingOf("m1", "app")
	taken.RoleRef = clusterRole("view")
	c := store(t, interceptor.Funcs{Apply: func(ctx context.Context, c client.WithWatch, o runtime.ApplyConfiguration, opts ...client.ApplyOption) error {
		there := &rbacv1.RoleBinding{}
		if c.Get(ctx, client.ObjectKey{Namespace: "app", Name: roleMember}, there) == nil && there.RoleRef != clusterRole(roleMember) {
			return apierrors.NewInvalid(there.GroupVersionKind().GroupKind(), there.Name, nil)
		}
		return c.Apply(ctx, o, opts...)
	}}, taken)
	p := planeOf(t, "m1", "sys-1", selecting("d", "m1"))
	if err := membershipOn(c).join(t.Context(), "app", wanted{mesh: "m1", plane: p}, standing{}); err != nil {
		t.Fatal(err)
	}
	b := &rbacv1.RoleBinding{}
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(taken), b); err != nil || b.RoleRef != clusterRole(roleMember) {
		t.Errorf("bound to %v, %v", b.RoleRef, err)
	}
}

func TestARevisionBelongsToTheIstioOfItsName(t *testing.T) {
	for name, change := range map[string]func(*sailv1.IstioRevision){
		"made by hand":      func(r *sailv1.IstioRevision) { r.OwnerReferences = nil },
		"of another kind":   func(r *sailv1.IstioRevision) { r.OwnerReferences[0].Kind = "IstioRevisionTag" },
		"of another group":  func(r *sailv1.IstioRevision) { r.OwnerReferences[0].APIVersion = "example.com/v1" },
		"of another's name": func(r *sailv1.IstioRevision) { r.OwnerReferences[0].Name = "m2" },
	} {
		rev := revisionOf("m1", "sys-1")
		change(rev)
		tag := &sailv1.IstioRevisionTag{ObjectMeta: metav1.ObjectMeta{Name: "prod"}, Spec: sailv1.IstioRevisionTagSpec{TargetRef: sailv1.TargetRef{Kind: "IstioRevision", Name: "m1"}}}
		c := store(t, interceptor.Funcs{}, rev, tag)
		if _, err := (&tags{client: c}).target(t.Context(), tag); err == nil || !strings.Contains(err.Error(), "IstioRevision m1 belongs to no Istio m1") {
			t.Errorf("%s: the tag's target is refused with %v", name, err)
		}
		r := &revisions{client: c, live: c, log: slog.New(slog.DiscardHandler), now: time.Now}
		if _, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(rev)}); err != nil {
			t.Fatal(err)
		}
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(rev), rev); err != nil {
			t.Fatal(err)
		}
		if controllerutil.ContainsFinalizer(rev, sailv1.Finalizer) || !meta.IsStatusConditionFalse(rev.Status.Conditions, "Reconciled") {
			t.Errorf("%s: finalizers %v, conditions %v", name, rev.Finalizers, rev.Status.Conditions)
		}
	}
	rev := revisionOf("m1", "sys-1")
	tag := &sailv1.IstioRevisionTag{ObjectMeta: metav1.ObjectMeta{Name: "prod"}, Spec: sailv1.IstioRevisionTagSpec{TargetRef: sailv1.TargetRef{Kind: "IstioRevision", Name: "m1"}}}
	if got, err := (&tags{client: store(t, interceptor.Funcs{}, rev)}).target(t.Context(), tag); err != nil || got.Name != "m1" {
		t.Errorf("the operator's own is refused: %v", err)
	}
}

// Who can write ConfigMaps of the system namespace could else make the operator delete another mesh's roots.
func TestARootIsRememberedOnceTheControlPlaneServesIt(t *testing.T) {
	p := planeOf(t, "m1", "sys-1", selecting("d", "m1"))
	rev := revisionOf("m1", "sys-1")
	rev.Status.Conditions = []metav1.Condition{{Type: "Ready", Status: metav1.ConditionTrue}}
	root := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: rootName, Namespace: "sys-1"}, Data: map[string]string{rootKey: "another mesh's"}}
	c := store(t, interceptor.Funcs{}, rev, root)
	r := &revisions{client: c, live: c, now: time.Now, prober: prober{dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("refused")
	}}}
	if _, _, err := r.probe(t.Context(), rev, p, Serving{}, true); !errors.As(err, new(pending)) {
		t.Errorf("probe: %v", err)
	}
	if hash := rev.Annotations[rootHash]; hash != "" {
		t.Errorf("remembered %s", hash)
	}

	// What its own plane wrote need not wait: the plane may be gone before it is seen to serve.
	own := []metav1.ManagedFieldsEntry{{Manager: "istiod-m1", Operation: metav1.ManagedFieldsOperationApply, APIVersion: "v1"}}
	c = store(t, interceptor.Funcs{Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
		err := c.Get(ctx, key, o, opts...)
		if key.Name == rootName {
			o.SetManagedFields(own)
		}
		return err
	}}, rev, root)
	r.client, r.live = c, c
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(rev), rev); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.probe(t.Context(), rev, p, Serving{}, true); !errors.As(err, new(pending)) || rev.Annotations[rootHash] != hashRoot("another mesh's") {
		t.Errorf("probe: %v; annotations %v", err, rev.Annotations)
	}
}

func TestARootIsRememberedOnTheRevisionThatWasRead(t *testing.T) {
	rev := revisionOf("m1", "sys-1")
	c := store(t, interceptor.Funcs{}, rev)
	read := &sailv1.IstioRevision{}
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(rev), read); err != nil {
		t.Fatal(err)
	}
	later := read.DeepCopy()
	later.Labels = map[string]string{"x": "y"}
	if err := c.Update(t.Context(), later); err != nil {
		t.Fatal(err)
	}
	r := &revisions{client: c}
	if err := r.remember(t.Context(), read, "root"); !apierrors.IsConflict(err) {
		t.Errorf("by one that has changed since: %v", err)
	}
	if err := r.remember(t.Context(), later, "root"); err != nil || later.Annotations[rootHash] != hashRoot("root") {
		t.Errorf("annotations %v, %v", later.Annotations, err)
	}
}

func TestNoMeshInNamespacesOfTheCluster(t *testing.T) {
	for _, ns := range []string{Namespace, "kube-system", "kube-public", "kube-node-lease"} {
		if err := supported(istioIn(ns), Namespace); err == nil || !strings.Contains(err.Error(), "spec.namespace "+ns) {
			t.Errorf("%s: %v", ns, err)
		}
	}
	if err := supported(istioIn("default"), Namespace); err != nil {
		t.Error(err)
	}
}

func istioIn(namespace string) *sailv1.Istio {
	return &sailv1.Istio{ObjectMeta: metav1.ObjectMeta{Name: "m1"}, Spec: sailv1.IstioSpec{Namespace: namespace}}
}

// Who applied what Bootstrap printed wrote our mark with it, and is no stranger; who wrote anything beside it is.
func TestWhoAppliedOurOwnTextIsNoStranger(t *testing.T) {
	objects, err := Bootstrap(Images{}, Namespace)
	if err != nil {
		t.Fatal(err)
	}
	c := store(t, interceptor.Funcs{})
	for _, o := range objects {
		crd, definition := o.(*apiextensionsv1.CustomResourceDefinition)
		if definition {
			for i := range crd.Spec.Versions {
				crd.Spec.Versions[i].Schema = nil // the fake's field managers do not take these
			}
		}
		if err := c.Create(t.Context(), o, client.FieldOwner("kubectl-client-side-apply")); err != nil {
			t.Fatal(err)
		}
		if by := ForeignTo(o, Namespace); by != "" {
			t.Errorf("%T %s is of %s", o, o.GetName(), by)
		}
		if _, ns := o.(*corev1.Namespace); !definition && !ns {
			continue
		}
		o.SetLabels(map[string]string{labelPartOf: o.GetLabels()[labelPartOf], "example.com/team": "x"})
		if err := c.Update(t.Context(), o, client.FieldOwner("argocd")); err != nil {
			t.Fatal(err)
		}
		if by := ForeignTo(o, Namespace); by != "argocd" {
			t.Errorf("%T %s, changed by argocd, is of %q", o, o.GetName(), by)
		}
	}
	// The key of the mark with another value is none.
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "other", Labels: map[string]string{labelPartOf: "platform"}}}
	if err := c.Create(t.Context(), ns, client.FieldOwner("argocd")); err != nil {
		t.Fatal(err)
	}
	if by := ForeignTo(ns, Namespace); by != "argocd" {
		t.Errorf("a namespace of argocd's is of %q", by)
	}
}
