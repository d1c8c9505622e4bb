package iptables

import (
	"strings"

	"github.com/podmark/podmark/pkg/apply/ipset"
	"github.com/podmark/podmark/pkg/desired"
)

// Everything podmark has in the kernel begins with one of these: by that a
// restarted process knows its own. Names are an interface; see CHANGELOG.md.
const (
	ChainPrefix = "PODMARK-" // a chain name has at most 28 bytes
	SetPrefix   = "podmark-" // a set name has at most 31
)

// Owns reports whether a set is one of podmark's.
func Owns(set string) bool { return strings.HasPrefix(set, SetPrefix) }

// table holds every rule. In mangle nobody accepts, so no rule of another tool
// that stands before ours ends the judgement; see docs/packet-path.md.
const table = "mangle"

// The static chains.
const (
	chainInput   = ChainPrefix + "INPUT"
	chainForward = ChainPrefix + "FORWARD"
	chainOutput  = ChainPrefix + "OUTPUT"
	chainPost    = ChainPrefix + "POST"
	chainMark    = ChainPrefix + "MARK"
	chainBridge  = ChainPrefix + "BRIDGE"
	chainPolice  = ChainPrefix + "POLICE"
	chainEgress  = ChainPrefix + "EGRESS"
	chainIngress = ChainPrefix + "INGRESS"
	// Those in which packets end that no policy is asked about.
	chainSpoofed      = ChainPrefix + "SPOOFED"
	chainUnclassified = ChainPrefix + "UNCLASSIFIED"
)

// hook is a built-in chain and the rule in it that leads to ours.
type hook struct {
	chain string
	rule  string // as iptables-save writes it
}

// hooks lead to ours. They are put in place all at once.
var hooks = []hook{
	{"POSTROUTING", "-j " + chainPost},
	{"OUTPUT", "-j " + chainOutput},
	{"FORWARD", "-j " + chainForward},
	// What comes from the node itself has no endpoint to be judged for.
	{"INPUT", "! -i lo -j " + chainInput},
}

// family is IPv4 or IPv6.
type family struct {
	digit   string
	kind    ipset.Family
	command string // iptables or ip6tables, without the variant
}

var (
	v4 = family{digit: "4", kind: ipset.IPv4, command: "iptables"}
	v6 = family{digit: "6", kind: ipset.IPv6, command: "ip6tables"}
)

// generation tells two sets of one purpose apart. A whole-node change fills the
// sets of the generation that no rule uses, switches every rule to them in one
// restore, and destroys the others, so that a packet sees the old state or the
// new one and never a mixture. The sets that policies name stand outside of that.
type generation string

const (
	genA generation = "a"
	genB generation = "b"
)

// naming derives the names of a family's sets in one generation.
type naming struct {
	family
	gen generation
}

func (n naming) set(purpose string, kind ipset.Type, id string) ipset.Set {
	name := SetPrefix + purpose + n.digit + string(n.gen)
	if id != "" {
		name += "-" + id
	}
	return n.family.set(name, kind)
}

func (f family) set(name string, kind ipset.Type) ipset.Set {
	s := ipset.Set{Name: name, Type: kind, Family: f.kind}
	if kind == ipset.BitmapPort || kind == ipset.HashMAC {
		s.Family = ipset.None
	}
	return s
}

// endpoints maps (source address, input interface) to a mark.
func (n naming) endpoints() ipset.Set { return n.set("ep", ipset.HashNetIface, "") }

// pairs holds (address, MAC address) of the endpoints on bridges.
func (n naming) pairs() ipset.Set { return n.set("pair", ipset.HashIPMAC, "") }

// macs holds the MAC addresses of the endpoints on bridges.
func (n naming) macs() ipset.Set { return n.set("mac", ipset.HashMAC, "") }

// hosts holds the node's own addresses.
func (n naming) hosts() ipset.Set { return n.set("host", ipset.HashIP, "") }

// nodePorts holds the TCP and UDP ports a service may have on a host address.
func (n naming) nodePorts() ipset.Set { return n.set("port", ipset.BitmapPort, "") }

// members holds the addresses of the endpoints that have the profile.
func (n naming) members(d desired.Direction, id desired.ProfileID) ipset.Set {
	return n.set(d.String()[:1], ipset.HashIP, string(id))
}

// peers holds the addresses of the pods a peer selects. It has no generation, and nor has
// tuples: those of pods elsewhere are many, and not always known.
func (f family) peers(id desired.PeerSetID) ipset.Set {
	return f.set(SetPrefix+"p"+f.digit+"-"+string(id), ipset.HashIP)
}

// tuples holds (address, protocol, port) of what a named port stands for.
func (f family) tuples(id desired.TupleSetID) ipset.Set {
	return f.set(SetPrefix+"t"+f.digit+"-"+string(id), ipset.HashIPPort)
}

// blocks holds the prefixes of one rule's ipBlocks; id is their content's.
func (n naming) blocks(id string) ipset.Set { return n.set("b", ipset.HashNet, id) }

// chainOf names the chain of a profile: PODMARK-E-<id> or PODMARK-I-<id>.
func chainOf(p desired.Profile) string {
	return ChainPrefix + strings.ToUpper(p.Direction.String()[:1]) + "-" + string(p.ID)
}
