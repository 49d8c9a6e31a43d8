package cli

import (
	"cmp"
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
	admissionv1 "k8s.io/api/admissionregistration/v1"
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
	"github.com/heddle-mesh/heddle/internal/operator"
)

const (
	xdsPort        = 15012
	monitoringPort = 15014
	revisionLabel  = "istio.io/rev"

	answerTime     = 10 * time.Second // one control plane's; a silent one takes nothing from the others
	asked          = 4                // control planes at a time
	largestRefusal = 1 << 10          // bytes of one that are told
	largestAnswer  = 64 << 20         // bytes; a proxy's status takes 1 kB, a cause of `why` 200 bytes
)

// plane is one running control plane pod, or, of no mesh, a replica of the operator.
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
	pods, err := podsOf(ctx, c, d, "istiod")
	if err != nil {
		return nil, err
	}
	var out []plane
	for _, p := range pods {
		out = append(out, plane{pod: p.Name, namespace: p.Namespace, revision: rev.Name, mesh: istio.Name, component: p.Labels["istio"]})
	}
	return out, nil
}

// podsOf are the running pods of a Deployment that was looked at, of those with a label app.
func podsOf(ctx context.Context, c client.Client, d *appsv1.Deployment, app string) ([]corev1.Pod, error) {
	of := []client.ListOption{client.InNamespace(d.Namespace), client.MatchingLabels{"app": app}}
	var sets appsv1.ReplicaSetList
	var pods corev1.PodList
	if err := errors.Join(c.List(ctx, &sets, of...), c.List(ctx, &pods, of...)); err != nil {
		return nil, err
	}
	sets.Items = slices.DeleteFunc(sets.Items, func(s appsv1.ReplicaSet) bool { return !metav1.IsControlledBy(&s, d) })
	return slices.DeleteFunc(pods.Items, func(p corev1.Pod) bool {
		owned := slices.ContainsFunc(sets.Items, func(s appsv1.ReplicaSet) bool { return metav1.IsControlledBy(&p, &s) })
		return !owned || p.Status.Phase != corev1.PodRunning || p.DeletionTimestamp != nil
	}), nil
}

// operators finds the running replicas of the operator.
func operators(ctx context.Context, c client.Client) ([]plane, error) {
	d := &appsv1.Deployment{}
	err := c.Get(ctx, client.ObjectKey{Namespace: operator.Namespace, Name: operatorName}, d)
	var pods []corev1.Pod
	if err == nil {
		pods, err = podsOf(ctx, c, d, operatorName)
	}
	if err != nil {
		return nil, fmt.Errorf("find the operator's pods: %w", err)
	}
	var out []plane
	for _, p := range pods {
		out = append(out, plane{pod: p.Name, namespace: p.Namespace})
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
			who := fmt.Sprintf("control plane %s of mesh %s", r.plane, r.mesh)
			if r.mesh == "" {
				who = fmt.Sprintf("operator %s", r.plane)
			}
			out = append(out, fmt.Errorf("%s did not answer: %s", who, printable(r.err.Error())))
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
	token, err := c.token(ctx, p.namespace)
	if err != nil {
		return nil, err
	}
	var answer *discoveryv3.DiscoveryResponse
	err = c.forward(ctx, p, xdsPort, func(address string) error {
		var err error
		answer, err = discover(ctx, address, &tls.Config{RootCAs: pool, ServerName: p.host(), MinVersion: tls.VersionTLS12}, token, p.namespace, typeURL, names)
		return err
	})
	return answer, err
}

// token is one of ServiceAccount default of a namespace, as debug pages ask for.
func (c cluster) token(ctx context.Context, namespace string) (string, error) {
	hour := int64(3600)
	token := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{mesh.SharedAudience}, ExpirationSeconds: &hour}}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "default"}}
	if err := c.SubResource("token").Create(ctx, account, token); err != nil {
		return "", fmt.Errorf("get a token of ServiceAccount %s/default (needs create on serviceaccounts/token): %w", namespace, err)
	}
	return token.Status.Token, nil
}

// callPage makes a request of a page below /debug/ and returns its body. A control plane's pages are within its pod only, and are
// reached through the API server without TLS of their own; the operator is known by what the API server knows it by.
func (c cluster) callPage(ctx context.Context, p plane, method, page string) ([]byte, error) {
	port, base, transport := monitoringPort, "http://%s/debug/", &http.Transport{DisableKeepAlives: true} // and no proxy
	if p.mesh == "" {
		hooks := &admissionv1.ValidatingWebhookConfiguration{}
		if err := c.Get(ctx, client.ObjectKey{Name: operatorName}, hooks); err != nil {
			return nil, fmt.Errorf("read the operator's certificate: %w", err)
		}
		pool := x509.NewCertPool()
		for _, w := range hooks.Webhooks {
			pool.AppendCertsFromPEM(w.ClientConfig.CABundle)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: pool, ServerName: operatorName + "." + p.namespace + ".svc", MinVersion: tls.VersionTLS12}
		port, base = operator.PagesPort, "https://%s"+operator.PagesPath
	}
	token, err := c.token(ctx, p.namespace)
	if err != nil {
		return nil, err
	}
	var body []byte
	err = c.forward(ctx, p, port, func(address string) error {
		var err error
		body, err = request(ctx, transport, method, fmt.Sprintf(base, address)+page, token)
		return err
	})
	return body, err
}

// request returns the body of an answer; one that is not 200 is an error with its text.
func request(ctx context.Context, transport *http.Transport, method, url, token string) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer "+token)
	who := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	answer, err := who.Do(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, largestAnswer+1))
	switch {
	case err != nil:
		return nil, err
	case len(body) > largestAnswer:
		return nil, fmt.Errorf("its answer has more than %d bytes", largestAnswer)
	case answer.StatusCode != http.StatusOK:
		text := strings.TrimSpace(string(body[:min(len(body), largestRefusal)]))
		return nil, errors.New(printable(cmp.Or(text, answer.Status)))
	}
	return body, nil
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
