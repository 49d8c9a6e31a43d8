package control

import (
	"context"
	"runtime"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// A flood of refusals by one check is told in part, and how large it was; other checks are not kept silent by it.
func TestRefusalsArePaced(t *testing.T) {
	var p pace
	now, told := time.Unix(1000, 0), 0
	for range 1000 {
		if _, ok := p.allow("token-valid", now); ok {
			told++
		}
	}
	if told != tellBurst {
		t.Errorf("%d of a flood are told, want %d", told, tellBurst)
	}
	if _, ok := p.allow("member", now); !ok {
		t.Error("another check is kept silent")
	}
	if untold, ok := p.allow("token-valid", now.Add(tellEvery)); !ok || untold != 1000-tellBurst {
		t.Errorf("after a second: told %v, of %d not told", ok, untold)
	}
}

// A proxy that rejects again and again is counted, and told of in part; what it says of another type is told.
func TestRejectionsArePaced(t *testing.T) {
	told, counted := map[string]int{}, 0
	s := &clients{rejected: func(_ context.Context, r rejection) {
		counted++
		if !r.quiet {
			told[r.typeURL]++
		}
	}}
	nack := s.onNack(t.Context(), &client{workload: mesh.WorkloadKey{Namespace: "shop", Name: "cart-1"}})
	began := time.Now()
	for range 1000 {
		nack(clusterType, "1", "no", nil)
	}
	nack(listenerType, "1", "no", nil)
	if most := tellBurst + int(time.Since(began)/tellEvery) + 1; counted != 1001 || told[clusterType] < tellBurst || told[clusterType] > most || told[listenerType] != 1 {
		t.Errorf("%d are counted, told are %v", counted, told)
	}
}

// A client names its version; of what it may say there are not many labels.
func TestVersionLabels(t *testing.T) {
	m := &metrics{options: Options{APIVersion: "v1.30.3"}}
	for said, want := range map[string]string{
		"1.30.3": "1.30.3", "1.29.1": "1.29", "v1.31.0-alpha": "1.31", "1.30.99": "1.30", "2.0.0": "unknown", "1.1234.1": "unknown",
		"": "unknown", "x1.30.1": "unknown", "\xff": "unknown",
	} {
		if got := m.label(said); got != want {
			t.Errorf("%q is labelled %q, want %q", said, got, want)
		}
	}
}

// What is kept of a client is little, however much it says of itself: a text of which a part is kept is kept whole.
func TestClientMemory(t *testing.T) {
	const clients, most = 16, 64 << 10
	n := nodeOf(t, "shop", "cart-1")
	n.Id += strings.Repeat("x", 900<<10)
	f := n.GetMetadata().GetFields()
	f["ISTIO_VERSION"] = structpb.NewStringValue("1.30.3-" + strings.Repeat("x", 900<<10))
	f["INSTANCE_IPS"] = structpb.NewStringValue("10.0.0.1" + strings.Repeat(",", 900<<10))
	f["POD_PORTS"] = structpb.NewStringValue("[" + strings.Repeat(`{"name": "a", "containerPort": 1},`, 30_000) + "{}]")
	node, caller := read(t, n), identity.Caller{Cluster: "c1", Pod: "cart-1", Identity: mesh.Identity{Namespace: "shop"}}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	var kept []any
	for range clients {
		said := clientOf(caller, node)
		kept = append(kept, said, newClient(caller, node, said.Workload))
	}
	if after := heap(); after > before+clients*most {
		t.Errorf("a client takes %d bytes, want at most %d", (after-before)/clients, most)
	}
	runtime.KeepAlive(kept)
	runtime.KeepAlive(node)
}
