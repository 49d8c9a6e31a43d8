package control

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

const (
	retryFirst = 50 * time.Millisecond // between tries of a write that failed for other than a conflict
	retryMost  = 5 * time.Second
)

// members follows the Membership objects of the plane's own namespace: for each member namespace it opens the watches,
// writes the mesh's root and reports, and undoes all that when the namespace leaves. It implements kube.Sink.
type members struct {
	log     *slog.Logger
	cluster *kube.Cluster
	sources *Sources
	root    string                  // the bundle that each member gets
	left    func(mesh.NamespaceKey) // called when a namespace is no longer served, before its watches close
	// awaited holds each namespace that some plane has read, as its Membership's status says, and this one has not yet:
	// proxies may hold what is in it.
	awaited *graph.Source[mesh.NamespaceKey, struct{}]

	ctx     context.Context // of the plane; ends all members
	wg      sync.WaitGroup
	mu      sync.Mutex // guards the fields below
	byNS    map[string]*member
	changed chan struct{} // closed and replaced whenever a Membership changes
}

// member is one namespace; its goroutine owns everything but what members.mu guards.
type member struct {
	*members
	namespace string
	want      chan struct{}              // holds a token when latest has changed
	latest    *heddlev1alpha1.Membership // guarded by members.mu
	read      bool                       // what is in the namespace is staged, and served; guarded by members.mu
	opened    chan struct{}              // closed when what was wanted first is done
	open      func()                     // closes opened

	watches  map[string]*kube.Watch // by resource
	rootSeen chan *string           // the root that the namespace holds, nil for none; the newest only
	done     version                // what was reported
	ready    metav1.Condition       // as reported
}

// version is one state of what a Membership asks for.
type version struct {
	uid        types.UID
	generation int64
}

func newMembers(ctx context.Context, log *slog.Logger, c *kube.Cluster, g *graph.Graph, s *Sources, root string, left func(mesh.NamespaceKey)) *members {
	return &members{
		log: log, cluster: c, sources: s, root: root, left: left, awaited: graph.NewSource[mesh.NamespaceKey, struct{}](g, "source.awaited", nil),
		ctx: ctx, byNS: map[string]*member{}, changed: make(chan struct{}),
	}
}

// Member tells whether a namespace is a member now, joining ones included.
func (m *members) Member(cluster mesh.ClusterID, namespace string) bool {
	phase, _ := m.phase(namespace)
	return cluster == m.cluster.ID && joins(phase)
}

// phase returns that of a namespace's Membership, empty if there is none, and a channel that is closed when one changes.
func (m *members) phase(namespace string) (heddlev1alpha1.Phase, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.byNS[namespace]; e != nil && e.latest != nil {
		return e.latest.Spec.Phase, m.changed
	}
	return "", m.changed
}

// in counts the namespaces of a phase.
func (m *members) in(phase heddlev1alpha1.Phase) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, e := range m.byNS {
		if e.latest != nil && e.latest.Spec.Phase == phase {
			n++
		}
	}
	return n
}

// unread returns the members that are not read yet.
func (m *members) unread() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for namespace, e := range m.byNS {
		if e.latest != nil && joins(e.latest.Spec.Phase) && !e.read {
			out = append(out, namespace)
		}
	}
	slices.Sort(out)
	return out
}

func joins(p heddlev1alpha1.Phase) bool { return p != "" && p != heddlev1alpha1.Leaving }

// Wait returns true as soon as namespace is a member, joining ones included, and false when ctx ends first or the
// namespace is known to be leaving.
func (m *members) Wait(ctx context.Context, namespace string) bool {
	for {
		phase, changed := m.phase(namespace)
		if phase != "" {
			return joins(phase)
		}
		select {
		case <-ctx.Done():
			return false
		case <-changed:
		}
	}
}

// Outside reports whether a namespace is known to be leaving. Who owns it next a plane cannot know; it has no right to.
func (m *members) Outside(namespace string) (owner string, outside bool) {
	phase, _ := m.phase(namespace)
	return "", phase == heddlev1alpha1.Leaving
}

// Opened returns when every namespace that is a member now has its watches open, or ctx ends.
func (m *members) Opened(ctx context.Context) error {
	m.mu.Lock()
	all := slices.Collect(maps.Keys(m.byNS))
	m.mu.Unlock()
	for _, namespace := range all {
		if err := m.Read(ctx, namespace); err != nil {
			return err
		}
	}
	return nil
}

// Read returns when a namespace is read, if it is a member now, or ctx ends.
func (m *members) Read(ctx context.Context, namespace string) error {
	m.mu.Lock()
	e := m.byNS[namespace]
	m.mu.Unlock()
	if e == nil {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-e.opened:
		return nil
	}
}

