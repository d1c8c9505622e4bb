package adversary_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/podmark/podmark/test/frame"
	"github.com/podmark/podmark/test/lab"
)

// headers are attacks with what stands in front of the header that rules look at, and with
// addresses that no list has.
var headers = []attack{
	{name: "an ICMP error behind other headers", family: lab.V6, run: func(s *scene) {
		about := s.open(frame.UDP, s.client, s.x, 53).fromClient()
		s.deny("plain", s.denied, unreachable(s.addr(s.denied), about, [2]byte{}, [2]byte{1, 4}))
		for _, n := range []int{8, 56, 64, 72} {
			// The sender's own address, where that of the packet that the error is about
			// would be without options.
			options := make([]byte, n)
			options[0], options[1], options[2], options[3] = icmpv6, byte(n/8-1), 1, byte(n-4)
			if own := s.addr(s.denied).AsSlice(); n >= 48 {
				copy(options[72-40:], own)
			}
			report := unreachable(s.addr(s.denied), append(about, s.mark()...), [2]byte{}, [2]byte{1, 4})
			s.deny(fmt.Sprintf("behind %d bytes", n), s.denied, frame.IP{Src: s.addr(s.denied), Dst: s.addr(s.client), Protocol: destinationOptions}.Packet(append(options, report[40:]...)))
		}
	}},
	{name: "ICMP errors from a further prefix", run: func(s *scene) {
		asked := s.open(frame.UDP, s.client, s.x, 53)
		router := s.router("denied", "172.30.0.0/16", "fd00:30::/64")
		as := s.pick("172.30.0.5", "fd00:30::5")
		s.deny("a packet of its own", router, s.posing(as, s.client, 9))
		s.deny("to the client", router, unreachable(as, asked.fromClient(), [2]byte{3, 3}, [2]byte{1, 4}))
		s.deny("to the server", router, unreachable(as, asked.fromServer(), [2]byte{3, 3}, [2]byte{1, 4}), s.x)
	}},
	{name: "loopback addresses of the node", family: lab.V4, run: func(s *scene) {
		for _, dev := range []string{"all", "default"} {
			s.Sysctl("net/ipv4/conf/"+dev+"/route_localnet", "1")
			s.finally(func() { s.Sysctl("net/ipv4/conf/"+dev+"/route_localnet", "0") })
		}
		for _, to := range []string{"127.0.0.1", "127.0.0.2", "127.1.2.3"} {
			for _, port := range []uint16{53, 9000} {
				at := netip.AddrPortFrom(netip.MustParseAddr(to), port)
				s.deny(at.String(), s.denied, s.udp(s.to(s.denied, s.port()), at), s.node)
			}
		}
	}},
	{name: "an endpoint's MAC address from a pod of nobody's", at: []attachment{bridged}, run: func(s *scene) {
		wild := s.wild()
		s.pass("before", s.x, s.new(s.x, s.free, 7), s.free)
		s.settle()
		s.denyFrame("under the own address", wild, frame.Ethernet(s.free.mac, wild.gateway, s.new(wild, s.y, 7)), s.free)
		s.settle()
		s.deny("behind it", s.x, s.new(s.x, s.free, 7), wild)
		s.pass("behind it", s.x, s.new(s.x, s.free, 7), s.free)
		s.pass("behind it", s.free, s.new(s.free, s.x, 7), s.x)
	}},
	{name: "behind a tag from a pod of nobody's", at: onBridge, run: func(s *scene) {
		wild := s.wild()
		tags := func(b []byte, tags ...uint32) []byte {
			payload := b[12:]
			for _, t := range slices.Backward(tags) {
				payload = append(binary.BigEndian.AppendUint32(nil, t), payload...)
			}
			return append(slices.Clone(b[:12]), payload...)
		}
		for _, list := range [][]uint32{{0x81000000}, {0x81000001}, {0x8100e000}, {0x88a80000}, {0x81000000, 0x81000000}, {0x81000001, 0x81000000}, {0x88a80000, 0x81002000}, {0x81000000, 0x81000000, 0x81000000}} {
			for _, to := range []*actor{s.x, s.server, s.node} {
				s.denyFrame(fmt.Sprintf("behind %#x, as an endpoint", list), wild, tags(frame.Ethernet(wild.mac, wild.gateway, s.posing(s.addr(s.free), to, 80)), list...))
			}
			claim := frame.EthernetOf(wild.mac, frame.Broadcast, frame.TypeARP, frame.ARP(2, wild.mac, s.addr(s.free), make([]byte, 6), s.addr(s.free)))
			if s.f == lab.V6 {
				everybody := netip.MustParseAddr("ff02::1")
				claim = frame.Ethernet(wild.mac, frame.Multicast(everybody), s.neighbour(neighbourAdvertisement, frame.LinkLocal(wild.mac), everybody, 0x20, s.addr(s.free), wild.mac))
			}
			s.denyFrame(fmt.Sprintf("behind %#x, an endpoint's address claimed", list), wild, tags(claim, list...))
			if s.f == lab.V4 {
				taken := frame.EthernetOf(wild.mac, frame.Broadcast, frame.TypeARP, frame.ARP(1, wild.mac, netip.IPv4Unspecified(), make([]byte, 6), s.addr(s.free)))
				s.denyFrame(fmt.Sprintf("behind %#x, an endpoint's address about to be taken", list), wild, tags(taken, list...))
			} else {
				group := frame.SolicitedNode(s.addr(s.free))
				taken := s.neighbour(neighbourSolicitation, netip.IPv6Unspecified(), group, 0, s.addr(s.free), wild.mac)
				s.denyFrame(fmt.Sprintf("behind %#x, an endpoint's address about to be taken", list), wild, tags(frame.Ethernet(wild.mac, frame.Multicast(group), taken), list...))
			}
		}
		s.passFrame("behind one, as itself", wild, tags(frame.Ethernet(wild.mac, wild.gateway, s.new(wild, s.x, 7)), 0x81000000), s.x)
	}},
	{name: "behind a tag, into and out of isolated pods", at: onBridge, run: func(s *scene) {
		wild := s.wild()
		for _, vid := range []uint16{0, 1, 0xe000} {
			for _, protocol := range []uint16{frame.TypeVLAN, 0x88a8} {
				what := fmt.Sprintf("behind %#x %#x", protocol, vid)
				tagged := func(to *actor, packet []byte) []byte {
					b := frame.Ethernet(wild.mac, to.mac, packet)
					tag := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, protocol), vid)
					return slices.Concat(b[:12], tag, b[12:])
				}
				for _, to := range []*actor{s.denied, s.client, s.server} {
					s.denyFrame(what, wild, tagged(to, s.new(wild, to, 81)))
				}
				if protocol == frame.TypeVLAN {
					s.passFrame(what+", a pod that takes everything", wild, tagged(s.free, s.new(wild, s.free, 7)), s.free)
				}
			}
		}
		if s.at != vlan {
			return
		}
		s.settle()
		// The port tags what it sends, as the uplink of a trunk does.
		err := s.Do(func() error {
			port, err := netlink.LinkByName(wild.pod.HostVeth)
			if err != nil {
				return err
			}
			return errors.Join(netlink.BridgeVlanDel(port, 1, true, true, false, true), netlink.BridgeVlanAdd(port, 1, false, false, false, true))
		})
		if err != nil {
			s.Fatal(err)
		}
		for _, by := range []*actor{s.denied, s.client} {
			s.denyFrame("out by a port that tags", by, frame.Ethernet(by.mac, wild.mac, s.new(by, wild, 9000)))
		}
		s.passFrame("out by a port that tags, a pod that sends everything", s.free, frame.Ethernet(s.free.mac, wild.mac, s.new(s.free, wild, 7)), wild)
	}},
	{name: "addresses claimed by a pod of nobody's", at: []attachment{bridged}, run: func(s *scene) {
		wild := s.wild()
		if s.f == lab.V4 {
			arp := func(operation byte, as, about netip.Addr) []byte {
				return frame.EthernetOf(wild.mac, frame.Broadcast, frame.TypeARP, frame.ARP(operation, wild.mac, as, make([]byte, 6), about))
			}
			for _, victim := range []*actor{s.free, s.server} {
				s.denyFrame("announced", wild, arp(2, s.addr(victim), s.addr(victim)))
				s.denyFrame("in a question", wild, arp(1, s.addr(victim), s.gatewayAddr()))
				s.denyFrame("about to be taken", wild, arp(1, netip.IPv4Unspecified(), s.addr(victim)))
			}
			s.passFrame("its own", wild, arp(1, s.addr(wild), s.gatewayAddr()), s.denied)
			s.passFrame("its own, about to be taken", wild, arp(1, netip.IPv4Unspecified(), s.addr(wild)), s.denied)
			return
		}
		everybody, own := netip.MustParseAddr("ff02::1"), frame.LinkLocal(wild.mac)
		for _, victim := range []*actor{s.free, s.server} {
			for _, from := range []netip.Addr{own, s.addr(victim)} {
				s.deny("about to be taken", wild, s.neighbour(neighbourSolicitation, netip.IPv6Unspecified(), frame.SolicitedNode(s.addr(victim)), 0, s.addr(victim), wild.mac))
				s.deny(fmt.Sprintf("advertised from %v", from), wild, s.neighbour(neighbourAdvertisement, from, everybody, 0x20, s.addr(victim), wild.mac))
			}
		}
		s.pass("its own", wild, s.neighbour(neighbourAdvertisement, own, everybody, 0x20, s.addr(wild), wild.mac), s.denied)
		s.pass("its own, about to be taken", wild, s.neighbour(neighbourSolicitation, netip.IPv6Unspecified(), frame.SolicitedNode(s.addr(wild)), 0, s.addr(wild), wild.mac), s.denied)
	}},
	{name: "what a link needs", at: []attachment{bridged}, run: func(s *scene) {
		wild := s.wild()
		if s.f == lab.V4 {
			question := frame.ARP(1, s.free.mac, s.addr(s.free), make([]byte, 6), s.addr(wild))
			s.passFrame("a question that fills a frame", s.free, frame.EthernetOf(s.free.mac, frame.Broadcast, frame.TypeARP, append(question, make([]byte, 18)...)), s.denied)
			return
		}
		local, everybody := frame.LinkLocal(s.free.mac), netip.MustParseAddr("ff02::1")
		s.pass("an advertisement of the link-local address", s.free, frame.ICMPPacket(local, everybody, neighbourAdvertisement, 0, 255, append([]byte{0x20, 0, 0, 0}, local.AsSlice()...)), s.denied)
		mld := func(from netip.Addr, to string, kind byte, group string) []byte {
			body := append(append(make([]byte, 4), netip.MustParseAddr(group).AsSlice()...), s.mark()...)
			return behindRouterAlert(frame.ICMPPacket(from, netip.MustParseAddr(to), kind, 0, 1, body))
		}
		ra := append([]byte{64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0}, s.nonce()...)
		s.pass("a router's advertisement", wild, frame.ICMPPacket(frame.LinkLocal(wild.mac), everybody, routerAdvertisement, 0, 255, ra), s.denied)
		s.pass("a router's query", wild, mld(frame.LinkLocal(wild.mac), "ff02::1", mldQuery, "::"), s.denied)
		s.settle()
		s.pass("a report", s.free, mld(frame.LinkLocal(s.free.mac), "ff02::1:3", mldReport, "ff02::1:3"), wild)
		s.pass("a report from no address yet", s.free, mld(netip.IPv6Unspecified(), "ff02::1:3", mldReport, "ff02::1:3"), wild)
	}},
	{name: "a further prefix that other pods are in", at: outOfVRF, run: func(s *scene) {
		router := s.router("server", "172.30.0.0/16", "fd00:30::/64", "10.1.0.0/16", "fd00:10:1::/64")
		own := s.pick("172.30.0.5", "fd00:30::5")
		s.pass("from it", router, s.posing(own, s.x, 7), s.x)
		if s.onBridge() {
			to := func(by *actor, port uint16) []byte {
				return frame.Ethernet(by.mac, router.mac, s.udp(s.to(by, s.port()), netip.AddrPortFrom(own, port)))
			}
			s.passFrame("to it, as policy has it", s.free, to(s.free, 80), router)
			s.denyFrame("to it", s.free, to(s.free, 81))
			s.denyFrame("to it from another", s.other, to(s.other, 80))
		}
		for _, to := range []*actor{s.x, s.server, s.other} {
			s.deny("from another pod's address, which is in it", router, s.posing(s.addr(s.free), to, 80))
		}
		about := s.open(frame.UDP, s.other, s.x, 53).fromClient()
		for _, from := range []netip.Addr{own, s.addr(router)} {
			s.deny("a redirect", router, unreachable(from, about, [2]byte{5, 1}, [2]byte{137, 0}))
			src := netip.AddrPortFrom(from, s.port())
			s.deny("as in a tunnel", router, s.udp(src, s.to(s.x, 8472)))
			s.pass("as in none", router, s.udp(src, s.to(s.x, 8471)), s.x)
		}
	}},
	{name: "an address that is routed to a pod", at: []attachment{routed}, run: func(s *scene) {
		to := s.pick("10.9.9.9", "fd00:99::9")
		for _, pod := range []*actor{s.denied, s.other} {
			s.ip(fmt.Sprintf("route replace %v dev %s", to, pod.dev))
			if err := s.knows(to, pod.mac, pod.dev); err != nil {
				s.Fatal(err)
			}
			for _, group := range []string{"1886", "0"} {
				s.ip("link set " + pod.dev + " group " + group)
				s.deny("in group "+group+", from outside", s.x, s.udp(s.to(s.x, s.port()), netip.AddrPortFrom(to, 7)))
				s.deny("in group "+group+", from a pod", s.free, s.udp(s.to(s.free, s.port()), netip.AddrPortFrom(to, 7)))
				s.settle()
			}
			s.ip("link set "+pod.dev+" group 1886", fmt.Sprintf("route delete %v dev %s", to, pod.dev))
		}
	}},
	{name: "a pod whose ADD is under way", at: []attachment{routed}, run: func(s *scene) {
		coming := s.wild()
		s.ip("link set " + coming.dev + " group 1886")
		s.deny("to it", s.x, s.new(s.x, coming, 7))
		s.deny("to it, from a pod", s.free, s.new(s.free, coming, 7))
		for _, to := range []*actor{s.x, s.other, s.node} {
			s.deny("from it", coming, s.new(coming, to, 7))
		}
		s.settle()
		s.ip("link set " + coming.dev + " group 0")
		s.pass("of nobody's", coming, s.new(coming, s.x, 7), s.x)
	}},
	{name: "fragments of discovery", family: lab.V6, at: onBridge, run: func(s *scene) {
		for _, by := range []*actor{s.denied, s.free} {
			for id, to := range []netip.Addr{s.addr(s.server), s.addr(s.other), frame.SolicitedNode(s.addr(s.other))} {
				// A solicitation with an option that says to be long.
				long := append(frame.Neighbour(0, s.addr(s.other), 1, by.mac), 253, 100)
				long = append(append(long, make([]byte, 774)...), s.mark()...)
				whole := frame.ICMPPacket(s.addr(by), to, neighbourSolicitation, 0, 255, long)[40:]
				for _, cut := range []int{8, 24, 400, len(whole)} {
					for at := 0; at < len(whole); at += cut {
						end, more := min(at+cut, len(whole)), uint16(0)
						if end < len(whole) {
							more = 1
						}
						header := binary.BigEndian.AppendUint16([]byte{icmpv6, 0}, uint16(at)|more)
						header = binary.BigEndian.AppendUint32(header, uint32(id<<16|cut))
						s.deny(fmt.Sprintf("bytes %d to %d of %d", at, end, len(whole)), by,
							frame.IP{Src: s.addr(by), Dst: to, Protocol: fragmentHeader, Hops: 255}.Packet(append(header, whole[at:end]...)))
					}
				}
			}
		}
	}},
	{name: "the node's own address from outside", family: lab.V6, at: outOfVRF, run: func(s *scene) {
		for _, as := range []netip.Addr{s.addr(s.node), s.gatewayAddr()} {
			for _, to := range []*actor{s.server, s.other, s.free} {
				s.deny(fmt.Sprintf("as %v", as), s.y, s.posing(as, to, 80))
			}
		}
		s.deny("to the node", s.y, s.posing(s.gatewayAddr(), s.node, 80))
	}},
	{name: "live flows of a further prefix", run: func(s *scene) {
		router := s.router("router", "172.30.0.0/16", "fd00:30::/64")
		as, at := s.pick("172.30.0.5", "fd00:30::5"), s.to(s.x, 7)
		table := ""
		if s.at == vrf {
			table = " table 100"
		}
		s.ip(fmt.Sprintf("route replace %v dev %s%s", pick(s.f, "172.30.0.0/16", "fd00:30::/64"), router.dev, table))
		if err := s.knows(as, router.mac, router.dev); err != nil {
			s.Fatal(err)
		}
		out, in := netip.AddrPortFrom(as, s.port()), netip.AddrPortFrom(as, 7)
		from := s.to(s.x, s.port())
		s.pass("a question", router, s.udp(out, at), s.x)
		s.pass("its answer", s.x, s.udp(at, out), router)
		s.pass("a question to it", s.x, s.udp(from, in), router)
		s.pass("its own answer", router, s.udp(in, from), s.x)
		s.settle()
		s.finally(func() { s.apply(s.T, policies) })
		s.apply(s.T, policies+denyAll("router", "Egress"))
		s.deny("an answer to what is denied", s.x, s.udp(at, out))
		s.pass("an answer to what is not", router, s.udp(in, from), s.x)
		s.settle()
		s.apply(s.T, policies+denyAll("router", "Ingress"))
		s.deny("the answer to what is denied", router, s.udp(in, from))
		s.pass("the answer to what is not", s.x, s.udp(at, out), router)
	}},
	{name: "the node's address in a further prefix", at: outOfVRF, run: func(s *scene) {
		prefix := func(a netip.Addr) string { return netip.PrefixFrom(a, a.BitLen()).String() }
		router := s.router("free", prefix(s.addr(s.node)), prefix(s.gatewayAddr()), "172.30.0.0/16", "fd00:30::/64")
		s.pass("from another", router, s.posing(s.pick("172.30.0.5", "fd00:30::5"), s.x, 7), s.x)
		for _, as := range []netip.Addr{s.addr(s.node), s.gatewayAddr()} {
			for _, to := range []*actor{s.x, s.other, s.server} {
				s.deny(fmt.Sprintf("as %v", as), router, s.posing(as, to, 80))
			}
		}
	}},
	{name: "discovery behind an authentication header", family: lab.V6, at: []attachment{bridged}, run: func(s *scene) {
		ah := func(kind byte, hops byte, from, to *actor) []byte {
			body := append(append(make([]byte, 4), s.addr(to).AsSlice()...), 253, 100)
			body = append(append(body, make([]byte, 774)...), s.mark()...)
			icmp := frame.ICMPPacket(s.addr(from), s.addr(to), kind, 0, hops, body)[40:]
			header := append([]byte{icmpv6, 4, 0, 0}, make([]byte, 20)...)
			return frame.IP{Src: s.addr(from), Dst: s.addr(to), Protocol: authenticationHeader, Hops: hops}.Packet(append(header, icmp...))
		}
		for _, p := range []struct{ from, to *actor }{{s.denied, s.server}, {s.denied, s.other}, {s.free, s.denied}, {s.other, s.server}} {
			for _, kind := range []byte{133, 135, 136} {
				s.deny(fmt.Sprintf("type %d behind AH to %v", kind, p.to), p.from, ah(kind, 255, p.from, p.to), p.to)
			}
		}
	}},
	{name: "discovery whose length is none", family: lab.V6, at: []attachment{bridged}, run: func(s *scene) {
		body := append(append(make([]byte, 4), s.addr(s.server).AsSlice()...), 253, 100)
		body = append(append(body, make([]byte, 774)...), s.mark()...)
		p := behindRouterAlert(frame.ICMPPacket(s.addr(s.denied), s.addr(s.server), 135, 0, 255, body))
		p[4], p[5] = 0, 0
		s.deny("long, of length none", s.denied, p, s.server)
	}},
	{name: "to a router that has other pods in its prefix", at: []attachment{bridged}, run: func(s *scene) {
		router := s.router("denied", "10.1.0.0/16", "fd00:10:1::/64")
		s.denyFrame("to its own address", s.other, frame.Ethernet(s.other.mac, router.mac, s.udp(s.to(s.other, s.port()), s.to(router, 7))), router)
		s.denyFrame("to a free pod's address, at the router's MAC", s.other, frame.Ethernet(s.other.mac, router.mac, s.udp(s.to(s.other, s.port()), s.to(s.free, 7))), router)
	}},
	{name: "data in what finds neighbours, from a pod of nobody's", at: []attachment{bridged}, run: func(s *scene) {
		wild := s.wild()
		if s.f == lab.V4 {
			b := append(append(frame.ARP(2, wild.mac, s.addr(wild), s.denied.mac, s.addr(s.denied)), s.mark()...), make([]byte, 1300)...)
			s.denyFrame("ARP with much behind", wild, frame.EthernetOf(wild.mac, s.denied.mac, frame.TypeARP, b), s.denied)
			return
		}
		body := append(append(make([]byte, 4), s.addr(s.denied).AsSlice()...), 253, 150)
		body = append(append(body, make([]byte, 1174)...), s.mark()...)
		s.deny("a long solicitation", wild, frame.ICMPPacket(s.addr(wild), s.addr(s.denied), 135, 0, 255, body), s.denied)
		s.deny("a long RA", wild, frame.ICMPPacket(frame.LinkLocal(wild.mac), s.addr(s.denied), 134, 0, 255, append(append(make([]byte, 12), 253, 150), append(make([]byte, 1174), s.mark()...)...)), s.denied)
	}},
	{name: "a flow that is older than the pod", at: outOfVRF, run: func(s *scene) {
		// Addresses are given in their order.
		before := s.NewPod(lab.PodSpec{Name: fmt.Sprintf("before%d", s.f), Network: s.network()})
		if err := before.Add(); err != nil {
			s.Fatal(err)
		}
		s.finally(func() { _ = before.Del() })
		next := before.NS.Addr(s.f).Next()
		packet := func(src, port uint16) []byte { return s.udp(s.to(s.free, src), netip.AddrPortFrom(next, port)) }
		s.deny("to nobody", s.free, packet(40001, 80))
		s.deny("to nobody, by another", s.other, s.udp(s.to(s.other, 40001), netip.AddrPortFrom(next, 80)))
		s.settle()
		late := s.addPod(s.T, fmt.Sprintf("late%d", s.f), "denied")
		s.finally(func() { s.rm(late); _ = late.pod.Del() })
		if got := s.addr(late); got != next {
			s.Fatalf("the pod has address %v, want %v", got, next)
		}
		s.deny("in the old flow", s.free, packet(40001, 80))
		s.deny("in a new one", s.free, packet(40002, 80))
		s.deny("in the old flow of another", s.other, s.udp(s.to(s.other, 40001), netip.AddrPortFrom(next, 80)))
	}},
}

