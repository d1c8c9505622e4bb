package desired

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/podmark/podmark/pkg/mark"
)

// Packet is a packet where it is judged: behind IPVS, with the real backend as its
// destination and the real client as its source.
type Packet struct {
	// In is the L3 interface it came in by; empty when a host process sent it.
	In string
	// Out is the L3 interface it leaves by; empty when it is for a host process.
	Out      string
	Src, Dst netip.Addr
	Protocol Protocol
	// ICMPType is read only for protocols 1 and 58.
	ICMPType         uint8
	SrcPort, DstPort uint16
	// HopLimit is that with which it came in. It is read of neighbour discovery and MLD.
	HopLimit uint8
	// Target is whose address a neighbour solicitation or advertisement is about.
	Target netip.Addr
	State  PacketState
	// Client and Server are the ends of the flow that an error is about.
	Client, Server netip.Addr
	// Frame is how it crosses a bridge; nil where it crosses none, and where the bridge is
	// not asked about: then In vouches for the addresses behind it.
	Frame *Frame
}

// Frame is what a bridge sees of a packet.
type Frame struct {
	// From and To are the ports by which it came in and leaves; empty for the node's side.
	From, To string
	// OtherSource is set where the source MAC address is not the endpoint's behind From,
	// and OtherDestination where the destination's is not that of the one behind To.
	OtherSource, OtherDestination bool
	// Routed is set where IP sends it on from port to port, and not the bridge alone.
	Routed bool
}

// PacketState is what conntrack makes of a packet, as far as podmark distinguishes.
type PacketState uint8

const (
	// Opening: the first packet of a flow, one that conntrack cannot place or does not
	// track, or one from the side that opened a flow which was not judged under this epoch.
	Opening PacketState = iota
	// Answering: one from the other side of such a flow.
	Answering
	// Reporting: an error about a flow that is allowed now.
	Reporting
	// Judged: one from either side of a flow that was allowed under this epoch and has been
	// answered.
	Judged
)

// Verdict is the answer to "may this packet pass", with its reason.
type Verdict struct {
	Allowed bool
	// By is the rule that allowed or the thing that denied, in words.
	By string
	// Audited is set for what passes although a policy that is audited would deny it. By
	// says that first.
	Audited bool
	// Evaluated are the endpoints that were asked, in order. Who denies is the last.
	Evaluated []Decision
}

// Decision is what the policies of one endpoint make of a packet.
type Decision struct {
	Direction Direction
	Endpoint  mark.ID
	// Profile is empty where no policy isolates the endpoint.
	Profile ProfileID
	// Rule is the origin of the rule that decides; empty where none does, and where none
	// is asked.
	Rule    string
	Allowed bool
	// Audited is set where it is allowed because the policies are audited only.
	Audited bool
}

// Protocol numbers. Neighbour discovery and MLD are ICMPv6; PIM is what routers of multicast
// speak.
const (
	ICMP   Protocol = 1
	ICMPv6 Protocol = 58
	PIM    Protocol = 103
)

// LinkMulticast is what no router sends on (RFC 4291, section 2.7).
var LinkMulticast = netip.MustParsePrefix("ff02::/16")

// The ICMPv6 types that no policy is asked about, as long as they stay on their link
// (RFC 4890, section 4.4.1): without neighbour discovery IPv6 has no next hop. A redirect
// is not among them.
var (
	// DiscoveryTypes are those of neighbour discovery (RFC 4861). They have a hop limit of
	// 255, of which every router takes one off.
	DiscoveryTypes = []uint8{133, 134, 135, 136}
	// ListenerTypes are those of MLD (RFC 2710, RFC 3810). They have a hop limit of 1,
	// which no router passes on.
	ListenerTypes = []uint8{130, 131, 132, 143}
)

// The ICMP and ICMPv6 types that are errors about a packet (RFC 792, RFC 4443). A redirect
// is none: it is an order.
var (
	ErrorTypes4 = []uint8{3, 11, 12}
	ErrorTypes6 = []uint8{1, 2, 3, 4}
)

