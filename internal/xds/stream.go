package xds

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
)

const (
	healthInfo   = "type.googleapis.com/istio.v1.HealthInformation" // a report, not a request
	maxNode      = 1 << 20                                          // bytes; the labels and annotations of a Pod have a quarter of that
	helloTimeout = 15 * time.Second                                 // from stream to first request; a stranger may hold a stream no longer
	askTimeout   = 10 * time.Second                                 // of Session.Ask
	maxForeign   = 64                                               // types outside the table, and questions waiting, of a stream
)

var errEnded = status.Error(codes.Unavailable, "server is shutting down; connect again")

// stream is one client's stream. Its handler sends, one goroutine reads, and a third lives while a message is written.
type stream struct {
	server    *Server
	grpc      grpc.ServerStream
	cancel    context.CancelCauseFunc // ends the stream with a gRPC status
	connected time.Time
	wake      chan struct{} // capacity 1: something may be due

	groups []Group // with the fields below guarded by Server.mu
	layers layers
	needs  *group // nothing is sent while it is empty; nil: none
	caller *caller

	mu        sync.Mutex // guards the fields below
	session   *Session   // set once, before the stream is in Server.clients
	client    *client
	weight    int64               // of its names, in caller.bytes
	removed   bool                // what is still read of it counts no more
	questions []*request          // of types outside the table, to be answered once each
	answered  map[string]*request // by type, the last one with its answer's nonce
}

// caller is who was authenticated, and what its streams take together.
type caller struct {
	id      string
	streams int          // guarded by Server.mu
	bytes   atomic.Int64 // weight of names
}

// serve handles a stream of either method.
func (s *Server) serve(f *form, g grpc.ServerStream) error {
	ctx, cancel := context.WithCancelCause(g.Context())
	defer cancel(nil)
	st := &stream{
		server: s, grpc: g, cancel: cancel, connected: time.Now(), wake: make(chan struct{}, 1),
		client: newClient(f, s.o.Types), answered: map[string]*request{},
	}
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return errEnded
	}
	s.running.Add(1)
	s.streams[st] = struct{}{}
	s.mu.Unlock()
	defer s.running.Done()
	defer s.remove(st)

	admission, err := s.o.Admit(ctx)
	if err != nil {
		return err
	}
	if err := s.callerOf(st, admission.ID); err != nil {
		return err
	}
	hello, admitted := make(chan *request, 1), make(chan struct{})
	go st.read(ctx, hello, admitted) // ends with the stream, an instant after this function
	if err := st.admit(ctx, admission, hello); err != nil {
		return err
	}
	close(admitted)
	return st.write(ctx)
}

// callerOf counts a stream as one of its caller's.
func (s *Server) callerOf(st *stream, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.callers[id]
	if c == nil {
		c = &caller{id: id}
		s.callers[id] = c
	}
	if c.streams >= s.o.MaxStreams {
		return tooMany("streams of " + id)
	}
	c.streams++
	st.caller = c
	return nil
}

func (s *Server) remove(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st)
	delete(s.late, st)
	if c := st.caller; c != nil {
		st.mu.Lock()
		c.bytes.Add(-st.weight)
		st.removed = true
		st.mu.Unlock()
		if c.streams--; c.streams == 0 {
			delete(s.callers, c.id)
		}
	}
	s.layerLocked(st, nil, "")
	if st.session != nil {
		of := s.clients[st.session.ID]
		delete(of, st)
		if len(of) == 0 {
			delete(s.clients, st.session.ID)
		}
	}
}

// admit waits for the first request and asks Admission.Enter.
func (st *stream) admit(ctx context.Context, admission Admission, hello <-chan *request) error {
	var h Hello
	select {
	case q := <-hello:
		if q.node == nil {
			return status.Error(codes.InvalidArgument, "missing node information")
		}
		if len(q.node) > maxNode {
			return status.Errorf(codes.InvalidArgument, "node information of %d bytes; at most %d are taken", len(q.node), maxNode)
		}
		if err := fields(q.node, func(protowire.Number, []byte) {}); err != nil {
			return status.Error(codes.InvalidArgument, "malformed node information")
		}
		h.Node, h.Type = ReadNode(q.node), q.typeURL
	case <-time.After(helloTimeout):
		return status.Error(codes.DeadlineExceeded, "no request came")
	case <-ctx.Done():
		return ending(ctx)
	}
	session, err := admission.Enter(h)
	if err != nil {
		return err
	}
	st.server.enter(st, session)
	if session.Confirm == nil {
		return nil
	}
	return session.Confirm()
}

// enter makes a stream one of a session's.
func (s *Server) enter(st *stream, session *Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	of := s.clients[session.ID]
	if of == nil {
		of = map[*stream]struct{}{}
		s.clients[session.ID] = of
	}
	of[st] = struct{}{}
	groups, needs := session.groups()
	s.layerLocked(st, groups, needs)
	st.mu.Lock()
	st.session = session
	st.mu.Unlock()
}

