package inject

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/heddle-mesh/heddle/internal/judge"
)

const (
	membershipWait = 2 * time.Second // for a namespace that was labelled just now; the operator needs some 100 ms
	patience       = 5 * time.Second // for room to read a review and room to decide on it; API servers give up after 10 s in all
	maxMessage     = 16 << 10        // bytes of a refusal
	maxWarnings    = 32              // API servers cut them at 4 KiB in all
	bodyWait       = 2 * time.Second // for a review that has its room: an API server sends it in one go
)

// Members tells which namespaces are the mesh's. Both methods are safe for concurrent use.
type Members interface {
	// Wait reports whether namespace is a member. It waits for a Membership that is not there yet until ctx ends, and
	// returns at once for a namespace of which it is known, also when ctx has ended.
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

	// Who calls is not known, as API servers show no certificate, and a plane has some ten megabytes to spare: so there are budgets
	// for each peer. An API server sends the reviews of all users: so those that wait for a Membership have budgets for each namespace.
	bodies, memory *budget[netip.Addr]
	waits          *budget[string]
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
		bodies:   newBudget[netip.Addr](maxBodies),
		memory:   newBudget[netip.Addr](maxMemory),
		waits:    newBudget[string](maxWaits),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/inject", h.review(h.inject))
	mux.HandleFunc("/inject/", h.review(h.inject))
	mux.HandleFunc("/validate", h.review(h.validate))
	return mux
}

// review turns a decision into an HTTP handler for AdmissionReview v1, and v1beta1, which has the same shape.
func (h *webhook) review(decide func(*http.Request, *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			http.Error(w, "POST an AdmissionReview", http.StatusMethodNotAllowed)
			return
		}
		if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
			http.Error(w, "Content-Type must be application/json", http.StatusUnsupportedMediaType)
			return
		}
		if r.ContentLength > maxReview {
			http.Error(w, fmt.Sprintf("the AdmissionReview is longer than %d bytes", maxReview), http.StatusRequestEntityTooLarge)
			return
		}
		peer, _ := netip.ParseAddrPort(r.RemoteAddr) // all whom we cannot tell apart share what one peer has
		size := r.ContentLength
		if size < 0 {
			size = maxReview
		}
		room, cancel := context.WithTimeout(r.Context(), patience)
		defer cancel()
		release, err := h.bodies.acquire(room, peer.Addr(), size)
		if err != nil {
			http.Error(w, "too many reviews at once; try again", http.StatusServiceUnavailable)
			return
		}
		defer release()
		body, err := read(w, r)
		if err != nil {
			code := http.StatusBadRequest
			if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
				code = http.StatusRequestEntityTooLarge
			}
			http.Error(w, "read AdmissionReview: "+err.Error(), code)
			return
		}
		need := memoryOf(body)
		if need > h.memory.each {
			http.Error(w, fmt.Sprintf("the object has too many values: to check it takes more than the %d MiB that there are", h.memory.each>>20), http.StatusRequestEntityTooLarge)
			return
		}
		// Who holds room to decide waits for no room to read.
		release, err = h.memory.acquire(room, peer.Addr(), need)
		if err != nil {
			http.Error(w, "too many reviews at once; try again", http.StatusServiceUnavailable)
			return
		}
		defer release()
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

func read(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	c := http.NewResponseController(w)
	_ = c.SetReadDeadline(time.Now().Add(bodyWait)) // a writer without deadlines has the server's
	body := bytes.NewBuffer(make([]byte, 0, max(r.ContentLength, 0)+bytes.MinRead))
	_, err := body.ReadFrom(http.MaxBytesReader(w, r.Body, maxReview))
	if err == nil {
		_ = c.SetReadDeadline(time.Time{}) // or the call would end with it
	}
	return body.Bytes(), err
}

// cut returns the first words of message: one that says something of each item of a list can be many times its object.
func cut(message string) string {
	if len(message) > maxMessage {
		message = strings.ToValidUTF8(message[:maxMessage], "") + " … and more"
	}
	return message
}

func deny(message string) *admissionv1.AdmissionResponse {
	return &admissionv1.AdmissionResponse{Result: &metav1.Status{Status: metav1.StatusFailure, Message: cut(message), Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden}}
}

