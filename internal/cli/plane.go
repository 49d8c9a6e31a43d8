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

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

const (
	xdsPort        = 15012
	monitoringPort = 15014
	revisionLabel  = "istio.io/rev"
)

// plane is one running control plane pod.
type plane struct {
	pod, namespace, revision string
	ready                    bool
	component                string // label istio, which istioctl prints
}

// host is the name that the plane's certificate carries.
func (p plane) host() string {
	if p.revision == "default" {
		return "istiod." + p.namespace + ".svc"
	}
	return "istiod-" + p.revision + "." + p.namespace + ".svc"
}

// planes finds the running control planes, of one namespace or of all, of one revision or of all; sorted.
func planes(ctx context.Context, c client.Client, namespace, revision string) ([]plane, error) {
	selector := client.MatchingLabels{"app": "istiod"}
	if revision != "" {
		selector[revisionLabel] = revision
	}
	pods := &corev1.PodList{}
	if err := c.List(ctx, pods, selector, client.InNamespace(namespace)); err != nil {
		return nil, fmt.Errorf("list control planes: %w", err)
	}
	var out []plane
	for _, p := range pods.Items {
		if p.Status.Phase != corev1.PodRunning {
			continue
		}
		ready := slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		})
		out = append(out, plane{pod: p.Name, namespace: p.Namespace, revision: p.Labels[revisionLabel], ready: ready, component: p.Labels["istio"]})
	}
	if len(out) == 0 {
		where := "the cluster"
		if namespace != "" {
			where = "namespace " + namespace
		}
		return nil, fmt.Errorf("no control plane runs in %s (pods with app=istiod%s)", where, map[bool]string{true: "," + revisionLabel + "=" + revision}[revision != ""])
	}
	slices.SortFunc(out, func(a, b plane) int { return strings.Compare(a.namespace+"/"+a.pod, b.namespace+"/"+b.pod) })
	return out, nil
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

// get fetches a page of the plane's monitoring port.
func (c cluster) get(ctx context.Context, p plane, path string) ([]byte, error) {
	var body []byte
	err := c.forward(ctx, p, monitoringPort, func(address string) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if body, err = io.ReadAll(resp.Body); err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(body)))
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ask %s/%s for %s: %w", p.namespace, p.pod, path, err)
	}
	return body, nil
}

// ask sends one request of a debug type and returns the answer. The caller is the ServiceAccount default of the plane's
// namespace; the plane is known by the root certificate that it publishes there.
func (c cluster) ask(ctx context.Context, p plane, typeURL string, names ...string) (*discoveryv3.DiscoveryResponse, error) {
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
	if err != nil {
		return nil, fmt.Errorf("ask %s/%s for %s: %w", p.namespace, p.pod, typeURL, err)
	}
	return answer, nil
}

// discover opens a stream, sends one request as istioctl does, and takes the first answer.
func discover(ctx context.Context, address string, config *tls.Config, token, namespace, typeURL string, names []string) (*discoveryv3.DiscoveryResponse, error) {
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
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