// ending returns what a stream ends with.
func ending(ctx context.Context) error {
	err := context.Cause(ctx)
	if errors.Is(err, io.EOF) { // the client has closed its side
		return nil
	}
	if _, ok := status.FromError(err); !ok {
		return status.FromContextError(err).Err()
	}
	return err
}

func tooMany(what string) error { return status.Error(codes.ResourceExhausted, "too many "+what) }

// read takes requests until the stream ends; it never waits for the client to take anything. hello gets the first; the
// next is read when the stream is admitted.
func (st *stream) read(ctx context.Context, hello chan<- *request, admitted <-chan struct{}) {
	for first := true; ; {
		var in frame
		if err := st.grpc.RecvMsg(&in); err != nil {
			st.cancel(err)
			return
		}
		if first {
			h, err := st.client.form.parseHello(in.data)
			switch {
			case err != nil:
				in.data.Free()
				st.cancel(err)
				return
			case h.typeURL == healthInfo:
				in.data.Free()
				continue
			}
			first = false
			hello <- h
			select {
			case <-admitted: // now it is known how many names the client may have
			case <-ctx.Done():
				in.data.Free()
				return
			}
		}
		q, err := st.client.form.parseRequest(in.data, st.mostNames())
		in.data.Free()
		if err == nil && q.typeURL != healthInfo {
			err = st.take(q)
		}
		if err != nil {
			st.refuse(err)
			return
		}
		st.poke()
	}
}

func (st *stream) refuse(err error) {
	if errors.Is(err, errNames) {
		st.server.refused.Add(1)
	}
	st.cancel(err)
}

// mostNames returns how many names of a kind a request may have: those that the client's groups hold, and what may be had
// of others. The type comes after them on the wire.
func (st *stream) mostNames() int {
	st.server.mu.RLock()
	defer st.server.mu.RUnlock()
	held := map[string]int{}
	for _, g := range st.layers {
		for typeURL, names := range g.types {
			held[typeURL] += len(names)
		}
	}
	most := 0
	for _, n := range held {
		most = max(most, n)
	}
	return most + st.server.o.MaxBytes/nameWeight
}

// weigh notes what the stream's names take now, and refuses what is too much for its caller.
func (st *stream) weigh() error {
	s := st.server
	s.mu.RLock()
	defer s.mu.RUnlock()
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.removed {
		return errEnded
	}
	weight := st.client.weight(st.layers)
	for _, q := range st.questions {
		weight += q.weight()
	}
	for _, q := range st.answered {
		weight += q.weight()
	}
	all := st.caller.bytes.Add(int64(weight) - st.weight)
	st.weight = int64(weight)
	if all > int64(s.o.MaxBytes) {
		return errNames
	}
	return nil
}

func (q *request) weight() (bytes int) {
	for _, n := range q.names {
		bytes += nameWeight + len(n)
	}
	return bytes
}

// take applies a request.
func (st *stream) take(q *request) error {
	st.mu.Lock()
	if st.client.sub(q.typeURL) == nil {
		err := st.question(q)
		st.mu.Unlock()
		if err != nil || len(q.names) == 0 {
			return err
		}
		return st.weigh()
	}
	rejected := st.client.request(q, time.Now())
	session := st.session
	st.mu.Unlock()
	if rejected != nil && session.OnNack != nil {
		origins := map[string]struct{}{}
		for _, r := range rejected.resources {
			origins[r.Origin] = struct{}{}
		}
		session.OnNack(q.typeURL, rejected.version, rejected.detail, slices.Sorted(maps.Keys(origins)))
	}
	if len(q.names)+len(q.drop)+len(q.held) == 0 {
		return nil
	}
	return st.weigh()
}

// question notes a request of a type that is not in the table, which is answered once whatever its nonce, unless it is
// the answer to the answer. The caller holds mu.
func (st *stream) question(q *request) error {
	last := st.answered[q.typeURL]
	if q.nack || last != nil && last.nonce == q.nonce && (len(q.names) == 0 || slices.Equal(last.names, q.names)) {
		return nil
	}
	if len(st.questions) >= maxForeign || last == nil && len(st.answered) >= maxForeign {
		return tooMany("requests of types that are not served by subscription")
	}
	st.questions = append(st.questions, q)
	return nil
}

func (st *stream) poke() {
	select {
	case st.wake <- struct{}{}:
	default:
	}
}

func (st *stream) touch(typeURL string, names []string) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.client.touch(typeURL, names)
}

func (st *stream) touchAll() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.client.touchAll()
}

