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

const unknown = "unknown" // a version that none is like

const noReason = "the client gave no reason" // in place of an empty error_detail

// What a client was told of a name is the resource that it was sent, nil for "there is none", or one of these. A resource
// without body but with a version is one of which the client has told that it has it from an earlier stream.
var (
	never      = &Resource{} // nothing
	owed       = &Resource{} // something that is to be told again
	brought    = &Resource{Version: unknown}
	notRemoved = &Resource{Version: "not removed"} // it would not take that there is none
)

// view is what a client should hold at one moment.
type view struct {
	layers  layers
	partial bool      // what the groups hold is not yet all that they may have held before: Server.Partial
	own     *snapshot // of the group that the client needs, which is never partial; nil: none
}

// client is what one stream asked for, was sent and has answered: the state machine of both forms. It knows no clock,
// lock or connection.
type client struct {
	form  *form
	names *nameTable
	subs  []*subscription // by TypeRule.Order
	view  view            // as of the last step
}

// subscription is one type of a client. What the client was told of a name follows from base, unless open or kept say something
// else. So a client that was told everything is these few words, however much it holds.
type subscription struct {
	rule   TypeRule
	asked  bool // the client has sent a request of the type
	owe    bool // the first response is due, even if with nothing; until then base means nothing
	brings bool // state of the world: it had something of the type from an earlier stream, and was not sent all on this one
	held   bool // delta: it named what it had of the type from an earlier stream

	all   bool   // wildcard
	names *names // asked for by name

	base  layers
	open  map[string]*Resource // told of names that are to be compared with what there is
	most  int                  // that were in open since it was made
	kept  map[string]*Resource // told of names that are compared, and left as they are
	extra map[string]*Resource // what Session.Ask said of names that no group holds; nil: nothing
	ahead map[string]struct{}  // sent of the type of ResendAfter to a client that had some, before it asked for this one

	strange map[string]struct{} // asked for, and no group holds them
	weight  int                 // of those, in bytes

	out          *message // sent and not answered
	nonce, acked string
	updated      time.Time

	refused   map[string]*Resource // rejected and not yet replaced; "": a response without resources
	retry     [][]*Resource        // parts of a rejected response, to be sent again on their own
	detail    string
	refusedAt time.Time
}

