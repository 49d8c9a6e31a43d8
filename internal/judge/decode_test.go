package judge

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	networking "istio.io/api/networking/v1alpha3"
)

// Durations are read as Go and all of Istio's documents write them.
func TestDecodeDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		`"30ms"`: 30 * time.Millisecond, `"5m"`: 5 * time.Minute, `"24h"`: 24 * time.Hour, `"1h2m3.5s"`: time.Hour + 2*time.Minute + 3500*time.Millisecond,
		`"7200s"`: 2 * time.Hour, `"0.1s"`: 100 * time.Millisecond, `"0s"`: 0,
	} {
		var dr networking.DestinationRule
		if v := decode("spec", []byte(`{"trafficPolicy":{"outlierDetection":{"interval":`+text+`}}}`), &dr); v.Err() != nil {
			t.Errorf("%s: %v", text, v.findings)
		}
		if got := dr.GetTrafficPolicy().GetOutlierDetection().GetInterval().AsDuration(); got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
	for _, text := range []string{`"5 m"`, `"5"`, `5`, `""`, `{"seconds":5}`, `"1d"`} {
		v := decode("spec", []byte(`{"trafficPolicy":{"outlierDetection":{"interval":`+text+`}}}`), &networking.DestinationRule{})
		if !v.Has("spec.trafficPolicy.outlierDetection.interval", ReasonUndecodable) {
			t.Errorf("%s: %v", text, v.findings)
		}
	}
}

// Every field that is not the API's is named by its path, all at once.
func TestDecodeStrict(t *testing.T) {
	for _, c := range []struct {
		name, spec string
		fields     []string
	}{
		{"nothing", ``, nil},
		{"null", ` null `, nil},
		{"empty", `{}`, nil},
		{"a null field", `{"hosts":null,"http":null}`, nil},
		{"the name in the proto file", `{"http":[{"redirect":{"prefix_rewrite":"/"},"match":[{"source_labels":{"a":"b"}}]}]}`, nil},
		{"unknown fields", `{"hots":[],"http":[{},{"match":[{"uri":{"exakt":"/"}}]}],"tls":[{"x":1}]}`, []string{"spec.hots", "spec.http[1].match[0].uri.exakt", "spec.tls[0].x"}},
		{"in a map", `{"http":[{"match":[{"headers":{"a":{"exact":"b"},"c":{"is":"d"}}}]}]}`, []string{"spec.http[0].match[0].headers[c].is"}},
		{"both names of a field", `{"http":[{"redirect":{"redirectCode":301,"redirect_code":302}}]}`, []string{"spec.http[0].redirect.redirect_code"}},
		{"two of a choice", `{"http":[{"match":[{"uri":{"exact":"/","prefix":"/"}}]}]}`, []string{"spec.http[0].match[0].uri.prefix"}},
		{"null in a list", `{"http":[null]}`, []string{"spec.http[0]"}},
		{"null in a map", `{"http":[{"match":[{"headers":{"a":null}}]}]}`, []string{"spec.http[0].match[0].headers[a]"}},
		{"no list", `{"http":{}}`, []string{"spec.http"}},
		{"no object", `{"http":["a"]}`, []string{"spec.http[0]"}},
		{"no map", `{"http":[{"match":[{"headers":[]}]}]}`, []string{"spec.http[0].match[0].headers"}},
		{"not even an object", `"a"`, []string{"spec"}},
		{"a number for a name", `{"hosts":[1]}`, []string{"spec"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			for _, f := range decode("spec", []byte(c.spec), &networking.VirtualService{}).findings {
				got = append(got, f.Field)
				if !f.Fault || f.Reason != ReasonUndecodable {
					t.Errorf("%+v", f)
				}
			}
			if d := cmp.Diff(c.fields, got); d != "" {
				t.Errorf("wanted (-), got (+):\n%s", d)
			}
		})
	}
}

// However much is wrong, little of it is told.
func TestDecodeBounded(t *testing.T) {
	for name, spec := range map[string]string{
		"nulls":   `{"http":[` + strings.Repeat("null,", 10_000) + `null]}`,
		"unknown": `{"a":1` + unknown(10_000) + `}`,
		"long":    `{"` + strings.Repeat("a", 100_000) + `":1}`,
	} {
		v := decode("spec", []byte(spec), &networking.VirtualService{})
		if n, text := len(v.findings), v.Err().Error(); n > mostTold+1 || len(text) > (mostTold+2)*mostText {
			t.Errorf("%s: %d findings, %d characters", name, n, len(text))
		}
	}
}

func unknown(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"a%d":1`, i)
	}
	return b.String()
}

// Free-form fields take anything, but not without end: each level costs the decoder a pass over what is inside.
func TestDecodeDepth(t *testing.T) {
	nested := func(levels, bytes int) []byte {
		const head, tail = `{"configPatches":[{"patch":{"value":`, `}}]}`
		levels -= strings.Count(head, "{") + strings.Count(head, "[")
		s := head + strings.Repeat(`{"a\"]":[`, levels/2) + `"[{\\` + "%" + `"` + strings.Repeat(`]}`, levels/2) + tail
		return []byte(strings.Replace(s, "%", strings.Repeat("x", bytes-len(s)+1), 1))
	}
	for _, c := range []struct {
		levels, bytes int
		fault         bool
	}{
		{maxDepth, 10_000, false},
		{maxDepth + 2, 10_000, true},
		{20, 1_500_000, false},
		{maxDepth, 1_500_000, true},
	} {
		raw := nested(c.levels, c.bytes)
		if v := decode("spec", raw, &networking.EnvoyFilter{}); v.Has("spec", ReasonUndecodable) != c.fault || len(raw) != c.bytes {
			t.Errorf("%d levels, %d bytes: %v", c.levels, len(raw), v.findings)
		}
	}
}

// Whatever is written: no panic, and what is accepted says the same thing twice.
func FuzzObject(f *testing.F) {
	for _, s := range []string{
		`{"apiVersion":"networking.istio.io/v1","kind":"DestinationRule","metadata":{"namespace":"a"},"spec":{"host":"*-a.b","exportTo":["."],"subsets":[{"name":"v1"}],"trafficPolicy":{"tls":{"mode":"MUTUAL"},"outlierDetection":{"interval":"5m"}}}}`,
		`{"apiVersion":"security.istio.io/v1","kind":"PeerAuthentication","spec":{"selector":{"matchLabels":{"a":"b"}},"portLevelMtls":{"80":{"mode":"STRICT"}}}}`,
		`{"apiVersion":"networking.istio.io/v1alpha3","kind":"EnvoyFilter","spec":{"configPatches":[{"patch":{"operation":"MERGE","value":{"a":[1,null,{}]}}}]}}`,
		`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","spec":{"hosts":["a"],"http":[{"timeout":"1.5s","fault":{"abort":{"percentage":{"value":1e2}}}}]}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		v, err := Object(raw, "a")
		again, _ := Object(raw, "a")
		if d := cmp.Diff(v.findings, again.findings); d != "" {
			t.Error(d)
		}
		if err != nil && v.findings != nil {
			t.Errorf("a verdict %v beside %v", v.findings, err)
		}
	})
}
