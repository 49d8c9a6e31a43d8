//go:build e2e

// Package e2e runs the built program on this machine, as root: bin/heddle-local of the
// checkout must exist. It works in an instance of its own beside any other.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

const (
	name   = "e2e"
	base   = "10.40"
	link   = "hdl10-40"
	limit  = 2 * time.Minute // of one command
	sample = "https://raw.githubusercontent.com/istio/istio/release-1.26/samples/"
)

// local runs heddle-local for our instance and returns what it printed.
func local(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	program, err := filepath.Abs("../../bin/heddle-local")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, program, append([]string{"--instance", name}, args...)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG=")
	out, err := cmd.CombinedOutput()
	t.Logf("heddle-local %s\n%s", strings.Join(args, " "), out)
	return string(out), err
}

func must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := local(t, args...)
	if err != nil {
		t.Fatalf("heddle-local %s: %v", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(out)
}

// traces are what an instance must not leave behind. Of other instances, which may come and
// go meanwhile, nothing is listed.
func traces(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{
		"/var/lib/heddle-local/" + name, "/run/heddle-local/" + name + ".*", "/run/netns/*",
		"/sys/fs/cgroup/*/heddle-local/" + name, "/sys/fs/cgroup/heddle-local/" + name,
	} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		all = append(all, "mount "+strings.Fields(line)[4])
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	others := map[int]bool{}
	for _, l := range links {
		if n := l.Attrs().Name; strings.HasPrefix(n, "hdl") && n != link {
			others[l.Attrs().Index] = true
			continue
		}
		all = append(all, "link "+l.Attrs().Name)
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		if !others[r.LinkIndex] {
			all = append(all, "route "+r.String())
		}
	}
	tables, err := exec.CommandContext(t.Context(), "nft", "list", "tables").Output()
	if err != nil {
		t.Fatal(err)
	}
	all = append(all, strings.Split(string(tables), "\n")...)
	for _, pid := range processes(t) {
		all = append(all, fmt.Sprint("process ", pid))
	}
	slices.Sort(all)
	return all
}

// processes are all of the instance, by environment or control group.
func processes(t *testing.T) []int {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, d := range dirs {
		environ, _ := os.ReadFile(filepath.Join(d, "environ")) // gone meanwhile, then not ours
		cgroup, _ := os.ReadFile(filepath.Join(d, "cgroup"))
		if bytes.Contains(environ, []byte("HEDDLE_LOCAL_PROCESS_OF="+name+"\x00")) || bytes.Contains(cgroup, []byte("heddle-local/"+name+"/")) {
			pid, err := strconv.Atoi(filepath.Base(d))
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

func kill(t *testing.T, pids ...int) {
	t.Helper()
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
			t.Fatal(err)
		}
	}
}

func eventually(t *testing.T, what string, within time.Duration, f func() error) {
	t.Helper()
	began := time.Now()
	for {
		err := f()
		if err == nil {
			t.Logf("%s after %v", what, time.Since(began).Round(time.Millisecond))
			return
		}
		if time.Since(began) > within {
			t.Fatalf("%s: not within %v: %v", what, within, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// answers says whether the httpbin behind url does.
func answers(url string) error {
	client := http.Client{Timeout: 2 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", resp.Status)
	}
	return nil
}

// code asks httpbin from sleep, as the documents do.
func code(t *testing.T) string {
	out, err := local(t, "kubectl", "-n", "app-1", "exec", "deploy/sleep", "--", "curl", "-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", "http://httpbin.app-2:8000/get")
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(out)
}

func TestCluster(t *testing.T) {
	must(t, "down") // of a run that was broken off
	before := traces(t)
	t.Cleanup(func() {
		// t's context has ended
		if out, err := exec.Command("../../bin/heddle-local", "--instance", name, "down").CombinedOutput(); err != nil {
			t.Errorf("down: %v: %s", err, out)
		}
	})

	t.Log("up, twice")
	must(t, "up", "--nodes", "1", "--base", base)
	if during := traces(t); slices.Equal(before, during) {
		t.Error("a running instance has no traces")
	}
	began := time.Now()
	must(t, "up")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("up of what is up took %v", took)
	}

	t.Log("the documents' workloads, under the documents' names")
	for _, ns := range []string{"app-1", "app-2"} {
		if out := must(t, "oc", "new-project", ns); !strings.Contains(out, fmt.Sprintf("Now using project %q", ns)) {
			t.Errorf("new-project: %s", out)
		}
	}
	if ns := must(t, "kubectl", "config", "view", "--minify", "-o", "jsonpath={..namespace}"); ns != "app-2" {
		t.Errorf("works in namespace %q after new-project app-2", ns)
	}
	must(t, "oc", "apply", "-n", "app-1", "-f", sample+"sleep/sleep.yaml")
	must(t, "oc", "apply", "-f", sample+"httpbin/httpbin.yaml")
	for _, workload := range []string{"app-1/sleep", "app-2/httpbin"} {
		ns, deployment, _ := strings.Cut(workload, "/")
		must(t, "kubectl", "-n", ns, "rollout", "status", "--timeout=60s", "deploy/"+deployment)
	}
	if got := code(t); got != "200" {
		t.Errorf("sleep to httpbin: %s", got)
	}

	t.Log("a load balancer, from the host")
	must(t, "kubectl", "-n", "app-2", "patch", "service", "httpbin", "-p", `{"spec":{"type":"LoadBalancer","externalTrafficPolicy":"Local"}}`)
	must(t, "kubectl", "-n", "app-2", "wait", "--for=jsonpath={.status.loadBalancer.ingress[0].ip}", "--timeout=10s", "service/httpbin")
	balancer := "http://" + must(t, "kubectl", "-n", "app-2", "get", "service", "httpbin", "-o", "jsonpath={.status.loadBalancer.ingress[0].ip}") + ":8000/get"
	eventually(t, "the load balancer answers", 5*time.Second, func() error { return answers(balancer) })

	t.Log("rights")
	if out, err := local(t, "kubectl", "get", "secrets", "-A", "--as", "system:serviceaccount:app-1:sleep"); err == nil || !strings.Contains(out, "Forbidden") {
		t.Errorf("a plain service account lists secrets: %s", out)
	}

	t.Log("the API server dies, then a node")
	for _, c := range []string{"kube-apiserver", "c1-n1"} {
		old := part(t, c)
		kill(t, old.PID)
		eventually(t, c+" is back", 15*time.Second, func() error {
			if p := part(t, c); p.PID == old.PID || p.Health != "ok" {
				return fmt.Errorf("%+v", p)
			}
			return nil
		})
	}
	eventually(t, "sleep reaches httpbin again", time.Minute, func() error {
		if got := code(t); got != "200" {
			return fmt.Errorf("got %s", got)
		}
		return nil
	})

	t.Log("two nodes, one node")
	must(t, "up", "--nodes", "2")
	must(t, "kubectl", "-n", "app-2", "scale", "--replicas=6", "deploy/httpbin")
	must(t, "kubectl", "-n", "app-2", "rollout", "status", "--timeout=60s", "deploy/httpbin")
	if on := must(t, "kubectl", "-n", "app-2", "get", "pods", "-o", "jsonpath={.items[*].spec.nodeName}"); !strings.Contains(on, "c1-n1") || !strings.Contains(on, "c1-n2") {
		t.Errorf("pods are on %s, not on both nodes", on)
	}
	for range 10 { // over both nodes
		if got := code(t); got != "200" {
			t.Errorf("sleep to httpbin: %s", got)
		}
	}
	must(t, "up", "--nodes", "1")

	t.Log("everything is killed; up repairs")
	kill(t, processes(t)...)
	eventually(t, "all processes are gone", 5*time.Second, func() error {
		if left := processes(t); len(left) > 0 {
			return fmt.Errorf("left: %v", left)
		}
		return nil
	})
	if out, err := local(t, "status"); err == nil || !strings.Contains(out, "heddle-local up") {
		t.Errorf("status of a dead instance: %v: %s", err, out)
	}
	must(t, "up")
	eventually(t, "sleep reaches httpbin again", time.Minute, func() error {
		if got := code(t); got != "200" {
			return fmt.Errorf("got %s", got)
		}
		return nil
	})

	t.Log("everything is killed; down leaves nothing")
	kill(t, processes(t)...)
	began = time.Now()
	must(t, "down")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("down took %v", took)
	}
	if after := traces(t); !slices.Equal(before, after) {
		t.Errorf("down left something:\n%s\nbefore:\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
}

type state struct {
	PID    int
	Health string
}

// part reads a line of status; a part that is not there has PID 0.
func part(t *testing.T, name string) state {
	t.Helper()
	out, _ := local(t, "status", "--output=json") // fails while a part is not healthy
	var parts []struct {
		Name string
		state
	}
	at := strings.LastIndex(out, "]")
	if err := json.Unmarshal([]byte(out[:at+1]), &parts); err != nil {
		t.Fatalf("status: %v: %s", err, out)
	}
	for _, p := range parts {
		if p.Name == name {
			return p.state
		}
	}
	return state{}
}

func TestAPIServerAlone(t *testing.T) {
	must(t, "down")
	must(t, "up", "--nodes", "0", "--base", base)
	if out := must(t, "kubectl", "get", "--raw", "/readyz"); out != "ok" {
		t.Errorf("readyz: %s", out)
	}
	if _, err := local(t, "up", "--base", "10.80"); err == nil {
		t.Error("another base was accepted for a running instance")
	}
	must(t, "down")
	if out, err := local(t, "kubectl", "get", "nodes"); err == nil || !strings.Contains(out, "heddle-local up") {
		t.Errorf("kubectl without an instance: %v: %s", err, out)
	}
}
