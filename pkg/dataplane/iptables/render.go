package iptables

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/dataplane/counters"
	"github.com/podmark/podmark/pkg/dataplane/droplog"
	"github.com/podmark/podmark/pkg/dataplane/hostport"
	"github.com/podmark/podmark/pkg/dataplane/ipset"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
)

// chain is a chain of ours and the rules in it, each without "-A NAME".
type chain struct {
	table, name string
	rules       []string
}

// content is a set and what is in it.
type content struct {
	ipset.Set
	elements []ipset.Element
}

// marks are the three values the frame speaks of.
type marks struct {
	none, outside, epoch mark.Mark
}

func marksOf(s desired.State) marks {
	return marks{
		none:    s.Layout.ID(mark.None),
		outside: s.Layout.ID(mark.Outside),
		epoch:   s.Layout.Mark(s.Epoch),
	}
}

// baseChains renders the static chains of one family: all that does not depend on
// who is on the node, but for what leads to the profiles and host veths of s.
func baseChains(s desired.State, n naming) []chain {
	m := marksOf(s)
	chains := []chain{
		{mangle, chainSender, renderSender(s, n)},
		{mangle, chainOther, renderStranger(n)},
		{mangle, chainInput, renderInput(s, m, n)},
		{mangle, chainMark, renderMark(m, n)},
		{mangle, chainForward, renderForward(s, m, n)},
		{mangle, chainAnswer, renderAnswer(m)},
		{mangle, chainOutput, renderOutput(s, m, n)},
		{mangle, chainPolice, renderPolice(m)},
		{mangle, chainFrom, renderFrom(n, asked, desired.Egress, chainBehind)},
		{mangle, chainSent, renderSent(n)},
		{mangle, chainTo, renderTo(n, asked, desired.Ingress, chainBeyond)},
		{mangle, chainAsker, renderFrom(n, answered, desired.Egress, chainBeyond)},
		{mangle, chainAnswerer, renderTo(n, answered, desired.Ingress, chainBehind)},
		{mangle, chainBehind, renderBehind(n)},
		{mangle, chainBeyond, renderBeyond(s, n)},
		{mangle, chainTunnel, renderTunnel(n)},
	}
	for _, w := range ways {
		for _, d := range desired.Directions {
			chains = append(chains, dispatch(s, d, w, n)...)
		}
	}
	return append(
		chains,
		chain{mangle, chainSpoofed, end(counters.Spoofed, s.Unlogged)},
		chain{mangle, chainUnclassified, end(counters.Unclassified, s.Unlogged)},
		chain{mangle, chainEncapsulated, end(counters.Encapsulated, s.Unlogged)},
		chain{security, chainRemark, renderRemark(m)},
		chain{security, chainClear, renderClear(m)},
	)
}

// chainsOf renders every chain of one family.
func chainsOf(s desired.State, n naming) []chain {
	chains := baseChains(s, n)
	for _, id := range s.ProfileIDs() {
		chains = append(chains, profile(s.Profiles[id], n, s.Unlogged)...)
	}
	return chains
}

// in matches what set has for the ends that dimensions name.
func in(set ipset.Set, dimensions string) string {
	return fmt.Sprintf("-m set --match-set %s %s ", set.Name, dimensions)
}

func notIn(set ipset.Set, dimensions string) string {
	return fmt.Sprintf("-m set ! --match-set %s %s ", set.Name, dimensions)
}

// ofType matches packets of a type of ICMP, or of ICMPv6.
func ofType(f family, number uint8) string {
	if f == v6 {
		return fmt.Sprintf("-p ipv6-icmp -m icmp6 --icmpv6-type %d ", number)
	}
	return fmt.Sprintf("-p icmp -m icmp --icmp-type %d ", number)
}

// renderSender has every packet, of whatever flow, prove who sent it. An address of an
// endpoint is that endpoint's, wherever it comes in; what else comes in by an endpoint's
// veth is a stranger's. A veth is known by its group, and by its name where another program took
// it out of that. An endpoint orders nobody about.
func renderSender(s desired.State, n naming) []string {
	var rules []string
	for _, order := range orders(n) {
		rules = append(rules, order+in(n.endpoints(), "src,src")+"-g "+chainSpoofed)
	}
	rules = append(
		rules,
		in(n.endpoints(), "src,src")+"-j RETURN",
		in(n.claims(), "src")+"-g "+chainSpoofed,
		fmt.Sprintf("-m devgroup --src-group %d -g %s", hostport.Group, chainOther),
	)
	for _, c := range vethSets(s, n) {
		rules = append(rules, fromVeth(c.Set))
	}
	return rules
}

