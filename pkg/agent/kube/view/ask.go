package view

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/desired"
)

// Ask is what the plugin asks: who the pod is that an attachment is to be of.
type Ask struct {
	// Attachment is zero from a plugin that is older than podmarkd.
	Attachment     attachment.Key
	Namespace, Pod string
	// UID is what the runtime says it is; empty where it does not.
	UID string
}

func (a Ask) name() Name { return Name{a.Namespace, a.Pod} }

// comes is how long after it was asked for an attachment may take to be there.
const comes = time.Minute

// expectation is an attachment that the plugin has asked for, and that is not there yet.
type expectation struct {
	since, until time.Time
	// pod is what the API says; nil for nothing.
	pod *Pod
	// former are the attachments that a pod of the name had when it was asked for, where
	// nothing else tells them from the one that comes.
	former map[attachment.Key]bool
}

// Expect says that the plugin is about to add an attachment.
func (v *View) Expect(a Ask, now time.Time) {
	e := v.expected[a]
	if e == nil {
		e = &expectation{since: now}
		v.expected[a] = e
	}
	e.until = now.Add(comes)
	if p := v.pods.get(a.name()); p.Is(a.UID) {
		e.pod = p
	}
	v.dirty = true
}

// arrive ends the expectations of attachments that are there.
func (v *View) arrive(residents map[attachment.Key]resident, records []attachment.Record) {
	for a, e := range v.expected {
		first := e.former == nil
		if first {
			e.former = map[attachment.Key]bool{}
		}
		for _, r := range records {
			if there, ok := residents[r.Key]; !ok || there.Name != a.name() {
				continue
			}
			switch {
			case a.Attachment != (attachment.Key{}):
				if r.Key == a.Attachment {
					delete(v.expected, a)
				}
			case a.UID != "":
				if r.UID == a.UID {
					delete(v.expected, a)
				}
			case first:
				e.former[r.Key] = true
			case !e.former[r.Key]:
				delete(v.expected, a)
			}
		}
	}
}

// Answer is who the pod is, and why it cannot be told yet what its policies mean; nil for
// a pod that is not known.
func (v *View) Answer(a Ask, now time.Time) (p *Pod, waits error) {
	if p = v.pods.get(a.name()); !p.Is(a.UID) {
		return nil, errUnknown
	}
	for _, w := range []Watch{{Kind: Pods, Node: v.node}, {Kind: Policies, Namespace: a.Namespace}} {
		if s := v.watches[w]; v.failingWatches(s, now) && s.refused() {
			return p, fmt.Errorf("%w: %w", ErrRefused, s.err)
		}
		if !v.synced(w) {
			return p, v.whyNotSynced(w)
		}
	}
	if e := v.expected[a]; e != nil && !p.Own.place.sure && now.Sub(e.since) <= hold {
		return p, fmt.Errorf("the UID of namespace %s is not known yet", a.Namespace)
	}
	world := v.world()
	large := v.large(a.Namespace, v.decided[a.Namespace])
	for _, k := range v.policies[a.Namespace] {
		if large[k] || !p.member().selects(k.Policy) {
			continue
		}
		if err := v.waits(k, world, now); err != nil {
			return p, err
		}
	}
	return p, nil
}

// ErrRefused: the API refuses to say what there is for the pod, which takes longer than an
// ADD can wait.
var ErrRefused = errors.New("the API does not show which policies the pod has")

// errUnknown: whoever asks says so better.
var errUnknown = errors.New("the pod is not known yet")

// Decided reports whether what was last decided is so with regard to a pod as it is now.
func (v *View) Decided(p *Pod) bool {
	return slices.ContainsFunc(v.decided[p.Namespace], p.member().equal)
}

// Profiles are those that the pod gets by what was last decided.
func (v *View) Profiles(p *Pod) [2]desired.ProfileID {
	r := attachment.Record{
		Policed: true, NamespaceUID: p.Own.place.uid,
		Endpoint: attachment.Endpoint{Namespace: p.Namespace, Pod: p.Name, Labels: p.Own.Labels},
	}
	return desired.Build(desired.Node{}, v.applied, []attachment.Record{r}).Endpoints[0].Profiles
}

// NamespaceUID is that of the pod's namespace; empty where it is not known.
func (p *Pod) NamespaceUID() string { return p.Own.place.uid }
