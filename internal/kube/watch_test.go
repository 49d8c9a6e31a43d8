package kube

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/kube/kubetest"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const wait = 20 * time.Second // bound on every wait

// sink keeps what it is told; its rows' values are the objects' resource versions.
type sink struct {
	mu      sync.Mutex // guards the fields below
	changed chan struct{}
	rows    map[string]string // NAMESPACE/NAME to label v
}

func newSink() *sink { return &sink{changed: make(chan struct{}), rows: map[string]string{}} }

func (s *sink) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *sink) Set(k mesh.ObjectKey, p *corev1.Pod) {
	s.change(func() { s.rows[k.Namespace+"/"+k.Name] = p.Labels["v"] })
}

func (s *sink) Delete(k mesh.ObjectKey) { s.change(func() { delete(s.rows, k.Namespace+"/"+k.Name) }) }

func (s *sink) Replace(rows []graph.Row[mesh.ObjectKey, *corev1.Pod], owned func(mesh.ObjectKey) bool) {
	s.change(func() {
		maps.DeleteFunc(s.rows, func(k, _ string) bool {
			namespace, name, _ := strings.Cut(k, "/")
			return owned(mesh.ObjectKey{Cluster: "c1", Namespace: namespace, Name: name})
		})
		for _, r := range rows {
			s.rows[r.Key.Namespace+"/"+r.Key.Name] = r.Val.Labels["v"]
		}
	})
}

func (s *sink) await(t *testing.T, want map[string]string) {
	t.Helper()
	late := time.After(wait)
	for {
		s.mu.Lock()
		got, changed := maps.Clone(s.rows), s.changed
		s.mu.Unlock()
		if maps.Equal(got, want) {
			return
		}
		select {
		case <-changed:
		case <-late:
			t.Fatalf("the sink holds %v, want %v", got, want)
		}
	}
}

func within(t *testing.T, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(wait):
		t.Fatalf("waited %v for %s", wait, what)
	}
}

func open(t *testing.T, s *kubetest.Server) *Cluster {
	t.Helper()
	c, err := Open(s.Kubeconfig(), "c1", "one", slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func pod(namespace, name, v string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"v": v}}}
}

// A namespace's objects of a kind come, change and go, over the end of a watch too; Stop takes them out again.
func TestFollow(t *testing.T) {
	for name, old := range map[string]bool{"a server that streams lists": false, "one that does not": true} {
		t.Run(name, func(t *testing.T) {
			server := kubetest.New(t)
			server.Old = old
			server.Put("pods", pod("shop", "a", "1"))
			server.Put("pods", pod("shop", "b", "1"))
			server.Put("pods", pod("other", "a", "1"))
			sink := newSink()
			sink.rows["other/z"] = "kept" // by another watch
			w := Follow(t.Context(), open(t, server), Pods, "shop", sink)
			within(t, "the first list", w.Synced())
			sink.await(t, map[string]string{"shop/a": "1", "shop/b": "1", "other/z": "kept"})

			server.Await("the watch", func() bool { return slices.Contains(server.Watches(), "shop/pods") })
			server.Put("pods", pod("shop", "a", "2"))
			server.Put("pods", pod("shop", "c", "1"))
			server.Put("pods", pod("other", "a", "2"))
			server.Delete("pods", "shop", "b")
			sink.await(t, map[string]string{"shop/a": "2", "shop/c": "1", "other/z": "kept"})

			server.EndWatches()
			server.Put("pods", pod("shop", "d", "1"))
			server.Delete("pods", "shop", "a")
			sink.await(t, map[string]string{"shop/c": "1", "shop/d": "1", "other/z": "kept"})

			w.Stop()
			sink.await(t, map[string]string{"other/z": "kept"})
			server.Await("the watch to end", func() bool { return len(server.Watches()) == 0 })
			for _, r := range server.Requests() {
				if r.Query.Get("watch") == "" {
					continue
				}
				if seconds, err := strconv.Atoi(r.Query.Get("timeoutSeconds")); err != nil || seconds < 300 || seconds > 600 {
					t.Errorf("a watch that may use a right for %q seconds after it was taken away", r.Query.Get("timeoutSeconds"))
				}
			}
		})
	}
}

// What a plane knows when it ends stays known: its clients must not be told that everything is gone.
func TestFollowEnd(t *testing.T) {
	server := kubetest.New(t)
	server.Put("pods", pod("shop", "a", "1"))
	ctx, cancel := context.WithCancel(t.Context())
	sink := newSink()
	w := Follow(ctx, open(t, server), Pods, "shop", sink)
	within(t, "the first list", w.Synced())
	cancel()
	w.Stop()
	sink.await(t, map[string]string{"shop/a": "1"})
}

