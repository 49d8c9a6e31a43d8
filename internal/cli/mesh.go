package cli

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
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

// memberships reads the ownership table, by namespace.
func memberships(ctx context.Context, c client.Client) (map[string]membership, error) {
	istios := &sailv1.IstioList{}
	if err := c.List(ctx, istios); err != nil {
		return nil, listing(err)
	}
	all := &heddlev1alpha1.MembershipList{}
	if err := c.List(ctx, all); err != nil {
		return nil, fmt.Errorf("list memberships: %w", err)
	}
	return membersOf(istios.Items, all.Items), nil
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

// softIsolation says what keeps meshes apart, and what does not.
const softIsolation = `Isolation: soft. Meshes share this cluster's API server, nodes and kernel, and are kept apart by namespaces, RBAC, and a
root certificate and a token audience of their own. Powers that reach across meshes remain:
  - every control plane reads Nodes, and may create TokenReviews and SubjectAccessReviews (ClusterRole heddle-mesh-cluster)
  - a control plane may create ConfigMaps of any name in its own namespaces, and Secrets where it runs: RBAC cannot limit what is yet to be made
  - the operator may read Namespaces and Pods, and write Deployments, Services, ServiceAccounts, ConfigMaps, autoscalers and disruption budgets anywhere,
    and webhook configurations; it binds the heddle-mesh-* roles
  - who may label Namespaces and is granted "enroll" on an Istio (kubectl auth can-i enroll istios.sailoperator.io/NAME) moves namespaces into that mesh
  - one set of custom resource definitions serves all meshes
  - no node agent is shared: redirection is set up by each pod's own init container
`

func (a *app) meshCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "mesh", Short: "The meshes of the cluster and who belongs to them"}
	cmd.AddCommand(
		&cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List the meshes", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			istios := &sailv1.IstioList{}
			if err := c.List(cmd.Context(), istios); err != nil {
				return listing(err)
			}
			members, err := memberships(cmd.Context(), c)
			if err != nil {
				return err
			}
			now := map[string]running{}
			for _, i := range istios.Items {
				r, err := c.running(cmd.Context(), i.Spec.Namespace)
				if err != nil {
					fmt.Fprintln(cmd.ErrOrStderr(), "warning:", err) // the rest is known all the same
				}
				now[i.Spec.Namespace] = r
			}
			return printMeshes(cmd.OutOrStdout(), istios.Items, members, now)
		}},
		&cobra.Command{Use: "of NAMESPACE|POD.NAMESPACE", Short: "Say which mesh a namespace or a pod belongs to", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return a.meshOf(cmd, args[0])
		}},
	)
	return cmd
}

// running is what is known of a mesh from its control plane.
type running struct {
	answered        bool
	proxies, inSync int
	root            *x509.Certificate // nil if none is published
}

// running asks every replica, and reads the root certificate that the mesh publishes in its system namespace.
func (c cluster) running(ctx context.Context, system string) (running, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var r running
	root := &corev1.ConfigMap{}
	if err := c.Get(ctx, client.ObjectKey{Namespace: system, Name: "istio-ca-root-cert"}, root); client.IgnoreNotFound(err) != nil {
		return r, fmt.Errorf("read the root certificate of %s: %w", system, err)
	}
	if block, _ := pem.Decode([]byte(root.Data["root-cert.pem"])); block != nil {
		var err error
		if r.root, err = x509.ParseCertificate(block.Bytes); err != nil {
			return r, fmt.Errorf("root certificate of %s: %w", system, err)
		}
	}
	all, err := planes(ctx, c, system, "")
	if err != nil {
		return r, err
	}
	for _, p := range all {
		answer, err := c.ask(ctx, p, syncType)
		if err != nil {
			return r, err
		}
		proxies, err := proxiesOf(answer, "", time.Now())
		if err != nil {
			return r, fmt.Errorf("answer of %s/%s: %w", p.namespace, p.pod, err)
		}
		r.proxies += len(proxies)
		for _, x := range proxies {
			if x.inSync() {
				r.inSync++
			}
		}
	}
	r.answered = true
	return r, nil
}

