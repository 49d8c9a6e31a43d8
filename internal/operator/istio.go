package operator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Conditions of an Istio beside Sail's own; none is part of its state.
const (
	conditionExclusive = "NamespacesExclusive"     // no namespace that it selects belongs to another mesh
	conditionSystem    = "SystemNamespaceSelected" // its system namespace is one of its members
	conditionValues    = "ValuesUsed"              // every value that is set has an effect
)

// longestName is how long a mesh's name may be: istiod-<name> names a Service.
const longestName = validation.DNS1035LabelMaxLength - len("istiod-")

// istios turns an Istio into its revision, unless the mesh cannot live beside the others, and copies the status back.
type istios struct {
	client    client.Client
	live      client.Reader // past the cache, which may not have the revision that was written just now
	rivals    *rivals
	table     *table
	version   string // of this build
	namespace string // the operator's
	events    events.EventRecorder
}

// Reconcile writes the revision and the status of the Istio that req names.
func (r *istios) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	istio := &sailv1.Istio{}
	if err := r.client.Get(ctx, req.NamespacedName, istio); apierrors.IsNotFound(err) {
		return reconcile.Result{}, r.forget(ctx, req.Name)
	} else if err != nil {
		return reconcile.Result{}, err
	}
	if istio.DeletionTimestamp != nil {
		return reconcile.Result{}, nil
	}
	findings, err := r.table.findings(ctx, mesh.ID(istio.Name))
	if err != nil {
		return reconcile.Result{}, err
	}
	old := istio.DeepCopy()
	other, suspected, err := r.rivals.running(ctx, maxAsked)
	switch {
	case err != nil:
	case other != "":
		err = errSail(other)
	default:
		err = r.write(ctx, istio, findings)
	}
	var f fault
	user := errors.As(err, &f)
	if serr := r.status(ctx, istio, err); serr != nil {
		return reconcile.Result{}, errors.Join(err, serr)
	}
	r.conditions(istio, findings)
	if !equality.Semantic.DeepEqual(old.Status, istio.Status) {
		if perr := writeStatus(ctx, r.client, istio); perr != nil {
			return reconcile.Result{}, errors.Join(err, perr)
		}
		r.announce(old, istio)
	}
	if user {
		err = nil // said in the status; tried again when something changes
	}
	again := f.again()
	if suspected {
		again = foreignWait
	}
	return reconcile.Result{RequeueAfter: again}, err
}

// forget takes back what the API server was told of the selectors of a mesh that is gone and has no revision, which would do
// it when its members have left.
func (r *istios) forget(ctx context.Context, name string) error {
	if err := r.live.Get(ctx, client.ObjectKey{Name: name}, metadataOf(sailv1.GroupVersion.WithKind("IstioRevision"))); !apierrors.IsNotFound(err) {
		return err
	}
	lines := selectorsObject(r.namespace, mesh.Mesh{ID: mesh.ID(name)})
	if err := r.live.Get(ctx, client.ObjectKeyFromObject(lines), lines); err != nil || lines.Data[name] == "" {
		return client.IgnoreNotFound(err)
	}
	return apply(ctx, r.client, fieldManager(mesh.ID(name)), selectorsObject(r.namespace, mesh.Mesh{ID: mesh.ID(name)}))
}

// listNamespaces are all namespaces with the meshes that they belong to now. A Membership counts in the system namespace of
// its mesh only: whoever writes one elsewhere holds nothing by it.
func listNamespaces(ctx context.Context, r client.Reader, istios []sailv1.Istio) ([]mesh.Namespace, error) {
	list := metadataListOf(corev1.SchemeGroupVersion.WithKind(namespaceKind))
	var members heddlev1alpha1.MembershipList
	if err := errors.Join(r.List(ctx, list), r.List(ctx, &members)); err != nil {
		return nil, fmt.Errorf("list namespaces and memberships: %w", err)
	}
	system := map[string]string{}
	for _, i := range istios {
		system[i.Name] = i.Spec.Namespace
	}
	holders := map[string]mesh.ID{}
	for _, m := range members.Items {
		if m.Spec.Phase != heddlev1alpha1.Leaving && m.Namespace == system[m.Labels[labelMesh]] {
			holders[m.Spec.Namespace] = mesh.ID(m.Labels[labelMesh])
		}
	}
	var out []mesh.Namespace
	for _, ns := range list.Items {
		out = append(out, mesh.Namespace{Name: ns.Name, Labels: ns.Labels, Holder: holders[ns.Name]})
	}
	return out, nil
}

