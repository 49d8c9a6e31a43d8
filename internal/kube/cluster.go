// Package kube turns one API server into graph sources of trimmed objects, and what a plane has to say back into
// writes by server-side apply.
package kube

import (
	"fmt"
	"log/slog"

	istioscheme "istio.io/client-go/pkg/clientset/versioned/scheme"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Cluster is one API server as a control plane of one mesh sees it. It is safe for concurrent use.
type Cluster struct {
	ID     mesh.ClusterID
	Client kubernetes.Interface // protobuf on the wire

	log     *slog.Logger
	manager string // field manager of everything this plane writes; carries the mesh
	rest    map[schema.GroupVersion]rest.Interface
}

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

	typed := rest.CopyConfig(cfg)
	typed.ContentType = runtime.ContentTypeProtobuf
	typed.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	client, err := kubernetes.NewForConfig(typed)
	if err != nil {
		return nil, fmt.Errorf("open cluster %s: %w", id, err)
	}
	c := &Cluster{
		ID: id, Client: client, log: log, manager: "istiod-" + string(owner),
		rest: map[schema.GroupVersion]rest.Interface{
			{Version: "v1"}: client.CoreV1().RESTClient(),
			{Group: "discovery.k8s.io", Version: "v1"}: client.DiscoveryV1().RESTClient(),
		},
	}
	scheme := runtime.NewScheme()
	if err := istioscheme.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("register the Istio kinds: %w", err)
	}
	if err := heddlev1alpha1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("register the Membership kind: %w", err)
	}
	codecs := serializer.NewCodecFactory(scheme).WithoutConversion()
	for _, gv := range []schema.GroupVersion{
		{Group: "security.istio.io", Version: "v1"},
		{Group: "networking.istio.io", Version: "v1"},
		heddlev1alpha1.GroupVersion,
	} {
		custom := rest.CopyConfig(cfg)
		custom.GroupVersion, custom.APIPath, custom.NegotiatedSerializer = &gv, "/apis", codecs
		if c.rest[gv], err = rest.RESTClientFor(custom); err != nil {
			return nil, fmt.Errorf("open cluster %s for %s: %w", id, gv, err)
		}
	}
	return c, nil
}
