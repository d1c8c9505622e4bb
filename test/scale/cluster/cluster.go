// Package cluster describes a cluster of any size, and how it goes on: namespaces, pods
// as large as an API server stores them, policies, and a sequence of events without an
// end. It is pure: the same options give the same objects and the same events. It must
// not know who watches them.
//
//	c, err := cluster.New(cluster.Options{Seed: 1, Nodes: 200, Pods: 50_000, Namespaces: 2_000, Policies: 5_000, Local: 250})
//	for p := range c.Pods() { ... }
//	e := c.Next()
//
// Pods are replicas of workloads; the first namespaces have more of them than the last.
// A namespace has pods on many nodes, as schedulers spread them, and every node has one
// pod on the host's network. Objects share parts: only their metadata may be written to.
package cluster

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
)

// Mix is what the policies of a cluster mention.
type Mix string

const (
	// SameNamespace policies mention pods of their own namespace only.
	SameNamespace Mix = "same-namespace"
	// FewClusterWide are like that but for one in seven of those for a workload, which
	// names another namespace, and one in fifty of all, which mentions pods of any.
	FewClusterWide Mix = "few-cluster-wide"
	// AllClusterWide policies mention pods of any namespace, but for those that deny.
	AllClusterWide Mix = "all-cluster-wide"
)

// Options are the size of a cluster.
type Options struct {
	Seed                              uint64
	Nodes, Pods, Namespaces, Policies int
	// Local pods, besides the one on the host's network, are on the first node and stay
	// there: events change their labels only. 0 is as many as on any node.
	Local int
	// Together has the local pods be of one workload, so of one namespace.
	Together bool
	Mix      Mix
}

// hostsPerNode is how many addresses a node has for pods, of a /23.
const hostsPerNode = 510

// systemNamespaces are there first.
const systemNamespaces = 2

// Cluster is a cluster as the events up to now have made it.
type Cluster struct {
	options   Options
	rng       *rand.Rand
	workloads []workload
	nodes     []node
	pods      []*pod
	// moving are pods on their way to run or to go, in the order of their next event.
	moving    []*pod
	revisions []int // of policies
	born      int   // pods up to now
}

type workload struct {
	namespace, number int
	name              string
	daemon            bool
	template          *template // of its pods, once there was one
}

type node struct {
	next int   // host number that nobody has had
	free []int // host numbers that were given back
}

// New makes a cluster.
func New(o Options) (*Cluster, error) {
	if o.Local == 0 && o.Nodes > 0 {
		o.Local = (o.Pods - o.Nodes) / o.Nodes
	}
	others := o.Pods - o.Nodes - o.Local
	switch {
	case o.Nodes < 2 || o.Nodes > 1<<15:
		return nil, fmt.Errorf("%d nodes: from 2 to %d are possible", o.Nodes, 1<<15)
	case o.Namespaces <= systemNamespaces:
		return nil, fmt.Errorf("%d namespaces: more than %d are needed", o.Namespaces, systemNamespaces)
	case others < o.Namespaces || o.Local > hostsPerNode || others/(o.Nodes-1) > hostsPerNode*3/4:
		return nil, fmt.Errorf("%d pods with %d on the first of %d nodes in %d namespaces are too few or too many", o.Pods, o.Local, o.Nodes, o.Namespaces)
	case o.Mix != "" && o.Mix != SameNamespace && o.Mix != FewClusterWide && o.Mix != AllClusterWide:
		return nil, fmt.Errorf("%q is no mix of policies: they are %s, %s and %s", o.Mix, SameNamespace, FewClusterWide, AllClusterWide)
	}
	c := &Cluster{
		options: o, rng: rand.New(rand.NewPCG(o.Seed, 0)),
		nodes: make([]node, o.Nodes), revisions: make([]int, o.Policies),
	}
	c.populate()
	return c, nil
}

