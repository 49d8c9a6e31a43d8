// Package cli is the verbs of heddle, which understands what istioctl understands.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/heddle-mesh/heddle/internal/operator"
)

// Options is what main knows and the verbs need.
type Options struct {
	Name           string // as the user called the program: heddle or istioctl
	Version        string // Heddle's own
	IstioNamespace string // default of --istioNamespace; empty: every mesh
}

// app is one invocation.
type app struct {
	Options
	kubeconfig, context string
	as                  string // whom to impersonate
	asGroups            []string
	istioNamespace      string // one mesh's system namespace; empty: every mesh
	namespace           string

	// connect opens the cluster; tests replace it.
	connect func() (cluster, error)
}

// cluster is a Kubernetes cluster as the verbs see it.
type cluster struct {
	client.WithWatch
	config *rest.Config

	// ask sends one request of a debug type to a control plane; tests replace it.
	ask func(ctx context.Context, p plane, typeURL string, names ...string) (*discoveryv3.DiscoveryResponse, error)
	// call makes a request of a page of a control plane or the operator; tests replace it.
	call func(ctx context.Context, p plane, method, page string) ([]byte, error)
}

// New returns the root command with all verbs.
func New(o Options) *cobra.Command {
	a := &app{Options: o}
	a.connect = a.open
	return a.command()
}

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   a.Name,
		Short: "Many service meshes in one cluster, each with its own control plane",
		Long: "heddle installs, shows and checks meshes. It takes the words that istioctl takes; where a cluster holds\n" +
			"several meshes, -i NAMESPACE narrows a verb to the mesh with that system namespace; what is read then is that mesh's,\n" +
			"so that rights on the whole cluster are not needed.\n\n" +
			"Exit codes of check, proxy-status, version and mesh list: 0, all is well; 1, there is something to see to, such as findings\n" +
			"or control planes that did not answer; 2, the verb could not look. Of all other verbs: 0, done; 1, not done.",
		SilenceUsage: true, SilenceErrors: true, Version: a.Version,
	}
	f := root.PersistentFlags()
	f.StringVarP(&a.kubeconfig, "kubeconfig", "c", "", "kubeconfig file (default: $KUBECONFIG, else ~/.kube/config)")
	f.StringVar(&a.context, "context", "", "context of the kubeconfig file")
	f.StringVar(&a.as, "as", "", "user to impersonate")
	f.StringArrayVar(&a.asGroups, "as-group", nil, "group to impersonate, with --as; may be repeated")
	f.StringVarP(&a.istioNamespace, "istioNamespace", "i", a.IstioNamespace, "system namespace of the one mesh that is meant")
	f.StringVarP(&a.namespace, "namespace", "n", "", "namespace of what is named, or to which output is limited")
	root.AddCommand(a.installCommand(), a.uninstallCommand(), a.statusCommand(), a.versionCommand(), a.checkCommand(), a.meshCommand(), a.whyCommand(), a.adminCommand())
	for verb, short := range map[string]string{
		"local": "A real Kubernetes on this machine (heddle-local)", "verify": "Run a document's commands against the local cluster and compare",
	} {
		root.AddCommand(pluginCommand(verb, short))
	}
	return root
}

// open reads the kubeconfig as kubectl does.
func (a *app) open() (cluster, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = a.kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: a.context}).ClientConfig()
	if err != nil {
		return cluster{}, fmt.Errorf("no cluster: %w; name a kubeconfig with --kubeconfig or KUBECONFIG (`%s local up` makes a cluster and prints its path)", err, a.Name)
	}
	if a.as == "" && len(a.asGroups) > 0 {
		return cluster{}, errors.New("--as-group needs --as: the API server impersonates a user")
	}
	config.Impersonate = rest.ImpersonationConfig{UserName: a.as, Groups: a.asGroups}
	config.QPS, config.Burst = 50, 100 // one person's reads; the default of 5 a second makes `check` crawl
	config.WarningHandler = rest.NewWarningWriter(os.Stderr, rest.WarningWriterOptions{Deduplicate: true})
	scheme, err := operator.Scheme()
	if err != nil {
		return cluster{}, err
	}
	c, err := client.NewWithWatch(config, client.Options{Scheme: scheme})
	if err != nil {
		return cluster{}, fmt.Errorf("reach the cluster: %w", err)
	}
	open := cluster{WithWatch: c, config: config}
	open.ask, open.call = open.askPlane, open.callPage
	return open, nil
}

