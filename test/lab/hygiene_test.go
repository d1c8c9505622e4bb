package lab_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/podmark/podmark/test/lab"
)

// Podmark writes inside its mask and nowhere else: kube-proxy's 0x4000 and a bit
// of another program are on the same packet as the ID, and leave the node as
// they were, the ID gone.
func TestOtherBitsSurvive(t *testing.T) {
	onRouted(t, func(t *testing.T, c *cluster) {
		// Between IPVS and what takes the ID off.
		c.RunInput(`table inet looking {
			counter IPv4 { }
			counter IPv6 { }
			chain output {
				type filter hook output priority -402
				meta mark & 0xffff0000 != 0 meta mark & 0x000040ff == 0x000040a0 counter name meta nfproto map { ipv4 : "IPv4", ipv6 : "IPv6" }
			}
		}`, "nft", "-f", "-")
		for _, f := range lab.Families {
			c.Iptables(f, "-t", "raw", "-A", "PREROUTING", "-j", "MARK", "--set-xmark", "0xa0/0xff")
			c.Iptables(f, "-t", "mangle", "-A", "POSTROUTING", "-m", "mark", "!", "--mark", "0/0xffff0000", "-j", "RETURN")
			c.Iptables(f, "-t", "mangle", "-A", "POSTROUTING", "-m", "mark", "--mark", "0x40a0/0xffff", "-j", "RETURN")
		}
		var rows []lab.Row
		for _, f := range lab.Families {
			rows = append(rows,
				lab.Row{Name: "pod to NodePort", From: c.a.NS, Protocol: lab.TCP, To: c.Node.At(f, nodePort), By: "b"},
				lab.Row{Name: "outside to NodePort", From: c.outside.NS, Protocol: lab.UDP, To: c.Node.At(f, nodePort), By: "b"},
			)
		}
		lab.Table(t, rows)
		for _, f := range lab.Families {
			if seen := c.Run("nft", "list", "counter", "inet", "looking", f.String()); strings.Contains(seen, "packets 0 ") {
				t.Errorf("%v: no packet in OUTPUT has an ID, kube-proxy's 0x4000 and the foreign 0xa0", f)
			}
			if n := c.Packets(f, "mangle", "POSTROUTING", "! --mark 0x0/0xffff0000 -j RETURN"); n != 0 {
				t.Errorf("%v: %d packets leave with an ID", f, n)
			}
			if n := c.Packets(f, "mangle", "POSTROUTING", "--mark 0x40a0/0xffff"); n == 0 {
				t.Errorf("%v: no packet leaves with the bits outside the mask as they were", f)
			}
		}
	})
}

