package xds

import (
	"context"
	"log/slog"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"
)

// Group is a set of resources that many clients share.
type Group string

// Change replaces and removes resources of one type in a group. A group without resources and clients is forgotten.
type Change struct {
	Group  Group
	Type   string
	Set    []Resource
	Remove []string
}

// TypeRule says how resources of a type are served.
type TypeRule struct {
	URL         string
	Wildcard    bool   // an empty subscription means all; a state-of-the-world response then holds them all
	Order       int    // additions are sent in this order, removals in reverse; unique
	ResendAfter string // when that type sends a name, this type's resource of the same name is sent after it, even if unchanged
	NeverRemove bool   // clients are never told that a resource is gone
}

// Hello is the first request of a stream; the stream's context carries peer and metadata.
type Hello struct {
	Node *corev3.Node
	Type string
}

// Session is what an admitted client may hold. It is not changed after Admit has returned it.
type Session struct {
	ID     string  // of the client; streams of one client share it
	Groups []Group // later ones win by name
	Meta   any     // for who reads Clients
	// Ask fetches resources that no group holds: names of a type in the table, or any request of a type that is not.
	// It may return fewer than asked. An error of gRPC status ends the stream for types outside the table. Nil: none.
	Ask func(ctx context.Context, typeURL string, names []string) ([]Resource, error)
	// OnNack is told of each rejected response: its version, the client's text, and the origins of its resources. May be nil.
	OnNack func(typeURL, version, detail string, origins []string)
}

// Options configure a Server; Types and Admit are required.
type Options struct {
	Log   *slog.Logger // nil: none
	Types []TypeRule
	// Admit authenticates and authorises a stream on its first request. Its error, a gRPC status, ends the stream.
	Admit        func(ctx context.Context, h Hello) (*Session, error)
	ControlPlane string        // control_plane.identifier of answers to types outside the table
	MaxNames     int           // in one request and in one type's subscription; 0: 20,000
	MaxStreams   int           // of one Session.ID; 0: 16
	WriteTimeout time.Duration // a client that takes no byte for so long is cut; 0: 10 s
}

// Stats count since the start.
type Stats struct {
	Marshalled uint64 // messages and fragments that were marshalled for what was published
	Sent       uint64 // responses
	Bytes      uint64 // of responses, without gRPC's framing
}

// ClientStatus is one stream.
type ClientStatus struct {
	Session   *Session
	Connected time.Time
	Types     []TypeStatus // only subscribed ones, by URL
}

// Sync says whether a client has what it should have of a type.
type Sync int

// NotSent: subscribed, nothing sent yet. Synced: the last response was accepted. Stale: it was not answered yet.
// Rejected: a resource that the client refused has neither been replaced nor removed.
const (
	NotSent Sync = iota
	Synced
	Stale
	Rejected
)

// TypeStatus is one type of a stream.
type TypeStatus struct {
	URL         string
	Sync        Sync
	Sent, Acked string // nonces of the last response sent, and of the last one accepted
	Updated     time.Time // when the last response was sent
	Error       string    // the client's last text, if Sync is Rejected
	ErrorAt     time.Time
}

// Server serves AggregatedDiscoveryService. Methods are safe for concurrent use.
type Server struct{}

// NewServer returns a server that holds nothing.
func NewServer(o Options) *Server { return &Server{} }

// ServerCodec must be given to the gRPC server that Register is called with. It leaves other services' messages to proto.
func ServerCodec() grpc.ServerOption { return grpc.EmptyServerOption{} }

// Register adds the service, with both of its methods.
func (s *Server) Register(r grpc.ServiceRegistrar) {}

// Run returns when ctx has ended and all streams have. Streams are refused before and after.
func (s *Server) Run(ctx context.Context) error { return nil }

// Publish makes the changes visible in one step and wakes the streams that hold a touched group.
func (s *Server) Publish(rev uint64, changes []Change) {}

// Move gives the client other groups.
func (s *Server) Move(sessionID string, groups []Group) {}

// Close ends the streams whose session matches with a gRPC status; match may be nil for all. It does not wait.
func (s *Server) Close(match func(*Session) bool, err error) {}

// Clients returns the streams, by session ID.
func (s *Server) Clients() []ClientStatus { return nil }

// Resources returns what the client was sent of a type, by name; all of its streams taken together.
func (s *Server) Resources(sessionID, typeURL string) []Resource { return nil }

// Stats returns the counts.
func (s *Server) Stats() Stats { return Stats{} }
