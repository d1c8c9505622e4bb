package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/pkg/state"
)

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
func (n Node) Add(ctx context.Context, settings Settings, r attachment.Record, promised *[2]desired.ProfileID, sent func() (bool, error)) (attachment.Record, error) {
	unlock, err := n.lock(ctx)
	if err != nil {
		return attachment.Record{}, err
	}
	defer unlock()
	return n.add(ctx, settings, r, false, promised, sent)
}

// ErrPromise: the node's policies have changed since somebody told what they say of a pod.
var ErrPromise = errors.New("the policies of the pod have changed meanwhile")

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

// begin makes this a node on which podmark runs, with nobody on it.
func (n Node) begin(ctx context.Context, settings Settings) (nodeFile, error) {
	unlock, err := n.lock(ctx)
	if err != nil {
		return nodeFile{}, err
	}
	defer unlock()
	f, changed, err := n.adoptSettings(ctx, settings)
	if err != nil || !changed {
		return f, err // somebody else was quicker
	}
	if err := n.save(f); err != nil {
		return nodeFile{}, err
	}
	return n.sync(ctx, f)
}

// Adopt is Add for an endpoint that is running already, unmarked and unpoliced: its
// port is never closed, and its connections are judged from their next packet on.
// It reports whether there was anything to do: an attachment that is known is none.
func (n Node) Adopt(ctx context.Context, settings Settings, r attachment.Record) (added attachment.Record, adopted bool, err error) {
	unlock, err := n.lock(ctx)
	if err != nil {
		return attachment.Record{}, false, err
	}
	defer unlock()
	if old, err := n.Store.Get(r.Key); err == nil && old.Committed {
		return old, false, nil
	}
	r, err = n.add(ctx, settings, r, true, nil, func() (bool, error) { return true, nil })
	return r, err == nil, err
}

// add is Add with the lock held, or Adopt of a running endpoint.
func (n Node) add(ctx context.Context, settings Settings, r attachment.Record, running bool, promised *[2]desired.ProfileID, sent func() (bool, error)) (attachment.Record, error) {
	f, changed, err := n.adoptSettings(ctx, settings)
	if err != nil {
		return attachment.Record{}, err
	}
	if f.Kubernetes && r.Policed && !r.Kubernetes {
		return attachment.Record{}, fmt.Errorf("%w, and this network says \"policy\": \"files\": all networks of a node take it from one place", ErrSource)
	}
	if err := n.bridgeFiltered(f, r); err != nil {
		return attachment.Record{}, err
	}
	if err := n.uncontended(r); err != nil {
		return attachment.Record{}, err
	}
	if err := f.promise(r, promised); err != nil {
		return attachment.Record{}, err
	}
	if changed {
		if err := n.save(f); err != nil {
			return attachment.Record{}, err
		}
	}
	// Without the rules a port is not closed by its device group.
	if f, err = n.prepare(ctx, f, r); err != nil {
		return attachment.Record{}, err
	}
	layout, err := mark.NewLayout(f.Mask)
	if err != nil {
		return attachment.Record{}, err
	}
	before, kept, err := n.displaced(layout, r)
	if err != nil {
		return attachment.Record{}, err
	}
	// What others lose must not stay in the kernel where this ends on the way.
	if slices.ContainsFunc(before, func(b attachment.Record) bool { return b.Key != r.Key || !slices.Equal(b.Addresses, r.Addresses) }) {
		f.Synced = false
		if err := n.saveBestEffort(f); err != nil {
			return attachment.Record{}, err
		}
	}
	if r, err = n.Store.Reserve(layout, r); err != nil {
		return attachment.Record{}, err
	}
	n.step("reserved")
	open := n.kernel().guard
	if !running {
		open = n.kernel().unblock
		if err := n.kernel().block(r.Endpoint); err != nil {
			return attachment.Record{}, err
		}
		n.step("closed")
	}
	// The group keeps others from reaching a routed port, so no flow is judged
	// anew before the elements are there. A bridge port keeps the endpoint from
	// sending, so its flows wait for the elements, as those of a running one do.
	closed := r.Routed() && !running
	if closed {
		if err := n.resetVerdict(r, f.Mask, before, sent); err != nil {
			return attachment.Record{}, err
		}
	}
	if err := n.Store.Own(r); err != nil {
		return attachment.Record{}, err
	}
	n.step("owned")
	if err := n.update(ctx, f, before, kept, r); err != nil {
		return attachment.Record{}, err
	}
	if !closed {
		if err := n.resetVerdict(r, f.Mask, before, sent); err != nil {
			return attachment.Record{}, err
		}
	}
	if err := open(r.Endpoint); err != nil {
		return attachment.Record{}, err
	}
	n.step("opened")
	r.Committed = true
	if err := n.Store.Put(r); err != nil {
		return attachment.Record{}, err
	}
	n.step("committed")
	return r, nil
}

