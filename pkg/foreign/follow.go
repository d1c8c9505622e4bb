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

// follow follows the registers through a rule. What it does not know may change any
// of them, and a mark that is set from one of those may become anything.
func (r *Rule) follow(list []expression) {
	registers := map[uint32]value{}
	for _, e := range list {
		switch e.name {
		case "counter", "comment", "log", "limit", "quota", "objref":
		case "match":
			r.matches(e)
		case "notrack":
			r.NoTrack = true
		case "target":
			r.target(e)
		case "meta":
			mark := e.number(unix.NFTA_META_KEY) == unix.NFT_META_MARK
			switch {
			case !e.has(unix.NFTA_META_SREG):
				registers[e.number(unix.NFTA_META_DREG)] = loadedMeta(e.number(unix.NFTA_META_KEY))
			case mark:
				r.Writes = append(r.Writes, registers[e.number(unix.NFTA_META_SREG)].into(PacketMark))
			}
		case "ct":
			mark := e.number(unix.NFTA_CT_KEY) == unix.NFT_CT_MARK
			switch {
			case mark && e.has(unix.NFTA_CT_SREG):
				r.Writes = append(r.Writes, registers[e.number(unix.NFTA_CT_SREG)].into(ConntrackMark))
			case mark:
				registers[e.number(unix.NFTA_CT_DREG)] = value{from: conntrackMark, keep: All}
			case e.has(unix.NFTA_CT_DREG):
				registers[e.number(unix.NFTA_CT_DREG)] = value{}
			}
		case "immediate":
			v := value{}
			if data := e.data(unix.NFTA_IMMEDIATE_DATA); len(data) == 4 {
				v = value{from: constant, xor: binary.NativeEndian.Uint32(data)}
			}
			registers[e.number(unix.NFTA_IMMEDIATE_DREG)] = v
		case "payload":
			if e.has(unix.NFTA_PAYLOAD_DREG) {
				registers[e.number(unix.NFTA_PAYLOAD_DREG)] = loadedHeader(e)
			}
		case "byteorder":
			v := registers[e.number(unix.NFTA_BYTEORDER_SREG)]
			v.swapped = !v.swapped
			registers[e.number(unix.NFTA_BYTEORDER_DREG)] = v
		case "bitwise":
			registers[e.number(unix.NFTA_BITWISE_DREG)] = registers[e.number(unix.NFTA_BITWISE_SREG)].bitwise(e)
		case "cmp":
			v, data, op := registers[e.number(unix.NFTA_CMP_SREG)], e.data(unix.NFTA_CMP_DATA), e.number(unix.NFTA_CMP_OP)
			if op == unix.NFT_CMP_EQ {
				r.match(v, data)
			}
			r.compare(v, data, op)
		case "lookup":
			r.compare(registers[e.number(unix.NFTA_LOOKUP_SREG)], nil, unix.NFT_CMP_EQ)
			clear(registers)
		case "range":
			r.compare(registers[e.number(unix.NFTA_RANGE_SREG)], nil, unix.NFT_CMP_EQ)
		default:
			clear(registers)
		}
	}
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

// target reads a target of iptables-nft that is one in the kernel too: structs of
// include/uapi/linux/netfilter/xt_mark.h, xt_connmark.h, xt_CT.h, xt_set.h and xt_TPROXY.h.
func (r *Rule) target(e expression) {
	name, rev, info := e.text(unix.NFTA_TARGET_NAME), e.number(unix.NFTA_TARGET_REV), e.attributes[unix.NFTA_TARGET_INFO]
	word := func(i int) uint32 { return binary.NativeEndian.Uint32(info[4*i:]) }
	switch {
	case name == "NOTRACK", name == "CT" && len(info) >= 2 && binary.NativeEndian.Uint16(info)&1 != 0: // XT_CT_NOTRACK
		r.NoTrack = true
	case name == "MARK" && rev == 2 && len(info) >= 8:
		r.Writes = append(r.Writes, setXmark(PacketMark, word(0), word(1)))
	case name == "MARK":
		r.Writes = append(r.Writes, Write{Field: PacketMark, Bits: All, Text: "MARK ..."})
	case name == "CONNMARK" && rev == 1 && len(info) >= 13: // the mode comes last
		r.Writes = append(r.Writes, connmark(word(0), word(1), word(2), info[12], 0))
	case name == "CONNMARK" && rev == 2 && len(info) >= 15: // shift_dir, shift_bits, mode
		shift := int(info[13])
		if info[12] != 0 { // D_SHIFT_RIGHT
			shift = -shift
		}
		r.Writes = append(r.Writes, connmark(word(0), word(1), word(2), info[14], shift))
	case name == "CONNMARK":
		r.Writes = append(r.Writes, Write{Field: ConntrackMark, Bits: All, Text: "CONNMARK ..."})
	case name == "SET" && rev == 3 && len(info) >= 16 && word(3)&mapsMark != 0: // three sets of 4 bytes, and flags
		r.Writes = append(r.Writes, setMark)
	case name == "TPROXY" && len(info) >= 8: // mask and value come first in all revisions
		r.Writes = append(r.Writes, tproxy(word(1), word(0)))
	case slices.Contains(computed, name):
		r.Writes = append(r.Writes, Write{Field: PacketMark, Bits: All, Text: name + " ..."})
	}
}
