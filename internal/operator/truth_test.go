package operator

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
	"github.com/heddle-mesh/heddle/internal/agent"
	"github.com/heddle-mesh/heddle/internal/ingest"
	"github.com/heddle-mesh/heddle/internal/inject"
)

// contexts are values under which others have an effect.
var contexts = []string{
	`{}`,
	`{"pilot":{"autoscaleMin":2}}`,
	`{"pilot":{"autoscaleEnabled":false,"env":{"ENABLE_NATIVE_SIDECARS":"false"}},"sidecarInjectorWebhook":{"templates":{"own":"metadata: {labels: {own: x}}"},"rewriteAppHTTPProbe":true}}`,
	`{"global":{"proxy":{"autoInject":"disabled"}},"sidecarInjectorWebhook":{"injectedAnnotations":{"a":"b"}}}`,
}

// examples are of values that have an effect if they are of a certain form only.
var examples = map[string][]string{
	"profile":                                     nil, // of those that are taken none changes anything, and the others are refused
	"revision":                                    nil, // the mesh's name, or nothing
	"global.istioNamespace":                       nil, // spec.namespace, or nothing
	"meshConfig.rootNamespace":                    nil, // likewise
	"pilot.env.GODEBUG":                           nil, // these are for the runtime of Go, which is no function of ours
	"pilot.env.GOGC":                              nil,
	"pilot.env.GOMAXPROCS":                        nil,
	"pilot.env.GOMEMLIMIT":                        nil,
	"pilot.env.ISTIOD_CUSTOM_HOST":                nil, // read by main
	"global.proxy.image":                          {`"r/x:1"`},
	"global.proxy_init.image":                     {`"r/x:1"`},
	"global.proxy.lifecycle":                      {`{"preStop":{"exec":{"command":["x"]}}}`},
	"global.proxy.resources":                      {`{"requests":{"cpu":"7"}}`},
	"pilot.autoscaleBehavior":                     {`{"scaleUp":{"stabilizationWindowSeconds":7}}`},
	"pilot.env.ENABLE_NATIVE_SIDECARS":            {`false`},
	"pilot.resources":                             {`{"requests":{"cpu":"7"}}`},
	"pilot.tolerations":                           {`[{"key":"x"}]`},
	"meshConfig.discoverySelectors":               {`[{"matchLabels":{"x":"y"}}]`},
	"meshConfig.defaultConfig.configPath":         {`"/x"`},
	"meshConfig.defaultConfig.proxyStatsMatcher":  {`{"inclusionPrefixes":["x"]}`},
	"meshConfig.defaultConfig.proxyMetadata":      {`{"X":"y"}`},
	"meshConfig.accessLogFile":                    {`"/x"`},
	"sidecarInjectorWebhook.aliases":              {`{"sidecar":["own"]}`},
	"sidecarInjectorWebhook.alwaysInjectSelector": {`[{"matchLabels":{"app":"a"}}]`},
	"sidecarInjectorWebhook.neverInjectSelector":  {`[{"matchLabels":{"app":"a"}}]`},
	"sidecarInjectorWebhook.defaultTemplates":     {`["own"]`},
	"sidecarInjectorWebhook.templates":            {`{"sidecar":"metadata: {labels: {own: y}}"}`},
	"sidecarInjectorWebhook.rewriteAppHTTPProbe":  {`false`},
}

