package desired

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/podmark/podmark/pkg/config"
)

// Policies is the compiled policy of a node, in the form that is stored on
// disk and read by the plugin. It needs no Kubernetes types.
type Policies struct {
	// Policies are sorted by namespace and name, those of the cluster first.
	Policies []Policy `json:"policies,omitempty"`
	// Namespaces holds the labels of the namespaces that were declared. Every
	// namespace has kubernetes.io/metadata.name besides, declared or not.
	Namespaces map[string]map[string]string `json:"namespaces,omitempty"`
	// Listed is set where nothing is known of others: a selector of labels picks none of them,
	// not even one for those that lack a label. Else they have no labels.
	Listed bool `json:"listed,omitempty"`
	// NamespaceUIDs are the UIDs of those that are known. Labels are theirs, and not those
	// of a former namespace of the name.
	NamespaceUIDs map[string]string `json:"namespaceUIDs,omitempty"`
}

// Tier is a place in the order in which policies are asked: lower ones first. One that decides keeps
// the packet from those after it, and a Pass skips the rest of its own.
type Tier int8

// The tiers of policy.networking.k8s.io, and that of NetworkPolicies between them.
const (
	AdminTier         Tier = -1
	NetworkPolicyTier Tier = 0
	BaselineTier      Tier = 1
)

// Tiers lists them in their order.
var Tiers = [...]Tier{AdminTier, NetworkPolicyTier, BaselineTier}

func (t Tier) String() string { return tierNames[t] }

var tierNames = map[Tier]string{AdminTier: "Admin", NetworkPolicyTier: "NetworkPolicy", BaselineTier: "Baseline"}

// MarshalText is the name of the tier.
func (t Tier) MarshalText() ([]byte, error) { return marshalName(t, tierNames) }

// UnmarshalText takes the name of a tier.
func (t *Tier) UnmarshalText(text []byte) error { return unmarshalName(t, text, tierNames) }

// Action is what becomes of a packet that a rule matches.
type Action uint8

// Allow and Deny are final, and Pass asks the next tier.
const (
	Allow Action = iota
	Deny
	Pass
)

func (a Action) String() string { return actionNames[a] }

var actionNames = map[Action]string{Allow: "Allow", Deny: "Deny", Pass: "Pass"}

// MarshalText is the name of the action.
func (a Action) MarshalText() ([]byte, error) { return marshalName(a, actionNames) }

// UnmarshalText takes the name of an action.
func (a *Action) UnmarshalText(text []byte) error { return unmarshalName(a, text, actionNames) }

func marshalName[T comparable](v T, names map[T]string) ([]byte, error) {
	if name, ok := names[v]; ok {
		return []byte(name), nil
	}
	return nil, fmt.Errorf("%T %v has no name", v, v)
}

func unmarshalName[T comparable](v *T, text []byte, names map[T]string) error {
	for value, name := range names {
		if name == string(text) {
			*v = value
			return nil
		}
	}
	return fmt.Errorf("there is no %T %q", *v, text)
}

// Policy is one policy, defaulted and validated.
type Policy struct {
	// Tier is that of NetworkPolicies where it says nothing. Priority is the order inside another
	// tier, 0 to 1000, lower ones first, and among equals that of the names.
	Tier     Tier  `json:"tier,omitzero"`
	Priority int32 `json:"priority,omitzero"`
	// Namespace is that of a NetworkPolicy. Policies of the other tiers are the cluster's, and have none.
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// NamespaceUID is that of the namespace. Empty is any of the name, here and wherever
	// else a namespace has a UID.
	NamespaceUID string `json:"namespaceUID,omitempty"`
	// NamespaceSelector picks, for a policy of the cluster, the namespaces whose pods it is about.
	NamespaceSelector Selector `json:"namespaceSelector,omitempty"`
	// Pods picks, inside these namespaces, the pods that the policy is about.
	Pods Selector `json:"pods,omitempty"`
	// Ingress and Egress are nil where the policy says nothing about that direction. A
	// NetworkPolicy isolates in the others: without rules, it denies everything. A policy of the
	// cluster isolates in none: what no rule of it matches is left to the policies after it.
	Ingress *Isolation `json:"ingress,omitempty"`
	Egress  *Isolation `json:"egress,omitempty"`
	// Audit is set for a policy that is being tried out: see [Profile].
	Audit bool `json:"audit,omitempty"`
}

