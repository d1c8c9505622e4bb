package policy_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/policy"
)

func TestInvalidPolicies(t *testing.T) {
	ingress := func(rule string) string { return np("x", `{podSelector: {}, ingress: [`+rule+`]}`) }
	egress := func(rule string) string { return np("x", `{podSelector: {}, egress: [`+rule+`]}`) }
	const at = "bad.yaml: document 1: NetworkPolicy web/x: "
	tests := []struct {
		name     string
		manifest string
		want     []string // each a line of the error, or how it begins; all of them
	}{
		{"port 0", ingress(`{ports: [{port: 0}]}`), []string{at + "spec.ingress[0].ports[0].port: Invalid value: 0: "}},
		{"port too high", egress(`{}, {ports: [{}, {port: 65536}]}`), []string{at + "spec.egress[1].ports[1].port: Invalid value: 65536: "}},
		{"port is a quoted number", ingress(`{ports: [{port: "80"}]}`), []string{at + `spec.ingress[0].ports[0].port: Invalid value: "80": `}},
		{"port name too long", ingress(`{ports: [{port: abcdefghijklmnop}]}`), []string{at + `spec.ingress[0].ports[0].port: Invalid value: "abcdefghijklmnop": `}},
		{"port is a fraction", ingress(`{ports: [{port: 80.5}]}`), []string{at + "spec.ingress.ports.port: found number 80.5, want a whole number of 32 bits"}},
		{"protocol", ingress(`{ports: [{port: 80, protocol: tcp}]}`), []string{at + `spec.ingress[0].ports[0].protocol: Unsupported value: "tcp": supported values: "TCP", "UDP", "SCTP"`}},
		{"endPort below port", ingress(`{ports: [{port: 80, endPort: 79}]}`), []string{at + "spec.ingress[0].ports[0].endPort: Invalid value: 79: must be 80, the port, or higher"}},
		{"endPort too high", ingress(`{ports: [{port: 80, endPort: 65536}]}`), []string{at + "spec.ingress[0].ports[0].endPort: Invalid value: 65536: "}},
		{"endPort without port", ingress(`{ports: [{endPort: 80}]}`), []string{at + "spec.ingress[0].ports[0].endPort: Invalid value: 80: "}},
		{"endPort with a named port", ingress(`{ports: [{port: http, endPort: 80}]}`), []string{at + "spec.ingress[0].ports[0].endPort: Invalid value: 80: "}},
		{"empty peer", ingress(`{from: [{}]}`), []string{at + "spec.ingress[0].from[0]: Required value: "}},
		{"null peer", egress(`{to: [null]}`), []string{at + "spec.egress[0].to[0]: Required value: "}},
		{"ipBlock beside a podSelector", ingress(`{from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}`), []string{at + "spec.ingress[0].from[0]: Forbidden: "}},
		{"ipBlock beside a namespaceSelector", ingress(`{from: [{ipBlock: {cidr: 10.0.0.0/8}, namespaceSelector: {}}]}`), []string{at + "spec.ingress[0].from[0]: Forbidden: "}},
		{"no cidr", ingress(`{from: [{ipBlock: {except: [nonsense]}}]}`), []string{at + "spec.ingress[0].from[0].ipBlock.cidr: Required value"}},
		{"cidr without length", ingress(`{from: [{ipBlock: {cidr: 10.0.0.1}}]}`), []string{at + `spec.ingress[0].from[0].ipBlock.cidr: Invalid value: "10.0.0.1": `}},
		{"except outside", ingress(`{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 11.0.0.0/16]}}]}`), []string{at + `spec.ingress[0].from[0].ipBlock.except[1]: Invalid value: "11.0.0.0/16": `}},
		{"except is the block", egress(`{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}`), []string{at + `spec.egress[0].to[0].ipBlock.except[0]: Invalid value: "10.0.0.0/8": `}},
		{"except of the other family", ingress(`{from: [{ipBlock: {cidr: "::/0", except: [10.0.0.0/8]}}]}`), []string{at + `spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: "10.0.0.0/8": `}},
		{"except of an old spelling and outside", ingress(`{from: [{ipBlock: {cidr: 10.0.0.1/8, except: [11.0.0.1/16]}}]}`), []string{
			at + `spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: "11.0.0.1/16": must lie within cidr 10.0.0.1/8`,
		}},
		{"cidr with an octet too large", ingress(`{from: [{ipBlock: {cidr: 010.0.0.256/8}}]}`), []string{at + `spec.ingress[0].from[0].ipBlock.cidr: Invalid value: "010.0.0.256/8": `}},
		{"policy type", np("x", `{policyTypes: [Ingress, egress]}`), []string{at + `spec.policyTypes[1]: Unsupported value: "egress": supported values: "Ingress", "Egress"`}},
		{"three policy types", np("x", `{policyTypes: [Ingress, Egress, Ingress]}`), []string{at + `spec.policyTypes: Invalid value: ["Ingress","Egress","Ingress"]: `}},
		{"operator", np("x", `{podSelector: {matchExpressions: [{key: a, operator: in, values: [b]}]}}`), []string{at + `spec.podSelector.matchExpressions[0].operator: Invalid value: "in": `}},
		{"In without values", ingress(`{from: [{podSelector: {matchExpressions: [{key: a, operator: In}]}}]}`), []string{at + "spec.ingress[0].from[0].podSelector.matchExpressions[0].values: Required value: "}},
		{"Exists with values", egress(`{to: [{namespaceSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}]}`), []string{at + "spec.egress[0].to[0].namespaceSelector.matchExpressions[0].values: Forbidden: "}},
		{"label", np("x", `{podSelector: {matchLabels: {"a b": c, d: "e f"}}}`), []string{
			at + `spec.podSelector.matchLabels: Invalid value: "a b": `, at + `spec.podSelector.matchLabels: Invalid value: "e f": `,
		}},
		{"rules of an ignored type are judged", np("x", `{policyTypes: [Egress], ingress: [{from: [{}]}]}`), []string{at + "spec.ingress[0].from[0]: Required value: "}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { wantErrors(t, test.manifest, test.want) })
	}
}

