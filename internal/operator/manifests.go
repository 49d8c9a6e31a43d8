package operator

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

const (
	labelMesh     = "heddle.dev/mesh" // on every object that is written for a mesh
	labelRevision = "istio.io/rev"
	labelTag      = "istio.io/tag"

	annotationOnce = "heddle.dev/read-once"

	clusterEnv  = "CLUSTER_ID"      // of the operator's own variables the one that users set too: it names the cluster
	profilesEnv = "HEDDLE_PROFILES" // lets a control plane's profiles be taken; it reads it in the injector's ConfigMap, while it runs

	// The ClusterRoles that the operator may bind; see Bootstrap.
	roleMember  = "heddle-mesh-member"
	roleSystem  = "heddle-mesh-system"
	roleCluster = "heddle-mesh-cluster"

	proxyUser    = 1337  // who a mesh's processes run as
	operatorUser = 65532 // the former is kept for proxies, and istioctl analyze warns of others' pods
)

// Manifests are the namespaced objects of one control plane, in the order in which they are applied. They are a function
// of the plane alone.
func Manifests(p Plane) ([]client.Object, error) {
	configs, err := p.configMaps()
	if err != nil {
		return nil, err
	}
	out := []client.Object{
		&corev1.ServiceAccount{
			TypeMeta: typeMeta("v1", "ServiceAccount"), ObjectMeta: p.meta(p.service()),
			ImagePullSecrets: p.pullSecrets(),
		},
	}
	out = append(out, configs...)
	out = append(out, p.serviceObject(p.service(), nil), p.deployment())
	return append(out, p.scaling()...), nil
}

// reserved are the names of all that Manifests and the namespaced part of Bindings come to, whatever the values are, in the
// order in which they are removed: what runs first.
func (p Plane) reserved() (out []client.Object) {
	for _, of := range []struct {
		gvk   schema.GroupVersionKind
		names []string
	}{
		{appsv1.SchemeGroupVersion.WithKind("Deployment"), []string{p.service()}},
		{autoscalingv2.SchemeGroupVersion.WithKind("HorizontalPodAutoscaler"), []string{p.service()}},
		{policyv1.SchemeGroupVersion.WithKind("PodDisruptionBudget"), []string{p.service()}},
		{corev1.SchemeGroupVersion.WithKind("Service"), []string{p.service()}},
		{corev1.SchemeGroupVersion.WithKind("ServiceAccount"), []string{p.service()}},
		{corev1.SchemeGroupVersion.WithKind("ConfigMap"), []string{"istio" + p.suffix(), "istio-sidecar-injector" + p.suffix(), "values" + p.suffix()}},
		{rbacv1.SchemeGroupVersion.WithKind("RoleBinding"), []string{roleSystem}},
	} {
		for _, name := range of.names {
			o := metadataOf(of.gvk)
			o.Namespace, o.Name = p.Namespace, name
			out = append(out, o)
		}
	}
	return out
}

func typeMeta(apiVersion, kind string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: apiVersion, Kind: kind}
}

func (p Plane) meta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Namespace: p.Namespace, Labels: p.labels()}
}

func (p Plane) clusterMeta(name string) metav1.ObjectMeta {
	m := p.meta(name)
	m.Namespace = ""
	return m
}

func (p Plane) labels() map[string]string {
	return map[string]string{
		labelMesh:                      string(p.Mesh),
		labelRevision:                  p.Revision,
		"app":                          "istiod",
		"istio":                        p.kind(),
		"operator.istio.io/component":  "Pilot",
		"release":                      p.Revision + "-istiod",
		"app.kubernetes.io/name":       "istiod",
		"app.kubernetes.io/instance":   p.Revision + "-istiod",
		"app.kubernetes.io/part-of":    "istio",
		"app.kubernetes.io/version":    p.Version[1:],
		"app.kubernetes.io/managed-by": "heddle-operator",
		"install.operator.istio.io/owning-resource": "unknown",
	}
}

// kind is the value of the label istio, by which Istio tells an unrevisioned control plane.
func (p Plane) kind() string {
	if p.suffix() == "" {
		return "pilot"
	}
	return "istiod"
}

