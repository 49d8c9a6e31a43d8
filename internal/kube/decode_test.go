package kube

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/ingest"
	"github.com/heddle-mesh/heddle/internal/judge"
	"github.com/heddle-mesh/heddle/internal/kube/kubetest"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

type objectSink[O any] chan O

func (s objectSink[O]) Set(_ mesh.ObjectKey, o O) { s <- o }
func (s objectSink[O]) Delete(mesh.ObjectKey)     {}
func (s objectSink[O]) Replace(rows []graph.Row[mesh.ObjectKey, O], _ func(mesh.ObjectKey) bool) {
	for _, r := range rows {
		s <- r.Val
	}
}

// What admission lets in is read from a list and from a watch as it was written: an API server stores a duration of five
// minutes as "5m", which is what users and documents write.
func TestFollowReadsWhatAdmissionTakes(t *testing.T) {
	const rule = `{"apiVersion":"networking.istio.io/v1","kind":"DestinationRule","metadata":{"name":"cart","namespace":"shop"},
		"spec":{"host":"*-x.shop.svc.cluster.local","trafficPolicy":{"tls":{"mode":"DISABLE"},"outlierDetection":{"interval":"5m"},
		"connectionPool":{"tcp":{"connectTimeout":"30ms","max_connections":7}}}}}`
	stored := func(interval string) *unstructured.Unstructured {
		u := &unstructured.Unstructured{}
		if err := u.UnmarshalJSON([]byte(rule)); err != nil {
			t.Fatal(err)
		}
		if err := unstructured.SetNestedField(u.Object, interval, "spec", "trafficPolicy", "outlierDetection", "interval"); err != nil {
			t.Fatal(err)
		}
		raw, err := json.Marshal(u)
		if err != nil {
			t.Fatal(err)
		}
		if v, err := judge.Object(raw, "istio-system"); err != nil || v.Err() != nil {
			t.Fatalf("refused: %v %v", err, v.Err())
		}
		return u
	}
	for name, old := range map[string]bool{"a server that streams lists": false, "one that does not": true} {
		t.Run(name, func(t *testing.T) {
			server := kubetest.New(t)
			server.Old = old
			server.Put("destinationrules", stored("5m"))
			sink := make(objectSink[*networkingv1.DestinationRule], 1)
			w := Follow(t.Context(), open(t, server), DestinationRules, "shop", sink)
			defer w.Stop()
			read := func(want time.Duration) {
				t.Helper()
				var d *networkingv1.DestinationRule
				select {
				case d = <-sink:
				case <-time.After(wait):
					t.Fatalf("waited %v for the rule", wait)
				}
				p := d.Spec.GetTrafficPolicy()
				if got := p.GetOutlierDetection().GetInterval().AsDuration(); got != want {
					t.Errorf("interval %v, want %v", got, want)
				}
				if tcp := p.GetConnectionPool().GetTcp(); tcp.GetConnectTimeout().AsDuration() != 30*time.Millisecond || tcp.GetMaxConnections() != 7 {
					t.Errorf("connection pool %v", tcp)
				}
				r, ok, found := ingest.Rule(ingest.Config("one", "istio-system", &meshv1alpha1.MeshConfig{}), mesh.ObjectKey{Namespace: "shop", Name: "cart"}, d)
				if !ok || r.Host != "*-x.shop.svc.cluster.local" || r.Traffic.TLS.Mode != mesh.TLSDisable {
					t.Errorf("record %+v %v", r, ok)
				}
				for _, f := range found {
					if f.Reason != judge.ReasonNotActedOn {
						t.Errorf("finding %+v", f)
					}
				}
			}
			read(5 * time.Minute)
			within(t, "the first list", w.Synced())
			server.Put("destinationrules", stored("1m30s"))
			read(90 * time.Second)
		})
	}
}

