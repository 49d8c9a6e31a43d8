package operator

import (
	"bytes"
	"embed"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"
)

//go:generate go tool -modfile=../../tools/go.mod controller-gen object crd paths=../../api/... output:crd:dir=crds
//go:generate sh -c "install -m 644 $(go list -m -f '{{.Dir}}' istio.io/api)/kubernetes/customresourcedefinitions.gen.yaml crds/istio.yaml"

//go:embed crds/*.yaml
var crdFiles embed.FS

const (
	// Namespace is where the operator lives unless told otherwise.
	Namespace = "heddle-system"

	operatorName    = "heddle-operator"
	operatorAccount = "operator"
	crdVersionKey   = "heddle.dev/crd-version"
	// crdVersion says how new our CRDs are; it grows with every change of one, and Apply never goes back. The first part is
	// that of istio.io/api, from which the CRDs of the Istio groups come.
	crdVersion = "1.31.1-2"

	webhookPort = 9443
	healthPort  = 8081
)

// CRDs are the custom resources that Heddle serves, Istio's included, sorted by name.
func CRDs() ([]*apiextensionsv1.CustomResourceDefinition, error) {
	all, err := definitions()
	out := make([]*apiextensionsv1.CustomResourceDefinition, 0, len(all))
	for _, c := range all {
		out = append(out, c.DeepCopy())
	}
	return out, err
}

// definitions is a table that nobody writes, read when it is first wanted: it is a megabyte of YAML.
var definitions = sync.OnceValues(readDefinitions)

