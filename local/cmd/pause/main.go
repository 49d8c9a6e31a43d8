// Command pause holds a pod's namespaces open until it is told to end, and reaps what is left to it
// as PID 1 where the pod's containers share a PID namespace.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	signals := make(chan os.Signal, 8) // SIGCHLD coalesces: one more than is read at once suffices
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for s := range signals {
		if s != syscall.SIGCHLD {
			return
		}
		for pid := 1; pid > 0; {
			pid, _ = syscall.Wait4(-1, nil, syscall.WNOHANG, nil) // 0 or an error: nobody left to reap
		}
	}
}
