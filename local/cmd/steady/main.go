// Command steady is a server that loses no request by itself: it answers every one with 200, keeps connections for as long
// as clients do, and told to end answers what is under way. What is lost of requests to it was lost on the way.
package main

import (
	"context"
	"errors"
	"log"
	"net/http"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	server := &http.Server{Addr: ":8080", Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	done := make(chan error)
	go func() {
		<-ctx.Done()
		done <- server.Shutdown(context.Background()) // whoever told it to end ends it if that lasts
	}()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
	if err := <-done; err != nil {
		log.Fatal(err)
	}
}
