package verdict_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/test/frame"
)

// attempt is a packet that is sent, as what the model knows of it, and where it
// would come out.
type attempt struct {
	kind string
	injection
	// outs are the packet for each place where it may come out.
	outs []desired.Packet
}

// place is where a packet comes out.
func place(p desired.Packet) string {
	switch {
	case p.Out == "":
		return "node"
	case p.Frame != nil && p.Frame.To != "":
		return p.Frame.To
	}
	return p.Out
}

// tally is what all rounds together have shown.
type tally struct {
	kinds   map[string][2]int // how many came out somewhere, and how many there were
	told    int
	audited uint64
}

func (s tally) report(t *testing.T) {
	total := 0
	for _, kind := range slices.Sorted(func(yield func(string) bool) {
		for k := range s.kinds {
			if !yield(k) {
				return
			}
		}
	}) {
		n := s.kinds[kind]
		total += n[1]
		t.Logf("%-10s %6d of %6d packets were allowed, by model and kernel", kind, n[0], n[1])
		if n[1] > 200 && (n[0] == 0 || n[0] == n[1]) {
			t.Errorf("%s: %d of %d packets were allowed: too one-sided to prove much", kind, n[0], n[1])
		}
	}
	t.Logf("%d packets in all; %d explained, %d would be denied but for an audit", total, s.told, s.audited)
	if plain := s.kinds["plain"]; s.audited < uint64(plain[1]/200) {
		t.Errorf("only %d packets were audited", s.audited)
	}
}

// try sends the packets and compares where they come out with what the model says. It
// returns which came out anywhere.
func try(t *testing.T, b *bench, state desired.State, when string, attempts []attempt, sum *tally) []bool {
	t.Helper()
	list := make([]injection, len(attempts))
	for i, a := range attempts {
		list[i] = a.injection
	}
	came := make([]bool, len(attempts))
	for i, got := range b.inject(list) {
		a := attempts[i]
		var want, why []string
		for _, p := range a.outs {
			v := state.Evaluate(p)
			if why = append(why, v.By); v.Allowed {
				want = append(want, place(p))
			}
		}
		slices.Sort(want)
		if a.to != nil && slices.Equal(a.to, everybody) {
			got = slices.DeleteFunc(got, func(where string) bool { return where == "node" })
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s, %s: %+v from %s to %s came out at %q, want %q (%q)", when, a.kind, a.packet, a.from, a.to, got, want, why)
		}
		n := sum.kinds[a.kind]
		if n[1]++; len(got) > 0 {
			n[0]++
		}
		sum.kinds[a.kind], came[i] = n, len(got) > 0
	}
	return came
}

var everybody = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// sent is p on its way from w, which may be a port of the bridge, through the node.
func (b *bench) sent(w *wire, p desired.Packet) attempt {
	p.In, p.Out = w.l3, b.out(p.Dst)
	if dst := b.at(p.Dst); w.l3 == bridgeName || dst != nil && dst.l3 == bridgeName {
		p.Frame = &desired.Frame{}
		if w.l3 == bridgeName {
			p.Frame.From = w.name
		}
		if dst != nil && dst.l3 == bridgeName {
			p.Frame.To = dst.name
		}
	}
	a := attempt{kind: "plain", injection: injection{wire: w, packet: p}, outs: []desired.Packet{p}}
	if p.Frame != nil && p.Frame.From != "" && p.Frame.To != "" {
		a.to = b.at(p.Dst).far // from port to port
	}
	if p.Frame != nil {
		a.kind = "bridge"
	}
	return a
}

