// Package identity issues, rotates and checks the SPIFFE certificates of one mesh: its authority, the CA service that
// agents call, the checks that every caller of CA and xDS passes, and the credential that an agent keeps fresh.
package identity

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Keys of the Secrets that hold signing material: Istio's form, which istio-ca-secret and cacerts share, and the
// kubernetes.io/tls form of cacerts.
const (
	caCert    = "ca-cert.pem"
	caKey     = "ca-key.pem"
	rootCert  = "root-cert.pem"
	certChain = "cert-chain.pem"

	tlsCert = "tls.crt"
	tlsKey  = "tls.key"
	tlsRoot = "ca.crt"
)

const (
	rootLife    = 10 * 365 * 24 * time.Hour // Istio's; a self-signed root is replaced by hand
	defaultLife = 24 * time.Hour            // of a leaf whose asker names no life
	longestLife = 7 * 24 * time.Hour        // that a leaf is given: it outlives its pod, as nothing revokes it
	maxLife     = 90 * 24 * time.Hour       // an asker who names more is refused, as Istio refuses it
	skew        = 2 * time.Minute           // leaves begin this much earlier, for clocks that run behind
	maxCSR      = 64 << 10                  // bytes; an RSA-8192 request is 3 kB
)

// ErrExists is what Store.Create returns when another replica was first.
var ErrExists = errors.New("the signing material exists already")

// ErrBadRequest marks what Sign refuses for a fault of the asker's.
var ErrBadRequest = errors.New("bad certificate request")

// Store keeps the self-signed root of a mesh where its replicas and its next start find it: Secret istio-ca-secret of
// type istio.io/ca-root.
type Store interface {
	// Load returns the data, or nil if there is none yet.
	Load(ctx context.Context) (map[string][]byte, error)
	// Create writes the data, or returns ErrExists.
	Create(ctx context.Context, data map[string][]byte) error
}

// Authority signs the certificates of one mesh. Its signing certificate can be replaced; its roots stay. It is safe for
// concurrent use.
type Authority struct {
	plugged bool // the material is an administrator's
	current atomic.Pointer[material]
}

// material is what an authority signs with at one time; immutable.
type material struct {
	key          crypto.Signer
	cert         *x509.Certificate
	intermediate []string // PEM, one each: the signing certificate and those above it, without roots
	trusted      []*x509.Certificate
	roots        string // the same, a PEM bundle
}

