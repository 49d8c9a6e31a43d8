package instance

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/local/internal/cgroup"
	"github.com/heddle-mesh/heddle/local/internal/plan"
)

const (
	leastDisk                 = 3 << 30 // bytes: images, their unpacked layers, logs
	inotifyPlane, inotifyNode = 15, 8   // inotify instances, counted
	overlayType               = 0x794c7630
)

// packages names the Debian package of each program that comes from outside.
var packages = []struct{ program, pkg string }{
	{"containerd", "containerd"},
	{"runc", "runc"},
	{"nft", "nftables"},
	{"mount", "mount"},
	{"/usr/lib/cni/bridge", "containernetworking-plugins"},
	{"/usr/lib/cni/host-local", "containernetworking-plugins"},
	{"/usr/lib/cni/portmap", "containernetworking-plugins"},
}

// Root says whether this process may do its work at all.
func Root() error {
	if os.Geteuid() != 0 {
		return errors.New("heddle-local makes network namespaces and mounts, for which it must be root: use sudo")
	}
	return nil
}

// CheckMachine names everything at once that the machine lacks for an instance with want
// nodes, of which has run already; -1 if its control plane does not run either.
func CheckMachine(has, want int) error {
	errs := []error{checkDisk()}
	if want == 0 {
		return errors.Join(errs...)
	}
	inotify := (want - max(has, 0)) * inotifyNode
	if has < 0 {
		inotify += inotifyPlane
	}
	missing := map[string]bool{}
	for _, p := range packages {
		if _, err := exec.LookPath(p.program); err != nil && !missing[p.pkg] {
			missing[p.pkg] = true
			errs = append(errs, fmt.Errorf("%s is missing: run make deps, or apt-get install %s", p.program, p.pkg))
		}
	}
	return errors.Join(append(errs, cgroup.Check(), checkBridge(), checkInotify(inotify))...)
}

// checkInotify counts, for a kubelet that cannot watch says only that too many files are open.
func checkInotify(need int) error {
	const file = "/proc/sys/fs/inotify/max_user_instances"
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	limit, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return err
	}
	used := 0
	for _, l := range links {
		if target, err := os.Readlink(l); err == nil && target == "anon_inode:inotify" { // else it was closed meanwhile
			used++
		}
	}
	if used+need > limit {
		return fmt.Errorf("%d of %d inotify instances are in use and %d more are needed: sysctl -w fs.inotify.max_user_instances=%d", used, limit, need, 2*(used+need))
	}
	return nil
}

func checkDisk() error {
	dir := stateRoot
	var s unix.Statfs_t
	for unix.Statfs(dir, &s) != nil {
		dir = filepath.Dir(dir)
	}
	if s.Type == overlayType {
		return fmt.Errorf("%s is on an overlay, on which containerd cannot put its own: mount a disk or a tmpfs there", stateRoot)
	}
	if free := s.Bavail * uint64(s.Bsize); free < leastDisk {
		return fmt.Errorf("%s has %d MB free and needs %d MB: make room, or take another instance down", stateRoot, free>>20, leastDisk>>20)
	}
	return nil
}

func checkBridge() error {
	const file = "/proc/sys/net/bridge/bridge-nf-call-iptables"
	if _, err := os.Stat(file); err == nil {
		return nil
	}
	if out, err := exec.Command("modprobe", "br_netfilter").CombinedOutput(); err != nil {
		return fmt.Errorf("services need the kernel module br_netfilter: modprobe br_netfilter: %w: %s", err, out)
	}
	return nil
}

// Uses are the address ranges that something on the machine uses: its addresses, routes and
// name servers, and every other instance.
func (i Instance) Uses() ([]plan.Use, error) {
	var uses []plan.Use
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		uses = appendUse(uses, a.IPNet, "address of "+a.Label)
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		uses = appendUse(uses, r.Dst, "a route of this machine")
	}
	data, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	uses = append(uses, nameServers(string(data))...)
	others, err := All()
	if err != nil {
		return nil, err
	}
	for _, o := range others {
		if o == i {
			continue
		}
		s, err := o.Load()
		if err != nil {
			continue // half made or half removed: it holds no addresses
		}
		c := s.Base.Cluster(1)
		for _, p := range []netip.Prefix{s.Base.Link(), c.Nodes, c.Pods, c.Services, c.Balancers} {
			uses = append(uses, plan.Use{Range: p, What: "instance " + o.Name})
		}
	}
	return uses, nil
}

func nameServers(resolvConf string) []plan.Use {
	var uses []plan.Use
	for line := range strings.Lines(resolvConf) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if addr, err := netip.ParseAddr(fields[1]); err == nil {
			uses = append(uses, plan.Use{Range: netip.PrefixFrom(addr, addr.BitLen()), What: "name server in /etc/resolv.conf"})
		}
	}
	return uses
}

func appendUse(uses []plan.Use, n *net.IPNet, what string) []plan.Use {
	if n == nil {
		return uses // the default route
	}
	addr, ok := netip.AddrFromSlice(n.IP.To4())
	if !ok {
		return uses
	}
	ones, _ := n.Mask.Size()
	return append(uses, plan.Use{Range: netip.PrefixFrom(addr, ones).Masked(), What: what})
}

// Choose gives a new instance its state and saves it: a base without a conflict and a port
// for the registry. A nil base is any.
func (i Instance) Choose(base *plan.Base, nodes int) (State, error) {
	uses, err := i.Uses()
	if err != nil {
		return State{}, err
	}
	s := State{Nodes: nodes}
	if base != nil {
		s.Base, err = *base, base.Conflict(uses)
	} else {
		s.Base, err = plan.Choose(uses)
	}
	if err != nil {
		return State{}, err
	}
	if s.Port, err = freePort(); err != nil {
		return State{}, err
	}
	return s, i.Save(s)
}

// CheckBase says whether something took the instance's addresses since they were chosen.
func (i Instance) CheckBase(s State) error {
	uses, err := i.Uses()
	if err != nil {
		return err
	}
	if err := s.Base.Conflict(uses); err != nil {
		return fmt.Errorf("%w\ntake the instance down and up again to choose other addresses", err)
	}
	return nil
}

// freePort finds a port for the registry. Its address does not exist yet, so that only who
// listens on every address is in the way.
func freePort() (uint16, error) {
	const first, last = 5000, 5009
	for port := uint16(first); port <= last; port++ {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err == nil {
			return port, l.Close()
		}
	}
	return 0, fmt.Errorf("ports %d to %d are all taken: end one of the programs that listen there (ss -ltnp)", first, last)
}
