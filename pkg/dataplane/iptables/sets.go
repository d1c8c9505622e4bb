package iptables

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"

	"github.com/podmark/podmark/pkg/dataplane/ipset"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
)

// everySet renders all sets of a whole-node state in one family that have a generation.
func everySet(s desired.State, n naming) []content {
	all := append(nodeSets(s, n), content{Set: n.self()}, content{Set: n.claims()}, content{Set: n.endpoints()},
		content{Set: n.further()})
	all = append(all, vethSets(s, n)...)
	for _, id := range s.ProfileIDs() {
		for _, c := range profileSets(s.Profiles[id], n) {
			// Profiles share the prefixes that they have in common.
			if !slices.ContainsFunc(all, func(have content) bool { return have.Name == c.Name }) {
				all = append(all, c)
			}
		}
	}
	for _, m := range memberships(s, n) {
		i := slices.IndexFunc(all, func(c content) bool { return c.Name == m.Name })
		if i < 0 {
			all = append(all, m)
			continue
		}
		all[i].elements = append(all[i].elements, m.elements...)
	}
	return all
}

// nodeSets renders the sets that are the node's own: which addresses are its, and
// on which of their ports IPVS may answer.
func nodeSets(s desired.State, n naming) []content {
	hosts, ports := gateways(s, n), content{Set: n.nodePorts()}
	for _, a := range s.HostAddresses {
		for _, e := range single(a, n.family) {
			if !slices.Contains(hosts.elements, e) {
				hosts.elements = append(hosts.elements, e)
			}
		}
	}
	for _, r := range s.NodePorts {
		ports.elements = append(ports.elements, ipset.Element{First: r.First, Last: r.Last})
	}
	return []content{hosts, ports}
}

// vethSets renders the sets of host veths that s needs, empty; the first one in any case.
func vethSets(s desired.State, n naming) []content {
	numbers := []int{0}
	for _, e := range s.Endpoints {
		numbers = append(numbers, vethsNumber(e.ID))
	}
	slices.Sort(numbers)
	var out []content
	for _, number := range slices.Compact(numbers) {
		out = append(out, content{Set: n.veths(number)})
	}
	return out
}

// profileSets renders the sets that appear with a profile: its members and their further
// prefixes, empty, and the prefixes its rules name.
func profileSets(p desired.Profile, n naming) []content {
	sets := []content{{Set: n.members(p.Direction, p.ID)}, {Set: n.nets(p.Direction, p.ID)}}
	for _, r := range p.Rules() {
		blocks := blocksOf(r, n.family)
		if len(blocks) == 0 {
			continue
		}
		c := content{Set: n.blocks(blocksID(blocks))}
		for _, b := range blocks {
			c.elements = append(c.elements, ipset.Element{Prefix: b})
		}
		if !slices.ContainsFunc(sets, func(have content) bool { return have.Name == c.Name }) {
			sets = append(sets, c)
		}
	}
	return sets
}

// blocksID names a list of prefixes by its content.
func blocksID(blocks []netip.Prefix) string {
	sum := sha256.New()
	for _, b := range blocks {
		fmt.Fprintf(sum, "%d:%s", len(b.String()), b)
	}
	return hex.EncodeToString(sum.Sum(nil)[:8])
}

// populations renders the sets that rules name, with what is in them.
func populations(s desired.State, f family) []content {
	var out []content
	for _, id := range s.PeerSetIDs() {
		out = append(out, content{Set: f.peers(id), elements: ofAddresses(s.PeerSets[id].Addrs, f)})
	}
	for _, id := range s.TupleSetIDs() {
		c := content{Set: f.tuples(id)}
		for _, t := range s.TupleSets[id].Tuples {
			for _, e := range single(t.Addr(), f) {
				e.Protocol, e.First = uint8(s.TupleSets[id].Protocol), t.Port()
				c.elements = append(c.elements, e)
			}
		}
		out = append(out, c)
	}
	return out
}

