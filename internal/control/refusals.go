package control

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/kube"
)

// refusals tells the mesh's own people why callers were refused (the callers hear one opaque text), and what proxies
// would not take.
type refusals struct {
	log              *slog.Logger
	calls, responses *prometheus.CounterVec
	events           *kube.Events
}

func newRefusals(log *slog.Logger, registry prometheus.Registerer, events *kube.Events) *refusals {
	r := &refusals{
		log: log, events: events,
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "heddle_refused_calls_total", Help: "Calls to CA and xDS that were refused, by the check that refused them.",
		}, []string{"service", "check"}),
		responses: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "heddle_rejected_responses_total", Help: "Discovery responses that proxies rejected, by type.",
		}, []string{"type"}),
	}
	registry.MustRegister(r.calls, r.responses)
	return r
}

// note is identity.Gate.Refused.
func (r *refusals) note(ctx context.Context, f identity.Refusal) {
	r.calls.WithLabelValues(f.Service, f.Check).Inc()
	r.log.LogAttrs(ctx, slog.LevelWarn, "call refused", slog.String("service", f.Service), slog.String("check", f.Check),
		slog.String("reason", f.Reason), slog.String("peer", f.Peer),
		slog.String("namespace", f.Namespace), slog.String("account", f.Account), slog.String("pod", f.Pod))
	r.events.Warn("CallRefused", fmt.Sprintf("refused a call to %s by service account %q of namespace %q: %s", f.Service, f.Account, f.Namespace, f.Reason))
}

// rejection is a discovery response that a proxy would not take, in Envoy's words, and the objects that it came from.
type rejection struct {
	client, typeURL, version, detail string
	origins                          []string
}

// rejected is clients.rejected.
func (r *refusals) rejected(ctx context.Context, x rejection) {
	r.responses.WithLabelValues(x.typeURL).Inc()
	r.log.LogAttrs(ctx, slog.LevelWarn, "client rejected resources", slog.String("client", x.client), slog.String("type", x.typeURL),
		slog.String("version", x.version), slog.String("detail", x.detail), slog.Any("ref", x.origins))
	r.events.Warn("ConfigRejected", fmt.Sprintf("the proxy of %s keeps what it had and rejects a change of %s: %s",
		x.client, strings.Join(x.origins, ", "), x.detail))
}
