package control

import (
	"cmp"
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// podWait is how long a caller waits for the plane's watch to deliver its pod: that lags some milliseconds behind the pod, a
// second when the API server is busy. Who is refused comes again.
const podWait = 2 * time.Second

// pods finds callers' pods among those that the plane's watches deliver; it implements identity.Pods. Whoever is not there
// although its namespace is read has gone, or never was: a token is good for up to 70 s after its pod, and a plane that has
// just begun has not seen it go.
type pods struct {
	find func(mesh.ObjectKey) (*corev1.Pod, bool)            // what was published
	read func(cluster mesh.ClusterID, namespace string) bool // whether all of a namespace was

	mu      sync.Mutex    // guards the field below
	changed chan struct{} // closed and replaced at each round
}

func newPods(p *Pipeline) *pods {
	return &pods{
		find:    p.Pods.Lookup,
		read:    func(c mesh.ClusterID, namespace string) bool { _, known := p.Member(c, namespace); return known },
		changed: make(chan struct{}),
	}
}

// Pod implements identity.Pods.
func (p *pods) Pod(ctx context.Context, cluster mesh.ClusterID, namespace, name, uid string) (identity.Pod, bool) {
	late := time.NewTimer(podWait)
	defer late.Stop()
	for {
		p.mu.Lock()
		changed := p.changed
		p.mu.Unlock()
		read := p.read(cluster, namespace) // first: what is found after it is no older
		o, ok := p.find(mesh.ObjectKey{Cluster: cluster, Namespace: namespace, Name: name})
		if ok && string(o.UID) == uid {
			return identity.Pod{
				UID: uid, ServiceAccount: cmp.Or(o.Spec.ServiceAccountName, "default"), ProxyType: "sidecar", Deleted: ended(o),
			}, true
		}
		select {
		case <-changed:
			continue
		case <-late.C:
		case <-ctx.Done():
		}
		return identity.Pod{UID: uid, Deleted: true}, read
	}
}

// Gone implements identity.Pods.
func (p *pods) Gone(cluster mesh.ClusterID, namespace, name, uid string) bool {
	if !p.read(cluster, namespace) { // before it is looked for: a round may end in between
		return false
	}
	o, ok := p.find(mesh.ObjectKey{Cluster: cluster, Namespace: namespace, Name: name})
	return !ok || string(o.UID) != uid || ended(o)
}

// wake tells those who wait that a round was published.
func (p *pods) wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.changed)
	p.changed = make(chan struct{})
}

// ended: its containers will not run again.
func ended(o *corev1.Pod) bool {
	return o.Status.Phase == corev1.PodSucceeded || o.Status.Phase == corev1.PodFailed
}

// gonePods returns the UIDs of the pods that a round took away. Pods of a namespace that has left the mesh are not deleted,
// they are only out of sight; they are welcome when it comes back.
func gonePods(changes []graph.Change[mesh.ObjectKey, *corev1.Pod], members identity.Members) map[string]bool {
	var uids map[string]bool
	for _, c := range changes {
		if !c.Had || c.Has && c.New.UID == c.Old.UID && !ended(c.New) || !members.Member(c.Key.Cluster, c.Key.Namespace) {
			continue
		}
		if uids == nil {
			uids = map[string]bool{}
		}
		uids[string(c.Old.UID)] = true
	}
	return uids
}
