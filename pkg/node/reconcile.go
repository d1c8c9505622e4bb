package node

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/podmark/podmark/pkg/dataplane"
	"github.com/podmark/podmark/pkg/dataplane/counters"
	"github.com/podmark/podmark/pkg/dataplane/drift"
	"github.com/podmark/podmark/pkg/desired"
)

// Ports are the ports that IPVS may take on the node's own addresses, as the daemon
// found them out. They stand in for what the plugin's configuration says.
type Ports struct {
	Ranges []desired.PortRange `json:"ranges"`
	// SCTP are those of SCTP. When they change, rules are written.
	SCTP []desired.PortRange `json:"sctp"`
	// Source is who said so, for who reads the state directory.
	Source string `json:"source"`
}

func (p *Ports) equal(other Ports) bool {
	return p != nil && p.Source == other.Source && slices.Equal(p.Ranges, other.Ranges) && slices.Equal(p.SCTP, other.SCTP)
}

// Configured is what the plugin's configuration says of mask and NodePort ranges;
// fs.ErrNotExist when podmark has never run here.
func (n Node) Configured() (Settings, error) {
	f, err := n.load()
	if err != nil {
		return Settings{}, err
	}
	node, err := f.node()
	return Settings{Layout: node.Layout, NodePorts: f.NodePorts}, err
}

// Counters reads what each rule that drops has counted since it was written, without
// the node's lock; fs.ErrNotExist when podmark has never run here.
func (n Node) Counters(ctx context.Context) ([]counters.Rule, error) {
	f, err := n.load()
	if err != nil {
		return nil, err
	}
	return n.reader(f).Counters(ctx)
}

// Intact reports whether the rules are there that do not depend on who is on the node,
// without the node's lock and in a fraction of what Reconcile takes. What cannot be found out
// stands, as does a node that is being rewritten.
func (n Node) Intact(ctx context.Context) bool {
	f, err := n.load()
	if err != nil || !f.Synced {
		return true
	}
	node, err := f.node()
	return err != nil || !dataplane.Drifted(n.backendOf(f).Check(ctx, desired.State{Node: node}, drift.Base))
}

// Reconciled says what Reconcile found and did.
type Reconciled struct {
	// Drift is what the kernel lacked, which is back; nil when nothing was.
	Drift error
	// Replaced names the sets whose content had gone stale.
	Replaced []string
	// Policies are the namespace/name of those that each profile stands for; nil where
	// that was not found out.
	Policies map[desired.ProfileID][]string
	// Tunnels are those that endpoints may not send from now on; nil where they are the
	// same as before.
	Tunnels *desired.Tunnels
	// Unfiltered is what bridges keep from IP from now on, so that it is dropped for isolated
	// endpoints; nil where it is the same as before.
	Unfiltered *desired.Unfiltered
	// EndpointDrift is what others did to the links of endpoints, and have not undone. These
	// endpoints are closed, or judged as before where that is the same link still.
	EndpointDrift []EndpointDrift
	// Alterable is what [Node.Alterable] says.
	Alterable string
}

// Reconcile makes the kernel hold what the node should enforce. It checks more than
// an ADD does: every element, and what others have done to hooks and chains.
// The sets that belong to the node rather than to an endpoint, host addresses and
// NodePorts, are brought up to date without a rule being written. A nil ports
// leaves those as they are. fs.ErrNotExist when podmark has never run here.
func (n Node) Reconcile(ctx context.Context, ports *Ports) (done Reconciled, err error) {
	err = n.transactExisting(ctx, func(t *tx) error {
		links, errLinks := t.kernel().links()
		done, err = t.reconcile(ctx, ports, links)
		if errLinks != nil {
			return errors.Join(err, errLinks)
		}
		drifted, regrouped, errDrift := t.repairLinks(links)
		done.EndpointDrift = drifted
		if now, err := t.load(); err == nil {
			done.Alterable = now.alterable()
		}
		if regrouped != nil {
			done.Drift = errors.Join(done.Drift, regrouped)
		}
		return errors.Join(err, errDrift)
	})
	return done, err
}

