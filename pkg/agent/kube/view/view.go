// Package view is what a node knows of its cluster, and what follows from that: what is to
// be watched, what is to be enforced, and who a pod is that starts.
//
// It is pure: it asks nobody, starts nothing, logs nothing and reads no clock. Package
// cluster tells it what watches see and which attachments the node has, and carries out
// what it says. What an operator should read, it leaves in [View.Notes].
package view

import (
	"iter"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/node"
)

// View is what is known. It is not safe for concurrent use.
type View struct {
	node    string
	follows func(network string) bool

	watches map[Watch]*watchState
	wanted  map[Watch]bool
	// tooMuch are watches that the API has refused, each until it is asked for again, and
	// answered is when the API has last answered.
	tooMuch  map[Watch]time.Time
	answered time.Time

	pods       pods
	namespaces map[string]map[string]string
	// edition is that of the namespaces, see [world].
	edition  uint64
	policies map[string][]*known // by namespace
	// leaving are the pods that are being deleted, until they should be gone.
	leaving map[Name]*Pod
	// own are those of pods that are this node's. spaces is what the API has said of
	// namespaces, and asking those of which it is asked.
	own    map[Name]*Pod
	spaces map[string]Space
	asking map[string]bool
	// history is the highest of all watches. fetched stands for what was asked for besides.
	history uint32
	fetched *watchState
	index   *desired.Index
	// residents are the attachments of the node that have their policies from the API, and
	// expected those that the plugin has asked for, and that are not there yet.
	residents map[attachment.Key]resident
	expected  map[Ask]*expectation
	// refused are the annotations of attachments that are not in force.
	refused map[attachment.Key]string
	// applied is what is enforced; before the first round, what a former podmarkd left.
	// decided are the pods, by namespace, for which it is.
	applied desired.Policies
	decided map[string][]member
	begun   bool
	// lost is set where nobody knows what is in the kernel.
	lost bool
	// dirty is set when a round would decide otherwise than the last one, besides what the
	// index says.
	dirty bool
	notes []Note
}

// watchState is a watch, and how far it is.
type watchState struct {
	Watch
	// synced is set once all has been seen that there was. err, of a class, is why that takes
	// long, and failing when that began.
	synced  bool
	err     error
	class   Class
	failing time.Time
	// highest is the highest version that it was told of, and history counts how often the
	// API's versions have gone back, as etcd's do when it is restored.
	highest uint64
	history uint32
	// last is what it has made of the last pod: most are told of by one watch.
	last *telling
	// begun is when it began, and idle since when it is not needed; zero while it is.
	begun, idle time.Time
}

// known is a policy of a namespace of which the node has pods. Several may have a name:
// one that the API has, and others of former namespaces.
type known struct {
	desired.Policy
	// told is what the API says, which does not name the namespace's UID.
	told desired.Policy
	uid  UID
	// apiUID is what the API has for uid; empty where a former podmarkd has left it.
	apiUID string
	size   size
	needs  needs
	since  time.Time
	// gone is set once the API has it no more. It is enforced until that is known not to
	// be the end of its namespace, whose pods may outlive their policies.
	gone  bool
	place place
	// was is what a former podmarkd has left under its name, as of the same namespace.
	was *known
}

// tells is t with the watch among those that see the pod.
func (s *watchState) tells(t telling) *telling {
	if !slices.Contains(t.seen, s) {
		t.seen = append(slices.Clip(t.seen), s)
	}
	if l := s.last; l == nil || l.by != t.by || l.history != t.history || !slices.Equal(l.seen, t.seen) {
		fresh := t // only what is new takes room
		s.last = &fresh
	}
	return s.last
}

// Note is what an operator should read, with pairs of keys and values as in log/slog.
type Note struct {
	// Trouble is set for what an operator should act on.
	Trouble bool
	Text    string
	Args    []any
}

// New makes the view of a node of that name in the API, which knows nothing. follows tells
// whether a network takes its policies from the API, for attachments that are older than
// that; nil for those only that say so themselves.
func New(node string, follows func(network string) bool) *View {
	v := &View{
		node: node, follows: follows, watches: map[Watch]*watchState{}, tooMuch: map[Watch]time.Time{},
		pods: pods{}, leaving: map[Name]*Pod{}, namespaces: map[string]map[string]string{}, edition: 1,
		policies: map[string][]*known{}, own: map[Name]*Pod{}, spaces: map[string]Space{}, asking: map[string]bool{},
		fetched:   &watchState{},
		residents: map[attachment.Key]resident{}, expected: map[Ask]*expectation{},
		refused: map[attachment.Key]string{}, dirty: true,
	}
	v.index = desired.NewIndex(v.peers)
	return v
}

