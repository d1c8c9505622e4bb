package fakeapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/podmark/podmark/test/fakeapi"
	"github.com/podmark/podmark/test/wait"
)

// client-go is the judge: what its client and its informers make of the server.

var (
	pods       = fakeapi.Resource{Version: "v1", Name: "pods", Kind: "Pod", Namespaced: true}
	namespaces = fakeapi.Resource{Version: "v1", Name: "namespaces", Kind: "Namespace"}
	things     = fakeapi.Resource{Group: "example.org", Version: "v1", Name: "things", Kind: "Thing"}
	policies   = fakeapi.Resource{Group: "networking.k8s.io", Version: "v1", Name: "networkpolicies", Kind: "NetworkPolicy", Namespaced: true}
)

func serve(t *testing.T) (*fakeapi.Server, *dynamic.DynamicClient, string) {
	t.Helper()
	api := fakeapi.New(pods, namespaces, policies, things)
	api.BookmarkInterval = 10 * time.Millisecond
	server := httptest.NewServer(api)
	t.Cleanup(func() {
		api.Disconnect()
		server.CloseClientConnections()
		server.Close()
	})
	client, err := dynamic.NewForConfig(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	return api, client, server.URL
}

func gvr(r fakeapi.Resource) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: r.Group, Version: r.Version, Resource: r.Name}
}

func object(r fakeapi.Resource, namespace, name string, labels map[string]string) *unstructured.Unstructured {
	o := &unstructured.Unstructured{}
	o.SetAPIVersion(gvr(r).GroupVersion().String())
	o.SetKind(r.Kind)
	o.SetNamespace(namespace)
	o.SetName(name)
	o.SetLabels(labels)
	return o
}

func pod(name, app string) string {
	return fmt.Sprintf("---\n{apiVersion: v1, kind: Pod, metadata: {name: %s, namespace: shop, labels: {app: %s}}, spec: {nodeName: n1}}\n", name, app)
}

func TestObjects(t *testing.T) {
	_, client, _ := serve(t)
	ctx := t.Context()
	c := client.Resource(gvr(policies)).Namespace("shop")
	made, err := c.Create(ctx, object(policies, "", "deny", nil), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if made.GetNamespace() != "shop" || made.GetUID() == "" || made.GetResourceVersion() == "" {
		t.Errorf("the new object lacks a namespace, a UID or a version: %v", made)
	}
	if _, err := c.Create(ctx, object(policies, "", "deny", nil), metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
		t.Errorf("creating it again: %v, want that it exists", err)
	}
	changed := made.DeepCopy()
	changed.SetLabels(map[string]string{"a": "b"})
	if changed, err = c.Update(ctx, changed, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if changed.GetUID() != made.GetUID() || changed.GetResourceVersion() == made.GetResourceVersion() {
		t.Errorf("updated, the object has UID %s and version %s after %s and %s", changed.GetUID(), changed.GetResourceVersion(), made.GetUID(), made.GetResourceVersion())
	}
	if _, err := c.Update(ctx, made, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		t.Errorf("updating an old version: %v, want a conflict", err)
	}
	if got, err := c.Get(ctx, "deny", metav1.GetOptions{}); err != nil || got.GetLabels()["a"] != "b" {
		t.Errorf("getting it: %v, %v", got, err)
	}
	for _, o := range []*unstructured.Unstructured{object(policies, "", "none", nil), object(policies, "", "", nil)} {
		if _, err := c.Update(ctx, o, metav1.UpdateOptions{}); err == nil {
			t.Errorf("updating %q worked", o.GetName())
		}
	}
	if err := c.Delete(ctx, "deny", metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := c.Get(ctx, "deny", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("getting it when it is deleted: %v, want that it is not found", err)
	}
	if err := c.Delete(ctx, "deny", metav1.DeleteOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("deleting it again: %v, want that it is not found", err)
	}
	if _, err := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "secrets"}).List(ctx, metav1.ListOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("a resource it was not told of: %v, want that it is not found", err)
	}
	for _, manifest := range []string{"{apiVersion: v1, kind: Secret, metadata: {name: a}}", "a: b: c"} {
		if err := fakeapi.New(pods).Apply(manifest); err == nil {
			t.Errorf("%q was accepted", manifest)
		}
	}
}

func TestSelectors(t *testing.T) {
	api, client, _ := serve(t)
	if err := api.Apply(pod("a", "web") + pod("b", "db") + "---\n{apiVersion: v1, kind: Namespace, metadata: {name: shop}}"); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		namespace, labels, fields, want string
	}{
		{"", "", "", "a b"},
		{"shop", "", "", "a b"},
		{"other", "", "", ""},
		{"", "app=web", "", "a"},
		{"", "!app", "", ""},
		{"", "", "metadata.name=b", "b"},
		{"", "", "spec.nodeName!=n1", ""},
		{"shop", "app=db", "spec.nodeName=n1", "b"},
		{"", "", "spec.nodeName!=,metadata.name!=a", "b"},
	} {
		list, err := client.Resource(gvr(pods)).Namespace(tt.namespace).List(t.Context(), metav1.ListOptions{LabelSelector: tt.labels, FieldSelector: tt.fields})
		if err != nil {
			t.Errorf("%+v: %v", tt, err)
			continue
		}
		var got []string
		for _, o := range list.Items {
			got = append(got, o.GetName())
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%+v: got %q", tt, got)
		}
	}
	if _, err := client.Resource(gvr(pods)).List(t.Context(), metav1.ListOptions{LabelSelector: "=="}); !apierrors.IsBadRequest(err) {
		t.Errorf("a selector that is none: %v, want a bad request", err)
	}
	if _, err := client.Resource(gvr(policies)).List(t.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=n1"}); !apierrors.IsBadRequest(err) {
		t.Errorf("a field that policies have not: %v, want a bad request", err)
	}
	if list, err := client.Resource(gvr(namespaces)).List(t.Context(), metav1.ListOptions{}); err != nil || len(list.Items) != 1 {
		t.Errorf("namespaces: %v, %v", list, err)
	}
}

