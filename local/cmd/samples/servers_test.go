package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestHelloworld(t *testing.T) {
	h := helloworld(vars("SERVICE_VERSION=v1", "HOSTNAME=helloworld-v1-abc"))
	for path, want := range map[string]string{"/hello": "Hello version: v1, instance: helloworld-v1-abc\n", "/health": "Helloworld is healthy"} {
		if w := ask(h, "GET", path, ""); w.Code != 200 || w.Body.String() != want {
			t.Errorf("%s: %d %q", path, w.Code, w.Body)
		}
	}
}

// The server answers at every path. That it has the keys of the documents' tokens is tested beside those.
func TestKeys(t *testing.T) {
	for _, path := range []string{"/", "/.well-known/jwks.json", "/?delay=0s"} {
		if w := ask(http.HandlerFunc(keys), "GET", path, ""); w.Code != 200 || w.Body.String() != keySet {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
	if w := ask(http.HandlerFunc(keys), "GET", "/?delay=long", ""); w.Code != 400 {
		t.Errorf("a delay that is none: %d", w.Code)
	}
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		if w := ask(http.HandlerFunc(keys), "GET", "/?delay=5s", ""); w.Code != 200 || time.Since(began) != 5*time.Second {
			t.Errorf("%d after %v", w.Code, time.Since(began))
		}
	})
}

func TestWordsThatAreMissing(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, `no sample ""; there are productpage`},
		{[]string{"reviewz"}, `no sample "reviewz"`},
		{[]string{"jwt-server", "-cert", "file"}, "-cert and -key go together"},
		{[]string{"tcp-echo", "9000"}, "tcp-echo wants ports and a prefix"},
	} {
		if err := run(t.Context(), c.args, vars()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want … %s …", c.args, err, c.want)
		}
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// What is under way when a server is told to end is answered.
func TestServerEndsWithoutLoss(t *testing.T) {
	ctx, end := context.WithCancel(t.Context())
	under, goOn := make(chan bool), make(chan bool)
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		under <- true
		<-goOn
		fmt.Fprint(w, "whole")
	})}
	l := listen(t)
	ended := make(chan error, 1)
	go func() { ended <- untilEnd(ctx, s, func() error { return s.Serve(l) }) }()
	got := make(chan string, 1)
	go func() {
		resp, err := http.Get("http://" + l.Addr().String())
		if err != nil {
			got <- err.Error()
			return
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		got <- string(body)
	}()
	<-under
	end()
	close(goOn)
	if body, err := <-got, <-ended; body != "whole" || err != nil {
		t.Errorf("answered %q; the server ended with %v", body, err)
	}
	if err := untilEnd(t.Context(), s, func() error { return io.EOF }); err != io.EOF {
		t.Errorf("a server that cannot listen: %v", err)
	}
}

func TestEcho(t *testing.T) {
	ctx, end := context.WithCancel(t.Context())
	l := listen(t)
	ended := make(chan error, 1)
	go func() { ended <- echo(ctx, l, "hello") }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	lines := bufio.NewReader(c)
	for _, line := range []string{"world", "mesh"} {
		fmt.Fprintln(c, line)
		if got, err := lines.ReadString('\n'); got != "hello "+line+"\n" {
			t.Errorf("%s: %q, %v", line, got, err)
		}
	}
	end() // with a connection open
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := lines.ReadByte(); err != io.EOF {
		t.Errorf("the connection stays: %v", err)
	}
}
