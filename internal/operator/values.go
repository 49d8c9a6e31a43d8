package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	meshconfig "istio.io/api/mesh/v1alpha1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/controller-runtime/pkg/client"

	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// settings are the values that the operator itself acts on. They are read through the table chart: what is not acted on there
// stays empty here.
type settings struct {
	Profile    string `json:"profile"`
	Revision   string `json:"revision"`
	MeshConfig struct {
		DiscoverySelectors []metav1.LabelSelector `json:"discoverySelectors"`
		RootNamespace      string                 `json:"rootNamespace"`
		TrustDomain        string                 `json:"trustDomain"`
	} `json:"meshConfig"`
	Global struct {
		ConfigValidation *bool             `json:"configValidation"`
		ImagePullPolicy  corev1.PullPolicy `json:"imagePullPolicy"`
		ImagePullSecrets []string          `json:"imagePullSecrets"`
		MeshID           string            `json:"meshID"`
		Proxy            struct {
			AutoInject string         `json:"autoInject"`
			Image      string         `json:"image"`
			Lifecycle  map[string]any `json:"lifecycle"`
		} `json:"proxy"`
		MultiCluster struct {
			ClusterName string `json:"clusterName"`
		} `json:"multiCluster"`
		ProxyInit struct {
			Image string `json:"image"`
		} `json:"proxy_init"`
		SDS struct {
			Token struct {
				Aud string `json:"aud"`
			} `json:"token"`
		} `json:"sds"`
	} `json:"global"`
	Pilot struct {
		Env               map[string]any                                 `json:"env"`
		ReplicaCount      *int32                                         `json:"replicaCount"`
		AutoscaleEnabled  *bool                                          `json:"autoscaleEnabled"`
		AutoscaleMin      *int32                                         `json:"autoscaleMin"`
		AutoscaleMax      *int32                                         `json:"autoscaleMax"`
		AutoscaleBehavior *autoscalingv2.HorizontalPodAutoscalerBehavior `json:"autoscaleBehavior"`
		CPU               utilization                                    `json:"cpu"`
		Memory            utilization                                    `json:"memory"`
		Resources         *corev1.ResourceRequirements                   `json:"resources"`
		NodeSelector      map[string]string                              `json:"nodeSelector"`
		Tolerations       []corev1.Toleration                            `json:"tolerations"`
	} `json:"pilot"`
	SidecarInjectorWebhook struct {
		EnableNamespacesByDefault bool              `json:"enableNamespacesByDefault"`
		Templates                 map[string]string `json:"templates"`
	} `json:"sidecarInjectorWebhook"`
	IstiodRemote struct {
		InjectionPath string `json:"injectionPath"`
	} `json:"istiodRemote"`
}

type utilization struct {
	TargetAverageUtilization *int32 `json:"targetAverageUtilization"`
}

// platformOpenShift is a profile that is nothing but the platform of its name, which relies on a CNI plugin.
const platformOpenShift = "openshift"

// profiles of spec.profile and spec.values.profile that change nothing else here. The others want parts that this build does
// not have.
var profiles = []string{"", "default", "demo", "empty", platformOpenShift, "stable"}

// tree returns the values as a map that the caller may change.
func tree(v *sailv1.Values) (map[string]any, error) {
	out := map[string]any{}
	if v == nil || len(v.Raw) == 0 {
		return out, nil
	}
	if err := json.Unmarshal(v.Raw, &out); err != nil {
		return nil, fmt.Errorf("spec.values: %w", err)
	}
	return out, nil
}

// sub returns the map at key, made if it is absent or null.
func sub(m map[string]any, key string) map[string]any {
	s, ok := m[key].(map[string]any)
	if !ok {
		s = map[string]any{}
		m[key] = s
	}
	return s
}

// resolveValues is what an Istio's revision gets: the user's values with what Istio decides itself.
func resolveValues(istio *sailv1.Istio) (*sailv1.Values, error) {
	t, err := tree(istio.Spec.Values)
	if err != nil {
		return nil, err
	}
	if istio.Name == sailv1.DefaultName {
		delete(t, "revision")
	} else {
		t["revision"] = istio.Name
	}
	delete(t, "defaultRevision")
	global := sub(t, "global")
	global["istioNamespace"] = istio.Spec.Namespace
	if platform, _ := global["platform"].(string); istio.Spec.Profile == platformOpenShift && platform == "" {
		global["platform"] = platformOpenShift
	}
	dropEmpty(t)
	raw, err := json.Marshal(t)
	return &sailv1.Values{Raw: raw}, err
}

