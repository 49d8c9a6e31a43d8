package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	securityv1 "istio.io/api/security/v1alpha1"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/xds"
)

const (
	requestHeader = 10 * time.Second
	maxRequest    = 64 << 20               // bytes of one Envoy request: the names of all clusters, in a large mesh
	quiet         = time.Second            // without connections before Envoy is stopped: so long may peers' new endpoints lag
	longest       = time.Hour              // for connections to end, where the pod's grace period is the bound
	look          = 100 * time.Millisecond // between two looks at the open connections, while the pod ends
	certWait      = 10 * time.Second       // for a certificate; the error then tells why there is no connection
	orders        = 2 * time.Second        // for Envoy to take them; it may be stopped
	kill          = 5 * time.Second        // from SIGTERM to SIGKILL of an Envoy that does not go
)

// Run starts Envoy and serves it until ctx ends or POST /quitquitquit comes; then it drains and stops Envoy and returns nil.
// It returns an error if Envoy or one of the agent's servers ends before.
func Run(ctx context.Context, c Config, log *slog.Logger) error {
	ctx, quit := context.WithCancel(ctx)
	defer quit()
	discovery, err := dial(c.Discovery, c, log)
	if err != nil {
		return err
	}
	defer discovery.Close()
	ca := discovery
	if c.CA != c.Discovery {
		if ca, err = dial(c.CA, c, log); err != nil {
			return err
		}
		defer ca.Close()
	}
	issuer := securityv1.NewIstioCertificateServiceClient(ca)
	rotation := identity.NewRotation(func(ctx context.Context) (identity.Credential, error) {
		ctx, cancel := context.WithTimeout(ctx, certWait)
		defer cancel()
		return identity.Obtain(ctx, issuer, c.CertLife)
	}, log)

	admin := newAdmin(c.adminSocket())
	st := &statusServer{
		admin: admin, rotation: rotation, pod: c.Addresses[0], probers: c.Probers, scrape: c.Scrape, log: log, quit: quit,
	}

	// The servers outlive ctx: while Envoy drains it still needs them.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, serving := errgroup.WithContext(serving)
	group.Go(func() error { rotation.Run(serving); return nil })
	sds := newSecrets(rotation, c.Root, log)
	group.Go(func() error { sds.followRoot(serving); return nil })
	group.Go(func() error { sds.stayUnder(serving); return nil })
	if err := c.serveAll(serving, group, &xds.Relay{
		Upstream: discovery,
		OnResponse: func(typeURL, nack string) {
			if nack != "" {
				log.LogAttrs(serving, slog.LevelWarn, "Envoy rejected configuration", slog.String("type", typeURL), slog.String("err", nack))
			}
		},
		// A pod that ends may be gone from the API server, and its token void, before its containers are.
		Last: func(end error) bool { return st.draining.Load() && status.Code(end) == codes.Unauthenticated },
	}, sds, st, admin); err != nil {
		stop()
		return errors.Join(err, group.Wait())
	}

	envoy, err := startEnvoy(c)
	if err != nil {
		stop()
		return errors.Join(err, group.Wait())
	}
	log.LogAttrs(ctx, slog.LevelInfo, "Envoy started", slog.Int("pid", envoy.pid), slog.String("node", c.NodeID), slog.String("discovery", c.Discovery))
	select {
	case <-envoy.done:
		if err = errors.New("envoy ended unasked"); envoy.err != nil {
			err = fmt.Errorf("envoy ended: %w", envoy.err)
		}
	case <-serving.Done(): // a server failed; group.Wait tells
	case <-ctx.Done():
		w := c.lastWait(st.draining.Swap(true))
		log.LogAttrs(serving, slog.LevelInfo, "draining", slog.Duration("atLeast", w.atLeast), slog.Duration("atMost", w.atMost))
		if derr := drainInbound(serving, admin); derr != nil {
			log.LogAttrs(serving, slog.LevelWarn, "drain", slog.Any("err", derr))
		}
		awaitIdle(serving, envoy.done, w, func(ctx context.Context) (int, error) { return openConnections(ctx, admin) })
	}
	envoy.stop()
	stop()
	return errors.Join(err, group.Wait())
}

