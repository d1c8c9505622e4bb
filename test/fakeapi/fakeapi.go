// Package fakeapi is an API server for tests: it keeps objects in memory, of the
// resources it was told of, and speaks get, list, watch, create, update and delete
// the way clients of Kubernetes expect, over plain HTTP and in JSON.
//
//	api := fakeapi.New(fakeapi.Resource{Version: "v1", Name: "services", Kind: "Service", Namespaced: true})
//	server := httptest.NewServer(api)
//	err := api.Apply(`{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}}`)
//
// It defaults, validates and forbids nothing: objects are given as the real server
// would have stored them. Selectors of fields may name any field. Clients have to ask
// for JSON (contentType application/json): it knows no protobuf.
package fakeapi

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
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

// apiVersion is what objects of the resource have in that field.
func (r Resource) apiVersion() string {
	return schema.GroupVersion{Group: r.Group, Version: r.Version}.String()
}

func (r Resource) groupResource() schema.GroupResource {
	return schema.GroupResource{Group: r.Group, Resource: r.Name}
}

// Server is the API server. It is an [http.Handler].
type Server struct {
	// BookmarkInterval is how often a watch that asked for it is told how far it is;
	// set before the first request.
	BookmarkInterval time.Duration

	mu        sync.Mutex
	resources []Resource
	objects   map[Resource]map[types.NamespacedName]*unstructured.Unstructured
	// history is every change since version oldest; the last made version.
	history         []change
	oldest, version int
	changed         chan struct{} // closed at the next change
	cut             chan struct{} // closed to end all watches
}

// change is one write. Objects are never written to once they are stored.
type change struct {
	resource Resource
	// before is nil for a new object, after for one that was deleted.
	before, after *unstructured.Unstructured
	version       int
}

// New makes a server without objects.
func New(resources ...Resource) *Server {
	s := &Server{
		BookmarkInterval: time.Minute, // about that of the real one
		resources:        resources,
		objects:          map[Resource]map[types.NamespacedName]*unstructured.Unstructured{},
		// Version 0 means any to a client, so the empty server has another one.
		version: 1, oldest: 1,
		changed: make(chan struct{}), cut: make(chan struct{}),
	}
	for _, r := range resources {
		s.objects[r] = map[types.NamespacedName]*unstructured.Unstructured{}
	}
	return s
}

// Apply creates the objects of manifests, YAML or JSON, one after the other, and
// replaces those that exist.
func (s *Server) Apply(manifests string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for d := yaml.NewYAMLOrJSONDecoder(strings.NewReader(manifests), 4096); ; {
		var o unstructured.Unstructured
		if err := d.Decode(&o.Object); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("reading manifests: %w", err)
		}
		if o.Object == nil {
			continue // nothing between two separators
		}
		r, err := s.resourceOf(&o)
		if err != nil {
			return err
		}
		s.put(r, &o)
	}
}

// Delete removes an object, named by its resource.
func (s *Server) Delete(r Resource, namespace, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.remove(r, types.NamespacedName{Namespace: namespace, Name: name})
	return err
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
	s.history, s.oldest = nil, s.version
}

func (s *Server) resourceOf(o *unstructured.Unstructured) (Resource, error) {
	for _, r := range s.resources {
		if r.apiVersion() == o.GetAPIVersion() && r.Kind == o.GetKind() {
			return r, nil
		}
	}
	return Resource{}, fmt.Errorf("object %q: the server was not told of %s of %s", o.GetName(), o.GetKind(), o.GetAPIVersion())
}

// put stores an object, which the caller leaves alone from then on.
func (s *Server) put(r Resource, o *unstructured.Unstructured) *unstructured.Unstructured {
	key := types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
	before := s.objects[r][key]
	o.SetAPIVersion(r.apiVersion())
	o.SetKind(r.Kind)
	o.SetResourceVersion(strconv.Itoa(s.version + 1))
	if before != nil {
		o.SetUID(before.GetUID())
		o.SetCreationTimestamp(before.GetCreationTimestamp())
	} else {
		o.SetUID(types.UID(fmt.Sprintf("%s-%s-%d", r.Name, key.Name, s.version+1)))
		o.SetCreationTimestamp(now())
	}
	s.objects[r][key] = o
	s.record(change{resource: r, before: before, after: o})
	return o
}

// remove deletes an object and returns it as its watchers see it.
func (s *Server) remove(r Resource, key types.NamespacedName) (*unstructured.Unstructured, error) {
	before := s.objects[r][key]
	if before == nil {
		return nil, apierrors.NewNotFound(r.groupResource(), key.Name)
	}
	delete(s.objects[r], key)
	s.record(change{resource: r, before: before})
	return before, nil
}

func (s *Server) record(c change) {
	s.version++
	c.version = s.version
	s.history = append(s.history, c)
	close(s.changed)
	s.changed = make(chan struct{})
}

var _ http.Handler = (*Server)(nil)
