package nftables

import (
	"regexp"

	"github.com/google/nftables"

	"github.com/podmark/podmark/pkg/desired"
)

// Table is the name of both tables, inet and bridge: by it a restarted process
// knows its own. Names are an interface; see CHANGELOG.md.
const Table = "podmark"

// The static chains.
const (
	chainSender   = "sender"
	chainStranger = "stranger"
	chainInput    = "input"
	chainRemark   = "remark" // of Guard
	chainHost     = "host"
	chainForward  = "forward"
	chainOutput   = "output"
	chainOpening  = "opening"
	chainRelated  = "related"
	chainAnswer   = "answer"
	chainClient   = "client"
	chainServer   = "server"
	chainUnusual  = "unusual"
	chainTunnel   = "tunnel"
	chainClassify = "classify"
	chainOrigin   = "origin"
	chainEgress   = "egress"
	chainIngress  = "ingress"
	// Those in which packets end that no policy is asked about.
	chainSpoofed      = "spoofed"
	chainUnclassified = "unclassified"
	chainEncapsulated = "encapsulated"
	// In the bridge table.
	chainBridge = "bridge-ports"
	chainTagged = "tagged"
	chainGuard  = "guard"
	chainARP    = "arp-own"
	chainND     = "nd"
	chainNDOwn  = "nd-own"
	chainFrom   = "between-ports"
	chainTo     = "to-ports"
	chainArrive = "arrive"
	chainFrames = "spoofed-frames"
	chainStray  = "stray-frames"
)

// family is what differs between the sets of IPv4 and those of IPv6.
type family struct {
	digit string
	ip4   bool
	addr  nftables.SetDatatype
}

var (
	v4 = family{digit: "4", ip4: true, addr: nftables.TypeIPAddr}
	v6 = family{digit: "6", addr: nftables.TypeIP6Addr}
)

// set is a named set, or a map when it has a data type.
type set struct {
	table     nftables.Table
	name      string
	key, data nftables.SetDatatype
	// interval is set where a key's last part is a prefix.
	interval bool
	// meter is set where packets make the elements: what a port has used of its rate.
	meter bool
	// size is how many elements there is room for; ruleset gives it. Where the kernel
	// knows, it need not be ready to grow, and finds things sooner.
	size uint32
}

func (s set) isMap() bool { return s.data != nftables.SetDatatype{} }

// concat is the type of keys made of several parts.
func concat(types ...nftables.SetDatatype) nftables.SetDatatype {
	return nftables.MustConcatSetType(types...)
}

// numbered is what leads to a profile: an ID, where there is one to be given, and
// the number of a chain. Why the number comes second: see byNumber.
var numbered = concat(nftables.TypeMark, nftables.TypeMark)

// What an endpoint sends is known by the number of the link that it comes in by: a link
// keeps its number whatever its name, its group or its master becomes.

// senders holds (input interface, source address): what endpoints may send from where.
func senders(f family) set {
	return set{table: inet, name: "senders" + f.digit, key: concat(nftables.TypeIFIndex, f.addr)}
}

// veths holds the host veths of endpoints, as interfaces of IP.
func veths() set { return set{table: inet, name: "veths", key: nftables.TypeIFIndex} }

// self holds the address of each endpoint, twice: as the pair that it is when the sender
// of a packet is an end of the flow which the packet speaks about.
func self(f family) set {
	return set{table: inet, name: "self" + f.digit, key: concat(f.addr, f.addr)}
}

// sources maps an endpoint's address to its ID and the number of its egress profile.
func sources(f family) set {
	return set{table: inet, name: "sources" + f.digit, key: f.addr, data: numbered}
}

// further maps (input interface, further source prefix) to the same.
func further(f family) set {
	return set{
		table: inet, name: "further" + f.digit, key: concat(nftables.TypeIFIndex, f.addr), data: numbered,
		interval: true,
	}
}

// egress maps (family, ID) to the number of the endpoint's egress profile.
func egress() set {
	return set{table: inet, name: "egress", key: concat(nftables.TypeNFProto, nftables.TypeMark), data: numbered}
}

// ingress maps (output interface, destination address) to the number of the
// endpoint's ingress profile.
func ingress(f family) set {
	return set{table: inet, name: "ingress" + f.digit, key: concat(nftables.TypeIFIndex, f.addr), data: numbered}
}

// onward maps (output interface, further source prefix) to the same.
func onward(f family) set {
	return set{
		table: inet, name: "onward" + f.digit, key: concat(nftables.TypeIFIndex, f.addr), data: numbered,
		interval: true,
	}
}

