// Package node is the inside of a node: PID 1 of its namespaces. It gives the node a root of
// its own with the standard paths, so that every node has the same configuration and the
// host sees no mount, and keeps containerd, kubelet and kube-proxy running.
package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/local/internal/proc"
)

// Config is what a node is told, as JSON in a file.
type Config struct {
	Name     string     `json:"name"`
	Addr     netip.Addr `json:"addr"`
	Gateway  netip.Addr `json:"gateway"`
	Dir      string     `json:"dir"`      // the node's own directory, on a real disk
	Instance string     `json:"instance"` // directory of the instance, which Dir and Keys are in
	Keys     string     `json:"keys"`
	Logs     string     `json:"logs"`
}

// Link is the node's network device. Who starts the node puts it there.
const Link = "eth0"

const containerdSocket = "/run/containerd/containerd.sock"

// binds are the directories below Config.Dir that appear at standard paths: containerd's
// overlays do not lie on the overlay that is the node's root, and the rest is for restarts.
var binds = []struct{ dir, path string }{
	{"containerd", "/var/lib/containerd"},
	{"kubelet", "/var/lib/kubelet"},
	{"cni", "/var/lib/cni"},
	{"cni-conf", "/etc/cni/net.d"},
	{"containerd-conf", "/etc/containerd"},
	{"pods-log", "/var/log/pods"},
	{"containers-log", "/var/log/containers"},
}

// Init is the main function of PID 1 of the node that the file config describes. It returns
// only on an error.
func Init(ctx context.Context, config string) error {
	data, err := os.ReadFile(config)
	if err != nil {
		return err
	}
	var c Config
	if err := json.Unmarshal(data, &c); err != nil {
		return fmt.Errorf("read %s: %w", config, err)
	}
	if err := c.mount(); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(c.Name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := c.connect(ctx); err != nil {
		return err
	}
	return c.run(ctx)
}

func (c Config) mount() error {
	root := filepath.Join(c.Dir, "root")
	var errs []error
	do := func(source, target, kind string, flags uintptr, data string) {
		if len(errs) > 0 {
			return
		}
		if err := os.MkdirAll(target, 0o755); err != nil {
			errs = append(errs, err)
		} else if err := unix.Mount(source, target, kind, flags, data); err != nil {
			errs = append(errs, fmt.Errorf("mount %s on %s: %w", source, target, err))
		}
	}
	// an overlay whose changes are in memory: the node writes anywhere, the host sees nothing
	do("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	do("tmpfs", root, "tmpfs", 0, "")
	upper, work, merged := filepath.Join(root, "upper"), filepath.Join(root, "work"), filepath.Join(root, "merged")
	errs = append(errs, os.MkdirAll(upper, 0o755), os.MkdirAll(work, 0o755))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	errs = nil
	do("overlay", merged, "overlay", 0, fmt.Sprintf("lowerdir=/,upperdir=%s,workdir=%s", upper, work))
	for _, dir := range []string{"/dev", "/sys", c.Instance} {
		do(dir, filepath.Join(merged, dir), "", unix.MS_BIND|unix.MS_REC, "")
	}
	do("proc", filepath.Join(merged, "proc"), "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	if err := errors.Join(errs...); err != nil {
		return err
	}
	old := filepath.Join(merged, "mnt")
	if err := errors.Join(os.MkdirAll(old, 0o755), unix.PivotRoot(merged, old), os.Chdir("/"), unix.Unmount("/mnt", unix.MNT_DETACH)); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	// shared, so that pods with mount propagation work
	do("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
	do("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755") // hides the host's sockets
	for _, b := range binds {
		source := filepath.Join(c.Dir, b.dir)
		if err := os.MkdirAll(source, 0o755); err != nil {
			return err
		}
		do(source, b.path, "", unix.MS_BIND, "")
		do("", b.path, "", unix.MS_REC|unix.MS_SHARED, "")
	}
	return errors.Join(errs...)
}

func (c Config) connect(ctx context.Context) error {
	for name, value := range map[string]string{
		"net/ipv4/ip_forward": "1",
		// pods of one node talk over a bridge; without this the answers of a service would
		// bypass the address translation
		"net/bridge/bridge-nf-call-iptables": "1",
	} {
		if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	var link netlink.Link
	for {
		var err error
		if link, err = netlink.LinkByName(Link); err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: c.Addr.AsSlice(), Mask: net.CIDRMask(24, 32)}}
	if err := errors.Join(netlink.LinkSetUp(lo), netlink.AddrReplace(link, addr), netlink.LinkSetUp(link)); err != nil {
		return fmt.Errorf("configure %s: %w", Link, err)
	}
	if err := netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: c.Gateway.AsSlice()}); err != nil {
		return fmt.Errorf("set default route: %w", err)
	}
	return nil
}

func (c Config) run(ctx context.Context) error {
	keeper := &proc.Keeper{Log: slog.New(slog.NewTextHandler(os.Stderr, nil)).With("node", c.Name)}
	spec := func(name, path string, args ...string) proc.Spec {
		return proc.Spec{
			Name: name, Path: path, Args: append([]string{name}, args...), Start: (*exec.Cmd).Start,
			Log: filepath.Join(c.Logs, c.Name+"-"+name+".log"),
		}
	}
	containerd, err := exec.LookPath("containerd")
	if err != nil {
		return fmt.Errorf("%w: install it with: apt-get install containerd", err)
	}
	kubelet := spec("kubelet", proc.Self,
		"--config="+filepath.Join(c.Dir, "kubelet.yaml"), "--kubeconfig="+filepath.Join(c.Keys, c.Name+".kubeconfig"),
		"--hostname-override="+c.Name, "--node-ip="+c.Addr.String(), "--root-dir=/var/lib/kubelet")
	kubelet.Before = func() error { return waitSocket(ctx, containerdSocket) } // kubelet does not wait itself
	var all sync.WaitGroup
	all.Go(func() { proc.Reap(ctx) })
	all.Go(func() { keeper.Keep(ctx, spec("containerd", containerd)) })
	all.Go(func() { keeper.Keep(ctx, kubelet) })
	all.Go(func() {
		keeper.Keep(ctx, spec("kube-proxy", proc.Self,
			"--config="+filepath.Join(c.Dir, "kube-proxy.yaml"), "--hostname-override="+c.Name))
	})
	all.Wait()
	return ctx.Err()
}

func waitSocket(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		conn, err := net.Dial("unix", path)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}
