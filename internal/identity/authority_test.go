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
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"maps"
	"math/big"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

var web = mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}

// memory is a Store; with a rival, another replica writes between Load and Create.
type memory struct{ data, rival map[string][]byte }

func (m *memory) Load(context.Context) (map[string][]byte, error) { return m.data, nil }

func (m *memory) Create(_ context.Context, data map[string][]byte) error {
	if m.rival != nil {
		m.data = m.rival
		return ErrExists
	}
	m.data = data
	return nil
}

func newRoot(t *testing.T, now time.Time) *Authority {
	t.Helper()
	a, err := Open(t.Context(), nil, &memory{}, "cluster.local", now)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// authority makes a certificate of an authority, signed by parent or by itself.
func authority(t *testing.T, name string, key crypto.Signer, parent *x509.Certificate, parentKey crypto.Signer, end time.Time) *x509.Certificate {
	t.Helper()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: end,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if parent == nil {
		parent, parentKey = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), parentKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func ec(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// plugged returns cacerts in Istio's form with one intermediate above the signer, whose key is RSA in PKCS#1.
func plugged(t *testing.T) map[string][]byte {
	t.Helper()
	end := time.Now().Add(48 * time.Hour)
	rootKey, midKey := ec(t), ec(t)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	root := authority(t, "root", rootKey, nil, nil, end)
	mid := authority(t, "mid", midKey, root, rootKey, end)
	signer := authority(t, "signer", key, mid, midKey, end)
	return map[string][]byte{
		caCert:    []byte(encodeCert(signer.Raw)),
		caKey:     pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}),
		rootCert:  []byte(encodeCert(root.Raw)),
		certChain: []byte(encodeCert(signer.Raw) + encodeCert(mid.Raw) + encodeCert(root.Raw)),
	}
}

func leafOf(t *testing.T, chain []string) *x509.Certificate {
	t.Helper()
	certs, err := parseCerts([]byte(chain[0]))
	if err != nil || len(certs) != 1 {
		t.Fatalf("leaf: %d certificates, %v", len(certs), err)
	}
	return certs[0]
}

func TestSelfSignedRootIsKept(t *testing.T) {
	now := time.Now()
	store := &memory{}
	first, err := Open(t.Context(), nil, store, "cluster.local", now)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(store.data[caCert], store.data[rootCert]) || len(store.data) != 5 || len(store.data[certChain]) != 0 {
		t.Errorf("kept are %v", slices.Collect(maps.Keys(store.data)))
	}
	again, err := Open(t.Context(), nil, store, "cluster.local", now)
	if err != nil || again.Roots() != first.Roots() {
		t.Errorf("the second start has another root, or: %v", err)
	}
	lost, err := Open(t.Context(), nil, &memory{rival: store.data}, "cluster.local", now)
	if err != nil || lost.Roots() != first.Roots() {
		t.Errorf("who lost the race has another root, or: %v", err)
	}
	if org := first.current.Load().cert.Subject.Organization; !slices.Equal(org, []string{"cluster.local"}) {
		t.Errorf("organization is %q", org)
	}
	if got := first.NotAfter().Sub(now).Round(time.Hour); got != rootLife {
		t.Errorf("root lives for %s", got)
	}
}

// Nothing revokes a leaf: whatever life is asked, it ends within a week.
func TestLongestLife(t *testing.T) {
	now := time.Now()
	a, err := Open(t.Context(), nil, &memory{}, "cluster.local", now)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.Sign(request(t, &x509.CertificateRequest{}), web, 90*24*time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	if end := leafOf(t, chain).NotAfter.Sub(now).Round(time.Hour); end != 7*24*time.Hour {
		t.Errorf("the leaf lives for %s", end)
	}
}

func TestPluggedMaterial(t *testing.T) {
	now := time.Now()
	files := plugged(t)
	a, err := Open(t.Context(), files, nil, "cluster.local", now)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.Sign(request(t, &x509.CertificateRequest{}), web, 90*24*time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	if len(chain) != 4 { // leaf, signer, mid, root bundle
		t.Fatalf("chain has %d elements", len(chain))
	}
	if chain[1] != string(files[caCert]) || chain[3] != string(files[rootCert]) || !strings.HasSuffix(chain[0], "\n") {
		t.Error("chain is not leaf, signer, intermediate, root")
	}
	leaf := leafOf(t, chain)
	if !leaf.NotAfter.Equal(a.NotAfter()) {
		t.Errorf("leaf ends at %s, its signer at %s", leaf.NotAfter, a.NotAfter())
	}
	roots, mids := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(chain[3]))
	mids.AppendCertsFromPEM([]byte(chain[1] + chain[2]))
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: mids, CurrentTime: now}); err != nil {
		t.Error(err)
	}

	tlsForm := map[string][]byte{tlsCert: files[certChain], tlsKey: files[caKey], tlsRoot: files[rootCert]}
	if b, err := Open(t.Context(), tlsForm, nil, "cluster.local", now); err != nil || !slices.Equal(b.current.Load().intermediate, a.current.Load().intermediate) {
		t.Errorf("kubernetes.io/tls form: %v", err)
	}
}

