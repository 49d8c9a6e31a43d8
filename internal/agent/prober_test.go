package agent

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

func listen(t *testing.T) (net.Listener, int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l, l.Addr().(*net.TCPAddr).Port
}

// strange is a certificate that no client would verify: self-signed, without a name, expired, and for clients only.
func strange(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "app"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// Every row is a probe as the injector writes it, asked as the kubelet asks.
func TestProbes(t *testing.T) {
	app := http.NewServeMux()
	app.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) {
		if host, _, _ := net.SplitHostPort(r.RemoteAddr); r.TLS == nil && host != "127.0.0.6" {
			t.Errorf("the application sees the probe come from %s", r.RemoteAddr)
		}
		if r.UserAgent() != "kube-probe/1.35" {
			t.Errorf("user agent is %q", r.UserAgent())
		}
	})
	app.HandleFunc("/host", func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "shop.example" || r.Header.Get("X-A") != "b" || r.URL.RawQuery != "q=1" {
			w.WriteHeader(http.StatusBadRequest)
		}
	})
	app.HandleFunc("/sick", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	app.HandleFunc("/slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	app.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/ok", http.StatusFound) })
	app.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://example.invalid/", http.StatusFound)
	})
	stopping, stopped := make(chan bool), make(chan bool)
	app.HandleFunc("/stop", func(http.ResponseWriter, *http.Request) { stopping <- true; <-stopped })
	plain, secure, odd := httptest.NewServer(app), httptest.NewTLSServer(app), httptest.NewUnstartedServer(app)
	var sni atomic.Value
	odd.TLS = &tls.Config{Certificates: []tls.Certificate{strange(t)}, GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		sni.Store(hello.ServerName)
		return nil, nil
	}}
	odd.StartTLS()
	defer plain.Close()
	defer secure.Close()
	defer odd.Close()
	port := plain.Listener.Addr().(*net.TCPAddr).Port
	tlsPort := secure.Listener.Addr().(*net.TCPAddr).Port
	oddPort := odd.Listener.Addr().(*net.TCPAddr).Port
	closed, closedPort := listen(t)
	_ = closed.Close()

	l, grpcPort := listen(t)
	checks := health.NewServer()
	checks.SetServingStatus("sick", healthv1.HealthCheckResponse_NOT_SERVING)
	server := grpc.NewServer()
	healthv1.RegisterHealthServer(server, checks)
	go func() { _ = server.Serve(l) }()
	defer server.Stop()

	rows := []struct {
		name, prober string
		code         int
	}{
		{"http", fmt.Sprintf(`{"httpGet":{"path":"/ok","port":%d}}`, port), 200},
		{"path without slash", fmt.Sprintf(`{"httpGet":{"path":"ok","port":%d,"scheme":"HTTP"}}`, port), 200},
		{"headers and query", fmt.Sprintf(`{"httpGet":{"path":"/host?q=1","port":%d,"httpHeaders":[{"name":"Host","value":"shop.example"},{"name":"X-A","value":"b"}]}}`, port), 200},
		{"status is the application's", fmt.Sprintf(`{"httpGet":{"path":"/sick","port":%d}}`, port), 418},
		{"no such path", fmt.Sprintf(`{"httpGet":{"path":"/none","port":%d}}`, port), 404},
		{"redirect within", fmt.Sprintf(`{"httpGet":{"path":"/moved","port":%d}}`, port), 200},
		{"redirect elsewhere", fmt.Sprintf(`{"httpGet":{"path":"/away","port":%d}}`, port), 302},
		{"timeout", fmt.Sprintf(`{"httpGet":{"path":"/slow","port":%d},"timeoutSeconds":1}`, port), 503},
		{"https, certificate of anyone", fmt.Sprintf(`{"httpGet":{"path":"/ok","port":%d,"scheme":"HTTPS"}}`, tlsPort), 200},
		{"https, certificate of no one", fmt.Sprintf(`{"httpGet":{"path":"/ok","port":%d,"scheme":"HTTPS"}}`, oddPort), 200},
		{"https to a plain port", fmt.Sprintf(`{"httpGet":{"path":"/ok","port":%d,"scheme":"HTTPS"}}`, port), 503},
		{"http, nobody there", fmt.Sprintf(`{"httpGet":{"path":"/ok","port":%d}}`, closedPort), 503},
		{"tcp", fmt.Sprintf(`{"tcpSocket":{"port":%d}}`, port), 200},
		{"tcp, nobody there", fmt.Sprintf(`{"tcpSocket":{"port":%d}}`, closedPort), 503},
		{"grpc", fmt.Sprintf(`{"grpc":{"port":%d}}`, grpcPort), 200},
		{"grpc, not serving", fmt.Sprintf(`{"grpc":{"port":%d,"service":"sick"}}`, grpcPort), 503},
		{"grpc, no such service", fmt.Sprintf(`{"grpc":{"port":%d,"service":"none"}}`, grpcPort), 503},
		{"grpc, nobody there", fmt.Sprintf(`{"grpc":{"port":%d}}`, closedPort), 503},
		{"nothing", `{}`, 501},
	}
	s := &statusServer{pod: netip.MustParseAddr("127.0.0.1"), probers: map[string]Prober{}}
	for i, row := range rows {
		var p Prober
		if err := json.Unmarshal([]byte(row.prober), &p); err != nil {
			t.Fatal(err)
		}
		s.probers[fmt.Sprintf("/app-health/c%d/livez", i)] = p
	}
	var stop Prober
	if err := json.Unmarshal([]byte(fmt.Sprintf(`{"httpGet":{"path":"/stop","port":%d}}`, port)), &stop); err != nil {
		t.Fatal(err)
	}
	s.probers["/app-lifecycle/c.KE7/prestopz"] = stop
	ask := func(path string) *httptest.ResponseRecorder {
		r := httptest.NewRequest("GET", path, nil)
		r.Header.Set("User-Agent", "kube-probe/1.35")
		w := httptest.NewRecorder()
		s.handler().ServeHTTP(w, r)
		return w
	}
	hook := make(chan *httptest.ResponseRecorder)
	go func() { hook <- ask("/app-lifecycle/c.KE7/prestopz") }()
	<-stopping
	for i, row := range rows {
		if w := ask(fmt.Sprintf("/app-health/c%d/livez", i)); w.Code != row.code {
			t.Errorf("%s: %d %s, want %d", row.name, w.Code, strings.TrimSpace(w.Body.String()), row.code)
		}
	}
	close(stopped)
	if w := <-hook; w.Code != 200 { // it has outlasted the row named timeout
		t.Errorf("hook: %d %s", w.Code, strings.TrimSpace(w.Body.String()))
	}
	if name := sni.Load(); name != "" {
		t.Errorf("the probe names server %q", name)
	}
	if w := ask("/app-health/other/livez"); w.Code != 404 {
		t.Errorf("probe of no container: %d", w.Code)
	}
}

