package cli

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
	"github.com/heddle-mesh/heddle/internal/operator"
)

func isNoMatch(err error) bool { return apimeta.IsNoMatchError(err) }

// membership is what the operator decided of one namespace.
type membership struct {
	mesh  string
	phase heddlev1alpha1.Phase
}

// istios are all meshes. With -i, who may not list them gets the one with that system namespace.
func (a *app) istios(ctx context.Context, c client.Client) ([]sailv1.Istio, error) {
	var list sailv1.IstioList
	err := c.List(ctx, &list)
	if !apierrors.IsForbidden(err) || a.istioNamespace == "" {
		return list.Items, listing(err)
	}
	revisions, err := revisionsOwning(ctx, c, a.istioNamespace)
	if err != nil {
		return nil, err
	}
	for i := range revisions {
		owner := metav1.GetControllerOf(&revisions[i])
		if owner == nil {
			continue
		}
		istio := sailv1.Istio{}
		if err := c.Get(ctx, client.ObjectKey{Name: owner.Name}, &istio); err != nil {
			return nil, fmt.Errorf("read Istio %s: %w", owner.Name, err)
		}
		list.Items = append(list.Items, istio)
	}
	return list.Items, nil
}

// chosen are the meshes that -i and -n name: all, those with a system namespace, those to which a namespace belongs.
func (a *app) chosen(istios []sailv1.Istio, members map[string]membership) ([]sailv1.Istio, error) {
	var out []sailv1.Istio
	for _, i := range istios {
		if (a.istioNamespace == "" || i.Spec.Namespace == a.istioNamespace) && (a.namespace == "" || members[a.namespace].mesh == i.Name) {
			out = append(out, i)
		}
	}
	switch {
	case len(out) > 0 || a.istioNamespace == "" && a.namespace == "":
		return out, nil
	case a.istioNamespace == "":
		return nil, fmt.Errorf("namespace %s belongs to no mesh", a.namespace)
	case a.namespace == "":
		return nil, fmt.Errorf("no mesh has its control plane in namespace %s", a.istioNamespace)
	}
	return nil, fmt.Errorf("namespace %s does not belong to the mesh with its control plane in namespace %s", a.namespace, a.istioNamespace)
}

// listed lists objects of all namespaces. With -i, who may not do that gets those of these namespaces.
func (a *app) listed(ctx context.Context, c client.Client, list client.ObjectList, namespaces ...string) error {
	err := c.List(ctx, list)
	if !apierrors.IsForbidden(err) || a.istioNamespace == "" {
		return err
	}
	var all []runtime.Object
	for _, ns := range namespaces {
		part := list.DeepCopyObject().(client.ObjectList)
		if err := c.List(ctx, part, client.InNamespace(ns)); err != nil {
			return err
		}
		items, err := apimeta.ExtractList(part)
		if err != nil {
			return err
		}
		all = append(all, items...)
	}
	return apimeta.SetList(list, all)
}

