package docs_test

import (
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"
)

// One of the roles in conf lets podmarkd do to events what its recorder does.
func TestEventsRole(t *testing.T) {
	n := 0
	for b := range strings.SplitSeq(read(t, "conf/kustomize/rbac.yaml"), "---\n") {
		if !strings.Contains(b, "\nkind: Role\n") || !strings.Contains(b, "podmarkd-events") {
			continue
		}
		n++
		var role rbacv1.Role
		if err := yaml.UnmarshalStrict([]byte(b), &role); err != nil {
			t.Fatal(err)
		}
		want := rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"events"}, Verbs: []string{"create", "patch"}}
		if role.Namespace != "default" || !slices.ContainsFunc(role.Rules, func(r rbacv1.PolicyRule) bool { return r.String() == want.String() }) {
			t.Errorf("role %+v, want %+v in default, where events on Nodes are", role, want)
		}
	}
	if n != 1 {
		t.Errorf("%d roles, want one", n)
	}
}
