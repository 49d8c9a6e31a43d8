package cluster

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/local/internal/netns"
	"github.com/heddle-mesh/heddle/local/internal/node"
	"github.com/heddle-mesh/heddle/local/internal/plan"
)

// uplink is the router's end of the link to the host.
const uplink = "up0"

// router is the network namespace that joins host, nodes and control planes. It has no
// default route: what a pod asks for beyond it fails at once.
type router struct {
	thread *netns.Thread
	handle *netlink.Handle // acts in the namespace
	ns     vnetns.NsHandle
	base   plan.Base
}

func newRouter(base plan.Base) (*router, error) {
	thread, err := netns.New()
	if err != nil {
		return nil, err
	}
	ns, err := vnetns.GetFromPath(thread.Path())
	if err != nil {
		return nil, fmt.Errorf("open the router's namespace: %w", err)
	}
	handle, err := netlink.NewHandleAt(ns)
	if err != nil {
		return nil, fmt.Errorf("open the router's namespace: %w", err)
	}
	return &router{thread: thread, handle: handle, ns: ns, base: base}, nil
}

// ensure makes what is missing of the link to the host, the cluster's bridge and routes.
func (r *router) ensure(c plan.Cluster) error {
	if err := r.thread.Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644)
	}); err != nil {
		return fmt.Errorf("let the router forward: %w", err)
	}
	lo, err := r.handle.LinkByName("lo")
	if err != nil {
		return err
	}
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName(c)}}
	if err := errors.Join(r.handle.LinkSetUp(lo), ignoreExist(r.handle.LinkAdd(bridge)), r.ensureUplink(),
		configure(r.handle, bridgeName(c), c.API(), c.Nodes.Bits())); err != nil {
		return err
	}
	host, err := netlink.LinkByName(r.base.LinkName())
	if err != nil {
		return err
	}
	for _, p := range c.Routed() {
		route := &netlink.Route{LinkIndex: host.Attrs().Index, Dst: ipNet(p), Gw: r.base.Router().AsSlice()}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("route %s to the router: %w", p, err)
		}
	}
	return nil
}

func (r *router) ensureUplink() error {
	name := r.base.LinkName()
	if _, err := r.handle.LinkByName(uplink); err != nil {
		// one of an earlier router may stay for a moment after its namespace
		if old, err := netlink.LinkByName(name); err == nil {
			if err := ignoreGone(netlink.LinkDel(old)); err != nil {
				return fmt.Errorf("delete old link %s: %w", name, err)
			}
		}
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: uplink, PeerNamespace: netlink.NsFd(r.ns)}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("make link %s: %w", name, err)
		}
	}
	here, err := netlink.NewHandle()
	if err != nil {
		return err
	}
	defer here.Close()
	return errors.Join(
		configure(here, name, r.base.Host(), r.base.Link().Bits()),
		configure(r.handle, uplink, r.base.Router(), r.base.Link().Bits()))
}

// attach gives the node, whose PID 1 is pid, its link.
func (r *router) attach(c plan.Cluster, n plan.Node, pid int) error {
	name := fmt.Sprintf("v%d-%d", c.Index, n.Index)
	if old, err := r.handle.LinkByName(name); err == nil {
		if err := ignoreGone(r.handle.LinkDel(old)); err != nil {
			return fmt.Errorf("delete old link of %s: %w", n.Name, err)
		}
	}
	bridge, err := r.handle.LinkByName(bridgeName(c))
	if err != nil {
		return err
	}
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: name, MasterIndex: bridge.Attrs().Index},
		PeerName:  node.Link, PeerNamespace: netlink.NsPid(pid),
	}
	if err := r.handle.LinkAdd(veth); err != nil {
		return fmt.Errorf("make link of %s: %w", n.Name, err)
	}
	if err := r.handle.LinkSetUp(veth); err != nil {
		return err
	}
	return r.Route(n.Pods, n.Addr)
}

// Route sends range to via, instead of wherever it went.
func (r *router) Route(to netip.Prefix, via netip.Addr) error {
	if err := r.handle.RouteReplace(&netlink.Route{Dst: ipNet(to), Gw: via.AsSlice()}); err != nil {
		return fmt.Errorf("route %s by %s: %w", to, via, err)
	}
	return nil
}

// Unroute removes the route to range; one that is not there is no error.
func (r *router) Unroute(to netip.Prefix) error {
	err := r.handle.RouteDel(&netlink.Route{Dst: ipNet(to)})
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove route of %s: %w", to, err)
	}
	return nil
}

func bridgeName(c plan.Cluster) string { return fmt.Sprintf("br%d", c.Index) }

func configure(h *netlink.Handle, name string, addr netip.Addr, bits int) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	a := &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(bits, 32)}}
	if err := errors.Join(h.AddrReplace(link, a), h.LinkSetUp(link)); err != nil {
		return fmt.Errorf("configure link %s: %w", name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}
}

func ignoreExist(err error) error {
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

func ignoreGone(err error) error {
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}