// Remember takes over what a former podmarkd has left in force.
func (v *View) Remember(policies desired.Policies) {
	v.applied = policies
	// One that the API has no more may be one whose namespace is going.
	for _, p := range policies.Policies {
		v.policies[p.Namespace] = append(v.policies[p.Namespace], &known{
			Policy: p, told: p.Of(""), size: sizeOf(p), needs: needsOf(p), place: place{uid: p.NamespaceUID, sure: true},
		})
	}
}

// Notes hands out what there is to read since the last time.
func (v *View) Notes() []Note {
	notes := v.notes
	v.notes = nil
	return notes
}

func (v *View) note(trouble bool, text string, args ...any) {
	v.notes = append(v.notes, Note{trouble, text, args})
}

// Listed takes over all that a watch sees, as of a version of the API's, 0 where it tells
// none. It takes the place of what the watch was told before, also where the versions have
// gone back.
func (v *View) Listed(w Watch, objects []Object, version uint64, now time.Time) {
	s := v.watches[w]
	if s == nil {
		return
	}
	switch {
	case version < s.highest:
		if s.history == v.history { // else another watch has noticed the same
			v.history++
		}
		s.history = v.history
	case !s.synced:
		s.history = v.history
	}
	s.highest = version
	gone := v.seenBy(s)
	for _, o := range objects {
		v.take(s, o, now)
		delete(gone, o.name())
	}
	for n := range gone {
		v.drop(s, n, UID{})
	}
	if s.Kind == Namespaces && !s.synced { // whoever depends on their labels was left out
		v.dirty = true
	}
	s.synced, s.err = true, nil
	v.answered = now
}

// Seen takes over an object that is new, or has changed.
func (v *View) Seen(w Watch, o Object, now time.Time) {
	v.answered = now
	if s := v.watches[w]; s != nil {
		v.take(s, o, now)
	}
}

// Known is the pod that is known, where a watch has told of it what it tells again, and else
// p: lists name again what is known, and all of it twice takes twice the room.
func (v *View) Known(w Watch, p *Pod) *Pod {
	s, old := v.watches[w], v.pods.get(p.name())
	if s == nil || old == nil || old.telling().by != s || old.UID != p.UID || old.Version != p.Version ||
		old.Rank != p.Rank || old.Peer != p.Peer ||
		old.Addresses != p.Addresses || !slices.Equal(old.Ports, p.Ports) || !old.Labels.Equal(p.Labels) {
		return p
	}
	if (old.Own == nil) != (p.Own == nil) || p.Own != nil && old.Own.Identity != p.Own.Identity {
		return p
	}
	return old
}

// Fetched takes over a pod that was asked for, which a watch is to see.
func (v *View) Fetched(w Watch, p *Pod) {
	if s := v.watches[w]; s != nil {
		v.fetched.history = v.history
		v.takePod(s, p, v.fetched)
	}
}

// Gone takes over that a watch sees an object no more.
func (v *View) Gone(w Watch, o Object) {
	if s := v.watches[w]; s != nil {
		v.drop(s, o.name(), o.uid())
	}
}

func (v *View) take(s *watchState, o Object, now time.Time) {
	switch o := o.(type) {
	case *Pod:
		s.highest = max(s.highest, o.Version)
		v.takePod(s, o, s)
	case *Namespace:
		if !maps.Equal(v.namespaces[o.Name], o.Labels) {
			v.namespaces[o.Name] = o.Labels
			v.index.Label(o.Name, o.Labels)
			v.edition++
			v.dirty = true
		}
	case *Policy:
		v.takePolicy(o, now)
	}
}

// takePod takes over a pod that a watch sees, as by has told.
func (v *View) takePod(s *watchState, p *Pod, by *watchState) {
	old := v.pods.get(p.name())
	p, told := newer(old, p, telling{by: by, history: by.history})
	if p == nil {
		return
	}
	if p.told = s.tells(told); p != old {
		v.replace(old, p)
	}
}

// newer decides which of two pods of a name is there, the one that is known or the one that is told
// of, and who tells of it. It is nil where a watch shows a former pod after another has shown its
// successor, which the first may never show.
func newer(old, p *Pod, told telling) (*Pod, telling) {
	if old == nil {
		return p, told
	}
	was := old.telling()
	if old.UID == p.UID {
		told.seen = was.seen
		p.served, p.late = old.served, old.late && p.Until == old.Until
		if old.Own != nil && p.Own != nil {
			p.Own.place = old.Own.place
		}
	}
	if told.follows(was, p.Version >= old.Version) {
		return p, told
	}
	if old.UID != p.UID { // another watch was quicker
		return nil, told
	}
	return old, was
}

