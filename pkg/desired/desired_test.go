package desired_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// pod is an attachment of namespace "shop" labelled app=name, routed by a veth of
// its own name.
func pod(id mark.ID, name string, addresses ...string) attachment.Record {
	r := attachment.Record{
		Key: attachment.Key{Network: "net", ContainerID: name, IfName: "eth0"},
		ID:  id,
		Endpoint: attachment.Endpoint{
			Namespace: "shop", Pod: name, Labels: map[string]string{"app": name},
			L3Interface: "veth-" + name, HostVeth: "veth-" + name,
		},
		Policed: true, Committed: true,
	}
	for _, a := range addresses {
		r.Addresses = append(r.Addresses, addr(a))
	}
	return r
}

func app(name string) desired.Selector {
	return desired.Selector{{Key: "app", Op: desired.In, Values: []string{name}}}
}

func node(t testing.TB) desired.Node {
	layout, err := mark.NewLayout(0xffff0000)
	if err != nil {
		t.Fatal(err)
	}
	return desired.Node{Layout: layout, Epoch: 1}
}

// web takes TCP 80 from the shop's clients and from 192.168.0.0/16.
func web() desired.Policy {
	return desired.Policy{
		Namespace: "shop", Name: "web", Pods: app("web"),
		Ingress: &desired.Isolation{Rules: []desired.Rule{{
			Peers:  []desired.Peer{{Namespace: "shop", Pods: app("client")}},
			Blocks: []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16")},
			Ports:  []desired.Port{{Protocol: desired.TCP, PortRange: desired.PortRange{First: 80, Last: 80}}},
		}}},
	}
}

func state(t testing.TB, policies []desired.Policy, records ...attachment.Record) desired.State {
	return desired.Build(node(t), desired.Policies{Policies: policies}, records)
}

func Example() {
	layout, _ := mark.NewLayout(0xffff0000)
	s := desired.Build(
		desired.Node{Layout: layout, Epoch: 1},
		desired.Policies{Policies: []desired.Policy{web()}},
		[]attachment.Record{pod(2, "web", "10.1.0.2"), pod(3, "client", "10.1.0.3"), pod(4, "other", "10.1.0.4")},
	)
	for _, from := range []string{"client", "other"} {
		src := map[string]string{"client": "10.1.0.3", "other": "10.1.0.4"}[from]
		v := s.Evaluate(desired.Packet{
			In: "veth-" + from, Out: "veth-web", Src: addr(src), Dst: addr("10.1.0.2"), Protocol: desired.TCP, DstPort: 80,
		})
		fmt.Println(from, v.Allowed, v.By)
	}
	// Output:
	// client true shop/web ingress[0]
	// other false ingress isolation, no rule allows it
}

