package iptables

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/podmark/podmark/pkg/apply/counters"
	"github.com/podmark/podmark/pkg/apply/droplog"
	"github.com/podmark/podmark/pkg/apply/ipset"
	"github.com/podmark/podmark/pkg/apply/port"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
)

// chain is a chain of table mangle and the rules in it, each without "-A NAME".
type chain struct {
	name  string
	rules []string
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

// frame renders the static chains of one family: all that does not depend on
// who is on the node, but for the dispatch to the profiles of s.
func frame(s desired.State, n naming) []chain {
	m := marksOf(s)
	return []chain{
		{chainMark, renderMark(m, n)},
		{chainBridge, renderBridge(s, m, n)},
		{chainInput, renderInput(s, m, n)},
		{chainForward, renderForward(m, n)},
		{chainOutput, renderOutput(m)},
		{chainPolice, renderPolice(m, n)},
		{chainEgress, dispatch(s, desired.Egress, n)},
		{chainIngress, dispatch(s, desired.Ingress, n)},
		{chainSpoofed, end(counters.Spoofed, s.Unlogged)},
		{chainUnclassified, end(counters.Unclassified, s.Unlogged)},
		{chainPost, []string{
			// An encapsulated packet inherits the mark and would be judged again.
			fmt.Sprintf("-m mark ! --mark %s -j MARK --set-xmark %s", m.none, m.none),
		}},
	}
}

// chainsOf renders every chain of one family.
func chainsOf(s desired.State, n naming) []chain {
	chains := frame(s, n)
	for _, id := range s.ProfileIDs() {
		chains = append(chains, profile(s.Profiles[id], n, s.Unlogged))
	}
	return chains
}

// live lets pass what was judged before: what is related to a flow, replies,
// and flows that were allowed under the current epoch.
func live(m marks) []string {
	return []string{
		"-m conntrack --ctstate RELATED -j RETURN",
		"-m conntrack --ctstate ESTABLISHED --ctdir REPLY -j RETURN",
		fmt.Sprintf("-m conntrack --ctstate ESTABLISHED -m connmark --mark %s -j RETURN", m.epoch),
	}
}

// neighbours lets pass neighbour discovery and MLD.
func neighbours(n naming) []string {
	if n.family != v6 {
		return nil
	}
	var rules []string
	for _, t := range slices.Concat(desired.DiscoveryTypes, desired.ListenerTypes) {
		rules = append(rules, fmt.Sprintf("-p ipv6-icmp -m icmp6 --icmpv6-type %d -j RETURN", t))
	}
	return rules
}

// renderMark gives every packet the ID of where it comes from.
func renderMark(m marks, n naming) []string {
	return []string{
		fmt.Sprintf("-j MARK --set-xmark %s", m.none),
		fmt.Sprintf("-j SET --map-set %s src,src --map-mark", n.endpoints().Name),
		fmt.Sprintf("-m mark --mark %s -m devgroup --src-group %d -g %s", m.none, port.Group, chainSpoofed),
		fmt.Sprintf("-m devgroup ! --src-group %d -j %s", port.Group, chainBridge),
		fmt.Sprintf("-m mark --mark %s -j MARK --set-xmark %s", m.none, m.outside),
	}
}

// renderBridge holds the endpoints of a bridge, which share its L3 interface
// with pods that podmark does not know, to their own address. The bridge port
// holds the MAC address to the endpoint, so the pair tells them apart. The rules
// come with the first such endpoint, because not every kernel has these sets.
func renderBridge(s desired.State, m marks, n naming) []string {
	if !bridged(s) {
		return nil
	}
	return []string{
		fmt.Sprintf("-m set --match-set %s src,src -j RETURN", n.pairs().Name),
		// An endpoint's address with another MAC address.
		fmt.Sprintf("-m mark ! --mark %s -g %s", m.none, chainSpoofed),
		// An endpoint's MAC address with another address.
		fmt.Sprintf("-m set --match-set %s src -g %s", n.macs().Name, chainSpoofed),
	}
}

// renderInput marks what comes in, and judges what a pod sends to a host
// process. What IPVS will take is left to OUTPUT. A flow to the host never gets
// the epoch: IPVS may still turn it into one to a pod, which must be judged.
func renderInput(s desired.State, m marks, n naming) []string {
	rules := append(live(m), neighbours(n)...)
	rules = append(
		rules,
		"-j "+chainMark,
		fmt.Sprintf("-m mark --mark %s -j RETURN", m.outside),
		// Not a local address: multicast, broadcast.
		fmt.Sprintf("-m addrtype ! --dst-type LOCAL -g %s", chainEgress),
	)
	if n.family == v6 {
		// The link-local address of a host veth is in no list and never a service's.
		rules = append(rules, fmt.Sprintf("-d fe80::/10 -g %s", chainEgress))
	}
	rules = append(
		rules,
		// A local address that is not the host's own is a service's.
		fmt.Sprintf("-m set ! --match-set %s dst -j RETURN", n.hosts().Name),
		fmt.Sprintf("-p tcp -m set --match-set %s dst -j RETURN", n.nodePorts().Name),
		fmt.Sprintf("-p udp -m set --match-set %s dst -j RETURN", n.nodePorts().Name),
	)
	// bitmap:port matches TCP and UDP only (ip_set_get_ip_port).
	for _, ports := range multiports(s.SCTPPorts) {
		rules = append(rules, fmt.Sprintf("-p sctp -m multiport --dports %s -j RETURN", ports))
	}
	return append(rules, "-g "+chainEgress)
}

func renderForward(m marks, n naming) []string {
	rules := append(live(m), neighbours(n)...)
	return append(rules, "-j "+chainMark, "-j "+chainPolice)
}

// renderOutput judges what IPVS forwarded: only that has a mark here. A reply of
// a host process can have one too, with net.ipv4.tcp_fwmark_accept=1.
func renderOutput(m marks) []string {
	return slices.Concat(
		[]string{fmt.Sprintf("-m mark --mark %s -j RETURN", m.none)},
		live(m),
		[]string{"-j " + chainPolice},
	)
}

// renderPolice judges one packet by both ends and notes the epoch on its flow.
func renderPolice(m marks, n naming) []string {
	return []string{
		// An endpoint that is not complete yet gets nothing.
		fmt.Sprintf("-m devgroup --dst-group %d -m set ! --match-set %s dst,dst -g %s", port.Group, n.endpoints().Name, chainUnclassified),
		fmt.Sprintf("-m mark ! --mark %s -j %s", m.outside, chainEgress),
		"-j " + chainIngress,
		fmt.Sprintf("-j CONNMARK --set-xmark %s", m.epoch),
	}
}

// dispatch leads to the profile of the packet's endpoint. By goto: a rule that
// allows returns to who asked.
func dispatch(s desired.State, d desired.Direction, n naming) []string {
	var rules []string
	for _, id := range s.ProfileIDs() {
		if p := s.Profiles[id]; p.Direction == d {
			rules = append(rules, dispatchRule(p, n))
		}
	}
	return rules
}

func dispatchRule(p desired.Profile, n naming) string {
	return fmt.Sprintf("-m set --match-set %s %s -g %s", n.members(p.Direction, p.ID).Name, side(p.Direction), chainOf(p))
}

// side is where a packet carries the address of the endpoint that is judged.
func side(d desired.Direction) string {
	if d == desired.Egress {
		return "src"
	}
	return "dst"
}

// dispatchChain is the chain that holds the profile's dispatch rule.
func dispatchChain(p desired.Profile) string {
	if p.Direction == desired.Egress {
		return chainEgress
	}
	return chainIngress
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

// profile renders the flat list of what is allowed; the rest is logged and dropped. In
// a profile that audits it is counted instead, and falls off the end of the chain, which
// allows.
func profile(p desired.Profile, n naming, unlogged bool) chain {
	c := chain{name: chainOf(p)}
	peerSide := map[desired.Direction]string{desired.Egress: "dst", desired.Ingress: "src"}[p.Direction]
	for _, r := range p.Rules {
		comment := fmt.Sprintf("-m comment --comment %q ", truncate(r.Origin, 200))
		var peers []string
		if r.Anyone {
			peers = []string{""}
		}
		for _, id := range r.Peers {
			peers = append(peers, fmt.Sprintf("-m set --match-set %s %s ", n.peers(id).Name, peerSide))
		}
		if b := blocksOf(r, n.family); len(b) > 0 {
			peers = append(peers, fmt.Sprintf("-m set --match-set %s %s ", n.blocks(desired.BlocksID(b)).Name, peerSide))
		}
		for _, peer := range peers {
			for _, ports := range portMatches(r, n) {
				c.rules = append(c.rules, peer+ports+comment+"-j RETURN")
			}
		}
	}
	// Everyone here is a member. The set is named so that its references tell a
	// chain that someone flushed, which would allow everything.
	member := fmt.Sprintf("-m set --match-set %s %s", n.members(p.Direction, p.ID).Name, side(p.Direction))
	key, last := counters.Key{Reason: counters.Policy, Direction: p.Direction, Profile: p.ID}, []string{member + " -j DROP", "-j DROP"}
	if p.Audit {
		key.Reason, last = counters.Audit, []string{member}
	}
	c.rules = append(append(c.rules, logged(key, unlogged)...), last...)
	return c
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
func portMatches(r desired.ProfileRule, n naming) []string {
	if len(r.Ports)+len(r.Tuples) == 0 {
		return []string{""}
	}
	var matches []string
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
			matches = append(matches, fmt.Sprintf("-p %s -m multiport --dports %s ", proto, list))
		}
	}
	for _, id := range r.Tuples {
		matches = append(matches, fmt.Sprintf("-m set --match-set %s dst,dst ", n.tuples(id).Name))
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

// blocksOf returns the prefixes of one family. hash:net takes no /0: it becomes
// its two halves.
func blocksOf(r desired.ProfileRule, f family) []netip.Prefix {
	var out []netip.Prefix
	for _, b := range r.Blocks {
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
