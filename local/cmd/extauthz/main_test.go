package main

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	auth "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
)

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard)
	os.Exit(m.Run())
}

func TestCheckByHTTP(t *testing.T) {
	for _, c := range []struct {
		header       map[string]string
		body         string
		status       int
		result, said string
		received     string
	}{
		{map[string]string{asks: "allow", override: "mine"}, "text", 200, "allowed", "", "body: [text]"},
		{map[string]string{asks: "allow"}, "a\x00b\nc", 200, "allowed", "", "body: [a b c]"},
		{map[string]string{asks: "deny"}, "", 403, "denied", denied, "X-Ext-Authz:[deny]"},
		{nil, "", 403, "denied", denied, "POST example.com/path?q=1, headers: map[]"},
		{map[string]string{asks: "allow"}, strings.Repeat("a", mostTold+1), 200, "allowed", "", "body: [<too-long>]"},
		{map[string]string{asks: "allow", "long": strings.Repeat("a", mostTold)}, "", 200, "allowed", "", "<too-long>"},
		{map[string]string{asks: "allow", "long": strings.Repeat("\xff", mostTold/2)}, "", 200, "allowed", "", "<too-long>"}, // three bytes each, when told
	} {
		r := httptest.NewRequest("POST", "/path?q=1", strings.NewReader(c.body))
		for name, value := range c.header {
			r.Header.Set(name, value)
		}
		w := httptest.NewRecorder()
		check(w, r)
		h := w.Header()
		if w.Code != c.status || h.Get(result) != c.result || w.Body.String() != c.said || h.Get(override) != c.header[override] || !strings.Contains(h.Get(received), c.received) {
			t.Errorf("%.100v: %d %s, %.500v", c.header, w.Code, w.Body, h)
		}
	}
}

func TestCheckByGRPC(t *testing.T) {
	for _, c := range []struct {
		headers map[string]string
		from    string
		allowed bool
	}{
		{map[string]string{asks: "allow"}, "", true},
		{map[string]string{asks: "deny"}, "", false},
		{nil, "", false},
		{nil, "spiffe://cluster.local/ns/foo/sa/a", true},
		{nil, "spiffe://cluster.local/ns/foo/sa/ba", false},
		{map[string]string{asks: "deny"}, "spiffe://cluster.local/ns/foo/sa/a", false},
	} {
		out, err := authorizer{account: "a"}.Check(t.Context(), &auth.CheckRequest{Attributes: &auth.AttributeContext{
			Source:  &auth.AttributeContext_Peer{Principal: c.from},
			Request: &auth.AttributeContext_Request{Http: &auth.AttributeContext_HttpRequest{Path: "/ip", Headers: c.headers}},
		}})
		if err != nil {
			t.Fatal(err)
		}
		headers, code, text := out.GetOkResponse().GetHeaders(), codes.OK, "allowed"
		if !c.allowed {
			headers, code, text = out.GetDeniedResponse().GetHeaders(), codes.PermissionDenied, "denied"
			if d := out.GetDeniedResponse(); d.GetStatus().GetCode() != 403 || d.GetBody() != denied {
				t.Errorf("%+v: %v", c, d)
			}
		}
		got := make(map[string]string)
		for _, h := range headers {
			got[h.Header.Key] = h.Header.Value
		}
		if codes.Code(out.GetStatus().GetCode()) != code || got[result] != text || !strings.Contains(got[received], "/ip") || got[override] != "grpc-additional-header-override-value" {
			t.Errorf("%+v: %v", c, out)
		}
	}
}

// Both servers answer at their ports, and end when they are told to.
func TestServe(t *testing.T) {
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	byHTTP, byGRPC := listen(), listen()
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, byHTTP, byGRPC, "a") }()
	resp, err := http.Get("http://" + byHTTP.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 403 {
		t.Error(resp.Status)
	}
	c, err := grpc.NewClient(byGRPC.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if out, err := auth.NewAuthorizationClient(c).Check(t.Context(), &auth.CheckRequest{}); err != nil || out.GetDeniedResponse() == nil {
		t.Error(out, err)
	}
	end()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	taken := listen()
	defer taken.Close()
	if err := run(t.Context(), "127.0.0.1:0", taken.Addr().String(), "a"); err == nil {
		t.Error("a port that is taken is no error")
	}
}
