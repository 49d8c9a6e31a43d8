// Package inject decides whether a pod gets a sidecar and computes the patch that gives it one. Patch is pure; Handler is the
// webhook around it, and around judge, which knows what is wrong with Istio's objects.
package inject

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"gomodules.xyz/jsonpatch/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/yaml"
)

const (
	proxyName = "istio-proxy"
	initName  = "istio-init"
	proxyID   = 1337 // uid and gid of the proxy

	injectLabel         = "sidecar.istio.io/inject"
	statusAnnotation    = "sidecar.istio.io/status"
	overridesAnnotation = "proxy.istio.io/overrides"
	templatesAnnotation = "inject.istio.io/templates"
	networkLabel        = "topology.istio.io/network"
	revisionAnnotation  = "istio.io/rev"

	proxyConfigAnnotation = "proxy.istio.io/config"
)

// ignoredNamespaces hold what a cluster needs to heal itself; they are never injected, whatever their labels say.
var ignoredNamespaces = []string{metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease, "local-path-storage"}

// Skip returns why pod is to be left as it is, or "" if it is to be injected. It is the second check: the API server has
// already applied the selectors of the webhook. pod.Namespace must be set.
func Skip(pod *corev1.Pod, p *Params) string {
	if pod.Spec.HostNetwork {
		return "pod uses the host network"
	}
	if slices.Contains(ignoredNamespaces, pod.Namespace) {
		return "namespace " + pod.Namespace + " is never injected"
	}
	switch asked(pod) {
	case "true":
		return ""
	case "false":
		return injectLabel + " is false"
	}
	if matchesAny(p.never, pod.Labels) {
		return "neverInjectSelector matches"
	}
	if matchesAny(p.always, pod.Labels) || p.config.Policy == "enabled" || p.config.Policy == "" {
		return ""
	}
	return "injection policy is " + p.config.Policy + " and the pod does not ask for it"
}

// asked returns "true" or "false" as the pod's label, else its annotation, says; "" for anything else. These are the only two
// words, as in Istio since 1.27 and in the selectors of the webhooks: another counts as not said (unread tells of it).
func asked(pod *corev1.Pod) string {
	switch v := wish(pod); v {
	case "true", "false":
		return v
	}
	return ""
}

func wish(pod *corev1.Pod) string {
	if v, ok := pod.Labels[injectLabel]; ok {
		return v
	}
	return pod.Annotations[injectLabel]
}

func matchesAny(selectors []labels.Selector, l map[string]string) bool {
	return slices.ContainsFunc(selectors, func(s labels.Selector) bool { return s.Matches(labels.Set(l)) })
}

// Request is what comes with a pod.
type Request struct {
	Env   map[string]string // overrides that the webhook's path carries; nil for none
	Token string            // guards the pod's life cycle hooks: random, another for each pod, never logged
}

// Patch returns the JSON patch that injects the proxy into pod, "[]" if it holds everything already, and tells of what the pod
// asks for in vain. pod.Namespace must be set. An error is the user's: a bad annotation, an unknown template. Pods injected
// before, by us or with the user's own istio-proxy container, keep what they have: what stands in the pod is merged over the
// template.
func Patch(pod *corev1.Pod, p *Params, in Request) (patch []byte, warnings []string, err error) {
	if err := checkAnnotations(pod); err != nil {
		return nil, nil, err
	}
	if err := p.checkValues(pod); err != nil {
		return nil, nil, err
	}
	patch, err = p.patch(pod, in)
	return patch, p.ignored(pod), err
}

func (p *Params) patch(pod *corev1.Pod, in Request) ([]byte, error) {
	out := pod.DeepCopy()
	own := takeOverrides(out)
	data, err := p.data(out, in.Env)
	if err != nil {
		return nil, err
	}
	data.ProxyUID = own.proxyUser()
	if err := checkPorts(out); err != nil {
		return nil, err
	}
	overlays, err := p.render(out, data)
	if err != nil {
		return nil, err
	}
	st := status{Revision: p.Revision}
	for _, o := range overlays {
		if out, err = merge(out, o); err != nil {
			return nil, fmt.Errorf("merge template into pod: %w", err)
		}
		st.add(o)
	}
	if err := own.apply(out); err != nil {
		return nil, err
	}
	setMetadata(out, p, data)
	if err := rewriteProbes(out, p, data, in.Token); err != nil {
		return nil, err
	}
	mergePrometheus(out, p, data)
	order(out, data.Hold)
	if _, again := pod.Annotations[statusAnnotation]; !again {
		if err := own.save(out); err != nil {
			return nil, err
		}
	}
	if err := annotateJSON(out, statusAnnotation, st); err != nil {
		return nil, err
	}
	return diff(pod, out)
}

