package cli

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/yaml"
	sigsyaml "sigs.k8s.io/yaml"

	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
)

// document is an IstioOperator: a file format of istioctl's, never an object of the cluster.
type document struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec            documentSpec      `json:"spec,omitempty"`
}

type documentSpec struct {
	Profile              string         `json:"profile,omitempty"`
	Revision             string         `json:"revision,omitempty"`
	Namespace            string         `json:"namespace,omitempty"`
	Hub                  string         `json:"hub,omitempty"`
	Tag                  any            `json:"tag,omitempty"`
	InstallPackagePath   string         `json:"installPackagePath,omitempty"`
	CompatibilityVersion string         `json:"compatibilityVersion,omitempty"`
	MeshConfig           map[string]any `json:"meshConfig,omitempty"`
	Components           map[string]any `json:"components,omitempty"`
	Values               map[string]any `json:"values,omitempty"`
	UnvalidatedValues    map[string]any `json:"unvalidatedValues,omitempty"`
}

// plan is what a document comes to.
type plan struct {
	name      string // of the Istio object and its revision
	namespace string
	profile   string
	values    map[string]any
	notes     []string // what was accepted and has no effect
}

// readDocument merges the documents in order, later ones winning, then the --set expressions.
func readDocument(texts [][]byte, sets []string) (document, error) {
	merged := map[string]any{}
	for _, text := range texts {
		r := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
		for {
			part, err := r.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return document{}, fmt.Errorf("read the document: %w", err)
			}
			var m map[string]any
			if err := sigsyaml.UnmarshalStrict(part, &m); err != nil {
				return document{}, fmt.Errorf("read the document: %w", err)
			}
			merge(merged, m)
		}
	}
	for _, s := range sets {
		path, value, ok := strings.Cut(s, "=")
		if !ok {
			return document{}, fmt.Errorf("--set %s: want path=value", s)
		}
		var v any = value
		if json.Unmarshal([]byte(value), &v) != nil { // not YAML, to which n is false
			v = value
		}
		keys := append([]string{"spec"}, strings.Split(path, ".")...)
		for _, k := range slices.Backward(keys) {
			v = map[string]any{k: v}
		}
		merge(merged, v.(map[string]any))
	}
	var d document
	j, err := json.Marshal(merged)
	if err != nil {
		return d, err
	}
	dec := json.NewDecoder(bytes.NewReader(j))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		return d, fmt.Errorf("read the document: %w", err)
	}
	if len(texts) > 0 && (d.Kind != "IstioOperator" || d.APIVersion != "install.istio.io/v1alpha1") {
		return d, fmt.Errorf("the document is %s %s; install takes IstioOperator of install.istio.io/v1alpha1 (an Istio of sailoperator.io is for kubectl apply)", d.APIVersion, d.Kind)
	}
	return d, nil
}

// planOf translates a document. A revision given as a flag wins over the document, a namespace is for one that names none.
func planOf(d document, namespace, revision string) (plan, error) {
	s := d.Spec
	p := plan{profile: s.Profile, values: map[string]any{}}
	if s.Profile == "minimal" {
		p.profile = "" // the default without a gateway; ours never installs one
	}
	merge(p.values, s.Values)
	merge(p.values, s.UnvalidatedValues)
	if s.MeshConfig != nil {
		merge(p.values, map[string]any{"meshConfig": s.MeshConfig})
	}
	valueRevision, _ := p.values["revision"].(string)
	p.name = cmp.Or(revision, s.Revision, valueRevision, sailv1.DefaultName)
	delete(p.values, "revision") // the operator sets it
	istioNamespace, _, err := unstructured.NestedString(p.values, "global", "istioNamespace")
	if err != nil {
		return p, fmt.Errorf("spec.values: %w", err)
	}
	p.namespace = cmp.Or(istioNamespace, d.Metadata.Namespace, s.Namespace, namespace, "istio-system")
	var faults []error
	if errs := validation.IsDNS1123Label(p.name); len(errs) > 0 {
		faults = append(faults, fmt.Errorf("revision %q: %s", p.name, errs[0]))
	}
	if errs := validation.IsDNS1123Label(p.namespace); len(errs) > 0 {
		faults = append(faults, fmt.Errorf("namespace %q: %s", p.namespace, errs[0]))
	}
	faults = append(faults, p.components(s.Components), p.env())
	for field, set := range map[string]bool{
		"spec.hub": s.Hub != "", "spec.tag": s.Tag != nil, "spec.installPackagePath": s.InstallPackagePath != "", "spec.compatibilityVersion": s.CompatibilityVersion != "",
	} {
		if set {
			p.note("%s has no effect: images and manifests are Heddle's own (--image, --proxy-image)", field)
		}
	}
	slices.Sort(p.notes)
	return p, errors.Join(faults...)
}

func (p *plan) note(format string, a ...any) { p.notes = append(p.notes, fmt.Sprintf(format, a...)) }

// components takes base and pilot, which every mesh has, and refuses what would be missing afterwards.
func (p *plan) components(components map[string]any) error {
	var faults []error
	for _, name := range slices.Sorted(maps.Keys(components)) {
		list, isList := components[name].([]any)
		if !isList {
			list = []any{components[name]}
		}
		for _, c := range list {
			m, _ := c.(map[string]any)
			enabled, said := m["enabled"].(bool)
			switch {
			case name == "base" || name == "pilot":
				if said && !enabled {
					faults = append(faults, fmt.Errorf("spec.components.%s: a mesh without it is not supported", name))
				}
				if _, ok := m["k8s"]; ok {
					p.note("spec.components.%s.k8s has no effect: use spec.values.pilot", name)
				}
			case enabled:
				faults = append(faults, fmt.Errorf("spec.components.%s: not supported yet; leave it out or disable it", name))
			}
		}
	}
	return errors.Join(faults...)
}

// env turns the scalars of pilot.env, which documents leave unquoted, into the strings that a container takes.
func (p *plan) env() error {
	pilot, _ := p.values["pilot"].(map[string]any)
	env, _ := pilot["env"].(map[string]any)
	for _, k := range slices.Sorted(maps.Keys(env)) {
		switch v := env[k].(type) {
		case string:
		case bool:
			env[k] = strconv.FormatBool(v)
		case int64:
			env[k] = strconv.FormatInt(v, 10)
		case float64:
			env[k] = strconv.FormatFloat(v, 'f', -1, 64)
		default:
			return fmt.Errorf("spec.values.pilot.env.%s: want a string, a number or a boolean", k)
		}
		if k == "ENABLE_ENHANCED_RESOURCE_SCOPING" {
			p.note("spec.values.pilot.env.%s has no effect: resources are always scoped by the discovery selectors", k)
		}
	}
	return nil
}

// istio is the object that the operator takes.
func (p *plan) istio() *unstructured.Unstructured {
	spec := map[string]any{"namespace": p.namespace, "values": p.values}
	if p.profile != "" {
		spec["profile"] = p.profile
	}
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": sailv1.GroupVersion.String(), "kind": "Istio", "metadata": map[string]any{"name": p.name}, "spec": spec,
	}}
	return u
}

// merge lays over into base: maps by key, everything else replaced.
func merge(base, over map[string]any) {
	for k, v := range over {
		b, ok := base[k].(map[string]any)
		o, both := v.(map[string]any)
		switch {
		case ok && both:
			merge(b, o)
		case both:
			m := map[string]any{}
			merge(m, o)
			base[k] = m
		default:
			base[k] = v
		}
	}
}
