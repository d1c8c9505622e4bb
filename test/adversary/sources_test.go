package adversary_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"

	"github.com/podmark/podmark/test/frame"
	"github.com/podmark/podmark/test/lab"
)

// sources are packets that say they come from another sender. rp_filter is off, or loose:
// what strict filtering drops is the kernel's merit, and IPv4's alone.
var sources = []attack{
	{name: "another pod's live flow", run: func(s *scene) {
		for _, loose := range []bool{false, true} {
			s.looseFilter(loose)
			for _, tr := range transports {
				asked := s.open(tr.protocol, s.client, s.x, 53)
				served := s.open(tr.protocol, s.free, s.server, 80)
				s.pass(tr.name+", the resolver's own answer", s.x, asked.fromServer(), s.client)
				s.pass(tr.name+", the client's own question", s.client, asked.fromClient(), s.x)
				for _, by := range []*actor{s.denied, s.twin, s.other} {
					s.deny(tr.name+", forged as the resolver's answer", by, asked.fromServer())
					s.deny(tr.name+", forged as the client's question", by, asked.fromClient())
					s.deny(tr.name+", forged as the server's answer to a pod", by, served.fromServer())
					s.deny(tr.name+", forged as a pod's request", by, served.fromClient())
				}
				s.deny(tr.name+", a pod's question from outside", s.y, asked.fromClient())
				s.deny(tr.name+", a pod's request from outside", s.y, served.fromClient())
				s.deny(tr.name+", a server's answer from outside", s.y, served.fromServer())
			}
			s.settle()
		}
	}},
	{name: "a live flow with the victim's MAC address too", at: onBridge, run: func(s *scene) {
		for _, tr := range transports {
			asked := s.open(tr.protocol, s.client, s.x, 53)
			served := s.open(tr.protocol, s.free, s.server, 80)
			// The last packet of each flow is the owner's: the bridge learns where it is.
			s.denyFrame(tr.name+", forged as the client's question", s.denied, frame.Ethernet(s.client.mac, s.denied.gateway, asked.fromClient()))
			s.denyFrame(tr.name+", forged as a pod's request", s.denied, frame.Ethernet(s.free.mac, s.server.mac, served.fromClient()))
			s.denyFrame(tr.name+", forged as the router's", s.denied, frame.Ethernet(s.denied.gateway, s.client.mac, asked.fromServer()))
			s.pass(tr.name+", the client's own", s.client, asked.fromClient(), s.x)
			s.pass(tr.name+", the pod's own", s.free, served.fromClient(), s.server)
		}
	}},
	{name: "the node's own query", run: func(s *scene) {
		for _, loose := range []bool{false, true} {
			s.looseFilter(loose)
			src, dst := s.to(s.node, s.port()), s.to(s.x, 53)
			s.pass("the query", s.node, s.udp(src, dst), s.x)
			s.pass("the answer", s.x, s.udp(dst, src), s.node)
			for _, by := range []*actor{s.denied, s.client, s.free} {
				s.deny("a forged answer", by, s.udp(dst, src))
			}
			toPod, ofPod := s.to(s.node, s.port()), s.to(s.other, 8080)
			s.pass("a probe", s.node, s.udp(toPod, ofPod), s.other)
			s.pass("the pod's answer", s.other, s.udp(ofPod, toPod), s.node)
			for _, by := range []*actor{s.denied, s.free, s.y} {
				s.deny("a forged answer to a probe", by, s.udp(ofPod, toPod))
			}
			s.settle()
		}
	}},
	{name: "a new flow from an address that is not the pod's", run: func(s *scene) {
		for _, loose := range []bool{false, true} {
			s.looseFilter(loose)
			for _, as := range s.strangers() {
				for _, by := range []*actor{s.denied, s.other} {
					for _, to := range []*actor{s.server, s.x, s.node} {
						if as == s.addr(to) {
							continue
						}
						s.deny(fmt.Sprintf("as %v", as), by, s.posing(as, to, 80))
					}
				}
			}
			for _, tr := range transports[1:] {
				as, to := netip.AddrPortFrom(s.addr(s.free), s.port()), s.to(s.server, 80)
				first := frame.TCPPacket(as, to, frame.SYN, 1, 0, s.mark())
				if tr.protocol == frame.SCTP {
					first = frame.SCTPPacket(as, to, 0, frame.SCTPInit, append([]byte{1, 1, 1, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1}, s.mark()...))
				}
				s.deny(tr.name+" as an allowed peer", s.other, first)
			}
			s.settle()
		}
	}},
	{name: "an endpoint's address from outside", run: func(s *scene) {
		for _, loose := range []bool{false, true} {
			s.looseFilter(loose)
			for _, to := range []*actor{s.server, s.other, s.node} {
				s.deny("as an allowed peer", s.y, s.posing(s.addr(s.free), to, 80))
			}
			s.pass("from the machine's own", s.y, s.new(s.y, s.other, 80), s.other)
			s.settle()
		}
	}},
	{name: "ICMP errors about others' flows", run: func(s *scene) {
		for _, tr := range transports {
			asked := s.open(tr.protocol, s.client, s.x, 53)
			for _, e := range icmpErrors {
				for _, by := range []*actor{s.denied, s.twin, s.free} {
					for _, from := range []netip.Addr{s.addr(by), s.addr(s.x), s.addr(s.node), s.gatewayAddr()} {
						s.deny(fmt.Sprintf("%s from %v", e.name, from), by, unreachable(from, asked.fromClient(), e.v4, e.v6))
						s.deny(fmt.Sprintf("%s to the server from %v", e.name, from), by, unreachable(from, asked.fromServer(), e.v4, e.v6), s.client)
					}
				}
			}
			redirect := func(from netip.Addr) []byte {
				return unreachable(from, asked.fromClient(), [2]byte{5, 1}, [2]byte{137, 0})
			}
			for _, by := range []*actor{s.denied, s.free, s.x, s.y} {
				s.deny("a redirect", by, redirect(s.addr(by)))
				if by.pod != nil {
					s.deny("a redirect as the gateway", by, redirect(s.gatewayAddr()))
				}
			}
		}
	}},
	{name: "what connection tracking calls invalid", run: func(s *scene) {
		asked, src, dst := s.open(frame.TCP, s.client, s.x, 53), s.to(s.x, 53), s.to(s.client, s.port())
		far := uint32(clientSeq + 1<<30)
		for _, by := range []*actor{s.denied, s.other} {
			s.deny("out of the window", by, frame.TCPPacket(asked.server, asked.client, frame.ACK, far, far, s.mark()))
			s.deny("a reset", by, frame.TCPPacket(asked.server, asked.client, frame.RST, serverSeq, 0, s.mark()))
			s.deny("all flags", by, frame.TCPPacket(src, dst, 0xff, 1, 1, s.mark()))
			s.deny("no flag", by, frame.TCPPacket(src, dst, 0, 1, 1, s.mark()))
			own := s.to(by, s.port())
			s.deny("an ACK of nothing", by, frame.TCPPacket(own, dst, frame.ACK, 1, 1, s.mark()))
			s.deny("a SYN-ACK of nothing", by, frame.TCPPacket(own, dst, frame.SYN|frame.ACK, 1, 1, s.mark()))
			s.deny("SCTP data of nothing", by, frame.SCTPPacket(own, dst, 7, frame.SCTPData, append(make([]byte, 12), s.mark()...)))
			// A checksum that is wrong makes conntrack call it invalid.
			b := frame.UDPPacket(netip.AddrPortFrom(s.addr(s.x), 53), dst, append(s.mark(), "wrong"...))
			b[len(b)-1] ^= 0x20
			s.deny("a wrong checksum", by, b)
		}
	}},
	{name: "protocols nobody tracks", run: func(s *scene) {
		for _, protocol := range []byte{0xfd, 2, 50, 51, 103, 112, 255} {
			packet := func(src netip.Addr, to *actor) []byte {
				return frame.IP{Src: src, Dst: s.addr(to), Protocol: protocol}.Packet(s.mark())
			}
			for _, to := range []*actor{s.server, s.client, s.x} {
				s.deny(fmt.Sprintf("protocol %d", protocol), s.denied, packet(s.addr(s.denied), to))
				for _, by := range []*actor{s.denied, s.other} {
					if to != s.x {
						s.deny(fmt.Sprintf("protocol %d, forged", protocol), by, packet(s.addr(s.x), to))
					}
					s.deny(fmt.Sprintf("protocol %d, forged", protocol), by, packet(s.addr(s.free), to))
				}
			}
		}
	}},
	{name: "fragments", family: lab.V4, run: func(s *scene) {
		asked := s.open(frame.UDP, s.client, s.x, 53)
		split := func(id uint16, src, dst netip.AddrPort) (first, second []byte) {
			datagram := frame.UDPSegment(src, dst, append(s.mark(), append(make([]byte, 47), s.mark()...)...))
			ip := frame.IP{Src: src.Addr(), Dst: dst.Addr(), Protocol: frame.UDP, ID: id, More: true}
			first = ip.Packet(datagram[:64])
			ip.More, ip.Offset = false, 64
			return first, ip.Packet(datagram[64:])
		}
		first, second := split(1, asked.client, asked.server)
		s.pass("the first of the client's own", s.client, first, s.x)
		s.pass("the second of the client's own", s.client, second, s.x)
		for i, by := range []*actor{s.denied, s.other} {
			first, second = split(uint16(2+4*i), asked.server, asked.client)
			s.deny("the first", by, first)
			s.deny("the second", by, second)
			first, second = split(uint16(3+4*i), s.to(by, s.port()), s.to(s.client, 53))
			s.deny("the second from the own address, before it the first", by, second)
			s.deny("the first from the own address, behind it the second", by, first)
		}
	}},
	{name: "extension headers", family: lab.V6, run: func(s *scene) {
		// Next header, length in 8 bytes less 1, options: one of padding, RFC 8200 4.2.
		extended := func(header byte, src, dst netip.AddrPort) []byte {
			b := append([]byte{frame.UDP, 0, 1, 4, 0, 0, 0, 0}, frame.UDPSegment(src, dst, s.mark())...)
			return frame.IP{Src: src.Addr(), Dst: dst.Addr(), Protocol: header}.Packet(b)
		}
		asked := s.open(frame.UDP, s.client, s.x, 53)
		for _, header := range []byte{0, 60} { // hop-by-hop, destination options
			s.pass("the client's own", s.client, extended(header, asked.client, asked.server), s.x)
			s.deny("the own address", s.denied, extended(header, s.to(s.denied, s.port()), s.to(s.x, 53)))
			s.deny("a port that is not allowed", s.client, extended(header, s.to(s.client, s.port()), s.to(s.x, 54)))
			s.deny("forged", s.denied, extended(header, asked.server, asked.client))
			s.deny("forged without a policy", s.other, extended(header, asked.server, asked.client))
		}
	}},
	{name: "random forged sources", run: func(s *scene) {
		seed := rand.Uint64()
		if text := os.Getenv("PODMARK_SEED"); text != "" {
			var err error
			if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
				s.Fatal(err)
			}
		}
		s.Logf("PODMARK_SEED=%d", seed)
		random := rand.New(rand.NewPCG(seed, 0))
		all, strangers := []*actor{s.denied, s.client, s.twin, s.server, s.free, s.other}, s.strangers()
		for range 300 {
			by, to := all[random.IntN(len(all))], s.actors[random.IntN(len(s.actors))]
			as := strangers[random.IntN(len(strangers))]
			if random.IntN(3) == 0 {
				b := s.addr(by).AsSlice()
				b[len(b)-1-random.IntN(2)] ^= byte(1 + random.IntN(255))
				as, _ = netip.AddrFromSlice(b)
			}
			if as == s.addr(by) || as == s.addr(to) {
				continue
			}
			src, dst := netip.AddrPortFrom(as, s.port()), s.to(to, []uint16{7, 53, 80}[random.IntN(3)])
			packet := s.udp(src, dst)
			switch random.IntN(4) {
			case 0:
				packet = frame.TCPPacket(src, dst, byte(random.IntN(256)), random.Uint32(), random.Uint32(), s.mark())
			case 1: // but hop-by-hop options, which the kernel reads, and complains of, before any hook
				packet = frame.IP{Src: as, Dst: dst.Addr(), Protocol: byte(1 + random.IntN(255)), Hops: byte(2 + random.IntN(254))}.Packet(append(make([]byte, 8), s.mark()...))
			case 2:
				packet = frame.ICMPPacket(as, dst.Addr(), byte(random.IntN(256)), byte(random.IntN(3)), byte(2+random.IntN(254)), append(make([]byte, 4), s.mark()...))
			}
			s.deny(fmt.Sprintf("%x", packet), by, packet)
		}
	}},
}

// looseFilter sets rp_filter to 2, or to 0, on all links of the node.
func (s *scene) looseFilter(loose bool) {
	if s.f == lab.V4 {
		s.sysctl("net/ipv4/conf/all/rp_filter", map[bool]string{false: "0", true: "2"}[loose], "0")
	}
}

// strangers are addresses that are no endpoint's or another endpoint's, of all kinds.
func (s *scene) strangers() []netip.Addr {
	out := []netip.Addr{s.addr(s.free), s.addr(s.x), s.addr(s.y), s.addr(s.node), s.gatewayAddr()}
	for _, a := range pick(s.f,
		[]string{"10.1.0.77", "10.44.1.5", "8.8.8.8", "0.0.0.0", "169.254.7.7", "127.0.0.1", "224.0.0.5", "255.255.255.255", "10.1.0.255"},
		[]string{"fd00:10:1::77", "fd00:44::5", "2001:db8::8", "::", "fe80::bad", "::1", "ff02::5", "ff0e::5"}) {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// gatewayAddr is the node's address among the pods.
func (s *scene) gatewayAddr() netip.Addr { return s.pick("10.1.0.1", "fd00:10:1::1") }