// members reads the meshes and the ownership table, by namespace.
func (a *app) members(ctx context.Context, c client.Client) ([]sailv1.Istio, []heddlev1alpha1.Membership, error) {
	istios, err := a.istios(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	var all heddlev1alpha1.MembershipList
	if err := a.listed(ctx, c, &all, a.istioNamespace); err != nil {
		return nil, nil, fmt.Errorf("list memberships: %w", err)
	}
	return istios, all.Items, nil
}

// tags are all tags. With -i, who may not list them gets those with these names.
func (a *app) tags(ctx context.Context, c client.Client, names ...string) ([]sailv1.IstioRevisionTag, error) {
	var list sailv1.IstioRevisionTagList
	err := c.List(ctx, &list)
	if !apierrors.IsForbidden(err) || a.istioNamespace == "" {
		return list.Items, err
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if name == "" {
			continue
		}
		tag := sailv1.IstioRevisionTag{}
		switch err := c.Get(ctx, client.ObjectKey{Name: name}, &tag); {
		case err == nil:
			list.Items = append(list.Items, tag)
		case !apierrors.IsNotFound(err):
			return nil, err
		}
	}
	return list.Items, nil
}

// membersOf joins both by system namespace. While a namespace moves it is in the mesh that it joins.
func membersOf(istios []sailv1.Istio, all []heddlev1alpha1.Membership) map[string]membership {
	system := map[string]string{}
	for _, i := range istios {
		system[i.Spec.Namespace] = i.Name
	}
	out := map[string]membership{}
	for _, m := range all {
		was, ok := out[m.Spec.Namespace]
		if mesh := system[m.Namespace]; mesh != "" && (!ok || was.phase == heddlev1alpha1.Leaving) {
			out[m.Spec.Namespace] = membership{mesh: mesh, phase: m.Spec.Phase}
		}
	}
	return out
}

func (a *app) meshCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "mesh", Short: "The meshes of the cluster and who belongs to them"}
	var listed, of format
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the meshes", Args: cobra.NoArgs,
		Long: "mesh list shows every mesh: the one that -i names, or to which the namespace that -n names belongs, or all.",
		RunE: func(cmd *cobra.Command, _ []string) error { return a.meshList(cmd, listed) },
	}
	listed.addTo(list)
	which := &cobra.Command{
		Use: "of NAMESPACE|POD.NAMESPACE", Short: "Say which mesh a namespace or a pod belongs to", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.meshOf(cmd, args[0], of) },
	}
	of.addTo(which)
	cmd.AddCommand(looking(list), which)
	return cmd
}

func (a *app) meshList(cmd *cobra.Command, output format) error {
	ctx := cmd.Context()
	c, err := a.connect()
	if err != nil {
		return err
	}
	istios, memberships, err := a.members(ctx, c)
	if err != nil {
		return err
	}
	members := membersOf(istios, memberships)
	if istios, err = a.chosen(istios, members); err != nil {
		return err
	}
	all, err := planes(ctx, c, a.istioNamespace, "")
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(p plane) bool {
		return !slices.ContainsFunc(istios, func(i sailv1.Istio) bool { return i.Name == p.mesh })
	})
	replies := each(ctx, all, func(ctx context.Context, p plane) (heard, error) { return c.proxies(ctx, p, only{}) })
	unanswered := silent(replies)
	var rows []meshRow
	for i := range istios {
		root, err := c.root(ctx, istios[i].Spec.Namespace)
		if err != nil {
			unanswered = append(unanswered, err) // the rest is known all the same
		}
		rows = append(rows, rowOf(&istios[i], members, replies, root))
	}
	if rows == nil {
		rows = []meshRow{}
	}
	if err := output.print(cmd.OutOrStdout(), rows, func(w io.Writer) error { return printMeshes(w, rows, a.Name) }); err != nil {
		return err
	}
	return report(cmd.ErrOrStderr(), unanswered)
}

// meshRow is a mesh as `mesh list` shows it.
type meshRow struct {
	Mesh      string   `json:"mesh"`
	Namespace string   `json:"namespace"`
	Revision  string   `json:"revision,omitempty"`
	Status    string   `json:"status,omitempty"`
	Version   string   `json:"version,omitempty"`
	Proxies   *counted `json:"proxies,omitempty"` // nil if not all control planes answered, or none runs
	Root      *rootRow `json:"root,omitempty"`    // nil if none is published
	Members   []string `json:"members"`
	Selectors []string `json:"selectors"`
}

// counted are proxies, and of them those that hold the newest of all that they were sent.
type counted struct {
	Connected int `json:"connected"`
	InSync    int `json:"inSync"`
}

type rootRow struct {
	SHA256   string    `json:"sha256"`
	NotAfter time.Time `json:"notAfter"`
}

