package desired

import (
	"iter"
	"maps"
	"net/netip"
	"slices"

	"github.com/podmark/podmark/pkg/attachment"
)

type endpointPort = attachment.NamedPort

// IndexedPod is a pod as an [Index] keeps it: a [Pod] of whatever namespace has the name
// now. There may be hundreds of thousands.
type IndexedPod struct {
	*Template
	Name string
	// Addresses are the pod's own, each once and without zones.
	Addresses Addresses
	// Rank tells whose an address is that several pods have: that of the highest.
	Rank uint64
}

// Template is what the pods of one workload have in common, and share. It is never changed.
type Template struct {
	Namespace string
	Labels    *LabelSet
	// Ports are the named ports of the containers, each once.
	Ports []attachment.NamedPort
}

// Addresses are those of a pod in as many bytes as they have, each after their number.
type Addresses string

// AddressesOf are these, which have no zones.
func AddressesOf(list ...netip.Addr) Addresses {
	var room [2 * 17]byte // as a rule it is enough
	b := room[:0]
	for _, a := range list {
		if a.Is4() {
			four := a.As4()
			b = append(append(b, byte(len(four))), four[:]...)
		} else {
			all := a.As16()
			b = append(append(b, byte(len(all))), all[:]...)
		}
	}
	return Addresses(b)
}

// All yields each.
func (l Addresses) All() iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for a, rest := l.first(); a.IsValid(); a, rest = rest.first() {
			if !yield(a) {
				return
			}
		}
	}
}

// first is the first of them, and rest are the others; an invalid one where there is none.
func (l Addresses) first() (a netip.Addr, rest Addresses) {
	if len(l) == 0 {
		return netip.Addr{}, ""
	}
	end := 1 + int(l[0])
	a, _ = netip.AddrFromSlice([]byte(l[1:end])) // it was one
	return a, l[end:]
}

// List lists them; nil for none.
func (l Addresses) List() []netip.Addr { return slices.Collect(l.All()) }

// Contain reports whether the address is one of them.
func (l Addresses) Contain(a netip.Addr) bool {
	for own := range l.All() {
		if own == a {
			return true
		}
	}
	return false
}

// Index knows, of a changing crowd of pods, who is in which set of a changing list of
// policies, and what of that is new since it was last asked. What a change of a pod costs
// does not depend on how many there are. Who is in a set is not kept, but looked for among
// the pods: it is asked for seldom, and all sets together may be larger than the pods.
//
// An address is one pod's at a time, whatever the cluster says for a moment: of those that
// have it, that of the highest rank. One that an endpoint of this node has is nobody
// else's.
type Index struct {
	selection  *selection
	namespaces map[string]map[string]string
	// pods yields those of a namespace that were put and not removed, of all namespaces for
	// "", one namespace after the other.
	pods func(namespace string) iter.Seq[*IndexedPod]
	// owners are one pod of each address, and rivals others that have it too, where
	// there are some.
	owners    addressBook
	claimants map[netip.Addr][]*IndexedPod
	// claimed are the addresses that an endpoint of the node has.
	claimed map[netip.Addr]bool
	peers   map[PeerSetID]*peerSet
	tuples  map[TupleSetID]*tupleSet
	buffer  []netip.Addr // of a change
}

type peerSet struct {
	Peer
	setChanges[netip.Addr]
}

type tupleSet struct {
	NamedPort
	setChanges[netip.AddrPort]
}

// addressBook finds the pod of an address. Without zones, an address takes half the room.
type addressBook struct {
	four map[[4]byte]*IndexedPod
	six  map[[16]byte]*IndexedPod
}

func (b addressBook) get(a netip.Addr) *IndexedPod {
	if a.Is4() {
		return b.four[a.As4()]
	}
	return b.six[a.As16()]
}

func (b addressBook) set(a netip.Addr, p *IndexedPod) {
	switch {
	case a.Is4() && p == nil:
		delete(b.four, a.As4())
	case a.Is4():
		b.four[a.As4()] = p
	case p == nil:
		delete(b.six, a.As16())
	default:
		b.six[a.As16()] = p
	}
}

