package nftables

import (
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/apply/counters"
	"github.com/podmark/podmark/pkg/apply/port"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
)

// Where our base chains stand among the others, in the order of a packet's way:
//
//	bridge prerouting  -200 bridge-ports          0 br_netfilter hands the frame to IP
//	input              -150 input                98 IPVS, 100 nat, 101 host
//	forward            -150 forward              99 IPVS (replies)
//	output             -151 output             -150 iptables' mangle: others may change the mark there
//	                    101 unmark                0 filter, behind which nobody looks for an ID
var (
	hookBridge  = hook{nftables.ChainHookPrerouting, -200, "type filter hook prerouting priority filter; policy accept;"}
	hookInput   = hook{nftables.ChainHookInput, -150, "type filter hook input priority mangle; policy accept;"}
	hookHost    = hook{nftables.ChainHookInput, 101, "type filter hook input priority 101; policy accept;"}
	hookForward = hook{nftables.ChainHookForward, -150, "type filter hook forward priority mangle; policy accept;"}
	hookOutput  = hook{nftables.ChainHookOutput, -151, "type filter hook output priority mangle - 1; policy accept;"}
	hookUnmark  = hook{nftables.ChainHookOutput, 101, "type filter hook output priority 101; policy accept;"}
)

// frameUses lists the static chains, each with how many rules it has and jumps and
// gotos that lead to it, as the kernel counts them; logs are those of the rules that a
// kernel which cannot log is not given. An ADD asks for the counts and renders no
// frame: that takes longer than the kernel's answer.
var frameUses = []struct {
	chain
	uses, logs int
}{
	{chain{table: inet, name: chainTracked}, 5, 0},
	{chain{table: inet, name: chainClassify}, 9, 0},
	{chain{table: inet, name: chainOrigin}, 8, 0},
	{chain{table: inet, name: chainEgress}, 4, 0},
	{chain{table: inet, name: chainIngress}, 5, 0},
	{chain{table: inet, name: chainSpoofed}, 8, 1},
	{chain{table: inet, name: chainUnclassified}, 4, 1},
	{chain{table: inet, name: chainInput}, 6, 0},
	{chain{table: inet, name: chainHost}, 4, 0},
	{chain{table: inet, name: chainForward}, 7, 0},
	{chain{table: inet, name: chainOutput}, 7, 0},
	{chain{table: inet, name: chainUnmark}, 1, 0},
	{chain{table: bridge, name: chainBridge}, 1, 0},
	{chain{table: bridge, name: chainGuard}, 8, 0},
	{chain{table: bridge, name: chainFrames}, 4, 1},
}

