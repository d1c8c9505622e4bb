package view

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/podmark/podmark/pkg/desired"
)

// Class is how the API has failed to show what is watched.
type Class uint8

// The classes.
const (
	// NoAnswer: nobody has answered.
	NoAnswer Class = iota
	// Failing: an answer that says nothing of what was asked for, as 500 and 503.
	Failing
	// Forbidden: podmarkd has no right to it.
	Forbidden
	// TooMuch: the request is one that the server does not take, as where a selector is too
	// long for it.
	TooMuch
)

// ClassOf is that of an answer of this status of HTTP, 0 for none.
func ClassOf(status int) Class {
	switch status {
	case 0:
		return NoAnswer
	case 401, 403:
		return Forbidden
	case 400, 413, 414, 422, 431: // what is asked for is wrong, or too long
		return TooMuch
	}
	return Failing
}

const (
	// slow is how long a list may take that the API answers, while it answers others.
	slow = 30 * time.Second
	// refuseAgain is how long after the API has refused a watch it is asked for it again.
	refuseAgain = 10 * time.Minute
)

// Failed takes over why the API does not show what is watched; nil where it does again. It
// reports whether that is news.
func (v *View) Failed(w Watch, err error, class Class, now time.Time) (news bool) {
	if err == nil || class != NoAnswer {
		v.answered = now
	}
	s := v.watches[w]
	switch {
	case s == nil:
		return false
	case err == nil:
		s.err = nil
		return false
	case s.err == nil:
		s.failing = now
	}
	if class == TooMuch && w.wider() != w {
		v.tooMuch[w] = now.Add(refuseAgain)
	}
	news = s.err == nil || s.err.Error() != err.Error()
	s.err, s.class = err, class
	return news
}

// failingWatches reports whether nobody is to wait for a watch any more: the API has refused it for
// long enough, or answers others and not this one. While the API is away no watch is stuck.
func (v *View) failingWatches(s *watchState, now time.Time) bool {
	switch {
	case s == nil || s.synced:
		return false
	case s.err == nil:
		return v.answered.Sub(s.begun) > slow
	case s.class == NoAnswer:
		return v.answered.Sub(s.failing) > hold
	}
	return now.Sub(s.failing) >= hold
}

// Reason is why a policy is not in force as the API has it.
type Reason string

// The reasons.
const (
	ReasonNoAnswer  Reason = "NoAnswer"
	ReasonFailing   Reason = "Failing"
	ReasonForbidden Reason = "Forbidden"
	ReasonRefused   Reason = "Refused"
	ReasonTooLarge  Reason = "TooLarge"
)

// Reasons lists all of them.
var Reasons = []Reason{ReasonNoAnswer, ReasonFailing, ReasonForbidden, ReasonRefused, ReasonTooLarge}

func (c Class) reason() Reason {
	return [...]Reason{
		NoAnswer: ReasonNoAnswer, Failing: ReasonFailing, Forbidden: ReasonForbidden,
		TooMuch: ReasonRefused,
	}[c]
}

// Trouble is a policy that is not in force as the API has it. What is not known of it allows
// nobody, and what was known goes on to hold.
type Trouble struct {
	Namespace string `json:"namespace"`
	// Policy is empty where the policies of the namespace are not known. UID is its, in the
	// API; empty where that is not known.
	Policy string `json:"policy,omitempty"`
	UID    string `json:"uid,omitempty"`
	Reason Reason `json:"reason"`
	// Since is when it began, and Text what is wrong.
	Since time.Time `json:"since"`
	Text  string    `json:"text"`
}

// Troubles lists them by namespace and name. A change that is a moment old is none.
func (v *View) Troubles(now time.Time) (list []Trouble) {
	world := v.world()
	for namespace, pods := range v.localPodLabels() {
		of := Watch{Kind: Policies, Namespace: namespace}
		if s := v.watches[of]; v.failingWatches(s, now) || s != nil && s.synced && v.failing(of, now) {
			t := v.troubleOf(of)
			t.Namespace = namespace
			list = append(list, t)
		}
		large := v.large(namespace, pods)
		for _, p := range v.policies[namespace] {
			t := Trouble{Reason: ReasonTooLarge, Since: p.since}
			needs := p.needs.in(world)
			sick := slices.IndexFunc(needs, func(w Watch) bool { return v.failing(w, now) })
			switch {
			case !selecting(p.Policy, pods):
				continue
			case large[p]:
				t.Text = p.tooLarge().Error()
			case sick < 0 || now.Sub(p.since) <= hold:
				continue
			default:
				t = v.troubleOf(needs[sick])
			}
			t.Namespace, t.Policy, t.UID = namespace, p.Name, p.apiUID
			list = append(list, t)
		}
	}
	slices.SortFunc(list, func(a, b Trouble) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Policy, b.Policy), cmp.Compare(a.UID, b.UID))
	})
	return list
}