func rowOf(istio *sailv1.Istio, members map[string]membership, replies []reply[heard], root *rootRow) meshRow {
	r := meshRow{
		Mesh: istio.Name, Namespace: istio.Spec.Namespace, Revision: istio.Status.ActiveRevisionName, Status: istio.Status.State, Version: istio.Spec.Version,
		Root: root, Members: []string{}, Selectors: []string{},
	}
	for ns, m := range members {
		if m.mesh == istio.Name {
			r.Members = append(r.Members, ns)
		}
	}
	slices.Sort(r.Members)
	for _, s := range operator.MeshOf(istio).Selectors {
		r.Selectors = append(r.Selectors, s.String())
	}
	replies = slices.DeleteFunc(slices.Clone(replies), func(x reply[heard]) bool { return x.mesh != istio.Name })
	if len(replies) == 0 || len(silent(replies)) > 0 {
		return r
	}
	r.Proxies = &counted{}
	for _, x := range replies {
		for _, p := range x.said.proxies {
			r.Proxies.Connected++
			if p.inSync() {
				r.Proxies.InSync++
			}
		}
	}
	return r
}

// root reads the root certificate that a mesh publishes in its system namespace; nil if it has not yet.
func (c cluster) root(ctx context.Context, system string) (*rootRow, error) {
	object := &corev1.ConfigMap{}
	if err := c.Get(ctx, client.ObjectKey{Namespace: system, Name: "istio-ca-root-cert"}, object); client.IgnoreNotFound(err) != nil {
		return nil, fmt.Errorf("read the root certificate of %s: %w", system, err)
	}
	block, _ := pem.Decode([]byte(object.Data["root-cert.pem"]))
	if block == nil {
		return nil, nil
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("root certificate of %s: %w", system, err)
	}
	sum := sha256.Sum256(cert.Raw)
	return &rootRow{SHA256: hex.EncodeToString(sum[:]), NotAfter: cert.NotAfter}, nil
}

// printMeshes says of each mesh what it is, and of its control plane's proxies how many hold the newest configuration. A
// root is told by the first eight bytes of its SHA-256.
func printMeshes(w io.Writer, rows []meshRow, program string) error {
	t := newTable(w)
	fmt.Fprintln(t, "MESH\tNAMESPACE\tREVISION\tSTATUS\tVERSION\tIN SYNC\tROOT\tROOT ENDS\tMEMBERS\tSELECTORS")
	for _, r := range rows {
		var inSync, root, ends string
		if r.Proxies != nil {
			inSync = fmt.Sprintf("%d/%d", r.Proxies.InSync, r.Proxies.Connected)
		}
		if r.Root != nil {
			root, ends = r.Root.SHA256[:16], r.Root.NotAfter.Format(time.DateOnly)
		}
		cells := []string{r.Mesh, r.Namespace, r.Revision, r.Status, r.Version, inSync, root, ends, strings.Join(r.Members, ","), strings.Join(r.Selectors, " | ")}
		for j, c := range cells {
			cells[j] = orNone(c)
		}
		fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\nIsolation: soft; `%s check` says which powers reach across meshes.\n", program)
	return err
}

// belonging is what `mesh of` says.
type belonging struct {
	Namespace string               `json:"namespace"`
	Mesh      string               `json:"mesh,omitempty"` // empty: none
	Phase     heddlev1alpha1.Phase `json:"phase,omitempty"`
	Says      string               `json:"says"`
	Pod       string               `json:"pod,omitempty"`
	Sidecar   string               `json:"sidecar,omitempty"` // the revision whose sidecar the pod has; empty: none
	PodSays   string               `json:"podSays,omitempty"`
}

func (a *app) meshOf(cmd *cobra.Command, what string, output format) error {
	ctx := cmd.Context()
	c, err := a.connect()
	if err != nil {
		return err
	}
	istios, memberships, err := a.members(ctx, c)
	if err != nil {
		return err
	}
	namespace, pod := what, ""
	if name, ns := splitPod(what, a.namespace); ns != "" {
		namespace, pod = ns, name
	}
	ns := &corev1.Namespace{}
	if err := c.Get(ctx, client.ObjectKey{Name: namespace}, ns); err != nil {
		return fmt.Errorf("read namespace %s: %w", namespace, err)
	}
	s := snapshot{istios: istios, memberships: memberships}
	if s.revisions, err = readableRevisions(ctx, c, a.istioNamespace); err != nil {
		return err
	}
	owner := membersOf(istios, memberships)[namespace]
	b := belonging{Namespace: namespace, Mesh: owner.mesh, Phase: owner.phase, Says: s.belongs(owner, ns)}
	if pod != "" {
		p := &corev1.Pod{}
		if err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: pod}, p); err != nil {
			return fmt.Errorf("read pod %s/%s: %w", namespace, pod, err)
		}
		if s.tags, err = a.tags(ctx, c, sailv1.DefaultName, ns.Labels[revisionLabel], p.Labels[revisionLabel]); err != nil {
			return fmt.Errorf("list tags: %w", err)
		}
		b.Pod, b.Sidecar, b.PodSays = pod, injectedBy(p), s.sidecar(owner.mesh, ns, p)
	}
	return output.print(cmd.OutOrStdout(), b, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "namespace %s: %s\n", b.Namespace, b.Says)
		if err == nil && b.Pod != "" {
			_, err = fmt.Fprintf(w, "pod %s: %s\n", b.Pod, b.PodSays)
		}
		return err
	})
}

