// Package kubetest is an API server for tests that need no real one: it keeps objects in memory, lists and watches them,
// and knows of writes what a control plane relies on.
package kubetest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	numbers "k8s.io/apimachinery/pkg/util/json" // whole ones stay so
	apiwatch "k8s.io/apimachinery/pkg/watch"
)

// kinds that are served, by resource.
var kinds = map[string]metav1.TypeMeta{
	"configmaps":          {APIVersion: "v1", Kind: "ConfigMap"},
	"events":              {APIVersion: "v1", Kind: "Event"},
	"nodes":               {APIVersion: "v1", Kind: "Node"},
	"pods":                {APIVersion: "v1", Kind: "Pod"},
	"secrets":             {APIVersion: "v1", Kind: "Secret"},
	"services":            {APIVersion: "v1", Kind: "Service"},
	"endpointslices":      {APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
	"peerauthentications": {APIVersion: "security.istio.io/v1", Kind: "PeerAuthentication"},
	"destinationrules":    {APIVersion: "networking.istio.io/v1", Kind: "DestinationRule"},
	"memberships":         {APIVersion: "heddle.dev/v1alpha1", Kind: "Membership"},
}

const wait = 20 * time.Second // bound on every wait of a test

// Request is one that was made.
type Request struct {
	Method, Path string
	Query        url.Values
	Body         string // as JSON
	Code         int    // answered; 0 for a watch
}

// Server is an API server. Its fields are set before the first request.
type Server struct {
	Old    bool                                                                      // streams no lists: a client must list before it watches
	Review func(authenticationv1.TokenReviewSpec) authenticationv1.TokenReviewStatus // answers TokenReviews

	t      *testing.T
	http   *httptest.Server
	codecs serializer.CodecFactory

	mu       sync.Mutex    // guards the fields below
	changed  chan struct{} // closed and replaced at each request and write
	version  int
	objects  map[Key]*unstructured.Unstructured
	watches  map[*watch]struct{}
	history  []past
	refused  map[string]bool // namespaces in which everything is forbidden
	requests []Request
}

// Key names an object.
type Key struct{ Resource, Namespace, Name string }

type watch struct {
	key    Key // without a name: all
	events chan []byte
}

// past is an event that a watch which resumes may have missed.
type past struct {
	version int
	key     Key
	event   []byte
}

// New starts a server that ends with t.
func New(t *testing.T) *Server {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, authenticationv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	s := &Server{
		t: t, codecs: serializer.NewCodecFactory(scheme), changed: make(chan struct{}), version: 1,
		objects: map[Key]*unstructured.Unstructured{}, watches: map[*watch]struct{}{}, refused: map[string]bool{},
	}
	s.http = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(func() {
		s.EndWatches()
		s.http.CloseClientConnections()
		s.http.Close()
	})
	return s
}

// Kubeconfig writes a file that names the server.
func (s *Server) Kubeconfig() string {
	file := filepath.Join(s.t.TempDir(), "kubeconfig")
	text := fmt.Sprintf("{apiVersion: v1, kind: Config, current-context: a, clusters: [{name: a, cluster: {server: %q}}], contexts: [{name: a, context: {cluster: a}}]}", s.http.URL)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return file
}

// Put stores an object as any client but ours would; it has the UID that it is given, or a new one.
func (s *Server) Put(resource string, object metav1.Object) {
	s.t.Helper()
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
	if err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if resource == "memberships" { // their status is a subresource
		delete(fields, "status")
		if old := s.objects[Key{resource, object.GetNamespace(), object.GetName()}]; old != nil && old.Object["status"] != nil {
			fields["status"] = old.Object["status"]
		}
	}
	s.putLocked(resource, &unstructured.Unstructured{Object: fields})
}

// Delete removes an object.
func (s *Server) Delete(resource, namespace, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deleteLocked(Key{resource, namespace, name})
}

// Get returns an object's field, nil if there is none.
func (s *Server) Get(resource, namespace, name string, field ...string) any {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.objects[Key{resource, namespace, name}]
	if o == nil {
		return nil
	}
	v, _, _ := unstructured.NestedFieldCopy(o.Object, field...)
	return v
}

// Refuse forbids everything in a namespace, Allow nothing any more.
func (s *Server) Refuse(namespace string) { s.right(namespace, true) }

// Allow ends Refuse.
func (s *Server) Allow(namespace string) { s.right(namespace, false) }

func (s *Server) right(namespace string, refused bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused[namespace] = refused
}

// EndWatches ends all watches, as a server does after some minutes.
func (s *Server) EndWatches() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.watches {
		close(w.events)
		delete(s.watches, w)
	}
}

