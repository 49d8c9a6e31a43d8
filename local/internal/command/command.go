// Package command makes kubectl and oc of the documents work on an instance.
package command

import (
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/local/internal/proc"
)

// Context is what commands run on.
type Context struct {
	Kubeconfig string // of the instance; "" if it is not up
	Cache      string // directory for what kubectl caches
	Checkout   string // holds samples/; "" if unknown
}

// Prepare returns the arguments for kubectl, with samples of the web replaced by those of
// the checkout, and sets the environment kubectl reads. A user's own kubeconfig wins.
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
	return Rewrite(args, c.Checkout), nil
}

// names says whether one of the flags is among args, as "--flag" or "--flag=value".
func names(args []string, flags ...string) bool {
	return slices.ContainsFunc(args, func(a string) bool {
		flag, _, _ := strings.Cut(a, "=")
		return slices.Contains(flags, flag)
	})
}

// Rewrite replaces each https://…/samples/X/Y.yaml, alone or as the value of a flag, by the
// file samples/X/Y.yaml of the checkout, if that exists.
func Rewrite(args []string, checkout string) []string {
	args = slices.Clone(args)
	for i, a := range args {
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
