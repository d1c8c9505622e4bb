package adversary_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/test/frame"
	"github.com/podmark/podmark/test/lab"
)

// bridgePorts are frames between two ports of a bridge, where no router looks at them.
var bridgePorts = []attack{
	{name: "beside the address", at: onBridge, run: func(s *scene) {
		isolated := []*actor{s.denied, s.client, s.twin, s.server}
		for _, port := range []uint16{80, 9000} {
			for _, d := range s.besides(s.server) {
				if port == 80 && d.to == s.addr(s.server) {
					continue // allowed, but for the MAC addresses below
				}
				s.denyFrame("into an isolated pod: "+d.name, s.free, frame.Ethernet(s.free.mac, d.mac, s.udp(s.to(s.free, s.port()), netip.AddrPortFrom(d.to, port))), isolated...)
			}
		}
		for _, d := range s.besides(s.other) {
			s.denyFrame("out of an isolated pod: "+d.name, s.denied, frame.Ethernet(s.denied.mac, d.mac, s.udp(s.to(s.denied, s.port()), netip.AddrPortFrom(d.to, 7))))
			own := netip.AddrPortFrom(frame.LinkLocal(s.denied.mac), s.port())
			if s.f == lab.V6 {
				s.denyFrame("out of an isolated pod, from its link-local address: "+d.name, s.denied, frame.Ethernet(s.denied.mac, d.mac, s.udp(own, netip.AddrPortFrom(d.to, 7))))
			}
		}
		own := s.to(s.free, s.port())
		s.denyFrame("what is allowed, in a broadcast frame", s.free, frame.Ethernet(s.free.mac, frame.Broadcast, s.udp(own, s.to(s.server, 80))), isolated...)
		s.denyFrame("what is allowed, in a multicast frame", s.free, frame.Ethernet(s.free.mac, frame.Multicast(s.pick("224.0.0.1", "ff02::1")), s.udp(own, s.to(s.server, 80))), isolated...)
		s.denyFrame("what is allowed, in a frame for another pod", s.free, frame.Ethernet(s.free.mac, s.client.mac, s.udp(own, s.to(s.server, 80))), isolated...)
		s.pass("what is allowed", s.free, s.udp(own, s.to(s.server, 80)), s.server)
		s.pass("between pods without a policy", s.free, s.udp(own, s.to(s.other, 9000)), s.other)
	}},
	{name: "broadcast and multicast of the node and of machines outside", at: onBridge, run: func(s *scene) {
		// What is routed to the bridge's own subnet, or forwarded from a group. An address that
		// is nobody's is where the node thinks it is.
		isolated := []*actor{s.denied, s.client, s.twin, s.server}
		nobody := s.pick("10.1.0.200", "fd00:10:1::c8")
		for _, dev := range []string{"all", "eth0"} {
			if s.f == lab.V4 {
				s.sysctl("net/ipv4/conf/"+dev+"/bc_forwarding", "1", "0")
			}
		}
		for _, at := range isolated {
			if err := s.knows(nobody, at.mac, "cni0"); err != nil {
				s.Fatal(err)
			}
			for _, to := range []netip.Addr{s.pick("10.1.0.255", "ff02::1"), nobody} {
				s.deny(fmt.Sprintf("to %v from outside", to), s.x, s.udp(s.to(s.x, s.port()), netip.AddrPortFrom(to, 9000)), isolated...)
			}
			s.denyNode("to an address that is nobody's", nobody, isolated...)
			s.settle()
		}
		s.pass("from outside, to a pod without a policy", s.x, s.new(s.x, s.free, 9000), s.free)
		groups := []string{"10.1.0.255", "255.255.255.255", "224.0.0.1", "224.0.0.251", "239.1.2.3"}
		if s.f == lab.V6 {
			groups = []string{"ff02::1", "ff02::2", "ff02::fb", "ff05::1:3", "ff0e::1"}
		}
		for _, group := range groups {
			to := netip.MustParseAddr(group)
			s.denyNode(fmt.Sprintf("to %v", to), to, isolated...)
			s.passNode(fmt.Sprintf("to %v, a pod without a policy", to), to, s.free)
		}
	}},
	{name: "other EtherTypes", at: onBridge, family: lab.V4, run: func(s *scene) {
		for _, t := range etherTypes {
			for _, p := range []struct{ by, to *actor }{{s.denied, s.other}, {s.free, s.denied}, {s.free, s.server}} {
				for _, mac := range []net.HardwareAddr{p.to.mac, frame.Broadcast, {0x01, 0x80, 0xc2, 0, 0, 0x21}} {
					s.denyFrame(t.name, p.by, frame.EthernetOf(p.by.mac, mac, t.number, append(append(append([]byte{}, t.before...), s.mark()...), make([]byte, 40)...)), s.isolatedFrom(p.by)...)
				}
			}
		}
	}},
	{name: "IP behind a tag", at: onBridge, run: func(s *scene) {
		etherType := pick[uint16](s.f, frame.TypeIPv4, frame.TypeIPv6)
		for _, p := range []struct{ by, to *actor }{{s.denied, s.other}, {s.free, s.denied}, {s.free, s.server}, {s.denied, s.x}} {
			for _, tag := range []struct {
				name     string
				protocol uint16
				ids      []uint16
			}{
				{"802.1Q", frame.TypeVLAN, []uint16{0, 1, 7, 100, 0xe000}},
				{"802.1ad", 0x88a8, []uint16{0, 1, 7}},
			} {
				for _, id := range tag.ids {
					tagged := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, id), etherType)
					to := p.to.mac
					if p.to == s.x {
						to = p.by.gateway
					}
					packet := s.new(p.by, p.to, 9000)
					s.denyFrame(fmt.Sprintf("%s %d", tag.name, id), p.by, frame.EthernetOf(p.by.mac, to, tag.protocol, append(tagged, packet...)), s.isolatedFrom(p.by)...)
					// Twice, as for one tag to be taken off.
					twice := append(binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, 1), tag.protocol), tagged...)
					s.denyFrame(fmt.Sprintf("%s %d, twice", tag.name, id), p.by, frame.EthernetOf(p.by.mac, to, frame.TypeVLAN, append(twice, s.new(p.by, p.to, 9000)...)), s.isolatedFrom(p.by)...)
				}
			}
			for _, session := range []struct {
				name   string
				number uint16
				before []byte
			}{
				// Version and session, length, PPP protocol: br_netfilter looks into it or not.
				{"PPPoE", 0x8864, append([]byte{0x11, 0, 0, 1, 0, 60}, pick(s.f, []byte{0, 0x21}, []byte{0, 0x57})...)},
				{"MPLS", 0x8847, []byte{0, 0, 1, 64}},
				{"LLC", 0x40, []byte{0xaa, 0xaa, 3, 0, 0, 0, byte(etherType >> 8), byte(etherType & 0xff)}},
			} {
				s.denyFrame(session.name, p.by, frame.EthernetOf(p.by.mac, p.to.mac, session.number, append(session.before, s.new(p.by, p.to, 9000)...)), s.isolatedFrom(p.by)...)
			}
		}
		// An EtherType that says another family, or none.
		for _, number := range []uint16{pick[uint16](s.f, frame.TypeIPv6, frame.TypeIPv4), frame.TypeARP, 0x88b5} {
			s.denyFrame("an EtherType of something else", s.denied, frame.EthernetOf(s.denied.mac, s.other.mac, number, s.new(s.denied, s.other, 7)))
		}
	}},
	{name: "another MAC address", at: onBridge, run: func(s *scene) {
		for _, by := range []*actor{s.denied, s.free} {
			for _, mac := range []net.HardwareAddr{{2, 0, 0, 0, 0, 1}, s.other.mac, by.gateway} {
				s.denyFrame("the own address", by, frame.Ethernet(mac, s.server.mac, s.new(by, s.server, 80)))
				s.denyFrame("the own address, to outside", by, frame.Ethernet(mac, by.gateway, s.new(by, s.x, 7)))
			}
		}
		// The bridge has not learnt from them: the owners still get what is theirs.
		s.pass("for the other pod", s.free, s.new(s.free, s.other, 7), s.other)
		s.pass("for the other pod, from outside", s.x, s.new(s.x, s.other, 7), s.other)
		s.pass("for the node", s.other, s.new(s.other, s.node, 7), s.node)
	}},
	{name: "ARP", at: onBridge, family: lab.V4, run: func(s *scene) {
		nobody := net.HardwareAddr{0, 0, 0, 0, 0, 0}
		gateway := s.gatewayAddr()
		for _, by := range []*actor{s.denied, s.other} {
			own, strange := s.addr(by), net.HardwareAddr{2, 0, 0, 0, 0, 2}
			for _, to := range []net.HardwareAddr{frame.Broadcast, s.free.mac, s.client.mac, by.gateway} {
				for _, operation := range []byte{1, 2} {
					// The operation, and the target, make each of the frames another.
					for i, addr := range []netip.Addr{s.addr(s.client), s.addr(s.free), gateway, s.addr(s.x), netip.MustParseAddr("10.1.0.77"), netip.MustParseAddr("0.0.0.0"), limitedBroadcast} {
						s.denyFrame("of another's address", by, frame.EthernetOf(by.mac, to, frame.TypeARP, frame.ARP(operation, by.mac, addr, net.HardwareAddr{0, 0, byte(i), to[5], operation, by.mac[5]}, s.addr(s.client))))
					}
					s.denyFrame("with another's MAC address inside", by, frame.EthernetOf(by.mac, to, frame.TypeARP, frame.ARP(operation, strange, own, to, s.addr(s.client))))
					s.denyFrame("with the gateway's MAC address inside", by, frame.EthernetOf(by.mac, to, frame.TypeARP, frame.ARP(operation, by.gateway, own, to, s.addr(s.client))))
					s.denyFrame("with another's MAC address outside", by, frame.EthernetOf(strange, to, frame.TypeARP, frame.ARP(operation, by.mac, own, to, s.addr(s.twin))))
					s.denyFrame("with something behind it", by, frame.EthernetOf(by.mac, to, frame.TypeARP, append(frame.ARP(operation, by.mac, own, nobody, s.addr(s.client)), s.mark()...)))
					s.denyFrame("with much behind it", by, frame.EthernetOf(by.mac, to, frame.TypeARP, append(append(frame.ARP(operation, by.mac, own, nobody, s.addr(s.client)), s.mark()...), make([]byte, 1000)...)))
				}
				other := frame.ARP(1, by.mac, own, to, s.addr(s.client))
				other[5] = 8 // addresses are longer
				s.denyFrame("of other lengths", by, frame.EthernetOf(by.mac, to, frame.TypeARP, append(other, s.mark()...)))
			}
		}
	}},
	{name: "DHCP's source", at: onBridge, family: lab.V4, run: func(s *scene) {
		any := netip.MustParseAddr("0.0.0.0")
		s.deny("unspecified, to everybody", s.denied, s.udp(netip.AddrPortFrom(any, 68), netip.AddrPortFrom(limitedBroadcast, 67)), s.others(s.denied)...)
		for _, by := range []*actor{s.denied, s.free} {
			s.deny("unspecified, to a pod", by, s.udp(netip.AddrPortFrom(any, 68), s.to(s.other, 67)))
			s.deny("unspecified, to everybody at another port", by, s.udp(netip.AddrPortFrom(any, 68), netip.AddrPortFrom(limitedBroadcast, 7)))
		}
	}},
	{name: "a VLAN that the bridge plugin gives", at: []attachment{routed}, lab: "VLAN filtering", atOnce: true, run: func(s *scene) {
		// The pods' router is cni1.100 then, not the bridge: podmark refuses what it would not judge.
		for i, keys := range []lab.Plugin{
			{"vlan": 100},
			{"vlan": 100, "preserveDefaultVlan": true},
			{"vlanTrunk": []lab.Plugin{{"minID": 100, "maxID": 110}}},
		} {
			bridge := fmt.Sprintf("cni%d", 1+i)
			plugin := lab.Plugin{"type": "bridge", "bridge": bridge, "isGateway": true, "ipam": lab.Plugin{
				"type": "host-local", "dataDir": filepath.Join(s.Dir, "vlan"),
				"ranges": [][]lab.Plugin{{{"subnet": fmt.Sprintf("10.%d.0.0/24", 60+i)}}, {{"subnet": fmt.Sprintf("fd00:%d::/64", 60+i)}}},
			}}
			for k, v := range keys {
				plugin[k] = v
			}
			pod, err := s.TryAddPod(lab.PodSpec{Name: "tagged", Network: lab.Network{Name: "tagged", Plugins: []lab.Plugin{plugin, s.podmark()}}})
			var refused *types.Error
			if !errors.As(err, &refused) || refused.Code != 104 {
				s.Errorf("a pod with %v: %v, want error code 104", keys, err)
			}
			if err := pod.Del(); err != nil {
				s.Error(err)
			}
			s.ip("link delete " + bridge)
		}
	}},
	{name: "what routers of multicast say", family: lab.V4, at: []attachment{bridged}, run: func(s *scene) {
		wild, group := s.wild(), netip.MustParseAddr("224.0.0.13")
		said := func(by *actor, protocol, kind byte) []byte {
			body := append([]byte{kind, 0, 0, 0, 0, 0, 0, 0}, s.mark()...)
			binary.BigEndian.PutUint16(body[2:], frame.Checksum(body))
			return frame.IP{Src: s.addr(by), Dst: group, Protocol: protocol, Hops: 1}.Packet(body)
		}
		s.pass("multicast of an endpoint", s.free, said(s.free, 17, 0), wild)
		for _, by := range []*actor{s.free, s.denied} {
			for _, kind := range []byte{0x11, 0x30, 0x31, 0x32} {
				s.deny(fmt.Sprintf("IGMP of type %#x", kind), by, said(by, 2, kind))
			}
			s.deny("PIM's hello", by, said(by, 103, 0x20))
		}
	}},
	{name: "redirect", family: lab.V4, at: onBridge, run: func(s *scene) {
		fl := s.open(frame.UDP, s.other, s.x, 53)
		for _, by := range []*actor{s.denied, s.free} {
			for _, from := range []netip.Addr{s.addr(by), s.gatewayAddr()} {
				s.deny("ICMP", by, unreachable(from, fl.fromClient(), [2]byte{5, 1}, [2]byte{}))
				s.denyFrame("ICMP in a broadcast frame", by, frame.Ethernet(by.mac, frame.Broadcast, unreachable(from, fl.fromClient(), [2]byte{5, 0}, [2]byte{})))
			}
		}
	}},
}

