package view

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/desired"
)

// world is an API server with a view that follows it, each watch as late as chance has it, and
// in its own order.
type randomWorld struct {
	*View
	t *testing.T
	*rand.Rand
	now time.Time
	// history is what the API server has been told, and states what it has had behind each.
	history *past
	uids    uint64
	// namespaces are what there is, and doomed those that end.
	spaces  map[string]Space
	streams map[Watch]*stream
	asked   []question
	records map[attachment.Key]attachment.Record
	asks    []Ask
	// served are the UIDs of pods that have had an attachment here.
	served map[UID]bool
	// kernel are the sets as rounds have left them, and inForce the policies.
	kernel  desired.State
	inForce desired.Policies
	counts  map[string]int
}

// past is a sequence of changes of the API's. After a restore there is another one.
type past struct {
	changes []change
	objects map[string]Object
	version uint64
}

// change is of one object, which was not there before or is not any more where one is nil.
type change struct {
	version  uint64
	was, now Object
}

// stream is a watch: how far it has come in which past.
type stream struct {
	of      *past
	at      int
	listed  bool
	refused bool
}

// question is one of a namespace, with what the API says if it has been asked already.
type question struct {
	namespace string
	is        *Space
}

var randomNamespaces = []string{"red", "blue", "shop", "tools"}

func newRandomWorld(t *testing.T, seed uint64) *randomWorld {
	w := &randomWorld{
		View: New("node", nil), t: t, Rand: rand.New(rand.NewPCG(seed, 7)), now: time.Unix(1_700_000_000, 0),
		history: &past{objects: map[string]Object{}}, spaces: map[string]Space{}, streams: map[Watch]*stream{},
		records: map[attachment.Key]attachment.Record{}, served: map[UID]bool{}, counts: map[string]int{},
	}
	for _, n := range randomNamespaces {
		w.beginNamespace(n)
	}
	return w
}

func (w *randomWorld) uid() string {
	w.uids++
	return fmt.Sprint("uid-", w.uids)
}

// pick is one of the list, by chance; false for none.
func pick[T any](r *rand.Rand, list []T) (one T, ok bool) {
	if len(list) == 0 {
		return one, false
	}
	return list[r.IntN(len(list))], true
}

// write has the API server take an object, or lose it.
func (w *randomWorld) write(was, now Object) {
	h := w.history
	h.version++
	if p, ok := now.(*Pod); ok {
		p.Version = h.version
	}
	if now == nil {
		delete(h.objects, keyOf(was))
	} else {
		h.objects[keyOf(now)] = now
	}
	h.changes = append(h.changes, change{h.version, was, now})
}

// all lists the objects of a kind that the API has, in an order that a seed repeats.
func all[T Object](w *randomWorld) (list []T) {
	for _, key := range slices.Sorted(maps.Keys(w.history.objects)) {
		if o, ok := w.history.objects[key].(T); ok {
			list = append(list, o)
		}
	}
	return list
}

func (w *randomWorld) beginNamespace(name string) {
	w.spaces[name] = Space{UID: w.uid()}
	labels := map[string]string{desired.MetadataName: name}
	if team := w.IntN(3); team > 0 {
		labels["team"] = fmt.Sprint(team)
	}
	w.write(nil, &Namespace{Name: name, Labels: labels})
}

// endNamespace takes everything out of a namespace, and it: policies may go before pods.
func (w *randomWorld) endNamespace(name string) {
	w.spaces[name] = Space{UID: w.spaces[name].UID, Ending: true}
	w.asks = slices.DeleteFunc(w.asks, func(a Ask) bool { return a.Namespace == name })
	for _, p := range all[*Policy](w) {
		if p.Namespace == name {
			w.write(p, nil)
		}
	}
}

func (w *randomWorld) namespaceGone(name string) {
	for _, p := range all[*Pod](w) {
		if p.Namespace == name {
			w.write(p, nil)
		}
	}
	w.write(w.history.objects[keyOf(&Namespace{Name: name})], nil)
	delete(w.spaces, name)
	if w.IntN(2) == 0 { // its attachments may outlive it
		maps.DeleteFunc(w.records, func(_ attachment.Key, r attachment.Record) bool { return r.Namespace == name })
		w.Stir()
	}
}

