package policy

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"go4.org/netipx"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"

	"github.com/podmark/podmark/pkg/desired"
)

// rule is an ingress or an egress rule: the two differ only in what they call
// their peers.
type rule struct {
	at    *field.Path // spec.ingress[0]
	side  string      // from, to
	peers []networkingv1.NetworkPolicyPeer
	ports []networkingv1.NetworkPolicyPort
}

// isolate translates the rules of one direction, in their order: verdicts name
// a rule by its index.
func isolate(namespace string, rules []rule) (*desired.Isolation, field.ErrorList) {
	isolation := &desired.Isolation{}
	var errs field.ErrorList
	for _, r := range rules {
		compiled, unclear := r.compile(namespace)
		errs = append(errs, unclear...)
		isolation.Rules = append(isolation.Rules, compiled)
	}
	return isolation, errs
}

// compile leaves out the peers and ports that it does not understand, and names them.
func (r rule) compile(namespace string) (desired.Rule, field.ErrorList) {
	peers, blocks, errs := compilePeers(namespace, r.peers, r.at.Child(r.side))
	ports, names, unclear := compilePorts(r.ports, r.at.Child("ports"))
	errs = append(errs, unclear...)
	// The rule names peers or ports, and none of them is left: an empty list would
	// mean all there are.
	if len(r.peers) > 0 && len(peers)+len(blocks) == 0 || len(r.ports) > 0 && len(ports)+len(names) == 0 {
		return desired.Rule{MatchNone: true}, errs
	}
	return desired.Rule{Peers: peers, Blocks: blocks, Ports: ports, NamedPorts: names}, errs
}

// compilePeers translates the peers that select pods, sorted and each once, and the
// addresses of every ipBlock as the fewest disjoint, masked prefixes: kernel sets of
// intervals refuse prefixes that overlap.
func compilePeers(
	namespace string,
	peers []networkingv1.NetworkPolicyPeer,
	path *field.Path,
) ([]desired.Peer, []netip.Prefix, field.ErrorList) {
	var (
		pods  []desired.Peer
		union netipx.IPSetBuilder
		errs  field.ErrorList
	)
	for i, peer := range peers {
		path := path.Index(i)
		if unclear := validatePeerKind(peer, path); len(unclear) > 0 {
			errs = append(errs, unclear...)
			continue
		}
		if peer.IPBlock != nil {
			// Taken out before the union is made: an exception is one from its own
			// block, and another block of the rule may allow the same addresses.
			block, unclear := subtract(*peer.IPBlock, path.Child("ipBlock"))
			errs = append(errs, unclear...)
			union.AddSet(block)
			continue
		}
		p, unclear := compilePeer(namespace, peer, path)
		errs = append(errs, unclear...)
		if len(unclear) == 0 {
			pods = append(pods, p)
		}
	}
	slices.SortFunc(pods, comparePeers)
	pods = slices.CompactFunc(pods, func(a, b desired.Peer) bool { return comparePeers(a, b) == 0 })
	blocks, unclear := prefixes(&union, path)
	return pods, blocks, append(errs, unclear...)
}

// prefixes are the fewest of a union, disjoint and masked; nil for none.
func prefixes(union *netipx.IPSetBuilder, path *field.Path) ([]netip.Prefix, field.ErrorList) {
	set, err := union.IPSet()
	switch {
	case err != nil:
		return nil, field.ErrorList{field.InternalError(path, err)}
	case len(set.Ranges()) == 0:
		return nil, nil
	}
	return set.Prefixes(), nil
}

func compilePeer(
	namespace string,
	peer networkingv1.NetworkPolicyPeer,
	path *field.Path,
) (desired.Peer, field.ErrorList) {
	var p desired.Peer
	pods, errs := selector(peer.PodSelector, path.Child("podSelector"))
	p.Pods = pods
	if peer.NamespaceSelector == nil {
		p.Namespace = namespace
		return p, errs
	}
	namespaces, unclear := selector(peer.NamespaceSelector, path.Child("namespaceSelector"))
	p.NamespaceSelector = namespaces
	return p, append(errs, unclear...)
}

// subtract returns the addresses of a block. Of one that is not wholly understood,
// these are none: nobody knows what it should have left out.
func subtract(block networkingv1.IPBlock, path *field.Path) (*netipx.IPSet, field.ErrorList) {
	cidr, err := parseCIDR(block.CIDR)
	if err != nil {
		return &netipx.IPSet{}, field.ErrorList{field.Invalid(path.Child("cidr"), block.CIDR, err.Error())}
	}
	var (
		rest netipx.IPSetBuilder
		errs field.ErrorList
	)
	rest.AddPrefix(cidr)
	for i, text := range block.Except {
		except, err := parseCIDR(text)
		if err != nil {
			errs = append(errs, field.Invalid(path.Child("except").Index(i), text, err.Error()))
		}
		rest.RemovePrefix(except)
	}
	if len(errs) > 0 {
		return &netipx.IPSet{}, errs
	}
	set, err := rest.IPSet()
	if err != nil {
		return &netipx.IPSet{}, field.ErrorList{field.InternalError(path, err)}
	}
	return set, nil
}

