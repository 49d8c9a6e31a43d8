// Package control is the control plane of one mesh: it builds the tables in the order in which data flows and runs the
// servers around them. What a mesh means is decided below it.
package control

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/inject"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/obs"
	"github.com/heddle-mesh/heddle/internal/xds"
)

const caSecret = "istio-ca-secret"

// Options is everything a plane is told from outside. The zero addresses work.
type Options struct {
	Mesh      mesh.ID
	Revision  string // "default" has no suffix in names
	Namespace string // the mesh's system namespace
	PodName   string
	Cluster   mesh.ClusterID // as proxies carry it in CLUSTER_ID

	APIVersion   string   // the Istio API level, v1.30.3: what version columns show
	ServingNames []string // further DNS names of the serving certificate
	Kubeconfig   string   // empty: the service account of the pod
	SigningDir   string   // where Secret cacerts is mounted

	SecureAddr       string // xDS and CA, TLS
	HTTPSAddr        string // webhooks, TLS
	MonitoringAddr   string
	HTTPAddr         string        // readiness
	MaxConnectionAge time.Duration // so that proxies spread over new replicas; 0: 30 min

	// OpenWait bounds how long the servers stay closed at a start for the watches of all members: a namespace whose rights
	// are broken must not keep the rest of the mesh from its control plane. What proxies hold of it they keep, see
	// xds.Server.Partial. 0: 10 s.
	OpenWait time.Duration

	Log   *slog.Logger
	Level *obs.Level // of Log; nil: setting it has no effect
}

func (o *Options) defaults() error {
	set := func(p *string, v string) {
		if *p == "" {
			*p = v
		}
	}
	set(&o.Revision, "default")
	set((*string)(&o.Cluster), "Kubernetes")
	set(&o.APIVersion, "v1.30.3")
	set(&o.SigningDir, "/etc/cacerts")
	set(&o.SecureAddr, ":15012")
	set(&o.HTTPSAddr, ":15017")
	set(&o.MonitoringAddr, ":15014")
	set(&o.HTTPAddr, ":8080")
	o.MaxConnectionAge = cmp.Or(o.MaxConnectionAge, 30*time.Minute)
	o.OpenWait = cmp.Or(o.OpenWait, 10*time.Second)
	o.Level = cmp.Or(o.Level, &obs.Level{})
	var faults []error
	if o.Mesh == "" {
		faults = append(faults, errors.New("no mesh is named: set HEDDLE_MESH to the name of the Istio object"))
	}
	if o.Namespace == "" {
		faults = append(faults, errors.New("no system namespace is named: set POD_NAMESPACE"))
	}
	return errors.Join(faults...)
}

// suffix is what names of the revision's objects end with.
func (o Options) suffix() string {
	if o.Revision == "default" {
		return ""
	}
	return "-" + o.Revision
}

