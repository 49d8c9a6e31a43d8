// Package xds brings every client to the (name → version) it should hold. It serves delta and state-of-the-world
// discovery from one state machine, and knows bytes, groups and acknowledgements, but no resource type: types come in a
// table of TypeRule. A client and a relay of the same protocol live here too.
package xds

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"sync/atomic"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Resource is a sealed message: its bytes are shared by all clients and never change. Only Seal, Compose and Raw make one;
// Hidden makes the absence of one.
type Resource struct {
	Name    string
	Version string // of the content: equal bytes, equal version
	Origin  string // what it was made from, to be named when a client rejects it

	*body
}

type body struct {
	typeURL string
	parts   []*sealed // concatenated they are the message
	// A `resources` entry of a response, in both forms: the last field of the delta entry has number 2, as the
	// state-of-the-world entry has, so the latter is the former's end.
	delta, sotw mem.BufferSlice
}

// Hidden is no resource: in the group that has it, the name hides what earlier groups of a client hold.
func Hidden(name, origin string) Resource { return Resource{Name: name, Origin: origin} }

// Hides reports whether r is Hidden.
func (r Resource) Hides() bool { return r.body == nil }

// Fragment is a part of a composite, marshalled once for all composites that hold it: a virtual host, a filter chain.
type Fragment struct{ *sealed }

type sealed struct {
	bytes   []byte
	hash    [sha256.Size]byte
	counted atomic.Bool // in Stats.Marshalled
}

// Seal makes m a resource. Origin may be empty.
func Seal(typeURL, name, origin string, m proto.Message) (Resource, error) {
	return Compose(typeURL, name, origin, m, nil)
}

// Raw makes a resource of bytes that are no protobuf message, as debug types carry them.
func Raw(typeURL, name string, content []byte) Resource {
	return compose(typeURL, name, "", &sealed{bytes: content, hash: sha256.Sum256(content)}, nil)
}

// NewFragment seals m as one entry of a repeated field of its composites.
func NewFragment(field protowire.Number, m proto.Message) (Fragment, error) {
	s, err := marshal(m, field)
	return Fragment{s}, err
}

// Compose makes one resource of a header, which holds all but the fragments, and the fragments in their order.
// Its version is of the parts' hashes.
func Compose(typeURL, name, origin string, header proto.Message, fragments []Fragment) (Resource, error) {
	own, err := marshal(header, 0)
	if err != nil {
		return Resource{}, fmt.Errorf("seal %s %q: %w", typeURL, name, err)
	}
	return compose(typeURL, name, origin, own, fragments), nil
}

func compose(typeURL, name, origin string, own *sealed, fragments []Fragment) Resource {
	b := &body{typeURL: typeURL, parts: []*sealed{own}}
	hash := own.hash
	if len(fragments) > 0 {
		sum := sha256.New()
		sum.Write(own.hash[:])
		for _, f := range fragments {
			b.parts = append(b.parts, f.sealed)
			sum.Write(f.hash[:])
		}
		hash = [sha256.Size]byte(sum.Sum(nil))
	}
	r := Resource{Name: name, Version: hex.EncodeToString(hash[:16]), Origin: origin, body: b}
	b.frame(r.Name, r.Version)
	return r
}

// marshal is the one place where resources become bytes; field is 0 for a whole message.
func marshal(m proto.Message, field protowire.Number) (*sealed, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m) // a version is a hash of the bytes
	if err != nil {
		return nil, err
	}
	if field != 0 {
		b = append(appendOpen(nil, field, len(b)), b...)
	}
	return &sealed{bytes: b, hash: sha256.Sum256(b)}, nil
}

// frame lays out Resource{version 1, name 3, resource 2: Any{type_url 1, value 2: parts}} around the parts.
func (b *body) frame(name, version string) {
	size := 0
	for _, p := range b.parts {
		size += len(p.bytes)
	}
	value := appendOpen(appendString(nil, 1, b.typeURL), 2, size)
	entry := append(appendOpen(nil, 2, len(value)+size), value...)
	meta := appendString(appendString(nil, 1, version), 3, name)

	head := append(appendOpen(nil, 2, len(meta)+len(entry)+size), meta...)
	cut := len(head)
	head = slices.Concat(head, entry, b.parts[0].bytes)
	b.delta, b.sotw = mem.BufferSlice{mem.SliceBuffer(head)}, mem.BufferSlice{mem.SliceBuffer(head[cut:])}
	for _, p := range b.parts[1:] {
		b.delta = append(b.delta, mem.SliceBuffer(p.bytes))
		b.sotw = append(b.sotw, mem.SliceBuffer(p.bytes))
	}
	b.parts[0] = &sealed{bytes: head[len(head)-len(b.parts[0].bytes):], hash: b.parts[0].hash} // the frame's copy serves for both
}

// Any returns a copy of the message, for debug pages.
func (r Resource) Any() *anypb.Any {
	a := &anypb.Any{TypeUrl: r.typeURL}
	for _, p := range r.parts {
		a.Value = append(a.Value, p.bytes...)
	}
	return a
}

// fresh returns how many of the resource's parts it is the first to ask about.
func (r Resource) fresh() (n uint64) {
	if r.Hides() {
		return 0
	}
	for _, p := range r.parts {
		if !p.counted.Swap(true) {
			n++
		}
	}
	return n
}

func appendOpen(b []byte, field protowire.Number, size int) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.BytesType), uint64(size))
}

func appendString(b []byte, field protowire.Number, s string) []byte {
	return append(appendOpen(b, field, len(s)), s...)
}
