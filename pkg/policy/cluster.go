package policy

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"go4.org/netipx"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/podmark/podmark/pkg/desired"
)

// ClusterObject compiles a ClusterNetworkPolicy that an API server has stored, which it leaves as it
// is. Nothing is refused, and whatever is not understood fails closed, by the action of its rule as
// the API asks (policy.networking.k8s.io/v1alpha2):
//
//   - a peer, a network or a protocol matches nothing where the rule accepts, and makes a rule that
//     denies or passes one that denies everything;
//   - an action is taken for Deny;
//   - of a policy whose tier or subject is not understood, only what it denies counts: in tier Admin,
//     and for all pods of which the subject does not say that they are others.
//
// domainNames match nothing.
//
// The policy is to be enforced beside the error, which joins one error per thing that was not
// understood: "ClusterNetworkPolicy NAME: FIELD: what is wrong".
func ClusterObject(p *v1alpha2.ClusterNetworkPolicy) (desired.Policy, error) {
	compiled, unclear := compileCluster(p)
	var errs []error
	for _, err := range unclear {
		errs = append(errs, fmt.Errorf("ClusterNetworkPolicy %s: %w", p.Name, err))
	}
	return compiled, errors.Join(errs...)
}

// A peer of an ingress rule is one of an egress rule, with fewer kinds.
type (
	clusterPeer     = v1alpha2.ClusterNetworkPolicyEgressPeer
	clusterProtocol = v1alpha2.ClusterNetworkPolicyProtocol
)

// clusterRule is an ingress or an egress rule. The two differ in what they call their peers, and in
// the kinds that these can be of.
type clusterRule struct {
	at        *field.Path // spec.ingress[0]
	side      string      // from, to
	name      string
	action    v1alpha2.ClusterNetworkPolicyRuleAction
	peers     []clusterPeer
	protocols []clusterProtocol
}

func clusterRules(spec v1alpha2.ClusterNetworkPolicySpec) (ingress, egress []clusterRule) {
	at := field.NewPath("spec")
	for i, r := range spec.Ingress {
		var peers []clusterPeer
		for _, p := range r.From {
			peers = append(peers, clusterPeer{Namespaces: p.Namespaces, Pods: p.Pods})
		}
		ingress = append(ingress, clusterRule{at.Child("ingress").Index(i), "from", r.Name, r.Action, peers, r.Protocols})
	}
	for i, r := range spec.Egress {
		egress = append(egress, clusterRule{at.Child("egress").Index(i), "to", r.Name, r.Action, r.To, r.Protocols})
	}
	return ingress, egress
}

// compileCluster is what [ClusterObject] does, with the errors by fields.
func compileCluster(p *v1alpha2.ClusterNetworkPolicy) (desired.Policy, field.ErrorList) {
	spec := field.NewPath("spec")
	compiled := desired.Policy{Name: p.Name, Tier: desired.AdminTier, Priority: p.Spec.Priority}
	var errs field.ErrorList
	switch p.Spec.Tier {
	case v1alpha2.AdminTier:
	case v1alpha2.BaselineTier:
		compiled.Tier = desired.BaselineTier
	default:
		errs = append(errs, field.NotSupported(spec.Child("tier"), p.Spec.Tier, tiers))
	}
	namespaces, pods, unclear := subject(p.Spec.Subject, spec.Child("subject"))
	compiled.NamespaceSelector, compiled.Pods, errs = namespaces, pods, append(errs, unclear...)
	onlyDenies := len(errs) > 0

	audit, unclear := audited(p.Annotations)
	compiled.Audit, errs = audit, append(errs, unclear...)

	ingress, egress := clusterRules(p.Spec)
	for _, side := range []struct {
		rules []clusterRule
		to    **desired.Isolation
	}{{ingress, &compiled.Ingress}, {egress, &compiled.Egress}} {
		if len(side.rules) == 0 {
			continue
		}
		*side.to = &desired.Isolation{}
		for _, r := range side.rules {
			rule, unclear := r.compile()
			if errs = append(errs, unclear...); onlyDenies && rule.Action != desired.Deny {
				rule = desired.Rule{Name: r.name, MatchNone: true}
			}
			(*side.to).Rules = append((*side.to).Rules, rule)
		}
	}
	return compiled, errs
}

var (
	tiers   = []v1alpha2.Tier{v1alpha2.AdminTier, v1alpha2.BaselineTier}
	actions = map[v1alpha2.ClusterNetworkPolicyRuleAction]desired.Action{
		v1alpha2.ClusterNetworkPolicyRuleActionAccept: desired.Allow,
		v1alpha2.ClusterNetworkPolicyRuleActionDeny:   desired.Deny,
		v1alpha2.ClusterNetworkPolicyRuleActionPass:   desired.Pass,
	}
)

