package inject

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	meshconfig "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/heddle-mesh/heddle/internal/node/redirect"
)

// handling is what injection does with an annotation.
type handling struct {
	check     func(string) error // nil: any text will do
	ignoredAs string             // why it has no effect; empty for one that has
}

// annotations are all that Istio defines for pods, and a few that it does not list. TestAnnotationsAreIstios holds that.
var annotations = map[string]handling{
	"sidecar.istio.io/interceptionMode":                     {check: oneOf("REDIRECT", "TPROXY", "NONE")},
	"sidecar.istio.io/nativeSidecar":                        {check: isBool},
	"sidecar.istio.io/rewriteAppHTTPProbers":                {check: isBool},
	"sidecar.istio.io/capNetBindService":                    {check: isBool},
	"prometheus.istio.io/merge-metrics":                     {check: isBool},
	"status.sidecar.istio.io/port":                          {check: isPort},
	"readiness.status.sidecar.istio.io/initialDelaySeconds": {check: isCount},
	"readiness.status.sidecar.istio.io/periodSeconds":       {check: isCount},
	"readiness.status.sidecar.istio.io/failureThreshold":    {check: isCount},
	"traffic.sidecar.istio.io/includeOutboundIPRanges":      {check: allOr(redirect.ParseRanges)},
	"traffic.sidecar.istio.io/excludeOutboundIPRanges":      {check: parses(redirect.ParseRanges)},
	"traffic.sidecar.istio.io/includeInboundPorts":          {check: allOr(redirect.ParsePorts)},
	"traffic.sidecar.istio.io/excludeInboundPorts":          {check: parses(redirect.ParsePorts)},
	"traffic.sidecar.istio.io/includeOutboundPorts":         {check: parses(redirect.ParsePorts)},
	"traffic.sidecar.istio.io/excludeOutboundPorts":         {check: parses(redirect.ParsePorts)},
	"traffic.sidecar.istio.io/excludeInterfaces":            {check: parses(redirect.ParseInterfaces)},
	"traffic.sidecar.istio.io/kubevirtInterfaces":           {check: parses(redirect.ParseInterfaces)},
	"istio.io/reroute-virtual-interfaces":                   {check: parses(redirect.ParseInterfaces)},
	"sidecar.istio.io/proxyCPU":                             {check: isQuantity},
	"sidecar.istio.io/proxyCPULimit":                        {check: isQuantity},
	"sidecar.istio.io/proxyMemory":                          {check: isQuantity},
	"sidecar.istio.io/proxyMemoryLimit":                     {check: isQuantity},
	"sidecar.istio.io/userVolume":                           {check: isMapOfMaps},
	"sidecar.istio.io/userVolumeMount":                      {check: isMapOfMaps},
	"sidecar.istio.io/logLevel":                             {check: isWord},
	"sidecar.istio.io/componentLogLevel":                    {check: isWord},
	"sidecar.istio.io/agentLogLevel":                        {check: isWord},
	"sidecar.istio.io/proxyImageType":                       {check: isTag},
	"sidecar.istio.io/proxyImage":                           {},
	"sidecar.istio.io/bootstrapOverride":                    {},
	"sidecar.istio.io/discoveryAddress":                     {},
	proxyConfigAnnotation:                                   {}, // read by Params.proxyConfig
	templatesAnnotation:                                     {}, // by Params.render
	injectLabel:                                             {}, // by asked

	// Written by injection itself.
	statusAnnotation:    {},
	overridesAnnotation: {},
	revisionAnnotation:  {},

	"readiness.status.sidecar.istio.io/applicationPorts": {ignoredAs: "the proxy is ready without the application; give the application a readinessProbe"},
	"sidecar.istio.io/statsInclusionPrefixes":            {ignoredAs: "write proxyStatsMatcher in annotation " + proxyConfigAnnotation},
	"sidecar.istio.io/statsInclusionSuffixes":            {ignoredAs: "write proxyStatsMatcher in annotation " + proxyConfigAnnotation},
	"sidecar.istio.io/statsInclusionRegexps":             {ignoredAs: "write proxyStatsMatcher in annotation " + proxyConfigAnnotation},
	"sidecar.istio.io/statsHistogramBuckets":             {ignoredAs: "histograms have Envoy's buckets"},
	"sidecar.istio.io/statsHistogramBins":                {ignoredAs: "histograms have Envoy's bins"},
	"sidecar.istio.io/statsFlushInterval":                {ignoredAs: "statistics are flushed at Envoy's own interval"},
	"sidecar.istio.io/statsEvictionInterval":             {ignoredAs: "statistics are not evicted"},
	"sidecar.istio.io/statsCompression":                  {ignoredAs: "statistics are not compressed"},
	"sidecar.istio.io/extraStatTags":                     {ignoredAs: "statistics have no tags of their users yet"},
	"ambient.istio.io/bypass-inbound-capture":            {ignoredAs: "there is no ambient mode yet"},
	"ambient.istio.io/dns-capture":                       {ignoredAs: "there is no ambient mode yet"},
	"ambient.istio.io/redirection":                       {ignoredAs: "there is no ambient mode yet"},
}

