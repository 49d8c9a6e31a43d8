package inject

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

const (
	membershipWait = 2 * time.Second // for a namespace that was labelled just now; the operator needs some 100 ms
	maxReview      = 8 << 20         // an update carries the object twice, and the API server takes objects of up to 3 MiB
)

// Members tells which namespaces are the mesh's. Both methods are safe for concurrent use.
type Members interface {
	// Wait reports whether namespace is a member. It waits for a Membership that is not there yet until ctx ends, and
	// returns at once for a namespace that is known to be outside.
	Wait(ctx context.Context, namespace string) (found bool)
	// Outside reports whether namespace is known not to be the mesh's (its Membership says Leaving) and, if that is known,
	// the mesh that owns it now.
	Outside(namespace string) (owner string, outside bool)
}

// Options configure Handler; all fields but Log are needed.
type Options struct {
	Params     func() *Params // the settings in force; nil while none have been read
	Members    Members
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

type webhook struct {
	Options
	requests, success, failure, skip prometheus.Counter
	passed, failed                   *prometheus.CounterVec
}

// Handler serves /inject, /inject/<key>/<value>… and /validate. The caller brings TLS.
func Handler(o Options) http.Handler {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		o.Registerer.MustRegister(c)
		return c
	}
	vector := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		o.Registerer.MustRegister(c)
		return c
	}
	h := &webhook{
		Options:  o,
		requests: counter("sidecar_injection_requests_total", "Pods that the API server sent for injection."),
		success:  counter("sidecar_injection_success_total", "Pods that were injected."),
		failure:  counter("sidecar_injection_failure_total", "Pods that were refused."),
		skip:     counter("sidecar_injection_skip_total", "Pods that were let pass as they are."),
		passed:   vector("galley_validation_passed", "Istio objects that were accepted.", "group", "version", "resource"),
		failed:   vector("galley_validation_failed", "Istio objects that were refused.", "group", "version", "resource", "reason"),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/inject", review(h.inject))
	mux.HandleFunc("/inject/", review(h.inject))
	mux.HandleFunc("/validate", review(h.validate))
	return mux
}

// review turns a decision into an HTTP handler for AdmissionReview v1, and v1beta1, which has the same shape.
func review(decide func(*http.Request, *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			http.Error(w, "POST an AdmissionReview", http.StatusMethodNotAllowed)
			return
		}
		if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
			http.Error(w, "Content-Type must be application/json", http.StatusUnsupportedMediaType)
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxReview))
		if err != nil {
			code := http.StatusBadRequest
			if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
				code = http.StatusRequestEntityTooLarge
			}
			http.Error(w, "read AdmissionReview: "+err.Error(), code)
			return
		}
		var in admissionv1.AdmissionReview
		if err := json.Unmarshal(body, &in); err != nil || in.Request == nil || in.Kind != "AdmissionReview" ||
			(in.APIVersion != "admission.k8s.io/v1" && in.APIVersion != "admission.k8s.io/v1beta1") {
			http.Error(w, "body is not an AdmissionReview of admission.k8s.io/v1 with a request", http.StatusBadRequest)
			return
		}
		out := admissionv1.AdmissionReview{TypeMeta: in.TypeMeta, Response: decide(r, in.Request)}
		out.Response.UID = in.Request.UID
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(out) // the client has gone: nobody is left to tell
	}
}

func deny(message string) *admissionv1.AdmissionResponse {
	return &admissionv1.AdmissionResponse{Result: &metav1.Status{Status: metav1.StatusFailure, Message: message, Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden}}
}

func allow(warnings ...string) *admissionv1.AdmissionResponse {
	return &admissionv1.AdmissionResponse{Allowed: true, Warnings: warnings}
}

