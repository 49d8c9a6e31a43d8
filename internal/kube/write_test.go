package kube

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/kube/kubetest"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

func membership(namespace string) *heddlev1alpha1.Membership {
	return &heddlev1alpha1.Membership{
		ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: namespace},
		Spec:       heddlev1alpha1.MembershipSpec{Namespace: namespace, Phase: heddlev1alpha1.Joining, UID: "ns-uid"},
	}
}

func reported(m *heddlev1alpha1.Membership) heddlev1alpha1.MembershipStatus {
	return heddlev1alpha1.MembershipStatus{Watching: true, RootWritten: true, UID: m.UID, Generation: m.Generation}
}

// membershipSink passes on what it is given.
type membershipSink chan *heddlev1alpha1.Membership

func (s membershipSink) Set(_ mesh.ObjectKey, m *heddlev1alpha1.Membership) { s <- m }
func (s membershipSink) Delete(mesh.ObjectKey)                              {}
func (s membershipSink) Replace(rows []graph.Row[mesh.ObjectKey, *heddlev1alpha1.Membership], _ func(mesh.ObjectKey) bool) {
	for _, r := range rows {
		s <- r.Val
	}
}

func rootOf(manager, bundle string) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: RootConfigMap,
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: manager, Operation: "Update", FieldsV1: &metav1.FieldsV1{Raw: []byte(`{"f:data":{"f:root-cert.pem":{}}}`)}}},
		},
		Data: map[string]string{RootKey: bundle},
	}
}

// A plane's root goes into a namespace over what a user did, and never over another plane's.
func TestWriteRoot(t *testing.T) {
	for name, c := range map[string]struct {
		have *corev1.ConfigMap
		want string // root in the end
		err  string
	}{
		"none":                  {want: "ours"},
		"ours":                  {have: rootOf("istiod-one", "ours"), want: "ours"},
		"an older one of ours":  {have: rootOf("istiod-one", "old"), want: "ours"},
		"edited by hand":        {have: rootOf("kubectl-edit", "evil"), want: "ours"},
		"made before":           {have: &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: RootConfigMap}, Data: map[string]string{RootKey: "x"}}, want: "ours"},
		"another mesh's":        {have: rootOf("istiod-two", "theirs"), want: "theirs", err: `control plane "istiod-two"`},
		"a stock control plane": {have: rootOf("pilot-discovery", "theirs"), want: "theirs", err: `control plane "pilot-discovery"`},
	} {
		t.Run(name, func(t *testing.T) {
			server := kubetest.New(t)
			if c.have != nil {
				server.Put("configmaps", c.have)
			}
			err := open(t, server).WriteRoot(t.Context(), "shop", "ours")
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err) || !apierrors.IsConflict(err)) {
				t.Errorf("got error %v, want %q", err, c.err)
			}
			if got := server.Get("configmaps", "shop", RootConfigMap, "data", RootKey); got != c.want {
				t.Errorf("root is %v, want %q", got, c.want)
			}
		})
	}
}

func TestWriteRootRequest(t *testing.T) {
	server := kubetest.New(t)
	if err := open(t, server).WriteRoot(t.Context(), "shop", "ours"); err != nil {
		t.Fatal(err)
	}
	r := server.Requests()[0]
	if r.Method != http.MethodPatch || r.Path != "/api/v1/namespaces/shop/configmaps/istio-ca-root-cert" {
		t.Errorf("got %s %s", r.Method, r.Path)
	}
	if m := r.Query.Get("fieldManager"); m != "istiod-one" {
		t.Errorf("field manager %q", m)
	}
	want := `{"apiVersion":"v1","data":{"root-cert.pem":"ours"},"kind":"ConfigMap","metadata":{"labels":{"istio.io/config":"true"},"name":"istio-ca-root-cert","namespace":"shop"}}`
	if r.Body != want {
		t.Errorf("applies %s, want %s", r.Body, want)
	}
}

