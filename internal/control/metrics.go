package control

import (
	"regexp"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	heddlev1alpha1 "github.com/heddle-mesh/heddle/api/heddle/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/xds"
)

var (
	infoDesc        = prometheus.NewDesc("pilot_info", "The Istio API level that this plane speaks.", []string{"version"}, nil)
	clientsDesc     = prometheus.NewDesc("pilot_xds", "Connected proxies.", []string{"version"}, nil)
	uptimeDesc      = prometheus.NewDesc("istiod_uptime_seconds", "Time since the plane began.", nil, nil)
	rootExpiryDesc  = prometheus.NewDesc("citadel_server_root_cert_expiry_timestamp", "When the signing certificate ends, in seconds since 1970.", nil, nil)
	membersDesc     = prometheus.NewDesc("heddle_members", "Namespaces of the mesh, by the phase of their Membership.", []string{"phase"}, nil)
	unreadDesc      = prometheus.NewDesc("heddle_unread_members", "Namespaces of the mesh that this plane has not read yet.", nil, nil)
	marshalledDesc  = prometheus.NewDesc("heddle_xds_marshalled_total", "Messages and fragments marshalled, once for all clients.", nil, nil)
	responsesDesc   = prometheus.NewDesc("heddle_xds_responses_total", "Discovery responses sent.", nil, nil)
	bytesDesc       = prometheus.NewDesc("heddle_xds_response_bytes_total", "Bytes of discovery responses sent.", nil, nil)
	refusedDesc     = prometheus.NewDesc("heddle_xds_refused_subscriptions_total", "Streams that were ended because their client asked for too many names.", nil, nil)
	evaluationsDesc = prometheus.NewDesc("heddle_table_evaluations_total", "Rows evaluated, by table.", []string{"table"}, nil)
	evaluationDesc  = prometheus.NewDesc("heddle_table_seconds_total", "Time spent in evaluating rows, by table.", []string{"table"}, nil)
)

var minorVersion = regexp.MustCompile(`^v?(1\.[0-9]{1,2})\.`)

// label makes of what a client calls its version one of a hundred labels: a client could make up any number.
func (m *metrics) label(version string) string {
	if version == m.options.apiVersion() {
		return version
	}
	if minor := minorVersion.FindStringSubmatch(version); minor != nil {
		return minor[1]
	}
	return "unknown"
}

// metrics reads the plane's counters when it is scraped, so that an idle plane does nothing.
type metrics struct {
	options   Options
	began     time.Time
	server    *xds.Server
	meters    func() []graph.Meter
	members   *members
	signerEnd func() time.Time
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, ch) }

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	gauge(infoDesc, 1, m.options.apiVersion())
	gauge(uptimeDesc, time.Since(m.began).Seconds())
	gauge(rootExpiryDesc, float64(m.signerEnd().Unix()))
	versions := map[string]float64{m.options.apiVersion(): 0}
	for _, c := range m.server.Clients() {
		if meta, ok := c.Session.Meta.(*client); ok {
			if !meta.caller.Debug {
				versions[m.label(meta.version)]++
			}
		}
	}
	for v, n := range versions {
		gauge(clientsDesc, n, v)
	}
	for _, phase := range []heddlev1alpha1.Phase{heddlev1alpha1.Joining, heddlev1alpha1.Member, heddlev1alpha1.Leaving} {
		gauge(membersDesc, float64(m.members.in(phase)), string(phase))
	}
	gauge(unreadDesc, float64(len(m.members.unread())))
	s := m.server.Stats()
	counter(marshalledDesc, float64(s.Marshalled))
	counter(responsesDesc, float64(s.Sent))
	counter(bytesDesc, float64(s.Bytes))
	counter(refusedDesc, float64(s.Refused))
	for _, t := range m.meters() {
		counter(evaluationsDesc, float64(t.Evaluated), t.Name)
		counter(evaluationDesc, t.Time.Seconds(), t.Name)
	}
}
