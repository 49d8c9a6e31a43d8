package operator

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

const (
	rootName      = "istio-ca-root-cert" // the ConfigMap in which a control plane gives each member its root
	rootKey       = "root-cert.pem"
	rootHash      = "heddle.dev/root-sha256" // on an IstioRevision: what its mesh's root ConfigMaps hold
	byName        = "metadata.name"          // an index of ours, and a field selector of the API server
	leaveTimeout  = time.Second              // a control plane that does not say that it has left blocks nobody for longer
	namespaceKind = "Namespace"
)

// told are the labels and annotations of a namespace that a control plane acts on.
var (
	toldLabels = []string{
		labelInjection, labelRevision, "istio.io/dataplane-mode", "istio.io/use-waypoint", "istio.io/use-waypoint-namespace",
		"topology.istio.io/network", corev1.LabelMetadataName,
	}
	toldAnnotations = []string{"networking.istio.io/traffic-distribution", "networking.istio.io/exportTo"}
)

// membership brings one namespace at a time to the mesh that mesh.Members says, by way of the protocol: rights, then
// Joining, then Member; Leaving, then no rights, then the next mesh. One worker, so that two meshes never join one namespace.
type membership struct {
	client client.Client
	live   client.Reader // past the cache, which lags behind our own writes
	table  *table
	images Images
	log    *slog.Logger
	events events.EventRecorder
	now    func() time.Time

	leaving map[types.UID]time.Time // since when a Membership is Leaving
}

// standing is what is there of one mesh in one namespace.
type standing struct {
	mesh       mesh.ID
	membership *heddlev1alpha1.Membership
	binding    *rbacv1.RoleBinding
}

// wanted is what shall be there; mesh is empty if the namespace shall belong to none.
type wanted struct {
	mesh   mesh.ID
	plane  Plane
	spec   heddlev1alpha1.MembershipSpec // without the phase
	ending bool                          // the namespace is being deleted: nothing can be made in it any more
}

// Reconcile does the next step for the namespace that req names.
func (m *membership) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	have, err := m.standings(ctx, m.client, req.Name)
	if err != nil {
		return reconcile.Result{}, err
	}
	want, err := m.want(ctx, req.Name, have)
	if err != nil || settled(want, have) {
		return reconcile.Result{}, err
	}
	if have, err = m.standings(ctx, m.live, req.Name); err != nil {
		return reconcile.Result{}, err
	}
	if want, err = m.want(ctx, req.Name, have); err != nil {
		return reconcile.Result{}, err
	}
	var wait time.Duration
	var errs []error // of one mesh, which must not keep another from leaving
	for _, s := range have {
		if s.stays(want) {
			continue
		}
		left, err := m.leave(ctx, req.Name, s)
		errs = append(errs, err)
		wait = max(wait, left)
	}
	if err := errors.Join(errs...); err != nil {
		return reconcile.Result{}, err
	}
	if wait > 0 {
		return reconcile.Result{RequeueAfter: wait}, nil
	}
	if want.mesh == "" || want.ending {
		return reconcile.Result{}, nil
	}
	var own standing
	for _, s := range have {
		if s.stays(want) {
			own = s
		}
	}
	if own.membership == nil {
		if ok, err := m.established(ctx, want.plane); err != nil || !ok {
			return reconcile.Result{}, err // its event brings us back
		}
	}
	err = m.join(ctx, req.Name, want, own)
	var f fault
	if errors.As(err, &f) {
		ns := metadataOf(corev1.SchemeGroupVersion.WithKind(namespaceKind))
		ns.Name = req.Name
		m.events.Eventf(ns, nil, corev1.EventTypeWarning, f.reason, "Join", "namespace cannot join mesh %s: %s", want.mesh, f.message)
		return reconcile.Result{RequeueAfter: f.again()}, nil
	}
	return reconcile.Result{}, err
}

// established reports whether the account of the mesh's control plane is ours: none of somebody else gets rights.
func (m *membership) established(ctx context.Context, p Plane) (bool, error) {
	account := metadataOf(corev1.SchemeGroupVersion.WithKind("ServiceAccount"))
	if err := m.client.Get(ctx, client.ObjectKey{Namespace: p.Namespace, Name: p.service()}, account); err != nil {
		return false, client.IgnoreNotFound(err)
	}
	return meshOwner(p.Mesh).owns(account), nil
}