func TestAllows(t *testing.T) {
	s := state(t, []desired.Policy{web(), {Namespace: "shop", Name: "mute", Pods: app("mute"), Egress: &desired.Isolation{}}},
		pod(2, "web", "10.1.0.2", "fd00::2"), pod(3, "client", "10.1.0.3", "fd00::3"), pod(4, "mute", "10.1.0.4", "fd00::4"))
	tcp80 := desired.Packet{Protocol: desired.TCP, DstPort: 80}
	with := func(in, src, out, dst string, base desired.Packet) desired.Packet {
		base.In, base.Src, base.Out, base.Dst = in, addr(src), out, addr(dst)
		return base
	}
	udp80, tcp81, icmp := tcp80, tcp80, desired.Packet{Protocol: 1}
	udp80.Protocol, tcp81.DstPort = desired.UDP, 81
	solicitation := desired.Packet{Protocol: desired.ICMPv6, ICMPType: 135, HopLimit: 255}
	routed := solicitation
	routed.HopLimit = 254
	answer := desired.Packet{Protocol: desired.TCP, SrcPort: 80, DstPort: 40000, State: desired.Answering}
	unreachable := desired.Packet{Protocol: 1, ICMPType: 3, State: desired.Reporting, Client: addr("10.1.0.3"), Server: addr("192.0.2.1")}
	judged := answer
	judged.State = desired.Judged
	redirect := unreachable
	redirect.ICMPType = 5
	s.Tunnels = desired.Tunnels{UDPPorts: []uint16{8472}}
	wrapped := answer
	wrapped.Protocol, wrapped.DstPort = desired.UDP, 8472
	tests := []struct {
		name   string
		packet desired.Packet
		want   bool
	}{
		{"peer", with("veth-client", "10.1.0.3", "veth-web", "10.1.0.2", tcp80), true},
		{"inside a live flow", with("veth-web", "10.1.0.2", "veth-mute", "10.1.0.4", judged), true},
		{"inside another's live flow", with("veth-mute", "10.1.0.2", "veth-client", "10.1.0.3", judged), false},
		{"peer, IPv6", with("veth-client", "fd00::3", "veth-web", "fd00::2", tcp80), true},
		{"peer, other port", with("veth-client", "10.1.0.3", "veth-web", "10.1.0.2", tcp81), false},
		{"peer, other protocol", with("veth-client", "10.1.0.3", "veth-web", "10.1.0.2", udp80), false},
		{"peer, no ports", with("veth-client", "10.1.0.3", "veth-web", "10.1.0.2", icmp), false},
		{"block", with("eth0", "192.168.7.7", "veth-web", "10.1.0.2", tcp80), true},
		{"beside the block", with("eth0", "192.169.7.7", "veth-web", "10.1.0.2", tcp80), false},
		{"a v4 block says nothing of v6", with("eth0", "2001:db8::1", "veth-web", "fd00::2", tcp80), false},
		{"node to isolated pod", with("", "192.168.50.1", "veth-web", "10.1.0.2", tcp81), true},
		{"reply side is not isolated", with("veth-web", "10.1.0.2", "veth-client", "10.1.0.3", tcp81), true},
		{"egress denied to pod", with("veth-mute", "10.1.0.4", "veth-client", "10.1.0.3", tcp80), false},
		{"egress denied to host", with("veth-mute", "10.1.0.4", "", "192.168.50.1", tcp80), false},
		{"egress denied, neighbour discovery", with("veth-mute", "fd00::4", "", "ff02::1:ff00:1", solicitation), true},
		{"egress denied, what came by a router is no neighbour discovery", with("veth-mute", "fd00::4", "", "ff02::1:ff00:1", routed), false},
		{"neighbour discovery, link-local source", with("veth-mute", "fe80::1", "", "ff02::1:ff00:1", solicitation), true},
		{"link-local source for more", with("veth-client", "fe80::1", "", "fe80::2", tcp80), false},
		{"an endpoint's address by another's veth", with("veth-client", "fd00::4", "veth-web", "fd00::2", solicitation), false},
		{"an endpoint's address from outside", with("eth0", "10.1.0.3", "veth-web", "10.1.0.2", tcp80), false},
		{"answer that may be asked for", with("veth-web", "10.1.0.2", "veth-client", "10.1.0.3", answer), true},
		{"answer that may not", with("veth-client", "10.1.0.3", "veth-mute", "10.1.0.4", answer), false},
		{"forged answer", with("veth-mute", "10.1.0.2", "veth-client", "10.1.0.3", answer), false},
		{"answer to the node", with("veth-mute", "10.1.0.4", "", "192.168.50.1", answer), true},
		{"a tunnel's packet as an answer to the node", with("veth-mute", "10.1.0.4", "", "192.168.50.1", wrapped), false},
		{"error of the flow's end", with("veth-client", "10.1.0.3", "eth0", "192.0.2.1", unreachable), true},
		{"error of a router", with("eth0", "198.51.100.1", "veth-web", "10.1.0.2", unreachable), true},
		{"error of an endpoint that is no end", with("veth-mute", "10.1.0.4", "veth-client", "10.1.0.3", unreachable), false},
		{"redirect", with("eth0", "198.51.100.1", "veth-web", "10.1.0.2", redirect), false},
		{"not isolated to host", with("veth-client", "10.1.0.3", "", "192.168.50.1", tcp80), true},
		{"false source", with("veth-client", "10.1.0.4", "eth0", "192.0.2.1", tcp80), false},
		{"nobody's source", with("veth-client", "10.1.0.99", "eth0", "192.0.2.1", tcp80), false},
		{"no such endpoint behind the veth", with("eth0", "192.168.7.7", "veth-web", "10.1.0.99", tcp80), false},
		{"outside to outside", with("eth0", "192.0.2.1", "eth1", "192.0.2.9", tcp80), true},
	}
	for _, tt := range tests {
		if got := s.Evaluate(tt.packet); got.Allowed != tt.want || got.By == "" {
			t.Errorf("%s: %+v, want allowed %t", tt.name, got, tt.want)
		}
	}
}

