package inject

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const probersEnv = "ISTIO_KUBE_APP_PROBERS"

// prober is a probe as the agent carries it out, with ports as numbers.
type prober struct {
	HTTPGet        *corev1.HTTPGetAction   `json:"httpGet,omitempty"`
	TCPSocket      *corev1.TCPSocketAction `json:"tcpSocket,omitempty"`
	GRPC           *corev1.GRPCAction      `json:"grpc,omitempty"`
	TimeoutSeconds int32                   `json:"timeoutSeconds,omitempty"`
}

// rewriteProbes sends the kubelet's probes to the agent, which repeats them inside the pod: the kubelet has no certificate
// and fails under STRICT.
func rewriteProbes(pod *corev1.Pod, p *Params, d *templateData, token string) error {
	on := p.bool("sidecarInjectorWebhook", "rewriteAppHTTPProbe")
	if v, err := strconv.ParseBool(pod.Annotations["sidecar.istio.io/rewriteAppHTTPProbers"]); err == nil {
		on = v
	}
	status := int(d.ProxyConfig.GetStatusPort())
	proxy := find(pod, proxyName)
	if !on || status == 0 || proxy == nil {
		return nil
	}
	probers := map[string]prober{}
	if i := slices.IndexFunc(proxy.Env, func(e corev1.EnvVar) bool { return e.Name == probersEnv }); i >= 0 {
		if err := json.Unmarshal([]byte(proxy.Env[i].Value), &probers); err != nil {
			return fmt.Errorf("env %s of container %s: %w", probersEnv, proxyName, err)
		}
	}
	r := rewriter{port: intstr.FromInt(status), probers: probers, token: token}
	lists := [][]corev1.Container{pod.Spec.Containers}
	if native(pod) { // else the agent starts after the init containers
		lists = append(lists, pod.Spec.InitContainers)
	}
	for _, list := range lists {
		for i := range list {
			if !ours(list[i]) {
				r.container(&list[i])
			}
		}
	}
	if len(probers) == 0 || r.err != nil {
		return r.err
	}
	j, err := json.Marshal(probers)
	if err != nil {
		return err
	}
	setEnv(proxy, probersEnv, string(j))
	return nil
}

type rewriter struct {
	port    intstr.IntOrString // the agent's
	probers map[string]prober  // by path
	token   string             // in the paths of hooks
	err     error              // the first
}

func (r *rewriter) container(c *corev1.Container) {
	for kind, probe := range map[string]*corev1.Probe{"livez": c.LivenessProbe, "readyz": c.ReadinessProbe, "startupz": c.StartupProbe} {
		if probe == nil {
			continue
		}
		h := &probe.ProbeHandler
		pr := prober{HTTPGet: h.HTTPGet, TCPSocket: h.TCPSocket, GRPC: h.GRPC, TimeoutSeconds: probe.TimeoutSeconds}
		if to := r.move(c, "/app-health/"+c.Name+"/"+kind, pr); to != nil {
			h.HTTPGet, h.TCPSocket, h.GRPC = to, nil, nil
		}
	}
	if c.Lifecycle == nil {
		return
	}
	for kind, h := range map[string]*corev1.LifecycleHandler{"prestopz": c.Lifecycle.PreStop, "poststartz": c.Lifecycle.PostStart} {
		if h != nil {
			r.hook(c, kind, h)
		}
	}
}

// hook moves a hook to a path that nobody can guess: the agent's port is open to all, and hooks act. The token stands within
// the segment of the container's name, whose letters exclude the dot, so that Istio's own agent takes the path as well.
func (r *rewriter) hook(c *corev1.Container, kind string, h *corev1.LifecycleHandler) {
	const hooks = "/app-lifecycle/"
	path := hooks + c.Name + "." + r.token + "/" + kind
	if get := h.HTTPGet; get != nil && get.Port == r.port {
		moved, ok := r.probers[get.Path]
		bare := hooks + c.Name + "/" + kind
		if ok && get.Path == bare { // by an injector that gave none
			delete(r.probers, bare)
			r.probers[path] = moved
			h.HTTPGet = &corev1.HTTPGetAction{Path: path, Port: r.port, Scheme: corev1.URISchemeHTTP}
		}
		if ok {
			return
		}
	}
	if to := r.move(c, path, prober{HTTPGet: h.HTTPGet, TCPSocket: h.TCPSocket}); to != nil {
		h.HTTPGet, h.TCPSocket = to, nil
	}
}

// move records the probe under path and returns what stands in its place; nil for a command, or a probe moved before.
func (r *rewriter) move(c *corev1.Container, path string, pr prober) *corev1.HTTPGetAction {
	switch {
	case pr.HTTPGet != nil:
		if pr.HTTPGet.Path == path && pr.HTTPGet.Port == r.port {
			return nil
		}
		pr.HTTPGet = pr.HTTPGet.DeepCopy()
		pr.HTTPGet.Port = r.resolve(c, pr.HTTPGet.Port)
	case pr.TCPSocket != nil:
		pr.TCPSocket = pr.TCPSocket.DeepCopy()
		pr.TCPSocket.Port = r.resolve(c, pr.TCPSocket.Port)
	case pr.GRPC == nil:
		return nil
	}
	r.probers[path] = pr
	return &corev1.HTTPGetAction{Path: path, Port: r.port, Scheme: corev1.URISchemeHTTP}
}

func (r *rewriter) resolve(c *corev1.Container, port intstr.IntOrString) intstr.IntOrString {
	if port.Type == intstr.Int {
		return port
	}
	for _, p := range c.Ports {
		if p.Name == port.StrVal {
			return intstr.FromInt32(p.ContainerPort)
		}
	}
	if r.err == nil {
		r.err = fmt.Errorf("a probe of container %s names port %q, which the container does not declare", c.Name, port.StrVal)
	}
	return port
}
