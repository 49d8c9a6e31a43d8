package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
)

func (a *app) whyCommand() *cobra.Command {
	var output format
	cmd := &cobra.Command{
		Use: "why POD.NAMESPACE [RESOURCE]", Short: "Say which object caused what a proxy holds",
		Long: "why names, for a resource that the control plane has sent to the pod's proxy (a cluster, listener, route, assignment or secret,\n" +
			"by its Envoy name), the Kubernetes object that it comes from. Without a name it lists all.",
		Example: "  heddle why sleep-7f56dc944b-vwfm5.app-ns-1 'outbound|8000||httpbin.app-ns-1.svc.cluster.local'",
		Args:    cobra.RangeArgs(1, 2),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.why(cmd, args, output) },
	}
	output.addTo(cmd)
	return cmd
}

// cause is one row of the control plane's answer.
type cause struct {
	Type    string `json:"type"`
	Name    string `json:"name"`
	Version string `json:"version"`
	Origin  string `json:"origin"`
}

func (a *app) why(cmd *cobra.Command, args []string, output format) error {
	ctx := cmd.Context()
	pod, ns := splitPod(args[0], a.namespace)
	if ns == "" {
		return fmt.Errorf("%s names no namespace: write POD.NAMESPACE or give -n", args[0])
	}
	resource := ""
	if len(args) > 1 {
		resource = args[1]
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	system := a.istioNamespace
	if system == "" {
		istios, memberships, err := a.members(ctx, c)
		if err != nil {
			return err
		}
		m, ok := membersOf(istios, memberships)[ns]
		if !ok {
			return fmt.Errorf("namespace %s belongs to no mesh; `%s check` tells what is missing", ns, a.Name)
		}
		system = istios[slices.IndexFunc(istios, func(i sailv1.Istio) bool { return i.Name == m.mesh })].Spec.Namespace
	}
	all, err := planes(ctx, c, system, "")
	if err == nil && len(all) == 0 {
		err = noPlanes(system, "")
	}
	if err != nil {
		return err
	}
	query := "why?" + url.Values{"proxyID": {pod + "." + ns}, "resource": {resource}}.Encode()
	replies := each(ctx, all, func(ctx context.Context, p plane) ([]cause, error) { return c.causes(ctx, p, query) })
	for _, r := range replies {
		if r.err == nil && r.said != nil {
			return printCauses(cmd, r.said, args[0], resource, output)
		}
	}
	if unanswered := silent(replies); len(unanswered) > 0 {
		return errors.Join(unanswered...)
	}
	return fmt.Errorf("the proxy of %s is not connected to a control plane in %s", args[0], system)
}

// causes asks one replica; nil if the proxy is not connected to it.
func (c cluster) causes(ctx context.Context, p plane, query string) ([]cause, error) {
	answer, err := c.ask(ctx, p, "istio.io/debug", query)
	if err != nil || len(answer.GetResources()) == 0 {
		return nil, err
	}
	body := answer.GetResources()[0].GetValue()
	if strings.HasPrefix(string(body), "Proxy not connected") {
		return nil, nil
	}
	causes := []cause{}
	if json.Unmarshal(body, &causes) != nil {
		return nil, errors.New(strings.TrimSpace(string(body)))
	}
	return causes, nil
}

func printCauses(cmd *cobra.Command, causes []cause, pod, resource string, output format) error {
	if len(causes) == 0 && resource != "" {
		return fmt.Errorf("the proxy of %s holds nothing named %s; without a name `why` lists what it holds", pod, resource)
	}
	return output.print(cmd.OutOrStdout(), causes, func(w io.Writer) error {
		t := newTable(w)
		fmt.Fprintln(t, "TYPE\tNAME\tBECAUSE OF")
		for _, c := range causes {
			fmt.Fprintf(t, "%s\t%s\t%s\n", printable(c.Type), printable(c.Name), orNone(printable(c.Origin)))
		}
		return t.Flush()
	})
}
