package adversary_test

import (
	"context"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/test/frame"
	"github.com/podmark/podmark/test/lab"
)

// controls is traffic that must pass, and that a policy forbids and nobody disguises: without
// them the other tables prove nothing.
var controls = []attack{
	{name: "what policy allows and denies", run: func(s *scene) {
		for _, tr := range transports {
			s.open(tr.protocol, s.client, s.x, 53)
			s.open(tr.protocol, s.free, s.server, 80)
			s.open(tr.protocol, s.x, s.other, 7)
			s.open(tr.protocol, s.free, s.other, 7)
			s.open(tr.protocol, s.free, s.y, 7)
		}
		for _, p := range []struct {
			from, to *actor
			port     uint16
		}{
			{s.denied, s.x, 53},
			{s.denied, s.server, 80},
			{s.denied, s.other, 7},
			{s.denied, s.node, 7},
			{s.client, s.y, 53},
			{s.client, s.x, 54},
			{s.client, s.node, 53},
			{s.client, s.twin, 53},
			{s.free, s.server, 81},
			{s.free, s.denied, 80},
			{s.free, s.client, 53},
			{s.other, s.server, 80},
			{s.x, s.server, 80},
			{s.x, s.denied, 80},
		} {
			s.deny("a forbidden packet", p.from, s.new(p.from, p.to, p.port))
		}
	}},
	{name: "the node speaks to pods and is answered", run: func(s *scene) {
		for _, pod := range []*actor{s.denied, s.client, s.free} {
			src, dst := s.to(s.node, s.port()), s.to(pod, 8080)
			s.pass("a probe", s.node, s.udp(src, dst), pod)
			s.pass("its answer", pod, s.udp(dst, src), s.node)
			s.pass("its error", pod, unreachable(s.addr(pod), s.udp(src, dst), [2]byte{3, 3}, [2]byte{1, 4}), s.node)
		}
		src, dst := s.to(s.node, s.port()), s.to(s.x, 53)
		s.pass("the node's own query", s.node, s.udp(src, dst), s.x)
		s.pass("its answer", s.x, s.udp(dst, src), s.node)
		s.pass("a pod without a policy", s.free, s.new(s.free, s.node, 7), s.node)
	}},
	{name: "the node speaks to itself", run: func(s *scene) {
		// All of them but for 0x4000, by which kube-proxy has it masquerade, which ends on lo.
		for _, mark := range []int{0, 0x20000, 0x6d6f2c65, 0xffffbfff} {
			err := s.Do(func() error {
				config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
					_ = c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark) })
					return err
				}}
				c, err := config.ListenPacket(context.Background(), "udp", net.JoinHostPort(pick(s.f, "127.0.0.1", "::1"), "0"))
				if err != nil {
					return err
				}
				defer c.Close()
				if _, err := c.WriteTo(s.mark(), c.LocalAddr()); err != nil {
					return err
				}
				if err := c.SetReadDeadline(time.Now().Add(lab.AnswerLimit)); err != nil {
					return err
				}
				_, _, err = c.ReadFrom(make([]byte, 100))
				return err
			})
			if err != nil {
				s.Errorf("the node does not hear itself with mark %#x: %v", mark, err)
			}
		}
	}},
	{name: "echo", run: func(s *scene) {
		request, reply := pick[byte](s.f, 8, 128), pick[byte](s.f, 0, 129)
		echo := func(from, to *actor, kind byte) []byte {
			return frame.ICMPPacket(s.addr(from), s.addr(to), kind, 0, 0, append([]byte{0, byte(s.port()), 0, 1}, s.mark()...))
		}
		s.pass("a request", s.free, echo(s.free, s.x, request), s.x)
		s.pass("a request to a pod", s.free, echo(s.free, s.other, request), s.other)
		s.deny("a request", s.denied, echo(s.denied, s.x, request))
		s.deny("an answer to nothing", s.denied, echo(s.denied, s.x, reply))
	}},
	{name: "errors about the own flow", run: func(s *scene) {
		for _, tr := range transports {
			fl := s.open(tr.protocol, s.client, s.x, 53)
			for _, e := range icmpErrors {
				s.pass(e.name+" from the other end", s.x, unreachable(s.addr(s.x), fl.fromClient(), e.v4, e.v6), s.client)
				s.pass(e.name+" from a router", s.y, unreachable(s.addr(s.y), fl.fromClient(), e.v4, e.v6), s.client)
				s.pass(e.name+" from the pod", s.client, unreachable(s.addr(s.client), fl.fromServer(), e.v4, e.v6), s.x)
			}
		}
	}},
	{name: "neighbour discovery that must work", family: lab.V6, run: func(s *scene) {
		for _, by := range []*actor{s.denied, s.other} {
			local := frame.LinkLocal(by.mac)
			gateway := s.gatewayAddr()
			ask := func(from, target netip.Addr) []byte {
				return s.neighbour(neighbourSolicitation, from, frame.SolicitedNode(target), 0, target, by.mac)
			}
			s.pass("who has the gateway", by, ask(s.addr(by), gateway), s.node)
			s.pass("who has the gateway, from the link-local address", by, ask(local, gateway), s.node)
			s.pass("is the gateway there", by, s.neighbour(neighbourSolicitation, s.addr(by), gateway, 0, gateway, by.mac), s.node)
			s.pass("the own address is here", by, s.neighbour(neighbourAdvertisement, s.addr(by), gateway, 0x60, s.addr(by), by.mac), s.node)
			s.pass("the own link-local address is here", by, s.neighbour(neighbourAdvertisement, local, gateway, 0x60, local, by.mac), s.node)
			s.pass("is there a router", by, frame.ICMPPacket(local, netip.MustParseAddr("ff02::2"), routerSolicitation, 0, 255, append(make([]byte, 4), s.nonce()...)), s.node)
			if s.onBridge() {
				s.pass("is the own address free", by, frame.ICMPPacket(netip.IPv6Unspecified(), frame.SolicitedNode(s.addr(by)), neighbourSolicitation, 0, 255, append(append(make([]byte, 4), s.addr(by).AsSlice()...), s.nonce()...)), s.free)
				s.pass("who has a pod's address", by, ask(s.addr(by), s.addr(s.server)), s.server)
				s.pass("the own address is here, to a pod", by, s.neighbour(neighbourAdvertisement, s.addr(by), s.addr(s.server), 0x60, s.addr(by), by.mac), s.server)
			}
		}
		s.pass("the node asks", s.node, s.neighbour(neighbourSolicitation, s.addr(s.node), s.addr(s.denied), 0, s.addr(s.denied), s.denied.gateway), s.denied)
	}},
	{name: "ARP that must work", at: onBridge, family: lab.V4, run: func(s *scene) {
		for _, by := range []*actor{s.denied, s.other} {
			for _, to := range []*actor{s.free, s.server} {
				s.passFrame("a question", by, frame.EthernetOf(by.mac, frame.Broadcast, frame.TypeARP, frame.ARP(1, by.mac, s.addr(by), make([]byte, 6), s.addr(to))), to)
				s.passFrame("an answer", by, frame.EthernetOf(by.mac, to.mac, frame.TypeARP, frame.ARP(2, by.mac, s.addr(by), to.mac, s.addr(to))), to)
			}
		}
	}},
}

// icmpErrors are those that the path of a packet may need, as type and code.
var icmpErrors = []struct {
	name   string
	v4, v6 [2]byte
}{
	{"too big", [2]byte{3, 4}, [2]byte{2, 0}},
	{"port unreachable", [2]byte{3, 3}, [2]byte{1, 4}},
	{"time exceeded", [2]byte{11, 0}, [2]byte{3, 0}},
}
