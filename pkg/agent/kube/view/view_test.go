package view

import (
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/desired"
)

// scene is a view with the cluster and the node around it. Watches show what the cluster
// has as soon as they begin, but for those that are held.
type scene struct {
	*View
	t       *testing.T
	now     time.Time
	version uint64
	objects map[string]Object
	held    map[Watch]bool
	records map[attachment.Key]attachment.Record
	spaces  map[string]Space // what the API has; UID 1 for others
	silent  bool             // the API answers no question
	// refuses, if set, is the status of HTTP with which the API answers a watch: 200 for all
	// that there is, 0 for no answer.
	refuses func(Watch) int
}

func newScene(t *testing.T) *scene {
	t.Helper()
	return &scene{
		View: New("node", nil), t: t, now: time.Unix(1_700_000_000, 0),
		objects: map[string]Object{}, held: map[Watch]bool{}, records: map[attachment.Key]attachment.Record{}, spaces: map[string]Space{},
	}
}

func kindOf(o Object) Kind {
	switch o.(type) {
	case *Pod:
		return Pods
	case *Namespace:
		return Namespaces
	}
	return Policies
}

func keyOf(o Object) string { return fmt.Sprint(kindOf(o), o.name()) }

// shows reports whether a watch shows an object.
func (w Watch) shows(o Object) bool {
	if w.Kind != kindOf(o) || w.Namespace != "" && w.Namespace != o.name().Namespace {
		return false
	}
	p, ok := o.(*Pod)
	selector, err := labels.Parse(w.Labels)
	return !ok || (w.Node == "" || p.Own != nil) && err == nil && selector.Matches(labels.Set(maps.Collect(p.Labels.All())))
}

func selects(labels map[string]string) (s desired.Selector) {
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		s = append(s, desired.Requirement{Key: key, Op: desired.In, Values: []string{labels[key]}})
	}
	return s
}

// put creates or changes an object, and shows it to those who watch it.
func (w *scene) put(o Object) {
	w.version++
	if p, ok := o.(*Pod); ok {
		p.Version = w.version
	}
	was := w.objects[keyOf(o)]
	if was != nil && was.uid() != o.uid() {
		w.remove(was)
		was = nil
	}
	w.objects[keyOf(o)] = o
	for watch, s := range w.watches {
		switch {
		case !s.synced:
		case watch.shows(o):
			w.Seen(watch, again(o), w.now)
		case was != nil && watch.shows(was):
			w.Gone(watch, was)
		}
	}
}

// again is a copy: each watch brings its own.
func again(o Object) Object {
	if p, ok := o.(*Pod); ok {
		c := *p
		c.told, c.served = nil, false
		template := *p.Template
		c.Template = &template
		if p.Own != nil {
			own := *p.Own
			c.Own = &own
		}
		return &c
	}
	return o
}

func (w *scene) remove(o Object) {
	w.version++
	delete(w.objects, keyOf(o))
	for watch, s := range w.watches {
		if s.synced && watch.shows(o) {
			w.Gone(watch, o)
		}
	}
}

// round does what a cluster does: watches begin, and what there is is decided, until
// nothing changes. It returns what is enforced.
func (w *scene) round() desired.Policies {
	w.t.Helper()
	for n := 0; ; n++ {
		if n == 100 {
			w.t.Fatal("watches begin without an end")
		}
		begin, _, ready := w.Plan(w.now)
		for watch := range w.watches {
			if s := w.watches[watch]; !s.synced && !w.held[watch] {
				w.try(watch)
			}
		}
		if len(begin) > 0 || w.answer() {
			continue
		}
		if w.Begun() && w.Changed() || !w.Begun() && ready {
			rev := w.Decide(w.attached(), w.now)
			for _, r := range rev.Records {
				w.records[r.Key] = r
			}
		}
		return w.applied
	}
}

