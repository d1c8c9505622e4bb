package lab_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/podmark/podmark/test/lab"
)

// These tests hold the lab's instruments to what they claim: each outcome is
// reported for what causes it, and for nothing else.

func TestOutcomes(t *testing.T) {
	t.Parallel()
	lab.Variants(t, func(t *testing.T, variant lab.Variant) {
		node := lab.NewNode(t, lab.Options{Variant: variant})
		client, server := node.AddHost("client"), node.AddHost("server")
		for _, f := range lab.Families {
			for port, rule := range map[string]string{
				"1001": "-I FORWARD %p --dport 1001 -j DROP",
				"1002": "-I FORWARD %p --dport 1002 -j REJECT",
				// Only UDP's request can arrive while its answer is lost: the
				// others need answers to connect.
				"1003": "-I FORWARD %p --sport 1003 -j DROP",
			} {
				for _, p := range lab.Protocols {
					if p == lab.UDP || port != "1003" {
						node.Iptables(f, strings.Fields(strings.ReplaceAll(rule, "%p", "-p "+p.String()))...)
					}
				}
			}
		}
		var rows []lab.Row
		for _, f := range lab.Families {
			rows = append(
				rows,
				lab.Row{Name: "answer dropped", From: client.NS, Protocol: lab.UDP, To: server.At(f, 1003), Want: lab.OneWay},
				lab.Row{Name: "rejected", From: client.NS, Protocol: lab.TCP, To: server.At(f, 1002), Want: lab.Refused},
				lab.Row{Name: "rejected", From: client.NS, Protocol: lab.UDP, To: server.At(f, 1002), Want: lab.Refused},
				// An association goes on trying when ICMP says that the port is closed.
				lab.Row{Name: "rejected", From: client.NS, Protocol: lab.SCTP, To: server.At(f, 1002), Want: lab.Blocked},
			)
		}
		for _, want := range []struct {
			name string
			port uint16
			lab.Outcome
		}{
			{"served", 1000, lab.OK},
			{"dropped", 1001, lab.Blocked},
			{"nobody listens", 1004, lab.Refused},
		} {
			rows = append(rows, lab.Cross(lab.Row{Name: want.name, From: client.NS, Want: want.Outcome}, at(server.NS, want.port))...)
		}
		servers := map[lab.Protocol]*lab.Server{}
		for _, p := range lab.Protocols {
			for port := uint16(1000); port < 1004; port++ {
				servers[p] = server.Listen(p, port)
			}
		}
		lab.Table(t, rows)
		if got := servers[lab.UDP].Requests(); got < 2 { // one that came late was sent again
			t.Errorf("server whose answers are dropped counted %d requests, want one of each family", got)
		}
	})
}

func TestSourceAndSeen(t *testing.T) {
	t.Parallel()
	node := lab.NewNode(t, lab.Options{})
	client, server := node.AddHost("client"), node.AddHost("server")
	other := netip.MustParseAddr("192.168.50.77")
	client.AddAddress("eth0", netip.PrefixFrom(other, 24))
	for _, p := range lab.Protocols {
		server.Listen(p, 1000)
		to, source := server.At(lab.V4, 1000), netip.AddrPortFrom(other, 4321)
		if r := client.Probe(p, to); r.By != "server" || r.Seen.Addr() != client.Addr(lab.V4) {
			t.Errorf("%v: %v, want the client's first address seen", p, r)
		}
		if r := client.Send(lab.Request{Protocol: p, To: to, Source: source}); r.Seen != source {
			t.Errorf("%v from %v: %v, want that address and port seen", p, source, r)
		}
	}
}

func TestStreams(t *testing.T) {
	t.Parallel()
	lab.Variants(t, func(t *testing.T, variant lab.Variant) {
		node := lab.NewNode(t, lab.Options{Variant: variant})
		client, server := node.AddHost("client"), node.AddHost("server")
		for _, p := range lab.Protocols {
			server.Listen(p, 1000)
			stream := client.Stream(lab.Request{Protocol: p, To: server.At(lab.V4, 1000)})
			rule := []string{"FORWARD", "-p", p.String(), "--dport", "1000", "-j", "DROP"}
			node.Iptables(lab.V4, append([]string{"-I"}, rule...)...)
			if r := stream.Ping(lab.SilenceLimit); r.Outcome != lab.Blocked {
				t.Errorf("%v across a dropping rule: %v, want blocked", p, r)
			}
			node.Iptables(lab.V4, append([]string{"-D"}, rule...)...)
			if r := stream.Ping(lab.AnswerLimit); r.Outcome != lab.OK {
				t.Errorf("%v after the rule is gone: %v, want ok", p, r)
			}
		}
	})
}

