package xds

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// proxy is a model of a client that behaves as Envoy does: it applies what it accepts, rejects a response as a whole
// when it has a bad resource, asks for the assignments of its clusters, and withholds the answer to clusters until each
// that was sent has had an assignment.
type proxy struct {
	m       *machine
	t       *testing.T
	held    map[string]map[string]string // name → version, by type
	routes  map[string]bool              // rds names wanted
	inbox   []*message
	nonces  map[string]string // of the last response read, by type
	warming map[string]bool
	cds     *message // whose answer waits
}

func bad(r *Resource) bool { return strings.HasSuffix(r.Version, "bad") }

func newProxy(t *testing.T, f *form, world *machine) *proxy {
	p := &proxy{t: t, held: map[string]map[string]string{"cds": {}, "eds": {}, "lds": {}, "rds": {}}, routes: map[string]bool{}}
	p.m = world
	p.connect(f)
	return p
}

// connect begins a new stream; in the delta form it tells what is held.
func (p *proxy) connect(f *form) {
	p.m.client = newClient(f, testRules, p.m.client.names)
	p.inbox, p.warming, p.cds, p.nonces = nil, map[string]bool{}, nil, map[string]string{}
	for _, typeURL := range []string{"cds", "eds", "lds", "rds"} {
		q := &request{typeURL: typeURL, names: p.wanted(typeURL), brings: f == sotwForm && len(p.held[typeURL]) > 0}
		if f == deltaForm {
			q.held = maps.Clone(p.held[typeURL])
		}
		p.send(q)
	}
}

// wanted returns the names to subscribe to; nil: all.
func (p *proxy) wanted(typeURL string) []string {
	switch typeURL {
	case "eds":
		return slices.AppendSeq([]string{}, maps.Keys(p.held["cds"]))
	case "rds":
		return slices.AppendSeq([]string{}, maps.Keys(p.routes))
	}
	return nil
}

// partial is Server.Partial.
func (p *proxy) partial(partial bool) {
	p.m.partial = partial
	p.pump()
}

func (p *proxy) send(q *request) {
	_ = p.m.request(q, p.m.now)
	p.pump()
}

func (p *proxy) pump() {
	for _, m := range p.m.step().send {
		if slices.ContainsFunc(p.inbox, func(o *message) bool { return o.typeURL == m.typeURL }) && p.m.form == deltaForm {
			p.t.Fatalf("two responses of %s in flight", m.typeURL)
		}
		p.inbox = append(p.inbox, m)
	}
}

// resubscribe tells a change of names, with the nonce that state-of-the-world needs.
func (p *proxy) resubscribe(typeURL string, before []string) {
	after := p.wanted(typeURL)
	if len(without(after, before))+len(without(before, after)) == 0 {
		return
	}
	q := &request{typeURL: typeURL, names: after}
	if p.m.form == deltaForm {
		q.names, q.drop = without(after, before), without(before, after)
	} else {
		q.nonce = p.nonces[typeURL] // stale if a response is on its way: its answer will carry the names
	}
	for _, n := range without(before, after) {
		delete(p.held[typeURL], n)
	}
	p.send(q)
}

func without(a, b []string) (out []string) {
	for _, n := range a {
		if !slices.Contains(b, n) {
			out = append(out, n)
		}
	}
	return out
}

// take applies a response unless it must be rejected.
func (p *proxy) take(m *message) (ok bool) {
	list := m.set
	if m.full {
		list = m.all
	}
	if slices.ContainsFunc(list, bad) {
		return false
	}
	held := p.held[m.typeURL]
	if m.full {
		clear(held)
	}
	for _, r := range list {
		if names := p.wanted(m.typeURL); names != nil && !slices.Contains(names, r.Name) {
			continue // dropped while the response was on its way
		}
		if m.typeURL == "cds" && slices.Contains(m.set, r) {
			p.warming[r.Name] = true
		}
		held[r.Name] = r.Version
	}
	if p.m.form == deltaForm {
		for _, n := range m.gone {
			delete(held, n)
		}
	}
	return true
}

