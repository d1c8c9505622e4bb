package nftables

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/dataplane/counters"
	"github.com/podmark/podmark/pkg/dataplane/droplog"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
)

// chain is a chain of one of our tables with its rules.
type chain struct {
	table nftables.Table
	name  string
	hook  *hook // nil but for base chains
	rules []rule
}

// hook is where a base chain is called from.
type hook struct {
	num      *nftables.ChainHook
	priority nftables.ChainPriority
	text     string
}

// rule is a list of matches and statements, and where it comes from.
type rule struct {
	parts   []part
	comment string
}

// part is one match or statement, as nft writes it and as the kernel has it.
// Every part loads what it looks at, so parts can be put in any order.
type part struct {
	text string
	// exprs are expr.Any or shift. A Lookup without a name is in set.
	exprs []any
	set   *constant
}

// constant is an anonymous set: it comes and goes with its rule.
type constant struct {
	key      nftables.SetDatatype
	interval bool
	elements []nftables.SetElement
}

// String is the rule as nft writes it.
func (r rule) String() string {
	words := make([]string, 0, len(r.parts)+1)
	for _, p := range r.parts {
		words = append(words, p.text)
	}
	if r.comment != "" {
		words = append(words, fmt.Sprintf("comment %q", r.comment))
	}
	return strings.Join(words, " ")
}

func rules(lists ...[]part) []rule {
	out := make([]rule, 0, len(lists))
	for _, parts := range lists {
		out = append(out, rule{parts: parts})
	}
	return out
}

func on(parts ...part) []part { return parts }

// The kernel's 32-bit registers: NFT_REG32_00 and on. An interface name takes 4,
// an IPv6 address 4, a MAC address 2, anything else here 1.
const reg = unix.NFT_REG32_00

// hex writes a mark with all its digits, as nft does.
func hex(v uint32) string { return fmt.Sprintf("0x%08x", v) }

func native(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

func big16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }

func equal(data ...byte) *expr.Cmp { return &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data} }

func load(key expr.MetaKey, to uint32) *expr.Meta { return &expr.Meta{Key: key, Register: to} }

func payload(base expr.PayloadBase, offset, length, to uint32) *expr.Payload {
	return &expr.Payload{OperationType: expr.PayloadLoad, Base: base, Offset: offset, Len: length, DestRegister: to}
}

// and keeps the bits of mask in register r.
func and(r, mask, xor uint32) *expr.Bitwise {
	return &expr.Bitwise{SourceRegister: r, DestRegister: r, Len: 4, Mask: native(mask), Xor: native(xor)}
}

// ctState matches a conntrack state: a packet has exactly one (nft_ct_get_eval).
func ctState(name string, bit uint32) part {
	return part{
		text:  "ct state == " + name,
		exprs: []any{&expr.Ct{Key: expr.CtKeySTATE, Register: reg}, equal(native(bit)...)},
	}
}

// ctEnd loads an address of the flow's tuples, an expression that the library does not
// have: in table inet it knows that of 16 bytes only.
type ctEnd struct {
	family
	reply bool
	to    uint32
}

// marshal encodes the expression as expr.Marshal does the others.
func (c ctEnd) marshal() ([]byte, error) {
	// enum nft_ct_keys in include/uapi/linux/netfilter/nf_tables.h, Linux 4.17
	key := uint32(21) // NFT_CT_SRC_IP6
	if c.ip4 {
		key = 19 // NFT_CT_SRC_IP
	}
	direction := byte(0)
	if c.reply {
		direction = 1
	}
	ae := netlink.NewAttributeEncoder()
	ae.String(unix.NFTA_EXPR_NAME, "ct")
	ae.Nested(unix.NFTA_EXPR_DATA, func(ae *netlink.AttributeEncoder) error {
		ae.ByteOrder = binary.BigEndian
		ae.Uint32(unix.NFTA_CT_DREG, c.to)
		ae.Uint32(unix.NFTA_CT_KEY, key)
		ae.Uint8(unix.NFTA_CT_DIRECTION, direction)
		return nil
	})
	return ae.Encode()
}

func related() part { return ctState("related", expr.CtStateBitRELATED) }

// begins matches what belongs to a flow that nobody has answered.
func begins() part { return ctState("new", expr.CtStateBitNEW) }

func established() part { return ctState("established", expr.CtStateBitESTABLISHED) }

