package command

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestRewrite(t *testing.T) {
	checkout := t.TempDir()
	dir := filepath.Join(checkout, "samples", "sleep", "deep")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	ours := filepath.Join(checkout, "samples", "sleep", "sleep.yaml")
	deep := filepath.Join(dir, "d.yaml")
	for _, f := range []string{ours, deep, filepath.Join(checkout, "secret.yaml")} {
		if err := os.WriteFile(f, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const web = "https://raw.githubusercontent.com/istio/istio/release-1.26/samples/sleep/sleep.yaml"
	for _, tt := range []struct {
		name       string
		args, want []string
	}{
		{"value after a flag", []string{"apply", "-f", web, "-n", "a"}, []string{"apply", "-f", ours, "-n", "a"}},
		{"value of a flag", []string{"apply", "--filename=" + web}, []string{"apply", "--filename=" + ours}},
		{"several directories", []string{"https://x/samples/sleep/deep/d.yaml"}, []string{deep}},
		{"the last samples counts", []string{"https://x/samples/y/samples/sleep/sleep.yaml"}, []string{ours}},
		{"not there", []string{"https://x/samples/bookinfo/b.yaml"}, []string{"https://x/samples/bookinfo/b.yaml"}},
		{"a directory", []string{"https://x/samples/sleep"}, []string{"https://x/samples/sleep"}},
		{"no samples", []string{"https://x/sleep/sleep.yaml"}, []string{"https://x/sleep/sleep.yaml"}},
		{"out of the directory", []string{"https://x/samples/../secret.yaml"}, []string{"https://x/samples/../secret.yaml"}},
		{"no address", []string{"samples/sleep/sleep.yaml", "-"}, []string{"samples/sleep/sleep.yaml", "-"}},
	} {
		if got := Rewrite(tt.args, checkout); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
	if got := Rewrite([]string{web}, ""); got[0] != web {
		t.Errorf("without a checkout: %q", got)
	}
}

func TestPrepareChoosesKubeconfig(t *testing.T) {
	const ours = "/state/kubeconfig"
	for _, tt := range []struct {
		name, env string
		up        bool
		args      []string
		want      string // KUBECONFIG afterwards
		fails     bool
	}{
		{"the instance's", "", true, []string{"get", "pods"}, ours, false},
		{"the environment wins", "/mine", true, []string{"get", "pods"}, "/mine", false},
		{"a flag wins", "", true, []string{"get", "pods", "--kubeconfig", "/mine"}, "", false},
		{"a flag with = wins", "", true, []string{"--kubeconfig=/mine", "get", "pods"}, "", false},
		{"not up", "", false, []string{"get", "pods"}, "", true},
		{"not up, but another cluster", "/mine", false, []string{"get", "pods"}, "/mine", false},
		{"not up, help", "", false, []string{"get", "--help"}, "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("KUBECONFIG", tt.env)
			t.Setenv("KUBECACHEDIR", "")
			c := Context{Cache: "/state/cache"}
			if tt.up {
				c.Kubeconfig = ours
			}
			_, err := c.Prepare(tt.args)
			if (err != nil) != tt.fails || os.Getenv("KUBECONFIG") != tt.want {
				t.Errorf("KUBECONFIG = %q, error %v; want %q, error: %v", os.Getenv("KUBECONFIG"), err, tt.want, tt.fails)
			}
		})
	}
}
