package cli

import (
	"cmp"
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
	var red []string
	var document string
	cmd := &cobra.Command{
		Use: "verify SCRIPT", Short: "Run a document's commands against the instance and compare what is seen",
		Long: `verify runs a script on the instance's cluster, prints a table of what was to be seen and what was seen, and
leaves everything as the script leaves it. Scripts: ` + strings.Join(verify.Scripts(), ", ") + `.
"verify controls" breaks and mends one thing after the other on a cluster on which s0 was run, and compares which rows turn red.
"verify --all-red", on an empty cluster, only looks: all rows of all scripts, or of the one that is named, must be red.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if v.LookOnly {
				return cobra.MaximumNArgs(1)(cmd, args)
			}
			return cobra.ExactArgs(1)(cmd, args)
		},
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
			v.Instance, v.Bin, v.Out = inst.Name, filepath.Dir(exe), cmd.OutOrStdout()
			v.Kubeconfig, v.Checkout = inst.Cluster(s, 1).Kubeconfig(), findCheckout()
			if v.Peer = filepath.Join(v.Bin, "peer", "istioctl"); !exists(v.Peer) {
				v.Peer = ""
			}
			if random {
				if v.Seed == 0 {
					v.Seed = rand.Uint64N(1 << 32)
				}
				fmt.Fprintf(v.Out, "names of seed %d (repeat with --random --seed %d): %+v\n", v.Seed, v.Seed, verify.Random(v.Seed))
			}
			if v.Selectors != "" && !slices.Contains(verify.SelectorForms, v.Selectors) {
				return fmt.Errorf("--selectors %s: there are %s", v.Selectors, strings.Join(verify.SelectorForms, ", "))
			}
			if len(args) == 0 {
				args, v.OwnRows = verify.Scripts(), true // the others are looked at in the script that they come from
			}
			var wrong []error
			for _, v.Script = range args {
				if v.Names, err = names(v, document, random); err != nil {
					return err
				}
				switch {
				case v.Script == "controls" && (v.LookOnly || len(red) > 0):
					return errors.New("verify controls says itself what must be red: leave out --red and --all-red")
				case v.Script == "controls":
					return verify.RunControls(cmd.Context(), v, verify.Controls())
				case v.LookOnly:
					fmt.Fprintf(v.Out, "\n%s, where nothing was done:\n", v.Script)
				}
				if err := runVerify(cmd.Context(), v, red); err != nil {
					wrong = append(wrong, fmt.Errorf("%s: %w", v.Script, err))
				}
			}
			return errors.Join(wrong...)
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&v.Verbose, "verbose", "v", false, "print each line that is run, and its output")
	fs.BoolVar(&random, "random", false, "use names that no document uses")
	fs.Uint64Var(&v.Seed, "seed", 0, "of random names and random order; 0 draws one")
	fs.StringVar(&document, "document", "", "whose names a script uses that is not a document itself: s0 or s1")
	fs.StringVar(&v.Selectors, "selectors", "", "write the discovery selectors of s0 in another form: "+strings.Join(verify.SelectorForms, ", "))
	fs.StringSliceVar(&red, "red", nil, "the rows that must be red; any other outcome is an error")
	fs.BoolVar(&v.LookOnly, "all-red", false, "change nothing and only look: on an empty cluster every row must be red")
	cmd.MarkFlagsMutuallyExclusive("red", "all-red")
	return cmd
}

// names returns what a script calls its things: a document its own, any other script those of the document that is
// named, or else of s0.
func names(v verify.Options, document string, random bool) (verify.Names, error) {
	switch {
	case random:
		return verify.Random(v.Seed), nil
	case slices.Contains([]string{"s0", "s1"}, v.Script):
		document = v.Script
	}
	return verify.Document(cmp.Or(document, "s0"))
}

// runVerify fails unless exactly the rows of red are red; all, if nothing was done.
func runVerify(ctx context.Context, v verify.Options, red []string) error {
	rows, err := verify.Run(ctx, v)
	if err != nil {
		return err
	}
	if v.LookOnly {
		red = nil
		for _, r := range rows {
			red = append(red, r.ID)
		}
	}
	return verify.Judge(v.Out, rows, red)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
