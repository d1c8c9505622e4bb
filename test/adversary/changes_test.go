package adversary_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/node"
	"github.com/podmark/podmark/pkg/state"
	"github.com/podmark/podmark/test/frame"
	"github.com/podmark/podmark/test/lab"
	"github.com/podmark/podmark/test/wait"
)

// changes are what another program does to a pod's link behind podmark's back. The pod stays under
// its policy, or is cut off: it never gets more than that.
var changes = changed(
	change{name: "device group taken off", at: []attachment{routed, bridged, vrf}, do: groupLost},
	change{name: "veth renamed", at: []attachment{routed, bridged}, do: rename},
	change{name: "veth renamed and its device group taken off", at: []attachment{routed, bridged, vrf}, do: inTurn(groupLost, rename)},
	change{name: "names of two veths swapped", at: []attachment{routed, bridged}, do: swap},
	change{name: "names of two veths swapped and their device groups taken off", at: []attachment{routed, bridged}, do: inTurn(groupLost, swap)},
	change{name: "routed veth put on a bridge", at: []attachment{routed}, do: otherBridge},
	change{name: "routed veth put on a bridge without its device group", at: []attachment{routed}, do: inTurn(groupLost, otherBridge)},
	change{name: "moved to another bridge", at: []attachment{bridged}, do: otherBridge},
	change{name: "moved to another bridge, renamed and without a group", at: []attachment{bridged}, do: inTurn(groupLost, rename, otherBridge)},
	change{name: "taken off its bridge", at: []attachment{bridged}, do: noMaster},
	change{name: "taken off its bridge, renamed and without a group", at: []attachment{bridged}, do: inTurn(groupLost, rename, noMaster)},
	change{name: "put into a VRF", at: []attachment{routed}, lab: "VRF", do: intoVRF},
	change{name: "put into a VRF, renamed and without a group", at: []attachment{routed}, lab: "VRF", do: inTurn(groupLost, rename, intoVRF)},
	change{name: "taken off its bridge and put into a VRF", at: []attachment{vlan}, lab: "VRF", do: inTurn(noMaster, intoVRF)},
	change{name: "taken out of its VRF", at: []attachment{vrf}, do: noMaster},
	change{name: "taken out of its VRF without a group", at: []attachment{vrf}, do: inTurn(groupLost, noMaster)},
)

// filtering is what another program does to br_netfilter. No policy can be asked about what goes from
// port to port then: isolated pods neither send nor get it, from podmarkd's next look on.
var filtering = []attack{{name: "frames between ports kept from IP", at: onBridge, run: func(s *scene) {
	allowed := func() []byte { return s.new(s.free, s.server, 80) }
	forbidden := func() {
		for _, p := range []struct {
			from, to *actor
			port     uint16
		}{{s.free, s.server, 81}, {s.other, s.server, 80}, {s.free, s.denied, 80}, {s.denied, s.other, 7}, {s.client, s.twin, 53}, {s.client, s.free, 53}} {
			s.deny("a forbidden packet", p.from, s.new(p.from, p.to, p.port), p.to)
		}
	}
	answered := s.open(frame.UDP, s.free, s.server, 80)
	s.settle()
	s.finally(s.looks)
	s.sysctl(pick(s.f, "net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"), "0", "1")
	s.looks()
	forbidden()
	s.deny("what a policy allows", s.free, allowed(), s.server)
	s.deny("in a live flow", s.free, answered.fromClient(), s.server)
	s.deny("in a live flow, the answer of who may send", s.client, s.udp(s.to(s.client, 53), s.to(s.free, s.port())), s.free)
	s.pass("between pods without a policy", s.free, s.new(s.free, s.other, 7), s.other)
	s.pass("what the node sends on", s.x, s.new(s.x, s.other, 7), s.other)
	s.pass("what the node sends on, by a policy", s.client, s.new(s.client, s.x, 53), s.x)
	s.deny("what the node sends on, and no policy allows", s.client, s.new(s.client, s.x, 54), s.x)
	s.settle()
	s.Sysctl(pick(s.f, "net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"), "1")
	s.looks()
	forbidden()
	s.pass("what a policy allows, again", s.free, allowed(), s.server)
}}}

