package adversary_test

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/podmark/podmark/test/frame"
	"github.com/podmark/podmark/test/lab"
	"github.com/podmark/podmark/test/needs"
)

// services are attacks by way of a service, which sends them on to a pod, another machine or
// the node itself.
var services = throughServices(
	attack{name: "through a service", run: func(s *scene) {
		vip := s.service()
		s.pass("allowed", s.free, s.udp(s.to(s.free, s.port()), vip), s.other)
		s.pass("from outside", s.x, s.udp(s.to(s.x, s.port()), vip), s.other)
		s.deny("denied", s.denied, s.udp(s.to(s.denied, s.port()), vip))
		s.deny("denied, but for outside", s.client, s.udp(s.to(s.client, s.port()), vip))
		for _, by := range []*actor{s.denied, s.client, s.server} {
			for _, as := range []netip.Addr{s.addr(s.free), s.addr(s.x), s.addr(s.node), s.gatewayAddr(), s.pick("10.1.0.77", "fd00:10:1::77")} {
				s.deny(fmt.Sprintf("as %v", as), by, s.udp(netip.AddrPortFrom(as, s.port()), vip))
				s.deny(fmt.Sprintf("TCP as %v", as), by, s.syn(netip.AddrPortFrom(as, s.port()), vip))
			}
		}
		s.pass("TCP, allowed", s.free, s.syn(s.to(s.free, s.port()), vip), s.other)
		s.deny("TCP, denied", s.denied, s.syn(s.to(s.denied, s.port()), vip))
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
		if !needs.Lab() {
			return // only IPVS knows what an error is about
		}
		about := func() []byte { return s.udp(vip, src) }
		for _, e := range icmpErrors {
			s.pass(e.name+" about the own flow", s.free, unreachable(s.addr(s.free), about(), e.v4, e.v6), s.other)
			for _, by := range []*actor{s.denied, s.client} {
				for _, as := range []netip.Addr{s.addr(by), s.addr(s.free), s.addr(s.x), s.gatewayAddr()} {
					s.deny(fmt.Sprintf("%s about another's flow, as %v", e.name, as), by, unreachable(as, about(), e.v4, e.v6))
				}
			}
		}
	}},
	attack{name: "through a service into an isolated pod", run: func(s *scene) {
		vip := s.serviceOf(81, s.to(s.server, 80))
		s.pass("an allowed peer", s.free, s.udp(s.to(s.free, s.port()), vip), s.server)
		for _, by := range []*actor{s.other, s.denied, s.client, s.x} {
			s.deny("another", by, s.udp(s.to(by, s.port()), vip))
		}
	}},
	attack{name: "through a service from a further prefix", atOnce: true, run: func(s *scene) {
		vips, tunnels := map[lab.Family]netip.AddrPort{}, map[lab.Family]netip.AddrPort{}
		for _, s.f = range lab.Families {
			vips[s.f], tunnels[s.f] = s.service(), s.serviceOf(9472, s.to(s.x, 8472))
		}
		for _, app := range []string{"free", "denied"} {
			router := s.router(app, "172.30.0.0/16", "fd00:30::/64")
			for _, s.f = range lab.Families {
				vip := vips[s.f]
				packet := s.udp(netip.AddrPortFrom(s.pick("172.30.0.5", "fd00:30::5"), s.port()), vip)
				if app == "free" {
					s.pass("from it", router, packet, s.other)
				} else {
					s.deny("from it, denied", router, packet)
				}
				s.deny("to a tunnel of another node", router, s.udp(netip.AddrPortFrom(s.pick("172.30.0.5", "fd00:30::5"), s.port()), tunnels[s.f]))
				s.deny("from another prefix", router, s.udp(netip.AddrPortFrom(s.pick("172.31.0.5", "fd00:31::5"), s.port()), vip))
				s.settle()
			}
			s.gone(router)
		}
	}},
	attack{name: "kube-router's marks in INPUT", run: func(s *scene) {
		vip, tunnel := s.service(), s.serviceOf(9472, s.to(s.x, 8472))
		// What its network policy does to all that comes in: "0x10000/0x10000" is accepted, "0x20000" is judged.
		for _, xmark := range []string{"0x10000/0x30000", "0x20000/0x30000", "0x0/0x30000", "0x30000/0x30000", "0x0/0xffffffff"} {
			rule := []string{"INPUT", "-j", "MARK", "--set-xmark", xmark}
			s.Iptables(s.f, append([]string{"-I"}, rule...)...)
			s.deny("to a service, "+xmark, s.denied, s.udp(s.to(s.denied, s.port()), vip))
			s.deny("to a service that only outside may, "+xmark, s.client, s.udp(s.to(s.client, s.port()), vip))
			s.deny("to a tunnel of another node, "+xmark, s.free, s.udp(s.to(s.free, s.port()), tunnel))
			s.pass("to a service, allowed, "+xmark, s.free, s.udp(s.to(s.free, s.port()), vip), s.other)
			s.settle()
			s.Iptables(s.f, append([]string{"-D"}, rule...)...)
		}
	}},
	attack{name: "an ID behind a service", run: func(s *scene) {
		vip := s.service()
		s.nft("table inet watch {\nset seen { type mark . inet_service; flags dynamic; size 1000; }\nchain post { type filter hook postrouting priority 400\nmeta l4proto udp meta mark & 0xffff0000 != 0 update @seen { meta mark . udp dport }\n}\n}")
		s.finally(func() { s.nft("delete table inet watch") })
		s.pass("from a pod", s.free, s.udp(s.to(s.free, s.port()), vip), s.other)
		s.pass("from outside", s.x, s.udp(s.to(s.x, s.port()), vip), s.other)
		s.settle()
		if list, err := s.cast.Try("nft", "-n", "list", "set", "inet", "watch", "seen"); err != nil || strings.Contains(list, "elements") {
			s.Errorf("packets have an ID where nobody asks for it: %v %s", err, list)
		}
	}},
	attack{name: "VXLAN through a service", run: func(s *scene) {
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
				if !needs.Lab() && s.f == lab.V6 && inner == lab.V6 {
					continue // nf_tables forgets what the kernel has summed up of a long packet
				}
				what := fmt.Sprintf("to port %d, with %v", port, inner)
				s.pass(what+", from outside", s.x, wrap(s.to(s.x, 4000), own, inner), s.server)
				for _, by := range []*actor{s.denied, s.free} {
					s.deny(what, by, wrap(s.to(by, 4000), own, inner))
				}
			}
		}
	}},
)