// next is the next event of a watch.
func next(t *testing.T, w watch.Interface) watch.Event {
	t.Helper()
	return wait.Next(t, "a watch", w.ResultChan())
}

func names(e watch.Event) string {
	if o, ok := e.Object.(*unstructured.Unstructured); ok {
		return string(e.Type) + " " + o.GetName()
	}
	return string(e.Type)
}

func versionOf(t *testing.T, e watch.Event) int {
	t.Helper()
	version, err := strconv.Atoi(e.Object.(*unstructured.Unstructured).GetResourceVersion())
	if err != nil {
		t.Fatal(err)
	}
	return version
}

// A watch sees what a selector picks come and go, also by a change of the object.
func TestWatch(t *testing.T) {
	api, client, _ := serve(t)
	apply := func(manifests string) {
		t.Helper()
		if err := api.Apply(manifests); err != nil {
			t.Fatal(err)
		}
	}
	apply(pod("old", "web"))
	list, err := client.Resource(gvr(pods)).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	start := func(o metav1.ListOptions) watch.Interface {
		t.Helper()
		o.LabelSelector = "app=web"
		w, err := client.Resource(gvr(pods)).Watch(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(w.Stop)
		return w
	}
	w := start(metav1.ListOptions{ResourceVersion: list.GetResourceVersion()})
	apply(pod("other", "db") + pod("new", "web") + pod("new", "db") + pod("other", "web") + pod("other", "web"))
	if err := api.Delete(pods, "shop", "old"); err != nil {
		t.Fatal(err)
	}
	last := 0
	for _, want := range []string{"ADDED new", "DELETED new", "ADDED other", "MODIFIED other", "DELETED old"} {
		e := next(t, w)
		if names(e) != want {
			t.Errorf("got %s, want %s", names(e), want)
		}
		last = versionOf(t, e)
	}

	// From the beginning, with and without its end being told.
	if e := next(t, start(metav1.ListOptions{})); names(e) != "ADDED other" {
		t.Errorf("a watch from the beginning says %s", names(e))
	}
	yes := true
	w = start(metav1.ListOptions{SendInitialEvents: &yes, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan, AllowWatchBookmarks: true})
	if e := next(t, w); names(e) != "ADDED other" {
		t.Errorf("a streaming list says %s", names(e))
	}
	if e := next(t, w); e.Type != watch.Bookmark || e.Object.(*unstructured.Unstructured).GetAnnotations()[metav1.InitialEventsAnnotationKey] != "true" {
		t.Errorf("a streaming list ends with %v", e)
	}
	// Bookmarks say how far it is, without an event that it sees.
	apply(pod("unseen", "db"))
	wait.For(t, fmt.Sprintf("a bookmark is newer than %d", last), func() bool { return versionOf(t, next(t, w)) > last })

	api.Compact()
	for _, version := range []string{list.GetResourceVersion(), "1000000"} {
		if e := next(t, start(metav1.ListOptions{ResourceVersion: version})); !apierrors.IsResourceExpired(apierrors.FromObject(e.Object)) {
			t.Errorf("a watch from version %s says %v, want that it is expired", version, e.Object)
		}
	}
	one := int64(1)
	w = start(metav1.ListOptions{TimeoutSeconds: &one})
	next(t, w)
	select {
	case _, open := <-w.ResultChan():
		if open {
			t.Error("a watch without a change had an event")
		}
	case <-time.After(wait.Still):
		t.Error("a watch of 1 s does not end")
	}
}

// An informer stays current when its watch ends, and when what it missed is forgotten.
func TestInformer(t *testing.T) {
	api, client, _ := serve(t)
	if err := api.Apply(pod("a", "web")); err != nil {
		t.Fatal(err)
	}
	informer := cache.NewSharedIndexInformer(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return client.Resource(gvr(pods)).List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return client.Resource(gvr(pods)).Watch(ctx, o)
		},
	}, &unstructured.Unstructured{}, 0, nil)
	go informer.RunWithContext(t.Context())
	has := func(want ...string) {
		t.Helper()
		wait.Until(t, "the informer is current", func() error {
			got, missing := informer.GetStore().ListKeys(), 0
			for _, name := range want {
				if _, ok, _ := informer.GetStore().GetByKey("shop/" + name); !ok {
					missing++
				}
			}
			if missing == 0 && len(got) == len(want) {
				return nil
			}
			return fmt.Errorf("it has %q, want %q", got, want)
		})
	}
	has("a")
	if err := api.Apply(pod("b", "db")); err != nil {
		t.Fatal(err)
	}
	has("a", "b")
	api.Disconnect()
	if err := api.Delete(pods, "shop", "a"); err != nil {
		t.Fatal(err)
	}
	has("b")
	api.Disconnect()
	if err := api.Apply(pod("c", "web")); err != nil {
		t.Fatal(err)
	}
	api.Compact()
	has("b", "c")
}