// frame renders the static chains: all that does not depend on who is on the node.
func frame(s desired.State) []chain {
	none, outside, epoch := s.Layout.ID(mark.None), s.Layout.ID(mark.Outside), s.Layout.Mark(s.Epoch)
	// What was judged before passes: flows that were allowed under the current
	// epoch, replies, and what is related to a flow. So do neighbour discovery and
	// MLD. Each of the hooks has these rules: a chain of their own would cost a
	// packet more. A jump, because the end of a chain that a hook goes to is the
	// hook's end, which accepts.
	//
	//	ct mark & 0xffff0000 == 0x00010000 accept
	//	ct state established,related jump tracked
	//	icmpv6 type { 130, 131, 132, 133, 134, 135, 136, 137, 143 } accept
	live := rules(
		on(epochIs(epoch), accept()),
		on(establishedOrRelated(), jump(chainTracked)),
		on(icmpv6Types(v6.is(), desired.NeighbourTypes...), accept()),
	)
	return []chain{
		//	ct direction reply accept
		//	ct state related accept
		{table: inet, name: chainTracked, rules: rules(
			on(reply(), accept()),
			on(related(), accept()),
		)},
		// The ID of where a packet comes from.
		//
		//	meta mark set meta mark & 0x0000ffff | iifname . ip saddr map @routed4 return
		//	...
		//	meta mark set meta mark & 0x0000ffff | 0x00010000
		{table: inet, name: chainClassify, rules: append(origin(func(key part, leads set) rule {
			return rule{on(setMarkFrom(s.Layout, key, leads), giveBack()), "by the ID in map " + leads.name}
		}), rule{parts: on(setMark(outside))})},
		// The egress profile of whom a packet comes from. A profile returns what it
		// allows; number 0 returns at once.
		//
		//	iifname . ip saddr map @routed4 vmap @egress-profiles
		//	...
		{table: inet, name: chainOrigin, rules: origin(toProfile(desired.Egress))},
		// The egress profile of who has the ID; one that nobody has is dropped.
		//
		//	meta nfproto . meta mark & 0xffff0000 map @egress vmap @egress-profiles
		//	goto unclassified
		{table: inet, name: chainEgress, rules: []rule{
			toProfile(desired.Egress)(familyAndID(s.Layout.Mask(), keyReg), egress()),
			{parts: on(goTo(chainUnclassified))},
		}},
		// The ingress profile of whom the packet goes to. What goes elsewhere
		// returns, but for a routed veth: an endpoint that is not complete yet, or
		// gone, gets nothing.
		//
		//	oifname . ip daddr map @ingress4 vmap @ingress-profiles
		//	oifname . ip6 daddr map @ingress6 vmap @ingress-profiles
		//	oifgroup 1886 goto unclassified
		{table: inet, name: chainIngress, rules: []rule{
			toProfile(desired.Ingress)(v4.outputAndDestination(keyReg), ingress(v4)),
			toProfile(desired.Ingress)(v6.outputAndDestination(keyReg), ingress(v6)),
			{parts: on(deviceGroup("oifgroup", expr.MetaKeyOIFGROUP, port.Group), goTo(chainUnclassified))},
		}},
		end(inet, chainSpoofed, counters.Spoofed, s.Unlogged),
		end(inet, chainUnclassified, counters.Unclassified, s.Unlogged),
		// Nothing is judged here: IPVS may take the packet and send it elsewhere.
		// What is not to be judged has no ID, whoever gave it one.
		//
		//	iifname "lo" accept
		//	meta mark & 0xffff0000 != 0x00000000 meta mark set meta mark & 0x0000ffff
		//	... live
		//	jump classify
		{table: inet, name: chainInput, hook: &hookInput, rules: slices.Concat(
			rules(on(loopback(), accept()), on(markIsNot(none), setMark(none))),
			live,
			rules(on(jump(chainClassify))),
		)},
		// What IPVS did not take is for a host process, behind a service address
		// or not. A flow to the host never gets the epoch: a service that appears
		// later may turn it into one to a pod, which must be judged.
		//
		//	iifname "lo" accept
		//	meta mark & 0xffff0000 == 0x00000000 accept
		//	meta mark & 0xffff0000 == 0x00010000 accept
		//	jump egress
		{table: inet, name: chainHost, hook: &hookHost, rules: rules(
			on(loopback(), accept()),
			on(markIs(none), accept()),
			on(markIs(outside), accept()),
			on(jump(chainEgress)),
		)},
		// Both ends are judged, and the flow gets the epoch. An ID here is somebody
		// else's doing, and does not go on.
		//
		//	meta mark & 0xffff0000 != 0x00000000 meta mark set meta mark & 0x0000ffff
		//	... live
		//	jump origin
		//	jump ingress
		//	ct mark set ct mark & 0x0000ffff | 0x00010000
		{table: inet, name: chainForward, hook: &hookForward, rules: slices.Concat(
			rules(on(markIsNot(none), setMark(none))),
			live,
			rules(on(jump(chainOrigin)), on(jump(chainIngress)), on(setEpoch(epoch))),
		)},
		// What has an ID here was sent on by IPVS, and is judged as in forward. A
		// reply of the node has one where net.ipv4.tcp_fwmark_accept is 1.
		//
		//	meta mark & 0xffff0000 == 0x00000000 accept
		//	... live
		//	meta mark & 0xffff0000 != 0x00010000 jump egress
		//	jump ingress
		//	ct mark set ct mark & 0x0000ffff | 0x00010000
		{table: inet, name: chainOutput, hook: &hookOutput, rules: slices.Concat(
			rules(on(markIs(none), accept())),
			live,
			rules(on(markIsNot(outside), jump(chainEgress)), on(jump(chainIngress)), on(setEpoch(epoch))),
		)},
		// A packet that is put into a tunnel does not hand its ID to the outer one.
		//
		//	meta mark & 0xffff0000 != 0x00000000 meta mark set meta mark & 0x0000ffff
		{table: inet, name: chainUnmark, hook: &hookUnmark, rules: rules(
			on(markIsNot(none), setMark(none)),
		)},
		//	iifname @ports jump guard
		{table: bridge, name: chainBridge, hook: &hookBridge, rules: rules(
			on(in(part{text: "iifname", exprs: []any{load(expr.MetaKeyIIFNAME, reg)}}, ports()), jump(chainGuard)),
		)},
		guard(),
		end(bridge, chainFrames, counters.Spoofed, s.Unlogged),
	}
}

