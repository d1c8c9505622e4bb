// Package desired says what a node should enforce: who has which ID and who may
// talk to whom. It names no chain, set, table, hook or command.
//
// [Build] makes a [State] from the compiled policy and the node's attachments;
// a backend renders it; [State.Evaluate] is the oracle both are tested against.
// The package is pure: no file, no kernel, no clock.
package desired

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/mark"
)

// Direction of traffic as the policed pod sees it.
type Direction uint8

// The two directions of a NetworkPolicy.
const (
	Ingress Direction = iota
	Egress
)

// Directions lists both, for loops.
var Directions = [...]Direction{Ingress, Egress}

func (d Direction) String() string {
	if d == Ingress {
		return "ingress"
	}
	return "egress"
}

// Node is what the node itself contributes to a State.
type Node struct {
	Layout mark.Layout
	// Former is the layout of which packets on their way may carry an endpoint's
	// FormerID, while the node moves to another one; zero when it does not.
	Former mark.Layout
	// Epoch is the number of the policy in force, 1 to Layout.Max().
	Epoch uint32
	// NodePorts are the ports on which a packet to a host address may be for a
	// service rather than for a host process.
	NodePorts []PortRange
	// SCTPPorts are those of SCTP, which the kernel's sets of ports do not know
	// (ip_set_get_ip_port): they are in a rule.
	SCTPPorts []PortRange
	// HostAddresses are the node's own addresses, service addresses excluded.
	HostAddresses []netip.Addr
	// Tunnels are what endpoints may not wrap packets in.
	Tunnels Tunnels
	// Unfiltered is what no policy is asked about between two ports of a bridge.
	Unfiltered Unfiltered
	// Unlogged is set where the kernel cannot log packets: what is dropped is counted only.
	Unlogged bool
}

// ErrEmpty: a state that no node's is. To remove everything is another thing to ask for.
var ErrEmpty = errors.New("a state without iptablesMarkMask is no node's")

// Filled is ErrEmpty for a node that nobody has filled in.
func (n Node) Filled() error {
	if n.Layout.Mask() == 0 {
		return ErrEmpty
	}
	return nil
}

// ErrStages: a profile of other stages than one of NetworkPolicies.
var ErrStages = errors.New("the backend enforces NetworkPolicies alone")

// OnlyNetworkPolicies is why a backend that enforces those alone cannot enforce s: ErrEmpty, or ErrStages.
func (s State) OnlyNetworkPolicies() error {
	for id, p := range s.Profiles {
		if !p.onlyAllows() {
			return fmt.Errorf("profile %s of policies %q: %w", id, p.Policies(), ErrStages)
		}
	}
	return s.Filled()
}

// Tunnels are encapsulations that the node unwraps. A packet inside one comes out of the
// node's own tunnel, with a source that nobody has checked: so endpoints may send none.
type Tunnels struct {
	// UDPPorts are destination ports, such as 8472 of VXLAN; sorted.
	UDPPorts []uint16 `json:"udpPorts,omitempty"`
	// Protocols are IP protocol numbers, such as 4 of IPIP; sorted.
	Protocols []uint8 `json:"protocols,omitempty"`
}

// Unfiltered are the families of which a bridge does not hand the frames between two of its
// ports to IP, because another program has turned br_netfilter off. Nothing could judge them, so
// those from and to isolated endpoints are dropped.
type Unfiltered struct {
	IPv4 bool `json:"ipv4,omitempty"`
	IPv6 bool `json:"ipv6,omitempty"`
}

// Of reports whether the address is of such a family.
func (u Unfiltered) Of(a netip.Addr) bool { return a.Is4() && u.IPv4 || a.Is6() && u.IPv6 }

// ProfileID names a Profile: 16 hexadecimal digits, or empty for none.
type ProfileID string

// PeerSetID names a PeerSet: 16 hexadecimal digits.
type PeerSetID string

// TupleSetID names a TupleSet: 16 hexadecimal digits.
type TupleSetID string

// State is everything a backend enforces.
type State struct {
	Node
	Endpoints []Endpoint // by ID
	Profiles  map[ProfileID]Profile
	PeerSets  map[PeerSetID]PeerSet
	TupleSets map[TupleSetID]TupleSet
	// Applied is whether policies were ever given to the node, be it none.
	Applied bool
}

// Endpoint is one attachment with what the policies make of it.
type Endpoint struct {
	attachment.Record
	// FormerID is the endpoint's ID in the node's Former layout, if there is one.
	FormerID mark.ID
	// Profiles holds the endpoint's profile per Direction; empty is "not isolated".
	Profiles [2]ProfileID
}

