package cli

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

const usergroup1 = `
apiVersion: install.istio.io/v1alpha1
kind: IstioOperator
metadata:
  namespace: usergroup-1
spec:
  profile: minimal
  revision: usergroup-1
  meshConfig:
    discoverySelectors:
      - matchLabels:
          usergroup: usergroup-1
  values:
    global:
      istioNamespace: usergroup-1
    pilot:
      env:
        ENABLE_ENHANCED_RESOURCE_SCOPING: true
        LIMIT: 1500000
`

func planText(t *testing.T, namespace, revision string, sets []string, texts ...string) (plan, error) {
	t.Helper()
	var raw [][]byte
	for _, s := range texts {
		raw = append(raw, []byte(s))
	}
	d, err := readDocument(raw, sets)
	if err != nil {
		return plan{}, err
	}
	return planOf(d, namespace, revision)
}

// MCP-07, D-16: the walkthrough's document becomes an Istio object; minimal is no profile, and env holds strings.
func TestPlanOfWalkthrough(t *testing.T) {
	p, err := planText(t, "", "", nil, usergroup1)
	if err != nil {
		t.Fatal(err)
	}
	got, err := yaml.Marshal(p.istio().Object)
	if err != nil {
		t.Fatal(err)
	}
	want := `apiVersion: sailoperator.io/v1
kind: Istio
metadata:
  name: usergroup-1
spec:
  namespace: usergroup-1
  values:
    global:
      istioNamespace: usergroup-1
    meshConfig:
      discoverySelectors:
      - matchLabels:
          usergroup: usergroup-1
    pilot:
      env:
        ENABLE_ENHANCED_RESOURCE_SCOPING: "true"
        LIMIT: "1500000"
`
	if d := cmp.Diff(want, string(got)); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	if len(p.notes) != 1 || !strings.Contains(p.notes[0], "ENABLE_ENHANCED_RESOURCE_SCOPING has no effect") {
		t.Errorf("notes %q", p.notes)
	}
}

func TestPlan(t *testing.T) {
	const head = "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\n"
	for _, c := range []struct {
		name, namespace, revision string
		sets                      []string
		texts                     []string
		want                      string // name namespace profile
		err                       string
	}{
		{name: "nothing", want: "default istio-system "},
		{name: "flags", namespace: "sys", revision: "r", want: "r sys "},
		{name: "a document's namespace beats -i", namespace: "sys", texts: []string{head + "metadata: {namespace: ns}"}, want: "default ns "},
		{name: "istioNamespace beats metadata", texts: []string{head + "metadata: {namespace: ns}\nspec: {values: {global: {istioNamespace: g}}}"}, want: "default g "},
		{name: "--revision beats the document", revision: "x", texts: []string{usergroup1}, want: "x usergroup-1 "},
		{name: "--set", sets: []string{"revision=s", "values.global.istioNamespace=n", "profile=demo"}, want: "s n demo"},
		{name: "later documents win", texts: []string{usergroup1, head + "spec: {revision: later}"}, want: "later usergroup-1 "},
		{name: "several parts", texts: []string{usergroup1 + "---\n" + head + "spec: {revision: part}"}, want: "part usergroup-1 "},
		{name: "values.revision", texts: []string{head + "spec: {values: {revision: v}}"}, want: "v istio-system "},
		{name: "another kind", texts: []string{"apiVersion: sailoperator.io/v1\nkind: Istio"}, err: "is for kubectl apply"},
		{name: "unknown field", texts: []string{head + "spec: {revison: x}"}, err: `unknown field "revison"`},
		{name: "bad revision", revision: "a.b", err: `revision "a.b"`},
		{name: "gateway", texts: []string{head + "spec: {components: {ingressGateways: [{name: g, enabled: true}], pilot: {enabled: true}}}"}, err: "spec.components.ingressGateways: not supported yet"},
		{name: "no pilot", texts: []string{head + "spec: {components: {pilot: {enabled: false}}}"}, err: "spec.components.pilot"},
		{name: "a map in env", texts: []string{head + "spec: {values: {pilot: {env: {A: {b: c}}}}}"}, err: "pilot.env.A"},
		{name: "set without value", sets: []string{"a.b"}, err: "--set a.b: want path=value"},
		{name: "an unescaped comma", sets: []string{"values.global.proxy.includeIPRanges=10.0.0.0/8,10.1.0.0/16"}, err: `--set 10.1.0.0/16: want path=value; a comma begins the next setting, one that belongs to a value is written \,`},
		{name: "istioctl's index", sets: []string{"meshConfig.discoverySelectors.[0].matchLabels.x=y"}, err: "write the index without a dot before it: meshConfig.discoverySelectors[0].matchLabels.x"},
		{name: "istioctl's index after a comma", sets: []string{"revision=a,meshConfig.discoverySelectors.[0].matchLabels.x=y"}, err: "without a dot before it"},
		{name: "istioctl's choice", sets: []string{"components.ingressGateways[name:g].enabled=true"}, err: "items of a list are chosen by their number"},
		{name: "below spec", sets: []string{"spec.revision=x"}, err: "paths begin below spec: revision"},
		{name: "an empty name", sets: []string{"values..x=y"}, err: "a name of the path is empty"},
		{name: "no list", texts: []string{head + "spec: {meshConfig: {discoverySelectors: {}}}"}, sets: []string{"meshConfig.discoverySelectors[0].matchLabels.x=y"}, err: "--set meshConfig.discoverySelectors[0].matchLabels.x=y: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := planText(t, c.namespace, c.revision, c.sets, c.texts...)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("error %v, want %q", err, c.err)
				}
				return
			}
			if got := p.name + " " + p.namespace + " " + p.profile; err != nil || got != c.want {
				t.Errorf("%q %v, want %q", got, err, c.want)
			}
		})
	}
}

