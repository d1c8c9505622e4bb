//go:build linux

package main

import (
	"fmt"
	"net/netip"
	"strconv"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/dataplane/droplog"
	"github.com/podmark/podmark/pkg/desired"
)

// side is one end of a packet.
type side struct {
	Address string `json:"address,omitempty"`
	// Pod is the namespace/name of an endpoint of this node; of one without a pod, its
	// container ID.
	Pod string `json:"pod,omitempty"`
	// Port is absent where the protocol has none, and where a fragment does not say.
	Port *uint16 `json:"port,omitempty"`
}

func (s side) String() string {
	name := s.Pod
	if name == "" {
		name = s.Address
		if a, err := netip.ParseAddr(name); err == nil && a.Is6() && s.Port != nil {
			name = "[" + name + "]"
		}
	}
	if s.Port != nil {
		name += ":" + strconv.Itoa(int(*s.Port))
	}
	if name == "" {
		return "-"
	}
	return name
}

// flow is what a packet says of itself.
type flow struct {
	// Protocol is tcp, udp, sctp, icmp, icmpv6, arp or a number.
	Protocol    string `json:"protocol"`
	Source      side   `json:"source"`
	Destination side   `json:"destination"`
}

// flowOf reads the headers of a packet, as many as there are.
func flowOf(m droplog.Message) flow {
	first, known := map[uint16]gopacket.LayerType{
		unix.ETH_P_IP: layers.LayerTypeIPv4, unix.ETH_P_IPV6: layers.LayerTypeIPv6, unix.ETH_P_ARP: layers.LayerTypeARP,
	}[m.EtherType]
	if !known {
		return flow{Protocol: fmt.Sprintf("ethertype 0x%04x", m.EtherType)}
	}
	var f flow
	for _, l := range gopacket.NewPacket(m.Packet, first, gopacket.NoCopy).Layers() {
		switch l := l.(type) {
		case *layers.ARP:
			f.Protocol = "arp"
			f.Source.Address, f.Destination.Address = address(l.SourceProtAddress), address(l.DstProtAddress)
		case *layers.IPv4:
			f.Protocol = protocol(l.Protocol)
			f.Source.Address, f.Destination.Address = address(l.SrcIP), address(l.DstIP)
		case *layers.IPv6:
			f.Protocol = protocol(l.NextHeader)
			f.Source.Address, f.Destination.Address = address(l.SrcIP), address(l.DstIP)
		// What stands between the IPv6 header and the ports.
		case *layers.IPv6HopByHop:
			f.Protocol = protocol(l.NextHeader)
		case *layers.IPv6Routing:
			f.Protocol = protocol(l.NextHeader)
		case *layers.IPv6Destination:
			f.Protocol = protocol(l.NextHeader)
		case *layers.IPv6Fragment:
			f.Protocol = protocol(l.NextHeader)
		case *layers.TCP:
			f.ports(uint16(l.SrcPort), uint16(l.DstPort))
		case *layers.UDP:
			f.ports(uint16(l.SrcPort), uint16(l.DstPort))
		case *layers.SCTP:
			f.ports(uint16(l.SrcPort), uint16(l.DstPort))
		}
	}
	if f.Protocol == "" {
		f.Protocol = "damaged"
	}
	return f
}

func (f *flow) ports(source, destination uint16) {
	f.Source.Port, f.Destination.Port = &source, &destination
}

func address(b []byte) string {
	a, _ := netip.AddrFromSlice(b)
	return a.String()
}

func protocol(p layers.IPProtocol) string {
	switch p {
	case layers.IPProtocolICMPv4:
		return "icmp"
	case layers.IPProtocolICMPv6:
		return "icmpv6"
	}
	return desired.Protocol(p).String()
}
