package foreign

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// value is what a register holds, as far as it matters: the mark of from, with the
// bits of keep left and those of xor turned over; or bytes of the packet's header.
type value struct {
	from      source
	keep, xor uint32
	swapped   bool   // its bytes are in the other order
	offset    uint32 // in the header of the network layer
	mask      []byte // of the header
}

type source int

const (
	somethingElse source = iota
	constant
	packetMark
	conntrackMark
	header
	linkName
)

// registers are what the rule has loaded so far, by the kernel's number of the register.
type registers map[uint32]value

// follow follows the registers through a rule. What it does not know may change any
// of them, and a mark that is set from one of those may become anything.
func (r *Rule) follow(list []expression) {
	loaded := registers{}
	for _, e := range list {
		step, known := steps[e.name]
		switch {
		case !known:
			clear(loaded)
		case step != nil:
			step(r, e, loaded)
		}
	}
}

// steps are what the kinds of expressions do with marks and registers, by nf_tables' names. Those
// with nil leave both alone.
var steps = map[string]func(r *Rule, e expression, loaded registers){
	"counter": nil, "comment": nil, "log": nil, "limit": nil, "quota": nil, "objref": nil,

	// What iptables-nft has of iptables.
	"match":  func(r *Rule, e expression, _ registers) { r.matches(e) },
	"target": func(r *Rule, e expression, _ registers) { r.target(e) },

	// What loads a register, or writes a mark from one.
	"notrack":   func(r *Rule, _ expression, _ registers) { r.NoTrack = true },
	"meta":      (*Rule).meta,
	"ct":        (*Rule).conntrack,
	"immediate": func(_ *Rule, e expression, loaded registers) { loaded.immediate(e) },
	"payload":   func(_ *Rule, e expression, loaded registers) { loaded.payload(e) },
	"byteorder": func(_ *Rule, e expression, loaded registers) { loaded.byteorder(e) },
	"bitwise": func(_ *Rule, e expression, loaded registers) {
		loaded[e.number(unix.NFTA_BITWISE_DREG)] = loaded[e.number(unix.NFTA_BITWISE_SREG)].bitwise(e)
	},

	// What compares a register.
	"cmp": func(r *Rule, e expression, loaded registers) {
		v, data, op := loaded[e.number(unix.NFTA_CMP_SREG)], e.data(unix.NFTA_CMP_DATA), e.number(unix.NFTA_CMP_OP)
		if op == unix.NFT_CMP_EQ {
			r.match(v, data)
		}
		r.compare(v, data, op)
	},
	"lookup": func(r *Rule, e expression, loaded registers) { // which may load any
		r.compare(loaded[e.number(unix.NFTA_LOOKUP_SREG)], nil, unix.NFT_CMP_EQ)
		clear(loaded)
	},
	"range": func(r *Rule, e expression, loaded registers) {
		r.compare(loaded[e.number(unix.NFTA_RANGE_SREG)], nil, unix.NFT_CMP_EQ)
	},
}

// meta loads the packet mark or the name of a link, or writes the packet mark.
func (r *Rule) meta(e expression, loaded registers) {
	key := e.number(unix.NFTA_META_KEY)
	switch {
	case !e.has(unix.NFTA_META_SREG):
		loaded[e.number(unix.NFTA_META_DREG)] = loadedMeta(key)
	case key == unix.NFT_META_MARK:
		r.Writes = append(r.Writes, loaded[e.number(unix.NFTA_META_SREG)].into(PacketMark))
	}
}

// conntrack loads the conntrack mark, or writes it.
func (r *Rule) conntrack(e expression, loaded registers) {
	mark := e.number(unix.NFTA_CT_KEY) == unix.NFT_CT_MARK
	switch {
	case mark && e.has(unix.NFTA_CT_SREG):
		r.Writes = append(r.Writes, loaded[e.number(unix.NFTA_CT_SREG)].into(ConntrackMark))
	case mark:
		loaded[e.number(unix.NFTA_CT_DREG)] = value{from: conntrackMark, keep: All}
	case e.has(unix.NFTA_CT_DREG):
		loaded[e.number(unix.NFTA_CT_DREG)] = value{}
	}
}

