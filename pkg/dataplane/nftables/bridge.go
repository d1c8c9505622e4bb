package nftables

import (
	"fmt"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/desired"
)

// How much of ARP, neighbour discovery and MLD a bridge port may send: they reach every
// port of the bridge, and no policy is asked about them.
const (
	pacePerSecond = 100
	paceBurst     = 300
	paceKept      = time.Minute
	// Bytes after the IPv6 header: a solicitation has 24 and options (RFC 4861, RFC 7527),
	// a report has a record of 20 for each group (RFC 3810).
	longestSolicitation = 48
	longestReport       = 512
)

// The static chains of table bridge, in the order in which a frame comes to them.

// bridgeChain, at prerouting of the bridge, guards a frame of an endpoint's port. On any port else
// nobody sends from, answers for, or takes for its own, an endpoint's address.
//
//	iif @ports jump guard
//	ether type { 8021q, 8021ad } jump tagged
//	ether type ip ip saddr @claimed4 jump spoofed-frames
//	ether type ip6 ip6 saddr @claimed6 jump spoofed-frames
//	ether type arp arp saddr ip @claimed4 jump spoofed-frames
//	ether type ip6 icmpv6 type 136 @th,64,128 @claimed6 jump spoofed-frames
//	ether type ip6 ip6 saddr :: icmpv6 type 135 @th,64,128 @claimed6 jump spoofed-frames
//	ether type arp arp saddr ip 0.0.0.0 arp daddr ip @claimed4 jump spoofed-frames
func bridgeChain() chain {
	return chain{table: bridge, name: chainBridge, hook: &hookBridge, rules: rules(
		on(in(input(), ports()), jump(chainGuard)),
		on(tagged(), jump(chainTagged)),
		on(ip, in(bare("ip saddr", v4.address(true, reg)), claimed(v4)), jump(chainFrames)),
		on(ip6, in(bare("ip6 saddr", v6.address(true, reg)), claimed(v6)), jump(chainFrames)),
		on(arp, in(bare("arp saddr ip", arpAddress(reg)), claimed(v4)), jump(chainFrames)),
		on(ip6, advertisement(), in(bare("@th,64,128", target(reg)), claimed(v6)), jump(chainFrames)),
		on(ip6, fromNobody(), solicitation(), in(bare("@th,64,128", target(reg)), claimed(v6)), jump(chainFrames)),
		on(arp, probe("arp saddr ip 0.0.0.0"), in(bare("arp daddr ip", arpTarget(reg)), claimed(v4)), jump(chainFrames)),
	)}
}

