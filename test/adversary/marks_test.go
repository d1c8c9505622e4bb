package adversary_test

import (
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/test/frame"
	"github.com/podmark/podmark/test/lab"
	"github.com/podmark/podmark/test/needs"
)

// marks are set by others than podmark: they change no verdict, and podmark changes none of
// them.
var marks = []attack{
	{name: "local sockets with a mark", run: func(s *scene) {
		// IDs of pods and of outside, Tailscale's, kube-proxy's, Mullvad's, WireGuard's, Cilium's, all bits.
		values := []uint32{1, 0x4000, 0x8000, 0x10000, 0x20000, 0x30000, 0x40000, 0x50000, 0x60000, 0x70000, 0x80000, 0xff0000, 0x6d6f6c65, 0xca6c, 0x200, 0xe00, 0x12340000, 0xffff0000, 0xffffffff, 0x80000000}
		s.nft(`table inet watch {
	set seen { type mark . inet_service; flags dynamic; size 1000; }
	chain post { type filter hook postrouting priority 400
		meta l4proto { tcp, udp } update @seen { meta mark . th dport }
	}
}`)
		s.finally(func() { s.nft("delete table inet watch") })
		var want []string
		for i, value := range values {
			if needs.Lab() && value&0x4000 != 0 {
				continue // kube-proxy is there, and takes its own bit for its own
			}
			for j, to := range []*actor{s.x, s.denied, s.server, s.other} {
				for k, send := range []func(uint32, *actor, uint16) shot{s.markedUDP, s.markedTCP, s.markedAsOther} {
					port := uint16(9000 + 100*i + 10*j + k)
					s.shots = append(s.shots, send(value, to, port))
					want = append(want, fmt.Sprintf("0x%08x . %d", value, port))
				}
			}
		}
		s.settle()
		list, err := s.cast.Try("nft", "-n", "list", "set", "inet", "watch", "seen")
		if err != nil {
			s.Fatal(err)
		}
		for _, w := range want {
			if !strings.Contains(list, w) {
				s.Errorf("no packet leaves with the mark and to the port %s", w)
			}
		}
	}},
	{name: "what the node answers without a program", at: outOfVRF, run: func(s *scene) {
		// An agent marks all that the node sends: the IDs of outside, of pods and of nobody.
		s.finally(func() { s.nft("delete table inet other") })
		request := pick[byte](s.f, 8, 128)
		for _, value := range []string{"0x10000", "0x20000", "0x30000", "0x60000", "0xffffffff"} {
			s.nft("table inet other\ndelete table inet other\ntable inet other { chain marks { type filter hook output priority -402\nmeta mark set " + value + "\n}\n}")
			for _, by := range []*actor{s.x, s.server, s.free} {
				echo := frame.ICMPPacket(s.addr(by), s.addr(s.node), request, 0, 0, append([]byte{0, byte(s.port()), 0, 1}, s.mark()...))
				s.pass("an echo with mark "+value, by, echo, by)
			}
			s.settle()
		}
	}},
	{name: "marks that the node puts on what pods send", atOnce: true, run: func(s *scene) {
		// Whole marks of other tools, set before podmark looks: no ID may be made of them.
		// The values are outside's ID, that of a pod, and all bits.
		s.finally(func() { s.nft("delete table inet other") })
		for _, value := range []string{"0x10000", "0x60000", "0xffffffff"} {
			for _, at := range []string{"prerouting priority -310", "prerouting priority -140", "input priority -160", "forward priority -160"} {
				s.nft("table inet other\ndelete table inet other\ntable inet other { chain marks { type filter hook " + at + "\nmeta mark set " + value + "\n}\n}")
				what := "mark " + value + " at " + at
				for _, s.f = range lab.Families {
					asked, at := s.to(s.node, s.port()), s.to(s.x, 53)
					s.pass(what+", the node's own question", s.node, s.udp(asked, at), s.x)
					s.pass(what+", its answer", s.x, s.udp(at, asked), s.node)
					for _, to := range []*actor{s.x, s.server, s.node, s.other} {
						s.deny(what, s.denied, s.new(s.denied, to, 80))
					}
					s.deny(what+", a port that is not allowed", s.client, s.new(s.client, s.x, 54))
					s.deny(what+", into a pod that takes nothing", s.free, s.new(s.free, s.denied, 80))
					s.deny(what+", forged", s.other, s.posing(s.addr(s.free), s.server, 80))
					s.pass(what+", an allowed port", s.client, s.new(s.client, s.x, 53), s.x)
					s.pass(what+", an allowed peer", s.free, s.new(s.free, s.server, 80), s.server)
					s.pass(what+", to the node", s.free, s.new(s.free, s.node, 80), s.node)
				}
				s.settle()
			}
		}
	}},
	{name: "an ID that nobody has", run: func(s *scene) {
		s.nft("table inet other { chain marks { type filter hook input priority 99\nmeta mark set 0xfff00000\n}\n}")
		s.finally(func() { s.nft("delete table inet other") })
		if s.Backend() != lab.NFTables {
			return // there PODMARK-INPUT has judged what is for the node
		}
		s.deny("to the node", s.free, s.new(s.free, s.node, 7))
	}},
	{name: "an ID that stays in the mark", run: func(s *scene) {
		hooks := []string{"forward", "postrouting"}
		if s.Backend() == lab.NFTables { // with iptables a process of the node gets it
			hooks = append(hooks, "input")
		}
		table := "table inet watch {\nset seen { type mark . inet_service; flags dynamic; size 1000; }\n"
		for _, hook := range hooks {
			table += "chain " + hook + " { type filter hook " + hook + " priority 400\nmeta l4proto udp meta mark & 0xffff0000 != 0 update @seen { meta mark . udp dport }\n}\n"
		}
		s.nft(table + "}")
		s.finally(func() { s.nft("delete table inet watch") })
		for _, to := range []*actor{s.node, s.x, s.other} {
			s.pass("from a pod", s.free, s.new(s.free, to, 7), to)
		}
		s.pass("from outside", s.x, s.new(s.x, s.node, 7), s.node)
		s.settle()
		list, err := s.cast.Try("nft", "-n", "list", "set", "inet", "watch", "seen")
		if err != nil {
			s.Fatal(err)
		}
		if strings.Contains(list, "elements") {
			s.Errorf("packets have an ID where nobody asks for it: %s", list)
		}
	}},
}

