package plan

import (
	"net/netip"
	"strings"
	"testing"
)

func TestAddresses(t *testing.T) {
	b, err := ParseBase("10.200")
	if err != nil {
		t.Fatal(err)
	}
	c := b.Cluster(1)
	n := c.Node(2)
	balancer, _ := c.Balancer(1)
	for _, tt := range []struct{ what, got, want string }{
		{"link", b.Link().String(), "10.200.0.0/30"},
		{"host", b.Host().String(), "10.200.0.1"},
		{"router", b.Router().String(), "10.200.0.2"},
		{"link's name", b.LinkName(), "hdl10-200"},
		{"nodes", c.Nodes.String(), "10.201.0.0/24"},
		{"pods", c.Pods.String(), "10.211.0.0/16"},
		{"services", c.Services.String(), "10.221.0.0/16"},
		{"balancers", c.Balancers.String(), "10.231.0.0/24"},
		{"API server", c.API().String(), "10.201.0.1"},
		{"API service", c.ServiceAPI().String(), "10.221.0.1"},
		{"DNS", c.DNS().String(), "10.221.0.10"},
		{"first balancer", balancer.String(), "10.231.0.1"},
		{"node", n.Name, "c1-n2"},
		{"node's address", n.Addr.String(), "10.201.0.12"},
		{"node's pods", n.Pods.String(), "10.211.2.0/24"},
		{"nodes of cluster 3", b.Cluster(3).Nodes.String(), "10.203.0.0/24"},
	} {
		if tt.got != tt.want {
			t.Errorf("%s = %s, want %s", tt.what, tt.got, tt.want)
		}
	}
	for _, i := range []int{0, 255} {
		if addr, ok := c.Balancer(i); ok {
			t.Errorf("Balancer(%d) = %s, want none", i, addr)
		}
	}
}

func TestParseBase(t *testing.T) {
	for _, s := range []string{"", "10", "10.", "10.217", "10.-1", "0.1", "127.1", "224.1", "256.1", "10.1.2", "a.b"} {
		if b, err := ParseBase(s); err == nil {
			t.Errorf("ParseBase(%q) = %s, want an error", s, b)
		}
	}
	for _, s := range []string{"10.200", "10.216", "100.64", "1.0"} {
		b, err := ParseBase(s)
		if err != nil || b.String() != s {
			t.Errorf("ParseBase(%q) = %s, %v", s, b, err)
		}
	}
}

func TestCandidatesAreApart(t *testing.T) {
	for i, a := range Candidates() {
		c := a.Cluster(9) // the last ranges of one are below the first of the next
		uses := []Use{{a.Link(), "a"}, {a.Cluster(1).Nodes, "a"}, {c.Pods, "a"}, {c.Services, "a"}, {c.Balancers, "a"}}
		for j, b := range Candidates() {
			if err := b.Conflict(uses); (err != nil) != (i == j) {
				t.Errorf("%s beside %s: %v", b, a, err)
			}
		}
	}
}

func TestChoose(t *testing.T) {
	use := func(p string) Use { return Use{netip.MustParsePrefix(p), "here"} }
	for _, tt := range []struct {
		name string
		uses []Use
		want string
	}{
		{"nothing used", nil, "10.200"},
		{"a default route overlaps nothing", []Use{use("0.0.0.0/0")}, "10.200"},
		{"a resolver beyond the ranges", []Use{use("10.255.255.53/32")}, "10.200"},
		{"a resolver among the pods", []Use{use("10.211.0.53/32")}, "10.160"},
		{"a route inside the services", []Use{use("10.221.4.0/24")}, "10.160"},
		{"a wide route over all of 10", []Use{use("10.0.0.0/8")}, "100.64"},
		{"IPv6 does not matter", []Use{use("::/1")}, "10.200"},
		{"another instance", []Use{use("10.200.0.0/30"), use("10.160.0.0/30")}, "10.120"},
	} {
		if b, err := Choose(tt.uses); err != nil || b.String() != tt.want {
			t.Errorf("%s: chose %s (%v), want %s", tt.name, b, err, tt.want)
		}
	}
	_, err := Choose([]Use{use("10.0.0.0/8"), use("100.64.0.0/10")})
	if err == nil || !strings.Contains(err.Error(), "--base") || !strings.Contains(err.Error(), "10.0.0.0/8 (here)") {
		t.Errorf("all taken: %v; want what is in the way and what to do", err)
	}
}
