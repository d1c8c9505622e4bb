package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"
)

// Validate judges a policy as the API server judges a new one, after [Default]
// (k8s.io/kubernetes pkg/apis/networking/validation, v1.36): the same fields are
// at fault in the same way, in words of our own. It returns every problem, nil
// for none.
//
// CIDRs may be spelled as API servers before 1.36 took them, with leading zeros, bits beyond
// the prefix length, or as IPv4-mapped IPv6 (KEP-4858): they count as [Object] reads
// them, and [Options.Compile] has a note of each.
func Validate(p *networkingv1.NetworkPolicy) field.ErrorList {
	errs := validateMeta(&p.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)

	spec := field.NewPath("spec")
	errs = append(errs, validateSelector(&p.Spec.PodSelector, spec.Child("podSelector"))...)
	for i, rule := range p.Spec.Ingress {
		path := spec.Child("ingress").Index(i)
		errs = append(errs, validatePorts(rule.Ports, path.Child("ports"))...)
		errs = append(errs, validatePeers(rule.From, path.Child("from"))...)
	}
	for i, rule := range p.Spec.Egress {
		path := spec.Child("egress").Index(i)
		errs = append(errs, validatePorts(rule.Ports, path.Child("ports"))...)
		errs = append(errs, validatePeers(rule.To, path.Child("to"))...)
	}
	errs = append(errs, validateTypes(p.Spec.PolicyTypes, spec.Child("policyTypes"))...)
	return inOrder(errs)
}

// validateNamespace judges the metadata of a namespace, all that is used of it.
func validateNamespace(ns *corev1.Namespace) field.ErrorList {
	return inOrder(validateMeta(&ns.ObjectMeta, false, apivalidation.ValidateNamespaceName))
}

func validateMeta(meta *metav1.ObjectMeta, namespaced bool, name apivalidation.ValidateNameFunc) field.ErrorList {
	path := field.NewPath("metadata")
	errs := apivalidation.ValidateObjectMeta(meta, namespaced, name, path)
	for i, finalizer := range meta.Finalizers {
		switch finalizer {
		case string(corev1.FinalizerKubernetes), metav1.FinalizerOrphanDependents, metav1.FinalizerDeleteDependents:
		default:
			if !strings.Contains(finalizer, "/") {
				errs = append(errs, field.Invalid(path.Child("finalizers").Index(i), finalizer,
					"must be qualified with a domain, as in example.com/name"))
			}
		}
	}
	return errs
}

func validateSelector(selector *metav1.LabelSelector, path *field.Path) field.ErrorList {
	return metav1validation.ValidateLabelSelector(selector, metav1validation.LabelSelectorValidationOptions{}, path)
}

// validateRequirement judges a requirement of a stored selector, whose values may be such
// as no label can have: that was allowed once.
func validateRequirement(r metav1.LabelSelectorRequirement, path *field.Path) field.ErrorList {
	lenient := metav1validation.LabelSelectorValidationOptions{AllowInvalidLabelValueInSelector: true}
	return metav1validation.ValidateLabelSelectorRequirement(r, lenient, path)
}

func validatePorts(ports []networkingv1.NetworkPolicyPort, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, port := range ports {
		errs = append(errs, validatePort(port, path.Index(i))...)
	}
	return errs
}

func validatePort(port networkingv1.NetworkPolicyPort, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if port.Protocol != nil {
		known := []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}
		if !slices.Contains(known, *port.Protocol) {
			errs = append(errs, field.NotSupported(path.Child("protocol"), *port.Protocol, known))
		}
	}
	invalid := func(name string, value any, messages ...string) {
		for _, message := range messages {
			errs = append(errs, field.Invalid(path.Child(name), value, message))
		}
	}
	switch {
	case port.Port == nil:
		if port.EndPort != nil {
			invalid("endPort", *port.EndPort, "must not be set without a port to begin the range")
		}
	case port.Port.Type == intstr.String:
		invalid("port", port.Port.StrVal, validation.IsValidPortName(port.Port.StrVal)...)
		if port.EndPort != nil {
			invalid("endPort", *port.EndPort, "must not be set beside a named port")
		}
	default:
		first := port.Port.IntVal
		invalid("port", first, validation.IsValidPortNum(int(first))...)
		if port.EndPort != nil {
			if *port.EndPort < first {
				invalid("endPort", *port.EndPort, fmt.Sprintf("must be %d, the port, or higher", first))
			}
			invalid("endPort", *port.EndPort, validation.IsValidPortNum(int(*port.EndPort))...)
		}
	}
	return errs
}

func validatePeers(peers []networkingv1.NetworkPolicyPeer, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, peer := range peers {
		errs = append(errs, validatePeer(peer, path.Index(i))...)
	}
	return errs
}

