package cli

import (
	"encoding/json"
	"maps"
	"slices"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/heddle-mesh/heddle/internal/ingest"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/resolve"
)

// checkLeavers adds one finding for each mesh that namespaces with pods of it have left while it lets plain text in: a
// certificate of theirs is refused, but none is asked for there.
func (s snapshot) checkLeavers(owner map[string]membership, found *found) {
	left := map[string]map[string]bool{} // namespaces, by mesh
	for i := range s.pods {
		pod := &s.pods[i]
		if has := injectedBy(pod); live(pod) && s.has(has) && owner[pod.Namespace].mesh != has {
			if left[has] == nil {
				left[has] = map[string]bool{}
			}
			left[has][pod.Namespace] = true
		}
	}
	for i := range s.istios {
		name, system := s.istios[i].Name, s.istios[i].Spec.Namespace
		if len(left[name]) == 0 {
			continue
		}
		leavers, open := slices.Sorted(maps.Keys(left[name])), s.letsPlainTextIn(name, system, owner)
		if len(open) == 0 {
			continue
		}
		about := ofMesh(name)
		if n := found.scope.namespace; slices.Contains(leavers, n) || slices.Contains(open, n) {
			about.namespace = n
		}
		found.add(about, "Istio "+name, "PlainTextFromLeavers",
			"pods of namespaces that left the mesh (%s) are refused by mutual TLS, but may call like anybody where plain text is let in: in %s; "+
				"a PeerAuthentication of mode STRICT in namespace %s ends that where no narrower one says otherwise", mesh.Some(leavers), mesh.Some(open), system)
	}
}

// letsPlainTextIn returns the members of a mesh in which a pod with a sidecar takes plain text on some port.
func (s snapshot) letsPlainTextIn(name, system string, owner map[string]membership) []string {
	policies := map[string][]mesh.PeerPolicy{} // by namespace
	for _, o := range s.objects {
		if o.kind != "PeerAuthentication" || owner[o.namespace].mesh != name || o.revision != "" && o.revision != name {
			continue
		}
		var a securityv1.PeerAuthentication
		if json.Unmarshal(o.raw, &a) != nil {
			continue // checkObjects says so; it opens nothing
		}
		k := mesh.ObjectKey{Namespace: o.namespace, Name: o.name}
		if p, ok, _ := ingest.PeerPolicy(mesh.Config{RootNamespace: system}, k, &a, nil); ok {
			policies[o.namespace] = append(policies[o.namespace], p)
		}
	}
	open := map[string]bool{}
	for i := range s.pods {
		pod := &s.pods[i]
		if !live(pod) || injectedBy(pod) != name || owner[pod.Namespace].mesh != name {
			continue
		}
		p := resolve.PeeringOf(policies[system], policies[pod.Namespace], pod.Labels)
		if p.Mode != mesh.PeerStrict || slices.ContainsFunc(slices.Collect(maps.Values(p.Ports)), func(m mesh.PeerMode) bool { return m != mesh.PeerStrict }) {
			open[pod.Namespace] = true
		}
	}
	return slices.Sorted(maps.Keys(open))
}

// live reports whether a pod's containers run, or will.
func live(pod *corev1.Pod) bool {
	return pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed && pod.DeletionTimestamp.IsZero()
}
