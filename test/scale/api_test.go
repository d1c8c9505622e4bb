package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/podmark/podmark/test/scale/cluster"
	"github.com/podmark/podmark/test/wait"
)

// What the server has is the cluster, also after events, and each client is told of
// how it is.
func TestAPI(t *testing.T) {
	a, err := newAPI(cluster.Options{Seed: 1, Nodes: 5, Pods: 200, Namespaces: 10, Policies: 30, Mix: cluster.FewClusterWide})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(path string, v any) {
		t.Helper()
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", path, nil)
		r.Header.Set("Authorization", "Bearer test")
		a.ServeHTTP(w, r)
		if w.Code != 200 {
			t.Fatalf("%s: %d %s", path, w.Code, w.Body)
		}
		if v == nil {
			return
		}
		if err := json.Unmarshal(w.Body.Bytes(), v); err != nil {
			t.Fatal(err)
		}
	}
	same := func() {
		t.Helper()
		var list corev1.PodList
		ask("/api/v1/pods", &list)
		var got, want []string
		for _, p := range list.Items {
			got = append(got, p.Name+" "+p.Spec.NodeName+" "+p.Labels["role"]+" "+p.Status.PodIP)
		}
		for p := range a.cluster.Pods() {
			want = append(want, p.Name+" "+p.Spec.NodeName+" "+p.Labels["role"]+" "+p.Status.PodIP)
		}
		slices.Sort(got)
		slices.Sort(want)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	same()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- a.goOn(ctx) }()
	ask(ratePath+"?5000", nil)
	var s apiState
	wait.Until(t, "events come", func() error {
		if ask(statePath, &s); s.Events < 2000 {
			return fmt.Errorf("there were %d", s.Events)
		}
		return nil
	})
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	same()
	ask(statePath, &s)
	if got := s.Traffic["test"]["pods"]; got.Lists != 2 || got.Objects < 300 {
		t.Errorf("two lists are %+v", got)
	}
}
