package cluster

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/podmark/podmark/pkg/apply"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/ident"
	"github.com/podmark/podmark/pkg/policy"
)

// view is what is known. Everything in it is under the cluster's lock.
type view struct {
	pods       map[name]*pod
	namespaces map[string]map[string]string
	policies   map[string]map[string]*known // by namespace and name
	index      *desired.Index
	// endpoints are the pods of the node that have an attachment, with their labels.
	endpoints map[name]map[string]string
	// refused are the annotations of attachments that are not in force.
	refused map[ident.Key]string
	// applied is what is enforced; before the first round, what a former podmarkd left.
	applied desired.Policies
	begun   bool
	// lost is set where nobody knows what is in the kernel.
	lost bool
	// dirty is set when a round would decide otherwise than the last one, besides what the
	// index says.
	dirty bool
}

// known is a policy of a namespace of which the node has pods.
type known struct {
	desired.Policy
	needs needs
	since time.Time
	// gone is set once the API has it no more. It is enforced until that is known not to
	// be the end of its namespace, whose pods may outlive their policies.
	gone bool
}

func newKnown(p desired.Policy, since time.Time) *known {
	return &known{Policy: p, needs: needsOf(p), since: since}
}

func newView() view {
	return view{
		pods: map[name]*pod{}, namespaces: map[string]map[string]string{}, policies: map[string]map[string]*known{},
		index: desired.NewIndex(), endpoints: map[name]map[string]string{}, refused: map[ident.Key]string{}, dirty: true,
	}
}

// take takes over an object that a watch has seen.
func (c *Cluster) take(s *watching, v any) name {
	switch v := v.(type) {
	case *pod:
		return c.takePod(s, v)
	case *corev1.Namespace:
		labels := map[string]string{}
		maps.Copy(labels, v.Labels)
		labels[desired.MetadataName] = v.Name
		if labels = c.words.labels(labels); !maps.Equal(c.namespaces[v.Name], labels) {
			c.namespaces[v.Name] = labels
			c.index.Label(v.Name, labels)
			c.dirty = true
		}
		return name{name: v.Name}
	case *networkingv1.NetworkPolicy:
		c.takePolicy(v)
		return name{v.Namespace, v.Name}
	}
	return name{}
}

func (c *Cluster) takePod(s *watching, p *pod) name {
	n := name{p.Namespace, p.Name}
	old := c.pods[n]
	if old != nil {
		p.seen, p.served = old.seen, old.served && old.uid() == p.uid()
		if old.version > p.version {
			p = old // another watch was quicker
		}
	}
	if !slices.Contains(p.seen, s) {
		p.seen = append(slices.Clip(p.seen), s)
	}
	if p == old {
		return n
	}
	c.pods[n] = p
	if p.own != nil && (old == nil || old.own == nil || *old.own != *p.own || !maps.Equal(old.Labels, p.Labels) || !slices.Equal(old.Ports, p.Ports)) {
		c.dirty = true
	}
	c.enrol(n, p)
	return n
}

// enrol puts a pod where others may be allowed to speak to it, or takes it out. One that
// had an attachment here has its addresses by that, and when that is gone has none.
func (c *Cluster) enrol(n name, p *pod) {
	_, served := c.endpoints[n]
	p.served = p.served || served
	if p.peer && !p.served {
		c.index.Put(&p.Pod, p.rank)
	} else {
		c.index.Remove(n.namespace, n.name)
	}
}

func (c *Cluster) takePolicy(v *networkingv1.NetworkPolicy) {
	compiled, unclear := policy.Object(v)
	in := c.policies[v.Namespace]
	if in == nil {
		in = map[string]*known{}
		c.policies[v.Namespace] = in
	}
	old := in[v.Name]
	if old != nil && !old.gone && reflect.DeepEqual(old.Policy, compiled) {
		return
	}
	if unclear != nil {
		c.Log.Warn("a part of a policy is not understood, and allows nothing", "error", unclear)
	}
	in[v.Name] = newKnown(compiled, time.Now())
	c.dirty = true
}

