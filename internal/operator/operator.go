// Package operator is the one privileged process of a cluster: it turns Istio objects into control planes, says which
// namespace belongs to which mesh, gives each control plane rights in its members only, and alone writes the webhook
// configurations that bring pods and Istio objects to it.
package operator

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/go-logr/logr"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/obs"
)

// Options say where the operator runs. Config, Images and Version are required.
type Options struct {
	Config    *rest.Config
	Images    Images
	Version   string // of this build
	Namespace string // the operator's own; heddle-system if empty
	Log       *slog.Logger
	Level     *obs.Level // of Log; nil: setting it has no effect

	// NoLease runs without leader election: for a process outside the cluster that is the only one.
	NoLease bool
	// WebhookURL is what the API server shall call instead of the operator's Service, which has no endpoint if the operator
	// runs outside the cluster: https://10.0.0.1:9443/validate.
	WebhookURL string
	// Dial reaches Services of the cluster by name, as net.Dialer does from inside it.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// WebhookPort, HealthPort: 9443 and 8081 if 0. Negative turns health off.
	WebhookPort, HealthPort int
}

// Run runs the operator until ctx ends or its lease is lost.
func Run(ctx context.Context, o Options) error {
	if o.Namespace == "" {
		o.Namespace = Namespace
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Level == nil {
		o.Level = &obs.Level{}
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{}).DialContext
	}
	if o.WebhookPort == 0 {
		o.WebhookPort = webhookPort
	}
	if o.HealthPort == 0 {
		o.HealthPort = healthPort
	}
	health := "0"
	if o.HealthPort > 0 {
		health = ":" + strconv.Itoa(o.HealthPort)
	}
	scheme, err := Scheme()
	if err != nil {
		return fmt.Errorf("register kinds: %w", err)
	}
	host := operatorName + "." + o.Namespace + ".svc"
	probeHost, probePort := host, "443"
	if o.WebhookURL != "" {
		if probeHost, probePort, err = splitURL(o.WebhookURL); err != nil {
			return err
		}
		host = probeHost
	}
	cert := &certificate{namespace: o.Namespace, host: host, now: time.Now, ready: make(chan struct{})}
	cached, err := cacheOptions(o.Namespace)
	if err != nil {
		return err
	}
	mgr, err := manager.New(o.Config, manager.Options{
		Scheme: scheme, Logger: logr.FromSlogHandler(o.Log.Handler()), Cache: cached,
		Metrics: server.Options{BindAddress: "0"}, HealthProbeBindAddress: health,
		LeaderElection: !o.NoLease, LeaderElectionID: operatorName, LeaderElectionNamespace: o.Namespace,
		LeaderElectionReleaseOnCancel: true,
		LeaseDuration:                 new(15 * time.Second), RenewDeadline: new(10 * time.Second), RetryPeriod: new(2 * time.Second),
		WebhookServer: webhook.NewServer(webhook.Options{Port: o.WebhookPort, TLSOpts: []func(*tls.Config){func(c *tls.Config) {
			c.GetCertificate = cert.Get
		}}}),
	})
	if err != nil {
		return fmt.Errorf("start the operator: %w", err)
	}
	cert.client, cert.live = mgr.GetClient(), mgr.GetAPIReader()
	mgr.GetWebhookServer().Register("/validate", &admission.Webhook{
		Handler: &admit{live: mgr.GetAPIReader(), reviews: mgr.GetClient(), decoder: admission.NewDecoder(scheme), namespace: o.Namespace},
	})
	served, err := newPages(ctx, o, mgr.GetAPIReader())
	if err != nil {
		return fmt.Errorf("serve the operator's pages: %w", err)
	}
	mgr.GetWebhookServer().Register(PagesPath, served)
	if err := mgr.AddReadyzCheck("webhook", func(req *http.Request) error {
		select {
		case <-cert.ready:
			return mgr.GetWebhookServer().StartedChecker()(req)
		default:
			return errors.New("no certificate yet")
		}
	}); err != nil {
		return fmt.Errorf("add the readiness check: %w", err)
	}
	w := wiring{mgr: mgr, o: o, cert: cert, host: probeHost, port: probePort}
	if err := errors.Join(w.indexes(ctx), w.controllers()); err != nil {
		return fmt.Errorf("set up the controllers: %w", err)
	}
	return mgr.Start(ctx)
}

