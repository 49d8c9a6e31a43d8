package xds_test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/heddle-mesh/heddle/internal/xds"
	"github.com/heddle-mesh/heddle/internal/xds/xdstest"
)

const (
	cds   = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	eds   = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	syncz = "istio.io/debug/syncz"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// cluster returns a cluster whose content is n.
func cluster(name string, n int64) xds.Resource {
	return must(xds.Seal(cds, name, "Service shop/"+name, &clusterv3.Cluster{Name: name, ConnectTimeout: &durationpb.Duration{Seconds: n}}))
}

func assignment(name string) xds.Resource {
	return must(xds.Seal(eds, name, "", &endpointv3.ClusterLoadAssignment{ClusterName: name}))
}

func set(g xds.Group, rs ...xds.Resource) xds.Change {
	return xds.Change{Group: g, Type: rs[0].Any().GetTypeUrl(), Set: rs}
}

// fixture is a server on a connection in memory.
type fixture struct {
	*xds.Server
	conn    *grpc.ClientConn
	written atomic.Int64 // bytes by the server's connections
	nacks   chan string
	asked   chan string
	ended   chan error               // what streams ended with
	moved   atomic.Pointer[[]string] // the groups of every session, in place of those of its node
}

// admit lets everybody in, as who the metadata names.
func admit(enter func(xds.Hello) (*xds.Session, error)) func(context.Context) (xds.Admission, error) {
	return func(ctx context.Context) (xds.Admission, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		return xds.Admission{ID: strings.Join(md.Get("caller"), " "), Enter: enter}, nil
	}
}

// serve starts a server; a client's session ID is its node's ID, its groups are named by the node's cluster.
func serve(t testing.TB, change func(*xds.Options)) *fixture {
	f := &fixture{nacks: make(chan string, 100), asked: make(chan string, 200), ended: make(chan error, 200)}
	o := xds.Options{
		Types:        []xds.TypeRule{{URL: cds, Wildcard: true, Order: 1}, {URL: eds, Order: 2, ResendAfter: cds}},
		ControlPlane: "me",
		Admit: admit(func(h xds.Hello) (*xds.Session, error) {
			if h.Node.ID() == "stranger" {
				return nil, status.Error(codes.PermissionDenied, "not here")
			}
			s := &xds.Session{ID: h.Node.ID()}
			if s.ID == "late" {
				s.Confirm = func() error { return status.Error(codes.PermissionDenied, "no longer") }
			}
			own := strings.Fields(h.Node.Cluster())
			s.Groups = func() (groups []xds.Group, needs xds.Group) {
				names := own
				if moved := f.moved.Load(); moved != nil {
					names = *moved
				}
				for _, g := range names {
					if g == "?" { // to be known yet
						return nil, "to come"
					}
					g, needed := strings.CutPrefix(g, "!")
					groups = append(groups, xds.Group(g))
					if needed {
						needs = xds.Group(g)
					}
				}
				return groups, needs
			}
			s.OnNack = func(typeURL, version, detail string, origins []string) {
				f.nacks <- fmt.Sprint(typeURL, " ", version, " ", detail, " ", origins)
			}
			s.Ask = func(_ context.Context, typeURL string, names []string) ([]xds.Resource, error) {
				f.asked <- fmt.Sprint(typeURL, " ", names)
				if slices.Contains(names, "forbidden") {
					return nil, status.Error(codes.PermissionDenied, "forbidden")
				}
				if typeURL == syncz {
					return []xds.Resource{must(xds.Seal("type.googleapis.com/envoy.config.core.v3.Node", "", "", &corev3.Node{Id: h.Node.ID()}))}, nil
				}
				return nil, nil
			}
			return s, nil
		}),
	}
	if change != nil {
		change(&o)
	}
	f.Server = xds.NewServer(o)
	f.conn = listen(t, f.Register, f)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- f.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	return f
}

// listen serves on a connection in memory. The fixture sees bytes and ends.
func listen(t testing.TB, register func(grpc.ServiceRegistrar), f *fixture) *grpc.ClientConn {
	l := bufconn.Listen(1 << 16)
	s := grpc.NewServer(xds.ServerCodec(), grpc.StreamInterceptor(
		func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
			err := h(srv, ss)
			f.ended <- err
			return err
		}))
	register(s)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(counting{l, &f.written}) }()
	conn := must(grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) })))
	t.Cleanup(func() { conn.Close(); s.Stop(); <-done })
	return conn
}

