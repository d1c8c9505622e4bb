package view

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/podmark/podmark/pkg/desired"
)

func TestClassOf(t *testing.T) {
	for status, want := range map[int]Class{
		0: NoAnswer, 400: TooMuch, 401: Forbidden, 403: Forbidden, 404: Failing, 413: TooMuch, 414: TooMuch, 422: TooMuch,
		429: Failing, 431: TooMuch, 500: Failing, 503: Failing, 504: Failing,
	} {
		if got := ClassOf(status); got != want {
			t.Errorf("status %d is of class %d, want %d", status, got, want)
		}
	}
}

// in moves an object to another namespace.
func in(namespace string, o Object) Object {
	switch o := o.(type) {
	case *Pod:
		o.Namespace = namespace
	case *Policy:
		o.Namespace = namespace
		for _, r := range o.Ingress.Rules {
			for i := range r.Peers {
				if r.Peers[i].Namespace != "" {
					r.Peers[i].Namespace = namespace
				}
			}
		}
	}
	return o
}

// askIn is what the plugin asks for a sandbox of pod web of a namespace.
func askIn(namespace string) Ask {
	return Ask{Attachment: key(namespace), Namespace: namespace, Pod: "web", UID: namespace}
}

// run has time pass, with a round each 100 ms.
func (w *scene) run(d time.Duration) {
	w.t.Helper()
	for end := w.now.Add(d); w.now.Before(end); {
		w.now = w.now.Add(100 * time.Millisecond)
		w.round()
	}
}

// restart has another podmarkd go on with what this one has left.
func (w *scene) restart() {
	left := w.applied
	w.View = New("node", nil)
	w.Remember(left)
	w.Attach(w.attached())
}

