package view

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/podmark/podmark/pkg/desired"
)

// linger is how long a watch goes on that is needed no more: pods of a namespace come and
// go.
const linger = time.Minute

// mostIdle is how many watches linger at most: who changes policies all the time would
// otherwise have more than [most].
const mostIdle = 64

// Plan says which watches are to begin and to end, and takes that for done. ready is set
// where everything is known that there is to know, or nobody is to wait for it any more.
func (v *View) Plan(now time.Time) (begin, end []Watch, ready bool) {
	maps.DeleteFunc(v.expected, func(_ Ask, e *expectation) bool { return now.After(e.until) })
	v.retire(now)
	maps.DeleteFunc(v.tooMuch, func(_ Watch, until time.Time) bool { return now.After(until) })
	wanted := map[Watch]bool{{Kind: Pods, Node: v.node}: true}
	w := v.world()
	crowd := v.localPodLabels()
	for namespace, pods := range crowd {
		wanted[Watch{Kind: Policies, Namespace: namespace}] = true
		large := v.large(namespace, pods)
		needed := map[Watch]bool{}
		for _, p := range v.policies[namespace] {
			if selecting(p.Policy, pods) && !large[p] {
				for _, watch := range p.needs.in(w) {
					needed[watch] = true
				}
			}
		}
		maps.Copy(wanted, bounded(needed, mostEach))
	}
	for namespace, policies := range v.policies {
		v.policies[namespace] = slices.DeleteFunc(policies, func(p *known) bool {
			return p.gone && !slices.ContainsFunc(crowd[namespace],
				func(m member) bool { return desired.SameNamespace(m.namespaceUID, p.NamespaceUID) })
		})
	}
	v.wanted = v.accepted(bounded(wanted, most))
	ready = true
	for watch := range v.wanted {
		if v.watches[watch] == nil {
			if v.tooEarly(watch, now) {
				ready = false
				continue
			}
			v.watches[watch] = &watchState{Watch: watch, begun: now}
			begin = append(begin, watch)
		}
		s := v.watches[watch]
		s.idle = time.Time{}
		ready = ready && (s.synced || watch.Node == "" && v.failingWatches(s, now))
	}
	for _, s := range v.idle(now) {
		end = append(end, s.Watch)
		v.forget(s)
	}
	return begin, end, ready
}

// accepted has, in the place of each watch that the API has refused, the next wider one.
func (v *View) accepted(wanted map[Watch]bool) map[Watch]bool {
	for {
		next := map[Watch]bool{}
		for w := range wanted {
			for _, refused := v.tooMuch[w]; refused && w.wider() != w; _, refused = v.tooMuch[w] {
				w = w.wider()
			}
			next[w] = true
		}
		if next = merged(next); maps.Equal(next, wanted) {
			return next
		}
		wanted = next
	}
}

// idle lists the watches that are to end: those that are not needed for long, that are too
// many, or that the API has refused.
func (v *View) idle(now time.Time) (list []*watchState) {
	var lingering []*watchState
	for watch, s := range v.watches {
		if v.wanted[watch] {
			continue
		}
		if s.idle.IsZero() {
			s.idle = now
		}
		_, refused := v.tooMuch[watch]
		switch {
		case refused && !s.synced:
			list = append(list, s)
		case !v.covered(s):
		case now.Sub(s.idle) > linger:
			list = append(list, s)
		default:
			lingering = append(lingering, s)
		}
	}
	slices.SortFunc(lingering, func(a, b *watchState) int {
		return cmp.Or(b.idle.Compare(a.idle), strings.Compare(a.String(), b.String()))
	})
	return append(list, lingering[min(mostIdle, len(lingering)):]...)
}

// tooEarly reports whether it may turn out yet that a watch is not needed: one policy that
// means every pod makes superfluous those for others. What takes long is not waited for.
func (v *View) tooEarly(w Watch, now time.Time) bool {
	for earlier := range v.wanted {
		if s := v.watches[earlier]; w.follows(earlier) && (s == nil || !s.synced && !s.refused() && now.Sub(s.begun) < hold) {
			return true
		}
	}
	return false
}

// covered reports whether all that is wanted and that s sees is seen by another: one watch
// takes over from another only when it has caught up.
func (v *View) covered(s *watchState) bool {
	for watch := range v.wanted {
		if (s.covers(watch) || s.synced && watch.covers(s.Watch)) && (v.watches[watch] == nil || !v.watches[watch].synced) {
			return false
		}
	}
	return true
}

// Err is why what is in force may not be what the API says: of the first watch that is not
// as it should be, as of a server that is away all say the same. What the API refuses for
// some policies is in [View.Troubles].
func (v *View) Err(now time.Time) error {
	for _, w := range slices.SortedFunc(maps.Keys(v.wanted),
		func(a, b Watch) int { return strings.Compare(a.String(), b.String()) }) {
		s := v.watches[w]
		if s == nil || s.err != nil && (s.class == NoAnswer || w.Node != "") || !s.synced && !v.failingWatches(s, now) {
			return v.whyNotSynced(w)
		}
	}
	return nil
}

// whyNotSynced is why a watch is not there yet.
func (v *View) whyNotSynced(w Watch) error {
	if s := v.culprit(w); s != nil {
		return s.err
	}
	return fmt.Errorf("%s are not known yet", w)
}

// culprit is the narrowest watch that would show what w does and fails; nil for none.
func (v *View) culprit(w Watch) *watchState {
	for _, by := range w.coveredBy() {
		if s := v.watches[by]; s != nil && s.err != nil {
			return s
		}
	}
	return nil
}