// Evaluate judges a packet by the model alone. Whatever its state, it is asked first who sent it:
// see [State.Sender].
func (s State) Evaluate(p Packet) Verdict {
	if p.In == "" {
		return Verdict{Allowed: true, By: "sent by the node"}
	}
	if v := s.Sender(p); !v.Allowed {
		return v
	}
	if v := s.stray(p); !v.Allowed {
		return v
	}
	if s.besideIP(p) {
		return s.unfiltered(p)
	}
	switch {
	case p.State == Judged:
		return Verdict{Allowed: true, By: "of a flow that is allowed"}
	case p.onLink():
		return Verdict{Allowed: true, By: "neighbour discovery"}
	case p.State == Reporting && s.reports(p):
		return Verdict{Allowed: true, By: "an error about a flow that is allowed"}
	case p.State == Answering && p.Out == "" && !s.wraps(p):
		return Verdict{Allowed: true, By: "the node is answered"}
	case slices.Contains(s.HostAddresses, p.Src):
		return Verdict{By: "source address is the node's own"}
	case s.wraps(p):
		return Verdict{By: "encapsulated as in the node's tunnels"}
	case p.State == Answering:
		return s.judged(p.turned())
	}
	return s.judged(p)
}

// Sender asks whether a packet, of whatever flow and kind, comes from who it says.
func (s State) Sender(p Packet) Verdict {
	var genuine bool
	switch e := s.behind(p); {
	case s.takesHostAddress(p):
	case e == nil:
		genuine = s.genuineOutside(p)
	default:
		genuine = s.genuineEndpoint(p, e)
	}
	if !genuine {
		return Verdict{By: "source address is not the endpoint's own"}
	}
	return Verdict{Allowed: true, By: "the sender is who it says"}
}

// takesHostAddress holds for what an endpoint sends from the node's own address, out of a further
// prefix. That address comes in nowhere that IP sees, whatever prefix it is in.
func (s State) takesHostAddress(p Packet) bool {
	if s.besideIP(p) || !slices.Contains(s.HostAddresses, p.Src) {
		return false
	}
	return slices.ContainsFunc(s.Endpoints, func(e Endpoint) bool {
		return e.L3Interface == p.In && containing(e.AllowedSources, p.Src)
	})
}

// genuineOutside asks what comes in by an interface that is no endpoint's: it must not speak for
// an endpoint. Its L3 interface and its VRF may, where no bridge says by which port it came.
func (s State) genuineOutside(p Packet) bool {
	if p.bridged() && p.claims() && s.Owner(p.Target) != nil {
		return false
	}
	owner := s.Owner(p.Src)
	return owner == nil || p.Frame == nil && (p.In == owner.L3Interface || p.In == owner.VRF)
}

// genuineEndpoint asks what endpoint e sends, by any address: one of its own, or for its link the
// link-local one, or one out of a further prefix that is no other endpoint's.
func (s State) genuineEndpoint(p Packet, e *Endpoint) bool {
	owner := s.Owner(p.Src)
	switch {
	case commands(p):
		return false
	case p.bridged() && (p.Frame.OtherSource || p.Protocol == PIM && p.Src.Is4()):
		return false
	case p.bridged() && p.aboutLink():
		speaks := p.linkScoped() && (owner == e || speaksOf(p, *e, true))
		return speaks && (!p.claims() || named(*e, p.Target))
	case owner != nil:
		return owner == e
	}
	return p.linkScoped() && speaksOf(p, *e, false) || containing(e.AllowedSources, p.Src)
}

// behind is the endpoint at the port that the packet came in by, nil for none.
func (s State) behind(p Packet) *Endpoint {
	port := p.In
	if p.Frame != nil && p.Frame.From != "" {
		port = p.Frame.From
	}
	for i, e := range s.Endpoints {
		if e.HostVeth == port && port != "" {
			return &s.Endpoints[i]
		}
	}
	return nil
}

// Owner is the endpoint with the address, nil for none.
func (s State) Owner(a netip.Addr) *Endpoint {
	for i, e := range s.Endpoints {
		if slices.Contains(e.Addresses, a) {
			return &s.Endpoints[i]
		}
	}
	return nil
}

