package kube

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
)

// Events writes warnings about one pod into its namespace. Like ones are counted up rather than written anew, and a
// source that repeats itself is held back, as Kubernetes' own components do. Safe for concurrent use; it never blocks.
type Events struct {
	recorder record.EventRecorder
	about    *corev1.ObjectReference
}

// Events returns a writer of events about the named pod. It stops with ctx.
func (c *Cluster) Events(ctx context.Context, namespace, pod, component string) *Events {
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: c.Client.CoreV1().Events(namespace)})
	context.AfterFunc(ctx, broadcaster.Shutdown)
	return &Events{
		recorder: broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: component}),
		about:    &corev1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: namespace, Name: pod},
	}
}

// Warn records an event of type Warning.
func (e *Events) Warn(reason, message string) {
	e.recorder.Event(e.about, corev1.EventTypeWarning, reason, message)
}