// replace puts a pod in the place of the one of its name; nil for none.
func (v *View) replace(old, p *Pod) {
	n := p.name()
	if old != nil { // maps go on to have the name by which it came first
		p.Name = old.Name
	}
	v.pods.put(p)
	v.indexPod(old, p)
	if delete(v.leaving, n); p.Until != 0 {
		v.leaving[n] = p
	}
	if delete(v.own, n); p.Own == nil {
		return
	}
	v.own[n] = p
	for ask, e := range v.expected {
		if ask.name() == n && p.Is(ask.UID) {
			e.pod = p
		}
	}
	if old == nil || old.Own == nil || old.Own.Identity != p.Own.Identity || !maps.Equal(old.Own.Labels, p.Own.Labels) ||
		!slices.Equal(old.Ports, p.Ports) {
		v.dirty = true
	}
}

// follows reports whether what is told is not older than what is known. What one watch tells
// is in order, whatever the versions are; between two watches the versions tell, unless they
// have gone back for one of them.
func (t telling) follows(known telling, newer bool) bool {
	switch {
	case known.by == t.by || known.by == nil:
		return true
	case known.history != t.history:
		return t.history > known.history
	}
	return newer
}

// indexPod puts a pod where others may be allowed to speak to it, or takes it out. One that
// had an attachment here has its addresses by that, and when that is gone has none.
func (v *View) indexPod(old, p *Pod) {
	var was *desired.IndexedPod
	if old.enrolled() {
		was = &old.IndexedPod
	}
	switch {
	case p.enrolled():
		v.index.Put(was, &p.IndexedPod)
	case was != nil:
		v.index.Remove(was)
	}
}

// enrolled reports whether others may be allowed to speak to the pod by its addresses.
func (p *Pod) enrolled() bool { return p != nil && p.Peer && !p.served && !p.late }

// overdue is how long after its time a pod that is being deleted counts as a peer: its
// node tells the API that it is gone, and clocks differ.
const overdue = 10 * time.Second

// retire takes out the pods whose node should have ended them, and has not said so. One on a
// node that is dead is in the API for as long as that node is, and its addresses may be
// others' by then, who need not be watched.
func (v *View) retire(now time.Time) {
	for n, p := range v.leaving {
		if now.Before(time.Unix(int64(p.Until), 0).Add(overdue)) {
			continue
		}
		if p.enrolled() {
			v.index.Remove(&p.IndexedPod)
		}
		p.late = true
		delete(v.leaving, n)
	}
}

// peers yields the pods that are enrolled, of a namespace or of all of them.
func (v *View) peers(namespace string) iter.Seq[*desired.IndexedPod] {
	return func(yield func(*desired.IndexedPod) bool) {
		for p := range v.pods.of(namespace) {
			if p.enrolled() && !yield(&p.IndexedPod) {
				return
			}
		}
	}
}

func (v *View) takePolicy(p *Policy, now time.Time) {
	old := v.policy(p.name())
	if old != nil && old.uid != (UID{}) && p.UID != old.uid { // deleted and made again
		old.leave()
		old = nil
	}
	if old != nil && old.uid == p.UID && reflect.DeepEqual(old.told, p.Policy) {
		return
	}
	if p.Unclear != nil {
		v.note(true, "a part of a policy is not understood, and allows nothing", "error", p.Unclear)
	}
	fresh := &known{
		Policy: p.Policy, told: p.Policy, uid: p.UID, apiUID: p.APIUID, size: sizeOf(p.Policy),
		needs: needsOf(p.Policy), since: now,
	}
	switch {
	case old == nil:
		v.policies[p.Namespace] = append(v.policies[p.Namespace], fresh)
	case old.uid == p.UID:
		fresh.place = old.place
		fresh.Policy = p.Policy.Of(old.place.uid)
		*old = *fresh
	default: // what was left is of the same namespace, as far as is known
		left := *old
		left.gone = true
		fresh.place, fresh.was = place{uid: old.place.uid}, &left
		fresh.Policy = p.Policy.Of(old.place.uid)
		if reflect.DeepEqual(old.told, p.Policy) {
			fresh.since = old.since
		}
		*old = *fresh
	}
	v.dirty = true
}

// policy is the one of the name that the API has, as far as is known.
func (v *View) policy(n Name) *known {
	for _, p := range v.policies[n.Namespace] {
		if !p.gone && p.Name == n.Name {
			return p
		}
	}
	return nil
}

