package control

import (
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/render/envoy"
	"github.com/heddle-mesh/heddle/internal/xds"
)

// Field numbers of what composites are made of.
const (
	virtualHosts = 2 // of RouteConfiguration
	filterChains = 3 // of Listener
)

// gather puts together what was rendered of the parts of a composite. It returns false if one of them could not be.
func gather[K comparable](r *graph.Reader, rendered *graph.Table[K, []xds.Fragment], keys []K) (all []xds.Fragment, ok bool) {
	ok = true
	for _, k := range keys {
		f, there := graph.Get(r, rendered, k)
		all, ok = append(all, f...), ok && there
	}
	return all, ok
}

// finished is where each message and each part of a composite passes between its making and its seal, and so where a patch to
// it belongs. It panics for what Envoy would refuse whole: the graph logs that and keeps the row's last output.
func finished[M proto.Message](m M) M { return envoy.Checked(m) }

func seal(typeURL, name, origin string, m proto.Message) xds.Resource {
	return must(xds.Seal(typeURL, name, origin, finished(m)))
}

func compose(typeURL, name, origin string, header proto.Message, parts []xds.Fragment) xds.Resource {
	return must(xds.Compose(typeURL, name, origin, finished(header), parts))
}

func fragments[M proto.Message](field protowire.Number, ms ...M) []xds.Fragment {
	var out []xds.Fragment
	for _, m := range ms {
		out = append(out, must(xds.NewFragment(field, finished(m))))
	}
	return out
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