// displaced lists what r takes the place of: its own earlier self, and other
// attachments that have an address which is r's from now on (their DEL is late, or
// lost). Those are kept with the addresses they have besides. Damaged ones are nobody's.
func (n Node) displaced(layout mark.Layout, r attachment.Record) (before, kept []attachment.Record, err error) {
	switch old, err := n.Store.Get(r.Key); {
	case err == nil && fits(layout, old) == nil:
		if old = n.owned(old); len(old.Addresses) > 0 {
			before = append(before, old)
		}
	case err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, state.ErrDamaged):
		return nil, nil, err
	}
	seen := map[attachment.Key]bool{r.Key: true}
	for _, a := range r.Addresses {
		owner, err := n.Store.Owner(a)
		if err != nil || seen[owner.Key] || fits(layout, owner) != nil {
			continue // nobody's, or what a crash left; Own overwrites it
		}
		seen[owner.Key] = true
		owner = n.owned(owner)
		before = append(before, owner)
		taken := func(b addr) bool { return slices.Contains(r.Addresses, b) }
		if owner.Addresses = slices.DeleteFunc(slices.Clone(owner.Addresses), taken); owner.Committed && len(owner.Addresses) > 0 {
			kept = append(kept, owner)
		}
	}
	return before, kept, nil
}

// resetVerdict makes the flows be judged that were there before the endpoint was: its
// own, if it sent anything before its port was closed, and those of whoever had
// its address and was not properly deleted.
func (n Node) resetVerdict(r attachment.Record, mask uint32, before []attachment.Record, sent func() (bool, error)) error {
	if len(before) == 0 {
		if any, err := sent(); err != nil || !any {
			return err
		}
	}
	return n.kernel().resetVerdict(r.Addresses, mask)
}

// bridgeFiltered refuses a policed endpoint on a bridge whose frames the rules
// would never see, or not all of them.
func (n Node) bridgeFiltered(f nodeFile, r attachment.Record) error {
	if r.Routed() || !r.Policed {
		return nil
	}
	if f.Backend != config.NFTables && f.Bridge != bridgeByNFTables {
		return fmt.Errorf("%w: with iptables alone nobody guards the ports of bridge %q, and a policy would hold for a part of what pods on it send each other: %s; take a kernel that can, a main plugin that routes, such as ptp, or set policy to \"none\"", ErrBackend, r.L3Interface, f.BridgeLacks)
	}
	for _, a := range r.Addresses {
		if err := n.kernel().filtered(a.Is6()); err != nil {
			return fmt.Errorf("%w: %w", ErrBackend, err)
		}
	}
	return nil
}

// ErrContended: another attachment has the same address on another network, or may send from
// the same prefix by the same interface.
var ErrContended = errors.New("an address or a further source prefix has two owners")

// uncontended refuses r where one of its addresses is that of a live attachment of another
// network, for packets name nothing else; or one of its further source prefixes another's. On
// its own network, whoever gives out addresses has given it anew: see displaced.
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

// Delete takes the attachment back: its elements, its profiles if it was the
// last to have them, its flows, its ID, its record, in that order. An unknown
// attachment is no error, and starts nothing.
//
// What cannot be removed from the kernel or, for want of room, be written down now does not
// stop it: the next change does that, or where flows could not be forgotten, a collection. It
// is returned in left.
func (n Node) Delete(ctx context.Context, key attachment.Key) (left, err error) {
	r, err := n.Store.Get(key)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.Is(err, state.ErrDamaged):
		return n.deleteDamaged(ctx, key, err)
	case err != nil:
		return nil, err
	}
	r, left, err = n.detach(ctx, key)
	if errors.Is(err, state.ErrDamaged) {
		return n.deleteDamaged(ctx, key, err)
	}
	if err != nil || r.ID == 0 {
		return left, err
	}
	n.step("detached")
	// Without the lock, because it reads the whole conntrack table. Nobody else
	// has the address yet: the plugin that assigned it is deleted after us.
	busy, err := n.deleteFlows(r.Addresses)
	left = errors.Join(left, busy)
	if err != nil {
		return errors.Join(left, err), nil // with its record, so that a collection does it
	}
	n.step("forgotten")
	unlock, err := n.lock(ctx)
	if err != nil {
		return left, err
	}
	defer unlock()
	again, err := n.Store.Get(key)
	if err != nil || again.Committed && len(n.owned(again).Addresses) > 0 {
		return left, nil // somebody else finished, or added it anew
	}
	if err := n.Store.Release(again); errors.Is(err, state.ErrNoRoom) {
		return errors.Join(left, err), nil
	} else if err != nil {
		return left, err
	}
	n.step("released")
	return left, nil
}

