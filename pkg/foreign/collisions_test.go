package foreign_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/dataplane/iptables"
	"github.com/podmark/podmark/pkg/dataplane/nftables"
	"github.com/podmark/podmark/pkg/foreign"
	"github.com/podmark/podmark/pkg/mark"
)

const (
	nft  = config.BackendNFTables
	ipt  = config.BackendIPTables
	mask = 0xffff0000
)

// at is a rule of nobody known in a chain of iptables, or in one of nftables' own with a
// priority.
func at(hook foreign.Hook, table string, priority int32) foreign.Rule {
	c := foreign.Chain{Origin: foreign.NFTables, Family: "ip", Table: table, Name: string(hook)}
	if table == "" {
		c = foreign.Chain{Origin: foreign.NFTables, Family: "inet", Table: "theirs", Name: "chain"}
	}
	return foreign.Rule{Chain: c, Places: []foreign.Place{{Hook: hook, Priority: priority}}}
}

// What a write of podmark's bits does, for each hook, backend and mark.
func TestHarm(t *testing.T) {
	const none, shared, misled, forged = foreign.Harmless, foreign.Shared, foreign.Misled, foreign.Forged
	for _, tt := range []struct {
		hook     foreign.Hook
		table    string
		priority int32
		nft, ipt foreign.Harm
	}{
		{foreign.Prerouting, "raw", -300, none, none},
		{foreign.Prerouting, "mangle", -150, none, none},
		{foreign.Prerouting, "nat", -100, none, none},
		{foreign.Prerouting, "", 500, none, none},
		{foreign.Input, "", -151, none, none},
		{foreign.Input, "mangle", -150, none, misled},
		{foreign.Input, "filter", 0, none, misled}, // kube-router
		{foreign.Input, "security", 50, none, forged},
		{foreign.Input, "", 96, none, forged},
		{foreign.Input, "", 97, forged, forged},
		{foreign.Input, "", 99, forged, forged},
		{foreign.Input, "nat", 100, forged, none}, // before what IPVS left is judged
		{foreign.Input, "", 101, forged, none},
		{foreign.Input, "", 102, none, none},
		{foreign.Forward, "", -151, none, none},
		{foreign.Forward, "mangle", -150, none, none},
		{foreign.Forward, "filter", 0, none, none}, // Tailscale
		{foreign.Output, "", -450, forged, forged},
		{foreign.Output, "", -401, forged, forged},
		{foreign.Output, "", -400, none, forged},
		{foreign.Output, "raw", -300, none, forged},
		{foreign.Output, "", -150, none, forged},
		{foreign.Output, "mangle", -150, none, shared}, // behind podmark's hook
		{foreign.Output, "filter", 0, none, shared},
		{foreign.Output, "", 50, none, shared},
		{foreign.Output, "security", 50, none, none}, // behind what takes the ID off
		{foreign.Output, "", 51, none, none},
		{foreign.Postrouting, "", -300, none, none},
		{foreign.Postrouting, "mangle", -150, none, none},
		{foreign.Postrouting, "nat", 100, none, none},
		{"", "", 0, none, none}, // of a bridge
	} {
		for backend, want := range map[config.Backend]foreign.Harm{nft: tt.nft, ipt: tt.ipt} {
			for _, field := range []foreign.Field{foreign.PacketMark, foreign.ConntrackMark} {
				if field == foreign.ConntrackMark {
					want = forged
				}
				for _, bits := range []uint32{0x10000, 0xffff0000, foreign.All, 0xffff} {
					rule := at(tt.hook, tt.table, tt.priority)
					rule.Writes = []foreign.Write{{Field: field, Bits: bits}}
					got := none
					found := foreign.Report{Rules: []foreign.Rule{rule}}.Collisions(backend, mask)
					for _, c := range found {
						got = max(got, c.Harm)
						if c.Name() != "other" || c.Overlap != bits&mask || c.Whole != (bits == foreign.All) || !strings.Contains(c.String(), string(field)) {
							t.Errorf("%+v", c)
						}
					}
					if bits&mask == 0 && len(found) > 0 || bits&mask != 0 && got != want {
						t.Errorf("%s %s %s %d, %s, bits %#x: %v, want %v", backend, tt.hook, tt.table, tt.priority, field, bits, got, want)
					}
				}
			}
		}
	}
}