var randomApps = []string{"a", "b", "c"}

func (w *randomWorld) app() map[string]string {
	a, _ := pick(w.Rand, randomApps)
	return map[string]string{"app": a}
}

// address is one of few: pods follow one another in having it.
func (w *randomWorld) address() netip.Addr {
	return netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + w.IntN(60))})
}

// newPod is one of a name that may be taken; own is whether it is this node's.
func (w *randomWorld) newPod(namespace string, own bool) *Pod {
	uid := w.uid()
	p := &Pod{
		IndexedPod: desired.IndexedPod{Template: &desired.Template{Namespace: namespace}, Name: fmt.Sprint("pod-", w.IntN(12)), Rank: w.uids + 1<<32},
		UID:        UIDOf(uid),
	}
	if own {
		p.Own = &Own{Identity: Identity{UID: uid}}
	}
	label(p, w.app())
	if w.IntN(2) == 0 {
		p.Ports = []attachment.NamedPort{{Name: "http", Protocol: uint8(desired.TCP), Number: uint16(8000 + w.IntN(3))}}
	}
	return p
}

// label gives a pod labels.
func label(p *Pod, labels map[string]string) {
	var list []desired.Label
	for k, v := range labels {
		list = append(list, desired.Label{Key: []byte(k), Value: []byte(v)})
	}
	p.Labels = desired.NewLabelSets().Of(list)
	if p.Own != nil {
		p.Own.Labels = labels
	}
}

// placed gives a pod of another node its address; those that have it go.
func (w *randomWorld) placed(p *Pod, a netip.Addr) {
	for _, other := range all[*Pod](w) {
		if slices.Contains(other.Addresses.List(), a) && other.UID != p.UID && other.Rank > 1<<32 {
			going := *other
			going.Rank -= 1 << 32
			w.write(other, fresh(&going))
		}
	}
	p.Addresses, p.Peer = desired.AddressesOf(a), true
}

// fresh is a pod without what a view notes in it.
func fresh(p *Pod) *Pod {
	c, template := *p, *p.Template
	c.Template = &template
	c.told, c.served = nil, false
	if p.Own != nil {
		c.Own = &Own{Identity: p.Own.Identity, Labels: p.Own.Labels}
	}
	return &c
}

func copied(o Object) Object {
	if p, ok := o.(*Pod); ok {
		return fresh(p)
	}
	return o
}

func (w *randomWorld) peer() desired.Peer {
	pods := desired.Selector(nil)
	if w.IntN(5) > 0 {
		pods = selects(w.app())
	}
	namespace, _ := pick(w.Rand, randomNamespaces)
	switch w.IntN(6) {
	case 0:
		return desired.Peer{NamespaceSelector: desired.Selector{{Key: "team", Op: desired.In, Values: []string{fmt.Sprint(1 + w.IntN(2))}}}, Pods: pods}
	case 1:
		return desired.Peer{NamespaceSelector: desired.Selector{{Key: desired.MetadataName, Op: desired.In, Values: []string{namespace}}}, Pods: pods}
	case 2:
		if w.IntN(4) == 0 {
			return desired.Peer{Pods: pods}
		}
	}
	return desired.Peer{Namespace: "own", Pods: pods}
}

func (w *randomWorld) newPolicy(namespace, name string) *Policy {
	rules := func() *desired.Isolation {
		i := &desired.Isolation{}
		for range w.IntN(3) {
			peer := w.peer()
			if peer.Namespace != "" {
				peer.Namespace = namespace
			}
			r := desired.Rule{Peers: []desired.Peer{peer}}
			if w.IntN(4) == 0 {
				r.NamedPorts = []desired.NamedPort{{Protocol: desired.TCP, Name: "http"}}
			}
			i.Rules = append(i.Rules, r)
		}
		return i
	}
	p := &Policy{Policy: desired.Policy{Namespace: namespace, Name: name}, UID: UIDOf(w.uid())}
	if w.IntN(4) > 0 {
		p.Pods = selects(w.app())
	}
	p.Ingress = rules()
	if w.IntN(2) == 0 {
		p.Egress = rules()
	}
	if w.IntN(20) == 0 && p.Egress != nil { // a port of whoever has it
		p.Egress.Rules = append(p.Egress.Rules, desired.Rule{NamedPorts: []desired.NamedPort{{Protocol: desired.TCP, Name: "http"}}})
	}
	return p
}