// setChanges is what came into a set and went since it was settled. The caller adds only what
// was not in the set, and removes only what was.
type setChanges[T comparable] struct {
	// fresh is set until it is settled first: all that is in the set came.
	fresh      bool
	come, gone map[T]struct{}
	// most is how long its list was when there was one; 0 for none.
	most int
}

func newSetChanges[T comparable]() setChanges[T] {
	return setChanges[T]{fresh: true, come: map[T]struct{}{}, gone: map[T]struct{}{}}
}

func (n *setChanges[T]) add(v T) {
	if n.fresh {
		return
	}
	if _, back := n.gone[v]; back {
		delete(n.gone, v)
	} else {
		n.come[v] = struct{}{}
	}
}

func (n *setChanges[T]) remove(v T) {
	if n.fresh {
		return
	}
	if _, fresh := n.come[v]; fresh {
		delete(n.come, v)
	} else {
		n.gone[v] = struct{}{}
	}
}

// settle forgets what came and went: a map that is cleared keeps its room.
func (n *setChanges[T]) settle() {
	if n.fresh = false; len(n.come)+len(n.gone) > 0 {
		n.come, n.gone = map[T]struct{}{}, map[T]struct{}{}
	}
}

// settled lists, of a set that has the members all, what was there when it was settled, and
// besides, sorted.
func (n *setChanges[T]) settled(all iter.Seq[T], besides []T, compare func(T, T) int) []T {
	if n.fresh {
		return besides
	}
	if n.most == 0 { // a list that grows takes twice the room
		n.most = len(n.gone) + len(besides)
		for range all {
			n.most++
		}
	}
	out := append(make([]T, 0, n.most), besides...)
	for v := range all {
		if _, fresh := n.come[v]; !fresh {
			out = append(out, v)
		}
	}
	out = slices.AppendSeq(out, maps.Keys(n.gone))
	n.most = len(out)
	slices.SortFunc(out, compare)
	return slices.Compact(out)
}

// changes lists, of a set that has the members all, what went and came, sorted.
func (n *setChanges[T]) changes(all iter.Seq[T], compare func(T, T) int) (gone, come []T) {
	if n.fresh {
		return nil, slices.SortedFunc(all, compare)
	}
	return slices.SortedFunc(maps.Keys(n.gone), compare), slices.SortedFunc(maps.Keys(n.come), compare)
}

// changed reports whether anything of a set that has the members all went or came.
func (n *setChanges[T]) changed(all iter.Seq[T]) bool {
	if n.fresh {
		for range all {
			return true
		}
	}
	return len(n.come)+len(n.gone) > 0
}

// NewIndex makes an index without policies and pods. Whoever tells it of pods has them:
// pods yields those of a namespace that were put and not removed, and for "" those of all,
// one namespace after the other.
func NewIndex(pods func(namespace string) iter.Seq[*IndexedPod]) *Index {
	x := &Index{
		namespaces: map[string]map[string]string{}, pods: pods,
		owners: addressBook{map[[4]byte]*IndexedPod{}, map[[16]byte]*IndexedPod{}}, claimants: map[netip.Addr][]*IndexedPod{},
		claimed: map[netip.Addr]bool{},
		peers:   map[PeerSetID]*peerSet{}, tuples: map[TupleSetID]*tupleSet{},
	}
	x.Follow(Policies{})
	return x
}

// Follow goes over to the sets of these policies. Sets that were there before go on as
// they are; the labels of namespaces are those that [Index.Label] was told.
func (x *Index) Follow(p Policies) {
	peers, tuples := p.sets()
	x.selection = p.selection(p.namespaceLabels(func(name string) (map[string]string, bool) {
		labels, known := x.namespaces[name]
		return labels, known
	}))
	maps.DeleteFunc(x.peers, func(id PeerSetID, _ *peerSet) bool { _, kept := peers[id]; return !kept })
	maps.DeleteFunc(x.tuples, func(id TupleSetID, _ *tupleSet) bool { _, kept := tuples[id]; return !kept })
	for id, set := range peers {
		if x.peers[id] == nil {
			x.peers[id] = &peerSet{set.Peer, newSetChanges[netip.Addr]()}
		}
	}
	for id, set := range tuples {
		if x.tuples[id] == nil && !set.Own {
			x.tuples[id] = &tupleSet{set.NamedPort, newSetChanges[netip.AddrPort]()}
		}
	}
}

