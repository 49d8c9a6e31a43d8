package operator

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// admit answers the API server about Istio objects: what mesh.Members or the operator would refuse later, it refuses now,
// before anything of it is written.
type admit struct {
	live      client.Reader // past the cache: of two meshes applied at once, the second must see the first
	decoder   admission.Decoder
	namespace string // the operator's
}

// Handle refuses an Istio for what is wrong with it that was not before.
func (a *admit) Handle(ctx context.Context, req admission.Request) admission.Response {
	istio := &sailv1.Istio{}
	if err := a.decoder.Decode(req, istio); err != nil {
		return admission.Errored(http.StatusBadRequest, err)
	}
	if istio.DeletionTimestamp != nil {
		return admission.Allowed("")
	}
	if req.Operation == admissionv1.Create {
		istio.CreationTimestamp = metav1.Time{} // of two made in one second, the one that is there was first
	} else {
		old := &sailv1.Istio{}
		if err := a.decoder.DecodeRaw(req.OldObject, old); err != nil {
			return admission.Errored(http.StatusBadRequest, err)
		}
		if istio.Generation == old.Generation {
			return admission.Allowed("")
		}
	}
	if err := supported(istio, a.namespace); err != nil {
		return admission.Denied(strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	istios, err := listIstios(ctx, a.live)
	if err != nil {
		return admission.Errored(http.StatusInternalServerError, err)
	}
	namespaces, err := listNamespaces(ctx, a.live, istios)
	if err != nil {
		return admission.Errored(http.StatusInternalServerError, err)
	}
	refusals, warnings := judge(istios, istio, namespaces)
	if len(refusals) > 0 {
		return admission.Denied(strings.Join(refusals, "; "))
	}
	return admission.Allowed("").WithWarnings(warnings...)
}

// judge compares the meshes as they are with what they would be: refusals are texts of findings that are new. The mesh's
// own missing label is a warning, since it may well be given later.
func judge(istios []sailv1.Istio, istio *sailv1.Istio, namespaces []mesh.Namespace) (refusals, warnings []string) {
	before, changed := claims(istios), MeshOf(istio)
	others := slices.DeleteFunc(slices.Clone(before), func(m mesh.Mesh) bool { return m.ID == changed.ID })
	for _, other := range others {
		for _, n := range names(changed) {
			if slices.Contains(names(other), n) {
				refusals = append(refusals, fmt.Sprintf("mesh %s in namespace %s and mesh %s in namespace %s would both have a webhook configuration %s; rename one of them",
					changed.ID, changed.System, other.ID, other.System, n))
			}
		}
	}
	_, was := mesh.Members(namespaces, before)
	_, will := mesh.Members(namespaces, append(slices.Clone(others), changed))
	for _, f := range will {
		switch {
		case slices.Contains(was, f):
		case f.Reason != mesh.ReasonSystemNamespaceNotSelected:
			refusals = append(refusals, f.Message)
		case f.About.Name == istio.Name:
			warnings = append(warnings, f.Message)
		}
	}
	if len(refusals) > 0 {
		return refusals, nil
	}
	for _, o := range others {
		for _, text := range mesh.Overlapping([]mesh.Mesh{o, changed}) {
			warnings = append(warnings, "some namespace could match both "+text+"; the API server will refuse one that does")
		}
	}
	for _, v := range unusedValues(istio) {
		warnings = append(warnings, "spec.values."+v+" has no effect in this build")
	}
	return nil, warnings
}