// A verdict names the endpoints that were asked, up to the one that denies.
func TestAllowsJudged(t *testing.T) {
	s := state(t, []desired.Policy{web(), {Namespace: "shop", Name: "mute", Pods: app("mute"), Egress: &desired.Isolation{}}},
		pod(2, "web", "10.1.0.2"), pod(3, "client", "10.1.0.3"), pod(4, "mute", "10.1.0.4"), pod(5, "other", "10.1.0.5"))
	web, mute := s.Endpoints[0].Profiles[desired.Ingress], s.Endpoints[2].Profiles[desired.Egress]
	from := map[string]string{"veth-client": "10.1.0.3", "veth-mute": "10.1.0.4", "veth-other": "10.1.0.5", "eth0": "192.168.7.7", "": "192.168.50.1"}
	to := map[string]string{"veth-web": "10.1.0.2", "eth0": "192.0.2.1", "": "192.168.50.1"}
	egress := func(id mark.ID) desired.Decision {
		return desired.Decision{Direction: desired.Egress, Endpoint: id, Allowed: true}
	}
	for _, tt := range []struct {
		in, out string
		want    []desired.Decision
	}{
		{"veth-client", "veth-web", []desired.Decision{egress(3), {Direction: desired.Ingress, Endpoint: 2, Profile: web, Rule: "shop/web ingress[0]", Allowed: true}}},
		{"veth-other", "veth-web", []desired.Decision{egress(5), {Direction: desired.Ingress, Endpoint: 2, Profile: web}}},
		{"veth-mute", "veth-web", []desired.Decision{{Direction: desired.Egress, Endpoint: 4, Profile: mute}}},
		{"eth0", "veth-web", []desired.Decision{{Direction: desired.Ingress, Endpoint: 2, Profile: web, Rule: "shop/web ingress[0]", Allowed: true}}},
		{"veth-client", "eth0", []desired.Decision{egress(3)}},
		{"veth-client", "", []desired.Decision{egress(3)}},
		{"", "veth-web", nil},
	} {
		p := desired.Packet{In: tt.in, Out: tt.out, Src: addr(from[tt.in]), Dst: addr(to[tt.out]), Protocol: desired.TCP, DstPort: 80}
		if diff := cmp.Diff(tt.want, s.Evaluate(p).Evaluated); diff != "" {
			t.Errorf("%q to %q:\n%s", tt.in, tt.out, diff)
		}
	}
}

// An endpoint outside Kubernetes is nobody's peer, not even of "all namespaces".
func TestNoNamespaceIsNoPeer(t *testing.T) {
	everyone := desired.Policy{Namespace: "shop", Name: "all", Pods: app("web"), Ingress: &desired.Isolation{Rules: []desired.Rule{{Peers: []desired.Peer{{}}}}}}
	stray := pod(3, "stray", "10.1.0.3")
	stray.Namespace = ""
	s := state(t, []desired.Policy{everyone}, pod(2, "web", "10.1.0.2"), stray, pod(4, "other", "10.1.0.4"))
	for in, want := range map[string]bool{"stray": false, "other": true} {
		src := map[string]string{"stray": "10.1.0.3", "other": "10.1.0.4"}[in]
		got := s.Evaluate(desired.Packet{In: "veth-" + in, Out: "veth-web", Src: addr(src), Dst: addr("10.1.0.2"), Protocol: desired.TCP, DstPort: 1})
		if got.Allowed != want {
			t.Errorf("%s: %+v, want allowed %t", in, got, want)
		}
	}
}

