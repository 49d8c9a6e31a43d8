package judge

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"
	"sigs.k8s.io/yaml"
)

func TestObject(t *testing.T) {
	const pa = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n"
	const dr = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n"
	for _, c := range []struct {
		name, object string
		err          []string // all of them; none: accepted
		warnings     []string
	}{
		{name: "strict for a namespace", object: pa + "metadata: {name: default, namespace: app}\nspec: {mtls: {mode: STRICT}}"},
		{name: "the older version", object: strings.Replace(pa, "/v1", "/v1beta1", 1) + "metadata: {name: a, namespace: app}\nspec: {mtls: {mode: STRICT}}"},
		{name: "no spec", object: pa + "metadata: {name: a, namespace: app}"},
		{name: "unknown mode", object: pa + "metadata: {name: a}\nspec: {mtls: {mode: STRIKT}}", err: []string{`configuration is invalid: spec.mtls.mode: "STRIKT" is none of UNSET, DISABLE, PERMISSIVE, STRICT`}},
		{name: "mode by a number that means nothing", object: pa + "metadata: {name: a}\nspec: {mtls: {mode: 9}}", err: []string{"spec.mtls.mode: 9 is none of UNSET"}},
		{name: "mode by a number", object: pa + "metadata: {name: a}\nspec: {mtls: {mode: 3}}", err: []string{"spec.mtls.mode: 3 is none of UNSET"}},
		{name: "unknown field", object: pa + "metadata: {name: a}\nspec: {mtls: {mood: STRICT}}", err: []string{"configuration is invalid: spec.mtls.mood: unknown field"}},
		{name: "unknown top-level field", object: pa + "metadata: {name: a}\nspek: {}", err: []string{"configuration is invalid: spek: unknown field"}},
		{name: "ports need a selector", object: pa + "metadata: {name: a}\nspec: {portLevelMtls: {80: {mode: DISABLE}}}", err: []string{"spec.portLevelMtls: needs spec.selector"}},
		{name: "port out of range", object: pa + "metadata: {name: a}\nspec: {selector: {matchLabels: {app: x}}, portLevelMtls: {0: {mode: DISABLE}, 70000: {}}}", err: []string{"portLevelMtls[0]", "portLevelMtls[70000]"}},
		{name: "ports with a selector", object: pa + "metadata: {name: a, namespace: app}\nspec: {selector: {matchLabels: {app: x}}, portLevelMtls: {80: {mode: DISABLE}}}"},
		{name: "bad label", object: pa + "metadata: {name: a}\nspec: {selector: {matchLabels: {'a b': '*'}}}", err: []string{`key "a b"`, `a b="*"`}},
		{name: "selector in the root namespace", object: pa + "metadata: {name: a, namespace: root}\nspec: {selector: {matchLabels: {app: x}}}", warnings: []string{"root namespace root applies to nothing"}},
		{name: "always-reject", object: "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: invalid-gateway, annotations: {internal.istio.io/webhook-always-reject: 'true'}}", err: []string{"configuration is invalid: ", "always-reject"}},
		{name: "unknown kind", object: "apiVersion: networking.istio.io/v1\nkind: Nonsense\nmetadata: {name: a}", err: []string{"unrecognized type networking.istio.io/v1, Kind=Nonsense"}},
		{name: "version not served", object: "apiVersion: security.istio.io/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: a}", err: []string{"unrecognized type"}},
		{name: "a kind not acted on", object: "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec: {hosts: [a], http: [{route: [{destination: {host: a}}]}]}", warnings: []string{"the kind is accepted but not acted on"}},
		{name: "and yet decoded", object: "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec: {action: PERMIT}", err: []string{"spec.action", "PERMIT"}},

		{name: "rule", object: dr + "metadata: {name: a}\nspec: {host: cart.shop.svc.cluster.local, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}, subsets: [{name: v1, labels: {version: v1}}], exportTo: ['.']}"},
		{name: "rule for a wildcard", object: dr + "metadata: {name: a}\nspec: {host: '*.shop.svc.cluster.local', trafficPolicy: {tls: {mode: DISABLE}}}"},
		{name: "no host", object: dr + "metadata: {name: a}\nspec: {}", err: []string{"spec.host"}},
		{name: "rule for a part of names", object: dr + "metadata: {name: a}\nspec: {host: '*-canary.shop.svc.cluster.local'}"},
		{name: "bad host", object: dr + "metadata: {name: a}\nspec: {host: 'a*b'}", err: []string{`spec.host: "a*b"`}},
		{name: "subsets", object: dr + "metadata: {name: a}\nspec: {host: a, subsets: [{name: v1}, {name: v1}, {labels: {a: b}}]}", err: []string{`spec.subsets[1].name: "v1" is there twice`, "spec.subsets[2].name"}},
		{name: "mutual needs its files", object: dr + "metadata: {name: a}\nspec: {host: a, trafficPolicy: {tls: {mode: MUTUAL}}}", err: []string{"spec.trafficPolicy.tls: mode MUTUAL needs clientCertificate and privateKey"}},
		{name: "mutual needs its key", object: dr + "metadata: {name: a}\nspec: {host: a, subsets: [{name: v1, trafficPolicy: {tls: {mode: MUTUAL, clientCertificate: /a}}}]}", err: []string{"spec.subsets[0].trafficPolicy.tls: mode MUTUAL needs privateKey"}},
		{name: "either files or a secret", object: dr + "metadata: {name: a}\nspec: {host: a, trafficPolicy: {tls: {mode: MUTUAL, clientCertificate: /a, privateKey: /b, credentialName: c}}}", err: []string{"credentialName: stands for the files"}},
		{name: "a secret", object: dr + "metadata: {name: a}\nspec: {host: a, trafficPolicy: {tls: {mode: MUTUAL, credentialName: c, caCrl: ''}}}", warnings: []string{"spec.trafficPolicy.tls: mode MUTUAL shows no certificate", "spec.trafficPolicy.tls.credentialName: not acted on"}},
		{name: "ours takes no files", object: dr + "metadata: {name: a}\nspec: {host: a, trafficPolicy: {tls: {mode: ISTIO_MUTUAL, caCertificates: /a}}}", err: []string{"mode ISTIO_MUTUAL takes no"}},
		{name: "unchecked and checked", object: dr + "metadata: {name: a}\nspec: {host: a, trafficPolicy: {tls: {mode: SIMPLE, insecureSkipVerify: true, subjectAltNames: [b]}}}", err: []string{"insecureSkipVerify"}},
		{name: "port level", object: dr + "metadata: {name: a}\nspec: {host: a, trafficPolicy: {portLevelSettings: [{tls: {mode: SIMPLE}}, {port: {number: 80}, tls: {mode: MUTUAL}}]}}", err: []string{"portLevelSettings[0].port.number", "portLevelSettings[1].tls: mode MUTUAL needs clientCertificate"}},
		{name: "exported to its own namespace and another", object: dr + "metadata: {name: a}\nspec: {host: a, exportTo: ['.', shop]}"},
		{name: "exported twice", object: dr + "metadata: {name: a}\nspec: {host: a, exportTo: [shop, shop, '.', '.']}", err: []string{`spec.exportTo: "shop" is there twice`, `spec.exportTo: "." is there twice`}},
		{name: "exported to", object: dr + "metadata: {name: a}\nspec: {host: a, exportTo: ['*', shop, 'A_B']}", err: []string{`"*" stands alone`, "A_B"}},
		{
			name: "fields not acted on", object: dr + "metadata: {name: a}\nspec: {host: a, trafficPolicy: {loadBalancer: {simple: RANDOM}, portLevelSettings: [{port: {number: 80}, outlierDetection: {}}]}, workloadSelector: {matchLabels: {a: b}}}",
			warnings: []string{"portLevelSettings[0].outlierDetection: accepted but not acted on", "spec.trafficPolicy.loadBalancer: accepted but not acted on", "spec.workloadSelector: not acted on"},
		},
		{
			name: "not all of very much", object: dr + "metadata: {name: a}\nspec: {host: a, exportTo: [" + strings.Repeat("A,", 40) + "]}",
			err: []string{`spec.exportTo: "A" is neither`, "and 20 more"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			raw, err := yaml.YAMLToJSON([]byte(c.object))
			if err != nil {
				t.Fatal(err)
			}
			v, err := Object(raw, "root")
			if err == nil {
				err = v.Err()
			}
			warnings := v.Warnings()
			if err != nil {
				warnings = nil // nobody is shown them
			}
			if (err != nil) != (len(c.err) > 0) {
				t.Fatalf("error %v", err)
			}
			for _, part := range c.err {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q is not in %q", part, err)
				}
			}
			if len(warnings) != len(c.warnings) {
				t.Errorf("warnings %q", warnings)
			}
			for i := range min(len(warnings), len(c.warnings)) {
				if !strings.Contains(warnings[i], c.warnings[i]) {
					t.Errorf("warning %q, want %q", warnings[i], c.warnings[i])
				}
			}
		})
	}
}

