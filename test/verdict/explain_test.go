package verdict_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/explain"
)

// explained holds explain to what the kernel did with each packet, and returns how many
// it was asked about: those that came from where their source is.
func explained(t *testing.T, b *bench, state desired.State, backend string, packets []desired.Packet, came []bool) int {
	t.Helper()
	f := explain.Facts{State: state, Backend: config.BackendIPTables, Watched: true, Routes: map[netip.Addr]explain.Route{}}
	if backend == "nftables" {
		f.Backend = config.BackendNFTables
	}
	for _, w := range b.wires {
		for _, a := range w.addrs {
			f.Routes[a] = explain.Route{Interface: w.l3}
		}
	}
	for _, a := range b.host {
		f.Routes[a] = explain.Route{Interface: "lo", Local: true}
	}
	n := 0
	for i, p := range packets {
		echo := p.Protocol == icmp && p.ICMPType == 8 || p.Protocol == desired.ICMPv6 && p.ICMPType == 128
		if b.out(p.Src) != p.In || !echo && !slices.Contains([]desired.Protocol{desired.TCP, desired.UDP, desired.SCTP}, p.Protocol) {
			continue
		}
		dst := netip.AddrPortFrom(p.Dst, p.DstPort).String() + "/" + p.Protocol.String()
		if echo {
			dst = p.Dst.String() + "/icmp"
		}
		q, err := explain.Parse(p.Src.String(), dst)
		if err != nil {
			t.Fatal(err)
		}
		a, err := q.Explain(f)
		if err != nil {
			t.Fatal(err)
		}
		n++
		if len(a.Walks) != 1 || a.Allowed != came[i] {
			t.Errorf("%+v came out: %t, and explain says %+v", p, came[i], a)
		}
	}
	return n
}

// A port in the NodePort ranges is for no process of the node, as far as iptables can
// tell: explain knows.
func TestExplainNodePort(t *testing.T) {
	for name, backend := range backends() {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, podCount)
			node := nodeOf(t, b)
			mute := desired.Policies{Policies: []desired.Policy{{Namespace: "one", Name: "mute", Egress: &desired.Isolation{}}}}
			live := records(b)
			state := desired.Build(node, mute, live)
			if err := backend.Sync(t.Context(), state); err != nil {
				t.Fatal(err)
			}
			group(b, live)
			var packets []desired.Packet
			for _, proto := range []desired.Protocol{desired.TCP, desired.UDP, desired.SCTP, icmp} {
				for _, port := range []uint16{22, 29999, 30000, 32767, 32768} {
					packets = append(packets, desired.Packet{In: live[0].L3Interface, Src: live[0].Addresses[0], Dst: b.host[0], Protocol: proto, DstPort: port, ICMPType: 8})
				}
			}
			got := b.send(packets)
			came := make([]bool, len(got))
			for i, place := range got {
				came[i] = place != ""
			}
			if n := explained(t, b, state, name, packets, came); n != len(packets) {
				t.Errorf("%d of %d packets were explained", n, len(packets))
			}
			passed := slices.Contains(came, true)
			if passed != (name != "nftables") {
				t.Errorf("came out at %v", fmt.Sprint(got))
			}
			if err := backend.Remove(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// IPv4 link-local addresses are routed, as a cloud's metadata, or the node's own, as a
// node-local DNS cache: explain says of them what the kernel does.
func TestExplainLinkLocal(t *testing.T) {
	metadata, dns := netip.MustParseAddr("169.254.169.254"), netip.MustParseAddr("169.254.20.10")
	for name, backend := range backends() {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, podCount)
			b.run("ip", "address", "add", dns.String()+"/32", "dev", "lo")
			b.host = append(b.host, dns)
			w := b.wire("eth1")
			b.run("ip", "route", "add", metadata.String()+"/32", "dev", w.l3)
			b.run("ip", "neighbour", "add", metadata.String(), "lladdr", w.far.String(), "dev", w.l3, "nud", "permanent")
			w.addrs = append(w.addrs, metadata)
			port := func(proto desired.Protocol, p uint16) desired.Port {
				return desired.Port{Protocol: proto, PortRange: desired.PortRange{First: p, Last: p}}
			}
			one := func(a netip.Addr) []netip.Prefix { return []netip.Prefix{netip.PrefixFrom(a, 32)} }
			policies := desired.Policies{Policies: []desired.Policy{{Namespace: "one", Name: "some", Egress: &desired.Isolation{Rules: []desired.Rule{
				{Blocks: one(metadata), Ports: []desired.Port{port(desired.TCP, 80)}},
				{Blocks: one(dns), Ports: []desired.Port{port(desired.UDP, 53)}},
			}}}}}
			live := records(b)
			state := desired.Build(nodeOf(t, b), policies, live)
			if err := backend.Sync(t.Context(), state); err != nil {
				t.Fatal(err)
			}
			group(b, live)
			var packets []desired.Packet
			for _, to := range []netip.Addr{metadata, dns} {
				for _, proto := range []desired.Protocol{desired.TCP, desired.UDP, icmp} {
					for _, port := range []uint16{53, 80} {
						for _, from := range live[:2] { // of both namespaces
							packets = append(packets, desired.Packet{In: from.L3Interface, Src: from.Addresses[0], Dst: to, Protocol: proto, DstPort: port, ICMPType: 8})
						}
					}
				}
			}
			for _, r := range live[:2] {
				packets = append(packets, desired.Packet{In: w.l3, Src: metadata, Dst: r.Addresses[0], Protocol: desired.TCP, DstPort: 80})
			}
			got := b.send(packets)
			came := make([]bool, len(got))
			for i, place := range got {
				came[i] = place != ""
			}
			if n := explained(t, b, state, name, packets, came); n != len(packets) {
				t.Errorf("%d of %d packets were explained", n, len(packets))
			}
			if !slices.Contains(came, true) || !slices.Contains(came, false) {
				t.Errorf("came out at %v: that shows nothing", got)
			}
			if err := backend.Remove(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
	}
}
