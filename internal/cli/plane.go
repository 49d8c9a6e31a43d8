package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"sigs.k8s.io/controller-runtime/pkg/client"

	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

const (
	xdsPort       = 15012
	revisionLabel = "istio.io/rev"

	answerTime    = 10 * time.Second // one control plane's; a silent one takes nothing from the others
	asked         = 4                // control planes at a time
	largestAnswer = 64 << 20         // bytes; a proxy's status takes 1 kB, a cause of `why` 200 bytes
)

// plane is one running control plane pod.
type plane struct {
	pod, namespace, revision, mesh string
	component                      string // label istio, which istioctl prints
}

func (p plane) String() string { return p.namespace + "/" + p.pod }

// service is the name of Deployment and Service of a revision.
func service(revision string) string {
	if revision == sailv1.DefaultName {
		return "istiod"
	}
	return "istiod-" + revision
}

// host is the name that the plane's certificate carries.
func (p plane) host() string { return service(p.revision) + "." + p.namespace + ".svc" }

// planes finds the running control planes, of one system namespace or of all, of one revision or of all; sorted. A pod is no
// control plane for its labels, which anybody may give to a pod: a revision says in which namespace its own runs, and owns
// the Deployment that owns it. A pod that was told to end is left out, as its proxies are on their way to others.
func planes(ctx context.Context, c client.Client, namespace, revision string) ([]plane, error) {
	revisions, err := revisionsIn(ctx, c, namespace)
	if err != nil {
		return nil, err
	}
	var out []plane
	for i := range revisions {
		rev := &revisions[i]
		if revision != "" && rev.Name != revision {
			continue
		}
		some, err := planesOf(ctx, c, rev)
		if err != nil {
			return nil, fmt.Errorf("find the control planes of revision %s: %w", rev.Name, err)
		}
		out = append(out, some...)
	}
	slices.SortFunc(out, func(a, b plane) int { return strings.Compare(a.String(), b.String()) })
	return out, nil
}

func planesOf(ctx context.Context, c client.Client, rev *sailv1.IstioRevision) ([]plane, error) {
	d := &appsv1.Deployment{}
	if err := c.Get(ctx, client.ObjectKey{Namespace: rev.Spec.Namespace, Name: service(rev.Name)}, d); err != nil {
		return nil, client.IgnoreNotFound(err)
	}
	istio := metav1.GetControllerOf(rev)
	if istio == nil || !metav1.IsControlledBy(d, rev) {
		return nil, nil
	}
	of := []client.ListOption{client.InNamespace(d.Namespace), client.MatchingLabels{"app": "istiod"}}
	var sets appsv1.ReplicaSetList
	var pods corev1.PodList
	if err := errors.Join(c.List(ctx, &sets, of...), c.List(ctx, &pods, of...)); err != nil {
		return nil, err
	}
	sets.Items = slices.DeleteFunc(sets.Items, func(s appsv1.ReplicaSet) bool { return !metav1.IsControlledBy(&s, d) })
	var out []plane
	for _, p := range pods.Items {
		owned := slices.ContainsFunc(sets.Items, func(s appsv1.ReplicaSet) bool { return metav1.IsControlledBy(&p, &s) })
		if owned && p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil {
			out = append(out, plane{pod: p.Name, namespace: p.Namespace, revision: rev.Name, mesh: istio.Name, component: p.Labels["istio"]})
		}
	}
	return out, nil
}

// noPlanes is what there is to say where planes found none.
func noPlanes(namespace, revision string) error {
	where := "the cluster"
	if namespace != "" {
		where = "namespace " + namespace
	}
	if revision != "" {
		where += " for revision " + revision
	}
	return fmt.Errorf("the operator runs no control plane in %s (another Istio's is for that one's istioctl); see kubectl get istios", where)
}

// revisionsIn are the revisions with a system namespace, or all, as far as they may be read.
func revisionsIn(ctx context.Context, c client.Client, namespace string) ([]sailv1.IstioRevision, error) {
	all, err := readableRevisions(ctx, c, namespace)
	return slices.DeleteFunc(all, func(r sailv1.IstioRevision) bool { return namespace != "" && r.Spec.Namespace != namespace }), err
}

// readableRevisions are all revisions. Who may not list them can have those of a namespace in which he may list Deployments:
// each names the revision that owns it.
func readableRevisions(ctx context.Context, c client.Client, namespace string) ([]sailv1.IstioRevision, error) {
	var list sailv1.IstioRevisionList
	err := c.List(ctx, &list)
	if apierrors.IsForbidden(err) && namespace != "" {
		return revisionsOwning(ctx, c, namespace)
	}
	if err != nil {
		return nil, listing(err)
	}
	return list.Items, nil
}

func revisionsOwning(ctx context.Context, c client.Client, namespace string) ([]sailv1.IstioRevision, error) {
	var deployments appsv1.DeploymentList
	if err := c.List(ctx, &deployments, client.InNamespace(namespace), client.MatchingLabels{"app": "istiod"}); err != nil {
		return nil, fmt.Errorf("list the control planes of namespace %s: %w", namespace, err)
	}
	var out []sailv1.IstioRevision
	for i := range deployments.Items {
		owner := metav1.GetControllerOf(&deployments.Items[i])
		if owner == nil || owner.Kind != "IstioRevision" {
			continue
		}
		rev := sailv1.IstioRevision{}
		if err := c.Get(ctx, client.ObjectKey{Name: owner.Name}, &rev); err != nil {
			return nil, fmt.Errorf("read IstioRevision %s: %w", owner.Name, err)
		}
		if rev.Spec.Namespace == namespace {
			out = append(out, rev)
		}
	}
	return out, nil
}

