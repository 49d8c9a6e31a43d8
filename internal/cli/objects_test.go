package cli

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/heddle-mesh/heddle/internal/judge"
)

func stored(t *testing.T, text string) unstructured.Unstructured {
	t.Helper()
	var u unstructured.Unstructured
	if err := u.UnmarshalJSON([]byte(text)); err != nil {
		t.Fatal(err)
	}
	return u
}

// check says of what is stored what admission would say of it, for the planes that read it.
func TestCheckObjects(t *testing.T) {
	asked := map[string]bool{}
	objects, err := objectsOf(func(l client.ObjectList) error {
		kind := l.GetObjectKind().GroupVersionKind()
		asked[kind.Kind] = true
		list := l.(*unstructured.UnstructuredList)
		switch kind.Kind {
		case "DestinationRuleList":
			list.Items = append(list.Items,
				stored(t, `{"apiVersion":"networking.istio.io/v1","kind":"DestinationRule","metadata":{"name":"good","namespace":"app-1"},"spec":{"host":"a","trafficPolicy":{"tls":{"mode":"DISABLE"}}}}`),
				stored(t, `{"apiVersion":"networking.istio.io/v1","kind":"DestinationRule","metadata":{"name":"bad","namespace":"app-1"},"spec":{"host":"a_b","trafficPolicy":{"outlierDetection":{"interval":"5m"}}}}`),
				stored(t, `{"apiVersion":"networking.istio.io/v1","kind":"DestinationRule","metadata":{"name":"other","namespace":"app-1","labels":{"istio.io/rev":"istio-of-old"}},"spec":{}}`),
				stored(t, `{"apiVersion":"networking.istio.io/v1","kind":"DestinationRule","metadata":{"name":"nobodys","namespace":"plain"},"spec":{}}`))
		case "PeerAuthenticationList":
			for _, ns := range []string{"sys-1", "sys-2", "app-2"} {
				list.Items = append(list.Items, stored(t, `{"apiVersion":"security.istio.io/v1","kind":"PeerAuthentication","metadata":{"name":"p","namespace":"`+ns+`"},"spec":{"selector":{"matchLabels":{"a":"b"}}}}`))
			}
		case "WasmPluginList": // an older installation's definitions lack it
			return &apimeta.NoKindMatchError{GroupKind: schema.GroupKind{Kind: "WasmPlugin"}}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(asked) != len(judge.Kinds()) {
		t.Errorf("asked for %v", asked)
	}
	s := world()
	s.istios[1].Spec.Values.Raw = []byte(`{"meshConfig":{"rootNamespace":"app-2"}}`)
	s.objects = objects
	var all found
	s.checkObjects(membersOf(s.istios, s.memberships), &all)
	var told []string
	for _, f := range all.all {
		told = append(told, fmt.Sprint(f.scope.meshes[0], " ", f.scope.namespace, ": ", f.Object, " ", f.Reason))
	}
	slices.Sort(told)
	if d := cmp.Diff([]string{
		"mesh-1 app-1: DestinationRule app-1/bad Invalid",
		"mesh-1 app-1: DestinationRule app-1/bad NotActedOn",
		"mesh-1 sys-1: PeerAuthentication sys-1/p SelectorIgnored",
		// Not app-2, whatever its values say: a mesh's policies are where its control plane is.
		"mesh-2 sys-2: PeerAuthentication sys-2/p SelectorIgnored",
	}, told); d != "" {
		t.Errorf("wanted (-), got (+):\n%s", d)
	}
	checked := s.check(scope{})
	if !slices.ContainsFunc(checked, func(f finding) bool {
		return f.Object == "DestinationRule app-1/bad" && f.Reason == judge.ReasonInvalid
	}) {
		t.Errorf("check says %+v", checked)
	}
	if _, err := objectsOf(func(client.ObjectList) error { return errors.New("no right") }); err == nil {
		t.Error("who may not read is told that all is well")
	}
}
