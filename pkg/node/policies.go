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
	// Whole is set where everything was written again, because something was missing.
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
	// Unknown has everything written again, and flows judged again: what is in the kernel,
	// and was allowed there, is not known.
	Unknown bool
	// kubernetes is set where the policies come from the Kubernetes API from now on.
	kubernetes bool
}

func (u PolicyUpdate) empty() bool {
	return !u.Unknown && u.Policies == nil &&
		len(u.Records)+len(u.Removed.Peers)+len(u.Removed.Tuples)+len(u.Added.Peers)+len(u.Added.Tuples) == 0
}

// SetPolicies makes policies the node's, enforced on every endpoint when it
// returns. If they take anything away, the next epoch begins in the same change,
// so that what they forbid stops at its next packet. The settings count only on
// a node that has none yet.
func (n Node) SetPolicies(ctx context.Context, settings Settings, policies desired.Policies) (Applied, error) {
	return n.updatePolicies(ctx, settings, func(f nodeFile, _ []attachment.Record) (PolicyUpdate, error) {
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
// fs.ErrNotExist on a node on which podmark has never run. Where something of podmark's is missing in the
// kernel, everything is written again.
func (n Node) UpdatePolicies(
	ctx context.Context,
	settings Settings,
	decide func([]attachment.Record) PolicyUpdate,
) (Applied, error) {
	return n.updatePolicies(ctx, settings, func(f nodeFile, records []attachment.Record) (PolicyUpdate, error) {
		u := decide(records)
		if !f.Kubernetes && u.Policies == nil {
			u.Policies = &desired.Policies{}
		}
		u.kubernetes = true
		return u, nil
	})
}

// EnforceRequested has the node's policies hold for the attachments to these networks, which take them from
// files and did not when their pods were added, and returns those attachments. Their connections
// are judged from their next packet on. One on a bridge that is not filtered stays as it is, with
// the error of an Add.
func (n Node) EnforceRequested(
	ctx context.Context,
	networks map[string]bool,
) (enlisted []attachment.Record, err error) {
	asks := func(r attachment.Record) bool {
		return r.Committed && !r.Policed && !r.Kubernetes && networks[r.Network]
	}
	// Damaged records are reported by a reconciliation.
	if records, _ := n.Store.List(); !slices.ContainsFunc(records, asks) {
		return nil, nil
	}
	var refused []error
	_, err = n.updatePolicies(ctx, Settings{}, func(f nodeFile, records []attachment.Record) (PolicyUpdate, error) {
		for _, r := range records {
			if !asks(r) {
				continue
			}
			if r.Policed = true; f.Kubernetes {
				return PolicyUpdate{}, fmt.Errorf("network %q says \"policy\": \"files\": %w", r.Network, ErrSource)
			}
			if err := n.bridgeFiltered(f, r); err != nil {
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

// updatePolicies carries out what decide says of the node as it is.
func (n Node) updatePolicies(
	ctx context.Context,
	settings Settings,
	decide func(nodeFile, []attachment.Record) (PolicyUpdate, error),
) (applied Applied, err error) {
	if _, err := n.load(); errors.Is(err, fs.ErrNotExist) && settings.Backend == "" {
		return Applied{}, err
	}
	err = n.transact(ctx, func(t *tx) error {
		applied, err = t.updatePolicies(ctx, settings, decide)
		return err
	})
	return applied, err
}

func (t *tx) updatePolicies(
	ctx context.Context,
	settings Settings,
	decide func(nodeFile, []attachment.Record) (PolicyUpdate, error),
) (Applied, error) {
	if err := t.readForPolicies(ctx, settings); err != nil {
		return Applied{}, err
	}
	before, err := t.records()
	if err != nil {
		return Applied{}, err
	}
	update, err := decide(t.file, before)
	if err != nil {
		return Applied{}, err
	}
	if lost := t.file.policiesLost; lost != nil {
		if update.Policies == nil {
			return Applied{}, lost
		}
		update.Unknown = true
	}
	unchanged := Applied{Policies: len(t.file.Policies.Policies), Epoch: t.file.Epoch}
	whole := update.Unknown || t.lacking()
	if update.empty() && !whole {
		if t.file.Kubernetes {
			return unchanged, nil
		}
		if err := t.refresh(ctx); !dataplane.Drifted(err) { // an operator's apply repairs, too
			return unchanged, err
		}
		whole = true
	}
	p, err := planPolicies(t.file, before, update)
	if err != nil {
		return Applied{}, err
	}
	if whole, err = t.enforce(ctx, p, whole); err != nil {
		return Applied{}, err
	}
	return Applied{
		Policies: len(t.file.Policies.Policies), Epoch: t.file.Epoch,
		Restricted: p.restricted, Changed: true, Whole: whole, Reclaimed: t.file.reclaimed,
	}, nil
}

// readForPolicies reads node.json, or begins a node with settings. It may lack the policies that
// there were.
func (t *tx) readForPolicies(ctx context.Context, settings Settings) (err error) {
	t.file, err = t.loadWithoutPolicies()
	if errors.Is(err, fs.ErrNotExist) {
		_, err = t.adoptSettings(ctx, settings)
	}
	if err == nil && t.file.Migration != nil && t.file.policiesLost == nil {
		err = t.sync(ctx)
	}
	if err == nil && !t.file.Kubernetes { // an operator's apply surveys the node, too
		err = t.surveyNow()
	}
	return err
}

// enforce carries out a plan, and reports whether everything was written for it: as asked for with
// whole, or because something was missing in the kernel.
func (t *tx) enforce(ctx context.Context, p policyPlan, whole bool) (_ bool, err error) {
	if p.restricted {
		if err := t.clearFlows(p.to.Layout, p.file.Epoch); err != nil {
			return whole, err
		}
	}
	if err := t.notePolicies(p); err != nil {
		return whole, err
	}
	t.step("saved")
	if !whole {
		err = t.updateShare(ctx, p)
		whole = dataplane.Drifted(err)
	}
	switch {
	case whole:
		err = t.sync(ctx)
	case err != nil:
		err = fmt.Errorf("%w: %w", ErrBackend, err)
	default:
		if p.restricted {
			t.file.reclaimed = t.reclaim(p.to.State)
		}
		t.file.Synced = true
		err = t.save()
	}
	if err == nil {
		t.step("synced")
	}
	return whole, err
}

// updateShare changes in the kernel what the plan does.
func (t *tx) updateShare(ctx context.Context, p policyPlan) error {
	from, err := t.fillNewSets(ctx, p.from, p.to)
	if err != nil {
		return err
	}
	from, to := desired.Diff(from, p.to)
	if err := t.backend().Update(ctx, from, to); err != nil {
		return err
	}
	if t.file.Kubernetes {
		return nil
	}
	return t.refresh(ctx)
}

// fewMembers is how many members of new sets come with all the rest at once.
const fewMembers = 4096

// fillNewSets makes those of the sets that only to has that do not come with all the rest at once,
// because they are large: each takes a change of its own. from is returned with them.
func (t *tx) fillNewSets(ctx context.Context, from, to desired.Share) (desired.Share, error) {
	from.PeerSets, from.TupleSets = maps.Clone(from.PeerSets), maps.Clone(from.TupleSets)
	left := fewMembers
	for set := range to.Sets() {
		if from.Contains(set) {
			continue
		}
		if size := set.Size(); size <= left {
			left -= size
			continue
		}
		if _, err := t.backend().FillSet(ctx, set); err != nil {
			return from, err
		}
		maps.Copy(from.PeerSets, set.PeerSets)
		maps.Copy(from.TupleSets, set.TupleSets)
	}
	return from, nil
}

// lacking reports whether a change was not finished, or sets may lack pods elsewhere that
// are known here.
func (t *tx) lacking() bool {
	if !t.file.Synced || !t.file.Incomplete || t.RemoteMembers == nil {
		return !t.file.Synced
	}
	_, known := t.RemoteMembers(desired.Set{})
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
func (t *tx) refresh(ctx context.Context) error {
	want, err := t.state()
	if err != nil {
		return err
	}
	_, err = t.backend().Refresh(ctx, want)
	return err
}

// notePolicies writes down what is to be, so that the change after a crash finishes it.
func (t *tx) notePolicies(p policyPlan) error {
	t.file = p.file
	t.file.Synced = false
	var policies []byte
	if p.policies {
		var err error
		if policies, err = encode(t.file.Policies); err != nil {
			return err
		}
		t.file.policiesLost = nil
		if t.file.PoliciesHash == noFile { // what is there is of an earlier life
			if err := t.Store.Remove(state.PoliciesFile); err != nil {
				return err
			}
		}
		t.file.FormerHash, t.file.PoliciesHash = t.file.PoliciesHash, hashOf(policies)
	}
	if err := t.save(); err != nil {
		return err
	}
	if p.policies {
		t.step("noted")
		if err := t.Store.Write(state.PoliciesFile, policies); err != nil {
			return err
		}
		t.file.FormerHash = ""
	}
	for _, r := range p.records {
		if err := t.Store.Put(r); err != nil {
			return err
		}
	}
	return nil
}