// looks has podmarkd look at the node.
func (s *scene) looks() {
	s.Helper()
	err := s.Do(func() error {
		_, err := node.Node{Store: state.At(s.StateDir), LockTimeout: wait.Still}.Reconcile(context.Background(), nil)
		return err
	})
	if err != nil {
		s.Fatal(err)
	}
	s.mutate(s.T)
}

// bridgeChanges are what another program does to the bridge of all pods.
var bridgeChanges = changedBridge(
	change{name: "the bridge renamed", at: onBridge, do: func(s *scene, link ...int) { s.rename(link[0], "other0") }},
	change{name: "the bridge put into a VRF", at: onBridge, lab: "VRF", do: bridgeIntoVRF},
)

// changedBridge makes an attack of each: what policies forbid stays forbidden, in flows from
// before too. Nobody need get what is allowed, but the node reaches its pods, and a pod of nobody's
// gets out: a policy it is that drops the others' packets.
func changedBridge(list ...change) (out []attack) {
	for _, c := range list {
		out = append(out, attack{name: c.name, at: c.at, lab: c.lab, run: func(s *scene) {
			wild, bridge := s.wild(), s.attrs("cni0").Index
			asked, served := s.open(frame.UDP, s.client, s.x, 53), s.open(frame.UDP, s.free, s.server, 80)
			s.settle()
			s.sysctl("net/ipv6/conf/cni0/keep_addr_on_down", "1", "0")
			s.finally(func() {
				s.link(bridge, netlink.LinkSetNoMaster)
				s.rename(bridge, "cni0")
				s.backOnBridge("cni0")
			})
			c.do(s, bridge)
			s.backOnBridge(s.nameOf(bridge))
			s.pass("the node to a pod", s.node, s.new(s.node, s.free, 7), s.free)
			s.pass("the node to a pod that takes nothing else", s.node, s.new(s.node, s.denied, 7), s.denied)
			s.pass("a pod of nobody's", wild, s.new(wild, s.x, 7), s.x)
			for _, to := range []*actor{s.server, s.client, s.other, s.x, s.node} {
				s.deny("as itself", s.denied, s.new(s.denied, to, 80))
				for _, as := range []netip.Addr{s.addr(s.free), s.addr(s.client), s.addr(s.y), s.pick("10.1.0.77", "fd00:10:1::77")} {
					s.deny(fmt.Sprintf("as %v", as), s.denied, s.posing(as, to, 80))
					s.deny(fmt.Sprintf("as %v, by a pod of nobody's", as), wild, s.posing(s.addr(s.free), to, 80))
				}
			}
			for _, by := range []*actor{s.free, s.x, wild} {
				s.deny("to a pod that takes nothing", by, s.new(by, s.denied, 80))
				s.deny("to a pod that takes port 80", by, s.new(by, s.server, 81))
			}
			for _, by := range []*actor{s.denied, s.other, wild, s.y} {
				s.deny("in a live flow, the question", by, asked.fromClient())
				s.deny("in a live flow, a request", by, served.fromClient())
				if by != s.y && by != wild { // to the node they are as good as the machine outside
					s.deny("in a live flow, the answer", by, asked.fromServer())
				}
				s.deny("in a live flow, a pod's answer", by, served.fromServer())
			}
		}})
	}
	return out
}

// backOnBridge tells the node where the pods of the bridge are, under the name it has now.
func (s *scene) backOnBridge(name string) {
	s.Helper()
	for _, a := range s.actors {
		if a.bridge == "" {
			continue
		}
		a.dev = name
		for _, addr := range a.addrs {
			if err := s.knows(addr, a.mac, name); err != nil {
				s.Fatal(err)
			}
		}
	}
}

