package operator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// unreadyBeforeIgnore is how long validators without a ready control plane refuse everything before they let all pass.
const unreadyBeforeIgnore = 60 * time.Second

const conditionWebhooks = "WebhooksReady" // of a revision; not part of its state

// revisions keeps one control plane, its rights and its webhook configurations as its IstioRevision says.
type revisions struct {
	client    client.Client
	live      client.Reader
	images    Images
	version   string
	namespace string // the operator's
	log       *slog.Logger
	prober    prober
	now       func() time.Time
}

// Reconcile does all of it again; where nothing has changed, nothing is written.
func (r *revisions) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	rev := &sailv1.IstioRevision{}
	if err := r.client.Get(ctx, req.NamespacedName, rev); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if rev.DeletionTimestamp != nil {
		return reconcile.Result{}, r.uninstall(ctx, rev)
	}
	// One that nobody's Istio asks for gets nothing, so nothing of it must be taken away.
	if ofIstio(rev) && !controllerutil.ContainsFinalizer(rev, sailv1.Finalizer) {
		old := rev.DeepCopy()
		controllerutil.AddFinalizer(rev, sailv1.Finalizer)
		if err := r.client.Patch(ctx, rev, client.MergeFromWithOptions(old, client.MergeFromWithOptimisticLock{})); err != nil {
			return reconcile.Result{}, fmt.Errorf("add the finalizer of revision %s: %w", rev.Name, err)
		}
	}
	before := rev.Status.DeepCopy()
	wait, err := r.install(ctx, rev)
	rev.Status.ObservedGeneration = rev.Generation
	rev.Status.IstioVersion, rev.Status.HeddleVersion = rev.Spec.Version, r.version
	rev.Status.State = state(rev.Status.Conditions, "Reconciled", "Ready", "DependenciesHealthy")
	if !equality.Semantic.DeepEqual(*before, rev.Status) {
		err = errors.Join(err, writeStatus(ctx, r.client, rev))
	}
	return reconcile.Result{RequeueAfter: wait}, err
}

// fault is a user's mistake: it goes into a condition and is not tried again until something changes.
type fault struct{ reason, message string }

func (f fault) Error() string { return f.message }

// again is how long to wait before the mistake is looked for again; 0 where an event tells that it is mended.
func (f fault) again() time.Duration {
	if f.reason == reasonForeign || f.reason == reasonSail {
		return foreignWait
	}
	return 0
}

// install writes objects and sets conditions; it returns when to look again though nothing has happened.
func (r *revisions) install(ctx context.Context, rev *sailv1.IstioRevision) (time.Duration, error) {
	set := func(kind string, status metav1.ConditionStatus, reason, message string) {
		meta.SetStatusCondition(&rev.Status.Conditions, metav1.Condition{
			Type: kind, Status: status, Reason: reason, Message: message, ObservedGeneration: rev.Generation,
		})
	}
	plane, err := r.write(ctx, rev)
	var f fault
	wait := time.Duration(0)
	switch {
	case errors.As(err, &f):
		set("Reconciled", metav1.ConditionFalse, f.reason, f.message)
		err, wait = nil, f.again()
	case err != nil:
		set("Reconciled", metav1.ConditionFalse, "ReconcileError", err.Error())
	default:
		set("Reconciled", metav1.ConditionTrue, "Reconciled", "")
	}
	set(plane.dependencies())
	if plane.Version == "" { // nothing could be read
		set("Ready", metav1.ConditionUnknown, "ReconcileError", "")
		return 0, err
	}
	d := &appsv1.Deployment{}
	derr := r.live.Get(ctx, client.ObjectKey{Namespace: plane.Namespace, Name: plane.service()}, d)
	missing := unready(d)
	switch {
	case client.IgnoreNotFound(derr) != nil:
		return 0, errors.Join(err, derr)
	case derr != nil || !meshOwner(plane.Mesh).owns(d):
		set("Ready", metav1.ConditionFalse, "IstiodNotReady", "the mesh has no Deployment "+plane.service())
	case missing != "":
		set("Ready", metav1.ConditionFalse, "IstiodNotReady", missing)
	default:
		set("Ready", metav1.ConditionTrue, "Ready", "")
	}
	if f != (fault{}) {
		return wait, nil
	}
	// What the API server refuses of the rest must not keep the bundle of a control plane that runs from being written.
	refused := err
	next, wait, err := r.webhooks(ctx, rev, plane, d.Status.ReadyReplicas > 0)
	switch {
	case err != nil:
		set(conditionWebhooks, metav1.ConditionFalse, "ProbeFailed", err.Error())
	case len(next.Bundle) == 0:
		set(conditionWebhooks, metav1.ConditionFalse, "IstiodNotReady", "the control plane has not served its root yet: pods that want a sidecar are refused")
	case next.Failing != admissionv1.Fail && plane.validates():
		set(conditionWebhooks, metav1.ConditionFalse, "ValidatorNotProven", "Istio objects pass unchecked: no control plane is ready "+
			"or was seen to refuse a bad object yet, or the system namespace lacks the labels of a discovery selector")
	default:
		set(conditionWebhooks, metav1.ConditionTrue, conditionWebhooks, "")
	}
	return wait, errors.Join(refused, err)
}

