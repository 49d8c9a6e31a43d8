package kube

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	coreapply "k8s.io/client-go/applyconfigurations/core/v1"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
)

const (
	// RootConfigMap is where workloads of a namespace find the root of their mesh.
	RootConfigMap = "istio-ca-root-cert"
	// RootKey is its one key that we own; others are left alone.
	RootKey = "root-cert.pem"
)

// WriteRoot puts a mesh's root bundle into a namespace. It is an error (409) if another writer owns the key.
func (c *Cluster) WriteRoot(ctx context.Context, namespace, bundle string) error {
	config := coreapply.ConfigMap(RootConfigMap, namespace).
		WithLabels(map[string]string{"istio.io/config": "true"}).
		WithData(map[string]string{RootKey: bundle})
	_, err := c.Client.CoreV1().ConfigMaps(namespace).Apply(ctx, config, metav1.ApplyOptions{FieldManager: c.manager})
	if err != nil {
		return fmt.Errorf("write %s/%s: %w", namespace, RootConfigMap, err)
	}
	return nil
}

// DeleteRoot removes the root bundle from a namespace if it still is the given one: the next mesh may have written its
// own already. A namespace or ConfigMap that is gone is no error.
func (c *Cluster) DeleteRoot(ctx context.Context, namespace, bundle string) error {
	api := c.Client.CoreV1().ConfigMaps(namespace)
	have, err := api.Get(ctx, RootConfigMap, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && have.Data[RootKey] != bundle {
		return nil
	}
	if err == nil {
		err = api.Delete(ctx, RootConfigMap, metav1.DeleteOptions{
			Preconditions: &metav1.Preconditions{UID: &have.UID, ResourceVersion: &have.ResourceVersion},
		})
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
	_, err = c.Client.CoreV1().Secrets(s.Namespace).Create(ctx, s, metav1.CreateOptions{FieldManager: c.manager})
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
	s, err := c.Client.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read secret %s/%s: %w", namespace, name, err)
	}
	return s, nil
}
