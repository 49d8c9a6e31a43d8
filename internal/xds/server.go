package xds

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
)

// Group is a set of resources that many clients share.
type Group string

// Change replaces and removes resources of one type in a group. A group without resources and clients is forgotten.
type Change struct {
	Group  Group
	Type   string
	Set    []Resource // or Hidden
	Remove []string
}

// TypeRule says how resources of a type are served.
type TypeRule struct {
	URL         string
	Wildcard    bool   // an empty subscription means all; a state-of-the-world response then holds them all
	Order       int    // additions are sent in this order, removals in reverse; unique
	ResendAfter string // a type of lower Order: when it sends a name, this type's resource of the same name is sent after it, even if unchanged
	NeverRemove bool   // clients are never told that a resource is gone
	// Composed: a resource is put together of what many places hold, so that one that lacks a part looks like any other.
	// See Server.Partial.
	Composed bool
}

// Admission is a caller whose right to speak to the server is proved by what came before its first message.
type Admission struct {
	ID    string // of the caller; what its streams may hold together is bounded
	Enter func(h Hello) (*Session, error)
}

// Hello is the first request of a stream.
type Hello struct {
	Node Node
	Type string
}

// Session is what an admitted client may hold. It is not changed after Admit has returned it.
type Session struct {
	ID   string // of the client; streams of one client share it
	Meta any    // for who reads Clients
	// Groups returns what the client holds; later ones win by name, and may hide one of earlier ones. While the group that it needs is empty (one that is
	// yet to be published, perhaps) the client is sent nothing: what it has from before would be taken from it. It needs
	// none if needs is "". Groups is called on admission and by a Publish that names the session, within the step that it
	// makes: it must neither block nor call the server. Nil: none.
	Groups func() (groups []Group, needs Group)
	// Confirm is asked once Close can find the stream; its error, a gRPC status, ends it. What Admit found true may have
	// ended before. Nil: nothing can.
	Confirm func() error
	// Ask fetches resources that no group holds: names of a type in the table, or any request of a type that is not.
	// It may return fewer than asked. An error of gRPC status ends the stream for types outside the table. Nil: none.
	Ask func(ctx context.Context, typeURL string, names []string) ([]Resource, error)
	// OnNack is told of each rejected response: its version, the client's text, and the origins of its resources. Where
	// the form allows, a rejected response is first sent again in parts, and only what is alone to blame is told. May be nil.
	OnNack func(typeURL, version, detail string, origins []string)
}

func (s *Session) groups() ([]Group, Group) {
	if s.Groups == nil {
		return nil, ""
	}
	return s.Groups()
}

// Options configure a Server; Types and Admit are required.
type Options struct {
	Log   *slog.Logger // nil: none
	Types []TypeRule
	// Admit authenticates a stream by peer and metadata, which the context carries; nothing of the stream is read before.
	// Enter then authorises it on its first request; no further one is read before. Errors, gRPC statuses, end the stream.
	Admit func(ctx context.Context) (Admission, error)
	// Latest tells of which revision it is at least what sessions say now of their Groups: a stream that begins when that is yet to
	// be published is told nothing before it is. Nil: of none that is not.
	Latest       func() uint64
	ControlPlane string        // control_plane.identifier of answers to types outside the table
	MaxBytes     int           // of memory for the names that streams of one Admission.ID ask for and no group of theirs holds; 0: 16 MB
	MaxStreams   int           // of one Admission.ID; 0: 16
	WriteTimeout time.Duration // a client that leaves no room for a response for so long is cut; 0: 30 s
}

// Stats count since the start.
type Stats struct {
	Marshalled uint64 // messages and fragments that were marshalled for what was published
	Sent       uint64 // responses
	Bytes      uint64 // of responses, without gRPC's framing
	Refused    uint64 // streams that were ended because they asked for too many names
}

// ClientStatus is one stream.
type ClientStatus struct {
	Session   *Session
	Connected time.Time
	Types     []TypeStatus // only subscribed ones, by URL
}