// Label says what labels a namespace has; nil where nobody knows.
func (x *Index) Label(namespace string, labels map[string]string) {
	if was, known := x.namespaces[namespace]; known == (labels != nil) && maps.Equal(was, labels) {
		return
	}
	var addresses []netip.Addr // whose pods here count
	for p := range x.pods(namespace) {
		for a := range p.Addresses.All() {
			if x.owns(p, a) {
				addresses = append(addresses, a)
			}
		}
	}
	x.leave(addresses)
	if x.namespaces[namespace] = labels; labels == nil {
		delete(x.namespaces, namespace)
	}
	x.selection.forget(namespace)
	x.enter(addresses)
}

// Put says what a pod is now, which is not changed any more, and what it was; nil for one
// that was not put, or was removed.
func (x *Index) Put(old, p *IndexedPod) {
	addresses := x.addresses(p)
	if old != nil {
		for a := range old.Addresses.All() {
			if !p.Addresses.Contain(a) {
				addresses = append(addresses, a)
			}
		}
	}
	x.leave(addresses)
	x.drop(old)
	for a := range p.Addresses.All() {
		if x.owners.get(a) == nil {
			x.owners.set(a, p)
		} else {
			x.claimants[a] = append(x.claimants[a], p)
		}
	}
	x.enter(addresses)
}

// Remove says that a pod is gone that was put.
func (x *Index) Remove(old *IndexedPod) {
	addresses := x.addresses(old)
	x.leave(addresses)
	x.drop(old)
	x.enter(addresses)
}

// addresses are those of a pod, until it is asked again.
func (x *Index) addresses(p *IndexedPod) []netip.Addr {
	x.buffer = slices.AppendSeq(x.buffer[:0], p.Addresses.All())
	return x.buffer
}

func (x *Index) drop(old *IndexedPod) {
	if old == nil {
		return
	}
	for a := range old.Addresses.All() {
		rivals := slices.DeleteFunc(x.claimants[a], func(p *IndexedPod) bool { return p == old })
		if x.owners.get(a) == old {
			if x.owners.set(a, nil); len(rivals) > 0 {
				x.owners.set(a, rivals[0])
				rivals = rivals[1:]
			}
		}
		if x.claimants[a] = rivals; len(rivals) == 0 {
			delete(x.claimants, a)
		}
	}
}

// Claim says which addresses are those of this node's endpoints.
func (x *Index) Claim(addresses []netip.Addr) {
	claimed := map[netip.Addr]bool{}
	for _, a := range addresses {
		claimed[a] = true
	}
	var changed []netip.Addr
	for a := range x.claimed {
		if !claimed[a] {
			changed = append(changed, a)
		}
	}
	for a := range claimed {
		if !x.claimed[a] {
			changed = append(changed, a)
		}
	}
	x.leave(changed)
	x.claimed = claimed
	x.enter(changed)
}

// owner is the pod that counts for an address; nil for none.
func (x *Index) owner(a netip.Addr) *IndexedPod {
	if x.claimed[a] {
		return nil
	}
	owner := x.owners.get(a)
	for _, p := range x.claimants[a] {
		if p.Rank > owner.Rank {
			owner = p
		}
	}
	return owner
}

// owns reports whether the pod is the one that counts for an address of its own.
func (x *Index) owns(p *IndexedPod, a netip.Addr) bool {
	return !x.claimed[a] && (x.claimants[a] == nil || x.owner(a) == p)
}

// leave takes addresses out of the sets that they are in by who owns them now.
func (x *Index) leave(addresses []netip.Addr) {
	x.each(addresses, (*setChanges[netip.Addr]).remove, (*setChanges[netip.AddrPort]).remove)
}

// enter puts addresses into the sets where they belong by who owns them now.
func (x *Index) enter(addresses []netip.Addr) {
	x.each(addresses, (*setChanges[netip.Addr]).add, (*setChanges[netip.AddrPort]).add)
}