// syn is the first segment of a connection.
func (s *scene) syn(src, dst netip.AddrPort) []byte {
	return frame.TCPPacket(src, dst, frame.SYN, 1, 0, s.mark())
}

// throughServices are attacks by way of a service, on any kernel and with IPVS in the lab.
func throughServices(list ...attack) (out []attack) {
	for _, a := range list {
		here, there := a, a
		here.name, here.at = a.name+", without IPVS", []attachment{routed, bridged}
		there.lab, there.at = "IPVS", []attachment{routed, vlan}
		out = append(out, here, there)
	}
	return out
}

// service gives the pod other a ClusterIP.
func (s *scene) service() netip.AddrPort { s.Helper(); return s.serviceOf(80, s.to(s.other, 8080)) }

// serviceOf is a ClusterIP with that port and backend. Out of the lab nf_tables does what IPVS
// does to a packet, at its priority: it sends a copy on, which has no socket, goes through
// OUTPUT and has what INPUT has put on it.
func (s *scene) serviceOf(port uint16, backend netip.AddrPort) netip.AddrPort {
	s.Helper()
	vip := netip.AddrPortFrom(s.pick("10.96.0.10", "fd00:96::a"), port)
	if !needs.Lab() {
		family, then := pick(s.f, "ip", "ip6"), fmt.Sprintf("dup to %v drop", backend.Addr())
		if backend.Addr() == s.addr(s.node) {
			then = "accept"
		}
		local := fmt.Sprintf("local %v dev lo", vip.Addr()) // at once: an address of IPv6 has it later
		s.ip("route replace " + local)
		s.nft(fmt.Sprintf("table %[1]s service%[2]d {\nchain input {\ntype filter hook input priority 98\n%[1]s daddr %[3]v udp dport %[2]d %[1]s daddr set %[4]v udp dport set %[5]d %[6]s\n%[1]s daddr %[3]v tcp dport %[2]d %[1]s daddr set %[4]v tcp dport set %[5]d %[6]s\n}\n}",
			family, port, vip.Addr(), backend.Addr(), backend.Port(), then))
		s.finally(func() {
			s.nft(fmt.Sprintf("delete table %s service%d", family, port))
			_ = s.cast.ip("route delete " + local) // other ports have it too
		})
		return vip
	}
	for _, p := range []lab.Protocol{lab.UDP, lab.TCP} {
		service := lab.Service{Kind: lab.ClusterIP, Protocol: p, Address: vip.Addr(), Port: vip.Port(), Backends: []netip.AddrPort{backend}}
		s.AddServices(service)
		s.finally(func() { s.RemoveServices(service) })
	}
	return vip
}
