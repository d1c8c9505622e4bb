package oracle_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/podmark/podmark/pkg/desired"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

// world makes random clusters of what cyclonus' cases lack: several rules in a policy,
// peers outside, ports that have another number or protocol in each pod, blocks that
// overlap, and pods that are none for a policy.
type world struct {
	*rand.Rand
	namespaces map[string]map[string]string
	pods       []*corev1.Pod
	policies   []*networkingv1.NetworkPolicy
	// cluster and nodes are empty where NetworkPolicies alone are asked about.
	cluster []*v1alpha2.ClusterNetworkPolicy
	nodes   []*corev1.Node
}

// outside are addresses of nobody, IPv4 and IPv6, at the edges of blocks.
var outside = [2][]string{
	{"192.0.2.0", "192.0.2.7", "192.0.2.8", "192.0.2.127", "192.0.2.128", "192.0.2.255", "198.51.100.1", "10.1.0.200", "255.255.255.254"},
	{"2001:db8::", "2001:db8::7", "2001:db8::8", "2001:db8::ffff", "2001:db8:1::", "fd00:1::200", "64:ff9b::1"},
}

var (
	numbers   = []int32{53, 79, 80, 81, 8080, 8081, 65535}
	portNames = []string{"web", "dns", "metrics"}
	ports     = []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}
)

func newWorld(r *rand.Rand) *world {
	w := &world{Rand: r, namespaces: map[string]map[string]string{}}
	for _, name := range []string{"shop", "data", "bare"} {
		w.namespaces[name] = w.labels("team", "env")
	}
	w.namespaces = named(w.namespaces)
	for i := range 6 + w.IntN(4) {
		w.pods = append(w.pods, w.pod(i+1))
	}
	// A pod in each node's own network, and pods that ended: of their addresses, some
	// belong to others now.
	for i := range nodes {
		host := w.pod(100 + i)
		host.Spec.HostNetwork, host.Spec.NodeName = true, nodes[i]
		host.Status.PodIPs = []corev1.PodIP{{IP: fmt.Sprintf("172.16.0.%d", i+1)}, {IP: fmt.Sprintf("fd00:2::%d", i+1)}}
		w.pods = append(w.pods, host)
	}
	for i := range w.IntN(3) {
		ended := w.pod(200 + i)
		ended.Status.Phase = pick(w, corev1.PodSucceeded, corev1.PodFailed)
		ended.Status.PodIPs = w.pods[w.IntN(6)].Status.PodIPs
		w.pods = slices.Insert(w.pods, w.IntN(len(w.pods)), ended)
	}
	for i := range 1 + w.IntN(5) {
		w.policies = append(w.policies, w.policy(i))
	}
	return w
}

// maybe is true once in n.
func (w *world) maybe(n int) bool { return w.IntN(n) == 0 }

func (w *world) labels(keys ...string) map[string]string {
	labels := map[string]string{}
	for _, key := range keys {
		if !w.maybe(3) {
			labels[key] = pick(w, "a", "b", "c")
		}
	}
	if w.maybe(8) {
		labels[keys[0]] = ""
	}
	return labels
}

func (w *world) namespace() string { return pick(w, "shop", "shop", "data", "bare") }

func (w *world) pod(number int) *corev1.Pod {
	p := &corev1.Pod{}
	p.Name, p.Namespace, p.Labels = fmt.Sprintf("pod%d", number), w.namespace(), w.labels("app", "tier")
	p.Spec.NodeName = pick(w, nodes...)
	p.Status.Phase = corev1.PodRunning
	if w.maybe(5) {
		// It is to end, and serves until then.
		p.DeletionTimestamp = &metav1.Time{}
	}
	p.Status.PodIPs = []corev1.PodIP{{IP: fmt.Sprintf("10.%d.0.%d", 1+number%2, number)}, {IP: fmt.Sprintf("fd00:%d::%x", 1+number%2, number)}}
	if w.maybe(6) {
		p.Status.PodIPs = p.Status.PodIPs[:1]
	}
	p.Status.PodIP = p.Status.PodIPs[0].IP
	for range 1 + w.IntN(2) {
		p.Spec.Containers = append(p.Spec.Containers, w.container())
	}
	if w.maybe(4) {
		sidecar := w.container()
		sidecar.RestartPolicy = pick(w, nil, new(corev1.ContainerRestartPolicyAlways))
		p.Spec.InitContainers = []corev1.Container{sidecar}
	}
	return p
}

