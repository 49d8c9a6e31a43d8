package operator

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	meshconfig "istio.io/api/mesh/v1alpha1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// key is what may stand at one place of a tree of chart values. The zero key takes anything.
type key struct {
	keys  map[string]key    // of a group with names
	each  *key              // of a list's items, or of a group's other names
	list  bool              // it is a list
	want  string            // of a single value: what it must be, for who wrote something else
	is    func(v any) error // whether a single value is that; nil for anything
	acted bool              // some part of Heddle does something with it; of a group without names, with all of it

	// Of a group that is a protobuf message.
	other map[string]string // names that its JSON may have too, by which one every document writes
	oneof map[string]string // alternatives, of which there can be one, by names of keys
}

// chart is every value that a supported version of Istio or the Sail operator knows, and whether Heddle acts on it: the one
// list by which values are refused, read, and named in the condition ValuesUsed. TestTableTellsTheTruth holds what is acted on.
// Source: operator/pkg/apis/values_types.proto and the chart istio-discovery of Istio 1.24 to 1.31, Sail's values_types.gen.go,
// and for meshConfig the descriptors of istio.io/api. What belongs to components that an Istio object does not install (cni,
// ztunnel, gateways) is not looked into.
var chart = sync.OnceValue(func() key {
	resources, affinity, tolerations, names := object[corev1.ResourceRequirements](), object[corev1.Affinity](), object[[]corev1.Toleration](), key{each: &text}
	selectors := object[[]metav1.LabelSelector]().and(labelSelectors)
	texts := listOf(text)
	utilization := group(map[string]key{"targetAverageUtilization": acted(count)})
	enabled := group(map[string]key{"enabled": boolean})
	remote := func(path key) key {
		return group(map[string]key{
			"enabled": boolean, "enabledLocalInjectorIstiod": boolean, "injectionCABundle": text, "injectionPath": path, "injectionURL": text,
		})
	}
	mesh := message((&meshconfig.MeshConfig{}).ProtoReflect().Descriptor(), "", actedMeshConfig)
	// A type does not say all: these would be refused by every pod's injection or agent.
	proxy := mesh.keys["defaultConfig"].keys
	proxy["discoveryAddress"] = acted(address)
	proxy["interceptionMode"] = acted(oneOf("REDIRECT", "NONE"))
	proxy["statusPort"] = acted(port)
	return group(map[string]key{
		"profile": acted(text), "compatibilityVersion": scalar, "revision": acted(text), "defaultRevision": text, "revisionTags": texts, "ownerName": text,
		"cni": {}, "istio_cni": {}, "ztunnel": {}, "gateways": {}, "gatewayClasses": {}, "experimental": {}, "ambient": {}, "pdb": {},
		"base":      {},
		"telemetry": {},
		"global": group(map[string]key{
			"agentgateway": {}, "arch": {}, "autoscalingv2API": boolean, "caAddress": acted(address), "caName": text, "certSigners": texts, "configCluster": boolean, "configRootNamespace": text,
			"configValidation": acted(boolean), "defaultConfigVisibilitySettings": {}, "defaultNodeSelector": names,
			"defaultPodDisruptionBudget": enabled, "defaultResources": resources, "defaultTolerations": tolerations, "enableReaderRBAC": boolean,
			"enabled": boolean, "externalIstiod": boolean, "hub": text,
			"imagePullPolicy": acted(oneOf("", "Always", "IfNotPresent", "Never")), "imagePullSecrets": acted(texts), "ipFamilies": texts, "ipFamilyPolicy": text,
			"istioNamespace": acted(text), "istiod": group(map[string]key{"enableAnalysis": boolean}), "jwtPolicy": text,
			"logAsJson": acted(boolean), "logging": group(map[string]key{"level": acted(text)}), "meshID": acted(text), "meshNetworks": {},
			"mountMtlsCerts": boolean, "multiCluster": group(map[string]key{
				"clusterName": acted(text), "enabled": boolean, "globalDomainSuffix": text, "includeEnvoyFilter": boolean,
			}),
			"nativeNftables": boolean, "network": acted(text), "networkPolicy": {}, "omitSidecarInjectorConfigMap": boolean, "oneNamespace": boolean,
			"operatorManageWebhooks": boolean, "pilotCertProvider": acted(text), "platform": text, "podDNSSearchNamespaces": texts, "priorityClassName": text,
			"proxy": group(map[string]key{
				"autoInject": acted(oneOf("enabled", "disabled")), "capNetBindService": scalar, "clusterDomain": acted(text), "componentLogLevel": acted(text),
				"enableCoreDump": boolean, "excludeIPRanges": acted(text), "excludeInboundPorts": acted(ports), "excludeOutboundPorts": acted(ports),
				"holdApplicationUntilProxyStarts": acted(boolean), "image": acted(text), "includeIPRanges": acted(text),
				"includeInboundPorts": acted(ports), "includeOutboundPorts": acted(ports), "lifecycle": acted(object[corev1.Lifecycle]()), "logLevel": acted(text),
				"outlierLogPath": text, "privileged": boolean, "readinessFailureThreshold": acted(count), "readinessInitialDelaySeconds": acted(count),
				"readinessPeriodSeconds": acted(count), "resources": acted(resources), "seccompProfile": object[corev1.SeccompProfile](),
				"startupProbe": group(map[string]key{"enabled": acted(boolean), "failureThreshold": acted(count)}), "statusPort": port,
				"tracer": text, "variant": text,
			}),
			"proxy_init":         group(map[string]key{"forceApplyIptables": boolean, "image": acted(text), "resources": resources}),
			"remotePilotAddress": text, "resourceScope": oneOf("undefined", "all", "cluster", "namespace"), "revision": text,
			"sds": group(map[string]key{"token": group(map[string]key{"aud": acted(text)})}), "sts": group(map[string]key{"servicePort": acted(port)}),
			"tag": scalar, "tracer": {}, "trustBundleName": text, "trustDomain": text, "variant": text, "waypoint": {},
		}),
		"pilot": group(map[string]key{
			"affinity": affinity, "ambientInitContainerInjection": boolean, "autoscaleBehavior": acted(object[autoscalingv2.HorizontalPodAutoscalerBehavior]()),
			"autoscaleEnabled": acted(boolean), "autoscaleMax": acted(positive), "autoscaleMin": acted(positive),
			"cni": group(map[string]key{"chained": boolean, "enabled": boolean, "provider": text}), "configMap": boolean, "configNamespace": text, "configSource": {},
			"cpu": utilization, "crlConfigMapName": text, "deploymentAnnotations": names, "deploymentLabels": names, "enabled": boolean,
			// A control plane reads these, the others of Istio's are for Istio's own.
			"env": {keys: map[string]key{
				clusterEnv: acted(scalar), "COMPLIANCE_POLICY": acted(scalar), "ENABLE_NATIVE_SIDECARS": acted(scalar),
				"ISTIOD_CUSTOM_HOST": acted(scalar), profilesEnv: acted(truth), "GODEBUG": acted(scalar), "GOGC": acted(scalar), "GOMAXPROCS": acted(scalar), "GOMEMLIMIT": acted(scalar),
			}, each: &scalar},
			"envVarFrom": object[[]corev1.EnvVar](), "extraContainerArgs": {}, "hub": text, "image": text, "ingress": {}, "initContainers": {},
			"ipFamilies": texts, "ipFamilyPolicy": text, "istiodRemote": remote(text), "jwksResolverExtraRootCA": text,
			"keepaliveMaxServerConnectionAge": duration, "memory": utilization, "nodeSelector": acted(names), "plugins": {}, "podAnnotations": names,
			"podLabels": names, "policy": {}, "replicaCount": acted(count), "resources": acted(resources), "rollingMaxSurge": scalar, "rollingMaxUnavailable": scalar,
			"seccompProfile": object[corev1.SeccompProfile](), "serviceAccountAnnotations": names, "serviceAnnotations": names,
			"sidecarInjectorWebhookAnnotations": names, "tag": scalar, "taint": group(map[string]key{"enabled": boolean, "namespace": text}),
			"tolerations": acted(tolerations), "topologySpreadConstraints": object[[]corev1.TopologySpreadConstraint](), "traceSampling": number,
			"trafficDistribution": text, "trustedZtunnelName": text, "trustedZtunnelNamespace": text, "useMCP": boolean, "variant": text,
			"volumeMounts": object[[]corev1.VolumeMount](), "volumes": object[[]corev1.Volume](),
		}),
		"sidecarInjectorWebhook": group(map[string]key{
			"aliases": acted(object[map[string][]string]()), "alwaysInjectSelector": acted(selectors), "defaultTemplates": acted(texts), "enableAccessLogging": boolean,
			"enableNamespacesByDefault": acted(boolean), "injectedAnnotations": acted(names), "injectionURL": text, "neverInjectSelector": acted(selectors),
			"objectSelector": {}, "reinvocationPolicy": oneOf("Never", "IfNeeded"), "rewriteAppHTTPProbe": acted(boolean), "templates": acted(names),
			"useLegacySelectors": boolean,
		}),
		"istiodRemote": remote(acted(text)),
		"meshConfig":   mesh,
	})
})