func readDefinitions() ([]*apiextensionsv1.CustomResourceDefinition, error) {
	entries, err := crdFiles.ReadDir("crds")
	if err != nil {
		return nil, fmt.Errorf("list the CRDs: %w", err)
	}
	var out []*apiextensionsv1.CustomResourceDefinition
	for _, e := range entries {
		text, err := crdFiles.ReadFile("crds/" + e.Name())
		if err != nil {
			return nil, fmt.Errorf("read the CRDs: %w", err)
		}
		for _, doc := range bytes.Split(text, []byte("\n---\n")) {
			crd := &apiextensionsv1.CustomResourceDefinition{}
			if err := yaml.Unmarshal(doc, crd); err != nil {
				return nil, fmt.Errorf("read %s: %w", e.Name(), err)
			}
			if crd.Name == "" {
				continue
			}
			if crd.Annotations == nil {
				crd.Annotations = map[string]string{}
			}
			crd.Annotations[crdVersionKey] = crdVersion
			out = append(out, crd)
		}
	}
	slices.SortFunc(out, func(a, b *apiextensionsv1.CustomResourceDefinition) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Bootstrap is everything that an empty cluster needs to run meshes, in the order in which it is applied: CRDs, the three
// roles of control planes, policies, and the operator itself.
func Bootstrap(images Images, namespace string) ([]client.Object, error) {
	crds, err := CRDs()
	if err != nil {
		return nil, err
	}
	var out []client.Object
	for _, c := range crds {
		out = append(out, c)
	}
	out = append(out, &corev1.Namespace{TypeMeta: typeMeta("v1", "Namespace"), ObjectMeta: metav1.ObjectMeta{
		Name: namespace, Labels: map[string]string{labelPartOf: partOf, "pod-security.kubernetes.io/enforce": "restricted"},
	}})
	out = append(out, planeRoles()...)
	out = append(out, policies(namespace)...)
	out = append(out, operatorRights(namespace)...)
	return append(out, operatorWorkload(images, namespace)...), nil
}

// WriteYAML writes objects as one YAML stream that kubectl apply takes.
func WriteYAML(w io.Writer, objects []client.Object) error {
	for _, o := range objects {
		u, err := applicable(o)
		if err != nil {
			return err
		}
		text, err := yaml.Marshal(u.Object)
		if err != nil {
			return fmt.Errorf("write %s %s: %w", u.GetKind(), u.GetName(), err)
		}
		if _, err := fmt.Fprintf(w, "---\n%s", text); err != nil {
			return err
		}
	}
	return nil
}

func may(group string, resources []string, verbs ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{APIGroups: []string{group}, Resources: resources, Verbs: verbs}
}

// named narrows a rule to objects of one name; a watch must then ask for that name by field selector.
func named(r rbacv1.PolicyRule, names ...string) rbacv1.PolicyRule {
	r.ResourceNames = names
	return r
}

func role(name string, rules ...rbacv1.PolicyRule) client.Object {
	return &rbacv1.ClusterRole{
		TypeMeta: typeMeta(rbacv1.SchemeGroupVersion.String(), "ClusterRole"), ObjectMeta: policyMeta(name), Rules: rules,
	}
}

// planeRoles are all that control planes may do; the operator makes bindings and no roles.
func planeRoles() []client.Object {
	read := []string{"get", "list", "watch"}
	events := []rbacv1.PolicyRule{
		may("", []string{"events"}, "create", "patch"),
		may("events.k8s.io", []string{"events"}, "create", "patch"),
	}
	member := []rbacv1.PolicyRule{
		may("", []string{"services", "pods"}, read...),
		may("discovery.k8s.io", []string{"endpointslices"}, read...),
		may("", []string{"configmaps"}, "create"), // cannot be limited by name
		named(may("", []string{"configmaps"}, "get", "list", "watch", "update", "patch", "delete"), rootName),
	}
	groups := map[string][]string{}
	for _, k := range istioKinds() {
		groups[k.Group] = append(groups[k.Group], k.Resource)
	}
	for _, g := range []string{"extensions.istio.io", "networking.istio.io", "security.istio.io", "telemetry.istio.io"} {
		member = append(member, may(g, groups[g], read...))
	}
	system := []rbacv1.PolicyRule{
		may("", []string{"secrets"}, "create"), // cannot be limited by name
		named(may("", []string{"secrets"}, "get"), "istio-ca-secret", "cacerts"),
		may("", []string{"configmaps"}, "get", "list", "watch", "create", "update", "patch", "delete"),
		may("coordination.k8s.io", []string{"leases"}, "get", "list", "watch", "create", "update", "patch"),
		may("heddle.dev", []string{"memberships"}, read...),
		may("heddle.dev", []string{"memberships/status"}, "patch"),
	}
	return []client.Object{
		role(roleMember, append(member, events...)...),
		role(roleSystem, append(system, events...)...),
		role(roleCluster,
			may("", []string{"nodes"}, read...),
			may("authentication.k8s.io", []string{"tokenreviews"}, "create"),
			may("authorization.k8s.io", []string{"subjectaccessreviews"}, "create"),
		),
	}
}

// operatorRights are the operator's own. It may make Deployments anywhere, which is much; what it may bind is little, and
// it reads no Secret but its own.
func operatorRights(namespace string) []client.Object {
	read := []string{"get", "list", "watch"}
	write := append(slices.Clone(read), "create", "update", "patch", "delete")
	rules := []rbacv1.PolicyRule{
		may("sailoperator.io", []string{"istios", "istiorevisiontags"}, "get", "list", "watch", "update", "patch"),
		may("sailoperator.io", []string{"istiorevisions"}, write...),
		may("sailoperator.io", []string{"istios/status", "istiorevisions/status", "istiorevisiontags/status"}, "get", "update", "patch"),
		may("sailoperator.io", []string{"istios/finalizers", "istiorevisions/finalizers", "istiorevisiontags/finalizers"}, "update"),
		may("heddle.dev", []string{"memberships"}, write...),
		may("", []string{"namespaces", "pods"}, read...), // their metadata is all that is asked for
		may("", []string{"configmaps", "services", "serviceaccounts"}, write...),
		may("apps", []string{"deployments"}, write...),
		may("autoscaling", []string{"horizontalpodautoscalers"}, write...),
		may("policy", []string{"poddisruptionbudgets"}, write...),
		may("rbac.authorization.k8s.io", []string{"rolebindings", "clusterrolebindings"}, write...),
		named(may("rbac.authorization.k8s.io", []string{"clusterroles"}, "bind"), roleMember, roleSystem, roleCluster),
		named(may("rbac.authorization.k8s.io", []string{"clusterroles"}, "get"), operatorName),
		may("admissionregistration.k8s.io", []string{"mutatingwebhookconfigurations", "validatingwebhookconfigurations"}, write...),
		may("", []string{"events"}, "create", "patch"),
		may("events.k8s.io", []string{"events"}, "create", "patch"),
		may("authorization.k8s.io", []string{"subjectaccessreviews"}, "create"), // who may extend a mesh
		may("authentication.k8s.io", []string{"tokenreviews"}, "create"),        // who asks for the operator's pages
		// A dry run shows whether a control plane's validator refuses what it must refuse.
		may("networking.istio.io", []string{"gateways"}, "create"),
	}
	for _, k := range istioKinds() {
		if optional(k) {
			rules = append(rules, may(k.Group, []string{k.Resource}, "list", "watch"))
		}
	}
	subject := []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: operatorAccount, Namespace: namespace}}
	in := func(name string) metav1.ObjectMeta {
		m := policyMeta(name)
		m.Namespace = namespace
		return m
	}
	const rbac = "rbac.authorization.k8s.io/v1"
	return []client.Object{
		&corev1.ServiceAccount{TypeMeta: typeMeta("v1", "ServiceAccount"), ObjectMeta: in(operatorAccount)},
		role(operatorName, rules...),
		&rbacv1.ClusterRoleBinding{
			TypeMeta: typeMeta(rbac, "ClusterRoleBinding"), ObjectMeta: policyMeta(operatorName),
			RoleRef: clusterRole(operatorName), Subjects: subject,
		},
		&rbacv1.Role{
			TypeMeta: typeMeta(rbac, "Role"), ObjectMeta: in(operatorName),
			Rules: []rbacv1.PolicyRule{
				may("coordination.k8s.io", []string{"leases"}, "get", "create", "update", "patch"),
				may("", []string{"secrets"}, "create"),
				named(may("", []string{"secrets"}, "get", "list", "watch", "update", "patch"), certificateName),
			},
		},
		&rbacv1.RoleBinding{
			TypeMeta: typeMeta(rbac, "RoleBinding"), ObjectMeta: in(operatorName),
			RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: operatorName},
			Subjects: subject,
		},
	}
}