// Run serves the mesh until ctx ends. It returns early only with an error that a restart may heal.
func Run(ctx context.Context, o Options) error {
	if err := o.defaults(); err != nil {
		return err
	}
	cluster, err := kube.Open(o.Kubeconfig, o.Cluster, o.Mesh, o.Log)
	if err != nil {
		return err
	}
	tasks, running := errgroup.WithContext(ctx)
	p := &plane{Options: o, cluster: cluster, registry: obs.Registry(), tasks: tasks}
	p.labelled = prometheus.WrapRegistererWith(prometheus.Labels{"mesh": string(o.Mesh)}, p.registry)
	err = p.serveHealth(running)
	if err == nil {
		err = p.start(running)
	}
	if err != nil {
		tasks.Go(func() error { return err })
	}
	if err = tasks.Wait(); ctx.Err() == nil || !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// plane is one running control plane.
type plane struct {
	Options
	cluster  *kube.Cluster
	registry *prometheus.Registry
	labelled prometheus.Registerer // the same; what is registered here says which mesh it is about
	tasks    *errgroup.Group
	ready    atomic.Bool
	debug    atomic.Pointer[debug] // nil until there is something to show
	gate     *identity.Gate
}

// start brings the plane up in the order in which data flows, and opens the servers when there is something to serve.
func (p *plane) start(ctx context.Context) error {
	config := newConfig(p.Options)
	for _, name := range []string{config.meshName(), config.injectorName()} {
		hold(ctx, p, kube.ConfigMaps.Named(name), p.Namespace, config)
	}
	p.Log.LogAttrs(ctx, slog.LevelInfo, "waiting for settings", slog.String("namespace", p.Namespace),
		slog.String("mesh config", config.meshName()), slog.String("injector config", config.injectorName()))
	settings, err := config.first(ctx)
	if err != nil {
		return err
	}
	trustDomain := settings.MeshConfig().GetTrustDomain()
	if trustDomain == "" {
		trustDomain = mesh.DefaultTrustDomain
	}
	authority, err := p.authority(ctx, trustDomain)
	if err != nil {
		return err
	}
	events := p.cluster.Events(ctx, p.Namespace, "istiod"+p.suffix())
	p.followSigning(ctx, authority, events)
	if err := p.writeRoot(ctx, authority.Roots(), events); err != nil {
		return err
	}

	g := graph.New(graph.Options{Log: p.Log})
	pipeline := NewPipeline(g, p.Options)
	config.feed(pipeline.Sources)
	pipeline.Roots.Set(p.Mesh, authority.Roots())

	var server *xds.Server
	members := newMembers(ctx, p.Log, p.cluster, g, pipeline.Sources, authority.Roots(), func(k mesh.NamespaceKey) {
		server.Close(inNamespace(k), errLeft(k.Name, p.Mesh))
	})
	pods := newPods(pipeline)
	refused := newRefusals(p.Log, p.labelled, events)
	p.gate = &identity.Gate{
		Audience: mesh.Audience(p.Namespace, p.Mesh), AcceptShared: settings.Audience() == mesh.SharedAudience,
		RootNamespace: p.Namespace, TrustDomain: trustDomain, Home: p.Cluster,
		Clusters: home{p.cluster}, Members: toldMembers{members, pipeline.Trusted.Table}, Pods: pods, Refused: refused.note,
	}
	d := &debug{
		options: p.Options, pipeline: pipeline, meters: g.Meters,
		admin: &obs.Admin{Log: p.Log, Level: p.Level, Profiling: config.profiling},
	}
	admission := &clients{rejected: refused.rejected, gate: p.gate, pipeline: pipeline, debug: d}
	server = xds.NewServer(xds.Options{
		Log: p.Log, Types: pushOrder, Admit: admission.admit, Latest: func() uint64 { return uint64(g.Changed()) }, ControlPlane: p.identifier(),
	})
	d.server = server
	p.labelled.MustRegister(&metrics{
		options: p.Options, began: time.Now(), server: server, meters: g.Meters, members: members, signerEnd: authority.NotAfter,
	})

	g.OnPublish(func(rev graph.Rev) {
		// Before what they hold goes: a pod that is deleted by force may live on for a while, and keeps what it has.
		if uids := gonePods(pipeline.Sources.Pods.Changed(), members); uids != nil {
			server.Close(ofPods(uids), errDeleted)
		}
		server.Publish(uint64(rev), pipeline.Changes(), sessions(pipeline.Moved())...)
		pods.wake()
		server.Partial(len(members.awaited.All()) > 0) // after what was awaited is published
	})
	p.tasks.Go(func() error { return g.Run(ctx) })
	p.tasks.Go(func() error { return server.Run(ctx) })

	if err := p.open(ctx, members, pipeline, cmp.Or(settings.MeshConfig().GetRootNamespace(), p.Namespace)); err != nil {
		return err
	}
	if err := g.WaitRev(ctx, g.Staged()); err != nil {
		return err
	}
	serving := authority.Serving(identity.ServingNames(p.Namespace, p.Revision, p.ServingNames...), time.Now)
	if err := p.serveGRPC(ctx, serving, server, &identity.Service{
		Authority: authority, Gate: p.gate, Checks: identity.CAChecks(), Now: time.Now, Log: p.Log,
	}); err != nil {
		return err
	}
	if err := p.serveWebhooks(ctx, serving, inject.Handler(inject.Options{
		Params: config.params, Members: members, Registerer: p.labelled, Log: p.Log,
	})); err != nil {
		return err
	}
	p.debug.Store(d)
	p.ready.Store(true)
	p.Log.LogAttrs(ctx, slog.LevelInfo, "serving", slog.String("mesh", string(p.Mesh)), slog.String("rev", p.Revision))
	return nil
}

// writeRoot writes the mesh's root into the system namespace. Where another control plane has written its own, as one without
// selectors does in all namespaces, that is said, and tried again for as long as it stands: the mesh's proxies have our root
// from their certificates, and are served meanwhile.
func (p *plane) writeRoot(ctx context.Context, roots string, events *kube.Events) error {
	err := p.cluster.WriteRoot(ctx, p.Namespace, roots)
	if !errors.Is(err, kube.ErrForeignRoot) {
		return err
	}
	p.Log.LogAttrs(ctx, slog.LevelWarn, "serving though the mesh's root is not where new pods look for it", slog.Any("err", err))
	events.Warn("ForeignRoot", err.Error())
	p.tasks.Go(func() error {
		for wait := retryFirst; err != nil; wait = min(2*wait, retryMost) {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(wait):
			}
			err = p.cluster.WriteRoot(ctx, p.Namespace, roots)
		}
		p.Log.LogAttrs(ctx, slog.LevelInfo, "the mesh's root is written", slog.String("namespace", p.Namespace))
		return nil
	})
	return nil
}