// Only its own root does a plane delete, and only as it saw it.
func TestDeleteRoot(t *testing.T) {
	for name, c := range map[string]struct {
		have    *corev1.ConfigMap
		refused bool
		deletes bool
		fails   bool
	}{
		"none":            {},
		"ours":            {have: rootOf("istiod-one", "ours"), deletes: true},
		"another mesh's":  {have: rootOf("istiod-two", "theirs")},
		"rights are gone": {have: rootOf("istiod-one", "ours"), refused: true, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			server := kubetest.New(t)
			if c.have != nil {
				server.Put("configmaps", c.have)
			}
			version, uid := server.Get("configmaps", "shop", RootConfigMap, "metadata", "resourceVersion"), server.Get("configmaps", "shop", RootConfigMap, "metadata", "uid")
			if c.refused {
				server.Refuse("shop")
			}
			if err := open(t, server).DeleteRoot(t.Context(), "shop", "ours"); (err != nil) != c.fails {
				t.Errorf("got %v", err)
			}
			requests := server.Requests()
			last := requests[len(requests)-1]
			if deleted := last.Method == http.MethodDelete; deleted != c.deletes {
				t.Fatalf("last request is %+v", last)
			}
			if !c.deletes {
				return
			}
			var o metav1.DeleteOptions
			if err := json.Unmarshal([]byte(last.Body), &o); err != nil {
				t.Fatal(err)
			}
			if *o.Preconditions.ResourceVersion != version || string(*o.Preconditions.UID) != uid {
				t.Errorf("deletes on condition %v, want version %v, UID %v", o.Preconditions, version, uid)
			}
			if server.Get("configmaps", "shop", RootConfigMap, "kind") != nil {
				t.Error("it is still there")
			}
		})
	}
}

// A report lands on the Membership that it speaks of, or nowhere.
func TestReportMembership(t *testing.T) {
	server := kubetest.New(t)
	server.Put("memberships", membership("shop"))
	c := open(t, server)
	got := make(membershipSink, 10)
	w := Follow(t.Context(), c, Memberships, "istio-system", got)
	m := <-got
	w.Stop()
	if err := c.ReportMembership(t.Context(), m, reported(m)); err != nil {
		t.Fatal(err)
	}
	requests := server.Requests()
	r := requests[len(requests)-1]
	if r.Method != http.MethodPatch || r.Path != "/apis/heddle.dev/v1alpha1/namespaces/istio-system/memberships/shop/status" || r.Query.Get("fieldManager") != "istiod-one" {
		t.Errorf("got %s %s by %s", r.Method, r.Path, r.Query.Get("fieldManager"))
	}
	want := map[string]any{"watching": true, "rootWritten": true, "uid": string(m.UID), "generation": float64(m.Generation)}
	var body struct{ Status map[string]any }
	if err := json.Unmarshal([]byte(r.Body), &body); err != nil || !reflect.DeepEqual(body.Status, want) {
		t.Errorf("reports %s, want %v", r.Body, want)
	}
	server.Delete("memberships", "istio-system", "shop")
	if err := c.ReportMembership(t.Context(), m, reported(m)); !apierrors.IsNotFound(err) {
		t.Errorf("report on a deleted one: %v", err)
	}
	server.Put("memberships", membership("shop"))
	if err := c.ReportMembership(t.Context(), m, reported(m)); !apierrors.IsConflict(err) {
		t.Errorf("report on its predecessor: %v", err)
	}
	if got := server.Get("memberships", "istio-system", "shop", "status", "watching"); got == true {
		t.Error("it landed on the successor")
	}
}

// token is a service account's, but for its signature.
func token(payload string) string {
	return "e30." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".e30"
}

var good = token(`{"iss":"us","aud":["a"],"exp":100000000000}`)

// What is no good by what it says of itself costs no question.
func TestReviewRefusedUnasked(t *testing.T) {
	server := kubetest.New(t)
	server.Review = func(authenticationv1.TokenReviewSpec) authenticationv1.TokenReviewStatus {
		return authenticationv1.TokenReviewStatus{Error: "asked"}
	}
	c := open(t, server)
	for name, tc := range map[string]struct{ token, err string }{
		"no token":           {"t0ken", "not of three parts"},
		"no payload":         {"a.!.c", "not a service account's"},
		"not JSON":           {"a.e3.c", "not a service account's"},
		"ended":              {token(`{"iss":"us","aud":["a"],"exp":1000}`), "has ended at 1970-01-01T00:16:40Z"},
		"without an end":     {token(`{"iss":"us","aud":["a"]}`), "has ended"},
		"another audience":   {token(`{"iss":"us","aud":["x"],"exp":100000000000}`), `for audiences ["x"], not for ["a" "b"]`},
		"no audience":        {token(`{"iss":"us","exp":100000000000}`), "for audiences []"},
		"good by its word":   {good, "asked"},
		"audience as a text": {token(`{"iss":"us","aud":"b","exp":100000000000}`), "asked"},
	} {
		if _, err := c.Review(t.Context(), tc.token, []string{"a", "b"}); err == nil || !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%s: got %v, want %q", name, err, tc.err)
		}
	}
	if n := len(server.Requests()); n != 2 {
		t.Errorf("the API server was asked %d times, want 2", n)
	}
}

