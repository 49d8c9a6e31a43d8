// Package redirect says which of a pod's connections go through its proxy, and which pass it by: what istio-init is told, read in
// one way by who tells it and by who does it.
package redirect

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
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
	fault := func(flag string, err error) {
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", flag, err))
		}
	}
	list := func(flag, s string) []uint16 {
		l, err := ParsePorts(s)
		fault(flag, err)
		return l
	}
	one := func(flag, s string) uint16 {
		l, err := ParsePorts(s)
		if err == nil && (len(l) != 1 || l[0] == 0) {
			err = fmt.Errorf("%q is not one port", s)
		}
		fault(flag, err)
		if err != nil {
			return 0
		}
		return l[0]
	}
	cidrs := func(flag, s string) []netip.Prefix {
		l, err := ParseRanges(s)
		fault(flag, err)
		return l
	}
	names := func(flag, s string) []string {
		l, err := ParseInterfaces(s)
		fault(flag, err)
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

// ParsePorts reads a list of ports, which may be empty.
func ParsePorts(s string) (ports []uint16, err error) {
	for _, v := range split(s) {
		p, err := strconv.ParseUint(v, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("%q is not a port number (0 to 65535)", v)
		}
		ports = append(ports, uint16(p))
	}
	return ports, nil
}

// ParseRanges reads a list of address ranges and addresses, which may be empty.
func ParseRanges(s string) (ranges []netip.Prefix, err error) {
	for _, v := range split(s) {
		p, err := netip.ParsePrefix(v)
		if a, aerr := netip.ParseAddr(v); aerr == nil {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			return nil, fmt.Errorf("%q is not an address range such as 10.0.0.0/8", v)
		}
		ranges = append(ranges, p.Masked())
	}
	return ranges, nil
}

// ParseInterfaces reads a list of names of interfaces, which may be empty.
func ParseInterfaces(s string) ([]string, error) {
	names := split(s)
	for _, v := range names {
		if len(v) > 15 || strings.Trim(v, nameRunes) != "" {
			return nil, fmt.Errorf("%q is not the name of a network interface", v)
		}
	}
	return names, nil
}

// split returns the items of a comma list; empty ones, as one at the end, are none.
func split(s string) (items []string) {
	for v := range strings.SplitSeq(s, ",") {
		if v = strings.TrimSpace(v); v != "" {
			items = append(items, v)
		}
	}
	return items
}