// read takes and answers one response.
func (p *proxy) read() {
	if len(p.inbox) == 0 {
		return
	}
	m := p.inbox[0]
	p.inbox = p.inbox[1:]
	p.nonces[m.typeURL] = m.nonce
	before := p.wanted("eds")
	q := &request{typeURL: m.typeURL, nonce: m.nonce}
	if q.nack = !p.take(m); q.nack {
		q.detail = "bad"
	}
	switch m.typeURL {
	case "cds":
		if !q.nack {
			p.resubscribe("eds", before)
			p.cds = m
			p.warm()
			return
		}
	case "eds":
		if !q.nack {
			for _, r := range m.set {
				delete(p.warming, r.Name)
			}
			for _, n := range m.gone {
				delete(p.warming, n)
			}
		}
	}
	if p.m.form == sotwForm {
		q.names = p.wanted(m.typeURL)
	}
	p.send(q)
	p.warm()
}

// warm answers the clusters once all are warm.
func (p *proxy) warm() {
	for n := range p.warming {
		_, held := p.held["cds"][n]
		if !held || p.m.form == sotwForm && p.m.holds().layers.find("eds", n) == nil { // there it takes initial_fetch_timeout
			delete(p.warming, n)
		}
	}
	if p.cds == nil || len(p.warming) > 0 {
		return
	}
	q := &request{typeURL: "cds", nonce: p.cds.nonce}
	p.cds = nil
	p.send(q)
}

// TestHistories checks that whatever happens, a client that keeps answering ends with what it should hold.
func TestHistories(t *testing.T) {
	for _, f := range []*form{deltaForm, sotwForm} {
		for seed := range uint64(400) {
			t.Run(fmt.Sprintf("%s/%d", f.method, seed), func(t *testing.T) { history(t, f, rand.New(rand.NewPCG(seed, 1))) })
		}
	}
}

func history(t *testing.T, f *form, rnd *rand.Rand) {
	p := newProxy(t, f, newMachine(f, 3))
	name := func() string { return string(rune('a' + rnd.IntN(6))) }
	version := 0
	publish := func(layer int, changes ...Change) {
		for _, ch := range changes {
			p.m.publish(layer, ch)
		}
		p.pump()
	}
	resource := func(n string) Resource {
		version++
		r := named(fmt.Sprintf("%s@%d", n, version))
		if rnd.IntN(12) == 0 {
			r.Version += "bad"
		}
		return r
	}
	for range 150 {
		layer, n := rnd.IntN(3), name()
		switch rnd.IntN(12) {
		case 11:
			if rnd.IntN(3) == 0 {
				p.m.move(rnd)
				p.pump()
			}
		case 10: // what earlier layers have of it
			publish(layer, Change{Type: "cds", Set: []Resource{Hidden(n, "")}}, Change{Type: "eds", Set: []Resource{Hidden(n, "")}})
			publish(layer, Change{Type: "lds", Set: []Resource{Hidden(name(), "")}}, Change{Type: "rds", Set: []Resource{Hidden(name(), "")}})
		case 0, 1: // a cluster always has an assignment
			eds := named(fmt.Sprintf("%s@e%d", n, version))
			publish(layer, Change{Type: "eds", Set: []Resource{eds}}, Change{Type: "cds", Set: []Resource{resource(n), resource(name())}})
		case 2:
			typeURL := []string{"eds", "lds", "rds"}[rnd.IntN(3)]
			publish(layer, Change{Type: typeURL, Set: []Resource{resource(n)}}, Change{Type: typeURL, Remove: []string{name()}})
		case 3:
			publish(layer, Change{Type: "cds", Remove: []string{n}}, Change{Type: "lds", Remove: []string{name()}})
		case 4:
			before := p.wanted("rds")
			p.routes[n] = !p.routes[n]
			if !p.routes[n] {
				delete(p.routes, n)
			}
			p.resubscribe("rds", before)
		case 5:
			if rnd.IntN(5) == 0 {
				p.connect(f)
			}
		case 6:
			p.m.now = p.m.now.Add(time.Duration(rnd.IntN(3000)) * time.Millisecond)
			if rnd.IntN(4) == 0 {
				p.partial(!p.m.partial)
			}
			p.pump()
		default:
			p.read()
		}
	}
	p.partial(false)
	for _, typeURL := range []string{"cds", "eds", "lds", "rds"} { // what is bad is mended
		for i, g := range p.m.pool {
			g.tip.of(typeURL).Each(func(r *Resource) {
				if bad(r) {
					publish(i, Change{Type: typeURL, Set: []Resource{named(r.Name + "@" + strings.TrimSuffix(r.Version, "bad"))}})
				}
			})
		}
	}
	for i := 0; len(p.inbox) > 0; i++ {
		if i > 1000 {
			t.Fatalf("still sending: %s%s", p.inbox[0].typeURL, show(p.inbox[0]))
		}
		p.read()
	}
	if p.cds != nil {
		t.Fatalf("clusters never got warm: %v", p.warming)
	}
	for _, typeURL := range []string{"cds", "eds", "lds", "rds"} {
		want := map[string]string{}
		names := p.wanted(typeURL)
		if names == nil && (typeURL == "cds" || typeURL == "lds") {
			p.m.holds().layers.each(typeURL, func(n string) { names = append(names, n) })
		}
		for _, n := range names {
			if r := p.m.holds().layers.find(typeURL, n); r != nil {
				want[n] = r.Version
			}
		}
		got := p.held[typeURL]
		if f == sotwForm { // it can't be told that a named resource is gone
			maps.DeleteFunc(got, func(n, _ string) bool { return p.m.holds().layers.find(typeURL, n) == nil })
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", typeURL, diff)
		}
		s := p.m.sub(typeURL)
		if s.asked && s.sync() != Synced {
			t.Errorf("%s: state %v, refused %v", typeURL, s.sync(), s.refused)
		}
		if len(s.open) > 0 || s.kept != nil || s.ahead != nil {
			t.Errorf("%s: a client that holds what it should hold is not without notes: open %v, kept %v, ahead %v", typeURL, s.open, s.kept, s.ahead)
		}
		if got, want := s.weight, weightOf(p.m, s); got != want {
			t.Errorf("%s: names of no group are taken for %d bytes, want %d", typeURL, got, want)
		}
	}
}