// Pod is what policies see of a pod, wherever it runs.
type Pod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// NamespaceUID is empty for one of whatever namespace has the name now.
	NamespaceUID string            `json:"namespaceUID,omitempty"`
	Labels       map[string]string `json:"labels,omitempty"`
	// Addresses are the pod's own, IPv4 and IPv6; those of its node are none.
	Addresses []netip.Addr `json:"addresses"`
	// Ports are the named ports of its containers.
	Ports []attachment.NamedPort `json:"ports,omitempty"`
}

// podOf is what policies see of an attachment. Something outside Kubernetes has no
// namespace.
func podOf(r attachment.Record) Pod {
	return Pod{
		Namespace: r.Namespace, NamespaceUID: r.NamespaceUID, Name: r.Pod, Labels: r.Labels, Addresses: r.Addresses,
		Ports: r.NamedPorts,
	}
}

// PeerSet is the addresses of the pods that one peer selects.
type PeerSet struct {
	ID    PeerSetID
	Peer  Peer
	Addrs []netip.Addr // sorted
}

// TupleSet is where a named port leads: (address, protocol, port) for every pod
// that has it.
type TupleSet struct {
	ID TupleSetID
	NamedPort
	// Own is set where rules of ingress name the port: it is that of an endpoint of the
	// node, and pods elsewhere are not in the set.
	Own    bool
	Tuples []netip.AddrPort // sorted
}