// bridgeIntoVRF leads to the pods from the main table, and from the VRF's out.
func bridgeIntoVRF(s *scene, link ...int) {
	s.ip("link add blue type vrf table 200", "link set blue up")
	s.finally(func() { s.ip("link delete blue") })
	s.join(link[0], "blue")
	s.ip("address replace fd00:10:1::1/64 dev cni0 nodad")
	for _, f := range lab.Families {
		s.route(s.x.addrs[f], s.x.dev, 200)
		for _, a := range s.actors {
			if a.bridge != "" {
				s.route(a.addrs[f], "cni0", unix.RT_TABLE_MAIN)
				s.finally(func() { s.ip(fmt.Sprintf("route delete %v dev cni0", a.addrs[f])) })
			}
		}
	}
}

// change is what is done to links of the node.
type change struct {
	name string
	at   []attachment
	lab  string
	do   func(s *scene, links ...int)
}

// changed makes an attack of each change: by a pod that is denied everything, and by one
// without a policy, which may still send as itself alone. Afterwards their links are put
// back, for the next.
func changed(list ...change) (out []attack) {
	for _, c := range list {
		out = append(out, attack{name: c.name, at: c.at, lab: c.lab, atOnce: true, run: func(s *scene) {
			moved := []*movable{s.movable("denied"), s.movable("free")}
			bad, open := moved[0].actor, moved[1].actor
			for _, s.f = range lab.Families {
				s.pass("before", open, s.new(open, s.x, 7), s.x)
				s.pass("before, from outside", s.x, s.new(s.x, open, 7), open)
				s.deny("before", bad, s.new(bad, s.x, 7))
				s.deny("before, from outside", s.x, s.new(s.x, bad, 7))
			}
			s.settle()
			c.do(s, moved[0].index, moved[1].index)
			for _, m := range moved {
				s.deliverTo(m)
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

// movable is a pod whose link may be moved about.
type movable struct {
	*actor
	app string
	// index, name, group and master are the link's, as podmark left it.
	index         int
	name          string
	group, master int
}

// movable is the node's pod of an app for the changes. It comes with the first of them, and
// is put back after each.
func (s *scene) movable(app string) *movable {
	s.Helper()
	for _, m := range s.movables {
		if m.app == app {
			s.comes(m)
			return m
		}
	}
	a := s.addPod(s.whole, "moved-"+app, app)
	link := s.attrs(a.pod.HostVeth)
	m := &movable{actor: a, app: app, index: link.Index, name: link.Name, group: int(link.Group), master: link.MasterIndex}
	s.movables = append(s.movables, m)
	s.goes(m)
	return m
}

// comes makes the pod one of the actors, until the attack is over.
func (s *scene) comes(m *movable) {
	s.actors = append(s.actors, m.actor)
	s.goes(m)
}

// goes takes it away again when the attack is over, and puts its link back.
func (s *scene) goes(m *movable) {
	s.finally(func() {
		for i, a := range s.actors {
			if a == m.actor {
				s.actors = append(s.actors[:i:i], s.actors[i+1:]...)
				break
			}
		}
		s.rename(m.index, m.name)
		s.link(m.index, func(l netlink.Link) error {
			return errors.Join(netlink.LinkSetGroup(l, m.group), netlink.LinkSetMasterByIndex(l, m.master))
		})
		s.deliverTo(m)
	})
}

// link changes a link of the node, known by its number.
func (s *scene) link(index int, change func(netlink.Link) error) {
	s.Helper()
	err := s.Do(func() error {
		l, err := netlink.LinkByIndex(index)
		if err != nil {
			return err
		}
		return change(l)
	})
	if err != nil {
		s.Fatalf("changing link %d: %v", index, err)
	}
}

// rename takes the link down first, which older kernels ask for.
func (s *scene) rename(index int, name string) {
	s.Helper()
	s.link(index, func(l netlink.Link) error {
		if l.Attrs().Name == name {
			return nil
		}
		return errors.Join(netlink.LinkSetDown(l), netlink.LinkSetName(l, name), netlink.LinkSetUp(l))
	})
}

// inTurn makes changes one after another.
func inTurn(list ...func(*scene, ...int)) func(*scene, ...int) {
	return func(s *scene, links ...int) {
		for _, do := range list {
			do(s, links...)
		}
	}
}

// each makes a change to one link after the other.
func each(do func(s *scene, link int)) func(*scene, ...int) {
	return func(s *scene, links ...int) {
		for _, link := range links {
			do(s, link)
		}
	}
}

var (
	groupLost = each(func(s *scene, link int) {
		s.link(link, func(l netlink.Link) error { return netlink.LinkSetGroup(l, 0) })
	})
	noMaster = each(func(s *scene, link int) { s.link(link, netlink.LinkSetNoMaster) })
	rename   = each(func(s *scene, link int) { s.rename(link, fmt.Sprintf("other%d", link)) })
)

// swap gives each of two links the name that the other one had.
func swap(s *scene, links ...int) {
	one, two := s.nameOf(links[0]), s.nameOf(links[1])
	s.rename(links[0], "meanwhile")
	s.rename(links[1], one)
	s.rename(links[0], two)
	// Neither can be put back while the other has its name.
	s.finally(func() { s.rename(links[0], "meanwhile") })
}

// otherBridge has the address of the pods' router, so that it could be theirs.
func otherBridge(s *scene, links ...int) {
	s.ip("link add br1 type bridge", "link set br1 up", "address add 10.1.0.1/32 dev br1", "address add fd00:10:1::1/128 dev br1 nodad")
	s.finally(func() { s.ip("link delete br1") })
	for _, link := range links {
		s.join(link, "br1")
	}
}

// intoVRF moves links into a VRF whose packets find their way out by its table.
func intoVRF(s *scene, links ...int) {
	s.ip("link add blue type vrf table 200", "link set blue up")
	s.finally(func() { s.ip("link delete blue") })
	for _, link := range links {
		s.join(link, "blue")
	}
	for _, f := range lab.Families {
		for _, a := range []*actor{s.server, s.client, s.other, s.x} {
			s.route(a.addrs[f], a.dev, 200)
		}
	}
}

// join makes a link a port of a bridge, or puts it into a VRF.
func (s *scene) join(link int, master string) {
	s.Helper()
	index := s.attrs(master).Index
	s.link(link, func(l netlink.Link) error { return netlink.LinkSetMasterByIndex(l, index) })
}

// route leads to an address by a link, in a routing table.
func (s *scene) route(to netip.Addr, dev string, table int) {
	s.Helper()
	s.link(s.attrs(dev).Index, func(l netlink.Link) error {
		return netlink.RouteReplace(&netlink.Route{Dst: netlink.NewIPNet(to.AsSlice()), LinkIndex: l.Attrs().Index, Table: table, Scope: netlink.SCOPE_LINK})
	})
}

// deliverTo leads what is for a pod to its link, wherever that is now, and has the pod send
// to whatever receives there.
func (s *scene) deliverTo(m *movable) {
	s.Helper()
	s.link(m.index, netlink.LinkSetUp)
	m.dev, m.bridge = s.nameOf(m.index), ""
	if master := s.attrsOf(m.index).MasterIndex; master != 0 {
		if name := s.nameOf(master); name != "red" && name != "blue" {
			m.dev, m.bridge = name, name
		}
	}
	m.gateway = s.MAC(m.dev)
	table := unix.RT_TABLE_MAIN
	if s.at == vrf {
		table = 100
	}
	for _, f := range lab.Families {
		if m.bridge == "cni0" {
			// The bridge's own route does it, unless another is in its way.
			for _, scope := range []netlink.Scope{netlink.SCOPE_UNIVERSE, netlink.SCOPE_LINK} {
				_ = s.Do(func() error {
					return netlink.RouteDel(&netlink.Route{Dst: netlink.NewIPNet(m.addrs[f].AsSlice()), Scope: scope, LinkIndex: m.index})
				})
			}
		} else {
			s.route(m.addrs[f], m.dev, table)
		}
		if err := s.knows(m.addrs[f], m.mac, m.dev); err != nil {
			s.Fatal(err)
		}
	}
	s.waitUp(s.T, m.actor)
}
