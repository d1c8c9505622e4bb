package main

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/podmark/podmark/pkg/agent/nodeports"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/policy"
)

// changes is how often each kind of change is measured.
const changes = 21

const probe = "probe"

// prober changes things of the API and waits until the kernel has them.
type prober struct {
	namespace        string
	core, networking *rest.RESTClient
	kernel           *nftables.Conn
	table            *nftables.Table
}

// latency prints how long it takes from a change in the API until the kernel has it: the
// label of a pod elsewhere, and the port of a policy that selects all pods of a
// namespace. It reads nf_tables.
func (n *node) latency(ctx context.Context, kubeconfig string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	config.BearerToken, config.QPS = "scale", -1
	p := prober{namespace: n.attached[0].Namespace, table: &nftables.Table{Family: nftables.TableFamilyINet, Name: "podmark"}}
	if p.core, err = nodeports.CoreClient(config); err != nil {
		return err
	}
	if p.networking, err = nodeports.Client(config, "/apis", networkingv1.SchemeGroupVersion, networkingv1.AddToScheme); err != nil {
		return err
	}
	if p.kernel, err = nftables.New(); err != nil {
		return err
	}
	selected := 0
	for _, pod := range n.attached {
		if pod.Namespace == p.namespace {
			selected++
		}
	}
	labels, err := p.labelChanges(ctx)
	if err != nil {
		return err
	}
	ports, err := p.policyChanges(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("\n| change, %d times | median, ms | at most, ms |\n|---|---|---|\n", changes)
	print := func(what string, took []time.Duration) {
		slices.Sort(took)
		fmt.Printf("| %s | %.0f | %.0f |\n", what, took[len(took)/2].Seconds()*1000, took[len(took)-1].Seconds()*1000)
	}
	print("label of a pod elsewhere", labels)
	print(fmt.Sprintf("rule of a policy that selects %d local pods", selected), ports)
	return nil
}

// policy selects every pod of the namespace, and lets in who has the label, by a port.
func (p prober) policy(port int) *networkingv1.NetworkPolicy {
	tcp, at := corev1.ProtocolTCP, intstr.FromInt32(int32(port))
	return &networkingv1.NetworkPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
		ObjectMeta: metav1.ObjectMeta{Namespace: p.namespace, Name: probe},
		Spec: networkingv1.NetworkPolicySpec{
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				Ports: []networkingv1.NetworkPolicyPort{{Protocol: &tcp, Port: &at}},
				From:  []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{probe: "yes"}}}},
			}},
		},
	}
}

// pod is one of another node, with the label or without.
func (p prober) pod(label string) *corev1.Pod {
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: p.namespace, Name: probe, Labels: map[string]string{probe: label}},
		Spec:       corev1.PodSpec{NodeName: "elsewhere", Containers: []corev1.Container{{Name: probe}}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "192.0.2.77", PodIPs: []corev1.PodIP{{IP: "192.0.2.77"}}},
	}
}

// put creates or replaces an object.
func put(ctx context.Context, c *rest.RESTClient, resource, namespace string, o runtime.Object, exists bool) error {
	if !exists {
		return c.Post().Namespace(namespace).Resource(resource).Body(o).Do(ctx).Error()
	}
	return c.Put().Namespace(namespace).Resource(resource).Name(probe).Body(o).Do(ctx).Error()
}

// labelChanges has a pod get and lose the label that a policy names.
func (p prober) labelChanges(ctx context.Context) (took []time.Duration, err error) {
	if err := put(ctx, p.core, "pods", p.namespace, p.pod("no"), false); err != nil {
		return nil, err
	}
	if err := put(ctx, p.networking, "networkpolicies", p.namespace, p.policy(8080), false); err != nil {
		return nil, err
	}
	compiled, err := policy.Object(p.policy(8080))
	if err != nil {
		return nil, err
	}
	// The policy is of the namespace that has the name now.
	var namespace corev1.Namespace
	if err := p.core.Get().Resource("namespaces").Name(p.namespace).Do(ctx).Into(&namespace); err != nil {
		return nil, err
	}
	id := desired.Build(desired.Node{}, desired.Policies{Policies: []desired.Policy{compiled.Of(string(namespace.UID))}}, nil).PeerSetIDs()[0]
	set := &nftables.Set{Table: p.table, Name: "p4-" + string(id), KeyType: nftables.TypeIPAddr}
	has := func() (bool, error) {
		list, err := p.kernel.GetSetElements(set)
		return slices.ContainsFunc(list, func(e nftables.SetElement) bool {
			return bytes.Equal(e.Key, netip.MustParseAddr("192.0.2.77").AsSlice())
		}), err
	}
	// The policy itself comes first.
	if _, err := until(func() (bool, error) { _, err := has(); return err == nil, nil }); err != nil {
		return nil, err
	}
	for i := range changes {
		label := []string{"yes", "no"}[i%2]
		begin := time.Now()
		if err := put(ctx, p.core, "pods", p.namespace, p.pod(label), true); err != nil {
			return nil, err
		}
		if _, err := until(func() (bool, error) { there, err := has(); return there == (label == "yes"), err }); err != nil {
			return nil, err
		}
		took = append(took, time.Since(begin))
		time.Sleep(pace)
	}
	return took, nil
}

// policyChanges changes a port of a policy to and fro.
func (p prober) policyChanges(ctx context.Context) (took []time.Duration, err error) {
	chains, err := p.chains()
	if err != nil {
		return nil, err
	}
	for i := range changes {
		before, err := p.rules(chains)
		if err != nil {
			return nil, err
		}
		begin := time.Now()
		if err := put(ctx, p.networking, "networkpolicies", p.namespace, p.policy(8081+i%2), true); err != nil {
			return nil, err
		}
		_, err = until(func() (bool, error) {
			now, err := p.rules(chains)
			return !slices.Equal(before, now) && len(now) == len(before), err
		})
		if err != nil {
			return nil, err
		}
		took = append(took, time.Since(begin))
		time.Sleep(pace)
	}
	return took, nil
}

// pace leaves each change to itself: podmarkd collects those that come together.
const pace = 300 * time.Millisecond

// chains are those of IPv4 profiles that the policy has rules in. They go on to be named
// so when these change.
func (p prober) chains() (of []*nftables.Chain, err error) {
	all, err := p.kernel.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	for _, c := range all {
		if c.Table.Name != p.table.Name || !strings.HasPrefix(c.Name, "i4-") {
			continue
		}
		rules, err := p.rules([]*nftables.Chain{c})
		if err != nil {
			return nil, err
		}
		if len(rules) > 0 {
			of = append(of, c)
		}
	}
	return of, nil
}

// rules are the handles of the rules that the policy has in the chains.
func (p prober) rules(chains []*nftables.Chain) (handles []uint64, err error) {
	for _, c := range chains {
		rules, err := p.kernel.GetRules(p.table, c)
		if err != nil {
			return nil, err
		}
		for _, r := range rules {
			if bytes.Contains(r.UserData, []byte(p.namespace+"/"+probe+" ingress[0]")) {
				handles = append(handles, r.Handle)
			}
		}
	}
	return handles, nil
}

// until polls, for a minute.
func until(check func() (bool, error)) (bool, error) {
	var err error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		var done bool
		if done, err = check(); done && err == nil {
			return true, nil
		}
	}
	return false, fmt.Errorf("the kernel does not have a change of the API within a minute: %w", err)
}
