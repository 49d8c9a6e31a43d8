package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
)

const (
	// RootConfigMap is where workloads of a namespace find the root of their mesh.
	RootConfigMap = "istio-ca-root-cert"
	// RootKey is its one key that we own; others are left alone.
	RootKey = "root-cert.pem"

	planePrefix = "istiod-" // of the field managers of all our control planes
)

// ErrForeignRoot is what WriteRoot finds where another control plane has written.
var ErrForeignRoot = errors.New("the root there is another control plane's")

// WriteRoot puts a mesh's root bundle into a namespace, over what a user may have written there. It is an error if the key
// is another control plane's, ErrForeignRoot: which of the two a namespace belongs to is for the operator to say, not for who writes last.
func (c *Cluster) WriteRoot(ctx context.Context, namespace, bundle string) error {
	err := c.applyRoot(ctx, namespace, bundle, "false")
	if apierrors.IsConflict(err) {
		have, getErr := c.root(ctx, namespace)
		if getErr == nil {
			if owner := otherPlane(have, c.manager); owner != "" {
				return fmt.Errorf("write %s/%s: %w: control plane %q has written its own root there; take the namespace out of its mesh, or delete the ConfigMap if that is gone: %w",
					namespace, RootConfigMap, ErrForeignRoot, owner, err)
			}
			err = c.applyRoot(ctx, namespace, bundle, "true")
		} else if !apierrors.IsNotFound(getErr) {
			err = getErr
		}
	}
	if err != nil {
		return fmt.Errorf("write %s/%s: %w", namespace, RootConfigMap, err)
	}
	return nil
}

func (c *Cluster) applyRoot(ctx context.Context, namespace, bundle, force string) error {
	config, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{
			"namespace": namespace, "name": RootConfigMap, "labels": map[string]string{"istio.io/config": "true"},
		},
		"data": map[string]string{RootKey: bundle},
	})
	if err != nil {
		return err
	}
	return c.core().Patch(types.ApplyPatchType).Namespace(namespace).Resource("configmaps").Name(RootConfigMap).
		Param("fieldManager", c.manager).Param("force", force).Body(config).Do(ctx).Error()
}

// otherPlane returns the field manager of another control plane, ours or Istio's own, that owns the key of the root.
func otherPlane(root *corev1.ConfigMap, self string) string {
	for _, m := range root.ManagedFields {
		plane := strings.HasPrefix(m.Manager, planePrefix) || m.Manager == "pilot-discovery"
		if plane && m.Manager != self && m.FieldsV1 != nil && bytes.Contains(m.FieldsV1.Raw, []byte(`"f:`+RootKey+`"`)) {
			return m.Manager
		}
	}
	return ""
}

func (c *Cluster) root(ctx context.Context, namespace string) (*corev1.ConfigMap, error) {
	out := &corev1.ConfigMap{}
	return out, c.core().Get().Namespace(namespace).Resource("configmaps").Name(RootConfigMap).Do(ctx).Into(out)
}

// DeleteRoot removes the root bundle from a namespace if it still is the given one: the next mesh may have written its
// own already. A namespace or ConfigMap that is gone is no error.
func (c *Cluster) DeleteRoot(ctx context.Context, namespace, bundle string) error {
	have, err := c.root(ctx, namespace)
	if apierrors.IsNotFound(err) || err == nil && have.Data[RootKey] != bundle {
		return nil
	}
	if err == nil {
		err = c.core().Delete().Namespace(namespace).Resource("configmaps").Name(RootConfigMap).Body(&metav1.DeleteOptions{
			Preconditions: &metav1.Preconditions{UID: &have.UID, ResourceVersion: &have.ResourceVersion},
		}).Do(ctx).Error()
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("remove %s/%s: %w", namespace, RootConfigMap, err)
	}
	return nil
}

// ReportMembership writes what this plane has done about a Membership. The resource version makes sure that it lands on
// the object it speaks of and not on a successor of the same name; a stale one is an error (409).
func (c *Cluster) ReportMembership(ctx context.Context, m *heddlev1alpha1.Membership, status heddlev1alpha1.MembershipStatus) error {
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": m.ResourceVersion},
		"status":   status,
	})
	if err != nil {
		return fmt.Errorf("encode the status of membership %s/%s: %w", m.Namespace, m.Name, err)
	}
	err = c.rest[heddlev1alpha1.GroupVersion].Patch(types.MergePatchType).
		Namespace(m.Namespace).Resource("memberships").Name(m.Name).SubResource("status").
		Param("fieldManager", c.manager).Body(patch).Do(ctx).Error()
	if err != nil {
		return fmt.Errorf("report on membership %s/%s: %w", m.Namespace, m.Name, err)
	}
	return nil
}

// CreateSecret stores a new Secret; created is false, without an error, if one of that name exists.
func (c *Cluster) CreateSecret(ctx context.Context, s *corev1.Secret) (created bool, err error) {
	err = c.core().Post().Namespace(s.Namespace).Resource("secrets").Param("fieldManager", c.manager).Body(s).Do(ctx).Error()
	if apierrors.IsAlreadyExists(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("create secret %s/%s: %w", s.Namespace, s.Name, err)
	}
	return true, nil
}

// Secret reads one Secret; it is nil, without an error, if there is none.
func (c *Cluster) Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	out := &corev1.Secret{}
	err := c.core().Get().Namespace(namespace).Resource("secrets").Name(name).Do(ctx).Into(out)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read secret %s/%s: %w", namespace, name, err)
	}
	return out, nil
}
