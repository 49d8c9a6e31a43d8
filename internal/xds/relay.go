package xds

import "google.golang.org/grpc"

// Relay serves discovery to the proxy beside it by passing each stream on to an upstream server, in both forms.
// It reads types, nonces and errors, and no other byte. The gRPC server needs ServerCodec.
type Relay struct {
	Upstream grpc.ClientConnInterface
	// OnResponse is told when the proxy has accepted a response of the type (nack is empty) or rejected it.
	// It is called from many goroutines and must not block. May be nil.
	OnResponse func(typeURL, nack string)
}

// Register adds the service, with both of its methods.
func (r *Relay) Register(reg grpc.ServiceRegistrar) {}
