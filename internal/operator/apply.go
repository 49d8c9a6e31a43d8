package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
)

// Scheme knows every kind that the operator reads or writes.
func Scheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	return s, errors.Join(clientgoscheme.AddToScheme(s), apiextensionsv1.AddToScheme(s), sailv1.AddToScheme(s), heddlev1alpha1.AddToScheme(s))
}

// applicable is an object as server-side apply wants it: without the fields that only the API server writes.
func applicable(o client.Object) (*unstructured.Unstructured, error) {
	// Through JSON: the converter of apimachinery does not know of custom marshallers on values.
	raw, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("write %T %s: %w", o, o.GetName(), err)
	}
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(raw); err != nil {
		return nil, fmt.Errorf("write %T %s: %w", o, o.GetName(), err)
	}
	delete(u.Object, "status")
	unstructured.RemoveNestedField(u.Object, "metadata", "creationTimestamp")
	unstructured.RemoveNestedField(u.Object, "spec", "template", "metadata", "creationTimestamp")
	return u, nil
}

// apply writes one object of a place where all is the operator's: its own namespace, and Memberships. What another manager set
// to another value is set back. Anything else goes through a writer.
func apply(ctx context.Context, c client.Client, manager string, o client.Object) error {
	u, err := applicable(o)
	if err != nil {
		return err
	}
	if err := c.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(manager), client.ForceOwnership); err != nil {
		return fmt.Errorf("apply %s %s: %w", u.GetKind(), name(u), err)
	}
	return nil
}

func name(o client.Object) string {
	if o.GetNamespace() == "" {
		return o.GetName()
	}
	return o.GetNamespace() + "/" + o.GetName()
}

// Apply brings objects into a cluster as field manager heddle-operator and returns once the CRDs among them are served.
// A CRD that is newer than ours stays as it is, and so does one from elsewhere that serves every version ours does. Nothing is
// written where another operator of the same API runs, or where an object is somebody else's.
func Apply(ctx context.Context, config *rest.Config, objects []client.Object) error {
	scheme, err := Scheme()
	if err != nil {
		return err
	}
	c, err := client.NewWithWatch(config, client.Options{Scheme: scheme})
	if err != nil {
		return fmt.Errorf("open the cluster: %w", err)
	}
	if err := bring(ctx, c, objects); err != nil {
		return err
	}
	for _, o := range objects {
		if crd, ok := o.(*apiextensionsv1.CustomResourceDefinition); ok {
			if err := established(ctx, c, crd.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

func bring(ctx context.Context, c client.Client, objects []client.Object) error {
	others := &rivals{deployments: c, reviews: c, now: time.Now}
	if other, _, err := others.running(ctx, math.MaxInt); err != nil {
		return err
	} else if other != "" {
		return errSail(other)
	}
	var shared, own []client.Object // shared: who made them does not matter
	for _, o := range objects {
		switch o := o.(type) {
		case *apiextensionsv1.CustomResourceDefinition:
			there := &apiextensionsv1.CustomResourceDefinition{}
			err := c.Get(ctx, client.ObjectKeyFromObject(o), there)
			switch {
			case client.IgnoreNotFound(err) != nil:
				return fmt.Errorf("read CRD %s: %w", o.Name, err)
			case err == nil && keeps(there, o):
				continue
			case err == nil && there.Annotations[crdVersionKey] == "":
				return fault{reasonForeign, fmt.Sprintf("CRD %s, %s, does not serve every version that is needed: bring it up to date by what made it", o.Name, whose(there))}
			}
			shared = append(shared, o)
		case *corev1.Namespace:
			shared = append(shared, o)
		default:
			own = append(own, o)
		}
	}
	w := writer{c, c, operatorOwner()}
	if _, err := w.look(ctx, own...); err != nil {
		return err
	}
	for _, o := range shared {
		if err := apply(ctx, c, operatorName, o); err != nil {
			return err
		}
	}
	return w.write(ctx, own...)
}

// keeps reports whether the CRD that is there must not be replaced by ours.
func keeps(there, ours *apiextensionsv1.CustomResourceDefinition) bool {
	if mark, ok := there.Annotations[crdVersionKey]; ok {
		return compareVersions(mark, ours.Annotations[crdVersionKey]) > 0
	}
	for _, v := range ours.Spec.Versions {
		if v.Served && !slices.ContainsFunc(there.Spec.Versions, func(t apiextensionsv1.CustomResourceDefinitionVersion) bool {
			return t.Served && t.Name == v.Name
		}) {
			return false
		}
	}
	return true
}

// compareVersions compares versions of numbers with dots or dashes between them; other text counts as 0.
func compareVersions(a, b string) int {
	parse := func(s string) []int {
		var out []int
		for _, f := range strings.FieldsFunc(s, func(r rune) bool { return r == '.' || r == '-' }) {
			n, _ := strconv.Atoi(f)
			out = append(out, n)
		}
		return out
	}
	return slices.Compare(parse(a), parse(b))
}

// established waits, at most half a minute, until the API server serves a CRD.
func established(ctx context.Context, c client.WithWatch, name string) error {
	crd := &apiextensionsv1.CustomResourceDefinition{}
	if err := c.Get(ctx, client.ObjectKey{Name: name}, crd); err == nil && served(crd) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	w, err := c.Watch(ctx, &apiextensionsv1.CustomResourceDefinitionList{}, client.MatchingFields{byName: name})
	if err != nil {
		return fmt.Errorf("watch CRD %s: %w", name, err)
	}
	defer w.Stop()
	for e := range w.ResultChan() {
		if crd, ok := e.Object.(*apiextensionsv1.CustomResourceDefinition); ok && e.Type != watch.Deleted && served(crd) {
			return nil
		}
	}
	return fmt.Errorf("CRD %s is not served after 30 s", name)
}

func served(crd *apiextensionsv1.CustomResourceDefinition) bool {
	return slices.ContainsFunc(crd.Status.Conditions, func(c apiextensionsv1.CustomResourceDefinitionCondition) bool {
		return c.Type == apiextensionsv1.Established && c.Status == apiextensionsv1.ConditionTrue
	})
}