// Watches returns what is watched now, sorted.
func (s *Server) Watches() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := []string{}
	for w := range s.watches {
		out = append(out, strings.Trim(w.key.Namespace+"/"+w.key.Resource+"/"+w.key.Name, "/"))
	}
	slices.Sort(out)
	return out
}

// Requests returns what was asked so far, in order of the answers; watches when they begin.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Asked tells whether such a request was made.
func (s *Server) Asked(method, path string, code int) bool {
	return slices.ContainsFunc(s.Requests(), func(r Request) bool { return r.Method == method && r.Path == path && r.Code == code })
}

// Await returns when ok holds, which is asked anew after each request and write.
func (s *Server) Await(what string, ok func() bool) {
	s.t.Helper()
	late := time.After(wait)
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if ok() {
			return
		}
		select {
		case <-changed:
		case <-late:
			var asked []string
			for _, r := range s.Requests() {
				asked = append(asked, fmt.Sprint(r.Method, " ", r.Path, " ", r.Code))
			}
			s.t.Fatalf("waited %v for %s; requests:\n%s", wait, what, strings.Join(asked, "\n"))
		}
	}
}

func (s *Server) changedLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Server) putLocked(resource string, o *unstructured.Unstructured) {
	k, event := Key{resource, o.GetNamespace(), o.GetName()}, string(apiwatch.Added)
	s.version++
	o.SetResourceVersion(strconv.Itoa(s.version))
	o.SetAPIVersion(kinds[resource].APIVersion)
	o.SetKind(kinds[resource].Kind)
	given := o.GetUID()
	o.SetUID(types.UID("uid-" + o.GetResourceVersion()))
	o.SetGeneration(1)
	if old := s.objects[k]; old != nil {
		event = string(apiwatch.Modified)
		o.SetUID(old.GetUID())
		o.SetGeneration(old.GetGeneration())
		if !reflect.DeepEqual(o.Object["spec"], old.Object["spec"]) {
			o.SetGeneration(old.GetGeneration() + 1)
		}
	}
	if given != "" {
		o.SetUID(given)
	}
	s.objects[k] = o
	s.tellLocked(event, k, o)
}

func (s *Server) deleteLocked(k Key) {
	if o := s.objects[k]; o != nil {
		delete(s.objects, k)
		s.version++
		o = o.DeepCopy()
		o.SetResourceVersion(strconv.Itoa(s.version))
		s.tellLocked(string(apiwatch.Deleted), k, o)
	}
}

func (k Key) matches(o Key) bool {
	return k.Resource == o.Resource && (k.Namespace == "" || k.Namespace == o.Namespace) && (k.Name == "" || k.Name == o.Name)
}

func (s *Server) tellLocked(event string, k Key, o *unstructured.Unstructured) {
	e := eventOf(event, o.Object)
	s.history = append(s.history, past{s.version, k, e})
	for w := range s.watches {
		if w.key.matches(k) {
			w.events <- e
		}
	}
	s.changedLocked()
}

func eventOf(event string, object any) []byte {
	return mustJSON(map[string]any{"type": event, "object": object})
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // what is encoded here came from JSON
	}
	return b
}

