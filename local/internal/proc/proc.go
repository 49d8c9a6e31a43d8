// Package proc keeps processes running.
package proc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"sort"
	"sync"
	"syscall"
	"time"
)

const (
	firstDelay = 100 * time.Millisecond // before the first restart; doubles up to lastDelay
	lastDelay  = 5 * time.Second
	stable     = 10 * time.Second // a process that lived so long starts over with firstDelay
	logLimit   = 16 << 20         // bytes; a larger log is moved to NAME.old at a start
)

// Self runs this program again; Args[0] chooses what it is then. It works when the file was
// replaced meanwhile and in a mount namespace without it.
const Self = "/proc/self/exe"

// Spec is a process to keep.
type Spec struct {
	Name   string
	Path   string   // a file, or Self
	Args   []string // all of argv
	Env    []string // in addition to our own
	Log    string   // file to append its output to
	Attr   *syscall.SysProcAttr
	Start  func(*exec.Cmd) error // on the thread that namespace and death signal belong to
	Before func() error          // run before each start; may be nil
	After  func(pid int) error   // run after each start; on error the process is killed; may be nil
}

// State is what is known of a kept process.
type State struct {
	Name     string    `json:"name"`
	PID      int       `json:"pid"` // 0 while it does not run
	Since    time.Time `json:"since"`
	Restarts int       `json:"restarts"`
	Log      string    `json:"log"`
}

// Keeper keeps processes. Safe for concurrent use.
type Keeper struct {
	Log *slog.Logger

	mu     sync.Mutex // guards states
	states map[string]*State
}

// Keep runs s, again whenever it ends, until ctx ends. It returns when the process is gone.
func (k *Keeper) Keep(ctx context.Context, s Spec) {
	k.update(s.Name, func(st *State) { *st = State{Name: s.Name, Log: s.Log} })
	for delay := firstDelay; ; delay = min(2*delay, lastDelay) {
		began := time.Now()
		err := k.once(ctx, s)
		if ctx.Err() != nil {
			k.mu.Lock()
			delete(k.states, s.Name)
			k.mu.Unlock()
			return
		}
		k.Log.Warn("process ended and is started again", "name", s.Name, "err", err)
		if time.Since(began) > stable {
			delay = firstDelay
		}
		select {
		case <-ctx.Done():
		case <-time.After(delay):
		}
		k.update(s.Name, func(st *State) { st.Restarts++ })
	}
}

func (k *Keeper) once(ctx context.Context, s Spec) error {
	if s.Before != nil {
		if err := s.Before(); err != nil {
			return fmt.Errorf("prepare %s: %w", s.Name, err)
		}
	}
	if st, err := os.Stat(s.Log); err == nil && st.Size() > logLimit {
		if err := os.Rename(s.Log, s.Log+".old"); err != nil {
			return err
		}
	}
	log, err := os.OpenFile(s.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.CommandContext(ctx, s.Path)
	cmd.Args, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = s.Args, log, log, s.Attr
	cmd.Env = append(os.Environ(), s.Env...)
	if err := s.Start(cmd); err != nil {
		return fmt.Errorf("start %s: %w", s.Name, err)
	}
	k.update(s.Name, func(st *State) { st.PID, st.Since = cmd.Process.Pid, time.Now() })
	var after error
	if s.After != nil {
		if after = s.After(cmd.Process.Pid); after != nil {
			after = errors.Join(after, cmd.Process.Kill())
		}
	}
	err = cmd.Wait()
	k.update(s.Name, func(st *State) { st.PID = 0 })
	if errors.Is(err, syscall.ECHILD) { // Reap was first
		err = nil
	}
	return errors.Join(after, err)
}

func (k *Keeper) update(name string, f func(*State)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.states == nil {
		k.states = map[string]*State{}
	}
	if k.states[name] == nil {
		k.states[name] = &State{}
	}
	f(k.states[name])
}

// States returns the kept processes, sorted by name.
func (k *Keeper) States() []State {
	k.mu.Lock()
	defer k.mu.Unlock()
	all := make([]State, 0, len(k.states))
	for _, s := range k.states {
		all = append(all, *s)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Name < all[j].Name })
	return all
}

// Reap collects ended children of PID 1 that nobody waits for, until ctx ends. It may take
// the exit status of kept processes too; Keep then knows only that they ended.
func Reap(ctx context.Context) {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	defer signal.Stop(ended)
	for {
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 && err != syscall.EINTR {
				break
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ended:
		}
	}
}
