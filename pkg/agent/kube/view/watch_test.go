package view

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/podmark/podmark/pkg/desired"
)

func TestLabelSelector(t *testing.T) {
	in := func(key string, values ...string) desired.Requirement {
		return desired.Requirement{Key: key, Op: desired.In, Values: values}
	}
	var many []string
	for i := range 5000 {
		many = append(many, fmt.Sprintf("value-%d", i))
	}
	for _, tt := range []struct {
		name string
		s    desired.Selector
		want string
	}{
		{"all", nil, ""},
		{"one", desired.Selector{in("app", "web")}, "app in (web)"},
		{"in any order", desired.Selector{in("b", "2", "1", "2"), in("a", "x")}, "a in (x),b in (1,2)"},
		{"every operator", desired.Selector{{Key: "a", Op: desired.Exists}, {Key: "b", Op: desired.DoesNotExist}, {Key: "c", Op: desired.NotIn, Values: []string{"x"}}}, "!b,a,c notin (x)"},
		{"an empty value", desired.Selector{in("app", "")}, "app in ()"},
		{"a key with a prefix", desired.Selector{in("example.com/app", "web")}, "example.com/app in (web)"},
		{"a value with a space, as was valid once", desired.Selector{in("app", "web one")}, ""},
		{"a value with a comma", desired.Selector{in("app", "a,b")}, ""},
		{"a value with a parenthesis", desired.Selector{in("app", "a)")}, ""},
		{"a value that is too long", desired.Selector{in("app", strings.Repeat("a", 64))}, ""},
		{"a key with a space", desired.Selector{in("my app", "web")}, ""},
		{"one of two", desired.Selector{in("app", "web"), in("b", "no no")}, ""},
		{"an operator that nobody knows", desired.Selector{{Key: "a", Op: "Like", Values: []string{"x"}}}, ""},
		{"in nothing", desired.Selector{in("app")}, ""},
		{"thousands of values", desired.Selector{in("app", many...)}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := labelSelector(tt.s); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

// Whatever a policy says: what the API is asked is read there, is not long, and shows every
// pod that the policy selects.
func TestLabelSelectorOfAnything(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	pick := func(of []string) string { return of[random.IntN(len(of))] }
	keys := []string{"app", "example.com/app", "a-b.c_d", "", "my app", "!app", "a,b", "a/b/c", "x in (y)", strings.Repeat("k", 64)}
	values := []string{"", "web", "a.b_c-d", "web one", "a,b", "a)", "(", "\x00", "größer", strings.Repeat("v", 63), strings.Repeat("v", 64), "-x"}
	ops := []desired.Op{desired.In, desired.NotIn, desired.Exists, desired.DoesNotExist, "Gt", ""}
	written := 0
	for range 20_000 {
		n := 2 + random.IntN(len(keys)-1) // keys that are valid more often than not
		var s desired.Selector
		for range random.IntN(4) {
			r := desired.Requirement{Key: pick(keys[:n]), Op: ops[min(random.IntN(40), len(ops)-1)%(4+random.IntN(2))]}
			for range random.IntN(4) {
				r.Values = append(r.Values, pick(values[:3+random.IntN(len(values)-3)]))
			}
			for i := range random.IntN(2) * random.IntN(40) {
				r.Values = append(r.Values, fmt.Sprint("value-", i))
			}
			s = append(s, r)
		}
		text := labelSelector(s)
		parsed, err := labels.Parse(text)
		if err != nil || len(text) > longestSelector {
			t.Fatalf("%+v is %q, of %d bytes: %v", s, text, len(text), err)
		}
		if text != "" {
			written++
		}
		of := map[string]string{}
		for range random.IntN(4) {
			of[pick(keys[:3])] = pick(values[:3])
		}
		if s.Matches(of) && !parsed.Matches(labels.Set(of)) || text != "" && parsed.Matches(labels.Set(of)) != s.Matches(of) {
			t.Fatalf("%+v is %q, and a pod with labels %v is shown: %v", s, text, of, parsed.Matches(labels.Set(of)))
		}
	}
	if written < 1000 {
		t.Errorf("%d selectors were written at all", written)
	}
}

// Whatever policies there are: watches have bounds, of each namespace and of all, are the same
// ones each time, and all that a policy needs is seen by one of them.
func TestWatchesAreBounded(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	full, some := false, false
	for range 60 {
		w := newScene(t)
		spread := 1 + random.IntN(400)
		for n := range 1 + random.IntN(20) {
			namespace := fmt.Sprint("tenant-", n)
			w.put(&Namespace{Name: namespace, Labels: map[string]string{desired.MetadataName: namespace, "team": fmt.Sprint(n % 3)}})
			w.put(in(namespace, pod("web", namespace, "x")))
			p := isolating("x").of(namespace)
			for range random.IntN(spread) {
				peer := desired.Peer{Namespace: fmt.Sprint("ns-", random.IntN(spread)), Pods: selects(app(fmt.Sprint(random.IntN(3))))}
				switch random.IntN(40) {
				case 0:
					peer.Namespace, peer.NamespaceSelector = "", selects(map[string]string{"team": fmt.Sprint(random.IntN(4))})
				case 1:
					peer.Namespace, peer.NamespaceSelector = "", desired.Selector{{Key: desired.MetadataName, Op: desired.In, Values: []string{"tenant-1", "tenant-2", "nobody"}}}
				}
				p.Ingress.Rules = append(p.Ingress.Rules, desired.Rule{Peers: []desired.Peer{peer}})
			}
			p.Namespace = namespace
			w.put(p)
			w.Expect(askIn(namespace), w.now)
		}
		w.round()
		w.run(time.Second)
		pods := 0
		for watch := range w.wanted {
			if watch.Kind == Pods && watch.Node == "" {
				pods++
			}
		}
		if pods > most {
			t.Fatalf("%d watches of pods", pods)
		}
		full, some = full || w.wanted[Watch{Kind: Pods}], some || pods > 1
		before := maps.Clone(w.wanted)
		if begin, _, _ := w.Plan(w.now); len(begin) > 0 || !maps.Equal(before, w.wanted) {
			t.Fatalf("the same twice is %v, and %v", before, w.wanted)
		}
		for namespace, policies := range w.policies {
			own := map[Watch]bool{}
			for _, p := range policies {
				for _, need := range p.needs.in(w.world()) {
					own[need] = true
					if !slices.ContainsFunc(need.coveredBy(), func(by Watch) bool { return w.wanted[by] }) {
						t.Fatalf("nothing shows %s, which %s/%s needs", need, namespace, p.Name)
					}
				}
			}
			if n := len(bounded(own, mostEach)); n > mostEach+1 {
				t.Fatalf("%d watches for namespace %s", n, namespace)
			}
		}
	}
	if !full || !some {
		t.Errorf("all pods were watched: %v; some: %v", full, some)
	}
}

// A policy that names thousands of namespaces has all pods watched.
func TestPeersByName(t *testing.T) {
	w := neighbours(t, isolating("x"))
	p := isolating("x").of("shop")
	var names []string
	for i := range 5000 {
		names = append(names, fmt.Sprint("ns-", i))
	}
	p.Ingress.Rules = []desired.Rule{{Peers: []desired.Peer{{NamespaceSelector: desired.Selector{{Key: desired.MetadataName, Op: desired.In, Values: names}}, Pods: selects(app("client"))}}}}
	w.put(p)
	w.put(in("ns-4999", far("client", "c9", "client", "10.9.0.9")))
	w.Expect(askIn("shop"), w.now)
	w.round()
	if n := len(w.watches); n > 4 {
		t.Errorf("%d watches", n)
	}
	if got := w.peers("shop"); !slices.Equal(got, []string{"10.9.0.9"}) {
		t.Errorf("peers are %q", got)
	}
}

// Whom a selector of namespaces means follows their labels: one gets them, loses them, is
// deleted and comes again.
func TestPeersByLabelsOfNamespaces(t *testing.T) {
	team := func(name string, labels ...string) *Namespace {
		n := &Namespace{Name: name, Labels: map[string]string{desired.MetadataName: name}}
		for _, l := range labels {
			n.Labels["team"] = l
		}
		return n
	}
	w := neighbours(t, isolating("x"))
	p := isolating("x").of("shop")
	p.Ingress.Rules = []desired.Rule{{Peers: []desired.Peer{{NamespaceSelector: selects(map[string]string{"team": "red"}), Pods: selects(app("client"))}}}}
	w.put(p)
	for i, n := range []string{"first", "second"} {
		w.put(team(n))
		w.put(in(n, far("client", n, "client", fmt.Sprintf("10.8.0.%d", i+1))))
	}
	w.Expect(askIn("shop"), w.now)
	for _, step := range []struct {
		does string
		do   func()
		want []string
	}{
		{"nobody is of the team", func() {}, nil},
		{"one is", func() { w.put(team("first", "red")) }, []string{"10.8.0.1"}},
		{"both are", func() { w.put(team("second", "red")) }, []string{"10.8.0.1", "10.8.0.2"}},
		{"one leaves", func() { w.put(team("first", "blue")) }, []string{"10.8.0.2"}},
		{"the other is deleted", func() { w.remove(team("second")) }, nil},
		{"it comes again", func() { w.put(team("second", "red")) }, []string{"10.8.0.2"}},
	} {
		step.do()
		w.run(time.Second)
		if got := w.peers("shop"); !slices.Equal(got, step.want) {
			t.Errorf("%s: peers are %q, want %q", step.does, got, step.want)
		}
	}
}
