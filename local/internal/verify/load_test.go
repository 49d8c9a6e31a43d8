package verify

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A load that could not lose a request would prove nothing.
func TestLoadCountsWhatIsLost(t *testing.T) {
	const wanted = 40 // requests; a fourth is refused, a fourth cut off
	seen := make(chan int, 10*wanted)
	peers := make(chan string, 10*wanted)
	n := 0
	turn := make(chan struct{}, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		turn <- struct{}{}
		n++
		mine := n
		<-turn
		peers <- r.RemoteAddr
		defer func() { seen <- mine }()
		switch mine % 4 {
		case 1:
			w.WriteHeader(http.StatusServiceUnavailable)
		case 2:
			panic(http.ErrAbortHandler)
		}
	}))
	defer server.Close()
	l := begin(t.Context(), server.URL, 200, func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", server.Listener.Addr().String())
	})
	for range wanted {
		<-seen
	}
	report := l.stop("")
	var lost, of int
	if _, err := fmt.Sscanf(report, "%d lost of %d;", &lost, &of); err != nil {
		t.Fatalf("%v: %s", err, report)
	}
	if want := (n+3)/4 + (n+2)/4; of < wanted || lost < want/2 || lost > want {
		t.Errorf("%d requests reached the server; report: %s", n, report)
	}
	if !strings.Contains(report, "503") || !strings.Contains(report, "EOF") {
		t.Errorf("the report does not say how they were lost: %s", report)
	}
	if connections := map[string]bool{}; true {
		for range n {
			connections[<-peers] = true
		}
		if len(connections) < n/2 {
			t.Errorf("%d connections for %d requests", len(connections), n)
		}
	}
}

// What the server cut off itself is told apart by the log of its proxy, request by request.
func TestLoadTellsTheServersOwnClosings(t *testing.T) {
	const log = `[2026-01-01T00:00:00.000Z] "POST /status/200 HTTP/1.1" 503 UC upstream_reset_before_response_started{connection_termination} - "-" 0 95 8 - "-" "Go" "aaaa" "httpbin.a:8000" "10.0.0.1:8080" inbound|8080|| 127.0.0.6:1 10.0.0.1:8080 10.0.0.2:1 - default
[2026-01-01T00:00:00.000Z] "POST /status/200 HTTP/1.1" 503 UC upstream_reset_before_response_started{connection_termination} - "-" 0 95 8 - "-" "Go" "bbbb" "httpbin.a:8000" "10.0.0.1:8080" outbound|8000||httpbin.a 10.0.0.2:1 10.0.0.1:8080 10.0.0.2:1 - default
[2026-01-01T00:00:00.000Z] "POST /status/200 HTTP/1.1" 503 UF upstream_reset_before_response_started{connection_failure} - "-" 0 95 8 - "-" "Go" "cccc" "httpbin.a:8000" "10.0.0.1:8080" inbound|8080|| - 10.0.0.1:8080 10.0.0.2:1 - default
`
	l := &load{cancel: func() {}, times: []time.Duration{1, 2, 3, 4, 5}}
	for _, id := range []string{"aaaa", "bbbb", "cccc", "dddd"} {
		l.lost = append(l.lost, loss{id: id, seen: "503"})
	}
	if got := l.stop(log); !strings.HasPrefix(got, "3 lost of 5;") || !strings.Contains(got, "1 more cut off by the server itself") {
		t.Error(got)
	}
	if got := l.stop(""); !strings.HasPrefix(got, "4 lost of 5;") {
		t.Error(got)
	}
}

// Proxies write their logs once a second: a request that was cut off last is in the log only then.
func TestLoadWaitsForTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		log := func(context.Context) (string, error) {
			if time.Since(start) < time.Second {
				return "", nil
			}
			return `"POST / HTTP/1.1" 503 UC x "aaaa" inbound|8080||` + "\n", nil
		}
		l := &load{cancel: func() {}, times: []time.Duration{1, 2}, lost: []loss{{id: "aaaa", seen: "503"}}}
		if got, err := l.stopLess(t.Context(), log); err != nil || !strings.HasPrefix(got, "0 lost of 2;") {
			t.Error(got, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if got, err := l.stopLess(ctx, log); err == nil {
			t.Error(got)
		}
	})
}