// cacheOptions narrow what the operator keeps in memory to what it looks at: of most kinds only its own objects.
func cacheOptions(namespace string) (cache.Options, error) {
	ours, err := labels.NewRequirement(labelMesh, selection.Exists, nil)
	if err != nil {
		return cache.Options{}, err
	}
	own := cache.ByObject{Label: labels.NewSelector().Add(*ours)}
	return cache.Options{
		DefaultTransform: cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			&appsv1.Deployment{}: own, &corev1.Service{}: own, &corev1.ServiceAccount{}: own,
			&autoscalingv2.HorizontalPodAutoscaler{}: own, &policyv1.PodDisruptionBudget{}: own,
			&rbacv1.RoleBinding{}: own, &rbacv1.ClusterRoleBinding{}: own,
			&admissionv1.MutatingWebhookConfiguration{}: own, &admissionv1.ValidatingWebhookConfiguration{}: own,
			&corev1.ConfigMap{}: {Namespaces: map[string]cache.Config{
				namespace:           {FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, selectorsName)},
				cache.AllNamespaces: {LabelSelector: own.Label}, // all others
			}},
			&corev1.Pod{}: {Field: fields.OneTermNotEqualSelector("status.phase", string(corev1.PodSucceeded))},
			&corev1.Secret{}: {Namespaces: map[string]cache.Config{namespace: {
				FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, certificateName),
			}}},
		},
	}, nil
}

// wiring builds the controllers on one manager.
type wiring struct {
	mgr  manager.Manager
	o    Options
	cert *certificate
	host string // where the operator's own webhook is reached
	port string
}

func (w wiring) indexes(ctx context.Context) error {
	add := func(o client.Object, name string, f client.IndexerFunc) error {
		return w.mgr.GetFieldIndexer().IndexField(ctx, o, name, f)
	}
	pod, namespace := metadataOf(podKind), metadataOf(corev1.SchemeGroupVersion.WithKind(namespaceKind))
	return errors.Join(
		add(pod, byInjected, podInjected), add(pod, byAsks, podAsks), add(namespace, byRefers, namespaceRefers),
		add(namespace, byLabel, namespaceLabels), add(&heddlev1alpha1.Membership{}, byMesh, meshLabel), add(&rbacv1.RoleBinding{}, byMesh, meshLabel),
		add(&heddlev1alpha1.Membership{}, byName, func(o client.Object) []string { return []string{o.GetName()} }),
	)
}

// controllers, in the order in which a mesh meets them.
func (w wiring) controllers() error {
	c, live, version := w.mgr.GetClient(), w.mgr.GetAPIReader(), w.o.Version
	recorder := w.mgr.GetEventRecorder(operatorName)
	dial := prober{dial: w.o.Dial, port: "443"}
	roots, err := w.follow("root ConfigMaps", cache.Options{DefaultFieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, rootName)})
	if err != nil {
		return err
	}
	selector, err := sail()
	if err != nil {
		return err
	}
	others, err := w.follow("other operators", cache.Options{DefaultLabelSelector: selector})
	if err != nil {
		return err
	}
	selectors, err := w.follow("the meshes' selectors", cache.Options{
		DefaultNamespaces: map[string]cache.Config{w.o.Namespace: {}}, DefaultFieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, selectorsName),
	})
	if err != nil {
		return err
	}
	claimed := &table{client: c}
	return errors.Join(
		w.istios(&istios{
			client: c, live: live, rivals: &rivals{deployments: others, reviews: c, now: time.Now}, table: claimed, version: version, namespace: w.o.Namespace, events: recorder,
		}, others, selectors),
		w.revisions(&revisions{
			client: c, live: live, images: w.o.Images, version: version, namespace: w.o.Namespace, log: w.o.Log, prober: dial, now: time.Now,
		}, roots),
		w.memberships(&membership{
			client: c, live: live, table: claimed, images: w.o.Images, log: w.o.Log, events: recorder, now: time.Now, leaving: map[types.UID]time.Time{},
		}),
		w.tags(&tags{client: c, live: live, images: w.o.Images}),
		w.usage(&usage{client: c}),
		w.certificates(&register{
			client: c, live: live, namespace: w.o.Namespace, url: w.o.WebhookURL, host: w.host, prober: prober{dial: w.o.Dial, port: w.port},
		}),
	)
}

