package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
)

// keySet is security/tools/jwt/samples/jwks.json, whose key signed the tokens beside it. Everybody has its private part.
const keySet = `{"keys":[{"e":"AQAB","kid":"AbNUBu5DH3RWewndBA9qjixJi8kPPnzLQAjxExJBxcQ","kty":"RSA","n":"rzl9nNYT58MD9_YXzkT3W0_e75J9DLH49zotYg0Kgc7syW7XM4RuejM3QLbuDauv7igsyAxq2Q42o6mFp-2kIL2zwnCq6wGyZdKcwxOskyj50yalM5w4pFzOhWXUSLYfCAIJljhsao0-e2Zcnh9zkV9iVQg04LhlUR69O8bvxI8yZOpJOH70K13QdfVCkDFs6LdJ09QzVhpx4jC2sdaXrnFPL4dntlfexJ8a9pa4OCQoU5LyBsUt70CIWhqFS9SGeRrOOLR2Emww7Ub09ZzX7qw-ey_BdqOco6fr43PXUvyJhZDizzPx-E0XYPnf6wjEwnikb9kOtn0U-5s3_UqkvQ"}]}`

// jwtServer serves the key set, encrypted as well if it is told with which certificate.
func jwtServer(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("jwt-server", flag.ContinueOnError)
	plain := flags.String("http", "8000", "port")
	encrypted := flags.String("https", "8443", "port, served if there are -cert and -key")
	cert := flags.String("cert", "", "file of the server's certificate")
	key := flags.String("key", "", "file of its private key")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if (*cert == "") != (*key == "") {
		return errors.New("-cert and -key go together")
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return serve(ctx, ":"+*plain, http.HandlerFunc(keys)) })
	if *cert != "" {
		group.Go(func() error {
			s := &http.Server{Addr: ":" + *encrypted, Handler: http.HandlerFunc(keys), ReadHeaderTimeout: 10 * time.Second}
			return untilEnd(ctx, s, func() error { return s.ListenAndServeTLS(*cert, *key) })
		})
	}
	return group.Wait()
}

// keys answers every path, after the time in the parameter delay.
func keys(w http.ResponseWriter, r *http.Request) {
	if text := r.URL.Query().Get("delay"); text != "" {
		delay, err := time.ParseDuration(text)
		if err != nil {
			http.Error(w, "Invalid delay parameter", http.StatusBadRequest)
			return
		}
		select {
		case <-time.After(delay):
		case <-r.Context().Done():
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprint(w, keySet)
}
