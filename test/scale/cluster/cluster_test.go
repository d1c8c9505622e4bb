package cluster_test

import (
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/podmark/podmark/pkg/policy"
	"github.com/podmark/podmark/test/scale/cluster"
)

func options(mix cluster.Mix) cluster.Options {
	return cluster.Options{Seed: 1, Nodes: 20, Pods: 2_000, Namespaces: 100, Policies: 400, Local: 50, Mix: mix}
}

func build(t *testing.T, o cluster.Options) *cluster.Cluster {
	t.Helper()
	c, err := cluster.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func count[T any](s iter.Seq[T]) int { return len(slices.Collect(s)) }

// A cluster has what was asked for, and objects as large as real ones.
func TestSizes(t *testing.T) {
	o := options(cluster.SameNamespace)
	c := build(t, o)
	if got := [3]int{count(c.Namespaces()), count(c.Pods()), count(c.Policies())}; got != [3]int{o.Namespaces, o.Pods, o.Policies} {
		t.Errorf("there are %v namespaces, pods and policies", got)
	}
	local, namespaces := 0, map[string]int{}
	var least, most, sum, protobuf int
	for p := range c.Pods() {
		b, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		sum, protobuf = sum+len(b), protobuf+p.Size()
		if least == 0 || len(b) < least {
			least = len(b)
		}
		most = max(most, len(b))
		namespaces[p.Namespace]++
		if p.Spec.NodeName == cluster.Node(0) && !p.Spec.HostNetwork {
			local++
		}
		if len(p.Status.PodIPs) != 2 || p.Status.PodIPs[0].IP != p.Status.PodIP || p.Status.Phase != corev1.PodRunning {
			t.Fatalf("%s/%s does not run with two addresses: %+v", p.Namespace, p.Name, p.Status)
		}
		for _, f := range p.ManagedFields {
			if b := f.FieldsV1.GetRawBytes(); !json.Valid(b) {
				t.Fatalf("managed fields are no JSON: %s", b)
			}
		}
	}
	t.Logf("a pod has %d bytes of JSON (%d to %d), %d of protobuf", sum/o.Pods, least, most, protobuf/o.Pods)
	if mean := sum / o.Pods; mean < 4_000 || mean > 8_000 || least < 4_000 || most > 10_000 {
		t.Errorf("pods have %d to %d bytes", least, most)
	}
	if local != o.Local || len(namespaces) != o.Namespaces {
		t.Errorf("%d local pods, pods in %d namespaces", local, len(namespaces))
	}
}

// What is asked of policies is what they mention, and all of them are valid.
func TestMixes(t *testing.T) {
	wide := func(p *networkingv1.NetworkPolicy) (any, named bool) {
		for _, r := range p.Spec.Ingress {
			for _, peer := range r.From {
				if s := peer.NamespaceSelector; s != nil && s.MatchLabels[corev1.LabelMetadataName] != "" {
					named = true
				} else if s != nil {
					any = true
				}
			}
		}
		return any, named
	}
	for mix, want := range map[cluster.Mix][2]int{cluster.SameNamespace: {0, 0}, cluster.FewClusterWide: {8, 28}, cluster.AllClusterWide: {300, 0}} {
		var got [2]int
		for p := range build(t, options(mix)).Policies() {
			any, named := wide(p)
			if any {
				got[0]++
			}
			if named {
				got[1]++
			}
			if errs := policy.Validate(p); len(errs) > 0 {
				t.Errorf("%s: %v", p.Name, errs.ToAggregate())
			}
		}
		if got != want {
			t.Errorf("%s: %v policies are of any namespace and of one by name, want %v", mix, got, want)
		}
	}
	for name, o := range map[string]cluster.Options{
		"no nodes": {Pods: 10, Namespaces: 3}, "no pods": {Nodes: 3, Namespaces: 10}, "one namespace": {Nodes: 3, Pods: 100, Namespaces: 1},
		"no room": {Nodes: 2, Pods: 5000, Namespaces: 3}, "another mix": {Nodes: 3, Pods: 100, Namespaces: 3, Mix: "x"},
	} {
		if _, err := cluster.New(o); err == nil {
			t.Errorf("%s: it was made", name)
		}
	}
}

// The same options give the same objects and events, another seed gives others.
func TestSeed(t *testing.T) {
	say := func(seed uint64) []string {
		o := options(cluster.FewClusterWide)
		o.Seed = seed
		c := build(t, o)
		var out []string
		for range 200 {
			e := c.Next()
			b, err := json.Marshal(e.Object)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, fmt.Sprint(e.What, e.Deleted, string(b)))
		}
		return out
	}
	if diff := cmp.Diff(say(1), say(1)); diff != "" {
		t.Error(diff)
	}
	if cmp.Equal(say(1), say(2)) {
		t.Error("two seeds give the same events")
	}
}

