package nftables

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/podmark/podmark/pkg/desired"
)

// ruleset is what our two tables hold.
type ruleset struct {
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
	// value of a map that holds no verdicts.
	value string
	// chain that a verdict leads to; empty returns.
	chain string
	// text of the key, and of the value, as nft writes them; not known of what
	// was read from the kernel.
	text string
}

// same reports whether both say the same about the key.
func (e element) same(other element) bool {
	return e.key == other.key && e.value == other.value && e.chain == other.chain
}

// numbers are what the maps call the profiles of each direction, 1 and up.
type numbers [2]map[desired.ProfileID]uint32

// none is the number of "not isolated".
const none = 0

// with gives the profiles of s that have no number the lowest that are free.
func (n numbers) with(s desired.State) numbers {
	out := numbers{maps.Clone(n[0]), maps.Clone(n[1])}
	for _, d := range desired.Directions {
		if out[d] == nil {
			out[d] = map[desired.ProfileID]uint32{}
		}
		taken := map[uint32]bool{none: true}
		for _, number := range out[d] {
			taken[number] = true
		}
		for _, id := range s.ProfileIDs() {
			if _, ok := out[d][id]; ok || s.Profiles[id].Direction != d {
				continue
			}
			number := uint32(none)
			for taken[number] {
				number++
			}
			out[d][id], taken[number] = number, true
		}
	}
	return out
}

// only leaves the profiles of s.
func (n numbers) only(s desired.State) numbers {
	out := numbers{maps.Clone(n[0]), maps.Clone(n[1])}
	for _, d := range desired.Directions {
		maps.DeleteFunc(out[d], func(id desired.ProfileID, _ uint32) bool {
			_, ok := s.Profiles[id]
			return !ok
		})
	}
	return out
}

// of is the number of a profile; the empty one is none.
func (n numbers) of(d desired.Direction, id desired.ProfileID) uint32 {
	if id == "" {
		return none
	}
	return n[d][id]
}

// render derives the whole ruleset.
func render(s desired.State, n numbers) ruleset {
	r := ruleset{chains: frame(s), sets: setsOf(s), elements: placed(s, n)}
	for _, d := range desired.Directions {
		r.elements[profiles(d).name] = elements{}.with(profileElement(none, ""))
	}
	for _, id := range s.ProfileIDs() {
		p := s.Profiles[id]
		r.chains = append(r.chains, profile(p))
		r.elements[profiles(p.Direction).name].with(profileElement(n.of(p.Direction, id), chainOf(p)))
	}
	return r
}

// setsOf lists the sets of s: the static ones and the policy's.
func setsOf(s desired.State) []set {
	sets := staticSets()
	for _, id := range s.PeerSetIDs() {
		sets = append(sets, peers(v4, id), peers(v6, id))
	}
	for _, id := range s.TupleSetIDs() {
		sets = append(sets, tuples(v4, id), tuples(v6, id))
	}
	return sets
}

// placed are the elements that the endpoints of s bring, by set.
func placed(s desired.State, n numbers) map[string]elements {
	out := map[string]elements{}
	for _, e := range s.Endpoints {
		place(s, e, n, func(to set, e element) { out[to.name] = out[to.name].with(e) })
	}
	return out
}

// place puts one endpoint into the sets. One without an address has nothing there.
func place(s desired.State, e desired.Endpoint, n numbers, put func(set, element)) {
	if len(e.Addresses) == 0 {
		return
	}
	id := s.Layout.ID(e.ID)
	key := string(native(id.Value))
	put(egress(), toNumber(key, hex(id.Value), n.of(desired.Egress, e.Profiles[desired.Egress])))
	for _, a := range e.Addresses {
		f := familyOf(a)
		key := string(ifname(e.Interface)) + string(a.AsSlice())
		text := fmt.Sprintf("%q . %s", e.Interface, a)
		put(endpoints(f), element{key: key, value: string(native(id.Value)), text: text + " : " + hex(id.Value)})
		put(ingress(f), toNumber(key, text, n.of(desired.Ingress, e.Profiles[desired.Ingress])))
		for _, p := range e.Peers {
			put(peers(f, p), element{key: string(a.AsSlice()), text: a.String()})
		}
	}
	for id, list := range e.Tuples {
		proto := s.TupleSets[id].Protocol
		for _, t := range list {
			put(tuples(familyOf(t.Addr()), id), element{
				key:  string(t.Addr().AsSlice()) + string(padded([]byte{byte(proto)})) + string(padded(big16(t.Port()))),
				text: fmt.Sprintf("%s . %s . %d", t.Addr(), proto, t.Port()),
			})
		}
	}
	if e.Routed() {
		return
	}
	put(ports(), element{key: string(ifname(e.Port)), text: fmt.Sprintf("%q", e.Port)})
	mac, err := net.ParseMAC(e.MAC)
	if err != nil {
		return // package port refuses to open such a port
	}
	for _, a := range e.Addresses {
		for s, iface := range map[set]string{own(familyOf(a)): e.Port, bridged(familyOf(a)): e.Interface} {
			put(s, element{
				key:  string(ifname(iface)) + string(padded(mac)) + string(a.AsSlice()),
				text: fmt.Sprintf("%q . %s . %s", iface, mac, a),
			})
		}
	}
}

// toNumber is an element of a map that leads to profiles.
func toNumber(key, text string, number uint32) element {
	return element{key: key, value: string(append(native(none), native(number)...)), text: text + " : " + hex(none) + " . " + hex(number)}
}

// profileElement leads a profile's number to its chain, or back where it is empty.
func profileElement(number uint32, chain string) element {
	to := "return"
	if chain != "" {
		to = "goto " + chain
	}
	return element{key: string(native(number)), chain: chain, text: hex(number) + " : " + to}
}

// padded fills a part of a key up to whole registers.
func padded(b []byte) []byte { return append(slices.Clone(b), make([]byte, -len(b)&3)...) }

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

// wire is the element in the library's form.
func (e element) wire(s set) nftables.SetElement {
	out := nftables.SetElement{Key: []byte(e.key), Val: []byte(e.value)}
	if s.data == nftables.TypeVerdict {
		out.VerdictData = &expr.Verdict{Kind: expr.VerdictReturn}
		if e.chain != "" {
			out.VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: e.chain}
		}
	}
	return out
}
