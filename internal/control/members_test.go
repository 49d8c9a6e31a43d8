package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/kube/kubetest"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const system = "istio-system"

// town is a plane's members, before an API server in memory.
type town struct {
	*members
	api     *kubetest.Server
	graph   *graph.Graph
	end     func()
	leaving chan []string // what was watched when the streams of a namespace were ended, led by its name
}

func newTown(t *testing.T) *town {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	w := &town{api: kubetest.New(t), graph: graph.New(graph.Options{}), leaving: make(chan []string, 1000)}
	cluster, err := kube.Open(w.api.Kubeconfig(), "c1", "one", log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	p := NewPipeline(w.graph, Options{Mesh: "one", Namespace: system, Revision: "default", Cluster: "c1"})
	w.members = newMembers(ctx, log, cluster, w.graph, p.Sources, "ours", func(k mesh.NamespaceKey) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.leaving <- append([]string{k.Name}, slices.Sorted(maps.Keys(w.byNS[k.Name].watches))...)
	})
	watch := kube.Follow(ctx, cluster, kube.Memberships, system, w.members)
	<-watch.Synced()
	w.end = sync.OnceFunc(func() {
		cancel()
		watch.Stop()
		w.Close()
	})
	t.Cleanup(w.end)
	return w
}

func (w *town) put(namespace string, phase heddlev1alpha1.Phase, kinds ...string) {
	w.api.Put("memberships", &heddlev1alpha1.Membership{
		ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: namespace},
		Spec:       heddlev1alpha1.MembershipSpec{Namespace: namespace, UID: "u", Phase: phase, Kinds: kinds},
	})
}

// watches are those of a namespace.
func (w *town) watches(namespace string) []string {
	var out []string
	for _, name := range w.api.Watches() {
		if what, ok := strings.CutPrefix(name, namespace+"/"); ok {
			out = append(out, what)
		}
	}
	return out
}

func (w *town) awaitWatches(namespace string, want ...string) {
	w.api.Await(fmt.Sprint("watches of ", namespace, ": ", want), func() bool { return slices.Equal(w.watches(namespace), want) })
}

// await returns when the Membership's report says so of its newest generation.
func (w *town) await(namespace string, watching bool) {
	w.api.Await(fmt.Sprint("the report of ", namespace), func() bool {
		get := func(field ...string) any { return w.api.Get("memberships", system, namespace, field...) }
		return get("status", "watching") == watching && get("status", "rootWritten") == watching &&
			get("status", "generation") == get("metadata", "generation") && get("status", "uid") == get("metadata", "uid")
	})
}

func (w *town) root(namespace string) any {
	return w.api.Get("configmaps", namespace, kube.RootConfigMap, "data", kube.RootKey)
}

// position returns where in the log of requests the first such one is.
func (w *town) position(t *testing.T, method, path string) int {
	t.Helper()
	i := slices.IndexFunc(w.api.Requests(), func(r kubetest.Request) bool {
		return r.Method == method && r.Path == path && r.Code < 300
	})
	if i < 0 {
		t.Fatalf("no %s %s", method, path)
	}
	return i
}

func (w *town) reports(namespace string) (n int) {
	for _, r := range w.api.Requests() {
		if r.Path == "/apis/heddle.dev/v1alpha1/namespaces/"+system+"/memberships/"+namespace+"/status" {
			n++
		}
	}
	return n
}

var (
	opened   = []string{"endpointslices", kube.RootConfigMap, "peerauthentications", "pods", "services"}
	always   = []string{"configmaps/istio-ca-root-cert", "endpointslices", "peerauthentications", "pods", "services"}
	withRule = []string{"configmaps/istio-ca-root-cert", "destinationrules", "endpointslices", "peerauthentications", "pods", "services"}
	rootPath = func(namespace string) string {
		return "/api/v1/namespaces/" + namespace + "/configmaps/" + kube.RootConfigMap
	}
)

// A namespace joins: its watches open, then the root is written, then that is reported, once.
func TestJoin(t *testing.T) {
	w := newTown(t)
	w.put("shop", heddlev1alpha1.Joining, "destinationrules.networking.istio.io")
	w.await("shop", true)
	w.awaitWatches("shop", withRule...)
	root := w.position(t, http.MethodPatch, rootPath("shop"))
	for _, r := range w.api.Requests()[root:] {
		if r.Query.Get("watch") != "" && strings.Contains(r.Path, "/namespaces/shop/") {
			t.Errorf("the root was written before the watch of %s", r.Path)
		}
	}
	if status := w.position(t, http.MethodPatch, "/apis/heddle.dev/v1alpha1/namespaces/"+system+"/memberships/shop/status"); status < root {
		t.Error("reported before the root was written")
	}
	if got := w.root("shop"); got != "ours" {
		t.Errorf("root is %v", got)
	}
	if !w.Member("c1", "shop") || w.Member("c2", "shop") || w.Member("c1", "other") {
		t.Error("Member is wrong")
	}
	w.graph.Step()
	if rows := w.sources.Memberships.All(); len(rows) != 1 || rows[0].Key.Name != "shop" {
		t.Errorf("served are %v", rows)
	}
	if err := w.Opened(t.Context()); err != nil {
		t.Error(err)
	}

	w.put("shop", heddlev1alpha1.Member) // a newer generation, and no rule any more
	w.await("shop", true)
	w.awaitWatches("shop", always...)
	w.put("other", heddlev1alpha1.Joining)
	w.await("other", true)
	if n := w.reports("shop"); n != 2 {
		t.Errorf("two states were reported %d times", n)
	}
}

