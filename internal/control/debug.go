package control

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strings"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	statusv3 "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/heddle-mesh/heddle/internal/graph"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/obs"
	"github.com/heddle-mesh/heddle/internal/xds"
)

const (
	debugURL      = "istio.io/debug"
	syncURL       = "istio.io/debug/syncz"
	configDumpURL = "istio.io/debug/config_dump"

	// istioctl matches on this text to go on to the next replica.
	notConnected = "Proxy not connected to this Pilot instance. It may be connected to another instance."
	noProxyID    = "You must provide a proxyID in the query string"
)

// debug answers what istioctl and heddle ask about a running plane, over xDS and over HTTP.
type debug struct {
	options  Options
	server   *xds.Server
	pipeline *Pipeline
	meters   func() []graph.Meter
	admin    *obs.Admin // whose pages do something: they are served over HTTP alone, where there are methods and time
}

// identifier is control_plane.identifier of debug answers; istioctl tells replicas apart by its ID.
func (o Options) identifier() string {
	id, _ := json.Marshal(map[string]any{ // a map of strings cannot fail
		"Component": "istiod", "ID": o.PodName,
		"Info": map[string]string{
			"version": o.apiVersion(), "revision": obs.Version, "golang_version": runtime.Version(),
			"status": "Clean", "tag": obs.Version,
		},
	})
	return string(id)
}

// answer serves the debug types of xDS. The caller's right to ask has been checked.
func (d *debug) answer(typeURL string, names []string) ([]xds.Resource, error) {
	var messages []proto.Message
	switch typeURL {
	case syncURL:
		for _, c := range d.proxies() {
			messages = append(messages, syncStatus(c))
		}
	case configDumpURL:
		if len(names) != 1 {
			return nil, status.Errorf(codes.InvalidArgument, "%s takes one name, POD.NAMESPACE", configDumpURL)
		}
		proxyID, _, _ := strings.Cut(names[0], "?")
		if id, why := d.session(proxyID); id != "" {
			messages = d.configDump(id)
		} else if why != notConnected { // of which an empty answer tells, as istioctl goes on to the next replica
			return nil, status.Error(codes.InvalidArgument, why)
		}
	case debugURL:
		if len(names) != 1 {
			return nil, status.Errorf(codes.InvalidArgument, "%s takes one name, a debug path such as syncz", debugURL)
		}
		_, body := d.page(names[0])
		return []xds.Resource{xds.Raw(debugURL, names[0], body)}, nil
	default:
		if slices.ContainsFunc(pushOrder, func(t xds.TypeRule) bool { return t.URL == typeURL }) {
			return nil, nil // of these the groups are all that there is
		}
		return nil, status.Errorf(codes.InvalidArgument, "type %q is not served here", typeURL)
	}
	resources := make([]xds.Resource, 0, len(messages))
	for i, m := range messages {
		r, err := xds.Seal("type.googleapis.com/"+string(m.ProtoReflect().Descriptor().FullName()), fmt.Sprint(i), "", m)
		if err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
		resources = append(resources, r)
	}
	return resources, nil
}

// proxies returns the streams of real proxies, by id: those with a PROXY_CONFIG, which istioctl's own streams lack.
func (d *debug) proxies() []xds.ClientStatus {
	all := d.server.Clients()
	return slices.DeleteFunc(all, func(c xds.ClientStatus) bool {
		meta, ok := c.Session.Meta.(*client)
		return !ok || !meta.proxy
	})
}

var configStatus = map[xds.Sync]statusv3.ConfigStatus{
	xds.NotSent: statusv3.ConfigStatus_NOT_SENT, xds.Synced: statusv3.ConfigStatus_SYNCED,
	xds.Stale: statusv3.ConfigStatus_STALE, xds.Rejected: statusv3.ConfigStatus_ERROR,
}

func syncStatus(c xds.ClientStatus) *statusv3.ClientConfig {
	meta := c.Session.Meta.(*client)
	fields := map[string]*structpb.Value{
		"CLUSTER_ID":    structpb.NewStringValue(string(meta.caller.Cluster)),
		"NAMESPACE":     structpb.NewStringValue(meta.caller.Identity.Namespace),
		"ISTIO_VERSION": structpb.NewStringValue(meta.version),
	}
	out := &statusv3.ClientConfig{Node: &corev3.Node{Id: meta.name(), Metadata: &structpb.Struct{Fields: fields}}}
	for _, t := range withTrust(c.Types) {
		x := &statusv3.ClientConfig_GenericXdsConfig{TypeUrl: t.URL, ConfigStatus: configStatus[t.Sync]}
		if !t.Updated.IsZero() {
			x.LastUpdated = timestamppb.New(t.Updated)
		}
		if t.Error != "" {
			x.ErrorState = &adminv3.UpdateFailureState{Details: t.Error, LastUpdateAttempt: timestamppb.New(t.ErrorAt)}
		}
		out.GenericXdsConfigs = append(out.GenericXdsConfigs, x)
	}
	return out
}