// memberships renders the elements that the endpoints of s bring, set by set. With those
// of ep and further an endpoint opens, so its profiles come first. What keeps others from
// its address, and it from those of others, comes last: before, it would keep a running
// endpoint from its own. One without an address has nothing: it may be running.
func memberships(s desired.State, n naming) []content {
	var out []content
	add := func(set ipset.Set, elements ...ipset.Element) {
		if len(elements) == 0 {
			return
		}
		i := slices.IndexFunc(out, func(c content) bool { return c.Name == set.Name })
		if i < 0 {
			i, out = len(out), append(out, content{Set: set})
		}
		out[i].elements = append(out[i].elements, elements...)
	}
	for _, e := range s.Endpoints {
		own, nets := ofAddresses(e.Addresses, n.family), ofPrefixes(e.AllowedSources, n.family)
		for _, d := range desired.Directions {
			if id := e.Profiles[d]; id != "" {
				add(n.members(d, id), own...)
				add(n.nets(d, id), nets...)
			}
		}
		add(n.self(), own...)
	}
	for _, e := range s.Endpoints {
		for _, iface := range []string{e.L3Interface, e.VRF} {
			if iface == "" {
				continue
			}
			add(n.further(), behind(ofPrefixes(e.AllowedSources, n.family), iface, s.Layout.ID(e.ID))...)
			add(n.endpoints(), behind(ofAddresses(e.Addresses, n.family), iface, s.Layout.ID(e.ID))...)
		}
	}
	for _, e := range s.Endpoints {
		if len(e.Addresses) == 0 {
			continue
		}
		add(n.veths(vethsNumber(e.ID)), ipset.Element{Prefix: everything(n.family), Iface: e.HostVeth})
		add(n.claims(), ofAddresses(e.Addresses, n.family)...)
	}
	return out
}

// behind is what is in the elements behind an interface, with a mark.
func behind(elements []ipset.Element, iface string, m mark.Mark) []ipset.Element {
	for i := range elements {
		elements[i].Iface, elements[i].Mark = iface, m
	}
	return elements
}

// everything is the prefix of all addresses of a family.
func everything(f family) netip.Prefix {
	if f == v4 {
		return netip.MustParsePrefix("0.0.0.0/0")
	}
	return netip.MustParsePrefix("::/0")
}

// gateways renders the addresses the main plugin gave the host's side, which are
// the node's own where it routes. In a set of host addresses one that is not
// does no harm: it is only asked about packets that are delivered locally.
func gateways(s desired.State, n naming) content {
	c := content{Set: n.hosts()}
	for _, e := range s.Endpoints {
		for _, g := range e.Gateways {
			for _, h := range single(g, n.family) {
				if !slices.Contains(c.elements, h) {
					c.elements = append(c.elements, h)
				}
			}
		}
	}
	return c
}

// single is the element of address a, if it is of the family.
func single(a netip.Addr, f family) []ipset.Element {
	if !a.IsValid() || a.Zone() != "" || a.Is4() != (f == v4) {
		return nil
	}
	return []ipset.Element{{Prefix: netip.PrefixFrom(a, a.BitLen())}}
}

// ofAddresses are the elements of those addresses that are of the family.
func ofAddresses(list []netip.Addr, f family) []ipset.Element {
	var out []ipset.Element
	for _, a := range list {
		out = append(out, single(a, f)...)
	}
	return out
}

// ofPrefixes are the elements of those prefixes that are of the family.
func ofPrefixes(list []netip.Prefix, f family) []ipset.Element {
	var out []ipset.Element
	for _, p := range split(list, f) {
		out = append(out, ipset.Element{Prefix: p})
	}
	return out
}

// without returns from less what is in to, set by set, marks ignored.
func without(from, to []content) []content {
	keep := map[string]map[ipset.Element]bool{}
	for _, c := range to {
		keep[c.Name] = map[ipset.Element]bool{}
		for _, e := range c.elements {
			keep[c.Name][e.Key()] = true
		}
	}
	var out []content
	for _, c := range from {
		c.elements = slices.DeleteFunc(slices.Clone(c.elements), func(e ipset.Element) bool { return keep[c.Name][e.Key()] })
		if len(c.elements) > 0 {
			out = append(out, c)
		}
	}
	return out
}
