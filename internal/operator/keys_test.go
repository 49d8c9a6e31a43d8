package operator

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	meshconfig "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/yaml"

	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

func istioOf(values string) *sailv1.Istio {
	return &sailv1.Istio{
		ObjectMeta: metav1.ObjectMeta{Name: "m"}, Spec: sailv1.IstioSpec{Namespace: "sys", Values: &sailv1.Values{Raw: []byte(values)}},
	}
}

func meshesOf(istios []sailv1.Istio) (out []mesh.Mesh) {
	for i := range istios {
		out = append(out, MeshOf(&istios[i]))
	}
	return out
}

// Whatever is written for a selector and is none: refused with its path, and neither the mesh's members nor a revision that
// has it already come to have every namespace.
func TestATypoDoesNotWidenAMesh(t *testing.T) {
	for values, want := range map[string]string{
		`{"meshConfig":{"discoverySelectors":[{"matchLabel":{"a":"b"}}]}}`: "spec.values.meshConfig.discoverySelectors[0].matchLabel is no value " +
			"of any supported version of Istio; did you mean spec.values.meshConfig.discoverySelectors[0].matchLabels?",
		`{"meshConfig":{"discoverySelectors":[{"matchLabels":{"a":"b"}},{"matchExpression":[]}]}}`:       "discoverySelectors[1].matchExpression is no value",
		`{"meshConfig":{"discoverySelectors":[{"matchExpressions":[{"key":"a","operater":"Exists"}]}]}}`: "discoverySelectors[0].matchExpressions[0].operater is no value",
		`{"meshConfig":{"discoverySelectors":[{}]}}`:                                                     "discoverySelectors[0] has no requirement",
		`{"meshConfig":{"discoverySelectors":[null]}}`:                                                   "discoverySelectors[0] has no requirement",
		`{"meshConfig":{"discoverySelectors":[{"matchLabels":{},"matchExpressions":[]}]}}`:               "discoverySelectors[0] has no requirement",
		`{"meshConfig":{"discoverySelectors":[{"matchLabels":null}]}}`:                                   "discoverySelectors[0] has no requirement",
		`{"meshConfig":{"discoverySelectors":{"matchLabels":{"a":"b"}}}}`:                                "discoverySelectors: want a list",
		`{"meshConfig":{"discoverySelectors":[{"matchLabels":{"a":1.1}}]}}`:                              "matchLabels.a: 1.1 is not text",
		`{"meshConfig":{"discoverySelector":[{"matchLabels":{"a":"b"}}]}}`:                               "did you mean spec.values.meshConfig.discoverySelectors?",
		`{"meshConfig":{"discovery_selectors":[{"matchLabels":{"a":"b"}}]}}`:                             "did you mean spec.values.meshConfig.discoverySelectors?",
		`{"meshConfig":{"discoveryselectors":[{"matchLabels":{"a":"b"}}]}}`:                              "did you mean spec.values.meshConfig.discoverySelectors?",
		`{"meshConfig":{"discoverySelectors[0]":{"matchLabels":{"a":"b"}}}}`:                             "did you mean spec.values.meshConfig.discoverySelectors?",
		`{"meshconfig":{"discoverySelectors":[{"matchLabels":{"a":"b"}}]}}`:                              "did you mean spec.values.meshConfig?",
		`{"discoverySelectors":[{"matchLabels":{"a":"b"}}]}`:                                             "did you mean spec.values.meshConfig.discoverySelectors?",
		`{"meshConfig":{"namespaces":[{"matchLabels":{"a":"b"}}]}}`:                                      "spec.values.meshConfig.namespaces is no value",
		`{"global":{"mesh":{"discoverySelectors":[{"matchLabels":{"a":"b"}}]}}}`:                         "spec.values.global.mesh is no value",
		`{"meshConfig":{"discoverySelectors":[{"matchExpressions":[{"key":"a","operator":"Has"}]}]}}`:    `discoverySelectors[0]: label "a": operator "Has" is none of`,
		`{"meshConfig":[]}`: "spec.values.meshConfig: want names with values below it",
	} {
		istio := istioOf(values)
		if err := supported(istio, Namespace); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: admission says %v, want %q", values, err, want)
		}
		members, findings := mesh.Members([]mesh.Namespace{{Name: "held", Holder: "m"}, {Name: "other"}}, []mesh.Mesh{MeshOf(istio)})
		if len(members) != 1 || members[0].Namespace != "held" || len(findings) != 1 || findings[0].Reason != mesh.ReasonInvalidSelector {
			t.Errorf("%s: members %v, findings %v", values, members, findings)
		}
		resolved, err := resolveValues(istio)
		if err != nil {
			t.Fatal(err)
		}
		if p, err := NewPlane(&sailv1.IstioRevision{Spec: sailv1.IstioRevisionSpec{Values: resolved}}, Images{}, ""); err == nil {
			t.Errorf("%s: a revision of it is a plane with the selectors %v", values, p.selectors)
		}
	}
}

