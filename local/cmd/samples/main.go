// Command samples is the servers of the sample applications, each by its name: bookinfo's four services, helloworld, a server of
// JSON web keys, and an echo of lines. It is one program, so that a node pulls one layer for all of them.
//
//	samples productpage|details|ratings|reviews|helloworld
//	samples jwt-server [-http PORT] [-https PORT -cert FILE -key FILE]
//	samples tcp-echo PORT[,PORT...] PREFIX
//
// Their paths, answers, timeouts and environment are those of Istio's samples, as its documents are read with them.
package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Getenv); err != nil {
		fmt.Fprintln(os.Stderr, "samples:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, env environment) error {
	if len(args) == 0 {
		args = []string{""}
	}
	switch name, rest := args[0], args[1:]; name {
	case "productpage":
		return serve(ctx, ":9080", newProductpage(env).handler())
	case "details":
		return serve(ctx, ":9080", newDetails(env).handler())
	case "ratings":
		return serve(ctx, ":9080", newRatings(env).handler())
	case "reviews":
		return serve(ctx, ":9080", newReviews(env).handler())
	case "helloworld":
		return serve(ctx, ":5000", helloworld(env))
	case "jwt-server":
		return jwtServer(ctx, rest)
	case "tcp-echo":
		return tcpEcho(ctx, rest)
	default:
		return fmt.Errorf("no sample %q; there are productpage, details, ratings, reviews, helloworld, jwt-server, tcp-echo", name)
	}
}

// environment looks a variable up: empty if it is not set.
type environment func(name string) string

func (e environment) or(name, fallback string) string { return cmp.Or(e(name), fallback) }

// service returns where a service of bookinfo answers: NAME_HOSTNAME, SERVICES_DOMAIN and NAME_SERVICE_PORT, which Kubernetes
// sets as well, say where else than at http://NAME:9080/NAME/.
func (e environment) service(name string) string {
	prefix := strings.ToUpper(name)
	host := e.or(prefix+"_HOSTNAME", name)
	if domain := e("SERVICES_DOMAIN"); domain != "" {
		host += "." + domain
	}
	return "http://" + net.JoinHostPort(host, e.or(prefix+"_SERVICE_PORT", "9080")) + "/" + name + "/"
}

// serve answers on an address until ctx ends, and then what is under way. Whoever sent the signal ends it if that lasts.
func serve(ctx context.Context, address string, h http.Handler) error {
	s := &http.Server{Addr: address, Handler: h, ReadHeaderTimeout: 10 * time.Second}
	return untilEnd(ctx, s, s.ListenAndServe)
}

func untilEnd(ctx context.Context, s *http.Server, listen func() error) error {
	done := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() { done <- s.Shutdown(context.WithoutCancel(ctx)) })
	if err := listen(); !errors.Is(err, http.ErrServerClosed) {
		stop()
		return err
	}
	return <-done
}

// answer writes v as JSON; nothing of it is escaped for HTML.
func answer(w http.ResponseWriter, status int, v any) {
	var body bytes.Buffer
	e := json.NewEncoder(&body)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(bytes.TrimSuffix(body.Bytes(), []byte("\n")))
}

// fault is the body of an answer other than 200.
type fault struct {
	Error string `json:"error"`
}

// status is the body of an answer to a probe.
type status struct {
	Status string `json:"status"`
}
