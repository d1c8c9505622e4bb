package policy_test

import (
	"fmt"

	"github.com/podmark/podmark/pkg/policy"
)

func Example() {
	manifest := policy.Source{Name: "web.yaml", Data: []byte(`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow, namespace: web}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress:
  - from:
    - ipBlock: {cidr: 10.0.0.7/8, except: [10.0.0.0/9]}
    ports:
    - {port: 80, endPort: 89}
`)}
	policies, notes, err := policy.Options{}.Compile(manifest)
	if err != nil {
		fmt.Println(err)
		return
	}
	p := policies.Policies[0]
	fmt.Println(p.Namespace, p.Name, p.Pods)
	for _, r := range p.Ingress.Rules {
		fmt.Println("ingress", r.Blocks, r.Ports[0].Protocol, r.Ports[0])
	}
	fmt.Println("egress isolated:", p.Egress != nil)
	for _, note := range notes {
		fmt.Println(note)
	}
	// Output:
	// web allow app=server
	// ingress [10.128.0.0/9] tcp 80:89
	// egress isolated: false
	// web.yaml: document 1: NetworkPolicy web/allow: spec.ingress[0].from[0].ipBlock.cidr: "10.0.0.7/8" counts as 10.0.0.0/8: must not have bits set beyond the prefix length
}

// Every problem in every file is reported, and nothing is compiled.
func ExampleOptions_Compile_invalid() {
	_, _, err := policy.Options{}.Compile(policy.Source{Name: "policies.yaml", Data: []byte(`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow, namespace: web}
spec:
  ingress:
  - from:
    - {}
    ports:
    - {port: 80, endPort: 79}
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: deny, namespace: web}
`)})
	fmt.Println(err)
	// Output:
	// policies.yaml: document 1: NetworkPolicy web/allow: spec.ingress[0].ports[0].endPort: Invalid value: 79: must be 80, the port, or higher
	// policies.yaml: document 1: NetworkPolicy web/allow: spec.ingress[0].from[0]: Required value: a peer needs a podSelector, a namespaceSelector or an ipBlock
	// policies.yaml: document 2: projectcalico.org/v3 NetworkPolicy is not enforced, and passing it over would leave open what it denies: accepted are networking.k8s.io/v1 NetworkPolicy, v1 Namespace, and their lists: v1 List, networking.k8s.io/v1 NetworkPolicyList, v1 NamespaceList
}