// origin lists what is known about where a packet comes from: found is done with
// what comes from an endpoint. A routed veth is the endpoint's alone: on it an
// unknown address is somebody posing as another, or an endpoint that is not
// complete. On a bridge others may take the endpoint's address, and have another
// MAC address.
//
//	iifname . ip saddr map @routed4 FOUND
//	iifname . ip6 saddr map @routed6 FOUND
//	iifgroup 1886 goto spoofed
//	iifname . ether saddr . ip saddr map @bridged4 FOUND
//	iifname . ether saddr . ip6 saddr map @bridged6 FOUND
//	iifname . ip saddr @claimed4 goto spoofed
//	iifname . ip6 saddr @claimed6 goto spoofed
func origin(found func(key part, leads set) rule) []rule {
	return []rule{
		found(v4.inputAndSource(keyReg), routed(v4)),
		found(v6.inputAndSource(keyReg), routed(v6)),
		{parts: on(deviceGroup("iifgroup", expr.MetaKeyIIFGROUP, port.Group), goTo(chainSpoofed))},
		found(v4.inputMACAndSource(keyReg), bridged(v4)),
		found(v6.inputMACAndSource(keyReg), bridged(v6)),
		{parts: on(in(v4.inputAndSource(reg), claimed(v4)), goTo(chainSpoofed))},
		{parts: on(in(v6.inputAndSource(reg), claimed(v6)), goTo(chainSpoofed))},
	}
}

// end is a chain that drops what no policy is asked about, and logs it first. Only what
// ends there goes there, so the rest does not pay for it.
//
//	limit rate 10/second burst 50 packets log prefix "podmark:drop:spoofed" group 1886 snaplen 128
//	counter drop
func end(t nftables.Table, name string, why counters.Reason, unlogged bool) chain {
	c := chain{table: t, name: name}
	if !unlogged {
		c.rules = rules(logged(counters.Key{Reason: why}))
	}
	c.rules = append(c.rules, rule{parts: on(counter(), drop())})
	return c
}

// toProfile goes to the profile whose number leads holds for the key.
func toProfile(d desired.Direction) func(key part, leads set) rule {
	return func(key part, leads set) rule {
		return rule{on(lead(key, leads), follow(profiles(d))), "by the number in map " + leads.name}
	}
}

// guard holds an endpoint's bridge port to the endpoint's own MAC address and
// addresses: in what it sends, and in what it answers to who asks for them by
// ARP or neighbour discovery. It may speak of its link-local address, and of none
// at all, to its neighbours only. What is neither IP nor ARP is dropped, tagged
// frames with it: behind a tag br_netfilter does not look.
//
//	ether type ip iifname . ether saddr . ip saddr @own4 accept
//	ether type arp iifname . ether saddr . arp saddr ip @own4 accept
//	ether type ip6 icmpv6 type 136 iifname . ether saddr . @th,64,128 @own6 accept
//	ether type ip6 icmpv6 type 136 @th,64,16 & 0xffc0 != 0xfe80 goto spoofed-frames
//	ether type ip6 iifname . ether saddr . ip6 saddr @own6 accept
//	ether type ip6 ip6 saddr { ::, fe80::/10 } icmpv6 type { 130, 131, 132, 133, 134, 135, 136, 137, 143 } accept
//	goto spoofed-frames
func guard() chain {
	const ethIP, ethARP, ethIP6 = unix.ETH_P_IP, unix.ETH_P_ARP, unix.ETH_P_IPV6
	const answer = 136 // neighbour advertisement: whose address, 8 bytes on
	target := payload(expr.PayloadBaseTransportHeader, 8, 16, reg+6)
	notLinkLocal := part{text: "@th,64,16 & 0xffc0 != 0xfe80", exprs: []any{
		payload(expr.PayloadBaseTransportHeader, 8, 2, reg),
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 2, Mask: []byte{0xff, 0xc0}, Xor: []byte{0, 0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: []byte{0xfe, 0x80}},
	}}
	ip, ip6, arp := etherType("ip", ethIP), etherType("ip6", ethIP6), etherType("arp", ethARP)
	local, _ := blocks(v6, part{text: "ip6 saddr", exprs: []any{v6.address(true, reg)}},
		[]netip.Prefix{netip.MustParsePrefix("::/128"), netip.MustParsePrefix("fe80::/10")})
	return chain{table: bridge, name: chainGuard, rules: rules(
		on(ip, in(interfaceMACAnd("ip saddr", v4.address(true, reg+6), reg), own(v4)), accept()),
		on(arp, in(interfaceMACAnd("arp saddr ip", payload(expr.PayloadBaseNetworkHeader, 14, 4, reg+6), reg), own(v4)), accept()),
		on(ip6, icmpv6Types(nil, answer), in(interfaceMACAnd("@th,64,128", target, reg), own(v6)), accept()),
		on(ip6, icmpv6Types(nil, answer), notLinkLocal, goTo(chainFrames)),
		on(ip6, in(interfaceMACAnd("ip6 saddr", v6.address(true, reg+6), reg), own(v6)), accept()),
		on(ip6, local[0], icmpv6Types(nil, desired.NeighbourTypes...), accept()),
		on(goTo(chainFrames)),
	)}
}

func etherType(name string, proto uint16) part {
	return part{text: "ether type " + name, exprs: []any{payload(expr.PayloadBaseLLHeader, 12, 2, reg), equal(big16(proto)...)}}
}