// taggedChain holds what comes after a VLAN tag to what bridgeChain does. A tag that names no VLAN,
// or the one that the port is in, is gone when the node's IP gets the frame. So it is with one
// behind another. A bridge that filters VLANs takes the tag off before the frame leaves, but br_netfilter
// does not hand to IP what has come behind one: isolated endpoints do not get it.
//
//	@ll,128,16 0x0800 ether daddr . @nh,128,32 @untagged4 goto stray-frames
//	@ll,128,16 0x86dd ether daddr . @nh,192,128 @untagged6 goto stray-frames
//	@ll,128,16 0x0800 @nh,96,32 @claimed4 goto spoofed-frames
//	@ll,128,16 0x86dd @nh,64,128 @claimed6 goto spoofed-frames
//	@ll,128,16 0x0806 @nh,112,32 @claimed4 goto spoofed-frames
//	@ll,128,16 0x86dd icmpv6 type 136 @th,64,128 @claimed6 goto spoofed-frames
//	@ll,128,16 0x86dd ip6 saddr :: icmpv6 type 135 @th,64,128 @claimed6 goto spoofed-frames
//	@ll,128,16 0x0806 @nh,112,32 0.0.0.0 @nh,192,32 @claimed4 goto spoofed-frames
//	@ll,128,16 0x8100 @ll,144,16 & 0xfff == 0x0 goto spoofed-frames
//	@ll,128,16 0x88a8 @ll,144,16 & 0xfff == 0x0 goto spoofed-frames
func taggedChain() chain {
	return chain{table: bridge, name: chainTagged, rules: rules(
		on(behindTag(unix.ETH_P_IP), untagged(v4).receives("@nh,128,32", v4.address(false, reg)), gotoChain(chainStray)),
		on(behindTag(unix.ETH_P_IPV6), untagged(v6).receives("@nh,192,128", v6.address(false, reg)), gotoChain(chainStray)),
		on(behindTag(unix.ETH_P_IP), in(bare("@nh,96,32", v4.address(true, reg)), claimed(v4)), gotoChain(chainFrames)),
		on(behindTag(unix.ETH_P_IPV6), in(bare("@nh,64,128", v6.address(true, reg)), claimed(v6)), gotoChain(chainFrames)),
		on(behindTag(unix.ETH_P_ARP), in(bare("@nh,112,32", arpAddress(reg)), claimed(v4)), gotoChain(chainFrames)),
		on(behindTag(unix.ETH_P_IPV6), advertisement(), in(bare("@th,64,128", target(reg)), claimed(v6)),
			gotoChain(chainFrames)),
		on(behindTag(unix.ETH_P_IPV6), fromNobody(), solicitation(), in(bare("@th,64,128", target(reg)), claimed(v6)),
			gotoChain(chainFrames)),
		on(behindTag(unix.ETH_P_ARP), probe("@nh,112,32 0.0.0.0"), in(bare("@nh,192,32", arpTarget(reg)), claimed(v4)),
			gotoChain(chainFrames)),
		on(behindTag(unix.ETH_P_8021Q), innerNoVLAN(), gotoChain(chainFrames)),
		on(behindTag(unix.ETH_P_8021AD), innerNoVLAN(), gotoChain(chainFrames)),
	)}
}

// guardChain drops what an endpoint's port must not send. What is neither IP nor ARP is dropped,
// tagged frames with it: br_netfilter does not read what is after a tag. So is what tells others
// where to send: redirects, and the queries and advertisements of routers. nftables does not read
// what is after an authentication header, and ip6tables does: IPv6 with one is dropped.
//
//	ether type ip icmp type 5 goto spoofed-frames
//	ether type ip igmp type { 0x11, 0x30, 0x31, 0x32 } goto spoofed-frames
//	ether type ip meta l4proto 103 goto spoofed-frames
//	ether type ip iif . ether saddr . ip saddr @own4 accept
//	ether type arp goto arp-own
//	ether type ip6 icmpv6 type { 130, 131, 132, 133, 134, 135, 136, 137, 143, 151, 152, 153 } goto nd
//	ether type ip6 meta l4proto 51 goto spoofed-frames
//	ether type ip6 iif . ether saddr . ip6 saddr @own6 accept
//	ether type ip ip saddr @claimed4 goto spoofed-frames
//	ether type ip6 ip6 saddr @claimed6 goto spoofed-frames
//	ether type ip iif . ether saddr . ip saddr @routers4 accept
//	ether type ip6 iif . ether saddr . ip6 saddr @routers6 accept
//	goto spoofed-frames
func guardChain() chain {
	return chain{table: bridge, name: chainGuard, rules: rules(
		on(ip, v4.icmpTypes(nil, 5), gotoChain(chainFrames)),
		on(ip, igmpOfRouters(), gotoChain(chainFrames)),
		on(ip, protocols(desired.PIM), gotoChain(chainFrames)),
		on(ip, fromOwn4(v4.address(true, reg), "ip saddr"), accept()),
		on(arp, gotoChain(chainARP)),
		on(ip6, v6.icmpTypes(nil, 130, 131, 132, 133, 134, 135, 136, 137, 143, 151, 152, 153), gotoChain(chainND)),
		on(ip6, protocols(unix.IPPROTO_AH), gotoChain(chainFrames)),
		on(ip6, own(v6).holds("iif . ether saddr . ip6 saddr", expr.MetaKeyIIF, sender(), v6.address(true, reg)), accept()),
		on(ip, in(bare("ip saddr", v4.address(true, reg)), claimed(v4)), gotoChain(chainFrames)),
		on(ip6, in(bare("ip6 saddr", v6.address(true, reg)), claimed(v6)), gotoChain(chainFrames)),
		on(ip, routers(v4).holds("iif . ether saddr . ip saddr", expr.MetaKeyIIF, sender(), v4.address(true, reg)), accept()),
		on(ip6, routers(v6).holds("iif . ether saddr . ip6 saddr", expr.MetaKeyIIF, sender(), v6.address(true, reg)),
			accept()),
		on(gotoChain(chainFrames)),
	)}
}

