package verify

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	securityv1 "istio.io/api/security/v1alpha1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	callTimeout = 5 * time.Second
	refusalWait = time.Second // a handshake away
	trustDomain = "cluster.local"
	rootName    = "istio-ca-root-cert" // ConfigMap with a mesh's root in each of its namespaces
	rootKey     = "root-cert.pem"
	reviewers   = 16 // access reviews at a time
)

// plane is a control plane as a proxy finds it.
type plane struct{ system, mesh, rev string }

func (n Names) plane(number string) (plane, error) {
	switch number {
	case "1":
		return plane{n.Sys1, n.Mesh1, n.Rev1}, nil
	case "2":
		return plane{n.Sys2, n.Mesh2, n.Rev2}, nil
	}
	return plane{}, fmt.Errorf("there is no mesh %q; there are 1 and 2", number)
}

func (p plane) audience() string { return "heddle.dev/" + p.system + "/" + p.mesh }
func (p plane) service() string  { return "istiod-" + p.rev }

// clientCommands are what needs a client that no shell has:
//
//	enrol NAME NS APP MESH PLANE   shows the token that a pod of APP has for MESH to the CA and xDS of PLANE (1 or 2 each), and
//	                               prints how both answer; what the CA issues is kept as NAME
//	dial NAME NS APP PORT          a TLS connection to a pod of APP as a sidecar makes it, with NAME's certificate
//	load NAME NS APP TO SERVICE N  begins to send N requests a second from a pod of APP in NS to SERVICE in namespace TO
//	unload NAME                    ends that, and prints how many were lost
//	rights PLANE NS…               what PLANE may do with the resources of namespaces that discovery lists
func (r *run) clientCommands() map[string]func(*testscript.TestScript, bool, []string) {
	command := func(usage string, least int, f func(context.Context, kubernetes.Interface, []string) (string, error)) func(*testscript.TestScript, bool, []string) {
		return func(ts *testscript.TestScript, _ bool, a []string) {
			need(ts, len(a) >= least, usage)
			config, err := clientcmd.BuildConfigFromFlags("", r.o.Kubeconfig)
			ts.Check(err)
			config.QPS = -1 // no limit
			k, err := kubernetes.NewForConfig(config)
			ts.Check(err)
			if r.output, err = f(r.ctx, k, a); err != nil {
				r.output += err.Error() + "\n"
			}
			if r.o.Verbose {
				fmt.Fprintf(r.o.Out, "$ %s %s\n%s", strings.Fields(usage)[0], strings.Join(a, " "), r.output)
			}
		}
	}
	leaves := map[string]*x509svid.SVID{}
	return map[string]func(*testscript.TestScript, bool, []string){
		"enrol": command("enrol NAME NS APP MESH PLANE", 5, func(ctx context.Context, k kubernetes.Interface, a []string) (string, error) {
			of, err := r.o.Names.plane(a[3])
			if err != nil {
				return "", err
			}
			to, err := r.o.Names.plane(a[4])
			if err != nil {
				return "", err
			}
			out, leaf, err := enrol(ctx, k, a[1], a[2], of, to)
			leaves[a[0]] = leaf
			return out, err
		}),
		"dial": command("dial NAME NS APP PORT", 4, func(ctx context.Context, k kubernetes.Interface, a []string) (string, error) {
			leaf := leaves[a[0]]
			if leaf == nil {
				return "", fmt.Errorf("there is no certificate of %s", a[0])
			}
			return dial(ctx, k, leaf, a[1], a[2], a[3])
		}),
		"load": command("load NAME NS APP TO SERVICE N", 6, func(ctx context.Context, k kubernetes.Interface, a []string) (string, error) {
			l, err := startLoad(ctx, k, a[1], a[2], a[3], a[4], a[5])
			if err == nil {
				r.loads[a[0]] = l
			}
			return "", err
		}),
		"unload": command("unload NAME", 1, func(_ context.Context, _ kubernetes.Interface, a []string) (string, error) {
			l := r.loads[a[0]]
			if l == nil {
				return "", fmt.Errorf("there is no load %s", a[0])
			}
			delete(r.loads, a[0])
			return l.stop(), nil
		}),
		"rights": command("rights PLANE NS…", 2, func(ctx context.Context, k kubernetes.Interface, a []string) (string, error) {
			p, err := r.o.Names.plane(a[0])
			if err != nil {
				return "", err
			}
			return rights(ctx, k, p, a[1:])
		}),
	}
}

