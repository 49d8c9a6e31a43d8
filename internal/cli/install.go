package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
	"github.com/heddle-mesh/heddle/internal/operator"
)

const (
	fieldManager = "heddle-install"
	operatorName = "heddle-operator"
	// madeBy marks the default tag that install creates: it goes with its mesh, a user's own stays.
	madeBy = "app.kubernetes.io/managed-by"
)

type installFlags struct {
	files, sets       []string
	yes, dryRun       bool
	revision          string
	timeout           time.Duration
	image, proxyImage string
}

func (a *app) installCommand() *cobra.Command {
	var f installFlags
	cmd := &cobra.Command{
		Use: "install", Aliases: []string{"apply"}, Short: "Install or change a mesh",
		Long: "install takes an IstioOperator document, makes the Istio object that it stands for, and waits until the mesh is ready.\n" +
			"The operator and the custom resource definitions are installed too if the cluster has none.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.install(cmd, f) },
	}
	fs := cmd.Flags()
	fs.StringArrayVarP(&f.files, "filename", "f", nil, "IstioOperator document, - for standard input; later ones win")
	fs.StringArrayVarP(&f.sets, "set", "s", nil, "path=value below spec, e.g. meshConfig.accessLogFile=/dev/stdout")
	fs.BoolVarP(&f.yes, "skip-confirmation", "y", false, "do not ask")
	fs.BoolVar(&f.dryRun, "dry-run", false, "print the Istio object and change nothing")
	fs.StringVarP(&f.revision, "revision", "r", "", "name of the mesh and its revision")
	fs.DurationVar(&f.timeout, "readiness-timeout", 5*time.Minute, "how long to wait until the mesh is ready")
	fs.StringVar(&f.image, "image", "", "image of operator and control planes, if the operator is installed (default: a local cluster's own, else the release's)")
	fs.StringVar(&f.proxyImage, "proxy-image", "", "image of sidecars (default: likewise)")
	cmd.AddCommand(a.installOperatorCommand())
	return cmd
}

// installOperatorCommand is for those who write Istio objects themselves.
func (a *app) installOperatorCommand() *cobra.Command {
	var f installFlags
	cmd := &cobra.Command{
		Use: "operator", Short: "Install or update the operator and the custom resource definitions alone", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), f.timeout)
			defer cancel()
			var c cluster
			var err error
			if !f.dryRun || f.image == "" || f.proxyImage == "" { // else no cluster is needed
				if c, err = a.connect(); err != nil {
					return err
				}
			}
			images, err := a.images(ctx, c, f)
			if err != nil {
				return err
			}
			objects, err := operator.Bootstrap(images.images(), operator.Namespace)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.ErrOrStderr(), images)
			if f.dryRun {
				return operator.WriteYAML(cmd.OutOrStdout(), objects)
			}
			return a.startOperator(ctx, c, objects, newSteps(cmd.OutOrStdout()))
		},
	}
	fs := cmd.Flags()
	fs.BoolVar(&f.dryRun, "dry-run", false, "print the objects as YAML and change nothing")
	fs.DurationVar(&f.timeout, "readiness-timeout", 5*time.Minute, "how long to wait until the operator is ready")
	fs.StringVar(&f.image, "image", "", "image of control planes and operator")
	fs.StringVar(&f.proxyImage, "proxy-image", "", "image of the sidecar")
	return cmd
}