func TestPluggedMaterialRefused(t *testing.T) {
	now := time.Now()
	good, foreign := plugged(t), plugged(t)
	for _, tc := range []struct {
		name   string
		change func(map[string][]byte)
		want   string
	}{
		{"key missing", func(f map[string][]byte) { delete(f, caKey) }, "lacks ca-key.pem"},
		{"two missing", func(f map[string][]byte) { delete(f, rootCert); f[certChain] = nil }, "lacks root-cert.pem, cert-chain.pem"},
		{"tls form without root", func(f map[string][]byte) { f[tlsCert] = f[caCert] }, "lacks tls.key, ca.crt"},
		{"another's key", func(f map[string][]byte) { f[caKey] = foreign[caKey] }, "private key does not match"},
		{"another's root", func(f map[string][]byte) { f[rootCert] = foreign[rootCert] }, "does not lead to root-cert.pem"},
		{"no root in it", func(f map[string][]byte) { f[rootCert] = []byte("x") }, "does not lead to root-cert.pem"},
		{"intermediate missing", func(f map[string][]byte) { f[certChain] = f[caCert] }, "does not lead to root-cert.pem"},
		{"not an authority", func(f map[string][]byte) {
			a, err := Open(t.Context(), good, nil, "", now)
			if err != nil {
				t.Fatal(err)
			}
			cert, err := a.current.Load().serve([]string{"x"}, now)
			if err != nil {
				t.Fatal(err)
			}
			key, err := encodeKey(cert.PrivateKey.(crypto.Signer))
			if err != nil {
				t.Fatal(err)
			}
			f[caCert], f[caKey] = []byte(encodeCert(cert.Leaf.Raw)), key
		}, "is not the certificate of an authority"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			files := maps.Clone(good)
			tc.change(files)
			if _, err := Open(t.Context(), files, &memory{}, "cluster.local", now); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error is %v, want %q", err, tc.want)
			}
		})
	}
	if _, err := Open(t.Context(), good, nil, "", now.Add(100*time.Hour)); err == nil {
		t.Error("an expired signer is taken")
	}
}

// A hostile request gets the caller's own leaf, and nothing of what it asked.
func TestOnlyTheKeyOfARequestCounts(t *testing.T) {
	now := time.Now()
	a := newRoot(t, now)
	forged, _ := url.Parse("spiffe://cluster.local/ns/pay/sa/db")
	csr := request(t, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}}, URIs: []*url.URL{forged},
		DNSNames: []string{"istiod.istio-system.svc"}, IPAddresses: []net.IP{{10, 0, 0, 1}},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}},
	})
	chain, err := a.Sign(csr, web, 0, now)
	if err != nil {
		t.Fatal(err)
	}
	leaf := leafOf(t, chain)
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != web.String() || len(leaf.DNSNames)+len(leaf.IPAddresses) != 0 || leaf.IsCA || leaf.Subject.String() != "" {
		t.Errorf("leaf has URIs %v, names %v, CA %v, subject %q", leaf.URIs, leaf.DNSNames, leaf.IsCA, leaf.Subject)
	}
	san := slices.IndexFunc(leaf.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17}) })
	if !leaf.Extensions[san].Critical {
		t.Error("the SAN is not critical though the subject is empty")
	}
	if got := now.Sub(leaf.NotBefore).Round(time.Minute); got != skew {
		t.Errorf("leaf begins %s before now", got)
	}
	if got := leaf.NotAfter.Sub(now).Round(time.Minute); got != defaultLife {
		t.Errorf("leaf lives for %s", got)
	}
	if len(chain) != 2 || chain[1] != a.Roots() {
		t.Errorf("chain has %d elements", len(chain))
	}
}