// actedMeshConfig are the fields of MeshConfig that some part of Heddle acts on; of a message, all of it.
var actedMeshConfig = []string{
	"accessLogEncoding", "accessLogFile", "defaultDestinationRuleExportTo", "defaultServiceExportTo", "discoverySelectors", "enableAutoMtls",
	"enablePrometheusMerge", "outboundTrafficPolicy.mode", "protocolDetectionTimeout", "rootNamespace", "trustDomain", "trustDomainAliases",
	"defaultConfig.binaryPath", "defaultConfig.concurrency", "defaultConfig.configPath", "defaultConfig.discoveryAddress", "defaultConfig.drainDuration",
	"defaultConfig.holdApplicationUntilProxyStarts", "defaultConfig.interceptionMode", "defaultConfig.meshId", "defaultConfig.proxyMetadata",
	"defaultConfig.proxyStatsMatcher", "defaultConfig.serviceCluster", "defaultConfig.statusPort", "defaultConfig.terminationDrainDuration",
}

func group(keys map[string]key) key { return key{keys: keys} }

func listOf(item key) key { return key{list: true, each: &item} }

// acted marks what some part of Heddle acts on.
func acted(k key) key { k.acted = true; return k }

var (
	text    = single("text; put it in quotes", func(v any) bool { _, ok := v.(string); return ok })
	boolean = single("true or false", func(v any) bool { _, ok := v.(bool); return ok })
	scalar  = single("text, a number, true or false", func(v any) bool {
		switch v.(type) {
		case string, float64, bool:
			return true
		}
		return false
	})
	truth    = single("true or false", func(v any) bool { _, err := strconv.ParseBool(fmt.Sprint(v)); return err == nil }) // in quotes too
	number   = single("a number", func(v any) bool { _, ok := v.(float64); return ok })
	count    = within("a whole number, 0 or more", 0, math.MaxInt32)
	positive = within("a whole number, 1 or more", 1, math.MaxInt32)
	port     = within("a port number, or 0 for none", 0, math.MaxUint16)
	// Istio's API takes what time.ParseDuration does; no field of these has a use for one below zero.
	duration = single("a duration such as 1h, 90s or 300ms", func(v any) bool {
		s, _ := v.(string)
		d, err := time.ParseDuration(s)
		return err == nil && d >= 0
	})
	address = single("host:port", func(v any) bool {
		s, ok := v.(string)
		host, number, err := net.SplitHostPort(s)
		n, nerr := strconv.ParseUint(number, 10, 16)
		return ok && (s == "" || err == nil && nerr == nil && host != "" && n > 0)
	})
	// As in the annotations of a pod: numbers and ranges in one text, or * for all.
	ports = single("ports with commas between them, in quotes", func(v any) bool {
		s, ok := v.(string)
		return ok && (s == "" || s == "*" || !slices.ContainsFunc(strings.Split(s, ","), func(p string) bool {
			_, err := strconv.ParseUint(strings.TrimSpace(p), 10, 16)
			return err != nil
		}))
	})
)

