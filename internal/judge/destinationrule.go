package judge

import (
	"fmt"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Reasons of what decides about the effect of a DestinationRule.
const (
	ReasonHostMissing        = "HostMissing"                 // at spec.host
	ReasonWorkloadSelector   = "WorkloadSelectorUnsupported" // at spec.workloadSelector
	ReasonSubsetName         = "SubsetNameTaken"             // at spec.subsets[i].name: empty, or an earlier subset's
	ReasonCertificateMissing = "ClientCertificateMissing"    // at a policy's tls
	ReasonCredential         = "CredentialUnsupported"       // at a policy's tls.credentialName
	ReasonRevocation         = "RevocationUnsupported"       // at a policy's tls.caCrl
)

// DestinationRule judges a rule.
func DestinationRule(_ Place, dr *networking.DestinationRule) (v Verdict) {
	if dr.GetHost() == "" {
		v.fault("spec.host", ReasonHostMissing, "empty: name the service that the rule is for")
	} else {
		v.host("spec.host", dr.GetHost())
	}
	v.trafficPolicy("spec.trafficPolicy", dr.GetTrafficPolicy())
	names := map[string]bool{}
	for i, s := range dr.GetSubsets() {
		at := fmt.Sprintf("spec.subsets[%d]", i)
		name := s.GetName()
		switch errs := validation.IsDNS1123Label(strings.ToLower(name)); {
		case name == "":
			v.fault(at+".name", ReasonSubsetName, "empty: routes name a subset")
		case names[name]:
			v.fault(at+".name", ReasonSubsetName, "%q is there twice: only the first counts", name)
		case len(errs) > 0:
			v.fault(at+".name", ReasonInvalid, "%q: %s", name, errs[0])
		}
		names[name] = true
		v.selector(at+".labels", s.GetLabels())
		v.trafficPolicy(at+".trafficPolicy", s.GetTrafficPolicy())
	}
	v.exportTo("spec.exportTo", dr.GetExportTo())
	if dr.GetWorkloadSelector() != nil {
		v.selector("spec.workloadSelector.matchLabels", dr.GetWorkloadSelector().GetMatchLabels())
		v.warn("spec.workloadSelector", ReasonWorkloadSelector, "not acted on by this version of Heddle, so the whole rule is left out: remove the selector or the rule")
	}
	return v
}

func (v *Verdict) trafficPolicy(at string, p *networking.TrafficPolicy) {
	if p == nil {
		return
	}
	v.clientTLS(at+".tls", p.GetTls())
	for i, port := range p.GetPortLevelSettings() {
		at := fmt.Sprintf("%s.portLevelSettings[%d]", at, i)
		v.port(at+".port.number", port.GetPort().GetNumber())
		v.clientTLS(at+".tls", port.GetTls())
		v.unused(at, port.ProtoReflect(), "port", "tls")
	}
	v.unused(at, p.ProtoReflect(), "tls", "portLevelSettings")
}

func (v *Verdict) clientTLS(at string, t *networking.ClientTLSSettings) {
	if t == nil {
		return
	}
	files := t.GetClientCertificate() != "" || t.GetPrivateKey() != ""
	credential := t.GetCredentialName() != ""
	switch mode := t.GetMode(); mode {
	case networking.ClientTLSSettings_MUTUAL:
		var missing []string
		if t.GetClientCertificate() == "" {
			missing = append(missing, "clientCertificate")
		}
		if t.GetPrivateKey() == "" {
			missing = append(missing, "privateKey")
		}
		if credential && (files || t.GetCaCertificates() != "" || t.GetCaCrl() != "") {
			v.fault(at+".credentialName", ReasonInvalid, "stands for the files: give one or the other")
		}
		switch {
		case len(missing) == 0:
		case credential:
			v.warn(at, ReasonCertificateMissing, "mode MUTUAL shows no certificate without clientCertificate and privateKey, as credentialName is not acted on")
		default:
			v.fault(at, ReasonCertificateMissing, "mode MUTUAL needs %s, or credentialName", strings.Join(missing, " and "))
		}
	case networking.ClientTLSSettings_SIMPLE:
		if files {
			v.fault(at, ReasonInvalid, "clientCertificate and privateKey belong to mode MUTUAL")
		}
		if credential && t.GetCaCertificates() != "" {
			v.fault(at+".credentialName", ReasonInvalid, "stands for caCertificates: give one or the other")
		}
	default:
		if files || credential || t.GetCaCertificates() != "" {
			v.fault(at, ReasonInvalid, "mode %s takes no clientCertificate, privateKey, caCertificates or credentialName", mode)
		}
	}
	if credential {
		v.warn(at+".credentialName", ReasonCredential, "not acted on by this version of Heddle: give clientCertificate, privateKey and caCertificates as files of the proxy")
	}
	if t.GetCaCrl() != "" {
		v.warn(at+".caCrl", ReasonRevocation, "not acted on by this version of Heddle: no certificate is held against a revocation list")
	}
	if t.GetInsecureSkipVerify().GetValue() && (t.GetCaCertificates() != "" || len(t.GetSubjectAltNames()) > 0) {
		v.fault(at+".insecureSkipVerify", ReasonInvalid, "contradicts caCertificates and subjectAltNames, which ask for a check")
	}
	if slices.Contains(t.GetSubjectAltNames(), "") {
		v.fault(at+".subjectAltNames", ReasonInvalid, "holds an empty name")
	}
}
