package control

import (
	"testing"
	"time"
)

// A flood of refusals by one check is told in part, and how large it was; other checks are not kept silent by it.
func TestRefusalsArePaced(t *testing.T) {
	var p pace
	now, told := time.Unix(1000, 0), 0
	for range 1000 {
		if _, ok := p.allow("token-valid", now); ok {
			told++
		}
	}
	if told != tellBurst {
		t.Errorf("%d of a flood are told, want %d", told, tellBurst)
	}
	if _, ok := p.allow("member", now); !ok {
		t.Error("another check is kept silent")
	}
	if untold, ok := p.allow("token-valid", now.Add(tellEvery)); !ok || untold != 1000-tellBurst {
		t.Errorf("after a second: told %v, of %d not told", ok, untold)
	}
}

// A client names its version; of what it may say there are not many labels.
func TestVersionLabels(t *testing.T) {
	m := &metrics{options: Options{APIVersion: "v1.30.3"}}
	for said, want := range map[string]string{
		"1.30.3": "1.30.3", "1.29.1": "1.29", "v1.31.0-alpha": "1.31", "1.30.99": "1.30", "2.0.0": "unknown", "1.1234.1": "unknown",
		"": "unknown", "x1.30.1": "unknown", "\xff": "unknown",
	} {
		if got := m.label(said); got != want {
			t.Errorf("%q is labelled %q, want %q", said, got, want)
		}
	}
}
