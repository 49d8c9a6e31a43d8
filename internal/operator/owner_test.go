package operator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
)

// theirs is an object as Helm has made it under the name of o.
func theirs(o client.Object) client.Object {
	out := o.DeepCopyObject().(client.Object)
	out.SetLabels(map[string]string{"app": "istiod", "app.kubernetes.io/managed-by": "Helm", labelTag: "default"})
	out.SetAnnotations(map[string]string{"meta.helm.sh/release-name": "istiod", "meta.helm.sh/release-namespace": "ops"})
	out.SetOwnerReferences(nil)
	out.SetUID("theirs")
	return out
}

// everything is all that the operator writes for a mesh, outside of its members.
func everything(t *testing.T, p Plane) []client.Object {
	t.Helper()
	objects, err := Manifests(p)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Concat(Bindings(p), objects, Webhooks(p, Serving{}))
}

const scaled = `{"pilot":{"autoscaleMin":2}}`

// planes makes a world with the mesh default in istio-system, alone on its cluster, and what reconciles its revision.
func planes(t *testing.T, funcs interceptor.Funcs, values string, objects ...client.Object) (*revisions, *sailv1.IstioRevision) {
	t.Helper()
	rev := revisionOf("default", "istio-system")
	rev.Spec.Values = &sailv1.Values{Raw: []byte(values)}
	rev.Finalizers = []string{sailv1.Finalizer}
	objects = append(objects, rev, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "istio-system"}})
	c := store(t, funcs, objects...)
	return &revisions{client: c, live: c, namespace: Namespace, log: slog.New(slog.DiscardHandler), now: time.Now}, rev
}

func reconcileOnce(t *testing.T, r reconcile.Reconciler, o client.Object) (reconcile.Result, error) {
	t.Helper()
	return r.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(o)})
}

// reconciled is the condition of a revision after it was looked at once.
func reconciled(t *testing.T, r *revisions, rev *sailv1.IstioRevision) (*metav1.Condition, reconcile.Result) {
	t.Helper()
	result, err := reconcileOnce(t, r, rev)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.client.Get(t.Context(), client.ObjectKeyFromObject(rev), rev); err != nil {
		t.Fatal(err)
	}
	return meta.FindStatusCondition(rev.Status.Conditions, "Reconciled"), result
}

// writes counts what a client writes beside statuses.
func writes(n *int) interceptor.Funcs {
	return interceptor.Funcs{
		Apply: func(ctx context.Context, c client.WithWatch, o runtime.ApplyConfiguration, opts ...client.ApplyOption) error {
			*n++
			return c.Apply(ctx, o, opts...)
		},
		Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			*n++
			return c.Create(ctx, o, opts...)
		},
		Delete: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
			*n++
			return c.Delete(ctx, o, opts...)
		},
		Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
			*n++
			return c.Patch(ctx, o, p, opts...)
		},
	}
}

// One object of somebody else, whichever it is, and nothing is written at all; once it is gone, everything is.
func TestNothingForeignIsTaken(t *testing.T) {
	for _, o := range everything(t, planeOf(t, "default", "istio-system", scaled)) {
		kind := o.GetObjectKind().GroupVersionKind().Kind
		t.Run(kind+" "+o.GetName(), func(t *testing.T) {
			n, foreign := 0, theirs(o)
			r, rev := planes(t, writes(&n), scaled, foreign)
			if err := r.client.Get(t.Context(), client.ObjectKeyFromObject(foreign), foreign); err != nil {
				t.Fatal(err)
			}
			before := foreign.DeepCopyObject()
			cond, result := reconciled(t, r, rev)
			if cond == nil || cond.Reason != reasonForeign || !strings.Contains(cond.Message, kind+" "+name(o)) || !strings.Contains(cond.Message, "Helm release ops/istiod") {
				t.Fatalf("condition %+v", cond)
			}
			if ready := meta.FindStatusCondition(rev.Status.Conditions, "Ready"); ready.Status == metav1.ConditionTrue {
				t.Errorf("ready by what is not ours: %+v", ready)
			}
			if err := r.client.Get(t.Context(), client.ObjectKeyFromObject(foreign), foreign); err != nil || !equality.Semantic.DeepEqual(before, foreign) {
				t.Errorf("it was changed: %v", err)
			}
			if n > 0 {
				t.Errorf("%d writes", n)
			}
			if result.RequeueAfter == 0 {
				t.Error("nobody looks again once it is gone")
			}
			if err := r.client.Delete(t.Context(), foreign); err != nil {
				t.Fatal(err)
			}
			if cond, _ := reconciled(t, r, rev); cond.Status != metav1.ConditionTrue {
				t.Errorf("without it: %+v", cond)
			}
		})
	}
}

