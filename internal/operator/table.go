package operator

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Indexes by which the namespaces of one mesh are found without a look at all others.
const (
	byLabel = "label" // namespaces, by key=value and by key
	byMesh  = "mesh"  // Memberships and RoleBindings
)

func namespaceLabels(o client.Object) (out []string) {
	for k, v := range o.GetLabels() {
		out = append(out, k, k+"="+v)
	}
	return out
}

func meshLabel(o client.Object) []string { return []string{o.GetLabels()[labelMesh]} }

// table is what all Istios claim, as the cache has them. It is judged again only when one of them has changed, and asked
// from several controllers at once.
type table struct {
	client client.Reader

	mu     sync.Mutex         // guards the fields below
	read   map[string]reading // by name
	claims *mesh.Claims
}

// reading is what an Istio claimed when it was read last.
type reading struct {
	istio *sailv1.Istio // the cache's own: never written
	mesh  mesh.Mesh
}

// now returns the claims of the Istios that are not being deleted; the same ones as long as nothing has changed.
func (t *table) now(ctx context.Context) (*mesh.Claims, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list sailv1.IstioList
	if err := t.client.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list the meshes: %w", err)
	}
	next, changed := map[string]reading{}, t.claims == nil
	for i := range list.Items {
		istio := &list.Items[i]
		if istio.DeletionTimestamp != nil {
			continue
		}
		r, ok := t.read[istio.Name]
		if !ok || !sameClaim(r.istio, istio) {
			var err error
			if r.mesh, err = claimOf(ctx, t.client, istio); err != nil {
				return nil, err
			}
			changed = true
		}
		r.istio = istio
		next[istio.Name] = r
	}
	if changed || len(next) != len(t.read) {
		var meshes []mesh.Mesh
		for _, r := range next {
			meshes = append(meshes, r.mesh)
		}
		t.claims = mesh.Judge(meshes)
	}
	t.read = next
	return t.claims, nil
}

func sameClaim(a, b *sailv1.Istio) bool {
	raw := func(i *sailv1.Istio) []byte {
		if i.Spec.Values == nil {
			return nil
		}
		return i.Spec.Values.Raw
	}
	return a.UID == b.UID && a.Spec.Namespace == b.Spec.Namespace && bytes.Equal(raw(a), raw(b)) && a.CreationTimestamp.Equal(&b.CreationTimestamp)
}

// owner is the mesh that a namespace belongs to.
func (t *table) owner(ctx context.Context, ns mesh.Namespace) (mesh.ID, error) {
	claims, err := t.now(ctx)
	if err != nil {
		return "", err
	}
	return claims.Owner(ns), nil
}

// selected are the namespaces that a mesh selects and its system namespace, sorted.
func (t *table) selected(ctx context.Context, m mesh.Mesh) ([]mesh.Namespace, error) {
	found := map[string]mesh.Namespace{}
	look := func(matches func(map[string]string) bool, options ...client.ListOption) error {
		list := metadataListOf(corev1.SchemeGroupVersion.WithKind(namespaceKind))
		if err := t.client.List(ctx, list, append(options, client.UnsafeDisableDeepCopy)...); err != nil {
			return fmt.Errorf("list namespaces: %w", err)
		}
		for _, ns := range list.Items {
			if matches(ns.Labels) {
				found[ns.Name] = mesh.Namespace{Name: ns.Name, Labels: ns.Labels}
			}
		}
		return nil
	}
	if m.Everything() {
		if err := look(m.Selects); err != nil {
			return nil, err
		}
	}
	for _, s := range m.Selectors {
		for _, value := range indexed(s) {
			var options []client.ListOption
			if value != "" {
				options = append(options, client.MatchingFields{byLabel: value})
			}
			if err := look(s.Matches, options...); err != nil {
				return nil, err
			}
		}
	}
	system := metadataOf(corev1.SchemeGroupVersion.WithKind(namespaceKind))
	if err := t.client.Get(ctx, client.ObjectKey{Name: m.System}, system); err == nil {
		found[m.System] = mesh.Namespace{Name: m.System, Labels: system.Labels}
	} else if client.IgnoreNotFound(err) != nil {
		return nil, fmt.Errorf("read namespace %s: %w", m.System, err)
	}
	var out []mesh.Namespace
	for _, n := range slices.Sorted(maps.Keys(found)) {
		out = append(out, found[n])
	}
	return out, nil
}

