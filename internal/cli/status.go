package cli

import (
	"cmp"
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
	"google.golang.org/protobuf/types/known/anypb"
	"k8s.io/apimachinery/pkg/util/duration"
)

const syncType = "istio.io/debug/syncz"

// proxy is one line of proxy-status.
type proxy struct {
	mesh, name, namespace, cluster, istiod, version string
	types                                           map[string]string // by short name: SYNCED (3m), STALE, …
	refusals                                        map[string]string // by short name: what the proxy said of what it refused
}

// istioctl is the name under which this program prints what istioctl of its API level does.
const istioctl = "istioctl"

func (a *app) statusCommand() *cobra.Command {
	var revision string
	var output format
	var verbosity int
	cmd := &cobra.Command{
		Use: "proxy-status [POD.NAMESPACE]", Aliases: []string{"ps"}, Short: "Show which proxies are connected, and how current they are",
		Long: "proxy-status asks every running control plane: those of the mesh that -i names, else of all. Of one proxy it also says\n" +
			"why it refused what it refused. IGNORED is a type that the proxy does not ask for.\n\n" +
			"With -i the table has a column for each type. Without, heddle prints it with a column MESH first, and istioctl prints the\n" +
			"short table of its version; -v chooses. A control plane that did not answer is named, and the exit code is 1.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			t := table{byMesh: a.istioNamespace == "" && a.Name != istioctl, byType: a.istioNamespace != "" || a.Name != istioctl}
			if cmd.Flags().Changed("verbosity") {
				t.byType = verbosity > 0
			}
			only := only{namespace: a.namespace}
			if len(args) > 0 {
				if only.pod, only.namespace = splitPod(args[0], a.namespace); only.namespace == "" {
					return fmt.Errorf("%s names no namespace: write POD.NAMESPACE or give -n", args[0])
				}
			}
			return a.status(cmd, revision, only, output, t)
		},
	}
	fs := cmd.Flags()
	fs.StringVarP(&revision, "revision", "r", "", "only control planes of this revision")
	fs.VarP(&output, "output", "o", "the control planes' own answers as json or yaml")
	fs.IntVarP(&verbosity, "verbosity", "v", 0, "1: a column for each type; 0: the short table of istioctl 1.27 and later")
	return looking(cmd)
}

// only says which proxies are meant: those of a namespace, one of them, or all.
type only struct{ pod, namespace string }

func (o only) has(c *statusv3.ClientConfig) bool {
	if o.pod != "" && c.GetNode().GetId() != o.pod+"."+o.namespace {
		return false
	}
	return o.namespace == "" || c.GetNode().GetMetadata().GetFields()["NAMESPACE"].GetStringValue() == o.namespace
}

// heard is a control plane's answer about proxies.
type heard struct {
	raw     json.RawMessage
	proxies []proxy
	version string // of Istio's API, which the control plane says that it serves
}

// proxies asks a control plane about its proxies. An answer that cannot be read is none.
func (c cluster) proxies(ctx context.Context, p plane, which only) (heard, error) {
	answer, err := c.ask(ctx, p, syncType)
	if err != nil {
		return heard{}, err
	}
	h, err := hear(answer, p.mesh, which, time.Now())
	if err != nil {
		return heard{}, fmt.Errorf("its answer cannot be read: %w", err)
	}
	return h, nil
}

func (a *app) status(cmd *cobra.Command, revision string, which only, output format, t table) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	all, err := planes(cmd.Context(), c, a.istioNamespace, revision)
	if err == nil && len(all) == 0 {
		err = noPlanes(a.istioNamespace, revision)
	}
	if err != nil {
		return err
	}
	replies := each(cmd.Context(), all, func(ctx context.Context, p plane) (heard, error) { return c.proxies(ctx, p, which) })
	unanswered := silent(replies)
	var proxies []proxy
	var raw []json.RawMessage
	for _, r := range replies {
		if r.err == nil {
			proxies, raw = append(proxies, r.said.proxies...), append(raw, r.said.raw)
		}
	}
	if len(raw) == 0 { // a table without a line would say that no proxy is connected; nobody knows that
		return errors.Join(unanswered...)
	}
	if which.pod != "" && len(proxies) == 0 {
		return errors.Join(append(unanswered, fmt.Errorf("the proxy of %s.%s is connected to no control plane that answered", which.pod, which.namespace))...)
	}
	var v any = raw
	if len(raw) == 1 {
		v = raw[0] // as istioctl, which asks one
	}
	if err := output.print(cmd.OutOrStdout(), v, func(w io.Writer) error {
		if err := printProxies(w, proxies, t); err != nil || which.pod == "" {
			return err
		}
		return printRefusals(w, proxies)
	}); err != nil {
		return err
	}
	return report(cmd.ErrOrStderr(), unanswered)
}

