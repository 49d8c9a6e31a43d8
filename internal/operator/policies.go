package operator

import (
	"fmt"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

const (
	// selectorsName is the ConfigMap that tells the API server which mesh selects what, and the policy that reads it.
	// A ConfigMap, because the API server may not know a custom resource for half a minute after it has started.
	selectorsName = "mesh-selectors"
	policyMembers = "heddle-mesh-selectors"
	policyBinding = "heddle-operator-bindings"
	policyLabels  = "heddle-revision-label"
	policyProbe   = "heddle-operator-dry-run"
	policyOwned   = "heddle-operator-objects"
)

// selectorLines is a mesh's value in the ConfigMap mesh-selectors: a selector a line. It is empty for a mesh that has
// every namespace: no label makes a difference to that.
func selectorLines(m mesh.Mesh) string {
	if m.Everything() {
		return ""
	}
	var lines []string
	for _, s := range m.Selectors {
		lines = append(lines, s.String())
	}
	return strings.Join(lines, "\n")
}

// selectorsObject is the part of the ConfigMap that one mesh owns, by its own field manager.
func selectorsObject(namespace string, m mesh.Mesh) *corev1.ConfigMap {
	out := &corev1.ConfigMap{
		TypeMeta:   typeMeta("v1", "ConfigMap"),
		ObjectMeta: metav1.ObjectMeta{Name: selectorsName, Namespace: namespace},
	}
	if lines := selectorLines(m); lines != "" {
		out.Data = map[string]string{string(m.ID): lines}
	}
	return out
}

// matchesExpression is CEL for "one of the selectors of mesh m matches these labels". A malformed line is an error in
// evaluation, which refuses the write: lines come from selectorLines only.
func matchesExpression(labels string) string {
	return fmt.Sprintf(`variables.data[m].split('\n').exists(s, s.split(';').map(r, r.split(' ')).all(r,
  r[1] == 'In' ? r[0] in %[1]s && %[1]s[r[0]] in r[2].split(',') :
  r[1] == 'NotIn' ? !(r[0] in %[1]s && %[1]s[r[0]] in r[2].split(',')) :
  r[1] == 'Exists' ? r[0] in %[1]s : !(r[0] in %[1]s)))`, labels)
}

// labelVariables give a policy the labels before and after, and the selectors of every mesh.
func labelVariables() []admissionv1.Variable {
	return []admissionv1.Variable{
		{Name: "new", Expression: "object.metadata.?labels.orValue({})"},
		{Name: "old", Expression: "request.operation == 'CREATE' ? {} : oldObject.metadata.?labels.orValue({})"},
		{Name: "data", Expression: "params.?data.orValue({})"},
		{Name: "now", Expression: "variables.data.filter(m, " + matchesExpression("variables.new") + ")"},
		{Name: "before", Expression: "request.operation == 'CREATE' ? [] : variables.data.filter(m, " + matchesExpression("variables.old") + ")"},
	}
}

func policyMeta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Labels: map[string]string{labelPartOf: partOf}}
}

// policy pairs a policy with its binding.
func policy(name string, spec admissionv1.ValidatingAdmissionPolicySpec, params *admissionv1.ParamRef, action admissionv1.ValidationAction) []client.Object {
	spec.FailurePolicy = new(admissionv1.Fail)
	if params != nil {
		spec.ParamKind = &admissionv1.ParamKind{APIVersion: "v1", Kind: "ConfigMap"}
	}
	return []client.Object{
		&admissionv1.ValidatingAdmissionPolicy{
			TypeMeta:   typeMeta(admissionv1.SchemeGroupVersion.String(), "ValidatingAdmissionPolicy"),
			ObjectMeta: policyMeta(name), Spec: spec,
		},
		&admissionv1.ValidatingAdmissionPolicyBinding{
			TypeMeta:   typeMeta(admissionv1.SchemeGroupVersion.String(), "ValidatingAdmissionPolicyBinding"),
			ObjectMeta: policyMeta(name),
			Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{
				PolicyName: name, ParamRef: params, ValidationActions: []admissionv1.ValidationAction{action},
			},
		},
	}
}

func on(group string, resources []string, ops ...admissionv1.OperationType) *admissionv1.MatchResources {
	return &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{{
		RuleWithOperations: admissionv1.RuleWithOperations{
			Operations: ops,
			Rule:       admissionv1.Rule{APIGroups: []string{group}, APIVersions: []string{"*"}, Resources: resources},
		},
	}}}
}

// ourBindings are the names of the RoleBindings that the operator makes, as a list in an expression.
const ourBindings = "['" + roleMember + "', '" + roleSystem + "']"

