package policy

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	k8sjson "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/validation/field"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
)

// Source is the text of one manifest file.
type Source struct {
	// Name is what errors call the source: a file name.
	Name string
	// Data is UTF-8: YAML documents separated by "---", or JSON objects.
	Data []byte
}

// object is what was found in one place of a source.
type object struct {
	// place is "policies.yaml: document 2", then "items[0]" in a list.
	place string
	// At most one of the three is set; neither is for a list, and for what is no
	// object of an accepted kind.
	policy    *networkingv1.NetworkPolicy
	namespace *corev1.Namespace
	// other names an object of another kind, "apps/v1 Deployment shop/web", of which nothing
	// else is read.
	other string
	// none is set for a list of policies that says it has none.
	none bool
	// partial is set where decoding stopped half-way: to judge such an object
	// would blame its author for what was not read.
	partial bool
	// errs is what is wrong with the form of the object, and notes are what is taken otherwise
	// than it is written.
	errs, notes []error
}

// id names an object that has a name, "NetworkPolicy web/allow", or is empty.
// The namespace is left out where it was not read.
func (o object) id() string {
	switch {
	case o.policy != nil && o.policy.Name != "":
		return "NetworkPolicy " + strings.TrimPrefix(o.policy.Namespace+"/"+o.policy.Name, "/")
	case o.namespace != nil && o.namespace.Name != "":
		return "Namespace " + o.namespace.Name
	default:
		return o.other
	}
}

// problem puts the place of the object, and its name, before an error.
func (o object) problem(err error) error {
	if id := o.id(); id != "" {
		return fmt.Errorf("%s: %s: %w", o.place, id, err)
	}
	return fmt.Errorf("%s: %w", o.place, err)
}

// decode reads every object of a source. Documents are numbered from 1; those
// that hold nothing but comments do not count.
func (o Options) decode(source Source) []object {
	if !utf8.Valid(source.Data) {
		return []object{{place: source.Name, errs: []error{errors.New("not UTF-8 text")}}}
	}
	var objects []object
	d := newDecoder(o.Namespace)
	var implied schema.GroupVersionKind
	if strings.TrimSuffix(path.Base(source.Name), path.Ext(source.Name)) == "kustomization" {
		implied = kustomization
	}
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(source.Data)))
	for n := 1; ; {
		chunk, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return objects
		}
		place := func() string { return fmt.Sprintf("%s: document %d", source.Name, n) }
		if err != nil {
			// The reader cannot tell where the next document starts.
			return append(objects, object{place: place(), errs: []error{err}})
		}
		documents, keys, errs := toJSON(chunk)
		at := place()
		var found []object
		for _, document := range documents {
			found = append(found, d.read(place(), document, implied)...)
			n++
		}
		if slices.ContainsFunc(found, func(o object) bool { return o.other == "" }) {
			errs = append(errs, keys...)
		}
		if len(errs) > 0 {
			objects = append(objects, object{place: at, errs: errs})
		}
		objects = append(objects, found...)
		if len(documents) == 0 && len(errs) > 0 {
			n++
		}
	}
}

// decoder decodes JSON strictly. With nothing registered in its scheme, the
// serializer decodes into the type it is handed, and it does so as the API
// server does: case-sensitive, reporting every unknown and duplicate field.
type decoder struct {
	strict    runtime.Decoder
	namespace string // of Options
}

func newDecoder(namespace string) decoder {
	scheme := runtime.NewScheme()
	return decoder{
		namespace: namespace,
		strict: k8sjson.NewSerializerWithOptions(k8sjson.DefaultMetaFactory, scheme, scheme,
			k8sjson.SerializerOptions{Strict: true}),
	}
}

const accepted = "accepted are networking.k8s.io/v1 NetworkPolicy, v1 Namespace, " +
	"and their lists: v1 List, networking.k8s.io/v1 NetworkPolicyList, v1 NamespaceList"

