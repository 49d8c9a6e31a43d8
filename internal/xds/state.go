package xds

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"
)

// patience is how long a response without an answer holds back what must come after it. A proxy withholds the answer
// to clusters until they are warm; one that never warms must not keep policies away. Equals the proxies' initial_fetch_timeout.
const patience = 5 * time.Second

const unknown = "unknown" // the version of what a state-of-the-world client brings; none is like it

const noReason = "the client gave no reason" // in place of an empty error_detail

// group is the resources of a Group and the streams that hold it.
type group struct {
	types   map[string]map[string]*Resource // by type URL and name; one without body hides what earlier layers have
	streams map[*stream]struct{}
}

// layers are a client's groups in order; later ones win by name.
type layers []*group

func (l layers) find(typeURL, name string) *Resource {
	for _, g := range slices.Backward(l) {
		switch r := g.types[typeURL][name]; {
		case r == nil:
		case r.Hides():
			return nil
		default:
			return r
		}
	}
	return nil
}

// client is what one stream asked for, was sent and has answered: the state machine of both forms. It knows no clock,
// lock or connection.
type client struct {
	form *form
	subs []*subscription // by TypeRule.Order

	partial bool   // what the groups hold is not yet all that they may have held before: Server.Partial
	own     *group // the group that the client needs, which is never partial; nil: none
}

// subscription is one type of a client.
type subscription struct {
	rule   TypeRule
	asked  bool // the client has sent a request of the type
	brings bool // state of the world: it had something of the type from an earlier stream, and was not sent all on this one

	all   bool                // wildcard
	names map[string]struct{} // asked for by name
	// sent is what the client was told of a name: a resource; one without body if we know its version only, or (without
	// a version) if it is to be told again; nil if it was told that there is none.
	sent  map[string]*Resource
	extra map[string]*Resource // what Session.Ask said of names that no group holds; nil: nothing

	dirty map[string]struct{} // names to compare
	full  bool                // all names are to be compared
	owe   bool                // a response is due even if with nothing

	out          *message // sent and not answered
	nonce, acked string
	updated      time.Time

	refused   map[string]*Resource // rejected and not yet replaced; "": a response without resources
	retry     [][]*Resource        // parts of a rejected response, to be sent again on their own
	detail    string
	refusedAt time.Time
}

func newClient(f *form, rules []TypeRule) *client {
	c := &client{form: f}
	for _, r := range slices.SortedFunc(slices.Values(rules), func(a, b TypeRule) int { return cmp.Compare(a.Order, b.Order) }) {
		c.subs = append(c.subs, newSubscription(r))
	}
	return c
}

func newSubscription(r TypeRule) *subscription {
	return &subscription{
		rule: r, names: map[string]struct{}{}, sent: map[string]*Resource{}, extra: map[string]*Resource{},
		dirty: map[string]struct{}{}, refused: map[string]*Resource{},
	}
}

// sub returns the subscription of a type in the table.
func (c *client) sub(typeURL string) *subscription {
	for _, s := range c.subs {
		if s.rule.URL == typeURL {
			return s
		}
	}
	return nil
}

// touch notes that the resources of these names changed.
func (c *client) touch(typeURL string, names []string) {
	if s := c.sub(typeURL); s != nil && s.asked {
		for _, n := range names {
			s.dirty[n] = struct{}{}
		}
	}
}

// touchAll notes that the client's groups changed.
func (c *client) touchAll() {
	for _, s := range c.subs {
		s.full = true
	}
}

// rejection is what Session.OnNack is told.
type rejection struct {
	version, detail string
	resources       []*Resource
}

// request takes a request of a type in the table. It returns what the client rejected by it, if that can't be narrowed
// down any more.
func (c *client) request(q *request, now time.Time) *rejection {
	s := c.sub(q.typeURL)
	delta := c.form == deltaForm
	first := !s.asked || !delta && q.nonce == "" && !q.nack
	var rejected *rejection
	switch {
	case first:
		*s = *newSubscription(s.rule)
		s.asked, s.owe, s.full, s.brings = true, true, true, q.brings
	case q.nonce == "":
	case q.nonce == s.nonce:
		if s.out != nil {
			rejected = s.settle(q, now)
		}
	case !delta && s.out == nil:
		return nil
	default: // crossed with a response: no answer to it, but the names are what the client wants by now
	}
	if delta {
		c.subscribe(s, q, first)
	} else {
		s.replace(q.names, first)
		for n := range s.names {
			if first && q.brings {
				s.sent[n] = &Resource{Name: n, Version: unknown}
			}
		}
	}
	return rejected
}

