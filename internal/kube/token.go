package kube

import (
	"context"
	"fmt"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"

	"github.com/heddle-mesh/heddle/internal/identity"
)

const (
	extraPodName = "authentication.kubernetes.io/pod-name"
	extraPodUID  = "authentication.kubernetes.io/pod-uid"
)

const (
	reviewsAtATime = 64 // strangers may ask, too: the API server has more to do
	reviewWait     = 10 * time.Second
)

// Review asks the API server whose a token is; it implements identity.TokenChecker.
func (c *Cluster) Review(ctx context.Context, token string, audiences []string) (identity.Review, error) {
	ctx, cancel := context.WithTimeout(ctx, reviewWait)
	defer cancel()
	select {
	case c.reviews <- struct{}{}:
		defer func() { <-c.reviews }()
	case <-ctx.Done():
		return identity.Review{}, fmt.Errorf("ask cluster %s about a token: %w", c.ID, ctx.Err())
	}
	var review authenticationv1.TokenReview
	err := c.rest[authenticationv1.SchemeGroupVersion].Post().Resource("tokenreviews").Body(&authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: audiences},
	}).Do(ctx).Into(&review)
	if err != nil {
		return identity.Review{}, fmt.Errorf("ask cluster %s about a token: %w", c.ID, err)
	}
	if !review.Status.Authenticated {
		return identity.Review{}, fmt.Errorf("cluster %s refuses the token: %s", c.ID, review.Status.Error)
	}
	user := review.Status.User
	first := func(key string) string {
		if v := user.Extra[key]; len(v) > 0 {
			return v[0]
		}
		return ""
	}
	return identity.Review{
		Cluster: c.ID, Audiences: review.Status.Audiences,
		Username: user.Username, Groups: user.Groups,
		PodName: first(extraPodName), PodUID: first(extraPodUID),
	}, nil
}
