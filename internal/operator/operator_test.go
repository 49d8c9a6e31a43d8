package operator

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/ext"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

var update = flag.Bool("update", false, "rewrite the goldens")

func planeOf(t *testing.T, name, namespace, values string) Plane {
	t.Helper()
	istio := &sailv1.Istio{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: sailv1.IstioSpec{Namespace: namespace, Values: &sailv1.Values{Raw: []byte(values)}}}
	resolved, err := resolveValues(istio)
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewPlane(&sailv1.IstioRevision{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: sailv1.IstioRevisionSpec{Version: DefaultVersion, Namespace: namespace, Values: resolved},
	}, Images{Heddle: "heddle:1", Proxy: "proxy:1"}, "0.1.0")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Each file has the mesh's name and namespace in its first line, its values, and under want/ the objects of one kind.
func TestManifestsGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no goldens: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var name, namespace, kinds string
			if _, err := fmt.Sscanf(string(a.Comment), "%s %s %s", &name, &namespace, &kinds); err != nil {
				t.Fatalf("first line: %v", err)
			}
			p := planeOf(t, name, namespace, string(a.Files[0].Data))
			objects, err := Manifests(p)
			if err != nil {
				t.Fatal(err)
			}
			objects = append(append(objects, Bindings(p)...), Webhooks(p, Serving{})...)
			var out bytes.Buffer
			objects = slices.DeleteFunc(objects, func(o client.Object) bool {
				return !slices.Contains(strings.Split(kinds, ","), o.GetObjectKind().GroupVersionKind().Kind)
			})
			if err := WriteYAML(&out, objects); err != nil {
				t.Fatal(err)
			}
			want := txtar.File{Name: "want.yaml", Data: out.Bytes()}
			if *update {
				a.Files = []txtar.File{a.Files[0], want}
				if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if d := cmp.Diff(string(a.Files[1].Data), out.String()); d != "" {
				t.Errorf("-want +got, -update rewrites:\n%s", d)
			}
		})
	}
}

func TestScalingOnlyWhenAsked(t *testing.T) {
	for _, c := range []struct {
		values, kinds string
		replicas      int32 // -1: not set
	}{
		{`{}`, "", -1},
		{`{"pilot":{"replicaCount":3}}`, "", -1},
		{`{"pilot":{"autoscaleEnabled":false,"replicaCount":2}}`, "PodDisruptionBudget", 2},
		{`{"pilot":{"autoscaleEnabled":false,"replicaCount":1}}`, "", 1},
		{`{"pilot":{"autoscaleMin":2,"autoscaleMax":5,"memory":{"targetAverageUtilization":80}}}`, "HorizontalPodAutoscaler PodDisruptionBudget", -1},
		{`{"pilot":{"autoscaleEnabled":true}}`, "HorizontalPodAutoscaler", -1},
	} {
		p := planeOf(t, "m", "sys", c.values)
		var kinds []string
		for _, o := range p.scaling() {
			kinds = append(kinds, o.GetObjectKind().GroupVersionKind().Kind)
		}
		got := int32(-1)
		if r := p.deployment().Spec.Replicas; r != nil {
			got = *r
		}
		if strings.Join(kinds, " ") != c.kinds || got != c.replicas {
			t.Errorf("%s: %v and replicas %d, want %s and %d", c.values, kinds, got, c.kinds, c.replicas)
		}
	}
}

// injectors are the mutating configurations of a set of meshes, by the name of the revision that they call.
func injectors(t *testing.T, planes []Plane, defaultTag string) map[string][]admissionv1.MutatingWebhook {
	out := map[string][]admissionv1.MutatingWebhook{}
	for _, p := range planes {
		objects := Webhooks(p, Serving{})
		if p.Revision == defaultTag {
			objects = append(objects, TagObjects(p, "default", Serving{})...)
		}
		for _, o := range objects {
			if m, ok := o.(*admissionv1.MutatingWebhookConfiguration); ok {
				out[p.Revision] = append(out[p.Revision], m.Webhooks...)
			}
		}
	}
	return out
}

func selects(t *testing.T, s *metav1.LabelSelector, set map[string]string) bool {
	t.Helper()
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		t.Fatal(err)
	}
	return sel.Matches(labels.Set(set))
}

// called are the revisions that the API server would call for a pod.
func called(t *testing.T, hooks map[string][]admissionv1.MutatingWebhook, namespace, pod map[string]string) (out []string) {
	for rev, ws := range hooks {
		if slices.ContainsFunc(ws, func(w admissionv1.MutatingWebhook) bool {
			return selects(t, w.NamespaceSelector, namespace) && selects(t, w.ObjectSelector, pod)
		}) {
			out = append(out, rev)
		}
	}
	slices.Sort(out)
	return out
}