// orders match what a router tells others on its link: redirects, and the queries and
// advertisements of routers.
func orders(n naming) []string {
	types := []uint8{5}
	if n.family == v6 {
		types = []uint8{130, 134, 137}
	}
	var out []string
	for _, t := range types {
		out = append(out, ofType(n.family, t))
	}
	return out
}

func fromVeth(s ipset.Set) string { return in(s, "src,src") + "-g " + chainOther }

// renderStranger is for what comes in by an endpoint's veth from no endpoint's
// address. To its link an endpoint may speak of its link-local address, and of none at
// all, as far as IPv6 needs it. Beyond, a router may pass on what comes from the prefixes
// that it was given, but for addresses of the node's own.
func renderStranger(n naming) []string {
	var rules []string
	if n.family == v6 {
		for _, source := range []string{"fe80::/10", "::/128"} {
			for _, t := range []uint8{133, 135, 136} {
				rules = append(rules, fmt.Sprintf("-s %s %s-m hl --hl-eq 255 -j RETURN", source, ofType(v6, t)))
			}
			for _, t := range []uint8{131, 132, 143} {
				rules = append(rules, fmt.Sprintf("-s %s %s-m hl --hl-eq 1 -j RETURN", source, ofType(v6, t)))
			}
		}
	}
	for _, order := range orders(n) {
		rules = append(rules, order+"-g "+chainSpoofed)
	}
	return append(
		rules,
		"-m addrtype --src-type LOCAL -g "+chainSpoofed,
		in(n.further(), "src,src")+"-j RETURN",
		"-g "+chainSpoofed,
	)
}

// live lets pass what is of an answered flow that was allowed under the current epoch, and
// errors about one. Until the other side answers, every packet is judged: the endpoint that it is
// for now may not have been there when the flow began.
func live(m marks, n naming) []string {
	return append(
		[]string{fmt.Sprintf("-m conntrack --ctstate ESTABLISHED -m connmark --mark %s -j RETURN", m.epoch)},
		reports(m.epoch, n)...,
	)
}

// reports lets pass the errors about flows that have a mark: those of routers on the way,
// which are no endpoints, and those of who got the packet. Any other word of an endpoint's
// is a packet like others, and so is what a conntrack helper expects.
func reports(of mark.Mark, n naming) []string {
	types := desired.ErrorTypes4
	if n.family == v6 {
		types = desired.ErrorTypes6
	}
	var rules []string
	for _, t := range types {
		about := ofType(n.family, t) + fmt.Sprintf("-m conntrack --ctstate RELATED -m connmark --mark %s ", of)
		rules = append(rules, about+notIn(n.self(), "src")+notIn(n.further(), "src,src")+"-j RETURN",
			about+in(n.self(), "src")+fromReceiver(n.family)+"-j RETURN")
	}
	return rules
}

// fromReceiver matches errors whose source is the destination of the packet that they are
// about. conntrack has found that packet's flow by its addresses. In classic BPF
// (linux/filter.h), since no match compares two addresses: bytes are counted from the IP
// header on. What has more headers in front does not match.
func fromReceiver(f family) string {
	const (
		octet      = 0x30       // A = the byte at k
		word, at   = 0x20, 0x40 // A = the four bytes at k, at X + k
		is         = 0x15       // skip jt instructions if A == k, or jf
		header     = 0xb1       // X = the length of the IPv4 header at k
		store, get = 0x02, 0x61 // M[k] = A, X = M[k]
		equal, end = 0x1d, 0x06 // skip jt instructions if A == X, or jf; return k
	)
	type instruction [4]uint32 // code, jt, jf, k
	var program []instruction
	source, inner, words := uint32(12), uint32(8+16), 1
	if f == v6 {
		source, inner, words = 8, 40+8+24, 4
		// "-p ipv6-icmp" goes past other headers, and then the error is elsewhere.
		program = append(program, instruction{octet, 0, 0, 6}, instruction{is, 0, uint32(5*words + 1), unix.IPPROTO_ICMPV6})
	}
	for i := range words {
		load := instruction{word, 0, 0, inner + uint32(4*i)}
		if f == v4 {
			program = append(program, instruction{header, 0, 0, 0})
			load[0] = at
		}
		left := uint32(5 * (words - 1 - i)) // instructions after this word's
		program = append(program, load, instruction{store, 0, 0, 0},
			instruction{word, 0, 0, source + uint32(4*i)}, instruction{get, 0, 0, 0}, instruction{equal, 0, left + 1, 0})
	}
	program = append(program, instruction{end, 0, 0, 1<<32 - 1}, instruction{end, 0, 0, 0})
	text := fmt.Sprint(len(program))
	for _, i := range program {
		text += fmt.Sprintf(",%d %d %d %d", i[0], i[1], i[2], i[3])
	}
	return fmt.Sprintf("-m bpf --bytecode %q ", text)
}