func (a *app) install(cmd *cobra.Command, f installFlags) error {
	var texts [][]byte
	for _, name := range f.files {
		text, err := readFile(cmd.InOrStdin(), name)
		if err != nil {
			return err
		}
		texts = append(texts, text)
	}
	d, err := readDocument(texts, f.sets)
	if err != nil {
		return err
	}
	p, err := planOf(d, a.istioNamespace, f.revision)
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	if f.dryRun {
		text, err := yaml.Marshal(p.istio().Object)
		if err == nil {
			_, err = out.Write(text)
		}
		return err
	}
	if err := confirm(cmd, f.yes, fmt.Sprintf("This will install mesh %s with its control plane in namespace %s.", p.name, p.namespace)); err != nil {
		return err
	}
	for _, n := range p.notes {
		fmt.Fprintln(out, "note:", n)
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), f.timeout)
	defer cancel()
	c, err := a.connect()
	if err != nil {
		return err
	}
	s := newSteps(out)
	if err := a.ensureOperator(ctx, c, f, s); err != nil {
		return err
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: p.namespace}}
	if err := c.Create(ctx, ns); err == nil {
		s.done("namespace %s created", p.namespace)
	} else if !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create namespace %s: %w", p.namespace, err)
	}
	istio := p.istio()
	if err := c.Apply(ctx, client.ApplyConfigurationFromUnstructured(istio), client.FieldOwner(fieldManager), client.ForceOwnership); err != nil {
		return fmt.Errorf("apply Istio %s: %w", p.name, err)
	}
	if err := a.ensureDefaultTag(ctx, c, p.name, s); err != nil {
		return err
	}
	applied := &sailv1.Istio{}
	if err := c.Get(ctx, client.ObjectKey{Name: p.name}, applied); err != nil {
		return fmt.Errorf("read Istio %s: %w", p.name, err)
	}
	if err := within(ctx, awaitIstio(ctx, c, p.name, applied.Generation, s), "mesh "+p.name+" is not ready (kubectl get events -n "+p.namespace+" may tell why)"); err != nil {
		return err
	}
	s.done("mesh %s ready in namespace %s", p.name, p.namespace)
	fmt.Fprintf(out, "To add a namespace, give it a label of the mesh's discovery selectors and istio.io/rev=%s; `%s check` tells what is missing.\n", p.name, a.Name)
	return nil
}

func readFile(stdin io.Reader, name string) ([]byte, error) {
	if name == "-" {
		text, err := io.ReadAll(stdin)
		if err == nil && strings.TrimSpace(string(text)) == "" {
			err = errors.New("it is empty")
		}
		if err != nil {
			return nil, fmt.Errorf("read standard input: %w", err)
		}
		return text, nil
	}
	return os.ReadFile(name)
}

// localImages is the ClusterRole whose annotations name the images that a local cluster serves: heddle-local writes it. It
// is a ClusterRole since who may write one may as well write the operator's own: no control plane, and nobody who has power
// over some namespaces only, can decide in this way what runs with the operator's rights. Source:
// docs/decisions/0009-local-images.md.
const (
	localImages          = "heddle-local:images"
	annotationImage      = "heddle.dev/image"
	annotationProxyImage = "heddle.dev/proxy-image"
)

// image is the name of an image and where it comes from.
type image struct{ name, from string }

func (i image) String() string { return i.name + " (" + i.from + ")" }

// imageNames are the images that an installation takes.
type imageNames struct{ heddle, proxy image }

func (n imageNames) images() operator.Images {
	return operator.Images{Heddle: n.heddle.name, Proxy: n.proxy.name}
}

func (n imageNames) String() string {
	return fmt.Sprintf("image of operator and control planes: %s\nimage of sidecars: %s", n.heddle, n.proxy)
}

// images answers from the flags, else from what a local cluster publishes, else with the release's.
func (a *app) images(ctx context.Context, c cluster, f installFlags) (imageNames, error) {
	local := &rbacv1.ClusterRole{}
	if f.image == "" || f.proxyImage == "" {
		if err := c.Get(ctx, client.ObjectKey{Name: localImages}, local); client.IgnoreNotFound(err) != nil {
			return imageNames{}, fmt.Errorf("see whether the cluster is a local one, which has images of its own: read ClusterRole %s: %w; name the images with --image and --proxy-image", localImages, err)
		}
	}
	first := func(flag, given, annotation, release string) image {
		if given != "" {
			return image{given, "from " + flag}
		}
		if name := local.Annotations[annotation]; name != "" {
			return image{name, "the local cluster's, from ClusterRole " + localImages}
		}
		return image{release + ":" + a.Version, "of this release"}
	}
	return imageNames{
		heddle: first("--image", f.image, annotationImage, "registry.heddle.dev/heddle"),
		proxy:  first("--proxy-image", f.proxyImage, annotationProxyImage, "registry.heddle.dev/proxy"),
	}, nil
}

