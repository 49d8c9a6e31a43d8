package xds

import (
	"slices"

	"github.com/heddle-mesh/heddle/internal/trie"
)

// resources are those of one type in a group, by name; one without body hides what earlier layers have.
type resources = trie.Map[string, Resource]

func nameOf(r *Resource) string { return r.Name }

// group is a Group: what it holds now, and the streams that hold it.
type group struct {
	hash    func(string) uint64 // of names
	tip     *snapshot
	edit    uint64 // the one that made tip
	streams map[*stream]struct{}
}

// snapshot is what a group held after one Publish. It does not change and shares with the ones before and after what it has in
// common with them, so that streams can compare what they have told with what there is, at the cost of what differs.
type snapshot struct {
	group *group
	types []typed // those that have resources
}

type typed struct {
	url string
	resources
}

func newGroup(hash func(string) uint64) *group {
	g := &group{hash: hash, streams: map[*stream]struct{}{}}
	g.tip = &snapshot{group: g}
	return g
}

// apply changes the group, and reports whether a resource is not what it was. What one edit makes is one snapshot, which
// nobody may have before the edit ends.
func (g *group) apply(edit uint64, ch Change) (changed bool) {
	if g.edit != edit {
		g.tip, g.edit = &snapshot{group: g, types: slices.Clone(g.tip.types)}, edit
	}
	at := slices.IndexFunc(g.tip.types, func(t typed) bool { return t.url == ch.Type })
	if at < 0 {
		at = len(g.tip.types)
		g.tip.types = append(g.tip.types, typed{ch.Type, trie.New(g.hash, nameOf)})
	}
	held := &g.tip.types[at].resources
	for _, r := range ch.Set { // each on its own: a pointer into the batch would keep all of it
		old := held.Get(r.Name)
		changed = changed || old == nil || old.Version != r.Version
		held.Put(edit, &r)
	}
	for _, n := range ch.Remove {
		if held.Get(n) != nil {
			changed = true
			held.Delete(edit, n)
		}
	}
	if held.Len() == 0 {
		g.tip.types = slices.Delete(g.tip.types, at, at+1)
	}
	return changed
}

// empty reports whether the group holds nothing.
func (g *group) empty() bool { return len(g.tip.types) == 0 }

// of returns the resources of a type. A nil snapshot has none.
func (s *snapshot) of(typeURL string) resources {
	if s != nil {
		for i := range s.types {
			if s.types[i].url == typeURL {
				return s.types[i].resources
			}
		}
	}
	return resources{}
}

func (s *snapshot) get(typeURL, name string) *Resource {
	return s.of(typeURL).Get(name)
}

// layers are what a client's groups held at one moment, in order; later ones win by name.
type layers []*snapshot

func (l layers) find(typeURL, name string) *Resource {
	for _, s := range slices.Backward(l) {
		switch r := s.get(typeURL, name); {
		case r == nil:
		case r.Hides():
			return nil
		default:
			return r
		}
	}
	return nil
}

func (l layers) has(typeURL, name string) bool {
	return slices.ContainsFunc(l, func(s *snapshot) bool { return s.get(typeURL, name) != nil })
}

// each visits once each name that a layer has.
func (l layers) each(typeURL string, visit func(name string)) {
	for i, s := range l {
		s.of(typeURL).Each(func(r *Resource) {
			if !l[i+1:].has(typeURL, r.Name) {
				visit(r.Name)
			}
		})
	}
}

// changed visits the names of which l may hold something else than base, some of them twice. Of a group that is in both it
// costs what has changed in it, of others all that they have.
func (l layers) changed(base layers, typeURL string, visit func(name string)) {
	all := func(s *snapshot) { s.of(typeURL).Each(func(r *Resource) { visit(r.Name) }) }
	for _, now := range l {
		i := slices.IndexFunc(base, func(s *snapshot) bool { return s.group == now.group })
		if i < 0 {
			all(now)
			continue
		}
		for _, gone := range base[:i] { // or in another place, which changes what wins
			all(gone)
		}
		if base[i] != now {
			trie.Diff(base[i].of(typeURL), now.of(typeURL), visit)
		}
		base = base[i+1:]
	}
	for _, gone := range base {
		all(gone)
	}
}
