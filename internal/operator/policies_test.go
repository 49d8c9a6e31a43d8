package operator

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/ext"
	admissionv1 "k8s.io/api/admissionregistration/v1"
)

// attempt is a request that policies judge. Objects are as the API server gives them to CEL; nil where there is none.
type attempt struct {
	user        string
	may         []string // verbs that the user has in every namespace
	op          admissionv1.OperationType
	group       string
	resource    string // with its subresource
	object, old map[string]any
}

// refusals are the policies of action Deny that refuse an attempt, by the same expressions as the API server.
func refusals(t *testing.T, a attempt, selectors map[string]string) (out []string) {
	t.Helper()
	same := func(args ...ref.Val) ref.Val { return args[0] }
	chain := func(name string, args ...*cel.Type) cel.EnvOption {
		return cel.Function(name, cel.MemberOverload("authorizer_"+name, append([]*cel.Type{cel.DynType}, args...), cel.DynType, cel.FunctionBinding(same)))
	}
	env, err := cel.NewEnv(ext.Strings(), cel.OptionalTypes(), chain("group", cel.StringType), chain("resource", cel.StringType),
		chain("name", cel.StringType), chain("allowed"),
		cel.Function("check", cel.MemberOverload("authorizer_check", []*cel.Type{cel.DynType, cel.StringType}, cel.DynType,
			cel.BinaryBinding(func(_, verb ref.Val) ref.Val { return types.Bool(slices.Contains(a.may, verb.Value().(string))) }))),
		cel.Variable("request", cel.DynType), cel.Variable("object", cel.DynType), cel.Variable("oldObject", cel.DynType),
		cel.Variable("params", cel.DynType), cel.Variable("authorizer", cel.DynType), cel.Variable("variables", cel.MapType(cel.StringType, cel.DynType)))
	if err != nil {
		t.Fatal(err)
	}
	variables := map[string]any{}
	either := a.object
	if either == nil {
		either = a.old
	}
	resource, _, _ := strings.Cut(a.resource, "/")
	input := map[string]any{
		"request": map[string]any{
			"operation": string(a.op), "userInfo": map[string]any{"username": a.user}, "name": either["metadata"].(map[string]any)["name"],
			"resource": map[string]any{"group": a.group, "resource": resource},
		},
		"object": a.object, "oldObject": a.old, "params": map[string]any{"data": selectors}, "authorizer": "", "variables": variables,
	}
	eval := func(text string) ref.Val {
		ast, iss := env.Compile(text)
		if iss.Err() != nil {
			t.Fatal(iss.Err())
		}
		program, err := env.Program(ast)
		if err != nil {
			t.Fatal(err)
		}
		v, _, err := program.Eval(input)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		return v
	}
	holds := func(text string) bool { return eval(text) == types.True }
	denies := map[string]bool{}
	for _, o := range policies(Namespace) {
		if b, ok := o.(*admissionv1.ValidatingAdmissionPolicyBinding); ok {
			denies[b.Spec.PolicyName] = slices.Contains(b.Spec.ValidationActions, admissionv1.Deny)
		}
	}
	for _, o := range policies(Namespace) {
		p, ok := o.(*admissionv1.ValidatingAdmissionPolicy)
		matched := ok && denies[p.Name] && slices.ContainsFunc(p.Spec.MatchConstraints.ResourceRules, func(r admissionv1.NamedRuleWithOperations) bool {
			return slices.Contains(r.Operations, a.op) && slices.Contains(r.APIGroups, a.group) && slices.Contains(r.Resources, a.resource)
		})
		if !matched || slices.ContainsFunc(p.Spec.MatchConditions, func(c admissionv1.MatchCondition) bool { return !holds(c.Expression) }) {
			continue
		}
		for _, v := range p.Spec.Variables {
			var native any = eval(v.Expression)
			if list, err := native.(ref.Val).ConvertToNative(reflect.TypeFor[[]string]()); err == nil {
				native = list
			}
			variables[v.Name] = native
		}
		if slices.ContainsFunc(p.Spec.Validations, func(v admissionv1.Validation) bool { return !holds(v.Expression) }) {
			out = append(out, p.Name)
		}
	}
	return out
}

