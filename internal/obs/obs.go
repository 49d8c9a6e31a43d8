// Package obs builds the logger and the metrics registry that other packages are handed. It reads no environment, holds no
// state, and knows no Kubernetes type: the node's program has it too.
package obs

import (
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Version is Heddle's own version; the build sets it with -ldflags "-X …/internal/obs.Version=…".
var Version = "0.1.0"

// Level is from where on a process logs. It may be changed at any time; that is forgotten with the process. The zero Level
// is info.
type Level struct {
	slog.LevelVar
	start slog.Level
}

// NewLevel returns a Level that begins at start.
func NewLevel(start slog.Level) *Level {
	l := &Level{start: start}
	l.Set(start)
	return l
}

// Reset goes back to where the level began.
func (l *Level) Reset() { l.Set(l.start) }

// String spells it as ParseLevel reads it.
func (l *Level) String() string { return spell(l.Level()) }

func spell(l slog.Level) string { return strings.ToLower(l.String()) }

// ParseLevel reads debug, info, warn or error, at times with an offset (debug-4), as slog spells it.
func ParseLevel(text string) (l slog.Level, err error) {
	if l.UnmarshalText([]byte(text)) != nil {
		return 0, fmt.Errorf("log level %q: use debug, info, warn or error", text)
	}
	return l, nil
}

// Logger returns a logger that writes to w what is of level or above. format is text or json.
func Logger(w io.Writer, format string, level slog.Leveler) (*slog.Logger, error) {
	o := slog.HandlerOptions{Level: level}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, &o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, &o)), nil
	}
	return nil, fmt.Errorf("log format %q: use text or json", format)
}

// Logr returns log for libraries that want a logr.Logger. main hands it to klog.SetLogger and controller-runtime's
// log.SetLogger, once: both keep it in a global of their own. Their V(n) is level info-n here.
func Logr(log *slog.Logger) logr.Logger { return logr.FromSlogHandler(log.Handler()) }

// Registry returns a metrics registry that has the figures of the Go runtime and the process, and heddle_build_info.
func Registry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name:        "heddle_build_info",
			Help:        "Always 1; the labels say which build runs.",
			ConstLabels: prometheus.Labels{"version": Version},
		}, func() float64 { return 1 }),
	)
	return r
}
