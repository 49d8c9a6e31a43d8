package xds

import (
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var testRules = []TypeRule{
	{URL: "rds", Order: 4},
	{URL: "cds", Wildcard: true, Order: 1},
	{URL: "eds", Order: 2, ResendAfter: "cds"},
	{URL: "lds", Wildcard: true, Order: 3},
	{URL: "ecds", Order: 5, NeverRemove: true},
}

// machine runs a client of the state machine without a connection.
type machine struct {
	*client
	pool    []*group // that there are
	groups  []*group // that the client holds
	edits   *uint64
	partial bool
	own     *group
	ask     bool
	now     time.Time
	nonces  int
}

func newMachine(f *form, groups int) *machine {
	table := newNameTable()
	m := &machine{client: newClient(f, testRules, table), edits: new(uint64), now: time.Unix(1e9, 0)}
	for range groups {
		m.pool = append(m.pool, newGroup(table.hash))
	}
	m.groups = m.pool
	return m
}

func (m *machine) publish(layer int, ch Change) {
	*m.edits++
	m.pool[layer].apply(*m.edits, ch)
}

// move gives the client other groups, in other order, one of which it may need.
func (m *machine) move(rnd *rand.Rand) {
	m.groups = slices.Clone(m.pool)
	rnd.Shuffle(len(m.groups), func(i, j int) { m.groups[i], m.groups[j] = m.groups[j], m.groups[i] })
	m.groups = m.groups[:1+rnd.IntN(len(m.groups))]
	m.own = m.groups[rnd.IntN(len(m.groups))]
	if rnd.IntN(2) == 0 {
		m.own = nil
	}
}

// holds returns what the client should hold now.
func (m *machine) holds() view {
	v := view{partial: m.partial}
	for _, g := range m.groups {
		v.layers = append(v.layers, g.tip)
	}
	if m.own != nil {
		v.own = m.own.tip
	}
	return v
}

func (m *machine) request(q *request, now time.Time) *rejection {
	return m.client.request(q, m.holds().layers, now)
}

func (m *machine) step() step {
	return m.next(m.holds(), m.ask, m.now, func() string { m.nonces++; return strconv.Itoa(m.nonces) })
}

// TestMoveCost: clients that are given groups of their node beside what they have, and lose them again, compare what these hold and
// nothing else. One service that is kept to its clients' nodes does that to all clients of a mesh.
func TestMoveCost(t *testing.T) {
	m := newMachine(deltaForm, 5)
	for _, layer := range []int{0, 1, 4} {
		for i := range 1000 {
			m.publish(layer, Change{Type: "eds", Set: []Resource{named(strconv.Itoa(i) + "@1")}})
		}
	}
	m.publish(2, Change{Type: "eds", Set: []Resource{named("7@2")}})
	without, with := []*group{m.pool[0], m.pool[1], m.pool[4]}, m.pool
	for _, move := range [][2][]*group{{without, with}, {with, without}} {
		m.groups = move[0]
		before := m.holds().layers
		m.groups = move[1]
		var names []string
		m.holds().layers.changed(before, "eds", func(name string) { names = append(names, name) })
		if !slices.Equal(names, []string{"7"}) {
			t.Errorf("%d names are compared, want the one of the node", len(names))
		}
	}
}

func named(s string) Resource {
	name, version, _ := strings.Cut(s, "@")
	return Resource{Name: name, Version: version, Origin: "Origin " + name, body: &body{}}
}

// TestState runs scripts. A line is an event, or a response that the events before it must have caused, in order:
//
//	pub TYPE [N:]NAME@VERSION -NAME …   publish, into group N; !NAME hides it there
//	req TYPE +NAME -NAME held=NAME@VERSION nonce=NONCE
//	ack TYPE …, nack TYPE TEXT          as req, answers the last response
//	say TYPE NAME@VERSION NAME          what Session.Ask finds, or not
//	wait DURATION
//	out TYPE NAME@VERSION -NAME         a response; all that is held where state-of-the-world says so
//	ask TYPE NAME                       for Session.Ask
//	bad TYPE NAME …                     resources of a rejection that is reported
//	sync TYPE STATE
func TestState(t *testing.T) {
	for _, tc := range []struct{ name, delta, sotw string }{
		{
			name:  "first request is answered with nothing",
			delta: "req cds\nout cds\nack cds\nreq eds +a\nout eds -a\nreq rds\nout rds",
			sotw:  "req cds\nout cds\nack cds\nreq eds +a\nout eds\nack eds +a\nreq rds\nout rds",
		},
		{
			name:  "a star is a wildcard, beside names too",
			delta: "pub cds a@1 b@1\nreq cds +* +nope\nout cds a@1 b@1 -nope\nack cds\npub cds c@1\nout cds c@1",
			sotw:  "pub cds a@1 b@1\nreq cds +* +nope\nout cds a@1 b@1\nack cds +* +nope\npub cds c@1\nout cds a@1 b@1 c@1",
		},
		{
			name: "a later layer hides a name, and no longer",
			delta: "pub cds a@1 b@1\npub cds 1:!a\nreq cds\nout cds b@1\nack cds\npub cds a@2\npub cds 1:-a\nout cds a@2\nack cds\n" +
				"pub cds 1:!a\nout cds -a\nack cds\npub cds 1:a@3\nout cds a@3",
			sotw: "pub cds a@1 b@1\npub cds 1:!a\nreq cds\nout cds b@1\nack cds\npub cds a@2\npub cds 1:-a\nout cds a@2 b@1\nack cds\n" +
				"pub cds 1:!a\nout cds b@1\nack cds\npub cds 1:a@3\nout cds a@3 b@1",
		},
		{
			name:  "a name that is asked for and hidden is not there",
			delta: "pub rds a@1\npub rds 1:!a\nreq rds +a\nout rds -a\nack rds\npub rds 1:-a\nout rds a@1",
			sotw:  "pub rds a@1\npub rds 1:!a\nreq rds +a\nout rds\nack rds +a\npub rds 1:-a\nout rds a@1",
		},
		{
			name:  "explicit names of a wildcard type",
			delta: "pub cds a@1 b@1\nreq cds +a\nout cds a@1\nack cds\npub cds b@2\nack cds +b\nout cds b@2",
			sotw:  "pub cds a@1 b@1\nreq cds +a\nout cds a@1\nack cds +a\npub cds b@2\nack cds +a +b\nout cds a@1 b@2",
		},
		{
			name:  "later groups win by name",
			delta: "pub cds 0:a@1 1:a@2 0:b@1\nreq cds\nout cds a@2 b@1\nack cds\npub cds 0:a@3\npub cds 1:-a\nout cds a@3",
			sotw:  "pub cds 0:a@1 1:a@2 0:b@1\nreq cds\nout cds a@2 b@1\nack cds\npub cds 0:a@3\npub cds 1:-a\nout cds a@3 b@1",
		},
		{
			name:  "one response in flight, the newest state wins",
			delta: "pub cds a@1\nreq cds\nout cds a@1\npub cds a@2\npub cds a@3 b@1\nack cds\nout cds a@3 b@1\nack cds",
			sotw:  "pub cds a@1\nreq cds\nout cds a@1\npub cds a@2\npub cds a@3 b@1\nack cds\nout cds a@3 b@1\nack cds",
		},
		{
			name:  "what changes and changes back is not sent",
			delta: "pub cds a@1\nreq cds\nout cds a@1\npub cds a@2 b@1\npub cds a@1 -b\nack cds",
			sotw:  "pub cds a@1\nreq cds\nout cds a@1\npub cds a@2 b@1\npub cds a@1 -b\nack cds",
		},
		{
			name: "stale nonces answer nothing, yet delta takes their names",
			delta: "pub eds a@1 b@1\nreq eds +a\nout eds a@1\nreq eds nonce=old\nsync eds stale\nack eds\nsync eds synced\n" +
				"req eds nonce=old +b\nout eds b@1\nsync eds stale",
			sotw: "pub eds a@1 b@1\nreq eds +a\nout eds a@1\nreq eds nonce=old +b\nsync eds stale\nack eds +a\nout eds a@1\nack eds +a\n" +
				"sync eds synced\nreq eds nonce=old +b\nsync eds synced",
		},
		{
			name:  "a nonce of an earlier stream in the first request",
			delta: "pub eds a@1\nreq eds nonce=old +a\nout eds a@1",
			sotw:  "pub eds a@1\nreq eds nonce=old +a\nout eds a@1",
		},
		{
			name: "a rejected resource is not sent again until it changes",
			delta: "pub cds a@1\nreq cds\nout cds a@1\nnack cds no\nbad cds a no\nsync cds rejected\npub cds b@1\nout cds b@1\nack cds\n" +
				"sync cds rejected\npub cds a@2\nout cds a@2\nack cds\nsync cds synced",
			sotw: "pub cds a@1\nreq cds\nout cds a@1\nnack cds no\nbad cds a no\nsync cds rejected\npub cds b@1\nout cds a@1 b@1\nnack cds no\n" +
				"bad cds a b no\npub cds a@2\nout cds a@2 b@1\nack cds\nsync cds synced",
		},
		{
			name: "a rejected response is narrowed down to the bad resource",
			delta: "pub cds a@1 b@1 c@1 d@1\nreq cds\nout cds a@1 b@1 c@1 d@1\nnack cds x\nout cds a@1 b@1\nack cds\nout cds c@1 d@1\n" +
				"nack cds d\nout cds c@1\nack cds\nout cds d@1\nnack cds d\nbad cds d d\nsync cds rejected\npub cds -d\nout cds -d\nack cds\nsync cds synced",
			sotw: "pub rds a@1 b@1\nreq rds +a +b\nout rds a@1 b@1\nnack rds x +a +b\nout rds a@1\nack rds +a +b\nout rds b@1\nnack rds x +a +b\nbad rds b x",
		},
		{
			name:  "a removal that was rejected with a bad resource is sent again, once",
			delta: "pub cds a@1\nreq cds\nout cds a@1\nack cds\npub cds b@1 -a\nout cds b@1 -a\nnack cds x\nbad cds b x\nout cds -a\nnack cds x\nbad cds x",
		},
		{
			name:  "a retry of what has changed meanwhile is dropped",
			delta: "pub cds a@1 b@1\nreq cds\nout cds a@1 b@1\npub cds a@2\npub cds -b\nnack cds x\nout cds a@2 -b\nack cds\nsync cds synced",
		},
		{
			name: "a request after a rejection is not an answer to it",
			sotw: "pub rds a@1 b@1\nreq rds +a\nout rds a@1\nnack rds no +a\nbad rds a no\nack rds +a +b\nout rds b@1\nsync rds rejected",
		},
		{
			name:  "subscribing again sends again; unsubscribing says nothing",
			delta: "pub eds a@1 b@1\nreq eds +a\nout eds a@1\nack eds +a\nout eds a@1\nack eds -a +b\nout eds b@1\nack eds\npub eds a@2",
			sotw:  "pub eds a@1 b@1\nreq eds +a\nout eds a@1\nack eds +b\nout eds b@1\nack eds +b\npub eds a@2\nack eds\npub eds b@2\nreq eds +b\nout eds b@2",
		},
		{
			name:  "a name dropped beside a wildcard is sent or removed",
			delta: "pub cds a@1\nreq cds +* +a +n\nout cds a@1 -n\nack cds -a -n\nout cds a@1 -n",
		},
		{
			name:  "on demand: a wildcard added and dropped in the first request",
			delta: "pub cds a@1 b@1\nreq cds +* -*\nout cds\nack cds +a\nout cds a@1\nack cds\npub cds b@2",
		},
		{
			name: "reconnect: unchanged is not sent, gone is removed",
			delta: "pub cds a@1 b@2\npub eds a@1 c@1\nreq cds held=a@1,b@1,z@1\nout cds b@2 -z\nack cds\n" +
				"req eds +a +c held=a@1,c@1,z@1\nout eds -z\nack eds\nreq lds held=l@1\nout lds -l",
		},
		{
			name:  "reconnect: an assignment is sent again if its cluster was",
			delta: "pub cds a@2\npub eds a@1\nreq cds held=a@1\nout cds a@2\nreq eds +a held=a@1\nout eds a@1",
		},
		{
			name: "an assignment follows its cluster, unchanged and before the cluster's answer",
			delta: "pub cds a@1 b@1\npub eds a@1 b@1\nreq cds\nout cds a@1 b@1\nreq eds +a +b\nout eds a@1 b@1\nack eds\nack cds\n" +
				"pub cds a@2\nout cds a@2\nout eds a@1\nack eds\nack cds",
			sotw: "pub cds a@1 b@1\npub eds a@1 b@1\nreq cds\nout cds a@1 b@1\nreq eds +a +b\nout eds a@1 b@1\nack eds +a +b\nack cds\n" +
				"pub cds a@2\nout cds a@2 b@1\nout eds a@1\nack eds +a +b\nack cds",
		},
		{
			name:  "an assignment in flight is sent once more after its cluster",
			delta: "pub cds a@1\npub eds a@1\nreq cds\nout cds a@1\nreq eds +a\nout eds a@1\nack cds\npub cds a@2\nout cds a@2\nack eds\nout eds a@1",
			sotw:  "pub cds a@1\npub eds a@1\nreq cds\nout cds a@1\nreq eds +a\nout eds a@1\nack cds\npub cds a@2\nout cds a@2\nack eds +a\nout eds a@1",
		},
		{
			name:  "an assignment that is not there is said so after its cluster",
			delta: "pub cds a@1\nreq cds\nout cds a@1\nreq eds +a\nout eds -a\nack eds\nack cds\npub cds a@2\nout cds a@2\nout eds -a",
		},
		{
			name: "additions in order, removals in reverse after their users",
			delta: "pub cds a@1\npub lds a@1\nreq cds\nout cds a@1\nack cds\nreq lds\nout lds a@1\nack lds\n" +
				"hold\npub cds b@1 -a\npub lds b@1 -a\ngo\nout cds b@1\nout lds b@1 -a\nack cds\nack lds\nout cds -a",
			sotw: "pub cds a@1\npub lds a@1\nreq cds\nout cds a@1\nack cds\nreq lds\nout lds a@1\nack lds\n" +
				"hold\npub cds b@1 -a\npub lds b@1 -a\ngo\nout cds a@1 b@1\nout lds b@1\nack cds\nack lds\nout cds b@1",
		},
		{
			name:  "one response adds and removes when nothing later refers to it",
			delta: "pub cds a@1\nreq cds\nout cds a@1\nack cds\npub cds b@1 -a\nout cds b@1 -a",
			sotw:  "pub cds a@1\nreq cds\nout cds a@1\nack cds\npub cds b@1 -a\nout cds b@1",
		},
		{
			name: "a listener waits for the cluster that waits, within patience",
			delta: "req cds\nout cds\nack cds\nreq lds\nout lds\nack lds\npub cds a@1\nout cds a@1\nhold\npub cds b@1\npub lds b@1\ngo\nack cds\nout cds b@1\nout lds b@1\n" +
				"ack lds\nhold\npub cds c@1\npub lds c@1\ngo\nwait 4999ms\nwait 1ms\nout lds c@1",
		},
		{
			name:  "a listener whose cluster is out does not wait for the answer",
			delta: "req cds\nout cds\nack cds\nreq lds\nout lds\nack lds\nhold\npub cds a@1\npub lds a@1\ngo\nout cds a@1\nout lds a@1",
		},
		{
			name:  "some types are never removed",
			delta: "pub ecds a@1\nreq ecds +a +b\nout ecds a@1\nack ecds\npub ecds -a\npub ecds a@1\npub ecds a@2\nout ecds a@2",
		},
		{
			name: "names that no group holds are asked for",
			delta: "askable\npub eds a@1\nreq eds +a +b +c\nask eds b c\nsay eds b@9 c\nout eds a@1 b@9 -c\nack eds\npub eds c@1\nout eds c@1\n" +
				"ack eds\npub eds b@1\nout eds b@1\nack eds +d\nask eds d\nsay eds d@1 other@1\nout eds d@1",
			sotw: "askable\npub eds a@1\nreq eds +a +b\nask eds b\nsay eds b@9\nout eds a@1 b@9\nack eds +a +b",
		},
	} {
		for _, f := range []*form{deltaForm, sotwForm} {
			script := map[*form]string{deltaForm: tc.delta, sotwForm: tc.sotw}[f]
			if script == "" {
				continue
			}
			t.Run(tc.name+"/"+f.method, func(t *testing.T) { runScript(t, newMachine(f, 2), script) })
		}
	}
}

func runScript(t *testing.T, m *machine, script string) {
	var got, want []string
	held := false
	for _, line := range strings.Split(script, "\n") {
		words := strings.Fields(line)
		verb, args := words[0], words[1:]
		if slices.Contains([]string{"out", "ask", "bad", "sync"}, verb) {
			if verb == "sync" {
				got = append(got, "sync "+args[0]+" "+[]string{"notsent", "synced", "stale", "rejected"}[m.sub(args[0]).sync()])
			}
			want = append(want, line)
			continue
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("before %q (-want +got):\n%s", line, diff)
		}
		got, want = nil, nil
		switch verb {
		case "pub":
			for _, w := range args[1:] {
				layer, w, ok := strings.Cut(w, ":")
				if !ok {
					layer, w = "0", layer
				}
				n, _ := strconv.Atoi(layer)
				if name, ok := strings.CutPrefix(w, "-"); ok {
					m.publish(n, Change{Type: args[0], Remove: []string{name}})
				} else if name, ok := strings.CutPrefix(w, "!"); ok {
					m.publish(n, Change{Type: args[0], Set: []Resource{Hidden(name, "")}})
				} else {
					m.publish(n, Change{Type: args[0], Set: []Resource{named(w)}})
				}
			}
		case "req", "ack", "nack":
			q := parseScript(m, verb, args)
			if r := m.request(q, m.now); r != nil {
				line := "bad " + q.typeURL
				for _, name := range slices.Sorted(maps.Values(namesOf(r.resources))) {
					line += " " + name
				}
				got = append(got, line+" "+r.detail)
			}
		case "say":
			var found []Resource
			var asked []string
			for _, w := range args[1:] {
				asked = append(asked, named(w).Name)
				if strings.Contains(w, "@") {
					found = append(found, named(w))
				}
			}
			m.sub(args[0]).answer(slices.DeleteFunc(asked, func(n string) bool { return n == "other" }), found)
		case "wait":
			d, err := time.ParseDuration(args[0])
			if err != nil {
				t.Fatal(err)
			}
			m.now = m.now.Add(d)
		case "askable":
			m.ask = true
		case "hold", "go":
			held = verb == "hold"
		default:
			t.Fatalf("unknown event %q", line)
		}
		if held {
			continue
		}
		due := m.step()
		for _, r := range due.send {
			got = append(got, "out "+r.typeURL+show(r))
		}
		for typeURL, names := range due.ask {
			got = append(got, "ask "+typeURL+" "+strings.Join(names, " "))
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("at the end (-want +got):\n%s", diff)
	}
}

func namesOf(resources []*Resource) map[int]string {
	out := map[int]string{}
	for i, r := range resources {
		out[i] = r.Name
	}
	return out
}

func parseScript(m *machine, verb string, args []string) *request {
	q := &request{typeURL: args[0]}
	if verb != "req" {
		q.nonce = m.sub(args[0]).nonce
	}
	for _, w := range args[1:] {
		switch {
		case strings.HasPrefix(w, "+"):
			q.names = append(q.names, w[1:])
		case strings.HasPrefix(w, "-"):
			q.drop = append(q.drop, w[1:])
		case strings.HasPrefix(w, "nonce="):
			q.nonce = w[6:]
		case strings.HasPrefix(w, "held="):
			q.held = map[string]string{}
			for _, h := range strings.Split(w[5:], ",") {
				r := named(h)
				q.held[r.Name] = r.Version
			}
		default:
			q.nack, q.detail = true, w
		}
	}
	return q
}

func show(m *message) (s string) {
	list := m.set
	if m.full {
		list = m.all
	}
	for _, r := range list {
		s += " " + r.Name + "@" + r.Version
	}
	if !m.full {
		for _, n := range m.gone {
			s += " -" + n
		}
	}
	return s
}
