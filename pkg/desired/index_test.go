package desired_test

import (
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
)

// crowd is what an Index is told, kept in the plainest way.
type crowd struct {
	policies   desired.Policies
	namespaces map[string]map[string]string
	pods       map[string]desired.Pod
	ranks      map[string]uint64
	claimed    []netip.Addr
	indexed    map[string]*desired.IndexedPod
}

// in yields what an index was told.
func (c crowd) in(namespace string) iter.Seq[*desired.IndexedPod] {
	return func(yield func(*desired.IndexedPod) bool) {
		for _, name := range slices.Sorted(maps.Keys(c.indexed)) {
			if p := c.indexed[name]; (namespace == "" || p.Namespace == namespace) && !yield(p) {
				return
			}
		}
	}
}

// members is what an index must know, worked out from the beginning.
func (c crowd) members() desired.Members {
	owner := map[netip.Addr]string{}
	for name, p := range c.pods {
		for _, a := range p.Addresses {
			if other, taken := owner[a]; !taken || c.ranks[name] > c.ranks[other] {
				owner[a] = name
			}
		}
	}
	var pods []desired.Pod
	for name, p := range c.pods {
		p.Addresses = slices.DeleteFunc(slices.Clone(p.Addresses), func(a netip.Addr) bool {
			return owner[a] != name || slices.Contains(c.claimed, a)
		})
		pods = append(pods, p)
	}
	with := c.policies
	with.Namespaces = c.namespaces
	return with.Members(pods...)
}

// Whatever happens, in any order, an index knows what there is, and what it says has gone
// and come turns what there was into that.
func TestIndex(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for run := range 60 {
		r := rand.New(rand.NewPCG(seed, uint64(run)))
		// Of namespaces without labels, nothing is known, or that they have none.
		c := crowd{policies: desired.Policies{Listed: run%2 == 0}, namespaces: map[string]map[string]string{}, pods: map[string]desired.Pod{}, ranks: map[string]uint64{}, indexed: map[string]*desired.IndexedPod{}}
		x := desired.NewIndex(c.in)
		x.Follow(c.policies)
		known := desired.Members{}
		for step := range 120 {
			what := turn(r, x, &c)
			known = settled(c.policies, known) // a set that is dropped and comes back is new
			if r.IntN(4) > 0 {
				continue
			}
			gone, come := x.Changes()
			if x.Changed() != (len(gone.Peers)+len(gone.Tuples)+len(come.Peers)+len(come.Tuples) > 0) {
				t.Fatalf("run %d step %d: it says that it changed: %t, gone %v, come %v", run, step, x.Changed(), gone, come)
			}
			if diff := cmp.Diff(settled(c.policies, known), completed(c.policies, x), options...); diff != "" {
				t.Fatalf("run %d step %d, after %s: before they are settled members are others:\n%s", run, step, what, diff)
			}
			known = apart(together(settled(c.policies, known), come), gone)
			x.Settle()
			want := c.members()
			if diff := cmp.Diff(want, known, options...); diff != "" {
				t.Fatalf("run %d step %d, after %s: what came and went makes something else:\n%s", run, step, what, diff)
			}
			if diff := cmp.Diff(want, completed(c.policies, x), options...); diff != "" {
				t.Fatalf("run %d step %d, after %s: members:\n%s", run, step, what, diff)
			}
		}
	}
}

var options = []cmp.Option{cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}), cmpopts.EquateEmpty()}

