// Package settings renders what the components of a cluster are started with: arguments,
// configuration files and the first objects. It is pure.
package settings

import (
	"bytes"
	"embed"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/heddle-mesh/heddle/local/internal/pki"
	"github.com/heddle-mesh/heddle/local/internal/plan"
)

//go:embed files
var files embed.FS

// Cluster is one cluster of an instance.
type Cluster struct {
	plan.Cluster
	Dir      string // holds pki, etcd, kubeconfig, audit.log
	Registry string // host:port
}

// Component is a process of the control plane: its name, which is also argv[0], and flags.
type Component struct {
	Name string
	Args []string
}

// Keys is the directory of the cluster's keys.
func (c Cluster) Keys() string { return filepath.Join(c.Dir, "pki") }

// Kubeconfig is the administrator's.
func (c Cluster) Kubeconfig() string { return filepath.Join(c.Dir, "kubeconfig") }

// AuditLog is where the API server writes one line for each request.
func (c Cluster) AuditLog() string { return filepath.Join(c.Dir, "audit.log") }

// URL is the API server's.
func (c Cluster) URL() string { return fmt.Sprintf("https://%s:6443", c.API()) }

func (c Cluster) key(name string) string { return filepath.Join(c.Keys(), name) }

// port gives the control plane's loopback ports: all clusters of an instance share the
// router's network namespace.
func (c Cluster) port(i int) int { return 12300 + 10*c.Index + i }

func (c Cluster) peerURL() string { return fmt.Sprintf("https://127.0.0.1:%d", c.port(1)) }
func (c Cluster) etcdURL() string { return fmt.Sprintf("https://127.0.0.1:%d", c.port(0)) }

// Etcd keeps its data in Dir. It does not wait for the disk: a local cluster that loses
// power is taken down and up again.
func (c Cluster) Etcd() Component {
	return Component{"etcd", []string{
		"--data-dir=" + filepath.Join(c.Dir, "etcd"),
		"--listen-client-urls=" + c.etcdURL(), "--advertise-client-urls=" + c.etcdURL(),
		"--listen-peer-urls=" + c.peerURL(), "--initial-advertise-peer-urls=" + c.peerURL(),
		"--initial-cluster=default=" + c.peerURL(),
		"--client-cert-auth", "--trusted-ca-file=" + c.key("etcd-ca.crt"),
		"--cert-file=" + c.key("etcd.crt"), "--key-file=" + c.key("etcd.key"),
		"--peer-client-cert-auth", "--peer-trusted-ca-file=" + c.key("etcd-ca.crt"),
		"--peer-cert-file=" + c.key("etcd.crt"), "--peer-key-file=" + c.key("etcd.key"),
		"--unsafe-no-fsync", "--log-level=warn",
	}}
}

