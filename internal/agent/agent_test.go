package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/heddle-mesh/heddle/internal/identity"
)

var update = flag.Bool("update", false, "rewrite golden files")

// pod is what the injector gives a pod.
func pod(change map[string]string) Environment {
	vars := map[string]string{
		"POD_NAME": "web-1", "POD_NAMESPACE": "shop", "SERVICE_ACCOUNT": "web", "INSTANCE_IP": "10.0.0.1", "ISTIO_CPU_LIMIT": "2",
		"CA_ADDR":      "istiod-mesh-1.istio-system-1.svc:15012",
		"PROXY_CONFIG": `{"discoveryAddress":"istiod-mesh-1.istio-system-1.svc:15012"}`, "ISTIO_META_CLUSTER_ID": "east",
		"ISTIO_META_POD_PORTS": `[{"containerPort":8080}]`, "ISTIO_META_WORKLOAD_NAME": "web", "ISTIO_METAJSON_X": `{"a":1}`,
	}
	for k, v := range change {
		vars[k] = v
	}
	return Environment{
		Vars: vars, Role: "sidecar", Domain: "shop.svc.cluster.local", CPUs: 4,
		Labels: "app=\"web\"\nnote=\"a \\\"b\\\"\"\n", Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("10.0.0.9")},
	}
}

