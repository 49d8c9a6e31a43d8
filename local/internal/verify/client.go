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
	"os"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	securityv1 "istio.io/api/security/v1alpha1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	callTimeout = 5 * time.Second
	refusalWait = time.Second // a handshake away
	trustDomain = "cluster.local"
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

// What needs a client that no shell has:
//
//	enrol NAME NS APP MESH PLANE      shows the token that a pod of APP has for MESH to the CA and xDS of PLANE (1 or 2 each),
//	                                  and prints how both answer; what the CA issues is kept as NAME
//	dial NAME NS APP PORT             a TLS connection to a pod of APP as a sidecar makes it, with NAME's certificate
//	load NAME NS APP TO SERVICE RATE  begins to send RATE requests a second from a pod of APP in NS to SERVICE in namespace TO
//	unload NAME                       ends that, and prints how many were lost
//	unloadless NAME NS APP            the same, less those that APP in NS cut off itself, by the access log of its sidecar
//	rights PLANE NS…                  what PLANE may do with the resources of namespaces that discovery lists
//
// An error is printed too, and ends the command with code 1.

func (r *run) enrol(a []string) {
	r.client("enrol", a, func(ctx context.Context, k kubernetes.Interface) (string, error) {
		of, err := r.o.Names.plane(a[3])
		if err != nil {
			return "", err
		}
		to, err := r.o.Names.plane(a[4])
		if err != nil {
			return "", err
		}
		out, leaf, err := enrol(ctx, k, a[1], a[2], of, to)
		r.leaves[a[0]] = leaf
		return out, err
	})
}

func (r *run) dial(a []string) {
	r.client("dial", a, func(ctx context.Context, k kubernetes.Interface) (string, error) {
		leaf := r.leaves[a[0]]
		if leaf == nil {
			return "", fmt.Errorf("there is no certificate of %s", a[0])
		}
		return dial(ctx, k, leaf, a[1], a[2], a[3])
	})
}

func (r *run) load(a []string) {
	r.client("load", a, func(_ context.Context, k kubernetes.Interface) (string, error) {
		l, err := startLoad(r.ctx, k, a[1], a[2], a[3], a[4], a[5]) // it goes on
		if err == nil {
			r.loads[a[0]] = l
		}
		return "", err
	})
}

func (r *run) unload(a []string) {
	r.client("unload", a, func(context.Context, kubernetes.Interface) (string, error) {
		l, err := r.unloaded(a[0])
		if err != nil {
			return "", err
		}
		return l.stop(""), nil
	})
}

func (r *run) unloadless(a []string) {
	r.client("unloadless", a, func(ctx context.Context, k kubernetes.Interface) (string, error) {
		l, err := r.unloaded(a[0])
		if err != nil {
			return "", err
		}
		return l.stopLess(ctx, func(ctx context.Context) (string, error) { return proxyLog(ctx, k, a[1], a[2]) })
	})
}

// unloaded takes a load from those under way.
func (r *run) unloaded(name string) (*load, error) {
	l := r.loads[name]
	if l == nil {
		return nil, fmt.Errorf("there is no load %s", name)
	}
	delete(r.loads, name)
	return l, nil
}

func (r *run) rights(a []string) {
	r.client("rights", a, func(ctx context.Context, k kubernetes.Interface) (string, error) {
		p, err := r.o.Names.plane(a[0])
		if err != nil {
			return "", err
		}
		return rights(ctx, k, p, a[1:])
	})
}

// client runs what needs a client of the cluster.
func (r *run) client(name string, a []string, f func(context.Context, kubernetes.Interface) (string, error)) {
	ctx, cancel := context.WithTimeout(r.ctx, lineEnds)
	defer cancel()
	r.output, r.code = "", 0
	k, err := newClient(r.o.Kubeconfig)
	if err == nil {
		r.output, err = f(ctx, k)
	}
	if err != nil {
		r.output, r.code = r.output+err.Error()+"\n", 1
	}
	if r.o.Verbose {
		fmt.Fprintf(r.o.Out, "$ %s %s\n%s", name, strings.Join(a, " "), r.output)
	}
}

func newClient(kubeconfig string) (kubernetes.Interface, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	config.QPS = -1 // no limit
	return kubernetes.NewForConfig(config)
}

// proxyLog returns what the sidecars of an app's pods have logged.
func proxyLog(ctx context.Context, k kubernetes.Interface, ns, app string) (string, error) {
	pods, err := k.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{LabelSelector: "app=" + app})
	if err != nil {
		return "", err
	}
	var out strings.Builder
	for _, pod := range pods.Items {
		log, err := k.CoreV1().Pods(ns).GetLogs(pod.Name, &corev1.PodLogOptions{Container: "istio-proxy"}).DoRaw(ctx)
		if err != nil {
			return "", fmt.Errorf("read the log of the sidecar of %s: %w", pod.Name, err)
		}
		out.Write(log)
	}
	return out.String(), nil
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