// dependencies is the condition that says whether there is what the mesh's values rely on. Source: operator contract 2.8.
func (p Plane) dependencies() (kind string, status metav1.ConditionStatus, reason, message string) {
	const healthy, lacks = "DependenciesHealthy", " relies on %s, of which this build has none: "
	value := func(path ...string) string {
		v, _, _ := unstructured.NestedFieldNoCopy(p.values, path...)
		return fmt.Sprint(v)
	}
	cni := value("pilot", "cni", "enabled")
	switch {
	case p.values == nil:
		return healthy, metav1.ConditionUnknown, "DependencyCheckFailed", "the values could not be read"
	case value("pilot", "env", "PILOT_ENABLE_AMBIENT") == "true" || value("profile") == "ambient":
		return healthy, metav1.ConditionFalse, "ZTunnelNotFound", "ambient mode" + fmt.Sprintf(lacks, "a ZTunnel") + "pods get sidecars only"
	case cni == "true" || value("global", "platform") == platformOpenShift && cni != "false":
		return healthy, metav1.ConditionFalse, "IstioCNINotFound", "pilot.cni.enabled, which the platform openshift implies," + fmt.Sprintf(lacks, "an IstioCNI") + "pods are redirected by their init container"
	}
	return healthy, metav1.ConditionTrue, healthy, ""
}

// unready says what a Deployment lacks to run what its spec asks for now, in all replicas; it is empty if nothing is missing.
func unready(d *appsv1.Deployment) string {
	s, of := d.Status, "Deployment "+name(d)
	switch {
	case s.ObservedGeneration < d.Generation:
		return of + " has changed, and nobody has looked at it yet"
	case s.UpdatedReplicas < s.Replicas:
		return fmt.Sprintf("%d of %d replicas of %s are of its newest template", s.UpdatedReplicas, s.Replicas, of)
	case s.Replicas == 0 || s.ReadyReplicas < s.Replicas:
		return fmt.Sprintf("%d of %d replicas of %s are ready", s.ReadyReplicas, s.Replicas, of)
	}
	return ""
}