func TestRead(t *testing.T) {
	for _, tc := range []struct {
		name string
		env  map[string]string
		get  func(Config) any
		want any
	}{
		{"node id", nil, func(c Config) any { return c.NodeID }, "sidecar~10.0.0.1~web-1.shop~shop.svc.cluster.local"},
		{"node cluster by label app", nil, func(c Config) any { return c.NodeCluster }, "web.shop"},
		{"cluster", nil, func(c Config) any { return c.ClusterID }, "east"},
		{"discovery", nil, func(c Config) any { return c.Discovery }, "istiod-mesh-1.istio-system-1.svc:15012"},
		{"CA elsewhere", map[string]string{"CA_ADDR": "csr.cert-manager.svc:443"}, func(c Config) any { return c.CA }, "csr.cert-manager.svc:443"},
		{"delta is the rule", nil, func(c Config) any { return c.Delta }, true},
		{"state of the world", map[string]string{"ISTIO_DELTA_XDS": "false"}, func(c Config) any { return c.Delta }, false},
		{"leaf life", map[string]string{"SECRET_TTL": "2m"}, func(c Config) any { return c.CertLife }, 2 * time.Minute},
		{"drain at the end", map[string]string{"PROXY_CONFIG": `{"terminationDrainDuration":"0.5s","unknown":1}`}, func(c Config) any { return c.EndDrain }, 500 * time.Millisecond},
		{"drain until idle", map[string]string{"EXIT_ON_ZERO_ACTIVE_CONNECTIONS": "true"}, func(c Config) any { return c.ExitIdle }, true},
		{"drain for a time", map[string]string{"EXIT_ON_ZERO_ACTIVE_CONNECTIONS": "false"}, func(c Config) any { return c.ExitIdle }, false},
		{"drain at least", map[string]string{"MINIMUM_DRAIN_DURATION": "7s"}, func(c Config) any { return c.MinDrain }, 7 * time.Second},
		{"drain by default", nil, func(c Config) any { return []time.Duration{c.Drain, c.EndDrain, c.MinDrain} }, []time.Duration{45 * time.Second, 5 * time.Second, 5 * time.Second}},
		{"workers by limit", map[string]string{"ISTIO_CPU_LIMIT": "1.5"}, func(c Config) any { return c.Concurrency }, 2},
		{"workers by limit above the node's", map[string]string{"ISTIO_CPU_LIMIT": "64"}, func(c Config) any { return c.Concurrency }, 4},
		{"workers as configured", map[string]string{"PROXY_CONFIG": `{"concurrency":3}`}, func(c Config) any { return c.Concurrency }, 3},
		{"a worker for each CPU", map[string]string{"PROXY_CONFIG": `{"concurrency":0}`}, func(c Config) any { return c.Concurrency }, 4},
		{"both families", map[string]string{"INSTANCE_IPS": "10.0.0.1,fd00::1"}, func(c Config) any { return c.Metadata["INSTANCE_IPS"] }, "10.0.0.1,fd00::1"},
		{"addresses of the interfaces", map[string]string{"INSTANCE_IP": ""}, func(c Config) any { return c.Metadata["INSTANCE_IPS"] }, "10.0.0.9"},
		{"metadata as JSON", nil, func(c Config) any { return c.Metadata["X"] }, json.RawMessage(`{"a":1}`)},
		{"labels", nil, func(c Config) any { return c.Metadata["LABELS"] }, map[string]string{"app": "web", "note": `a "b"`}},
		{"scrape", map[string]string{"ISTIO_PROMETHEUS_ANNOTATIONS": `{"scrape":"true","port":"9090"}`}, func(c Config) any { return c.Scrape.url() }, "http://127.0.0.1:9090/metrics"},
		{"scrape by default", map[string]string{"ISTIO_PROMETHEUS_ANNOTATIONS": `{"port":"9090","path":"/m"}`}, func(c Config) any { return c.Scrape.url() }, "http://127.0.0.1:9090/m"},
		{"scrape in another word", map[string]string{"ISTIO_PROMETHEUS_ANNOTATIONS": `{"scrape":"True","port":"9090"}`}, func(c Config) any { return c.Scrape.url() }, "http://127.0.0.1:9090/metrics"},
		{"scrape never itself", map[string]string{"ISTIO_PROMETHEUS_ANNOTATIONS": `{"port":"15020"}`}, func(c Config) any { return c.Scrape == nil }, true},
		{"scrape switched off", map[string]string{"ISTIO_PROMETHEUS_ANNOTATIONS": `{"scrape":"false","port":"9090"}`}, func(c Config) any { return c.Scrape == nil }, true},
		{"probers", map[string]string{"ISTIO_KUBE_APP_PROBERS": `{"/app-health/c/livez":{"tcpSocket":{"port":80}}}`}, func(c Config) any { return c.Probers["/app-health/c/livez"].TCPSocket.Port }, uint16(80)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := Read(pod(tc.env))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.want, tc.get(c)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestReadNamesEveryFault(t *testing.T) {
	_, err := Read(pod(map[string]string{
		"POD_NAME": "", "PROXY_CONFIG": "{", "SECRET_TTL": "long", "MINIMUM_DRAIN_DURATION": "5", "CA_ADDR": "x", "ISTIO_KUBE_APP_PROBERS": "[]",
		"ISTIO_PROMETHEUS_ANNOTATIONS": `{"scrape":"true","port":"http"}`, "INSTANCE_IP": "here", "ISTIO_METAJSON_X": "{",
	}))
	for _, want := range []string{
		"POD_NAME", "PROXY_CONFIG", "SECRET_TTL", "MINIMUM_DRAIN_DURATION", "CA_ADDR", "ISTIO_KUBE_APP_PROBERS", "ISTIO_PROMETHEUS_ANNOTATIONS", "INSTANCE_IPS", "ISTIO_METAJSON_X",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not named in: %v", want, err)
		}
	}
}

func FuzzProxyConfig(f *testing.F) {
	f.Add(`{"discoveryAddress":"a:1","concurrency":2,"drainDuration":"45s","proxyStatsMatcher":{"inclusionPrefixes":["a"]}}`)
	f.Add(`{"terminationDrainDuration":"-1s"}`)
	f.Fuzz(func(t *testing.T, s string) {
		c, err := Read(pod(map[string]string{"PROXY_CONFIG": s}))
		if err != nil {
			return
		}
		if c.Drain < 0 || c.EndDrain < 0 || c.Concurrency < 1 {
			t.Errorf("read %+v", c)
		}
		if b, err := Bootstrap(c); err != nil || !json.Valid(b) {
			t.Errorf("bootstrap: %v", err)
		}
	})
}

// variants are the pods whose bootstraps differ in more than names; the real Envoy validates each under the tag e2e.
func variants(t *testing.T) map[string]Config {
	t.Helper()
	m := map[string]Config{}
	for name, env := range map[string]map[string]string{
		"delta": nil,
		"sotw":  {"ISTIO_DELTA_XDS": "false", "PROXY_CONFIG": `{"proxyStatsMatcher":{"inclusionPrefixes":["p"],"inclusionSuffixes":["s"],"inclusionRegexps":["r.*"]}}`},
		"dual":  {"INSTANCE_IPS": "10.0.0.1,fd00::1"},
		"ipv6":  {"INSTANCE_IP": "fd00::1"},
	} {
		c, err := Read(pod(env))
		if err != nil {
			t.Fatal(err)
		}
		m[name] = c
	}
	return m
}

// outline prints JSON to a depth of three, and what is below in one line each, to be read and compared by humans.
func outline(t *testing.T, b []byte, indent string) []byte {
	t.Helper()
	var out strings.Builder
	var object map[string]json.RawMessage
	var list []json.RawMessage
	var compact bytes.Buffer
	switch {
	case len(indent) < 3 && json.Unmarshal(b, &object) == nil:
		for _, k := range slices.Sorted(maps.Keys(object)) {
			out.WriteString(indent + k + ":\n" + string(outline(t, object[k], indent+" ")))
		}
	case len(indent) < 4 && json.Unmarshal(b, &list) == nil:
		for _, v := range list {
			out.Write(outline(t, v, indent+"    "))
		}
	default:
		if err := json.Compact(&compact, b); err != nil {
			t.Fatal(err)
		}
		out.WriteString(indent + compact.String() + "\n")
	}
	return []byte(out.String())
}

func TestBootstrap(t *testing.T) {
	all := variants(t)
	got, err := Bootstrap(all["delta"])
	if err != nil {
		t.Fatal(err)
	}
	got = outline(t, got, "")
	golden := filepath.Join("testdata", "bootstrap.txt")
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Error(d)
	}
	for name, has := range map[string][]string{
		"sotw": {`"api_type": "GRPC"`, `"prefix": "p"`, `"suffix": "s"`, `"regex": "r.*"`},
		"dual": {`"additional_addresses"`, `"address": "0.0.0.0"`, `"address": "::"`},
		"ipv6": {`"address": "::"`},
	} {
		b, err := Bootstrap(all[name])
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range has {
			if !strings.Contains(string(b), s) {
				t.Errorf("%s lacks %s", name, s)
			}
		}
		if name == "ipv6" && strings.Contains(string(b), "0.0.0.0") {
			t.Error("a pod without IPv4 listens on it")
		}
	}
}

func TestLogLevel(t *testing.T) {
	for s, want := range map[string]slog.Level{
		"": slog.LevelInfo, "debug": slog.LevelDebug, "default:warn": slog.LevelWarn, "xds:debug,default:error": slog.LevelError, "xds:debug": slog.LevelInfo,
	} {
		if got := LogLevel(s); got != want {
			t.Errorf("%q is %s, want %s", s, got, want)
		}
	}
}

// fakeEnvoy answers on a socket as Envoy's administration would; it returns the requests that reached it.
func fakeEnvoy(t *testing.T, answer http.HandlerFunc) *envoyAdmin {
	t.Helper()
	path := filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: answer}}
	s.Start()
	t.Cleanup(s.Close)
	a := newAdmin(path)
	t.Cleanup(a.CloseIdleConnections)
	return a
}