// container has names with numbers of its own, some of them for two protocols.
func (w *world) container() corev1.Container {
	var c corev1.Container
	for range w.IntN(4) {
		port := corev1.ContainerPort{Name: pick(w, portNames...), ContainerPort: pick(w, numbers...), Protocol: pick(w, ports...)}
		c.Ports = append(c.Ports, port)
		if w.maybe(3) {
			port.Protocol, port.ContainerPort = pick(w, ports...), pick(w, numbers...)
			c.Ports = append(c.Ports, port)
		}
	}
	return c
}

func (w *world) policy(number int) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{}
	p.Name, p.Namespace = fmt.Sprintf("policy%d", number), w.namespace()
	p.Spec.PodSelector = w.selector("app", "tier")
	// Lists that are empty and lists that are not there must be the same.
	p.Spec.Ingress = pick(w, nil, []networkingv1.NetworkPolicyIngressRule{})
	p.Spec.Egress = pick(w, nil, []networkingv1.NetworkPolicyEgressRule{})
	for range w.IntN(5) {
		p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: w.peers(), Ports: w.rulePorts()})
	}
	for range w.IntN(5) {
		p.Spec.Egress = append(p.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: w.peers(), Ports: w.rulePorts()})
	}
	p.Spec.PolicyTypes = slices.Clone(pick(w, nil, []networkingv1.PolicyType{},
		[]networkingv1.PolicyType{networkingv1.PolicyTypeIngress}, []networkingv1.PolicyType{networkingv1.PolicyTypeEgress},
		[]networkingv1.PolicyType{networkingv1.PolicyTypeEgress, networkingv1.PolicyTypeIngress}))
	return p
}

func (w *world) peers() []networkingv1.NetworkPolicyPeer {
	if w.maybe(8) {
		return pick(w, nil, []networkingv1.NetworkPolicyPeer{})
	}
	var peers []networkingv1.NetworkPolicyPeer
	for range 1 + w.IntN(3) {
		var p networkingv1.NetworkPolicyPeer
		switch w.IntN(5) {
		case 0:
			p.PodSelector = new(w.selector("app", "tier"))
		case 1:
			p.NamespaceSelector = new(w.selector("team", "env", corev1.LabelMetadataName))
		case 2:
			p.PodSelector, p.NamespaceSelector = new(w.selector("app", "tier")), new(w.selector("team", "env", corev1.LabelMetadataName))
		default:
			p.IPBlock = w.block()
		}
		peers = append(peers, p)
	}
	return peers
}

func (w *world) selector(keys ...string) metav1.LabelSelector {
	values := []string{"a", "b", "c"}
	if keys[len(keys)-1] == corev1.LabelMetadataName && w.maybe(3) {
		return metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: w.namespace()}}
	}
	s := metav1.LabelSelector{MatchLabels: pick(w, nil, map[string]string{})}
	if w.maybe(3) {
		s.MatchLabels = map[string]string{pick(w, keys...): pick(w, append(values, "")...)}
	}
	for range max(0, w.IntN(4)-1) {
		r := metav1.LabelSelectorRequirement{Key: pick(w, keys...), Operator: pick(w,
			metav1.LabelSelectorOpIn, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn,
			metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist)}
		if r.Operator == metav1.LabelSelectorOpIn || r.Operator == metav1.LabelSelectorOpNotIn {
			r.Values = slices.Clone(values[w.IntN(2) : 2+w.IntN(2)])
		}
		s.MatchExpressions = append(s.MatchExpressions, r)
	}
	return s
}

