package inject

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// crowd counts who waits for a Membership at once; none comes.
type crowd struct {
	members
	now, most atomic.Int64
}

func (c *crowd) Wait(ctx context.Context, namespace string) bool {
	if namespace == "app" {
		return true
	}
	n := c.now.Add(1)
	defer c.now.Add(-1)
	for m := c.most.Load(); n > m && !c.most.CompareAndSwap(m, n); m = c.most.Load() {
	}
	<-ctx.Done()
	return false
}

func from(h http.Handler, peer, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "/inject", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	r.RemoteAddr = peer + ":1"
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// However many call at once, there are only so many bodies in memory, and one peer's calls leave room for the others'.
func TestBodiesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, c := params(t, Settings{}), &crowd{}
		h := Handler(Options{Registerer: prometheus.NewRegistry(), Params: func() *Params { return p }, Members: c})
		const room = maxBodies / 2 / minReview
		const callers = 2 * room
		codes := make(chan int, callers)
		for range callers {
			go func() { codes <- from(h, "10.0.0.9", podReview("v1", "new", "")).Code }()
		}
		synctest.Wait()
		if n := c.now.Load(); n != room {
			t.Errorf("%d of %d calls of one peer are under way", n, callers)
		}
		start := time.Now()
		if r := response(t, from(h, "10.0.0.1", podReview("v1", "app", ""))); len(r.Patch) == 0 || time.Since(start) > 0 {
			t.Errorf("another peer waits %v: %+v", time.Since(start), r)
		}
		count := map[int]int{}
		for range callers {
			count[<-codes]++
		}
		// The first half are refused by the injector after membershipWait, in a 200; then there is room for the other half, or the end of patience.
		if count[http.StatusOK]+count[http.StatusServiceUnavailable] != callers || count[http.StatusOK] < room {
			t.Errorf("answers %v", count)
		}
	})
}

// bigPod is podReview with so many variables, and what stands for managed fields and the like.
func bigPod(namespace string, variables, more int) string {
	env := strings.Repeat(`{"name":"A","value":"b"},`, variables) + `{"name":"A","value":"b"}`
	return strings.Replace(podReview("v1", namespace, `,"annotations":{"more":"`+strings.Repeat("x", more)+`"}`), `"image":"b"`, `"image":"b","env":[`+env+`]`, 1)
}

// Pods that wait for their namespace's Membership, however many and large, keep no pod of a member waiting, though one API server
// sends all of them.
func TestWaitingLeavesRoom(t *testing.T) {
	for name, c := range map[string]struct {
		callers int
		waiting string
	}{
		"many":  {200, bigPod("new", 200, 20_000)},
		"large": {10, bigPod("new", 20, 1_300_000)},
	} {
		t.Run(name, func(t *testing.T) {
			waiting, callers := c.waiting, c.callers
			synctest.Test(t, func(t *testing.T) {
				p, c := params(t, Settings{}), &crowd{}
				h := Handler(Options{Registerer: prometheus.NewRegistry(), Params: func() *Params { return p }, Members: c})
				answers := make(chan *httptest.ResponseRecorder, callers)
				for i := range callers {
					body := strings.ReplaceAll(waiting, `"namespace":"new"`, fmt.Sprintf(`"namespace":"new-%d"`, i%3))
					go func() { answers <- from(h, "10.0.0.9", body) }()
				}
				synctest.Wait()
				if c.now.Load() == 0 {
					t.Error("nobody waits")
				}
				start := time.Now()
				if r := response(t, from(h, "10.0.0.9", bigPod("app", 200, 20_000))); len(r.Patch) == 0 || time.Since(start) > 0 {
					t.Errorf("a member's pod waits %v: %+v", time.Since(start), r)
				}
				count := map[bool]int{}
				for range callers {
					m := response(t, <-answers).Result.Message
					full := strings.Contains(m, "too many pods wait")
					if !full && !strings.Contains(m, "no Membership in istio-system-1 after 2s") {
						t.Error(m)
					}
					count[full]++
				}
				if count[true] == 0 || count[false] == 0 {
					t.Errorf("of those who waited %d were refused in the end, and %d at once", count[false], count[true])
				}
			})
		})
	}
}

// A rollout of a member is as many pods at once as controllers make: all of them get in, and none waits for longer than others
// take to decide.
func TestRolloutsGetIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := params(t, Settings{})
		h := Handler(Options{Registerer: prometheus.NewRegistry(), Params: func() *Params { return p }, Members: &crowd{}})
		const pods = 200
		start, answers := time.Now(), make(chan *httptest.ResponseRecorder, pods)
		for range pods {
			go func() { answers <- from(h, "10.0.0.9", bigPod("app", 200, 20_000)) }()
		}
		for range pods {
			if r := response(t, <-answers); len(r.Patch) == 0 {
				t.Errorf("not injected: %+v", r)
			}
		}
		if d := time.Since(start); d > 0 {
			t.Errorf("somebody waited by the clock: %v", d)
		}
	})
}