// judged matches a packet of an answered flow that was allowed under the epoch. What is
// merely related has the mark of another flow: an error has that of the flow that it is
// about, and what a helper expects begins with that of the flow which announced it
// (init_conntrack).
func judged(epoch mark.Mark) part {
	p, of := established(), epochIs(epoch)
	return part{text: of.text + " " + p.text, exprs: append(of.exprs, p.exprs...)}
}

func reply() part {
	const ctReply = 1 // IP_CT_DIR_REPLY
	return part{
		text:  "ct direction reply",
		exprs: []any{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg}, equal(ctReply)},
	}
}

// epochIs matches the policy epoch a flow carries.
func epochIs(epoch mark.Mark) part {
	return part{text: fmt.Sprintf("ct mark & %s == %s", hex(epoch.Mask), hex(epoch.Value)), exprs: []any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: reg}, and(reg, epoch.Mask, 0), equal(native(epoch.Value)...),
	}}
}

func setEpoch(epoch mark.Mark) part {
	return part{text: fmt.Sprintf("ct mark set ct mark & %s | %s", hex(^epoch.Mask), hex(epoch.Value)), exprs: []any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: reg}, and(reg, ^epoch.Mask, epoch.Value),
		&expr.Ct{Key: expr.CtKeyMARK, Register: reg, SourceRegister: true},
	}}
}

// setMark writes m to the bits of its mask and leaves the others.
func setMark(m mark.Mark) part {
	text := "meta mark set meta mark & " + hex(^m.Mask)
	if m.Value != 0 {
		text += " | " + hex(m.Value)
	}
	return part{text: text, exprs: []any{
		load(expr.MetaKeyMARK, reg), and(reg, ^m.Mask, m.Value),
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg, SourceRegister: true},
	}}
}

// maskedMark loads the bits of the packet's fwmark that are ours.
func maskedMark(mask, to uint32) part {
	return part{text: "meta mark & " + hex(mask), exprs: []any{load(expr.MetaKeyMARK, to), and(to, mask, 0)}}
}

// familyAndID loads the family and the bits of the packet's fwmark that are ours.
func familyAndID(mask, to uint32) part {
	p := maskedMark(mask, to+1)
	return part{text: "meta nfproto . " + p.text, exprs: append([]any{load(expr.MetaKeyNFPROTO, to)}, p.exprs...)}
}

func markIs(m mark.Mark) part {
	p := maskedMark(m.Mask, reg)
	p.text += " == " + hex(m.Value)
	p.exprs = append(p.exprs, equal(native(m.Value)...))
	return p
}

func markIsNot(m mark.Mark) part {
	p := maskedMark(m.Mask, reg)
	p.text += " != " + hex(m.Value)
	p.exprs = append(p.exprs, &expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: native(m.Value)})
	return p
}

// hasSocket matches what a socket of this network namespace sends. A packet that IPVS
// sends on has none (ip_vs_drop_early_demux_sk), nor has any that is forwarded.
func hasSocket() part {
	return part{text: "meta skuid >= 0", exprs: []any{
		load(expr.MetaKeySKUID, reg), &expr.Cmp{Op: expr.CmpOpGte, Register: reg, Data: native(0)},
	}}
}

// fromLocal matches a source address of the node's own.
func fromLocal() part {
	return part{text: "fib saddr type local", exprs: []any{
		&expr.Fib{Register: reg, ResultADDRTYPE: true, FlagSADDR: true}, equal(native(unix.RTN_LOCAL)...),
	}}
}

// What leads to a profile is found in two steps: leads maps a key to an ID and a
// number, and the number, in a map of its direction, leads to a chain. So no
// chain is led to by an endpoint: see the package.
//
// nft 1.0.6 aborts when it lists a look-up of what a look-up found. So the first
// writes to the register before its key: the kernel then has the number where
// nft believes the key to be, and shows a look-up of the key.
const (
	idReg  = reg
	keyReg = idReg + 1 // where the key begins, then the number
)

// mapTo looks what key has loaded up in leads.
func mapTo(key part, leads set) part {
	key.exprs = append(key.exprs, &expr.Lookup{
		SourceRegister: keyReg, DestRegister: idReg, IsDestRegSet: true,
		SetName: leads.name,
	})
	key.text += " map @" + leads.name
	return key
}

// vmap goes where profiles sends the number that lead has found.
func vmap(profiles set) part {
	return part{
		text:  "vmap @" + profiles.name,
		exprs: []any{&expr.Lookup{SourceRegister: keyReg, SetName: profiles.name, IsDestRegSet: true}},
	}
}

// in matches what key has loaded if the set holds it.
func in(key part, s set) part {
	key.text += " @" + s.name
	key.exprs = append(key.exprs, &expr.Lookup{SourceRegister: reg, SetName: s.name})
	return key
}

