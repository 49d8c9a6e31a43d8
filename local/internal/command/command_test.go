package command

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
	api "k8s.io/client-go/tools/clientcmd/api"
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
		{"a command's own arguments", []string{"exec", "p", "--", "curl", web}, []string{"exec", "p", "--", "curl", web}},
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

// The documents' addresses lead to samples of this checkout.
func TestDocumentsAddressesAreHere(t *testing.T) {
	const checkout = "../../.."
	for _, release := range []string{
		"https://raw.githubusercontent.com/istio/istio/release-1.26/", "https://raw.githubusercontent.com/istio/istio/refs/heads/master/",
		"https://raw.githubusercontent.com/openshift-service-mesh/istio/release-1.24/", "https://raw.githubusercontent.com/openshift-service-mesh/istio/refs/heads/master/",
	} {
		for _, sample := range []string{
			"samples/bookinfo/platform/kube/bookinfo.yaml", "samples/bookinfo/platform/kube/bookinfo-versions.yaml",
			"samples/bookinfo/networking/bookinfo-gateway.yaml", "samples/bookinfo/gateway-api/bookinfo-gateway.yaml",
			"samples/curl/curl.yaml", "samples/sleep/sleep.yaml", "samples/httpbin/httpbin.yaml", "samples/extauthz/ext-authz.yaml",
			"samples/helloworld/helloworld.yaml", "samples/helloworld/helloworld-gateway.yaml", "samples/jwt-server/jwt-server.yaml",
		} {
			want := filepath.Join(checkout, sample)
			if got := Rewrite([]string{"apply", "-f", release + sample}, checkout); got[2] != want {
				t.Errorf("%s%s: %s", release, sample, got[2])
			}
		}
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
		{"not up, and the flag is another command's", "", false, []string{"exec", "p", "--", "curl", "-s", "--kubeconfig"}, "", true},
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

// On a cluster that is not ours the web's samples are the web's.
func TestSamplesAreOursOnInstancesOnly(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "samples", "sleep", "sleep.yaml")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	// kubeconfig writes one with two contexts: cluster, the current one, and other.
	kubeconfig := func(name, server, ca string) string {
		config := api.NewConfig()
		config.Clusters["cluster"] = &api.Cluster{Server: server, CertificateAuthorityData: []byte(ca)}
		config.Clusters["other"] = &api.Cluster{Server: "https://other", CertificateAuthorityData: []byte("other CA")}
		config.Contexts["cluster"] = &api.Context{Cluster: "cluster"}
		config.Contexts["other"] = &api.Context{Cluster: "other"}
		config.CurrentContext = "cluster"
		path := filepath.Join(dir, name)
		if err := clientcmd.WriteToFile(*config, path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	demo := kubeconfig("demo", "https://10.0.0.1:6443", "demo's CA")
	test := kubeconfig("test", "https://10.0.0.2:6443", "test's CA")
	copied := kubeconfig("copy", "https://10.0.0.1:6443", "demo's CA")
	theirs := kubeconfig("theirs", "https://example.com", "their CA")
	tunnel := kubeconfig("tunnel", "https://10.0.0.1:6443", "their CA")
	const web = "https://raw.githubusercontent.com/istio/istio/release-1.26/samples/sleep/sleep.yaml"
	for _, tt := range []struct {
		name, env string
		flags     []string
		ours      bool
	}{
		{"the instance", "", nil, true},
		{"the instance by environment", demo, nil, true},
		{"another instance", test, nil, true},
		{"a copy", copied, nil, true},
		{"a flag", "", []string{"--kubeconfig", test}, true},
		{"another cluster by environment", theirs, nil, false},
		{"another cluster first of two", theirs + ":" + demo, nil, false},
		{"another cluster by a flag", "", []string{"--kubeconfig", theirs}, false},
		{"another cluster by a flag with =", demo, []string{"--kubeconfig=" + theirs}, false},
		{"another context", demo, []string{"--context", "other"}, false},
		{"another cluster of the file", demo, []string{"--cluster=other"}, false},
		{"another server", demo, []string{"--server", "https://example.com"}, false},
		{"another server, in short", demo, []string{"-s", "https://example.com"}, false},
		{"another server, in one word", demo, []string{"-shttps://example.com"}, false},
		{"the same address of another network", tunnel, nil, false},
		{"no kubeconfig", filepath.Join(dir, "none"), nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("KUBECONFIG", tt.env)
			t.Setenv("KUBECACHEDIR", "")
			t.Setenv("HOME", dir)
			c := Context{Kubeconfig: demo, Local: []string{demo, test}, Cache: dir, Checkout: dir}
			args, err := c.Prepare(append([]string{"apply", "-f", web}, tt.flags...))
			if err != nil {
				t.Fatal(err)
			}
			want := web
			if tt.ours {
				want = file
			}
			if args[2] != want {
				t.Errorf("applies %s, want %s", args[2], want)
			}
		})
	}
}
