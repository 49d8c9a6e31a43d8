package ingest

import (
	"istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/heddle-mesh/heddle/internal/judge"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Reasons of what is in force in place of a policy that is not valid.
const (
	ReasonLastGoodInForce = "LastGoodInForce"
	ReasonStrictInForce   = "StrictInForce"
)

// ValidPeerPolicy reports whether a PeerAuthentication can be read, and would be admitted.
func ValidPeerPolicy(c mesh.Config, k mesh.ObjectKey, a *securityv1.PeerAuthentication) bool {
	_, unread := unreadable(&a.ObjectMeta)
	return !unread && judge.PeerAuthentication(place(c, k), &a.Spec).Err() == nil
}

// PeerPolicy reads a PeerAuthentication. It returns false if the policy has no effect; the findings say why. A policy that is
// not valid opens nothing: in its place is good, its last version that was valid, or, if none is known and good is nil, STRICT
// for all that it may be meant for.
func PeerPolicy(c mesh.Config, k mesh.ObjectKey, a, good *securityv1.PeerAuthentication) (mesh.PeerPolicy, bool, []mesh.Finding) {
	p := mesh.PeerPolicy{Object: object("PeerAuthentication", k, &a.ObjectMeta), Namespace: k.Namespace}
	verdict := judge.PeerAuthentication(place(c, k), &a.Spec)
	found := findings(p.Ref, verdict)
	say := func(reason, message string) {
		found = append(found, finding(p.Ref, judge.Finding{Field: "spec", Reason: reason, Message: message}))
	}
	if why, ok := unreadable(&a.ObjectMeta); ok {
		say(judge.ReasonUndecodable, "cannot be read: "+why)
	}
	const mend = ": mend the object by what else is found in it, or delete it"
	switch valid := ValidPeerPolicy(c, k, a); {
	case !valid && good == nil:
		p.Mode = mesh.PeerStrict
		var whom string
		if p.Selector, whom = strictFor(c, k, a, verdict); !ignored(verdict) {
			say(ReasonStrictInForce, "not valid, and no valid version of it is known, so it counts as mode STRICT for "+whom+mend)
		}
	case !valid:
		a, verdict = good, judge.PeerAuthentication(place(c, k), &good.Spec)
		say(ReasonLastGoodInForce, "not valid, so its last valid version stays in force as long as this control plane runs"+mend)
		fallthrough
	default:
		p.Selector, p.Mode = peerSelector(a), peerMode(a.Spec.GetMtls())
		for port, m := range a.Spec.GetPortLevelMtls() {
			if p.Ports == nil {
				p.Ports = map[uint32]mesh.PeerMode{}
			}
			p.Ports[port] = peerMode(m)
		}
	}
	return p, !ignored(verdict), found
}

func ignored(v judge.Verdict) bool { return v.Has("spec.selector", judge.ReasonSelectorIgnored) }

// peerSelector: an empty selector selects all, as none does.
func peerSelector(a *securityv1.PeerAuthentication) map[string]string {
	if labels := a.Spec.GetSelector().GetMatchLabels(); len(labels) > 0 {
		return labels
	}
	return nil
}

// strictFor returns the selector of a policy that is not valid, and whom that selects. A selector that cannot be relied on
// may be for any workload of the namespace, so it is one that all match: unlike none, it is no wider than any other.
func strictFor(c mesh.Config, k mesh.ObjectKey, a *securityv1.PeerAuthentication, v judge.Verdict) (selector map[string]string, whom string) {
	_, unread := unreadable(&a.ObjectMeta)
	selector = peerSelector(a)
	lost := unread && selector == nil && a.Spec.GetSelector() != nil || v.Has("spec.selector.matchLabels", judge.ReasonInvalid)
	switch {
	case k.Namespace == c.RootNamespace:
		return nil, "the whole mesh"
	case lost:
		return map[string]string{}, "the whole namespace " + k.Namespace
	case selector == nil:
		return nil, "the namespace " + k.Namespace
	}
	return selector, "the workloads that it selects"
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