// What a peer only says that it will send counts like what it sends: of unknown length, the most; too long, it is not even read.
func TestBodiesCountBeforeTheyCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, c := params(t, Settings{}), &crowd{}
		h := Handler(Options{Registerer: prometheus.NewRegistry(), Params: func() *Params { return p }, Members: c})
		call := func(length int64, body io.Reader) *httptest.ResponseRecorder {
			r := httptest.NewRequest(http.MethodPost, "/inject", body)
			r.Header.Set("Content-Type", "application/json")
			r.ContentLength = length
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			return w
		}
		if w := call(maxReview+1, unreadable{}); w.Code != http.StatusRequestEntityTooLarge {
			t.Errorf("too long by its own word: %d %s", w.Code, w.Body)
		}
		in, out := io.Pipe()
		slow := make(chan int)
		go func() { slow <- call(-1, in).Code }()
		synctest.Wait()
		start := time.Now()
		if w := call(int64(minReview), strings.NewReader(podReview("v1", "app", ""))); w.Code != http.StatusServiceUnavailable || time.Since(start) != patience {
			t.Errorf("beside a body of unknown length: %d after %v", w.Code, time.Since(start))
		}
		fmt.Fprint(out, podReview("v1", "app", ""))
		_ = out.Close()
		if code := <-slow; code != http.StatusOK {
			t.Errorf("of unknown length: %d", code)
		}
		if w := call(int64(minReview), strings.NewReader(podReview("v1", "app", ""))); w.Code != http.StatusOK {
			t.Errorf("after it: %d %s", w.Code, w.Body)
		}
	})
}

// A few bytes may stand for a large value: what an object takes in memory is bounded, and so is what is said of it.
func TestManyValues(t *testing.T) {
	p := params(t, Settings{})
	var logged strings.Builder
	h := Handler(Options{Log: slog.New(slog.NewTextHandler(&logged, nil)), Registerer: prometheus.NewRegistry(), Params: func() *Params { return p }, Members: members{}})
	rule := func(items int) string {
		return `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u1","operation":"CREATE","kind":{"group":"networking.istio.io","version":"v1","kind":"DestinationRule"},` +
			`"object":{"apiVersion":"networking.istio.io/v1","kind":"DestinationRule","metadata":{"name":"a","namespace":"n"},"spec":{"host":"a","subsets":[` + strings.Repeat(`{},`, items) + `{}]}}}}`
	}
	if w := post(t, h, "/validate", "application/json", rule(60_000)); w.Code != http.StatusRequestEntityTooLarge || !strings.Contains(w.Body.String(), "too many values") {
		t.Errorf("%d %.200s", w.Code, w.Body)
	}
	r := response(t, post(t, h, "/validate", "application/json", rule(2_000)))
	if r.Allowed || len(r.Result.Message) > maxMessage+20 || !strings.Contains(r.Result.Message, "subsets[0]") {
		t.Errorf("allowed %v, says %d bytes", r.Allowed, len(r.Result.Message))
	}
	if logged.Len() == 0 || logged.Len() > 2*maxMessage {
		t.Errorf("logs %d bytes", logged.Len())
	}
	if n := len(allow(make([]string, 100)...).Warnings); n != maxWarnings+1 {
		t.Errorf("%d warnings", n)
	}
}

// slow is a body that does not come, as a server with deadlines reads it.
type slow struct{}

func (slow) Read([]byte) (int, error) {
	time.Sleep(bodyWait)
	return 0, os.ErrDeadlineExceeded
}

// Pods of somebody that begin reviews all the time, and send nothing, delay the API server; they do not keep it out, however many
// they are, and whether each promises little or much.
func TestSlowPeersKeepNobodyOut(t *testing.T) {
	for _, c := range []struct{ peers, each, length int }{
		{4, 3, maxReview}, {6, 3, maxReview}, {40, 1, maxReview}, {40, 3, maxReview}, {20, 40, minReview},
	} {
		t.Run(fmt.Sprintf("peers=%d/each=%d/bytes=%d", c.peers, c.each, c.length), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := params(t, Settings{})
				h := Handler(Options{Registerer: prometheus.NewRegistry(), Params: func() *Params { return p }, Members: &crowd{}})
				ctx, stop := context.WithCancel(t.Context())
				var slows sync.WaitGroup
				defer slows.Wait()
				defer stop()
				for i := range c.peers * c.each {
					slows.Go(func() {
						for ctx.Err() == nil {
							r := httptest.NewRequest(http.MethodPost, "/inject", slow{})
							r.Header.Set("Content-Type", "application/json")
							r.ContentLength, r.RemoteAddr = int64(c.length), fmt.Sprintf("10.0.0.%d:1", i%c.peers)
							h.ServeHTTP(httptest.NewRecorder(), r)
						}
					})
				}
				for range 5 {
					synctest.Wait()
					start := time.Now()
					if r := from(h, "10.0.1.1", bigPod("app", 200, 20_000)); r.Code != http.StatusOK {
						t.Errorf("after %v %d %s", time.Since(start), r.Code, r.Body)
					}
				}
			})
		})
	}
}

