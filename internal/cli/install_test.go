package cli

import (
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/creack/pty"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
	"github.com/heddle-mesh/heddle/internal/operator"
)

// cluster0 is a cluster with a running operator, which here is the fake's Apply: what is applied is ready at once, or
// refused.
func cluster0(t *testing.T, refuse error, objects ...client.Object) cluster {
	t.Helper()
	scheme, err := operator.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: operator.Namespace, Name: operatorName}}
	d.Status.Replicas, d.Status.UpdatedReplicas, d.Status.AvailableReplicas = 2, 2, 2
	c := fake.NewClientBuilder().WithScheme(scheme).WithObjects(append(objects, d)...).WithStatusSubresource(&sailv1.Istio{}).
		WithIndex(&sailv1.Istio{}, "metadata.name", byName).WithIndex(&sailv1.IstioRevision{}, "metadata.name", byName).WithIndex(&appsv1.Deployment{}, "metadata.name", byName).
		WithInterceptorFuncs(interceptor.Funcs{Apply: func(ctx context.Context, c client.WithWatch, o runtime.ApplyConfiguration, _ ...client.ApplyOption) error {
			if refuse != nil {
				return refuse
			}
			u := o.(interface{ GetName() string })
			istio := &sailv1.Istio{ObjectMeta: metav1.ObjectMeta{Name: u.GetName(), UID: "u"}}
			if err := c.Create(ctx, istio); err != nil {
				return err
			}
			istio.Status.Conditions = []metav1.Condition{{Type: "Ready", Status: metav1.ConditionTrue, Reason: "Ready"}}
			return c.Status().Update(ctx, istio)
		}}).Build()
	return cluster{WithWatch: c}
}

// An update is done when its own pods run: those of before are available all the time, whatever becomes of it.
func TestRolledOut(t *testing.T) {
	for _, x := range []struct {
		observed int64
		status   appsv1.DeploymentStatus
		done     bool
	}{
		{observed: 2, status: appsv1.DeploymentStatus{Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 2}, done: true},
		{observed: 2, status: appsv1.DeploymentStatus{Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 1}, done: true},
		{observed: 2, status: appsv1.DeploymentStatus{Replicas: 2, UpdatedReplicas: 2}},
		{observed: 2, status: appsv1.DeploymentStatus{Replicas: 3, UpdatedReplicas: 1, AvailableReplicas: 2}}, // an image that nobody can pull
		{observed: 1, status: appsv1.DeploymentStatus{Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 2}},
		{observed: 2},
	} {
		d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Generation: 2}, Status: x.status}
		d.Status.ObservedGeneration = x.observed
		if done, err := rolledOut(d); done != x.done || err != nil {
			t.Errorf("%+v: %v, %v", d.Status, done, err)
		}
	}
	if done, err := rolledOut(nil); done || err != nil {
		t.Errorf("a Deployment that is not there: %v, %v", done, err)
	}
}

func byName(o client.Object) []string { return []string{o.GetName()} }

func runVerb(t *testing.T, c cluster, stdin io.Reader, args ...string) (string, error) {
	t.Helper()
	return runNamed(t, "heddle", c, stdin, args...)
}