// Foremost are those of a list by namespace of which all can be told: some of each namespace,
// so that none of them leaves no room for others.
func Foremost(list []Trouble) (some []Trouble) {
	const each, all = 4, 64
	of := map[string]int{}
	for _, t := range list {
		if of[t.Namespace]++; of[t.Namespace] <= each && len(some) < all {
			some = append(some, t)
		}
	}
	return some
}

// failing reports whether what a watch would see is not known, or the API has refused for a
// while to say what has changed since.
func (v *View) failing(w Watch, now time.Time) bool {
	return !slices.ContainsFunc(w.coveredBy(), func(by Watch) bool {
		s := v.watches[by]
		return s != nil && s.synced && !(s.refused() && now.Sub(s.failing) > slow)
	})
}

// refused reports whether the API answers, and does not show what is watched.
func (s *watchState) refused() bool { return s.err != nil && s.class != NoAnswer }

// troubleOf is what is wrong with a watch.
func (v *View) troubleOf(w Watch) Trouble {
	t := Trouble{Reason: ReasonNoAnswer, Text: v.whyNotSynced(w).Error()}
	if s := v.culprit(w); s != nil {
		t.Reason, t.Since = s.class.reason(), s.failing
	} else if s := v.watches[w]; s != nil {
		t.Since = s.begun
	}
	return t
}

// The policies of a namespace that select pods of the node may have so much together: it is
// written in one change, for which the ADDs of all others wait, 10 s at the most. See
// "Bounds" in docs/policy.md for what that takes.
const (
	// mostPeers counts the peers of all rules: a selector is two sets and two rules at least,
	// and as much as blocksEach ipBlocks, which are a set together.
	mostPeers  = 1_000
	blocksEach = 100
	// mostPairs counts the pairs of a peer and a port: iptables has a rule for 15 ports.
	mostPairs = 20_000
)

// size is how large a policy is.
type size struct{ peers, pairs int }

func (s size) plus(o size) size { return size{s.peers + o.peers, s.pairs + o.pairs} }

func (s size) tooLarge() bool { return s.peers > mostPeers || s.pairs > mostPairs }

func (s size) compare(o size) int {
	return cmp.Or(cmp.Compare(max(s.peers*mostPairs, s.pairs*mostPeers), max(o.peers*mostPairs, o.pairs*mostPeers)),
		cmp.Compare(s.peers, o.peers))
}

func sizeOf(p desired.Policy) (s size) {
	for _, isolation := range []*desired.Isolation{p.Ingress, p.Egress} {
		if isolation == nil {
			continue
		}
		for _, r := range isolation.Rules {
			peers := max(1, len(r.Peers)+(len(r.Blocks)+blocksEach-1)/blocksEach)
			s = s.plus(size{peers, peers * max(1, len(r.Ports)+len(r.NamedPorts))})
		}
	}
	return s
}

// large are the policies of a namespace that are too large for what the smaller ones leave.
func (v *View) large(namespace string, pods []member) map[*known]bool {
	var total size
	for _, p := range v.policies[namespace] {
		total = total.plus(p.size)
	}
	if !total.tooLarge() {
		return nil
	}
	list := slices.Clone(v.policies[namespace])
	slices.SortFunc(list, func(a, b *known) int {
		return cmp.Or(a.size.compare(b.size), cmp.Compare(a.Name, b.Name), cmp.Compare(a.NamespaceUID, b.NamespaceUID))
	})
	large, total := map[*known]bool{}, size{}
	for _, p := range list {
		if !selecting(p.Policy, pods) {
			continue
		}
		if next := total.plus(p.size); next.tooLarge() {
			large[p] = true
		} else {
			total = next
		}
	}
	return large
}

// tooLarge is what is to be said of a policy that is.
func (p *known) tooLarge() error {
	return fmt.Errorf("%w: it has %d peers, and %d pairs of a peer and a port; all policies of a namespace that select pods of a node may have %d and %d. It allows nothing: use fewer selectors, or ranges of ports", errLarge, p.size.peers, p.size.pairs, mostPeers, mostPairs)
}

var errLarge = errors.New("the policy is too large")

// closed is p with nothing allowed.
func closed(p desired.Policy) desired.Policy {
	if p.Ingress != nil {
		p.Ingress = &desired.Isolation{}
	}
	if p.Egress != nil {
		p.Egress = &desired.Isolation{}
	}
	return p
}
