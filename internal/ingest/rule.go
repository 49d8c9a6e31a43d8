package ingest

import (
	"fmt"
	"strings"

	"istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/heddle-mesh/heddle/internal/judge"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Rule reads a DestinationRule. It returns false if the rule cannot be acted on at all; the findings say why. What is wrong
// with a rule takes back that part of it, whatever it said before: a rule says how clients call, not whom a server accepts.
func Rule(c mesh.Config, k mesh.ObjectKey, d *networkingv1.DestinationRule) (mesh.Rule, bool, []mesh.Finding) {
	r := mesh.Rule{
		Object:    object("DestinationRule", k, &d.ObjectMeta),
		Namespace: k.Namespace,
		Host:      host(c, k.Namespace, d.Spec.Host),
		Export:    visibility(d.Spec.ExportTo, c.RuleExportTo, k.Namespace),
	}
	if why, ok := unreadable(&d.ObjectMeta); ok {
		return r, false, []mesh.Finding{finding(r.Ref, judge.Finding{Field: "spec", Reason: judge.ReasonUndecodable, Message: "cannot be read, so the object has no effect: " + why})}
	}
	verdict := judge.DestinationRule(place(c, k), &d.Spec)
	if verdict.Has("spec.host", judge.ReasonHostMissing) || verdict.Has("spec.workloadSelector", judge.ReasonWorkloadSelector) {
		return r, false, findings(r.Ref, verdict)
	}
	r.HasPolicy = d.Spec.TrafficPolicy != nil
	r.Traffic = traffic(d.Spec.TrafficPolicy, "spec.trafficPolicy", verdict)
	for i, s := range d.Spec.Subsets {
		at := fmt.Sprintf("spec.subsets[%d]", i)
		if verdict.Has(at+".name", judge.ReasonSubsetName) {
			continue // nobody could ask for it
		}
		r.Subsets = append(r.Subsets, mesh.Subset{
			Name: s.GetName(), Labels: s.GetLabels(), Traffic: traffic(s.GetTrafficPolicy(), at+".trafficPolicy", verdict),
		})
	}
	return r, true, findings(r.Ref, verdict)
}

// host completes a name without dots to a service of the rule's own namespace.
func host(c mesh.Config, namespace, name string) string {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if name == "" || name == "*" || strings.Contains(name, ".") {
		return name
	}
	return serviceKey(c, namespace, name).Host
}

func traffic(p *v1alpha3.TrafficPolicy, at string, verdict judge.Verdict) mesh.Traffic {
	t := mesh.Traffic{TLS: clientTLS(p.GetTls(), at+".tls", verdict)}
	for i, port := range p.GetPortLevelSettings() {
		if t.Ports == nil {
			t.Ports = map[uint32]mesh.ClientTLS{}
		}
		t.Ports[port.GetPort().GetNumber()] = clientTLS(port.GetTls(), fmt.Sprintf("%s.portLevelSettings[%d].tls", at, i), verdict)
	}
	return t
}

var tlsModes = map[v1alpha3.ClientTLSSettings_TLSmode]mesh.TLSMode{
	v1alpha3.ClientTLSSettings_DISABLE:      mesh.TLSDisable,
	v1alpha3.ClientTLSSettings_SIMPLE:       mesh.TLSSimple,
	v1alpha3.ClientTLSSettings_MUTUAL:       mesh.TLSMutual,
	v1alpha3.ClientTLSSettings_ISTIO_MUTUAL: mesh.TLSMesh,
}

func clientTLS(s *v1alpha3.ClientTLSSettings, at string, verdict judge.Verdict) mesh.ClientTLS {
	if s == nil {
		return mesh.ClientTLS{}
	}
	mode := tlsModes[s.GetMode()]
	if verdict.Has(at, judge.ReasonCertificateMissing) {
		mode = mesh.TLSSimple // the server is still held to its own
	}
	return mesh.ClientTLS{
		Mode:        mode,
		Certificate: s.GetClientCertificate(), PrivateKey: s.GetPrivateKey(), CA: s.GetCaCertificates(),
		SNI: s.GetSni(), Names: s.GetSubjectAltNames(), Unverified: s.GetInsecureSkipVerify().GetValue(),
	}
}