// peers are the addresses that the policies of a namespace let in by a selector.
func (w *scene) peers(namespace string) (out []string) {
	w.t.Helper()
	var of desired.Policies
	for _, p := range w.applied.Policies {
		if p.Namespace == namespace {
			of.Policies = append(of.Policies, p)
		}
	}
	of.Namespaces, of.Listed = w.applied.Namespaces, w.applied.Listed
	s, known := w.Complete(desired.Build(desired.Node{}, of, w.attached()))
	if !known {
		w.t.Fatal("no round has been")
	}
	for _, set := range s.PeerSets {
		for _, a := range set.Addrs {
			out = append(out, a.String())
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// neighbours is a node with a pod of namespace shop and one of namespace other, each with a
// policy that lets a client elsewhere in.
func neighbours(t *testing.T, shop *Policy) *scene {
	w := newScene(t)
	for _, n := range []string{"shop", "other"} {
		w.put(&Namespace{Name: n, Labels: map[string]string{desired.MetadataName: n}})
		w.put(in(n, pod("web", n, "x")))
	}
	w.put(shop.of("shop"))
	w.put(in("other", isolating("x", "client").of("other")))
	w.put(far("client", "c1", "client", "10.9.0.1"))
	w.put(in("other", far("client", "c2", "client", "10.9.0.2")))
	return w
}

// Whatever the API refuses for a policy of one namespace, and however: within two seconds the
// pods of another start, and their policies follow. What is not known allows nobody, or where
// the policies themselves are not, what a former podmarkd has left goes on. All is as it should
// be once the API refuses nothing any more.
func TestRefused(t *testing.T) {
	byLabel := isolating("x")
	byLabel.Ingress.Rules = []desired.Rule{{Peers: []desired.Peer{{NamespaceSelector: desired.Selector{{Key: "team", Op: desired.NotIn, Values: []string{"bad"}}}, Pods: selects(app("client"))}}}}
	for _, tt := range []struct {
		name    string
		policy  *Policy
		refused func(Watch) bool
		// narrow is set where a wider watch shows the same, and left where there is what a
		// former podmarkd has left.
		narrow, left bool
		blamed       string
		want         []string // when all is known
	}{
		{"pods with a label", isolating("x", "client"), func(w Watch) bool { return w.Kind == Pods && w.Namespace == "shop" && w.Labels != "" }, true, false, "x", []string{"10.9.0.1"}},
		{"pods of the namespace", isolating("x", "client"), func(w Watch) bool { return w.Kind == Pods && w.Namespace == "shop" }, true, false, "x", []string{"10.9.0.1"}},
		{"policies", isolating("x", "client"), func(w Watch) bool { return w.Kind == Policies && w.Namespace == "shop" }, false, true, "", []string{"10.9.0.1"}},
		{"namespaces", byLabel, func(w Watch) bool { return w.Kind == Namespaces }, false, false, "x", []string{"10.9.0.1", "10.9.0.2"}},
	} {
		for _, status := range []int{400, 403, 413, 414, 422, 431, 500} {
			for _, restart := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, status %d, restart %v", tt.name, status, restart), func(t *testing.T) {
					w := neighbours(t, tt.policy)
					refuse := func(watch Watch) int {
						if tt.refused(watch) {
							return status
						}
						return http.StatusOK
					}
					if restart {
						for _, n := range []string{"shop", "other"} {
							w.Expect(askIn(n), w.now)
							w.round()
							w.attach(askIn(n), map[string]string{"shop": "10.0.0.1", "other": "10.0.0.2"}[n])
						}
						w.Stir()
						w.run(time.Second)
						w.restart()
						w.refuses = refuse
						w.put(in("other", isolating("x", "client", "late").of("other")))
						w.round()
						if w.Begun() && !(tt.narrow && ClassOf(status) == TooMuch) {
							t.Error("nothing is waited for")
						}
						w.run(hold)
					} else {
						w.refuses = refuse
						w.Expect(askIn("shop"), w.now)
						w.round()
						w.Expect(askIn("other"), w.now)
						w.run(hold)
						w.attach(askIn("other"), "10.0.0.2")
					}
					w.put(in("other", far("late", "c3", "late", "10.9.0.3")))
					w.put(in("other", isolating("x", "client", "late").of("other")))
					w.run(hold)
					if got := w.peers("other"); !slices.Equal(got, []string{"10.9.0.2", "10.9.0.3"}) {
						t.Errorf("the other's peers are %q", got)
					}
					wider := tt.narrow && ClassOf(status) == TooMuch
					list := w.Troubles(w.now)
					_, waits := w.Answer(askIn("shop"), w.now)
					switch {
					case wider:
						if got := w.peers("shop"); waits != nil || !slices.Equal(got, tt.want) || len(list) > 0 {
							t.Errorf("peers %q, answer %v, troubles %+v", got, waits, list)
						}
					case len(list) != 1 || list[0].Namespace != "shop" || list[0].Policy != tt.blamed || list[0].Reason != ClassOf(status).reason() || !strings.Contains(list[0].Text, fmt.Sprint(status)) || w.now.Sub(list[0].Since) < hold || w.now.Sub(list[0].Since) > time.Minute:
						t.Errorf("troubles %+v", list)
					case tt.left:
						if waits == nil || !strings.Contains(waits.Error(), fmt.Sprint(status)) {
							t.Errorf("a pod of it is answered: %v", waits)
						}
						if got := w.peers("shop"); restart && !slices.Equal(got, tt.want) {
							t.Errorf("what was left lets in %q", got)
						}
					default:
						if got := w.peers("shop"); waits != nil || len(got) > 0 {
							t.Errorf("peers %q, answer %v", got, waits)
						}
					}
					if restart && !w.isolated("shop") {
						t.Error("its pod is not isolated")
					}
					w.refuses = nil
					w.run(hold)
					if got := w.peers("shop"); !slices.Equal(got, tt.want) || len(w.Troubles(w.now)) > 0 {
						t.Errorf("refused no more, peers are %q, and troubles %+v", got, w.Troubles(w.now))
					}
				})
			}
		}
	}
}