// selector is what tells this plane's pods from others'.
func (p Plane) selector() map[string]string {
	if p.suffix() == "" {
		return map[string]string{"app": "istiod", "istio": "pilot"}
	}
	return map[string]string{"app": "istiod", labelRevision: p.Revision}
}

func (p Plane) pullSecrets() []corev1.LocalObjectReference {
	var out []corev1.LocalObjectReference
	for _, name := range p.settings.Global.ImagePullSecrets {
		out = append(out, corev1.LocalObjectReference{Name: name})
	}
	return out
}

// cluster is the name that proxies give as CLUSTER_ID.
func (p Plane) cluster() string {
	if v, ok := p.settings.Pilot.Env[clusterEnv]; ok {
		return fmt.Sprint(v)
	}
	if n := p.settings.Global.MultiCluster.ClusterName; n != "" {
		return n
	}
	return "Kubernetes"
}

func (p Plane) configMaps() ([]client.Object, error) {
	object := func(name string, data map[string]string) client.Object {
		return &corev1.ConfigMap{TypeMeta: typeMeta("v1", "ConfigMap"), ObjectMeta: p.meta(name + p.suffix()), Data: data}
	}
	meshConfig := overlay(map[string]any{
		"trustDomain":   mesh.DefaultTrustDomain,
		"defaultConfig": map[string]any{"discoveryAddress": p.host() + ":15012"},
	}, asMap(p.values["meshConfig"]))
	meshConfig["rootNamespace"] = p.Namespace // the mesh's policies are where its control plane is, and nowhere else
	if id := p.settings.Global.MeshID; id != "" {
		meshConfig["defaultConfig"] = overlay(map[string]any{"meshId": id}, asMap(meshConfig["defaultConfig"]))
	}
	global := overlay(map[string]any{
		"istioNamespace": p.Namespace,
		"multiCluster":   map[string]any{"clusterName": p.cluster()},
		"proxy":          map[string]any{},
		"proxy_init":     map[string]any{},
	}, asMap(p.values["global"]))
	for _, k := range []string{"proxy", "proxy_init"} {
		proxy, ok := global[k].(map[string]any)
		// Istio's charts complete a bare name (proxyv2) with hub and tag; only a whole reference means another image.
		if image, _ := proxy["image"].(string); ok && !strings.Contains(image, "/") {
			global[k] = overlay(proxy, map[string]any{"image": p.Images.Proxy})
		}
	}
	webhook := asMap(p.values["sidecarInjectorWebhook"])
	injector := map[string]any{
		"global": global, "revision": p.Revision,
		"pilot": map[string]any{"env": p.env()},
		"sidecarInjectorWebhook": overlay(map[string]any{ // istioctl reads these as they are and panics without
			"alwaysInjectSelector": []any{}, "neverInjectSelector": []any{}, "injectedAnnotations": map[string]any{},
			"enableNamespacesByDefault": false, "reinvocationPolicy": "Never", "rewriteAppHTTPProbe": true,
			"defaultTemplates": []any{}, "templates": map[string]any{},
		}, webhook),
	}
	merged := overlay(p.values, map[string]any{"meshConfig": meshConfig, "global": global})

	meshYAML, err := yaml.Marshal(meshConfig)
	if err != nil {
		return nil, fmt.Errorf("write the mesh config: %w", err)
	}
	configYAML, err := yaml.Marshal(p.injection())
	if err != nil {
		return nil, fmt.Errorf("write the injector's config: %w", err)
	}
	var texts [3]string
	for i, v := range []any{injector, p.values, merged} {
		j, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return nil, fmt.Errorf("write the values: %w", err)
		}
		texts[i] = string(j)
	}
	return []client.Object{
		object("istio", map[string]string{"mesh": string(meshYAML), "meshNetworks": "networks: {}\n"}),
		object("istio-sidecar-injector", map[string]string{"config": string(configYAML), "values": texts[0]}),
		object("values", map[string]string{"original-values": texts[1], "merged-values": texts[2]}),
	}, nil
}