func TestAdminFilter(t *testing.T) {
	h := adminFilter(fakeEnvoy(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Method+" "+r.URL.String()) }))
	for _, tc := range []struct {
		method, url string
		code        int
	}{
		{"GET", "/config_dump?mask=dynamic_listeners,static_listeners", 200},
		{"GET", "/config_dump?include_eds=true", 200},
		{"GET", "/clusters?format=json", 200},
		{"GET", "/stats?filter=ssl", 200},
		{"GET", "/stats/prometheus", 200},
		{"POST", "/logging?level=debug", 200},
		{"GET", "/logging?level=debug", 403},
		{"POST", "/config_dump", 403},
		{"POST", "/quitquitquit", 404},
		{"POST", "/drain_listeners", 404},
		{"POST", "/healthcheck/fail", 404},
		{"POST", "/reset_counters", 404},
		{"POST", "/runtime_modify?a=b", 404},
		{"GET", "/certs", 200}, // like config_dump, it shows no key
		{"GET", "/", 404},
		{"POST", "//quitquitquit", 404},
		{"POST", "/stats/../quitquitquit", 404},
		{"POST", "/%71uitquitquit", 404},
		{"POST", "/logging/..%2fquitquitquit", 404},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(tc.method, tc.url, nil))
		if w.Code != tc.code || tc.code == 200 && w.Body.String() != tc.method+" "+tc.url {
			t.Errorf("%s %s: %d %q, want %d", tc.method, tc.url, w.Code, w.Body, tc.code)
		}
	}
}