// address is any that a flow can have: of a pod, of a node, of nobody.
func (w *world) address(family int) netip.Addr {
	if w.maybe(3) {
		return netip.MustParseAddr(pick(w, outside[family]...))
	}
	ips := w.pods[w.IntN(len(w.pods))].Status.PodIPs
	if family >= len(ips) {
		return w.address(family)
	}
	return netip.MustParseAddr(ips[family].IP)
}

// block is around an address, with exceptions around others, which may overlap each other
// and the blocks beside it.
func (w *world) block() *networkingv1.IPBlock {
	family := w.IntN(2)
	size := []int{32, 128}[family]
	around := func(least int) netip.Prefix {
		bits := pick(w, 0, 1, size/4, size/4, size/2, size/2, size-8, size-5, size-3, size-1, size)
		prefix, err := w.address(family).Prefix(max(bits, least))
		if err != nil {
			panic(err) // the length is within the family's
		}
		return prefix
	}
	cidr := around(0)
	// Lengths are compared as they are written, so an exception is mapped where its block is.
	mapped := cidr.Addr().Is4() && w.maybe(8)
	block := &networkingv1.IPBlock{CIDR: w.spell(cidr, mapped)}
	for range w.IntN(8) {
		// Within the block and smaller, as every server has asked for.
		if except := around(min(cidr.Bits()+1, size)); cidr.Contains(except.Addr()) && cidr.Bits() < except.Bits() {
			block.Except = append(block.Except, w.spell(except, mapped || cidr.Addr().Is4() && w.maybe(8)))
		}
	}
	return block
}

// spell writes a prefix in one of the ways that servers have stored, IPv4 maybe as IPv6.
func (w *world) spell(p netip.Prefix, mapped bool) string {
	if mapped {
		return fmt.Sprintf("::ffff:%s/%d", p.Addr(), 96+p.Bits())
	}
	switch w.IntN(8) {
	case 0: // with bits beyond its length
		last := p.Addr().AsSlice()
		for i := p.Bits(); i < 8*len(last); i++ {
			last[i/8] |= byte(w.IntN(2)) << (7 - i%8)
		}
		addr, _ := netip.AddrFromSlice(last)
		return netip.PrefixFrom(addr, p.Bits()).String()
	case 1: // with leading zeros
		if p.Addr().Is4() {
			octets := strings.Split(p.Addr().String(), ".")
			for i := range octets {
				octets[i] = fmt.Sprintf("%03s", octets[i])
			}
			return fmt.Sprintf("%s/%02d", strings.Join(octets, "."), p.Bits())
		}
	}
	return p.String()
}

func (w *world) rulePorts() []networkingv1.NetworkPolicyPort {
	if w.maybe(3) {
		return pick(w, nil, []networkingv1.NetworkPolicyPort{})
	}
	var out []networkingv1.NetworkPolicyPort
	for range 1 + w.IntN(3) {
		var p networkingv1.NetworkPolicyPort
		if !w.maybe(3) {
			p.Protocol = new(pick(w, ports...))
		}
		switch w.IntN(6) {
		case 0: // every port of the protocol
		case 1, 2:
			p.Port = new(intstr.FromString(pick(w, portNames...)))
		default:
			first := pick(w, numbers...)
			p.Port = new(intstr.FromInt32(first))
			if w.maybe(3) {
				p.EndPort = new(max(first, pick(w, numbers...)))
			}
		}
		out = append(out, p)
	}
	return out
}

// flow is between two addresses of a family, one at least a pod's. What a node sends to
// its own pods is not among them: no policy has a say in that.
func (w *world) flow(c cluster) flow {
	for {
		family := w.IntN(2)
		f := flow{src: w.address(family), dst: w.address(family), protocol: pick(w, desired.TCP, desired.TCP, desired.UDP, desired.SCTP)}
		f.port = uint16(pick(w, numbers...))
		if w.maybe(10) {
			f.protocol, f.port = pick(w, []desired.Protocol{1, desired.ICMPv6}[family], 47), 0
		}
		_, fromPod := c.places[f.src]
		dst, toPod := c.places[f.dst]
		if (fromPod || toPod) && !(toPod && c.hosts[f.src] == dst.node) {
			return f
		}
	}
}
