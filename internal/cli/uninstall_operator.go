package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
	"github.com/heddle-mesh/heddle/internal/operator"
)

// caSecret holds the root that a mesh made for itself. Who deletes it gives every proxy of the mesh a new identity.
const caSecret = "istio-ca-secret"

type removalFlags struct {
	purge, foreign, secrets bool
	userObjects             int
	yes, dryRun             bool
	timeout                 time.Duration
}

func (a *app) uninstallOperatorCommand() *cobra.Command {
	var f removalFlags
	cmd := &cobra.Command{
		Use: "operator", Short: "Remove the operator, with --purge the custom resource definitions too", Args: cobra.NoArgs,
		Long: "uninstall operator removes the operator, its rights and its policies; with --purge also the custom resource definitions, of\n" +
			"Istio's API too, and its namespace. It does nothing while there are objects that would go with it: meshes, and with --purge\n" +
			"every object of those definitions; --delete-user-objects takes their number, which a first try and --dry-run tell.\n" +
			"It never deletes what somebody else has a hand in, nor the CA secrets of meshes, unless a flag says so. It may be run again.",
		RunE: func(cmd *cobra.Command, _ []string) error { return a.uninstallOperator(cmd, f) },
	}
	fs := cmd.Flags()
	fs.BoolVar(&f.purge, "purge", false, "remove the custom resource definitions and the namespace too")
	fs.IntVar(&f.userObjects, "delete-user-objects", 0, "delete this number of meshes and other objects too; nothing is done if there are more or less")
	fs.BoolVar(&f.foreign, "delete-foreign-definitions", false, "with --purge: also definitions that somebody else has a hand in")
	fs.BoolVar(&f.secrets, "delete-ca-secrets", false, "also the CA secrets ("+caSecret+") of the meshes that are removed")
	fs.BoolVarP(&f.yes, "skip-confirmation", "y", false, "do not ask")
	fs.BoolVar(&f.dryRun, "dry-run", false, "say what would be done and change nothing")
	fs.DurationVar(&f.timeout, "readiness-timeout", 5*time.Minute, "how long to wait until everything is gone")
	return cmd
}

// removal is what uninstalling the operator comes to.
type removal struct {
	sail        []client.Object // meshes, tags and revisions, of whomever; the operator takes them apart
	systems     []string        // system namespaces of meshes
	kinds       []kindCount     // of what users made and would be deleted
	objects     []client.Object // in the order of their deletion, the Deployment first
	definitions []*apiextensionsv1.CustomResourceDefinition
	namespace   *corev1.Namespace // nil if it stays
	secrets     []*corev1.Secret
	left        []string // what stays, and how to remove it
}

type kindCount struct {
	kind  string
	count int
}

func (r removal) users() (n int, text string) {
	var kinds []string
	for _, k := range r.kinds {
		n += k.count
		kinds = append(kinds, fmt.Sprintf("%d %s", k.count, k.kind))
	}
	return n, strings.Join(kinds, ", ")
}

func (r removal) empty() bool {
	return len(r.sail)+len(r.objects)+len(r.definitions)+len(r.secrets) == 0 && r.namespace == nil
}

func (a *app) uninstallOperator(cmd *cobra.Command, f removalFlags) error {
	ctx := cmd.Context()
	c, err := a.connect()
	if err != nil {
		return err
	}
	r, err := planRemoval(ctx, c, f)
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	n, kinds := r.users()
	if f.dryRun {
		r.describe(out, kinds)
		r.sayLeft(out)
		if n != f.userObjects {
			fmt.Fprintf(out, "It wants --delete-user-objects %d.\n", n)
		}
		return nil
	}
	switch {
	case n != f.userObjects && f.userObjects > 0:
		return fmt.Errorf("nothing was removed: --delete-user-objects %d, but there are %d: %s", f.userObjects, n, cmp.Or(kinds, "none"))
	case n > 0 && n != f.userObjects:
		return fmt.Errorf("nothing was removed: with it would be deleted what users made, %s; to have that deleted too give --delete-user-objects %d", kinds, n)
	}
	if r.empty() {
		fmt.Fprintln(out, "There is nothing to remove.")
		r.sayLeft(out)
		return nil
	}
	if len(r.sail) > 0 && !slices.ContainsFunc(r.objects, available) {
		return fmt.Errorf("nothing was removed: there are meshes, tags or revisions, which only the operator can take apart, and it does not run; start it first: %s install operator", a.Name)
	}
	r.describe(out, kinds)
	if err := confirm(cmd, f.yes, "This removes the operator from the cluster."); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	if err := within(ctx, r.carryOut(ctx, c, newSteps(out)), "not everything is gone yet; --dry-run tells what is left, and the verb goes on with it"); err != nil {
		return err
	}
	r.sayLeft(out)
	return nil
}

