package meshtest

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Network is a segment that pods are attached to, in network namespaces of its own. It needs root.
type Network struct {
	hub  *Pod // holds the bridge
	pods int
}

// Pod is a network namespace with one interface. What the test opens in it by Listen and Dial is the pod's application:
// it is redirected to the pod's proxy as a container's connections are.
type Pod struct {
	Name      string
	Addresses []netip.Addr // of both families, IPv4 first
	namespace string
}

// ProxyID is the uid and gid of proxies.
const ProxyID = 1337

// NewNetwork makes a network that is gone when t ends. Its hub is the pod that a control plane may listen in.
func NewNetwork(t testing.TB) (n *Network, hub *Pod) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("network namespaces need root")
	}
	n = &Network{}
	n.hub = n.namespace(t, "hub")
	n.hub.run(t, "ip", "link", "add", "eth0", "type", "bridge")
	n.hub.attach(t)
	return n, n.hub
}

// Pod adds a pod.
func (n *Network) Pod(t testing.TB, name string) *Pod {
	t.Helper()
	p := n.namespace(t, name)
	port := fmt.Sprintf("pod%d", n.pods)
	n.hub.run(t, "ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", p.namespace)
	n.hub.run(t, "ip", "link", "set", port, "master", "eth0", "up")
	p.attach(t)
	for _, via := range n.hub.Addresses { // virtual addresses need a route to be redirected
		p.run(t, "ip", "route", "add", "default", "via", via.String())
	}
	return p
}

func (n *Network) namespace(t testing.TB, name string) *Pod {
	t.Helper()
	n.pods++
	p := &Pod{Name: name, namespace: fmt.Sprintf("heddle-%d-%s", os.Getpid(), name), Addresses: []netip.Addr{
		netip.AddrFrom4([4]byte{198, 18, 0, byte(n.pods)}), // of the range for tests of network devices
		netip.MustParseAddr(fmt.Sprintf("fd00:18::%x", n.pods)),
	}}
	run(t, exec.CommandContext(t.Context(), "ip", "netns", "add", p.namespace))
	t.Cleanup(func() {
		run(t, exec.CommandContext(context.WithoutCancel(t.Context()), "ip", "netns", "del", p.namespace))
	})
	return p
}

func (p *Pod) attach(t testing.TB) {
	t.Helper()
	p.run(t, "ip", "link", "set", "lo", "up")
	p.run(t, "ip", "link", "set", "eth0", "up")
	p.run(t, "ip", "address", "add", p.Addresses[0].String()+"/24", "dev", "eth0")
	p.run(t, "ip", "address", "add", p.Addresses[1].String()+"/64", "dev", "eth0", "nodad")
}

func (p *Pod) run(t testing.TB, args ...string) {
	t.Helper()
	run(t, p.Command(args...))
}

func run(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
}

// Command returns a command that runs in the pod, as root.
func (p *Pod) Command(args ...string) *exec.Cmd {
	return exec.Command("ip", append([]string{"netns", "exec", p.namespace}, args...)...)
}

// Listen opens a listener in the pod, closed when t ends.
func (p *Pod) Listen(t testing.TB, address string) net.Listener {
	t.Helper()
	var l net.Listener
	err := p.inside(func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		t.Fatalf("listen in pod %s: %v", p.Name, err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// Dial connects from the pod to an address, which must not be a name. It is a net.Dialer's DialContext.
func (p *Pod) Dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	err = p.inside(func() (err error) {
		c, err = new(net.Dialer).DialContext(ctx, network, address) // one literal address: dialled by this goroutine
		return err
	})
	return c, err
}

// inside calls f on a thread that is in the pod's network namespace: sockets stay where they were made.
func (p *Pod) inside(f func() error) error {
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer own.Close()
	other, err := os.Open(filepath.Join("/var/run/netns", p.namespace))
	if err != nil {
		return err
	}
	defer other.Close()
	runtime.LockOSThread()
	if err := unix.Setns(int(other.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	err = f()
	if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil {
		return back // the thread stays locked, and ends with its goroutine
	}
	runtime.UnlockOSThread()
	return err
}

// Program builds a program of the main module, where the proxy's user can run it.
func Program(t testing.TB, pkg string) string {
	t.Helper()
	path := filepath.Join(publicDir(t), filepath.Base(pkg))
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", path, "./"+pkg)
	cmd.Dir = Root(t)
	run(t, cmd)
	return path
}

// publicDir returns a directory that is gone when t ends. Unlike t.TempDir's, other users can look into it.
func publicDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "heddle")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Agent is what a pod's agent is told.
type Agent struct {
	Program   string // heddle-node
	Namespace string
	Account   string
	Discovery string     // host:port
	Address   netip.Addr // of that host
	Root      string     // the certificates that discovery is trusted by, in PEM
	Token     string
	Env       map[string]string // more of it, beside what the injector sets
}

// StartAgent redirects the pod and starts its agent with Envoy, as the injected containers do: heddle-node init as root, then
// heddle-node agent as the proxy's user. Both end with t.
func (p *Pod) StartAgent(t testing.TB, a Agent) *Proxy {
	t.Helper()
	p.run(t, a.Program, "init", "-p", "15001", "-z", "15006", "-u", strconv.Itoa(ProxyID), "-m", "REDIRECT", "-i", "*", "-b", "*", "-d", "15090,15021,15020")
	dir := publicDir(t)
	if err := os.Chown(dir, ProxyID, ProxyID); err != nil {
		t.Fatal(err)
	}
	// The files that Kubernetes mounts, in a mount namespace of the pod's own (which ip netns exec makes).
	cmd := p.Command("sh", "-ec", `
		mount -t tmpfs heddle /run
		mkdir -p /run/secrets/tokens /run/secrets/istio
		printf %s "$TOKEN" > /run/secrets/tokens/istio-token
		printf %s "$ROOT" > /run/secrets/istio/root-cert.pem
		echo "$HOST" > /run/hosts
		mount --bind /run/hosts /etc/hosts
		exec setpriv --reuid="$ID" --regid="$ID" --clear-groups "$PROGRAM" agent`)
	host, _, err := net.SplitHostPort(a.Discovery)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Env = append(os.Environ(), "TOKEN="+a.Token, "ROOT="+a.Root, "HOST="+a.Address.String()+" "+host, "ID="+strconv.Itoa(ProxyID), "PROGRAM="+a.Program,
		fmt.Sprintf(`PROXY_CONFIG={"discoveryAddress": %q, "binaryPath": %q, "configPath": %q, "terminationDrainDuration": "1s", "concurrency": 1}`,
			a.Discovery, Envoy(t), dir),
		"CA_ADDR="+a.Discovery, "POD_NAME="+p.Name, "POD_NAMESPACE="+a.Namespace, "SERVICE_ACCOUNT="+a.Account,
		"INSTANCE_IP="+p.Addresses[0].String(), "INSTANCE_IPS="+strings.Trim(strings.Join(strings.Fields(fmt.Sprint(p.Addresses)), ","), "[]"),
		"TRUST_DOMAIN=cluster.local", "ISTIO_META_CLUSTER_ID=Kubernetes", "ISTIO_META_INTERCEPTION_MODE=REDIRECT")
	for k, v := range a.Env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	return proxyOf(t, cmd, filepath.Join(dir, "admin.sock"))
}