// Cluster reports whether the policy is the cluster's, and not that of a namespace.
func (p Policy) Cluster() bool { return p.Tier != NetworkPolicyTier }

// String is the policy's "namespace/name", or its "Tier/name": no namespace has a name with
// upper-case letters.
func (p Policy) String() string {
	if p.Cluster() {
		return p.Tier.String() + "/" + p.Name
	}
	return p.Namespace + "/" + p.Name
}

// Of is p as a policy of the namespace of that UID, whose pods its peers are where they
// name no other. One of the cluster is that of no namespace.
func (p Policy) Of(uid string) Policy {
	if p.Cluster() {
		return p
	}
	p.NamespaceUID = uid
	of := func(i *Isolation) *Isolation {
		if i == nil {
			return nil
		}
		out := Isolation{Rules: slices.Clone(i.Rules)}
		for n, r := range out.Rules {
			r.Peers = slices.Clone(r.Peers)
			for m := range r.Peers {
				if r.Peers[m].Namespace == p.Namespace {
					r.Peers[m].NamespaceUID = uid
				}
			}
			out.Rules[n] = r
		}
		return &out
	}
	p.Ingress, p.Egress = of(p.Ingress), of(p.Egress)
	return p
}

// SameNamespace reports whether two UIDs can be of one namespace, whose name they share.
func SameNamespace(a, b string) bool { return a == b || a == "" || b == "" }

// Isolation is what one policy says in one direction.
type Isolation struct {
	Rules []Rule `json:"rules,omitempty"`
}

// Rule is about traffic whose other side is any of Peers or Blocks and whose
// destination port is any of Ports or NamedPorts.
type Rule struct {
	// Name is what its author calls the rule, at most 100 characters; empty in a NetworkPolicy.
	Name string `json:"name,omitempty"`
	// Action is Allow in every rule of a NetworkPolicy.
	Action Action `json:"action,omitzero"`
	// Peers and Blocks both empty mean anyone.
	Peers []Peer `json:"peers,omitempty"`
	// Blocks are disjoint, masked prefixes, with the exceptions of each ipBlock
	// already taken out.
	Blocks []netip.Prefix `json:"blocks,omitempty"`
	// MatchNone is set where peers or ports were written and none is left of them: ipBlocks
	// that are excepted away, what is not understood. Without it the empty lists would
	// mean anyone, or every port.
	MatchNone bool `json:"nobody,omitempty"`
	// Ports and NamedPorts both empty mean every protocol and port.
	Ports      []Port      `json:"ports,omitempty"`
	NamedPorts []NamedPort `json:"namedPorts,omitempty"`
}

// Nodes stands for the namespace of the nodes of the cluster: they are peers as pods of it would be,
// by their labels and addresses. No namespace can have the name.
const Nodes = "/nodes"

// Peer selects pods, in one namespace or in those a selector picks, or nodes.
type Peer struct {
	// Namespace is set for a peer without a namespaceSelector. It is [Nodes] for one of nodes.
	Namespace    string `json:"namespace,omitempty"`
	NamespaceUID string `json:"namespaceUID,omitempty"`
	// NamespaceSelector is used when Namespace is empty.
	NamespaceSelector Selector `json:"namespaceSelector,omitempty"`
	// Unsure has NamespaceSelector pick namespaces of which the labels are not known, too: what a
	// rule denies to some of them, it denies to those.
	Unsure bool     `json:"unsure,omitempty"`
	Pods   Selector `json:"pods,omitempty"`
}

// Protocol is an IANA protocol number.
type Protocol uint8

// The protocols that have ports.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// String is the protocol's name in lower case, or its number where it has none.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	}
	return fmt.Sprintf("%d", uint8(p))
}

// PortRange is an inclusive range of ports, 0 to 65535.
type PortRange = config.PortRange

// AllPorts is the range of a rule that names a protocol and no port.
var AllPorts = PortRange{First: 0, Last: 65535}

// Port is a protocol together with a range of destination ports.
type Port struct {
	Protocol Protocol `json:"protocol"`
	PortRange
}

// NamedPort is whatever number the destination pod gives the name, for the
// protocol. A pod without such a port, and what is no pod, has none.
type NamedPort struct {
	Protocol Protocol `json:"protocol"`
	Name     string   `json:"name"`
}