// answer has the API answer what is asked.
func (w *scene) answer() (asked bool) {
	if w.silent {
		return false
	}
	for _, namespace := range w.Questions() {
		asked = true
		is, ok := w.spaces[namespace]
		if !ok {
			is.UID = "1"
		}
		w.Told(namespace, is, nil)
	}
	return asked
}

// try has a watch begin, as the API lets it.
func (w *scene) try(watch Watch) {
	status := http.StatusOK
	if w.refuses != nil {
		status = w.refuses(watch)
	}
	if status != http.StatusOK {
		w.Failed(watch, fmt.Errorf("watching %s: status %d", watch, status), ClassOf(status), w.now)
		return
	}
	w.Failed(watch, nil, NoAnswer, w.now)
	w.list(watch)
}

func (w *scene) list(watch Watch) {
	var list []Object
	for _, o := range w.objects {
		if watch.shows(o) {
			list = append(list, again(o))
		}
	}
	w.Listed(watch, list, w.version, w.now)
}

func (w *scene) attached() []attachment.Record {
	return slices.SortedFunc(maps.Values(w.records), func(a, b attachment.Record) int { return int(a.ID) - int(b.ID) })
}

func app(name string) map[string]string { return map[string]string{"app": name} }

// pod is one of the node's in the API, of namespace shop.
func pod(name, uid, label string, addresses ...string) *Pod {
	p := &Pod{
		IndexedPod: desired.IndexedPod{
			Template: &desired.Template{Namespace: "shop", Labels: desired.NewLabelSets().Of([]desired.Label{{Key: []byte("app"), Value: []byte(label)}})},
			Name:     name,
		},
		UID: UIDOf(uid), Own: &Own{Identity: Identity{UID: uid}, Labels: app(label)},
	}
	var list []netip.Addr
	for _, a := range addresses {
		list = append(list, netip.MustParseAddr(a))
	}
	p.Addresses = desired.AddressesOf(list...)
	p.Peer = len(list) > 0
	return p
}

func value(labels *desired.LabelSet, key string) string {
	v, _ := labels.Get(key)
	return v
}

// far is one of another node.
func far(name, uid, label string, addresses ...string) *Pod {
	p := pod(name, uid, label, addresses...)
	p.Own = nil
	return p
}

// isolating is a policy of namespace shop that isolates the pods of a label, but for those of
// peers.
func isolating(label string, peers ...string) *Policy {
	p := &Policy{Policy: desired.Policy{Namespace: "shop", Name: label, Pods: selects(app(label)), Ingress: &desired.Isolation{}}}
	for _, peer := range peers {
		p.Ingress.Rules = append(p.Ingress.Rules, desired.Rule{Peers: []desired.Peer{{Namespace: "shop", Pods: selects(app(peer))}}})
	}
	return p
}

func key(container string) attachment.Key {
	return attachment.Key{Network: "net", ContainerID: container, IfName: "eth0"}
}

// ask is what the plugin asks for a sandbox of pod shop/web.
func ask(container, uid string) Ask {
	return Ask{Attachment: key(container), Namespace: "shop", Pod: "web", UID: uid}
}

// attach has the plugin add what it was answered.
func (w *scene) attach(a Ask, address string) {
	w.t.Helper()
	p, waits := w.Answer(a, w.now)
	if waits != nil || !w.Decided(p) {
		w.t.Fatalf("%v is not answered: %v", a, waits)
	}
	w.records[a.Attachment] = attachment.Record{
		Key: a.Attachment, UID: a.UID, Policed: true, Kubernetes: true, Committed: true,
		NamespaceUID: p.NamespaceUID(),
		Endpoint:     attachment.Endpoint{Namespace: a.Namespace, Pod: a.Pod, Labels: p.Own.Labels, Addresses: []netip.Addr{netip.MustParseAddr(address)}},
	}
}

// isolated reports whether the policies of now isolate the attachment.
func (w *scene) isolated(container string) bool {
	w.t.Helper()
	r, ok := w.records[key(container)]
	if !ok {
		w.t.Fatalf("there is no attachment of %s", container)
	}
	return desired.Build(desired.Node{}, w.applied, []attachment.Record{r}).Endpoints[0].Profiles[desired.Ingress] != ""
}