func set(pairs string) map[string]string {
	out := map[string]string{}
	for _, p := range strings.Fields(pairs) {
		k, v, _ := strings.Cut(p, "=")
		out[k] = v
	}
	return out
}

// INJ-04 to INJ-09, DSC-08: which plane is called, by labels of namespace and pod. m2 owns the default tag.
func TestInjectionDecisions(t *testing.T) {
	hooks := injectors(t, []Plane{
		planeOf(t, "m1", "sys-1", selecting("d", "m1")),
		planeOf(t, "m2", "sys-2", `{"meshConfig":{"discoverySelectors":[{"matchLabels":{"d":"m2"}},{"matchExpressions":[{"key":"team","operator":"In","values":["x","y"]}]}]}}`),
	}, "m2")
	alone := injectors(t, []Plane{planeOf(t, "default", "istio-system", `{"sidecarInjectorWebhook":{"enableNamespacesByDefault":true}}`)}, "")
	for _, c := range []struct {
		hooks               map[string][]admissionv1.MutatingWebhook
		namespace, pod, who string
	}{
		{hooks, "d=m1 istio.io/rev=m1", "", "m1"},
		{hooks, "d=m1 istio.io/rev=m1", "sidecar.istio.io/inject=true istio.io/rev=m2", "m1"},
		{hooks, "d=m1 istio.io/rev=m1", "sidecar.istio.io/inject=false", ""},
		{hooks, "d=m1", "istio.io/rev=m1", "m1"},
		{hooks, "d=m1", "istio.io/rev=m1 sidecar.istio.io/inject=false", ""},
		{hooks, "d=m1", "", ""},
		{hooks, "d=m1", "sidecar.istio.io/inject=true", ""}, // the default belongs to m2
		{hooks, "istio.io/rev=m1", "", ""},                  // asks for m1, but is no member
		{hooks, "d=m2 istio.io/rev=m1", "", ""},             // a member of the other mesh
		{hooks, "d=m1 istio-injection=disabled", "istio.io/rev=m1", ""},
		{hooks, "d=m2 istio-injection=enabled istio.io/rev=m2", "", "m2"}, // by the tag
		{hooks, "d=m1 istio-injection=enabled istio.io/rev=m1", "", ""},
		{hooks, "team=y istio-injection=enabled", "istio.io/rev=m1", "m2"},
		{hooks, "d=m2", "sidecar.istio.io/inject=true", "m2"},
		{hooks, "d=m2 istio.io/rev=default", "", "m2"},
		{hooks, "d=m2", "istio.io/rev=default", "m2"},
		{alone, "istio-injection=enabled", "", "default"},
		{alone, "istio-injection=enabled", "sidecar.istio.io/inject=false", ""},
		{alone, "istio-injection=disabled", "sidecar.istio.io/inject=true", ""},
		{alone, "", "sidecar.istio.io/inject=true", "default"},
		{alone, "", "", "default"},
		{alone, "kubernetes.io/metadata.name=kube-system", "", ""},
		{alone, "istio.io/rev=other", "", ""},
	} {
		if got := strings.Join(called(t, c.hooks, set(c.namespace), set(c.pod)), " "); got != c.who {
			t.Errorf("namespace [%s] pod [%s]: calls %q, want %q", c.namespace, c.pod, got, c.who)
		}
	}
}

func selecting(label, value string) string {
	return fmt.Sprintf(`{"meshConfig":{"discoverySelectors":[{"matchLabels":{%q:%q}}]}}`, label, value)
}

