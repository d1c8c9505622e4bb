package oracle_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/policy"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

// clusterFlows is how many flows a run asks both about at least. PODMARK_FUZZTIME asks for a run of
// that long.
const clusterFlows = 50000

// Of random flows under random NetworkPolicies and ClusterNetworkPolicies we say what
// kube-network-policies says: with priorities that collide, chains of Pass, and a baseline beside
// NetworkPolicies.
func TestClusterAgreement(t *testing.T) {
	seed, _ := run(t)
	var (
		random         = rand.New(rand.NewPCG(seed, 2))
		engine         = newEngineJudge(t)
		end            = deadline(t)
		worlds, agreed int
		allowed        int
		skipped        = map[string]int{} // by what is known of the judge
		decided        = map[string]int{} // by the tier that decides, as we say
	)
	for ; agreed < clusterFlows || time.Now().Before(end); worlds++ {
		w := newWorld(random)
		w.withCluster()
		compiled, judged := w.read(t)
		compiled.Policies = append(compiled.Policies, w.readCluster(t)...)
		var others []desired.Pod
		for _, n := range w.nodes {
			others = append(others, desired.Pod{Namespace: desired.Nodes, Name: n.Name, Labels: n.Labels, Addresses: nodeAddresses(n)})
		}
		ours, pods := newCluster(t, compiled, w.pods, others...), newMatcherJudge(w, nil)
		ours.told = func(d desired.Decision) { decided[decider(d)]++ }
		engine.load(t, w, judged)
		for range flowsPerWorld {
			f := w.flow(ours)
			if reason := cmp.Or(engineErrs(pods, f), baselineErrs(pods, judged, f)); reason != "" {
				skipped[reason]++
				continue
			}
			want := engine.judge(t, f)
			if got := ours.judge(f); got != want {
				t.Fatalf("world %d: %v: ours %+v, theirs %+v\n%s", worlds, f, got, want, describe(w, w.policies))
			}
			if agreed++; want.both {
				allowed++
			}
		}
	}
	t.Logf("%d worlds, %d flows of which we say what they say, %d of them allowed; decided by %v", worlds, agreed, allowed, decided)
	for reason, n := range skipped {
		t.Logf("%d flows do not count: %s", n, reason)
	}
	if allowed < agreed/5 || allowed > agreed*4/5 {
		t.Errorf("%d of %d flows are allowed: too one-sided to prove much", allowed, agreed)
	}
	for _, tier := range desired.Tiers {
		for _, action := range []desired.Action{desired.Allow, desired.Deny} {
			if by := fmt.Sprintf("%s %s", tier, action); decided[by] < agreed/100 {
				t.Errorf("%d of %d flows are decided by %s: too few to prove much", decided[by], agreed, by)
			}
		}
	}
}

// baselineErrs says what kube-network-policies takes for something else than Kubernetes does, where a
// flow may depend on it: a policy isolates a pod in the directions of its policyTypes, and only there
// it is final.
func baselineErrs(j matcherJudge, policies []*networkingv1.NetworkPolicy, f flow) string {
	for _, side := range []struct {
		pod       *corev1.Pod
		direction networkingv1.PolicyType
	}{{j.pods[f.src], networkingv1.PolicyTypeEgress}, {j.pods[f.dst], networkingv1.PolicyTypeIngress}} {
		selected, isolated := false, false
		for _, p := range policies {
			pod := side.pod
			if pod == nil || pod.Namespace != p.Namespace || !selects(p.Spec.PodSelector, pod.Labels) {
				continue
			}
			selected, isolated = true, isolated || slices.Contains(p.Spec.PolicyTypes, side.direction)
		}
		if selected && !isolated {
			return "kube-network-policies takes a policy of one direction for final in the other"
		}
	}
	return ""
}

func selects(s metav1.LabelSelector, pod map[string]string) bool {
	selector, err := metav1.LabelSelectorAsSelector(&s)
	return err == nil && selector.Matches(labels.Set(pod))
}

// decider is the tier that decides, and how; empty where none does.
func decider(d desired.Decision) string {
	tier := desired.NetworkPolicyTier
	for _, t := range desired.Tiers {
		if strings.HasPrefix(d.Rule, t.String()+"/") {
			tier = t
		}
	}
	switch {
	case !d.Allowed:
		return fmt.Sprintf("%s %s", tier, desired.Deny)
	case d.Rule != "":
		return fmt.Sprintf("%s %s", tier, desired.Allow)
	}
	return ""
}

func nodeAddresses(n *corev1.Node) (out []netip.Addr) {
	for _, a := range n.Status.Addresses {
		if addr, err := netip.ParseAddr(a.Address); err == nil {
			out = append(out, addr)
		}
	}
	return out
}

// readCluster compiles the policies of the cluster.
func (w *world) readCluster(t *testing.T) (out []desired.Policy) {
	t.Helper()
	for _, p := range w.cluster {
		manifest, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		if errs := policy.ValidateCluster(p, manifest); len(errs) > 0 {
			t.Fatalf("%s: %v", manifest, errs)
		}
		compiled, err := policy.ClusterObject(p)
		if err != nil {
			t.Fatalf("%s: %v", manifest, err)
		}
		out = append(out, compiled)
	}
	return out
}

