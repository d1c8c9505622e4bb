package policy_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/policy"
)

const deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: shop}\n"

// begin compares the beginnings of lines with want, one for one.
func begin(t *testing.T, what string, want, got []string) {
	t.Helper()
	for i, line := range got {
		if i < len(want) && strings.HasPrefix(line, want[i]) {
			got[i] = want[i]
		}
	}
	if diff := cmp.Diff(want, got, comparePolicies); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// What is told of a manifest that is taken is what a strict reading refuses it for.
func TestNotes(t *testing.T) {
	const namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: web}\n"
	nameless := strings.Replace(policyA, ", namespace: web", "", 1)
	block := func(text string) string { return np("x", "{ingress: [{from: [{ipBlock: "+text+"}]}]}") }
	const cidr = "a.yaml: document 1: NetworkPolicy web/x: spec.ingress[0].from[0].ipBlock.cidr: "
	const except = "a.yaml: document 1: NetworkPolicy web/x: spec.ingress[0].from[0].ipBlock.except[0]: "
	tests := []struct {
		name     string
		manifest string
		want     []string // each a note, or how it begins
	}{
		{"nothing to tell", namespace + "---\n" + policyA, nil},
		{"bits beyond the length", block("{cidr: 10.10.1.12/24}"), []string{cidr + `"10.10.1.12/24" counts as 10.10.1.0/24: `}},
		{"of IPv6", block(`{cidr: "fd00::12/64"}`), []string{cidr + `"fd00::12/64" counts as fd00::/64: `}},
		{"of an exception", block("{cidr: 10.0.0.0/8, except: [10.10.1.12/24]}"), []string{except + `"10.10.1.12/24" counts as 10.10.1.0/24: `}},
		{"leading zeros", block("{cidr: 010.010.0.0/016}"), []string{cidr + `"010.010.0.0/016" counts as 10.10.0.0/16: `}},
		{"IPv4 mapped to IPv6", block(`{cidr: "::ffff:10.0.0.0/104"}`), []string{cidr + `"::ffff:10.0.0.0/104" counts as 10.0.0.0/8: `}},
		{"of egress, and more than one", np("x", "{egress: [{}, {to: [{podSelector: {}}, {ipBlock: {cidr: 10.0.0.1/8}}, {ipBlock: {cidr: 11.0.0.1/8}}]}]}"), []string{
			`a.yaml: document 1: NetworkPolicy web/x: spec.egress[1].to[1].ipBlock.cidr: "10.0.0.1/8" counts as 10.0.0.0/8: `,
			`a.yaml: document 1: NetworkPolicy web/x: spec.egress[1].to[2].ipBlock.cidr: "11.0.0.1/8" counts as 11.0.0.0/8: `,
		}},
		{"another form of IPv6 is none of these", block(`{cidr: "2001:0DB8:0::/32"}`), nil},
		{"no namespace", nameless, []string{`a.yaml: document 1: NetworkPolicy default/a: metadata.namespace: not set, and counts as "default"`}},
		{"another kind", policyA + "---\n" + deployment, []string{"a.yaml: document 2: apps/v1 Deployment shop/web: passed over, "}},
		{"other kinds in a List", `{"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}}, ` + jsonA + "]}", []string{
			"a.yaml: document 1: items[0]: v1 Service web: passed over, ",
		}},
		{"twice the same of another kind", deployment + "---\n" + policyA + "---\n" + deployment, []string{
			"a.yaml: document 1: apps/v1 Deployment shop/web: passed over, ", "a.yaml: document 3: apps/v1 Deployment shop/web: passed over, ",
		}},
		{"keys of another kind", policyA + "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: ports}\ndata: {9000: shop/web, on: yes}\n", []string{
			"a.yaml: document 2: v1 ConfigMap ports: passed over, ",
		}},
		{"a list of another kind", policyA + "---\n{apiVersion: v1, kind: PodList, items: [{metadata: {name: a}}]}\n", []string{"a.yaml: document 2: v1 PodList: passed over, "}},
		{"one without metadata", policyA + "---\n{apiVersion: kind.x-k8s.io/v1alpha4, kind: Cluster, nodes: [{}]}\n", []string{"a.yaml: document 2: kind.x-k8s.io/v1alpha4 Cluster: passed over, "}},
	}
	// What charts and operators have, and what is not too near to NetworkPolicy.
	for _, kind := range []string{
		"networking.k8s.io/v1 Ingress", "networking.k8s.io/v1beta1 IngressClass", "policy/v1 PodDisruptionBudget", "policy/v1beta1 PodSecurityPolicy",
		"kustomize.config.k8s.io/v1beta1 Kustomization", "nmstate.io/v1 NodeNetworkConfigurationPolicy", "security.istio.io/v1 AuthorizationPolicy",
		"k8s.cni.cncf.io/v1 NetworkAttachmentDefinition", "eventhub.azure.com/v1 Namespace", "v1 Status",
	} {
		version, name, _ := strings.Cut(kind, " ")
		tests = append(tests, struct {
			name     string
			manifest string
			want     []string
		}{kind, policyA + "---\n{apiVersion: " + version + ", kind: " + name + "}\n", []string{"a.yaml: document 2: " + kind + ": passed over, "}})
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			source := policy.Source{Name: "a.yaml", Data: []byte(test.manifest)}
			policies, notes, err := policy.Options{}.Compile(source)
			if err != nil {
				t.Fatal(err)
			}
			if len(policies.Policies) != 1 {
				t.Errorf("policies: %+v", policies)
			}
			begin(t, "notes", test.want, notes)
			_, _, err = policy.Options{Strict: true}.Compile(source)
			var refused []string
			if err != nil {
				refused = strings.Split(err.Error(), "\n")
			}
			begin(t, "refused", test.want, refused)
		})
	}
}

