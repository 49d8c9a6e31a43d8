package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

const (
	// A binding is in force some milliseconds after it is written; until then a list is refused.
	forbiddenFirst = 20 * time.Millisecond
	forbiddenMost  = time.Second
)

// Object is a pointer to an API object of type T.
type Object[T any] interface {
	*T
	metav1.Object
	runtime.Object
}

// Sink takes the objects of one kind; *graph.Source is one. Calls for one namespace come one after the other.
type Sink[P any] interface {
	Set(mesh.ObjectKey, P)
	Delete(mesh.ObjectKey)
	Replace(rows []graph.Row[mesh.ObjectKey, P], owned func(mesh.ObjectKey) bool)
}

// Kind says how to read one kind and what of it is worth keeping.
type Kind[P any] struct {
	gv       schema.GroupVersion
	resource string
	name     string // only the object of this name, if set
	trim     func(P)
	empty    P
}

// The kinds that a plane reads. What is trimmed is never needed by ingest; fields that the plane writes itself are
// trimmed too, so that its own writes start no round.
var (
	Services            = Kind[*corev1.Service]{corev1.SchemeGroupVersion, "services", "", trimService, &corev1.Service{}}
	EndpointSlices      = Kind[*discoveryv1.EndpointSlice]{discoveryv1.SchemeGroupVersion, "endpointslices", "", trimSlice, &discoveryv1.EndpointSlice{}}
	Pods                = Kind[*corev1.Pod]{corev1.SchemeGroupVersion, "pods", "", trimPod, &corev1.Pod{}}
	Nodes               = Kind[*corev1.Node]{corev1.SchemeGroupVersion, "nodes", "", trimNode, &corev1.Node{}}
	PeerAuthentications = Kind[*securityv1.PeerAuthentication]{securityv1.SchemeGroupVersion, "peerauthentications", "", trimPeerAuthentication, &securityv1.PeerAuthentication{}}
	DestinationRules    = Kind[*networkingv1.DestinationRule]{networkingv1.SchemeGroupVersion, "destinationrules", "", trimDestinationRule, &networkingv1.DestinationRule{}}
	Memberships         = Kind[*heddlev1alpha1.Membership]{heddlev1alpha1.GroupVersion, "memberships", "", trimMembership, &heddlev1alpha1.Membership{}}
	ConfigMaps          = Kind[*corev1.ConfigMap]{corev1.SchemeGroupVersion, "configmaps", "", trimConfigMap, &corev1.ConfigMap{}}
)

// Named narrows a kind to the one object of that name in each namespace.
func (k Kind[P]) Named(name string) Kind[P] {
	k.name = name
	return k
}

// Watch follows one kind in one namespace.
type Watch struct {
	synced chan struct{}
	done   chan struct{}
	stop   context.CancelFunc
}

// Synced is closed when the first list has been handed to the sink.
func (w *Watch) Synced() <-chan struct{} { return w.synced }

// Stop ends the watch, takes its objects out of the sink and returns when both are done. Called once ctx of Follow has
// ended it only waits: a plane that goes takes nothing back of what it has said.
func (w *Watch) Stop() {
	w.stop()
	<-w.done
}

// Follow feeds sink with the objects of kind in namespace ("" for all, or for a cluster-scoped kind) until ctx ends or
// Stop, which must be called in the end. A refused list or watch is tried again, as rights may come late. Each watch
// request ends by itself after five to ten minutes, so that a right that was taken away is not used for longer.
func Follow[T any, P Object[T]](ctx context.Context, c *Cluster, kind Kind[P], namespace string, sink Sink[P]) *Watch {
	reading, stop := context.WithCancel(ctx)
	w := &Watch{synced: make(chan struct{}), done: make(chan struct{}), stop: stop}
	store := &store[T, P]{sink: sink, kind: kind, cluster: c.ID, namespace: namespace, synced: w.synced}
	reflector := cache.NewReflectorWithOptions(lister(c, kind, namespace), kind.empty, store, cache.ReflectorOptions{
		Name:            kind.resource + "/" + namespace,
		TypeDescription: kind.resource,
	})
	go func() {
		defer close(w.done)
		reflector.RunWithContext(reading)
		if ctx.Err() == nil {
			sink.Replace(nil, store.owns)
		}
	}()
	return w
}

// lister lists and watches, waiting in a refused call rather than leaving it to the reflector, whose back-off starts at 800 ms.
func lister[P any](c *Cluster, kind Kind[P], namespace string) cache.ListerWatcher {
	base := cache.NewFilteredListWatchFromClient(c.rest[kind.gv], kind.resource, namespace, func(o *metav1.ListOptions) {
		if kind.name != "" {
			o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, kind.name).String()
		}
	})
	log := c.log.With(slog.String("resource", kind.resource), slog.String("namespace", namespace))
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return allowed(ctx, log, func() (runtime.Object, error) { return base.ListWithContextFunc(ctx, o) })
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return allowed(ctx, log, func() (watch.Interface, error) { return base.WatchFuncWithContext(ctx, o) })
		},
	}
}

// allowed calls f until it is not refused for want of rights.
func allowed[R any](ctx context.Context, log *slog.Logger, f func() (R, error)) (R, error) {
	for wait := forbiddenFirst; ; wait = min(2*wait, forbiddenMost) {
		r, err := f()
		if !apierrors.IsForbidden(err) {
			return r, err
		}
		if wait < forbiddenMost && 2*wait >= forbiddenMost { // once: later tries say nothing new
			log.LogAttrs(ctx, slog.LevelWarn, "no right to read a member namespace yet", slog.Any("err", err))
		}
		select {
		case <-ctx.Done():
			return r, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// store hands what the reflector reads to a sink. It keeps no objects of its own.
type store[T any, P Object[T]] struct {
	sink      Sink[P]
	kind      Kind[P]
	cluster   mesh.ClusterID
	namespace string
	once      sync.Once
	synced    chan struct{}
}

func (s *store[T, P]) owns(k mesh.ObjectKey) bool {
	return k.Cluster == s.cluster && (s.namespace == "" || k.Namespace == s.namespace)
}

func (s *store[T, P]) row(obj any) (graph.Row[mesh.ObjectKey, P], error) {
	o, ok := obj.(P)
	if !ok {
		return graph.Row[mesh.ObjectKey, P]{}, fmt.Errorf("watch of %s delivered a %T", s.kind.resource, obj)
	}
	s.kind.trim(o)
	return graph.Row[mesh.ObjectKey, P]{Key: mesh.ObjectKey{Cluster: s.cluster, Namespace: o.GetNamespace(), Name: o.GetName()}, Val: o}, nil
}

func (s *store[T, P]) Add(obj any) error {
	row, err := s.row(obj)
	if err == nil {
		s.sink.Set(row.Key, row.Val)
	}
	return err
}

func (s *store[T, P]) Update(obj any) error { return s.Add(obj) }

func (s *store[T, P]) Delete(obj any) error {
	row, err := s.row(obj)
	if err == nil {
		s.sink.Delete(row.Key)
	}
	return err
}

func (s *store[T, P]) Replace(objects []any, _ string) error {
	rows := make([]graph.Row[mesh.ObjectKey, P], 0, len(objects))
	var errs error
	for _, obj := range objects {
		row, err := s.row(obj)
		if err != nil {
			errs = errors.Join(errs, err)
			continue
		}
		rows = append(rows, row)
	}
	s.sink.Replace(rows, s.owns)
	s.once.Do(func() { close(s.synced) })
	return errs
}

func (s *store[T, P]) Resync() error { return nil }
