package main_test

import (
	"strings"
	"testing"
)

// A rule that writes podmark's bits is found by its name and taken away by its
// command; one that leaves them alone is let be. So with rules that keep pods out of
// conntrack.
func TestDoctorRules(t *testing.T) {
	const red, green = true, false
	t.Parallel()
	for _, tt := range []struct {
		table, chain string
		rule         string
		check        string
		want         bool
	}{
		{"mangle", "PREROUTING", "-j MARK --set-mark 0x1", "mark-rules", red},
		{"mangle", "PREROUTING", "-p tcp -m comment --comment it's;$(true) -j MARK --set-mark 0x1", "mark-rules", red},
		{"mangle", "OUTPUT", "-j MARK --set-xmark 0x10000/0x10000", "mark-rules", red},
		{"mangle", "OUTPUT", "-j MARK --or-mark 0x80000000", "mark-rules", red},
		{"mangle", "OUTPUT", "-j MARK --and-mark 0x0000ffff", "mark-rules", red},
		{"mangle", "OUTPUT", "-j MARK --set-xmark 0x1/0xffff", "mark-rules", green},
		{"mangle", "OUTPUT", "-j MARK --or-mark 0x4000", "mark-rules", green},
		{"mangle", "OUTPUT", "-j MARK --and-mark 0xffff0fff", "mark-rules", green},
		{"mangle", "PREROUTING", "-j CONNMARK --restore-mark", "mark-rules", red},
		{"mangle", "PREROUTING", "-j CONNMARK --restore-mark --mask 0xff", "mark-rules", green},
		{"mangle", "POSTROUTING", "-j CONNMARK --save-mark", "mark-rules", red},
		{"mangle", "POSTROUTING", "-j CONNMARK --save-mark --mask 0x4000", "mark-rules", green},
		{"mangle", "POSTROUTING", "-j CONNMARK --set-mark 0x1", "mark-rules", red},
		{"mangle", "POSTROUTING", "-j CONNMARK --set-xmark 0x1/0x1", "mark-rules", green},
		{"raw", "PREROUTING", "-j CT --notrack", "notrack", red},
		{"raw", "PREROUTING", "-d 10.1.0.0/24 -j CT --notrack", "notrack", red},
		{"raw", "OUTPUT", "-s 10.1.0.2 -p tcp -j CT --notrack", "notrack", red},
		{"raw", "PREROUTING", "-d 169.254.20.10 -j CT --notrack", "notrack", green},
		{"raw", "PREROUTING", "-i lo -j CT --notrack", "notrack", green},
		{"raw", "PREROUTING", "-p tcp -j CT --zone 1", "notrack", green},
		{"inet", "", "meta mark set 0x1", "mark-rules", red},
		{"inet", "", "ip saddr 192.0.2.1 meta mark set 0x1", "mark-rules", red},
		{"inet", "", "meta mark set meta mark or 0x10000", "mark-rules", red},
		{"inet", "", "meta mark set meta mark and 0xffff", "mark-rules", red},
		{"inet", "", "meta mark set meta mark and 0xffff0000 or 0x1", "mark-rules", green},
		{"inet", "", "meta mark set meta mark xor 0x80", "mark-rules", green},
		{"inet", "", "meta mark set ct mark", "mark-rules", red},
		{"inet", "", "ct mark set meta mark", "mark-rules", red},
		{"inet", "", "ct mark set meta mark and 0xff", "mark-rules", red},
		{"inet", "", "ct mark set ct mark and 0xffff0000 or 0x4000", "mark-rules", green},
		{"inet", "", "meta mark set numgen inc mod 2", "mark-rules", red},
		{"inet", "", "meta mark set ip saddr map { 192.0.2.1 : 0x1 }", "mark-rules", red},
		{"inet", "", "meta mark 0x5 meta mark set socket mark", "mark-rules", red},
		{"inet", "", "meta mark set meta mark lshift 1", "mark-rules", red},
		{"inet", "", "meta mark 0x10000 accept", "mark-rules", green},
		{"inet", "", "meta priority set 1:1", "mark-rules", green},
		{"inet", "", "notrack", "notrack", red},
		{"inet", "", "ip daddr 10.0.0.0/8 notrack", "notrack", red},
		{"inet", "", "ip6 saddr fd00:10::2 notrack", "notrack", red},
		{"inet", "", "ip6 saddr fd00:20::/64 notrack", "notrack", green},
		{"inet", "", "ip daddr 169.254.20.10 udp dport 53 notrack", "notrack", green},
		{"inet", "", "iifname \"lo\" notrack", "notrack", green},
	} {
		kinds := variants
		if tt.table == "inet" {
			kinds = []string{"native"}
		}
		for _, kind := range kinds {
			t.Run(kind+" "+tt.rule, func(t *testing.T) {
				t.Parallel()
				p := newPatient(t, nftables, 1)
				name := "chain inet theirs pre"
				if kind == "native" {
					p.exec("", "nft", "table inet theirs { chain pre { type filter hook prerouting priority raw; }; }")
					p.exec("", "nft", "add rule inet theirs pre "+tt.rule)
				} else {
					args := append([]string{"-t", tt.table, "-A", tt.chain}, strings.Fields(tt.rule)...)
					p.exec("", "iptables-"+kind, args...)
					name = map[string]string{"nft": "chain ip " + tt.table + " " + tt.chain, "legacy": "iptables-legacy -t " + tt.table + " -A " + tt.chain}[kind]
				}
				if tt.want == green {
					p.well()
					return
				}
				p.kubectl()
				p.finds(tt.check, name)
				p.mend(tt.check)
			})
		}
	}
}