// loopback matches what the node sends to itself: lo is the first link of every network
// namespace, and can be neither renamed nor deleted.
func loopback() part {
	return part{text: "iif 1", exprs: []any{load(expr.MetaKeyIIF, reg), equal(native(1)...)}}
}

// input and output load the number of the link by which a packet came in, or leaves.
func input() part { return part{text: "iif", exprs: []any{load(expr.MetaKeyIIF, reg)}} }

func output() part { return part{text: "oif", exprs: []any{load(expr.MetaKeyOIF, reg)}} }

func deviceGroup(word string, key expr.MetaKey, group uint32) part {
	return part{text: fmt.Sprintf("%s %d", word, group), exprs: []any{load(key, reg), equal(native(group)...)}}
}

// is limits a rule to packets of the family. nft leaves it out where an address
// says it.
func (f family) is() []any {
	return []any{load(expr.MetaKeyNFPROTO, reg), equal(f.number())}
}

// only matches packets of the family.
func (f family) only() part { return part{text: "meta nfproto ipv" + f.digit, exprs: f.is()} }

// number is the family as the kernel numbers it.
func (f family) number() byte {
	if f.ip4 {
		return unix.NFPROTO_IPV4
	}
	return unix.NFPROTO_IPV6
}

// word is the family as nft names it in front of a header field.
func (f family) word() string {
	if f.ip4 {
		return "ip"
	}
	return "ip6"
}

// address loads the source or the destination address.
func (f family) address(source bool, to uint32) *expr.Payload {
	offset := map[[2]bool]uint32{
		{true, true}: 12, {true, false}: 16, {false, true}: 8,
		{false, false}: 24,
	}[[2]bool{f.ip4, source}]
	return payload(expr.PayloadBaseNetworkHeader, offset, f.addr.Bytes, to)
}

func (f family) src() part {
	return part{text: f.word() + " saddr", exprs: append(f.is(), f.address(true, reg))}
}

func (f family) dst() part {
	return part{text: f.word() + " daddr", exprs: append(f.is(), f.address(false, reg))}
}

// source loads the source address.
func (f family) source(to uint32) part {
	return part{text: f.word() + " saddr", exprs: append(f.is(), f.address(true, to))}
}

// inputAndSource loads the number of the input interface and the source address, as s
// has them.
func (f family) inputAndSource(s set, to uint32) part {
	return f.linkAnd("iif", expr.MetaKeyIIF, true, s, to)
}

// outputAndSource loads that of the output interface and the source address.
func (f family) outputAndSource(s set, to uint32) part {
	return f.linkAnd("oif", expr.MetaKeyOIF, true, s, to)
}

// inputAndDestination loads that of the input interface and the destination address.
func (f family) inputAndDestination(s set, to uint32) part {
	return f.linkAnd("iif", expr.MetaKeyIIF, false, s, to)
}

// outputAndDestination loads that of the output interface and the destination address.
func (f family) outputAndDestination(s set, to uint32) part {
	return f.linkAnd("oif", expr.MetaKeyOIF, false, s, to)
}

func (f family) linkAnd(word string, key expr.MetaKey, source bool, s set, to uint32) part {
	side := "daddr"
	if source {
		side = "saddr"
	}
	return part{
		text:  fmt.Sprintf("%s . %s %s", word, f.word(), side),
		exprs: append(append(f.is(), s.link(key, to)...), f.address(source, to+1)),
	}
}

// link loads the number of a link as the keys of s have it: nft takes those of intervals
// for numbers in network byte order.
func (s set) link(key expr.MetaKey, to uint32) []any {
	if !s.interval {
		return []any{load(key, to)}
	}
	return []any{load(key, to), &expr.Byteorder{
		SourceRegister: to, DestRegister: to, Op: expr.ByteorderHton, Len: 4,
		Size: 4,
	}}
}

// sourceTwice loads the source address, and again; destinationTwice the destination.
func (f family) sourceTwice() part { return f.twice("saddr", true) }

func (f family) destinationTwice() part { return f.twice("daddr", false) }

func (f family) twice(field string, source bool) part {
	return part{
		text:  fmt.Sprintf("%[1]s %[2]s . %[1]s %[2]s", f.word(), field),
		exprs: append(f.is(), f.address(source, reg), f.address(source, reg+f.addr.Bytes/4)),
	}
}