func operatorWorkload(images Images, namespace string) []client.Object {
	selector := map[string]string{"app": operatorName}
	in := func() metav1.ObjectMeta {
		m := policyMeta(operatorName)
		m.Namespace = namespace
		return m
	}
	one := intstr.FromInt32(1)
	field := func(name, path string) corev1.EnvVar {
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: path}}}
	}
	return []client.Object{
		&corev1.Service{
			TypeMeta: typeMeta("v1", "Service"), ObjectMeta: in(),
			Spec: corev1.ServiceSpec{Selector: selector, Ports: []corev1.ServicePort{{
				Name: "https-webhook", Port: 443, TargetPort: intstr.FromInt32(webhookPort), Protocol: corev1.ProtocolTCP,
			}}},
		},
		&policyv1.PodDisruptionBudget{
			TypeMeta: typeMeta("policy/v1", "PodDisruptionBudget"), ObjectMeta: in(),
			Spec: policyv1.PodDisruptionBudgetSpec{MinAvailable: &one, Selector: &metav1.LabelSelector{MatchLabels: selector}},
		},
		&appsv1.Deployment{
			TypeMeta: typeMeta("apps/v1", "Deployment"), ObjectMeta: in(),
			Spec: appsv1.DeploymentSpec{
				Replicas: new(int32(2)), // one leads; both answer the webhook
				Selector: &metav1.LabelSelector{MatchLabels: selector},
				Template: corev1.PodTemplateSpec{
					ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{
						"app": operatorName, "sidecar.istio.io/inject": "false", "istio.io/dataplane-mode": "none",
					}},
					Spec: corev1.PodSpec{
						ServiceAccountName: operatorAccount, SecurityContext: podSecurity(operatorUser),
						Containers: []corev1.Container{{
							Name: "operator", Image: images.Heddle, Args: []string{"operator"},
							Env: []corev1.EnvVar{
								{Name: "HEDDLE_IMAGE", Value: images.Heddle},
								{Name: "HEDDLE_PROXY_IMAGE", Value: images.Proxy},
								field("POD_NAME", "metadata.name"), field("POD_NAMESPACE", "metadata.namespace"),
							},
							Ports: []corev1.ContainerPort{
								{Name: "https-webhook", ContainerPort: webhookPort, Protocol: corev1.ProtocolTCP},
								{Name: "http-health", ContainerPort: healthPort, Protocol: corev1.ProtocolTCP},
							},
							ReadinessProbe: &corev1.Probe{
								ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/readyz", Port: intstr.FromInt32(healthPort)}},
								PeriodSeconds: 3,
							},
							Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
								corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("64Mi"),
							}},
							SecurityContext: containerSecurity(),
						}},
					},
				},
			},
		},
	}
}
