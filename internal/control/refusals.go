package control

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// refusals tells the mesh's own people why callers were refused (the callers hear one opaque text), and what proxies
// would not take.
type refusals struct {
	log              *slog.Logger
	calls, responses *prometheus.CounterVec
	events           *kube.Events
	told             pace
}

// Refusals by one check, and rejections of one type by one stream, are told of tellBurst at once and then one each tellEvery:
// others must not write our log.
const (
	tellBurst = 20
	tellEvery = time.Second
)

// pace bounds how often something is told, by reason; reasons are few. Its zero value is ready.
type pace struct {
	mu   sync.Mutex // guards the field below
	kept map[string]*kept
}

type kept struct {
	free   time.Time // when the last of the burst is free again
	untold int
}

// allow says whether to tell, and how many were not told before.
func (p *pace) allow(reason string, now time.Time) (untold int, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.kept == nil {
		p.kept = map[string]*kept{}
	}
	k := p.kept[reason]
	if k == nil {
		k = &kept{}
		p.kept[reason] = k
	}
	if k.free.Before(now) {
		k.free = now
	}
	if k.free.Sub(now) > (tellBurst-1)*tellEvery {
		k.untold++
		return 0, false
	}
	k.free = k.free.Add(tellEvery)
	untold, k.untold = k.untold, 0
	return untold, true
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
	left, ok := r.told.allow(f.Check, time.Now())
	if !ok {
		return
	}
	r.log.LogAttrs(ctx, slog.LevelWarn, "call refused", slog.String("service", f.Service), slog.String("check", f.Check),
		slog.String("reason", f.Reason), slog.String("peer", f.Peer),
		slog.String("namespace", f.Namespace), slog.String("account", f.Account), slog.String("pod", f.Pod), slog.Int("untold", left))
	r.events.Warn("CallRefused", fmt.Sprintf("refused a call to %s by service account %q of namespace %q: %s", f.Service, f.Account, f.Namespace, f.Reason))
}

// rejection is a discovery response that a proxy would not take, in Envoy's words, and the objects that it came from.
type rejection struct {
	client, typeURL, version, detail string
	cluster                          mesh.ClusterID // of the client
	origins                          []string
	quiet                            bool // counted only
	untold                           int  // quiet ones of this type before it
}

// rejected is clients.rejected.
func (r *refusals) rejected(ctx context.Context, x rejection) {
	r.responses.WithLabelValues(x.typeURL).Inc()
	if x.quiet {
		return
	}
	r.log.LogAttrs(ctx, slog.LevelWarn, "client rejected resources", slog.String("client", x.client), slog.String("cluster", string(x.cluster)), slog.String("type", x.typeURL),
		slog.String("version", x.version), slog.String("detail", x.detail), slog.Any("ref", x.origins), slog.Int("untold", x.untold))
	r.events.Warn("ConfigRejected", fmt.Sprintf("the proxy of %s keeps what it had and rejects a change of %s: %s",
		x.client, strings.Join(x.origins, ", "), x.detail))
}
