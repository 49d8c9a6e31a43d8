package verify

import (
	"fmt"
	"math/rand/v2"
	"slices"
)

// Names are what a run calls its things; the documents' own, or others, so that nothing works by the name alone.
type Names struct {
	Sys1, Sys2                      string // system namespaces
	Mesh1, Mesh2                    string // Istio objects
	Rev1, Rev2                      string // their revisions
	Label                           string // key of the discovery label
	Value1, Value2                  string // its values
	App1, App2, App3                string // application namespaces
	Sys3, Mesh3, Value3, App4, App5 string // a third mesh's, which no document has
	Sleep, Httpbin                  string // services, Deployments and app labels
	Port                            int    // of the httpbin service
	Seed                            uint64 // 0: the document's names
}

// Document returns the names of a document.
func Document(script string) (Names, error) {
	n := Names{App1: "app-ns-1", App2: "app-ns-2", App3: "app-ns-3", Sleep: "sleep", Httpbin: "httpbin", Port: 8000}
	switch script {
	case "s0":
		n.Sys1, n.Sys2, n.Mesh1, n.Mesh2, n.Label = "istio-system-1", "istio-system-2", "mesh-1", "mesh-2", "istio-discovery"
	case "s1":
		n.Sys1, n.Sys2, n.Mesh1, n.Mesh2, n.Label = "usergroup-1", "usergroup-2", "usergroup-1", "usergroup-2", "usergroup"
	default:
		return n, fmt.Errorf("there is no document %q; there are s0 and s1", script)
	}
	n.Rev1, n.Rev2, n.Value1, n.Value2 = n.Mesh1, n.Mesh2, n.Mesh1, n.Mesh2
	n.Sys3, n.Mesh3, n.Value3, n.App4, n.App5 = "istio-system-3", "mesh-3", "mesh-3", "app-ns-4", "app-ns-5"
	return n, nil
}

// Port numbers that Istio never takes for HTTP by themselves, or that a proxy uses.
var reserved = []int{25, 53, 3306, 27017}

// Random returns names that no document uses, of 3 to 40 characters, always the same for a seed.
func Random(seed uint64) Names {
	r := rand.New(rand.NewPCG(seed, 0))
	seen := map[string]bool{}
	word := func() string {
		const letters, inner = "abcdefghijklmnopqrstuvwxyz", "abcdefghijklmnopqrstuvwxyz0123456789-"
		for {
			b := make([]byte, 3+r.IntN(38))
			for i := range b {
				b[i] = inner[r.IntN(len(inner))]
			}
			b[0], b[len(b)-1] = letters[r.IntN(26)], letters[r.IntN(26)]
			if s := string(b); !seen[s] {
				seen[s] = true
				return s
			}
		}
	}
	n := Names{
		Sys1: word(), Sys2: word(), Mesh1: word(), Mesh2: word(), Label: word(), Value1: word(), Value2: word(),
		App1: word(), App2: word(), App3: word(), Sleep: word(), Httpbin: word(), Seed: seed,
		Sys3: word(), Mesh3: word(), Value3: word(), App4: word(), App5: word(),
	}
	n.Rev1, n.Rev2 = n.Mesh1, n.Mesh2
	for n.Port == 0 || slices.Contains(reserved, n.Port) || n.Port >= 15000 && n.Port < 15100 {
		n.Port = 1 + r.IntN(65535)
	}
	return n
}