// enrol does what an agent does first. The refusal of either service is its output, not an error.
func enrol(ctx context.Context, k kubernetes.Interface, ns, app string, of, to plane) (string, *x509svid.SVID, error) {
	pod, err := podOf(ctx, k, ns, app)
	if err != nil {
		return "", nil, err
	}
	token, err := k.CoreV1().ServiceAccounts(ns).CreateToken(ctx, pod.Spec.ServiceAccountName, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{
			Audiences:      []string{of.audience()},
			BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", nil, err
	}
	conn, err := connect(ctx, k, to)
	if err != nil {
		return "", nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token.Status.Token, "clusterid", "Kubernetes")
	leaf, caErr := certificate(ctx, conn)
	out := "CA: " + answer(caErr) + "\nxDS: " + answer(subscribe(ctx, conn, pod)) + "\n"
	return out, leaf, nil
}

func answer(err error) string {
	s := status.Convert(err)
	if err == nil {
		return "OK"
	}
	return s.Code().String() + ": " + s.Message()
}

// connect reaches a plane through the loopback of its pod, so that what keeps others away from it does not matter.
func connect(ctx context.Context, k kubernetes.Interface, p plane) (*grpc.ClientConn, error) {
	pod, err := podOf(ctx, k, p.system, "istiod")
	if err != nil {
		return nil, err
	}
	roots, err := rootsOf(ctx, k, p.system)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	for _, c := range roots {
		pool.AddCert(c)
	}
	in, err := netnsOf(pod.Status.PodIP)
	if err != nil {
		return nil, err
	}
	return grpc.NewClient("passthrough:///127.0.0.1:15012",
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return in.dial(ctx, addr) }),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
			RootCAs: pool, ServerName: p.service() + "." + p.system + ".svc", MinVersion: tls.VersionTLS12,
		})))
}

func certificate(ctx context.Context, conn grpc.ClientConnInterface) (*x509svid.SVID, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	resp, err := securityv1.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx, &securityv1.IstioCertificateRequest{
		Csr: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})), ValidityDuration: 3600,
	})
	if err != nil {
		return nil, err
	}
	chain := resp.GetCertChain()
	if len(chain) < 2 {
		return nil, errors.New("the CA answered without its root")
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return x509svid.Parse([]byte(strings.Join(chain[:len(chain)-1], "")), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// subscribe asks for clusters as the pod's sidecar does.
func subscribe(ctx context.Context, conn grpc.ClientConnInterface, pod *corev1.Pod) error {
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
	if err != nil {
		return err
	}
	meta, err := structpb.NewStruct(map[string]any{
		"NAMESPACE": pod.Namespace, "SERVICE_ACCOUNT": pod.Spec.ServiceAccountName, "CLUSTER_ID": "Kubernetes",
	})
	if err != nil {
		return err
	}
	err = stream.Send(&discoveryv3.DiscoveryRequest{
		TypeUrl: "type.googleapis.com/envoy.config.cluster.v3.Cluster",
		Node: &corev3.Node{
			Id:       fmt.Sprintf("sidecar~%s~%s.%s~%[3]s.svc.cluster.local", pod.Status.PodIP, pod.Name, pod.Namespace),
			Metadata: meta,
		},
	})
	if err != nil {
		return err
	}
	_, err = stream.Recv()
	return err
}

// dial trusts the target's mesh, so that it is the target who refuses. A refusal is output, not an error.
func dial(ctx context.Context, k kubernetes.Interface, leaf *x509svid.SVID, ns, app, port string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	pod, err := podOf(ctx, k, ns, app)
	if err != nil {
		return "", err
	}
	roots, err := rootsOf(ctx, k, ns)
	if err != nil {
		return "", err
	}
	domain := spiffeid.RequireTrustDomainFromString(trustDomain)
	server, err := spiffeid.FromSegments(domain, "ns", ns, "sa", pod.Spec.ServiceAccountName)
	if err != nil {
		return "", err
	}
	config := tlsconfig.MTLSClientConfig(leaf, x509bundle.FromX509Authorities(domain, roots), tlsconfig.AuthorizeID(server))
	config.NextProtos = []string{"istio-http/1.1"} // what a sidecar says that it speaks
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(pod.Status.PodIP, port))
	if err != nil {
		return "", err
	}
	conn := tls.Client(raw, config)
	defer conn.Close()
	if err := conn.HandshakeContext(ctx); err != nil {
		return "", fmt.Errorf("dialling as %s: %w", leaf.ID, err)
	}
	// In TLS 1.3 the client is done before the server has looked at its certificate: who refuses says so now. Something
	// written meanwhile would make the server's kernel throw its reason away.
	head := make([]byte, 64)
	n, err := 0, conn.SetReadDeadline(time.Now().Add(refusalWait))
	if err == nil {
		n, err = conn.Read(head)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		if err = conn.SetDeadline(time.Now().Add(callTimeout)); err == nil {
			_, err = fmt.Fprintf(conn, "HEAD / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", app)
		}
		if err == nil {
			n, err = conn.Read(head)
		}
	}
	if err != nil {
		return "refused: " + err.Error() + "\n", nil
	}
	line, _, _ := strings.Cut(string(head[:n]), "\r\n")
	return "accepted: " + line + "\n", nil
}

// rights asks the API server, for each resource of a namespace that it knows, whether the plane's account may use each
// verb on it. One line is printed for each resource of which something is allowed, and how many questions were asked.
func rights(ctx context.Context, k kubernetes.Interface, p plane, namespaces []string) (string, error) {
	_, all, err := k.Discovery().ServerGroupsAndResources()
	if err != nil {
		return "", err
	}
	type ask struct {
		line int // of the output
		at   authorizationv1.ResourceAttributes
	}
	var asks []ask
	var lines []string
	for _, ns := range namespaces {
		seen := map[string]bool{}
		for _, l := range all {
			gv, err := schema.ParseGroupVersion(l.GroupVersion)
			if err != nil {
				return "", err
			}
			for _, res := range l.APIResources {
				title := strings.TrimSuffix(ns+" "+res.Name+"."+gv.Group, ".")
				if !res.Namespaced || seen[title] {
					continue
				}
				seen[title] = true
				resource, sub, _ := strings.Cut(res.Name, "/")
				for _, name := range append([]string{""}, named[resource]...) {
					for _, verb := range verbs {
						asks = append(asks, ask{len(lines), authorizationv1.ResourceAttributes{
							Namespace: ns, Verb: verb, Group: gv.Group, Resource: resource, Subresource: sub, Name: name,
						}})
					}
					lines = append(lines, strings.TrimSuffix(title+" "+name, " ")+":")
				}
			}
		}
	}
	allowed := make([]bool, len(asks))
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.SetLimit(reviewers)
	for i, a := range asks {
		tasks.Go(func() error {
			review, err := k.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{
				Spec: authorizationv1.SubjectAccessReviewSpec{
					User:               "system:serviceaccount:" + p.system + ":" + p.service(),
					Groups:             []string{"system:serviceaccounts", "system:serviceaccounts:" + p.system, "system:authenticated"},
					ResourceAttributes: &a.at,
				},
			}, metav1.CreateOptions{})
			allowed[i] = err == nil && review.Status.Allowed
			return err
		})
	}
	if err := tasks.Wait(); err != nil {
		return "", err
	}
	bare := slices.Clone(lines)
	for i, a := range asks {
		if allowed[i] {
			lines[a.line] += " " + a.at.Verb
		}
	}
	var out strings.Builder
	for i, l := range lines {
		if l != bare[i] {
			fmt.Fprintln(&out, l)
		}
	}
	fmt.Fprintf(&out, "asked %d\n", len(asks))
	return out.String(), nil
}

