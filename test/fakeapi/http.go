package fakeapi

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
)

// request is what a URL and a header name.
type request struct {
	resource  Resource
	namespace string // empty for all
	name      string // empty for the collection
	selector  selector
	form      form // of the answer
	blank     Object
	meter     *meter
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

var _ http.Handler = (*Server)(nil)

// ServeHTTP implements [http.Handler].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q, ok := s.parse(r.URL.Path)
	if !ok {
		q.fail(w, apierrors.NewGenericServerResponse(http.StatusNotFound, r.Method, schema.GroupResource{}, r.URL.Path, "the server was not told of this resource", 0, true))
		return
	}
	q.meter = s.meters.get(clientOf(r), q.resource)
	w = counted{w, q.meter}
	q.blank = s.blank(q.resource.gvk())
	var err error
	if q.form, err = negotiate(r.Header.Get("Accept"), s.scheme.Recognizes(q.resource.gvk())); err != nil {
		q.fail(w, apierrors.NewGenericServerResponse(http.StatusNotAcceptable, r.Method, q.resource.groupResource(), q.name, err.Error(), 0, true))
		return
	}
	if refuse := s.refuse.Load(); refuse != nil {
		if status := (*refuse)(r); status != 0 {
			q.fail(w, apierrors.NewGenericServerResponse(status, r.Method, q.resource.groupResource(), q.name, "refused "+r.URL.RequestURI(), 0, true))
			return
		}
	}
	if r.Method == http.MethodGet && q.name == "" {
		s.collection(w, r, q)
		return
	}
	var answer *object
	switch {
	case r.Method == http.MethodGet:
		q.meter.gets.Add(1)
		answer, err = s.get(q)
	case r.Method == http.MethodPost && q.name == "", r.Method == http.MethodPut && q.name != "":
		q.meter.writes.Add(1)
		answer, err = s.write(q, r)
	case r.Method == http.MethodDelete && q.name != "":
		q.meter.writes.Add(1)
		s.mu.Lock()
		answer, err = s.remove(q.resource, q.namespace, q.name)
		s.mu.Unlock()
	default:
		err = apierrors.NewMethodNotSupported(q.resource.groupResource(), r.Method)
	}
	if err != nil {
		q.fail(w, err)
		return
	}
	q.meter.objects.Add(1)
	q.reply(w, http.StatusOK, q.form.whole(q.form.kind(q.resource), answer.in(q.form)))
}

// collection answers a list or a watch.
func (s *Server) collection(w http.ResponseWriter, r *http.Request, q request) {
	query := r.URL.Query()
	var err error
	if q.selector, err = parseSelector(q.namespace, query.Get("labelSelector"), query.Get("fieldSelector")); err == nil {
		err = s.selectable(q.resource, q.selector.fields)
	}
	watching, _ := strconv.ParseBool(query.Get("watch"))
	switch {
	case err != nil:
		q.fail(w, err)
	case watching:
		q.meter.watches.Add(1)
		s.watch(w, r, q)
	default:
		q.meter.lists.Add(1)
		s.list(w, r, q)
	}
}

func (s *Server) get(q request) (*object, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	o := s.collections[q.resource].get(q.namespace, q.name)
	if o == nil {
		return nil, apierrors.NewNotFound(q.resource.groupResource(), q.name)
	}
	return o, nil
}

// write creates an object, or replaces the one of the name.
func (s *Server) write(q request, r *http.Request) (*object, error) {
	o, err := s.read(q, r)
	if err != nil {
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
	switch old := s.collections[q.resource].get(o.GetNamespace(), o.GetName()); {
	case o.GetName() == "" || q.name != "" && q.name != o.GetName():
		return nil, apierrors.NewBadRequest(fmt.Sprintf("object %q: the name must be there, and be that of the URL", o.GetName()))
	case q.name == "" && old != nil:
		return nil, apierrors.NewAlreadyExists(group, o.GetName())
	case q.name != "" && old == nil:
		return nil, apierrors.NewNotFound(group, o.GetName())
	case old != nil && o.GetResourceVersion() != "" && o.GetResourceVersion() != old.version:
		return nil, apierrors.NewConflict(group, o.GetName(), errors.New("it has changed"))
	}
	return s.put(q.resource, o)
}

// read takes the object out of a request.
func (s *Server) read(q request, r *http.Request) (Object, error) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	if media, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); media == runtime.ContentTypeProtobuf {
		return s.decodeProtobuf(b, q.resource.gvk())
	}
	return s.decodeJSON(b, q.resource.gvk())
}

// list answers with what a selector picks, sorted by namespace and name, in pages where
// the client wants that. Each page is of the objects as they are then, but has the version of
// the first: a watch from there makes up for what has changed between them.
func (s *Server) list(w http.ResponseWriter, r *http.Request, q request) {
	query := r.URL.Query()
	limit, _ := strconv.Atoi(query.Get("limit"))
	if query.Get("resourceVersion") == "0" {
		limit = 0 // any version will do, which the real server has whole in memory
	}
	s.mu.RLock()
	items, version := s.collections[q.resource].selected(q.selector), s.version
	s.mu.RUnlock()
	if after := query.Get("continue"); after != "" {
		var namespace, name string
		if _, err := fmt.Sscanf(after, "%d/%q/%q", &version, &namespace, &name); err != nil {
			q.fail(w, apierrors.NewBadRequest(fmt.Sprintf("continue %q is none of this server's", after)))
			return
		}
		items = slices.DeleteFunc(items, func(o *object) bool { return o.compare(namespace, name) <= 0 })
	}
	meta := metav1.ListMeta{ResourceVersion: strconv.Itoa(version)}
	if limit > 0 && len(items) > limit {
		left := int64(len(items) - limit)
		items = items[:limit]
		last := items[limit-1]
		meta.Continue = fmt.Sprintf("%d/%q/%q", version, last.namespace, last.name)
		meta.RemainingItemCount = &left
	}
	q.meter.objects.Add(int64(len(items)))
	w.Header().Set("Content-Type", q.form.contentType())
	buffer := bufio.NewWriterSize(w, 1<<16)
	// When it fails nobody is left to tell.
	_ = q.form.writeList(buffer, q.resource, meta, items)
	_ = buffer.Flush()
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
func (s selector) picks(o *object) bool {
	return o != nil && (s.namespace == "" || s.namespace == o.namespace) &&
		s.labels.Matches(o.labels) && s.fields.Matches(o.fields)
}

// topic is what all that it picks is of.
func (s selector) topic() topic {
	node, _ := s.fields.RequiresExactMatch(nodeField)
	return topic{s.namespace, node}
}

// reply writes an answer; when that fails nobody is left to tell.
func (q request) reply(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", q.form.contentType())
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// fail answers with the Status object of an error.
func (q request) fail(w http.ResponseWriter, err error) {
	var known *apierrors.StatusError
	if !errors.As(err, &known) {
		known = apierrors.NewInternalError(err)
	}
	body, kind := statusOf(known, q.form)
	q.reply(w, int(known.ErrStatus.Code), q.form.whole(kind, body))
}

// statusOf encodes the Status object of an error.
func statusOf(err *apierrors.StatusError, f form) (body []byte, kind schema.GroupVersionKind) {
	status := err.ErrStatus
	status.TypeMeta = metav1.TypeMeta{}
	body, marshalErr := marshal(&status, f)
	utilruntime.Must(marshalErr)
	return body, schema.GroupVersionKind{Version: "v1", Kind: "Status"}
}
