package obs

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

func TestLogger(t *testing.T) {
	for _, tc := range []struct{ format, level, want, err string }{
		{"text", "info", `level=INFO msg=shown client=a`, ""},
		{"json", "info", `"msg":"shown","client":"a"`, ""},
		{"text", "debug", `level=DEBUG msg=detail`, ""},
		{"xml", "info", "", "use text or json"},
	} {
		var out bytes.Buffer
		level, err := ParseLevel(tc.level)
		if err != nil {
			t.Fatal(err)
		}
		log, err := Logger(&out, tc.format, level)
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%s, %s: error %v, want %q", tc.format, tc.level, err, tc.err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		log.Debug("detail")
		Logr(log).V(0).Info("shown", "client", "a")
		if !strings.Contains(out.String(), tc.want) || strings.Contains(out.String(), "detail") != (tc.level == "debug") {
			t.Errorf("%s, %s: logged %q, want %q", tc.format, tc.level, out.String(), tc.want)
		}
	}
}

func TestRegistry(t *testing.T) {
	families, err := Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "heddle_build_info" && f.GetMetric()[0].GetLabel()[0].GetValue() == Version {
			return
		}
	}
	t.Error("no heddle_build_info with the version")
}

// A level can be changed while loggers are in use, of the libraries too, and goes back to where it began.
func TestLevel(t *testing.T) {
	var out bytes.Buffer
	level := NewLevel(slog.LevelWarn)
	log, err := Logger(&out, "text", level)
	if err != nil {
		t.Fatal(err)
	}
	heard := func() string {
		out.Reset()
		log.Debug("a")
		Logr(log).Info("b")
		log.Warn("c")
		var said string
		for line := range strings.Lines(out.String()) {
			_, m, _ := strings.Cut(line, "msg=")
			said += strings.TrimSpace(m)
		}
		return said
	}
	for _, step := range []struct {
		do   func()
		want string
	}{
		{func() {}, "c"},
		{func() { level.Set(slog.LevelDebug) }, "abc"},
		{func() { level.Set(slog.LevelError) }, ""},
		{level.Reset, "c"},
	} {
		if step.do(); heard() != step.want {
			t.Errorf("at %s heard %q, want %q", level, heard(), step.want)
		}
	}
	for text, want := range map[string]string{"debug": "debug", "WARN": "warn", "info+2": "info+2", "loud": "", "": ""} {
		switch l, err := ParseLevel(text); {
		case want == "" && (err == nil || !strings.Contains(err.Error(), "use debug, info, warn or error")):
			t.Errorf("%q: %v, %v", text, l, err)
		case want != "" && (err != nil || NewLevel(l).String() != want):
			t.Errorf("%q: %v, %v, want %s", text, l, err, want)
		}
	}
}
