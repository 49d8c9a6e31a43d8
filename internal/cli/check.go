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
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
	"github.com/heddle-mesh/heddle/internal/inject"
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

	scope scope
}

// scope is what -i and -n limit check to, and what a finding is about; empty fields are all, and none.
type scope struct {
	meshes    []string
	namespace string
}

// wants reports whether a finding lies within the scope.
func (s scope) wants(f finding) bool {
	return (len(s.meshes) == 0 || slices.ContainsFunc(f.scope.meshes, func(m string) bool { return slices.Contains(s.meshes, m) })) &&
		(s.namespace == "" || s.namespace == f.scope.namespace)
}

// found collects findings.
type found struct {
	scope scope // what is looked for
	all   []finding
}

func (f *found) add(about scope, object, reason, format string, a ...any) {
	if x := (finding{object, reason, fmt.Sprintf(format, a...), about}); f.scope.wants(x) {
		f.all = append(f.all, x)
	}
}

func ofMesh(names ...string) scope { return scope{meshes: names} }

func (a *app) checkCommand() *cobra.Command {
	var output format
	cmd := &cobra.Command{
		Use: "check", Short: "Find what keeps meshes from working as asked", Args: cobra.NoArgs,
		Long: "check looks at all meshes: at the one that -i names, or at what concerns the namespace that -n names.\n" +
			"The exit code is 0 if nothing was found, 1 if something was, 2 if it could not look.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			s, err := a.snapshot(cmd.Context(), c)
			if err != nil {
				return err
			}
			limit := scope{namespace: a.namespace}
			if a.namespace != "" && !slices.ContainsFunc(s.namespaces, func(ns corev1.Namespace) bool { return ns.Name == a.namespace }) {
				return fmt.Errorf("there is no namespace %s to look at", a.namespace)
			}
			if a.istioNamespace != "" {
				chosen, err := a.chosen(s.istios, membersOf(s.istios, s.memberships))
				if err != nil {
					return err
				}
				for _, i := range chosen {
					limit.meshes = append(limit.meshes, i.Name)
				}
			}
			return printFindings(cmd.OutOrStdout(), s.check(limit), output)
		},
	}
	output.addTo(cmd)
	return looking(cmd)
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

// snapshot reads the whole cluster. With -i, who may not do that reads of his mesh alone, and of its members.
func (a *app) snapshot(ctx context.Context, c cluster) (snapshot, error) {
	var s snapshot
	var err error
	if s.istios, s.memberships, err = a.members(ctx, c); err != nil {
		return s, err
	}
	if s.revisions, err = readableRevisions(ctx, c, a.istioNamespace); err != nil {
		return s, err
	}
	var members []string
	for ns := range membersOf(s.istios, s.memberships) {
		members = append(members, ns)
	}
	slices.Sort(members)
	if s.namespaces, err = a.namespaces(ctx, c, members); err != nil {
		return s, fmt.Errorf("read namespaces: %w", err)
	}
	var pods corev1.PodList
	if err := a.listed(ctx, c, &pods, members...); err != nil {
		return s, fmt.Errorf("list pods: %w", err)
	}
	s.pods = pods.Items
	names := []string{sailv1.DefaultName}
	for _, ns := range s.namespaces {
		names = append(names, ns.Labels[revisionLabel])
	}
	for i := range s.pods {
		names = append(names, s.pods[i].Labels[revisionLabel])
	}
	if s.tags, err = a.tags(ctx, c, names...); err != nil {
		return s, fmt.Errorf("read tags: %w", err)
	}
	s.objects, err = objectsOf(func(l client.ObjectList) error { return a.listed(ctx, c, l, members...) })
	return s, err
}

// namespaces are all namespaces. With -i, who may not list them gets these.
func (a *app) namespaces(ctx context.Context, c client.Client, names []string) ([]corev1.Namespace, error) {
	var list corev1.NamespaceList
	err := c.List(ctx, &list)
	if !apierrors.IsForbidden(err) || a.istioNamespace == "" {
		return list.Items, err
	}
	for _, name := range names {
		ns := corev1.Namespace{}
		if err := c.Get(ctx, client.ObjectKey{Name: name}, &ns); err != nil {
			return nil, err
		}
		list.Items = append(list.Items, ns)
	}
	return list.Items, nil
}

