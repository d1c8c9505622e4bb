package desired

import (
	"iter"
	"maps"
	"net/netip"
	"slices"

	"github.com/podmark/podmark/pkg/endpoint"
)

type endpointPort = endpoint.NamedPort

// Index keeps, of a changing crowd of pods, who is in which set of a changing list of
// policies, and what of that is new since it was last asked. What a change costs does not
// depend on how many pods there are.
//
// An address is one pod's at a time, whatever the cluster says for a moment: of those that
// have it, that of the highest rank. One that an endpoint of this node has is nobody
// else's.
type Index struct {
	selection  *selection
	namespaces map[string]map[string]string
	pods       map[string]map[string]*ranked // by namespace and name
	// holders has the pod that has an address, and rivals, rarely, others that do.
	holders map[netip.Addr]*ranked
	rivals  map[netip.Addr][]*ranked
	claimed map[netip.Addr]bool
	peers   map[PeerSetID]*crowd[netip.Addr]
	tuples  map[TupleSetID]*crowd[netip.AddrPort]
}

// ranked is a pod with its rank.
type ranked struct {
	*Pod
	rank uint64
}

// crowd is the content of a set, with what came and went since it was settled.
type crowd[T comparable] struct{ all, come, gone map[T]struct{} }

func newCrowd[T comparable]() *crowd[T] {
	return &crowd[T]{all: map[T]struct{}{}, come: map[T]struct{}{}, gone: map[T]struct{}{}}
}

func (c *crowd[T]) add(v T) {
	if _, there := c.all[v]; there {
		return
	}
	c.all[v] = struct{}{}
	if _, back := c.gone[v]; back {
		delete(c.gone, v)
	} else {
		c.come[v] = struct{}{}
	}
}

func (c *crowd[T]) remove(v T) {
	if _, there := c.all[v]; !there {
		return
	}
	delete(c.all, v)
	if _, fresh := c.come[v]; fresh {
		delete(c.come, v)
	} else {
		c.gone[v] = struct{}{}
	}
}

// settled yields what was there when it was settled.
func (c *crowd[T]) settled() iter.Seq[T] {
	return func(yield func(T) bool) {
		for v := range c.all {
			if _, fresh := c.come[v]; !fresh && !yield(v) {
				return
			}
		}
		for v := range c.gone {
			if !yield(v) {
				return
			}
		}
	}
}

// NewIndex makes an index without policies and pods.
func NewIndex() *Index {
	x := &Index{
		namespaces: map[string]map[string]string{}, pods: map[string]map[string]*ranked{},
		holders: map[netip.Addr]*ranked{}, rivals: map[netip.Addr][]*ranked{}, claimed: map[netip.Addr]bool{},
		peers: map[PeerSetID]*crowd[netip.Addr]{}, tuples: map[TupleSetID]*crowd[netip.AddrPort]{},
	}
	x.Follow(Policies{})
	return x
}

// Follow goes over to the sets of these policies. Sets that were there before go on as
// they are; the labels of namespaces are those that [Index.Label] was told.
func (x *Index) Follow(p Policies) {
	peers, tuples := p.sets()
	x.selection = p.selection(func(namespace string) map[string]string { return x.namespaces[namespace] })
	maps.DeleteFunc(x.peers, func(id PeerSetID, _ *crowd[netip.Addr]) bool { _, kept := peers[id]; return !kept })
	maps.DeleteFunc(x.tuples, func(id TupleSetID, _ *crowd[netip.AddrPort]) bool { _, kept := tuples[id]; return !kept })
	// Only a set that is new needs a look at the pods, and of those only at its namespace's.
	namespaces := map[string]bool{}
	everywhere := false
	for id, set := range peers {
		if x.peers[id] == nil {
			x.peers[id] = newCrowd[netip.Addr]()
			namespaces[set.Peer.Namespace] = true
			everywhere = everywhere || set.Peer.Namespace == ""
		}
	}
	for id, set := range tuples {
		if x.tuples[id] == nil && !set.Own {
			x.tuples[id] = newCrowd[netip.AddrPort]()
			everywhere = true
		}
	}
	for namespace, pods := range x.pods {
		if everywhere || namespaces[namespace] {
			for _, p := range pods {
				x.enter(p.Addresses)
			}
		}
	}
}

// Label says what labels a namespace has.
func (x *Index) Label(namespace string, labels map[string]string) {
	if maps.Equal(x.namespaces[namespace], labels) {
		return
	}
	pods := x.pods[namespace]
	for _, p := range pods {
		x.leave(p.Addresses)
	}
	if x.namespaces[namespace] = labels; len(labels) == 0 {
		delete(x.namespaces, namespace)
	}
	x.selection.forget(namespace)
	for _, p := range pods {
		x.enter(p.Addresses)
	}
}