// Close waits for what has been started; ctx must have ended and the watch of the memberships too.
func (m *members) Close() { m.wg.Wait() }

// Set, Delete and Replace take what the API server says of the memberships.
func (m *members) Set(k mesh.ObjectKey, obj *heddlev1alpha1.Membership) { m.update(k.Name, obj) }

func (m *members) Delete(k mesh.ObjectKey) { m.update(k.Name, nil) }

func (m *members) Replace(rows []graph.Row[mesh.ObjectKey, *heddlev1alpha1.Membership], _ func(mesh.ObjectKey) bool) {
	m.mu.Lock()
	gone := make(map[string]bool, len(m.byNS))
	for ns := range m.byNS {
		gone[ns] = true
	}
	m.mu.Unlock()
	for _, r := range rows {
		delete(gone, r.Key.Name)
		m.update(r.Key.Name, r.Val)
	}
	for ns := range gone {
		m.update(ns, nil)
	}
}

// update hands the newest object to the namespace's goroutine, starting it if there is none; nil means that it is gone.
func (m *members) update(namespace string, obj *heddlev1alpha1.Membership) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.byNS[namespace]
	if e == nil {
		if obj == nil {
			return
		}
		e = &member{
			members: m, namespace: namespace, want: make(chan struct{}, 1), opened: make(chan struct{}),
			watches: map[string]*kube.Watch{}, rootSeen: make(chan *string, 1),
		}
		e.open = sync.OnceFunc(func() { close(e.opened) })
		m.byNS[namespace] = e
		m.wg.Go(e.run)
	}
	e.latest = obj
	if obj != nil && joins(obj.Spec.Phase) { // though it may never be read: its pods are peers all the same
		m.sources.Trusted.Set(e.key(), struct{}{})
	} else {
		m.sources.Trusted.Delete(e.key())
	}
	e.awaitLocked()
	close(m.changed)
	m.changed = make(chan struct{})
	e.wake()
}

// reading notes whether the namespace is read, after what is in it was staged and before it goes.
func (e *member) reading(read bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.read = read
	e.awaitLocked()
}

func (e *member) awaitLocked() {
	if o := e.latest; o != nil && joins(o.Spec.Phase) && o.Status.Watching && o.Status.UID == o.UID && !e.read {
		e.awaited.Set(e.place(), struct{}{})
		return
	}
	e.awaited.Delete(e.place())
}

func (e *member) wake() {
	select {
	case e.want <- struct{}{}:
	default:
	}
}

// run brings the namespace to what its Membership says, again and again, until the Membership is gone.
func (e *member) run() {
	defer e.open()
	wait := retryFirst
	var retry <-chan time.Time
	for {
		select {
		case <-e.ctx.Done():
			for _, w := range e.watches {
				w.Stop()
			}
			return
		case <-e.want:
			wait = retryFirst
		case <-retry:
			wait = min(2*wait, retryMost)
		case have := <-e.rootSeen:
			if e.watches[kube.RootConfigMap] == nil || have != nil && *have == e.root {
				continue
			}
			e.done = version{}
		}
		e.mu.Lock()
		obj := e.latest
		e.mu.Unlock()

		if obj == nil { // the operator takes the rights away without waiting; it removes the root too if we can't
			e.leave()
			if e.forget() {
				return
			}
			continue
		}
		retry = nil
		if err := e.bring(obj); err != nil && e.ctx.Err() == nil {
			e.log.LogAttrs(e.ctx, slog.LevelWarn, "membership not brought about yet",
				slog.String("namespace", e.namespace), slog.Any("err", err))
			retry = time.After(wait)
		}
	}
}

// bring does what obj asks for and reports it, unless that was done: an object that differs in its status alone is what
// the last report made.
func (e *member) bring(obj *heddlev1alpha1.Membership) error {
	switch {
	case e.done == version{obj.UID, obj.Generation}:
		return nil
	case obj.Spec.Phase != heddlev1alpha1.Leaving:
		return e.join(obj)
	}
	e.leave()
	e.open()
	if err := e.cluster.DeleteRoot(e.ctx, e.namespace, e.root); err != nil {
		return err
	}
	return e.report(obj, false)
}

// forget ends the goroutine unless the namespace has come back meanwhile.
func (e *member) forget() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.latest != nil {
		return false
	}
	delete(e.byNS, e.namespace)
	return true
}

