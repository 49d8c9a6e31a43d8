package main

import (
	"fmt"
	"net/http"
)

// helloworld says which version and which pod of it answers.
func helloworld(env environment) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /hello", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "Hello version: %s, instance: %s\n", env("SERVICE_VERSION"), env("HOSTNAME"))
	})
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "Helloworld is healthy")
	})
	return mux
}
