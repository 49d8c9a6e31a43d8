package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// Prober is a probe or life cycle hook of the application that the injector moved to the agent, in Kubernetes' words with
// ports as numbers. The kubelet has no certificate; the agent, inside the pod, needs none.
type Prober struct {
	HTTPGet *struct {
		Path    string `json:"path"`
		Port    uint16 `json:"port"`
		Scheme  string `json:"scheme"`
		Headers []struct {
			Name  string `json:"name"`
			Value string `json:"value"`
		} `json:"httpHeaders"`
	} `json:"httpGet"`
	TCPSocket *struct {
		Port uint16 `json:"port"`
	} `json:"tcpSocket"`
	GRPC *struct {
		Port    uint16  `json:"port"`
		Service *string `json:"service"`
	} `json:"grpc"`
	TimeoutSeconds int `json:"timeoutSeconds"`
}

// toApp dials the pod's own address as the inbound proxy would: from this source the redirection lets it pass.
func toApp(pod netip.Addr) *net.Dialer {
	source := net.IPv4(127, 0, 0, 6)
	if pod.Is6() {
		source = net.ParseIP("::6")
	}
	return &net.Dialer{LocalAddr: &net.TCPAddr{IP: source}}
}

// timeout is Kubernetes', whose default is a second.
func (p Prober) timeout() time.Duration { return time.Duration(max(p.TimeoutSeconds, 1)) * time.Second }

// probe carries p out against the application at the pod's address, and returns the HTTP status to answer with.
func (p Prober) probe(ctx context.Context, pod netip.Addr, userAgent string) (int, error) {
	switch {
	case p.HTTPGet != nil:
		return p.get(ctx, pod, userAgent)
	case p.TCPSocket != nil:
		conn, err := toApp(pod).DialContext(ctx, "tcp", netip.AddrPortFrom(pod, p.TCPSocket.Port).String())
		if err != nil {
			return http.StatusServiceUnavailable, err
		}
		return http.StatusOK, conn.Close()
	case p.GRPC != nil:
		return p.health(ctx, pod)
	}
	return http.StatusNotImplemented, errors.New("the probe says neither httpGet nor tcpSocket nor grpc")
}

func (p Prober) get(ctx context.Context, pod netip.Addr, userAgent string) (int, error) {
	address := netip.AddrPortFrom(pod, p.HTTPGet.Port).String()
	scheme := strings.ToLower(p.HTTPGet.Scheme)
	if scheme == "" {
		scheme = "http"
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+address+"/"+strings.TrimPrefix(p.HTTPGet.Path, "/"), nil)
	if err != nil {
		return http.StatusInternalServerError, err
	}
	r.Header.Set("User-Agent", userAgent)
	for _, h := range p.HTTPGet.Headers {
		if strings.EqualFold(h.Name, "Host") {
			r.Host = h.Value
		} else {
			r.Header.Set(h.Name, h.Value)
		}
	}
	transport := &http.Transport{
		DialContext: toApp(pod).DialContext, DisableKeepAlives: true,
		// As the kubelet, take any certificate: the probe asks for life, within the pod, and has no name to verify.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}
	client := &http.Client{Transport: transport, CheckRedirect: func(next *http.Request, via []*http.Request) error {
		if next.URL.Host != r.URL.Host || len(via) > 9 {
			return http.ErrUseLastResponse // the kubelet takes a redirect elsewhere as success
		}
		return nil
	}}
	resp, err := client.Do(r)
	if err != nil {
		return http.StatusServiceUnavailable, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 10<<10))
	return resp.StatusCode, err
}

func (p Prober) health(ctx context.Context, pod netip.Addr) (int, error) {
	conn, err := grpc.NewClient("passthrough:///"+netip.AddrPortFrom(pod, p.GRPC.Port).String(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return toApp(pod).DialContext(ctx, "tcp", address)
		}))
	if err != nil {
		return http.StatusInternalServerError, err
	}
	defer conn.Close()
	in := &healthv1.HealthCheckRequest{}
	if p.GRPC.Service != nil {
		in.Service = *p.GRPC.Service
	}
	out, err := healthv1.NewHealthClient(conn).Check(ctx, in)
	if err != nil {
		return http.StatusServiceUnavailable, err
	}
	if out.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		return http.StatusServiceUnavailable, fmt.Errorf("the application says %s", out.GetStatus())
	}
	return http.StatusOK, nil
}

// url is on the loopback: what the agent sends there is not redirected.
func (s *Scrape) url() string {
	return "http://" + net.JoinHostPort("127.0.0.1", s.Port) + "/" + strings.TrimPrefix(s.Path, "/")
}

func portOf(n int) string { return ":" + strconv.Itoa(n) }
