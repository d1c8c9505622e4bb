package adversary_test

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/podmark/podmark/test/frame"
	"github.com/podmark/podmark/test/lab"
)

// Types of ICMPv6 that neighbour discovery and MLD use, RFC 4861, 2710 and 3810.
const (
	mldQuery, mldReport, mldDone, mldReport2      = 130, 131, 132, 143
	routerSolicitation, routerAdvertisement       = 133, 134
	neighbourSolicitation, neighbourAdvertisement = 135, 136
	redirect                                      = 137
)

// linkTypes are all of them, and some that are for a link alone as well: renumbering,
// inverse discovery, multicast routers.
var linkTypes = []byte{130, 131, 132, 133, 134, 135, 136, 137, 138, 141, 143, 151}

// discovery is ICMPv6 that is no neighbour discovery, or says what is not the sender's.
var discovery = []attack{
	{name: "discovery types with payload", family: lab.V6, run: func(s *scene) {
		for _, kind := range linkTypes {
			for _, hops := range []byte{255, 64, 2, 1} {
				data := func(src netip.Addr, dst netip.Addr) []byte {
					return frame.ICMPPacket(src, dst, kind, 0, hops, append(append(make([]byte, 20), s.mark()...), make([]byte, 300)...))
				}
				what := fmt.Sprintf("type %d, hop limit %d", kind, hops)
				for _, to := range []*actor{s.server, s.other, s.x} {
					s.deny(what, s.denied, data(s.addr(s.denied), s.addr(to)))
					for _, by := range []*actor{s.denied, s.free} {
						for _, as := range []netip.Addr{s.pick("", "fd00:bad::bad"), frame.LinkLocal(by.mac), netip.MustParseAddr("fe80::bad"), netip.IPv6Unspecified()} {
							s.deny(fmt.Sprintf("%s, from %v", what, as), by, data(as, s.addr(to)))
						}
					}
				}
				s.deny(what, s.free, data(s.addr(s.free), s.addr(s.server)))
				s.deny(what, s.free, data(s.addr(s.free), s.addr(s.denied)))
				s.deny(what+", from outside", s.y, data(s.addr(s.y), s.addr(s.server)))
				if hops < 255 && kind != mldQuery && kind != mldReport && kind != mldDone && kind != mldReport2 {
					s.deny(what+", to the node", s.denied, data(s.addr(s.denied), s.addr(s.node)))
					s.deny(what+", to the node's link-local address", s.denied, data(frame.LinkLocal(s.denied.mac), frame.LinkLocal(s.denied.gateway)))
				}
			}
		}
	}},
	{name: "long discovery messages", family: lab.V6, at: onBridge, run: func(s *scene) {
		groups := []netip.Addr{netip.MustParseAddr("ff02::1"), netip.MustParseAddr("ff02::2"), netip.MustParseAddr("ff02::16"), frame.SolicitedNode(s.addr(s.other))}
		for _, by := range []*actor{s.denied, s.free} {
			for _, src := range []netip.Addr{s.addr(by), frame.LinkLocal(by.mac), netip.IPv6Unspecified()} {
				long := append(s.mark(), make([]byte, 1200)...)
				for _, to := range append(groups, s.addr(s.server)) {
					for _, kind := range []byte{mldQuery, mldReport, mldDone, mldReport2} {
						s.deny(fmt.Sprintf("MLD type %d", kind), by, frame.ICMPPacket(src, to, kind, 0, 1, append(make([]byte, 20), long...)))
					}
					for _, kind := range []byte{routerSolicitation, neighbourSolicitation, neighbourAdvertisement} {
						body := append(append(make([]byte, 4), s.addr(by).AsSlice()...), 253, byte(len(long)/8))
						s.deny(fmt.Sprintf("type %d", kind), by, frame.ICMPPacket(src, to, kind, 0, 255, append(body, long...)))
					}
				}
			}
		}
	}},
	{name: "many discovery messages", at: onBridge, run: func(s *scene) {
		if s.f == lab.V4 {
			question := func(by *actor) []byte {
				return frame.EthernetOf(by.mac, frame.Broadcast, frame.TypeARP, frame.ARP(1, by.mac, s.addr(by), make([]byte, 6), s.addr(s.other)))
			}
			s.flood("ARP", s.denied, question(s.denied), s.other)
			s.passFrame("another pod's question", s.server, question(s.server), s.other)
			return
		}
		group := frame.SolicitedNode(s.addr(s.other))
		question := func(by *actor) []byte {
			return s.frame(by, s.neighbour(neighbourSolicitation, s.addr(by), group, 0, s.addr(s.other), by.mac))
		}
		s.flood("neighbour discovery", s.denied, question(s.denied), s.other)
		wild, listener := s.wild(), netip.MustParseAddr("ff02::1:3") // reports reach no endpoint
		report := behindRouterAlert(frame.ICMPPacket(frame.LinkLocal(s.twin.mac), listener, mldReport, 0, 1, append(append(make([]byte, 4), listener.AsSlice()...), s.mark()...)))
		s.flood("MLD", s.twin, s.frame(s.twin, report), wild)
		// And that is the sender's limit, not everybody's.
		s.passFrame("another pod's question", s.server, question(s.server), s.other)
	}},
	{name: "router advertisements and redirects", family: lab.V6, run: func(s *scene) {
		everybody := netip.MustParseAddr("ff02::1")
		for _, by := range []*actor{s.denied, s.free} {
			gateway := frame.LinkLocal(by.gateway)
			for _, from := range []netip.Addr{frame.LinkLocal(by.mac), netip.MustParseAddr("fe80::bad"), gateway, s.addr(by), s.gatewayAddr()} {
				for _, to := range []netip.Addr{everybody, s.addr(s.other), frame.LinkLocal(s.other.mac), s.addr(s.node), frame.LinkLocal(by.gateway)} {
					// Hop limit, flags, lifetime, two times; the source's link-layer address; a prefix.
					ra := append([]byte{64, 8, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1}, by.mac...)
					ra = append(ra, 3, 4, 64, 0xc0, 0, 0, 14, 16, 0, 0, 14, 16, 0, 0, 0, 0)
					ra = append(append(ra, s.pick("", "2001:db8:bad::").AsSlice()...), s.nonce()...)
					s.deny(fmt.Sprintf("a router advertisement from %v to %v", from, to), by, frame.ICMPPacket(from, to, routerAdvertisement, 0, 255, ra))
					re := append(append(make([]byte, 4), frame.LinkLocal(by.mac).AsSlice()...), s.addr(s.x).AsSlice()...)
					re = append(append(append(re, 2, 1), by.mac...), s.nonce()...)
					s.deny(fmt.Sprintf("a redirect from %v to %v", from, to), by, frame.ICMPPacket(from, to, redirect, 0, 255, re))
				}
			}
		}
	}},
	{name: "others' addresses claimed", family: lab.V6, at: onBridge, run: func(s *scene) {
		everybody := netip.MustParseAddr("ff02::1")
		for _, by := range []*actor{s.denied, s.free} {
			local, gateway := frame.LinkLocal(by.mac), frame.LinkLocal(by.gateway)
			for _, target := range []netip.Addr{s.addr(s.client), s.gatewayAddr(), gateway, frame.LinkLocal(s.client.mac), s.addr(s.x), netip.MustParseAddr("fd00:10:1::77")} {
				for _, from := range []netip.Addr{s.addr(by), local, target, s.gatewayAddr()} {
					for _, to := range []netip.Addr{everybody, s.addr(s.other), s.addr(s.server), s.gatewayAddr()} {
						s.deny(fmt.Sprintf("advertised: %v, from %v to %v", target, from, to), by, s.neighbour(neighbourAdvertisement, from, to, 0xa0, target, by.mac))
						s.denyFrame(fmt.Sprintf("advertised: %v, from %v, in a broadcast frame", target, from), by,
							frame.Ethernet(by.mac, frame.Broadcast, s.neighbour(neighbourAdvertisement, from, to, 0xe0, target, by.mac)))
					}
				}
				// A question tells its sender's address.
				if target != frame.LinkLocal(s.client.mac) {
					s.deny(fmt.Sprintf("a question from %v", target), by, s.neighbour(neighbourSolicitation, target, frame.SolicitedNode(s.addr(s.other)), 0, s.addr(s.other), by.mac))
				}
			}
			for _, mac := range []net.HardwareAddr{{2, 0, 0, 0, 0, 9}, s.client.mac} {
				s.denyFrame("the own address from another MAC address", by, frame.Ethernet(mac, frame.Multicast(everybody), s.neighbour(neighbourAdvertisement, s.addr(by), everybody, 0x20, s.addr(by), mac)))
			}
			// Who is about to take an address asks for it without one.
			none := netip.IPv6Unspecified()
			for _, target := range []netip.Addr{s.addr(s.other), s.gatewayAddr(), frame.LinkLocal(s.other.mac), netip.MustParseAddr("fd00:10:1::77")} {
				s.deny(fmt.Sprintf("asked for as to take it: %v", target), by, s.neighbour(neighbourSolicitation, none, frame.SolicitedNode(target), 0, target, by.mac))
			}
			strange := net.HardwareAddr{2, 0, 0, 0, 0, 9}
			s.denyFrame("from none, of another MAC address: is there a router", by, frame.Ethernet(strange, frame.Multicast(everybody),
				frame.ICMPPacket(none, everybody, routerSolicitation, 0, 255, append(make([]byte, 4), s.nonce()...))))
			s.denyFrame("from none, of another MAC address: a report", by, frame.Ethernet(strange, frame.Multicast(everybody),
				behindRouterAlert(frame.ICMPPacket(none, everybody, mldReport, 0, 1, append(append(make([]byte, 4), everybody.AsSlice()...), s.mark()...)))))
			s.deny("of the wrong hop limit", by, frame.ICMPPacket(s.addr(by), everybody, neighbourAdvertisement, 0, 254, frame.Neighbour(0x20, s.addr(by), 2, by.mac)))
			s.deny("of another code", by, frame.ICMPPacket(s.addr(by), s.addr(s.server), neighbourAdvertisement, 1, 255, frame.Neighbour(0x20, s.addr(s.client), 2, by.mac)))
		}
	}},
}