// neighbours lets pass neighbour discovery and MLD, which are of one link. A router takes
// one off the hop limit, so what comes with 255 came by no router; MLD has 1, and goes where
// no router sends it on.
func neighbours(n naming) []string {
	if n.family != v6 {
		return nil
	}
	var rules []string
	for _, t := range desired.DiscoveryTypes {
		rules = append(rules, ofType(v6, t)+"-m hl --hl-eq 255 -j RETURN")
	}
	for _, t := range desired.ListenerTypes {
		rules = append(rules, fmt.Sprintf("-d %s %s-m hl --hl-eq 1 -j RETURN", desired.LinkMulticast, ofType(v6, t)))
	}
	return rules
}

// protocols leads what is wrapped as in the node's tunnels to where its sender is asked for,
// and so does ports with what is wrapped in UDP.
func protocols(t desired.Tunnels) []string {
	var rules []string
	for _, p := range t.Protocols {
		rules = append(rules, fmt.Sprintf("-p %d -j %s", p, chainTunnel))
	}
	return rules
}

func ports(t desired.Tunnels, then string) []string {
	var rules []string
	var ranges []desired.PortRange
	for _, p := range t.UDPPorts {
		ranges = append(ranges, desired.PortRange{First: p, Last: p})
	}
	for _, list := range multiports(ranges) {
		rules = append(rules, fmt.Sprintf("-p udp -m multiport --dports %s %s", list, then))
	}
	return rules
}

func renderTunnel(n naming) []string {
	return []string{
		in(n.self(), "src") + "-g " + chainEncapsulated,
		in(n.further(), "src,src") + "-g " + chainEncapsulated,
	}
}

// renderInput marks what comes in, and judges what a pod sends to a host
// process. What IPVS will take is left to OUTPUT. A flow to the host never gets
// the epoch: IPVS may still turn it into one to a pod, which must be judged. What is not
// to be judged has no ID, whoever gave it one.
func renderInput(s desired.State, m marks, n naming) []string {
	rules := slices.Concat(
		[]string{fmt.Sprintf("-j MARK --set-xmark %s", m.none)},
		live(m, n),
		protocols(s.Tunnels),
		ports(s.Tunnels, "-j "+chainTunnel),
		[]string{"-m conntrack --ctstate ESTABLISHED --ctdir REPLY -j RETURN"},
		reports(m.none, n), // about the node's own
		neighbours(n),
		[]string{
			"-j " + chainMark,
			fmt.Sprintf("-m mark --mark %s -j RETURN", m.outside),
			// Not a local address: multicast, broadcast.
			fmt.Sprintf("-m addrtype ! --dst-type LOCAL -g %s", chainFrom),
		},
	)
	if n.family == v6 {
		// The link-local address of a host veth is in no list and never a service's.
		rules = append(rules, fmt.Sprintf("-d fe80::/10 -g %s", chainFrom))
	}
	if n.family == v4 { // with route_localnet, and in no list either
		rules = append(rules, fmt.Sprintf("-d 127.0.0.0/8 -g %s", chainFrom))
	}
	rules = append(
		rules,
		// A local address that is not the host's own is a service's.
		notIn(n.hosts(), "dst")+"-j RETURN",
		"-p tcp "+in(n.nodePorts(), "dst")+"-j RETURN",
		"-p udp "+in(n.nodePorts(), "dst")+"-j RETURN",
	)
	// bitmap:port matches TCP and UDP only (ip_set_get_ip_port).
	for _, list := range multiports(s.SCTPPorts) {
		rules = append(rules, fmt.Sprintf("-p sctp -m multiport --dports %s -j RETURN", list))
	}
	return append(rules, "-g "+chainFrom)
}

