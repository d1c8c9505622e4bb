package foreign

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/podmark/podmark/pkg/config"
)

// Hook is a hook of netfilter. Those of the families arp, bridge and netdev are passed by
// frames, before a packet comes to those of IP or after it has left them.
type Hook string

// The hooks of IP.
const (
	Prerouting  Hook = "PREROUTING"
	Input       Hook = "INPUT"
	Forward     Hook = "FORWARD"
	Output      Hook = "OUTPUT"
	Postrouting Hook = "POSTROUTING"
)

// hooks are IP's as the kernel numbers them (enum nf_inet_hooks).
var hooks = []Hook{Prerouting, Input, Forward, Output, Postrouting}

// Place is where a rule is passed. Hook is empty where no packet of IP is.
type Place struct {
	Hook     Hook
	Priority int32
}

func (p Place) String() string { return fmt.Sprintf("%s %d", p.Hook, p.Priority) }

// Where podmark reads and writes the packet mark. nftables: INPUT, directly before IPVS
// (98 and 99), where it writes the ID, to the chain that judges what IPVS did not take; and
// OUTPUT, before everybody else, where it takes the ID off what IPVS sent on. iptables: it
// writes the ID in mangle INPUT, and in table security, after filter, gives one to what has
// none left. OUTPUT judges in mangle what has any, and takes it off in security. Its hooks come
// first in each of these chains. Neither reads or writes it in FORWARD.
const (
	writesAt   = 97
	hostAt     = 101
	outputAt   = -401
	mangleAt   = -150
	securityAt = 50
	lastIPVS   = 99
)

// Field is a mark.
type Field string

// The fields.
const (
	PacketMark    Field = "the packet mark"
	ConntrackMark Field = "the conntrack mark"
)

// Harm is what comes of it when another program writes bits of podmark's mask.
type Harm int

// From the least to the worst.
const (
	// Harmless: the value is written before podmark writes its own, or is nobody's by then.
	Harmless Harm = iota
	// Shared: verdicts stay right, and podmark takes away what the other one has written.
	Shared
	// Misled: policies hold, since iptables finds them by addresses. What asks for the ID takes
	// one for another: whether a tunnel by way of a service comes from a further prefix.
	Misled
	// Forged: a packet passes for another endpoint's, or unjudged, or a flow for one that was
	// judged.
	Forged
)

func (h Harm) String() string { return [...]string{"harmless", "shared", "misled", "forged"}[h] }

// behind reports whether a rule at that place comes after podmark's own of the same
// priority, which stand first in the chains of iptables.
func (c Chain) behind(p Place) bool {
	return c.OfIPTables() &&
		(c.Table == "mangle" && p.Priority == mangleAt || c.Table == "security" && p.Priority == securityAt)
}

// harm is what a write of podmark's bits does at a place of the rule's.
func (r Rule) harm(b config.Backend, p Place, f Field) Harm {
	switch {
	case r.Loopback: // no endpoint's packets
		return Harmless
	case f == ConntrackMark: // it lasts, whoever wrote it and where
		return Forged
	case p.Hook == "":
		return Harmless
	case b == config.BackendIPTables:
		return r.harmIPTables(p)
	case p.Hook == Input && p.Priority >= writesAt && p.Priority <= hostAt,
		p.Hook == Output && p.Priority <= outputAt:
		return Forged
	}
	return Harmless
}

func (r Rule) harmIPTables(p Place) Harm {
	switch {
	case p.Hook == Input && p.Priority >= mangleAt && p.Priority < securityAt:
		return Misled
	case p.Hook == Input && p.Priority >= securityAt && p.Priority <= lastIPVS, // nobody may give one again
		p.Hook == Output && p.Priority <= mangleAt && !r.behind(p):
		return Forged
	case p.Hook == Input: // the packet is delivered, or gone
		return Harmless
	case r.marked(config.BackendIPTables, p): // and taken off later
		return Shared
	}
	return Harmless
}

// marked reports whether an ID is in the packet mark at a place of the rule's.
func (r Rule) marked(b config.Backend, p Place) bool {
	if b != config.BackendIPTables {
		return p.Hook == Input && p.Priority >= writesAt && p.Priority <= hostAt || p.Hook == Output && p.Priority <= outputAt
	}
	switch p.Hook {
	case Input:
		return p.Priority >= mangleAt
	case Output:
		return p.Priority < securityAt || p.Priority == securityAt && !r.behind(p)
	}
	return false
}

// passages says how packets come to chains.
type passages struct {
	chains []Chain // without their counts
	bases  map[Chain]Place
	jumps  map[Chain][]Chain
	// maps are the chains with a rule that looks up where to go: what is in the map is not
	// read, so it may be any chain of the table.
	maps map[Chain]bool
}

func newPassages() passages {
	return passages{bases: map[Chain]Place{}, jumps: map[Chain][]Chain{}, maps: map[Chain]bool{}}
}

// id is the chain without what was counted.
func (c Chain) id() Chain {
	c.Rules = 0
	return c
}

// sibling is the chain of that name in the same table.
func (c Chain) sibling(name string) Chain {
	return Chain{Origin: c.Origin, Family: c.Family, Table: c.Table, Name: name}
}

// places finds the places at which each chain is passed; those of a chain that no packet
// comes to are none.
func (p passages) places() map[Chain][]Place {
	out := map[Chain][]Place{}
	for base, place := range p.bases {
		seen := map[Chain]bool{}
		next := []Chain{base}
		for len(next) > 0 {
			c := next[len(next)-1]
			next = next[:len(next)-1]
			if seen[c] {
				continue
			}
			seen[c] = true
			next = append(next, p.jumps[c]...)
			for _, other := range p.chains {
				if _, isBase := p.bases[other]; p.maps[c] && !isBase && other == c.sibling(other.Name) {
					next = append(next, other)
				}
			}
			if !slices.Contains(out[c], place) {
				out[c] = append(out[c], place)
			}
		}
	}
	for _, list := range out {
		slices.SortFunc(list, func(a, b Place) int {
			return cmp.Or(cmp.Compare(slices.Index(hooks, a.Hook), slices.Index(hooks, b.Hook)),
				cmp.Compare(a.Priority, b.Priority))
		})
	}
	return out
}

// tablePriority is where iptables passes a table (enum nf_ip_hook_priorities).
func tablePriority(table string, h Hook) int32 {
	switch table {
	case "raw":
		return -300
	case "mangle":
		return mangleAt
	case "nat":
		if h == Prerouting || h == Output {
			return -100
		}
		return 100
	case "security":
		return 50
	}
	return 0 // filter
}
