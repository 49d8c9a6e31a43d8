// Package image builds the images of the local cluster, as images.yaml lists them, into an OCI layout.
//
// Equal inputs give equal bytes: layers are plain tar (nothing is on the wire but between this machine
// and itself, and a compressor's output changes with its version), sorted, without times or owners.
package image

import (
	"context"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"github.com/heddle-mesh/heddle/local"
)

// The files that Build keeps in the layout beside OCI's own; each is a JSON object.
const (
	RefsFile     = "heddle-images.json"   // image → the reference that names its content, for images that have one
	PackagesFile = "debian-packages.json" // layer → package → version
)

// Options say what to build and where. All paths are absolute.
type Options struct {
	Root     string            // the checkout: bin/ has our programs, local/ the module
	Cache    string            // downloads and built programs; kept over clusters
	Layout   string            // the OCI layout, made if missing
	Images   []string          // keys of images.yaml; none means Names. Others in the layout are left as they are
	Progress func(line string) // told what takes long, from several goroutines; may be nil
}

// Built is one reference of the layout.
type Built struct {
	Ref    string // registry/repository:tag
	Digest string // sha256:…, of the manifest
}

// Build brings the layout up to date and returns what it built, sorted by reference.
// Only what changed is written, and the index last, so that a registry may serve the layout meanwhile.
// The former content of a rebuilt image is removed.
func Build(ctx context.Context, o Options) ([]Built, error) {
	t, err := parse(local.Images)
	if err != nil {
		return nil, err
	}
	return t.build(ctx, o)
}

// Names returns the keys of the images that every cluster has, sorted.
func Names() ([]string, error) {
	t, err := parse(local.Images)
	if err != nil {
		return nil, err
	}
	return t.names(), nil
}

func (t *table) names() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(t.Images)), func(name string) bool { return t.Images[name].Asked })
}

func (t *table) build(ctx context.Context, o Options) ([]Built, error) {
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	names := o.Images
	if len(names) == 0 {
		names = t.names()
	}
	var wanted []string
	for _, name := range names {
		if _, ok := t.Images[name]; !ok {
			return nil, fmt.Errorf("no image %q; there are %s", name, strings.Join(slices.Sorted(maps.Keys(t.Images)), ", "))
		}
		wanted = append(wanted, t.Images[name].Layers...)
	}
	slices.Sort(wanted)
	wanted = slices.Compact(wanted)

	b := &builder{t, o}
	made := make([]*blob, len(wanted))
	packages := make(map[string]map[string]string)
	var mu sync.Mutex // guards packages
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.NumCPU())
	for i, name := range wanted {
		group.Go(func() error {
			l, versions, err := b.layer(gctx, name)
			if err != nil {
				return fmt.Errorf("layer %s: %w", name, err)
			}
			made[i] = l
			if len(versions) > 0 {
				mu.Lock()
				defer mu.Unlock()
				packages[name] = versions
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, fmt.Errorf("build images: %w", err)
	}

	layers := make(map[string]v1.Layer, len(wanted))
	for i, name := range wanted {
		layers[name] = made[i]
	}
	images := make(map[string]v1.Image, len(names))
	for _, name := range names {
		img, err := t.Images[name].assemble(layers)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", name, err)
		}
		images[name] = img
	}
	built, err := t.store(ctx, o.Layout, images, packages)
	if err != nil {
		return nil, fmt.Errorf("write image layout %s: %w", o.Layout, err)
	}
	return built, nil
}

func (s imageSpec) assemble(layers map[string]v1.Layer) (v1.Image, error) {
	adds := make([]mutate.Addendum, len(s.Layers))
	for i, name := range s.Layers {
		adds[i] = mutate.Addendum{
			Layer:   layers[name],
			History: v1.History{Created: v1.Time{Time: time.Unix(0, 0).UTC()}, CreatedBy: "heddle layer " + name},
		}
	}
	img, err := mutate.Append(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), adds...)
	if err != nil {
		return nil, err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", runtime.GOARCH
	cf.Created = v1.Time{Time: time.Unix(0, 0).UTC()}
	cf.Config = v1.Config{
		User: s.User, Entrypoint: s.Entrypoint, Cmd: s.Cmd, WorkingDir: s.Directory,
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
	}
	for _, name := range slices.Sorted(maps.Keys(s.Env)) {
		cf.Config.Env = append(cf.Config.Env, name+"="+s.Env[name])
	}
	for _, p := range s.Ports {
		if cf.Config.ExposedPorts == nil {
			cf.Config.ExposedPorts = make(map[string]struct{})
		}
		cf.Config.ExposedPorts[p] = struct{}{}
	}
	return mutate.ConfigFile(img, cf)
}