// renderMark gives every packet the ID of where it comes from. PODMARK-SENDER has proven
// that its address is its own. An endpoint may have gone since: then its veth sends
// nothing. IPv4 itself takes nothing from a link that says to be from the node; IPv6 does,
// and in OUTPUT a source of the node's own tells what the node itself sends.
func renderMark(m marks, n naming) []string {
	mapped := func(s ipset.Set) string {
		return fmt.Sprintf("-m mark --mark %s -j SET --map-set %s src,src --map-mark", m.none, s.Name)
	}
	rules := []string{
		mapped(n.endpoints()),
		mapped(n.further()),
		fmt.Sprintf("-m mark --mark %s -m devgroup --src-group %d -g %s", m.none, hostport.Group, chainSpoofed),
	}
	if n.family == v6 {
		rules = append(rules, fmt.Sprintf("-m mark --mark %s -m addrtype --src-type LOCAL -g %s", m.none, chainSpoofed))
	}
	return append(rules, fmt.Sprintf("-m mark --mark %s -j MARK --set-xmark %s", m.none, m.outside))
}

// renderForward judges both ends. The mark is others'.
func renderForward(s desired.State, m marks, n naming) []string {
	return slices.Concat(
		live(m, n),
		neighbours(n),
		protocols(s.Tunnels),
		[]string{"-m conntrack --ctstate ESTABLISHED --ctdir REPLY -g " + chainAnswer},
		ports(s.Tunnels, "-j "+chainTunnel), // an answer is none
		[]string{"-j " + chainFrom, "-j " + chainPolice},
	)
}

// renderAnswer judges the flow that a packet is an answer to, one that was allowed under
// an epoch before. The client is behind the output interface, and the server behind the
// other.
func renderAnswer(m marks) []string {
	return []string{"-j " + chainAsker, "-j " + chainAnswerer, fmt.Sprintf("-j CONNMARK --set-xmark %s", m.epoch)}
}

// renderFrom asks who a flow is from; that its address or prefix is its own is proven.
// renderTo asks who it is to, and whether it is there. Each asks once, by goto: an endpoint
// that comes or goes meanwhile is in a set for one rule and is not for the next. Who is
// nobody ends in a chain for those.
func renderFrom(n naming, w way, d desired.Direction, nobody string) []string {
	end := w.source()
	return known(in(n.self(), end), in(n.further(), end+","+end), w, d, nobody)
}

func renderTo(n naming, w way, d desired.Direction, nobody string) []string {
	end := w.destination() + "," + w.destination()
	return known(in(n.endpoints(), end), in(n.further(), end), w, d, nobody)
}

func known(own, further string, w way, d desired.Direction, nobody string) []string {
	byAddress, byNet := dispatches(d, w)
	return []string{own + "-g " + byAddress, further + "-g " + byNet, "-g " + nobody}
}

// renderOutput judges what has an ID and was not sent by the node itself, from a socket or
// without one from an address of its own: that IPVS has sent on. Which ID it is does not
// matter, so that nobody who changes some of its bits on the way changes the sender.
func renderOutput(s desired.State, m marks, n naming) []string {
	return slices.Concat(
		notTheNodes(m),
		live(m, n),
		// By way of a service; what a further prefix sends is known by the ID.
		ports(s.Tunnels, "-j "+chainTunnel),
		ports(s.Tunnels, fmt.Sprintf("-m mark ! --mark %s -g %s", m.outside, chainEncapsulated)),
		[]string{"-j " + chainSent, "-j " + chainPolice},
	)
}

// renderSent asks who it was that IPVS has sent on. By which interface it came is gone, so
// what a further prefix sends is judged for all who have it.
func renderSent(n naming) []string {
	return []string{in(n.self(), "src") + "-g " + chainEgress, "-g " + chainEgressNet}
}

// notTheNodes lets pass what has no ID, and what the node itself sends: its bits are
// another program's.
func notTheNodes(m marks) []string {
	return []string{
		fmt.Sprintf("-m mark --mark %s -j RETURN", m.none),
		"-m owner --socket-exists -j RETURN",
		"-m addrtype --src-type LOCAL -j RETURN",
	}
}