// MergePorts sorts ports and joins those that overlap or touch.
func MergePorts(ports []Port) []Port {
	ports = slices.Clone(ports)
	slices.SortFunc(ports, func(a, b Port) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.First, b.First))
	})
	var merged []Port
	for _, p := range ports {
		if n := len(merged); n > 0 {
			last := &merged[n-1]
			if last.Protocol == p.Protocol && int(p.First) <= int(last.Last)+1 {
				last.Last = max(last.Last, p.Last)
				continue
			}
		}
		merged = append(merged, p)
	}
	return merged
}

// MergeRanges sorts ranges and joins those that overlap or touch. The result is
// not nil.
func MergeRanges(ranges []PortRange) []PortRange {
	ports := make([]Port, len(ranges))
	for i, r := range ranges {
		ports[i] = Port{PortRange: r}
	}
	ports = MergePorts(ports)
	out := make([]PortRange, len(ports))
	for i, p := range ports {
		out[i] = p.PortRange
	}
	return out
}

// Selector is a label selector: all requirements must hold. The zero value
// matches everything.
type Selector []Requirement

// Requirement is one condition on one label.
type Requirement struct {
	Key    string   `json:"key"`
	Op     Op       `json:"op"`
	Values []string `json:"values,omitempty"`
}

// Op is the operator of a Requirement.
type Op string

// The operators of metav1.LabelSelector; matchLabels is In with one value.
const (
	In           Op = "In"
	NotIn        Op = "NotIn"
	Exists       Op = "Exists"
	DoesNotExist Op = "DoesNotExist"
)

// Matches reports whether labels satisfy every requirement. As in Kubernetes,
// NotIn holds for a label that is absent.
func (s Selector) Matches(labels map[string]string) bool {
	return s.matches(labelMap(labels))
}

// labeled tells the value that a key has, and whether it has one.
type labeled interface {
	Get(key string) (value string, ok bool)
}

// labelMap is what a [LabelSet] is too.
type labelMap map[string]string

func (m labelMap) Get(key string) (value string, ok bool) {
	value, ok = m[key]
	return value, ok
}

func (s Selector) matches(labels labeled) bool {
	for _, r := range s {
		value, present := labels.Get(r.Key)
		var ok bool
		switch r.Op {
		case In:
			ok = present && slices.Contains(r.Values, value)
		case NotIn:
			ok = !present || !slices.Contains(r.Values, value)
		case Exists:
			ok = present
		case DoesNotExist:
			ok = !present
		}
		if !ok {
			return false
		}
	}
	return true
}

// String is the selector as kubectl -l takes it: "app=web,tier in (a,b),!old".
func (s Selector) String() string {
	parts := make([]string, len(s))
	for i, r := range s {
		switch values := strings.Join(r.Values, ","); {
		case r.Op == Exists:
			parts[i] = r.Key
		case r.Op == DoesNotExist:
			parts[i] = "!" + r.Key
		case r.Op == NotIn:
			parts[i] = fmt.Sprintf("%s notin (%s)", r.Key, values)
		case len(r.Values) == 1:
			parts[i] = r.Key + "=" + values
		default:
			parts[i] = fmt.Sprintf("%s in (%s)", r.Key, values)
		}
	}
	return strings.Join(parts, ",")
}

// byName reports whether the selector of a namespace asks for no label but its name.
func (s Selector) byName() bool {
	return !slices.ContainsFunc(s, func(r Requirement) bool { return r.Key != MetadataName })
}

// canonical is a form in which equal selectors are equal strings, and no others.
func (s Selector) canonical() string {
	parts := make([]string, 0, len(s))
	for _, r := range s {
		values := slices.Clone(r.Values)
		slices.Sort(values)
		parts = append(parts, framed(append([]string{r.Key, string(r.Op)}, slices.Compact(values)...)))
	}
	slices.Sort(parts)
	return framed(slices.Compact(parts))
}

// framed writes parts one after the other, each after its length, so that no two lists of
// parts read alike.
func framed(parts []string) string {
	var b strings.Builder
	for _, p := range parts {
		b.WriteString(strconv.Itoa(len(p)))
		b.WriteByte(':')
		b.WriteString(p)
	}
	return b.String()
}

// MetadataName is the label every namespace carries with its own name.
const MetadataName = "kubernetes.io/metadata.name"
