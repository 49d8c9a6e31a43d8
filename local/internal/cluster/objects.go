package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/local/internal/proc"
	"github.com/heddle-mesh/heddle/local/internal/settings"
)

// Images are references of what the registry serves.
type Images struct {
	CoreDNS string `json:"coredns"`
	Heddle  string `json:"heddle"` // "" if the checkout has none
	Proxy   string `json:"proxy"`
}

// publish deploys DNS and tells the cluster which images are Heddle's.
func (d *daemon) publish(images Images, step report) error {
	if images.Heddle != "" {
		err := step("Heddle's images", func(ctx context.Context) error {
			objects, err := settings.ImagesObject(images.Heddle, images.Proxy)
			if err != nil {
				return err
			}
			return d.apply(ctx, objects)
		})
		if err != nil {
			return err
		}
	}
	return step("DNS", func(ctx context.Context) error {
		objects, err := d.set.DNSObjects(images.CoreDNS)
		if err != nil {
			return err
		}
		if err := d.apply(ctx, objects); err != nil {
			return err
		}
		return poll(ctx, d.dnsAnswers)
	})
}

// apply is kubectl's: it knows orders, kinds and conflicts.
func (d *daemon) apply(ctx context.Context, objects string) error {
	cmd := exec.CommandContext(ctx, proc.Self)
	cmd.Args = []string{
		"kubectl", "--kubeconfig=" + d.set.Kubeconfig(), "--cache-dir=" + d.inst.KubectlCache(),
		"apply", "--server-side", "--force-conflicts", "--field-manager=heddle-local", "-f", "-",
	}
	cmd.Stdin = strings.NewReader(objects)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("kubectl apply: %w: %s", err, out.String())
	}
	return nil
}

// dnsAnswers asks a CoreDNS pod itself, for its readiness may be told of a former life.
func (d *daemon) dnsAnswers(ctx context.Context) error {
	list, err := d.client.DiscoveryV1().EndpointSlices("kube-system").List(ctx, meta.ListOptions{LabelSelector: discovery.LabelServiceName + "=kube-dns"})
	if err != nil {
		return err
	}
	last := errors.New("no pod of kube-dns is ready; see: heddle-local kubectl -n kube-system describe pods")
	for _, slice := range list.Items {
		for _, e := range slice.Endpoints {
			if e.Conditions.Ready != nil && !*e.Conditions.Ready {
				continue
			}
			if last = lookup(ctx, e.Addresses[0]); last == nil {
				return nil
			}
		}
	}
	return last
}

func lookup(ctx context.Context, server string) error {
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, net.JoinHostPort(server, "53"))
	}}
	_, err := resolver.LookupHost(ctx, "kubernetes.default.svc.cluster.local.")
	return err
}

// readySince says whether kubelet reported readiness after since; the API counts seconds.
func readySince(n *core.Node, since time.Time) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c core.NodeCondition) bool {
		return c.Type == core.NodeReady && c.Status == core.ConditionTrue && !c.LastHeartbeatTime.Time.Before(since.Truncate(time.Second))
	})
}

// Part is a line of the status.
type Part struct {
	Name     string    `json:"name"`
	Address  string    `json:"address"`
	PID      int       `json:"pid"`
	Since    time.Time `json:"since"`
	Restarts int       `json:"restarts"`
	Health   string    `json:"health"`
}

// Healthy is the Health of a part that works.
const Healthy = "ok"

// status tells of every part whether it works.
func (d *daemon) status(ctx context.Context) []Part {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	address := map[string]string{"kube-apiserver": d.set.URL()}
	for i := 1; i <= 9; i++ {
		n := d.set.Node(i)
		address[n.Name] = n.Addr.String() + ", pods " + n.Pods.String()
	}
	parts := []Part{{Name: "daemon", PID: os.Getpid(), Health: Healthy}}
	nodes := false
	for _, s := range d.keeper.States() {
		p := Part{Name: s.Name, Address: address[s.Name], PID: s.PID, Since: s.Since, Restarts: s.Restarts, Health: Healthy}
		var err error
		switch {
		case s.PID == 0:
			p.Health = "not running; see heddle-local logs " + s.Name
		case s.Name == "kube-apiserver":
			err = d.ready(ctx)
		case address[s.Name] != "":
			nodes = true
			n, getErr := d.client.CoreV1().Nodes().Get(ctx, s.Name, meta.GetOptions{})
			if err = getErr; err == nil && !readySince(n, s.Since) {
				p.Health = "not ready; see heddle-local logs " + s.Name + "-kubelet"
			}
		}
		if err != nil {
			p.Health = err.Error()
		}
		parts = append(parts, p)
	}
	if nodes {
		parts = append(parts, check("registry", d.set.Registry, func() error {
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", d.set.Registry)
			if err != nil {
				return err
			}
			return conn.Close()
		}), check("DNS", d.set.DNS().String(), func() error { return d.dnsAnswers(ctx) }))
	}
	return parts
}

func check(name, address string, f func() error) Part {
	p := Part{Name: name, Address: address, Health: Healthy}
	if err := f(); err != nil {
		p.Health = err.Error()
	}
	return p
}
