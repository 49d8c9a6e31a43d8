package obs

import (
	"bytes"
	"strings"
	"testing"
)

func TestLogger(t *testing.T) {
	for _, tc := range []struct{ format, level, want, err string }{
		{"text", "info", `level=INFO msg=shown client=a`, ""},
		{"json", "info", `"msg":"shown","client":"a"`, ""},
		{"text", "debug", `level=DEBUG msg=detail`, ""},
		{"text", "loud", "", "use debug, info, warn or error"},
		{"xml", "info", "", "use text or json"},
	} {
		var out bytes.Buffer
		log, err := Logger(&out, tc.format, tc.level)
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%s, %s: error %v, want %q", tc.format, tc.level, err, tc.err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		log.Debug("detail")
		Logr(log).V(0).Info("shown", "client", "a")
		if !strings.Contains(out.String(), tc.want) || strings.Contains(out.String(), "detail") != (tc.level == "debug") {
			t.Errorf("%s, %s: logged %q, want %q", tc.format, tc.level, out.String(), tc.want)
		}
	}
}

func TestRegistry(t *testing.T) {
	families, err := Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "heddle_build_info" && f.GetMetric()[0].GetLabel()[0].GetValue() == Version {
			return
		}
	}
	t.Error("no heddle_build_info with the version")
}