func TestRefusedRequests(t *testing.T) {
	now := time.Now()
	a := newRoot(t, now)
	sign := func(key crypto.Signer) []byte {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	}
	weakRSA, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := request(t, &x509.CertificateRequest{})
	block, _ := pem.Decode(good)
	block.Bytes[len(block.Bytes)-1] ^= 1
	for name, tc := range map[string]struct {
		csr []byte
		ttl time.Duration
	}{
		"RSA 1024":            {sign(weakRSA), 0},
		"P-224":               {sign(p224), 0},
		"91 days":             {good, 91 * 24 * time.Hour},
		"signature broken":    {pem.EncodeToMemory(block), 0},
		"10 MiB":              {bytes.Repeat([]byte("x"), 10<<20), 0},
		"nothing":             {nil, 0},
		"certificate instead": {[]byte(a.Roots()), 0},
	} {
		if _, err := a.Sign(tc.csr, web, tc.ttl, now); !errors.Is(err, ErrBadRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := a.Sign(good, web, 0, a.NotAfter()); err == nil || errors.Is(err, ErrBadRequest) {
		t.Errorf("signer ended: %v", err)
	}
}

// The plane's certificate is renewed between two handshakes, and verifies under the name that agents dial.
func TestServingIsRenewed(t *testing.T) {
	start := time.Now()
	now := start
	a, err := Open(t.Context(), plugged(t), nil, "cluster.local", now)
	if err != nil {
		t.Fatal(err)
	}
	s := a.Serving(ServingNames("istio-system-1", "mesh-1"), func() time.Time { return now })
	get := func() *tls.Certificate {
		t.Helper()
		c, err := s.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	roots, mids := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(a.Roots()))
	for _, der := range get().Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		mids.AddCert(c)
	}
	if _, err := get().Leaf.Verify(x509.VerifyOptions{DNSName: "istiod-mesh-1.istio-system-1.svc", Roots: roots, Intermediates: mids, CurrentTime: now}); err != nil {
		t.Error(err)
	}
	first := get()
	if now = start.Add(11 * time.Hour); get() != first {
		t.Error("renewed before half of its life")
	}
	now = start.Add(13 * time.Hour)
	second := get()
	if second == first {
		t.Error("not renewed after half of its life")
	}
	now = a.NotAfter().Add(-time.Second)
	last := get()
	now = a.NotAfter().Add(time.Second)
	if c, err := s.GetCertificate(nil); err == nil {
		t.Errorf("serves %v after its end", c == last)
	}
}

// rotated returns cacerts with a new signer of the root.
func rotated(t *testing.T, name string, root *x509.Certificate, rootKey crypto.Signer, end time.Time) map[string][]byte {
	t.Helper()
	key := ec(t)
	cert := authority(t, name, key, root, rootKey, end)
	keyPEM, err := encodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{
		caCert: []byte(encodeCert(cert.Raw)), caKey: keyPEM, rootCert: []byte(encodeCert(root.Raw)), certChain: []byte(encodeCert(cert.Raw)),
	}
}

func verify(chain []string, roots string, now time.Time) error {
	certs, err := parseCerts([]byte(strings.Join(chain[:len(chain)-1], "")))
	if err != nil {
		return err
	}
	v := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: now}
	v.Roots.AppendCertsFromPEM([]byte(roots))
	for _, c := range certs[1:] {
		v.Intermediates.AddCert(c)
	}
	_, err = certs[0].Verify(v)
	return err
}

// A rotated signer signs the next leaf and the next handshake; leaves of the one before stay good, and nobody's roots change.
func TestReplace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rootKey, otherKey := ec(t), ec(t)
		end := time.Now().Add(48 * time.Hour)
		root, other := authority(t, "root", rootKey, nil, nil, end), authority(t, "other", otherKey, nil, nil, end)
		bundle := encodeCert(root.Raw) + encodeCert(other.Raw)
		both := func(f map[string][]byte, roots string) map[string][]byte {
			f[rootCert] = []byte(roots)
			return f
		}
		first := both(rotated(t, "first", root, rootKey, end), bundle)
		a, err := Open(t.Context(), first, nil, "cluster.local", time.Now())
		if err != nil {
			t.Fatal(err)
		}
		serving := a.Serving([]string{"x"}, time.Now)
		sign := func() []string {
			t.Helper()
			chain, err := a.Sign(request(t, &x509.CertificateRequest{}), web, time.Hour, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			return chain
		}
		served := func() *tls.Certificate {
			t.Helper()
			c, err := serving.GetCertificate(nil)
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		replace := func(files map[string][]byte, want bool) {
			t.Helper()
			if changed, err := a.Replace(files, time.Now()); err != nil || changed != want {
				t.Errorf("changed is %v, want %v: %v", changed, want, err)
			}
		}
		before, servedBefore := sign(), served()
		replace(first, false)
		if served() != servedBefore {
			t.Error("the serving certificate is made anew though nothing changed")
		}
		time.Sleep(time.Minute)
		second := both(rotated(t, "second", root, rootKey, end), bundle)
		third := both(rotated(t, "third", other, otherKey, end), encodeCert(other.Raw)+encodeCert(root.Raw)) // the same roots in another order
		for _, files := range []map[string][]byte{second, third} {
			replace(files, true)
			chain := sign()
			if chain[1] != string(files[caCert]) || verify(chain, bundle, time.Now()) != nil {
				t.Errorf("the next leaf is not of %s: %v", a.Signer(), verify(chain, bundle, time.Now()))
			}
			if a.Roots() != bundle || chain[len(chain)-1] != bundle {
				t.Error("the roots are others, or in another order")
			}
			if got := encodeCert(served().Certificate[1]); got != string(files[caCert]) {
				t.Error("the serving certificate is not of the new signer")
			}
			if err := verify(before, bundle, time.Now()); err != nil {
				t.Errorf("a leaf of before: %v", err)
			}
		}
	})
}

