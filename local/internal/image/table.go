package image

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"sigs.k8s.io/yaml"
)

// table is images.yaml, which says what its fields mean.
type table struct {
	Version string               `json:"version"`
	Envoy   wheelPin             `json:"envoy"`
	Layers  map[string]layerSpec `json:"layers"`
	Images  map[string]imageSpec `json:"images"`
}

type wheelPin struct {
	Wheel  string `json:"wheel"`
	SHA256 string `json:"sha256"`
	Member string `json:"member"` // path of the program in the wheel
}

type layerSpec struct {
	Debian       []string          `json:"debian"`
	Without      []string          `json:"without"`
	Certificates bool              `json:"certificates"`
	Go           map[string]string `json:"go"`
	Binaries     map[string]string `json:"binaries"`
	Envoy        string            `json:"envoy"`
	Directories  []fileSpec        `json:"directories"`
	Files        []fileSpec        `json:"files"`
	Links        map[string]string `json:"links"`
}

type fileSpec struct {
	Path    string `json:"path"`
	Mode    int64  `json:"mode"` // of a file, 0644 if not given
	UID     int    `json:"uid"`
	GID     int    `json:"gid"`
	Content string `json:"content"`
}

type imageSpec struct {
	Refs       []string          `json:"refs"`
	Layers     []string          `json:"layers"`
	User       string            `json:"user"`
	Directory  string            `json:"directory"`
	Env        map[string]string `json:"env"`
	Entrypoint []string          `json:"entrypoint"`
	Cmd        []string          `json:"cmd"`
	Ports      []string          `json:"ports"`
	Asked      bool              `json:"asked"` // made only if it is asked for by name
}

func parse(b []byte) (*table, error) {
	t := new(table)
	if err := yaml.UnmarshalStrict(b, t); err != nil {
		return nil, fmt.Errorf("images.yaml: %w", err)
	}
	var faults []error
	for _, name := range slices.Sorted(maps.Keys(t.Images)) {
		if len(t.Images[name].Refs) == 0 {
			faults = append(faults, fmt.Errorf("images.yaml: image %s has no refs", name))
		}
		for _, l := range t.Images[name].Layers {
			if _, ok := t.Layers[l]; !ok {
				faults = append(faults, fmt.Errorf("images.yaml: image %s names layer %s, which is not there", name, l))
			}
		}
	}
	return t, errors.Join(faults...)
}

func (t *table) expand(ref string, digest v1.Hash) string {
	return strings.NewReplacer("{version}", t.Version, "{digest}", digest.Hex[:12]).Replace(ref)
}
