// Package judge says what is wrong with an object of Istio's API, and what of it has no effect: to who writes it, at
// admission; about what is stored, as findings; in `heddle check`. A rule about a kind stands in that kind's file, and nowhere
// else. What it says is a function of the object and its place alone.
package judge

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	extensions "istio.io/api/extensions/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	networkingbeta "istio.io/api/networking/v1beta1"
	security "istio.io/api/security/v1beta1"
	telemetry "istio.io/api/telemetry/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Finding is one thing to say about an object.
type Finding struct {
	Field   string // its path, as spec.subsets[1].name; empty for the object as such
	Reason  string // CamelCase, stable
	Message string // what is the matter with the field, and what to do
	Fault   bool   // admission refuses the object; otherwise it is accepted, and has less effect than it looks
}

// Reasons that more than one kind has.
const (
	ReasonUndecodable = "Undecodable" // not what the API is read as
	ReasonInvalid     = "Invalid"
	ReasonNotActedOn  = "NotActedOn" // accepted, without effect in this version
	ReasonMore        = "More"       // there are more findings than are told
)

// String begins with the field. It is bounded, as names and values are what a user wrote.
func (f Finding) String() string {
	text := f.Message
	if f.Field != "" {
		text = f.Field + ": " + text
	}
	return fmt.Sprintf("%.*s", mostText, text)
}

// Verdict is all there is to say about one object, in an order that depends on the object alone. The zero value says nothing.
type Verdict struct {
	findings []Finding
	about    map[about]bool
}

type about struct{ field, reason string }

func (v *Verdict) add(f Finding) {
	if v.about == nil {
		v.about = map[about]bool{}
	}
	v.findings, v.about[about{f.Field, f.Reason}] = append(v.findings, f), true
}

func (v *Verdict) fault(field, reason, format string, a ...any) {
	v.add(Finding{field, reason, fmt.Sprintf(format, a...), true})
}

func (v *Verdict) warn(field, reason, format string, a ...any) {
	v.add(Finding{field, reason, fmt.Sprintf(format, a...), false})
}

// Has reports whether field was found to be what reason says.
func (v Verdict) Has(field, reason string) bool { return v.about[about{field, reason}] }

// What is told of one object is bounded: who writes it chooses how much is wrong.
const (
	mostTold = 20  // findings
	mostText = 500 // characters of one
)

func bounded(all []Finding) []Finding {
	if more := len(all) - mostTold; more > 0 {
		return append(slices.Clip(all[:mostTold]), Finding{Reason: ReasonMore, Message: fmt.Sprintf("and %d more", more), Fault: all[mostTold].Fault})
	}
	return all
}

// Findings are faults and warnings; of very many, the first, and how many more there are.
func (v Verdict) Findings() []Finding { return bounded(v.findings) }

func (v Verdict) texts(of func(Finding) bool) (out []string) {
	for _, f := range bounded(slices.DeleteFunc(slices.Clone(v.findings), func(f Finding) bool { return !of(f) })) {
		out = append(out, f.String())
	}
	return out
}

// Err is why the object is refused, nil if it is not. Users of Istio know how it begins.
func (v Verdict) Err() error {
	faults := v.texts(func(f Finding) bool { return f.Fault })
	if faults == nil {
		return nil
	}
	return errors.New("configuration is invalid: " + strings.Join(faults, "\n"))
}

// Warnings are the findings for which an object is not refused.
func (v Verdict) Warnings() []string { return v.texts(func(f Finding) bool { return !f.Fault }) }

// Undecodable reports whether the object was no object of its kind; nothing else is known of it then.
func (v Verdict) Undecodable() bool {
	return slices.ContainsFunc(v.findings, func(f Finding) bool { return f.Reason == ReasonUndecodable })
}

// Place is where an object is, as far as that decides what it means.
type Place struct {
	Namespace string
	Root      string // namespace of the mesh-wide policies; empty while nobody has said which
}

// kind is what is known of one kind of Istio's API.
type kind struct {
	versions string // served, space-separated
	spec     func() proto.Message
	judge    func(Place, proto.Message) Verdict
}

const (
	networkingGroup = "networking.istio.io"
	securityGroup   = "security.istio.io"
	telemetryGroup  = "telemetry.istio.io"
	extensionsGroup = "extensions.istio.io"
)

