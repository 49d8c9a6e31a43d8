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
	"k8s.io/client-go/kubernetes"
)

const answerWithin = 5 * time.Second // or a request is lost

// load is a stream of requests at a fixed rate, whatever becomes of them: a server that stalls is not asked less. Every
// other request has a connection of its own.
type load struct {
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu    sync.Mutex // guards the fields below
	times []time.Duration
	lost  map[string]int // by what was seen in place of 200
	ended map[string]time.Duration
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
	l := &load{cancel: cancel, lost: map[string]int{}, ended: map[string]time.Duration{}}
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
	start := time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, nil) // net/http would send a GET again that was cut off
	var resp *http.Response
	if err == nil {
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
		l.lost[err.Error()]++
		l.ended[err.Error()] = time.Since(began)
	}
}

// stop ends the load, waits for what is under way, and says how many requests were lost and how.
func (l *load) stop() string {
	l.cancel()
	l.done.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	lost := 0
	var how strings.Builder
	for _, reason := range slices.Sorted(maps.Keys(l.lost)) {
		lost += l.lost[reason]
		fmt.Fprintf(&how, "%d %s, last after %.1fs\n", l.lost[reason], reason, l.ended[reason].Seconds())
	}
	if len(l.times) == 0 {
		return "nothing was sent\n"
	}
	slices.Sort(l.times)
	return fmt.Sprintf("%d lost of %d; median %s, 99th percentile %s, longest %s\n%s", lost, len(l.times),
		l.times[len(l.times)/2].Round(time.Millisecond), l.times[len(l.times)*99/100].Round(time.Millisecond),
		l.times[len(l.times)-1].Round(time.Millisecond), &how)
}
