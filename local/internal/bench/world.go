package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

const (
	labelMember = "istio-discovery" // both planes select the namespaces by it
	memberOf    = "bench"
	labelApp    = "app"
	account     = "client"

	writers = 16 // requests to the API server at a time

	tokenLife = 4 * time.Hour // longer than a run

	// kube-proxy leaves Services with this label to others: its rules on the node would cost what is measured.
	labelProxy = "service.kubernetes.io/service-proxy-name"
)

// audiences are those that either plane asks a token for.
func audiences(heddle Plane) []string {
	return []string{"istio-ca", "heddle.dev/" + heddle.Namespace + "/" + heddle.Revision}
}

func namespaceOf(s Sizes, i int) string { return fmt.Sprintf("bench-%d", i%s.Namespaces) }

func serviceName(i int) string { return fmt.Sprintf("service-%d", i) }

// makeWorld makes namespaces, services with an EndpointSlice of two endpoints each, and pods that no scheduler takes, with a
// token bound to each. It wants a cluster that has none of them.
func makeWorld(ctx context.Context, k kubernetes.Interface, s Sizes, aud []string) ([]identity, error) {
	for i := range s.Namespaces {
		ns := namespaceOf(s, i)
		if _, err := k.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{
			ObjectMeta: metav1.ObjectMeta{Name: ns, Labels: map[string]string{labelMember: memberOf}},
		}, metav1.CreateOptions{}); err != nil {
			return nil, fmt.Errorf("%w: this wants a cluster of its own", err)
		}
		if _, err := k.CoreV1().ServiceAccounts(ns).Create(ctx, &corev1.ServiceAccount{
			ObjectMeta: metav1.ObjectMeta{Name: account},
		}, metav1.CreateOptions{}); err != nil {
			return nil, err
		}
	}
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(writers)
	for i := range s.Services {
		work.Go(func() error { return makeService(ctx, k, namespaceOf(s, i), i) })
	}
	ids := make([]identity, s.Clients)
	for i := range s.Clients {
		work.Go(func() (err error) {
			ids[i], err = makeClient(ctx, k, namespaceOf(s, i), i, aud)
			return err
		})
	}
	return ids, work.Wait()
}

func makeService(ctx context.Context, k kubernetes.Interface, ns string, i int) error {
	meta := metav1.ObjectMeta{Name: serviceName(i), Labels: map[string]string{labelProxy: "none"}}
	if _, err := k.CoreV1().Services(ns).Create(ctx, &corev1.Service{
		ObjectMeta: meta, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	}, metav1.CreateOptions{}); err != nil {
		return err
	}
	meta.Labels = map[string]string{labelProxy: "none", discoveryv1.LabelServiceName: meta.Name}
	var ends []discoveryv1.Endpoint
	for n := range 2 {
		e := 2*i + n
		ends = append(ends, discoveryv1.Endpoint{
			Addresses:  []string{fmt.Sprintf("198.19.%d.%d", e/250, 1+e%250)},
			Conditions: discoveryv1.EndpointConditions{Ready: new(true)},
		})
	}
	_, err := k.DiscoveryV1().EndpointSlices(ns).Create(ctx, &discoveryv1.EndpointSlice{
		ObjectMeta: meta, AddressType: discoveryv1.AddressTypeIPv4, Endpoints: ends,
		Ports: []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(80))}},
	}, metav1.CreateOptions{})
	return err
}

func makeClient(ctx context.Context, k kubernetes.Interface, ns string, i int, aud []string) (identity, error) {
	id := identity{namespace: ns, account: account, pod: fmt.Sprintf("client-%d", i), address: fmt.Sprintf("198.18.%d.%d", i/250, 1+i%250)}
	pod, err := k.CoreV1().Pods(ns).Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: id.pod, Labels: map[string]string{labelApp: id.pod}},
		Spec: corev1.PodSpec{
			SchedulerName: "none", ServiceAccountName: account, AutomountServiceAccountToken: new(false),
			Containers: []corev1.Container{{Name: "app", Image: "registry.k8s.io/pause:3.10"}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return id, err
	}
	pod.Status.Phase = corev1.PodRunning
	pod.Status.PodIP, pod.Status.PodIPs = id.address, []corev1.PodIP{{IP: id.address}}
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	if pod, err = k.CoreV1().Pods(ns).UpdateStatus(ctx, pod, metav1.UpdateOptions{}); err != nil {
		return id, err
	}
	token, err := k.CoreV1().ServiceAccounts(ns).CreateToken(ctx, account, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{
			Audiences: aud, ExpirationSeconds: new(int64(tokenLife.Seconds())),
			BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return id, fmt.Errorf("token of pod %s/%s: %w", ns, id.pod, err)
	}
	id.token = token.Status.Token
	return id, nil
}

// flip replaces the first address of a service.
func flip(ctx context.Context, k kubernetes.Interface, s Sizes, service int, address string) error {
	patch, err := json.Marshal([]map[string]string{{"op": "replace", "path": "/endpoints/0/addresses/0", "value": address}})
	if err != nil {
		return err
	}
	_, err = k.DiscoveryV1().EndpointSlices(namespaceOf(s, service)).Patch(ctx, serviceName(service), types.JSONPatchType, patch, metav1.PatchOptions{})
	return err
}