// fromOwn4 matches what has the MAC address of the endpoint whose port it comes in by, and one of
// its IPv4 addresses.
func fromOwn4(address *expr.Payload, text string) part {
	return own(v4).holds("iif . ether saddr . "+text, expr.MetaKeyIIF, sender(), address)
}

// arpChain accepts an ARP of IPv4 over Ethernet, whose sender is the endpoint, with nothing behind
// its end but the zeros that fill up an Ethernet frame.
//
//	update @pace { iif timeout 1m limit rate over 100/second burst 300 packets } goto spoofed-frames
//	ether type arp arp htype 1 arp ptype ip arp hlen 6 arp plen 4 iif . ether saddr . arp saddr ip @own4 iif . arp saddr ether . arp saddr ip @own4 meta length 28 accept
//	... meta length 46 @nh,224,128 0 @nh,352,16 0 accept
//	goto spoofed-frames
func arpChain() chain {
	ethernet := part{text: "arp htype 1 arp ptype ip arp hlen 6 arp plen 4", exprs: []any{
		payload(expr.PayloadBaseNetworkHeader, 0, 6, reg), equal(0, 1, 8, 0, 6, 4),
	}}
	byFrame := fromOwn4(arpAddress(reg), "arp saddr ip")
	bySender := own(v4).holds("iif . arp saddr ether . arp saddr ip", expr.MetaKeyIIF,
		payload(expr.PayloadBaseNetworkHeader, 8, 6, reg), arpAddress(reg))
	padding := part{text: "@nh,224,128 0 @nh,352,16 0", exprs: []any{
		payload(expr.PayloadBaseNetworkHeader, 28, 16, reg), equal(make([]byte, 16)...),
		payload(expr.PayloadBaseNetworkHeader, 44, 2, reg), equal(0, 0),
	}}
	return chain{table: bridge, name: chainARP, rules: rules(
		on(tooFast(), gotoChain(chainFrames)),
		on(arp, ethernet, byFrame, bySender, frameLength(28), accept()),
		on(arp, clone(ethernet), clone(byFrame), clone(bySender), frameLength(46), padding, accept()),
		on(gotoChain(chainFrames)),
	)}
}

