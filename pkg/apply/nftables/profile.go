package nftables

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"go4.org/netipx"

	"github.com/podmark/podmark/pkg/desired"
)

// maxComment is what nft lets a comment be.
const maxComment = 128

// profile renders the flat list of what is allowed; the rest is dropped.
//
//	tcp dport { 80, 8000-8100 } ip saddr @p4-d86f44cd2fe36465 counter return comment "shop/web ingress[0]"
//	meta l4proto udp ip saddr 192.0.2.0/24 counter return comment "shop/web ingress[1]"
//	ip daddr . meta l4proto . th dport @t4-07b89b9e2d02df2a counter return comment "shop/web ingress[2]"
//	counter drop comment "shop/web"
func profile(p desired.Profile) chain {
	c := chain{table: inet, name: chainOf(p)}
	for _, r := range p.Rules {
		for _, other := range otherSide(r, p.Direction) {
			for _, port := range append(portMatches(r), tupleMatches(r, other.families)...) {
				// Ports first: they are compared, where a set of peers is searched.
				parts := append(append([]part{}, port...), other.parts...)
				c.rules = append(c.rules, rule{parts: append(parts, counter(), giveBack()), comment: truncate(r.Origin)})
			}
		}
	}
	c.rules = append(c.rules, rule{parts: on(counter(), drop()), comment: truncate(strings.Join(p.Policies, " "))})
	return c
}

// truncate cuts a comment without splitting a character of it.
func truncate(s string) string {
	if len(s) <= maxComment {
		return s
	}
	return strings.ToValidUTF8(s[:maxComment], "")
}

// match is whom a rule speaks about, and of which families that can be.
type match struct {
	parts    []part
	families []family
}

// otherSide renders whom the rule speaks about, one match each.
func otherSide(r desired.ProfileRule, d desired.Direction) []match {
	both := []family{v4, v6}
	if r.Anyone {
		return []match{{families: both}}
	}
	var out []match
	for i, f := range both {
		field := f.src()
		if d == desired.Egress {
			field = f.dst()
		}
		for _, id := range r.Peers {
			out = append(out, match{on(in(clone(field), peers(f, id))), both[i : i+1]})
		}
		if m, ok := blocks(f, field, r.Blocks); ok {
			out = append(out, match{on(m), both[i : i+1]})
		}
	}
	return out
}

// clone copies a part that several rules go on from.
func clone(p part) part {
	p.exprs = append([]any{}, p.exprs...)
	return p
}

// blocks matches an address against the prefixes of one family. The kernel
// takes no intervals that overlap, so they are joined first.
func blocks(f family, field part, prefixes []netip.Prefix) (part, bool) {
	var b netipx.IPSetBuilder
	for _, p := range prefixes {
		if p.Addr().Is4() == f.ip4 {
			b.AddPrefix(p)
		}
	}
	joined, err := b.IPSet()
	if err != nil || len(joined.Ranges()) == 0 {
		return part{}, false
	}
	if all, ok := joined.Ranges()[0].Prefix(); ok && all.Bits() == 0 {
		return f.any(), true
	}
	values := make([]value, 0, len(joined.Ranges()))
	for _, r := range joined.Ranges() {
		v := value{text: r.String(), first: r.From().AsSlice(), last: r.To().AsSlice()} // from-to
		if p, ok := r.Prefix(); ok {
			v.mask = net.CIDRMask(p.Bits(), p.Addr().BitLen())
			if v.text = p.String(); p.IsSingleIP() {
				v.text = p.Addr().String()
			}
		}
		values = append(values, v)
	}
	return oneOf(clone(field), f.addr, values), true
}

// portMatches renders numbered ports as one match a protocol; an empty one is
// anything.
func portMatches(r desired.ProfileRule) [][]part {
	if len(r.Ports)+len(r.Tuples) == 0 {
		return [][]part{nil}
	}
	ranges := map[desired.Protocol][]desired.PortRange{}
	for _, p := range desired.MergePorts(r.Ports) {
		ranges[p.Protocol] = append(ranges[p.Protocol], p.PortRange)
	}
	var out [][]part
	for _, proto := range []desired.Protocol{desired.TCP, desired.UDP, desired.SCTP} {
		switch list := ranges[proto]; {
		case list == nil:
		case list[0] == desired.AllPorts:
			out = append(out, on(protocol(proto)))
		default:
			out = append(out, on(portsOf(proto, list)))
		}
	}
	return out
}

// tupleMatches renders named ports as one match a name and family.
func tupleMatches(r desired.ProfileRule, families []family) [][]part {
	var out [][]part
	for _, f := range families {
		for _, id := range r.Tuples {
			out = append(out, on(in(f.destination(), tuples(f, id))))
		}
	}
	return out
}

func portsOf(proto desired.Protocol, ranges []desired.PortRange) part {
	values := make([]value, len(ranges))
	for i, r := range ranges {
		values[i] = value{text: fmt.Sprint(r.First), first: big16(r.First), last: big16(r.Last)}
		if r.First != r.Last {
			values[i].text = fmt.Sprintf("%d-%d", r.First, r.Last)
		}
	}
	return oneOf(dport(proto), nftables.TypeInetService, values)
}