// injection says which pods the control plane injects, and with which templates.
func (p Plane) injection() map[string]any {
	webhook := asMap(p.values["sidecarInjectorWebhook"])
	out := map[string]any{"policy": cmp.Or(p.settings.Global.Proxy.AutoInject, "enabled"), "defaultTemplates": []string{"sidecar"}}
	for _, k := range []string{"defaultTemplates", "templates", "aliases", "neverInjectSelector", "alwaysInjectSelector", "injectedAnnotations"} {
		if v, ok := webhook[k]; ok {
			out[k] = v
		}
	}
	return out
}

// InjectionOf is the key config of the injector's ConfigMap of a mesh, as its Istio asks for it.
func InjectionOf(istio *sailv1.Istio) ([]byte, error) {
	t, s, err := readValues(istio.Spec.Values)
	if err != nil {
		return nil, err
	}
	return yaml.Marshal(Plane{values: t, settings: s}.injection())
}

// env is pilot.env with every scalar as text: what Heddle does not read, too, since the templates of a user may.
func (p Plane) env() map[string]string {
	out := map[string]string{}
	for k, v := range asMap(asMap(p.values["pilot"])["env"]) {
		if v != nil {
			out[k] = fmt.Sprint(v)
		}
	}
	return out
}

func (p Plane) serviceObject(name string, labels map[string]string) *corev1.Service {
	meta := p.meta(name)
	maps.Copy(meta.Labels, labels)
	port := func(name string, port, target int32) corev1.ServicePort {
		return corev1.ServicePort{Name: name, Port: port, TargetPort: intstr.FromInt32(target), Protocol: corev1.ProtocolTCP}
	}
	return &corev1.Service{
		TypeMeta: typeMeta("v1", "Service"), ObjectMeta: meta,
		Spec: corev1.ServiceSpec{Selector: p.selector(), Ports: []corev1.ServicePort{
			port("grpc-xds", 15010, 15010), port("https-dns", 15012, 15012),
			port("https-webhook", 443, 15017), port("http-monitoring", 15014, 15014),
		}},
	}
}

func (p Plane) deployment() *appsv1.Deployment {
	pod := p.meta("")
	pod.Namespace = ""
	pod.Labels["sidecar.istio.io/inject"] = "false"
	pod.Labels["istio.io/dataplane-mode"] = "none"
	// istioctl reads the monitoring port from here.
	pod.Annotations = map[string]string{
		"prometheus.io/port": "15014", "prometheus.io/scrape": "true", "sidecar.istio.io/inject": "false",
		annotationOnce: p.once(),
	}
	surge, unavailable := intstr.FromString("100%"), intstr.FromString("25%")
	return &appsv1.Deployment{
		TypeMeta: typeMeta("apps/v1", "Deployment"), ObjectMeta: p.meta(p.service()),
		Spec: appsv1.DeploymentSpec{
			Replicas: p.replicas(),
			Selector: &metav1.LabelSelector{MatchLabels: p.selector()},
			Strategy: appsv1.DeploymentStrategy{
				Type:          appsv1.RollingUpdateDeploymentStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &surge, MaxUnavailable: &unavailable},
			},
			Template: corev1.PodTemplateSpec{ObjectMeta: pod, Spec: corev1.PodSpec{
				ServiceAccountName: p.service(),
				SecurityContext:    podSecurity(proxyUser),
				NodeSelector:       p.settings.Pilot.NodeSelector,
				Tolerations:        p.settings.Pilot.Tolerations,
				Containers:         []corev1.Container{p.container()},
				Volumes: []corev1.Volume{{Name: "cacerts", VolumeSource: corev1.VolumeSource{
					Secret: &corev1.SecretVolumeSource{SecretName: "cacerts", Optional: new(true)},
				}}},
			}},
		},
	}
}

// once are the settings that a control plane reads at its start only. In its pods' template, a change of them replaces the pods.
func (p Plane) once() string {
	domain, audience := p.settings.MeshConfig.TrustDomain, p.settings.Global.SDS.Token.Aud
	return "trustDomain=" + cmp.Or(domain, mesh.DefaultTrustDomain) + " aud=" + cmp.Or(audience, mesh.Audience(p.Namespace, p.Mesh))
}

