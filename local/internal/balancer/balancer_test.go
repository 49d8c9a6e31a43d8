package balancer

import (
	"log/slog"
	"maps"
	"net/netip"
	"testing"

	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/heddle-mesh/heddle/local/internal/plan"
)

func service(name string, policy core.ServiceExternalTrafficPolicy, addr string) *core.Service {
	s := &core.Service{
		ObjectMeta: meta.ObjectMeta{Namespace: "shop", Name: name},
		Spec:       core.ServiceSpec{Type: core.ServiceTypeLoadBalancer, ExternalTrafficPolicy: policy},
	}
	if addr != "" {
		s.Status.LoadBalancer.Ingress = []core.LoadBalancerIngress{{IP: addr}}
	}
	return s
}

func node(name, addr string, ready core.ConditionStatus) *core.Node {
	return &core.Node{
		ObjectMeta: meta.ObjectMeta{Name: name},
		Status: core.NodeStatus{
			Conditions: []core.NodeCondition{{Type: core.NodeReady, Status: ready}},
			Addresses:  []core.NodeAddress{{Type: core.NodeHostName, Address: name}, {Type: core.NodeInternalIP, Address: addr}},
		},
	}
}

func endpoint(service, node string, ready bool) *discovery.EndpointSlice {
	return &discovery.EndpointSlice{
		ObjectMeta: meta.ObjectMeta{Namespace: "shop", Name: service + "-" + node, Labels: map[string]string{discovery.LabelServiceName: service}},
		Endpoints:  []discovery.Endpoint{{NodeName: &node, Conditions: discovery.EndpointConditions{Ready: &ready}}},
	}
}

func TestAssign(t *testing.T) {
	c := plan.Base{A: 10, B: 200}.Cluster(1)
	elsewhere := service("elsewhere", "", "192.0.2.7")
	internal := service("internal", "", "")
	internal.Spec.Type = core.ServiceTypeClusterIP
	class := "other.example/lb"
	foreign := service("foreign", "", "")
	foreign.Spec.LoadBalancerClass = &class
	keeps, copies, fresh := service("keeps", "", "10.231.0.1"), service("zz-copies", "", "10.231.0.1"), service("new", "", "")
	got := assign(c, []*core.Service{fresh, elsewhere, internal, foreign, copies, keeps})
	want := map[*core.Service]string{elsewhere: "10.231.0.2", keeps: "10.231.0.1", fresh: "10.231.0.3", copies: "10.231.0.4"}
	for s, addr := range want {
		if got[s].String() != addr {
			t.Errorf("%s has %s, want %s", s.Name, got[s], addr)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d addresses given, want %d", len(got), len(want))
	}
}

func TestTargets(t *testing.T) {
	n1, n2, down := node("n1", "10.201.0.11", core.ConditionTrue), node("n2", "10.201.0.12", core.ConditionTrue), node("n0", "10.201.0.10", core.ConditionFalse)
	addr := netip.MustParseAddr("10.231.0.1")
	for _, tt := range []struct {
		name      string
		policy    core.ServiceExternalTrafficPolicy
		endpoints []*discovery.EndpointSlice
		want      string // "" is no route
	}{
		{"any ready node", core.ServiceExternalTrafficPolicyCluster, nil, "10.201.0.11"},
		{"a node with a ready endpoint", core.ServiceExternalTrafficPolicyLocal, []*discovery.EndpointSlice{endpoint("s", "n1", false), endpoint("s", "n2", true)}, "10.201.0.12"},
		{"endpoints of another service", core.ServiceExternalTrafficPolicyLocal, []*discovery.EndpointSlice{endpoint("x", "n1", true)}, ""},
		{"an endpoint on a node that is down", core.ServiceExternalTrafficPolicyLocal, []*discovery.EndpointSlice{endpoint("s", "n0", true)}, ""},
	} {
		got := targets(map[*core.Service]netip.Addr{service("s", tt.policy, ""): addr}, tt.endpoints, []*core.Node{n2, down, n1})
		want := map[netip.Addr]netip.Addr{}
		if tt.want != "" {
			want[addr] = netip.MustParseAddr(tt.want)
		}
		if !maps.Equal(got, want) {
			t.Errorf("%s: %v, want %v", tt.name, got, want)
		}
	}
}

// router is a fake that tells of each change.
type router chan string

func (r router) Route(to netip.Prefix, via netip.Addr) error {
	r <- to.String() + " via " + via.String()
	return nil
}

func (r router) Unroute(to netip.Prefix) error {
	r <- to.String() + " gone"
	return nil
}

func TestRun(t *testing.T) {
	client := fake.NewClientset(node("n1", "10.201.0.11", core.ConditionTrue), service("s", core.ServiceExternalTrafficPolicyCluster, ""))
	routes := make(router)
	done := make(chan struct{})
	ctx := t.Context()
	t.Cleanup(func() { <-done }) // t's context has ended then
	go func() {
		defer close(done)
		Run(ctx, client, plan.Base{A: 10, B: 200}.Cluster(1), routes, slog.New(slog.DiscardHandler))
	}()
	if got := <-routes; got != "10.231.0.1/32 via 10.201.0.11" {
		t.Fatalf("route %s", got)
	}
	s, err := client.CoreV1().Services("shop").Get(ctx, "s", meta.GetOptions{})
	if err != nil || published(s).String() != "10.231.0.1" {
		t.Errorf("status has %s, %v", published(s), err)
	}
	if err := client.CoreV1().Services("shop").Delete(ctx, "s", meta.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := <-routes; got != "10.231.0.1/32 gone" {
		t.Errorf("after its deletion: %s", got)
	}
}