// randomAttempts are packets sent by anyone to anyone, some under a false address, and
// frames of all kinds.
func randomAttempts(r *rand.Rand, b *bench, state desired.State) []attempt {
	var out []attempt
	for len(out) < packetsPerState {
		w := b.wires[r.IntN(len(b.wires))]
		p := desired.Packet{Src: w.addrs[r.IntN(2)], Dst: b.anyone(r), DstPort: somePorts[r.IntN(len(somePorts))]}
		endpoint := state.Owner(w.addrs[0]) != nil
		kind := ""
		switch r.IntN(12) {
		case 0, 1:
			p.Src, kind = b.false(r, w, endpoint), "forged"
		case 2:
			p.Dst = b.host[r.IntN(2)]
		}
		if !sameFamily(p.Src, p.Dst) || p.Src == p.Dst {
			continue
		}
		b.protocol(r, w, &p)
		if r.IntN(10) == 0 && b.at(p.Dst) != nil && b.at(p.Dst) != w && p.Protocol != icmp && p.Protocol != desired.ICMPv6 {
			if a := b.throughService(w, p); b.clear(a) {
				out = append(out, a)
			}
			continue
		}
		if r.IntN(20) == 0 {
			kind, p.Protocol, p.DstPort = "tunnel", desired.UDP, 8472
			if endpoint && r.IntN(2) == 0 { // nobody else: a flow of it is known by its addresses alone
				p.Protocol, p.DstPort = etherIP, 0
			}
		}
		if b.at(p.Dst) == w {
			continue // the node would answer with a redirect, and a bridge does not send back
		}
		a := b.sent(w, p)
		if w.l3 == bridgeName && r.IntN(3) == 0 {
			a = b.frame(r, w, a)
		}
		if !b.clear(a) {
			continue
		}
		if a.kind != "frame" && p.Protocol != desired.ICMPv6 && r.IntN(10) == 0 {
			a.cut = true
		}
		if kind != "" {
			a.kind = kind
		}
		out = append(out, a)
	}
	return out
}

// throughService is p on its way by the service of who has its destination. IPVS sends it on as
// it came, and there it is judged as p.
func (b *bench) throughService(w *wire, p desired.Packet) attempt {
	a := b.sent(w, p)
	a.kind, a.to = "service", nil
	if a.packet.Frame != nil {
		a.packet.Frame.Routed = true
	}
	a.packet.Dst = serviceAddrs(slices.Index(b.wires, b.at(p.Dst)))[0]
	if p.Dst.Is6() {
		a.packet.Dst = serviceAddrs(slices.Index(b.wires, b.at(p.Dst)))[1]
	}
	return a
}

// clear holds for packets with which the kernel itself does nothing of its own accord.
func (b *bench) clear(a attempt) bool {
	p := a.packet
	routed := p.Out != "" && !p.Switched()
	switch {
	case slices.Contains(b.host, p.Src) && p.Src.Is4() && !routed && p.Out != "":
		return false // only a router knows its own address, IPv4 before any hook
	case routed && p.HopLimit == 1:
		return false // no router passes it on
	case routed && p.Src.Is6() && (p.Src.IsLinkLocalUnicast() || p.Src.IsUnspecified()) && b.at(p.Dst) != nil:
		return false
	case p.Protocol == desired.ICMPv6 && p.ICMPType != 128 && p.Out == "" && !(p.HopLimit == 255 || p.HopLimit == 1):
		return false // the node's own neighbour discovery looks at it
	}
	return true
}

// anyone is any address.
func (b *bench) anyone(r *rand.Rand) netip.Addr {
	return b.wires[r.IntN(len(b.wires))].addrs[r.IntN(2)]
}

// false is a source that is not the wire's, as far as the kernel lets it come up to
// podmark; another wire's mostly.
func (b *bench) false(r *rand.Rand, w *wire, endpoint bool) netip.Addr {
	switch {
	case r.IntN(8) == 0:
		return b.host[r.IntN(2)]
	case !endpoint || r.IntN(2) == 0:
		return b.anyone(r)
	}
	return []netip.Addr{
		netip.MustParseAddr("fe80::1"), netip.IPv6Unspecified(), linkLocal(w.far), netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("2001:db8::7"),
		netip.AddrFrom4([4]byte{172, 30, byte(r.IntN(podCount + bridgedCount)), byte(r.IntN(256))}),
		netip.MustParseAddr(fmt.Sprintf("fd00:30:%x::7", r.IntN(podCount+bridgedCount))),
	}[r.IntN(7)]
}

