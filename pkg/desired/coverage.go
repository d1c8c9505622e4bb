package desired

import (
	"fmt"
	"slices"
	"strings"

	"github.com/podmark/podmark/pkg/attachment"
)

// Coverage is how many of a node's pods are policed, why others are not, and which policies
// select none of them.
type Coverage struct {
	// Pods counts those that are known, hostNetwork pods excluded: they have no endpoint.
	Pods    int `json:"pods"`
	Policed int `json:"policed"`
	// Unpoliced has a reason once, and no reason without pods.
	Unpoliced []Unpoliced `json:"unpoliced,omitempty"`
	// Idle are policies that select no endpoint of the node. Where they come from the
	// Kubernetes API there are none: most select pods of other nodes.
	Idle []IdlePolicy `json:"idle,omitempty"`
	// Unseen is why pods that started without podmark are not known, and not counted; empty
	// where they are.
	Unseen string `json:"unseen,omitempty"`
}

// Unpoliced are the pods that are not policed for one reason.
type Unpoliced struct {
	Reason Gap `json:"reason"`
	Pods   int `json:"pods"`
	// Some are a few of them: "namespace/name", or the container's ID without a pod.
	Some []string `json:"some"`
}

// Gap is why a pod is not policed.
type Gap string

// The gaps.
const (
	// Unasked: its network does not ask for policy.
	Unasked Gap = "none"
	// Unanswered: failOpen let it in, or it is from before podmark, and podmarkd has not
	// policed it since.
	Unanswered Gap = "unanswered"
	// Unapplied: its network takes policies from files, and nobody has applied any, not even
	// none: they may have been lost with a reboot.
	Unapplied Gap = "unapplied"
	// Unmarked: it started without podmark. Only podmarkd sees that.
	Unmarked Gap = "unmarked"
)

// Gaps lists them all.
func Gaps() []Gap { return []Gap{Unasked, Unanswered, Unapplied, Unmarked} }

func (g Gap) String() string {
	return map[Gap]string{
		Unasked:    "because its network asked for no policy",
		Unanswered: "because failOpen let it in or it is from before podmark, and podmarkd does not know its policy",
		Unapplied:  "because its network takes policies from files, and none were applied since the node started or podmark was installed",
		Unmarked:   "because it started without podmark",
	}[g]
}

