package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/dataplane"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/pkg/state"
)

// ErrSource: the node's policy comes from elsewhere.
var ErrSource = errors.New("the node's policies come from the Kubernetes API")

// Applied says what a policy change did.
type Applied struct {
	Policies int    `json:"policies"`
	Epoch    uint32 `json:"epoch"`
	// Restricted is whether live connections are judged again.
	Restricted bool `json:"restricted"`
	// Changed is whether there was anything to do.
	Changed bool `json:"-"`
	// Whole is set where everything was written anew, because something was missing.
	Whole bool `json:"whole,omitempty"`
	Reclaimed
}

// PolicyUpdate is a change of what the node should enforce.
type PolicyUpdate struct {
	// Policies take the place of the node's; nil leaves those.
	Policies *desired.Policies
	// Records are attachments of which something else is known than was.
	Records []attachment.Record
	// Removed and Come are what pods elsewhere take out of the sets and bring to them. From
	// now on [Node.RemoteMembers] says so too.
	Removed, Added desired.Members
	// Unknown has everything written anew, and flows judged again: what is in the kernel,
	// and was allowed there, is not known.
	Unknown bool
}

func (r PolicyUpdate) empty() bool {
	return !r.Unknown && r.Policies == nil && len(r.Records)+len(r.Removed.Peers)+len(r.Removed.Tuples)+len(r.Added.Peers)+len(r.Added.Tuples) == 0
}

// SetPolicies makes policies the node's, enforced on every endpoint when it
// returns. If they take anything away, the next epoch begins in the same change,
// so that what they forbid stops at its next packet. The settings count only on
// a node that has none yet.
func (n Node) SetPolicies(ctx context.Context, settings Settings, policies desired.Policies) (Applied, error) {
	return n.updatePolicies(ctx, settings, func(f *nodeFile, _ []attachment.Record) (PolicyUpdate, error) {
		if f.Kubernetes {
			return PolicyUpdate{}, fmt.Errorf("%w: apply them there; podmarkd follows it because a network says \"policy\": \"kubernetes\"", ErrSource)
		}
		was, errWas := encode(f.Policies)
		is, errIs := encode(policies)
		if f.policiesLost == nil && f.applied() && bytes.Equal(was, is) {
			return PolicyUpdate{}, errors.Join(errWas, errIs)
		}
		return PolicyUpdate{Policies: &policies}, errors.Join(errWas, errIs)
	})
}

// UpdatePolicies is SetPolicies for what podmarkd learns from the Kubernetes API, from the first
// call on the node's only source. decide is called with the attachments, and holds the
// node's lock. Only what differs is written. Zero settings are none: the error is then
// fs.ErrNotExist on a node on which podmark has never run. Where something of ours is missing in the
// kernel, everything is written anew.
func (n Node) UpdatePolicies(ctx context.Context, settings Settings, decide func([]attachment.Record) PolicyUpdate) (Applied, error) {
	return n.updatePolicies(ctx, settings, func(f *nodeFile, records []attachment.Record) (PolicyUpdate, error) {
		r := decide(records)
		if !f.Kubernetes && r.Policies == nil {
			r.Policies = &desired.Policies{}
		}
		f.Kubernetes = true
		return r, nil
	})
}

// EnforceRequested has the node's policies hold for the attachments to these networks, which take them from
// files and did not when their pods were added, and returns those attachments. Their connections
// are judged from their next packet on. One on a bridge that is not filtered stays as it is, with
// the error of an Add.
func (n Node) EnforceRequested(ctx context.Context, networks map[string]bool) (enlisted []attachment.Record, err error) {
	asks := func(r attachment.Record) bool {
		return r.Committed && !r.Policed && !r.Kubernetes && networks[r.Network]
	}
	// Damaged records are reported by whoever keeps the rules.
	if records, _ := n.Store.List(); !slices.ContainsFunc(records, asks) {
		return nil, nil
	}
	var refused []error
	_, err = n.updatePolicies(ctx, Settings{}, func(f *nodeFile, records []attachment.Record) (PolicyUpdate, error) {
		for _, r := range records {
			if !asks(r) {
				continue
			}
			if r.Policed = true; f.Kubernetes {
				return PolicyUpdate{}, fmt.Errorf("network %q says \"policy\": \"files\": %w", r.Network, ErrSource)
			}
			if err := n.bridgeFiltered(*f, r); err != nil {
				refused = append(refused, fmt.Errorf("%s: %w", r.Key, err))
				continue
			}
			enlisted = append(enlisted, r)
		}
		return PolicyUpdate{Records: enlisted}, nil
	})
	if err != nil {
		return nil, err
	}
	return enlisted, errors.Join(refused...)
}

