package inject

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/internal/node/redirect"
)

var update = flag.Bool("update", false, "rewrite the wanted part of testdata")

const testValues = `{"global":{"proxy":{"image":"registry.heddle.dev/proxy:1"}}}`

func params(t testing.TB, s Settings) *Params {
	t.Helper()
	if s.Mesh == "" {
		s.Mesh, s.Revision, s.Namespace = "mesh-1", "mesh-1", "istio-system-1"
	}
	if s.Values == nil {
		s.Values = []byte(testValues)
	}
	p, err := Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// apply carries out a patch as the API server does.
func apply(t testing.TB, pod *corev1.Pod, patch []byte) *corev1.Pod {
	t.Helper()
	raw, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	p, err := jsonpatch.DecodePatch(patch)
	if err != nil {
		t.Fatal(err)
	}
	if raw, err = p.Apply(raw); err != nil {
		t.Fatal(err)
	}
	out := &corev1.Pod{}
	if err := json.Unmarshal(raw, out); err != nil {
		t.Fatal(err)
	}
	return out
}

// pick follows a path of map keys and, in lists, of names; a star stands for all names of a list, in order.
func pick(v any, path string) any {
	for key := range strings.SplitSeq(path, ".") {
		switch x := v.(type) {
		case map[string]any:
			v = x[key]
		case []any:
			v = nil
			var names []any
			for _, e := range x {
				m, ok := e.(map[string]any)
				if ok && m["name"] == key {
					v = e
				}
				names = append(names, m["name"])
			}
			if key == "*" {
				v = names
			}
		}
	}
	return v
}

// show prints the parts of pod under the given paths, whole lines as `path: value`.
func show(t *testing.T, pod *corev1.Pod, paths string) string {
	t.Helper()
	raw, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	var tree any
	if err := json.Unmarshal(raw, &tree); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for path := range strings.FieldsSeq(paths) {
		b, err := yaml.Marshal(map[string]any{path: pick(tree, path)})
		if err != nil {
			t.Fatal(err)
		}
		out.Write(b)
	}
	return out.String()
}

// Each case of testdata: pod.yaml with settings beside it, and of the patched pod the parts that file show names, or the
// error. A second call changes nothing in any of them.
func TestPatch(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatal(err, paths)
	}
	for _, file := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			files := map[string][]byte{}
			for _, f := range a.Files {
				files[f.Name] = f.Data
			}
			pod := &corev1.Pod{}
			if err := yaml.UnmarshalStrict(files["pod.yaml"], pod); err != nil {
				t.Fatal(err)
			}
			s := Settings{MeshConfig: files["mesh.yaml"], Config: files["config.yaml"]}
			if v, ok := files["values.yaml"]; ok {
				if s.Values, err = yaml.YAMLToJSON(v); err != nil {
					t.Fatal(err)
				}
			}
			p := params(t, s)
			got := ""
			in := Request{Env: pathEnv(strings.TrimSpace(string(files["path"]))), Token: "first"}
			patch, warnings, err := Patch(pod, p, in)
			if err != nil {
				got = "error: " + err.Error() + "\n"
			} else {
				out := apply(t, pod, patch)
				checkRestricted(t, out)
				checkInit(t, out)
				in.Token = "second" // what has a token keeps it
				again, _, err := Patch(out, p, in)
				if err != nil || string(again) != "[]" {
					t.Errorf("second injection: %v, patch %s", err, again)
				}
				for _, w := range warnings {
					got += "warning: " + w + "\n"
				}
				got += show(t, out, string(files["show"]))
			}
			if *update {
				a.Files[len(a.Files)-1].Data = []byte(got)
				if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if d := cmp.Diff(string(files["want"]), got); d != "" {
				t.Errorf("-want +got\n%s", d)
			}
		})
	}
}