// subject picks the pods that a policy is about; of what is not understood, more than was meant.
func subject(
	s v1alpha2.ClusterNetworkPolicySubject,
	at *field.Path,
) (namespaces, pods desired.Selector, errs field.ErrorList) {
	switch {
	case s.Namespaces != nil && s.Pods != nil:
		return nil, nil, field.ErrorList{field.Forbidden(at, "namespaces excludes pods")}
	case s.Namespaces != nil:
		namespaces, errs = selector(s.Namespaces, at.Child("namespaces"))
		return namespaces, nil, errs
	case s.Pods != nil:
		return namespacedPod(*s.Pods, at.Child("pods"))
	}
	return nil, nil, field.ErrorList{field.Required(at, "a subject needs namespaces or pods")}
}

func namespacedPod(
	p v1alpha2.NamespacedPod,
	at *field.Path,
) (namespaces, pods desired.Selector, errs field.ErrorList) {
	namespaces, errs = selector(&p.NamespaceSelector, at.Child("namespaceSelector"))
	pods, unclear := selector(&p.PodSelector, at.Child("podSelector"))
	return namespaces, pods, append(errs, unclear...)
}

// compile makes a rule fail closed where a part of it is not understood.
func (r clusterRule) compile() (desired.Rule, field.ErrorList) {
	var errs field.ErrorList
	action, ok := actions[r.action]
	if !ok {
		action = desired.Deny
		errs = append(errs, field.NotSupported(r.at.Child("action"), r.action, slices.Sorted(maps.Keys(actions))))
	}
	peers, blocks, unclear := r.compilePeers(action)
	ports, names, wrong := compileProtocols(r.protocols, r.at.Child("protocols"))
	unclear = append(unclear, wrong...)
	switch {
	case len(unclear) > 0 && action != desired.Allow:
		return desired.Rule{Name: r.name, Action: desired.Deny}, append(errs, unclear...)
	case len(peers)+len(blocks) == 0, len(r.protocols) > 0 && len(ports)+len(names) == 0:
		return desired.Rule{Name: r.name, Action: action, MatchNone: true}, append(errs, unclear...)
	}
	return desired.Rule{Name: r.name, Action: action, Peers: peers, Blocks: blocks, Ports: ports, NamedPorts: names},
		append(errs, unclear...)
}

// compilePeers leaves out what it does not understand, and names it. domainNames are understood,
// and nobody.
func (r clusterRule) compilePeers(action desired.Action) ([]desired.Peer, []netip.Prefix, field.ErrorList) {
	var (
		peers    []desired.Peer
		networks netipx.IPSetBuilder
		errs     field.ErrorList
	)
	at := r.at.Child(r.side)
	if len(r.peers) == 0 {
		return nil, nil, field.ErrorList{field.Required(at, "a rule needs a peer")}
	}
	for i, peer := range r.peers {
		at := at.Index(i)
		if unclear := r.validatePeerKind(peer, at); len(unclear) > 0 {
			errs = append(errs, unclear...)
			continue
		}
		if peer.DomainNames != nil && action != desired.Allow {
			errs = append(errs, field.Forbidden(at.Child("domainNames"), "only a rule that accepts can have them"))
		}
		if peer.Networks != nil || peer.DomainNames != nil {
			errs = append(errs, addNetworks(&networks, peer.Networks, at.Child("networks"))...)
			continue
		}
		p, unclear := compileClusterPeer(peer, at)
		if errs = append(errs, unclear...); len(unclear) == 0 {
			p.Unsure = action == desired.Deny && p.Namespace == ""
			peers = append(peers, p)
		}
	}
	slices.SortFunc(peers, comparePeers)
	peers = slices.CompactFunc(peers, func(a, b desired.Peer) bool { return comparePeers(a, b) == 0 })
	blocks, unclear := prefixes(&networks, at)
	return peers, blocks, append(errs, unclear...)
}

// validatePeerKind judges whether a peer says in exactly one way whom it means. One that seems to say
// nothing may do so in a field that is not known here.
func (r clusterRule) validatePeerKind(p clusterPeer, at *field.Path) field.ErrorList {
	kinds, known := 0, "namespaces or pods"
	pods := p.Namespaces != nil || p.Pods != nil
	both := p.Namespaces != nil && p.Pods != nil
	for _, set := range []bool{pods, both, p.Nodes != nil, p.Networks != nil, p.DomainNames != nil} {
		if set {
			kinds++
		}
	}
	if r.side == "to" {
		known = "namespaces, pods, nodes, networks or domainNames"
	}
	switch kinds {
	case 0:
		return field.ErrorList{field.Required(at, "a peer needs "+known)}
	case 1:
		return nil
	}
	return field.ErrorList{field.Forbidden(at, "a peer needs one of "+known)}
}

