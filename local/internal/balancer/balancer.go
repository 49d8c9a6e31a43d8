// Package balancer gives Services of type LoadBalancer their addresses. None needs to be
// announced: kube-proxy on every node accepts an address that stands in the status, and the
// router sends it to one node.
package balancer

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/heddle-mesh/heddle/local/internal/plan"
)

const retry = time.Second // after a refused write

// Routes is the router. Route replaces.
type Routes interface {
	Route(to netip.Prefix, via netip.Addr) error
	Unroute(to netip.Prefix) error
}

// Run serves the cluster until ctx ends.
func Run(ctx context.Context, client kubernetes.Interface, c plan.Cluster, routes Routes, log *slog.Logger) {
	factory := informers.NewSharedInformerFactory(client, 0)
	defer factory.Shutdown()
	services := factory.Core().V1().Services()
	endpointSlices := factory.Discovery().V1().EndpointSlices()
	nodes := factory.Core().V1().Nodes()
	changed := make(chan struct{}, 1)
	notify := func(any) {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	for _, informer := range []cache.SharedIndexInformer{services.Informer(), endpointSlices.Informer(), nodes.Informer()} {
		// the informer is not started, so that this cannot fail
		_, _ = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: notify, UpdateFunc: func(_, o any) { notify(o) }, DeleteFunc: notify,
		})
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	routed := map[netip.Addr]netip.Addr{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
		all, _ := services.Lister().List(labels.Everything()) // a cache does not fail
		endpoints, _ := endpointSlices.Lister().List(labels.Everything())
		ready, _ := nodes.Lister().List(labels.Everything())
		given := assign(c, all)
		ok := true
		for s, addr := range given {
			if published(s) == addr {
				continue
			}
			s = s.DeepCopy()
			s.Status.LoadBalancer.Ingress = []core.LoadBalancerIngress{{IP: addr.String()}}
			if _, err := client.CoreV1().Services(s.Namespace).UpdateStatus(ctx, s, meta.UpdateOptions{}); err != nil {
				log.Warn("address not written", "service", s.Namespace+"/"+s.Name, "err", err)
				ok = false
			}
		}
		ok = follow(routed, targets(given, endpoints, ready), routes, log) && ok
		if !ok {
			time.AfterFunc(retry, func() { notify(nil) })
		}
	}
}

// assign chooses an address for every Service that is ours: the one it has, else the first
// free one. Services beyond the range get none.
func assign(c plan.Cluster, services []*core.Service) map[*core.Service]netip.Addr {
	services = slices.DeleteFunc(slices.Clone(services), func(s *core.Service) bool {
		return s.Spec.Type != core.ServiceTypeLoadBalancer || s.Spec.LoadBalancerClass != nil || s.DeletionTimestamp != nil
	})
	slices.SortFunc(services, func(a, b *core.Service) int {
		if d := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); d != 0 {
			return d
		}
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	given, taken := map[*core.Service]netip.Addr{}, map[netip.Addr]bool{}
	for _, s := range services {
		if addr := published(s); c.Balancers.Contains(addr) && !taken[addr] {
			given[s], taken[addr] = addr, true
		}
	}
	next := 1
	for _, s := range services {
		if given[s].IsValid() {
			continue
		}
		for addr, ok := c.Balancer(next); ok; addr, ok = c.Balancer(next) {
			next++
			if !taken[addr] {
				given[s], taken[addr] = addr, true
				break
			}
		}
	}
	return given
}

func published(s *core.Service) netip.Addr {
	if len(s.Status.LoadBalancer.Ingress) == 0 {
		return netip.Addr{}
	}
	addr, _ := netip.ParseAddr(s.Status.LoadBalancer.Ingress[0].IP) // the zero value is no address of ours
	return addr
}

// targets says to which node each address goes: with externalTrafficPolicy Local one that
// has a ready endpoint, for the others would drop it; else any ready node.
func targets(given map[*core.Service]netip.Addr, endpoints []*discovery.EndpointSlice, nodes []*core.Node) map[netip.Addr]netip.Addr {
	addrs := map[string]netip.Addr{}
	for _, n := range nodes {
		if addr, ok := readyAddr(n); ok {
			addrs[n.Name] = addr
		}
	}
	to := map[netip.Addr]netip.Addr{}
	for s, addr := range given {
		candidates := slices.Sorted(maps.Keys(addrs))
		if s.Spec.ExternalTrafficPolicy == core.ServiceExternalTrafficPolicyLocal {
			local := nodesOf(s, endpoints)
			candidates = slices.DeleteFunc(candidates, func(name string) bool { return !local[name] })
		}
		if len(candidates) > 0 {
			to[addr] = addrs[candidates[0]]
		}
	}
	return to
}

func nodesOf(s *core.Service, endpoints []*discovery.EndpointSlice) map[string]bool {
	names := map[string]bool{}
	for _, slice := range endpoints {
		if slice.Namespace != s.Namespace || slice.Labels[discovery.LabelServiceName] != s.Name {
			continue
		}
		for _, e := range slice.Endpoints {
			if e.NodeName != nil && (e.Conditions.Ready == nil || *e.Conditions.Ready) {
				names[*e.NodeName] = true
			}
		}
	}
	return names
}

func readyAddr(n *core.Node) (netip.Addr, bool) {
	ready := slices.ContainsFunc(n.Status.Conditions, func(c core.NodeCondition) bool {
		return c.Type == core.NodeReady && c.Status == core.ConditionTrue
	})
	for _, a := range n.Status.Addresses {
		if addr, err := netip.ParseAddr(a.Address); ready && err == nil && a.Type == core.NodeInternalIP {
			return addr, true
		}
	}
	return netip.Addr{}, false
}

// follow makes the routes that are there those that are wanted, and says whether it could.
func follow(there, wanted map[netip.Addr]netip.Addr, routes Routes, log *slog.Logger) bool {
	ok := true
	for addr := range there {
		if _, keep := wanted[addr]; !keep {
			if err := routes.Unroute(netip.PrefixFrom(addr, 32)); err != nil {
				log.Warn("route not removed", "err", err)
				ok = false
				continue
			}
			delete(there, addr)
		}
	}
	for addr, via := range wanted {
		if there[addr] == via {
			continue
		}
		if err := routes.Route(netip.PrefixFrom(addr, 32), via); err != nil {
			log.Warn("address not routed", "err", err)
			ok = false
			continue
		}
		there[addr] = via
	}
	return ok
}
