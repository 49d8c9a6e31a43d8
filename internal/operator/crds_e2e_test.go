//go:build e2e

package operator

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"
)

// What the API server does with an Istio by its schema alone, before any webhook: it refuses what is plainly wrong, saying
// what may stand there, and keeps every key that it does not know for admission to see.
func TestSchemaOfAnIstio(t *testing.T) {
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	must(t, err)
	c, err := client.New(config, client.Options{})
	must(t, err)
	objects, err := Bootstrap(Images{Heddle: "heddle:test", Proxy: "proxy:test"}, Namespace)
	must(t, err)
	objects = slices.DeleteFunc(objects, func(o client.Object) bool { return !strings.HasSuffix(o.GetName(), ".sailoperator.io") })
	// An object of a build whose schema said nothing stays one that can be written to: its condition has to say what is wrong.
	stored := &unstructured.Unstructured{Object: map[string]any{}}
	must(t, yaml.Unmarshal([]byte(`{apiVersion: sailoperator.io/v1, kind: Istio, metadata: {name: stored}, spec: {
		profile: ambient, updateStrategy: {type: RevisionBased}, values: {meshConfig: {discoverySelectors: [{matchLabel: {a: b}}]}, pilot: {autoscaleMin: 0}}}}`), &stored.Object))
	must(t, Apply(t.Context(), config, loose(t, objects)))
	eventually(t, func() error { return c.Create(t.Context(), stored) })
	defer func() { must(t, c.Delete(context.WithoutCancel(t.Context()), stored)) }()
	must(t, Apply(t.Context(), config, objects))

	create := func(spec string) (*unstructured.Unstructured, error) {
		u := &unstructured.Unstructured{Object: map[string]any{}}
		must(t, yaml.Unmarshal([]byte("spec: "+spec), &u.Object))
		u.SetAPIVersion("sailoperator.io/v1")
		u.SetKind("Istio")
		u.SetName("m")
		err := c.Create(t.Context(), u, client.DryRunAll)
		return u, err
	}
	eventually(t, func() error { // a definition is in force some time after it was applied
		if _, err := create(`{profile: ambient}`); err == nil {
			return errors.New("the old schema is in force")
		}
		return nil
	})
	must(t, c.Patch(t.Context(), stored, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"labels":{"a":"b"}}}`))))
	must(t, c.Status().Patch(t.Context(), stored, client.RawPatch(types.MergePatchType, []byte(`{"status":{"state":"ReconcileError"}}`))))

	for spec, want := range map[string]string{
		`{profile: ambient}`:                                     `spec.profile: Unsupported value: "ambient": supported values: "default", "demo"`,
		`{updateStrategy: {type: RevisionBased}}`:                `spec.updateStrategy.type: Unsupported value: "RevisionBased": supported values: "InPlace"`,
		`{values: {profile: remote}}`:                            `spec.values.profile: Unsupported value: "remote": supported values: "", "default"`,
		`{values: {global: {proxy: {autoInject: off}}}}`:         `spec.values.global.proxy.autoInject: Invalid value: "boolean"`,
		`{values: {global: {multiCluster: {clusterName: 1.1}}}}`: `spec.values.global.multiCluster.clusterName: Invalid value: "number"`,
		`{values: {pilot: {autoscaleMin: 0}}}`:                   `spec.values.pilot.autoscaleMin in body should be greater than or equal to 1`,

		`{values: {meshConfig: {discoverySelectors: [{}]}}}`:                                               "a selector without requirements would select every namespace",
		`{values: {meshConfig: {discoverySelectors: [{matchLabels: {}, matchExpressions: []}]}}}`:          "a selector without requirements would select every namespace",
		`{values: {meshConfig: {discoverySelectors: [{matchLabels: {a: b}}, {matchLabel: {a: b}}]}}}`:      "spec.values.meshConfig.discoverySelectors[1]",
		`{values: {meshConfig: {discoverySelectors: [{matchLabels: null}]}}}`:                              "a selector without requirements would select every namespace",
		`{values: {meshConfig: {discoverySelectors: [null]}}}`:                                             "spec.values.meshConfig.discoverySelectors[0]",
		`{values: {meshConfig: {discoverySelectors: {matchLabels: {a: b}}}}}`:                              "spec.values.meshConfig.discoverySelectors: Invalid value",
		`{values: {meshConfig: {discoverySelectors: [{matchExpressions: [{key: a, operator: Has}]}]}}}`:    `Unsupported value: "Has"`,
		`{values: {meshConfig: {discoverySelectors: [{matchExpressions: [{key: a, operater: Exists}]}]}}}`: "operator: Required value",
	} {
		if _, err := create(spec); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", spec, err, want)
		}
	}
	// The typos reach admission as they were written; null means unset, as Helm has it.
	for _, spec := range []string{
		`{values: {meshConfig: {discoverySelectors: [{matchLabels: {a: b}, matchExpresions: [{key: c}]}], discoverySelector: [{a: b}], trustDomian: x}}}`,
		`{values: {meshConfig: {discoverySelectors: [{matchExpressions: [{key: a, operator: Exists, value: [x]}]}]}}}`,
		`{values: {global: {proxy: {autoInjekt: x}, multiCluster: {name: x}, nettwork: x}, pilot: {env: {A: true, B: 1}, cpu: {x: 1}, autoscalMin: 1}, sidecarInjectorWebhook: {a: b}, c: d}}`,
		`{profile: openshift, values: {profile: default, pilot: {cpu: {targetAverageUtilization: 80}}}}`,
	} {
		got, err := create(spec)
		if err != nil {
			t.Errorf("%s: %v", spec, err)
			continue
		}
		var want map[string]any
		must(t, yaml.Unmarshal([]byte(spec), &want))
		g, _ := yaml.Marshal(got.Object["spec"].(map[string]any)["values"])
		if w, _ := yaml.Marshal(want["values"]); string(g) != string(w) {
			t.Errorf("%s: the API server has\n%s", spec, g)
		}
	}
	for _, spec := range []string{
		`{values: {meshConfig: null, global: {proxy: null, network: null, configValidation: null}, pilot: {env: null, autoscaleMin: null, cpu: null}}}`,
		`{values: {meshConfig: {discoverySelectors: null, trustDomain: null}, sidecarInjectorWebhook: null, global: {proxy: {autoInject: null}}}}`,
		`{values: null}`,
	} {
		if _, err := create(spec); err != nil {
			t.Errorf("%s: %v", spec, err)
		}
	}
}

// loose are the definitions without what they say of spec.
func loose(t *testing.T, crds []client.Object) []client.Object {
	var out []client.Object
	for _, o := range crds {
		m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o.DeepCopyObject())
		must(t, err)
		u := &unstructured.Unstructured{Object: m}
		versions, _, err := unstructured.NestedSlice(u.Object, "spec", "versions")
		must(t, err)
		must(t, unstructured.SetNestedMap(versions[0].(map[string]any),
			map[string]any{"type": "object", "x-kubernetes-preserve-unknown-fields": true}, "schema", "openAPIV3Schema", "properties", "spec"))
		unstructured.RemoveNestedField(versions[0].(map[string]any), "schema", "openAPIV3Schema", "x-kubernetes-validations")
		must(t, unstructured.SetNestedSlice(u.Object, versions, "spec", "versions"))
		out = append(out, u)
	}
	return out
}

// eventually waits until f has no error.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	limit := time.Now().Add(30 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(limit) {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
