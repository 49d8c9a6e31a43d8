package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// tree is the content of a layer, by slash-separated path without a leading slash.
type tree map[string]node

// node is a directory, a link, or a file with its content here or in a file of this machine.
type node struct {
	dir      bool
	link     string
	data     []byte
	from     string
	mode     int64 // permission bits of tar
	uid, gid int
}

func clean(p string) string { return strings.TrimPrefix(path.Clean("/"+p), "/") }

// addDir adds what lies below a directory of this machine, but not what lies below skip.
// Debian packages of before the merge of / and /usr are moved below usr, so that a layer fits on any other.
func (t tree) addDir(root string, skip string) error {
	return filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil || file == root {
			return err
		}
		rel, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		if top, _, _ := strings.Cut(rel, "/"); slices.Contains([]string{"bin", "sbin", "lib", "lib64"}, top) {
			rel = "usr/" + rel
		}
		if rel == skip {
			return filepath.SkipDir
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch info.Mode().Type() {
		case fs.ModeDir: // written with what lies in it
		case 0:
			t[rel] = node{from: file, mode: int64(info.Mode().Perm())}
		case fs.ModeSymlink:
			target, err := os.Readlink(file)
			if err != nil {
				return err
			}
			t[rel] = node{link: target}
		default:
			return fmt.Errorf("%s: a layer can't hold %s", file, info.Mode())
		}
		return nil
	})
}

// write writes the tree as a tar, in order, with the directories that lead to its files.
func (t tree) write(w io.Writer) error {
	all := maps.Clone(t)
	for p := range t {
		for dir := path.Dir(p); dir != "."; dir = path.Dir(dir) {
			if _, ok := all[dir]; !ok {
				all[dir] = node{dir: true, mode: 0o755}
			}
		}
	}
	tw := tar.NewWriter(w)
	for _, p := range slices.Sorted(maps.Keys(all)) {
		if err := all[p].write(tw, p); err != nil {
			return fmt.Errorf("/%s: %w", p, err)
		}
	}
	return tw.Close()
}

func (n node) write(tw *tar.Writer, name string) error {
	h := &tar.Header{Name: name, Mode: n.mode, Uid: n.uid, Gid: n.gid, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
	var body io.Reader = bytes.NewReader(n.data)
	switch {
	case n.dir:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	case n.link != "":
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, n.link, 0o777
	case n.from != "":
		f, err := os.Open(n.from)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		h.Typeflag, h.Size, body = tar.TypeReg, info.Size(), f
	default:
		h.Typeflag, h.Size = tar.TypeReg, int64(len(n.data))
	}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	_, err := io.Copy(tw, body)
	return err
}

// blob is a tree as a layer. Its tar is made anew for each reader: it is read once to know its digest,
// which is as quick as knowing that of its files, and again only if the layout does not have it.
type blob struct {
	tree   tree
	digest v1.Hash
	size   int64
}

func newBlob(t tree) (*blob, error) {
	sum, size := sha256.New(), new(counter)
	if err := t.write(io.MultiWriter(sum, size)); err != nil {
		return nil, err
	}
	return &blob{tree: t, digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum.Sum(nil))}, size: int64(*size)}, nil
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

func (b *blob) Digest() (v1.Hash, error)            { return b.digest, nil }
func (b *blob) DiffID() (v1.Hash, error)            { return b.digest, nil }
func (b *blob) Size() (int64, error)                { return b.size, nil }
func (b *blob) MediaType() (types.MediaType, error) { return types.OCIUncompressedLayer, nil }
func (b *blob) Compressed() (io.ReadCloser, error)  { return b.Uncompressed() }

// Uncompressed fails at its end if a file has changed since the digest was taken.
func (b *blob) Uncompressed() (io.ReadCloser, error) {
	r, w := io.Pipe()
	go func() {
		sum := sha256.New()
		err := b.tree.write(io.MultiWriter(w, sum))
		if err == nil && hex.EncodeToString(sum.Sum(nil)) != b.digest.Hex {
			err = fmt.Errorf("a file of the layer changed while it was read; build again")
		}
		w.CloseWithError(err)
	}()
	return r, nil
}
