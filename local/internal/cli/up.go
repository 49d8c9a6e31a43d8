package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/heddle-mesh/heddle/local/internal/cluster"
	"github.com/heddle-mesh/heddle/local/internal/image"
	"github.com/heddle-mesh/heddle/local/internal/instance"
	"github.com/heddle-mesh/heddle/local/internal/plan"
)

const (
	stopLimit = 20 * time.Second // for killed processes to be gone; 2 s was measured
	lockLimit = 5 * time.Minute  // for another up or down of the same instance
)

// upFlags are what up was asked for; nodes < 0 and base "" mean what the instance has.
type upFlags struct {
	nodes       int
	base        string
	checkout    string
	controllers bool
}

func upCommand(o *options) *cobra.Command {
	f := upFlags{}
	cmd := &cobra.Command{
		Use: "up", Short: "Start the instance, or repair it, and wait until it is ready", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			inst, err := instance.Named(o.instance)
			if err != nil {
				return err
			}
			return up(cmd.Context(), inst, f, sayer{cmd.OutOrStdout(), time.Now()})
		},
	}
	cmd.Flags().IntVar(&f.nodes, "nodes", -1, "how many nodes; 0 is an API server alone (default: as before, at first 1)")
	cmd.Flags().StringVar(&f.base, "base", "", "first two octets of the addresses, as 10.200 (default: the first free ones)")
	cmd.Flags().StringVar(&f.checkout, "checkout", "", "Heddle's source, of which images are built (default: found above the program or here)")
	cmd.Flags().BoolVar(&f.controllers, "controllers", false, "run the controller-manager with 0 nodes too")
	return cmd
}

func up(ctx context.Context, inst instance.Instance, f upFlags, say sayer) error {
	if err := instance.Root(); err != nil {
		return err
	}
	unlock, err := lock(ctx, inst.Name)
	if err != nil {
		return err
	}
	defer unlock()
	state, err := inst.Load()
	fresh := errors.Is(err, fs.ErrNotExist)
	if fresh {
		state.Nodes = 1
	} else if err != nil {
		return err
	}
	want, err := f.want(state)
	if err != nil {
		return err
	}
	client := cluster.Dial(inst)
	alive := client.Alive(ctx)
	has := -1
	if alive {
		has = state.Nodes
	}
	if want.Nodes > has {
		if err := instance.CheckMachine(has, want.Nodes); err != nil {
			return err
		}
	}
	base, err := f.parseBase()
	switch {
	case err != nil:
		return err
	case fresh:
		if state, err = choose(ctx, inst, base, want.Nodes); err != nil {
			return err
		}
	case base != nil && *base != state.Base:
		return fmt.Errorf("instance %s has base %s: take it down before you choose another", inst.Name, state.Base)
	}
	if !alive {
		if err := say.timed(ctx, "daemon", func(ctx context.Context) error { return restart(ctx, inst, state, client) }); err != nil {
			return err
		}
	}
	if err := boot(ctx, inst, client, want, say); err != nil {
		return err
	}
	say.step("instance "+inst.Name+" is up", time.Since(say.began))
	say.line("kubeconfig: %s", inst.Cluster(state, 1).Kubeconfig())
	return nil
}

// want completes the flags by what the instance has.
func (f upFlags) want(state instance.State) (cluster.Want, error) {
	w := cluster.Want{
		Nodes: f.nodes, Controllers: f.controllers || state.Controllers,
		Checkout: cmp.Or(f.checkout, findCheckout(), state.Checkout),
	}
	if w.Nodes < 0 {
		w.Nodes = state.Nodes
	}
	switch {
	case w.Nodes > plan.MaxNodes:
		return w, fmt.Errorf("--nodes %d: an instance has at most %d", w.Nodes, plan.MaxNodes)
	case w.Checkout != "":
		var err error
		w.Checkout, err = filepath.Abs(w.Checkout)
		return w, err
	case w.Nodes > 0:
		return w, errors.New("images are built from Heddle's source, which was not found: run this in a checkout, or name one with --checkout")
	}
	return w, nil
}

// parseBase returns nil if the flag is not set.
func (f upFlags) parseBase() (*plan.Base, error) {
	if f.base == "" {
		return nil, nil
	}
	b, err := plan.ParseBase(f.base)
	return &b, err
}

func choose(ctx context.Context, inst instance.Instance, base *plan.Base, nodes int) (instance.State, error) {
	unlock, err := lock(ctx, "") // two new instances must not choose the same addresses
	if err != nil {
		return instance.State{}, err
	}
	defer unlock()
	return inst.Choose(base, nodes)
}