// write applies the revision, and what the API server is told of the mesh's selectors. A mesh that is refused keeps the revision
// that it has, unchanged; one that is refused beside others keeps what is told of it too.
func (r *istios) write(ctx context.Context, istio *sailv1.Istio, findings []mesh.Finding) error {
	var refused error
	for _, f := range findings {
		switch f.Reason {
		case mesh.ReasonNamespaceTaken, mesh.ReasonSystemNamespaceNotSelected:
		case mesh.ReasonInvalidSelector:
			refused = fault{f.Reason, f.Message} // its last known claim counts
		default:
			return fault{f.Reason, f.Message}
		}
	}
	id := mesh.ID(istio.Name)
	rev := &sailv1.IstioRevision{
		TypeMeta: typeMeta(sailv1.GroupVersion.String(), "IstioRevision"),
		ObjectMeta: metav1.ObjectMeta{Name: istio.Name, Labels: map[string]string{labelMesh: istio.Name}, OwnerReferences: []metav1.OwnerReference{{
			APIVersion: sailv1.GroupVersion.String(), Kind: "Istio", Name: istio.Name, UID: istio.UID,
			Controller: new(true), BlockOwnerDeletion: new(true),
		}}},
	}
	w := writer{r.client, r.live, meshOwner(id)}
	if _, err := w.look(ctx, rev); err != nil {
		return err
	}
	claim, err := claimOf(ctx, r.client, istio)
	if err == nil && claim.Known() && nameFits(istio.Name) {
		// Before the first object of the mesh is there, the API server knows what its selectors are.
		err = apply(ctx, r.client, fieldManager(id), selectorsObject(r.namespace, claim))
	}
	if err := cmp.Or(err, refused); err != nil {
		return err
	}
	if err := supported(istio, r.namespace); err != nil {
		return fault{"ReconcileError", err.Error()}
	}
	version, err := resolveVersion(istio.Spec.Version)
	if err != nil {
		return fault{"ReconcileError", err.Error()}
	}
	values, err := resolveValues(istio)
	if err != nil {
		return fault{"ReconcileError", err.Error()}
	}
	rev.Spec = sailv1.IstioRevisionSpec{Version: version, Namespace: istio.Spec.Namespace, Values: values}
	return w.write(ctx, rev)
}

// nameFits reports whether a mesh can have that name.
func nameFits(name string) bool {
	return len(validation.IsDNS1123Label(name)) == 0 && len(name) <= longestName
}

// supported names what this build cannot do of what the API allows; namespace is the operator's.
func supported(istio *sailv1.Istio, namespace string) error {
	var faults []error
	if !nameFits(istio.Name) {
		faults = append(faults, fmt.Errorf("metadata.name %q must be lower case letters, digits and dashes, at most %d of them: it names a Service istiod-%s",
			istio.Name, longestName, istio.Name))
	}
	// In these a control plane would have its rights on what is not its mesh's: secrets, root, ConfigMaps.
	if slices.Contains([]string{namespace, metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease}, istio.Spec.Namespace) {
		faults = append(faults, fmt.Errorf("spec.namespace %s belongs to the cluster or to the operator; give the mesh a namespace of its own",
			istio.Spec.Namespace))
	}
	if !slices.Contains(profiles, istio.Spec.Profile) {
		faults = append(faults, fmt.Errorf("spec.profile %s is not supported by this build; leave it out or use one of %s",
			istio.Spec.Profile, strings.Join(profiles[1:], ", ")))
	}
	s, verr := checkValues(istio.Spec.Values)
	if !slices.Contains(profiles, s.Profile) {
		faults = append(faults, fmt.Errorf("spec.values.profile %s is not supported by this build; leave it out or use one of %s",
			s.Profile, strings.Join(profiles[1:], ", ")))
	}
	own := mesh.Audience(istio.Spec.Namespace, mesh.ID(istio.Name))
	if aud := s.Global.SDS.Token.Aud; aud != "" && aud != own && aud != mesh.SharedAudience {
		faults = append(faults, fmt.Errorf("spec.values.global.sds.token.aud %s is no audience that the mesh's control plane takes; "+
			"leave it out, which means %s, or use %s for agents of Istio itself", aud, own, mesh.SharedAudience))
	}
	if t := istio.Spec.UpdateStrategy.Type; t != "" && t != "InPlace" {
		faults = append(faults, fmt.Errorf("spec.updateStrategy.type %s is not supported by this build; use InPlace", t))
	}
	_, err := resolveVersion(istio.Spec.Version)
	return errors.Join(append(faults, err, verr)...)
}

