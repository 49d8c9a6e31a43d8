// Package agent starts the one Envoy of its pod and feeds it: bootstrap, configuration relayed from the control plane,
// certificates, readiness, metrics, the application's probes, and an orderly end.
package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// apiLevel is the Istio version that this agent behaves like, unless the pod says otherwise.
const apiLevel = "1.30.3"

// Environment is what a pod tells its agent.
type Environment struct {
	Vars        map[string]string
	Role        string // sidecar, router or waypoint
	Domain      string // of the node id: <namespace>.svc.<cluster domain>
	Labels      string // of the pod, in the form of the downward API
	Annotations string
	Override    string       // the file that ISTIO_BOOTSTRAP_OVERRIDE names, empty for none
	Addresses   []netip.Addr // of the pod's interfaces, used where the pod does not name its own
	CPUs        int
}

// Config is what an agent runs by. Read makes one; tests change its paths and ports.
type Config struct {
	NodeID      string
	NodeCluster string
	Metadata    map[string]any // of the node, as JSON
	Addresses   []netip.Addr   // the pod's, the first is its primary one

	Discovery string // host:port of the control plane
	CA        string // host:port, often the same
	ClusterID string
	CertLife  time.Duration

	Delta       bool
	Concurrency int
	LogLevel    string // Envoy's
	LogByPart   string // Envoy's --component-log-level
	Drain       time.Duration
	EndDrain    time.Duration // from SIGTERM to Envoy's end
	ExitIdle    bool          // after SIGTERM, wait for open connections to end instead
	MinDrain    time.Duration // before the first look at them
	Stats       StatsMatcher

	Probers map[string]Prober
	Scrape  *Scrape

	Override   string // of the bootstrap, YAML or JSON, which Envoy merges over it; empty for none
	Binary     string // Envoy
	Dir        string // for sockets and bootstrap; writable, in memory
	Token      string // file, re-read on each call
	Root       string // file, re-read on each connection
	StatusPort int
	AdminPort  int // on loopback
	ReadyPort  int // Envoy's
	StatsPort  int // Envoy's
}

// StatsMatcher adds to the statistics that Envoy keeps.
type StatsMatcher struct {
	Prefixes []string `json:"inclusionPrefixes"`
	Suffixes []string `json:"inclusionSuffixes"`
	Regexps  []string `json:"inclusionRegexps"`
}

// Scrape says where the application has its metrics.
type Scrape struct {
	Path string `json:"path"`
	Port string `json:"port"`
}

// proxyConfig is the part of istio.mesh.v1alpha1.ProxyConfig, in protojson, that the agent acts on. The generated type
// would register all of Istio's networking API in a process that has to stay small.
type proxyConfig struct {
	DiscoveryAddress         string       `json:"discoveryAddress"`
	ServiceCluster           string       `json:"serviceCluster"`
	BinaryPath               string       `json:"binaryPath"`
	ConfigPath               string       `json:"configPath"`
	Concurrency              *int         `json:"concurrency"`
	DrainDuration            jsonDuration `json:"drainDuration"`
	TerminationDrainDuration jsonDuration `json:"terminationDrainDuration"`
	StatusPort               int          `json:"statusPort"`
	ProxyStatsMatcher        StatsMatcher `json:"proxyStatsMatcher"`
}

// jsonDuration is a google.protobuf.Duration in JSON: "5s".
type jsonDuration time.Duration

func (d *jsonDuration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	v, err := time.ParseDuration(s)
	if err == nil && v < 0 {
		err = fmt.Errorf("duration %q is negative", s)
	}
	*d = jsonDuration(v)
	return err
}

