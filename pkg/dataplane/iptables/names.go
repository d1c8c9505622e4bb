package iptables

import (
	"slices"
	"strconv"
	"strings"

	"github.com/podmark/podmark/pkg/dataplane/ipset"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
)

// Everything podmark has in the kernel begins with one of these: by that a
// restarted process knows its own. Names are an interface; see CHANGELOG.md.
const (
	ChainPrefix = "PODMARK-" // a chain name has at most 28 bytes
	SetPrefix   = "podmark-" // a set name has at most 31
)

// Owns reports whether a set is one of podmark's.
func Owns(set string) bool { return strings.HasPrefix(set, SetPrefix) }

// The tables. In mangle nobody accepts, so no rule of another tool that stands before
// ours ends the judgement; see docs/packet-path.md. Table security comes last at a hook,
// after filter: what others there have made of a mark can be seen, and in OUTPUT a mark
// can change without the kernel routing the packet again. Not every kernel has it.
const (
	mangle   = "mangle"
	security = "security"
)

// tables are those that may have rules of ours, in the order in which they are written.
var tables = []string{mangle, security}

// The static chains.
const (
	chainSender  = ChainPrefix + "SENDER"
	chainOther   = ChainPrefix + "STRANGER"
	chainInput   = ChainPrefix + "INPUT"
	chainMark    = ChainPrefix + "MARK"
	chainForward = ChainPrefix + "FORWARD"
	chainAnswer  = ChainPrefix + "ANSWER"
	chainOutput  = ChainPrefix + "OUTPUT"
	chainPolice  = ChainPrefix + "POLICE"
	chainBehind  = ChainPrefix + "BEHIND"
	chainBeyond  = ChainPrefix + "BEYOND"
	chainTunnel  = ChainPrefix + "TUNNEL"
	// Those that ask who an end of a packet is: its source and its destination, and for an
	// answer the server that it comes from and the client that it goes to.
	chainFrom     = ChainPrefix + "FROM"
	chainSent     = ChainPrefix + "SENT" // what IPVS has sent on
	chainTo       = ChainPrefix + "TO"
	chainAnswerer = ChainPrefix + "ANSWERER"
	chainAsker    = ChainPrefix + "ASKER"
	// Those that lead to profiles, by an endpoint's own address and by a further prefix of
	// its; those of a client and a server for what is an answer.
	chainEgress     = ChainPrefix + "EGRESS"
	chainEgressNet  = ChainPrefix + "EGRESSNET"
	chainIngress    = ChainPrefix + "INGRESS"
	chainIngressNet = ChainPrefix + "INGRESSNET"
	chainClient     = ChainPrefix + "CLIENT"
	chainClientNet  = ChainPrefix + "CLIENTNET"
	chainServer     = ChainPrefix + "SERVER"
	chainServerNet  = ChainPrefix + "SERVERNET"
	// Those in which packets end that no policy is asked about.
	chainSpoofed      = ChainPrefix + "SPOOFED"
	chainUnclassified = ChainPrefix + "UNCLASSIFIED"
	chainEncapsulated = ChainPrefix + "ENCAPSULATED"
	// Those of table security.
	chainRemark = ChainPrefix + "REMARK"
	chainClear  = ChainPrefix + "CLEAR"
)

// hook is a built-in chain and the rule in it that leads to ours.
type hook struct {
	table, chain string
	rule         string // as iptables-save writes it
}

// hooks lead to ours. Those of a table are put in place all at once. What comes from the
// node itself has no endpoint to be judged for.
var hooks = []hook{
	{mangle, "OUTPUT", "-j " + chainOutput},
	{mangle, "FORWARD", "-j " + chainForward},
	{mangle, "INPUT", "! -i lo -j " + chainInput},
	{mangle, "PREROUTING", "! -i lo -j " + chainSender},
	{security, "OUTPUT", "-j " + chainClear},
	{security, "INPUT", "! -i lo -j " + chainRemark},
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
	if kind == ipset.BitmapPort {
		s.Family = ipset.None
	}
	return s
}

// endpoints maps (address, interface), of endpoints' own addresses, to a mark.
func (n naming) endpoints() ipset.Set { return n.set("ep", ipset.HashNetIface, "") }

// further maps (prefix, interface), of what endpoints may send from besides, to a mark.
func (n naming) further() ipset.Set { return n.set("further", ipset.HashNetIface, "") }

// self holds the addresses of all endpoints.
func (n naming) self() ipset.Set { return n.set("self", ipset.HashIP, "") }

// claims holds them too: nobody else may have one. It is filled when an endpoint has all
// the rest, so that one that is running never loses its own.
func (n naming) claims() ipset.Set { return n.set("claim", ipset.HashIP, "") }

// veths holds all addresses behind the host veths of some endpoints, those whose IDs share
// a number. A set has room for 64 interfaces behind one prefix (AHASH_MAX_TUNED).
func (n naming) veths(number int) ipset.Set {
	return n.set("veth", ipset.HashNetIface, strconv.Itoa(number))
}

// vethsNumber is the number of the set that has the host veth of an endpoint: a set has a
// block of IDs, because the kernel keeps at most 64 interfaces behind one prefix.
func vethsNumber(id mark.ID) int { return int(id) / mark.Block }

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

// nets holds the further prefixes of the endpoints that have the profile.
func (n naming) nets(d desired.Direction, id desired.ProfileID) ipset.Set {
	return n.set(d.String()[:1]+"n", ipset.HashNet, string(id))
}

// isNets reports whether a set is one of those, and isMembers whether it is one of members.
func (n naming) isNets(s ipset.Set) bool    { return isOne(s, n.nets) }
func (n naming) isMembers(s ipset.Set) bool { return isOne(s, n.members) }

func isOne(s ipset.Set, of func(desired.Direction, desired.ProfileID) ipset.Set) bool {
	return slices.ContainsFunc(desired.Directions[:], func(d desired.Direction) bool {
		return strings.HasPrefix(s.Name, of(d, "").Name+"-")
	})
}

// way is which way in its flow a packet goes that is judged.
type way bool

// A packet goes from the client to the server, or is an answer. A profile has a chain for
// each: an answer is judged as what it answers, so there the ends change places.
const (
	asked    way = false
	answered way = true
)

var ways = []way{asked, answered}

// source and destination are where a packet carries what asked has there.
func (w way) source() string      { return map[way]string{asked: "src", answered: "dst"}[w] }
func (w way) destination() string { return (!w).source() }

// own is where a packet carries the address of the endpoint whose profile it is.
func (w way) own(d desired.Direction) string {
	if d == desired.Egress {
		return w.source()
	}
	return w.destination()
}

// peer is where it carries the other end's.
func (w way) peer(d desired.Direction) string { return (!w).own(d) }

// chainOf names a chain of a profile: PODMARK-E-<id>, PODMARK-EA-<id> for answers, and
// the same with I.
func chainOf(p desired.Profile, w way) string {
	name := ChainPrefix + strings.ToUpper(p.Direction.String()[:1])
	if w == answered {
		name += "A"
	}
	return name + "-" + string(p.ID)
}

// dispatches are the chains that lead to the profiles of a direction.
func dispatches(d desired.Direction, w way) (byAddress, byNet string) {
	switch {
	case d == desired.Egress && w == asked:
		return chainEgress, chainEgressNet
	case d == desired.Egress:
		return chainClient, chainClientNet
	case w == asked:
		return chainIngress, chainIngressNet
	}
	return chainServer, chainServerNet
}
