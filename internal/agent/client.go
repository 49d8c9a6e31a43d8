package agent

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// Request sends one request to a port of the pod's loopback and copies the answer to out; another status than 200 is an
// error. The preStop hook of an injected pod drains so.
func Request(ctx context.Context, port int, method, path string, out io.Writer) error {
	url := "http://127.0.0.1" + portOf(port) + "/" + strings.TrimPrefix(path, "/")
	r, err := http.NewRequestWithContext(ctx, strings.ToUpper(method), url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return fmt.Errorf("ask the agent: %w", err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(out, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s answers %s", r.Method, url, resp.Status)
	}
	return nil
}

// Wait returns when url answers 200, asked every period, or with the last fault when ctx ends.
func Wait(ctx context.Context, url string, each, period time.Duration) error {
	client := &http.Client{Timeout: each}
	for {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(r)
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			err = fmt.Errorf("%s answers %s", url, resp.Status)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the proxy is not ready: %w", err)
		case <-time.After(period):
		}
	}
}