type counting struct {
	net.Listener
	written *atomic.Int64
}

type countingConn struct {
	net.Conn
	written *atomic.Int64
}

func (l counting) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return countingConn{c, l.written}, err
}

func (c countingConn) Write(b []byte) (int, error) {
	c.written.Add(int64(len(b)))
	return c.Conn.Write(b)
}

func (f *fixture) connect(t testing.TB, form xdstest.Form, id, groups string) *xdstest.Client {
	return must(xdstest.Connect(metadata.AppendToOutgoingContext(t.Context(), "caller", id), f.conn, form, &corev3.Node{Id: id, Cluster: groups}))
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// next reads a response and compares its names; removed ones carry a dash.
func next(t testing.TB, c *xdstest.Client, want ...string) *xdstest.Response {
	t.Helper()
	r, err := c.Next()
	check(t, err)
	got := slices.Clone(r.Names)
	for _, n := range r.Removed {
		got = append(got, "-"+n)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("%s (-want +got):\n%s", r.Type, diff)
	}
	return r
}

func each(t *testing.T, f func(t *testing.T, form xdstest.Form)) {
	for _, form := range xdstest.Forms {
		t.Run(form.String(), func(t *testing.T) { f(t, form) })
	}
}

// TestStream follows one client from its first request to its end.
func TestStream(t *testing.T) {
	each(t, func(t *testing.T, form xdstest.Form) {
		f := serve(t, nil)
		f.Publish(1, []xds.Change{set("a", cluster("x", 1)), set("b", cluster("x", 2), cluster("y", 1)), set("other", cluster("z", 1))})
		c := f.connect(t, form, "pod.ns", "a b")
		node := c.Node
		c.Node = nil
		check(t, c.Subscribe("type.googleapis.com/istio.v1.HealthInformation")) // is skipped
		c.Node = node
		check(t, c.Subscribe(cds))
		r := next(t, c, "x", "y")
		if got := must(r.Resources["x"].UnmarshalNew()).(*clusterv3.Cluster).GetConnectTimeout().GetSeconds(); got != 2 || r.Version != "1" {
			t.Errorf("timeout %d, version %s", got, r.Version)
		}
		wantSync(t, f, "pod.ns", cds, xds.Stale)
		check(t, c.Ack(r))
		check(t, c.Subscribe(eds, "x"))
		r = next(t, c, map[xdstest.Form][]string{xdstest.Delta: {"-x"}}[form]...)
		if got := <-f.asked; got != eds+" [x]" {
			t.Errorf("asked %q", got)
		}
		check(t, c.Ack(r))

		f.Publish(2, []xds.Change{set("b", cluster("y", 2))})
		r = next(t, c, map[xdstest.Form][]string{xdstest.Delta: {"y"}, xdstest.SotW: {"x", "y"}}[form]...)
		check(t, c.Nack(r, "no y"))
		if got, want := <-f.nacks, cds+" 2 no y [Service shop/y]"; got != want {
			t.Errorf("nack %q, want %q", got, want)
		}
		wantSync(t, f, "pod.ns", cds, xds.Rejected)
		if got := f.Clients()[0].Types[0].Error; got != "no y" {
			t.Errorf("error %q", got)
		}

		f.moved.Store(&[]string{"a"})
		f.Publish(3, nil, "pod.ns")
		r = next(t, c, map[xdstest.Form][]string{xdstest.Delta: {"x", "-y"}, xdstest.SotW: {"x"}}[form]...)
		if form == xdstest.Delta { // told again as its cluster was sent
			next(t, c, "-x")
		}
		check(t, c.Ack(r))
		settle(t, c)
		wantSync(t, f, "pod.ns", cds, xds.Synced)
		held := f.Resources("pod.ns", cds)
		if len(held) != 1 || held[0].Version != cluster("x", 1).Version {
			t.Errorf("holds %v", held)
		}

		f.Close(func(s *xds.Session) bool { return s.ID == "pod.ns" }, status.Error(codes.Unavailable, "left the mesh"))
		wantEnd(t, c, codes.Unavailable, "left the mesh")
	})
}

// TestNeeds: a client whose inbound side is yet to come is told nothing, rather than that there is none.
func TestNeeds(t *testing.T) {
	each(t, func(t *testing.T, form xdstest.Form) {
		f := serve(t, nil)
		f.Publish(1, []xds.Change{set("a", cluster("x", 1))})
		c := f.connect(t, form, "pod.ns", "a !own")
		check(t, c.Subscribe(cds))
		settle(t, c)
		wantSync(t, f, "pod.ns", cds, xds.NotSent)
		f.Publish(2, []xds.Change{set("own", cluster("y", 1))})
		check(t, c.Ack(next(t, c, "x", "y")))

		f.moved.Store(&[]string{"a", "!next"})
		f.Publish(3, nil, "pod.ns")
		settle(t, c)                                             // it keeps y
		f.Publish(4, []xds.Change{set("next", cluster("z", 1))}) // who had to wait need not be named again
		check(t, c.Ack(next(t, c, map[xdstest.Form][]string{xdstest.Delta: {"z", "-y"}, xdstest.SotW: {"x", "z"}}[form]...)))
		settle(t, c)

		f.moved.Store(&[]string{"?"})
		f.Publish(5, []xds.Change{{Group: "a", Type: cds, Remove: []string{"x"}}}, "pod.ns")
		settle(t, c) // it keeps x
		f.moved.Store(&[]string{"a", "!next"})
		f.Publish(6, []xds.Change{set("a", cluster("x", 2))}, "pod.ns")
		check(t, c.Ack(next(t, c, map[xdstest.Form][]string{xdstest.Delta: {"x"}, xdstest.SotW: {"x", "z"}}[form]...)))
	})
}

// TestNeedsLate: a client that came before it was known what it holds gets that when the part that it needs is there, though
// nobody names it once more.
func TestNeedsLate(t *testing.T) {
	each(t, func(t *testing.T, form xdstest.Form) {
		f := serve(t, nil)
		f.moved.Store(&[]string{"?"})
		c := f.connect(t, form, "pod.ns", "")
		check(t, c.Subscribe(cds))
		settle(t, c)
		f.moved.Store(&[]string{"a", "!own"})
		f.Publish(1, []xds.Change{set("a", cluster("x", 1))}, "pod.ns")
		settle(t, c)
		f.Publish(2, []xds.Change{set("own", cluster("y", 1))})
		next(t, c, "x", "y")
	})
}

// A client that subscribes and drops under the wildcard without taking any answer is cut, rather than kept in memory.
func TestDropsAreBounded(t *testing.T) {
	f := serve(t, func(o *xds.Options) { o.MaxBytes = 2100 })
	f.Publish(1, []xds.Change{set("a", cluster("x", 1))})
	c := f.connect(t, xdstest.Delta, "pod.ns", "a")
	check(t, c.Subscribe(cds))
	next(t, c, "x")
	for i := range 11 {
		name := fmt.Sprint("n", i)
		check(t, c.Subscribe(cds, name))
		check(t, c.Unsubscribe(cds, name))
	}
	wantEnd(t, c, codes.ResourceExhausted, "")
}

// TestManyNames: what a client's groups hold costs it nothing, however much it is; what they do not is counted together for
// all streams of one caller, and given back.
func TestManyNames(t *testing.T) {
	f := serve(t, func(o *xds.Options) { o.MaxBytes = 100 * 210 })
	var all []xds.Resource
	var names, strange []string
	for i := range 1000 {
		all = append(all, assignment(fmt.Sprint("n", i)))
		names = append(names, all[i].Name)
	}
	for i := range 60 {
		strange = append(strange, fmt.Sprint("x", i))
	}
	f.Publish(1, []xds.Change{set("a", all...)})
	c := f.connect(t, xdstest.Delta, "p", "a")
	check(t, c.Subscribe(eds, names...))
	if r := must(c.Next()); len(r.Names) != len(names) {
		t.Errorf("%d names are answered, want %d", len(r.Names), len(names))
	}
	one, two := f.connect(t, xdstest.Delta, "q", "a"), f.connect(t, xdstest.Delta, "q", "a")
	check(t, one.Subscribe(eds, strange...))
	must(one.Next())
	check(t, two.Subscribe(eds, strange...))
	wantEnd(t, two, codes.ResourceExhausted, "too many resource names")
	if n := f.Stats().Refused; n != 1 {
		t.Errorf("%d refusals are counted, want 1", n)
	}
	three := f.connect(t, xdstest.Delta, "q", "a")
	check(t, three.Subscribe(eds, "x0"))
	check(t, three.Ack(must(three.Next())))
	check(t, one.Unsubscribe(eds, strange...))
	settle(t, one)
	check(t, three.Subscribe(eds, strange...))
	must(three.Next())

	// What has come to be held is given back with the answer to it.
	late, other := f.connect(t, xdstest.Delta, "r", "b"), f.connect(t, xdstest.Delta, "r", "b")
	check(t, late.Subscribe(eds, strange...))
	check(t, late.Ack(must(late.Next())))
	all = nil
	for _, name := range strange {
		all = append(all, assignment(name))
	}
	f.Publish(2, []xds.Change{set("b", all...)})
	check(t, late.Ack(must(late.Next())))
	settle(t, late)
	check(t, other.Subscribe(eds, names[:60]...))
	must(other.Next())
}

// silent is a stream that counts what is read of it.
type silent struct {
	grpc.ServerStream
	ctx   context.Context
	reads atomic.Int32
}

func (s *silent) Context() context.Context { return s.ctx }

func (s *silent) RecvMsg(any) error {
	s.reads.Add(1)
	<-s.ctx.Done()
	return s.ctx.Err()
}

// TestStrangersUnread: of who is not authenticated nothing is read.
func TestStrangersUnread(t *testing.T) {
	var handlers []grpc.StreamHandler
	s := xds.NewServer(xds.Options{Admit: func(context.Context) (xds.Admission, error) {
		return xds.Admission{}, status.Error(codes.Unauthenticated, "who are you?")
	}})
	s.Register(registrar(func(d *grpc.ServiceDesc) {
		for _, m := range d.Streams {
			handlers = append(handlers, m.Handler)
		}
	}))
	for _, h := range handlers {
		st := &silent{ctx: t.Context()}
		if err := h(nil, st); status.Code(err) != codes.Unauthenticated {
			t.Errorf("ended with %v", err)
		}
		if n := st.reads.Load(); n != 0 {
			t.Errorf("%d messages were read", n)
		}
	}
	if len(handlers) != 2 {
		t.Errorf("%d methods, want both forms", len(handlers))
	}
}

type registrar func(*grpc.ServiceDesc)

func (r registrar) RegisterService(d *grpc.ServiceDesc, _ any) { r(d) }

// settle waits until the server has read all that the client has sent.
func settle(t testing.TB, c *xdstest.Client) {
	t.Helper()
	check(t, c.Subscribe(syncz))
	next(t, c, "")
}

func wantSync(t testing.TB, f *fixture, id, typeURL string, want xds.Sync) {
	t.Helper()
	for _, c := range f.Clients() {
		for _, s := range c.Types {
			if c.Session.ID == id && s.URL == typeURL {
				if s.Sync != want {
					t.Errorf("%s of %s: state %v, want %v", typeURL, id, s.Sync, want)
				}
				return
			}
		}
	}
	t.Errorf("%s is not subscribed to %s", id, typeURL)
}

func wantEnd(t *testing.T, c *xdstest.Client, code codes.Code, text string) {
	t.Helper()
	for {
		if _, err := c.Next(); err != nil {
			if status.Code(err) != code || !strings.Contains(err.Error(), text) {
				t.Errorf("ended with %v, want %v %q", err, code, text)
			}
			return
		}
	}
}

func TestRefusals(t *testing.T) {
	each(t, func(t *testing.T, form xdstest.Form) {
		f := serve(t, func(o *xds.Options) { o.MaxBytes, o.MaxStreams = 603, 1 })
		for _, tc := range []struct {
			name  string
			node  *corev3.Node
			names []string
			code  codes.Code
			text  string
		}{
			{"no node", nil, nil, codes.InvalidArgument, "missing node information"},
			{"a node too large", &corev3.Node{Id: "a", Cluster: strings.Repeat("x", 1<<20)}, nil, codes.InvalidArgument, "at most 1048576"},
			{"not confirmed", &corev3.Node{Id: "late"}, nil, codes.PermissionDenied, "no longer"},
			{"not admitted", &corev3.Node{Id: "stranger"}, nil, codes.PermissionDenied, "not here"},
			{"names in a request", &corev3.Node{Id: "a"}, []string{"1", "2", "3", "4"}, codes.ResourceExhausted, "too many resource names"},
		} {
			c := must(xdstest.Connect(t.Context(), f.conn, form, tc.node))
			check(t, c.Subscribe(eds, tc.names...))
			wantEnd(t, c, tc.code, tc.text)
		}
		c := f.connect(t, form, "b", "")
		check(t, c.Subscribe(eds, "1", "2"))
		r := must(c.Next())
		check(t, c.Ack(r, "3", "4"))
		wantEnd(t, c, codes.ResourceExhausted, "too many resource names")

		c = f.connect(t, form, "c", "")
		check(t, c.Subscribe(cds))
		next(t, c)
		second := f.connect(t, form, "c", "")
		check(t, second.Subscribe(cds))
		wantEnd(t, second, codes.ResourceExhausted, "too many streams of c")
	})
}

// TestQuestions: types outside the table are answered once per request, whatever its nonce, and are no subscription.
func TestQuestions(t *testing.T) {
	each(t, func(t *testing.T, form xdstest.Form) {
		f := serve(t, nil)
		c := f.connect(t, form, "cli", "")
		check(t, c.Ack(&xdstest.Response{Type: syncz, Nonce: "of another stream"}))
		for range 2 {
			r := next(t, c, "")
			if r.ControlPlane != "me" || r.Nonce == "" {
				t.Errorf("control plane %q, nonce %q", r.ControlPlane, r.Nonce)
			}
			check(t, c.Ack(r)) // is no request
			check(t, c.Subscribe(syncz))
		}
		next(t, c, "")
		if n := len(f.Clients()[0].Types); n != 0 {
			t.Errorf("%d types subscribed to", n)
		}
		check(t, c.Subscribe(syncz, "forbidden"))
		wantEnd(t, c, codes.PermissionDenied, "forbidden")
		if n := len(f.asked); n != 4 {
			t.Errorf("asked %d times, want 4", n)
		}
	})
}

// TestReconnect: what the client still holds is not sent again.
func TestReconnect(t *testing.T) {
	f := serve(t, nil)
	f.Publish(1, []xds.Change{set("a", cluster("x", 1), cluster("y", 1), cluster("z", 1))})
	c := f.connect(t, xdstest.Delta, "p", "a")
	check(t, c.Subscribe(cds))
	check(t, c.Ack(next(t, c, "x", "y", "z")))
	f.Close(nil, status.Error(codes.Unavailable, "go"))
	wantEnd(t, c, codes.Unavailable, "go")
	f.Publish(2, []xds.Change{set("a", cluster("y", 2)), {Group: "a", Type: cds, Remove: []string{"z"}}})
	check(t, c.Reconnect(t.Context(), f.conn, &corev3.Node{Id: "p", Cluster: "a"}))
	check(t, c.Ack(next(t, c, "y", "-z")))
	settle(t, c)
	wantSync(t, f, "p", cds, xds.Synced)
	if n := len(f.Resources("p", cds)); n != 2 {
		t.Errorf("%d resources, want x and y", n)
	}
}

// TestPartial: while a server may lack what it will hold, a client that comes from another keeps what it brings. What it
// needs, what is new and what is changed it gets; the rest follows when the server is whole.
func TestPartial(t *testing.T) {
	const rds = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	route := func(name, content string) xds.Resource {
		return must(xds.Seal(rds, name, "", &routev3.RouteConfiguration{Name: name, RequestHeadersToRemove: []string{content}}))
	}
	types := func(o *xds.Options) { o.Types = append(o.Types, xds.TypeRule{URL: rds, Order: 3, Composed: true}) }
	each(t, func(t *testing.T, form xdstest.Form) {
		old := serve(t, types)
		old.Publish(1, []xds.Change{
			set("a", cluster("cart", 1), cluster("pay", 1)), set("a", assignment("cart"), assignment("pay")),
			set("a", route("80", "cart and pay")), set("own", route("in", "permissive")),
		})
		c := old.connect(t, form, "p", "a !own")
		check(t, c.Subscribe(cds))
		check(t, c.Ack(next(t, c, "cart", "pay")))
		check(t, c.Subscribe(eds, "cart", "pay"))
		check(t, c.Ack(next(t, c, "cart", "pay")))
		check(t, c.Subscribe(rds, "80", "in"))
		check(t, c.Ack(next(t, c, "80", "in")))
		held := func() string {
			return fmt.Sprint(slices.Sorted(maps.Keys(c.Held[cds])), slices.Sorted(maps.Keys(c.Held[eds])), slices.Sorted(maps.Keys(c.Held[rds])))
		}
		before := held()

		f := serve(t, types)
		f.Partial(true)
		f.Publish(1, []xds.Change{
			set("a", cluster("cart", 2), cluster("new", 1)), set("a", assignment("cart"), assignment("new")),
			set("a", route("80", "cart")), set("own", route("in", "strict")),
		})
		check(t, c.Reconnect(t.Context(), f.conn, &corev3.Node{Id: "p", Cluster: "a !own"}))
		got := map[string]int{}
		for !cameAll(got, form) {
			r, err := c.Next()
			check(t, err)
			check(t, c.Ack(r))
			for _, n := range r.Names {
				got[n+" "+r.Type]++
			}
			if len(r.Removed) > 0 {
				t.Fatalf("%s: removed %v", r.Type, r.Removed)
			}
		}
		settle(t, c)
		if got["80 "+rds] != 0 {
			t.Error("a route was replaced by one that may lack a part")
		}
		if now := held(); form == xdstest.SotW && now != before {
			t.Errorf("held are %s, before %s", now, before)
		}
		if c.Held[cds]["pay"] == nil || c.Held[eds]["pay"] == nil {
			t.Errorf("pay is lost: %s", held())
		}
		f.Publish(2, []xds.Change{set("a", route("80", "cart and something"))})
		f.Partial(false)
		for c.Held[cds]["pay"] != nil || !bytes.Contains(c.Held[rds]["80"].GetValue(), []byte("something")) {
			r, err := c.Next()
			check(t, err)
			check(t, c.Ack(r))
		}
	})
}

// cameAll says whether all came that may come while the server is partial.
func cameAll(got map[string]int, form xdstest.Form) bool {
	want := []string{"in type.googleapis.com/envoy.config.route.v3.RouteConfiguration", "cart " + eds}
	if form == xdstest.Delta {
		want = append(want, "cart "+cds, "new "+cds)
	}
	return !slices.ContainsFunc(want, func(n string) bool { return got[n] == 0 })
}

// TestOneChange is the price of one change: marshalled once, sent to those concerned, whatever else there is.
func TestOneChange(t *testing.T) {
	const streams = 100
	each(t, func(t *testing.T, form xdstest.Form) {
		var bytes []int64
		for _, others := range []int{0, 1000} {
			f := serve(t, nil)
			first := []xds.Resource{assignment("changes")}
			for i := range others {
				first = append(first, assignment(fmt.Sprint("other", i)))
			}
			f.Publish(1, []xds.Change{set("a", first...), set("b", assignment("changes"))})
			names := make([]string, len(first))
			for i, r := range first {
				names[i] = r.Name
			}
			var clients []*xdstest.Client
			for i := range streams + 1 {
				c := f.connect(t, form, fmt.Sprint("p", i), map[bool]string{true: "a", false: "b"}[i < streams])
				check(t, c.Subscribe(eds, names...))
				r, err := c.Next()
				check(t, err)
				check(t, c.Ack(r))
				settle(t, c)
				clients = append(clients, c)
			}
			before, written := f.Stats(), f.written.Load()
			f.Publish(2, []xds.Change{set("a", must(xds.Seal(eds, "changes", "", &endpointv3.ClusterLoadAssignment{
				ClusterName: "changes", Policy: &endpointv3.ClusterLoadAssignment_Policy{WeightedPriorityHealth: true},
			})))})
			size := 0
			for _, c := range clients[:streams] {
				size += next(t, c, "changes").Size
			}
			after := f.Stats()
			got := xds.Stats{Marshalled: after.Marshalled - before.Marshalled, Sent: after.Sent - before.Sent, Bytes: after.Bytes - before.Bytes}
			if want := (xds.Stats{Marshalled: 1, Sent: streams, Bytes: uint64(size)}); got != want {
				t.Errorf("with %d others: %+v, want %+v", others, got, want)
			}
			bytes = append(bytes, f.written.Load()-written)
			if overhead := bytes[len(bytes)-1] - int64(size); overhead < 0 || overhead > 100*streams {
				t.Errorf("%d bytes on the wire for %d of responses", bytes[len(bytes)-1], size)
			}
		}
		if d := bytes[1] - bytes[0]; d > 50*streams || d < -50*streams { // HTTP/2 pings and window updates vary
			t.Errorf("bytes on the wire with 0 and 1000 others: %v", bytes)
		}
		t.Logf("bytes on the wire with 0 and 1000 others: %v", bytes)
	})
}

// TestSlowClient: a client that reads nothing is cut, and delays nobody.
func TestSlowClient(t *testing.T) {
	each(t, func(t *testing.T, form xdstest.Form) {
		f := serve(t, func(o *xds.Options) { o.WriteTimeout = 100 * time.Millisecond })
		big := &clusterv3.Cluster{Name: "big", AltStatName: strings.Repeat("x", 1<<20)}
		f.Publish(1, []xds.Change{set("slow", must(xds.Seal(cds, "big", "", big))), set("quick", cluster("x", 0))})
		slow := f.connect(t, form, "slow", "slow")
		check(t, slow.Subscribe(cds))
		check(t, slow.Subscribe(eds, "big")) // gRPC takes one response of any size
		quick := f.connect(t, form, "quick", "quick")
		check(t, quick.Subscribe(cds))
		for i := range 20 {
			check(t, quick.Ack(next(t, quick, "x")))
			f.Publish(2, []xds.Change{set("quick", cluster("x", int64(i+1)))})
		}
		if err := <-f.ended; status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("ended with %v", err)
		}
		wantEnd(t, slow, codes.DeadlineExceeded, "client took no response in time")
	})
}

// TestEnd: Run ends streams, also those without a first request, and then refuses.
func TestEnd(t *testing.T) {
	f := serve(t, nil)
	s := xds.NewServer(xds.Options{Admit: admit(func(xds.Hello) (*xds.Session, error) { return &xds.Session{}, nil })})
	conn := listen(t, s.Register, f)
	ctx, cancel := context.WithCancel(t.Context())
	c := must(xdstest.Connect(t.Context(), conn, xdstest.SotW, &corev3.Node{}))
	check(t, c.Subscribe(syncz))
	next(t, c)
	silent := must(xdstest.Connect(t.Context(), conn, xdstest.Delta, nil))
	cancel()
	check(t, s.Run(ctx))
	wantEnd(t, c, codes.Unavailable, "shutting down")
	wantEnd(t, silent, codes.Unavailable, "shutting down")
	late := must(xdstest.Connect(t.Context(), conn, xdstest.Delta, nil))
	wantEnd(t, late, codes.Unavailable, "shutting down")
}
