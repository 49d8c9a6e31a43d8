package identity

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	securityv1 "istio.io/api/security/v1alpha1"
)

// Service is istio.v1.auth.IstioCertificateService.
type Service struct {
	Authority *Authority
	Gate      *Gate
	Checks    Checks // CAChecks()
	Now       func() time.Time
	Log       *slog.Logger
}

// Register adds the service to a gRPC server, which must speak TLS: callers show bearer tokens. Its one call is registered as
// a stream, which looks the same on the wire: of a unary call gRPC reads and decodes the message before anybody is asked.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	d := securityv1.IstioCertificateService_ServiceDesc
	r.RegisterService(&grpc.ServiceDesc{ServiceName: d.ServiceName, Metadata: d.Metadata, Streams: []grpc.StreamDesc{{
		StreamName: d.Methods[0].MethodName, ServerStreams: true,
		Handler: func(_ any, stream grpc.ServerStream) error { return s.serve(stream) },
	}}}, nil)
}

// errCaller is what every refused caller of the CA is told, as Istio tells it.
var errCaller = status.Error(codes.Unauthenticated, opaque)

// maxRequest bounds what is decoded of a caller: a request beside the CSR holds a life and a few words.
const maxRequest = maxCSR + 16<<10

// requestWait is how long a caller's request may take to come: who is known may not hold calls without end either.
const requestWait = 15 * time.Second

func (s *Service) serve(stream grpc.ServerStream) error {
	ctx := stream.Context()
	call, err := s.Gate.Knock(ctx, "ca", RequestOf(ctx), s.Checks)
	if err != nil {
		return errCaller
	}
	raw := &emptypb.Empty{} // takes the bytes as they are
	received := make(chan error, 1)
	go func() { received <- stream.RecvMsg(raw) }() // ends with the call at the latest
	select {
	case err := <-received:
		if err != nil {
			return err
		}
	case <-time.After(requestWait):
		return status.Error(codes.DeadlineExceeded, "no request came")
	}
	in := &securityv1.IstioCertificateRequest{}
	if n := len(raw.ProtoReflect().GetUnknown()); n > maxRequest {
		return status.Errorf(codes.InvalidArgument, "request of %d bytes; at most %d are read", n, maxRequest)
	} else if err := proto.Unmarshal(raw.ProtoReflect().GetUnknown(), in); err != nil {
		return status.Error(codes.InvalidArgument, "malformed request")
	}
	out, err := s.create(ctx, call, in)
	if err != nil {
		return err
	}
	return stream.SendMsg(out)
}

// create signs the caller's key for the caller's own identity.
func (s *Service) create(ctx context.Context, call *Call, in *securityv1.IstioCertificateRequest) (*securityv1.IstioCertificateResponse, error) {
	caller, err := call.Enter(ctx, func(r *Request) {
		r.Impersonate = in.GetMetadata().GetFields()["ImpersonatedIdentity"].GetStringValue()
	})
	if err != nil {
		return nil, errCaller
	}
	// Clamped, as seconds that overflow a Duration would come out as some other life.
	ttl := time.Duration(min(max(in.GetValidityDuration(), 0), int64(maxLife/time.Second)+1)) * time.Second
	chain, err := s.Authority.Sign([]byte(in.GetCsr()), caller.Identity, ttl, s.Now())
	if errors.Is(err, ErrBadRequest) {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err != nil {
		s.Log.LogAttrs(ctx, slog.LevelError, "certificate not signed", slog.Any("identity", caller.Identity), slog.Any("err", err))
		return nil, status.Error(codes.Internal, "certificate not signed")
	}
	s.Log.LogAttrs(ctx, slog.LevelDebug, "certificate signed", slog.Any("identity", caller.Identity), slog.String("pod", caller.Pod), slog.String("uid", caller.PodUID))
	return &securityv1.IstioCertificateResponse{CertChain: chain}, nil
}

func peerOf(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return ""
}
