package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statusv3 "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"k8s.io/apimachinery/pkg/util/duration"
	"sigs.k8s.io/yaml"

	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
)

const syncType = "istio.io/debug/syncz"

// proxy is one line of proxy-status.
type proxy struct {
	mesh, name, namespace, cluster, istiod, version string
	types                                           map[string]string // by short name: SYNCED (3m), STALE, …
}

func (a *app) statusCommand() *cobra.Command {
	var revision, output string
	var verbosity int
	cmd := &cobra.Command{
		Use: "proxy-status", Aliases: []string{"ps"}, Short: "Show which proxies are connected, and how current they are",
		Long: "proxy-status asks every running control plane: those of the mesh that -i names, else of all, with a column MESH first.\n" +
			"IGNORED is a type that the proxy does not ask for.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.status(cmd, revision, output, verbosity) },
	}
	fs := cmd.Flags()
	fs.StringVarP(&revision, "revision", "r", "", "only control planes of this revision")
	fs.StringVarP(&output, "output", "o", "table", "table, or the control planes' own answers as json or yaml")
	fs.IntVarP(&verbosity, "verbosity", "v", 1, "1: a column for each type; 0: the short table of istioctl 1.27 and later")
	return cmd
}

func (a *app) status(cmd *cobra.Command, revision, output string, verbosity int) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), 30*time.Second)
	defer cancel()
	c, err := a.connect()
	if err != nil {
		return err
	}
	all, err := planes(ctx, c, a.istioNamespace, revision)
	if err != nil {
		return err
	}
	meshes, err := meshNames(ctx, c)
	if err != nil {
		return err
	}
	var proxies []proxy
	var raw []json.RawMessage
	var silent []error // of planes that did not answer
	for _, p := range all {
		answer, err := c.ask(ctx, p, syncType)
		if err != nil {
			silent = append(silent, err)
			continue
		}
		j, err := protojson.Marshal(answer)
		if err != nil {
			return fmt.Errorf("answer of %s/%s: %w", p.namespace, p.pod, err)
		}
		raw = append(raw, j)
		some, err := proxiesOf(answer, meshes[p.namespace], time.Now())
		if err != nil {
			return fmt.Errorf("answer of %s/%s: %w", p.namespace, p.pod, err)
		}
		proxies = append(proxies, some...)
	}
	if len(raw) == 0 {
		return errors.Join(silent...)
	}
	for _, err := range silent {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning:", err)
	}
	out := cmd.OutOrStdout()
	switch output {
	case "table":
	case "json", "yaml":
		return printRaw(out, raw, output)
	default:
		return fmt.Errorf("--output %s: use table, json or yaml", output)
	}
	if a.namespace != "" {
		proxies = slices.DeleteFunc(proxies, func(p proxy) bool { return p.namespace != a.namespace })
	}
	return printProxies(out, proxies, verbosity, a.istioNamespace == "")
}

func meshNames(ctx context.Context, c cluster) (map[string]string, error) {
	istios := &sailv1.IstioList{}
	if err := c.List(ctx, istios); err != nil {
		return nil, listing(err)
	}
	out := map[string]string{}
	for _, i := range istios.Items {
		out[i.Spec.Namespace] = i.Name
	}
	return out, nil
}

// proxiesOf reads a syncz answer.
func proxiesOf(answer *discoveryv3.DiscoveryResponse, mesh string, now time.Time) ([]proxy, error) {
	var out []proxy
	for _, r := range answer.GetResources() {
		config := &statusv3.ClientConfig{}
		if err := r.UnmarshalTo(config); err != nil {
			return nil, err
		}
		out = append(out, proxyOf(config, answer.GetControlPlane().GetIdentifier(), mesh, now))
	}
	return out, nil
}

// proxyOf reads one proxy of a syncz answer. identifier is the JSON of control_plane.
func proxyOf(config *statusv3.ClientConfig, identifier, mesh string, now time.Time) proxy {
	meta := config.GetNode().GetMetadata().GetFields()
	var istiod struct{ ID string }
	if json.Unmarshal([]byte(identifier), &istiod) != nil || istiod.ID == "" {
		istiod.ID = "MISSING"
	}
	p := proxy{
		mesh: mesh, name: config.GetNode().GetId(), namespace: meta["NAMESPACE"].GetStringValue(), cluster: meta["CLUSTER_ID"].GetStringValue(),
		istiod: istiod.ID, version: meta["ISTIO_VERSION"].GetStringValue(), types: map[string]string{},
	}
	for _, x := range config.GetGenericXdsConfigs() {
		text := strings.ReplaceAll(x.GetConfigStatus().String(), "_", " ")
		switch {
		case x.GetConfigStatus() == statusv3.ConfigStatus_SYNCED && x.GetLastUpdated() != nil:
			text += " (" + duration.HumanDuration(now.Sub(x.GetLastUpdated().AsTime())) + ")"
		case x.GetConfigStatus() == statusv3.ConfigStatus_UNKNOWN:
			text = "IGNORED"
		}
		p.types[shortType(x.GetTypeUrl())] = text
	}
	return p
}