// disturb changes something in the API, or on the node.
func (w *randomWorld) disturb() {
	var living, gone []string
	for _, n := range randomNamespaces {
		switch s, there := w.spaces[n]; {
		case !there:
			gone = append(gone, n)
		case !s.Ending:
			living = append(living, n)
		}
	}
	namespace, ok := pick(w.Rand, living)
	pods := all[*Pod](w)
	switch n := w.IntN(100); {
	case n < 25: // a pod comes, or takes the place of one of its name
		if !ok {
			return
		}
		p := w.newPod(namespace, w.IntN(4) == 0)
		if was, there := w.history.objects[keyOf(p)]; there {
			if was.(*Pod).Own != nil && w.IntN(3) > 0 {
				return
			}
			w.write(was, nil)
			w.counts["namesakes"]++
		}
		if p.Own == nil && w.IntN(4) > 0 {
			w.placed(p, w.address())
		}
		w.write(nil, p)
		if p.Own != nil {
			ask := Ask{Attachment: key(p.Own.UID), Namespace: namespace, Pod: p.Name, UID: p.Own.UID}
			w.asks = append(w.asks, ask)
		}
	case n < 45: // a pod gets labels, ports, or an address
		p, any := pick(w.Rand, pods)
		if !any {
			return
		}
		next := fresh(p)
		switch w.IntN(3) {
		case 0:
			next.Ports = []attachment.NamedPort{{Name: "http", Protocol: uint8(desired.TCP), Number: uint16(8000 + w.IntN(3))}}
		case 1:
			if len(p.Addresses.List()) == 0 && p.Own == nil && p.Rank > 1<<32 {
				w.placed(next, w.address())
			}
		default:
			label(next, w.app())
		}
		w.write(p, next)
	case n < 60: // a pod goes
		if p, any := pick(w.Rand, pods); any && (p.Own == nil || w.IntN(6) == 0) {
			w.write(p, nil)
		}
	case n < 66: // an attachment goes
		if keys := slices.SortedFunc(maps.Keys(w.records), func(a, b attachment.Key) int { return cmp.Compare(a.ContainerID, b.ContainerID) }); len(keys) > 0 {
			delete(w.records, keys[w.IntN(len(keys))])
			w.Stir()
		}
	case n < 76: // a policy comes, changes, or is another of its name
		if !ok {
			return
		}
		p := w.newPolicy(namespace, fmt.Sprint("policy-", w.IntN(3)))
		was := w.history.objects[keyOf(p)]
		if was != nil && w.IntN(2) == 0 {
			p.UID = was.uid()
		} else if was != nil {
			w.write(was, nil)
			was = nil
		}
		w.write(was, p)
	case n < 80: // a policy goes
		if p, any := pick(w.Rand, all[*Policy](w)); any {
			w.write(p, nil)
		}
	case n < 84: // a namespace gets labels
		if ok {
			was := w.history.objects[keyOf(&Namespace{Name: namespace})]
			labels := map[string]string{desired.MetadataName: namespace, "team": fmt.Sprint(w.IntN(3))}
			w.write(was, &Namespace{Name: namespace, Labels: labels})
		}
	case n < 85:
		if ok && w.IntN(3) == 0 {
			w.endNamespace(namespace)
			w.counts["namespaces that ended"]++
		}
	case n < 88:
		for _, name := range randomNamespaces {
			if w.spaces[name].Ending {
				w.namespaceGone(name)
				return
			}
		}
		if name, any := pick(w.Rand, gone); any {
			w.beginNamespace(name)
		}
	case n < 90 && w.IntN(8) == 0:
		w.restore()
	default:
		w.now = w.now.Add(time.Duration(w.IntN(3000)) * time.Millisecond)
	}
}