// write applies everything but webhook configurations.
func (r *revisions) write(ctx context.Context, rev *sailv1.IstioRevision) (Plane, error) {
	if !ofIstio(rev) {
		return Plane{}, fault{"ReconcileError", "a revision belongs to an Istio object: create that, and the revision follows"}
	}
	plane, err := NewPlane(rev, r.images, r.version)
	if err != nil {
		return Plane{}, fault{"ReconcileError", err.Error()}
	}
	tag := &sailv1.IstioRevisionTag{}
	if err := r.client.Get(ctx, client.ObjectKey{Name: rev.Name}, tag); err == nil && olderObject(tag, rev) {
		return plane, fault{"NameAlreadyExists", "an IstioRevisionTag of this name is older; delete one of the two"}
	}
	if ok, err := namespaceActive(ctx, r.client, plane.Namespace); err != nil {
		return plane, err
	} else if !ok {
		return plane, fault{"ReconcileError", fmt.Sprintf("namespace %q does not exist or is being deleted; create it", plane.Namespace)}
	}
	objects, err := Manifests(plane)
	if err != nil {
		return plane, err
	}
	objects = append(Bindings(plane), objects...)
	for _, o := range objects {
		own(o, rev)
	}
	// Webhook configurations are written last; whether they can be is known before anything is.
	w := r.writer(plane.Mesh)
	if _, err := w.look(ctx, append(Webhooks(plane, Serving{}), objects...)...); err != nil {
		return plane, err
	}
	if err := w.write(ctx, objects...); err != nil {
		return plane, err
	}
	return plane, r.prune(ctx, plane)
}

func (r *revisions) writer(id mesh.ID) writer { return writer{r.client, r.live, meshOwner(id)} }

// ofIstio reports whether the operator wrote a revision for the Istio of its name.
func ofIstio(rev *sailv1.IstioRevision) bool {
	owner := metav1.GetControllerOf(rev)
	return owner != nil && owner.APIVersion == sailv1.GroupVersion.String() && owner.Kind == "Istio" && owner.Name == rev.Name
}

// prune removes what the plane's values asked for before and do not any more.
func (r *revisions) prune(ctx context.Context, p Plane) error {
	wanted := map[string]bool{}
	for _, o := range p.scaling() {
		wanted[o.GetObjectKind().GroupVersionKind().Kind] = true
	}
	w := r.writer(p.Mesh)
	for _, gvk := range []schema.GroupVersionKind{
		autoscalingv2.SchemeGroupVersion.WithKind("HorizontalPodAutoscaler"), policyv1.SchemeGroupVersion.WithKind("PodDisruptionBudget"),
	} {
		o := metadataOf(gvk)
		o.Namespace, o.Name = p.Namespace, p.service()
		if wanted[gvk.Kind] {
			continue
		}
		if err := w.remove(ctx, o); err != nil {
			return err
		}
	}
	if p.selectors == nil {
		return nil
	}
	// The rights that a mesh without selectors had for the cluster end once each member has its own binding.
	binding := metadataOf(rbacv1.SchemeGroupVersion.WithKind("ClusterRoleBinding"))
	if err := r.client.Get(ctx, client.ObjectKey{Name: clusterBindingName(roleMember, p.Mesh)}, binding); err != nil {
		return client.IgnoreNotFound(err)
	}
	members, bound, err := r.members(ctx, p.Mesh, p.Namespace)
	if err != nil {
		return err
	}
	for _, m := range members {
		if m.Spec.Phase == heddlev1alpha1.Leaving || !bound[m.Name] {
			return nil // its event brings us back
		}
	}
	return w.remove(ctx, binding)
}

// members are the Memberships of a mesh in its system namespace, and the namespaces that have a binding for it.
func (r *revisions) members(ctx context.Context, id mesh.ID, system string) ([]heddlev1alpha1.Membership, map[string]bool, error) {
	var list heddlev1alpha1.MembershipList
	of := client.MatchingLabels{labelMesh: string(id)}
	if err := r.client.List(ctx, &list, of, client.InNamespace(system)); err != nil {
		return nil, nil, fmt.Errorf("list the memberships of mesh %s: %w", id, err)
	}
	var bindings rbacv1.RoleBindingList
	if err := r.client.List(ctx, &bindings, of); err != nil {
		return nil, nil, fmt.Errorf("list the bindings of mesh %s: %w", id, err)
	}
	bound := map[string]bool{}
	for _, b := range bindings.Items {
		if b.Name == roleMember && b.DeletionTimestamp == nil { // else it is held by a finalizer of others
			bound[b.Namespace] = true
		}
	}
	return list.Items, bound, nil
}

