package main_test

import (
	"strings"
	"testing"

	"github.com/podmark/podmark/test/testnode"
)

// wanted is what another program's rule gives: nothing, a finding whose command fixes it,
// or one with advice, because it is theirs to change.
type wanted int

const (
	green wanted = iota
	red
	advice
)

// theirRules are rules of others on a node of the nftables backend. Those of iptables are in
// that table and chain, those of table inet in a chain of that hook and priority.
var theirRules = []struct {
	table, chain string
	rule         string
	check        string
	want         wanted
}{
	// Before podmark writes its mark, and after it has taken it off, a mark is theirs.
	{"mangle", "PREROUTING", "-j MARK --set-mark 0x1", "mark-rules", green},
	{"mangle", "PREROUTING", "-j MARK --set-xmark 0x10000/0x10000", "mark-rules", green},
	{"mangle", "PREROUTING", "-j CONNMARK --restore-mark", "mark-rules", green},
	{"mangle", "PREROUTING", "-p udp -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff", "mark-rules", green},
	{"filter", "INPUT", "-j MARK --set-xmark 0x10000/0x10000", "mark-rules", green},
	{"filter", "FORWARD", "-j MARK --set-mark 0x10000", "mark-rules", green},
	{"mangle", "OUTPUT", "-j MARK --set-xmark 0x10000/0x10000", "mark-rules", green},
	{"mangle", "POSTROUTING", "-p udp -m mark --mark 51820 -j CONNMARK --save-mark", "mark-rules", green},
	{"nat", "INPUT", "-j MARK --set-xmark 0x10000/0x10000", "mark-rules", red},
	{"nat", "INPUT", "-p tcp -m comment --comment it's;$(true) -j MARK --set-mark 0x1", "mark-rules", advice},
	{"nat", "INPUT", "-j MARK --set-mark 0x1", "mark-rules", advice},
	{"nat", "INPUT", "-j MARK --or-mark 0x80000000", "mark-rules", red},
	{"nat", "INPUT", "-j MARK --and-mark 0x0000ffff", "mark-rules", red},
	{"nat", "INPUT", "-j MARK --set-xmark 0x1/0xffff", "mark-rules", green},
	{"nat", "INPUT", "-j MARK --or-mark 0x4000", "mark-rules", green},
	{"nat", "INPUT", "-j MARK --and-mark 0xffff0fff", "mark-rules", green},
	{"nat", "INPUT", "-m mark --mark 0x1 -j ACCEPT", "mark-compares", advice},
	{"nat", "INPUT", "-m mark --mark 0x40000/0x40000 -j ACCEPT", "mark-compares", red},
	{"nat", "INPUT", "-m mark --mark 0x4000/0x4000 -j ACCEPT", "mark-compares", green},
	{"filter", "INPUT", "-m mark --mark 0x1 -j ACCEPT", "mark-compares", green},
	{"filter", "FORWARD", "-m mark ! --mark 0x1bd20 -j ACCEPT", "mark-compares", green},
	// The conntrack mark lasts.
	{"mangle", "PREROUTING", "-j CONNMARK --set-xmark 0x10000/0x10000", "mark-rules", red},
	{"mangle", "POSTROUTING", "-j CONNMARK --save-mark", "mark-rules", advice},
	{"mangle", "POSTROUTING", "-j CONNMARK --save-mark --mask 0x4000", "mark-rules", green},
	{"mangle", "POSTROUTING", "-j CONNMARK --set-mark 0x1", "mark-rules", advice},
	{"mangle", "POSTROUTING", "-j CONNMARK --set-xmark 0x1/0x1", "mark-rules", green},
	{"raw", "PREROUTING", "-j CT --notrack", "notrack", advice},
	{"raw", "PREROUTING", "-d 10.1.0.0/24 -j CT --notrack", "notrack", advice},
	{"raw", "OUTPUT", "-s 10.1.0.2 -p tcp -j CT --notrack", "notrack", advice},
	{"raw", "PREROUTING", "-d 169.254.20.10 -j CT --notrack", "notrack", green},
	{"raw", "PREROUTING", "-i lo -j CT --notrack", "notrack", green},
	{"raw", "PREROUTING", "-p tcp -j CT --zone 1", "notrack", green},
	{"inet", "input priority 98", "meta mark set 0x1", "mark-rules", advice},
	{"inet", "input priority 98", "ip saddr 192.0.2.1 meta mark set 0x1", "mark-rules", advice},
	{"inet", "input priority 98", "meta mark set meta mark or 0x10000", "mark-rules", red},
	{"inet", "input priority 98", "meta mark set meta mark and 0xffff", "mark-rules", red},
	{"inet", "input priority 98", "meta mark set meta mark and 0xffff0000 or 0x1", "mark-rules", green},
	{"inet", "input priority 98", "meta mark set meta mark xor 0x80", "mark-rules", green},
	{"inet", "input priority 98", "meta mark set ct mark", "mark-rules", advice},
	{"inet", "input priority 98", "meta mark set numgen inc mod 2", "mark-rules", advice},
	{"inet", "input priority 98", "meta mark set ip saddr map { 192.0.2.1 : 0x1 }", "mark-rules", advice},
	{"inet", "input priority 98", "meta mark set meta mark lshift 1", "mark-rules", advice},
	{"inet", "input priority 98", "iifname \"lo\" meta mark set 0x1", "mark-rules", green},
	{"inet", "output priority -450", "meta mark set meta mark or 0x10000", "mark-rules", red},
	{"inet", "input priority 0", "meta mark set 0x1", "mark-rules", green},
	{"inet", "output priority -300", "meta mark set 0x1", "mark-rules", green},
	{"inet", "prerouting priority raw", "meta mark set 0x6d6f6c65", "mark-rules", green},
	{"inet", "prerouting priority raw", "ct mark set meta mark", "mark-rules", advice},
	{"inet", "prerouting priority raw", "ct mark set meta mark and 0xff", "mark-rules", advice},
	{"inet", "prerouting priority raw", "ct mark set ct mark and 0xffff0000 or 0x4000", "mark-rules", green},
	{"inet", "input priority 98", "meta mark 0x10000 accept", "mark-compares", advice},
	{"inet", "input priority 98", "meta mark { 0x1, 0x2 } accept", "mark-compares", advice},
	{"inet", "input priority 98", "meta mark vmap { 0x1 : accept }", "mark-compares", advice},
	{"inet", "input priority 98", "meta mark 0x1-0x5 accept", "mark-compares", advice},
	{"inet", "input priority 98", "meta mark and 0xff == 0x1 accept", "mark-compares", green},
	{"inet", "forward priority 0", "meta mark 0x0001bd20 accept", "mark-compares", green},
	{"inet", "prerouting priority raw", "meta priority set 1:1", "mark-rules", green},
	{"inet", "prerouting priority raw", "notrack", "notrack", advice},
	{"inet", "prerouting priority raw", "ip daddr 10.0.0.0/8 notrack", "notrack", advice},
	{"inet", "prerouting priority raw", "ip6 saddr fd00:10::2 notrack", "notrack", advice},
	{"inet", "prerouting priority raw", "ip6 saddr fd00:20::/64 notrack", "notrack", green},
	{"inet", "prerouting priority raw", "ip daddr 169.254.20.10 udp dport 53 notrack", "notrack", green},
	{"inet", "prerouting priority raw", "iifname \"lo\" notrack", "notrack", green},
}

