package node

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/podmark/podmark/pkg/config"
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
// stands, as does a node that somebody is rewriting.
func (n Node) Intact(ctx context.Context) bool {
	f, err := n.load()
	if err != nil || !f.Synced {
		return true
	}
	node, err := f.node()
	return err != nil || !dataplane.Drifted(n.backend(f).Check(ctx, desired.State{Node: node}, drift.Base))
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
	// EndpointDrift is what somebody did to the links of endpoints, and nobody has undone. These
	// endpoints are closed, or judged as before where that is the same link still.
	EndpointDrift []EndpointDrift
	// Alterable is what [Node.Alterable] says.
	Alterable string
}

// Reconcile makes the kernel hold what the node should enforce, and looks closer than
// an ADD does: at every element, and at what others have done to hooks and chains.
// The sets that belong to the node rather than to an endpoint, host addresses and
// NodePorts, are brought up to date without a rule being written. A nil ports
// leaves those as they are. fs.ErrNotExist when podmark has never run here.
func (n Node) Reconcile(ctx context.Context, ports *Ports) (Reconciled, error) {
	if _, err := n.load(); err != nil { // creates no directory where podmark is not in use
		return Reconciled{}, err
	}
	unlock, err := n.lock(ctx)
	if err != nil {
		return Reconciled{}, err
	}
	defer unlock()
	f, err := n.load()
	if err != nil {
		return Reconciled{}, err
	}
	links, errLinks := n.kernel().links()
	kept, err := n.reconcile(ctx, f, ports, links)
	if errLinks != nil {
		return kept, errors.Join(err, errLinks)
	}
	drifted, regrouped, errDrift := n.repairLinks(links)
	kept.EndpointDrift = drifted
	if now, err := n.load(); err == nil {
		kept.Alterable = now.alterable()
	}
	if regrouped != nil {
		kept.Drift = errors.Join(kept.Drift, regrouped)
	}
	return kept, errors.Join(err, errDrift)
}

// reconcile is Reconcile of the rules and sets, with the lock held. Without links, nil, what rules say of
// the node stays.
func (n Node) reconcile(ctx context.Context, f nodeFile, ports *Ports, links []netlink.Link) (Reconciled, error) {
	if f.Synced && links != nil {
		was := f
		now, changed, err := n.survey(f, links)
		if err != nil {
			return Reconciled{}, err
		}
		if changed {
			var kept Reconciled
			if was.Tunnels == nil || !same(*was.Tunnels, *now.Tunnels) {
				kept.Tunnels = now.Tunnels
			}
			if was.Unfiltered != now.Unfiltered {
				kept.Unfiltered = &now.Unfiltered
			}
			_, err = n.sync(ctx, now)
			return kept, err
		}
	}
	old, err := f.node()
	if err != nil {
		return Reconciled{}, err
	}
	if ports != nil && !f.Ports.equal(*ports) {
		f.Ports = ports
		// In iptables a rule has them. Whoever comes after a crash finishes that.
		rewrite := f.Backend != config.NFTables && !slices.Equal(old.SCTPPorts, ports.SCTP)
		f.Synced = f.Synced && !rewrite
		if err := n.save(f); err != nil {
			return Reconciled{}, err
		}
		if rewrite {
			_, err := n.sync(ctx, f)
			return Reconciled{}, err
		}
	}
	kept := Reconciled{Drift: errUnfinished}
	if !n.lacking(f) {
		want, err := n.state(f)
		if err != nil {
			return Reconciled{}, err
		}
		if f.Kubernetes && n.RemoteMembers != nil {
			want = want.WithoutMembers() // ReconcileSet has those
		}
		kept.Policies = policiesOf(want)
		if kept.Replaced, kept.Drift = n.backend(f).Refresh(ctx, want); kept.Drift == nil {
			return kept, nil
		}
		if !dataplane.Drifted(kept.Drift) {
			return Reconciled{Policies: kept.Policies}, fmt.Errorf("%w: %w", ErrBackend, kept.Drift)
		}
		kept.Replaced = nil // all sets are filled anew
	}
	_, err = n.sync(ctx, f)
	return kept, err
}

// ReconcileSet has the node's next peer or tuple set behind the one of the name, in a circle, hold
// exactly who belongs there, and says what it was called and how many elements came and
// went. All of them at once would keep others from the node's lock for long. There is
// nothing to do where pods elsewhere are not known, or a change is to be finished first.
func (n Node) ReconcileSet(ctx context.Context, after string) (name string, changed int, err error) {
	if f, err := n.load(); err != nil || !f.Kubernetes || n.RemoteMembers == nil {
		return after, 0, ignoreMissing(err)
	}
	unlock, err := n.lock(ctx)
	if err != nil {
		return after, 0, err
	}
	defer unlock()
	f, err := n.load()
	if err != nil || n.lacking(f) || f.Incomplete {
		return after, 0, err
	}
	state, err := n.state(f)
	if err != nil {
		return after, 0, err
	}
	set, name := state.NextSet(after)
	if set, known := n.RemoteMembers(set); known && name != "" {
		changed, err = n.backend(f).FillSet(ctx, set)
	}
	return name, changed, err
}

// policiesOf names those that each profile stands for.
func policiesOf(s desired.State) map[desired.ProfileID][]string {
	out := map[desired.ProfileID][]string{}
	for id, p := range s.Profiles {
		out[id] = p.Policies
	}
	return out
}

// Diff reports what [Node.Reconcile] would put back, and changes nothing; nil where
// the kernel has everything. fs.ErrNotExist when podmark has never run here.
func (n Node) Diff(ctx context.Context) (missing, err error) {
	if _, err := n.load(); err != nil {
		return nil, err
	}
	unlock, err := n.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	f, err := n.load()
	if err != nil {
		return nil, err
	}
	if !f.Synced {
		return errUnfinished, nil
	}
	want, err := n.state(f)
	if err != nil {
		return nil, err
	}
	if missing = n.backend(f).Check(ctx, want, drift.Deep); missing == nil || dataplane.Drifted(missing) {
		return missing, nil
	}
	return nil, fmt.Errorf("%w: %w", ErrBackend, missing)
}

// errUnfinished is what Reconcile finds where a change was interrupted.
var errUnfinished = fmt.Errorf("%w: a change was not finished", drift.Change.Err())
