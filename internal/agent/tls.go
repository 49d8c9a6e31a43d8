package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// whoeverAnswers returns a client configuration that takes the certificate which the application shows just now, as the
// kubelet takes any on an HTTPS probe: the probe asks for life, in the agent's own pod, and sends no secret.
// The certificate is learnt from a first handshake, refused for the want of roots, so that verification is never off.
func whoeverAnswers(ctx context.Context, pod netip.Addr, address string) (*tls.Config, error) {
	first := &tls.Dialer{NetDialer: toApp(pod), Config: &tls.Config{RootCAs: x509.NewCertPool(), ServerName: pod.String(), MinVersion: tls.VersionTLS12}}
	conn, err := first.DialContext(ctx, "tcp", address)
	var unknown *tls.CertificateVerificationError
	if err == nil {
		_ = conn.Close()
		return nil, errors.New("a certificate verified without roots")
	}
	if !errors.As(err, &unknown) {
		return nil, err
	}
	leaf := unknown.UnverifiedCertificates[0]
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	c := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12, Time: func() time.Time { return leaf.NotBefore }}
	switch {
	case len(leaf.DNSNames) > 0:
		c.ServerName = leaf.DNSNames[0]
	case len(leaf.IPAddresses) > 0:
		c.ServerName = leaf.IPAddresses[0].String()
	default:
		return nil, fmt.Errorf("the application's certificate (%s) has no subject alternative name; probe it by tcpSocket", leaf.Subject)
	}
	return c, nil
}