// Its label is not all by which the operator knows its own.
func TestAStrippedLabelComesBack(t *testing.T) {
	r, rev := planes(t, interceptor.Funcs{}, scaled)
	reconciled(t, r, rev)
	for _, o := range everything(t, planeOf(t, "default", "istio-system", scaled)) {
		if err := r.client.Get(t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
			t.Fatal(err)
		}
		labels := o.GetLabels()
		delete(labels, labelMesh)
		o.SetLabels(labels)
		if err := r.client.Update(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	if cond, _ := reconciled(t, r, rev); cond.Status != metav1.ConditionTrue {
		t.Fatalf("%+v", cond)
	}
	for _, o := range everything(t, planeOf(t, "default", "istio-system", scaled)) {
		if err := r.client.Get(t.Context(), client.ObjectKeyFromObject(o), o); err != nil || o.GetLabels()[labelMesh] != "default" {
			t.Errorf("%T %s: %v, %v", o, name(o), o.GetLabels(), err)
		}
	}
}

// Who makes an object between our look and our write keeps it as it was.
func TestARaceForANameIsLost(t *testing.T) {
	for _, o := range []client.Object{
		&corev1.ServiceAccount{ // sets nothing that we set
			ObjectMeta: metav1.ObjectMeta{Name: "istiod", Namespace: "istio-system", UID: "theirs", Annotations: map[string]string{"a": "b"}},
		},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "istio", Namespace: "istio-system", UID: "theirs"}, Data: map[string]string{"mesh": "theirs"}},
	} {
		raced := false
		r, rev := planes(t, interceptor.Funcs{Apply: func(ctx context.Context, c client.WithWatch, a runtime.ApplyConfiguration, opts ...client.ApplyOption) error {
			if !raced {
				raced = true
				if err := c.Create(ctx, o, client.FieldOwner("helm")); err != nil {
					return err
				}
			}
			return c.Apply(ctx, a, opts...)
		}}, `{}`)
		if _, err := reconcileOnce(t, r, rev); !apierrors.IsConflict(err) {
			t.Errorf("%T: %v", o, err)
		}
		if err := r.client.Get(t.Context(), client.ObjectKeyFromObject(o), o); err != nil || len(o.GetLabels())+len(o.GetOwnerReferences()) > 0 {
			t.Errorf("%T: labels %v, owners %v, %v", o, o.GetLabels(), o.GetOwnerReferences(), err)
		}
		if cond, _ := reconciled(t, r, rev); cond.Reason != reasonForeign || !strings.Contains(cond.Message, "written by helm") {
			t.Errorf("%T, looked at again: %+v", o, cond)
		}
	}
}

func TestOnlyOursIsDeleted(t *testing.T) {
	at := metav1.ObjectMeta{Name: "istiod", Namespace: "istio-system"}
	for _, o := range []client.Object{
		&autoscalingv2.HorizontalPodAutoscaler{ObjectMeta: at}, &policyv1.PodDisruptionBudget{ObjectMeta: at},
	} {
		r, rev := planes(t, interceptor.Funcs{}, `{}`, theirs(o))
		if cond, _ := reconciled(t, r, rev); cond.Status != metav1.ConditionTrue { // it wants neither
			t.Fatalf("%+v", cond)
		}
		if err := r.client.Get(t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
			t.Errorf("%T: %v", o, err)
		}
	}
}