// checkInit has istio-init's arguments read as it reads them.
func checkInit(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	c := find(pod, initName)
	if c == nil {
		return // interception mode NONE
	}
	flags := map[string]string{}
	for i, arg := range c.Args {
		if strings.HasPrefix(arg, "-") && !strings.HasPrefix(arg, "--") {
			flags[arg] = c.Args[i+1]
		}
	}
	if _, err := redirect.Parse(redirect.Fields{
		OutboundPort: flags["-p"], InboundPort: flags["-z"], ProxyID: flags["-u"], Mode: flags["-m"], IncludeCIDRs: flags["-i"], ExcludeCIDRs: flags["-x"],
		IncludeInbound: flags["-b"], ExcludeInbound: flags["-d"], IncludeOutbound: flags["-q"], ExcludeOutbound: flags["-o"],
		VirtualInterfaces: flags["-k"], ExcludeInterfaces: flags["-c"],
	}); err != nil {
		t.Errorf("istio-init refuses %q: %v", c.Args, err)
	}
}

// checkRestricted holds istio-proxy and its volumes to the Pod Security standard restricted, field by field.
func checkRestricted(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	for _, v := range pod.Spec.Volumes {
		if v.HostPath != nil || v.EmptyDir == nil && v.ConfigMap == nil && v.DownwardAPI == nil && v.Projected == nil && v.Secret == nil && v.CSI == nil && v.PersistentVolumeClaim == nil && v.Ephemeral == nil {
			t.Errorf("volume %s is of a kind that restricted refuses", v.Name)
		}
	}
	c := find(pod, proxyName)
	if c == nil {
		t.Fatal("no istio-proxy")
	}
	s := c.SecurityContext
	switch {
	case s == nil,
		s.Privileged == nil || *s.Privileged,
		s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation,
		s.RunAsNonRoot == nil || !*s.RunAsNonRoot,
		s.RunAsUser == nil || *s.RunAsUser == 0,
		s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem,
		s.SeccompProfile == nil || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault,
		s.Capabilities == nil || len(s.Capabilities.Drop) != 1 || s.Capabilities.Drop[0] != "ALL",
		s.ProcMount != nil || s.SELinuxOptions != nil || s.WindowsOptions != nil:
		t.Errorf("istio-proxy is not within restricted: %+v", s)
	}
	for _, a := range s.Capabilities.Add {
		if a != "NET_BIND_SERVICE" {
			t.Errorf("istio-proxy adds capability %s", a)
		}
	}
	for _, p := range c.Ports {
		if p.HostPort != 0 {
			t.Errorf("istio-proxy takes host port %d", p.HostPort)
		}
	}
}

