package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/kubernetes"
)

const (
	answerWithin = 5 * time.Second // or a request is lost
	logWait      = 3 * time.Second // until a proxy's log has all that it did: it writes once a second, and the runtime reads that
)

// load is a stream of requests at a fixed rate, whatever becomes of them: a server that stalls is not asked less. Every
// other request has a connection of its own.
type load struct {
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu    sync.Mutex // guards the fields below
	times []time.Duration
	lost  []loss
}

// loss is a request that did not get its 200.
type loss struct {
	id    string // X-Request-Id, which proxies log
	seen  string // in place of 200
	after time.Duration
}

// startLoad sends requests from the pod of an app, through its sidecar if it has one, to a service.
func startLoad(ctx context.Context, k kubernetes.Interface, ns, app, toNS, service, rate string) (*load, error) {
	perSecond, err := strconv.Atoi(rate)
	if err != nil || perSecond < 1 {
		return nil, fmt.Errorf("rate %q is not a number of requests a second", rate)
	}
	pod, err := podOf(ctx, k, ns, app)
	if err != nil {
		return nil, err
	}
	to, err := k.CoreV1().Services(toNS).Get(ctx, service, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	in, err := netnsOf(pod.Status.PodIP)
	if err != nil {
		return nil, err
	}
	port := strconv.Itoa(int(to.Spec.Ports[0].Port))
	address := net.JoinHostPort(to.Spec.ClusterIP, port) // the namespace has the pod's network, not its resolver
	url := "http://" + net.JoinHostPort(service+"."+toNS, port) + "/status/200"
	return begin(ctx, url, perSecond, func(ctx context.Context) (net.Conn, error) { return in.dial(ctx, address) }), nil
}

func begin(ctx context.Context, url string, perSecond int, dial func(context.Context) (net.Conn, error)) *load {
	client := func(closes bool) *http.Client {
		return &http.Client{Timeout: answerWithin, Transport: &http.Transport{
			DisableKeepAlives: closes, MaxIdleConnsPerHost: perSecond,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		}}
	}
	clients := []*http.Client{client(false), client(true)}
	ctx, cancel := context.WithCancel(ctx)
	l := &load{cancel: cancel}
	began := time.Now()
	l.done.Go(func() {
		defer clients[0].CloseIdleConnections()
		for i := 0; ; i++ {
			// By the schedule, not by a ticker, which leaves out what it is late for.
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(perSecond)))):
				l.done.Go(func() { l.send(context.WithoutCancel(ctx), clients[i%2], url, began) })
			}
		}
	})
	return l
}

func (l *load) send(ctx context.Context, c *http.Client, url string, began time.Time) {
	start, id := time.Now(), string(uuid.NewUUID())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, nil) // net/http would send a GET again that was cut off
	var resp *http.Response
	if err == nil {
		req.Header.Set("X-Request-Id", id)
		resp, err = c.Do(req)
	}
	var body []byte
	if err == nil {
		body, err = io.ReadAll(resp.Body)
		err = errors.Join(err, resp.Body.Close())
	}
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(body)) // a proxy's answer says there what failed
	}
	took := time.Since(start)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.times = append(l.times, took)
	if err != nil {
		l.lost = append(l.lost, loss{id, err.Error(), time.Since(began)})
	}
}

// stop ends the load, waits for what is under way, and says how many requests were lost and how. The log of the server's
// own proxy, if given, tells apart which of them the server cut off itself; those are not counted as lost.
func (l *load) stop(log string) string {
	l.cancel()
	l.done.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.times) == 0 {
		return "nothing was sent\n"
	}
	lost, own := 0, 0
	last := map[string]loss{}
	count := map[string]int{}
	for _, x := range l.lost {
		if cutOff(log, x.id) {
			own++
			continue
		}
		lost++
		count[x.seen]++
		last[x.seen] = x
	}
	var how strings.Builder
	for _, seen := range slices.Sorted(maps.Keys(count)) {
		fmt.Fprintf(&how, "%d %s, last after %.1fs (%s)\n", count[seen], seen, last[seen].after.Seconds(), last[seen].id)
	}
	if own > 0 {
		fmt.Fprintf(&how, "%d more cut off by the server itself\n", own)
	}
	slices.Sort(l.times)
	return fmt.Sprintf("%d lost of %d; median %s, 99th percentile %s, longest %s\n%s", lost, len(l.times),
		l.times[len(l.times)/2].Round(time.Millisecond), l.times[len(l.times)*99/100].Round(time.Millisecond),
		l.times[len(l.times)-1].Round(time.Millisecond), &how)
}

// stopLess is stop with a log that is read when the last request has ended.
func (l *load) stopLess(ctx context.Context, read func(context.Context) (string, error)) (string, error) {
	l.stop("")
	select {
	case <-time.After(logWait):
	case <-ctx.Done():
		return "", ctx.Err()
	}
	log, err := read(ctx)
	return l.stop(log), err
}

// cutOff tells whether a log in Istio's format has it that the application behind the proxy ended the connection that a
// request was on.
func cutOff(log, id string) bool {
	for line := range strings.Lines(log) {
		if strings.Contains(line, `"`+id+`"`) && strings.Contains(line, " inbound|") && strings.Contains(line, " 503 UC ") {
			return true
		}
	}
	return false
}
