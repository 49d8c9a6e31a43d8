package identity

import (
	"context"
	"errors"
	"path/filepath"
	"strings"

	"github.com/fsnotify/fsnotify"
)

// kubeletsOwn begins the names that the kubelet makes for itself where it mounts a Secret or a ConfigMap, and keysNow is that of
// them which is replaced, as one, when the object has changed: every key is a link through it.
const (
	kubeletsOwn = ".."
	keysNow     = "..data"
)

// IsKey reports whether a name in the directory of a mounted object is one of the object's keys.
func IsKey(name string) bool { return !strings.HasPrefix(name, kubeletsOwn) }

// Mounted tells of changes to a Secret or ConfigMap by the directory at which it is mounted.
type Mounted struct{ watcher *fsnotify.Watcher }

// Watch begins to watch a directory, which must be there.
func Watch(dir string) (*Mounted, error) {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	if err := watcher.Add(dir); err != nil {
		return nil, errors.Join(err, watcher.Close())
	}
	return &Mounted{watcher}, nil
}

// Changed waits until the keys may differ. An error says that changes may have been missed, or that ctx has ended; then it is
// ctx's.
func (m *Mounted) Changed(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e := <-m.watcher.Events:
			if name := filepath.Base(e.Name); name == keysNow || IsKey(name) {
				return nil
			}
		case err := <-m.watcher.Errors:
			return err
		}
	}
}

// Close ends the watch; nobody may be waiting.
func (m *Mounted) Close() error { return m.watcher.Close() }
