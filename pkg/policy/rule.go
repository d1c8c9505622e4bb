package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"go4.org/netipx"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/podmark/podmark/pkg/desired"
)

// rule is an ingress or an egress rule: the two differ only in what they call
// their peers.
type rule struct {
	peers []networkingv1.NetworkPolicyPeer
	ports []networkingv1.NetworkPolicyPort
}

// isolate translates the rules of one direction, in their order: verdicts name
// a rule by its index.
func isolate(namespace string, rules []rule, path *field.Path) (*desired.Isolation, []error) {
	isolation := &desired.Isolation{}
	var errs []error
	for i, r := range rules {
		compiled, err := r.compile(namespace, path.Index(i))
		if err != nil {
			errs = append(errs, err)
		}
		isolation.Rules = append(isolation.Rules, compiled)
	}
	return isolation, errs
}

func (r rule) compile(namespace string, path *field.Path) (desired.Rule, error) {
	blocks, err := compileBlocks(r.peers)
	if err != nil {
		return desired.Rule{}, fmt.Errorf("%s: %w", path, err)
	}
	ports, names := compilePorts(r.ports)
	peers := compilePeers(namespace, r.peers)
	return desired.Rule{
		Peers:  peers,
		Blocks: blocks,
		// Peers were named, all of them ipBlocks, and nothing is left of them.
		Nobody:     len(r.peers) > 0 && len(peers) == 0 && len(blocks) == 0,
		Ports:      ports,
		NamedPorts: names,
	}, nil
}

// compilePeers translates the peers that select pods, sorted and each once.
func compilePeers(namespace string, peers []networkingv1.NetworkPolicyPeer) []desired.Peer {
	var compiled []desired.Peer
	for _, peer := range peers {
		if peer.IPBlock != nil {
			continue
		}
		p := desired.Peer{Pods: selector(peer.PodSelector)}
		if peer.NamespaceSelector == nil {
			p.Namespace = namespace
		} else {
			p.NamespaceSelector = selector(peer.NamespaceSelector)
		}
		compiled = append(compiled, p)
	}
	slices.SortFunc(compiled, comparePeers)
	return slices.CompactFunc(compiled, func(a, b desired.Peer) bool { return comparePeers(a, b) == 0 })
}

// compileBlocks returns the addresses of every ipBlock as the fewest disjoint,
// masked prefixes: kernel sets of intervals refuse prefixes that overlap.
func compileBlocks(peers []networkingv1.NetworkPolicyPeer) ([]netip.Prefix, error) {
	var union netipx.IPSetBuilder
	for _, peer := range peers {
		if peer.IPBlock == nil {
			continue
		}
		// Taken out before the union is made: an exception is one from its own
		// block, and another block of the rule may allow the same addresses.
		block, err := subtract(*peer.IPBlock)
		if err != nil {
			return nil, err
		}
		union.AddSet(block)
	}
	set, err := union.IPSet()
	if err != nil {
		return nil, err
	}
	return set.Prefixes(), nil
}

func subtract(block networkingv1.IPBlock) (*netipx.IPSet, error) {
	var rest netipx.IPSetBuilder
	cidr, err := netip.ParsePrefix(block.CIDR)
	if err != nil {
		return nil, err
	}
	rest.AddPrefix(cidr.Masked())
	for _, e := range block.Except {
		except, err := netip.ParsePrefix(e)
		if err != nil {
			return nil, err
		}
		rest.RemovePrefix(except.Masked())
	}
	return rest.IPSet()
}

// compilePorts translates ports to disjoint ranges and to names, both sorted. What a name
// stands for differs from pod to pod, so that is looked up where the pods are known.
func compilePorts(ports []networkingv1.NetworkPolicyPort) ([]desired.Port, []desired.NamedPort) {
	protocols := map[corev1.Protocol]desired.Protocol{
		corev1.ProtocolTCP:  desired.TCP,
		corev1.ProtocolUDP:  desired.UDP,
		corev1.ProtocolSCTP: desired.SCTP,
	}
	var (
		numbers []desired.Port
		names   []desired.NamedPort
	)
	for _, port := range ports {
		p := desired.Port{Protocol: protocols[*port.Protocol], PortRange: desired.AllPorts}
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
	return desired.MergePorts(numbers), slices.Compact(names)
}

// selector translates a label selector; nil and empty select everything. The
// requirements and their values are sorted and each there once.
func selector(s *metav1.LabelSelector) desired.Selector {
	if s == nil {
		return nil
	}
	var compiled desired.Selector
	for key, value := range s.MatchLabels {
		compiled = append(compiled, desired.Requirement{Key: key, Op: desired.In, Values: []string{value}})
	}
	for _, e := range s.MatchExpressions {
		// The operators are spelled alike in both packages.
		r := desired.Requirement{Key: e.Key, Op: desired.Op(e.Operator), Values: slices.Clone(e.Values)}
		slices.Sort(r.Values)
		r.Values = slices.Compact(r.Values)
		compiled = append(compiled, r)
	}
	slices.SortFunc(compiled, compareRequirements)
	return slices.CompactFunc(compiled, func(a, b desired.Requirement) bool { return compareRequirements(a, b) == 0 })
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
