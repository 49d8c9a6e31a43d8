package kube

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
)

// Events writes warnings about one Deployment into its namespace. Like ones are counted up rather than written anew, and a
// source that repeats itself is held back, as Kubernetes' own components do. Safe for concurrent use; it never blocks.
type Events struct {
	recorder record.EventRecorder
	about    *corev1.ObjectReference
}

// Events returns a writer of events about the named Deployment, which is their source too. It stops with ctx.
func (c *Cluster) Events(ctx context.Context, namespace, deployment string) *Events {
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	broadcaster.StartRecordingToSink(eventSink{ctx, c, namespace})
	context.AfterFunc(ctx, broadcaster.Shutdown)
	return &Events{
		recorder: broadcaster.NewRecorder(c.scheme, corev1.EventSource{Component: deployment}),
		about:    &corev1.ObjectReference{Kind: "Deployment", APIVersion: "apps/v1", Namespace: namespace, Name: deployment},
	}
}

// Warn records an event of type Warning.
func (e *Events) Warn(reason, message string) {
	e.recorder.Event(e.about, corev1.EventTypeWarning, reason, message)
}

// eventSink implements record.EventSink for one namespace.
type eventSink struct {
	ctx       context.Context // its methods are called without one
	cluster   *Cluster
	namespace string
}

func (s eventSink) Create(e *corev1.Event) (*corev1.Event, error) {
	out := &corev1.Event{}
	err := s.cluster.core().Post().Namespace(s.namespace).Resource("events").Body(e).Do(s.ctx).Into(out)
	return out, err
}

func (s eventSink) Update(e *corev1.Event) (*corev1.Event, error) {
	out := &corev1.Event{}
	err := s.cluster.core().Put().Namespace(s.namespace).Resource("events").Name(e.Name).Body(e).Do(s.ctx).Into(out)
	return out, err
}

func (s eventSink) Patch(old *corev1.Event, patch []byte) (*corev1.Event, error) {
	out := &corev1.Event{}
	err := s.cluster.core().Patch(types.StrategicMergePatchType).Namespace(s.namespace).Resource("events").Name(old.Name).
		Body(patch).Do(s.ctx).Into(out)
	return out, err
}