// renderPolice judges a packet for who gets it, and notes the epoch on its flow.
func renderPolice(m marks) []string {
	return []string{"-j " + chainTo, fmt.Sprintf("-j CONNMARK --set-xmark %s", m.epoch)}
}

// renderBehind drops what has come in by an endpoint's veth since that endpoint went, and
// what says to be from the node itself: IPv4 takes no such packet from a link.
func renderBehind(n naming) []string {
	rules := []string{fmt.Sprintf("-m devgroup --src-group %d -g %s", hostport.Group, chainSpoofed)}
	if n.family == v6 {
		rules = append(rules, "-m addrtype --src-type LOCAL -g "+chainSpoofed)
	}
	return rules
}

// renderBeyond drops what leaves by an endpoint's veth, or is for an endpoint that is not
// behind the interface: one that is not complete yet gets nothing.
func renderBeyond(s desired.State, n naming) []string {
	rules := []string{
		in(n.claims(), "dst") + "-g " + chainUnclassified,
		fmt.Sprintf("-m devgroup --dst-group %d -g %s", hostport.Group, chainUnclassified),
	}
	for _, c := range vethSets(s, n) {
		rules = append(rules, toVeth(c.Set))
	}
	return rules
}

func toVeth(s ipset.Set) string { return in(s, "dst,dst") + "-g " + chainUnclassified }

// renderRemark gives the ID of outside to what has none left where IPVS is: what had one
// was changed by another program on the way, and OUTPUT judges what has any.
func renderRemark(m marks) []string {
	return []string{fmt.Sprintf("-m mark --mark %s -j MARK --set-xmark %s", m.none, m.outside)}
}

// renderClear takes the ID off what IPVS has sent on.
func renderClear(m marks) []string {
	return append(notTheNodes(m), fmt.Sprintf("-j MARK --set-xmark %s", m.none))
}

// dispatch leads to the profile of the packet's endpoint. By goto, where it is known by its
// address: a rule that allows returns to who asked. A further prefix may be that of more
// than one, and then all of them must allow.
func dispatch(s desired.State, d desired.Direction, w way, n naming) []chain {
	byAddress, byNet := dispatches(d, w)
	out := []chain{{mangle, byAddress, nil}, {mangle, byNet, nil}}
	for _, id := range s.ProfileIDs() {
		if p := s.Profiles[id]; p.Direction == d {
			for i, r := range dispatchRules(p, w, n) {
				out[i].rules = append(out[i].rules, r)
			}
		}
	}
	return out
}

// dispatchRules are the profile's rule in each of its two dispatches.
func dispatchRules(p desired.Profile, w way, n naming) [2]string {
	return [2]string{
		in(n.members(p.Direction, p.ID), w.own(p.Direction)) + "-g " + chainOf(p, w),
		in(n.nets(p.Direction, p.ID), w.own(p.Direction)) + "-j " + chainOf(p, w),
	}
}

// dispatchLines are lines of a restore that add those rules, or with "-D" delete them.
func dispatchLines(do string, p desired.Profile, n naming) []string {
	var lines []string
	for _, w := range ways {
		byAddress, byNet := dispatches(p.Direction, w)
		for i, r := range dispatchRules(p, w, n) {
			lines = append(lines, fmt.Sprintf("%s %s %s", do, [2]string{byAddress, byNet}[i], r))
		}
	}
	return lines
}

// end renders a chain that drops what no policy is asked about, and logs it first. Only
// what ends there goes there, so the rest does not pay for it.
func end(why counters.Reason, unlogged bool) []string {
	return append(logged(counters.Key{Reason: why}, unlogged), "-j DROP")
}

// logged sends the headers of the packet to who listens, some times a second.
func logged(k counters.Key, unlogged bool) []string {
	if unlogged {
		return nil
	}
	return []string{fmt.Sprintf("-m limit --limit %d/sec --limit-burst %d -j NFLOG --nflog-prefix %s --nflog-group %d --nflog-size %d",
		droplog.PerSecond, droplog.Burst, droplog.Prefix(k), droplog.Group, droplog.Size)}
}

