package operator

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/controller-runtime/pkg/client"

	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

const (
	defaultValidatorName = "istiod-default-validator"
	tagServicePrefix     = "istiod-revision-tag-"

	labelInjection = "istio-injection"
	labelInject    = "sidecar.istio.io/inject"
)

// Serving is what the operator has found out about the control plane behind a webhook.
type Serving struct {
	Bundle  []byte                        // the mesh's root, once the served certificate was seen to chain to it
	Failing admissionv1.FailurePolicyType // of validators: Fail once a control plane has refused what it must refuse
}

// Webhooks are the configurations that bring pods and Istio objects of the mesh's namespaces to its control plane.
// The mesh's discovery selectors are ANDed into every entry, so that no namespace of another mesh is ever sent here.
func Webhooks(p Plane, s Serving) []client.Object {
	out := []client.Object{p.injector(p.injectorName(), p.Revision, nil, s)}
	if !p.validates() {
		return out
	}
	out = append(out, p.validator(p.validatorName(), "rev.validation.istio.io", nil, s))
	if p.Revision == sailv1.DefaultName {
		out = append(out, p.defaultValidator(nil, s))
	}
	return out
}

// validates reports whether the Istio objects of the mesh's namespaces go to a validator.
func (p Plane) validates() bool {
	v := p.settings.Global.ConfigValidation
	return v == nil || *v
}

// tagInjectorName is Istio's name for a tag's injector. It is not injective: a-b in c and a in b-c ask for the same.
func tagInjectorName(tag, namespace string) string {
	return "istio-revision-tag-" + tag + Plane{Namespace: namespace}.outside()
}

// hook reports whether an object with the plane's label has the name of a configuration of the plane or of a tag of it: the
// label alone may be a copy.
func (p Plane) hook(o client.Object) bool {
	names := []string{p.injectorName(), p.validatorName(), defaultValidatorName}
	if tag := o.GetLabels()[labelTag]; tag != "" {
		names = []string{tagInjectorName(tag, p.Namespace), defaultValidatorName}
	}
	return slices.Contains(names, o.GetName())
}

// tagHook is hook for a tag, whose plane may be another now.
func tagHook(tag string, o client.Object) bool {
	injector := tagInjectorName(tag, "istio-system")
	return o.GetName() == injector || strings.HasPrefix(o.GetName(), injector+"-") || o.GetName() == defaultValidatorName
}

// nameable says why a tag cannot have that name.
func nameable(tag string) error {
	if most := validation.DNS1035LabelMaxLength - len(tagServicePrefix); len(validation.IsDNS1123Label(tag)) > 0 || len(tag) > most {
		return fmt.Errorf("metadata.name %q must be lower case letters, digits and dashes, at most %d of them: it names a Service %s%s", tag, most, tagServicePrefix, tag)
	}
	return nil
}

// TagObjects are what another name of the plane consists of. The tag default also answers for istio-injection=enabled, and
// for objects that name the revision default.
func TagObjects(p Plane, tag string, s Serving) []client.Object {
	labels := map[string]string{labelTag: tag}
	out := []client.Object{
		p.serviceObject(tagServicePrefix+tag, labels),
		p.injector(tagInjectorName(tag, p.Namespace), tag, labels, s),
	}
	if tag == sailv1.DefaultName {
		out = append(out, p.defaultValidator(labels, s))
	}
	return out
}

// require is a requirement of a webhook's selector.
func require(key string, op metav1.LabelSelectorOperator, values ...string) metav1.LabelSelectorRequirement {
	return metav1.LabelSelectorRequirement{Key: key, Operator: op, Values: values}
}

func all(rs ...metav1.LabelSelectorRequirement) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchExpressions: rs}
}

// rule is one entry of Istio's injector: where it looks, and at which pods.
type rule struct {
	name      string
	namespace []metav1.LabelSelectorRequirement
	object    []metav1.LabelSelectorRequirement
}

// injectorRules are Istio's entries for a revision or tag name. Source: wire contract C.2.
func injectorRules(name string, everywhere bool) []rule {
	const (
		in     = metav1.LabelSelectorOpIn
		notIn  = metav1.LabelSelectorOpNotIn
		absent = metav1.LabelSelectorOpDoesNotExist
	)
	type reqs = []metav1.LabelSelectorRequirement
	unlabelled := reqs{require(labelInjection, absent), require(labelRevision, absent)}
	out := []rule{
		{"rev.namespace.", reqs{require(labelRevision, in, name), require(labelInjection, absent)}, reqs{require(labelInject, notIn, "false")}},
		{"rev.object.", unlabelled, reqs{require(labelInject, notIn, "false"), require(labelRevision, in, name)}},
	}
	if name != sailv1.DefaultName {
		return out
	}
	out = append(out,
		rule{"namespace.", reqs{require(labelInjection, in, "enabled")}, reqs{require(labelInject, notIn, "false")}},
		rule{"object.", unlabelled, reqs{require(labelInject, in, "true"), require(labelRevision, absent)}},
	)
	if everywhere {
		out = append(out, rule{
			"auto.",
			append(reqs{require(corev1.LabelMetadataName, notIn, "kube-system", "kube-public", "kube-node-lease", "local-path-storage")}, unlabelled...),
			reqs{require(labelInject, absent), require(labelRevision, absent)},
		})
	}
	return out
}

