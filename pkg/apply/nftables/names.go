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
	chainInput    = "input"
	chainHost     = "host"
	chainForward  = "forward"
	chainOutput   = "output"
	chainUnmark   = "unmark"
	chainTracked  = "tracked"
	chainClassify = "classify"
	chainOrigin   = "origin"
	chainEgress   = "egress"
	chainIngress  = "ingress"
	chainBridge   = "bridge-ports" // in the bridge table
	chainGuard    = "guard"        // in the bridge table
	// Those in which packets end that no policy is asked about.
	chainSpoofed      = "spoofed"
	chainUnclassified = "unclassified"
	chainFrames       = "spoofed-frames" // in the bridge table
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

// routed maps (input interface, source address) of the endpoints with a veth of
// their own to the ID and the number of the egress profile.
func routed(f family) set {
	return set{table: inet, name: "routed" + f.digit, key: concat(nftables.TypeIFName, f.addr), data: numbered}
}

// bridged maps (bridge, source MAC address, source address) of the endpoints on
// bridges to the same.
func bridged(f family) set {
	return set{table: inet, name: "bridged" + f.digit, key: concat(nftables.TypeIFName, nftables.TypeEtherAddr, f.addr), data: numbered}
}

// claimed holds (bridge, address) of the endpoints on bridges: nobody else on the
// bridge may have it.
func claimed(f family) set {
	return set{table: inet, name: "claimed" + f.digit, key: concat(nftables.TypeIFName, f.addr)}
}

// egress maps (family, ID) to the number of the endpoint's egress profile.
func egress() set {
	return set{table: inet, name: "egress", key: concat(nftables.TypeNFProto, nftables.TypeMark), data: numbered}
}

// ingress maps (output interface, destination address) to the number of the
// endpoint's ingress profile.
func ingress(f family) set {
	return set{table: inet, name: "ingress" + f.digit, key: concat(nftables.TypeIFName, f.addr), data: numbered}
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
	return set{table: inet, name: "t" + f.digit + "-" + string(id), key: concat(f.addr, nftables.TypeInetProto, nftables.TypeInetService)}
}

// ports holds the bridge ports of endpoints.
func ports() set { return set{table: bridge, name: "ports", key: nftables.TypeIFName} }

// own holds (bridge port, MAC address, address) of the endpoints on bridges.
func own(f family) set {
	return set{table: bridge, name: "own" + f.digit, key: concat(nftables.TypeIFName, nftables.TypeEtherAddr, f.addr)}
}

// staticSets are there whatever the policy says.
func staticSets() []set {
	return []set{
		routed(v4), routed(v6), bridged(v4), bridged(v6), claimed(v4), claimed(v6), egress(), ingress(v4), ingress(v6),
		profiles(desired.Egress), profiles(desired.Ingress),
		ports(), own(v4), own(v6),
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