// deleteFlows drops the flows of addresses. Busy is about those that the kernel leaves to a
// flowtable for as long as they live.
func (n Node) deleteFlows(addrs []netip.Addr) (busy, err error) {
	err = n.kernel().deleteFlows(addrs)
	if errors.Is(err, unix.EBUSY) {
		return err, nil
	}
	return nil, err
}

// detach removes the attachment from the kernel and leaves an uncommitted
// record, or where there is no room for that one without addresses. It returns it with the addresses
// that are no other's. ErrDamaged where the record's ID is none of the node's.
func (n Node) detach(ctx context.Context, key attachment.Key) (r attachment.Record, left, err error) {
	unlock, err := n.lock(ctx)
	if err != nil {
		return attachment.Record{}, nil, err
	}
	defer unlock()
	if r, err = n.Store.Get(key); err != nil {
		return attachment.Record{}, nil, ignoreMissing(err)
	}
	r.Committed = false
	err = n.Store.Put(r)
	if errors.Is(err, state.ErrNoRoom) {
		err = n.Store.Disown(r)
	}
	if errors.Is(err, state.ErrNoRoom) {
		left, err = err, nil // not even that
	}
	if err != nil {
		return attachment.Record{}, nil, err
	}
	n.step("uncommitted")
	left = errors.Join(left, n.kernel().blockForDelete(r.Endpoint))
	n.step("shut")
	r = n.unclaimed(r)
	f, err := n.load()
	if errors.Is(err, fs.ErrNotExist) {
		return r, left, nil // uninstalled meanwhile: nothing is in the kernel
	}
	if err != nil {
		return r, errors.Join(left, err), nil
	}
	node, err := f.node()
	if err == nil {
		err = fits(node.Layout, r)
	}
	if err != nil {
		return r, nil, err
	}
	return r, errors.Join(left, n.update(ctx, f, []attachment.Record{r}, nil)), nil
}

// deleteDamaged removes an attachment whose record cannot be read: what the
// record would have told is found by rewriting everything else.
func (n Node) deleteDamaged(ctx context.Context, key attachment.Key, damage error) (left, err error) {
	unlock, err := n.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := n.Store.Release(attachment.Record{Key: key}); err != nil {
		return nil, err
	}
	if _, err = n.removeOrphans(ctx, false); errors.Is(err, ErrNewer) {
		return errors.Join(damage, err), nil
	}
	return damage, err
}

// Check reports what is wrong with an attachment, which is as it would be added now: its
// record, its port, its elements and rules. It starts no process.
func (n Node) Check(ctx context.Context, is attachment.Record) error {
	key, e := is.Key, is.Endpoint
	// A change of somebody else's would look like damage, half-way through.
	unlock, err := n.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	r, err := n.Store.Get(key)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !r.Committed {
		return fmt.Errorf("%w: %s", ErrNotFound, key)
	}
	if err != nil {
		return err
	}
	if r.HostVeth == e.HostVeth && r.HostVethIndex != e.HostVethIndex {
		return fmt.Errorf("attachment %s has host veth %q as link %d, and was added with link %d of that name", key, e.HostVeth, e.HostVethIndex, r.HostVethIndex)
	}
	if r.HostVeth != e.HostVeth || r.L3Interface != e.L3Interface || !slices.Equal(r.Addresses, e.Addresses) {
		return fmt.Errorf("attachment %s is %v on %q by %q, and was added as %v on %q by %q", key, e.Addresses, e.L3Interface, e.HostVeth, r.Addresses, r.L3Interface, r.HostVeth)
	}
	if !slices.Equal(r.SourceBound, is.SourceBound) || !r.Kubernetes && !slices.Equal(r.AllowedSources, e.AllowedSources) {
		return fmt.Errorf("attachment %s may send from %v of the %v that its network allowed, and allowedSourcePrefixes is %v now", key, r.AllowedSources, r.SourceBound, is.SourceBound)
	}
	if err := n.kernel().check(r.Endpoint); err != nil {
		return err
	}
	f, err := n.load()
	if err != nil {
		return err
	}
	want, err := f.share(r)
	if err != nil {
		return err
	}
	if err := n.lost(r); err != nil {
		return err
	}
	return n.backend(f).Check(ctx, want)
}

// lost says which address of r is another's by now.
func (n Node) lost(r attachment.Record) error {
	for _, a := range r.Addresses {
		if n.Store.Owns(r.Key, a) {
			continue
		}
		owner, err := n.Store.Owner(a)
		if err != nil {
			return fmt.Errorf("attachment %s has lost address %s: nobody owns it: %w", r.Key, a, err)
		}
		return fmt.Errorf("attachment %s has lost address %s to attachment %s (pod %s/%s), which was added later", r.Key, a, owner.Key, owner.Namespace, owner.Pod)
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func encode(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encoding %T: %w", v, err)
	}
	return b, nil
}
