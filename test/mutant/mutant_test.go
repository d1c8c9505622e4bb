package mutant

import "testing"

// A rule is the same with another mask, other ports and another epoch, and no other.
func TestCanon(t *testing.T) {
	same := [][2]string{
		{"udp dport { 4789, 8472 } meta mark & 0xff0f0000 != 0x00010000 jump encapsulated", "udp dport { 8472 } meta mark != 0x00010000/16 jump encapsulated"},
		{"meta mark & 0xff0f0000 == 0x00000000 accept", "meta mark 0x00000000/16 accept"},
		{"meta mark set meta mark & 0x00f0ffff | 0x00010000", "meta mark set meta mark & 0x0000ffff | 0x00010000"},
		{"-m mark --mark 0x0/0xff0f0000 -j RETURN", "-m mark --mark 0x0/0xffff0000 -j RETURN"},
		{"-p udp -m multiport --dports 4789,8472 -j PODMARK-TUNNEL", "-p udp -m multiport --dports 8472 -j PODMARK-TUNNEL"},
	}
	for _, pair := range same {
		if canon(pair[0]) != canon(pair[1]) {
			t.Errorf("%q and %q are told apart: %q, %q", pair[0], pair[1], canon(pair[0]), canon(pair[1]))
		}
	}
	for i, one := range same {
		for _, other := range same[i+1:] {
			if canon(one[0]) == canon(other[0]) {
				t.Errorf("%q and %q are taken for one", one[0], other[0])
			}
		}
	}
}