// restore has the API go on for a while, and brings it back to a backup from before that, and
// its versions with it. All watches tell that by the version: package view has what else there
// is. Each begins again, by chance after what was on its way to it.
func (w *randomWorld) restore() {
	h := w.history
	next := &past{objects: maps.Clone(h.objects), changes: slices.Clone(h.changes), version: h.version}
	for range 1 + w.IntN(10) {
		namespace, _ := pick(w.Rand, randomNamespaces)
		p := w.newPod(namespace, false)
		was, there := h.objects[keyOf(p)]
		switch {
		case w.spaces[namespace].UID == "" || there && was.(*Pod).Own != nil:
		case !there:
			w.placed(p, w.address())
			w.write(nil, p)
		case w.IntN(2) == 0:
			changed := fresh(was.(*Pod))
			label(changed, w.app())
			w.write(was, changed)
		default:
			w.write(was, nil)
		}
	}
	for _, watch := range w.watched() {
		w.relist(watch, w.streams[watch], false)
	}
	if h.version == next.version {
		return
	}
	w.history = next
	watches := w.watched()
	w.Shuffle(len(watches), func(i, j int) { watches[i], watches[j] = watches[j], watches[i] })
	for _, watch := range watches {
		s := w.streams[watch]
		for ; s.listed && !s.refused && s.at < len(s.of.changes) && w.IntN(3) > 0; s.at++ {
			w.show(watch, s.of.changes[s.at])
		}
		w.relist(watch, s, false)
	}
	w.counts["restores"]++
}

// watched lists the watches, in an order that a seed repeats.
func (w *randomWorld) watched() []Watch {
	return slices.SortedFunc(maps.Keys(w.streams), func(a, b Watch) int { return cmp.Compare(a.String(), b.String()) })
}

// deliver has one watch, by chance, see what is next.
func (w *randomWorld) deliver() {
	watch, ok := pick(w.Rand, w.watched())
	if !ok {
		return
	}
	s := w.streams[watch]
	switch n := w.IntN(200); {
	case s.refused:
		if n < 20 {
			s.refused = false
			w.Failed(watch, nil, NoAnswer, w.now)
			s.listed = false
		}
	case n == 0:
		s.refused = true
		w.Failed(watch, errors.New("forbidden"), Forbidden, w.now)
		w.counts["refused"]++
	case !s.listed || n == 1:
		w.relist(watch, s, w.IntN(3) == 0)
	default:
		before := map[Name]Pod{}
		for p := range w.pods.of("") {
			if p.telling().by != nil { // else whoever sees it still says what it is
				before[p.name()] = *p
			}
		}
		for s.at < len(s.of.changes) {
			s.at++
			if w.show(watch, s.of.changes[s.at-1]) {
				break
			}
		}
		// What one watch tells late takes nothing back that another has told.
		for n, p := range before {
			if now := w.pods.get(n); now != nil && now.telling().history == p.telling().history && now.Version < p.Version {
				w.t.Errorf("pod %v is as of version %d, and was as of %d", n, now.Version, p.Version)
			}
		}
	}
}

// relist shows a watch all that there is, or was a little before, but not before what it has
// seen.
func (w *randomWorld) relist(watch Watch, s *stream, late bool) {
	at := len(w.history.changes)
	if late {
		at -= w.IntN(10)
	}
	if s.of == w.history {
		at = max(at, s.at)
	}
	at = max(at, 0)
	objects := map[string]Object{}
	var version uint64
	for _, c := range w.history.changes[:at] {
		version = c.version
		if c.now == nil {
			delete(objects, keyOf(c.was))
		} else {
			objects[keyOf(c.now)] = c.now
		}
	}
	var list []Object
	for _, k := range slices.Sorted(maps.Keys(objects)) {
		if watch.shows(objects[k]) {
			list = append(list, copied(objects[k]))
		}
	}
	s.of, s.at, s.listed = w.history, at, true
	w.Listed(watch, list, version, w.now)
	w.counts["lists"]++
}