// nameWeight is what a name costs besides its bytes, measured.
const nameWeight = 200

// weight returns the memory that the client's names take, but for those that l holds: these are as many as we made.
func (c *client) weight(l layers) (bytes int) {
	for _, s := range c.subs {
		for n := range s.names {
			if l.find(s.rule.URL, n) == nil {
				bytes += nameWeight + len(n)
			}
		}
		for n, r := range s.sent {
			if _, named := s.names[n]; !named && r != nil && r.body == nil && l.find(s.rule.URL, n) == nil {
				bytes += nameWeight + len(n)
			}
		}
	}
	return bytes
}

// settle takes the answer to the response that is out.
func (s *subscription) settle(q *request, now time.Time) *rejection {
	m := s.out
	s.out = nil
	delete(s.refused, "")
	if !q.nack {
		s.acked = q.nonce
		for _, r := range m.set {
			delete(s.refused, r.Name)
		}
		for _, n := range m.gone {
			delete(s.refused, n)
		}
		if m.full {
			clear(s.refused)
		}
		return nil
	}
	s.detail, s.refusedAt = cmp.Or(q.detail, noReason), now
	for _, r := range m.set {
		if s.sent[r.Name] == r { // else dropped meanwhile, or due again anyway
			s.refused[r.Name] = r
		}
	}
	if len(m.set) == 0 {
		s.refused[""] = nil // until the next response
	} else {
		for _, n := range m.gone { // not their fault: the client may still hold them
			s.sent[n] = &Resource{Name: n, Version: "not removed"}
			s.dirty[n] = struct{}{}
		}
	}
	if n := len(m.set); !m.full && n > 1 {
		// One bad resource may have kept the client from taking the rest: halves narrow it down, each sent once.
		s.retry = append(s.retry, m.set[:n/2], m.set[n/2:])
		return nil
	}
	rejected := &rejection{version: m.version, detail: s.detail, resources: m.set}
	if m.full && len(m.set) > 0 {
		rejected.resources = slices.Collect(maps.Values(s.refused)) // earlier ones are in m too
	}
	return rejected
}

// subscribe applies a delta request's names.
func (c *client) subscribe(s *subscription, q *request, first bool) {
	for _, n := range q.names {
		if n == "*" {
			s.all = s.rule.Wildcard
			s.full = true
			continue
		}
		s.names[n] = struct{}{}
		s.oweName(n) // even if the client has it: it may have forgotten
	}
	if first && len(q.names) == 0 {
		s.all = s.rule.Wildcard
	}
	if !first {
		q.held = nil // it speaks of the stream before
	}
	for n, version := range q.held {
		if !s.all {
			s.names[n] = struct{}{}
		}
		// A cluster that was sent on this stream waits for its assignment, whichever the client has.
		if parent := c.sub(s.rule.ResendAfter); parent != nil && parent.sent[n] != nil && parent.sent[n].body != nil {
			version = ""
		}
		s.sent[n] = &Resource{Name: n, Version: version}
	}
	for _, n := range q.drop {
		if n == "*" {
			s.all = false
			for name := range s.sent {
				if _, ok := s.names[name]; !ok {
					s.forget(name)
				}
			}
			continue
		}
		_, named := s.names[n]
		delete(s.names, n)
		switch {
		case !s.all:
			s.forget(n)
		case named:
			s.oweName(n) // it stays by the wildcard, or the client must be told that it is gone
		}
	}
}

// replace applies a state-of-the-world request's names.
func (s *subscription) replace(names []string, first bool) {
	wild := slices.Contains(names, "*") || len(names) == 0 && (first || s.all)
	if len(names) == 0 && !first && !(wild && s.rule.Wildcard) {
		*s = *newSubscription(s.rule) // unsubscribed: no response
		return
	}
	if all := wild && s.rule.Wildcard; all != s.all {
		s.all, s.full = all, true
	}
	old := s.names
	s.names = make(map[string]struct{}, len(names))
	for _, n := range names {
		if n == "*" {
			continue
		}
		s.names[n] = struct{}{}
		if _, ok := old[n]; !ok {
			s.oweName(n)
		}
		delete(old, n)
	}
	if !s.all {
		for n := range old {
			s.forget(n)
		}
	}
}

// oweName has the name answered although the client may hold it.
func (s *subscription) oweName(name string) {
	s.sent[name] = &Resource{Name: name}
	s.dirty[name] = struct{}{}
	delete(s.extra, name)
}