// immediate loads a constant.
func (loaded registers) immediate(e expression) {
	v := value{}
	if data := e.data(unix.NFTA_IMMEDIATE_DATA); len(data) == 4 {
		v = value{from: constant, xor: binary.NativeEndian.Uint32(data)}
	}
	loaded[e.number(unix.NFTA_IMMEDIATE_DREG)] = v
}

// payload loads bytes of a header, or writes them.
func (loaded registers) payload(e expression) {
	if e.has(unix.NFTA_PAYLOAD_DREG) {
		loaded[e.number(unix.NFTA_PAYLOAD_DREG)] = loadedHeader(e)
	}
}

// byteorder turns the bytes of a register over.
func (loaded registers) byteorder(e expression) {
	v := loaded[e.number(unix.NFTA_BYTEORDER_SREG)]
	v.swapped = !v.swapped
	loaded[e.number(unix.NFTA_BYTEORDER_DREG)] = v
}

func loadedMeta(key uint32) value {
	switch key {
	case unix.NFT_META_MARK:
		return value{from: packetMark, keep: All}
	case unix.NFT_META_IIFNAME, unix.NFT_META_OIFNAME:
		return value{from: linkName}
	}
	return value{}
}

func loadedHeader(e expression) value {
	if e.number(unix.NFTA_PAYLOAD_BASE) != unix.NFT_PAYLOAD_NETWORK_HEADER {
		return value{}
	}
	size := min(int(e.number(unix.NFTA_PAYLOAD_LEN)), 16)
	return value{from: header, offset: e.number(unix.NFTA_PAYLOAD_OFFSET), mask: slices.Repeat([]byte{0xff}, size)}
}

// bitwise is "and MASK xor XOR". Shifts, and what works on two registers, have neither.
func (v value) bitwise(e expression) value {
	mask, xor := e.data(unix.NFTA_BITWISE_MASK), e.data(unix.NFTA_BITWISE_XOR)
	switch {
	case v.from == header && mask != nil && len(mask) == len(v.mask):
		v.mask = mask
		return v
	case v.from == header, v.swapped, len(mask) != 4, len(xor) != 4:
		return value{}
	}
	m, x := binary.NativeEndian.Uint32(mask), binary.NativeEndian.Uint32(xor)
	v.keep, v.xor = v.keep&m, v.xor&m^x
	return v
}

// compare notes that the rule compares a mark.
func (r *Rule) compare(v value, data []byte, op uint32) {
	field, ok := map[source]Field{packetMark: PacketMark, conntrackMark: ConntrackMark}[v.from]
	if !ok {
		return
	}
	c := Compare{Field: field, Mask: v.keep, Among: true, Not: op == unix.NFT_CMP_NEQ}
	if len(data) == 4 && !v.swapped && (op == unix.NFT_CMP_EQ || op == unix.NFT_CMP_NEQ) {
		c.Among, c.Value = false, (binary.NativeEndian.Uint32(data)^v.xor)&v.keep
	}
	r.Compares = append(r.Compares, c)
}

// into is the write of the value into a mark.
func (v value) into(f Field) Write {
	names := map[source]string{packetMark: "meta mark", conntrackMark: "ct mark"}
	own := packetMark
	if f == ConntrackMark {
		own = conntrackMark
	}
	w := Write{Field: f, Bits: All, Saves: f == ConntrackMark && v.from == packetMark, Text: names[own] + " set ..."}
	switch from := names[v.from]; {
	case v.from == constant:
		w.Text = fmt.Sprintf("%s set %#x", names[own], v.xor)
	case from != "":
		w.Text = fmt.Sprintf("%s set %s & %#x ^ %#x", names[own], from, v.keep, v.xor)
	}
	if v.from == own && !v.swapped {
		w.Bits = ^v.keep | v.xor
	}
	return w
}

// addressAt is where addresses are in the header of an IP packet, by offset.
var addressAt = map[uint32]struct {
	size        int
	destination bool
}{
	12: {4, false}, 16: {4, true}, 8: {16, false}, 24: {16, true},
}

