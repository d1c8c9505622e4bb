package adversary_test

import (
	"fmt"
	"net/netip"
	"slices"

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
			const destinationOptions = 60
			s.deny(fmt.Sprintf("behind %d bytes", n), s.denied, frame.IP{Src: s.addr(s.denied), Dst: s.addr(s.client), Protocol: destinationOptions}.Packet(append(options, report[40:]...)))
		}
	}},
	{name: "ICMP errors from a further prefix", run: func(s *scene) {
		asked := s.open(frame.UDP, s.client, s.x, 53)
		pod := s.NewPod(lab.PodSpec{Name: fmt.Sprintf("router%d", s.f), Labels: map[string]string{"app": "denied"}, Network: s.network()})
		if err := pod.Add(); err != nil {
			s.Fatal(err)
		}
		if err := pod.Chain(s.Podmark(lab.Plugin{"policy": "files", "allowedSourcePrefixes": []string{"172.30.0.0/16", "fd00:30::/64"}})); err != nil {
			s.Fatal(err)
		}
		dev := pod.HostVeth
		if s.onBridge() {
			dev = "cni0"
		}
		router := s.enter(s.T, pod.NS, pod, dev)
		if s.onBridge() {
			router.bridge = "cni0"
		}
		s.finally(func() { s.rm(router); _ = pod.Del() })
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
		pod := s.NewPod(lab.PodSpec{Name: fmt.Sprintf("wild%d", s.f), Network: s.network()})
		if err := pod.Add(); err != nil {
			s.Fatal(err)
		}
		wild := s.enter(s.T, pod.NS, pod, "cni0")
		wild.bridge = "cni0"
		s.finally(func() { s.rm(wild); _ = pod.Del() })
		s.pass("before", s.x, s.new(s.x, s.free, 7), s.free)
		s.settle()
		s.denyFrame("under the own address", wild, frame.Ethernet(s.free.mac, wild.gateway, s.new(wild, s.y, 7)), s.free)
		s.settle()
		s.deny("behind it", s.x, s.new(s.x, s.free, 7), wild)
		s.pass("behind it", s.x, s.new(s.x, s.free, 7), s.free)
		s.pass("behind it", s.free, s.new(s.free, s.x, 7), s.x)
	}},
}

const icmpv6 = 58

// rm forgets an actor that goes with the scene.
func (s *scene) rm(gone *actor) {
	s.actors = slices.DeleteFunc(slices.Clone(s.actors), func(a *actor) bool { return a == gone })
}