// Put says what a pod is now, which is not changed any more. Of several that have an
// address, the one of the highest rank is the one that counts.
func (x *Index) Put(p *Pod, rank uint64) {
	old := x.pods[p.Namespace][p.Name]
	addresses := p.Addresses
	if old != nil {
		addresses = slices.Concat(old.Addresses, p.Addresses)
	}
	x.leave(addresses)
	x.drop(old)
	now := &ranked{p, rank}
	if x.pods[p.Namespace] == nil {
		x.pods[p.Namespace] = map[string]*ranked{}
	}
	x.pods[p.Namespace][p.Name] = now
	for _, a := range p.Addresses {
		if x.holders[a] == nil {
			x.holders[a] = now
		} else {
			x.rivals[a] = append(x.rivals[a], now)
		}
	}
	x.enter(addresses)
}

// Remove says that a pod is gone.
func (x *Index) Remove(namespace, name string) {
	old := x.pods[namespace][name]
	if old == nil {
		return
	}
	x.leave(old.Addresses)
	x.drop(old)
	x.enter(old.Addresses)
}

func (x *Index) drop(old *ranked) {
	if old == nil {
		return
	}
	for _, a := range old.Addresses {
		rest := slices.DeleteFunc(x.rivals[a], func(p *ranked) bool { return p == old })
		if x.holders[a] == old {
			if delete(x.holders, a); len(rest) > 0 {
				x.holders[a], rest = rest[0], rest[1:]
			}
		}
		if x.rivals[a] = rest; len(rest) == 0 {
			delete(x.rivals, a)
		}
	}
	if delete(x.pods[old.Namespace], old.Name); len(x.pods[old.Namespace]) == 0 {
		delete(x.pods, old.Namespace)
	}
}

// Claim says which addresses are those of this node's endpoints.
func (x *Index) Claim(addresses []netip.Addr) {
	claimed := map[netip.Addr]bool{}
	var changed []netip.Addr
	for _, a := range addresses {
		if claimed[a] = true; !x.claimed[a] {
			changed = append(changed, a)
		}
	}
	for a := range x.claimed {
		if !claimed[a] {
			changed = append(changed, a)
		}
	}
	x.leave(changed)
	x.claimed = claimed
	x.enter(changed)
}

// owner is the pod that counts for an address; nil for none.
func (x *Index) owner(a netip.Addr) *ranked {
	if x.claimed[a] {
		return nil
	}
	owner := x.holders[a]
	for _, p := range x.rivals[a] {
		if p.rank > owner.rank {
			owner = p
		}
	}
	return owner
}

// leave takes addresses out of the sets that they are in by who owns them now.
func (x *Index) leave(addresses []netip.Addr) {
	x.each(addresses, (*crowd[netip.Addr]).remove, (*crowd[netip.AddrPort]).remove)
}

// enter puts addresses into the sets where they belong by who owns them now.
func (x *Index) enter(addresses []netip.Addr) {
	x.each(addresses, (*crowd[netip.Addr]).add, (*crowd[netip.AddrPort]).add)
}

func (x *Index) each(addresses []netip.Addr, peer func(*crowd[netip.Addr], netip.Addr), tuple func(*crowd[netip.AddrPort], netip.AddrPort)) {
	for _, a := range addresses {
		owner := x.owner(a)
		if owner == nil {
			continue
		}
		for _, id := range x.selection.peers(*owner.Pod) {
			peer(x.peers[id], a)
		}
		for _, port := range owner.Ports {
			for _, set := range x.selection.tuples(*owner.Pod, port) {
				if !set.Own {
					tuple(x.tuples[set.ID], netip.AddrPortFrom(a, port.Number))
				}
			}
		}
	}
}

// Complete adds to the sets of s, as far as the index follows them, who was in them when
// they were settled.
func (x *Index) Complete(s State) State {
	m := newMembers()
	for id := range s.PeerSets {
		if c := x.peers[id]; c != nil {
			m.Peers[id] = slices.Collect(c.settled())
		}
	}
	for id := range s.TupleSets {
		if c := x.tuples[id]; c != nil {
			m.Tuples[id] = slices.Collect(c.settled())
		}
	}
	return s.With(m)
}

// Changes is what went and came in the sets of now since they were settled, or made.
func (x *Index) Changes() (gone, come Members) {
	gone, come = newMembers(), newMembers()
	for id, c := range x.peers {
		note(gone.Peers, id, c.gone, netip.Addr.Compare)
		note(come.Peers, id, c.come, netip.Addr.Compare)
	}
	for id, c := range x.tuples {
		note(gone.Tuples, id, c.gone, netip.AddrPort.Compare)
		note(come.Tuples, id, c.come, netip.AddrPort.Compare)
	}
	return gone, come
}

func note[ID, T comparable](in map[ID][]T, id ID, some map[T]struct{}, compare func(T, T) int) {
	if len(some) > 0 {
		in[id] = slices.SortedFunc(maps.Keys(some), compare)
	}
}

// Changed reports whether anything went or came since.
func (x *Index) Changed() bool {
	for _, c := range x.peers {
		if len(c.come)+len(c.gone) > 0 {
			return true
		}
	}
	for _, c := range x.tuples {
		if len(c.come)+len(c.gone) > 0 {
			return true
		}
	}
	return false
}

// Settle takes what there is for known.
func (x *Index) Settle() {
	for _, c := range x.peers {
		clear(c.come)
		clear(c.gone)
	}
	for _, c := range x.tuples {
		clear(c.come)
		clear(c.gone)
	}
}
