package kube

import (
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// tolerant decodes lists and events of custom resources in which one object may be what its Go type cannot hold: stored before
// there was admission, or past it. Such an object comes with the annotation mesh.UnreadableAnnotation, which says why, and of its
// spec with no more than the selector, as that says whom it is for: an empty one, if it has a selector that can't be read either.
// Otherwise it would keep the whole namespace's objects from being read.
type tolerant struct{ runtime.NegotiatedSerializer }

func (t tolerant) DecoderToVersion(d runtime.Decoder, gv runtime.GroupVersioner) runtime.Decoder {
	return tolerantDecoder{t.NegotiatedSerializer.DecoderToVersion(d, gv)}
}

type tolerantDecoder struct{ runtime.Decoder }

func (d tolerantDecoder) Decode(data []byte, defaults *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	unread := map[types.NamespacedName]string{}
	obj, gvk, err := d.Decoder.Decode(data, defaults, into)
	if err != nil {
		readable, ok := d.readable(data, err, unread)
		if !ok {
			return obj, gvk, err
		}
		if obj, gvk, err = d.Decoder.Decode(readable, defaults, into); err != nil {
			return obj, gvk, err
		}
	}
	return obj, gvk, mark(obj, unread)
}

// mark says of the objects that are or are in o why they could not be read, and nothing of the others: what their authors say
// of that is not asked.
func mark(o runtime.Object, unread map[types.NamespacedName]string) error {
	if meta.IsListType(o) {
		return meta.EachListItem(o, func(item runtime.Object) error { return mark(item, unread) })
	}
	m, ok := o.(metav1.Object)
	if !ok {
		return nil // an answer, or an event that carries an object
	}
	annotations := m.GetAnnotations()
	delete(annotations, mesh.UnreadableAnnotation)
	if why, ok := unread[types.NamespacedName{Namespace: m.GetNamespace(), Name: m.GetName()}]; ok {
		if annotations == nil {
			annotations = map[string]string{}
		}
		annotations[mesh.UnreadableAnnotation] = why
	}
	m.SetAnnotations(annotations)
	return nil
}

// readable takes out of data, a list or an object, what cannot be read, and notes of which objects and why. It returns false
// if it is neither.
func (d tolerantDecoder) readable(data []byte, why error, unread map[types.NamespacedName]string) ([]byte, bool) {
	var fields map[string]json.RawMessage
	if json.Unmarshal(data, &fields) != nil {
		return nil, false
	}
	if list, ok := fields["items"]; ok {
		var items []json.RawMessage
		if json.Unmarshal(list, &items) != nil {
			return nil, false
		}
		for i, item := range items {
			if _, _, err := d.Decoder.Decode(item, nil, nil); err != nil {
				if items[i], ok = d.readable(item, err, unread); !ok {
					return nil, false
				}
			}
		}
		return with(fields, "items", items)
	}
	if out, ok := with(fields, "status", nil); ok { // says nothing of what is wanted
		if _, _, err := d.Decoder.Decode(out, nil, nil); err == nil {
			return out, true
		}
	}
	spec, ok := fields["spec"]
	if !ok {
		return nil, false
	}
	var named struct{ Namespace, Name string }
	if json.Unmarshal(fields["metadata"], &named) != nil {
		return nil, false
	}
	unread[types.NamespacedName(named)] = fmt.Sprintf("%.300s", why.Error())
	var parts map[string]json.RawMessage
	if json.Unmarshal(spec, &parts) == nil {
		selector, ok := parts["selector"]
		if !ok {
			return with(fields, "spec", struct{}{})
		}
		if out, ok := with(fields, "spec", map[string]any{"selector": selector}); ok {
			if _, _, err := d.Decoder.Decode(out, nil, nil); err == nil {
				return out, true
			}
		}
	}
	return with(fields, "spec", map[string]any{"selector": struct{}{}})
}

func with(fields map[string]json.RawMessage, name string, value any) ([]byte, bool) {
	raw, err := json.Marshal(value)
	if err != nil {
		return nil, false
	}
	fields[name] = raw
	out, err := json.Marshal(fields)
	return out, err == nil
}
