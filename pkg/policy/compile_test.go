package policy_test

import "testing"

// The traps of NetworkPolicy v1, each as who may talk to whom.
func TestIsolation(t *testing.T) {
	tests := []struct {
		name        string
		manifest    string
		allow, deny []string
	}{
		{
			name:     "without a policy nobody is isolated",
			manifest: "# nothing\n---\n---\napiVersion: v1\nkind: List\nitems: []\n",
			allow:    []string{"web/client web/server tcp/80", "web/server 192.0.2.1 udp/53", "192.0.2.1 web/server gre"},
		},
		{
			name:     "isolates only the pods it selects, in its own namespace",
			manifest: np("deny", `{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress]}`),
			allow:    []string{"web/server web/client tcp/80", "web/client db/server tcp/80", "web/client web/bare tcp/80"},
			deny:     []string{"web/client web/server tcp/80", "192.0.2.1 web/server tcp/80", "db/client web/server icmp"},
		},
		{
			name:     "an empty podSelector is every pod of the namespace",
			manifest: np("deny", `{podSelector: {}, policyTypes: [Ingress]}`),
			allow:    []string{"web/client db/client tcp/80"},
			deny:     []string{"db/client web/client tcp/80", "db/client web/server tcp/80", "db/client web/bare tcp/80"},
		},
		{
			name:     "without a spec every pod of the namespace is closed to ingress",
			manifest: "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny, namespace: web}\n",
			allow:    []string{"web/client db/server tcp/80"},
			deny:     []string{"db/client web/client tcp/80"},
		},
		{
			name:     "a policy without namespace is in default",
			manifest: "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny}\nspec: {}\n",
			allow:    []string{"default/other web/client tcp/80"},
			deny:     []string{"web/client default/other tcp/80"},
		},
		{
			name:     "an empty list of rules denies",
			manifest: np("deny", `{podSelector: {}, ingress: [], egress: [], policyTypes: [Ingress, Egress]}`),
			deny:     []string{"db/client web/client tcp/80", "web/client db/client tcp/80", "web/client 192.0.2.1 icmp"},
		},
		{
			name:     "an empty rule allows everything",
			manifest: np("open", `{podSelector: {}, ingress: [{}], policyTypes: [Ingress]}`),
			allow:    []string{"db/client web/client tcp/80", "192.0.2.1 web/client icmp", "2001:db8::9 web/client gre"},
		},
		{
			name:     "a null rule is an empty rule, as the API server reads it",
			manifest: np("open", `{podSelector: {}, ingress: [null], policyTypes: [Ingress]}`),
			allow:    []string{"192.0.2.1 web/client gre"},
		},
		{
			name:     "policyTypes default to ingress when there are no egress rules",
			manifest: np("deny", `{podSelector: {}, egress: []}`),
			allow:    []string{"web/client 192.0.2.1 tcp/80", "web/client db/client tcp/80"},
			deny:     []string{"192.0.2.1 web/client tcp/80"},
		},
		{
			name:     "policyTypes default to both when there are egress rules",
			manifest: np("egress", `{podSelector: {}, egress: [{ports: [{port: 53, protocol: UDP}]}]}`),
			allow:    []string{"web/client 192.0.2.1 udp/53"},
			deny:     []string{"192.0.2.1 web/client tcp/80", "web/client 192.0.2.1 tcp/80"},
		},
		{
			name:     "ingress rules count for nothing when the type is not listed",
			manifest: np("egress", `{podSelector: {}, policyTypes: [Egress], ingress: [{ports: [{port: 80}]}]}`),
			allow:    []string{"192.0.2.1 web/client tcp/81", "192.0.2.1 web/client icmp"},
			deny:     []string{"web/client 192.0.2.1 tcp/80"},
		},
		{
			name:     "egress rules count for nothing when the type is not listed",
			manifest: np("ingress", `{podSelector: {}, policyTypes: [Ingress], egress: [{ports: [{port: 80}]}]}`),
			allow:    []string{"web/client 192.0.2.1 tcp/81"},
			deny:     []string{"192.0.2.1 web/client tcp/80"},
		},
		{
			name: "both sides must allow",
			manifest: np("out", `{podSelector: {matchLabels: {role: client}}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]}`) +
				np("in", `{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress], ingress: [{ports: [{port: 80}]}]}`),
			allow: []string{"web/client web/server tcp/80", "web/client web/bare tcp/81", "web/bare web/server tcp/80"},
			deny:  []string{"web/client web/server tcp/81", "web/client db/server tcp/80"},
		},
		{
			name: "policies only add, whichever comes first",
			manifest: np("b-allow", `{podSelector: {}, ingress: [{ports: [{port: 80}]}]}`) +
				np("a-deny", `{podSelector: {}}`) +
				np("c-allow", `{podSelector: {matchLabels: {app: server}}, ingress: [{ports: [{port: 443}]}]}`),
			allow: []string{"192.0.2.1 web/server tcp/80", "192.0.2.1 web/server tcp/443", "192.0.2.1 web/client tcp/80"},
			deny:  []string{"192.0.2.1 web/client tcp/443", "192.0.2.1 web/server tcp/22"},
		},
		{
			name:     "every rule of a policy counts",
			manifest: np("rules", `{podSelector: {}, ingress: [{ports: [{port: 80}]}, {ports: [{port: 81}]}, {from: [{podSelector: {}}]}]}`),
			allow:    []string{"192.0.2.1 web/server tcp/80", "192.0.2.1 web/server tcp/81", "web/client web/server tcp/82"},
			deny:     []string{"192.0.2.1 web/server tcp/82"},
		},
		{
			name:     "the node reaches its own pods",
			manifest: np("deny", `{podSelector: {}}`),
			allow:    []string{"node web/client tcp/80", "node web/server icmp"},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			check(t, compile(t, test.manifest), test.allow, test.deny)
		})
	}
}

