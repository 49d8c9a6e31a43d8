package xds

import (
	"cmp"
	"encoding/binary"
	"io"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	encproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
)

const service = "envoy.service.discovery.v3.AggregatedDiscoveryService"

// form is one of the protocol's two forms: its method, and the numbers of its requests' fields; 0: the form has none.
type form struct {
	method                                                string
	node, version, typeURL, names, drop, held, nonce, err protowire.Number
}

var (
	deltaForm = &form{method: "DeltaAggregatedResources", node: 1, typeURL: 2, names: 3, drop: 4, held: 5, nonce: 6, err: 7}
	sotwForm  = &form{method: "StreamAggregatedResources", version: 1, node: 2, names: 3, typeURL: 4, nonce: 5, err: 6}
)

// serviceDesc serves both methods by one handler, without the generated types.
func serviceDesc(serve func(*form, grpc.ServerStream) error) *grpc.ServiceDesc {
	d := &grpc.ServiceDesc{ServiceName: service, Metadata: "envoy/service/discovery/v3/ads.proto"}
	for _, f := range []*form{deltaForm, sotwForm} {
		d.Streams = append(d.Streams, grpc.StreamDesc{
			StreamName: f.method, ServerStreams: true, ClientStreams: true,
			Handler: func(_ any, s grpc.ServerStream) error { return serve(f, s) },
		})
	}
	return d
}

// frame is a message as bytes: received ones hold a reference that sending them, or Free, gives back.
type frame struct{ data mem.BufferSlice }

// codec hands frames through and leaves other messages to proto.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(encproto.Name)} }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if f, ok := v.(*frame); ok {
		return f.data, nil
	}
	return c.CodecV2.Marshal(v)
}

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if f, ok := v.(*frame); ok {
		data.Ref()
		f.data = data
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}

// ServerCodec is required of the gRPC server that a Server or Relay is registered with. It leaves other services'
// messages to proto.
func ServerCodec() grpc.ServerOption { return grpc.ForceServerCodecV2(newCodec()) }

// request is what the server reads of a request in either form.
type request struct {
	typeURL, nonce string
	node           []byte            // of a first request: not decoded; nil if absent
	nack           bool              // error_detail is set
	detail         string            // its message
	names          []string          // all names asked for, or in the delta form those added
	drop           []string          // delta only
	held           map[string]string // delta only: initial_resource_versions
	brings         bool              // state of the world only: version_info is set
	weight         int               // of the names, if it is kept
}

var (
	errMalformed = status.Error(codes.InvalidArgument, "malformed message")
	errNames     = status.Error(codes.ResourceExhausted, "too many resource names")
)

// maxDetail bounds the text of a rejection, which goes into logs, events and what istioctl prints. In bytes.
const maxDetail = 4 << 10

func brief(detail string) string {
	return strings.ToValidUTF8(strings.Clone(detail[:min(len(detail), maxDetail)]), "?") // not all of it, which it would keep
}

// short returns a type or nonce: nobody has long ones, and a request waits with them for its answer.
func short(b []byte) (string, error) {
	if len(b) > maxText {
		return "", errMalformed
	}
	return string(b), nil
}

// maxVersion bounds what is kept of a version that a client brings; ours are shorter.
const maxVersion = 64

// parseHello reads of a client's first request who it is and what type it asks for.
func (f *form) parseHello(data mem.BufferSlice) (*request, error) {
	q := &request{}
	err := scan(data, func(field protowire.Number, value func() []byte) (err error) {
		switch field {
		case f.node:
			q.node = append(q.node, value()...) // repeated, a message's bytes concatenate
			if q.node == nil {
				q.node = []byte{}
			}
		case f.typeURL:
			q.typeURL, err = short(value())
		}
		return err
	})
	return q, err
}

// parseRequest reads a request, but for its node, with at most maxNames names of a kind; a version that no server of ours gave
// counts as unknown. Of its strings only the text of a rejection is
// checked for UTF-8.
func (f *form) parseRequest(data mem.BufferSlice, maxNames int) (*request, error) {
	q := &request{}
	err := scan(data, func(field protowire.Number, value func() []byte) (err error) {
		switch field {
		case f.version:
			q.brings = len(value()) > 0
		case f.typeURL:
			q.typeURL, err = short(value())
		case f.nonce:
			q.nonce, err = short(value())
		case f.names:
			q.names = append(q.names, string(value()))
		case f.drop:
			q.drop = append(q.drop, string(value()))
		case f.held:
			pair, err := stringFields(value(), 1, 2)
			if err != nil {
				return err
			}
			if q.held == nil {
				q.held = map[string]string{}
			}
			if len(pair[1]) > maxVersion {
				pair[1] = unknown
			}
			q.held[pair[0]] = pair[1]
		case f.err:
			detail, err := stringFields(value(), 2)
			if err != nil {
				return err
			}
			q.nack = true
			q.detail = cmp.Or(brief(detail[0]), q.detail)
		}
		if max(len(q.names), len(q.drop), len(q.held)) > maxNames {
			return errNames
		}
		return err
	})
	return q, err
}

