package ingest

import (
	"istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/heddle-mesh/heddle/internal/judge"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// PeerPolicy reads a PeerAuthentication. It returns false if the policy has no effect; the findings say why.
func PeerPolicy(c mesh.Config, k mesh.ObjectKey, a *securityv1.PeerAuthentication) (mesh.PeerPolicy, bool, []mesh.Finding) {
	p := mesh.PeerPolicy{
		Object:    object("PeerAuthentication", k, &a.ObjectMeta),
		Namespace: k.Namespace,
		Mode:      peerMode(a.Spec.GetMtls()),
	}
	// An empty selector selects all, as none does.
	if labels := a.Spec.GetSelector().GetMatchLabels(); len(labels) > 0 {
		p.Selector = labels
	}
	if found, ok := unreadable(p.Ref, &a.ObjectMeta); ok {
		return p, false, found
	}
	verdict := judge.PeerAuthentication(place(c, k), &a.Spec)
	if !verdict.Has("spec.portLevelMtls", judge.ReasonPortLevelIgnored) {
		for port, m := range a.Spec.GetPortLevelMtls() {
			if p.Ports == nil {
				p.Ports = map[uint32]mesh.PeerMode{}
			}
			p.Ports[port] = peerMode(m)
		}
	}
	return p, !verdict.Has("spec.selector", judge.ReasonSelectorIgnored), findings(p.Ref, verdict)
}

func peerMode(m *v1beta1.PeerAuthentication_MutualTLS) mesh.PeerMode {
	switch m.GetMode() {
	case v1beta1.PeerAuthentication_MutualTLS_DISABLE:
		return mesh.PeerDisable
	case v1beta1.PeerAuthentication_MutualTLS_PERMISSIVE:
		return mesh.PeerPermissive
	case v1beta1.PeerAuthentication_MutualTLS_STRICT:
		return mesh.PeerStrict
	}
	return mesh.PeerUnset
}