func newClient(f *form, rules []TypeRule, names *nameTable) *client {
	c := &client{form: f, names: names}
	for _, r := range slices.SortedFunc(slices.Values(rules), func(a, b TypeRule) int { return cmp.Compare(a.Order, b.Order) }) {
		c.subs = append(c.subs, &subscription{rule: r})
	}
	return c
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

// told returns what the client was told of a name.
func (s *subscription) told(name string) *Resource {
	if r, ok := s.open[name]; ok {
		return r
	}
	if r, ok := s.kept[name]; ok {
		return r
	}
	return s.implied(name)
}

// implied returns what was told of a name of which nothing is noted.
func (s *subscription) implied(name string) *Resource {
	named := s.names.has(name)
	switch {
	case !named && (s.owe || !s.all):
		return never
	case s.owe && s.brings:
		return brought
	case s.owe:
		return owed
	}
	r := s.base.find(s.rule.URL, name)
	if r == nil && !named {
		return never
	}
	return r
}

// each visits all names of which the client was told something, with what it was told.
func (s *subscription) each(visit func(name string, told *Resource)) {
	implied := func(name string) {
		_, open := s.open[name]
		if _, kept := s.kept[name]; !open && !kept {
			visit(name, s.implied(name))
		}
	}
	if !s.owe {
		s.eachWanted(s.base, implied)
	} else {
		s.names.each(implied)
	}
	for name, told := range s.open {
		visit(name, told)
	}
	for name, told := range s.kept {
		visit(name, told)
	}
}

// eachWanted visits once each name that the client asks for, and of which l or nobody has something.
func (s *subscription) eachWanted(l layers, visit func(name string)) {
	if s.all {
		l.each(s.rule.URL, visit)
	}
	s.names.each(func(name string) {
		if !s.all || !l.has(s.rule.URL, name) {
			visit(name)
		}
	})
}

// touch has a name compared.
func (s *subscription) touch(name string) {
	if _, ok := s.open[name]; !ok {
		s.reopen(name, s.told(name))
	}
}

// reopen has a name compared of which the client was told this.
func (s *subscription) reopen(name string, told *Resource) {
	delete(s.kept, name)
	if s.open == nil {
		s.open = map[string]*Resource{}
	}
	s.open[name] = told
	s.most = max(s.most, len(s.open))
}

// keep leaves a name as it was told until something of it changes.
func (s *subscription) keep(name string, told *Resource) {
	if s.owe {
		s.reopen(name, told) // as all names are
		return
	}
	delete(s.open, name)
	if s.kept == nil {
		s.kept = map[string]*Resource{}
	}
	s.kept[name] = told
}

// close notes that a name needs nothing more, having been told this.
func (s *subscription) close(name string, told *Resource) {
	implied := s.implied(name)
	switch {
	case told == implied, told == owed:
	case told == nil && implied == never: // it is not asked for any more, and the client has nothing of it
	case told != nil && implied != nil && told.Version == implied.Version:
	default:
		s.keep(name, told)
		return
	}
	if !s.owe {
		delete(s.open, name)
		delete(s.kept, name)
	}
}

// pull has all names compared of which v may say something else than what was seen last. It brings base up to date for all types.
func (c *client) pull(v view) {
	for _, s := range c.subs {
		if !s.asked || s.owe {
			continue
		}
		if v.partial != c.view.partial {
			for name, told := range s.kept {
				s.reopen(name, told)
			}
		}
		if !slices.Equal(s.base, v.layers) {
			v.layers.changed(s.base, s.rule.URL, func(name string) {
				if s.all || s.names.has(name) {
					s.touch(name)
				}
			})
			s.base = v.layers
		}
	}
	c.view = v
}

// rejection is what Session.OnNack is told.
type rejection struct {
	version, detail string
	resources       []*Resource
}

// request takes a request of a type in the table, of a client whose groups hold l. It returns what the client rejected by it,
// if that can't be narrowed down any more.
func (c *client) request(q *request, l layers, now time.Time) *rejection {
	s := c.sub(q.typeURL)
	delta := c.form == deltaForm
	first := !s.asked || !delta && q.nonce == "" && !q.nack
	var rejected *rejection
	switch {
	case first:
		*s = subscription{rule: s.rule, asked: true, owe: true, brings: q.brings, held: len(q.held) > 0, ahead: s.ahead}
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
		c.subscribe(s, l, q, first)
	} else {
		c.replace(s, l, q.names, first)
	}
	return rejected
}

// nameWeight is what a name costs besides its bytes, measured.
const nameWeight = 200

// weight returns the memory that the client's names take, but for those that its groups hold: these are as many as we made.
func (c *client) weight() (bytes int) {
	for _, s := range c.subs {
		bytes += s.weight
	}
	return bytes
}

// weigh counts a name unless l holds it.
func (s *subscription) weigh(l layers, name string) {
	_, counted := s.strange[name]
	switch held := l.find(s.rule.URL, name) != nil; {
	case held:
		s.unweigh(name)
	case !counted:
		if s.strange == nil {
			s.strange = map[string]struct{}{}
		}
		s.strange[name] = struct{}{}
		s.weight += nameWeight + len(name)
	}
}

func (s *subscription) unweigh(name string) {
	if _, counted := s.strange[name]; counted {
		delete(s.strange, name)
		s.weight -= nameWeight + len(name)
	}
}

// settle takes the answer to the response that is out.
func (s *subscription) settle(q *request, now time.Time) *rejection {
	m := s.out
	s.out = nil
	delete(s.refused, "")
	if !q.nack {
		s.acked = q.nonce
		if m.full {
			s.refused = nil
		}
		for _, r := range m.set {
			delete(s.refused, r.Name)
		}
		for _, n := range m.gone {
			delete(s.refused, n)
		}
		return nil
	}
	s.detail, s.refusedAt = cmp.Or(q.detail, noReason), now
	if s.refused == nil {
		s.refused = map[string]*Resource{}
	}
	for _, r := range m.set {
		if told := s.told(r.Name); told != nil && told.body != nil && told.Version == r.Version { // else dropped meanwhile, or due again anyway
			s.refused[r.Name] = r
		}
	}
	if len(m.set) == 0 {
		s.refused[""] = nil // until the next response
	} else {
		for _, n := range m.gone { // not their fault: the client may still hold them
			s.reopen(n, notRemoved)
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
func (c *client) subscribe(s *subscription, l layers, q *request, first bool) {
	star := func(name string) bool { return name == "*" }
	wild := slices.ContainsFunc(q.names, star) || first && len(q.names) == 0
	add := slices.DeleteFunc(q.names, star)
	if wild {
		s.setAll(s.rule.Wildcard)
	}
	if !first {
		q.held = nil // it speaks of the stream before
		for _, n := range add {
			s.oweName(n) // even if the client has it: it may have forgotten
		}
	}
	for n, version := range q.held {
		// A cluster that was sent on this stream waits for its assignment, whichever the client has.
		told := &Resource{Version: version}
		if c.sentAhead(s, n) {
			told = owed
		}
		s.reopen(n, told)
		s.weigh(l, n)
		if !s.all {
			add = append(add, n)
		}
	}
	s.ahead = nil
	for _, n := range add {
		s.weigh(l, n)
	}
	switch {
	case first:
		s.names = c.names.of(add)
	case len(add) > 0:
		s.names = c.names.change(s.names, add, nil)
	}
	c.drop(s, q.drop)
}

// sentAhead says whether the client, on its first request of a type, was already sent what this name follows.
func (c *client) sentAhead(s *subscription, name string) bool {
	parent := c.sub(s.rule.ResendAfter)
	if parent == nil {
		return false
	}
	if parent.held {
		_, ok := s.ahead[name]
		return ok
	}
	told := parent.told(name)
	return told != nil && told.body != nil
}

// drop applies the names that a delta request drops.
func (c *client) drop(s *subscription, names []string) {
	if len(names) == 0 {
		return
	}
	before := s.names
	s.names = c.names.change(before, nil, names)
	if slices.Contains(names, "*") {
		s.all = false
		for _, noted := range []map[string]*Resource{s.open, s.kept} {
			for n := range noted {
				if !s.names.has(n) {
					s.forget(n)
				}
			}
		}
	}
	for _, n := range names {
		switch {
		case !s.all:
			s.forget(n)
		case before.has(n):
			s.oweName(n) // it stays by the wildcard, or the client must be told that it is gone
		}
	}
}

// replace applies a state-of-the-world request's names.
func (c *client) replace(s *subscription, l layers, list []string, first bool) {
	star := func(name string) bool { return name == "*" }
	wild := slices.ContainsFunc(list, star) || len(list) == 0 && (first || s.all)
	if len(list) == 0 && !first && !(wild && s.rule.Wildcard) {
		*s = subscription{rule: s.rule} // unsubscribed: no response
		return
	}
	s.setAll(wild && s.rule.Wildcard)
	now := c.names.of(slices.DeleteFunc(list, star))
	s.names.diff(now, func(n string) {
		switch {
		case now.has(n):
			s.weigh(l, n)
			if !first {
				s.oweName(n)
			}
		case !s.rule.Wildcard:
			s.forget(n)
		default: // it stays by the wildcard, or is gone by the next response, which has all; not so what only Session.Ask had
			s.touch(n)
			delete(s.extra, n)
			s.unweigh(n)
		}
	})
	s.names = now
}

// setAll sets whether the client asks for all names. That changes what follows from base, so what was told is noted first.
func (s *subscription) setAll(all bool) {
	if all == s.all {
		return
	}
	if !s.owe {
		s.base.each(s.rule.URL, func(n string) {
			if !s.names.has(n) {
				s.touch(n)
			}
		})
	}
	s.all = all
}

// oweName has the name answered although the client may hold it.
func (s *subscription) oweName(name string) {
	s.reopen(name, owed)
	delete(s.extra, name)
}

// forget drops a name that the client has dropped.
func (s *subscription) forget(name string) {
	delete(s.open, name)
	delete(s.kept, name)
	delete(s.extra, name)
	delete(s.refused, name)
	s.unweigh(name)
}

// want returns what the client should hold of a name; ask means that Session.Ask must be asked first.
func (s *subscription) want(l layers, name string) (r *Resource, ask bool) {
	named := s.names.has(name)
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
	return c.view.partial && c.form == sotwForm && s.rule.Wildcard && s.brings
}

// keeps says whether the client is left what it has brought of a name while the groups are partial: what is missing
// there, or a part of it, may only be not read yet.
func (c *client) keeps(s *subscription, name string, have, want *Resource) bool {
	if !c.view.partial || have == nil || have.body != nil || have.Version == "" {
		return false
	}
	return want == nil || have.Version == want.Version || s.rule.Composed && c.view.own.get(s.rule.URL, name) != want
}

// diff compares the open names with what there is; before the first response all are. Those that need no message are noted so.
func (c *client) diff(s *subscription, canAsk bool) (d pending) {
	l := c.view.layers
	delta := c.form == deltaForm
	compare := func(n string, have *Resource) {
		want, unknown := s.want(l, n)
		named := s.names.has(n)
		if _, counted := s.strange[n]; counted || named && want == nil {
			s.weigh(l, n)
		}
		switch {
		case c.keeps(s, n, have, want):
			s.keep(n, have) // until the groups are whole
		case want != nil && have != nil && have.Version == want.Version:
			s.close(n, have)
		case want != nil:
			d.set = append(d.set, want)
		case unknown && canAsk:
			d.ask = append(d.ask, n)
		case s.rule.NeverRemove, have == nil, have == never && !named:
			s.close(n, have)
		case !delta && !s.rule.Wildcard: // this form has no word for it
			s.tellNone(n)
		case have.Version == "", s.rule.ResendAfter != "": // the other type's answer may wait for it
			d.none = append(d.none, n)
		default:
			d.gone = append(d.gone, n)
		}
	}
	if s.owe {
		s.eachWanted(l, func(n string) { compare(n, s.told(n)) })
	}
	for n, have := range s.open {
		if !s.owe || s.all && !s.names.has(n) && !l.has(s.rule.URL, n) {
			compare(n, have)
		}
	}
	slices.SortFunc(d.set, byName)
	slices.Sort(d.none)
	slices.Sort(d.gone)
	slices.Sort(d.ask)
	return d
}

func byName(a, b *Resource) int { return strings.Compare(a.Name, b.Name) }

// tell notes what a response says. It says what there is, as base does.
func (s *subscription) tell(set []*Resource, gone []string) {
	for _, r := range set {
		delete(s.open, r.Name)
		delete(s.kept, r.Name)
		if r == s.extra[r.Name] {
			s.keep(r.Name, r)
		}
	}
	for _, n := range gone {
		s.tellNone(n)
	}
}

// few names are noted of most changes. A map of them is worth keeping for the next.
const few = 8

// tidy lets go of empty maps: one that was full takes as much as it did then.
func (s *subscription) tidy() {
	if len(s.open) == 0 && s.most > few {
		s.open, s.most = nil, 0
	}
	for _, noted := range []*map[string]*Resource{&s.kept, &s.extra, &s.refused} {
		if len(*noted) == 0 {
			*noted = nil
		}
	}
	if len(s.strange) == 0 {
		s.strange = nil
	}
}

func (s *subscription) tellNone(name string) {
	delete(s.open, name)
	delete(s.kept, name)
	delete(s.refused, name)
	if !s.names.has(name) {
		s.unweigh(name)
	}
}

// answer takes what Session.Ask said of names that no group holds.
func (s *subscription) answer(names []string, found []Resource) {
	if s.extra == nil {
		s.extra = map[string]*Resource{}
	}
	for _, n := range names {
		if s.names.has(n) {
			s.extra[n] = nil
			s.touch(n)
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

// next brings the client nearer to what it should hold. A type sends nothing while a response is out. Additions
// go in the order of types, and wait while an earlier type has some that must wait: they may refer to them. Only what
// follows another type (ResendAfter) does not wait, as the answer to the other may wait for it. Removals go in reverse,
// each when no later type has anything to send or out that may still refer to it.
func (c *client) next(v view, canAsk bool, now time.Time, nonce func() string) (out step) {
	c.pull(v)
	var room [8]due // of as many types as there are, on the stack
	todo := room[:0]
	for range c.subs {
		todo = append(todo, due{})
	}
	calm := true
	for i, s := range slices.Backward(c.subs) {
		todo[i].last = calm
		if s.asked && !c.waits(s) {
			todo[i].pending = c.diff(s, canAsk)
			calm = calm && !s.busy(now) && (s.out != nil || todo[i].empty())
		}
	}
	held := false
	for i, s := range c.subs {
		if !s.asked || c.waits(s) {
			continue
		}
		d := &todo[i]
		if out.sends(s.rule.ResendAfter) {
			d.pending = c.diff(s, canAsk)
		}
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
			if d.last {
				d.none, d.gone = append(d.none, d.gone...), nil
			}
			out.send = append(out.send, c.respond(s, d.set, d.none, now, nonce()))
			d.set, d.none = nil, nil
		case !more:
			for len(s.retry) > 0 && s.out == nil {
				if set := s.popRetry(v.layers); len(set) > 0 {
					out.send = append(out.send, c.respond(s, set, nil, now, nonce()))
				}
			}
		}
	}
	for i, s := range slices.Backward(c.subs) {
		d := &todo[i]
		if s.out == nil && !s.owe && len(d.gone) > 0 {
			out.send = append(out.send, c.respond(s, nil, d.gone, now, nonce()))
			d.gone = nil
		}
		if s.busy(now) || s.out == nil && !d.empty() {
			break
		}
	}
	if slices.ContainsFunc(todo, func(d due) bool { return !d.empty() }) {
		out.again = c.patienceEnds(now)
	}
	for _, s := range c.subs {
		s.tidy()
	}
	return out
}

// due is what a step finds for a type.
type due struct {
	pending
	last bool // no later type is in the way of removals
}

func (s *step) sends(typeURL string) bool {
	return slices.ContainsFunc(s.send, func(m *message) bool { return m.typeURL == typeURL })
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
	s.owe, s.base = false, c.view.layers
	s.tell(set, gone)
	if m.full {
		s.brings = false
		s.each(func(_ string, told *Resource) {
			if told != nil && told.body != nil {
				m.all = append(m.all, told)
			}
		})
		slices.SortFunc(m.all, byName)
	}
	s.out, s.nonce, s.updated = m, nonce, now
	for _, o := range c.subs {
		if o.rule.ResendAfter == s.rule.URL {
			c.follow(o, s, set)
		}
	}
	return m
}

// follow has a type told again of what was sent of the one that it follows.
func (c *client) follow(s, parent *subscription, set []*Resource) {
	if !s.asked && !parent.held {
		return // all that the parent was told was sent
	}
	for _, r := range set {
		switch {
		case s.asked && s.told(r.Name) != never:
			s.reopen(r.Name, owed)
		case !s.asked:
			if s.ahead == nil {
				s.ahead = map[string]struct{}{}
			}
			s.ahead[r.Name] = struct{}{}
		}
	}
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