// withTrust counts the secret of whom listeners let in as a part of the listeners: tools print a column for each type, and the
// sidecars that their documents show have none of secrets.
func withTrust(types []xds.TypeStatus) []xds.TypeStatus {
	var out []xds.TypeStatus
	var trust xds.TypeStatus
	for _, t := range types {
		if t.URL == secretType {
			trust = t
		} else {
			out = append(out, t)
		}
	}
	for i := range out {
		if l := &out[i]; l.URL == listenerType && (trust.Sync == xds.Rejected || trust.Sync == xds.Stale && l.Sync == xds.Synced) {
			l.Sync, l.Error, l.ErrorAt = trust.Sync, trust.Error, trust.ErrorAt
		}
	}
	return out
}

// session returns the id of the streams of a proxy, or why there is none that is meant.
func (d *debug) session(proxyID string) (id, why string) {
	var ids []string
	for _, c := range d.proxies() { // by id
		if c.Session.ID == proxyID {
			return proxyID, ""
		}
		if c.Session.Meta.(*client).name() == proxyID {
			ids = append(ids, c.Session.ID)
		}
	}
	switch ids = slices.Compact(ids); len(ids) {
	case 0:
		return "", notConnected
	case 1:
		return ids[0], ""
	}
	return "", fmt.Sprintf("%s is in several clusters: name one of %s", proxyID, strings.Join(ids, ", "))
}

// configDump returns the parts of Envoy's ConfigDump as this plane has sent them.
func (d *debug) configDump(id string) []proto.Message {
	clusters, listeners, routes := &adminv3.ClustersConfigDump{}, &adminv3.ListenersConfigDump{}, &adminv3.RoutesConfigDump{}
	for _, r := range d.server.Resources(id, clusterType) {
		clusters.DynamicActiveClusters = append(clusters.DynamicActiveClusters, &adminv3.ClustersConfigDump_DynamicCluster{VersionInfo: r.Version, Cluster: r.Any()})
	}
	for _, r := range d.server.Resources(id, listenerType) {
		listeners.DynamicListeners = append(listeners.DynamicListeners, &adminv3.ListenersConfigDump_DynamicListener{
			Name: r.Name, ActiveState: &adminv3.ListenersConfigDump_DynamicListenerState{VersionInfo: r.Version, Listener: r.Any()},
		})
	}
	for _, r := range d.server.Resources(id, routeType) {
		routes.DynamicRouteConfigs = append(routes.DynamicRouteConfigs, &adminv3.RoutesConfigDump_DynamicRouteConfig{VersionInfo: r.Version, RouteConfig: r.Any()})
	}
	return []proto.Message{clusters, listeners, routes}
}

// pages are what is to be read, by path below /debug/.
func (d *debug) pages() map[string]func(url.Values) (any, int) {
	return map[string]func(url.Values) (any, int){
		"syncz": d.syncz, "clusterz": d.clusterz, "connections": d.connections,
		"config_dump": d.configDumpPage, "why": d.why, "findings": d.findings, "tables": d.tables, "list": d.list,
	}
}

// page returns what is to be read, by path below /debug/ and query.
func (d *debug) page(path string) (code int, body []byte) {
	path, query, _ := strings.Cut(strings.TrimPrefix(path, "/debug/"), "?")
	values, _ := url.ParseQuery(query) // what cannot be parsed is not there
	if f := d.pages()[path]; f != nil {
		return encode(f(values))
	}
	if d.admin.Pages()[path] != nil {
		return encode("page "+path+" is served over HTTP, on port 15014", http.StatusNotFound)
	}
	return http.StatusNotFound, []byte("404 page not found\n")
}

func (d *debug) list(url.Values) (any, int) {
	var names []string
	for n := range d.pages() {
		names = append(names, "/debug/"+n)
	}
	for n := range d.admin.Pages() {
		names = append(names, "/debug/"+n)
	}
	slices.Sort(names)
	return names, http.StatusOK
}

