package lab

import (
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/test/frame"
)

// Types of [NeighbourFrame].
const (
	NeighbourSolicitation  = 135
	NeighbourAdvertisement = 136
)

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
func SolicitedNode(addr netip.Addr) netip.Addr { return frame.SolicitedNode(addr) }

// GratuitousARP tells everybody on the link that an IPv4 address is at mac. It is a
// request: who has the address already, takes a new MAC address from it.
func GratuitousARP(mac net.HardwareAddr, addr netip.Addr) []byte {
	return frame.EthernetOf(mac, frame.Broadcast, frame.TypeARP, frame.ARP(1, mac, addr, make([]byte, len(mac)), addr))
}

// NeighbourFrame is a frame of IPv6 neighbour discovery from mac, about target. It
// says, in the option of its kind, that what it is about is at mac: the sender of
// a solicitation, the target of an advertisement.
func NeighbourFrame(kind byte, mac net.HardwareAddr, from, to, target netip.Addr) []byte {
	flags, option := byte(0), byte(1) // source link-layer address
	if kind == NeighbourAdvertisement {
		flags, option = 0x20, 2 // override what is known; target link-layer address
	}
	message := frame.ICMPPacket(from, to, kind, 0, 255, frame.Neighbour(flags, target, option, mac))
	return frame.Ethernet(mac, frame.Multicast(to), message)
}
