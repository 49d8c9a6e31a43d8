package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/operator"
)

const (
	injectionLabel = "istio-injection"
	injectLabel    = "sidecar.istio.io/inject"
)

// finding is a mesh.Finding as `check` prints it.
type finding struct {
	Object  string `json:"object"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

func (a *app) checkCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "check", Short: "Find what keeps meshes from working as asked; exit code 1 if there is anything", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			s, err := snapshotOf(cmd.Context(), c)
			if err != nil {
				return err
			}
			return printFindings(cmd.OutOrStdout(), s.check(), output)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

// snapshot is the part of a cluster that check judges.
type snapshot struct {
	istios      []sailv1.Istio
	revisions   []sailv1.IstioRevision
	tags        []sailv1.IstioRevisionTag
	memberships []heddlev1alpha1.Membership
	namespaces  []corev1.Namespace
	pods        []corev1.Pod
	objects     []object
}

func snapshotOf(ctx context.Context, c cluster) (snapshot, error) {
	var (
		istios  sailv1.IstioList
		revs    sailv1.IstioRevisionList
		tags    sailv1.IstioRevisionTagList
		members heddlev1alpha1.MembershipList
		spaces  corev1.NamespaceList
		pods    corev1.PodList
	)
	if err := c.List(ctx, &istios); err != nil {
		return snapshot{}, listing(err)
	}
	for what, err := range map[string]error{
		"revisions": c.List(ctx, &revs), "tags": c.List(ctx, &tags), "memberships": c.List(ctx, &members), "namespaces": c.List(ctx, &spaces), "pods": c.List(ctx, &pods),
	} {
		if err != nil {
			return snapshot{}, fmt.Errorf("list %s: %w", what, err)
		}
	}
	objects, err := objectsOf(func(l client.ObjectList) error { return c.List(ctx, l) })
	return snapshot{istios.Items, revs.Items, tags.Items, members.Items, spaces.Items, pods.Items, objects}, err
}

// check returns what is wrong, sorted by object.
func (s snapshot) check() []finding {
	owner := membersOf(s.istios, s.memberships)
	var found []finding
	add := func(object, reason, format string, a ...any) {
		found = append(found, finding{object, reason, fmt.Sprintf(format, a...)})
	}
	var meshes []mesh.Mesh
	for i := range s.istios {
		istio := &s.istios[i]
		meshes = append(meshes, operator.MeshOf(istio))
		notTrue(add, "Istio", istio, istio.Status.ObservedGeneration, istio.Status.Conditions, "Reconciled", "Ready")
		if sharedAudience(istio.Spec.Values) {
			add("Istio "+istio.Name, "SharedAudience", "values.global.sds.token.aud is istio-ca: a token that a pod made for another mesh or for istioctl is good here too; leave it out unless proxies of Istio itself connect")
		}
	}
	for i := range s.revisions {
		for _, c := range s.revisions[i].Status.Conditions {
			if c.Type == "WebhooksReady" && c.Status == metav1.ConditionFalse {
				add("IstioRevision "+s.revisions[i].Name, c.Reason, "%s is False: %s", c.Type, cmp.Or(c.Message, c.Reason))
			}
		}
	}
	for i := range s.tags {
		tag := &s.tags[i]
		notTrue(add, "IstioRevisionTag", tag, tag.Status.ObservedGeneration, tag.Status.Conditions, "Reconciled")
	}
	var spaces []mesh.Namespace
	for _, ns := range s.namespaces {
		spaces = append(spaces, mesh.Namespace{Name: ns.Name, Labels: ns.Labels, Holder: mesh.ID(owner[ns.Name].mesh)})
	}
	_, findings := mesh.Members(spaces, meshes)
	for _, f := range findings {
		add(f.About.String(), f.Reason, "%s", f.Message)
	}
	for _, pair := range mesh.Overlapping(meshes) {
		add("Istio", "SelectorsOverlap", "a namespace could match %s; whoever labels one so will be refused", pair)
	}
	s.checkWorkloads(owner, add)
	s.checkObjects(owner, func(_, _, object, reason, message string) { add(object, reason, "%s", message) })
	slices.SortStableFunc(found, func(a, b finding) int {
		return cmp.Or(strings.Compare(a.Object, b.Object), strings.Compare(a.Reason, b.Reason))
	})
	return found
}

// notTrue adds which of the wanted conditions of an object are not true, or that the operator has not looked at the object as
// it is now: then its conditions are about what it was before. What is being deleted needs none.
func notTrue(add func(object, reason, format string, a ...any), kind string, o metav1.Object, observed int64, conditions []metav1.Condition, wanted ...string) {
	object := kind + " " + o.GetName()
	if o.GetDeletionTimestamp() != nil {
		return
	}
	if observed < o.GetGeneration() {
		add(object, "NotObserved", "the operator has not looked at its newest change yet; if that stays so, see whether it runs: kubectl get pods -n %s", operator.Namespace)
		return
	}
	for _, condition := range wanted {
		c := apimeta.FindStatusCondition(conditions, condition)
		if c == nil {
			c = &metav1.Condition{Status: metav1.ConditionUnknown, Reason: "NoCondition", Message: "the operator has not said so"}
		}
		if c.Status != metav1.ConditionTrue {
			add(object, c.Reason, "%s is %s: %s", condition, c.Status, cmp.Or(c.Message, c.Reason))
		}
	}
}

// checkWorkloads compares what each pod has with what a new one in its place would get.
func (s snapshot) checkWorkloads(owner map[string]membership, add func(object, reason, format string, a ...any)) {
	byName := map[string]corev1.Namespace{}
	for _, ns := range s.namespaces {
		byName[ns.Name] = ns
		if rev := s.revision(ns.Labels[revisionLabel]); rev != "" && ns.Labels[injectionLabel] == "" && s.has(rev) && owner[ns.Name].mesh != rev {
			add("Namespace "+ns.Name, "NotAMember", "has %s=%s but is no member of mesh %s, so that its pods get no sidecar; give it the labels of a discovery selector of that mesh", revisionLabel, ns.Labels[revisionLabel], rev)
		}
	}
	for i := range s.pods {
		pod := &s.pods[i]
		if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed || !pod.DeletionTimestamp.IsZero() {
			continue
		}
		has := injectedBy(pod)
		wants, _ := s.gets(owner[pod.Namespace].mesh, byName[pod.Namespace], pod)
		object := "Pod " + pod.Namespace + "/" + pod.Name
		switch {
		case has == wants:
		case has == "":
			add(object, "RestartNeeded", "has no sidecar though mesh %s would give it one: it is older than the labels; restart it (%s)", wants, restart(pod))
		case wants == "":
			add(object, "RestartNeeded", "has a sidecar of revision %s, which no longer serves it; restart it (%s)", has, restart(pod))
		default:
			add(object, "RestartNeeded", "has a sidecar of revision %s but belongs to mesh %s; restart it (%s)", has, wants, restart(pod))
		}
	}
}

// wants is the revision that would inject a new pod of these labels, empty for none, and why: the selectors of Istio's
// webhooks.
func (s snapshot) wants(ns corev1.Namespace, pod *corev1.Pod) (revision, because string) {
	label := func(where string, labels map[string]string, key string) string {
		return fmt.Sprintf("the %s has %s=%s", where, key, labels[key])
	}
	inject, nsRevision, podRevision := pod.Labels[injectLabel], ns.Labels[revisionLabel], pod.Labels[revisionLabel]
	switch {
	case inject == "false":
		return "", label("pod", pod.Labels, injectLabel)
	case inject == "" && pod.Annotations[injectLabel] == "false":
		return "", label("pod", pod.Annotations, injectLabel)
	case pod.Spec.HostNetwork:
		return "", "the pod is on its node's network"
	case ns.Name == metav1.NamespaceSystem:
		return "", "the namespace is the cluster's own"
	case ns.Labels[injectionLabel] == "enabled":
		return s.revision(sailv1.DefaultName), label("namespace", ns.Labels, injectionLabel)
	case ns.Labels[injectionLabel] != "":
		return "", label("namespace", ns.Labels, injectionLabel)
	case nsRevision != "":
		return s.revision(nsRevision), label("namespace", ns.Labels, revisionLabel)
	case podRevision != "":
		return s.revision(podRevision), label("pod", pod.Labels, revisionLabel)
	case inject == "true":
		return s.revision(sailv1.DefaultName), label("pod", pod.Labels, injectLabel)
	}
	return "", "neither namespace nor pod asks for one"
}

// gets is what wants says, of pods in a namespace of the mesh: its webhooks are called for its members only.
func (s snapshot) gets(mesh string, ns corev1.Namespace, pod *corev1.Pod) (revision, because string) {
	revision, because = s.wants(ns, pod)
	if revision != "" && revision != mesh {
		return "", because + ", but the namespace is no member of mesh " + revision
	}
	return revision, because
}

// revision follows tags; an unknown name stands for itself.
func (s snapshot) revision(name string) string {
	for _, t := range s.tags {
		if t.Name == name {
			return cmp.Or(t.Status.IstioRevision, t.Spec.TargetRef.Name)
		}
	}
	return name
}

func (s snapshot) has(mesh string) bool {
	return slices.ContainsFunc(s.istios, func(i sailv1.Istio) bool { return i.Name == mesh })
}

// injectedBy is the revision whose sidecar the pod has, empty for none.
func injectedBy(pod *corev1.Pod) string {
	var status struct{ Revision string }
	if json.Unmarshal([]byte(pod.Annotations["sidecar.istio.io/status"]), &status) != nil {
		return ""
	}
	return status.Revision
}

// restart is the command that replaces the pod.
func restart(pod *corev1.Pod) string {
	c := metav1.GetControllerOf(pod)
	if c == nil {
		return "kubectl delete pod -n " + pod.Namespace + " " + pod.Name + ", then create it again"
	}
	kind, name := strings.ToLower(c.Kind), c.Name
	if base, ok := strings.CutSuffix(name, "-"+pod.Labels["pod-template-hash"]); ok && c.Kind == "ReplicaSet" {
		kind, name = "deployment", base
	}
	if kind == "deployment" || kind == "statefulset" || kind == "daemonset" {
		return "kubectl rollout restart -n " + pod.Namespace + " " + kind + "/" + name
	}
	return "kubectl delete pod -n " + pod.Namespace + " " + pod.Name
}

func sharedAudience(v *sailv1.Values) bool {
	if v == nil {
		return false
	}
	var values struct {
		Global struct {
			SDS struct{ Token struct{ Aud string } }
		}
	}
	return json.Unmarshal(v.Raw, &values) == nil && values.Global.SDS.Token.Aud == mesh.SharedAudience
}

func printFindings(w io.Writer, found []finding, output string) error {
	switch output {
	case "json":
		if found == nil {
			found = []finding{}
		}
		text, err := json.MarshalIndent(found, "", "  ")
		if err != nil {
			return err
		}
		fmt.Fprintln(w, string(text))
	case "text":
		for _, f := range found {
			fmt.Fprintf(w, "✘ %s [%s] %s\n", f.Object, f.Reason, f.Message)
		}
		if len(found) == 0 {
			fmt.Fprintln(w, "✔ Nothing found.")
		}
		fmt.Fprint(w, "\n", softIsolation)
	default:
		return fmt.Errorf("--output %s: use text or json", output)
	}
	if len(found) > 0 {
		return ErrReported
	}
	return nil
}
