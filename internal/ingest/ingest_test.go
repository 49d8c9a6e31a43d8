package ingest

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// A port's protocol is what appProtocol says, else what its name begins with, else what is usual on its number.
func TestProtocol(t *testing.T) {
	for _, c := range []struct {
		appProtocol, name string
		port              uint32
		want              mesh.Protocol
	}{
		{"", "http", 80, mesh.HTTP},
		{"", "http-web", 80, mesh.HTTP},
		{"", "HTTP2-web", 80, mesh.HTTP2},
		{"", "grpc", 80, mesh.HTTP2},
		{"", "grpc-web", 80, mesh.HTTP2},
		{"", "httpx", 80, mesh.Auto},
		{"", "https", 443, mesh.TCP},
		{"", "tls-x", 443, mesh.TCP},
		{"", "tcp", 80, mesh.TCP},
		{"", "mysql", 80, mesh.TCP},
		{"", "", 80, mesh.Auto},
		{"", "web", 80, mesh.Auto},
		{"", "web", 3306, mesh.TCP},
		{"", "http-smtp", 25, mesh.HTTP},
		{"tcp", "http", 80, mesh.TCP},
		{"http", "tcp", 80, mesh.HTTP},
		{"kubernetes.io/h2c", "x", 80, mesh.HTTP2},
		{"kubernetes.io/ws", "x", 80, mesh.HTTP},
		{"kubernetes.io/wss", "http", 80, mesh.TCP},
		{"example.com/own", "http", 80, mesh.Auto},
	} {
		if got := protocol(c.appProtocol, c.name, c.port); got != c.want {
			t.Errorf("appProtocol %q, name %q, port %d: protocol %d, want %d", c.appProtocol, c.name, c.port, got, c.want)
		}
	}
}

// A pod's workload is what made it, its canonical names what its labels say.
func TestWorkloadNames(t *testing.T) {
	for _, c := range []struct {
		name, generated string
		labels          map[string]string
		want            [3]string // owner, canonical name, revision
	}{
		{"web-5f7-x", "web-5f7-", map[string]string{"pod-template-hash": "5f7"}, [3]string{"web", "web", ""}},
		{"db-0", "db-", nil, [3]string{"db", "db", ""}},
		{"alone", "", map[string]string{"app": "one", "version": "v2"}, [3]string{"alone", "one", "v2"}},
		{"alone", "", map[string]string{
			"app": "no", "app.kubernetes.io/name": "no", canonicalName: "two",
			"version": "no", "app.kubernetes.io/version": "v3",
		}, [3]string{"alone", "two", "v3"}},
	} {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: c.generated, Labels: c.labels}, Status: corev1.PodStatus{PodIP: "10.0.0.1"}}
		w, ok := Workload(Config("a", "istio-system", nil), mesh.ObjectKey{Namespace: "shop", Name: c.name}, p, mesh.Locality{})
		if got := [3]string{w.Owner, w.App, w.Revision}; !ok || got != c.want {
			t.Errorf("pod %s of %s %v: %v, want %v", c.name, c.generated, c.labels, got, c.want)
		}
	}
}

// exportTo names namespaces once, in order, and knows everybody, its own and nobody.
func TestVisibility(t *testing.T) {
	for _, c := range []struct {
		exportTo, byDefault []string
		want                mesh.Visibility
	}{
		{nil, nil, mesh.Visibility{All: true}},
		{nil, []string{"."}, mesh.Visibility{Namespaces: []string{"own"}}},
		{[]string{"b", " .", "b"}, []string{"~"}, mesh.Visibility{Namespaces: []string{"b", "own"}}},
		{[]string{"~"}, nil, mesh.Visibility{}},
		{[]string{"a", "*"}, nil, mesh.Visibility{All: true}},
	} {
		got := visibility(c.exportTo, c.byDefault, "own")
		if got.All != c.want.All || !slices.Equal(got.Namespaces, c.want.Namespaces) {
			t.Errorf("exportTo %q, default %q: %v, want %v", c.exportTo, c.byDefault, got, c.want)
		}
	}
}

// What a proxy says of its ports may be anything; only named TCP ports come of it.
func FuzzPodPorts(f *testing.F) {
	f.Add(`[{"name":"http","containerPort":8080,"protocol":"TCP"},{"name":"dns","containerPort":53,"protocol":"UDP"}]`)
	f.Add(`{`)
	f.Fuzz(func(t *testing.T, s string) {
		for name := range PodPorts(s) {
			if name == "" {
				t.Errorf("a port without a name in %q", s)
			}
		}
	})
}

// TestPortOfSlice: the API server lets a slice say any number as a port. One that is none is found, and costs no other port.
func TestPortOfSlice(t *testing.T) {
	slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: "x", Namespace: "shop", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}}}
	slice.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}}}
	for i, port := range []int32{65535, 0, -1, 65536, 1} {
		name := string(rune('a' + i))
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &name, Port: &port})
	}
	endpoints, found := Endpoints(mesh.Config{}, mesh.ObjectKey{Namespace: "shop", Name: "x"}, slice)
	var ports []uint32
	for _, e := range endpoints {
		ports = append(ports, e.Key.Target)
	}
	if !slices.Equal(ports, []uint32{65535, 1}) || len(found) != 3 || found[0].About.String() != "EndpointSlice shop/x" {
		t.Errorf("endpoints at ports %v, found %v", ports, found)
	}
}
