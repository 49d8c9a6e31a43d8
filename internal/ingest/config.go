package ingest

import (
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Config reads a MeshConfig; nil means Istio's defaults. The mesh's own system namespace is the root namespace
// unless the MeshConfig names another.
func Config(id mesh.ID, system string, m *meshv1alpha1.MeshConfig) mesh.Config {
	c := mesh.Config{
		Object:           mesh.Object{Ref: mesh.Ref{Kind: "MeshConfig", Name: string(id)}},
		Mesh:             id,
		Domain:           "cluster.local",
		RootNamespace:    system,
		AccessLog:        mesh.AccessLog{Path: m.GetAccessLogFile(), JSON: m.GetAccessLogEncoding() == meshv1alpha1.MeshConfig_JSON},
		AutoMTLS:         m.GetEnableAutoMtls() == nil || m.GetEnableAutoMtls().GetValue(),
		DetectionTimeout: m.GetProtocolDetectionTimeout().AsDuration(),
		ServiceExportTo:  m.GetDefaultServiceExportTo(),
		RuleExportTo:     m.GetDefaultDestinationRuleExportTo(),
	}
	if p := m.GetOutboundTrafficPolicy(); p != nil {
		c.RegistryOnly = p.GetMode() == meshv1alpha1.MeshConfig_OutboundTrafficPolicy_REGISTRY_ONLY
	}
	if ns := m.GetRootNamespace(); ns != "" {
		c.RootNamespace = ns
	}
	own := m.GetTrustDomain()
	if own == "" {
		own = mesh.DefaultTrustDomain
	}
	c.TrustDomains = append([]string{own}, m.GetTrustDomainAliases()...)
	return c
}

// Networks reads from the Memberships of the mesh's system namespace, of which each cluster has one, on which networks the
// clusters are. It is nil if no two are on different ones.
func Networks(systems map[mesh.ClusterID]mesh.Membership) map[mesh.ClusterID]string {
	out, distinct := map[mesh.ClusterID]string{}, map[string]bool{}
	for c, m := range systems {
		if n := m.Labels[networkLabel]; n != "" {
			out[c], distinct[n] = n, true
		}
	}
	if len(distinct) < 2 {
		return nil
	}
	return out
}

// Membership reads which namespace belongs to the mesh, and how far it has come.
func Membership(m *heddlev1alpha1.Membership) mesh.Membership {
	return mesh.Membership{
		Namespace: m.Spec.Namespace, UID: string(m.Spec.UID), Phase: mesh.Phase(m.Spec.Phase),
		Labels: m.Spec.Labels, Annotations: m.Spec.Annotations,
	}
}