// Pods that the same policies select share a profile; equal peers share a set.
func TestSharing(t *testing.T) {
	twin := pod(4, "twin", "10.1.0.4")
	twin.Labels = map[string]string{"app": "web"}
	other := web()
	other.Namespace = "lab"
	s := state(t, []desired.Policy{other, web()}, pod(2, "web", "10.1.0.2"), pod(3, "client", "10.1.0.3"), twin)
	if len(s.Profiles) != 1 {
		t.Errorf("%d profiles, want 1", len(s.Profiles))
	}
	if a, b := s.Endpoints[0].Profiles, s.Endpoints[2].Profiles; a != b {
		t.Errorf("profiles %v and %v of pods under the same policies", a, b)
	}
	if len(s.PeerSets) != 1 { // both policies name app=client of namespace shop
		t.Errorf("%d peer sets, want 1", len(s.PeerSets))
	}
	unpoliced := pod(2, "web", "10.1.0.2")
	unpoliced.Policed = false
	if s := state(t, []desired.Policy{web()}, unpoliced); len(s.Profiles) != 0 {
		t.Errorf("an endpoint that is not policed has profiles %v", s.Profiles)
	}
}

// Building from one record yields that record's share of the whole.
func TestShareOfOne(t *testing.T) {
	records := []attachment.Record{pod(2, "web", "10.1.0.2"), pod(3, "client", "10.1.0.3")}
	whole := state(t, []desired.Policy{web()}, records...)
	for i, r := range records {
		share := state(t, []desired.Policy{web()}, r)
		if diff := cmp.Diff(whole.Endpoints[i], share.Endpoints[0], cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("endpoint %s differs:\n%s", r.Pod, diff)
		}
	}
}

func TestNarrows(t *testing.T) {
	records := []attachment.Record{pod(2, "web", "10.1.0.2"), pod(3, "client", "10.1.0.3")}
	more, fewer, otherPeer := web(), web(), web()
	more.Ingress.Rules = append(more.Ingress.Rules, desired.Rule{Blocks: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}})
	fewer.Ingress.Rules = nil
	otherPeer.Ingress.Rules[0].Peers[0].Pods = app("nobody")
	elsewhere := web()
	elsewhere.Pods = app("nobody")
	second := desired.Policy{Namespace: "shop", Name: "second", Pods: app("web"), Ingress: &desired.Isolation{}}
	deny := desired.Policy{Namespace: "shop", Name: "web", Pods: app("web"), Ingress: &desired.Isolation{}}
	tests := []struct {
		name     string
		from, to []desired.Policy
		less     []attachment.Record // of the second state; records when nil
		narrows  bool
	}{
		{name: "nothing changes", from: []desired.Policy{web()}, to: []desired.Policy{web()}},
		{name: "isolation begins", to: []desired.Policy{web()}, narrows: true},
		{name: "isolation ends", from: []desired.Policy{web()}},
		{name: "a rule more", from: []desired.Policy{web()}, to: []desired.Policy{more}},
		{name: "a rule less", from: []desired.Policy{more}, to: []desired.Policy{web()}, narrows: true},
		{name: "no rule left", from: []desired.Policy{web()}, to: []desired.Policy{fewer}, narrows: true},
		{name: "another peer", from: []desired.Policy{web()}, to: []desired.Policy{otherPeer}, narrows: true},
		{name: "a policy that adds nothing", from: []desired.Policy{web()}, to: []desired.Policy{second, web()}},
		{name: "a policy that allows goes", from: []desired.Policy{second, web()}, to: []desired.Policy{second}, narrows: true},
		{name: "a policy that denies goes", from: []desired.Policy{deny}},
		{name: "the policy selects nobody any more", from: []desired.Policy{web()}, to: []desired.Policy{elsewhere}},
		{name: "an endpoint goes", from: []desired.Policy{web()}, to: []desired.Policy{web()}, less: records[:1], narrows: true},
	}
	for _, tt := range tests {
		after := tt.less
		if after == nil {
			after = records
		}
		if got := state(t, tt.from, records...).Restricts(state(t, tt.to, after...)); got != tt.narrows {
			t.Errorf("%s: narrows %t, want %t", tt.name, got, tt.narrows)
		}
	}
}

