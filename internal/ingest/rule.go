package ingest

import (
	"fmt"
	"strings"

	"istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Rule reads a DestinationRule. It returns false if the rule cannot be acted on at all; the findings say why.
func Rule(c mesh.Config, k mesh.ObjectKey, d *networkingv1.DestinationRule) (mesh.Rule, bool, []mesh.Finding) {
	r := mesh.Rule{
		Object:    object("DestinationRule", k, &d.ObjectMeta),
		Namespace: k.Namespace,
		Host:      host(c, k.Namespace, d.Spec.Host),
		Export:    visibility(d.Spec.ExportTo, c.RuleExportTo, k.Namespace),
	}
	var found []mesh.Finding
	find := func(reason, format string, args ...any) {
		found = append(found, mesh.Finding{About: r.Ref, Reason: reason, Message: fmt.Sprintf(format, args...)})
	}
	switch {
	case r.Host == "":
		find("HostMissing", "spec.host is empty: name the service that the rule is for")
		return r, false, found
	case d.Spec.WorkloadSelector != nil:
		find("WorkloadSelectorUnsupported", "spec.workloadSelector is not acted on, so the whole rule is left out: remove the selector or the rule")
		return r, false, found
	}
	r.Traffic = traffic(d.Spec.TrafficPolicy, "spec.trafficPolicy", find)
	seen := map[string]bool{}
	for i, s := range d.Spec.Subsets {
		if s.GetName() == "" || seen[s.GetName()] {
			find("SubsetNameTaken", "spec.subsets[%d].name %q is empty or used twice: the subset is left out", i, s.GetName())
			continue
		}
		seen[s.GetName()] = true
		r.Subsets = append(r.Subsets, mesh.Subset{
			Name: s.GetName(), Labels: s.GetLabels(),
			Traffic: traffic(s.GetTrafficPolicy(), fmt.Sprintf("spec.subsets[%d].trafficPolicy", i), find),
		})
	}
	return r, true, found
}

// host completes a name without dots to a service of the rule's own namespace.
func host(c mesh.Config, namespace, name string) string {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if name == "" || name == "*" || strings.Contains(name, ".") {
		return name
	}
	return serviceKey(c, namespace, name).Host
}

type finder func(reason, format string, args ...any)

func traffic(p *v1alpha3.TrafficPolicy, path string, find finder) mesh.Traffic {
	t := mesh.Traffic{TLS: clientTLS(p.GetTls(), path+".tls", find)}
	for i, port := range p.GetPortLevelSettings() {
		if t.Ports == nil {
			t.Ports = map[uint32]mesh.ClientTLS{}
		}
		t.Ports[port.GetPort().GetNumber()] = clientTLS(port.GetTls(), fmt.Sprintf("%s.portLevelSettings[%d].tls", path, i), find)
	}
	return t
}

var tlsModes = map[v1alpha3.ClientTLSSettings_TLSmode]mesh.TLSMode{
	v1alpha3.ClientTLSSettings_DISABLE:      mesh.TLSDisable,
	v1alpha3.ClientTLSSettings_SIMPLE:       mesh.TLSSimple,
	v1alpha3.ClientTLSSettings_MUTUAL:       mesh.TLSMutual,
	v1alpha3.ClientTLSSettings_ISTIO_MUTUAL: mesh.TLSMesh,
}

func clientTLS(s *v1alpha3.ClientTLSSettings, path string, find finder) mesh.ClientTLS {
	if s == nil {
		return mesh.ClientTLS{}
	}
	if s.GetCredentialName() != "" {
		find("CredentialUnsupported", "%s.credentialName is not acted on: give clientCertificate, privateKey and caCertificates as files of the proxy", path)
	}
	if s.GetCaCrl() != "" {
		find("RevocationUnsupported", "%s.caCrl is not acted on: no certificate is held against a revocation list", path)
	}
	mode := tlsModes[s.GetMode()]
	if mode == mesh.TLSMutual && (s.GetClientCertificate() == "" || s.GetPrivateKey() == "") {
		find("ClientCertificateMissing", "%s.mode is MUTUAL without clientCertificate and privateKey, so no certificate is shown: give both, or use SIMPLE", path)
		mode = mesh.TLSSimple
	}
	return mesh.ClientTLS{
		Mode:        mode,
		Certificate: s.GetClientCertificate(), PrivateKey: s.GetPrivateKey(), CA: s.GetCaCertificates(),
		SNI: s.GetSni(), Names: s.GetSubjectAltNames(), Unverified: s.GetInsecureSkipVerify().GetValue(),
	}
}
