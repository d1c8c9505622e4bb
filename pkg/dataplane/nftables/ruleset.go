package nftables

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"go4.org/netipx"

	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
)

// ruleset is what our tables hold.
type ruleset struct {
	tables []nftables.Table
	chains []chain
	sets   []set
	// elements are those of each set, by its name and their key.
	elements map[string]elements
}

// elements are the content of one set by key, as the kernel has it.
type elements map[string]element

// element is one entry of a set or map.
type element struct {
	key string
	// end is the last key of an interval.
	end string
	// value of a map that holds no verdicts.
	value string
	// chain that a verdict leads to; empty returns.
	chain string
	// text of the key, and of the value, as nft writes them; not known of what
	// was read from the kernel. See also show.
	text string
}

// same reports whether both say the same about the key.
func (e element) same(other element) bool {
	return e.key == other.key && e.end == other.end && e.value == other.value && e.chain == other.chain
}

// numbers are what the maps call the chains of each direction's profiles, 1 and up.
type numbers [2]map[string]uint32

// none is the number of "not isolated".
const none = 0

// with gives the chains of s that have no number the lowest that are free.
func (n numbers) with(s desired.State) numbers {
	out := numbers{maps.Clone(n[0]), maps.Clone(n[1])}
	for _, d := range desired.Directions {
		if out[d] == nil {
			out[d] = map[string]uint32{}
		}
		taken := map[uint32]bool{none: true}
		for _, number := range out[d] {
			taken[number] = true
		}
		number := uint32(none)
		for _, h := range familyProfiles(s) {
			if _, ok := out[d][h.chain()]; ok || h.Direction != d {
				continue
			}
			for taken[number] {
				number++
			}
			out[d][h.chain()], taken[number] = number, true
		}
	}
	return out
}

// only leaves the chains of s.
func (n numbers) only(s desired.State) numbers {
	out := numbers{map[string]uint32{}, map[string]uint32{}}
	for _, h := range familyProfiles(s) {
		if number, ok := n[h.Direction][h.chain()]; ok {
			out[h.Direction][h.chain()] = number
		}
	}
	return out
}

// of is the number of a profile's chain; the empty profile's is none.
func (n numbers) of(d desired.Direction, f family, id desired.ProfileID) uint32 {
	if id == "" {
		return none
	}
	return n[d][chainOf(d, f, id)]
}

// render derives the whole ruleset.
func render(s desired.State, n numbers) ruleset {
	r := ruleset{tables: tables(), chains: baseChains(s), sets: setsOf(s), elements: placed(s, n)}
	for _, d := range desired.Directions {
		r.elements[profiles(d).name] = elements{}.with(profileElement(none, ""))
	}
	for _, h := range familyStages(s) {
		r.chains = append(r.chains, h.render()...)
	}
	for _, h := range familyProfiles(s) {
		r.chains = append(r.chains, h.render())
		r.elements[profiles(h.Direction).name].with(profileElement(n[h.Direction][h.chain()], h.chain()))
	}
	for i, s := range r.sets {
		if !s.ofPolicy() && !s.meter {
			r.sets[i].size = room(len(r.elements[s.name]))
		}
	}
	return r
}

// room is the size of a set that holds so many elements: endpoints may come until
// there are twice as many, before a Sync must make room again.
func room(n int) uint32 {
	size := uint32(128)
	for size < 2*uint32(n) {
		size *= 2
	}
	return size
}

// setsOf lists the sets of s: the static ones and the policy's.
func setsOf(s desired.State) []set { return append(staticSets(), policySets(s)...) }

// placed are the elements of the sets of s, by set.
func placed(s desired.State, n numbers) map[string]elements {
	out := map[string]elements{}
	put := func(to set, e element) { out[to.name] = out[to.name].with(e) }
	for _, e := range s.Endpoints {
		place(s, e, n, put)
	}
	populate(s, put)
	if s.Former.Mask() != 0 {
		for _, f := range []family{v4, v6} { // which no profile is for
			put(egress(), carrying(f, s.Former.ID(mark.Outside).Value, none))
		}
	}
	return out
}

