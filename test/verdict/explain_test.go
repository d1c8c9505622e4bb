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
					packets = append(packets, desired.Packet{In: live[0].Interface, Src: live[0].Addresses[0], Dst: b.host[0], Protocol: proto, DstPort: port, ICMPType: 8})
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
