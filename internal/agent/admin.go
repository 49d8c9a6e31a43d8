package agent

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
)

// envoyAdmin speaks to Envoy's administration over its socket.
type envoyAdmin struct{ http.Client }

func newAdmin(path string) *envoyAdmin {
	return &envoyAdmin{http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
		DisableCompression: true,
	}}}
}

// call returns the body of a 200 answer.
func (a *envoyAdmin) call(ctx context.Context, method, path string) (string, error) {
	r, err := http.NewRequestWithContext(ctx, method, "http://envoy"+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := a.Do(r)
	if err != nil {
		return "", fmt.Errorf("ask Envoy: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("envoy answers %s to %s %s: %s", resp.Status, method, path, b)
	}
	return string(b), err
}

// adminPaths is what passes from the pod's loopback to Envoy's administration: what istioctl reads, and its log levels.
// Nothing that stops, drains or resets: the application shares this loopback.
var adminPaths = map[string]string{
	"/certs":            http.MethodGet,
	"/config_dump":      http.MethodGet,
	"/clusters":         http.MethodGet,
	"/listeners":        http.MethodGet,
	"/memory":           http.MethodGet,
	"/ready":            http.MethodGet,
	"/runtime":          http.MethodGet,
	"/server_info":      http.MethodGet,
	"/stats":            http.MethodGet,
	"/stats/prometheus": http.MethodGet,
	"/logging":          http.MethodPost,
}

// adminFilter is the handler of the loopback port where tools expect Envoy's administration.
func adminFilter(a *envoyAdmin) http.Handler {
	proxy := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: "envoy"}) },
		Transport: a.Transport,
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		method, ok := adminPaths[r.URL.Path]
		switch {
		case !ok:
			http.Error(w, "not served here; these are: "+strings.Join(slices.Sorted(maps.Keys(adminPaths)), " "), http.StatusNotFound)
		case r.Method != method:
			http.Error(w, r.Method+" is not allowed, "+method+" is", http.StatusForbidden)
		default:
			proxy.ServeHTTP(w, r)
		}
	})
}
