package node

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/state"
)

// Delete takes the attachment back: its elements, its profiles if it was the
// last to have them, its flows, its ID, its record, in that order. An unknown
// attachment is no error, and starts nothing.
//
// What cannot be removed from the kernel or, for want of room, be written down now does not
// stop it: the next change does that, or where flows could not be forgotten, a collection. It
// is returned in left.
func (n Node) Delete(ctx context.Context, key attachment.Key) (left, err error) {
	r, err := n.Store.Get(key)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		r, left, err = n.detach(ctx, key)
	}
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
	unreleased, err := n.release(ctx, key)
	return errors.Join(left, unreleased), err
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
	err = n.transact(ctx, func(t *tx) error {
		r, err = t.detach(ctx, key)
		left = t.left
		return err
	})
	return r, left, err
}

func (t *tx) detach(ctx context.Context, key attachment.Key) (attachment.Record, error) {
	r, err := t.Store.Get(key)
	if err != nil {
		return attachment.Record{}, ignoreMissing(err)
	}
	if err := t.uncommit(&r); err != nil {
		return attachment.Record{}, err
	}
	t.step("uncommitted")
	t.left = errors.Join(t.left, t.kernel().blockForDelete(r.Endpoint))
	t.step("shut")
	r = t.unclaimed(r)
	if err := t.read(); err != nil {
		t.left = errors.Join(t.left, ignoreMissing(err)) // uninstalled meanwhile: nothing is in the kernel
		return r, nil
	}
	node, err := t.file.node()
	if err == nil {
		err = fits(node.Layout, r)
	}
	if err != nil {
		return r, err
	}
	t.left = errors.Join(t.left, t.update(ctx, []attachment.Record{r}, nil))
	return r, nil
}

// uncommit notes that r is on its way out. Where there is no room for that, it takes its addresses
// away, which needs none; where not even that is possible, it is left.
func (t *tx) uncommit(r *attachment.Record) error {
	r.Committed = false
	err := t.Store.Put(*r)
	if errors.Is(err, state.ErrNoRoom) {
		err = t.Store.Disown(*r)
	}
	return t.leave(err)
}

// release gives the ID of a detached attachment back. What is left is for want of room.
func (n Node) release(ctx context.Context, key attachment.Key) (left, err error) {
	err = n.transact(ctx, func(t *tx) error {
		r, err := t.Store.Get(key)
		if err != nil || r.Committed && len(t.owned(r).Addresses) > 0 {
			return nil // another process finished, or added it again
		}
		err = t.leave(t.Store.Release(r))
		if err == nil && t.left == nil {
			t.step("released")
		}
		left = t.left
		return err
	})
	return left, err
}

// deleteDamaged removes an attachment whose record cannot be read: what the
// record would have told is found by rewriting everything else.
func (n Node) deleteDamaged(ctx context.Context, key attachment.Key, damage error) (left, err error) {
	err = n.transact(ctx, func(t *tx) error {
		if err := t.Store.Release(attachment.Record{Key: key}); err != nil {
			return err
		}
		if _, err = t.removeOrphans(ctx, false); errors.Is(err, ErrNewer) {
			left = errors.Join(damage, err)
			return nil
		}
		left = damage
		return err
	})
	return left, err
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
