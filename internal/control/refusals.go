package control

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/kube"
)

// refusals tells the mesh's own people why callers were refused; the callers hear one opaque text.
type refusals struct {
	log    *slog.Logger
	count  *prometheus.CounterVec
	events *kube.Events
}

func newRefusals(log *slog.Logger, registry prometheus.Registerer, events *kube.Events) *refusals {
	r := &refusals{log: log, events: events, count: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "heddle_refused_calls_total", Help: "Calls to CA and xDS that were refused, by the check that refused them.",
	}, []string{"service", "check"})}
	registry.MustRegister(r.count)
	return r
}

// note is identity.Gate.Refused.
func (r *refusals) note(ctx context.Context, f identity.Refusal) {
	r.count.WithLabelValues(f.Service, f.Check).Inc()
	r.log.LogAttrs(ctx, slog.LevelWarn, "call refused", slog.String("service", f.Service), slog.String("check", f.Check),
		slog.String("reason", f.Reason), slog.String("peer", f.Peer),
		slog.String("namespace", f.Namespace), slog.String("account", f.Account), slog.String("pod", f.Pod))
	r.events.Warn("CallRefused", fmt.Sprintf("refused a call to %s by service account %q of namespace %q: %s", f.Service, f.Account, f.Namespace, f.Reason))
}