// tagged makes a world with the mesh m1 and a tag of it.
func tagged(t *testing.T, name string, objects ...client.Object) (*tags, *sailv1.IstioRevisionTag) {
	t.Helper()
	tag := &sailv1.IstioRevisionTag{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: "tag"},
		Spec:       sailv1.IstioRevisionTagSpec{TargetRef: sailv1.TargetRef{Kind: "IstioRevision", Name: "m1"}},
	}
	c := store(t, interceptor.Funcs{}, append(objects, tag, revisionOf("m1", "sys-1"))...)
	return &tags{client: c, live: c}, tag
}

func TestATagTakesNothingForeign(t *testing.T) {
	for _, o := range TagObjects(planeOf(t, "m1", "sys-1", selecting("d", "m1")), "default", Serving{}) {
		kind := o.GetObjectKind().GroupVersionKind().Kind
		r, tag := tagged(t, "default", theirs(o))
		result, err := reconcileOnce(t, r, tag)
		if gerr := r.client.Get(t.Context(), client.ObjectKeyFromObject(tag), tag); err != nil || gerr != nil || result.RequeueAfter == 0 {
			t.Fatalf("%v, %v, %v", result, err, gerr)
		}
		cond := meta.FindStatusCondition(tag.Status.Conditions, "Reconciled")
		if cond.Reason != reasonForeign || !strings.Contains(cond.Message, kind+" "+name(o)) || !strings.Contains(cond.Message, "Helm release ops/istiod") {
			t.Errorf("%s: %+v", kind, cond)
		}
		var validators admissionv1.ValidatingWebhookConfigurationList
		var injectors admissionv1.MutatingWebhookConfigurationList
		var services corev1.ServiceList
		if err := errors.Join(r.client.List(t.Context(), &validators), r.client.List(t.Context(), &injectors), r.client.List(t.Context(), &services)); err != nil {
			t.Fatal(err)
		}
		if n := len(validators.Items) + len(injectors.Items) + len(services.Items); n != 1 {
			t.Errorf("%s: %d objects beside the foreign one", kind, n-1)
		}
		// It carries Istio's label of the tag, and stays when ours goes.
		if err := r.prune(t.Context(), tag.Name, nil); err != nil {
			t.Fatal(err)
		}
		if err := r.client.Get(t.Context(), client.ObjectKeyFromObject(o), o); err != nil || o.GetLabels()[labelMesh] != "" {
			t.Errorf("%s: %v, %v", kind, o.GetLabels(), err)
		}
	}
}

func TestATagLeavesCopiesOfOthers(t *testing.T) {
	var objects, copies []client.Object
	for _, o := range TagObjects(planeOf(t, "m1", "sys-1", selecting("d", "m1")), "default", Serving{}) {
		copied := o.DeepCopyObject().(client.Object)
		copied.SetName("copy-of-" + o.GetName())
		objects, copies = append(objects, o), append(copies, copied)
	}
	r, tag := tagged(t, "default", slices.Concat(objects, copies)...)
	if err := r.prune(t.Context(), tag.Name, nil); err != nil {
		t.Fatal(err)
	}
	for i, o := range objects {
		if err := r.client.Get(t.Context(), client.ObjectKeyFromObject(o), o); !apierrors.IsNotFound(err) {
			t.Errorf("%T %s of the tag: %v", o, o.GetName(), err)
		}
		if err := r.client.Get(t.Context(), client.ObjectKeyFromObject(copies[i]), copies[i]); err != nil {
			t.Errorf("%T %s: %v", o, copies[i].GetName(), err)
		}
	}
}

