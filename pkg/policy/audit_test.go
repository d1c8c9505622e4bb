package policy_test

import (
	"strings"
	"testing"

	"github.com/podmark/podmark/pkg/policy"
)

// The annotation is read as what it says, and what says neither is an error: a policy
// is not enforced, or left open, by a guess.
func TestAuditAnnotation(t *testing.T) {
	const begin, end = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: x, namespace: web", "}\nspec: {}\n"
	tests := []struct {
		annotations string
		audit       bool
		err         string
	}{
		{"", false, ""},
		{`, annotations: {other: "true"}`, false, ""},
		{`, annotations: {podmark.dev/audit: "true"}`, true, ""},
		{`, annotations: {podmark.dev/audit: "false"}`, false, ""},
		{`, annotations: {podmark.dev/audit: "True"}`, false, `test.yaml: document 1: NetworkPolicy web/x: metadata.annotations[podmark.dev/audit]: Unsupported value: "True": supported values: "true", "false"`},
		{`, annotations: {podmark.dev/audit: ""}`, false, `metadata.annotations[podmark.dev/audit]: Unsupported value: ""`},
	}
	for _, tt := range tests {
		compiled, _, err := policy.Options{}.Compile(policy.Source{Name: "test.yaml", Data: []byte(begin + tt.annotations + end)})
		switch {
		case tt.err != "":
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: error %v, want %s", tt.annotations, err, tt.err)
			}
		case err != nil:
			t.Errorf("%s: %v", tt.annotations, err)
		case len(compiled.Policies) != 1 || compiled.Policies[0].Audit != tt.audit:
			t.Errorf("%s: %+v, want audit %t", tt.annotations, compiled.Policies, tt.audit)
		}
	}
}