func single(want string, ok func(v any) bool) key {
	return key{want: want, is: func(v any) error {
		if !ok(v) {
			j, _ := json.Marshal(v) // it came from JSON
			return fmt.Errorf("%s is not %s", cut(string(j)), want)
		}
		return nil
	}}
}

// unknown is a fault of a name only: the values beside it can be read.
type unknown struct{ error }

// cut keeps an error readable whatever somebody put into a value.
func cut(s string) string {
	if len(s) > 60 {
		return s[:57] + "..."
	}
	return s
}

func within(want string, least, most float64) key {
	return single(want, func(v any) bool {
		n, ok := v.(float64)
		return ok && n == math.Trunc(n) && n >= least && n <= most
	})
}

// quoted is a number that may stand in quotes, as those of protobuf may.
func quoted(want string, least, most float64) key {
	plain := within(want, least, most)
	return single(want, func(v any) bool {
		if s, ok := v.(string); ok {
			n, err := strconv.ParseInt(s, 10, 64)
			return err == nil && plain.is(float64(n)) == nil
		}
		return plain.is(v) == nil
	})
}

func oneOf(words ...string) key {
	shown := slices.DeleteFunc(slices.Clone(words), func(w string) bool { return w == "" })
	return single("one of "+strings.Join(shown, ", "), func(v any) bool {
		s, ok := v.(string)
		return ok && slices.Contains(words, s)
	})
}