// standings are the meshes that have a Membership or a binding for the namespace, sorted.
func (m *membership) standings(ctx context.Context, r client.Reader, namespace string) ([]standing, error) {
	by := map[mesh.ID]*standing{}
	of := func(o client.Object) *standing {
		id := mesh.ID(o.GetLabels()[labelMesh])
		if by[id] == nil {
			by[id] = &standing{mesh: id}
		}
		return by[id]
	}
	var list heddlev1alpha1.MembershipList
	if err := r.List(ctx, &list, client.MatchingFields{byName: namespace}); err != nil {
		return nil, fmt.Errorf("list the memberships of namespace %s: %w", namespace, err)
	}
	for i := range list.Items {
		o := &list.Items[i]
		if ok, err := m.home(ctx, o); err != nil {
			return nil, err
		} else if ok {
			of(o).membership = o
		}
	}
	binding := &rbacv1.RoleBinding{}
	err := r.Get(ctx, client.ObjectKey{Namespace: namespace, Name: roleMember}, binding)
	switch {
	case client.IgnoreNotFound(err) != nil:
		return nil, fmt.Errorf("read the binding of namespace %s: %w", namespace, err)
	case err == nil && binding.Labels[labelMesh] != "" && binding.DeletionTimestamp == nil: // else it is held by a finalizer of others
		of(binding).binding = binding
	}
	var out []standing
	for _, id := range slices.Sorted(maps.Keys(by)) {
		out = append(out, *by[id])
	}
	return out, nil
}

// home reports whether a Membership lies in the system namespace of the mesh that it names: elsewhere it says nothing. Of a
// mesh without revision it is what is left, and goes.
func (m *membership) home(ctx context.Context, o *heddlev1alpha1.Membership) (bool, error) {
	rev := &sailv1.IstioRevision{}
	if err := m.client.Get(ctx, client.ObjectKey{Name: o.Labels[labelMesh]}, rev); err != nil {
		return true, client.IgnoreNotFound(err)
	}
	return o.Namespace == rev.Spec.Namespace, nil
}

// want asks whose the namespace is and reads what the mesh's control plane must know of the namespace.
func (m *membership) want(ctx context.Context, name string, have []standing) (wanted, error) {
	ns := metadataOf(corev1.SchemeGroupVersion.WithKind(namespaceKind))
	if err := m.client.Get(ctx, client.ObjectKey{Name: name}, ns); err != nil {
		return wanted{}, client.IgnoreNotFound(err)
	}
	id, err := m.table.owner(ctx, mesh.Namespace{Name: name, Labels: ns.Labels, Holder: holder(have)})
	if err != nil || id == "" {
		return wanted{}, err
	}
	rev := &sailv1.IstioRevision{}
	if err := m.client.Get(ctx, client.ObjectKey{Name: string(id)}, rev); err != nil || rev.DeletionTimestamp != nil || !ofIstio(rev) {
		return wanted{}, client.IgnoreNotFound(err) // no control plane, no member
	}
	if ok, err := namespaceActive(ctx, m.client, rev.Spec.Namespace); err != nil || !ok {
		return wanted{}, err
	}
	plane, err := NewPlane(rev, m.images, "")
	if err != nil {
		return wanted{}, err // nothing is changed on account of values that cannot be read
	}
	kinds, err := m.kinds(ctx, name)
	return wanted{mesh: id, plane: plane, ending: ns.DeletionTimestamp != nil, spec: heddlev1alpha1.MembershipSpec{
		Namespace: name, UID: ns.UID, Kinds: kinds,
		Labels: only(ns.Labels, toldLabels), Annotations: only(ns.Annotations, toldAnnotations),
	}}, err
}

// holder is the mesh that a namespace belongs to now.
func holder(have []standing) mesh.ID {
	for _, s := range have {
		if s.membership != nil && s.membership.Spec.Phase != heddlev1alpha1.Leaving {
			return s.mesh
		}
	}
	return ""
}

// listIstios are the Istio objects that are not being deleted.
func listIstios(ctx context.Context, r client.Reader) ([]sailv1.Istio, error) {
	var list sailv1.IstioList
	if err := r.List(ctx, &list); err != nil {
		return nil, fmt.Errorf("list the meshes: %w", err)
	}
	return slices.DeleteFunc(list.Items, func(i sailv1.Istio) bool { return i.DeletionTimestamp != nil }), nil
}

