package mesh

// PeerMode is what a workload's proxy accepts from its peers.
type PeerMode uint8

const (
	PeerUnset PeerMode = iota // what the next wider policy says
	PeerDisable
	PeerPermissive
	PeerStrict
)

// PeerPolicy says what proxies accept. Without a selector it speaks for its namespace, and in the root namespace for the mesh.
type PeerPolicy struct {
	Object
	Namespace string
	Selector  map[string]string // nil: no selector
	Mode      PeerMode
	Ports     map[uint32]PeerMode // by workload port; only with a selector
}

// Selects reports whether labels hold every pair of the selector.
func Selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if l, ok := labels[k]; !ok || l != v {
			return false
		}
	}
	return true
}
