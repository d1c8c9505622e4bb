package lab_test

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/podmark/podmark/test/lab"
)

// A source address that is not the endpoint's own is dropped, whoever's it is.
func TestSpoofedSource(t *testing.T) {
	eachWay(t, func(t *testing.T, c *cluster) {
		var rows []lab.Row
		for _, f := range lab.Families {
			nobody := map[lab.Family]netip.Addr{lab.V4: netip.MustParseAddr("10.1.0.99"), lab.V6: netip.MustParseAddr("fd00:10:1::99")}[f]
			claim(c.a, nobody)
			claim(c.a, c.b.Addr(f))
			for _, p := range []lab.Protocol{lab.UDP} {
				for _, to := range []netip.AddrPort{c.outside.At(f, podPort), c.vip(p, f), c.Node.At(f, hostPort)} {
					rows = append(rows,
						lab.Row{Name: "as b", From: c.a.NS, Protocol: p, To: to, Source: netip.AddrPortFrom(c.b.Addr(f), 0), Want: lab.Blocked},
						lab.Row{Name: "as nobody", From: c.a.NS, Protocol: p, To: to, Source: netip.AddrPortFrom(nobody, 0), Want: lab.Blocked},
					)
				}
			}
		}
		lab.Table(t, rows)
	})
}

// claim gives a pod an address that nobody assigned to it.
func claim(p *lab.Pod, addr netip.Addr) {
	p.Run("ip", "address", "add", netip.PrefixFrom(addr, addr.BitLen()).String(), "dev", "eth0", "nodad")
}

// On a bridge a pod can also take a neighbour's MAC address. Its port takes
// frames with its own only.
func TestSpoofedMAC(t *testing.T) {
	t.Parallel()
	lab.Backends(t, func(t *testing.T, backend lab.Backend) {
		node := lab.NewNode(t, lab.Options{Backend: backend})
		outside := node.AddHost("outside")
		outside.Listen(lab.UDP, podPort)
		a, b := addPod(node, "a", bridged(node)), addPod(node, "b", bridged(node))
		row := lab.Row{Name: "own MAC", From: a.NS, Protocol: lab.UDP, To: outside.At(lab.V4, podPort)}
		lab.Table(t, []lab.Row{row})
		claim(a, b.Addr(lab.V4))
		a.Run("ip", "link", "set", "eth0", "address", b.MAC("eth0").String())
		row.Name, row.Source, row.Want = "b's MAC and address", netip.AddrPortFrom(b.Addr(lab.V4), 0), lab.Blocked
		lab.Table(t, []lab.Row{row})
		// As before Linux 5.18, which has no lock. b is silent, or the bridge would
		// find its MAC address now here, now there.
		node.Run("bridge", "link", "set", "dev", a.HostVeth, "locked", "off", "learning", "on")
		b.Run("ip", "link", "set", "eth0", "down")
		row.Name = "without the lock"
		lab.Table(t, []lab.Row{row})
	})
}

// Pods that share a bridge with podmark's and were there before it keep every
// connection, old and new.
func TestPodsBeforePodmark(t *testing.T) {
	t.Parallel()
	lab.Backends(t, func(t *testing.T, backend lab.Backend) {
		c := newCluster(t, lab.Options{Backend: backend}, func(n *lab.Node) lab.Network { return n.Bridge() })
		var flows []liveFlow
		for _, p := range lab.Protocols {
			flows = append(flows,
				live("old to old "+p.String(), c.a.Stream(lab.Request{Protocol: p, To: c.b.At(lab.V4, podPort)})),
				live("old to ClusterIP "+p.String(), c.a.Stream(lab.Request{Protocol: p, To: c.vip(p, lab.V4)})),
				live("outside to old "+p.String(), c.outside.Stream(lab.Request{Protocol: p, To: c.b.At(lab.V4, podPort)})),
				live("outside to NodePort "+p.String(), c.outside.Stream(lab.Request{Protocol: p, To: c.Node.At(lab.V4, nodePort)})),
			)
		}
		added := c.AddPod(lab.PodSpec{Name: "new", Labels: map[string]string{"app": "new"}, Network: bridged(c.Node)})
		added.Listen(lab.UDP, podPort)
		pingAll(t, "after the first ADD", flows, nil)
		// The old pods are nobody's to police, the new one is.
		apply(t, c.Node, isolate("new", "Egress")+"---"+isolate("a", "Egress"))
		pingAll(t, "after a policy", flows, nil)
		lab.Table(t, append(c.everything(),
			lab.Row{Name: "new to old", From: added.NS, Protocol: lab.UDP, To: c.b.At(lab.V4, podPort), Want: lab.Blocked},
			lab.Row{Name: "new to ClusterIP", From: added.NS, Protocol: lab.UDP, To: c.vip(lab.UDP, lab.V6), Want: lab.Blocked},
			lab.Row{Name: "old to new", From: c.a.NS, Protocol: lab.UDP, To: added.At(lab.V4, podPort), By: "new"},
		))
	})
}

