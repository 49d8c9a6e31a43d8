package inject

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"istio.io/api/annotation"
	meshconfig "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// said gives an example for each annotation that has an effect, on the pod of plainPod in a mesh of plainSettings.
var said = map[string]string{
	"inject.istio.io/templates":                             "sidecar,other",
	"istio.io/reroute-virtual-interfaces":                   "vnet0",
	"prometheus.istio.io/merge-metrics":                     "false",
	"proxy.istio.io/config":                                 "concurrency: 3",
	"readiness.status.sidecar.istio.io/failureThreshold":    "7",
	"readiness.status.sidecar.istio.io/initialDelaySeconds": "7",
	"readiness.status.sidecar.istio.io/periodSeconds":       "7",
	"sidecar.istio.io/agentLogLevel":                        "debug",
	"sidecar.istio.io/bootstrapOverride":                    "my-bootstrap",
	"sidecar.istio.io/capNetBindService":                    "true",
	"sidecar.istio.io/componentLogLevel":                    "upstream:debug",
	"sidecar.istio.io/discoveryAddress":                     "elsewhere.example:15012",
	"sidecar.istio.io/inject":                               "false",
	"sidecar.istio.io/interceptionMode":                     "NONE",
	"sidecar.istio.io/logLevel":                             "debug",
	"sidecar.istio.io/nativeSidecar":                        "false",
	"sidecar.istio.io/proxyCPU":                             "7m",
	"sidecar.istio.io/proxyCPULimit":                        "7m",
	"sidecar.istio.io/proxyImage":                           "registry.example/proxy:2",
	"sidecar.istio.io/proxyImageType":                       "distroless",
	"sidecar.istio.io/proxyMemory":                          "7Mi",
	"sidecar.istio.io/proxyMemoryLimit":                     "7Mi",
	"sidecar.istio.io/rewriteAppHTTPProbers":                "false",
	"sidecar.istio.io/userVolume":                           `{"v":{"emptyDir":{}}}`,
	"sidecar.istio.io/userVolumeMount":                      `{"v":{"mountPath":"/v"}}`,
	"status.sidecar.istio.io/port":                          "15029",
	"traffic.sidecar.istio.io/excludeInboundPorts":          "7",
	"traffic.sidecar.istio.io/excludeInterfaces":            "eth7",
	"traffic.sidecar.istio.io/excludeOutboundIPRanges":      "10.7.0.0/16",
	"traffic.sidecar.istio.io/excludeOutboundPorts":         "7",
	"traffic.sidecar.istio.io/includeInboundPorts":          "7",
	"traffic.sidecar.istio.io/includeOutboundIPRanges":      "10.7.0.0/16",
	"traffic.sidecar.istio.io/includeOutboundPorts":         "7",
	"traffic.sidecar.istio.io/kubevirtInterfaces":           "vnet0",
}

func plainPod(t *testing.T, key, value string) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{}
	if err := yaml.Unmarshal([]byte(`{metadata: {name: p, namespace: app, annotations: {}}, spec: {containers: [{name: a, image: b, livenessProbe: {tcpSocket: {port: 80}}}]}}`), pod); err != nil {
		t.Fatal(err)
	}
	if key != "" {
		pod.Annotations[key] = value
	}
	return pod
}