func TestInvalidDocuments(t *testing.T) {
	const head = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n"
	tests := []struct {
		name     string
		manifest string
		want     []string
	}{
		{"no name", head + "metadata: {}\n", []string{"bad.yaml: document 1: metadata.name: Required value: "}},
		{"name", head + "metadata: {name: Web, namespace: a.b}\n", []string{
			`bad.yaml: document 1: NetworkPolicy a.b/Web: metadata.name: Invalid value: "Web": `,
			`bad.yaml: document 1: NetworkPolicy a.b/Web: metadata.namespace: Invalid value: "a.b": `,
		}},
		{"labels, annotations, finalizers", head + "metadata: {name: a, labels: {a: b c}, annotations: {b c: d}, finalizers: [foo]}\n", []string{
			`bad.yaml: document 1: NetworkPolicy default/a: metadata.labels: Invalid value: "b c": `,
			`bad.yaml: document 1: NetworkPolicy default/a: metadata.annotations: Invalid value: "b c": `,
			`bad.yaml: document 1: NetworkPolicy default/a: metadata.finalizers[0]: Invalid value: "foo": `,
		}},
		{"namespace name", "apiVersion: v1\nkind: Namespace\nmetadata: {name: a.b}\n", []string{`bad.yaml: document 1: Namespace a.b: metadata.name: Invalid value: "a.b": `}},
		{"namespace in a namespace", "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, namespace: b}\n", []string{`bad.yaml: document 1: Namespace a: metadata.namespace: Forbidden: `}},
		{"another version", "apiVersion: extensions/v1beta1\nkind: NetworkPolicy\n", []string{"bad.yaml: document 1: extensions/v1beta1 NetworkPolicy is not enforced, "}},
		{"no kind", "metadata: {name: a}\n", []string{"bad.yaml: document 1: kind: Required value: accepted are "}},
		{"no apiVersion", "kind: NetworkPolicy\n", []string{"bad.yaml: document 1: apiVersion: Required value: accepted are "}},
		{"not an object", "- a\n---\ntext\n---\n5\n", []string{"bad.yaml: document 1: not an object: ", "bad.yaml: document 2: not an object: ", "bad.yaml: document 3: not an object: "}},
		{"unknown fields", head + "metadata: {name: a, nam: b}\nspec: {ingres: [], ingress: [{form: []}], Egress: []}\n", []string{
			`bad.yaml: document 1: NetworkPolicy default/a: unknown field "metadata.nam"`,
			`bad.yaml: document 1: NetworkPolicy default/a: unknown field "spec.Egress"`,
			`bad.yaml: document 1: NetworkPolicy default/a: unknown field "spec.ingres"`,
			`bad.yaml: document 1: NetworkPolicy default/a: unknown field "spec.ingress[0].form"`,
		}},
		{"nothing but comments", "# a: b\n---\n\n---\n", []string{`bad.yaml: no manifest in it`}},
		{"blank", " \n\n", []string{`bad.yaml: no manifest in it`}},
		{"a status elsewhere", head + "metadata: {name: a}\nspec: {status: {}}\n", []string{
			`bad.yaml: document 1: NetworkPolicy default/a: unknown field "spec.status"`,
		}},
		{"unknown fields do not hide the rest", head + "metadata: {name: a}\nspec: {ingres: [], policyTypes: [None]}\n", []string{
			`bad.yaml: document 1: NetworkPolicy default/a: unknown field "spec.ingres"`,
			`bad.yaml: document 1: NetworkPolicy default/a: spec.policyTypes[0]: Unsupported value: "None"`,
		}},
		{"duplicate keys", head + "metadata: {name: a}\nspec: {}\nspec: {ingress: []}\n", []string{`bad.yaml: document 1: yaml: line 5: key "spec" already set in map`}},
		{"duplicate keys in JSON", jsonA[:len(jsonA)-1] + `, "spec": {"podSelector": {"matchLabels": {"a": "b", "a": "c"}}}}`, []string{
			`bad.yaml: document 1: NetworkPolicy web/a: duplicate field "spec.podSelector.matchLabels.a"`,
		}},
		{"wrong type", head + "metadata: {name: a}\nspec: {podSelector: {matchLabels: {on: yes}}, ingress: {}}\n", []string{
			"bad.yaml: document 1: spec.podSelector.matchLabels: key true is not a string: put quotes around it",
			"bad.yaml: document 1: NetworkPolicy a: spec.ingress: found object, want a list",
		}},
		{"wrong types elsewhere", head + "metadata: {name: a}\nspec: []\n---\n" + head + "metadata: {name: b}\nspec: {ingress: [{ports: [{port: true}]}]}\n---\n" +
			head + "metadata: {name: [c]}\n---\n" + head + "metadata: {name: d, creationTimestamp: today}\n---\nkind: 5\n---\napiVersion: v1\nkind: List\nitems: {}\n", []string{
			"bad.yaml: document 1: NetworkPolicy a: spec: found array, want an object",
			"bad.yaml: document 2: NetworkPolicy b: spec.ingress.ports.port: found bool, want a whole number of 32 bits",
			"bad.yaml: document 3: metadata.name: found array, want a string",
			"bad.yaml: document 4: parsing time ",
			"bad.yaml: document 5: reading apiVersion and kind: ",
			"bad.yaml: document 6: items: found object, want a list",
		}},
		{"a half-read object has no default namespace", `{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "a", "creationTimestamp": "x", "namespace": "web"}}
---
` + head + "metadata: {name: a}\n", []string{"bad.yaml: document 1: NetworkPolicy a: parsing time "}},
		{"key that is no string at the top", "1: a\n" + policyA, []string{
			"bad.yaml: document 1: key 1 is not a string: put quotes around it",
			`bad.yaml: document 1: NetworkPolicy web/a: unknown field "1"`,
		}},
		{"label value that is no string", head + "metadata: {name: a}\nspec: {podSelector: {matchLabels: {a: 1}}}\n", []string{
			"bad.yaml: document 1: NetworkPolicy a: spec.podSelector.matchLabels: found number, want a string: put quotes around it",
		}},
		{"broken YAML in the middle", policyA + "---\na: {b\n---\n" + head + "metadata: {name: A}\n", []string{
			"bad.yaml: document 2: yaml: ",
			`bad.yaml: document 3: NetworkPolicy default/A: metadata.name: Invalid value: "A": `,
		}},
		{"text after the end of a document", policyA + "...\n" + policyB, []string{"bad.yaml: document 1: text follows the end of the document: "}},
		{"text on the separator", policyA + "--- " + jsonB + "\n", []string{"bad.yaml: document 1: "}},
		{"cut JSON", jsonA[:len(jsonA)-1], []string{"bad.yaml: document 1: yaml: "}},
		{"not text", "\xff\xfea\x00", []string{"bad.yaml: not UTF-8 text"}},
		{"declared twice", policyA + "---\n" + policyB + "---\n" + policyA, []string{"bad.yaml: document 3: NetworkPolicy web/a: declared before, in bad.yaml: document 1"}},
		{"list items", `{"apiVersion": "v1", "kind": "List", "item": [], "items": [` + jsonA + `, null, {"kind": "List", "apiVersion": "v1", "items": [` + jsonA + `, {"kind": "Pod", "apiVersion": "v1"}, {}]}]}`, []string{
			`bad.yaml: document 1: unknown field "item"`,
			"bad.yaml: document 1: items[1]: not an object: ",
			"bad.yaml: document 1: items[2]: items[0]: NetworkPolicy web/a: declared before, in bad.yaml: document 1: items[0]",
			"bad.yaml: document 1: items[2]: items[2]: kind: Required value: ",
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { wantErrors(t, test.manifest, test.want) })
	}
}

// wantErrors compiles a manifest and compares the beginnings of the lines of
// the error with want, one for one.
func wantErrors(t *testing.T, manifest string, want []string) {
	t.Helper()
	policies, _, err := policy.Options{}.Compile(policy.Source{Name: "bad.yaml", Data: []byte(manifest)})
	if err == nil {
		t.Fatal("Compile: no error")
	}
	if diff := cmp.Diff(desired.Policies{}, policies, comparePolicies); diff != "" {
		t.Errorf("policies beside an error (-want +got):\n%s", diff)
	}
	got := strings.Split(err.Error(), "\n")
	for i, line := range got {
		if i < len(want) && strings.HasPrefix(line, want[i]) {
			got[i] = want[i]
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("errors (-want +got):\n%s", diff)
	}
}

// One mistake anywhere leaves nothing, from whichever file the rest came.
func TestOneMistakeLeavesNothing(t *testing.T) {
	policies, _, err := policy.Options{}.Compile(
		policy.Source{Name: "a.yaml", Data: []byte(policyA)},
		policy.Source{Name: "ns.yaml", Data: []byte("apiVersion: v1\nkind: Namespace\nmetadata: {name: web}\n")},
		policy.Source{Name: "b.yaml", Data: []byte(policyB + np("c", `{ingress: [{ports: [{port: 80, endPort: 79}]}]}`))},
		policy.Source{Name: "again.yaml", Data: []byte(policyA)},
	)
	if diff := cmp.Diff(desired.Policies{}, policies, comparePolicies); diff != "" {
		t.Errorf("policies (-want +got):\n%s", diff)
	}
	const want = "b.yaml: document 2: NetworkPolicy web/c: spec.ingress[0].ports[0].endPort: Invalid value: 79: must be 80, the port, or higher\n" +
		"again.yaml: document 1: NetworkPolicy web/a: declared before, in a.yaml: document 1"
	if err == nil || err.Error() != want {
		t.Errorf("error:\n%v\nwant:\n%s", err, want)
	}
}