// What endpoints may not send any more narrows, and what they may send again does not.
func TestNarrowsWhenTunnelsChange(t *testing.T) {
	with := func(udp []uint16, protocols []uint8) desired.State {
		s := state(t, []desired.Policy{web()}, pod(2, "web", "10.1.0.2"))
		s.Tunnels = desired.Tunnels{UDPPorts: udp, Protocols: protocols}
		return s
	}
	none, vxlan, both, gre := with(nil, nil), with([]uint16{4789}, nil), with([]uint16{4789, 8472}, []uint8{4}), with([]uint16{4789}, []uint8{47})
	tests := []struct {
		name     string
		from, to desired.State
		narrows  bool
	}{
		{"the same", both, both, false},
		{"a port more", none, vxlan, true},
		{"a protocol more", vxlan, gre, true},
		{"other ones", both, gre, true},
		{"fewer", both, vxlan, false},
		{"none", both, none, false},
	}
	for _, tt := range tests {
		if got := tt.from.Restricts(tt.to); got != tt.narrows {
			t.Errorf("%s: narrows %t, want %t", tt.name, got, tt.narrows)
		}
	}
}

// A pod that may send from fewer prefixes narrows, and one that may from more does not.
func TestNarrowsWhenSourcesChange(t *testing.T) {
	with := func(sources ...string) desired.State {
		r := pod(2, "web", "10.1.0.2")
		for _, p := range sources {
			r.AllowedSources = append(r.AllowedSources, netip.MustParsePrefix(p))
		}
		return state(t, nil, r)
	}
	one, two, wider := with("172.30.0.0/16"), with("172.30.0.0/16", "fd00:30::/64"), with("172.16.0.0/12")
	if with().Restricts(one) || one.Restricts(two) || two.Restricts(two) {
		t.Error("a prefix more narrows")
	}
	if !one.Restricts(with()) || !two.Restricts(one) || !one.Restricts(wider) {
		t.Error("a prefix that goes does not narrow")
	}
}

// What comes from a further source, or goes to it, is the endpoint's; to a policy that names
// the endpoint it is nobody. An address that is another endpoint's own stays that one's.
func TestFurtherSources(t *testing.T) {
	router, client := pod(2, "web", "10.1.0.2"), pod(3, "client", "10.1.0.3")
	router.AllowedSources = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("172.30.0.0/16")}
	deny := desired.Policy{Namespace: "shop", Name: "deny", Pods: app("web"), Ingress: &desired.Isolation{}, Egress: &desired.Isolation{}}
	open, denied := state(t, nil, router, client), state(t, []desired.Policy{deny}, router, client)
	tests := []struct {
		name       string
		p          desired.Packet
		open, deny bool // allowed without a policy, and with it
	}{
		{"from its own", desired.Packet{In: router.L3Interface, Out: "eth0", Src: addr("10.1.0.2"), Dst: addr("192.0.2.1")}, true, false},
		{"from a further one", desired.Packet{In: router.L3Interface, Out: "eth0", Src: addr("172.30.0.5"), Dst: addr("192.0.2.1")}, true, false},
		{"from none", desired.Packet{In: router.L3Interface, Out: "eth0", Src: addr("172.31.0.5"), Dst: addr("192.0.2.1")}, false, false},
		{"from another's own", desired.Packet{In: router.L3Interface, Out: "eth0", Src: addr("10.1.0.3"), Dst: addr("192.0.2.1")}, false, false},
		{"to a further one", desired.Packet{In: "eth0", Out: router.L3Interface, Src: addr("192.0.2.1"), Dst: addr("172.30.0.5")}, true, false},
		{"to none", desired.Packet{In: "eth0", Out: router.L3Interface, Src: addr("192.0.2.1"), Dst: addr("172.31.0.5")}, false, false},
	}
	for _, tt := range tests {
		tt.p.Protocol, tt.p.DstPort = desired.UDP, 53
		if v := open.Evaluate(tt.p); v.Allowed != tt.open {
			t.Errorf("%s, without a policy: %+v", tt.name, v)
		}
		if v := denied.Evaluate(tt.p); v.Allowed != tt.deny {
			t.Errorf("%s, denied everything: %+v", tt.name, v)
		}
	}
}

