package agent

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"

	"github.com/heddle-mesh/heddle/internal/identity"
)

// statusServer answers on the agent's port: readiness, merged metrics, the application's probes, and orders from the pod itself.
type statusServer struct {
	admin    *envoyAdmin
	rotation *identity.Rotation
	pod      netip.Addr
	probers  map[string]Prober
	scrape   *Scrape
	quit     func()
	log      *slog.Logger

	configured atomic.Bool // clusters and listeners were accepted once
	draining   atomic.Bool
}

// hooks is the path of life cycle hooks. They act, and take their time: a preStop may wait until the application is drained. Where
// the kubelet calls from differs from network to network; what it knows is the pod's spec, where each path has a token.
const hooks = "/app-lifecycle/"

func (s *statusServer) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz/ready", func(w http.ResponseWriter, r *http.Request) {
		if err := s.ready(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("GET /stats/prometheus", s.metrics)
	mux.HandleFunc("POST /drain", fromPod(func(w http.ResponseWriter, r *http.Request) {
		s.draining.Store(true)
		if err := drainInbound(context.WithoutCancel(r.Context()), s.admin); err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
		}
	}))
	mux.HandleFunc("POST /quitquitquit", fromPod(func(http.ResponseWriter, *http.Request) { s.quit() }))
	mux.HandleFunc("GET /app-health/", s.probe)
	mux.HandleFunc("GET "+hooks, s.hook)
	return mux
}

// fromPod lets only callers on the pod's loopback pass.
func fromPod(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if a, err := netip.ParseAddrPort(r.RemoteAddr); err != nil || !a.Addr().Unmap().IsLoopback() {
			http.Error(w, "only from within the pod", http.StatusForbidden)
			return
		}
		h(w, r)
	}
}

const (
	cdsAccepted = "cluster_manager.cds.update_success"
	ldsAccepted = "listener_manager.lds.update_success"
)

// ready tells why the pod must get no traffic yet, or no more. Envoy calls itself live after a first configuration that it
// rejected, too; so its counters are asked until both kinds were accepted once.
func (s *statusServer) ready(ctx context.Context) error {
	if s.draining.Load() {
		return errors.New("draining")
	}
	if _, err := s.admin.call(ctx, http.MethodGet, "/ready"); err != nil {
		return err
	}
	if s.configured.Load() {
		return nil
	}
	stats, err := s.admin.call(ctx, http.MethodGet, "/stats?filter=update_success$")
	if err != nil {
		return err
	}
	for _, name := range []string{cdsAccepted, ldsAccepted} {
		if n := statValue(stats, name); n == "" || n == "0" {
			return fmt.Errorf("configuration not accepted yet: %s is %q", name, n)
		}
	}
	s.configured.Store(true)
	return nil
}

// statValue finds "name: value" in Envoy's plain statistics.
func statValue(stats, name string) string {
	for line := range strings.Lines(stats) {
		if v, ok := strings.CutPrefix(line, name+": "); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// metrics merges Envoy's, the application's and the agent's own. One that fails leaves the others readable, with a comment.
func (s *statusServer) metrics(w http.ResponseWriter, r *http.Request) {
	const format = "text/plain; version=0.0.4"
	w.Header().Set("Content-Type", format)
	part := func(client *http.Client, url string) {
		in, err := http.NewRequestWithContext(r.Context(), http.MethodGet, url, nil)
		if err == nil {
			in.Header.Set("Accept", format) // OpenMetrics would end with # EOF in the middle
			var resp *http.Response
			if resp, err = client.Do(in); err == nil {
				defer resp.Body.Close()
				if resp.StatusCode == http.StatusOK {
					_, err = io.Copy(w, resp.Body)
				} else {
					err = fmt.Errorf("%s answers %s", url, resp.Status)
				}
			}
		}
		if err != nil {
			fmt.Fprintf(w, "\n# not merged: %q\n", err.Error())
			s.log.LogAttrs(r.Context(), slog.LevelDebug, "metrics not merged", slog.Any("err", err))
		}
	}
	part(&s.admin.Client, "http://envoy/stats/prometheus")
	if s.scrape != nil {
		part(http.DefaultClient, s.scrape.url())
	}
	if c, ok, _ := s.rotation.Current(); ok {
		fmt.Fprintf(w, "# TYPE heddle_agent_certificate_expiry_timestamp_seconds gauge\nheddle_agent_certificate_expiry_timestamp_seconds %d\n", c.NotAfter.Unix())
	}
}

// probe carries out a probe of the application. Anybody may call it, as with Istio: it tells no more than a status.
func (s *statusServer) probe(w http.ResponseWriter, r *http.Request) {
	p, ok := s.probers[r.URL.Path]
	if !ok {
		http.NotFound(w, r)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), p.timeout())
	defer cancel()
	s.answer(ctx, w, r, p)
}

// hook carries out a hook for who calls it by its exact path. Paths are compared in a time that does not tell how far a guess
// is right, and what is wrong about one is not told either.
func (s *statusServer) hook(w http.ResponseWriter, r *http.Request) {
	var called *Prober
	for path, p := range s.probers {
		if strings.HasPrefix(path, hooks) && subtle.ConstantTimeCompare([]byte(path), []byte(r.URL.Path)) == 1 {
			called = &p
		}
	}
	if called == nil {
		http.Error(w, "hooks are called by the kubelet, which knows their paths from the pod's spec", http.StatusForbidden)
		return
	}
	s.answer(r.Context(), w, r, *called)
}

func (s *statusServer) answer(ctx context.Context, w http.ResponseWriter, r *http.Request, p Prober) {
	code, err := p.probe(ctx, s.pod, r.UserAgent())
	if err != nil {
		http.Error(w, err.Error(), code)
		return
	}
	w.WriteHeader(code)
}

// serve answers with h until ctx ends.
func serve(ctx context.Context, l net.Listener, h http.Handler) error {
	server := &http.Server{Handler: h, ReadHeaderTimeout: requestHeader}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(l); ctx.Err() == nil {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}