// object is a value of Kubernetes' own API, which is looked into as strictly as Kubernetes would.
func object[T any]() key {
	return key{is: func(v any) error {
		j, err := json.Marshal(v)
		if err != nil {
			return err
		}
		d := json.NewDecoder(bytes.NewReader(j))
		d.DisallowUnknownFields()
		if err := d.Decode(new(T)); err != nil {
			text := errors.New(strings.TrimPrefix(err.Error(), "json: "))
			if json.Unmarshal(j, new(T)) == nil {
				return unknown{text}
			}
			return text
		}
		return nil
	}}
}

// and makes k mind what more says, too.
func (k key) and(more func(v any) error) key {
	first := k.is
	k.is = func(v any) error { return cmp.Or(first(v), more(v)) }
	return k
}

// labelSelectors are read by the control plane, which does not run with one that nobody can read.
func labelSelectors(v any) error {
	j, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var list []metav1.LabelSelector
	if err := json.Unmarshal(j, &list); err != nil {
		return err
	}
	for i := range list {
		if _, err := metav1.LabelSelectorAsSelector(&list[i]); err != nil {
			return err
		}
	}
	return nil
}

// message makes a group of a protobuf message, in the names that every document writes. The others that protobuf's JSON may
// have (discovery_selectors) are not taken: what reads values would miss them.
func message(m protoreflect.MessageDescriptor, path string, actedOn []string) key {
	switch m.FullName() {
	case "google.protobuf.BoolValue":
		return boolean
	case "google.protobuf.StringValue":
		return text
	case "google.protobuf.DoubleValue", "google.protobuf.FloatValue":
		return number
	case "google.protobuf.Int32Value", "google.protobuf.UInt32Value", "google.protobuf.Int64Value", "google.protobuf.UInt64Value":
		return field(m.Fields().ByName("value"), path, actedOn)
	case "google.protobuf.Duration":
		return duration
	case "google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue", "google.protobuf.Any", "google.protobuf.Timestamp":
		return key{}
	}
	k := key{keys: map[string]key{}, other: map[string]string{}, oneof: map[string]string{}}
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		if name := string(f.Name()); name != f.JSONName() {
			k.other[name] = f.JSONName()
		}
		if o := f.ContainingOneof(); o != nil && !o.IsSynthetic() {
			k.oneof[f.JSONName()] = string(o.Name())
		}
		below := strings.TrimPrefix(path+"."+f.JSONName(), ".")
		fk := field(f, below, actedOn)
		fk.acted = slices.Contains(actedOn, below)
		k.keys[f.JSONName()] = fk
	}
	return k
}