// MCP-13, MCP-14: names and numbers of entries, which kubectl prints.
func TestWebhookNames(t *testing.T) {
	two := `{"meshConfig":{"discoverySelectors":[{"matchLabels":{"d":"a"}},{"matchLabels":{"d":"b"}}]}}`
	count := func(objects []client.Object) string {
		var out []string
		for _, o := range objects {
			switch o := o.(type) {
			case *admissionv1.MutatingWebhookConfiguration:
				out = append(out, fmt.Sprintf("%s:%d", o.Name, len(o.Webhooks)))
				for i, w := range o.Webhooks {
					if !strings.HasSuffix(w.Name, "sidecar-injector.istio.io") || slices.ContainsFunc(o.Webhooks[:i], func(x admissionv1.MutatingWebhook) bool { return x.Name == w.Name }) {
						t.Errorf("entry %d of %s is named %s", i, o.Name, w.Name)
					}
				}
			case *admissionv1.ValidatingWebhookConfiguration:
				out = append(out, fmt.Sprintf("%s:%d", o.Name, len(o.Webhooks)))
			}
		}
		return strings.Join(out, " ")
	}
	for _, c := range []struct{ got, want string }{
		{count(Webhooks(planeOf(t, "usergroup-1", "usergroup-1", selecting("usergroup", "usergroup-1")), Serving{})), "istio-sidecar-injector-usergroup-1-usergroup-1:2 istio-validator-usergroup-1-usergroup-1:1"},
		{count(TagObjects(planeOf(t, "usergroup-1", "usergroup-1", selecting("usergroup", "usergroup-1")), "default", Serving{})), "istio-revision-tag-default-usergroup-1:4 istiod-default-validator:1"},
		{count(Webhooks(planeOf(t, "m", "sys", two), Serving{})), "istio-sidecar-injector-m-sys:4 istio-validator-m-sys:2"},
		{count(TagObjects(planeOf(t, "m", "sys", two), "prod", Serving{})), "istio-revision-tag-prod-sys:4"},
		{count(Webhooks(planeOf(t, "default", "istio-system", `{}`), Serving{})), "istio-sidecar-injector:4 istio-validator-istio-system:1 istiod-default-validator:1"},
		{count(Webhooks(planeOf(t, "m", "istio-system", `{"global":{"configValidation":false}}`), Serving{})), "istio-sidecar-injector-m:2"},
	} {
		if c.got != c.want {
			t.Errorf("%s, want %s", c.got, c.want)
		}
	}
}

// The policy that the API server runs must say what mesh.Members would.
func TestPolicyAgreesWithSelectors(t *testing.T) {
	env, err := cel.NewEnv(cel.Variable("variables", cel.MapType(cel.StringType, cel.DynType)), ext.Strings())
	if err != nil {
		t.Fatal(err)
	}
	ast, iss := env.Compile("variables.data.filter(m, " + matchesExpression("variables.new") + ")")
	if iss.Err() != nil {
		t.Fatal(iss.Err())
	}
	program, err := env.Program(ast)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(5, 6))
	for range 3000 {
		var meshes []mesh.Mesh
		data := map[string]string{}
		for i := range 1 + r.IntN(3) {
			m := mesh.Mesh{ID: mesh.ID(fmt.Sprint("m", i))}
			for range 1 + r.IntN(2) {
				m.Selectors = append(m.Selectors, randomSelector(r))
			}
			meshes = append(meshes, m)
			if lines := selectorLines(m); lines != "" {
				data[string(m.ID)] = lines
			}
		}
		labels := map[string]string{}
		for _, k := range []string{"a", "b.c/d"} {
			if r.IntN(2) > 0 {
				labels[k] = []string{"", "0", "1", "x-y"}[r.IntN(4)]
			}
		}
		out, _, err := program.Eval(map[string]any{"variables": map[string]any{"data": data, "new": labels}})
		if err != nil {
			t.Fatalf("%q: %v", data, err)
		}
		now, err := out.ConvertToNative(reflect.TypeFor[[]string]())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range meshes {
			got := slices.Contains(now.([]string), string(m.ID))
			if want := m.Selects(labels) && !m.Everything(); got != want {
				t.Fatalf("mesh %q and labels %v: the policy says %v", data[string(m.ID)], labels, got)
			}
		}
	}
}

func randomSelector(r *rand.Rand) mesh.Selector {
	var s mesh.Selector
	for range r.IntN(3) {
		q := mesh.Requirement{Key: []string{"a", "b.c/d"}[r.IntN(2)], Op: []mesh.Operator{mesh.In, mesh.NotIn, mesh.Exists, mesh.DoesNotExist}[r.IntN(4)]}
		if q.Op == mesh.In || q.Op == mesh.NotIn {
			for range 1 + r.IntN(2) {
				q.Values = append(q.Values, []string{"", "0", "1", "x-y"}[r.IntN(4)])
			}
		}
		s = append(s, q)
	}
	return s
}