// A stored mesh has the members that its selectors say, and its claim counts against others, whatever else is wrong with its
// values; the condition says that, and the revision runs.
func TestOtherFaultsLeaveAClaimAlone(t *testing.T) {
	const selectors = `"discoverySelectors":[{"matchLabels":{"d":"m"}}]`
	for values, named := range map[string]string{
		`{"colour":"red","meshConfig":{` + selectors + `}}`:                                      "spec.values.colour",
		`{"meshConfig":{"colour":"red",` + selectors + `}}`:                                      "spec.values.meshConfig.colour",
		`{"meshConfig":{"trustDomain":5,` + selectors + `}}`:                                     "spec.values.meshConfig.trustDomain",
		`{"meshConfig":{"defaultConfig":{"drainDuration":"soon"},` + selectors + `}}`:            "spec.values.meshConfig.defaultConfig.drainDuration",
		`{"pilot":{"replicaCount":"many"},"meshConfig":{` + selectors + `}}`:                     "spec.values.pilot.replicaCount",
		`{"pilot":"big","meshConfig":{` + selectors + `}}`:                                       "spec.values.pilot",
		`{"pilot":{"afinity":{"x":{"matchLabels":{"a":"b"}}}},"meshConfig":{` + selectors + `}}`: "spec.values.pilot.afinity",
	} {
		istio, younger := istioOf(values), istioOf(selecting("d", "m"))
		istio.CreationTimestamp, younger.Name, younger.Spec.Namespace = metav1.Unix(1, 0), "n", "sys-n"
		members, findings := mesh.Members([]mesh.Namespace{{Name: "new", Labels: map[string]string{"d": "m"}}, {Name: "other"}}, []mesh.Mesh{MeshOf(istio), MeshOf(younger)})
		if len(members) != 1 || members[0] != (mesh.Member{Namespace: "new", Mesh: "m"}) || len(findings) != 1 || findings[0].Reason != mesh.ReasonSelectorTaken {
			t.Errorf("%s: members %v, findings %v", values, members, findings)
		}
		if err := supported(istio, Namespace); err == nil || !strings.Contains(err.Error(), named) {
			t.Errorf("%s: the condition says %v, want %s", values, err, named)
		}
		rev := revisionOf("m", "sys")
		rev.Spec.Version, rev.Spec.Values = DefaultVersion, istio.Spec.Values
		p, err := NewPlane(rev, Images{}, "")
		if err == nil {
			_, err = Manifests(p)
		}
		if err != nil || len(p.selectors) != 1 {
			t.Errorf("%s: the plane has selectors %v, %v", values, p.selectors, err)
		}
	}
}

