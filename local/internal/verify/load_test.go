package verify

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
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
	report := l.stop()
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