// follow is a cache of objects that the main cache leaves out.
func (w wiring) follow(what string, o cache.Options) (cache.Cache, error) {
	o.Scheme, o.Mapper, o.DefaultTransform = w.mgr.GetScheme(), w.mgr.GetRESTMapper(), cache.TransformStripManagedFields()
	c, err := cache.New(w.o.Config, o)
	if err != nil {
		return nil, fmt.Errorf("follow %s: %w", what, err)
	}
	return c, w.mgr.Add(c)
}

// to sends an event to one key that the object names.
func to(f func(client.Object) string) handler.EventHandler {
	return handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
		if name := f(o); name != "" {
			return []reconcile.Request{{NamespacedName: types.NamespacedName{Name: name}}}
		}
		return nil
	})
}

func ofMesh(o client.Object) string { return o.GetLabels()[labelMesh] }

// labelsChange passes what may move a namespace or pod: its labels and annotations, its beginning and its end.
func labelsChange() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		return !equality.Semantic.DeepEqual(e.ObjectOld.GetLabels(), e.ObjectNew.GetLabels()) ||
			!equality.Semantic.DeepEqual(e.ObjectOld.GetAnnotations(), e.ObjectNew.GetAnnotations()) ||
			(e.ObjectOld.GetDeletionTimestamp() == nil) != (e.ObjectNew.GetDeletionTimestamp() == nil)
	}}
}

// specChange passes what a user may have changed, not a status.
func specChange() predicate.Predicate {
	return predicate.Or(predicate.GenerationChangedPredicate{}, labelsChange())
}

// autoscalerChange passes what a user may have changed of an autoscaler, which has no generation and a new status every
// quarter of a minute.
func autoscalerChange() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		old, now := e.ObjectOld.(*autoscalingv2.HorizontalPodAutoscaler), e.ObjectNew.(*autoscalingv2.HorizontalPodAutoscaler)
		return !equality.Semantic.DeepEqual(old.Spec, now.Spec)
	}}
}

// existence passes the beginning and the end of objects, not their changes.
func existence() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(event.UpdateEvent) bool { return false }}
}

func (w wiring) build(name string) *builder.Builder {
	return builder.ControllerManagedBy(w.mgr).Named(name).WithOptions(controller.Options{
		// A probe or a racing write is tried again soon; nothing here is worth waiting longer than this for.
		RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](20*time.Millisecond, 10*time.Second),
	})
}

// pending is what has not happened yet and sends no event when it does: look again after the given time.
type pending struct {
	error
	after time.Duration
}

func (p pending) Unwrap() error { return p.error }

// again calls a reconciler once more, without a word in the log, after a conflict (the cache that it read lags behind) and
// while something is pending.
type again struct{ reconcile.Reconciler }

// Reconcile is reconcile.Reconciler's.
func (a again) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	result, err := a.Reconciler.Reconcile(ctx, req)
	var p pending
	switch {
	case apierrors.IsConflict(err):
		return reconcile.Result{RequeueAfter: 10 * time.Millisecond}, nil
	case errors.As(err, &p):
		return reconcile.Result{RequeueAfter: p.after}, nil
	}
	return result, err
}

func namespaces() client.Object { return metadataOf(corev1.SchemeGroupVersion.WithKind(namespaceKind)) }

