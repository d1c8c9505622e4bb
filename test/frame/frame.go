// Package frame builds Ethernet frames for tests, byte by byte: what a kernel would not
// send, as well as what it would. Checksums are right, so that nobody drops a packet for
// theirs.
//
//	query := frame.UDP(client, server, []byte("query"))
//	sent := frame.Ethernet(from, to, query)
package frame

import (
	"encoding/binary"
	"hash/crc32"
	"net"
	"net/netip"
)

// IANA protocol numbers.
const (
	ICMP   = 1
	IPIP   = 4
	TCP    = 6
	UDP    = 17
	IPv6   = 41
	GRE    = 47
	ICMPv6 = 58
	SCTP   = 132
)

// EtherTypes.
const (
	TypeIPv4 = 0x0800
	TypeARP  = 0x0806
	TypeVLAN = 0x8100
	TypeIPv6 = 0x86dd
)

// Flags of TCP.
const (
	FIN = 0x01
	SYN = 0x02
	RST = 0x04
	PSH = 0x08
	ACK = 0x10
)

// Chunks of SCTP, RFC 9260 3.2.
const (
	SCTPData       = 0
	SCTPInit       = 1
	SCTPInitAck    = 2
	SCTPCookieEcho = 10
	SCTPCookieAck  = 11
)

// Broadcast is the MAC address of everybody.
var Broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// Ethernet is a frame around an IP packet, whose version gives the EtherType.
func Ethernet(from, to net.HardwareAddr, packet []byte) []byte {
	etherType := uint16(TypeIPv4)
	if packet[0]>>4 == 6 {
		etherType = TypeIPv6
	}
	return EthernetOf(from, to, etherType, packet)
}

// EthernetOf is a frame around anything.
func EthernetOf(from, to net.HardwareAddr, etherType uint16, payload []byte) []byte {
	b := append(append([]byte{}, to...), from...)
	return append(binary.BigEndian.AppendUint16(b, etherType), payload...)
}

// IP is a packet of any protocol. Both addresses are of one family.
type IP struct {
	Src, Dst netip.Addr
	Protocol byte
	// Hops is the TTL or hop limit; 64 when 0.
	Hops byte
	// ID, Offset and More are of an IPv4 fragment: Offset is in bytes, a multiple of 8.
	ID     uint16
	Offset int
	More   bool
}

// Packet is the packet with what stands behind its header.
func (p IP) Packet(payload []byte) []byte {
	hops := p.Hops
	if hops == 0 {
		hops = 64
	}
	if p.Dst.Is4() {
		b := make([]byte, 20, 20+len(payload))
		b[0], b[8], b[9] = 0x45, hops, p.Protocol
		binary.BigEndian.PutUint16(b[2:], uint16(20+len(payload)))
		binary.BigEndian.PutUint16(b[4:], p.ID)
		fragment := uint16(p.Offset / 8)
		if p.More {
			fragment |= 0x2000
		}
		binary.BigEndian.PutUint16(b[6:], fragment)
		copy(b[12:], p.Src.AsSlice())
		copy(b[16:], p.Dst.AsSlice())
		binary.BigEndian.PutUint16(b[10:], Checksum(b))
		return append(b, payload...)
	}
	b := make([]byte, 40, 40+len(payload))
	b[0], b[6], b[7] = 0x60, p.Protocol, hops
	binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
	copy(b[8:], p.Src.AsSlice())
	copy(b[24:], p.Dst.AsSlice())
	return append(b, payload...)
}

// sum is the checksum of what stands behind an IP header, with RFC 8200's pseudo header.
func sum(src, dst netip.Addr, protocol byte, b []byte) uint16 {
	pseudo := append(append([]byte{}, src.AsSlice()...), dst.AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(b)))
	return Checksum(append(append(pseudo, 0, 0, 0, protocol), b...))
}

// UDPPacket is a datagram.
func UDPPacket(src, dst netip.AddrPort, data []byte) []byte {
	return IP{Src: src.Addr(), Dst: dst.Addr(), Protocol: UDP}.Packet(UDPSegment(src, dst, data))
}

// UDPSegment is a datagram without its IP header.
func UDPSegment(src, dst netip.AddrPort, data []byte) []byte {
	b := append(ports(src, dst), 0, 0, 0, 0)
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(data)))
	b = append(b, data...)
	c := sum(src.Addr(), dst.Addr(), UDP, b)
	if c == 0 {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(b[6:], c)
	return b
}