// weightOf counts afresh what the names take that no group of the client holds.
func weightOf(m *machine, s *subscription) (bytes int) {
	s.names.each(func(n string) {
		if m.holds().layers.find(s.rule.URL, n) == nil {
			bytes += nameWeight + len(n)
		}
	})
	return bytes
}

// ledger is what a client was told, by what came to it: versions by name and type.
type ledger map[string]map[string]string

// request takes note of what the client says that it has.
func (l ledger) request(m *machine, q *request) {
	if s := m.sub(q.typeURL); !s.asked || m.form == sotwForm && q.nonce == "" && !q.nack {
		l[q.typeURL] = maps.Clone(q.held)
		if l[q.typeURL] == nil {
			l[q.typeURL] = map[string]string{}
		}
	}
}

func (l ledger) response(m *message) {
	told := l[m.typeURL]
	if m.full {
		clear(told)
	}
	for _, r := range slices.Concat(m.set, m.all) {
		told[r.Name] = r.Version
	}
	for _, n := range m.gone {
		if !m.full {
			delete(told, n)
		}
	}
}

// check holds what follows from what the machine remembers to what was sent.
func (l ledger) check(t *testing.T, m *machine) {
	t.Helper()
	for _, s := range m.subs {
		told := l[s.rule.URL]
		if !s.asked {
			clear(told)
		}
		asked := func(n string) bool { return s.all || s.names.has(n) }
		if m.form == deltaForm || !s.rule.Wildcard {
			maps.DeleteFunc(told, func(n, _ string) bool { return !asked(n) }) // the client has dropped it
		}
		s.each(func(n string, r *Resource) {
			if r != s.told(n) {
				t.Errorf("%s: %s is %v and %v", s.rule.URL, n, r, s.told(n))
			}
			if r != nil && r.body != nil && asked(n) && told[n] != r.Version {
				t.Errorf("%s: %s counts as told in version %s; it was told %q", s.rule.URL, n, r.Version, told[n])
			}
		})
		for n, version := range told {
			if r := s.told(n); asked(n) && (r == never || r == nil && m.form == deltaForm && !s.rule.NeverRemove) {
				t.Errorf("%s: version %s of %s is forgotten", s.rule.URL, version, n)
			}
		}
	}
}

