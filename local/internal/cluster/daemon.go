// Package cluster is the daemon of an instance: it owns the router's namespace, the control
// plane and the nodes, and starts again what dies. All of them die with it.
package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/heddle-mesh/heddle/local/internal/balancer"
	"github.com/heddle-mesh/heddle/local/internal/cgroup"
	"github.com/heddle-mesh/heddle/local/internal/instance"
	"github.com/heddle-mesh/heddle/local/internal/netns"
	"github.com/heddle-mesh/heddle/local/internal/node"
	"github.com/heddle-mesh/heddle/local/internal/proc"
	"github.com/heddle-mesh/heddle/local/internal/registry"
	"github.com/heddle-mesh/heddle/local/internal/settings"
)

const (
	stepLimit  = 90 * time.Second // of each step of a change; measured ones take under 5 s on two cores
	checkLimit = time.Second      // of each question whether something works
)

// daemon is one running instance. Its processes live until the context of Run ends.
type daemon struct {
	log    *slog.Logger
	inst   instance.Instance
	set    settings.Cluster
	host   *netns.Thread
	router *router
	client kubernetes.Interface
	keeper *proc.Keeper
	work   sync.WaitGroup // everything that runs until the end

	mu      sync.Mutex // one change at a time; guards the fields below
	state   instance.State
	started map[string]bool // components and parts that run
	nodes   []running       // node i+1
}

type running struct {
	name string
	stop func() // returns when it is gone
}

// Run is the daemon of the instance until ctx ends.
func Run(ctx context.Context, inst instance.Instance, log *slog.Logger) error {
	state, err := inst.Load()
	if err != nil {
		return err
	}
	if err := inst.WritePID(); err != nil {
		return err
	}
	host, err := netns.Host()
	if err != nil {
		return err
	}
	router, err := newRouter(state.Base)
	if err != nil {
		return err
	}
	d := &daemon{
		log: log, inst: inst, state: state, set: inst.Cluster(state, 1), host: host, router: router,
		keeper: &proc.Keeper{Log: log}, started: map[string]bool{},
	}
	if err := d.prepare(); err != nil {
		return err
	}
	listener, err := net.Listen("unix", inst.Socket())
	if err != nil {
		return fmt.Errorf("listen for commands: %w", err)
	}
	server := &http.Server{Handler: d.handler(ctx), ReadHeaderTimeout: time.Minute}
	d.work.Go(func() {
		<-ctx.Done()
		_ = server.Close() // ends the requests too
	})
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	d.work.Wait()
	return nil
}

// prepare writes the cluster's keys and what else its control plane reads.
func (d *daemon) prepare() error {
	policy, err := settings.AuditPolicy()
	if err != nil {
		return err
	}
	if err := errors.Join(os.MkdirAll(d.set.Keys(), 0o700), d.set.WriteKeys(),
		os.WriteFile(filepath.Join(d.set.Dir, "audit-policy.yaml"), []byte(policy), 0o600)); err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", d.set.Kubeconfig())
	if err != nil {
		return err
	}
	config.QPS, config.Burst = 200, 200
	d.client, err = kubernetes.NewForConfig(config)
	return err
}

// Event is what a request reports, one JSON object a line. A step is reported when it ends;
// the last line has no Step and the error of the whole, if any.
type Event struct {
	Step string        `json:"step,omitempty"`
	Took time.Duration `json:"took,omitempty"`
	Err  string        `json:"err,omitempty"`
}

// report runs a step and tells how long it took.
type report func(step string, f func(ctx context.Context) error) error

