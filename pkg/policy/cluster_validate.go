package policy

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"unicode/utf8"

	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

// What the CRD of ClusterNetworkPolicy bounds (sigs.k8s.io/network-policy-api v0.2.0,
// config/crd/experimental).
const (
	mostPriority = 1000
	mostItems    = 25  // rules of a side, peers and protocols of a rule, networks and names of a peer
	longestName  = 100 // of a rule, in characters
	longestCIDR  = 43
)

// ValidateCluster judges a policy as an API server with that CRD judges a new one, and besides by
// what [ClusterObject] does not understand: the CRD takes any operator of a selector, and names of
// domains in any rule. manifest is the JSON that it was decoded from, where a field that is required
// and lacks is not one that is zero. It returns every problem, nil for none.
func ValidateCluster(p *v1alpha2.ClusterNetworkPolicy, manifest []byte) field.ErrorList {
	meta := field.NewPath("metadata")
	errs := apivalidation.ValidateObjectMeta(&p.ObjectMeta, false, apivalidation.NameIsDNSSubdomain, meta)
	_, unclear := compileCluster(p)
	errs = append(append(errs, unclear...), lacking(manifest)...)
	spec := field.NewPath("spec")
	if p.Spec.Priority < 0 || p.Spec.Priority > mostPriority {
		wrong := fmt.Sprintf("must be 0 to %d", mostPriority)
		errs = append(errs, field.Invalid(spec.Child("priority"), p.Spec.Priority, wrong))
	}
	ingress, egress := clusterRules(p.Spec)
	errs = append(errs, atMost(len(ingress), spec.Child("ingress"))...)
	errs = append(errs, atMost(len(egress), spec.Child("egress"))...)
	for _, r := range slices.Concat(ingress, egress) {
		errs = append(errs, r.validate()...)
	}
	return inOrder(errs)
}

// validate judges what [clusterRule.compile] takes as it is.
func (r clusterRule) validate() (errs field.ErrorList) {
	if utf8.RuneCountInString(r.name) > longestName {
		errs = append(errs, field.TooLongMaxLength(r.at.Child("name"), r.name, longestName))
	}
	errs = append(errs, atMost(len(r.peers), r.at.Child(r.side))...)
	for i, p := range r.peers {
		at := r.at.Child(r.side).Index(i)
		errs = append(errs, validateList(p.Networks, validateNetwork, at.Child("networks"))...)
		errs = append(errs, validateList(p.DomainNames, validateDomain, at.Child("domainNames"))...)
	}
	protocols := r.at.Child("protocols")
	if r.protocols != nil && len(r.protocols) == 0 {
		errs = append(errs, field.Invalid(protocols, "[]", "must have an item: without the field, all protocols match"))
	}
	errs = append(errs, atMost(len(r.protocols), protocols)...)
	named := func(p clusterProtocol) bool { return p.DestinationNamedPort != "" }
	unnamed := func(p clusterPeer) bool { return p.Networks != nil || p.Nodes != nil || p.DomainNames != nil }
	if slices.ContainsFunc(r.protocols, named) && slices.ContainsFunc(r.peers, unnamed) {
		errs = append(errs, field.Forbidden(protocols, "networks, nodes and domainNames have no named ports"))
	}
	return errs
}

func atMost(items int, at *field.Path) field.ErrorList {
	if items > mostItems {
		return field.ErrorList{field.TooMany(at, items, mostItems)}
	}
	return nil
}

// validateList judges a list that may be absent, and has 1 to 25 different items otherwise.
func validateList[T ~string](list []T, validate func(T) string, at *field.Path) (errs field.ErrorList) {
	if list != nil && len(list) == 0 {
		errs = append(errs, field.Invalid(at, "[]", "must have an item"))
	}
	errs = append(errs, atMost(len(list), at)...)
	for i, item := range list {
		if slices.Index(list, item) < i {
			errs = append(errs, field.Duplicate(at.Index(i), item))
		}
		if wrong := validate(item); wrong != "" {
			errs = append(errs, field.Invalid(at.Index(i), item, wrong))
		}
	}
	return errs
}

// validateNetwork judges a CIDR as isCIDR of the API server's CEL library does.
func validateNetwork(c v1alpha2.CIDR) string {
	p, err := netip.ParsePrefix(string(c))
	switch {
	case err != nil || p.Addr().Is4In6():
		return "must be a CIDR of IPv4 or IPv6, such as 10.0.0.0/8 or fd00::/8"
	case len(c) > longestCIDR:
		return fmt.Sprintf("must be %d characters at most", longestCIDR)
	}
	return ""
}

// domainName is the pattern of the CRD, which has "A-z" for its letters.
var domainName = regexp.MustCompile(
	`^(\*\.)?([a-zA-z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.)+[a-zA-z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.?$`)

func validateDomain(d v1alpha2.DomainName) string {
	if !domainName.MatchString(string(d)) {
		return "must be a name of a domain, such as kubernetes.io or *.kubernetes.io"
	}
	return ""
}

// lacking names the required fields that a manifest lacks, and whose zero values are valid.
func lacking(manifest []byte) (errs field.ErrorList) {
	type pods struct {
		Pods *struct {
			PodSelector any `json:"podSelector"`
		} `json:"pods"`
	}
	type rule struct {
		From, To []pods
	}
	var p struct {
		Spec struct {
			Priority        any
			Subject         pods
			Ingress, Egress []rule
		}
	}
	if err := json.Unmarshal(manifest, &p); err != nil {
		return field.ErrorList{field.InternalError(nil, err)}
	}
	require := func(value any, at *field.Path) {
		if value == nil {
			errs = append(errs, field.Required(at, ""))
		}
	}
	spec := field.NewPath("spec")
	require(p.Spec.Priority, spec.Child("priority"))
	selects := func(some pods, at *field.Path) {
		if some.Pods != nil {
			require(some.Pods.PodSelector, at.Child("pods", "podSelector"))
		}
	}
	selects(p.Spec.Subject, spec.Child("subject"))
	for i, r := range p.Spec.Ingress {
		for j, peer := range r.From {
			selects(peer, spec.Child("ingress").Index(i).Child("from").Index(j))
		}
	}
	for i, r := range p.Spec.Egress {
		for j, peer := range r.To {
			selects(peer, spec.Child("egress").Index(i).Child("to").Index(j))
		}
	}
	return errs
}