// findings are those of mesh.Members about one mesh.
func (t *table) findings(ctx context.Context, id mesh.ID) ([]mesh.Finding, error) {
	claims, err := t.now(ctx)
	if err != nil {
		return nil, err
	}
	m, ok := claims.Mesh(id)
	if !ok {
		return nil, nil
	}
	namespaces, err := t.selected(ctx, m)
	if err != nil {
		return nil, err
	}
	for i := range namespaces {
		if namespaces[i].Holder, err = t.holder(ctx, namespaces[i].Name); err != nil {
			return nil, err
		}
	}
	return claims.Findings(id, namespaces), nil
}

// indexed are the values of the index byLabel under which all that the selector matches is found; the empty one stands for
// all namespaces, which a selector wants that only excludes.
func indexed(s mesh.Selector) []string {
	for _, r := range s {
		switch r.Op {
		case mesh.In:
			var out []string
			for _, v := range r.Values {
				out = append(out, r.Key+"="+v)
			}
			return out
		case mesh.Exists:
			return []string{r.Key}
		}
	}
	return []string{""}
}

// holder is the mesh that has a namespace now. A Membership counts in the system namespace of its mesh only: whoever writes
// one elsewhere holds nothing by it.
func (t *table) holder(ctx context.Context, namespace string) (mesh.ID, error) {
	claims, err := t.now(ctx)
	if err != nil {
		return "", err
	}
	var list heddlev1alpha1.MembershipList
	if err := t.client.List(ctx, &list, client.MatchingFields{byName: namespace}); err != nil {
		return "", fmt.Errorf("list the memberships of namespace %s: %w", namespace, err)
	}
	for _, o := range list.Items {
		m, ok := claims.Mesh(mesh.ID(o.Labels[labelMesh]))
		if ok && o.Namespace == m.System && o.Spec.Phase != heddlev1alpha1.Leaving {
			return m.ID, nil
		}
	}
	return "", nil
}

// held are the names of the namespaces in which a mesh has a binding or of which it has a Membership.
func (t *table) held(ctx context.Context, id mesh.ID) (map[string]bool, error) {
	var members heddlev1alpha1.MembershipList
	var bindings rbacv1.RoleBindingList
	of := client.MatchingFields{byMesh: string(id)}
	if err := errors.Join(t.client.List(ctx, &members, of), t.client.List(ctx, &bindings, of)); err != nil {
		return nil, fmt.Errorf("list the memberships and bindings of mesh %s: %w", id, err)
	}
	out := map[string]bool{}
	for _, o := range members.Items {
		out[o.Name] = true
	}
	for _, o := range bindings.Items {
		if o.Name == roleMember {
			out[o.Namespace] = true
		}
	}
	return out, nil
}

// concerned are the names of the namespaces that a mesh has or may have.
func (t *table) concerned(ctx context.Context, m mesh.Mesh) (map[string]bool, error) {
	out, err := t.held(ctx, m.ID)
	if err != nil {
		return nil, err
	}
	selected, err := t.selected(ctx, m)
	for _, ns := range selected {
		out[ns.Name] = true
	}
	return out, err
}

// namespace is a namespace as the cache has it, without labels if it is not there.
func (t *table) namespace(ctx context.Context, name string) (mesh.Namespace, error) {
	ns := metadataOf(corev1.SchemeGroupVersion.WithKind(namespaceKind))
	if err := t.client.Get(ctx, client.ObjectKey{Name: name}, ns); client.IgnoreNotFound(err) != nil {
		return mesh.Namespace{}, fmt.Errorf("read namespace %s: %w", name, err)
	}
	return mesh.Namespace{Name: name, Labels: ns.Labels}, nil
}

