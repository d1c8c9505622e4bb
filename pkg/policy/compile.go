package policy

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/podmark/podmark/pkg/desired"
)

var (
	// ErrEmpty: there is no manifest to be read.
	ErrEmpty = errors.New("no manifest in it")
	// ErrNoPolicy: there is no policy, and nothing says that there is to be none.
	ErrNoPolicy = errors.New("no NetworkPolicy in it")
)

// errPassedOver is the note of an object of another kind.
var errPassedOver = errors.New("passed over, as it is neither a NetworkPolicy nor a Namespace")

// Options say how manifests are read.
type Options struct {
	// Namespace is that of the policies which name none; those that name another are refused.
	// Where it is empty, policies which name none are of "default".
	Namespace string
	// Strict refuses what else is a note.
	Strict bool
	// Whole is for what becomes the whole policy of a node: namespaces alone open every
	// endpoint, so where there is no policy, a list of policies has to say "items: []".
	Whole bool
}

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
// ErrEmpty, and so are all where none has an object of an accepted kind: a list without items
// says that there is no policy, an empty file says nothing. With Whole, namespaces say nothing
// either, which is ErrNoPolicy.
//
// The notes read as errors do, and there are none beside an error. They are of what counts otherwise than its
// author may think: an object of another kind, which is passed over, a CIDR of an old spelling,
// and a policy that names no namespace.
func (o Options) Compile(sources ...Source) (desired.Policies, []string, error) {
	if o.Namespace != "" {
		for _, wrong := range apivalidation.ValidateNamespaceName(o.Namespace, false) {
			return desired.Policies{}, nil, fmt.Errorf("namespace %q: %s", o.Namespace, wrong)
		}
	}
	c := compiler{Options: o, places: map[string]string{}, others: map[string]int{}, namespaces: map[string]int{}}
	for _, source := range sources {
		if len(bytes.TrimSpace(source.Data)) == 0 {
			c.errs = append(c.errs, fmt.Errorf("%s: %w", source.Name, ErrEmpty))
		}
		for _, is := range o.decode(source) {
			c.tally(source, is)
			c.add(is)
		}
	}
	if c.errs == nil {
		c.errs = c.lacking(sources)
	}
	if len(c.errs) > 0 {
		return desired.Policies{}, nil, errors.Join(c.errs...)
	}
	slices.SortFunc(c.compiled.Policies, func(a, b desired.Policy) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return c.compiled, c.notes, nil
}

// compiler puts together what the objects of all sources say.
type compiler struct {
	Options
	compiled desired.Policies
	notes    []string
	errs     []error
	// places are where the objects with a name were declared.
	places map[string]string
	// others and namespaces are how many there are, by source.
	others, namespaces map[string]int
	// found is set where there is an object of an accepted kind, and said where there is a
	// policy, or a list that says there is none.
	found, said bool
}

// tally counts an object under its kind.
func (c *compiler) tally(source Source, is object) {
	if is.other != "" {
		c.others[source.Name]++
	} else {
		c.found = true
	}
	if is.namespace != nil {
		c.namespaces[source.Name]++
	}
	c.said = c.said || is.policy != nil || is.none
}

// add compiles an object, with every problem of it.
func (c *compiler) add(is object) {
	problems := append(is.errs, c.declare(is)...)
	problems = append(problems, include(&c.compiled, is)...)
	for _, note := range is.notes {
		if c.Strict {
			problems = append(problems, fmt.Errorf("%w, which strict reading refuses", note))
			continue
		}
		c.notes = append(c.notes, is.problem(note).Error())
	}
	for _, err := range problems {
		c.errs = append(c.errs, is.problem(err))
	}
}

// declare refuses the second object of a name. What is passed over may be there twice.
func (c *compiler) declare(is object) []error {
	id := is.id()
	if is.other != "" || id == "" {
		return nil
	}
	if before := c.places[id]; before != "" {
		return []error{fmt.Errorf("declared before, in %s", before)}
	}
	c.places[id] = is.place
	return nil
}

// lacking has an error for each source where none of them says what the policies are.
func (c *compiler) lacking(sources []Source) []error {
	var lacks error
	switch {
	case !c.found:
		lacks = ErrEmpty
	case c.Whole && !c.said:
		lacks = ErrNoPolicy
	default:
		return nil
	}
	var errs []error
	for _, source := range sources {
		err := fmt.Errorf("%s: %w", source.Name, lacks)
		if has := count(c.namespaces[source.Name], c.others[source.Name]); has != "" {
			err = fmt.Errorf("%w but %s", err, has)
		}
		errs = append(errs, err)
	}
	return errs
}

// count says how many objects there are that are no policies.
func count(namespaces, others int) string {
	var has []string
	switch {
	case namespaces == 1:
		has = append(has, "1 namespace")
	case namespaces > 1:
		has = append(has, fmt.Sprintf("%d namespaces", namespaces))
	}
	if others > 0 {
		has = append(has, fmt.Sprintf("%d of other kinds", others))
	}
	return strings.Join(has, " and ")
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
func audited(annotations map[string]string) (bool, field.ErrorList) {
	switch value, set := annotations[AuditAnnotation]; {
	case !set || value == "false":
		return false, nil
	case value == "true":
		return true, nil
	default:
		return false, field.ErrorList{field.NotSupported(field.NewPath("metadata", "annotations").Key(AuditAnnotation), value,
			[]string{"true", "false"})}
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

	audit, unclear := audited(p.Annotations)
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