// A rule of others is found where it matters, by its name, and nobody is told to take it
// away; one that leaves podmark alone is let be.
func TestDoctorRules(t *testing.T) {
	t.Parallel()
	for _, tt := range theirRules {
		kinds := testnode.Variants
		if tt.table == "inet" {
			kinds = []string{"native"}
		}
		for _, kind := range kinds {
			t.Run(kind+" "+tt.rule, func(t *testing.T) {
				t.Parallel()
				p := newPatient(t, nftables, 1)
				name := "chain inet theirs one"
				if kind == "native" {
					p.Exec("", "nft", "table inet theirs { chain one { type filter hook "+tt.chain+"; }; }")
					p.Exec("", "nft", "add rule inet theirs one "+tt.rule)
				} else {
					args := append([]string{"-t", tt.table, "-A", tt.chain}, strings.Fields(tt.rule)...)
					p.Exec("", "iptables-"+kind, args...)
					name = map[string]string{"nft": "chain ip " + tt.table + " " + tt.chain, "legacy": "iptables-legacy -t " + tt.table + " -A " + tt.chain}[kind]
				}
				p.sees(tt.check, name, tt.want)
			})
		}
	}
}

// sees fails the test unless the check finds what is wanted, and its fix is what it may be.
func (p *patient) sees(check, name string, want wanted) {
	p.T.Helper()
	if want == green {
		p.well()
		return
	}
	p.kubectl()
	fix := p.finds(check, name).Fix
	if strings.HasPrefix(fix, "# ") != (want == advice) || strings.Contains(fix, "delete") || strings.Contains(fix, " -D ") {
		p.T.Errorf("fix: %s", fix)
	}
	if want == red {
		p.fix(check)
	}
}