// status tells later readers, istioctl among them, what was injected.
type status struct {
	InitContainers   []string `json:"initContainers"`
	Containers       []string `json:"containers"`
	Volumes          []string `json:"volumes"`
	ImagePullSecrets []string `json:"imagePullSecrets"`
	Revision         string   `json:"revision"`
}

func (s *status) add(overlay *corev1.Pod) {
	note := func(list *[]string, name string) {
		if !slices.Contains(*list, name) {
			*list = append(*list, name)
		}
	}
	for _, c := range overlay.Spec.InitContainers {
		note(&s.InitContainers, c.Name)
	}
	for _, c := range overlay.Spec.Containers {
		note(&s.Containers, c.Name)
	}
	for _, v := range overlay.Spec.Volumes {
		note(&s.Volumes, v.Name)
	}
	for _, r := range overlay.Spec.ImagePullSecrets {
		note(&s.ImagePullSecrets, r.Name)
	}
}

// overrides are the pod's own containers named as ours: a user's wishes, or the result of an earlier injection.
type overrides struct {
	Containers     []corev1.Container `json:"containers,omitempty"`
	InitContainers []corev1.Container `json:"initContainers,omitempty"`
}

func ours(c corev1.Container) bool { return c.Name == proxyName || c.Name == initName }

// takeOverrides removes them from pod, so that templates see the application only.
func takeOverrides(pod *corev1.Pod) overrides {
	take := func(list *[]corev1.Container) (taken []corev1.Container) {
		for _, c := range *list {
			if ours(c) {
				taken = append(taken, c)
			}
		}
		*list = slices.DeleteFunc(*list, ours)
		return taken
	}
	return overrides{Containers: take(&pod.Spec.Containers), InitContainers: take(&pod.Spec.InitContainers)}
}

// proxyUser returns who the pod's own istio-proxy runs as, or who it does by itself. Root is not told apart from whatever else
// runs as root: its connections pass by the group.
func (o overrides) proxyUser() int64 {
	for _, c := range slices.Concat(o.InitContainers, o.Containers) {
		if s := c.SecurityContext; c.Name == proxyName && s != nil && s.RunAsUser != nil && *s.RunAsUser != 0 {
			return *s.RunAsUser
		}
	}
	return proxyID
}

// apply merges them over the containers of the same name, wherever the template placed these.
func (o overrides) apply(pod *corev1.Pod) error {
	for _, own := range slices.Concat(o.InitContainers, o.Containers) {
		if own.Image == "auto" { // stands for the template's image, as a pod without an image is refused before it reaches us
			own.Image = ""
		}
		c := find(pod, own.Name)
		if c == nil {
			continue // the template has none, e.g. interception mode NONE
		}
		merged, err := merge(c, &own)
		if err != nil {
			return fmt.Errorf("merge the pod's own container %s over the template: %w", own.Name, err)
		}
		*c = *merged
	}
	return nil
}

// save keeps what the user asked for, as tools show it.
func (o overrides) save(pod *corev1.Pod) error {
	if o.Containers == nil && o.InitContainers == nil {
		return nil
	}
	return annotateJSON(pod, overridesAnnotation, o)
}

func find(pod *corev1.Pod, name string) *corev1.Container {
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		if i := slices.IndexFunc(list, func(c corev1.Container) bool { return c.Name == name }); i >= 0 {
			return &list[i]
		}
	}
	return nil
}

// merge returns over strategically merged onto base.
func merge[T any](base, over *T) (*T, error) {
	b, err := json.Marshal(base)
	if err != nil {
		return nil, err
	}
	o, err := json.Marshal(over)
	if err != nil {
		return nil, err
	}
	if o, err = withoutNulls(o); err != nil {
		return nil, err
	}
	out := new(T)
	j, err := strategicpatch.StrategicMergePatch(b, o, out)
	if err != nil {
		return nil, err
	}
	return out, json.Unmarshal(j, out)
}

// withoutNulls drops what the Go types write for fields that are not set: to a strategic merge, null means delete.
func withoutNulls(j []byte) ([]byte, error) {
	var v any
	if err := json.Unmarshal(j, &v); err != nil {
		return nil, err
	}
	var strip func(any)
	strip = func(v any) {
		switch x := v.(type) {
		case map[string]any:
			maps.DeleteFunc(x, func(_ string, v any) bool { strip(v); return v == nil })
		case []any:
			for _, e := range x {
				strip(e)
			}
		}
	}
	strip(v)
	return json.Marshal(v)
}

// native reports whether istio-proxy serves the application's init containers, too.
func native(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == proxyName })
}