// boot has the daemon start what is wanted while images are built here, which takes memory
// that the daemon shall not keep, and then deploys what needs images.
func boot(ctx context.Context, inst instance.Instance, client *cluster.Client, want cluster.Want, say sayer) error {
	var images cluster.Images
	work, workCtx := errgroup.WithContext(ctx)
	if want.Nodes > 0 {
		work.Go(func() error {
			return say.timed(workCtx, "images", func(ctx context.Context) (err error) {
				images, err = build(ctx, inst, want.Checkout, nil, say)
				return err
			})
		})
	}
	work.Go(func() error {
		if err := client.Up(workCtx, want, say.event); err != nil {
			return fmt.Errorf("%w\nheddle-local logs lists what to read; heddle-local down --instance %s starts over", err, inst.Name)
		}
		return nil
	})
	if err := work.Wait(); err != nil || want.Nodes == 0 {
		return err
	}
	return client.Publish(ctx, images, say.event)
}

func lock(ctx context.Context, name string) (func(), error) {
	ctx, cancel := context.WithTimeout(ctx, lockLimit)
	defer cancel()
	return instance.Lock(ctx, name)
}

// restart starts the daemon on what an earlier one may have left.
func restart(ctx context.Context, inst instance.Instance, state instance.State, client *cluster.Client) error {
	ctx, cancel := context.WithTimeout(ctx, stopLimit)
	defer cancel()
	if err := inst.Stop(ctx); err != nil {
		return err
	}
	if err := inst.CheckBase(state); err != nil {
		return err
	}
	if err := inst.Save(state); err != nil { // and the directories
		return err
	}
	return client.Start(ctx)
}

// build brings the images, of no names all, into the instance's layout. All are those of
// Heddle's own programs only where the programs are.
func build(ctx context.Context, inst instance.Instance, checkout string, names []string, say sayer) (cluster.Images, error) {
	o := image.Options{
		Root: checkout, Cache: instance.Cache, Layout: inst.Layout(), Images: names,
		Progress: func(line string) { say.line("    %s", line) },
	}
	if len(names) == 0 {
		all, err := image.Names()
		if err != nil {
			return cluster.Images{}, err
		}
		programs := map[string]string{"heddle": "heddle", "proxy": "heddle-node"}
		o.Images = slices.DeleteFunc(all, func(name string) bool {
			if programs[name] == "" {
				return false
			}
			_, err := os.Stat(filepath.Join(checkout, "bin", programs[name]))
			return err != nil
		})
	}
	if _, err := image.Build(ctx, o); err != nil {
		return cluster.Images{}, err
	}
	data, err := os.ReadFile(filepath.Join(o.Layout, image.RefsFile))
	if err != nil {
		return cluster.Images{}, err
	}
	var images cluster.Images
	if err := json.Unmarshal(data, &images); err != nil {
		return images, fmt.Errorf("read references of images: %w", err)
	}
	return images, nil
}

func loadCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "load [IMAGE...]",
		Short: "Build images again (heddle, proxy, …; default all), serve them and tell the cluster their names; nothing is restarted",
		RunE: func(cmd *cobra.Command, names []string) error {
			inst, err := instance.Named(o.instance)
			if err != nil {
				return err
			}
			if err := instance.Root(); err != nil {
				return err
			}
			state, err := inst.Load()
			if err != nil || state.Nodes == 0 {
				return fmt.Errorf("instance %s is not up with a node: run heddle-local up --instance %s", inst.Name, inst.Name)
			}
			say := sayer{cmd.OutOrStdout(), time.Now()}
			var images cluster.Images
			err = say.timed(cmd.Context(), "images", func(ctx context.Context) (err error) {
				images, err = build(ctx, inst, cmp.Or(findCheckout(), state.Checkout), names, say)
				return err
			})
			if err != nil {
				return err
			}
			if err := cluster.Dial(inst).Publish(cmd.Context(), images, say.event); err != nil {
				return err
			}
			say.line("heddle: %s\nproxy: %s", images.Heddle, images.Proxy)
			return nil
		},
	}
}

func downCommand(o *options) *cobra.Command {
	purge := false
	cmd := &cobra.Command{
		Use: "down", Short: "Take the instance away, with everything it consists of", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			inst, err := instance.Named(o.instance)
			if err != nil {
				return err
			}
			if err := instance.Root(); err != nil {
				return err
			}
			unlock, err := lock(cmd.Context(), inst.Name)
			if err != nil {
				return err
			}
			defer unlock()
			say := sayer{cmd.OutOrStdout(), time.Now()}
			return say.timed(cmd.Context(), "instance "+inst.Name+" is down", func(ctx context.Context) error {
				ctx, cancel := context.WithTimeout(ctx, stopLimit)
				defer cancel()
				if err := inst.Remove(ctx); err != nil {
					return err
				}
				if purge {
					return os.RemoveAll(instance.Cache)
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&purge, "purge", false, "remove the cache of downloads and images too, which all instances share")
	return cmd
}