// With a mask of two bits there are two IDs. A third pod is refused; when one of the
// two is deleted its ID goes to the next, who gets nothing of its policy.
func TestIDReuse(t *testing.T) {
	t.Parallel()
	lab.Backends(t, func(t *testing.T, backend lab.Backend) {
		node := lab.NewNode(t, lab.Options{Backend: backend})
		outside := node.AddHost("outside")
		outside.Listen(lab.TCP, podPort)
		network := node.PTP(node.Podmark(lab.Plugin{"policy": "files", "iptablesMarkMask": "0x80010000"}))
		spec := func(name string) lab.PodSpec {
			return lab.PodSpec{Name: name, Labels: map[string]string{"app": name}, Network: network}
		}
		first, second := node.AddPod(spec("first")), node.AddPod(spec("second"))
		apply(t, node, isolate("first", "Egress"))
		third, err := node.TryAddPod(spec("third"))
		if err == nil || !strings.Contains(err.Error(), "0x80010000") || !strings.Contains(err.Error(), "2 endpoints") {
			t.Fatalf("the third pod in a mask of two IDs: error %v, want one that names mask and capacity", err)
		}
		if err := third.Del(); err != nil {
			t.Fatal(err)
		}
		freed := ids(t, node)["default/first"]
		if err := first.Del(); err != nil {
			t.Fatal(err)
		}
		fourth := node.AddPod(spec("fourth"))
		if got := ids(t, node)["default/fourth"]; got != freed {
			t.Errorf("the fourth pod has ID %d, want the freed %d", got, freed)
		}
		row := lab.Row{Protocol: lab.TCP, To: outside.At(lab.V4, podPort)}
		fromSecond, fromFourth := row, row
		fromSecond.Name, fromSecond.From = "second", second.NS
		fromFourth.Name, fromFourth.From = "fourth", fourth.NS
		lab.Table(t, []lab.Row{fromSecond, fromFourth})
		apply(t, node, isolate("fourth", "Egress"))
		fromFourth.Want = lab.Blocked
		lab.Table(t, []lab.Row{fromSecond, fromFourth})
	})
}

