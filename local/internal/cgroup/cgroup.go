// Package cgroup makes and removes the control groups of a node in every hierarchy of the
// host, version 1 or 2.
package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// hierarchy is a mounted tree of control groups.
type hierarchy struct {
	dir     string
	unified bool // version 2
}

// needed are the version 1 controllers without which kubelet does not start.
var needed = []string{"cpu", "cpuset", "memory", "pids"}

func hierarchies() ([]hierarchy, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parse(bufio.NewScanner(f))
}

// parse reads mountinfo: the mount point is field 5, the type follows the lone dash.
func parse(lines *bufio.Scanner) ([]hierarchy, error) {
	var all []hierarchy
	seen := map[string]bool{}
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		if !ok || len(fields) < 5 || seen[fields[4]] {
			continue
		}
		kind, _, _ := strings.Cut(after, " ")
		if (kind == "cgroup" || kind == "cgroup2") && strings.HasPrefix(fields[4], "/sys/fs/cgroup") {
			seen[fields[4]] = true
			all = append(all, hierarchy{dir: fields[4], unified: kind == "cgroup2"})
		}
	}
	return all, lines.Err()
}

// Check says what a kubelet would miss.
func Check() error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	var have []string
	for _, h := range all {
		if h.unified && h.dir == "/sys/fs/cgroup" {
			data, err := os.ReadFile(filepath.Join(h.dir, "cgroup.controllers"))
			if err != nil {
				return err
			}
			have = append(have, strings.Fields(string(data))...)
			continue
		}
		have = append(have, strings.Split(filepath.Base(h.dir), ",")...)
	}
	var errs []error
	for _, n := range needed {
		found := false
		for _, h := range have {
			found = found || h == n
		}
		if !found {
			errs = append(errs, fmt.Errorf("cgroup controller %s is not mounted below /sys/fs/cgroup: mount it (version 1: mount -t cgroup -o %s %s /sys/fs/cgroup/%s), or boot with it enabled", n, n, n, n))
		}
	}
	return errors.Join(errs...)
}

// Create makes the group path, "a/b/c", in every hierarchy.
func Create(path string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		dir := h.dir
		for _, part := range strings.Split(path, "/") {
			parent := dir
			dir = filepath.Join(dir, part)
			if h.unified {
				enable(parent)
			}
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			if err := copyCPUSet(parent, dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// enable gives the children of a version 2 group every controller it has. One that cannot
// be given (a group with processes of its own refuses) is missed only if kubelet needs it,
// and kubelet then says so.
func enable(dir string) {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return
	}
	for _, c := range strings.Fields(string(data)) {
		_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0o644)
	}
}

// copyCPUSet fills a new version 1 cpuset, which begins empty and then takes no process.
func copyCPUSet(parent, dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		have, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || strings.TrimSpace(string(have)) != "" {
			continue // another controller, version 2, or filled
		}
		data, err := os.ReadFile(filepath.Join(parent, name))
		if err != nil {
			return err
		}
		if len(strings.TrimSpace(string(data))) == 0 {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return fmt.Errorf("fill %s: %w", name, err)
		}
	}
	return nil
}

// Remove kills what is left in the group path and its descendants and removes them in every
// hierarchy. A group that does not exist is no error.
func Remove(ctx context.Context, path string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		for {
			err := removeTree(filepath.Join(h.dir, path))
			if err == nil {
				break
			}
			select { // a killed process leaves its group a moment later
			case <-ctx.Done():
				return fmt.Errorf("remove cgroup: %w", err)
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	return nil
}

// RemoveEmpty removes the group path wherever it has no children.
func RemoveEmpty(path string) {
	all, err := hierarchies()
	if err != nil {
		return
	}
	for _, h := range all {
		_ = os.Remove(filepath.Join(h.dir, path)) // refused if another instance has groups there
	}
}

func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs")); err == nil {
		for _, line := range strings.Fields(string(data)) {
			var pid int
			if _, err := fmt.Sscan(line, &pid); err == nil && pid > 1 {
				_ = unix.Kill(pid, unix.SIGKILL) // gone already is as good
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}
