package obs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	profileSeconds = 10 // of a cpu profile, unless asked for
	profileMost    = 60 // costs the process up to 5 % of its time, and nobody else gets one meanwhile
)

// Admin is what may be done with a running process beyond looking at it: its profiles taken, its log's level set. What is
// done is logged with who did it. Its fields are set before use.
type Admin struct {
	Log   *slog.Logger
	Level *Level
	// Profiling is nil if profiles may be taken now; else it says how to switch them on.
	Profiling func(context.Context) error

	taking sync.Mutex // held while a profile is taken: the runtime takes one of the processor's time, and each of the others stops the world
}

// Page serves a request of who, who has been admitted.
type Page func(w http.ResponseWriter, r *http.Request, who string)

// Pages are the pages by name. The caller decides whom it admits.
func (a *Admin) Pages() map[string]Page { return map[string]Page{"profile": a.profile, "log": a.log} }

func (a *Admin) profile(w http.ResponseWriter, r *http.Request, who string) {
	if !allowed(w, r, http.MethodGet) {
		return
	}
	kind, lasts, err := profileOf(r.FormValue("type"), r.FormValue("seconds"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if err := a.Profiling(r.Context()); err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	if !a.taking.TryLock() {
		http.Error(w, "another profile is being taken; one is taken at a time, for at most a minute", http.StatusConflict)
		return
	}
	defer a.taking.Unlock()
	a.Log.LogAttrs(r.Context(), slog.LevelInfo, "a profile is taken", slog.String("type", kind), slog.Duration("lasts", lasts), slog.String("by", who))
	var out bytes.Buffer
	if err := take(r.Context(), &out, kind, lasts); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = w.Write(out.Bytes()) // the caller has gone: nobody is left to tell
}

// profileOf reads what is asked for: a kind, and for how long, which is zero of what is there at once.
func profileOf(kind, seconds string) (string, time.Duration, error) {
	switch kind {
	case "", "cpu":
		if seconds == "" {
			return "cpu", profileSeconds * time.Second, nil
		}
		n, err := strconv.Atoi(seconds)
		if err != nil || n < 1 || n > profileMost {
			return "", 0, fmt.Errorf("seconds %q: use a whole number from 1 to %d", seconds, profileMost)
		}
		return "cpu", time.Duration(n) * time.Second, nil
	case "allocs", "goroutine", "heap":
		if seconds != "" {
			return "", 0, errors.New("only a cpu profile takes seconds; the others are of the moment")
		}
		return kind, 0, nil
	}
	return "", 0, fmt.Errorf("profile %q: use allocs, cpu, goroutine or heap", kind)
}

// take writes a profile as `go tool pprof` reads it. One of the processor's time ends with ctx if that ends first.
func take(ctx context.Context, out *bytes.Buffer, kind string, lasts time.Duration) error {
	if kind != "cpu" {
		return pprof.Lookup(kind).WriteTo(out, 0)
	}
	if err := pprof.StartCPUProfile(out); err != nil {
		return err
	}
	defer pprof.StopCPUProfile()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(lasts):
		return nil
	}
}

// log shows the level; PUT sets it, DELETE forgets what was set.
func (a *Admin) log(w http.ResponseWriter, r *http.Request, who string) {
	if !allowed(w, r, http.MethodGet, http.MethodPut, http.MethodDelete) {
		return
	}
	switch r.Method {
	case http.MethodPut:
		to, err := ParseLevel(r.FormValue("level"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		a.set(r.Context(), to, who)
	case http.MethodDelete:
		a.set(r.Context(), a.Level.start, who)
	}
	body, err := json.Marshal(map[string]string{"level": a.Level.String(), "start": spell(a.Level.start)})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(body, '\n'))
}

// set sets the level, and says so while the louder of both holds.
func (a *Admin) set(ctx context.Context, to slog.Level, who string) {
	from := a.Level.Level()
	a.Level.Set(min(from, to))
	a.Log.LogAttrs(ctx, slog.LevelInfo, "the log's level is set", slog.String("from", spell(from)), slog.String("to", spell(to)), slog.String("by", who))
	a.Level.Set(to)
}

func allowed(w http.ResponseWriter, r *http.Request, methods ...string) bool {
	for _, m := range methods {
		if r.Method == m {
			return true
		}
	}
	w.Header().Set("Allow", strings.Join(methods, ", "))
	http.Error(w, "this page takes "+strings.Join(methods, ", "), http.StatusMethodNotAllowed)
	return false
}
