package fakeapi_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/pager"
)

const protobuf = runtime.ContentTypeProtobuf

func newPod(name, node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: "shop", Labels: map[string]string{"app": "web"}, Annotations: map[string]string{"note": "<&>"},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubelet", FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(`{"f:status":{}}`)}},
		},
		Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}}}},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "fd00::1"}},
		},
	}
}

// A typed client sees the same objects in JSON and in protobuf, in every answer.
func TestForms(t *testing.T) {
	for name, config := range map[string]rest.ContentConfig{
		"JSON":     {ContentType: runtime.ContentTypeJSON},
		"protobuf": {ContentType: protobuf, AcceptContentTypes: protobuf},
	} {
		t.Run(name, func(t *testing.T) {
			api, _, url := serve(t)
			client := podsAt(t, rest.Config{Host: url, ContentConfig: config})
			ctx := t.Context()
			made, err := client.create(ctx, "shop", newPod("a", "n1"))
			if err != nil {
				t.Fatal(err)
			}
			want := newPod("a", "n1")
			want.UID, want.ResourceVersion, want.CreationTimestamp = made.UID, made.ResourceVersion, made.CreationTimestamp
			if want.UID == "" || want.ResourceVersion == "" {
				t.Error("it has no UID or no version")
			}
			same := func(what string, got *corev1.Pod) {
				t.Helper()
				got = got.DeepCopy()
				got.TypeMeta = metav1.TypeMeta{} // which a client clears of typed objects, or not
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s: %s", what, diff)
				}
			}
			same("created", made)
			got, err := client.get(ctx, "shop", "a")
			if err != nil {
				t.Fatal(err)
			}
			same("got", got)
			list, err := client.list(ctx, "", metav1.ListOptions{})
			if err != nil || len(list.Items) != 1 {
				t.Fatalf("%+v, %v", list, err)
			}
			same("listed", &list.Items[0])

			w := client.watch(t, streamed())
			same("at the beginning of a watch", next(t, w).Object.(*corev1.Pod))
			if e := next(t, w); e.Type != watch.Bookmark || e.Object.(*corev1.Pod).Annotations[metav1.InitialEventsAnnotationKey] != "true" || e.Object.(*corev1.Pod).ResourceVersion != list.ResourceVersion {
				t.Errorf("a streaming list ends with %v", e)
			}
			event := func() watch.Event {
				t.Helper()
				for {
					if e := next(t, w); e.Type != watch.Bookmark {
						return e
					}
				}
			}
			got.Labels["app"] = "db"
			if err := client.update(ctx, got); err != nil {
				t.Fatal(err)
			}
			e := event()
			want.Labels["app"], want.ResourceVersion = "db", e.Object.(*corev1.Pod).ResourceVersion
			same("changed", e.Object.(*corev1.Pod))
			if e.Type != watch.Modified || want.ResourceVersion == got.ResourceVersion {
				t.Errorf("a change is %s of version %s", e.Type, want.ResourceVersion)
			}
			if err := client.remove(ctx, "shop", "a"); err != nil {
				t.Fatal(err)
			}
			if e = event(); e.Type != watch.Deleted || e.Object.(*corev1.Pod).ResourceVersion == want.ResourceVersion {
				t.Errorf("deleting is %s of version %s", e.Type, e.Object.(*corev1.Pod).ResourceVersion)
			}

			if _, err := client.get(ctx, "shop", "a"); !apierrors.IsNotFound(err) {
				t.Errorf("what is not there: %v", err)
			}
			api.Compact()
			w = client.watch(t, metav1.ListOptions{ResourceVersion: made.ResourceVersion})
			if e := next(t, w); !apierrors.IsResourceExpired(apierrors.FromObject(e.Object)) {
				t.Errorf("a watch from a version that is forgotten says %v", e.Object)
			}
			policy := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{"Ingress"}}}
			if p, err := policiesAt(t, rest.Config{Host: url, ContentConfig: config}).create(ctx, "shop", policy); err != nil || p.Namespace != "shop" || !cmp.Equal(p.Spec, policy.Spec) {
				t.Errorf("a policy: %+v, %v", p, err)
			}
		})
	}
}

