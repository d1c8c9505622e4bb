package adversary_test

import (
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/test/lab"
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
		meta l4proto udp update @seen { meta mark . udp dport }
	}
}`)
		s.finally(func() { s.nft("delete table inet watch") })
		var want []string
		for i, value := range values {
			if inLab() && value&0x4000 != 0 {
				continue // kube-proxy is there, and takes its own bit for its own
			}
			for j, to := range []*actor{s.x, s.denied, s.server, s.other} {
				port := uint16(9000 + 10*i + j)
				s.shots = append(s.shots, s.marked(value, to, port))
				want = append(want, fmt.Sprintf("0x%08x . %d", value, port))
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
	{name: "kube-router's marks in INPUT", lab: "IPVS", at: []attachment{routed, vlan}, run: func(s *scene) {
		vip := s.service()
		// What its network policy does to all that comes in: "0x10000/0x10000" is accepted, "0x20000" is judged.
		for _, xmark := range []string{"0x10000/0x30000", "0x20000/0x30000", "0x0/0x30000", "0x30000/0x30000"} {
			rule := []string{"INPUT", "-j", "MARK", "--set-xmark", xmark}
			s.Iptables(s.f, append([]string{"-I"}, rule...)...)
			s.deny("to a service, "+xmark, s.denied, s.udp(s.to(s.denied, s.port()), vip))
			s.deny("to a service that only outside may, "+xmark, s.client, s.udp(s.to(s.client, s.port()), vip))
			s.pass("to a service, allowed, "+xmark, s.free, s.udp(s.to(s.free, s.port()), vip), s.other)
			s.settle()
			s.Iptables(s.f, append([]string{"-D"}, rule...)...)
		}
	}},
	{name: "through a service", lab: "IPVS", at: []attachment{routed, vlan}, run: func(s *scene) {
		vip := s.service()
		s.pass("allowed", s.free, s.udp(s.to(s.free, s.port()), vip), s.other)
		s.pass("from outside", s.x, s.udp(s.to(s.x, s.port()), vip), s.other)
		s.deny("denied", s.denied, s.udp(s.to(s.denied, s.port()), vip))
		s.deny("denied, but for outside", s.client, s.udp(s.to(s.client, s.port()), vip))
		for _, by := range []*actor{s.denied, s.client, s.server} {
			for _, as := range []netip.Addr{s.addr(s.free), s.addr(s.x), s.addr(s.node), s.gatewayAddr(), s.pick("10.1.0.77", "fd00:10:1::77")} {
				s.deny(fmt.Sprintf("as %v", as), by, s.udp(netip.AddrPortFrom(as, s.port()), vip))
			}
		}
		s.deny("an endpoint's address from outside", s.y, s.udp(netip.AddrPortFrom(s.addr(s.free), s.port()), vip))
		// Inside another's live flow to the service.
		src := s.to(s.free, s.port())
		s.pass("a flow", s.free, s.udp(src, vip), s.other)
		s.pass("its answer", s.other, s.udp(s.to(s.other, 8080), src), s.free)
		for _, by := range []*actor{s.denied, s.client, s.y} {
			s.deny("inside another's flow", by, s.udp(src, vip))
			s.deny("as the backend in another's flow", by, s.udp(s.to(s.other, 8080), src))
			if by != s.y {
				s.deny("as the service in another's flow", by, s.udp(vip, src))
			}
		}
	}},
}

// service gives the pod other a ClusterIP.
func (s *scene) service() netip.AddrPort { s.Helper(); return s.serviceOf(80, s.to(s.other, 8080)) }

// serviceOf is a ClusterIP with that port and backend.
func (s *scene) serviceOf(port uint16, backend netip.AddrPort) netip.AddrPort {
	s.Helper()
	vip := netip.AddrPortFrom(s.pick("10.96.0.10", "fd00:96::a"), port)
	service := lab.Service{Kind: lab.ClusterIP, Protocol: lab.UDP, Address: vip.Addr(), Port: vip.Port(), Backends: []netip.AddrPort{backend}}
	s.AddServices(service)
	s.finally(func() { s.RemoveServices(service) })
	return vip
}

// marked is a datagram of a plain socket of the node, with a mark, which must arrive.
func (s *scene) marked(value uint32, to *actor, port uint16) shot {
	s.Helper()
	key := s.mark()
	var fd int
	err := s.Do(func() (err error) {
		if fd, err = unix.Socket(pick(s.f, unix.AF_INET, unix.AF_INET6), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if s.at == vrf {
			if err := unix.BindToDevice(fd, "red"); err != nil {
				return err
			}
		}
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(int32(value)))
	})
	if err != nil {
		s.Fatal(err)
	}
	s.finally(func() { unix.Close(fd) })
	var at unix.Sockaddr
	if s.f == lab.V4 {
		at = &unix.SockaddrInet4{Port: int(port), Addr: s.addr(to).As4()}
	} else {
		at = &unix.SockaddrInet6{Port: int(port), Addr: s.addr(to).As16()}
	}
	return shot{
		what: fmt.Sprintf("a local socket's mark %#x", value), from: s.node, pass: true, who: []*actor{to},
		key: key, send: func() error { return unix.Sendto(fd, key, 0, at) },
	}
}
