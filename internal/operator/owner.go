package operator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/selection"
	"sigs.k8s.io/controller-runtime/pkg/client"

	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

const (
	// reasonForeign is of a condition: an object that the operator would write is there and somebody else's.
	reasonForeign = "ForeignObject"
	// reasonSail is of a condition: another operator of the same API runs.
	reasonSail = "SailOperatorRunning"
	// foreignWait is how long until either is looked at again: no event tells that an object's owner has deleted it, or that
	// an operator has lost its rights.
	foreignWait = 15 * time.Second

	// The mark of what Bootstrap brings, but of definitions, which have crdVersionKey. In a definition and the namespace others
	// may have a hand all the same.
	labelPartOf = "app.kubernetes.io/part-of"
	partOf      = "heddle"
)

// owner is in whose name the operator writes an object: a mesh, a tag, or the operator itself. What it wrote it knows by a
// label and, where somebody took that away, by its field manager.
type owner struct {
	manager      string
	label, value string
}

func meshOwner(id mesh.ID) owner { return owner{fieldManager(id), labelMesh, string(id)} }

// tagOwner is not the mesh: what the tag's former mesh had in an object of the same name must go.
func tagOwner(tag string) owner { return owner{operatorName + "/tag/" + tag, labelTag, tag} }

func operatorOwner() owner { return owner{operatorName, labelPartOf, partOf} }

// owns reports whether o was written in this name.
func (w owner) owns(o client.Object) bool {
	labels := o.GetLabels()
	switch {
	case w.label == labelPartOf && labels[labelPartOf] == w.value:
		return true
	case w.label != labelPartOf && labels[labelMesh] != "": // a tag's objects have the label of its mesh too
		return labels[w.label] == w.value && (w.label == labelTag || labels[labelTag] == "")
	}
	return slices.ContainsFunc(o.GetManagedFields(), func(m metav1.ManagedFieldsEntry) bool {
		return m.Manager == w.manager && m.Operation == metav1.ManagedFieldsOperationApply
	})
}

// writer writes objects in one name, and none that is there in another.
type writer struct {
	client client.Client
	live   client.Reader // past the cache, which has our own objects only
	owner  owner
}

// look returns what there is of the objects, nil for those that are not there, or a fault that names somebody else's.
func (w writer) look(ctx context.Context, objects ...client.Object) ([]*metav1.PartialObjectMetadata, error) {
	out := make([]*metav1.PartialObjectMetadata, len(objects))
	var foreign []string
	for i, o := range objects {
		there := metadataOf(o.GetObjectKind().GroupVersionKind())
		if err := w.live.Get(ctx, client.ObjectKeyFromObject(o), there); apierrors.IsNotFound(err) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("look for %s %s: %w", there.Kind, name(o), err)
		}
		out[i] = there
		if !w.owner.owns(there) {
			foreign = append(foreign, fmt.Sprintf("%s %s %s", there.Kind, name(o), whose(there)))
		}
	}
	if len(foreign) == 0 {
		return out, nil
	}
	more := ""
	if len(foreign) > 5 {
		foreign, more = foreign[:5], fmt.Sprintf(" and %d more", len(foreign)-5)
	}
	return nil, fault{reasonForeign, "these objects are there and not ours, and are left as they are: " + strings.Join(foreign, ", ") + more +
		"; remove them by what made them, or choose another name or namespace"}
}

// whose says what is known of the owner of an object.
func whose(o client.Object) string {
	labels, notes := o.GetLabels(), o.GetAnnotations()
	switch {
	case labels[labelTag] != "" && labels[labelMesh] != "":
		return "of IstioRevisionTag " + labels[labelTag]
	case labels[labelMesh] != "":
		return "of mesh " + labels[labelMesh]
	case notes["meta.helm.sh/release-name"] != "":
		return fmt.Sprintf("of Helm release %s/%s", notes["meta.helm.sh/release-namespace"], notes["meta.helm.sh/release-name"])
	}
	if c := metav1.GetControllerOf(o); c != nil {
		return "of " + c.Kind + " " + c.Name
	}
	var managers []string
	for _, m := range o.GetManagedFields() {
		if m.Subresource == "" {
			managers = append(managers, m.Manager)
		}
	}
	slices.Sort(managers)
	if managers = slices.Compact(managers); len(managers) > 0 {
		return "written by " + strings.Join(managers, " and ")
	}
	return "of an unknown owner"
}

// write applies the objects in their order, unless one of them is somebody else's: then none.
func (w writer) write(ctx context.Context, objects ...client.Object) error {
	there, err := w.look(ctx, objects...)
	if err != nil {
		return err
	}
	for i, o := range objects {
		if err := w.put(ctx, o, there[i]); err != nil {
			return err
		}
	}
	return nil
}

// put writes the object that was looked at and no other; there is nil if there was none. What happened since is a conflict,
// and is looked at again.
func (w writer) put(ctx context.Context, o client.Object, there *metav1.PartialObjectMetadata) error {
	u, err := applicable(o)
	if err != nil {
		return err
	}
	options := []client.ApplyOption{client.FieldOwner(w.owner.manager)}
	if there != nil {
		u.SetUID(there.UID)
		options = append(options, client.ForceOwnership)
	}
	err = w.client.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), options...)
	switch o.(type) {
	case *rbacv1.ClusterRoleBinding, *rbacv1.RoleBinding:
		if apierrors.IsInvalid(err) && there != nil { // the role of a binding cannot be changed: it is made anew
			if err := w.client.Delete(ctx, o, client.Preconditions{UID: &there.UID}); err != nil {
				return fmt.Errorf("replace %s: %w", name(o), err)
			}
			return w.put(ctx, o, nil)
		}
	}
	if err != nil {
		return fmt.Errorf("apply %s %s: %w", u.GetKind(), name(u), err)
	}
	if there == nil && slices.ContainsFunc(u.GetManagedFields(), func(m metav1.ManagedFieldsEntry) bool { return m.Manager != w.owner.manager }) {
		return w.giveBack(ctx, u)
	}
	return nil
}