// A peer that loses its label is no peer any more.
func TestNarrowsWhenAPeerChanges(t *testing.T) {
	before := state(t, []desired.Policy{web()}, pod(2, "web", "10.1.0.2"), pod(3, "client", "10.1.0.3"))
	relabelled := pod(3, "client", "10.1.0.3")
	relabelled.Labels = nil
	after := state(t, []desired.Policy{web()}, pod(2, "web", "10.1.0.2"), relabelled)
	if !before.Restricts(after) {
		t.Error("a pod that leaves a peer set does not narrow")
	}
	if after.Restricts(before) {
		t.Error("a pod that joins a peer set narrows")
	}
}

// A named port is the number that the destination has under the name, for the
// protocol: at the policed pod for ingress, at the peer for egress.
func TestNamedPorts(t *testing.T) {
	http := desired.NamedPort{Protocol: desired.TCP, Name: "http"}
	policies := []desired.Policy{
		{Namespace: "shop", Name: "in", Pods: app("web"), Ingress: &desired.Isolation{Rules: []desired.Rule{{NamedPorts: []desired.NamedPort{http}}}}},
		{Namespace: "shop", Name: "out", Pods: app("client"), Egress: &desired.Isolation{Rules: []desired.Rule{{
			NamedPorts: []desired.NamedPort{http}, Ports: []desired.Port{{Protocol: desired.UDP, PortRange: desired.PortRange{First: 53, Last: 53}}},
		}}}},
	}
	web, old, client := pod(2, "web", "10.1.0.2", "fd00::2"), pod(3, "old", "10.1.0.3"), pod(4, "client", "10.1.0.4")
	web.NamedPorts = []attachment.NamedPort{{Name: "http", Protocol: uint8(desired.TCP), Number: 8080}, {Name: "http", Protocol: uint8(desired.UDP), Number: 9090}}
	old.NamedPorts = []attachment.NamedPort{{Name: "http", Protocol: uint8(desired.TCP), Number: 80}}
	s := state(t, policies, web, old, client)
	tests := []struct {
		to    attachment.Record
		proto desired.Protocol
		port  uint16
		want  bool
	}{
		{web, desired.TCP, 8080, true},
		{web, desired.TCP, 80, false},
		{web, desired.UDP, 9090, false},
		{web, desired.UDP, 8080, false},
		{old, desired.TCP, 80, true},
		{old, desired.TCP, 8080, false},
		{old, desired.UDP, 53, true},
	}
	for _, tt := range tests {
		p := desired.Packet{In: client.L3Interface, Out: tt.to.L3Interface, Src: client.Addresses[0], Dst: tt.to.Addresses[0], Protocol: tt.proto, DstPort: tt.port}
		if got := s.Evaluate(p); got.Allowed != tt.want {
			t.Errorf("to %s %s %d: %+v, want %v", tt.to.Pod, tt.proto, tt.port, got, tt.want)
		}
	}
	// Something that is no pod has no named port.
	if p := (desired.Packet{In: client.L3Interface, Out: "eth0", Src: client.Addresses[0], Dst: addr("192.0.2.1"), Protocol: desired.TCP, DstPort: 8080}); s.Evaluate(p).Allowed {
		t.Error("a named port of nobody is allowed")
	}
	web.NamedPorts = nil
	if next := state(t, policies, web, old, client); !s.Restricts(next) || next.Restricts(s) {
		t.Error("a pod that loses a named port narrows, and one that gets it does not")
	}
}

