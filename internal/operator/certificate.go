package operator

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"sync/atomic"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

const (
	certificateName = "heddle-operator-webhook" // the Secret that all replicas serve from
	certificateLife = 365 * 24 * time.Hour
)

// certificate keeps the operator's serving certificate, signed by itself and renewed at two thirds of its life. Every replica
// runs one; they share a Secret, and of two that write it at once one loses and reads.
type certificate struct {
	client    client.Client
	live      client.Reader
	namespace string
	host      string // the name that the API server dials
	now       func() time.Time
	current   atomic.Pointer[tls.Certificate]
	ready     chan struct{} // closed once there is one to serve
}

// Get serves the certificate; it is tls.Config.GetCertificate.
func (c *certificate) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if cert := c.current.Load(); cert != nil {
		return cert, nil
	}
	return nil, errors.New("the operator has no certificate yet")
}

// Reconcile loads the Secret, and makes or renews it first where needed.
func (c *certificate) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	secret := &corev1.Secret{}
	err := c.live.Get(ctx, client.ObjectKey{Namespace: c.namespace, Name: certificateName}, secret)
	if client.IgnoreNotFound(err) != nil {
		return reconcile.Result{}, fmt.Errorf("read the certificate: %w", err)
	}
	pair, perr := tls.X509KeyPair(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
	if err != nil || perr != nil || !c.now().Before(renewal(pair.Leaf)) || pair.Leaf.VerifyHostname(c.host) != nil {
		return reconcile.Result{RequeueAfter: time.Nanosecond}, c.renew(ctx, secret)
	}
	if c.current.Swap(&pair) == nil {
		close(c.ready)
	}
	return reconcile.Result{RequeueAfter: renewal(pair.Leaf).Sub(c.now())}, nil
}

func renewal(leaf *x509.Certificate) time.Time {
	return leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) * 2 / 3)
}

// renew writes a new certificate; another replica's, written meanwhile, is as good.
func (c *certificate) renew(ctx context.Context, secret *corev1.Secret) error {
	crt, key, err := selfSigned(c.host, c.now())
	if err != nil {
		return fmt.Errorf("make a certificate: %w", err)
	}
	secret.Data = map[string][]byte{corev1.TLSCertKey: crt, corev1.TLSPrivateKeyKey: key}
	if secret.ResourceVersion == "" {
		secret.ObjectMeta = policyMeta(certificateName)
		secret.Namespace, secret.Type = c.namespace, corev1.SecretTypeTLS
		err = c.client.Create(ctx, secret)
	} else {
		err = c.client.Update(ctx, secret)
	}
	if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("write the certificate: %w", err)
	}
	return nil
}

func selfSigned(host string, now time.Time) (crt, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: operatorName},
		NotBefore: now.Add(-2 * time.Minute), NotAfter: now.Add(certificateLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if ip := net.ParseIP(host); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return nil, nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), nil
}

// register writes the operator's own webhook configuration once the certificate is served where the API server will look
// for it. It belongs to the operator's ClusterRole, so that it never outlives the operator's manifests.
type register struct {
	client    client.Client
	live      client.Reader
	namespace string
	url       string // instead of the Service, for an operator outside the cluster; empty inside
	host      string
	prober    prober
}

// Reconcile follows the Secret of the certificate.
func (r *register) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	secret := &corev1.Secret{}
	if err := r.live.Get(ctx, client.ObjectKey{Namespace: r.namespace, Name: certificateName}, secret); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	bundle := secret.Data[corev1.TLSCertKey]
	if err := r.prober.chains(ctx, r.host, bundle); err != nil {
		return reconcile.Result{}, pending{err, time.Second / 2} // the Service gets its endpoint when we are ready
	}
	role := &rbacv1.ClusterRole{}
	if err := r.live.Get(ctx, client.ObjectKey{Name: operatorName}, role); err != nil {
		return reconcile.Result{}, fmt.Errorf("read the operator's own role: %w", err)
	}
	o := &admissionv1.ValidatingWebhookConfiguration{
		TypeMeta: typeMeta(admissionv1.SchemeGroupVersion.String(), "ValidatingWebhookConfiguration"), ObjectMeta: policyMeta(operatorName),
		Webhooks: []admissionv1.ValidatingWebhook{{
			Name: "istio.operator.heddle.dev",
			Rules: []admissionv1.RuleWithOperations{{
				Operations: []admissionv1.OperationType{admissionv1.Create, admissionv1.Update},
				Rule:       admissionv1.Rule{APIGroups: []string{"sailoperator.io"}, APIVersions: []string{"v1"}, Resources: spoken},
			}},
			MatchConditions: webhookConditions(r.namespace),
			FailurePolicy:   new(admissionv1.Fail), SideEffects: new(admissionv1.SideEffectClassNone),
			TimeoutSeconds: new(int32(5)), AdmissionReviewVersions: []string{"v1"},
			ClientConfig: admissionv1.WebhookClientConfig{CABundle: bundle},
		}},
	}
	o.OwnerReferences = []metav1.OwnerReference{{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: "ClusterRole", Name: role.Name, UID: role.UID}}
	if r.url != "" {
		o.Webhooks[0].ClientConfig.URL = &r.url
	} else {
		o.Webhooks[0].ClientConfig.Service = &admissionv1.ServiceReference{
			Namespace: r.namespace, Name: operatorName, Path: new("/validate"), Port: new(int32(443)),
		}
	}
	return reconcile.Result{}, writer{r.client, r.live, operatorOwner()}.write(ctx, o)
}

// webhookConditions keep the webhook from those who need not wait for it: what the operator writes follows what others asked
// for, and who does not change the spec, as the garbage collector, changes nothing that is judged.
func webhookConditions(namespace string) []admissionv1.MatchCondition {
	return []admissionv1.MatchCondition{
		{Name: "not-the-operator", Expression: "request.userInfo.username != 'system:serviceaccount:" + namespace + ":" + operatorAccount + "'"},
		{Name: "spec-changed", Expression: "request.operation == 'CREATE' || object.?spec != oldObject.?spec"},
	}
}

// prober asks what certificate is served somewhere.
type prober struct {
	dial func(ctx context.Context, network, address string) (net.Conn, error)
	port string
}

// chains returns nil if host serves a certificate for its own name that chains to one of the roots in bundle (PEM).
func (p prober) chains(ctx context.Context, host string, bundle []byte) error {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(bundle) {
		return fmt.Errorf("the root of %s holds no certificate", host)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := p.dial(ctx, "tcp", net.JoinHostPort(host, p.port))
	if err != nil {
		return fmt.Errorf("reach %s: %w", host, err)
	}
	defer conn.Close()
	if err := tls.Client(conn, &tls.Config{RootCAs: roots, ServerName: host, MinVersion: tls.VersionTLS12}).HandshakeContext(ctx); err != nil {
		return fmt.Errorf("the certificate that %s serves: %w", host, err)
	}
	return nil
}
