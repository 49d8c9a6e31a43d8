package obs

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func newAdmin(t *testing.T, off error) (*Admin, *bytes.Buffer) {
	t.Helper()
	var out bytes.Buffer
	level := NewLevel(slog.LevelInfo)
	log, err := Logger(&out, "text", level)
	if err != nil {
		t.Fatal(err)
	}
	return &Admin{Log: log, Level: level, Profiling: func(context.Context) error { return off }}, &out
}

func ask(ctx context.Context, a *Admin, method, page string) (code int, body string) {
	r := httptest.NewRequestWithContext(ctx, method, "/"+page, http.NoBody)
	w := httptest.NewRecorder()
	a.Pages()[r.URL.Path[1:]](w, r, "sys/default")
	return w.Code, w.Body.String()
}

// What a caller may ask for, and for how long it is taken.
func TestProfileOf(t *testing.T) {
	const seconds = "use a whole number from 1 to 60"
	for _, c := range []struct {
		kind, seconds string
		want          string
		lasts         time.Duration
		err           string
	}{
		{want: "cpu", lasts: 10 * time.Second},
		{kind: "cpu", seconds: "1", want: "cpu", lasts: time.Second},
		{seconds: "60", want: "cpu", lasts: time.Minute},
		{seconds: "61", err: `seconds "61": ` + seconds},
		{seconds: "0", err: seconds},
		{seconds: "-1", err: seconds},
		{seconds: "1.5", err: seconds},
		{seconds: "9999999999999999999", err: seconds},
		{kind: "heap", want: "heap"},
		{kind: "allocs", want: "allocs"},
		{kind: "goroutine", want: "goroutine"},
		{kind: "heap", seconds: "2", err: "only a cpu profile takes seconds"},
		{kind: "cmdline", err: `profile "cmdline": use allocs, cpu, goroutine or heap`},
		{kind: "threadcreate", err: "use allocs, cpu, goroutine or heap"},
	} {
		kind, lasts, err := ProfileOf(c.kind, c.seconds)
		if kind != c.want || lasts != c.lasts || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%q for %q: %q %v %v, want %q %v %q", c.kind, c.seconds, kind, lasts, err, c.want, c.lasts, c.err)
		}
	}
}

// Every kind of profile is one that pprof reads, and where they are off there is none.
func TestProfile(t *testing.T) {
	off := errors.New("profiles are off: do this to switch them on")
	for page, counts := range map[string]string{
		"profile?type=heap": "inuse_space", "profile?type=allocs": "inuse_space", "profile?type=goroutine": "goroutine", "profile?type=cpu&seconds=1": "nanoseconds",
	} {
		a, log := newAdmin(t, off)
		if code, body := ask(t.Context(), a, http.MethodGet, page); code != http.StatusForbidden || body != off.Error()+"\n" || log.Len() > 0 {
			t.Errorf("%s where they are off: %d %s, logged %q", page, code, body, log)
		}
		a, log = newAdmin(t, nil)
		a.Level.Set(slog.LevelError)
		code, body := ask(t.Context(), a, http.MethodGet, page)
		if code != http.StatusOK || !strings.Contains(log.String(), "by=sys/default") {
			t.Fatalf("%s: %d %s, logged %q", page, code, body, log)
		}
		z, err := gzip.NewReader(strings.NewReader(body))
		if err != nil {
			t.Fatalf("%s: %v", page, err)
		}
		text, err := io.ReadAll(z)
		if err != nil || !bytes.Contains(text, []byte(counts)) || counts != "inuse_space" && bytes.Contains(text, []byte("inuse_space")) {
			t.Errorf("%s: no profile of it: %v %.200q", page, err, text)
		}
	}
}

