package judge

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// The API's decoder reads what is inside once for each level of objects and lists around it: three megabytes below ninety levels
// cost five seconds.
const (
	maxDepth = 100      // where Envoy's parser of messages ends too
	maxWork  = 32 << 20 // bytes times levels; an object of the 1.5 MB that can be stored may have 22 of them
)

// decode fills spec from raw, whose path is at, as a watch does: with the API's own decoder, which takes durations as Go
// writes them. That one passes over what it does not know, so what is strange is looked for first. Raw is valid JSON, or
// empty, or null, which stand for no field at all.
func decode(at string, raw json.RawMessage, spec proto.Message) (v Verdict) {
	if len(raw) == 0 || isNull(raw) {
		return v
	}
	if d := depth(raw); d > maxDepth || d*len(raw) > maxWork {
		v.fault(at, ReasonUndecodable, "%d bytes with %d levels of objects and lists in each other are more than is read; levels: %d at most", len(raw), d, maxDepth)
		return v
	}
	v.strict(at, raw, spec.ProtoReflect().Descriptor())
	if v.findings != nil {
		return v
	}
	if err := json.Unmarshal(raw, spec); err != nil {
		v.fault(at, ReasonUndecodable, "%s", plain(err))
	}
	return v
}

// plain leaves out the name of the library.
func plain(err error) string { return strings.TrimPrefix(err.Error(), "json: ") }

func isNull(raw json.RawMessage) bool { return bytes.Equal(bytes.TrimSpace(raw), []byte("null")) }

// depth counts in valid JSON.
func depth(raw []byte) (most int) {
	open, quoted := 0, false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			open++
			most = max(most, open)
		case c == '}' || c == ']':
			open--
		}
	}
	return most
}

// strict finds in raw what is no part of the message m: unknown fields, values of an enumeration by a number or a wrong name,
// durations that are none, two fields of which there may be one, nothing where something must be.
func (v *Verdict) strict(at string, raw json.RawMessage, m protoreflect.MessageDescriptor) {
	switch {
	case m.FullName() == "google.protobuf.Duration":
		v.duration(at, raw)
		return
	case m.FullName().Parent() == "google.protobuf": // any JSON, or a plain value
		return
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		v.fault(at, ReasonUndecodable, "must be an object")
		return
	}
	taken := map[protoreflect.FullName]string{} // by a field, or a choice of fields, under the name that the user wrote
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		at, value := at+"."+name, fields[name]
		f := m.Fields().ByJSONName(name)
		if f == nil {
			f = m.Fields().ByName(protoreflect.Name(name)) // as in the .proto file: the decoder takes either
		}
		if f == nil {
			v.fault(at, ReasonUndecodable, "unknown field")
			if len(v.findings) > mostTold {
				return // no more is told
			}
			continue
		}
		if isNull(value) {
			continue // as if it were not there
		}
		place := f.FullName()
		if choice := f.ContainingOneof(); choice != nil && !choice.IsSynthetic() {
			place = choice.FullName()
		}
		if other := taken[place]; other != "" {
			v.fault(at, ReasonUndecodable, "cannot stand beside %s: give one of them", other)
			continue
		}
		taken[place] = name
		switch {
		case f.IsMap():
			var entries map[string]json.RawMessage
			if err := json.Unmarshal(value, &entries); err != nil {
				v.fault(at, ReasonUndecodable, "must be an object")
				continue
			}
			for _, key := range slices.Sorted(maps.Keys(entries)) {
				v.value(fmt.Sprintf("%s[%s]", at, key), entries[key], f.MapValue())
			}
		case f.IsList():
			var entries []json.RawMessage
			if err := json.Unmarshal(value, &entries); err != nil {
				v.fault(at, ReasonUndecodable, "must be a list")
				continue
			}
			for i, entry := range entries {
				v.value(fmt.Sprintf("%s[%d]", at, i), entry, f)
			}
		default:
			v.value(at, value, f)
		}
	}
}

// value is strict for one value of a field. Of plain ones the decoder says enough.
func (v *Verdict) value(at string, raw json.RawMessage, f protoreflect.FieldDescriptor) {
	switch {
	case len(v.findings) > mostTold: // no more is told
	case isNull(raw):
		v.fault(at, ReasonUndecodable, "must not be null")
	case f.Message() != nil:
		v.strict(at, raw, f.Message())
	case f.Enum() != nil:
		var name string
		if json.Unmarshal(raw, &name) == nil && f.Enum().Values().ByName(protoreflect.Name(name)) != nil {
			return
		}
		var names []string
		for i := range f.Enum().Values().Len() {
			names = append(names, string(f.Enum().Values().Get(i).Name()))
		}
		v.fault(at, ReasonUndecodable, "%.100s is none of %s", bytes.TrimSpace(raw), strings.Join(names, ", "))
	}
}

func (v *Verdict) duration(at string, raw json.RawMessage) {
	var text string
	err := json.Unmarshal(raw, &text)
	if err == nil {
		_, err = time.ParseDuration(text)
	}
	if err != nil {
		v.fault(at, ReasonUndecodable, "%.100s is no duration: write it as 300ms, 5s, 1m30s or 24h", bytes.TrimSpace(raw))
	}
}