// kinds has a row for each kind that the CRDs serve: judged by the function of its own file, or decoded and no more.
var kinds = map[schema.GroupKind]kind{
	{Group: networkingGroup, Kind: "DestinationRule"}:     judged("v1 v1beta1 v1alpha3", DestinationRule),
	{Group: networkingGroup, Kind: "EnvoyFilter"}:         decoded[networking.EnvoyFilter]("v1alpha3"),
	{Group: networkingGroup, Kind: "Gateway"}:             decoded[networking.Gateway]("v1 v1beta1 v1alpha3"),
	{Group: networkingGroup, Kind: "ProxyConfig"}:         decoded[networkingbeta.ProxyConfig]("v1beta1"),
	{Group: networkingGroup, Kind: "ServiceEntry"}:        decoded[networking.ServiceEntry]("v1 v1beta1 v1alpha3"),
	{Group: networkingGroup, Kind: "Sidecar"}:             decoded[networking.Sidecar]("v1 v1beta1 v1alpha3"),
	{Group: networkingGroup, Kind: "VirtualService"}:      decoded[networking.VirtualService]("v1 v1beta1 v1alpha3"),
	{Group: networkingGroup, Kind: "WorkloadEntry"}:       decoded[networking.WorkloadEntry]("v1 v1beta1 v1alpha3"),
	{Group: networkingGroup, Kind: "WorkloadGroup"}:       decoded[networking.WorkloadGroup]("v1 v1beta1 v1alpha3"),
	{Group: securityGroup, Kind: "AuthorizationPolicy"}:   decoded[security.AuthorizationPolicy]("v1 v1beta1"),
	{Group: securityGroup, Kind: "PeerAuthentication"}:    judged("v1 v1beta1", PeerAuthentication),
	{Group: securityGroup, Kind: "RequestAuthentication"}: decoded[security.RequestAuthentication]("v1 v1beta1"),
	{Group: telemetryGroup, Kind: "Telemetry"}:            decoded[telemetry.Telemetry]("v1 v1alpha1"),
	{Group: extensionsGroup, Kind: "WasmPlugin"}:          decoded[extensions.WasmPlugin]("v1alpha1"),
	{Group: extensionsGroup, Kind: "TrafficExtension"}:    decoded[extensions.TrafficExtension]("v1alpha1"),
}

type message[M any] interface {
	*M
	proto.Message
}

func judged[M any, P message[M]](versions string, judge func(Place, P) Verdict) kind {
	return kind{versions, func() proto.Message { return P(new(M)) }, func(at Place, spec proto.Message) Verdict { return judge(at, spec.(P)) }}
}

// decoded is a kind that no code acts on yet.
func decoded[M any, P message[M]](versions string) kind {
	return judged(versions, func(Place, P) (v Verdict) {
		v.warn("", ReasonNotActedOn, "the kind is accepted but not acted on by this version of Heddle")
		return v
	})
}

// Kinds returns all kinds that are judged, each by the version of it that the API server is asked for first.
func Kinds() []schema.GroupVersionKind {
	var out []schema.GroupVersionKind
	for gk, k := range kinds {
		out = append(out, gk.WithVersion(strings.Fields(k.versions)[0]))
	}
	slices.SortFunc(out, func(a, b schema.GroupVersionKind) int { return strings.Compare(a.String(), b.String()) })
	return out
}

// Serves reports whether objects of gvk are judged.
func Serves(gvk schema.GroupVersionKind) bool {
	return slices.Contains(strings.Fields(kinds[gvk.GroupKind()].versions), gvk.Version)
}

// ErrUnknownKind is returned for what is no object of Istio's API.
var ErrUnknownKind = errors.New("unrecognized type")

// alwaysReject marks the object by which the operator learns that the webhook answers.
const alwaysReject = "internal.istio.io/webhook-always-reject"

// Object judges one object, given as JSON, of a mesh whose policies for all are in namespace root. The error is
// ErrUnknownKind.
func Object(raw []byte, root string) (v Verdict, err error) {
	var (
		top  map[string]json.RawMessage
		head struct {
			metav1.TypeMeta
			Metadata metav1.ObjectMeta `json:"metadata"`
		}
	)
	if err := cmp.Or(json.Unmarshal(raw, &top), json.Unmarshal(raw, &head)); err != nil {
		v.fault("", ReasonUndecodable, "%s", plain(err))
		return v, nil
	}
	gvk := head.GroupVersionKind()
	if !Serves(gvk) {
		return v, fmt.Errorf("%w %s, Kind=%s", ErrUnknownKind, gvk.GroupVersion(), gvk.Kind)
	}
	if head.Metadata.Annotations[alwaysReject] == "true" {
		v.fault("metadata.annotations", ReasonInvalid, "%s asks for it", alwaysReject)
	}
	for _, field := range slices.Sorted(maps.Keys(top)) {
		if !slices.Contains([]string{"apiVersion", "kind", "metadata", "spec", "status"}, field) {
			v.fault(field, ReasonInvalid, "unknown field")
		}
	}
	k := kinds[gvk.GroupKind()]
	spec := k.spec()
	verdict := decode("spec", top["spec"], spec)
	if !verdict.Undecodable() {
		verdict = k.judge(Place{Namespace: head.Metadata.Namespace, Root: root}, spec)
	}
	for _, f := range verdict.findings {
		v.add(f)
	}
	return v, nil
}