// Build derives the state of a node from the policies and its attachments; [State.WithMembers]
// adds the pods elsewhere. Given a single record, it yields that endpoint's share: its
// profiles, and of each peer or tuple set only what is the endpoint's own.
func Build(node Node, policies Policies, records []attachment.Record) State {
	s := State{Node: node, Profiles: map[ProfileID]Profile{}}
	var pods []Pod
	subjects := policies.subjects()
	for _, r := range records {
		e := Endpoint{Record: r}
		pods = append(pods, podOf(r))
		if r.Policed {
			about := subjects.about(r)
			for _, d := range Directions {
				if p := profileOf(about, d); p.ID != "" {
					e.Profiles[d] = p.ID
					s.Profiles[p.ID] = p
				}
			}
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	s.PeerSets, s.TupleSets = policies.sets()
	slices.SortFunc(s.Endpoints, func(a, b Endpoint) int { return cmp.Compare(a.ID, b.ID) })
	return s.WithMembers(policies.members(true, pods))
}

// WithMembers adds members to the sets of s that they name.
func (s State) WithMembers(m Members) State {
	s.PeerSets, s.TupleSets = maps.Clone(s.PeerSets), maps.Clone(s.TupleSets)
	for id, addrs := range m.Peers {
		if set, ok := s.PeerSets[id]; ok {
			set.Addrs = union(set.Addrs, addrs, netip.Addr.Compare)
			s.PeerSets[id] = set
		}
	}
	for id, tuples := range m.Tuples {
		if set, ok := s.TupleSets[id]; ok {
			set.Tuples = union(set.Tuples, tuples, netip.AddrPort.Compare)
			s.TupleSets[id] = set
		}
	}
	return s
}

// Contains reports whether s has a set, whoever its members are.
func (s State) Contains(other Set) bool {
	for id := range other.PeerSets {
		if _, ok := s.PeerSets[id]; !ok {
			return false
		}
	}
	for id := range other.TupleSets {
		if _, ok := s.TupleSets[id]; !ok {
			return false
		}
	}
	return true
}

// Size is how many members the sets of s have.
func (s State) Size() (members int) {
	for _, set := range s.PeerSets {
		members += len(set.Addrs)
	}
	for _, set := range s.TupleSets {
		members += len(set.Tuples)
	}
	return members
}

// MentionsAny reports whether s has one of the sets of m.
func (s State) MentionsAny(m Members) bool {
	for id := range m.Peers {
		if _, ok := s.PeerSets[id]; ok {
			return true
		}
	}
	for id := range m.Tuples {
		if _, ok := s.TupleSets[id]; ok {
			return true
		}
	}
	return false
}

// WithoutMembers is s with nobody in its sets.
func (s State) WithoutMembers() State {
	s.PeerSets, s.TupleSets = maps.Clone(s.PeerSets), maps.Clone(s.TupleSets)
	for id, set := range s.PeerSets {
		set.Addrs = nil
		s.PeerSets[id] = set
	}
	for id, set := range s.TupleSets {
		set.Tuples = nil
		s.TupleSets[id] = set
	}
	return s
}

// NextSet is the first set of those after the one of the name, in the order of
// [State.Sets], and its name; empty after the last.
func (s State) NextSet(after string) (next Set, name string) {
	for set := range s.Sets() {
		if name := set.name(); name > after {
			return set, name
		}
	}
	return Set{}, ""
}

// name tells the set from others.
func (s Set) name() string {
	for id := range s.PeerSets {
		return "peers " + string(id)
	}
	for id := range s.TupleSets {
		return "tuples " + string(id)
	}
	return ""
}

// Sets yields the peer and tuple sets of s one after the other.
func (s State) Sets() iter.Seq[Set] {
	return func(yield func(Set) bool) {
		for _, id := range s.PeerSetIDs() {
			if !yield(PeersOf(s.PeerSets[id])) {
				return
			}
		}
		for _, id := range s.TupleSetIDs() {
			if !yield(TuplesOf(s.TupleSets[id])) {
				return
			}
		}
	}
}

// union is the sorted union of a, which is sorted, and b.
func union[T comparable](a, b []T, compare func(T, T) int) []T {
	out := slices.Concat(a, b)
	slices.SortFunc(out, compare)
	return slices.Compact(out)
}

// isolation returns the policy's say in direction d, nil for none.
func (p Policy) isolation(d Direction) *Isolation {
	if d == Ingress {
		return p.Ingress
	}
	return p.Egress
}

// sets lists every distinct pod selection and every named port of the policies,
// without members.
func (p Policies) sets() (map[PeerSetID]PeerSet, map[TupleSetID]TupleSet) {
	peers, tuples := map[PeerSetID]PeerSet{}, map[TupleSetID]TupleSet{}
	for _, policy := range p.Policies {
		for _, d := range Directions {
			isolation := policy.isolation(d)
			if isolation == nil {
				continue
			}
			for _, rule := range isolation.Rules {
				for _, peer := range rule.Peers {
					id := peer.id()
					peers[id] = PeerSet{ID: id, Peer: peer}
				}
				for _, port := range rule.NamedPorts {
					set := TupleSet{ID: port.id(d), NamedPort: port, Own: d == Ingress}
					tuples[set.ID] = set
				}
			}
		}
	}
	return peers, tuples
}

// Restricts reports whether going from s to next can forbid what s allowed, so
// that live connections must be judged again. It may say so without need, never
// the reverse: a profile whose rules changed in any way but growing counts.
func (s State) Restricts(next State) bool {
	return s.restrictsTunnels(next) || s.restrictsEndpoints(next) || s.restrictsSets(next)
}

// restrictsTunnels reports whether the node unwraps more in next, which endpoints must not send.
func (s State) restrictsTunnels(next State) bool {
	return !containsAll(s.Tunnels.UDPPorts, next.Tunnels.UDPPorts, cmp.Compare) ||
		!containsAll(s.Tunnels.Protocols, next.Tunnels.Protocols, cmp.Compare)
}

// restrictsEndpoints reports whether an endpoint is gone, or may do less under its profiles or
// send from less.
func (s State) restrictsEndpoints(next State) bool {
	after := map[mark.ID]Endpoint{}
	for _, e := range next.Endpoints {
		after[e.ID] = e
	}
	compared := map[[2]ProfileID]bool{} // many endpoints go the same way
	for _, e := range s.Endpoints {
		n, ok := after[e.ID]
		if !ok || n.Key != e.Key || !containsAll(n.AllowedSources, e.AllowedSources, netip.Prefix.Compare) {
			return true
		}
		for _, d := range Directions {
			way := [2]ProfileID{e.Profiles[d], n.Profiles[d]}
			if compared[way] {
				continue
			}
			compared[way] = true
			if s.restrictsProfile(e.Profiles[d], next, n.Profiles[d]) {
				return true
			}
		}
	}
	return false
}

// restrictsProfile reports whether profile to of next can forbid what profile from allowed.
func (s State) restrictsProfile(from ProfileID, next State, to ProfileID) bool {
	return next.Isolates(to) && (!s.Isolates(from) || s.Profiles[from].restricts(next.Profiles[to]))
}

// restrictsSets reports whether a set that stays has lost a member of which rules allow something, or
// gained one of which rules do other things. One that is gone is in no rule that stays either.
func (s State) restrictsSets(next State) bool {
	peers, tuples := next.denials()
	for id, set := range s.PeerSets {
		if n, ok := next.PeerSets[id]; ok && (!containsAll(n.Addrs, set.Addrs, netip.Addr.Compare) ||
			peers[id] && len(n.Addrs) != len(set.Addrs)) {
			return true
		}
	}
	for id, set := range s.TupleSets {
		if n, ok := next.TupleSets[id]; ok && (!containsAll(n.Tuples, set.Tuples, netip.AddrPort.Compare) ||
			tuples[id] && len(n.Tuples) != len(set.Tuples)) {
			return true
		}
	}
	return false
}

// denials are the sets of which a rule does other things than to allow.
func (s State) denials() (peers map[PeerSetID]bool, tuples map[TupleSetID]bool) {
	peers, tuples = map[PeerSetID]bool{}, map[TupleSetID]bool{}
	for _, p := range s.Profiles {
		for _, r := range p.Rules() {
			if r.Action == Allow {
				continue
			}
			for _, id := range r.Peers {
				peers[id] = true
			}
			for _, id := range r.Tuples {
				tuples[id] = true
			}
		}
	}
	return peers, tuples
}

// Isolates reports whether the profile forbids anything: none does not, and neither
// does one that audits.
func (s State) Isolates(id ProfileID) bool {
	return slices.ContainsFunc(s.Profiles[id].Stages, Stage.denies)
}

// containsAll looks for the items of want in have, which is sorted.
func containsAll[T any](have, want []T, compare func(T, T) int) bool {
	for _, item := range want {
		if _, ok := slices.BinarySearchFunc(have, item, compare); !ok {
			return false
		}
	}
	return true
}

// Diff leaves what two states of a node say alike out of both: endpoints, profiles and
// members of sets. Sets themselves stay. What is left is what an update has to touch, and
// no more enough to tell whether the one narrows to the other.
func Diff(from, to Share) (Share, Share) {
	was := map[attachment.Key]Endpoint{}
	for _, e := range from.Endpoints {
		was[e.Key] = e
	}
	same := map[attachment.Key]bool{}
	for _, e := range to.Endpoints {
		old, ok := was[e.Key]
		same[e.Key] = ok && old.placedAs(e) && from.Layout == to.Layout
	}
	// Who stays keeps a further prefix where another has it no more.
	var lost []netip.Prefix
	for _, e := range from.Endpoints {
		if !same[e.Key] {
			lost = append(lost, e.AllowedSources...)
		}
	}
	stays := func(e Endpoint) bool {
		return same[e.Key] && !slices.ContainsFunc(e.AllowedSources,
			func(p netip.Prefix) bool { return slices.Contains(lost, p) })
	}
	from.Endpoints = slices.DeleteFunc(slices.Clone(from.Endpoints), stays)
	to.Endpoints = slices.DeleteFunc(slices.Clone(to.Endpoints), stays)
	from.Profiles, to.Profiles = maps.Clone(from.Profiles), maps.Clone(to.Profiles)
	for id, p := range from.Profiles {
		if next, ok := to.Profiles[id]; ok && p.equal(next) {
			delete(from.Profiles, id)
			delete(to.Profiles, id)
		}
	}
	from.PeerSets, to.PeerSets = maps.Clone(from.PeerSets), maps.Clone(to.PeerSets)
	for id, set := range from.PeerSets {
		if next, ok := to.PeerSets[id]; ok {
			set.Addrs, next.Addrs = without(set.Addrs, next.Addrs, netip.Addr.Compare),
				without(next.Addrs, set.Addrs, netip.Addr.Compare)
			from.PeerSets[id], to.PeerSets[id] = set, next
		}
	}
	from.TupleSets, to.TupleSets = maps.Clone(from.TupleSets), maps.Clone(to.TupleSets)
	for id, set := range from.TupleSets {
		if next, ok := to.TupleSets[id]; ok {
			set.Tuples, next.Tuples = without(set.Tuples, next.Tuples, netip.AddrPort.Compare),
				without(next.Tuples, set.Tuples, netip.AddrPort.Compare)
			from.TupleSets[id], to.TupleSets[id] = set, next
		}
	}
	return from, to
}

// placedAs reports whether nothing of other is elsewhere in the kernel than e has it.
func (e Endpoint) placedAs(other Endpoint) bool {
	return e.ID == other.ID && e.FormerID == other.FormerID && e.Profiles == other.Profiles &&
		e.L3Interface == other.L3Interface && e.HostVeth == other.HostVeth && e.MAC == other.MAC &&
		e.L3InterfaceIndex == other.L3InterfaceIndex && e.HostVethIndex == other.HostVethIndex &&
		e.VRFIndex == other.VRFIndex &&
		slices.Equal(e.Addresses, other.Addresses) && slices.Equal(e.AllowedSources, other.AllowedSources) &&
		slices.Equal(e.Gateways, other.Gateways)
}
