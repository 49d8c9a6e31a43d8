// Package kube turns one API server into graph sources of trimmed objects, and what a plane has to say back into
// writes by server-side apply.
package kube

import (
	"errors"
	"fmt"
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Cluster is one API server as a control plane of one mesh sees it. It is safe for concurrent use.
type Cluster struct {
	ID mesh.ClusterID
	*Tokens

	log     *slog.Logger
	manager string // field manager of everything this plane writes; carries the mesh
	scheme  *runtime.Scheme
	rest    map[schema.GroupVersion]rest.Interface
}

// PlaneManager is the field manager of everything that the control planes of a mesh write.
func PlaneManager(owner mesh.ID) string { return planePrefix + string(owner) }

// Open prepares the clients for one API server, that of the kubeconfig file or, if none is named, of the pod's service
// account; it does not connect. The field manager of all writes is "istiod-<mesh>", so that two meshes never look like
// one writer.
func Open(kubeconfig string, id mesh.ClusterID, owner mesh.ID, log *slog.Logger) (*Cluster, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("find the API server: %w", err)
	}
	// A plane opens its watches all at once when it starts. Throttling them here would make it late for nothing: the API
	// server has its own fairness.
	cfg.QPS, cfg.Burst = -1, 0

	c := &Cluster{
		ID: id, log: log, manager: PlaneManager(owner),
		scheme: runtime.NewScheme(), rest: map[schema.GroupVersion]rest.Interface{},
	}
	// The few groups that a plane speaks, not a clientset of them all: that is a megabyte of each process for types it
	// never reads.
	if err := errors.Join(
		corev1.AddToScheme(c.scheme), discoveryv1.AddToScheme(c.scheme),
		networkingv1.AddToScheme(c.scheme), securityv1.AddToScheme(c.scheme), heddlev1alpha1.AddToScheme(c.scheme),
	); err != nil {
		return nil, fmt.Errorf("register the kinds that are read: %w", err)
	}
	codecs := serializer.NewCodecFactory(c.scheme).WithoutConversion()
	http, err := rest.HTTPClientFor(cfg) // one connection for all groups
	if err != nil {
		return nil, fmt.Errorf("open cluster %s: %w", id, err)
	}
	if c.Tokens, err = newTokens(cfg, http, id); err != nil {
		return nil, err
	}
	for _, gv := range []schema.GroupVersion{
		corev1.SchemeGroupVersion, discoveryv1.SchemeGroupVersion,
		networkingv1.SchemeGroupVersion, securityv1.SchemeGroupVersion, heddlev1alpha1.GroupVersion,
	} {
		group := rest.CopyConfig(cfg)
		group.GroupVersion, group.APIPath, group.NegotiatedSerializer = &gv, "/apis", codecs
		if gv.Group == "" {
			group.APIPath = "/api"
		}
		switch gv {
		case networkingv1.SchemeGroupVersion, securityv1.SchemeGroupVersion:
			group.NegotiatedSerializer = tolerant{codecs}
		case corev1.SchemeGroupVersion, discoveryv1.SchemeGroupVersion: // custom resources have no protobuf
			group.ContentType = runtime.ContentTypeProtobuf
			group.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
		}
		if c.rest[gv], err = rest.RESTClientForConfigAndClient(group, http); err != nil {
			return nil, fmt.Errorf("open cluster %s for %s: %w", id, gv, err)
		}
	}
	return c, nil
}

func (c *Cluster) core() rest.Interface { return c.rest[corev1.SchemeGroupVersion] }
