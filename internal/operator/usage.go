package operator

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
)

// Indexes of pods and namespaces by the revision or tag that they refer to.
const (
	byInjected = "injected" // pods, by the revision whose sidecar they have
	byAsks     = "asks"     // pods, by the name in their labels
	byRefers   = "refers"   // namespaces, by the name in their labels
)

var podKind = corev1.SchemeGroupVersion.WithKind("Pod")

// namespaceRefers is the revision or tag whose sidecars a namespace asks for. Source: operator contract 2.6.
func namespaceRefers(o client.Object) []string {
	l := o.GetLabels()
	switch {
	case l[labelInjection] == "enabled":
		return []string{sailv1.DefaultName}
	case l[labelRevision] != "":
		return []string{l[labelRevision]}
	}
	return nil
}

// podAsks is the revision or tag that a pod's own labels ask for; they count only where its namespace asks for none.
func podAsks(o client.Object) []string {
	l := o.GetLabels()
	switch {
	case l[labelInject] == "false":
		return nil
	case l[labelRevision] != "":
		return []string{l[labelRevision]}
	case l[labelInject] == "true":
		return []string{sailv1.DefaultName}
	}
	return nil
}

func podInjected(o client.Object) []string {
	if rev := o.GetAnnotations()[labelRevision]; rev != "" {
		return []string{rev}
	}
	return nil
}

// usage keeps the condition InUse of every revision and tag. It writes nothing else, so that pods that come and go cost no
// more than look-ups.
type usage struct{ client client.Client }

// Reconcile looks at all revisions and tags: there are few, and one pod may concern several.
func (u *usage) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	var revisions sailv1.IstioRevisionList
	var tags sailv1.IstioRevisionTagList
	if err := u.client.List(ctx, &revisions); err != nil {
		return reconcile.Result{}, fmt.Errorf("list the revisions: %w", err)
	}
	if err := u.client.List(ctx, &tags); err != nil {
		return reconcile.Result{}, fmt.Errorf("list the tags: %w", err)
	}
	tagged := map[string]bool{}
	for i := range tags.Items {
		t := &tags.Items[i]
		tagged[t.Status.IstioRevision] = true
		used, err := u.referred(ctx, t.Name)
		if err != nil {
			return reconcile.Result{}, err
		}
		if setUse(&t.Status.Conditions, t.Generation, used) {
			t.Status.State = state(t.Status.Conditions, "Reconciled", "InUse")
			if err := writeStatus(ctx, u.client, t); err != nil {
				return reconcile.Result{}, err
			}
		}
	}
	for i := range revisions.Items {
		r := &revisions.Items[i]
		used, err := u.used(ctx, r, tagged[r.Name])
		if err != nil {
			return reconcile.Result{}, err
		}
		if setUse(&r.Status.Conditions, r.Generation, used) {
			if err := writeStatus(ctx, u.client, r); err != nil {
				return reconcile.Result{}, err
			}
		}
	}
	return reconcile.Result{}, nil
}

func (u *usage) used(ctx context.Context, r *sailv1.IstioRevision, tagged bool) (bool, error) {
	if tagged {
		return true, nil
	}
	if s, err := parseValues(r.Spec.Values); err == nil && r.Name == sailv1.DefaultName && s.SidecarInjectorWebhook.EnableNamespacesByDefault {
		return true, nil
	}
	pods := metadataListOf(podKind)
	if err := u.client.List(ctx, pods, client.MatchingFields{byInjected: r.Name}, client.Limit(1)); err != nil {
		return false, fmt.Errorf("list the pods of revision %s: %w", r.Name, err)
	}
	if len(pods.Items) > 0 {
		return true, nil
	}
	return u.referred(ctx, r.Name)
}

// referred reports whether labels of a namespace or pod ask for the name.
func (u *usage) referred(ctx context.Context, name string) (bool, error) {
	namespaces := metadataListOf(corev1.SchemeGroupVersion.WithKind(namespaceKind))
	if err := u.client.List(ctx, namespaces, client.MatchingFields{byRefers: name}, client.Limit(1)); err != nil {
		return false, fmt.Errorf("list the namespaces that ask for %s: %w", name, err)
	}
	if len(namespaces.Items) > 0 {
		return true, nil
	}
	pods := metadataListOf(podKind)
	if err := u.client.List(ctx, pods, client.MatchingFields{byAsks: name}); err != nil {
		return false, fmt.Errorf("list the pods that ask for %s: %w", name, err)
	}
	for i := range pods.Items {
		ns := metadataOf(corev1.SchemeGroupVersion.WithKind(namespaceKind))
		if err := u.client.Get(ctx, client.ObjectKey{Name: pods.Items[i].Namespace}, ns); client.IgnoreNotFound(err) != nil {
			return false, err
		}
		if len(namespaceRefers(ns)) == 0 {
			return true, nil
		}
	}
	return false, nil
}

func setUse(conditions *[]metav1.Condition, generation int64, used bool) bool {
	c := metav1.Condition{
		Type: "InUse", Status: metav1.ConditionFalse, Reason: "NotReferencedByAnything", ObservedGeneration: generation,
		Message: "no namespace, pod or tag refers to it",
	}
	if used {
		c.Status, c.Reason, c.Message = metav1.ConditionTrue, "ReferencedByWorkloads", ""
	}
	return meta.SetStatusCondition(conditions, c)
}

// state is Healthy, or the reason of the first of the conditions that is not true.
func state(conditions []metav1.Condition, order ...string) string {
	for _, t := range order {
		if c := meta.FindStatusCondition(conditions, t); c != nil && c.Status != metav1.ConditionTrue {
			return c.Reason
		}
	}
	return "Healthy"
}

// writeStatus writes the status of an object that was read. Several controllers write conditions of one object: whoever read
// an older one gets a conflict and is called again.
func writeStatus(ctx context.Context, c client.Client, o client.Object) error {
	if err := client.IgnoreNotFound(c.Status().Update(ctx, o)); err != nil {
		return fmt.Errorf("write the status of %s: %w", name(o), err)
	}
	return nil
}
