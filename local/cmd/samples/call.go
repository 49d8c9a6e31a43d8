package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"
)

// propagated are the headers of a request that go on with the requests made for it. Without them a mesh cannot tell that they
// belong together: request id and trace contexts. The others say for whom they are made; routes match end-user.
var propagated = []string{
	"X-Request-Id",
	"Traceparent", "Tracestate", "Baggage", // W3C
	"B3", "X-B3-Traceid", "X-B3-Spanid", "X-B3-Parentspanid", "X-B3-Sampled", "X-B3-Flags", // Zipkin
	"X-Ot-Span-Context",                                                        // Lightstep
	"X-Datadog-Trace-Id", "X-Datadog-Parent-Id", "X-Datadog-Sampling-Priority", // Datadog
	"X-Cloud-Trace-Context", "Grpc-Trace-Bin", "Sw8", // Google, gRPC, SkyWalking
	"End-User", "User-Agent", "Cookie", "Authorization", "Jwt",
}

// onward returns what of a request's headers goes on with the requests made for it.
func onward(in http.Header) http.Header {
	out := make(http.Header)
	for _, name := range propagated {
		if values := in.Values(name); len(values) > 0 {
			out[name] = values
		}
	}
	return out
}

const mostBody = 1 << 20 // bytes of another service's answer that are read

// newClient makes a connection for each request, so that each is balanced anew: whoever looks at the page sees the weights.
func newClient() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
}

// get asks for JSON within limit. The status is 0 where there was no answer; the error says why the body is no JSON of a 200.
func get(ctx context.Context, client *http.Client, url string, header http.Header, limit time.Duration) (int, json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, nil, err
	}
	r.Header = header
	resp, err := client.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return resp.StatusCode, nil, fmt.Errorf("%s answered %s", url, resp.Status)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, mostBody))
	if err == nil && !json.Valid(body) {
		err = fmt.Errorf("%s answered no JSON", url)
	}
	if err != nil {
		return 0, nil, err
	}
	return resp.StatusCode, body, nil
}
