package operator

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/cel-go/cel"
	admissionv1 "k8s.io/api/admission/v1"
	hooks "k8s.io/api/admissionregistration/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// reviewer answers SubjectAccessReviews: in are the namespaces that eve may update, "*" stands for all.
type reviewer struct {
	in    []string
	asked []string
}

func (r *reviewer) Create(_ context.Context, o client.Object, _ ...client.CreateOption) error {
	review := o.(*authorizationv1.SubjectAccessReview)
	a := review.Spec.ResourceAttributes
	if review.Spec.User != "eve" || review.Spec.Groups[0] != "team" || a.Verb != "update" || a.Resource != "namespaces" || a.Group != "" || a.Name != a.Namespace {
		return fmt.Errorf("asked %+v", review.Spec)
	}
	r.asked = append(r.asked, a.Name)
	review.Status.Allowed = slices.Contains(r.in, "*") || slices.Contains(r.in, a.Name) && a.Name != ""
	return nil
}

// by is eve's request to make o, or to change old to it.
func by(t *testing.T, o, old client.Object) admission.Request {
	t.Helper()
	raw := func(o client.Object) runtime.RawExtension {
		text, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		return runtime.RawExtension{Raw: text}
	}
	kind := strings.TrimPrefix(fmt.Sprintf("%T", o), "*v1.")
	req := admissionv1.AdmissionRequest{
		Kind:      metav1.GroupVersionKind{Group: sailv1.GroupVersion.Group, Version: sailv1.GroupVersion.Version, Kind: kind},
		Operation: admissionv1.Create, Object: raw(o),
		UserInfo: authenticationv1.UserInfo{Username: "eve", Groups: []string{"team"}},
	}
	if old != nil {
		o.SetGeneration(old.GetGeneration() + 1)
		req.Operation, req.Object, req.OldObject = admissionv1.Update, raw(o), raw(old)
	}
	return admission.Request{AdmissionRequest: req}
}

func admitOn(t *testing.T, r *reviewer, objects ...client.Object) *admit {
	t.Helper()
	c := store(t, interceptor.Funcs{}, objects...)
	return &admit{live: c, reviews: r, decoder: admission.NewDecoder(c.Scheme()), namespace: Namespace}
}

func TestWhoMayExtendAMesh(t *testing.T) {
	var cluster []client.Object
	for _, ns := range []string{"sys-1", "sys-2", "app-1", "app-2", "kube-system"} {
		cluster = append(cluster, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns, Labels: map[string]string{
			corev1.LabelMetadataName: ns, "team": strings.TrimRight(ns, "-12"),
		}}})
	}
	in := func(names ...string) string {
		text, _ := json.Marshal(names)
		return `{"meshConfig":{"discoverySelectors":[{"matchExpressions":[{"key":"kubernetes.io/metadata.name","operator":"In","values":` + string(text) + `}]}]}}`
	}
	of := func(system, values string) *sailv1.Istio {
		return &sailv1.Istio{ObjectMeta: metav1.ObjectMeta{Name: "m1", Generation: 1}, Spec: sailv1.IstioSpec{
			Namespace: system, Version: DefaultVersion, Values: &sailv1.Values{Raw: []byte(values)},
		}}
	}
	rev := func(i *sailv1.Istio) *sailv1.IstioRevision {
		return &sailv1.IstioRevision{ObjectMeta: metav1.ObjectMeta{Name: "m1", Generation: 1}, Spec: sailv1.IstioRevisionSpec{
			Version: i.Spec.Version, Namespace: i.Spec.Namespace, Values: i.Spec.Values,
		}}
	}
	for _, c := range []struct {
		name    string
		may     []string
		istio   *sailv1.Istio
		old     *sailv1.Istio
		asked   string
		refused string // what the refusal names; empty: it is let pass
	}{
		{"may update all", []string{"*"}, of("sys-1", in("app-1", "app-2")), nil, "[]", ""},
		{"may update each", []string{"sys-1", "app-1", "app-2"}, of("sys-1", in("app-1", "app-2")), nil, "[ app-1 app-2 sys-1]", ""},
		{"not all of those that it selects", []string{"sys-1", "app-1"}, of("sys-1", in("app-1", "kube-system")), nil, "[ app-1 kube-system sys-1]", "eve may not update namespaces kube-system, which mesh m1"},
		{"not the system namespace", []string{"app-1"}, of("sys-1", in("app-1")), nil, "[ app-1 sys-1]", "sys-1"},
		{"not a system namespace that is made later", nil, of("later", in("x")), nil, "[ later]", "later"},
		{"selects all", []string{"sys-1"}, of("sys-1", `{}`), nil, "[ app-1 app-2 kube-system sys-1 sys-2]", "kube-system"},
		{"a selector more", nil, of("sys-1", in("app-1", "app-2")), of("sys-1", in("app-1")), "[ app-2]", "app-2"},
		{"a selector less", nil, of("sys-1", in("app-1")), of("sys-1", in("app-1", "app-2")), "[]", ""},
		{"another way to say it", nil, of("sys-1", in("app-1", "app-2")), of("sys-1", selecting("team", "app")), "[]", ""},
		{"another value", nil, of("sys-1", strings.Replace(in("app-1"), `{"meshConfig":{`, `{"meshConfig":{"accessLogFile":"/dev/stdout",`, 1)), of("sys-1", in("app-1")), "[]", ""},
		{"another system namespace", nil, of("sys-2", in("app-1")), of("sys-1", in("app-1")), "[ sys-2]", "sys-2"},
		{"what could not be read before", nil, of("sys-1", in("app-1")), of("sys-1", `{"meshConfig":{"discoverySelectors":"x"}}`), "[ app-1]", "app-1"},
	} {
		for _, kind := range []string{"Istio", "IstioRevision"} {
			t.Run(c.name+": "+kind, func(t *testing.T) {
				var o, old client.Object = c.istio.DeepCopy(), nil
				if c.old != nil {
					old = c.old.DeepCopy()
				}
				if kind == "IstioRevision" {
					o = rev(c.istio)
					if c.old != nil {
						old = rev(c.old)
					}
				}
				r := &reviewer{in: c.may}
				got := admitOn(t, r, cluster...).Handle(t.Context(), by(t, o, old))
				if got.Allowed != (c.refused == "") || !got.Allowed && !strings.Contains(got.Result.Message, c.refused) {
					t.Errorf("%v %+v", got.Allowed, got.Result)
				}
				if asked := fmt.Sprint(r.asked); asked != c.asked {
					t.Errorf("asked %q, want %q", asked, c.asked)
				}
			})
		}
	}
}