// follow says how each kind is read in a namespace, by the name that Membership uses.
func (e *member) follow(kinds []string) map[string]func() *kube.Watch {
	all := map[string]func() *kube.Watch{
		"services":            follow(e, kube.Services, e.sources.Services),
		"endpointslices":      follow(e, kube.EndpointSlices, e.sources.EndpointSlices),
		"pods":                follow(e, kube.Pods, e.sources.Pods),
		"peerauthentications": follow(e, kube.PeerAuthentications, e.sources.PeerAuthentications),
		kube.RootConfigMap:    follow[corev1.ConfigMap](e, kube.ConfigMaps.Named(kube.RootConfigMap), rootSink{e}),
	}
	if slices.Contains(kinds, "destinationrules.networking.istio.io") {
		all["destinationrules"] = follow(e, kube.DestinationRules, e.sources.DestinationRules)
	}
	return all
}

func follow[T any, P kube.Object[T]](e *member, kind kube.Kind[P], sink kube.Sink[P]) func() *kube.Watch {
	return func() *kube.Watch { return kube.Follow[T, P](e.ctx, e.cluster, kind, e.namespace, sink) }
}

// join opens the watches that are wanted and not open, closes those of kinds that are gone, and writes the root.
func (e *member) join(obj *heddlev1alpha1.Membership) error {
	wanted := e.follow(obj.Spec.Kinds)
	for name, w := range e.watches {
		if wanted[name] == nil {
			w.Stop()
			delete(e.watches, name)
		}
	}
	for name, open := range wanted {
		if e.watches[name] == nil {
			e.watches[name] = open()
		}
	}
	for _, w := range e.watches {
		select {
		case <-e.ctx.Done():
			return e.ctx.Err()
		case <-e.want: // the namespace may be leaving while a watch still waits for its rights
			e.wake()
			return nil
		case <-w.Synced():
		}
	}
	e.sources.Memberships.Set(e.key(), obj)
	e.reading(true)
	e.open()
	select {
	case <-e.rootSeen: // by the watch that was opened just now; what comes from here on is news
	default:
	}
	if err := e.cluster.WriteRoot(e.ctx, e.namespace, e.root); err != nil {
		return err
	}
	return e.report(obj, true)
}

// leave stops serving the namespace: its clients are told why before what they hold goes, and that before what they are.
func (e *member) leave() {
	e.left(e.place())
	e.reading(false)
	e.sources.Memberships.Delete(e.key())
	for name, w := range e.watches {
		w.Stop()
		delete(e.watches, name)
	}
}

func (e *member) key() mesh.ObjectKey {
	return mesh.ObjectKey{Cluster: e.cluster.ID, Name: e.namespace}
}

func (e *member) place() mesh.NamespaceKey {
	return mesh.NamespaceKey{Cluster: e.cluster.ID, Name: e.namespace}
}

// report says on the Membership what was done about it. A conflict means that a newer one is on its way and will wake us.
func (e *member) report(obj *heddlev1alpha1.Membership, in bool) error {
	if e.ready.Status != readiness(in) {
		e.ready = metav1.Condition{
			Type: "Ready", Status: readiness(in), Reason: "Left", Message: "watches are closed and the mesh's root is deleted", LastTransitionTime: metav1.Now(),
		}
		if in {
			e.ready.Reason, e.ready.Message = "Joined", "watches are open and the mesh's root is written"
		}
	}
	e.ready.ObservedGeneration = obj.Generation
	err := e.cluster.ReportMembership(e.ctx, obj, heddlev1alpha1.MembershipStatus{
		Watching: in, RootWritten: in, UID: obj.UID, Generation: obj.Generation, Conditions: []metav1.Condition{e.ready},
	})
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil
	}
	if err == nil {
		e.done = version{obj.UID, obj.Generation}
	}
	return err
}

func readiness(in bool) metav1.ConditionStatus {
	if in {
		return metav1.ConditionTrue
	}
	return metav1.ConditionFalse
}

// rootSink hears what the namespace's root ConfigMap holds; the newest word counts.
type rootSink struct{ *member }

func (s rootSink) saw(root *string) {
	select {
	case <-s.rootSeen:
	default:
	}
	s.rootSeen <- root
}

func (s rootSink) Set(_ mesh.ObjectKey, c *corev1.ConfigMap) { r := c.Data[kube.RootKey]; s.saw(&r) }

func (s rootSink) Delete(mesh.ObjectKey) { s.saw(nil) }

func (s rootSink) Replace(rows []graph.Row[mesh.ObjectKey, *corev1.ConfigMap], _ func(mesh.ObjectKey) bool) {
	if len(rows) == 0 {
		s.saw(nil)
		return
	}
	s.Set(rows[0].Key, rows[0].Val)
}
