package mesh

import (
	"cmp"
	"time"
)

// Config is what holds for a whole mesh.
type Config struct {
	Object
	Mesh ID
	// Networks are those of the pods of a cluster that say none themselves. Nil: all addresses reach all, whatever pods say.
	Networks         map[ClusterID]string
	Domain           string   // DNS suffix of the cluster's services
	TrustDomains     []string // own first, then aliases that peers may still carry
	RootNamespace    string
	AccessLog        AccessLog
	RegistryOnly     bool // hosts that the mesh does not know are refused
	AutoMTLS         bool
	DetectionTimeout time.Duration // how long a proxy waits for a connection's first bytes; 0: for ever
	ServiceExportTo  []string      // as in exportTo; where a Service does not say
	RuleExportTo     []string
}

// Network returns on which network something in a cluster is that says so itself, or nothing: empty if that is not known, or
// networks are not told apart.
func (c Config) Network(in ClusterID, said string) string {
	if c.Networks == nil {
		return ""
	}
	return cmp.Or(said, c.Networks[in])
}

// AccessLog says where and how proxies log; the zero value logs nothing.
type AccessLog struct {
	Path string // /dev/stdout is the proxy's standard output, never opened
	JSON bool
}