// parseResponse reads type and nonce, which both forms keep in the same fields.
func parseResponse(data mem.BufferSlice) (typeURL, nonce string, err error) {
	err = scan(data, func(field protowire.Number, value func() []byte) error {
		switch field {
		case 4:
			typeURL = string(value())
		case 5:
			nonce = string(value())
		}
		return nil
	})
	return typeURL, nonce, err
}

// stringFields returns the string fields of a small message.
func stringFields(b []byte, want ...protowire.Number) ([]string, error) {
	out := make([]string, len(want))
	err := fields(b, func(field protowire.Number, v []byte) {
		if i := slices.Index(want, field); i >= 0 {
			out[i] = string(v)
		}
	})
	return out, err
}

// scan visits the length-delimited fields of a message; only those whose value is called for are read.
func scan(data mem.BufferSlice, visit func(field protowire.Number, value func() []byte) error) error {
	r := data.Reader()
	defer r.Close()
	groups := 0 // open ones; their fields are skipped
	for r.Remaining() > 0 {
		tag, err := binary.ReadUvarint(r)
		if err != nil {
			return errMalformed
		}
		field, kind := protowire.DecodeTag(tag)
		size := uint64(0)
		switch kind {
		case protowire.VarintType:
			_, err = binary.ReadUvarint(r)
		case protowire.Fixed32Type:
			size = 4
		case protowire.Fixed64Type:
			size = 8
		case protowire.BytesType:
			size, err = binary.ReadUvarint(r)
		case protowire.StartGroupType:
			groups++
		case protowire.EndGroupType:
			groups--
		default:
			err = errMalformed
		}
		if err != nil || field < protowire.MinValidNumber || groups < 0 || size > uint64(r.Remaining()) {
			return errMalformed
		}
		end := r.Remaining() - int(size)
		if kind == protowire.BytesType && groups == 0 {
			err = visit(field, func() []byte {
				b := make([]byte, size)
				_, _ = io.ReadFull(r, b) // size was checked
				return b
			})
			if err != nil {
				return err
			}
		}
		if _, err := r.Discard(r.Remaining() - end); err != nil {
			return errMalformed
		}
	}
	if groups != 0 {
		return errMalformed
	}
	return nil
}

// message is a response before it is encoded.
type message struct {
	typeURL string
	nonce   string
	version string      // of the state that it was made of
	set     []*Resource // what changed, by name
	gone    []string    // sorted
	all     []*Resource // all that the client holds after it, by name, where state-of-the-world says so
	full    bool        // all is meant

	controlPlane string // its identifier; empty: not said
}

// encode returns the response's bytes, most of which are shared with other responses.
func (f *form) encode(m *message) mem.BufferSlice {
	plane := protowire.Number(6)
	if f == deltaForm {
		plane = 7
	}
	size := len(m.version) + len(m.typeURL) + len(m.nonce) + len(m.controlPlane) + 32 // for what is before each
	if f == deltaForm {
		for _, name := range m.gone {
			size += len(name) + 4
		}
	}
	head := appendString(appendString(appendString(make([]byte, 0, size), 1, m.version), 4, m.typeURL), 5, m.nonce)
	if f == deltaForm {
		for _, name := range m.gone {
			head = appendString(head, 6, name)
		}
	}
	if m.controlPlane != "" {
		id := appendString(nil, 1, m.controlPlane)
		head = append(appendOpen(head, plane, len(id)), id...)
	}
	resources := m.set
	if m.full {
		resources = m.all
	}
	out := make(mem.BufferSlice, 1, 1+len(resources))
	out[0] = mem.SliceBuffer(head)
	for _, r := range resources {
		if f == deltaForm {
			out = append(out, r.delta...)
		} else {
			out = append(out, r.sotw...)
		}
	}
	return out
}
