package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/pkg/state"
)

// ErrPromise: the node's policies have changed since podmarkd told what they say of a pod.
var ErrPromise = errors.New("the policies of the pod have changed meanwhile")

// ErrContended: another attachment has the same address on another network, or may send from
// the same prefix by the same interface.
var ErrContended = errors.New("an address or a further source prefix has two owners")

// Add gives the attachment r an ID, its mark and its policy, and returns it with
// the ID. When it returns, every packet of the endpoint is marked and judged.
//
// A crash or an error on the way leaves the port closed and an uncommitted
// record, which the DEL that a runtime owes a failed ADD removes, as does a gc;
// another ADD starts over.
//
// Promised are the profiles that r was told to get, by [desired.Direction]; nil where
// nobody told. It is ErrPromise where the node's policies give it others.
//
// Sent tells whether the endpoint has sent anything by then.
func (n Node) Add(
	ctx context.Context,
	settings Settings,
	r attachment.Record,
	promised *[2]desired.ProfileID,
	sent func() (bool, error),
) (added attachment.Record, err error) {
	err = n.transact(ctx, func(t *tx) error {
		added, err = t.add(ctx, settings, r, false, promised, sent)
		return err
	})
	return added, err
}

// Adopt is Add for an endpoint that is running already, unmarked and unpoliced: its
// port is never closed, and its connections are judged from their next packet on.
// It reports whether there was anything to do: an attachment that is known is none.
func (n Node) Adopt(
	ctx context.Context,
	settings Settings,
	r attachment.Record,
) (added attachment.Record, adopted bool, err error) {
	err = n.transact(ctx, func(t *tx) error {
		if added, err = t.Store.Get(r.Key); err == nil && added.Committed {
			return nil
		}
		added, err = t.add(ctx, settings, r, true, nil, func() (bool, error) { return true, nil })
		adopted = err == nil
		return err
	})
	return added, adopted, err
}

// Close makes the port of a new attachment pass nothing from now on, until Add has given
// it its policy: nothing of the flows either that it began before. On a node on which
// podmark has never run it first writes the rules by which a routed port is closed.
func (n Node) Close(ctx context.Context, settings Settings, r attachment.Record, sent func() (bool, error)) error {
	f, err := n.load()
	if errors.Is(err, fs.ErrNotExist) {
		f, err = n.begin(ctx, settings)
	}
	if err != nil {
		return err
	}
	if err := n.kernel().block(r.Endpoint); err != nil {
		return err
	}
	n.step("barred")
	return n.resetVerdict(r, f.Mask, nil, sent)
}

// begin makes this a node on which podmark runs, with no endpoint on it.
func (n Node) begin(ctx context.Context, settings Settings) (f nodeFile, err error) {
	err = n.transact(ctx, func(t *tx) error {
		changed, err := t.adoptSettings(ctx, settings)
		if err == nil && changed { // else another process was quicker
			err = t.save()
		}
		if err == nil && changed {
			err = t.sync(ctx)
		}
		f = t.file
		return err
	})
	return f, err
}

// add is Add with the lock held, or Adopt of a running endpoint.
func (t *tx) add(
	ctx context.Context,
	settings Settings,
	r attachment.Record,
	running bool,
	promised *[2]desired.ProfileID,
	sent func() (bool, error),
) (attachment.Record, error) {
	if err := t.admit(ctx, settings, r, promised); err != nil {
		return attachment.Record{}, err
	}
	layout, err := mark.NewLayout(t.file.Mask)
	if err != nil {
		return attachment.Record{}, err
	}
	former, owners, err := t.holders(r)
	if err != nil {
		return attachment.Record{}, err
	}
	if err := t.place(ctx, layout, planAdd(layout, r, running, former, owners), &r, sent); err != nil {
		return attachment.Record{}, err
	}
	return r, nil
}

// admit makes the node ready for r, or refuses it and changes nothing.
func (t *tx) admit(ctx context.Context, settings Settings, r attachment.Record, promised *[2]desired.ProfileID) error {
	changed, err := t.adoptSettings(ctx, settings)
	if err != nil {
		return err
	}
	if t.file.Kubernetes && r.Policed && !r.Kubernetes {
		return fmt.Errorf("%w, and this network says \"policy\": \"files\": all networks of a node take it from one place",
			ErrSource)
	}
	if err := t.bridgeFiltered(t.file, r); err != nil {
		return err
	}
	if err := t.uncontended(r); err != nil {
		return err
	}
	if err := t.file.promise(r, promised); err != nil {
		return err
	}
	if changed {
		if err := t.save(); err != nil {
			return err
		}
	}
	return t.prepare(ctx, r) // without the rules a device group closes no port
}

