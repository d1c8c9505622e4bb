package iptables

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"testing"

	"github.com/podmark/podmark/pkg/dataplane/drift"
)

func TestShape(t *testing.T) {
	for _, same := range [][2]string{
		{"-m set --match-set a src -p tcp -m multiport --dports 80,8000:8100 -m comment --comment \"x -j ACCEPT\" -j RETURN", `-p tcp -m set --match-set a src -m multiport --dports 80,8000:8100 -j RETURN`},
		{"-m devgroup --src-group 1886 -g X", "-m devgroup --src-group 0x75e -g X"},
		{"-m mark --mark 0x1/0xffffffff -j RETURN", "-m mark --mark 0x1 -j RETURN"},
		{"-p 4 -j X", "-p ipencap -j X"},
		{"-p icmp -m icmp --icmp-type 3 -j RETURN", "-p 1 -m icmp --icmp-type 3 -j RETURN"},
		{"-m limit --limit 10/sec --limit-burst 50 -j NFLOG --nflog-prefix a --nflog-group 1886 --nflog-size 128", "-m limit --limit 10/sec -j NFLOG --nflog-prefix \"a\""},
	} {
		if a, b := shape(same[0]), shape(same[1]); a != b {
			t.Errorf("%q is %q, and %q is %q", same[0], a, same[1], b)
		}
	}
	const rule = "-p tcp -m set --match-set a src -m mark ! --mark 0x1/0xf -m multiport --dports 80 -j RETURN"
	for _, other := range [][2]string{
		{"tcp", "udp"},
		{"tcp", "47"},
		{" a ", " b "},
		{"src", "dst"},
		{"! ", ""},
		{"0x1/", "0x2/"},
		{"0xf", "0xff"},
		{"80", "81"},
		{"dports", "sports"},
		{"-j RETURN", "-j ACCEPT"},
		{"-j RETURN", ""},
		{"-j RETURN", "-g RETURN"},
		{"-j", "-i eth0 -j"},
		{"-j", "-m time --timestart 00:00 -j"},
		{"--dports 80", ""},
		{"-m set", "-m set !"},
	} {
		if changed := strings.Replace(rule, other[0], other[1], 1); changed == rule || shape(changed) == shape(rule) {
			t.Errorf("%q has the shape of %q", changed, rule)
		}
	}
}

func TestDiffers(t *testing.T) {
	any := map[string]bool{shape("-j A"): true, shape("-j B"): true}
	for _, tt := range []struct {
		has, want []string
		differs   int
	}{
		{nil, nil, 0},
		{[]string{"-j X", "-j A", "-j B", "-j Y"}, []string{"-j X", "-j B", "-j A", "-j Y"}, 0},
		{[]string{"-j X", "-j Y"}, []string{"-j Y", "-j X"}, 1},
		{[]string{"-j X"}, []string{"-j X", "-j Y"}, 2},
		{[]string{"-j X", "-j Y"}, []string{"-j X"}, 2},
		{[]string{"-j A", "-j A"}, []string{"-j A", "-j B"}, 2},
		{[]string{"-j A", "-j X"}, []string{"-j X", "-j A"}, 1},
	} {
		if got, is, should, _ := differs(tt.has, tt.want, any); got != tt.differs {
			t.Errorf("%q and %q differ in rule %d, %q and %q, want %d", tt.has, tt.want, got, is, should, tt.differs)
		}
	}
}

// Verify sees a rule that another one has taken the place of, in every chain, and what
// iptables-save says of our own rules is what we wrote.
func TestEveryRuleHasItsShape(t *testing.T) {
	eachVariant(t, func(t *testing.T, b Backend) {
		ctx := context.Background()
		s := stateOf(t, true, records(40)...)
		f := map[Variant]family{NFT: v4, Legacy: v6}[b.Variant]
		if err := errors.Join(b.Sync(ctx, s), b.Verify(ctx, s)); err != nil {
			t.Fatal(err)
		}
		for i, c := range chainsOf(s, naming{f, genA}) {
			if len(c.rules) == 0 {
				continue
			}
			number := i % len(c.rules)
			replace := func(rule string) {
				t.Helper()
				line := "*" + c.table + "\n-R " + c.name + " " + strconv.Itoa(number+1) + " " + rule + "\nCOMMIT\n"
				if err := b.Variant.restore(ctx, f, b.Wait, line); err != nil {
					t.Fatal(err)
				}
			}
			replace("-j ACCEPT")
			if err := b.Verify(ctx, s); drift.KindOf(err) != drift.Chain {
				t.Errorf("rule %d of %s accepts: %v", number+1, c.name, err)
			}
			if err := b.Sync(ctx, s); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Verify(ctx, s); err != nil {
			t.Error(err)
		}
	})
}
