// Package pki makes the keys and certificates of a cluster. What exists is kept, so that a
// cluster started again on its old data is the same cluster.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// life of every certificate: a local cluster is taken down long before.
const life = 10 * 365 * 24 * time.Hour

// Authority signs leaves. Its files are NAME.crt and NAME.key.
type Authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Leaf is a certificate to issue, into the files NAME.crt and NAME.key.
type Leaf struct {
	Name           string
	CommonName     string
	Organization   string
	Server, Client bool
	DNS            []string
	Addrs          []netip.Addr
}

// Open loads the authority name from dir, or makes it.
func Open(dir, name string) (*Authority, error) {
	a := &Authority{dir: dir}
	key, err := openKey(dir, name)
	if err != nil {
		return nil, err
	}
	a.key = key
	der, err := readPEM(filepath.Join(dir, name+".crt"))
	if errors.Is(err, fs.ErrNotExist) {
		t := template(pkix.Name{CommonName: "heddle-local " + name})
		t.IsCA, t.BasicConstraintsValid = true, true
		t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature
		if der, err = x509.CreateCertificate(rand.Reader, t, t, key.Public(), key); err != nil {
			return nil, fmt.Errorf("make authority %s: %w", name, err)
		}
		err = writePEM(filepath.Join(dir, name+".crt"), "CERTIFICATE", der)
	}
	if err != nil {
		return nil, err
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("read authority %s: %w", name, err)
	}
	return a, nil
}

// Issue makes the leaves that do not exist yet.
func (a *Authority) Issue(leaves ...Leaf) error {
	for _, l := range leaves {
		if _, err := os.Stat(filepath.Join(a.dir, l.Name+".crt")); err == nil {
			continue
		}
		key, err := openKey(a.dir, l.Name)
		if err != nil {
			return err
		}
		t := template(pkix.Name{CommonName: l.CommonName})
		if l.Organization != "" {
			t.Subject.Organization = []string{l.Organization}
		}
		t.KeyUsage = x509.KeyUsageDigitalSignature
		if l.Server {
			t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		}
		if l.Client {
			t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
		}
		t.DNSNames = l.DNS
		for _, ip := range l.Addrs {
			t.IPAddresses = append(t.IPAddresses, net.IP(ip.AsSlice()))
		}
		der, err := x509.CreateCertificate(rand.Reader, t, a.cert, key.Public(), a.key)
		if err != nil {
			return fmt.Errorf("issue %s: %w", l.Name, err)
		}
		if err := writePEM(filepath.Join(a.dir, l.Name+".crt"), "CERTIFICATE", der); err != nil {
			return err
		}
	}
	return nil
}

// OpenKeyPair makes the pair NAME.key and NAME.pub in dir, unless it exists.
func OpenKeyPair(dir, name string) error {
	key, err := openKey(dir, name)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("encode public key %s: %w", name, err)
	}
	return writePEM(filepath.Join(dir, name+".pub"), "PUBLIC KEY", der)
}

func template(subject pkix.Name) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic("no random numbers: " + err.Error()) // crypto/rand does not fail
	}
	now := time.Now()
	return &x509.Certificate{SerialNumber: serial, Subject: subject, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(life)}
}

func openKey(dir, name string) (*ecdsa.PrivateKey, error) {
	path := filepath.Join(dir, name+".key")
	der, err := readPEM(path)
	if err == nil {
		key, err := x509.ParseECPrivateKey(der)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		return key, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key %s: %w", name, err)
	}
	if der, err = x509.MarshalECPrivateKey(key); err != nil {
		return nil, fmt.Errorf("encode key %s: %w", name, err)
	}
	return key, writePEM(path, "EC PRIVATE KEY", der)
}

func readPEM(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM; take the cluster down and up again", path)
	}
	return block.Bytes, nil
}

// writePEM replaces path in one step: a file is whole or not there.
func writePEM(path, kind string, der []byte) error {
	data := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
