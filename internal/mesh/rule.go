package mesh

// TLSMode is how a client secures its connections to a service.
type TLSMode uint8

const (
	TLSUnset   TLSMode = iota // the mesh decides: mutual TLS where the endpoint accepts it
	TLSDisable                // plain text
	TLSSimple                 // TLS of the outside world
	TLSMutual                 // the same with a certificate of the client's own
	TLSMesh                   // mutual TLS of the mesh, always
)

// ClientTLS says how a client secures its connections.
type ClientTLS struct {
	Mode        TLSMode
	Certificate string // files in the client's proxy
	PrivateKey  string
	CA          string // empty: the roots of the proxy's image
	SNI         string
	Names       []string // subject alternative names that the server must have one of
	Unverified  bool     // the server's certificate is not checked
}

// Traffic is a policy for connections to a service; a port that is named has its own whole policy.
type Traffic struct {
	TLS   ClientTLS
	Ports map[uint32]ClientTLS
}

// Over lays t over the policy below it, for one port.
func (t Traffic) Over(below ClientTLS, port uint32) ClientTLS {
	if p, ok := t.Ports[port]; ok {
		return p
	}
	if t.TLS.Mode != TLSUnset {
		return t.TLS
	}
	return below
}

// Subset is a named part of a service's workloads.
type Subset struct {
	Name    string
	Labels  map[string]string
	Traffic Traffic
}

// Rule is what clients keep to when they call a host.
type Rule struct {
	Object
	Namespace string
	Host      string // exact, or *.suffix
	Export    Visibility
	HasPolicy bool    // it has a policy, whatever that says: a newer rule for the host adds none
	Traffic   Traffic // of the policy
	Subsets   []Subset
}

// TLS returns how connections to a port are secured; subset may be empty.
func (r Rule) TLS(port uint32, subset string) ClientTLS {
	tls := r.Traffic.Over(ClientTLS{}, port)
	for _, s := range r.Subsets {
		if s.Name == subset {
			return s.Traffic.Over(tls, port)
		}
	}
	return tls
}
