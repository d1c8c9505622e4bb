package docs_test

import (
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"
)

// The role of docs/operations.md is a valid one, and lets podmarkd do to events what its
// recorder does.
func TestRole(t *testing.T) {
	n := 0
	for _, b := range blocks(read(t, "docs/operations.md")) {
		if !strings.Contains(b, "kind: Role\n") {
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
