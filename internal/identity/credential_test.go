package identity

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	securityv1 "istio.io/api/security/v1alpha1"
)

// local is a CA client that signs in place, with the present time of its bubble.
type local struct{ authority *Authority }

func (l *local) CreateCertificate(_ context.Context, in *securityv1.IstioCertificateRequest, _ ...grpc.CallOption) (*securityv1.IstioCertificateResponse, error) {
	chain, err := l.authority.Sign([]byte(in.Csr), web, time.Duration(in.ValidityDuration)*time.Second, time.Now())
	return &securityv1.IstioCertificateResponse{CertChain: chain}, err
}

func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := &local{authority: newRoot(t, time.Now())}
		var up atomic.Bool
		var asked atomic.Int32
		r := NewRotation(func(ctx context.Context) (Credential, error) {
			asked.Add(1)
			if !up.Load() {
				return Credential{}, errors.New("down")
			}
			return Obtain(ctx, ca, 2*time.Minute)
		}, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { r.Run(ctx); close(done) }()

		time.Sleep(time.Second) // a bubble's time
		_, ok, changed := r.Current()
		if ok || asked.Load() < 3 {
			t.Fatalf("credential without a CA: %v, asked %d times", ok, asked.Load())
		}
		up.Store(true)
		<-changed
		first, _, changed := r.Current()
		if life := time.Until(first.NotAfter); life > 2*time.Minute || life <= 2*time.Minute-time.Second { // X.509 knows whole seconds
			t.Errorf("the leaf lives for %s", life)
		}
		start := time.Now()
		<-changed
		if age := time.Since(start); age < 47*time.Second || age > 61*time.Second {
			t.Errorf("renewed after %s of 2 m", age)
		}
		second, _, changed := r.Current()
		if bytes.Equal(first.Key, second.Key) {
			t.Error("renewed with the old key")
		}

		up.Store(false)
		time.Sleep(90 * time.Second)
		if c, ok, _ := r.Current(); !ok || !bytes.Equal(c.Chain, second.Chain) {
			t.Error("the old credential is not kept while the CA is away")
		}
		up.Store(true)
		start = time.Now()
		<-changed
		if wait := time.Since(start); wait > lastRetry {
			t.Errorf("recovered after %s", wait)
		}
		cancel()
		<-done
	})
}

// A credential is had before its time when that is asked for, once for any number of times that nobody has come to.
func TestRenew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, other := &local{authority: newRoot(t, time.Now())}, newRoot(t, time.Now())
		asked := 0
		r := NewRotation(func(ctx context.Context) (Credential, error) {
			asked++
			return Obtain(ctx, ca, 24*time.Hour)
		}, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { r.Run(ctx); close(done) }()
		synctest.Wait()
		before, _, _ := r.Current()
		for roots, want := range map[string]bool{
			ca.authority.Roots(): true, other.Roots() + ca.authority.Roots(): true, other.Roots(): false, "": false,
		} {
			if got := before.Under([]byte(roots)); got != want {
				t.Errorf("under %q: %v", roots, got)
			}
		}
		if (Credential{}).Under([]byte(other.Roots())) {
			t.Error("nothing is under a root")
		}
		ca.authority = other
		r.Renew()
		synctest.Wait()
		if now, _, _ := r.Current(); asked != 2 || !now.Under([]byte(other.Roots())) {
			t.Errorf("asked %d times", asked)
		}
		cancel()
		<-done
	})
}

func TestCredentialHidesItsKey(t *testing.T) {
	c, err := Obtain(t.Context(), &local{authority: newRoot(t, time.Now())}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("have", slog.Any("credential", c))
	if !strings.Contains(log.String(), "notAfter") || strings.Contains(log.String(), "PRIVATE") {
		t.Errorf("logged %s", log.String())
	}
}

// answer is a CA that answers what it is told.
type answer []string

func (a answer) CreateCertificate(context.Context, *securityv1.IstioCertificateRequest, ...grpc.CallOption) (*securityv1.IstioCertificateResponse, error) {
	return &securityv1.IstioCertificateResponse{CertChain: a}, nil
}

func TestObtainChecksTheAnswer(t *testing.T) {
	a := newRoot(t, time.Now())
	foreign, err := a.Sign(request(t, &x509.CertificateRequest{}), web, 0, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for want, ca := range map[string]answer{
		"without its root": foreign[:1],
		"cannot be read":   {"x", "y"},
		"another key":      foreign,
	} {
		if _, err := Obtain(t.Context(), ca, 0); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want %q", err, want)
		}
	}
}
