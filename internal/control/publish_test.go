package control

import (
	"context"
	"net"
	"slices"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/xds"
	"github.com/heddle-mesh/heddle/internal/xds/xdstest"
)

// A client that comes when a round is done, and what it has made is yet to be published, is told nothing before: it would take
// what is in the groups of its namespace alone for gone.
func TestNothingOfARoundBeforeAllOfIt(t *testing.T) {
	c := newRegion(10, 20, 1)
	c.keep(0, ".") // to its own namespace
	pod := c.pod(0, 0)
	k := mesh.WorkloadKey{Cluster: "c1", Kind: mesh.KindPod, Namespace: pod.Namespace, Name: pod.Name}
	server := xds.NewServer(xds.Options{Types: pushOrder, Latest: func() uint64 { return uint64(c.graph.Changed()) }, Admit: func(context.Context) (xds.Admission, error) {
		return xds.Admission{Enter: func(xds.Hello) (*xds.Session, error) {
			return &xds.Session{ID: session(k), Groups: func() ([]xds.Group, xds.Group) { return c.Groups(k) }}, nil
		}}, nil
	}})
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	g := grpc.NewServer(xds.ServerCodec())
	server.Register(g)
	served := make(chan error)
	go func() { served <- g.Serve(l) }()
	defer func() { g.Stop(); <-served }()
	conn := must(grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials())))
	defer conn.Close()

	between := func() {}
	c.graph.OnPublish(func(rev graph.Rev) {
		between()
		server.Publish(uint64(rev), c.published, sessions(c.Moved())...)
	})
	c.connect(1, 0) // of another namespace, with an inbound side that is the same
	c.graph.Step()
	const question = "answered after what is due before"
	client := must(xdstest.Connect(t.Context(), conn, xdstest.Delta, &corev3.Node{Id: "x"}))
	first := func() *xdstest.Response {
		r, err := client.Next()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	between = func() {
		if err := client.Subscribe(clusterType); err != nil {
			t.Fatal(err)
		}
		if err := client.Subscribe(question, "x"); err != nil {
			t.Fatal(err)
		}
		if r := first(); r.Type != question {
			t.Errorf("%d clusters are sent that the client may hold as of the round before", len(r.Names))
		}
	}
	c.connect(0, 0)
	c.graph.Step()
	if r := first(); r.Type != clusterType || !slices.Contains(r.Names, "outbound|80||s0.n0.svc.cluster.local") {
		t.Errorf("after the round the client is sent %s %v", r.Type, r.Names)
	}
}
