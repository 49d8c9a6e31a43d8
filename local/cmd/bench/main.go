// Command bench measures Heddle beside istiod on a local cluster where both are installed, and writes a report. It is run by
// scripts/bench-istiod.sh, as root, on a cluster that has nothing else.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/heddle-mesh/heddle/local/internal/bench"
)

func main() {
	o := bench.Options{Progress: os.Stderr}
	flag.StringVar(&o.Kubeconfig, "kubeconfig", "", "of the cluster")
	flag.Func("heddle", "NAMESPACE/REVISION of Heddle's plane", plane(&o.Heddle))
	flag.Func("istiod", "NAMESPACE/REVISION of istiod", plane(&o.Istiod))
	flag.IntVar(&o.Namespaces, "namespaces", 10, "namespaces of services and clients")
	flag.IntVar(&o.Services, "services", 1000, "services")
	flag.IntVar(&o.Clients, "clients", 500, "clients")
	flag.IntVar(&o.Flips, "flips", 100, "changes one by one")
	flag.DurationVar(&o.Gap, "gap", 500*time.Millisecond, "between a change that is with all clients and the next")
	flag.IntVar(&o.Burst, "burst", 100, "changes at once")
	flag.StringVar(&o.Profile, "profile", "", "command for sh that takes a profile of Heddle's $POD in $NAMESPACE, run under load when all is measured")
	about := flag.String("about", "", "a sentence of machine and source, for the report")
	file := flag.String("o", "", "file to write the report to, besides the output")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, *about, *file); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func plane(p *bench.Plane) func(string) error {
	return func(text string) error {
		var ok bool
		if p.Namespace, p.Revision, ok = strings.Cut(text, "/"); !ok {
			return errors.New("say NAMESPACE/REVISION")
		}
		return nil
	}
}

// run ends without an error where goals are missed: what the figures are is what was asked for.
func run(ctx context.Context, o bench.Options, about, file string) error {
	report, err := bench.Run(ctx, o)
	if err != nil {
		return err
	}
	var text bytes.Buffer
	missed, err := report.Write(&text, about)
	if err != nil {
		return err
	}
	if file != "" {
		if err := os.WriteFile(file, text.Bytes(), 0o644); err != nil {
			return err
		}
	}
	fmt.Print(text.String())
	for _, m := range missed {
		fmt.Println("missed:", m)
	}
	return nil
}