// serve answers one request.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	body, err := s.body(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	// /api/v1/… or /apis/GROUP/VERSION/…
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	parts = parts[min(map[string]int{"api": 2, "apis": 3}[parts[0]], len(parts)):]
	var k Key
	if len(parts) > 2 && parts[0] == "namespaces" {
		k.Namespace, parts = parts[1], parts[2:]
	}
	parts = append(parts, "", "")
	k.Resource, k.Name = parts[0], parts[1]
	if name, ok := strings.CutPrefix(r.URL.Query().Get("fieldSelector"), "metadata.name="); ok {
		k.Name = name
	}
	if r.URL.Query().Get("watch") != "" {
		s.watch(w, r, k)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	code, answer := s.answerLocked(r, k, parts[1] != "", body)
	s.noteLocked(r, body, code)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(mustJSON(answer))
}

// body returns the request's body as JSON; clients send protobuf too.
func (s *Server) body(r *http.Request) ([]byte, error) {
	data, err := io.ReadAll(r.Body)
	if err != nil || len(data) == 0 || r.Header.Get("Content-Type") != runtime.ContentTypeProtobuf {
		return data, err
	}
	o, _, err := s.codecs.UniversalDeserializer().Decode(data, nil, nil)
	if err != nil {
		return nil, err
	}
	return json.Marshal(o)
}

func (s *Server) noteLocked(r *http.Request, body []byte, code int) {
	s.requests = append(s.requests, Request{r.Method, r.URL.Path, r.URL.Query(), string(body), code})
	s.changedLocked()
}

func failure(code int, reason metav1.StatusReason, message string) (int, any) {
	return code, metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure,
		Code: int32(code), Reason: reason, Message: message,
	}
}

func (s *Server) answerLocked(r *http.Request, k Key, named bool, body []byte) (int, any) {
	var sent unstructured.Unstructured
	if len(body) > 0 {
		if err := numbers.Unmarshal(body, &sent.Object); err != nil {
			return failure(http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
		}
	}
	have := s.objects[k]
	switch {
	case s.refused[k.Namespace]:
		return failure(http.StatusForbidden, metav1.StatusReasonForbidden, k.Resource+" is forbidden")
	case k.Resource == "tokenreviews":
		return s.reviewLocked(body)
	case r.Method == http.MethodPost:
		k.Name = sent.GetName()
		if s.objects[k] != nil {
			return failure(http.StatusConflict, metav1.StatusReasonAlreadyExists, k.Name+" already exists")
		}
		s.putLocked(k.Resource, &sent)
		return http.StatusCreated, sent.Object
	case r.Method == http.MethodPatch && r.Header.Get("Content-Type") == string(types.ApplyYAMLPatchType):
		return s.applyLocked(k, r.URL.Query(), &sent)
	case !named:
		return http.StatusOK, s.listLocked(k)
	case have == nil:
		return failure(http.StatusNotFound, metav1.StatusReasonNotFound, k.Name+" not found")
	case r.Method == http.MethodPatch:
		if v := sent.GetResourceVersion(); v != "" && v != have.GetResourceVersion() {
			return failure(http.StatusConflict, metav1.StatusReasonConflict, "the object has been modified")
		}
		if next := have.DeepCopy(); !reflect.DeepEqual(next.Object["status"], sent.Object["status"]) {
			next.Object["status"] = sent.Object["status"]
			s.putLocked(k.Resource, next)
		}
		return http.StatusOK, s.objects[k].Object
	case r.Method == http.MethodDelete:
		if v, _, _ := unstructured.NestedString(sent.Object, "preconditions", "resourceVersion"); v != "" && v != have.GetResourceVersion() {
			return failure(http.StatusConflict, metav1.StatusReasonConflict, "precondition failed")
		}
		s.deleteLocked(k)
		return http.StatusOK, metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusSuccess}
	default:
		return http.StatusOK, have.Object
	}
}