// scopes are the namespace selectors of a mesh as requirements: one for each of its discovery selectors.
func (p Plane) scopes() [][]metav1.LabelSelectorRequirement {
	if p.selectors == nil {
		return [][]metav1.LabelSelectorRequirement{nil}
	}
	var out [][]metav1.LabelSelectorRequirement
	for _, s := range p.selectors {
		var rs []metav1.LabelSelectorRequirement
		for _, r := range s {
			rs = append(rs, require(r.Key, metav1.LabelSelectorOperator(r.Op), r.Values...))
		}
		out = append(out, rs)
	}
	return out
}

// numbered makes an entry's name unique: the first of a kind has Istio's name, the others a number.
func numbered(prefix, name string, i int) string {
	if i == 0 {
		return prefix + name
	}
	return fmt.Sprintf("%ss%d.%s", prefix, i+1, name)
}

func (p Plane) injector(name, revision string, labels map[string]string, s Serving) *admissionv1.MutatingWebhookConfiguration {
	meta := p.clusterMeta(name)
	meta.Labels["app"] = "sidecar-injector"
	delete(meta.Labels, "istio")
	maps.Copy(meta.Labels, labels)
	path := "/inject"
	if v := p.settings.IstiodRemote.InjectionPath; v != "" {
		path = v
	}
	out := &admissionv1.MutatingWebhookConfiguration{
		TypeMeta: typeMeta(admissionv1.SchemeGroupVersion.String(), "MutatingWebhookConfiguration"), ObjectMeta: meta,
	}
	for _, r := range injectorRules(revision, p.settings.SidecarInjectorWebhook.EnableNamespacesByDefault) {
		for i, scope := range p.scopes() {
			out.Webhooks = append(out.Webhooks, admissionv1.MutatingWebhook{
				Name:              numbered(r.name, "sidecar-injector.istio.io", i),
				ClientConfig:      p.clientConfig(path, s),
				NamespaceSelector: all(append(append([]metav1.LabelSelectorRequirement(nil), r.namespace...), scope...)...),
				ObjectSelector:    all(r.object...),
				Rules: []admissionv1.RuleWithOperations{{
					Operations: []admissionv1.OperationType{admissionv1.Create},
					Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}},
				}},
				// A pod that wants a sidecar never starts without one.
				FailurePolicy: new(admissionv1.Fail), SideEffects: new(admissionv1.SideEffectClassNone),
				AdmissionReviewVersions: []string{"v1"},
			})
		}
	}
	return out
}

// validator checks the Istio objects of the mesh's namespaces, whether or not they name a revision.
func (p Plane) validator(name, entry string, object *metav1.LabelSelector, s Serving) *admissionv1.ValidatingWebhookConfiguration {
	meta := p.clusterMeta(name)
	meta.Labels["istio"] = "istiod"
	out := &admissionv1.ValidatingWebhookConfiguration{
		TypeMeta: typeMeta(admissionv1.SchemeGroupVersion.String(), "ValidatingWebhookConfiguration"), ObjectMeta: meta,
	}
	failing := s.Failing
	if failing == "" {
		failing = admissionv1.Ignore
	}
	for i, scope := range p.scopes() {
		out.Webhooks = append(out.Webhooks, admissionv1.ValidatingWebhook{
			Name: numbered("", entry, i), ClientConfig: p.clientConfig("/validate", s),
			NamespaceSelector: all(scope...), ObjectSelector: object,
			Rules: []admissionv1.RuleWithOperations{{
				Operations: []admissionv1.OperationType{admissionv1.Create, admissionv1.Update},
				Rule: admissionv1.Rule{
					APIGroups:   []string{"security.istio.io", "networking.istio.io", "telemetry.istio.io", "extensions.istio.io"},
					APIVersions: []string{"*"}, Resources: []string{"*"},
				},
			}},
			FailurePolicy: &failing, SideEffects: new(admissionv1.SideEffectClassNone), AdmissionReviewVersions: []string{"v1"},
		})
	}
	return out
}

func (p Plane) defaultValidator(labels map[string]string, s Serving) client.Object {
	v := p.validator(defaultValidatorName, "validation.istio.io", all(require(labelRevision, metav1.LabelSelectorOpIn, sailv1.DefaultName)), s)
	maps.Copy(v.Labels, labels)
	return v
}

func (p Plane) clientConfig(path string, s Serving) admissionv1.WebhookClientConfig {
	return admissionv1.WebhookClientConfig{
		Service:  &admissionv1.ServiceReference{Namespace: p.Namespace, Name: p.service(), Path: &path, Port: new(int32(443))},
		CABundle: s.Bundle,
	}
}

// names are the cluster-scoped names that a mesh's own configurations take. Istio's way of joining revision and
// namespace is not injective: a-b in c and a in b-c ask for the same.
func names(m mesh.Mesh) []string {
	p := Plane{Revision: string(m.ID), Namespace: m.System}
	return []string{p.injectorName(), p.validatorName()}
}
