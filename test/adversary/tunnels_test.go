package adversary_test

import (
	"fmt"
	"net/netip"

	"github.com/podmark/podmark/test/frame"
	"github.com/podmark/podmark/test/lab"
)

// tunnels are packets of an allowed peer inside another packet to the node, which has a link
// that unwraps it. The family is the outer packet's.
var tunnels = []attack{
	{name: "VXLAN", run: func(s *scene) {
		for port, vni := range vxlans {
			for _, inner := range lab.Families {
				wrap := func(src, dst netip.AddrPort) []byte {
					link := s.MAC(fmt.Sprintf("vx%d-%d", port, s.f))
					return frame.UDPPacket(src, dst, frame.VXLAN(vni, frame.Ethernet(s.y.mac, link, s.inner(inner))))
				}
				what := fmt.Sprintf("VXLAN at port %d, with %v", port, inner)
				s.pass(what+", of another node", s.x, wrap(s.to(s.x, 4000), s.to(s.node, port)), s.server)
				for _, by := range []*actor{s.denied, s.free} {
					for _, to := range []netip.Addr{s.addr(s.node), s.gatewayAddr()} {
						s.deny(what, by, wrap(s.to(by, 4000), netip.AddrPortFrom(to, port)))
						s.deny(what+", as another node", by, wrap(s.to(s.x, 4000), netip.AddrPortFrom(to, port)))
						s.deny(what+", from the port itself", by, wrap(s.to(by, port), netip.AddrPortFrom(to, port)))
					}
				}
			}
		}
	}},
	{name: "VXLAN through a service", lab: "IPVS", at: []attachment{routed, vlan}, run: func(s *scene) {
		for port, vni := range vxlans {
			wrap := func(src, vip netip.AddrPort, inner lab.Family) []byte {
				link := s.MAC(fmt.Sprintf("vx%d-%d", port, s.f))
				return frame.UDPPacket(src, vip, frame.VXLAN(vni, frame.Ethernet(s.y.mac, link, s.inner(inner))))
			}
			another := s.serviceOf(port+1000, s.to(s.x, port))
			for _, inner := range lab.Families {
				what := fmt.Sprintf("to port %d of another node, with %v", port, inner)
				s.pass(what+", from outside", s.y, wrap(s.to(s.y, 4000), another, inner), s.x)
				s.deny(what, s.free, wrap(s.to(s.free, 4000), another, inner), s.x)
			}
			if s.Backend() != lab.NFTables {
				continue // iptables does not see what IPVS has for this node
			}
			own := s.serviceOf(port+2000, s.to(s.node, port))
			for _, inner := range lab.Families {
				what := fmt.Sprintf("to port %d, with %v", port, inner)
				s.pass(what+", from outside", s.x, wrap(s.to(s.x, 4000), own, inner), s.server)
				for _, by := range []*actor{s.denied, s.free} {
					s.deny(what, by, wrap(s.to(by, 4000), own, inner))
				}
			}
		}
	}},
	// Not in a VRF: there Geneve's socket and ip6tnl take nothing from its links.
	{name: "tunnels of protocols of their own", lab: "ipip, sit, gre and geneve", at: []attachment{routed, vlan}, run: func(s *scene) {
		s.addLabTunnels()
		outer := func(src netip.Addr, protocol byte, payload []byte) []byte {
			return frame.IP{Src: src, Dst: s.addr(s.node), Protocol: protocol}.Packet(payload)
		}
		for _, inner := range lab.Families {
			protocol, etherType := byte(frame.IPIP), uint16(frame.TypeIPv4)
			if inner == lab.V6 {
				protocol, etherType = frame.IPv6, frame.TypeIPv6
			}
			geneve := func(src netip.AddrPort) []byte {
				return frame.UDPPacket(src, s.to(s.node, 6081), frame.Geneve(3, frame.Ethernet(s.y.mac, s.MAC("gnv"+fmt.Sprint(int(s.f))), s.inner(inner))))
			}
			for _, kind := range []struct {
				name string
				wrap func(src netip.Addr) []byte
			}{
				{"IP in IP", func(src netip.Addr) []byte { return outer(src, protocol, s.inner(inner)) }},
				{"GRE", func(src netip.Addr) []byte { return outer(src, frame.GRE, frame.GREHeader(etherType, s.inner(inner))) }},
				{"Geneve", func(src netip.Addr) []byte { return geneve(netip.AddrPortFrom(src, 4000)) }},
			} {
				what := fmt.Sprintf("%s, with %v", kind.name, inner)
				s.pass(what+", of another node", s.x, kind.wrap(s.addr(s.x)), s.server)
				for _, by := range []*actor{s.denied, s.free} {
					s.deny(what, by, kind.wrap(s.addr(by)))
					s.deny(what+", as another node", by, kind.wrap(s.addr(s.x)))
				}
			}
		}
	}},
}

// inner is a packet that the server takes from a peer of another node.
func (s *scene) inner(f lab.Family) []byte {
	peer := netip.MustParseAddr(pick(f, "10.44.1.5", "fd00:44::5"))
	return frame.UDPPacket(netip.AddrPortFrom(peer, s.port()), netip.AddrPortFrom(s.server.addrs[f], 80), s.mark())
}

// addLabTunnels gives the node links for tunnels of the scene's outer family, and has podmark
// look at the node anew.
func (s *scene) addLabTunnels() {
	ends := fmt.Sprintf(" local %v remote %v", s.addr(s.node), s.addr(s.x))
	links := map[string]string{
		"ipip4": "ipip" + ends,
		"sit4":  "sit" + ends,
		"gre4":  "gre" + ends,
		"gnv4":  fmt.Sprintf("geneve id 3 remote %v", s.addr(s.x)),
	}
	if s.f == lab.V6 {
		links = map[string]string{
			"ip66": "ip6tnl mode any" + ends,
			"gre6": "ip6gre" + ends,
			"gnv6": fmt.Sprintf("geneve id 3 remote %v", s.addr(s.x)),
		}
	}
	var add, remove []string
	for name, kind := range links {
		add = append(add, "link add "+name+" type "+kind)
		add = append(append(add, s.intoVRF(name)...), "link set "+name+" up")
		remove = append(remove, "link delete "+name)
	}
	s.ip(add...)
	s.finally(func() { s.ip(remove...) })
	s.apply(s.T, policies)
}
