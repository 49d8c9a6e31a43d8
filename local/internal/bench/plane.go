package bench

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"
)

const (
	poll      = 200 * time.Millisecond
	startWait = 2 * time.Minute // for a plane to be ready, or gone

	rootName, rootKey = "istio-ca-secret", "ca-cert.pem" // of a CA that signs itself
	tlsPort, metrics  = "15012", "15014"
)

// Plane is a Deployment that runs a control plane, called as Istio's charts do: istiod-REVISION.
type Plane struct {
	Namespace, Revision string
}

func (p Plane) deployment() string { return "istiod-" + p.Revision }

// scale has the plane run with as many pods as said, with more environment than it was deployed with, and waits until they
// are ready or gone.
func (p Plane) scale(ctx context.Context, k kubernetes.Interface, replicas int32, env []corev1.EnvVar) (pod *corev1.Pod, err error) {
	deployments := k.AppsV1().Deployments(p.Namespace)
	err = retry.RetryOnConflict(retry.DefaultRetry, func() error {
		d, err := deployments.Get(ctx, p.deployment(), metav1.GetOptions{})
		if err != nil {
			return err
		}
		c := &d.Spec.Template.Spec.Containers[0]
		c.Env = slices.DeleteFunc(c.Env, func(e corev1.EnvVar) bool {
			return slices.ContainsFunc(eager, func(t corev1.EnvVar) bool { return t.Name == e.Name })
		})
		c.Env = append(c.Env, env...)
		d.Spec.Replicas = &replicas
		_, err = deployments.Update(ctx, d, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("scale %s in %s: %w", p.deployment(), p.Namespace, err)
	}
	err = wait.PollUntilContextTimeout(ctx, poll, startWait, true, func(ctx context.Context) (bool, error) {
		list, err := k.CoreV1().Pods(p.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=istiod,istio.io/rev=" + p.Revision})
		if err != nil || len(list.Items) != int(replicas) {
			return false, err
		}
		for i := range list.Items {
			pod = &list.Items[i]
			if pod.DeletionTimestamp != nil || !slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
				return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
			}) {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		return nil, fmt.Errorf("wait for %s in %s to have %d ready pods: %w", p.deployment(), p.Namespace, replicas, err)
	}
	return pod, nil
}

// target is where the plane's pod serves proxies.
func (p Plane) target(ctx context.Context, k kubernetes.Interface, pod *corev1.Pod) (target, error) {
	t := target{
		address: net.JoinHostPort(pod.Status.PodIP, tlsPort), roots: x509.NewCertPool(),
		name: p.deployment() + "." + p.Namespace + ".svc",
	}
	secret, err := k.CoreV1().Secrets(p.Namespace).Get(ctx, rootName, metav1.GetOptions{})
	if err != nil {
		return t, fmt.Errorf("read whom proxies of %s trust: %w", p.deployment(), err)
	}
	if !t.roots.AppendCertsFromPEM(secret.Data[rootKey]) {
		return t, fmt.Errorf("Secret %s/%s has no certificate in %s", p.Namespace, rootName, rootKey)
	}
	return t, nil
}

// process is a plane's process: the processes of all nodes are processes of this machine.
type process struct {
	pid     string
	address string // of its pod
}

// processOf finds the process of a pod of one container, besides the one that holds its namespaces.
func processOf(pod *corev1.Pod) (process, error) {
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		return process{}, err
	}
	var found []string
	for _, f := range files {
		cgroups, err := os.ReadFile(f)
		command, errCommand := os.ReadFile(filepath.Join(filepath.Dir(f), "cmdline"))
		if err != nil || errCommand != nil {
			continue // it has ended
		}
		// The systemd driver writes _ for -.
		if in := strings.ReplaceAll(string(cgroups), "_", "-"); strings.Contains(in, string(pod.UID)) && !bytes.HasPrefix(command, []byte("/pause\x00")) {
			found = append(found, filepath.Base(filepath.Dir(f)))
		}
	}
	if len(found) != 1 {
		return process{}, fmt.Errorf("pod %s/%s has %d processes on this machine, want 1: run this where the local cluster runs, as root",
			pod.Namespace, pod.Name, len(found))
	}
	return process{found[0], pod.Status.PodIP}, nil
}

// self is the process that makes the load.
func self() process { return process{pid: "self"} }

// cpu is the time that the process has taken of all processors.
func (p process) cpu() (time.Duration, error) {
	b, err := os.ReadFile(filepath.Join("/proc", p.pid, "stat"))
	if err != nil {
		return 0, err
	}
	return parseCPU(b)
}

func parseCPU(stat []byte) (time.Duration, error) {
	const tick = time.Second / 100 // USER_HZ, the same on all of Linux
	// The command, which may hold spaces, stands in parentheses; from its end on, utime and stime are the 12th and 13th.
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(f) < 13 {
		return 0, fmt.Errorf("unexpected process status %q", stat)
	}
	user, err := strconv.ParseInt(f[11], 10, 64)
	system, errSystem := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * tick, errors.Join(err, errSystem)
}

// Memory is what a process holds, in bytes.
type Memory struct {
	Resident, Peak float64
	Heap           float64 // in use, with what is not collected yet
}

func (p process) memory(ctx context.Context) (m Memory, err error) {
	b, err := os.ReadFile(filepath.Join("/proc", p.pid, "status"))
	if err != nil {
		return m, err
	}
	for name, to := range map[string]*float64{"VmRSS:": &m.Resident, "VmHWM:": &m.Peak} {
		kilobytes, err := word(b, name)
		if err != nil {
			return m, err
		}
		*to = kilobytes * 1024
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(p.address, metrics)+"/metrics", nil)
	if err != nil {
		return m, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return m, err
	}
	defer resp.Body.Close()
	var text bytes.Buffer
	if _, err := text.ReadFrom(resp.Body); err != nil {
		return m, err
	}
	m.Heap, err = word(text.Bytes(), "go_memstats_heap_inuse_bytes")
	return m, err
}

// word returns the number that follows a name at the start of a line.
func word(text []byte, name string) (float64, error) {
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		if f := strings.Fields(lines.Text()); len(f) > 1 && f[0] == name {
			return strconv.ParseFloat(f[1], 64)
		}
	}
	return 0, fmt.Errorf("there is no %s", name)
}