// APIServer serves on the router's address in the node network. Without kube-proxy beside
// it, it reaches webhooks and aggregated APIs by their endpoints.
func (c Cluster) APIServer() Component {
	return Component{"kube-apiserver", []string{
		"--etcd-servers=" + c.etcdURL(), "--etcd-cafile=" + c.key("etcd-ca.crt"),
		"--etcd-certfile=" + c.key("etcd-client.crt"), "--etcd-keyfile=" + c.key("etcd-client.key"),
		"--bind-address=" + c.API().String(), "--advertise-address=" + c.API().String(), "--secure-port=6443",
		"--service-cluster-ip-range=" + c.Services.String(),
		"--tls-cert-file=" + c.key("apiserver.crt"), "--tls-private-key-file=" + c.key("apiserver.key"),
		"--client-ca-file=" + c.key("ca.crt"), "--allow-privileged=true",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--enable-aggregator-routing=true",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-signing-key-file=" + c.key("sa.key"), "--service-account-key-file=" + c.key("sa.pub"),
		"--kubelet-client-certificate=" + c.key("apiserver-kubelet-client.crt"),
		"--kubelet-client-key=" + c.key("apiserver-kubelet-client.key"),
		"--kubelet-certificate-authority=" + c.key("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
		"--requestheader-client-ca-file=" + c.key("front-proxy-ca.crt"),
		"--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + c.key("front-proxy-client.crt"),
		"--proxy-client-key-file=" + c.key("front-proxy-client.key"),
		"--audit-policy-file=" + filepath.Join(c.Dir, "audit-policy.yaml"), "--audit-log-path=" + c.AuditLog(),
		"--audit-log-mode=batch", "--audit-log-maxsize=100", "--audit-log-maxbackup=1",
		"--profiling=false",
	}}
}

// ControllerManager and Scheduler ask often and alone: with the default rate and leader
// election the first Deployment would wait seven seconds.
func (c Cluster) ControllerManager() Component {
	return Component{"kube-controller-manager", append(c.client("kube-controller-manager", 2),
		"--client-ca-file="+c.key("ca.crt"), "--requestheader-client-ca-file="+c.key("front-proxy-ca.crt"),
		"--root-ca-file="+c.key("ca.crt"),
		"--cluster-signing-cert-file="+c.key("ca.crt"), "--cluster-signing-key-file="+c.key("ca.key"),
		"--service-account-private-key-file="+c.key("sa.key"), "--use-service-account-credentials=true",
		"--allocate-node-cidrs=false",
	)}
}

// Scheduler see ControllerManager.
func (c Cluster) Scheduler() Component {
	return Component{"kube-scheduler", c.client("kube-scheduler", 3)}
}

func (c Cluster) client(name string, port int) []string {
	config := c.key(name + ".kubeconfig")
	return []string{
		"--kubeconfig=" + config, "--authentication-kubeconfig=" + config, "--authorization-kubeconfig=" + config,
		"--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", c.port(port)), "--cert-dir=" + c.key(name),
		"--leader-elect=false", "--kube-api-qps=300", "--kube-api-burst=300", "--profiling=false",
	}
}

// WriteKeys makes all keys, certificates and kubeconfigs of the control plane that are not
// there yet.
func (c Cluster) WriteKeys() error {
	ca, err := pki.Open(c.Keys(), "ca")
	if err != nil {
		return err
	}
	front, err := pki.Open(c.Keys(), "front-proxy-ca")
	if err != nil {
		return err
	}
	etcd, err := pki.Open(c.Keys(), "etcd-ca")
	if err != nil {
		return err
	}
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if err := etcd.Issue(
		pki.Leaf{Name: "etcd", CommonName: "etcd", Server: true, Client: true, DNS: []string{"localhost"}, Addrs: []netip.Addr{loopback}},
		pki.Leaf{Name: "etcd-client", CommonName: "etcd-client", Client: true},
	); err != nil {
		return err
	}
	if err := front.Issue(pki.Leaf{Name: "front-proxy-client", CommonName: "front-proxy-client", Client: true}); err != nil {
		return err
	}
	if err := ca.Issue(
		pki.Leaf{
			Name: "apiserver", CommonName: "kube-apiserver", Server: true,
			DNS:   []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"},
			Addrs: []netip.Addr{loopback, c.API(), c.ServiceAPI()},
		},
		pki.Leaf{Name: "apiserver-kubelet-client", CommonName: "kube-apiserver-kubelet-client", Client: true},
		pki.Leaf{Name: "admin", CommonName: "kubernetes-admin", Organization: "system:masters", Client: true},
		pki.Leaf{Name: "kube-controller-manager", CommonName: "system:kube-controller-manager", Client: true},
		pki.Leaf{Name: "kube-scheduler", CommonName: "system:kube-scheduler", Client: true},
		pki.Leaf{Name: "kube-proxy", CommonName: "system:kube-proxy", Client: true},
	); err != nil {
		return err
	}
	for _, name := range []string{"kube-controller-manager", "kube-scheduler", "kube-proxy"} {
		if err := c.writeKubeconfig(name, c.key(name+".kubeconfig")); err != nil {
			return err
		}
	}
	if err := c.writeKubeconfig("admin", c.Kubeconfig()); err != nil {
		return err
	}
	return pki.OpenKeyPair(c.Keys(), "sa")
}

