package verify

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"text/template"
)

// Control is a negative control: what is broken on a cluster on which S0 was run, and exactly which rows must then be red.
// A check that stays green when the thing that it checks is missing proves nothing.
type Control struct {
	Name        string
	Break, Mend string // shell, with the names filled in
	Red         []string
}

const (
	restart1 = "oc -n {{.App1}} rollout restart deploy >/dev/null && oc -n {{.App1}} rollout status deploy/{{.Sleep}} --timeout=90s && oc -n {{.App1}} rollout status deploy/{{.Httpbin}} --timeout=90s && " + settled1
	restart3 = "oc -n {{.App3}} rollout restart deploy >/dev/null && oc -n {{.App3}} rollout status deploy/{{.Sleep}} --timeout=90s && oc -n {{.App3}} rollout status deploy/{{.Httpbin}} --timeout=90s && " + settled3
	settled1 = `until [ "$(oc -n {{.App1}} get pods --no-headers | wc -l)" = 2 ]; do sleep 0.2; done`
	settled3 = `until [ "$(oc -n {{.App3}} get pods --no-headers | wc -l)" = 2 ]; do sleep 0.2; done`
	// The one process that serves the second mesh, and the network namespace of its pod.
	plane2 = `pid=$(for p in $(pgrep -x heddle); do tr '\0' '\n' </proc/$p/environ 2>/dev/null | grep -qx HEDDLE_MESH={{.Mesh2}} && nsenter -t $p -n ip -o -4 addr show eth0 | grep -q "$(oc -n {{.Sys2}} get pod -l app=istiod -o jsonpath='{.items[0].status.podIP}')" && echo $p; done; true) && [ -n "$pid" ] && `
)

// Controls returns the negative controls.
func Controls() []Control {
	return []Control{
		{
			Name:  "peerauth", // the second mesh has no policy
			Break: "oc -n {{.Sys2}} delete peerauthentication {{.Mesh2}}-peerauth",
			// Envoy lets connections of before the policy end with their next response: the caller starts anew.
			Mend:  `printf 'apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: "{{.Mesh2}}-peerauth", namespace: "{{.Sys2}}"}\nspec: {mtls: {mode: STRICT}}\n' | oc apply -f - && ` + restart1,
			Red:   []string{"MCP-09", "MCP-26"},
		},
		{
			Name:  "membership", // the third namespace lacks its discovery label
			Break: "oc label ns {{.App3}} {{.Label}}- && " + restart3,
			Mend:  "oc label ns {{.App3}} {{.Label}}={{.Value2}} && " + restart3,
			Red:   []string{"MCP-16", "MCP-21", "MCP-24", "MCP-27", "MCP-28"}, // 28: who leaves loses the mesh's root
		},
		{
			Name:  "inject", // the first namespace lacks its revision label
			Break: "oc label ns {{.App1}} istio.io/rev- && " + restart1,
			Mend:  "oc label ns {{.App1}} istio.io/rev={{.Rev1}} && " + restart1,
			Red:   []string{"MCP-16", "MCP-21", "MCP-23", "MCP-26"},
		},
		{
			Name:  "xds", // nobody reaches xDS of the second mesh any more
			Break: plane2 + "nsenter -t $pid -n nft 'add table inet control; add chain inet control in { type filter hook input priority 0; }; add rule inet control in tcp dport 15012 drop'",
			Mend:  plane2 + "nsenter -t $pid -n nft delete table inet control",
			Red:   []string{"MCP-24"},
		},
	}
}

// RunControls breaks and mends one thing after the other on a cluster on which S0 was run, and compares the red rows.
// The error names the controls that did not come out as they must.
func RunControls(ctx context.Context, o Options, controls []Control) error {
	o.Script = "checks"
	var wrong []string
	for _, c := range append(slices.Clone(controls), Control{Name: "none"}) {
		fmt.Fprintf(o.Out, "\nControl %s: red must be exactly %s\n", c.Name, strings.Join(c.Red, ", "))
		if err := o.sh(ctx, c.Break); err != nil {
			return fmt.Errorf("break %s: %w", c.Name, err)
		}
		rows, err := Run(ctx, o)
		if err != nil {
			return err
		}
		var red []string
		for _, r := range rows {
			if r.Red() {
				red = append(red, r.ID)
			}
		}
		slices.Sort(red)
		if want := slices.Sorted(slices.Values(c.Red)); !slices.Equal(red, want) {
			wrong = append(wrong, fmt.Sprintf("%s: red are %v, not %v", c.Name, red, want))
		}
		if err := o.sh(ctx, c.Mend); err != nil {
			return fmt.Errorf("mend %s: %w", c.Name, err)
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("negative controls: %s", strings.Join(wrong, "; "))
	}
	return nil
}

// sh runs shell lines with the names filled in.
func (o Options) sh(ctx context.Context, text string) error {
	t, err := template.New("").Option("missingkey=error").Parse(text)
	if err != nil {
		return err
	}
	var line bytes.Buffer
	if err := t.Execute(&line, o.Names); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "bash", "-c", line.String())
	cmd.Dir = o.Checkout
	cmd.Env = append(cmd.Environ(), "PATH="+o.path(), "KUBECONFIG="+o.Kubeconfig)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", line.String(), err, out)
	}
	return nil
}
