package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/dataplane/drift"
)

// Check reports what is wrong with an attachment, which is as it would be added now: its
// record, its port, its elements and rules. It starts no process.
func (n Node) Check(ctx context.Context, now attachment.Record) error {
	// Half-way through, another process's change would look like damage.
	return n.transact(ctx, func(t *tx) error {
		r, err := t.Store.Get(now.Key)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !r.Committed {
			return fmt.Errorf("%w: %s", ErrNotFound, now.Key)
		}
		if err != nil {
			return err
		}
		if err := sameAttachment(r, now); err != nil {
			return err
		}
		if err := t.kernel().check(r.Endpoint); err != nil {
			return err
		}
		if err := t.read(); err != nil {
			return err
		}
		want, err := t.file.share(r)
		if err != nil {
			return err
		}
		if err := t.lost(r); err != nil {
			return err
		}
		return t.backend().Check(ctx, want.State, drift.Content)
	})
}

// sameAttachment says in what an attachment is other than it was added.
func sameAttachment(was, now attachment.Record) error {
	if was.HostVeth == now.HostVeth && was.HostVethIndex != now.HostVethIndex {
		return fmt.Errorf("attachment %s has host veth %q as link %d, and was added with link %d of that name", now.Key, now.HostVeth, now.HostVethIndex, was.HostVethIndex)
	}
	if was.HostVeth != now.HostVeth || was.L3Interface != now.L3Interface || !slices.Equal(was.Addresses, now.Addresses) {
		return fmt.Errorf("attachment %s is %v on %q by %q, and was added as %v on %q by %q", now.Key, now.Addresses, now.L3Interface, now.HostVeth, was.Addresses, was.L3Interface, was.HostVeth)
	}
	if !slices.Equal(was.SourceBound, now.SourceBound) ||
		!was.Kubernetes && !slices.Equal(was.AllowedSources, now.AllowedSources) {
		return fmt.Errorf("attachment %s may send from %v of the %v that its network allowed, and allowedSourcePrefixes is %v now", now.Key, was.AllowedSources, was.SourceBound, now.SourceBound)
	}
	return nil
}

// lost says which address of r is another's by now.
func (n Node) lost(r attachment.Record) error {
	for _, a := range r.Addresses {
		if n.Store.Owns(r.Key, a) {
			continue
		}
		owner, err := n.Store.Owner(a)
		if err != nil {
			return fmt.Errorf("attachment %s has lost address %s: no attachment owns it: %w", r.Key, a, err)
		}
		return fmt.Errorf("attachment %s has lost address %s to attachment %s (pod %s/%s), which was added later", r.Key, a, owner.Key, owner.Namespace, owner.Pod)
	}
	return nil
}
