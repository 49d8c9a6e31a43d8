package xds

import (
	"maps"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

// What is read of a node is what protobuf reads, of whatever protobuf can read.
func FuzzNode(f *testing.F) {
	meta, err := structpb.NewStruct(map[string]any{"A": "a", "B": map[string]any{"x": "y", "n": 1.5}, "C": []any{"c"}, "": ""})
	if err != nil {
		f.Fatal(err)
	}
	seed, err := proto.Marshal(&corev3.Node{Id: "id", Cluster: "c", Metadata: meta})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, raw []byte) {
		want := &corev3.Node{}
		if len(raw) > maxText || proto.Unmarshal(raw, want) != nil {
			return
		}
		raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(want) // one field of a name: what Envoy writes
		if err != nil {
			t.Fatal(err)
		}
		n := Node{raw}
		if n.ID() != want.GetId() || n.Cluster() != want.GetCluster() {
			t.Errorf("got %q of %q, want %q of %q", n.ID(), n.Cluster(), want.GetId(), want.GetCluster())
		}
		for k, v := range want.GetMetadata().GetFields() {
			if got := n.Meta(k); got != v.GetStringValue() || !n.HasMeta(k) {
				t.Errorf("%q is %q, want %q", k, got, v.GetStringValue())
			}
			object := map[string]string{}
			for k, v := range v.GetStructValue().GetFields() {
				if s, ok := v.GetKind().(*structpb.Value_StringValue); ok {
					object[k] = s.StringValue
				}
			}
			if got := n.MetaStrings(k, len(raw)); !maps.Equal(got, object) {
				t.Errorf("%q is %q, want %q", k, got, object)
			}
		}
	})
}

// A node of a megabyte costs its bytes, and reading it next to nothing.
func TestNodeMemory(t *testing.T) {
	values := make([]*structpb.Value, 340_000)
	for i := range values {
		values[i] = &structpb.Value{}
	}
	raw, err := proto.Marshal(&corev3.Node{Id: "x", Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
		"X": structpb.NewListValue(&structpb.ListValue{Values: values}), "NAMESPACE": structpb.NewStringValue("shop"),
	}}})
	if err != nil {
		t.Fatal(err)
	}
	allocations := testing.AllocsPerRun(1, func() {
		if n := (Node{raw}); n.ID() != "x" || n.Meta("NAMESPACE") != "shop" || n.HasMeta("Y") {
			t.Error("the node is not read right")
		}
	})
	if allocations > 30 {
		t.Errorf("%v allocations", allocations)
	}
}
