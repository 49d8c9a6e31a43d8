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
	"regexp"
	"slices"
	"strconv"
	"strings"

	"helm.sh/helm/v3/pkg/strvals"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/yaml"
	sigsyaml "sigs.k8s.io/yaml"

	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
	"github.com/heddle-mesh/heddle/internal/operator"
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
	if len(sets) > 0 {
		if err := setAll(subMap(merged, "spec"), sets); err != nil {
			return document{}, err
		}
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

// setAll lays --set expressions over spec. Helm reads them, as everywhere where values are written so; of which type a value
// is the place decides that it is for: clusterName=1.10 is text.
func setAll(spec map[string]any, sets []string) error {
	for _, set := range sets {
		for _, s := range splitSets(set) {
			path, _, ok := strings.Cut(s, "=")
			var fault string
			switch {
			case !ok:
				fault = `want path=value; a comma begins the next setting, one that belongs to a value is written \,`
			case strings.Contains(path, ".["):
				fault = "write the index without a dot before it: " + strings.ReplaceAll(path, ".[", "[")
			case chosen.MatchString(path):
				fault = "items of a list are chosen by their number (a[0].b=c), not by what they contain; or write the list in a document for -f"
			case strings.HasPrefix(path, "spec."):
				fault = "paths begin below spec: " + strings.TrimPrefix(path, "spec.")
			case slices.Contains(strings.Split(path, "."), ""):
				fault = `a name of the path is empty; a dot that belongs to a name is written \.`
			default:
				if err := strvals.ParseIntoFile(s, spec, func(text []rune) (any, error) { return given(text), nil }); err != nil {
					fault = err.Error()
				}
			}
			if fault != "" {
				return fmt.Errorf("--set %s: %s", s, fault)
			}
		}
	}
	for name, v := range spec {
		switch name {
		case "values":
			spec[name] = settle(v, nil)
		case "meshConfig":
			spec[name] = settle(v, []string{name})
		case "components", "unvalidatedValues":
			spec[name] = settle(v, []string{""})
		default: // revision, profile, namespace, hub, tag …
			if g, ok := v.(given); ok {
				spec[name] = string(g)
			}
		}
	}
	return nil
}

// given is a value as --set has it, until it is known what its place takes.
type given string

// chosen is how istioctl's own paths choose an item of a list: [name:x].
var chosen = regexp.MustCompile(`\[[0-9]*[^]0-9]|\[\]`)

// splitSets parts a=b,c=d where Helm would.
func splitSets(set string) (out []string) {
	begin, braced := 0, false
	for i := 0; i < len(set); i++ {
		switch {
		case set[i] == '\\':
			i++
		case set[i] == '{' && i > 0 && set[i-1] == '=':
			braced = true
		case set[i] == '}':
			braced = false
		case set[i] == ',' && !braced:
			out, begin = append(out, set[begin:i]), i+1
		}
	}
	return append(out, set[begin:])
}

// settle gives what --set has put into v the types of their places; path is where v stands among the values.
func settle(v any, path []string) any {
	switch v := v.(type) {
	case map[string]any:
		for name := range v {
			v[name] = settle(v[name], append(slices.Clip(path), name))
		}
	case []any:
		for i := range v {
			v[i] = settle(v[i], append(slices.Clip(path), operator.Item))
		}
	case given:
		return operator.Typed(path, string(v))
	}
	return v
}

// subMap returns the map at name, made if there is none.
func subMap(m map[string]any, name string) map[string]any {
	s, ok := m[name].(map[string]any)
	if !ok {
		s = map[string]any{}
		m[name] = s
	}
	return s
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

// env turns scalars into text where a container takes nothing else and documents leave them unquoted: pilot.env and
// proxyMetadata.
func (p *plan) env() error {
	for _, path := range [][]string{{"pilot", "env"}, {"meshConfig", "defaultConfig", "proxyMetadata"}} {
		m := p.values
		for _, name := range path {
			m, _ = m[name].(map[string]any)
		}
		for _, k := range slices.Sorted(maps.Keys(m)) {
			switch v := m[k].(type) {
			case string, nil:
			case bool:
				m[k] = strconv.FormatBool(v)
			case int64:
				m[k] = strconv.FormatInt(v, 10)
			case float64:
				m[k] = strconv.FormatFloat(v, 'f', -1, 64)
			default:
				return fmt.Errorf("spec.values.%s.%s: want a string, a number or a boolean", strings.Join(path, "."), k)
			}
			if k == "ENABLE_ENHANCED_RESOURCE_SCOPING" {
				p.note("spec.values.pilot.env.%s has no effect: resources are always scoped by the discovery selectors", k)
			}
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
