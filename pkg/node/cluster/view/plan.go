package view

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// linger is how long a watch goes on that is needed no more: pods of a namespace come and
// go.
const linger = time.Minute

// Plan says which watches are to begin and to end, and takes that for done. all is set
// where everything is known that there is to know.
func (v *View) Plan(now time.Time) (begin, end []Watch, all bool) {
	maps.DeleteFunc(v.expected, func(_ Ask, e *expectation) bool { return now.After(e.until) })
	wanted := map[Watch]bool{{Kind: Pods, Node: v.node}: true}
	w := v.world()
	for namespace, pods := range v.crowd() {
		wanted[Watch{Kind: Policies, Namespace: namespace}] = true
		for _, p := range v.policies[namespace] {
			for _, labels := range pods {
				if p.Pods.Matches(labels) {
					for _, watch := range p.needs.in(w) {
						wanted[watch] = true
					}
					break
				}
			}
		}
	}
	for namespace, policies := range v.policies {
		if !wanted[Watch{Kind: Policies, Namespace: namespace}] {
			maps.DeleteFunc(policies, func(_ string, p *known) bool { return p.gone })
		}
	}
	v.wanted = merged(wanted)
	all = true
	for watch := range v.wanted {
		if v.watches[watch] == nil {
			if v.premature(watch, now) {
				all = false
				continue
			}
			v.watches[watch] = &sight{Watch: watch, begun: now}
			begin = append(begin, watch)
		}
		v.watches[watch].idle = time.Time{}
		all = all && v.watches[watch].synced
	}
	for watch, s := range v.watches {
		switch {
		case v.wanted[watch]:
		case s.idle.IsZero():
			s.idle = now
		case now.Sub(s.idle) > linger && v.covered(s):
			end = append(end, watch)
			v.forget(s)
		}
	}
	return begin, end, all
}

// premature reports whether it may turn out yet that a watch is not needed: one policy that
// means every pod makes superfluous those for others. What takes long is not waited for.
func (v *View) premature(w Watch, now time.Time) bool {
	for earlier := range v.wanted {
		if s := v.watches[earlier]; w.follows(earlier) && (s == nil || !s.synced && now.Sub(s.begun) < hold) {
			return true
		}
	}
	return false
}

// covered reports whether all that is wanted and that s sees is seen by another: one watch
// takes over from another only when it has caught up.
func (v *View) covered(s *sight) bool {
	for watch := range v.wanted {
		if s.covers(watch) && (v.watches[watch] == nil || !v.watches[watch].synced) {
			return false
		}
	}
	return true
}

// Err is why what is in force may not be what the API says: of the first watch that is not
// as it should be, as of a server that is away all say the same.
func (v *View) Err() error {
	for _, w := range slices.SortedFunc(maps.Keys(v.wanted), func(a, b Watch) int { return strings.Compare(a.String(), b.String()) }) {
		if s := v.watches[w]; s == nil || s.err != nil || !s.synced {
			return v.blame(w)
		}
	}
	return nil
}

// blame is why a watch is not there yet.
func (v *View) blame(w Watch) error {
	for _, s := range v.watches {
		if s.covers(w) && s.err != nil {
			return s.err
		}
	}
	return fmt.Errorf("%s are not known yet", w)
}

// Questions are namespaces of which it is to be asked whether they are going: a policy is
// gone, and if its namespace is the reason it holds on as long as the node has pods of
// that (CVE-2024-7598). Each is to be answered by [View.Told].
func (v *View) Questions() (namespaces []string) {
	for namespace, policies := range v.policies {
		for _, p := range policies {
			if p.gone && !p.asked {
				p.asked = true
				if !slices.Contains(namespaces, namespace) {
					namespaces = append(namespaces, namespace)
				}
			}
		}
	}
	return namespaces
}

// Told answers a question: whether the namespace is going, or is gone. With an error it is
// asked again.
func (v *View) Told(namespace string, ending bool, err error) {
	for n, p := range v.policies[namespace] {
		switch {
		case !p.gone || !p.asked:
		case err != nil:
			p.asked = false
		case ending:
			v.note(false, "a policy outlives its deletion: its namespace is going, and its pods are not gone yet", "policy", namespace+"/"+n)
		default:
			delete(v.policies[namespace], n)
		}
	}
	v.dirty = true
}