// The packet around an encapsulated one is the node's own: it has no ID and is
// not judged.
func TestMarkStaysOutOfTheTunnel(t *testing.T) {
	onRouted(t, func(t *testing.T, c *cluster) {
		tunnel := func(ns *lab.NS, remote netip.Addr, link, inner string) {
			ns.Run("ip", "link", "add", "vxlan0", "type", "vxlan", "id", "42", "dstport", "4789", "remote", remote.String(), "dev", link)
			ns.Run("ip", "address", "add", inner, "dev", "vxlan0")
			ns.Run("ip", "link", "set", "vxlan0", "up")
		}
		tunnel(c.Node.NS, c.outside.Addr(lab.V4), c.outside.Link, "10.3.0.1/24")
		tunnel(c.outside.NS, c.Node.Addr(lab.V4), "eth0", "10.3.0.2/24")
		c.outside.Listen(lab.TCP, 7070, netip.MustParseAddr("10.3.0.2"))
		outer := []string{"-t", "mangle", "-A", "OUTPUT", "-p", "udp", "--dport", "4789"}
		c.Iptables(lab.V4, append(outer, "-m", "mark", "!", "--mark", "0/0xffff0000", "-j", "RETURN")...)
		c.Iptables(lab.V4, append(outer, "-m", "mark", "--mark", "0/0xffff0000", "-j", "RETURN")...)
		// Judged as a's, the outer packet would be dropped.
		apply(t, c.Node, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: tunnelled-only}
spec:
  podSelector: {matchLabels: {app: a}}
  policyTypes: [Egress]
  egress: [{to: [{ipBlock: {cidr: 10.3.0.0/24}}]}]
`)
		lab.Table(t, []lab.Row{{Name: "through the tunnel", From: c.a.NS, Protocol: lab.TCP, To: netip.MustParseAddrPort("10.3.0.2:7070")}})
		if n := c.Packets(lab.V4, "mangle", "OUTPUT", "--dport 4789 -m mark ! --mark 0x0/0xffff0000"); n != 0 {
			t.Errorf("%d outer packets carry an ID", n)
		}
		if n := c.Packets(lab.V4, "mangle", "OUTPUT", "--dport 4789 -m mark --mark 0x0/0xffff0000"); n == 0 {
			t.Error("no outer packet was seen: the test proves nothing")
		}
	})
}

// What a pod sends to the node itself, in all the ways there are.
func TestPodToHost(t *testing.T) {
	onRouted(t, func(t *testing.T, c *cluster) {
		const inRange, external = 30999, 8443
		var rows []lab.Row
		for _, p := range lab.Protocols {
			c.Node.Listen(p, inRange)
		}
		for _, f := range lab.Families {
			nodeAddr := c.Node.Addr(f)
			// An external IP that is an address of the node, on a port that is no
			// NodePort. (Not the first address: kube-proxy rejects all else there.)
			second := map[lab.Family]netip.Prefix{lab.V4: netip.MustParsePrefix("192.168.50.7/24"), lab.V6: netip.MustParsePrefix("fd00:50::7/64")}[f]
			c.AddAddress(c.outside.Link, second)
			c.AddServices(lab.Service{Kind: lab.ExternalIP, Protocol: lab.TCP, Address: second.Addr(), Port: external, Backends: []netip.AddrPort{c.b.At(f, podPort)}})
			// The service address with a port that has no service, where a process listens.
			c.Node.Listen(lab.TCP, 2222, c.vips[f])
			rows = append(rows,
				lab.Row{Name: "pod to external IP of the node", From: c.a.NS, Protocol: lab.TCP, To: netip.AddrPortFrom(second.Addr(), external), By: "b"},
				lab.Row{Name: "outside to external IP of the node", From: c.outside.NS, Protocol: lab.TCP, To: netip.AddrPortFrom(second.Addr(), external), By: "b"},
				lab.Row{Name: "pod to NodePort", From: c.a.NS, Protocol: lab.TCP, To: c.Node.At(f, nodePort), By: "b"},
				lab.Row{Name: "pod to odd NodePort", From: c.a.NS, Protocol: lab.TCP, To: c.Node.At(f, oddPort), By: "b"},
				// kube-proxy's own filter turns it down.
				lab.Row{Name: "pod to service address without service", From: c.a.NS, Protocol: lab.TCP, To: netip.AddrPortFrom(c.vips[f], 2222), Want: lab.Refused},
			)
			for _, p := range lab.Protocols {
				rows = append(rows, lab.Row{Name: fmt.Sprintf("pod to host process on a NodePort %v %v", p, f), From: c.a.NS, Protocol: p, To: netip.AddrPortFrom(nodeAddr, inRange), By: "node"})
			}
		}
		lab.Table(t, rows)

		apply(t, c.Node, isolate("b", "Ingress"))
		lab.Table(t, want(t, rows, lab.Blocked,
			"pod to external IP of the node", "outside to external IP of the node", "pod to NodePort", "pod to odd NodePort",
		))

		// Expected failure of iptables: a host process on a port of the NodePort
		// range. In INPUT it sees a packet that may be a service's, leaves it to
		// OUTPUT, and OUTPUT is never reached.
		rows = wantOn(t, rows, onlyNFTablesBlocks, "pod to host process on a NodePort")
		apply(t, c.Node, isolate("a", "Egress"))
		lab.Table(t, want(t, rows, lab.Blocked, "pod to external IP of the node", "pod to NodePort", "pod to odd NodePort"))

		// What b answers is allowed. To iptables what has no port of the range looks
		// like a host process, which is not.
		rows = want(t, rows, lab.Blocked, "pod to external IP of the node", "pod to odd NodePort")
		rows = wantOn(t, rows, onlyNFTablesAllows, "pod to external IP of the node", "pod to odd NodePort")
		apply(t, c.Node, isolate("a", "Egress")+allowAToB)
		lab.Table(t, rows)

		// Expected failure of iptables, where kube-proxy does not turn it down, as one
		// without https://github.com/kubernetes/kubernetes/pull/108460: a local
		// address that is not the host's own must be a service's.
		for _, f := range lab.Families {
			c.Iptables(f, "-F", "KUBE-IPVS-FILTER")
		}
		rows = want(t, rows, lab.OK, "pod to service address without service")
		lab.Table(t, wantOn(t, rows, onlyNFTablesBlocks, "pod to service address without service"))
	})
}

// A pod that reaches itself through its service is subject to its own policies in both
// directions; what it sends to its own address never leaves it.
func TestHairpin(t *testing.T) {
	onRouted(t, func(t *testing.T, c *cluster) {
		const service, direct = "pod to itself by its service", "pod to its own address"
		var rows []lab.Row
		for _, f := range lab.Families {
			for _, p := range lab.Protocols {
				rows = append(rows, lab.Row{Name: service, From: c.b.NS, Protocol: p, To: c.vip(p, f), By: "b"})
			}
			rows = append(rows, lab.Row{Name: direct, From: c.b.NS, Protocol: lab.TCP, To: c.b.At(f, podPort), By: "b"})
		}
		lab.Table(t, rows)
		toItself := func(name, direction, peers string) string {
			return `---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: ` + name + `}
spec:
  podSelector: {matchLabels: {app: b}}
  policyTypes: [` + direction + `]
  ` + strings.ToLower(direction) + `: [{` + peers + `: [{podSelector: {matchLabels: {app: b}}}]}]
`
		}
		from, to := toItself("from", "Ingress", "from"), toItself("to", "Egress", "to")
		for _, tt := range []struct {
			policies string
			allowed  bool
		}{
			{isolate("b", "Ingress"), false},
			{from, true},
			{from + "---" + isolate("b", "Egress"), false},
			{from + to, true},
			{to + "---" + isolate("b", "Ingress"), false},
		} {
			apply(t, c.Node, tt.policies)
			if tt.allowed {
				lab.Table(t, rows)
			} else {
				lab.Table(t, want(t, rows, lab.Blocked, service))
			}
		}
	})
}

// Multicast, broadcast and the link-local address of the host's veth reach host processes
// past every list of addresses.
func TestPodToHostBeyondAddresses(t *testing.T) {
	onRouted(t, func(t *testing.T, c *cluster) {
		group, group6 := netip.MustParseAddrPort("224.0.0.251:5353"), netip.MustParseAddrPort("[ff02::fb]:5353")
		broadcast := netip.MustParseAddrPort("255.255.255.255:6767")
		ears := []ear{
			{"a group", c.Node.HearMulticast(c.a.HostVeth, group)},
			{"an IPv6 group", c.Node.HearMulticast(c.a.HostVeth, group6)},
			{"broadcast", c.Node.Listen(lab.UDP, broadcast.Port(), netip.IPv4Unspecified())},
		}
		requests := []lab.Request{
			{To: group},
			// Nothing of a's passes from a link-local address.
			{To: netip.AddrPortFrom(group6.Addr().WithZone("eth0"), group6.Port()), Source: netip.AddrPortFrom(c.a.Addr(lab.V6), 0)},
			{To: broadcast},
		}
		if got := hearing(c.a, requests, ears); len(got) != len(ears) {
			t.Errorf("without a policy the node hears %q only: the test proves nothing", got)
		}
		// With its own address as the source, to the node's next to it.
		linkLocal := linkLocalOf(c.Node.NS, c.a.HostVeth)
		c.Node.Listen(lab.UDP, 2323, linkLocal.WithZone(c.a.HostVeth))
		row := lab.Row{
			Name: "pod to host veth's link-local", From: c.a.NS, Protocol: lab.UDP, By: "node",
			To:     netip.AddrPortFrom(linkLocal.WithZone("eth0"), 2323),
			Source: netip.AddrPortFrom(c.a.Addr(lab.V6), 0),
		}
		lab.Table(t, []lab.Row{row})

		apply(t, c.Node, isolate("a", "Egress"))
		if got := hearing(c.a, requests, ears); got != nil {
			t.Errorf("the node hears %q of a pod whose egress is denied", got)
		}
		row.Want, row.By = lab.Blocked, ""
		lab.Table(t, []lab.Row{row})
	})
}

// linkLocalOf finds the fe80:: address of a link.
func linkLocalOf(n *lab.NS, link string) netip.Addr {
	for line := range strings.Lines(n.Run("ip", "-6", "-oneline", "address", "show", "dev", link, "scope", "link")) {
		for _, field := range strings.Fields(line) {
			if p, err := netip.ParsePrefix(field); err == nil {
				return p.Addr()
			}
		}
	}
	return netip.Addr{}
}

// A pod that sends from before its ADD on, and goes on for as long as it lives,
// gets nothing through that its policy forbids once podmark has it: not on a new
// connection, and not on one that it opened between the plugin that made its
// interface and podmark.
func TestFirstInstant(t *testing.T) {
	eachWay(t, func(t *testing.T, c *cluster) {
		apply(t, c.Node, isolate("eager", "Egress")+"---"+isolate("eager", "Ingress"))
		network := c.a.Spec.Network
		pod := c.NewPod(lab.PodSpec{Name: "eager", Labels: map[string]string{"app": "eager"}, Network: network})
		ctx, stop := context.WithCancel(t.Context())
		var clients sync.WaitGroup
		type flow struct {
			protocol lab.Protocol
			to       netip.AddrPort
		}
		var opened sync.Map // flow -> *lab.Stream, the first that was answered
		for _, p := range []lab.Protocol{lab.TCP, lab.UDP} {
			for _, f := range lab.Families {
				for _, to := range []netip.AddrPort{c.b.At(f, podPort), c.vip(p, f), c.outside.At(f, podPort)} {
					clients.Go(func() {
						for ctx.Err() == nil {
							s, err := pod.TryStream(lab.Request{Protocol: p, To: to, Limit: 100 * time.Millisecond})
							if err != nil {
								continue
							}
							if _, had := opened.LoadOrStore(flow{p, to}, s); had {
								s.Close()
							}
						}
					})
				}
			}
		}
		err := pod.Add()
		// From here on everything is in force.
		before := map[flow]bool{}
		opened.Range(func(k, _ any) bool { before[k.(flow)] = true; return true })
		if err != nil {
			t.Error(err)
		}
		var rows []lab.Row
		for _, f := range lab.Families {
			for _, p := range []lab.Protocol{lab.TCP, lab.UDP} {
				rows = append(rows, lab.Row{Name: "new connection", From: pod.NS, Protocol: p, To: c.vip(p, f), Want: lab.Blocked})
			}
		}
		lab.Table(t, rows)
		stop()
		clients.Wait()
		opened.Range(func(k, s any) bool {
			defer s.(*lab.Stream).Close()
			if !before[k.(flow)] {
				t.Errorf("%v was opened after the ADD", k)
			}
			if got := s.(*lab.Stream).Ping(lab.SilenceLimit); got.Outcome != lab.Blocked {
				t.Errorf("%v, opened before podmark's ADD, is %v after it", k, got)
			}
			return true
		})
		t.Logf("%d of 12 flows were opened before podmark's ADD", len(before))
	})
}

// Uninstall takes the last trace away and cuts nothing.
func TestUninstall(t *testing.T) {
	eachWay(t, func(t *testing.T, c *cluster) {
		apply(t, c.Node, isolate("b", "Ingress")+allowAToB)
		if got, want := traces(c.Node), tracesOf(c.Backend()); !slices.Equal(got, want) {
			t.Errorf("the backend is %s, and podmark has something in %q, want %q", c.Backend(), got, want)
		}
		podmarkctl(t, c.Node, "uninstall", "--yes")
		if got := traces(c.Node); got != nil {
			t.Errorf("something is left in %q", got)
		}
		if links := c.Run("ip", "link", "show", "group", "1886"); links != "" {
			t.Errorf("links are left in the device group: %s", links)
		}
		if _, err := os.Stat(c.StateDir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the state directory is left: %v", err)
		}
		lab.Table(t, c.everything())
		for _, p := range []*lab.Pod{c.a, c.b} {
			if err := p.Del(); err != nil {
				t.Errorf("DEL after uninstall: %v", err)
			}
		}
	})
}
