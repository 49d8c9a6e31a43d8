package inject

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// annotationChecks are the annotations that injection reads and that can be wrong.
var annotationChecks = map[string]func(string) error{
	"sidecar.istio.io/interceptionMode":                     oneOf("REDIRECT", "TPROXY", "NONE"),
	"sidecar.istio.io/nativeSidecar":                        isBool,
	"sidecar.istio.io/rewriteAppHTTPProbers":                isBool,
	"sidecar.istio.io/capNetBindService":                    isBool,
	"prometheus.istio.io/merge-metrics":                     isBool,
	"status.sidecar.istio.io/port":                          isPort,
	"readiness.status.sidecar.istio.io/initialDelaySeconds": isCount,
	"readiness.status.sidecar.istio.io/periodSeconds":       isCount,
	"readiness.status.sidecar.istio.io/failureThreshold":    isCount,
	"traffic.sidecar.istio.io/includeOutboundIPRanges":      listOf(isRange, "*"),
	"traffic.sidecar.istio.io/excludeOutboundIPRanges":      listOf(isRange, ""),
	"traffic.sidecar.istio.io/includeInboundPorts":          listOf(isPort, "*"),
	"traffic.sidecar.istio.io/excludeInboundPorts":          listOf(isPort, ""),
	"traffic.sidecar.istio.io/includeOutboundPorts":         listOf(isPort, ""),
	"traffic.sidecar.istio.io/excludeOutboundPorts":         listOf(isPort, ""),
	"traffic.sidecar.istio.io/excludeInterfaces":            listOf(isInterface, ""),
	"traffic.sidecar.istio.io/kubevirtInterfaces":           listOf(isInterface, ""),
	"istio.io/reroute-virtual-interfaces":                   listOf(isInterface, ""),
	"sidecar.istio.io/proxyCPU":                             isQuantity,
	"sidecar.istio.io/proxyCPULimit":                        isQuantity,
	"sidecar.istio.io/proxyMemory":                          isQuantity,
	"sidecar.istio.io/proxyMemoryLimit":                     isQuantity,
	"sidecar.istio.io/userVolume":                           isMapOfMaps,
	"sidecar.istio.io/userVolumeMount":                      isMapOfMaps,
	"sidecar.istio.io/logLevel":                             isWord,
	"sidecar.istio.io/componentLogLevel":                    isWord,
	"sidecar.istio.io/agentLogLevel":                        isWord,
}

// checkAnnotations names every bad one at once.
func checkAnnotations(pod *corev1.Pod) error {
	var faults []error
	for _, k := range slices.Sorted(maps.Keys(pod.Annotations)) {
		check, ok := annotationChecks[k]
		if !ok {
			continue
		}
		if err := check(pod.Annotations[k]); err != nil {
			faults = append(faults, fmt.Errorf("annotation %s: %w", k, err))
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

func listOf(check func(string) error, all string) func(string) error {
	return func(s string) error {
		if s == "" || s == all {
			return nil
		}
		for item := range strings.SplitSeq(s, ",") {
			if err := check(strings.TrimSpace(item)); err != nil {
				return err
			}
		}
		return nil
	}
}

func isBool(s string) error {
	if _, err := strconv.ParseBool(s); err != nil {
		return fmt.Errorf("%q is neither true nor false", s)
	}
	return nil
}

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

func isRange(s string) error {
	if _, err := netip.ParsePrefix(s); err == nil {
		return nil
	}
	if _, err := netip.ParseAddr(s); err != nil {
		return fmt.Errorf("%q is not an address range such as 10.0.0.0/8", s)
	}
	return nil
}

func isInterface(s string) error {
	// The letters are those that istio-init takes.
	if s == "" || len(s) > 15 || strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-:@+") != "" {
		return fmt.Errorf("%q is not the name of a network interface", s)
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
