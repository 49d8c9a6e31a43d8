// Package ingest makes records of objects: one object in, its records and what is wrong with it out.
// Kubernetes and Istio types end here. Every function is pure and keeps no part of the object that it may not share.
package ingest

import (
	"net/netip"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/internal/judge"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

const exportToAnnotation = "networking.istio.io/exportTo"

func object(kind string, k mesh.ObjectKey, m *metav1.ObjectMeta) mesh.Object {
	return mesh.Object{
		Ref:     mesh.Ref{Cluster: k.Cluster, Kind: kind, Namespace: k.Namespace, Name: k.Name},
		Created: m.CreationTimestamp.Unix(),
	}
}

// unreadable returns why no decoder of its kind reads an object; false: it has been read.
func unreadable(m *metav1.ObjectMeta) (why string, ok bool) {
	why, ok = m.Annotations[mesh.UnreadableAnnotation]
	return why, ok
}

func place(c mesh.Config, k mesh.ObjectKey) judge.Place {
	return judge.Place{Namespace: k.Namespace, Root: c.RootNamespace}
}

// findings says of a stored object what admission would have said, which it may have passed by or come before.
func findings(about mesh.Ref, v judge.Verdict) []mesh.Finding {
	var out []mesh.Finding
	for _, f := range v.Findings() {
		out = append(out, finding(about, f))
	}
	return out
}

func finding(about mesh.Ref, f judge.Finding) mesh.Finding {
	return mesh.Finding{About: about, Reason: f.Reason, Message: f.String()}
}

// visibility reads exportTo: "*" is everybody, "." the object's own namespace, "~" nobody, anything else a namespace.
// An empty list means the mesh's default, and that in turn everybody.
func visibility(exportTo, byDefault []string, own string) mesh.Visibility {
	if len(exportTo) == 0 {
		exportTo = byDefault
	}
	if len(exportTo) == 0 {
		return mesh.Visibility{All: true}
	}
	var v mesh.Visibility
	for _, e := range exportTo {
		switch e = strings.TrimSpace(e); e {
		case "*":
			return mesh.Visibility{All: true}
		case ".":
			v.Namespaces = append(v.Namespaces, own)
		case "~", "":
		default:
			v.Namespaces = append(v.Namespaces, e)
		}
	}
	slices.Sort(v.Namespaces)
	v.Namespaces = slices.Compact(v.Namespaces)
	return v
}

// canonical returns the one spelling of an address, by which it is a key wherever it comes from; false for what is none. An IPv4
// address written as IPv6 is the IPv4 one, and a zone says nothing outside of its node.
func canonical(address string) (string, bool) {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return "", false
	}
	return a.Unmap().WithZone("").String(), true
}

// canonicals returns the addresses among what is given, in order.
func canonicals(addresses []string) []string {
	var out []string
	for _, s := range addresses {
		if a, ok := canonical(s); ok && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// Addresses reads what a proxy says of its addresses, separated by commas.
func Addresses(s string) []string { return canonicals(list(s)) }

// list splits an annotation at commas.
func list(s string) []string {
	if s == "" {
		return nil
	}
	parts := strings.Split(s, ",")
	for i, p := range parts {
		parts[i] = strings.TrimSpace(p)
	}
	return parts
}
