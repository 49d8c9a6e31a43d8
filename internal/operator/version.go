package operator

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// DefaultVersion is the version of Istio's API that this build serves unless an Istio object asks for another.
// One build serves all that newestPatch knows: a version is what the control plane says of itself.
const DefaultVersion = "v1.30.3"

// newestPatch has, by minor version of 1.x, the newest patch that the documents or the Sail operator know.
// Source: istio-ecosystem/sail-operator, pkg/istioversion/versions.yaml of 2025-11 to 2026-08.
var newestPatch = map[int]int{20: 8, 21: 6, 22: 8, 23: 6, 24: 6, 25: 5, 26: 8, 27: 9, 28: 6, 29: 6, 30: 3, 31: 1}

// resolveVersion returns the concrete version (v1.30.3) that a name in spec.version stands for; its error lists
// what may be asked for.
func resolveVersion(name string) (string, error) {
	if name == "" || name == "master" {
		return DefaultVersion, nil
	}
	release, _, prerelease := strings.Cut(name, "-")
	parts := strings.Split(strings.TrimPrefix(release, "v1."), ".")
	minor, err := strconv.Atoi(parts[0])
	newest, known := newestPatch[minor]
	if strings.HasPrefix(name, "v1.") && err == nil && known {
		switch len(parts) {
		case 1:
			if name == release+"-latest" {
				return fmt.Sprintf("%s.%d", release, newest), nil
			}
		case 2:
			if patch, err := strconv.Atoi(parts[1]); err == nil && patch <= newest && (!prerelease || name != release+"-latest") {
				return name, nil
			}
		}
	}
	minors := slices.Sorted(maps.Keys(newestPatch))
	return "", fmt.Errorf("spec.version %s is not known; use v1.X.Y or v1.X-latest, X from %d to %d", name, minors[0], minors[len(minors)-1])
}