// ensureOperator installs the operator if there is none, or none that runs. One that runs stays as it is: it serves meshes of
// others too. It is said if it is not what this program would install.
func (a *app) ensureOperator(ctx context.Context, c cluster, f installFlags, s *steps) error {
	there := &appsv1.Deployment{}
	err := c.Get(ctx, client.ObjectKey{Namespace: operator.Namespace, Name: operatorName}, there)
	if apierrors.IsForbidden(err) {
		s.note("whether the operator runs cannot be seen: %v", err) // who may write an Istio need not see it
		return nil
	}
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("look for the operator: %w", err)
	}
	runs := err == nil && there.Status.AvailableReplicas > 0
	images, err := a.images(ctx, c, f)
	switch {
	case runs && apierrors.IsForbidden(err):
		return nil
	case err != nil:
		return err
	case runs:
		if has := imagesOf(there); has != images.images() {
			s.note("the operator runs %s with sidecars of %s, and stays so; `%s install operator` would make it %s with %s", has.Heddle, has.Proxy, a.Name, images.heddle, images.proxy)
		}
		return nil
	}
	objects, err := operator.Bootstrap(images.images(), operator.Namespace)
	if err != nil {
		return err
	}
	fmt.Fprintln(s.out, images)
	return a.startOperator(ctx, c, objects, s)
}

// imagesOf are the images that an operator runs and gives to its meshes.
func imagesOf(d *appsv1.Deployment) operator.Images {
	var out operator.Images
	for _, c := range d.Spec.Template.Spec.Containers {
		if c.Name != "operator" {
			continue
		}
		out.Heddle = c.Image
		for _, e := range c.Env {
			if e.Name == "HEDDLE_PROXY_IMAGE" {
				out.Proxy = e.Value
			}
		}
	}
	return out
}

func (a *app) startOperator(ctx context.Context, c cluster, objects []client.Object, s *steps) error {
	if err := operator.Apply(ctx, c.config, objects); err != nil {
		return fmt.Errorf("install the operator: %w", err)
	}
	s.done("operator and custom resource definitions applied")
	if err := within(ctx, awaitDeployment(ctx, c, operator.Namespace, operatorName), "the operator is not available (kubectl get events -n "+operator.Namespace+" may tell why)"); err != nil {
		return err
	}
	s.done("operator ready in namespace %s", operator.Namespace)
	return nil
}

// ensureDefaultTag makes the mesh answer for what names no revision if no other does. The tag is owned by the Istio
// object, so that it goes with it however that is deleted.
func (a *app) ensureDefaultTag(ctx context.Context, c client.Client, name string, s *steps) error {
	if name == sailv1.DefaultName {
		return nil
	}
	istio := &sailv1.Istio{}
	for _, o := range []client.Object{&sailv1.IstioRevisionTag{}, &sailv1.IstioRevision{}, &sailv1.Istio{}} {
		switch err := c.Get(ctx, client.ObjectKey{Name: sailv1.DefaultName}, o); {
		case err == nil:
			return nil
		case !apierrors.IsNotFound(err):
			return fmt.Errorf("look for a default revision: %w", err)
		}
	}
	if err := c.Get(ctx, client.ObjectKey{Name: name}, istio); err != nil {
		return fmt.Errorf("read Istio %s: %w", name, err)
	}
	tag := &sailv1.IstioRevisionTag{
		ObjectMeta: metav1.ObjectMeta{
			Name: sailv1.DefaultName, Labels: map[string]string{madeBy: fieldManager},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: sailv1.GroupVersion.String(), Kind: "Istio", Name: name, UID: istio.UID}},
		},
		Spec: sailv1.IstioRevisionTagSpec{TargetRef: sailv1.TargetRef{Kind: "Istio", Name: name}},
	}
	if err := c.Create(ctx, tag); err != nil && !apierrors.IsAlreadyExists(err) { // another install was quicker: first come
		return fmt.Errorf("create the default tag: %w", err)
	}
	s.done("revision %s is the cluster's default", name)
	return nil
}

