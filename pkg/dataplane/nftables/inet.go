package nftables

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/podmark/podmark/pkg/dataplane/hostport"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
)

// The static chains of table inet, in the order in which packets come to them. What several of them
// jump to stands after the first.

// senderChain, at prerouting, asks who sends. An address of an endpoint is that endpoint's,
// wherever it comes in; what else comes in by an endpoint's veth is a stranger's. An address of
// the node's own comes in nowhere, whatever prefix it is in.
//
//	iif . ip saddr @senders4 accept
//	iif . ip6 saddr @senders6 accept
//	iif . ip saddr map @further4 fib saddr type local jump spoofed
//	iif . ip6 saddr map @further6 fib saddr type local jump spoofed
//	iif @veths jump stranger
//	iifgroup 1886 jump stranger
//	ip saddr . ip saddr @self4 jump spoofed
//	ip6 saddr . ip6 saddr @self6 jump spoofed
func senderChain() chain {
	return chain{table: inet, name: chainSender, hook: &hookSender, rules: []rule{
		{parts: on(in(v4.inputAndSource(senders(v4), reg), senders(v4)), accept())},
		{parts: on(in(v6.inputAndSource(senders(v6), reg), senders(v6)), accept())},
		{
			on(mapTo(v4.inputAndSource(further(v4), keyReg), further(v4)), fromLocal(), jump(chainSpoofed)),
			"by the ID in map " + further(v4).name,
		},
		{
			on(mapTo(v6.inputAndSource(further(v6), keyReg), further(v6)), fromLocal(), jump(chainSpoofed)),
			"by the ID in map " + further(v6).name,
		},
		{parts: on(in(input(), veths()), jump(chainStranger))},
		{parts: on(deviceGroup("iifgroup", expr.MetaKeyIIFGROUP, hostport.Group), jump(chainStranger))},
		{parts: on(in(v4.sourceTwice(), self(v4)), jump(chainSpoofed))},
		{parts: on(in(v6.sourceTwice(), self(v6)), jump(chainSpoofed))},
	}}
}

// strangerChain asks what an endpoint sends from no address of its own. To its link it may speak
// of its link-local address, and of none at all, as far as IPv6 needs it: neither leaves the
// link. Beyond, a router may pass on what comes from the prefixes that it was given, but for
// other endpoints' addresses.
//
//	ip6 saddr { ::, fe80::/10 } icmpv6 type { 133, 135, 136 } ip6 hoplimit 255 ip6 length 8-48 accept
//	ip6 saddr { ::, fe80::/10 } icmpv6 type { 131, 132, 143 } ip6 hoplimit 1 ip6 length 8-512 accept
//	ip saddr . ip saddr @self4 goto spoofed
//	ip6 saddr . ip6 saddr @self6 goto spoofed
//	iif . ip saddr map @further4 accept
//	iif . ip6 saddr map @further6 accept
//	goto spoofed
func strangerChain() chain {
	return chain{table: inet, name: chainStranger, rules: []rule{
		{parts: on(onLink(), v6.icmpTypes(v6.is(), 133, 135, 136), hopLimit(255), upTo(longestSolicitation), accept())},
		{parts: on(onLink(), v6.icmpTypes(v6.is(), 131, 132, 143), hopLimit(1), upTo(longestReport), accept())},
		{parts: on(in(v4.sourceTwice(), self(v4)), gotoChain(chainSpoofed))},
		{parts: on(in(v6.sourceTwice(), self(v6)), gotoChain(chainSpoofed))},
		{on(mapTo(v4.inputAndSource(further(v4), keyReg), further(v4)), accept()), "by the ID in map " + further(v4).name},
		{on(mapTo(v6.inputAndSource(further(v6), keyReg), further(v6)), accept()), "by the ID in map " + further(v6).name},
		{parts: on(gotoChain(chainSpoofed))},
	}}
}

// onLink matches the sources that mean nothing beyond a link.
func onLink() part {
	local, _ := blocks(v6, v6.src(), []netip.Prefix{netip.MustParsePrefix("::/128"), netip.MustParsePrefix("fe80::/10")})
	return local[0]
}

