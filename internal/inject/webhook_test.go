package inject

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	admissionv1 "k8s.io/api/admission/v1"
)

// members is a mesh whose namespaces become known by closing the channel of each.
type members struct {
	joined map[string]chan struct{}
	gone   map[string]string // namespaces of others, and whose they are
}

func (m members) Wait(ctx context.Context, namespace string) bool {
	select {
	case <-m.joined[namespace]:
		return true
	default:
	}
	select {
	case <-m.joined[namespace]:
		return true
	case <-ctx.Done():
		return false
	}
}

func (m members) Outside(namespace string) (string, bool) {
	owner, ok := m.gone[namespace]
	return owner, ok
}

func closed() chan struct{} { c := make(chan struct{}); close(c); return c }

func post(t testing.TB, h http.Handler, path, contentType, body string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	r.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func podReview(version, namespace, meta string) string {
	return `{"apiVersion":"admission.k8s.io/` + version + `","kind":"AdmissionReview","request":{"uid":"u1","operation":"CREATE","namespace":"` + namespace +
		`","resource":{"group":"","version":"v1","resource":"pods"},"object":{"metadata":{"name":"p"` + meta + `},"spec":{"containers":[{"name":"a","image":"b"}]}}}}`
}

func response(t testing.TB, w *httptest.ResponseRecorder) *admissionv1.AdmissionResponse {
	t.Helper()
	var out admissionv1.AdmissionReview
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil || w.Code != http.StatusOK || out.Response == nil || out.Kind != "AdmissionReview" {
		t.Fatalf("%d %s %v", w.Code, w.Body, err)
	}
	if out.Response.UID != "u1" {
		t.Errorf("uid %q", out.Response.UID)
	}
	return out.Response
}

func TestInjectWebhook(t *testing.T) {
	p := params(t, Settings{})
	reg := prometheus.NewPedanticRegistry()
	h := Handler(Options{Registerer: reg, Params: func() *Params { return p }, Members: members{
		joined: map[string]chan struct{}{"app": closed()}, gone: map[string]string{"other": "mesh-2", "left": ""},
	}})
	for _, c := range []struct {
		name, body       string
		allowed, patched bool
		says             string // in message or warning
	}{
		{name: "member", body: podReview("v1", "app", ""), allowed: true, patched: true},
		{name: "v1beta1", body: podReview("v1beta1", "app", ""), allowed: true, patched: true},
		{name: "not wanted", body: podReview("v1", "app", `,"labels":{"sidecar.istio.io/inject":"false"}`), allowed: true},
		{name: "ignored namespace is not waited for", body: podReview("v1", "kube-system", ""), allowed: true},
		{name: "another mesh's", body: podReview("v1", "other", ""), allowed: true, says: "does not belong to mesh mesh-1 but to mesh mesh-2"},
		{name: "no mesh's", body: podReview("v1", "left", ""), allowed: true, says: "does not belong to mesh mesh-1"},
		{name: "another word", body: podReview("v1", "app", `,"labels":{"sidecar.istio.io/inject":"no"}`), allowed: true, patched: true, says: `sidecar.istio.io/inject: "no" is neither true nor false`},
		{name: "asked for in vain", body: podReview("v1", "app", `,"annotations":{"sidecar.istio.io/statsCompression":"gzip"}`), allowed: true, patched: true, says: "statsCompression has no effect"},
		{name: "bad annotation", body: podReview("v1", "app", `,"annotations":{"sidecar.istio.io/proxyCPU":"x"}`), says: "proxyCPU"},
		{name: "not a pod", body: strings.Replace(podReview("v1", "app", ""), `"spec":{`, `"spec":7,"x":{`, 1), says: "decode pod"},
		{name: "an update", body: strings.Replace(podReview("v1", "app", ""), "CREATE", "UPDATE", 1), allowed: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := response(t, post(t, h, "/inject", "application/json; charset=utf-8", c.body))
			if r.Allowed != c.allowed || (len(r.Patch) > 0) != c.patched {
				t.Errorf("allowed %v, patched %v: %+v", r.Allowed, len(r.Patch) > 0, r)
			}
			said := strings.Join(r.Warnings, "\n")
			if r.Result != nil {
				said += r.Result.Message
			}
			if !strings.Contains(said, c.says) || c.says == "" && said != "" {
				t.Errorf("says %q, want %q", said, c.says)
			}
		})
	}
	want := "# HELP sidecar_injection_failure_total Pods that were refused.\n# TYPE sidecar_injection_failure_total counter\nsidecar_injection_failure_total 2\n" +
		"# HELP sidecar_injection_requests_total Pods that the API server sent for injection.\n# TYPE sidecar_injection_requests_total counter\nsidecar_injection_requests_total 11\n" +
		"# HELP sidecar_injection_skip_total Pods that were let pass as they are.\n# TYPE sidecar_injection_skip_total counter\nsidecar_injection_skip_total 5\n" +
		"# HELP sidecar_injection_success_total Pods that were injected.\n# TYPE sidecar_injection_success_total counter\nsidecar_injection_success_total 4\n"
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}

