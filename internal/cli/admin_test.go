package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/heddle-mesh/heddle/internal/operator"
)

// replicas are two of the operator.
func replicas() []client.Object {
	meta := func(name, owner string) metav1.ObjectMeta {
		m := metav1.ObjectMeta{Namespace: operator.Namespace, Name: name, UID: types.UID(name), Labels: map[string]string{"app": operatorName}}
		m.OwnerReferences = []metav1.OwnerReference{{Kind: "x", Name: owner, UID: types.UID(owner), Controller: new(true)}}
		return m
	}
	running := corev1.PodStatus{Phase: corev1.PodRunning}
	return []client.Object{
		&appsv1.ReplicaSet{ObjectMeta: meta(operatorName+"-a", "")}, // cluster0's Deployment has no UID
		&corev1.Pod{ObjectMeta: meta(operatorName+"-a-b", operatorName+"-a"), Status: running},
		&corev1.Pod{ObjectMeta: meta(operatorName+"-a-c", operatorName+"-a"), Status: running},
		&corev1.Pod{ObjectMeta: meta(operatorName+"-forged", "other"), Status: running},
	}
}

// processes answer pages and keep what they were asked.
type processes struct {
	mu    sync.Mutex
	asked []string
	says  map[string]string // by pod; the others are silent
	until time.Duration
}

func (x *processes) in(c cluster) cluster {
	c.call = func(ctx context.Context, p plane, method, page string) ([]byte, error) {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.asked = append(x.asked, p.String()+" "+method+" "+page)
		if end, ok := ctx.Deadline(); ok {
			x.until = time.Until(end)
		}
		if said, ok := x.says[p.pod]; ok {
			return []byte(said), nil
		}
		return nil, errors.New("profiles are off")
	}
	return c
}