// sourceAndEnd loads the source address and that of the flow's client, or of its server:
// the one that began it before its address was translated, or the one that answers.
func (f family) sourceAndEnd(server bool) part {
	direction := "original"
	if server {
		direction = "reply"
	}
	return part{
		text:  fmt.Sprintf("%[1]s saddr . ct %[2]s %[1]s saddr", f.word(), direction),
		exprs: append(f.is(), f.address(true, reg), ctEnd{f, server, reg + f.addr.Bytes/4}),
	}
}

// turned exchanges source and destination in the packet. It changes no checksum: the sum
// is the same, in the header of IP and in those that go over the addresses.
func (f family) turned() part {
	there, back := f.address(true, reg), f.address(false, reg+f.addr.Bytes/4)
	return part{
		text: fmt.Sprintf("%[1]s saddr set %[1]s daddr %[1]s daddr set %[1]s saddr", f.word()),
		exprs: append(f.is(), there, back,
			&expr.Payload{
				OperationType: expr.PayloadWrite, Base: there.Base, Offset: there.Offset, Len: there.Len,
				SourceRegister: back.DestRegister,
			},
			&expr.Payload{
				OperationType: expr.PayloadWrite, Base: back.Base, Offset: back.Offset, Len: back.Len,
				SourceRegister: there.DestRegister,
			}),
	}
}

// portsTurned exchanges the ports, in packets of protocols that have them.
func portsTurned() part {
	p := protocols(desired.TCP, desired.UDP, desired.SCTP)
	at := func(offset, r uint32, op expr.PayloadOperationType) *expr.Payload {
		out := &expr.Payload{OperationType: op, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2}
		if op == expr.PayloadLoad {
			out.DestRegister = r
		} else {
			out.SourceRegister = r
		}
		return out
	}
	p.text += " th sport set th dport th dport set th sport"
	p.exprs = append(p.exprs, at(0, reg, expr.PayloadLoad), at(2, reg+1, expr.PayloadLoad),
		at(0, reg+1, expr.PayloadWrite), at(2, reg, expr.PayloadWrite))
	return p
}

// holds matches a bridge port with a MAC address and an address if the set has them.
func (s set) holds(text string, port expr.MetaKey, mac, address *expr.Payload) part {
	mac.DestRegister, address.DestRegister = reg+1, reg+3
	return in(part{text: text, exprs: append(s.link(port, reg), mac, address)}, s)
}

// receives matches what is for a MAC address and an address if the set has them.
func (s set) receives(text string, address *expr.Payload) part {
	address.DestRegister = reg + 2
	return in(part{text: "ether daddr . " + text, exprs: []any{receiver(), address}}, s)
}

// sender and receiver are the MAC addresses of a frame.
func sender() *expr.Payload { return payload(expr.PayloadBaseLLHeader, 6, 6, reg) }

func receiver() *expr.Payload { return payload(expr.PayloadBaseLLHeader, 0, 6, reg) }

// icmpTypes matches ICMP or ICMPv6 of these types, in packets that is says to be of the
// family: meta nfproto in table inet, the type of the frame in table bridge.
func (f family) icmpTypes(is []any, types ...uint8) part {
	name, proto, of := "icmpv6", byte(unix.IPPROTO_ICMPV6), nftables.TypeICMP6Type
	if f.ip4 {
		name, proto, of = "icmp", unix.IPPROTO_ICMP, nftables.TypeICMPType
	}
	key := part{text: name + " type", exprs: append(slices.Clone(is),
		load(expr.MetaKeyL4PROTO, reg), equal(proto), payload(expr.PayloadBaseTransportHeader, 0, 1, reg))}
	return oneOf(key, of, bytesOf(types))
}

// bytesOf are values of one byte each.
func bytesOf(list []uint8) []value {
	values := make([]value, len(list))
	for i, b := range list {
		values[i] = value{text: fmt.Sprint(b), first: []byte{b}, last: []byte{b}}
	}
	return values
}

// hopLimit matches IPv6 packets that have exactly so many hops before them.
func hopLimit(n byte) part {
	return part{
		text:  fmt.Sprintf("ip6 hoplimit %d", n),
		exprs: append(v6.is(), payload(expr.PayloadBaseNetworkHeader, 7, 1, reg), equal(n)),
	}
}

// protocols matches any of some protocols above IP.
func protocols(list ...desired.Protocol) part {
	slices.Sort(list)
	numbers := make([]uint8, len(list))
	for i, p := range list {
		numbers[i] = uint8(p)
	}
	key := part{text: "meta l4proto", exprs: []any{load(expr.MetaKeyL4PROTO, reg)}}
	return oneOf(key, nftables.TypeInetProto, bytesOf(numbers))
}

