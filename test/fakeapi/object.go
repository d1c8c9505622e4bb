package fakeapi

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strconv"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
)

// newScheme has the types of the kinds that are kept typed. Others are unstructured, as
// custom resources are.
func newScheme() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, networkingv1.AddToScheme, discoveryv1.AddToScheme, eventsv1.AddToScheme} {
		utilruntime.Must(add(s))
	}
	return s
}

func newUID(r Resource, name string, version int) types.UID {
	return types.UID(fmt.Sprintf("%s-%s-%d", r.Name, name, version))
}

// object is one version of an object. It keeps what selectors ask for, and what is
// sent: without kind and apiVersion, as in a list.
type object struct {
	namespace, name string
	uid             types.UID
	version         string
	created         metav1.Time
	labels          labels.Set
	fields          fields.Set
	// source is the form that the others are made of: protobuf where there is a type.
	source form
	blank  func() Object // an object to decode the source into
	forms  [formCount]atomic.Pointer[[]byte]
}

// encode makes the version of an object. It writes to o.
func (s *Server) encode(r Resource, o Object, version int) (*object, error) {
	o.SetResourceVersion(strconv.Itoa(version))
	out := &object{
		namespace: o.GetNamespace(), name: o.GetName(), uid: o.GetUID(),
		version: o.GetResourceVersion(), created: o.GetCreationTimestamp(),
		labels: o.GetLabels(), fields: fieldsOf(o), source: inProtobuf,
		blank: func() Object { return s.blank(r.gvk()) },
	}
	if u, ok := o.(*unstructured.Unstructured); ok {
		out.source = inJSON
		delete(u.Object, "kind")
		delete(u.Object, "apiVersion")
	} else {
		o.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	}
	b, err := marshal(o, out.source)
	if err != nil {
		return nil, fmt.Errorf("encoding %s %q: %w", r.Kind, o.GetName(), err)
	}
	out.forms[out.source].Store(&b)
	return out, nil
}

// blank is an empty object of a kind.
func (s *Server) blank(kind schema.GroupVersionKind) Object {
	if o, err := s.scheme.New(kind); err == nil {
		if typed, ok := o.(Object); ok {
			return typed
		}
	}
	return &unstructured.Unstructured{Object: map[string]any{}}
}

// decodeJSON reads an object of a kind, or of the one that it names.
func (s *Server) decodeJSON(b []byte, kind schema.GroupVersionKind) (Object, error) {
	if kind.Empty() {
		var named metav1.TypeMeta
		if err := utiljson.Unmarshal(b, &named); err != nil {
			return nil, err
		}
		kind = named.GroupVersionKind()
	}
	o := s.blank(kind)
	if err := unmarshal(b, inJSON, o); err != nil {
		return nil, err
	}
	o.GetObjectKind().SetGroupVersionKind(kind)
	return o, nil
}

// decodeProtobuf reads an object in its envelope.
func (s *Server) decodeProtobuf(b []byte, kind schema.GroupVersionKind) (Object, error) {
	raw, err := unwrap(b)
	if err != nil {
		return nil, err
	}
	o := s.blank(kind)
	return o, unmarshal(raw, inProtobuf, o)
}

// decode is the object again, to be written to.
func (o *object) decode() Object {
	out := o.blank()
	utilruntime.Must(unmarshal(*o.forms[o.source].Load(), o.source, out)) // we have encoded it
	return out
}

// in is the object in a form. It is made when it is first asked for, maybe by two at once.
func (o *object) in(f form) []byte {
	if b := o.forms[f].Load(); b != nil {
		return *b
	}
	var source runtime.Object = o.decode()
	if f.partial() {
		source = partial(source.(Object))
	}
	b, err := marshal(source, f)
	utilruntime.Must(err)
	o.forms[f].Store(&b)
	return b
}

// at is the same object at another version.
func (o *object) at(version int) *object {
	content := o.decode()
	content.SetResourceVersion(strconv.Itoa(version))
	b, err := marshal(content, o.source)
	utilruntime.Must(err)
	out := &object{
		namespace: o.namespace, name: o.name, uid: o.uid, version: content.GetResourceVersion(), created: o.created,
		labels: o.labels, fields: o.fields,
		source: o.source, blank: o.blank,
	}
	out.forms[o.source].Store(&b)
	return out
}

func (o *object) compare(namespace, name string) int {
	return cmp.Or(cmp.Compare(o.namespace, namespace), cmp.Compare(o.name, name))
}

// partial is the metadata of an object.
func partial(o metav1.Object) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
		Name: o.GetName(), GenerateName: o.GetGenerateName(), Namespace: o.GetNamespace(),
		UID: o.GetUID(), ResourceVersion: o.GetResourceVersion(), Generation: o.GetGeneration(),
		CreationTimestamp: o.GetCreationTimestamp(),
		DeletionTimestamp: o.GetDeletionTimestamp(), DeletionGracePeriodSeconds: o.GetDeletionGracePeriodSeconds(),
		Labels: o.GetLabels(), Annotations: o.GetAnnotations(), OwnerReferences: o.GetOwnerReferences(),
		Finalizers: o.GetFinalizers(), ManagedFields: o.GetManagedFields(),
	}}
}

// nodeField is the field by which every node asks for its own pods.
const nodeField = "spec.nodeName"

// fieldsOf are the fields that a selector may name. The real server has such a list
// for each kind too.
func fieldsOf(o Object) fields.Set {
	out := fields.Set{"metadata.name": o.GetName()}
	if o.GetNamespace() != "" {
		out["metadata.namespace"] = o.GetNamespace()
	}
	switch o := o.(type) {
	case *corev1.Pod:
		out[nodeField] = o.Spec.NodeName
		out["status.phase"] = string(o.Status.Phase)
		out["status.podIP"] = o.Status.PodIP
	case *corev1.Service:
		out["spec.clusterIP"] = o.Spec.ClusterIP
		out["spec.type"] = string(o.Spec.Type)
	case *corev1.Namespace:
		out["status.phase"] = string(o.Status.Phase)
	}
	return out
}

// selectable refuses a selector of fields that the kind has not.
func (s *Server) selectable(r Resource, f fields.Selector) error {
	blank := s.blank(r.gvk())
	if r.Namespaced {
		blank.SetNamespace("any")
	}
	known := fieldsOf(blank)
	for _, q := range f.Requirements() {
		if _, ok := known[q.Field]; !ok {
			return apierrors.NewBadRequest(fmt.Sprintf("field label not supported: %s", q.Field))
		}
	}
	return nil
}

func marshal(o runtime.Object, f form) ([]byte, error) {
	if u, ok := o.(*unstructured.Unstructured); ok {
		return json.Marshal(u.Object)
	}
	if !f.protobuf() {
		return json.Marshal(o)
	}
	message, ok := o.(interface{ Marshal() ([]byte, error) })
	if !ok {
		return nil, fmt.Errorf("%T has no protobuf", o)
	}
	return message.Marshal()
}

func unmarshal(b []byte, f form, o Object) error {
	if u, ok := o.(*unstructured.Unstructured); ok {
		return utiljson.Unmarshal(b, &u.Object)
	}
	if !f.protobuf() {
		return utiljson.Unmarshal(b, o)
	}
	message, ok := o.(interface{ Unmarshal([]byte) error })
	if !ok {
		return fmt.Errorf("%T has no protobuf", o)
	}
	return message.Unmarshal(b)
}