// Whatever a user writes as a selector, we take it as Kubernetes does, and what the API server gets to read is well formed.
func FuzzSelector(f *testing.F) {
	f.Add([]byte(`{"matchLabels":{"istio-discovery":"mesh-1"}}`), "istio-discovery", "mesh-1")
	f.Add([]byte(`{"matchExpressions":[{"key":"x.y/z","operator":"NotIn","values":["","b"]},{"key":"q","operator":"Exists"}]}`), "q", "")
	f.Add([]byte(`{"matchExpressions":[{"key":"a b;c","operator":"In","values":["x,y\n"]}]}`), "a", "x")
	f.Fuzz(func(t *testing.T, text []byte, key, value string) {
		var l metav1.LabelSelector
		if json.Unmarshal(text, &l) != nil {
			return
		}
		s := selectorOf(l)
		theirs, err := metav1.LabelSelectorAsSelector(&l)
		if (err == nil) != (s.Validate() == nil) {
			t.Fatalf("%s: Kubernetes says %v, we say %v", text, err, s.Validate())
		}
		if err != nil {
			return
		}
		for _, set := range []map[string]string{{}, {key: value}} {
			if theirs.Matches(labels.Set(set)) != s.Matches(set) {
				t.Fatalf("%s and %v: we say %v", text, set, s.Matches(set))
			}
		}
		for _, r := range strings.Split(s.String(), ";") {
			if n := len(strings.Split(r, " ")); len(s) > 0 && n != 2 && n != 3 || strings.Contains(r, "\n") {
				t.Fatalf("%s gives the line %q", text, s)
			}
		}
	})
}

func TestResolveVersion(t *testing.T) {
	for name, want := range map[string]string{
		"": DefaultVersion, "master": DefaultVersion, "v1.24-latest": "v1.24.6", "v1.24.3": "v1.24.3", "v1.23.0": "v1.23.0", "v1.30-latest": "v1.30.3",
		"v1.31.0-beta.1": "v1.31.0-beta.1", "v1.99-latest": "", "v1.24.99": "", "1.24.3": "", "v1.24": "", "v1.24.3-latest": "", "v2.0.0": "", "v1.x.y": "",
	} {
		if got, err := resolveVersion(name); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", name, got, err, want)
		}
	}
}

func TestUnusedValues(t *testing.T) {
	for values, want := range map[string][]string{
		`{"meshConfig":{"discoverySelectors":[{"matchLabels":{"a":"b"}}],"extensionProviders":[],"defaultConfig":{"concurrency":2,"tracing":{"sampling":1}}},
		"global":{"istioNamespace":"x","proxy":{"logLevel":"debug","privileged":true},"tracer":{"zipkin":{"address":"a"}}},
		"pilot":{"env":{"X":true,"ENABLE_NATIVE_SIDECARS":false}},"gateways":{},"sidecarInjectorWebhook":{"reinvocationPolicy":"Never"}}`: {
			"gateways", "global.proxy.privileged", "global.tracer.zipkin.address", "meshConfig.defaultConfig.tracing.sampling", "meshConfig.extensionProviders",
			"pilot.env.X", "sidecarInjectorWebhook.reinvocationPolicy",
		},
		`{"global":{"network":null},"pilot":{"env":{"READ":1,"UNREAD":1}},"sidecarInjectorWebhook":{"templates":{"own":"{{ env \"READ\" \"\" }}"}}}`: {"pilot.env.UNREAD"},
		`{"global":{"proxy":{"image":"proxyv2","lifecycle":{"preStop":{"sleep":{"seconds":1}}}},"multiCluster":{"clusterName":"a"}},"pilot":{"env":{"CLUSTER_ID":"b"}}}`: {
			"global.multiCluster.clusterName (pilot.env.CLUSTER_ID decides: b)", "global.proxy.image (not a whole reference: the build's own is taken)",
			"global.proxy.lifecycle (only with pilot.env.ENABLE_NATIVE_SIDECARS: false)",
		},
		`{"pilot":{"autoscaleEnabled":false,"autoscaleMax":2,"cpu":{"targetAverageUtilization":1}}}`: {
			"pilot.autoscaleMax (without pilot.autoscaleEnabled or bounds for it)", "pilot.cpu.targetAverageUtilization (without pilot.autoscaleEnabled or bounds for it)",
		},
		`{"revision":"other","defaultRevision":"x"}`:               {"defaultRevision", "revision (a mesh's revision has its name: m)"},
		`{"pilot":{"replicaCount":2}}`:                             {"pilot.replicaCount (without pilot.autoscaleEnabled: false)"},
		`{"pilot":{"replicaCount":2,"autoscaleMin":2}}`:            {"pilot.replicaCount (without pilot.autoscaleEnabled: false)"},
		`{"pilot":{"replicaCount":2,"autoscaleEnabled":false}}`:    nil,
		`{"meshConfig":{"rootNamespace":"other"},"gateways":{}}`:   {"gateways", "meshConfig.rootNamespace (spec.namespace is the root namespace: sys)"},
		`{"meshConfig":{"rootNamespace":"sys","trustDomain":"x"}}`: nil,
	} {
		got := unusedValues(istioOf(values))
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: -want +got\n%s", values, d)
		}
	}
}