// A pod gets the policies of its own labels whatever attachments a former pod of its name
// still has, in whatever order the runtime and the API tell of the two.
func TestNamesake(t *testing.T) {
	for _, tt := range []struct {
		name     string
		old, new string // UIDs, empty where the runtime tells none
		// what happens between the former pod and the answer, and behind the ADD
		before, after []string
	}{
		{name: "the old one's DEL is late", old: "1", new: "2", before: []string{"replace", "ask"}, after: []string{"round", "DEL"}},
		{name: "the old one's DEL never comes", old: "1", new: "2", before: []string{"replace", "ask"}, after: []string{"round", "round"}},
		{name: "the old one's DEL comes between", old: "1", new: "2", before: []string{"replace", "ask", "DEL"}, after: []string{"round"}},
		{name: "the old one's DEL comes before", old: "1", new: "2", before: []string{"DEL", "replace", "ask"}, after: []string{"round"}},
		{name: "it is asked for before the API shows it", old: "1", new: "2", before: []string{"ask", "round", "replace"}, after: []string{"round", "DEL"}},
		{name: "rounds in between", old: "1", new: "2", before: []string{"round", "replace", "round", "ask", "round", "round"}, after: []string{"round", "round"}},
		{name: "the runtime tells no UID of the old one", new: "2", before: []string{"replace", "ask", "round"}, after: []string{"round", "DEL"}},
		{name: "the runtime tells no UID", before: []string{"replace", "ask", "round"}, after: []string{"round"}},
		{name: "the API says addresses, and the runtime no UID", before: []string{"replace", "ask", "round"}, after: []string{"addresses", "round", "round"}},
	} {
		for _, labels := range [][2]string{{"open", "closed"}, {"closed", "open"}} {
			t.Run(tt.name+", "+labels[0]+" to "+labels[1], func(t *testing.T) {
				w := newScene(t)
				w.put(isolating("closed"))
				w.put(pod("web", "1", labels[0]))
				w.Expect(ask("old", tt.old), w.now)
				w.round()
				w.attach(ask("old", tt.old), "10.0.0.1")
				w.put(pod("web", "1", labels[0], "10.0.0.1"))
				w.round()
				do := func(steps []string) {
					for _, step := range steps {
						switch step {
						case "replace":
							w.put(pod("web", "2", labels[1]))
						case "addresses":
							w.put(pod("web", "2", labels[1], "10.0.0.2"))
						case "ask":
							w.Expect(ask("new", tt.new), w.now)
						case "DEL":
							delete(w.records, key("old"))
							w.Stir()
							w.round()
						case "round":
							w.Stir()
							w.round()
						}
						if _, there := w.records[key("old")]; there && w.isolated("old") != (labels[0] == "closed") {
							t.Errorf("after %s, the old one is isolated: %v", step, w.isolated("old"))
						}
						if _, there := w.records[key("new")]; there && w.isolated("new") != (labels[1] == "closed") {
							t.Errorf("after %s, the new one is isolated: %v", step, w.isolated("new"))
						}
					}
				}
				do(tt.before)
				w.round()
				w.attach(ask("new", tt.new), "10.0.0.2")
				do(append([]string{""}, tt.after...))
				w.put(pod("web", "2", labels[0], "10.0.0.2"))
				w.Stir()
				w.round()
				if w.isolated("new") != (labels[0] == "closed") {
					t.Errorf("relabelled, the new one is isolated: %v", w.isolated("new"))
				}
			})
		}
	}
}

// What a pod is answered is what is in force for the labels that it has then.
func TestAnswer(t *testing.T) {
	w := newScene(t)
	w.put(isolating("closed"))
	w.put(pod("web", "1", "open"))
	w.Expect(ask("a", "1"), w.now)
	w.round()
	w.put(pod("web", "1", "closed"))
	p, _ := w.Answer(ask("a", "1"), w.now)
	if w.Decided(p) {
		t.Error("it is answered although its labels have changed since")
	}
	w.round()
	if !w.Decided(p) || w.Profiles(p)[desired.Ingress] == "" {
		t.Errorf("decided %v, with profiles %q", w.Decided(p), w.Profiles(p))
	}
}

