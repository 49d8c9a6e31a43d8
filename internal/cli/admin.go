package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/internal/obs"
)

func (a *app) adminCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "admin", Aliases: []string{"istiod"}, Short: "Look into running control planes and the operator, and set what they log",
	}
	cmd.AddCommand(a.profileCommand(), a.logCommand())
	return cmd
}

func (a *app) profileCommand() *cobra.Command {
	var kind, file string
	var seconds int
	cmd := &cobra.Command{
		Use: "profile POD -o FILE", Short: "Take a profile of a running control plane or of the operator",
		Long: "profile takes a profile of the process in a pod and writes it to a file that `go tool pprof` reads. Profiles are off until\n" +
			"somebody switches them on, which restarts nothing: for a mesh's control planes the value\n" +
			"pilot.env.HEDDLE_PROFILES: \"true\" of its Istio, for the operator the annotation heddle.dev/profiles=true of its Deployment.\n" +
			"A process takes one at a time, for at most a minute.",
		Example: "  heddle admin profile istiod-mesh-1-6d9c7c4b5-x2x7w -i istio-system-1 --seconds 30 -o cpu.pb.gz\n" +
			"  heddle admin profile heddle-operator-7f8d9b6c5-abcde --type heap -o heap.pb.gz",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if file == "" {
				return errors.New("name the file to write: -o FILE")
			}
			wanted := ""
			if cmd.Flags().Changed("seconds") {
				wanted = strconv.Itoa(seconds)
			}
			kind, lasts, err := obs.ProfileOf(kind, wanted)
			if err != nil {
				return err
			}
			return a.profile(cmd, args[0], kind, lasts, file)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&kind, "type", "cpu", "cpu, heap, allocs (all that was ever allocated) or goroutine")
	fs.IntVar(&seconds, "seconds", 10, "how long a cpu profile takes, from 1 to 60")
	fs.StringVarP(&file, "output", "o", "", "file to write")
	return cmd
}

func (a *app) profile(cmd *cobra.Command, pod, kind string, lasts time.Duration, file string) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	p, err := a.process(cmd.Context(), c, pod)
	if err != nil {
		return err
	}
	// Whether the file can be written is known before a minute has gone, and what was there stays if there is no profile.
	// It takes the place of a file, never of a device such as /dev/null.
	if there, err := os.Lstat(file); err == nil && !there.Mode().IsRegular() {
		return fmt.Errorf("write the profile: %s is there and is no regular file; name another", file)
	}
	out, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+"-*")
	if err != nil {
		return fmt.Errorf("write the profile: %w", err)
	}
	defer os.Remove(out.Name()) // unless it has its own name by then
	defer out.Close()
	query := url.Values{"type": {kind}}
	if lasts > 0 {
		query.Set("seconds", strconv.Itoa(int(lasts/time.Second)))
		fmt.Fprintf(cmd.ErrOrStderr(), "taking a profile of %s for %s\n", p, lasts)
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), lasts+answerTime)
	defer cancel()
	body, err := c.call(ctx, p, http.MethodGet, "profile?"+query.Encode())
	if err != nil {
		return fmt.Errorf("take a profile of %s: %w", p, err)
	}
	_, err = out.Write(body)
	if err = cmp.Or(err, out.Close()); err == nil {
		err = os.Rename(out.Name(), file)
	}
	if err != nil {
		return fmt.Errorf("write the profile: %w", err)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s profile of %s in %s; read it with: go tool pprof %s\n", kind, p, file, file)
	return err
}

// process finds the running process of a pod, POD or POD.NAMESPACE. Names of the operator's pods begin with that of its
// Deployment, and no control plane's do: who has rights in a mesh only need not look there, nor the other way round.
func (a *app) process(ctx context.Context, c cluster, pod string) (plane, error) {
	name, namespace := splitPod(pod, a.namespace)
	var all []plane
	var err error
	if strings.HasPrefix(name, operatorName+"-") {
		all, err = operators(ctx, c)
	} else {
		all, err = planes(ctx, c, cmp.Or(namespace, a.istioNamespace), "")
	}
	if err != nil {
		return plane{}, err
	}
	found := slices.DeleteFunc(slices.Clone(all), func(p plane) bool { return p.pod != name || namespace != "" && p.namespace != namespace })
	var names []string
	for _, p := range all {
		names = append(names, p.String())
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return plane{}, fmt.Errorf("%s is there more than once: write POD.NAMESPACE, or name the mesh with -i", name)
	case len(names) == 0:
		return plane{}, fmt.Errorf("no control plane and no operator runs in a pod %s", pod)
	}
	return plane{}, fmt.Errorf("no control plane and no operator runs in a pod %s; there are %s", pod, strings.Join(names, ", "))
}

