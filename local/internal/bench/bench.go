// Package bench measures control planes beside each other: in pods of one local cluster, one after the other, under the same
// clients, which speak discovery over TLS as sidecars do, with a pod and a token bound to it for each.
//
// It runs on the machine of the cluster, as root, since it reads what the planes' processes cost from /proc.
package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime/debug"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	settle      = 10 * time.Second // after a start and after the last change, before memory is read
	connectWait = 5 * time.Minute  // for all clients
	flipWait    = 30 * time.Second // for a change to be with all of them; who has none by then has lost it
)

// Sizes say how much of everything there is.
type Sizes struct {
	Namespaces, Services, Clients int

	Flips int           // changes one by one: each when the one before is with all clients, and Gap is over
	Gap   time.Duration // more than a plane gathers changes for
	Burst int           // changes at once, each of another service
}

// Validate names what cannot be run.
func (s Sizes) Validate() error {
	var faults []error
	for _, n := range []struct {
		name             string
		got, least, most int
	}{
		{"namespaces", s.Namespaces, 1, 1000},
		{"services", s.Services, 1, 31_000}, // two addresses each of 198.19.0.0/16
		{"clients", s.Clients, 1, 31_000},   // of 198.18.0.0/17
		{"flips", s.Flips, 1, maxMarks / len(columns)},
		{"burst", s.Burst, 1, min(s.Services, maxMarks/len(columns)-s.Flips)},
	} {
		if n.got < n.least || n.got > n.most {
			faults = append(faults, fmt.Errorf("%s: %d is not between %d and %d", n.name, n.got, n.least, n.most))
		}
	}
	return errors.Join(faults...)
}

// Options say what to measure.
type Options struct {
	Kubeconfig     string
	Heddle, Istiod Plane
	Sizes
	// Profile is a command for sh that takes a profile of Heddle's POD in NAMESPACE, run once all is measured, while addresses
	// change and all clients are connected. It may be empty.
	Profile  string
	Progress io.Writer
}

// eager has istiod gather nothing: what it can do at best in latency, at the price of more pushes.
var eager = []corev1.EnvVar{{Name: "PILOT_ENABLE_EDS_DEBOUNCE", Value: "false"}, {Name: "PILOT_DEBOUNCE_AFTER", Value: "1ms"}}

// columns are what is measured, in this order. Heddle comes twice, around its peer: where the two differ much, the machine did
// something else meanwhile.
var columns = []struct {
	title string
	plane func(Options) Plane
	env   []corev1.EnvVar
}{
	{"Heddle", func(o Options) Plane { return o.Heddle }, nil},
	{"istiod", func(o Options) Plane { return o.Istiod }, nil},
	{"istiod, no debounce", func(o Options) Plane { return o.Istiod }, eager},
	{"Heddle again", func(o Options) Plane { return o.Heddle }, nil},
}

// Run makes the clients and what they see, in a cluster where both planes are installed and nothing else is, and measures the
// columns of the report.
func Run(ctx context.Context, o Options) (Report, error) {
	if err := o.Validate(); err != nil {
		return Report{}, err
	}
	debug.SetGCPercent(400) // the load shares the processors with what it measures
	config, err := clientcmd.BuildConfigFromFlags("", o.Kubeconfig)
	if err != nil {
		return Report{}, err
	}
	config.QPS = -1 // no limit
	k, err := kubernetes.NewForConfig(config)
	if err != nil {
		return Report{}, err
	}
	say := func(format string, args ...any) {
		fmt.Fprintf(o.Progress, time.Now().Format(time.TimeOnly)+" "+format+"\n", args...)
	}
	for _, p := range []Plane{o.Heddle, o.Istiod} {
		if _, err := p.scale(ctx, k, 0, nil); err != nil {
			return Report{}, err
		}
	}
	say("making %d services and %d pods with tokens in %d namespaces", o.Services, o.Clients, o.Namespaces)
	ids, err := makeWorld(ctx, k, o.Sizes, audiences(o.Heddle))
	if err != nil {
		return Report{}, fmt.Errorf("make what clients see: %w", err)
	}
	r := &run{k: k, sizes: o.Sizes, ids: ids, say: say}
	out := Report{Sizes: o.Sizes}
	for i, c := range columns {
		if i == len(columns)-1 {
			r.profile = o.Profile
		}
		f, err := r.column(ctx, c.plane(o), c.env)
		if err != nil {
			return Report{}, fmt.Errorf("%s: %w", c.title, err)
		}
		f.Title, f.Clients = c.title, o.Clients
		say("%s: connected in %.1f s; flips p50 %v, p99 %v", c.title, f.Connect.Seconds(), f.Flips.P50.Round(time.Millisecond), f.Flips.P99.Round(time.Millisecond))
		out.Columns = append(out.Columns, f)
	}
	return out, nil
}

