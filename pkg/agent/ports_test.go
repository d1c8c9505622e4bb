package agent

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/desired"
)

// A Service's node port counts from when the Service is known, and not only from when
// IPVS answers on it.
func TestDecideServices(t *testing.T) {
	own := netip.MustParseAddr("192.0.2.1")
	port := func(p desired.Protocol, first, last uint16) desired.Port {
		return desired.Port{Protocol: p, PortRange: desired.PortRange{First: first, Last: last}}
	}
	for name, tt := range map[string]struct {
		mode          PortMode
		services      []desired.Port
		inIPVS        []service
		ranges, sctp  []desired.PortRange
		outsideRanges []uint16
	}{
		"not yet in IPVS": {
			mode: PortsExact, services: []desired.Port{port(desired.TCP, 30080, 30081)},
			ranges: []desired.PortRange{{First: 30080, Last: 30081}},
		},
		"in both, and by two protocols": {
			mode: PortsExact, services: []desired.Port{port(desired.TCP, 30080, 30080), port(desired.UDP, 30080, 30080)},
			inIPVS: []service{{own, 30080, desired.TCP}, {own, 30090, desired.TCP}},
			ranges: []desired.PortRange{{First: 30080, Last: 30080}, {First: 30090, Last: 30090}},
		},
		"SCTP": {
			mode: PortsExact, services: []desired.Port{port(desired.SCTP, 30000, 30000), port(desired.TCP, 30080, 30080)},
			ranges: []desired.PortRange{{First: 30000, Last: 30000}, {First: 30080, Last: 30080}},
			sctp:   []desired.PortRange{{First: 30000, Last: 30000}},
		},
		"outside the ranges, by a range of its own": {
			mode: PortsRange, services: []desired.Port{port(desired.UDP, 65534, 65535)},
			ranges:        []desired.PortRange{{First: 30000, Last: 32767}, {First: 65534, Last: 65535}},
			sctp:          []desired.PortRange{{First: 30000, Last: 32767}},
			outsideRanges: []uint16{65534, 65535},
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := PortOptions{Mode: tt.mode, Services: tt.services}
			got := o.decide([]desired.PortRange{{First: 30000, Last: 32767}}, facts{hosts: []netip.Addr{own}, services: tt.inIPVS})
			if diff := cmp.Diff(tt.ranges, got.Ranges); diff != "" {
				t.Errorf("ranges (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(append([]desired.PortRange{}, tt.sctp...), got.SCTP); diff != "" {
				t.Errorf("ranges of SCTP (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.outsideRanges, got.Outside); diff != "" {
				t.Errorf("ports outside (-want +got):\n%s", diff)
			}
		})
	}
}