func (a *app) logCommand() *cobra.Command {
	var revision, level string
	var reset bool
	var output format
	cmd := &cobra.Command{
		Use: "log [POD]", Aliases: []string{"l"}, Short: "Show or set how much running control planes log",
		Long: "log shows from which level on each replica logs, after it has set it if --level or --reset says so: of the control planes of\n" +
			"the mesh that -i names or of a revision, else of all, or of one pod, which may be the operator's. A replica forgets what was\n" +
			"set when it ends.",
		Example: "  heddle admin log -i istio-system-1 --level debug\n  heddle admin log -i istio-system-1 --reset",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			method, page := http.MethodGet, "log"
			switch {
			case reset && cmd.Flags().Changed("level"):
				return errors.New("--level and --reset contradict each other: give one of them")
			case reset:
				method = http.MethodDelete
			case cmd.Flags().Changed("level"):
				l, err := levelOf(level)
				if err != nil {
					return err
				}
				method, page = http.MethodPut, "log?"+url.Values{"level": {l}}.Encode()
			}
			return a.log(cmd, args, revision, method, page, output)
		},
	}
	fs := cmd.Flags()
	fs.StringVarP(&revision, "revision", "r", "", "only control planes of this revision")
	fs.StringVar(&level, "level", "", "debug, info, warn or error; as istioctl writes it (default:debug), too")
	fs.BoolVar(&reset, "reset", false, "go back to what the process was started with")
	fs.Int("ctrlz_port", 0, "accepted as in istioctl; without effect")
	output.addTo(cmd)
	return cmd
}

// soleScope is the one that there is; istioctl has many.
const soleScope = "default"

// levelOf reads a level, alone or in istioctl's form, SCOPE:LEVEL.
func levelOf(text string) (string, error) {
	name, level, ok := strings.Cut(text, ":")
	switch {
	case !ok:
		level = text
	case name != soleScope && name != "all":
		return "", fmt.Errorf("--level %s: there is no scope %s, but %s alone; write --level debug", text, name, soleScope)
	}
	if _, err := obs.ParseLevel(level); err != nil {
		return "", fmt.Errorf("--level %s: %w", text, err)
	}
	return level, nil
}

// logLevel is what one replica says.
type logLevel struct {
	Mesh        string `json:"mesh,omitempty"`
	Namespace   string `json:"namespace"`
	Pod         string `json:"pod"`
	Scope       string `json:"scope_name"` // these as istioctl
	Level       string `json:"log_level"`
	Description string `json:"description"`
}

func (a *app) log(cmd *cobra.Command, args []string, revision, method, page string, output format) error {
	ctx := cmd.Context()
	c, err := a.connect()
	if err != nil {
		return err
	}
	var all []plane
	if len(args) > 0 {
		var p plane
		p, err = a.process(ctx, c, args[0])
		all = []plane{p}
	} else if all, err = planes(ctx, c, a.istioNamespace, revision); err == nil && len(all) == 0 {
		err = noPlanes(a.istioNamespace, revision)
	}
	if err != nil {
		return err
	}
	replies := each(ctx, all, func(ctx context.Context, p plane) (logLevel, error) { return c.logLevel(ctx, p, method, page) })
	levels := []logLevel{}
	for _, r := range replies {
		if r.err == nil {
			levels = append(levels, r.said)
		}
	}
	unanswered := silent(replies)
	if len(levels) == 0 {
		return errors.Join(unanswered...)
	}
	if err := output.print(cmd.OutOrStdout(), levels, func(w io.Writer) error {
		t := newTable(w)
		fmt.Fprintln(t, "MESH\tPOD\tACTIVE SCOPE\tDESCRIPTION\tLOG LEVEL")
		for _, l := range levels {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", orNone(l.Mesh), l.Namespace+"/"+l.Pod, l.Scope, l.Description, l.Level)
		}
		return t.Flush()
	}); err != nil {
		return err
	}
	return report(cmd.ErrOrStderr(), unanswered)
}

func (c cluster) logLevel(ctx context.Context, p plane, method, page string) (logLevel, error) {
	body, err := c.call(ctx, p, method, page)
	if err != nil {
		return logLevel{}, err
	}
	var said struct{ Level, Start string }
	if err := json.Unmarshal(body, &said); err != nil {
		return logLevel{}, fmt.Errorf("its answer cannot be read: %w", err)
	}
	return logLevel{
		Mesh: p.mesh, Namespace: p.namespace, Pod: p.pod, Scope: soleScope, Level: printable(said.Level),
		Description: "all that it logs; started with " + printable(said.Start),
	}, nil
}
