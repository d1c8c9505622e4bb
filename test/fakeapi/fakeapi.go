// Package fakeapi is an API server for tests: it keeps objects in memory, of the
// resources it was told of, and speaks get, list, watch, create, update and delete
// the way clients of Kubernetes expect, over plain HTTP: in JSON, in protobuf for the
// kinds it has types for, and metadata alone where the client asks for that.
//
//	api := fakeapi.New(fakeapi.Resource{Version: "v1", Name: "services", Kind: "Service", Namespaced: true})
//	server := httptest.NewServer(api)
//	err := api.Apply(`{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}}`)
//
// It defaults, validates and forbids nothing: objects are given as the real server
// would have stored them. It is made for many objects: a change is offered only to the
// watches of its resource, namespace and node, and an object is encoded once, whoever
// asks for it. [Server.Traffic] says what each client was sent; who it is, its bearer
// token says. Nothing is compressed.
package fakeapi

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// Resource is a kind of object that the server keeps.
type Resource struct {
	Group      string // empty for the core group
	Version    string
	Name       string // as in paths: "services"
	Kind       string // "Service"
	Namespaced bool
}

func (r Resource) gvk() schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: r.Group, Version: r.Version, Kind: r.Kind}
}

func (r Resource) groupResource() schema.GroupResource {
	return schema.GroupResource{Group: r.Group, Resource: r.Name}
}

// Server is the API server. It is an [http.Handler].
type Server struct {
	// BookmarkInterval is how often a watch that asked for it is told how far it is,
	// History how many changes of a resource are remembered, and how many a watch may
	// be behind before it is ended. Both are set before the first request.
	BookmarkInterval time.Duration
	History          int

	scheme *runtime.Scheme
	meters meters
	refuse atomic.Pointer[func(*http.Request) int]

	mu          sync.RWMutex
	resources   []Resource
	collections map[Resource]*collection
	version     int           // the last that was made
	cut         chan struct{} // closed to end all watches
}

// New makes a server without objects.
func New(resources ...Resource) *Server {
	s := &Server{
		BookmarkInterval: time.Minute, // about that of the real one
		History:          10_000,
		scheme:           newScheme(),
		resources:        resources,
		collections:      map[Resource]*collection{},
		// Version 0 means any to a client, so the empty server has another one.
		version: 1,
		cut:     make(chan struct{}),
	}
	for _, r := range resources {
		s.collections[r] = newCollection(s.version)
	}
	return s
}

// Apply creates the objects of manifests, YAML or JSON, one after the other, and
// replaces those that exist.
func (s *Server) Apply(manifests string) error {
	for d := yaml.NewYAMLOrJSONDecoder(strings.NewReader(manifests), 4096); ; {
		var raw runtime.RawExtension
		if err := d.Decode(&raw); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("reading manifests: %w", err)
		}
		if len(raw.Raw) == 0 || string(raw.Raw) == "null" {
			continue // nothing between two separators
		}
		o, err := s.decodeJSON(raw.Raw, schema.GroupVersionKind{})
		if err != nil {
			return fmt.Errorf("reading manifests: %w", err)
		}
		if err := s.Put(o); err != nil {
			return err
		}
	}
}

// Object is what the server takes: a typed object or an unstructured one.
type Object interface {
	runtime.Object
	metav1.Object
}

// Put creates objects, or replaces those that exist. A new one without a UID gets one,
// as it gets the time of its creation. The caller leaves the objects alone from then
// on, and what they share with others must not change.
func (s *Server) Put(objects ...Object) error {
	for _, o := range objects {
		r, err := s.resourceOf(o)
		if err != nil {
			return err
		}
		s.mu.Lock()
		_, err = s.put(r, o)
		s.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// Delete removes an object, named by its resource.
func (s *Server) Delete(r Resource, namespace, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.remove(r, namespace, name)
	return err
}

// Refuse has requests answered with a status of HTTP, as f says; 0 lets one through. A nil f
// refuses none. Watches that are open go on until [Server.Disconnect].
func (s *Server) Refuse(f func(*http.Request) int) {
	if f == nil {
		s.refuse.Store(nil)
		return
	}
	s.refuse.Store(&f)
}

// Disconnect ends all watches; clients may start others at once.
func (s *Server) Disconnect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.cut)
	s.cut = make(chan struct{})
}

// Compact forgets what has changed: a watch from before is refused as expired.
func (s *Server) Compact() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.collections {
		c.history, c.oldest = nil, s.version
	}
}

func (s *Server) resourceOf(o Object) (Resource, error) {
	kind := o.GetObjectKind().GroupVersionKind()
	if kinds, _, err := s.scheme.ObjectKinds(o); kind.Empty() && err == nil {
		kind = kinds[0]
	}
	for _, r := range s.resources {
		if r.gvk() == kind {
			return r, nil
		}
	}
	return Resource{}, fmt.Errorf("object %q: the server was not told of %s", o.GetName(), kind)
}

// put stores an object under the next version.
func (s *Server) put(r Resource, o Object) (*object, error) {
	c := s.collections[r]
	before := c.get(o.GetNamespace(), o.GetName())
	switch {
	case before != nil:
		o.SetUID(before.uid)
		o.SetCreationTimestamp(before.created)
	default:
		if o.GetUID() == "" {
			o.SetUID(newUID(r, o.GetName(), s.version+1))
		}
		if when := o.GetCreationTimestamp(); when.IsZero() {
			o.SetCreationTimestamp(metav1.NewTime(time.Now().Truncate(time.Second)))
		}
	}
	after, err := s.encode(r, o, s.version+1)
	if err != nil {
		return nil, err
	}
	c.set(after)
	s.record(c, &change{before: before, after: after})
	return after, nil
}

// remove deletes an object and returns it as its watchers see it.
func (s *Server) remove(r Resource, namespace, name string) (*object, error) {
	c := s.collections[r]
	if c == nil {
		return nil, fmt.Errorf("deleting %q: the server was not told of %s", name, r.Name)
	}
	before := c.get(namespace, name)
	if before == nil {
		return nil, apierrors.NewNotFound(r.groupResource(), name)
	}
	c.drop(before)
	gone := &change{before: before}
	s.record(c, gone)
	return gone.gone(), nil
}

func (s *Server) record(c *collection, n *change) {
	s.version++
	n.version = s.version
	c.remember(n, s.History)
	c.offer(n, s.History)
}