// Extension headers of IPv6.
const (
	hopByHop             = 0
	routingHeader        = 43
	fragmentHeader       = 44
	authenticationHeader = 51
	destinationOptions   = 60
)

// behind puts an extension header of 8 bytes that says nothing in front of what a packet
// carries.
func behind(header byte, packet []byte) []byte {
	b := []byte{packet[6], 0, 1, 4, 0, 0, 0, 0} // padding
	if header == routingHeader {
		b = []byte{packet[6], 0, 0, 0, 0, 0, 0, 0} // with no address left
	}
	src, dst := ends(packet)
	return frame.IP{Src: src, Dst: dst, Protocol: header, Hops: packet[7]}.Packet(append(b, packet[40:]...))
}

// fragments cuts what a packet carries into pieces of n bytes, a multiple of 8.
func fragments(packet []byte, id uint16, n int) (out [][]byte) {
	src, dst := ends(packet)
	header, protocol := 20, packet[9]
	if src.Is6() {
		header, protocol = 40, packet[6]
	}
	data := packet[header:]
	for at := 0; at < len(data); at += n {
		end := min(at+n, len(data))
		ip := frame.IP{Src: src, Dst: dst, Protocol: protocol, ID: id, Offset: at, More: end < len(data)}
		piece := data[at:end]
		if src.Is6() {
			field := uint16(at)
			if ip.More {
				field |= 1
			}
			ip.Protocol = fragmentHeader
			piece = append(binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16([]byte{protocol, 0}, field), uint32(id)), piece...)
		}
		out = append(out, ip.Packet(piece))
	}
	return out
}