// WriteNodeKeys is WriteKeys for a node: kubelet's client and serving certificates, signed
// directly, so that nothing has to be approved.
func (c Cluster) WriteNodeKeys(n plan.Node) error {
	ca, err := pki.Open(c.Keys(), "ca")
	if err != nil {
		return err
	}
	leaf := pki.Leaf{Name: n.Name, CommonName: "system:node:" + n.Name, Organization: "system:nodes", Client: true}
	serving := pki.Leaf{
		Name: n.Name + "-serving", CommonName: leaf.CommonName, Organization: leaf.Organization,
		Server: true, DNS: []string{n.Name}, Addrs: []netip.Addr{n.Addr},
	}
	if err := ca.Issue(leaf, serving); err != nil {
		return err
	}
	return c.writeKubeconfig(n.Name, c.key(n.Name+".kubeconfig"))
}

// Node is what the files of a node are rendered from.
type Node struct {
	Cluster
	plan.Node
	Dir string // the node's own
}

// Node settings of node i.
func (c Cluster) NodeSettings(i int, dir string) Node {
	return Node{Cluster: c, Node: c.Cluster.Node(i), Dir: dir}
}

// CgroupRoot of an instance's node, below each hierarchy.
func CgroupRoot(instance, node string) string {
	return strings.TrimSuffix("heddle-local/"+instance+"/"+node, "/")
}

// NodeFile is a file of a node: its path below the node's directory and its text.
type NodeFile struct{ Path, Text string }

// Files are a node's configuration files.
func (n Node) Files(instance string) ([]NodeFile, error) {
	data := map[string]any{
		"Addr": n.Addr, "Pods": n.Node.Pods, "ClusterPods": n.Cluster.Pods, "DNS": n.DNS(), "Keys": n.Keys(),
		"Name": n.Node.Name, "Dir": n.Dir, "Registry": n.Registry, "Cgroup": CgroupRoot(instance, n.Node.Name),
	}
	var all []NodeFile
	for path, name := range map[string]string{
		"containerd-conf/config.toml":                 "containerd.toml",
		"containerd-conf/certs.d/_default/hosts.toml": "hosts.toml",
		"cni-conf/10-heddle.conflist":                 "cni.json",
		"kubelet.yaml":                                "kubelet.yaml",
		"kube-proxy.yaml":                             "kube-proxy.yaml",
		"resolv.conf":                                 "resolv.conf",
	} {
		text, err := render(name, data)
		if err != nil {
			return nil, err
		}
		all = append(all, NodeFile{path, text})
	}
	return all, nil
}

// AuditPolicy logs who asked for what, not what was in it.
func AuditPolicy() (string, error) { return render("audit-policy.yaml", nil) }

// FirstObjects are the objects a cluster begins with, but those that need an image.
func FirstObjects() (string, error) { return render("first.yaml", nil) }

// DNSObjects deploys CoreDNS of the image.
func (c Cluster) DNSObjects(image string) (string, error) {
	return render("coredns.yaml", map[string]any{"Image": image, "DNS": c.DNS()})
}

// ImagesObject tells who installs Heddle what it is called, where no control plane may write.
func ImagesObject(heddle, proxy string) (string, error) {
	return render("images.yaml", map[string]any{"Heddle": heddle, "Proxy": proxy})
}

func render(name string, data any) (string, error) {
	t, err := template.New(name).Option("missingkey=error").ParseFS(files, "files/"+name)
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	if err := t.Execute(&b, data); err != nil {
		return "", err
	}
	return b.String(), nil
}
