package control

import (
	"testing"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// A client knows its node before the plane has seen its pod, and no other cluster's of that name.
func TestClientSaysItsNode(t *testing.T) {
	said := clientOf(identity.Caller{Cluster: "c2", Pod: "cart-1", Identity: mesh.Identity{Namespace: "shop"}}, read(t, nodeOf(t, "shop", "cart-1")))
	if want := (mesh.NodeKey{Cluster: "c2", Name: "k1"}); said.Node != want {
		t.Errorf("the client is on %v, want %v", said.Node, want)
	}
}