// read decodes one JSON document or list item; implied is what an item of a
// typed list is when it does not say so itself.
func (d decoder) read(place string, data []byte, implied schema.GroupVersionKind) []object {
	o := object{place: place}
	if data = bytes.TrimSpace(data); len(data) == 0 || data[0] != '{' {
		o.errs = []error{errors.New("not an object: " + accepted)}
		return []object{o}
	}
	kind, err := k8sjson.DefaultMetaFactory.Interpret(data)
	if err != nil {
		o.errs = []error{fmt.Errorf("reading apiVersion and kind: %w", err)}
		return []object{o}
	}
	if kind.Empty() {
		kind = &implied
	}
	var (
		policies   = networkingv1.SchemeGroupVersion.WithKind("NetworkPolicy")
		namespaces = corev1.SchemeGroupVersion.WithKind("Namespace")
	)
	switch *kind {
	case policies:
		o.policy = &networkingv1.NetworkPolicy{}
		o.partial, o.errs = d.into(o.policy, data)
		if !o.partial {
			o.notes = spelled(o.policy)
			d.locate(&o)
		}
	case namespaces:
		o.namespace = &corev1.Namespace{}
		o.partial, o.errs = d.into(o.namespace, data)
	case corev1.SchemeGroupVersion.WithKind("List"):
		return d.list(place, data, schema.GroupVersionKind{})
	case networkingv1.SchemeGroupVersion.WithKind("NetworkPolicyList"):
		return d.list(place, data, policies)
	case corev1.SchemeGroupVersion.WithKind("NamespaceList"):
		return d.list(place, data, namespaces)
	default:
		o.errs = d.other(*kind, data, &o)
	}
	return []object{o}
}

// locate gives a policy that names no namespace the one that was asked for, or "default".
func (d decoder) locate(o *object) {
	at := field.NewPath("metadata", "namespace")
	switch named := o.policy.Namespace; {
	case named == "" && d.namespace == "":
		o.policy.Namespace = metav1.NamespaceDefault
		o.notes = append(o.notes, fmt.Errorf("%s: not set, and counts as %q", at, metav1.NamespaceDefault))
	case named == "":
		o.policy.Namespace = d.namespace
	case d.namespace != "" && named != d.namespace:
		o.errs = append(o.errs, field.Invalid(at, named, fmt.Sprintf("the namespace from the provided object does not match %q, which is asked for", d.namespace)))
	}
}

// list decodes the items of a list, which are what item says unless they say
// otherwise.
func (d decoder) list(place string, data []byte, item schema.GroupVersionKind) []object {
	list := &metav1.List{}
	_, errs := d.into(list, data)
	var objects []object
	if len(errs) > 0 || len(list.Items) == 0 {
		none := list.Items != nil && len(list.Items) == 0 && item.Kind != "Namespace"
		objects = append(objects, object{place: place, errs: errs, none: none})
	}
	for i, entry := range list.Items {
		objects = append(objects, d.read(fmt.Sprintf("%s: items[%d]", place, i), entry.Raw, item)...)
	}
	return objects
}

// status is a field that API servers before 1.28 print of a NetworkPolicy, and that nobody
// reads (KEP-2943).
const status = `unknown field "status"`

// into decodes data into target and returns what is wrong with it. Unknown and
// duplicate fields are reported one by one and leave target whole.
func (d decoder) into(target runtime.Object, data []byte) (partial bool, errs []error) {
	_, _, err := d.strict.Decode(data, nil, target)
	if strict, ok := runtime.AsStrictDecodingError(err); ok {
		return false, slices.DeleteFunc(strict.Errors(), func(err error) bool { return err.Error() == status })
	}
	var mismatch *json.UnmarshalTypeError
	switch {
	case err == nil:
		return false, nil
	case errors.As(err, &mismatch):
		return true, []error{fmt.Errorf("%s: found %s, want %s", mismatch.Field, mismatch.Value, wanted(mismatch))}
	default:
		return true, []error{err}
	}
}

// wanted names the type of a field in words of YAML instead of Go.
func wanted(mismatch *json.UnmarshalTypeError) string {
	switch mismatch.Type.Kind() {
	case reflect.Struct, reflect.Map:
		return "an object"
	case reflect.Slice:
		return "a list"
	case reflect.String:
		if mismatch.Value == "bool" || strings.HasPrefix(mismatch.Value, "number") {
			return "a string: put quotes around it"
		}
		return "a string"
	case reflect.Int32, reflect.Int64:
		return "a whole number of " + strconv.Itoa(mismatch.Type.Bits()) + " bits"
	default:
		return mismatch.Type.String()
	}
}
