// Package cli is the command line of heddle-local.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/local/internal/cluster"
	"github.com/heddle-mesh/heddle/local/internal/command"
	"github.com/heddle-mesh/heddle/local/internal/component"
	"github.com/heddle-mesh/heddle/local/internal/instance"
	"github.com/heddle-mesh/heddle/local/internal/node"
)

// DefaultInstance is used where neither flag nor environment names one.
const DefaultInstance = "demo"

// options are the flags and environment that all commands share.
type options struct {
	instance string
}

// Command returns heddle-local's root command. defaultInstance is the instance used if the
// flag names none.
func Command(defaultInstance string) *cobra.Command {
	o := &options{}
	root := &cobra.Command{
		Use:              "heddle-local",
		Short:            "A real Kubernetes on this machine, without a container engine, for trying and testing Heddle",
		SilenceUsage:     true,
		SilenceErrors:    true,
		TraverseChildren: true, // flags before the command, for kubectl and oc have their own
	}
	root.PersistentFlags().StringVar(&o.instance, "instance", defaultInstance,
		"which local installation; each has its own addresses and directory (environment: HEDDLE_INSTANCE)")
	root.AddCommand(upCommand(o), downCommand(o), statusCommand(o), kubeconfigCommand(o), loadCommand(o), logsCommand(o),
		verifyCommand(o), kubectlCommand(o, "kubectl"), kubectlCommand(o, "oc"), daemonCommand(o), nodeCommand())
	return root
}

// Kubectl is what the program does when it is called kubectl or oc; it returns kubectl's exit code.
func Kubectl(instanceName, name string, args []string) (code int, err error) {
	inst, err := instance.Named(instanceName)
	if err != nil {
		return 0, err
	}
	c := command.Context{Local: localKubeconfigs(), Cache: inst.KubectlCache(), Checkout: findCheckout()}
	switch s, err := inst.Load(); {
	case err == nil:
		c.Kubeconfig = inst.Cluster(s, 1).Kubeconfig()
		if s.Checkout != "" {
			c.Checkout = s.Checkout
		}
	case errors.Is(err, fs.ErrPermission):
		return 0, fmt.Errorf("%w: use sudo, or a copy of the kubeconfig by KUBECONFIG", err)
	case !errors.Is(err, fs.ErrNotExist):
		return 0, err
	}
	if args, err = c.Prepare(args); err != nil {
		return 0, err
	}
	if name == "oc" && len(args) > 0 && args[0] == "new-project" {
		err := command.NewProject(args[1:], os.Stdout, os.Stderr)
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			return exit.ExitCode(), nil // kubectl said why
		}
		return 0, err
	}
	os.Args = append([]string{"kubectl"}, args...)
	return component.Main("kubectl")(), nil
}

// localKubeconfigs returns those of the instances that this user may look at.
func localKubeconfigs() []string {
	all, _ := instance.All() // who may not look has none
	var files []string
	for _, i := range all {
		if s, err := i.Load(); err == nil {
			files = append(files, i.Cluster(s, 1).Kubeconfig())
		}
	}
	return files
}

func kubectlCommand(o *options, name string) *cobra.Command {
	short := "kubectl on the instance"
	if name == "oc" {
		short = "kubectl on the instance, and new-project"
	}
	return &cobra.Command{
		Use: name, Short: short, DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			code, err := Kubectl(o.instance, name, args)
			if err != nil {
				return err
			}
			os.Exit(code)
			return nil
		},
	}
}