// each has addresses, each there once, moved in the sets of who owns them now.
func (x *Index) each(
	addresses []netip.Addr,
	peer func(*setChanges[netip.Addr], netip.Addr),
	tuple func(*setChanges[netip.AddrPort], netip.AddrPort),
) {
	if len(x.peers)+len(x.tuples) == 0 {
		return
	}
	for _, a := range addresses {
		p := x.owner(a)
		if p == nil {
			continue
		}
		for _, id := range x.selection.selecting(p.Namespace, "", p.Labels) {
			peer(&x.peers[id].setChanges, a)
		}
		for _, port := range p.Ports {
			for _, set := range x.selection.named(port) {
				if !set.Own {
					tuple(&x.tuples[set.ID].setChanges, netip.AddrPortFrom(a, port.Number))
				}
			}
		}
	}
}

// addrs yields the members of a set.
func (x *Index) addrs(id PeerSetID) iter.Seq[netip.Addr] {
	peer := x.peers[id].Peer
	return func(yield func(netip.Addr) bool) {
		last, reached := "", false
		for p := range x.pods(peer.Namespace) {
			if p.Namespace != last {
				last, reached = p.Namespace, x.selection.reaches(id, peer, p.Namespace)
			}
			if !reached || !peer.Pods.matches(p.Labels) {
				continue
			}
			// A range over All would allocate for each pod.
			for a, rest := p.Addresses.first(); a.IsValid(); a, rest = rest.first() {
				if x.owns(p, a) && !yield(a) {
					return
				}
			}
		}
	}
}

// addrPorts yields the members of a set.
func (x *Index) addrPorts(id TupleSetID) iter.Seq[netip.AddrPort] {
	named := x.tuples[id].NamedPort
	return func(yield func(netip.AddrPort) bool) {
		for p := range x.pods("") {
			for _, port := range p.Ports {
				if port.Name != named.Name || Protocol(port.Protocol) != named.Protocol {
					continue
				}
				for a, rest := p.Addresses.first(); a.IsValid(); a, rest = rest.first() {
					if x.owns(p, a) && !yield(netip.AddrPortFrom(a, port.Number)) {
						return
					}
				}
			}
		}
	}
}

// Complete adds to the sets of s, as far as the index follows them, who was in them when
// they were settled.
func (x *Index) Complete(s State) State {
	s.PeerSets, s.TupleSets = maps.Clone(s.PeerSets), maps.Clone(s.TupleSets)
	for id, set := range s.PeerSets {
		if known := x.peers[id]; known != nil {
			set.Addrs = known.settled(x.addrs(id), set.Addrs, netip.Addr.Compare)
			s.PeerSets[id] = set
		}
	}
	for id, set := range s.TupleSets {
		if known := x.tuples[id]; known != nil {
			set.Tuples = known.settled(x.addrPorts(id), set.Tuples, netip.AddrPort.Compare)
			s.TupleSets[id] = set
		}
	}
	return s
}

// Changes is what went and came in the sets of now since they were settled, or made.
func (x *Index) Changes() (gone, come Members) {
	gone, come = newMembers(), newMembers()
	for id, set := range x.peers {
		went, came := set.changes(x.addrs(id), netip.Addr.Compare)
		note(gone.Peers, id, went)
		note(come.Peers, id, came)
	}
	for id, set := range x.tuples {
		went, came := set.changes(x.addrPorts(id), netip.AddrPort.Compare)
		note(gone.Tuples, id, went)
		note(come.Tuples, id, came)
	}
	return gone, come
}

func note[ID comparable, T any](in map[ID][]T, id ID, some []T) {
	if len(some) > 0 {
		in[id] = some
	}
}

// Changed reports whether anything went or came since.
func (x *Index) Changed() bool {
	for id, set := range x.peers {
		if set.changed(x.addrs(id)) {
			return true
		}
	}
	for id, set := range x.tuples {
		if set.changed(x.addrPorts(id)) {
			return true
		}
	}
	return false
}

// Settle takes what there is for known.
func (x *Index) Settle() {
	for _, set := range x.peers {
		set.settle()
	}
	for _, set := range x.tuples {
		set.settle()
	}
}