// inSync reports whether the proxy has acknowledged the newest of all that it was sent.
func (p proxy) inSync() bool {
	for _, text := range p.types {
		if text == statusv3.ConfigStatus_STALE.String() || text == statusv3.ConfigStatus_ERROR.String() {
			return false
		}
	}
	return true
}

// shortType is how tables spell a type URL.
func shortType(url string) string {
	name := url[strings.LastIndexByte(url, '.')+1:]
	switch name {
	case "Cluster":
		return "CDS"
	case "Listener":
		return "LDS"
	case "ClusterLoadAssignment":
		return "EDS"
	case "RouteConfiguration":
		return "RDS"
	case "TypedExtensionConfig":
		return "ECDS"
	case "Secret":
		return "SDS"
	case "NameTable":
		return "NDS"
	case "ProxyConfig":
		return "PCDS"
	}
	return name
}

// documented are the columns of the documents, in their order.
var documented = []string{"CDS", "LDS", "EDS", "RDS", "ECDS"}

func printProxies(w io.Writer, proxies []proxy, verbosity int, byMesh bool) error {
	slices.SortStableFunc(proxies, func(a, b proxy) int {
		if byMesh && a.mesh != b.mesh {
			return strings.Compare(a.mesh, b.mesh)
		}
		return strings.Compare(a.name, b.name)
	})
	line := func(mesh string, rest ...string) string {
		if byMesh {
			rest = append([]string{mesh}, rest...)
		}
		return strings.Join(rest, "\t")
	}
	t := newTable(w)
	if verbosity == 0 {
		fmt.Fprintln(t, line("MESH", "NAME", "CLUSTER", "ISTIOD", "VERSION", "SUBSCRIBED TYPES"))
		for _, p := range proxies {
			types := p.subscribed()
			fmt.Fprintln(t, line(p.mesh, p.name, p.cluster, p.istiod, p.version, fmt.Sprintf("%d (%s)", len(types), strings.Join(types, ","))))
		}
		return t.Flush()
	}
	columns := slices.Clone(documented)
	for _, p := range proxies {
		for _, extra := range p.subscribed() {
			if !slices.Contains(columns, extra) {
				columns = append(columns, extra)
			}
		}
	}
	slices.Sort(columns[len(documented):])
	fmt.Fprintln(t, line("MESH", slices.Concat([]string{"NAME", "CLUSTER"}, columns, []string{"ISTIOD", "VERSION"})...))
	for _, p := range proxies {
		cells := []string{p.name, p.cluster}
		for _, c := range columns {
			if s := p.types[c]; s != "" {
				cells = append(cells, s)
			} else {
				cells = append(cells, "IGNORED")
			}
		}
		fmt.Fprintln(t, line(p.mesh, append(cells, p.istiod, p.version)...))
	}
	return t.Flush()
}

// subscribed are the short names of the proxy's types, those of the documents first.
func (p proxy) subscribed() []string {
	var types []string
	for name := range p.types {
		types = append(types, name)
	}
	slices.SortFunc(types, func(a, b string) int {
		rank := func(s string) int {
			if i := slices.Index(documented[:4], s); i >= 0 {
				return i
			}
			return 4
		}
		if c := rank(a) - rank(b); c != 0 {
			return c
		}
		return strings.Compare(a, b)
	})
	return types
}

// printRaw prints one answer as it is, several as a list.
func printRaw(w io.Writer, answers []json.RawMessage, format string) error {
	var v any = answers
	if len(answers) == 1 {
		v = answers[0]
	}
	text, err := json.MarshalIndent(v, "", "  ")
	if err == nil && format == "yaml" {
		text, err = yaml.JSONToYAML(text)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, strings.TrimSuffix(string(text), "\n"))
	return err
}
