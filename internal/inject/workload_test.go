package inject

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What a proxy calls its workload: the one whom users know, above what it generates.
func TestWorkload(t *testing.T) {
	for _, c := range []struct {
		name                string
		kind, owner         string // of the pod's controller
		version             string // "apps/v1" unless said
		labels              map[string]string
		workload, reference string
	}{
		{name: "Deployment", kind: "ReplicaSet", owner: "web-5d9c", labels: map[string]string{"pod-template-hash": "5d9c"}, workload: "web", reference: "apps/v1/namespaces/shop/deployments/web"},
		{name: "a ReplicaSet of its own", kind: "ReplicaSet", owner: "web-5d9c", workload: "web-5d9c", reference: "apps/v1/namespaces/shop/replicasets/web-5d9c"},
		{name: "Argo Rollout", kind: "ReplicaSet", owner: "web-6dc7", labels: map[string]string{"rollouts-pod-template-hash": "6dc7"}, workload: "web", reference: "v1alpha1/namespaces/shop/rollouts/web"},
		{name: "DeploymentConfig", kind: "ReplicationController", version: "v1", owner: "web-3", labels: map[string]string{"deploymentconfig": "web"}, workload: "web", reference: "v1/namespaces/shop/deploymentconfigs/web"},
		{name: "a ReplicationController of its own", kind: "ReplicationController", version: "v1", owner: "web-3", workload: "web-3", reference: "v1/namespaces/shop/replicationcontrollers/web-3"},
		{name: "CronJob", kind: "Job", version: "batch/v1", owner: "nightly-29341230", workload: "nightly", reference: "batch/v1/namespaces/shop/cronjobs/nightly"},
		{name: "CronJob before Kubernetes 1.21", kind: "Job", version: "batch/v1", owner: "nightly-1609459200", workload: "nightly", reference: "batch/v1/namespaces/shop/cronjobs/nightly"},
		{name: "a Job of its own", kind: "Job", version: "batch/v1", owner: "import-2024", workload: "import-2024", reference: "batch/v1/namespaces/shop/jobs/import-2024"},
		{name: "StatefulSet", kind: "StatefulSet", owner: "db", workload: "db", reference: "apps/v1/namespaces/shop/statefulsets/db"},
	} {
		if c.version == "" {
			c.version = "apps/v1"
		}
		controller := true
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", GenerateName: c.owner + "-", Labels: c.labels,
			OwnerReferences: []metav1.OwnerReference{{APIVersion: c.version, Kind: c.kind, Name: c.owner, Controller: &controller}},
		}}
		w := workload(pod)
		reference, err := owner(pod, w)
		if err != nil || w.Name != c.workload || reference != "kubernetes://apis/"+c.reference {
			t.Errorf("%s: %q %q %v", c.name, w.Name, reference, err)
		}
	}
}