// IdlePolicy is a policy that selects no endpoint.
type IdlePolicy struct {
	// Tier is that of a policy of the cluster, which has no namespace.
	Tier      Tier   `json:"tier,omitzero"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Reason is one of the Idle ones, and Text says it with its values.
	Reason Idleness `json:"reason"`
	Text   string   `json:"text"`
}

// Idleness is why a policy selects no endpoint.
type Idleness string

// The reasons for which policies select no endpoint.
const (
	// IdleNamespace: nothing is known of its namespace, or no pod here is in one that a policy of the
	// cluster selects.
	IdleNamespace Idleness = "namespace"
	// IdleElsewhere: its namespace is declared, and has no pod here.
	IdleElsewhere Idleness = "elsewhere"
	// IdleUnpoliced: no pod of its namespace is policed.
	IdleUnpoliced Idleness = "unpoliced"
	// IdleLabels: pods of its namespace have no labels.
	IdleLabels Idleness = "labels"
	// IdleSelector: no pod of its namespace has labels that it selects.
	IdleSelector Idleness = "selector"
)

// someOf is how many pods are named.
const someOf = 3

// CoverageOf says who of the records is policed, and counts the unmarked pods, which are
// "namespace/name" by containers; applied is whether policies were ever given to the node, be it
// none. A pod with several endpoints is policed where all of them are, and an unmarked one is not,
// whatever else it has.
func CoverageOf(records []attachment.Record, unmarked map[string]string, applied bool) Coverage {
	pods, gaps := map[string]string{}, map[string]Gap{}
	for _, r := range records {
		pods[r.ContainerID] = NameOf(r)
		if gap := GapOf(r, applied); gap != "" {
			gaps[r.ContainerID] = max(gap, gaps[r.ContainerID]) // of none and another one, that nobody wanted
		}
	}
	for container, name := range unmarked {
		pods[container], gaps[container] = name, Unmarked
	}
	c := Coverage{Pods: len(pods), Policed: len(pods)}
	for _, gap := range Gaps() {
		var names []string
		for id, name := range pods {
			if gaps[id] == gap {
				names = append(names, name)
			}
		}
		c = c.Without(gap, names)
	}
	return c
}

// GapOf is why an endpoint is not policed; empty where it is. What applied is, [CoverageOf] says.
func GapOf(r attachment.Record, applied bool) Gap {
	switch {
	case r.Policed && !applied:
		return Unapplied
	case r.Policed:
		return ""
	case r.Kubernetes:
		return Unanswered
	}
	return Unasked
}

// NameOf is "namespace/name" of the pod, or the container's ID where there is no pod.
func NameOf(r attachment.Record) string {
	if r.Pod == "" {
		return r.ContainerID
	}
	return r.Namespace + "/" + r.Pod
}

// Without is c where pods of its Policed are not, after all.
func (c Coverage) Without(reason Gap, pods []string) Coverage {
	if len(pods) == 0 {
		return c
	}
	c.Policed -= len(pods)
	slices.Sort(pods)
	c.Unpoliced = append(slices.Clone(c.Unpoliced), Unpoliced{reason, len(pods), pods[:min(someOf, len(pods))]})
	return c
}

// Only is c where of the gaps only that one is shown.
func (c Coverage) Only(reason Gap) Coverage {
	c.Unpoliced = slices.DeleteFunc(slices.Clone(c.Unpoliced), func(u Unpoliced) bool { return u.Reason != reason })
	return c
}

// Of counts the pods that are not policed for that reason.
func (c Coverage) Of(reason Gap) (pods int) {
	for _, u := range c.Unpoliced {
		if u.Reason == reason {
			pods += u.Pods
		}
	}
	return pods
}

// Open counts the pods that are not policed although nobody said so.
func (c Coverage) Open() int { return c.Of(Unanswered) + c.Of(Unapplied) + c.Of(Unmarked) }

// String is a line for people: "2 of 3 pods policed, 1 unpoliced because ... (shop/web)".
func (c Coverage) String() string {
	text := fmt.Sprintf("%d of %d pods policed", c.Policed, c.Pods)
	if c.Pods == 0 {
		text = "no pod of this node is known"
	}
	for _, u := range c.Unpoliced {
		more := ""
		if u.Pods > len(u.Some) {
			more = ", ..."
		}
		text += fmt.Sprintf(", %d unpoliced %s (%s%s)", u.Pods, u.Reason, strings.Join(u.Some, ", "), more)
	}
	if c.Unseen != "" {
		text += "; pods that started without podmark are not known: " + c.Unseen
	}
	return text
}

func (p IdlePolicy) String() string {
	policy := Policy{Tier: p.Tier, Namespace: p.Namespace, Name: p.Name}
	return fmt.Sprintf("policy %s selects no endpoint: %s", policy, p.Text)
}

// Idle are the policies that select none of the records, sorted as they are; none without
// a record.
func (p Policies) Idle(records []attachment.Record) (out []IdlePolicy) {
	if len(records) == 0 {
		return nil
	}
	subjects := p.subjects()
	for _, policy := range p.Policies {
		if reason, text := p.idleness(policy, subjects.candidates(policy, records), records); reason != "" {
			out = append(out, IdlePolicy{policy.Tier, policy.Namespace, policy.Name, reason, text})
		}
	}
	return out
}

// candidates are the records in namespaces that the policy is about, whatever their labels are.
func (s *subjects) candidates(policy Policy, records []attachment.Record) (out []attachment.Record) {
	for _, r := range records {
		picks := func(other selected) bool { return other.Cluster() && other.String() == policy.String() }
		switch {
		case !policy.Cluster():
			if r.Namespace == policy.Namespace {
				out = append(out, r)
			}
		case r.Namespace != "" && slices.ContainsFunc(s.pick(r.Namespace, r.NamespaceUID), picks):
			out = append(out, r)
		}
	}
	return out
}

// idleness is why a policy selects none of the records, of which those here are in its namespaces;
// empty where it selects one.
func (p Policies) idleness(policy Policy, here, records []attachment.Record) (Idleness, string) {
	if len(here) == 0 {
		return p.absence(policy, records)
	}
	where := fmt.Sprintf("namespace %q", policy.Namespace)
	if policy.Cluster() {
		where = fmt.Sprintf("the namespaces %q", namespacesOf(here))
	}
	policed := slices.DeleteFunc(slices.Clone(here), func(r attachment.Record) bool { return !r.Policed })
	if len(policed) == 0 {
		return IdleUnpoliced, fmt.Sprintf("no pod of %s is policed", where)
	}
	unlabelled := 0
	for _, r := range policed {
		if policy.Pods.Matches(r.Labels) {
			return "", ""
		}
		if len(r.Labels) == 0 {
			unlabelled++
		}
	}
	if unlabelled > 0 {
		return IdleLabels, fmt.Sprintf("%d of %d endpoints of %s have no labels, which with \"policy\": \"files\" are those of args.cni.labels of the network", unlabelled, len(policed), where)
	}
	return IdleSelector, fmt.Sprintf("no endpoint of %s has labels that match its podSelector %s", where, policy.Pods)
}

// absence is why none of the records is in a namespace of the policy.
func (p Policies) absence(policy Policy, records []attachment.Record) (Idleness, string) {
	if policy.Cluster() {
		return IdleNamespace, fmt.Sprintf("no pod of this node is in a namespace with labels that match its namespaceSelector %s; they are in %q", policy.NamespaceSelector, namespacesOf(records))
	}
	if _, declared := p.Namespaces[policy.Namespace]; declared {
		return IdleElsewhere, fmt.Sprintf("namespace %q has no pod on this node", policy.Namespace)
	}
	return IdleNamespace, fmt.Sprintf("no pod of this node is in namespace %q, and no manifest declares it; they are in %q", policy.Namespace, namespacesOf(records))
}

// namespacesOf lists the namespaces of records, each once; empty stands for what is outside of Kubernetes.
func namespacesOf(records []attachment.Record) (out []string) {
	for _, r := range records {
		out = append(out, r.Namespace)
	}
	slices.Sort(out)
	return slices.Compact(out)
}