// A namespace leaves: its streams end first, then its watches, then its root goes, then that is reported.
func TestLeave(t *testing.T) {
	w := newTown(t)
	for _, namespace := range []string{"shop", "other"} {
		w.put(namespace, heddlev1alpha1.Member)
		w.await(namespace, true)
		w.awaitWatches(namespace, always...)
	}
	w.put("shop", heddlev1alpha1.Leaving)
	w.await("shop", false)
	if got := <-w.leaving; got[0] != "shop" || !slices.Equal(got[1:], opened) {
		t.Errorf("streams ended with these watches open: %v", got)
	}
	w.awaitWatches("shop")
	if w.root("shop") != nil || w.root("other") != "ours" {
		t.Errorf("roots are %v and %v", w.root("shop"), w.root("other"))
	}
	if w.Member("c1", "shop") || !w.Member("c1", "other") {
		t.Error("Member is wrong")
	}
	if _, outside := w.Outside("shop"); !outside || w.Wait(t.Context(), "shop") {
		t.Error("it is not known to be outside")
	}
	w.graph.Step()
	if rows := w.sources.Memberships.All(); len(rows) != 1 || rows[0].Key.Name != "other" {
		t.Errorf("served are %v", rows)
	}
	w.put("shop", heddlev1alpha1.Joining)
	w.await("shop", true)
	w.awaitWatches("shop", always...)
	if got := w.root("shop"); got != "ours" {
		t.Errorf("back again, its root is %v", got)
	}
}

// What another control plane has written stays, come what may.
func TestLeaveForeignRoot(t *testing.T) {
	w := newTown(t)
	w.api.Put("configmaps", &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: kube.RootConfigMap, ManagedFields: []metav1.ManagedFieldsEntry{
			{Manager: "istiod-two", FieldsV1: &metav1.FieldsV1{Raw: []byte(`{"f:data":{"f:root-cert.pem":{}}}`)}},
		}},
		Data: map[string]string{kube.RootKey: "theirs"},
	})
	w.put("shop", heddlev1alpha1.Member)
	w.api.Await("two tries", func() bool {
		n := 0
		for _, r := range w.api.Requests() {
			if r.Method == http.MethodPatch && r.Path == rootPath("shop") && r.Code == http.StatusConflict {
				n++
			}
		}
		return n >= 2
	})
	w.put("shop", heddlev1alpha1.Leaving)
	w.await("shop", false)
	if got := w.root("shop"); got != "theirs" {
		t.Errorf("root is %v", got)
	}
}

// The operator may take the Membership away at once; the plane has no rights to clean up then, and tries none.
func TestMembershipDeleted(t *testing.T) {
	w := newTown(t)
	w.put("shop", heddlev1alpha1.Member)
	w.await("shop", true)
	w.awaitWatches("shop", always...)
	w.api.Delete("memberships", system, "shop")
	if got := <-w.leaving; got[0] != "shop" || !slices.Equal(got[1:], opened) {
		t.Errorf("streams ended with these watches open: %v", got)
	}
	w.awaitWatches("shop")
	if w.Member("c1", "shop") {
		t.Error("it is a member still")
	}
	if got := w.root("shop"); got != "ours" {
		t.Errorf("root is %v", got)
	}
	w.put("shop", heddlev1alpha1.Joining) // another object of the name
	w.await("shop", true)
	w.awaitWatches("shop", always...)
}

// A namespace comes back before it could be left.
func TestRejoinWhileLeaving(t *testing.T) {
	w := newTown(t)
	w.put("shop", heddlev1alpha1.Member)
	w.await("shop", true)
	w.api.Refuse("shop") // the operator was faster
	w.put("shop", heddlev1alpha1.Leaving)
	w.api.Await("a try to remove the root", func() bool { return w.api.Asked(http.MethodGet, rootPath("shop"), http.StatusForbidden) })
	w.put("shop", heddlev1alpha1.Joining)
	w.api.Await("watches to be refused", func() bool {
		return slices.ContainsFunc(w.api.Requests(), func(r kubetest.Request) bool {
			return r.Query.Get("watch") != "" && r.Code == http.StatusForbidden
		})
	})
	w.api.Allow("shop")
	w.await("shop", true)
	w.awaitWatches("shop", always...)
	if got := w.root("shop"); got != "ours" {
		t.Errorf("root is %v", got)
	}
}

