package xds

import (
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"
)

const routeType = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"

func route(name string, hosts ...string) *routev3.RouteConfiguration {
	m := &routev3.RouteConfiguration{Name: name}
	for _, h := range hosts {
		m.VirtualHosts = append(m.VirtualHosts, &routev3.VirtualHost{Name: h, Domains: []string{h}})
	}
	return m
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestComposeEqualsWhole(t *testing.T) {
	whole := route("r", "a", "b")
	compose := func(hosts ...string) Resource {
		var parts []Fragment
		for _, h := range route("r", hosts...).GetVirtualHosts() {
			parts = append(parts, must(NewFragment(2, h)))
		}
		return must(Compose(routeType, "r", "", route("r"), parts))
	}
	ab := compose("a", "b")
	for name, r := range map[string]Resource{"composite": ab, "sealed": must(Seal(routeType, "r", "", whole))} {
		got := &routev3.RouteConfiguration{}
		if err := r.Any().UnmarshalTo(got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(whole, got, protocmp.Transform()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	versions := []string{ab.Version, compose("b", "a").Version, compose("a").Version, compose("ab").Version, compose().Version}
	if n := len(slices.Compact(slices.Sorted(slices.Values(versions)))); n != len(versions) {
		t.Errorf("%d versions of %d contents: %q", n, len(versions), versions)
	}
	if ab.Version != compose("a", "b").Version {
		t.Error("equal content, other version")
	}
}

// TestEncode decodes responses of both forms with the generated types.
func TestEncode(t *testing.T) {
	hosts := must(NewFragment(2, route("", "a").GetVirtualHosts()[0]))
	r := must(Compose(routeType, "r", "", route("r"), []Fragment{hosts, hosts}))
	s := must(Seal(routeType, "s", "", route("s")))
	m := &message{typeURL: routeType, nonce: "n", version: "7", set: []*Resource{&r, &s}, gone: []string{"x", "y"}}
	plane := &corev3.ControlPlane{Identifier: "me"}

	gotDelta, gotSotW := &discoveryv3.DeltaDiscoveryResponse{}, &discoveryv3.DiscoveryResponse{}
	for f, got := range map[*form]proto.Message{deltaForm: gotDelta, sotwForm: gotSotW} {
		m.controlPlane = "me"
		data := f.encode(m)
		if err := proto.Unmarshal(data.Materialize(), got); err != nil {
			t.Fatal(err)
		}
		if typeURL, nonce, err := parseResponse(data); typeURL != routeType || nonce != "n" || err != nil {
			t.Errorf("parsed as type %q, nonce %q, %v", typeURL, nonce, err)
		}
	}
	wantDelta := &discoveryv3.DeltaDiscoveryResponse{
		SystemVersionInfo: "7", TypeUrl: routeType, Nonce: "n", RemovedResources: []string{"x", "y"}, ControlPlane: plane,
		Resources: []*discoveryv3.Resource{
			{Name: "r", Version: r.Version, Resource: must(anypb.New(route("r", "a", "a")))},
			{Name: "s", Version: s.Version, Resource: must(anypb.New(route("s")))},
		},
	}
	wantSotW := &discoveryv3.DiscoveryResponse{
		VersionInfo: "7", TypeUrl: routeType, Nonce: "n", ControlPlane: plane,
		Resources: []*anypb.Any{must(anypb.New(route("r", "a", "a"))), must(anypb.New(route("s")))},
	}
	if diff := cmp.Diff(wantDelta, gotDelta, protocmp.Transform()); diff != "" {
		t.Errorf("delta (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(wantSotW, gotSotW, protocmp.Transform()); diff != "" {
		t.Errorf("state of the world (-want +got):\n%s", diff)
	}
}

func seeds(f *testing.F) {
	node := &corev3.Node{Id: "sidecar~10.0.0.1~a.b~b.svc.cluster.local"}
	fault := &statuspb.Status{Code: 13, Message: "no"}
	for _, m := range []proto.Message{
		&discoveryv3.DeltaDiscoveryRequest{
			Node: node, TypeUrl: routeType, ResourceNamesSubscribe: []string{"*", "a"}, ResourceNamesUnsubscribe: []string{"b"},
			InitialResourceVersions: map[string]string{"a": "1", "": ""}, ResponseNonce: "n", ErrorDetail: fault,
		},
		&discoveryv3.DiscoveryRequest{Node: node, TypeUrl: routeType, ResourceNames: []string{"a"}, ResponseNonce: "n", ErrorDetail: fault},
		&discoveryv3.DiscoveryRequest{Node: &corev3.Node{}, ErrorDetail: &statuspb.Status{}},
	} {
		b := must(proto.Marshal(m))
		f.Add(b)
		f.Add(slices.Concat(b, b)) // messages concatenate
		f.Add(b[:len(b)-1])
	}
	f.Add([]byte{0x0b, 0x0a, 0x01, 'x', 0x0c, 0x3a, 0x00}) // a group, and an empty error
}

// The text of a rejection goes to logs and into other messages, whatever the client writes.
func TestBrief(t *testing.T) {
	for in, want := range map[string]string{
		"no such filter": "no such filter", "\xff!": "?!", strings.Repeat("x", maxDetail-1) + "ü": strings.Repeat("x", maxDetail-1) + "?",
	} {
		if got := brief(in); got != want {
			t.Errorf("%.20q… of %d bytes is %.20q… of %d", in, len(in), got, len(got))
		}
	}
}

// What waits with a request, or stays after it, is not as large as a client likes.
func TestRequestMemory(t *testing.T) {
	long := strings.Repeat("x", 900<<10)
	parse := func(f *form, m proto.Message) (*request, error) {
		return f.parseRequest(mem.BufferSlice{mem.SliceBuffer(must(proto.Marshal(m)))}, 10, nil)
	}
	for what, m := range map[string]*discoveryv3.DeltaDiscoveryRequest{"type": {TypeUrl: long}, "nonce": {ResponseNonce: long}} {
		if _, err := parse(deltaForm, m); err != errMalformed {
			t.Errorf("a %s of a megabyte: %v", what, err)
		}
	}
	if _, err := parse(sotwForm, &discoveryv3.DiscoveryRequest{TypeUrl: long}); err != errMalformed {
		t.Errorf("a type of a megabyte: %v", err)
	}
	if _, err := deltaForm.parseHello(mem.BufferSlice{mem.SliceBuffer(must(proto.Marshal(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: long})))}); err != errMalformed {
		t.Errorf("a first type of a megabyte: %v", err)
	}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	const requests, most = 16, 16 << 10
	before := heap()
	var kept []*request
	for range requests {
		kept = append(kept, must(parse(deltaForm, &discoveryv3.DeltaDiscoveryRequest{
			InitialResourceVersions: map[string]string{"a": long}, ErrorDetail: &statuspb.Status{Message: long},
		})))
	}
	if after := heap(); after > before+requests*most {
		t.Errorf("a request takes %d bytes, want at most %d", (after-before)/requests, most)
	}
	if v := kept[0].held["a"]; v != unknown {
		t.Errorf("version %.20q", v)
	}
	runtime.KeepAlive(kept)
}

// check holds the parser to proto: what proto takes is taken, and read alike.
func check(t *testing.T, f *form, b []byte, want *request) {
	if len(want.typeURL) > maxText || len(want.nonce) > maxText {
		return // not taken
	}
	for n, v := range want.held {
		if len(v) > maxVersion {
			want.held[n] = unknown
		}
	}
	half := len(b) / 2
	data := mem.BufferSlice{mem.SliceBuffer(b[:half]), mem.SliceBuffer(b[half:])}
	got, err := f.parseRequest(data, len(b), nil)
	hello, errHello := f.parseHello(data)
	if err != nil || errHello != nil {
		t.Fatalf("proto takes what is not taken here: %v, %v", err, errHello)
	}
	got.node = hello.node
	if hello.typeURL != want.typeURL {
		t.Fatalf("type %q, want %q", hello.typeURL, want.typeURL)
	}
	if (got.node == nil) != (want.node == nil) {
		t.Fatalf("node %v, want %v", got.node, want.node)
	}
	if got.node != nil {
		a, b := &corev3.Node{}, &corev3.Node{}
		if proto.Unmarshal(got.node, a) != nil || proto.Unmarshal(want.node, b) != nil || !proto.Equal(a, b) {
			t.Fatalf("node %v, want %v", a, b)
		}
	}
	if got.brings != want.brings || got.typeURL != want.typeURL || got.nonce != want.nonce || got.nack != want.nack || got.detail != brief(want.detail) ||
		!slices.Equal(got.names, want.names) || !slices.Equal(got.drop, want.drop) || !maps.Equal(got.held, want.held) {
		t.Fatalf("got %+v, want %+v", got, want)
	}
	if count := max(len(got.names), len(got.drop), len(got.held)); count > 0 {
		if _, err := f.parseRequest(mem.BufferSlice{mem.SliceBuffer(b)}, count-1, nil); err != errNames {
			t.Fatalf("%d names within %d: %v", count, count-1, err)
		}
	}
}

func nodeBytes(n *corev3.Node) []byte {
	if n == nil {
		return nil
	}
	return append([]byte{}, must(proto.Marshal(n))...)
}

func FuzzDeltaRequest(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &discoveryv3.DeltaDiscoveryRequest{}
		if proto.Unmarshal(b, m) != nil {
			_, _ = deltaForm.parseRequest(mem.BufferSlice{mem.SliceBuffer(b)}, 10, nil) // does not panic
			return
		}
		check(t, deltaForm, b, &request{
			typeURL: m.GetTypeUrl(), nonce: m.GetResponseNonce(), node: nodeBytes(m.GetNode()), nack: m.GetErrorDetail() != nil,
			detail: m.GetErrorDetail().GetMessage(), names: m.GetResourceNamesSubscribe(), drop: m.GetResourceNamesUnsubscribe(),
			held: m.GetInitialResourceVersions(),
		})
	})
}

func FuzzStateOfTheWorldRequest(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &discoveryv3.DiscoveryRequest{}
		if proto.Unmarshal(b, m) != nil {
			_, _ = sotwForm.parseRequest(mem.BufferSlice{mem.SliceBuffer(b)}, 10, nil) // does not panic
			return
		}
		check(t, sotwForm, b, &request{
			typeURL: m.GetTypeUrl(), nonce: m.GetResponseNonce(), node: nodeBytes(m.GetNode()), nack: m.GetErrorDetail() != nil,
			detail: m.GetErrorDetail().GetMessage(), names: m.GetResourceNames(), brings: m.GetVersionInfo() != "",
		})
	})
}
