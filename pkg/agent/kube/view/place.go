package view

import (
	"cmp"
	"slices"

	"github.com/podmark/podmark/pkg/desired"
)

// place is which namespace of its name an object is of. Objects do not say: the API is
// asked once the object is there, and what it answers goes on to hold, whatever namespace
// has the name later.
type place struct {
	// uid is empty where it is not known.
	uid string
	// asked is set while the API is asked, and sure once it has answered.
	asked, sure bool
}

// Space is what the API says of a namespace: nothing but its absence, if it is zero.
type Space struct {
	UID string
	// Ending is set where it is being deleted.
	Ending bool
}

// Questions are namespaces of which the API is to be asked what they are now, each to be
// answered by [View.Told]: there are pods of the node and policies of which nobody knows yet
// whose they are, or a policy is gone. If its namespace is the reason, it holds on as long as
// the node has pods of that (CVE-2024-7598).
func (v *View) Questions() (namespaces []string) {
	ask := func(namespace string, p *place) {
		if p.sure || p.asked || v.asking[namespace] {
			return
		}
		p.asked = true
		if !slices.Contains(namespaces, namespace) {
			namespaces = append(namespaces, namespace)
		}
	}
	for namespace, policies := range v.policies {
		for _, p := range policies {
			ask(namespace, &p.place)
		}
	}
	for _, p := range v.own {
		ask(p.Namespace, &p.Own.place)
	}
	for _, n := range namespaces {
		v.asking[n] = true
	}
	return namespaces
}

// Told answers a question. With an error it is asked again.
func (v *View) Told(namespace string, is Space, err error) {
	delete(v.asking, namespace)
	v.dirty = true
	if err == nil {
		v.spaces[namespace] = is
	}
	for _, p := range v.own {
		if p.Namespace == namespace {
			p.Own.place.settle(is, err)
		}
	}
	var next []*known
	for _, p := range v.policies[namespace] {
		if guess, settled := p.place.settle(is, err); settled {
			next = append(next, v.placed(p, guess, is)...)
		} else {
			next = append(next, p)
		}
	}
	// One that is back in its namespace takes the place of what outlived it.
	next = slices.DeleteFunc(next, func(p *known) bool {
		return p.gone && slices.ContainsFunc(next,
			func(o *known) bool { return !o.gone && o.Name == p.Name && o.NamespaceUID == p.NamespaceUID })
	})
	v.policies[namespace] = next
}

// settle takes over what the API has answered, if it was asked about the place, and says what was
// taken for its namespace until now.
func (p *place) settle(is Space, err error) (before string, settled bool) {
	before, settled = p.uid, p.asked && err == nil
	p.asked = false
	if settled {
		p.sure, p.uid = true, cmp.Or(p.uid, is.UID)
	}
	return before, settled
}

// placed is what becomes of a policy once the API has said what its namespace is, of which guess
// was the UID as far as was known: a policy that is gone may outlive its deletion.
func (v *View) placed(p *known, guess string, is Space) (list []*known) {
	switch {
	case p.gone && guess == "":
		return v.outliving(p, is)
	case p.gone && !is.Ending && guess == is.UID:
		return nil // it was deleted, and not its namespace
	case p.gone:
		return []*known{v.outlives(p)}
	}
	if p.was != nil && !desired.SameNamespace(guess, is.UID) { // it was another's, before podmarkd was started
		p.place.uid = is.UID
		list = append(list, p.was)
	}
	p.was = nil
	p.Policy = p.told.Of(p.place.uid)
	return append(list, p)
}

// outlives notes that a policy goes on to hold that the API has no more.
func (v *View) outlives(p *known) *known {
	v.note(false, "a policy outlives its deletion: its namespace is going, and its pods are not gone yet", "policy", p.Namespace+"/"+p.Name)
	return p
}

// nowhere is the UID of no namespace.
const nowhere = "-"

// outliving is a policy that went before anybody knew of which namespace it was, as one of each
// former namespace of the name that has pods here: not of the one of now, unless that is going.
func (v *View) outliving(p *known, is Space) (list []*known) {
	of := map[string]bool{}
	for _, m := range v.localPodLabels()[p.Namespace] {
		switch uid := cmp.Or(m.namespaceUID, is.UID, nowhere); {
		case uid == is.UID && !is.Ending: // it was deleted there
		case !of[uid]:
			of[uid] = true
			one := *p
			one.place.uid, one.Policy = uid, p.told.Of(uid)
			list = append(list, v.outlives(&one))
		}
	}
	return list
}