// sourceOf is the endpoint that a packet with a proven sender comes from, nil for outside.
func (s State) sourceOf(p Packet) *Endpoint {
	if e := s.Owner(p.Src); e != nil {
		return e
	}
	if e := s.behind(p); e != nil && containing(e.AllowedSources, p.Src) {
		return e
	}
	return nil
}

func containing(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// bridged holds for what comes in by the port of a bridge.
func (p Packet) bridged() bool { return p.Frame != nil && p.Frame.From != "" }

// Switched holds for what a bridge sends on from port to port by itself.
func (p Packet) Switched() bool { return p.bridged() && p.Frame.To != "" && !p.Frame.Routed }

// besideIP holds for what goes from port to port where br_netfilter does not hand that to IP.
func (s State) besideIP(p Packet) bool { return p.Switched() && s.Unfiltered.Of(p.Src) }

// aboutLink holds for neighbour discovery and MLD, whatever they look like.
func (p Packet) aboutLink() bool {
	return p.Protocol == ICMPv6 && (p.ICMPType >= 130 && p.ICMPType <= 137 || slices.Contains(ListenerTypes, p.ICMPType))
}

// claims holds for what says that an address is the sender's: a neighbour advertisement, and
// the question whether another has the address that the sender is about to take.
func (p Packet) claims() bool {
	return p.Protocol == ICMPv6 && (p.ICMPType == 136 || p.ICMPType == 135 && p.Src.IsUnspecified())
}

// named holds for the addresses that an endpoint on a bridge may claim. The unspecified one is
// nobody's.
func named(e Endpoint, a netip.Addr) bool {
	own, known := e.LinkLocal()
	return slices.Contains(e.Addresses, a) || known && (own == a || a.IsUnspecified())
}

// onLink holds for those of it that come by no router, this node included.
func (p Packet) onLink() bool {
	return p.linkScoped() && (p.Out == "" || p.Switched()) &&
		(!slices.Contains(ListenerTypes, p.ICMPType) || LinkMulticast.Contains(p.Dst))
}

// linkScoped holds for those of it that came in as no router sends them on.
func (p Packet) linkScoped() bool {
	return p.Protocol == ICMPv6 && (p.HopLimit == 255 && slices.Contains(DiscoveryTypes, p.ICMPType) ||
		p.HopLimit == 1 && slices.Contains(ListenerTypes, p.ICMPType))
}

// commands holds for what a router tells others on its link, and an endpoint must not.
func commands(p Packet) bool {
	return p.Protocol == ICMP && p.ICMPType == 5 ||
		p.Protocol == ICMPv6 && slices.Contains([]uint8{130, 134, 137}, p.ICMPType)
}

// speaksOf holds for what an endpoint may tell its link of its link-local address, or
// before it has one. On a bridge it must be the one that Linux gives it.
func speaksOf(p Packet, e Endpoint, bridged bool) bool {
	if commands(p) {
		return false
	}
	if p.Src.IsUnspecified() {
		return !bridged || p.ICMPType != 136
	}
	own, known := e.LinkLocal()
	return p.Src.IsLinkLocalUnicast() && (!bridged || known && own == p.Src)
}

// stray asks whether a frame to a bridge port is for the endpoint behind it.
func (s State) stray(p Packet) Verdict {
	switch {
	case s.onlyForRouters(p):
		return Verdict{By: "for routers, and not for other endpoints"}
	case s.misdirected(p):
		return Verdict{By: "not for the endpoint behind the bridge port"}
	}
	return Verdict{Allowed: true}
}

// onlyForRouters holds for what one endpoint tells routers, where it goes to the port of another.
func (s State) onlyForRouters(p Packet) bool {
	toRouters := p.Protocol == ICMPv6 && slices.Contains([]uint8{131, 132, 133, 143}, p.ICMPType)
	return toRouters && p.bridged() && s.behind(p) != nil &&
		slices.ContainsFunc(s.Endpoints, func(e Endpoint) bool { return e.HostVeth == p.Frame.To })
}

// misdirected holds for a frame to the port of an isolated endpoint by another MAC address or to
// another IP address than the endpoint's. What finds neighbours and groups is for multicast addresses.
func (s State) misdirected(p Packet) bool {
	if p.Frame == nil || p.Frame.To == "" || p.onLink() && slices.Contains([]uint8{130, 134, 135, 136}, p.ICMPType) {
		return false
	}
	return slices.ContainsFunc(s.Endpoints, func(e Endpoint) bool {
		if e.HostVeth != p.Frame.To || e.Routed() || !s.Isolates(e.Profiles[Ingress]) {
			return false
		}
		return p.Frame.OtherDestination || !slices.Contains(e.Addresses, p.Dst) && !containing(e.AllowedSources, p.Dst)
	})
}

// unfiltered answers for what goes from port to port past IP: only whom nobody isolates may send
// it, and get it.
func (s State) unfiltered(p Packet) Verdict {
	for _, e := range s.Endpoints {
		if e.HostVeth == p.Frame.From && s.Isolates(e.Profiles[Egress]) ||
			e.HostVeth == p.Frame.To && s.Isolates(e.Profiles[Ingress]) {
			return Verdict{By: "from port to port of a bridge that hands nothing to IP, so that no policy can be asked"}
		}
	}
	return Verdict{Allowed: true, By: "from port to port of a bridge, and neither end is isolated"}
}

// reports holds for an error from an end of the flow that it is about, by its own address, or
// from outside, where the routers are.
func (s State) reports(p Packet) bool {
	types := ErrorTypes4
	if p.Protocol == ICMPv6 {
		types = ErrorTypes6
	}
	if !slices.Contains(types, p.ICMPType) {
		return false
	}
	if s.Owner(p.Src) != nil {
		return p.Src == p.Client || p.Src == p.Server
	}
	return s.sourceOf(p) == nil
}

// wraps holds for an endpoint's packet that the node, or another like it, would unwrap.
func (s State) wraps(p Packet) bool {
	if s.sourceOf(p) == nil {
		return false
	}
	return slices.Contains(s.Tunnels.Protocols, uint8(p.Protocol)) ||
		(p.State != Answering || p.Out == "") && p.Protocol == UDP && slices.Contains(s.Tunnels.UDPPorts, p.DstPort)
}

// turned is the flow's original packet, which p answers.
func (p Packet) turned() Packet {
	p.In, p.Out = p.Out, p.In
	p.Src, p.Dst = p.Dst, p.Src
	p.SrcPort, p.DstPort = p.DstPort, p.SrcPort
	if p.Frame != nil {
		p.Frame = &Frame{From: p.Frame.To, To: p.Frame.From, Routed: p.Frame.Routed}
	}
	return p
}

// judged asks the policies of both ends.
func (s State) judged(p Packet) Verdict {
	src := s.sourceOf(p)
	if src == nil {
		return s.evaluateIngress(p)
	}
	sent := s.evaluate(Egress, *src, p.Dst, p)
	if !sent.Allowed {
		return sent
	}
	v := s.evaluateIngress(p)
	v.Evaluated = append(sent.Evaluated, v.Evaluated...)
	if sent.Audited && v.Allowed {
		v.By, v.Audited = sent.By+"; "+v.By, true
	}
	return v
}

// evaluateIngress judges what its source may send.
func (s State) evaluateIngress(p Packet) Verdict {
	if p.Out == "" {
		return Verdict{Allowed: true, By: "delivered to the node"}
	}
	dst := s.endpoint(p.Dst, p.Out)
	switch {
	case dst == nil && s.Owner(p.Dst) != nil:
		return Verdict{By: "destination is an endpoint's address, and not behind that interface"}
	case dst == nil && s.routed(p.Out):
		return Verdict{By: "destination is no endpoint's address"}
	case dst == nil:
		return Verdict{Allowed: true, By: "leaves the node"}
	default:
		return s.evaluate(Ingress, *dst, p.Src, p)
	}
}

// Origin is the endpoint that sends from an address behind an interface, nil for
// outside. It is posing where the address is not one that may come from there.
func (s State) Origin(addr netip.Addr, iface string) (e *Endpoint, posing bool) {
	p := Packet{In: iface, Src: addr}
	return s.sourceOf(p), !s.Sender(p).Allowed
}

// endpoint finds the endpoint with address addr behind interface iface, or with addr as a
// further source.
func (s State) endpoint(addr netip.Addr, iface string) *Endpoint {
	for i, e := range s.Endpoints {
		if e.L3Interface == iface && (slices.Contains(e.Addresses, addr) || containing(e.AllowedSources, addr)) {
			return &s.Endpoints[i]
		}
	}
	// A further address is nobody's own.
	own := func(e Endpoint) bool { return slices.Contains(e.Addresses, addr) }
	for i, e := range s.Endpoints {
		if e.L3Interface == iface && e.Sends(addr) && !slices.ContainsFunc(s.Endpoints, own) {
			return &s.Endpoints[i]
		}
	}
	return nil
}

// routed reports whether iface is the routed host veth of an endpoint.
func (s State) routed(iface string) bool {
	return slices.ContainsFunc(s.Endpoints, func(e Endpoint) bool { return e.Routed() && e.L3Interface == iface })
}

// evaluate asks the policies of an endpoint about the other side of the flow.
func (s State) evaluate(d Direction, e Endpoint, peer netip.Addr, p Packet) Verdict {
	j := Decision{Direction: d, Endpoint: e.ID, Profile: e.Profiles[d], Allowed: true}
	by := "not isolated"
	if j.Profile != "" {
		by = "no policy denies it"
	}
	var audits []string // those that would deny it
	for _, stage := range s.Profiles[j.Profile].Stages {
		action, origin := s.first(stage, peer, p)
		if stage.Audit {
			if action == Deny {
				audits = append(audits, "audit of "+denial(d, origin))
			} else if origin != "" {
				by, j.Rule = origin, origin
			}
			continue
		}
		if action == Pass {
			continue
		}
		if by, j.Rule, j.Allowed = origin, origin, action == Allow; !j.Allowed {
			return Verdict{By: denial(d, origin), Evaluated: []Decision{j}}
		}
		break
	}
	if j.Audited = len(audits) > 0; j.Audited && j.Rule != "" {
		audits = append(audits, by)
	}
	if j.Audited {
		by = strings.Join(audits, "; ")
	}
	return Verdict{Allowed: true, By: by, Audited: j.Audited, Evaluated: []Decision{j}}
}

// first is what the first rule of a stage does that matches, and its origin; empty where none does.
func (s State) first(stage Stage, peer netip.Addr, p Packet) (Action, string) {
	for _, r := range stage.Rules {
		if s.matchesPeer(r, peer) && s.matchesPort(r, p) {
			return r.Action, r.Origin
		}
	}
	return stage.Default, ""
}

// denial says in words what denies.
func denial(d Direction, origin string) string {
	if origin == "" {
		return d.String() + " isolation, no rule allows it"
	}
	return origin
}

func (s State) matchesPeer(r ProfileRule, peer netip.Addr) bool {
	if r.AnyPeer {
		return true
	}
	for _, id := range r.Peers {
		if slices.Contains(s.PeerSets[id].Addrs, peer) {
			return true
		}
	}
	return slices.ContainsFunc(r.Blocks, func(b netip.Prefix) bool { return b.Contains(peer) })
}

func (s State) matchesPort(r ProfileRule, p Packet) bool {
	if len(r.Ports)+len(r.Tuples) == 0 {
		return true
	}
	for _, id := range r.Tuples {
		set := s.TupleSets[id]
		if set.Protocol == p.Protocol && slices.Contains(set.Tuples, netip.AddrPortFrom(p.Dst, p.DstPort)) {
			return true
		}
	}
	return slices.ContainsFunc(r.Ports, func(port Port) bool {
		return port.Protocol == p.Protocol && port.Contains(p.DstPort)
	})
}
