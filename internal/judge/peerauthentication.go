package judge

import (
	"fmt"
	"maps"
	"slices"

	security "istio.io/api/security/v1beta1"
)

// ReasonSelectorIgnored decides about the effect of a PeerAuthentication, at spec.selector.
const ReasonSelectorIgnored = "SelectorIgnored"

// PeerAuthentication judges a policy. An empty selector selects all, as none does.
func PeerAuthentication(at Place, pa *security.PeerAuthentication) (v Verdict) {
	labels := pa.GetSelector().GetMatchLabels()
	v.selector("spec.selector.matchLabels", labels)
	if len(labels) > 0 && at.Root != "" && at.Namespace == at.Root {
		v.warn("spec.selector", ReasonSelectorIgnored, "a policy with a selector in the root namespace %s applies to nothing: move it to the namespace of the workloads", at.Root)
	}
	if len(pa.GetPortLevelMtls()) > 0 && len(labels) == 0 {
		v.fault("spec.portLevelMtls", ReasonInvalid, "needs spec.selector with at least one label: ports are those of workloads")
	}
	v.peerMode("spec.mtls.mode", pa.GetMtls())
	for _, port := range slices.Sorted(maps.Keys(pa.GetPortLevelMtls())) {
		at := fmt.Sprintf("spec.portLevelMtls[%d]", port)
		v.port(at, port)
		v.peerMode(at+".mode", pa.GetPortLevelMtls()[port])
	}
	return v
}

// peerMode: the API's decoder takes any number.
func (v *Verdict) peerMode(at string, m *security.PeerAuthentication_MutualTLS) {
	if _, ok := security.PeerAuthentication_MutualTLS_Mode_name[int32(m.GetMode())]; !ok {
		v.fault(at, ReasonInvalid, "%d is no mode: give UNSET, DISABLE, PERMISSIVE or STRICT", m.GetMode())
	}
}