// reconcile is Reconcile of the rules and sets. Without links, nil, what rules say of
// the node stays.
func (t *tx) reconcile(ctx context.Context, ports *Ports, links []netlink.Link) (done Reconciled, err error) {
	if t.file.Synced && links != nil {
		was := t.file
		switch changed, err := t.survey(links); {
		case err != nil:
			return Reconciled{}, err
		case changed:
			return surveyed(was, t.file), t.sync(ctx)
		}
	}
	p, err := planPorts(t.file, ports)
	if err == nil {
		err = t.note(p)
	}
	if err == nil && p.rewrite {
		err = t.sync(ctx)
	}
	if err != nil || p.rewrite {
		return Reconciled{}, err
	}
	done.Drift = errUnfinished
	if !t.lacking() {
		if done, err = t.refreshAll(ctx); err != nil || done.Drift == nil {
			return done, err
		}
	}
	return done, t.sync(ctx)
}

// surveyed says what rules say otherwise of the node.
func surveyed(was, now nodeFile) (done Reconciled) {
	if was.Tunnels == nil || !sameTunnels(*was.Tunnels, *now.Tunnels) {
		done.Tunnels = now.Tunnels
	}
	if was.Unfiltered != now.Unfiltered {
		done.Unfiltered = &now.Unfiltered
	}
	return done
}

// refreshAll brings the sets up to date that belong to the node, and says what else is not in place.
func (t *tx) refreshAll(ctx context.Context) (done Reconciled, err error) {
	want, err := t.state()
	if err != nil {
		return Reconciled{}, err
	}
	if t.file.Kubernetes && t.RemoteMembers != nil {
		want = want.WithoutMembers() // ReconcileSet has those
	}
	done.Policies = policiesOf(want)
	replaced, drifted := t.backend().Refresh(ctx, want)
	switch {
	case drifted == nil:
		done.Replaced = replaced
	case dataplane.Drifted(drifted):
		done.Drift = drifted // all sets are filled again
	default:
		err = fmt.Errorf("%w: %w", ErrBackend, drifted)
	}
	return done, err
}

// ReconcileSet has the next of the node's peer and tuple sets after the one of the name, in a circle,
// hold exactly who belongs there, and says what it was called and how many elements came and
// went. All of them at once would keep others from the node's lock for long. There is
// nothing to do where pods elsewhere are not known, or a change is to be finished first.
func (n Node) ReconcileSet(ctx context.Context, after string) (name string, changed int, err error) {
	name = after
	if f, err := n.load(); err != nil || !f.Kubernetes || n.RemoteMembers == nil {
		return name, 0, ignoreMissing(err)
	}
	err = n.transactExisting(ctx, func(t *tx) error {
		if t.lacking() || t.file.Incomplete {
			return nil
		}
		state, err := t.state()
		if err != nil {
			return err
		}
		var set desired.Set
		set, name = state.NextSet(after)
		if set, known := t.RemoteMembers(set); known && name != "" {
			changed, err = t.backend().FillSet(ctx, set)
		}
		return err
	})
	return name, changed, err
}

// policiesOf names those that each profile stands for.
func policiesOf(s desired.State) map[desired.ProfileID][]string {
	out := map[desired.ProfileID][]string{}
	for id, p := range s.Profiles {
		out[id] = p.Policies()
	}
	return out
}

// Diff reports what [Node.Reconcile] would put back, and changes nothing; nil where
// the kernel has everything. fs.ErrNotExist when podmark has never run here.
func (n Node) Diff(ctx context.Context) (missing, err error) {
	err = n.transactExisting(ctx, func(t *tx) error {
		if !t.file.Synced {
			missing = errUnfinished
			return nil
		}
		want, err := t.state()
		if err != nil {
			return err
		}
		if missing = t.backend().Check(ctx, want, drift.Deep); missing != nil && !dataplane.Drifted(missing) {
			missing, err = nil, fmt.Errorf("%w: %w", ErrBackend, missing)
		}
		return err
	})
	return missing, err
}

// errUnfinished is what Reconcile finds where a change was interrupted.
var errUnfinished = fmt.Errorf("%w: a change was not finished", drift.Change.Err())