// populate puts peers and named ports into the sets of policies. As there are many, they have
// no text: see show.
func populate(s desired.State, put func(set, element)) {
	for id, members := range s.PeerSets {
		of := map[family]set{v4: peers(v4, id), v6: peers(v6, id)}
		for _, a := range members.Addrs {
			put(of[familyOf(a)], element{key: string(appendAddr(nil, a))})
		}
	}
	for id, members := range s.TupleSets {
		of, appendTuple := map[family]set{v4: tuples(v4, id), v6: tuples(v6, id)}, tupleOf(members.Protocol)
		for _, t := range members.Tuples {
			put(of[familyOf(t.Addr())], element{key: string(appendTuple(nil, t))})
		}
	}
}

// appendAddr appends the key of an address.
func appendAddr(to []byte, a netip.Addr) []byte {
	if a.Is4() {
		b := a.As4()
		return append(to, b[:]...)
	}
	b := a.As16()
	return append(to, b[:]...)
}

// tupleOf appends the key of an address with a port of the protocol: each part has four bytes,
// or a multiple.
func tupleOf(p desired.Protocol) func(to []byte, t netip.AddrPort) []byte {
	return func(to []byte, t netip.AddrPort) []byte {
		return append(appendAddr(to, t.Addr()), byte(p), 0, 0, 0, byte(t.Port()>>8), byte(t.Port()), 0, 0)
	}
}

// show is the text of an element of s.
func (s set) show(e element) string {
	if e.text != "" || !s.ofPolicy() {
		return e.text
	}
	size := net.IPv4len
	if s.name[1] == '6' {
		size = net.IPv6len
	}
	if len(e.key) < size {
		return fmt.Sprintf("%x", e.key)
	}
	a, _ := netip.AddrFromSlice([]byte(e.key[:size]))
	if rest := e.key[size:]; len(rest) == 8 {
		return fmt.Sprintf("%s . %s . %d", a, desired.Protocol(rest[0]), binary.BigEndian.Uint16([]byte(rest[4:])))
	}
	return a.String()
}

// carrying leads from a mark that packets carry to the egress profile.
func carrying(f family, fwmark, number uint32) element {
	return leading(key([]byte{f.number()}, native(fwmark)), fmt.Sprintf("ipv%s . %s", f.digit, hex(fwmark)), none, number)
}

// place puts one endpoint into the sets. One without an address has nothing there: what is
// written for it comes ahead of it, and it may be running.
func place(s desired.State, e desired.Endpoint, n numbers, put func(set, element)) {
	if len(e.Addresses) == 0 {
		return
	}
	id := s.Layout.ID(e.ID).Value
	number := func(d desired.Direction, f family) uint32 { return n.of(d, f, e.Profiles[d]) }
	put(veths(), link(e.HostVethIndex).element())
	put(ports(), link(e.HostVethIndex).element())
	inputs := []link{link(e.L3InterfaceIndex)}
	if e.VRF != "" {
		inputs = append(inputs, link(e.VRFIndex))
	}
	for _, a := range e.Addresses {
		f := familyOf(a)
		put(egress(), carrying(f, id, number(desired.Egress, f)))
		if e.FormerID != mark.None {
			put(egress(), carrying(f, s.Former.ID(e.FormerID).Value, number(desired.Egress, f)))
		}
		for _, in := range inputs {
			put(senders(f), element{key: in.and(a.AsSlice()), text: in.text(a)})
			put(ingress(f), leading(in.and(a.AsSlice()), in.text(a), none, number(desired.Ingress, f)))
		}
		put(self(f), element{key: key(a.AsSlice(), a.AsSlice()), text: fmt.Sprintf("%s . %s", a, a)})
		put(sources(f), leading(key(a.AsSlice()), a.String(), id, number(desired.Egress, f)))
		put(claimed(f), element{key: key(a.AsSlice()), text: a.String()})
	}
	for _, p := range e.AllowedSources {
		f := familyOf(p.Addr())
		for _, in := range inputs {
			first, last := in.span(p)
			put(further(f), leadingPrefix(first, last, in.text(p), id, number(desired.Egress, f)))
			put(onward(f), leadingPrefix(first, last, in.text(p), none, number(desired.Ingress, f)))
		}
	}
	mac, err := net.ParseMAC(e.MAC)
	switch {
	case e.Routed(): // nothing enters it as the port of a bridge
		put(isolated(), link(e.HostVethIndex).element())
	case err == nil: // package hostport refuses to open a port without
		placeOnBridge(s, e, mac, put)
	}
}