// An expectation ends with the attachment, and by itself after a while.
func TestExpectation(t *testing.T) {
	for _, tt := range []struct {
		name string
		ask  Ask
	}{
		{"by its key", ask("new", "2")},
		{"by its UID", Ask{Namespace: "shop", Pod: "web", UID: "2"}},
		{"by being new", Ask{Namespace: "shop", Pod: "web"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newScene(t)
			w.put(pod("web", "1", "open"))
			w.Expect(ask("old", "1"), w.now)
			w.round()
			w.attach(ask("old", "1"), "10.0.0.1")
			w.Stir()
			w.round()
			if len(w.expected) != 0 {
				t.Fatal("the first attachment is expected, and is there")
			}
			w.put(pod("web", "2", "open"))
			w.Expect(tt.ask, w.now)
			for range 3 {
				w.Stir()
				w.round()
				if len(w.expected) != 1 {
					t.Fatal("it is not expected, although it is not there")
				}
			}
			r := w.records[key("old")]
			r.Key, r.UID, r.Addresses = key("new"), tt.ask.UID, []netip.Addr{netip.MustParseAddr("10.0.0.2")}
			w.records[r.Key] = r
			w.Stir()
			w.round()
			if len(w.expected) != 0 {
				t.Error("it is expected although it is there")
			}
			w.Expect(ask("never", "2"), w.now)
			w.now = w.now.Add(comes + 1)
			w.round()
			if len(w.expected) != 0 {
				t.Error("it is expected for ever")
			}
		})
	}
}

// Whose an attachment is, is told by the surest that is known.
func TestAssign(t *testing.T) {
	record := func(container, uid, address string) attachment.Record {
		return attachment.Record{Key: key(container), UID: uid, Endpoint: attachment.Endpoint{Namespace: "shop", Pod: "web", Addresses: []netip.Addr{netip.MustParseAddr(address)}}}
	}
	second := record("a", "", "10.9.0.1")
	second.Network = "second"
	static := pod("web", "mirror", "x")
	static.Own.Hash = "manifest"
	for _, tt := range []struct {
		name    string
		pod     *Pod
		records []attachment.Record
		asked   []Ask
		want    []string
	}{
		{"by UID", pod("web", "2", "x"), []attachment.Record{record("a", "1", "10.0.0.1"), record("b", "2", "10.0.0.2")}, nil, []string{"net/b/eth0"}},
		{"another's UID", pod("web", "2", "x"), []attachment.Record{record("a", "1", "10.0.0.1")}, nil, nil},
		{"another's UID, with the pod's address", pod("web", "2", "x", "10.0.0.1"), []attachment.Record{record("a", "1", "10.0.0.1")}, nil, nil},
		{"by the only name", pod("web", "2", "x"), []attachment.Record{record("a", "", "10.0.0.1")}, nil, []string{"net/a/eth0"}},
		{"not by the only name, where another has the UID", pod("web", "2", "x"), []attachment.Record{record("a", "", "10.0.0.1"), record("b", "2", "10.0.0.2")}, nil, []string{"net/b/eth0"}},
		{"not by the only name, where another comes", pod("web", "2", "x"), []attachment.Record{record("a", "", "10.0.0.1")}, []Ask{ask("b", "")}, nil},
		{"by address", pod("web", "2", "x", "10.0.0.2"), []attachment.Record{record("a", "", "10.0.0.1"), record("b", "", "10.0.0.2")}, nil, []string{"net/b/eth0"}},
		{"neither of two", pod("web", "2", "x"), []attachment.Record{record("a", "", "10.0.0.1"), record("b", "", "10.0.0.2")}, nil, nil},
		{"two of a sandbox", pod("web", "2", "x", "10.0.0.1"), []attachment.Record{record("a", "", "10.0.0.1"), second, record("b", "", "10.0.0.2")}, nil, []string{"net/a/eth0", "second/a/eth0"}},
		{"two of a sandbox, one with the UID", pod("web", "2", "x"), []attachment.Record{record("a", "2", "10.0.0.1"), second, record("b", "", "10.0.0.2")}, nil, []string{"net/a/eth0", "second/a/eth0"}},
		{"a static pod", static, []attachment.Record{record("a", "manifest", "10.0.0.1")}, nil, []string{"net/a/eth0"}},
		{"a pod elsewhere", far("web", "2", "x", "10.0.0.1"), []attachment.Record{record("a", "", "10.0.0.1")}, nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := New("node", nil)
			v.pods.put(tt.pod)
			for _, a := range tt.asked {
				v.Expect(a, time.Time{})
			}
			var got []string
			for k := range v.assign(tt.records) {
				got = append(got, k.String())
			}
			if slices.Sort(got); !slices.Equal(got, tt.want) {
				t.Errorf("its attachments are %q, want %q", got, tt.want)
			}
		})
	}
}

