package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/kube"
)

// signingFiles reads the signing material that an administrator mounted; none is no error.
func (p *plane) signingFiles() (map[string][]byte, error) {
	files := map[string][]byte{}
	entries, err := os.ReadDir(p.SigningDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read the signing material: %w", err)
	}
	for _, e := range entries {
		if !identity.IsKey(e.Name()) {
			continue
		}
		content, err := os.ReadFile(filepath.Join(p.SigningDir, e.Name()))
		if errors.Is(err, os.ErrNotExist) { // a link whose key is gone, before the kubelet removes it
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the signing material: %w", err)
		}
		files[e.Name()] = content
	}
	return files, nil
}

// authority signs with the material that an administrator mounted, or with the mesh's own root.
func (p *plane) authority(ctx context.Context, trustDomain string) (*identity.Authority, error) {
	files, err := p.signingFiles()
	if err != nil {
		return nil, err
	}
	return identity.Open(ctx, files, secretStore{p.cluster, p.Namespace}, trustDomain, time.Now())
}

// followSigning has the authority sign with what is mounted whenever that changes, from now on. A plane that can't be told of
// changes serves with what it has.
func (p *plane) followSigning(ctx context.Context, authority *identity.Authority, events *kube.Events) {
	mounted, err := identity.Watch(p.SigningDir)
	if errors.Is(err, os.ErrNotExist) {
		return // nothing is mounted, as outside of a cluster
	}
	if err != nil {
		p.Log.LogAttrs(ctx, slog.LevelWarn, "changes of Secret cacerts are taken at a restart only", slog.String("dir", p.SigningDir), slog.Any("err", err))
		return
	}
	p.tasks.Go(func() error {
		defer mounted.Close()
		refused := ""
		for {
			// First of all too: what changed between the reading at the start and the watch has no event.
			if why := p.replaceSigning(ctx, authority); why != nil && why.Error() != refused {
				refused = why.Error()
				p.Log.LogAttrs(ctx, slog.LevelWarn, "signing material refused; the one before is used", slog.Any("err", why))
				events.Warn("SigningMaterialRefused", refused)
			} else if why == nil {
				refused = ""
			}
			if err := mounted.Changed(ctx); ctx.Err() != nil {
				return nil
			} else if err != nil {
				p.Log.LogAttrs(ctx, slog.LevelWarn, "changes of Secret cacerts may have been missed; it is read again", slog.Any("err", err))
			}
		}
	})
}

func (p *plane) replaceSigning(ctx context.Context, authority *identity.Authority) error {
	files, err := p.signingFiles()
	if err != nil {
		return err
	}
	changed, err := authority.Replace(files, time.Now())
	if changed {
		p.Log.LogAttrs(ctx, slog.LevelInfo, "signing material taken", slog.String("signer", authority.Signer()), slog.Time("notAfter", authority.NotAfter()))
	}
	return err
}