// dropEmpty takes maps without keys out of maps. Where one had a key before, server-side apply would leave null in its place, which
// the schema refuses; to charts they are the same as none. Lists are kept: an empty selector in one means something.
func dropEmpty(m map[string]any) {
	for k, v := range m {
		if s, ok := v.(map[string]any); ok {
			if dropEmpty(s); len(s) == 0 {
				delete(m, k)
			}
		}
	}
}

// parseValues reads the values that are acted on, as far as they can be read: a stored object with any other fault goes on.
// Only what could be a selector it minds: a mesh whose selectors cannot be read must not select everything. checkValues minds
// all of it.
func parseValues(v *sailv1.Values) (settings, error) {
	_, s, err := readValues(v)
	return s, err
}

// readValues is parseValues, and the tree of what it read.
func readValues(v *sailv1.Values) (map[string]any, settings, error) {
	t, err := tree(v)
	if err != nil {
		return nil, settings{}, err
	}
	if _, faults := discoverySelectors(t); len(faults) > 0 {
		return nil, settings{}, errors.Join(faults...)
	}
	t, _ = chart().sound(t).(map[string]any)
	var s settings
	j, err := json.Marshal(chart().read(t))
	if err == nil {
		err = json.Unmarshal(j, &s)
	}
	if err != nil {
		return nil, settings{}, fmt.Errorf("spec.values: %w", err)
	}
	for name := range meshFaults(t) { // of what the control plane reads; the settings are read
		delete(asMap(t["meshConfig"]), name)
	}
	return t, s, nil
}

// meshFaults are the fields of meshConfig that nobody can read, though no single value in them shows it, and why: they would stop
// the control plane.
func meshFaults(values map[string]any) map[string]error {
	out := map[string]error{}
	for name, v := range asMap(values["meshConfig"]) {
		j, err := json.Marshal(map[string]any{name: v})
		if err == nil {
			err = json.Unmarshal(j, &meshconfig.MeshConfig{}) // as Istio: durations are Go's
		}
		if err != nil {
			out[name] = fmt.Errorf("spec.values.meshConfig.%s: %w", name, err)
		}
	}
	return out
}

// discoverySelectors are those that can be read; the faults name what could be one and cannot, wherever it stands.
func discoverySelectors(values map[string]any) (out []mesh.Selector, faults []error) {
	const room, name, path = "meshConfig", "discoverySelectors", "spec.values.meshConfig.discoverySelectors"
	faults = chart().suspects("spec.values", values)
	fields, ok := values[room].(map[string]any)
	if !ok { // absent, or unreadable
		return nil, append(faults, chart().keys[room].faults("spec.values."+room, values[room])...)
	}
	k := chart().keys[room].keys[name]
	list, ok := fields[name].([]any)
	if !ok {
		return nil, append(faults, k.faults(path, fields[name])...)
	}
	for i, item := range list {
		at := fmt.Sprintf("%s[%d]", path, i)
		wrong := k.each.faults(at, item)
		if l := asMap(item); len(asMap(l["matchLabels"])) == 0 && !filled(l["matchExpressions"]) {
			wrong = append(wrong, fmt.Errorf("%s has no requirement and would select every namespace: give it matchLabels or matchExpressions, "+
				"or leave %s out for a mesh of the whole cluster", at, name))
		}
		var l metav1.LabelSelector
		j, err := json.Marshal(item)
		if err == nil && len(wrong) == 0 {
			if err = json.Unmarshal(j, &l); err == nil {
				err = selectorOf(l).Validate()
			}
		}
		if err != nil {
			wrong = append(wrong, fmt.Errorf("%s: %w", at, err))
		}
		if len(wrong) == 0 {
			out = append(out, selectorOf(l))
		}
		faults = append(faults, wrong...)
	}
	return out, faults
}

func filled(v any) bool { l, _ := v.([]any); return len(l) > 0 }

// checkValues is parseValues for what a user wants next: its error also names, each with its path, what no supported version
// of Istio takes and what could not run.
func checkValues(v *sailv1.Values) (settings, error) {
	t, err := tree(v)
	if err != nil {
		return settings{}, err
	}
	faults := append(chart().faults("spec.values", t), envFaults(t)...)
	s, err := parseValues(v)
	if len(faults) == 0 { // else most of it is said already
		unread := meshFaults(t)
		for _, name := range slices.Sorted(maps.Keys(unread)) {
			faults = append(faults, unread[name])
		}
		faults = append(faults, err)
	}
	if err == nil {
		faults = append(faults, s.scalingFault())
	}
	return s, errors.Join(faults...)
}