// policies hold without the operator: one namespace belongs to one mesh, only those who may enroll namespaces do,
// nobody who has power over some namespaces only writes what says who belongs where, and the operator binds nothing but
// its three roles.
func policies(namespace string) []client.Object {
	labelsChanged := []admissionv1.MatchCondition{{
		Name:       "labels-changed",
		Expression: "request.operation == 'CREATE' || object.metadata.?labels.orValue({}) != oldObject.metadata.?labels.orValue({})",
	}}
	// An update of a namespace's subresources changes its labels too.
	namespaces := on("", []string{"namespaces", "namespaces/status", "namespaces/finalize"}, admissionv1.Create, admissionv1.Update)
	params := func() *admissionv1.ParamRef {
		return &admissionv1.ParamRef{Name: selectorsName, Namespace: namespace, ParameterNotFoundAction: new(admissionv1.AllowAction)}
	}
	out := policy(policyMembers, admissionv1.ValidatingAdmissionPolicySpec{
		MatchConstraints: namespaces, MatchConditions: labelsChanged, Variables: labelVariables(),
		Validations: []admissionv1.Validation{
			{
				Expression: "size(variables.now) < 2 || variables.now.all(m, m in variables.before)",
				MessageExpression: "'labels of namespace ' + object.metadata.name + ' match the selectors of ' + string(size(variables.now)) + " +
					"' meshes: ' + variables.now.join(', ') + '; a namespace belongs to one mesh'",
			},
			{
				// Leaving is not asked.
				Expression: "size(variables.now) != 1 || variables.now[0] in variables.before || " +
					"authorizer.group('sailoperator.io').resource('istios').name(variables.now[0]).check('enroll').allowed()",
				Reason:            new(metav1.StatusReasonForbidden),
				MessageExpression: "request.userInfo.username + ' may not enroll namespace ' + object.metadata.name + ' in mesh ' + variables.now[0]",
			},
		},
	}, params(), admissionv1.Deny)

	// A mesh's webhooks are not called where its selectors do not match, so nobody else could say this.
	out = append(out, policy(policyLabels, admissionv1.ValidatingAdmissionPolicySpec{
		MatchConstraints: namespaces, MatchConditions: labelsChanged,
		Variables: append(labelVariables(), admissionv1.Variable{
			Name: "rev", Expression: "variables.new[?'istio-injection'].orValue('') == 'enabled' ? 'default' : variables.new[?'istio.io/rev'].orValue('')",
		}),
		Validations: []admissionv1.Validation{{
			Expression: "!(variables.rev in variables.data) || variables.rev in variables.now",
			MessageExpression: "'namespace ' + object.metadata.name + ' asks for sidecars of mesh ' + variables.rev + " +
				"' but has no label that its discovery selectors match (' + variables.data[variables.rev].replace('\\n', ' or ') + '): its pods will get none'", // a message is one line
		}},
	}, params(), admissionv1.Warn)...)

	return slices.Concat(out, ownedPolicy(), operatorPolicies(namespace))
}

// ownedPolicy leaves what says who belongs where to those who may write it in every namespace: the operator, the garbage
// collector, the controller of namespaces, and who may clean up by hand. The control planes' memberships/status is not
// matched. A binding that somebody deletes is written again.
func ownedPolicy() []client.Object {
	owned := on("heddle.dev", []string{"memberships"}, admissionv1.Create, admissionv1.Update, admissionv1.Delete)
	owned.ResourceRules = append(owned.ResourceRules,
		on("rbac.authorization.k8s.io", []string{"rolebindings"}, admissionv1.Create, admissionv1.Update).ResourceRules...)
	return policy(policyOwned, admissionv1.ValidatingAdmissionPolicySpec{
		MatchConstraints: owned,
		MatchConditions: []admissionv1.MatchCondition{{
			Name: "ours", Expression: "request.resource.resource == 'memberships' || object.metadata.name in " + ourBindings,
		}},
		Validations: []admissionv1.Validation{{
			Expression: "authorizer.group(request.resource.group).resource(request.resource.resource)" +
				".check(request.operation.lowerAscii()).allowed()",
			Reason: new(metav1.StatusReasonForbidden),
			MessageExpression: "request.userInfo.username + ' may not ' + request.operation.lowerAscii() + ' ' + request.resource.resource + ' ' + " +
				"request.name + ': the operator writes it, by the labels of the namespace and the discovery selectors of the mesh'",
		}},
	}, nil, admissionv1.Deny)
}

// operatorPolicies keep the operator to what it is for.
func operatorPolicies(namespace string) []client.Object {
	operator := []admissionv1.MatchCondition{{
		Name: "operator", Expression: "request.userInfo.username == 'system:serviceaccount:" + namespace + ":" + operatorAccount + "'",
	}}
	probe := policy(policyProbe, admissionv1.ValidatingAdmissionPolicySpec{
		MatchConstraints: on("networking.istio.io", []string{"gateways"}, admissionv1.Create), MatchConditions: operator,
		Validations: []admissionv1.Validation{{Expression: "request.?dryRun.orValue(false)", Message: "the operator creates gateways as a dry run only"}},
	}, nil, admissionv1.Deny)
	return append(probe, policy(policyBinding, admissionv1.ValidatingAdmissionPolicySpec{
		MatchConstraints: on("rbac.authorization.k8s.io", []string{"rolebindings", "clusterrolebindings"},
			admissionv1.Create, admissionv1.Update, admissionv1.Delete),
		MatchConditions: operator,
		Variables: []admissionv1.Variable{
			{Name: "b", Expression: "request.operation == 'DELETE' ? oldObject : object"},
			// Whatever it binds: a name of ours that somebody else took must not stop the operator.
			{Name: "ours", Expression: "request.operation == 'DELETE' && request.resource.resource == 'rolebindings' && oldObject.metadata.name in " + ourBindings},
		},
		Validations: []admissionv1.Validation{
			{
				Expression: "variables.ours || variables.b.roleRef.kind == 'ClusterRole' && (request.resource.resource == 'rolebindings' ? " +
					"variables.b.roleRef.name in " + ourBindings + " : " +
					"variables.b.roleRef.name in ['" + roleMember + "', '" + roleCluster + "'])",
				Message: "the operator may bind and unbind the roles of meshes only",
			},
			{
				Expression: "variables.ours || variables.b.?subjects.orValue([]).all(s, s.kind == 'ServiceAccount' && s.name.startsWith('istiod'))",
				Message:    "the operator may bind control planes only",
			},
		},
	}, nil, admissionv1.Deny)...)
}