func TestQuestionsAboutOneMeshAreBounded(t *testing.T) {
	for n, refused := range map[int]string{maxAsked - 1: "", maxAsked: "newly reach 51 namespaces, and eve may not update all"} {
		r := &reviewer{in: []string{"sys-1"}}
		var cluster []client.Object
		for i := range n {
			ns := fmt.Sprint("app-", i)
			r.in = append(r.in, ns)
			cluster = append(cluster, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns, Labels: map[string]string{"d": "m1"}}})
		}
		istio := istioIn("sys-1")
		istio.Spec.Version, istio.Spec.Values = DefaultVersion, &sailv1.Values{Raw: []byte(selecting("d", "m1"))}
		got := admitOn(t, r, cluster...).Handle(t.Context(), by(t, istio, nil))
		if got.Allowed != (refused == "") || !got.Allowed && !strings.Contains(got.Result.Message, refused) || len(r.asked) > maxAsked+1 {
			t.Errorf("%d: asked %d times, %+v", n, len(r.asked), got.Result)
		}
	}
}

// Nobody waits for the operator who changes no spec, and the operator does not wait for itself: else a mesh could not be
// taken away while its webhook is.
func TestTheWebhookIsNotAskedByTheOperator(t *testing.T) {
	ask := matcher(t, webhookConditions(Namespace))
	object := func(generation, value string) map[string]any {
		return map[string]any{"metadata": map[string]any{"finalizers": []any{generation}}, "spec": map[string]any{"values": map[string]any{"x": value}}}
	}
	for _, c := range []struct {
		user, operation string
		old, now        map[string]any
		asked           bool
	}{
		{"eve", "CREATE", nil, object("1", "a"), true},
		{"eve", "UPDATE", object("1", "a"), object("1", "b"), true},
		{"eve", "UPDATE", object("1", "a"), object("2", "a"), false},
		{"system:serviceaccount:kube-system:generic-garbage-collector", "UPDATE", object("1", "a"), object("2", "a"), false},
		{"system:serviceaccount:" + Namespace + ":" + operatorAccount, "CREATE", nil, object("1", "a"), false},
		{"system:serviceaccount:other:" + operatorAccount, "CREATE", nil, object("1", "a"), true},
	} {
		if got := ask(c.user, c.operation, c.old, c.now); got != c.asked {
			t.Errorf("%s by %s: asked %v", c.operation, c.user, got)
		}
	}
}

// matcher evaluates match conditions as the API server does.
func matcher(t *testing.T, conditions []hooks.MatchCondition) func(user, operation string, old, now map[string]any) bool {
	t.Helper()
	env, err := cel.NewEnv(cel.Variable("request", cel.DynType), cel.Variable("object", cel.DynType), cel.Variable("oldObject", cel.DynType), cel.OptionalTypes())
	if err != nil {
		t.Fatal(err)
	}
	return func(user, operation string, old, now map[string]any) bool {
		for _, c := range conditions {
			ast, issues := env.Compile(c.Expression)
			if issues.Err() != nil {
				t.Fatal(issues.Err())
			}
			program, err := env.Program(ast)
			if err != nil {
				t.Fatal(err)
			}
			got, _, err := program.Eval(map[string]any{
				"request": map[string]any{"operation": operation, "userInfo": map[string]any{"username": user}}, "object": now, "oldObject": old,
			})
			if err != nil {
				t.Fatal(err)
			}
			if got.Value() != true {
				return false
			}
		}
		return true
	}
}

