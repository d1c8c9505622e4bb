package view

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/podmark/podmark/pkg/desired"
)

// hold is how long a policy may wait for what it names to be known, once the API is asked: until
// then its former self is enforced, so that peers that go on being allowed are not cut off.
const hold = 2 * time.Second

// member is what policies select a pod by, inside the namespaces of a name.
type member struct {
	labels       map[string]string
	namespaceUID string
}

func (m member) equal(other member) bool {
	return m.namespaceUID == other.namespaceUID && maps.Equal(m.labels, other.labels)
}

// selects reports whether a policy is the member's.
func (m member) selects(p desired.Policy) bool {
	return desired.SameNamespace(m.namespaceUID, p.NamespaceUID) && p.Pods.Matches(m.labels)
}

func selecting(p desired.Policy, pods []member) bool {
	return slices.ContainsFunc(pods, func(m member) bool { return m.selects(p) })
}

// localPodLabels lists the node's pods by namespace, with those that are expected.
func (v *View) localPodLabels() map[string][]member {
	out := map[string][]member{}
	for _, r := range v.residents {
		out[r.Namespace] = append(out[r.Namespace], r.member)
	}
	for ask, e := range v.expected {
		if e.pod != nil {
			out[ask.Namespace] = append(out[ask.Namespace], e.pod.member())
		} else if out[ask.Namespace] == nil {
			out[ask.Namespace] = []member{}
		}
	}
	return out
}

func (p *Pod) member() member { return member{p.Own.Labels, p.Own.place.uid} }

// next is what the node's policies are to be. waits is set where that will change by
// itself.
func (v *View) next(now time.Time) (next desired.Policies, waits bool) {
	v.decided, next.Listed = v.localPodLabels(), true
	next.Policies, waits = v.effective(now)
	for n := range v.decided {
		if labels := v.namespaces[n]; len(labels) > 0 {
			if next.Namespaces == nil {
				next.Namespaces = map[string]map[string]string{}
			}
			next.Namespaces[n] = labels
		}
		if uid := v.spaces[n].UID; uid != "" {
			if next.NamespaceUIDs == nil {
				next.NamespaceUIDs = map[string]string{}
			}
			next.NamespaceUIDs[n] = uid
		}
	}
	return next, waits
}

// effective lists the policies that some pod of the node is selected by. waits is set
// where one of them is not enforced yet as it is.
func (v *View) effective(now time.Time) (list []desired.Policy, waits bool) {
	w := v.world()
	type id struct{ namespace, uid, name string }
	applied := map[id]desired.Policy{}
	for _, p := range v.applied.Policies {
		applied[id{p.Namespace, p.NamespaceUID, p.Name}] = p
	}
	for namespace, pods := range v.decided {
		large := v.large(namespace, pods)
		for _, p := range v.policies[namespace] {
			switch {
			case !selecting(p.Policy, pods): // nor does anybody look for whom it names
			case large[p]:
				list = append(list, closed(p.Policy))
			case v.waits(p, w, now) == nil:
				list = append(list, p.Policy)
			default:
				waits = true
				if former, was := applied[id{namespace, p.NamespaceUID, p.Name}]; was {
					list = append(list, former)
				}
			}
		}
	}
	slices.SortFunc(list, func(a, b desired.Policy) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name),
			cmp.Compare(a.NamespaceUID, b.NamespaceUID))
	})
	return list, waits
}

// waits is why a policy is not to be enforced yet; nil where it is.
func (v *View) waits(p *known, w world, now time.Time) error {
	switch watch := v.lacks(p, w); {
	case watch != nil && now.Sub(later(p.since, v.sought(*watch, now))) <= hold:
		return v.whyNotSynced(*watch)
	case watch == nil && now.Sub(p.since) <= hold && !p.place.sure && p.place.uid == "":
		return fmt.Errorf("the UID of namespace %s is not known yet", p.Namespace)
	}
	return nil
}

// sought is since when the API is asked for what a watch shows: now, where it is not yet.
func (v *View) sought(w Watch, now time.Time) time.Time {
	begun := now
	for _, by := range w.coveredBy() {
		if s := v.watches[by]; s != nil && s.begun.Before(begun) {
			begun = s.begun
		}
	}
	return begun
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// world is what is known of namespaces.
func (v *View) world() world {
	return world{labels: v.namespaces, edition: v.edition, known: v.synced(Watch{Kind: Namespaces})}
}

// synced reports whether all that a watch would see is known.
func (v *View) synced(w Watch) bool {
	for _, by := range w.coveredBy() {
		if s := v.watches[by]; s != nil && s.synced {
			return true
		}
	}
	return false
}

// lacks is a watch that shows what a policy means and is not there yet; nil for none.
func (v *View) lacks(p *known, w world) *Watch {
	for _, watch := range p.needs.in(w) {
		if !v.synced(watch) {
			return &watch
		}
	}
	return nil
}
