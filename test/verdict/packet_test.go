package verdict_test

import (
	"encoding/binary"
	"math/bits"
	"net"
	"net/netip"

	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/test/frame"
)

const (
	icmp desired.Protocol = 1
	// etherIP is Ethernet in IP, of which no kernel knows more than the number.
	etherIP desired.Protocol = 97
)

// ethernet builds an Ethernet frame that holds p. Its number stands in a field that
// every protocol has room for, so that it is known again where it comes out. An error
// holds the packet that it is about.
func ethernet(from, to net.HardwareAddr, in injection, number uint32) []byte {
	p := in.packet
	payload := segment(p, number)
	if in.about != nil {
		payload = append(payload[:8], packet(*in.about, segment(*in.about, 0))...)
	}
	if in.flags != 0 && p.Protocol == desired.TCP {
		payload[13] = in.flags
	}
	if in.cut {
		payload = append(payload, make([]byte, 2*firstPiece-len(payload))...)
		if p.Protocol == desired.UDP {
			binary.BigEndian.PutUint16(payload[4:], uint16(len(payload)))
		}
	}
	ip := packet(p, payload)
	etherType := uint16(0x0800)
	if p.Src.Is6() {
		etherType = 0x86dd
	}
	return append(append(append(append([]byte{}, to...), from...), byte(etherType>>8), byte(etherType)), ip...)
}

// firstPiece is how much of what stands behind the IP header is in the first of two fragments:
// the number is.
const firstPiece = 40

// fragments cuts a frame in two, and gives the datagram a number.
func fragments(f []byte, number uint32) [][]byte {
	ip := f[14:]
	p := frame.IP{ID: uint16(number), Protocol: ip[9], Hops: ip[8]}
	header := 20
	if ip[0]>>4 == 6 {
		p.Protocol, p.Hops, header = ip[6], ip[7], 40
		p.Src, p.Dst = netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40]))
	} else {
		p.Src, p.Dst = netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
	}
	var out [][]byte
	for _, at := range []int{0, firstPiece} {
		p.Offset, p.More = at, at == 0
		piece, q := ip[header+at:header+at+firstPiece], p
		if header == 40 {
			q.Protocol = fragmentHeader
			field := uint16(at)
			if p.More {
				field |= 1
			}
			piece = append(binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16([]byte{p.Protocol, 0}, field), number), piece...)
		}
		out = append(out, append(append([]byte{}, f[:14]...), q.Packet(piece)...))
	}
	return out
}

// fragmentHeader is the number of IPv6's.
const fragmentHeader = 44

// packet puts the IP header in front.
func packet(p desired.Packet, payload []byte) []byte {
	src, dst := p.Src.AsSlice(), p.Dst.AsSlice()
	hops := p.HopLimit
	if hops == 0 {
		hops = 64
	}
	if p.Protocol == icmp {
		binary.BigEndian.PutUint16(payload[2:], 0)
		binary.BigEndian.PutUint16(payload[2:], frame.Checksum(payload))
	}
	if p.Src.Is4() {
		ip := make([]byte, 20)
		ip[0], ip[8], ip[9] = 0x45, hops, byte(p.Protocol)
		binary.BigEndian.PutUint16(ip[2:], uint16(20+len(payload)))
		copy(ip[12:], src)
		copy(ip[16:], dst)
		binary.BigEndian.PutUint16(ip[10:], frame.Checksum(ip))
		return append(ip, payload...)
	}
	ip := make([]byte, 40)
	ip[0], ip[6], ip[7] = 0x60, byte(p.Protocol), hops
	binary.BigEndian.PutUint16(ip[4:], uint16(len(payload)))
	copy(ip[8:], src)
	copy(ip[24:], dst)
	if p.Protocol == desired.ICMPv6 {
		pseudo := append(append([]byte{}, src...), dst...)
		pseudo = append(pseudo, 0, 0, 0, byte(len(payload)), 0, 0, 0, byte(p.Protocol))
		binary.BigEndian.PutUint16(payload[2:], 0)
		binary.BigEndian.PutUint16(payload[2:], frame.Checksum(append(pseudo, payload...)))
	}
	return append(ip, payload...)
}

// segment builds the part behind the IP header. Checksums of protocols with ports
// are left out: the namespace is told not to check them.
func segment(p desired.Packet, number uint32) []byte {
	switch p.Protocol {
	case desired.TCP:
		b := make([]byte, 20)
		ports(b, p.SrcPort, p.DstPort)
		binary.BigEndian.PutUint32(b[4:], number)
		b[12], b[13] = 5<<4, 0x02 // header length, SYN
		return b
	case desired.UDP:
		b := make([]byte, 12)
		ports(b, p.SrcPort, p.DstPort)
		binary.BigEndian.PutUint16(b[4:], 12)
		binary.BigEndian.PutUint32(b[8:], number)
		return b
	case desired.SCTP:
		b := make([]byte, 32)
		ports(b, p.SrcPort, p.DstPort)
		b[12], b[15] = 1, 20 // an INIT chunk
		binary.BigEndian.PutUint32(b[16:], number)
		return b
	case icmp:
		b := []byte{p.ICMPType, 0, 0, 0, 0, 0, 0, 0}
		binary.BigEndian.PutUint32(b[4:], bits.RotateLeft32(number, 16)) // a flow is known by the first half
		return b
	case etherIP:
		b := make([]byte, 12)
		binary.BigEndian.PutUint32(b[8:], number)
		return b
	default:
		b := make([]byte, 24)
		b[0] = p.ICMPType
		binary.BigEndian.PutUint32(b[4:], bits.RotateLeft32(number, 16))
		copy(b[8:], p.Target.AsSlice())
		return b
	}
}

func ports(b []byte, src, dst uint16) {
	binary.BigEndian.PutUint16(b, src)
	binary.BigEndian.PutUint16(b[2:], dst)
}

// numberOf reads the number back out of an IP packet; false for a packet that
// is none of ours.
func numberOf(b []byte) (uint32, bool) {
	if len(b) < 20 {
		return 0, false
	}
	proto, at := desired.Protocol(b[9]), 20
	if b[0]>>4 == 6 {
		if len(b) < 40 {
			return 0, false
		}
		proto, at = desired.Protocol(b[6]), 40
		if proto == fragmentHeader && len(b) >= 48 && b[42] == 0 && b[43]&0xf8 == 0 {
			proto, at = desired.Protocol(b[40]), 48
		}
	} else if b[6]&0x1f != 0 || b[7] != 0 {
		return 0, false // a later fragment
	}
	return numberIn(proto, b[at:])
}

// numberIn reads the number out of what stands behind the IP header.
func numberIn(proto desired.Protocol, b []byte) (uint32, bool) {
	offset := map[desired.Protocol]int{desired.TCP: 4, desired.UDP: 8, desired.SCTP: 16, icmp: 4, desired.ICMPv6: 4, etherIP: 8}
	at, ok := offset[proto]
	if !ok || len(b) < at+4 {
		return 0, false
	}
	n := binary.BigEndian.Uint32(b[at:])
	if proto == icmp || proto == desired.ICMPv6 {
		n = bits.RotateLeft32(n, 16)
	}
	return n, true
}

// sameFamily reports whether two addresses can be in one packet.
func sameFamily(a, b netip.Addr) bool { return a.Is4() == b.Is4() }