// All that a mesh comes to is computed: the objects that the operator writes, whether and how a pod is injected, what its agent
// runs by, what the control plane reads. Each value that the table calls acted on changes some of it in one of the contexts;
// the others, all at once, change nothing.
func TestTableTellsTheTruth(t *testing.T) {
	all := leaves("", chart())
	for path := range examples {
		if _, ok := all[path]; !ok {
			t.Errorf("an example of %s, which is no value", path)
		}
	}
	with := func(context string, paths []string, sample func(path string) any) string {
		values := decode(t, context)
		for _, path := range paths {
			put(values, strings.Split(path, "."), sample(path))
		}
		if faults := chart().faults("", values); len(faults) > 0 {
			t.Fatalf("the samples of %v: %v", paths, faults)
		}
		return effect(t, values)
	}
	for path := range all {
		looked := false
		for n := range alternatives {
			looked = looked || chosen(path, n)
		}
		if !looked {
			t.Errorf("%s is never looked at", path)
		}
	}
	unset := func(string) any { return nil } // the groups are there: that alone may say something
	var unused []string
	for _, path := range slices.Sorted(maps.Keys(all)) {
		k := all[path]
		samples, given := examples[path]
		if !given {
			samples = samplesOf(k)
		}
		if !k.acted {
			unused = append(unused, path)
			continue
		}
		acted := given && samples == nil
		for _, c := range contexts {
			for _, sample := range samples {
				acted = acted || with(c, []string{path}, func(string) any { return value(t, sample) }) != with(c, []string{path}, unset)
			}
		}
		if !acted {
			t.Errorf("%s is acted on by the table, and changes nothing", path)
		}
	}
	for _, c := range contexts {
		for round := range 2 {
			sample := func(path string) any {
				s := samplesOf(all[path])
				return value(t, s[min(round, len(s)-1)])
			}
			var find func(paths []string)
			find = func(paths []string) {
				switch half := len(paths) / 2; {
				case with(c, paths, sample) == with(c, paths, unset):
				case half == 0:
					t.Errorf("%s changes something, and is not acted on by the table", paths[0])
				default:
					find(paths[:half])
					find(paths[half:])
				}
			}
			for n := range alternatives {
				find(slices.DeleteFunc(slices.Clone(unused), func(path string) bool { return !chosen(path, n) }))
			}
		}
	}
}

// alternatives is how many there are at most of which a message can have one.
const alternatives = 5

// chosen reports whether a path goes through the nth alternative wherever there are some.
func chosen(path string, n int) bool {
	k := chart()
	for _, name := range strings.Split(path, ".") {
		if o, ok := k.oneof[name]; ok {
			var names []string
			for _, other := range slices.Sorted(maps.Keys(k.oneof)) {
				if k.oneof[other] == o {
					names = append(names, other)
				}
			}
			if slices.Index(names, name) != n%len(names) {
				return false
			}
		}
		k, _ = k.at(name)
	}
	return true
}

// effect is all that a mesh of these values comes to, as text.
func effect(t *testing.T, values map[string]any) string {
	t.Helper()
	raw, err := json.Marshal(values)
	if err != nil {
		t.Fatal(err)
	}
	p := planeOf(t, sailv1.DefaultName, "sys", string(raw))
	objects, err := Manifests(p)
	if err != nil {
		t.Fatal(err)
	}
	settings := inject.Settings{Mesh: p.Mesh, Revision: p.Revision, Namespace: p.Namespace}
	var out []any
	for _, o := range append(append(objects, Bindings(p)...), Webhooks(p, Serving{})...) {
		switch o := o.(type) {
		case *corev1.ConfigMap: // what they have an effect on follows
			for key, into := range map[string]*[]byte{"mesh": &settings.MeshConfig, "config": &settings.Config, "values": &settings.Values} {
				if text, ok := o.Data[key]; ok {
					*into = []byte(text)
				}
			}
			continue
		case *appsv1.Deployment: // a variable is for who reads it
			c := &o.Spec.Template.Spec.Containers[0]
			fields, own := p.ownEnv()
			for _, f := range fields {
				own[f.Name] = ""
			}
			c.Env = slices.DeleteFunc(c.Env, func(e corev1.EnvVar) bool { _, ours := own[e.Name]; return !ours })
		}
		out = append(out, client.Object(o))
	}
	params, err := inject.Parse(settings)
	if err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
	out = append(out, ingest.Config(p.Mesh, p.Namespace, params.MeshConfig()), params.Profiling())
	for _, annotations := range []map[string]string{nil, {"sidecar.istio.io/inject": "true", "prometheus.io/scrape": "true"}} {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "a-1", Namespace: "app", Labels: map[string]string{"app": "a"}, Annotations: annotations},
			Spec: corev1.PodSpec{ServiceAccountName: "a", Containers: []corev1.Container{{
				Name: "a", Image: "a", Ports: []corev1.ContainerPort{{ContainerPort: 80}},
				LivenessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(80)}}},
			}}},
		}
		out = append(out, inject.Skip(pod, params))
		text, _, err := inject.Patch(pod, params, inject.Request{})
		if err != nil { // a template of the samples that is not there
			out = append(out, err.Error())
			continue
		}
		injected, config := injectedPod(t, text, pod)
		out = append(out, injected, config)
	}
	j, err := json.Marshal(out)
	if err != nil {
		t.Fatal(err)
	}
	return string(j)
}