// show hands a change to a watch, if it is one of what it sees.
func (w *randomWorld) show(watch Watch, c change) bool {
	switch {
	case c.now != nil && watch.shows(c.now):
		w.Seen(watch, copied(c.now), w.now)
	case c.was != nil && watch.shows(c.was):
		w.Gone(watch, copied(c.was))
	default:
		return false
	}
	return true
}

// reply has the API answer a question, by chance as of when it was asked.
func (w *randomWorld) reply() {
	if len(w.asked) == 0 {
		return
	}
	i := w.IntN(len(w.asked))
	q := w.asked[i]
	if q.is == nil {
		is := w.spaces[q.namespace]
		w.asked[i].is = &is
		return
	}
	w.asked = slices.Delete(w.asked, i, i+1)
	if w.IntN(10) == 0 {
		w.Told(q.namespace, Space{}, errors.New("no answer"))
		return
	}
	w.Told(q.namespace, *q.is, nil)
}

// plug has the plugin go on with a pod that starts.
func (w *randomWorld) plug() {
	if len(w.asks) == 0 {
		return
	}
	i := w.IntN(len(w.asks))
	a := w.asks[i]
	if w.expected[a] == nil || w.IntN(5) == 0 {
		w.Expect(a, w.now)
	}
	p, there := w.history.objects[keyOf(&Pod{IndexedPod: desired.IndexedPod{Template: &desired.Template{Namespace: a.Namespace}, Name: a.Pod}})].(*Pod)
	if !there || p.Own == nil || p.Own.UID != a.UID { // it was deleted meanwhile
		w.asks = slices.Delete(w.asks, i, i+1)
		return
	}
	is, waits := w.Answer(a, w.now)
	if waits != nil || !w.Decided(is) {
		return
	}
	w.asks = slices.Delete(w.asks, i, i+1)
	w.records[a.Attachment] = attachment.Record{
		Key: a.Attachment, UID: a.UID, Policed: true, Kubernetes: true, Committed: true, NamespaceUID: is.NamespaceUID(),
		Endpoint: attachment.Endpoint{Namespace: a.Namespace, Pod: a.Pod, Labels: is.Own.Labels, NamedPorts: is.Ports, Addresses: []netip.Addr{w.free()}},
	}
	w.Stir()
	if w.IntN(2) == 0 { // the kubelet reports it
		next := fresh(p)
		next.Addresses, next.Peer = desired.AddressesOf(w.records[a.Attachment].Addresses...), true
		w.write(p, next)
	}
	w.counts["attachments"]++
}

// free is an address of this node's range that no attachment has.
func (w *randomWorld) free() netip.Addr {
	for {
		a := netip.AddrFrom4([4]byte{10, 0, 1, byte(1 + w.IntN(200))})
		if !slices.ContainsFunc(slices.Collect(maps.Values(w.records)), func(r attachment.Record) bool { return r.Addresses[0] == a }) {
			return a
		}
	}
}

func (w *randomWorld) attachments() []attachment.Record {
	return slices.SortedFunc(maps.Values(w.records), func(a, b attachment.Record) int { return cmp.Compare(a.ContainerID, b.ContainerID) })
}

// turn is what a cluster does in a round. It reports whether anything was to do.
func (w *randomWorld) turn() bool {
	begin, end, ready := w.Plan(w.now)
	for _, watch := range begin {
		w.streams[watch] = &stream{of: w.history}
	}
	for _, watch := range end {
		delete(w.streams, watch)
	}
	questions := w.Questions()
	for _, n := range questions {
		w.asked = append(w.asked, question{namespace: n})
	}
	w.Notes()
	if !w.Begun() {
		w.Attach(w.attachments())
	}
	due := w.Begun() && w.Changed() || !w.Begun() && ready
	if due {
		records := w.attachments()
		rev := w.Decide(records, w.now)
		for _, r := range rev.Records {
			w.records[r.Key] = r
		}
		for _, r := range w.records {
			w.served[UIDOf(r.UID)] = true
		}
		w.enforce(rev.Policies, rev.Unknown, rev.Removed, rev.Added)
		w.counts["rounds"]++
	}
	return due || len(begin)+len(end)+len(questions) > 0
}