// Rules that nothing leads to, those of lo, and what wg-quick saves of its own packets do no
// harm to flows of pods.
func TestHarmless(t *testing.T) {
	flow := []foreign.Write{{Field: foreign.ConntrackMark, Bits: foreign.All, Saves: true}}
	whole := func(value uint32) []foreign.Compare {
		return []foreign.Compare{{Field: foreign.PacketMark, Mask: foreign.All, Value: value}}
	}
	not := []foreign.Compare{{Field: foreign.PacketMark, Mask: foreign.All, Value: 51820, Not: true}}
	part := []foreign.Compare{{Field: foreign.PacketMark, Mask: 0xffff, Value: 51820}}
	for name, tt := range map[string]struct {
		change func(*foreign.Rule)
		want   int
	}{
		"any":              {func(*foreign.Rule) {}, 1},
		"nothing leads":    {func(r *foreign.Rule) { r.Places = nil }, 0},
		"lo":               {func(r *foreign.Rule) { r.Loopback = true }, 0},
		"wg-quick":         {func(r *foreign.Rule) { r.Compares = whole(51820) }, 0},
		"an ID":            {func(r *foreign.Rule) { r.Compares = whole(0x20000) }, 1},
		"unmarked":         {func(r *foreign.Rule) { r.Compares = whole(0) }, 1},
		"all others":       {func(r *foreign.Rule) { r.Compares = not }, 1},
		"part of the mark": {func(r *foreign.Rule) { r.Compares = part }, 1},
		"it does not save": {func(r *foreign.Rule) {
			r.Compares, r.Writes = whole(51820), []foreign.Write{{Field: foreign.ConntrackMark, Bits: foreign.All}}
		}, 1},
	} {
		r := at(foreign.Postrouting, "mangle", -150)
		r.Writes = flow
		tt.change(&r)
		for _, b := range []config.Backend{nft, ipt} {
			if got := (foreign.Report{Rules: []foreign.Rule{r}}).Collisions(b, mask); len(got) != tt.want {
				t.Errorf("%s, %s: %v", name, b, got)
			}
		}
	}
}

// kubeRouter is what kube-router's netpol writes in INPUT, between podmark's mark and IPVS.
func kubeRouter(rules bool) foreign.Report {
	chain := foreign.Chain{Origin: foreign.NFTables, Family: "ip", Table: "filter", Name: "KUBE-POD-FW-AAAA"}
	r := foreign.Report{Chains: []foreign.Chain{chain}}
	if rules {
		write := []foreign.Write{{Field: foreign.PacketMark, Bits: 0x10000, Text: "MARK"}}
		r.Rules = []foreign.Rule{{Chain: chain, Places: []foreign.Place{{Hook: foreign.Input}, {Hook: foreign.Forward}}, Writes: write}}
	}
	return r
}

// kube-router misleads with iptables, with its rules or before they are there, and not with
// nftables, where it is told.
func TestKubeRouter(t *testing.T) {
	for _, rules := range []bool{false, true} {
		for b, want := range map[config.Backend]foreign.Harm{nft: foreign.Shared, ipt: foreign.Misled} {
			got := kubeRouter(rules).Collisions(b, mask)
			if len(got) != 1 || got[0].Name() != "kube-router" || got[0].Harm != want || got[0].Whole {
				t.Errorf("%s: %+v", b, got)
			}
		}
		free, ok := kubeRouter(rules).Free()
		if !ok || len(kubeRouter(rules).Collisions(ipt, free.Mask())) > 0 {
			t.Errorf("free: %#x", free.Mask())
		}
	}
}

// A known program that writes a whole conntrack mark is told besides what it has for its own.
func TestKnownWhole(t *testing.T) {
	r := kubeRouter(true)
	r.Rules[0].Writes = append(r.Rules[0].Writes, foreign.Write{Field: foreign.ConntrackMark, Bits: foreign.All})
	got := r.Collisions(nft, mask)
	if len(got) != 2 || !got[1].Whole || got[1].Harm != foreign.Forged {
		t.Errorf("%+v", got)
	}
}

// Bits are free that nobody writes, compares or looks up.
func TestFree(t *testing.T) {
	compare := func(value, mask uint32) foreign.Report {
		return foreign.Report{Rules: []foreign.Rule{{Compares: []foreign.Compare{{Field: foreign.PacketMark, Value: value, Mask: mask}}}}}
	}
	for _, tt := range []struct {
		report foreign.Report
		want   uint32
	}{
		{foreign.Report{}, 0xffff0000},
		{foreign.Report{Links: []foreign.Link{{Name: "tailscale0"}}}, 0xff001fe0},
		{foreign.Report{Chains: []foreign.Chain{{Origin: foreign.Legacy, Table: "filter", Name: "KUBE-ROUTER-INPUT"}}}, 0xfffc1800},
		{compare(0x40000000, 0x40000000), 0xbfff1000},
		{compare(0x80010000, foreign.All), 0x7ffe1800},
		{foreign.Report{Lookups: []foreign.Lookup{{Mark: 0x100, Mask: 0xff000000}}}, 0x00ff1fe0},
	} {
		if got, ok := tt.report.Free(); !ok || got.Mask() != tt.want {
			t.Errorf("%+v: %#x, want %#x", tt.report, got.Mask(), tt.want)
		}
	}
	// Its rules say one of its bits so far.
	calico := foreign.Chain{Origin: foreign.NFTables, Family: "ip", Table: "mangle", Name: "cali-PREROUTING"}
	some := foreign.Report{Chains: []foreign.Chain{calico}, Rules: []foreign.Rule{{Chain: calico, Writes: []foreign.Write{{Bits: 0x10000}}}}}
	if got, ok := some.Free(); !ok || got.Mask() != 0x1fff {
		t.Errorf("beside Calico: %#x", got.Mask())
	}
	all := foreign.Report{Rules: []foreign.Rule{{Writes: []foreign.Write{{Bits: ^(mark.KubeProxy | 1)}}}}}
	if got, ok := all.Free(); ok {
		t.Errorf("one bit is left: %#x", got.Mask())
	}
}

