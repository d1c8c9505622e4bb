package fakeapi

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

func now() metav1.Time { return metav1.NewTime(time.Now().Truncate(time.Second)) }

// request is what a URL names.
type request struct {
	resource  Resource
	namespace string // empty for all
	name      string // empty for the collection
}

// parse takes a path apart: /api/v1/... or /apis/GROUP/VERSION/..., then perhaps
// namespaces/NAMESPACE/, RESOURCE, and perhaps /NAME.
func (s *Server) parse(path string) (request, bool) {
	var out request
	parts := strings.Split(strings.Trim(path, "/"), "/")
	group := ""
	switch {
	case len(parts) > 2 && parts[0] == "api":
		parts = parts[1:]
	case len(parts) > 3 && parts[0] == "apis":
		group, parts = parts[1], parts[2:]
	default:
		return out, false
	}
	version, parts := parts[0], parts[1:]
	// The namespaces themselves are a resource without one.
	if len(parts) > 2 && parts[0] == "namespaces" {
		out.namespace, parts = parts[1], parts[2:]
	}
	if len(parts) > 2 {
		return out, false // there are no subresources
	}
	if len(parts) == 2 {
		out.name = parts[1]
	}
	i := slices.IndexFunc(s.resources, func(r Resource) bool {
		return r.Group == group && r.Version == version && r.Name == parts[0]
	})
	if i < 0 {
		return out, false
	}
	out.resource = s.resources[i]
	return out, true
}

// ServeHTTP implements [http.Handler].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q, ok := s.parse(r.URL.Path)
	if !ok {
		fail(w, apierrors.NewGenericServerResponse(http.StatusNotFound, r.Method, metav1.SchemeGroupVersion.WithResource("").GroupResource(), r.URL.Path, "the server was not told of this resource", 0, true))
		return
	}
	var answer any
	var err error
	switch {
	case r.Method == http.MethodGet && q.name == "":
		var selector selector
		if selector, err = parseSelector(q.namespace, r.URL.Query().Get("labelSelector"), r.URL.Query().Get("fieldSelector")); err != nil {
			break
		}
		if watching, _ := strconv.ParseBool(r.URL.Query().Get("watch")); watching {
			s.watch(w, r, q.resource, selector)
			return
		}
		answer = s.list(q.resource, selector)
	case r.Method == http.MethodGet:
		answer, err = s.get(q)
	case r.Method == http.MethodPost && q.name == "", r.Method == http.MethodPut && q.name != "":
		answer, err = s.write(q, r)
	case r.Method == http.MethodDelete && q.name != "":
		s.mu.Lock()
		answer, err = s.remove(q.resource, q.key())
		s.mu.Unlock()
	default:
		err = apierrors.NewMethodNotSupported(q.resource.groupResource(), r.Method)
	}
	if err != nil {
		fail(w, err)
		return
	}
	reply(w, http.StatusOK, answer)
}

func (q request) key() types.NamespacedName {
	return types.NamespacedName{Namespace: q.namespace, Name: q.name}
}

func (s *Server) get(q request) (*unstructured.Unstructured, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.objects[q.resource][q.key()]
	if o == nil {
		return nil, apierrors.NewNotFound(q.resource.groupResource(), q.name)
	}
	return o, nil
}

// write creates an object, or replaces the one of the name.
func (s *Server) write(q request, r *http.Request) (*unstructured.Unstructured, error) {
	var o unstructured.Unstructured
	if err := json.NewDecoder(r.Body).Decode(&o.Object); err != nil {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("reading the object: %v", err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if q.resource.Namespaced {
		o.SetNamespace(cmp.Or(q.namespace, o.GetNamespace(), metav1.NamespaceDefault))
	}
	if o.GetName() == "" && o.GetGenerateName() != "" {
		o.SetName(o.GetGenerateName() + strconv.Itoa(s.version+1))
	}
	group := q.resource.groupResource()
	switch old := s.objects[q.resource][types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}]; {
	case o.GetName() == "" || q.name != "" && q.name != o.GetName():
		return nil, apierrors.NewBadRequest(fmt.Sprintf("object %q: the name must be there, and be that of the URL", o.GetName()))
	case q.name == "" && old != nil:
		return nil, apierrors.NewAlreadyExists(group, o.GetName())
	case q.name != "" && old == nil:
		return nil, apierrors.NewNotFound(group, o.GetName())
	case old != nil && o.GetResourceVersion() != "" && o.GetResourceVersion() != old.GetResourceVersion():
		return nil, apierrors.NewConflict(group, o.GetName(), errors.New("it has changed"))
	}
	return s.put(q.resource, &o), nil
}

// list answers with what a selector picks, sorted by namespace and name.
func (s *Server) list(r Resource, selector selector) map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	items := []any{}
	for _, o := range s.selected(r, selector) {
		items = append(items, o)
	}
	return map[string]any{
		"apiVersion": r.apiVersion(), "kind": r.Kind + "List", "items": items,
		"metadata": map[string]any{"resourceVersion": strconv.Itoa(s.version)},
	}
}

func (s *Server) selected(r Resource, selector selector) []*unstructured.Unstructured {
	keys := slices.SortedFunc(maps.Keys(s.objects[r]), func(a, b types.NamespacedName) int {
		return strings.Compare(a.String(), b.String())
	})
	var out []*unstructured.Unstructured
	for _, key := range keys {
		if o := s.objects[r][key]; selector.picks(o) {
			out = append(out, o)
		}
	}
	return out
}

// selector says which objects a list or a watch is about.
type selector struct {
	namespace string // empty for all
	labels    labels.Selector
	fields    fields.Selector
}

func parseSelector(namespace, byLabel, byField string) (selector, error) {
	out := selector{namespace: namespace}
	var err, fieldErr error
	out.labels, err = labels.Parse(byLabel)
	out.fields, fieldErr = fields.ParseSelector(byField)
	if err := errors.Join(err, fieldErr); err != nil {
		return out, apierrors.NewBadRequest(fmt.Sprintf("reading the selector: %v", err))
	}
	return out, nil
}

// picks is false for an object that is not there.
func (s selector) picks(o *unstructured.Unstructured) bool {
	return o != nil && (s.namespace == "" || s.namespace == o.GetNamespace()) &&
		s.labels.Matches(labels.Set(o.GetLabels())) && s.fields.Matches(fieldsOf{o})
}

// fieldsOf looks fields up by their path: "spec.type".
type fieldsOf struct{ object *unstructured.Unstructured }

// Has implements [fields.Fields].
func (f fieldsOf) Has(path string) bool { return f.Get(path) != "" }

// Get implements [fields.Fields]. A field that is not there is empty.
func (f fieldsOf) Get(path string) string {
	value, found, err := unstructured.NestedFieldNoCopy(f.object.Object, strings.Split(path, ".")...)
	if err != nil || !found {
		return ""
	}
	return fmt.Sprint(value)
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // nobody is left to tell
}

// fail answers with the Status object of an error.
func fail(w http.ResponseWriter, err error) {
	var known *apierrors.StatusError
	if !errors.As(err, &known) {
		known = apierrors.NewInternalError(err)
	}
	reply(w, int(known.ErrStatus.Code), statusObject(known))
}

func statusObject(err *apierrors.StatusError) metav1.Status {
	status := err.ErrStatus
	status.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
	return status
}
