package control

import (
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/xds/xdstest"
)

// A namespace that comes or goes changes one message of all that proxies hold, of some bytes for each member, however many
// services and inbound sides there are.
func TestTrustOfOneNamespace(t *testing.T) {
	for _, c := range []*city{newCity(40, 1), newRegion(400, 4000, 1)} {
		for s := range 40 {
			c.connect(s, 0)
		}
		c.graph.Step()
		for what, change := range map[string]func(){
			"leaves": func() { c.Trusted.Delete(mesh.ObjectKey{Cluster: "c1", Name: "n3"}) },
			"joins":  func() { c.Trusted.Set(mesh.ObjectKey{Cluster: "c1", Name: "another"}, struct{}{}) },
		} {
			if _, published := c.work(change); published != 1 || c.published[0].Type != secretType || len(c.published[0].Set) != 1 {
				t.Fatalf("one %s: %d resources are published: %v", what, published, c.published)
			}
			names := proto.Size(c.published[0].Set[0].Any()) - len(testRoot())
			if each := names / c.namespaces; each > 60 {
				t.Errorf("one of %d namespaces %s: %d bytes for each", c.namespaces, what, each)
			}
		}
	}
}

// Where nobody is to be let in, nobody is: Envoy would take no names for any.
func TestTrustOfNobody(t *testing.T) {
	w := newWorld("a")
	k := w.connect("shop", "cart")
	member := &heddlev1alpha1.Membership{Spec: heddlev1alpha1.MembershipSpec{Namespace: "shop", Phase: heddlev1alpha1.Member}}
	w.set(member, false)
	w.graph.Step()
	w.Trusted.Delete(mesh.ObjectKey{Cluster: "c1", Name: "shop"})
	w.graph.Step()
	s := open(t, w.holds(k)[secretType]["heddle/members"], &tlsv3.Secret{})
	if names := s.GetValidationContext().GetMatchTypedSubjectAltNames(); len(names) != 1 || names[0].GetMatcher().GetExact() == "" {
		t.Errorf("%v", s)
	}
}

// A namespace is trusted from the moment that the plane knows it, also where it can't be read; one that left while no plane ran
// is not trusted by a proxy that comes from the plane before, whatever else is not read yet.
func TestTrustAcrossRestart(t *testing.T) {
	for _, form := range xdstest.Forms {
		t.Run(form.String(), func(t *testing.T) {
			r := startPlane(t)
			r.wait = time.Millisecond
			r.configure()
			r.put("shop", heddlev1alpha1.Member)
			r.put("pay", heddlev1alpha1.Member)
			r.put("slow", heddlev1alpha1.Member)
			r.api.Put("pods", cartPod("cart-1"))
			r.run(t)
			r.log.await(t, "msg=serving")
			for _, namespace := range []string{"shop", "pay", "slow"} {
				r.api.Await("the report of "+namespace, func() bool { return r.api.Get("memberships", system, namespace, "status", "watching") == true })
			}
			client := r.proxy(t, r.dial(t), form, "shop", "cart-1")
			trusted := func(want ...string) {
				t.Helper()
				for {
					var names []string
					if held := client.Held[secretType]["heddle/members"]; held != nil {
						s := &tlsv3.Secret{}
						check(t, held.UnmarshalTo(s))
						for _, n := range s.GetValidationContext().GetMatchTypedSubjectAltNames() {
							names = append(names, n.GetMatcher().GetPrefix())
						}
					}
					var all []string
					for _, namespace := range want {
						all = append(all, "spiffe://cluster.local/ns/"+namespace+"/")
					}
					if slices.Equal(names, all) {
						return
					}
					check(t, client.Ack(next(t, client)))
				}
			}
			check(t, client.Subscribe(secretType, "heddle/members"))
			trusted("pay", "shop", "slow")
			r.end(t)

			r.api.Refuse("slow")
			r.api.Refuse("new")
			r.api.Delete("memberships", system, "pay")
			r.log = &transcript{written: make(chan struct{})}
			r.run(t)
			r.log.await(t, "msg=serving")
			check(t, client.Reconnect(r.as(t, "shop", "cart-1"), r.dial(t), nodeOf(t, "shop", "cart-1")))
			trusted("shop", "slow")
			r.put("new", heddlev1alpha1.Joining)
			trusted("new", "shop", "slow")
			r.put("slow", heddlev1alpha1.Leaving)
			trusted("new", "shop")
			r.end(t)
		})
	}
}

// Nobody has a certificate before the round that tells proxies to let him in; who leaves is refused without waiting for one.
func TestAdmittedOnceTold(t *testing.T) {
	w := newTown(t)
	a := toldMembers{w.members, w.sources.Trusted.Table}
	w.put("shop", heddlev1alpha1.Joining)
	w.await("shop", true)
	if !w.Member("c1", "shop") || a.Member("c1", "shop") {
		t.Error("a workload is admitted before proxies are told of its namespace")
	}
	w.graph.Step()
	if !a.Member("c1", "shop") || a.Member("c2", "shop") {
		t.Error("a workload is not admitted though proxies are told of its namespace, or another cluster's is")
	}
	w.put("shop", heddlev1alpha1.Leaving)
	w.await("shop", false)
	if a.Member("c1", "shop") {
		t.Error("a workload is admitted though its namespace leaves")
	}
}
