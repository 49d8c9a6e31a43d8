package control

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// The mesh's values switch profiles on and off while the plane runs.
func TestProfilesAreSwitched(t *testing.T) {
	c := newConfig(Options{Mesh: "one", Namespace: system, Revision: "default", Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	c.Set(mesh.ObjectKey{Name: "istio"}, settings("istio", "mesh", "{}"))
	for _, step := range []struct {
		values string
		on     bool
	}{
		{`{}`, false},
		{`{"pilot":{"env":{"HEDDLE_PROFILES":"true"}}}`, true},
		{`{"pilot":{"env":{"HEDDLE_PROFILES":"false"}}}`, false},
		{`{"pilot":{"env":{"HEDDLE_PROFILES":true}}}`, true},
		{`{"pilot":{"env":{"HEDDLE_PROFILES":"yes"}}}`, false},
		{`{"pilot":{"env":{"HEDDLE_PROFILES":""}}}`, false},
	} {
		c.Set(mesh.ObjectKey{Name: "istio-sidecar-injector"}, settings("istio-sidecar-injector", "values", step.values))
		err := c.profiling(t.Context())
		if (err == nil) != step.on || err != nil && !strings.Contains(err.Error(), `set spec.values.pilot.env.HEDDLE_PROFILES: "true" in Istio one`) {
			t.Errorf("%s: %v, want on %v", step.values, err, step.on)
		}
	}
}

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
