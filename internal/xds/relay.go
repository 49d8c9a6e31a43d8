package xds

import (
	"cmp"
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc"
)

// maxResponse bounds one response from upstream: 10,000 clusters of Istio's size are a third of it.
const maxResponse = 64 << 20

// Relay serves discovery to the proxy beside it by passing each stream on to an upstream server, in both forms. It
// reads types, nonces and errors, and no other byte. The gRPC server it is registered with needs ServerCodec.
type Relay struct {
	Upstream grpc.ClientConnInterface
	// OnResponse is told when the proxy has accepted a response of the type (nack is empty) or rejected it. It is
	// called from each stream's goroutine and must not block. May be nil.
	OnResponse func(typeURL, nack string)
	// Last tells whether an upstream's end is for good: the proxy's stream then stays open, with nothing more to come, as it
	// would only try again. May be nil: no end is.
	Last func(end error) bool
}

// Register adds the service, with both of its methods.
func (r *Relay) Register(reg grpc.ServiceRegistrar) { reg.RegisterService(serviceDesc(r.serve), nil) }

// serve ends with either side, but for Last; what the upstream ends with is what the proxy sees.
func (r *Relay) serve(f *form, down grpc.ServerStream) error {
	up, err := r.Upstream.NewStream(down.Context(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true},
		"/"+service+"/"+f.method, grpc.ForceCodecV2(newCodec()), grpc.MaxCallRecvMsgSize(maxResponse))
	if err != nil {
		return err
	}
	open := &unanswered{nonces: map[string]string{}}
	go r.requests(f, down, up, open) // ends with the stream, an instant after this function
	for {
		var in frame
		if err := up.RecvMsg(&in); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			if r.Last != nil && r.Last(err) {
				<-down.Context().Done()
			}
			return err
		}
		typeURL, nonce, err := parseResponse(in.data)
		if err != nil {
			return err
		}
		open.sent(typeURL, nonce)
		if err := down.SendMsg(&in); err != nil {
			return err
		}
	}
}

// requests passes the proxy's requests on. An upstream that ends is seen by serve.
func (r *Relay) requests(f *form, down grpc.ServerStream, up grpc.ClientStream, open *unanswered) {
	brief := &form{typeURL: f.typeURL, nonce: f.nonce, err: f.err}
	for {
		var in frame
		if err := down.RecvMsg(&in); err != nil {
			_ = up.CloseSend() // never fails
			return
		}
		q, err := brief.parseRequest(in.data, 0, nil)
		answers := err == nil && open.answer(q.typeURL, q.nonce)
		if up.SendMsg(&in) != nil {
			return
		}
		if answers && r.OnResponse != nil {
			nack := q.detail
			if q.nack {
				nack = cmp.Or(nack, noReason)
			}
			r.OnResponse(q.typeURL, nack)
		}
	}
}

// unanswered are a stream's responses without an answer.
type unanswered struct {
	mu     sync.Mutex
	nonces map[string]string // by type
}

func (u *unanswered) sent(typeURL, nonce string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.nonces[typeURL] = nonce
}

// answer says whether nonce answers the last response, which it does once.
func (u *unanswered) answer(typeURL, nonce string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if nonce == "" || u.nonces[typeURL] != nonce {
		return false
	}
	delete(u.nonces, typeURL)
	return true
}
