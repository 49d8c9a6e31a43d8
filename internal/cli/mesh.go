package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

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
  - the operator reads Namespaces and the metadata of Pods, writes Deployments and webhook configurations, and binds the heddle-mesh-* roles anywhere
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
			return printMeshes(cmd.OutOrStdout(), istios.Items, members)
		}},
		&cobra.Command{Use: "of NAMESPACE|POD.NAMESPACE", Short: "Say which mesh a namespace or a pod belongs to", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return a.meshOf(cmd, args[0])
		}},
	)
	return cmd
}

func printMeshes(w io.Writer, istios []sailv1.Istio, members map[string]membership) error {
	t := newTable(w)
	fmt.Fprintln(t, "MESH\tNAMESPACE\tREVISION\tSTATUS\tVERSION\tMEMBERS\tSELECTORS")
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
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", istio.Name, istio.Spec.Namespace, orNone(istio.Status.ActiveRevisionName), orNone(istio.Status.State),
			orNone(istio.Spec.Version), orNone(strings.Join(names, ",")), orNone(strings.Join(selectors, " | ")))
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
	members, err := memberships(ctx, c)
	if err != nil {
		return err
	}
	namespace, pod := what, ""
	if name, ns := splitPod(what, a.namespace); ns != "" {
		namespace, pod = ns, name
	}
	if err := c.Get(ctx, client.ObjectKey{Name: namespace}, &corev1.Namespace{}); err != nil {
		return fmt.Errorf("read namespace %s: %w", namespace, err)
	}
	out := cmd.OutOrStdout()
	m, ok := members[namespace]
	if ok {
		fmt.Fprintf(out, "namespace %s: mesh %s (%s)\n", namespace, m.mesh, m.phase)
	} else {
		fmt.Fprintf(out, "namespace %s: no mesh\n", namespace)
	}
	if pod == "" {
		return nil
	}
	p := &corev1.Pod{}
	if err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: pod}, p); err != nil {
		return fmt.Errorf("read pod %s/%s: %w", namespace, pod, err)
	}
	if r := injectedBy(p); r != "" {
		fmt.Fprintf(out, "pod %s: sidecar of revision %s\n", pod, r)
	} else {
		fmt.Fprintf(out, "pod %s: no sidecar\n", pod)
	}
	return nil
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