// olderObject reports whether a name belongs to a rather than to b.
func olderObject(a, b client.Object) bool {
	ta, tb := a.GetCreationTimestamp(), b.GetCreationTimestamp()
	if ta.Equal(&tb) {
		return a.GetUID() < b.GetUID()
	}
	return ta.Before(&tb)
}

// own makes an object die with its revision or tag at the latest.
func own(o client.Object, owner client.Object) {
	kind := "IstioRevision"
	if _, ok := owner.(*sailv1.IstioRevisionTag); ok {
		kind = "IstioRevisionTag"
	}
	o.SetOwnerReferences([]metav1.OwnerReference{{
		APIVersion: sailv1.GroupVersion.String(), Kind: kind, Name: owner.GetName(), UID: owner.GetUID(),
		Controller: new(true), BlockOwnerDeletion: new(true),
	}})
}

// webhooks writes the revision's webhook configurations with what is known of the control plane behind them.
func (r *revisions) webhooks(ctx context.Context, rev *sailv1.IstioRevision, p Plane, ready bool) (Serving, time.Duration, error) {
	known, err := serving(ctx, r.client, p)
	if err != nil {
		return known, 0, err
	}
	// The configurations are there before anything serves them: a pod that wants a sidecar must not start without.
	if err := r.configure(ctx, rev, p, known); err != nil {
		return known, 0, err
	}
	next, wait, probeErr := r.probe(ctx, rev, p, known, ready)
	if string(next.Bundle) != string(known.Bundle) || next.Failing != known.Failing {
		if err := r.configure(ctx, rev, p, next); err != nil {
			return known, 0, err
		}
		r.log.LogAttrs(ctx, slog.LevelInfo, "webhooks changed", slog.String("mesh", string(p.Mesh)),
			slog.Bool("bundle", len(next.Bundle) > 0), slog.String("failurePolicy", string(next.Failing)))
	}
	return next, wait, probeErr
}

func (r *revisions) configure(ctx context.Context, rev *sailv1.IstioRevision, p Plane, s Serving) error {
	wanted := map[string]bool{}
	objects := Webhooks(p, s)
	for _, o := range objects {
		own(o, rev)
		wanted[o.GetName()] = true
	}
	if err := r.writer(p.Mesh).write(ctx, objects...); err != nil {
		return err
	}
	return pruneWebhooks(ctx, r.client, client.MatchingLabels{labelMesh: string(p.Mesh)}, func(o client.Object) bool {
		return wanted[o.GetName()] || o.GetLabels()[labelTag] != "" || !p.hook(o)
	})
}

// pruneWebhooks deletes the configurations of ours that match and are not kept.
func pruneWebhooks(ctx context.Context, c client.Client, of client.MatchingLabels, keep func(client.Object) bool) error {
	var mutating admissionv1.MutatingWebhookConfigurationList
	var validating admissionv1.ValidatingWebhookConfigurationList
	ours := client.HasLabels{labelMesh} // Istio's own have the label of their tag
	if err := errors.Join(c.List(ctx, &mutating, of, ours), c.List(ctx, &validating, of, ours)); err != nil {
		return fmt.Errorf("list webhook configurations: %w", err)
	}
	var there []client.Object
	for i := range mutating.Items {
		there = append(there, &mutating.Items[i])
	}
	for i := range validating.Items {
		there = append(there, &validating.Items[i])
	}
	for _, o := range there {
		if keep(o) {
			continue
		}
		if err := client.IgnoreNotFound(c.Delete(ctx, o, client.Preconditions{UID: new(o.GetUID())})); err != nil {
			return fmt.Errorf("delete webhook configuration %s: %w", o.GetName(), err)
		}
	}
	return nil
}