// Hooks act, and the port is open to everybody: who does not know the path in the pod's spec is refused, from wherever he calls.
func TestHooksAreTheKubeletsAlone(t *testing.T) {
	called := 0
	app := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { called++ }))
	defer app.Close()
	var p Prober
	if err := json.Unmarshal([]byte(fmt.Sprintf(`{"httpGet":{"path":"/stop","port":%d}}`, app.Listener.Addr().(*net.TCPAddr).Port)), &p); err != nil {
		t.Fatal(err)
	}
	s := &statusServer{pod: netip.MustParseAddr("127.0.0.1"), probers: map[string]Prober{
		"/app-lifecycle/c.KE7/prestopz": p, "/app-lifecycle/d.3XA/poststartz": p, "/app-health/c/livez": p,
	}}
	for _, from := range []string{"127.0.0.1:1", "10.0.0.2:1"} {
		for path, code := range map[string]int{
			"/app-lifecycle/c.KE7/prestopz":   http.StatusOK,
			"/app-lifecycle/d.3XA/poststartz": http.StatusOK,
			"/app-lifecycle/c/prestopz":       http.StatusForbidden,
			"/app-lifecycle/c./prestopz":      http.StatusForbidden,
			"/app-lifecycle/c.KE8/prestopz":   http.StatusForbidden,
			"/app-lifecycle/c.ke7/prestopz":   http.StatusForbidden,
			"/app-lifecycle/c.KE7/poststartz": http.StatusForbidden,
			"/app-lifecycle/d.KE7/poststartz": http.StatusForbidden,
			"/app-lifecycle/":                 http.StatusForbidden,
			"/app-health/c/livez":             http.StatusOK,
			"/app-health/c.KE7/prestopz":      http.StatusNotFound,
		} {
			called = 0
			r := httptest.NewRequest(http.MethodGet, path, nil)
			r.RemoteAddr = from
			w := httptest.NewRecorder()
			s.handler().ServeHTTP(w, r)
			if w.Code != code || (called == 1) != (code == http.StatusOK) || strings.Contains(w.Body.String(), "KE7") {
				t.Errorf("%s from %s: %d %s, application called %d times", path, from, w.Code, w.Body, called)
			}
		}
	}
}