// turn tells index and crowd the same, at random.
func turn(r *rand.Rand, x *desired.Index, c *crowd) string {
	namespace := []string{"one", "two", "three"}[r.IntN(3)]
	name := fmt.Sprintf("pod%d", r.IntN(5))
	labels := func() map[string]string {
		out := map[string]string{}
		for _, k := range []string{"app", "tier"} {
			if r.IntN(3) > 0 {
				out[k] = []string{"a", "b"}[r.IntN(2)]
			}
		}
		return out
	}
	addresses := func() (out []netip.Addr) {
		for range r.IntN(3) {
			a := addr(fmt.Sprintf("10.9.0.%d", r.IntN(8)))
			if !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
		return out
	}
	switch r.IntN(8) {
	case 0:
		c.policies = desired.Policies{Listed: c.policies.Listed}
		for i := range r.IntN(4) {
			rule := desired.Rule{Peers: []desired.Peer{{Namespace: namespace, Pods: app([]string{"a", "b"}[r.IntN(2)])}}}
			if r.IntN(2) == 0 {
				rule.Peers = append(rule.Peers, desired.Peer{NamespaceSelector: []desired.Selector{
					nil, app("a"), app("b"),
					{{Key: "app", Op: desired.NotIn, Values: []string{"a"}}},
					{{Key: "tier", Op: desired.DoesNotExist}},
					{{Key: desired.MetadataName, Op: desired.NotIn, Values: []string{"one"}}},
				}[r.IntN(6)]})
			}
			if r.IntN(2) == 0 {
				rule.NamedPorts = []desired.NamedPort{{Protocol: desired.TCP, Name: []string{"http", "dns"}[r.IntN(2)]}}
			}
			policy, isolation := desired.Policy{Namespace: "one", Name: fmt.Sprint(i)}, &desired.Isolation{Rules: []desired.Rule{rule}}
			if policy.Egress = isolation; r.IntN(4) == 0 {
				policy.Ingress, policy.Egress = isolation, nil
			}
			c.policies.Policies = append(c.policies.Policies, policy)
		}
		x.Follow(c.policies)
		return "policies"
	case 1:
		if c.namespaces[namespace] = labels(); r.IntN(4) == 0 {
			delete(c.namespaces, namespace)
		}
		x.Label(namespace, c.namespaces[namespace])
		return "labels of a namespace"
	case 2:
		delete(c.pods, namespace+"/"+name)
		if p := c.indexed[namespace+"/"+name]; p != nil {
			x.Remove(p)
			delete(c.indexed, namespace+"/"+name)
		}
		return "a pod's end"
	case 3:
		c.claimed = addresses()
		x.Claim(c.claimed)
		return "claims"
	default:
		p := desired.Pod{Namespace: namespace, Name: name, Labels: labels(), Addresses: addresses()}
		for range r.IntN(3) {
			port := attachment.NamedPort{Name: []string{"http", "dns"}[r.IntN(2)], Protocol: []uint8{6, 17}[r.IntN(2)], Number: uint16(80 + r.IntN(2))}
			if !slices.Contains(p.Ports, port) {
				p.Ports = append(p.Ports, port)
			}
		}
		rank := r.Uint64() // no two pods of the test have the same
		c.pods[namespace+"/"+name], c.ranks[namespace+"/"+name] = p, rank
		old := c.indexed[namespace+"/"+name]
		c.indexed[namespace+"/"+name] = indexed(p, rank)
		x.Put(old, c.indexed[namespace+"/"+name])
		return "a pod"
	}
}

// indexed is a pod as an index takes it.
func indexed(p desired.Pod, rank uint64) *desired.IndexedPod {
	var labels []desired.Label
	for k, v := range p.Labels {
		labels = append(labels, desired.Label{Key: []byte(k), Value: []byte(v)})
	}
	return &desired.IndexedPod{
		Template: &desired.Template{Namespace: p.Namespace, Labels: desired.NewLabelSets().Of(labels), Ports: p.Ports},
		Name:     p.Name, Addresses: desired.AddressesOf(p.Addresses...), Rank: rank,
	}
}

// settled is m without the sets that no policy names.
func settled(p desired.Policies, m desired.Members) desired.Members {
	s := desired.Build(desired.Node{}, p, nil)
	out := desired.Members{Peers: map[desired.PeerSetID][]netip.Addr{}, Tuples: map[desired.TupleSetID][]netip.AddrPort{}}
	for id := range s.PeerSets {
		out.Peers[id] = m.Peers[id]
	}
	for id := range s.TupleSets {
		out.Tuples[id] = m.Tuples[id]
	}
	return drop(out)
}

// completed is what an index completes sets that have nobody of their own to.
func completed(p desired.Policies, x *desired.Index) desired.Members {
	s := x.Complete(desired.Build(desired.Node{}, p, nil))
	out := desired.Members{Peers: map[desired.PeerSetID][]netip.Addr{}, Tuples: map[desired.TupleSetID][]netip.AddrPort{}}
	for id, set := range s.PeerSets {
		out.Peers[id] = set.Addrs
	}
	for id, set := range s.TupleSets {
		out.Tuples[id] = set.Tuples
	}
	return drop(out)
}

func together(a, b desired.Members) desired.Members {
	for id, list := range b.Peers {
		a.Peers[id] = slices.SortedFunc(slices.Values(slices.Concat(a.Peers[id], list)), netip.Addr.Compare)
	}
	for id, list := range b.Tuples {
		a.Tuples[id] = slices.SortedFunc(slices.Values(slices.Concat(a.Tuples[id], list)), netip.AddrPort.Compare)
	}
	return a
}

func apart(a, b desired.Members) desired.Members {
	for id, list := range b.Peers {
		a.Peers[id] = slices.DeleteFunc(slices.Clone(a.Peers[id]), func(v netip.Addr) bool { return slices.Contains(list, v) })
	}
	for id, list := range b.Tuples {
		a.Tuples[id] = slices.DeleteFunc(slices.Clone(a.Tuples[id]), func(v netip.AddrPort) bool { return slices.Contains(list, v) })
	}
	return drop(a)
}

// drop leaves out sets without members, as an index does.
func drop(m desired.Members) desired.Members {
	for id, list := range m.Peers {
		if len(list) == 0 {
			delete(m.Peers, id)
		}
	}
	for id, list := range m.Tuples {
		if len(list) == 0 {
			delete(m.Tuples, id)
		}
	}
	return m
}

// What two states say alike is in neither of what is between them, and an endpoint that
// only has moved to another profile is in both.
func TestBetween(t *testing.T) {
	policies := desired.Policies{Policies: []desired.Policy{web()}}
	a, b := pod(2, "web", "10.1.0.2"), pod(3, "client", "10.1.0.3")
	before := desired.Build(node(t), policies, []attachment.Record{a, b})
	if from, to := desired.Diff(before, before); len(from.Endpoints)+len(to.Endpoints)+len(from.Profiles)+len(to.Profiles) > 0 || members(from)+members(to) > 0 {
		t.Errorf("between a state and itself: %+v and %+v", from, to)
	}
	b.Labels = map[string]string{"app": "web"}
	after := desired.Build(node(t), policies, []attachment.Record{a, b})
	from, to := desired.Diff(before, after)
	if len(from.Endpoints) != 1 || len(to.Endpoints) != 1 || from.Endpoints[0].ID != b.ID || to.Endpoints[0].Profiles == from.Endpoints[0].Profiles {
		t.Errorf("the pod that has another label: %+v and %+v", from.Endpoints, to.Endpoints)
	}
	if members(from) != 1 || members(to) != 0 {
		t.Errorf("%d members went and %d came, want only the former client to go", members(from), members(to))
	}
	if !from.Restricts(to) {
		t.Error("a pod that is isolated now, and a peer that has gone, do not narrow")
	}
}

// Where one of two loses a further prefix, the other is in both: a backend that knows the prefix
// by its profile must not take it out there.
func TestBetweenSharers(t *testing.T) {
	policies := desired.Policies{Policies: []desired.Policy{web()}}
	prefix := func(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
	a, b, c := pod(2, "web", "10.1.0.2"), pod(3, "web", "10.1.0.3"), pod(4, "web", "10.1.0.4")
	a.ContainerID, b.ContainerID, c.ContainerID = "a", "b", "c"
	a.AllowedSources, b.AllowedSources, c.AllowedSources = prefix("172.30.0.0/16"), prefix("172.30.0.0/16"), prefix("172.31.0.0/16")
	before := desired.Build(node(t), policies, []attachment.Record{a, b, c})
	a.AllowedSources = nil
	from, to := desired.Diff(before, desired.Build(node(t), policies, []attachment.Record{a, b, c}))
	ids := func(s desired.State) (out []mark.ID) {
		for _, e := range s.Endpoints {
			out = append(out, e.ID)
		}
		slices.Sort(out)
		return out
	}
	want := []mark.ID{2, 3}
	if !slices.Equal(ids(from), want) || !slices.Equal(ids(to), want) {
		t.Errorf("endpoints %v and %v, want %v in both", ids(from), ids(to), want)
	}
}

func members(s desired.State) (n int) {
	for _, set := range s.PeerSets {
		n += len(set.Addrs)
	}
	return n
}