// The rows of the injection table that the injector itself decides; the API server's selectors come before.
func TestSkip(t *testing.T) {
	disabled := Settings{Config: []byte("policy: disabled\nalwaysInjectSelector: [{matchLabels: {team: a}}]\nneverInjectSelector: [{matchLabels: {job: batch}}, {}]")}
	for _, c := range []struct {
		name              string
		settings          Settings
		ns                string
		label, annotation string
		labels            map[string]string
		host              bool
		want              bool // injected
	}{
		{name: "nothing said", ns: "app", want: true},
		{name: "label true", ns: "app", label: "true", want: true},
		{name: "label false", ns: "app", label: "false"},
		{name: "annotation false", ns: "app", annotation: "false"},
		{name: "label beats annotation", ns: "app", label: "true", annotation: "false", want: true},
		{name: "label false beats annotation true", ns: "app", label: "false", annotation: "true"},
		{name: "another word is not said", ns: "app", label: "no", want: true},
		{name: "another spelling is not said, as for the API server's selectors", ns: "app", label: "False", want: true},
		{name: "an empty annotation is not said", ns: "app", annotation: "", want: true},
		{name: "another word in the label hides the annotation", ns: "app", label: "off", annotation: "false", want: true},
		{name: "the pod's own revision label is ignored", ns: "app", labels: map[string]string{"istio.io/rev": "mesh-9"}, want: true},
		{name: "host network", ns: "app", label: "true", host: true},
		{name: "kube-system", ns: "kube-system", label: "true"},
		{name: "kube-public", ns: "kube-public", label: "true"},
		{name: "kube-node-lease", ns: "kube-node-lease", label: "true"},
		{name: "local-path-storage", ns: "local-path-storage", label: "true"},
		{name: "policy disabled", settings: disabled, ns: "app"},
		{name: "a policy in another spelling", settings: Settings{Config: []byte("policy: Enabled")}, ns: "app"},
		{name: "policy disabled, asked for in another word", settings: disabled, ns: "app", label: "yes"},
		{name: "policy disabled, asked for in another spelling", settings: disabled, ns: "app", annotation: "True"},
		{name: "another word does not beat never", settings: disabled, ns: "app", label: "on", labels: map[string]string{"team": "a", "job": "batch"}},
		{name: "policy disabled, asked for", settings: disabled, ns: "app", label: "true", want: true},
		{name: "policy disabled, always selector", settings: disabled, ns: "app", labels: map[string]string{"team": "a"}, want: true},
		{name: "never beats always", settings: disabled, ns: "app", labels: map[string]string{"team": "a", "job": "batch"}},
		{name: "label beats never", settings: disabled, ns: "app", label: "true", labels: map[string]string{"job": "batch"}, want: true},
		{name: "never selector alone", settings: Settings{Config: []byte("neverInjectSelector: [{matchExpressions: [{key: job, operator: Exists}]}]")}, ns: "app", labels: map[string]string{"job": "x"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			pod := &corev1.Pod{}
			pod.Namespace, pod.Labels, pod.Annotations = c.ns, map[string]string{}, map[string]string{}
			for k, v := range c.labels {
				pod.Labels[k] = v
			}
			if c.label != "" {
				pod.Labels[injectLabel] = c.label
			}
			if c.annotation != "" {
				pod.Annotations[injectLabel] = c.annotation
			}
			pod.Spec.HostNetwork = c.host
			if reason := Skip(pod, params(t, c.settings)); (reason == "") != c.want {
				t.Errorf("injected %v (%q), want %v", reason == "", reason, c.want)
			}
		})
	}
}

func TestAnnotations(t *testing.T) {
	for _, c := range []struct{ key, good, bad string }{
		{"sidecar.istio.io/interceptionMode", "NONE", "redirect"},
		{"sidecar.istio.io/nativeSidecar", "false", "no thanks"},
		{"sidecar.istio.io/rewriteAppHTTPProbers", "true", "2"},
		{"prometheus.istio.io/merge-metrics", "false", "off"},
		{"status.sidecar.istio.io/port", "15020", "65536"},
		{"readiness.status.sidecar.istio.io/initialDelaySeconds", "0", "-1"},
		{"readiness.status.sidecar.istio.io/periodSeconds", "5", "5s"},
		{"readiness.status.sidecar.istio.io/failureThreshold", "30", "x"},
		{"traffic.sidecar.istio.io/includeOutboundIPRanges", "10.0.0.0/8, fd00::/8", "10.0.0.0/33"},
		{"traffic.sidecar.istio.io/includeOutboundIPRanges", "*", "*,10.0.0.0/8"},
		{"traffic.sidecar.istio.io/excludeOutboundIPRanges", "", "*"},
		{"traffic.sidecar.istio.io/includeInboundPorts", "*", "80,-1"},
		{"traffic.sidecar.istio.io/excludeInboundPorts", "80, 81", "http"},
		{"traffic.sidecar.istio.io/includeOutboundPorts", "5432", "5432;"},
		{"traffic.sidecar.istio.io/includeOutboundPorts", "5432,6379", "*"},
		{"traffic.sidecar.istio.io/excludeOutboundPorts", "5432", "70000"},
		{"traffic.sidecar.istio.io/excludeInterfaces", "eth1,net0", "a name far too long"},
		{"traffic.sidecar.istio.io/kubevirtInterfaces", "eth1", "eth 1"},
		{"traffic.sidecar.istio.io/kubevirtInterfaces", "vnet0.1", "vnet*"},
		{"istio.io/reroute-virtual-interfaces", "eth1", "../x"},
		{"sidecar.istio.io/proxyCPU", "100m", "fast"},
		{"sidecar.istio.io/proxyMemoryLimit", "1Gi", "1 GB"},
		{"sidecar.istio.io/userVolume", `{"v":{"emptyDir":{}}}`, `[]`},
		{"sidecar.istio.io/logLevel", "debug", "debug\n- --x"},
		{"sidecar.istio.io/componentLogLevel", "misc:error,upstream:debug", "a #b"},
		{"proxy.istio.io/config", "concurrency: 2", "concurrency: two"},
		{"proxy.istio.io/config", "statusPort: 15029", "statusPort: 70000"},
		{"proxy.istio.io/config", "statusPort: 0", "statusPort: -1"},
	} {
		for value, bad := range map[string]bool{c.good: false, c.bad: true} {
			pod := &corev1.Pod{}
			pod.Name, pod.Namespace = "p", "app"
			pod.Annotations = map[string]string{c.key: value}
			patch, _, err := Patch(pod, params(t, Settings{}), Request{})
			if err == nil {
				checkInit(t, apply(t, pod, patch))
			}
			if (err != nil) != bad {
				t.Errorf("%s: %q: error %v", c.key, value, err)
			} else if bad && !strings.Contains(err.Error(), c.key) {
				t.Errorf("%s: error does not name the annotation: %v", c.key, err)
			}
		}
	}
}

