package node

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/dataplane/hostport"
	"github.com/podmark/podmark/pkg/state"
)

// Collected says what a collection removed, or would.
type Collected struct {
	Attachments []attachment.Record `json:"attachments"`
	Files       []string            `json:"files"`
	// Left is what stays: in the state directory for want of room, until the next collection, and
	// flows in a flowtable.
	Left error `json:"-"`
}

// CollectGarbage removes the attachments for which dead holds, what crashes left in
// the state directory, and what no one needs in the kernel. What it cannot do with one attachment
// it does with the others.
func (n Node) CollectGarbage(ctx context.Context, dead func(attachment.Record) bool, dryRun bool) (Collected, error) {
	switch _, err := n.load(); {
	case errors.Is(err, fs.ErrNotExist):
		return Collected{}, nil
	case errors.Is(err, ErrNewer): // whose records it would sweep away
		return Collected{}, err
	}
	unlock, err := n.lock(ctx)
	if err != nil {
		return Collected{}, err
	}
	defer unlock()
	all, _ := n.Store.List() // damaged records are collected as files
	var c Collected
	var errs []error
	n.deferred = map[attachment.Key]bool{}
	for _, r := range all {
		if !dead(r) {
			continue
		}
		c.Attachments = append(c.Attachments, r)
		if dryRun {
			continue
		}
		if err := n.unsynced(); err != nil {
			return c, err
		}
		err := n.kernel().blockForDelete(r.Endpoint)
		busy, unforgotten := n.deleteFlows(n.unclaimed(r).Addresses)
		c.Left = errors.Join(c.Left, busy)
		if err = errors.Join(err, unforgotten); err == nil {
			err = n.Store.Release(r)
		}
		if errors.Is(err, state.ErrNoRoom) {
			n.deferred[r.Key] = true
			c.Left, err = errors.Join(c.Left, err), nil
		}
		errs = append(errs, err)
		n.step("released")
	}
	c.Files, err = n.removeOrphans(ctx, dryRun)
	if errors.Is(err, state.ErrNoRoom) {
		c.Left, err = errors.Join(c.Left, err), nil
	}
	return c, errors.Join(append(errs, err)...)
}

// unsynced notes that the kernel may have more than the state directory says, so that whoever comes
// next takes that out before an ID is given out again.
func (n Node) unsynced() error {
	f, err := n.load()
	if err != nil || !f.Synced {
		return nil // who cannot be read writes nothing
	}
	f.Synced = false
	return n.saveBestEffort(f)
}

// RemoveOrphans removes the files that crashes left in the state directory, and what no one needs
// in the kernel if there were any. It returns the files. Damaged records are an
// operator's to remove: their endpoints may be alive.
func (n Node) RemoveOrphans(ctx context.Context) ([]string, error) {
	unlock, err := n.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := n.Store.List(); err != nil {
		return nil, err
	}
	files, err := n.Store.RemoveTemporary(true)
	if err != nil || len(files) == 0 {
		return nil, err
	}
	return n.removeOrphans(ctx, false)
}

// HostVethGone holds for an attachment whose interface is no longer there, and for what
// a crash left. Callers hold no lock: Collect does.
func HostVethGone(r attachment.Record) bool { return !r.Committed || !hostport.Alive(r.Endpoint) }

// removeOrphans removes files that belong to nobody and rewrites the kernel's share.
func (n Node) removeOrphans(ctx context.Context, dryRun bool) ([]string, error) {
	f, errNode := n.load()
	if errors.Is(errNode, ErrNewer) {
		return nil, errNode
	}
	files, err := n.misfits(f, dryRun)
	swept, errSweep := n.Store.RemoveTemporary(dryRun)
	files, err = append(files, swept...), errors.Join(err, errSweep)
	if dryRun {
		return files, err
	}
	if errNode != nil {
		return files, errors.Join(err, ignoreMissing(errNode))
	}
	_, errSync := n.sync(ctx, f)
	return files, errors.Join(err, errSync)
}

// misfits removes the records whose ID does not fit the node's mask, or names their files.
func (n Node) misfits(f nodeFile, dryRun bool) (files []string, err error) {
	node, err := f.node()
	if err != nil {
		return nil, nil // nobody knows what fits
	}
	records, _ := n.Store.List() // a Sweep removes the damaged ones
	for _, r := range records {
		if fits(node.Layout, r) == nil {
			continue
		}
		files = append(files, filepath.Join("attachments", r.Hash()))
		if dryRun {
			continue
		}
		if err := n.Store.Release(r); err != nil {
			return files, err
		}
	}
	return files, nil
}
