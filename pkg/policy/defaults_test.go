package policy_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/podmark/podmark/pkg/policy"
)

func TestDefault(t *testing.T) {
	ports := func(protocol *corev1.Protocol) []networkingv1.NetworkPolicyPort {
		return []networkingv1.NetworkPolicyPort{{Protocol: protocol}, {Protocol: new(corev1.ProtocolUDP)}}
	}
	p := &networkingv1.NetworkPolicy{Spec: networkingv1.NetworkPolicySpec{
		Ingress: []networkingv1.NetworkPolicyIngressRule{{}, {Ports: ports(nil)}},
		Egress:  []networkingv1.NetworkPolicyEgressRule{{Ports: ports(nil)}},
	}}
	want := &networkingv1.NetworkPolicy{Spec: networkingv1.NetworkPolicySpec{
		Ingress:     []networkingv1.NetworkPolicyIngressRule{{}, {Ports: ports(new(corev1.ProtocolTCP))}},
		Egress:      []networkingv1.NetworkPolicyEgressRule{{Ports: ports(new(corev1.ProtocolTCP))}},
		PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress},
	}}
	for _, round := range []string{"once", "twice"} {
		policy.Default(p)
		if diff := cmp.Diff(want, p); diff != "" {
			t.Errorf("defaulted %s (-want +got):\n%s", round, diff)
		}
	}
}

// A policy of typed values, as an API client hands them over, may be judged
// without having been defaulted.
func TestValidateUndefaulted(t *testing.T) {
	p := &networkingv1.NetworkPolicy{Spec: networkingv1.NetworkPolicySpec{
		Ingress: []networkingv1.NetworkPolicyIngressRule{{Ports: []networkingv1.NetworkPolicyPort{{}}}},
	}}
	p.Namespace, p.Name = "web", "allow"
	if errs := policy.Validate(p); errs != nil {
		t.Errorf("Validate: %v, want nil", errs)
	}
	p.Namespace = ""
	errs := policy.Validate(p)
	if len(errs) != 1 || errs[0].Field != "metadata.namespace" {
		t.Errorf("Validate without namespace: %v, want one error of metadata.namespace", errs)
	}
}
