package instance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/local/internal/cgroup"
	"github.com/heddle-mesh/heddle/local/internal/settings"
)

// Stop kills every process of the instance and removes what processes leave behind: links,
// control groups, sockets. Data stays. It works as well when all were killed before.
func (i Instance) Stop(ctx context.Context) error {
	// the daemon first, else it would start the others again; with it all of them die
	if pid, err := i.daemon(); err == nil && pid > 0 {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill daemon %d: %w", pid, err)
		}
	}
	for {
		pids, err := i.processes()
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			break
		}
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill process %d: %w", pid, err)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("processes %v of instance %s do not end: %w", pids, i.Name, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
	if s, err := i.Load(); err == nil {
		if link, err := netlink.LinkByName(s.Base.LinkName()); err == nil {
			if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
				return fmt.Errorf("delete link %s: %w", s.Base.LinkName(), err)
			}
		}
	}
	if err := cgroup.Remove(ctx, settings.CgroupRoot(i.Name, "")); err != nil {
		return err
	}
	cgroup.RemoveEmpty("heddle-local")
	return errors.Join(remove(i.Socket()), remove(i.pidFile()))
}

// Remove is Stop, and removes the data.
func (i Instance) Remove(ctx context.Context) error {
	if err := i.Stop(ctx); err != nil {
		return err
	}
	if err := i.unmount(); err != nil {
		return err
	}
	if err := os.RemoveAll(i.Dir()); err != nil {
		return err
	}
	for _, dir := range []string{stateRoot, runRoot} {
		if err := remove(dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
	}
	return nil
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// unmount takes away mounts below the directory, so that removing it does not reach into
// them. Nodes have mounts of their own, thus there are none unless someone made them.
func (i Instance) unmount() error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var errs []error
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], i.Dir()+"/") {
			if err := unix.Unmount(f[4], unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
				errs = append(errs, fmt.Errorf("unmount %s: %w", f[4], err))
			}
		}
	}
	return errors.Join(errs...)
}

// WritePID records this process as the instance's daemon, with its start time, as numbers
// are used again.
func (i Instance) WritePID() error {
	pid := os.Getpid()
	start, err := startTime(pid)
	if err != nil {
		return err
	}
	return os.WriteFile(i.pidFile(), fmt.Appendf(nil, "%d %s\n", pid, start), 0o600)
}

// daemon returns the pid of the living daemon, or 0.
func (i Instance) daemon() (int, error) {
	data, err := os.ReadFile(i.pidFile())
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(data))
	if len(fields) != 2 {
		return 0, nil
	}
	pid, err := strconv.Atoi(fields[0])
	if err != nil {
		return 0, nil
	}
	if start, err := startTime(pid); err != nil || start != fields[1] {
		return 0, nil
	}
	return pid, nil
}

// startTime is field 22 of stat, counted after the name, which may hold anything.
func startTime(pid int) (string, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) < 20 {
		return "", fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	return fields[19], nil
}

// processes finds the instance's by their environment. Containers do not inherit it; they
// end with the PID 1 of their node.
func (i Instance) processes() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	mark := []byte("\x00" + Marker + "=" + i.Name + "\x00")
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		env, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if err == nil && bytes.Contains(append([]byte{0}, env...), mark) { // else it just ended
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