// hold follows a kind for as long as the plane runs.
func hold[T any, P kube.Object[T]](ctx context.Context, p *plane, kind kube.Kind[P], namespace string, sink kube.Sink[P]) *kube.Watch {
	w := kube.Follow(ctx, p.cluster, kind, namespace, sink)
	p.tasks.Go(func() error {
		<-ctx.Done()
		w.Stop()
		return nil
	})
	return w
}

// open starts the watches and waits for them: as long as it takes for the memberships, and for the system namespace and
// the root namespace, whose policies make all the mesh safer; for the other members up to OpenWait.
func (p *plane) open(ctx context.Context, members *members, pipeline *Pipeline, root string) error {
	nodes := hold(ctx, p, kube.Nodes, metav1.NamespaceAll, pipeline.Sources.Nodes)
	memberships := kube.Follow(ctx, p.cluster, kube.Memberships, p.Namespace, members)
	p.tasks.Go(func() error {
		<-ctx.Done()
		memberships.Stop()
		members.Close()
		return nil
	})
	for _, w := range []*kube.Watch{nodes, memberships} {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.Synced():
		}
	}
	p.Log.LogAttrs(ctx, slog.LevelInfo, "waiting for the namespaces whose policies are for all", slog.String("system", p.Namespace), slog.String("root", root))
	for _, namespace := range []string{p.Namespace, root} {
		if err := members.Read(ctx, namespace); err != nil {
			return err
		}
	}
	bounded, cancel := context.WithTimeout(ctx, p.OpenWait)
	defer cancel()
	if err := members.Opened(bounded); err != nil && ctx.Err() == nil {
		p.Log.LogAttrs(ctx, slog.LevelWarn, "serving though not every member namespace can be read; what proxies hold of those that were is kept",
			slog.Any("namespaces", members.unread()))
	}
	return ctx.Err()
}

// secretStore keeps the mesh's own root in its Secret; it implements identity.Store.
type secretStore struct {
	cluster   *kube.Cluster
	namespace string
}

func (s secretStore) Load(ctx context.Context) (map[string][]byte, error) {
	secret, err := s.cluster.Secret(ctx, s.namespace, caSecret)
	if err != nil || secret == nil {
		return nil, err
	}
	return secret.Data, nil
}

func (s secretStore) Create(ctx context.Context, data map[string][]byte) error {
	created, err := s.cluster.CreateSecret(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: caSecret},
		Type:       "istio.io/ca-root",
		Data:       data,
	})
	if err == nil && !created {
		return identity.ErrExists
	}
	return err
}

// home knows the one cluster of this plane; it implements identity.Clusters.
type home struct{ cluster *kube.Cluster }

func (h home) Tokens(id mesh.ClusterID) (identity.TokenChecker, bool) {
	return h.cluster, id == h.cluster.ID
}

func inNamespace(k mesh.NamespaceKey) func(*xds.Session) bool {
	return func(s *xds.Session) bool {
		c, ok := s.Meta.(*client)
		return ok && c.caller.Cluster == k.Cluster && c.caller.Identity.Namespace == k.Name
	}
}

func ofPods(uids map[string]bool) func(*xds.Session) bool {
	return func(s *xds.Session) bool {
		c, ok := s.Meta.(*client)
		return ok && uids[c.caller.PodUID]
	}
}