// belongs says which mesh a namespace belongs to, and why.
func (s snapshot) belongs(owner membership, ns *corev1.Namespace) string {
	var others, selecting, unread []string
	for _, m := range s.claims() {
		if string(m.ID) != owner.mesh {
			others = append(others, string(m.ID))
			switch {
			case m.Fault == "" && m.Selects(ns.Labels):
				selecting = append(selecting, string(m.ID))
			case m.Known() && m.Selects(ns.Labels):
				unread = append(unread, string(m.ID))
			}
			continue
		}
		why := "though its labels no longer match its discovery selectors"
		for _, selector := range m.Selectors {
			if selector.Matches(ns.Labels) {
				why = fmt.Sprintf("as its labels match the discovery selector %q", selector)
				break
			}
		}
		switch {
		case m.Fault != "":
			why = "which it keeps while its discovery selectors cannot be read; `check` says why"
		case m.Everything():
			why = "which has no discovery selectors and serves every namespace"
		}
		return fmt.Sprintf("mesh %s (%s), %s", owner.mesh, owner.phase, why)
	}
	slices.Sort(others)
	slices.Sort(selecting)
	slices.Sort(unread)
	switch {
	case owner.mesh != "":
		return fmt.Sprintf("mesh %s (%s), which is being deleted", owner.mesh, owner.phase)
	case len(unread) > 0:
		return fmt.Sprintf("no mesh yet, as the last known discovery selectors of %s match its labels, and its own cannot be read; `check` says why", strings.Join(unread, ", "))
	case len(selecting) > 0:
		return fmt.Sprintf("no mesh yet, though %s selects it; if that stays so, `check` says why", strings.Join(selecting, ", "))
	}
	return "no mesh, as its labels match no discovery selector of " + cmp.Or(strings.Join(others, ", "), "any")
}

// sidecar says which sidecar a pod has, and why; and what a new pod in its place would have if that is another.
func (s snapshot) sidecar(mesh string, ns *corev1.Namespace, pod *corev1.Pod) string {
	text := func(revision string) string {
		if revision == "" {
			return "no sidecar"
		}
		return "sidecar of revision " + revision
	}
	has := injectedBy(pod)
	gets, because := s.gets(mesh, *ns, pod, s.injectors())
	if has != gets {
		return fmt.Sprintf("%s; a new pod would have %s, as %s", text(has), text(gets), because)
	}
	return text(has) + ", as " + because
}

// splitPod reads POD.NAMESPACE, NAMESPACE/POD, or POD where -n gives the namespace.
func splitPod(s, namespace string) (pod, ns string) {
	if ns, pod, ok := strings.Cut(s, "/"); ok {
		return pod, ns
	}
	if i := strings.LastIndex(s, "."); i >= 0 {
		return s[:i], s[i+1:]
	}
	return s, namespace
}
