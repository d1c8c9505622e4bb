package policy_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/policy"
)

// object reads a NetworkPolicy web/x as an API client would have it, unjudged.
func object(t *testing.T, spec string) *networkingv1.NetworkPolicy {
	t.Helper()
	p := &networkingv1.NetworkPolicy{}
	if err := yaml.Unmarshal([]byte(np("x", spec)), p); err != nil {
		t.Fatal(err)
	}
	return p
}

// What is not understood fails closed, what is understood goes on, and the error says
// which is which.
func TestObject(t *testing.T) {
	tests := []struct {
		name        string
		spec        string
		unclear     []string // the fields of the error
		allow, deny []string
	}{
		{
			name:  "defaults",
			spec:  `{podSelector: {}, ingress: [{ports: [{port: 80}]}]}`,
			allow: []string{"192.0.2.1 web/server tcp/80", "web/client 192.0.2.1 tcp/80"},
			deny:  []string{"192.0.2.1 web/server udp/80"},
		},
		{
			name:  "leading zeros are decimal",
			spec:  `{ingress: [{from: [{ipBlock: {cidr: 010.010.0.0/016, except: [10.10.010.000/24]}}]}]}`,
			allow: []string{"10.10.0.1 web/server tcp/80"},
			deny:  []string{"8.8.0.1 web/server tcp/80", "10.10.10.1 web/server tcp/80"},
		},
		{
			name:  "bits beyond the length do not count",
			spec:  `{ingress: [{from: [{ipBlock: {cidr: 192.0.2.77/24, except: [192.0.2.9/29]}}, {ipBlock: {cidr: "2001:db8::77/64"}}]}]}`,
			allow: []string{"192.0.2.1 web/server tcp/80", "192.0.2.16 web/server tcp/80", "2001:db8::9 web/server tcp/80"},
			deny:  []string{"192.0.2.8 web/server tcp/80", "192.0.2.15 web/server tcp/80", "2001:db8:1::9 web/server tcp/80"},
		},
		{
			name:  "IPv4 mapped to IPv6 is IPv4",
			spec:  `{ingress: [{from: [{ipBlock: {cidr: "::ffff:192.0.2.0/120", except: ["::ffff:192.0.2.128/121"]}}]}]}`,
			allow: []string{"192.0.2.1 web/server tcp/80"},
			deny:  []string{"192.0.2.129 web/server tcp/80", "192.0.3.1 web/server tcp/80"},
		},
		{
			name:  "an exception that is the whole block",
			spec:  `{ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.0/24]}}]}]}`,
			deny:  []string{"192.0.2.1 web/server tcp/80", "web/client web/server tcp/80"},
			allow: nil,
		},
		{
			name:    "no CIDR",
			spec:    `{ingress: [{from: [{ipBlock: {cidr: nonsense}}]}]}`,
			unclear: []string{"spec.ingress[0].from[0].ipBlock.cidr"},
			deny:    []string{"192.0.2.1 web/server tcp/80", "web/client web/server tcp/80"},
		},
		{
			name:    "no CIDR beside others",
			spec:    `{ingress: [{from: [{ipBlock: {cidr: ""}}, {ipBlock: {cidr: 192.0.2.0/24}}, {podSelector: {}}]}]}`,
			unclear: []string{"spec.ingress[0].from[0].ipBlock.cidr"},
			allow:   []string{"192.0.2.1 web/server tcp/80", "web/client web/server tcp/80"},
			deny:    []string{"192.0.3.1 web/server tcp/80", "db/client web/server tcp/80"},
		},
		{
			name:    "an exception that is no CIDR",
			spec:    `{ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.0/29, nonsense]}}]}, {ports: [{port: 80}]}]}`,
			unclear: []string{"spec.ingress[0].from[0].ipBlock.except[1]"},
			allow:   []string{"192.0.2.77 web/server tcp/80"},
			deny:    []string{"192.0.2.77 web/server tcp/81"},
		},
		{
			name:    "a peer of an unknown kind",
			spec:    `{ingress: [{from: [{}]}]}`,
			unclear: []string{"spec.ingress[0].from[0]"},
			deny:    []string{"192.0.2.1 web/server tcp/80", "web/client web/server tcp/80", "db/client web/server tcp/80"},
		},
		{
			name:    "a peer of two kinds, beside another",
			spec:    `{egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}, podSelector: {}}, {namespaceSelector: {}}]}]}`,
			unclear: []string{"spec.egress[0].to[0]"},
			allow:   []string{"web/client db/client tcp/80"},
			deny:    []string{"web/client 192.0.2.1 tcp/80", "192.0.2.1 web/client tcp/80"},
		},
		{
			name:    "an unknown operator of a peer",
			spec:    `{ingress: [{from: [{podSelector: {matchExpressions: [{key: role, operator: Gt, values: ["1"]}]}}, {namespaceSelector: {matchExpressions: [{key: a, operator: In}]}}]}]}`,
			unclear: []string{"spec.ingress[0].from[0].podSelector.matchExpressions[0].operator", "spec.ingress[0].from[1].namespaceSelector.matchExpressions[0].values"},
			deny:    []string{"web/client web/server tcp/80", "web/bare web/server tcp/80", "db/client web/server tcp/80"},
		},
		{
			name:  "values that no label has",
			spec:  `{ingress: [{from: [{podSelector: {matchExpressions: [{key: role, operator: In, values: ["a b"]}]}}, {podSelector: {matchExpressions: [{key: app, operator: NotIn, values: ["a b", server]}]}}]}]}`,
			allow: []string{"web/client web/server tcp/80", "web/bare web/server tcp/80"},
			deny:  []string{"web/server web/client tcp/80"},
		},
		{
			name: "an unknown operator of the policy: the other requirements pick, and nothing is allowed",
			spec: `{podSelector: {matchLabels: {app: server}, matchExpressions: [{key: tier, operator: Like, values: [f]}]}, ingress: [{}], policyTypes: [Ingress]}`,

			unclear: []string{"spec.podSelector.matchExpressions[0].operator"},
			allow:   []string{"192.0.2.1 web/client tcp/80", "web/server 192.0.2.1 tcp/80"},
			deny:    []string{"192.0.2.1 web/server tcp/80", "web/client web/server tcp/80"},
		},
		{
			name:    "an unknown protocol",
			spec:    `{ingress: [{ports: [{protocol: QUIC, port: 80}]}, {ports: [{protocol: ICMP}, {port: 81}]}]}`,
			unclear: []string{"spec.ingress[0].ports[0].protocol", "spec.ingress[1].ports[0].protocol"},
			allow:   []string{"192.0.2.1 web/server tcp/81"},
			deny:    []string{"192.0.2.1 web/server tcp/80", "192.0.2.1 web/server udp/80", "192.0.2.1 web/server icmp", "192.0.2.1 web/server gre"},
		},
		{
			name:    "ports that are none",
			spec:    `{ingress: [{ports: [{port: 0}, {port: 65536}, {port: 90, endPort: 80}, {endPort: 80}, {port: http, endPort: 80}]}]}`,
			unclear: []string{"spec.ingress[0].ports[0].port", "spec.ingress[0].ports[1].port", "spec.ingress[0].ports[2].endPort", "spec.ingress[0].ports[3].endPort", "spec.ingress[0].ports[4].endPort"},
			deny:    []string{"192.0.2.1 web/server tcp/0", "192.0.2.1 web/server tcp/80", "192.0.2.1 web/server tcp/85", "192.0.2.1 web/server tcp/90"},
		},
		{
			name:    "an unknown policy type may be of either direction",
			spec:    `{policyTypes: [Forward], ingress: [{ports: [{port: 80}]}]}`,
			unclear: []string{"spec.policyTypes[0]"},
			allow:   []string{"192.0.2.1 web/server tcp/80"},
			deny:    []string{"192.0.2.1 web/server tcp/81", "web/server 192.0.2.1 tcp/80"},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := object(t, test.spec)
			before := p.DeepCopy()
			compiled, err := policy.Object(p)
			if diff := cmp.Diff(before, p); diff != "" {
				t.Errorf("the object was changed (-before +after):\n%s", diff)
			}
			if diff := cmp.Diff(test.unclear, fields(t, err)); diff != "" {
				t.Errorf("not understood (-want +got):\n%s\n%v", diff, err)
			}
			for _, isolation := range []*desired.Isolation{compiled.Ingress, compiled.Egress} {
				if isolation != nil {
					for _, rule := range isolation.Rules {
						checkRule(t, rule)
					}
				}
			}
			check(t, build(t, desired.Policies{Policies: []desired.Policy{compiled}}), test.allow, test.deny)
		})
	}
}

// fields takes the fields from the errors of Object, which all name the policy.
func fields(t *testing.T, err error) []string {
	t.Helper()
	if err == nil {
		return nil
	}
	var fields []string
	for _, line := range strings.Split(err.Error(), "\n") {
		rest, ok := strings.CutPrefix(line, "NetworkPolicy web/x: ")
		if !ok {
			t.Errorf("error does not name the policy: %s", line)
		}
		field, _, _ := strings.Cut(rest, ": ")
		fields = append(fields, field)
	}
	return fields
}
