package xds_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/internal/xds"
	"github.com/heddle-mesh/heddle/internal/xds/xdstest"
)

// TestRelay: requests, responses and the upstream's end pass, and answers are seen once each.
func TestRelay(t *testing.T) {
	each(t, func(t *testing.T, form xdstest.Form) {
		f := serve(t, nil)
		f.Publish(1, []xds.Change{set("a", cluster("x", 1))})
		answers := make(chan string, 10)
		relay := &xds.Relay{Upstream: f.conn, OnResponse: func(typeURL, nack string) { answers <- typeURL + " " + nack }}
		conn := listen(t, relay.Register, &fixture{ended: make(chan error, 10)})

		c := must(xdstest.Connect(t.Context(), conn, form, &corev3.Node{Id: "p", Cluster: "a"}))
		check(t, c.Subscribe(cds))
		r := next(t, c, "x")
		check(t, c.Ack(r))
		check(t, c.Ack(r)) // again: answers nothing
		f.Publish(2, []xds.Change{set("a", cluster("x", 2))})
		check(t, c.Nack(next(t, c, "x"), "bad x"))
		for _, want := range []string{cds + " ", cds + " bad x"} {
			if got := <-answers; got != want {
				t.Errorf("answer %q, want %q", got, want)
			}
		}
		if got, want := <-f.nacks, cds+" 2 bad x [Service shop/x]"; got != want {
			t.Errorf("upstream saw %q, want %q", got, want)
		}
		f.Close(nil, status.Error(codes.Unavailable, "upstream goes"))
		wantEnd(t, c, codes.Unavailable, "upstream goes")
	})
}

// TestRelayLast: an end that is for good leaves the proxy's stream open, so that the proxy does not call again.
func TestRelayLast(t *testing.T) {
	each(t, func(t *testing.T, form xdstest.Form) {
		f := serve(t, nil)
		f.Publish(1, []xds.Change{set("a", cluster("x", 1))})
		ends := make(chan error, 1)
		relay := &xds.Relay{Upstream: f.conn, Last: func(end error) bool {
			ends <- end
			return status.Code(end) == codes.Unauthenticated
		}}
		below := &fixture{ended: make(chan error, 10)}
		conn := listen(t, relay.Register, below)
		ctx, cancel := context.WithCancel(t.Context())
		c := must(xdstest.Connect(ctx, conn, form, &corev3.Node{Id: "p", Cluster: "a"}))
		check(t, c.Subscribe(cds))
		next(t, c, "x")
		f.Close(nil, status.Error(codes.Unauthenticated, "the pod is deleted"))
		if end := <-ends; status.Code(end) != codes.Unauthenticated {
			t.Fatalf("the upstream ended with %v", end)
		}
		check(t, c.Subscribe(eds)) // sent into a stream that is still open
		cancel()
		wantEnd(t, c, codes.Canceled, "")
	})
}

// TestClient follows a server over a reconnection and rejects what it can't apply.
func TestClient(t *testing.T) {
	f := serve(t, nil)
	f.Publish(1, []xds.Change{set("a", cluster("x", 1), cluster("y", 1))})
	applied := make(chan string, 10)
	c := &xds.Client{
		Conn: f.conn, Node: &corev3.Node{Id: "p", Cluster: "a"}, Log: slog.New(slog.DiscardHandler),
		Subscriptions: []xds.Subscription{{Type: cds}, {Type: eds, Names: []string{"none"}}},
		Apply: func(typeURL string, set []*discoveryv3.Resource, removed []string) error {
			var names []string
			for _, r := range set {
				names = append(names, r.GetName())
			}
			applied <- fmt.Sprint(typeURL, names, removed)
			if len(names) == 1 && names[0] == "bad" {
				return errors.New("it is bad")
			}
			return nil
		},
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	wait := func(want string) {
		t.Helper()
		if got := <-applied; got != want {
			t.Fatalf("applied %q, want %q", got, want)
		}
	}
	wait(cds + "[x y] []")
	wait(eds + "[] [none]")
	f.Publish(2, []xds.Change{set("a", cluster("bad", 1))})
	wait(cds + "[bad] []")
	if got, want := <-f.nacks, cds+" 2 it is bad [Service shop/bad]"; got != want {
		t.Errorf("nack %q, want %q", got, want)
	}
	f.Close(nil, status.Error(codes.Unavailable, "go"))
	<-f.ended
	f.Publish(3, []xds.Change{set("a", cluster("y", 2)), {Group: "a", Type: cds, Remove: []string{"x", "bad"}}})
	wait(cds + "[y] [x]")
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
}
