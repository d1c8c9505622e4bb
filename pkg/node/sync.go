package node

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/dataplane"
	"github.com/podmark/podmark/pkg/dataplane/drift"
	"github.com/podmark/podmark/pkg/dataplane/hostport"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
)

// sync brings the whole node to what node.json and the attachments say, with those of coming among
// them, and notes it. A node that is moving to another mask arrives.
func (t *tx) sync(ctx context.Context, coming ...attachment.Record) error {
	if err := t.index(); err != nil {
		return err
	}
	if t.file.Migration != nil {
		if err := t.rewrite(ctx); err != nil {
			return err
		}
		t.step("understands both")
		if err := t.finishMigration(); err != nil {
			return err
		}
	}
	if err := t.surveyNow(); err != nil {
		return err
	}
	return t.rewrite(ctx, coming...)
}

// index gives the records of an older podmark the numbers of their links. That it has is saved with
// what follows.
func (t *tx) index() error {
	if t.file.Indexed {
		return nil
	}
	links, err := t.kernel().links()
	if err != nil {
		return err
	}
	known := hostport.LinksOf(links)
	records, err := t.Store.List()
	if err != nil {
		return err
	}
	for _, r := range records {
		if r.HostVethIndex != 0 {
			continue
		}
		if r.Endpoint = known.Locate(r.Endpoint); r.HostVethIndex == 0 {
			continue // its link is gone
		}
		if err := t.Store.Put(r); err != nil {
			return err
		}
	}
	t.file.Indexed = true
	return nil
}

// rewrite makes the kernel hold what node.json and the attachments say, and notes that.
func (t *tx) rewrite(ctx context.Context, coming ...attachment.Record) error {
	if t.Programs {
		t.file.syncChecksums()
	}
	if err := t.kernel().ask(ctx, &t.file, t.LockTimeout); err != nil {
		return err
	}
	state, err := t.state(coming...)
	if err != nil {
		return err
	}
	// Half-way through, the sets can look complete while no hook leads to the rules.
	if err := t.markUnsynced(); err != nil {
		return err
	}
	complete, err := t.fillSets(ctx, state)
	if err == nil {
		err = t.backend().Sync(ctx, state)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBackend, err)
	}
	// Until here both judged, by the same IDs and the same epoch.
	if err := t.removeFormer(ctx); err != nil {
		return err
	}
	// A change that restricted may have ended before it came to this.
	t.file.reclaimed.add(t.reclaim(state))
	t.file.Former, t.file.Synced, t.file.Incomplete = nil, t.file.Migration == nil, !complete
	return t.saveBestEffort()
}

// fillSets makes peer and tuple sets hold exactly who belongs there, one after the other: all
// of them together are large. It reports whether that is known.
func (t *tx) fillSets(ctx context.Context, state desired.State) (known bool, err error) {
	for set := range state.Sets() {
		if t.file.Kubernetes {
			if t.RemoteMembers == nil {
				return false, nil
			}
			if set, known = t.RemoteMembers(set); !known {
				return false, nil
			}
		}
		if _, err := t.backend().FillSet(ctx, set); err != nil {
			return false, err
		}
	}
	return true, nil
}

// removeFormer takes what is left of the former backends out of the kernel. A
// variant of iptables has done that with the other one's rules, and its guard with
// nftables'.
func (t *tx) removeFormer(ctx context.Context) error {
	var rest []config.Kind
	for _, k := range t.file.Former {
		if !ofIPTables(t.file.Backend) || k == config.NFTables && t.file.Bridge != bridgeByNFTables {
			rest = append(rest, k)
		}
	}
	return t.kernel().remove(ctx, t.LockTimeout, rest)
}

// prepare brings a node that is unsynced, or lacks a base chain, up to date before r comes. The rules
// that r will need are written on the way, with nobody in them, so that its ADD needs no second
// restore.
func (t *tx) prepare(ctx context.Context, r attachment.Record) error {
	node, err := t.file.node()
	if err != nil {
		return err
	}
	if t.file.Synced {
		err := t.backend().Check(ctx, desired.State{Node: node}, drift.Base)
		if err == nil {
			return nil
		}
		if !dataplane.Drifted(err) {
			return fmt.Errorf("%w: %w", ErrBackend, err)
		}
	}
	r.Addresses, r.Gateways = nil, nil
	if err := t.sync(ctx, r); err != nil {
		return err
	}
	t.step("synced")
	return nil
}

// update moves the node from the attachments of before to those of kept, which are noted, and of
// coming, which are not yet. A node that is unsynced or has drifted is rewritten whole instead.
func (t *tx) update(ctx context.Context, before, kept []attachment.Record, coming ...attachment.Record) error {
	sharers, err := t.sharers(before, slices.Concat(before, kept, coming))
	if err != nil {
		return err
	}
	from, to, err := t.file.difference(before, slices.Concat(kept, coming), sharers)
	if err != nil {
		return err
	}
	if !t.file.Synced {
		return t.sync(ctx, coming...)
	}
	err = t.backend().Update(ctx, from, to)
	switch {
	case err == nil:
		return nil
	case dataplane.Drifted(err):
		return t.sync(ctx, coming...)
	}
	// Half a change may be in the kernel: the next one writes everything.
	t.file.Synced = false
	return errors.Join(fmt.Errorf("%w: %w", ErrBackend, err), t.save())
}

// sharers are [sharersOf] those who leave. Records are read only where that matters.
func (t *tx) sharers(leaving, known []attachment.Record) ([]attachment.Record, error) {
	if !slices.ContainsFunc(leaving, func(r attachment.Record) bool { return len(r.AllowedSources) > 0 }) {
		return nil, nil
	}
	records, err := t.records()
	if err != nil {
		return nil, err
	}
	return sharersOf(records, leaving, known), nil
}

// clearFlows takes the number of an epoch that begins off the flows that carry it from when it was in
// force before. At the wrap all numbers go. Until the change is in the kernel, flows may still get the
// one in force, which is the highest: it is taken off when its turn comes.
func (t *tx) clearFlows(layout mark.Layout, epoch uint32) error {
	switch epoch {
	case 1:
		return t.kernel().clearOtherEpochs(layout.ID(mark.None))
	case layout.Max():
		return t.kernel().clearEpoch(layout.Mark(epoch))
	}
	return nil
}

// stateOf derives the whole node's state, of the committed attachments and coming. Pods elsewhere are
// not in its sets.
func (n Node) stateOf(f nodeFile, coming ...attachment.Record) (desired.State, error) {
	node, err := f.node()
	if err != nil {
		return desired.State{}, err
	}
	if node.HostAddresses, err = n.kernel().addresses(); err != nil {
		return desired.State{}, err
	}
	records, err := n.records()
	if err != nil {
		return desired.State{}, err
	}
	former := map[attachment.Key]mark.ID{}
	for i, r := range records {
		if f.Migration == nil {
			break
		}
		if id, ok := f.Migration.IDs[r.Hash()]; ok {
			records[i].ID, former[r.Key] = id.To, id.From
		}
	}
	if err := fits(node.Layout, records...); err != nil {
		return desired.State{}, err
	}
	s := desired.Build(node, f.Policies, append(records, coming...))
	for i, e := range s.Endpoints {
		s.Endpoints[i].FormerID = former[e.Key]
	}
	s.Applied = f.applied()
	return s, nil
}
