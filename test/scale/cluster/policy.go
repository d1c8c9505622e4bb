package cluster

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const teams = 40

func namespaceName(i int) string {
	switch i {
	case 0:
		return "kube-system"
	case 1:
		return "monitoring"
	}
	return fmt.Sprintf("team%02d-app-%04d", i%teams, i)
}

func namespaceObject(i int) *corev1.Namespace {
	return &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{
			Name: namespaceName(i), UID: uid("namespace", i), CreationTimestamp: at(i),
			Labels: map[string]string{
				corev1.LabelMetadataName: namespaceName(i), "team": fmt.Sprintf("team-%02d", i%teams),
				"environment":                        []string{"production", "staging", "development"}[i%3],
				"pod-security.kubernetes.io/enforce": "baseline",
			},
			ManagedFields: []metav1.ManagedFieldsEntry{managed("kubectl-create", "", at(i),
				fieldSet(fields("f:metadata", fields("f:labels", leaves(".", "f:kubernetes.io/metadata.name", "f:team", "f:environment")...))))},
		},
		Spec:   corev1.NamespaceSpec{Finalizers: []corev1.FinalizerName{corev1.FinalizerKubernetes}},
		Status: corev1.NamespaceStatus{Phase: corev1.NamespaceActive},
	}
}

// policy is the policy of a number: namespaces get one after the other, first one that
// denies, then one that allows the namespace to itself, then ones for a workload.
func (c *Cluster) policy(i int) *networkingv1.NetworkPolicy {
	namespace, round := i%c.options.Namespaces, i/c.options.Namespaces
	p := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprintf("policy-%d", i), Namespace: namespaceName(namespace), UID: uid("policy", i), CreationTimestamp: at(i),
			Generation: int64(1 + c.revisions[i]),
			Labels:     map[string]string{"app.kubernetes.io/managed-by": "Helm", "team": fmt.Sprintf("team-%02d", namespace%teams)},
			ManagedFields: []metav1.ManagedFieldsEntry{managed("helm", "", at(i),
				fieldSet(fields("f:metadata", fields("f:labels", leaves(".", "f:app.kubernetes.io/managed-by", "f:team")...)),
					fields("f:spec", leaves("f:ingress", "f:podSelector", "f:policyTypes")...)))},
		},
		Spec: networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}},
	}
	if round > 0 || c.clusterWide(i) {
		p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{c.rule(i, namespace, round)}
	}
	if round > 1 {
		p.Spec.PodSelector.MatchLabels = map[string]string{"role": "server"}
	}
	if c.revisions[i]%2 == 1 {
		p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{
			From:  []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: "192.0.2.0/24", Except: []string{"192.0.2.128/25"}}}},
			Ports: []networkingv1.NetworkPolicyPort{port(intstr.FromInt32(9090))},
		})
	}
	return p
}

// clusterWide is whether the policy of this number mentions pods of any namespace.
func (c *Cluster) clusterWide(i int) bool {
	switch c.options.Mix {
	case AllClusterWide:
		return i/c.options.Namespaces > 0
	case FewClusterWide:
		return i%50 == 7
	default:
		return false
	}
}

func (c *Cluster) rule(i, namespace, round int) networkingv1.NetworkPolicyIngressRule {
	labels := func(key, value string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{key: value}}
	}
	var r networkingv1.NetworkPolicyIngressRule
	switch {
	case c.clusterWide(i):
		// By pod label, by the namespaces' labels, or anybody.
		peer := []networkingv1.NetworkPolicyPeer{
			{NamespaceSelector: &metav1.LabelSelector{}, PodSelector: labels("role", "client")},
			{NamespaceSelector: labels("team", fmt.Sprintf("team-%02d", namespace%teams))},
			{NamespaceSelector: &metav1.LabelSelector{}},
		}[(i/50+i)%3]
		r.From, r.Ports = []networkingv1.NetworkPolicyPeer{peer}, []networkingv1.NetworkPolicyPort{port(intstr.FromString("metrics"))}
	case round == 1:
		r.From = []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{}}}
	case c.options.Mix == FewClusterWide && i%7 == 0:
		r.From = []networkingv1.NetworkPolicyPeer{{
			NamespaceSelector: labels(corev1.LabelMetadataName, namespaceName((namespace+1)%c.options.Namespaces)),
			PodSelector:       labels("role", "client"),
		}}
	default:
		r.From, r.Ports = []networkingv1.NetworkPolicyPeer{{PodSelector: labels("role", "client")}}, []networkingv1.NetworkPolicyPort{port(intstr.FromString("http"))}
	}
	return r
}

func port(p intstr.IntOrString) networkingv1.NetworkPolicyPort {
	tcp := corev1.ProtocolTCP
	return networkingv1.NetworkPolicyPort{Protocol: &tcp, Port: &p}
}