// compileClusterPeer translates a peer of pods or nodes.
func compileClusterPeer(p clusterPeer, at *field.Path) (out desired.Peer, errs field.ErrorList) {
	switch {
	case p.Namespaces != nil:
		out.NamespaceSelector, errs = selector(p.Namespaces, at.Child("namespaces"))
	case p.Nodes != nil:
		out.Namespace = desired.Nodes
		out.Pods, errs = selector(p.Nodes, at.Child("nodes"))
	default:
		out.NamespaceSelector, out.Pods, errs = namespacedPod(*p.Pods, at.Child("pods"))
	}
	return out, errs
}

// addNetworks leaves out what is no CIDR.
func addNetworks(to *netipx.IPSetBuilder, networks []v1alpha2.CIDR, at *field.Path) (errs field.ErrorList) {
	for i, text := range networks {
		cidr, err := parseCIDR(string(text))
		if err != nil {
			errs = append(errs, field.Invalid(at.Index(i), text, err.Error()))
			continue
		}
		to.AddPrefix(cidr)
	}
	return errs
}

// compileProtocols translates protocols to disjoint ranges of ports and to names, both sorted. A name
// is that of a port of any protocol.
func compileProtocols(
	protocols []clusterProtocol,
	at *field.Path,
) (ports []desired.Port, names []desired.NamedPort, errs field.ErrorList) {
	for i, p := range protocols {
		at := at.Index(i)
		kinds := portKindsOf(p)
		named := p.DestinationNamedPort != ""
		switch {
		case len(kinds) == 0 && !named:
			errs = append(errs, field.Required(at, "a protocol needs tcp, udp, sctp or destinationNamedPort"))
			continue
		case len(kinds) > 1 || len(kinds) == 1 && named:
			errs = append(errs, field.Forbidden(at, "a protocol needs one of tcp, udp, sctp and destinationNamedPort"))
			continue
		case named:
			for _, number := range []desired.Protocol{desired.TCP, desired.UDP, desired.SCTP} {
				names = append(names, desired.NamedPort{Protocol: number, Name: p.DestinationNamedPort})
			}
			continue
		}
		kind := kinds[0]
		destination, unclear := destinationOf(kind.port, at.Child(kind.name, "destinationPort"))
		if errs = append(errs, unclear...); len(unclear) == 0 {
			ports = append(ports, desired.Port{Protocol: kind.number, PortRange: destination})
		}
	}
	slices.SortFunc(names, func(a, b desired.NamedPort) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Name, b.Name))
	})
	return desired.MergePorts(ports), slices.Compact(names), errs
}

// portKind is one of the protocols with ports.
type portKind struct {
	name   string
	number desired.Protocol
	port   *v1alpha2.Port
}

// portKindsOf are those that an entry names: one, where it is as it should be.
func portKindsOf(p clusterProtocol) (kinds []portKind) {
	if p.TCP != nil {
		kinds = append(kinds, portKind{"tcp", desired.TCP, p.TCP.DestinationPort})
	}
	if p.UDP != nil {
		kinds = append(kinds, portKind{"udp", desired.UDP, p.UDP.DestinationPort})
	}
	if p.SCTP != nil {
		kinds = append(kinds, portKind{"sctp", desired.SCTP, p.SCTP.DestinationPort})
	}
	return kinds
}

// destinationOf is the range of a port. Without one, a protocol may have an attribute that is not known
// here.
func destinationOf(p *v1alpha2.Port, at *field.Path) (desired.PortRange, field.ErrorList) {
	var first, last int32
	switch {
	case p == nil:
		return desired.PortRange{}, field.ErrorList{field.Required(at, "")}
	case p.Range != nil && p.Number != 0:
		return desired.PortRange{}, field.ErrorList{field.Forbidden(at, "number excludes range")}
	case p.Range == nil:
		first, last, at = p.Number, p.Number, at.Child("number")
	default:
		first, last, at = p.Range.Start, p.Range.End, at.Child("range")
	}
	wrong := ""
	switch {
	case p.Range != nil && first >= last:
		wrong = "start must be less than end"
	case first < 1 || last > 65535:
		wrong = "ports are 1 to 65535"
	default:
		return desired.PortRange{First: uint16(first), Last: uint16(last)}, nil
	}
	return desired.PortRange{}, field.ErrorList{field.Invalid(at, fmt.Sprintf("%d-%d", first, last), wrong)}
}
