package inject

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	extensions "istio.io/api/extensions/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	networkingbeta "istio.io/api/networking/v1beta1"
	security "istio.io/api/security/v1beta1"
	telemetry "istio.io/api/telemetry/v1alpha1"
	istiotype "istio.io/api/type/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// alwaysReject marks the object by which the operator learns that the webhook answers.
const alwaysReject = "internal.istio.io/webhook-always-reject"

// kind is what Validate knows of one Istio kind.
type kind struct {
	versions string // served, space-separated
	spec     func() proto.Message
	check    func(o *object, spec proto.Message) // nil: decoded strictly, not acted on yet
}

type groupKind struct{ group, kind string }

var kinds = map[groupKind]kind{
	{"networking.istio.io", "DestinationRule"}:     {"v1 v1beta1 v1alpha3", func() proto.Message { return &networking.DestinationRule{} }, checkDestinationRule},
	{"networking.istio.io", "EnvoyFilter"}:         {"v1alpha3", func() proto.Message { return &networking.EnvoyFilter{} }, nil},
	{"networking.istio.io", "Gateway"}:             {"v1 v1beta1 v1alpha3", func() proto.Message { return &networking.Gateway{} }, nil},
	{"networking.istio.io", "ProxyConfig"}:         {"v1beta1", func() proto.Message { return &networkingbeta.ProxyConfig{} }, nil},
	{"networking.istio.io", "ServiceEntry"}:        {"v1 v1beta1 v1alpha3", func() proto.Message { return &networking.ServiceEntry{} }, nil},
	{"networking.istio.io", "Sidecar"}:             {"v1 v1beta1 v1alpha3", func() proto.Message { return &networking.Sidecar{} }, nil},
	{"networking.istio.io", "VirtualService"}:      {"v1 v1beta1 v1alpha3", func() proto.Message { return &networking.VirtualService{} }, nil},
	{"networking.istio.io", "WorkloadEntry"}:       {"v1 v1beta1 v1alpha3", func() proto.Message { return &networking.WorkloadEntry{} }, nil},
	{"networking.istio.io", "WorkloadGroup"}:       {"v1 v1beta1 v1alpha3", func() proto.Message { return &networking.WorkloadGroup{} }, nil},
	{"security.istio.io", "AuthorizationPolicy"}:   {"v1 v1beta1", func() proto.Message { return &security.AuthorizationPolicy{} }, nil},
	{"security.istio.io", "PeerAuthentication"}:    {"v1 v1beta1", func() proto.Message { return &security.PeerAuthentication{} }, checkPeerAuthentication},
	{"security.istio.io", "RequestAuthentication"}: {"v1 v1beta1", func() proto.Message { return &security.RequestAuthentication{} }, nil},
	{"telemetry.istio.io", "Telemetry"}:            {"v1 v1alpha1", func() proto.Message { return &telemetry.Telemetry{} }, nil},
	{"extensions.istio.io", "WasmPlugin"}:          {"v1alpha1", func() proto.Message { return &extensions.WasmPlugin{} }, nil},
	{"extensions.istio.io", "TrafficExtension"}:    {"v1alpha1", func() proto.Message { return &extensions.TrafficExtension{} }, nil},
}

// errInvalid begins every refusal of a known kind, as users of Istio know it.
var errInvalid = errors.New("configuration is invalid")

// errDecode and errRejected tell the reason in the counter; any other refusal is about a field.
var (
	errDecode   = errors.New("undecodable")
	errUnknown  = errors.New("unrecognized type")
	errRejected = errors.New("object is annotated " + alwaysReject)
)

func reasonOf(err error) string {
	switch {
	case errors.Is(err, errUnknown):
		return "unknown_type"
	case errors.Is(err, errDecode):
		return "yaml_decode_error"
	}
	return "invalid_resource"
}

// object collects what is wrong with, or worth saying of, one object.
type object struct {
	metav1.ObjectMeta
	kind     string
	root     string // namespace of the mesh-wide policies
	faults   []error
	warnings []string
}

func (o *object) fault(field, format string, a ...any) {
	o.faults = append(o.faults, fmt.Errorf("%s: %s", field, fmt.Sprintf(format, a...)))
}

func (o *object) warn(format string, a ...any) {
	o.warnings = append(o.warnings, fmt.Sprintf(format, a...))
}

