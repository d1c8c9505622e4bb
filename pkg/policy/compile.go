package policy

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/podmark/podmark/pkg/desired"
)

// ErrEmpty: there is no manifest to be read.
var ErrEmpty = errors.New("no manifest in it")

// Compile turns manifests into the policy of a node.
//
// The result depends on what the sources say, not on how they are divided or
// in which order they say it. It shares nothing with them.
//
// The error joins one error per problem found, in any source, and then no
// policies are returned. Each reads
//
//	FILE: document N: KIND NAMESPACE/NAME: FIELD: what is wrong
//
// with as much of it as is known, and "items[N]" after the document for an
// entry of a list. Documents count from 1, without those that hold only
// comments; a field is spelled as the API server spells it. A source that is blank is
// ErrEmpty, and so are all where none has an object: a list without items says that there is
// no policy, an empty file says nothing.
func Compile(sources ...Source) (desired.Policies, error) {
	var (
		compiled desired.Policies
		errs     []error
		places   = map[string]string{}
	)
	found := false
	for _, source := range sources {
		if len(bytes.TrimSpace(source.Data)) == 0 {
			errs = append(errs, fmt.Errorf("%s: %w", source.Name, ErrEmpty))
		}
		for _, o := range decode(source) {
			found = true
			problems := o.errs
			if id := o.id(); id != "" {
				if first, taken := places[id]; taken {
					problems = append(problems, fmt.Errorf("declared before, in %s", first))
				} else {
					places[id] = o.place
				}
			}
			problems = append(problems, include(&compiled, o)...)
			for _, err := range problems {
				errs = append(errs, o.problem(err))
			}
		}
	}
	if !found && errs == nil {
		for _, source := range sources {
			errs = append(errs, fmt.Errorf("%s: %w", source.Name, ErrEmpty))
		}
	}
	if len(errs) > 0 {
		return desired.Policies{}, errors.Join(errs...)
	}
	slices.SortFunc(compiled.Policies, func(a, b desired.Policy) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return compiled, nil
}

// include defaults, validates and compiles one object into compiled.
func include(compiled *desired.Policies, o object) []error {
	switch {
	case o.partial:
		return nil
	case o.namespace != nil:
		if invalid := validateNamespace(o.namespace); len(invalid) > 0 {
			return asErrors(invalid)
		}
		if compiled.Namespaces == nil {
			compiled.Namespaces = map[string]map[string]string{}
		}
		compiled.Namespaces[o.namespace.Name] = namespaceLabels(o.namespace.Labels)
		return nil
	case o.policy != nil:
		Default(o.policy)
		if invalid := Validate(o.policy); len(invalid) > 0 {
			return asErrors(invalid)
		}
		p, errs := compile(o.policy)
		compiled.Policies = append(compiled.Policies, p)
		return asErrors(errs)
	}
	return nil
}

func asErrors(list field.ErrorList) []error {
	errs := make([]error, len(list))
	for i, err := range list {
		errs[i] = err
	}
	return errs
}

// namespaceLabels leaves out the label that names the namespace: whatever a
// manifest says it is, Kubernetes puts the name there, and so does package desired.
func namespaceLabels(declared map[string]string) map[string]string {
	labels := make(map[string]string, len(declared))
	maps.Copy(labels, declared)
	delete(labels, desired.MetadataName)
	return labels
}

// AuditAnnotation on a policy says, by "true", that it is tried out: what it alone
// would deny is logged and counted, and passes.
const AuditAnnotation = "podmark.dev/audit"

// audited reads the annotation. A policy of which it is not understood is enforced.
func audited(p *networkingv1.NetworkPolicy) (bool, field.ErrorList) {
	switch value, set := p.Annotations[AuditAnnotation]; {
	case !set || value == "false":
		return false, nil
	case value == "true":
		return true, nil
	default:
		return false, field.ErrorList{field.NotSupported(field.NewPath("metadata", "annotations").Key(AuditAnnotation), value, []string{"true", "false"})}
	}
}

// compile translates a policy that is defaulted. Rules count only in the directions that
// policyTypes lists, whatever else is written.
//
// A valid policy is understood wholly. What is not understood allows nothing, and is in
// the errors.
func compile(p *networkingv1.NetworkPolicy) (desired.Policy, field.ErrorList) {
	spec := field.NewPath("spec")
	var ingress, egress []rule
	for i, r := range p.Spec.Ingress {
		ingress = append(ingress, rule{spec.Child("ingress").Index(i), "from", r.From, r.Ports})
	}
	for i, r := range p.Spec.Egress {
		egress = append(egress, rule{spec.Child("egress").Index(i), "to", r.To, r.Ports})
	}
	pods, errs := selector(&p.Spec.PodSelector, spec.Child("podSelector"))
	if len(errs) > 0 {
		// Whom the rules are for is not known: more pods are picked than was meant.
		ingress, egress = nil, nil
	}
	// A type that is not known may be of either direction.
	unknown := validateTypes(p.Spec.PolicyTypes, spec.Child("policyTypes"))
	errs = append(errs, unknown...)

	audit, unclear := audited(p)
	errs = append(errs, unclear...)

	compiled := desired.Policy{Namespace: p.Namespace, Name: p.Name, Pods: pods, Audit: audit}
	if len(unknown) > 0 || slices.Contains(p.Spec.PolicyTypes, networkingv1.PolicyTypeIngress) {
		isolation, unclear := isolate(p.Namespace, ingress)
		compiled.Ingress, errs = isolation, append(errs, unclear...)
	}
	if len(unknown) > 0 || slices.Contains(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress) {
		isolation, unclear := isolate(p.Namespace, egress)
		compiled.Egress, errs = isolation, append(errs, unclear...)
	}
	return compiled, errs
}