func runNamed(t *testing.T, name string, c cluster, stdin io.Reader, args ...string) (string, error) {
	t.Helper()
	a := &app{Options: Options{Name: name, Version: "0.1.0"}, connect: func() (cluster, error) { return c, nil }}
	cmd := a.command()
	var out bytes.Buffer
	cmd.SetArgs(args)
	cmd.SetIn(stdin)
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

// MCP-07, CTL-05: the namespace, the Istio object and, as the cluster has none, the default tag.
func TestInstall(t *testing.T) {
	c := cluster0(t, nil)
	out, err := runVerb(t, c, strings.NewReader(usergroup1), "install", "-y", "-f", "-")
	if err != nil || !strings.Contains(out, "mesh usergroup-1 ready in namespace usergroup-1") || !strings.Contains(out, "note: ") {
		t.Fatalf("%v\n%s", err, out)
	}
	tag := &sailv1.IstioRevisionTag{}
	if err := c.Get(t.Context(), client.ObjectKey{Name: "default"}, tag); err != nil || tag.Spec.TargetRef.Name != "usergroup-1" || len(tag.OwnerReferences) != 1 {
		t.Errorf("%+v %v", tag, err)
	}
	if err := c.Get(t.Context(), client.ObjectKey{Name: "usergroup-1"}, &corev1.Namespace{}); err != nil {
		t.Error(err)
	}
	out, err = runVerb(t, c, strings.NewReader(strings.ReplaceAll(usergroup1, "group-1", "group-2")), "install", "-y", "-f", "-")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := c.Get(t.Context(), client.ObjectKey{Name: "default"}, tag); err != nil || tag.Spec.TargetRef.Name != "usergroup-1" {
		t.Errorf("the second mesh took the default tag: %+v %v", tag.Spec, err)
	}
}

func TestInstallRefused(t *testing.T) {
	c := cluster0(t, apierrors.NewInvalid(sailv1.GroupVersion.WithKind("Istio").GroupKind(), "x", nil))
	out, err := runVerb(t, c, nil, "install", "-y", "-r", "x")
	if err == nil || !strings.Contains(err.Error(), "apply Istio x") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestInstallDryRun(t *testing.T) {
	out, err := runVerb(t, cluster{}, strings.NewReader(usergroup1), "install", "--dry-run", "-f", "-")
	if err != nil || !strings.HasPrefix(out, "apiVersion: sailoperator.io/v1\nkind: Istio\n") {
		t.Errorf("%v\n%s", err, out)
	}
	out, err = runVerb(t, cluster{}, nil, "install", "operator", "--dry-run", "--image", "h:1", "--proxy-image", "p:1")
	if err != nil || !strings.Contains(out, "image: h:1") || !strings.Contains(out, "value: p:1") {
		t.Errorf("%v\n%.300s", err, out)
	}
}

// S2: a ConfigMap decides nothing, a ClusterRole names a local cluster's images, a flag beats it; where each name comes from is said.
func TestImages(t *testing.T) {
	planted := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-public", Name: "heddle-images"}, Data: map[string]string{"heddle": "evil:1", "proxy": "evil:2"}}
	local := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: localImages, Annotations: map[string]string{annotationImage: "r/heddle:l", annotationProxyImage: "r/proxy:l"}}}
	for _, c := range []struct {
		name    string
		objects []client.Object
		args    []string
		want    []string
	}{
		{name: "a real cluster", objects: []client.Object{planted}, want: []string{
			"image: registry.heddle.dev/heddle:0.1.0\n", "value: registry.heddle.dev/proxy:0.1.0\n",
			"image of operator and control planes: registry.heddle.dev/heddle:0.1.0 (of this release)", "image of sidecars: registry.heddle.dev/proxy:0.1.0 (of this release)",
		}},
		{name: "a local cluster", objects: []client.Object{planted, local}, want: []string{
			"image: r/heddle:l\n", "value: r/proxy:l\n", "control planes: r/heddle:l (the local cluster's, from ClusterRole heddle-local:images)", "sidecars: r/proxy:l (the local",
		}},
		{name: "a flag", objects: []client.Object{local}, args: []string{"--image", "f:1"}, want: []string{"image: f:1\n", "value: r/proxy:l\n", "f:1 (from --image)"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := runVerb(t, cluster0(t, nil, c.objects...), nil, append([]string{"install", "operator", "--dry-run"}, c.args...)...)
			for _, want := range c.want {
				if err != nil || !strings.Contains(out, want) {
					t.Errorf("%v: no %q", err, want)
				}
			}
			if strings.Contains(out, "evil") {
				t.Error("takes the ConfigMap's")
			}
		})
	}
}

// F9: an operator that runs stays as it is, and it is said if this program would install another.
func TestOperatorSkew(t *testing.T) {
	for _, c := range []struct {
		name, heddle, proxy, says string
	}{
		{name: "the same", heddle: "registry.heddle.dev/heddle:0.1.0", proxy: "registry.heddle.dev/proxy:0.1.0"},
		{name: "older", heddle: "registry.heddle.dev/heddle:0.0.9", proxy: "registry.heddle.dev/proxy:0.0.9", says: "the operator runs registry.heddle.dev/heddle:0.0.9 with sidecars of registry.heddle.dev/proxy:0.0.9, and stays so; `heddle install operator` would make it registry.heddle.dev/heddle:0.1.0 (of this release)"},
		{name: "other sidecars", heddle: "registry.heddle.dev/heddle:0.1.0", proxy: "mine:1", says: "with sidecars of mine:1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := cluster0(t, nil)
			d := &appsv1.Deployment{}
			key := client.ObjectKey{Namespace: operator.Namespace, Name: operatorName}
			if err := w.Get(t.Context(), key, d); err != nil {
				t.Fatal(err)
			}
			d.Spec.Template.Spec.Containers = []corev1.Container{{Name: "operator", Image: c.heddle, Env: []corev1.EnvVar{{Name: "HEDDLE_PROXY_IMAGE", Value: c.proxy}}}}
			if err := w.Update(t.Context(), d); err != nil {
				t.Fatal(err)
			}
			out, err := runVerb(t, w, nil, "install", "-y", "-r", "x")
			if err != nil || !strings.Contains(out, c.says) || (c.says == "") != !strings.Contains(out, "the operator runs") {
				t.Errorf("%v\n%s", err, out)
			}
			if err := w.Get(t.Context(), key, d); err != nil || d.Spec.Template.Spec.Containers[0].Image != c.heddle {
				t.Errorf("%v %+v", err, d.Spec.Template.Spec.Containers)
			}
		})
	}
}