// envFaults names variables of pilot.env that a pod cannot have, or that would be there twice.
func envFaults(values map[string]any) (out []error) {
	env := asMap(asMap(values["pilot"])["env"])
	fields, own := Plane{}.ownEnv()
	for _, e := range fields {
		own[e.Name] = ""
	}
	delete(own, clusterEnv)
	for _, name := range slices.Sorted(maps.Keys(env)) {
		if env[name] == nil {
			continue
		}
		if errs := validation.IsEnvVarName(name); len(errs) > 0 {
			out = append(out, fmt.Errorf("spec.values.pilot.env.%s cannot be a variable of a pod: %s", name, strings.Join(errs, ", ")))
		}
		if _, ours := own[name]; ours {
			out = append(out, fmt.Errorf("spec.values.pilot.env.%s is set by the operator itself and can be there once only; leave it out", name))
		}
	}
	return out
}

// scalingFault is why the API server would refuse the autoscaler.
func (s settings) scalingFault() error {
	if p := (Plane{settings: s}); p.autoscaled() {
		if least, most := p.bounds(); least > most {
			return fmt.Errorf("spec.values.pilot.autoscaleMin %d is more than autoscaleMax %d (5 unless you set it)", least, most)
		}
	}
	return nil
}

// unusedValues names, sorted, the values that are set and have no effect: no part of Heddle acts on them, or another value
// decides, which follows in parentheses.
func unusedValues(istio *sailv1.Istio) []string {
	t, err := tree(istio.Spec.Values)
	s, serr := parseValues(istio.Spec.Values)
	if errors.Join(err, serr) != nil {
		return nil // the caller has already reported it
	}
	out := slices.DeleteFunc(chart().unused("", t), func(path string) bool {
		// A template of the user's own may read whatever it names.
		name := path[strings.LastIndexByte(path, '.')+1:]
		for _, text := range s.SidecarInjectorWebhook.Templates {
			if strings.Contains(text, name) {
				return true
			}
		}
		return false
	})
	overruled := func(set bool, path, why string) {
		if set {
			out = append(out, path+" ("+why+")")
		}
	}
	p, pilot := Plane{settings: s}, s.Pilot
	overruled(pilot.ReplicaCount != nil && p.replicas() == nil, "pilot.replicaCount", "without pilot.autoscaleEnabled: false")
	if !p.autoscaled() {
		const why = "without pilot.autoscaleEnabled or bounds for it"
		overruled(pilot.AutoscaleMin != nil, "pilot.autoscaleMin", why)
		overruled(pilot.AutoscaleMax != nil, "pilot.autoscaleMax", why)
		overruled(pilot.AutoscaleBehavior != nil, "pilot.autoscaleBehavior", why)
		overruled(pilot.CPU.TargetAverageUtilization != nil, "pilot.cpu.targetAverageUtilization", why)
		overruled(pilot.Memory.TargetAverageUtilization != nil, "pilot.memory.targetAverageUtilization", why)
	}
	root, revision := s.MeshConfig.RootNamespace, s.Revision
	overruled(root != "" && root != istio.Spec.Namespace, "meshConfig.rootNamespace", "spec.namespace is the root namespace: "+istio.Spec.Namespace)
	overruled(revision != "" && revision != istio.Name, "revision", "a mesh's revision has its name: "+istio.Name)
	named := s.Global.MultiCluster.ClusterName
	overruled(named != "" && named != p.cluster(), "global.multiCluster.clusterName", "pilot.env.CLUSTER_ID decides: "+p.cluster())
	overruled(s.Global.Proxy.Image != "" && !strings.Contains(s.Global.Proxy.Image, "/"), "global.proxy.image", "not a whole reference: the build's own is taken")
	overruled(s.Global.ProxyInit.Image != "" && !strings.Contains(s.Global.ProxyInit.Image, "/"), "global.proxy_init.image", "not a whole reference: the build's own is taken")
	native := !strings.EqualFold(fmt.Sprint(pilot.Env["ENABLE_NATIVE_SIDECARS"]), "false")
	overruled(native && len(s.Global.Proxy.Lifecycle) > 0, "global.proxy.lifecycle", "only with pilot.env.ENABLE_NATIVE_SIDECARS: false")
	slices.Sort(out)
	return out
}