// Tokens whose issuer never gave a good one have a small part of the questions under way.
func TestReviewForeignIssuers(t *testing.T) {
	server := kubetest.New(t)
	server.Review = func(s authenticationv1.TokenReviewSpec) authenticationv1.TokenReviewStatus {
		return authenticationv1.TokenReviewStatus{Authenticated: s.Token == good, Audiences: s.Audiences}
	}
	c := open(t, server)
	if _, err := c.Review(t.Context(), good, []string{"a"}); err != nil {
		t.Fatal(err)
	}
	for range reviewsForeign { // strangers have all that is theirs
		c.foreign <- struct{}{}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := c.Review(ctx, token(`{"iss":"them","aud":["a"],"exp":100000000000}`), []string{"a"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a stranger's token: %v", err)
	}
	if _, err := c.Review(t.Context(), good, []string{"a"}); err != nil {
		t.Errorf("one of the cluster's own waits for strangers: %v", err)
	}
}

func TestReview(t *testing.T) {
	server := kubetest.New(t)
	var asked authenticationv1.TokenReviewSpec
	var answer authenticationv1.TokenReviewStatus
	server.Review = func(s authenticationv1.TokenReviewSpec) authenticationv1.TokenReviewStatus {
		asked = s
		return answer
	}
	c := open(t, server)
	user := authenticationv1.UserInfo{Username: "system:serviceaccount:shop:cart", Groups: []string{"system:serviceaccounts"}}
	for name, tc := range map[string]struct {
		answer authenticationv1.TokenReviewStatus
		want   identity.Review
		err    string
	}{
		"unbound": {
			answer: authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: []string{"a"}, User: user},
			want:   identity.Review{Cluster: "c1", Audiences: []string{"a"}, Username: user.Username, Groups: user.Groups},
		},
		"bound to a pod": {
			answer: authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: []string{"a", "b"}, User: authenticationv1.UserInfo{
				Username: user.Username, Groups: user.Groups,
				Extra: map[string]authenticationv1.ExtraValue{extraPodName: {"cart-1"}, extraPodUID: {"u1"}, "other": {"x"}},
			}},
			want: identity.Review{Cluster: "c1", Audiences: []string{"a", "b"}, Username: user.Username, Groups: user.Groups, PodName: "cart-1", PodUID: "u1"},
		},
		"invalid": {answer: authenticationv1.TokenReviewStatus{Error: "token has expired"}, err: "token has expired"},
	} {
		t.Run(name, func(t *testing.T) {
			answer = tc.answer
			got, err := c.Review(t.Context(), good, []string{"a", "b"})
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("got %v, want %q", err, tc.err)
				}
				return
			}
			if err != nil || !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %+v, %v, want %+v", got, err, tc.want)
			}
			if asked.Token != good || !reflect.DeepEqual(asked.Audiences, []string{"a", "b"}) {
				t.Errorf("asked %+v", asked)
			}
		})
	}
	t.Run("no answer", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := c.Review(ctx, good, []string{"a"}); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
}

func TestSecrets(t *testing.T) {
	server := kubetest.New(t)
	c := open(t, server)
	if s, err := c.Secret(t.Context(), "istio-system", "ca"); s != nil || err != nil {
		t.Errorf("got %v, %v before there is one", s, err)
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "ca"}, Data: map[string][]byte{"key": []byte("k")}}
	for _, want := range []bool{true, false} {
		if created, err := c.CreateSecret(t.Context(), secret); created != want || err != nil {
			t.Errorf("got %v, %v, want %v", created, err, want)
		}
	}
	if s, err := c.Secret(t.Context(), "istio-system", "ca"); err != nil || string(s.Data["key"]) != "k" {
		t.Errorf("got %v, %v", s, err)
	}
	server.Refuse("istio-system")
	if _, err := c.Secret(t.Context(), "istio-system", "ca"); !apierrors.IsForbidden(err) {
		t.Errorf("got %v", err)
	}
}

// Warnings about a Deployment become events in its namespace; the same one again is counted.
func TestEvents(t *testing.T) {
	server := kubetest.New(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	e := open(t, server).Events(ctx, "istio-system", "istiod-1")
	e.Warn("CallRefused", "no token")
	server.Await("an event", func() bool {
		return server.Asked(http.MethodPost, "/api/v1/namespaces/istio-system/events", http.StatusCreated)
	})
	var posted corev1.Event
	if err := json.Unmarshal([]byte(server.Requests()[0].Body), &posted); err != nil {
		t.Fatal(err)
	}
	if posted.Type != corev1.EventTypeWarning || posted.Reason != "CallRefused" || posted.Message != "no token" ||
		posted.InvolvedObject.Kind != "Deployment" || posted.InvolvedObject.Name != "istiod-1" || posted.Source.Component != "istiod-1" {
		t.Errorf("posted %+v", posted)
	}
	e.Warn("CallRefused", "no token")
	server.Await("the count", func() bool {
		return server.Asked(http.MethodPatch, "/api/v1/namespaces/istio-system/events/"+posted.Name, http.StatusOK)
	})
}
