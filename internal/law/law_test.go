// Package law holds what no compiler checks: who may import whom (ARCHITECTURE.md says why), and a few places that must stay single.
package law

import (
	"bytes"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/heddle-mesh/heddle/"

// mayImport names the rooms that each room may import, besides itself. A package belongs to the longest name that it starts with.
var mayImport = map[string]string{
	"api": "", "internal/mesh": "", "internal/obs": "", "internal/trie": "", "internal/graph": "internal/trie", "internal/xds": "internal/trie", "internal/judge": "",
	"internal/ingest":          "internal/mesh internal/judge api",
	"internal/resolve":         "internal/mesh internal/graph",
	"internal/render/envoy":    "internal/mesh internal/resolve",
	"internal/render/patch":    "internal/mesh internal/resolve",
	"internal/render/workload": "internal/mesh internal/resolve api",
	"internal/identity":        "internal/mesh",
	"internal/kube":            "internal/mesh internal/graph api internal/identity", // whose TokenChecker it implements
	"internal/fleet":           "internal/mesh internal/kube internal/identity",
	"internal/inject":          "internal/mesh internal/judge api internal/node/redirect", // which says what istio-init can read
	"internal/node/redirect":   "",
	"internal/node":            "internal/node/redirect internal/mesh internal/xds internal/identity api",
	"internal/agent":           "internal/xds internal/identity",
	"internal/control":         "api internal/mesh internal/obs internal/graph internal/ingest internal/resolve internal/render internal/xds internal/identity internal/kube internal/fleet internal/inject",
	"internal/operator":        "internal/mesh api internal/kube internal/identity internal/obs",
	"internal/console":         "internal/mesh",
	"internal/cli":             "internal/kube internal/obs internal/operator internal/xds internal/mesh internal/judge internal/inject api internal/ingest internal/resolve internal/render",
	"internal/meshtest":        "api internal",
	"samples":                  "",
	"internal/law":             "",
	"scripts":                  "",
	"cmd/heddle":               "internal/cli internal/control internal/operator internal/console internal/obs",
	"cmd/heddle-node":          "internal/node internal/agent internal/obs",
}

func TestImports(t *testing.T) {
	goFiles(t, "api", "cmd", "internal") // what go list reads is seen by go test's cache only if we look at it too
	plain, objects := strings.Fields("internal/mesh internal/graph internal/resolve internal/render/envoy internal/render/patch"), strings.Fields("k8s.io sigs.k8s.io istio.io")
	everything := map[string]bool{}
	for _, p := range list(t, "-deps", module+"...") {
		everything[p.ImportPath] = true
		name, ours := strings.CutPrefix(p.ImportPath, module)
		if !ours {
			continue
		}
		room := roomOf(name)
		if room == "" {
			t.Errorf("%s has no row in mayImport: decide what it may import", name)
		}
		for _, imp := range p.Imports {
			target, ours := strings.CutPrefix(imp, module)
			if ours && roomOf(target) != room && !slices.ContainsFunc(strings.Fields(mayImport[room]), func(r string) bool { return within(target, r) }) &&
				target != "internal/meshtest" {
				t.Errorf("%s may not import %s", name, target)
			}
			if target == "internal/meshtest" {
				t.Errorf("%s imports internal/meshtest, which is for tests", name)
			}
			if slices.Contains(plain, room) && slices.ContainsFunc(objects, func(o string) bool { return within(imp, o) }) {
				t.Errorf("%s imports %s: objects of Kubernetes and Istio end in ingest", name, imp)
			}
			if within(imp, "k8s.io/client-go") && !slices.Contains(strings.Fields("internal/kube internal/fleet internal/operator internal/cli"), room) {
				t.Errorf("%s imports %s: only kube, fleet, operator and cli talk to an API server", name, imp)
			}
		}
	}
	notOnNodes := strings.Fields("k8s.io sigs.k8s.io")
	for _, kind := range strings.Fields("listener cluster route") {
		notOnNodes = append(notOnNodes, "github.com/envoyproxy/go-control-plane/envoy/config/"+kind)
	}
	node := list(t, "-deps", module+"cmd/heddle-node")
	for _, banned := range notOnNodes {
		match := func(p string) bool { return within(p, banned) }
		if !slices.ContainsFunc(slices.Collect(maps.Keys(everything)), match) {
			t.Errorf("nothing imports %s any more: has it moved? heddle-node must not have it", banned)
		}
		for _, p := range node {
			if match(p.ImportPath) {
				t.Errorf("heddle-node depends on %s", p.ImportPath)
			}
		}
	}
}

// TestOneMarshal holds that the bytes of xDS resources are made in one place (behind xds.Seal and xds.Compose), and those of
// messages packed inside them in one other: a version is a hash of the bytes, so they must be deterministic.
func TestOneMarshal(t *testing.T) {
	var sites []string
	for name, file := range goFiles(t, "internal/xds", "internal/render", "internal/resolve") {
		for _, decl := range file.Decls {
			ast.Inspect(decl, func(n ast.Node) bool {
				sel, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				x, _ := sel.X.(*ast.Ident)
				if x != nil && (x.Name == "proto" && strings.HasPrefix(sel.Sel.Name, "Marshal") || x.Name == "anypb" && (sel.Sel.Name == "New" || sel.Sel.Name == "MarshalFrom")) {
					sites = append(sites, path.Dir(name)+"."+decl.(*ast.FuncDecl).Name.Name)
				}
				return true
			})
		}
	}
	slices.Sort(sites)
	if sites = slices.Compact(sites); !slices.Equal(sites, []string{"internal/render/envoy.pack", "internal/xds.marshal"}) {
		t.Errorf("messages are marshalled in %v, want internal/render/envoy.pack and internal/xds.marshal alone", sites)
	}
}

// goFiles parses the files below dirs of the module that are not tests, by their path in it.
func goFiles(t *testing.T, dirs ...string) map[string]*ast.File {
	files := map[string]*ast.File{}
	for _, dir := range dirs {
		err := filepath.WalkDir(filepath.Join("../..", dir), func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
				return err
			}
			f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
			files[strings.TrimPrefix(filepath.ToSlash(name), "../../")] = f
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return files
}

type listed struct {
	ImportPath string
	Imports    []string
}

func list(t *testing.T, args ...string) (pkgs []listed) {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-json=ImportPath,Imports"}, args...)...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, &stderr)
	}
	for d := json.NewDecoder(bytes.NewReader(out)); d.More(); {
		var p listed
		if err := d.Decode(&p); err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	return pkgs
}

func within(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

func roomOf(name string) (room string) {
	for r := range mayImport {
		if within(name, r) && len(r) > len(room) {
			room = r
		}
	}
	return room
}
