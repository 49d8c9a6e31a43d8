package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"text/template"
	"time"
)

// Control is a negative control: what is broken on a cluster on which S0 was run, and exactly which rows of a script must
// then be red. A check that stays green when the thing that it checks is missing proves nothing.
type Control struct {
	Name        string
	Script      string
	Break, Mend string // shell, with the names filled in
	Red         []string
}

// Uncontrolled says of each script that no control breaks why its rows prove something all the same. Of every script the
// rows are red where nothing was done (--all-red).
var Uncontrolled = map[string]string{
	"s0":      "it ends with the rows of checks, which have controls; those before it build what they look at",
	"s1":      "it looks at what checks looks at, in other words, and at the end at the same things taken away",
	"order":   "it ends with the rows of checks, which have controls",
	"sotw":    "the rows of checks have controls; its own two want opposites, so that either is red where the other is not",
	"items":   "its rows come in pairs of opposites: injected and not, let through and cut, a member and none",
	"default": "its rows come in pairs of opposites: injected and not, a member and none, accepted and refused",
	"status":  "each row looks before, during and after, and at a mesh to which nothing was done",
	"idle":    "a control would take another minute: TestIdleRowsCanBeRed shows figures to its checks that are too high by little",
	"faults":  "a request that is lost is counted: TestLoadCountsWhatIsLost",
}

// Controls returns the negative controls.
func Controls() []Control {
	return []Control{
		{
			Name: "peerauth", Script: "checks", // the second mesh has no policy
			Break: "oc -n {{.Sys2}} delete peerauthentication {{.Mesh2}}-peerauth",
			// Envoy lets connections of before the policy end with their next response: the caller starts anew.
			Mend: `printf 'apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: "{{.Mesh2}}-peerauth", namespace: "{{.Sys2}}"}\nspec: {mtls: {mode: STRICT}}\n' | oc apply -f - && restarted {{.App1}}`,
			Red:  []string{"MCP-09", "MCP-26"},
		},
		{
			Name: "membership", Script: "checks", // the third namespace lacks its discovery label
			Break: "oc label ns {{.App3}} {{.Label}}- && restarted {{.App3}}",
			Mend:  "oc label ns {{.App3}} {{.Label}}={{.Value2}} && restarted {{.App3}}",
			Red:   []string{"5f", "CTL-03", "MCP-16", "MCP-21", "MCP-24", "MCP-27", "MCP-28"}, // 5f: the server is not in; 28: who leaves loses the mesh's root
		},
		{
			Name: "inject", Script: "checks", // the first namespace lacks its revision label
			Break: "oc label ns {{.App1}} istio.io/rev- && restarted {{.App1}}",
			Mend:  "oc label ns {{.App1}} istio.io/rev={{.Rev1}} && restarted {{.App1}}",
			Red:   []string{"CTL-03", "MCP-16", "MCP-21", "MCP-23", "MCP-26"},
		},
		{
			Name: "xds", Script: "checks", // nobody reaches xDS of the second mesh any more
			Break: "p=$(pid heddle {{.Sys2}} istiod) && nsenter -t $p -n nft 'add table inet control; add chain inet control in { type filter hook input priority 0; }; add rule inet control in iifname != lo tcp dport 15012 drop' && nsenter -t $p -n ss -K state established sport = :15012", // or a keepalive finds them dead after 40 s
			Mend:  "p=$(pid heddle {{.Sys2}} istiod) && nsenter -t $p -n nft delete table inet control",
			Red:   []string{"5f", "CTL-03", "MCP-24"}, // 5f: nobody is told who left
		},
		{
			Name: "rootcert", Script: "checks", // both planes have one CA
			Break: `d=$(mktemp -d) && trap "rm -r $d" EXIT && for k in ca-cert ca-key; do oc -n {{.Sys1}} get secret istio-ca-secret -o jsonpath="{.data.$k\.pem}" | base64 -d >$d/$k.pem; done && ` +
				`cp $d/ca-cert.pem $d/root-cert.pem && cp $d/ca-cert.pem $d/cert-chain.pem && for n in {{.Sys1}} {{.Sys2}}; do oc -n $n create secret generic cacerts --from-file=$d; done && ` +
				`restarted {{.Sys1}} {{.Sys2}} && until [ "$(root)" = "$(cat $d/root-cert.pem)" ]; do sleep 0.2; done && restarted {{.App1}} {{.App2}} {{.App3}}`,
			Mend: `old="$(root)" && for n in {{.Sys1}} {{.Sys2}}; do oc -n $n delete secret cacerts; done && ` +
				`restarted {{.Sys1}} {{.Sys2}} && until [ "$(root)" != "$old" ]; do sleep 0.2; done && restarted {{.App1}} {{.App2}} {{.App3}}`,
			Red: []string{"5b", "5c", "MCP-28"},
		},
		{
			Name: "rights", Script: "isolation", // the first plane may read a namespace of the second
			Break: "oc -n {{.App2}} create rolebinding control --clusterrole=view --serviceaccount={{.Sys1}}:istiod-{{.Rev1}}",
			Mend:  "oc -n {{.App2}} delete rolebinding control",
			Red:   []string{"5e"},
		},
	}
}