// A watch that lags does not bring a former pod back, nor take its successor away.
func TestLaggingWatch(t *testing.T) {
	v := New("node", nil)
	quick, slow := Watch{Kind: Pods, Node: "node"}, Watch{Kind: Pods, Namespace: "shop"}
	for _, w := range []Watch{quick, slow} {
		v.watches[w] = &watchState{Watch: w, synced: true}
	}
	at := func(version uint64, p *Pod) *Pod { p.Version = version; return p }
	v.Seen(quick, at(1, pod("web", "1", "a")), time.Time{})
	v.Seen(slow, at(1, pod("web", "1", "a")), time.Time{})
	v.Gone(quick, at(3, pod("web", "1", "b")))
	v.Seen(quick, at(4, pod("web", "2", "c")), time.Time{})
	is := func(uid, label string) {
		t.Helper()
		p := v.pods.get(Name{"shop", "web"})
		if p == nil || p.UID != UIDOf(uid) || value(p.Labels, "app") != label {
			t.Errorf("it is %v, want %s with label %s", p, uid, label)
		}
	}
	is("2", "c")
	v.Seen(slow, at(2, pod("web", "1", "b")), time.Time{})
	is("2", "c")
	v.Gone(slow, at(3, pod("web", "1", "b")))
	is("2", "c")
	v.Seen(slow, at(4, pod("web", "2", "c")), time.Time{})
	v.Gone(quick, at(5, pod("web", "2", "c")))
	is("2", "c")
	v.Gone(slow, at(5, pod("web", "2", "c")))
	if v.pods.count() != 0 {
		t.Errorf("%v is there for ever", v.pods)
	}
}

// of gives a policy a UID.
func (p *Policy) of(uid string) *Policy {
	p.UID = UIDOf(uid)
	return p
}