// linkMulticast matches what goes to the multicast addresses of one link, by the field
// that is the destination.
func linkMulticast(destination part) part {
	local, _ := blocks(v6, destination, []netip.Prefix{desired.LinkMulticast})
	return local[0]
}

// inputChain, at input before IPVS, gives a packet the ID of where it comes from. No policy is
// asked here: IPVS may take the packet and send it elsewhere. What is not to be judged has no
// ID, whoever gave it one.
//
//	iif 1 accept
//	meta mark & 0xffff0000 != 0x00000000 meta mark set meta mark & 0x0000ffff
//	ct mark & 0xffff0000 == 0x00010000 ct state == established accept
//	meta l4proto != tcp meta l4proto != udp jump unusual
//	meta l4proto udp th dport { 4789, 8472 } jump tunnel
//	ct state == established ct direction reply accept
//	ct state == related ct mark & 0xffff0000 == 0x00010000 jump related
//	ct state == related ct mark & 0xffff0000 == 0x00000000 jump related
//	jump classify
func inputChain(s desired.State) chain {
	none, epoch := s.Layout.ID(mark.None), s.Layout.Mark(s.Epoch)
	clear := on(markIsNot(none), setMark(none))
	return chain{table: inet, name: chainInput, hook: &hookInput, rules: slices.Concat(
		rules(on(loopback(), accept()), clear, on(judged(epoch), accept())),
		unusual(s.Tunnels),
		rules(
			on(established(), reply(), accept()),
			on(related(), epochIs(epoch), jump(chainRelated)),
			on(related(), epochIs(none), jump(chainRelated)), // about the node's own
			on(jump(chainClassify)),
		),
	)}
}

// unusual leads what is wrapped to where its sender is asked for, and ICMP to where
// neighbour discovery is told from the rest. What nearly everything is, TCP and UDP, is told
// by comparing, which costs less than a look-up.
//
//	meta l4proto != tcp meta l4proto != udp jump unusual
//	meta l4proto udp th dport { 4789, 8472 } jump tunnel
func unusual(t desired.Tunnels) []rule {
	return append(rules(on(unusualProtocol(), jump(chainUnusual))), wrappedInUDP(t, jump(chainTunnel))...)
}

func unusualProtocol() part {
	isNot := func(p desired.Protocol) []any {
		return []any{load(expr.MetaKeyL4PROTO, reg), &expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: []byte{byte(p)}}}
	}
	return part{text: "meta l4proto != tcp meta l4proto != udp", exprs: append(isNot(desired.TCP), isNot(desired.UDP)...)}
}

// wrappedInUDP is a rule, if there are such tunnels, for what is wrapped in UDP.
//
//	meta l4proto udp th dport { 4789, 8472 } THEN
func wrappedInUDP(t desired.Tunnels, then ...part) []rule {
	if len(t.UDPPorts) == 0 {
		return nil
	}
	values := make([]value, len(t.UDPPorts))
	for i, p := range t.UDPPorts {
		values[i] = value{text: fmt.Sprint(p), first: big16(p), last: big16(p)}
	}
	return rules(append(on(protocol(desired.UDP), oneOf(dport(), nftables.TypeInetService, values)), then...))
}

// unusualChain is for what is neither TCP nor UDP. Neighbour discovery and
// MLD are of one link. A router takes one off the hop limit, so what comes with 255 came by no
// router; MLD has 1, and goes where no router sends it on. An endpoint gives others no orders.
//
//	icmp type 5 iif @veths goto spoofed
//	icmp type 5 ip saddr . ip saddr @self4 goto spoofed
//	icmpv6 type { 130, 134, 137 } iif @veths goto spoofed
//	icmpv6 type { 130, 134, 137 } ip6 saddr . ip6 saddr @self6 goto spoofed
//	icmpv6 type { 133, 134, 135, 136 } ip6 hoplimit 255 accept
//	icmpv6 type { 130, 131, 132, 143 } ip6 hoplimit 1 ip6 daddr ff02::/16 accept
//	meta l4proto { 4, 41, 47 } goto tunnel
func unusualChain(t desired.Tunnels) chain {
	return chain{table: inet, name: chainUnusual, rules: append(rules(
		on(v4.icmpTypes(v4.is(), 5), in(input(), veths()), gotoChain(chainSpoofed)),
		on(v4.icmpTypes(v4.is(), 5), in(v4.sourceTwice(), self(v4)), gotoChain(chainSpoofed)),
		on(v6.icmpTypes(v6.is(), 130, 134, 137), in(input(), veths()), gotoChain(chainSpoofed)),
		on(v6.icmpTypes(v6.is(), 130, 134, 137), in(v6.sourceTwice(), self(v6)), gotoChain(chainSpoofed)),
		on(v6.icmpTypes(v6.is(), desired.DiscoveryTypes...), hopLimit(255), accept()),
		on(v6.icmpTypes(v6.is(), desired.ListenerTypes...), hopLimit(1), linkMulticast(v6.dst()), accept()),
	), wrapped(t)...)}
}