func (n Node) updatePolicies(ctx context.Context, settings Settings, decide func(*nodeFile, []attachment.Record) (PolicyUpdate, error)) (Applied, error) {
	if _, err := n.load(); errors.Is(err, fs.ErrNotExist) && settings.Backend == "" {
		return Applied{}, err
	}
	unlock, err := n.lock(ctx)
	if err != nil {
		return Applied{}, err
	}
	defer unlock()
	f, err := n.loadWithoutPolicies()
	if errors.Is(err, fs.ErrNotExist) {
		f, _, err = n.adoptSettings(ctx, settings)
	}
	if err == nil && f.Migration != nil && f.policiesLost == nil {
		f, err = n.sync(ctx, f)
	}
	if err == nil && !f.Kubernetes { // an operator's apply looks at the node, too
		f, _, err = n.surveyNow(f)
	}
	if err != nil {
		return Applied{}, err
	}
	before, err := n.records()
	if err != nil {
		return Applied{}, err
	}
	was := f
	rev, err := decide(&f, before)
	if err == nil && f.policiesLost != nil && rev.Policies == nil {
		err = f.policiesLost
	}
	if err != nil {
		return Applied{}, err
	}
	rev.Unknown = rev.Unknown || f.policiesLost != nil
	applied := Applied{Policies: len(was.Policies.Policies), Epoch: was.Epoch}
	whole := rev.Unknown || n.lacking(was)
	if rev.empty() && !whole {
		if f.Kubernetes {
			return applied, nil
		}
		if err := n.refresh(ctx, f); !dataplane.Drifted(err) { // an operator's apply fixes, too
			return applied, err
		}
		whole = true
	}
	applied.Changed = true
	after := replaced(before, rev.Records)
	if rev.Policies != nil {
		f.Policies = *rev.Policies
	}
	from, errFrom := was.share(before...)
	to, errTo := f.share(after...)
	if err := errors.Join(errFrom, errTo); err != nil {
		return Applied{}, err
	}
	from, to = from.WithMembers(rev.Removed), to.WithMembers(rev.Added)
	// A change that was interrupted may be half in the kernel: what it forbade
	// is not known to be stopped. Whether this one takes anything away, only whole
	// states tell: an endpoint that stays in its place may have got other rules.
	applied.Restricted = !was.Synced || rev.Unknown || from.Restricts(to) ||
		// To a packet in flight, those who come may be peers of the rules that go.
		rev.Policies != nil && from.MentionsAny(rev.Added)
	if applied.Restricted {
		if f.Epoch, err = n.nextEpoch(to); err != nil {
			return Applied{}, err
		}
		to.Epoch = f.Epoch
	}
	if f, err = n.note(f, rev); err != nil {
		return Applied{}, err
	}
	n.step("saved")
	if !whole {
		if from, err = n.fillNewSets(ctx, f, from, to); err == nil {
			from, to = desired.Diff(from, to)
			err = n.backend(f).Update(ctx, from, to)
		}
	}
	if !whole && err == nil && !f.Kubernetes {
		err = n.refresh(ctx, f)
	}
	if applied.Whole = whole || dataplane.Drifted(err); applied.Whole {
		f, err = n.sync(ctx, f)
	} else if err == nil {
		if applied.Restricted {
			f.reclaimed = n.reclaim(to)
		}
		f.Synced = true
		err = n.save(f)
	} else {
		err = fmt.Errorf("%w: %w", ErrBackend, err)
	}
	if err != nil {
		return Applied{}, err
	}
	n.step("synced")
	applied.Policies, applied.Epoch, applied.Reclaimed = len(f.Policies.Policies), f.Epoch, f.reclaimed
	return applied, nil
}

