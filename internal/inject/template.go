package inject

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig/v3"
	"google.golang.org/protobuf/proto"
	meshconfig "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// templateData is what a template sees. The names up to CompliancePolicy are Istio's, so that users' templates work.
type templateData struct {
	TypeMeta                 metav1.TypeMeta
	DeploymentMeta           metav1.ObjectMeta // the workload's: name and namespace
	ObjectMeta               metav1.ObjectMeta // the pod's
	Spec                     corev1.PodSpec    // the pod's, without our containers
	ProxyConfig              *meshconfig.ProxyConfig
	MeshConfig               *meshconfig.MeshConfig
	Values                   map[string]any
	Revision                 string
	NativeSidecars           bool
	ProxyImage               string
	ProxyInitImage           string
	ProxyUID                 int64
	ProxyGID                 int64
	InboundTrafficPolicyMode string
	CompliancePolicy         string

	Audience       string // whom the projected token is for
	CAAddress      string
	Cluster        string
	Network        string
	MeshID         string
	Hold           bool   // the application waits for the proxy
	Owner          string // kubernetes://… of the workload
	PodPorts       string // JSON list of the application's container ports
	AppContainers  string // comma list
	ProxyConfigEnv string // the effective ProxyConfig without its defaults, JSON
	PathEnv        map[string]string
	Resources      any // of our containers
}

// data gathers what templates see. pod holds the application only.
func (p *Params) data(pod *corev1.Pod, env map[string]string) (*templateData, error) {
	c, err := p.proxyConfig(pod.Annotations[proxyConfigAnnotation])
	if err != nil {
		return nil, err
	}
	mode := c.GetInterceptionMode().String()
	if v, ok := pod.Annotations["sidecar.istio.io/interceptionMode"]; ok {
		mode = v
	}
	if mode == "TPROXY" {
		return nil, fmt.Errorf("interception mode TPROXY is not supported yet: use REDIRECT")
	}
	c.InterceptionMode = meshconfig.ProxyConfig_InboundInterceptionMode(meshconfig.ProxyConfig_InboundInterceptionMode_value[mode])
	if v, ok := pod.Annotations["status.sidecar.istio.io/port"]; ok {
		n, _ := strconv.ParseUint(v, 10, 16) // checkAnnotations has seen it
		c.StatusPort = int32(n)
	}
	if n := c.GetStatusPort(); n < 0 || n > math.MaxUint16 {
		return nil, fmt.Errorf("statusPort of annotation %s, or of the mesh's defaultConfig: %d is not a port number (0 to 65535)", proxyConfigAnnotation, n)
	}
	if v := pod.Annotations["sidecar.istio.io/discoveryAddress"]; v != "" {
		c.DiscoveryAddress = v
	}
	if _, _, err := net.SplitHostPort(c.GetDiscoveryAddress()); err != nil { // the agent would not start
		return nil, fmt.Errorf("discoveryAddress of annotation %s, or of the mesh's defaultConfig, or annotation sidecar.istio.io/discoveryAddress: %q is not HOST:PORT", proxyConfigAnnotation, c.GetDiscoveryAddress())
	}
	d := &templateData{
		TypeMeta: pod.TypeMeta, DeploymentMeta: workload(pod), ObjectMeta: pod.ObjectMeta, Spec: pod.Spec,
		ProxyConfig: c, MeshConfig: p.mesh, Values: p.values, Revision: p.Revision,
		ProxyImage: p.image("proxy", first(pod.Annotations["sidecar.istio.io/proxyImageType"], c.GetImage().GetImageType())), ProxyInitImage: p.image("proxy_init", ""),
		ProxyUID: proxyID, ProxyGID: proxyID,
		InboundTrafficPolicyMode: p.mesh.GetInboundTrafficPolicy().GetMode().String(),
		CompliancePolicy:         p.str("pilot", "env", "COMPLIANCE_POLICY"),
		NativeSidecars:           !strings.EqualFold(fmt.Sprint(lookup(p.values, "pilot", "env", "ENABLE_NATIVE_SIDECARS")), "false"),
		Audience:                 p.Audience(), CAAddress: p.str("global", "caAddress"),
		Cluster:   first(env["ISTIO_META_CLUSTER_ID"], p.str("global", "multiCluster", "clusterName"), "Kubernetes"),
		Network:   first(pod.Labels[networkLabel], env["ISTIO_META_NETWORK"], p.str("global", "network")),
		MeshID:    first(c.GetMeshId(), p.str("global", "meshID"), p.mesh.GetTrustDomain(), mesh.DefaultTrustDomain),
		Hold:      c.GetHoldApplicationUntilProxyStarts().GetValue() || c.HoldApplicationUntilProxyStarts == nil && p.bool("global", "proxy", "holdApplicationUntilProxyStarts"),
		PathEnv:   maps.Clone(env),
		Resources: p.resources(pod),
	}
	delete(d.PathEnv, "ISTIO_META_CLUSTER_ID")
	delete(d.PathEnv, "ISTIO_META_NETWORK")
	if v, err := strconv.ParseBool(pod.Annotations["sidecar.istio.io/nativeSidecar"]); err == nil {
		d.NativeSidecars = v
	}
	if d.ProxyInitImage == "" {
		d.ProxyInitImage = d.ProxyImage
	}
	if v := pod.Annotations["sidecar.istio.io/proxyImage"]; v != "" {
		d.ProxyImage = v
	}
	if d.ProxyImage == "" {
		return nil, fmt.Errorf("no proxy image: values.global.proxy.image of mesh %s is empty", p.Mesh)
	}
	if d.CAAddress == "" {
		d.CAAddress = p.service() + ":15012"
	}
	d.Owner, err = owner(pod, d.DeploymentMeta)
	if err != nil {
		return nil, err
	}
	if d.PodPorts, d.AppContainers, err = application(pod); err != nil {
		return nil, err
	}
	d.ProxyConfigEnv, err = p.sparse(c)
	return d, err
}

