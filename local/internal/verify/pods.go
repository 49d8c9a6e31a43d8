package verify

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const (
	rootName = "istio-ca-root-cert" // ConfigMap with a mesh's root in each of its namespaces
	rootKey  = "root-cert.pem"
)

// podOf returns a running pod of an app, the newest one.
func podOf(ctx context.Context, k kubernetes.Interface, ns, app string) (*corev1.Pod, error) {
	list, err := k.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{LabelSelector: "app=" + app, FieldSelector: "status.phase=Running"})
	if err != nil {
		return nil, err
	}
	pods := slices.DeleteFunc(list.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil })
	if len(pods) == 0 {
		return nil, fmt.Errorf("no pod of app %s runs in namespace %s", app, ns)
	}
	newest := slices.MaxFunc(pods, func(a, b corev1.Pod) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
	return &newest, nil
}

// rootsOf returns whom the workloads of a namespace trust.
func rootsOf(ctx context.Context, k kubernetes.Interface, ns string) ([]*x509.Certificate, error) {
	cm, err := k.CoreV1().ConfigMaps(ns).Get(ctx, rootName, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	var roots []*x509.Certificate
	for rest := []byte(cm.Data[rootKey]); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("root certificate of namespace %s: %w", ns, err)
		}
		roots = append(roots, c)
	}
	return roots, nil
}

// podNetns is the network namespace of a pod, by a file that names it.
type podNetns struct{ path string }

// netnsOf finds the network namespace that has an address: the processes of all nodes are processes of this machine.
func netnsOf(address string) (podNetns, error) {
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return podNetns{}, err
	}
	files, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return podNetns{}, err
	}
	tried := map[string]bool{}
	for _, file := range files {
		id, err := os.Readlink(file)
		if err != nil || tried[id] { // the process has ended
			continue
		}
		tried[id] = true
		if hasAddress(file, ip) {
			return podNetns{file}, nil
		}
	}
	return podNetns{}, fmt.Errorf("no network namespace of this machine has address %s", address)
}

func hasAddress(file string, ip netip.Addr) bool {
	ns, err := netns.GetFromPath(file)
	if err != nil {
		return false
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return false
	}
	defer h.Close()
	addrs, err := h.AddrList(nil, netlink.FAMILY_ALL)
	return err == nil && slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IP.Equal(ip.AsSlice()) })
}

// dial connects to an address, which must be numeric, from inside the namespace.
func (p podNetns) dial(ctx context.Context, addr string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread, which is in the pod, ends with the goroutine
		ns, err := netns.GetFromPath(p.path)
		if err != nil {
			done <- result{err: err}
			return
		}
		defer ns.Close()
		if err := netns.Set(ns); err != nil {
			done <- result{err: err}
			return
		}
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}
