package nftables

import (
	"github.com/google/nftables"

	"github.com/podmark/podmark/pkg/desired"
)

// Table is the name of both tables, inet and bridge: by it a restarted process
// knows its own. Names are an interface; see CHANGELOG.md.
const Table = "podmark"

// The static chains.
const (
	chainInput       = "input"
	chainHost        = "host"
	chainForward     = "forward"
	chainOutput      = "output"
	chainPostrouting = "postrouting"
	chainLive        = "live"
	chainTracked     = "tracked"
	chainPass        = "pass"
	chainClassify    = "classify"
	chainKnown       = "known"
	chainJudge       = "judge"
	chainEgress      = "egress"
	chainIngress     = "ingress"
	chainBridge      = "bridge-ports" // in the bridge table
	chainGuard       = "guard"        // in the bridge table
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
}

func (s set) isMap() bool { return s.data != nftables.SetDatatype{} }

// concat is the type of keys made of several parts.
func concat(types ...nftables.SetDatatype) nftables.SetDatatype {
	return nftables.MustConcatSetType(types...)
}

// endpoints maps (input interface, source address) to the endpoint's mark.
func endpoints(f family) set {
	return set{inet, "endpoints" + f.digit, concat(nftables.TypeIFName, f.addr), nftables.TypeMark}
}

// bridged holds (bridge, MAC address, address) of the endpoints on bridges.
func bridged(f family) set {
	return set{table: inet, name: "bridged" + f.digit, key: concat(nftables.TypeIFName, nftables.TypeEtherAddr, f.addr)}
}

// numbered is what leads to a profile: nothing, and the profile's number. Why it
// is the second word: see byNumber.
var numbered = concat(nftables.TypeMark, nftables.TypeMark)

// egress maps an endpoint's mark to the number of its egress profile.
func egress() set { return set{inet, "egress", nftables.TypeMark, numbered} }

// ingress maps (output interface, destination address) to the number of the
// endpoint's ingress profile.
func ingress(f family) set {
	return set{inet, "ingress" + f.digit, concat(nftables.TypeIFName, f.addr), numbered}
}

// profiles maps the numbers of one direction's profiles to their chains.
func profiles(d desired.Direction) set {
	return set{inet, d.String() + "-profiles", nftables.TypeMark, nftables.TypeVerdict}
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
		endpoints(v4), endpoints(v6), bridged(v4), bridged(v6), egress(), ingress(v4), ingress(v6),
		profiles(desired.Egress), profiles(desired.Ingress),
		ports(), own(v4), own(v6),
	}
}

// chainOf names the chain of a profile: e-<id> or i-<id>.
func chainOf(p desired.Profile) string { return prefix(p.Direction) + string(p.ID) }

func prefix(d desired.Direction) string { return d.String()[:1] + "-" }

// The two tables.
var (
	inet   = nftables.Table{Name: Table, Family: nftables.TableFamilyINet}
	bridge = nftables.Table{Name: Table, Family: nftables.TableFamilyBridge}
)

func tables() []nftables.Table { return []nftables.Table{inet, bridge} }
