// Package node is the data plane's hold on a pod's network: what is redirected to the proxy, and what passes it by.
package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
)

// Redirection says which of a pod's TCP connections go through its proxy.
type Redirection struct {
	Outbound uint16 // the proxy's port for what leaves the pod
	Inbound  uint16 // and for what enters it
	ProxyID  uint32 // uid and gid of the proxy, whose own connections pass

	IncludeInbound  Ports
	ExcludeInbound  []uint16
	IncludeOutbound []uint16 // these ports go to the proxy whatever their address
	ExcludeOutbound []uint16
	IncludeCIDRs    Prefixes
	ExcludeCIDRs    []netip.Prefix

	VirtualInterfaces []string // of guests whose traffic enters here and leaves the pod: treated as outbound
	ExcludeInterfaces []string

	IPv6 bool // the pod has an IPv6 address
}

// Ports is a list, or all of them.
type Ports struct {
	All  bool
	List []uint16
}

// Prefixes is a list, or all of them.
type Prefixes struct {
	All  bool
	List []netip.Prefix
}

// ownPorts are the proxy's own ports, which are reached directly.
var ownPorts = []uint16{15008, 15020, 15021, 15090}

// Rules returns the nft script that replaces the pod's redirection.
func (r Redirection) Rules() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	proxy := strconv.FormatUint(uint64(r.ProxyID), 10)

	line("table inet heddle")
	line("delete table inet heddle")
	line("table inet heddle {")
	line("  chain prerouting {")
	line("    type nat hook prerouting priority dstnat; policy accept;")
	for _, name := range r.ExcludeInterfaces {
		line("    iifname %q return", name)
	}
	for _, name := range r.VirtualInterfaces {
		line("    iifname %q meta l4proto tcp goto captured", name)
	}
	line("    meta l4proto tcp jump inbound")
	line("  }")
	line("  chain output {")
	line("    type nat hook output priority -100; policy accept;") // nft 1.0.6 refuses the name dstnat here
	for _, name := range r.ExcludeInterfaces {
		line("    oifname %q return", name)
	}
	line("    meta l4proto tcp jump outbound")
	line("  }")

	line("  chain inbound {")
	excluded := slices.Compact(slices.Sorted(slices.Values(slices.Concat(ownPorts, r.ExcludeInbound))))
	line("    tcp dport { %s } return", ports(excluded))
	switch {
	case r.IncludeInbound.All:
		line("    meta l4proto tcp redirect to :%d", r.Inbound)
	case len(r.IncludeInbound.List) > 0:
		line("    tcp dport { %s } redirect to :%d", ports(r.IncludeInbound.List), r.Inbound)
	}
	line("  }")

	line("  chain outbound {")
	line(`    oifname "lo" ip saddr 127.0.0.6 return`) // from the inbound proxy to the application
	line(`    oifname "lo" ip6 saddr ::6 return`)
	for _, id := range []string{"skuid", "skgid"} {
		// The application calls its own service: the proxy's connection to the pod's own address enters as any other.
		line(`    oifname "lo" ip daddr != 127.0.0.1 meta %s %s tcp dport != 15008 redirect to :%d`, id, proxy, r.Inbound)
		line(`    oifname "lo" ip6 daddr != ::1 meta %s %s tcp dport != 15008 redirect to :%d`, id, proxy, r.Inbound)
		line(`    oifname "lo" meta %s != %s return`, id, proxy) // the application to itself
		line("    meta %s %s return", id, proxy)
	}
	line("    ip daddr 127.0.0.1 return")
	line("    ip6 daddr ::1 return")
	line("    goto captured")
	line("  }")

	line("  chain captured {")
	for _, p := range r.ExcludeCIDRs {
		line("    %s daddr %s return", family(p), p)
	}
	if len(r.ExcludeOutbound) > 0 {
		line("    tcp dport { %s } return", ports(r.ExcludeOutbound))
	}
	if len(r.IncludeOutbound) > 0 {
		line("    tcp dport { %s } redirect to :%d", ports(r.IncludeOutbound), r.Outbound)
	}
	if r.IncludeCIDRs.All {
		line("    meta l4proto tcp redirect to :%d", r.Outbound)
	}
	for _, p := range r.IncludeCIDRs.List {
		line("    %s daddr %s meta l4proto tcp redirect to :%d", family(p), p, r.Outbound)
	}
	line("  }")
	line("}")
	return b.String()
}

func family(p netip.Prefix) string {
	if p.Addr().Is4() {
		return "ip"
	}
	return "ip6"
}

