// Command image builds the local cluster's images and fetches the programs that they hold.
//
//	image [-root DIR] [-cache DIR] -layout DIR [IMAGE...]   brings an OCI layout up to date
//	image [-cache DIR] -envoy                               prints the path of the pinned Envoy
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/heddle-mesh/heddle/local/internal/image"
)

func main() {
	root := flag.String("root", ".", "the checkout")
	cache := flag.String("cache", "/var/cache/heddle-local", "where downloads and built programs are kept")
	layout := flag.String("layout", "", "the OCI layout to write")
	envoy := flag.Bool("envoy", false, "print the path of the pinned Envoy instead, fetched if need be")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *root, *cache, *layout, *envoy, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, root, cache, layout string, envoy bool, images []string) error {
	root, err := filepath.Abs(root)
	if err != nil {
		return err
	}
	cache, err = filepath.Abs(cache)
	if err != nil {
		return err
	}
	if envoy {
		path, err := image.Envoy(ctx, cache)
		if err == nil {
			fmt.Println(path)
		}
		return err
	}
	if layout == "" {
		return fmt.Errorf("say with -layout which OCI layout to write")
	}
	layout, err = filepath.Abs(layout)
	if err != nil {
		return err
	}
	built, err := image.Build(ctx, image.Options{
		Root: root, Cache: cache, Layout: layout, Images: images,
		Progress: func(line string) { fmt.Fprintln(os.Stderr, line) },
	})
	for _, b := range built {
		fmt.Println(b.Digest, b.Ref)
	}
	return err
}
