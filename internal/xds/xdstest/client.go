// Package xdstest is a discovery client for tests. It speaks both forms, records what it receives, and answers only
// when told to.
package xdstest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
)

// Form is one of the protocol's two forms.
type Form int

// The forms.
const (
	Delta Form = iota
	SotW
)

// String names the form, for subtests.
func (f Form) String() string { return []string{"delta", "sotw"}[f] }

// Forms are both.
var Forms = []Form{Delta, SotW}

// Response is a response of either form.
type Response struct {
	Type, Version, Nonce string
	Names                []string // of the resources, in the response's order
	Resources            map[string]*anypb.Any
	Removed              []string // delta only
	ControlPlane         string
	Size                 int // bytes
}

// Client is one stream. It is for one goroutine.
type Client struct {
	Held map[string]map[string]*anypb.Any // by type and name, as of the responses read
	Node *corev3.Node                     // goes with the next request, once; nil: none

	form     Form
	delta    discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	sotw     discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient
	names    map[string][]string          // subscribed to, by type
	accepted map[string]string            // state of the world only: versions of the last responses that were, by type
	versions map[string]map[string]string // delta only
}

// Connect opens a stream that ends with ctx. The node goes with its first request.
func Connect(ctx context.Context, conn grpc.ClientConnInterface, form Form, node *corev3.Node) (*Client, error) {
	c := &Client{
		Held: map[string]map[string]*anypb.Any{}, form: form, Node: node,
		names: map[string][]string{}, accepted: map[string]string{}, versions: map[string]map[string]string{},
	}
	return c, c.open(ctx, conn)
}

func (c *Client) open(ctx context.Context, conn grpc.ClientConnInterface) (err error) {
	ads := discoveryv3.NewAggregatedDiscoveryServiceClient(conn)
	if c.form == Delta {
		c.delta, err = ads.DeltaAggregatedResources(ctx)
	} else {
		c.sotw, err = ads.StreamAggregatedResources(ctx)
	}
	return err
}

// Reconnect opens a new stream and subscribes to what the last one did, telling what is held.
func (c *Client) Reconnect(ctx context.Context, conn grpc.ClientConnInterface, node *corev3.Node) error {
	c.Node = node
	if err := c.open(ctx, conn); err != nil {
		return err
	}
	for typeURL, names := range c.names {
		if err := c.request(typeURL, "", "", names, nil, c.versions[typeURL]); err != nil {
			return err
		}
	}
	return nil
}

// Subscribe asks for names of a type; none for all.
func (c *Client) Subscribe(typeURL string, names ...string) error {
	c.names[typeURL] = names
	return c.request(typeURL, "", "", names, nil, nil)
}

// Unsubscribe gives up names of a type, which only the delta form has a word for.
func (c *Client) Unsubscribe(typeURL string, names ...string) error {
	return c.request(typeURL, "", "", nil, names, nil)
}

// Ack accepts a response. In the state-of-the-world form it repeats the type's names, to which more may be added.
func (c *Client) Ack(r *Response, more ...string) error { return c.answer(r, "", more) }

// Nack rejects a response.
func (c *Client) Nack(r *Response, detail string) error { return c.answer(r, detail, nil) }

func (c *Client) answer(r *Response, nack string, more []string) error {
	names := more
	c.names[r.Type] = append(slices.Clone(c.names[r.Type]), more...)
	if c.form == SotW {
		names = c.names[r.Type]
	}
	if nack == "" {
		c.accepted[r.Type] = r.Version
	}
	return c.request(r.Type, r.Nonce, nack, names, nil, nil)
}

func (c *Client) request(typeURL, nonce, nack string, names, drop []string, held map[string]string) error {
	var detail *statuspb.Status
	if nack != "" {
		detail = &statuspb.Status{Code: int32(codes.Internal), Message: nack}
	}
	node := c.Node
	c.Node = nil
	if c.form == Delta {
		return sent(c.delta.Send(&discoveryv3.DeltaDiscoveryRequest{
			Node: node, TypeUrl: typeURL, ResponseNonce: nonce, ErrorDetail: detail,
			ResourceNamesSubscribe: names, ResourceNamesUnsubscribe: drop, InitialResourceVersions: held,
		}))
	}
	return sent(c.sotw.Send(&discoveryv3.DiscoveryRequest{
		Node: node, TypeUrl: typeURL, VersionInfo: c.accepted[typeURL], ResponseNonce: nonce, ErrorDetail: detail, ResourceNames: names,
	}))
}

// sent passes over the end of the stream, of which Next has the reason.
func sent(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// Next reads a response, and holds what it says.
func (c *Client) Next() (*Response, error) {
	if c.form == SotW {
		m, err := c.sotw.Recv()
		if err != nil {
			return nil, err
		}
		r := &Response{
			Type: m.GetTypeUrl(), Version: m.GetVersionInfo(), Nonce: m.GetNonce(), Size: proto.Size(m),
			ControlPlane: m.GetControlPlane().GetIdentifier(), Resources: map[string]*anypb.Any{},
		}
		held := c.held(r.Type)
		if strings.HasSuffix(r.Type, ".Cluster") || strings.HasSuffix(r.Type, ".Listener") { // all of them
			clear(held)
		}
		for _, a := range m.GetResources() {
			name, err := nameOf(a)
			if err != nil {
				return nil, err
			}
			r.Names = append(r.Names, name)
			r.Resources[name], held[name] = a, a
		}
		return r, nil
	}
	m, err := c.delta.Recv()
	if err != nil {
		return nil, err
	}
	r := &Response{
		Type: m.GetTypeUrl(), Version: m.GetSystemVersionInfo(), Nonce: m.GetNonce(), Size: proto.Size(m),
		ControlPlane: m.GetControlPlane().GetIdentifier(), Resources: map[string]*anypb.Any{}, Removed: m.GetRemovedResources(),
	}
	held := c.held(r.Type)
	if c.versions[r.Type] == nil {
		c.versions[r.Type] = map[string]string{}
	}
	for _, res := range m.GetResources() {
		r.Names = append(r.Names, res.GetName())
		r.Resources[res.GetName()], held[res.GetName()] = res.GetResource(), res.GetResource()
		c.versions[r.Type][res.GetName()] = res.GetVersion()
	}
	for _, n := range r.Removed {
		delete(held, n)
		delete(c.versions[r.Type], n)
	}
	return r, nil
}

func (c *Client) held(typeURL string) map[string]*anypb.Any {
	if c.Held[typeURL] == nil {
		c.Held[typeURL] = map[string]*anypb.Any{}
	}
	return c.Held[typeURL]
}

// nameOf finds the name that a state-of-the-world response leaves to the message; empty if its type is not linked in.
func nameOf(a *anypb.Any) (string, error) {
	m, err := a.UnmarshalNew()
	if err != nil {
		return "", fmt.Errorf("decode %s: %w", a.GetTypeUrl(), err)
	}
	for _, field := range []string{"name", "cluster_name"} {
		if f := m.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(field)); f != nil {
			return m.ProtoReflect().Get(f).String(), nil
		}
	}
	return "", nil
}