// wrapped leads protocols that wrap packets on.
//
//	meta l4proto { 4, 41, 47 } goto tunnel
func wrapped(t desired.Tunnels) []rule {
	if len(t.Protocols) == 0 {
		return nil
	}
	return rules(on(protocols(protocolsOf(t)...), gotoChain(chainTunnel)))
}

func protocolsOf(t desired.Tunnels) []desired.Protocol {
	list := make([]desired.Protocol, len(t.Protocols))
	for i, p := range t.Protocols {
		list[i] = desired.Protocol(p)
	}
	return list
}

// tunnelChain asks whether what is wrapped as in the node's tunnels comes from an endpoint.
//
//	iif @veths goto encapsulated
//	ip saddr . ip saddr @self4 goto encapsulated
//	ip6 saddr . ip6 saddr @self6 goto encapsulated
//	iif . ip saddr map @further4 goto encapsulated
//	iif . ip6 saddr map @further6 goto encapsulated
func tunnelChain() chain {
	return chain{table: inet, name: chainTunnel, rules: []rule{
		{parts: on(in(input(), veths()), gotoChain(chainEncapsulated))},
		{parts: on(in(v4.sourceTwice(), self(v4)), gotoChain(chainEncapsulated))},
		{parts: on(in(v6.sourceTwice(), self(v6)), gotoChain(chainEncapsulated))},
		{
			on(mapTo(v4.inputAndSource(further(v4), keyReg), further(v4)), gotoChain(chainEncapsulated)),
			"by the ID in map " + further(v4).name,
		},
		{
			on(mapTo(v6.inputAndSource(further(v6), keyReg), further(v6)), gotoChain(chainEncapsulated)),
			"by the ID in map " + further(v6).name,
		},
	}}
}

// relatedChain accepts errors about a flow. They come from one of the flow's ends, or from a
// router on the way, and routers are no endpoints, nor behind one. Any other word of an
// endpoint's is a packet like others, and so is what a conntrack helper expects.
//
//	icmp type { 3, 11, 12 } ip saddr . ct original ip saddr @self4 accept
//	icmp type { 3, 11, 12 } ip saddr . ct reply ip saddr @self4 accept
//	icmp type { 3, 11, 12 } ip saddr . ip saddr @self4 return
//	icmp type { 3, 11, 12 } iif . ip saddr map @further4 return
//	icmp type { 3, 11, 12 } accept
//	...
func relatedChain() chain {
	return chain{table: inet, name: chainRelated, rules: slices.Concat(
		aboutFlow(v4, desired.ErrorTypes4), aboutFlow(v6, desired.ErrorTypes6),
	)}
}

// aboutFlow accepts the errors of one family that an end of the flow or a router sends.
func aboutFlow(f family, types []uint8) []rule {
	of := f.icmpTypes(f.is(), types...)
	return []rule{
		{parts: on(clone(of), in(f.sourceAndEnd(false), self(f)), accept())},
		{parts: on(clone(of), in(f.sourceAndEnd(true), self(f)), accept())},
		{parts: on(clone(of), in(f.sourceTwice(), self(f)), returnVerdict())},
		{
			on(clone(of), mapTo(f.inputAndSource(further(f), keyReg), further(f)), returnVerdict()),
			"by the ID in map " + further(f).name,
		},
		{parts: on(clone(of), accept())},
	}
}