// L1: --set is read as Helm reads it, and has the type that its place takes.
func TestSet(t *testing.T) {
	document := "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nspec: {meshConfig: {discoverySelectors: [{matchLabels: {a: b}}]," +
		" defaultConfig: {proxyMetadata: {A: true, B: 0.5}}}}"
	p, err := planText(t, "", "", []string{
		"meshConfig.discoverySelectors[0].matchLabels.x=y", `meshConfig.discoverySelectors[1].matchLabels.app\.kubernetes\.io/name=1`,
		"values.global.multiCluster.clusterName=1.10,values.global.network=7", "values.global.configValidation=false", "values.pilot.traceSampling=1.0",
		"values.pilot.autoscaleMin=2", "values.pilot.env.A=true", `values.pilot.nodeSelector.kubernetes\.io/os=007`, "values.pilot.resources.requests.cpu=500m",
		`values.global.proxy.includeIPRanges=10.0.0.0/8\,10.1.0.0/16`, "values.global.imagePullSecrets={1,b}", "meshConfig.accessLogFile=/dev/stdout",
		"meshConfig.defaultConfig.concurrency=2", "meshConfig.defaultConfig.proxyMetadata.C=1", "values.cni.x=1.10", "values.cni.y=1", "revision=1",
		"values.global.proxy.lifecycle=null", "values.global.meshID=a=b",
	}, document)
	if err != nil {
		t.Fatal(err)
	}
	got, err := yaml.Marshal(p.istio().Object)
	if err != nil {
		t.Fatal(err)
	}
	want := `apiVersion: sailoperator.io/v1
kind: Istio
metadata:
  name: "1"
spec:
  namespace: istio-system
  values:
    cni:
      x: "1.10"
      "y": 1
    global:
      configValidation: false
      imagePullSecrets:
      - "1"
      - b
      meshID: a=b
      multiCluster:
        clusterName: "1.10"
      network: "7"
      proxy:
        includeIPRanges: 10.0.0.0/8,10.1.0.0/16
        lifecycle: null
    meshConfig:
      accessLogFile: /dev/stdout
      defaultConfig:
        concurrency: 2
        proxyMetadata:
          A: "true"
          B: "0.5"
          C: "1"
      discoverySelectors:
      - matchLabels:
          a: b
          x: "y"
      - matchLabels:
          app.kubernetes.io/name: "1"
    pilot:
      autoscaleMin: 2
      env:
        A: "true"
      nodeSelector:
        kubernetes.io/os: "007"
      resources:
        requests:
          cpu: 500m
      traceSampling: 1
`
	if d := cmp.Diff(want, string(got)); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
}
