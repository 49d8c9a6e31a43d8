package control

import (
	"fmt"

	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/resolve"
	"github.com/heddle-mesh/heddle/internal/xds"
)

// place is where a resource is: two groups may hold one name.
type place struct {
	Group xds.Group
	Name  string
}

type placement struct {
	typeURL string
	table   *graph.Table[place, xds.Resource]
}

func groupOf(l resolve.Layer) xds.Group {
	return xds.Group(fmt.Sprintf("layer/%s/%s/%s/%d/%s/%s", l.Mesh, l.Cluster, l.Namespace, l.Families, l.Network, l.Node))
}

func inboundGroup(id mesh.ID, k resolve.InboundKey) xds.Group {
	return xds.Group("inbound/" + string(id) + "/" + string(k))
}

func (p *Pipeline) place(typeURL string, t *graph.Table[place, xds.Resource]) {
	p.placed = append(p.placed, placement{typeURL, t})
}

// put places what was rendered of a spec. A spec that could not be rendered leaves in place what was there: clients would
// take nothing for a removal.
func put[K comparable, S any](r *graph.Reader, at place, k K, specs *graph.Table[K, S], rendered *graph.Table[K, xds.Resource], emit func(place, xds.Resource)) {
	if res, ok := graph.Get(r, rendered, k); ok {
		emit(at, res)
	} else if _, ok := graph.Get(r, specs, k); ok {
		r.Keep()
	}
}

// once builds the resources of specs, one for each content, whatever number of layers has it. One that lacks a part is not made.
func once[K comparable, S contents](p *Pipeline, g *graph.Graph, name, typeURL string, specs *graph.Table[K, S],
	at func(K, S) place, render func(*graph.Reader, S) (whole xds.Resource, ok bool),
) {
	ids := graph.Derive(g, name+".contents", specs, graph.TableOptions[resolve.Content]{},
		func(_ *graph.Reader, k K, s S, emit func(K, resolve.Content)) { emit(k, s.Content()) })
	distinct := graph.Derive(g, name+".distinct", ids, sameContent[S](),
		func(r *graph.Reader, k K, id resolve.Content, emit func(resolve.Content, S)) {
			s, _ := graph.Get(r, specs, k)
			emit(id, s)
		})
	composed := graph.Derive(g, "composed."+name, distinct, sealedOnce,
		func(r *graph.Reader, id resolve.Content, s S, emit func(resolve.Content, xds.Resource)) {
			if res, ok := render(r, s); ok {
				emit(id, res)
			} else {
				r.Keep()
			}
		})
	p.place(typeURL, graph.Derive(g, "placed."+name, ids, sealedOnce,
		func(r *graph.Reader, k K, id resolve.Content, emit func(place, xds.Resource)) {
			s, _ := graph.Get(r, specs, k)
			put(r, at(k, s), id, distinct, composed, emit)
		}))
}

// contents is a spec that stands for one content.
type contents interface{ Content() resolve.Content }

// sameContent spares the comparison of large specs field by field.
func sameContent[S contents]() graph.TableOptions[S] {
	return graph.TableOptions[S]{Equal: func(a, b S) bool { return a.Content() == b.Content() }}
}

// sealedOnce: what comes from an unchanged spec is never rendered again, so equality by content is enough.
var sealedOnce = graph.TableOptions[xds.Resource]{Equal: func(a, b xds.Resource) bool { return a.Version == b.Version && a.Origin == b.Origin }}

// freshFragment: a fragment is made again only if its spec has changed, and then it differs.
var freshFragment = graph.TableOptions[[]xds.Fragment]{Equal: func(_, _ []xds.Fragment) bool { return false }}
