package policy_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestBlocks(t *testing.T) {
	tests := []struct {
		name        string
		spec        string
		allow, deny []string
	}{
		{
			name:  "a block matches what is outside, and pods too",
			spec:  `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.4/32}}, {ipBlock: {cidr: 192.0.2.0/24}}]}]}`,
			allow: []string{"192.0.2.1 web/server tcp/80", "db/client web/server icmp"},
			deny:  []string{"192.0.3.1 web/server tcp/80", "db/server web/server tcp/80"},
		},
		{
			name:  "an exception is taken out",
			spec:  `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.0/28, 192.0.2.255/32]}}]}]}`,
			allow: []string{"192.0.2.16 web/server tcp/80", "192.0.2.254 web/server tcp/80"},
			deny:  []string{"192.0.2.15 web/server tcp/80", "192.0.2.255 web/server tcp/80"},
		},
		{
			name:  "an exception does not bind another block of the rule",
			spec:  `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.0/28]}}, {ipBlock: {cidr: 192.0.2.8/29}}]}]}`,
			allow: []string{"192.0.2.8 web/server tcp/80", "192.0.2.16 web/server tcp/80"},
			deny:  []string{"192.0.2.7 web/server tcp/80"},
		},
		{
			name:  "nor does it when the other block equals it",
			spec:  `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/28}}, {ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.0/28]}}]}]}`,
			allow: []string{"192.0.2.1 web/server tcp/80", "192.0.2.200 web/server tcp/80"},
		},
		{
			name: "nor another rule, with its own ports",
			spec: `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.0/28]}}]},
				{from: [{ipBlock: {cidr: 192.0.2.0/28}}], ports: [{port: 80}]}]}`,
			allow: []string{"192.0.2.1 web/server tcp/80", "192.0.2.16 web/server tcp/81"},
			deny:  []string{"192.0.2.1 web/server tcp/81"},
		},
		{
			name:  "nor a selector of the same rule",
			spec:  `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/24]}}, {podSelector: {}}]}]}`,
			allow: []string{"web/client web/server tcp/80", "10.1.0.1 web/server tcp/80"},
			deny:  []string{"db/client web/server tcp/80"},
		},
		{
			name:  "a block that is excepted away is nobody, not anyone",
			spec:  `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [0.0.0.0/1, 128.0.0.0/1]}}]}]}`,
			deny:  []string{"192.0.2.1 web/server tcp/80", "web/client web/server tcp/80", "2001:db8::9 web/server tcp/80"},
			allow: nil,
		},
		{
			name:  "excepted away beside a selector leaves the selector",
			spec:  `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/9, 10.128.0.0/9]}}, {podSelector: {}}]}]}`,
			allow: []string{"web/client web/server tcp/80"},
			deny:  []string{"db/client web/server tcp/80", "192.0.2.1 web/server tcp/80"},
		},
		{
			name:  "an IPv4 block allows no IPv6",
			spec:  `{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}`,
			allow: []string{"web/client 192.0.2.1 tcp/80"},
			deny:  []string{"web/client 2001:db8::9 tcp/80", "web/client ::ffff:192.0.2.1 tcp/80"},
		},
		{
			name:  "all of IPv6 is all of it, and no IPv4",
			spec:  `{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: "::/0"}}]}]}`,
			allow: []string{"web/client 2001:db8::9 tcp/80", "web/client 64:ff9b::1 tcp/80", "web/client ff02::fb udp/5353"},
			deny:  []string{"web/client 192.0.2.1 tcp/80"},
		},
		{
			name:  "IPv6 exceptions",
			spec:  `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: "2001:0DB8:0::/32", except: ["2001:db8:1::/48"]}}]}]}`,
			allow: []string{"2001:db8::9 web/server tcp/80"},
			deny:  []string{"2001:db8:1::9 web/server tcp/80", "2001:db9::1 web/server tcp/80"},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			check(t, compile(t, np("blocks", test.spec)), test.allow, test.deny)
		})
	}
}

// What a kernel set of intervals is given must not overlap.
func TestBlocksAreCoalesced(t *testing.T) {
	tests := []struct {
		name string
		from string
		want []string
	}{
		{"overlapping", `[{ipBlock: {cidr: 10.0.0.0/8}}, {ipBlock: {cidr: 10.1.0.0/16}}]`, []string{"10.0.0.0/8"}},
		{"twice the same", `[{ipBlock: {cidr: 10.0.0.0/8}}, {ipBlock: {cidr: 10.0.0.0/8}}]`, []string{"10.0.0.0/8"}},
		{"adjacent", `[{ipBlock: {cidr: 10.128.0.0/9}}, {ipBlock: {cidr: 10.0.0.0/9}}]`, []string{"10.0.0.0/8"}},
		{"both halves of everything", `[{ipBlock: {cidr: 0.0.0.0/1}}, {ipBlock: {cidr: 128.0.0.0/1}}]`, []string{"0.0.0.0/0"}},
		{"families apart", `[{ipBlock: {cidr: "::/0"}}, {ipBlock: {cidr: 0.0.0.0/0}}]`, []string{"0.0.0.0/0", "::/0"}},
		{"nested exceptions", `[{ipBlock: {cidr: 10.0.0.0/30, except: [10.0.0.0/32, 10.0.0.0/31]}}]`, []string{"10.0.0.2/31"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := prefixes(t, np("blocks", `{podSelector: {}, ingress: [{from: `+test.from+`}]}`))
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("blocks (-want +got):\n%s", diff)
			}
		})
	}
}