// socket is one of the node's, for the rest of the attack.
func (s *scene) socket(kind, protocol int) (fd int) {
	s.Helper()
	err := s.Do(func() (err error) {
		if fd, err = unix.Socket(pick(s.f, unix.AF_INET, unix.AF_INET6), kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol); err != nil {
			return err
		}
		if s.at == vrf {
			return unix.BindToDevice(fd, "red")
		}
		return nil
	})
	if err != nil {
		s.Fatal(err)
	}
	s.finally(func() { unix.Close(fd) })
	return fd
}

func (s *scene) sockaddr(at netip.AddrPort) unix.Sockaddr {
	if at.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
}

// marked is what a socket of the node sends with a mark, which must arrive.
func (s *scene) marked(what string, fd int, value uint32, to *actor, key []byte, send func() error) shot {
	s.Helper()
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(int32(value))); err != nil {
		s.Fatal(err)
	}
	return shot{what: fmt.Sprintf("a local socket's mark %#x, %s", value, what), from: s.node, pass: true, who: []*actor{to}, key: key, send: send}
}

// markedUDP is a datagram.
func (s *scene) markedUDP(value uint32, to *actor, port uint16) shot {
	s.Helper()
	fd, key, at := s.socket(unix.SOCK_DGRAM, 0), s.mark(), s.sockaddr(s.to(to, port))
	return s.marked("UDP", fd, value, to, key, func() error { return unix.Sendto(fd, key, 0, at) })
}

// markedTCP is the first segment of a connection, with data in it (RFC 7413).
func (s *scene) markedTCP(value uint32, to *actor, port uint16) shot {
	s.Helper()
	fd, key, at := s.socket(unix.SOCK_STREAM, 0), s.mark(), s.sockaddr(s.to(to, port))
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_NO_COOKIE, 1); err != nil {
		s.Fatal(err)
	}
	return s.marked("TCP", fd, value, to, key, func() error {
		if err := unix.Sendto(fd, key, unix.MSG_FASTOPEN, at); err != unix.EINPROGRESS {
			return err
		}
		return nil
	})
}

// markedAsOther is a datagram from an address that is not the node's.
func (s *scene) markedAsOther(value uint32, to *actor, port uint16) shot {
	s.Helper()
	packet := s.udp(netip.AddrPortFrom(s.pick("203.0.113.7", "2001:db8::7"), s.port()), s.to(to, port))
	fd, at := s.socket(unix.SOCK_RAW, unix.IPPROTO_RAW), s.sockaddr(netip.AddrPortFrom(s.addr(to), 0))
	return s.marked("as another", fd, value, to, marksIn(packet)[0], func() error { return unix.Sendto(fd, packet, 0, at) })
}