// Two pods of one template do not know each other's hooks, and nothing but the pod's spec has the token.
func TestHooksHaveTokens(t *testing.T) {
	p := params(t, Settings{})
	reg := prometheus.NewRegistry()
	var logged bytes.Buffer
	h := Handler(Options{
		Registerer: reg, Params: func() *Params { return p }, Members: members{joined: map[string]chan struct{}{"app": closed()}},
		Log: slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	body := strings.Replace(podReview("v1", "app", ""), `"image":"b"`, `"image":"b","lifecycle":{"preStop":{"httpGet":{"path":"/bye","port":8080}}}`, 1)
	hook := regexp.MustCompile(`/app-lifecycle/a\.([A-Z2-7]{26,})/prestopz`)
	seen := map[string]bool{}
	for range 2 {
		r := response(t, post(t, h, "/inject", "application/json", body))
		found := hook.FindAllSubmatch(r.Patch, -1)
		if len(found) != 2 || !bytes.Equal(found[0][1], found[1][1]) { // in the hook, and in what the agent is told
			t.Fatalf("hooks %q in %s", found, r.Patch)
		}
		token := string(found[0][1])
		seen[token] = true
		metrics, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(logged.String()+fmt.Sprint(metrics, r.Warnings, r.AuditAnnotations), token) {
			t.Errorf("the token is in the log, in metrics or in the answer's words")
		}
	}
	if len(seen) != 2 {
		t.Errorf("tokens %v", seen)
	}
}

// A pod that comes right after its namespace was labelled waits for the Membership, and is refused if none comes in time.
func TestInjectWaitsForMembership(t *testing.T) {
	p := params(t, Settings{})
	for _, c := range []struct {
		after   time.Duration
		allowed bool
		takes   time.Duration
	}{{150 * time.Millisecond, true, 150 * time.Millisecond}, {time.Hour, false, membershipWait}} {
		synctest.Test(t, func(t *testing.T) {
			join := make(chan struct{})
			timer := time.AfterFunc(c.after, func() { close(join) })
			defer timer.Stop()
			h := Handler(Options{Registerer: prometheus.NewRegistry(), Params: func() *Params { return p }, Members: members{joined: map[string]chan struct{}{"new": join}}})
			start := time.Now()
			r := response(t, post(t, h, "/inject", "application/json", podReview("v1", "new", "")))
			if r.Allowed != c.allowed || time.Since(start) != c.takes {
				t.Errorf("allowed %v after %v", r.Allowed, time.Since(start))
			}
			if !c.allowed && !strings.Contains(r.Result.Message, "namespace new is not a member of mesh mesh-1") {
				t.Errorf("refused with %q", r.Result.Message)
			}
		})
	}
}

func TestReviewRefusesWhatIsNone(t *testing.T) {
	h := Handler(Options{Registerer: prometheus.NewRegistry(), Params: func() *Params { return nil }, Members: members{}})
	for _, c := range []struct {
		contentType, body string
		code              int
	}{
		{"text/plain", podReview("v1", "app", ""), http.StatusUnsupportedMediaType},
		{"", podReview("v1", "app", ""), http.StatusUnsupportedMediaType},
		{"application/yaml", podReview("v1", "app", ""), http.StatusUnsupportedMediaType},
		{"application/json", "{", http.StatusBadRequest},
		{"application/json", `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`, http.StatusBadRequest},
		{"application/json", podReview("v2", "app", ""), http.StatusBadRequest},
		{"application/json", `"` + strings.Repeat("x", maxReview) + `"`, http.StatusRequestEntityTooLarge},
	} {
		if w := post(t, h, "/validate", c.contentType, c.body); w.Code != c.code {
			t.Errorf("%q %.40q: %d, want %d", c.contentType, c.body, w.Code, c.code)
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/inject", nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("GET: %d", w.Code)
	}
	if r := response(t, post(t, h, "/inject", "application/json", podReview("v1", "app", ""))); r.Allowed || !strings.Contains(r.Result.Message, "not read its settings") {
		t.Errorf("without settings: %+v", r)
	}
}

func TestPathEnv(t *testing.T) {
	for path, want := range map[string]string{
		"/inject": "", "/inject/": "", "/inject/cluster/c1/net/n1": "ISTIO_META_CLUSTER_ID=c1 ISTIO_META_NETWORK=n1",
		"/inject/custom_env/a--slash--b/odd": "CUSTOM_ENV=a/b", "/inject/:ENV:cluster=c1:ENV:x=y": "ISTIO_META_CLUSTER_ID=c1 X=y",
	} {
		var kv []string
		for k, v := range pathEnv(path) {
			kv = append(kv, k+"="+v)
		}
		slices.Sort(kv)
		if got := strings.Join(kv, " "); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}

func TestValidateWebhook(t *testing.T) {
	reg := prometheus.NewRegistry()
	p := params(t, Settings{})
	h := Handler(Options{Registerer: reg, Params: func() *Params { return p }, Members: members{}})
	review := func(op, object string) string {
		return `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u1","operation":"` + op +
			`","kind":{"group":"security.istio.io","version":"v1","kind":"PeerAuthentication"},"object":` + object + `}}`
	}
	good := `{"apiVersion":"security.istio.io/v1","kind":"PeerAuthentication","metadata":{"name":"a","namespace":"n"},"spec":{"mtls":{"mode":"STRICT"}}}`
	if r := response(t, post(t, h, "/validate", "application/json", review("CREATE", good))); !r.Allowed || len(r.Warnings) > 0 {
		t.Errorf("good: %+v", r)
	}
	if r := response(t, post(t, h, "/validate", "application/json", review("UPDATE", strings.Replace(good, "STRICT", "STRIKT", 1)))); r.Allowed || !strings.HasPrefix(r.Result.Message, "configuration is invalid: ") {
		t.Errorf("bad: %+v", r)
	}
	if r := response(t, post(t, h, "/validate", "application/json", review("DELETE", "null"))); !r.Allowed {
		t.Errorf("delete: %+v", r)
	}
	strange := strings.Replace(review("CREATE", good), "PeerAuthentication", strings.Repeat("x", 1000), 1)
	post(t, h, "/validate", "application/json", strange) // anybody may call, with any word
	want := "# HELP galley_validation_failed Istio objects that were refused.\n# TYPE galley_validation_failed counter\n" +
		`galley_validation_failed{group="security.istio.io",reason="yaml_decode_error",resource="peerauthentications",version="v1"} 1` + "\n" +
		"# HELP galley_validation_passed Istio objects that were accepted.\n# TYPE galley_validation_passed counter\n" +
		`galley_validation_passed{group="",resource="unknown",version=""} 1` + "\n" +
		`galley_validation_passed{group="security.istio.io",resource="peerauthentications",version="v1"} 1` + "\n"
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "galley_validation_failed", "galley_validation_passed"); err != nil {
		t.Error(err)
	}
}

// Whatever comes in: no panic, and an answer that is either an HTTP error or a review with the request's uid.
func FuzzAdmissionReview(f *testing.F) {
	f.Add("/inject", []byte(podReview("v1", "app", "")))
	f.Add("/inject/cluster/c/net", []byte(podReview("v1beta1", "app", `,"annotations":{"proxy.istio.io/config":"{}","inject.istio.io/templates":"x","sidecar.istio.io/userVolume":"{\"a\":{}}"}`)))
	f.Add("/validate", []byte(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"x","operation":"CREATE","object":{"apiVersion":"networking.istio.io/v1","kind":"DestinationRule","metadata":{},"spec":{"host":"a","trafficPolicy":{"tls":{"mode":"MUTUAL"}}}}}}`))
	p := params(f, Settings{})
	h := Handler(Options{Registerer: prometheus.NewRegistry(), Params: func() *Params { return p }, Members: members{joined: map[string]chan struct{}{"app": closed()}, gone: map[string]string{"": ""}}})
	f.Fuzz(func(t *testing.T, path string, body []byte) {
		if !strings.HasPrefix(path, "/validate") {
			path = "/inject"
		}
		r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(body))
		r.URL.Path = path
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // waits for nobody
		r = r.WithContext(ctx)
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code == http.StatusOK {
			var out admissionv1.AdmissionReview
			if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil || out.Response == nil {
				t.Errorf("%s: %v", w.Body, err)
			}
		}
	})
}
