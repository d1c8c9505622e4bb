package desired

import (
	"maps"

	"github.com/podmark/podmark/pkg/attachment"
)

// selected is a policy of which an endpoint is a subject.
type selected struct {
	Policy
	// unsure is set where nobody knows whether it is, as the labels of its namespace are not known: what
	// the policy denies is denied then, and nothing else of it counts.
	unsure bool
}

// key tells it from other policies, and from those of former namespaces of the name.
func (p selected) key() string {
	key := p.String()
	if p.NamespaceUID != "" {
		key += " of " + p.NamespaceUID
	}
	if p.unsure {
		key += " unsure"
	}
	return key
}

// subjects finds the policies that select an endpoint without asking each of them.
type subjects struct {
	// within are the policies of a namespace, by that.
	within map[string][]Policy
	// cluster are those of the cluster, and picked those of them that pick a namespace, by its name and
	// UID, as far as it was asked for.
	cluster []Policy
	picked  map[[2]string][]selected
	labels  namespaceLabels
}

func (p Policies) subjects() *subjects {
	s := &subjects{
		within: map[string][]Policy{}, picked: map[[2]string][]selected{},
		labels: p.namespaceLabels(p.declared),
	}
	for _, policy := range p.Policies {
		if policy.Cluster() {
			s.cluster = append(s.cluster, policy)
		} else {
			s.within[policy.Namespace] = append(s.within[policy.Namespace], policy)
		}
	}
	return s
}

// about lists the policies that select an endpoint. Those of the cluster select none outside of
// Kubernetes, which have no namespace.
func (s *subjects) about(r attachment.Record) (out []selected) {
	for _, policy := range s.within[r.Namespace] {
		if SameNamespace(policy.NamespaceUID, r.NamespaceUID) && policy.Pods.Matches(r.Labels) {
			out = append(out, selected{Policy: policy})
		}
	}
	if r.Namespace == "" {
		return out
	}
	for _, policy := range s.pick(r.Namespace, r.NamespaceUID) {
		if policy.Pods.Matches(r.Labels) {
			out = append(out, policy)
		}
	}
	return out
}

// pick lists the policies of the cluster that pick a namespace.
func (s *subjects) pick(namespace, uid string) []selected {
	id := [2]string{namespace, uid}
	picked, done := s.picked[id]
	if !done && len(s.cluster) > 0 {
		labels, known := s.labels.of(namespace, uid)
		for _, policy := range s.cluster {
			selector := policy.NamespaceSelector
			if unsure := !known && !selector.byName(); unsure || selector.Matches(labels) {
				picked = append(picked, selected{policy, unsure})
			}
		}
		s.picked[id] = picked
	}
	return picked
}

// namespaceLabels tells what labels namespaces have.
type namespaceLabels struct {
	// declared are those of a namespace, and whether it is known.
	declared func(name string) (labels map[string]string, known bool)
	// listed is set where nothing is known of namespaces that are not; else they have no labels.
	listed bool
	// uids are those that are known.
	uids map[string]string
}

// declared are the labels of a namespace that the policies come with.
func (p Policies) declared(name string) (labels map[string]string, known bool) {
	labels, known = p.Namespaces[name]
	return labels, known
}

func (p Policies) namespaceLabels(declared func(string) (map[string]string, bool)) namespaceLabels {
	return namespaceLabels{declared, p.Listed, p.NamespaceUIDs}
}

// of are the labels of a namespace with that of its name, which alone is sure where known is false: of
// one that is not known, and of a former one.
func (l namespaceLabels) of(namespace, uid string) (labels map[string]string, known bool) {
	labels = map[string]string{}
	if SameNamespace(uid, l.uids[namespace]) {
		var declared map[string]string
		declared, known = l.declared(namespace)
		known = known || !l.listed
		maps.Copy(labels, declared)
	}
	labels[MetadataName] = namespace
	return labels, known
}
