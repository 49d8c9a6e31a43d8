// Package netns runs things in a network namespace that no name under /run holds: it lives
// as long as this process and what it starts there.
package netns

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Thread is an OS thread of its own. Namespaces belong to threads, and so does the parent
// death signal: a child started by Do with Pdeathsig dies with this process, not with
// whichever thread Go happened to use. Safe for concurrent use.
type Thread struct {
	id   int
	jobs chan func()
}

// Host returns a thread in the network namespace of the process.
func Host() (*Thread, error) { return start(0) }

// New returns a thread in a new network namespace.
func New() (*Thread, error) { return start(unix.CLONE_NEWNET) }

func start(unshare int) (*Thread, error) {
	t := &Thread{jobs: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the process
		if unshare != 0 {
			if err := unix.Unshare(unshare); err != nil {
				ready <- fmt.Errorf("make network namespace: %w", err)
				return
			}
		}
		t.id = unix.Gettid()
		ready <- nil
		for job := range t.jobs {
			job()
		}
	}()
	return t, <-ready
}

// Do runs f on the thread and returns its error.
func (t *Thread) Do(f func() error) error {
	done := make(chan error, 1)
	t.jobs <- func() { done <- f() }
	return <-done
}

// Path names the thread's network namespace.
func (t *Thread) Path() string { return fmt.Sprintf("/proc/self/task/%d/ns/net", t.id) }