// A file counts as the same policy does that an API server has stored.
func TestSpellings(t *testing.T) {
	for _, block := range []string{
		"{cidr: 192.0.2.77/24, except: [192.0.2.9/29]}",
		`{cidr: "2001:db8::77/64"}`,
		"{cidr: 010.010.0.0/016, except: [10.10.010.000/24]}",
		`{cidr: "::ffff:192.0.2.0/120", except: ["::ffff:192.0.2.128/121"]}`,
	} {
		spec := "{ingress: [{from: [{ipBlock: " + block + "}]}]}"
		stored, err := policy.Object(object(t, spec))
		if err != nil {
			t.Fatal(err)
		}
		read, notes, err := policy.Options{}.Compile(policy.Source{Name: "a.yaml", Data: []byte(np("x", spec))})
		if err != nil || len(notes) == 0 {
			t.Errorf("%s: notes %q, %v", block, notes, err)
		}
		if diff := cmp.Diff(desired.Policies{Policies: []desired.Policy{stored}}, read, comparePolicies); diff != "" {
			t.Errorf("%s (-stored +read):\n%s", block, diff)
		}
	}
}

// What its author takes for a policy is enforced or refused.
func TestKindsThatMustNotBePassedOver(t *testing.T) {
	tests := []struct{ kind, want string }{
		{"networking.k8s.io/v1beta1 NetworkPolicy", "networking.k8s.io/v1beta1 NetworkPolicy is not enforced, "},
		{"extensions/v1beta1 NetworkPolicy", "extensions/v1beta1 NetworkPolicy is not enforced, "},
		{"v1 NetworkPolicy", "v1 NetworkPolicy is not enforced, "},
		{"projectcalico.org/v3 NetworkPolicy", "projectcalico.org/v3 NetworkPolicy is not enforced, "},
		{"crd.projectcalico.org/v1 GlobalNetworkPolicy", "crd.projectcalico.org/v1 GlobalNetworkPolicy is not enforced, "},
		{"cilium.io/v2 CiliumNetworkPolicy", "cilium.io/v2 CiliumNetworkPolicy is not enforced, "},
		{"cilium.io/v2 CiliumClusterwideNetworkPolicyList", "cilium.io/v2 CiliumClusterwideNetworkPolicyList is not enforced, "},
		{"policy.networking.k8s.io/v1alpha1 AdminNetworkPolicy", "policy.networking.k8s.io/v1alpha1 AdminNetworkPolicy is not enforced, "},
		{"networking.k8s.io/v1 networkpolicy", "networking.k8s.io/v1 networkpolicy is not enforced, "},
		{"networking.k8s.io/v1 NetworkPolicies", "networking.k8s.io/v1 NetworkPolicies is not enforced, "},
		{"networking.k8s.io/v1 NetworkPolcy", "networking.k8s.io/v1 NetworkPolcy is not enforced, "},
		{"networking.k8s/v1 NetworPolicy", "networking.k8s/v1 NetworPolicy is not enforced, "},
		{"networking/v1 NetwrokPolicy", "networking/v1 NetwrokPolicy is not enforced, "},
		{"networking/v1 NetworkPollicy", "networking/v1 NetworkPollicy is not enforced, "},
		{"networking/v1 Network-Policy", "networking/v1 Network-Policy is not enforced, "},
		{"networking.k8s.io/v1 NetPolicy", "there is no NetPolicy in networking.k8s.io/v1: "},
		{"v1 Namspace", "there is no Namspace in v1: "},
		{"networking.k8s.io/v1 Namespace", "there is no Namespace in networking.k8s.io/v1: "},
		{"apps/v1 List", "there is no List in apps/v1: "},
	}
	for _, test := range tests {
		t.Run(test.kind, func(t *testing.T) {
			version, kind, _ := strings.Cut(test.kind, " ")
			bad := "{apiVersion: " + version + ", kind: " + kind + ", metadata: {name: x, namespace: web}}\n"
			wantErrors(t, policyA+"---\n"+bad, []string{"bad.yaml: document 2: " + test.want})
			wantErrors(t, `{"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "`+version+`", "kind": "`+kind+`"}]}`, []string{"bad.yaml: document 1: items[0]: " + test.want})
		})
	}
}