// inject answers for one pod. A pod of a namespace that is on its way into the mesh waits for it; where it does not come,
// the pod is refused, as it would run without the mesh's root certificate, or unprotected.
func (h *webhook) inject(r *http.Request, req *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	h.requests.Inc()
	log := h.Log.With(slog.String("namespace", req.Namespace))
	refuse := func(message string) *admissionv1.AdmissionResponse {
		h.failure.Inc()
		log.LogAttrs(r.Context(), slog.LevelWarn, "pod refused", slog.String("err", message))
		return deny(message)
	}
	pass := func(reason string, warnings ...string) *admissionv1.AdmissionResponse {
		h.skip.Inc()
		log.LogAttrs(r.Context(), slog.LevelDebug, "pod left as it is", slog.String("reason", reason))
		return allow(warnings...)
	}
	p := h.Params()
	if p == nil {
		return refuse("the injector has not read its settings yet; try again")
	}
	if req.Operation != admissionv1.Create || req.Resource.Resource != "pods" {
		return pass("not the creation of a pod")
	}
	var pod corev1.Pod
	if err := json.Unmarshal(req.Object.Raw, &pod); err != nil {
		return refuse("decode pod: " + err.Error())
	}
	pod.Namespace = req.Namespace
	var warnings []string
	if unread := Unread(&pod); unread != "" {
		warnings = append(warnings, unread)
	}
	if reason := Skip(&pod, p); reason != "" {
		return pass(reason, warnings...)
	}
	if outside, ok := h.outside(p, req.Namespace); ok {
		return pass("outside the mesh", outside)
	}
	ctx, cancel := context.WithTimeout(r.Context(), membershipWait)
	defer cancel()
	if !h.Members.Wait(ctx, req.Namespace) {
		if outside, ok := h.outside(p, req.Namespace); ok {
			return pass("outside the mesh", outside)
		}
		return refuse(fmt.Sprintf("namespace %s is not a member of mesh %s (no Membership in %s after %v): "+
			"check its labels against the mesh's discoverySelectors and that the operator runs; `heddle check` tells more",
			req.Namespace, p.Mesh, p.Namespace, membershipWait))
	}
	patch, ignored, err := Patch(&pod, p, Request{Env: pathEnv(r.URL.Path), Token: rand.Text()})
	if err != nil {
		return refuse(err.Error())
	}
	h.success.Inc()
	jsonPatch := admissionv1.PatchTypeJSONPatch
	return &admissionv1.AdmissionResponse{Allowed: true, Patch: patch, PatchType: &jsonPatch, Warnings: append(warnings, ignored...)}
}

func (h *webhook) outside(p *Params, namespace string) (warning string, ok bool) {
	owner, outside := h.Members.Outside(namespace)
	if !outside {
		return "", false
	}
	warning = fmt.Sprintf("heddle: the pod was not injected: namespace %s does not belong to mesh %s", namespace, p.Mesh)
	if owner != "" {
		warning += " but to mesh " + owner
	}
	return warning, true
}

// pathEnv reads the overrides that a webhook's path may carry: /inject/cluster/c1/net/n1, or /inject/:ENV:cluster=c1:ENV:net=n1.
func pathEnv(path string) map[string]string {
	path = strings.Trim(strings.TrimPrefix(path, "/inject"), "/")
	if path == "" {
		return nil
	}
	var kv []string
	if rest, ok := strings.CutPrefix(path, ":ENV:"); ok {
		for pair := range strings.SplitSeq(rest, ":ENV:") {
			if k, v, ok := strings.Cut(pair, "="); ok {
				kv = append(kv, k, v)
			}
		}
	} else {
		kv = strings.Split(path, "/")
	}
	env := map[string]string{}
	for i := 0; i+1 < len(kv); i += 2 {
		name := strings.ToUpper(kv[i])
		switch kv[i] {
		case "cluster":
			name = "ISTIO_META_CLUSTER_ID"
		case "net":
			name = "ISTIO_META_NETWORK"
		}
		env[name] = strings.ReplaceAll(kv[i+1], "--slash--", "/")
	}
	return env
}

// resourceOf returns group, version and resource as the counters have them: whoever calls, there are only so many.
func resourceOf(k metav1.GroupVersionKind) []string {
	if !slices.Contains(strings.Fields(kinds[groupKind{k.Group, k.Kind}].versions), k.Version) {
		return []string{"", "", "unknown"}
	}
	resource, _ := meta.UnsafeGuessKindToResource(schema.GroupVersionKind(k))
	return []string{resource.Group, resource.Version, resource.Resource}
}

func (h *webhook) validate(r *http.Request, req *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	labels := resourceOf(req.Kind)
	if req.Operation != admissionv1.Create && req.Operation != admissionv1.Update {
		return allow()
	}
	root := ""
	if p := h.Params(); p != nil {
		root = p.rootNamespace()
	}
	warnings, err := Validate(req.Object.Raw, root)
	if err != nil {
		h.failed.WithLabelValues(append(labels, reasonOf(err))...).Inc()
		h.Log.LogAttrs(r.Context(), slog.LevelInfo, "object refused", slog.String("ref", req.Kind.Kind+" "+req.Namespace+"/"+req.Name), slog.Any("err", err))
		return deny(err.Error())
	}
	h.passed.WithLabelValues(labels...).Inc()
	return allow(warnings...)
}