// denyNode and passNode are deny and pass of a datagram of the node's to whatever address, out
// by the bridge.
func (s *scene) denyNode(what string, to netip.Addr, who ...*actor) {
	s.Helper()
	s.shots = append(s.shots, s.outByBridge(what, to, shot{who: who}))
}

func (s *scene) passNode(what string, to netip.Addr, who *actor) {
	s.Helper()
	s.shots = append(s.shots, s.outByBridge(what, to, shot{who: []*actor{who}, pass: true}))
}

func (s *scene) outByBridge(what string, to netip.Addr, sh shot) shot {
	s.Helper()
	fd := s.socket(unix.SOCK_DGRAM, 0)
	key, at := s.mark(), s.sockaddr(netip.AddrPortFrom(to, 9000))
	if err := errors.Join(unix.BindToDevice(fd, "cni0"), unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1)); err != nil {
		s.Fatal(err)
	}
	sh.what, sh.from, sh.key = "of the node "+what, s.node, key
	sh.send = func() error { return unix.Sendto(fd, key, 0, at) }
	return sh
}

// beside is where a frame to a pod may go instead of its MAC and its IP address.
type beside struct {
	name string
	mac  net.HardwareAddr
	to   netip.Addr
}

func (s *scene) besides(pod *actor) []beside {
	out := []beside{{"its address", pod.mac, s.addr(pod)}, {"its address in a broadcast frame", frame.Broadcast, s.addr(pod)}}
	if s.f == lab.V4 {
		for _, a := range []struct{ name, addr string }{
			{"limited broadcast", "255.255.255.255"},
			{"subnet broadcast", "10.1.0.255"},
			{"the network's number", "10.1.0.0"},
			{"all hosts", "224.0.0.1"},
			{"mDNS", "224.0.0.251"},
			{"a group", "239.1.2.3"},
			{"a further address", "10.1.0.200"},
			{"a link-local address", "169.254.7.7"},
			{"its loopback address", "127.0.0.1"},
			{"unspecified", "0.0.0.0"},
		} {
			to := netip.MustParseAddr(a.addr)
			out = append(out, beside{a.name, frame.Broadcast, to}, beside{a.name + " at its MAC address", pod.mac, to})
			if to.IsMulticast() {
				out = append(out, beside{a.name + " at the group's MAC address", frame.Multicast(to), to})
			}
		}
		return out
	}
	for _, a := range []struct {
		name string
		to   netip.Addr
	}{
		{"all nodes", netip.MustParseAddr("ff02::1")},
		{"all routers", netip.MustParseAddr("ff02::2")},
		{"its solicited node", frame.SolicitedNode(s.addr(pod))},
		{"mDNS", netip.MustParseAddr("ff02::fb")},
		{"a group of the site", netip.MustParseAddr("ff05::1:3")},
		{"a global group", netip.MustParseAddr("ff0e::1")},
		{"its link-local address", frame.LinkLocal(pod.mac)},
		{"a further address", netip.MustParseAddr("fd00:10:1::c8")},
		{"its loopback address", netip.MustParseAddr("::1")},
	} {
		out = append(out, beside{a.name + " at its MAC address", pod.mac, a.to}, beside{a.name + " in a broadcast frame", frame.Broadcast, a.to})
		if a.to.IsMulticast() {
			out = append(out, beside{a.name, frame.Multicast(a.to), a.to})
		}
	}
	return out
}

