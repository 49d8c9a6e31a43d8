package operator

import (
	"context"
	"encoding/base64"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/heddle-mesh/heddle/internal/kube/kubetest"
	"github.com/heddle-mesh/heddle/internal/obs"
)

// tokenOf is a token of an account for an audience, as far as it can be read unasked.
func tokenOf(account, audience string) string {
	claims := `{"iss":"us","exp":100000000000,"aud":["` + audience + `"],"sub":"system:serviceaccount:` + account + `"}`
	return "h." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".s"
}

// Who may do what with a running operator: a service account of its own namespace, with a token for this; nobody else, by no
// page; and profiles only where its Deployment says so.
func TestPages(t *testing.T) {
	server := kubetest.New(t)
	const ours, other, mesh1, apis = Namespace + ":default istio-ca", "app:default istio-ca", "sys:istiod istio-ca", Namespace + ":operator https://kubernetes.default.svc"
	server.Review = func(s authenticationv1.TokenReviewSpec) authenticationv1.TokenReviewStatus {
		for _, who := range []string{ours, other, mesh1, apis} {
			account, audience, _ := strings.Cut(who, " ")
			if s.Token == tokenOf(account, audience) && slices.Contains(s.Audiences, audience) {
				return authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: []string{audience}, User: authenticationv1.UserInfo{
					Username: "system:serviceaccount:" + account, Groups: []string{"system:serviceaccounts"},
				}}
			}
		}
		return authenticationv1.TokenReviewStatus{Error: "nobody's"}
	}
	config, err := clientcmd.BuildConfigFromFlags("", server.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	scheme, err := Scheme()
	if err != nil {
		t.Fatal(err)
	}
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: operatorName}}
	cluster := fake.NewClientBuilder().WithScheme(scheme).WithObjects(d).Build()
	level := &obs.Level{}
	running, end := context.WithCancel(t.Context())
	defer end()
	p, err := newPages(running, Options{Config: config, Namespace: Namespace, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Level: level}, cluster)
	if err != nil {
		t.Fatal(err)
	}
	call := func(method, page, who string) (int, string) {
		r := httptest.NewRequest(method, PagesPath+page, http.NoBody)
		if account, audience, ok := strings.Cut(who, " "); ok {
			r.Header.Set("Authorization", "Bearer "+tokenOf(account, audience))
		} else if who != "" {
			r.Header.Set("Authorization", "Bearer "+who)
		}
		w := httptest.NewRecorder()
		p.ServeHTTP(w, r)
		return w.Code, w.Body.String()
	}
	rows := map[string]bool{}
	for _, switched := range []string{"", "yes", "true", "false"} {
		d.Annotations = map[string]string{annotationProfiles: switched}
		if err := cluster.Update(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		profile, text := 403, "annotate deployment heddle-operator heddle.dev/profiles=true"
		if switched == "true" {
			profile, text = 200, "\x1f\x8b"
		}
		for _, c := range []struct {
			method, page string
			code         int // for who may
			text         string
		}{
			{"GET", "log", 200, `"level":"info"`},
			{"PUT", "log?level=debug", 200, `"level":"debug"`},
			{"DELETE", "log", 200, `"level":"info"`},
			{"GET", "profile?type=heap", profile, text},
			{"GET", "profile?type=all", 400, "use allocs, cpu, goroutine or heap"},
			{"GET", "tables", 404, ""},
			{"GET", "", 404, ""},
			{"GET", "pprof/heap", 404, ""},
		} {
			name, _, _ := strings.Cut(c.page, "?")
			rows[name] = true
			for _, who := range []string{"", "nonsense", other, mesh1, apis} {
				before := level.Level()
				if code, body := call(c.method, c.page, who); code != 401 || !strings.Contains(body, Namespace) || level.Level() != before {
					t.Errorf("%s %s for %q: %d %s", c.method, c.page, who, code, body)
				}
			}
			if code, body := call(c.method, c.page, ours); code != c.code || !strings.Contains(body, c.text) {
				t.Errorf("%s %s, switched to %q: %d %.200q, want %d %q", c.method, c.page, switched, code, body, c.code, c.text)
			}
		}
	}
	d.Annotations = map[string]string{annotationProfiles: "true"}
	if err := cluster.Update(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	end()
	if code, body := call("GET", "profile?seconds=1", ours); code != 500 || !strings.Contains(body, "canceled") {
		t.Errorf("a profile of an operator that ends: %d %.200q", code, body)
	}
	for page := range p.admin.Pages() {
		if !rows[page] {
			t.Errorf("%s is served, and has no row above: who may call it?", page)
		}
	}
}