// A client of metadata gets that alone, in JSON, in protobuf, and of kinds without types.
func TestMetadata(t *testing.T) {
	api, _, url := serve(t)
	if err := api.Apply(`{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: a}}, spec: {finalizers: [kubernetes]}}
---
{apiVersion: example.org/v1, kind: Thing, metadata: {name: shop, labels: {team: a}}, spec: {any: 1}}`); err != nil {
		t.Fatal(err)
	}
	client, err := metadata.NewForConfig(&rest.Config{Host: url})
	if err != nil {
		t.Fatal(err)
	}
	labels := func(o runtime.Object) string { return o.(*metav1.PartialObjectMetadata).Labels["team"] }
	for _, resource := range []string{"namespaces", "things"} {
		c := client.Resource(gvr(namespaces))
		if resource == "things" {
			c = client.Resource(gvr(things))
		}
		if o, err := c.Get(t.Context(), "shop", metav1.GetOptions{}); err != nil || labels(o) != "a" {
			t.Errorf("getting %s: %v, %v", resource, o, err)
		}
		list, err := c.List(t.Context(), metav1.ListOptions{})
		if err != nil || len(list.Items) != 1 || labels(&list.Items[0]) != "a" {
			t.Fatalf("listing %s: %v, %v", resource, list, err)
		}
		w, err := c.Watch(t.Context(), streamed())
		if err != nil {
			t.Fatal(err)
		}
		defer w.Stop()
		if e := next(t, w); e.Type != watch.Added || labels(e.Object) != "a" {
			t.Errorf("watching %s: %v", resource, e)
		}
		if e := next(t, w); e.Type != watch.Bookmark || e.Object.(*metav1.PartialObjectMetadata).Annotations[metav1.InitialEventsAnnotationKey] != "true" {
			t.Errorf("watching %s: %v", resource, e)
		}
	}

	const metadataOnly = ";as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
	for _, tt := range []struct {
		path, accept string
		code         int
		contentType  string
	}{
		{"/api/v1/namespaces", "application/json" + metadataOnly, 200, "application/json"},
		{"/api/v1/namespaces", protobuf + metadataOnly, 200, protobuf},
		{"/api/v1/namespaces", "", 200, "application/json"},
		{"/api/v1/namespaces", "application/cbor, application/json;as=Table;g=meta.k8s.io;v=v1, */*", 200, "application/json"},
		{"/api/v1/namespaces", "text/html", 406, "application/json"},
		{"/apis/example.org/v1/things", protobuf + ", application/json", 200, "application/json"},
		{"/apis/example.org/v1/things", protobuf, 406, "application/json"},
	} {
		request, err := http.NewRequestWithContext(t.Context(), "GET", url+tt.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Accept", tt.accept)
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || response.StatusCode != tt.code || response.Header.Get("Content-Type") != tt.contentType {
			t.Errorf("%s as %q: %d %v, %v", tt.path, tt.accept, response.StatusCode, response.Header, err)
		}
		if partial := strings.Contains(tt.accept, "Partial"); strings.Contains(string(body), "finalizers") && partial {
			t.Errorf("%s as %q has more than metadata: %q", tt.path, tt.accept, body)
		}
	}
}

// Pages together are the list, and a watch from the version of the first makes up for
// what has changed between them.
func TestPages(t *testing.T) {
	api, _, url := serve(t)
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		if err := api.Put(newPod(name, "n1"), newPod(name+"-other", "n2")); err != nil {
			t.Fatal(err)
		}
	}
	client := podsAt(t, rest.Config{Host: url, ContentConfig: rest.ContentConfig{ContentType: protobuf}})
	var sizes []int
	var names []string
	version := ""
	p := pager.New(func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
		list, err := client.list(ctx, "", o)
		if err != nil {
			return nil, err
		}
		if version == "" {
			version = list.ResourceVersion
			if err := api.Delete(pods, "shop", "e"); err != nil {
				return nil, err
			}
			if *list.RemainingItemCount != 3 {
				t.Errorf("%d are to come", *list.RemainingItemCount)
			}
		}
		sizes = append(sizes, len(list.Items))
		if list.ResourceVersion != version {
			t.Errorf("a page of version %s after one of %s", list.ResourceVersion, version)
		}
		return list, nil
	})
	p.PageSize = 2
	err := p.EachListItem(t.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=n1"}, func(o runtime.Object) error {
		names = append(names, o.(*corev1.Pod).Name)
		return nil
	})
	if err != nil || !cmp.Equal(sizes, []int{2, 2}) || !cmp.Equal(names, []string{"a", "b", "c", "d"}) {
		t.Errorf("pages of %v with %v, %v", sizes, names, err)
	}
	w := client.watch(t, metav1.ListOptions{FieldSelector: "spec.nodeName=n1", ResourceVersion: version})
	if e := next(t, w); e.Type != watch.Deleted || e.Object.(*corev1.Pod).Name != "e" {
		t.Errorf("a watch from there says %v", e)
	}
}
