package judge

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Rules about fields that several kinds have.

var (
	label     = regexp.MustCompile(`^[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?$`)
	wildLabel = regexp.MustCompile(`^(\*|(\*-?)?[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?)$`)
)

const (
	maxLabel = 63 // RFC 1123
	maxHost  = 255
)

// host takes what Istio takes for the name of services: labels, of which the first may be or begin with a wildcard (*, *x, *-x). The
// last of several is no number, or it is empty: a name may end with a dot.
func (v *Verdict) host(at, host string) {
	labels := strings.Split(host, ".")
	rest := labels[1:]
	if n := len(rest); n > 0 && rest[n-1] == "" {
		rest = rest[:n-1]
	}
	switch {
	case len(host) > maxHost:
		v.fault(at, ReasonInvalid, "%.20q… has more than %d characters", host, maxHost)
		return
	case len(rest) > 0:
		if _, err := strconv.Atoi(rest[len(rest)-1]); err == nil {
			v.fault(at, ReasonInvalid, "%q is an address, or ends as one: give the name of a service", host)
			return
		}
	}
	if wild := labels[0]; len(wild) > maxLabel || !wildLabel.MatchString(wild) {
		v.fault(at, ReasonInvalid, "%q is not the name of a service: its first label %q is neither a DNS label nor begins with the name's only wildcard", host, wild)
	}
	for _, l := range rest {
		if len(l) > maxLabel || !label.MatchString(l) {
			v.fault(at, ReasonInvalid, "%q is not the name of a service: %q is not a DNS label", host, l)
		}
	}
}

// exportTo takes namespaces, one time each, and "." for the object's own; "*" for all stands alone.
func (v *Verdict) exportTo(at string, names []string) {
	seen := map[string]bool{}
	for _, name := range names {
		switch {
		case seen[name]:
			v.fault(at, ReasonInvalid, "%q is there twice", name)
		case name == "*" && len(names) > 1:
			v.fault(at, ReasonInvalid, `"*" stands alone or not at all`)
		case name == "*" || name == ".":
		default:
			if len(validation.IsDNS1123Label(name)) > 0 {
				v.fault(at, ReasonInvalid, `%q is neither ".", "*" nor a namespace`, name)
			}
		}
		seen[name] = true
	}
}

func (v *Verdict) selector(at string, labels map[string]string) {
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		value := labels[key]
		if errs := validation.IsQualifiedName(key); len(errs) > 0 {
			v.fault(at, ReasonInvalid, "key %q: %s", key, errs[0])
		}
		if errs := validation.IsValidLabelValue(value); len(errs) > 0 {
			v.fault(at, ReasonInvalid, "%s=%q: %s", key, value, errs[0])
		}
	}
}

func (v *Verdict) port(at string, number uint32) {
	if number < 1 || number > 65535 {
		v.fault(at, ReasonInvalid, "%d is not a port number (1 to 65535)", number)
	}
}

// unused names the fields of m that are set and that no code acts on.
func (v *Verdict) unused(at string, m protoreflect.Message, used ...string) {
	var names []string
	m.Range(func(f protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		if !slices.Contains(used, f.JSONName()) {
			names = append(names, f.JSONName())
		}
		return true
	})
	slices.Sort(names)
	for _, n := range names {
		v.warn(at+"."+n, ReasonNotActedOn, "accepted but not acted on by this version of Heddle")
	}
}
