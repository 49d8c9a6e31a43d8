package control

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/obs"
	"github.com/heddle-mesh/heddle/internal/xds"
)

const (
	maxStreams    = 100_000  // Istio's
	maxRequest    = 16 << 20 // bytes of a proxy's request, which names all that it holds; none is read before its caller is known
	maxHeaders    = 64 << 10 // bytes of a call's metadata: a token has one or two thousand
	keepAlive     = 30 * time.Second
	keepAliveWait = 10 * time.Second
	ageGrace      = 10 * time.Second
	headerWait    = 10 * time.Second // for the head of an HTTP request
	bodyWait      = 15 * time.Second // for all of it: anybody may call the webhooks, and their bodies are kept in memory
	idleWait      = time.Minute
	shutdownWait  = 5 * time.Second
	streamBuffer  = 4 << 10 // bytes of each connection's read and write buffer: most messages are small and connections many
)

// The servers below listen when the function returns, and serve until ctx ends.

func (p *plane) serveGRPC(ctx context.Context, serving *identity.Serving, streams *xds.Server, ca *identity.Service) error {
	listener, err := net.Listen("tcp", p.SecureAddr)
	if err != nil {
		return fmt.Errorf("serve xDS and CA: %w", err)
	}
	server := grpc.NewServer(p.grpcOptions(&tls.Config{
		GetCertificate: serving.GetCertificate, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"},
	})...)
	streams.Register(server)
	ca.Register(server)
	p.tasks.Go(func() error {
		if err := server.Serve(listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			return fmt.Errorf("serve xDS and CA: %w", err)
		}
		return nil
	})
	p.tasks.Go(func() error {
		<-ctx.Done()
		server.Stop()
		return nil
	})
	return nil
}

func (o Options) grpcOptions(config *tls.Config) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.Creds(credentials.NewTLS(config)), xds.ServerCodec(),
		grpc.MaxConcurrentStreams(maxStreams), grpc.MaxHeaderListSize(maxHeaders), grpc.MaxRecvMsgSize(maxRequest),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: keepAlive, Timeout: keepAliveWait,
			MaxConnectionAge: o.MaxConnectionAge, MaxConnectionAgeGrace: ageGrace,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepAlive / 2, PermitWithoutStream: true}),
		grpc.ReadBufferSize(streamBuffer), grpc.WriteBufferSize(streamBuffer),
	}
}

func (p *plane) serveWebhooks(ctx context.Context, serving *identity.Serving, webhooks http.Handler) error {
	mux := http.NewServeMux()
	mux.Handle("/", webhooks)
	mux.HandleFunc("/ready", p.readiness)
	return p.serveHTTP(ctx, "webhooks", p.HTTPSAddr, mux, &tls.Config{GetCertificate: serving.GetCertificate, MinVersion: tls.VersionTLS12})
}

func (p *plane) serveHealth(ctx context.Context) error {
	ready := http.NewServeMux()
	ready.HandleFunc("/ready", p.readiness)
	if err := p.serveHTTP(ctx, "readiness", p.HTTPAddr, ready, nil); err != nil {
		return err
	}
	return p.serveHTTP(ctx, "monitoring", p.MonitoringAddr, p.monitoring(), nil)
}

// serveHTTP serves plain text if config is nil.
func (p *plane) serveHTTP(ctx context.Context, what, addr string, h http.Handler, config *tls.Config) error {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("serve %s: %w", what, err)
	}
	if config != nil {
		listener = tls.NewListener(listener, config)
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: headerWait, ReadTimeout: bodyWait, IdleTimeout: idleWait}
	p.tasks.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve %s: %w", what, err)
		}
		return nil
	})
	p.tasks.Go(func() error {
		<-ctx.Done()
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownWait)
		defer cancel()
		if err := server.Shutdown(last); err != nil { // somebody reads too slowly
			return server.Close()
		}
		return nil
	})
	return nil
}

func (p *plane) readiness(w http.ResponseWriter, _ *http.Request) {
	if !p.ready.Load() {
		http.Error(w, "not ready", http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ready")
}

// readers are who may read a page of 15014.
type readers int

const (
	anybody   readers = iota
	forwarded         // from loopback, where a port-forward comes from
	admitted          // from loopback, with a token of the system namespace
)

type route struct {
	readers
	serve obs.Page
}

// routes are all pages of 15014, by path. istioctl reads those for forwarded without a token.
func (p *plane) routes() map[string]route {
	routes := map[string]route{
		"/metrics": {anybody, func(w http.ResponseWriter, r *http.Request, _ string) {
			promhttp.HandlerFor(p.registry, promhttp.HandlerOpts{}).ServeHTTP(w, r)
		}},
		"/ready": {anybody, func(w http.ResponseWriter, r *http.Request, _ string) { p.readiness(w, r) }},
		"/version": {forwarded, func(w http.ResponseWriter, _ *http.Request, _ string) {
			fmt.Fprintf(w, "%s-heddle.%s-Clean", p.apiVersion(), obs.Version)
		}},
	}
	d := p.debug.Load()
	if d == nil {
		return routes
	}
	for name := range d.pages() {
		who := admitted
		if name == "syncz" || name == "clusterz" {
			who = forwarded
		}
		routes["/debug/"+name] = route{who, func(w http.ResponseWriter, r *http.Request, _ string) {
			code, body := d.page(name + "?" + r.URL.RawQuery)
			if len(body) > 0 && (body[0] == '{' || body[0] == '[') {
				w.Header().Set("Content-Type", "application/json")
			}
			w.WriteHeader(code)
			_, _ = w.Write(body) // the caller has gone: nobody is left to tell
		}}
	}
	for name, serve := range d.admin.Pages() {
		routes["/debug/"+name] = route{admitted, serve}
	}
	return routes
}

// monitoring serves 15014.
func (p *plane) monitoring() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		where := path.Clean("/" + r.URL.Path) // istioctl asks for //version
		page, ok := p.routes()[where]
		if !ok {
			page.serve = func(w http.ResponseWriter, r *http.Request, _ string) { http.NotFound(w, r) }
			if strings.HasPrefix(where, "/debug/") && p.debug.Load() != nil {
				page.readers = admitted // which pages there are is not for everybody
			}
		}
		if page.readers != anybody && !fromLoopback(r) {
			http.NotFound(w, r)
			return
		}
		who := ""
		if page.readers == admitted {
			caller, ok := p.gate.AdmitPage(w, r)
			if !ok {
				return
			}
			who = caller.Identity.Namespace + "/" + caller.Identity.ServiceAccount
		}
		page.serve(w, r, who)
	})
}

func fromLoopback(r *http.Request) bool {
	a, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && a.Addr().Unmap().IsLoopback()
}

// apiVersion is the Istio API level as Istio prints it, without the v.
func (o Options) apiVersion() string { return strings.TrimPrefix(o.APIVersion, "v") }
