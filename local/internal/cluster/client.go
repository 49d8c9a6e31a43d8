package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/heddle-mesh/heddle/local/internal/instance"
	"github.com/heddle-mesh/heddle/local/internal/proc"
)

// Client speaks with the daemon of an instance.
type Client struct {
	inst instance.Instance
	http http.Client
}

// Dial returns a client; it does not connect yet.
func Dial(inst instance.Instance) *Client {
	return &Client{inst: inst, http: http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", inst.Socket())
		},
	}}}
}

// Alive says whether the daemon answers.
func (c *Client) Alive(ctx context.Context) bool {
	_, err := c.Status(ctx)
	return err == nil
}

// Status of all parts. An error means that there is no daemon.
func (c *Client) Status(ctx context.Context) ([]Part, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://daemon/status", nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var parts []Part
	return parts, json.NewDecoder(resp.Body).Decode(&parts)
}

// Up makes the instance consist of what is wanted; it tells of each step that ended.
func (c *Client) Up(ctx context.Context, w Want, tell func(Event)) error {
	return c.change(ctx, "/up", w, tell)
}

// Publish deploys DNS and the names of Heddle's images.
func (c *Client) Publish(ctx context.Context, i Images, tell func(Event)) error {
	return c.change(ctx, "/images", i, tell)
}

func (c *Client) change(ctx context.Context, path string, body any, tell func(Event)) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://daemon"+path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("ask the daemon of instance %s: %w", c.inst.Name, err)
	}
	defer resp.Body.Close()
	for events := json.NewDecoder(resp.Body); ; {
		var e Event
		if err := events.Decode(&e); err != nil {
			return fmt.Errorf("the daemon ended meanwhile; run heddle-local up again: %w%s", err, c.inst.Tail())
		}
		switch {
		case e.Err != "":
			return errors.New(e.Err)
		case e.Step == "":
			return nil
		}
		tell(e)
	}
}

// Start starts the daemon, detached from this process and its terminal, and waits until it
// listens.
func (c *Client) Start(ctx context.Context) error {
	log, err := os.OpenFile(c.inst.DaemonLog(), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(proc.Self)
	cmd.Args = []string{"heddle-local", "daemon", "--instance", c.inst.Name}
	cmd.Env = append(os.Environ(), instance.Marker+"="+c.inst.Name)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // ends with the daemon or with us
	for {
		conn, err := net.Dial("unix", c.inst.Socket())
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-ended:
			return fmt.Errorf("the daemon ended at once: %w%s", err, c.inst.Tail())
		case <-time.After(10 * time.Millisecond):
		}
	}
}
