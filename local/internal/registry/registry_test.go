package registry_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/heddle-mesh/heddle/local/internal/registry"
)

// add puts a random image into the layout.
func add(t *testing.T, dir, ref string) v1.Image {
	t.Helper()
	img, err := random.Image(100, 2)
	if err != nil {
		t.Fatal(err)
	}
	path, err := layout.FromPath(dir)
	if err != nil {
		path, err = layout.Write(dir, empty.Index)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": ref})); err != nil {
		t.Fatal(err)
	}
	return img
}

// mirror asks as containerd asks a mirror: with the wanted registry in ns.
type mirror struct{ ns string }

func (m mirror) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL.RawQuery = url.Values{"ns": {m.ns}}.Encode()
	return http.DefaultTransport.RoundTrip(r)
}

func pull(t *testing.T, server *httptest.Server, ref string, o ...remote.Option) (v1.Image, error) {
	t.Helper()
	r, err := name.ParseReference(strings.TrimPrefix(server.URL, "http://") + "/" + ref)
	if err != nil {
		t.Fatal(err)
	}
	return remote.Image(r, append(o, remote.WithContext(t.Context()))...)
}

func TestPull(t *testing.T) {
	dir := t.TempDir()
	curl := add(t, dir, "docker.io/curlimages/curl:latest")
	digest, err := curl.Digest()
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(registry.Handler(dir))
	defer server.Close()
	docker := remote.WithTransport(mirror{"docker.io"})
	for _, c := range []struct {
		ref string
		o   []remote.Option
	}{
		{"docker.io/curlimages/curl:latest", nil},
		{"docker.io/curlimages/curl", nil}, // untagged
		{"curlimages/curl", []remote.Option{docker}},
		{"curlimages/curl@" + digest.String(), []remote.Option{docker}},
	} {
		img, err := pull(t, server, c.ref, c.o...)
		if err != nil {
			t.Errorf("%s: %v", c.ref, err)
			continue
		}
		if got, err := img.Digest(); err != nil || got != digest {
			t.Errorf("%s: digest %v, %v; want %v", c.ref, got, err, digest)
		}
		if err := validate.Image(img); err != nil { // reads every layer
			t.Errorf("%s: %v", c.ref, err)
		}
	}
	for _, c := range []struct{ ref, ns string }{
		{"curlimages/curl:8", "docker.io"},        // another tag
		{"curlimages/curl", "quay.io"},            // another registry
		{"curlimages/cur", "docker.io"},           // another repository
		{"other@" + digest.String(), "docker.io"}, // a digest of another repository
	} {
		_, err := pull(t, server, c.ref, remote.WithTransport(mirror{c.ns}))
		var refused *transport.Error
		if !errors.As(err, &refused) || refused.StatusCode != http.StatusNotFound || refused.Errors[0].Code != transport.ManifestUnknownErrorCode {
			t.Errorf("%v: got %v, want 404 MANIFEST_UNKNOWN", c, err)
		}
	}
}

func TestAnyTag(t *testing.T) {
	dir := t.TempDir()
	any, one := add(t, dir, "docker.io/istio/sample:*"), add(t, dir, "docker.io/istio/sample:1.0")
	server := httptest.NewServer(registry.Handler(dir))
	defer server.Close()
	docker := remote.WithTransport(mirror{"docker.io"})
	anyDigest, err := any.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for ref, want := range map[string]v1.Image{
		"istio/sample": any, "istio/sample:1.20.3": any, "istio/sample@" + anyDigest.String(): any,
		"istio/sample:1.0": one, // which has a name of its own
		"istio/samples":    nil, "istio/sample/v1": nil, "istio/sample@sha256:" + strings.Repeat("0", 64): nil,
	} {
		img, err := pull(t, server, ref, docker)
		if want == nil {
			if err == nil {
				t.Errorf("%s is there", ref)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", ref, err)
			continue
		}
		got, err := img.Digest()
		if wanted, err2 := want.Digest(); err != nil || err2 != nil || got != wanted {
			t.Errorf("%s: %v, want %v (%v, %v)", ref, got, wanted, err, err2)
		}
	}
}

func TestNewImageIsServedAtOnce(t *testing.T) {
	dir := t.TempDir()
	add(t, dir, "example.org/a:1")
	server := httptest.NewServer(registry.Handler(dir))
	defer server.Close()
	if _, err := pull(t, server, "example.org/b:1"); err == nil {
		t.Fatal("b is there before it was added")
	}
	add(t, dir, "example.org/b:1")
	if _, err := pull(t, server, "example.org/b:1"); err != nil {
		t.Error(err)
	}
}

func TestProtocol(t *testing.T) {
	dir := t.TempDir()
	add(t, dir, "example.org/a:1")
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	blobs, err := filepath.Glob(filepath.Join(dir, "blobs", "sha256", "*"))
	if err != nil || len(blobs) == 0 {
		t.Fatal(blobs, err)
	}
	blob := "sha256:" + filepath.Base(blobs[0])
	for _, c := range []struct {
		method, path, ranged string
		status               int
	}{
		{"GET", "/v2/", "", 200},
		{"HEAD", "/v2/example.org/a/manifests/1", "", 200},
		{"GET", "/v2/example.org/a/blobs/" + blob, "", 200},
		{"GET", "/v2/example.org/a/blobs/" + blob, "bytes=0-9", 206},
		{"GET", "/v2/example.org/a/blobs/sha256:" + strings.Repeat("0", 64), "", 404},
		{"GET", "/v2/example.org/a/blobs/sha256:../../secret", "", 404},
		{"GET", "/v2/example.org/a/manifests/sha256:..%2f..%2fsecret", "", 404},
		{"GET", "/v2/example.org/a/tags/list", "", 404},
		{"POST", "/v2/example.org/a/blobs/uploads/", "", 405},
		{"DELETE", "/v2/example.org/a/manifests/1", "", 405},
	} {
		r := httptest.NewRequest(c.method, c.path, nil)
		if c.ranged != "" {
			r.Header.Set("Range", c.ranged)
		}
		w := httptest.NewRecorder()
		registry.Handler(dir).ServeHTTP(w, r)
		if w.Code != c.status || strings.Contains(w.Body.String(), "secret\n") {
			t.Errorf("%s %s: %d %s", c.method, c.path, w.Code, w.Body)
		}
		if digest := w.Header().Get("Docker-Content-Digest"); c.status < 300 && c.path != "/v2/" && !strings.HasPrefix(digest, "sha256:") {
			t.Errorf("%s %s: Docker-Content-Digest %q", c.method, c.path, digest)
		}
	}
}

func TestLayoutNotThereYetIsSaid(t *testing.T) {
	w := httptest.NewRecorder()
	registry.Handler(t.TempDir()).ServeHTTP(w, httptest.NewRequest("GET", "/v2/a/b/manifests/1", nil))
	if body, _ := io.ReadAll(w.Body); w.Code != 500 || !strings.Contains(string(body), "read image layout") {
		t.Errorf("%d %s", w.Code, body)
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	dir := t.TempDir()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if err := registry.Serve(t.Context(), taken.Addr().String(), dir); err == nil {
		t.Error("served on an address that is taken")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- registry.Serve(ctx, "127.0.0.1:0", dir) }()
	cancel()
	if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