// profile renders the chains of a profile, one for each way.
func profile(p desired.Profile, n naming, unlogged bool) []chain {
	var out []chain
	for _, w := range ways {
		out = append(out, chain{mangle, chainOf(p, w), list(p, w, n, unlogged)})
	}
	return out
}

// list is the flat list of what is allowed; the rest is logged and dropped. In
// a profile that audits it is counted instead, and falls off the end of the chain, which
// allows.
func list(p desired.Profile, w way, n naming, unlogged bool) []string {
	var rules []string
	peer, own := w.peer(p.Direction), w.own(p.Direction)
	for _, r := range p.Rules() {
		comment := fmt.Sprintf("-m comment --comment %q ", truncate(r.Origin, 200))
		var peers []string
		if r.AnyPeer {
			peers = []string{""}
		}
		for _, id := range r.Peers {
			peers = append(peers, in(n.peers(id), peer))
		}
		if b := blocksOf(r, n.family); len(b) > 0 {
			peers = append(peers, in(n.blocks(blocksID(b)), peer))
		}
		for _, peer := range peers {
			for _, ports := range portMatches(r, w, n) {
				rules = append(rules, peer+ports+comment+"-j RETURN")
			}
		}
	}
	// Who is here by its own address is a member, and who is not has a further prefix. The
	// set is named so that its references tell a chain that another program flushed, which would
	// allow everything.
	member := in(n.members(p.Direction, p.ID), own)
	key, last := counters.Key{Reason: counters.Policy, Direction: p.Direction, Profile: p.ID},
		[]string{member + "-j DROP", "-j DROP"}
	if p.Audit() {
		key.Reason, last = counters.Audit,
			[]string{strings.TrimSpace(member), strings.TrimSpace(in(n.nets(p.Direction, p.ID), own))}
	}
	return slices.Concat(rules, logged(key, unlogged), last)
}

// truncate keeps a comment below xt_comment's 255 bytes.
func truncate(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n]
}

// portMatches renders ports as few matches as multiport allows, and one for each
// name; one empty match stands for "anything".
func portMatches(r desired.ProfileRule, w way, n naming) []string {
	if len(r.Ports)+len(r.Tuples) == 0 {
		return []string{""}
	}
	var matches []string
	ports := map[way]string{asked: "--dports", answered: "--sports"}[w]
	for _, proto := range []desired.Protocol{desired.TCP, desired.UDP, desired.SCTP} {
		var ranges []desired.PortRange
		for _, p := range r.Ports {
			if p.Protocol == proto {
				ranges = append(ranges, p.PortRange)
			}
		}
		if slices.Contains(ranges, desired.AllPorts) {
			matches = append(matches, fmt.Sprintf("-p %s ", proto))
			continue
		}
		for _, list := range multiports(ranges) {
			matches = append(matches, fmt.Sprintf("-p %s -m multiport %s %s ", proto, ports, list))
		}
	}
	for _, id := range r.Tuples {
		matches = append(matches, in(n.tuples(id), w.destination()+","+w.destination()))
	}
	return matches
}

// multiports groups ranges into lists of at most 15 slots, of which a range
// takes two (XT_MULTI_PORTS).
func multiports(ranges []desired.PortRange) []string {
	const slots = 15
	var lists []string
	var list []string
	used := 0
	for _, r := range ranges {
		need := 1
		if r.First != r.Last {
			need = 2
		}
		if used+need > slots {
			lists, list, used = append(lists, strings.Join(list, ",")), nil, 0
		}
		list, used = append(list, r.String()), used+need
	}
	if list != nil {
		lists = append(lists, strings.Join(list, ","))
	}
	return lists
}

// blocksOf are the prefixes of a rule that are of one family.
func blocksOf(r desired.ProfileRule, f family) []netip.Prefix { return split(r.Blocks, f) }

// split returns the prefixes of one family. hash:net takes no /0: it becomes
// its two halves.
func split(list []netip.Prefix, f family) []netip.Prefix {
	var out []netip.Prefix
	for _, b := range list {
		switch {
		case b.Addr().Is4() != (f == v4):
		case b.Bits() > 0:
			out = append(out, b)
		case f == v4:
			out = append(out, netip.MustParsePrefix("0.0.0.0/1"), netip.MustParsePrefix("128.0.0.0/1"))
		default:
			out = append(out, netip.MustParsePrefix("::/1"), netip.MustParsePrefix("8000::/1"))
		}
	}
	return out
}
