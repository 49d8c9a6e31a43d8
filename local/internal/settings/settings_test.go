package settings

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/heddle-mesh/heddle/local/internal/plan"
)

var update = flag.Bool("update", false, "rewrite the goldens")

func cluster(t *testing.T, dir string) Cluster {
	t.Helper()
	b, err := plan.ParseBase("10.160")
	if err != nil {
		t.Fatal(err)
	}
	return Cluster{Cluster: b.Cluster(1), Dir: dir, Registry: "10.160.0.1:5001"}
}

// The files of a node and the arguments of the control plane are as they were tried.
func TestGoldens(t *testing.T) {
	c := cluster(t, "/state/c1")
	files, err := c.NodeSettings(2, "/state/nodes/c1-n2").Files("demo")
	if err != nil {
		t.Fatal(err)
	}
	var node, plane strings.Builder
	slices.SortFunc(files, func(a, b NodeFile) int { return strings.Compare(a.Path, b.Path) })
	for _, f := range files {
		if f.Path != "containerd-conf/config.toml" { // has no parameters
			node.WriteString("-- " + f.Path + " --\n" + f.Text)
		}
	}
	for _, p := range []Component{c.Etcd(), c.APIServer(), c.ControllerManager(), c.Scheduler()} {
		plane.WriteString("-- " + p.Name + " --\n" + strings.Join(p.Args, "\n") + "\n")
	}
	golden(t, "node.txt", node.String())
	golden(t, "plane.txt", plane.String())
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("differs from %s (rewrite with -update):\n%s", path, got)
	}
}

// Clusters of one instance share loopback in the router.
func TestPortsOfClustersDiffer(t *testing.T) {
	b, err := plan.ParseBase("10.160")
	if err != nil {
		t.Fatal(err)
	}
	taken := map[int]int{}
	for n := 1; n <= 9; n++ {
		c := Cluster{Cluster: b.Cluster(n)}
		for i := range 4 {
			if other, ok := taken[c.port(i)]; ok {
				t.Errorf("clusters %d and %d both have port %d", other, n, c.port(i))
			}
			taken[c.port(i)] = n
		}
	}
}

// All keys named by an argument exist, and the kubeconfigs hold theirs.
func TestKeysExist(t *testing.T) {
	c := cluster(t, t.TempDir())
	if err := os.MkdirAll(c.Keys(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := c.WriteKeys(); err != nil {
		t.Fatal(err)
	}
	if err := c.WriteNodeKeys(c.Node(1)); err != nil {
		t.Fatal(err)
	}
	for _, p := range []Component{c.Etcd(), c.APIServer(), c.ControllerManager(), c.Scheduler()} {
		for _, a := range p.Args {
			if _, file, ok := strings.Cut(a, "="); ok && strings.HasPrefix(file, c.Keys()) && !strings.HasPrefix(a, "--cert-dir") {
				if _, err := os.Stat(file); err != nil {
					t.Errorf("%s: %s: %v", p.Name, a, err)
				}
			}
		}
	}
	for _, path := range []string{c.Kubeconfig(), c.key("kube-proxy.kubeconfig"), c.key("c1-n1.kubeconfig")} {
		config, err := clientcmd.BuildConfigFromFlags("", path)
		if err != nil {
			t.Fatal(err)
		}
		if config.Host != "https://10.161.0.1:6443" || config.Insecure || len(config.CAData) == 0 || len(config.CertData) == 0 || len(config.KeyData) == 0 {
			t.Errorf("%s: server %s, insecure %v, or keys missing", path, config.Host, config.Insecure)
		}
	}
}

// The names of the images stand where control planes may not write: those may make ConfigMaps.
func TestImagesObject(t *testing.T) {
	text, err := ImagesObject("r/heddle:1", "r/proxy:2")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"kind: ClusterRole\n", "name: heddle-local:images\n", "heddle.dev/image: r/heddle:1\n", "heddle.dev/proxy-image: r/proxy:2\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Contains(text, "kind: ConfigMap") {
		t.Errorf("a ConfigMap:\n%s", text)
	}
}
