package control

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Settings come from two ConfigMaps; what is not understood leaves in force what was.
func TestConfig(t *testing.T) {
	var log strings.Builder
	o := Options{Mesh: "one", Namespace: system, Revision: "canary", Log: slog.New(slog.NewTextHandler(&log, nil))}
	c := newConfig(o)
	set := func(name, key, text string) {
		c.Replace([]graph.Row[mesh.ObjectKey, *corev1.ConfigMap]{{
			Key: mesh.ObjectKey{Namespace: system, Name: name}, Val: settings(name, key, text),
		}}, nil)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	missing := func(when string) {
		t.Helper()
		if _, err := c.first(ended); !errors.Is(err, context.Canceled) || c.params() != nil {
			t.Errorf("%s there are settings: %v", when, err)
		}
	}
	missing("before the first")
	set("istio-canary", "mesh", "accessLogFile: /dev/stdout")
	set("istio", "mesh", "{}") // another revision's
	missing("with one of two")
	set("istio-sidecar-injector-canary", "values", "{")
	missing("with one that is broken")
	if !strings.Contains(log.String(), "istio-system/istio-sidecar-injector-canary") {
		t.Errorf("the log does not name it: %s", log.String())
	}
	set("istio-sidecar-injector-canary", "values", "{}")
	p, err := c.first(t.Context())
	if err != nil || p.MeshConfig().GetAccessLogFile() != "/dev/stdout" {
		t.Fatalf("got %v, %v", p, err)
	}

	w := newWorld("one")
	c.feed(w.Sources)
	file := func() string {
		w.graph.Step()
		m, _ := w.MeshConfig.Lookup("one")
		return m.GetAccessLogFile()
	}
	if got := file(); got != "/dev/stdout" {
		t.Errorf("the graph has %q", got)
	}
	for _, step := range []struct{ text, want string }{
		{"accessLogFile: /a", "/a"},
		{"accessLogFile: [broken", "/a"},
		{"accessLogFile: /b", "/b"},
	} {
		set("istio-canary", "mesh", step.text)
		if got := file(); got != step.want || c.params().MeshConfig().GetAccessLogFile() != step.want {
			t.Errorf("after %q in force is %q", step.text, got)
		}
	}
	c.Delete(mesh.ObjectKey{Namespace: system, Name: "istio-canary"})
	if got := file(); got != "/b" {
		t.Errorf("after the end of its ConfigMap in force is %q", got)
	}
}

// A deleted pod is known as such for 70 s; one that is only out of sight is not.
func TestGone(t *testing.T) {
	now := time.Unix(1000, 0)
	live := map[mesh.WorkloadKey]mesh.Workload{}
	g := newGone(func(k mesh.WorkloadKey) (mesh.Workload, bool) { w, ok := live[k]; return w, ok }, func() time.Time { return now })
	key := func(namespace, name string) mesh.WorkloadKey {
		return mesh.WorkloadKey{Cluster: "c1", Kind: mesh.KindPod, Namespace: namespace, Name: name}
	}
	change := func(k mesh.WorkloadKey, before, after string) graph.Change[mesh.WorkloadKey, mesh.Workload] {
		c := graph.Change[mesh.WorkloadKey, mesh.Workload]{
			Key: k, Old: mesh.Workload{Key: k, UID: before}, New: mesh.Workload{Key: k, UID: after}, Had: before != "", Has: after != "",
		}
		if delete(live, k); c.Has {
			live[k] = c.New
		}
		return c
	}
	record := func(changes ...graph.Change[mesh.WorkloadKey, mesh.Workload]) map[string]bool {
		return g.record(changes, namespaces{"shop"})
	}
	state := func(name string) string {
		p, known := g.Pod("c1", "shop", name)
		switch {
		case !known:
			return "unknown"
		case p.Deleted:
			return p.UID + " deleted"
		default:
			return p.UID
		}
	}
	want := func(name, want string) {
		t.Helper()
		if got := state(name); got != want {
			t.Errorf("at %v %s is %s, want %s", now.Sub(time.Unix(1000, 0)), name, got, want)
		}
	}
	if uids := record(change(key("shop", "a"), "", "1"), change(key("shop", "b"), "", "2"), change(key("shop", "b"), "2", "2")); uids != nil {
		t.Errorf("nothing went, and yet %v", uids)
	}
	want("a", "1")
	want("nobody", "unknown")
	if uids := record(change(key("shop", "a"), "1", ""), change(key("left", "c"), "3", "")); len(uids) != 1 || !uids["1"] {
		t.Errorf("gone are %v", uids)
	}
	want("a", "1 deleted")
	if _, known := g.Pod("c1", "left", "c"); known {
		t.Error("a pod of a namespace that left is remembered as deleted")
	}
	now = now.Add(30 * time.Second)
	if uids := record(change(key("shop", "b"), "2", "4")); !uids["2"] {
		t.Errorf("a pod made anew: gone are %v", uids)
	}
	want("b", "4") // the name's new pod; the old one's token fails by its UID
	record(change(key("shop", "b"), "4", ""))
	now = now.Add(40 * time.Second)
	want("a", "1 deleted")
	now = now.Add(time.Second)
	want("a", "unknown")
	want("b", "4 deleted")
	now = now.Add(30 * time.Second)
	want("b", "unknown")
	record()
	if len(g.pods)+len(g.old) > 0 {
		t.Errorf("kept are %v and %v", g.pods, g.old)
	}

	// One name that is deleted again and again does not keep the others.
	record(change(key("shop", "d"), "5", ""), change(key("shop", "e"), "6", ""))
	now = now.Add(40 * time.Second)
	record(change(key("shop", "d"), "7", ""))
	now = now.Add(40 * time.Second)
	record()
	want("d", "7 deleted")
	if len(g.pods) != 1 || len(g.old) != 1 {
		t.Errorf("kept are %v and %v", g.pods, g.old)
	}
}