// Open returns the authority over the given files (those of the directory that Secret cacerts is mounted at; none is the
// usual case), or else over the mesh's own root in the store, which it makes if nobody has.
// Material that is there in part is refused with the names of what lacks: signing with another root than the
// administrator's would be worse than not starting.
func Open(ctx context.Context, files map[string][]byte, store Store, trustDomain string, now time.Time) (*Authority, error) {
	given, err := istioForm(files)
	if err != nil {
		return nil, err
	}
	if given != nil {
		m, err := newMaterial(given, now)
		if err != nil {
			return nil, fmt.Errorf("read signing material of Secret cacerts: %w", err)
		}
		return newAuthority(m, true), nil
	}
	data, err := store.Load(ctx)
	if err == nil && data == nil {
		if data, err = selfSigned(trustDomain, now); err != nil {
			return nil, fmt.Errorf("make the mesh's root: %w", err)
		}
		if err = store.Create(ctx, data); errors.Is(err, ErrExists) {
			data, err = store.Load(ctx)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("keep the mesh's root: %w", err)
	}
	m, err := newMaterial(data, now)
	if err != nil {
		return nil, fmt.Errorf("read the mesh's root: %w", err)
	}
	return newAuthority(m, false), nil
}

func newAuthority(m *material, plugged bool) *Authority {
	a := &Authority{plugged: plugged}
	a.current.Store(m)
	return a
}

// Replace has the authority sign with the given files from now on, and reports whether they differ from what it signs with.
// On an error it goes on with what it has. Other roots are such an error: a certificate under a root that only some proxies
// trust yet is refused by the others. One caller at a time.
func (a *Authority) Replace(files map[string][]byte, now time.Time) (changed bool, err error) {
	given, err := istioForm(files)
	if err != nil {
		return false, err
	}
	if given == nil && a.plugged {
		return false, errors.New("secret cacerts is gone, and the next start would make another root for the mesh: create it again")
	}
	if given == nil {
		return false, nil
	}
	next, err := newMaterial(given, now)
	if err != nil {
		return false, fmt.Errorf("read signing material of Secret cacerts: %w", err)
	}
	have := a.current.Load()
	if added, gone := notAmong(have.trusted, next.trusted), notAmong(next.trusted, have.trusted); len(added)+len(gone) > 0 {
		return false, fmt.Errorf("%s of Secret cacerts adds %s and lacks %s: these are not the roots that the mesh's proxies trust. "+
			"Change a root in steps: give %s both roots and keep the signer, restart the control plane, and give it the new signer five minutes "+
			"later, when all pods have the roots; remove the old root and restart when all proxies have a certificate of the new signer",
			rootCert, subjects(added), subjects(gone), rootCert)
	}
	next.trusted, next.roots = have.trusted, have.roots // in one order, as members hold the text
	if next.cert.Equal(have.cert) && slices.Equal(next.intermediate, have.intermediate) {
		return false, nil
	}
	a.current.Store(next)
	return true, nil
}

// notAmong returns those of certs that are not among others.
func notAmong(others, certs []*x509.Certificate) []*x509.Certificate {
	return slices.DeleteFunc(slices.Clone(certs), func(c *x509.Certificate) bool { return slices.ContainsFunc(others, c.Equal) })
}

func subjects(certs []*x509.Certificate) string {
	if len(certs) == 0 {
		return "nothing"
	}
	var out []string
	for _, c := range certs {
		out = append(out, fmt.Sprintf("%q (serial %x)", c.Subject, c.SerialNumber))
	}
	return strings.Join(out, ", ")
}

// istioForm returns the files under Istio's keys, nil if there are none.
func istioForm(files map[string][]byte) (map[string][]byte, error) {
	keys := []string{caCert, caKey, rootCert, certChain}
	if len(files[tlsCert]) > 0 {
		keys = []string{tlsCert, tlsKey, tlsRoot}
	}
	missing := slices.DeleteFunc(slices.Clone(keys), func(k string) bool { return len(files[k]) > 0 })
	switch {
	case len(missing) == len(keys):
		return nil, nil
	case len(missing) > 0:
		return nil, fmt.Errorf("secret cacerts lacks %s: give all of %s, or delete it to let the mesh make its own root",
			strings.Join(missing, ", "), strings.Join(keys, ", "))
	case keys[0] == tlsCert: // tls.crt may carry its intermediates
		return map[string][]byte{caCert: files[tlsCert], caKey: files[tlsKey], rootCert: files[tlsRoot], certChain: files[tlsCert]}, nil
	}
	return files, nil
}

func selfSigned(trustDomain string, now time.Time) (map[string][]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		Subject:   pkix.Name{Organization: []string{trustDomain}},
		NotBefore: now.Add(-skew), NotAfter: now.Add(rootLife),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	cert := []byte(encodeCert(der))
	return map[string][]byte{caCert: cert, caKey: keyPEM, rootCert: cert, certChain: {}, "key.pem": {}}, nil
}

// newMaterial reads data in Istio's form and checks that key, certificate, chain and root belong together.
func newMaterial(data map[string][]byte, now time.Time) (*material, error) {
	pair, err := tls.X509KeyPair(data[caCert], data[caKey]) // PKCS#1, PKCS#8 and SEC 1; key and certificate match
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %w", caCert, caKey, err)
	}
	cert := pair.Leaf
	if !cert.IsCA {
		return nil, fmt.Errorf("%s (%s) is not the certificate of an authority: basic constraint CA is false", caCert, cert.Subject)
	}
	roots, err := parseCerts(data[rootCert])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", rootCert, err)
	}
	above, err := parseCerts(data[certChain])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", certChain, err)
	}
	m := &material{key: pair.PrivateKey.(crypto.Signer), cert: cert, trusted: roots}
	v := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(),
		CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	for _, r := range roots {
		v.Roots.AddCert(r)
		m.roots += encodeCert(r.Raw)
	}
	seen := slices.Clone(roots)
	for _, c := range append([]*x509.Certificate{cert}, above...) {
		if !slices.ContainsFunc(seen, c.Equal) {
			seen = append(seen, c)
			v.Intermediates.AddCert(c)
			m.intermediate = append(m.intermediate, encodeCert(c.Raw))
		}
	}
	if _, err := cert.Verify(v); err != nil {
		return nil, fmt.Errorf("%s does not lead to %s: %w", caCert, rootCert, err)
	}
	return m, nil
}

// Roots returns the bundle that the mesh's workloads trust, in PEM: what ConfigMap istio-ca-root-cert holds.
func (a *Authority) Roots() string { return a.current.Load().roots }

// NotAfter returns the end of the signing certificate; no leaf outlives it.
func (a *Authority) NotAfter() time.Time { return a.current.Load().cert.NotAfter }

// Signer names the signing certificate.
func (a *Authority) Signer() string { return a.current.Load().cert.Subject.String() }