// edits are the claims that a controller has acted on: of a new state it learns what has changed since.
type edits struct {
	table *table

	mu   sync.Mutex // guards seen
	seen *mesh.Claims
}

// next returns the meshes of which something has changed since it was asked last, and what is claimed now.
func (e *edits) next(ctx context.Context) ([]mesh.Mesh, *mesh.Claims, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now, err := e.table.now(ctx)
	if err != nil {
		return nil, nil, err
	}
	changed := now.Since(e.seen)
	e.seen = now
	return changed, now, nil
}

// toNamespaces sends an edit of an Istio to the namespaces for which it may make a difference.
func (e *edits) toNamespaces() handler.EventHandler {
	return handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, _ client.Object) []reconcile.Request {
		changed, _, err := e.next(ctx)
		if err != nil {
			return nil // the cache is stopping
		}
		return e.table.requests(ctx, changed...)
	})
}

// toIstios sends an edit of an Istio to those about which it may change a finding.
func (e *edits) toIstios() handler.EventHandler {
	return handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, _ client.Object) []reconcile.Request {
		changed, now, err := e.next(ctx)
		if err != nil {
			return nil // the cache is stopping
		}
		out := map[string]bool{}
		for _, m := range changed {
			out[string(m.ID)] = true
			concerned, err := e.table.concerned(ctx, m)
			if err != nil {
				return nil
			}
			for ns := range concerned {
				there, err := e.table.namespace(ctx, ns)
				if err != nil {
					return nil
				}
				for _, id := range now.Interested(there) {
					out[string(id)] = true
				}
			}
		}
		return requestsOf(out)
	})
}

// requests are those for the namespaces that concern one of the meshes.
func (t *table) requests(ctx context.Context, meshes ...mesh.Mesh) []reconcile.Request {
	out := map[string]bool{}
	for _, m := range meshes {
		concerned, err := t.concerned(ctx, m)
		if err != nil {
			return nil // the cache is stopping
		}
		maps.Copy(out, concerned)
	}
	return requestsOf(out)
}

func requestsOf(names map[string]bool) (out []reconcile.Request) {
	for _, n := range slices.Sorted(maps.Keys(names)) {
		out = append(out, reconcile.Request{NamespacedName: types.NamespacedName{Name: n}})
	}
	return out
}

// toMeshes sends an event to the Istios of the meshes to which it matters.
func (t *table) toMeshes(matters func(mesh.Mesh, client.Object) bool) handler.EventHandler {
	return handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
		claims, err := t.now(ctx)
		if err != nil {
			return nil // the cache is stopping
		}
		out := map[string]bool{}
		for _, m := range claims.Meshes() {
			if matters(m, o) {
				out[string(m.ID)] = true
			}
		}
		return requestsOf(out)
	})
}

// toMembers sends an event to the namespaces of the meshes to which it matters, and to what an object names that is of none:
// what a mesh that is gone has left.
func (t *table) toMembers(matters func(mesh.Mesh, client.Object) bool) handler.EventHandler {
	return handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
		claims, err := t.now(ctx)
		if err != nil {
			return nil // the cache is stopping
		}
		meshes := slices.DeleteFunc(slices.Clone(claims.Meshes()), func(m mesh.Mesh) bool { return !matters(m, o) })
		if len(meshes) > 0 {
			return t.requests(ctx, meshes...)
		}
		held, err := t.held(ctx, mesh.ID(cmp.Or(ofMesh(o), o.GetName())))
		if err != nil {
			return nil
		}
		return requestsOf(held)
	})
}

// toInterested sends what happens in a namespace to the Istios about which it may change a finding.
func (t *table) toInterested(namespace func(context.Context, client.Object) (mesh.Namespace, error)) handler.EventHandler {
	return handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
		claims, err := t.now(ctx)
		ns, nerr := namespace(ctx, o)
		if err != nil || nerr != nil {
			return nil // the cache is stopping
		}
		out := map[string]bool{}
		for _, id := range claims.Interested(ns) {
			out[string(id)] = true
		}
		return requestsOf(out)
	})
}
