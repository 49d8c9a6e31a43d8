package bench

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
)

// fakePlane answers one proxy, and writes down what it asks.
type fakePlane struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	answers map[string][]*discoveryv3.DeltaDiscoveryResponse // to the next requests for a type that are no acceptances
	change  chan *discoveryv3.DeltaDiscoveryResponse
	asked   []string
}

func (f *fakePlane) DeltaAggregatedResources(s discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	md, _ := metadata.FromIncomingContext(s.Context())
	f.asked = append(f.asked, md.Get("authorization")...)
	for {
		q, err := s.Recv()
		if err != nil {
			return nil //nolint:nilerr // the client has left
		}
		short := q.GetTypeUrl()[strings.LastIndexByte(q.GetTypeUrl(), '.')+1:]
		f.asked = append(f.asked, strings.TrimSpace(fmt.Sprint(q.GetNode().GetId(), " ", short, " ", strings.Join(q.GetResourceNamesSubscribe(), ","), " ", q.GetResponseNonce())))
		var answer *discoveryv3.DeltaDiscoveryResponse
		switch next := f.answers[q.GetTypeUrl()]; {
		case q.GetResponseNonce() == "last":
			return nil
		case q.GetResponseNonce() == "routes":
			answer = <-f.change
		case q.GetResponseNonce() == "" && len(next) > 0:
			answer, f.answers[q.GetTypeUrl()] = next[0], next[1:]
		default:
			continue
		}
		if err := s.Send(answer); err != nil {
			return err
		}
	}
}

// A proxy asks in Envoy's order, is ready when it has all that it asked for, and tells when a change comes, once.
func TestProxyAsksAsEnvoyDoes(t *testing.T) {
	answer := func(nonce, typeURL string, named map[string]proto.Message) *discoveryv3.DeltaDiscoveryResponse {
		r := &discoveryv3.DeltaDiscoveryResponse{Nonce: nonce, TypeUrl: typeURL}
		for name, m := range named {
			r.Resources = append(r.Resources, &discoveryv3.Resource{Name: name, Resource: packed(t, m)})
		}
		slices.SortFunc(r.Resources, func(a, b *discoveryv3.Resource) int { return strings.Compare(a.GetName(), b.GetName()) })
		return r
	}
	assignment := &endpointv3.ClusterLoadAssignment{ClusterName: markAddress(1)} // a mark is found in any text
	plane := &fakePlane{
		change: make(chan *discoveryv3.DeltaDiscoveryResponse, 1),
		answers: map[string][]*discoveryv3.DeltaDiscoveryResponse{
			typeCluster:  {answer("clusters", typeCluster, map[string]proto.Message{"a": edsCluster("a", ""), "b": edsCluster("b", "")})},
			typeEndpoint: {answer("endpoints", typeEndpoint, map[string]proto.Message{"a": assignment, "b": assignment})},
			typeListener: {answer("listeners", typeListener, map[string]proto.Message{"l": httpListener(t, "80", "80")})},
			typeRoute:    {answer("routes", typeRoute, map[string]proto.Message{"80": &routev3.RouteConfiguration{Name: "80"}})},
		},
	}
	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, plane)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()

	conn, err := grpc.NewClient("passthrough:///plane", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{})))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fl := &fleet{marks: []*mark{nil, nil, newMark(1)}} // mark 1 is one of before
	ready := 0
	p := &proxy{
		fleet: fl, identity: identity{namespace: "n", account: "s", pod: "p", address: "192.0.2.1", token: "secret"},
		ready: func() {
			ready++
			plane.change <- answer("last", typeEndpoint, map[string]proto.Message{"a": &endpointv3.ClusterLoadAssignment{ClusterName: markAddress(2) + markAddress(2)}})
		},
	}
	if err := p.stream(t.Context(), conn); err == nil {
		t.Error("the stream's end is no error")
	}
	server.Stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
	want := []string{
		"Bearer secret",
		"sidecar~192.0.2.1~p.n~n.svc.cluster.local Cluster",
		"Cluster  clusters",
		"ClusterLoadAssignment a,b",
		"ClusterLoadAssignment  endpoints",
		"Listener",
		"Listener  listeners",
		"RouteConfiguration 80",
		"RouteConfiguration  routes",
		"ClusterLoadAssignment  last",
	}
	if !slices.Equal(plane.asked, want) {
		t.Errorf("asked\n%s\nwant\n%s", strings.Join(plane.asked, "\n"), strings.Join(want, "\n"))
	}
	if e, r := fl.endpoints.Load(), fl.routes.Load(); e != 2 || r != 1 {
		t.Errorf("%d assignments and %d route configurations are counted, want 2 and 1", e, r)
	}
	if ready != 1 || fl.marks[2].left.Load() != 0 || fl.marks[2].at[0].IsZero() {
		t.Errorf("ready %d times; the change is still to come to %d", ready, fl.marks[2].left.Load())
	}
}