// MeshOf is what an Istio object claims by itself. No other fault of the values than one of the selectors makes a difference
// to that.
func MeshOf(istio *sailv1.Istio) mesh.Mesh {
	m := mesh.Mesh{ID: mesh.ID(istio.Name), System: istio.Spec.Namespace, Created: istio.CreationTimestamp.Time}
	t, err := tree(istio.Spec.Values)
	selectors, faults := discoverySelectors(t)
	if err := errors.Join(append(faults, err)...); err != nil {
		m.Fault = strings.ReplaceAll(err.Error(), "\n", "; ")
		return m
	}
	m.Selectors = selectors
	return m
}

// ClaimOf is what counts of an Istio object's claim beside others: MeshOf, with the last known selectors of a mesh whose own
// cannot be read: those of its revision, nil if there is none.
func ClaimOf(istio *sailv1.Istio, rev *sailv1.IstioRevision) mesh.Mesh {
	m := MeshOf(istio)
	if m.Fault == "" || rev == nil || !metav1.IsControlledBy(rev, istio) {
		return m
	}
	if t, err := tree(rev.Spec.Values); err == nil {
		var faults []error
		if m.Selectors, faults = discoverySelectors(t); len(m.Selectors)+len(faults) == 0 {
			m.Selectors = []mesh.Selector{{}} // it was known to have every namespace
		}
	}
	return m
}

// claimOf is ClaimOf with the revision that there is.
func claimOf(ctx context.Context, r client.Reader, istio *sailv1.Istio) (mesh.Mesh, error) {
	if m := MeshOf(istio); m.Fault == "" {
		return m, nil
	}
	rev := &sailv1.IstioRevision{}
	if err := r.Get(ctx, client.ObjectKey{Name: istio.Name}, rev); apierrors.IsNotFound(err) {
		rev = nil
	} else if err != nil {
		return mesh.Mesh{}, fmt.Errorf("read the last claim of mesh %s: %w", istio.Name, err)
	}
	return ClaimOf(istio, rev), nil
}

func selectorOf(l metav1.LabelSelector) mesh.Selector {
	var s mesh.Selector
	for _, k := range slices.Sorted(maps.Keys(l.MatchLabels)) {
		s = append(s, mesh.Requirement{Key: k, Op: mesh.In, Values: []string{l.MatchLabels[k]}})
	}
	for _, e := range l.MatchExpressions {
		s = append(s, mesh.Requirement{Key: e.Key, Op: mesh.Operator(e.Operator), Values: e.Values})
	}
	return s
}

// Plane is one control plane: all that its objects depend on.
type Plane struct {
	Mesh      mesh.ID
	Revision  string // "default" has Istio's names without a suffix
	Namespace string // the mesh's system namespace
	Version   string // of Istio's API: v1.30.3
	Heddle    string // this build's own version
	Images    Images

	values    map[string]any
	settings  settings
	selectors []mesh.Selector // none if the mesh has every namespace
}

// Images are the two images that everything runs from.
type Images struct {
	Heddle string // control plane and operator
	Proxy  string // sidecar and its init container
}

// NewPlane reads a revision; under InPlace it is named as its mesh.
func NewPlane(rev *sailv1.IstioRevision, images Images, version string) (Plane, error) {
	p := Plane{
		Mesh: mesh.ID(rev.Name), Revision: rev.Name, Namespace: rev.Spec.Namespace,
		Version: rev.Spec.Version, Heddle: version, Images: images,
	}
	t, s, err := readValues(rev.Spec.Values)
	if err != nil {
		return p, err
	}
	p.values, p.settings = t, s
	m := mesh.Mesh{}
	for _, l := range s.MeshConfig.DiscoverySelectors {
		m.Selectors = append(m.Selectors, selectorOf(l))
	}
	if !m.Everything() {
		p.selectors = m.Selectors
	}
	return p, nil
}

// suffix distinguishes the names of one revision's objects from another's.
func (p Plane) suffix() string {
	if p.Revision == sailv1.DefaultName {
		return ""
	}
	return "-" + p.Revision
}

// service is the name of Deployment, Service and ServiceAccount.
func (p Plane) service() string { return "istiod" + p.suffix() }

// host is the name that the control plane's serving certificate carries.
func (p Plane) host() string { return p.service() + "." + p.Namespace + ".svc" }

// outside is what names of cluster-scoped webhook configurations end with where the namespace is not Istio's own.
func (p Plane) outside() string {
	if p.Namespace == "istio-system" {
		return ""
	}
	return "-" + p.Namespace
}

func (p Plane) injectorName() string  { return "istio-sidecar-injector" + p.suffix() + p.outside() }
func (p Plane) validatorName() string { return "istio-validator" + p.suffix() + "-" + p.Namespace }

// fieldManager is the field manager of everything written for a mesh.
func fieldManager(id mesh.ID) string { return "heddle-operator/" + string(id) }
