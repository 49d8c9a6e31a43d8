package kube

import (
	"reflect"
	"testing"

	"istio.io/api/annotation"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/ingest"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

const fullMeta = `
metadata:
  name: cart
  namespace: shop
  uid: u1
  generateName: cart-5d4f-
  generation: 3
  creationTimestamp: "2026-01-02T03:04:05Z"
  labels:
    app: cart
    version: v2
    pod-template-hash: 5d4f
    kubernetes.io/service-name: cart
    security.istio.io/tlsMode: istio
    topology.kubernetes.io/region: r1
    topology.kubernetes.io/zone: z1
    topology.istio.io/subzone: s1
    topology.istio.io/network: n1
    istio.io/rev: one
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: cart-5d4f, uid: u2, controller: true}]
  finalizers: [a/b]
  managedFields: [{manager: kubectl, operation: Update}]
`

// full are objects of every kind with all that clusters put into them.
const (
	fullService = fullMeta + `
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, "fd00::1"]
  externalIPs: [192.0.2.1]
  selector: {app: cart}
  sessionAffinity: ClientIP
  publishNotReadyAddresses: true
  trafficDistribution: PreferClose
  internalTrafficPolicy: Local
  ports:
  - {name: http, port: 80, targetPort: web, appProtocol: http, nodePort: 30080}
  - {name: tcp-db, port: 81, targetPort: 8081, protocol: TCP}
status: {loadBalancer: {ingress: [{ip: 192.0.2.2}]}, conditions: [{type: x, status: "True"}]}
`
	fullAlias = fullMeta + `
spec: {type: ExternalName, externalName: other.shop.svc.cluster.local, ports: [{name: http, port: 80}]}
`
	fullSlice = fullMeta + `
addressType: IPv4
ports: [{name: http, port: 8080, appProtocol: http}, {name: tcp-db, port: 8081}]
endpoints:
- addresses: [10.0.0.1]
  conditions: {ready: true, serving: true, terminating: false}
  hostname: cart-0
  nodeName: k1
  zone: z1
  targetRef: {kind: Pod, name: cart-1, namespace: shop, uid: u1}
  hints: {forZones: [{name: z1}]}
  deprecatedTopology: {a: b}
- addresses: [10.0.0.2]
  conditions: {ready: false, serving: true, terminating: true}
`
	fullPod = fullMeta + `
spec:
  nodeName: k1
  serviceAccountName: cart
  hostname: cart-0
  subdomain: carts
  initContainers:
  - {name: istio-proxy, image: p, restartPolicy: Always, ports: [{name: metrics, containerPort: 15090}]}
  - {name: none, image: p, ports: [{name: web, containerPort: 1}, {name: once, containerPort: 2}]}
  containers:
  - {name: cart, image: c, env: [{name: A, value: b}], ports: [{name: web, containerPort: 8080}, {containerPort: 8081, protocol: UDP}]}
  volumes: [{name: v, emptyDir: {}}]
status:
  phase: Running
  podIP: 10.0.0.1
  podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}]
  hostIP: 192.168.0.1
  conditions: [{type: PodScheduled, status: "True"}, {type: Ready, status: "True", lastTransitionTime: "2026-01-02T03:04:05Z"}]
  containerStatuses: [{name: cart, ready: true, restartCount: 3, image: c, imageID: d}]
`
	fullHostPod = fullMeta + `
spec: {nodeName: k1, hostNetwork: true, containers: [{name: cart, image: c, ports: [{containerPort: 8080}]}]}
status: {phase: Succeeded, podIP: 10.0.0.1}
`
	fullNode = fullMeta + `
spec: {podCIDR: 10.0.0.0/24, providerID: x, taints: [{key: a, effect: NoSchedule}]}
status: {addresses: [{type: InternalIP, address: 192.168.0.1}], images: [{names: [a]}]}
`
	fullPolicy = fullMeta + `
spec: {selector: {matchLabels: {app: cart}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: DISABLE}}}
status: {conditions: [{type: x, status: "True"}], observedGeneration: 3}
`
	fullRule = fullMeta + `
spec:
  host: cart
  exportTo: ["."]
  trafficPolicy: {tls: {mode: ISTIO_MUTUAL}, connectionPool: {tcp: {maxConnections: 3}}, portLevelSettings: [{port: {number: 80}, tls: {mode: DISABLE}}]}
  subsets: [{name: v2, labels: {version: v2}, trafficPolicy: {tls: {mode: SIMPLE, sni: x}}}]
status: {conditions: [{type: x, status: "True"}]}
`
	fullMembership = fullMeta + `
spec:
  namespace: shop
  uid: u3
  phase: Member
  labels: {topology.istio.io/network: n1}
  annotations: {networking.istio.io/traffic-distribution: PreferClose}
  kinds: [destinationrules.networking.istio.io]
`
)

// What a trimmed object says is what the whole one says.
func TestTrimKeepsWhatIsRead(t *testing.T) {
	key := mesh.ObjectKey{Cluster: "c1", Namespace: "shop", Name: "cart"}
	config := ingest.Config("one", "istio-system", &meshv1alpha1.MeshConfig{})
	kept(t, fullService, trimService, func(o *corev1.Service) any { return ingest.Service(config, key, o) })
	kept(t, fullAlias, trimService, func(o *corev1.Service) any { return ingest.Service(config, key, o) })
	kept(t, fullSlice, trimSlice, func(o *discoveryv1.EndpointSlice) any {
		endpoints, found := ingest.Endpoints(config, key, o)
		return []any{endpoints, found}
	})
	for _, text := range []string{fullPod, fullHostPod} {
		kept(t, text, trimPod, func(o *corev1.Pod) any {
			w, ok := ingest.Workload(config, key, o, mesh.Locality{Region: "r1"})
			return []any{w, ok}
		})
	}
	kept(t, fullNode, trimNode, func(o *corev1.Node) any { return ingest.Locality(o) })
	kept(t, fullPolicy, trimPeerAuthentication, func(o *securityv1.PeerAuthentication) any {
		p, ok, found := ingest.PeerPolicy(config, key, o, nil)
		return []any{p, ok, found, o.Labels["istio.io/rev"]}
	})
	kept(t, fullRule, trimDestinationRule, func(o *networkingv1.DestinationRule) any {
		r, ok, found := ingest.Rule(config, key, o)
		return []any{r, ok, found, o.Labels["istio.io/rev"]}
	})
	kept(t, fullMembership, trimMembership, func(o *heddlev1alpha1.Membership) any { return ingest.Membership(o) })
}

// kept reads text as an object with every annotation that Istio knows, and compares what record says of it whole and trimmed.
func kept[T any, P Object[T]](t *testing.T, text string, trim func(P), record func(P) any) {
	t.Helper()
	var whole P = new(T)
	if err := yaml.UnmarshalStrict([]byte(text), whole); err != nil {
		t.Fatal(err)
	}
	all := map[string]string{"kubectl.kubernetes.io/last-applied-configuration": text}
	for _, a := range annotation.AllResourceAnnotations() {
		all[a.Name] = "a,b"
	}
	whole.SetAnnotations(all)
	trimmed := whole.DeepCopyObject().(P)
	trim(trimmed)
	if got, want := record(trimmed), record(whole); !reflect.DeepEqual(got, want) {
		t.Errorf("%T: trimmed it says\n%+v\nwhole it says\n%+v", whole, got, want)
	}
	if got, whole := size(t, trimmed), size(t, whole); got > whole/2 {
		t.Errorf("%T: %d of %d bytes are left", trimmed, got, whole)
	}
	if n := len(trimmed.GetManagedFields()) + len(trimmed.GetOwnerReferences()) + len(trimmed.GetFinalizers()); n > 0 {
		t.Errorf("%T: keeps metadata that nobody reads", trimmed)
	}
	if trimmed.GetResourceVersion() != whole.GetResourceVersion() || trimmed.GetGeneration() != whole.GetGeneration() || trimmed.GetUID() != whole.GetUID() {
		t.Errorf("%T: lost what a report names", trimmed)
	}
}

func size(t *testing.T, o metav1.Object) int {
	t.Helper()
	b, err := yaml.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return len(b)
}
