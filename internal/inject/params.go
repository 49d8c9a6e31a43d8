package inject

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"text/template"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	meshconfig "istio.io/api/mesh/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Settings is what the operator wrote for one revision, as it stands in the ConfigMaps.
type Settings struct {
	Mesh      mesh.ID
	Revision  string // empty means "default"
	Namespace string // the mesh's system namespace

	MeshConfig []byte // YAML: key mesh of ConfigMap istio[-revision]
	Config     []byte // YAML: key config of ConfigMap istio-sidecar-injector[-revision]; empty for the built-in template alone
	Values     []byte // JSON: key values of the same; laid over defaults
}

// Params is Settings, parsed: all that Patch and Validate may know apart from the object. It is not changed after Parse
// and safe for concurrent use.
type Params struct {
	Settings
	config        config
	mesh          *meshconfig.MeshConfig
	defaultConfig map[string]any // mesh.defaultConfig with Istio's defaults below; what a pod's annotation is merged into
	values        map[string]any
	templates     map[string]*template.Template
	always, never []labels.Selector
}

// config is the key config of the injector's ConfigMap.
type config struct {
	Policy               string                 `json:"policy,omitempty"` // enabled, the default, or disabled, as is any other word
	DefaultTemplates     []string               `json:"defaultTemplates,omitempty"`
	Aliases              map[string][]string    `json:"aliases,omitempty"`
	AlwaysInjectSelector []metav1.LabelSelector `json:"alwaysInjectSelector,omitempty"`
	NeverInjectSelector  []metav1.LabelSelector `json:"neverInjectSelector,omitempty"`
	InjectedAnnotations  map[string]string      `json:"injectedAnnotations,omitempty"`
	Templates            map[string]string      `json:"templates,omitempty"`
}

//go:embed values.yaml
var defaultValues []byte

//go:embed sidecar.yaml
var sidecarTemplate string

// Parse reads Settings; its error names every fault at once. Keys that nobody knows are left alone: MeshConfig and values
// are shared with other readers.
func Parse(s Settings) (*Params, error) {
	if s.Revision == "" {
		s.Revision = "default"
	}
	p := &Params{Settings: s, mesh: &meshconfig.MeshConfig{}, templates: map[string]*template.Template{}}
	var faults []error
	fault := func(what string, err error) {
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", what, err))
		}
	}
	meshMap, err := decodeMap(s.MeshConfig)
	fault("mesh config", err)
	fault("mesh config", remarshal(meshMap, p.mesh))
	p.defaultConfig = p.builtinProxyConfig()
	if c, ok := meshMap["defaultConfig"].(map[string]any); ok {
		p.defaultConfig = overlay(p.defaultConfig, c)
	}
	fault("injector config", yaml.Unmarshal(s.Config, &p.config))
	values, err := decodeMap(s.Values)
	fault("injector values", err)
	base, err := decodeMap(defaultValues)
	fault("default values", err)
	p.values = overlay(base, values)
	if len(p.config.DefaultTemplates) == 0 {
		p.config.DefaultTemplates = []string{"sidecar"}
	}
	texts := map[string]string{"sidecar": sidecarTemplate}
	maps.Copy(texts, p.config.Templates)
	for name, text := range texts {
		p.templates[name], err = template.New(name).Funcs(p.funcs()).Parse(text)
		fault("template "+name, err)
	}
	p.always, err = selectors(p.config.AlwaysInjectSelector)
	fault("alwaysInjectSelector", err)
	p.never, err = selectors(p.config.NeverInjectSelector)
	fault("neverInjectSelector", err)
	return p, errors.Join(faults...)
}

// service is the host name of the plane: Istio leaves the suffix out for the revision named default.
func (p *Params) service() string {
	if p.Revision == "default" {
		return "istiod." + p.Namespace + ".svc"
	}
	return "istiod-" + p.Revision + "." + p.Namespace + ".svc"
}

// MeshConfig returns the mesh configuration as its ConfigMap says it, without Istio's defaults. The caller must not change it.
func (p *Params) MeshConfig() *meshconfig.MeshConfig { return p.mesh }

// Audience returns whom the token of an injected pod is for: the mesh, unless values.global.sds.token.aud says otherwise.
func (p *Params) Audience() string {
	if a := p.str("global", "sds", "token", "aud"); a != "" {
		return a
	}
	return mesh.Audience(p.Namespace, p.Mesh)
}

// ProfilesEnv is the variable of values.pilot.env that lets the control plane's profiles be taken.
const ProfilesEnv = "HEDDLE_PROFILES"

