package cli

import (
	"context"
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
	"github.com/heddle-mesh/heddle/internal/operator"
)

const vsCRD = "virtualservices.networking.istio.io"

// installed0 is a cluster with all that install operator and the operator bring, and these objects, made by a user.
func installed0(t *testing.T, objects ...client.Object) cluster {
	t.Helper()
	scheme, err := operator.Scheme()
	if err := errors.Join(err, networkingv1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	b := fake.NewClientBuilder().WithScheme(scheme).WithReturnManagedFields()
	for _, o := range []client.Object{&sailv1.Istio{}, &sailv1.IstioRevision{}, &sailv1.IstioRevisionTag{}, &appsv1.Deployment{}, &apiextensionsv1.CustomResourceDefinition{}} {
		b = b.WithIndex(o, "metadata.name", byName)
	}
	// What the operator and the garbage collector do: a mesh that goes takes its revision along.
	b = b.WithInterceptorFuncs(interceptor.Funcs{Delete: func(ctx context.Context, w client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
		if o.GetObjectKind().GroupVersionKind().Kind == "Istio" {
			if err := w.Delete(ctx, &sailv1.IstioRevision{ObjectMeta: metav1.ObjectMeta{Name: o.GetName()}}); client.IgnoreNotFound(err) != nil {
				return err
			}
		}
		return w.Delete(ctx, o, opts...)
	}})
	c := cluster{WithWatch: b.Build()}
	all, err := operator.Installed(operator.Namespace)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range all {
		switch o := o.(type) {
		case *appsv1.Deployment:
			o.Status.AvailableReplicas = 2
		case *apiextensionsv1.CustomResourceDefinition:
			if o.Name != vsCRD && o.Spec.Group != "sailoperator.io" && o.Spec.Group != "heddle.dev" {
				continue // one of Istio's is enough
			}
			for i := range o.Spec.Versions {
				o.Spec.Versions[i].Schema = nil // the fake merges managers field by field
			}
		}
		if o.GetName() == "heddle-operator-webhook" || o.GetObjectKind().GroupVersionKind().Kind == "ValidatingWebhookConfiguration" {
			o.SetLabels(map[string]string{"app.kubernetes.io/part-of": "heddle"})
		}
		c.make(t, operatorName, o)
	}
	for _, o := range objects {
		c.make(t, "kubectl", o)
	}
	return c
}

func (c cluster) make(t *testing.T, manager string, o client.Object) {
	t.Helper()
	if err := c.Create(t.Context(), o, client.FieldOwner(manager)); err != nil {
		t.Fatal(err)
	}
}

func (c cluster) has(t *testing.T, o client.Object) bool {
	t.Helper()
	err := c.Get(t.Context(), client.ObjectKeyFromObject(o), o)
	if client.IgnoreNotFound(err) != nil {
		t.Fatal(err)
	}
	return !apierrors.IsNotFound(err)
}

func virtualService(name string) client.Object {
	return &networkingv1.VirtualService{ObjectMeta: metav1.ObjectMeta{Namespace: "app", Name: name}}
}

func definition(name string) client.Object {
	return &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

func deployment() client.Object {
	return &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: operator.Namespace, Name: operatorName}}
}

// meshThere is a mesh as it is once the operator has seen it: with a revision and install's tag, which go with it.
func meshThere() []client.Object {
	i := istio("mesh-1", "sys-1", `{"matchLabels":{"a":"b"}}`)
	of := []metav1.OwnerReference{{APIVersion: "sailoperator.io/v1", Kind: "Istio", Name: "mesh-1", UID: "u"}}
	return []client.Object{
		&i, &sailv1.IstioRevision{ObjectMeta: metav1.ObjectMeta{Name: "mesh-1", OwnerReferences: of}, Spec: sailv1.IstioRevisionSpec{Namespace: "sys-1"}},
		&sailv1.IstioRevisionTag{ObjectMeta: metav1.ObjectMeta{Name: "default", OwnerReferences: of, Labels: map[string]string{madeBy: fieldManager}}},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "sys-1", Name: caSecret}},
	}
}