// proxyConfigFields are those of annotation proxy.istio.io/config that something acts on.
var proxyConfigFields = []protoreflect.Name{
	"config_path", "binary_path", "service_cluster", "concurrency", "drain_duration", "termination_drain_duration", "discovery_address",
	"interception_mode", "proxy_metadata", "status_port", "mesh_id", "proxy_stats_matcher", "hold_application_until_proxy_starts", "image",
}

// proxyMetadataIgnored switch on what there is not.
var proxyMetadataIgnored = map[string]string{
	"ISTIO_META_DNS_CAPTURE":       "the proxy does not answer DNS yet",
	"ISTIO_META_DNS_AUTO_ALLOCATE": "the proxy does not answer DNS yet",
	"ISTIO_META_ENABLE_HBONE":      "the proxy does not speak HBONE yet",
}

// checkAnnotations names every bad one at once.
func checkAnnotations(pod *corev1.Pod) error {
	var faults []error
	for _, k := range slices.Sorted(maps.Keys(pod.Annotations)) {
		check := annotations[k].check
		if check == nil {
			continue
		}
		if err := check(pod.Annotations[k]); err != nil {
			faults = append(faults, fmt.Errorf("annotation %s: %w", k, err))
		}
	}
	return errors.Join(faults...)
}

// unread tells of a wish for or against injection that is in no word that counts; "" if there is none.
func unread(pod *corev1.Pod) string {
	if v := wish(pod); v != "" && asked(pod) == "" {
		return fmt.Sprintf("heddle: %s: %.80q is neither true nor false and counts as not said", injectLabel, v)
	}
	return ""
}

// ignored tells of what pod asks for in vain.
func (p *Params) ignored(pod *corev1.Pod) []string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(pod.Annotations)) {
		if why := annotations[k].ignoredAs; why != "" {
			out = append(out, fmt.Sprintf("heddle: annotation %s has no effect: %s", k, why))
		}
	}
	if pod.Annotations["sidecar.istio.io/proxyImageType"] != "" && isReference(p.str("global", "proxy", "image")) {
		out = append(out, "heddle: annotation sidecar.istio.io/proxyImageType has no effect: the mesh names its image in full; use sidecar.istio.io/proxyImage")
	}
	if n := pod.Annotations[portAnnotation]; n != "" && isPort(n) != nil {
		out = append(out, fmt.Sprintf("heddle: annotation %s: %.80q is not a port number: the application's metrics are not merged", portAnnotation, n))
	}
	return append(out, p.ignoredConfig(pod.Annotations[proxyConfigAnnotation])...)
}

// ignoredConfig is ignored for the pod's ProxyConfig.
func (p *Params) ignoredConfig(annotation string) []string {
	over, err := decodeMap([]byte(annotation))
	if err != nil {
		return nil // Patch refuses it
	}
	var out []string
	no := func(what, why string) {
		out = append(out, fmt.Sprintf("heddle: annotation %s: %.80s has no effect: %s", proxyConfigAnnotation, what, why))
	}
	fields := (&meshconfig.ProxyConfig{}).ProtoReflect().Descriptor().Fields()
	for _, k := range slices.Sorted(maps.Keys(over)) {
		f := fields.ByJSONName(k)
		if f == nil {
			f = fields.ByTextName(k)
		}
		switch {
		case f == nil:
			no(k, "there is no such field")
		case !slices.Contains(proxyConfigFields, f.Name()):
			no(k, "proxies do not know it yet")
		}
	}
	c := &meshconfig.ProxyConfig{}
	if remarshal(over, c) == nil {
		for _, k := range slices.Sorted(maps.Keys(proxyMetadataIgnored)) {
			if on, err := strconv.ParseBool(c.GetProxyMetadata()[k]); err == nil && on {
				no(k, proxyMetadataIgnored[k])
			}
		}
	}
	return out
}