func field(f protoreflect.FieldDescriptor, path string, actedOn []string) key {
	one := func(f protoreflect.FieldDescriptor) key {
		switch f.Kind() {
		case protoreflect.MessageKind:
			return message(f.Message(), path, actedOn)
		case protoreflect.EnumKind:
			var words []string
			for i := range f.Enum().Values().Len() {
				words = append(words, string(f.Enum().Values().Get(i).Name()))
			}
			return oneOf(words...)
		case protoreflect.BoolKind:
			return boolean
		case protoreflect.StringKind, protoreflect.BytesKind:
			return text
		case protoreflect.DoubleKind, protoreflect.FloatKind:
			return number
		case protoreflect.Uint32Kind, protoreflect.Uint64Kind:
			return quoted("a whole number, 0 or more", 0, math.MaxUint32)
		}
		return quoted("a whole number", math.MinInt32, math.MaxInt32)
	}
	switch {
	case f.IsMap():
		item := one(f.MapValue())
		return key{each: &item}
	case f.IsList():
		return listOf(one(f))
	}
	return one(f)
}

// at is the key of a name below k.
func (k key) at(name string) (key, bool) {
	if sub, ok := k.keys[name]; ok {
		return sub, true
	}
	if k.each != nil && !k.list {
		return *k.each, true
	}
	return key{}, k.keys == nil
}

// grouped reports whether what stands below k has names.
func (k key) grouped() bool { return k.keys != nil || k.each != nil && !k.list }

// faults names what of v, which stands at path, no supported version of Istio takes. Null is as good as absent.
func (k key) faults(path string, v any) (out []error) {
	if v == nil {
		return nil
	}
	switch {
	case k.grouped():
		m, ok := v.(map[string]any)
		if !ok {
			return []error{fmt.Errorf("%s: want names with values below it", path)}
		}
		for _, name := range slices.Sorted(maps.Keys(m)) {
			if sub, ok := k.at(name); ok {
				out = append(out, sub.faults(path+"."+name, m[name])...)
			} else {
				out = append(out, unknown{fmt.Errorf("%s.%s is no value of any supported version of Istio%s", path, name, k.meant(path, name))})
			}
		}
		for _, names := range k.rivals(m) {
			out = append(out, fmt.Errorf("%s: %s are alternatives; give one of them", path, strings.Join(names, ", ")))
		}
	case k.list:
		l, ok := v.([]any)
		if !ok {
			return []error{fmt.Errorf("%s: want a list", path)}
		}
		for i, item := range l {
			out = append(out, k.each.faults(fmt.Sprintf("%s[%d]", path, i), item)...)
		}
	case k.is != nil:
		if err := k.is(v); err != nil {
			out = append(out, fmt.Errorf("%s: %w", path, err))
		}
	}
	return out
}

// rivals are the names in m of which there can be one only, sorted; it is nobody's to say which.
func (k key) rivals(m map[string]any) (out [][]string) {
	by := map[string][]string{}
	for _, name := range slices.Sorted(maps.Keys(m)) {
		if o, ok := k.oneof[name]; ok && m[name] != nil {
			by[o] = append(by[o], name)
		}
	}
	for _, o := range slices.Sorted(maps.Keys(by)) {
		if len(by[o]) > 1 {
			out = append(out, by[o])
		}
	}
	return out
}

// meant says which key a name may stand for; empty if it looks like none.
func (k key) meant(path, name string) string {
	if guess := k.guess(path, name); guess != "" {
		return "; did you mean " + path + "." + guess + "?"
	}
	return ""
}

// guess is the key below path that a name may stand for; empty if it looks like none.
func (k key) guess(path, name string) string {
	best, least := "", tolerated(name)+1
	for _, known := range slices.Sorted(maps.Keys(k.keys)) {
		if d := distance(strings.ToLower(name), strings.ToLower(known)); d < least {
			best, least = known, d
		}
	}
	if best == "" && path == "spec.values" {
		for _, room := range []string{"pilot", "global", "meshConfig"} { // as in charts of their own, and as one remembers them
			if _, ok := k.keys[room].keys[name]; ok {
				return room + "." + name
			}
		}
	}
	return best
}

