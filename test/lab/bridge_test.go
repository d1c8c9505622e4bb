package lab_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/podmark/podmark/test/lab"
	"github.com/podmark/podmark/test/wait"
)

// On a bridge an address is where a MAC address claims to have it. A pod can claim its own
// only, in ARP and in neighbour discovery. Without podmark the claimant gets the traffic, or
// the owner does, whoever speaks last.
func TestClaimedAddress(t *testing.T) {
	t.Parallel()
	lab.Backends(t, func(t *testing.T, backend lab.Backend) {
		node := lab.NewNode(t, lab.Options{Backend: backend})
		outside := node.AddHost("outside")
		a, b, victim := addPod(node, "a", bridged(node)), addPod(node, "b", bridged(node)), addPod(node, "victim", bridged(node))
		mac, own, linkLocal := a.MAC("eth0"), a.Addr(lab.V6), linkLocalOf(a.NS, "eth0")
		ofB := map[lab.Family]netip.Addr{lab.V4: b.Addr(lab.V4), lab.V6: b.Addr(lab.V6)}
		everybody := netip.MustParseAddr("ff02::1")
		nobody := map[lab.Family]netip.Addr{lab.V4: netip.MustParseAddr("10.1.0.99"), lab.V6: netip.MustParseAddr("fd00:10:1::99")}
		asking := []*lab.NS{victim.NS, outside.NS} // for the one outside the node asks
		// Whoever will be told another MAC address knows the right one.
		know := func(f lab.Family) {
			for _, ns := range []*lab.NS{victim.NS, node.NS} {
				ns.Run("ip", fmt.Sprintf("-%d", f), "neighbour", "flush", "all")
			}
			for _, ns := range asking {
				if r := ns.Probe(lab.UDP, netip.AddrPortFrom(ofB[f], podPort)); r.Outcome != lab.OK {
					t.Errorf("%s to %v: %v", ns.Name, ofB[f], r)
				}
			}
		}
		for _, f := range lab.Families {
			know(f)
			for _, addr := range []netip.Addr{ofB[f], nobody[f]} {
				claim(a, addr)
				a.Listen(lab.UDP, podPort, addr)
			}
		}
		advertise := func(from netip.Addr) [][]byte {
			return [][]byte{lab.NeighbourFrame(lab.NeighbourAdvertisement, mac, from, everybody, ofB[lab.V6])}
		}
		var solicit [][]byte
		for _, target := range []netip.Addr{victim.Addr(lab.V6), netip.MustParseAddr("fd00:10:1::1")} {
			solicit = append(solicit, lab.NeighbourFrame(lab.NeighbourSolicitation, mac, ofB[lab.V6], lab.SolicitedNode(target), target))
		}
		for _, tt := range []struct {
			name   string
			family lab.Family
			frames [][]byte
			to     netip.Addr
			by     string
		}{
			{"ARP, gratuitous", lab.V4, [][]byte{lab.GratuitousARP(mac, ofB[lab.V4])}, ofB[lab.V4], "b"},
			{"ARP, an answer", lab.V4, nil, nobody[lab.V4], ""},
			{"neighbour advertisement from the own address", lab.V6, advertise(own), ofB[lab.V6], "b"},
			{"neighbour advertisement from the link-local address", lab.V6, advertise(linkLocal), ofB[lab.V6], "b"},
			{"neighbour advertisement from the claimed address", lab.V6, advertise(ofB[lab.V6]), ofB[lab.V6], "b"},
			{"neighbour solicitation from the claimed address", lab.V6, solicit, ofB[lab.V6], "b"},
			{"neighbour advertisement, an answer", lab.V6, nil, nobody[lab.V6], ""},
		} {
			t.Run(tt.name, func(t *testing.T) {
				know(tt.family)
				for _, f := range tt.frames {
					a.SendFrame("eth0", f)
				}
				limit := lab.AnswerLimit
				if tt.by == "" {
					limit = lab.SilenceLimit
				}
				for _, ns := range asking {
					r := ns.Send(lab.Request{Protocol: lab.UDP, To: netip.AddrPortFrom(tt.to, podPort), Limit: limit})
					if r.By != tt.by {
						t.Errorf("%s to %v: %v, want it answered by %q", ns.Name, tt.to, r, tt.by)
					}
				}
			})
		}
		// The control: nothing but the table keeps a from what it claims.
		node.Run("nft", "delete", "table", "bridge", "podmark")
		victim.Run("ip", "-4", "neighbour", "flush", "all")
		if r := victim.Probe(lab.UDP, netip.AddrPortFrom(nobody[lab.V4], podPort)); r.By != "a" {
			t.Errorf("%v: no claim was believed where nothing guards against it: the test proves nothing", r)
		}
	})
}

