package operator

import (
	"context"
	"fmt"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// maxAsked bounds the questions about one write, which the API server waits 5 s for; each takes it about a millisecond.
const maxAsked = 50

// reached are the existing namespaces that a mesh newly selects, and its system namespace if that is new, which may be made
// later; sorted. old is nil if there was no such mesh.
func reached(old *mesh.Mesh, changed mesh.Mesh, namespaces []mesh.Namespace) []string {
	if old != nil && old.Fault != "" { // nobody knows what it selected
		old = &mesh.Mesh{System: old.System, Selectors: []mesh.Selector{{{Op: mesh.In}}}}
	}
	var out []string
	if old == nil || old.System != changed.System {
		out = append(out, changed.System)
	}
	for _, ns := range namespaces {
		if changed.Selects(ns.Labels) && (old == nil || !old.Selects(ns.Labels)) {
			out = append(out, ns.Name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// mayExtend returns why the user may not bring the namespaces to a mesh, and nothing if they may: who may update a namespace
// may label it into a mesh, so a mesh that selects it by another label is no way around that.
func (a *admit) mayExtend(ctx context.Context, user authenticationv1.UserInfo, id mesh.ID, namespaces []string) (string, error) {
	if len(namespaces) == 0 {
		return "", nil
	}
	if ok, err := a.mayUpdate(ctx, user, ""); ok || err != nil {
		return "", err
	}
	if len(namespaces) > maxAsked {
		return fmt.Sprintf("mesh %s would newly reach %d namespaces, and %s may not update all namespaces of the cluster: the rights to single ones are looked at for %d at a time; "+
			"select fewer at once, or let somebody do it who may update all", id, len(namespaces), user.Username, maxAsked), nil
	}
	var refused []string
	for _, ns := range namespaces {
		ok, err := a.mayUpdate(ctx, user, ns)
		if err != nil {
			return "", err
		}
		if !ok {
			refused = append(refused, ns)
		}
	}
	if len(refused) == 0 {
		return "", nil
	}
	return fmt.Sprintf("%s may not update namespaces %s, which mesh %s would newly have: who extends a mesh to a namespace must have the right to update it",
		user.Username, strings.Join(refused, ", "), id), nil
}

// mayUpdate asks the API server whether the user may update a namespace, all of them if it is empty.
func (a *admit) mayUpdate(ctx context.Context, user authenticationv1.UserInfo, namespace string) (bool, error) {
	extra := map[string]authorizationv1.ExtraValue{}
	for k, v := range user.Extra {
		extra[k] = authorizationv1.ExtraValue(v)
	}
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: user.Username, UID: user.UID, Groups: user.Groups, Extra: extra,
		// As the API server itself puts it: a namespace is in itself, so that a RoleBinding there counts.
		ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "update", Version: "v1", Resource: "namespaces", Namespace: namespace, Name: namespace},
	}}
	if err := a.reviews.Create(ctx, review); err != nil {
		return false, fmt.Errorf("ask whether %s may update namespaces: %w", user.Username, err)
	}
	return review.Status.Allowed, nil
}

// reviews creates SubjectAccessReviews.
type reviews interface {
	Create(ctx context.Context, o client.Object, opts ...client.CreateOption) error
}