func TestTagsWithoutNamesOfTheirOwn(t *testing.T) {
	istio := func(name, system string) *sailv1.Istio {
		return &sailv1.Istio{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: sailv1.IstioSpec{Namespace: system}}
	}
	tag := func(name, of string) *sailv1.IstioRevisionTag {
		return &sailv1.IstioRevisionTag{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: sailv1.IstioRevisionTagSpec{TargetRef: sailv1.TargetRef{Kind: "Istio", Name: of}}}
	}
	there := []client.Object{istio("m1", "b-c"), istio("m2", "c"), istio("m3", "istio-system"), istio("m4", "b"), tag("a", "m1"), tag("x-b", "m3")}
	for _, c := range []struct {
		tag  *sailv1.IstioRevisionTag
		want string
	}{
		{tag("a-b", "m2"), "istio-revision-tag-a-b-c"},
		{tag("a-b", "m3"), ""},
		{tag("x", "m4"), "istio-revision-tag-x-b"},
		{tag("a", "m2"), ""}, // it moves
		{tag("b", "none"), ""},
		{tag("a.b", "m2"), "a.b"},
		{tag("A", "m2"), "A"},
		{tag(strings.Repeat("t", 43), "m2"), ""},
		{tag(strings.Repeat("t", 44), "m2"), "at most 43"},
	} {
		got := admitOn(t, nil, there...).Handle(t.Context(), by(t, c.tag, nil))
		if got.Allowed != (c.want == "") || !got.Allowed && !strings.Contains(got.Result.Message, c.want) {
			t.Errorf("%s of %s: %v %+v", c.tag.Name, c.tag.Spec.TargetRef.Name, got.Allowed, got.Result)
		}
	}
	// What was there before the webhook: neither takes the other's objects.
	r, first := tagged(t, "a")
	if _, err := reconcileOnce(t, r, first); err != nil {
		t.Fatal(err)
	}
	p := planeOf(t, "m1", "sys-1", selecting("d", "m1"))
	objects := TagObjects(p, "a", Serving{})
	w := writer{r.client, r.live, tagOwner("b")}
	if _, err := w.look(t.Context(), objects...); err == nil || !strings.Contains(err.Error(), "of IstioRevisionTag a") {
		t.Errorf("tag b takes what is of a: %v", err)
	}
	w.owner = meshOwner(mesh.ID("m1"))
	if _, err := w.look(t.Context(), objects...); err == nil {
		t.Error("the mesh takes what is of its tag")
	}
}

func TestDependenciesAreSaid(t *testing.T) {
	for values, reason := range map[string]string{
		`{}`:                                 "DependenciesHealthy",
		`{"pilot":{"cni":{"enabled":true}}}`: "IstioCNINotFound",
		`{"pilot":{"cni":{"enabled":false}},"global":{"platform":"openshift"}}`: "DependenciesHealthy",
		`{"global":{"platform":"openshift"}}`:                                   "IstioCNINotFound",
		`{"pilot":{"env":{"PILOT_ENABLE_AMBIENT":"true"}}}`:                     "ZTunnelNotFound",
		`{"pilot":{"env":{"PILOT_ENABLE_AMBIENT":true}}}`:                       "ZTunnelNotFound",
		`{"meshConfig":{"discoverySelectors":"x"}}`:                             "DependencyCheckFailed",
	} {
		r, rev := planes(t, interceptor.Funcs{}, values)
		reconciled(t, r, rev)
		var got string
		for _, c := range rev.Status.Conditions {
			if c.Type == "DependenciesHealthy" {
				got = c.Reason
			}
		}
		if got != reason {
			t.Errorf("%s: %s, want %s", values, got, reason)
		}
	}
}

// The profile openshift is a platform, unless the values name another.
func TestAProfileSaysThePlatform(t *testing.T) {
	for _, c := range []struct{ profile, values, reason string }{
		{"openshift", `{}`, "IstioCNINotFound"},
		{"openshift", `{"global":{"platform":""}}`, "IstioCNINotFound"},
		{"openshift", `{"global":{"platform":"gke"}}`, "DependenciesHealthy"},
		{"openshift", `{"pilot":{"cni":{"enabled":false}}}`, "DependenciesHealthy"},
		{"default", `{}`, "DependenciesHealthy"},
	} {
		istio := istioOf(c.values)
		istio.Spec.Profile = c.profile
		values, err := resolveValues(istio)
		if err != nil {
			t.Fatal(err)
		}
		p, err := NewPlane(&sailv1.IstioRevision{Spec: sailv1.IstioRevisionSpec{Values: values}}, Images{}, "")
		if err != nil {
			t.Fatal(err)
		}
		if _, _, reason, _ := p.dependencies(); reason != c.reason {
			t.Errorf("profile %s, %s: %s, want %s", c.profile, c.values, reason, c.reason)
		}
	}
}