// Who compares the whole mark is found where an ID is in it, and nowhere else.
func TestComparisons(t *testing.T) {
	for _, tt := range []struct {
		hook     foreign.Hook
		table    string
		priority int32
		nft, ipt int
	}{
		{foreign.Prerouting, "mangle", -150, 0, 0},
		{foreign.Input, "", -151, 0, 0},
		{foreign.Input, "filter", 0, 0, 1},
		{foreign.Input, "", 98, 1, 1},
		{foreign.Input, "nat", 100, 1, 1},
		{foreign.Input, "", 102, 0, 1},
		{foreign.Forward, "filter", 0, 0, 0},
		{foreign.Output, "raw", -300, 0, 1},
		{foreign.Output, "", -450, 1, 1},
		{foreign.Output, "filter", 0, 0, 1}, // NetBird
		{foreign.Output, "security", 50, 0, 0},
		{foreign.Output, "", 60, 0, 0},
		{foreign.Postrouting, "mangle", -150, 0, 0},
		{foreign.Postrouting, "nat", 100, 0, 0},
	} {
		for b, want := range map[config.Backend]int{nft: tt.nft, ipt: tt.ipt} {
			for _, c := range []foreign.Compare{
				{Field: foreign.PacketMark, Mask: foreign.All, Value: 1},
				{Field: foreign.PacketMark, Mask: 0x40000, Value: 0x40000},
				{Field: foreign.PacketMark, Mask: 0xffff},
				{Field: foreign.ConntrackMark, Mask: foreign.All},
			} {
				r := at(tt.hook, tt.table, tt.priority)
				r.Compares = []foreign.Compare{c}
				want := want
				if c.Field == foreign.ConntrackMark || c.Mask&mask == 0 {
					want = 0
				}
				if got := (foreign.Report{Rules: []foreign.Rule{r}}).Comparisons(b, mask); len(got) != want {
					t.Errorf("%s %s %s %d, %s: %d, want %d", b, tt.hook, tt.table, tt.priority, c, len(got), want)
				}
			}
		}
	}
}

// What the kernel looks up: IPVS by whole marks on both backends, the rest on iptables.
func TestLookups(t *testing.T) {
	for _, tt := range []struct {
		lookup   foreign.Lookup
		nft, ipt bool
	}{
		{foreign.Lookup{Kind: foreign.IPVSService, Mark: 5, Mask: foreign.All}, true, true},
		{foreign.Lookup{Kind: foreign.RoutingRule, Mark: 5, Mask: foreign.All}, false, true},
		{foreign.Lookup{Kind: foreign.RoutingRule, Mark: 0x80000, Mask: 0xff0000}, false, true},
		{foreign.Lookup{Kind: foreign.RoutingRule, Mark: 0x80, Mask: 0x80}, false, false},
		{foreign.Lookup{Kind: foreign.RoutingRule, Mark: 51820, Mask: foreign.All, Not: true}, false, false}, // wg-quick
		{foreign.Lookup{Kind: foreign.RoutingRule, Mark: 0x20000, Mask: foreign.All, Not: true}, false, true},
		{foreign.Lookup{Kind: foreign.IPsecState, Mark: 42, Mask: foreign.All}, false, true},
	} {
		if got := tt.lookup.Breaks(nft, mask); got != tt.nft {
			t.Errorf("nftables, %+v: %v", tt.lookup, got)
		}
		if got := tt.lookup.Breaks(ipt, mask); got != tt.ipt {
			t.Errorf("iptables, %+v: %v", tt.lookup, got)
		}
	}
}

// podmark's own chains are known by the names that the backends give them.
func TestOwn(t *testing.T) {
	for _, c := range []foreign.Chain{
		{Origin: foreign.Legacy, Table: "mangle", Name: iptables.ChainPrefix + "INPUT"},
		{Origin: foreign.NFTables, Family: "inet", Table: nftables.Table, Name: "forward"},
	} {
		if !c.Own() {
			t.Errorf("%+v", c)
		}
	}
}

func Example() {
	chains, rules := foreign.ParseLegacy("ip", `*filter
:INPUT ACCEPT [0:0]
:KUBE-POD-FW-AAAA - [0:0]
-A INPUT -s 10.22.0.2/32 -j KUBE-POD-FW-AAAA
-A KUBE-POD-FW-AAAA -j MARK --set-xmark 0x20000/0x20000
COMMIT
`)
	report := foreign.Report{Chains: chains, Rules: rules}
	for _, c := range report.Collisions(config.BackendIPTables, 0xffff0000) {
		fmt.Println(c.Name(), c.Harm)
	}
	free, _ := report.Free()
	fmt.Printf("%#x\n", free.Mask())
	// Output:
	// kube-router misled
	// 0xfffc1800
}