// ownEnv are the variables of the control plane that the operator sets: from fields of its pod, and fixed.
func (p Plane) ownEnv() (fields []corev1.EnvVar, fixed map[string]string) {
	field := func(name, path string) corev1.EnvVar {
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: path}}}
	}
	fields = []corev1.EnvVar{
		field("POD_NAME", "metadata.name"), field("POD_NAMESPACE", "metadata.namespace"), field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
	}
	fixed = map[string]string{
		"REVISION": p.Revision, "HEDDLE_MESH": string(p.Mesh), clusterEnv: p.cluster(), "ISTIO_VERSION": p.Version,
	}
	return fields, fixed
}

func (p Plane) container() corev1.Container {
	port := func(name string, port int32) corev1.ContainerPort {
		return corev1.ContainerPort{Name: name, ContainerPort: port, Protocol: corev1.ProtocolTCP}
	}
	env, fixed := p.ownEnv()
	all := p.env()
	delete(all, profilesEnv) // it would replace the pods of the very process that is to be looked at
	maps.Copy(all, fixed)
	for _, e := range env {
		delete(all, e.Name) // a revision of before may have one
	}
	for _, k := range slices.Sorted(maps.Keys(all)) {
		env = append(env, corev1.EnvVar{Name: k, Value: all[k]})
	}
	resources := corev1.ResourceRequirements{Requests: corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("64Mi"),
	}}
	if p.settings.Pilot.Resources != nil {
		resources = *p.settings.Pilot.Resources
	}
	return corev1.Container{
		Name: "discovery", Image: p.Images.Heddle, ImagePullPolicy: p.settings.Global.ImagePullPolicy,
		// No plaintext xDS: the Service keeps the port by name for those who look for it.
		Args: []string{"discovery", "--grpcAddr=", "--monitoringAddr=:15014", "--domain=cluster.local"},
		Env:  env, Resources: resources, SecurityContext: containerSecurity(),
		Ports: []corev1.ContainerPort{
			port("http-debug", 8080), port("grpc-xds", 15010), port("tls-xds", 15012), port("https-webhooks", 15017), port("http-monitoring", 15014),
		},
		ReadinessProbe: &corev1.Probe{
			ProbeHandler:        corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/ready", Port: intstr.FromInt32(8080)}},
			InitialDelaySeconds: 1, PeriodSeconds: 3, TimeoutSeconds: 5,
		},
		VolumeMounts: []corev1.VolumeMount{{Name: "cacerts", MountPath: "/etc/cacerts", ReadOnly: true}},
	}
}

// podSecurity and containerSecurity satisfy the Pod Security Standard "restricted".
func podSecurity(user int64) *corev1.PodSecurityContext {
	return &corev1.PodSecurityContext{
		RunAsNonRoot: new(true), RunAsUser: &user, RunAsGroup: &user, FSGroup: &user,
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
}

func containerSecurity() *corev1.SecurityContext {
	return &corev1.SecurityContext{
		AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true), RunAsNonRoot: new(true),
		Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
	}
}

// autoscaled reports whether the user asked for an autoscaler.
func (p Plane) autoscaled() bool {
	pilot := p.settings.Pilot
	if pilot.AutoscaleEnabled != nil {
		return *pilot.AutoscaleEnabled
	}
	return pilot.AutoscaleMin != nil || pilot.AutoscaleMax != nil
}

// replicas is nil unless the user fixes the number: a control plane scaled by hand stays as it was scaled.
func (p Plane) replicas() *int32 {
	if e := p.settings.Pilot.AutoscaleEnabled; e != nil && !*e {
		return p.settings.Pilot.ReplicaCount
	}
	return nil
}

// bounds are between which numbers of replicas an autoscaler moves.
func (p Plane) bounds() (least, most int32) {
	least, most = 1, 5
	if n := p.settings.Pilot.AutoscaleMin; n != nil {
		least = *n
	}
	if n := p.settings.Pilot.AutoscaleMax; n != nil {
		most = *n
	}
	return least, most
}