// resources are the mesh's, or what the pod's annotations say of them: all of it, as in Istio.
func (p *Params) resources(pod *corev1.Pod) any {
	own := map[string]map[string]string{}
	for key, to := range map[string][2]string{
		"proxyCPU": {"requests", "cpu"}, "proxyMemory": {"requests", "memory"}, "proxyCPULimit": {"limits", "cpu"}, "proxyMemoryLimit": {"limits", "memory"},
	} {
		if v := pod.Annotations["sidecar.istio.io/"+key]; v != "" {
			if own[to[0]] == nil {
				own[to[0]] = map[string]string{}
			}
			own[to[0]][to[1]] = v
		}
	}
	if len(own) > 0 {
		return own
	}
	return lookup(p.values, "global", "proxy", "resources")
}

// image is a full reference, or a name that global.hub and global.tag complete as in Istio.
func (p *Params) image(key, variant string) string {
	name := p.str("global", key, "image")
	if name == "" || isReference(name) {
		return name
	}
	tag := fmt.Sprint(lookup(p.values, "global", "tag"))
	if v := first(variant, p.str("global", "variant")); v != "" && v != "default" {
		tag += "-" + v
	}
	return p.str("global", "hub") + "/" + name + ":" + tag
}

func isReference(image string) bool { return strings.ContainsAny(image, "/:@") }

func first(s ...string) string {
	for _, v := range s {
		if v != "" {
			return v
		}
	}
	return ""
}

// workload names what created the pod, as its proxy reports it: the Deployment above a ReplicaSet, the CronJob above a Job,
// which labels and generated names tell without a look-up.
func workload(pod *corev1.Pod) metav1.ObjectMeta {
	m := metav1.ObjectMeta{Namespace: pod.Namespace, Name: first(pod.Name, strings.TrimRight(pod.GenerateName, "-"))}
	if c := metav1.GetControllerOf(pod); c != nil {
		_, m.Name, _ = controller(pod, *c)
	}
	return m
}