// claims are what Istio objects claim.
func claims(ctx context.Context, r client.Reader, istios []sailv1.Istio) (out []mesh.Mesh, err error) {
	for i := range istios {
		m, err := claimOf(ctx, r, &istios[i])
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

func namespaceActive(ctx context.Context, r client.Reader, name string) (bool, error) {
	ns := metadataOf(corev1.SchemeGroupVersion.WithKind(namespaceKind))
	if err := r.Get(ctx, client.ObjectKey{Name: name}, ns); err != nil {
		return false, client.IgnoreNotFound(err)
	}
	return ns.DeletionTimestamp == nil, nil
}

// kinds are the optional kinds of which the namespace has an object.
func (m *membership) kinds(ctx context.Context, namespace string) ([]string, error) {
	var out []string
	for _, k := range istioKinds() {
		if !optional(k) {
			continue
		}
		list := metadataListOf(k.metadata().GroupVersionKind())
		if err := m.client.List(ctx, list, client.InNamespace(namespace), client.Limit(1)); err != nil {
			return nil, fmt.Errorf("look for %s in namespace %s: %w", k.Resource, namespace, err)
		}
		if len(list.Items) > 0 {
			out = append(out, k.name())
		}
	}
	slices.Sort(out)
	return out, nil
}

func only(m map[string]string, keys []string) map[string]string {
	var out map[string]string
	for _, k := range keys {
		if v, ok := m[k]; ok {
			if out == nil {
				out = map[string]string{}
			}
			out[k] = v
		}
	}
	return out
}

// stays reports whether a standing belongs to what is wanted. A namespace that was made again is another one, and a leave
// that has begun is brought to its end.
func (s standing) stays(want wanted) bool {
	if s.mesh != want.mesh {
		return false
	}
	m := s.membership
	return m == nil || m.Spec.Phase != heddlev1alpha1.Leaving && m.Spec.UID == want.spec.UID &&
		m.Namespace == want.plane.Namespace && m.DeletionTimestamp == nil
}

// phase is the one that a standing's Membership shall have next.
func (s standing) phase() heddlev1alpha1.Phase {
	m := s.membership
	switch {
	case m == nil:
		return heddlev1alpha1.Joining
	case m.Spoken() && m.Status.Watching && m.Status.RootWritten:
		return heddlev1alpha1.Member
	}
	return m.Spec.Phase
}

// settled reports whether nothing is left to do.
func settled(want wanted, have []standing) bool {
	if want.mesh == "" || want.ending && len(have) == 0 {
		return len(have) == 0
	}
	if want.ending {
		return len(have) == 1 && have[0].stays(want)
	}
	if len(have) != 1 || !have[0].stays(want) || have[0].membership == nil {
		return false
	}
	s := have[0]
	spec := want.spec
	spec.Phase = s.phase()
	return equality.Semantic.DeepEqual(spec, s.membership.Spec) && s.bound(want)
}

// bound reports whether the binding says what it shall, or is not there if none shall be.
func (s standing) bound(want wanted) bool {
	if s.binding == nil || want.plane.selectors == nil {
		return s.binding == nil && want.plane.selectors == nil
	}
	b := MemberBinding(want.plane, want.spec.Namespace)
	return s.binding.RoleRef == b.RoleRef && equality.Semantic.DeepEqual(s.binding.Subjects, b.Subjects)
}

// join gives rights, then says so.
func (m *membership) join(ctx context.Context, namespace string, want wanted, s standing) error {
	if want.plane.selectors != nil {
		if err := (writer{m.client, m.live, meshOwner(want.mesh)}).write(ctx, MemberBinding(want.plane, namespace)); err != nil {
			return err
		}
	}
	o := &heddlev1alpha1.Membership{
		TypeMeta:   typeMeta(heddlev1alpha1.GroupVersion.String(), "Membership"),
		ObjectMeta: metav1.ObjectMeta{Name: namespace, Namespace: want.plane.Namespace, Labels: map[string]string{labelMesh: string(want.mesh)}},
		Spec:       want.spec,
	}
	o.Spec.Phase = s.phase()
	if err := apply(ctx, m.client, fieldManager(want.mesh), o); err != nil {
		return err
	}
	if s.membership == nil || s.membership.Spec.Phase != o.Spec.Phase {
		m.log.LogAttrs(ctx, slog.LevelInfo, "namespace joins", slog.String("namespace", namespace),
			slog.String("mesh", string(want.mesh)), slog.String("phase", string(o.Spec.Phase)))
		m.events.Eventf(o, nil, corev1.EventTypeNormal, string(o.Spec.Phase), "Join", "namespace %s joins mesh %s", namespace, want.mesh)
	}
	// A mesh that no longer has selectors has the rights of a member for the whole cluster.
	if want.plane.selectors == nil && s.binding != nil {
		return m.unbind(ctx, s)
	}
	return nil
}

// leave takes a mesh out of a namespace. It returns how long to wait before it is called again, 0 once the mesh is out.
func (m *membership) leave(ctx context.Context, namespace string, s standing) (time.Duration, error) {
	if o := s.membership; o != nil {
		if o.Spec.Phase != heddlev1alpha1.Leaving {
			p := &heddlev1alpha1.Membership{
				TypeMeta:   typeMeta(heddlev1alpha1.GroupVersion.String(), "Membership"),
				ObjectMeta: metav1.ObjectMeta{Name: o.Name, Namespace: o.Namespace, Labels: o.Labels, UID: o.UID},
				Spec:       o.Spec,
			}
			p.Spec.Phase = heddlev1alpha1.Leaving
			if err := apply(ctx, m.client, fieldManager(s.mesh), p); client.IgnoreNotFound(err) != nil {
				return 0, err
			}
			m.log.LogAttrs(ctx, slog.LevelInfo, "namespace leaves", slog.String("namespace", namespace), slog.String("mesh", string(s.mesh)))
			m.events.Eventf(o, nil, corev1.EventTypeNormal, string(heddlev1alpha1.Leaving), "Leave", "namespace %s leaves mesh %s", namespace, s.mesh)
			m.leaving[o.UID] = m.now()
			return leaveTimeout, nil
		}
		since, ok := m.leaving[o.UID]
		if !ok { // by an operator before us
			since = m.now()
			m.leaving[o.UID] = since
		}
		gone := o.Spoken() && !o.Status.Watching && !o.Status.RootWritten
		if left := leaveTimeout - m.now().Sub(since); !gone && left > 0 {
			return left, nil
		}
	}
	if err := m.unbind(ctx, s); err != nil {
		return 0, err
	}
	if err := m.dropRoot(ctx, namespace, s.mesh); err != nil {
		return 0, err
	}
	if o := s.membership; o != nil {
		if err := m.client.Delete(ctx, o, client.Preconditions{UID: &o.UID}); client.IgnoreNotFound(err) != nil {
			return 0, fmt.Errorf("delete membership %s: %w", name(o), err)
		}
		delete(m.leaving, o.UID)
	}
	m.log.LogAttrs(ctx, slog.LevelInfo, "namespace left", slog.String("namespace", namespace), slog.String("mesh", string(s.mesh)))
	return 0, m.warnPods(ctx, namespace, s.mesh)
}

func (m *membership) unbind(ctx context.Context, s standing) error {
	if s.binding == nil {
		return nil
	}
	err := m.client.Delete(ctx, s.binding, client.Preconditions{UID: &s.binding.UID})
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete binding %s: %w", name(s.binding), err)
	}
	return nil
}

// dropRoot deletes the root that the mesh wrote into the namespace and did not take back.
func (m *membership) dropRoot(ctx context.Context, namespace string, id mesh.ID) error {
	rev := &sailv1.IstioRevision{}
	if err := m.client.Get(ctx, client.ObjectKey{Name: string(id)}, rev); err != nil {
		return client.IgnoreNotFound(err)
	}
	return dropRoot(ctx, m.client, m.live, namespace, rev.Annotations[rootHash])
}

// dropRoot deletes the namespace's root ConfigMap if its root has the given hash.
func dropRoot(ctx context.Context, c client.Writer, live client.Reader, namespace, hash string) error {
	root := &corev1.ConfigMap{}
	if err := live.Get(ctx, client.ObjectKey{Namespace: namespace, Name: rootName}, root); err != nil {
		return client.IgnoreNotFound(err)
	}
	if hash == "" || hashRoot(root.Data[rootKey]) != hash {
		return nil
	}
	err := c.Delete(ctx, root, client.Preconditions{UID: &root.UID, ResourceVersion: &root.ResourceVersion})
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete ConfigMap %s: %w", name(root), err)
	}
	return nil
}

