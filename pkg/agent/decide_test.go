package agent

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/desired"
)

// NodePorts are the ports of the node's own addresses that IPVS answers on, with
// the configured ranges or without, and those that no range has are named.
func TestDecide(t *testing.T) {
	own, alsoOwn, cluster := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("fd00::1"), netip.MustParseAddr("10.96.0.10")
	used := facts{hosts: []netip.Addr{own, alsoOwn}, services: []service{
		{own, 30080, desired.TCP},
		{alsoOwn, 30080, desired.TCP},
		{own, 30081, desired.UDP},
		{own, 40000, desired.SCTP},
		{cluster, 80, desired.TCP},
	}}
	ranges := func(list ...uint16) []desired.PortRange {
		out := []desired.PortRange{}
		for i := 0; i < len(list); i += 2 {
			out = append(out, desired.PortRange{First: list[i], Last: list[i+1]})
		}
		return out
	}
	plugin := ranges(30000, 32767)
	const conflist = "kubeNodePortRanges of the conflist"
	for name, tt := range map[string]struct {
		options PortOptions
		facts   facts
		want    Decision
	}{
		"exact, nothing in use": {
			PortOptions{Mode: PortsExact},
			facts{hosts: used.hosts},
			Decision{Mode: PortsExact, Source: conflist, Configured: plugin, Ranges: ranges(), SCTP: ranges()},
		},
		"exact": {
			PortOptions{Mode: PortsExact},
			used,
			Decision{
				Mode: PortsExact, Source: conflist, Configured: plugin, Outside: []uint16{40000},
				Ranges: ranges(30080, 30081, 40000, 40000), SCTP: ranges(40000, 40000),
			},
		},
		"range": {
			PortOptions{Mode: PortsRange},
			used,
			Decision{
				Mode: PortsRange, Source: conflist, Configured: plugin, Outside: []uint16{40000},
				Ranges: ranges(30000, 32767, 40000, 40000), SCTP: ranges(30000, 32767, 40000, 40000),
			},
		},
		"the operator's ranges, which touch": {
			PortOptions{Mode: PortsRange, Ranges: ranges(40000, 40010, 30080, 30080, 30081, 30090), Source: "flag"},
			used,
			Decision{
				Mode: PortsRange, Source: "flag", Configured: ranges(30080, 30090, 40000, 40010),
				Ranges: ranges(30080, 30090, 40000, 40010), SCTP: ranges(30080, 30090, 40000, 40010),
			},
		},
	} {
		if diff := cmp.Diff(tt.want, tt.options.decide(plugin, tt.facts)); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}

// IPVS counts only with services and the link that kube-proxy keeps for them.
func TestMode(t *testing.T) {
	one := []service{{port: 80}}
	for _, tt := range []struct {
		facts facts
		want  bool
	}{
		{facts{}, false},
		{facts{link: true}, false},
		{facts{services: one}, false},
		{facts{link: true, services: one}, true},
	} {
		if got := tt.facts.mode(); got.IPVS != tt.want || got.Link != tt.facts.link || got.Services != len(tt.facts.services) {
			t.Errorf("%+v is %+v", tt.facts, got)
		}
	}
}
