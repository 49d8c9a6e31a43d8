package inject

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"html"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// document is one manifest of a file that Istio publishes.
type document struct {
	file, text string
}

var (
	codeBlock = regexp.MustCompile(`(?s)<pre><code[^>]*>(.*?)</code></pre>`)
	ellipsis  = regexp.MustCompile(`(?m)^\s*\.\.\.\s*$`) // what a page leaves out
)

// Every manifest of a kind that the webhook judges passes it: those on the pages of Istio's API, and its samples.
func TestIstiosDocumentsPass(t *testing.T) {
	p := params(t, Settings{})
	h := Handler(Options{Registerer: prometheus.NewRegistry(), Params: func() *Params { return p }, Members: members{}})
	for _, source := range []struct {
		name, module, below string
		atLeast             int // manifests; fewer: they are no longer found where this test looks
		documents           func(file string, text []byte) []document
	}{
		{"pages", "../..", "istio.io/api", 145, onPage},
		{"samples", "../../peers", "istio.io/istio", 65, inManifests},
	} {
		t.Run(source.name, func(t *testing.T) {
			n := 0
			for _, d := range documentsBelow(t, moduleDir(t, source.module, source.below), source.documents) {
				raw, kind := istioObject(t, d)
				if kind == "" {
					continue
				}
				n++
				group, version, _ := strings.Cut(kind, "/")
				version, kind, _ = strings.Cut(version, " ")
				body, err := json.Marshal(map[string]any{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": map[string]any{
					"uid": "u1", "operation": "CREATE", "kind": map[string]string{"group": group, "version": version, "kind": kind}, "object": raw,
				}})
				if err != nil {
					t.Fatal(err)
				}
				r := response(t, post(t, h, "/validate", "application/json", string(body)))
				if !r.Allowed {
					t.Errorf("%s: %s\n%s", d.file, r.Result.Message, d.text)
				}
			}
			t.Logf("%d manifests", n)
			if n < source.atLeast {
				t.Errorf("%d manifests, want at least %d", n, source.atLeast)
			}
		})
	}
}

// moduleDir returns where a module that from depends on lies, and fetches it if nobody has yet: the tools of peers/ are
// not built for unit tests.
func moduleDir(t *testing.T, from, module string) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "go", "mod", "download", "-json", module)
	cmd.Dir, cmd.Stderr = from, &stderr
	out, err := cmd.Output()
	var at struct{ Dir string }
	if err = errors.Join(err, json.Unmarshal(out, &at)); err != nil || at.Dir == "" {
		t.Fatalf("%v: %v\n%s%s", cmd, err, out, &stderr)
	}
	return at.Dir
}

func documentsBelow(t *testing.T, dir string, documents func(string, []byte) []document) (out []document) {
	t.Helper()
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(name)
		out = append(out, documents(strings.TrimPrefix(name, dir+"/"), text)...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func onPage(file string, text []byte) (out []document) {
	if !strings.HasSuffix(file, ".pb.html") {
		return nil
	}
	for _, block := range codeBlock.FindAllSubmatch(text, -1) {
		out = append(out, split(filepath.Base(file), ellipsis.ReplaceAllString(html.UnescapeString(string(block[1])), ""))...)
	}
	return out
}

func inManifests(file string, text []byte) []document {
	helm := strings.Contains(file, "/templates/") // YAML only when they are filled in
	if !strings.HasPrefix(file, "samples/") || !strings.HasSuffix(file, ".yaml") || helm {
		return nil
	}
	return split(file, string(text))
}

func split(file, text string) (out []document) {
	for r := utilyaml.NewYAMLReader(bufio.NewReader(strings.NewReader(text))); ; {
		part, err := r.Read()
		if errors.Is(err, io.EOF) {
			return out
		}
		out = append(out, document{file, string(part)})
	}
}

// istioObject returns the JSON of a manifest and, if it is of Istio's API, its kind: "group/version Kind".
func istioObject(t *testing.T, d document) (json.RawMessage, string) {
	t.Helper()
	raw, err := yaml.YAMLToJSON([]byte(d.text))
	var head struct{ APIVersion, Kind string }
	if err != nil || json.Unmarshal(raw, &head) != nil {
		if strings.Contains(d.text, "istio.io/") {
			t.Errorf("%s: not read: %v\n%s", d.file, err, d.text)
		}
		return nil, ""
	}
	group, _, _ := strings.Cut(head.APIVersion, "/")
	switch group {
	case "networking.istio.io", "security.istio.io", "telemetry.istio.io", "extensions.istio.io":
		return raw, head.APIVersion + " " + head.Kind
	}
	return nil, ""
}