// Which process is asked for which profile, and what becomes of the file.
func TestAdminProfile(t *testing.T) {
	const plane1, operator1 = "istiod-mesh-1-a-b", operatorName + "-a-b"
	for _, c := range []struct {
		args         string
		asked, err   string
		atLeast      time.Duration // that the process has
		says, before string
		holds        string // the file, in the end; empty: it is not there
	}{
		{args: "profile " + plane1, asked: "sys-1/istiod-mesh-1-a-b GET profile?seconds=10&type=cpu", atLeast: 10 * time.Second, says: "P", holds: "P"},
		{args: "profile " + plane1 + " --seconds 60", asked: "sys-1/istiod-mesh-1-a-b GET profile?seconds=60&type=cpu", atLeast: time.Minute, says: "P", before: "old", holds: "P"},
		{args: "profile " + plane1 + ".sys-1 --type heap", asked: "sys-1/istiod-mesh-1-a-b GET profile?type=heap", says: "P", holds: "P"},
		{args: "profile " + plane1 + " -i sys-1 --type goroutine", asked: "sys-1/istiod-mesh-1-a-b GET profile?type=goroutine", says: "P", holds: "P"},
		{args: "profile " + operator1 + " --type allocs", asked: "heddle-system/heddle-operator-a-b GET profile?type=allocs", says: "P", holds: "P"},
		{args: "profile " + plane1, asked: "sys-1/istiod-mesh-1-a-b GET profile?seconds=10&type=cpu", before: "old", err: "take a profile of sys-1/istiod-mesh-1-a-b: profiles are off", holds: "old"},
		{args: "profile " + plane1, asked: "sys-1/istiod-mesh-1-a-b GET profile?seconds=10&type=cpu", err: "profiles are off"},
		{args: "profile " + plane1 + " -i sys-2", err: "no control plane and no operator runs in a pod istiod-mesh-1-a-b; there are sys-2/istiod-mesh-2-a-b"},
		{args: "profile " + plane1 + ".sys-2", err: "runs in a pod istiod-mesh-1-a-b.sys-2"},
		{args: "profile " + operatorName + "-forged", err: "there are heddle-system/heddle-operator-a-b, heddle-system/heddle-operator-a-c"},
		{args: "profile " + plane1 + " --type heap --seconds 5", err: "only a cpu profile takes seconds"},
		{args: "profile " + plane1 + " --seconds -1", err: "from 1 to 60"},
		{args: "profile " + plane1 + " --seconds 61", err: "from 1 to 60"},
		{args: "profile " + plane1 + " --type trace", err: "use allocs, cpu, goroutine or heap"},
		{args: "profile", err: "accepts 1 arg"},
	} {
		x := &processes{says: map[string]string{}}
		if c.says != "" {
			x.says[plane1], x.says[operator1] = c.says, c.says
		}
		dir := t.TempDir()
		file := filepath.Join(dir, "p.pb.gz")
		if c.before != "" {
			if err := os.WriteFile(file, []byte(c.before), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		out, err := runVerb(t, x.in(world0(t, 2, replicas()...)), nil, append([]string{"admin"}, append(strings.Fields(c.args), "-o", file)...)...)
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, want %q\n%s", c.args, err, c.err, out)
		}
		if got := strings.Join(x.asked, "\n"); got != c.asked {
			t.Errorf("%s: asked %q, want %q", c.args, got, c.asked)
		}
		if c.says != "" && x.until < c.atLeast {
			t.Errorf("%s: the process has %v", c.args, x.until)
		}
		holds, err := os.ReadFile(file)
		if string(holds) != c.holds || (err != nil) != (c.holds == "") {
			t.Errorf("%s: the file holds %q, %v; want %q", c.args, holds, err, c.holds)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 1 {
			t.Errorf("%s: left %v, %v", c.args, left, err)
		}
	}
	x := &processes{}
	if _, err := runVerb(t, x.in(world0(t, 1)), nil, "admin", "profile", plane1, "-o", filepath.Join(t.TempDir(), "no", "p")); err == nil || !strings.Contains(err.Error(), "write the profile") || len(x.asked) > 0 {
		t.Errorf("a file that cannot be written: %v, asked %q", err, x.asked)
	}
	// A directory, a pipe or a link stays what it is, and is told before a minute has gone: /dev/stdout is a link too.
	for what, put := range map[string]func(string) error{
		"a directory": func(f string) error { return os.Mkdir(f, 0o700) },
		"a pipe":      func(f string) error { return unix.Mkfifo(f, 0o600) },
		"a link":      func(f string) error { return os.Symlink(f+"-1", f) },
	} {
		file := filepath.Join(t.TempDir(), "f")
		if err := put(file); err != nil {
			t.Fatal(err)
		}
		before, _ := os.Lstat(file)
		x := &processes{says: map[string]string{plane1: "P"}}
		_, err := runVerb(t, x.in(world0(t, 1)), nil, "admin", "profile", plane1, "-o", file)
		after, _ := os.Lstat(file)
		if err == nil || !strings.Contains(err.Error(), file+" is there and is no regular file") || len(x.asked) > 0 || after.Mode() != before.Mode() {
			t.Errorf("%s: %v, asked %q, it is %v now", what, err, x.asked, after.Mode())
		}
	}
	if _, err := runVerb(t, x.in(world0(t, 1)), nil, "admin", "profile", plane1); err == nil || !strings.Contains(err.Error(), "name the file to write: -o FILE") {
		t.Errorf("no file: %v", err)
	}
}

// Which replicas are asked, and what is said of each, under both names.
func TestAdminLog(t *testing.T) {
	x := &processes{says: map[string]string{
		"istiod-mesh-1-a-b": `{"level":"debug","start":"info"}`, "istiod-mesh-2-a-b": `{"level":"info","start":"info"}`,
		operatorName + "-a-c": `{"level":"warn","start":"info"}`,
	}}
	c := x.in(world0(t, 3, replicas()...))
	const head = `\AMESH +POD +ACTIVE SCOPE +DESCRIPTION +LOG LEVEL\n`
	for _, q := range []struct {
		args, asked string
		want        string // regular expression
		code        int
	}{
		{args: "log -i sys-1", asked: "sys-1/istiod-mesh-1-a-b GET log", want: head + `mesh-1 +sys-1/istiod-mesh-1-a-b +default +all that it logs; started with info +debug\n\z`},
		{args: "log -r mesh-2 --level debug", asked: "sys-2/istiod-mesh-2-a-b PUT log?level=debug", want: `mesh-2 .* info\n\z`},
		{args: "log -r mesh-2 --level default:debug", asked: "sys-2/istiod-mesh-2-a-b PUT log?level=debug"},
		{args: "l -r mesh-2 --level all:warn --ctrlz_port 9876", asked: "sys-2/istiod-mesh-2-a-b PUT log?level=warn"},
		{args: "log -i sys-2 --reset", asked: "sys-2/istiod-mesh-2-a-b DELETE log"},
		{args: "log istiod-mesh-2-a-b -o json", asked: "sys-2/istiod-mesh-2-a-b GET log", want: `(?s)"mesh": "mesh-2".*"scope_name": "default".*"log_level": "info"`},
		{args: "log -i sys-2 -o short", asked: "sys-2/istiod-mesh-2-a-b GET log", want: head},
		{args: "log " + operatorName + "-a-c --level warn", asked: "heddle-system/heddle-operator-a-c PUT log?level=warn", want: `- +heddle-system/heddle-operator-a-c +default .* warn\n`},
		{args: "log --level debug", asked: "sys-1/istiod-mesh-1-a-b PUT log?level=debug\nsys-2/istiod-mesh-2-a-b PUT log?level=debug\nsys-3/istiod-mesh-3-a-b PUT log?level=debug", want: `mesh-1 (.*\n)+mesh-2 (.*\n)+warning: control plane sys-3/istiod-mesh-3-a-b of mesh mesh-3 did not answer`, code: 1},
		{args: "log -i sys-3", asked: "sys-3/istiod-mesh-3-a-b GET log", want: "did not answer", code: 1},
		{args: "log " + operatorName + "-a-b", asked: "heddle-system/heddle-operator-a-b GET log", want: "operator heddle-system/heddle-operator-a-b did not answer", code: 1},
		{args: "log -i sys-1 --level ads:debug", want: "there is no scope ads, but default alone", code: 1},
		{args: "log -i sys-1 --level default:debug,ads:info", want: "use debug, info, warn or error", code: 1},
		{args: "log -i sys-1 --level none", want: "use debug, info, warn or error", code: 1},
		{args: "log -i sys-1 --level=", want: "use debug, info, warn or error", code: 1},
		{args: "log -i sys-1 --level debug --reset", want: "contradict each other", code: 1},
		{args: "log -i nowhere", want: "no control plane in namespace nowhere", code: 1},
	} {
		for _, name := range []string{"heddle", istioctl} {
			x.asked = nil
			out, err := runNamed(t, name, c, nil, append([]string{"admin"}, strings.Fields(q.args)...)...)
			if err != nil {
				out += err.Error()
			}
			if ExitCode(err) != q.code || !regexp.MustCompile(q.want).MatchString(out) {
				t.Errorf("%s admin %s: code %d, want %d and %q:\n%s", name, q.args, ExitCode(err), q.code, q.want, out)
			}
			slices.Sort(x.asked) // they are asked at the same time
			if got := strings.Join(x.asked, "\n"); got != q.asked {
				t.Errorf("%s admin %s: asked\n%s\nwant\n%s", name, q.args, got, q.asked)
			}
		}
	}
}

// The operator is known by its certificate; of an answer that is none only its text is told, and no token follows a redirect.
func TestRequest(t *testing.T) {
	pool, cert := authority(t, "heddle-operator.heddle-system.svc")
	foreign, _ := authority(t, "heddle-operator.heddle-system.svc")
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("followed with token %q", r.Header.Get("Authorization"))
	}))
	defer elsewhere.Close()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Authorization") != "Bearer t":
			http.Error(w, "no\x1b[2J token", http.StatusUnauthorized)
		case r.URL.Path == "/silent":
			w.WriteHeader(http.StatusBadGateway)
		case r.URL.Path == "/away":
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		default:
			_, _ = w.Write([]byte(r.Method + " " + r.URL.RawQuery))
		}
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that must fail
	s.StartTLS()
	defer s.Close()
	for _, c := range []struct {
		roots             *x509.CertPool
		host, path, token string
		want, err         string
	}{
		{roots: pool, path: "/x?a=b", token: "t", want: "PUT a=b"},
		{roots: pool, path: "/x", token: "u", err: "no?[2J token"},
		{roots: pool, path: "/away", token: "t", err: "Temporary Redirect"},
		{roots: pool, path: "/silent", token: "t", err: "502 Bad Gateway"},
		{roots: foreign, path: "/x", token: "t", err: "certificate signed by unknown authority"},
		{roots: pool, host: "istiod.sys.svc", path: "/x", token: "t", err: "not istiod.sys.svc"},
	} {
		host := c.host
		if host == "" {
			host = "heddle-operator.heddle-system.svc"
		}
		transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: c.roots, ServerName: host, MinVersion: tls.VersionTLS12}}
		body, err := request(t.Context(), transport, http.MethodPut, s.URL+c.path, c.token)
		if c.want != "" && (err != nil || string(body) != c.want) || c.want == "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s with token %s: %q %v, want %q or %q", c.path, c.token, body, err, c.want, c.err)
		}
	}
}