func TestReady(t *testing.T) {
	state := map[string]string{}
	stats := 0
	s := &statusServer{admin: fakeEnvoy(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ready":
			if state["live"] == "" {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		case "/stats":
			stats++
			for _, name := range slices.Sorted(maps.Keys(state)) {
				_, _ = io.WriteString(w, name+": "+state[name]+"\n")
			}
		}
	})}
	h := s.handler()
	for _, tc := range []struct {
		name string
		do   func()
		code int
	}{
		{"not live", func() {}, 503},
		{"live, nothing accepted", func() { state["live"] = "1"; state[cdsAccepted] = "0" }, 503},
		{"clusters accepted", func() { state[cdsAccepted] = "2" }, 503},
		{"listeners rejected", func() { state[ldsAccepted] = "0" }, 503},
		{"both accepted", func() { state[ldsAccepted] = "1" }, 200},
		{"once accepted, not asked again", func() { stats = 0; clear(state); state["live"] = "1" }, 200},
		{"draining", func() { s.draining.Store(true) }, 503},
	} {
		tc.do()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/healthz/ready", nil))
		if w.Code != tc.code {
			t.Errorf("%s: %d %s, want %d", tc.name, w.Code, w.Body, tc.code)
		}
	}
	if stats != 0 {
		t.Errorf("statistics asked %d times of a ready Envoy", stats)
	}
}

func TestMetricsAreMerged(t *testing.T) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.Header.Get("Accept"), "text/plain") || r.URL.Path != "/m" {
			t.Errorf("application asked for %s as %s", r.URL, r.Header.Get("Accept"))
		}
		_, _ = io.WriteString(w, "app_up 1\n")
	}))
	_, port, _ := net.SplitHostPort(app.Listener.Addr().String())
	rotation := identity.NewRotation(nil, nil)
	s := &statusServer{
		admin:  fakeEnvoy(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "envoy_up 1\n") }),
		scrape: &Scrape{Path: "/m", Port: port}, rotation: rotation, log: slog.New(slog.DiscardHandler),
	}
	get := func() string {
		w := httptest.NewRecorder()
		s.handler().ServeHTTP(w, httptest.NewRequest("GET", "/stats/prometheus", nil))
		return w.Body.String()
	}
	if got := get(); got != "envoy_up 1\napp_up 1\n" {
		t.Errorf("merged %q", got)
	}
	app.Close()
	if got := get(); !strings.HasPrefix(got, "envoy_up 1\n\n# not merged: ") || strings.Count(got, "\n") != 3 {
		t.Errorf("with the application away %q", got)
	}
}

func TestOrdersComeFromThePod(t *testing.T) {
	for _, tc := range []struct {
		url, from string
		code      int
	}{
		{"/drain", "127.0.0.1:1", 200},
		{"/drain", "[::1]:1", 200},
		{"/drain", "10.0.0.2:1", 403},
		{"/quitquitquit", "127.0.0.1:1", 200},
		{"/quitquitquit", "10.0.0.2:1", 403},
	} {
		orders := 0
		s := &statusServer{quit: func() { orders++ }, admin: fakeEnvoy(t, func(_ http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/drain_listeners" {
				orders++
			}
		})}
		r := httptest.NewRequest("POST", tc.url, nil)
		r.RemoteAddr = tc.from
		w := httptest.NewRecorder()
		s.handler().ServeHTTP(w, r)
		if w.Code != tc.code || (orders == 1) != (tc.code == 200) || s.draining.Load() != (tc.code == 200 && tc.url == "/drain") {
			t.Errorf("%s from %s: %d, %d orders", tc.url, tc.from, w.Code, orders)
		}
		w = httptest.NewRecorder()
		s.handler().ServeHTTP(w, httptest.NewRequest("GET", tc.url, nil))
		if w.Code != http.StatusMethodNotAllowed {
			t.Errorf("GET %s: %d", tc.url, w.Code)
		}
	}
}