// FuzzStream feeds the state machine any sequence of requests, sensible or not, of changes, and of other groups. What is sent must
// be wanted, one response of a type at a time; what counts as told was told; and once all are accepted nothing may be missing.
func FuzzStream(f *testing.F) {
	f.Add([]byte("\x00\x10\x20\x30"), true)
	rnd := rand.New(rand.NewPCG(1, 1))
	for i := range 60 {
		b := make([]byte, 300)
		for j := range b {
			b[j] = byte(rnd.Uint32())
		}
		f.Add(b, i%2 == 0)
	}
	f.Fuzz(func(t *testing.T, b []byte, delta bool) {
		m := newMachine(map[bool]*form{true: deltaForm, false: sotwForm}[delta], 3)
		m.groups = m.pool[:2]
		told := ledger{}
		take := func() byte {
			if len(b) == 0 {
				return 0
			}
			c := b[0]
			b = b[1:]
			return c
		}
		name := func() string { return []string{"*", "a", "b", "c"}[take()%4] }
		for len(b) > 0 {
			op, s := take(), m.subs[take()%byte(len(m.subs))]
			switch op % 8 {
			case 0, 1:
				m.publish(int(take()%3), Change{Type: s.rule.URL, Set: []Resource{named(fmt.Sprint(name(), "@", take()%3))}})
			case 2:
				if layer, n := int(take()%3), name(); take()%2 == 0 {
					m.publish(layer, Change{Type: s.rule.URL, Remove: []string{n}})
				} else {
					m.publish(layer, Change{Type: s.rule.URL, Set: []Resource{Hidden(n, "")}})
				}
			case 3:
				switch take() % 4 {
				case 0:
					m.partial = !m.partial
				case 1:
					m.ask = !m.ask
				default:
					m.move(rand.New(rand.NewPCG(uint64(take()), 1)))
				}
			default:
				q := &request{typeURL: s.rule.URL, nonce: []string{"", s.nonce, "old"}[take()%3], nack: take()%4 == 0}
				for range take() % 3 {
					q.names = append(q.names, name())
				}
				if delta {
					q.drop = []string{name()}[:take()%2]
					q.held = map[string]string{name(): fmt.Sprint(take() % 3)}
				} else {
					q.brings = take()%4 == 0
				}
				told.request(m, q)
				_ = m.request(q, m.now)
			}
			stepOnce(t, m, told)
			told.check(t, m)
		}
		m.partial, m.ask = false, false
		for range 100 {
			for _, s := range m.subs {
				if s.out != nil {
					q := &request{typeURL: s.rule.URL, nonce: s.nonce}
					if !delta {
						s.names.each(func(n string) { q.names = append(q.names, n) })
						if s.all {
							q.names = append(q.names, "*")
						}
					}
					_ = m.request(q, m.now)
				}
			}
			if !stepOnce(t, m, told) {
				break
			}
			told.check(t, m)
		}
		for _, s := range m.subs {
			if len(s.open) > 0 || !s.rule.NeverRemove && slices.ContainsFunc(slices.Collect(maps.Keys(s.kept)), func(n string) bool { return s.extra[n] == nil }) {
				t.Errorf("%s: notes stay: open %v, kept %v", s.rule.URL, s.open, s.kept)
			}
			m.holds().layers.each(s.rule.URL, s.touch)
			s.each(func(n string, _ *Resource) { s.touch(n) })
			if d := m.diff(s, false); s.asked && (!d.empty() || s.owe) || s.out != nil {
				t.Errorf("%s: not told %+v, response due: %t, out: %+v", s.rule.URL, d, s.owe, s.out)
			}
		}
	})
}

// stepOnce says whether something was sent. Of what is asked for beyond the groups, there is b.
func stepOnce(t *testing.T, m *machine, told ledger) bool {
	before := map[string]*message{}
	for _, s := range m.subs {
		before[s.rule.URL] = s.out
	}
	next := m.step()
	for len(next.ask) > 0 {
		for typeURL, names := range next.ask {
			m.sub(typeURL).answer(names, []Resource{named("b@9")})
		}
		more := m.step()
		next.send, next.ask = append(next.send, more.send...), more.ask
	}
	sent := next.send
	for _, r := range sent {
		s := m.sub(r.typeURL)
		if before[r.typeURL] != nil {
			t.Errorf("%s: a second response while one is out", r.typeURL)
		}
		before[r.typeURL] = r
		for _, res := range r.set {
			if !s.names.has(res.Name) && !s.all {
				t.Errorf("%s: %s was not asked for", r.typeURL, res.Name)
			}
		}
		told.response(r)
	}
	if again := m.step().send; len(again) > 0 {
		t.Errorf("%d more responses in a second step", len(again))
	}
	return len(sent) > 0
}