// Of values with a few meanings only, others are refused, with what may be said instead.
func TestSupportedValues(t *testing.T) {
	for values, want := range map[string]string{
		`{}`: "",
		`{"profile":"default","global":{"sds":{"token":{"aud":"istio-ca"}}}}`: "",
		`{"global":{"sds":{"token":{"aud":"heddle.dev/sys/m"}}}}`:             "",
		`{"global":{"sds":{"token":{"aud":"heddle.dev/sys/other"}}}}`:         "spec.values.global.sds.token.aud heddle.dev/sys/other",
		`{"profile":"ambient"}`: "spec.values.profile ambient",
	} {
		err := supported(&sailv1.Istio{
			ObjectMeta: metav1.ObjectMeta{Name: "m"}, Spec: sailv1.IstioSpec{Namespace: "sys", Values: &sailv1.Values{Raw: []byte(values)}},
		}, Namespace)
		if (err != nil) != (want != "") || err != nil && (!strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "leave it out")) {
			t.Errorf("%s: %v, want %q", values, err, want)
		}
	}
}

// A control plane reads these at its start only, so a change of them must replace its pods, and a change of nothing must not.
func TestWhatIsReadOnceReplacesPods(t *testing.T) {
	of := func(values string) string {
		return planeOf(t, "m", "sys", values).deployment().Spec.Template.Annotations[annotationOnce]
	}
	base := of(`{}`)
	for values, same := range map[string]bool{
		`{"meshConfig":{"trustDomain":"cluster.local"},"global":{"sds":{"token":{"aud":"heddle.dev/sys/m"}}}}`: true,
		`{"meshConfig":{"accessLogFile":"/dev/stdout"}}`:                                                       true,
		`{"meshConfig":{"trustDomain":"example.org"}}`:                                                         false,
		`{"global":{"sds":{"token":{"aud":"istio-ca"}}}}`:                                                      false,
	} {
		if got := of(values); (got == base) != same {
			t.Errorf("%s: %q, without it %q", values, got, base)
		}
	}
}

// A control plane is profiled as it runs: its pods must not be replaced by the wish.
func TestProfilesReplaceNoPods(t *testing.T) {
	objects := func(values string) (template, injector string) {
		all, err := Manifests(planeOf(t, "m", "sys", values))
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range all {
			switch o := o.(type) {
			case *appsv1.Deployment:
				template = fmt.Sprint(o.Spec.Template)
			case *corev1.ConfigMap:
				injector += o.Data["values"]
			}
		}
		return template, injector
	}
	before, without := objects(`{}`)
	after, with := objects(`{"pilot":{"env":{"HEDDLE_PROFILES":true}}}`)
	if after != before {
		t.Errorf("the pods' template is\n%s\nand was\n%s", after, before)
	}
	if with == without || !strings.Contains(with, `"HEDDLE_PROFILES": "true"`) {
		t.Errorf("the control plane reads %s", with)
	}
}

// A mesh that could meet each of 22 others gets one warning, with the first three.
func TestJudgeWarnsOnce(t *testing.T) {
	istio := func(name, label string) sailv1.Istio {
		return sailv1.Istio{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.Unix(1, 0)}, Spec: sailv1.IstioSpec{Namespace: "sys-" + name, Values: &sailv1.Values{Raw: []byte(selecting(label, name))}}}
	}
	var there []sailv1.Istio
	for i := range 22 {
		there = append(there, istio(fmt.Sprintf("m%02d", i), "d"))
	}
	added := istio("new", "team")
	refusals, warnings := judge(meshesOf(there), &added, nil)
	if len(refusals) != 0 || len(warnings) != 1 {
		t.Fatalf("%d refusals, %d warnings: %q", len(refusals), len(warnings), warnings)
	}
	for _, part := range []string{"of mesh m00", "of mesh m01", "of mesh m02", "; and 19 more;"} {
		if !strings.Contains(warnings[0], part) {
			t.Errorf("%q does not say %q", warnings[0], part)
		}
	}
	if strings.Contains(warnings[0], "m03") {
		t.Errorf("%q", warnings[0])
	}
}

