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
	addresses  map[netip.Addr]*held
	claimed    []*held
	// vacant are those that nobody has any more, but that may have left a set.
	vacant []*held
	peers  map[PeerSetID]*crowd[*held]
	tuples map[TupleSetID]*crowd[heldPort]
}

// ranked is a pod with its rank.
type ranked struct {
	*Pod
	rank uint64
}

// held is an address: a pod that has it and, rarely, others that do. Sets hold it by its
// pointer, which takes a third of the room.
type held struct {
	netip.Addr
	holder *ranked
	rivals []*ranked
	// claimed is set while an endpoint of the node has it.
	claimed bool
}

type heldPort struct {
	*held
	port uint16
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

// settle forgets what came and went: a map that is cleared keeps its room.
func (c *crowd[T]) settle() {
	if len(c.come)+len(c.gone) > 0 {
		c.come, c.gone = map[T]struct{}{}, map[T]struct{}{}
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
		namespaces: map[string]map[string]string{}, pods: map[string]map[string]*ranked{}, addresses: map[netip.Addr]*held{},
		peers: map[PeerSetID]*crowd[*held]{}, tuples: map[TupleSetID]*crowd[heldPort]{},
	}
	x.Follow(Policies{})
	return x
}

// Follow goes over to the sets of these policies. Sets that were there before go on as
// they are; the labels of namespaces are those that [Index.Label] was told.
func (x *Index) Follow(p Policies) {
	peers, tuples := p.sets()
	x.selection = p.selection(func(namespace string) map[string]string { return x.namespaces[namespace] })
	maps.DeleteFunc(x.peers, func(id PeerSetID, _ *crowd[*held]) bool { _, kept := peers[id]; return !kept })
	maps.DeleteFunc(x.tuples, func(id TupleSetID, _ *crowd[heldPort]) bool { _, kept := tuples[id]; return !kept })
	// Only a set that is new needs a look at the pods, and of those only at its namespace's.
	namespaces := map[string]bool{}
	everywhere := false
	for id, set := range peers {
		if x.peers[id] == nil {
			x.peers[id] = newCrowd[*held]()
			namespaces[set.Peer.Namespace] = true
			everywhere = everywhere || set.Peer.Namespace == ""
		}
	}
	for id, set := range tuples {
		if x.tuples[id] == nil && !set.Own {
			x.tuples[id] = newCrowd[heldPort]()
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
		if h := x.at(a); h.holder == nil {
			h.holder = now
		} else {
			h.rivals = append(h.rivals, now)
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
		h := x.at(a)
		h.rivals = slices.DeleteFunc(h.rivals, func(p *ranked) bool { return p == old })
		if h.holder == old {
			if h.holder = nil; len(h.rivals) > 0 {
				h.holder, h.rivals = h.rivals[0], h.rivals[1:]
			}
		}
		x.vacate(h)
	}
	if delete(x.pods[old.Namespace], old.Name); len(x.pods[old.Namespace]) == 0 {
		delete(x.pods, old.Namespace)
	}
}

// at is the entry of an address, made if need be.
func (x *Index) at(a netip.Addr) *held {
	h := x.addresses[a]
	if h == nil {
		h = &held{Addr: a}
		x.addresses[a] = h
	}
	return h
}

// vacate notes an address that nobody has. It stays until what it left is settled: the
// next one that has it must be known for the same.
func (x *Index) vacate(h *held) {
	if h.holder == nil && !h.claimed {
		x.vacant = append(x.vacant, h)
	}
}

// Claim says which addresses are those of this node's endpoints.
func (x *Index) Claim(addresses []netip.Addr) {
	claimed := map[netip.Addr]bool{}
	for _, a := range addresses {
		claimed[a] = true
	}
	var changed []netip.Addr
	for _, h := range x.claimed {
		if !claimed[h.Addr] {
			changed = append(changed, h.Addr)
		}
	}
	for a := range claimed {
		if h := x.addresses[a]; h == nil || !h.claimed {
			changed = append(changed, a)
		}
	}
	x.leave(changed)
	for _, h := range x.claimed {
		h.claimed = claimed[h.Addr]
		x.vacate(h)
	}
	x.claimed = nil
	for a := range claimed {
		h := x.at(a)
		h.claimed = true
		x.claimed = append(x.claimed, h)
	}
	x.enter(changed)
}

// owner is the pod that counts for an address; nil for none.
func (h *held) owner() *ranked {
	if h.claimed {
		return nil
	}
	owner := h.holder
	for _, p := range h.rivals {
		if p.rank > owner.rank {
			owner = p
		}
	}
	return owner
}

// leave takes addresses out of the sets that they are in by who owns them now.
func (x *Index) leave(addresses []netip.Addr) {
	x.each(addresses, (*crowd[*held]).remove, (*crowd[heldPort]).remove)
}

// enter puts addresses into the sets where they belong by who owns them now.
func (x *Index) enter(addresses []netip.Addr) {
	x.each(addresses, (*crowd[*held]).add, (*crowd[heldPort]).add)
}

func (x *Index) each(addresses []netip.Addr, peer func(*crowd[*held], *held), tuple func(*crowd[heldPort], heldPort)) {
	for _, a := range addresses {
		h := x.addresses[a]
		if h == nil || h.owner() == nil {
			continue
		}
		owner := h.owner()
		for _, id := range x.selection.peers(*owner.Pod) {
			peer(x.peers[id], h)
		}
		for _, port := range owner.Ports {
			for _, set := range x.selection.tuples(*owner.Pod, port) {
				if !set.Own {
					tuple(x.tuples[set.ID], heldPort{h, port.Number})
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
			m.Peers[id] = collect(c.settled(), len(c.all), (*held).addr)
		}
	}
	for id := range s.TupleSets {
		if c := x.tuples[id]; c != nil {
			m.Tuples[id] = collect(c.settled(), len(c.all), heldPort.addrPort)
		}
	}
	return s.With(m)
}

// Changes is what went and came in the sets of now since they were settled, or made.
func (x *Index) Changes() (gone, come Members) {
	gone, come = newMembers(), newMembers()
	for id, c := range x.peers {
		note(gone.Peers, id, collect(maps.Keys(c.gone), len(c.gone), (*held).addr), netip.Addr.Compare)
		note(come.Peers, id, collect(maps.Keys(c.come), len(c.come), (*held).addr), netip.Addr.Compare)
	}
	for id, c := range x.tuples {
		note(gone.Tuples, id, collect(maps.Keys(c.gone), len(c.gone), heldPort.addrPort), netip.AddrPort.Compare)
		note(come.Tuples, id, collect(maps.Keys(c.come), len(c.come), heldPort.addrPort), netip.AddrPort.Compare)
	}
	return gone, come
}

func note[ID comparable, T any](in map[ID][]T, id ID, some []T, compare func(T, T) int) {
	if len(some) > 0 {
		slices.SortFunc(some, compare)
		in[id] = some
	}
}

// collect lists what of makes of each of some.
func collect[H, T any](from iter.Seq[H], some int, of func(H) T) []T {
	out := make([]T, 0, some)
	for h := range from {
		out = append(out, of(h))
	}
	return out
}

func (h *held) addr() netip.Addr { return h.Addr }

func (h heldPort) addrPort() netip.AddrPort { return netip.AddrPortFrom(h.Addr, h.port) }

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
		c.settle()
	}
	for _, c := range x.tuples {
		c.settle()
	}
	for _, h := range x.vacant {
		if h.holder == nil && !h.claimed {
			delete(x.addresses, h.Addr)
		}
	}
	x.vacant = nil
}