// match notes what a rule is for: an address, or lo.
func (r *Rule) match(v value, data []byte) {
	if v.from == linkName {
		r.Loopback = r.Loopback || text(data) == "lo"
	}
	at, ok := addressAt[v.offset]
	if v.from != header || !ok || len(data) > at.size || len(data) != len(v.mask) {
		return
	}
	ones := 0
	for _, b := range v.mask {
		ones += bits.OnesCount8(b)
	}
	addr, _ := netip.AddrFromSlice(append(slices.Clone(data), make([]byte, at.size-len(data))...))
	prefix, err := addr.Prefix(ones)
	if err != nil {
		return
	}
	if at.destination {
		r.Destination = prefix
	} else {
		r.Source = prefix
	}
}

// text is a string that the kernel ends with a zero.
func text(b []byte) string { return strings.TrimRight(string(b), "\x00") }

// matches reads a match of iptables-nft that is one in the kernel too: struct
// xt_mark_mtinfo1 and xt_connmark_mtinfo1, both of mark, mask and whether it is inverted.
func (r *Rule) matches(e expression) {
	name, info := e.text(unix.NFTA_MATCH_NAME), e.attributes[unix.NFTA_MATCH_INFO]
	field, ok := map[string]Field{"mark": PacketMark, "connmark": ConntrackMark}[name]
	if !ok || e.number(unix.NFTA_MATCH_REV) != 1 || len(info) < 9 {
		return
	}
	r.Compares = append(r.Compares, Compare{
		Field: field, Value: binary.NativeEndian.Uint32(info), Mask: binary.NativeEndian.Uint32(info[4:]), Not: info[8] != 0,
	})
}

// mapsMark is the flag of a SET target that takes the packet mark from the set
// (IPSET_FLAG_MAP_SKBMARK of include/uapi/linux/netfilter/ipset/ip_set.h).
const mapsMark = 1 << 8

// targetInfo is the struct of a target, in words of 4 bytes in the order of the machine.
type targetInfo []byte

func (t targetInfo) word(i int) uint32 { return binary.NativeEndian.Uint32(t[4*i:]) }

// target reads a target of iptables-nft that is one in the kernel too: structs of
// include/uapi/linux/netfilter/xt_mark.h, xt_connmark.h, xt_CT.h, xt_set.h and xt_TPROXY.h.
func (r *Rule) target(e expression) {
	name, rev := e.text(unix.NFTA_TARGET_NAME), e.number(unix.NFTA_TARGET_REV)
	info := targetInfo(e.attributes[unix.NFTA_TARGET_INFO])
	switch name {
	case "NOTRACK":
		r.NoTrack = true
	case "CT":
		if len(info) >= 2 && binary.NativeEndian.Uint16(info)&1 != 0 { // XT_CT_NOTRACK
			r.NoTrack = true
		}
	case "MARK":
		r.Writes = append(r.Writes, info.mark(rev))
	case "CONNMARK":
		r.Writes = append(r.Writes, info.connmark(rev))
	case "SET":
		if rev == 3 && len(info) >= 16 && info.word(3)&mapsMark != 0 { // three sets of 4 bytes, and flags
			r.Writes = append(r.Writes, setMark)
		}
	case "TPROXY":
		if len(info) >= 8 { // mask and value come first in all revisions
			r.Writes = append(r.Writes, tproxy(info.word(1), info.word(0)))
		}
	default:
		r.computes(name)
	}
}

// mark is what MARK writes. What is not understood may write anything.
func (t targetInfo) mark(rev uint32) Write {
	if rev == 2 && len(t) >= 8 {
		return setXmark(PacketMark, t.word(0), t.word(1))
	}
	return Write{Field: PacketMark, Bits: All, Text: "MARK ..."}
}

// connmark is what CONNMARK writes. What is not understood may write anything.
func (t targetInfo) connmark(rev uint32) Write {
	switch {
	case rev == 1 && len(t) >= 13: // the mode comes last
		return connmark(t.word(0), t.word(1), t.word(2), t[12], 0)
	case rev == 2 && len(t) >= 15: // shift_dir, shift_bits, mode
		shift := int(t[13])
		if t[12] != 0 { // D_SHIFT_RIGHT
			shift = -shift
		}
		return connmark(t.word(0), t.word(1), t.word(2), t[14], shift)
	}
	return Write{Field: ConntrackMark, Bits: All, Text: "CONNMARK ..."}
}
