// Command heddle-node is what runs in a pod of the mesh: the agent beside Envoy, and the redirection to it.
// It answers to the names that Istio's images use: `proxy sidecar` is agent, `istio-iptables` is init.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/heddle-mesh/heddle/internal/agent"
	"github.com/heddle-mesh/heddle/internal/node"
	"github.com/heddle-mesh/heddle/internal/node/redirect"
)

const usage = `usage: heddle-node COMMAND

  agent | proxy sidecar   start Envoy and feed it
  init | istio-iptables   redirect the pod's connections to Envoy
  request METHOD PATH     ask the agent or Envoy of this pod
  wait                    return when the proxy is ready
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := run(ctx, os.Args[1:])
	stop()
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "heddle-node:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("no command\n%s", usage)
	}
	switch name, rest := args[0], args[1:]; name {
	case "agent", "proxy":
		return runAgent(ctx, rest)
	case "init", "istio-iptables":
		return runInit(ctx, rest)
	case "request":
		return runRequest(ctx, rest)
	case "wait":
		return runWait(ctx, rest)
	default:
		return fmt.Errorf("unknown command %q\n%s", name, usage)
	}
}

func runAgent(ctx context.Context, args []string) error {
	e := agent.Environment{Role: "sidecar", CPUs: runtime.NumCPU(), Vars: map[string]string{}}
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		e.Role, args = args[0], args[1:]
	}
	f := flag.NewFlagSet("agent", flag.ContinueOnError)
	f.StringVar(&e.Domain, "domain", os.Getenv("POD_NAMESPACE")+".svc.cluster.local", "domain of the node id")
	proxyLevel := f.String("proxyLogLevel", "warning", "Envoy's log level")
	parts := f.String("proxyComponentLogLevel", "misc:error", "Envoy's log levels by component")
	level := f.String("log_output_level", "info", "the agent's log level; of Istio's scopes, default counts")
	asJSON := f.Bool("log_as_json", false, "log in JSON")
	for _, name := range []string{"stsPort", "log_caller", "log_target", "outlierLogPath", "templateFile"} {
		f.String(name, "", "accepted and without effect")
	}
	if err := parse(f, args); err != nil {
		return err
	}
	var out slog.Handler = slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: agent.LogLevel(*level)})
	if *asJSON {
		out = slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: agent.LogLevel(*level)})
	}
	for _, v := range os.Environ() {
		name, value, _ := strings.Cut(v, "=")
		e.Vars[name] = value
	}
	var err error
	if e.Addresses, err = addresses(); err != nil {
		return err
	}
	if e.Labels, err = podFile("labels"); err != nil {
		return err
	}
	if e.Annotations, err = podFile("annotations"); err != nil {
		return err
	}
	if path := e.Vars["ISTIO_BOOTSTRAP_OVERRIDE"]; path != "" {
		b, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("read what annotation sidecar.istio.io/bootstrapOverride names (a ConfigMap with key %s): %w", filepath.Base(path), err)
		}
		e.Override = string(b)
	}
	c, err := agent.Read(e)
	if err != nil {
		return err
	}
	c.LogLevel, c.LogByPart = *proxyLevel, *parts
	return agent.Run(ctx, c, slog.New(out))
}

func runInit(ctx context.Context, args []string) error {
	var v redirect.Fields
	f := flag.NewFlagSet("init", flag.ContinueOnError)
	for _, s := range []struct {
		to                     *string
		short, long, def, what string
	}{
		{&v.OutboundPort, "p", "envoy-port", "15001", "port for what leaves the pod"},
		{&v.InboundPort, "z", "inbound-capture-port", "15006", "port for what enters it"},
		{&v.ProxyID, "u", "proxy-uid", "1337", "uid and gid of the proxy"},
		{&v.Mode, "m", "istio-inbound-interception-mode", "REDIRECT", "REDIRECT"},
		{&v.IncludeCIDRs, "i", "istio-service-cidr", "*", "outbound address ranges to redirect, * for all"},
		{&v.ExcludeCIDRs, "x", "istio-service-exclude-cidr", "", "outbound address ranges to leave alone"},
		{&v.IncludeInbound, "b", "istio-inbound-ports", "*", "inbound ports to redirect, * for all"},
		{&v.ExcludeInbound, "d", "istio-local-exclude-ports", "", "inbound ports to leave alone"},
		{&v.IncludeOutbound, "q", "istio-outbound-ports", "", "outbound ports to redirect whatever their address"},
		{&v.ExcludeOutbound, "o", "istio-local-outbound-ports-exclude", "", "outbound ports to leave alone"},
		{&v.VirtualInterfaces, "k", "kube-virt-interfaces", "", "interfaces of guests, whose traffic counts as outbound"},
		{&v.ExcludeInterfaces, "c", "istio-exclude-interfaces", "", "interfaces to leave alone"},
	} {
		f.StringVar(s.to, s.short, s.def, s.what)
		f.StringVar(s.to, s.long, s.def, s.what)
	}
	nft := f.String("nft", "nft", "program to apply the rules with")
	dry := f.Bool("dry-run", false, "print the rules and change nothing")
	for _, name := range []string{"log_output_level", "log_target"} {
		f.String(name, "", "accepted and without effect")
	}
	for _, name := range []string{"native-nftables", "log_as_json"} {
		f.Bool(name, false, "accepted and without effect")
	}
	if err := parse(f, args); err != nil {
		return err
	}
	r, err := redirect.Parse(v)
	if err != nil {
		return err
	}
	found, err := addresses()
	if err != nil {
		return err
	}
	for _, a := range found {
		r.IPv6 = r.IPv6 || a.Is6() && !a.IsLoopback() && !a.IsLinkLocalUnicast()
	}
	if *dry {
		_, err = io.WriteString(os.Stdout, r.Rules())
		return err
	}
	return node.Apply(ctx, r, *nft)
}

func runRequest(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("request", flag.ContinueOnError)
	port := f.Int("debug-port", 15000, "port on the pod's loopback: 15000 for Envoy, 15020 for the agent")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() != 2 {
		return errors.New("usage: heddle-node request [--debug-port PORT] METHOD PATH")
	}
	return agent.Request(ctx, *port, f.Arg(0), f.Arg(1), os.Stdout)
}

func runWait(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("wait", flag.ContinueOnError)
	seconds := f.Int("timeoutSeconds", 60, "how long to wait")
	each := f.Int("requestTimeoutMillis", 500, "how long to wait for one answer")
	period := f.Int("periodMillis", 500, "how long to wait between two requests")
	url := f.String("url", "http://localhost:15021/healthz/ready", "what answers 200 when the proxy is ready")
	if err := parse(f, args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(*seconds)*time.Second)
	defer cancel()
	return agent.Wait(ctx, *url, time.Duration(*each)*time.Millisecond, time.Duration(*period)*time.Millisecond)
}

// parse refuses what is left over: a misspelt flag must not be taken for none.
func parse(f *flag.FlagSet, args []string) error {
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 {
		return fmt.Errorf("%s: unexpected arguments %q", f.Name(), f.Args())
	}
	return nil
}

// podFile reads a file of the downward API, empty where the pod has none.
func podFile(name string) (string, error) {
	b, err := os.ReadFile("/etc/istio/pod/" + name)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return string(b), err
}

func addresses() ([]netip.Addr, error) {
	found, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list the pod's addresses: %w", err)
	}
	var list []netip.Addr
	for _, a := range found {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			list = append(list, p.Addr())
		}
	}
	return list, nil
}