// populate makes the pods that run at the beginning.
func (c *Cluster) populate() {
	daemon := c.addWorkload(0, "kube-proxy")
	c.workloads[daemon].daemon = true
	replicas := []int{}
	together := 0
	if c.options.Together {
		together = c.options.Local
	}
	for left, i := c.options.Pods-c.options.Nodes-together, 0; left > 0; i++ {
		namespace := i
		if i >= c.options.Namespaces {
			u := c.rng.Float64()
			namespace = int(u * u * float64(c.options.Namespaces))
		}
		w := c.addWorkload(namespace, []string{"web", "api", "worker", "cache", "db", "queue"}[c.rng.IntN(6)])
		n := 1
		// Namespaces that have none yet come first.
		for n < left-max(0, c.options.Namespaces-i-1) && c.rng.Float64() < 0.8 {
			n++
		}
		for range n {
			replicas = append(replicas, w)
		}
		left -= n
	}
	c.rng.Shuffle(len(replicas), func(i, j int) { replicas[i], replicas[j] = replicas[j], replicas[i] })
	for i := range c.nodes {
		c.run(daemon, i)
	}
	if together > 0 {
		w := c.addWorkload(0, "web")
		for range together {
			c.run(w, 0)
		}
	}
	for i, w := range replicas {
		at := 0
		if i >= c.options.Local-together {
			at = 1 + i%(c.options.Nodes-1)
		}
		c.run(w, at)
	}
}

func (c *Cluster) addWorkload(namespace int, app string) int {
	number := len(c.workloads)
	c.workloads = append(c.workloads, workload{namespace: namespace, number: number, name: fmt.Sprintf("%s-%d", app, number)})
	return number
}

// run adds a pod that runs.
func (c *Cluster) run(workload, at int) {
	p := c.birth(workload)
	p.node, p.phase = at, running
	p.host = c.lease(p)
	c.pods = append(c.pods, p)
}

// lease gives a pod an address of its node: a new one, or the one that was given back last.
func (c *Cluster) lease(p *pod) int {
	if c.workloads[p.workload].daemon {
		return 0
	}
	n := &c.nodes[p.node]
	if last := len(n.free) - 1; last >= 0 && (n.next == hostsPerNode || c.rng.IntN(2) == 0) {
		host := n.free[last]
		n.free = n.free[:last]
		return host
	}
	n.next++
	return n.next
}

func (c *Cluster) giveBack(p *pod) {
	if p.host != 0 && !p.lost {
		c.nodes[p.node].free = append(c.nodes[p.node].free, p.host)
		p.lost = true
	}
}

// Namespaces are all there are.
func (c *Cluster) Namespaces() iter.Seq[*corev1.Namespace] {
	return func(yield func(*corev1.Namespace) bool) {
		for i := range c.options.Namespaces {
			if !yield(namespaceObject(i)) {
				return
			}
		}
	}
}

// Pods are those that are there now.
func (c *Cluster) Pods() iter.Seq[*corev1.Pod] {
	return func(yield func(*corev1.Pod) bool) {
		for _, p := range c.pods {
			if !yield(c.object(p)) {
				return
			}
		}
	}
}

// Policies are all there are.
func (c *Cluster) Policies() iter.Seq[*networkingv1.NetworkPolicy] {
	return func(yield func(*networkingv1.NetworkPolicy) bool) {
		for i := range c.options.Policies {
			if !yield(c.policy(i)) {
				return
			}
		}
	}
}

// Node names a node; the first is 0, whose pods are the local ones.
func Node(i int) string { return fmt.Sprintf("node-%05d", i) }

// addresses are those of a pod, of both families.
func (p *pod) addresses() [2]netip.Addr {
	if p.host == 0 {
		return nodeAddresses(p.node)
	}
	v4 := 10<<24 | p.node<<9 | p.host
	v6 := netip.MustParseAddr("fd00:10::").As16()
	v6[6], v6[7], v6[14], v6[15] = byte(p.node>>8), byte(p.node), byte(p.host>>8), byte(p.host)
	return [2]netip.Addr{fromInt(v4), netip.AddrFrom16(v6)}
}

func nodeAddresses(i int) [2]netip.Addr {
	v6 := netip.MustParseAddr("fd00:20::1").As16()
	v6[6], v6[7] = byte(i>>8), byte(i)
	return [2]netip.Addr{fromInt(172<<24 | 16<<16 | i + 1), netip.AddrFrom16(v6)}
}

func fromInt(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}