// A pod of another node is in the sets that pick it.
func TestElsewhere(t *testing.T) {
	far := func(name, label, address string) desired.Pod {
		return desired.Pod{
			Namespace: "shop", Name: name, Labels: map[string]string{"app": label}, Addresses: []netip.Addr{addr(address)},
			Ports: []attachment.NamedPort{{Name: "http", Protocol: uint8(desired.TCP), Number: 8080}},
		}
	}
	out := desired.Policy{Namespace: "shop", Name: "out", Pods: app("web"), Egress: &desired.Isolation{Rules: []desired.Rule{{
		Peers: []desired.Peer{{Namespace: "shop", Pods: app("client")}}, NamedPorts: []desired.NamedPort{{Protocol: desired.TCP, Name: "http"}},
	}}}}
	local := pod(2, "web", "10.1.0.2")
	build := func(p desired.Policy, elsewhere ...desired.Pod) desired.State {
		policies := desired.Policies{Policies: []desired.Policy{p}}
		return desired.Build(node(t), policies, []attachment.Record{local}).WithMembers(policies.Members(elsewhere...))
	}
	in := build(web(), far("a", "client", "10.2.0.2"), far("b", "other", "10.2.0.3"))
	for source, want := range map[string]bool{"10.2.0.2": true, "10.2.0.3": false} {
		p := desired.Packet{In: "eth0", Out: local.L3Interface, Src: addr(source), Dst: local.Addresses[0], Protocol: desired.TCP, DstPort: 80}
		if got := in.Evaluate(p); got.Allowed != want {
			t.Errorf("from %s: %+v, want %t", source, got, want)
		}
	}
	both := build(out, far("a", "client", "10.2.0.2"))
	for port, want := range map[uint16]bool{8080: true, 80: false} {
		p := desired.Packet{In: local.L3Interface, Out: "eth0", Src: local.Addresses[0], Dst: addr("10.2.0.2"), Protocol: desired.TCP, DstPort: port}
		if got := both.Evaluate(p); got.Allowed != want {
			t.Errorf("to port %d: %+v, want %t", port, got, want)
		}
	}
	if !both.Restricts(build(out)) || build(out).Restricts(both) {
		t.Error("a peer that goes narrows, and one that comes does not")
	}
}

func TestSelector(t *testing.T) {
	labels := map[string]string{"app": "web", "empty": ""}
	tests := []struct {
		requirement desired.Requirement
		want        bool
	}{
		{desired.Requirement{Key: "app", Op: desired.In, Values: []string{"db", "web"}}, true},
		{desired.Requirement{Key: "app", Op: desired.In, Values: []string{"db"}}, false},
		{desired.Requirement{Key: "none", Op: desired.In, Values: []string{""}}, false},
		{desired.Requirement{Key: "empty", Op: desired.In, Values: []string{""}}, true},
		{desired.Requirement{Key: "app", Op: desired.NotIn, Values: []string{"web"}}, false},
		{desired.Requirement{Key: "none", Op: desired.NotIn, Values: []string{"web"}}, true},
		{desired.Requirement{Key: "empty", Op: desired.Exists}, true},
		{desired.Requirement{Key: "none", Op: desired.Exists}, false},
		{desired.Requirement{Key: "none", Op: desired.DoesNotExist}, true},
		{desired.Requirement{Key: "app", Op: "Unknown"}, false},
	}
	for _, tt := range tests {
		if got := (desired.Selector{tt.requirement}).Matches(labels); got != tt.want {
			t.Errorf("%+v matches %t, want %t", tt.requirement, got, tt.want)
		}
	}
	if !desired.Selector(nil).Matches(nil) {
		t.Error("the empty selector does not match everything")
	}
}

