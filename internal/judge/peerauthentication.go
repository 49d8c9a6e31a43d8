package judge

import (
	"fmt"
	"maps"
	"slices"

	security "istio.io/api/security/v1beta1"
)

// Reasons of what decides about the effect of a PeerAuthentication.
const (
	ReasonSelectorIgnored  = "SelectorIgnored"  // at spec.selector
	ReasonPortLevelIgnored = "PortLevelIgnored" // at spec.portLevelMtls
)

// PeerAuthentication judges a policy. An empty selector selects all, as none does.
func PeerAuthentication(at Place, pa *security.PeerAuthentication) (v Verdict) {
	labels := pa.GetSelector().GetMatchLabels()
	v.selector("spec.selector.matchLabels", labels)
	if len(labels) > 0 && at.Root != "" && at.Namespace == at.Root {
		v.warn("spec.selector", ReasonSelectorIgnored, "a policy with a selector in the root namespace %s applies to nothing: move it to the namespace of the workloads", at.Root)
	}
	if len(pa.GetPortLevelMtls()) > 0 && len(labels) == 0 {
		v.fault("spec.portLevelMtls", ReasonPortLevelIgnored, "needs spec.selector with at least one label, and has no effect without: ports are those of workloads")
	}
	for _, port := range slices.Sorted(maps.Keys(pa.GetPortLevelMtls())) {
		v.port(fmt.Sprintf("spec.portLevelMtls[%d]", port), port)
	}
	return v
}