func statusCommand(o *options) *cobra.Command {
	output := "table"
	cmd := &cobra.Command{
		Use: "status", Short: "Show the components, where they are and how they are", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			inst, err := instance.Named(o.instance)
			if err != nil {
				return err
			}
			if _, err := inst.Load(); errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("instance %s is not up: run heddle-local up --instance %s", inst.Name, inst.Name)
			}
			parts, err := cluster.Dial(inst).Status(cmd.Context())
			if err != nil {
				return fmt.Errorf("instance %s has no daemon (%w): heddle-local up --instance %s repairs it", inst.Name, err, inst.Name)
			}
			if output == "json" {
				if err := json.NewEncoder(cmd.OutOrStdout()).Encode(parts); err != nil {
					return err
				}
			} else {
				printStatus(cmd.OutOrStdout(), parts)
			}
			sick := 0
			for _, p := range parts {
				if p.Health != cluster.Healthy {
					sick++
				}
			}
			if sick > 0 {
				return fmt.Errorf("%d of %d parts are not healthy; heddle-local up --instance %s repairs what does not come back by itself", sick, len(parts), inst.Name)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", output, "table or json")
	return cmd
}

func printStatus(out io.Writer, parts []cluster.Part) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "COMPONENT\tADDRESS\tPID\tRUNNING\tRESTARTS\tHEALTH")
	for _, p := range parts {
		pid, running := "", ""
		if p.PID > 0 {
			pid = fmt.Sprint(p.PID)
		}
		if !p.Since.IsZero() && p.PID > 0 {
			running = time.Since(p.Since).Round(time.Second).String()
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\n", p.Name, p.Address, pid, running, p.Restarts, p.Health)
	}
	w.Flush()
}

func kubeconfigCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "kubeconfig", Short: "Print the path of the kubeconfig", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			inst, err := instance.Named(o.instance)
			if err != nil {
				return err
			}
			s, err := inst.Load()
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("instance %s is not up: run heddle-local up --instance %s", inst.Name, inst.Name)
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), inst.Cluster(s, 1).Kubeconfig())
			return err
		},
	}
}

func logsCommand(o *options) *cobra.Command {
	follow := false
	cmd := &cobra.Command{
		Use: "logs [COMPONENT]", Short: "Print a component's log, or the names of all", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			inst, err := instance.Named(o.instance)
			if err != nil {
				return err
			}
			files, err := filepath.Glob(filepath.Join(inst.Logs(), "*.log"))
			if err != nil {
				return err
			}
			names := map[string]string{}
			var list []string
			for _, f := range append(files, filepath.Join(inst.Dir(), "c1", "audit.log")) {
				name := strings.TrimSuffix(filepath.Base(f), ".log")
				names[name] = f
				list = append(list, name)
			}
			if len(args) == 0 {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), strings.Join(list, "\n"))
				return err
			}
			file, ok := names[args[0]]
			if !ok {
				return fmt.Errorf("no log of %q in instance %s; there are: %s", args[0], inst.Name, strings.Join(list, ", "))
			}
			tail := exec.CommandContext(cmd.Context(), "tail", "-n", "+1", file)
			if follow {
				tail = exec.CommandContext(cmd.Context(), "tail", "-n", "100", "-F", file)
			}
			tail.Stdout, tail.Stderr = cmd.OutOrStdout(), cmd.ErrOrStderr()
			return tail.Run()
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "print the end, and what is added")
	return cmd
}

func daemonCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "daemon", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			inst, err := instance.Named(o.instance)
			if err != nil {
				return err
			}
			return cluster.Run(cmd.Context(), inst, slog.New(slog.NewTextHandler(os.Stderr, nil)))
		},
	}
}

func nodeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "node-init CONFIG", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return node.Init(cmd.Context(), args[0]) },
	}
}

// findCheckout looks for Heddle's source above the program and above the working directory.
func findCheckout() string {
	var starts []string
	if exe, err := os.Executable(); err == nil {
		if real, err := filepath.EvalSymlinks(exe); err == nil {
			starts = append(starts, filepath.Dir(real))
		}
	}
	if dir, err := os.Getwd(); err == nil {
		starts = append(starts, dir)
	}
	for _, dir := range starts {
		for ; ; dir = filepath.Dir(dir) {
			data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
			if err == nil && strings.HasPrefix(string(data), "module github.com/heddle-mesh/heddle\n") {
				return dir
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	return ""
}

// sayer prints the steps of a command as they end.
type sayer struct {
	out   io.Writer
	began time.Time
}

func (s sayer) step(name string, took time.Duration) {
	fmt.Fprintf(s.out, "  %-20s %6.1f s\n", name, took.Seconds())
}

func (s sayer) event(e cluster.Event) { s.step(e.Step, e.Took) }

func (s sayer) line(format string, args ...any) { fmt.Fprintf(s.out, format+"\n", args...) }

// timed runs f and prints how long it took.
func (s sayer) timed(ctx context.Context, name string, f func(context.Context) error) error {
	began := time.Now()
	if err := f(ctx); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	s.step(name, time.Since(began))
	return nil
}