// A watch that was too much for the API is asked for again later, and takes its place back.
func TestTooMuchIsTriedAgain(t *testing.T) {
	w := neighbours(t, isolating("x", "client"))
	narrow, wide := Watch{Kind: Pods, Namespace: "shop", Labels: "app in (client)"}, Watch{Kind: Pods, Namespace: "shop"}
	asked := 0
	w.refuses = func(watch Watch) int {
		if watch != narrow {
			return http.StatusOK
		}
		asked++
		return http.StatusRequestHeaderFieldsTooLarge
	}
	w.Expect(askIn("shop"), w.now)
	w.round()
	w.attach(askIn("shop"), "10.0.0.1")
	check := func(want Watch) {
		t.Helper()
		if !w.wanted[want] || w.watches[want] == nil || !w.watches[want].synced || !slices.Equal(w.peers("shop"), []string{"10.9.0.1"}) {
			t.Errorf("%s is not what is watched, but %v; peers %q", want, w.wanted, w.peers("shop"))
		}
	}
	check(wide)
	if w.run(refuseAgain - time.Second); asked != 1 {
		t.Errorf("it is asked for %d times", asked)
	}
	check(wide)
	if w.run(2 * time.Second); asked != 2 {
		t.Errorf("later it is asked for %d times", asked)
	}
	check(wide)
	w.refuses = nil
	for range 2 {
		w.run(refuseAgain)
	}
	check(narrow)
	if w.watches[wide] != nil {
		t.Error("the wider one goes on")
	}
}

// While the API is away nobody is cut off, however long that takes. One watch that gets no
// answer, or a list that takes long, is waited for only as long as the API does not answer the
// others, or a while.
func TestAway(t *testing.T) {
	peers := func(w Watch) bool { return w.Kind == Pods && w.Namespace == "shop" }
	for _, tt := range []struct {
		name  string
		fails func(Watch) int
		holds func(Watch) bool
		lives bool // the API tells of other things meanwhile
		after time.Duration
		begun bool
	}{
		{"all of it", func(Watch) int { return 0 }, nil, false, 5 * time.Minute, false},
		{"all but the node's pods, which are quiet", func(w Watch) int {
			if w.Node != "" {
				return http.StatusOK
			}
			return 0
		}, nil, false, 5 * time.Minute, false},
		{"one watch", func(w Watch) int {
			if peers(w) {
				return 0
			}
			return http.StatusOK
		}, nil, true, hold + 2*time.Second, true},
		{"a list that takes long", nil, peers, true, slow - time.Second, false},
		{"a list that takes too long", nil, peers, true, slow + 2*time.Second, true},
		{"a list that takes long, of an API that is away since", nil, peers, false, 5 * time.Minute, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := neighbours(t, isolating("x", "client"))
			w.Expect(askIn("shop"), w.now)
			w.round()
			w.attach(askIn("shop"), "10.0.0.1")
			w.Stir()
			w.round()
			w.restart()
			w.refuses = tt.fails
			w.silent = true
			if tt.holds != nil {
				w.held[Watch{Kind: Pods, Namespace: "shop", Labels: "app in (client)"}] = true
			}
			for end := w.now.Add(tt.after); w.now.Before(end); {
				w.run(time.Second)
				if tt.lives {
					w.put(in("other", pod("web", "other", fmt.Sprint(w.now.Unix()))))
				}
			}
			if w.Begun() != tt.begun {
				t.Errorf("after %s, a round has been: %v", tt.after, w.Begun())
			}
			if w.Begun() && len(w.peers("shop")) > 0 {
				t.Errorf("peers %q", w.peers("shop"))
			}
			w.refuses, w.silent = nil, false
			clear(w.held)
			w.run(time.Second)
			if got := w.peers("shop"); !slices.Equal(got, []string{"10.9.0.1"}) {
				t.Errorf("at last, peers are %q", got)
			}
		})
	}
}

