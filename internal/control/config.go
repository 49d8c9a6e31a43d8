package control

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/inject"
	"github.com/heddle-mesh/heddle/internal/mesh"
	corev1 "k8s.io/api/core/v1"
)

// config follows the two ConfigMaps that the operator writes for the revision; it implements kube.Sink. A change that
// cannot be parsed leaves in force what was there.
type config struct {
	Options
	parsed atomic.Pointer[inject.Params]
	have   chan struct{} // closed when both are there and were parsed once

	mu       sync.Mutex // guards the fields below
	mesh     *corev1.ConfigMap
	injector *corev1.ConfigMap
	sources  *Sources
	opened   bool
}

func newConfig(o Options) *config { return &config{Options: o, have: make(chan struct{})} }

func (c *config) meshName() string     { return "istio" + c.suffix() }
func (c *config) injectorName() string { return "istio-sidecar-injector" + c.suffix() }

// params returns the injector's settings in force; nil before the first.
func (c *config) params() *inject.Params { return c.parsed.Load() }

// profiling is obs.Admin.Profiling: the mesh's values switch profiles on and off while the plane runs.
func (c *config) profiling(context.Context) error {
	if c.params().Profiling() {
		return nil
	}
	return fmt.Errorf("profiles of this control plane are off: set spec.values.pilot.env.%s: \"true\" in Istio %s; nothing is restarted by that", inject.ProfilesEnv, c.Options.Mesh)
}

// first waits until the revision has its settings.
func (c *config) first(ctx context.Context) (*inject.Params, error) {
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-c.have:
		return c.params(), nil
	}
}

// feed hands the mesh configuration to the graph from now on.
func (c *config) feed(s *Sources) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sources = s
	s.MeshConfig.Set(c.Options.Mesh, c.params().MeshConfig())
}

// Set takes one of the ConfigMaps.
func (c *config) Set(k mesh.ObjectKey, m *corev1.ConfigMap) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch k.Name {
	case c.meshName():
		c.mesh = m
	case c.injectorName():
		c.injector = m
	}
	if c.mesh == nil || c.injector == nil {
		return
	}
	params, err := inject.Parse(inject.Settings{
		Mesh: c.Options.Mesh, Revision: c.Revision, Namespace: c.Namespace,
		MeshConfig: []byte(c.mesh.Data["mesh"]),
		Config:     []byte(c.injector.Data["config"]), Values: []byte(c.injector.Data["values"]),
	})
	if err != nil {
		c.Log.LogAttrs(context.Background(), slog.LevelError, "settings not understood; the last ones stay in force",
			slog.String("ref", "ConfigMap "+c.Namespace+"/"+k.Name), slog.Any("err", err))
		return
	}
	c.parsed.Store(params)
	if c.sources != nil {
		c.sources.MeshConfig.Set(c.Options.Mesh, params.MeshConfig())
	}
	if !c.opened {
		c.opened = true
		close(c.have)
	}
}

// Delete leaves the last settings in force: a plane without settings would be worse than one with old ones.
func (c *config) Delete(mesh.ObjectKey) {}

// Replace takes what a list found.
func (c *config) Replace(rows []graph.Row[mesh.ObjectKey, *corev1.ConfigMap], _ func(mesh.ObjectKey) bool) {
	for _, r := range rows {
		c.Set(r.Key, r.Val)
	}
}