// A binding that somebody gave the label of a mesh to stays when that goes: the operator may not delete it, and would try for ever.
func TestUninstallLeavesClusterBindingsOfOthers(t *testing.T) {
	p := planeOf(t, "default", "istio-system", `{}`)
	theirs := p.clusterBinding(roleMember)
	theirs.Name, theirs.RoleRef.Name = "admins", "cluster-admin"
	r, rev := planes(t, interceptor.Funcs{}, `{}`, theirs, p.clusterBinding(roleMember), p.clusterBinding(roleCluster))
	if err := r.client.Delete(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
	if _, err := reconcileOnce(t, r, rev); err != nil {
		t.Fatal(err)
	}
	var left rbacv1.ClusterRoleBindingList
	err := r.client.List(t.Context(), &left)
	if err != nil || len(left.Items) != 1 || left.Items[0].Name != "admins" {
		t.Errorf("%v, %v", left.Items, err)
	}
	if err := r.client.Get(t.Context(), client.ObjectKeyFromObject(rev), rev); !apierrors.IsNotFound(err) {
		t.Errorf("the revision: %v", err)
	}
}

// What carries the label of a mesh under another name is a user's copy, and stays when the mesh goes, with all that it has itself.
func TestUninstallLeavesCopiesOfOthers(t *testing.T) {
	p := planeOf(t, "default", "istio-system", scaled)
	r, rev := planes(t, interceptor.Funcs{}, scaled)
	if cond, _ := reconciled(t, r, rev); cond.Status != metav1.ConditionTrue {
		t.Fatalf("%+v", cond)
	}
	ours := everything(t, p)
	for _, o := range Webhooks(p, Serving{}) { // these wait for a ready control plane
		if err := r.client.Create(t.Context(), o.DeepCopyObject().(client.Object)); client.IgnoreAlreadyExists(err) != nil {
			t.Fatal(err)
		}
	}
	var copies []client.Object
	for _, o := range ours {
		copied := o.DeepCopyObject().(client.Object)
		copied.SetName("copy-of-" + o.GetName())
		if err := r.client.Create(t.Context(), copied); err != nil {
			t.Fatal(err)
		}
		copies = append(copies, copied)
	}
	if err := r.client.Delete(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
	if _, err := reconcileOnce(t, r, rev); err != nil {
		t.Fatal(err)
	}
	there := func(gvk schema.GroupVersionKind, o client.Object) bool {
		m := metadataOf(gvk)
		err := r.client.Get(t.Context(), client.ObjectKeyFromObject(o), m)
		if client.IgnoreNotFound(err) != nil {
			t.Fatal(err)
		}
		return err == nil
	}
	for i, o := range ours {
		gvk := o.GetObjectKind().GroupVersionKind()
		if there(gvk, o) {
			t.Errorf("%s %s of the mesh is left", gvk.Kind, name(o))
		}
		if !there(gvk, copies[i]) {
			t.Errorf("%s %s is not the mesh's and gone", gvk.Kind, name(copies[i]))
		}
	}
}

func sailAt(replicas int32) *appsv1.Deployment {
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "sail-operator", Namespace: "sail-operator", Labels: map[string]string{"app.kubernetes.io/component": "sail-operator"}},
		Spec:       appsv1.DeploymentSpec{Replicas: &replicas, Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{ServiceAccountName: "sail"}}},
	}
}

// powerful answers who may write the status of an Istio: the one user, by his groups too.
func powerful(user string, funcs interceptor.Funcs) interceptor.Funcs {
	funcs.Create = func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
		review, ok := o.(*authorizationv1.SubjectAccessReview)
		if !ok {
			return c.Create(ctx, o, opts...)
		}
		a := review.Spec.ResourceAttributes
		review.Status.Allowed = review.Spec.User == user && slices.Contains(review.Spec.Groups, "system:serviceaccounts:sail-operator") &&
			a.Verb == "update" && a.Group == "sailoperator.io" && a.Resource == "istios" && a.Subresource == "status"
		return nil
	}
	return funcs
}

