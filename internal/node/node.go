// Package node is the data plane's hold on a pod's network.
package node

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/heddle-mesh/heddle/internal/node/redirect"
)

// Apply installs r in the network namespace that it runs in, in one transaction. It needs NET_ADMIN.
func Apply(ctx context.Context, r redirect.Redirection, nft string) error {
	if r.IPv6 {
		// The source by which the application sees the inbound proxy. Of 127.0.0.6 the kernel owns the whole /8.
		if err := addLoopback("::6/128"); err != nil {
			return fmt.Errorf("give lo the address ::6: %w", err)
		}
	}
	cmd := exec.CommandContext(ctx, nft, "-f", "-")
	cmd.Stdin = strings.NewReader(r.Rules())
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("redirect by %s (it needs NET_ADMIN and nf_tables in the kernel): %w\n%s", nft, err, out.Bytes())
	}
	return nil
}

func addLoopback(cidr string) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	return netlink.AddrReplace(lo, addr)
}
