package cli

import (
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/heddle-mesh/heddle/internal/judge"
)

// object is one of Istio's API, as it is stored.
type object struct {
	kind, namespace, name string
	revision              string // the only one that reads it; empty for all
	raw                   []byte
}

// objectsOf reads the objects of all kinds of Istio's API that list finds; a cluster need not have all kinds.
func objectsOf(list func(client.ObjectList) error) ([]object, error) {
	var out []object
	for _, gvk := range judge.Kinds() {
		var l unstructured.UnstructuredList
		l.SetGroupVersionKind(gvk.GroupVersion().WithKind(gvk.Kind + "List"))
		if err := list(&l); err != nil && !isNoMatch(err) {
			return nil, fmt.Errorf("list objects of kind %s: %w", gvk.Kind, err)
		}
		for i := range l.Items {
			o := &l.Items[i]
			raw, err := o.MarshalJSON()
			if err != nil {
				return nil, fmt.Errorf("read %s %s/%s: %w", gvk.Kind, o.GetNamespace(), o.GetName(), err)
			}
			out = append(out, object{gvk.Kind, o.GetNamespace(), o.GetName(), o.GetLabels()[revisionLabel], raw})
		}
	}
	return out, nil
}

// checkObjects tells what admission would say of the stored objects that the control plane of some mesh reads.
func (s snapshot) checkObjects(owner map[string]membership, found *found) {
	roots := map[string]string{} // by mesh: its policies for all are where its control plane is, whatever meshConfig.rootNamespace says
	for i := range s.istios {
		roots[s.istios[i].Name] = s.istios[i].Spec.Namespace
	}
	for _, o := range s.objects {
		mesh := owner[o.namespace].mesh
		if mesh == "" || o.revision != "" && o.revision != mesh {
			continue
		}
		verdict, err := judge.Object(o.raw, roots[mesh])
		about, name := scope{[]string{mesh}, o.namespace}, o.kind+" "+o.namespace+"/"+o.name
		if err != nil {
			found.add(about, name, "UnknownKind", "%s", err)
		}
		for _, f := range verdict.Findings() {
			found.add(about, name, f.Reason, "%s", f)
		}
	}
}