// What the API refuses only once it was known goes on to hold, and is told after a while. The
// node is followed all the same; but for an API that is away, or refuses the node's own pods.
func TestRefusedLater(t *testing.T) {
	for _, tt := range []struct {
		name    string
		watch   func(Watch) bool
		status  int
		trouble Reason // empty for none
		err     bool
	}{
		{"pods of a policy", func(w Watch) bool { return w.Namespace == "shop" && w.Kind == Pods }, 403, ReasonForbidden, false},
		{"policies", func(w Watch) bool { return w.Namespace == "shop" && w.Kind == Policies }, 403, ReasonForbidden, false},
		{"pods of the node", func(w Watch) bool { return w.Node != "" }, 403, "", true},
		{"the API is away", func(Watch) bool { return true }, 0, "", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := neighbours(t, isolating("x", "client"))
			w.Expect(askIn("shop"), w.now)
			w.round()
			w.attach(askIn("shop"), "10.0.0.1")
			w.Stir()
			w.round()
			if err := w.Err(w.now); err != nil || len(w.Troubles(w.now)) > 0 {
				t.Fatalf("error %v, troubles %+v", err, w.Troubles(w.now))
			}
			for watch := range w.watches {
				if tt.watch(watch) {
					w.Failed(watch, fmt.Errorf("status %d", tt.status), ClassOf(tt.status), w.now)
				}
			}
			if w.run(time.Second); len(w.Troubles(w.now)) > 0 {
				t.Errorf("at once, troubles %+v", w.Troubles(w.now))
			}
			w.run(slow)
			if got := w.peers("shop"); !slices.Equal(got, []string{"10.9.0.1"}) {
				t.Errorf("peers %q", got)
			}
			if err := w.Err(w.now); (err != nil) != tt.err {
				t.Errorf("error %v", err)
			}
			if list := w.Troubles(w.now); tt.trouble == "" && len(list) > 0 || tt.trouble != "" && (len(list) != 1 || list[0].Reason != tt.trouble || list[0].Namespace != "shop") {
				t.Errorf("troubles %+v", list)
			}
		})
	}
}

// Policies that are too large together are refused from the largest on: these isolate, and
// allow nothing. All others are in force.
func TestTooLarge(t *testing.T) {
	rules := func(label string, n int) *Policy {
		p := isolating(label).of(label)
		p.Pods = nil       // all pods
		for i := range n { // a rule each
			p.Ingress.Rules = append(p.Ingress.Rules, desired.Rule{Blocks: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32)}})
		}
		return p
	}
	ports := rules("ports", 1)
	for i := range mostPairs + 1 {
		ports.Ingress.Rules[0].Ports = append(ports.Ingress.Rules[0].Ports, desired.Port{Protocol: desired.TCP, PortRange: desired.PortRange{First: uint16(2 * i), Last: uint16(2 * i)}})
	}
	w := neighbours(t, isolating("x", "client"))
	w.put(rules("small", 10))
	w.put(rules("large", mostPeers+1))
	w.put(ports)
	w.put(in("other", rules("small", 10).of("other-small")))
	elsewhere := rules("none", mostPeers+1)
	elsewhere.Pods = selects(app("none"))
	w.put(elsewhere) // selects no pod here
	for _, n := range []string{"shop", "other"} {
		w.Expect(askIn(n), w.now)
	}
	w.round()
	w.attach(askIn("shop"), "10.0.0.1")
	w.attach(askIn("other"), "10.0.0.2")
	w.Stir()
	w.round()
	count := func() string {
		var out []string
		for _, p := range w.applied.Policies {
			out = append(out, fmt.Sprintf("%s/%s %d", p.Namespace, p.Name, len(p.Ingress.Rules)))
		}
		return strings.Join(out, ", ")
	}
	if got, want := count(), "other/small 10, other/x 1, shop/large 0, shop/ports 0, shop/small 10, shop/x 1"; got != want {
		t.Errorf("in force: %s, want %s", got, want)
	}
	if list := w.Troubles(w.now); len(list) != 2 || list[0].Reason != ReasonTooLarge || list[0].Policy != "large" || !strings.Contains(list[0].Text, fmt.Sprint(mostPeers+1)) || list[1].Policy != "ports" || !strings.Contains(list[1].Text, fmt.Sprint(mostPairs+1)) {
		t.Errorf("troubles %+v", list)
	}
	if !w.isolated("shop") {
		t.Error("its pod is not isolated")
	}
	w.restart()
	w.run(time.Second)
	if got, want := count(), "other/small 10, other/x 1, shop/large 0, shop/ports 0, shop/small 10, shop/x 1"; got != want {
		t.Errorf("after a restart: %s, want %s", got, want)
	}
	w.put(rules("large", 100))
	w.round()
	if got, want := count(), "other/small 10, other/x 1, shop/large 100, shop/ports 0, shop/small 10, shop/x 1"; got != want || len(w.Troubles(w.now)) != 1 {
		t.Errorf("when it is small: %s, want %s; troubles %+v", got, want, w.Troubles(w.now))
	}
}

