package bench

import (
	"strings"
	"testing"
	"time"
)

func TestSpread(t *testing.T) {
	began := time.Unix(0, 0)
	after := func(ms ...int) *mark {
		m := newMark(len(ms))
		for i, n := range ms {
			m.arrived(i, began.Add(time.Duration(n)*time.Millisecond))
			m.arrived(i, began.Add(time.Hour)) // a second message with the same change
		}
		<-m.done
		return m
	}
	got := spreadOf([]time.Time{began, began, began.Add(time.Millisecond)}, []*mark{after(1, 2, 3), after(4, 5, 6), after(11, 12, 101)})
	ms := time.Millisecond
	if want := (Spread{P50: 5 * ms, P90: 100 * ms, P99: 100 * ms, Last: 6 * ms}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestQuantile(t *testing.T) {
	var all []time.Duration
	for i := range 1000 {
		all = append(all, time.Duration(i+1))
	}
	for percent, want := range map[int]time.Duration{1: 10, 50: 500, 99: 990, 100: 1000} {
		if got := quantile(all, percent); got != want {
			t.Errorf("%d %%: %d, want %d", percent, got, want)
		}
	}
	if got := quantile(all[:1], 1); got != 1 {
		t.Errorf("of one: %d", got)
	}
}

// Heddle's worse column counts, against istiod with its defaults: neither its own better one nor what istiod is at best.
func TestMissed(t *testing.T) {
	column := func(title string, p99, cpu time.Duration, resident float64) Figures {
		return Figures{
			Title: title, Clients: 10, Flips: Spread{P99: p99}, FlipCost: Cost{CPU: cpu},
			Before: Memory{Resident: 1e6}, After: Memory{Resident: resident},
		}
	}
	peer, eager := column("istiod", 300, 400, 7e6), column("istiod, no debounce", 30, 1000, 70e6)
	for _, c := range []struct {
		first, again Figures
		want         string
	}{
		{column("Heddle", 99, 99, 2e6), column("again", 99, 99, 2e6), ""},
		{column("Heddle", 101, 100, 2e6), column("again", 1, 100, 2e6), "flip, p99, ms: 0.34 of istiod's, the goal is 0.33"},
		{column("Heddle", 1, 1, 2e6), column("again", 1, 101, 2.1e6), "flip, of a client: CPU, µs: 0.25 of istiod's, the goal is 0.25; resident, of a client, kB: 0.18 of istiod's, the goal is 0.17"},
	} {
		var text strings.Builder
		missed, err := Report{Columns: []Figures{c.first, peer, eager, c.again}}.Write(&text, "")
		if got := strings.Join(missed, "; "); err != nil || got != c.want {
			t.Errorf("%q, %v, want %q", got, err, c.want)
		}
		if n := strings.Count(text.String(), "**missed**"); n != len(missed) {
			t.Errorf("%d are told of %d:\n%s", n, len(missed), &text)
		}
	}
}

// Where the peer has grown by nothing, or shrunk, there is no part of it, and no goal is met by one.
func TestNoPartOfNothing(t *testing.T) {
	for _, after := range []float64{1e6, 0.5e6} {
		heddle := Figures{Clients: 10, Before: Memory{Resident: 1e6}, After: Memory{Resident: 2e6}}
		peer := Figures{Clients: 10, Before: Memory{Resident: 1e6}, After: Memory{Resident: after}}
		var text strings.Builder
		if _, err := (Report{Columns: []Figures{heddle, peer, heddle}}).Write(&text, ""); err != nil || strings.Contains(text.String(), ", met") {
			t.Errorf("%v:\n%s", err, &text)
		}
	}
}

func TestValidate(t *testing.T) {
	good := Sizes{Namespaces: 10, Services: 1000, Clients: 500, Flips: 100, Burst: 100}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	bad := good
	bad.Clients, bad.Burst = 0, 1001
	if err := bad.Validate(); err == nil || !strings.Contains(err.Error(), "clients: 0") || !strings.Contains(err.Error(), "burst: 1001") {
		t.Errorf("%v", err)
	}
}

func TestParseCPU(t *testing.T) {
	stat := "7 (a ) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 150 25 5 6 20 0 9 0"
	if got, err := parseCPU([]byte(stat)); err != nil || got != 1750*time.Millisecond {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := parseCPU([]byte("7 (a) S 1")); err == nil {
		t.Error("half a line was read")
	}
}