// fewMembers is how many members of new sets come with all the rest at once.
const fewMembers = 4096

// fillNewSets makes those of the sets that only to has that do not come with all the rest at once,
// because they are large: each takes a change of its own. from is returned with them.
func (n Node) fillNewSets(ctx context.Context, f nodeFile, from, to desired.State) (desired.State, error) {
	from.PeerSets, from.TupleSets = maps.Clone(from.PeerSets), maps.Clone(from.TupleSets)
	left := fewMembers
	for set := range to.Sets() {
		if from.ContainsSets(set) {
			continue
		}
		if n := set.Size(); n <= left {
			left -= n
			continue
		}
		if _, err := n.backend(f).Fill(ctx, set); err != nil {
			return from, err
		}
		maps.Copy(from.PeerSets, set.PeerSets)
		maps.Copy(from.TupleSets, set.TupleSets)
	}
	return from, nil
}

// lacking reports whether a change was not finished, or sets may lack pods elsewhere that
// are known here.
func (n Node) lacking(f nodeFile) bool {
	if !f.Synced || !f.Incomplete || n.RemoteMembers == nil {
		return !f.Synced
	}
	_, known := n.RemoteMembers(desired.State{})
	return known
}

// EnforcedPolicies is what is enforced of the Kubernetes API's policies; fs.ErrNotExist when
// there is nothing of that, or it was lost. incomplete is set where sets may lack pods elsewhere.
func (n Node) EnforcedPolicies() (p desired.Policies, incomplete bool, err error) {
	f, err := n.loadWithoutPolicies()
	if err == nil && (!f.Kubernetes || f.policiesLost != nil) {
		err = fs.ErrNotExist
	}
	return f.Policies, f.Incomplete, err
}

// refresh reports what of the whole node is not in place, and brings its own addresses
// and ports up to date.
func (n Node) refresh(ctx context.Context, f nodeFile) error {
	want, err := n.state(f)
	if err != nil {
		return err
	}
	_, err = n.backend(f).Keep(ctx, want)
	return err
}

// note writes down what is to be, so that whoever comes after a crash finishes it.
func (n Node) note(f nodeFile, rev PolicyUpdate) (nodeFile, error) {
	f.Synced = false
	var policies []byte
	if rev.Policies != nil {
		var err error
		if policies, err = encode(f.Policies); err != nil {
			return f, err
		}
		f.policiesLost = nil
		if f.PoliciesHash == noFile { // what is there is of an earlier life
			if err := n.Store.Remove(state.PoliciesFile); err != nil {
				return f, err
			}
		}
		f.FormerHash, f.PoliciesHash = f.PoliciesHash, hashOf(policies)
	}
	if err := n.save(f); err != nil {
		return f, err
	}
	if rev.Policies != nil {
		n.step("noted")
		if err := n.Store.Write(state.PoliciesFile, policies); err != nil {
			return f, err
		}
		f.FormerHash = ""
	}
	for _, r := range rev.Records {
		if err := n.Store.Put(r); err != nil {
			return f, err
		}
	}
	return f, nil
}

// replaced is records with those of changed in the place of their former selves.
func replaced(records, changed []attachment.Record) []attachment.Record {
	next := map[attachment.Key]attachment.Record{}
	for _, r := range changed {
		next[r.Key] = r
	}
	out := make([]attachment.Record, len(records))
	for i, r := range records {
		if changed, ok := next[r.Key]; ok {
			// The addresses that a later attachment has taken over are no more its own.
			changed.Addresses = r.Addresses
			r = changed
		}
		out[i] = r
	}
	return out
}

// nextEpoch gives the number of the epoch after that of s, which no flow carries. At the
// wrap all numbers are taken off the flows. Until the change is in the kernel, flows may
// still get the one in force, which is the highest: it is taken off when its turn comes.
func (n Node) nextEpoch(s desired.State) (uint32, error) {
	epoch := s.Layout.NextEpoch(s.Epoch)
	switch epoch {
	case 1:
		return epoch, n.kernel().clearOtherEpochs(s.Layout.ID(mark.None))
	case s.Layout.Max():
		return epoch, n.kernel().clearEpoch(s.Layout.Mark(epoch))
	}
	return epoch, nil
}
