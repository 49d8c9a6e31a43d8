package meshtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Mount is a directory at which a kubelet mounts a Secret or a ConfigMap.
type Mount string

// Write brings the directory to data as a kubelet does: the keys are links through ..data, which is replaced as one.
func (m Mount) Write(t testing.TB, data map[string][]byte) {
	t.Helper()
	check := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	in := func(name string) string { return filepath.Join(string(m), name) }
	version, err := os.MkdirTemp(string(m), "..2026_")
	check(err)
	for name, content := range data {
		check(os.WriteFile(filepath.Join(version, name), content, 0o600))
	}
	before, err := os.Readlink(in("..data"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	check(os.Symlink(filepath.Base(version), in("..data_tmp")))
	check(os.Rename(in("..data_tmp"), in("..data")))
	links, err := os.ReadDir(string(m))
	check(err)
	for _, l := range links {
		if data[l.Name()] == nil && !strings.HasPrefix(l.Name(), "..") {
			check(os.Remove(in(l.Name())))
		}
	}
	for name := range data {
		if err := os.Symlink(filepath.Join("..data", name), in(name)); !os.IsExist(err) {
			check(err)
		}
	}
	if before != "" {
		check(os.RemoveAll(in(before)))
	}
}
