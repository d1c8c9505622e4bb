package oracle_test

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/mattfenwick/cyclonus/pkg/matcher"
	"github.com/podmark/podmark/pkg/desired"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"
	k8sv1 "k8s.io/kubernetes/pkg/apis/networking/v1"
	netutils "k8s.io/utils/net"
	"sigs.k8s.io/kube-network-policies/pkg/api"
	"sigs.k8s.io/kube-network-policies/pkg/network"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
	"sigs.k8s.io/kube-network-policies/pkg/podinfo"
	npa "sigs.k8s.io/kube-network-policies/plugins/npa-v1alpha2"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
	clusterfake "sigs.k8s.io/network-policy-api/pkg/client/clientset/versioned/fake"
	clusterinformers "sigs.k8s.io/network-policy-api/pkg/client/informers/externalversions"
)

// plain is a policy in the one form that both judges read: defaulted, without lists that
// are there and empty, which kube-network-policies takes for everything, and with CIDRs
// as they are spelled today.
func plain(p *networkingv1.NetworkPolicy) *networkingv1.NetworkPolicy {
	p = p.DeepCopy()
	k8sv1.SetObjectDefaults_NetworkPolicy(p)
	p.Spec.Ingress, p.Spec.Egress = nonEmpty(p.Spec.Ingress), nonEmpty(p.Spec.Egress)
	for i := range p.Spec.Ingress {
		r := &p.Spec.Ingress[i]
		r.From, r.Ports = nonEmpty(r.From), nonEmpty(r.Ports)
	}
	for i := range p.Spec.Egress {
		r := &p.Spec.Egress[i]
		r.To, r.Ports = nonEmpty(r.To), nonEmpty(r.Ports)
	}
	for _, cidr := range cidrs(p) {
		_, network, err := netutils.ParseCIDRSloppy(*cidr)
		if err != nil {
			panic(err) // such a policy is not stored
		}
		*cidr = network.String()
	}
	return p
}

func nonEmpty[T any](list []T) []T {
	if len(list) == 0 {
		return nil
	}
	return list
}

// matcherJudge asks the matcher of cyclonus, to which a pod is its namespace, its labels
// and one name of the port that is asked for.
type matcherJudge struct {
	policies   *matcher.Policy
	namespaces map[string]map[string]string
	pods       map[netip.Addr]*corev1.Pod
}

func newMatcherJudge(w *world, policies []*networkingv1.NetworkPolicy) matcherJudge {
	j := matcherJudge{
		// What simplifying does is no part of the judgement.
		policies:   matcher.BuildNetworkPolicies(false, policies),
		namespaces: w.namespaces,
		pods:       map[netip.Addr]*corev1.Pod{},
	}
	for _, p := range w.pods {
		if p.Status.Phase == corev1.PodRunning && !p.Spec.HostNetwork {
			for _, a := range addresses(p) {
				j.pods[a] = p
			}
		}
	}
	return j
}

func (j matcherJudge) judge(f flow) verdict {
	traffic := &matcher.Traffic{Source: j.peer(f.src), Destination: j.peer(f.dst), ResolvedPort: -1, Protocol: protocolName(f.protocol)}
	names := []string{""}
	if traffic.Protocol != "" {
		traffic.ResolvedPort = int(f.port)
		names = append(names, portsCalled(j.pods[f.dst], f)...)
	}
	var v verdict
	for _, name := range names { // rules only add: any of its names will do
		traffic.ResolvedPortName = name
		allowed := j.policies.IsTrafficAllowed(traffic)
		v.ingress = v.ingress || allowed.Ingress.IsAllowed()
		v.egress = v.egress || allowed.Egress.IsAllowed()
	}
	v.both = v.ingress && v.egress
	return v
}

func (j matcherJudge) peer(a netip.Addr) *matcher.TrafficPeer {
	peer := &matcher.TrafficPeer{IP: a.String()}
	if p, ok := j.pods[a]; ok {
		peer.Internal = &matcher.InternalPeer{PodLabels: p.Labels, Namespace: p.Namespace, NamespaceLabels: j.namespaces[p.Namespace]}
	}
	return peer
}

// portsCalled lists the names that a pod has for the port of a flow; nil has none.
func portsCalled(p *corev1.Pod, f flow) []string {
	var names []string
	if p == nil {
		return nil
	}
	for _, c := range slices.Concat(p.Spec.Containers, p.Spec.InitContainers) {
		for _, port := range c.Ports {
			if protocols[port.Protocol] == f.protocol && port.ContainerPort == int32(f.port) {
				names = append(names, port.Name)
			}
		}
	}
	return names
}

// protocolName is empty for what has no ports.
func protocolName(number desired.Protocol) corev1.Protocol {
	for name, n := range protocols {
		if n == number {
			return name
		}
	}
	return ""
}

// engineJudge asks kube-network-policies, as it asks itself about a packet. Its informers
// are filled by hand and never started.
type engineJudge struct {
	pods, namespaces, policies, cluster, nodes cache.Indexer
	provider                                   api.PodInfoProvider
	evaluators                                 []api.PolicyEvaluator
	engine                                     *networkpolicy.PolicyEngine
}