// check returns what is wrong within the scope, sorted by object.
func (s snapshot) check(limit scope) []finding {
	owner := membersOf(s.istios, s.memberships)
	found := found{scope: limit}
	meshes := s.claims()
	for i := range s.istios {
		istio := &s.istios[i]
		found.notTrue(ofMesh(istio.Name), "Istio", istio, istio.Status.ObservedGeneration, istio.Status.Conditions, "Reconciled", "Ready")
		if sharedAudience(istio.Spec.Values) {
			found.add(ofMesh(istio.Name), "Istio "+istio.Name, "SharedAudience", "values.global.sds.token.aud is istio-ca: a token that a pod made for another mesh or for istioctl is good here too; leave it out unless proxies of Istio itself connect")
		}
	}
	for i := range s.revisions {
		for _, c := range s.revisions[i].Status.Conditions {
			if c.Type == "WebhooksReady" && c.Status == metav1.ConditionFalse {
				found.add(ofMesh(s.revisions[i].Name), "IstioRevision "+s.revisions[i].Name, c.Reason, "%s is False: %s", c.Type, cmp.Or(c.Message, c.Reason))
			}
		}
	}
	for i := range s.tags {
		tag := &s.tags[i]
		found.notTrue(ofMesh(s.revision(tag.Name)), "IstioRevisionTag", tag, tag.Status.ObservedGeneration, tag.Status.Conditions, "Reconciled")
	}
	found.members(s.namespaces, meshes, owner)
	found.overlaps(meshes)
	s.checkWorkloads(owner, &found)
	s.checkLeavers(owner, &found)
	s.checkObjects(owner, &found)
	slices.SortStableFunc(found.all, func(a, b finding) int {
		return cmp.Or(strings.Compare(a.Object, b.Object), strings.Compare(a.Reason, b.Reason))
	})
	return found.all
}

// claims are what the meshes claim that are not being deleted, as the operator has them.
func (s snapshot) claims() (out []mesh.Mesh) {
	for i := range s.istios {
		var rev *sailv1.IstioRevision
		if at := slices.IndexFunc(s.revisions, func(r sailv1.IstioRevision) bool { return r.Name == s.istios[i].Name }); at >= 0 {
			rev = &s.revisions[at]
		}
		if s.istios[i].DeletionTimestamp == nil {
			out = append(out, operator.ClaimOf(&s.istios[i], rev))
		}
	}
	return out
}

// members adds what mesh.Members finds. Limited to one namespace, that is what it finds of it alone.
func (f *found) members(namespaces []corev1.Namespace, meshes []mesh.Mesh, owner map[string]membership) {
	var spaces []mesh.Namespace
	for _, ns := range namespaces {
		if f.scope.namespace == "" || f.scope.namespace == ns.Name {
			spaces = append(spaces, mesh.Namespace{Name: ns.Name, Labels: ns.Labels, Holder: mesh.ID(owner[ns.Name].mesh)})
		}
	}
	_, findings := mesh.Members(spaces, meshes)
	for _, x := range findings {
		about := ofMesh(x.About.Name)
		if x.Reason == mesh.ReasonNamespaceTaken || x.Reason == mesh.ReasonSystemNamespaceNotSelected {
			about.namespace = f.scope.namespace // the others are about meshes
		}
		f.add(about, x.About.String(), x.Reason, "%s", x.Message)
	}
}

// overlaps adds one finding for all pairs of meshes, of the scope's with any, that some namespace could match.
func (f *found) overlaps(meshes []mesh.Mesh) {
	var pairs, names []string
	for i, a := range meshes {
		for _, b := range meshes[:i] {
			both := []string{string(a.ID), string(b.ID)}
			if texts := mesh.Overlapping([]mesh.Mesh{a, b}); len(texts) > 0 && f.scope.wants(finding{scope: ofMesh(both...)}) {
				pairs, names = append(pairs, texts...), append(names, both...)
			}
		}
	}
	if len(pairs) > 0 {
		slices.Sort(pairs)
		f.add(ofMesh(names...), "Istio", "SelectorsOverlap", "a namespace could match %s; whoever labels one so will be refused", mesh.Some(pairs))
	}
}

// notTrue adds which of the wanted conditions of an object are not true, or that the operator has not looked at the object as
// it is now: then its conditions are about what it was before. What is being deleted needs none.
func (f *found) notTrue(about scope, kind string, o metav1.Object, observed int64, conditions []metav1.Condition, wanted ...string) {
	object := kind + " " + o.GetName()
	if o.GetDeletionTimestamp() != nil {
		return
	}
	if observed < o.GetGeneration() {
		f.add(about, object, "NotObserved", "the operator has not looked at its newest change yet; if that stays so, see whether it runs: kubectl get pods -n %s", operator.Namespace)
		return
	}
	for _, condition := range wanted {
		c := apimeta.FindStatusCondition(conditions, condition)
		if c == nil {
			c = &metav1.Condition{Status: metav1.ConditionUnknown, Reason: "NoCondition", Message: "the operator has not said so"}
		}
		if c.Status != metav1.ConditionTrue {
			f.add(about, object, c.Reason, "%s is %s: %s", condition, c.Status, cmp.Or(c.Message, c.Reason))
		}
	}
}

