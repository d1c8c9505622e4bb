package view

import (
	"cmp"
	"slices"
	"time"

	"github.com/podmark/podmark/pkg/desired"
)

// hold is how long a policy may wait for what it names to be known: until then its former
// self is enforced, so that peers that go on being allowed are not cut off.
const hold = 2 * time.Second

// crowd lists the labels of the node's pods by namespace, with those that are expected.
func (v *View) crowd() map[string][]map[string]string {
	out := map[string][]map[string]string{}
	for _, r := range v.residents {
		out[r.Namespace] = append(out[r.Namespace], r.labels)
	}
	for ask, e := range v.expected {
		if e.pod != nil {
			out[ask.Namespace] = append(out[ask.Namespace], e.pod.Labels)
		} else if out[ask.Namespace] == nil {
			out[ask.Namespace] = []map[string]string{}
		}
	}
	return out
}

// next is what the node's policies are to be. waits is set where that will change by
// itself.
func (v *View) next(now time.Time) (next desired.Policies, waits bool) {
	v.decided = v.crowd()
	next.Policies, waits = v.effective(now)
	for n := range v.decided {
		if labels := v.namespaces[n]; len(labels) > 0 {
			if next.Namespaces == nil {
				next.Namespaces = map[string]map[string]string{}
			}
			next.Namespaces[n] = labels
		}
	}
	return next, waits
}

// effective lists the policies that some pod of the node is selected by. waits is set
// where one of them is not enforced yet as it is.
func (v *View) effective(now time.Time) (list []desired.Policy, waits bool) {
	w := v.world()
	applied := map[Name]desired.Policy{}
	for _, p := range v.applied.Policies {
		applied[Name{p.Namespace, p.Name}] = p
	}
	for namespace, pods := range v.crowd() {
		for n, p := range v.policies[namespace] {
			selects := func(p desired.Policy) bool {
				return slices.ContainsFunc(pods, func(labels map[string]string) bool { return p.Pods.Matches(labels) })
			}
			former, was := applied[Name{namespace, n}]
			switch {
			case !selects(p.Policy) && !(was && selects(former)):
			case now.Sub(p.since) > hold || v.lacks(p, w) == nil:
				if selects(p.Policy) {
					list = append(list, p.Policy)
				}
			default:
				waits = true
				if was {
					list = append(list, former)
				}
			}
		}
	}
	slices.SortFunc(list, func(a, b desired.Policy) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return list, waits
}

// world is what is known of namespaces.
func (v *View) world() world {
	return world{labels: v.namespaces, known: v.synced(Watch{Kind: Namespaces})}
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