// isolatedFrom are those who must not get a frame that is neither IP nor ARP: nobody, if
// the sender is denied all egress, or else the pods that ingress policies select.
func (s *scene) isolatedFrom(by *actor) []*actor {
	if by == s.denied {
		return nil
	}
	return []*actor{s.denied, s.client, s.twin, s.server}
}

// others are all pods but one.
func (s *scene) others(but *actor) (out []*actor) {
	for _, a := range s.actors {
		if a != but && a.pod != nil {
			out = append(out, a)
		}
	}
	return out
}

// etherTypes are some that are neither IP nor ARP; before stands in front of the payload.
var etherTypes = []struct {
	name   string
	number uint16
	before []byte
}{
	{"experimental", 0x88b5, nil},
	{"LLDP", 0x88cc, nil},
	{"RARP", 0x8035, nil},
	{"IPX", 0x8137, nil},
	{"MPLS", 0x8847, []byte{0, 0, 1, 64}},
	{"PPPoE discovery", 0x8863, []byte{0x11, 9, 0, 0, 0, 16}},
	{"PPPoE session", 0x8864, []byte{0x11, 0, 0, 1, 0, 18, 0, 0x21}},
	{"EAPOL", 0x888e, nil},
	{"HomePlug", 0x88e1, nil},
	{"loopback", 0x9000, nil},
	{"Wake-on-LAN", 0x0842, nil},
	{"TIPC", 0x88ca, nil},
	{"batman", 0x4305, nil},
	{"802.3 with LLC", 60, []byte{0x42, 0x42, 3}},
	{"802.3 with SNAP", 60, []byte{0xaa, 0xaa, 3, 0, 0, 0, 8, 0}},
}
