package xds

import (
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// Node is what a client says of itself, as it came: a field is read when it is asked for. A decoded node would take twenty
// times the memory of its bytes, which the sender chooses.
type Node struct{ raw []byte }

// maxText bounds the texts that are read of a node: who keeps one, or a part of one, keeps all of its memory.
const maxText = 4 << 10

// ReadNode returns the node of a request, of which raw are the bytes.
func ReadNode(raw []byte) Node { return Node{raw} }

// ID returns the node's id; empty if it is of more than 4 KB, as the cluster.
func (n Node) ID() string { return n.text(1) }

// Cluster returns the node's cluster.
func (n Node) Cluster() string { return n.text(2) }

// Meta returns a string of the node's metadata; empty if there is none, it is no string, or one of more than 4 KB.
func (n Node) Meta(key string) string { return n.MetaText(key, maxText) }

// MetaText is Meta for a string of up to most bytes.
func (n Node) MetaText(key string, most int) (text string) {
	_ = fields(n.meta(key), func(field protowire.Number, v []byte) {
		if field == 3 { // Value.string_value
			text = bounded(v, most)
		}
	})
	return text
}

// HasMeta says whether the node's metadata has a key.
func (n Node) HasMeta(key string) bool { return n.meta(key) != nil }

// MetaStrings returns the strings of an object in the node's metadata. Objects of more than most bytes count as absent.
func (n Node) MetaStrings(key string, most int) map[string]string {
	out := map[string]string{}
	v := n.meta(key)
	if len(v) > most {
		return out
	}
	_ = fields(v, func(field protowire.Number, object []byte) {
		if field == 5 { // Value.struct_value
			_ = entries(object, func(k, v []byte) {
				_ = fields(v, func(field protowire.Number, text []byte) {
					if field == 3 {
						out[valid(k)] = valid(text)
					}
				})
			})
		}
	})
	return out
}

func (n Node) text(want protowire.Number) (text string) {
	_ = fields(n.raw, func(field protowire.Number, v []byte) {
		if field == want {
			text = bounded(v, maxText)
		}
	})
	return text
}

// meta returns the bytes of a google.protobuf.Value, nil if there is none. As protobuf has it, the last of a key counts.
func (n Node) meta(key string) (value []byte) {
	_ = fields(n.raw, func(field protowire.Number, object []byte) {
		if field == 3 { // Node.metadata
			_ = entries(object, func(k, v []byte) {
				if string(k) == key {
					value = v
				}
			})
		}
	})
	return value
}

// entries visits the fields of a google.protobuf.Struct.
func entries(object []byte, visit func(key, value []byte)) error {
	return fields(object, func(field protowire.Number, entry []byte) {
		if field != 1 {
			return
		}
		key, value := []byte{}, []byte{}
		_ = fields(entry, func(field protowire.Number, v []byte) {
			switch field {
			case 1:
				key = v
			case 2:
				value = v
			}
		})
		visit(key, value)
	})
}

// fields visits the length-delimited fields of a message, and ends with an error at what is malformed.
func fields(b []byte, visit func(protowire.Number, []byte)) error {
	for len(b) > 0 {
		field, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return errMalformed
		}
		b = b[size:]
		if size = protowire.ConsumeFieldValue(field, kind, b); size < 0 {
			return errMalformed
		}
		if kind == protowire.BytesType {
			v, _ := protowire.ConsumeBytes(b)
			visit(field, v)
		}
		b = b[size:]
	}
	return nil
}

// bounded is valid for a text of up to most bytes; one that is longer counts as absent.
func bounded(b []byte, most int) string {
	if len(b) > most {
		return ""
	}
	return valid(b)
}

// valid copies a text that goes into logs, messages and metrics.
func valid(b []byte) string { return strings.ToValidUTF8(string(b), "?") }