func TestARunningSailOperatorIsNamed(t *testing.T) {
	istio := istioIn("sys-1")
	istio.Spec.Version = DefaultVersion
	const sail = "system:serviceaccount:sail-operator:sail"
	for _, is := range []struct {
		replicas int32
		powerful string
		refused  bool
	}{
		{0, sail, false},
		{1, sail, true},
		{1, "nobody", false}, // a label, which anybody may give to a Deployment, stops no mesh
	} {
		replicas, refused := is.replicas, is.refused
		d := sailAt(replicas)
		c := store(t, powerful(is.powerful, interceptor.Funcs{}), d, istio, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "sys-1"}})
		r := &istios{client: c, live: c, rivals: rivalsIn(c), table: &table{client: c}, namespace: Namespace, events: events.NewFakeRecorder(10)}
		result, err := reconcileOnce(t, r, istio)
		if err != nil || (replicas > 0) != (result.RequeueAfter > 0) { // no event tells that its rights are gone, or come
			t.Fatal(result, err)
		}
		got := &sailv1.Istio{}
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(istio), got); err != nil {
			t.Fatal(err)
		}
		cond := meta.FindStatusCondition(got.Status.Conditions, "Reconciled")
		named := cond.Status == metav1.ConditionFalse && cond.Reason == "SailOperatorRunning" && strings.Contains(cond.Message, "sail-operator/sail-operator")
		err = c.Get(t.Context(), client.ObjectKey{Name: "m1"}, &sailv1.IstioRevision{})
		if named != refused || apierrors.IsNotFound(err) != refused {
			t.Errorf("%v: %+v, revision: %v", is, cond, err)
		}

		n := 0
		c = store(t, powerful(is.powerful, writes(&n)), d)
		objects, err := Bootstrap(Images{Heddle: "h", Proxy: "p"}, Namespace)
		if err != nil {
			t.Fatal(err)
		}
		err = bring(t.Context(), c, objects)
		if refused && (err == nil || !strings.Contains(err.Error(), "sail-operator/sail-operator") || n > 0) || !refused && (err != nil || n != len(objects)) {
			t.Errorf("%v: the install makes %d of %d writes, %v", is, n, len(objects), err)
		}
	}
}

func rivalsIn(c client.Client) *rivals { return &rivals{deployments: c, reviews: c, now: time.Now} }

// An operator that gets its rights after it has come is noticed, though no event tells of them.
func TestRightsGivenLaterAreNoticed(t *testing.T) {
	istio, now, may := istioIn("sys-1"), time.Now(), "nobody"
	istio.Spec.Version = DefaultVersion
	c := store(t, interceptor.Funcs{Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
		return powerful(may, interceptor.Funcs{}).Create(ctx, c, o, opts...)
	}}, sailAt(1), istio, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "sys-1"}})
	r := &istios{client: c, live: c, rivals: rivalsIn(c), table: &table{client: c}, namespace: Namespace, events: events.NewFakeRecorder(10)}
	r.rivals.now = func() time.Time { return now }
	for _, step := range []struct{ may, reason string }{
		{"nobody", "Pending"}, {"system:serviceaccount:sail-operator:sail", reasonSail}, {"nobody", "Pending"},
	} {
		may = step.may
		result, err := reconcileOnce(t, r, istio)
		if err != nil || result.RequeueAfter == 0 {
			t.Fatal(result, err)
		}
		got := &sailv1.Istio{}
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(istio), got); err != nil {
			t.Fatal(err)
		}
		if cond := meta.FindStatusCondition(got.Status.Conditions, "Reconciled"); cond.Reason != step.reason {
			t.Errorf("while %s may: %+v", step.may, cond)
		}
		now = now.Add(result.RequeueAfter)
	}
}

// However many Deployments a tenant labels, each account is asked about once in a while, and few at once: else every mesh waits.
func TestFewAccountsAreAskedAbout(t *testing.T) {
	asked, now := 0, time.Now()
	funcs := interceptor.Funcs{Create: func(context.Context, client.WithWatch, client.Object, ...client.CreateOption) error {
		asked++
		return nil
	}}
	var objects []client.Object
	const accounts = 2*maxAsked + 1
	for i := range 2 * accounts {
		d := sailAt(1)
		d.Name = fmt.Sprint("d", i)
		d.Spec.Template.Spec.ServiceAccountName = fmt.Sprint("a", i/2)
		objects = append(objects, d)
	}
	r := rivalsIn(store(t, funcs, objects...))
	r.now = func() time.Time { return now }
	for _, want := range []int{maxAsked, maxAsked, 1, 0} {
		asked = 0
		if other, suspected, err := r.running(t.Context(), maxAsked); other != "" || !suspected || err != nil || asked != want {
			t.Errorf("%q, %v, %v, asked %d times, want %d", other, suspected, err, asked, want)
		}
	}
	now, asked = now.Add(foreignWait), 0
	if _, _, err := r.running(t.Context(), accounts); err != nil || asked != accounts {
		t.Errorf("later, asked %d times: %v", asked, err)
	}
}