// classifyChain writes the ID of where a packet comes from. IPv4 itself takes nothing from a
// link that says to be from the node; IPv6 does, and in output a source of the node's own tells
// what the node itself sends.
//
//	meta mark set meta mark & 0x0000ffff | ip saddr map @sources4 return
//	...
//	fib saddr type local goto spoofed
//	meta mark set meta mark & 0x0000ffff | 0x00010000
func classifyChain(l mark.Layout) chain {
	return chain{table: inet, name: chainClassify, rules: append(origin(func(key part, leads set) rule {
		return rule{on(setMarkFrom(l, key, leads), returnVerdict()), "by the ID in map " + leads.name}
	}), rules(on(fromLocal(), gotoChain(chainSpoofed)), on(setMark(l.ID(mark.Outside))))...)}
}

// origin lists what is known about where a packet comes from: found is done with
// what comes from an endpoint. Chain sender has proven that its address is its own. An
// endpoint may have gone since: then its veth sends nothing.
//
//	ip saddr map @sources4 FOUND
//	ip6 saddr map @sources6 FOUND
//	iif . ip saddr map @further4 FOUND
//	iif . ip6 saddr map @further6 FOUND
//	iif @veths goto spoofed
//	iifgroup 1886 goto spoofed
func origin(found func(key part, leads set) rule) []rule {
	return []rule{
		found(v4.source(keyReg), sources(v4)),
		found(v6.source(keyReg), sources(v6)),
		found(v4.inputAndSource(further(v4), keyReg), further(v4)),
		found(v6.inputAndSource(further(v6), keyReg), further(v6)),
		{parts: on(in(input(), veths()), gotoChain(chainSpoofed))},
		{parts: on(deviceGroup("iifgroup", expr.MetaKeyIIFGROUP, hostport.Group), gotoChain(chainSpoofed))},
	}
}

// remarkChain is what Guard does at input before IPVS, after all that has touched the mark there:
// what has no ID left gets that of outside, since a backend judges in output what has any.
//
//	iif 1 accept
//	meta mark & 0xffff0000 == 0x00000000 meta mark set meta mark & 0x0000ffff | 0x00010000
func remarkChain(l mark.Layout) chain {
	return chain{table: inet, name: chainRemark, hook: &hookInput, rules: rules(
		on(loopback(), accept()),
		on(markIs(l.ID(mark.None)), setMark(l.ID(mark.Outside))),
	)}
}

// hostChain, at input after IPVS, judges what IPVS did not take: it is for a host process, behind
// a service address or not. A flow to the host never gets the epoch: a service that appears
// later may turn it into one to a pod, which must be judged. The process gets the packet
// without the ID.
//
//	iif 1 accept
//	meta mark & 0xffff0000 == 0x00000000 accept
//	meta l4proto udp th dport { 4789, 8472 } meta mark & 0xffff0000 != 0x00010000 jump encapsulated
//	meta mark & 0xffff0000 != 0x00010000 jump egress
//	meta mark set meta mark & 0x0000ffff
func hostChain(s desired.State) chain {
	none, outside := s.Layout.ID(mark.None), s.Layout.ID(mark.Outside)
	return chain{table: inet, name: chainHost, hook: &hookHost, rules: slices.Concat(
		rules(on(loopback(), accept()), on(markIs(none), accept())),
		wrappedInUDP(s.Tunnels, markIsNot(outside), jump(chainEncapsulated)),
		rules(on(markIsNot(outside), jump(chainEgress)), on(setMark(none))),
	)}
}

// egressChain asks the egress profile of who has the ID; one that nobody has is dropped.
//
//	meta nfproto . meta mark & 0xffff0000 map @egress vmap @egress-profiles
//	goto unclassified
func egressChain(l mark.Layout) chain {
	return chain{table: inet, name: chainEgress, rules: []rule{
		toProfile(desired.Egress)(familyAndID(l.Mask(), keyReg), egress()),
		{parts: on(gotoChain(chainUnclassified))},
	}}
}

// toProfile goes to the profile whose number leads holds for the key.
func toProfile(d desired.Direction) func(key part, leads set) rule {
	return func(key part, leads set) rule {
		return rule{on(mapTo(key, leads), vmap(profiles(d))), "by the number in map " + leads.name}
	}
}

