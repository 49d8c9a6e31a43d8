package verify

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
)

const reviewers = 16 // access reviews at a time

// verbs are what RBAC can grant on a resource; named are objects on which a plane has rights of their own.
var (
	verbs = []string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}
	named = map[string][]string{"configmaps": {rootName}, "secrets": {"cacerts", "istio-ca-secret"}}
)

// rights asks the API server, for each resource of a namespace that it knows, whether the plane's account may use each
// verb on it. One line is printed for each resource of which something is allowed, and how many questions were asked.
func rights(ctx context.Context, k kubernetes.Interface, p plane, namespaces []string) (string, error) {
	_, all, err := k.Discovery().ServerGroupsAndResources()
	if err != nil {
		return "", err
	}
	type ask struct {
		line int // of the output
		at   authorizationv1.ResourceAttributes
	}
	var asks []ask
	var lines []string
	for _, ns := range namespaces {
		seen := map[string]bool{}
		for _, l := range all {
			gv, err := schema.ParseGroupVersion(l.GroupVersion)
			if err != nil {
				return "", err
			}
			for _, res := range l.APIResources {
				title := strings.TrimSuffix(ns+" "+res.Name+"."+gv.Group, ".")
				if !res.Namespaced || seen[title] {
					continue
				}
				seen[title] = true
				resource, sub, _ := strings.Cut(res.Name, "/")
				for _, name := range append([]string{""}, named[resource]...) {
					for _, verb := range verbs {
						asks = append(asks, ask{len(lines), authorizationv1.ResourceAttributes{
							Namespace: ns, Verb: verb, Group: gv.Group, Resource: resource, Subresource: sub, Name: name,
						}})
					}
					lines = append(lines, strings.TrimSuffix(title+" "+name, " ")+":")
				}
			}
		}
	}
	allowed := make([]bool, len(asks))
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.SetLimit(reviewers)
	for i, a := range asks {
		tasks.Go(func() error {
			review, err := k.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{
				Spec: authorizationv1.SubjectAccessReviewSpec{
					User:               "system:serviceaccount:" + p.system + ":" + p.service(),
					Groups:             []string{"system:serviceaccounts", "system:serviceaccounts:" + p.system, "system:authenticated"},
					ResourceAttributes: &a.at,
				},
			}, metav1.CreateOptions{})
			allowed[i] = err == nil && review.Status.Allowed
			return err
		})
	}
	if err := tasks.Wait(); err != nil {
		return "", err
	}
	bare := slices.Clone(lines)
	for i, a := range asks {
		if allowed[i] {
			lines[a.line] += " " + a.at.Verb
		}
	}
	var out strings.Builder
	for i, l := range lines {
		if l != bare[i] {
			fmt.Fprintln(&out, l)
		}
	}
	fmt.Fprintf(&out, "asked %d\n", len(asks))
	return out.String(), nil
}