// Sign answers a PEM request with the certificate of id for the request's public key; nothing else in the request counts.
// It returns, each in PEM, the leaf, every intermediate, and last the whole root bundle, as agents expect them.
// The leaf lives for ttl (24 h if ttl is not positive), at most seven days, and ends with the signer at the latest.
// Faults of the request wrap ErrBadRequest.
func (a *Authority) Sign(csr []byte, id mesh.Identity, ttl time.Duration, now time.Time) ([]string, error) {
	if ttl <= 0 {
		ttl = defaultLife
	}
	if ttl > maxLife {
		return nil, fmt.Errorf("%w: a life of %s is asked, at most %s is given", ErrBadRequest, ttl, maxLife)
	}
	ttl = min(ttl, longestLife)
	key, err := publicKey(csr)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadRequest, err)
	}
	uri, err := url.Parse(id.String())
	if err != nil {
		return nil, fmt.Errorf("write identity %q as a URI: %w", id, err)
	}
	m := a.current.Load()
	leaf, err := m.leaf(&x509.Certificate{URIs: []*url.URL{uri}}, key, ttl, now)
	if err != nil {
		return nil, err
	}
	return append(append([]string{encodeCert(leaf.Raw)}, m.intermediate...), m.roots), nil
}

// publicKey returns the key of a request whose sender holds its private half, if the key is strong enough.
func publicKey(csr []byte) (any, error) {
	if len(csr) > maxCSR {
		return nil, fmt.Errorf("%d bytes, at most %d are read", len(csr), maxCSR)
	}
	block, _ := pem.Decode(csr)
	if block == nil || !strings.HasSuffix(block.Type, "CERTIFICATE REQUEST") {
		return nil, errors.New("not a certificate request in PEM")
	}
	req, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	switch k := req.PublicKey.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < 2048 || n > 8192 { // above, checking the signature is a way to burn our time
			return nil, fmt.Errorf("RSA key of %d bits; 2048 to 8192 are accepted", n)
		}
	case *ecdsa.PublicKey:
		if k.Params().BitSize < 256 {
			return nil, fmt.Errorf("key on curve %s; P-256 or stronger is accepted", k.Params().Name)
		}
	}
	if err := req.CheckSignature(); err != nil {
		return nil, err
	}
	return req.PublicKey, nil
}

// leaf signs t, in which the names are set, for key.
func (m *material) leaf(t *x509.Certificate, key any, ttl time.Duration, now time.Time) (*x509.Certificate, error) {
	if !now.Before(m.cert.NotAfter) {
		return nil, fmt.Errorf("the signing certificate of the mesh ended at %s", m.cert.NotAfter.Format(time.RFC3339))
	}
	t.NotBefore, t.NotAfter = now.Add(-skew), now.Add(ttl)
	if t.NotAfter.After(m.cert.NotAfter) {
		t.NotAfter = m.cert.NotAfter
	}
	t.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	t.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, t, m.cert, key, m.key) // with an empty subject the SAN is critical
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

// ServingNames returns the names by which agents and the API server reach the plane of a revision.
func ServingNames(namespace, revision string, more ...string) []string {
	names := []string{"istiod." + namespace + ".svc", "istiod-remote." + namespace + ".svc", "istio-pilot." + namespace + ".svc"}
	if revision != "" && revision != "default" {
		names = append(names, "istiod-"+revision+"."+namespace+".svc")
	}
	for _, m := range more {
		if m != "" && !slices.Contains(names, m) {
			names = append(names, m)
		}
	}
	return names
}

// Serving is a server's own certificate, signed by its authority and made anew at a handshake after half of its life, or when
// the authority signs with another certificate. So it needs no timer, and an idle plane does nothing. Safe for concurrent use.
type Serving struct {
	authority *Authority
	names     []string
	now       func() time.Time

	mu      sync.Mutex // guards the fields below
	cert    *tls.Certificate
	by      *material // signed cert
	renewAt time.Time
}

// Serving returns a certificate for the DNS names; now is the clock.
func (a *Authority) Serving(names []string, now func() time.Time) *Serving {
	return &Serving{authority: a, names: names, now: now}
}

// GetCertificate is for tls.Config. When renewal is impossible, the old certificate serves until its end.
func (s *Serving) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, by := s.now(), s.authority.current.Load()
	if s.cert != nil && s.by == by && now.Before(s.renewAt) {
		return s.cert, nil
	}
	cert, err := by.serve(s.names, now)
	if err != nil {
		if s.cert != nil && now.Before(s.cert.Leaf.NotAfter) {
			return s.cert, nil
		}
		return nil, err
	}
	s.cert, s.by, s.renewAt = cert, by, now.Add(cert.Leaf.NotAfter.Sub(now)/2)
	return cert, nil
}

func (m *material) serve(names []string, now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	leaf, err := m.leaf(&x509.Certificate{DNSNames: names}, key.Public(), defaultLife, now)
	if err != nil {
		return nil, err
	}
	cert := &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	for _, c := range m.intermediate {
		block, _ := pem.Decode([]byte(c))
		cert.Certificate = append(cert.Certificate, block.Bytes)
	}
	return cert, nil
}

func encodeCert(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// parseCerts reads every certificate of a PEM bundle; other blocks and text between them are passed over.
func parseCerts(bundle []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for rest := bytes.TrimSpace(bundle); len(rest) > 0; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return certs, nil
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, c)
	}
	return certs, nil
}
