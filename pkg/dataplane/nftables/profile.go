package nftables

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"go4.org/netipx"

	"github.com/podmark/podmark/pkg/dataplane/counters"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
)

// maxComment is what nft lets a comment be.
const maxComment = 128

// familyProfile is a profile for the packets of one family: a chain.
type familyProfile struct {
	desired.Profile
	family family
	// unlogged: see desired.Node.
	unlogged bool
	layout   mark.Layout
}

// familyProfiles lists the chains of s in a stable order.
func familyProfiles(s desired.State) []familyProfile {
	var out []familyProfile
	for _, id := range s.ProfileIDs() {
		for _, f := range []family{v4, v6} {
			out = append(out, familyProfile{s.Profiles[id], f, s.Unlogged, s.Layout})
		}
	}
	return out
}

func (h familyProfile) chain() string { return chainOf(h.Direction, h.family, h.ID) }

// render gives the rules of NetworkPolicies: see [familyProfile.isolate]. What policies of the cluster
// say comes before that or in its place, and is in chains that profiles share: see stage.go. Such a
// chain gives back what it does not drop, and has marked what it allows. A mark that another program
// has written does not count as that.
//
//	meta mark set meta mark & 0x0000ffff
//	jump si4-0c8f2b6a9d1e7f35
//	meta mark & 0xffff0000 == 0x00010000 meta mark set meta mark & 0x0000ffff return
func (h familyProfile) render() chain {
	c := chain{table: inet, name: h.chain()}
	if h.flat() {
		c.rules = h.isolate(h.Stages[0])
		return c
	}
	none, accepted := marksOf(h.layout)
	c.rules = rules(on(setMark(none)))
	jumps := h.jumps()
	for _, s := range jumps {
		c.rules = append(c.rules, rule{parts: on(jump(stageChain(h.Direction, h.family, s.ID)))})
		if !s.Audit {
			c.rules = append(c.rules, rule{parts: on(markIs(accepted), setMark(none), returnVerdict())})
		}
	}
	if len(jumps) < len(h.Stages) {
		c.rules = append(c.rules, h.isolate(h.Stages[len(jumps)])...)
	}
	return c
}

// jumps are the stages that have chains of their own: those ahead of NetworkPolicies that isolate, which
// decide.
func (h familyProfile) jumps() []desired.Stage {
	isolates := func(s desired.Stage) bool { return s.Default == desired.Deny && !s.Audit }
	switch i := slices.IndexFunc(h.Stages, isolates); {
	case h.flat():
		return nil
	case i >= 0:
		return h.Stages[:i]
	}
	return h.Stages
}

// flat holds for a profile of NetworkPolicies alone.
func (h familyProfile) flat() bool { return len(h.Stages) == 1 && h.Stages[0].Default == desired.Deny }

// isolate gives the flat list of what is allowed; the rest is logged and dropped. In a
// profile that audits it is counted instead, and falls off the end of the chain, which
// allows. A rule that does not match costs a packet a comparison:
// ports are what rules differ in most, and peers are searched, so ports come
// first, and a port before its protocol.
//
//	th dport { 80, 8000-8100 } meta l4proto tcp ip saddr @p4-d86f44cd2fe36465 counter return comment "shop/web ingress[0]"
//	meta l4proto udp ip saddr 192.0.2.0/24 counter return comment "shop/web ingress[1]"
//	ip daddr . meta l4proto . th dport @t4-07b89b9e2d02df2a counter return comment "shop/web ingress[2]"
//	limit rate 10/second burst 50 packets log prefix "podmark:drop:ingress:0f5eba8e1fdbf5d1" group 1886 snaplen 128
//	counter drop comment "shop/web"
func (h familyProfile) isolate(s desired.Stage) []rule {
	var out []rule
	for _, r := range s.Rules {
		out = append(out, matching(r, h.Direction, h.family, on(counter(), returnVerdict()))...)
	}
	key, last := counters.Key{Reason: counters.Policy, Direction: h.Direction, Profile: h.ID}, on(counter(), drop())
	if s.Audit {
		key.Reason, last = counters.Audit, on(counter())
	}
	return append(out, ending(key, h.unlogged, last, strings.Join(s.Policies, " "))...)
}

// ending logs, and then does what is last.
func ending(k counters.Key, unlogged bool, last []part, comment string) (out []rule) {
	if !unlogged {
		out = append(out, rule{parts: logged(k)})
	}
	return append(out, rule{parts: last, comment: truncate(comment)})
}

// matching renders a rule for the packets of a family, with what becomes of those that match.
func matching(r desired.ProfileRule, d desired.Direction, f family, then []part) (out []rule) {
	for _, others := range otherSide(r, d, f) {
		for _, ports := range append(portMatches(r), tupleMatches(r, f)...) {
			out = append(out, rule{parts: slices.Concat(ports, others, then), comment: truncate(r.Origin)})
		}
	}
	return out
}

// truncate cuts a comment without splitting a character of it.
func truncate(s string) string {
	if len(s) <= maxComment {
		return s
	}
	return strings.ToValidUTF8(s[:maxComment], "")
}

// otherSide renders whom of a family the rule speaks about, one match each; an
// empty one is anyone.
func otherSide(r desired.ProfileRule, d desired.Direction, f family) [][]part {
	if r.AnyPeer {
		return [][]part{nil}
	}
	field := f.src()
	if d == desired.Egress {
		field = f.dst()
	}
	var out [][]part
	for _, id := range r.Peers {
		out = append(out, on(in(clone(field), peers(f, id))))
	}
	if m, ok := blocks(f, field, r.Blocks); ok {
		out = append(out, m)
	}
	return out
}

// clone copies a part that several rules go on from.
func clone(p part) part {
	p.exprs = append([]any{}, p.exprs...)
	return p
}

// blocks matches an address against the prefixes of one family, if there are any;
// an empty match is any address. The kernel takes no intervals that overlap, so
// they are joined first.
func blocks(f family, field part, prefixes []netip.Prefix) ([]part, bool) {
	var b netipx.IPSetBuilder
	for _, p := range prefixes {
		if p.Addr().Is4() == f.ip4 {
			b.AddPrefix(p)
		}
	}
	joined, err := b.IPSet()
	if err != nil || len(joined.Ranges()) == 0 {
		return nil, false
	}
	if all, ok := joined.Ranges()[0].Prefix(); ok && all.Bits() == 0 {
		return nil, true
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
	return on(oneOf(clone(field), f.addr, values)), true
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
			out = append(out, on(portsOf(list), protocol(proto)))
		}
	}
	return out
}

// tupleMatches renders named ports as one match a name.
func tupleMatches(r desired.ProfileRule, f family) [][]part {
	var out [][]part
	for _, id := range r.Tuples {
		out = append(out, on(in(f.destination(), tuples(f, id))))
	}
	return out
}

func portsOf(ranges []desired.PortRange) part {
	values := make([]value, len(ranges))
	for i, r := range ranges {
		values[i] = value{text: fmt.Sprint(r.First), first: big16(r.First), last: big16(r.Last)}
		if r.First != r.Last {
			values[i].text = fmt.Sprintf("%d-%d", r.First, r.Last)
		}
	}
	return oneOf(dport(), nftables.TypeInetService, values)
}