// Of all annotations that Istio has for pods each has an effect that can be seen in the pod, is written by injection itself, or
// is warned of. Annotations of other kinds are none of the injector's.
func TestAnnotationsAreIstios(t *testing.T) {
	p := params(t, Settings{
		Config: []byte("templates: {other: '{metadata: {labels: {other: template}}}'}"),
		Values: []byte(`{"global":{"hub":"registry.example","tag":"1","proxy":{"image":"proxyv2"}}}`),
	})
	// effect is the injected pod without the annotation itself.
	effect := func(pod *corev1.Pod, key string) (string, []string) {
		t.Helper()
		if reason := Skip(pod, p); reason != "" {
			return reason, nil
		}
		patch, warnings, err := Patch(pod, p, Request{})
		if err != nil {
			t.Fatalf("%s: %v", key, err)
		}
		out := apply(t, pod, patch)
		delete(out.Annotations, key)
		b, err := yaml.Marshal(out)
		if err != nil {
			t.Fatal(err)
		}
		return string(b), warnings
	}
	without, warnings := effect(plainPod(t, "", ""), "")
	if len(warnings) > 0 {
		t.Errorf("warned of nothing: %q", warnings)
	}
	written := []string{statusAnnotation, overridesAnnotation, revisionAnnotation}
	for _, a := range annotation.AllResourceAnnotations() {
		h, known := annotations[a.Name]
		forPods := slices.Contains(a.Resources, annotation.Pod)
		value, acted := said[a.Name]
		switch {
		case !forPods:
			if known {
				t.Errorf("%s is no annotation of pods", a.Name)
			}
		case !known:
			t.Errorf("%s is new: have it done, or warned of with the reason", a.Name)
		case h.ignoredAs != "":
			with, warnings := effect(plainPod(t, a.Name, "x"), a.Name)
			if want := fmt.Sprintf("heddle: annotation %s has no effect: %s", a.Name, h.ignoredAs); with != without || !slices.Equal(warnings, []string{want}) {
				t.Errorf("%s has an effect, or is not warned of: %q", a.Name, warnings)
			}
		case acted:
			if with, warnings := effect(plainPod(t, a.Name, value), a.Name); with == without || len(warnings) > 0 {
				t.Errorf("%s: %s has no effect (warnings %q)", a.Name, value, warnings)
			}
		case !slices.Contains(written, a.Name):
			t.Errorf("%s: want an example", a.Name)
		}
	}
}

// Each field of ProxyConfig is acted on or warned of, under both of its names, and so is one that does not exist.
func TestProxyConfigFieldsAreKnownOrWarnedOf(t *testing.T) {
	p := params(t, Settings{})
	fields := (&meshconfig.ProxyConfig{}).ProtoReflect().Descriptor().Fields()
	left := map[protoreflect.Name]bool{}
	for _, f := range proxyConfigFields {
		left[f] = true
	}
	for i := range fields.Len() {
		f := fields.Get(i)
		delete(left, f.Name())
		for _, name := range []string{f.JSONName(), f.TextName()} {
			got := p.ignoredConfig(name + ": null")
			if acted := slices.Contains(proxyConfigFields, f.Name()); acted != (len(got) == 0) || !acted && !strings.Contains(got[0], name) {
				t.Errorf("%s: %q", name, got)
			}
		}
	}
	if len(left) > 0 {
		t.Errorf("no fields: %v", slices.Collect(maps.Keys(left)))
	}
	for config, want := range map[string]string{
		"concurency: 2": "concurency has no effect: there is no such field",
		"proxyMetadata: {ISTIO_META_DNS_CAPTURE: 'true', ISTIO_META_DNS_AUTO_ALLOCATE: 'false'}": "ISTIO_META_DNS_CAPTURE has no effect",
		"proxyMetadata: {ISTIO_META_DNS_CAPTURE: 'false', OTHER: 'true'}":                        "",
	} {
		if got := strings.Join(p.ignoredConfig(config), "\n"); want == "" && got != "" || !strings.Contains(got, want) || strings.Contains(got, "\n") {
			t.Errorf("%s: %q, want %q", config, got, want)
		}
	}
}

// What is said to have no effect tells nobody else that it has one: who reads the label would speak HBONE to the pod.
func TestIgnoredMetadataMarksNothing(t *testing.T) {
	p := params(t, Settings{})
	labels := func(config string) map[string]string {
		pod := plainPod(t, proxyConfigAnnotation, config)
		patch, _, err := Patch(pod, p, Request{})
		if err != nil {
			t.Fatal(err)
		}
		return apply(t, pod, patch).Labels
	}
	without := labels("{}")
	for k := range proxyMetadataIgnored {
		if got := labels("proxyMetadata: {" + k + ": 'true'}"); !maps.Equal(got, without) {
			t.Errorf("%s: labels %v, want %v", k, got, without)
		}
	}
}