// order puts istio-init and a native istio-proxy before the application's init containers, whose traffic they carry. As an
// ordinary container istio-proxy comes first if the application is to wait for it, else last, and istio-init is the last of
// the init containers: those before it have no proxy, and need the network as it was.
func order(pod *corev1.Pod, hold bool) {
	rank := func(c corev1.Container, other int) int {
		switch c.Name {
		case initName:
			return 0
		case proxyName:
			return 1
		}
		return other
	}
	other := -1
	if native(pod) {
		other = 2
	}
	slices.SortStableFunc(pod.Spec.InitContainers, func(a, b corev1.Container) int { return rank(a, other) - rank(b, other) })
	other = 0
	if hold {
		other = 2
	}
	slices.SortStableFunc(pod.Spec.Containers, func(a, b corev1.Container) int { return rank(a, other) - rank(b, other) })
}

func setMetadata(pod *corev1.Pod, p *Params, d *templateData) {
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	keep(pod.Labels, map[string]string{
		networkLabel:                          d.Network,
		"security.istio.io/tlsMode":           "istio",
		"service.istio.io/canonical-name":     canonical(pod.Labels, d.DeploymentMeta.Name, "service.istio.io/canonical-name", "app.kubernetes.io/name", "app"),
		"service.istio.io/canonical-revision": canonical(pod.Labels, "latest", "service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"),
	})
	app := ""
	if len(d.Spec.Containers) > 0 {
		app = d.Spec.Containers[0].Name
	}
	keep(pod.Annotations, map[string]string{
		"kubectl.kubernetes.io/default-container":      app,
		"kubectl.kubernetes.io/default-logs-container": app,
	})
	keep(pod.Annotations, p.config.InjectedAnnotations)
	pod.Annotations[revisionAnnotation] = p.Revision
}

// keep adds what is missing and not empty.
func keep(into, defaults map[string]string) {
	for k, v := range defaults {
		if _, ok := into[k]; !ok && v != "" {
			into[k] = v
		}
	}
}

// canonical returns the first label that is set, cut to what a label value may hold.
func canonical(l map[string]string, fallback string, keys ...string) string {
	v := fallback
	for _, k := range keys {
		if l[k] != "" {
			v = l[k]
			break
		}
	}
	if len(v) > 63 {
		v = strings.TrimRight(v[:63], "-._")
	}
	return v
}

const (
	scrapeAnnotation = "prometheus.io/scrape"
	portAnnotation   = "prometheus.io/port"
	pathAnnotation   = "prometheus.io/path"
)

// mergePrometheus points scrapers at the agent, which adds the application's own metrics from where the pod said they are.
func mergePrometheus(pod *corev1.Pod, p *Params, d *templateData) {
	on := p.mesh.GetEnablePrometheusMerge() == nil || p.mesh.GetEnablePrometheusMerge().GetValue()
	if v, err := strconv.ParseBool(pod.Annotations["prometheus.istio.io/merge-metrics"]); err == nil {
		on = v
	}
	status := d.ProxyConfig.GetStatusPort()
	port := strconv.Itoa(int(status))
	a := pod.Annotations
	scrape, err := strconv.ParseBool(a[scrapeAnnotation])
	if unwanted := err == nil && !scrape; !on || unwanted || status == 0 || a[portAnnotation] == port {
		return
	}
	was := map[string]string{}
	for field, key := range map[string]string{"scrape": scrapeAnnotation, "port": portAnnotation, "path": pathAnnotation} {
		if a[key] != "" {
			was[field] = a[key]
		}
	}
	readable := was["port"] == "" || isPort(was["port"]) == nil // else ignored tells of it
	if c := find(pod, proxyName); c != nil && len(was) > 0 && readable {
		j, _ := json.Marshal(was) // a map of strings cannot fail
		setEnv(c, "ISTIO_PROMETHEUS_ANNOTATIONS", string(j))
	}
	maps.Copy(a, map[string]string{scrapeAnnotation: "true", portAnnotation: port, pathAnnotation: "/stats/prometheus"})
}

func setEnv(c *corev1.Container, name, value string) {
	e := corev1.EnvVar{Name: name, Value: value}
	if i := slices.IndexFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == name }); i >= 0 {
		c.Env[i] = e
		return
	}
	c.Env = append(c.Env, e)
}

func annotateJSON(pod *corev1.Pod, key string, v any) error {
	j, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode annotation %s: %w", key, err)
	}
	pod.Annotations[key] = string(j)
	return nil
}

// diff compares both in our encoding, so that fields which this version does not know are left alone.
func diff(was, is *corev1.Pod) ([]byte, error) {
	a, err := json.Marshal(was)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(is)
	if err != nil {
		return nil, err
	}
	ops, err := jsonpatch.CreatePatch(a, b)
	if err != nil {
		return nil, err
	}
	return json.Marshal(ops)
}

// decodeYAML reads YAML or JSON into v, unknown fields being errors: a template's misspelt field would be lost silently.
func decodeYAML(text []byte, v any) error {
	if len(bytes.TrimSpace(text)) == 0 {
		return nil
	}
	return yaml.UnmarshalStrict(text, v)
}