func TestInstallTakesNothingForeign(t *testing.T) {
	objects, err := Bootstrap(Images{Heddle: "h", Proxy: "p"}, Namespace)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		kind := o.GetObjectKind().GroupVersionKind().Kind
		there := theirs(o)
		switch there := there.(type) {
		case *corev1.Namespace:
			continue // anybody may have made it
		case *apiextensionsv1.CustomResourceDefinition:
			there.Spec.Versions = nil // that of an Istio before it had ours
		}
		n := 0
		err := bring(t.Context(), store(t, writes(&n), there), objects)
		if err == nil || n > 0 || !strings.Contains(err.Error(), name(o)) || !strings.Contains(err.Error(), "Helm release ops/istiod") {
			t.Errorf("%s %s: %d writes, %v", kind, name(o), n, err)
		}
	}
}

func TestARevisionOfSomebodyElseIsNotTaken(t *testing.T) {
	made := revisionOf("m1", "elsewhere")
	made.OwnerReferences = nil
	istio := istioIn("sys-1")
	istio.Spec.Version = DefaultVersion
	n := 0
	c := store(t, writes(&n), made, istio, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "sys-1"}})
	r := &istios{client: c, live: c, rivals: rivalsIn(c), table: &table{client: c}, namespace: Namespace, events: events.NewFakeRecorder(10)}
	if _, err := reconcileOnce(t, r, istio); err != nil {
		t.Fatal(err)
	}
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(istio), istio); err != nil {
		t.Fatal(err)
	}
	cond := meta.FindStatusCondition(istio.Status.Conditions, "Reconciled")
	if cond.Reason != reasonForeign || !strings.Contains(cond.Message, "IstioRevision m1") || n > 0 {
		t.Errorf("%d writes, %+v", n, cond)
	}
}

// The account of somebody else's control plane gets no rights, and a binding of somebody else is not replaced.
func TestNoRightsByWhatIsForeign(t *testing.T) {
	ns := func(name string) *corev1.Namespace {
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, UID: "1", Labels: map[string]string{"d": "m1"}}}
	}
	istio := istioIn("sys-1")
	istio.Spec.Values = &sailv1.Values{Raw: []byte(selecting("d", "m1"))}
	p := planeOf(t, "m1", "sys-1", selecting("d", "m1"))
	objects, err := Manifests(p)
	if err != nil {
		t.Fatal(err)
	}
	account, binding := objects[0], theirs(MemberBinding(p, "app"))
	for _, c := range []struct {
		name    string
		there   []client.Object
		members int
		again   bool
	}{
		{"another's account", []client.Object{theirs(account)}, 0, false},
		{"another's binding", []client.Object{account, binding}, 0, true},
		{"ours", []client.Object{account}, 1, false},
	} {
		s := store(t, interceptor.Funcs{}, append(c.there, ns("app"), ns("sys-1"), istio, revisionOf("m1", "sys-1"))...)
		result, err := reconcileOnce(t, membershipOn(s), ns("app"))
		var members heddlev1alpha1.MembershipList
		if lerr := s.List(t.Context(), &members); err != nil || lerr != nil || len(members.Items) != c.members || result.RequeueAfter > 0 != c.again {
			t.Errorf("%s: %v, members %v, %v, %v", c.name, result, members.Items, err, lerr)
		}
		b := &rbacv1.RoleBinding{}
		if err := s.Get(t.Context(), client.ObjectKeyFromObject(binding), b); client.IgnoreNotFound(err) != nil || b.Labels[labelMesh] != "" != (c.members > 0) {
			t.Errorf("%s: binding %v, %v", c.name, b, err)
		}
	}
}