// ndChain holds what finds neighbours to what it is for. It has no fragments (RFC 6980). Who has no
// address yet asks whether another has the one that it is about to take, and who hears that for an
// address of its own does not use it (RFC 4862 5.4.3): so it is one of the endpoint's.
//
//	update @pace { iif timeout 1m limit rate over 100/second burst 300 packets } goto spoofed-frames
//	exthdr frag exists goto spoofed-frames
//	ether type ip6 ip6 saddr :: icmpv6 type 133 ip6 hoplimit 255 ip6 length 8-48 iif . ether saddr . ip6 saddr @link6 accept
//	ether type ip6 ip6 saddr :: icmpv6 type 135 ip6 hoplimit 255 ip6 length 8-48 iif . ether saddr . @th,64,128 @own6 accept
//	ether type ip6 ip6 saddr :: icmpv6 type 135 ip6 hoplimit 255 ip6 length 8-48 iif . ether saddr . @th,64,128 @link6 accept
//	ether type ip6 ip6 saddr :: icmpv6 type { 131, 132, 143 } ip6 hoplimit 1 ip6 length 8-512 iif . ether saddr . ip6 saddr @link6 accept
//	ether type ip6 ip6 saddr :: goto spoofed-frames
//	ether type ip6 iif . ether saddr . ip6 saddr @own6 goto nd-own
//	ether type ip6 iif . ether saddr . ip6 saddr @link6 goto nd-own
//	goto spoofed-frames
func ndChain() chain {
	takes := func(s set) []part {
		return on(ip6, fromNobody(), solicitation(), bareHopLimit(255), upTo(longestSolicitation),
			s.holds("iif . ether saddr . @th,64,128", expr.MetaKeyIIF, sender(), target(reg)), accept())
	}
	from := func(s set) part {
		return s.holds("iif . ether saddr . ip6 saddr", expr.MetaKeyIIF, sender(), v6.address(true, reg))
	}
	return chain{table: bridge, name: chainND, rules: rules(
		on(tooFast(), gotoChain(chainFrames)),
		on(fragment(), gotoChain(chainFrames)),
		on(ip6, fromNobody(), v6.icmpTypes(nil, 133), bareHopLimit(255), upTo(longestSolicitation), from(linkLocals()),
			accept()),
		takes(own(v6)),
		takes(linkLocals()),
		on(ip6, fromNobody(), v6.icmpTypes(nil, 131, 132, 143), bareHopLimit(1), upTo(longestReport), from(linkLocals()),
			accept()),
		on(ip6, fromNobody(), gotoChain(chainFrames)),
		on(ip6, from(own(v6)), gotoChain(chainNDOwn)),
		on(ip6, from(linkLocals()), gotoChain(chainNDOwn)),
		on(gotoChain(chainFrames)),
	)}
}

// ndOwnChain holds an endpoint that speaks under its own address to that address: an
// advertisement is of it, and names the endpoint's MAC address or none.
//
//	ether type ip6 icmpv6 type { 133, 135 } ip6 hoplimit 255 ip6 length 8-48 accept
//	ether type ip6 icmpv6 type { 131, 132, 143 } ip6 hoplimit 1 ip6 length 8-512 accept
//	ether type ip6 icmpv6 type 136 ip6 hoplimit 255 ip6 length 24 iif . ether saddr . @th,64,128 @own6 accept
//	ether type ip6 icmpv6 type 136 ip6 hoplimit 255 ip6 length 32 @th,192,16 0x0201 iif . @th,208,48 . @th,64,128 @own6 accept
//	... @link6
//	goto spoofed-frames
func ndOwnChain() chain {
	list := [][]part{
		on(ip6, v6.icmpTypes(nil, 133, 135), bareHopLimit(255), upTo(longestSolicitation), accept()),
		on(ip6, v6.icmpTypes(nil, 131, 132, 143), bareHopLimit(1), upTo(longestReport), accept()),
	}
	option := part{
		text:  "@th,192,16 0x0201",
		exprs: []any{payload(expr.PayloadBaseTransportHeader, 24, 2, reg), equal(2, 1)},
	}
	for _, s := range []set{own(v6), linkLocals()} {
		list = append(list,
			on(ip6, advertisement(), bareHopLimit(255), exactly(24),
				s.holds("iif . ether saddr . @th,64,128", expr.MetaKeyIIF, sender(), target(reg)), accept()),
			on(ip6, advertisement(), bareHopLimit(255), exactly(32), clone(option),
				s.holds("iif . @th,208,48 . @th,64,128", expr.MetaKeyIIF, payload(expr.PayloadBaseTransportHeader, 26, 6, reg),
					target(reg)), accept()))
	}
	return chain{table: bridge, name: chainNDOwn, rules: rules(append(list, on(gotoChain(chainFrames)))...)}
}