// Sync says whether a client has what it should have of a type.
type Sync int

// NotSent: subscribed, nothing sent yet. Synced: the last response was accepted. Stale: it was not answered yet.
// Rejected: a resource that the client refused has neither been replaced nor removed.
const (
	NotSent Sync = iota
	Synced
	Stale
	Rejected
)

// TypeStatus is one type of a stream.
type TypeStatus struct {
	URL         string
	Sync        Sync
	Sent, Acked string    // nonces of the last response sent, and of the last one accepted
	Updated     time.Time // when the last response was sent
	Error       string    // the client's last text, if Sync is Rejected
	ErrorAt     time.Time
}

// Server serves AggregatedDiscoveryService. Its methods are safe for concurrent use.
type Server struct {
	o     Options
	nonce atomic.Uint64 // begins anywhere, so that no two servers issue the same
	names *nameTable

	marshalled, sent, bytes, refused atomic.Uint64

	running sync.WaitGroup // handlers, and what they started

	mu      sync.RWMutex // guards the fields below; never held with a stream's
	rev     uint64       // of the last Publish
	version string       // of responses: rev
	edit    uint64       // of the last Publish
	groups  map[Group]*group
	callers map[string]*caller              // by Admission.ID
	clients map[string]map[*stream]struct{} // by Session.ID
	streams map[*stream]struct{}            // also those not admitted yet
	late    map[*stream]struct{}            // whose groups are not what they ask for, as what they need of that is not there yet
	ended   bool
	partial bool
}

// NewServer returns a server that holds nothing.
func NewServer(o Options) *Server {
	o.MaxBytes = cmp.Or(o.MaxBytes, 16<<20)
	o.MaxStreams = cmp.Or(o.MaxStreams, 16)
	o.WriteTimeout = cmp.Or(o.WriteTimeout, 30*time.Second)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		o: o, names: newNameTable(), version: "0", groups: map[Group]*group{}, callers: map[string]*caller{},
		clients: map[string]map[*stream]struct{}{}, streams: map[*stream]struct{}{}, late: map[*stream]struct{}{},
	}
	s.nonce.Store(rand.Uint64())
	return s
}

// Register adds the service, with both of its methods.
func (s *Server) Register(r grpc.ServiceRegistrar) { r.RegisterService(serviceDesc(s.serve), nil) }

// Run ends all streams when ctx ends, refuses further ones, and returns when all have ended.
func (s *Server) Run(ctx context.Context) error {
	<-ctx.Done()
	s.mu.Lock()
	s.ended = true
	for st := range s.streams {
		st.cancel(errEnded)
	}
	s.mu.Unlock()
	s.running.Wait()
	return nil
}

// Publish makes the changes visible in one step and wakes the streams that hold a touched group. In the same step the
// sessions named in moved get the groups that they ask for now, or as soon as what they need of them is there. Responses name
// rev as their version. It waits for no stream: each compares what it has told with what there is when it gets to it.
func (s *Server) Publish(rev uint64, changes []Change, moved ...string) {
	for _, ch := range changes {
		s.count(ch.Set)
	}
	for _, st := range s.publish(rev, changes, moved) {
		st.poke()
	}
}

func (s *Server) publish(rev uint64, changes []Change, moved []string) (woken []*stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rev, s.version = rev, strconv.FormatUint(rev, 10)
	s.edit++
	touched := map[*group]struct{}{}
	for _, ch := range changes {
		g := s.groupLocked(ch.Group)
		if g.apply(s.edit, ch) {
			touched[g] = struct{}{}
		}
		s.dropLocked(ch.Group)
	}
	for g := range touched {
		woken = slices.AppendSeq(woken, maps.Keys(g.streams))
	}
	for _, id := range moved {
		maps.Copy(s.late, s.clients[id])
	}
	for st := range s.late {
		if s.moveLocked(st) {
			woken = append(woken, st)
		}
	}
	return woken
}

