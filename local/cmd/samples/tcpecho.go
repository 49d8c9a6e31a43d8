package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// tcpEcho answers each line on each of its ports with the same line after a prefix.
func tcpEcho(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New("tcp-echo wants ports and a prefix: tcp-echo 9000,9001 hello")
	}
	group, ctx := errgroup.WithContext(ctx)
	for port := range strings.SplitSeq(args[0], ",") {
		group.Go(func() error {
			l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", ":"+port)
			if err != nil {
				return err
			}
			log.Printf("listening on %s, prefix: %s", l.Addr(), args[1])
			return echo(ctx, l, args[1])
		})
	}
	return group.Wait()
}

// echo serves a listener until ctx ends, and returns when its connections have ended.
func echo(ctx context.Context, l net.Listener, prefix string) error {
	var group errgroup.Group
	defer group.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	context.AfterFunc(ctx, func() { l.Close() })
	for {
		c, err := l.Accept()
		if err != nil && ctx.Err() != nil {
			return nil
		} else if err != nil {
			return err
		}
		group.Go(func() error {
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Now()) })()
			lines := bufio.NewScanner(c) // a line of more than 64 kB ends its connection
			for lines.Scan() {
				if _, err := fmt.Fprintf(c, "%s %s\n", prefix, lines.Text()); err != nil {
					return nil // the client is gone, which is nothing to tell
				}
			}
			return nil
		})
	}
}
