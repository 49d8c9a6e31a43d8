package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
)

func (a *app) uninstallCommand() *cobra.Command {
	var revision string
	var yes, purge bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "uninstall --revision NAME", Short: "Remove a mesh; namespaces, operator and custom resource definitions stay", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case purge:
				return errors.New("--purge would remove every mesh of the cluster, also those of others: remove each with --revision NAME, or all with the operator: uninstall operator")
			case revision == "":
				return fmt.Errorf("name the mesh: --revision NAME (`%s mesh list` shows them)", a.Name)
			}
			return a.uninstall(cmd, revision, yes, timeout)
		},
	}
	fs := cmd.Flags()
	fs.StringVarP(&revision, "revision", "r", "", "the revision, which is named as its mesh")
	fs.BoolVarP(&yes, "skip-confirmation", "y", false, "do not ask")
	fs.BoolVar(&purge, "purge", false, "refused: there may be meshes of others")
	fs.DurationVar(&timeout, "readiness-timeout", 2*time.Minute, "how long to wait until everything is gone")
	cmd.AddCommand(a.uninstallOperatorCommand())
	return cmd
}

// uninstall deletes the Istio object; the operator takes away what it made for it.
func (a *app) uninstall(cmd *cobra.Command, revision string, yes bool, timeout time.Duration) error {
	ctx := cmd.Context()
	c, err := a.connect()
	if err != nil {
		return err
	}
	istio, err := istioOf(ctx, c, revision)
	if err != nil {
		return err
	}
	istios, memberships, err := a.members(ctx, c)
	if err != nil {
		return err
	}
	members := membersOf(istios, memberships)
	var served []string
	for ns, m := range members {
		if m.mesh == istio.Name {
			served = append(served, ns)
		}
	}
	slices.Sort(served)
	question := fmt.Sprintf("Mesh %s with its control plane in namespace %s will be removed.", istio.Name, istio.Spec.Namespace)
	if len(served) > 0 {
		question += fmt.Sprintf(" It serves %s; proxies there keep what they have until their pods are restarted.", strings.Join(served, ", "))
	}
	if err := confirm(cmd, yes, question); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	s := newSteps(cmd.OutOrStdout())
	if err := deleteDefaultTag(ctx, c, istio.Name); err != nil {
		return err
	}
	if err := c.Delete(ctx, istio, client.PropagationPolicy(metav1.DeletePropagationForeground)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete Istio %s: %w", istio.Name, err)
	}
	for _, list := range []client.ObjectList{&sailv1.IstioRevisionList{}, &sailv1.IstioList{}} {
		gone := func(o runtime.Object) (bool, error) { return o == nil, nil }
		if err := within(ctx, await(ctx, c, list, "", istio.Name, gone), "mesh "+istio.Name+" is not gone; does the operator run?"); err != nil {
			return err
		}
	}
	s.done("mesh %s removed", istio.Name)
	return nil
}

// istioOf finds the mesh of a revision: the Istio of that name, or the one that owns the IstioRevision.
func istioOf(ctx context.Context, c client.Client, revision string) (*sailv1.Istio, error) {
	istios := &sailv1.IstioList{}
	if err := c.List(ctx, istios); err != nil {
		return nil, listing(err)
	}
	var names []string
	for i := range istios.Items {
		istio := &istios.Items[i]
		if istio.Name == revision || istio.Status.ActiveRevisionName == revision {
			return istio, nil
		}
		names = append(names, istio.Name)
	}
	return nil, fmt.Errorf("could not find target revision %s; there are: %s", revision, strings.Join(append(names, "no others"), ", "))
}

// listing explains the error of a cluster that has never had a mesh, and of one whose meshes are not all for this user.
func listing(err error) error {
	if err == nil {
		return nil
	}
	if apierrors.IsForbidden(err) {
		return fmt.Errorf("list meshes: %w; without that right on the cluster name your mesh by its system namespace, with -i", err)
	}
	if runtime.IsNotRegisteredError(err) || apierrors.IsNotFound(err) || isNoMatch(err) {
		return errors.New("the cluster has no meshes: the custom resource definitions are missing (`heddle install` brings them)")
	}
	return fmt.Errorf("list meshes: %w", err)
}

// deleteDefaultTag takes the default tag away that install made for this mesh; a user's own stays.
func deleteDefaultTag(ctx context.Context, c client.Client, mesh string) error {
	tag := &sailv1.IstioRevisionTag{}
	err := c.Get(ctx, client.ObjectKey{Name: sailv1.DefaultName}, tag)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the default tag: %w", err)
	}
	if tag.Labels[madeBy] != fieldManager || tag.Spec.TargetRef.Name != mesh {
		return nil
	}
	if err := c.Delete(ctx, tag); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete the default tag: %w", err)
	}
	return nil
}