// What is left on the node of a namespace that is gone keeps that one's policies, and its
// successor of the name, with its policies and pods, has nothing to do with it.
func TestNamespaceAgain(t *testing.T) {
	for _, restart := range []bool{false, true} {
		for _, tt := range []struct {
			name     string
			old, new []*Policy // of the two namespaces
			want     [2]bool   // whether a pod of the one and of the other is isolated
		}{
			{"the former one is isolated", []*Policy{isolating("x").of("a")}, nil, [2]bool{true, false}},
			{"the later one is isolated", nil, []*Policy{isolating("x").of("b")}, [2]bool{false, true}},
			{"both are", []*Policy{isolating("x").of("a")}, []*Policy{isolating("x", "y").of("b")}, [2]bool{true, true}},
		} {
			t.Run(fmt.Sprintf("%s, restart %v", tt.name, restart), func(t *testing.T) {
				w := newScene(t)
				for _, p := range tt.old {
					w.put(p)
				}
				w.put(pod("web", "1", "x"))
				w.Expect(ask("old", "1"), w.now)
				w.round()
				w.attach(ask("old", "1"), "10.0.0.1")
				w.Stir()
				w.round()
				check := func(when string) {
					t.Helper()
					if w.isolated("old") != tt.want[0] {
						t.Errorf("%s, the former one is isolated: %v", when, w.isolated("old"))
					}
					if _, there := w.records[key("new")]; there && w.isolated("new") != tt.want[1] {
						t.Errorf("%s, the later one is isolated: %v", when, w.isolated("new"))
					}
				}
				check("at first")
				w.spaces["shop"] = Space{UID: "1", Ending: true}
				for _, p := range tt.old {
					w.remove(p)
				}
				w.round()
				check("in a namespace that ends")
				w.remove(w.objects["pods"+fmt.Sprint(Name{"shop", "web"})])
				w.spaces["shop"] = Space{UID: "2"}
				w.round()
				if restart {
					left := w.applied
					w.View = New("node", nil)
					w.Remember(left)
					w.Attach(w.attached())
				}
				for _, p := range tt.new {
					w.put(p)
				}
				w.put(pod("other", "2", "x"))
				second := Ask{Attachment: key("new"), Namespace: "shop", Pod: "other", UID: "2"}
				w.Expect(second, w.now)
				w.round()
				check("before the ADD")
				w.attach(second, "10.0.0.2")
				for range 3 {
					w.Stir()
					w.round()
					check("after the ADD")
					w.now = w.now.Add(hold + 1)
				}
				delete(w.records, key("old"))
				w.Stir()
				w.round()
				w.round()
				for _, p := range w.policies["shop"] {
					if p.gone {
						t.Errorf("policy %s outlives all pods", p.Name)
					}
				}
			})
		}
	}
}

// A policy that a user deletes in a namespace that stays is gone, and one that is made again
// under its name is another.
func TestPolicyIsDeleted(t *testing.T) {
	w := newScene(t)
	w.put(isolating("x").of("a"))
	w.put(pod("web", "1", "x"))
	w.Expect(ask("a", "1"), w.now)
	w.round()
	w.attach(ask("a", "1"), "10.0.0.1")
	w.put(isolating("x", "y").of("b"))
	w.round()
	if n := len(w.applied.Policies); n != 1 || len(w.applied.Policies[0].Ingress.Rules) != 1 {
		t.Errorf("%d policies are in force: %+v", n, w.applied.Policies)
	}
	w.remove(w.policiesAPI()[0])
	w.round()
	if w.isolated("a") {
		t.Error("it is isolated by a policy that is deleted")
	}
}

func (w *scene) policiesAPI() (list []Object) {
	for _, o := range w.objects {
		if kindOf(o) == Policies {
			list = append(list, o)
		}
	}
	return list
}

// While the API does not say what a namespace is, a pod that starts waits for it a while, and
// policies hold by name.
func TestSilentAboutNamespaces(t *testing.T) {
	w := newScene(t)
	w.silent = true
	w.put(isolating("x").of("a"))
	w.put(pod("web", "1", "x"))
	w.Expect(ask("a", "1"), w.now)
	w.round()
	if _, waits := w.Answer(ask("a", "1"), w.now); waits == nil {
		t.Error("nothing is waited for")
	}
	w.now = w.now.Add(hold + 1)
	w.round()
	w.attach(ask("a", "1"), "10.0.0.1")
	w.Stir()
	w.round()
	if !w.isolated("a") {
		t.Error("it is not isolated")
	}
	for w.silent = false; w.answer(); {
	}
	w.Stir()
	w.round()
	if !w.isolated("a") || w.records[key("a")].NamespaceUID != "1" {
		t.Errorf("isolated %v, of namespace %q", w.isolated("a"), w.records[key("a")].NamespaceUID)
	}
}

