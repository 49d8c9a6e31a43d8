package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statusv3 "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/anypb"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/yaml"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
	"github.com/heddle-mesh/heddle/internal/operator"
)

func istio(name, namespace, selector string) sailv1.Istio {
	i := sailv1.Istio{ObjectMeta: metav1.ObjectMeta{Name: name, Generation: 2}}
	i.Status.ObservedGeneration = 2
	i.Status.Conditions = []metav1.Condition{{Type: "Reconciled", Status: metav1.ConditionTrue}, {Type: "Ready", Status: metav1.ConditionTrue}}
	i.Spec.Namespace = namespace
	i.Spec.Values = &sailv1.Values{Raw: []byte(`{"meshConfig":{"discoverySelectors":[` + selector + `]}}`)}
	return i
}

func labelled(name string, kv ...string) corev1.Namespace {
	ns := corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}}
	for i := 0; i+1 < len(kv); i += 2 {
		ns.Labels[kv[i]] = kv[i+1]
	}
	return ns
}

func pod(ns, name, sidecar string, kv ...string) corev1.Pod {
	p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Labels: labelled("", kv...).Labels}}
	if sidecar != "" {
		p.Annotations = map[string]string{"sidecar.istio.io/status": `{"revision":"` + sidecar + `"}`}
	}
	return p
}

func member(system, ns string, phase heddlev1alpha1.Phase) heddlev1alpha1.Membership {
	return heddlev1alpha1.Membership{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: ns}, Spec: heddlev1alpha1.MembershipSpec{Namespace: ns, Phase: phase}}
}

func world() snapshot {
	const rev, disc = "istio.io/rev", "istio-discovery"
	return snapshot{
		istios:    []sailv1.Istio{istio("mesh-1", "sys-1", `{"matchLabels":{"istio-discovery":"mesh-1"}}`), istio("mesh-2", "sys-2", `{"matchLabels":{"istio-discovery":"mesh-2"}}`)},
		revisions: []sailv1.IstioRevision{{ObjectMeta: metav1.ObjectMeta{Name: "mesh-1"}, Status: sailv1.RevisionStatus{Conditions: []metav1.Condition{{Type: "WebhooksReady", Status: metav1.ConditionTrue}}}}},
		tags: []sailv1.IstioRevisionTag{{
			ObjectMeta: metav1.ObjectMeta{Name: "default"}, Spec: sailv1.IstioRevisionTagSpec{TargetRef: sailv1.TargetRef{Kind: "Istio", Name: "mesh-1"}},
			Status: sailv1.IstioRevisionTagStatus{Conditions: []metav1.Condition{{Type: "Reconciled", Status: metav1.ConditionTrue}}},
		}},
		memberships: []heddlev1alpha1.Membership{
			member("sys-1", "sys-1", heddlev1alpha1.Member), member("sys-2", "sys-2", heddlev1alpha1.Member),
			member("sys-1", "app-1", heddlev1alpha1.Member), member("sys-2", "app-2", heddlev1alpha1.Member),
		},
		namespaces: []corev1.Namespace{
			labelled("sys-1", disc, "mesh-1"), labelled("sys-2", disc, "mesh-2"),
			labelled("app-1", disc, "mesh-1", rev, "mesh-1"), labelled("app-2", disc, "mesh-2", rev, "mesh-2"), labelled("plain"),
		},
		pods: []corev1.Pod{
			pod("sys-1", "istiod", "", "sidecar.istio.io/inject", "false", rev, "mesh-1"), pod("app-1", "a", "mesh-1"), pod("app-2", "b", "mesh-2"), pod("plain", "c", ""),
		},
	}
}