// kube-proxy hides the client of a NodePort unless it is told not to, and never
// that of a pod's own request to a ClusterIP.
func TestMasquerade(t *testing.T) {
	t.Parallel()
	lab.Variants(t, func(t *testing.T, variant lab.Variant) {
		c := newCluster(t, lab.Options{Variant: variant}, func(n *lab.Node) lab.Network { return n.PTP() })
		for _, f := range lab.Families {
			gateway := c.PodCIDRs[0].Addr().Next()
			if f == lab.V6 {
				gateway = c.PodCIDRs[1].Addr().Next()
			}
			for _, tt := range []struct {
				name   string
				from   *lab.NS
				to     netip.AddrPort
				seen   netip.Addr
				counts uint64
			}{
				{"pod to ClusterIP", c.a.NS, c.vip(lab.TCP, f), c.a.Addr(f), 0},
				{"outside to NodePort", c.outside.NS, c.At(f, nodePort), gateway, 1},
				{"outside to local NodePort", c.outside.NS, c.At(f, localPort), c.outside.Addr(f), 0},
				{"host process to ClusterIP", c.Node.NS, c.vip(lab.TCP, f), gateway, 1},
				{"pod to own ClusterIP", c.b.NS, c.vip(lab.TCP, f), gateway, 0}, // by another rule
			} {
				before := c.Masqueraded(f)
				r := tt.from.Probe(lab.TCP, tt.to)
				if r.Outcome != lab.OK || r.Seen.Addr() != tt.seen {
					t.Errorf("%s, %v: %v, want %v seen", tt.name, f, r, tt.seen)
				}
				if got := c.Masqueraded(f) - before; got != tt.counts {
					t.Errorf("%s, %v: %d flows masqueraded, want %d", tt.name, f, got, tt.counts)
				}
			}
		}
	})
}

// A service address answers on its service's ports only.
func TestServiceAddress(t *testing.T) {
	t.Parallel()
	node := lab.NewNode(t, lab.Options{})
	outside := node.AddHost("outside")
	pod := node.AddPod(lab.PodSpec{Name: "web", Network: node.PTP()})
	pod.Listen(lab.TCP, 8080)
	service := lab.Service{
		Kind: lab.ClusterIP, Protocol: lab.TCP, Address: netip.MustParseAddr("10.96.0.10"), Port: 80,
		Backends: []netip.AddrPort{pod.At(lab.V4, 8080)},
	}
	node.AddServices(service)
	// The node's own port, on every address.
	node.Listen(lab.TCP, 22, service.Address, node.Addr(lab.V4))
	to := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(service.Address, port) }
	lab.Table(t, []lab.Row{
		{Name: "service", From: outside.NS, Protocol: lab.TCP, To: to(80), By: "web"},
		{Name: "node's port", From: outside.NS, Protocol: lab.TCP, To: outside.NodeAt(lab.V4, 22), By: "node"},
		{Name: "node's port at the service", From: outside.NS, Protocol: lab.TCP, To: to(22), Want: lab.Refused},
	})
	node.RemoveServices(service)
	lab.Table(t, []lab.Row{
		{Name: "service that is gone", From: outside.NS, Protocol: lab.TCP, To: to(80), Want: lab.Refused},
	})
}

func TestPodLifecycle(t *testing.T) {
	t.Parallel()
	node := lab.NewNode(t, lab.Options{})
	for _, network := range []lab.Network{node.PTP(), node.Bridge()} {
		pod := node.AddPod(lab.PodSpec{Name: "pod", Network: network, Labels: map[string]string{"app": "web"}})
		if len(pod.Addresses) != 2 {
			t.Errorf("%s: addresses %v, want one of each family", network.Name, pod.Addresses)
		}
		node.Run("ip", "link", "show", "dev", pod.HostVeth)
		if err := pod.Check(); err != nil {
			t.Errorf("%s: CHECK: %v", network.Name, err)
		}
		if err := node.Status(network); err != nil {
			t.Errorf("%s: STATUS: %v", network.Name, err)
		}
		if err := node.GC(network, pod); err != nil {
			t.Errorf("%s: GC: %v", network.Name, err)
		}
		if err := pod.Check(); err != nil {
			t.Errorf("%s: CHECK after a GC that names the pod: %v", network.Name, err)
		}
		for range 2 {
			if err := pod.Del(); err != nil {
				t.Errorf("%s: DEL: %v", network.Name, err)
			}
		}
		if out, err := node.Try("ip", "link", "show", "dev", pod.HostVeth); err == nil {
			t.Errorf("%s: after DEL there is still %s", network.Name, out)
		}
	}
	broken := node.PTP(lab.Plugin{"type": "no-such-plugin"})
	if _, err := node.TryAddPod(lab.PodSpec{Name: "pod", Network: broken}); err == nil {
		t.Error("ADD with a plugin that does not exist succeeded")
	}
}

// Nodes share nothing: the same addresses, links and rules in each.
func TestNodesAreSeparate(t *testing.T) {
	t.Parallel()
	one, two := lab.NewNode(t, lab.Options{}), lab.NewNode(t, lab.Options{Variant: lab.Legacy})
	for _, node := range []*lab.Node{one, two} {
		pod := node.AddPod(lab.PodSpec{Name: "pod", Network: node.PTP()})
		pod.Listen(lab.TCP, 8080)
	}
	one.Iptables(lab.V4, "-A", "OUTPUT", "-d", "10.1.0.2", "-j", "DROP")
	to := netip.MustParseAddrPort("10.1.0.2:8080")
	lab.Table(t, []lab.Row{
		{Name: "one", From: one.NS, Protocol: lab.TCP, To: to, Want: lab.Blocked},
		{Name: "two", From: two.NS, Protocol: lab.TCP, To: to},
	})
	for _, node := range []*lab.Node{one, two} {
		// What "iptables" means to the node's programs, and what it says of itself.
		if out := node.Run("iptables", "--version"); !strings.Contains(out, map[lab.Variant]string{lab.NFT: "nf_tables", lab.Legacy: "legacy"}[node.Variant]) {
			t.Errorf("iptables of a node of variant %s is %s", node.Variant, out)
		}
		node.Iptables(lab.V4, "-t", "mangle", "-S", "KUBE-IPTABLES-HINT")
		node.Iptables(lab.V6, "-t", "mangle", "-S", "KUBE-IPTABLES-HINT")
	}
}
