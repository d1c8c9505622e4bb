package lab

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// EtherTypes of [Frame].
const (
	EtherIPv6 = unix.ETH_P_IPV6
	EtherARP  = unix.ETH_P_ARP
)

// Types of [ICMPv6].
const (
	NeighbourSolicitation  = 135
	NeighbourAdvertisement = 136
)

var broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// MAC is the address of a link.
func (n *NS) MAC(link string) net.HardwareAddr {
	n.t.Helper()
	var mac net.HardwareAddr
	err := n.Do(func() error {
		l, err := net.InterfaceByName(link)
		if err == nil {
			mac = l.HardwareAddr
		}
		return err
	})
	if err != nil {
		n.t.Fatalf("MAC address of %s in %q: %v", link, n.Name, err)
	}
	return mac
}

// SendFrame puts an Ethernet frame on a link as it is, past everything that the
// namespace's own kernel would say to it.
func (n *NS) SendFrame(link string, frame []byte) {
	n.t.Helper()
	err := n.Do(func() error {
		l, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("making a packet socket: %w", err)
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: l.Index})
	})
	if err != nil {
		n.t.Fatalf("sending a frame on %s of %q: %v", link, n.Name, err)
	}
}

// SolicitedNode is the group that a question for an IPv6 address goes to.
func SolicitedNode(addr netip.Addr) netip.Addr {
	group := netip.MustParseAddr("ff02::1:ff00:0").As16()
	last := addr.As16()
	copy(group[13:], last[13:])
	return netip.AddrFrom16(group)
}

// Frame is an Ethernet frame.
func Frame(from, to net.HardwareAddr, etherType uint16, payload []byte) []byte {
	frame := append(append([]byte{}, to...), from...)
	return append(binary.BigEndian.AppendUint16(frame, etherType), payload...)
}

// GratuitousARP tells everybody on the link that an IPv4 address is at mac.
func GratuitousARP(mac net.HardwareAddr, addr netip.Addr) []byte {
	arp := []byte{
		0, 1, 8, 0, // Ethernet, IPv4
		6, 4, // lengths of their addresses
		0, 1, // a request: who has it already, takes a new MAC address from it
	}
	arp = append(append(arp, mac...), addr.AsSlice()...)
	arp = append(append(arp, make([]byte, len(mac))...), addr.AsSlice()...)
	return Frame(mac, broadcast, EtherARP, arp)
}

// NeighbourFrame is a frame of IPv6 neighbour discovery from mac, about target. It
// says, in the option of its kind, that what it is about is at mac: the sender of
// a solicitation, the target of an advertisement.
func NeighbourFrame(kind byte, mac net.HardwareAddr, from, to, target netip.Addr) []byte {
	message := []byte{kind, 0, 0, 0, 0, 0, 0, 0}
	option := byte(1) // source link-layer address
	if kind == NeighbourAdvertisement {
		message[4] = 0x20 // override what is known
		option = 2        // target link-layer address
	}
	message = append(append(message, target.AsSlice()...), option, 1)
	message = append(message, mac...)

	header := binary.BigEndian.AppendUint16([]byte{0x60, 0, 0, 0}, uint16(len(message)))
	header = append(header, unix.IPPROTO_ICMPV6, 255) // neighbour discovery takes no other hop limit
	header = append(append(header, from.AsSlice()...), to.AsSlice()...)
	pseudo := binary.BigEndian.AppendUint32(append([]byte{}, header[8:]...), uint32(len(message)))
	binary.BigEndian.PutUint16(message[2:], checksum(append(append(pseudo, 0, 0, 0, unix.IPPROTO_ICMPV6), message...)))

	multicast := net.HardwareAddr(append([]byte{0x33, 0x33}, to.AsSlice()[12:]...))
	return Frame(mac, multicast, EtherIPv6, append(header, message...))
}

// checksum is the Internet's, over an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