// cronJobRun is what a CronJob names a Job: minutes since the epoch at its end, seconds before Kubernetes 1.21.
var cronJobRun = regexp.MustCompile(`^(.+)-\d{8,10}$`)

// controller returns whom users know above the pod's controller. Versions are those that Istio reports.
func controller(pod *corev1.Pod, ref metav1.OwnerReference) (kind, name, apiVersion string) {
	byHash := func(label string) (name string, ok bool) {
		if hash := pod.Labels[label]; hash != "" {
			name, ok = strings.CutSuffix(ref.Name, "-"+hash)
		}
		return name, ok && name != ""
	}
	switch ref.Kind {
	case "ReplicaSet":
		if name, ok := byHash("pod-template-hash"); ok {
			return "Deployment", name, "apps/v1"
		}
		if name, ok := byHash("rollouts-pod-template-hash"); ok {
			return "Rollout", name, "v1alpha1" // of Argo
		}
	case "ReplicationController":
		if name := pod.Labels["deploymentconfig"]; name != "" {
			return "DeploymentConfig", name, ref.APIVersion // of OpenShift
		}
	case "Job":
		if m := cronJobRun.FindStringSubmatch(ref.Name); m != nil {
			return "CronJob", m[1], "batch/v1"
		}
	}
	return ref.Kind, ref.Name, ref.APIVersion
}

func owner(pod *corev1.Pod, w metav1.ObjectMeta) (string, error) {
	kind, name, version := "Pod", w.Name, "v1"
	if c := metav1.GetControllerOf(pod); c != nil {
		kind, name, version = controller(pod, *c)
	}
	if name == "" {
		return "", fmt.Errorf("pod has neither name nor generateName")
	}
	return fmt.Sprintf("kubernetes://apis/%s/namespaces/%s/%ss/%s", version, w.Namespace, strings.ToLower(kind), name), nil
}

func application(pod *corev1.Pod) (ports, containers string, err error) {
	list, names := []corev1.ContainerPort{}, []string{}
	for _, c := range pod.Spec.Containers {
		list = append(list, c.Ports...)
		names = append(names, c.Name)
	}
	j, err := json.Marshal(list)
	return string(j), strings.Join(names, ","), err
}

// render evaluates the templates that the pod names, or the default ones, in order.
func (p *Params) render(pod *corev1.Pod, d *templateData) ([]*corev1.Pod, error) {
	names := p.config.DefaultTemplates
	if a, ok := pod.Annotations[templatesAnnotation]; ok {
		names = strings.Split(a, ",")
	}
	var out []*corev1.Pod
	for _, alias := range names {
		resolved, ok := p.config.Aliases[strings.TrimSpace(alias)]
		if !ok {
			resolved = []string{strings.TrimSpace(alias)}
		}
		for _, name := range resolved {
			t, ok := p.templates[name]
			if !ok {
				return nil, fmt.Errorf("annotation %s names template %q; there are %s", templatesAnnotation, name, strings.Join(slices.Sorted(maps.Keys(p.templates)), ", "))
			}
			var text bytes.Buffer
			if err := t.Execute(&text, d); err != nil {
				return nil, fmt.Errorf("template %s: %w", name, err)
			}
			o := &corev1.Pod{}
			if err := decodeYAML(text.Bytes(), o); err != nil {
				return nil, fmt.Errorf("template %s: %w", name, err)
			}
			out = append(out, o)
		}
	}
	return out, nil
}