func TestPoliciesRefuse(t *testing.T) {
	const rbac, operator, gc = "rbac.authorization.k8s.io", "system:serviceaccount:heddle-system:operator", "system:serviceaccount:kube-system:generic-garbage-collector"
	object := func(name string, labels map[string]any) map[string]any {
		return map[string]any{"metadata": map[string]any{"name": name, "labels": labels}}
	}
	app, labelled := object("app-1", nil), object("app-1", map[string]any{"d": "m1"})
	binding := func(name, role string) map[string]any {
		o := object(name, nil)
		o["roleRef"] = map[string]any{"kind": "ClusterRole", "name": role}
		o["subjects"] = []any{map[string]any{"kind": "User", "name": "ann"}}
		return o
	}
	ours, taken := binding(roleMember, roleMember), binding(roleMember, "view")
	ours["subjects"] = []any{map[string]any{"kind": "ServiceAccount", "name": "istiod-m1"}}
	write, clean := []string{"create", "update", "patch", "delete"}, []string{"update", "patch", "delete"}
	for _, c := range []struct {
		name string
		attempt
		refused string
	}{
		{"a label that enrolls", attempt{"ann", nil, "UPDATE", "", "namespaces", labelled, app}, policyMembers},
		{"the same by way of the status", attempt{"ann", nil, "UPDATE", "", "namespaces/status", labelled, app}, policyMembers},
		{"the same by way of finalizers", attempt{"ann", nil, "UPDATE", "", "namespaces/finalize", labelled, app}, policyMembers},
		{"a status without a label", attempt{"ann", nil, "UPDATE", "", "namespaces/status", labelled, labelled}, ""},
		{"who may enroll", attempt{"ann", []string{"enroll"}, "UPDATE", "", "namespaces/status", labelled, app}, ""},

		{"a Membership by who rules a namespace only", attempt{"ann", nil, "CREATE", "heddle.dev", "memberships", app, nil}, policyOwned},
		{"a change of one", attempt{"ann", nil, "UPDATE", "heddle.dev", "memberships", labelled, app}, policyOwned},
		{"the end of one", attempt{"ann", nil, "DELETE", "heddle.dev", "memberships", nil, app}, policyOwned},
		{"what a control plane says of one", attempt{"system:serviceaccount:sys-1:istiod-m1", nil, "UPDATE", "heddle.dev", "memberships/status", app, app}, ""},
		{"the operator's Membership", attempt{operator, write, "CREATE", "heddle.dev", "memberships", app, nil}, ""},
		{"a garbage collector's end of one", attempt{gc, clean, "DELETE", "heddle.dev", "memberships", nil, app}, ""},
		{"a Membership by a garbage collector", attempt{gc, clean, "CREATE", "heddle.dev", "memberships", app, nil}, policyOwned},

		{"a binding of our name", attempt{"ann", nil, "CREATE", rbac, "rolebindings", taken, nil}, policyOwned},
		{"the other binding of our name", attempt{"ann", nil, "CREATE", rbac, "rolebindings", binding(roleSystem, "view"), nil}, policyOwned},
		{"a change of one", attempt{"ann", nil, "UPDATE", rbac, "rolebindings", ours, ours}, policyOwned},
		{"the end of one", attempt{"ann", nil, "DELETE", rbac, "rolebindings", nil, ours}, ""},
		{"a binding of another name", attempt{"ann", nil, "CREATE", rbac, "rolebindings", binding("x", "view"), nil}, ""},
		{"the operator's binding", attempt{operator, write, "CREATE", rbac, "rolebindings", ours, nil}, ""},
		{"the operator's binding of another role", attempt{operator, write, "CREATE", rbac, "rolebindings", taken, nil}, policyBinding},
		{"its end of a name that was taken", attempt{operator, write, "DELETE", rbac, "rolebindings", nil, taken}, ""},
		{"its end of another binding", attempt{operator, write, "DELETE", rbac, "rolebindings", nil, binding("x", "view")}, policyBinding},
		{"its end of a cluster's binding", attempt{operator, write, "DELETE", rbac, "clusterrolebindings", nil, taken}, policyBinding},
	} {
		got := refusals(t, c.attempt, map[string]string{"m1": "d In m1"})
		if strings.Join(got, " ") != c.refused {
			t.Errorf("%s: refused by %q, want %q", c.name, got, c.refused)
		}
	}
}