// serveAll opens every socket before it serves the first, so that Envoy finds them all.
func (c Config) serveAll(ctx context.Context, group *errgroup.Group, relay *xds.Relay, sds *secrets, st *statusServer, admin *envoyAdmin) error {
	if err := os.Remove(c.xdsSocket()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the last run's socket: %w", err)
	}
	local, err := net.Listen("unix", c.xdsSocket())
	if err != nil {
		return fmt.Errorf("open the socket for Envoy: %w", err)
	}
	public, err := net.Listen("tcp", portOf(c.StatusPort))
	if err != nil {
		return fmt.Errorf("open the status port: %w", err)
	}
	loopback, err := net.Listen("tcp", "127.0.0.1"+portOf(c.AdminPort))
	if err != nil {
		return fmt.Errorf("open the administration port: %w", err)
	}
	server := grpc.NewServer(xds.ServerCodec(), grpc.MaxRecvMsgSize(maxRequest))
	relay.Register(server)
	secretv3.RegisterSecretDiscoveryServiceServer(server, sds)
	context.AfterFunc(ctx, server.Stop)
	group.Go(func() error { return server.Serve(local) })
	group.Go(func() error { return serve(ctx, public, st.handler()) })
	group.Go(func() error { return serve(ctx, loopback, adminFilter(admin)) })
	return nil
}

// process is a running Envoy; err may be read when done is closed.
type process struct {
	pid  int
	done chan struct{}
	err  error
}

// startEnvoy writes the bootstrap and starts Envoy, which dies with this process, whatever kills it: the kernel watches
// the thread that forked, so that thread is held until Envoy has ended.
func startEnvoy(c Config) (*process, error) {
	bootstrap, err := Bootstrap(c)
	if err != nil {
		return nil, fmt.Errorf("write bootstrap: %w", err)
	}
	path := filepath.Join(c.Dir, "envoy.json")
	if err := os.WriteFile(path, bootstrap, 0o600); err != nil {
		return nil, fmt.Errorf("write bootstrap: %w", err)
	}
	cmd := exec.Command(c.Binary, Args(c, path)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p := &process{done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start Envoy: %w", err)
	}
	p.pid = cmd.Process.Pid
	return p, nil
}

// stop ends Envoy and returns when it is gone.
func (p *process) stop() {
	select {
	case <-p.done:
		return
	default:
	}
	_ = syscall.Kill(p.pid, syscall.SIGTERM) // not reaped before done is closed: the pid is still Envoy's
	select {
	case <-p.done:
	case <-time.After(kill):
		_ = syscall.Kill(p.pid, syscall.SIGKILL)
		<-p.done
	}
}

// drainInbound has who calls the pod reconnect elsewhere; that it is unready is the agent's own to say. Listeners stay open
// for the drain's time, and the application's own calls go on: /healthcheck/fail would end the connections of every
// listener, outbound ones too. A second time changes nothing.
func drainInbound(ctx context.Context, admin *envoyAdmin) error {
	ctx, cancel := context.WithTimeout(ctx, orders)
	defer cancel()
	_, err := admin.call(ctx, http.MethodPost, "/drain_listeners?graceful&inboundonly")
	return err
}

// wait bounds how long a draining Envoy stays.
type wait struct{ atLeast, atMost time.Duration }

// lastWait returns how long Envoy stays after SIGTERM, by the rules of Istio; drained says whether it drained before.
func (c Config) lastWait(drained bool) wait {
	switch {
	case drained: // as a native sidecar's preStop has it: SIGTERM comes after the application's end
		return wait{0, c.EndDrain}
	case c.ExitIdle:
		return wait{c.MinDrain, longest}
	}
	return wait{c.EndDrain, c.EndDrain} // the application may still call, though no connection is open
}

// awaitIdle returns after w.atLeast when no connection has been open for a while, when Envoy has ended, or after w.atMost.
func awaitIdle(ctx context.Context, ended <-chan struct{}, w wait, open func(context.Context) (int, error)) {
	ctx, cancel := context.WithTimeout(ctx, w.atMost)
	defer cancel()
	idleSince := time.Now().Add(w.atLeast)
	for pause := w.atLeast; ; pause = look {
		select {
		case <-ended:
			return
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		if n, err := open(ctx); err != nil || n > 0 {
			idleSince = time.Now()
		} else if time.Since(idleSince) >= quiet {
			return
		}
	}
}

// openConnections counts those on Envoy's listeners, without the two that serve the kubelet and Prometheus.
func openConnections(ctx context.Context, admin *envoyAdmin) (int, error) {
	stats, err := admin.call(ctx, http.MethodGet, `/stats?filter=^listener\..*downstream_cx_active$`)
	if err != nil {
		return 0, err
	}
	n := 0
	for line := range strings.Lines(stats) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		if slices.ContainsFunc([]string{readiness, prometheus, "admin"}, func(own string) bool { return strings.HasPrefix(name, "listener."+own) }) {
			continue
		}
		var one int
		if _, err := fmt.Sscan(value, &one); err == nil {
			n += one
		}
	}
	return n, nil
}