// mendWithin is how long mending may take: a rollout of all that runs, twice.
const mendWithin = 10 * time.Minute

// RunControls breaks and mends one thing after the other on a cluster on which S0 was run, and compares the red rows.
// The error names the controls that did not come out as they must.
func RunControls(ctx context.Context, o Options, controls []Control) error {
	var wrong []string
	for _, c := range append(slices.Clone(controls), Control{Name: "none", Script: "checks"}) {
		fmt.Fprintf(o.Out, "\nControl %s of %s: red must be exactly %s\n", c.Name, c.Script, strings.Join(c.Red, ", "))
		rows, err := o.control(ctx, c)
		if err != nil {
			return err
		}
		if err := Judge(o.Out, rows, c.Red); err != nil {
			wrong = append(wrong, fmt.Sprintf("%s: %v", c.Name, err))
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("negative controls: %s", strings.Join(wrong, "; "))
	}
	fmt.Fprintln(o.Out, "\nScripts without a control:")
	for _, name := range slices.Sorted(maps.Keys(Uncontrolled)) {
		fmt.Fprintf(o.Out, "  %-8s %s\n", name, Uncontrolled[name])
	}
	return nil
}

// control looks while something is broken. It mends that whatever comes in between: a run that is interrupted must not leave the
// cluster broken, nor one that broke half of it.
func (o Options) control(ctx context.Context, c Control) (rows []Row, err error) {
	o.Script = c.Script
	defer func() {
		mending, cancel := context.WithTimeout(context.WithoutCancel(ctx), mendWithin)
		defer cancel()
		if ctx.Err() != nil {
			fmt.Fprintf(o.Out, "\nInterrupted; what control %s broke is mended first\n", c.Name)
		}
		if merr := o.sh(mending, c.Mend); merr != nil {
			err = errors.Join(err, fmt.Errorf("mend %s, or the cluster stays broken: %w", c.Name, merr))
		}
	}()
	if err := o.sh(ctx, c.Break); err != nil {
		return nil, fmt.Errorf("break %s: %w", c.Name, err)
	}
	return Run(ctx, o)
}

// sh runs shell lines with the names filled in, in a group of their own: an interrupt from the terminal is for us.
func (o Options) sh(ctx context.Context, text string) error {
	lines, err := fill(library+text, o.Names)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "bash", "-c", string(lines))
	cmd.Dir = o.Checkout
	cmd.Env = append(cmd.Environ(), "PATH="+o.path(), "KUBECONFIG="+o.Kubeconfig)
	alone(cmd)
	out, err := cmd.CombinedOutput()
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", text, err, out)
	}
	return nil
}

// fill puts names into a text.
func fill(text string, n Names) ([]byte, error) {
	t, err := template.New("").Option("missingkey=error").Parse(text)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = t.Execute(&b, n)
	return b.Bytes(), err
}
