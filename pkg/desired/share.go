package desired

// Share is the part of a node's state that a change is about. It is a type of its own so that
// it cannot be passed for the whole: see [Diff].
type Share struct{ State }

// WithMembers adds members to the sets of s that they name.
func (s Share) WithMembers(m Members) Share { return Share{s.State.WithMembers(m)} }

// Restricts is [State.Restricts] for what both shares are about.
func (s Share) Restricts(next Share) bool { return s.State.Restricts(next.State) }

// Set is one peer set, or one tuple set, with its members: a state that has nothing else.
type Set struct{ State }

// WithMembers adds members to the set, if they name it.
func (s Set) WithMembers(m Members) Set { return Set{s.State.WithMembers(m)} }

// PeersOf is the set of a peer.
func PeersOf(set PeerSet) Set { return Set{State{PeerSets: map[PeerSetID]PeerSet{set.ID: set}}} }

// TuplesOf is the set of a named port.
func TuplesOf(set TupleSet) Set {
	return Set{State{TupleSets: map[TupleSetID]TupleSet{set.ID: set}}}
}
