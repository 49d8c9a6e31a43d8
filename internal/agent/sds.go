package agent

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/heddle-mesh/heddle/internal/identity"
)

const (
	ownSecret  = "default" // the workload's certificate and key
	rootSecret = "ROOTCA"  // whom it trusts
	secretType = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
)

// secrets serves the workload's credential to Envoy over the pod's own socket, again whenever it is renewed, and the roots whenever
// those that are mounted change.
type secrets struct {
	secretv3.UnimplementedSecretDiscoveryServiceServer

	rotation *identity.Rotation
	root     string // file whose roots are trusted beside the CA's
	log      *slog.Logger
	watch    *identity.Mounted // of the file's directory; nil: it can't be watched

	mu      sync.Mutex // guards the fields below
	version int        // of the file
	changed chan struct{}
}

// newSecrets watches the file of roots from now on; who calls it calls followRoot and stayUnder. An agent that can't be told of
// changes tells Envoy of them with the next certificate.
func newSecrets(rotation *identity.Rotation, root string, log *slog.Logger) *secrets {
	watch, err := identity.Watch(filepath.Dir(root))
	if err != nil {
		log.Warn("changes of the mesh's root are taken with a new certificate only", slog.Any("err", err))
	}
	return &secrets{rotation: rotation, root: root, log: log, watch: watch, changed: make(chan struct{})}
}

// mounted returns the version of the file of roots, and a channel that is closed when there is another.
func (s *secrets) mounted() (version int, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.version, s.changed
}

// followRoot has Envoy told of roots whenever the file changes, until ctx ends.
func (s *secrets) followRoot(ctx context.Context) {
	if s.watch == nil {
		return
	}
	defer s.watch.Close()
	for {
		if err := s.watch.Changed(ctx); ctx.Err() != nil {
			return
		} else if err != nil {
			s.log.LogAttrs(ctx, slog.LevelWarn, "changes of the mesh's root may have been missed; it is read again", slog.Any("err", err))
		}
		s.reread()
	}
}

// reread has who waits for another version of the file read it.
func (s *secrets) reread() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	close(s.changed)
	s.changed = make(chan struct{})
}

// Waits for a control plane to sign under the mounted roots: doubled from the first to the last.
const (
	firstAsk = time.Second
	lastAsk  = 5 * time.Minute
)

// stayUnder has another certificate be had when the file has changed and the present one leads to none of its roots any more, until
// ctx ends: it is good for nobody who has the file alone. The connection to the control plane may still be to one that signs under
// the roots of before, so it is asked for again.
func (s *secrets) stayUnder(ctx context.Context) {
	_, changed := s.mounted()
	var again <-chan time.Time
	wait := firstAsk
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
			wait = firstAsk
		case <-again:
			wait = min(2*wait, lastAsk)
		}
		_, changed = s.mounted()
		again = nil
		roots, err := os.ReadFile(s.root)
		if c, ok, _ := s.rotation.Current(); err == nil && ok && !c.Under(roots) {
			s.log.LogAttrs(ctx, slog.LevelInfo, "the mesh has another root; a certificate under it is asked for")
			s.rotation.Renew()
			again = time.After(wait)
		}
	}
}

// StreamSecrets answers one Envoy stream. A secret that is not the agent's is answered by its absence, so that the
// listener which wants it is not held back for ever.
func (s *secrets) StreamSecrets(stream secretv3.SecretDiscoveryService_StreamSecretsServer) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	requests := make(chan *discoveryv3.DiscoveryRequest)
	ended := make(chan error, 1)
	go func() { // ends with the stream: gRPC fails Recv once this method returns
		for {
			r, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case requests <- r:
			case <-ctx.Done():
				return
			}
		}
	}()

	var names []string
	var changed, mounted <-chan struct{}
	nonce := 0
	send := func() error {
		credential, ok, next := s.rotation.Current()
		version, other := s.mounted()
		changed, mounted = next, nil
		if slices.Contains(names, rootSecret) {
			mounted = other
		}
		if len(names) == 0 || !ok {
			return nil
		}
		nonce++
		r := &discoveryv3.DiscoveryResponse{
			TypeUrl: secretType, Nonce: strconv.Itoa(nonce), VersionInfo: strconv.FormatInt(credential.NotAfter.UnixNano(), 36) + "." + strconv.Itoa(version),
		}
		for _, name := range names {
			if secret := s.secret(name, credential); secret != nil {
				any, err := anypb.New(secret)
				if err != nil {
					return err
				}
				r.Resources = append(r.Resources, any)
			}
		}
		return stream.Send(r)
	}
	for {
		select {
		case err := <-ended:
			return err
		case <-changed:
			if err := send(); err != nil {
				return err
			}
		case <-mounted:
			if err := send(); err != nil {
				return err
			}
		case r := <-requests:
			if e := r.GetErrorDetail(); e != nil {
				s.log.LogAttrs(ctx, slog.LevelError, "Envoy rejected a certificate", slog.String("err", e.GetMessage()))
			}
			if r.GetResponseNonce() != "" && slices.Equal(names, r.GetResourceNames()) {
				continue // an answer, nothing new asked
			}
			names = r.GetResourceNames()
			if err := send(); err != nil {
				return err
			}
		}
	}
}

func (s *secrets) secret(name string, c identity.Credential) *tlsv3.Secret {
	inline := func(b []byte) *corev3.DataSource {
		return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
	}
	switch name {
	case ownSecret:
		return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: inline(c.Chain), PrivateKey: inline(c.Key),
		}}}
	case rootSecret:
		roots := c.Roots
		if mounted, err := os.ReadFile(s.root); err == nil && !bytes.Contains(roots, bytes.TrimSpace(mounted)) {
			roots = slices.Concat(roots, mounted)
		}
		return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			TrustedCa: inline(roots),
		}}}
	}
	return nil
}
