// Package samples holds tests of the manifests beside it and of the tokens that documents use with them.
package samples

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/internal/judge"
)

// object is one manifest as JSON.
type object struct {
	raw []byte
	unstructured.Unstructured
}

func (o object) String() string { return o.GetKind() + " " + o.GetName() }

// read returns the objects of a file.
func read(t *testing.T, file string) (out []object) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, file, text)
}

func parse(t *testing.T, file string, text []byte) (out []object) {
	t.Helper()
	for r := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text))); ; {
		part, err := r.Read()
		if errors.Is(err, io.EOF) {
			return out
		}
		raw, err2 := yaml.YAMLToJSONStrict(part)
		if err := errors.Join(err, err2); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if string(raw) == "null" { // comments only
			continue
		}
		o := object{raw: raw}
		if err := json.Unmarshal(raw, &o.Object); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		out = append(out, o)
	}
}

// manifests returns the YAML files below a directory, by their path from it.
func manifests(t *testing.T, dir string) (out []string) {
	t.Helper()
	if err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(name, ".yaml") {
			out = append(out, strings.TrimPrefix(name, dir+"/"))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

// Every manifest is what the API server and our webhook take as it stands.
func TestManifestsAreTaken(t *testing.T) {
	strict := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	n := map[string]int{}
	for _, file := range manifests(t, ".") {
		for _, o := range read(t, file) {
			gvk := o.GroupVersionKind()
			switch {
			case judge.Serves(gvk):
				n["judged"]++
				v, err := judge.Object(o.raw, "istio-system")
				if err := errors.Join(err, v.Err()); err != nil {
					t.Errorf("%s: %s: %v", file, o, err)
				}
			case gvk.Group == "gateway.networking.k8s.io": // whose types nothing here has
				n["routes"]++
			default:
				n["decoded"]++
				if _, _, err := strict.Decode(o.raw, nil, nil); err != nil {
					t.Errorf("%s: %s: %v", file, o, err)
				}
			}
			if o.GetName() == "" {
				t.Errorf("%s: a %s without a name", file, o.GetKind())
			}
		}
	}
	if n["judged"] < 48 || n["routes"] < 18 || n["decoded"] < 100 {
		t.Errorf("only %v objects", n)
	}
}

// left are files of Istio's samples that are not here, and why.
var left = map[string]string{
	"bookinfo/demo-profile-no-gateways.yaml":                   "no workload",
	"bookinfo/platform/kube/bookinfo-certificate.yaml":         "of an API that cert-manager has given up",
	"bookinfo/platform/kube/bookinfo-db.yaml":                  "MongoDB is not served",
	"bookinfo/platform/kube/bookinfo-mysql.yaml":               "MySQL is not served",
	"bookinfo/platform/kube/bookinfo-ratings-v2.yaml":          "asks MongoDB",
	"bookinfo/platform/kube/bookinfo-ratings-v2-mysql.yaml":    "asks MySQL",
	"bookinfo/platform/kube/bookinfo-ratings-v2-mysql-vm.yaml": "asks MySQL",
	"bookinfo/policy/productpage_envoy_ratelimit.yaml":         "an EnvoyFilter",
	"bookinfo/swagger.yaml":                                    "no manifest",
	"httpbin/sample-client/fortio-deploy.yaml":                 "fortio is not served",
}

// other are fields in which objects here differ from Istio's, and why.
var other = map[string][]string{
	// A short name and no tag, as in releases until 1.24.
	"sleep/sleep.yaml Deployment sleep": {"spec.template.spec.containers.0.image"},
	// Istio's is of another httpbin, which this image is not.
	"extauthz/local-ext-authz.yaml Deployment httpbin": {"spec.template.spec.containers.0.command", "spec.template.spec.containers.0.env"},
	// A certificate of our own.
	"jwt-server/jwt-server.yaml Secret jwt-cert-key-secret": {"stringData"},
}

// Documents' commands find by name, label, port and image what they find with Istio's own samples.
func TestObjectsAreTheDocuments(t *testing.T) {
	theirs := filepath.Join(istio(t), "samples")
	same, set := 0, maps.Clone(other)
	for _, dir := range []string{"bookinfo", "curl", "extauthz", "helloworld", "httpbin", "jwt-server", "sleep", "tcp-echo"} {
		ours := manifests(t, dir)
		for _, name := range manifests(t, filepath.Join(theirs, dir)) {
			file := dir + "/" + name
			i := slices.Index(ours, name)
			if (i < 0) != (left[file] != "") {
				t.Errorf("%s: here %v, left out %q", file, i >= 0, left[file])
			}
			if i < 0 {
				continue
			}
			ours = slices.Delete(ours, i, i+1)
			byName := func(root string) map[string]any {
				out := map[string]any{}
				for _, o := range read(t, filepath.Join(root, file)) {
					key := file + " " + o.String()
					if out[key] != nil {
						t.Errorf("%s stands there twice", key)
					}
					for _, field := range other[key] {
						if remove(o.Object, strings.Split(field, ".")) {
							delete(set, key)
						}
					}
					out[key] = o.Object
				}
				return out
			}
			want, got := byName(theirs), byName(".")
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s (-Istio's +ours):\n%s", file, diff)
			}
			same += len(got)
		}
		if len(ours) > 0 {
			t.Errorf("%s: %v are not Istio's", dir, ours)
		}
	}
	if len(set) > 0 {
		t.Errorf("differences that are none: %v", set)
	}
	if same < 150 {
		t.Errorf("only %d objects were compared", same)
	}
}

// remove takes a field out of a value, and says whether it was there.
func remove(v any, path []string) bool {
	switch v := v.(type) {
	case map[string]any:
		if len(path) == 1 {
			_, ok := v[path[0]]
			delete(v, path[0])
			return ok
		}
		return remove(v[path[0]], path[1:])
	case []any:
		var i int
		if _, err := fmt.Sscan(path[0], &i); err == nil && i < len(v) && len(path) > 1 {
			return remove(v[i], path[1:])
		}
	}
	return false
}

// istio returns where the module with Istio's samples lies, and fetches it if nobody has yet.
func istio(t *testing.T) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "mod", "download", "-json", "istio.io/istio")
	cmd.Dir = "../peers"
	out, err := cmd.Output()
	var at struct{ Dir string }
	if err = errors.Join(err, json.Unmarshal(out, &at)); err != nil || at.Dir == "" {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	return at.Dir
}

// The local cluster serves each image that a sample names, also those of scripts.
func TestImagesAreServed(t *testing.T) {
	var table struct {
		Images map[string]struct{ Refs []string }
	}
	text, err := os.ReadFile("../local/images.yaml")
	if err = errors.Join(err, yaml.Unmarshal(text, &table)); err != nil {
		t.Fatal(err)
	}
	served := map[string]bool{}
	for _, image := range table.Images {
		for _, ref := range image.Refs {
			served[ref] = true
		}
	}
	n := 0
	if err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(file, ".go") {
			return err
		}
		text, err := os.ReadFile(file)
		for _, m := range regexp.MustCompile(`image: (\S+)`).FindAllSubmatch(text, -1) {
			n++
			repository, tag, _ := strings.Cut(string(m[1]), ":") // no registry here has a port
			if registry, _, _ := strings.Cut(repository, "/"); !strings.Contains(registry, ".") {
				repository = "docker.io/" + repository
			}
			if tag == "" {
				tag = "latest"
			}
			if !served[repository+":"+tag] && !served[repository+":*"] {
				t.Errorf("%s names %s, which images.yaml does not have", file, m[1])
			}
		}
		return err
	}); err != nil || n < 43 {
		t.Errorf("%d images are named (%v)", n, err)
	}
}

