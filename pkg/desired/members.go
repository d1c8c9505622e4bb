package desired

import (
	"maps"
	"net/netip"
	"slices"
)

// Members says which addresses are in which set, sorted.
type Members struct {
	Peers  map[PeerSetID][]netip.Addr
	Tuples map[TupleSetID][]netip.AddrPort
}

func newMembers() Members {
	return Members{Peers: map[PeerSetID][]netip.Addr{}, Tuples: map[TupleSetID][]netip.AddrPort{}}
}

// Members finds which of the policies' sets hold the addresses of pods elsewhere.
func (p Policies) Members(pods ...Pod) Members { return p.members(false, pods) }

// members is Members, or that of pods of the node itself.
func (p Policies) members(own bool, pods []Pod) Members {
	m := newMembers()
	s := p.selection(p.namespaceLabels(p.declared))
	for _, pod := range pods {
		if len(pod.Addresses) == 0 {
			continue
		}
		for _, id := range s.peers(pod) {
			m.Peers[id] = append(m.Peers[id], pod.Addresses...)
		}
		for _, port := range pod.Ports {
			for _, set := range s.tuples(pod, port) {
				for _, a := range pod.Addresses {
					if own || !set.Own {
						m.Tuples[set.ID] = append(m.Tuples[set.ID], netip.AddrPortFrom(a, port.Number))
					}
				}
			}
		}
	}
	for id, addrs := range m.Peers {
		m.Peers[id] = union(nil, addrs, netip.Addr.Compare)
	}
	for id, tuples := range m.Tuples {
		m.Tuples[id] = union(nil, tuples, netip.AddrPort.Compare)
	}
	return m
}

// selection finds the sets that a pod is in without asking each of them.
type selection struct {
	// within are the sets of peers that name a namespace, by that.
	within map[string][]PeerSet
	// across are those that select namespaces, and picked those of them that select
	// a namespace, as far as it was asked for.
	across []PeerSet
	picked map[string][]PeerSet
	ports  map[NamedPort][]TupleSet
	labels namespaceLabels
}

func (p Policies) selection(labels namespaceLabels) *selection {
	s := &selection{
		within: map[string][]PeerSet{}, picked: map[string][]PeerSet{}, ports: map[NamedPort][]TupleSet{}, labels: labels,
	}
	peers, tuples := p.sets()
	for _, id := range slices.Sorted(maps.Keys(peers)) {
		if set := peers[id]; set.Peer.Namespace != "" {
			s.within[set.Peer.Namespace] = append(s.within[set.Peer.Namespace], set)
		} else {
			s.across = append(s.across, set)
		}
	}
	for _, set := range tuples {
		s.ports[set.NamedPort] = append(s.ports[set.NamedPort], set)
	}
	return s
}

// peers lists the peer sets that hold the pod's addresses. Something outside of
// Kubernetes, which has no namespace, is nobody's peer.
func (s *selection) peers(pod Pod) []PeerSetID {
	return s.selecting(pod.Namespace, pod.NamespaceUID, labelMap(pod.Labels))
}

// selecting lists the peer sets that hold a pod of a namespace with such labels.
func (s *selection) selecting(namespace, uid string, labels labeled) []PeerSetID {
	if namespace == "" {
		return nil
	}
	var ids []PeerSetID
	for _, sets := range [][]PeerSet{s.within[namespace], s.pick(namespace, uid)} {
		for _, set := range sets {
			if SameNamespace(set.Peer.NamespaceUID, uid) && set.Peer.Pods.matches(labels) {
				ids = append(ids, set.ID)
			}
		}
	}
	return ids
}

// pick lists the sets that select a namespace by its labels. Those of a former one nobody knows,
// and what is found out is of the one there is.
func (s *selection) pick(namespace, uid string) []PeerSet {
	if namespace == Nodes {
		return nil
	}
	if former := !SameNamespace(uid, s.labels.uids[namespace]); former {
		return slices.DeleteFunc(slices.Clone(s.across), func(set PeerSet) bool { return !set.Peer.Unsure })
	}
	picked, done := s.picked[namespace]
	if !done && len(s.across) > 0 {
		labels, known := s.labels.of(namespace, uid)
		for _, set := range s.across {
			selector := set.Peer.NamespaceSelector
			if known || selector.byName() {
				if selector.Matches(labels) {
					picked = append(picked, set)
				}
			} else if set.Peer.Unsure {
				picked = append(picked, set)
			}
		}
		s.picked[namespace] = picked
	}
	return picked
}

// reaches reports whether a set of peers can hold pods of a namespace.
func (s *selection) reaches(id PeerSetID, peer Peer, namespace string) bool {
	if peer.Namespace != "" {
		return peer.Namespace == namespace
	}
	return slices.ContainsFunc(s.pick(namespace, ""), func(set PeerSet) bool { return set.ID == id })
}

// forget drops what was found out about a namespace whose labels have changed.
func (s *selection) forget(namespace string) { delete(s.picked, namespace) }

// tuples are the sets that a named port of the pod is in.
func (s *selection) tuples(pod Pod, port endpointPort) []TupleSet {
	if pod.Namespace == "" {
		return nil
	}
	return s.named(port)
}

// named are the sets of a port of that name, of pods that have a namespace.
func (s *selection) named(port endpointPort) []TupleSet {
	return s.ports[NamedPort{Protocol: Protocol(port.Protocol), Name: port.Name}]
}