// linkLocal is the address that a link with the MAC address has by itself.
func linkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
}

// protocol makes p, which the wire sends, one of some protocol.
func (b *bench) protocol(r *rand.Rand, w *wire, p *desired.Packet) {
	p.Protocol = []desired.Protocol{desired.TCP, desired.UDP, desired.SCTP, icmp}[r.IntN(4)]
	switch {
	case p.Protocol == icmp && p.Src.Is4():
		p.ICMPType = 8
		if r.IntN(8) == 0 {
			p.ICMPType = 5
		}
	case p.Protocol == icmp:
		p.Protocol, p.ICMPType = desired.ICMPv6, []uint8{128, 1, 130, 131, 132, 133, 134, 135, 136, 137, 138, 143, 144}[r.IntN(13)]
		p.HopLimit = []uint8{0, 255, 255, 1}[r.IntN(4)]
		if p.ICMPType == 128 {
			p.HopLimit = 0
		}
		p.Target = []netip.Addr{p.Src, b.wires[r.IntN(len(b.wires))].addrs[1], linkLocal(w.far), netip.IPv6Unspecified()}[r.IntN(4)]
	}
}

// frame has a packet from a port of the bridge go elsewhere than its address says.
func (b *bench) frame(r *rand.Rand, w *wire, a attempt) attempt {
	a.kind = "frame"
	p := a.packet
	if r.IntN(2) == 0 {
		p.Dst = []netip.Addr{
			netip.MustParseAddr("255.255.255.255"), netip.MustParseAddr("10.1.0.255"), netip.MustParseAddr("224.0.0.9"),
			netip.MustParseAddr("ff02::1"), netip.MustParseAddr("fe80::9"), b.anyone(r),
		}[r.IntN(6)]
		if !sameFamily(p.Src, p.Dst) {
			p.Dst = a.packet.Dst
		}
	}
	p.In, p.Out = bridgeName, bridgeName
	otherSource := r.IntN(5) == 0
	if otherSource {
		a.from = net.HardwareAddr{2, 0, 0, 0, 0xee, 1}
	}
	var others []*wire
	for _, other := range b.wires {
		if other.l3 == bridgeName && other != w {
			others = append(others, other)
		}
	}
	a.to = everybody
	if r.IntN(2) == 0 {
		others = others[:1]
		a.to = others[0].far
	}
	a.outs = nil
	for _, other := range others {
		p.Frame = &desired.Frame{From: w.name, To: other.name, OtherSource: otherSource, OtherDestination: !slices.Equal(a.to, other.far)}
		a.outs = append(a.outs, p)
	}
	a.packet = p
	return a
}

// live is a flow that was opened and answered before the policies were there.
type live struct {
	client, server *wire
	first          desired.Packet
	now            bool // conntrack knows that it was allowed under the policies in force
}

// openFlows begins flows from anyone to anyone, enough for a round.
func openFlows(t *testing.T, r *rand.Rand, b *bench) []*live {
	t.Helper()
	var flows []*live
	var begin, answer []injection
	for len(flows) < 3*flowsPerState {
		client, server, f := b.wires[r.IntN(len(b.wires))], b.wires[r.IntN(len(b.wires))], r.IntN(2)
		if client == server {
			continue
		}
		p := desired.Packet{Src: client.addrs[f], Dst: server.addrs[f], Protocol: []desired.Protocol{desired.UDP, desired.TCP}[r.IntN(2)], DstPort: somePorts[r.IntN(len(somePorts))]}
		flows = append(flows, &live{client: client, server: server, first: p})
		begin = append(begin, b.sent(client, p).injection)
	}
	pass := func(list []injection) {
		t.Helper()
		for i, places := range b.inject(list) {
			if len(places) != 1 {
				t.Fatalf("%+v, which nothing forbids, came out at %q", list[i].packet, places)
			}
		}
	}
	pass(begin)
	for i, in := range begin {
		flows[i].first = in.packet
		back := b.sent(flows[i].server, turned(in.packet)).injection
		back.flags = frame.SYN | frame.ACK
		answer = append(answer, back)
		begin[i].flags = frame.ACK
	}
	pass(answer)
	pass(begin)
	return flows
}