// verbs are what RBAC can grant on a resource; named are objects on which a plane has rights of their own.
var (
	verbs = []string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}
	named = map[string][]string{"configmaps": {rootName}, "secrets": {"cacerts", "istio-ca-secret"}}
)

// podOf returns a running pod of an app, the newest one.
func podOf(ctx context.Context, k kubernetes.Interface, ns, app string) (*corev1.Pod, error) {
	list, err := k.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{LabelSelector: "app=" + app, FieldSelector: "status.phase=Running"})
	if err != nil {
		return nil, err
	}
	pods := slices.DeleteFunc(list.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil })
	if len(pods) == 0 {
		return nil, fmt.Errorf("no pod of app %s runs in namespace %s", app, ns)
	}
	newest := slices.MaxFunc(pods, func(a, b corev1.Pod) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
	return &newest, nil
}

// rootsOf returns whom the workloads of a namespace trust.
func rootsOf(ctx context.Context, k kubernetes.Interface, ns string) ([]*x509.Certificate, error) {
	cm, err := k.CoreV1().ConfigMaps(ns).Get(ctx, rootName, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	var roots []*x509.Certificate
	for rest := []byte(cm.Data[rootKey]); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("root certificate of namespace %s: %w", ns, err)
		}
		roots = append(roots, c)
	}
	return roots, nil
}

// podNetns is the network namespace of a pod, by a file that names it.
type podNetns struct{ path string }

// netnsOf finds the network namespace that has an address: the processes of all nodes are processes of this machine.
func netnsOf(address string) (podNetns, error) {
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return podNetns{}, err
	}
	files, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return podNetns{}, err
	}
	tried := map[string]bool{}
	for _, file := range files {
		id, err := os.Readlink(file)
		if err != nil || tried[id] { // the process has ended
			continue
		}
		tried[id] = true
		if hasAddress(file, ip) {
			return podNetns{file}, nil
		}
	}
	return podNetns{}, fmt.Errorf("no network namespace of this machine has address %s", address)
}

func hasAddress(file string, ip netip.Addr) bool {
	ns, err := netns.GetFromPath(file)
	if err != nil {
		return false
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return false
	}
	defer h.Close()
	addrs, err := h.AddrList(nil, netlink.FAMILY_ALL)
	return err == nil && slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IP.Equal(ip.AsSlice()) })
}

// dial connects to an address, which must be numeric, from inside the namespace.
func (p podNetns) dial(ctx context.Context, addr string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread, which is in the pod, ends with the goroutine
		ns, err := netns.GetFromPath(p.path)
		if err != nil {
			done <- result{err: err}
			return
		}
		defer ns.Close()
		if err := netns.Set(ns); err != nil {
			done <- result{err: err}
			return
		}
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}