// giveBack takes our fields out of an object that somebody else made just before us, as if we had not written.
func (w writer) giveBack(ctx context.Context, u *unstructured.Unstructured) error {
	empty := &unstructured.Unstructured{}
	empty.SetGroupVersionKind(u.GroupVersionKind())
	empty.SetName(u.GetName())
	empty.SetNamespace(u.GetNamespace())
	empty.SetUID(u.GetUID())
	if err := w.client.Apply(ctx, client.ApplyConfigurationFromUnstructured(empty), client.FieldOwner(w.owner.manager)); err != nil {
		return fmt.Errorf("give %s %s back: %w", u.GetKind(), name(u), err)
	}
	kind := schema.GroupResource{Group: u.GroupVersionKind().Group, Resource: strings.ToLower(u.GetKind())}
	return apierrors.NewConflict(kind, u.GetName(), errors.New("somebody else has made it just now"))
}

// remove deletes an object if it is there and was written in this name.
func (w writer) remove(ctx context.Context, o client.Object) error {
	there := metadataOf(o.GetObjectKind().GroupVersionKind())
	if err := w.live.Get(ctx, client.ObjectKeyFromObject(o), there); err != nil {
		return client.IgnoreNotFound(err)
	}
	if !w.owner.owns(there) {
		return nil
	}
	if err := client.IgnoreNotFound(w.client.Delete(ctx, there, client.Preconditions{UID: &there.UID})); err != nil {
		return fmt.Errorf("delete %s %s: %w", there.Kind, name(o), err)
	}
	return nil
}

// sail selects the Deployments that may be other operators of the API sailoperator.io: Sail's own and that of OpenShift Service
// Mesh 3, which is built from it.
func sail() (labels.Selector, error) {
	r, err := labels.NewRequirement("app.kubernetes.io/component", selection.In, []string{"sail-operator", "servicemesh-operator3"})
	if err != nil {
		return nil, err
	}
	return labels.NewSelector().Add(*r), nil
}

// rivals are the Deployments that may be other operators of our API, of which two on one Istio would undo each other's work for
// ever. Anybody may label a Deployment, and stop every mesh by it: an operator is one that may act as such.
type rivals struct {
	deployments client.Reader
	reviews     reviews
	now         func() time.Time

	asked map[client.ObjectKey]time.Time // when an account was no operator's; it is asked about again after foreignWait
}

// running names the other operator that the cluster runs, and is empty if there is none. It reports whether a Deployment may
// become one: no event tells of rights that its account is given. It asks about so many accounts at most, of which there may be
// as many as a tenant likes: about the others next time. One caller at a time.
func (r *rivals) running(ctx context.Context, most int) (running string, suspected bool, err error) {
	selector, err := sail()
	if err != nil {
		return "", false, err
	}
	var list appsv1.DeploymentList
	if err := r.deployments.List(ctx, &list, client.MatchingLabelsSelector{Selector: selector}); err != nil {
		return "", false, fmt.Errorf("look for a Sail operator: %w", err)
	}
	by := map[client.ObjectKey]string{} // a Deployment of each account
	for i := range list.Items {
		d := &list.Items[i]
		pod := d.Spec.Template.Spec
		account := client.ObjectKey{Namespace: d.Namespace, Name: cmp.Or(pod.ServiceAccountName, pod.DeprecatedServiceAccount, "default")}
		if d.Spec.Replicas == nil || *d.Spec.Replicas > 0 {
			by[account] = name(d)
		}
	}
	now, was := r.now(), r.asked
	r.asked = map[client.ObjectKey]time.Time{}
	var due []client.ObjectKey
	for account := range by {
		if at, ok := was[account]; ok {
			r.asked[account] = at
		}
		if now.Sub(was[account]) >= foreignWait {
			due = append(due, account)
		}
	}
	slices.SortFunc(due, func(a, b client.ObjectKey) int {
		return cmp.Or(was[a].Compare(was[b]), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	for _, account := range due[:min(len(due), most)] {
		ok, err := operates(ctx, r.reviews, account)
		switch {
		case err != nil:
			return "", true, fmt.Errorf("ask whether Deployment %s is a Sail operator: %w", by[account], err)
		case ok:
			delete(r.asked, account)
			return by[account], true, nil
		}
		r.asked[account] = now
	}
	return "", len(by) > 0, nil
}

// operates asks the API server whether a ServiceAccount may write the status of Istios.
func operates(ctx context.Context, ask reviews, account client.ObjectKey) (bool, error) {
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User:   "system:serviceaccount:" + account.Namespace + ":" + account.Name,
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + account.Namespace, "system:authenticated"},
		ResourceAttributes: &authorizationv1.ResourceAttributes{
			Verb: "update", Group: sailv1.GroupVersion.Group, Version: sailv1.GroupVersion.Version, Resource: "istios", Subresource: "status",
		},
	}}
	err := ask.Create(ctx, review)
	return review.Status.Allowed, err
}

// errSail says what to do about another operator.
func errSail(deployment string) fault {
	return fault{reasonSail, fmt.Sprintf("the Sail operator runs here as Deployment %s, and two operators on one Istio undo each other's work: "+
		"remove it, or scale it to 0", deployment)}
}
