package mesh

import "time"

// Config is what holds for a whole mesh.
type Config struct {
	Object
	Mesh ID
	// Networks are those of the pods of a cluster that say none themselves. Nil: no two clusters are on different ones, and all
	// addresses reach all, whatever pods say.
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

// Network returns on which network something in a cluster is, which may say so itself: empty if that is not known, or networks
// are not told apart. Who makes pods chooses what they say, and each network costs an assignment of each service: there are as
// many as clusters say.
func (c Config) Network(in ClusterID, said string) string {
	for _, n := range c.Networks {
		if n == said {
			return n
		}
	}
	return c.Networks[in]
}

// AccessLog says where and how proxies log; the zero value logs nothing.
type AccessLog struct {
	Path string // /dev/stdout is the proxy's standard output, never opened
	JSON bool
}