// enforce does to the sets what package node does.
func (w *randomWorld) enforce(policies *desired.Policies, unknown bool, gone, come desired.Members) {
	if policies != nil {
		w.inForce = *policies
	}
	was := w.kernel
	next := desired.Build(desired.Node{}, w.inForce, nil)
	if unknown {
		w.kernel, _ = w.Complete(next)
		return
	}
	for id, set := range next.PeerSets { // those that stay, without who has gone
		set.Addrs = slices.DeleteFunc(slices.Clone(was.PeerSets[id].Addrs), func(a netip.Addr) bool { return slices.Contains(gone.Peers[id], a) })
		next.PeerSets[id] = set
	}
	for id, set := range next.TupleSets {
		set.Tuples = slices.DeleteFunc(slices.Clone(was.TupleSets[id].Tuples), func(a netip.AddrPort) bool { return slices.Contains(gone.Tuples[id], a) })
		next.TupleSets[id] = set
	}
	w.kernel = next.WithMembers(come)
}

// settle lets everything that is said be heard, and what takes a while pass.
func (w *randomWorld) settle() {
	for _, p := range all[*Pod](w) { // who goes does so at last
		if p.Rank < 1<<32 {
			w.write(p, nil)
		}
	}
	w.asks = nil
	for n, quiet := 0, 0; quiet < 3; n++ {
		if n == 2000 {
			w.t.Fatal("it does not come to rest")
		}
		quiet++
		for _, watch := range w.watched() {
			s := w.streams[watch]
			if s.refused {
				s.refused, s.listed = false, false
				w.Failed(watch, nil, NoAnswer, w.now)
			}
			if !s.listed {
				w.relist(watch, s, false)
				quiet = 0
			}
			for ; s.at < len(s.of.changes); s.at++ {
				w.show(watch, s.of.changes[s.at])
				quiet = 0
			}
		}
		for len(w.asked) > 0 {
			q := w.asked[0]
			w.asked = w.asked[1:]
			w.Told(q.namespace, w.spaces[q.namespace], nil)
			quiet = 0
		}
		w.now = w.now.Add(linger + comes + hold + time.Second)
		w.Stir()
		begin, streams := w.counts["rounds"], len(w.streams)
		w.turn()
		if len(w.streams) != streams || w.counts["rounds"] == begin {
			quiet = 0
		}
	}
}