func meshOne(t *testing.T) cluster {
	return cluster0(t, nil, &sailv1.Istio{ObjectMeta: metav1.ObjectMeta{Name: "usergroup-1"}, Spec: sailv1.IstioSpec{Namespace: "usergroup-1"}},
		&sailv1.IstioRevisionTag{ObjectMeta: metav1.ObjectMeta{Name: "default", Labels: map[string]string{madeBy: fieldManager}}, Spec: sailv1.IstioRevisionTagSpec{TargetRef: sailv1.TargetRef{Name: "usergroup-1"}}})
}

// MCP-33, MCP-41: asks on a terminal; without one it fails and names the flag; y removes the mesh and its default tag.
func TestUninstall(t *testing.T) {
	for _, c := range []struct {
		name, answer string
		args         []string
		says         string // in output or error
		gone         bool
	}{
		{name: "yes", answer: "y\n", says: "mesh usergroup-1 removed", gone: true},
		{name: "no", answer: "n\n", says: "cancelled; nothing was changed"},
		{name: "enter", answer: "\n", says: "cancelled"},
		{name: "no terminal", says: "--skip-confirmation (-y)"},
		{name: "flag", args: []string{"-y"}, says: "removed", gone: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var stdin io.Reader = strings.NewReader("y\n")
			if c.answer != "" {
				ptmx, tty, err := pty.Open()
				if err != nil {
					t.Fatal(err)
				}
				defer ptmx.Close()
				defer tty.Close()
				if _, err := io.WriteString(ptmx, c.answer); err != nil {
					t.Fatal(err)
				}
				stdin = tty
			}
			w := meshOne(t)
			out, err := runVerb(t, w, stdin, append([]string{"uninstall", "--revision", "usergroup-1"}, c.args...)...)
			if err != nil {
				out += err.Error()
			}
			if (err == nil) != c.gone || !strings.Contains(out, c.says) {
				t.Errorf("%s", out)
			}
			if c.answer != "" && !strings.Contains(out, "Proceed? (y/N)") {
				t.Errorf("did not ask: %s", out)
			}
			for name, o := range map[string]client.Object{"usergroup-1": &sailv1.Istio{}, "default": &sailv1.IstioRevisionTag{}} {
				err := w.Get(t.Context(), client.ObjectKey{Name: name}, o)
				if apierrors.IsNotFound(err) != c.gone {
					t.Errorf("%T %s: %v, want gone %v", o, name, err, c.gone)
				}
			}
		})
	}
}

func TestUninstallRefuses(t *testing.T) {
	for args, says := range map[string]string{
		"uninstall": "name the mesh: --revision", "uninstall --purge -y": "would remove every mesh", "uninstall -y -r nope": "could not find target revision nope; there are: usergroup-1",
	} {
		if out, err := runVerb(t, meshOne(t), nil, strings.Fields(args)...); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v\n%s", args, err, out)
		}
	}
}

// A user's own default tag stays.
func TestForeignTagStays(t *testing.T) {
	c := meshOne(t)
	tag := &sailv1.IstioRevisionTag{}
	if err := c.Get(t.Context(), client.ObjectKey{Name: "default"}, tag); err != nil {
		t.Fatal(err)
	}
	tag.Labels = nil
	if err := c.Update(t.Context(), tag); err != nil {
		t.Fatal(err)
	}
	if out, err := runVerb(t, c, nil, "uninstall", "-y", "-r", "usergroup-1"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := c.Get(t.Context(), client.ObjectKey{Name: "default"}, tag); err != nil {
		t.Error(err)
	}
}

func TestPluginIsFoundInPath(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	if _, err := findPlugin(); err == nil || !strings.Contains(err.Error(), "make build") {
		t.Errorf("without one: %v", err)
	}
	hidden := func() bool {
		cmd, _, err := New(Options{Name: "heddle"}).Find([]string{"verify"})
		if err != nil {
			t.Fatal(err)
		}
		return cmd.Hidden
	}
	if !hidden() {
		t.Error("help speaks of verify where nothing answers it")
	}
	if err := os.WriteFile(dir+"/heddle-local", []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if p, err := findPlugin(); err != nil || p != dir+"/heddle-local" {
		t.Errorf("%s %v", p, err)
	}
	if hidden() {
		t.Error("help is silent about verify")
	}
}
