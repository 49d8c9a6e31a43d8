package operator

import (
	"bytes"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Installed is everything that Bootstrap brings and the operator writes for itself while it runs, in the order in which it is
// taken away: the Deployment first, which would write the rest again; the definitions and the namespace last.
func Installed(namespace string) ([]client.Object, error) {
	out, err := Bootstrap(Images{}, namespace)
	if err != nil {
		return nil, err
	}
	in := metav1.ObjectMeta{Namespace: namespace}
	named := func(name string) metav1.ObjectMeta { m := in; m.Name = name; return m }
	slices.Reverse(out) // what others refer to comes first there
	i := slices.IndexFunc(out, func(o client.Object) bool {
		_, crd := o.(*apiextensionsv1.CustomResourceDefinition)
		_, ns := o.(*corev1.Namespace)
		return crd || ns
	})
	last := out[i:]
	slices.SortStableFunc(last, func(a, b client.Object) int { // the namespace after the definitions
		rank := func(o client.Object) int {
			if _, ns := o.(*corev1.Namespace); ns {
				return 1
			}
			return 0
		}
		return rank(a) - rank(b)
	})
	return slices.Concat(out[:i], []client.Object{
		&admissionv1.ValidatingWebhookConfiguration{
			TypeMeta:   typeMeta(admissionv1.SchemeGroupVersion.String(), "ValidatingWebhookConfiguration"),
			ObjectMeta: metav1.ObjectMeta{Name: operatorName},
		},
		&corev1.Secret{TypeMeta: typeMeta("v1", "Secret"), ObjectMeta: named(certificateName)},
		&corev1.ConfigMap{TypeMeta: typeMeta("v1", "ConfigMap"), ObjectMeta: named(selectorsName)},
		&coordinationv1.Lease{TypeMeta: typeMeta(coordinationv1.SchemeGroupVersion.String(), "Lease"), ObjectMeta: named(operatorName)},
	}, last), nil
}

// ForeignTo reports who else than the operator has a hand in an object that has the name of one of ours; empty if nobody. A
// definition or a namespace is somebody else's, too, if he wrote any of its spec or labels and not our mark with it, as who
// applies the text of Bootstrap does; another object if it lacks our mark.
func ForeignTo(o client.Object, namespace string) string {
	mark, marked := labelPartOf, o.GetLabels()[labelPartOf] == partOf
	if _, ok := o.(*apiextensionsv1.CustomResourceDefinition); ok {
		mark = crdVersionKey
		_, marked = o.GetAnnotations()[mark]
	}
	var managers []string
	for _, f := range o.GetManagedFields() {
		wrote := func(field string) bool { return bytes.Contains(f.FieldsV1.Raw, []byte(`"f:`+field+`"`)) }
		if f.Manager != operatorName && f.Subresource == "" && f.FieldsV1 != nil && (wrote("spec") || wrote("labels")) && !(marked && wrote(mark)) {
			managers = append(managers, f.Manager)
		}
	}
	slices.Sort(managers)
	others := strings.Join(slices.Compact(managers), ", ")
	ours := operatorOwner().owns(o)
	switch o.(type) {
	case *apiextensionsv1.CustomResourceDefinition:
		if ours = marked; ours {
			return others
		}
	case *corev1.Namespace:
		// One of before the mark has an entry of ours.
		ours = ours || slices.ContainsFunc(o.GetManagedFields(), func(f metav1.ManagedFieldsEntry) bool { return f.Manager == operatorName })
		if ours {
			return others
		}
	case *corev1.ConfigMap, *coordinationv1.Lease:
		ours = ours || o.GetNamespace() == namespace // the operator's own namespace: names are enough
	}
	if ours {
		return ""
	}
	if others == "" {
		return "somebody else"
	}
	return others
}
