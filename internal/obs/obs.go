// Package obs builds the logger and the metrics registry that other packages are handed. It reads no environment, holds no
// state, and knows no Kubernetes type: the node's program has it too.
package obs

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Version is Heddle's own version; the build sets it with -ldflags "-X …/internal/obs.Version=…".
var Version = "0.1.0"

// Logger returns a logger that writes to w. format is text or json; level is debug, info, warn or error, at times with an
// offset (debug-4), as slog spells it.
func Logger(w io.Writer, format, level string) (*slog.Logger, error) {
	var o slog.HandlerOptions
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log level %q: use debug, info, warn or error", level)
	}
	o.Level = l
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
