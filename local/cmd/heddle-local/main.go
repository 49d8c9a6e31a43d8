// Command heddle-local is a real Kubernetes in one file. Called by the name of a component,
// it is that component; each runs in a process of its own.
package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/heddle-mesh/heddle/local/internal/cli"
	"github.com/heddle-mesh/heddle/local/internal/component"
)

func main() {
	instance := cmp.Or(os.Getenv("HEDDLE_INSTANCE"), cli.DefaultInstance)
	name := filepath.Base(os.Args[0])
	if name == "kubectl" || name == "oc" {
		code, err := cli.Kubectl(instance, name, os.Args[1:])
		fail(err)
		os.Exit(code)
	}
	if run := component.Main(name); run != nil {
		os.Exit(run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	fail(cli.Command(instance).ExecuteContext(ctx))
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}