// write sends what is due until the stream ends.
func (st *stream) write(ctx context.Context) error {
	for ctx.Err() == nil { // a stream that is ended is not told, on top, that what it held is gone
		due, questions := st.due()
		for _, m := range due.send {
			if err := st.send(ctx, m, ""); err != nil {
				return err
			}
		}
		for typeURL, names := range due.ask {
			st.ask(ctx, typeURL, names)
		}
		for _, q := range questions {
			if err := st.reply(ctx, q); err != nil {
				return err
			}
		}
		if len(due.ask) > 0 {
			continue
		}
		var again <-chan time.Time
		if !due.again.IsZero() {
			again = time.After(time.Until(due.again))
		}
		select {
		case <-st.wake:
		case <-again:
		case <-ctx.Done():
		}
	}
	return ending(ctx)
}

func (st *stream) due() (step, []*request) {
	st.server.mu.RLock()
	defer st.server.mu.RUnlock()
	st.mu.Lock()
	defer st.mu.Unlock()
	var due step
	if !st.needs.empty() {
		st.client.partial, st.client.own = st.server.partial, st.needs
		due = st.client.next(st.layers, st.session.Ask != nil, time.Now(), st.server.newNonce)
	}
	for _, m := range due.send {
		m.version = st.server.rev
	}
	questions := st.questions
	st.questions = nil
	return due, questions
}

func (s *Server) newNonce() string { return strconv.FormatUint(s.nonce.Add(1), 36) }

// send writes a response, and gives up on a client that does not take it.
func (st *stream) send(ctx context.Context, m *message, controlPlane string) error {
	data := st.client.form.encode(m, controlPlane)
	st.server.sent.Add(1)
	st.server.bytes.Add(uint64(data.Len()))
	written := make(chan error, 1)
	go func() { written <- st.grpc.SendMsg(&frame{data}) }() // ends with the stream at the latest
	late := time.NewTimer(st.server.o.WriteTimeout)
	defer late.Stop()
	select {
	case err := <-written:
		return err
	case <-late.C:
		return status.Error(codes.DeadlineExceeded, "client took no response in time; connect again")
	case <-ctx.Done():
		return ending(ctx)
	}
}

// ask fetches resources of a type in the table that no group holds. An error counts as none: the client must not wait.
func (st *stream) ask(ctx context.Context, typeURL string, names []string) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	found, err := st.session.Ask(ctx, typeURL, names)
	if err != nil {
		st.server.o.Log.LogAttrs(ctx, slog.LevelWarn, "fetch asked resources", slog.String("client", st.session.ID),
			slog.String("type", typeURL), slog.Any("err", err))
	}
	st.server.count(found)
	st.mu.Lock()
	defer st.mu.Unlock()
	st.client.sub(typeURL).answer(names, found)
}

// reply answers a question.
func (st *stream) reply(ctx context.Context, q *request) error {
	m := &message{typeURL: q.typeURL, nonce: st.server.newNonce()} // of no version
	if st.session.Ask != nil {
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		found, err := st.session.Ask(ctx, q.typeURL, q.names)
		if err != nil {
			return err
		}
		st.server.count(found)
		for i := range found {
			m.set = append(m.set, &found[i])
		}
	}
	for _, n := range q.names {
		if n != "*" && !slices.ContainsFunc(m.set, func(r *Resource) bool { return r.Name == n }) {
			m.gone = append(m.gone, n)
		}
	}
	st.mu.Lock()
	st.answered[q.typeURL] = &request{nonce: m.nonce, names: q.names}
	st.mu.Unlock()
	return st.send(ctx, m, st.server.o.ControlPlane)
}

func (st *stream) status() ClientStatus {
	st.mu.Lock()
	defer st.mu.Unlock()
	c := ClientStatus{Session: st.session, Connected: st.connected}
	for _, s := range st.client.subs {
		if !s.asked {
			continue
		}
		t := TypeStatus{URL: s.rule.URL, Sync: s.sync(), Sent: s.nonce, Acked: s.acked, Updated: s.updated}
		if t.Sync == Rejected {
			t.Error, t.ErrorAt = s.detail, s.refusedAt
		}
		c.Types = append(c.Types, t)
	}
	slices.SortFunc(c.Types, func(a, b TypeStatus) int { return strings.Compare(a.URL, b.URL) })
	return c
}

// resources returns what the client was sent of a type. Of what it brought from an earlier stream, the groups know the bytes.
func (st *stream) resources(typeURL string) []Resource {
	st.server.mu.RLock()
	defer st.server.mu.RUnlock()
	st.mu.Lock()
	defer st.mu.Unlock()
	s := st.client.sub(typeURL)
	if s == nil {
		return nil
	}
	var out []Resource
	for _, n := range slices.Sorted(maps.Keys(s.sent)) {
		r := s.sent[n]
		if r != nil && r.body == nil {
			if now, _ := s.want(st.layers, n); now != nil && (r.Version == "" || r.Version == now.Version) {
				r = now
			}
		}
		if r != nil && r.body != nil {
			out = append(out, *r)
		}
	}
	return out
}