// parseCIDR reads every spelling that an API server has ever stored (KEP-4858): leading
// zeros, which do not make a number octal; bits beyond the prefix length, which do not
// count; IPv4 that is mapped to IPv6, which is IPv4.
func parseCIDR(text string) (netip.Prefix, error) {
	_, network, err := netutils.ParseCIDRSloppy(text)
	if err != nil {
		return netip.Prefix{}, err
	}
	addr, _ := netip.AddrFromSlice(network.IP)
	bits, _ := network.Mask.Size()
	if addr.Is4In6() && bits >= 96 {
		addr, bits = addr.Unmap(), bits-96
	}
	return netip.PrefixFrom(addr, bits), nil
}

// compilePorts translates ports to disjoint ranges and to names, both sorted. What a name
// stands for differs from pod to pod, so that is looked up where the pods are known.
func compilePorts(
	ports []networkingv1.NetworkPolicyPort,
	path *field.Path,
) ([]desired.Port, []desired.NamedPort, field.ErrorList) {
	var (
		numbers []desired.Port
		names   []desired.NamedPort
		errs    field.ErrorList
	)
	for i, port := range ports {
		if unclear := validatePort(port, path.Index(i)); len(unclear) > 0 {
			errs = append(errs, unclear...)
			continue
		}
		number, _ := protocol(*port.Protocol)
		p := desired.Port{Protocol: number, PortRange: desired.AllPorts}
		switch {
		case port.Port == nil:
		case port.Port.Type == intstr.String:
			names = append(names, desired.NamedPort{Protocol: p.Protocol, Name: port.Port.StrVal})
			continue
		default:
			p.First = uint16(port.Port.IntVal)
			p.Last = p.First
			if port.EndPort != nil {
				p.Last = uint16(*port.EndPort)
			}
		}
		numbers = append(numbers, p)
	}
	slices.SortFunc(names, func(a, b desired.NamedPort) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Name, b.Name))
	})
	return desired.MergePorts(numbers), slices.Compact(names), errs
}

// protocol returns the number of a protocol that has ports, and whether it is one.
func protocol(name corev1.Protocol) (desired.Protocol, bool) {
	switch name {
	case corev1.ProtocolTCP:
		return desired.TCP, true
	case corev1.ProtocolUDP:
		return desired.UDP, true
	case corev1.ProtocolSCTP:
		return desired.SCTP, true
	}
	return 0, false
}

// selector translates a label selector; nil and empty select everything. The
// requirements and their values are sorted and each there once. One that is not
// understood is left out and named: what is left selects more than was meant.
func selector(s *metav1.LabelSelector, path *field.Path) (desired.Selector, field.ErrorList) {
	if s == nil {
		return nil, nil
	}
	var (
		compiled desired.Selector
		errs     field.ErrorList
	)
	for key, value := range s.MatchLabels {
		compiled = append(compiled, desired.Requirement{Key: key, Op: desired.In, Values: []string{value}})
	}
	for i, e := range s.MatchExpressions {
		if unclear := validateRequirement(e, path.Child("matchExpressions").Index(i)); len(unclear) > 0 {
			errs = append(errs, unclear...)
			continue
		}
		// The operators are spelled alike in both packages.
		r := desired.Requirement{Key: e.Key, Op: desired.Op(e.Operator), Values: slices.Clone(e.Values)}
		slices.Sort(r.Values)
		r.Values = slices.Compact(r.Values)
		compiled = append(compiled, r)
	}
	slices.SortFunc(compiled, compareRequirements)
	return slices.CompactFunc(compiled, func(a, b desired.Requirement) bool { return compareRequirements(a, b) == 0 }),
		errs
}

func comparePeers(a, b desired.Peer) int {
	return cmp.Or(
		strings.Compare(a.Namespace, b.Namespace),
		slices.CompareFunc(a.NamespaceSelector, b.NamespaceSelector, compareRequirements),
		slices.CompareFunc(a.Pods, b.Pods, compareRequirements),
	)
}

func compareRequirements(a, b desired.Requirement) int {
	return cmp.Or(
		strings.Compare(a.Key, b.Key),
		strings.Compare(string(a.Op), string(b.Op)),
		slices.Compare(a.Values, b.Values),
	)
}
