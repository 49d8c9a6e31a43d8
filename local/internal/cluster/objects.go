package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"

	discovery "k8s.io/api/discovery/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/local/internal/plan"
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

// Part is a line of the status.
type Part struct {
	Name     string    `json:"name"`
	Address  string    `json:"address,omitempty"`
	PID      int       `json:"pid,omitempty"`
	Since    time.Time `json:"since,omitzero"`
	Restarts int       `json:"restarts"`
	Health   string    `json:"health"`
}

// Healthy is the Health of a part that works.
const Healthy = "ok"

// status tells of every part whether it works.
func (d *daemon) status(ctx context.Context) []Part {
	parts := []Part{{Name: "daemon", PID: os.Getpid(), Health: Healthy}}
	nodes := map[string]plan.Node{}
	for i := 1; i <= plan.MaxNodes; i++ {
		n := d.set.Node(i)
		nodes[n.Name] = n
	}
	hasNode := false
	for _, s := range d.keeper.States() {
		p := Part{Name: s.Name, PID: s.PID, Since: s.Since, Restarts: s.Restarts, Health: Healthy}
		n, isNode := nodes[s.Name]
		hasNode = hasNode || isNode
		switch {
		case s.PID == 0:
			p.Health = "not running; see heddle-local logs " + s.Name
		case s.Name == "kube-apiserver":
			p.Address = d.set.URL()
			p.check(ctx, d.ready)
		case isNode:
			p.Address = n.Addr.String() + ", pods " + n.Pods.String()
			p.check(ctx, func(ctx context.Context) error { return d.nodeReady(ctx, s) })
		}
		parts = append(parts, p)
	}
	if hasNode {
		registry := Part{Name: "registry", Address: d.set.Registry, Health: Healthy}
		registry.check(ctx, func(ctx context.Context) error {
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", d.set.Registry)
			if err != nil {
				return err
			}
			return conn.Close()
		})
		dns := Part{Name: "DNS", Address: d.set.DNS().String(), Health: Healthy}
		dns.check(ctx, d.dnsAnswers)
		parts = append(parts, registry, dns)
	}
	return parts
}

func (p *Part) check(ctx context.Context, f func(context.Context) error) {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	if err := f(ctx); err != nil {
		p.Health = err.Error()
	}
}