// F8: what goes, what stays, and what refuses.
func TestUninstallOperator(t *testing.T) {
	handMade := &sailv1.IstioRevision{ObjectMeta: metav1.ObjectMeta{Name: "hand"}}
	ca := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "sys-1", Name: caSecret}}
	stranger := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: operator.Namespace, Name: "notes"}}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: operator.Namespace}}
	mesh := &sailv1.Istio{ObjectMeta: metav1.ObjectMeta{Name: "mesh-1"}}
	for _, c := range []struct {
		name       string
		there      []client.Object
		args       string
		says       string // in output or error, a regular expression
		fails      bool
		goes, stay []client.Object
	}{
		{
			name: "nobody uses it", args: "-y", says: `(?s)Left.*` + vsCRD + `.*--purge deletes it.*kubectl delete customresourcedefinition.apiextensions.k8s.io ` + vsCRD,
			goes: []client.Object{deployment(), &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "heddle-mesh-member"}}}, stay: []client.Object{definition(vsCRD), ns},
		},
		{
			name: "a user's objects do not matter without --purge", args: "-y", there: []client.Object{virtualService("a")}, says: "operator removed",
			goes: []client.Object{deployment()}, stay: []client.Object{virtualService("a"), definition(vsCRD)},
		},
		{name: "no terminal", says: "--skip-confirmation", fails: true, stay: []client.Object{deployment()}},
		{name: "purge", args: "-y --purge", says: "5 custom resource definitions removed", goes: []client.Object{deployment(), definition(vsCRD), ns}},
		{
			name: "a mesh", args: "-y", there: meshThere(), says: "nothing was removed: .*what users made, 1 Istio; .*--delete-user-objects 1$", fails: true,
			stay: []client.Object{deployment(), mesh},
		},
		{
			name: "a mesh, confirmed; its CA stays", args: "-y --delete-user-objects 1", there: meshThere(), says: "(?s)meshes removed.*operator removed.*Secret sys-1/istio-ca-secret .*kubectl delete -n sys-1 secret istio-ca-secret",
			goes: []client.Object{mesh, deployment(), &sailv1.IstioRevision{ObjectMeta: metav1.ObjectMeta{Name: "mesh-1"}}}, stay: []client.Object{ca},
		},
		{name: "its CA too", args: "-y --delete-user-objects 1 --delete-ca-secrets", there: meshThere(), says: "Secret sys-1/istio-ca-secret removed", goes: []client.Object{mesh, ca}},
		{
			name: "all kinds are counted", args: "-y --purge", there: append(meshThere(), handMade, virtualService("a"), virtualService("b")),
			says: "2 VirtualService, 1 Istio, 1 IstioRevision; .*--delete-user-objects 4$", fails: true, stay: []client.Object{deployment(), mesh, virtualService("a")},
		},
		{
			name: "a wrong number", args: "-y --purge --delete-user-objects 3", there: append(meshThere(), virtualService("a")), says: "nothing was removed: --delete-user-objects 3, but there are 2:", fails: true,
			stay: []client.Object{deployment(), mesh, virtualService("a")},
		},
		{name: "a number of nothing", args: "-y --delete-user-objects 3", says: "but there are 0: none", fails: true, stay: []client.Object{deployment()}},
		{
			name: "dry run", args: "--dry-run --purge", there: append(meshThere(), virtualService("a")), says: "(?s)what users made: .*1 VirtualService.*Deployment heddle-system/heddle-operator.*definition " + vsCRD + ".*It wants --delete-user-objects 2.",
			stay: []client.Object{deployment(), mesh, virtualService("a"), definition(vsCRD), ns},
		},
		{
			name: "something else lives in its namespace", args: "-y --purge", there: []client.Object{stranger}, says: `Namespace heddle-system \(holds ConfigMap notes\)`,
			goes: []client.Object{deployment(), definition(vsCRD)}, stay: []client.Object{ns, stranger},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			var there []client.Object
			for _, o := range c.there {
				there = append(there, o.DeepCopyObject().(client.Object))
			}
			w := installed0(t, there...)
			out, err := runVerb(t, w, strings.NewReader(""), append([]string{"uninstall", "operator"}, strings.Fields(c.args)...)...)
			if err != nil {
				out += err.Error()
			}
			if (err != nil) != c.fails || !regexp.MustCompile(c.says).MatchString(out) {
				t.Errorf("%v, want %q:\n%s", err, c.says, out)
			}
			for _, o := range c.goes {
				if w.has(t, o.DeepCopyObject().(client.Object)) {
					t.Errorf("%T %s is there", o, o.GetName())
				}
			}
			for _, o := range c.stay {
				if !w.has(t, o.DeepCopyObject().(client.Object)) {
					t.Errorf("%T %s is gone", o, o.GetName())
				}
			}
		})
	}
}

