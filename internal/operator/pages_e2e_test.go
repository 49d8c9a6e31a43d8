//go:build e2e

package operator

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// pages: a running operator, with its own rights, by the certificate that the API server knows it by: its pages are for tokens of its
// namespace that are for this, and a profile is taken where its Deployment says so, at once.
func (c *cluster) pages(t *testing.T) {
	hooks := &admissionv1.ValidatingWebhookConfiguration{}
	must(t, c.Get(t.Context(), client.ObjectKey{Name: operatorName}, hooks))
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(hooks.Webhooks[0].ClientConfig.CABundle)
	base := strings.TrimSuffix(*hooks.Webhooks[0].ClientConfig.URL, "/validate") + PagesPath
	caller := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}}
	call := func(method, page, token string) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, base+page, http.NoBody)
		must(t, err)
		r.Header.Set("Authorization", "Bearer "+token)
		answer, err := caller.Do(r)
		must(t, err)
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		must(t, err)
		return answer.StatusCode, string(body)
	}
	token := func(namespace string, audiences ...string) string {
		t.Helper()
		account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "default"}}
		c.until("there is an account in "+namespace, 20*time.Second, &corev1.ServiceAccountList{}, func() bool {
			return c.Get(t.Context(), client.ObjectKeyFromObject(account), &corev1.ServiceAccount{}) == nil
		})
		request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: audiences}}
		must(t, c.SubResource("token").Create(t.Context(), account, request))
		return request.Status.Token
	}
	c.namespace("stranger", nil)
	for what, text := range map[string]string{
		"no token": "", "a stranger's": token("stranger", "istio-ca"), "one for the API server": token(Namespace),
	} {
		if code, body := call(http.MethodPut, "log?level=debug", text); code != http.StatusUnauthorized {
			t.Errorf("%s: %d %s", what, code, body)
		}
	}
	ours := token(Namespace, "istio-ca")
	for _, x := range []struct{ method, want string }{{http.MethodPut, `"level":"debug"`}, {http.MethodDelete, `"level":"info"`}} {
		if code, body := call(x.method, "log?level=debug", ours); code != http.StatusOK || !strings.Contains(body, x.want) {
			t.Errorf("%s: %d %s, want %s", x.method, code, body, x.want)
		}
	}
	labels := map[string]string{"app": "none"}
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: operatorName}, Spec: appsv1.DeploymentSpec{
		Replicas: new(int32(0)), Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "a", Image: "a"}}}},
	}}
	must(t, c.Create(t.Context(), d))
	t.Cleanup(func() { _ = c.Delete(context.Background(), d) })
	if code, body := call(http.MethodGet, "profile?type=heap", ours); code != http.StatusForbidden || !strings.Contains(body, annotationProfiles+"=true") {
		t.Errorf("a profile where they are off: %d %s", code, body)
	}
	must(t, c.Patch(t.Context(), d, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"annotations":{"`+annotationProfiles+`":"true"}}}`))))
	if code, body := call(http.MethodGet, "profile?seconds=1", ours); code != http.StatusOK || !strings.HasPrefix(body, "\x1f\x8b") {
		t.Errorf("a profile where they are on: %d %.200q", code, body)
	}
}
