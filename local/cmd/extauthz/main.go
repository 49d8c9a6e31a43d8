// Command extauthz is the sample of a service that Envoy's filter ext_authz asks, by HTTP and by gRPC. It allows what has the
// header `x-ext-authz: allow`, and by gRPC, if that header is not there, what a service account of a given name sends. Headers and
// texts are those of Istio's sample, as its documents look for them.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os/signal"
	"strings"
	"syscall"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	auth "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	envoytype "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	asks     = "x-ext-authz"
	allow    = "allow"
	result   = "x-ext-authz-check-result"
	received = "x-ext-authz-check-received"             // what the filter has sent
	override = "x-ext-authz-additional-header-override" // by HTTP as it came; by gRPC always the same
	denied   = "denied by ext_authz for not found header `x-ext-authz: allow` in the request"

	mostTold = 60000 // bytes of a check that are told in a header; Envoy refuses more than 60 KiB
)

func main() {
	plain := flag.String("http", "8000", "port")
	rpc := flag.String("grpc", "9000", "port")
	account := flag.String("allow_service_account", "a", "service account whose requests are allowed by gRPC if they have no header "+asks)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, ":"+*plain, ":"+*rpc, *account); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, plain, rpc, account string) error {
	byHTTP, err := (&net.ListenConfig{}).Listen(ctx, "tcp", plain)
	if err != nil {
		return err
	}
	byGRPC, err := (&net.ListenConfig{}).Listen(ctx, "tcp", rpc)
	if err != nil {
		return errors.Join(err, byHTTP.Close())
	}
	log.Printf("Starting HTTP server at %s", byHTTP.Addr())
	log.Printf("Starting gRPC server at %s", byGRPC.Addr())
	return serve(ctx, byHTTP, byGRPC, account)
}

// serve answers until ctx ends, and then what is under way: whoever told it to end ends it if that lasts.
func serve(ctx context.Context, byHTTP, byGRPC net.Listener, account string) error {
	h := &http.Server{Handler: http.HandlerFunc(check), ReadHeaderTimeout: 10 * time.Second}
	g := grpc.NewServer()
	auth.RegisterAuthorizationServer(g, authorizer{account: account})
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := h.Serve(byHTTP); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	group.Go(func() error {
		if err := g.Serve(byGRPC); !errors.Is(err, grpc.ErrServerStopped) { // told to end before it began
			return err
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		g.GracefulStop()
		return h.Shutdown(context.WithoutCancel(ctx))
	})
	return group.Wait()
}

// check answers a check by HTTP.
func check(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, mostTold+1))
	if err != nil {
		log.Printf("[HTTP] read body failed: %v", err)
	}
	told := bounded(fmt.Sprintf("%s %s%s, headers: %v, body: [%s]", r.Method, r.Host, r.URL, r.Header, bounded(string(body))))
	w.Header().Set(received, told)
	w.Header().Set(override, r.Header.Get(override))
	if r.Header.Get(asks) != allow {
		log.Printf("[HTTP][denied]: %s", told)
		w.Header().Set(result, "denied")
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, denied)
		return
	}
	log.Printf("[HTTP][allowed]: %s", told)
	w.Header().Set(result, "allowed")
}

type authorizer struct {
	auth.UnimplementedAuthorizationServer
	account string
}

// Check answers a check by gRPC.
func (a authorizer) Check(_ context.Context, r *auth.CheckRequest) (*auth.CheckResponse, error) {
	attributes := r.GetAttributes()
	asked, ok := attributes.GetRequest().GetHttp().GetHeaders()[asks]
	allowed := asked == allow
	if !ok {
		allowed = strings.HasSuffix(attributes.GetSource().GetPrincipal(), "/sa/"+a.account)
	}
	text, code := "allowed", codes.OK
	if !allowed {
		text, code = "denied", codes.PermissionDenied
	}
	told := bounded(attributes.String())
	log.Printf("[gRPCv3][%s]: %s%s, attributes: %s", text, attributes.GetRequest().GetHttp().GetHost(), attributes.GetRequest().GetHttp().GetPath(), told)
	var headers []*core.HeaderValueOption
	for _, h := range []*core.HeaderValue{
		{Key: result, Value: text}, {Key: received, Value: told}, {Key: override, Value: "grpc-additional-header-override-value"},
	} {
		headers = append(headers, &core.HeaderValueOption{Header: h})
	}
	out := &auth.CheckResponse{Status: status.New(code, "").Proto()}
	if allowed {
		out.HttpResponse = &auth.CheckResponse_OkResponse{OkResponse: &auth.OkHttpResponse{Headers: headers}}
	} else {
		out.HttpResponse = &auth.CheckResponse_DeniedResponse{DeniedResponse: &auth.DeniedHttpResponse{
			Status: &envoytype.HttpStatus{Code: envoytype.StatusCode_Forbidden}, Body: denied, Headers: headers,
		}}
	}
	return out, nil
}

// bounded makes what was sent the value of a header. What is no text gets longer by that.
func bounded(text string) string {
	text = strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f {
			return ' '
		}
		return c
	}, text)
	if len(text) > mostTold {
		return "<too-long>"
	}
	return text
}