// run is what the columns share.
type run struct {
	k     kubernetes.Interface
	sizes Sizes
	ids   []identity
	used  int // marks of former columns
	say   func(format string, args ...any)

	profile string // command to be run at the end of the column
}

func (r *run) column(ctx context.Context, p Plane, env []corev1.EnvVar) (f Figures, err error) {
	pod, err := p.scale(ctx, r.k, 1, env)
	if err != nil {
		return f, err
	}
	if err := pause(ctx, settle); err != nil {
		return f, err
	}
	proc, err := processOf(pod)
	if err != nil {
		return f, err
	}
	if f.Before, err = proc.memory(ctx); err != nil {
		return f, err
	}
	to, err := p.target(ctx, r.k, pod)
	if err != nil {
		return f, err
	}
	fl := &fleet{target: to, marks: make([]*mark, r.used+r.sizes.Flips+r.sizes.Burst)}
	for i := r.used; i < len(fl.marks); i++ {
		fl.marks[i] = newMark(len(r.ids))
	}
	clients, clientsCtx := errgroup.WithContext(ctx)
	clientsCtx, end := context.WithCancel(clientsCtx)
	defer end()
	clients.Go(func() error {
		defer end()
		err := r.measure(clientsCtx, &f, fl, proc, func(ready func()) {
			for i, id := range r.ids {
				px := &proxy{fleet: fl, index: i, identity: id, ready: ready}
				clients.Go(func() error { return px.run(clientsCtx) })
			}
		})
		if err == nil && r.profile != "" {
			if err := r.takeProfile(clientsCtx, pod); err != nil {
				r.say("there is no profile: %v", err) // what is measured is worth more
			}
		}
		return err
	})
	if err := clients.Wait(); err != nil {
		return f, err
	}
	r.used = len(fl.marks)
	_, err = p.scale(ctx, r.k, 0, nil)
	return f, err
}

// measure fills f from the start of the clients on.
func (r *run) measure(ctx context.Context, f *Figures, fl *fleet, proc process, start func(ready func())) (err error) {
	if err := r.connect(ctx, f, fl, proc, start); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	r.say("all are connected")
	if err := pause(ctx, settle); err != nil {
		return err
	}
	if f.Connected, err = proc.memory(ctx); err != nil {
		return err
	}
	end := r.used + r.sizes.Flips
	for _, part := range []struct {
		change      func(ctx context.Context, marks []*mark, first int) (Spread, error)
		first, last int
		spread      *Spread
		cost        *Cost
	}{{r.oneByOne, r.used, end, &f.Flips, &f.FlipCost}, {r.atOnce, end, len(fl.marks), &f.Burst, &f.BurstCost}} {
		m, err := newMeter(proc, fl)
		if err != nil {
			return err
		}
		if *part.spread, err = part.change(ctx, fl.marks[part.first:part.last], part.first); err != nil {
			return err
		}
		if *part.cost, err = m.cost(len(r.ids) * (part.last - part.first)); err != nil {
			return err
		}
	}
	if err := pause(ctx, settle); err != nil {
		return err
	}
	f.After, err = proc.memory(ctx)
	return err
}