// drop takes over that a watch sees something no more.
func (c *Cluster) drop(s *watching, n name) {
	switch s.Kind {
	case Pods:
		p := c.pods[n]
		if p == nil {
			return
		}
		if p.seen = slices.DeleteFunc(slices.Clone(p.seen), func(other *watching) bool { return other == s }); len(p.seen) == 0 {
			delete(c.pods, n)
			c.index.Remove(n.namespace, n.name)
		}
	case Namespaces:
		delete(c.namespaces, n.name)
		c.index.Label(n.name, nil)
		c.dirty = true
	case Policies:
		if p := c.policies[n.namespace][n.name]; p != nil && !p.gone {
			p.gone = true
			c.outlive(n)
		}
	}
}

// seenBy lists what a watch sees.
func (c *Cluster) seenBy(s *watching) map[name]bool {
	out := map[name]bool{}
	switch s.Kind {
	case Pods:
		for n, p := range c.pods {
			if slices.Contains(p.seen, s) {
				out[n] = true
			}
		}
	case Namespaces:
		for n := range c.namespaces {
			out[name{name: n}] = true
		}
	case Policies:
		for n, p := range c.policies[s.Namespace] {
			if !p.gone {
				out[name{s.Namespace, n}] = true
			}
		}
	}
	return out
}

// forget drops what only a watch that has ended saw.
func (c *Cluster) forget(s *watching) {
	s.ended = true
	if s.Kind == Policies {
		delete(c.policies, s.Namespace)
		return
	}
	for n := range c.seenBy(s) {
		c.drop(s, n)
	}
}

// world is what is known of namespaces.
func (c *Cluster) world() world {
	return world{labels: c.namespaces, known: c.synced(Watch{Kind: Namespaces})}
}

// synced reports whether all that a watch would see is known.
func (c *Cluster) synced(w Watch) bool {
	for _, by := range w.coveredBy() {
		if s := c.watches[by]; s != nil && s.synced {
			return true
		}
	}
	return false
}

// crowd lists the labels of the node's pods by namespace, with those that are coming.
func (c *Cluster) crowd() map[string][]map[string]string {
	out := map[string][]map[string]string{}
	for n, labels := range c.endpoints {
		out[n.namespace] = append(out[n.namespace], labels)
	}
	for n := range c.coming {
		if p := c.pods[n]; p != nil {
			out[n.namespace] = append(out[n.namespace], p.Labels)
		} else if out[n.namespace] == nil {
			out[n.namespace] = []map[string]string{}
		}
	}
	return out
}

// hold is how long a policy may wait for what it names to be known: until then its former
// self is enforced, so that peers that go on being allowed are not cut off.
const hold = 2 * time.Second