// available reports whether the object is a Deployment of which something runs.
func available(o client.Object) bool {
	d, ok := o.(*appsv1.Deployment)
	return ok && d.Status.AvailableReplicas > 0
}

func title(o client.Object) string {
	name := o.GetName()
	if o.GetNamespace() != "" {
		name = o.GetNamespace() + "/" + name
	}
	return o.GetObjectKind().GroupVersionKind().Kind + " " + name
}

// how is the command that removes an object.
func how(o client.Object) string {
	in := ""
	if o.GetNamespace() != "" {
		in = " -n " + o.GetNamespace()
	}
	gvk := o.GetObjectKind().GroupVersionKind()
	kind := strings.ToLower(gvk.Kind)
	if gvk.Group != "" {
		kind += "." + gvk.Group
	}
	return "kubectl delete" + in + " " + kind + " " + o.GetName()
}

// planRemoval looks at what there is and decides what goes and what stays.
func planRemoval(ctx context.Context, c client.Client, f removalFlags) (removal, error) {
	var r removal
	all, err := operator.Installed(operator.Namespace)
	if err != nil {
		return r, err
	}
	stays := func(o client.Object, why string) {
		r.left = append(r.left, fmt.Sprintf("%s (%s): %s", title(o), why, how(o)))
	}
	for _, wanted := range all {
		gvk := wanted.GetObjectKind().GroupVersionKind()
		empty, err := c.Scheme().New(gvk)
		if err != nil {
			return r, err
		}
		there := empty.(client.Object)
		if err := c.Get(ctx, client.ObjectKeyFromObject(wanted), there); apierrors.IsNotFound(err) {
			continue
		} else if err != nil {
			return r, fmt.Errorf("read %s: %w", title(wanted), err)
		}
		there.GetObjectKind().SetGroupVersionKind(gvk) // a typed client clears it
		foreign := operator.ForeignTo(there, operator.Namespace)
		switch o := there.(type) {
		case *apiextensionsv1.CustomResourceDefinition:
			goes := f.purge && (foreign == "" || f.foreign)
			switch {
			case goes:
			case foreign != "":
				stays(o, "of "+foreign+" too; --purge --delete-foreign-definitions deletes it as well")
			default:
				stays(o, "and all objects of it; --purge deletes it")
			}
			if goes || o.Spec.Group == sailv1.GroupVersion.Group {
				if err := r.count(ctx, c, o); err != nil {
					return r, err
				}
			}
			if goes {
				r.definitions = append(r.definitions, o)
			}
		case *corev1.Namespace:
			content, err := contentOf(ctx, c, o.Name, all)
			switch {
			case err != nil:
				return r, err
			case !f.purge:
				stays(o, "--purge deletes it")
			case foreign != "":
				stays(o, "of "+foreign+" too")
			case content != "":
				stays(o, "holds "+content)
			default:
				r.namespace = o
			}
		default:
			if foreign != "" {
				stays(o, "of "+foreign)
				continue
			}
			r.objects = append(r.objects, o)
		}
	}
	slices.SortStableFunc(r.sail, func(a, b client.Object) int { return rank(a) - rank(b) })
	slices.Sort(r.systems)
	for _, ns := range slices.Compact(r.systems) {
		secret := &corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: caSecret}}
		there := &metav1.PartialObjectMetadata{TypeMeta: secret.TypeMeta} // its keys are not needed
		err := c.Get(ctx, client.ObjectKeyFromObject(secret), there)
		switch {
		case apierrors.IsNotFound(err):
		case err != nil:
			return r, fmt.Errorf("look for the CA secret of %s: %w", ns, err)
		case f.secrets:
			r.secrets = append(r.secrets, secret)
		default:
			stays(secret, "the mesh's CA; a mesh that is installed there again goes on with it")
		}
	}
	return r, nil
}

