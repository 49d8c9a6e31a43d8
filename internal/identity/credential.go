package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"strings"
	"sync"
	"time"

	securityv1 "istio.io/api/security/v1alpha1"
)

// Credential is a workload's certificate, its key and the roots it trusts. It lives in memory only.
type Credential struct {
	Chain     []byte // PEM, leaf first, without roots
	Key       []byte // PEM, PKCS#8
	Roots     []byte // PEM bundle
	NotBefore time.Time
	NotAfter  time.Time
}

// Under reports whether the chain leads to one of the roots, a PEM bundle.
func (c Credential) Under(roots []byte) bool {
	certs, err := parseCerts(c.Chain)
	if err != nil || len(certs) == 0 {
		return false
	}
	v := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(),
		CurrentTime: c.NotAfter, // whose the chain is, not whether it has ended
		KeyUsages:   []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	v.Roots.AppendCertsFromPEM(roots)
	for _, above := range certs[1:] {
		v.Intermediates.AddCert(above)
	}
	_, err = certs[0].Verify(v)
	return err == nil
}

// LogValue keeps the key out of logs.
func (c Credential) LogValue() slog.Value {
	return slog.GroupValue(slog.Time("notBefore", c.NotBefore), slog.Time("notAfter", c.NotAfter))
}

// Obtain makes a key and has it signed by the mesh's CA for a life of ttl. Whose identity it is, the CA decides by the
// token that the client's connection carries.
func Obtain(ctx context.Context, ca securityv1.IstioCertificateServiceClient, ttl time.Duration) (Credential, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Credential{}, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return Credential{}, err
	}
	resp, err := ca.CreateCertificate(ctx, &securityv1.IstioCertificateRequest{
		Csr:              string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})),
		ValidityDuration: int64(ttl / time.Second),
	})
	if err != nil {
		return Credential{}, fmt.Errorf("ask the CA for a certificate: %w", err)
	}
	chain := resp.GetCertChain()
	if len(chain) < 2 {
		return Credential{}, errors.New("the CA answered without its root")
	}
	roots := chain[len(chain)-1]
	pemChain := []byte(strings.Join(chain[:len(chain)-1], ""))
	certs, err := parseCerts(pemChain)
	if err != nil || len(certs) == 0 {
		return Credential{}, errors.Join(errors.New("the CA answered with a chain that cannot be read"), err)
	}
	if !key.PublicKey.Equal(certs[0].PublicKey) {
		return Credential{}, errors.New("the CA answered with a certificate for another key")
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return Credential{}, err
	}
	return Credential{
		Chain: pemChain, Key: keyPEM, Roots: []byte(roots),
		NotBefore: certs[0].NotBefore, NotAfter: certs[0].NotAfter,
	}, nil
}

// Retry of a credential that could not be had: doubled from the first to the last.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 5 * time.Second // the pace of recovery after an outage of the CA
)

// Rotation keeps a credential fresh: had at the start, renewed when 40 to 50 % of its life is over, at random, so that
// pods that began together do not ask together; kept until its end when renewal is impossible.
type Rotation struct {
	obtain func(context.Context) (Credential, error)
	log    *slog.Logger
	due    chan struct{} // holds a token when there is to be another before its time

	mu      sync.Mutex // guards the fields below
	current Credential
	changed chan struct{} // closed when current is replaced
}

// NewRotation returns a rotation whose credentials come from obtain.
func NewRotation(obtain func(context.Context) (Credential, error), log *slog.Logger) *Rotation {
	return &Rotation{obtain: obtain, log: log, due: make(chan struct{}, 1), changed: make(chan struct{})}
}

// Renew has another credential be had now; the present one is kept until then.
func (r *Rotation) Renew() {
	select {
	case r.due <- struct{}{}:
	default:
	}
}

// Current returns the credential, false before the first, and a channel that is closed when there is another.
func (r *Rotation) Current() (c Credential, ok bool, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.current, !r.current.NotAfter.IsZero(), r.changed
}

// Run rotates until ctx ends.
func (r *Rotation) Run(ctx context.Context) {
	retry := firstRetry
	for {
		c, err := r.obtain(ctx)
		wait := retry/2 + mathrand.N(retry/2)
		if err == nil {
			r.set(c)
			retry = firstRetry
			half := time.Until(c.NotAfter) / 2
			wait = max(half-time.Duration(mathrand.Float64()*float64(half)/5), firstRetry) // a clock far off must not make a storm
		} else if ctx.Err() == nil {
			r.log.LogAttrs(ctx, slog.LevelWarn, "certificate not obtained", slog.Any("err", err), slog.Duration("retry", wait))
			retry = min(2*retry, lastRetry)
		}
		select {
		case <-ctx.Done():
			return
		case <-r.due:
		case <-time.After(wait):
		}
	}
}

func (r *Rotation) set(c Credential) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.current = c
	close(r.changed)
	r.changed = make(chan struct{})
}
