package proc

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestKeepStartsAgain(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	k := &Keeper{Log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(t.Context())
	starts := make(chan int)
	done := make(chan struct{})
	go func() {
		defer close(done)
		k.Keep(ctx, Spec{
			Name: "echo", Path: "/bin/sh", Args: []string{"sh", "-c", "echo hello; exec sleep 1000"}, Log: log, Start: (*exec.Cmd).Start,
			After: func(pid int) error {
				select {
				case starts <- pid:
				case <-ctx.Done():
				}
				return errors.New("not wanted") // which kills it
			},
		})
	}()
	if first, second := <-starts, <-starts; first == second {
		t.Errorf("the process %d was not started again", first)
	}
	s := k.States()
	if len(s) != 1 || s[0].Name != "echo" || s[0].Restarts != 1 || s[0].Log != log {
		t.Errorf("states %+v, want one restart of echo", s)
	}
	cancel()
	<-done
	if s := k.States(); len(s) != 0 {
		t.Errorf("after the end there is %+v", s)
	}
}

func TestKeepMovesALargeLog(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(log, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(log, logLimit+1); err != nil {
		t.Fatal(err)
	}
	k := &Keeper{Log: slog.New(slog.DiscardHandler)}
	err := k.once(t.Context(), Spec{Name: "echo", Path: "/bin/sh", Args: []string{"sh", "-c", "echo hello"}, Log: log, Start: (*exec.Cmd).Start})
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(log)
	if err != nil || strings.TrimSpace(string(data)) != "hello" {
		t.Errorf("log %q, %v", data, err)
	}
	if old, err := os.Stat(log + ".old"); err != nil || old.Size() != logLimit+1 {
		t.Errorf("old log: %v, %v", old, err)
	}
}
