package redirect_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heddle-mesh/heddle/internal/node/redirect"
)

var update = flag.Bool("update", false, "rewrite golden files")

// usual is what the injector asks for a pod without annotations.
func usual() redirect.Fields {
	return redirect.Fields{
		OutboundPort: "15001", InboundPort: "15006", ProxyID: "1337", Mode: "REDIRECT",
		IncludeCIDRs: "*", IncludeInbound: "*", ExcludeInbound: "15090,15021,15020",
	}
}

// limited says something in every field.
func limited() redirect.Fields {
	f := usual()
	f.IncludeCIDRs, f.ExcludeCIDRs = "10.96.0.0/12,fd00::/8", "10.96.0.10,169.254.0.0/16"
	f.IncludeInbound, f.ExcludeInbound = "80,443", "22,"
	f.IncludeOutbound, f.ExcludeOutbound = "6379", "25,53"
	f.VirtualInterfaces, f.ExcludeInterfaces = "vnet0", "eth1,eth2"
	return f
}

func parse(t *testing.T, f redirect.Fields) redirect.Redirection {
	t.Helper()
	r, err := redirect.Parse(f)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRules(t *testing.T) {
	for name, f := range map[string]redirect.Fields{"usual": usual(), "limited": limited()} {
		t.Run(name, func(t *testing.T) {
			got := parse(t, f).Rules()
			path := filepath.Join("testdata", name+".nft")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestParseNamesEveryFault(t *testing.T) {
	_, err := redirect.Parse(redirect.Fields{
		OutboundPort: "0", InboundPort: "1,2", ProxyID: "root", Mode: "TPROXY", IncludeCIDRs: "10.0.0.0/33", ExcludeCIDRs: "x",
		IncludeInbound: "http", ExcludeInbound: "65536", IncludeOutbound: "-1", ExcludeOutbound: "a",
		VirtualInterfaces: "eth0\" return; flush ruleset; #", ExcludeInterfaces: "a-name-that-is-too-long",
	})
	for _, flag := range []string{"-p", "-z", "-u", "-m", "-i", "-x", "-b", "-d", "-q", "-o", "-k", "-c"} {
		if err == nil || !strings.Contains(err.Error(), flag+": ") {
			t.Errorf("%s is not named in: %v", flag, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("10.0.0.0/8", "80", "eth0")
	f.Add("*", "*", "a\nb")
	f.Fuzz(func(t *testing.T, cidrs, ports, names string) {
		r, err := redirect.Parse(redirect.Fields{
			OutboundPort: "15001", InboundPort: "15006", ProxyID: "1337", Mode: "REDIRECT",
			IncludeCIDRs: cidrs, ExcludeCIDRs: cidrs, IncludeInbound: ports, ExcludeOutbound: ports, VirtualInterfaces: names,
		})
		if err != nil {
			return
		}
		if got := r.Rules(); strings.Count(got, "{") != strings.Count(got, "}") || strings.Count(got, "chain ") != 5 {
			t.Errorf("a field breaks out of its place:\n%s", got)
		}
	})
}
