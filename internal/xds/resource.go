// Package xds brings every client to the (name → version) it should hold. It serves delta and state-of-the-world
// discovery from one state machine, and knows bytes, groups and acknowledgements, but no resource type: types come in a table of TypeRule.
// The package has a client and a relay of the same protocol as well.
package xds

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"sync/atomic"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Resource is a sealed message: its bytes are shared by every client and never change. The zero Resource is not valid.
type Resource struct {
	Name    string
	Version string // of the content: equal bytes, equal version
	Origin  string // what it was made from, for whom a client rejects it

	typeURL string
	// head and tail are a delta response's `resources` entry. Its last field, number 2 as well, is at the same time the
	// state-of-the-world response's entry: head[sotw:] and tail.
	head []byte
	sotw int
	tail []*sealed
	own  *sealed // what Seal or Compose marshalled for this resource itself
}

// Fragment is a part of a composite that is marshalled once for all composites that hold it: a virtual host, a filter chain.
type Fragment struct{ *sealed }

type sealed struct {
	bytes   []byte
	hash    [sha256.Size]byte
	counted atomic.Bool // in Stats.Marshalled
}

// Size returns the bytes that the resource takes in a delta response.
func (r Resource) Size() int {
	n := len(r.head)
	for _, f := range r.tail {
		n += len(f.bytes)
	}
	return n
}

// Seal makes m a resource. Origin may be empty.
func Seal(typeURL, name, origin string, m proto.Message) (Resource, error) {
	return Compose(typeURL, name, origin, m, nil)
}

// NewFragment seals m as an entry of the repeated field of its composite.
func NewFragment(field protowire.Number, m proto.Message) (Fragment, error) {
	s, err := marshal(protowire.AppendTag(nil, field, protowire.BytesType), m)
	return Fragment{s}, err
}

// Compose makes one resource of the header, which holds all but the fragments, and the fragments in their order.
func Compose(typeURL, name, origin string, header proto.Message, fragments []Fragment) (Resource, error) {
	own, err := marshal(nil, header)
	if err != nil {
		return Resource{}, fmt.Errorf("seal %s %s: %w", typeURL, name, err)
	}
	r := Resource{Name: name, Origin: origin, typeURL: typeURL, own: own}
	sum, size := sha256.New(), len(own.bytes)
	sum.Write(own.hash[:])
	for _, f := range fragments {
		sum.Write(f.hash[:])
		size += len(f.bytes)
		r.tail = append(r.tail, f.sealed)
	}
	r.Version = version(sum)
	r.frame(size)
	return r, nil
}

// marshal is the one place where a resource becomes bytes. With a tag the result is a length-delimited field.
func marshal(tag []byte, m proto.Message) (*sealed, error) {
	o := proto.MarshalOptions{Deterministic: true} // the version is a hash of the bytes
	b, err := o.Marshal(m)
	if err != nil {
		return nil, err
	}
	if tag != nil {
		b = append(protowire.AppendVarint(tag, uint64(len(b))), b...)
	}
	return &sealed{bytes: b, hash: sha256.Sum256(b)}, nil
}

// version is the first 128 bits of the hash.
func version(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)[:16]) }

// frame writes head: Resource{version 1, name 3, resource 2: Any{type_url 1, value 2}}, with the value's fragments left to tail.
func (r *Resource) frame(valueSize int) {
	str := func(field protowire.Number, s string) []byte {
		return protowire.AppendString(protowire.AppendTag(nil, field, protowire.BytesType), s)
	}
	open := func(field protowire.Number, size int) []byte {
		return protowire.AppendVarint(protowire.AppendTag(nil, field, protowire.BytesType), uint64(size))
	}
	value := append(str(1, r.typeURL), open(2, valueSize)...)
	anySize := len(value) + valueSize
	entry := append(open(2, anySize), value...)
	meta := append(str(1, r.Version), str(3, r.Name)...)
	r.head = append(open(2, len(meta)+len(entry)+valueSize), meta...)
	r.sotw = len(r.head)
	r.head = append(append(r.head, entry...), r.own.bytes...)
}

// Any returns a copy of the message, as debug pages show it.
func (r Resource) Any() *anypb.Any {
	a := &anypb.Any{TypeUrl: r.typeURL, Value: append([]byte(nil), r.own.bytes...)}
	for _, f := range r.tail {
		a.Value = append(a.Value, f.bytes...)
	}
	return a
}