func (r running) cells() (inSync, root, ends string) {
	if r.answered {
		inSync = fmt.Sprintf("%d/%d", r.inSync, r.proxies)
	}
	if r.root != nil {
		sum := sha256.Sum256(r.root.Raw)
		root, ends = hex.EncodeToString(sum[:8]), r.root.NotAfter.Format(time.DateOnly)
	}
	return inSync, root, ends
}

// printMeshes says of each mesh what it is, and of its control plane's proxies how many hold the newest configuration. A
// root is told by the first eight bytes of its SHA-256.
func printMeshes(w io.Writer, istios []sailv1.Istio, members map[string]membership, now map[string]running) error {
	t := newTable(w)
	fmt.Fprintln(t, "MESH\tNAMESPACE\tREVISION\tSTATUS\tVERSION\tIN SYNC\tROOT\tROOT ENDS\tMEMBERS\tSELECTORS")
	for i := range istios {
		istio := &istios[i]
		var names, selectors []string
		for ns, m := range members {
			if m.mesh == istio.Name {
				names = append(names, ns)
			}
		}
		slices.Sort(names)
		for _, s := range operator.MeshOf(istio).Selectors {
			selectors = append(selectors, s.String())
		}
		inSync, root, ends := now[istio.Spec.Namespace].cells()
		cells := []string{
			istio.Name, istio.Spec.Namespace, istio.Status.ActiveRevisionName, istio.Status.State, istio.Spec.Version,
			inSync, root, ends, strings.Join(names, ","), strings.Join(selectors, " | "),
		}
		for j, c := range cells {
			cells[j] = orNone(c)
		}
		fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprint(w, "\n", softIsolation)
	return err
}

func orNone(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// newTable spaces columns as istioctl does.
func newTable(w io.Writer) *tabwriter.Writer { return tabwriter.NewWriter(w, 0, 8, 5, ' ', 0) }

func (a *app) meshOf(cmd *cobra.Command, what string) error {
	ctx := cmd.Context()
	c, err := a.connect()
	if err != nil {
		return err
	}
	var s snapshot
	var istios sailv1.IstioList
	var members heddlev1alpha1.MembershipList
	var tags sailv1.IstioRevisionTagList
	if err := c.List(ctx, &istios); err != nil {
		return listing(err)
	}
	if err := errors.Join(c.List(ctx, &members), c.List(ctx, &tags)); err != nil {
		return fmt.Errorf("list memberships and tags: %w", err)
	}
	s.istios, s.memberships, s.tags = istios.Items, members.Items, tags.Items
	namespace, pod := what, ""
	if name, ns := splitPod(what, a.namespace); ns != "" {
		namespace, pod = ns, name
	}
	ns := &corev1.Namespace{}
	if err := c.Get(ctx, client.ObjectKey{Name: namespace}, ns); err != nil {
		return fmt.Errorf("read namespace %s: %w", namespace, err)
	}
	out := cmd.OutOrStdout()
	owner := membersOf(s.istios, s.memberships)[namespace]
	fmt.Fprintf(out, "namespace %s: %s\n", namespace, s.belongs(owner, ns))
	if pod == "" {
		return nil
	}
	p := &corev1.Pod{}
	if err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: pod}, p); err != nil {
		return fmt.Errorf("read pod %s/%s: %w", namespace, pod, err)
	}
	fmt.Fprintf(out, "pod %s: %s\n", pod, s.sidecar(owner.mesh, ns, p))
	return nil
}

// belongs says which mesh a namespace belongs to, and why.
func (s snapshot) belongs(owner membership, ns *corev1.Namespace) string {
	var others, selecting []string
	for i := range s.istios {
		m := operator.MeshOf(&s.istios[i])
		if string(m.ID) != owner.mesh {
			others = append(others, string(m.ID))
			if m.Fault == "" && m.Selects(ns.Labels) {
				selecting = append(selecting, string(m.ID))
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
		if m.Everything() {
			why = "which has no discovery selectors and serves every namespace"
		}
		return fmt.Sprintf("mesh %s (%s), %s", owner.mesh, owner.phase, why)
	}
	slices.Sort(others)
	slices.Sort(selecting)
	if len(selecting) > 0 {
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
	gets, because := s.gets(mesh, *ns, pod)
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