func validatePeer(peer networkingv1.NetworkPolicyPeer, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if peer.PodSelector != nil {
		errs = append(errs, validateSelector(peer.PodSelector, path.Child("podSelector"))...)
	}
	if peer.NamespaceSelector != nil {
		errs = append(errs, validateSelector(peer.NamespaceSelector, path.Child("namespaceSelector"))...)
	}
	if peer.IPBlock != nil {
		errs = append(errs, validateBlock(*peer.IPBlock, path.Child("ipBlock"))...)
	}
	return append(errs, validatePeerKind(peer, path)...)
}

// validatePeerKind judges whether a peer says in exactly one way whom it means. One that
// seems to say nothing may do so in a field that is not known here.
func validatePeerKind(peer networkingv1.NetworkPolicyPeer, path *field.Path) field.ErrorList {
	selects := peer.PodSelector != nil || peer.NamespaceSelector != nil
	switch {
	case !selects && peer.IPBlock == nil:
		return field.ErrorList{field.Required(path, "a peer needs a podSelector, a namespaceSelector or an ipBlock")}
	case selects && peer.IPBlock != nil:
		return field.ErrorList{field.Forbidden(path, "ipBlock excludes podSelector and namespaceSelector")}
	}
	return nil
}

func validateBlock(block networkingv1.IPBlock, path *field.Path) field.ErrorList {
	if block.CIDR == "" {
		return field.ErrorList{field.Required(path.Child("cidr"), "")}
	}
	errs := validateCIDR(block.CIDR, path.Child("cidr"))
	_, outer, err := netutils.ParseCIDRSloppy(block.CIDR)
	if err != nil {
		return errs
	}
	outerBits, _ := outer.Mask.Size()
	for i, except := range block.Except {
		path := path.Child("except").Index(i)
		errs = append(errs, validateCIDR(except, path)...)
		_, inner, err := netutils.ParseCIDRSloppy(except)
		if err != nil {
			continue
		}
		innerBits, _ := inner.Mask.Size()
		if !outer.Contains(inner.IP) || innerBits <= outerBits {
			errs = append(errs, field.Invalid(path, except, fmt.Sprintf("must lie within cidr %s and be smaller", block.CIDR)))
		}
	}
	return errs
}

func validateCIDR(cidr string, path *field.Path) field.ErrorList {
	return validation.IsValidCIDRForLegacyField(path, cidr, false, nil)
}

// spelled has a note of each CIDR that an API server of 1.36 or later refuses in a new policy,
// and says what it counts as.
func spelled(p *networkingv1.NetworkPolicy) []error {
	var notes []error
	look := func(text string, path *field.Path) {
		counts, err := parseCIDR(text)
		if refused := validation.IsValidCIDRForLegacyField(path, text, true, nil); err == nil && len(refused) > 0 {
			notes = append(notes, fmt.Errorf("%s: %q counts as %s: %s", path, text, counts, refused[0].Detail))
		}
	}
	peers := func(peers []networkingv1.NetworkPolicyPeer, path *field.Path) {
		for i, peer := range peers {
			if peer.IPBlock == nil {
				continue
			}
			at := path.Index(i).Child("ipBlock")
			look(peer.IPBlock.CIDR, at.Child("cidr"))
			for i, except := range peer.IPBlock.Except {
				look(except, at.Child("except").Index(i))
			}
		}
	}
	spec := field.NewPath("spec")
	for i, rule := range p.Spec.Ingress {
		peers(rule.From, spec.Child("ingress").Index(i).Child("from"))
	}
	for i, rule := range p.Spec.Egress {
		peers(rule.To, spec.Child("egress").Index(i).Child("to"))
	}
	return notes
}

func validateTypes(types []networkingv1.PolicyType, path *field.Path) field.ErrorList {
	known := []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
	if len(types) > len(known) {
		return field.ErrorList{field.Invalid(path, types, "must be two at most")}
	}
	var errs field.ErrorList
	for i, t := range types {
		if !slices.Contains(known, t) {
			errs = append(errs, field.NotSupported(path.Index(i), t, known))
		}
	}
	return errs
}

// inOrder makes the order of errors the same at every run. Within one field it
// is not: labels and annotations are validated in the order of a map.
func inOrder(errs field.ErrorList) field.ErrorList {
	first := map[string]int{}
	for i, err := range errs {
		if _, seen := first[err.Field]; !seen {
			first[err.Field] = i
		}
	}
	slices.SortStableFunc(errs, func(a, b *field.Error) int {
		return cmp.Or(cmp.Compare(first[a.Field], first[b.Field]), strings.Compare(a.Error(), b.Error()))
	})
	return errs
}