// Where the API's versions go back, as when etcd is restored, a list takes the place of what
// was known, and a watch that has not noticed yet brings nothing back.
func TestVersionsGoBack(t *testing.T) {
	one, two := Watch{Kind: Pods, Node: "node"}, Watch{Kind: Pods, Namespace: "shop"}
	at := func(version uint64, label string) *Pod {
		p := pod("web", "1", label)
		p.Version = version
		return p
	}
	for _, tt := range []struct {
		name string
		told func(v *View)
		want string
	}{
		{"a list of the only watch", func(v *View) {
			v.Listed(one, []Object{at(900, "new")}, 900, time.Time{})
			v.Listed(one, []Object{at(100, "old")}, 100, time.Time{})
		}, "old"},
		{"what follows it", func(v *View) {
			v.Listed(one, []Object{at(900, "new")}, 900, time.Time{})
			v.Listed(one, []Object{at(100, "old")}, 100, time.Time{})
			v.Seen(one, at(101, "later"), time.Time{})
		}, "later"},
		{"versions that are higher when it is noticed", func(v *View) {
			v.Listed(one, []Object{at(900, "new")}, 900, time.Time{})
			v.Listed(one, []Object{at(100, "old")}, 950, time.Time{})
		}, "old"},
		{"a list of one of two watches", func(v *View) {
			v.Listed(one, []Object{at(900, "new")}, 900, time.Time{})
			v.Listed(two, []Object{at(900, "new")}, 901, time.Time{})
			v.Listed(one, []Object{at(100, "old")}, 100, time.Time{})
			v.Seen(two, at(902, "newer"), time.Time{})
		}, "old"},
		{"lists of both", func(v *View) {
			v.Listed(one, []Object{at(900, "new")}, 900, time.Time{})
			v.Listed(two, []Object{at(900, "new")}, 901, time.Time{})
			v.Listed(one, []Object{at(100, "old")}, 100, time.Time{})
			v.Listed(two, []Object{at(101, "later")}, 101, time.Time{})
		}, "later"},
		{"what the first of both says behind that", func(v *View) {
			v.Listed(one, []Object{at(900, "new")}, 900, time.Time{})
			v.Listed(two, []Object{at(900, "new")}, 901, time.Time{})
			v.Listed(one, []Object{at(100, "old")}, 100, time.Time{})
			v.Listed(two, []Object{at(100, "old")}, 100, time.Time{})
			v.Seen(one, at(101, "later"), time.Time{})
		}, "later"},
		{"a watch that begins behind it", func(v *View) {
			v.Listed(one, []Object{at(900, "new")}, 900, time.Time{})
			v.Listed(one, []Object{at(100, "old")}, 100, time.Time{})
			v.Listed(two, []Object{at(101, "later")}, 101, time.Time{})
		}, "later"},
		{"nothing of that: one watch is quicker", func(v *View) {
			v.Listed(one, []Object{at(900, "new")}, 900, time.Time{})
			v.Listed(two, []Object{at(899, "old")}, 899, time.Time{})
		}, "new"},
		{"nothing of that: it was asked for", func(v *View) {
			v.Listed(one, nil, 900, time.Time{})
			v.Fetched(one, at(902, "new"))
			v.Seen(one, at(901, "old"), time.Time{})
		}, "new"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := New("node", nil)
			for _, w := range []Watch{one, two} {
				v.watches[w] = &watchState{Watch: w}
			}
			tt.told(v)
			if got := value(v.pods.get(Name{"shop", "web"}).Labels, "app"); got != tt.want {
				t.Errorf("its label is %q, want %q", got, tt.want)
			}
		})
	}
}

