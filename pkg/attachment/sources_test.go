package attachment_test

import (
	"net/netip"
	"testing"

	"github.com/podmark/podmark/pkg/attachment"
)

func TestContends(t *testing.T) {
	of := func(iface, vrf string, prefixes ...string) attachment.Endpoint {
		e := attachment.Endpoint{L3Interface: iface, VRF: vrf}
		for _, p := range prefixes {
			e.AllowedSources = append(e.AllowedSources, netip.MustParsePrefix(p))
		}
		return e
	}
	for _, tt := range []struct {
		name string
		a, b attachment.Endpoint
		want bool
	}{
		{"the same on a bridge", of("br0", "", "172.30.0.0/16"), of("br0", "", "172.30.0.0/16"), true},
		{"a part of it", of("br0", "", "fd00::/64", "172.30.0.0/16"), of("br0", "", "172.30.8.0/24"), true},
		{"others on a bridge", of("br0", "", "172.30.0.0/17"), of("br0", "", "172.30.128.0/17", "fd00::/64"), false},
		{"on two bridges", of("br0", "", "172.30.0.0/16"), of("br1", "", "172.30.0.0/16"), false},
		{"in a VRF", of("veth0", "red", "172.30.0.0/16"), of("veth1", "red", "172.30.0.0/16"), true},
		{"in two VRFs", of("veth0", "red", "172.30.0.0/16"), of("veth1", "blue", "172.30.0.0/16"), false},
		{"none", of("br0", ""), of("br0", "", "172.30.0.0/16"), false},
	} {
		if p, got := tt.a.Contends(tt.b); got != tt.want || got && !tt.b.AllowedSources[0].Overlaps(p) {
			t.Errorf("%s: %v, %v", tt.name, p, got)
		}
		if _, got := tt.b.Contends(tt.a); got != tt.want {
			t.Errorf("%s, the other way: %v", tt.name, got)
		}
	}
}