// With iptables the ID is in the mark from mangle INPUT to security OUTPUT, so other rules
// matter: a move to nftables fixes those that ask for a mark in between.
func TestDoctorRulesIPTables(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		table, chain string
		rule         string
		check        string
		want         wanted
	}{
		{"mangle", "PREROUTING", "-j CONNMARK --restore-mark", "mark-rules", green},
		{"mangle", "PREROUTING", "-j MARK --set-xmark 0x10000/0x10000", "mark-rules", green},
		{"mangle", "INPUT", "-j MARK --set-xmark 0x10000/0x10000", "mark-rules", red},
		{"filter", "INPUT", "-j MARK --set-xmark 0x10000/0x10000", "mark-rules", red},
		{"mangle", "INPUT", "-j SET --map-set marks src --map-mark", "mark-rules", advice},
		{"mangle", "POSTROUTING", "-j SET --map-set marks src --map-prio", "mark-rules", green},
		{"mangle", "PREROUTING", "-j SET --map-set marks src --map-mark", "mark-rules", green},
		{"mangle", "INPUT", "-j HMARK --hmark-tuple src --hmark-mod 10 --hmark-offset 100 --hmark-rnd 5", "mark-rules", advice},
		{"mangle", "PREROUTING", "-p tcp -j TPROXY --on-port 80 --tproxy-mark 0x10000/0x10000", "mark-rules", green},
		{"nat", "INPUT", "-j MARK --set-xmark 0x10000/0x10000", "mark-rules", green},
		{"filter", "FORWARD", "-j MARK --set-xmark 0x40000/0xff0000", "mark-rules", green},
		{"raw", "OUTPUT", "-j MARK --set-xmark 0x10000/0x10000", "mark-rules", red},
		{"mangle", "POSTROUTING", "-j MARK --set-xmark 0x10000/0x10000", "mark-rules", green},
		{"mangle", "POSTROUTING", "-j CONNMARK --set-xmark 0x10000/0x10000", "mark-rules", red},
		{"filter", "INPUT", "-m mark --mark 0x64 -j ACCEPT", "mark-compares", red},
		{"filter", "FORWARD", "-m mark --mark 0x64 -j ACCEPT", "mark-compares", green},
		{"filter", "OUTPUT", "-m mark --mark 0x64 -j ACCEPT", "mark-compares", red},
		{"security", "OUTPUT", "-m mark --mark 0x64 -j ACCEPT", "mark-compares", green},
		{"nat", "POSTROUTING", "-m mark --mark 0x64 -j MASQUERADE", "mark-compares", green},
	} {
		t.Run(tt.table+" "+tt.chain+" "+tt.rule, func(t *testing.T) {
			t.Parallel()
			p := newPatient(t, iptablesNFT, 1)
			p.Exec("", "ipset", "create", "marks", "hash:ip", "skbinfo")
			p.Exec("", "iptables-nft", append([]string{"-t", tt.table, "-A", tt.chain}, strings.Fields(tt.rule)...)...)
			if tt.check == "mark-compares" && tt.want == red {
				p.shell(p.finds(tt.check, "chain ip "+tt.table+" "+tt.chain).Fix)
				p.Backend.Key = "nftables"
				p.addPod(nil)
				p.well()
				return
			}
			p.sees(tt.check, "chain ip "+tt.table+" "+tt.chain, tt.want)
		})
	}
}

// Routing rules are found where a packet with an ID may be routed, which on nftables none is.
func TestDoctorRoutes(t *testing.T) {
	t.Parallel()
	for rule, want := range map[string]wanted{
		"fwmark 0x5 lookup 100":              red,
		"fwmark 0x80000/0xff0000 lookup 100": red,
		"fwmark 0x80/0x80 lookup 100":        green,
		"not fwmark 51820 lookup 100":        green,
	} {
		for _, b := range []backend{nftables, iptablesNFT} {
			t.Run(b.Name+" "+rule, func(t *testing.T) {
				t.Parallel()
				p := newPatient(t, b, 1)
				p.Exec("", "ip", append([]string{"rule", "add"}, strings.Fields(rule)...)...)
				if want == green || b == nftables {
					p.well()
					return
				}
				p.shell(p.finds("mark-compares", "ip rule").Fix)
				p.Backend.Key = "nftables"
				p.addPod(nil)
				p.well()
			})
		}
	}
}

// Parameters that let an ID out are found, and their fix takes them back.
func TestDoctorReflects(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"net.ipv4.fwmark_reflect", "net.ipv6.fwmark_reflect", "net.ipv4.tcp_fwmark_accept"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPatient(t, iptablesNFT, 1)
			p.well()
			p.Exec("", "sysctl", "-qw", name+"=1")
			p.finds("mark-sysctls", name)
			p.fix("mark-sysctls")
		})
	}
}

// With "auto" the conflist agrees with whatever the node has, and with a network that names
// that mask.
func TestDoctorAuto(t *testing.T) {
	t.Parallel()
	p := newPatient(t, nftables, 1)
	auto := map[string]any{"iptablesMarkMask": "auto"}
	p.list("10-net.conflist", "net", auto)
	p.well()
	p.list("20-other.conflist", "other", map[string]any{"iptablesMarkMask": "0xffff0000"})
	p.well()
	p.list("20-other.conflist", "other", auto)
	p.well()
}