// flood sends one frame many times at once, of which a bridge lets some pass. What a link needs
// is some a second; these limits are generous.
func (s *scene) flood(what string, by *actor, b []byte, to *actor) {
	s.Helper()
	const many, burst, perSecond = 3000, 500, 200
	for range many {
		s.shots = append(s.shots, shot{what: "one of many", from: by, send: func() error { return by.write(b) }})
	}
	got, start := newCatch(), time.Now()
	if err := s.volley(got); err != nil {
		s.Fatal(err)
	}
	s.shots = nil
	limit := burst + int(perSecond*time.Since(start).Seconds())
	if arrived := got.count(to, keyOf(b)); arrived == 0 || arrived > limit {
		s.Errorf("%s: of %d messages at once %d arrive, want some and at most %d", what, many, arrived, limit)
	}
}

// neighbour is a solicitation with a nonce that it is known by, or an advertisement, which
// has none: both are as long as the real ones.
func (s *scene) neighbour(kind byte, from, to netip.Addr, flags byte, target netip.Addr, mac net.HardwareAddr) []byte {
	if kind == neighbourAdvertisement {
		return frame.ICMPPacket(from, to, kind, 0, 255, frame.Neighbour(flags, target, 2, mac))
	}
	return frame.ICMPPacket(from, to, kind, 0, 255, append(frame.Neighbour(flags, target, 1, mac), s.nonce()...))
}

// nonce is the option of RFC 3971 5.3.2, no longer than RFC 7527 has it.
func (s *scene) nonce() []byte {
	s.markers++
	return fmt.Appendf([]byte{14, 1}, "%06d", s.markers)
}
