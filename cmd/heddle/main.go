// Command heddle is the command line, the control plane of a mesh (heddle discovery) and the operator of a cluster
// (heddle operator). Called istioctl it behaves the same.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client/config"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/heddle-mesh/heddle/internal/cli"
	"github.com/heddle-mesh/heddle/internal/control"
	"github.com/heddle-mesh/heddle/internal/obs"
	"github.com/heddle-mesh/heddle/internal/operator"
)

func main() {
	// Verbs say themselves what went wrong; discovery and operator give the libraries a logger of theirs.
	klog.SetLogger(logr.Discard())
	ctrllog.SetLogger(logr.Discard())
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	name := strings.TrimSuffix(filepath.Base(os.Args[0]), ".exe")
	root := cli.New(cli.Options{Name: name, Version: obs.Version, IstioNamespace: os.Getenv("ISTIOCTL_ISTIONAMESPACE")})
	root.AddCommand(discoveryCommand(), operatorCommand())
	err := root.ExecuteContext(ctx)
	stop()
	if err != nil {
		if !errors.Is(err, cli.ErrReported) {
			fmt.Fprintln(os.Stderr, "Error:", err)
		}
		os.Exit(cli.ExitCode(err))
	}
}

// planeGC is what a plane's heap may grow by between collections, in percent: there are many planes on a node, their heaps
// are small and cheap to collect.
const planeGC = 50

// discoveryCommand takes the flags and the environment that Istio's own control plane takes; what it does not know it
// ignores, as that does.
func discoveryCommand() *cobra.Command {
	o := control.Options{
		Revision: os.Getenv("REVISION"), Namespace: os.Getenv("POD_NAMESPACE"), PodName: os.Getenv("POD_NAME"), APIVersion: os.Getenv("ISTIO_VERSION"),
	}
	for name := range strings.SplitSeq(os.Getenv("ISTIOD_CUSTOM_HOST"), ",") {
		if name = strings.TrimSpace(name); name != "" {
			o.ServingNames = append(o.ServingNames, name)
		}
	}
	var plaintext, level string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "discovery", Short: "Run the control plane of one mesh", Hidden: true, Args: cobra.ArbitraryArgs,
		FParseErrWhitelist: cobra.FParseErrWhitelist{UnknownFlags: true},
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if o.Log, o.Level, err = logger(level, asJSON); err != nil {
				return err
			}
			if os.Getenv("GOGC") == "" {
				debug.SetGCPercent(planeGC)
			}
			return control.Run(cmd.Context(), o)
		},
	}
	fs := cmd.Flags()
	fs.StringVar((*string)(&o.Mesh), "mesh", os.Getenv("HEDDLE_MESH"), "name of the Istio object")
	fs.StringVar(&plaintext, "grpcAddr", "", "accepted and without effect: there is no plaintext xDS")
	fs.StringVar(&o.SecureAddr, "secureGRPCAddr", ":15012", "xDS and CA, TLS")
	fs.StringVar(&o.HTTPSAddr, "httpsAddr", ":15017", "webhooks, TLS")
	fs.StringVar(&o.HTTPAddr, "httpAddr", ":8080", "readiness")
	fs.StringVar(&o.MonitoringAddr, "monitoringAddr", ":15014", "metrics, version and debug pages")
	fs.StringVar((*string)(&o.Cluster), "clusterID", cmp.Or(os.Getenv("CLUSTER_ID"), "Kubernetes"), "name of the cluster, as proxies carry it")
	fs.StringVar(&o.Kubeconfig, "kubeconfig", "", "kubeconfig file; the pod's service account if empty")
	fs.DurationVar(&o.MaxConnectionAge, "keepaliveMaxServerConnectionAge", 30*time.Minute, "after which a proxy connects anew")
	fs.StringVar(&level, "log_output_level", "default:info", "debug, info, warn or error, alone or after default:")
	fs.BoolVar(&asJSON, "log_as_json", false, "log JSON")
	return cmd
}

func operatorCommand() *cobra.Command {
	var level string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "operator", Short: "Run the operator of a cluster", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, now, err := logger(level, asJSON)
			if err != nil {
				return err
			}
			o := operator.Options{
				Images:  operator.Images{Heddle: os.Getenv("HEDDLE_IMAGE"), Proxy: os.Getenv("HEDDLE_PROXY_IMAGE")},
				Version: obs.Version, Namespace: os.Getenv("POD_NAMESPACE"), Log: log, Level: now,
			}
			if o.Images.Heddle == "" || o.Images.Proxy == "" {
				return errors.New("set HEDDLE_IMAGE and HEDDLE_PROXY_IMAGE: the images that meshes run from")
			}
			if o.Config, err = config.GetConfig(); err != nil {
				return fmt.Errorf("no cluster: %w; the operator runs in a pod, or with KUBECONFIG set", err)
			}
			return operator.Run(cmd.Context(), o)
		},
	}
	cmd.Flags().StringVar(&level, "log_output_level", "default:info", "debug, info, warn or error, alone or after default:")
	cmd.Flags().BoolVar(&asJSON, "log_as_json", false, "log JSON")
	return cmd
}

// logger reads Istio's level syntax, of which one scope exists here, and gives the libraries the same logger. The level
// may be changed later.
func logger(level string, asJSON bool) (*slog.Logger, *obs.Level, error) {
	l := "info"
	for part := range strings.SplitSeq(level, ",") {
		scope, value, ok := strings.Cut(part, ":")
		switch {
		case !ok:
			l = part
		case scope == "default" || scope == "all":
			l = value
		}
	}
	format := "text"
	if asJSON {
		format = "json"
	}
	start, err := obs.ParseLevel(l)
	if err != nil {
		return nil, nil, err
	}
	now := obs.NewLevel(start)
	log, err := obs.Logger(os.Stderr, format, now)
	if err != nil {
		return nil, nil, err
	}
	klog.SetLogger(obs.Logr(log))
	ctrllog.SetLogger(obs.Logr(log))
	return log, now, nil
}
