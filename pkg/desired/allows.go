package desired

import (
	"net/netip"
	"slices"

	"github.com/podmark/podmark/pkg/mark"
)

// Packet is the first packet of a flow where it is judged: behind IPVS, with the
// real backend as its destination and the real client as its source.
type Packet struct {
	// In is the L3 interface it came in by; empty when a host process sent it.
	In string
	// Out is the L3 interface it leaves by; empty when it is for a host process.
	Out      string
	Src, Dst netip.Addr
	Protocol Protocol
	// ICMPv6Type is read only for protocol 58.
	ICMPv6Type uint8
	DstPort    uint16
}

// Verdict is the answer to "may this packet pass", with its reason.
type Verdict struct {
	Allowed bool
	// By is the rule that allowed or the thing that denied, in words.
	By string
	// Audited is set for what passes although a policy that is audited would deny it. By
	// says that first.
	Audited bool
	// Judged are the endpoints that were asked, in order. Who denies is the last.
	Judged []Judgement
}

// Judgement is what the policies of one endpoint make of a packet.
type Judgement struct {
	Direction Direction
	Endpoint  mark.ID
	// Profile is empty where no policy isolates the endpoint.
	Profile ProfileID
	// Rule is the origin of the rule that allows; empty where none does, and where none
	// is asked.
	Rule    string
	Allowed bool
	// Audited is set where it is allowed because the policies are audited only.
	Audited bool
}

// ICMPv6 is the protocol number of neighbour discovery and MLD.
const ICMPv6 Protocol = 58

// NeighbourTypes are the ICMPv6 types that always pass: MLD (130-132, 143) and
// neighbour discovery (133-137), RFC 4890 section 4.4.1. Without them IPv6 has
// no next hop.
var NeighbourTypes = []uint8{130, 131, 132, 133, 134, 135, 136, 137, 143}

// Allows judges the first packet of a flow by the model alone. Replies, related
// packets and flows judged under the current epoch are not asked about: they pass.
func (s State) Allows(p Packet) Verdict {
	if p.Protocol == ICMPv6 && slices.Contains(NeighbourTypes, p.ICMPv6Type) {
		return Verdict{Allowed: true, By: "neighbour discovery"}
	}
	if p.In == "" {
		return Verdict{Allowed: true, By: "sent by the node"}
	}
	src, posing := s.Origin(p.Src, p.In)
	if posing {
		return Verdict{By: "source address is not the endpoint's own"}
	}
	if src == nil {
		return s.arrives(p)
	}
	sent := s.judge(Egress, *src, p.Dst, p)
	if !sent.Allowed {
		return sent
	}
	v := s.arrives(p)
	v.Judged = append(sent.Judged, v.Judged...)
	if sent.Audited && v.Allowed {
		v.By, v.Audited = sent.By+"; "+v.By, true
	}
	return v
}

// arrives judges what its source may send.
func (s State) arrives(p Packet) Verdict {
	if p.Out == "" {
		return Verdict{Allowed: true, By: "delivered to the node"}
	}
	dst := s.endpoint(p.Dst, p.Out)
	switch {
	case dst == nil && s.routed(p.Out):
		return Verdict{By: "destination is no endpoint's address"}
	case dst == nil:
		return Verdict{Allowed: true, By: "leaves the node"}
	default:
		return s.judge(Ingress, *dst, p.Src, p)
	}
}

// Origin is the endpoint that sends from an address behind an interface, nil for
// outside. It is posing where the interface is an endpoint's alone and the address is
// not that endpoint's.
func (s State) Origin(addr netip.Addr, iface string) (e *Endpoint, posing bool) {
	e = s.endpoint(addr, iface)
	return e, e == nil && s.routed(iface)
}

// endpoint finds the endpoint with address addr behind interface iface, or with addr as a
// further source.
func (s State) endpoint(addr netip.Addr, iface string) *Endpoint {
	for i, e := range s.Endpoints {
		if e.Interface == iface && slices.Contains(e.Addresses, addr) {
			return &s.Endpoints[i]
		}
	}
	// A further address is nobody's own.
	own := func(e Endpoint) bool { return slices.Contains(e.Addresses, addr) }
	for i, e := range s.Endpoints {
		if e.Interface == iface && e.Sends(addr) && !slices.ContainsFunc(s.Endpoints, own) {
			return &s.Endpoints[i]
		}
	}
	return nil
}

// routed reports whether iface is the routed host veth of an endpoint.
func (s State) routed(iface string) bool {
	return slices.ContainsFunc(s.Endpoints, func(e Endpoint) bool { return e.Routed() && e.Interface == iface })
}

// judge asks the policies of an endpoint about the other side of the flow.
func (s State) judge(d Direction, e Endpoint, peer netip.Addr, p Packet) Verdict {
	j := Judgement{Direction: d, Endpoint: e.ID, Profile: e.Profiles[d]}
	by := d.String() + " isolation, no rule allows it"
	if j.Profile == "" {
		by, j.Allowed = "not isolated", true
	}
	for _, r := range s.Profiles[j.Profile].Rules {
		if s.admitsPeer(r, peer) && s.admitsPort(r, p) {
			by, j.Rule, j.Allowed = r.Origin, r.Origin, true
			break
		}
	}
	if s.Profiles[j.Profile].Audit && !j.Allowed {
		by, j.Allowed, j.Audited = "audit of "+by, true, true
	}
	return Verdict{Allowed: j.Allowed, By: by, Audited: j.Audited, Judged: []Judgement{j}}
}

func (s State) admitsPeer(r ProfileRule, peer netip.Addr) bool {
	if r.Anyone {
		return true
	}
	for _, id := range r.Peers {
		if slices.Contains(s.PeerSets[id].Addrs, peer) {
			return true
		}
	}
	return slices.ContainsFunc(r.Blocks, func(b netip.Prefix) bool { return b.Contains(peer) })
}

func (s State) admitsPort(r ProfileRule, p Packet) bool {
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
