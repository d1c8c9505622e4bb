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
func (n Node) CollectGarbage(
	ctx context.Context,
	dead func(attachment.Record) bool,
	dryRun bool,
) (c Collected, err error) {
	switch _, err := n.load(); {
	case errors.Is(err, fs.ErrNotExist):
		return Collected{}, nil
	case errors.Is(err, ErrNewer): // whose records it would sweep away
		return Collected{}, err
	}
	err = n.transact(ctx, func(t *tx) error {
		c, err = t.collect(ctx, dead, dryRun)
		return err
	})
	return c, err
}

func (t *tx) collect(ctx context.Context, dead func(attachment.Record) bool, dryRun bool) (c Collected, err error) {
	defer func() { c.Left = t.left }()
	// Where node.json cannot be read, nothing of it is written either.
	_ = t.read()
	all, _ := t.Store.List() // damaged records are collected as files
	var errs []error
	t.deferred = map[attachment.Key]bool{}
	for _, r := range all {
		if !dead(r) {
			continue
		}
		c.Attachments = append(c.Attachments, r)
		if dryRun {
			continue
		}
		if err := t.markUnsynced(); err != nil {
			return c, err
		}
		errs = append(errs, t.collectOne(r))
		t.step("released")
	}
	c.Files, err = t.removeOrphans(ctx, dryRun)
	errs = append(errs, t.leave(err))
	return c, errors.Join(errs...)
}

// collectOne removes what an attachment has beside what the backend knows of it.
func (t *tx) collectOne(r attachment.Record) error {
	err := t.kernel().blockForDelete(r.Endpoint)
	busy, unforgotten := t.deleteFlows(t.unclaimed(r).Addresses)
	t.left = errors.Join(t.left, busy)
	if err = errors.Join(err, unforgotten); err == nil {
		err = t.Store.Release(r)
	}
	t.deferred[r.Key] = errors.Is(err, state.ErrNoRoom)
	return t.leave(err)
}

// RemoveOrphans removes the files that crashes left in the state directory, and what no one needs
// in the kernel if there were any. It returns the files. Damaged records are an
// operator's to remove: their endpoints may be alive.
func (n Node) RemoveOrphans(ctx context.Context) (files []string, err error) {
	err = n.transact(ctx, func(t *tx) error {
		if _, err := t.Store.List(); err != nil {
			return err
		}
		found, err := t.Store.RemoveTemporary(true)
		if err != nil || len(found) == 0 {
			return err
		}
		files, err = t.removeOrphans(ctx, false)
		return err
	})
	return files, err
}

// HostVethGone holds for an attachment whose interface is no longer there, and for what
// a crash left. Callers hold no lock: Collect does.
func HostVethGone(r attachment.Record) bool { return !r.Committed || !hostport.Alive(r.Endpoint) }

// removeOrphans removes files that belong to no attachment and rewrites the kernel's share.
func (t *tx) removeOrphans(ctx context.Context, dryRun bool) ([]string, error) {
	errNode := t.read()
	if errors.Is(errNode, ErrNewer) {
		return nil, errNode
	}
	files, err := t.misfits(dryRun)
	swept, errSweep := t.Store.RemoveTemporary(dryRun)
	files, err = append(files, swept...), errors.Join(err, errSweep)
	if dryRun {
		return files, err
	}
	if errNode != nil {
		return files, errors.Join(err, ignoreMissing(errNode))
	}
	return files, errors.Join(err, t.sync(ctx))
}

// misfits removes the records whose ID does not fit the node's mask, or names their files.
func (t *tx) misfits(dryRun bool) (files []string, err error) {
	node, err := t.file.node()
	if err != nil {
		return nil, nil // it is not known what fits
	}
	records, _ := t.Store.List() // a Sweep removes the damaged ones
	for _, r := range records {
		if fits(node.Layout, r) == nil {
			continue
		}
		files = append(files, filepath.Join("attachments", r.Hash()))
		if dryRun {
			continue
		}
		if err := t.Store.Release(r); err != nil {
			return files, err
		}
	}
	return files, nil
}
