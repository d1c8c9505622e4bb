package fakeapi_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"

	"github.com/podmark/podmark/test/fakeapi"
	"github.com/podmark/podmark/test/wait"
)

// What a client has asked for and was sent is said of it and of nobody else.
func TestTraffic(t *testing.T) {
	api, _, url := serve(t)
	api.BookmarkInterval = time.Hour
	if err := api.Put(newPod("a", "n1"), newPod("b", "n2")); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	one, other := podsAt(t, rest.Config{Host: url, BearerToken: "one"}), podsAt(t, rest.Config{Host: url, BearerToken: "other"})
	if _, err := one.list(ctx, "", metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := one.get(ctx, "shop", "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := policiesAt(t, rest.Config{Host: url, BearerToken: "one"}).list(ctx, "shop", metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	w := other.watch(t, metav1.ListOptions{FieldSelector: "spec.nodeName=n2"})
	next(t, w)
	if err := api.Put(newPod("c", "n1"), newPod("d", "n2")); err != nil {
		t.Fatal(err)
	}
	if e := next(t, w); e.Object.(*corev1.Pod).Name != "d" {
		t.Errorf("%v", e)
	}
	const pods, policies = "pods", "networkpolicies.networking.k8s.io"
	got := api.Traffic()
	bytes := got["one"][pods].Bytes
	if each := got["other"][pods].Bytes / 2; each < 200 || bytes < 3*200 || bytes > 4*each {
		t.Errorf("%d bytes for 3 objects, %d for each of 2 others", bytes, each)
	}
	for _, of := range got {
		for resource, traffic := range of {
			traffic.Bytes = 0
			of[resource] = traffic
		}
	}
	want := map[string]map[string]fakeapi.Traffic{
		"one":   {pods: {Gets: 1, Lists: 1, Objects: 3}, policies: {Lists: 1}},
		"other": {pods: {Watches: 1, Objects: 2, Open: 1}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	w.Stop()
	wait.Until(t, "the watch is closed", func() error {
		if n := api.Traffic()["other"][pods].Open; n != 0 {
			return fmt.Errorf("%d are open", n)
		}
		return nil
	})
}

// Bytes are all those of the body, in each form and way.
func TestTrafficBytes(t *testing.T) {
	api, _, url := serve(t)
	if err := api.Put(newPod("a", "n1"), newPod("b", "n2")); err != nil {
		t.Fatal(err)
	}
	for i, accept := range []string{"application/json", protobuf, protobuf + ";as=PartialObjectMetadata;g=meta.k8s.io;v=v1"} {
		for j, path := range []string{"/api/v1/pods", "/api/v1/namespaces/shop/pods/a", "/api/v1/pods?watch=true&timeoutSeconds=1", "/api/v1/pods?fieldSelector=x"} {
			client := fmt.Sprintf("%d %d", i, j)
			request, err := http.NewRequestWithContext(t.Context(), "GET", url+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			request.Header.Set("Accept", accept)
			request.Header.Set("Authorization", "Bearer "+client)
			response, err := http.DefaultClient.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			n, err := io.Copy(io.Discard, response.Body)
			response.Body.Close()
			if got := api.Traffic()[client]["pods"].Bytes; err != nil || got != n || n == 0 {
				t.Errorf("%s of %s: %d bytes came, %d are counted, %v", accept, path, n, got, err)
			}
		}
	}
}

// A pod that gets a node comes to the watch of that node, and to no other.
func TestNodeWatch(t *testing.T) {
	api, _, url := serve(t)
	client := podsAt(t, rest.Config{Host: url})
	watches := map[string]watch.Interface{}
	for _, node := range []string{"n1", "n2"} {
		w := client.watch(t, metav1.ListOptions{FieldSelector: "spec.nodeName=" + node})
		watches[node] = w
	}
	if err := api.Put(newPod("a", ""), newPod("a", "n1"), newPod("b", "n2"), newPod("b", "n1")); err != nil {
		t.Fatal(err)
	}
	if err := api.Delete(pods, "shop", "a"); err != nil {
		t.Fatal(err)
	}
	for node, want := range map[string][]string{"n1": {"ADDED a n1", "ADDED b n1", "DELETED a n1"}, "n2": {"ADDED b n2", "DELETED b n2"}} {
		for _, text := range want {
			e := next(t, watches[node])
			p := e.Object.(*corev1.Pod)
			if got := fmt.Sprintf("%s %s %s", e.Type, p.Name, p.Spec.NodeName); got != text {
				t.Errorf("the watch of %s says %s, want %s", node, got, text)
			}
		}
	}
}

// A watch from before what is remembered is refused.
func TestHistory(t *testing.T) {
	api, _, url := serve(t)
	api.History = 10
	client := podsAt(t, rest.Config{Host: url})
	versions := map[int]string{}
	for i := range 30 {
		if err := api.Put(newPod("a", "n1")); err != nil {
			t.Fatal(err)
		}
		list, err := client.list(t.Context(), "", metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		versions[i] = list.ResourceVersion
	}
	for i, want := range map[int]watch.EventType{5: watch.Error, 20: watch.Modified} {
		w := client.watch(t, metav1.ListOptions{ResourceVersion: versions[i]})
		if e := next(t, w); e.Type != want {
			t.Errorf("a watch from change %d says %s, want %s", i, e.Type, want)
		}
	}
}

// A watch that does not read is ended when too much waits for it.
func TestSlowWatch(t *testing.T) {
	api, _, url := serve(t)
	api.History = 10
	big := newPod("a", "n1")
	big.Annotations["big"] = strings.Repeat("x", 100_000)
	request, err := http.NewRequestWithContext(t.Context(), "GET", url+"/api/v1/pods?watch=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer slow")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	wait.Until(t, "changes wait", func() error {
		waiting := api.Traffic()["slow"]["pods"].Waiting
		if waiting > 10 {
			t.Fatalf("%d changes wait", waiting)
		}
		if err := api.Put(big); err != nil {
			return err
		}
		if waiting < 10 {
			return errors.New("it takes everything")
		}
		return nil
	})
	lines := 0
	for scanner := bufio.NewReaderSize(response.Body, 1<<20); ; lines++ {
		if _, err := scanner.ReadBytes('\n'); err != nil {
			break
		}
	}
	if lines == 0 {
		t.Error("it ended without an event")
	}
}