// fromChain, at forward of the bridge, is for what goes from port to port. What is for routers
// goes to the bridge and to other machines, not to endpoints. What leaves with a tag is not
// handed to IP, so isolated endpoints do not send it. Where IP is not handed what goes from port
// to port, they neither send nor get it.
//
//	iif @ports oif @ports ether type ip6 icmpv6 type { 131, 132, 133, 143 } jump stray-frames
//	iif @confined ether type { 8021q, 8021ad } jump stray-frames
//	meta protocol ip oif @isolated jump stray-frames
//	meta protocol ip iif @confined jump stray-frames
//	meta protocol ip6 oif @isolated jump stray-frames
//	meta protocol ip6 iif @confined jump stray-frames
func fromChain(u desired.Unfiltered) chain {
	return chain{table: bridge, name: chainFrom, hook: &hookBetween, rules: slices.Concat(
		rules(
			on(in(input(), ports()), in(output(), ports()), ip6, v6.icmpTypes(nil, 131, 132, 133, 143), jump(chainStray)),
			on(in(input(), confined()), tagged(), jump(chainStray)),
		),
		unfiltered(u.IPv4, "ip", unix.ETH_P_IP),
		unfiltered(u.IPv6, "ip6", unix.ETH_P_IPV6),
	)}
}

// unfiltered drops frames of a protocol that IP is not handed, whatever VLAN they leave in.
func unfiltered(is bool, name string, proto uint16) []rule {
	if !is {
		return nil
	}
	of := func() part {
		return part{text: "meta protocol " + name, exprs: []any{load(expr.MetaKeyPROTOCOL, reg), equal(big16(proto)...)}}
	}
	return rules(on(of(), in(output(), isolated()), jump(chainStray)), on(of(), in(input(), confined()), jump(chainStray)))
}

// toChain, at postrouting of the bridge, is for what goes to isolated endpoints, from a port or
// from the node.
//
//	oif @isolated jump arrive
func toChain() chain {
	return chain{table: bridge, name: chainTo, hook: &hookTo, rules: rules(
		on(in(output(), isolated()), jump(chainArrive)),
	)}
}

// arriveChain lets in what policies are asked about: what goes to the endpoint's own addresses,
// where IP is handed the frame. Nothing else enters, but what finds neighbours.
//
//	ether type ip oif . ether daddr . ip daddr @own4 accept
//	ether type arp meta length 28-46 accept
//	ether type ip6 icmpv6 type { 133, 135, 136 } ip6 hoplimit 255 ip6 length != 8-48 goto stray-frames
//	ether type ip6 icmpv6 type 134 ip6 hoplimit 255 ip6 length != 8-512 goto stray-frames
//	ether type ip6 oif . ether daddr . ip6 daddr @own6 accept
//	ether type ip6 icmpv6 type { 134, 135, 136 } ip6 hoplimit 255 accept
//	ether type ip6 icmpv6 type 130 ip6 hoplimit 1 ip6 length 8-512 ip6 daddr ff02::/16 accept
//	ether type ip ip daddr @claimed4 goto stray-frames
//	ether type ip6 ip6 daddr @claimed6 goto stray-frames
//	ether type ip oif . ether daddr . ip daddr @routers4 accept
//	ether type ip6 oif . ether daddr . ip6 daddr @routers6 accept
//	goto stray-frames
func arriveChain() chain {
	return chain{table: bridge, name: chainArrive, rules: rules(
		on(ip, own(v4).holds("oif . ether daddr . ip daddr", expr.MetaKeyOIF, receiver(), v4.address(false, reg)), accept()),
		on(arp, arpLength(), accept()),
		on(ip6, v6.icmpTypes(nil, 133, 135, 136), bareHopLimit(255), beyond(longestSolicitation), gotoChain(chainStray)),
		on(ip6, v6.icmpTypes(nil, 134), bareHopLimit(255), beyond(longestReport), gotoChain(chainStray)),
		on(ip6, own(v6).holds("oif . ether daddr . ip6 daddr", expr.MetaKeyOIF, receiver(), v6.address(false, reg)),
			accept()),
		on(ip6, v6.icmpTypes(nil, 134, 135, 136), bareHopLimit(255), accept()),
		on(ip6, v6.icmpTypes(nil, 130), bareHopLimit(1), upTo(longestReport),
			linkMulticast(bare("ip6 daddr", v6.address(false, reg))), accept()),
		on(ip, in(bare("ip daddr", v4.address(false, reg)), claimed(v4)), gotoChain(chainStray)),
		on(ip6, in(bare("ip6 daddr", v6.address(false, reg)), claimed(v6)), gotoChain(chainStray)),
		on(ip, routers(v4).holds("oif . ether daddr . ip daddr", expr.MetaKeyOIF, receiver(), v4.address(false, reg)),
			accept()),
		on(ip6, routers(v6).holds("oif . ether daddr . ip6 daddr", expr.MetaKeyOIF, receiver(), v6.address(false, reg)),
			accept()),
		on(gotoChain(chainStray)),
	)}
}