// A namespace whose rights never come holds up no other, and can leave.
func TestRightsNeverCome(t *testing.T) {
	w := newTown(t)
	w.api.Refuse("stuck")
	w.put("stuck", heddlev1alpha1.Joining)
	w.put("fine", heddlev1alpha1.Joining)
	w.put("going", heddlev1alpha1.Leaving)
	w.await("fine", true)
	w.await("going", false)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.Opened(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, though one is not open", err)
	}
	if !w.Member("c1", "stuck") {
		t.Error("a joining namespace is no member")
	}
	w.put("stuck", heddlev1alpha1.Leaving)
	w.api.Await("a try to remove the root", func() bool { return w.api.Asked(http.MethodGet, rootPath("stuck"), http.StatusForbidden) })
	if err := w.Opened(t.Context()); err != nil {
		t.Error(err)
	}
	w.api.Allow("stuck")
	w.await("stuck", false)
}

// A root that somebody changed or removed is written again.
func TestRootRestored(t *testing.T) {
	w := newTown(t)
	w.put("shop", heddlev1alpha1.Member)
	w.await("shop", true)
	w.awaitWatches("shop", always...)
	w.api.Put("configmaps", &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: kube.RootConfigMap}, Data: map[string]string{kube.RootKey: "mine"},
	})
	w.api.Await("our root", func() bool { return w.root("shop") == "ours" })
	w.api.Delete("configmaps", "shop", kube.RootConfigMap)
	w.api.Await("our root", func() bool { return w.root("shop") == "ours" })
}

// The end of the plane is nobody's leave: roots, reports and what is served stay.
func TestShutdown(t *testing.T) {
	w := newTown(t)
	w.api.Refuse("stuck")
	w.put("stuck", heddlev1alpha1.Joining)
	w.put("shop", heddlev1alpha1.Member)
	w.await("shop", true)
	w.end()
	w.awaitWatches("shop")
	if got := w.root("shop"); got != "ours" {
		t.Errorf("root is %v", got)
	}
	if n := w.reports("shop"); n != 1 || len(w.leaving) > 0 {
		t.Errorf("%d reports, %d namespaces left", n, len(w.leaving))
	}
	w.graph.Step()
	if n := len(w.sources.Memberships.All()); n != 1 {
		t.Errorf("%d are served", n)
	}
}

// However Memberships come and go, in the end each namespace is where the last one wants it.
func TestMembersHistory(t *testing.T) {
	w := newTown(t)
	phases := []heddlev1alpha1.Phase{heddlev1alpha1.Joining, heddlev1alpha1.Member, heddlev1alpha1.Leaving, ""}
	names := []string{"a", "b", "c"}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var wg sync.WaitGroup
	for i, namespace := range names {
		dice := rand.New(rand.NewPCG(seed, uint64(i)))
		wg.Go(func() {
			for range 60 {
				switch phase := phases[dice.IntN(4)]; {
				case phase == "":
					w.api.Delete("memberships", system, namespace)
				case dice.IntN(4) == 0:
					w.api.Delete("configmaps", namespace, kube.RootConfigMap)
				default:
					w.put(namespace, phase, []string{"destinationrules.networking.istio.io"}[:dice.IntN(2)]...)
				}
			}
		})
	}
	wg.Wait()
	w.put("a", heddlev1alpha1.Member)
	w.put("b", heddlev1alpha1.Leaving)
	w.api.Delete("memberships", system, "c")
	w.await("a", true)
	w.await("b", false)
	w.awaitWatches("a", always...)
	w.awaitWatches("b")
	w.awaitWatches("c")
	if w.root("a") != "ours" || w.root("b") != nil {
		t.Errorf("roots are %v and %v", w.root("a"), w.root("b"))
	}
	w.graph.Step()
	var served []string
	for _, row := range w.sources.Memberships.All() {
		served = append(served, row.Key.Name)
	}
	if !slices.Equal(served, []string{"a"}) {
		t.Errorf("served are %v", served)
	}
}

// Injection waits for a Membership that is not there yet.
func TestWait(t *testing.T) {
	w := newTown(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if w.Wait(ctx, "shop") {
		t.Error("a namespace that never comes is a member")
	}
	came := make(chan bool)
	go func() { came <- w.Wait(t.Context(), "shop") }()
	w.put("other", heddlev1alpha1.Member)
	w.await("other", true)
	w.put("shop", heddlev1alpha1.Joining)
	if !<-came {
		t.Error("it came and was not seen")
	}
	go func() { came <- w.Wait(t.Context(), "late") }()
	w.put("late", heddlev1alpha1.Leaving)
	if <-came {
		t.Error("a leaving namespace is a member")
	}
}