// Validate checks one Istio object, given as JSON, for a mesh with the root namespace root. The error names every fault;
// warnings say what is accepted but not acted on.
func Validate(raw []byte, root string) (warnings []string, err error) {
	var top map[string]json.RawMessage
	if err := json.Unmarshal(raw, &top); err != nil {
		return nil, fmt.Errorf("%w: %w: %w", errInvalid, errDecode, err)
	}
	var head struct {
		metav1.TypeMeta
		Metadata metav1.ObjectMeta `json:"metadata"`
		Spec     json.RawMessage   `json:"spec"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return nil, fmt.Errorf("%w: %w: %w", errInvalid, errDecode, err)
	}
	gvk := head.GroupVersionKind()
	k, ok := kinds[groupKind{gvk.Group, gvk.Kind}]
	if !ok || !slices.Contains(strings.Fields(k.versions), gvk.Version) {
		return nil, fmt.Errorf("%w %s, Kind=%s", errUnknown, gvk.GroupVersion(), gvk.Kind)
	}
	if head.Metadata.Annotations[alwaysReject] == "true" {
		return nil, fmt.Errorf("%w: %w", errInvalid, errRejected)
	}
	o := &object{ObjectMeta: head.Metadata, kind: gvk.Kind, root: root}
	for _, field := range slices.Sorted(maps.Keys(top)) {
		if !slices.Contains([]string{"apiVersion", "kind", "metadata", "spec", "status"}, field) {
			o.fault(field, "unknown field")
		}
	}
	spec := k.spec()
	if s := bytes.TrimSpace(head.Spec); len(s) > 0 && !bytes.Equal(s, []byte("null")) {
		if err := (protojson.UnmarshalOptions{}).Unmarshal(s, spec); err != nil {
			o.fault("spec", "%s", plain(err))
			return nil, fmt.Errorf("%w: %w: %w", errInvalid, errDecode, errors.Join(o.faults...))
		}
	}
	checkEnums(o, "spec", spec.ProtoReflect())
	if k.check != nil {
		k.check(o, spec)
	} else {
		o.warn("%s is accepted but not acted on by this version of Heddle", gvk.Kind)
	}
	if len(o.faults) > 0 {
		return nil, fmt.Errorf("%w: %w", errInvalid, errors.Join(o.faults...))
	}
	return o.warnings, nil
}

var protoPrefix = regexp.MustCompile(`^proto:\s*(\(line \d+:\d+\):)?\s*`)

// plain strips what protojson says of itself: its prefix, with a space that varies on purpose, and a position in text that
// the user never saw.
func plain(err error) string { return protoPrefix.ReplaceAllString(err.Error(), "") }

// checkEnums finds numbers that stand for no name, which protojson lets pass.
func checkEnums(o *object, path string, m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		at := path + "." + f.JSONName()
		one := func(v protoreflect.Value) {
			switch {
			case f.Enum() != nil && f.Enum().Values().ByNumber(v.Enum()) == nil:
				o.fault(at, "%d is not a value of %s", v.Enum(), f.Enum().Name())
			case f.Message() != nil:
				checkEnums(o, at, v.Message())
			}
		}
		switch {
		case f.IsMap():
			if f.MapValue().Message() != nil {
				v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
					checkEnums(o, at+"["+k.String()+"]", v.Message())
					return true
				})
			}
		case f.IsList():
			for i := range v.List().Len() {
				one(v.List().Get(i))
			}
		default:
			one(v)
		}
		return true
	})
}

func checkPeerAuthentication(o *object, spec proto.Message) {
	pa := spec.(*security.PeerAuthentication)
	selects := len(pa.GetSelector().GetMatchLabels()) > 0
	checkSelector(o, "spec.selector", pa.GetSelector())
	if selects && o.Namespace == o.root && o.root != "" {
		o.warn("spec.selector: a policy with a selector in the root namespace %s applies to nothing; move it to the workload's namespace", o.root)
	}
	if len(pa.GetPortLevelMtls()) > 0 && !selects {
		o.fault("spec.portLevelMtls", "needs spec.selector with at least one label: ports are those of workloads")
	}
	for _, port := range slices.Sorted(maps.Keys(pa.GetPortLevelMtls())) {
		if port < 1 || port > 65535 {
			o.fault(fmt.Sprintf("spec.portLevelMtls[%d]", port), "not a port number (1 to 65535)")
		}
	}
}

func checkSelector(o *object, field string, s *istiotype.WorkloadSelector) {
	for _, k := range slices.Sorted(maps.Keys(s.GetMatchLabels())) {
		v := s.GetMatchLabels()[k]
		if errs := validation.IsQualifiedName(k); len(errs) > 0 {
			o.fault(field+".matchLabels", "key %q: %s", k, errs[0])
		}
		if errs := validation.IsValidLabelValue(v); len(errs) > 0 {
			o.fault(field+".matchLabels", "%s=%q: %s", k, v, errs[0])
		}
	}
}

func checkDestinationRule(o *object, spec proto.Message) {
	dr := spec.(*networking.DestinationRule)
	checkHost(o, dr.GetHost())
	checkPolicy(o, "spec.trafficPolicy", dr.GetTrafficPolicy())
	names := map[string]bool{}
	for i, s := range dr.GetSubsets() {
		at := fmt.Sprintf("spec.subsets[%d]", i)
		if errs := validation.IsDNS1123Label(strings.ToLower(s.GetName())); len(errs) > 0 {
			o.fault(at+".name", "%q: %s", s.GetName(), errs[0])
		}
		if names[s.GetName()] {
			o.fault(at+".name", "%q is there twice", s.GetName())
		}
		names[s.GetName()] = true
		checkSelector(o, at, &istiotype.WorkloadSelector{MatchLabels: s.GetLabels()})
		checkPolicy(o, at+".trafficPolicy", s.GetTrafficPolicy())
	}
	for _, e := range dr.GetExportTo() {
		if e == "." || e == "*" {
			if len(dr.GetExportTo()) > 1 {
				o.fault("spec.exportTo", "%q stands alone or not at all", e)
			}
			continue
		}
		if errs := validation.IsDNS1123Label(e); len(errs) > 0 {
			o.fault("spec.exportTo", "%q is neither \".\", \"*\" nor a namespace", e)
		}
	}
	if dr.GetWorkloadSelector() != nil {
		checkSelector(o, "spec.workloadSelector", dr.GetWorkloadSelector())
		o.warn("spec.workloadSelector is accepted but not acted on by this version of Heddle")
	}
}

func checkHost(o *object, host string) {
	name := host
	if rest, wild := strings.CutPrefix(host, "*."); wild {
		name = rest
	}
	if host == "*" {
		return
	}
	if errs := validation.IsDNS1123Subdomain(strings.ToLower(name)); len(errs) > 0 {
		o.fault("spec.host", "%q is not the name of a service: %s", host, errs[0])
	}
}

func checkPolicy(o *object, at string, p *networking.TrafficPolicy) {
	if p == nil {
		return
	}
	checkTLS(o, at+".tls", p.GetTls())
	for i, port := range p.GetPortLevelSettings() {
		at := fmt.Sprintf("%s.portLevelSettings[%d]", at, i)
		if n := port.GetPort().GetNumber(); n < 1 || n > 65535 {
			o.fault(at+".port.number", "%d is not a port number (1 to 65535)", n)
		}
		checkTLS(o, at+".tls", port.GetTls())
		warnOthers(o, at, port.ProtoReflect(), "port", "tls")
	}
	warnOthers(o, at, p.ProtoReflect(), "tls", "portLevelSettings")
}

// warnOthers names the fields that are set and that no code acts on yet.
func warnOthers(o *object, at string, m protoreflect.Message, acted ...string) {
	var names []string
	m.Range(func(f protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		if !slices.Contains(acted, f.JSONName()) {
			names = append(names, f.JSONName())
		}
		return true
	})
	slices.Sort(names)
	for _, n := range names {
		o.warn("%s.%s is accepted but not acted on by this version of Heddle", at, n)
	}
}

func checkTLS(o *object, at string, t *networking.ClientTLSSettings) {
	if t == nil {
		return
	}
	files := t.GetClientCertificate() != "" || t.GetPrivateKey() != ""
	switch mode := t.GetMode(); mode {
	case networking.ClientTLSSettings_MUTUAL:
		switch {
		case t.GetCredentialName() != "" && (files || t.GetCaCertificates() != "" || t.GetCaCrl() != ""):
			o.fault(at+".credentialName", "stands for the files: give one or the other")
		case t.GetCredentialName() == "" && t.GetClientCertificate() == "":
			o.fault(at+".clientCertificate", "mode MUTUAL needs it, or credentialName")
		case t.GetCredentialName() == "" && t.GetPrivateKey() == "":
			o.fault(at+".privateKey", "mode MUTUAL needs it, or credentialName")
		}
	case networking.ClientTLSSettings_SIMPLE:
		if files {
			o.fault(at, "clientCertificate and privateKey belong to mode MUTUAL")
		}
		if t.GetCredentialName() != "" && t.GetCaCertificates() != "" {
			o.fault(at+".credentialName", "stands for caCertificates: give one or the other")
		}
	default:
		if files || t.GetCaCertificates() != "" || t.GetCredentialName() != "" {
			o.fault(at, "mode %s takes no clientCertificate, privateKey, caCertificates or credentialName", mode)
		}
	}
	if t.GetInsecureSkipVerify().GetValue() && (t.GetCaCertificates() != "" || len(t.GetSubjectAltNames()) > 0) {
		o.fault(at+".insecureSkipVerify", "contradicts caCertificates and subjectAltNames, which ask for a check")
	}
	for _, san := range t.GetSubjectAltNames() {
		if san == "" {
			o.fault(at+".subjectAltNames", "holds an empty name")
		}
	}
}