func encode(v any, code int) (int, []byte) {
	if text, ok := v.(string); ok {
		return code, []byte(text + "\n")
	}
	if raw, ok := v.(json.RawMessage); ok {
		return code, raw
	}
	body, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return http.StatusInternalServerError, []byte(err.Error())
	}
	return code, append(body, '\n')
}

// syncz is the HTTP form of the sync status, as istioctl version reads it.
func (d *debug) syncz(url.Values) (any, int) {
	type row struct {
		ClusterID    string `json:"cluster_id"`
		Proxy        string `json:"proxy"`
		ProxyType    string `json:"proxy_type"`
		ProxyVersion string `json:"proxy_version"`
		IstioVersion string `json:"istio_version"`

		ClusterSent   string `json:"cluster_sent,omitempty"`
		ClusterAcked  string `json:"cluster_acked,omitempty"`
		ListenerSent  string `json:"listener_sent,omitempty"`
		ListenerAcked string `json:"listener_acked,omitempty"`
		RouteSent     string `json:"route_sent,omitempty"`
		RouteAcked    string `json:"route_acked,omitempty"`
		EndpointSent  string `json:"endpoint_sent,omitempty"`
		EndpointAcked string `json:"endpoint_acked,omitempty"`
	}
	rows := []row{}
	for _, c := range d.proxies() {
		meta := c.Session.Meta.(*client)
		r := row{
			ClusterID: string(meta.caller.Cluster), Proxy: meta.name(), ProxyType: meta.proxyType,
			ProxyVersion: meta.version, IstioVersion: meta.version,
		}
		for _, t := range c.Types {
			switch t.URL {
			case clusterType:
				r.ClusterSent, r.ClusterAcked = t.Sent, t.Acked
			case listenerType:
				r.ListenerSent, r.ListenerAcked = t.Sent, t.Acked
			case routeType:
				r.RouteSent, r.RouteAcked = t.Sent, t.Acked
			case assignmentType:
				r.EndpointSent, r.EndpointAcked = t.Sent, t.Acked
			}
		}
		rows = append(rows, r)
	}
	return rows, http.StatusOK
}

func (d *debug) clusterz(url.Values) (any, int) {
	return []map[string]string{{"id": string(d.options.Cluster), "syncStatus": "synced"}}, http.StatusOK
}

func (d *debug) connections(url.Values) (any, int) {
	type row struct {
		ConnectionID string `json:"connectionId"`
		ConnectedAt  string `json:"connectedAt"`
	}
	rows := []row{}
	for _, c := range d.proxies() {
		rows = append(rows, row{c.Session.Meta.(*client).name(), c.Connected.UTC().Format("2006-01-02T15:04:05Z")})
	}
	return map[string]any{"totalClients": len(rows), "clients": rows}, http.StatusOK
}

func (d *debug) configDumpPage(q url.Values) (any, int) {
	if q.Get("proxyID") == "" {
		return noProxyID, http.StatusBadRequest
	}
	id, why := d.session(q.Get("proxyID"))
	if id == "" {
		return why, http.StatusNotFound
	}
	parts := d.configDump(id)
	dump := &adminv3.ConfigDump{}
	for _, p := range parts {
		a, err := anypb.New(p)
		if err != nil {
			return err.Error(), http.StatusInternalServerError
		}
		dump.Configs = append(dump.Configs, a)
	}
	body, err := protojson.Marshal(dump)
	if err != nil {
		return err.Error(), http.StatusInternalServerError
	}
	return json.RawMessage(body), http.StatusOK
}

// why says which object caused a resource that a proxy holds: what `heddle why` prints.
func (d *debug) why(q url.Values) (any, int) {
	type cause struct{ Type, Name, Version, Origin string }
	if q.Get("proxyID") == "" {
		return noProxyID, http.StatusBadRequest
	}
	id, why := d.session(q.Get("proxyID"))
	if id == "" {
		return why, http.StatusNotFound
	}
	name := q.Get("resource")
	causes := []cause{}
	for _, t := range pushOrder {
		for _, r := range d.server.Resources(id, t.URL) {
			if name == "" || r.Name == name {
				causes = append(causes, cause{short(t.URL), r.Name, r.Version, r.Origin})
			}
		}
	}
	return causes, http.StatusOK
}

func (d *debug) findings(url.Values) (any, int) {
	all := d.pipeline.Findings()
	if all == nil {
		all = []mesh.Finding{}
	}
	return all, http.StatusOK
}

func (d *debug) tables(url.Values) (any, int) { return d.meters(), http.StatusOK }