// forwardChain, at forward, tells by its flow how a packet is judged. Of a flow that has been
// answered, what was allowed under this epoch passes, and an answer is judged as one. What opens
// a flow is judged, and what follows until it is answered: a flow that was there before an
// endpoint had the address has the epoch too. So is what conntrack cannot place. The packet mark
// is others'.
//
//	ct mark & 0xffff0000 == 0x00010000 ct state == established accept
//	ct state == new jump opening
//	ct state == related ct mark & 0xffff0000 == 0x00010000 jump related
//	ct state == established ct direction reply jump answer
//	jump opening
func forwardChain(s desired.State) chain {
	epoch := s.Layout.Mark(s.Epoch)
	return chain{table: inet, name: chainForward, hook: &hookForward, rules: rules(
		on(judged(epoch), accept()),
		on(begins(), jump(chainOpening)),
		on(related(), epochIs(epoch), jump(chainRelated)),
		on(established(), reply(), jump(chainAnswer)),
		on(jump(chainOpening)),
	)}
}

// openingChain judges both ends, and gives the flow the epoch.
//
//	meta l4proto != tcp meta l4proto != udp jump unusual
//	meta l4proto udp th dport { 4789, 8472 } jump tunnel
//	jump origin
//	jump ingress
//	ct mark set ct mark & 0x0000ffff | 0x00010000
//	accept
func openingChain(s desired.State) chain {
	epoch := s.Layout.Mark(s.Epoch)
	return chain{table: inet, name: chainOpening, rules: slices.Concat(
		unusual(s.Tunnels),
		rules(on(jump(chainOrigin)), on(jump(chainIngress)), on(setEpoch(epoch)), on(accept())),
	)}
}

// originChain asks the egress profile of whom a packet comes from. A profile returns what it
// allows; number 0 returns at once.
//
//	ip saddr map @sources4 vmap @egress-profiles
//	...
//	meta nfproto ipv6 fib saddr type local goto spoofed
func originChain() chain {
	return chain{table: inet, name: chainOrigin, rules: append(origin(toProfile(desired.Egress)),
		rule{parts: on(v6.only(), fromLocal(), gotoChain(chainSpoofed))})}
}

// ingressChain asks the ingress profile of whom the packet goes to. What goes elsewhere returns,
// but for the veths of endpoints: one that is not complete yet, or gone, gets nothing. Nor does
// one whose address leads elsewhere than to its interface.
//
//	oif . ip daddr map @ingress4 vmap @ingress-profiles
//	oif . ip6 daddr map @ingress6 vmap @ingress-profiles
//	oif . ip daddr map @onward4 vmap @ingress-profiles
//	oif . ip6 daddr map @onward6 vmap @ingress-profiles
//	oif @veths goto unclassified
//	oifgroup 1886 goto unclassified
//	ip daddr . ip daddr @self4 goto unclassified
//	ip6 daddr . ip6 daddr @self6 goto unclassified
func ingressChain() chain {
	return chain{table: inet, name: chainIngress, rules: []rule{
		toProfile(desired.Ingress)(v4.outputAndDestination(ingress(v4), keyReg), ingress(v4)),
		toProfile(desired.Ingress)(v6.outputAndDestination(ingress(v6), keyReg), ingress(v6)),
		toProfile(desired.Ingress)(v4.outputAndDestination(onward(v4), keyReg), onward(v4)),
		toProfile(desired.Ingress)(v6.outputAndDestination(onward(v6), keyReg), onward(v6)),
		{parts: on(in(output(), veths()), gotoChain(chainUnclassified))},
		{parts: on(deviceGroup("oifgroup", expr.MetaKeyOIFGROUP, hostport.Group), gotoChain(chainUnclassified))},
		{parts: on(in(v4.destinationTwice(), self(v4)), gotoChain(chainUnclassified))},
		{parts: on(in(v6.destinationTwice(), self(v6)), gotoChain(chainUnclassified))},
	}}
}