// rank orders what the operator takes apart: tags, which point at meshes; meshes; revisions, which go with theirs.
func rank(o client.Object) int {
	return slices.Index([]string{"IstioRevisionTag", "Istio", "IstioRevision"}, o.GetObjectKind().GroupVersionKind().Kind)
}

// count adds a definition's objects: what users made to their number, and what the operator must take apart to sail.
func (r *removal) count(ctx context.Context, c client.Client, crd *apiextensionsv1.CustomResourceDefinition) error {
	sail := crd.Spec.Group == sailv1.GroupVersion.Group
	gvk := schema.GroupVersionKind{Group: crd.Spec.Group, Kind: crd.Spec.Names.Kind}
	for _, v := range crd.Spec.Versions {
		if v.Storage {
			gvk.Version = v.Name
		}
	}
	var list metav1.PartialObjectMetadataList
	list.SetGroupVersionKind(schema.GroupVersionKind{Group: gvk.Group, Version: gvk.Version, Kind: gvk.Kind + "List"})
	if err := c.List(ctx, &list); err != nil {
		return fmt.Errorf("list the objects of %s: %w", crd.Name, err)
	}
	users := 0
	for i := range list.Items {
		o := &list.Items[i]
		o.SetGroupVersionKind(gvk)
		if sail {
			r.sail = append(r.sail, o)
		}
		if gvk.Kind == "Istio" && sail {
			istio := &sailv1.Istio{}
			if err := c.Get(ctx, client.ObjectKeyFromObject(o), istio); client.IgnoreNotFound(err) != nil {
				return fmt.Errorf("read Istio %s: %w", o.Name, err)
			}
			if ns := istio.Spec.Namespace; ns != "" {
				r.systems = append(r.systems, ns)
			}
		}
		if !madeByUs(o) {
			users++
		}
	}
	if users > 0 {
		r.kinds = append(r.kinds, kindCount{gvk.Kind, users})
	}
	return nil
}

// madeByUs reports whether the operator, or install, made the object for another one.
func madeByUs(o *metav1.PartialObjectMetadata) bool {
	switch o.Kind {
	case "Membership":
		return true
	case "IstioRevision":
		return ofIstio(o)
	case "IstioRevisionTag":
		return ofIstio(o) && o.Labels[madeBy] == fieldManager
	}
	return false
}

func ofIstio(o client.Object) bool {
	return slices.ContainsFunc(o.GetOwnerReferences(), func(r metav1.OwnerReference) bool { return r.Kind == "Istio" })
}

// contentOf names what is in the operator's namespace that is not the operator's; empty if nothing is.
func contentOf(ctx context.Context, c client.Client, namespace string, ours []client.Object) (string, error) {
	var found []string
	for _, gvk := range []schema.GroupVersionKind{
		{Version: "v1", Kind: "Secret"},
		{Version: "v1", Kind: "ConfigMap"},
		{Version: "v1", Kind: "Service"},
		{Version: "v1", Kind: "PersistentVolumeClaim"},
		{Group: "apps", Version: "v1", Kind: "Deployment"},
		{Group: "apps", Version: "v1", Kind: "StatefulSet"},
		{Group: "apps", Version: "v1", Kind: "DaemonSet"},
		{Group: "batch", Version: "v1", Kind: "Job"},
	} {
		var list metav1.PartialObjectMetadataList
		list.SetGroupVersionKind(gvk.GroupVersion().WithKind(gvk.Kind + "List"))
		if err := c.List(ctx, &list, client.InNamespace(namespace)); err != nil {
			return "", fmt.Errorf("see what else is in namespace %s: %w", namespace, err)
		}
		for i := range list.Items {
			name := list.Items[i].Name
			known := gvk.Kind == "ConfigMap" && (name == "kube-root-ca.crt" || name == "istio-ca-root-cert") || slices.ContainsFunc(ours, func(o client.Object) bool {
				return o.GetNamespace() == namespace && o.GetName() == name && o.GetObjectKind().GroupVersionKind().GroupKind() == gvk.GroupKind()
			})
			if !known {
				found = append(found, gvk.Kind+" "+name)
			}
		}
	}
	if len(found) > 3 {
		found = append(found[:3], fmt.Sprintf("and %d more", len(found)-3))
	}
	return strings.Join(found, ", "), nil
}