// injectedPod is the patched pod as it comes from the injector, without the agent's configuration, and what the agent reads in that.
func injectedPod(t *testing.T, text []byte, pod *corev1.Pod) (out *corev1.Pod, c agent.Config) {
	t.Helper()
	patch, err := jsonpatch.DecodePatch(text)
	if err != nil {
		t.Fatal(err)
	}
	j, err := json.Marshal(pod)
	if err == nil {
		j, err = patch.Apply(j)
	}
	if err == nil {
		err = json.Unmarshal(j, &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, containers := range [][]corev1.Container{out.Spec.InitContainers, out.Spec.Containers} {
		for i := range containers {
			proxy := &containers[i]
			if proxy.Name != "istio-proxy" {
				continue
			}
			e := agent.Environment{
				Vars: map[string]string{"POD_NAME": "a-1", "POD_NAMESPACE": "app", "INSTANCE_IP": "10.0.0.1", "SERVICE_ACCOUNT": "a"},
				Role: "sidecar", Domain: "app.svc.cluster.local", Labels: `app="a"`, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, CPUs: 64,
			}
			for _, v := range proxy.Env {
				if v.ValueFrom == nil {
					e.Vars[v.Name] = v.Value
				}
			}
			if c, err = agent.Read(e); err != nil {
				t.Fatal(err)
			}
			delete(c.Metadata, "PROXY_CONFIG")
			proxy.Env = slices.DeleteFunc(proxy.Env, func(v corev1.EnvVar) bool { return v.Name == "PROXY_CONFIG" })
		}
	}
	return out, c
}

// leaves are the single values of a table; of a group with free names one that nobody knows.
func leaves(path string, k key) map[string]key {
	out := map[string]key{}
	if k.acted || !k.grouped() || k.keys == nil {
		out[path] = k
		return out
	}
	below := k.keys
	if k.each != nil {
		below = map[string]key{"UNKNOWN": *k.each}
		for name, sub := range k.keys {
			below[name] = sub
		}
	}
	for name, sub := range below {
		for p, l := range leaves(strings.TrimPrefix(path+"."+name, "."), sub) {
			out[p] = l
		}
	}
	return out
}

// samplesOf are values that k takes: all of few, or one unlike any default.
func samplesOf(k key) (out []string) {
	if k.list {
		if k.each.keys != nil {
			return []string{`[{}]`}
		}
		for _, s := range samplesOf(*k.each) {
			out = append(out, "["+s+"]")
		}
		return out
	}
	if k.keys != nil {
		return []string{`{}`}
	}
	if k.grouped() {
		return []string{`{"x":` + samplesOf(*k.each)[0] + `}`}
	}
	candidates := []string{`"x"`, `true`, `false`, `7`, `"7s"`, `"81"`, `"x:7"`, `{"x":"y"}`, `{"x":["y"]}`, `[]`, `{}`, `[{}]`}
	if words, ok := strings.CutPrefix(k.want, "one of "); ok {
		for w := range strings.SplitSeq(words, ", ") {
			candidates = append(candidates, fmt.Sprintf("%q", w))
		}
	}
	for _, c := range candidates {
		var v any
		if json.Unmarshal([]byte(c), &v) == nil && (k.is == nil || k.is(v) == nil) {
			out = append(out, c)
		}
	}
	if k.is == nil {
		out = out[:1]
	}
	return out
}

func value(t *testing.T, text string) any { return decode(t, `{"":`+text+`}`)[""] }

func decode(t *testing.T, text string) (out map[string]any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func put(m map[string]any, path []string, v any) {
	for _, name := range path[:len(path)-1] {
		m = sub(m, name)
	}
	m[path[len(path)-1]] = v
}
