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
	profileMost    = 60 // it slows the process down, and nobody else gets one meanwhile
)

// Admin is what may be done with a running process beyond looking at it: its profiles taken, its log's level set. What is
// done is logged with who did it. Its fields are set before use.
type Admin struct {
	Log   *slog.Logger
	Level *Level
	// Profiling is nil if profiles may be taken now; else it says how to switch them on.
	Profiling func(context.Context) error

	taking sync.Mutex // held while a profile is taken
}

// Page serves a request of who, who has been admitted.
type Page func(w http.ResponseWriter, r *http.Request, who string)

// Pages are the pages by name. The caller decides whom it admits.
func (a *Admin) Pages() map[string]Page { return map[string]Page{"profile": a.profile, "log": a.log} }

func (a *Admin) profile(w http.ResponseWriter, r *http.Request, who string) {
	if !allowed(w, r, http.MethodGet) {
		return
	}
	kind, lasts, err := ProfileOf(r.FormValue("type"), r.FormValue("seconds"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if err := a.Profiling(r.Context()); err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	body, err := a.take(r.Context(), kind, lasts, who)
	switch {
	case errors.Is(err, errTaking):
		http.Error(w, err.Error(), http.StatusConflict)
		return
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = w.Write(body) // the caller has gone: nobody is left to tell
}

// ProfileOf reads what is asked for: a kind, cpu if it is empty, and for how long, which is zero of what is there at once.
func ProfileOf(kind, seconds string) (string, time.Duration, error) {
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

var errTaking = errors.New("another profile is being taken; one is taken at a time, for at most a minute")

// take returns a profile as `go tool pprof` reads it. One of the processor's time ends with ctx if that ends first.
func (a *Admin) take(ctx context.Context, kind string, lasts time.Duration, who string) ([]byte, error) {
	if !a.taking.TryLock() {
		return nil, errTaking
	}
	defer a.taking.Unlock()
	a.note(ctx, "a profile is taken", slog.String("type", kind), slog.Duration("lasts", lasts), slog.String("by", who))
	var out bytes.Buffer
	if kind != "cpu" {
		err := pprof.Lookup(kind).WriteTo(&out, 0)
		return out.Bytes(), err
	}
	if err := pprof.StartCPUProfile(&out); err != nil {
		return nil, err
	}
	select {
	case <-ctx.Done():
	case <-time.After(lasts):
	}
	pprof.StopCPUProfile() // writes it
	return out.Bytes(), ctx.Err()
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

// set sets the level, and says so while the louder of both holds: who made the log quiet shows in it.
func (a *Admin) set(ctx context.Context, to slog.Level, who string) {
	from := a.Level.Level()
	a.Level.Set(min(from, to))
	a.note(ctx, "the log's level is set", slog.String("from", spell(from)), slog.String("to", spell(to)), slog.String("by", who))
	a.Level.Set(to)
}

// note logs what somebody did, however quiet the log is.
func (a *Admin) note(ctx context.Context, did string, attrs ...slog.Attr) {
	a.Log.LogAttrs(ctx, max(slog.LevelInfo, a.Level.Level()), did, attrs...)
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
