// Package plan gives every part of a local installation its address. It is pure: who calls
// it says what the machine uses already.
package plan

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// MaxNodes is how many nodes a cluster may have: node I has the address .1I of its range.
const MaxNodes = 9

// span is how many second octets an installation takes, from its base on.
const span = 40

// Base is the pair of first octets from which all addresses of one instance are counted.
type Base struct{ A, B byte }

// Candidates are the bases tried in order when the user names none. Private ranges, and for
// machines that route all of 10.0.0.0/8 elsewhere the shared range of RFC 6598.
func Candidates() []Base {
	return []Base{{10, 200}, {10, 160}, {10, 120}, {10, 80}, {10, 40}, {100, 64}}
}

// ParseBase reads "A.B".
func ParseBase(s string) (Base, error) {
	a, b, ok := strings.Cut(s, ".")
	x, errA := strconv.ParseUint(a, 10, 8)
	y, errB := strconv.ParseUint(b, 10, 8)
	if !ok || errA != nil || errB != nil || x == 0 || x == 127 || x >= 224 || y+span > 256 {
		return Base{}, fmt.Errorf("base %q: give the first two octets, as in 10.200; the second may be at most %d", s, 256-span)
	}
	return Base{byte(x), byte(y)}, nil
}

func (b Base) String() string { return fmt.Sprintf("%d.%d", b.A, b.B) }

// MarshalText and UnmarshalText keep a Base readable in the instance's state file.
func (b Base) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText is ParseBase.
func (b *Base) UnmarshalText(text []byte) (err error) {
	*b, err = ParseBase(string(text))
	return err
}

func (b Base) prefix(offset, third, fourth, bits int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{b.A, b.B + byte(offset), byte(third), byte(fourth)}), bits)
}

// Link is the network between host (first address) and router (second).
func (b Base) Link() netip.Prefix { return b.prefix(0, 0, 0, 30) }

// Host is the host's address on Link; the registry listens there.
func (b Base) Host() netip.Addr { return b.prefix(0, 0, 1, 32).Addr() }

// Router is the router's address on Link.
func (b Base) Router() netip.Addr { return b.prefix(0, 0, 2, 32).Addr() }

// LinkName is the host's end of Link.
func (b Base) LinkName() string { return fmt.Sprintf("hdl%d-%d", b.A, b.B) }

// Cluster gives the ranges of cluster n, 1 to 9.
func (b Base) Cluster(n int) Cluster {
	return Cluster{
		Index:     n,
		Nodes:     b.prefix(n, 0, 0, 24),
		Pods:      b.prefix(10+n, 0, 0, 16),
		Services:  b.prefix(20+n, 0, 0, 16),
		Balancers: b.prefix(30+n, 0, 0, 24),
	}
}

// Cluster holds the ranges of one cluster.
type Cluster struct {
	Index                            int
	Nodes, Pods, Services, Balancers netip.Prefix
}

// Name is what directories, nodes and bridges of the cluster are called after.
func (c Cluster) Name() string { return "c" + strconv.Itoa(c.Index) }

// API is the address of router and API server in Nodes.
func (c Cluster) API() netip.Addr { return host(c.Nodes, 1) }

// ServiceAPI is the API server's address as a service.
func (c Cluster) ServiceAPI() netip.Addr { return host(c.Services, 1) }

// DNS is the address of the service kube-dns.
func (c Cluster) DNS() netip.Addr { return host(c.Services, 10) }

// Node gives node i, counted from 1.
func (c Cluster) Node(i int) Node {
	pods := c.Pods.Addr().As4()
	pods[2] = byte(i)
	return Node{
		Index: i,
		Name:  fmt.Sprintf("%s-n%d", c.Name(), i),
		Addr:  host(c.Nodes, byte(10+i)),
		Pods:  netip.PrefixFrom(netip.AddrFrom4(pods), 24),
	}
}

// Node holds the addresses of one node.
type Node struct {
	Index int
	Name  string
	Addr  netip.Addr
	Pods  netip.Prefix
}

// Balancer is the i-th address for Services of type LoadBalancer, counted from 1; false if
// the range has no such address.
func (c Cluster) Balancer(i int) (netip.Addr, bool) {
	if i < 1 || i > 254 {
		return netip.Addr{}, false
	}
	return host(c.Balancers, byte(i)), true
}

func host(p netip.Prefix, last byte) netip.Addr {
	a := p.Addr().As4()
	a[3] = last
	return netip.AddrFrom4(a)
}

// Routed are the ranges the host reaches through the router.
func (c Cluster) Routed() []netip.Prefix { return []netip.Prefix{c.Nodes, c.Pods, c.Balancers} }

// Use is a range that the machine uses, and for what.
type Use struct {
	Range netip.Prefix
	What  string
}

// Conflict says which uses overlap the addresses of base, nil if none does. A default route
// overlaps nothing.
func (b Base) Conflict(uses []Use) error {
	c := b.Cluster(1)
	ours := []netip.Prefix{b.Link(), c.Nodes, c.Pods, c.Services, c.Balancers}
	var errs []error
	for _, u := range uses {
		for _, p := range ours {
			if u.Range.Bits() > 0 && u.Range.Overlaps(p) {
				errs = append(errs, fmt.Errorf("base %s needs %s, which overlaps %s (%s)", b, p, u.Range, u.What))
				break
			}
		}
	}
	return errors.Join(errs...)
}

// Choose returns the first of the candidates without a conflict.
func Choose(uses []Use) (Base, error) {
	var errs []error
	for _, b := range Candidates() {
		err := b.Conflict(uses)
		if err == nil {
			return b, nil
		}
		errs = append(errs, err)
	}
	return Base{}, fmt.Errorf("every address range that is tried by itself is taken; choose one with --base A.B:\n%w", errors.Join(errs...))
}