// Root is nobody to let pass, or all that runs as root would: such a proxy is known by its group alone.
func TestProxyAsRoot(t *testing.T) {
	root := int64(0)
	pod := &corev1.Pod{}
	pod.Name, pod.Namespace = "p", "app"
	pod.Spec.Containers = []corev1.Container{{Name: "app", Image: "app"}, {Name: proxyName, Image: "auto", SecurityContext: &corev1.SecurityContext{RunAsUser: &root}}}
	patch, _, err := Patch(pod, params(t, Settings{}), Request{})
	if err != nil {
		t.Fatal(err)
	}
	out := apply(t, pod, patch)
	if args := strings.Join(find(out, initName).Args, " "); !strings.Contains(args, "-u 1337 ") {
		t.Errorf("istio-init %s", args)
	}
	if s := find(out, proxyName).SecurityContext; *s.RunAsUser != 0 || *s.RunAsGroup != 1337 {
		t.Errorf("istio-proxy runs as %d:%d", *s.RunAsUser, *s.RunAsGroup)
	}
}

func TestParseNamesEveryFault(t *testing.T) {
	_, err := Parse(Settings{MeshConfig: []byte("trustDomain: [1]"), Config: []byte("templates: {x: '{{'}\nalwaysInjectSelector: [{matchExpressions: [{key: a, operator: Near}]}]"), Values: []byte("[")})
	for _, part := range []string{"mesh config", "template x", "alwaysInjectSelector", "injector values"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in %v", part, err)
		}
	}
}

// A field that this version's Pod type does not know must survive, or a newer API server loses it.
func TestPatchTouchesOnlyItsOwn(t *testing.T) {
	pod := &corev1.Pod{}
	if err := yaml.Unmarshal([]byte("metadata: {name: p, namespace: app}\nspec: {containers: [{name: a, image: b}]}"), pod); err != nil {
		t.Fatal(err)
	}
	patch, _, err := Patch(pod, params(t, Settings{}), Request{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := jsonpatch.DecodePatch(patch)
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.Apply([]byte(`{"metadata":{"name":"p","namespace":"app"},"spec":{"fromTheFuture":1,"containers":[{"name":"a","image":"b","alsoNew":true,"resources":{}}]},"status":{}}`))
	if err != nil {
		t.Fatalf("%v in %s", err, patch)
	}
	if !strings.Contains(string(out), `"fromTheFuture":1`) || !strings.Contains(string(out), `"alsoNew":true`) {
		t.Errorf("unknown fields are gone: %s", out)
	}
}

func BenchmarkPatch(b *testing.B) {
	p := params(b, Settings{})
	pod := &corev1.Pod{}
	pod.Name, pod.Namespace = "p", "app"
	pod.Spec.Containers = []corev1.Container{{Name: "app", Image: "app", Ports: []corev1.ContainerPort{{ContainerPort: 8080}}}}
	for b.Loop() {
		if _, _, err := Patch(pod, p, Request{}); err != nil {
			b.Fatal(err)
		}
	}
}