// serving is what the plane's configurations say now: they are where it is kept.
func serving(ctx context.Context, r client.Reader, p Plane) (Serving, error) {
	var s Serving
	m := &admissionv1.MutatingWebhookConfiguration{}
	if err := r.Get(ctx, client.ObjectKey{Name: p.injectorName()}, m); client.IgnoreNotFound(err) != nil {
		return s, fmt.Errorf("read %s: %w", p.injectorName(), err)
	}
	if len(m.Webhooks) > 0 && m.Labels[labelMesh] == string(p.Mesh) {
		s.Bundle = m.Webhooks[0].ClientConfig.CABundle
	}
	v := &admissionv1.ValidatingWebhookConfiguration{}
	if err := r.Get(ctx, client.ObjectKey{Name: p.validatorName()}, v); client.IgnoreNotFound(err) != nil {
		return s, fmt.Errorf("read %s: %w", p.validatorName(), err)
	}
	s.Failing = admissionv1.Ignore
	if len(v.Webhooks) > 0 && v.Webhooks[0].FailurePolicy != nil && v.Labels[labelMesh] == string(p.Mesh) {
		s.Failing = *v.Webhooks[0].FailurePolicy
	}
	return s, nil
}

// probe finds out what the control plane serves. It returns how long to wait before it is asked again.
func (r *revisions) probe(ctx context.Context, rev *sailv1.IstioRevision, p Plane, known Serving, ready bool) (Serving, time.Duration, error) {
	if !ready {
		c := meta.FindStatusCondition(rev.Status.Conditions, "Ready")
		if known.Failing != admissionv1.Fail || c == nil {
			return known, 0, nil
		}
		if left := unreadyBeforeIgnore - r.now().Sub(c.LastTransitionTime.Time); left > 0 {
			return known, left, nil
		}
		known.Failing = admissionv1.Ignore
		return known, 0, nil
	}
	root := &corev1.ConfigMap{}
	if err := r.live.Get(ctx, client.ObjectKey{Namespace: p.Namespace, Name: rootName}, root); err != nil {
		return known, 0, client.IgnoreNotFound(err) // its event brings us back
	}
	bundle := root.Data[rootKey]
	// Its own control plane's, or one that chains: another that somebody wrote would be deleted in its members as the mesh's.
	if slices.ContainsFunc(root.ManagedFields, func(m metav1.ManagedFieldsEntry) bool { return m.Manager == kube.PlaneManager(p.Mesh) }) {
		if err := r.remember(ctx, rev, bundle); err != nil {
			return known, 0, err
		}
	}
	proven := known.Failing == admissionv1.Fail || !p.validates()
	if bundle == string(known.Bundle) && proven {
		return known, 0, r.remember(ctx, rev, bundle)
	}
	if err := r.prober.chains(ctx, p.host(), []byte(bundle)); err != nil {
		return known, 0, pending{err, r.patience(rev)}
	}
	if err := r.remember(ctx, rev, bundle); err != nil {
		return known, 0, err
	}
	known.Bundle = []byte(bundle)
	if proven {
		return known, 0, nil
	}
	// The dry run goes through the webhook, so the bundle must be in force before it.
	if err := r.configure(ctx, rev, p, known); err != nil {
		return known, 0, err
	}
	refused, err := r.refuses(ctx, p)
	if err != nil {
		return known, 0, err
	}
	if !refused {
		ns := metadataOf(corev1.SchemeGroupVersion.WithKind(namespaceKind))
		if err := r.client.Get(ctx, client.ObjectKey{Name: p.Namespace}, ns); err != nil {
			return known, 0, client.IgnoreNotFound(err)
		}
		// Without the mesh's label on its system namespace nothing is sent to the validator; the label's event brings us back.
		if !(mesh.Mesh{Selectors: p.selectors}).Selects(ns.Labels) {
			return known, 0, nil
		}
		return known, r.patience(rev), nil // the API server does not know the webhook yet
	}
	known.Failing = admissionv1.Fail
	return known, 0, nil
}

// remember notes on the revision what its root ConfigMaps hold, for the time when nobody can be asked any more.
func (r *revisions) remember(ctx context.Context, rev *sailv1.IstioRevision, bundle string) error {
	hash := hashRoot(bundle)
	if rev.Annotations[rootHash] == hash {
		return nil
	}
	o := metadataOf(sailv1.GroupVersion.WithKind("IstioRevision"))
	o.Name = rev.Name
	patch := fmt.Sprintf(`{"metadata":{"resourceVersion":%q,"annotations":{%q:%q}}}`, rev.ResourceVersion, rootHash, hash)
	if err := r.client.Patch(ctx, o, client.RawPatch("application/merge-patch+json", []byte(patch))); err != nil {
		return fmt.Errorf("note the root of revision %s: %w", rev.Name, err)
	}
	// The status that follows must be based on what is there now.
	rev.ResourceVersion, rev.Annotations = o.ResourceVersion, o.Annotations
	return nil
}

