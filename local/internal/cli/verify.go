package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/local/internal/instance"
	"github.com/heddle-mesh/heddle/local/internal/verify"
)

func verifyCommand(o *options) *cobra.Command {
	v := verify.Options{}
	var random bool
	var red, document string
	cmd := &cobra.Command{
		Use: "verify SCRIPT", Short: "Run a document's commands against the instance and compare what is seen", Args: cobra.ExactArgs(1),
		Long: `verify runs a script on the instance's cluster, prints a table of what was to be seen and what was seen, and
leaves everything as the script leaves it. Scripts: ` + strings.Join(verify.Scripts(), ", ") + `.
"verify controls" breaks and mends one thing after the other on a cluster on which s0 was run, and compares which rows turn red.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			inst, err := instance.Named(o.instance)
			if err != nil {
				return err
			}
			s, err := inst.Load()
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("instance %s is not up: run heddle-local up --instance %s", inst.Name, inst.Name)
			}
			if err != nil {
				return err
			}
			exe, err := os.Executable()
			if err != nil {
				return err
			}
			v.Script, v.Instance, v.Bin, v.Out = args[0], inst.Name, filepath.Dir(exe), cmd.OutOrStdout()
			v.Kubeconfig, v.Checkout = inst.Cluster(s, 1).Kubeconfig(), findCheckout()
			if v.Peer = filepath.Join(v.Bin, "peer", "istioctl"); !exists(v.Peer) {
				v.Peer = ""
			}
			if document == "" {
				document = v.Script
			}
			if !slices.Contains([]string{"s0", "s1"}, v.Script) {
				document = "s0"
			}
			if v.Names, err = verify.Document(document); err != nil {
				return err
			}
			if random {
				if v.Seed == 0 {
					v.Seed = rand.Uint64N(1 << 32)
				}
				v.Names = verify.Random(v.Seed)
				fmt.Fprintf(v.Out, "names of seed %d (repeat with --random --seed %d): %+v\n", v.Seed, v.Seed, v.Names)
			}
			if v.Selectors != "" && !slices.Contains(verify.SelectorForms, v.Selectors) {
				return fmt.Errorf("--selectors %s: there are %s", v.Selectors, strings.Join(verify.SelectorForms, ", "))
			}
			if v.Script == "controls" {
				return verify.RunControls(cmd.Context(), v, verify.Controls())
			}
			return runVerify(cmd.Context(), v, red)
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&v.Verbose, "verbose", "v", false, "print each line that is run, and its output")
	fs.BoolVar(&random, "random", false, "use names that no document uses")
	fs.Uint64Var(&v.Seed, "seed", 0, "of random names and random order; 0 draws one")
	fs.StringVar(&document, "document", "", "whose names a script uses that is not a document itself: s0 or s1")
	fs.StringVar(&v.Selectors, "selectors", "", "write the discovery selectors of s0 in another form: "+strings.Join(verify.SelectorForms, ", "))
	fs.StringVar(&red, "red", "", "the rows that must be red, comma-separated; any other outcome is an error")
	fs.BoolVar(&v.LookOnly, "all-red", false, "change nothing and only look: on an empty cluster every row must be red")
	cmd.MarkFlagsMutuallyExclusive("red", "all-red")
	return cmd
}

// runVerify fails unless exactly the rows of red are red; all, if nothing was done.
func runVerify(ctx context.Context, v verify.Options, red string) error {
	rows, err := verify.Run(ctx, v)
	if err != nil {
		return err
	}
	want := strings.FieldsFunc(red, func(r rune) bool { return r == ',' })
	var wrong []string
	for _, r := range rows {
		if r.Red() != (v.LookOnly || slices.Contains(want, r.ID)) {
			wrong = append(wrong, r.ID)
		}
	}
	for _, id := range want {
		if !slices.ContainsFunc(rows, func(r verify.Row) bool { return r.ID == id }) {
			wrong = append(wrong, id+" (no such row)")
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("%d of %d rows are not as they should be: %s", len(wrong), len(rows), strings.Join(wrong, ", "))
	}
	fmt.Fprintf(v.Out, "\nAll %d rows are as they should be.\n", len(rows))
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