// awaitIstio returns when the operator has seen the generation and calls the mesh ready, saying each new state on the way.
func awaitIstio(ctx context.Context, c client.WithWatch, name string, generation int64, s *steps) error {
	said := ""
	return await(ctx, c, &sailv1.IstioList{}, "", name, func(o runtime.Object) (bool, error) {
		istio, ok := o.(*sailv1.Istio)
		if !ok || istio.Status.ObservedGeneration < generation {
			return false, nil
		}
		if !istio.DeletionTimestamp.IsZero() {
			return false, fmt.Errorf("mesh %s is being deleted", name)
		}
		reconciled := apimeta.FindStatusCondition(istio.Status.Conditions, "Reconciled")
		if reconciled != nil && reconciled.Status == metav1.ConditionFalse {
			return false, fmt.Errorf("mesh %s cannot be installed: %s", name, reconciled.Message)
		}
		if apimeta.IsStatusConditionTrue(istio.Status.Conditions, "Ready") {
			return true, nil
		}
		if istio.Status.State != said {
			said = istio.Status.State
			s.note("mesh %s: %s", name, said)
		}
		return false, nil
	})
}

func awaitDeployment(ctx context.Context, c client.WithWatch, namespace, name string) error {
	return await(ctx, c, &appsv1.DeploymentList{}, namespace, name, rolledOut)
}

// rolledOut reports whether some pod of a Deployment is available, and each is of what its spec asks for now.
func rolledOut(o runtime.Object) (bool, error) {
	d, ok := o.(*appsv1.Deployment)
	return ok && d.Status.ObservedGeneration >= d.Generation && d.Status.UpdatedReplicas == d.Status.Replicas && d.Status.AvailableReplicas > 0, nil
}

// await follows one object until done says so; nil stands for an object that is not there. Watches are opened anew when
// the API server ends them.
func await(ctx context.Context, c client.WithWatch, list client.ObjectList, namespace, name string, done func(runtime.Object) (bool, error)) error {
	for {
		err := awaitOnce(ctx, c, list, namespace, name, done)
		if !errors.Is(err, errWatchEnded) {
			return err
		}
	}
}

var errWatchEnded = errors.New("watch ended")

func awaitOnce(ctx context.Context, c client.WithWatch, list client.ObjectList, namespace, name string, done func(runtime.Object) (bool, error)) error {
	o := &client.ListOptions{Namespace: namespace, FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, name)}
	if err := c.List(ctx, list, o); err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	items, err := apimeta.ExtractList(list)
	if err != nil {
		return err
	}
	var now runtime.Object
	if len(items) > 0 {
		now = items[0]
	}
	if ok, err := done(now); ok || err != nil {
		return err
	}
	o.Raw = &metav1.ListOptions{ResourceVersion: list.GetResourceVersion()}
	w, err := c.Watch(ctx, list, o)
	if err != nil {
		return fmt.Errorf("watch %s: %w", name, err)
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e, ok := <-w.ResultChan():
			if !ok || e.Type == watch.Error {
				return errWatchEnded
			}
			if e.Type == watch.Deleted {
				e.Object = nil
			}
			if ok, err := done(e.Object); ok || err != nil {
				return err
			}
		}
	}
}

// steps prints progress, each step with the time since the start.
type steps struct {
	out   io.Writer
	start time.Time
}

func newSteps(out io.Writer) *steps { return &steps{out: out, start: time.Now()} }

func (s *steps) done(format string, a ...any) { s.print("✔", format, a...) }
func (s *steps) note(format string, a ...any) { s.print("·", format, a...) }

func (s *steps) print(mark, format string, a ...any) {
	fmt.Fprintf(s.out, "%s %s (%.1fs)\n", mark, fmt.Sprintf(format, a...), time.Since(s.start).Seconds())
}