// place carries out the plan of an ADD, and gives r its ID.
func (t *tx) place(
	ctx context.Context,
	layout mark.Layout,
	p addPlan,
	r *attachment.Record,
	sent func() (bool, error),
) error {
	reset := func() error { return t.resetVerdict(*r, t.file.Mask, p.before, sent) }
	open := t.kernel().guard
	if p.block {
		open = t.kernel().unblock
	}
	return t.run(
		step{skip: !p.displaces, do: t.markUnsynced},
		step{name: "reserved", do: func() (err error) { *r, err = t.Store.Reserve(layout, *r); return err }},
		step{name: "closed", skip: !p.block, do: func() error { return t.kernel().block(r.Endpoint) }},
		step{skip: !p.resetFirst, do: reset},
		step{name: "owned", do: func() error { return t.Store.Own(*r) }},
		step{do: func() error { return t.update(ctx, p.before, p.kept, *r) }},
		step{skip: p.resetFirst, do: reset},
		step{name: "opened", do: func() error { return open(r.Endpoint) }},
		step{name: "committed", do: func() error { r.Committed = true; return t.Store.Put(*r) }},
	)
}

// promise is ErrPromise where r gets other profiles than those.
func (f nodeFile) promise(r attachment.Record, promised *[2]desired.ProfileID) error {
	if promised == nil {
		return nil
	}
	s, err := f.share(r)
	if err != nil {
		return err
	}
	if is := s.Endpoints[0].Profiles; is != *promised {
		return fmt.Errorf("%w: pod %s/%s gets profiles %q, and podmarkd told %q", ErrPromise, r.Namespace, r.Pod, is, *promised)
	}
	return nil
}

// bridgeFiltered refuses a policed endpoint on a bridge whose frames the rules
// would never see, or not all of them.
func (n Node) bridgeFiltered(f nodeFile, r attachment.Record) error {
	if r.Routed() || !r.Policed {
		return nil
	}
	if !f.kind().GuardsBridges && f.Bridge != bridgeByNFTables {
		return fmt.Errorf("%w: with iptables alone nothing guards the ports of bridge %q, and a policy would hold for a part of what pods on it send each other: %s; take a kernel that can, a main plugin that routes, such as ptp, or set policy to \"none\"", ErrBackend, r.L3Interface, f.BridgeLacks)
	}
	for _, a := range r.Addresses {
		if err := n.kernel().filtered(a.Is6()); err != nil {
			return fmt.Errorf("%w: %w", ErrBackend, err)
		}
	}
	return nil
}

// uncontended refuses r where one of its addresses is that of a live attachment of another
// network, for packets name nothing else; or one of its further source prefixes another's. On
// its own network, the IPAM plugin has given the address again: see [planAdd].
func (n Node) uncontended(r attachment.Record) error {
	for _, a := range r.Addresses {
		owner, err := n.Store.Owner(a)
		if err == nil && owner.Network != r.Network && owner.Committed && n.kernel().alive(owner.Endpoint) {
			return fmt.Errorf("%w: %s is that of attachment %s (pod %s/%s), which is live, and network %q gives it to another: give networks %q and %q ranges of their own",
				ErrContended, a, owner.Key, owner.Namespace, owner.Pod, r.Network, owner.Network, r.Network)
		}
	}
	if len(r.AllowedSources) == 0 {
		return nil
	}
	records, err := n.records()
	if err != nil {
		return err
	}
	for _, other := range records {
		if p, both := r.Contends(other.Endpoint); both && other.Key != r.Key {
			return fmt.Errorf("%w: %s is in what attachment %s (pod %s/%s) may send from, and both are behind %s, so whose a packet is could not be told: give each pod prefixes of its own by annotation %s, or take a main plugin that routes, such as ptp; if that pod is gone, 'podmarkctl gc' removes what it left",
				ErrContended, p, other.Key, other.Namespace, other.Pod, r.L3Interface, config.SourcesAnnotation)
		}
	}
	return nil
}

// holders reads who has addresses of r: its own former self, nil where there is none or it is
// damaged, and other attachments. Each has the addresses that are its own.
func (n Node) holders(r attachment.Record) (former *attachment.Record, owners []attachment.Record, err error) {
	switch own, err := n.Store.Get(r.Key); {
	case err == nil:
		own = n.owned(own)
		former = &own
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, state.ErrDamaged):
		return nil, nil, err
	}
	for _, a := range r.Addresses {
		owner, err := n.Store.Owner(a)
		if err != nil || owner.Key == r.Key ||
			slices.ContainsFunc(owners, func(o attachment.Record) bool { return o.Key == owner.Key }) {
			continue // it has none, or what a crash left; Own overwrites it
		}
		owners = append(owners, n.owned(owner))
	}
	return former, owners, nil
}

// resetVerdict makes the flows be judged that were there before the endpoint was: its
// own, if it sent anything before its port was closed, and those of the attachments that had
// its address and were not properly deleted.
func (n Node) resetVerdict(
	r attachment.Record,
	mask uint32,
	before []attachment.Record,
	sent func() (bool, error),
) error {
	if len(before) == 0 {
		if any, err := sent(); err != nil || !any {
			return err
		}
	}
	return n.kernel().resetVerdict(r.Addresses, mask)
}