// An object that its Go type cannot hold does not keep others from being read, in a list or as a change; it is found, has no
// effect, and is itself again once it is mended.
func TestFollowPassesByUnreadable(t *testing.T) {
	rule := func(name string, connections int64) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": map[string]any{"name": name, "namespace": "shop", "labels": map[string]any{"a": "b"}},
			"spec": map[string]any{"host": name, "trafficPolicy": map[string]any{"connectionPool": map[string]any{"tcp": map[string]any{"maxConnections": connections}}}},
		}}
	}
	const tooMany = 1 << 40
	for name, old := range map[string]bool{"a server that streams lists": false, "one that does not": true} {
		t.Run(name, func(t *testing.T) {
			server := kubetest.New(t)
			server.Old = old
			server.Put("destinationrules", rule("a", 1))
			server.Put("destinationrules", rule("b", tooMany))
			server.Put("destinationrules", rule("c", 1))
			sink := make(objectSink[*networkingv1.DestinationRule], 3)
			w := Follow(t.Context(), open(t, server), DestinationRules, "shop", sink)
			defer w.Stop()
			within(t, "the first list", w.Synced())
			next := func() (string, bool) {
				t.Helper()
				var d *networkingv1.DestinationRule
				select {
				case d = <-sink:
				case <-time.After(wait):
					t.Fatalf("waited %v for a rule", wait)
				}
				_, ok, found := ingest.Rule(ingest.Config("one", "istio-system", &meshv1alpha1.MeshConfig{}), mesh.ObjectKey{Namespace: "shop", Name: d.Name}, d)
				undecodable := slices.ContainsFunc(found, func(f mesh.Finding) bool { return f.Reason == judge.ReasonUndecodable && f.About.Name == d.Name })
				if d.Labels["a"] != "b" || undecodable == ok {
					t.Errorf("%s, labels %v, acted on: %v, findings %v", d.Name, d.Labels, ok, found)
				}
				return d.Name, ok
			}
			listed := map[string]bool{} // in any order
			for range 3 {
				name, ok := next()
				listed[name] = ok
			}
			if d := cmp.Diff(map[string]bool{"a": true, "b": false, "c": true}, listed); d != "" {
				t.Errorf("acted on: wanted (-), got (+):\n%s", d)
			}
			server.Put("destinationrules", rule("c", tooMany))
			if name, ok := next(); name != "c" || ok {
				t.Errorf("%s is acted on: %v", name, ok)
			}
			server.Put("destinationrules", rule("b", 2))
			if name, ok := next(); name != "b" || !ok {
				t.Errorf("%s is acted on: %v", name, ok)
			}
		})
	}
}

// Of a policy that cannot be read comes whom it is for: its selector, an empty one if there is one that cannot be read either.
// What is wrong with its status takes nothing from what it says. That it cannot be read is for the reader to say, not for its author.
func TestFollowKeepsSelectorOfUnreadable(t *testing.T) {
	server := kubetest.New(t)
	some := map[string]any{"matchLabels": map[string]any{"app": "cart"}}
	for name, spec := range map[string]any{
		"good":     map[string]any{"selector": some, "mtls": map[string]any{"mode": "STRICT"}},
		"some":     map[string]any{"selector": some, "mtls": map[string]any{"mode": "SRICT"}},
		"all":      map[string]any{"mtls": map[string]any{"mode": "SRICT"}},
		"lost":     map[string]any{"selector": map[string]any{"matchLabels": "cart"}, "mtls": map[string]any{"mode": "STRICT"}},
		"nonsense": []any{},
		"bare":     nil,
		"status":   map[string]any{"mtls": map[string]any{"mode": "STRICT"}},
		"says so":  map[string]any{"mtls": map[string]any{"mode": "STRICT"}},
	} {
		o := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": map[string]any{"name": name, "namespace": "shop"}, "spec": spec,
		}}
		if name == "status" || name == "bare" {
			o.Object["status"] = []any{}
		}
		if name == "bare" {
			delete(o.Object, "spec")
		}
		o.SetAnnotations(map[string]string{"istio.io/rev": "r"})
		if name == "says so" {
			o.SetAnnotations(map[string]string{"istio.io/rev": "r", mesh.UnreadableAnnotation: "its author says so"})
		}
		server.Put("peerauthentications", o)
	}
	sink := make(objectSink[*securityv1.PeerAuthentication], 8)
	w := Follow(t.Context(), open(t, server), PeerAuthentications, "shop", sink)
	defer w.Stop()
	within(t, "the first list", w.Synced())
	got := map[string]string{}
	for range 8 {
		select {
		case p := <-sink:
			if p.Annotations["istio.io/rev"] != "r" {
				t.Errorf("%s has lost its annotations: %v", p.Name, p.Annotations)
			}
			_, unread := p.Annotations[mesh.UnreadableAnnotation]
			got[p.Name] = fmt.Sprint(unread, " ", p.Spec.GetSelector() != nil, " ", p.Spec.GetSelector().GetMatchLabels())
		case <-time.After(wait):
			t.Fatalf("waited %v for a policy, have %v", wait, got)
		}
	}
	want := map[string]string{
		"good": "false true map[app:cart]", "some": "true true map[app:cart]", "all": "true false map[]",
		"lost": "true true map[]", "nonsense": "true true map[]", "status": "false false map[]", "bare": "false false map[]",
		"says so": "false false map[]",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("unreadable, has a selector, its labels: wanted (-), got (+):\n%s", d)
	}
}
