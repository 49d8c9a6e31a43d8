package bench

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// Types that a sidecar asks for.
const (
	typeCluster  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	typeEndpoint = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	typeListener = "type.googleapis.com/envoy.config.listener.v3.Listener"
	typeRoute    = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
)

// rawCodec hands messages through as bytes: decoding what both planes send would cost more than making it.
type rawCodec struct{ encoding.CodecV2 }

func (rawCodec) Name() string { return "proto" } // of the content type

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

// request returns a DeltaDiscoveryRequest; node, names and nonce may be empty.
func request(node []byte, typeURL string, names []string, nonce string) []byte {
	var b []byte
	if len(node) > 0 {
		b = protowire.AppendBytes(protowire.AppendTag(b, 1, protowire.BytesType), node)
	}
	b = protowire.AppendString(protowire.AppendTag(b, 2, protowire.BytesType), typeURL)
	for _, n := range names {
		b = protowire.AppendString(protowire.AppendTag(b, 3, protowire.BytesType), n)
	}
	if nonce != "" {
		b = protowire.AppendString(protowire.AppendTag(b, 6, protowire.BytesType), nonce)
	}
	return b
}

// response is what a client reads of a DeltaDiscoveryResponse.
type response struct {
	typeURL, nonce string
	resources      []resource
}

type resource struct {
	name string
	body []byte // of the message inside of Any
}

func parseResponse(b []byte) (response, error) {
	var r response
	var inner error
	err := fields(b, func(n protowire.Number, v []byte, _ uint64) {
		switch n {
		case 2:
			var one resource
			inner = errors.Join(inner, fields(v, func(n protowire.Number, v []byte, _ uint64) {
				switch n {
				case 3:
					one.name = string(v)
				case 2:
					one.body = last(v, 2)
				}
			}))
			r.resources = append(r.resources, one)
		case 4:
			r.typeURL = string(v)
		case 5:
			r.nonce = string(v)
		}
	})
	return r, errors.Join(err, inner)
}

// assignmentOf returns the name under which a cluster's endpoints are asked for; "" if it has none of EDS.
func assignmentOf(cluster []byte) string {
	const eds = 3 // Cluster.DiscoveryType
	var name, service string
	kind := uint64(0)
	_ = fields(cluster, func(n protowire.Number, v []byte, x uint64) {
		switch n {
		case 1:
			name = string(v)
		case 2:
			kind = x
		case 3:
			service = string(last(v, 2))
		}
	})
	switch {
	case kind != eds:
		return ""
	case service != "":
		return service
	}
	return name
}

// routesOf returns the route configurations that a listener asks for over RDS, sorted.
func routesOf(listener []byte) []string {
	var names []string
	take := func(v []byte) { names = append(names, string(v)) }
	for _, chain := range []protowire.Number{3, 25} { // filter_chains, default_filter_chain
		// filters, typed_config, Any.value, HttpConnectionManager.rds, route_config_name. In other filters' messages the
		// same numbers mean something else, so that only what says that it is the connection manager is gone into.
		walk(listener, func(filter []byte) {
			any := last(filter, 4)
			if bytes.HasSuffix(last(any, 1), []byte(".HttpConnectionManager")) {
				walk(last(any, 2), take, 3, 2)
			}
		}, chain, 3)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// walk visits what is at a path of message fields, each of which may be repeated.
func walk(b []byte, visit func([]byte), path ...protowire.Number) {
	if len(path) == 0 {
		visit(b)
		return
	}
	_ = fields(b, func(n protowire.Number, v []byte, _ uint64) {
		if n == path[0] {
			walk(v, visit, path[1:]...)
		}
	})
}

// last returns the content of a field that is not repeated, nil if it is not there.
func last(b []byte, field protowire.Number) (content []byte) {
	walk(b, func(v []byte) { content = v }, field)
	return content
}

// fields visits the fields of a message: of length-delimited ones the content, of varints the number.
func fields(b []byte, visit func(n protowire.Number, v []byte, x uint64)) error {
	for len(b) > 0 {
		n, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return fmt.Errorf("malformed message: %w", protowire.ParseError(size))
		}
		b = b[size:]
		size = protowire.ConsumeFieldValue(n, kind, b)
		if size < 0 {
			return fmt.Errorf("malformed message: %w", protowire.ParseError(size))
		}
		switch kind {
		case protowire.BytesType:
			v, _ := protowire.ConsumeBytes(b)
			visit(n, v, 0)
		case protowire.VarintType:
			x, _ := protowire.ConsumeVarint(b)
			visit(n, nil, x)
		}
		b = b[size:]
	}
	return nil
}

// A mark is an address that no endpoint had before: the first message with it carries the change. All of its octets but the
// first two are of three digits, so that it is found by its length.
const (
	markPrefix = "198.18." // of the range for benchmarks, RFC 2544
	markLength = len("198.18.128.100")
	maxMarks   = 100 * 100
)

func markAddress(i int) string { return fmt.Sprintf("%s%d.%d", markPrefix, 128+i/100, 100+i%100) }

// marksIn visits the marks in a message, by number.
func marksIn(b []byte, visit func(int)) {
	for {
		at := bytes.Index(b, []byte(markPrefix))
		if at < 0 || len(b) < at+markLength {
			return
		}
		text := b[at+len(markPrefix) : at+markLength]
		b = b[at+len(markPrefix):]
		high, okHigh := number(text[:3])
		low, okLow := number(text[4:])
		if okHigh && okLow && text[3] == '.' && high >= 128 && high < 228 && low >= 100 && low < 200 {
			visit((high-128)*100 + low - 100)
		}
	}
}

// number reads three digits.
func number(b []byte) (n int, ok bool) {
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = 10*n + int(c-'0')
	}
	return n, true
}
