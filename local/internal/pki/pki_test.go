package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

func TestIssue(t *testing.T) {
	dir := t.TempDir()
	leaf := Leaf{
		Name: "node", CommonName: "system:node:n1", Organization: "system:nodes", Server: true,
		DNS: []string{"n1"}, Addrs: []netip.Addr{netip.MustParseAddr("10.1.2.3")},
	}
	issue := func() []byte {
		a, err := Open(dir, "ca")
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Issue(leaf); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(filepath.Join(dir, "node.crt"))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	first := issue()
	if !bytes.Equal(first, issue()) {
		t.Error("a second start made another certificate")
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "node.crt"), filepath.Join(dir, "node.key"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil || !roots.AppendCertsFromPEM(ca) {
		t.Fatalf("no authority: %v", err)
	}
	for _, tt := range []struct {
		name  string
		use   x509.ExtKeyUsage
		valid bool
	}{
		{"n1", x509.ExtKeyUsageServerAuth, true},
		{"10.1.2.3", x509.ExtKeyUsageServerAuth, true},
		{"n2", x509.ExtKeyUsageServerAuth, false},
		{"n1", x509.ExtKeyUsageClientAuth, false},
	} {
		_, err := pair.Leaf.Verify(x509.VerifyOptions{DNSName: tt.name, Roots: roots, KeyUsages: []x509.ExtKeyUsage{tt.use}})
		if (err == nil) != tt.valid {
			t.Errorf("%s for usage %v: %v, want valid: %v", tt.name, tt.use, err, tt.valid)
		}
	}
	if s := pair.Leaf.Subject; s.CommonName != leaf.CommonName || len(s.Organization) != 1 || s.Organization[0] != leaf.Organization {
		t.Errorf("subject %s", s)
	}
}

func TestHalfWrittenLeafIsMended(t *testing.T) {
	dir := t.TempDir()
	a, err := Open(dir, "ca")
	if err != nil {
		t.Fatal(err)
	}
	leaf := Leaf{Name: "l", CommonName: "l", Client: true}
	if err := a.Issue(leaf); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "l.crt")); err != nil { // killed after the key was written
		t.Fatal(err)
	}
	if err := a.Issue(leaf); err != nil {
		t.Fatal(err)
	}
	if _, err := tls.LoadX509KeyPair(filepath.Join(dir, "l.crt"), filepath.Join(dir, "l.key")); err != nil {
		t.Error(err)
	}
}