// moveLocked gives a stream the groups that its session asks for, and reports whether it has others now. While what it needs of
// them is not there it keeps those that it has; one that is to have none is told nothing, also not that what it has is gone.
func (s *Server) moveLocked(st *stream) bool {
	groups, needs := st.session.groups()
	needed := s.neededLocked(needs)
	if needed != nil && needed.empty() {
		if len(groups) == 0 {
			st.needs = needed
		}
		return false
	}
	delete(s.late, st)
	if slices.Equal(groups, st.groups) && needed == st.needs {
		return false
	}
	s.layerLocked(st, groups, needs)
	return true
}

// Partial says whether the groups may lack what clients were told before, by another server or this one's predecessor.
// While they do, no client loses what it brings: it is sent neither the removal of a resource nor, of a type that is
// Composed, another form of it, unless that is in the group which the client needs; a state-of-the-world client, which is
// told of a removal by silence, gets no response of a wildcard type. All else goes on. When the groups are whole, every
// client is told what was held back.
func (s *Server) Partial(partial bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.partial == partial {
		return
	}
	s.partial = partial
	for st := range s.streams {
		st.poke()
	}
}

func (s *Server) groupLocked(name Group) *group {
	g := s.groups[name]
	if g == nil {
		g = newGroup(s.names.hash)
		s.groups[name] = g
	}
	return g
}

func (s *Server) dropLocked(name Group) {
	if g := s.groups[name]; g != nil && g.empty() && len(g.streams) == 0 {
		delete(s.groups, name)
	}
}

// neededLocked returns the group that a client needs; nil if it needs none.
func (s *Server) neededLocked(needs Group) *group {
	if g := s.groups[needs]; g != nil || needs == "" {
		return g
	}
	return newGroup(s.names.hash)
}

// layerLocked gives a stream its groups in place of those that it had.
func (s *Server) layerLocked(st *stream, groups []Group, needs Group) {
	for _, name := range st.groups {
		delete(s.groups[name].streams, st)
	}
	old := st.groups
	st.groups, st.layers = slices.Clone(groups), make([]*group, 0, len(groups))
	for _, name := range groups {
		g := s.groupLocked(name)
		g.streams[st] = struct{}{}
		st.layers = append(st.layers, g)
	}
	st.needs = s.neededLocked(needs)
	for _, name := range old {
		s.dropLocked(name)
	}
}

// Close ends the streams whose session matches, with err as gRPC status; match may be nil for all. It does not wait.
func (s *Server) Close(match func(*Session) bool, err error) {
	for _, st := range s.admitted() {
		if match == nil || match(st.session) {
			st.cancel(err)
		}
	}
}

// admitted returns the streams that have a session, by its ID and by age.
func (s *Server) admitted() []*stream {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []*stream
	for _, of := range s.clients {
		out = slices.AppendSeq(out, maps.Keys(of))
	}
	slices.SortFunc(out, func(a, b *stream) int {
		return cmp.Or(strings.Compare(a.session.ID, b.session.ID), a.connected.Compare(b.connected))
	})
	return out
}

// Clients returns the streams, by Session.ID and by age.
func (s *Server) Clients() []ClientStatus {
	streams := s.admitted()
	out := make([]ClientStatus, len(streams))
	for i, st := range streams {
		out[i] = st.status()
	}
	return out
}

// Resources returns what a client was last sent of a type, by name. A client with several streams has the newest's.
func (s *Server) Resources(sessionID, typeURL string) []Resource {
	streams := slices.DeleteFunc(s.admitted(), func(st *stream) bool { return st.session.ID != sessionID })
	if len(streams) == 0 {
		return nil
	}
	return streams[len(streams)-1].resources(typeURL)
}

func (s *Server) count(resources []Resource) {
	for _, r := range resources {
		s.marshalled.Add(r.fresh())
	}
}

// Stats returns the counts.
func (s *Server) Stats() Stats {
	return Stats{Marshalled: s.marshalled.Load(), Sent: s.sent.Load(), Bytes: s.bytes.Load(), Refused: s.refused.Load()}
}