// tolerated is how many letters of a misspelt name may be wrong.
func tolerated(name string) int { return len(name) / 3 }

// suspects names what of v is unknown where it stands and may have been meant for discovery selectors.
func (k key) suspects(path string, v any) (out []error) {
	m, ok := v.(map[string]any)
	if !ok || !k.grouped() {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(m)) {
		unknown := map[string]any{name: m[name]}
		if sub, known := k.at(name); known {
			out = append(out, sub.suspects(path+"."+name, m[name])...)
		} else if mentions(unknown, "discoverySelectors") || k.guess(path, name) == "" && mentions(unknown, "matchLabels", "matchExpressions") {
			out = append(out, k.faults(path, unknown)...)
		}
	}
	return out
}

// mentions reports whether v has, at any depth, a name that is one of the words or looks like it.
func mentions(v any, words ...string) bool {
	switch v := v.(type) {
	case map[string]any:
		for name, below := range v {
			if slices.ContainsFunc(words, func(w string) bool {
				return distance(strings.ToLower(name), strings.ToLower(w)) <= tolerated(name)
			}) || mentions(below, words...) {
				return true
			}
		}
	case []any:
		return slices.ContainsFunc(v, func(item any) bool { return mentions(item, words...) })
	}
	return false
}

// sound is v without the values that cannot be what they stand for, as where two stand for one. What is unknown stays: a template
// may read it.
func (k key) sound(v any) any {
	m, ok := v.(map[string]any)
	if !ok || !k.grouped() {
		if slices.ContainsFunc(k.faults("", v), func(err error) bool { return !errors.As(err, new(unknown)) }) {
			return nil
		}
		return v
	}
	out, rivals := map[string]any{}, slices.Concat(k.rivals(m)...)
	for name, v := range m {
		if meant, ok := k.other[name]; ok && m[meant] != nil || slices.Contains(rivals, name) {
			continue
		}
		sub, _ := k.at(name) // the zero key takes anything
		if s := sub.sound(v); s != nil || v == nil {
			out[name] = s
		}
	}
	return out
}

// distance is how many letters must be changed, added or left out to make b of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			d := diagonal
			if a[i] != b[j] {
				d = min(diagonal, row[j], row[j+1]) + 1
			}
			diagonal, row[j+1] = row[j+1], d
		}
	}
	return row[len(b)]
}

// read is the part of v that is acted on; the rest is nobody's to read.
func (k key) read(v any) any {
	m, ok := v.(map[string]any)
	switch {
	case k.acted:
		return v
	case !k.grouped():
		return nil
	case !ok:
		return v // whoever decodes it says that it is no map
	}
	out := map[string]any{}
	for name, v := range m {
		sub, _ := k.at(name)
		if r := sub.read(v); r != nil {
			out[name] = r
		}
	}
	return out
}

// unused names what is set in v and not acted on, leaf by leaf.
func (k key) unused(path string, v any) (out []string) {
	m, ok := v.(map[string]any)
	switch {
	case v == nil || k.acted:
	case !ok || len(m) == 0 || k.is != nil:
		out = append(out, path)
	default:
		for name, v := range m {
			sub, _ := k.at(name)
			out = append(out, sub.unused(strings.TrimPrefix(path+"."+name, "."), v)...)
		}
	}
	return out
}

// Item stands for any item of a list in a path of values.
const Item = "[]"

// Typed is what a text stands for that was written without a type at a place among the values: what that takes, if the text
// is such a one, else the text.
func Typed(path []string, text string) any {
	k := chart()
	for _, name := range path {
		if k.list && name == Item {
			k = *k.each
			continue
		}
		k, _ = k.at(name)
	}
	var v any
	err := json.Unmarshal([]byte(text), &v)
	switch {
	case text == "null":
		return nil // as Helm: not set
	case err != nil || k.is != nil && k.is("x") == nil: // any text will do
		return text
	case k.is == nil: // anything: a number only if it says all of the text, which 1.10 does not
		if j, err := json.Marshal(v); err != nil || string(j) != text {
			return text
		}
	case k.is(v) != nil:
		return text
	}
	return v
}