// leave notes that the API has the policy no more. Why, is asked.
func (p *known) leave() {
	p.gone = true
	p.place.sure, p.place.asked = false, false
}

// drop takes over that a watch sees something no more: whatever has the name where uid is
// zero.
func (v *View) drop(s *watchState, n Name, uid UID) {
	switch s.Kind {
	case Pods:
		p := v.pods.get(n)
		if p == nil || uid != (UID{}) && uid != p.UID {
			return
		}
		t := p.telling()
		if t.by == s {
			t.by = nil // who sees it still says what it is
		}
		t.seen = slices.DeleteFunc(slices.Clone(t.seen), func(other *watchState) bool { return other == s })
		if p.told = &t; len(t.seen) == 0 {
			v.pods.remove(n)
			delete(v.own, n)
			delete(v.leaving, n)
			if p.enrolled() {
				v.index.Remove(&p.IndexedPod)
			}
		}
	case Namespaces:
		delete(v.namespaces, n.Name)
		v.index.Label(n.Name, nil)
		v.edition++
		v.dirty = true
	case Policies:
		if p := v.policy(n); p != nil && (uid == (UID{}) || p.uid == (UID{}) || uid == p.uid) {
			p.leave()
		}
	}
}

// seenBy lists what a watch sees.
func (v *View) seenBy(s *watchState) map[Name]bool {
	out := map[Name]bool{}
	switch s.Kind {
	case Pods:
		for p := range v.pods.of("") {
			if slices.Contains(p.telling().seen, s) {
				out[p.name()] = true
			}
		}
	case Namespaces:
		for n := range v.namespaces {
			out[Name{Name: n}] = true
		}
	case Policies:
		for _, p := range v.policies[s.Namespace] {
			if !p.gone {
				out[Name{s.Namespace, p.Name}] = true
			}
		}
	}
	return out
}

// forget drops what only a watch that has ended saw.
func (v *View) forget(s *watchState) {
	delete(v.watches, s.Watch)
	if s.Kind == Policies {
		delete(v.policies, s.Namespace)
		return
	}
	for n := range v.seenBy(s) {
		v.drop(s, n, UID{})
	}
}

// Complete adds to the sets of a state the pods elsewhere that are in the kernel's; known
// is false before the first round, which finds out.
func (v *View) Complete(s desired.State) (complete desired.State, known bool) {
	if !v.begun {
		return s, false
	}
	return v.index.Complete(s), true
}

// Stir has the next round decide again.
func (v *View) Stir() { v.dirty = true }

// Lost says that nobody knows what is in the kernel.
func (v *View) Lost() { v.dirty, v.lost = true, true }

// Begun reports whether there was a decision.
func (v *View) Begun() bool { return v.begun }

// Changed reports whether the next decision is another than the last one.
func (v *View) Changed() bool { return v.dirty || v.index.Changed() }

// Hurried reports whether the next decision should not wait long: a pod is about to have
// an attachment, or something will change by itself.
func (v *View) Hurried() bool { return len(v.expected) > 0 || v.dirty }

// Decide is what is to be enforced from now on, given the attachments.
func (v *View) Decide(records []attachment.Record, now time.Time) node.PolicyUpdate {
	var rev node.PolicyUpdate
	rev.Records = v.Attach(records)
	if v.dirty {
		if next, waits := v.next(now); !v.begun || v.lost || !reflect.DeepEqual(next, v.applied) {
			rev.Policies = &next
			v.index.Follow(next)
			v.applied, v.dirty = next, waits
		} else {
			v.dirty = waits
		}
	}
	if rev.Unknown = v.lost || !v.begun; !rev.Unknown { // all sets are filled then
		rev.Removed, rev.Added = v.index.Changes()
	}
	v.index.Settle()
	v.begun, v.lost = true, false
	return rev
}

// Size is how much is known.
type Size struct {
	// Policies are in force.
	Policies int
	// Watches are under way, Wanted those that policies need, and Behind those of them of
	// which not all has been seen yet.
	Watches, Wanted, Unsynced int
	// Pods are those that are known, the node's own among them.
	Pods int
}

// Size tells how much is known now.
func (v *View) Size() Size {
	s := Size{Policies: len(v.applied.Policies), Watches: len(v.watches), Wanted: len(v.wanted), Pods: v.pods.count()}
	for w := range v.wanted {
		if watch := v.watches[w]; watch == nil || !watch.synced {
			s.Unsynced++
		}
	}
	return s
}