func TestGeneratedHelloworldIsTheSample(t *testing.T) {
	want := read(t, "helloworld/helloworld.yaml")[:2] // the Service and v1
	out, err := exec.CommandContext(t.Context(), "helloworld/gen-helloworld.sh").Output()
	if err != nil {
		t.Fatal(err)
	}
	got := parse(t, "gen-helloworld.sh", out)
	if len(got) != 2 {
		t.Fatalf("%d objects\n%s", len(got), out)
	}
	for i := range got {
		// What the version of the image says of itself is the variable's here.
		remove(got[i].Object, strings.Split("spec.template.spec.containers.0.env", "."))
		for _, o := range []object{got[i], want[i]} {
			remove(o.Object, strings.Split("spec.template.spec.containers.0.image", "."))
		}
		if diff := cmp.Diff(want[i].Object, got[i].Object); diff != "" {
			t.Errorf("(-sample +generated):\n%s", diff)
		}
	}
	out, err = exec.CommandContext(t.Context(), "helloworld/gen-helloworld.sh", "--version", "v3", "--includeService", "false").Output()
	if got := parse(t, "gen-helloworld.sh", out); err != nil || len(got) != 1 || got[0].String() != "Deployment helloworld-v3" {
		t.Errorf("%v\n%s", err, out)
	}
	if err := exec.CommandContext(t.Context(), "helloworld/gen-helloworld.sh", "--versoin", "v3").Run(); err == nil {
		t.Error("an unknown flag was accepted")
	}
}

