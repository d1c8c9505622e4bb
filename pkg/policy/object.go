package policy

import (
	"errors"
	"fmt"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/podmark/podmark/pkg/desired"
)

// Object compiles a policy that an API server has stored, which it leaves as it is.
//
// A server has judged it before, but by its own rules: an older one let pass what
// [Validate] refuses, and a newer one knows more. So nothing is refused here. Old
// spellings of CIDRs count as what they always meant, and whatever is not understood
// fails closed:
//
//   - a peer or a port allows nothing, and neither does a rule of which none is left;
//   - an ipBlock with an exception that is no CIDR allows nothing;
//   - a requirement of spec.podSelector is taken to hold, and the policy allows nothing;
//   - an unknown entry of policyTypes isolates both directions.
//
// The policy is to be enforced beside the error, which joins one error per thing that was
// not understood, in the words of [Options.Compile]: "NetworkPolicy NAMESPACE/NAME: FIELD: what is
// wrong". A field that the API types of this program lack cannot be seen, only that a peer
// seems to be empty without it.
func Object(p *networkingv1.NetworkPolicy) (desired.Policy, error) {
	stored := p.DeepCopy()
	Default(stored)
	compiled, unclear := compile(stored)
	var errs []error
	for _, err := range unclear {
		errs = append(errs, fmt.Errorf("NetworkPolicy %s/%s: %w", p.Namespace, p.Name, err))
	}
	return compiled, errors.Join(errs...)
}