func (d *daemon) handler(life context.Context) http.Handler {
	mux := http.NewServeMux()
	change := func(path string, f func(r report, body *json.Decoder) error) {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, req *http.Request) {
			d.mu.Lock()
			defer d.mu.Unlock()
			out := json.NewEncoder(w)
			say := func(e Event) {
				if out.Encode(e) == nil { // else the caller left; the change goes on to the end of its step
					_ = http.NewResponseController(w).Flush()
				}
			}
			err := f(func(step string, f func(context.Context) error) error {
				ctx, cancel := context.WithTimeout(req.Context(), stepLimit)
				defer cancel()
				began := time.Now()
				if err := f(ctx); err != nil {
					return fmt.Errorf("%s: %w", step, err)
				}
				say(Event{Step: step, Took: time.Since(began)})
				return nil
			}, json.NewDecoder(req.Body))
			if err != nil {
				d.log.Error("request not completed", "path", path, "err", err)
				say(Event{Err: err.Error()})
				return
			}
			say(Event{})
		})
	}
	change("/up", func(r report, body *json.Decoder) error {
		var want Want
		if err := body.Decode(&want); err != nil {
			return err
		}
		return d.up(life, want, r)
	})
	change("/images", func(r report, body *json.Decoder) error {
		var images Images
		if err := body.Decode(&images); err != nil {
			return err
		}
		return d.publish(images, r)
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, req *http.Request) {
		_ = json.NewEncoder(w).Encode(d.status(req.Context())) // the caller left
	})
	return mux
}

// Want is what an instance shall consist of.
type Want struct {
	Nodes       int    `json:"nodes"`
	Controllers bool   `json:"controllers"` // with 0 nodes too
	Checkout    string `json:"checkout"`
}

// up starts what is wanted and does not run, and waits until all is ready.
func (d *daemon) up(life context.Context, want Want, step report) error {
	if err := step("network", func(context.Context) error { return d.router.ensure(d.set.Cluster) }); err != nil {
		return err
	}
	d.keep(life, d.set.Etcd())
	d.keep(life, d.set.APIServer())
	if err := step("API server", func(ctx context.Context) error { return poll(ctx, d.ready) }); err != nil {
		return err
	}
	if want.Nodes > 0 || want.Controllers {
		d.keep(life, d.set.ControllerManager())
	}
	if want.Nodes > 0 {
		d.keep(life, d.set.Scheduler())
		err := step("first objects", func(ctx context.Context) error {
			objects, err := settings.FirstObjects()
			if err != nil {
				return err
			}
			return d.apply(ctx, objects)
		})
		if err != nil {
			return err
		}
		d.once("balancer", func() { balancer.Run(life, d.client, d.set.Cluster, d.router, d.log) })
		d.once("registry", func() { d.serveRegistry(life) })
	}
	if want.Nodes > 0 || len(d.nodes) > 0 {
		if err := step("nodes", func(ctx context.Context) error { return d.setNodes(life, ctx, want.Nodes) }); err != nil {
			return err
		}
	}
	d.state.Nodes, d.state.Controllers, d.state.Checkout = want.Nodes, want.Controllers, want.Checkout
	return d.inst.Save(d.state)
}

// once runs f until the daemon ends, unless it runs.
func (d *daemon) once(name string, f func()) {
	if !d.started[name] {
		d.started[name] = true
		d.work.Go(f)
	}
}

// keep runs a component of the control plane in the router's namespace, unless it runs.
func (d *daemon) keep(life context.Context, c settings.Component) {
	d.once(c.Name, func() {
		d.keeper.Keep(life, proc.Spec{
			Name: c.Name, Path: proc.Self, Args: append([]string{c.Name}, c.Args...),
			Log:   filepath.Join(d.inst.Logs(), c.Name+".log"),
			Attr:  &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL},
			Start: func(cmd *exec.Cmd) error { return d.router.thread.Do(cmd.Start) },
		})
	})
}

func (d *daemon) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	code := 0
	err := d.client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).StatusCode(&code).Error()
	if err != nil && code != 0 {
		return fmt.Errorf("/readyz answers %d; see %s", code, filepath.Join(d.inst.Logs(), "kube-apiserver.log"))
	}
	return err
}

// serveRegistry is started anew if it ends: the address may go away with the link for a moment.
func (d *daemon) serveRegistry(life context.Context) {
	for life.Err() == nil {
		err := registry.Serve(life, d.state.Registry(), d.inst.Layout())
		d.log.Warn("registry ended", "err", err)
		select {
		case <-life.Done():
		case <-time.After(time.Second):
		}
	}
}