func TestJudge(t *testing.T) {
	istio := func(name, ns, values string) sailv1.Istio {
		return sailv1.Istio{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.Unix(1, 0)}, Spec: sailv1.IstioSpec{Namespace: ns, Values: &sailv1.Values{Raw: []byte(values)}}}
	}
	there := []sailv1.Istio{istio("m1", "sys-1", selecting("d", "m1")), istio("a-b", "c", selecting("d", "ab"))}
	namespaces := []mesh.Namespace{{Name: "app", Labels: map[string]string{"d": "m1", "e": "1"}, Holder: "m1"}, {Name: "sys-2"}, {Name: "sys-1", Labels: map[string]string{"g": "1"}}}
	for _, c := range []struct {
		name             string
		istio            sailv1.Istio
		refusal, warning string // contained in exactly one text each
	}{
		{"disjoint", istio("m2", "sys-3", selecting("d", "m2")), "", ""},
		{"takes a namespace", istio("m2", "sys-3", selecting("e", "1")), "namespace app matches the selectors of mesh m2 and of mesh m1", ""},
		{"an old mesh that reaches further", istio("a-b", "c", `{"meshConfig":{"discoverySelectors":[{"matchLabels":{"e":"1"}}]}}`), "namespace app", ""},
		{"takes another's system namespace", istio("m2", "sys-3", selecting("g", "1")), "namespace sys-1 matches the selectors of mesh m2 and is the system namespace of mesh m1", ""},
		{"makes a member its system namespace", istio("m2", "app", selecting("d", "m2")), "namespace app matches the selectors of mesh m1 and is the system namespace of mesh m2", ""},
		{"could meet later", istio("m2", "sys-3", selecting("f", "1")), "", "could match both"},
		{"names that join to the same", istio("a", "b-c", selecting("d", "a")), "istio-sidecar-injector-a-b-c", ""},
		{"without the label on its own namespace", istio("m2", "sys-2", selecting("d", "m2")), "", "system namespace sys-2"},
		{"values without effect", istio("m2", "sys-3", `{"gateways":{"x":1},"meshConfig":{"discoverySelectors":[{"matchLabels":{"d":"m2"}}]}}`), "", "spec.values.gateways.x"},
	} {
		t.Run(c.name, func(t *testing.T) {
			refusals, warnings := judge(meshesOf(there), &c.istio, namespaces)
			for _, x := range []struct {
				got  []string
				want string
			}{{refusals, c.refusal}, {warnings, c.warning}} {
				if (len(x.got) > 0) != (x.want != "") || x.want != "" && !strings.Contains(strings.Join(x.got, "; "), x.want) {
					t.Errorf("got %q, want %q", x.got, x.want)
				}
			}
		})
	}
}

func TestValidatorsStopFailingAfterAMinuteWithoutPlane(t *testing.T) {
	start := time.Unix(1000, 0)
	rev := &sailv1.IstioRevision{Status: sailv1.RevisionStatus{Conditions: []metav1.Condition{{Type: "Ready", Status: metav1.ConditionFalse, LastTransitionTime: metav1.NewTime(start)}}}}
	for after, want := range map[time.Duration]admissionv1.FailurePolicyType{0: admissionv1.Fail, 59 * time.Second: admissionv1.Fail, 60 * time.Second: admissionv1.Ignore} {
		r := &revisions{now: func() time.Time { return start.Add(after) }}
		s, wait, err := r.probe(t.Context(), rev, Plane{}, Serving{Failing: admissionv1.Fail}, false)
		if err != nil || s.Failing != want || wait != 60*time.Second-after {
			t.Errorf("after %s: %s, wait %s, %v", after, s.Failing, wait, err)
		}
	}
}

