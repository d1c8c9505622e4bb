package verdict_test

import (
	"encoding/binary"
	"math/bits"
	"net"
	"net/netip"

	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/test/frame"
)

const icmp desired.Protocol = 1

// ethernet builds an Ethernet frame that holds p. Its number stands in a field that
// every protocol has room for, so that it is known again where it comes out.
func ethernet(from, to net.HardwareAddr, p desired.Packet, srcPort uint16, number uint32) []byte {
	payload := segment(p, srcPort, number)
	var ip []byte
	etherType := uint16(0x0800)
	src, dst := p.Src.AsSlice(), p.Dst.AsSlice()
	if p.Src.Is4() {
		ip = make([]byte, 20)
		ip[0], ip[8], ip[9] = 0x45, 64, byte(p.Protocol)
		binary.BigEndian.PutUint16(ip[2:], uint16(20+len(payload)))
		copy(ip[12:], src)
		copy(ip[16:], dst)
		binary.BigEndian.PutUint16(ip[10:], frame.Checksum(ip))
	} else {
		etherType = 0x86dd
		ip = make([]byte, 40)
		ip[0], ip[6], ip[7] = 0x60, byte(p.Protocol), 64
		binary.BigEndian.PutUint16(ip[4:], uint16(len(payload)))
		copy(ip[8:], src)
		copy(ip[24:], dst)
		if p.Protocol == desired.ICMPv6 {
			pseudo := append(append([]byte{}, src...), dst...)
			pseudo = append(pseudo, 0, 0, 0, byte(len(payload)), 0, 0, 0, byte(p.Protocol))
			binary.BigEndian.PutUint16(payload[2:], frame.Checksum(append(pseudo, payload...)))
		}
	}
	out := append(append(append([]byte{}, to...), from...), byte(etherType>>8), byte(etherType))
	return append(append(out, ip...), payload...)
}

// segment builds the part behind the IP header. Checksums of protocols with ports
// are left out: the namespace is told not to check them.
func segment(p desired.Packet, srcPort uint16, number uint32) []byte {
	switch p.Protocol {
	case desired.TCP:
		b := make([]byte, 20)
		ports(b, srcPort, p.DstPort)
		binary.BigEndian.PutUint32(b[4:], number)
		b[12], b[13] = 5<<4, 0x02 // header length, SYN
		return b
	case desired.UDP:
		b := make([]byte, 12)
		ports(b, srcPort, p.DstPort)
		binary.BigEndian.PutUint16(b[4:], 12)
		binary.BigEndian.PutUint32(b[8:], number)
		return b
	case desired.SCTP:
		b := make([]byte, 32)
		ports(b, srcPort, p.DstPort)
		b[12], b[15] = 1, 20 // an INIT chunk
		binary.BigEndian.PutUint32(b[16:], number)
		return b
	case icmp:
		b := []byte{8, 0, 0, 0, 0, 0, 0, 0}
		binary.BigEndian.PutUint32(b[4:], bits.RotateLeft32(number, 16)) // a flow is known by the first half
		binary.BigEndian.PutUint16(b[2:], frame.Checksum(b))
		return b
	default:
		b := make([]byte, 24)
		b[0] = p.ICMPv6Type
		binary.BigEndian.PutUint32(b[4:], bits.RotateLeft32(number, 16))
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
	}
	return numberIn(proto, b[at:])
}

// numberIn reads the number out of what stands behind the IP header.
func numberIn(proto desired.Protocol, b []byte) (uint32, bool) {
	offset := map[desired.Protocol]int{desired.TCP: 4, desired.UDP: 8, desired.SCTP: 16, icmp: 4, desired.ICMPv6: 4}
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