func (r *run) connect(ctx context.Context, f *Figures, fl *fleet, proc process, start func(ready func())) error {
	m, err := newMeter(proc, fl)
	if err != nil {
		return err
	}
	began, all := time.Now(), newMark(len(r.ids))
	start(func() {
		if all.left.Add(-1) == 0 {
			close(all.done)
		}
	})
	if err := await(ctx, all, connectWait); err != nil {
		if last := fl.refusal.Load(); last != nil {
			err = fmt.Errorf("%w; the last of %d refusals: %w", err, fl.refused.Load(), *last)
		}
		return err
	}
	f.Connect, f.Refused = time.Since(began), fl.refused.Load()
	f.Endpoints, f.Routes = float64(fl.endpoints.Load())/float64(len(r.ids)), float64(fl.routes.Load())/float64(len(r.ids))
	f.ConnectCost, err = m.cost(len(r.ids))
	return err
}

// oneByOne makes changes with the marks from the first number on, each when all clients have the one before.
func (r *run) oneByOne(ctx context.Context, marks []*mark, first int) (Spread, error) {
	began := make([]time.Time, len(marks))
	for i, m := range marks {
		began[i] = time.Now()
		if err := flip(ctx, r.k, r.sizes, i%r.sizes.Services, markAddress(first+i)); err != nil {
			return Spread{}, err
		}
		if err := await(ctx, m, flipWait); err != nil {
			return Spread{}, fmt.Errorf("flip %d: %w", i, err)
		}
		if err := pause(ctx, r.sizes.Gap); err != nil {
			return Spread{}, err
		}
	}
	return spreadOf(began, marks), nil
}

// atOnce makes changes with the marks from the first number on as fast as the API server takes them.
func (r *run) atOnce(ctx context.Context, marks []*mark, first int) (Spread, error) {
	began := make([]time.Time, len(marks))
	writes, writesCtx := errgroup.WithContext(ctx)
	writes.SetLimit(writers)
	for i := range marks {
		writes.Go(func() error {
			began[i] = time.Now()
			return flip(writesCtx, r.k, r.sizes, i, markAddress(first+i))
		})
	}
	if err := writes.Wait(); err != nil {
		return Spread{}, err
	}
	for i, m := range marks {
		if err := await(ctx, m, flipWait); err != nil {
			return Spread{}, fmt.Errorf("change %d of the burst: %w", i, err)
		}
	}
	return spreadOf(began, marks), nil
}

// takeProfile runs the command, and changes addresses until it ends.
func (r *run) takeProfile(ctx context.Context, pod *corev1.Pod) error {
	cmd := exec.CommandContext(ctx, "sh", "-c", r.profile)
	cmd.Env = append(os.Environ(), "NAMESPACE="+pod.Namespace, "POD="+pod.Name)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for i := 0; ; i++ {
		select {
		case err := <-ended:
			return err
		case <-time.After(r.sizes.Gap):
		}
		// No address of an endpoint, and no mark.
		if err := flip(ctx, r.k, r.sizes, i%r.sizes.Services, fmt.Sprintf("198.19.%d.%d", 250+i/250%5, 1+i%250)); err != nil {
			return errors.Join(err, <-ended) // which ends with ctx, or by itself
		}
	}
}

// meter measures a plane from its making on.
type meter struct {
	proc        process
	fleet       *fleet
	plane, load time.Duration
	bytes       int64
}

func newMeter(proc process, fl *fleet) (m meter, err error) {
	m = meter{proc: proc, fleet: fl, bytes: fl.bytes.Load()}
	plane, errPlane := proc.cpu()
	load, errLoad := self().cpu()
	m.plane, m.load = plane, load
	return m, errors.Join(errPlane, errLoad)
}

// cost is what has been spent since, for each of n.
func (m meter) cost(n int) (Cost, error) {
	now, err := newMeter(m.proc, m.fleet)
	return Cost{
		CPU:   (now.plane - m.plane) / time.Duration(n),
		Load:  (now.load - m.load) / time.Duration(n),
		Bytes: float64(now.bytes-m.bytes) / float64(n),
	}, err
}

func await(ctx context.Context, m *mark, limit time.Duration) error {
	select {
	case <-m.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(limit):
		return fmt.Errorf("%d clients have nothing after %v", m.left.Load(), limit)
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
