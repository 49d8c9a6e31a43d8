package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	securityv1 "istio.io/api/security/v1alpha1"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/meshtest"
	"github.com/heddle-mesh/heddle/internal/xds"
)

// memory is an identity.Store.
type memory struct{ data map[string][]byte }

func (m *memory) Load(context.Context) (map[string][]byte, error)     { return m.data, nil }
func (m *memory) Create(_ context.Context, d map[string][]byte) error { m.data = d; return nil }

func newAuthority(t *testing.T) *identity.Authority {
	t.Helper()
	a, err := identity.Open(t.Context(), nil, &memory{}, "cluster.local", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// issuer signs for whoever shows the token that it wants.
type issuer struct {
	securityv1.UnimplementedIstioCertificateServiceServer
	authority *identity.Authority
	token     string
}

func (i *issuer) CreateCertificate(ctx context.Context, in *securityv1.IstioCertificateRequest) (*securityv1.IstioCertificateResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if a, c := md.Get("authorization"), md.Get("clusterid"); len(a) != 1 || a[0] != "Bearer "+i.token || len(c) != 1 || c[0] != "east" {
		return nil, status.Errorf(codes.Unauthenticated, "token %q, cluster %q", a, c)
	}
	return sign(i.authority, in)
}

func sign(a *identity.Authority, in *securityv1.IstioCertificateRequest) (*securityv1.IstioCertificateResponse, error) {
	chain, err := a.Sign([]byte(in.Csr), mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}, time.Duration(in.ValidityDuration)*time.Second, time.Now())
	return &securityv1.IstioCertificateResponse{CertChain: chain}, err
}

// plane serves TLS under the name localhost with a certificate of the authority.
func plane(t *testing.T, a *identity.Authority, address string, register func(*grpc.Server)) (net.Addr, *grpc.Server) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(xds.ServerCodec(), grpc.Creds(credentials.NewTLS(&tls.Config{
		GetCertificate: a.Serving([]string{"localhost"}, time.Now).GetCertificate, MinVersion: tls.VersionTLS12,
	})))
	register(server)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	return l.Addr(), server
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// lines is a log that goroutines write.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) all() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// The token is read for each call and the root for each connection; a plane of another mesh is refused.
func TestUpstream(t *testing.T) {
	a, foreign := newAuthority(t), newAuthority(t)
	ca := &issuer{authority: a, token: "first"}
	addr, _ := plane(t, a, "127.0.0.1:0", func(s *grpc.Server) { securityv1.RegisterIstioCertificateServiceServer(s, ca) })
	_, port, _ := net.SplitHostPort(addr.String())
	dir := t.TempDir()
	c := Config{ClusterID: "east", Token: filepath.Join(dir, "token"), Root: filepath.Join(dir, "root")}
	write(t, c.Root, foreign.Roots())
	write(t, c.Token, "first\n")
	var said lines
	connect := func(host string) securityv1.IstioCertificateServiceClient {
		t.Helper()
		conn, err := dial(net.JoinHostPort(host, port), c, slog.New(slog.NewTextHandler(&said, nil)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return securityv1.NewIstioCertificateServiceClient(conn)
	}
	client := connect("localhost")

	failing, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := identity.Obtain(failing, client, time.Hour); status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("a plane under another root: %v", err)
	}
	write(t, c.Root, a.Roots())
	if _, err := identity.Obtain(t.Context(), client, time.Hour); err != nil {
		t.Fatal(err)
	}
	if got := said.all(); strings.Count(got, "level=WARN") != 1 || !strings.Contains(got, "unknown authority") || !strings.Contains(got, "reached again") {
		t.Errorf("of a plane refused again and again, then accepted, the log says\n%s", got)
	}
	ca.token = "second"
	if _, err := identity.Obtain(t.Context(), client, time.Hour); status.Code(err) != codes.Unauthenticated {
		t.Errorf("old token: %v", err)
	}
	write(t, c.Token, "second")
	if _, err := identity.Obtain(t.Context(), client, time.Hour); err != nil {
		t.Error(err)
	}

	misnamed, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := identity.Obtain(misnamed, connect("127.0.0.1"), time.Hour); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a plane under another name: %v", err)
	}
}

// Envoy gets its secrets when there are any, again when they are renewed, and no answer to an answer.
func TestSecrets(t *testing.T) {
	a, mounted := newAuthority(t), newAuthority(t)
	mount := meshtest.Mount(t.TempDir())
	mount.Write(t, map[string][]byte{"root-cert.pem": []byte(mounted.Roots())})
	next := make(chan identity.Credential)
	rotation := identity.NewRotation(func(ctx context.Context) (identity.Credential, error) {
		select {
		case c := <-next:
			return c, nil
		case <-ctx.Done():
			return identity.Credential{}, errors.New("ended")
		}
	}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go rotation.Run(ctx)
	sds := newSecrets(rotation, filepath.Join(string(mount), "root-cert.pem"), slog.New(slog.DiscardHandler))
	followed := make(chan struct{})
	go func() { sds.followRoot(ctx); close(followed) }()
	t.Cleanup(func() { <-followed })

	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(xds.ServerCodec())
	secretv3.RegisterSecretDiscoveryServiceServer(server, sds)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient("unix:"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	open := func(names ...string) secretv3.SecretDiscoveryService_StreamSecretsClient {
		t.Helper()
		s, err := secretv3.NewSecretDiscoveryServiceClient(conn).StreamSecrets(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Send(&discoveryv3.DiscoveryRequest{TypeUrl: secretType, ResourceNames: names}); err != nil {
			t.Fatal(err)
		}
		return s
	}
	receive := func(s secretv3.SecretDiscoveryService_StreamSecretsClient) (*discoveryv3.DiscoveryResponse, *tlsv3.Secret) {
		t.Helper()
		r, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		secret := new(tlsv3.Secret)
		if len(r.Resources) > 0 {
			if err := r.Resources[0].UnmarshalTo(secret); err != nil {
				t.Fatal(err)
			}
		}
		return r, secret
	}
	// A life of a tenth of a second makes the rotation ask for the next at once.
	credential := func(name string) identity.Credential {
		return identity.Credential{Chain: []byte(name), Key: []byte("key of " + name), Roots: []byte(a.Roots()), NotAfter: time.Now().Add(100 * time.Millisecond)}
	}

	own, roots, other := open(ownSecret), open(rootSecret), open("kubernetes://gateway")
	next <- credential("one")
	first, secret := receive(own)
	if got := secret.GetTlsCertificate(); secret.GetName() != ownSecret || string(got.GetCertificateChain().GetInlineBytes()) != "one" || string(got.GetPrivateKey().GetInlineBytes()) != "key of one" {
		t.Errorf("own secret is %s with chain %q", secret.GetName(), got.GetCertificateChain())
	}
	_, secret = receive(roots)
	for what, bundle := range map[string]string{"the CA's": a.Roots(), "the mounted": mounted.Roots()} {
		block, _ := pem.Decode([]byte(bundle))
		trusted := secret.GetValidationContext().GetTrustedCa().GetInlineBytes()
		if !bytes.Contains(trusted, []byte(bundle)) || block == nil || !x509.NewCertPool().AppendCertsFromPEM(trusted) {
			t.Errorf("%s root is not trusted", what)
		}
	}
	if r, _ := receive(other); len(r.Resources) != 0 {
		t.Errorf("a secret of others is answered by %d resources", len(r.Resources))
	}

	// The answer to the first goes out before the second comes: were it taken for a request, "one" would come again.
	if err := own.Send(&discoveryv3.DiscoveryRequest{TypeUrl: secretType, ResourceNames: []string{ownSecret}, ResponseNonce: first.Nonce, VersionInfo: first.VersionInfo}); err != nil {
		t.Fatal(err)
	}
	next <- credential("two")
	second, secret := receive(own)
	if got := string(secret.GetTlsCertificate().GetCertificateChain().GetInlineBytes()); got != "two" || second.VersionInfo == first.VersionInfo || second.Nonce == first.Nonce {
		t.Errorf("after renewal the chain is %q", got)
	}
	_, _ = receive(roots) // as the second came with its roots

	another := newAuthority(t)
	mount.Write(t, map[string][]byte{"root-cert.pem": []byte(mounted.Roots() + another.Roots())})
	for { // of a change that is written in steps the last counts
		_, secret = receive(roots)
		if bytes.Contains(secret.GetValidationContext().GetTrustedCa().GetInlineBytes(), []byte(another.Roots())) {
			break
		}
	}
	late := open(ownSecret)
	if _, secret = receive(late); string(secret.GetTlsCertificate().GetCertificateChain().GetInlineBytes()) != "two" {
		t.Error("a new stream does not get the present secret")
	}
}

// When the mounted roots lack the one that the certificate is under, another certificate is asked for.
func TestRootReplaced(t *testing.T) {
	first, second := newAuthority(t), newAuthority(t)
	mount := meshtest.Mount(t.TempDir())
	content := func(roots string) map[string][]byte { return map[string][]byte{"root-cert.pem": []byte(roots)} }
	mount.Write(t, content(first.Roots()))
	signing := make(chan *identity.Authority, 2)
	signing <- first
	rotation := identity.NewRotation(func(ctx context.Context) (identity.Credential, error) {
		select {
		case a := <-signing:
			return identity.Obtain(ctx, signer{a}, time.Hour)
		case <-ctx.Done():
			return identity.Credential{}, ctx.Err()
		}
	}, slog.New(slog.DiscardHandler))
	_, _, had := rotation.Current()
	ctx, cancel := context.WithCancel(t.Context())
	sds := newSecrets(rotation, filepath.Join(string(mount), "root-cert.pem"), slog.New(slog.DiscardHandler))
	var running sync.WaitGroup
	running.Go(func() { rotation.Run(ctx) })
	running.Go(func() { sds.followRoot(ctx) })
	running.Go(func() { sds.stayUnder(ctx) })
	t.Cleanup(running.Wait)
	t.Cleanup(cancel)
	<-had
	_, _, another := rotation.Current()
	signing <- second
	mount.Write(t, content(second.Roots()))
	<-another
	if c, _, _ := rotation.Current(); !c.Under([]byte(second.Roots())) {
		t.Error("the other certificate is not under the other root")
	}
}

// A control plane that is about to end may sign under the root of before, when the mount has the other one already: it is asked
// again, in some seconds and not all the time.
func TestRootReplacedBeforeThePlane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := newAuthority(t), newAuthority(t)
		root := filepath.Join(t.TempDir(), "root-cert.pem")
		write(t, root, first.Roots())
		var signing atomic.Pointer[identity.Authority]
		signing.Store(first)
		var asked atomic.Int64
		rotation := identity.NewRotation(func(ctx context.Context) (identity.Credential, error) {
			asked.Add(1)
			return identity.Obtain(ctx, signer{signing.Load()}, time.Hour)
		}, slog.New(slog.DiscardHandler))
		s := &secrets{rotation: rotation, root: root, log: slog.New(slog.DiscardHandler), changed: make(chan struct{})}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		defer running.Wait()
		defer cancel()
		running.Go(func() { rotation.Run(ctx) })
		running.Go(func() { s.stayUnder(ctx) })
		synctest.Wait()
		if n := asked.Load(); n != 1 {
			t.Fatalf("%d certificates at the start", n)
		}
		write(t, root, second.Roots())
		s.reread()
		time.Sleep(20 * time.Minute)
		synctest.Wait()
		if n := asked.Load(); n < 3 || n > 20 {
			t.Errorf("%d certificates in 20 minutes", n)
		}
		s.reread()
		time.Sleep(3 * time.Second)
		signing.Store(second)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if c, _, _ := rotation.Current(); !c.Under([]byte(second.Roots())) {
			t.Error("no certificate under the other root")
		}
		before := asked.Load()
		time.Sleep(20 * time.Minute) // less than half of its life
		synctest.Wait()
		if n := asked.Load(); n != before {
			t.Errorf("%d certificates more, though it is under the root", n-before)
		}
	})
}

// signer is a CA client that signs in place.
type signer struct{ authority *identity.Authority }

func (s signer) CreateCertificate(_ context.Context, in *securityv1.IstioCertificateRequest, _ ...grpc.CallOption) (*securityv1.IstioCertificateResponse, error) {
	chain, err := s.authority.Sign([]byte(in.Csr), mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}, time.Hour, time.Now())
	return &securityv1.IstioCertificateResponse{CertChain: chain}, err
}