// refuses creates, as a dry run, an object that every validator must refuse.
func (r *revisions) refuses(ctx context.Context, p Plane) (bool, error) {
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "networking.istio.io/v1", "kind": "Gateway",
		"metadata": map[string]any{
			"name": "invalid-gateway", "namespace": p.Namespace,
			"labels":      map[string]any{labelRevision: p.Revision},
			"annotations": map[string]any{"internal.istio.io/webhook-always-reject": "true"},
		},
		"spec": map[string]any{},
	}}
	err := r.client.Create(ctx, u, client.DryRunAll)
	switch {
	case err == nil:
		return false, nil
	case strings.Contains(err.Error(), "denied the request"):
		return true, nil
	case meta.IsNoMatchError(err), apierrors.IsNotFound(err):
		return true, nil // without the CRD nothing is there to be validated
	}
	return false, pending{fmt.Errorf("try the validator of mesh %s: %w", p.Mesh, err), time.Second}
}

// patience is how long to wait for a control plane that is ready, but not seen to serve: the longer it has been so, the more.
func (r *revisions) patience(rev *sailv1.IstioRevision) time.Duration {
	c := meta.FindStatusCondition(rev.Status.Conditions, "Ready")
	return min(max(r.now().Sub(c.LastTransitionTime.Time)/2, time.Second/5), 5*time.Second)
}

// uninstall takes a mesh's plane away: first what would hold up the cluster without it, then its members by the protocol,
// then the rest. Nothing in it waits for the control plane to answer.
func (r *revisions) uninstall(ctx context.Context, rev *sailv1.IstioRevision) error {
	if !controllerutil.ContainsFinalizer(rev, sailv1.Finalizer) {
		return nil
	}
	id := mesh.ID(rev.Name)
	plane := Plane{Mesh: id, Revision: rev.Name, Namespace: rev.Spec.Namespace} // names alone, which no value decides
	of := client.MatchingLabels{labelMesh: rev.Name}
	if err := pruneWebhooks(ctx, r.client, of, func(o client.Object) bool { return !plane.hook(o) }); err != nil {
		return err
	}
	members, bound, err := r.members(ctx, id, rev.Spec.Namespace)
	if err != nil {
		return err
	}
	if len(members)+len(bound) > 0 {
		return nil // their deletion brings us back
	}
	// By name: a label may be a copy, and the operator may not delete what others bind, whatever its labels are.
	gone := plane.reserved()
	for _, role := range []string{roleCluster, roleMember} {
		o := metadataOf(rbacv1.SchemeGroupVersion.WithKind("ClusterRoleBinding"))
		o.Name = clusterBindingName(role, id)
		gone = append(gone, o)
	}
	for _, o := range gone {
		if err := r.writer(id).remove(ctx, o); err != nil {
			return err
		}
	}
	if err := dropRoot(ctx, r.client, r.live, rev.Spec.Namespace, rev.Annotations[rootHash]); err != nil {
		return err
	}
	if err := apply(ctx, r.client, fieldManager(id), selectorsObject(r.namespace, mesh.Mesh{ID: id})); err != nil {
		return err
	}
	old := rev.DeepCopy()
	controllerutil.RemoveFinalizer(rev, sailv1.Finalizer)
	if err := r.client.Patch(ctx, rev, client.MergeFromWithOptions(old, client.MergeFromWithOptimisticLock{})); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("remove the finalizer of revision %s: %w", rev.Name, err)
	}
	r.log.LogAttrs(ctx, slog.LevelInfo, "mesh removed", slog.String("mesh", rev.Name))
	return nil
}