// mistype makes the selectors of an Istio unreadable; its revision stays with what they were.
func (s *snapshot) mistype(i int) {
	o := &s.istios[i]
	o.UID = "mistyped"
	owner := []metav1.OwnerReference{{Kind: "Istio", Name: o.Name, UID: o.UID, Controller: new(true)}}
	s.revisions = append(slices.DeleteFunc(s.revisions, func(r sailv1.IstioRevision) bool { return r.Name == o.Name }), sailv1.IstioRevision{
		ObjectMeta: metav1.ObjectMeta{Name: o.Name, OwnerReferences: owner}, Spec: sailv1.IstioRevisionSpec{Namespace: o.Spec.Namespace, Values: o.Spec.Values},
	})
	o.Spec.Values = &sailv1.Values{Raw: bytes.ReplaceAll(o.Spec.Values.Raw, []byte("matchLabels"), []byte("matchLabel"))}
}

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(*snapshot)
		want []string // object and reason, then a part of the message
	}{
		{name: "a good cluster", edit: func(*snapshot) {}},
		{name: "no sidecar yet", edit: func(s *snapshot) { s.pods = append(s.pods, pod("app-1", "old", "")) }, want: []string{"Pod app-1/old RestartNeeded: has no sidecar though mesh mesh-1"}},
		{name: "opted out", edit: func(s *snapshot) {
			s.pods = append(s.pods, pod("app-1", "out", "", "sidecar.istio.io/inject", "false"))
		}},
		{name: "finished", edit: func(s *snapshot) {
			p := pod("app-1", "job", "")
			p.Status.Phase = corev1.PodSucceeded
			s.pods = append(s.pods, p)
		}},
		{name: "moved to the other mesh", edit: func(s *snapshot) {
			s.namespaces[2] = labelled("app-1", "istio-discovery", "mesh-2", "istio.io/rev", "mesh-2")
			s.memberships[2] = member("sys-1", "app-1", heddlev1alpha1.Leaving)
			s.memberships = append(s.memberships, member("sys-2", "app-1", heddlev1alpha1.Joining))
		}, want: []string{"Pod app-1/a RestartNeeded: has a sidecar of revision mesh-1 but belongs to mesh mesh-2"}},
		{name: "left", edit: func(s *snapshot) {
			s.namespaces[2] = labelled("app-1")
			s.memberships = append(s.memberships[:2], s.memberships[3])
		}, want: []string{"Pod app-1/a RestartNeeded: no longer serves it"}},
		{
			name: "DSC-08: injected only", edit: func(s *snapshot) { s.namespaces[4] = labelled("plain", "istio.io/rev", "mesh-1") },
			want: []string{"Namespace plain NotAMember: give it the labels of a discovery selector"},
		},
		{name: "injection by the default tag", edit: func(s *snapshot) {
			s.namespaces[2] = labelled("app-1", "istio-discovery", "mesh-1", "istio-injection", "enabled", "istio.io/rev", "mesh-2")
		}},
		{name: "INJ-09: istio-injection wins", edit: func(s *snapshot) {
			s.namespaces[3] = labelled("app-2", "istio-discovery", "mesh-2", "istio-injection", "enabled", "istio.io/rev", "mesh-2")
		}, want: []string{"Pod app-2/b RestartNeeded: no longer serves it"}},
		{name: "DSC-07: system namespace without its label", edit: func(s *snapshot) {
			s.namespaces[0] = labelled("sys-1")
			s.memberships = s.memberships[1:]
		}, want: []string{"Istio mesh-1 SystemNamespaceNotSelected: system namespace sys-1"}},
		{name: "two meshes could meet", edit: func(s *snapshot) {
			s.istios[1] = istio("mesh-2", "sys-2", `{"matchLabels":{"istio-discovery":"mesh-2"}},{"matchExpressions":[{"key":"team","operator":"Exists"}]}`)
		}, want: []string{"Istio SelectorsOverlap: team Exists"}},
		{name: "Istio's own audience", edit: func(s *snapshot) {
			s.istios[0].Spec.Values.Raw = []byte(`{"meshConfig":{"discoverySelectors":[{"matchLabels":{"istio-discovery":"mesh-1"}}]},"global":{"sds":{"token":{"aud":"istio-ca"}}}}`)
		}, want: []string{"Istio mesh-1 SharedAudience: istio-ca"}},
		{name: "not ready", edit: func(s *snapshot) {
			s.istios[0].Status.Conditions[1] = metav1.Condition{Type: "Ready", Status: metav1.ConditionFalse, Reason: "IstiodNotReady", Message: "no pod"}
		}, want: []string{"Istio mesh-1 IstiodNotReady: no pod"}},
		{name: "nobody knows", edit: func(s *snapshot) {
			s.istios[0].Status.Conditions[1] = metav1.Condition{Type: "Ready", Status: metav1.ConditionUnknown, Reason: "Pending", Message: "not looked at"}
			s.istios[1].Status.Conditions = s.istios[1].Status.Conditions[:1]
		}, want: []string{"Istio mesh-1 Pending: Ready is Unknown: not looked at", "Istio mesh-2 NoCondition: Ready is Unknown"}},
		{name: "no operator", edit: func(s *snapshot) { s.istios[0].Generation++ }, want: []string{"Istio mesh-1 NotObserved: kubectl get pods -n heddle-system"}},
		{name: "being deleted", edit: func(s *snapshot) {
			s.istios[0].Generation++
			s.istios[0].DeletionTimestamp = &metav1.Time{}
		}},
		{name: "selectors that cannot be read", edit: func(s *snapshot) {
			s.namespaces = append(s.namespaces, labelled("both", "istio-discovery", "mesh-1", "team", "b"))
			s.istios[1] = istio("mesh-2", "sys-2", `{"matchLabels":{"istio-discovery":"mesh-2"}},{"matchLabels":{"team":"b"}}`)
			s.mistype(0)
		}, want: []string{
			"Istio SelectorsOverlap: a namespace could match",
			"Istio mesh-1 InvalidSelector: matchLabel is no value",
			"Istio mesh-2 NamespaceTaken: the last known ones of mesh mesh-1",
		}},
		{name: "being deleted beside another with its selector", edit: func(s *snapshot) {
			s.istios[0].DeletionTimestamp = &metav1.Time{}
			s.istios = append(s.istios, istio("mesh-3", "sys-3", `{"matchLabels":{"istio-discovery":"mesh-1"}}`))
			s.namespaces = append(s.namespaces, labelled("sys-3", "istio-discovery", "mesh-1"))
		}},
		{name: "objects pass unchecked", edit: func(s *snapshot) {
			s.revisions[0].Status.Conditions[0] = metav1.Condition{Type: "WebhooksReady", Status: metav1.ConditionFalse, Reason: "ValidatorNotProven", Message: "unchecked"}
		}, want: []string{"IstioRevision mesh-1 ValidatorNotProven: WebhooksReady is False: unchecked"}},
		{name: "a tag to nothing", edit: func(s *snapshot) {
			s.tags[0].Status.Conditions[0] = metav1.Condition{Type: "Reconciled", Status: metav1.ConditionFalse, Reason: "RefNotFound", Message: "Istio mesh-3 not found"}
		}, want: []string{"IstioRevisionTag default RefNotFound: Istio mesh-3 not found"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := world()
			c.edit(&s)
			found := s.check(scope{})
			if len(found) != len(c.want) {
				t.Fatalf("found %+v", found)
			}
			for i, f := range found {
				head, part, _ := strings.Cut(c.want[i], ": ")
				if f.Object+" "+f.Reason != head || !strings.Contains(f.Message, part) {
					t.Errorf("found %+v, want %q", f, c.want[i])
				}
			}
		})
	}
}