// redirectValues are the mesh's own settings of what pods may set by annotation, and go the same way to istio-init.
var redirectValues = map[string]string{
	"includeIPRanges":      "traffic.sidecar.istio.io/includeOutboundIPRanges",
	"excludeIPRanges":      "traffic.sidecar.istio.io/excludeOutboundIPRanges",
	"includeInboundPorts":  "traffic.sidecar.istio.io/includeInboundPorts",
	"excludeInboundPorts":  "traffic.sidecar.istio.io/excludeInboundPorts",
	"includeOutboundPorts": "traffic.sidecar.istio.io/includeOutboundPorts",
	"excludeOutboundPorts": "traffic.sidecar.istio.io/excludeOutboundPorts",
}

// checkValues names every value of the mesh that istio-init would refuse in pod.
func (p *Params) checkValues(pod *corev1.Pod) error {
	var faults []error
	for _, k := range slices.Sorted(maps.Keys(redirectValues)) {
		if _, own := pod.Annotations[redirectValues[k]]; own {
			continue
		}
		if err := annotations[redirectValues[k]].check(p.text("global", "proxy", k)); err != nil {
			faults = append(faults, fmt.Errorf("values.global.proxy.%s of mesh %s: %w", k, p.Mesh, err))
		}
	}
	return errors.Join(faults...)
}

func oneOf(words ...string) func(string) error {
	return func(s string) error {
		if slices.Contains(words, s) {
			return nil
		}
		return fmt.Errorf("%q is none of %s", s, strings.Join(words, ", "))
	}
}

// parses asks who will read the value in the end.
func parses[T any](parse func(string) ([]T, error)) func(string) error {
	return func(s string) error { _, err := parse(s); return err }
}

// allOr is parses where a star stands for all.
func allOr[T any](parse func(string) ([]T, error)) func(string) error {
	return func(s string) error {
		if s == "*" {
			return nil
		}
		return parses(parse)(s)
	}
}

func isBool(s string) error {
	if _, err := strconv.ParseBool(s); err != nil {
		return fmt.Errorf("%q is neither true nor false", s)
	}
	return nil
}

// isPort takes one number, as the agent does.
func isPort(s string) error {
	if _, err := strconv.ParseUint(s, 10, 16); err != nil {
		return fmt.Errorf("%q is not a port number (0 to 65535)", s)
	}
	return nil
}

func isCount(s string) error {
	if _, err := strconv.ParseUint(s, 10, 31); err != nil {
		return fmt.Errorf("%q is not a whole number from 0", s)
	}
	return nil
}

func isQuantity(s string) error {
	if _, err := resource.ParseQuantity(s); err != nil {
		return fmt.Errorf("%q is not a quantity such as 100m or 64Mi", s)
	}
	return nil
}

func isMapOfMaps(s string) error {
	m := map[string]map[string]any{}
	if err := json.Unmarshal([]byte(s), &m); err != nil {
		return fmt.Errorf("not a JSON map from name to definition: %w", err)
	}
	return nil
}

// isWord keeps what goes into an argument to one line without YAML's own signs.
func isWord(s string) error {
	if strings.ContainsAny(s, "\n\r#{}[]&*!|>'\"%@` ") {
		return fmt.Errorf("%q is not a level such as debug or misc:error,upstream:debug", s)
	}
	return nil
}

// isTag keeps to what the tag of an image may hold.
func isTag(s string) error {
	if s == "" || strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") != "" {
		return fmt.Errorf("%q is not a type of image such as distroless", s)
	}
	return nil
}

// reservedPorts are those the proxy itself listens on inside the pod.
var reservedPorts = map[int32]string{
	15000: "Envoy's admin", 15001: "outbound traffic", 15004: "debugging", 15006: "inbound traffic", 15008: "HBONE", 15009: "HBONE",
	15020: "the agent", 15021: "the proxy's health", 15053: "the DNS proxy", 15090: "the proxy's metrics",
}

// checkPorts refuses probes and scrapes of the application on ports that are the proxy's. Probes moved before pass.
func checkPorts(pod *corev1.Pod) error {
	_, injected := pod.Annotations[statusAnnotation]
	if n, err := strconv.ParseInt(pod.Annotations[portAnnotation], 10, 32); err == nil && !injected {
		if whose, ok := reservedPorts[int32(n)]; ok {
			return fmt.Errorf("annotation %s: port %d is taken by %s; name the application's own port", portAnnotation, n, whose)
		}
	}
	for _, c := range slices.Concat(pod.Spec.Containers, pod.Spec.InitContainers) {
		for _, probe := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
			if probe == nil || probe.HTTPGet == nil || strings.HasPrefix(probe.HTTPGet.Path, "/app-health/") {
				continue
			}
			if whose, ok := reservedPorts[probe.HTTPGet.Port.IntVal]; ok {
				return fmt.Errorf("a probe of container %s uses port %d, which is taken by %s", c.Name, probe.HTTPGet.Port.IntVal, whose)
			}
		}
	}
	return nil
}