func hashRoot(pem string) string {
	sum := sha256.Sum256([]byte(pem))
	return hex.EncodeToString(sum[:])
}

// warnPods tells the user which pods of a namespace still have the sidecar of a mesh that it has left.
func (m *membership) warnPods(ctx context.Context, namespace string, id mesh.ID) error {
	list := metadataListOf(podKind)
	if err := m.client.List(ctx, list, client.InNamespace(namespace), client.MatchingFields{byInjected: string(id)}); err != nil {
		return fmt.Errorf("list the pods of namespace %s: %w", namespace, err)
	}
	if len(list.Items) == 0 {
		return nil
	}
	var pods []string
	for _, p := range list.Items {
		pods = append(pods, p.Name)
	}
	slices.Sort(pods)
	more := ""
	if len(pods) > 10 {
		pods, more = pods[:10], fmt.Sprintf(" and %d more", len(pods)-10)
	}
	ns := metadataOf(corev1.SchemeGroupVersion.WithKind(namespaceKind))
	if err := m.client.Get(ctx, client.ObjectKey{Name: namespace}, ns); err != nil {
		return client.IgnoreNotFound(err)
	}
	m.events.Eventf(ns, nil, corev1.EventTypeWarning, "LeftMesh", "Leave",
		"namespace left mesh %s; restart pods that still have its sidecar: %v%s", id, pods, more)
	return nil
}