// What the CRDs serve is judged, and nothing else.
func TestKinds(t *testing.T) {
	text, err := os.ReadFile("../operator/crds/istio.yaml")
	if err != nil {
		t.Fatal(err)
	}
	served := map[schema.GroupKind]string{}
	for _, part := range strings.Split(string(text), "\n---\n") {
		var crd struct {
			Spec struct {
				Group    string
				Names    struct{ Kind string }
				Versions []struct{ Name string }
			}
		}
		if err := yaml.Unmarshal([]byte(part), &crd); err != nil {
			t.Fatal(err)
		}
		var versions []string
		for _, v := range crd.Spec.Versions {
			versions = append(versions, v.Name)
		}
		slices.SortFunc(versions, func(a, b string) int { return version.CompareKubeAwareVersionStrings(b, a) })
		served[schema.GroupKind{Group: crd.Spec.Group, Kind: crd.Spec.Names.Kind}] = strings.Join(versions, " ")
	}
	judged := map[schema.GroupKind]string{}
	for gk, k := range kinds {
		judged[gk] = k.versions
		for v := range strings.FieldsSeq(k.versions) {
			raw := `{"apiVersion":"` + gk.Group + "/" + v + `","kind":"` + gk.Kind + `","metadata":{"name":"a"},"spec":{"noSuchField":1}}`
			if v, err := Object([]byte(raw), ""); err != nil || !v.Has("spec.noSuchField", ReasonUndecodable) {
				t.Errorf("%v %s: %v %v", gk, raw, v.Findings(), err)
			}
		}
	}
	if d := cmp.Diff(served, judged); d != "" {
		t.Errorf("served (-) and judged (+):\n%s", d)
	}
}

// A host is what Istio takes for one.
func TestHost(t *testing.T) {
	const of = `{"apiVersion":"networking.istio.io/v1","kind":"DestinationRule","spec":{"host":"`
	for host, want := range map[string]string{
		"*": "", "*.a": "", "*-x.shop.svc.cluster.local": "", "*x.shop": "", "*-x": "", "Reviews.Shop": "", "istio.io.": "", "7": "", "a.b-c.d9": "", "a": "",
		"**.a": `first label "**"`, "a.*": `"*" is not`, "*-": `first label "*-"`, "-a.b": `first label "-a"`, "a..b": `"" is not`, ".": "first label", "a_b": "first label",
		"10.0.0.1": "is an address", "a.*.b": `"*" is not`, strings.Repeat("a", 64) + ".b": "first label", "b." + strings.Repeat("a", 64): "is not a DNS label",
		strings.Repeat("abcde.", 50) + "a": "more than 255 characters",
	} {
		v, err := Object([]byte(of+host+`"}}`), "")
		if err != nil {
			t.Fatal(err)
		}
		switch err := v.Err(); {
		case want == "" && err != nil:
			t.Errorf("%q: %v", host, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%q: %v, want %q", host, err, want)
		}
	}
}
