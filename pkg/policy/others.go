package policy

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// kustomization is what a file of that name holds where it does not say so.
var kustomization = schema.GroupVersionKind{Group: "kustomize.config.k8s.io", Version: "v1beta1", Kind: "Kustomization"}

// known has every kind of the APIs that the accepted kinds are of.
var known = runtime.NewScheme()

func init() {
	utilruntime.Must(corev1.AddToScheme(known))
	utilruntime.Must(networkingv1.AddToScheme(known))
}

// other makes o an object of another kind, which is passed over, or says why it must not be:
// nobody should take for enforced what is not.
func (d decoder) other(kind schema.GroupVersionKind, data []byte, o *object) []error {
	switch {
	case kind.Kind == "":
		return []error{field.Required(field.NewPath("kind"), accepted)}
	case kind.Version == "":
		return []error{field.Required(field.NewPath("apiVersion"), accepted)}
	case meansPolicy(kind.Kind):
		return []error{fmt.Errorf("%s %s is not enforced, and passing it over would leave open what it denies: %s", kind.GroupVersion(), kind.Kind, accepted)}
	case kind.Kind == "List", known.IsVersionRegistered(kind.GroupVersion()) && !known.Recognizes(kind):
		return []error{fmt.Errorf("there is no %s in %s: %s", kind.Kind, kind.GroupVersion(), accepted)}
	}
	var named metav1.PartialObjectMetadata
	_, errs := d.into(&named, data)
	o.other = fmt.Sprintf("%s %s %s", kind.GroupVersion(), kind.Kind, strings.TrimPrefix(named.Namespace+"/"+named.Name, "/"))
	o.other = strings.TrimSpace(o.other)
	o.notes = []error{errPassedOver}
	return slices.DeleteFunc(errs, func(err error) bool { return strings.HasPrefix(err.Error(), "unknown field ") })
}

// meansPolicy reports whether a kind is a network policy of some API, or NetworkPolicy with a
// slip of the pen: a letter too many, too few or another, or two that changed places.
func meansPolicy(kind string) bool {
	const ours = "networkpolicy"
	kind = strings.ToLower(kind)
	if strings.Contains(kind, "networkpolic") {
		return true
	}
	begins, ends := 0, 0
	for shorter := min(len(kind), len(ours)); begins < shorter && kind[begins] == ours[begins]; {
		begins++
	}
	for shorter := min(len(kind), len(ours)); ends < shorter-begins && kind[len(kind)-1-ends] == ours[len(ours)-1-ends]; {
		ends++
	}
	return max(len(kind), len(ours))-begins-ends <= 2
}