// turned is an answer to p.
func turned(p desired.Packet) desired.Packet {
	return desired.Packet{Src: p.Dst, Dst: p.Src, Protocol: p.Protocol, SrcPort: p.DstPort, DstPort: p.SrcPort}
}

// answers are packets of flows from before, from either end, or from a sender that poses as
// one.
func answers(r *rand.Rand, b *bench, state desired.State, flows []*live) []attempt {
	var out []attempt
	for _, f := range flows {
		p, from := f.first, f.client
		p.State, p.Frame = desired.Opening, nil
		kind := "reopened"
		if r.IntN(3) > 0 {
			p, from, kind = turned(f.first), f.server, "answer"
			p.State = desired.Answering
		}
		if r.IntN(4) == 0 {
			if from, kind = b.wires[r.IntN(len(b.wires))], kind+", forged"; b.at(p.Dst) == from {
				continue
			}
		}
		a := b.sent(from, p)
		a.kind, a.flags = kind, frame.ACK
		f.now = state.Evaluate(a.packet).Allowed && !beside(state, a.packet)
		out = append(out, a)
	}
	return out
}

// beside holds for what goes from port to port past IP: conntrack does not see it either.
func beside(state desired.State, p desired.Packet) bool {
	return p.Switched() && state.Unfiltered.Of(p.Src)
}

// insiders are packets of those of the flows that were allowed under the policies in force, from
// either end, or from anybody who knows all of the flow.
func insiders(r *rand.Rand, b *bench, flows []*live) []attempt {
	var out []attempt
	for _, f := range flows {
		if !f.now {
			continue
		}
		for range 2 {
			p, from := f.first, f.client
			if r.IntN(2) == 0 {
				p, from = turned(f.first), f.server
			}
			if r.IntN(3) > 0 {
				from = b.wires[r.IntN(len(b.wires))]
			}
			if b.at(p.Dst) == from {
				continue
			}
			p.State, p.Frame = desired.Judged, nil
			a := b.sent(from, p)
			a.kind, a.flags = "inside", frame.ACK
			out = append(out, a)
		}
	}
	return out
}

// reports are errors about those flows, from anyone to either end.
func reports(r *rand.Rand, b *bench, state desired.State, flows []*live) []attempt {
	var out []attempt
	for _, f := range flows {
		about := f.first
		about.Frame = nil
		if r.IntN(2) == 0 {
			about = turned(f.first)
		}
		w := b.wires[r.IntN(len(b.wires))]
		if r.IntN(3) == 0 {
			w = b.at(about.Dst) // who got the packet
		}
		p := desired.Packet{Dst: about.Src, Protocol: icmp, ICMPType: []uint8{3, 11, 12, 5}[r.IntN(4)], Client: f.first.Src, Server: f.first.Dst}
		p.Src = w.addrs[0]
		if about.Src.Is6() {
			p.Src, p.Protocol, p.ICMPType = w.addrs[1], desired.ICMPv6, []uint8{1, 3}[r.IntN(2)]
		}
		if b.at(p.Dst) == w {
			continue
		}
		if f.now {
			p.State = desired.Reporting
		}
		a := b.sent(w, p)
		a.kind, a.about = "error", &about
		out = append(out, a)
	}
	return out
}
