//go:build e2e

package image

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// The programs of the real images find their libraries, and run as the image's user would find them.
// Needs root and the result of make build; fetches what the cache does not have.
func TestProgramsRun(t *testing.T) {
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Root: root, Cache: "/var/cache/heddle-local", Layout: t.TempDir(), Images: []string{"curl", "proxy", "heddle", "httpbin", "httpbin-python", "ratings-v1", "ext-authz"}}
	built, err := Build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	index, err := layout.ImageIndexFromPath(o.Layout)
	if err != nil {
		t.Fatal(err)
	}
	unpacked := make(map[string]string) // image → directory
	for _, c := range []struct {
		image   string
		command []string
		want    string
	}{
		{"docker.io/curlimages/curl:", []string{"/entrypoint.sh", "--version"}, "curl 7"},
		{"docker.io/curlimages/curl:", []string{"/entrypoint.sh", "curl", "--version"}, "curl 7"},
		{"docker.io/curlimages/curl:", []string{"/entrypoint.sh", "sh", "-c", "whoami"}, "curl_user"},
		{"docker.io/curlimages/curl:", []string{"/bin/sleep", "0"}, ""},
		{"registry.heddle.dev/proxy:", []string{"/usr/sbin/nft", "--version"}, "nftables v"},
		{"registry.heddle.dev/proxy:", []string{"/usr/local/bin/envoy", "--version"}, "1.40.0"},
		{"registry.heddle.dev/proxy:", []string{"/usr/local/bin/pilot-agent", "-h"}, ""},
		{"registry.heddle.dev/heddle:", []string{"/usr/local/bin/heddle", "--help"}, "heddle"},
		{"docker.io/mccutchen/go-httpbin:v2.15.0", []string{"/bin/go-httpbin", "-h"}, "port"},
		{"docker.io/kong/httpbin:", []string{"/bin/sh", "-c", "gunicorn --access-logfile - -b 0.0.0.0:99999 httpbin:app || true"}, "address 99999: invalid port"},
		{"docker.io/istio/examples-bookinfo-ratings-v1:", []string{"/usr/bin/curl", "--version"}, "curl 7"},
		{"docker.io/istio/examples-bookinfo-ratings-v1:", []string{"/bin/sh", "-c", "/usr/local/bin/samples bookinfo || true"}, "there are productpage"},
		{"gcr.io/istio-testing/ext-authz:", []string{"/usr/local/bin/extauthz", "-h"}, "allow_service_account"},
	} {
		dir, ok := unpacked[c.image]
		if !ok {
			i := slices.IndexFunc(built, func(b Built) bool { return strings.HasPrefix(b.Ref, c.image) })
			dir = unpack(t, find(t, index, built[i].Ref))
			unpacked[c.image] = dir
		}
		cmd := exec.CommandContext(t.Context(), c.command[0], c.command[1:]...)
		cmd.Env, cmd.Dir = []string{"PATH=/usr/local/bin:/usr/bin:/bin"}, "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: dir, Credential: &syscall.Credential{Uid: 100, Gid: 101}}
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if helped := errors.As(err, &exit) && c.command[1] == "-h"; err != nil && !helped || !strings.Contains(string(out), c.want) {
			t.Errorf("%s %v: %v\n%s", c.image, c.command, err, out)
		}
	}
}

// unpack returns a directory with the content of an image, and a /dev/null as runc makes it.
func unpack(t *testing.T, img v1.Image) string {
	t.Helper()
	dir := t.TempDir()
	r := mutate.Extract(img)
	defer r.Close()
	tar := exec.CommandContext(t.Context(), "tar", "-xC", dir)
	tar.Stdin = r
	if out, err := tar.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	null := filepath.Join(dir, "dev", "null")
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(filepath.Dir(null), 0o755), os.WriteFile(null, nil, 0o666), os.Chmod(null, 0o666)); err != nil {
		t.Fatal(err)
	}
	return dir
}
