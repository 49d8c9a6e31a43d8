package control

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// A pod is known by its UID, whoever had its name before and whether it has an address yet; one that the plane would know and
// does not is deleted, once the watch has had its time.
func TestPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld("a")
		p := newPods(w.Pipeline)
		pod := func(uid string, phase corev1.PodPhase) *corev1.Pod {
			return &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db-0", UID: types.UID(uid)},
				Spec:       corev1.PodSpec{ServiceAccountName: "db"}, Status: corev1.PodStatus{Phase: phase},
			}
		}
		step := func() map[string]bool {
			w.graph.Step()
			p.wake()
			return gonePods(w.Sources.Pods.Changed(), namespaces{"shop"})
		}
		want := func(uid, want string, waits time.Duration) {
			t.Helper()
			began := time.Now()
			o, known := p.Pod(t.Context(), "c1", "shop", "db-0", uid)
			got := fmt.Sprint(o.ServiceAccount, " known=", known, " deleted=", o.Deleted, " gone=", p.Gone("c1", "shop", "db-0", uid))
			if got != want || time.Since(began) != waits {
				t.Errorf("%s is %s after %v, want %s after %v", uid, got, time.Since(began), want, waits)
			}
		}
		const deleted, runs = " known=true deleted=true gone=true", "db known=true deleted=false gone=false"
		w.set(pod("old", corev1.PodRunning), false)
		step()
		want("new", " known=false deleted=true gone=false", podWait) // the namespace is not read: nobody can know
		w.set(&heddlev1alpha1.Membership{
			ObjectMeta: metav1.ObjectMeta{Name: "shop"}, Spec: heddlev1alpha1.MembershipSpec{Namespace: "shop", Phase: heddlev1alpha1.Member},
		}, false)
		step()
		want("old", runs, 0)
		want("new", deleted, podWait)

		w.set(pod("old", corev1.PodRunning), true)
		if gone := step(); len(gone) != 1 || !gone["old"] {
			t.Errorf("gone are %v, want the old one", gone)
		}
		want("old", deleted, podWait)

		late := time.Second // as much as the watch lags
		var watch sync.WaitGroup
		watch.Go(func() {
			time.Sleep(late)
			w.set(pod("new", corev1.PodPending), false) // its kubelet has not written an address
			step()
		})
		want("new", runs, late)
		watch.Wait()
		want("old", deleted, podWait)

		w.set(pod("new", corev1.PodFailed), false)
		if gone := step(); len(gone) != 1 || !gone["new"] {
			t.Errorf("gone are %v, want the one that failed", gone)
		}
		want("new", "db known=true deleted=true gone=true", 0)

		w.Sources.Pods.Replace(nil, func(mesh.ObjectKey) bool { return true })
		w.graph.Step()
		if gone := gonePods(w.Sources.Pods.Changed(), namespaces{}); gone != nil {
			t.Errorf("pods of a namespace that left are gone: %v", gone)
		}
	})
}

// A namespace that is read between two look-ups has no deleted pods for that.
func TestPodsReadMeanwhile(t *testing.T) {
	published := false
	round := func() { published = true } // of all that is in the namespace
	p := &pods{
		find: func(mesh.ObjectKey) (*corev1.Pod, bool) {
			defer round()
			return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "u1"}}, published
		},
		read:    func(mesh.ClusterID, string) bool { defer round(); return published },
		changed: make(chan struct{}),
	}
	if p.Gone("c1", "shop", "cart-1", "u1") {
		t.Error("a pod is gone that was read just now")
	}
	published = false
	synctest.Test(t, func(t *testing.T) {
		p.changed = make(chan struct{})
		if pod, known := p.Pod(t.Context(), "c1", "shop", "cart-1", "u1"); known && pod.Deleted {
			t.Error("a pod is deleted that was read just now")
		}
	})
}
