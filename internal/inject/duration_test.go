package inject

import (
	"testing"
	"time"
)

// Durations of the mesh configuration and of a pod's annotation are read as Istio reads them: as Go writes durations.
func TestMeshConfigDurations(t *testing.T) {
	p := params(t, Settings{MeshConfig: []byte("protocolDetectionTimeout: 100ms\nconnectTimeout: 1m\ndefaultConfig: {terminationDrainDuration: 2m}\nnotYetKnown: 1\n")})
	if got := p.MeshConfig().GetProtocolDetectionTimeout().AsDuration(); got != 100*time.Millisecond {
		t.Errorf("protocolDetectionTimeout %v", got)
	}
	for annotation, want := range map[string]time.Duration{"": 2 * time.Minute, "terminationDrainDuration: 1m30s": 90 * time.Second} {
		c, err := p.proxyConfig(annotation)
		if err != nil {
			t.Errorf("%q: %v", annotation, err)
		}
		if got := c.GetTerminationDrainDuration().AsDuration(); got != want {
			t.Errorf("%q: %v, want %v", annotation, got, want)
		}
	}
	if _, err := p.proxyConfig("terminationDrainDuration: 5 minutes"); err == nil {
		t.Error("what is no duration is accepted")
	}
}
