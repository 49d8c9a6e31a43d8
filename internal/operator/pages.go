package operator

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/obs"
)

const (
	// annotationProfiles, on the operator's Deployment, lets its profiles be taken if it is true. A replica looks when it is
	// asked for one: nothing is restarted by it.
	annotationProfiles = "heddle.dev/profiles"

	// PagesPort and PagesPath are where a replica serves its pages, with the certificate of its webhook.
	PagesPort = webhookPort
	PagesPath = "/debug/"
)

// pages are what may be done with a running operator, on the port of its webhook. The caller passes the checks of a control
// plane's debug pages: it is a service account of the operator's namespace.
type pages struct {
	running context.Context // of the operator
	gate    *identity.Gate
	admin   *obs.Admin
}

func newPages(ctx context.Context, o Options, live client.Reader) (*pages, error) {
	tokens, err := kube.NewTokens(o.Config, home)
	if err != nil {
		return nil, err
	}
	return &pages{
		running: ctx,
		gate: &identity.Gate{
			Audience: mesh.Audience(o.Namespace, operatorName), RootNamespace: o.Namespace, Home: home,
			Clusters: oneCluster{tokens}, Members: onlyNamespace(o.Namespace),
			Refused: func(ctx context.Context, r identity.Refusal) { // anybody may call, and must not write our log
				o.Log.LogAttrs(ctx, slog.LevelDebug, "call refused", slog.String("check", r.Check), slog.String("reason", r.Reason), slog.String("peer", r.Peer))
			},
		},
		admin: &obs.Admin{Log: o.Log, Level: o.Level, Profiling: func(ctx context.Context) error {
			d := metadataOf(appsv1.SchemeGroupVersion.WithKind("Deployment"))
			if err := live.Get(ctx, client.ObjectKey{Namespace: o.Namespace, Name: operatorName}, d); err != nil {
				return fmt.Errorf("see whether profiles are switched on: %w", err)
			}
			if d.Annotations[annotationProfiles] != "true" {
				return fmt.Errorf("profiles of the operator are off; this switches them on, and restarts nothing: kubectl -n %s annotate deployment %s %s=true",
					o.Namespace, operatorName, annotationProfiles)
			}
			return nil
		}},
	}, nil
}

func (p *pages) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	caller, ok := p.gate.AdmitPage(w, r)
	if !ok {
		return
	}
	serve := p.admin.Pages()[strings.TrimPrefix(r.URL.Path, PagesPath)]
	if serve == nil {
		http.NotFound(w, r)
		return
	}
	// The lease is given up only once no request is under way: the next leader must not wait for a profile of this one.
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(p.running, cancel)()
	serve(w, r.WithContext(ctx), caller.Identity.Namespace+"/"+caller.Identity.ServiceAccount)
}

// home is the one cluster that an operator knows.
const home mesh.ClusterID = "home"

// oneCluster implements identity.Clusters.
type oneCluster struct{ tokens identity.TokenChecker }

func (r oneCluster) Tokens(id mesh.ClusterID) (identity.TokenChecker, bool) {
	return r.tokens, id == home
}

// onlyNamespace implements identity.Members.
type onlyNamespace string

func (n onlyNamespace) Member(_ mesh.ClusterID, namespace string) bool { return namespace == string(n) }