// A namespace that left may still call in plain text where that is let in: check says so, once for the mesh.
func TestCheckLeavers(t *testing.T) {
	policy := func(ns, spec string) object {
		return object{"PeerAuthentication", ns, "p", "", []byte(`{"metadata":{"name":"p","namespace":"` + ns + `"},"spec":` + spec + `}`)}
	}
	left := func(s *snapshot) {
		s.memberships = append(s.memberships, member("sys-1", "app-3", heddlev1alpha1.Member))
		s.pods = append(s.pods, pod("app-3", "stays", "mesh-1", "app", "x"), pod("gone", "g1", "mesh-1"), pod("gone", "g2", "mesh-1"))
	}
	strict := policy("sys-1", `{"mtls":{"mode":"STRICT"}}`)
	for _, c := range []struct {
		name string
		edit func(*snapshot)
		want string // a part of the message; empty: not found
	}{
		{"nobody left", func(s *snapshot) { s.pods = s.pods[:4] }, ""},
		{"no policy", func(*snapshot) {}, "(gone) are refused by mutual TLS, but may call like anybody where plain text is let in: in app-1; app-3; a PeerAuthentication of mode STRICT in namespace sys-1 ends that where no narrower one says otherwise"},
		{"strict", func(s *snapshot) { s.objects = []object{strict} }, ""},
		{"strict, but for one namespace", func(s *snapshot) {
			s.objects = []object{strict, policy("app-3", `{"mtls":{"mode":"PERMISSIVE"}}`)}
		}, "is let in: in app-3; a PeerAuthentication of mode STRICT in namespace sys-1 ends that where no narrower one says otherwise"},
		{"strict, but for one port", func(s *snapshot) {
			s.objects = []object{strict, policy("app-3", `{"selector":{"matchLabels":{"app":"x"}},"portLevelMtls":{"8080":{"mode":"DISABLE"}}}`)}
		}, "is let in: in app-3; a PeerAuthentication of mode STRICT in namespace sys-1 ends that where no narrower one says otherwise"},
		{"strict, but for workloads that are not there", func(s *snapshot) {
			s.objects = []object{strict, policy("app-3", `{"selector":{"matchLabels":{"app":"y"}},"mtls":{"mode":"DISABLE"}}`)}
		}, ""},
		{"strict, and what can't be read", func(s *snapshot) { s.objects = []object{strict, policy("app-3", `{"mtls":{"mode":"STRICKT"}}`)} }, ""},
		{"another revision's policy", func(s *snapshot) {
			other := policy("app-3", `{"mtls":{"mode":"DISABLE"}}`)
			other.revision = "istio-of-old"
			s.objects = []object{strict, other}
		}, ""},
		{"the pods that left have ended", func(s *snapshot) {
			for i := range s.pods[5:] {
				s.pods[5+i].Status.Phase = corev1.PodSucceeded
			}
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := world()
			left(&s)
			c.edit(&s)
			for _, limit := range []scope{{}, ofMesh("mesh-1")} {
				said := slices.DeleteFunc(s.check(limit), func(f finding) bool { return f.Reason != "PlainTextFromLeavers" })
				if len(said) > 1 || len(said) == 1 != (c.want != "") || len(said) == 1 && !strings.Contains(said[0].Message, c.want) {
					t.Errorf("limited to %v: %+v", limit, said)
				}
			}
		})
	}
}

