// Package scripts holds tests of the shell scripts beside it.
package scripts

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// stanza is a package as dpkg's status and apt's index write it; fields are "Name: value" lines.
func stanza(name string, fields ...string) string {
	return strings.Join(append([]string{
		"Package: " + name, "Version: 1.0", "Architecture: amd64", "Maintainer: nobody <nobody@example.com>",
		"Description: none",
	}, fields...), "\n") + "\n"
}

// installed is what dpkg says of a package that is there.
func installed(name string, fields ...string) string {
	return stanza(name, append([]string{"Status: install ok installed"}, fields...)...)
}

// available is what an archive's index says of a package.
func available(name string, fields ...string) string {
	return stanza(name, append([]string{"Filename: ./" + name + ".deb", "Size: 1", "SHA256: " + strings.Repeat("0", 64)}, fields...)...)
}

// machine makes apt and dpkg see a machine of their own: Debian's packages to have, and these installed. It returns the
// environment that leads there.
func machine(t *testing.T, status ...string) []string {
	t.Helper()
	dir := t.TempDir()
	archive := []string{
		available("containerd", "Depends: runc"), available("runc"), available("containernetworking-plugins"), available("nftables"), available("iproute2"),
		available("gcc"), available("libc6-dev"), available("python3-pip"), available("ca-certificates"),
	}
	for path, text := range map[string]string{
		"archive/Packages":      strings.Join(archive, "\n"),
		"dpkg/status":           strings.Join(status, "\n"),
		"dpkg/available":        "",
		"dpkg/info/format":      "1\n",
		"sources.list":          "deb [trusted=yes] copy:" + dir + "/archive ./\n",
		"lists/partial/.keep":   "",
		"archives/partial/keep": "",
		"apt.conf": fmt.Sprintf(`Dir::State "%[1]s"; Dir::State::status "%[1]s/dpkg/status"; Dir::State::lists "%[1]s/lists"; Dir::State::extended_states "%[1]s/extended";
Dir::Cache "%[1]s"; Dir::Cache::archives "%[1]s/archives"; Dir::Etc::sourcelist "%[1]s/sources.list"; Dir::Etc::sourceparts "/dev/null"; Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null"; Dir::Etc::parts "/dev/null"; Dir::Etc::main "/dev/null"; APT::Architecture "amd64"; APT::Sandbox::User ""; Acquire::Languages "none";
DPkg::Post-Invoke ""; APT::Update::Post-Invoke ""; APT::Update::Post-Invoke-Success "";
`, dir),
	} {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	env := append(os.Environ(), "APT_CONFIG="+dir+"/apt.conf", "DPKG_ADMINDIR="+dir+"/dpkg", "LC_ALL=C")
	update := exec.Command("apt-get", "update")
	update.Env = env
	if out, err := update.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return env
}

// What Docker CE brings; its containerd.io cannot be beside Debian's containerd and runc.
var docker = []string{
	installed("docker-ce", "Depends: containerd.io"),
	installed("containerd.io", "Provides: containerd (= 1.7), runc", "Conflicts: containerd, runc", "Replaces: containerd, runc"),
}

func TestDeps(t *testing.T) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		t.Fatal("this wants Debian, as all of this project does: ", err)
	}
	script, err := os.ReadFile("deps.sh") // read here, so that go test's cache knows of it
	if err != nil {
		t.Fatal(err)
	}
	others := "containernetworking-plugins nftables iproute2 gcc libc6-dev python3-pip ca-certificates"
	var all []string
	for p := range strings.FieldsSeq("containerd runc " + others) {
		all = append(all, installed(p))
	}
	for _, c := range []struct {
		name    string
		there   []string
		install string // what would be installed
		says    []string
		refused bool
	}{
		{name: "a bare machine", install: "containerd runc " + others},
		{name: "all is there", there: all},
		{name: "Docker CE", there: docker, install: others, says: []string{"using containerd.io, which is installed, for containerd", "using containerd.io, which is installed, for runc"}},
		{
			name: "a removed package's configuration is not the package", install: "nftables",
			there: append(slices.Concat(all[:3], all[4:]), stanza("nftables", "Status: deinstall ok config-files")),
		},
		{
			name: "something else is in the way", refused: true,
			there: append([]string{installed("firewall", "Conflicts: nftables")}, slices.Concat(all[:3], all[4:])...),
			says:  []string{"nothing was installed: apt cannot install nftables without removing"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := exec.Command("bash", "-s", "--", "--dry-run")
			cmd.Stdin = bytes.NewReader(script)
			cmd.Env = machine(t, c.there...)
			text, err := cmd.CombinedOutput()
			out := string(text)
			if (err != nil) != c.refused {
				t.Errorf("%v\n%s", err, out)
			}
			var got []string
			for _, m := range regexp.MustCompile(`(?m)^Inst (\S+)`).FindAllStringSubmatch(out, -1) {
				got = append(got, m[1])
			}
			want := strings.Fields(c.install)
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) || strings.Contains(out, "\nRemv ") {
				t.Errorf("would install %q, want %q\n%s", got, want, out)
			}
			for _, s := range c.says {
				if !strings.Contains(out, s) {
					t.Errorf("does not say %q:\n%s", s, out)
				}
			}
		})
	}
}