// reply is what one control plane said, or why that is not known.
type reply[T any] struct {
	plane
	said T
	err  error
}

// each asks the planes, some at a time and each within answerTime, and returns their replies in their order.
func each[T any](ctx context.Context, planes []plane, ask func(context.Context, plane) (T, error)) []reply[T] {
	out := make([]reply[T], len(planes))
	var group errgroup.Group
	group.SetLimit(asked)
	for i, p := range planes {
		group.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, answerTime)
			defer cancel()
			out[i].plane = p
			out[i].said, out[i].err = ask(ctx, p)
			return nil
		})
	}
	_ = group.Wait() // no function returns one
	return out
}

// silent are the replies that are none, as errors that name the control plane.
func silent[T any](replies []reply[T]) []error {
	var out []error
	for _, r := range replies {
		if r.err != nil {
			out = append(out, fmt.Errorf("control plane %s of mesh %s did not answer: %s", r.plane, r.mesh, printable(r.err.Error())))
		}
	}
	return out
}

// report names on w what did not answer, and returns ErrReported if anything.
func report(w io.Writer, unanswered []error) error {
	for _, err := range unanswered {
		fmt.Fprintln(w, "warning:", err)
	}
	if len(unanswered) > 0 {
		return ErrReported
	}
	return nil
}

// forward opens a way to a port of the pod through the API server and calls use with its local address.
func (c cluster) forward(ctx context.Context, p plane, port int, use func(address string) error) error {
	kube, err := kubernetes.NewForConfig(c.config)
	if err != nil {
		return err
	}
	url := kube.CoreV1().RESTClient().Post().Resource("pods").Namespace(p.namespace).Name(p.pod).SubResource("portforward").URL()
	transport, upgrader, err := spdy.RoundTripperFor(c.config)
	if err != nil {
		return err
	}
	plain := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, url)
	tunnel, err := portforward.NewSPDYOverWebsocketDialer(url, c.config)
	if err != nil {
		return err
	}
	dialer := portforward.NewFallbackDialer(tunnel, plain, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	stop, ready := make(chan struct{}), make(chan struct{})
	fw, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{"0:" + strconv.Itoa(port)}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- fw.ForwardPorts() }()
	defer func() { <-ended }()
	defer close(stop)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-ended:
		ended <- nil
		return fmt.Errorf("forward port %d of %s/%s: %w", port, p.namespace, p.pod, err)
	case <-ready:
	}
	ports, err := fw.GetPorts()
	if err != nil {
		return err
	}
	return use("127.0.0.1:" + strconv.Itoa(int(ports[0].Local)))
}

// askPlane sends one request of a debug type and returns the answer. The caller is the ServiceAccount default of the plane's
// namespace; the plane is known by the root certificate that it publishes there.
func (c cluster) askPlane(ctx context.Context, p plane, typeURL string, names ...string) (*discoveryv3.DiscoveryResponse, error) {
	root := &corev1.ConfigMap{}
	if err := c.Get(ctx, client.ObjectKey{Namespace: p.namespace, Name: "istio-ca-root-cert"}, root); err != nil {
		return nil, fmt.Errorf("read the root certificate of %s: %w", p.namespace, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(root.Data["root-cert.pem"])) {
		return nil, fmt.Errorf("ConfigMap %s/istio-ca-root-cert holds no certificate under root-cert.pem", p.namespace)
	}
	hour := int64(3600)
	token := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{mesh.SharedAudience}, ExpirationSeconds: &hour}}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: p.namespace, Name: "default"}}
	if err := c.SubResource("token").Create(ctx, account, token); err != nil {
		return nil, fmt.Errorf("get a token of ServiceAccount %s/default (needs create on serviceaccounts/token): %w", p.namespace, err)
	}
	var answer *discoveryv3.DiscoveryResponse
	err := c.forward(ctx, p, xdsPort, func(address string) error {
		var err error
		answer, err = discover(ctx, address, &tls.Config{RootCAs: pool, ServerName: p.host(), MinVersion: tls.VersionTLS12}, token.Status.Token, p.namespace, typeURL, names)
		return err
	})
	return answer, err
}

// discover opens a stream, sends one request as istioctl does, and takes the first answer.
func discover(ctx context.Context, address string, config *tls.Config, token, namespace, typeURL string, names []string) (*discoveryv3.DiscoveryResponse, error) {
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(largestAnswer)))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token))
	defer cancel()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
	if err != nil {
		return nil, err
	}
	fields, err := structpb.NewStruct(map[string]any{"GENERATOR": "event", "SERVICE_ACCOUNT": "default", "NAMESPACE": namespace})
	if err != nil {
		return nil, err
	}
	node := &corev3.Node{Id: "sidecar~127.0.0.1~heddle." + namespace + "~" + namespace + ".svc.cluster.local", Metadata: fields}
	if err := stream.Send(&discoveryv3.DiscoveryRequest{Node: node, TypeUrl: typeURL, ResourceNames: names}); err != nil && !errors.Is(err, io.EOF) {
		return nil, err // io.EOF: the stream has ended, and Recv says why
	}
	return stream.Recv()
}