// forget drops a name that the client has dropped.
func (s *subscription) forget(name string) {
	delete(s.sent, name)
	delete(s.dirty, name)
	delete(s.extra, name)
	delete(s.refused, name)
}

// want returns what the client should hold of a name; ask means that Session.Ask must be asked first.
func (s *subscription) want(l layers, name string) (r *Resource, ask bool) {
	_, named := s.names[name]
	if !named && !s.all {
		return nil, false
	}
	if r := l.find(s.rule.URL, name); r != nil || !named {
		return r, false
	}
	r, known := s.extra[name]
	return r, !known
}

// pending is what a client is still to be told of a type; each list is sorted.
type pending struct {
	set  []*Resource
	none []string // asked for, and there is no such resource
	gone []string // held, and no longer there
	ask  []string // asked for, and only Session.Ask can tell
}

func (d pending) empty() bool { return len(d.set)+len(d.none)+len(d.gone) == 0 }

// waits says whether nothing of a type may be sent while the groups are partial: a state-of-the-world response tells of
// all that is not in it that it is gone.
func (c *client) waits(s *subscription) bool {
	return c.partial && c.form == sotwForm && s.rule.Wildcard && s.brings
}

// keeps says whether the client is left what it has brought of a name while the groups are partial: what is missing
// there, or a part of it, may only be not read yet.
func (c *client) keeps(s *subscription, name string, have, want *Resource) bool {
	if !c.partial || have == nil || have.body != nil || have.Version == "" {
		return false
	}
	own := c.own != nil && c.own.types[s.rule.URL][name] == want
	return want == nil || s.rule.Composed && !own
}

// diff compares the dirty names; those that need no message are clean afterwards.
func (c *client) diff(s *subscription, l layers, canAsk bool) (d pending) {
	delta := c.form == deltaForm
	if s.full {
		s.full = false
		for _, g := range l {
			for n := range g.types[s.rule.URL] {
				s.dirty[n] = struct{}{}
			}
		}
		for n := range s.names {
			s.dirty[n] = struct{}{}
		}
		for n := range s.sent {
			s.dirty[n] = struct{}{}
		}
	}
	for n := range s.dirty {
		want, unknown := s.want(l, n)
		have, told := s.sent[n]
		_, named := s.names[n]
		switch {
		case want != nil && have != nil && have.Version == want.Version:
			delete(s.dirty, n)
		case c.keeps(s, n, have, want):
			delete(s.dirty, n) // all names are compared again when the groups are whole
		case want != nil:
			d.set = append(d.set, want)
		case unknown && canAsk:
			d.ask = append(d.ask, n)
		case s.rule.NeverRemove, told && have == nil, !told && !named:
			delete(s.dirty, n)
		case !delta && !s.rule.Wildcard: // this form has no word for it
			s.tell(nil, n)
		case have == nil, have.Version == "", s.rule.ResendAfter != "": // the other type's answer may wait for it
			d.none = append(d.none, n)
		default:
			d.gone = append(d.gone, n)
		}
	}
	slices.SortFunc(d.set, byName)
	slices.Sort(d.none)
	slices.Sort(d.gone)
	slices.Sort(d.ask)
	return d
}

func byName(a, b *Resource) int { return strings.Compare(a.Name, b.Name) }

// tell notes what a response says.
func (s *subscription) tell(set []*Resource, gone ...string) {
	for _, r := range set {
		s.sent[r.Name] = r
		delete(s.dirty, r.Name)
	}
	for _, n := range gone {
		delete(s.dirty, n)
		delete(s.refused, n)
		if _, named := s.names[n]; named {
			s.sent[n] = nil
		} else {
			delete(s.sent, n)
		}
	}
	if len(s.dirty) == 0 {
		s.dirty = map[string]struct{}{} // walking an emptied map takes as long as when it was full
	}
}

// answer takes what Session.Ask said of names that no group holds.
func (s *subscription) answer(names []string, found []Resource) {
	for _, n := range names {
		if _, ok := s.names[n]; ok {
			s.extra[n] = nil
			s.dirty[n] = struct{}{}
		}
	}
	for i := range found {
		if _, ok := s.extra[found[i].Name]; ok {
			s.extra[found[i].Name] = &found[i]
		}
	}
}

// busy says whether a response has been out for less than patience.
func (s *subscription) busy(now time.Time) bool { return s.out != nil && now.Sub(s.updated) < patience }

