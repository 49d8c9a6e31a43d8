package v1

import (
	"encoding/json"
	"testing"
)

func TestValuesKeepWhatTheyDoNotKnow(t *testing.T) {
	const text = `{"spec":{"version":"v1.30.3","updateStrategy":{},"namespace":"x","values":{"global":{"istioNamespace":"x","new":{"a":[1]}},"other":true}}}`
	var i Istio
	if err := json.Unmarshal([]byte(text), &i); err != nil {
		t.Fatal(err)
	}
	c := i.DeepCopy()
	i.Spec.Values.Raw[2] = '!'
	out, err := json.Marshal(c.Spec.Values)
	if want := `{"global":{"istioNamespace":"x","new":{"a":[1]}},"other":true}`; err != nil || string(out) != want {
		t.Errorf("%s, %v; want %s", out, err, want)
	}
	if out, err := json.Marshal(&Values{}); err != nil || string(out) != "{}" {
		t.Errorf("no values: %s, %v", out, err)
	}
	for _, bad := range []string{`[]`, `"x"`, `5`} {
		if json.Unmarshal([]byte(bad), &Values{}) == nil {
			t.Errorf("%s was taken", bad)
		}
	}
}
