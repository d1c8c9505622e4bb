package policy_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/policy"
)

func FuzzCompile(f *testing.F) {
	f.Add([]byte(policyA + "---\n" + policyB))
	f.Add([]byte(jsonA + jsonB))
	f.Add([]byte("apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: db, labels: {a: b}}}\n"))
	f.Add([]byte(np("blocks", `{podSelector: {matchExpressions: [{key: a, operator: NotIn, values: [b]}]}, ingress: [{from: [
		{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 10.1.2.0/24]}}, {ipBlock: {cidr: "::/0", except: ["fd00::/8"]}}, {podSelector: {}}]}]}`)))
	f.Add([]byte(np("mapped", `{ingress: [{from: [{ipBlock: {cidr: "::/0", except: ["::fffe:0:0/96"]}}]}]}`)))
	f.Add([]byte(np("ports", `{egress: [{ports: [{port: 80, endPort: 90}, {port: 85}, {protocol: SCTP}, {port: 80, protocol: SCTP}]}]}`)))
	f.Add([]byte("a: &a [*a, {<<: {? [b] : c}}]\n--- # d\n{}{\n...\n\u2028%YAML 1.1\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		const name = "fuzz.yaml"
		policies, notes, err := policy.Options{}.Compile(policy.Source{Name: name, Data: data})
		for _, note := range notes {
			if !strings.HasPrefix(note, name+": ") {
				t.Errorf("note does not name its source: %s", note)
			}
		}
		if err != nil {
			if diff := cmp.Diff(desired.Policies{}, policies, comparePolicies); diff != "" {
				t.Errorf("policies beside an error:\n%s", diff)
			}
			joined, ok := err.(interface{ Unwrap() []error })
			if !ok {
				t.Fatalf("error of type %T, want a joined one", err)
			}
			for _, err := range joined.Unwrap() {
				if !strings.HasPrefix(err.Error(), name+": ") {
					t.Errorf("error does not name its source: %v", err)
				}
			}
			return
		}
		for _, p := range policies.Policies {
			for _, isolation := range []*desired.Isolation{p.Ingress, p.Egress} {
				if isolation != nil {
					for _, rule := range isolation.Rules {
						checkRule(t, rule)
					}
				}
			}
		}
		build(t, policies)

		// What the plugin reads from disk is what was compiled.
		text, err := json.Marshal(policies)
		if err != nil {
			t.Fatal(err)
		}
		var stored desired.Policies
		if err := json.Unmarshal(text, &stored); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(policies, stored, comparePolicies); diff != "" {
			t.Errorf("stored (-compiled +stored):\n%s", diff)
		}
		again, _, err := policy.Options{}.Compile(policy.Source{Name: name, Data: data})
		if diff := cmp.Diff(policies, again, comparePolicies); err != nil || diff != "" {
			t.Errorf("compiled again: %v\n%s", err, diff)
		}
	})
}

func checkRule(t *testing.T, rule desired.Rule) {
	t.Helper()
	for i, b := range rule.Blocks {
		if !b.IsValid() || b != b.Masked() {
			t.Errorf("block %v is not masked", b)
		}
		for _, other := range rule.Blocks[:i] {
			if b.Overlaps(other) {
				t.Errorf("blocks %v and %v overlap", other, b)
			}
		}
	}
	for i, p := range rule.Ports {
		if p.First > p.Last {
			t.Errorf("port range %v is empty", p)
		}
		for _, other := range rule.Ports[:i] {
			if p.Protocol == other.Protocol && p.First <= other.Last && other.First <= p.Last {
				t.Errorf("port ranges %v and %v overlap", other, p)
			}
		}
	}
	if rule.MatchNone && len(rule.Peers)+len(rule.Blocks) > 0 {
		t.Errorf("nobody, and somebody: %+v", rule)
	}
}