// A port is one number and nothing beside it: the agent, which reads it in the end, would not start for more.
func TestPortIsOneNumber(t *testing.T) {
	p := params(t, Settings{})
	for port, good := range map[string]bool{"9090": true, "9090,": false, ",9090": false, " 9090": false, "90,91": false, "x": false, "65536": false} {
		pod := plainPod(t, portAnnotation, port)
		patch, warnings, err := Patch(pod, p, Request{})
		if err != nil {
			t.Fatal(err)
		}
		if has := strings.Contains(string(patch), "ISTIO_PROMETHEUS_ANNOTATIONS"); has != good || (len(warnings) == 0) != good {
			t.Errorf("%s %q: merged %v, warnings %q", portAnnotation, port, has, warnings)
		}
		if _, _, err := Patch(plainPod(t, "status.sidecar.istio.io/port", port), p, Request{}); (err == nil) != good {
			t.Errorf("status port %q: %v", port, err)
		}
	}
}

// Where the agent has no port to be scraped on, scrapers go where the pod says; that it drains is asked of it all the same.
func TestNoStatusPort(t *testing.T) {
	pod := plainPod(t, "status.sidecar.istio.io/port", "0")
	maps.Copy(pod.Annotations, map[string]string{scrapeAnnotation: "true", portAnnotation: "9090"})
	patch, _, err := Patch(pod, params(t, Settings{}), Request{})
	if err != nil {
		t.Fatal(err)
	}
	out := apply(t, pod, patch)
	if got := out.Annotations[portAnnotation]; got != "9090" || strings.Contains(string(patch), "ISTIO_PROMETHEUS_ANNOTATIONS") {
		t.Errorf("%s is %q", portAnnotation, got)
	}
	// The agent, told of no port, has its own.
	if stop := find(out, proxyName).Lifecycle.PreStop.Exec.Command; !slices.Contains(stop, "--debug-port=15020") {
		t.Errorf("preStop is %q", stop)
	}
}

// Where the control plane is said to be is an address that the agent takes, whoever says it.
func TestDiscoveryAddressHasAPort(t *testing.T) {
	p := params(t, Settings{})
	for address, good := range map[string]bool{"istiod.x.svc:15012": true, "[fd00::1]:15012": true, "istiod.x.svc": false, "fd00::1": false} {
		for _, pod := range []*corev1.Pod{
			plainPod(t, "sidecar.istio.io/discoveryAddress", address), plainPod(t, proxyConfigAnnotation, "discoveryAddress: '"+address+"'"),
		} {
			if _, _, err := Patch(pod, p, Request{}); (err == nil) != good || err != nil && !strings.Contains(err.Error(), "iscoveryAddress") {
				t.Errorf("%v: %v", pod.Annotations, err)
			}
		}
	}
}

// What a pod may say of its redirection is refused in the mesh's values for the same reasons, but for a pod with its own.
func TestValuesForIstioInit(t *testing.T) {
	for _, c := range []struct{ key, annotation, good, bad string }{
		{"includeIPRanges", "includeOutboundIPRanges", `"10.0.0.0/8,fd00::/8"`, `"10.0.0.0/33"`},
		{"excludeIPRanges", "excludeOutboundIPRanges", `"10.0.0.1"`, `"*"`},
		{"includeInboundPorts", "includeInboundPorts", `80`, `[80,443]`},
		{"excludeInboundPorts", "excludeInboundPorts", `"80, 81,"`, `"80 81"`},
		{"includeOutboundPorts", "includeOutboundPorts", `"5432"`, `"postgres"`},
		{"excludeOutboundPorts", "excludeOutboundPorts", `""`, `65536`},
	} {
		for value, bad := range map[string]bool{c.good: false, c.bad: true} {
			p := params(t, Settings{Values: []byte(`{"global":{"proxy":{"image":"p/p:1","` + c.key + `":` + value + `}}}`)})
			_, _, err := Patch(plainPod(t, "", ""), p, Request{})
			if (err != nil) != bad || bad && !strings.Contains(err.Error(), "values.global.proxy."+c.key+" of mesh ") {
				t.Errorf("%s: %s: %v", c.key, value, err)
			}
			if _, _, err := Patch(plainPod(t, "traffic.sidecar.istio.io/"+c.annotation, ""), p, Request{}); err != nil {
				t.Errorf("%s: %s is the pod's own: %v", c.key, value, err)
			}
		}
	}
}