// ErrReported says that the verb has already told the user everything and that the exit code alone is missing.
var ErrReported = errors.New("reported")

// blind is the error of a verb that should have looked at something and could not.
type blind struct{ error }

func (b blind) Unwrap() error { return b.error }

// looking makes whatever keeps the verb from looking another error than what it finds.
func looking(cmd *cobra.Command) *cobra.Command {
	fails := func(err error) error {
		if err == nil || errors.Is(err, ErrReported) {
			return err
		}
		return blind{err}
	}
	args, run := cmd.Args, cmd.RunE
	cmd.Args = func(cmd *cobra.Command, a []string) error { return fails(args(cmd, a)) }
	cmd.RunE = func(cmd *cobra.Command, a []string) error { return fails(run(cmd, a)) }
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fails(err) })
	return cmd
}

// ExitCode is what the program ends with, of what a verb returned. The root command's help says what the codes mean.
func ExitCode(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.As(err, &blind{}):
		return 2
	}
	return 1
}

// pluginCommand hands a verb to heddle-local, which is a program of its own: it carries a whole Kubernetes.
func pluginCommand(verb, short string) *cobra.Command {
	_, missing := findPlugin()
	return &cobra.Command{
		Use: verb, Short: short, DisableFlagParsing: true, Hidden: missing != nil, // it is of a checkout
		RunE: func(_ *cobra.Command, args []string) error {
			path, err := findPlugin()
			if err != nil {
				return err
			}
			if verb != "local" {
				args = append([]string{verb}, args...)
			}
			return syscall.Exec(path, append([]string{"heddle-local"}, args...), os.Environ())
		},
	}
}

// findPlugin looks beside this program, where a build puts it, and then in PATH.
func findPlugin() (string, error) {
	if self, err := os.Executable(); err == nil {
		if self, err = filepath.EvalSymlinks(self); err == nil {
			if path, err := exec.LookPath(filepath.Join(filepath.Dir(self), "heddle-local")); err == nil {
				return path, nil
			}
		}
	}
	path, err := exec.LookPath("heddle-local")
	if err != nil {
		return "", errors.New("heddle-local is neither beside heddle nor in PATH: build it with `make build`, or take it from the release")
	}
	return path, nil
}

// confirm asks on a terminal; elsewhere it refuses and names the flag that answers in advance.
func confirm(cmd *cobra.Command, yes bool, question string) error {
	if yes {
		return nil
	}
	in, ok := cmd.InOrStdin().(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return errors.New("nothing was changed: standard input is no terminal to ask on; give --skip-confirmation (-y) to go ahead")
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s\nProceed? (y/N) ", question)
	answer := make([]byte, 0, 8)
	for b := make([]byte, 1); len(answer) < cap(answer); {
		n, err := in.Read(b)
		if n == 0 || b[0] == '\n' || b[0] == '\r' {
			if err != nil && !errors.Is(err, io.EOF) {
				return fmt.Errorf("read the answer: %w", err)
			}
			break
		}
		answer = append(answer, b[0])
	}
	switch string(answer) {
	case "y", "Y", "yes", "Yes":
		return nil
	}
	return errors.New("cancelled; nothing was changed")
}

// within bounds a verb's wait.
func within(ctx context.Context, err error, what string) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("%s: not in the time that --readiness-timeout gives", what)
	}
	return err
}