// ends are a packet's addresses.
func ends(packet []byte) (src, dst netip.Addr) {
	if packet[0]>>4 == 4 {
		return netip.AddrFrom4([4]byte(packet[12:16])), netip.AddrFrom4([4]byte(packet[16:20]))
	}
	return netip.AddrFrom16([16]byte(packet[8:24])), netip.AddrFrom16([16]byte(packet[24:40]))
}

// passPieces and denyPieces are pass and deny of what comes in pieces, of which the last has
// the mark.
func (s *scene) passPieces(what string, from *actor, pieces [][]byte, to *actor) {
	s.pass(what, from, s.allButLast(what, from, pieces), to)
}

func (s *scene) denyPieces(what string, from *actor, pieces [][]byte) {
	s.deny(what, from, s.allButLast(what, from, pieces))
}

func (s *scene) allButLast(what string, from *actor, pieces [][]byte) (last []byte) {
	n := len(pieces) - 1
	for _, piece := range pieces[:n] {
		s.shoot(shot{what: what, from: from}, s.frame(from, piece))
	}
	return pieces[n]
}

// behindRouterAlert puts the option in front that MLD has (RFC 2710 3).
func behindRouterAlert(packet []byte) []byte {
	out := append(slices.Clone(packet[:40]), icmpv6, 0, 5, 2, 0, 0, 1, 0)
	binary.BigEndian.PutUint16(out[4:], uint16(len(packet)-40+8))
	out[6] = 0
	return append(out, packet[40:]...)
}

