package operator

import (
	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// MeshOf is what an Istio object claims, as the operator reads it: `heddle check` judges by the same.
func MeshOf(istio *sailv1.Istio) mesh.Mesh { return meshOf(istio) }