// TCPPacket is a segment.
func TCPPacket(src, dst netip.AddrPort, flags byte, seq, ack uint32, data []byte) []byte {
	b := binary.BigEndian.AppendUint32(ports(src, dst), seq)
	b = binary.BigEndian.AppendUint32(b, ack)
	b = append(b, 5<<4, flags, 0xff, 0xff, 0, 0, 0, 0) // header length, flags, window
	b = append(b, data...)
	binary.BigEndian.PutUint16(b[16:], sum(src.Addr(), dst.Addr(), TCP, b))
	return IP{Src: src.Addr(), Dst: dst.Addr(), Protocol: TCP}.Packet(b)
}

// SCTPPacket is a packet of one chunk. body stands behind the chunk's length.
func SCTPPacket(src, dst netip.AddrPort, tag uint32, chunk byte, body []byte) []byte {
	b := binary.BigEndian.AppendUint32(ports(src, dst), tag)
	b = append(b, 0, 0, 0, 0, chunk, 0, 0, 0)
	if chunk == SCTPData {
		b[13] = 3 // begins and ends a message
	}
	binary.BigEndian.PutUint16(b[14:], uint16(4+len(body)))
	b = append(b, body...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return IP{Src: src.Addr(), Dst: dst.Addr(), Protocol: SCTP}.Packet(b)
}

// ICMPPacket is a message of ICMP or ICMPv6, by the family of dst. body stands behind the
// checksum. A hop limit of 0 is 64.
func ICMPPacket(src, dst netip.Addr, kind, code, hops byte, body []byte) []byte {
	b := append([]byte{kind, code, 0, 0}, body...)
	ip := IP{Src: src, Dst: dst, Protocol: ICMP, Hops: hops}
	if dst.Is4() {
		binary.BigEndian.PutUint16(b[2:], Checksum(b))
	} else {
		ip.Protocol = ICMPv6
		binary.BigEndian.PutUint16(b[2:], sum(src, dst, ICMPv6, b))
	}
	return ip.Packet(b)
}

// ARP is a message of IPv4 over Ethernet: an operation of RFC 826, who says it, and whom
// it is about.
func ARP(operation byte, mac net.HardwareAddr, addr netip.Addr, targetMAC net.HardwareAddr, target netip.Addr) []byte {
	b := append([]byte{0, 1, 8, 0, 6, 4, 0, operation}, mac...)
	b = append(append(b, addr.AsSlice()...), targetMAC...)
	return append(b, target.AsSlice()...)
}

// Neighbour is the body of a neighbour solicitation or advertisement for [ICMPPacket], RFC
// 4861 4.3 and 4.4: flags of the first byte, and an option (1 is the source's link-layer
// address, 2 the target's).
func Neighbour(flags byte, target netip.Addr, option byte, mac net.HardwareAddr) []byte {
	b := append([]byte{flags, 0, 0, 0}, target.AsSlice()...)
	return append(append(b, option, 1), mac...)
}

// VXLAN is the payload of a VXLAN datagram, RFC 7348 5.
func VXLAN(vni uint32, inner []byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte{8, 0, 0, 0}, vni<<8)
	return append(b, inner...)
}

// Geneve is the payload of a Geneve datagram, RFC 8926 3.4, around an Ethernet frame.
func Geneve(vni uint32, inner []byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte{0, 0, 0x65, 0x58}, vni<<8)
	return append(b, inner...)
}

// GREHeader wraps a packet of an EtherType, RFC 2784.
func GREHeader(etherType uint16, inner []byte) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{0, 0}, etherType), inner...)
}

// Multicast is the MAC address that a group's packets go to.
func Multicast(group netip.Addr) net.HardwareAddr {
	b := group.AsSlice()
	if group.Is4() {
		return net.HardwareAddr{0x01, 0x00, 0x5e, b[1] & 0x7f, b[2], b[3]}
	}
	return append(net.HardwareAddr{0x33, 0x33}, b[12:]...)
}

// LinkLocal is the address that a link makes itself of its MAC address, RFC 4291 A.
func LinkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}

// SolicitedNode is the group that a question for an IPv6 address goes to.
func SolicitedNode(addr netip.Addr) netip.Addr {
	group, last := netip.MustParseAddr("ff02::1:ff00:0").As16(), addr.As16()
	copy(group[13:], last[13:])
	return netip.AddrFrom16(group)
}

func ports(src, dst netip.AddrPort) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, src.Port()), dst.Port())
}

// Checksum is the Internet's, RFC 1071.
func Checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
