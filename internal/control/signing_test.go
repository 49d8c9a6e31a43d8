package control

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	securityv1 "istio.io/api/security/v1alpha1"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/kube/kubetest"
	"github.com/heddle-mesh/heddle/internal/meshtest"
)

// signer is an authority as an administrator makes one.
type signer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// newSigner is signed by parent, or by itself.
func newSigner(t *testing.T, name string, parent *signer) *signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s := &signer{key: key, cert: &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}}
	if parent == nil {
		parent = s
	}
	der, err := x509.CreateCertificate(rand.Reader, s.cert, parent.cert, key.Public(), parent.key)
	if err != nil {
		t.Fatal(err)
	}
	if s.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *signer) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.cert.Raw})
}

// under is the data of Secret cacerts with s for its signer.
func (s *signer) under(t *testing.T, root *signer) map[string][]byte {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(s.key)
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{
		"ca-cert.pem": s.pem(), "ca-key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
		"root-cert.pem": root.pem(), "cert-chain.pem": s.pem(),
	}
}

// A rotated intermediate signs the next leaf and the plane's own certificate, without a restart; what does not fit is refused
// with a word of why, and the signer of before goes on.
func TestSigningMaterialFollowed(t *testing.T) {
	r := startPlane(t)
	secret := meshtest.Mount(t.TempDir())
	r.signing = string(secret)
	root := newSigner(t, "root", nil)
	first, second, foreign := newSigner(t, "first", root), newSigner(t, "second", root), newSigner(t, "foreign", nil)
	secret.Write(t, first.under(t, root))

	r.configure()
	r.put("shop", heddlev1alpha1.Member)
	r.api.Put("pods", cartPod("cart-1"))
	r.run(t)
	r.log.await(t, "msg=serving")
	conn := r.dial(t)
	ca := securityv1.NewIstioCertificateServiceClient(conn)
	signedBy := func(want *signer) {
		t.Helper()
		c, err := identity.Obtain(r.as(t, "shop", "cart-1"), ca, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		_, rest := pem.Decode(c.Chain)
		if !slices.Equal(rest, want.pem()) || !slices.Equal(c.Roots, root.pem()) {
			t.Errorf("above the leaf stands\n%swanted is %s\n%s", rest, want.cert.Subject, want.pem())
		}
		server, err := tls.Dial("tcp", r.addr+":15017", r.tls(t))
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		if got := server.ConnectionState().PeerCertificates[1]; !got.Equal(want.cert) {
			t.Errorf("the plane's own certificate is signed by %s, want %s", got.Subject, want.cert.Subject)
		}
	}
	signedBy(first)

	halfWritten := second.under(t, root)
	halfWritten["ca-key.pem"] = first.under(t, root)["ca-key.pem"]
	secret.Write(t, halfWritten)
	r.log.await(t, "private key does not match")
	signedBy(first)
	secret.Write(t, foreign.under(t, foreign))
	r.log.await(t, "are not the roots that the mesh's proxies trust")
	signedBy(first)
	secret.Write(t, nil)
	r.log.await(t, "cacerts is gone")
	signedBy(first)
	r.api.Await("an event", func() bool {
		return slices.ContainsFunc(r.api.Requests(), func(q kubetest.Request) bool {
			return strings.HasSuffix(q.Path, "/events") && strings.Contains(q.Body, "SigningMaterialRefused")
		})
	})

	secret.Write(t, second.under(t, root))
	r.log.await(t, "signing material taken")
	signedBy(second)
	if got := r.api.Get("configmaps", "shop", kube.RootConfigMap, "data", kube.RootKey); got != string(root.pem()) {
		t.Errorf("shop has root %v", got)
	}
	conn.Close()
	r.end(t)
}

// A directory that is written file by file, as without a kubelet, ends at what stands there in the end.
func TestSigningMaterialFileByFile(t *testing.T) {
	r := startPlane(t)
	r.signing = t.TempDir()
	root := newSigner(t, "root", nil)
	write := func(data map[string][]byte) {
		for _, name := range slices.Sorted(maps.Keys(data)) {
			if err := os.WriteFile(filepath.Join(r.signing, name), data[name], 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(newSigner(t, "first", root).under(t, root))
	r.configure()
	r.run(t)
	r.log.await(t, "msg=serving")
	write(newSigner(t, "second", root).under(t, root))
	r.log.await(t, `signer="CN=second"`)
	r.end(t)
}