// ids reads the IDs by pod off podmarkctl list.
func ids(t *testing.T, n *lab.Node) map[string]int {
	t.Helper()
	var list []struct {
		ID             int
		Namespace, Pod string
	}
	if err := json.Unmarshal([]byte(podmarkctl(t, n, "list", "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	for _, e := range list {
		out[e.Namespace+"/"+e.Pod] = e.ID
	}
	return out
}

// A pod that gets the address of one that is gone inherits none of its flows.
func TestAddressReuse(t *testing.T) {
	t.Parallel()
	lab.Backends(t, func(t *testing.T, backend lab.Backend) {
		node := lab.NewNode(t, lab.Options{Backend: backend})
		outside := node.AddHost("outside")
		network := sameAddress(routed(node))
		old := node.AddPod(lab.PodSpec{Name: "old", Labels: map[string]string{"app": "old"}, Network: network})
		old.Listen(lab.UDP, podPort)
		apply(t, node, isolate("new", "Ingress"))
		var streams []*lab.Stream
		for _, f := range lab.Families {
			streams = append(streams, outside.Stream(lab.Request{Protocol: lab.UDP, To: old.At(f, podPort)}))
		}
		if err := old.Del(); err != nil {
			t.Fatal(err)
		}
		added := node.AddPod(lab.PodSpec{Name: "new", Labels: map[string]string{"app": "new"}, Network: network})
		server := added.Listen(lab.UDP, podPort)
		for i, s := range streams {
			if got := s.Ping(lab.SilenceLimit); got.Outcome != lab.Blocked || server.Requests() != 0 {
				t.Errorf("%v: the flow of the old pod is %v at the new one", lab.Families[i], got)
			}
		}
	})
}

// A pod with addresses of one family on a bridge has none in the other: what it
// sends there is nobody's, and its MAC address gives it away.
func TestOneFamilyOnABridge(t *testing.T) {
	t.Parallel()
	lab.Backends(t, func(t *testing.T, backend lab.Backend) {
		node := lab.NewNode(t, lab.Options{Backend: backend})
		outside := node.AddHost("outside")
		network := bridged(node)
		network.Plugins[0]["ipam"] = lab.Plugin{
			"type": "host-local", "dataDir": node.Dir + "/ipam", "subnet": "10.1.0.0/24",
			"routes": []lab.Plugin{{"dst": "0.0.0.0/0"}},
		}
		for _, p := range []lab.Protocol{lab.TCP, lab.UDP} {
			outside.Listen(p, podPort)
		}
		a := node.AddPod(lab.PodSpec{Name: "a", Labels: map[string]string{"app": "a"}, Network: network})
		apply(t, node, isolate("a", "Ingress"))
		b := node.AddPod(lab.PodSpec{Name: "b", Labels: map[string]string{"app": "b"}, Network: network})
		podmarkctl(t, node, "gc")
		v6 := netip.MustParseAddr("fd00:10:1::66")
		claim(a, v6)
		node.AddAddress("cni0", netip.MustParsePrefix("fd00:10:1::1/64"))
		a.Run("ip", "-6", "route", "add", "default", "via", "fd00:10:1::1", "dev", "eth0", "onlink")
		lab.Table(t, []lab.Row{
			{Name: "IPv4 of a", From: a.NS, Protocol: lab.TCP, To: outside.At(lab.V4, podPort)},
			{Name: "IPv4 of b", From: b.NS, Protocol: lab.TCP, To: outside.At(lab.V4, podPort)},
			{Name: "IPv6 of a", From: a.NS, Protocol: lab.UDP, To: outside.At(lab.V6, podPort), Source: netip.AddrPortFrom(v6, 0), Want: lab.Blocked},
		})
	})
}

// sameAddress makes every pod of the network have the same addresses.
func sameAddress(network lab.Network) lab.Network {
	network.Plugins[0]["ipam"] = lab.Plugin{
		"type":      "static",
		"addresses": []lab.Plugin{{"address": "10.1.0.77/24", "gateway": "10.1.0.1"}, {"address": "fd00:10:1::77/64", "gateway": "fd00:10:1::1"}},
		"routes":    []lab.Plugin{{"dst": "0.0.0.0/0"}, {"dst": "::/0"}},
	}
	return network
}

// The DEL of an old sandbox may come after the ADD of a new one with the same
// addresses. The new one keeps its identity and its policy.
func TestLateDel(t *testing.T) {
	t.Parallel()
	lab.Backends(t, func(t *testing.T, backend lab.Backend) {
		for name, network := range map[string]func(*lab.Node) lab.Network{"routed": routed, "bridged": bridged} {
			node := lab.NewNode(t, lab.Options{Backend: backend})
			outside := node.AddHost("outside")
			outside.Listen(lab.UDP, podPort)
			old := node.AddPod(lab.PodSpec{Name: "old", Labels: map[string]string{"app": "old"}, Network: sameAddress(network(node))})
			// Its container is gone, and its interface with it; the DEL is late.
			node.Run("ip", "link", "delete", old.HostVeth)
			added := node.AddPod(lab.PodSpec{Name: "new", Labels: map[string]string{"app": "new"}, Network: sameAddress(network(node))})
			apply(t, node, isolate("new", "Egress"))
			// Not through the main plugin: it would take the new pod's route away.
			if err := old.DelOnly("podmark"); err != nil {
				t.Fatal(err)
			}
			var rows []lab.Row
			for _, f := range lab.Families {
				rows = append(rows, lab.Row{Name: name, From: added.NS, Protocol: lab.UDP, To: outside.At(f, podPort), Want: lab.Blocked})
			}
			lab.Table(t, rows)
			podmarkctl(t, node, "apply", "--delete")
			for i := range rows {
				rows[i].Want = lab.OK
			}
			lab.Table(t, rows)
			if err := added.Check(); err != nil {
				t.Errorf("%s: CHECK of the new pod: %v", name, err)
			}
		}
	})
}

// What has no host side of its own cannot be told from others and is refused.
func TestRefusedInterfaces(t *testing.T) {
	t.Parallel()
	node := lab.NewNode(t, lab.Options{})
	outside := node.AddHost("outside")
	for _, kind := range []string{"macvlan", "ipvlan"} {
		network := routed(node)
		network.Name = kind
		network.Plugins[0]["type"] = kind
		network.Plugins[0]["master"] = outside.Link
		pod, err := node.TryAddPod(lab.PodSpec{Name: kind, Network: network})
		var refused *types.Error
		if !errors.As(err, &refused) || refused.Code != 104 || !strings.Contains(refused.Details, kind) {
			t.Errorf("%s: error %v, want code 104 with the reason", kind, err)
		}
		if err := pod.Del(); err != nil {
			t.Errorf("%s: the DEL that follows: %v", kind, err)
		}
	}
}
