package operator

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	sailv1 "github.com/heddle-mesh/heddle/api/sailoperator/v1"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// admit answers the API server about Istios, their revisions and tags: what mesh.Members or the operator would refuse later,
// it refuses now, before anything of it is written; and it asks whether the requester may extend the mesh.
type admit struct {
	live      client.Reader // past the cache: of two meshes applied at once, the second must see the first
	reviews   reviews
	decoder   admission.Decoder
	namespace string // the operator's
}

// spoken are the kinds that admit judges.
var spoken = []string{"istios", "istiorevisions", "istiorevisiontags"}

// Handle refuses an object for what is wrong with it that was not before.
func (a *admit) Handle(ctx context.Context, req admission.Request) admission.Response {
	if req.Kind.Kind == "IstioRevisionTag" {
		return a.tag(ctx, req)
	}
	istio, old, err := a.istio(req)
	switch {
	case err != nil:
		return admission.Errored(http.StatusBadRequest, err)
	case istio.DeletionTimestamp != nil, old != nil && istio.Generation == old.Generation:
		return admission.Allowed("")
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
	before, err := claims(ctx, a.live, istios)
	if err != nil {
		return admission.Errored(http.StatusInternalServerError, err)
	}
	refusals, warnings := judge(before, istio, namespaces)
	if len(refusals) > 0 {
		return admission.Denied(strings.Join(refusals, "; "))
	}
	var was *mesh.Mesh
	if old != nil {
		was = new(MeshOf(old))
	}
	changed := MeshOf(istio)
	refusal, err := a.mayExtend(ctx, req.UserInfo, changed.ID, reached(was, changed, namespaces))
	switch {
	case err != nil:
		return admission.Errored(http.StatusInternalServerError, err)
	case refusal != "":
		return admission.Denied(refusal)
	}
	return admission.Allowed("").WithWarnings(warnings...)
}

// istio reads the Istio of a request and, of an update, what it was. A revision is judged as the Istio of its name would be:
// the operator's own follow one, and are not sent here.
func (a *admit) istio(req admission.Request) (istio, old *sailv1.Istio, err error) {
	read := func(raw runtime.RawExtension) (*sailv1.Istio, error) {
		if req.Kind.Kind == "Istio" {
			i := &sailv1.Istio{}
			return i, a.decoder.DecodeRaw(raw, i)
		}
		rev := &sailv1.IstioRevision{}
		err := a.decoder.DecodeRaw(raw, rev)
		return &sailv1.Istio{ObjectMeta: rev.ObjectMeta, Spec: sailv1.IstioSpec{
			Version: rev.Spec.Version, Namespace: rev.Spec.Namespace, Values: rev.Spec.Values,
		}}, err
	}
	if istio, err = read(req.Object); err != nil {
		return nil, nil, err
	}
	if req.Operation == admissionv1.Create {
		istio.CreationTimestamp = metav1.Time{} // of two made in one second, the one that is there was first
		return istio, nil, nil
	}
	old, err = read(req.OldObject)
	return istio, old, err
}

// tag refuses a name that the tag's objects cannot have, or that would give them the names of another tag's.
func (a *admit) tag(ctx context.Context, req admission.Request) admission.Response {
	tag := &sailv1.IstioRevisionTag{}
	if err := a.decoder.DecodeRaw(req.Object, tag); err != nil {
		return admission.Errored(http.StatusBadRequest, err)
	}
	if tag.DeletionTimestamp != nil {
		return admission.Allowed("")
	}
	if err := nameable(tag.Name); err != nil {
		return admission.Denied(err.Error())
	}
	var tags sailv1.IstioRevisionTagList
	istios, err := listIstios(ctx, a.live)
	if err = errors.Join(err, a.live.List(ctx, &tags)); err != nil {
		return admission.Errored(http.StatusInternalServerError, err)
	}
	systems := map[string]string{}
	for _, i := range istios {
		systems[i.Name] = i.Spec.Namespace
	}
	// Under InPlace a revision has the name of its Istio. Who has no target yet is judged when it has.
	system := systems[tag.Spec.TargetRef.Name]
	for _, other := range tags.Items {
		its := systems[other.Spec.TargetRef.Name]
		if other.Name != tag.Name && system != "" && its != "" && tagInjectorName(tag.Name, system) == tagInjectorName(other.Name, its) {
			return admission.Denied(fmt.Sprintf("tag %s in namespace %s and tag %s in namespace %s would both have a webhook configuration %s; rename one of them",
				tag.Name, system, other.Name, its, tagInjectorName(tag.Name, system)))
		}
	}
	return admission.Allowed("")
}

// judge compares the meshes as they are with what they would be: refusals are texts of findings that are new. The mesh's
// own missing label is a warning, since it may well be given later.
func judge(before []mesh.Mesh, istio *sailv1.Istio, namespaces []mesh.Namespace) (refusals, warnings []string) {
	changed := MeshOf(istio)
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
	var pairs []string
	for _, o := range others {
		pairs = append(pairs, mesh.Overlapping([]mesh.Mesh{o, changed})...)
	}
	if len(pairs) > 0 {
		slices.Sort(pairs)
		warnings = append(warnings, "some namespace could match both "+mesh.Some(pairs)+"; the API server will refuse one that does")
	}
	for _, v := range unusedValues(istio) {
		warnings = append(warnings, "spec.values."+v+" has no effect in this build")
	}
	return nil, warnings
}