func (p Plane) scaling() []client.Object {
	var out []client.Object
	pilot := p.settings.Pilot
	least := int32(1)
	if n := p.replicas(); n != nil {
		least = *n
	}
	if p.autoscaled() {
		var most int32
		least, most = p.bounds()
		metric := func(name corev1.ResourceName, percent int32) autoscalingv2.MetricSpec {
			return autoscalingv2.MetricSpec{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
				Name: name, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &percent},
			}}
		}
		cpu := int32(80)
		if t := pilot.CPU.TargetAverageUtilization; t != nil {
			cpu = *t
		}
		metrics := []autoscalingv2.MetricSpec{metric(corev1.ResourceCPU, cpu)}
		if t := pilot.Memory.TargetAverageUtilization; t != nil {
			metrics = append(metrics, metric(corev1.ResourceMemory, *t))
		}
		out = append(out, &autoscalingv2.HorizontalPodAutoscaler{
			TypeMeta: typeMeta("autoscaling/v2", "HorizontalPodAutoscaler"), ObjectMeta: p.meta(p.service()),
			Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
				ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: p.service()},
				MinReplicas:    &least, MaxReplicas: most, Metrics: metrics, Behavior: pilot.AutoscaleBehavior,
			},
		})
	}
	if least > 1 {
		one := intstr.FromInt32(1)
		out = append(out, &policyv1.PodDisruptionBudget{
			TypeMeta: typeMeta("policy/v1", "PodDisruptionBudget"), ObjectMeta: p.meta(p.service()),
			Spec: policyv1.PodDisruptionBudgetSpec{MinAvailable: &one, Selector: &metav1.LabelSelector{MatchLabels: p.selector()}},
		})
	}
	return out
}

// Bindings give the control plane what it needs outside its member namespaces. A mesh that has every namespace gets the
// rights of a member once for the cluster; of the others each member namespace gets a binding of its own.
func Bindings(p Plane) []client.Object {
	out := []client.Object{
		&rbacv1.RoleBinding{
			TypeMeta: typeMeta(rbacv1.SchemeGroupVersion.String(), "RoleBinding"), ObjectMeta: p.meta(roleSystem),
			RoleRef: clusterRole(roleSystem), Subjects: p.subjects(),
		},
		p.clusterBinding(roleCluster),
	}
	if p.selectors == nil {
		out = append(out, p.clusterBinding(roleMember))
	}
	return out
}

func (p Plane) clusterBinding(role string) *rbacv1.ClusterRoleBinding {
	return &rbacv1.ClusterRoleBinding{
		TypeMeta: typeMeta(rbacv1.SchemeGroupVersion.String(), "ClusterRoleBinding"), ObjectMeta: p.clusterMeta(clusterBindingName(role, p.Mesh)),
		RoleRef: clusterRole(role), Subjects: p.subjects(),
	}
}

func clusterBindingName(role string, id mesh.ID) string { return role + "-" + string(id) }

// MemberBinding gives the control plane its rights in one member namespace. It has the same name for every mesh: a
// namespace has one.
func MemberBinding(p Plane, namespace string) *rbacv1.RoleBinding {
	meta := p.meta(roleMember)
	meta.Namespace = namespace
	return &rbacv1.RoleBinding{
		TypeMeta: typeMeta(rbacv1.SchemeGroupVersion.String(), "RoleBinding"), ObjectMeta: meta,
		RoleRef: clusterRole(roleMember), Subjects: p.subjects(),
	}
}

func clusterRole(name string) rbacv1.RoleRef {
	return rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name}
}

func (p Plane) subjects() []rbacv1.Subject {
	return []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: p.service(), Namespace: p.Namespace}}
}

func asMap(v any) map[string]any {
	m, _ := v.(map[string]any)
	return m
}

// overlay returns base with over laid over it: maps by key, anything else replaced.
func overlay(base, over map[string]any) map[string]any {
	out := maps.Clone(base)
	for k, v := range over {
		b, isMap := out[k].(map[string]any)
		o, both := v.(map[string]any)
		if isMap && both {
			v = overlay(b, o)
		}
		out[k] = v
	}
	return out
}
