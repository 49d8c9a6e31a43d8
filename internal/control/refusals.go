package control

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/kube"
)

// refusals tells the mesh's own people why callers were refused; the callers hear one opaque text.
type refusals struct {
	log      *slog.Logger
	count    *prometheus.CounterVec
	recorder record.EventRecorder
	about    *corev1.ObjectReference
}

// newRefusals records events in the mesh's system namespace until ctx ends; the recorder limits their rate.
func newRefusals(ctx context.Context, log *slog.Logger, registry prometheus.Registerer, c *kube.Cluster, o Options) *refusals {
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: c.Client.CoreV1().Events(o.Namespace)})
	context.AfterFunc(ctx, broadcaster.Shutdown)
	r := &refusals{
		log: log,
		count: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "heddle_refused_calls_total", Help: "Calls to CA and xDS that were refused, by the check that refused them.",
		}, []string{"service", "check"}),
		recorder: broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "istiod" + o.suffix()}),
		about:    &corev1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: o.Namespace, Name: o.PodName},
	}
	registry.MustRegister(r.count)
	return r
}

// note is identity.Gate.Refused.
func (r *refusals) note(ctx context.Context, f identity.Refusal) {
	r.count.WithLabelValues(f.Service, f.Check).Inc()
	r.log.LogAttrs(ctx, slog.LevelWarn, "call refused", slog.String("service", f.Service), slog.String("check", f.Check),
		slog.String("reason", f.Reason), slog.String("peer", f.Peer),
		slog.String("namespace", f.Namespace), slog.String("account", f.Account), slog.String("pod", f.Pod))
	r.recorder.Eventf(r.about, corev1.EventTypeWarning, "CallRefused",
		"refused a call to %s by service account %q of namespace %q: %s", f.Service, f.Account, f.Namespace, f.Reason)
}
