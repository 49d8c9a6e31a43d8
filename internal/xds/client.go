package xds

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// As Envoy's: attempts are this far apart, with jitter.
const (
	minBackoff = 500 * time.Millisecond
	maxBackoff = 30 * time.Second
)

// Subscription is what a Client asks for of a type.
type Subscription struct {
	Type  string
	Names []string // none: all
}

// Client follows a delta discovery server over reconnections. Its fields are not changed once Run has begun.
type Client struct {
	Conn          grpc.ClientConnInterface
	Node          *corev3.Node
	Subscriptions []Subscription
	// Apply takes a response; its error rejects the response as a whole. Called by one goroutine.
	Apply func(typeURL string, set []*discoveryv3.Resource, removed []string) error
	Log   *slog.Logger

	held map[string]map[string]string // versions applied, by type and name
}

// Run follows the server until ctx ends, and returns ctx's error.
func (c *Client) Run(ctx context.Context) error {
	c.held = map[string]map[string]string{}
	backoff := minBackoff
	for {
		applied, err := c.stream(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if applied {
			backoff = minBackoff
		}
		c.Log.LogAttrs(ctx, slog.LevelInfo, "discovery stream ended", slog.Any("err", err), slog.Duration("retry", backoff))
		select {
		case <-time.After(backoff/2 + rand.N(backoff)): // half to one and a half times
		case <-ctx.Done():
			return ctx.Err()
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// stream follows one stream to its end and says whether a response of it was applied.
func (c *Client) stream(ctx context.Context) (applied bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(c.Conn).DeltaAggregatedResources(ctx, grpc.MaxCallRecvMsgSize(maxResponse))
	if err != nil {
		return false, err
	}
	for i, s := range c.Subscriptions {
		q := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: s.Type, ResourceNamesSubscribe: s.Names, InitialResourceVersions: c.held[s.Type]}
		if i == 0 {
			q.Node = c.Node
		}
		if err := stream.Send(q); err != nil {
			break // Recv has the reason
		}
	}
	for {
		r, err := stream.Recv()
		if err != nil {
			return applied, err
		}
		answer := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()}
		if err := c.Apply(r.GetTypeUrl(), r.GetResources(), r.GetRemovedResources()); err != nil {
			answer.ErrorDetail = &status.Status{Code: int32(codes.InvalidArgument), Message: err.Error()}
		} else {
			applied = true
			c.hold(r)
		}
		_ = stream.Send(answer) // Recv has the reason
	}
}

func (c *Client) hold(r *discoveryv3.DeltaDiscoveryResponse) {
	held := c.held[r.GetTypeUrl()]
	if held == nil {
		held = map[string]string{}
		c.held[r.GetTypeUrl()] = held
	}
	for _, res := range r.GetResources() {
		held[res.GetName()] = res.GetVersion()
	}
	for _, n := range r.GetRemovedResources() {
		delete(held, n)
	}
}
