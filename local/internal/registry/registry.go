// Package registry serves an OCI layout to container runtimes, read-only.
package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// Of the distribution specification: names may hold slashes; all we serve is sha256.
var (
	manifestPath = regexp.MustCompile(`^/v2/(.+)/manifests/([^/]+)$`)
	blobPath     = regexp.MustCompile(`^/v2/.+/blobs/sha256:([0-9a-f]{64})$`)
)

// Handler serves the layout at dir, as it is at each request.
//
// A mirror is asked for a repository with its registry in the parameter ns (docker.io, …); without it the
// registry is the first part of the name: 10.200.0.1:5000/docker.io/curlimages/curl.
func Handler(dir string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Docker-Distribution-API-Version", "registry/2.0")
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			refuse(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "this registry is read-only")
			return
		}
		if r.URL.Path == "/v2/" {
			return
		}
		if m := blobPath.FindStringSubmatch(r.URL.Path); m != nil {
			serve(w, r, dir, descriptor{MediaType: "application/octet-stream", Digest: "sha256:" + m[1]})
			return
		}
		m := manifestPath.FindStringSubmatch(r.URL.Path)
		if m == nil {
			refuse(w, http.StatusNotFound, "NAME_UNKNOWN", r.URL.Path)
			return
		}
		name := m[1]
		if ns := r.URL.Query().Get("ns"); ns != "" {
			name = ns + "/" + name
		}
		d, err := find(dir, name, m[2])
		if err != nil {
			refuse(w, http.StatusInternalServerError, "UNKNOWN", err.Error())
			return
		}
		serve(w, r, dir, d)
	})
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Annotations map[string]string `json:"annotations"`
}

// find returns the manifest that a repository has under a tag or digest, or nothing. The tag * stands for each that the
// repository does not have.
func find(dir, name, reference string) (descriptor, error) {
	var index struct{ Manifests []descriptor }
	b, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err == nil {
		err = json.Unmarshal(b, &index)
	}
	if err != nil {
		return descriptor{}, fmt.Errorf("read image layout: %w", err)
	}
	var other descriptor
	for _, d := range index.Manifests {
		ref := d.Annotations["org.opencontainers.image.ref.name"]
		if ref == name+":"+reference || d.Digest == reference && strings.HasPrefix(ref, name+":") {
			return d, nil
		}
		if ref == name+":*" && !strings.HasPrefix(reference, "sha256:") {
			other = d
		}
	}
	return other, nil
}

func serve(w http.ResponseWriter, r *http.Request, dir string, d descriptor) {
	f, err := os.Open(filepath.Join(dir, "blobs", "sha256", strings.TrimPrefix(d.Digest, "sha256:")))
	if d.Digest == "" || err != nil {
		refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "not in the local registry: "+r.URL.RequestURI())
		return
	}
	defer f.Close()
	w.Header().Set("Content-Type", d.MediaType)
	w.Header().Set("Docker-Content-Digest", d.Digest)
	w.Header().Set("ETag", `"`+d.Digest+`"`)
	http.ServeContent(w, r, "", time.Time{}, f)
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": code, "message": message}}})
}

// Serve serves the layout at dir on a TCP address until ctx ends.
func Serve(ctx context.Context, addr, dir string) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	s := &http.Server{Handler: Handler(dir), ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(l); ctx.Err() == nil {
		return fmt.Errorf("registry: %w", err)
	}
	return nil
}