// One profile at a time, of whatever kind; who goes away before it is done gives way to the next.
func TestOneProfileAtATime(t *testing.T) {
	a, _ := newAdmin(t, nil)
	began := make(chan struct{})
	a.Log = slog.New(slog.NewTextHandler(writer(func() { began <- struct{}{} }), nil))
	ctx, leave := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		ask(ctx, a, http.MethodGet, "profile?seconds=60")
	}()
	<-began
	for _, page := range []string{"profile?seconds=1", "profile?type=heap"} {
		if code, body := ask(t.Context(), a, http.MethodGet, page); code != http.StatusConflict || !strings.Contains(body, "another profile is being taken") {
			t.Errorf("%s beside another: %d %s", page, code, body)
		}
	}
	start := time.Now()
	leave()
	<-ended
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("went on for %v after its caller", took)
	}
	a.Log = slog.New(slog.DiscardHandler)
	if code, body := ask(t.Context(), a, http.MethodGet, "profile?type=heap"); code != http.StatusOK {
		t.Errorf("after it: %d %s", code, body)
	}
}

// Who is slow to read its profile keeps nobody from another.
func TestSlowReaderOfAProfile(t *testing.T) {
	a, _ := newAdmin(t, nil)
	writes, read := make(chan struct{}), make(chan struct{})
	slow := &slowReader{ResponseRecorder: httptest.NewRecorder(), writes: writes, read: read}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		a.Pages()["profile"](slow, httptest.NewRequest(http.MethodGet, "/?type=heap", http.NoBody), "")
	}()
	<-writes
	if code, body := ask(t.Context(), a, http.MethodGet, "profile?type=heap"); code != http.StatusOK {
		t.Errorf("beside who does not read: %d %s", code, body)
	}
	close(read)
	<-ended
}

type slowReader struct {
	*httptest.ResponseRecorder
	writes, read chan struct{}
}

func (w *slowReader) Write(b []byte) (int, error) {
	close(w.writes)
	<-w.read
	return len(b), nil
}

// writer is told of each line.
type writer func()

func (w writer) Write(b []byte) (int, error) { w(); return len(b), nil }

// The log's level is shown, set and forgotten; a change shows in the log by whom, also when it makes the log quieter.
func TestLogPage(t *testing.T) {
	a, log := newAdmin(t, nil)
	for _, c := range []struct {
		method, page string
		code         int
		body, logged string
		level        slog.Level
	}{
		{method: "GET", page: "log", code: 200, body: `{"level":"info","start":"info"}`},
		{method: "PUT", page: "log?level=debug", code: 200, body: `{"level":"debug","start":"info"}`, logged: "from=info to=debug by=sys/default", level: slog.LevelDebug},
		{method: "GET", page: "log?level=error", code: 200, body: `{"level":"debug","start":"info"}`, level: slog.LevelDebug},
		{method: "PUT", page: "log?level=error", code: 200, body: `{"level":"error","start":"info"}`, logged: "from=debug to=error", level: slog.LevelError},
		{method: "PUT", page: "log?level=warn", code: 200, body: `{"level":"warn","start":"info"}`, logged: "from=error to=warn by=sys/default", level: slog.LevelWarn},
		{method: "PUT", page: "log?level=loud", code: 400, body: "use debug, info, warn or error", level: slog.LevelWarn},
		{method: "PUT", page: "log", code: 400, body: "use debug, info, warn or error", level: slog.LevelWarn},
		{method: "POST", page: "log?level=debug", code: 405, level: slog.LevelWarn},
		{method: "DELETE", page: "log", code: 200, body: `{"level":"info","start":"info"}`, logged: "from=warn to=info"},
		{method: "POST", page: "profile?type=heap", code: 405},
	} {
		log.Reset()
		code, body := ask(t.Context(), a, c.method, c.page)
		if code != c.code || !strings.Contains(body, c.body) || a.Level.Level() != c.level {
			t.Errorf("%s %s: %d %s, level %s; want %d %s, level %s", c.method, c.page, code, body, a.Level, c.code, c.body, c.level)
		}
		if !strings.Contains(log.String(), c.logged) {
			t.Errorf("%s %s: logged %q, want %q", c.method, c.page, log, c.logged)
		}
	}
}
