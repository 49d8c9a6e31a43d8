//go:build e2e

package redirect_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/node"
	"github.com/heddle-mesh/heddle/internal/node/redirect"
)

// inNamespace runs f on a thread of its own, in a fresh network namespace with one interface and a route to everywhere.
// The thread ends with f: no other goroutine ever runs there.
func inNamespace(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("make a network namespace (this test needs root): %v", err)
			return
		}
		if err := configure(); err != nil {
			t.Errorf("set the namespace up: %v", err)
			return
		}
		f()
	}()
	<-done
}

func configure() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	eth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "peer"}
	if err := errors.Join(netlink.LinkSetUp(lo), netlink.LinkAdd(eth), netlink.LinkSetUp(eth)); err != nil {
		return err
	}
	peer, err := netlink.LinkByName("peer")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(peer); err != nil {
		return err
	}
	for _, cidr := range []string{"10.0.0.1/24", "fd00::1/64"} {
		a, err := netlink.ParseAddr(cidr)
		if err != nil {
			return err
		}
		a.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(eth, a); err != nil {
			return err
		}
	}
	for _, gw := range []string{"10.0.0.2", "fd00::2"} {
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: eth.Index, Gw: net.ParseIP(gw)}); err != nil {
			return err
		}
	}
	return nil
}

// reached connects as user and group id from source (may be empty) and returns the port of whom it reached; 0 if nobody.
func reached(t *testing.T, id int, source, target string) int {
	t.Helper()
	d := net.Dialer{Timeout: 200 * time.Millisecond} // of the address that nobody has, which is told by silence
	if source != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(source)}
	}
	// The kernel takes a socket's owner from the file system ids of the thread that makes it.
	group, err := unix.SetfsgidRetGid(id)
	if err != nil {
		t.Fatal(err)
	}
	user, err := unix.SetfsuidRetUid(id)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := d.DialContext(t.Context(), "tcp", target)
	_, uerr := unix.SetfsuidRetUid(user)
	_, gerr := unix.SetfsgidRetGid(group)
	if err := errors.Join(uerr, gerr); err != nil {
		t.Fatal(err)
	}
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) || err != nil && isTimeout(err) {
		return 0
	}
	if err != nil {
		t.Errorf("dial %s: %v", target, err)
		return 0
	}
	defer conn.Close()
	said, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(string(said))
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// sayPort tells each caller which port it reached, until the listener is closed.
func sayPort(l *net.TCPListener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = io.WriteString(c, strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
		_ = c.Close()
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// Every row is a connection made in a pod, and who gets it.
func TestRedirection(t *testing.T) {
	const app, proxy = 0, 1337
	for _, set := range []struct {
		name   string
		fields redirect.Fields
		rows   []row
	}{
		{"usual", usual(), []row{
			{"application to the world", app, "", "192.0.2.1:80", 15001},
			{"application to the world, IPv6", app, "", "[2001:db8::1]:80", 15001},
			{"proxy to the world", proxy, "", "192.0.2.1:80", 0},
			{"application to its own address", app, "", "10.0.0.1:8080", 8080},
			{"application to its loopback", app, "", "127.0.0.1:8080", 8080},
			{"application to its loopback, IPv6", app, "", "[::1]:8080", 8080},
			{"proxy to the pod's own address: a call of the pod to its own service", proxy, "", "10.0.0.1:8080", 15006},
			{"proxy to the pod's own address, IPv6", proxy, "", "[fd00::1]:8080", 15006},
			{"inbound proxy to the application", proxy, "127.0.0.6", "10.0.0.1:8080", 8080},
			{"inbound proxy to the application, IPv6", proxy, "::6", "[fd00::1]:8080", 8080},
			{"proxy to the application's loopback", proxy, "", "127.0.0.1:8080", 8080},
		}},
		{"limited", limited(), []row{
			{"included range", app, "", "10.96.0.11:80", 15001},
			{"excluded address in it", app, "", "10.96.0.10:80", 0},
			{"outside the range", app, "", "192.0.2.1:80", 0},
			{"outside the range, included port", app, "", "192.0.2.1:6379", 15001},
			{"excluded port", app, "", "10.96.0.11:25", 0},
			{"included range, IPv6", app, "", "[fd01::1]:80", 15001},
		}},
	} {
		t.Run(set.name, func(t *testing.T) {
			inNamespace(t, func() {
				r := parse(t, set.fields)
				r.IPv6 = true
				for range 2 { // the second time replaces the first
					if err := node.Apply(t.Context(), r, "nft"); err != nil {
						t.Error(err)
						return
					}
				}
				for _, port := range []int{15001, 15006, 8080} {
					l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.MustParseAddrPort("[::]:"+strconv.Itoa(port))))
					if err != nil {
						t.Error(err)
						return
					}
					defer l.Close()
					go sayPort(l)
				}
				for _, row := range set.rows {
					if got := reached(t, row.id, row.source, row.target); got != row.want {
						t.Errorf("%s: reached port %d, want %d", row.name, got, row.want)
					}
				}
			})
		})
	}
}

type row struct {
	name           string
	id             int
	source, target string
	want           int
}