// What a frame holds.
var (
	ip  = etherType("ip", unix.ETH_P_IP)
	arp = etherType("arp", unix.ETH_P_ARP)
	ip6 = etherType("ip6", unix.ETH_P_IPV6)
)

func etherType(name string, proto uint16) part {
	return part{
		text:  "ether type " + name,
		exprs: []any{payload(expr.PayloadBaseLLHeader, 12, 2, reg), equal(big16(proto)...)},
	}
}

// bare loads a field of a packet whose family the frame's type has told.
func bare(text string, field *expr.Payload) part { return part{text: text, exprs: []any{field}} }

// arpAddress is the IPv4 address of an ARP's sender.
func arpAddress(to uint32) *expr.Payload { return payload(expr.PayloadBaseNetworkHeader, 14, 4, to) }

// arpTarget is the one that it asks for.
func arpTarget(to uint32) *expr.Payload { return payload(expr.PayloadBaseNetworkHeader, 24, 4, to) }

// probe matches ARP of who is about to take the address that it asks for (RFC 5227).
func probe(text string) part {
	return part{text: text, exprs: []any{arpAddress(reg), equal(0, 0, 0, 0)}}
}

// advertisement matches neighbour advertisements, solicitation what they answer; target is
// whose address they are of.
func advertisement() part { return v6.icmpTypes(nil, 136) }

func solicitation() part { return v6.icmpTypes(nil, 135) }

// fromNobody matches what comes from the unspecified address.
func fromNobody() part {
	return part{text: "ip6 saddr ::", exprs: []any{v6.address(true, reg), equal(make([]byte, 16)...)}}
}

// fragment matches what has an IPv6 header for fragments, anywhere.
func fragment() part {
	return part{text: "exthdr frag exists", exprs: []any{
		&expr.Exthdr{
			DestRegister: reg, Type: unix.IPPROTO_FRAGMENT, Len: 1, Op: expr.ExthdrOpIpv6,
			Flags: unix.NFT_EXTHDR_F_PRESENT,
		}, equal(1),
	}}
}

// tagged matches frames with a VLAN tag.
func tagged() part {
	return oneOf(part{text: "ether type", exprs: []any{payload(expr.PayloadBaseLLHeader, 12, 2, reg)}},
		nftables.TypeEtherType, []value{
			{text: "8021q", first: big16(unix.ETH_P_8021Q), last: big16(unix.ETH_P_8021Q)},
			{text: "8021ad", first: big16(unix.ETH_P_8021AD), last: big16(unix.ETH_P_8021AD)},
		})
}

// behindTag matches what has a type after one tag.
func behindTag(proto uint16) part {
	return part{
		text:  fmt.Sprintf("@ll,128,16 %#04x", proto),
		exprs: []any{payload(expr.PayloadBaseLLHeader, 16, 2, reg), equal(big16(proto)...)},
	}
}