// An order that Envoy did not take is given again, and answers for itself.
func TestDrainIsTriedAgain(t *testing.T) {
	code := http.StatusServiceUnavailable
	var got []string
	s := &statusServer{admin: fakeEnvoy(t, func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r.Method+" "+r.URL.String())
		w.WriteHeader(code)
	})}
	for _, tc := range []struct{ envoy, want int }{{http.StatusServiceUnavailable, http.StatusBadGateway}, {http.StatusOK, http.StatusOK}} {
		code, got = tc.envoy, nil
		r := httptest.NewRequest("POST", "/drain", nil)
		r.RemoteAddr = "127.0.0.1:1"
		w := httptest.NewRecorder()
		s.handler().ServeHTTP(w, r)
		if d := cmp.Diff([]string{"POST /drain_listeners?graceful&inboundonly"}, got); d != "" || w.Code != tc.want {
			t.Errorf("Envoy answers %d, the agent %d %s\n%s", tc.envoy, w.Code, w.Body, d)
		}
	}
}

func TestAwaitIdle(t *testing.T) {
	idle := func(time.Duration) (int, error) { return 0, nil }
	busy := func(time.Duration) (int, error) { return 1, nil }
	untilTwo := func(d time.Duration) (int, error) { return max(0, int(2*time.Second-d)), nil }
	untilTwenty := func(d time.Duration) (int, error) { return max(0, int(20*time.Second-d)), nil }
	c := Config{EndDrain: 5 * time.Second, MinDrain: 3 * time.Second}
	exitIdle := c
	exitIdle.ExitIdle = true
	for _, tc := range []struct {
		name  string
		wait  wait
		open  func(since time.Duration) (int, error)
		ended bool
		want  time.Duration
	}{
		{"drained before, idle", c.lastWait(true), idle, false, quiet},
		{"drained before, idle after two seconds", c.lastWait(true), untilTwo, false, 2*time.Second + quiet},
		{"drained before, never idle", c.lastWait(true), busy, false, 5 * time.Second},
		{"drained before, Envoy does not answer", c.lastWait(true), func(time.Duration) (int, error) { return 0, errors.New("hung") }, false, 5 * time.Second},
		{"drained before, Envoy has ended", c.lastWait(true), busy, true, 0},
		{"idle, but the application may call", c.lastWait(false), idle, false, 5 * time.Second},
		{"never idle", c.lastWait(false), busy, false, 5 * time.Second},
		{"Envoy has ended", c.lastWait(false), busy, true, 0},
		{"exit when idle, at the minimum", exitIdle.lastWait(false), idle, false, 3*time.Second + quiet},
		{"exit when idle, past the usual", exitIdle.lastWait(false), untilTwenty, false, 20*time.Second + quiet},
		{"exit when idle, drained before", exitIdle.lastWait(true), idle, false, quiet},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ended := make(chan struct{})
				if tc.ended {
					close(ended)
				}
				start := time.Now()
				awaitIdle(t.Context(), ended, tc.wait, func(context.Context) (int, error) { return tc.open(time.Since(start)) })
				if d := time.Since(start); d < tc.want-look || d > tc.want+2*look {
					t.Errorf("waited %s, want %s", d, tc.want)
				}
			})
		})
	}
}

func TestRequestAndWait(t *testing.T) {
	code := http.StatusServiceUnavailable
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(code)
		_, _ = io.WriteString(w, r.Method+" "+r.URL.Path)
		code = http.StatusOK
	}))
	defer s.Close()
	port := s.Listener.Addr().(*net.TCPAddr).Port
	var out strings.Builder
	if err := Request(t.Context(), port, "post", "drain", &out); err == nil || out.String() != "POST /drain" {
		t.Errorf("503: %q, %v", &out, err)
	}
	code = http.StatusServiceUnavailable
	if err := Wait(t.Context(), s.URL, time.Second, time.Millisecond); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Wait(ctx, s.URL, time.Second, time.Hour); err == nil {
		t.Error("no error when the time is over")
	}
}
