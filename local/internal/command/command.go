// Package command makes kubectl and oc of the documents work on an instance.
package command

import (
	"bytes"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/client-go/tools/clientcmd"
	api "k8s.io/client-go/tools/clientcmd/api"

	"github.com/heddle-mesh/heddle/local/internal/proc"
)

// Context is what commands run on.
type Context struct {
	Kubeconfig string   // of the instance; "" if it is not up
	Local      []string // kubeconfigs of all instances of this machine
	Cache      string   // directory for what kubectl caches
	Checkout   string   // holds samples/; "" if unknown
}

// Prepare returns the arguments for kubectl, with samples of the web replaced by those of
// the checkout if they go to an instance, and sets the environment kubectl reads. A user's own kubeconfig wins.
func (c Context) Prepare(args []string) ([]string, error) {
	if os.Getenv("KUBECONFIG") == "" && !names(args, "--kubeconfig") {
		if c.Kubeconfig == "" && len(args) > 0 && !names(args, "--help", "-h", "--client", "--server", "-s") {
			return nil, fmt.Errorf("the instance is not up: run heddle-local up, name another one with --instance or HEDDLE_INSTANCE, or set KUBECONFIG")
		}
		if c.Kubeconfig != "" {
			if err := os.Setenv("KUBECONFIG", c.Kubeconfig); err != nil {
				return nil, err
			}
			if os.Getenv("KUBECACHEDIR") == "" {
				if err := os.Setenv("KUBECACHEDIR", c.Cache); err != nil {
					return nil, err
				}
			}
		}
	}
	rewritten := Rewrite(args, c.Checkout)
	if !slices.Equal(rewritten, args) && !c.local(args) {
		return args, nil // somebody else's cluster gets what its user asked for
	}
	return rewritten, nil
}

// local says whether arguments and environment lead to an instance of this machine: to its address, by its CA.
func (c Context) local(args []string) bool {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = value(args, "--kubeconfig")
	at, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{
		CurrentContext: value(args, "--context"), Context: api.Context{Cluster: value(args, "--cluster")},
		ClusterInfo: api.Cluster{Server: value(args, "--server", "-s"), CertificateAuthority: value(args, "--certificate-authority")},
	}).ClientConfig()
	if err != nil {
		return false
	}
	return slices.ContainsFunc(c.Local, func(file string) bool {
		ours, err := clientcmd.BuildConfigFromFlags("", file)
		return err == nil && ours.Host == at.Host && len(ours.CAData) > 0 && bytes.Equal(ours.CAData, at.CAData)
	})
}

// own are kubectl's own arguments: what follows "--" belongs to a command that it runs.
func own(args []string) []string {
	if i := slices.Index(args, "--"); i >= 0 {
		return args[:i]
	}
	return args
}

// names says whether one of the flags is among args, as "--flag" or "--flag=value".
func names(args []string, flags ...string) bool {
	return slices.ContainsFunc(own(args), func(a string) bool {
		flag, _, _ := strings.Cut(a, "=")
		return slices.Contains(flags, flag)
	})
}

// value returns what the last of the flags among args is set to, as "--flag value", "--flag=value" or "-fvalue".
func value(args []string, flags ...string) string {
	args, last := own(args), ""
	for i, a := range args {
		for _, flag := range flags {
			rest, ok := strings.CutPrefix(a, flag)
			switch short := !strings.HasPrefix(flag, "--"); {
			case ok && rest == "" && i+1 < len(args):
				last = args[i+1]
			case ok && (short || strings.HasPrefix(rest, "=")):
				last = strings.TrimPrefix(rest, "=")
			}
		}
	}
	return last
}

// Rewrite replaces each https://…/samples/X/Y.yaml, alone or as the value of a flag, by the
// file samples/X/Y.yaml of the checkout, if that exists.
func Rewrite(args []string, checkout string) []string {
	args = slices.Clone(args)
	for i, a := range own(args) {
		flag, value := "", a
		if strings.HasPrefix(a, "-") {
			name, v, ok := strings.Cut(a, "=")
			if !ok {
				continue
			}
			flag, value = name+"=", v
		}
		if file, ok := sample(value, checkout); ok {
			args[i] = flag + file
		}
	}
	return args
}

func sample(address, checkout string) (string, bool) {
	u, err := url.Parse(address)
	if err != nil || checkout == "" || (u.Scheme != "https" && u.Scheme != "http") {
		return "", false
	}
	at := strings.LastIndex(u.Path, "/samples/")
	if at < 0 {
		return "", false
	}
	name := filepath.FromSlash(strings.TrimPrefix(u.Path[at:], "/samples/"))
	file := filepath.Join(checkout, "samples", name)
	info, err := os.Stat(file)
	return file, err == nil && info.Mode().IsRegular() && filepath.IsLocal(name)
}

// NewProject is oc's new-project: it makes the namespace and works in it from then on.
// Descriptions, which OpenShift keeps with a project, are accepted and dropped.
func NewProject(args []string, out, errOut io.Writer) error {
	var name string
	var global []string
	for i := 0; i < len(args); i++ {
		flag, _, hasValue := strings.Cut(args[i], "=")
		switch {
		case flag == "--description" || flag == "--display-name":
			if !hasValue {
				i++
			}
		case strings.HasPrefix(flag, "-"):
			global = append(global, args[i])
			if !hasValue && i+1 < len(args) && slices.Contains([]string{"--kubeconfig", "--context", "--as", "-s", "--server"}, flag) {
				i++
				global = append(global, args[i])
			}
		case name == "":
			name = args[i]
		default:
			return fmt.Errorf("new-project takes one name; got %q and %q", name, args[i])
		}
	}
	if name == "" {
		return fmt.Errorf("new-project needs a name: oc new-project NAME")
	}
	kubectl := func(out io.Writer, args ...string) error {
		cmd := exec.Command(proc.Self)
		cmd.Args = slices.Concat([]string{"kubectl"}, global, args)
		cmd.Stdout, cmd.Stderr = out, errOut
		return cmd.Run()
	}
	var server strings.Builder
	if err := kubectl(io.Discard, "create", "namespace", name); err != nil {
		return err
	}
	if err := kubectl(io.Discard, "config", "set-context", "--current", "--namespace="+name); err != nil {
		return err
	}
	if err := kubectl(&server, "config", "view", "--minify", "--output=jsonpath={.clusters[0].cluster.server}"); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "Now using project %q on server %q.\n", name, server.String())
	return err
}