// A namespace that has been made again has its own pods and policies: those of the former one
// of the name are neither selected by its policies nor peers of its pods, and the other way
// round. Where a UID is not known, the name decides.
func TestNamespaceAgain(t *testing.T) {
	const namespace = "shop"
	policyOf := func(uid string) desired.Policy {
		return desired.Policy{Namespace: namespace, Name: "web", Pods: app("web"), Ingress: &desired.Isolation{Rules: []desired.Rule{
			{Peers: []desired.Peer{{Namespace: namespace, Pods: app("web")}, {Namespace: "other", Pods: app("web")}}},
		}}}.Of(uid)
	}
	watching := desired.Policy{Namespace: "other", Name: "any", Ingress: &desired.Isolation{Rules: []desired.Rule{
		{Peers: []desired.Peer{{NamespaceSelector: desired.Selector{{Key: desired.MetadataName, Op: desired.In, Values: []string{namespace}}}}}},
	}}}
	uids := []string{"", "1", "2"}
	for _, policy := range uids {
		for _, of := range uids {
			for _, now := range uids {
				same := func(a, b string) bool { return a == b || a == "" || b == "" }
				r := pod(2, "web", "10.1.0.2")
				r.Namespace, r.NamespaceUID = namespace, of
				policies := desired.Policies{Policies: []desired.Policy{policyOf(policy), watching}}
				if now != "" {
					policies.NamespaceUIDs = map[string]string{namespace: now}
				}
				s := desired.Build(node(t), policies, []attachment.Record{r})
				if got := s.Endpoints[0].Profiles[desired.Ingress] != ""; got != same(policy, of) {
					t.Errorf("a policy of namespace %q selects a pod of namespace %q: %v", policy, of, got)
				}
				for _, set := range s.PeerSets {
					want := same(policy, of)
					switch {
					case set.Peer.Namespace == "other":
						want = false
					case set.Peer.Namespace == "":
						want = same(of, now)
					}
					if got := len(set.Addrs) > 0; got != want {
						t.Errorf("a pod of namespace %q is in %+v of a policy of namespace %q, with %q there now: %v", of, set.Peer, policy, now, got)
					}
				}
			}
		}
	}
	both := desired.Policies{Policies: []desired.Policy{policyOf("1"), policyOf("2")}}
	one, two := pod(2, "web", "10.1.0.2"), pod(3, "web", "10.1.0.3")
	one.Namespace, one.NamespaceUID, two.Namespace, two.NamespaceUID = namespace, "1", namespace, "2"
	s := desired.Build(node(t), both, []attachment.Record{one, two})
	if a, b := s.Endpoints[0].Profiles, s.Endpoints[1].Profiles; a == b || a[desired.Ingress] == "" || b[desired.Ingress] == "" {
		t.Errorf("pods of two namespaces of a name have profiles %q and %q", a, b)
	}
}

// Of a namespace that nobody knows, no selector of labels tells anything, and one of names does.
func TestUnknownNamespace(t *testing.T) {
	pod := desired.Pod{Namespace: "stranger", Name: "web", Addresses: []netip.Addr{addr("10.9.0.1")}}
	for _, tt := range []struct {
		name         string
		s            desired.Selector
		open, listed bool // whether it is picked
	}{
		{"all", nil, true, true},
		{"in", desired.Selector{{Key: "team", Op: desired.In, Values: []string{"good"}}}, false, false},
		{"not in", desired.Selector{{Key: "team", Op: desired.NotIn, Values: []string{"bad"}}}, true, false},
		{"with a label", desired.Selector{{Key: "team", Op: desired.Exists}}, false, false},
		{"without a label", desired.Selector{{Key: "team", Op: desired.DoesNotExist}}, true, false},
		{"its name", desired.Selector{{Key: desired.MetadataName, Op: desired.In, Values: []string{"stranger"}}}, true, true},
		{"not another name", desired.Selector{{Key: desired.MetadataName, Op: desired.NotIn, Values: []string{"shop"}}}, true, true},
		{"its name, without a label", desired.Selector{{Key: desired.MetadataName, Op: desired.Exists}, {Key: "team", Op: desired.DoesNotExist}}, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := desired.Policies{Policies: []desired.Policy{{Namespace: "shop", Name: "p", Ingress: &desired.Isolation{
				Rules: []desired.Rule{{Peers: []desired.Peer{{NamespaceSelector: tt.s}}}},
			}}}}
			for listed, want := range map[bool]bool{false: tt.open, true: tt.listed} {
				if p.Listed = listed; (len(p.Members(pod).Peers) > 0) != want {
					t.Errorf("listed %v: picked is %v", listed, !want)
				}
				p.Namespaces = map[string]map[string]string{"stranger": {}}
				if (len(p.Members(pod).Peers) > 0) != tt.open {
					t.Errorf("listed %v, without labels: picked is %v", listed, !tt.open)
				}
				p.Namespaces = nil
			}
		})
	}
}