func TestPorts(t *testing.T) {
	tests := []struct {
		name        string
		ports       string // of the one ingress rule
		allow, deny []string
	}{
		{
			name:  "no ports is every protocol",
			ports: `[]`,
			allow: []string{"db/client web/server tcp/1", "db/client web/server icmp", "db/client web/server gre"},
		},
		{
			name:  "a port without protocol is TCP",
			ports: `[{port: 80}]`,
			allow: []string{"db/client web/server tcp/80"},
			deny:  []string{"db/client web/server udp/80", "db/client web/server sctp/80", "db/client web/server tcp/81"},
		},
		{
			name:  "a protocol without port is every port of it",
			ports: `[{protocol: UDP}]`,
			allow: []string{"db/client web/server udp/1", "db/client web/server udp/65535"},
			deny:  []string{"db/client web/server tcp/1", "db/client web/server icmp"},
		},
		{
			name:  "an empty port is every TCP port",
			ports: `[{}]`,
			allow: []string{"db/client web/server tcp/1", "db/client web/server tcp/65535"},
			deny:  []string{"db/client web/server udp/1", "db/client web/server icmp"},
		},
		{
			name:  "endPort is included",
			ports: `[{port: 80, endPort: 82}]`,
			allow: []string{"db/client web/server tcp/80", "db/client web/server tcp/81", "db/client web/server tcp/82"},
			deny:  []string{"db/client web/server tcp/79", "db/client web/server tcp/83"},
		},
		{
			name:  "a range may be one port, and end at the last",
			ports: `[{port: 80, endPort: 80}, {port: 65535, endPort: 65535}]`,
			allow: []string{"db/client web/server tcp/80", "db/client web/server tcp/65535"},
			deny:  []string{"db/client web/server tcp/81", "db/client web/server tcp/65534"},
		},
		{
			name:  "any of the ports will do, and ranges may overlap",
			ports: `[{port: 90}, {port: 80, endPort: 85}, {port: 53, protocol: UDP}, {port: 84, endPort: 89}]`,
			allow: []string{"db/client web/server tcp/80", "db/client web/server tcp/87", "db/client web/server tcp/90", "db/client web/server udp/53"},
			deny:  []string{"db/client web/server tcp/91", "db/client web/server udp/80", "db/client web/server tcp/53"},
		},
		{
			name:  "a range within another takes nothing away",
			ports: `[{port: 80, endPort: 90}, {port: 82, endPort: 84}, {protocol: UDP}, {port: 53, protocol: UDP}]`,
			allow: []string{"db/client web/server tcp/81", "db/client web/server tcp/90", "db/client web/server udp/54"},
			deny:  []string{"db/client web/server tcp/91"},
		},
		{
			name:  "SCTP is not TCP, and isolates TCP",
			ports: `[{port: 80, protocol: SCTP}]`,
			allow: []string{"db/client web/server sctp/80"},
			deny:  []string{"db/client web/server tcp/80", "db/client web/server udp/80"},
		},
		{
			name:  "ICMP matches no port",
			ports: `[{}, {protocol: UDP}, {protocol: SCTP}]`,
			deny:  []string{"db/client web/server icmp", "db/client web/server gre"},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			check(t, compile(t, np("ports", `{podSelector: {}, ingress: [{ports: `+test.ports+`}]}`)), test.allow, test.deny)
		})
	}
}

