package desired_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/desired"
)

// Ranges that overlap or touch are one, and no port comes to them that was in none.
func TestMergeRanges(t *testing.T) {
	for _, tt := range []struct{ ranges, want []desired.PortRange }{
		{nil, []desired.PortRange{}},
		{[]desired.PortRange{{First: 5, Last: 6}, {First: 1, Last: 2}}, []desired.PortRange{{First: 1, Last: 2}, {First: 5, Last: 6}}},
		{[]desired.PortRange{{First: 1, Last: 2}, {First: 3, Last: 4}}, []desired.PortRange{{First: 1, Last: 4}}},
		{[]desired.PortRange{{First: 1, Last: 2}, {First: 4, Last: 4}}, []desired.PortRange{{First: 1, Last: 2}, {First: 4, Last: 4}}},
		{[]desired.PortRange{{First: 1, Last: 9}, {First: 3, Last: 4}}, []desired.PortRange{{First: 1, Last: 9}}},
		{[]desired.PortRange{{First: 3, Last: 65535}, {First: 65535, Last: 65535}}, []desired.PortRange{{First: 3, Last: 65535}}},
	} {
		if diff := cmp.Diff(tt.want, desired.MergeRanges(tt.ranges)); diff != "" {
			t.Errorf("%v:\n%s", tt.ranges, diff)
		}
	}
}

// A rule of which nothing is left allows nobody, though it names no peer.
func TestNobody(t *testing.T) {
	for _, nobody := range []bool{false, true} {
		p := desired.Policy{Namespace: "one", Name: "web", Ingress: &desired.Isolation{Rules: []desired.Rule{{MatchNone: nobody}}}}
		r := attachment.Record{ID: 2, Policed: true, Endpoint: attachment.Endpoint{Namespace: "one", Pod: "web", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}}
		s := desired.Build(desired.Node{}, desired.Policies{Policies: []desired.Policy{p}}, []attachment.Record{r})
		profile := s.Profiles[s.Endpoints[0].Profiles[desired.Ingress]]
		if profile.ID == "" || (len(profile.Rules()) == 0) != nobody {
			t.Errorf("nobody is %t: %+v", nobody, profile)
		}
	}
}