// Other kinds are passed over, not broken documents: of those nobody knows what they are.
func TestBrokenDocumentsOfOtherKinds(t *testing.T) {
	const at = "bad.yaml: document 2: apps/v1 Deployment shop/web: "
	for _, test := range []struct{ name, manifest, want string }{
		{"key twice", deployment + "kind: NetworkPolicy\nkind: Deployment\n", "bad.yaml: document 2: yaml: line 4: "},
		{"key twice, in JSON", `{"apiVersion": "apps/v1", "kind": "NetworkPolicy", "kind": "Deployment", "metadata": {"name": "web", "namespace": "shop"}}`, at + `duplicate field "kind"`},
		{"metadata", "apiVersion: apps/v1\nkind: Deployment\nmetadata: []\n", "bad.yaml: document 2: apps/v1 Deployment: metadata: found array, want an object"},
		{"no apiVersion", "kind: Deployment\n", "bad.yaml: document 2: apiVersion: Required value: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			manifest := policyA + "---\n" + test.manifest
			_, _, err := policy.Options{}.Compile(policy.Source{Name: "bad.yaml", Data: []byte(manifest)})
			if err == nil || !strings.HasPrefix(err.Error(), test.want) {
				t.Errorf("error %v, want %s", err, test.want)
			}
		})
	}
}

// Where nothing is for podmark, there is nothing to be read; and a list without items says that
// there is no policy.
func TestNothingButOtherKinds(t *testing.T) {
	tests := []struct {
		name      string
		manifests []string
		want      string // of the error
	}{
		{"one", []string{deployment}, "0.yaml: no manifest in it but 1 of other kinds"},
		{"several", []string{deployment + "---\n" + deployment, "# nothing\n"}, "0.yaml: no manifest in it but 2 of other kinds\n1.yaml: no manifest in it"},
		{"in a List", []string{`{"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "v1", "kind": "Pod"}]}`}, "0.yaml: no manifest in it but 1 of other kinds"},
		{"an empty list of another kind", []string{`{"apiVersion": "v1", "kind": "PodList", "items": []}`}, "0.yaml: no manifest in it but 1 of other kinds"},
		{"an empty List", []string{`{"apiVersion": "v1", "kind": "List", "items": []}`}, ""},
		{"an empty List among others", []string{deployment, `{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicyList", "items": []}`}, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var sources []policy.Source
			for i, manifest := range test.manifests {
				sources = append(sources, policy.Source{Name: string(rune('0'+i)) + ".yaml", Data: []byte(manifest)})
			}
			_, _, err := policy.Options{}.Compile(sources...)
			if (err != nil) != (test.want != "") || err != nil && (err.Error() != test.want || !errors.Is(err, policy.ErrEmpty)) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
}

// What is to be the whole policy of a node has a policy, or a list that says there is none. To
// ask a question of, namespaces alone will do.
func TestWhole(t *testing.T) {
	const (
		namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: web}\n---\n"
		list      = "apiVersion: v1\nkind: List\n"
		policies  = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicyList\n"
		spaces    = "apiVersion: v1\nkind: NamespaceList\n"
		none      = "0.yaml: no NetworkPolicy in it"
	)
	for _, test := range []struct {
		name      string
		manifests []string
		want      string // of the error
		empty     bool   // it is ErrEmpty too to whoever asks a question
	}{
		{"a policy", []string{policyA}, "", false},
		{"a policy and a namespace", []string{namespace, policyA}, "", false},
		{"a namespace", []string{namespace}, none + " but 1 namespace", false},
		{"of several files", []string{namespace + deployment, deployment, strings.Replace(namespace, "web", "db", 1)}, none + " but 1 namespace and 1 of other kinds\n1.yaml: no NetworkPolicy in it but 1 of other kinds\n2.yaml: ", false},
		{"namespaces in a List", []string{list + "items:\n- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n- {apiVersion: v1, kind: Namespace, metadata: {name: b}}\n"}, none + " but 2 namespaces", false},
		{"an empty list of namespaces", []string{spaces + "items: []\n"}, none, false},
		{"an empty List", []string{list + "items: []\n"}, "", false},
		{"an empty List and a namespace", []string{namespace + list + "items: []\n"}, "", false},
		{"an empty list of policies", []string{policies + "items: []\n"}, "", false},
		{"one in a List", []string{list + "items: [{apiVersion: networking.k8s.io/v1, kind: NetworkPolicyList, items: []}]\n"}, "", false},
		{"a List that does not say of what", []string{list}, none, false},
		{"a list of policies that does not", []string{policies + "items:\n"}, none, false},
		{"other kinds", []string{deployment}, "0.yaml: no manifest in it but 1 of other kinds", true},
		{"nothing", []string{"# nothing\n"}, "0.yaml: no manifest in it", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			var sources []policy.Source
			for i, manifest := range test.manifests {
				sources = append(sources, policy.Source{Name: string(rune('0'+i)) + ".yaml", Data: []byte(manifest)})
			}
			_, _, err := policy.Options{Whole: true}.Compile(sources...)
			if (err != nil) != (test.want != "") || err != nil && (!strings.HasPrefix(err.Error(), test.want) || errors.Is(err, policy.ErrEmpty) != test.empty || errors.Is(err, policy.ErrNoPolicy) == test.empty) {
				t.Errorf("error %v, want %q", err, test.want)
			}
			if _, _, err := (policy.Options{}).Compile(sources...); (err != nil) != test.empty {
				t.Errorf("for a question: %v", err)
			}
		})
	}
}