// compare holds what is enforced to what the pure model makes of all that the API has.
func (w *randomWorld) compare() {
	t := w.t
	t.Helper()
	records := w.attachments()
	model := desired.Policies{Namespaces: map[string]map[string]string{}, NamespaceUIDs: map[string]string{}}
	for _, n := range all[*Namespace](w) {
		model.Namespaces[n.Name] = n.Labels
	}
	for name, s := range w.spaces {
		model.NamespaceUIDs[name] = s.UID
	}
	for _, p := range all[*Policy](w) {
		model.Policies = append(model.Policies, p.Of(w.spaces[p.Namespace].UID))
	}
	// The labels of those whose pod the API still has.
	for _, p := range all[*Pod](w) {
		if p.Own == nil {
			continue
		}
		if r, there := w.records[key(p.Own.UID)]; there && (!maps.Equal(r.Labels, p.Own.Labels) || !slices.Equal(r.NamedPorts, p.Ports)) {
			t.Errorf("%s has labels %v and ports %v, want %v and %v", r.Key, r.Labels, r.NamedPorts, p.Own.Labels, p.Ports)
		}
	}
	is, want := desired.Build(desired.Node{}, w.inForce, records), desired.Build(desired.Node{}, model, records)
	sets := map[desired.PeerSetID]bool{}
	// Behind peers, a port has to lead to those alone; nil is everywhere.
	tuples := map[desired.TupleSetID][][]desired.PeerSetID{}
	for i, e := range want.Endpoints {
		got := is.Endpoints[i]
		if s, there := w.spaces[e.Namespace]; !there || s.Ending || e.NamespaceUID != s.UID {
			continue // it has the policies that its namespace ended with
		}
		for _, d := range desired.Directions {
			if diff := gocmp.Diff(want.Profiles[e.Profiles[d]], is.Profiles[got.Profiles[d]]); diff != "" {
				t.Errorf("what holds for %s of %s/%s, %s, with labels %v, is another:\n%s", e.Key, e.Namespace, e.Pod, d, e.Labels, diff)
			}
			for _, r := range want.Profiles[e.Profiles[d]].Rules() {
				for _, id := range r.Peers {
					sets[id] = true
				}
				for _, id := range r.Tuples {
					tuples[id] = append(tuples[id], r.Peers)
				}
			}
		}
	}
	// Pods elsewhere, each address that of one: an attachment has its own.
	var elsewhere []desired.Pod
	for _, p := range all[*Pod](w) {
		if p.Peer && !w.served[p.UID] {
			pod := desired.Pod{Namespace: p.Namespace, Name: p.Name, Labels: maps.Collect(p.Labels.All()), Ports: p.Ports}
			pod.Addresses = slices.DeleteFunc(p.Addresses.List(), func(a netip.Addr) bool {
				return slices.ContainsFunc(records, func(r attachment.Record) bool { return slices.Contains(r.Addresses, a) })
			})
			elsewhere = append(elsewhere, pod)
		}
	}
	members := model.Members(elsewhere...)
	for id := range sets {
		if diff := gocmp.Diff(texts(members.Peers[id]), texts(w.kernel.PeerSets[id].Addrs)); diff != "" {
			t.Errorf("peers %+v (-want +is):\n%s", want.PeerSets[id].Peer, diff)
		}
	}
	for id, rules := range tuples {
		is, might := w.kernel.TupleSets[id].Tuples, members.Tuples[id]
		for _, tuple := range might {
			must := slices.ContainsFunc(rules, func(peers []desired.PeerSetID) bool {
				return len(peers) == 0 || slices.ContainsFunc(peers, func(p desired.PeerSetID) bool { return slices.Contains(members.Peers[p], tuple.Addr()) })
			})
			if must && !slices.Contains(is, tuple) {
				t.Errorf("port %+v does not lead to %s", want.TupleSets[id].NamedPort, tuple)
			}
		}
		for _, tuple := range is {
			if !slices.Contains(might, tuple) {
				t.Errorf("port %+v leads to %s", want.TupleSets[id].NamedPort, tuple)
			}
		}
	}
	w.counts["sets compared"] += len(sets) + len(tuples)
	w.counts["endpoints compared"] += len(records)
}

func texts(list []netip.Addr) (out []string) {
	for _, a := range list {
		out = append(out, a.String())
	}
	return out
}

// Whatever order watches tell in, and however late, at last that is enforced which the API has.
// PODMARK_STEPS says how many steps, PODMARK_SEED repeats a run.
func TestRandomWatches(t *testing.T) {
	number := func(name string, otherwise uint64) uint64 {
		if n, err := strconv.ParseUint(os.Getenv(name), 10, 64); err == nil {
			return n
		}
		return otherwise
	}
	steps := number("PODMARK_STEPS", 20_000)
	seed := number("PODMARK_SEED", uint64(time.Now().UnixNano()))
	t.Logf("PODMARK_SEED=%d PODMARK_STEPS=%d", seed, steps)
	const life = 2000 // steps of one world
	counts := map[string]int{}
	for done, n := uint64(0), uint64(0); done < steps; n++ {
		w := newRandomWorld(t, seed+n)
		for range min(life, steps-done) {
			switch n := w.IntN(100); {
			case n < 20:
				w.disturb()
			case n < 66:
				w.deliver()
			case n < 72:
				w.reply()
			case n < 82:
				w.plug()
			default:
				w.turn()
			}
			if done++; w.IntN(100) == 0 {
				w.settle()
				w.compare()
			}
			if t.Failed() {
				t.Fatalf("world %d, PODMARK_SEED=%d, step %d", n, seed+n, done)
			}
		}
		w.settle()
		w.compare()
		if t.Failed() {
			t.Fatalf("world %d, PODMARK_SEED=%d, at its end", n, seed+n)
		}
		for what, n := range w.counts {
			counts[what] += n
		}
	}
	t.Log(counts)
}