// profiles maps the numbers of one direction's profiles to their chains.
func profiles(d desired.Direction) set {
	return set{table: inet, name: d.String() + "-profiles", key: nftables.TypeMark, data: nftables.TypeVerdict}
}

// peers holds the addresses of the pods a peer selects.
func peers(f family, id desired.PeerSetID) set {
	return set{table: inet, name: "p" + f.digit + "-" + string(id), key: f.addr}
}

// tuples holds (address, protocol, port) of what a named port stands for.
func tuples(f family, id desired.TupleSetID) set {
	return set{
		table: inet, name: "t" + f.digit + "-" + string(id),
		key: concat(f.addr, nftables.TypeInetProto, nftables.TypeInetService),
	}
}

// ports holds the host veths of endpoints, as ports of a bridge.
func ports() set { return set{table: bridge, name: "ports", key: nftables.TypeIFIndex} }

// isolated holds those into which a bridge may send only what policies were asked about:
// of endpoints whose ingress is isolated, and of routed ones, which are no ports.
func isolated() set { return set{table: bridge, name: "isolated", key: nftables.TypeIFIndex} }

// confined holds those from which a bridge may send only what policies were asked about: of
// endpoints on bridges whose egress is isolated.
func confined() set { return set{table: bridge, name: "confined", key: nftables.TypeIFIndex} }

// own holds (bridge port, MAC address, address) of the endpoints on bridges.
func own(f family) set {
	return set{table: bridge, name: "own" + f.digit, key: concat(nftables.TypeIFIndex, nftables.TypeEtherAddr, f.addr)}
}

// linkLocals holds (bridge port, MAC address, link-local address) of them.
func linkLocals() set {
	return set{table: bridge, name: "link6", key: concat(nftables.TypeIFIndex, nftables.TypeEtherAddr, v6.addr)}
}

// claimed holds the addresses of all endpoints: nobody else on a bridge may have one.
func claimed(f family) set { return set{table: bridge, name: "claimed" + f.digit, key: f.addr} }

// routers holds (bridge port, MAC address, further source prefix).
func routers(f family) set {
	return set{
		table: bridge, name: "routers" + f.digit, key: concat(nftables.TypeIFIndex, nftables.TypeEtherAddr, f.addr),
		interval: true,
	}
}

// untagged holds (MAC address, address or further prefix) of endpoints on bridges whose ingress
// is isolated: what comes to them with a tag is not handed to IP.
func untagged(f family) set {
	return set{table: bridge, name: "untagged" + f.digit, key: concat(nftables.TypeEtherAddr, f.addr), interval: true}
}

// pace holds how much of ARP and of neighbour discovery each bridge port has sent lately.
func pace() set {
	return set{table: bridge, name: "pace", key: nftables.TypeIFIndex, meter: true, size: 1 << 16}
}

// staticSets are there whatever the policy says.
func staticSets() []set {
	return []set{
		senders(v4), senders(v6), veths(), self(v4), self(v6), sources(v4), sources(v6), further(v4), further(v6),
		egress(), ingress(v4), ingress(v6), onward(v4), onward(v6),
		profiles(desired.Egress), profiles(desired.Ingress),
		ports(), isolated(), confined(), own(v4), own(v6), linkLocals(), claimed(v4), claimed(v6), routers(v4), routers(v6),
		untagged(v4), untagged(v6), pace(),
	}
}

// policySets are those of s that rules of policies name. They have no size: pods elsewhere
// come in any number, and a set cannot grow.
func policySets(s desired.State) (sets []set) {
	for _, id := range s.PeerSetIDs() {
		sets = append(sets, peers(v4, id), peers(v6, id))
	}
	for _, id := range s.TupleSetIDs() {
		sets = append(sets, tuples(v4, id), tuples(v6, id))
	}
	return sets
}

// ofPolicy reports whether the set is one of those.
func (s set) ofPolicy() bool { return policySet.MatchString(s.name) }

// metered reports whether packets make the elements of the set.
func (s set) metered() bool { return s.name == pace().name }

var policySet = regexp.MustCompile("^[pt][46]-")

// chainOf names a chain of a profile: e4-<id>, e6-<id>, i4-<id> or i6-<id>.
func chainOf(d desired.Direction, f family, id desired.ProfileID) string {
	return d.String()[:1] + f.digit + "-" + string(id)
}

// The two tables.
var (
	inet   = nftables.Table{Name: Table, Family: nftables.TableFamilyINet}
	bridge = nftables.Table{Name: Table, Family: nftables.TableFamilyBridge}
)

func tables() []nftables.Table { return []nftables.Table{inet, bridge} }