// effective lists the policies that some pod of the node is selected by. waits is set
// where one of them is not enforced yet as it is.
func (c *Cluster) effective(now time.Time) (list []desired.Policy, waits bool) {
	w := c.world()
	applied := map[name]desired.Policy{}
	for _, p := range c.applied.Policies {
		applied[name{p.Namespace, p.Name}] = p
	}
	for namespace, pods := range c.crowd() {
		for n, p := range c.policies[namespace] {
			selects := func(p desired.Policy) bool {
				return slices.ContainsFunc(pods, func(labels map[string]string) bool { return p.Pods.Matches(labels) })
			}
			former, was := applied[name{namespace, n}]
			switch {
			case !selects(p.Policy) && !(was && selects(former)):
			case now.Sub(p.since) > hold || c.ready(p, w):
				if selects(p.Policy) {
					list = append(list, p.Policy)
				}
			default:
				waits = true
				if was {
					list = append(list, former)
				}
			}
		}
	}
	slices.SortFunc(list, func(a, b desired.Policy) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return list, waits
}

// ready reports whether all that a policy means is known.
func (c *Cluster) ready(p *known, w world) bool {
	for _, watch := range p.needs.in(w) {
		if !c.synced(watch) {
			return false
		}
	}
	return true
}

// decide is what is to be enforced from now on, given the attachments.
func (c *Cluster) decide(records []ident.Record) apply.Revision {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.round++
	var rev apply.Revision
	rev.Records = c.informed(records)
	if c.dirty {
		if next, waits := c.next(); !c.begun || !reflect.DeepEqual(next, c.applied) {
			rev.Policies = &next
			c.index.Follow(next)
			c.applied, c.dirty = next, waits
		} else {
			c.dirty = waits
		}
	}
	if rev.Unknown = c.lost || !c.begun; !rev.Unknown { // all sets are filled then
		rev.Gone, rev.Come = c.index.Changes()
	}
	c.index.Settle()
	c.begun, c.lost = true, false
	return rev
}

// next is what the node's policies are to be. waits is set where that will change by
// itself.
func (c *Cluster) next() (next desired.Policies, waits bool) {
	next.Policies, waits = c.effective(time.Now())
	for n := range c.crowd() {
		if labels := c.namespaces[n]; len(labels) > 0 {
			if next.Namespaces == nil {
				next.Namespaces = map[string]map[string]string{}
			}
			next.Namespaces[n] = labels
		}
	}
	return next, waits
}

// sources are the prefixes that a pod with an attachment may send from besides. Where its
// annotation is wrong, or asks for more than the network allows or for what is another's
// already, they stay what they were: that is said once.
func (c *Cluster) sources(r ident.Record, p *pod, all []ident.Record) []netip.Prefix {
	list, err := config.Sources(p.own.sources, r.SourceBound)
	if err == nil {
		err = contended(r, list, all)
	}
	if err == nil {
		delete(c.refused, r.Key)
		return list
	}
	if c.refused[r.Key] != p.own.sources {
		c.Log.Warn("a pod asks for sources that it may not have, and keeps those that it had", "pod", r.Namespace+"/"+r.Pod, "has", r.Sources, "error", err)
		c.refused[r.Key] = p.own.sources
	}
	if !r.Kubernetes { // what it had was the whole network's
		return nil
	}
	return r.Sources
}

// contended says whose the prefixes are already, in part, that a pod asks for.
func contended(r ident.Record, list []netip.Prefix, all []ident.Record) error {
	r.Sources = list
	for _, other := range all {
		if p, both := r.Contends(other.Endpoint); both && other.Key != r.Key {
			return fmt.Errorf("annotation %s names %s, from which pod %s/%s behind %s may send already", config.SourcesAnnotation, p, other.Namespace, other.Pod, r.Interface)
		}
	}
	return nil
}

// informed takes over which pods have attachments, and returns those of which the API
// says something else than they have noted.
func (c *Cluster) informed(records []ident.Record) (changed []ident.Record) {
	endpoints := map[name]map[string]string{}
	var addresses []netip.Addr
	records = slices.Clone(records)
	for i, r := range records {
		n := name{r.Namespace, r.Pod}
		addresses = append(addresses, r.Addresses...)
		if !r.Kubernetes && (c.Follows == nil || !c.Follows(r.Network)) {
			continue
		}
		if p := c.pods[n]; p.known(r.UID) {
			sources := c.sources(r, p, records)
			if !r.Kubernetes || !r.Policed || !maps.Equal(r.Labels, p.Labels) || !slices.Equal(r.Ports, p.Ports) || !slices.Equal(r.Sources, sources) {
				r.Kubernetes, r.Policed, r.Labels, r.Ports, r.Sources = true, true, p.Labels, p.Ports, sources
				records[i] = r
				changed = append(changed, r)
			}
		}
		if r.Kubernetes {
			endpoints[n] = r.Labels
			delete(c.coming, n)
		}
	}
	maps.DeleteFunc(c.refused, func(k ident.Key, _ string) bool {
		return !slices.ContainsFunc(records, func(r ident.Record) bool { return r.Key == k })
	})
	before := c.endpoints
	c.endpoints = endpoints
	c.dirty = c.dirty || !maps.EqualFunc(before, endpoints, maps.Equal)
	c.index.Claim(addresses)
	for n := range before {
		if _, still := endpoints[n]; !still && c.pods[n] != nil {
			c.enrol(n, c.pods[n])
		}
	}
	for n := range endpoints {
		if _, already := before[n]; !already && c.pods[n] != nil {
			c.enrol(n, c.pods[n])
		}
	}
	return changed
}
