package adversary_test

import (
	"fmt"
	"net/netip"

	"github.com/podmark/podmark/test/frame"
	"github.com/podmark/podmark/test/lab"
)

// changes are what somebody does to a pod's link behind podmark's back. The pod stays under
// its policy, or is cut off: it never gets more than that.
var changes = changed(
	change{name: "device group taken off", at: []attachment{routed, bridged, vrf}, do: groupLost},
	change{name: "veth renamed", at: []attachment{routed, bridged}, do: rename},
	change{name: "veth renamed and its device group taken off", at: []attachment{routed, bridged, vrf}, do: both(groupLost, rename)},
	change{name: "device group taken off and renamed to what somebody else was called", at: []attachment{routed, bridged}, do: both(groupLost, func(s *scene, link string) {
		name := s.linkOf(s.newcomer("free"))
		s.serial++
		s.try("ip", "link", "set", name, "name", fmt.Sprintf("gone%d", s.serial))
		s.try("ip", "link", "set", link, "name", name)
	})},
	change{name: "routed veth put on a bridge", at: []attachment{routed}, do: otherBridge},
	change{name: "routed veth put on a bridge without its device group", at: []attachment{routed}, do: both(groupLost, otherBridge)},
	change{name: "moved to another bridge", at: []attachment{bridged}, do: otherBridge},
	change{name: "moved to another bridge, renamed and without a group", at: []attachment{bridged}, do: both(groupLost, rename, otherBridge)},
	change{name: "taken off its bridge", at: []attachment{bridged}, do: offBridge},
	change{name: "taken off its bridge, renamed and without a group", at: []attachment{bridged}, do: both(groupLost, rename, offBridge)},
	change{name: "put into a VRF", at: []attachment{routed}, lab: "VRF", do: intoVRF},
	change{name: "put into a VRF, renamed and without a group", at: []attachment{routed}, lab: "VRF", do: both(groupLost, rename, intoVRF)},
	change{name: "taken off its bridge and put into a VRF", at: []attachment{bridged}, lab: "VRF", do: both(offBridge, intoVRF)},
	change{name: "taken out of its VRF", at: []attachment{vrf}, do: func(s *scene, link string) {
		s.try("ip", "link", "set", link, "nomaster")
	}},
	change{name: "taken out of its VRF without a group", at: []attachment{vrf}, do: both(groupLost, func(s *scene, link string) {
		s.try("ip", "link", "set", link, "nomaster")
	})},
)

// change is what is done to a link of the node.
type change struct {
	name string
	at   []attachment
	lab  string
	do   func(s *scene, link string)
}

// changed makes an attack of each change: by a pod that is denied everything, and by one
// without a policy, which may still send as itself alone.
func changed(list ...change) (out []attack) {
	for _, c := range list {
		out = append(out, attack{name: c.name, at: c.at, lab: c.lab, atOnce: true, run: func(s *scene) {
			bad, open := s.newcomer("denied"), s.newcomer("free")
			for _, s.f = range lab.Families {
				s.pass("before", open, s.new(open, s.x, 7), s.x)
				s.deny("before", bad, s.new(bad, s.x, 7))
			}
			s.settle()
			for _, a := range []*actor{bad, open} {
				c.do(s, s.linkOf(a))
				s.deliverTo(a)
			}
			for _, s.f = range lab.Families {
				s.closed(bad, open)
			}
		}})
	}
	return out
}

// closed holds that a pod which is denied everything gets nowhere, and that one without a
// policy does as itself alone.
func (s *scene) closed(bad, open *actor) {
	for _, to := range []*actor{s.server, s.client, s.other, s.x, s.node} {
		s.deny("as itself", bad, s.new(bad, to, 80))
		for _, as := range []netip.Addr{s.addr(s.free), s.addr(s.client), s.addr(s.y), s.pick("10.1.0.77", "fd00:10:1::77")} {
			s.deny("as another", bad, s.posing(as, to, 80))
			s.deny("as another, without a policy", open, s.posing(as, to, 80))
		}
	}
	asked := s.open(frame.UDP, s.client, s.x, 53)
	for _, by := range []*actor{bad, open} {
		s.deny("as another in a live flow", by, asked.fromClient())
		s.deny("as another in a live flow, the answer", by, asked.fromServer())
	}
	for _, by := range []*actor{s.free, s.x} {
		s.deny("to a pod that takes nothing", by, s.new(by, bad, 80))
	}
}

// both makes changes one after another. The link may have another name after each.
func both(list ...func(*scene, string)) func(*scene, string) {
	return func(s *scene, link string) {
		for _, do := range list {
			index := s.index(link)
			do(s, link)
			link = s.nameOf(index)
		}
	}
}

func groupLost(s *scene, link string) { s.try("ip", "link", "set", link, "group", "0") }

func rename(s *scene, link string) {
	s.serial++
	name := fmt.Sprintf("other%d", s.serial)
	s.try("ip", "link", "set", link, "down")
	s.try("ip", "link", "set", link, "name", name)
	s.try("ip", "link", "set", name, "up")
}

// otherBridge has an address of the pods' own range, so that it could be their router.
func otherBridge(s *scene, link string) {
	if _, err := s.cast.Try("ip", "link", "show", "br1"); err != nil {
		s.try("ip", "link", "add", "br1", "type", "bridge")
		s.try("ip", "link", "set", "br1", "up")
		s.try("ip", "address", "add", "10.1.0.1/32", "dev", "br1")
		s.try("ip", "address", "add", "fd00:10:1::1/128", "dev", "br1", "nodad")
		s.finally(func() { s.try("ip", "link", "delete", "br1") })
	}
	s.try("ip", "link", "set", link, "master", "br1")
}

func offBridge(s *scene, link string) { s.try("ip", "link", "set", link, "nomaster") }

// intoVRF moves a link into a VRF whose packets find their way out by the other table.
func intoVRF(s *scene, link string) {
	if _, err := s.cast.Try("ip", "link", "show", "blue"); err != nil {
		s.try("ip", "link", "add", "blue", "type", "vrf", "table", "200")
		s.try("ip", "link", "set", "blue", "up")
		s.finally(func() { s.try("ip", "link", "delete", "blue") })
	}
	s.try("ip", "link", "set", link, "master", "blue")
	for _, f := range lab.Families {
		for _, a := range []*actor{s.server, s.client, s.other, s.x} {
			dev := "cni0"
			switch {
			case a.pod == nil:
				dev = "eth0"
			case !s.onBridge():
				dev = s.linkOf(a)
			}
			addr := a.addrs[f]
			s.try("ip", "route", "replace", netip.PrefixFrom(addr, addr.BitLen()).String(), "dev", dev, "table", "200")
		}
	}
}

// deliverTo leads what is for a pod to its link, wherever that is now, and has the pod send
// to whatever receives there.
func (s *scene) deliverTo(a *actor) {
	s.Helper()
	link := s.linkOf(a)
	s.try("ip", "link", "set", link, "up")
	dev := s.masterOf(link)
	a.gateway, a.bridge = s.MAC(dev), ""
	if dev != link {
		a.bridge = dev
	}
	table := "main"
	if s.at == vrf {
		table = "100"
	}
	for _, f := range lab.Families {
		to := netip.PrefixFrom(a.addrs[f], a.addrs[f].BitLen()).String()
		s.try("ip", "route", "replace", to, "dev", dev, "table", table)
		s.finally(func() { _, _ = s.cast.Try("ip", "route", "delete", to, "dev", dev, "table", table) })
		s.try("ip", "neighbour", "replace", a.addrs[f].String(), "lladdr", a.mac.String(), "dev", dev, "nud", "permanent")
	}
}