// What can't be signed with leaves the signer of before, and says what to do.
func TestReplaceRefused(t *testing.T) {
	rootKey, otherKey := ec(t), ec(t)
	end := time.Now().Add(48 * time.Hour)
	root, other := authority(t, "root", rootKey, nil, nil, end), authority(t, "other", otherKey, nil, nil, end)
	first := rotated(t, "first", root, rootKey, end)
	for name, tc := range map[string]struct {
		change func(map[string][]byte)
		want   string
	}{
		"half written":  {func(f map[string][]byte) { f[caKey] = first[caKey] }, "private key does not match"},
		"a key missing": {func(f map[string][]byte) { delete(f, certChain) }, "lacks cert-chain.pem"},
		"another chain": {func(f map[string][]byte) { f[rootCert] = []byte(encodeCert(other.Raw)) }, "does not lead to root-cert.pem"},
		"ended": {func(f map[string][]byte) {
			maps.Copy(f, rotated(t, "ended", root, rootKey, time.Now().Add(-time.Second)))
		}, "expired"},
		"gone":        {func(f map[string][]byte) { clear(f) }, "cacerts is gone"},
		"a new root":  {func(f map[string][]byte) { maps.Copy(f, rotated(t, "x", other, otherKey, end)) }, `adds "CN=other" (serial 1) and lacks "CN=root" (serial 1)`},
		"a root more": {func(f map[string][]byte) { f[rootCert] = append(f[rootCert], encodeCert(other.Raw)...) }, `adds "CN=other" (serial 1) and lacks nothing`},
		"a signer too early": {func(f map[string][]byte) {
			maps.Copy(f, rotated(t, "x", other, otherKey, end))
			f[rootCert] = append(f[rootCert], encodeCert(root.Raw)...)
		}, "give root-cert.pem both roots and keep the signer"},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := Open(t.Context(), first, nil, "cluster.local", time.Now())
			if err != nil {
				t.Fatal(err)
			}
			files := rotated(t, "second", root, rootKey, end)
			tc.change(files)
			if changed, err := a.Replace(files, time.Now()); changed || err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("changed is %v, error %v, want %q", changed, err, tc.want)
			}
			chain, err := a.Sign(request(t, &x509.CertificateRequest{}), web, time.Hour, time.Now())
			if err != nil || chain[1] != string(first[caCert]) || chain[2] != string(first[rootCert]) {
				t.Errorf("the signer of before does not go on: %v", err)
			}
		})
	}
	a := newRoot(t, time.Now())
	if changed, err := a.Replace(nil, time.Now()); changed || err != nil {
		t.Errorf("a mesh with its own root and no cacerts: %v, %v", changed, err)
	}
	if changed, err := a.Replace(first, time.Now()); changed || err == nil {
		t.Error("an administrator's root takes the place of the mesh's own at once")
	}
}

func FuzzSign(f *testing.F) {
	a, err := Open(context.Background(), nil, &memory{}, "cluster.local", time.Now())
	if err != nil {
		f.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"x"}}, key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n"))
	f.Fuzz(func(t *testing.T, csr []byte) {
		chain, err := a.Sign(csr, web, time.Hour, time.Now())
		if err != nil {
			return
		}
		leaf := leafOf(t, chain)
		if leaf.IsCA || len(leaf.URIs) != 1 || leaf.URIs[0].String() != web.String() || len(leaf.DNSNames) != 0 {
			t.Errorf("signed %+v", leaf)
		}
	})
}
