// Package instance knows where an instance of the local cluster keeps its things, and takes
// them away again.
package instance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/heddle-mesh/heddle/local/internal/plan"
	"github.com/heddle-mesh/heddle/local/internal/settings"
)

const (
	stateRoot = "/var/lib/heddle-local"
	runRoot   = "/run/heddle-local"
	// Cache outlives instances: downloads and built images.
	Cache = "/var/cache/heddle-local"
	// Marker is the environment variable of every process of an instance.
	Marker = "HEDDLE_LOCAL_PROCESS_OF"
)

// Instance is a named local installation: own router, addresses, registry and directory.
type Instance struct{ Name string }

// State is what an instance remembers.
type State struct {
	Base        plan.Base `json:"base"`
	Port        uint16    `json:"port"`     // of the registry
	Checkout    string    `json:"checkout"` // where images and samples come from; "" if unknown
	Nodes       int       `json:"nodes"`
	Controllers bool      `json:"controllers"` // with 0 nodes: run the controller-manager
}

var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?$`)

// Named checks the name.
func Named(name string) (Instance, error) {
	if !validName.MatchString(name) {
		return Instance{}, fmt.Errorf("instance %q: use up to 22 lower-case letters, digits and inner dashes", name)
	}
	return Instance{name}, nil
}

// All are the instances that have a state.
func All() ([]Instance, error) {
	entries, err := os.ReadDir(stateRoot)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var all []Instance
	for _, e := range entries {
		all = append(all, Instance{e.Name()})
	}
	return all, nil
}

// Dir holds everything of the instance but sockets.
func (i Instance) Dir() string { return filepath.Join(stateRoot, i.Name) }

// Logs has a file for each component.
func (i Instance) Logs() string { return filepath.Join(i.Dir(), "logs") }

// Layout is the OCI layout that the registry serves.
func (i Instance) Layout() string { return filepath.Join(i.Dir(), "images") }

// NodeDir is a node's own directory.
func (i Instance) NodeDir(node string) string { return filepath.Join(i.Dir(), "nodes", node) }

// Socket is where the daemon listens.
func (i Instance) Socket() string { return filepath.Join(runRoot, i.Name+".sock") }

// DaemonLog is the daemon's own.
func (i Instance) DaemonLog() string { return filepath.Join(i.Logs(), "daemon.log") }

// KubectlCache keeps kubectl from filling the user's home.
func (i Instance) KubectlCache() string { return filepath.Join(i.Dir(), "kubectl") }

func (i Instance) pidFile() string   { return filepath.Join(runRoot, i.Name+".pid") }
func (i Instance) stateFile() string { return filepath.Join(i.Dir(), "instance.json") }

// Cluster gives the settings of cluster n.
func (i Instance) Cluster(s State, n int) settings.Cluster {
	c := s.Base.Cluster(n)
	return settings.Cluster{Cluster: c, Dir: filepath.Join(i.Dir(), c.Name()), Registry: s.Registry()}
}

// Registry is host:port of the instance's registry.
func (s State) Registry() string { return fmt.Sprintf("%s:%d", s.Base.Host(), s.Port) }

// Load returns an error that is fs.ErrNotExist if the instance was never up.
func (i Instance) Load() (State, error) {
	var s State
	data, err := os.ReadFile(i.stateFile())
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("read %s: %w: run heddle-local down --instance %s, then up", i.stateFile(), err, i.Name)
	}
	return s, nil
}

// Save makes the instance's directories and writes its state.
func (i Instance) Save(s State) error {
	if err := errors.Join(os.MkdirAll(i.Logs(), 0o700), os.MkdirAll(runRoot, 0o700)); err != nil {
		return err
	}
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(i.stateFile()+".new", append(data, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(i.stateFile()+".new", i.stateFile())
}

// Lock waits until no other process changes the instance; an empty name locks the choice of
// addresses among all instances. The lock is an abstract socket, which leaves no file and
// ends with its process.
func Lock(ctx context.Context, name string) (unlock func(), err error) {
	for {
		l, err := net.Listen("unix", "@heddle-local/lock/"+name)
		if err == nil {
			return func() { _ = l.Close() }, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for another heddle-local up or down of instance %q: %w", name, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Tail is the end of the daemon's log, to stand after an error.
func (i Instance) Tail() string {
	data, err := os.ReadFile(i.DaemonLog())
	if err != nil {
		return ""
	}
	const most = 2000
	if len(data) > most {
		data = data[len(data)-most:]
	}
	return fmt.Sprintf("\n%s ends:\n%s", i.DaemonLog(), data)
}