func (r removal) describe(out io.Writer, users string) {
	if r.empty() {
		return
	}
	fmt.Fprintln(out, "Will be removed:")
	if users != "" {
		fmt.Fprintln(out, "  what users made:", users)
	}
	for _, o := range r.sail {
		fmt.Fprintln(out, " ", title(o))
	}
	for _, o := range r.secrets {
		fmt.Fprintln(out, " ", title(o))
	}
	for _, o := range r.objects {
		fmt.Fprintln(out, " ", title(o))
	}
	for _, o := range r.definitions {
		fmt.Fprintln(out, "  definition", o.Name, "with all its objects")
	}
	if r.namespace != nil {
		fmt.Fprintln(out, " ", title(r.namespace))
	}
}

func (r removal) sayLeft(out io.Writer) {
	if len(r.left) == 0 {
		return
	}
	fmt.Fprintln(out, "Left, with the command that removes it:")
	for _, l := range r.left {
		fmt.Fprintln(out, " ", l)
	}
}

// carryOut takes the meshes away while the operator still runs, then the operator, then what it wrote, then the definitions.
func (r removal) carryOut(ctx context.Context, c client.WithWatch, s *steps) error {
	for _, o := range r.sail {
		if o.GetObjectKind().GroupVersionKind().Kind == "IstioRevision" && ofIstio(o) {
			continue // it goes with its mesh, which would have it made again
		}
		if err := remove(ctx, c, o); err != nil {
			return err
		}
	}
	for _, o := range r.sail {
		if err := gone(ctx, c, o); err != nil {
			return err
		}
	}
	if len(r.sail) > 0 {
		s.done("meshes removed")
	}
	for _, o := range r.secrets {
		if err := remove(ctx, c, o); err != nil {
			return err
		}
		s.done("%s removed", title(o))
	}
	for _, o := range r.objects {
		if err := remove(ctx, c, o); err != nil {
			return err
		}
		if _, ok := o.(*appsv1.Deployment); ok { // until it has ended it writes the others again
			if err := gone(ctx, c, o); err != nil {
				return err
			}
		}
	}
	if len(r.objects) > 0 {
		s.done("operator removed")
	}
	for _, crd := range r.definitions {
		// Nobody confirmed what was made since the objects were counted; of what the operator took apart there is none.
		was := r.counted(crd.Spec.Names.Kind)
		if crd.Spec.Group == sailv1.GroupVersion.Group {
			was = 0
		}
		var now removal
		if err := now.count(ctx, c, crd); err != nil {
			return err
		}
		n, kinds := now.users()
		if n > was {
			return fmt.Errorf("definition %s stays, and what comes after it: there are %s now, %d more than were confirmed; --dry-run tells what is left, and the verb goes on with it", crd.Name, kinds, n-was)
		}
		if err := remove(ctx, c, crd); err != nil {
			return err
		}
	}
	for _, crd := range r.definitions {
		if err := gone(ctx, c, crd); err != nil {
			return err
		}
	}
	if len(r.definitions) > 0 {
		s.done("%d custom resource definitions removed", len(r.definitions))
	}
	if r.namespace != nil {
		if err := remove(ctx, c, r.namespace); err != nil {
			return err
		}
		s.done("%s removed", title(r.namespace))
	}
	return nil
}

func (r removal) counted(kind string) int {
	for _, k := range r.kinds {
		if k.kind == kind {
			return k.count
		}
	}
	return 0
}

// remove deletes the object that was looked at, and no successor of the same name.
func remove(ctx context.Context, c client.Client, o client.Object) error {
	opts := []client.DeleteOption{client.PropagationPolicy(metav1.DeletePropagationForeground)}
	if uid := o.GetUID(); uid != "" {
		opts = append(opts, client.Preconditions{UID: &uid})
	}
	if err := c.Delete(ctx, o, opts...); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete %s: %w", title(o), err)
	}
	return nil
}

// gone waits until the object is not there.
func gone(ctx context.Context, c client.WithWatch, o client.Object) error {
	gvk := o.GetObjectKind().GroupVersionKind()
	var list metav1.PartialObjectMetadataList
	list.SetGroupVersionKind(gvk.GroupVersion().WithKind(gvk.Kind + "List"))
	err := await(ctx, c, &list, o.GetNamespace(), o.GetName(), func(o runtime.Object) (bool, error) { return o == nil, nil })
	if errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if err != nil {
		return fmt.Errorf("wait for the end of %s: %w", title(o), err)
	}
	return nil
}