// Read turns the environment that the injector writes into a Config, or names every fault at once.
func Read(e Environment) (Config, error) {
	var faults []error
	fault := func(name string, err error) {
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", name, err))
		}
	}
	must := func(name string) string {
		if e.Vars[name] == "" {
			faults = append(faults, fmt.Errorf("%s is not set: is this pod injected?", name))
		}
		return e.Vars[name]
	}
	p := proxyConfig{
		DiscoveryAddress: "istiod.istio-system.svc:15012", BinaryPath: "/usr/local/bin/envoy", ConfigPath: "/etc/istio/proxy",
		DrainDuration: jsonDuration(45 * time.Second), TerminationDrainDuration: jsonDuration(5 * time.Second), StatusPort: 15020,
	}
	raw := json.RawMessage("{}")
	if v := e.Vars["PROXY_CONFIG"]; v != "" {
		raw = json.RawMessage(v)
		fault("PROXY_CONFIG", json.Unmarshal(raw, &p))
	}
	c := Config{
		Discovery: p.DiscoveryAddress, CA: p.DiscoveryAddress, CertLife: 24 * time.Hour,
		Delta: e.Vars["ISTIO_DELTA_XDS"] != "false", LogLevel: "warning", LogByPart: "misc:error",
		Drain: time.Duration(p.DrainDuration), EndDrain: time.Duration(p.TerminationDrainDuration), Stats: p.ProxyStatsMatcher,
		ExitIdle: e.Vars["EXIT_ON_ZERO_ACTIVE_CONNECTIONS"] == "true", MinDrain: 5 * time.Second,
		Override: e.Override, Binary: p.BinaryPath, Dir: filepath.Clean(p.ConfigPath),
		Token: "/var/run/secrets/tokens/istio-token", Root: "/var/run/secrets/istio/root-cert.pem",
		StatusPort: p.StatusPort, AdminPort: 15000, ReadyPort: 15021, StatsPort: 15090,
	}
	if v := e.Vars["CA_ADDR"]; v != "" {
		c.CA = v
	}
	for name, address := range map[string]string{"discoveryAddress of PROXY_CONFIG": c.Discovery, "CA_ADDR": c.CA} {
		_, _, err := net.SplitHostPort(address)
		fault(name, err)
	}
	if v := e.Vars["XDS_ROOT_CA"]; v != "" {
		c.Root = v
	}
	if v := e.Vars["SECRET_TTL"]; v != "" {
		var err error
		c.CertLife, err = time.ParseDuration(v)
		fault("SECRET_TTL", err)
	}
	if v := e.Vars["MINIMUM_DRAIN_DURATION"]; v != "" {
		var err error
		c.MinDrain, err = time.ParseDuration(v)
		fault("MINIMUM_DRAIN_DURATION", err)
	}
	c.Concurrency = concurrency(p.Concurrency, e.Vars["ISTIO_CPU_LIMIT"], e.CPUs)
	if v := e.Vars["ISTIO_KUBE_APP_PROBERS"]; v != "" {
		fault("ISTIO_KUBE_APP_PROBERS", json.Unmarshal([]byte(v), &c.Probers))
	}
	var err error
	c.Scrape, err = scrapeOf(e.Vars["ISTIO_PROMETHEUS_ANNOTATIONS"], c.StatusPort)
	fault("ISTIO_PROMETHEUS_ANNOTATIONS", err)
	c.Addresses, err = addresses(e)
	fault("INSTANCE_IPS", err)

	pod, namespace := must("POD_NAME"), must("POD_NAMESPACE")
	labels := parseDownward(e.Labels)
	c.NodeCluster = p.ServiceCluster
	if app := labels["app"]; c.NodeCluster == "" && app != "" {
		c.NodeCluster = app + "." + namespace
	}
	if c.NodeCluster == "" {
		c.NodeCluster = "istio-proxy"
	}
	c.Metadata, err = nodeMetadata(e, c, raw, labels)
	fault("ISTIO_METAJSON_*", err)
	c.ClusterID, _ = c.Metadata["CLUSTER_ID"].(string)
	if len(faults) > 0 {
		return Config{}, fmt.Errorf("read the pod's settings: %w", errors.Join(faults...))
	}
	c.NodeID = strings.Join([]string{e.Role, c.Addresses[0].String(), pod + "." + namespace, e.Domain}, "~")
	return c, nil
}

// concurrency is the number of Envoy's workers: as configured (0: one for each CPU), else the CPU limit rounded up.
func concurrency(configured *int, limit string, cpus int) int {
	if configured != nil && *configured > 0 {
		return *configured
	}
	if v, err := strconv.ParseFloat(limit, 64); configured == nil && err == nil && v > 0 {
		return min(int(math.Ceil(v)), cpus)
	}
	return cpus
}

