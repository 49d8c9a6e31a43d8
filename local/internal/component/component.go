// Package component holds the programs of Kubernetes that heddle-local is made of. Each runs
// in a process of its own: their commands cannot share one.
package component

import (
	"context"
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// Main returns the main function of a component, which reads os.Args and returns an exit
// code, or nil if there is none of that name.
func Main(name string) func() int {
	switch name {
	case "etcd":
		return func() int { etcdmain.Main(os.Args); return 0 }
	case "kube-apiserver":
		return func() int { return cli.Run(apiserver.NewAPIServerCommand()) }
	case "kube-controller-manager":
		return func() int { return cli.Run(controllers.NewControllerManagerCommand()) }
	case "kube-scheduler":
		return func() int { return cli.Run(scheduler.NewSchedulerCommand()) }
	case "kubelet":
		return func() int { return cli.Run(kubelet.NewKubeletCommand(context.Background())) }
	case "kube-proxy":
		return func() int { return cli.Run(proxy.NewProxyCommand()) }
	case "kubectl":
		return func() int { return cli.Run(kubectl.NewDefaultKubectlCommand()) }
	}
	return nil
}