// hear reads a syncz answer: what is said of the proxies that are meant, in the answer's own form too.
func hear(answer *discoveryv3.DiscoveryResponse, mesh string, which only, now time.Time) (heard, error) {
	var says struct {
		ID   string
		Info struct{ Version string }
	}
	if json.Unmarshal([]byte(answer.GetControlPlane().GetIdentifier()), &says) != nil || says.ID == "" {
		says.ID = "MISSING"
	}
	h := heard{version: printable(cmp.Or(says.Info.Version, "unknown"))}
	var kept []*anypb.Any
	for _, r := range answer.GetResources() {
		config := &statusv3.ClientConfig{}
		if err := r.UnmarshalTo(config); err != nil {
			return heard{}, err
		}
		if which.has(config) {
			kept = append(kept, r)
			h.proxies = append(h.proxies, proxyOf(config, says.ID, mesh, now))
		}
	}
	answer.Resources = kept
	var err error
	h.raw, err = protojson.Marshal(answer)
	return h, err
}

// proxyOf reads one proxy of a syncz answer of a control plane with an id.
func proxyOf(config *statusv3.ClientConfig, istiod, mesh string, now time.Time) proxy {
	meta := config.GetNode().GetMetadata().GetFields()
	text := func(field string) string { return printable(meta[field].GetStringValue()) }
	p := proxy{
		mesh: mesh, name: printable(config.GetNode().GetId()), namespace: text("NAMESPACE"), cluster: text("CLUSTER_ID"),
		istiod: printable(istiod), version: text("ISTIO_VERSION"), types: map[string]string{}, refusals: map[string]string{},
	}
	for _, x := range config.GetGenericXdsConfigs() {
		text := strings.ReplaceAll(x.GetConfigStatus().String(), "_", " ")
		switch {
		case x.GetConfigStatus() == statusv3.ConfigStatus_SYNCED && x.GetLastUpdated() != nil:
			text += " (" + duration.HumanDuration(now.Sub(x.GetLastUpdated().AsTime())) + ")"
		case x.GetConfigStatus() == statusv3.ConfigStatus_UNKNOWN:
			text = "IGNORED"
		}
		name := printable(shortType(x.GetTypeUrl()))
		p.types[name] = text
		if d := x.GetErrorState().GetDetails(); d != "" {
			p.refusals[name] = printable(d)
		}
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

// table says which columns proxies are printed in.
type table struct {
	byMesh bool // MESH first
	byType bool // one for each type, instead of their number and names
}

func printProxies(w io.Writer, proxies []proxy, columns table) error {
	slices.SortStableFunc(proxies, func(a, b proxy) int {
		if columns.byMesh && a.mesh != b.mesh {
			return strings.Compare(a.mesh, b.mesh)
		}
		return strings.Compare(a.name, b.name)
	})
	line := func(mesh string, rest ...string) string {
		if columns.byMesh {
			rest = append([]string{mesh}, rest...)
		}
		return strings.Join(rest, "\t")
	}
	t := newTable(w)
	if !columns.byType {
		fmt.Fprintln(t, line("MESH", "NAME", "CLUSTER", "ISTIOD", "VERSION", "SUBSCRIBED TYPES"))
		for _, p := range proxies {
			types := p.subscribed()
			fmt.Fprintln(t, line(p.mesh, p.name, p.cluster, p.istiod, p.version, fmt.Sprintf("%d (%s)", len(types), strings.Join(types, ","))))
		}
		return t.Flush()
	}
	names := slices.Clone(documented)
	for _, p := range proxies {
		for _, extra := range p.subscribed() {
			if !slices.Contains(names, extra) {
				names = append(names, extra)
			}
		}
	}
	slices.Sort(names[len(documented):])
	fmt.Fprintln(t, line("MESH", slices.Concat([]string{"NAME", "CLUSTER"}, names, []string{"ISTIOD", "VERSION"})...))
	for _, p := range proxies {
		cells := []string{p.name, p.cluster}
		for _, n := range names {
			if s := p.types[n]; s != "" {
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

// printRefusals says of each type that a proxy refused what it said.
func printRefusals(w io.Writer, proxies []proxy) error {
	for _, p := range proxies {
		for _, t := range p.subscribed() {
			if r := p.refusals[t]; r != "" {
				if _, err := fmt.Fprintf(w, "\n%s refused: %s\n", t, r); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