// innerNoVLAN matches a second tag that names no VLAN.
func innerNoVLAN() part {
	return part{text: "@ll,144,16 & 0xfff == 0x0", exprs: []any{
		payload(expr.PayloadBaseLLHeader, 18, 2, reg),
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 2, Mask: []byte{0x0f, 0xff}, Xor: []byte{0, 0}},
		equal(0, 0),
	}}
}

func target(to uint32) *expr.Payload { return payload(expr.PayloadBaseTransportHeader, 8, 16, to) }

// igmpOfRouters matches queries (RFC 3376) and what finds multicast routers (RFC 4286): a
// bridge sends all multicast to a port where it hears one, or a PIM hello
// (br_multicast_pim, net/bridge/br_multicast.c).
func igmpOfRouters() part {
	number := nftables.TypeInteger
	number.Bytes = 1
	values := bytesOf([]uint8{0x11, 0x30, 0x31, 0x32})
	for i, v := range values {
		values[i].text = fmt.Sprintf("%#x", v.first[0])
	}
	kind := part{text: "igmp type", exprs: append(protocols(unix.IPPROTO_IGMP).exprs,
		payload(expr.PayloadBaseTransportHeader, 0, 1, reg))}
	return oneOf(kind, number, values)
}

// tooFast matches what is beyond the pace of its bridge port.
func tooFast() part {
	return part{
		text: fmt.Sprintf("update @%s { iif timeout 1m limit rate over %d/second burst %d packets }", pace().name, pacePerSecond, paceBurst),
		exprs: append(input().exprs, &expr.Dynset{
			SrcRegKey: reg, SetName: pace().name, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: paceKept,
			Exprs: []expr.Any{&expr.Limit{
				Type: expr.LimitTypePkts, Rate: pacePerSecond, Unit: expr.LimitTimeSecond,
				Burst: paceBurst, Over: true,
			}},
		}),
	}
}

// frameLength matches the bytes of a frame after its Ethernet header.
func frameLength(n uint32) part {
	return part{text: fmt.Sprintf("meta length %d", n), exprs: []any{load(expr.MetaKeyLEN, reg), equal(native(n)...)}}
}

func bareHopLimit(n byte) part {
	return part{
		text:  fmt.Sprintf("ip6 hoplimit %d", n),
		exprs: []any{payload(expr.PayloadBaseNetworkHeader, 7, 1, reg), equal(n)},
	}
}

// exactly, upTo and beyond match the bytes after the IPv6 header. None, 0, is beyond: it is
// that of a jumbogram, or of anything.
func exactly(n uint16) part {
	return part{text: fmt.Sprintf("ip6 length %d", n), exprs: []any{ip6Length(), equal(big16(n)...)}}
}

func upTo(n uint16) part {
	return part{text: fmt.Sprintf("ip6 length 8-%d", n), exprs: []any{
		ip6Length(), &expr.Range{Op: expr.CmpOpEq, Register: reg, FromData: big16(8), ToData: big16(n)},
	}}
}

func beyond(n uint16) part {
	return part{text: fmt.Sprintf("ip6 length != 8-%d", n), exprs: []any{
		ip6Length(), &expr.Range{Op: expr.CmpOpNeq, Register: reg, FromData: big16(8), ToData: big16(n)},
	}}
}

// arpLength matches ARP frames that are no longer than Ethernet's shortest. The kernel has
// lengths in the order of its own bytes, in which ranges do not compare.
func arpLength() part {
	return part{text: "meta length 28-46", exprs: []any{
		load(expr.MetaKeyLEN, reg), &expr.Byteorder{
			SourceRegister: reg, DestRegister: reg, Op: expr.ByteorderHton, Len: 4,
			Size: 4,
		},
		&expr.Range{Op: expr.CmpOpEq, Register: reg, FromData: []byte{0, 0, 0, 28}, ToData: []byte{0, 0, 0, 46}},
	}}
}

func ip6Length() *expr.Payload { return payload(expr.PayloadBaseNetworkHeader, 4, 2, reg) }
