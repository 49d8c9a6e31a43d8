package operator

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	meshconfig "istio.io/api/mesh/v1alpha1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// settings are the values that the operator itself acts on.
type settings struct {
	Profile    string `json:"profile"`
	MeshConfig struct {
		DiscoverySelectors []metav1.LabelSelector `json:"discoverySelectors"`
		RootNamespace      string                 `json:"rootNamespace"`
		TrustDomain        string                 `json:"trustDomain"`
	} `json:"meshConfig"`
	Global struct {
		ConfigValidation *bool             `json:"configValidation"`
		ImagePullPolicy  corev1.PullPolicy `json:"imagePullPolicy"`
		ImagePullSecrets []string          `json:"imagePullSecrets"`
		MultiCluster     struct {
			ClusterName string `json:"clusterName"`
		} `json:"multiCluster"`
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
		EnableNamespacesByDefault bool `json:"enableNamespacesByDefault"`
	} `json:"sidecarInjectorWebhook"`
	IstiodRemote struct {
		InjectionPath string `json:"injectionPath"`
	} `json:"istiodRemote"`
}

type utilization struct {
	TargetAverageUtilization *int32 `json:"targetAverageUtilization"`
}

// acted are the values that some part of Heddle acts on; "*" stands for the rest of a path. What is not here is kept and
// named in the condition ValuesUsed.
var acted = []string{
	"profile", "revision", "defaultRevision",
	"meshConfig.discoverySelectors", "meshConfig.rootNamespace", "meshConfig.trustDomain", "meshConfig.trustDomainAliases",
	"meshConfig.accessLogFile", "meshConfig.accessLogEncoding", "meshConfig.outboundTrafficPolicy.mode", "meshConfig.enableAutoMtls",
	"meshConfig.protocolDetectionTimeout", "meshConfig.defaultServiceExportTo", "meshConfig.defaultDestinationRuleExportTo",
	"meshConfig.defaultConfig.*",
	"global.istioNamespace", "global.configValidation", "global.imagePullPolicy", "global.imagePullSecrets", "global.logAsJson",
	"global.logging.level", "global.meshID", "global.multiCluster.clusterName", "global.network", "global.pilotCertProvider",
	"global.proxy.*", "global.proxy_init.image", "global.sds.token.aud", "global.sts.servicePort",
	"pilot.env.*", "pilot.replicaCount", "pilot.autoscaleEnabled", "pilot.autoscaleMin", "pilot.autoscaleMax", "pilot.autoscaleBehavior",
	"pilot.cpu.targetAverageUtilization", "pilot.memory.targetAverageUtilization", "pilot.resources", "pilot.nodeSelector", "pilot.tolerations",
	"sidecarInjectorWebhook.*", "istiodRemote.injectionPath",
}

// profiles of spec.profile and spec.values.profile that change nothing here. The others want parts that this build does not have.
var profiles = []string{"", "default", "demo", "empty", "openshift", "stable"}

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
	sub(t, "global")["istioNamespace"] = istio.Spec.Namespace
	raw, err := json.Marshal(t)
	return &sailv1.Values{Raw: raw}, err
}

// parseValues reads the values that are acted on, and checks all of meshConfig.
func parseValues(v *sailv1.Values) (settings, error) {
	var s settings
	t, err := tree(v)
	if err != nil {
		return s, err
	}
	if v != nil && len(v.Raw) > 0 {
		if err := json.Unmarshal(v.Raw, &s); err != nil {
			return s, fmt.Errorf("spec.values: %w", err)
		}
	}
	// What pruning cannot know: a meshConfig that nobody can read would stop the control plane.
	if mc, ok := t["meshConfig"]; ok {
		raw, err := json.Marshal(mc)
		if err != nil {
			return s, fmt.Errorf("spec.values.meshConfig: %w", err)
		}
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, &meshconfig.MeshConfig{}); err != nil {
			return s, fmt.Errorf("spec.values.meshConfig: %w", err)
		}
	}
	return s, nil
}

// unusedValues names, sorted, the values that are set and have no effect: no part of Heddle acts on them, or another value
// decides, which follows in parentheses.
func unusedValues(istio *sailv1.Istio) []string {
	t, err := tree(istio.Spec.Values)
	s, serr := parseValues(istio.Spec.Values)
	if errors.Join(err, serr) != nil {
		return nil // the caller has already reported it
	}
	var out []string
	if s.Pilot.ReplicaCount != nil && (Plane{settings: s}).replicas() == nil {
		out = append(out, "pilot.replicaCount (without pilot.autoscaleEnabled: false)")
	}
	if root := s.MeshConfig.RootNamespace; root != "" && root != istio.Spec.Namespace {
		out = append(out, "meshConfig.rootNamespace (spec.namespace is the root namespace: "+istio.Spec.Namespace+")")
	}
	var walk func(path string, v any)
	walk = func(path string, v any) {
		if slices.ContainsFunc(acted, func(p string) bool {
			prefix, open := strings.CutSuffix(p, "*")
			return path == p || open && (strings.HasPrefix(path, prefix) || path+"." == prefix)
		}) {
			return
		}
		m, ok := v.(map[string]any)
		if !ok || len(m) == 0 {
			out = append(out, path)
			return
		}
		for k, v := range m {
			walk(strings.TrimPrefix(path+"."+k, "."), v)
		}
	}
	for k, v := range t {
		walk(k, v)
	}
	slices.Sort(out)
	return out
}

// MeshOf is what an Istio object claims; who judges claims reads them with it.
func MeshOf(istio *sailv1.Istio) mesh.Mesh {
	m := mesh.Mesh{ID: mesh.ID(istio.Name), System: istio.Spec.Namespace, Created: istio.CreationTimestamp.Time}
	s, err := parseValues(istio.Spec.Values)
	if err != nil {
		m.Fault = err.Error()
		return m
	}
	for _, l := range s.MeshConfig.DiscoverySelectors {
		m.Selectors = append(m.Selectors, selectorOf(l))
	}
	return m
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
	s, err := parseValues(rev.Spec.Values)
	t, terr := tree(rev.Spec.Values)
	if err := errors.Join(err, terr); err != nil {
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