// value is one value, or a range of values, of the header field that is matched.
type value struct {
	text        string
	first, last []byte
	// mask is set for a range that is a prefix.
	mask []byte
}

// oneOf matches what key has loaded against values that are in order and do not
// touch: in an anonymous set, or if there is only one, directly.
func oneOf(key part, of nftables.SetDatatype, values []value) part {
	if len(values) == 1 {
		return oneValue(key, values[0])
	}
	c := constant{key: of, interval: slices.ContainsFunc(values, value.isRange)}
	names := make([]string, len(values))
	for i, v := range values {
		names[i] = v.text
		c.elements = append(c.elements, nftables.SetElement{Key: v.first})
		// A range ends before the next value; one up to the last value has no end.
		if end := following(v.last); c.interval && end != nil {
			c.elements = append(c.elements, nftables.SetElement{Key: end, IntervalEnd: true})
		}
	}
	key.text += " { " + strings.Join(names, ", ") + " }"
	key.exprs = append(key.exprs, &expr.Lookup{SourceRegister: reg})
	key.set = &c
	return key
}

func oneValue(key part, v value) part {
	key.text += " " + v.text
	switch {
	case !v.isRange():
		key.exprs = append(key.exprs, equal(v.first...))
	case v.mask != nil:
		masked := &expr.Bitwise{
			SourceRegister: reg, DestRegister: reg, Len: uint32(len(v.mask)), Mask: v.mask,
			Xor: make([]byte, len(v.mask)),
		}
		key.exprs = append(key.exprs, masked, equal(v.first...))
	default:
		key.exprs = append(key.exprs, &expr.Range{Op: expr.CmpOpEq, Register: reg, FromData: v.first, ToData: v.last})
	}
	return key
}

func (v value) isRange() bool { return !bytes.Equal(v.first, v.last) }

// following is the number after the one in b, nil if there is none.
func following(b []byte) []byte {
	next := slices.Clone(b)
	for i := len(next) - 1; i >= 0; i-- {
		if next[i]++; next[i] != 0 {
			return next
		}
	}
	return nil
}

func protocol(p desired.Protocol) part {
	return part{text: fmt.Sprintf("meta l4proto %s", p), exprs: []any{load(expr.MetaKeyL4PROTO, reg), equal(byte(p))}}
}

// dport loads what is the destination port if the packet's protocol has ports.
func dport() part {
	return part{text: "th dport", exprs: []any{payload(expr.PayloadBaseTransportHeader, 2, 2, reg)}}
}

// destination loads the destination's address, protocol and port.
func (f family) destination() part {
	words := f.addr.Bytes / 4
	return part{text: f.word() + " daddr . meta l4proto . th dport", exprs: append(f.is(),
		f.address(false, reg), load(expr.MetaKeyL4PROTO, reg+words),
		payload(expr.PayloadBaseTransportHeader, 2, 2, reg+words+1))}
}

func counter() part { return part{text: "counter", exprs: []any{&expr.Counter{}}} }

// logged sends the headers of the packet to who listens, some times a second.
func logged(k counters.Key) []part {
	prefix := droplog.Prefix(k)
	return on(
		part{text: fmt.Sprintf("limit rate %d/second burst %d packets", droplog.PerSecond, droplog.Burst), exprs: []any{
			&expr.Limit{Type: expr.LimitTypePkts, Rate: droplog.PerSecond, Unit: expr.LimitTimeSecond, Burst: droplog.Burst},
		}},
		part{
			text: fmt.Sprintf("log prefix %q group %d snaplen %d", prefix, droplog.Group, droplog.Size),
			exprs: []any{&expr.Log{
				Key:   1<<unix.NFTA_LOG_PREFIX | 1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_SNAPLEN,
				Group: droplog.Group, Snaplen: droplog.Size, Data: []byte(prefix),
			}},
		},
	)
}

func verdict(text string, v expr.Verdict) part { return part{text: text, exprs: []any{&v}} }

func accept() part        { return verdict("accept", expr.Verdict{Kind: expr.VerdictAccept}) }
func drop() part          { return verdict("drop", expr.Verdict{Kind: expr.VerdictDrop}) }
func returnVerdict() part { return verdict("return", expr.Verdict{Kind: expr.VerdictReturn}) }

func gotoChain(to string) part {
	return verdict("goto "+to, expr.Verdict{Kind: expr.VerdictGoto, Chain: to})
}

func jump(to string) part {
	return verdict("jump "+to, expr.Verdict{Kind: expr.VerdictJump, Chain: to})
}
