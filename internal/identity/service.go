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
	securityv1 "istio.io/api/security/v1alpha1"
)

// Service is istio.v1.auth.IstioCertificateService.
type Service struct {
	securityv1.UnimplementedIstioCertificateServiceServer

	Authority *Authority
	Gate      *Gate
	Checks    []Check // CAChecks()
	Now       func() time.Time
	Log       *slog.Logger
}

// Register adds the service to a gRPC server, which must speak TLS: callers show bearer tokens.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	securityv1.RegisterIstioCertificateServiceServer(r, s)
}

// CreateCertificate signs the caller's key for the caller's own identity.
func (s *Service) CreateCertificate(ctx context.Context, in *securityv1.IstioCertificateRequest) (*securityv1.IstioCertificateResponse, error) {
	r := RequestOf(ctx)
	r.Impersonate = in.GetMetadata().GetFields()["ImpersonatedIdentity"].GetStringValue()
	caller, code := s.Gate.pass(ctx, "ca", r, s.Checks)
	if code != codes.OK {
		return nil, status.Error(codes.Unauthenticated, opaque)
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