// A rollout gets in among pods of somebody that keep as much room as they can by promising little and sending nothing: who keeps its
// room for long comes after who gives it back.
func TestARolloutGetsInAmongSlowPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := params(t, Settings{})
		h := Handler(Options{Registerer: prometheus.NewRegistry(), Params: func() *Params { return p }, Members: &crowd{}})
		ctx, stop := context.WithCancel(t.Context())
		var slows sync.WaitGroup
		defer slows.Wait()
		defer stop()
		const peers, each, pods = 10, 300, 200
		for i := range peers * each {
			slows.Go(func() {
				for ctx.Err() == nil {
					r := httptest.NewRequest(http.MethodPost, "/inject", slow{})
					r.Header.Set("Content-Type", "application/json")
					r.ContentLength, r.RemoteAddr = minReview, fmt.Sprintf("10.0.0.%d:1", i%peers)
					h.ServeHTTP(httptest.NewRecorder(), r)
				}
			})
		}
		time.Sleep(4 * bodyWait)
		codes := make(chan int, pods)
		for range pods {
			go func() { codes <- from(h, "10.0.1.1", bigPod("app", 20, 2_000)).Code }()
		}
		count := map[int]int{}
		for range pods {
			count[<-codes]++
		}
		if count[http.StatusOK] != pods {
			t.Errorf("of %d pods: %v", pods, count)
		}
	})
}

// Who was given least goes first: a peer that asks for little is not behind others for each time that it asks.
func TestWhoWasGivenLeastGoesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const all, big, small = 8 << 20, 4 << 20, 64 << 10
		b := newBudget[string](all)
		var order [5][]string // who was given something, by second
		var given sync.WaitGroup
		var mu sync.Mutex // guards order
		began := time.Now()
		ask := func(of string, n int64) {
			given.Go(func() {
				release, err := b.acquire(t.Context(), of, n)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				at := &order[time.Since(began)/time.Second]
				*at = append(*at, of)
				mu.Unlock()
				time.Sleep(time.Second)
				release()
			})
			synctest.Wait()
		}
		for _, of := range []string{"a", "b", "c", "d", "e", "a", "b"} {
			ask(of, big)
		}
		for range 3 {
			ask("api", small)
		}
		given.Wait()
		for i := range order {
			slices.Sort(order[i])
		}
		if got, want := fmt.Sprint(order), "[[a b] [api api api c] [d e] [a b] []]"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
		if len(b.shares) > 0 {
			t.Errorf("%d peers are remembered for ever", len(b.shares))
		}
	})
}

// A queue has an end, and who gives up leaves it.
func TestQueuesEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget[string](2 * minReview)
		release, err := b.acquire(t.Context(), "a", minReview)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var waiting sync.WaitGroup
		for range maxQueue {
			waiting.Go(func() {
				if _, err := b.acquire(ctx, "a", minReview); err == nil {
					t.Error("there was room")
				}
			})
		}
		synctest.Wait()
		if _, err := b.acquire(t.Context(), "a", minReview); err != errFull {
			t.Errorf("one more: %v", err)
		}
		if _, err := b.try("a", minReview); err != errFull {
			t.Errorf("without a wait: %v", err)
		}
		other, err := b.acquire(t.Context(), "b", minReview)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		waiting.Wait()
		other()
		release()
		if release, err = b.try("a", minReview); err != nil {
			t.Fatalf("nobody waits any more: %v", err)
		}
		release()
		if len(b.shares) > 0 {
			t.Errorf("%d peers are remembered for ever", len(b.shares))
		}
	})
}

type unreadable struct{}

func (unreadable) Read([]byte) (int, error) { panic("read") }

// A body that does not come gives its place back soon.
func TestSlowBodyIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := params(t, Settings{})
		server := &http.Server{
			Handler: Handler(Options{Registerer: prometheus.NewRegistry(), Params: func() *Params { return p }, Members: &crowd{}}), ReadTimeout: time.Minute,
		}
		here, there := net.Pipe()
		l := &oneConn{conns: make(chan net.Conn, 1)}
		l.conns <- there
		served := make(chan error)
		go func() { served <- server.Serve(l) }()
		fmt.Fprintf(here, "POST /inject HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{")
		start := time.Now()
		resp, err := http.ReadResponse(bufio.NewReader(here), nil)
		if err != nil || resp.StatusCode != http.StatusBadRequest || time.Since(start) != bodyWait {
			t.Errorf("%+v, %v after %v", resp, err, time.Since(start))
		}
		_ = here.Close()
		_ = server.Close()
		<-served
	})
}

type oneConn struct{ conns chan net.Conn }

func (l *oneConn) Accept() (net.Conn, error) {
	if c, ok := <-l.conns; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (l *oneConn) Close() error   { close(l.conns); return nil }
func (l *oneConn) Addr() net.Addr { return &net.TCPAddr{} }