// Rights that come late are waited for, and a watch that waits for them can be stopped.
func TestFollowRefused(t *testing.T) {
	for _, come := range []bool{true, false} {
		server := kubetest.New(t)
		server.Put("pods", pod("shop", "a", "1"))
		server.Refuse("shop")
		sink := newSink()
		w := Follow(t.Context(), open(t, server), Pods, "shop", sink)
		server.Await("three refusals", func() bool { return len(server.Requests()) >= 3 })
		select {
		case <-w.Synced():
			t.Error("synced without a list")
		default:
		}
		if come {
			server.Allow("shop")
			within(t, "the first list", w.Synced())
			sink.await(t, map[string]string{"shop/a": "1"})
		}
		w.Stop()
		sink.await(t, map[string]string{})
	}
}

func TestFollowNamed(t *testing.T) {
	server := kubetest.New(t)
	server.Put("pods", pod("shop", "a", "1"))
	server.Put("pods", pod("shop", "b", "1"))
	sink := newSink()
	w := Follow(t.Context(), open(t, server), Pods.Named("b"), "shop", sink)
	defer w.Stop()
	within(t, "the first list", w.Synced())
	server.Put("pods", pod("shop", "a", "2"))
	server.Put("pods", pod("shop", "b", "2"))
	sink.await(t, map[string]string{"shop/b": "2"})
	if Pods.name != "" {
		t.Errorf("the kind itself is narrowed to %q", Pods.name)
	}
}

// A plane hears of its own writes to a Membership, but nothing more than that one was made.
func TestMembershipStatusTrimmed(t *testing.T) {
	server := kubetest.New(t)
	c := open(t, server)
	server.Put("memberships", membership("shop"))
	got := make(membershipSink, 10)
	w := Follow(t.Context(), c, Memberships, "istio-system", got)
	defer w.Stop()
	m := <-got
	if err := c.ReportMembership(t.Context(), m, reported(m)); err != nil {
		t.Fatal(err)
	}
	again := <-got
	if again.ResourceVersion == m.ResourceVersion {
		t.Error("the report changed nothing")
	}
	again.ResourceVersion = m.ResourceVersion
	m.Status.Watching, m.Status.UID = true, m.UID
	if !reflect.DeepEqual(again, m) {
		t.Errorf("got %+v after the report, %+v before", again, m)
	}
}

// Tries of what is refused are 20 ms apart, then twice as long each, at most a second; only a refusal is tried again.
func TestAllowed(t *testing.T) {
	forbidden := apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, "", errors.New("no binding"))
	broken := errors.New("connection refused")
	for name, c := range map[string]struct {
		answers []error // the last is repeated
		end     time.Duration
		want    error
		at      []time.Duration
		logged  int
	}{
		"rights at once":     {answers: []error{nil}, at: []time.Duration{0}},
		"rights after 60 ms": {answers: []error{forbidden, forbidden, nil}, at: ms(0, 20, 60)},
		"no rights": {
			answers: []error{forbidden}, end: 4 * time.Second, want: context.DeadlineExceeded,
			at: ms(0, 20, 60, 140, 300, 620, 1260, 2260, 3260), logged: 1,
		},
		"no server": {answers: []error{forbidden, broken}, want: broken, at: ms(0, 20)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := t.Context()
				if c.end > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, c.end)
					defer cancel()
				}
				var log counter
				var at []time.Duration
				began := time.Now()
				_, err := allowed(ctx, slog.New(&log), func() (int, error) {
					at = append(at, time.Since(began))
					return 0, c.answers[min(len(at), len(c.answers))-1]
				})
				if !errors.Is(err, c.want) {
					t.Errorf("got %v, want %v", err, c.want)
				}
				if !slices.Equal(at, c.at) {
					t.Errorf("tried at %v, want %v", at, c.at)
				}
				if log.n != c.logged {
					t.Errorf("logged %d times, want %d", log.n, c.logged)
				}
			})
		})
	}
}

func ms(n ...int) []time.Duration {
	out := make([]time.Duration, len(n))
	for i, n := range n {
		out[i] = time.Duration(n) * time.Millisecond
	}
	return out
}

// counter is a slog.Handler that counts.
type counter struct{ n int }

func (*counter) Enabled(context.Context, slog.Level) bool { return true }
func (c *counter) Handle(context.Context, slog.Record) error {
	c.n++
	return nil
}
func (c *counter) WithAttrs([]slog.Attr) slog.Handler { return c }
func (c *counter) WithGroup(string) slog.Handler      { return c }

func TestOpenWithoutServer(t *testing.T) {
	if _, err := Open("/none/kubeconfig", "c1", "one", slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "/none/kubeconfig") {
		t.Errorf("got %v, want an error that names the file", err)
	}
}
