package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/internal/operator"
)

// versions is what version prints.
type versions struct {
	Client       string         `json:"clientVersion"` // the Istio API level, as istioctl's
	Heddle       string         `json:"heddleVersion"`
	ControlPlane []planeVersion `json:"meshVersion,omitempty"`
	DataPlane    map[string]int `json:"dataPlaneVersion,omitempty"` // proxies by version
}

type planeVersion struct {
	Component string `json:"component"`
	Revision  string `json:"revision"`
	Namespace string `json:"namespace"`
	Version   string `json:"version"`
}

func (a *app) versionCommand() *cobra.Command {
	var short, remote bool
	var output string
	cmd := &cobra.Command{
		Use: "version", Short: "Show the versions of client, control planes and proxies", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versions{Client: strings.TrimPrefix(operator.DefaultVersion, "v"), Heddle: a.Version}
			if remote {
				ctx, cancel := context.WithTimeout(cmd.Context(), 30*time.Second)
				defer cancel()
				if err := a.remoteVersions(ctx, &v); err != nil {
					fmt.Fprintln(cmd.ErrOrStderr(), "warning:", err) // the client's is known all the same
					remote = false
				}
			}
			return printVersions(cmd.OutOrStdout(), v, remote, output)
		},
	}
	fs := cmd.Flags()
	fs.BoolVar(&remote, "remote", true, "ask the control planes too")
	fs.BoolVarP(&short, "short", "s", true, "accepted as in istioctl; without effect")
	fs.StringVarP(&output, "output", "o", "", "json or yaml")
	return cmd
}

func (a *app) remoteVersions(ctx context.Context, v *versions) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	all, err := planes(ctx, c, a.istioNamespace, "")
	if err != nil {
		return err
	}
	v.DataPlane = map[string]int{}
	for _, p := range all {
		if !p.ready {
			continue
		}
		body, err := c.get(ctx, p, "/version")
		if err != nil {
			return err
		}
		v.ControlPlane = append(v.ControlPlane, planeVersion{Component: p.component, Revision: p.revision, Namespace: p.namespace, Version: release(string(body))})
		if body, err = c.get(ctx, p, "/debug/syncz"); err != nil {
			return err
		}
		var proxies []struct {
			Version string `json:"istio_version"`
		}
		if err := json.Unmarshal(body, &proxies); err != nil {
			return fmt.Errorf("/debug/syncz of %s/%s: %w", p.namespace, p.pod, err)
		}
		for _, x := range proxies {
			v.DataPlane[strings.TrimPrefix(x.Version, "v")]++
		}
	}
	return nil
}

// release cuts "-<commit>-<Clean|Modified>" off what /version answers.
func release(s string) string {
	s = strings.TrimPrefix(strings.TrimSpace(s), "v")
	if parts := strings.Split(s, "-"); len(parts) > 2 {
		s = strings.Join(parts[:len(parts)-2], "-")
	}
	return s
}

func printVersions(w io.Writer, v versions, remote bool, output string) error {
	switch output {
	case "json":
		text, err := json.MarshalIndent(v, "", "  ")
		fmt.Fprintln(w, string(text))
		return err
	case "yaml":
		text, err := yaml.Marshal(v)
		fmt.Fprint(w, string(text))
		return err
	case "":
	default:
		return fmt.Errorf("--output %s: use json or yaml", output)
	}
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
