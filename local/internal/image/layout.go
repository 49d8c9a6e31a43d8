package image

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// refName is the annotation of the layout's index that carries an image's full reference.
const refName = "org.opencontainers.image.ref.name"

// store writes what is new: blobs, then the records, then the index; and removes what nothing names any more.
func (t *table) store(ctx context.Context, dir string, images map[string]v1.Image, packages map[string]map[string]string) ([]Built, error) {
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return nil, err
	}
	unlock, err := lock(filepath.Join(dir, ".lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()

	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	if err := readJSON(filepath.Join(dir, "index.json"), &index); err != nil {
		return nil, err
	}
	var built []Built
	named := make(map[string]string)
	for _, name := range slices.Sorted(maps.Keys(images)) {
		if err := writeImage(ctx, blobs, images[name]); err != nil {
			return nil, fmt.Errorf("image %s: %w", name, err)
		}
		desc, err := partial.Descriptor(images[name])
		if err != nil {
			return nil, err
		}
		spec := t.Images[name]
		index.Manifests = slices.DeleteFunc(index.Manifests, func(d v1.Descriptor) bool {
			return slices.ContainsFunc(spec.Refs, func(ref string) bool { return sameRepository(ref, d.Annotations[refName]) })
		})
		for _, pattern := range spec.Refs {
			ref := t.expand(pattern, desc.Digest)
			if strings.Contains(pattern, "{digest}") {
				named[name] = ref
			}
			built = append(built, Built{Ref: ref, Digest: desc.Digest.String()})
			entry := *desc
			entry.Annotations = map[string]string{refName: ref}
			index.Manifests = append(index.Manifests, entry)
		}
	}
	slices.SortFunc(index.Manifests, func(a, b v1.Descriptor) int { return cmp.Compare(a.Annotations[refName], b.Annotations[refName]) })

	if err := errors.Join(
		writeJSON(filepath.Join(dir, "oci-layout"), map[string]string{"imageLayoutVersion": "1.0.0"}),
		mergeJSON(filepath.Join(dir, RefsFile), named),
		mergeJSON(filepath.Join(dir, PackagesFile), packages),
	); err != nil {
		return nil, err
	}
	if err := writeJSON(filepath.Join(dir, "index.json"), index); err != nil {
		return nil, err
	}
	if err := removeUnnamed(blobs, index); err != nil {
		return nil, err
	}
	slices.SortFunc(built, func(a, b Built) int { return cmp.Compare(a.Ref, b.Ref) })
	return built, nil
}

// sameRepository tells whether two references differ in their tags only.
func sameRepository(a, b string) bool {
	repository := func(ref string) string { return ref[:max(strings.LastIndexByte(ref, ':'), 0)] }
	return repository(a) == repository(b)
}

func writeImage(ctx context.Context, blobs string, img v1.Image) error {
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers {
		digest, err := l.Digest()
		if err != nil {
			return err
		}
		if err := writeOnce(ctx, filepath.Join(blobs, digest.Hex), l.Compressed); err != nil {
			return err
		}
	}
	manifest, err := img.Manifest()
	if err != nil {
		return err
	}
	digest, err := img.Digest()
	if err != nil {
		return err
	}
	for hex, raw := range map[string]func() ([]byte, error){manifest.Config.Digest.Hex: img.RawConfigFile, digest.Hex: img.RawManifest} {
		if err := writeOnce(ctx, filepath.Join(blobs, hex), func() (io.ReadCloser, error) {
			b, err := raw()
			return io.NopCloser(bytes.NewReader(b)), err
		}); err != nil {
			return err
		}
	}
	return nil
}

// removeUnnamed removes the blobs that no manifest of the index names, and what a killed writer left.
func removeUnnamed(blobs string, index v1.IndexManifest) error {
	keep := make(map[string]bool)
	for _, d := range index.Manifests {
		var m v1.Manifest
		if err := readJSON(filepath.Join(blobs, d.Digest.Hex), &m); err != nil {
			return err
		}
		keep[d.Digest.Hex], keep[m.Config.Digest.Hex] = true, true
		for _, l := range m.Layers {
			keep[l.Digest.Hex] = true
		}
	}
	files, err := os.ReadDir(blobs)
	if err != nil {
		return err
	}
	for _, f := range files {
		if !keep[f.Name()] {
			if err := os.Remove(filepath.Join(blobs, f.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// lock waits until it alone holds the file, which is made if missing.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

// writeOnce makes a file from what open returns, whole or not at all, unless it is there.
func writeOnce(ctx context.Context, path string, open func() (io.ReadCloser, error)) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	r, err := open()
	if err != nil {
		return err
	}
	defer r.Close()
	return replace(path, func(f *os.File) error {
		_, err := io.Copy(f, readerFunc(func(p []byte) (int, error) {
			if err := ctx.Err(); err != nil {
				return 0, err
			}
			return r.Read(p)
		}))
		return err
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// replace puts what write writes in path's place, at once.
func replace(path string, write func(*os.File) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	err = errors.Join(write(f), f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// readJSON leaves v as it is if there is no such file.
func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s is damaged, remove it: %w", path, err)
	}
	return nil
}

func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return replace(path, func(f *os.File) error {
		_, err := f.Write(append(b, '\n'))
		return err
	})
}

func mergeJSON[V any](path string, add map[string]V) error {
	all := make(map[string]V)
	if err := readJSON(path, &all); err != nil {
		return err
	}
	maps.Copy(all, add)
	return writeJSON(path, all)
}
