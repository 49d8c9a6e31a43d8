package kube

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

const (
	extraPodName = "authentication.kubernetes.io/pod-name"
	extraPodUID  = "authentication.kubernetes.io/pod-uid"
)

const (
	reviewsAtATime = 64 // strangers may ask, too: the API server has more to do
	reviewsForeign = 4  // of tokens whose issuer never gave one that was good
	reviewWait     = 10 * time.Second
	leeway         = time.Minute // as the API server's, for clocks that differ
)

// claims are what a service account's token says of itself. Nothing of it is believed before the API server has said so; but
// what it can't take need not be asked.
type claims struct {
	Issuer   string    `json:"iss"`
	Audience audiences `json:"aud"`
	Expires  int64     `json:"exp"`
}

// audiences are one or many.
type audiences []string

func (a *audiences) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*a = audiences{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(a))
}

func parseClaims(token string) (c claims, err error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return c, errors.New("the token is not a service account's: not of three parts")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err == nil {
		err = json.Unmarshal(payload, &c)
	}
	if err != nil {
		return c, fmt.Errorf("the token is not a service account's: %w", err)
	}
	return c, nil
}

// claimsOf reads a token and refuses what the API server would.
func claimsOf(token string, want []string, now time.Time) (c claims, err error) {
	c, err = parseClaims(token)
	switch {
	case err != nil:
		return c, err
	case now.After(time.Unix(c.Expires, 0).Add(leeway)):
		return c, fmt.Errorf("the token has ended at %s", time.Unix(c.Expires, 0).UTC().Format(time.RFC3339))
	case !slices.ContainsFunc(c.Audience, func(a string) bool { return slices.Contains(want, a) }):
		return c, fmt.Errorf("the token is for audiences %q, not for %q", []string(c.Audience), want)
	}
	return c, nil
}

// Tokens asks one API server about tokens. It is safe for concurrent use.
type Tokens struct {
	cluster mesh.ClusterID
	asks    rest.Interface
	reviews chan struct{} // holds one for each TokenReview under way
	foreign chan struct{} // likewise, of tokens whose issuer is not among issuers
	issuers sync.Map      // issuers of tokens that were good
}

// NewTokens prepares to ask the API server of cfg; it does not connect.
func NewTokens(cfg *rest.Config, id mesh.ClusterID) (*Tokens, error) {
	http, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("open cluster %s: %w", id, err)
	}
	return newTokens(cfg, http, id)
}

func newTokens(cfg *rest.Config, http *http.Client, id mesh.ClusterID) (*Tokens, error) {
	t := &Tokens{cluster: id, reviews: make(chan struct{}, reviewsAtATime), foreign: make(chan struct{}, reviewsForeign)}
	own := cfg.BearerToken
	if file := cfg.BearerTokenFile; file != "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read the own token: %w", err)
		}
		own = string(b)
	}
	if said, err := parseClaims(own); err == nil { // a kubeconfig may hold another kind of right
		t.issuers.Store(said.Issuer, struct{}{})
	}
	scheme := runtime.NewScheme()
	if err := authenticationv1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("register TokenReview: %w", err)
	}
	cfg = rest.CopyConfig(cfg)
	cfg.GroupVersion, cfg.APIPath, cfg.ContentType = &authenticationv1.SchemeGroupVersion, "/apis", runtime.ContentTypeProtobuf
	cfg.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	cfg.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	var err error
	if t.asks, err = rest.RESTClientForConfigAndClient(cfg, http); err != nil {
		return nil, fmt.Errorf("open cluster %s for %s: %w", id, authenticationv1.SchemeGroupVersion, err)
	}
	return t, nil
}

// Review asks the API server whose a token is; it implements identity.TokenChecker. What is no good by what it says of itself
// is refused unasked. An API server may take tokens of issuers that it once had: one whose issuer has given none that was
// good is asked about too, in a small queue of its own, so that strangers do not fill that of the cluster's own pods.
func (t *Tokens) Review(ctx context.Context, token string, audiences []string) (identity.Review, error) {
	ctx, cancel := context.WithTimeout(ctx, reviewWait)
	defer cancel()
	said, err := claimsOf(token, audiences, time.Now())
	if err != nil {
		return identity.Review{}, err
	}
	queue := t.foreign
	if _, known := t.issuers.Load(said.Issuer); known {
		queue = t.reviews
	}
	select {
	case queue <- struct{}{}:
		defer func() { <-queue }()
	case <-ctx.Done():
		return identity.Review{}, fmt.Errorf("ask cluster %s about a token: %w", t.cluster, ctx.Err())
	}
	var review authenticationv1.TokenReview
	err = t.asks.Post().Resource("tokenreviews").Body(&authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: audiences},
	}).Do(ctx).Into(&review)
	if err != nil {
		return identity.Review{}, fmt.Errorf("ask cluster %s about a token: %w", t.cluster, err)
	}
	if !review.Status.Authenticated {
		return identity.Review{}, fmt.Errorf("cluster %s refuses the token: %s", t.cluster, review.Status.Error)
	}
	t.issuers.Store(said.Issuer, struct{}{}) // as many as the API server has
	user := review.Status.User
	first := func(key string) string {
		if v := user.Extra[key]; len(v) > 0 {
			return v[0]
		}
		return ""
	}
	return identity.Review{
		Cluster: t.cluster, Audiences: review.Status.Audiences,
		Username: user.Username, Groups: user.Groups,
		PodName: first(extraPodName), PodUID: first(extraPodUID),
	}, nil
}