func TestPeers(t *testing.T) {
	const namespaces = `
apiVersion: v1
kind: Namespace
metadata: {name: db, labels: {team: data, kubernetes.io/metadata.name: web}}
`
	tests := []struct {
		name        string
		from        string // of the one ingress rule
		allow, deny []string
	}{
		{
			name:  "an empty list is anyone",
			from:  `[]`,
			allow: []string{"192.0.2.1 web/server tcp/80", "db/client web/server tcp/80", "2001:db8::9 web/server udp/1"},
		},
		{
			name:  "null is anyone",
			from:  `null`,
			allow: []string{"192.0.2.1 web/server tcp/80"},
		},
		{
			name:  "an empty podSelector is the pods of the policy's namespace",
			from:  `[{podSelector: {}}]`,
			allow: []string{"web/client web/server tcp/80", "web/bare web/server tcp/80"},
			deny:  []string{"db/client web/server tcp/80", "192.0.2.1 web/server tcp/80"},
		},
		{
			name:  "a podSelector stays in the policy's namespace",
			from:  `[{podSelector: {matchLabels: {role: client}}}]`,
			allow: []string{"web/client web/server tcp/80"},
			deny:  []string{"web/bare web/server tcp/80", "db/client web/server tcp/80", "default/other web/server tcp/80"},
		},
		{
			name:  "an empty namespaceSelector is every pod, and nothing else",
			from:  `[{namespaceSelector: {}}]`,
			allow: []string{"web/bare web/server tcp/80", "db/client web/server tcp/80", "default/other web/server tcp/80"},
			deny:  []string{"192.0.2.1 web/server tcp/80", "2001:db8::9 web/server tcp/80"},
		},
		{
			name:  "a namespaceSelector takes every pod of the namespace",
			from:  `[{namespaceSelector: {matchLabels: {team: data}}}]`,
			allow: []string{"db/client web/server tcp/80", "db/server web/server tcp/80"},
			deny:  []string{"web/client web/server tcp/80", "default/other web/server tcp/80"},
		},
		{
			name:  "both selectors in one peer must match",
			from:  `[{namespaceSelector: {matchLabels: {team: data}}, podSelector: {matchLabels: {role: client}}}]`,
			allow: []string{"db/client web/server tcp/80"},
			deny:  []string{"db/server web/server tcp/80", "web/client web/server tcp/80"},
		},
		{
			name:  "either of two peers will do",
			from:  `[{namespaceSelector: {matchLabels: {team: data}}}, {podSelector: {matchLabels: {role: client}}}]`,
			allow: []string{"db/client web/server tcp/80", "db/server web/server tcp/80", "web/client web/server tcp/80"},
			deny:  []string{"web/bare web/server tcp/80", "default/other web/server tcp/80"},
		},
		{
			name:  "an empty podSelector beside a namespaceSelector is all of its pods",
			from:  `[{namespaceSelector: {matchLabels: {team: data}}, podSelector: {}}]`,
			allow: []string{"db/client web/server tcp/80", "db/server web/server tcp/80"},
			deny:  []string{"web/client web/server tcp/80"},
		},
		{
			name:  "every namespace has its name as a label, declared or not",
			from:  `[{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: default}}}]`,
			allow: []string{"default/other web/server tcp/80"},
			deny:  []string{"web/client web/server tcp/80", "db/client web/server tcp/80"},
		},
		{
			name:  "a namespace cannot take another's name by label",
			from:  `[{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: web}}}]`,
			allow: []string{"web/client web/server tcp/80"},
			deny:  []string{"db/client web/server tcp/80"},
		},
		{
			name:  "In and labels must all hold",
			from:  `[{podSelector: {matchLabels: {app: server}, matchExpressions: [{key: tier, operator: In, values: [front, back]}]}}]`,
			allow: []string{"web/server web/client tcp/80"},
			deny:  []string{"web/bare web/client tcp/80", "web/client web/server tcp/80"},
		},
		{
			name:  "one key may be required twice",
			from:  `[{namespaceSelector: {}, podSelector: {matchLabels: {tier: back}, matchExpressions: [{key: tier, operator: In, values: [front]}]}}]`,
			deny:  []string{"web/server web/client tcp/80", "db/server web/client tcp/80"},
			allow: nil,
		},
		{
			name:  "NotIn holds for a label that is absent",
			from:  `[{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [server]}]}}]`,
			allow: []string{"web/client web/server tcp/80", "web/bare web/server tcp/80"},
			deny:  []string{"web/server web/client tcp/80", "db/client web/client tcp/80"},
		},
		{
			name:  "Exists",
			from:  `[{podSelector: {matchExpressions: [{key: app, operator: Exists}]}}]`,
			allow: []string{"web/server web/client tcp/80"},
			deny:  []string{"web/bare web/client tcp/80"},
		},
		{
			name:  "DoesNotExist",
			from:  `[{podSelector: {matchExpressions: [{key: app, operator: DoesNotExist}]}}]`,
			allow: []string{"web/bare web/client tcp/80"},
			deny:  []string{"web/server web/client tcp/80"},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			manifest := namespaces + np("peers", `{podSelector: {}, ingress: [{from: `+test.from+`}]}`)
			check(t, compile(t, manifest), test.allow, test.deny)
		})
	}
}

// One policy has rules about its own pods as sources and as destinations: what
// "to" lists is the destination.
func TestEgressPeers(t *testing.T) {
	state := compile(t, np("egress", `{podSelector: {}, policyTypes: [Egress], egress: [
		{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: db}}, podSelector: {matchLabels: {app: server}}}], ports: [{port: 5432}]},
		{to: [{ipBlock: {cidr: 192.0.2.0/24}}], ports: [{port: 53, protocol: UDP}]}]}`))
	check(t, state,
		[]string{"web/client db/server tcp/5432", "web/client 192.0.2.1 udp/53", "db/client web/client tcp/80"},
		[]string{"web/client db/client tcp/5432", "web/client db/server udp/53", "web/client 192.0.2.1 tcp/5432", "web/client web/server tcp/5432"})
}
