//go:build e2e

package control

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/meshtest"
)

// A namespace leaves, and within 5 s no member takes a new connection of its workloads by mutual TLS, though their
// certificates are good for a day and they have tickets of earlier sessions; members keep the connections that they have with
// each other. It comes back, and its workloads are let in again.
func TestLeavers(t *testing.T) {
	for name, delta := range map[string]bool{"delta": true, "state of the world": false} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, delta)
			l.serve(t)
			member, leaver := l.peer(t, "shop"), l.peer(t, "left")
			if err := leaver.call(t); err == nil {
				t.Fatal("who never joined is let in")
			}
			ours := mesh.ObjectKey{Cluster: labCluster, Name: "left"}
			l.Trusted.Set(ours, struct{}{})
			leaver.await(t, true)
			if c, err := leaver.dial(t); err != nil || !c.ConnectionState().DidResume {
				t.Fatalf("%v: no session is resumed, so that it can't be seen that none is", err)
			}
			open, err := member.dial(t)
			if err == nil {
				err = open.get()
			}
			if err != nil {
				t.Fatal(err)
			}
			listeners, sent := l.proxies["server"].Stats(t, "listener_manager"), l.server.Stats()

			began := time.Now()
			l.Trusted.Delete(ours)
			leaver.await(t, false)
			took := time.Since(began)
			if took > 5*time.Second {
				t.Errorf("who left is refused after %v, not within 5 s", took)
			}
			for range 3 {
				if err := leaver.call(t); err == nil {
					t.Error("who left is let in again")
				}
			}
			if err := member.call(t); err != nil {
				t.Errorf("a new connection of a member: %v", err)
			}
			if err := open.get(); err != nil {
				t.Errorf("a member's connection of before: %v", err)
			}
			for stat, n := range l.proxies["server"].Stats(t, "listener_manager") {
				if n != listeners[stat] {
					t.Errorf("%s was %d and is %d: listeners were touched", stat, listeners[stat], n)
				}
			}
			now := l.server.Stats()
			if n := now.Sent - sent.Sent; n != uint64(len(l.proxies)) {
				t.Errorf("%d responses to %d proxies", n, len(l.proxies))
			}
			t.Logf("refused after %v; %d bytes for each proxy", took, (now.Bytes-sent.Bytes)/uint64(len(l.proxies)))

			l.Trusted.Set(ours, struct{}{})
			leaver.await(t, true)
		})
	}
}

// peer calls the server pod's proxy as a sidecar does, with a certificate of the mesh. It keeps tickets of its sessions.
type peer struct {
	lab *lab
	tls *tls.Config
}

func (l *lab) peer(t *testing.T, namespace string) *peer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	id := mesh.Identity{TrustDomain: mesh.DefaultTrustDomain, Namespace: namespace, ServiceAccount: "caller"}
	chain, err := l.authority.Sign(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}), id, 0, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	leaf, _ := pem.Decode([]byte(chain[0]))
	return &peer{l, &tls.Config{
		Certificates:       []tls.Certificate{{Certificate: [][]byte{leaf.Bytes}, PrivateKey: key}},
		NextProtos:         []string{"istio-http/1.1", "http/1.1"},
		ServerName:         "outbound_.80_._.web.shop.svc.cluster.local",
		InsecureSkipVerify: true, // it is the server's choice that is looked at
		ClientSessionCache: tls.NewLRUClientSessionCache(1),
	}}
}

// call makes one request on a new connection.
func (p *peer) call(t *testing.T) error {
	t.Helper()
	c, err := p.dial(t)
	if err != nil {
		return err
	}
	return c.Close()
}

// await waits until the server lets p in, or does not.
func (p *peer) await(t *testing.T, in bool) {
	t.Helper()
	meshtest.Await(t, fmt.Sprintf("the server to let a peer in: %v", in), func() (bool, string) {
		err := p.call(t)
		return (err == nil) == in, fmt.Sprint(err)
	})
}

// visit is an open connection.
type visit struct {
	*tls.Conn
	read *bufio.Reader
}

// dial connects and makes one request: only the first answer shows that the server has taken the certificate.
func (p *peer) dial(t *testing.T) (*visit, error) {
	t.Helper()
	raw, err := p.lab.hub.Dial(t.Context(), "tcp", net.JoinHostPort(p.lab.target.Addresses[0].String(), "8080"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	s := &visit{Conn: tls.Client(raw, p.tls)}
	s.read = bufio.NewReader(s)
	return s, s.get()
}

func (s *visit) get() error {
	if err := s.SetDeadline(time.Now().Add(meshtest.Wait)); err != nil {
		return err
	}
	if _, err := io.WriteString(s, "GET / HTTP/1.1\r\nHost: web.shop\r\n\r\n"); err != nil {
		return err
	}
	r, err := http.ReadResponse(s.read, nil)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if _, err = io.Copy(io.Discard, r.Body); err == nil && r.StatusCode != http.StatusOK {
		err = fmt.Errorf("answer %s", r.Status)
	}
	return err
}