// reviewLocked calls Review, which needs no lock, under it: it answers from what the test gave.
func (s *Server) reviewLocked(body []byte) (int, any) {
	var review authenticationv1.TokenReview
	if err := json.Unmarshal(body, &review); err != nil {
		return failure(http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
	}
	if s.Review == nil {
		return failure(http.StatusInternalServerError, metav1.StatusReasonInternalError, "no tokens here")
	}
	review.APIVersion, review.Kind, review.Status = "authentication.k8s.io/v1", "TokenReview", s.Review(review.Spec)
	return http.StatusCreated, review
}

// applyLocked is server-side apply, as far as who owns the object's data: its last writer.
func (s *Server) applyLocked(k Key, q url.Values, sent *unstructured.Unstructured) (int, any) {
	manager := q.Get("fieldManager")
	if have := s.objects[k]; have != nil {
		owners := have.GetManagedFields()
		foreign := len(owners) == 0 || owners[0].Manager != manager
		same := reflect.DeepEqual(have.Object["data"], sent.Object["data"])
		switch {
		case same && !foreign:
			return http.StatusOK, have.Object
		case !same && foreign && q.Get("force") != "true":
			return failure(http.StatusConflict, metav1.StatusReasonConflict, "Apply failed with 1 conflict")
		}
	}
	fields, _, _ := unstructured.NestedMap(sent.Object, "data")
	owned := map[string]any{}
	for f := range fields {
		owned["f:"+f] = map[string]any{}
	}
	sent.SetManagedFields([]metav1.ManagedFieldsEntry{{
		Manager: manager, Operation: metav1.ManagedFieldsOperationApply, FieldsV1: &metav1.FieldsV1{Raw: mustJSON(map[string]any{"f:data": owned})},
	}})
	s.putLocked(k.Resource, sent)
	return http.StatusOK, sent.Object
}

func (s *Server) listLocked(k Key) any {
	items := []any{}
	for key, o := range s.objects {
		if k.matches(key) {
			items = append(items, o.Object)
		}
	}
	return map[string]any{
		"apiVersion": kinds[k.Resource].APIVersion, "kind": kinds[k.Resource].Kind + "List",
		"metadata": map[string]any{"resourceVersion": strconv.Itoa(s.version)}, "items": items,
	}
}

// watch streams events: with initial events those of all objects first and then a bookmark, otherwise only what comes.
func (s *Server) watch(w http.ResponseWriter, r *http.Request, k Key) {
	initial := r.URL.Query().Get("sendInitialEvents") == "true"
	watching := &watch{key: k, events: make(chan []byte, 1000)}
	s.mu.Lock()
	code, answer := 0, any(nil)
	switch {
	case s.refused[k.Namespace]:
		code, answer = failure(http.StatusForbidden, metav1.StatusReasonForbidden, k.Resource+" is forbidden")
	case initial && s.Old:
		code, answer = failure(http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, "sendInitialEvents is forbidden")
	case initial:
		for key, o := range s.objects {
			if k.matches(key) {
				watching.events <- eventOf("ADDED", o.Object)
			}
		}
		watching.events <- eventOf("BOOKMARK", map[string]any{
			"apiVersion": kinds[k.Resource].APIVersion, "kind": kinds[k.Resource].Kind,
			"metadata": map[string]any{"resourceVersion": strconv.Itoa(s.version), "annotations": map[string]any{metav1.InitialEventsAnnotationKey: "true"}},
		})
	default:
		from, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion")) // none: 0
		for _, p := range s.history {
			if p.version > from && k.matches(p.key) {
				watching.events <- p.event
			}
		}
	}
	if code == 0 {
		s.watches[watching] = struct{}{}
	}
	s.noteLocked(r, nil, code)
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if code != 0 {
		w.WriteHeader(code)
		_, _ = w.Write(mustJSON(answer))
		return
	}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watches, watching)
		s.changedLocked()
	}()
	flush := http.NewResponseController(w)
	for {
		if flush.Flush() != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case e, ok := <-watching.events:
			if !ok {
				return
			}
			if _, err := w.Write(e); err != nil {
				return
			}
		}
	}
}