func TestStandings(t *testing.T) {
	p := Plane{Mesh: "m", Namespace: "sys", Version: DefaultVersion, selectors: []mesh.Selector{{}}}
	want := wanted{mesh: "m", plane: p, spec: heddlev1alpha1.MembershipSpec{Namespace: "n", UID: "1"}}
	made := func(phase heddlev1alpha1.Phase, change func(*heddlev1alpha1.Membership)) standing {
		m := &heddlev1alpha1.Membership{ObjectMeta: metav1.ObjectMeta{Namespace: "sys", UID: "u", Generation: 2}, Spec: want.spec}
		m.Spec.Phase = phase
		m.Status = heddlev1alpha1.MembershipStatus{Watching: true, RootWritten: true, UID: "u", Generation: 2}
		if change != nil {
			change(m)
		}
		return standing{mesh: "m", membership: m, binding: MemberBinding(p, "n")}
	}
	for _, c := range []struct {
		name           string
		s              standing
		stays, settled bool
		next           heddlev1alpha1.Phase
	}{
		{"served", made(heddlev1alpha1.Member, nil), true, true, heddlev1alpha1.Member},
		{"just reported", made(heddlev1alpha1.Joining, nil), true, false, heddlev1alpha1.Member},
		{"reported for what it was before", made(heddlev1alpha1.Joining, func(m *heddlev1alpha1.Membership) { m.Status.Generation = 1 }), true, true, heddlev1alpha1.Joining},
		{"reported for a predecessor", made(heddlev1alpha1.Joining, func(m *heddlev1alpha1.Membership) { m.Status.UID = "v" }), true, true, heddlev1alpha1.Joining},
		{"without its root", made(heddlev1alpha1.Joining, func(m *heddlev1alpha1.Membership) { m.Status.RootWritten = false }), true, true, heddlev1alpha1.Joining},
		{"a member whose plane is behind", made(heddlev1alpha1.Member, func(m *heddlev1alpha1.Membership) { m.Status.Generation = 1 }), true, true, heddlev1alpha1.Member},
		{"leaving goes on to its end", made(heddlev1alpha1.Leaving, nil), false, false, heddlev1alpha1.Member},
		{"a namespace made again", made(heddlev1alpha1.Member, func(m *heddlev1alpha1.Membership) { m.Spec.UID = "0" }), false, false, heddlev1alpha1.Member},
		{"kinds have changed", made(heddlev1alpha1.Member, func(m *heddlev1alpha1.Membership) { m.Spec.Kinds = []string{"x"} }), true, false, heddlev1alpha1.Member},
	} {
		if c.s.stays(want) != c.stays || settled(want, []standing{c.s}) != c.settled || c.s.phase() != c.next {
			t.Errorf("%s: stays %v, settled %v, next %s", c.name, c.s.stays(want), settled(want, []standing{c.s}), c.s.phase())
		}
	}
	if settled(want, nil) || !settled(wanted{}, nil) || settled(wanted{}, []standing{{mesh: "m"}}) {
		t.Error("nothing there: settled only if nothing is wanted")
	}
	for name, change := range map[string]func(*standing){
		"without a binding":           func(s *standing) { s.binding = nil },
		"with a binding to no plane":  func(s *standing) { s.binding.Subjects = nil },
		"with one to another account": func(s *standing) { s.binding.Subjects[0].Name = "default" },
		"with one of another role":    func(s *standing) { s.binding.RoleRef.Name = "view" },
	} {
		other := made(heddlev1alpha1.Member, nil)
		change(&other)
		if settled(want, []standing{other}) {
			t.Error("settled", name)
		}
	}
}

func TestCRDsAreNeverDowngraded(t *testing.T) {
	crd := func(mark string, versions ...string) *apiextensionsv1.CustomResourceDefinition {
		c := &apiextensionsv1.CustomResourceDefinition{}
		if mark != "" {
			c.Annotations = map[string]string{crdVersionKey: mark}
		}
		for _, v := range versions {
			c.Spec.Versions = append(c.Spec.Versions, apiextensionsv1.CustomResourceDefinitionVersion{Name: v, Served: true})
		}
		return c
	}
	ours := crd("1.31.1-2", "v1", "v1beta1")
	for _, c := range []struct {
		there *apiextensionsv1.CustomResourceDefinition
		keeps bool
	}{
		{crd("1.31.1-2", "v1"), false},
		{crd("1.31.1-1", "v1", "v1beta1", "v2"), false},
		{crd("1.31.1-10", "v1"), true},
		{crd("1.32.0-1", "v1"), true},
		{crd("", "v1", "v1beta1", "v2"), true},
		{crd("", "v1"), false},
	} {
		if keeps(c.there, ours) != c.keeps {
			t.Errorf("%v %v: keeps %v", c.there.Annotations, c.there.Spec.Versions, !c.keeps)
		}
	}
}

// A definition that changes without its version could be set back by who has an older one. This is what crdVersion stands for.
func TestCRDVersionGrowsWithEveryChange(t *testing.T) {
	files, err := filepath.Glob("crds/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.New()
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		sum.Write(text)
	}
	const version, digest = "1.31.1-2", "a5e8284a51c1c2c6ea8ac375ea819c9eca7f313fa79e9010e22368d75a3b7be6"
	if got := fmt.Sprintf("%x", sum.Sum(nil)); crdVersion != version || got != digest {
		t.Errorf("crdVersion %s is of definitions %s, and this test knows %s of %s: a change of them needs a higher crdVersion; write both here", crdVersion, got, version, digest)
	}
}