// withCluster adds nodes with labels, and policies of the cluster, of which some have a priority in
// common.
func (w *world) withCluster() {
	for _, host := range w.pods {
		if !host.Spec.HostNetwork {
			continue
		}
		host.Status.PodIPs[1].IP = strings.Replace(host.Status.PodIPs[1].IP, "fd00:2:", "fd00:3:", 1) // no pod has it
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: host.Spec.NodeName, Labels: w.labels("app", "pool")}}
		for _, ip := range host.Status.PodIPs {
			n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip.IP})
		}
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: n.Name})
		w.nodes = append(w.nodes, n)
	}
	w.policies = w.policies[:w.IntN(len(w.policies)+1)] // else few flows come to the baseline
	for i := range 1 + w.IntN(6) {
		w.cluster = append(w.cluster, w.clusterPolicy(i))
	}
}

func (w *world) clusterPolicy(number int) *v1alpha2.ClusterNetworkPolicy {
	p := &v1alpha2.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("cluster%d", number)}}
	p.Spec.Tier = pick(w, v1alpha2.AdminTier, v1alpha2.BaselineTier)
	p.Spec.Priority = pick(w, int32(0), 1, 1, 2, 1000)
	if w.maybe(2) {
		p.Spec.Subject.Namespaces = new(w.selector("team", "env", corev1.LabelMetadataName))
	} else {
		p.Spec.Subject.Pods = w.namespacedPod()
	}
	for range w.IntN(5) {
		rule := v1alpha2.ClusterNetworkPolicyIngressRule{Action: w.action()}
		for range 1 + w.IntN(3) {
			peer := v1alpha2.ClusterNetworkPolicyIngressPeer{Pods: w.namespacedPod()}
			if w.maybe(3) {
				peer = v1alpha2.ClusterNetworkPolicyIngressPeer{Namespaces: new(w.selector("team", "env", corev1.LabelMetadataName))}
			}
			rule.From = append(rule.From, peer)
		}
		rule.Protocols = w.protocols(true)
		p.Spec.Ingress = append(p.Spec.Ingress, rule)
	}
	for range w.IntN(5) {
		rule := v1alpha2.ClusterNetworkPolicyEgressRule{Action: w.action()}
		named := true
		for range 1 + w.IntN(3) {
			var peer v1alpha2.ClusterNetworkPolicyEgressPeer
			switch w.IntN(5) {
			case 0:
				peer.Namespaces = new(w.selector("team", "env", corev1.LabelMetadataName))
			case 1:
				peer.Nodes, named = new(w.selector("app", "pool")), false
			case 2:
				peer.Networks, named = w.networks(), false
			default:
				peer.Pods = w.namespacedPod()
			}
			rule.To = append(rule.To, peer)
		}
		rule.Protocols = w.protocols(named)
		p.Spec.Egress = append(p.Spec.Egress, rule)
	}
	return p
}

func (w *world) action() v1alpha2.ClusterNetworkPolicyRuleAction {
	return pick(w, v1alpha2.ClusterNetworkPolicyRuleActionAccept, v1alpha2.ClusterNetworkPolicyRuleActionDeny, v1alpha2.ClusterNetworkPolicyRuleActionPass)
}

func (w *world) namespacedPod() *v1alpha2.NamespacedPod {
	return &v1alpha2.NamespacedPod{
		NamespaceSelector: w.selector("team", "env", corev1.LabelMetadataName), PodSelector: w.selector("app", "tier"),
	}
}

// networks are of either family, and may overlap and have bits beyond their length.
func (w *world) networks() (out []v1alpha2.CIDR) {
	for range 1 + w.IntN(3) {
		family := w.IntN(2)
		size := []int{32, 128}[family]
		p := netip.PrefixFrom(w.address(family), pick(w, 0, 1, size/4, size/2, size-8, size-3, size))
		if cidr := v1alpha2.CIDR(p.String()); !slices.Contains(out, cidr) {
			out = append(out, cidr)
		}
	}
	return out
}

func (w *world) protocols(named bool) (out []v1alpha2.ClusterNetworkPolicyProtocol) {
	if w.maybe(2) {
		return nil
	}
	for range 1 + w.IntN(3) {
		first := pick(w, numbers...)
		port := &v1alpha2.Port{Number: first}
		if last := pick(w, numbers...); first < last {
			port = &v1alpha2.Port{Range: &v1alpha2.PortRange{Start: first, End: last}}
		}
		var p v1alpha2.ClusterNetworkPolicyProtocol
		switch w.IntN(5) {
		case 0:
			p.UDP = &v1alpha2.ClusterNetworkPolicyProtocolUDP{DestinationPort: port}
		case 1:
			p.SCTP = &v1alpha2.ClusterNetworkPolicyProtocolSCTP{DestinationPort: port}
		case 2:
			if named {
				p.DestinationNamedPort = pick(w, portNames...)
				break
			}
			fallthrough
		default:
			p.TCP = &v1alpha2.ClusterNetworkPolicyProtocolTCP{DestinationPort: port}
		}
		out = append(out, p)
	}
	return out
}