// A namespace that changes its policies all the time has no more watches than one that does
// not, but for some that linger, and is served all the same.
func TestWatchesOfOneWhoChanges(t *testing.T) {
	w := neighbours(t, isolating("x", "client"))
	w.Expect(askIn("shop"), w.now)
	w.round()
	w.attach(askIn("shop"), "10.0.0.1")
	for i := range 200 {
		p := isolating("x").of("shop")
		for n := range mostEach {
			p.Ingress.Rules = append(p.Ingress.Rules, desired.Rule{Peers: []desired.Peer{{Namespace: fmt.Sprintf("ns-%d-%d", i, n), Pods: selects(app("a"))}}})
		}
		w.put(p)
		w.run(100 * time.Millisecond)
		if n, bound := len(w.watches), mostEach+mostIdle+10; n > bound {
			t.Fatalf("after %d changes %d watches, want %d at most", i, n, bound)
		}
	}
}

// While the API says nothing of namespaces any more, who comes with a new one is nobody's peer
// for a label that the namespace may have.
func TestNewcomerOfUnknownNamespace(t *testing.T) {
	p := isolating("x").of("shop")
	p.Ingress.Rules = []desired.Rule{{Peers: []desired.Peer{{NamespaceSelector: desired.Selector{{Key: "team", Op: desired.NotIn, Values: []string{"bad"}}}, Pods: selects(app("client"))}}}}
	w := neighbours(t, p)
	w.Expect(askIn("shop"), w.now)
	w.round()
	w.attach(askIn("shop"), "10.0.0.1")
	w.Stir()
	w.round()
	namespaces := Watch{Kind: Namespaces}
	w.Failed(namespaces, errors.New("status 403"), Forbidden, w.now)
	w.put(in("stranger", far("elsewhere", "c3", "client", "10.9.0.3")))
	local := in("stranger", pod("client", "c4", "client")).(*Pod)
	w.put(local)
	w.Expect(Ask{Attachment: key("c4"), Namespace: "stranger", Pod: "client", UID: "c4"}, w.now)
	w.round()
	w.attach(Ask{Attachment: key("c4"), Namespace: "stranger", Pod: "client", UID: "c4"}, "10.0.0.4")
	w.Stir()
	w.run(slow)
	if got := w.peers("shop"); !slices.Equal(got, []string{"10.9.0.1", "10.9.0.2"}) {
		t.Errorf("peers are %q", got)
	}
	w.Seen(namespaces, &Namespace{Name: "stranger", Labels: map[string]string{desired.MetadataName: "stranger"}}, w.now)
	w.run(time.Second)
	if got := w.peers("shop"); !slices.Equal(got, []string{"10.0.0.4", "10.9.0.1", "10.9.0.2", "10.9.0.3"}) {
		t.Errorf("once it is known, peers are %q", got)
	}
}
