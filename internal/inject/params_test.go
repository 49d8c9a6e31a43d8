package inject

import (
	"testing"
	"time"
)

// Every document of Istio writes durations as Go does, and its API reads them so; protobuf's own JSON has seconds alone.
func TestMeshConfigIsReadAsIstioReadsIt(t *testing.T) {
	p, err := Parse(Settings{Namespace: "sys", MeshConfig: []byte(`
protocolDetectionTimeout: 1m30s
connectTimeout: 100ms
outboundTrafficPolicy: {mode: REGISTRY_ONLY}
defaultConfig: {drainDuration: 5m, concurrency: "3", terminationDrainDuration: 1500ms}
newerThanThisBuild: {a: b}
`)})
	if err != nil {
		t.Fatal(err)
	}
	if got := p.MeshConfig().GetProtocolDetectionTimeout().AsDuration(); got != 90*time.Second {
		t.Errorf("protocolDetectionTimeout %v", got)
	}
	c, err := p.proxyConfig("terminationDrainDuration: 2h\nnewer: 1\n")
	if err != nil {
		t.Fatal(err)
	}
	if d, e, n := c.GetDrainDuration().AsDuration(), c.GetTerminationDrainDuration().AsDuration(), c.GetConcurrency().GetValue(); d != 5*time.Minute || e != 2*time.Hour || n != 3 {
		t.Errorf("drain %v, at the end %v, concurrency %d", d, e, n)
	}
}