// A peer that is being deleted counts until its node should have ended it, and no longer: who
// has its address then is not watched.
func TestOverduePeer(t *testing.T) {
	w := newScene(t)
	w.put(&Namespace{Name: "shop", Labels: map[string]string{desired.MetadataName: "shop"}})
	w.put(isolating("web", "client").of("p"))
	w.put(pod("web", "1", "web"))
	w.Expect(ask("c1", "1"), w.now)
	w.round()
	w.attach(ask("c1", "1"), "10.1.0.2")
	const address = "10.2.0.5"
	leaving := func(seconds time.Duration) *Pod {
		p := far("client", "2", "client", address)
		p.Until = uint32(w.now.Add(seconds).Unix())
		return p
	}
	is := func(what string, want bool) {
		t.Helper()
		w.Stir()
		w.round()
		if got := slices.Contains(w.peers("shop"), address); got != want {
			t.Errorf("%s: it is a peer: %v, want %v", what, got, want)
		}
	}
	w.put(far("client", "2", "client", address))
	is("running", true)
	p := leaving(30 * time.Second)
	w.put(p)
	is("being deleted", true)
	w.now = w.now.Add(30 * time.Second)
	is("at its time", true)
	w.now = w.now.Add(overdue)
	is("overdue", false)
	status := again(p).(*Pod)
	status.Rank++
	w.put(status)
	is("overdue, its status changes", false)
	w.put(leaving(time.Minute))
	is("it gets more time", true)
	w.now = w.now.Add(time.Hour)
	is("overdue again", false)
	w.put(far("client", "3", "client", address))
	is("another of its name", true)
	w.remove(w.objects[fmt.Sprint(Pods, Name{"shop", "client"})])
	is("gone", false)
}

// A policy that went with its namespace before anybody could say which that was is of the pods
// that there were, and of none in the namespace that has the name next.
func TestPolicyOfAFormerNamespace(t *testing.T) {
	w := newScene(t)
	w.put(pod("web", "1", "web"))
	w.Expect(ask("c1", "1"), w.now)
	w.round()
	w.attach(ask("c1", "1"), "10.1.0.2")
	p := isolating("web").of("p")
	gone := func(is Space) {
		w.silent = true
		w.put(p)
		w.round()
		w.remove(p)
		w.silent, w.spaces["shop"] = false, is
		w.round()
	}
	if gone(Space{UID: "1"}); w.isolated("c1") {
		t.Error("a policy that somebody has deleted goes on")
	}
	if gone(Space{}); !w.isolated("c1") {
		t.Error("a pod of the former namespace has lost its policy")
	}
	w.spaces["shop"] = Space{UID: "2"}
	w.put(pod("web", "2", "web"))
	w.Expect(ask("c2", "2"), w.now)
	w.round()
	w.attach(ask("c2", "2"), "10.1.0.3")
	w.Stir()
	w.round()
	if w.isolated("c2") || !w.isolated("c1") {
		t.Errorf("isolated: %v of the next namespace, %v of the former, want false, true", w.isolated("c2"), w.isolated("c1"))
	}
}

// A policy is not enforced without its peers because nobody had the time to ask who they are:
// rounds take seconds on a busy node.
func TestNobodyHasAsked(t *testing.T) {
	client := Watch{Kind: Pods, Namespace: "shop", Labels: "app in (client)"}
	w := neighbours(t, isolating("y"))
	w.Expect(askIn("shop"), w.now)
	w.round()
	w.attach(askIn("shop"), "10.0.0.1")
	w.run(time.Second)
	w.put(isolating("x", "client").of("shop"))
	w.held[client] = true
	for _, step := range []struct {
		does     string
		do       func()
		isolated bool
	}{
		{"a round that lasts", func() { w.now = w.now.Add(2 * hold) }, false},
		{"the API takes its time", func() { w.now = w.now.Add(hold) }, false},
		{"it takes longer than anybody waits", func() { w.now = w.now.Add(time.Millisecond) }, true},
		{"it answers", func() { delete(w.held, client) }, true},
	} {
		step.do()
		w.Decide(w.attached(), w.now) // of a round that had planned before that
		w.Stir()
		w.round()
		if got := w.isolated("shop"); got != step.isolated {
			t.Errorf("%s: isolated is %v", step.does, got)
		}
	}
	if got := w.peers("shop"); !slices.Equal(got, []string{"10.9.0.1"}) {
		t.Errorf("peers are %q", got)
	}
}