const jwt = "../security/tools/jwt/samples/"

// Tokens are signed by the key of the set, by its name, and say what the documents' do.
func TestTokens(t *testing.T) {
	const who = `"iss":"testing@secure.istio.io"`
	made, err := exec.CommandContext(t.Context(), "python3", jwt+"gen-jwt.py", jwt+"key.pem", "--expire=100", "--aud=a,b", "--claims=k:v").Output()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"demo.jwt":         `{"exp":4685989700,"foo":"bar","iat":1532389700,` + who + `,"sub":"testing@secure.istio.io"}`,
		"groups-scope.jwt": `{"exp":3537391104,"groups":["group1","group2"],"iat":1537391104,` + who + `,"scope":["scope1","scope2"],"sub":"testing@secure.istio.io"}`,
		"made":             "",
	} {
		token := made
		if name != "made" {
			if token, err = os.ReadFile(jwt + name); err != nil {
				t.Fatal(err)
			}
		}
		if got := verified(t, string(token)); want != "" && got != want {
			t.Errorf("%s says %s, want %s", name, got, want)
		} else if want == "" && (!strings.Contains(got, `"aud":["a","b"]`) || !strings.Contains(got, `"k":"v"`) || !strings.Contains(got, who)) {
			t.Errorf("gen-jwt.py says %s", got)
		}
	}
}

// verified returns the claims of a token that the key set vouches for.
func verified(t *testing.T, token string) string {
	t.Helper()
	var set struct {
		Keys []struct{ Kty, Kid, N, E string }
	}
	text, err := os.ReadFile(jwt + "jwks.json")
	if err = errors.Join(err, json.Unmarshal(text, &set)); err != nil || len(set.Keys) != 1 {
		t.Fatalf("key set %s: %v", text, err)
	}
	if server, err := os.ReadFile("../local/cmd/samples/jwtserver.go"); err != nil || !bytes.Contains(server, bytes.TrimSpace(text)) {
		t.Errorf("the server of keys has others (%v)", err)
	}
	decode := func(s string) []byte {
		b, err := base64.RawURLEncoding.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	k := set.Keys[0]
	thumbprint := sha256.Sum256(fmt.Appendf(nil, `{"e":%q,"kty":%q,"n":%q}`, k.E, k.Kty, k.N)) // RFC 7638
	if want := base64.RawURLEncoding.EncodeToString(thumbprint[:]); k.Kid != want {
		t.Errorf("the key is named %s, its thumbprint is %s", k.Kid, want)
	}
	parts := strings.Split(strings.TrimSpace(token), ".")
	if len(parts) != 3 {
		t.Fatalf("%q is no token", token)
	}
	if head, want := string(decode(parts[0])), fmt.Sprintf(`{"alg":"RS256","kid":%q,"typ":"JWT"}`, k.Kid); head != want {
		t.Errorf("header %s, want %s", head, want)
	}
	key := &rsa.PublicKey{N: new(big.Int).SetBytes(decode(k.N)), E: int(new(big.Int).SetBytes(decode(k.E)).Int64())}
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if err := rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], decode(parts[2])); err != nil {
		t.Errorf("%s: %v", decode(parts[1]), err)
	}
	return string(decode(parts[1]))
}

// The server of keys has a certificate for its names, by the CA that documents' readers are given.
func TestCertificateOfJWTServer(t *testing.T) {
	var secret corev1.Secret
	for _, o := range read(t, "jwt-server/jwt-server.yaml") {
		if o.GetKind() == "Secret" {
			if err := json.Unmarshal(o.raw, &secret); err != nil {
				t.Fatal(err)
			}
		}
	}
	pair, err := tls.X509KeyPair([]byte(secret.StringData["server.crt"]), []byte(secret.StringData["server.key"]))
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile("jwt-server/testdata/ca.crt")
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	for _, name := range []string{"jwt-server", "localhost", "jwt-server.foo", "jwt-server.istio-system", "jwt-server.istio-system.svc.cluster.local"} {
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"server.crt", "server.key"} {
		if file, err := os.ReadFile("jwt-server/testdata/" + name); err != nil || string(file) != secret.StringData[name] {
			t.Errorf("testdata/%s is not the Secret's (%v)", name, err)
		}
	}
}
