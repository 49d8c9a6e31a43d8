package trie_test

import (
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heddle-mesh/heddle/internal/trie"
)

type row struct{ key, val int }

type numbers = trie.Map[int, row]

func keyOf(r *row) int { return r.key }

func content(m numbers) map[int]int {
	got := map[int]int{}
	m.Each(func(r *row) { got[r.key] = r.val })
	return got
}

// TestHistory holds the trie to a map, with hashes so poor that branches reach the last level, and holds snapshots still.
// What differs between any two of them is what Diff visits.
func TestHistory(t *testing.T) {
	for _, hash := range []func(int) uint64{
		func(k int) uint64 { return uint64(k) * 0x9e3779b97f4a7c15 },
		func(k int) uint64 { return uint64(k%3) << 60 },
		func(int) uint64 { return 0 },
	} {
		rnd := rand.New(rand.NewPCG(3, 3))
		m, want := trie.New(hash, keyOf), map[int]int{}
		type snapshot struct {
			is   numbers
			want map[int]int
		}
		kept := []snapshot{{m, map[int]int{}}, {numbers{}, map[int]int{}}}
		for edit := range uint64(400) {
			for range rnd.IntN(8) {
				k := rnd.IntN(60)
				if _, ok := want[k]; ok && rnd.IntN(2) == 0 {
					m.Delete(edit, k)
					delete(want, k)
				} else {
					want[k] = rnd.Int()
					m.Put(edit, &row{k, want[k]})
				}
			}
			kept = append(kept, snapshot{m, maps.Clone(want)})
		}
		for _, s := range kept {
			if got := content(s.is); !maps.Equal(got, s.want) || s.is.Len() != len(s.want) {
				t.Fatalf("got %d rows %v, want %v", s.is.Len(), got, s.want)
			}
			for k := range 60 {
				row := s.is.Get(k)
				if v, ok := s.want[k]; (row != nil) != ok || ok && row.val != v {
					t.Fatalf("get %d: %v, want %d %v", k, row, v, ok)
				}
			}
		}
		for range 2000 {
			a, b := kept[rnd.IntN(len(kept))], kept[rnd.IntN(len(kept))]
			got, want := map[int]int{}, map[int]int{}
			trie.Diff(a.is, b.is, func(k int) { got[k]++ })
			for k := range 60 {
				if a.is.Get(k) != b.is.Get(k) {
					want[k] = 1
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("keys that differ between %v and %v, by visits (-want +got):\n%s", a.want, b.want, diff)
			}
		}
	}
}

// TestDiffCost: two snapshots of a large map are compared at the cost of what changed between them.
func TestDiffCost(t *testing.T) {
	hashed := 0
	m := trie.New(func(k int) uint64 { hashed++; return uint64(k) * 0x9e3779b97f4a7c15 }, keyOf)
	for k := range 100_000 {
		m.Put(1, &row{key: k})
	}
	before := m
	for k := range 3 {
		m.Put(2, &row{k, 1})
		m.Delete(2, 1000+k)
	}
	hashed = 0
	visited := 0
	trie.Diff(before, m, func(int) { visited++ })
	if visited != 6 || hashed > 60 {
		t.Errorf("%d keys visited and %d looked up for 6 that changed", visited, hashed)
	}
}