// step is what is due for a client.
type step struct {
	send  []*message
	ask   map[string][]string // names for Session.Ask, by type; the type waits for the answer
	again time.Time           // next is to be called then even if nothing happens; zero: never
}

// next brings the client nearer to what it should hold of l. A type sends nothing while a response is out. Additions
// go in the order of types, and wait while an earlier type has some that must wait: they may refer to them. Only what
// follows another type (ResendAfter) does not wait, as the answer to the other may wait for it. Removals go in reverse,
// each when no later type has anything to send or out that may still refer to it.
func (c *client) next(l layers, canAsk bool, now time.Time, nonce func() string) (out step) {
	due := make([]pending, len(c.subs))
	last := make([]bool, len(c.subs)) // no later type is in the way of removals
	calm := true
	for i, s := range slices.Backward(c.subs) {
		last[i] = calm
		if s.asked && !c.waits(s) {
			due[i] = c.diff(s, l, canAsk)
			calm = calm && !s.busy(now) && (s.out != nil || due[i].empty())
		}
	}
	send := func(s *subscription, set []*Resource, gone []string) {
		out.send = append(out.send, c.respond(s, set, gone, now, nonce()))
	}
	held := false
	for i, s := range c.subs {
		if !s.asked || c.waits(s) {
			continue
		}
		if s.rule.ResendAfter != "" {
			due[i] = c.diff(s, l, canAsk) // the other may just have been sent
		}
		d := &due[i]
		more := len(d.set)+len(d.none) > 0
		switch {
		case s.out != nil:
			held = held || more && s.busy(now)
		case len(d.ask) > 0:
			if out.ask == nil {
				out.ask = map[string][]string{}
			}
			out.ask[s.rule.URL] = d.ask
		case s.owe, more && (!held || s.rule.ResendAfter != ""):
			if last[i] {
				d.none, d.gone = append(d.none, d.gone...), nil
			}
			send(s, d.set, d.none)
			d.set, d.none = nil, nil
		case !more:
			for len(s.retry) > 0 && s.out == nil {
				if set := s.popRetry(l); len(set) > 0 {
					send(s, set, nil)
				}
			}
		}
	}
	for i, s := range slices.Backward(c.subs) {
		d := &due[i]
		if s.out == nil && len(d.gone) > 0 {
			send(s, nil, d.gone)
			d.gone = nil
		}
		if s.busy(now) || s.out == nil && !d.empty() {
			break
		}
	}
	if slices.ContainsFunc(due, func(d pending) bool { return !d.empty() }) {
		out.again = c.patienceEnds(now)
	}
	return out
}

// patienceEnds returns when the first type that is busy will no longer be; zero if none is.
func (c *client) patienceEnds(now time.Time) (end time.Time) {
	for _, s := range c.subs {
		if t := s.updated.Add(patience); s.busy(now) && (end.IsZero() || t.Before(end)) {
			end = t
		}
	}
	return end
}

// respond makes a response and notes it.
func (c *client) respond(s *subscription, set []*Resource, gone []string, now time.Time, nonce string) *message {
	m := &message{typeURL: s.rule.URL, nonce: nonce, set: set, gone: gone, full: c.form == sotwForm && s.rule.Wildcard}
	s.tell(set, gone...)
	if m.full {
		s.brings = false
		for _, r := range s.sent {
			if r != nil && r.body != nil {
				m.all = append(m.all, r)
			}
		}
		slices.SortFunc(m.all, byName)
	}
	s.out, s.nonce, s.updated, s.owe = m, nonce, now, false
	for _, o := range c.subs {
		if o.rule.ResendAfter != s.rule.URL {
			continue
		}
		for _, r := range set {
			if _, told := o.sent[r.Name]; told {
				o.sent[r.Name] = &Resource{Name: r.Name}
				o.dirty[r.Name] = struct{}{}
			}
		}
	}
	return m
}

// popRetry returns what is still worth sending of a part of a rejected response.
func (s *subscription) popRetry(l layers) (set []*Resource) {
	part := s.retry[0]
	s.retry = s.retry[1:]
	for _, r := range part {
		if want, _ := s.want(l, r.Name); want != nil && want.Version == r.Version {
			set = append(set, want)
		}
	}
	return set
}

// sync says how the client stands.
func (s *subscription) sync() Sync {
	switch {
	case s.nonce == "":
		return NotSent
	case len(s.refused) > 0:
		return Rejected
	case s.out != nil:
		return Stale
	}
	return Synced
}