func TestBootstrap(t *testing.T) {
	objects, err := Bootstrap(Images{Heddle: "heddle:1", Proxy: "proxy:1"}, Namespace)
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if err := WriteYAML(&text, objects); err != nil {
		t.Fatal(err)
	}
	docs := strings.Split(strings.TrimPrefix(text.String(), "---\n"), "\n---\n")
	if len(docs) != len(objects) {
		t.Errorf("%d documents of %d objects", len(docs), len(objects))
	}
	crds := 0
	for i, d := range docs {
		var o metav1.PartialObjectMetadata
		if err := yaml.UnmarshalStrict([]byte(d), &map[string]any{}); err != nil {
			t.Errorf("document %d: %v", i, err)
		}
		if err := yaml.Unmarshal([]byte(d), &o); err != nil || o.Kind == "" || o.Name == "" {
			t.Errorf("document %d: %q %q %v", i, o.Kind, o.Name, err)
		}
		if o.Kind == "CustomResourceDefinition" {
			crds++
		}
	}
	if crds != 4+len(istioKinds()) {
		t.Errorf("%d CRDs", crds)
	}
	for _, o := range objects {
		role, ok := o.(*rbacv1.ClusterRole)
		if !ok {
			continue
		}
		for _, r := range role.Rules {
			all := append(append(slices.Clone(r.Verbs), r.Resources...), r.APIGroups...)
			if slices.Contains(all, "*") || slices.Contains(all, "escalate") || slices.Contains(all, "impersonate") {
				t.Errorf("%s: %v", role.Name, r)
			}
			if slices.Contains(r.Verbs, "bind") && !slices.Equal(r.ResourceNames, []string{roleMember, roleSystem, roleCluster}) {
				t.Errorf("%s binds %v", role.Name, r.ResourceNames)
			}
			secrets := slices.Contains(r.Resources, "secrets")
			if secrets && (role.Name != roleSystem || len(r.ResourceNames) == 0 && !slices.Equal(r.Verbs, []string{"create"})) {
				t.Errorf("%s: %v", role.Name, r)
			}
		}
	}
}

// The API server takes a message of one line only, and a mesh may have several selectors.
func TestPolicyMessagesAreLines(t *testing.T) {
	env, err := cel.NewEnv(cel.Variable("variables", cel.MapType(cel.StringType, cel.DynType)), cel.Variable("object", cel.DynType),
		cel.Variable("request", cel.DynType), ext.Strings())
	if err != nil {
		t.Fatal(err)
	}
	evaluated := 0
	for _, o := range policies(Namespace) {
		p, ok := o.(*admissionv1.ValidatingAdmissionPolicy)
		if !ok {
			continue
		}
		for _, v := range p.Spec.Validations {
			if v.MessageExpression == "" {
				continue
			}
			ast, iss := env.Compile(v.MessageExpression)
			if iss.Err() != nil {
				t.Fatal(iss.Err())
			}
			program, err := env.Program(ast)
			if err != nil {
				t.Fatal(err)
			}
			out, _, err := program.Eval(map[string]any{
				"object": map[string]any{"metadata": map[string]any{"name": "shop"}},
				"request": map[string]any{
					"userInfo": map[string]any{"username": "jo"}, "operation": "CREATE", "name": "shop", "resource": map[string]any{"resource": "memberships"},
				},
				"variables": map[string]any{"rev": "m", "data": map[string]string{"m": "a In b\nc Exists"}, "now": []string{"m", "n"}},
			})
			if text, _ := out.Value().(string); err != nil || !strings.Contains(text, "shop") || strings.Contains(text, "\n") {
				t.Errorf("policy %s says %q, %v", p.Name, text, err)
			}
			evaluated++
		}
	}
	if evaluated < 4 {
		t.Errorf("%d messages, want all four", evaluated)
	}
}

// A key that goes takes along the maps that it leaves empty: server-side apply would leave null in their place. What is in a
// list stays, as an empty selector means something.
func TestRevisionHasNoEmptyMaps(t *testing.T) {
	istio := &sailv1.Istio{ObjectMeta: metav1.ObjectMeta{Name: "m"}, Spec: sailv1.IstioSpec{Namespace: "s", Values: &sailv1.Values{Raw: []byte(
		`{"pilot":{"env":{},"a":{"b":{}}},"meshConfig":{"discoverySelectors":[{"matchLabels":{}}],"defaultConfig":{"proxyMetadata":{}}}}`,
	)}}}
	values, err := resolveValues(istio)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"global":{"istioNamespace":"s"},"meshConfig":{"discoverySelectors":[{"matchLabels":{}}]},"revision":"m"}`
	if got := string(values.Raw); got != want {
		t.Errorf("values are %s, want %s", got, want)
	}
}
