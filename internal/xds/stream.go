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

var (
	errEnded = status.Error(codes.Unavailable, "server is shutting down; connect again")
	errLate  = status.Error(codes.DeadlineExceeded, "client took no response in time; connect again")
)

// stream is one client's stream: one goroutine reads, one sends, and the handler waits until it ends, which ends them.
type stream struct {
	server    *Server
	grpc      grpc.ServerStream
	cancel    context.CancelCauseFunc // ends the stream with a gRPC status
	connected time.Time
	wake      chan struct{} // capacity 1: something may be due
	caller    *caller       // set once, before anything is read
	session   *Session      // set once, before the stream is in Server.clients

	groups []Group // with the fields below guarded by Server.mu
	layers []*group
	needs  *group // nothing is sent while it is empty; nil: none

	mu        sync.Mutex // guards the fields below
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
		client: newClient(f, s.o.Types, s.names),
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
	s.running.Go(func() { st.read(ctx, hello, admitted) }) // ends with the stream, an instant after this function
	if err := st.admit(ctx, admission, hello); err != nil {
		return err
	}
	close(admitted)
	s.running.Go(func() { st.write(ctx) }) // as the reader
	<-ctx.Done()
	return ending(ctx)
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
	c := st.caller
	if c != nil {
		st.mu.Lock()
		c.bytes.Add(-st.weight)
		st.removed = true
		st.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st)
	delete(s.late, st)
	if c != nil {
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
	st.session = session
	s.mu.Lock()
	defer s.mu.Unlock()
	of := s.clients[session.ID]
	if of == nil {
		of = map[*stream]struct{}{}
		s.clients[session.ID] = of
	}
	of[st] = struct{}{}
	groups, needs := session.groups()
	if s.o.Latest != nil && session.Groups != nil && s.o.Latest() > s.rev { // asked after Groups: these may be of that one
		st.needs = newGroup(s.names.hash)
		s.late[st] = struct{}{}
		return
	}
	s.layerLocked(st, groups, needs)
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
	var in frame
	for first := true; ; {
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
		q, err := st.client.form.parseRequest(in.data, st.mostNames(), st.server.o.Types)
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

// look returns what the stream's groups hold now, all of one moment, and the version that responses have of it; ready is false
// while what the client needs is not there. It returns last if they hold that.
func (st *stream) look(last layers) (v view, version string, ready bool) {
	s := st.server
	s.mu.RLock()
	defer s.mu.RUnlock()
	v.partial, v.layers = s.partial, last
	if !slices.EqualFunc(last, st.layers, func(s *snapshot, g *group) bool { return s == g.tip }) {
		v.layers = make(layers, len(st.layers))
		for i, g := range st.layers {
			v.layers[i] = g.tip
		}
	}
	if st.needs == nil {
		return v, s.version, true
	}
	v.own = st.needs.tip
	return v, s.version, !st.needs.empty()
}

// mostNames returns how many names of a kind a request may have: those that the client's groups hold, and what may be had
// of others. The type comes after them on the wire.
func (st *stream) mostNames() (most int) {
	s := st.server
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, rule := range s.o.Types {
		held := 0
		for _, g := range st.layers {
			held += g.tip.of(rule.URL).Len()
		}
		most = max(most, held)
	}
	return most + s.o.MaxBytes/nameWeight
}

// weigh notes what the stream's names take now, and refuses what is too much for its caller.
func (st *stream) weigh() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.removed {
		return errEnded
	}
	weight := st.client.weight()
	for _, q := range st.questions {
		weight += q.weight
	}
	for _, q := range st.answered {
		weight += q.weight
	}
	all := st.caller.bytes.Add(int64(weight) - st.weight)
	st.weight = int64(weight)
	if all > int64(st.server.o.MaxBytes) {
		return errNames
	}
	return nil
}

// take applies a request.
func (st *stream) take(q *request) error {
	names := len(q.names)+len(q.drop)+len(q.held) > 0
	var now view
	if names {
		now, _, _ = st.look(nil)
	}
	st.mu.Lock()
	if st.client.sub(q.typeURL) == nil {
		err := st.question(q)
		st.mu.Unlock()
		if err != nil || !names {
			return err
		}
		return st.weigh()
	}
	rejected := st.client.request(q, now.layers, time.Now())
	st.mu.Unlock()
	if rejected != nil && st.session.OnNack != nil {
		origins := map[string]struct{}{}
		for _, r := range rejected.resources {
			origins[r.Origin] = struct{}{}
		}
		st.session.OnNack(q.typeURL, rejected.version, rejected.detail, slices.Sorted(maps.Keys(origins)))
	}
	if err := st.weigh(); names { // else of those that it had some may be held by now, or none any more, which is not its doing
		return err
	}
	return nil
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
	for _, n := range q.names {
		q.weight += nameWeight + len(n)
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

// write sends what is due until the stream ends.
func (st *stream) write(ctx context.Context) {
	late := time.AfterFunc(st.server.o.WriteTimeout, func() { st.cancel(errLate) })
	late.Stop()
	out := &frame{}
	for ctx.Err() == nil { // a stream that is ended is not told, on top, that what it held is gone
		due, questions := st.due()
		if err := st.send(due.send, out, late); err != nil {
			st.cancel(err)
			return
		}
		for typeURL, names := range due.ask {
			st.ask(ctx, typeURL, names)
		}
		for _, q := range questions {
			if err := st.reply(ctx, q, out, late); err != nil {
				st.cancel(err)
				return
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
}

func (st *stream) due() (due step, questions []*request) {
	v, version, ready := st.look(st.client.view.layers) // which nobody else writes
	st.mu.Lock()
	defer st.mu.Unlock()
	if ready {
		due = st.client.next(v, st.session.Ask != nil, time.Now(), st.server.newNonce)
	}
	for _, m := range due.send {
		m.version = version
	}
	questions, st.questions = st.questions, nil
	return due, questions
}

func (s *Server) newNonce() string { return strconv.FormatUint(s.nonce.Add(1), 36) }

// send writes responses as frames; late ends the stream of a client that does not take one.
func (st *stream) send(messages []*message, out *frame, late *time.Timer) error {
	for _, m := range messages {
		out.data = st.client.form.encode(m)
		st.server.sent.Add(1)
		st.server.bytes.Add(uint64(out.data.Len()))
		late.Reset(st.server.o.WriteTimeout)
		err := st.grpc.SendMsg(out)
		late.Stop()
		out.data = nil
		if err != nil {
			return err
		}
	}
	return nil
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
func (st *stream) reply(ctx context.Context, q *request, out *frame, late *time.Timer) error {
	m := &message{typeURL: q.typeURL, nonce: st.server.newNonce(), controlPlane: st.server.o.ControlPlane} // of no version
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
	if st.answered == nil {
		st.answered = map[string]*request{}
	}
	st.answered[q.typeURL] = &request{nonce: m.nonce, names: q.names, weight: q.weight}
	st.mu.Unlock()
	return st.send([]*message{m}, out, late)
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
func (st *stream) resources(typeURL string) (out []Resource) {
	now, _, _ := st.look(nil)
	st.mu.Lock()
	defer st.mu.Unlock()
	s := st.client.sub(typeURL)
	if s == nil {
		return nil
	}
	s.each(func(name string, r *Resource) {
		if r != nil && r != never && r.body == nil {
			if is, _ := s.want(now.layers, name); is != nil && (r.Version == "" || r.Version == is.Version) {
				r = is
			}
		}
		if r != nil && r.body != nil {
			out = append(out, *r)
		}
	})
	slices.SortFunc(out, func(a, b Resource) int { return strings.Compare(a.Name, b.Name) })
	return out
}