// funcs are sprig's repeatable functions and those that Istio's templates know. env answers from values.pilot.env, which is
// the environment that Istio's own control plane would have.
func (p *Params) funcs() template.FuncMap {
	f := sprig.HermeticTxtFuncMap()
	maps.Copy(f, template.FuncMap{
		"annotation": func(m metav1.ObjectMeta, name string, fallback any) string {
			if v, ok := m.Annotations[name]; ok {
				return v
			}
			return fmt.Sprint(fallback)
		},
		"isset": func(m map[string]string, key string) bool { _, ok := m[key]; return ok },
		"valueOrDefault": func(v, fallback any) any {
			if v == nil || v == "" {
				return fallback
			}
			return v
		},
		"excludeInboundPort":  excludePort,
		"includeInboundPorts": func(c []corev1.Container) string { return includePorts(c) },
		"kubevirtInterfaces":  func(s string) string { return s },
		"toJSON":              toJSON,
		"toJsonMap":           func(m map[string]string) (string, error) { return toJSON(m) },
		"structToJSON":        toJSON,
		"protoToJSON":         func(m proto.Message) (string, error) { return protoJSON(m) },
		"fromJSON":            func(s string) (v any, err error) { err = json.Unmarshal([]byte(s), &v); return v, err },
		"toYaml": func(v any) (string, error) {
			b, err := yaml.Marshal(v)
			return strings.TrimSuffix(string(b), "\n"), err
		},
		"directory":           path.Dir,
		"contains":            func(s, part string) bool { return strings.Contains(s, part) },
		"toLower":             strings.ToLower,
		"appendMultusNetwork": appendNetwork,
		"env":                 func(key, fallback string) string { return first(p.str("pilot", "env", key), fallback) },
		"omit":                omit,
		"omitNil":             omitNil,
		"strdict":             strdict,
		"mergeMaps":           func(m ...map[string]string) map[string]string { return mergeMaps(m) },
		"otelResourceAttributes": func(m map[string]string) string {
			var kv []string
			for _, k := range slices.Sorted(maps.Keys(m)) {
				kv = append(kv, k+"="+m[k])
			}
			return strings.Join(kv, ",")
		},
	})
	return f
}

func toJSON(v any) (string, error) { b, err := json.Marshal(v); return string(b), err }

// excludePort adds a port to a comma list unless it is there or is 0.
func excludePort(port any, list string) string {
	p := strings.TrimSpace(fmt.Sprint(port))
	if p == "" || p == "0" || slices.Contains(strings.Split(list, ","), p) {
		return list
	}
	return strings.TrimPrefix(list+","+p, ",")
}

func includePorts(containers []corev1.Container) string {
	var ports []string
	for _, c := range containers {
		for _, p := range c.Ports {
			if p.Protocol == corev1.ProtocolTCP || p.Protocol == "" {
				ports = append(ports, strconv.Itoa(int(p.ContainerPort)))
			}
		}
	}
	return strings.Join(ports, ",")
}

func appendNetwork(existing, network string) string {
	switch {
	case existing == "":
		return network
	case strings.HasPrefix(strings.TrimSpace(existing), "["):
		var list []map[string]any
		if json.Unmarshal([]byte(existing), &list) != nil {
			return existing
		}
		if slices.ContainsFunc(list, func(m map[string]any) bool { return m["name"] == network }) {
			return existing
		}
		j, _ := json.Marshal(append(list, map[string]any{"name": network}))
		return string(j)
	case slices.Contains(strings.Split(existing, ","), network):
		return existing
	}
	return existing + ", " + network
}

func omit(m map[string]string, keys ...string) map[string]string {
	out := maps.Clone(m)
	for _, k := range keys {
		delete(out, k)
	}
	return out
}

func omitNil(m map[string]any) map[string]any {
	out := maps.Clone(m)
	maps.DeleteFunc(out, func(_ string, v any) bool { return v == nil })
	return out
}

func strdict(kv ...string) map[string]string {
	out := map[string]string{}
	for i := 0; i+1 < len(kv); i += 2 {
		out[kv[i]] = kv[i+1]
	}
	return out
}

func mergeMaps(ms []map[string]string) map[string]string {
	out := map[string]string{}
	for _, m := range ms {
		maps.Copy(out, m)
	}
	return out
}