// setNodes starts or removes nodes until there are n, and waits for them to be ready.
func (d *daemon) setNodes(life, ctx context.Context, n int) error {
	for len(d.nodes) > n {
		last := d.nodes[len(d.nodes)-1]
		last.stop()
		d.nodes = d.nodes[:len(d.nodes)-1]
		err := d.client.CoreV1().Nodes().Delete(ctx, last.name, meta.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
		if err := errors.Join(d.router.Unroute(d.set.Node(len(d.nodes)+1).Pods),
			cgroup.Remove(ctx, settings.CgroupRoot(d.inst.Name, last.name)), os.RemoveAll(d.inst.NodeDir(last.name))); err != nil {
			return err
		}
	}
	for i := len(d.nodes) + 1; i <= n; i++ {
		if err := d.startNode(life, i); err != nil {
			return err
		}
	}
	return poll(ctx, d.nodesReady)
}

func (d *daemon) startNode(life context.Context, i int) error {
	set := d.set.NodeSettings(i, d.inst.NodeDir(d.set.Node(i).Name))
	n := set.Node
	if err := d.set.WriteNodeKeys(n); err != nil {
		return err
	}
	files, err := set.Files(d.inst.Name)
	if err != nil {
		return err
	}
	config, err := json.Marshal(node.Config{
		Name: n.Name, Addr: n.Addr, Gateway: set.API(), Dir: set.Dir, Instance: d.inst.Dir(), Keys: set.Keys(), Logs: d.inst.Logs(),
	})
	if err != nil {
		return err
	}
	for _, f := range append(files, settings.NodeFile{Path: "node.json", Text: string(config)}) {
		path := filepath.Join(set.Dir, f.Path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(f.Text), 0o600)); err != nil {
			return err
		}
	}
	ctx, stop := context.WithCancel(life)
	done := make(chan struct{})
	d.work.Go(func() {
		defer close(done)
		d.keeper.Keep(ctx, proc.Spec{
			Name: n.Name, Path: proc.Self, Args: []string{"heddle-local", "node-init", filepath.Join(set.Dir, "node.json")},
			Log: filepath.Join(d.inst.Logs(), n.Name+".log"),
			Attr: &syscall.SysProcAttr{
				Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
				Pdeathsig:  unix.SIGKILL,
			},
			Before: func() error {
				// with the groups of its old pods a node needs half a minute to come back
				ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
				defer cancel()
				group := settings.CgroupRoot(d.inst.Name, n.Name)
				return errors.Join(cgroup.Remove(ctx, group), cgroup.Create(group))
			},
			Start: func(cmd *exec.Cmd) error { return d.host.Do(cmd.Start) },
			After: func(pid int) error { return d.router.attach(set.Cluster.Cluster, n, pid) },
		})
	})
	d.nodes = append(d.nodes, running{n.Name, func() { stop(); <-done }})
	return nil
}

func (d *daemon) nodesReady(ctx context.Context) error {
	states := d.keeper.States()
	for _, r := range d.nodes {
		i := slices.IndexFunc(states, func(s proc.State) bool { return s.Name == r.name })
		if i < 0 || states[i].PID == 0 {
			return fmt.Errorf("node %s does not run; see %s", r.name, filepath.Join(d.inst.Logs(), r.name+".log"))
		}
		if err := d.nodeReady(ctx, states[i]); err != nil {
			return err
		}
	}
	return nil
}

// nodeReady holds only for what was heard since the node's start, in seconds, as the API
// counts: on old data the API server tells of the node's former life.
func (d *daemon) nodeReady(ctx context.Context, s proc.State) error {
	n, err := d.client.CoreV1().Nodes().Get(ctx, s.Name, meta.GetOptions{})
	if err != nil {
		return err
	}
	for _, c := range n.Status.Conditions {
		if c.Type == core.NodeReady && c.Status == core.ConditionTrue && !c.LastHeartbeatTime.Time.Before(s.Since.Truncate(time.Second)) {
			return nil
		}
	}
	return fmt.Errorf("node %s is not ready; see %s", s.Name, filepath.Join(d.inst.Logs(), s.Name+"-kubelet.log"))
}

// poll calls f until it succeeds; at the end of ctx it returns f's last error.
func poll(ctx context.Context, f func(context.Context) error) error {
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}
