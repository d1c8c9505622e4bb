package policy_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/policy"
)

const (
	policyA = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a, namespace: web}\nspec: {}\n"
	policyB = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: b, namespace: web}\nspec: {}\n"
	jsonA   = `{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "a", "namespace": "web"}}`
	jsonB   = `{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "b", "namespace": "web"}}`
)

// However two policies are written down, they are the same two.
func TestForms(t *testing.T) {
	indent := func(s string) string { return "- " + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n  ") + "\n" }
	tests := []struct {
		name    string
		sources []string
	}{
		{"two files", []string{policyB, policyA}},
		{"two documents", []string{policyA + "---\n" + policyB}},
		{"separators before, after and between, with comments", []string{"# first\n---\n---\n" + policyA + "--- # next\n# only this\n---\n\n---   \n" + policyB + "---\n"}},
		{"end of document markers", []string{policyA + "...\n---\n" + policyB + "...\n# end\n"}},
		{"no newline at the end", []string{strings.TrimSpace(policyA) + "\n---\n" + strings.TrimSpace(policyB)}},
		{"carriage returns", []string{strings.ReplaceAll(policyA+"---\n"+policyB, "\n", "\r\n")}},
		{"byte order mark", []string{"\ufeff" + policyA, "\ufeff" + jsonB}},
		{"JSON documents", []string{jsonA + "\n---\n" + jsonB}},
		{"JSON stream", []string{jsonA + jsonB + "\n"}},
		{"JSON indented with tabs", []string{"{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"List\",\n\t\"items\": [\n\t\t" + jsonA + ",\n\t\t" + jsonB + "\n\t]\n}\n"}},
		{"YAML and JSON", []string{policyA + "---\n" + jsonB}},
		{"flow mapping", []string{"{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: a, namespace: web}} # not JSON\n---\n" + policyB}},
		{"List", []string{"apiVersion: v1\nkind: List\nmetadata: {resourceVersion: ''}\nitems:\n" + indent(policyA) + indent(policyB)}},
		{"List in a List", []string{"apiVersion: v1\nkind: List\nitems:\n" + indent(policyB) + "- apiVersion: v1\n  kind: List\n  items: [" + jsonA + "]\n"}},
		{"NetworkPolicyList", []string{`{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicyList", "items": [
			{"metadata": {"name": "a", "namespace": "web"}}, ` + jsonB + `]}`}},
		{"as an API server before 1.28 prints it", []string{policyA + "status: {}\n", strings.TrimSuffix(jsonB, "}") + `, "status": {"conditions": []}}`}},
		{"anchors", []string{"apiVersion: v1\nkind: List\nitems:\n- {apiVersion: networking.k8s.io/v1, kind: &kind NetworkPolicy, metadata: {name: a, namespace: &ns web}}\n" +
			"- {apiVersion: networking.k8s.io/v1, kind: *kind, metadata: {name: b, namespace: *ns}}\n"}},
	}
	want := desired.Policies{Policies: []desired.Policy{
		{Namespace: "web", Name: "a", Ingress: &desired.Isolation{}},
		{Namespace: "web", Name: "b", Ingress: &desired.Isolation{}},
	}}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var sources []policy.Source
			for i, s := range test.sources {
				sources = append(sources, policy.Source{Name: fmt.Sprintf("%d.yaml", i), Data: []byte(s)})
			}
			got, _, err := policy.Options{}.Compile(sources...)
			if err != nil {
				t.Fatalf("Compile: %v", err)
			}
			if diff := cmp.Diff(want, got, comparePolicies); diff != "" {
				t.Errorf("policies (-want +got):\n%s", diff)
			}
		})
	}
}

func TestNamespaces(t *testing.T) {
	got, _, err := policy.Options{}.Compile(policy.Source{Name: "ns.yaml", Data: []byte(`
apiVersion: v1
kind: NamespaceList
items:
- metadata: {name: web, labels: {team: front, kubernetes.io/metadata.name: web}, annotations: {note: text}}
- apiVersion: v1
  kind: Namespace
  metadata: {name: db, uid: 0b1c}
  spec: {finalizers: [kubernetes]}
  status: {phase: Active}
`)})
	if err != nil {
		t.Fatalf("Compile: %v", err)
	}
	want := desired.Policies{Namespaces: map[string]map[string]string{"web": {"team": "front"}, "db": {}}}
	if diff := cmp.Diff(want, got, comparePolicies); diff != "" {
		t.Errorf("policies (-want +got):\n%s", diff)
	}
}

// The same said in another order is the same, down to the order of the result.
func TestOrderDoesNotMatter(t *testing.T) {
	forward := np("a", `{podSelector: {matchLabels: {x: "1", v: "2"}, matchExpressions: [{key: z, operator: In, values: [b, a, a]}, {key: w, operator: Exists}]},
			ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 10.2.0.0/16]}}, {podSelector: {}}, {namespaceSelector: {}}, {ipBlock: {cidr: 11.0.0.0/8}}],
				ports: [{port: 80}, {port: 53, protocol: UDP}, {port: 443, endPort: 445}]}],
			policyTypes: [Ingress, Egress]}`) +
		np("b", `{}`) + "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: db}\n"
	backward := "apiVersion: v1\nkind: Namespace\nmetadata: {name: db}\n" +
		np("b", `{}`) +
		np("a", `{policyTypes: [Egress, Ingress, ],
			ingress: [{ports: [{port: 444, endPort: 445}, {protocol: UDP, port: 53}, {port: 443}, {port: 80}, {port: 80, protocol: TCP}],
				from: [{ipBlock: {cidr: 11.0.0.0/8}}, {namespaceSelector: {}}, {podSelector: {}}, {podSelector: {}}, {ipBlock: {except: [10.2.0.0/16, 10.1.0.0/16], cidr: 10.0.0.0/8}}]}],
			podSelector: {matchExpressions: [{key: w, operator: Exists}, {key: z, operator: In, values: [a, b]}, {key: v, operator: In, values: ["2"]}], matchLabels: {x: "1", v: "2"}}}`)
	a, _, err := policy.Options{}.Compile(policy.Source{Name: "forward.yaml", Data: []byte(forward)})
	if err != nil {
		t.Fatalf("forward: %v", err)
	}
	b, _, err := policy.Options{}.Compile(policy.Source{Name: "backward.yaml", Data: []byte(backward)})
	if err != nil {
		t.Fatalf("backward: %v", err)
	}
	if diff := cmp.Diff(a, b, comparePolicies); diff != "" {
		t.Errorf("policies (-forward +backward):\n%s", diff)
	}
}
