package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/internal/operator"
)

// versions is what version prints.
type versions struct {
	Client       string         `json:"clientVersion"` // the Istio API level, as istioctl's
	Heddle       string         `json:"heddleVersion"`
	ControlPlane []planeVersion `json:"meshVersion,omitempty"`
	DataPlane    map[string]int `json:"dataPlaneVersion,omitempty"` // proxies by version
	Unanswered   []string       `json:"unanswered,omitempty"`       // control planes, and why
}

type planeVersion struct {
	Component string `json:"component"`
	Revision  string `json:"revision"`
	Namespace string `json:"namespace"`
	Version   string `json:"version"`
}

func (a *app) versionCommand() *cobra.Command {
	var short, remote bool
	var output format
	cmd := &cobra.Command{
		Use: "version", Short: "Show the versions of client, control planes and proxies", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versions{Client: strings.TrimPrefix(operator.DefaultVersion, "v"), Heddle: a.Version}
			var unanswered []error
			var failed error // the client's is known all the same
			if remote {
				if unanswered, failed = a.remoteVersions(cmd.Context(), &v); failed != nil {
					remote = false
				}
			}
			if err := output.print(cmd.OutOrStdout(), v, func(w io.Writer) error { return printVersions(w, v, remote) }); err != nil {
				return err
			}
			if failed != nil {
				return failed
			}
			return report(cmd.ErrOrStderr(), unanswered)
		},
	}
	fs := cmd.Flags()
	fs.BoolVar(&remote, "remote", true, "ask the control planes too")
	fs.BoolVarP(&short, "short", "s", true, "accepted as in istioctl; without effect")
	output.addTo(cmd)
	return looking(cmd)
}

// remoteVersions asks the control planes; it returns which did not answer.
func (a *app) remoteVersions(ctx context.Context, v *versions) ([]error, error) {
	c, err := a.connect()
	if err != nil {
		return nil, err
	}
	all, err := planes(ctx, c, a.istioNamespace, "")
	if err != nil {
		return nil, err
	}
	replies := each(ctx, all, func(ctx context.Context, p plane) (heard, error) {
		return c.proxies(ctx, p, only{namespace: a.namespace})
	})
	v.DataPlane = map[string]int{}
	for _, r := range replies {
		if r.err != nil {
			continue
		}
		v.ControlPlane = append(v.ControlPlane, planeVersion{Component: r.component, Revision: r.revision, Namespace: r.namespace, Version: r.said.version})
		for _, p := range r.said.proxies {
			v.DataPlane[p.version]++
		}
	}
	unanswered := silent(replies)
	for _, err := range unanswered {
		v.Unanswered = append(v.Unanswered, err.Error())
	}
	return unanswered, nil
}

func printVersions(w io.Writer, v versions, remote bool) error {
	fmt.Fprintln(w, "client version:", v.Client)
	if remote {
		by := map[string][]string{}
		for _, p := range v.ControlPlane {
			if !slices.Contains(by[p.Version], p.Revision) {
				by[p.Version] = append(by[p.Version], p.Revision)
			}
		}
		var planes []string
		for _, version := range slices.Sorted(maps.Keys(by)) {
			if len(by) == 1 {
				planes = append(planes, version)
			} else {
				planes = append(planes, version+" ("+strings.Join(by[version], ", ")+")")
			}
		}
		if n := len(v.Unanswered); n > 0 {
			planes = append(planes, fmt.Sprintf("unknown (%d did not answer)", n))
		}
		fmt.Fprintln(w, "control plane version:", orWord(strings.Join(planes, ", ")))
		var proxies []string
		for _, version := range slices.Sorted(maps.Keys(v.DataPlane)) {
			plural := map[bool]string{true: "proxy", false: "proxies"}[v.DataPlane[version] == 1]
			proxies = append(proxies, fmt.Sprintf("%s (%d %s)", version, v.DataPlane[version], plural))
		}
		fmt.Fprintln(w, "data plane version:", orWord(strings.Join(proxies, ", ")))
	}
	_, err := fmt.Fprintln(w, "heddle version:", v.Heddle)
	return err
}

func orWord(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