// Profiling returns whether profiles of the control plane may be taken: not, unless the values say so.
func (p *Params) Profiling() bool {
	on, err := strconv.ParseBool(p.text("pilot", "env", ProfilesEnv))
	return err == nil && on
}

// builtinProxyConfig is what a proxy of Istio assumes of fields that nobody set.
func (p *Params) builtinProxyConfig() map[string]any {
	return map[string]any{
		"configPath": "/etc/istio/proxy", "binaryPath": "/usr/local/bin/envoy", "serviceCluster": "istio-proxy",
		"drainDuration": "45s", "terminationDrainDuration": "5s", "controlPlaneAuthPolicy": "MUTUAL_TLS",
		"proxyAdminPort": 15000.0, "statusPort": 15020.0, "discoveryAddress": p.service() + ":15012",
	}
}

// proxyConfig is the mesh's with the pod's annotation (YAML) over it.
func (p *Params) proxyConfig(annotation string) (*meshconfig.ProxyConfig, error) {
	over, err := decodeMap([]byte(annotation))
	if err != nil {
		return nil, fmt.Errorf("annotation %s: %w", proxyConfigAnnotation, err)
	}
	c := &meshconfig.ProxyConfig{}
	if err := remarshal(overlay(p.defaultConfig, over), c); err != nil {
		return nil, fmt.Errorf("annotation %s: %w", proxyConfigAnnotation, err)
	}
	return c, nil
}

// sparse encodes c without the fields that equal the built-in defaults; the discovery address always stays.
func (p *Params) sparse(c *meshconfig.ProxyConfig) (string, error) {
	base := &meshconfig.ProxyConfig{}
	if err := remarshal(p.builtinProxyConfig(), base); err != nil {
		return "", err
	}
	base.DiscoveryAddress = ""
	c = proto.CloneOf(c)
	r, b := c.ProtoReflect(), base.ProtoReflect()
	r.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if b.Has(f) && v.Equal(b.Get(f)) {
			r.Clear(f)
		}
		return true
	})
	return protoJSON(c)
}

// protoJSON is protojson in one spelling: protojson itself varies its spaces on purpose.
func protoJSON(m proto.Message) (string, error) {
	j, err := protojson.Marshal(m)
	if err != nil {
		return "", err
	}
	var v any
	if err := json.Unmarshal(j, &v); err != nil {
		return "", err
	}
	j, err = json.Marshal(v)
	return string(j), err
}

func (p *Params) str(path ...string) string {
	s, _ := lookup(p.values, path...).(string)
	return s
}

// text is a value as templates print it, whatever YAML took it for.
func (p *Params) text(path ...string) string {
	if v := lookup(p.values, path...); v != nil {
		return fmt.Sprint(v)
	}
	return ""
}

func (p *Params) bool(path ...string) bool {
	switch v := lookup(p.values, path...).(type) {
	case bool:
		return v
	case string:
		return strings.EqualFold(v, "true")
	}
	return false
}

func lookup(m map[string]any, path ...string) any {
	var v any = m
	for _, k := range path {
		m, _ := v.(map[string]any)
		v = m[k]
	}
	return v
}

// overlay returns base with over merged into it: maps by key, everything else replaced; null in over changes nothing.
func overlay(base, over map[string]any) map[string]any {
	out := maps.Clone(base)
	if out == nil {
		out = map[string]any{}
	}
	for k, v := range over {
		b, ok := out[k].(map[string]any)
		o, both := v.(map[string]any)
		switch {
		case ok && both:
			out[k] = overlay(b, o)
		case v != nil:
			out[k] = v
		}
	}
	return out
}

func decodeMap(text []byte) (map[string]any, error) {
	m := map[string]any{}
	return m, yaml.Unmarshal(text, &m)
}

// remarshal fills a message of Istio's mesh API from a map that was YAML. Its own decoder is used, not protojson, which would
// refuse the durations of Istio's documents (5m); fields unknown to this version are left out.
func remarshal(m map[string]any, into json.Unmarshaler) error {
	j, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return into.UnmarshalJSON(j)
}

func selectors(in []metav1.LabelSelector) (out []labels.Selector, err error) {
	for i := range in {
		s, err := metav1.LabelSelectorAsSelector(&in[i])
		if err != nil {
			return nil, err
		}
		if !s.Empty() { // as Istio: an empty entry matches nothing, not everything
			out = append(out, s)
		}
	}
	return out, nil
}

// rootNamespace holds the mesh-wide policies.
func (p *Params) rootNamespace() string { return first(p.mesh.GetRootNamespace(), p.Namespace) }