// Behind a tag br_netfilter does not look, so a tagged frame would reach another pod of
// the bridge unjudged. A pod's port takes none. One with the number 0
// needs no tagged link at the other end.
func TestTaggedFrames(t *testing.T) {
	t.Parallel()
	lab.Backends(t, func(t *testing.T, backend lab.Backend) {
		node := lab.NewNode(t, lab.Options{Backend: backend})
		a, b := addPod(node, "a", bridged(node)), addPod(node, "b", bridged(node))
		apply(t, node, isolate("a", "Egress")+"---"+isolate("a", "Ingress"))
		var rows []lab.Row
		for i, tag := range []struct{ protocol, id string }{{"802.1Q", "7"}, {"802.1ad", "7"}, {"802.1Q", "0"}} {
			link := fmt.Sprintf("tag%d", i)
			for _, p := range []*lab.Pod{a, b} {
				p.Run("ip", "link", "add", "link", "eth0", "name", link, "type", "vlan", "proto", tag.protocol, "id", tag.id)
				p.Run("ip", "link", "set", link, "up")
			}
			at := func(host int) netip.Addr { return netip.AddrFrom4([4]byte{10, 9, byte(i), byte(host)}) }
			a.Run("ip", "address", "add", at(1).String()+"/24", "dev", link)
			b.Run("ip", "address", "add", at(2).String()+"/24", "dev", link)
			// The frame with the packet is the one that counts, not the question before it.
			a.Run("ip", "neighbour", "add", at(2).String(), "lladdr", b.MAC("eth0").String(), "dev", link, "nud", "permanent")
			b.Run("ip", "neighbour", "add", at(1).String(), "lladdr", a.MAC("eth0").String(), "dev", link, "nud", "permanent")
			b.Listen(lab.UDP, podPort, at(2))
			rows = append(rows, lab.Row{
				Name: tag.protocol + " " + tag.id, From: a.NS, Protocol: lab.UDP, To: netip.AddrPortFrom(at(2), podPort),
				Want: lab.Blocked,
			})
		}
		// a's egress is denied, and the answer, which has no tag, is a flow of b's own.
		to := b.At(lab.V4, podPort)
		a.Run("ip", "route", "add", to.Addr().String(), "dev", "tag2", "src", a.Addr(lab.V4).String())
		a.Run("ip", "neighbour", "add", to.Addr().String(), "lladdr", b.MAC("eth0").String(), "dev", "tag2", "nud", "permanent")
		lab.Table(t, append(rows, lab.Row{Name: "past the policy", From: a.NS, Protocol: lab.UDP, To: to, Want: lab.Blocked}))
	})
}

// A pod that podmark does not know shares the bridge with endpoints. It does not
// become one of them by taking an endpoint's address.
func TestUnknownPodAsEndpoint(t *testing.T) {
	t.Parallel()
	lab.Backends(t, func(t *testing.T, backend lab.Backend) {
		node := lab.NewNode(t, lab.Options{Backend: backend})
		a, b := addPod(node, "a", bridged(node)), addPod(node, "b", bridged(node))
		unknown := addPod(node, "unknown", node.Bridge())
		apply(t, node, isolate("b", "Ingress")+allowBFromA)
		var rows, posing []lab.Row
		for _, f := range lab.Families {
			row := func(name string, from *lab.NS, as netip.Addr, want lab.Outcome) lab.Row {
				return lab.Row{Name: name, From: from, Protocol: lab.UDP, To: b.At(f, podPort), Source: netip.AddrPortFrom(as, 0), Want: want}
			}
			rows = append(rows,
				row("a", a.NS, a.Addr(f), lab.OK),
				row("unknown pod", unknown.NS, unknown.Addr(f), lab.Blocked),
			)
			posing = append(posing, row("unknown pod as a", unknown.NS, a.Addr(f), lab.Blocked))
		}
		lab.Table(t, rows)
		for _, f := range lab.Families {
			claim(unknown, a.Addr(f))
		}
		lab.Table(t, posing)
	})
}

// What a pod sends to a group or to everybody on its bridge is judged as its egress.
// The groups that it listens to itself become known to the bridge: where there is a
// querier it floods to nobody else, and neighbour discovery goes to groups too.
func TestGroupsOnABridge(t *testing.T) {
	t.Parallel()
	lab.Backends(t, func(t *testing.T, backend lab.Backend) {
		node := lab.NewNode(t, lab.Options{Backend: backend})
		a, b := addPod(node, "a", bridged(node)), addPod(node, "b", bridged(node))
		group, group6 := netip.MustParseAddrPort("239.1.2.3:5353"), netip.MustParseAddrPort("[ff05::1234]:5353")
		broadcast := netip.MustParseAddrPort("10.1.0.255:6767")
		requests := []lab.Request{
			{To: group},
			{To: netip.AddrPortFrom(group6.Addr().WithZone("eth0"), group6.Port()), Source: netip.AddrPortFrom(a.Addr(lab.V6), 0)},
			{To: broadcast},
		}
		var ears []ear
		for link, ns := range map[string]*lab.NS{"eth0": b.NS, "cni0": node.NS} {
			ears = append(ears,
				ear{ns.Name + " in a group", ns.HearMulticast(link, group)},
				ear{ns.Name + " in an IPv6 group", ns.HearMulticast(link, group6)},
				ear{ns.Name + " of broadcast", ns.Listen(lab.UDP, broadcast.Port(), netip.IPv4Unspecified())},
			)
		}
		for _, g := range []netip.AddrPort{group, group6} {
			if !knowsMember(node, b.HostVeth, g.Addr()) {
				t.Errorf("the bridge does not know that b listens to %v:\n%s", g.Addr(), node.Run("bridge", "mdb", "show"))
			}
		}
		if got := hearing(a, requests, ears); !slices.Equal(got, names(ears)) {
			t.Errorf("without a policy only %q hear a: the test proves nothing", got)
		}
		apply(t, node, isolate("a", "Egress"))
		if got := hearing(a, requests, ears); got != nil {
			t.Errorf("%q hear a pod whose egress is denied", got)
		}
	})
}

// knowsMember waits until a bridge knows that a host behind a port listens to a group.
func knowsMember(n *lab.Node, port string, group netip.Addr) bool {
	poll := time.NewTicker(100 * time.Millisecond)
	defer poll.Stop()
	for deadline := time.Now().Add(wait.Still); time.Now().Before(deadline); <-poll.C {
		if strings.Contains(n.Run("bridge", "mdb", "show"), fmt.Sprintf("port %s grp %v ", port, group)) {
			return true
		}
	}
	return false
}