// checkWorkloads compares what each pod has with what a new one in its place would get.
func (s snapshot) checkWorkloads(owner map[string]membership, found *found) {
	byName := map[string]corev1.Namespace{}
	for _, ns := range s.namespaces {
		byName[ns.Name] = ns
		if rev := s.revision(ns.Labels[revisionLabel]); rev != "" && ns.Labels[injectionLabel] == "" && s.has(rev) && owner[ns.Name].mesh != rev {
			found.add(scope{[]string{rev, owner[ns.Name].mesh}, ns.Name}, "Namespace "+ns.Name, "NotAMember", "has %s=%s but is no member of mesh %s, so that its pods get no sidecar; give it the labels of a discovery selector of that mesh", revisionLabel, ns.Labels[revisionLabel], rev)
		}
	}
	injectors := s.injectors()
	for i := range s.pods {
		pod := &s.pods[i]
		if !live(pod) {
			continue
		}
		has := injectedBy(pod)
		wants, _ := s.gets(owner[pod.Namespace].mesh, byName[pod.Namespace], pod, injectors)
		about := scope{[]string{owner[pod.Namespace].mesh, has, wants}, pod.Namespace}
		object := "Pod " + pod.Namespace + "/" + pod.Name
		switch {
		case has == wants:
		case has == "":
			found.add(about, object, "RestartNeeded", "has no sidecar though mesh %s would give it one: it is older than the labels; restart it (%s)", wants, restart(pod))
		case wants == "":
			found.add(about, object, "RestartNeeded", "has a sidecar of revision %s, which no longer serves it; restart it (%s)", has, restart(pod))
		default:
			found.add(about, object, "RestartNeeded", "has a sidecar of revision %s but belongs to mesh %s; restart it (%s)", has, wants, restart(pod))
		}
	}
}

// wants is the revision that is asked to inject a new pod of these labels, empty for none, and why: the selectors of Istio's
// webhooks.
func (s snapshot) wants(ns corev1.Namespace, pod *corev1.Pod) (revision, because string) {
	label := func(where string, labels map[string]string, key string) string {
		return fmt.Sprintf("the %s has %s=%s", where, key, labels[key])
	}
	inject, nsRevision, podRevision := pod.Labels[injectLabel], ns.Labels[revisionLabel], pod.Labels[revisionLabel]
	switch {
	case inject == "false":
		return "", label("pod", pod.Labels, injectLabel)
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

// gets is what wants says, of pods in a namespace of the mesh: its webhooks are called for its members only, and its control
// plane leaves some of their pods alone.
func (s snapshot) gets(mesh string, ns corev1.Namespace, pod *corev1.Pod, injectors map[string]*inject.Params) (revision, because string) {
	revision, because = s.wants(ns, pod)
	if revision != "" && revision != mesh {
		return "", because + ", but the namespace is no member of mesh " + revision
	}
	if p := injectors[revision]; p != nil {
		if why := inject.Skip(pod, p); why != "" {
			return "", why
		}
	}
	return revision, because
}

// injectors are by what the control planes decide whom to inject, by mesh; a mesh whose values cannot be read has none, and a
// condition that says so.
func (s snapshot) injectors() map[string]*inject.Params {
	out := map[string]*inject.Params{}
	for i := range s.istios {
		config, err := operator.InjectionOf(&s.istios[i])
		if err != nil {
			continue
		}
		if p, err := inject.Parse(inject.Settings{Config: config}); err == nil {
			out[s.istios[i].Name] = p
		}
	}
	return out
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

func printFindings(w io.Writer, found []finding, output format) error {
	if found == nil {
		found = []finding{}
	}
	if err := output.print(w, found, func(w io.Writer) error {
		for _, f := range found {
			fmt.Fprintf(w, "✘ %s [%s] %s\n", f.Object, f.Reason, f.Message)
		}
		if len(found) == 0 {
			fmt.Fprintln(w, "✔ Nothing found.")
		}
		_, err := fmt.Fprint(w, "\n", softIsolation)
		return err
	}); err != nil {
		return err
	}
	if len(found) > 0 {
		return ErrReported
	}
	return nil
}

// softIsolation says what keeps meshes apart, and what does not.
const softIsolation = `Isolation: soft. Meshes share this cluster's API server, nodes and kernel, and are kept apart by namespaces, RBAC, and a
root certificate and a token audience of their own. Powers that reach across meshes remain:
  - every control plane reads Nodes, and may create TokenReviews and SubjectAccessReviews (ClusterRole heddle-mesh-cluster)
  - a control plane may create ConfigMaps of any name in its own namespaces, and Secrets where it runs: RBAC cannot limit what is yet to be made
  - the operator may read Namespaces and Pods, and write Deployments, Services, ServiceAccounts, ConfigMaps, autoscalers and disruption budgets anywhere,
    and webhook configurations; it binds the heddle-mesh-* roles, and asks the API server what others may do (SubjectAccessReviews)
    and whose tokens it is shown (TokenReviews)
  - who may label Namespaces and is granted "enroll" on an Istio (kubectl auth can-i enroll istios.sailoperator.io/NAME) moves namespaces into that mesh
  - a port that lets plain text in (as without a PeerAuthentication of mode STRICT) may be called by every pod of the cluster, of whatever mesh
  - one set of custom resource definitions serves all meshes
  - no node agent is shared: redirection is set up by each pod's own init container
`