// What is no request of the API is answered as the API server answers it.
func TestWrongRequests(t *testing.T) {
	_, _, url := serve(t)
	for _, tt := range []struct {
		method, path, body string
		code               int
	}{
		{"GET", "/", "", http.StatusNotFound},
		{"GET", "/api/v1/pods/a/b/c", "", http.StatusNotFound},
		{"GET", "/api/v2/pods", "", http.StatusNotFound},
		{"PATCH", "/api/v1/namespaces/shop/pods/a", "{}", http.StatusMethodNotAllowed},
		{"POST", "/api/v1/namespaces/shop/pods", "[", http.StatusBadRequest},
		{"GET", "/api/v1/pods?watch=true&resourceVersion=x", "", http.StatusBadRequest},
		{"GET", "/api/v1/pods?limit=1&continue=x", "", http.StatusBadRequest},
	} {
		request, err := http.NewRequestWithContext(t.Context(), tt.method, url+tt.path, bytes.NewBufferString(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		var status metav1.Status
		if err := json.Unmarshal(body, &status); err != nil || response.StatusCode != tt.code || status.Kind != "Status" || int(status.Code) != tt.code {
			t.Errorf("%s %s: %d %s, %v; want a Status of %d", tt.method, tt.path, response.StatusCode, body, err, tt.code)
		}
	}
}

// What is refused has the status that the test says, and goes on when nothing is any more.
func TestRefuse(t *testing.T) {
	api, client, _ := serve(t)
	list := func(r fakeapi.Resource) error {
		_, err := client.Resource(gvr(r)).Namespace("shop").List(t.Context(), metav1.ListOptions{})
		return err
	}
	for _, status := range []int{400, 403, 413, 414, 422, 431, 503} {
		api.Refuse(func(r *http.Request) int {
			if strings.HasSuffix(r.URL.Path, "/pods") {
				return status
			}
			return 0
		})
		var refused apierrors.APIStatus
		if err := list(pods); !errors.As(err, &refused) || int(refused.Status().Code) != status {
			t.Errorf("status %d: %v", status, err)
		}
		if err := list(policies); err != nil {
			t.Errorf("status %d, of another resource: %v", status, err)
		}
	}
	api.Refuse(nil)
	if err := list(pods); err != nil {
		t.Error(err)
	}
}