// What a mesh was known to select stays closed to younger ones while its selectors cannot be read, though it gets nothing new.
func TestTheLastClaimCountsWhileSelectorsCannotBeRead(t *testing.T) {
	const typo = `{"meshConfig":{"discoverySelectors":[{"matchLabels":{"d":"m"}},{"matchLabel":{"e":"m"}}]}}`
	for _, c := range []struct {
		name, now, was string // the values of the Istio and of its revision
		app            mesh.ID
	}{
		{"the revision has the selector", typo, selecting("d", "m"), ""},
		{"an operator is none", `{"meshConfig":{"discoverySelectors":[{"matchExpressions":[{"key":"d","operator":"Has"}]}]}}`, selecting("d", "m"), ""},
		{"the revision has the typo, too", typo, typo, ""},
		{"the revision had every namespace", typo, `{}`, ""},
		{"the revision says nothing that can be read", typo, `{"meshConfig":{"discoverySelector":[]}}`, "n"},
	} {
		istio, younger := istioOf(c.now), istioOf(`{"meshConfig":{"discoverySelectors":[{"matchLabels":{"f":"n"}}]}}`)
		istio.UID, istio.CreationTimestamp, younger.Name, younger.Spec.Namespace = "m", metav1.Unix(1, 0), "n", "sys-n"
		younger.CreationTimestamp = metav1.Unix(2, 0)
		rev := revisionOf("m", "sys")
		rev.OwnerReferences[0].UID = istio.UID
		rev.Spec.Values = &sailv1.Values{Raw: []byte(c.was)}
		tbl := &table{client: store(t, interceptor.Funcs{}, istio, younger, rev)}
		both := map[string]string{"d": "m", "f": "n"}
		for _, x := range []struct {
			ns   mesh.Namespace
			want mesh.ID
		}{
			{mesh.Namespace{Name: "app", Labels: both}, c.app},
			{mesh.Namespace{Name: "sys", Labels: both}, ""},
			{mesh.Namespace{Name: "held", Labels: map[string]string{"f": "n"}, Holder: "m"}, "m"},
			{mesh.Namespace{Name: "theirs", Labels: both, Holder: "n"}, "n"},
		} {
			if got, err := tbl.owner(t.Context(), x.ns); err != nil || got != x.want {
				t.Errorf("%s: namespace %s belongs to %q, %v; want %q", c.name, x.ns.Name, got, err, x.want)
			}
		}
	}
}

// What has no name takes nothing else with it, least of all the selectors.
func TestAValueWithoutANameIsAlone(t *testing.T) {
	rev := revisionOf("m", "sys")
	rev.Spec.Version = DefaultVersion
	rev.Spec.Values = &sailv1.Values{Raw: []byte(`{"":1,"pilot":{"":1,"replicaCount":3},"meshConfig":{"":1,"discoverySelectors":[{"matchLabels":{"d":"m"}}]}}`)}
	p, err := NewPlane(rev, Images{}, "")
	if err != nil || len(p.selectors) != 1 || p.settings.Pilot.ReplicaCount == nil {
		t.Errorf("selectors %v, settings %+v, %v", p.selectors, p.settings, err)
	}
}

// Of a mesh configuration in which two values stand for one, or one can be read by nobody, the field is named, and a stored
// revision goes on with the rest.
func TestOneUnreadableFieldStopsNoMesh(t *testing.T) {
	const good = `"enableAutoMtls":false`
	for values, named := range map[string]string{
		`"access_log_file":"a","accessLogFile":"b"`:                                             "spec.values.meshConfig.access_log_file",
		`"defaultConfig":{"drain_duration":"1s","drainDuration":"2s"}`:                          "spec.values.meshConfig.defaultConfig.drain_duration",
		`"defaultConfig":{"tracing":{"zipkin":{},"lightstep":{}}}`:                              "spec.values.meshConfig.defaultConfig.tracing: lightstep, zipkin",
		`"extensionProviders":[{"name":"x","prometheus":{},"stackdriver":{}}]`:                  "spec.values.meshConfig.extensionProviders[0]: prometheus, stackdriver",
		`"extensionProviders":[{"name":"x","envoyFileAccessLog":{"logFormat":{"labels":"x"}}}]`: "spec.values.meshConfig.extensionProviders: ",
	} {
		raw := &sailv1.Values{Raw: []byte(`{"pilot":{"replicaCount":3},"meshConfig":{` + values + `,` + good + `}}`)}
		istio := istioOf(string(raw.Raw))
		istio.Spec.Version = DefaultVersion
		if err := supported(istio, Namespace); err == nil || !strings.Contains(err.Error(), named) {
			t.Errorf("%s: the condition says %v, want %s", values, err, named)
		}
		rev := revisionOf("m", "sys")
		rev.Spec.Version, rev.Spec.Values = DefaultVersion, raw
		p, err := NewPlane(rev, Images{}, "")
		if err != nil {
			t.Errorf("%s: %v", values, err)
			continue
		}
		objects, err := Manifests(p)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects {
			if c, ok := o.(*corev1.ConfigMap); ok && c.Name == "istio-m" {
				config := map[string]any{}
				if err := yaml.Unmarshal([]byte(c.Data["mesh"]), &config); err != nil {
					t.Fatal(err)
				}
				j, err := yaml.YAMLToJSON([]byte(c.Data["mesh"]))
				if err == nil {
					err = (&meshconfig.MeshConfig{}).UnmarshalJSON(j)
				}
				if err != nil || config["enableAutoMtls"] != false || len(chart().keys["meshConfig"].faults("", config)) > 0 {
					t.Errorf("%s: the control plane reads %v", values, config)
				}
			}
		}
		if p.settings.Pilot.ReplicaCount == nil || *p.settings.Pilot.ReplicaCount != 3 {
			t.Errorf("%s: other values are lost", values)
		}
	}
}