// istios follows what changes an Istio or a finding about it, Deployments of other operators, and the ConfigMap of selectors.
func (w wiring) istios(r *istios, others, selectors cache.Cache) error {
	// Of an update, both are looked at: it matters to the meshes that select the namespace, before or after.
	self := func(_ context.Context, ns client.Object) (mesh.Namespace, error) {
		return mesh.Namespace{Name: ns.GetName(), Labels: ns.GetLabels()}, nil
	}
	member := func(ctx context.Context, o client.Object) (mesh.Namespace, error) {
		return r.table.namespace(ctx, o.(*heddlev1alpha1.Membership).Spec.Namespace)
	}
	every := r.table.toMeshes(func(mesh.Mesh, client.Object) bool { return true })
	// A mesh whose line is not as it should be writes it again, and one that is gone takes it back.
	differs := handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
		claims, err := r.table.now(ctx)
		if err != nil {
			return nil // the cache is stopping
		}
		data, out := o.(*corev1.ConfigMap).Data, map[string]bool{}
		for name := range data {
			if _, ok := claims.Mesh(mesh.ID(name)); !ok && nameFits(name) {
				out[name] = true
			}
		}
		for _, m := range claims.Meshes() {
			if data[string(m.ID)] != selectorLines(m) {
				out[string(m.ID)] = true
			}
		}
		return requestsOf(out)
	})
	lost := r.table.toMeshes(func(m mesh.Mesh, _ client.Object) bool { return selectorLines(m) != "" })
	lines := handler.Funcs{CreateFunc: differs.Create, UpdateFunc: differs.Update, DeleteFunc: lost.Delete}
	return w.build("istio").
		For(&sailv1.Istio{}, builder.WithPredicates(specChange())).
		Owns(&sailv1.IstioRevision{}).
		Watches(&sailv1.Istio{}, (&edits{table: r.table}).toIstios(), builder.WithPredicates(specChange())).
		Watches(&heddlev1alpha1.Membership{}, r.table.toInterested(member), builder.WithPredicates(existence())).
		WatchesMetadata(namespaces(), r.table.toInterested(self), builder.WithPredicates(labelsChange())).
		WatchesRawSource(source.Kind[client.Object](others, &appsv1.Deployment{}, every, specChange())).
		WatchesRawSource(source.Kind[client.Object](selectors, &corev1.ConfigMap{}, lines)).
		Complete(again{r})
}

func (w wiring) revisions(r *revisions, roots cache.Cache) error {
	home := func(namespace func(client.Object) string) handler.EventHandler { // the revision whose system namespace it is
		return handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
			var list sailv1.IstioRevisionList
			if err := r.client.List(ctx, &list); err != nil {
				return nil // the cache is stopping
			}
			names := map[string]bool{}
			for _, rev := range list.Items {
				if rev.Spec.Namespace == namespace(o) {
					names[rev.Name] = true
				}
			}
			return requestsOf(names)
		})
	}
	// A member's comings and goings matter to its revision only when that goes itself, or gives up its rights in all namespaces.
	member := handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
		key := client.ObjectKey{Name: ofMesh(o)}
		rev, cluster := &sailv1.IstioRevision{}, metadataOf(rbacv1.SchemeGroupVersion.WithKind("ClusterRoleBinding"))
		if r.client.Get(ctx, key, rev) != nil {
			return nil
		}
		if rev.DeletionTimestamp != nil || o.GetName() == roleSystem ||
			r.client.Get(ctx, client.ObjectKey{Name: roleMember + "-" + rev.Name}, cluster) == nil {
			return []reconcile.Request{{NamespacedName: key}}
		}
		return nil
	})
	root := metadataOf(corev1.SchemeGroupVersion.WithKind("ConfigMap"))
	return w.build("revision").
		For(&sailv1.IstioRevision{}, builder.WithPredicates(specChange())).
		Owns(&appsv1.Deployment{}).
		Owns(&corev1.Service{}, builder.OnlyMetadata).
		Owns(&corev1.ServiceAccount{}, builder.OnlyMetadata).
		Owns(&corev1.ConfigMap{}, builder.OnlyMetadata).
		Owns(&autoscalingv2.HorizontalPodAutoscaler{}, builder.WithPredicates(autoscalerChange())).
		Owns(&policyv1.PodDisruptionBudget{}, builder.OnlyMetadata, builder.WithPredicates(specChange())).
		Owns(&admissionv1.MutatingWebhookConfiguration{}).
		Owns(&admissionv1.ValidatingWebhookConfiguration{}).
		WatchesMetadata(&rbacv1.ClusterRoleBinding{}, to(ofMesh)).
		Watches(&rbacv1.RoleBinding{}, member).
		Watches(&heddlev1alpha1.Membership{}, member, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&sailv1.IstioRevisionTag{}, to(client.Object.GetName), builder.WithPredicates(existence())).
		WatchesMetadata(namespaces(), home(client.Object.GetName), builder.WithPredicates(labelsChange())).
		WatchesRawSource(source.Kind[client.Object](roots, root, home(client.Object.GetNamespace))).
		Complete(again{r})
}

