package xds

import (
	"cmp"
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

// maxVersion bounds what is kept of a version that a client brings; ours are shorter.
const maxVersion = 64

// parseHello reads of a client's first request who it is and what type it asks for.
func (f *form) parseHello(data mem.BufferSlice) (*request, error) {
	q := &request{}
	s := scanner{r: data.Reader()}
	defer s.r.Close()
	for s.next() {
		switch s.field {
		case f.node:
			q.node = append(q.node, s.value()...) // repeated, a message's bytes concatenate
			if q.node == nil {
				q.node = []byte{}
			}
		case f.typeURL:
			q.typeURL = s.short(nil)
		}
	}
	return q, s.err
}

// parseRequest reads a request, but for its node, with at most maxNames names of a kind; a version that no server of ours gave
// counts as unknown. Of its strings only the text of a rejection is checked for UTF-8. Of rules it borrows the type.
func (f *form) parseRequest(data mem.BufferSlice, maxNames int, rules []TypeRule) (*request, error) {
	q := &request{}
	s := scanner{r: data.Reader()}
	defer s.r.Close()
	for s.next() {
		switch s.field {
		case f.version:
			q.brings = s.size > 0
		case f.typeURL:
			q.typeURL = s.short(rules)
		case f.nonce:
			q.nonce = s.short(nil)
		case f.names:
			q.names = append(q.names, s.text())
		case f.drop:
			q.drop = append(q.drop, s.text())
		case f.held:
			if q.held == nil {
				q.held = map[string]string{}
			}
			name, version := s.pair(1, 2)
			if len(version) > maxVersion {
				version = unknown
			}
			q.held[name] = version
		case f.err:
			detail, _ := s.pair(2, 2)
			q.nack = true
			q.detail = cmp.Or(brief(detail), q.detail)
		}
		if max(len(q.names), len(q.drop), len(q.held)) > maxNames {
			return q, errNames
		}
	}
	return q, s.err
}

// parseResponse reads type and nonce, which both forms keep in the same fields.
func parseResponse(data mem.BufferSlice) (typeURL, nonce string, err error) {
	s := scanner{r: data.Reader()}
	defer s.r.Close()
	for s.next() {
		switch s.field {
		case 4:
			typeURL = s.text()
		case 5:
			nonce = s.text()
		}
	}
	return typeURL, nonce, s.err
}

// scanner visits the length-delimited fields of a message. A value is read, once, only if it is asked for.
type scanner struct {
	r     *mem.Reader
	field protowire.Number
	size  int // of the field's value
	err   error

	left   int // of the message behind the value
	groups int // open ones; their fields are skipped
	room   [128]byte
}

// next goes to the next field; false at the end, or with err.
func (s *scanner) next() bool {
	if s.field != 0 {
		s.skip(s.r.Remaining() - s.left)
	}
	for s.err == nil && s.r.Remaining() > 0 {
		field, kind := protowire.DecodeTag(s.varint())
		size := uint64(0)
		switch kind {
		case protowire.VarintType:
			s.varint()
		case protowire.Fixed32Type:
			size = 4
		case protowire.Fixed64Type:
			size = 8
		case protowire.BytesType:
			size = s.varint()
		case protowire.StartGroupType:
			s.groups++
		case protowire.EndGroupType:
			s.groups--
		default:
			s.err = errMalformed
		}
		if s.err != nil || field < protowire.MinValidNumber || s.groups < 0 || size > uint64(s.r.Remaining()) {
			s.err = errMalformed
			return false
		}
		if kind == protowire.BytesType && s.groups == 0 {
			s.field, s.size, s.left = field, int(size), s.r.Remaining()-int(size)
			return true
		}
		s.skip(int(size))
	}
	if s.err == nil && s.groups != 0 {
		s.err = errMalformed
	}
	return false
}

func (s *scanner) skip(n int) {
	if _, err := s.r.Discard(n); err != nil {
		s.err = errMalformed
	}
}

func (s *scanner) varint() (v uint64) {
	for shift := 0; shift < 64; shift += 7 {
		b, err := s.r.ReadByte()
		if err != nil {
			break
		}
		if v |= uint64(b&0x7f) << shift; b < 0x80 {
			if shift == 63 && b > 1 {
				break
			}
			return v
		}
	}
	s.err = errMalformed
	return 0
}

// value returns the value's bytes.
func (s *scanner) value() []byte {
	b := make([]byte, s.size)
	_, _ = s.r.Read(b) // size was checked
	return b
}

// brief returns them in room if there is enough.
func (s *scanner) brief() []byte {
	if s.size > len(s.room) {
		return s.value()
	}
	_, _ = s.r.Read(s.room[:s.size])
	return s.room[:s.size]
}

func (s *scanner) text() string { return string(s.brief()) }

// short returns a type, one of rules' if it is there, or a nonce: nobody has long ones, and a request waits with them for its
// answer.
func (s *scanner) short(rules []TypeRule) string {
	if s.size > maxText {
		s.err = errMalformed
		return ""
	}
	b := s.brief()
	for i := range rules {
		if rules[i].URL == string(b) {
			return rules[i].URL
		}
	}
	return string(b)
}

// pair returns two string fields of a small message.
func (s *scanner) pair(one, two protowire.Number) (a, b string) {
	err := fields(s.value(), func(field protowire.Number, v []byte) {
		if field == one {
			a = string(v)
		}
		if field == two {
			b = string(v)
		}
	})
	if err != nil {
		s.err = err
	}
	return a, b
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