// A mesh whose revision was written by a build that took more goes on with it.
func TestAStoredRevisionWithUnknownValuesRuns(t *testing.T) {
	p, err := NewPlane(&sailv1.IstioRevision{Spec: sailv1.IstioRevisionSpec{Version: DefaultVersion, Values: &sailv1.Values{Raw: []byte(
		`{"colour":"red","pilot":{"env":{"POD_NAME":"x","MORE":1},"autoscalMin":2},"meshConfig":{"discoverySelectors":[{"matchLabels":{"a":"b"}}]}}`,
	)}}}, Images{}, "")
	if err != nil || len(p.selectors) != 1 {
		t.Fatalf("%v, %v", p.selectors, err)
	}
	var names []string
	for _, e := range p.container().Env {
		names = append(names, e.Name)
	}
	slices.Sort(names)
	if d := cmp.Diff([]string{"CLUSTER_ID", "HEDDLE_MESH", "ISTIO_VERSION", "MORE", "POD_NAME", "POD_NAMESPACE", "REVISION", "SERVICE_ACCOUNT"}, names); d != "" {
		t.Errorf("variables -want +got\n%s", d)
	}
}

// What would be refused later, or by nobody, is refused with path, reason and cure; one line for each fault.
func TestCheckValues(t *testing.T) {
	for values, want := range map[string]string{
		`{"pilot":{"autoscalMin":2,"replicas":3},"gloabl":{}}`: `spec.values.gloabl is no value of any supported version of Istio; did you mean spec.values.global?
spec.values.pilot.autoscalMin is no value of any supported version of Istio; did you mean spec.values.pilot.autoscaleMin?
spec.values.pilot.replicas is no value of any supported version of Istio`,
		`{"autoscaleMin":2}`: "spec.values.autoscaleMin is no value of any supported version of Istio; did you mean spec.values.pilot.autoscaleMin?",
		`{"global":{"proxy":{"autoInject":"off","includeInboundPorts":80,"excludeInboundPorts":"80-90"},"imagePullPolicy":"Sometimes"}}`: `spec.values.global.imagePullPolicy: "Sometimes" is not one of Always, IfNotPresent, Never
spec.values.global.proxy.autoInject: "off" is not one of enabled, disabled
spec.values.global.proxy.excludeInboundPorts: "80-90" is not ports with commas between them, in quotes
spec.values.global.proxy.includeInboundPorts: 80 is not ports with commas between them, in quotes`,
		`{"global":{"multiCluster":{"clusterName":1.1},"proxy":{"startupProbe":true}}}`: `spec.values.global.multiCluster.clusterName: 1.1 is not text; put it in quotes
spec.values.global.proxy.startupProbe: want names with values below it`,
		`{"pilot":{"env":{"POD_NAME":"x","POD_NAMESPACE":"x","SERVICE_ACCOUNT":"x","REVISION":"x","HEDDLE_MESH":"x","ISTIO_VERSION":"x","CLUSTER_ID":"c"}}}`: `spec.values.pilot.env.HEDDLE_MESH is set by the operator itself and can be there once only; leave it out
spec.values.pilot.env.ISTIO_VERSION is set by the operator itself and can be there once only; leave it out
spec.values.pilot.env.POD_NAME is set by the operator itself and can be there once only; leave it out
spec.values.pilot.env.POD_NAMESPACE is set by the operator itself and can be there once only; leave it out
spec.values.pilot.env.REVISION is set by the operator itself and can be there once only; leave it out
spec.values.pilot.env.SERVICE_ACCOUNT is set by the operator itself and can be there once only; leave it out`,
		`{"pilot":{"env":{"HEDDLE_PROFILES":"yes"}}}`: `spec.values.pilot.env.HEDDLE_PROFILES: "yes" is not true or false`,
		`{"pilot":{"env":{"A B":1}}}`:                 "spec.values.pilot.env.A B cannot be a variable of a pod: " + strings.Join(validation.IsEnvVarName("A B"), ", "),
		`{"pilot":{"autoscaleMin":7}}`:                "spec.values.pilot.autoscaleMin 7 is more than autoscaleMax 5 (5 unless you set it)",
		`{"pilot":{"autoscaleMin":0}}`:                "spec.values.pilot.autoscaleMin: 0 is not a whole number, 1 or more",
		`{"pilot":{"tolerations":[{"key":"a","efect":"NoSchedule"}],"resources":{"requests":{"cpu":"a lot"}}}}`: `spec.values.pilot.resources: quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'
spec.values.pilot.tolerations: unknown field "efect"`,
		`{"meshConfig":{"accessLogEncoding":"XML","defaultConfig":{"drainDuration":"soon","concurency":2}}}`: `spec.values.meshConfig.accessLogEncoding: "XML" is not one of TEXT, JSON
spec.values.meshConfig.defaultConfig.concurency is no value of any supported version of Istio; did you mean spec.values.meshConfig.defaultConfig.concurrency?
spec.values.meshConfig.defaultConfig.drainDuration: "soon" is not a duration such as 1h, 90s or 300ms`, `{"global":{"caAddress":"x"},"meshConfig":{"defaultConfig":{"discoveryAddress":"istiod","statusPort":70000,"interceptionMode":"TPROXY","drainDuration":"-1s"}},
			"sidecarInjectorWebhook":{"neverInjectSelector":[{"matchExpressions":[{"key":"a","operator":"Has"}]}],"alwaysInjectSelector":[{"matchLabel":{}}]}}`: `spec.values.global.caAddress: "x" is not host:port
spec.values.meshConfig.defaultConfig.discoveryAddress: "istiod" is not host:port
spec.values.meshConfig.defaultConfig.drainDuration: "-1s" is not a duration such as 1h, 90s or 300ms
spec.values.meshConfig.defaultConfig.interceptionMode: "TPROXY" is not one of REDIRECT, NONE
spec.values.meshConfig.defaultConfig.statusPort: 70000 is not a port number, or 0 for none
spec.values.sidecarInjectorWebhook.alwaysInjectSelector: unknown field "matchLabel"
spec.values.sidecarInjectorWebhook.neverInjectSelector: "Has" is not a valid label selector operator`,

		// As Istio's documents write them.
		`{"meshConfig":{"protocolDetectionTimeout":"100ms","connectTimeout":"1m","defaultConfig":{"drainDuration":"5m","concurrency":"2","statusPort":15020,
			"proxyMetadata":{"X":"y"},"terminationDrainDuration":"1m30s"},"extensionProviders":[{"name":"o","envoyOtelAls":{"service":"s","port":4317}}],
			"defaultProviders":{"metrics":["prometheus"]},"pathNormalization":{"normalization":"MERGE_SLASHES"}}}`: "",
		`{"meshConfig":null,"pilot":{"env":{"POD_NAME":null},"autoscaleMin":null,"resources":{"requests":{"cpu":0.5,"memory":"1Gi"}}}}`: "",
		`{"global":{"tag":1.24,"hub":"h","variant":"distroless","externalIstiod":true,"configCluster":true,"meshNetworks":{"n":{"endpoints":[{"fromRegistry":"r"}]}},
			"waypoint":{"resources":{}},"platform":"openshift"},"profile":"default","defaultRevision":"x","revisionTags":["a"],"compatibilityVersion":1.27,
			"cni":{"enabled":true},"pilot":{"enabled":true,"volumes":[{"name":"v","configMap":{"name":"istio"}}],"volumeMounts":[{"name":"v","mountPath":"/p"}],
			"podAnnotations":{"a/b":"c"},"affinity":{"nodeAffinity":{}},"cni":{"enabled":true},"trustedZtunnelNamespace":"z","keepaliveMaxServerConnectionAge":"30m",
			"env":{"EXTERNAL_ISTIOD":"true","SHARED_MESH_CONFIG":"istio","ENABLE_ENHANCED_RESOURCE_SCOPING":true,"PILOT_TRACE_SAMPLING":100}},
			"istiodRemote":{"injectionPath":"/inject/cluster/c/net/n"},"gatewayClasses":{"istio":{"service":{"spec":{"type":"ClusterIP"}}}}}`: "",
	} {
		got := ""
		if _, err := checkValues(&sailv1.Values{Raw: []byte(values)}); err != nil {
			got = err.Error()
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: -want +got\n%s", values, d)
		}
	}
}