// status copies what the revision says, and what went wrong before there was one.
func (r *istios) status(ctx context.Context, istio *sailv1.Istio, failed error) error {
	s := &istio.Status
	s.ObservedGeneration = istio.Generation
	s.HeddleVersion = r.version
	rev := &sailv1.IstioRevision{}
	err := r.live.Get(ctx, client.ObjectKey{Name: istio.Name}, rev)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("read revision %s: %w", istio.Name, err)
	}
	set := func(kind string, status metav1.ConditionStatus, reason, message string) {
		meta.SetStatusCondition(&s.Conditions, metav1.Condition{Type: kind, Status: status, Reason: reason, Message: message, ObservedGeneration: istio.Generation})
	}
	s.Revisions = sailv1.RevisionSummary{}
	order := []string{"Reconciled", "Ready", "DependenciesHealthy"}
	if err == nil && metav1.IsControlledBy(rev, istio) {
		s.ActiveRevisionName, s.IstioVersion = rev.Name, rev.Spec.Version
		s.Revisions.Total = 1
		for _, kind := range order {
			if c := meta.FindStatusCondition(rev.Status.Conditions, kind); c != nil && rev.Status.ObservedGeneration >= rev.Generation {
				set(kind, c.Status, c.Reason, c.Message)
			} else {
				set(kind, metav1.ConditionUnknown, "Pending", "the revision, as it is now, was not looked at yet")
			}
		}
		if meta.IsStatusConditionTrue(s.Conditions, "Ready") {
			s.Revisions.Ready = 1
		}
		if meta.IsStatusConditionTrue(rev.Status.Conditions, "InUse") {
			s.Revisions.InUse = 1
		}
	} else {
		s.ActiveRevisionName, s.IstioVersion = "", ""
		for _, kind := range order {
			set(kind, metav1.ConditionUnknown, "ActiveRevisionNotFound", "the revision does not exist yet")
		}
	}
	var f fault
	switch {
	case errors.As(failed, &f):
		set("Reconciled", metav1.ConditionFalse, f.reason, f.message)
	case failed != nil:
		set("Reconciled", metav1.ConditionFalse, "ReconcileError", failed.Error())
	}
	s.State = state(s.Conditions, order...)
	return nil
}

// conditions says what is not as the user may think, though nothing fails.
func (r *istios) conditions(istio *sailv1.Istio, findings []mesh.Finding) {
	set := func(kind, reason string, messages []string) {
		c := metav1.Condition{Type: kind, Status: metav1.ConditionTrue, Reason: kind, ObservedGeneration: istio.Generation}
		if len(messages) > 0 {
			more := ""
			if len(messages) > 10 {
				messages, more = messages[:10], fmt.Sprintf("; and %d more", len(messages)-10)
			}
			c.Status, c.Reason, c.Message = metav1.ConditionFalse, reason, strings.Join(messages, "; ")+more
		}
		meta.SetStatusCondition(&istio.Status.Conditions, c)
	}
	of := func(reason string) (out []string) {
		for _, f := range findings {
			if f.Reason == reason {
				out = append(out, f.Message)
			}
		}
		return out
	}
	set(conditionExclusive, mesh.ReasonNamespaceTaken, of(mesh.ReasonNamespaceTaken))
	set(conditionSystem, mesh.ReasonSystemNamespaceNotSelected, of(mesh.ReasonSystemNamespaceNotSelected))
	set(conditionValues, "UnusedValues", unusedValues(istio))
}

// announce makes an event of every condition that has become false, or false for another reason.
func (r *istios) announce(old, istio *sailv1.Istio) {
	for _, c := range istio.Status.Conditions {
		was := meta.FindStatusCondition(old.Status.Conditions, c.Type)
		if c.Status == metav1.ConditionFalse && (was == nil || was.Status != c.Status || was.Message != c.Message) {
			r.events.Eventf(istio, nil, corev1.EventTypeWarning, c.Reason, "Reconcile", "%s", c.Message)
		}
	}
}
