package kube

import (
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

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
	obj, gvk, err := d.Decoder.Decode(data, defaults, into)
	if err == nil {
		return obj, gvk, nil
	}
	readable, ok := d.readable(data, err)
	if !ok {
		return obj, gvk, err
	}
	return d.Decoder.Decode(readable, defaults, into)
}

// readable takes out of data, a list or an object, what cannot be read. It returns false if it is neither.
func (d tolerantDecoder) readable(data []byte, why error) ([]byte, bool) {
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
				if items[i], ok = d.readable(item, err); !ok {
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
	var meta map[string]any
	if json.Unmarshal(fields["metadata"], &meta) != nil || meta == nil {
		return nil, false
	}
	meta["annotations"] = map[string]string{mesh.UnreadableAnnotation: fmt.Sprintf("%.300s", why.Error())}
	raw, err := json.Marshal(meta)
	if err != nil {
		return nil, false
	}
	fields["metadata"] = raw
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