// router is a pod with further source prefixes that goes with the scene.
func (s *scene) router(app string, prefixes ...string) *actor {
	s.Helper()
	pod := s.NewPod(lab.PodSpec{Name: fmt.Sprintf("router%d-%s", s.f, app), Labels: map[string]string{"app": app}, Network: s.network()})
	if err := pod.Add(); err != nil {
		s.Fatal(err)
	}
	s.podIntoVRF(s.T, pod)
	if err := pod.Chain(s.Podmark(lab.Plugin{"policy": "files", "allowedSourcePrefixes": prefixes})); err != nil {
		s.Fatal(err)
	}
	return s.extra(pod)
}

// wild is a pod that is none of podmark's, and goes with the scene.
func (s *scene) wild() *actor {
	s.Helper()
	pod := s.NewPod(lab.PodSpec{Name: fmt.Sprintf("wild%d", s.f), Network: s.network()})
	if err := pod.Add(); err != nil {
		s.Fatal(err)
	}
	return s.extra(pod)
}

func (s *scene) extra(pod *lab.Pod) *actor {
	s.Helper()
	s.mutate(s.T)
	dev := pod.HostVeth
	if s.onBridge() {
		dev = "cni0"
	}
	a := s.enter(s.T, pod.NS, pod, dev)
	if s.onBridge() {
		a.bridge = "cni0"
	}
	s.finally(func() { s.gone(a) })
	return a
}

// gone takes a pod away that goes with the scene.
func (s *scene) gone(a *actor) { s.rm(a); _ = a.pod.Del() }

const icmpv6 = 58

// rm forgets an actor that goes with the scene.
func (s *scene) rm(gone *actor) {
	s.actors = slices.DeleteFunc(slices.Clone(s.actors), func(a *actor) bool { return a == gone })
}