// What somebody else has a hand in stays, though it has the name of one of ours; a definition goes with a flag of its own.
func TestUninstallOperatorLeavesOthers(t *testing.T) {
	helms := func(w cluster) {
		crd := &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: vsCRD}}
		if !w.has(t, crd) {
			t.Fatal("no definition")
		}
		crd.Spec.Names.ShortNames = []string{"vs", "virt"}
		if err := w.Update(t.Context(), crd, client.FieldOwner("helm")); err != nil {
			t.Fatal(err)
		}
	}
	unmarked := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "heddle-mesh-member"}}
	w := installed0(t)
	helms(w)
	if err := w.Delete(t.Context(), unmarked.DeepCopy()); err != nil {
		t.Fatal(err)
	}
	w.make(t, "somebody", unmarked.DeepCopy())
	out, err := runVerb(t, w, nil, "uninstall", "operator", "-y", "--purge")
	if err != nil || !strings.Contains(out, vsCRD+" (of helm too; --purge --delete-foreign-definitions deletes it as well)") || !strings.Contains(out, "ClusterRole heddle-mesh-member (of somebody") {
		t.Errorf("%v\n%s", err, out)
	}
	if !w.has(t, definition(vsCRD)) || !w.has(t, unmarked.DeepCopy()) || w.has(t, definition("istios.sailoperator.io")) {
		t.Error("took what is not ours, or left what is")
	}
	// Again: what is left is left, and a flag takes it.
	if out, err = runVerb(t, w, nil, "uninstall", "operator", "-y", "--purge"); err != nil || !strings.Contains(out, "There is nothing to remove.") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err = runVerb(t, w, nil, "uninstall", "operator", "-y", "--purge", "--delete-foreign-definitions"); err != nil || w.has(t, definition(vsCRD)) {
		t.Errorf("%v\n%s", err, out)
	}
}

// Without an operator that runs nobody takes meshes apart: their objects would never end.
func TestUninstallOperatorThatDoesNotRun(t *testing.T) {
	w := installed0(t, meshThere()...)
	if err := w.Delete(t.Context(), deployment()); err != nil {
		t.Fatal(err)
	}
	out, err := runVerb(t, w, nil, "uninstall", "operator", "-y", "--delete-user-objects", "1")
	if err == nil || !strings.Contains(err.Error(), "start it first: heddle install operator") {
		t.Errorf("%v\n%s", err, out)
	}
	if !w.has(t, &sailv1.Istio{ObjectMeta: metav1.ObjectMeta{Name: "mesh-1"}}) {
		t.Error("the mesh is gone")
	}
}

// What is made while it runs was confirmed by nobody: its definition stays.
func TestUninstallOperatorWhileUsersWork(t *testing.T) {
	for name, late := range map[string]client.Object{
		"virtualservices.networking.istio.io": virtualService("late"), "istios.sailoperator.io": &sailv1.Istio{ObjectMeta: metav1.ObjectMeta{Name: "late"}},
	} {
		w := installed0(t, append(meshThere(), virtualService("a"))...)
		made := false
		w.WithWatch = interceptor.NewClient(w.WithWatch, interceptor.Funcs{Delete: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
			if o.GetObjectKind().GroupVersionKind().Kind == "Deployment" && !made {
				made = true
				if err := c.Create(ctx, late); err != nil {
					return err
				}
			}
			return c.Delete(ctx, o, opts...)
		}})
		out, err := runVerb(t, w, nil, "uninstall", "operator", "-y", "--purge", "--delete-user-objects", "2")
		if err == nil || !strings.Contains(err.Error(), "definition "+name+" stays") || !w.has(t, definition(name)) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

// The order of taking away: nothing of the operator's is deleted before the meshes, and nothing but it before its Deployment.
func TestUninstallOperatorOrder(t *testing.T) {
	w := installed0(t, meshThere()...)
	var order []string
	w.WithWatch = interceptor.NewClient(w.WithWatch, interceptor.Funcs{Delete: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
		if kind := o.GetObjectKind().GroupVersionKind().Kind; len(order) == 0 || order[len(order)-1] != kind {
			order = append(order, kind)
		}
		return c.Delete(ctx, o, opts...)
	}})
	if out, err := runVerb(t, w, nil, "uninstall", "operator", "-y", "--purge", "--delete-user-objects", "1"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if d := cmp.Diff([]string{"IstioRevisionTag", "Istio", "Deployment"}, order[:3]); d != "" {
		t.Error(d)
	}
	if last := order[len(order)-2:]; last[0] != "CustomResourceDefinition" || last[1] != "Namespace" {
		t.Errorf("ends with %v", last)
	}
}