// placeOnBridge puts an endpoint on a bridge into the sets of the bridge table.
func placeOnBridge(s desired.State, e desired.Endpoint, mac net.HardwareAddr, put func(set, element)) {
	port := link(e.HostVethIndex)
	at := func(to set, a netip.Addr) {
		put(to, element{key: port.and(mac, a.AsSlice()), text: port.text(mac, a)})
	}
	for _, a := range e.Addresses {
		at(own(familyOf(a)), a)
	}
	for _, p := range e.AllowedSources {
		first, last := port.span(p, mac)
		put(routers(familyOf(p.Addr())), element{key: first, end: last, text: port.text(mac, p)})
	}
	if a, ok := e.LinkLocal(); ok {
		at(linkLocals(), a)
		at(linkLocals(), netip.IPv6Unspecified()) // that MAC address, before it has an address
	}
	if s.Isolates(e.Profiles[desired.Ingress]) {
		put(isolated(), port.element())
		for _, p := range e.AllowedSources {
			put(untagged(familyOf(p.Addr())), behindMAC(mac, p))
		}
		for _, a := range e.Addresses {
			// intervals must not overlap
			if !slices.ContainsFunc(e.AllowedSources, func(p netip.Prefix) bool { return p.Contains(a) }) {
				put(untagged(familyOf(a)), behindMAC(mac, netip.PrefixFrom(a, a.BitLen())))
			}
		}
	}
	if s.Isolates(e.Profiles[desired.Egress]) {
		put(confined(), port.element())
	}
}

// behindMAC is a MAC address with the addresses of a prefix.
func behindMAC(mac net.HardwareAddr, p netip.Prefix) element {
	at := func(a netip.Addr) string { return key(mac, a.AsSlice()) }
	return element{key: at(p.Addr()), end: at(netipx.PrefixLastIP(p)), text: fmt.Sprintf("%v . %v", mac, p)}
}

// link is a link by its number, which stays when another program renames it. To nft a name means
// nothing where there is no such link.
type link int

// and is a key of the link and what comes behind it.
func (l link) and(parts ...[]byte) string {
	return key(append([][]byte{native(uint32(l))}, parts...)...)
}

// span is the first and the last key of the link and a prefix, with what stands between.
func (l link) span(p netip.Prefix, between ...[]byte) (first, last string) {
	at := func(a netip.Addr) string {
		return key(slices.Concat([][]byte{binary.BigEndian.AppendUint32(nil, uint32(l))}, between, [][]byte{a.AsSlice()})...)
	}
	return at(p.Addr()), at(netipx.PrefixLastIP(p))
}

// text is the same, as nft writes it.
func (l link) text(parts ...fmt.Stringer) string {
	text := fmt.Sprint(int(l))
	for _, p := range parts {
		text += " . " + p.String()
	}
	return text
}

func (l link) element() element { return element{key: l.and(), text: l.text()} }

// leadingPrefix is leading for an interval.
func leadingPrefix(first, last, text string, id, number uint32) element {
	e := leading(first, text, id, number)
	e.end = last
	return e
}

// leading is an element of a map that leads to profiles: to an ID, where the map
// has one, and a number.
func leading(key, text string, id, number uint32) element {
	return element{key: key, value: leadingTo(id, number), text: fmt.Sprintf("%s : %s . %s", text, hex(id), hex(number))}
}

func leadingTo(id, number uint32) string { return key(native(id), native(number)) }

// profileElement leads a profile's number to its chain, or back where it is empty.
func profileElement(number uint32, chain string) element {
	to := "return"
	if chain != "" {
		to = "goto " + chain
	}
	return element{key: key(native(number)), chain: chain, text: hex(number) + " : " + to}
}

// key puts a key or value together; each part fills whole registers.
func key(parts ...[]byte) string {
	var b []byte
	for _, p := range parts {
		b = append(append(b, p...), make([]byte, -len(p)&3)...)
	}
	return string(b)
}

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return v4
	}
	return v6
}

// with adds an element; the list may be nil.
func (e elements) with(one element) elements {
	if e == nil {
		e = elements{}
	}
	e[one.key] = one
	return e
}

// sorted lists the elements in a stable order.
func (e elements) sorted() []element {
	list := make([]element, 0, len(e))
	for _, one := range e {
		list = append(list, one)
	}
	slices.SortFunc(list, func(a, b element) int { return cmp.Compare(a.key, b.key) })
	return list
}
