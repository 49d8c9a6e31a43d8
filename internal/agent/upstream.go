package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

// dial returns a connection to the plane that is made when it is first used and again whenever it is lost. Calls wait
// for it: so Envoy's stream stands open through an outage and is served the moment that the plane is back.
func dial(address string, c Config, log *slog.Logger) (*grpc.ClientConn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("address of the control plane: %w", err)
	}
	state := &reach{log: log.With(slog.String("address", address))}
	// passthrough: gRPC's own resolver would wait up to 30 s before it asks again for a name that did not resolve.
	return grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(planeTLS{root: c.Root, host: host, state: state}),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
			if err != nil {
				state.now(err)
			}
			return conn, err
		}),
		grpc.WithPerRPCCredentials(bearer{token: c.Token, cluster: c.ClusterID}),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(math.MaxInt32)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 3 * time.Second, // a plane that is gone may answer nothing at all
		}))
}

// bearer sends the pod's token, as the kubelet last renewed it, with every call.
type bearer struct{ token, cluster string }

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := os.ReadFile(b.token)
	if err != nil {
		return nil, fmt.Errorf("read the pod's token: %w", err)
	}
	return map[string]string{"authorization": "Bearer " + strings.TrimSpace(string(token)), "clusterid": b.cluster}, nil
}

func (bearer) RequireTransportSecurity() bool { return true }

// reach logs whether the plane can be reached: each change once, not each try. Calls wait and tell nobody.
type reach struct {
	log *slog.Logger

	mu   sync.Mutex
	last string // the error of the last try; empty after a success
}

func (r *reach) now(err error) {
	if errors.Is(err, context.Canceled) { // this end gave up
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err == nil && r.last != "":
		r.last = ""
		r.log.Info("the control plane is reached again")
	case err != nil && err.Error() != r.last:
		r.last = err.Error()
		r.log.Warn("the control plane cannot be reached; Envoy keeps what it has", slog.Any("err", err))
	}
}

// planeTLS verifies the plane by the mesh's root, read again for each connection: the ConfigMap may change.
type planeTLS struct {
	root, host string
	state      *reach
}

func (p planeTLS) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := p.handshake(ctx, authority, raw)
	p.state.now(err)
	return conn, info, err
}

func (p planeTLS) handshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	pem, err := os.ReadFile(p.root)
	if err != nil {
		return nil, nil, fmt.Errorf("read the mesh's root: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, nil, fmt.Errorf("no certificate in %s", p.root)
	}
	c := credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: p.host, MinVersion: tls.VersionTLS12})
	return c.ClientHandshake(ctx, authority, raw)
}

func (planeTLS) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("planeTLS is for clients")
}

func (planeTLS) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}
func (p planeTLS) Clone() credentials.TransportCredentials { return p }
func (planeTLS) OverrideServerName(string) error {
	return errors.New("the plane's name is its address")
}
