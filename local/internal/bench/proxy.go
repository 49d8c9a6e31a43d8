package bench

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

const (
	method = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"

	// As Envoy's: windows that one response does not fill, and attempts a random time apart that doubles.
	window     = 256 << 20
	minBackoff = 500 * time.Millisecond
	maxBackoff = 30 * time.Second

	clusterID = "Kubernetes" // as both planes call their cluster by default
)

// identity is a pod that a proxy speaks for.
type identity struct {
	namespace, account, pod, address string
	token                            string // bound to the pod
}

// node is what istio-agent has Envoy say of itself.
func (id identity) node() ([]byte, error) {
	meta, err := structpb.NewStruct(map[string]any{
		"NAME": id.pod, "NAMESPACE": id.namespace, "SERVICE_ACCOUNT": id.account, "CLUSTER_ID": clusterID,
		"INSTANCE_IPS": id.address, "ISTIO_VERSION": "1.29.1", "MESH_ID": "cluster.local", "INTERCEPTION_MODE": "REDIRECT",
		"WORKLOAD_NAME": id.pod, "LABELS": map[string]any{labelApp: id.pod}, "PROXY_CONFIG": map[string]any{},
	})
	if err != nil {
		return nil, err
	}
	return proto.Marshal(&corev3.Node{
		Id:       fmt.Sprintf("sidecar~%s~%s.%s~%[3]s.svc.cluster.local", id.address, id.pod, id.namespace),
		Cluster:  id.pod + "." + id.namespace,
		Metadata: meta,
	})
}

// target is a plane as proxies find it.
type target struct {
	address, name string // host:port; what its certificate must say
	roots         *x509.CertPool
}

// fleet is what all proxies of a plane count together.
type fleet struct {
	target  target
	marks   []*mark // by number; those of before, which the first state may hold, are nil
	bytes   atomic.Int64
	refused atomic.Int64          // streams that ended before their first whole state and were tried again, as Envoy does
	refusal atomic.Pointer[error] // the last of their ends

	endpoints, routes atomic.Int64 // names of them that are held by all together when they are ready
}

// mark is one change on its way.
type mark struct {
	at   []time.Time // when it came, by proxy
	left atomic.Int64
	done chan struct{} // closed when left is 0
}

func newMark(proxies int) *mark {
	m := &mark{at: make([]time.Time, proxies), done: make(chan struct{})}
	m.left.Store(int64(proxies))
	return m
}

func (m *mark) arrived(proxy int, now time.Time) {
	if m.at[proxy].IsZero() {
		m.at[proxy] = now
		if m.left.Add(-1) == 0 {
			close(m.done)
		}
	}
}

// counted counts what comes in.
type counted struct {
	net.Conn
	bytes *atomic.Int64
}

func (c counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.bytes.Add(int64(n))
	return n, err
}

// proxy is a client that asks as a sidecar's Envoy does, and keeps nothing of what it gets.
type proxy struct {
	*fleet
	index int
	identity
	ready func() // called once, when it holds its first whole state

	stage       string // the type that its first state waits for; typeEndpoint and typeRoute for all of waiting
	waiting     map[string]bool
	assignments map[string]bool // asked for
	configs     map[string]bool // of routes
}

// run follows the plane until ctx ends. A plane may refuse a stream while it is busy; one that has brought the whole first
// state must not end.
func (p *proxy) run(ctx context.Context) error {
	dialer := &net.Dialer{}
	conn, err := grpc.NewClient("passthrough:///"+p.target.address,
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, "tcp", address)
			return counted{c, &p.bytes}, err
		}),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
			RootCAs: p.target.roots, ServerName: p.target.name, MinVersion: tls.VersionTLS12,
		})),
		grpc.WithInitialWindowSize(window), grpc.WithInitialConnWindowSize(window),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{}), grpc.MaxCallRecvMsgSize(window)))
	if err != nil {
		return err
	}
	defer conn.Close()
	for backoff := minBackoff; ; backoff = min(2*backoff, maxBackoff) {
		err := p.stream(ctx, conn)
		switch {
		case ctx.Err() != nil:
			return nil
		case p.stage == "":
			return fmt.Errorf("the stream of %s.%s ended: %w", p.pod, p.namespace, err)
		}
		p.refused.Add(1)
		p.refusal.Store(&err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(rand.N(backoff)):
		}
	}
}

func (p *proxy) stream(ctx context.Context, conn grpc.ClientConnInterface) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.stage, p.waiting, p.assignments, p.configs = typeCluster, map[string]bool{}, map[string]bool{}, map[string]bool{}
	node, err := p.node()
	if err != nil {
		return err
	}
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+p.token, "clusterid", clusterID)
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err != nil {
		return err
	}
	send := func(b []byte) { _ = stream.SendMsg(&b) } // what is wrong, RecvMsg says
	send(request(node, typeCluster, nil, ""))
	for {
		var b []byte
		if err := stream.RecvMsg(&b); err != nil {
			return err
		}
		now := time.Now()
		r, err := parseResponse(b)
		if err != nil {
			return err
		}
		if r.typeURL == typeEndpoint {
			marksIn(b, func(i int) {
				if i < len(p.marks) && p.marks[i] != nil {
					p.marks[i].arrived(p.index, now)
				}
			})
		}
		send(request(nil, r.typeURL, nil, r.nonce))
		for _, b := range p.take(r) {
			send(b)
		}
	}
}

// take returns what Envoy asks for after a response: endpoints of new clusters, listeners once all clusters are warm, routes
// of new listeners.
func (p *proxy) take(r response) (requests [][]byte) {
	subscribe := func(typeURL string, asked map[string]bool, names []string) {
		var more []string
		for _, n := range names {
			if !asked[n] {
				asked[n] = true
				more = append(more, n)
				if p.stage != "" {
					p.waiting[n] = true
				}
			}
		}
		if len(more) > 0 {
			requests = append(requests, request(nil, typeURL, more, ""))
		}
	}
	var names []string
	switch r.typeURL {
	case typeCluster:
		for _, c := range r.resources {
			if n := assignmentOf(c.body); n != "" {
				names = append(names, n)
			}
		}
		subscribe(typeEndpoint, p.assignments, names)
	case typeListener:
		for _, l := range r.resources {
			names = append(names, routesOf(l.body)...)
		}
		subscribe(typeRoute, p.configs, names)
	}
	if p.stage == "" {
		return requests
	}
	if r.typeURL == typeEndpoint || r.typeURL == typeRoute {
		for _, one := range r.resources {
			delete(p.waiting, one.name)
		}
	}
	switch {
	case p.stage == typeCluster && r.typeURL == typeCluster:
		p.stage = typeEndpoint
	case p.stage == typeListener && r.typeURL == typeListener:
		p.stage = typeRoute
	}
	if p.stage == typeEndpoint && len(p.waiting) == 0 {
		p.stage = typeListener
		requests = append(requests, request(nil, typeListener, nil, ""))
	}
	if p.stage == typeRoute && len(p.waiting) == 0 {
		p.stage, p.waiting = "", nil
		p.endpoints.Add(int64(len(p.assignments)))
		p.routes.Add(int64(len(p.configs)))
		p.ready()
	}
	return requests
}
