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
	{name: "a tunnel's packet in another shape", run: func(s *scene) {
		const port = 8472
		wrap := func(by *actor, to netip.Addr, port uint16) []byte {
			link := s.MAC(fmt.Sprintf("vx8472-%d", s.f))
			return frame.UDPPacket(s.to(by, s.port()), netip.AddrPortFrom(to, port), frame.VXLAN(vxlans[8472], frame.Ethernet(s.y.mac, link, s.inner(s.f))))
		}
		shapes := map[string]func([]byte) [][]byte{
			"in fragments": func(p []byte) [][]byte { return fragments(p, s.port(), 48) },
		}
		if s.f == lab.V6 {
			for _, header := range []byte{hopByHop, routingHeader, destinationOptions} {
				shapes[fmt.Sprintf("behind header %d", header)] = func(p []byte) [][]byte { return [][]byte{behind(header, p)} }
				shapes[fmt.Sprintf("in fragments with header %d", header)] = func(p []byte) (out [][]byte) {
					if header != hopByHop {
						return fragments(behind(header, p), s.port(), 40)
					}
					for _, piece := range fragments(p, s.port(), 48) { // it is the first of all
						out = append(out, behind(header, piece))
					}
					return out
				}
			}
		}
		for name, shape := range shapes {
			s.passPieces(name+", of another node", s.x, shape(wrap(s.x, s.addr(s.node), port)), s.server)
			for _, by := range []*actor{s.denied, s.free} {
				for _, to := range []netip.Addr{s.addr(s.node), s.gatewayAddr(), s.addr(s.x)} {
					s.denyPieces(name, by, shape(wrap(by, to, port)))
				}
			}
		}
		// What the node takes beside its own addresses.
		for _, by := range []*actor{s.denied, s.free} {
			to := []netip.Addr{limitedBroadcast, netip.MustParseAddr("192.168.50.255"), netip.MustParseAddr("224.0.0.1")}
			if s.f == lab.V6 {
				to = []netip.Addr{netip.MustParseAddr("ff02::1"), netip.MustParseAddr("ff02::2"), frame.LinkLocal(by.gateway)}
			}
			for _, to := range to {
				s.deny(fmt.Sprintf("to %v", to), by, wrap(by, to, port))
				if by == s.free {
					s.pass(fmt.Sprintf("to %v, at a port of none", to), by, wrap(by, to, port-1), s.node)
				}
			}
		}
	}},
	{name: "ports and protocols of tunnels", run: func(s *scene) {
		wraps := map[string]func(src, dst netip.Addr) []byte{}
		for _, port := range []uint16{4789, 4790, 6081, 6635, 6784, 8285, 8472} {
			wraps[fmt.Sprintf("UDP port %d", port)] = func(src, dst netip.Addr) []byte {
				return frame.UDPPacket(netip.AddrPortFrom(src, s.port()), netip.AddrPortFrom(dst, port), append(make([]byte, 16), s.mark()...))
			}
		}
		for _, protocol := range tunnelProtocols {
			wraps[fmt.Sprintf("protocol %d", protocol)] = func(src, dst netip.Addr) []byte {
				return frame.IP{Src: src, Dst: dst, Protocol: protocol}.Packet(append(make([]byte, 24), s.mark()...))
			}
		}
		for name, wrap := range wraps {
			s.pass(name+", of another node", s.x, wrap(s.addr(s.x), s.addr(s.node)), s.node)
			s.pass(name+", through the node", s.x, wrap(s.addr(s.x), s.addr(s.y)), s.y)
			for _, by := range []*actor{s.denied, s.free} {
				for _, to := range []netip.Addr{s.addr(s.node), s.gatewayAddr(), s.addr(s.x), s.addr(s.other)} {
					s.deny(fmt.Sprintf("%s to %v", name, to), by, wrap(s.addr(by), to))
				}
				s.denyPieces(name+", in fragments", by, fragments(wrap(s.addr(by), s.addr(s.node)), s.port(), 24))
				if s.f == lab.V6 {
					s.deny(name+", behind options", by, behind(destinationOptions, wrap(s.addr(by), s.addr(s.node))))
				}
			}
		}
		none := func(by, to *actor) []byte {
			return frame.IP{Src: s.addr(by), Dst: s.addr(to), Protocol: 253}.Packet(s.mark())
		}
		s.pass("a protocol of none", s.free, none(s.free, s.x), s.x)
		s.pass("a protocol of none, to a pod", s.free, none(s.free, s.other), s.other)
	}},
	{name: "tunnels that are allowed", atOnce: true, run: func(s *scene) {
		tunnel := func(by *actor) []byte {
			link := s.MAC(fmt.Sprintf("vx8472-%d", s.f))
			return frame.UDPPacket(s.to(by, s.port()), s.to(s.node, 8472), frame.VXLAN(vxlans[8472], frame.Ethernet(s.y.mac, link, s.inner(s.f))))
		}
		wrapped := func(by, to *actor) []byte {
			return frame.IP{Src: s.addr(by), Dst: s.addr(to), Protocol: frame.GRE}.Packet(s.mark())
		}
		s.setTunnels(true)
		for _, s.f = range lab.Families {
			s.pass("VXLAN to the node", s.free, tunnel(s.free), s.server)
			s.pass("GRE to the node", s.free, wrapped(s.free, s.node), s.node)
			s.pass("GRE to another node", s.free, wrapped(s.free, s.x), s.x)
			s.deny("by who may send nothing", s.denied, tunnel(s.denied))
			s.deny("by who may send nothing, GRE", s.denied, wrapped(s.denied, s.x))
		}
		s.settle()
		s.setTunnels(false)
		for _, s.f = range lab.Families {
			s.deny("VXLAN to the node", s.free, tunnel(s.free))
			s.deny("GRE to another node", s.free, wrapped(s.free, s.x))
		}
	}},
	// Not in a VRF: there Geneve's socket and ip6tnl take nothing from its links.
	{name: "a tunnel's packet as an answer to the node", run: func(s *scene) {
		for port := range vxlans {
			for _, pod := range []*actor{s.denied, s.free} {
				node, at := s.to(s.node, port), s.to(pod, s.port())
				s.pass(fmt.Sprintf("the node asks from port %d", port), s.node, s.udp(node, at), pod)
				s.deny(fmt.Sprintf("to port %d", port), pod, s.udp(at, node))
			}
		}
		for _, protocol := range tunnelProtocols {
			packet := func(src, dst *actor) []byte {
				return frame.IP{Src: s.addr(src), Dst: s.addr(dst), Protocol: protocol}.Packet(append(make([]byte, 24), s.mark()...))
			}
			s.pass(fmt.Sprintf("the node sends protocol %d", protocol), s.node, packet(s.node, s.free), s.free)
			s.deny(fmt.Sprintf("protocol %d", protocol), s.free, packet(s.free, s.node))
		}
	}},
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

// tunnelProtocols are those of IP that some node unwraps: IP in IP, IPv6, GRE, EtherIP, L2TP,
// MPLS, Ethernet.
var tunnelProtocols = []byte{frame.IPIP, frame.IPv6, frame.GRE, 97, 115, 137, 143}

// setTunnels has a pod's ADD say whether pods may send tunnels.
func (s *scene) setTunnels(allowed bool) {
	s.Helper()
	pod := s.NewPod(lab.PodSpec{Name: fmt.Sprintf("tunnels-%t", allowed), Network: s.network()})
	s.finally(func() { _ = pod.Del() })
	if err := pod.Add(); err != nil {
		s.Fatal(err)
	}
	s.podIntoVRF(s.T, pod)
	if err := pod.Chain(s.Podmark(lab.Plugin{"policy": "files", "allowTunnels": allowed})); err != nil {
		s.Fatal(err)
	}
	s.mutate(s.T)
}

// addLabTunnels gives the node links for tunnels of the scene's outer family, and has podmark
// look at the node again.
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
