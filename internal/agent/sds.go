package agent

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"slices"
	"strconv"

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

// secrets serves the workload's credential to Envoy over the pod's own socket, again whenever it is renewed.
type secrets struct {
	secretv3.UnimplementedSecretDiscoveryServiceServer

	rotation *identity.Rotation
	root     string // file whose roots are trusted beside the CA's
	log      *slog.Logger
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
	var changed <-chan struct{}
	nonce := 0
	send := func() error {
		credential, ok, next := s.rotation.Current()
		changed = next
		if len(names) == 0 || !ok {
			return nil
		}
		nonce++
		r := &discoveryv3.DiscoveryResponse{
			TypeUrl: secretType, Nonce: strconv.Itoa(nonce), VersionInfo: strconv.FormatInt(credential.NotAfter.UnixNano(), 36),
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
