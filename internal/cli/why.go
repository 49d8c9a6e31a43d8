package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func (a *app) whyCommand() *cobra.Command {
	return &cobra.Command{
		Use: "why POD.NAMESPACE [RESOURCE]", Short: "Say which object caused what a proxy holds",
		Long: "why names, for a resource that the control plane has sent to the pod's proxy (a cluster, listener, route or assignment, by its\n" +
			"Envoy name), the Kubernetes object that it comes from. Without a name it lists all.",
		Example: "  heddle why sleep-7f56dc944b-vwfm5.app-ns-1 'outbound|8000||httpbin.app-ns-1.svc.cluster.local'",
		Args:    cobra.RangeArgs(1, 2),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.why(cmd, args) },
	}
}

// cause is one row of the control plane's answer.
type cause struct{ Type, Name, Version, Origin string }

func (a *app) why(cmd *cobra.Command, args []string) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), 30*time.Second)
	defer cancel()
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
		members, err := memberships(ctx, c)
		if err != nil {
			return err
		}
		m, ok := members[ns]
		if !ok {
			return fmt.Errorf("namespace %s belongs to no mesh; `%s check` tells what is missing", ns, a.Name)
		}
		istio, err := istioOf(ctx, c, m.mesh)
		if err != nil {
			return err
		}
		system = istio.Spec.Namespace
	}
	all, err := planes(ctx, c, system, "")
	if err != nil {
		return err
	}
	query := "why?" + url.Values{"proxyID": {pod + "." + ns}, "resource": {resource}}.Encode()
	for _, p := range all {
		answer, err := c.ask(ctx, p, "istio.io/debug", query)
		if err != nil {
			return err
		}
		if len(answer.GetResources()) == 0 {
			continue
		}
		body := answer.GetResources()[0].GetValue()
		var causes []cause
		if err := json.Unmarshal(body, &causes); err != nil {
			if strings.HasPrefix(string(body), "Proxy not connected") {
				continue // to this replica
			}
			return errors.New(strings.TrimSpace(string(body)))
		}
		return printCauses(cmd, causes, args[0], resource)
	}
	return fmt.Errorf("the proxy of %s is not connected to a control plane in %s", args[0], system)
}

func printCauses(cmd *cobra.Command, causes []cause, pod, resource string) error {
	if len(causes) == 0 && resource != "" {
		return fmt.Errorf("the proxy of %s holds nothing named %s; without a name `why` lists what it holds", pod, resource)
	}
	t := newTable(cmd.OutOrStdout())
	fmt.Fprintln(t, "TYPE\tNAME\tBECAUSE OF")
	for _, c := range causes {
		fmt.Fprintf(t, "%s\t%s\t%s\n", c.Type, c.Name, orNone(c.Origin))
	}
	return t.Flush()
}
