package mesh

import "time"

// Config is what holds for a whole mesh.
type Config struct {
	Object
	Mesh             ID
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

// AccessLog says where and how proxies log; the zero value logs nothing.
type AccessLog struct {
	Path string // /dev/stdout is the proxy's standard output, never opened
	JSON bool
}
