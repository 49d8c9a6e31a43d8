package operator

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
)

// tags keeps the objects of one tag. They point at the plane that the tag stands for and die with it; the tag stays.
type tags struct {
	client client.Client
	live   client.Reader // past the cache, which has our own objects only
	images Images
}

// Reconcile writes objects and status of the tag that req names.
func (r *tags) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	tag := &sailv1.IstioRevisionTag{}
	if err := r.client.Get(ctx, req.NamespacedName, tag); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if tag.DeletionTimestamp != nil {
		if err := r.prune(ctx, tag.Name, nil); err != nil {
			return reconcile.Result{}, err
		}
		return reconcile.Result{}, r.finalize(ctx, tag, controllerutil.RemoveFinalizer)
	}
	if err := r.finalize(ctx, tag, controllerutil.AddFinalizer); err != nil {
		return reconcile.Result{}, err
	}
	old := tag.DeepCopy()
	wait := time.Duration(0)
	c := metav1.Condition{Type: "Reconciled", Status: metav1.ConditionTrue, Reason: "Reconciled", ObservedGeneration: tag.Generation}
	err := r.write(ctx, tag)
	var f fault
	switch {
	case errors.As(err, &f):
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, f.reason, f.message
		err, wait = nil, f.again()
	case err != nil:
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, "ReconcileError", err.Error()
	}
	meta.SetStatusCondition(&tag.Status.Conditions, c)
	if meta.FindStatusCondition(tag.Status.Conditions, "InUse") == nil {
		setUse(&tag.Status.Conditions, tag.Generation, false)
	}
	tag.Status.ObservedGeneration = tag.Generation
	tag.Status.State = state(tag.Status.Conditions, "Reconciled", "InUse")
	if !equality.Semantic.DeepEqual(old.Status, tag.Status) {
		err = errors.Join(err, writeStatus(ctx, r.client, tag))
	}
	return reconcile.Result{RequeueAfter: wait}, err
}

func (r *tags) finalize(ctx context.Context, tag *sailv1.IstioRevisionTag, change func(client.Object, string) bool) error {
	old := tag.DeepCopy()
	if !change(tag, sailv1.Finalizer) {
		return nil
	}
	err := r.client.Patch(ctx, tag, client.MergeFromWithOptions(old, client.MergeFromWithOptimisticLock{}))
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("change the finalizer of tag %s: %w", tag.Name, err)
	}
	return nil
}

// write resolves the target and applies the tag's objects; where there is no target, there are no objects.
func (r *tags) write(ctx context.Context, tag *sailv1.IstioRevisionTag) error {
	tag.Status.IstioRevision, tag.Status.IstiodNamespace = "", ""
	rev, err := r.target(ctx, tag)
	if err != nil {
		return errors.Join(err, r.prune(ctx, tag.Name, nil))
	}
	plane, err := NewPlane(rev, r.images, "")
	if err != nil {
		return fault{"ReconcileError", err.Error()}
	}
	s, err := serving(ctx, r.client, plane)
	if err != nil {
		return err
	}
	tag.Status.IstioRevision, tag.Status.IstiodNamespace = rev.Name, rev.Spec.Namespace
	kept := map[string]bool{}
	objects := TagObjects(plane, tag.Name, s)
	for _, o := range objects {
		own(o, tag)
		kept[name(o)] = true
	}
	if err := (writer{r.client, r.live, tagOwner(tag.Name)}).write(ctx, objects...); err != nil {
		return err
	}
	return r.prune(ctx, tag.Name, kept)
}

// target is the revision that the tag stands for.
func (r *tags) target(ctx context.Context, tag *sailv1.IstioRevisionTag) (*sailv1.IstioRevision, error) {
	if err := nameable(tag.Name); err != nil {
		return nil, fault{"ReconcileError", err.Error()}
	}
	clash := &sailv1.IstioRevision{}
	if err := r.client.Get(ctx, client.ObjectKey{Name: tag.Name}, clash); err == nil && olderObject(clash, tag) {
		return nil, fault{"NameAlreadyExists", "an IstioRevision of this name is older; delete one of the two"}
	}
	missing := fault{"RefNotFound", fmt.Sprintf("%s %s not found", tag.Spec.TargetRef.Kind, tag.Spec.TargetRef.Name)}
	revision := tag.Spec.TargetRef.Name
	if tag.Spec.TargetRef.Kind == "Istio" {
		istio := &sailv1.Istio{}
		if err := r.client.Get(ctx, client.ObjectKey{Name: revision}, istio); client.IgnoreNotFound(err) != nil {
			return nil, err
		} else if err != nil || istio.DeletionTimestamp != nil {
			return nil, missing
		}
		if revision = istio.Status.ActiveRevisionName; revision == "" {
			return nil, fault{"RefNotFound", "Istio " + istio.Name + " has no active revision yet"}
		}
	}
	rev := &sailv1.IstioRevision{}
	if err := r.client.Get(ctx, client.ObjectKey{Name: revision}, rev); client.IgnoreNotFound(err) != nil {
		return nil, err
	} else if err != nil || rev.DeletionTimestamp != nil {
		return nil, missing
	}
	if !ofIstio(rev) {
		return nil, fault{"RefNotFound", fmt.Sprintf("IstioRevision %s belongs to no Istio %[1]s and has no control plane; name a mesh's revision", rev.Name)}
	}
	return rev, nil
}

// prune deletes the tag's objects but those that are kept, by namespace/name. What has its label and another name than ours is
// somebody's copy.
func (r *tags) prune(ctx context.Context, tag string, kept map[string]bool) error {
	of := client.MatchingLabels{labelTag: tag}
	if err := pruneWebhooks(ctx, r.client, of, func(o client.Object) bool { return kept[o.GetName()] || !tagHook(tag, o) }); err != nil {
		return err
	}
	services := metadataListOf(corev1.SchemeGroupVersion.WithKind("Service"))
	if err := r.client.List(ctx, services, of, client.HasLabels{labelMesh}); err != nil {
		return fmt.Errorf("list the services of tag %s: %w", tag, err)
	}
	for i := range services.Items {
		if s := &services.Items[i]; s.Name == tagServicePrefix+tag && !kept[name(s)] {
			if err := client.IgnoreNotFound(r.client.Delete(ctx, s, client.Preconditions{UID: &s.UID})); err != nil {
				return fmt.Errorf("delete service %s: %w", name(s), err)
			}
		}
	}
	return nil
}