func TestRestart(t *testing.T) {
	owned := func(kind, name string) *corev1.Pod {
		p := pod("ns", "p", "", "pod-template-hash", "abc")
		p.OwnerReferences = []metav1.OwnerReference{{Kind: kind, Name: name, Controller: new(true)}}
		return &p
	}
	alone := pod("ns", "p", "")
	for p, want := range map[*corev1.Pod]string{
		owned("ReplicaSet", "web-abc"): "kubectl rollout restart -n ns deployment/web", owned("ReplicaSet", "bare"): "kubectl delete pod -n ns p",
		owned("StatefulSet", "db"): "kubectl rollout restart -n ns statefulset/db", &alone: "kubectl delete pod -n ns p, then create it again",
	} {
		if got := restart(p); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestPrintFindings(t *testing.T) {
	var out bytes.Buffer
	if err := printFindings(&out, nil, ""); err != nil || !strings.Contains(out.String(), "Isolation: soft") {
		t.Errorf("%v\n%s", err, &out)
	}
	out.Reset()
	if err := printFindings(&out, []finding{{Object: "Pod a/b", Reason: "RestartNeeded", Message: "x"}}, "json"); !errors.Is(err, ErrReported) || !strings.Contains(out.String(), `"object": "Pod a/b"`) {
		t.Errorf("%v\n%s", err, &out)
	}
}

// Whom the operator and control planes may ask the API server about, in all the cluster, is said in what check says of isolation.
func TestIsolationNamesReviews(t *testing.T) {
	objects, err := operator.Bootstrap(operator.Images{Heddle: "h", Proxy: "p"}, operator.Namespace)
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]string{}
	for point := range strings.SplitSeq(softIsolation, "\n  - ") {
		for role, begins := range map[string]string{"heddle-operator": "the operator may", "heddle-mesh-cluster": "every control plane"} {
			if strings.HasPrefix(point, begins) {
				said[role] = strings.ToLower(point)
			}
		}
	}
	asks := 0
	for _, o := range objects {
		role, ok := o.(*rbacv1.ClusterRole)
		if !ok {
			continue
		}
		for _, rule := range role.Rules {
			for _, r := range rule.Resources {
				if !strings.HasSuffix(r, "reviews") {
					continue
				}
				asks++
				if !strings.Contains(said[role.Name], r) {
					t.Errorf("%s may create %s, which is not said", role.Name, r)
				}
			}
		}
	}
	if asks != 4 {
		t.Errorf("%d rights to ask", asks)
	}
}

func TestPrintMeshes(t *testing.T) {
	s := world()
	s.istios[0].Status.State, s.istios[0].Status.ActiveRevisionName, s.istios[0].Spec.Version = "Healthy", "mesh-1", "v1.30.3"
	end := time.Date(2036, 11, 22, 1, 2, 3, 0, time.UTC)
	members := membersOf(s.istios, s.memberships)
	replies := []reply[heard]{{plane: plane{mesh: "mesh-1"}, said: heard{proxies: make([]proxy, 2)}}, {plane: plane{mesh: "mesh-1"}, said: heard{proxies: []proxy{{types: map[string]string{"CDS": "STALE"}}}}}}
	rows := []meshRow{
		rowOf(&s.istios[0], members, replies, &rootRow{SHA256: "5050d80d22ecd47100", NotAfter: end}),
		rowOf(&s.istios[1], members, append(replies, reply[heard]{plane: plane{mesh: "mesh-2"}, err: errors.New("silent")}), nil),
	}
	var out bytes.Buffer
	if err := printMeshes(&out, rows, "heddle"); err != nil {
		t.Fatal(err)
	}
	want := `MESH       NAMESPACE     REVISION     STATUS      VERSION     IN SYNC     ROOT                 ROOT ENDS      MEMBERS         SELECTORS
mesh-1     sys-1         mesh-1       Healthy     v1.30.3     2/3         5050d80d22ecd471     2036-11-22     app-1,sys-1     istio-discovery In mesh-1
mesh-2     sys-2         -            -           -           -           -                    -              app-2,sys-2     istio-discovery In mesh-2

Isolation: soft; ` + "`heddle check`" + ` says which powers reach across meshes.
`
	if d := cmp.Diff(want, out.String()); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
}

func TestSplitPod(t *testing.T) {
	for in, want := range map[string][2]string{"a.b": {"a", "b"}, "b/a": {"a", "b"}, "a": {"a", "flag"}, "a.1.b": {"a.1", "b"}} {
		if p, ns := splitPod(in, "flag"); p != want[0] || ns != want[1] {
			t.Errorf("%s: %s %s", in, p, ns)
		}
	}
}

// INJ-04 to INJ-09: every row of Istio's injection table, as the webhooks' selectors decide it.
func TestWants(t *testing.T) {
	s := world() // mesh-1 is the default
	const rev, inj = "istio.io/rev", "istio-injection"
	for _, c := range []struct {
		ns, pod []string
		want    string
	}{
		{ns: []string{inj, "enabled"}, want: "mesh-1"},
		{ns: []string{inj, "enabled"}, pod: []string{injectLabel, "true", rev, "mesh-2"}, want: "mesh-1"},
		{ns: []string{inj, "enabled", rev, "mesh-2"}, want: "mesh-1"},
		{ns: []string{inj, "enabled"}, pod: []string{injectLabel, "false"}},
		{ns: []string{inj, "disabled"}, pod: []string{injectLabel, "true", rev, "mesh-2"}},
		{ns: []string{rev, "mesh-2"}, want: "mesh-2"},
		{ns: []string{rev, "mesh-2"}, pod: []string{injectLabel, "true", rev, "mesh-1"}, want: "mesh-2"},
		{ns: []string{rev, "mesh-2"}, pod: []string{injectLabel, "false"}},
		{pod: []string{injectLabel, "true"}, want: "mesh-1"},
		{},
		{pod: []string{rev, "mesh-2"}, want: "mesh-2"},
		{pod: []string{injectLabel, "true", rev, "mesh-2"}, want: "mesh-2"},
		{pod: []string{injectLabel, "false", rev, "mesh-2"}},
	} {
		p := pod("ns", "p", "", c.pod...)
		if got, because := s.wants(labelled("ns", c.ns...), &p); got != c.want || because == "" {
			t.Errorf("namespace %v, pod %v: %q, want %q", c.ns, c.pod, got, c.want)
		}
	}
}

// What the selectors of webhooks let pass is judged again by the control plane: whom it leaves alone needs no restart.
func TestCheckKnowsWhomThePlaneLeavesAlone(t *testing.T) {
	for values, want := range map[string]string{
		`{}`: "RestartNeeded",
		`{"global":{"proxy":{"autoInject":"disabled"}}}`:                                                                                   "",
		`{"sidecarInjectorWebhook":{"neverInjectSelector":[{"matchLabels":{"app":"job"}}]}}`:                                               "",
		`{"global":{"proxy":{"autoInject":"disabled"}},"sidecarInjectorWebhook":{"alwaysInjectSelector":[{"matchLabels":{"app":"job"}}]}}`: "RestartNeeded",
		`{"sidecarInjectorWebhook":{"neverInjectSelector":[{"matchLabels":{"app":"another"}}]}}`:                                           "RestartNeeded",
	} {
		s := world()
		s.istios[0].Spec.Values.Raw = []byte(values)
		s.pods = append(s.pods, pod("app-1", "job", "", "app", "job"))
		var found found
		s.checkWorkloads(membersOf(s.istios, s.memberships), &found)
		got := ""
		for _, f := range found.all {
			if f.Object == "Pod app-1/job" {
				got = f.Reason
			}
		}
		if got != want {
			t.Errorf("%s: %q, want %q", values, got, want)
		}
		if text := s.sidecar("mesh-1", &s.namespaces[2], &s.pods[len(s.pods)-1]); strings.Contains(text, "a new pod would have") != (want != "") {
			t.Errorf("%s: %s", values, text)
		}
	}
}

// CTL-10: which mesh, and why.
func TestBelongs(t *testing.T) {
	s := world()
	member := membership{mesh: "mesh-2", phase: heddlev1alpha1.Member}
	everything := istio("all", "sys-3", "")
	going, mistyped := world(), world()
	going.istios[1].DeletionTimestamp = &metav1.Time{}
	mistyped.mistype(1)
	for _, c := range []struct {
		s     snapshot
		owner membership
		ns    corev1.Namespace
		want  string
	}{
		{s, member, labelled("app-2", "istio-discovery", "mesh-2"), `mesh mesh-2 (Member), as its labels match the discovery selector "istio-discovery In mesh-2"`},
		{s, member, labelled("app-2"), "mesh mesh-2 (Member), though its labels no longer match its discovery selectors"},
		{s, membership{}, labelled("plain"), "no mesh, as its labels match no discovery selector of mesh-1, mesh-2"},
		{s, membership{}, labelled("new", "istio-discovery", "mesh-2"), "no mesh yet, though mesh-2 selects it; if that stays so, `check` says why"},
		{mistyped, member, labelled("app-2", "istio-discovery", "mesh-2"), "mesh mesh-2 (Member), which it keeps while its discovery selectors cannot be read; `check` says why"},
		{mistyped, membership{}, labelled("new", "istio-discovery", "mesh-2"), "no mesh yet, as the last known discovery selectors of mesh-2 match its labels, and its own cannot be read; `check` says why"},
		{going, member, labelled("app-2", "istio-discovery", "mesh-2"), "mesh mesh-2 (Member), which is being deleted"},
		{snapshot{istios: []sailv1.Istio{everything}}, membership{mesh: "all", phase: heddlev1alpha1.Joining}, labelled("x"), "mesh all (Joining), which has no discovery selectors and serves every namespace"},
	} {
		if got := c.s.belongs(c.owner, &c.ns); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
}

func TestSidecar(t *testing.T) {
	s := world()
	for _, c := range []struct {
		mesh string
		ns   corev1.Namespace
		pod  corev1.Pod
		want string
	}{
		{"mesh-2", labelled("app-2", "istio.io/rev", "mesh-2"), pod("app-2", "p", "mesh-2"), "sidecar of revision mesh-2, as the namespace has istio.io/rev=mesh-2"},
		{"mesh-2", labelled("app-2", "istio.io/rev", "mesh-2"), pod("app-2", "p", ""), "no sidecar; a new pod would have sidecar of revision mesh-2, as the namespace has istio.io/rev=mesh-2"},
		{"", labelled("app-2", "istio.io/rev", "mesh-2"), pod("app-2", "p", "mesh-2"), "sidecar of revision mesh-2; a new pod would have no sidecar, as the namespace has istio.io/rev=mesh-2, but the namespace is no member of mesh mesh-2"},
		{"", labelled("plain"), pod("plain", "p", ""), "no sidecar, as neither namespace nor pod asks for one"},
		{"mesh-1", labelled("app-1"), pod("app-1", "p", "mesh-1", injectLabel, "true"), "sidecar of revision mesh-1, as the pod has sidecar.istio.io/inject=true"},
	} {
		if got := s.sidecar(c.mesh, &c.ns, &c.pod); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
}

// -i and -n: what concerns that mesh, and that namespace.
func TestCheckScope(t *testing.T) {
	s := world()
	s.istios[0].Status.Conditions[1] = metav1.Condition{Type: "Ready", Status: metav1.ConditionFalse, Reason: "IstiodNotReady", Message: "no pod"}
	s.istios[1].Generation++
	s.namespaces[1] = labelled("sys-2")
	s.memberships = append(s.memberships[:1], s.memberships[2:]...)
	s.namespaces[4] = labelled("plain", "istio.io/rev", "mesh-1")
	s.pods = append(s.pods, pod("app-1", "old", ""), pod("app-2", "moved", "mesh-1"))
	for _, c := range []struct {
		limit scope
		want  string
	}{
		{ofMesh("mesh-1"), "Istio mesh-1 IstiodNotReady; Istio mesh-1 PlainTextFromLeavers; Namespace plain NotAMember; Pod app-1/old RestartNeeded; Pod app-2/moved RestartNeeded"},
		{ofMesh("mesh-2"), "Istio mesh-2 NotObserved; Istio mesh-2 SystemNamespaceNotSelected; Pod app-2/moved RestartNeeded"},
		{scope{namespace: "app-1"}, "Istio mesh-1 PlainTextFromLeavers; Pod app-1/old RestartNeeded"},
		{scope{namespace: "sys-2"}, "Istio mesh-2 SystemNamespaceNotSelected"},
		{scope{[]string{"mesh-1"}, "app-2"}, "Istio mesh-1 PlainTextFromLeavers; Pod app-2/moved RestartNeeded"},
		{scope{[]string{"mesh-2"}, "app-1"}, ""},
	} {
		var got []string
		for _, f := range s.check(c.limit) {
			got = append(got, f.Object+" "+f.Reason)
		}
		if strings.Join(got, "; ") != c.want {
			t.Errorf("%+v: %q, want %q", c.limit, got, c.want)
		}
	}
}

// Of many meshes that could meet there is one finding, with the first three pairs.
func TestCheckOverlapsOnce(t *testing.T) {
	var s snapshot
	for i := range 8 {
		s.istios = append(s.istios, istio(fmt.Sprint("m", i), fmt.Sprint("sys-", i), fmt.Sprintf(`{"matchLabels":{"label-%d":"x"}}`, i)))
	}
	for _, c := range []struct {
		limit scope
		more  string
	}{{scope{}, "and 25 more"}, {ofMesh("m3"), "and 4 more"}} {
		found := s.check(c.limit)
		if len(found) != 1 || found[0].Reason != "SelectorsOverlap" || !strings.Contains(found[0].Message, c.more) {
			t.Errorf("%+v", found)
		}
	}
}

// Findings are told from not having been able to look.
func TestCheckExitCode(t *testing.T) {
	broken := cluster0(t, nil)
	broken.WithWatch = interceptor.NewClient(broken.WithWatch, interceptor.Funcs{List: func(context.Context, client.WithWatch, client.ObjectList, ...client.ListOption) error {
		return errors.New("no route to host")
	}})
	old := pod("sys-1", "old", "")
	old.Labels[revisionLabel] = "mesh-1"
	for _, c := range []struct {
		name string
		args string
		w    cluster
		code int
	}{
		{"all is well", "check", world0(t, 1), 0},
		{"a finding", "check", world0(t, 1, &old), 1},
		{"a finding elsewhere", "check -n sys-2", world0(t, 2, &old), 0},
		{"a finding of another mesh", "check -i sys-2", world0(t, 2, &old), 0},
		{"no such mesh", "check -i nope", world0(t, 2), 2},
		{"no such namespace", "check -n nope", world0(t, 2), 2},
		{"no cluster", "check", broken, 2},
		{"no such flag", "check --nope", world0(t, 1), 2},
		{"no such argument", "check nope", world0(t, 1), 2},
		{"no such format", "check -o xml", world0(t, 1), 2},
		{"another verb fails", "uninstall -y -r nope", world0(t, 1), 1},
	} {
		out, err := runVerb(t, c.w, nil, strings.Fields(c.args)...)
		if ExitCode(err) != c.code {
			t.Errorf("%s: code %d, want %d: %v\n%s", c.name, ExitCode(err), c.code, err, out)
		}
	}
}

// Every verb that shows something shows it as JSON and YAML, alone on standard output.
func TestFormats(t *testing.T) {
	web := pod("sys-1", "web", "")
	why := &discoveryv3.DiscoveryResponse{Resources: []*anypb.Any{{Value: []byte(`[{"Type":"CDS","Name":"c","Version":"v","Origin":"Service a/b"}]`)}}}
	for args, w := range map[string]cluster{
		"check": world0(t, 1, &web), "mesh list": world0(t, 1).answers(map[string]*discoveryv3.DiscoveryResponse{"sys-1": knows(t, "x")}), "mesh of web.sys-1": world0(t, 1, &web),
		"why web.sys-1": world0(t, 1, &web).answers(map[string]*discoveryv3.DiscoveryResponse{"sys-1": why}),
		"version":       world0(t, 1).answers(map[string]*discoveryv3.DiscoveryResponse{"sys-1": knows(t, "x")}), "ps": world0(t, 1).answers(map[string]*discoveryv3.DiscoveryResponse{"sys-1": knows(t, "x")}),
	} {
		asJSON, err := runVerb(t, w, nil, append(strings.Fields(args), "-o", "json")...)
		if err != nil || !json.Valid([]byte(asJSON)) {
			t.Errorf("%s: %v\n%s", args, err, asJSON)
		}
		asYAML, err := runVerb(t, w, nil, append(strings.Fields(args), "-o", "yaml")...)
		back, yerr := yaml.YAMLToJSON([]byte(asYAML))
		if err != nil || yerr != nil {
			t.Fatalf("%s: %v %v\n%s", args, err, yerr, asYAML)
		}
		var a, b any
		if err := errors.Join(json.Unmarshal([]byte(asJSON), &a), json.Unmarshal(back, &b)); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(a, b); d != "" || strings.HasPrefix(asYAML, "{") && asYAML != "{}\n" {
			t.Errorf("%s: %s\n%s", args, d, asYAML)
		}
	}
}

// Who has rights in one mesh's namespaces alone, and may get cluster-scoped objects by name, uses the verbs with -i.
func TestWithoutClusterWideReads(t *testing.T) {
	app, other := labelled("app-1", "istio-discovery", "mesh-1", "istio-injection", "enabled"), labelled("app-2", "istio-discovery", "mesh-2")
	mine, theirs := member("sys-1", "app-1", heddlev1alpha1.Member), member("sys-2", "app-2", heddlev1alpha1.Member)
	tag := &sailv1.IstioRevisionTag{ObjectMeta: metav1.ObjectMeta{Name: "default"}, Spec: sailv1.IstioRevisionTagSpec{TargetRef: sailv1.TargetRef{Name: "mesh-1"}}, Status: sailv1.IstioRevisionTagStatus{Conditions: []metav1.Condition{{Type: "Reconciled", Status: metav1.ConditionTrue}}}}
	injected, old, foreign := pod("app-1", "new", "mesh-1"), pod("app-1", "old", ""), pod("app-2", "secret", "mesh-1")
	c := world0(t, 2, &app, &other, &mine, &theirs, tag, &injected, &old, &foreign)
	forbidden := func(what string) error {
		return apierrors.NewForbidden(schema.GroupResource{Resource: what}, "", errors.New("not yours"))
	}
	allowed := func(namespace string) bool { return namespace == "sys-1" || namespace == "app-1" }
	c.WithWatch = interceptor.NewClient(c.WithWatch, interceptor.Funcs{
		List: func(ctx context.Context, w client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			var o client.ListOptions
			if o.ApplyOptions(opts); !allowed(o.Namespace) {
				return forbidden(fmt.Sprintf("%T", list))
			}
			return w.List(ctx, list, opts...)
		},
		Get: func(ctx context.Context, w client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			ns, isNS := o.(*corev1.Namespace)
			if key.Namespace != "" && !allowed(key.Namespace) || isNS && !allowed(key.Name) {
				return forbidden(fmt.Sprintf("%T", ns))
			}
			return w.Get(ctx, key, o, opts...)
		},
	})
	c = c.answers(map[string]*discoveryv3.DiscoveryResponse{"sys-1": knows(t, "istiod-mesh-1-a-b", syncz(t, "new.app-1", time.Now(), statusv3.ConfigStatus_SYNCED))})
	for args, want := range map[string]string{
		"ps": "new.app-1 ", "version": "data plane version: 1.30.3 (1 proxy)", "mesh list": "app-1,sys-1 ", "mesh of old.app-1": "a new pod would have sidecar of revision mesh-1",
		"check": "Pod app-1/old [RestartNeeded]",
	} {
		out, err := runVerb(t, c, nil, append(strings.Fields(args), "-i", "sys-1")...)
		if err != nil && !errors.Is(err, ErrReported) || !strings.Contains(out, want) || strings.Contains(out, "mesh-2") || strings.Contains(out, "app-1/new") {
			t.Errorf("%s: %v, want %q\n%s", args, err, want, out)
		}
		out, err = runVerb(t, c, nil, strings.Fields(args)...)
		if err != nil {
			out += err.Error()
		}
		if err == nil || !strings.Contains(out, "name your mesh by its system namespace, with -i") {
			t.Errorf("%s without -i: %v\n%s", args, err, out)
		}
		if out, err = runVerb(t, c, nil, append(strings.Fields(args), "-i", "sys-2")...); err == nil || errors.Is(err, ErrReported) {
			t.Errorf("%s of another's mesh: %v\n%s", args, err, out)
		}
	}
}