// scrapeOf reads the pod's annotations for Prometheus, from before they were pointed at the agent; nil if there is nothing to
// scrape. What is said to be on the agent's own port is its own answer, which would grow without end.
func scrapeOf(annotations string, own int) (*Scrape, error) {
	if annotations == "" {
		return nil, nil
	}
	var a struct {
		Scrape
		On string `json:"scrape"`
	}
	if err := json.Unmarshal([]byte(annotations), &a); err != nil || a.On == "false" {
		return nil, err
	}
	if a.Path == "" {
		a.Path = "/metrics"
	}
	if a.Port == "" {
		a.Port = "80"
	}
	n, err := strconv.ParseUint(a.Port, 10, 16)
	if err != nil {
		return nil, err
	}
	if int(n) == own {
		return nil, nil
	}
	return &a.Scrape, nil
}

func addresses(e Environment) ([]netip.Addr, error) {
	var found []netip.Addr
	for _, s := range strings.Split(e.Vars["INSTANCE_IP"]+","+e.Vars["INSTANCE_IPS"], ",") {
		if s == "" {
			continue
		}
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(found, a) {
			found = append(found, a)
		}
	}
	if len(found) == 0 {
		found = slices.DeleteFunc(slices.Clone(e.Addresses), func(a netip.Addr) bool { return a.IsLoopback() || a.IsLinkLocalUnicast() })
	}
	if len(found) == 0 {
		return nil, errors.New("the pod has no address")
	}
	return found, nil
}

// nodeMetadata gathers what the plane is told about the node: ISTIO_META_* as text, ISTIO_METAJSON_* as JSON, and the pod.
func nodeMetadata(e Environment, c Config, proxyConfig json.RawMessage, labels map[string]string) (map[string]any, error) {
	m := map[string]any{
		"ISTIO_VERSION": apiLevel, "CLUSTER_ID": "Kubernetes",
		"NAME": e.Vars["POD_NAME"], "NAMESPACE": e.Vars["POD_NAMESPACE"], "SERVICE_ACCOUNT": e.Vars["SERVICE_ACCOUNT"],
		"PROXY_CONFIG": proxyConfig, "LABELS": labels, "ANNOTATIONS": parseDownward(e.Annotations),
		"ENVOY_STATUS_PORT": c.ReadyPort, "ENVOY_PROMETHEUS_PORT": c.StatsPort,
	}
	var ips []string
	for _, a := range c.Addresses {
		ips = append(ips, a.String())
	}
	m["INSTANCE_IPS"] = strings.Join(ips, ",")
	for name, v := range e.Vars {
		if key, ok := strings.CutPrefix(name, "ISTIO_META_"); ok {
			m[key] = v
		}
		if key, ok := strings.CutPrefix(name, "ISTIO_METAJSON_"); ok {
			if !json.Valid([]byte(v)) {
				return nil, fmt.Errorf("%s is not JSON", name)
			}
			m[key] = json.RawMessage(v)
		}
	}
	return m, nil
}

// parseDownward reads key="value" lines, as the kubelet writes labels and annotations.
func parseDownward(file string) map[string]string {
	m := map[string]string{}
	for line := range strings.Lines(file) {
		key, quoted, _ := strings.Cut(strings.TrimSpace(line), "=")
		if v, err := strconv.Unquote(quoted); err == nil {
			m[key] = v
		}
	}
	return m
}

// LogLevel reads Istio's --log_output_level: the level of the scope default, else of the bare word.
func LogLevel(s string) slog.Level {
	level := slog.LevelInfo
	for scope := range strings.SplitSeq(s, ",") {
		name, v, ok := strings.Cut(scope, ":")
		if !ok {
			name, v = "default", scope
		}
		if name == "default" || name == "all" {
			switch v {
			case "debug":
				level = slog.LevelDebug
			case "warn", "warning":
				level = slog.LevelWarn
			case "error", "fatal", "none":
				level = slog.LevelError
			}
		}
	}
	return level
}