func allow(warnings ...string) *admissionv1.AdmissionResponse {
	if n := len(warnings) - maxWarnings; n > 0 {
		warnings = append(slices.Clone(warnings[:maxWarnings]), fmt.Sprintf("heddle: and %d more warnings", n))
	}
	return &admissionv1.AdmissionResponse{Allowed: true, Warnings: warnings}
}

// inject answers for one pod. A pod of a namespace that is on its way into the mesh waits for it; where it does not come,
// the pod is refused, as it would run without the mesh's root certificate, or unprotected.
func (h *webhook) inject(r *http.Request, req *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	h.requests.Inc()
	log := h.Log.With(slog.String("namespace", req.Namespace))
	refuse := func(message string) *admissionv1.AdmissionResponse {
		h.failure.Inc()
		log.LogAttrs(r.Context(), slog.LevelWarn, "pod refused", slog.String("err", cut(message)))
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
	if w := unread(&pod); w != "" {
		warnings = append(warnings, w)
	}
	if reason := Skip(&pod, p); reason != "" {
		return pass(reason, warnings...)
	}
	if outside, ok := h.outside(p, req.Namespace); ok {
		return pass("outside the mesh", outside)
	}
	if err := h.member(r.Context(), req.Namespace, memoryOf(req.Object.Raw)); err != nil {
		if outside, ok := h.outside(p, req.Namespace); ok {
			return pass("outside the mesh", outside)
		}
		return refuse(fmt.Sprintf("namespace %s is not a member of mesh %s (no Membership in %s %v): "+
			"check its labels against the mesh's discoverySelectors and that the operator runs; `heddle check` tells more",
			req.Namespace, p.Mesh, p.Namespace, err))
	}
	patch, ignored, err := Patch(&pod, p, Request{Env: pathEnv(r.URL.Path), Token: rand.Text()})
	if err != nil {
		return refuse(err.Error())
	}
	h.success.Inc()
	jsonPatch := admissionv1.PatchTypeJSONPatch
	answer := allow(append(warnings, ignored...)...)
	answer.Patch, answer.PatchType = patch, &jsonPatch
	return answer
}

// member waits for the Membership of a namespace that was made just now, for a pod that takes size bytes meanwhile. The error
// completes "no Membership".
func (h *webhook) member(ctx context.Context, namespace string, size int64) error {
	now, stop := context.WithCancel(ctx)
	stop()
	if h.Members.Wait(now, namespace) {
		return nil
	}
	release, err := h.waits.try(namespace, size)
	if err != nil {
		return errors.New("yet, and too many pods wait for one; try again")
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, membershipWait)
	defer cancel()
	if !h.Members.Wait(ctx, namespace) {
		return fmt.Errorf("after %v", membershipWait)
	}
	return nil
}

// outside names the owner for who creates the pod, and has no other way to learn of it. Whoever asks is answered: what he learns
// is where a namespace went that has just left this mesh; of no other is the owner known here.
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
	if !judge.Serves(schema.GroupVersionKind(k)) {
		return []string{"", "", "unknown"}
	}
	resource, _ := meta.UnsafeGuessKindToResource(schema.GroupVersionKind(k))
	return []string{resource.Group, resource.Version, resource.Resource}
}

// validate answers for one object of Istio's API by what judge says of it.
func (h *webhook) validate(r *http.Request, req *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	labels := resourceOf(req.Kind)
	if req.Operation != admissionv1.Create && req.Operation != admissionv1.Update {
		return allow()
	}
	root := ""
	if p := h.Params(); p != nil {
		root = p.rootNamespace()
	}
	verdict, err := judge.Object(req.Object.Raw, root)
	reason := "invalid_resource"
	switch {
	case errors.Is(err, judge.ErrUnknownKind):
		reason = "unknown_type"
	case verdict.Undecodable():
		reason = "yaml_decode_error"
	}
	if err == nil {
		err = verdict.Err()
	}
	if err != nil {
		h.failed.WithLabelValues(append(labels, reason)...).Inc()
		h.Log.LogAttrs(r.Context(), slog.LevelInfo, "object refused", slog.String("ref", req.Kind.Kind+" "+req.Namespace+"/"+req.Name), slog.String("err", cut(err.Error())))
		return deny(err.Error())
	}
	h.passed.WithLabelValues(labels...).Inc()
	return allow(verdict.Warnings()...)
}