func (w wiring) memberships(r *membership) error {
	self := to(client.Object.GetName)
	home := to(client.Object.GetNamespace)
	// A system namespace that is made again holds no Membership: what belonged to its mesh joins anew.
	system := r.table.toMembers(func(m mesh.Mesh, ns client.Object) bool { return m.System == ns.GetName() })
	revision := r.table.toMembers(func(m mesh.Mesh, rev client.Object) bool { return string(m.ID) == rev.GetName() })
	// Before the account of its control plane is there, a mesh gets no members.
	account := r.table.toMembers(func(m mesh.Mesh, o client.Object) bool { return string(m.ID) == ofMesh(o) })
	b := w.build("membership").
		WatchesMetadata(namespaces(), self, builder.WithPredicates(labelsChange())).
		WatchesMetadata(namespaces(), system, builder.WithPredicates(existence())).
		WatchesMetadata(&corev1.ServiceAccount{}, account, builder.WithPredicates(existence())).
		Watches(&heddlev1alpha1.Membership{}, self).
		Watches(&rbacv1.RoleBinding{}, home).
		Watches(&sailv1.Istio{}, (&edits{table: r.table}).toNamespaces(), builder.WithPredicates(specChange())).
		Watches(&sailv1.IstioRevision{}, revision, builder.WithPredicates(predicate.Or(existence(), specChange())))
	for _, k := range istioKinds() {
		if optional(k) {
			b = b.WatchesMetadata(k.metadata(), home, builder.WithPredicates(existence()))
		}
	}
	return b.Complete(again{r})
}

func (w wiring) tags(r *tags) error {
	// What is of a mesh matters to the tags that stand for it, and a revision to the tag that has its name.
	related := handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
		var list sailv1.IstioRevisionTagList
		if err := r.client.List(ctx, &list); err != nil {
			return nil // the cache is stopping
		}
		of, names := cmp.Or(ofMesh(o), o.GetName()), map[string]bool{}
		for _, tag := range list.Items {
			if of == tag.Spec.TargetRef.Name || of == tag.Status.IstioRevision || of == tag.Name {
				names[tag.Name] = true
			}
		}
		return requestsOf(names)
	})
	return w.build("tag").
		For(&sailv1.IstioRevisionTag{}, builder.WithPredicates(specChange())).
		Owns(&corev1.Service{}, builder.OnlyMetadata).
		Watches(&sailv1.Istio{}, related).
		Watches(&sailv1.IstioRevision{}, related, builder.WithPredicates(specChange())).
		Watches(&admissionv1.MutatingWebhookConfiguration{}, related).
		Watches(&admissionv1.ValidatingWebhookConfiguration{}, related).
		Complete(again{r})
}

func (w wiring) usage(r *usage) error {
	one := to(func(client.Object) string { return "all" })
	return w.build("usage").
		WatchesMetadata(metadataOf(podKind), one, builder.WithPredicates(labelsChange())).
		WatchesMetadata(namespaces(), one, builder.WithPredicates(labelsChange())).
		Watches(&sailv1.IstioRevision{}, one, builder.WithPredicates(specChange())).
		Watches(&sailv1.IstioRevisionTag{}, one).
		Complete(again{r})
}

// certificates runs in every replica; only the leader writes the configuration that points at them all.
func (w wiring) certificates(r *register) error {
	once := make(chan event.GenericEvent, 1)
	once <- event.GenericEvent{Object: &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: certificateName}}}
	self := to(client.Object.GetName)
	return errors.Join(
		builder.ControllerManagedBy(w.mgr).Named("certificate").WithOptions(controller.Options{NeedLeaderElection: new(false)}).
			Watches(&corev1.Secret{}, self).WatchesRawSource(source.Channel(once, self)).Complete(again{w.cert}),
		w.build("webhook").Watches(&corev1.Secret{}, self).Complete(again{r}),
	)
}

// splitURL returns host and port of the URL under which the API server reaches the operator.
func splitURL(text string) (host, port string, err error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" {
		return "", "", fmt.Errorf("webhook URL %q is not of the form https://HOST:PORT/validate", text)
	}
	if port = u.Port(); port == "" {
		port = "443"
	}
	return u.Hostname(), port, nil
}