func newEngineJudge(t *testing.T) *engineJudge {
	t.Helper()
	factory := informers.NewSharedInformerFactory(fake.NewClientset(), 0)
	pods, namespaces, policies := factory.Core().V1().Pods(), factory.Core().V1().Namespaces(), factory.Networking().V1().NetworkPolicies()
	nodeInformer := factory.Core().V1().Nodes()
	cluster := clusterinformers.NewSharedInformerFactory(clusterfake.NewSimpleClientset(), 0).Policy().V1alpha2().ClusterNetworkPolicies()
	resolver, err := podinfo.NewInformerResolver(pods.Informer())
	if err != nil {
		t.Fatal(err)
	}
	j := &engineJudge{
		pods: pods.Informer().GetIndexer(), namespaces: namespaces.Informer().GetIndexer(), policies: policies.Informer().GetIndexer(),
		cluster: cluster.Informer().GetIndexer(), nodes: nodeInformer.Informer().GetIndexer(),
		provider: podinfo.NewInformerProvider(pods, namespaces, nil, []podinfo.IPResolver{resolver}),
		evaluators: []api.PolicyEvaluator{
			npa.NewClusterNetworkPolicy(v1alpha2.AdminTier, cluster, nil, nodeInformer.Lister()),
			networkpolicy.NewStandardNetworkPolicy(nodes[0], namespaces, pods, policies),
			npa.NewClusterNetworkPolicy(v1alpha2.BaselineTier, cluster, nil, nodeInformer.Lister()),
		},
	}
	j.engine = networkpolicy.NewPolicyEngine(j.provider, j.evaluators)
	return j
}

// load makes w the world that is judged.
func (j *engineJudge) load(t *testing.T, w *world, policies []*networkingv1.NetworkPolicy) {
	t.Helper()
	var namespaces []*corev1.Namespace
	for name, labels := range w.namespaces {
		namespaces = append(namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}})
	}
	for _, err := range []error{
		replace(j.pods, w.pods), replace(j.namespaces, namespaces), replace(j.policies, policies),
		replace(j.cluster, w.cluster), replace(j.nodes, w.nodes),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func replace[T any](indexer cache.Indexer, objects []T) error {
	var all []any
	for _, o := range objects {
		all = append(all, o)
	}
	return indexer.Replace(all, "")
}

func (j *engineJudge) judge(t *testing.T, f flow) verdict {
	t.Helper()
	p := &network.Packet{SrcIP: net.IP(f.src.AsSlice()), DstIP: net.IP(f.dst.AsSlice()), Proto: protocolName(f.protocol)}
	if p.Proto != "" {
		p.SrcPort, p.DstPort = 40000, int(f.port)
	}
	ctx := context.Background()
	src, _ := j.provider.GetPodInfoByIP(f.src.String())
	dst, _ := j.provider.GetPodInfoByIP(f.dst.String())
	egress, ingress := api.VerdictNext, api.VerdictNext // by the first that decides
	for _, e := range j.evaluators {
		var err error
		if egress == api.VerdictNext {
			egress, err = e.EvaluateEgress(ctx, p, src, dst)
		}
		if err == nil && ingress == api.VerdictNext {
			ingress, err = e.EvaluateIngress(ctx, p, src, dst)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	both, err := j.engine.EvaluatePacket(ctx, p)
	if err != nil {
		t.Fatal(err)
	}
	return verdict{ingress != api.VerdictDeny, egress != api.VerdictDeny, both}
}

// cyclonusErrs says what cyclonus takes for something else than Kubernetes does, where a
// flow may depend on it: of the policies of either side, it has to read the other.
func cyclonusErrs(w *world, j matcherJudge, f flow) string {
	for _, side := range [][2]netip.Addr{{f.src, f.dst}, {f.dst, f.src}} {
		subject, peer := j.pods[side[0]], j.pods[side[1]]
		for _, p := range w.policies {
			if subject == nil || subject.Namespace != p.Namespace {
				continue
			}
			if reason := misread(&p.Spec.PodSelector, subject.Labels); reason != "" {
				return reason
			}
			for _, s := range peers(p) {
				if peer == nil {
					continue
				}
				if reason := cmp.Or(misread(s.PodSelector, peer.Labels), misread(s.NamespaceSelector, j.namespaces[peer.Namespace])); reason != "" {
					return reason
				}
			}
		}
	}
	return ""
}

// engineErrs is the same for kube-network-policies.
func engineErrs(j matcherJudge, f flow) string {
	if dst := j.pods[f.dst]; dst != nil {
		init := corev1.Pod{Spec: corev1.PodSpec{InitContainers: dst.Spec.InitContainers}}
		if len(portsCalled(&init, f)) > 0 {
			return "kube-network-policies does not look into init containers"
		}
	}
	return ""
}

// misread says what cyclonus makes of a selector in its own way.
func misread(s *metav1.LabelSelector, labels map[string]string) string {
	if s == nil {
		return ""
	}
	for _, e := range s.MatchExpressions {
		if _, present := labels[e.Key]; !present && e.Operator == metav1.LabelSelectorOpNotIn {
			return "cyclonus: NotIn does not hold for a label that is absent"
		}
	}
	for key, value := range s.MatchLabels {
		if _, present := labels[key]; !present && value == "" {
			return "cyclonus: a label that is absent equals an empty one"
		}
	}
	return ""
}

// describe is a world in a few lines.
func describe(w *world, policies []*networkingv1.NetworkPolicy) string {
	text := fmt.Sprintf("namespaces %v\n", w.namespaces)
	for _, p := range w.pods {
		text += fmt.Sprintf("pod %s/%s %v %v %s host=%t", p.Namespace, p.Name, p.Labels, addresses(p), p.Status.Phase, p.Spec.HostNetwork)
		for _, c := range slices.Concat(p.Spec.Containers, p.Spec.InitContainers) {
			for _, port := range c.Ports {
				text += fmt.Sprintf(" %s=%s/%d", port.Name, port.Protocol, port.ContainerPort)
			}
		}
		text += "\n"
	}
	for _, n := range w.nodes {
		text += fmt.Sprintf("node %s %v %v\n", n.Name, n.Labels, n.Status.Addresses)
	}
	for _, p := range policies {
		text += asJSON(p) + "\n"
	}
	for _, p := range w.cluster {
		text += asJSON(p) + "\n"
	}
	return text
}