// Events are what can happen to a cluster: pods come, run and go, none has the address
// of another that runs, addresses are reused, also while who had them is still there,
// and pods of the first node stay.
func TestChurn(t *testing.T) {
	o := options(cluster.FewClusterWide)
	c := build(t, o)
	there, owners, former := map[string]*corev1.Pod{}, map[string]string{}, map[string]bool{}
	reused, beside, seen := 0, 0, map[string]int{}
	holds := func(p *corev1.Pod) bool {
		return p.Status.PodIP != "" && !p.Spec.HostNetwork && p.Status.Phase != corev1.PodSucceeded
	}
	key := func(p *corev1.Pod) string { return p.Namespace + "/" + p.Name }
	for p := range c.Pods() {
		there[key(p)] = p
		if holds(p) && owners[p.Status.PodIP] != "" {
			t.Fatalf("%s and %s have %s", key(p), owners[p.Status.PodIP], p.Status.PodIP)
		}
		owners[p.Status.PodIP] = key(p)
	}
	// before is what must have been said of a pod last.
	before := map[string]corev1.PodPhase{"scheduled": "Pending", "running": "Pending", "relabelled": "Running", "terminating": "Running", "stopped": "Running", "completed": "Running"}
	for i := range 8_000 {
		e := c.Next()
		seen[e.What]++
		p, ok := e.Object.(*corev1.Pod)
		if !ok {
			continue
		}
		was := there[key(p)]
		switch {
		case (e.What == "created") != (was == nil):
			t.Fatalf("event %d: %s of %s, which was %v", i, e.What, key(p), was)
		case was != nil && was.Spec.NodeName != "" && was.Spec.NodeName != p.Spec.NodeName:
			t.Fatalf("event %d: %s moves", i, key(p))
		case was != nil && before[e.What] != "" && was.Status.Phase != before[e.What]:
			t.Fatalf("event %d: %s of %s, which was %s", i, e.What, key(p), was.Status.Phase)
		case p.Spec.NodeName == cluster.Node(0) && e.What != "relabelled":
			t.Fatalf("event %d: %s of a pod of the first node", i, e.What)
		case e.What == "relabelled" && cmp.Equal(was.Labels, p.Labels):
			t.Fatalf("event %d: %s has the same labels", i, key(p))
		case e.Deleted != (e.What == "deleted"):
			t.Fatalf("event %d: %+v", i, e)
		}
		there[key(p)] = p
		address := p.Status.PodIP
		switch {
		case e.Deleted, p.Status.Phase == corev1.PodSucceeded:
			if owners[address] == key(p) {
				delete(owners, address)
			}
			former[address] = true
			if e.Deleted {
				delete(there, key(p))
			}
		case e.What == "running":
			if other := owners[address]; other != "" {
				t.Fatalf("event %d: %s gets %s of %s", i, key(p), address, other)
			}
			owners[address] = key(p)
			if former[address] {
				reused++
			}
			for _, o := range there {
				if o != p && o.Status.PodIP == address {
					beside++
				}
			}
		}
	}
	t.Logf("%v, %d addresses reused, %d beside who had them", seen, reused, beside)
	for _, what := range []string{"created", "scheduled", "running", "relabelled", "terminating", "stopped", "completed", "deleted", "changed"} {
		if seen[what] < 50 {
			t.Errorf("%s happened %d times", what, seen[what])
		}
	}
	if reused < 100 || beside == 0 {
		t.Errorf("%d addresses were reused, %d beside who had them", reused, beside)
	}
	if n := len(there); n < o.Pods-100 || n > o.Pods+100 || n != count(c.Pods()) {
		t.Errorf("there are %d pods", n)
	}
}