// answerChain judges the flow that the packet is an answer to: the packet is turned until that is
// done. The client is behind the output interface, and the server behind the other.
//
//	meta l4proto != tcp meta l4proto != udp jump unusual
//	ip saddr set ip daddr ip daddr set ip saddr
//	ip6 saddr set ip6 daddr ip6 daddr set ip6 saddr
//	meta l4proto { 6, 17, 132 } th sport set th dport th dport set th sport
//	jump client
//	jump server
//	... turned back
//	ct mark set ct mark & 0x0000ffff | 0x00010000
//	accept
func answerChain(s desired.State) chain {
	epoch := s.Layout.Mark(s.Epoch)
	return chain{table: inet, name: chainAnswer, rules: slices.Concat(
		rules(on(unusualProtocol(), jump(chainUnusual))),
		turned(),
		rules(on(jump(chainClient)), on(jump(chainServer))),
		turned(),
		rules(on(setEpoch(epoch)), on(accept())),
	)}
}

// turned exchanges both ends of the packet.
func turned() []rule {
	const why = "the ends change places"
	return []rule{{on(v4.turned()), why}, {on(v6.turned()), why}, {on(portsTurned()), why}}
}

// clientChain asks the egress profile of the client of an answer. A client behind an endpoint's
// veth that is not complete yet gets nothing: its flow is older than it is, and would be taken
// for allowed.
//
//	ip saddr map @sources4 vmap @egress-profiles
//	ip6 saddr map @sources6 vmap @egress-profiles
//	oif . ip saddr map @further4 vmap @egress-profiles
//	oif . ip6 saddr map @further6 vmap @egress-profiles
//	oif @veths goto unclassified
//	oifgroup 1886 goto unclassified
func clientChain() chain {
	return chain{table: inet, name: chainClient, rules: []rule{
		toProfile(desired.Egress)(v4.source(keyReg), sources(v4)),
		toProfile(desired.Egress)(v6.source(keyReg), sources(v6)),
		toProfile(desired.Egress)(v4.outputAndSource(further(v4), keyReg), further(v4)),
		toProfile(desired.Egress)(v6.outputAndSource(further(v6), keyReg), further(v6)),
		{parts: on(in(output(), veths()), gotoChain(chainUnclassified))},
		{parts: on(deviceGroup("oifgroup", expr.MetaKeyOIFGROUP, hostport.Group), gotoChain(chainUnclassified))},
	}}
}

// serverChain asks the ingress profile of the server of an answer.
//
//	iif . ip daddr map @ingress4 vmap @ingress-profiles
//	iif . ip6 daddr map @ingress6 vmap @ingress-profiles
//	iif . ip daddr map @onward4 vmap @ingress-profiles
//	iif . ip6 daddr map @onward6 vmap @ingress-profiles
func serverChain() chain {
	return chain{table: inet, name: chainServer, rules: []rule{
		toProfile(desired.Ingress)(v4.inputAndDestination(ingress(v4), keyReg), ingress(v4)),
		toProfile(desired.Ingress)(v6.inputAndDestination(ingress(v6), keyReg), ingress(v6)),
		toProfile(desired.Ingress)(v4.inputAndDestination(onward(v4), keyReg), onward(v4)),
		toProfile(desired.Ingress)(v6.inputAndDestination(onward(v6), keyReg), onward(v6)),
	}}
}

// outputChain, at output, judges what has an ID: IPVS sent that on. It is judged as in forward,
// unless the node itself sends it: from a socket, or without one from an address of its own. Those
// bits are another program's, and stay.
//
//	meta mark & 0xffff0000 == 0x00000000 accept
//	meta skuid >= 0 accept
//	fib saddr type local accept
//	meta l4proto udp th dport { 4789, 8472 } meta mark & 0xffff0000 != 0x00010000 jump encapsulated
//	meta mark & 0xffff0000 != 0x00010000 jump egress
//	jump ingress
//	ct mark set ct mark & 0x0000ffff | 0x00010000
//	meta mark set meta mark & 0x0000ffff
func outputChain(s desired.State) chain {
	none, outside, epoch := s.Layout.ID(mark.None), s.Layout.ID(mark.Outside), s.Layout.Mark(s.Epoch)
	return chain{table: inet, name: chainOutput, hook: &hookOutput, rules: slices.Concat(
		rules(on(markIs(none), accept()), on(hasSocket(), accept()), on(fromLocal(), accept())),
		wrappedInUDP(s.Tunnels, markIsNot(outside), jump(chainEncapsulated)),
		rules(
			on(markIsNot(outside), jump(chainEgress)),
			on(jump(chainIngress)),
			on(setEpoch(epoch)),
			on(setMark(none)),
		),
	)}
}