func ports(list []uint16) string {
	s := make([]string, len(list))
	for i, p := range list {
		s[i] = strconv.Itoa(int(p))
	}
	return strings.Join(s, ", ")
}

// Apply installs the redirection in the network namespace that it runs in, in one transaction. It needs NET_ADMIN.
func (r Redirection) Apply(ctx context.Context, nft string) error {
	if r.IPv6 {
		// The source by which the application sees the inbound proxy. Of 127.0.0.6 the kernel owns the whole /8.
		if err := addLoopback("::6/128"); err != nil {
			return fmt.Errorf("give lo the address ::6: %w", err)
		}
	}
	cmd := exec.CommandContext(ctx, nft, "-f", "-")
	cmd.Stdin = strings.NewReader(r.Rules())
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("redirect by %s (it needs NET_ADMIN and nf_tables in the kernel): %w\n%s", nft, err, out.Bytes())
	}
	return nil
}

func addLoopback(cidr string) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	return netlink.AddrReplace(lo, addr)
}

// Fields are the values of istio-iptables' flags, as text.
type Fields struct {
	OutboundPort, InboundPort, ProxyID, Mode string
	IncludeCIDRs, ExcludeCIDRs               string
	IncludeInbound, ExcludeInbound           string
	IncludeOutbound, ExcludeOutbound         string
	VirtualInterfaces, ExcludeInterfaces     string
}

// nameRunes are what the name of an interface may be made of here. The kernel allows more, but the names are written into
// a program of nft, where a star is a wildcard and a backslash no escape.
const nameRunes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-:@+"

// Parse reads the fields, and names every fault at once.
func Parse(f Fields) (Redirection, error) {
	var faults []error
	list := func(name, s string) []uint16 {
		var out []uint16
		for _, v := range split(s) {
			p, err := strconv.ParseUint(v, 10, 16)
			if err != nil {
				faults = append(faults, fmt.Errorf("%s: %q is not a port", name, v))
			}
			out = append(out, uint16(p))
		}
		return out
	}
	one := func(name, s string) uint16 {
		if l := list(name, s); len(l) == 1 && l[0] > 0 {
			return l[0]
		}
		faults = append(faults, fmt.Errorf("%s: %q is not one port", name, s))
		return 0
	}
	cidrs := func(name, s string) []netip.Prefix {
		var out []netip.Prefix
		for _, v := range split(s) {
			p, err := netip.ParsePrefix(v)
			if a, aerr := netip.ParseAddr(v); aerr == nil {
				p, err = netip.PrefixFrom(a, a.BitLen()), nil
			}
			if err != nil {
				faults = append(faults, fmt.Errorf("%s: %q is not an address range", name, v))
			}
			out = append(out, p.Masked())
		}
		return out
	}
	names := func(name, s string) []string {
		l := split(s)
		for _, v := range l {
			if len(v) > 15 || strings.Trim(v, nameRunes) != "" {
				faults = append(faults, fmt.Errorf("%s: %q is not the name of an interface", name, v))
			}
		}
		return l
	}
	r := Redirection{
		Outbound: one("-p", f.OutboundPort), Inbound: one("-z", f.InboundPort),
		ExcludeInbound:    list("-d", f.ExcludeInbound),
		IncludeOutbound:   list("-q", f.IncludeOutbound),
		ExcludeOutbound:   list("-o", f.ExcludeOutbound),
		ExcludeCIDRs:      cidrs("-x", f.ExcludeCIDRs),
		VirtualInterfaces: names("-k", f.VirtualInterfaces),
		ExcludeInterfaces: names("-c", f.ExcludeInterfaces),
	}
	if r.IncludeInbound.All = f.IncludeInbound == "*"; !r.IncludeInbound.All {
		r.IncludeInbound.List = list("-b", f.IncludeInbound)
	}
	if r.IncludeCIDRs.All = f.IncludeCIDRs == "*"; !r.IncludeCIDRs.All {
		r.IncludeCIDRs.List = cidrs("-i", f.IncludeCIDRs)
	}
	id, err := strconv.ParseUint(f.ProxyID, 10, 32)
	if err != nil {
		faults = append(faults, fmt.Errorf("-u: %q is not a user id", f.ProxyID))
	}
	r.ProxyID = uint32(id)
	if f.Mode != "REDIRECT" {
		faults = append(faults, fmt.Errorf("-m: mode %q is not supported, REDIRECT is", f.Mode))
	}
	if len(faults) > 0 {
		return Redirection{}, errors.Join(faults...)
	}
	return r, nil
}

func split(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}