// kustomize does not ask its file for a kind.
func TestKustomizationWithoutKind(t *testing.T) {
	a := policy.Source{Name: "web.yaml", Data: []byte(policyA)}
	for _, name := range []string{"kustomization.yaml", "directory/kustomization.yml"} {
		_, notes, err := policy.Options{}.Compile(a, policy.Source{Name: name, Data: []byte("resources: [web.yaml]\n")})
		if err != nil {
			t.Fatal(err)
		}
		begin(t, "notes", []string{name + ": document 1: kustomize.config.k8s.io/v1beta1 Kustomization: passed over, "}, notes)
	}
	if _, _, err := (policy.Options{}).Compile(a, policy.Source{Name: "values.yaml", Data: []byte("resources: [web.yaml]\n")}); err == nil {
		t.Error("a document without a kind is passed over")
	}
}

// As with kubectl -n.
func TestNamespaceOfPolicies(t *testing.T) {
	nameless := strings.Replace(policyA, ", namespace: web", "", 1)
	const namespace = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: db}\n"
	const at = `a.yaml: document 1: NetworkPolicy web/a: metadata.namespace: Invalid value: "web": the namespace from the provided object does not match "shop"`
	tests := []struct {
		name, namespace, manifest string
		want                      string // the namespace of the policy
		err                       string
	}{
		{"none named, none asked for", "", nameless, "default", ""},
		{"none named", "shop", nameless + namespace, "shop", ""},
		{"the same", "web", policyA, "web", ""},
		{"another", "shop", policyA, "", at},
		{"default is another", "shop", strings.Replace(policyA, "web", "default", 1), "", `a.yaml: document 1: NetworkPolicy default/a: metadata.namespace: Invalid value: "default": `},
		{"of another kind", "web", policyA + "---\n" + deployment, "web", ""},
		{"no name of a namespace", "a.b", policyA, "", `namespace "a.b": `},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			source := policy.Source{Name: "a.yaml", Data: []byte(test.manifest)}
			policies, notes, err := policy.Options{Namespace: test.namespace}.Compile(source)
			if test.err != "" {
				if err == nil || !strings.HasPrefix(err.Error(), test.err) {
					t.Errorf("error %v, want %s", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := policies.Policies[0].Namespace; got != test.want {
				t.Errorf("the policy is of %q, want %q", got, test.want)
			}
			assumed := strings.Contains(strings.Join(notes, "\n"), "metadata.namespace")
			if assumed != (test.want == "default") {
				t.Errorf("notes %q", notes)
			}
		})
	}
}
