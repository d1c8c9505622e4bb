package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/dataplane"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/pkg/state"
)

// tx is a change of the node, or a check that no change may interrupt: its process holds the node's
// lock. It reads, makes a plan (plan.go), and carries that out in steps.
type tx struct {
	Node
	// file is node.json as this change has it by now. What is not saved yet, a crash loses.
	file nodeFile
	// left is what could not be removed or written, and is left to the next change. It ends no change.
	left error
}

// transact runs do with the node's lock held, and creates the state directory if need be.
func (n Node) transact(ctx context.Context, do func(*tx) error) error {
	unlock, err := n.Store.Lock(ctx, n.LockTimeout)
	if err != nil {
		return err
	}
	defer unlock()
	return do(&tx{Node: n})
}

// transactExisting is transact with node.json read. Where podmark has never run it is fs.ErrNotExist,
// and creates no directory.
func (n Node) transactExisting(ctx context.Context, do func(*tx) error) error {
	if _, err := n.load(); err != nil {
		return err
	}
	return n.transact(ctx, func(t *tx) error {
		if err := t.read(); err != nil {
			return err
		}
		return do(t)
	})
}

// step is a part of a change that has a place in the order. After each, the process may end, and
// nothing is open that was closed.
type step struct {
	// name is what tests end the process after; empty where a crash leaves nothing else than
	// after the step before.
	name string
	skip bool // where the plan does without
	do   func() error
}

// run takes the steps until one fails.
func (t *tx) run(steps ...step) error {
	for _, s := range steps {
		if s.skip {
			continue
		}
		if err := s.do(); err != nil {
			return err
		}
		if s.name != "" {
			t.step(s.name)
		}
	}
	return nil
}

// read reads node.json; with an error it counts as one that says nothing.
func (t *tx) read() error {
	f, err := t.load()
	if err != nil {
		f = nodeFile{}
	}
	t.file = f
	return err
}

// save writes node.json.
func (t *tx) save() error { return t.Node.save(t.file) }

// saveBestEffort is save for a note that may be left out where there is no room: without it, the next
// change does the same again. What is freed must not depend on room.
func (t *tx) saveBestEffort() error {
	err := t.save()
	if errors.Is(err, state.ErrNoRoom) {
		return nil
	}
	return err
}

// markUnsynced notes that the kernel may have other things than the state directory says, so that the
// next change writes everything before it gives out an ID again.
func (t *tx) markUnsynced() error {
	if !t.file.Synced {
		return nil
	}
	t.file.Synced = false
	return t.saveBestEffort()
}

// leave keeps an error for want of room as what is left, and returns any other.
func (t *tx) leave(err error) error {
	if errors.Is(err, state.ErrNoRoom) {
		t.left, err = errors.Join(t.left, err), nil
	}
	return err
}

// state is the whole node's, with the attachments of coming; see [Node.stateOf].
func (t *tx) state(coming ...attachment.Record) (desired.State, error) {
	return t.stateOf(t.file, coming...)
}

// backend enforces.
func (t *tx) backend() dataplane.Backend { return t.backendOf(t.file) }

// adoptSettings reads node.json and makes it agree with settings, deciding on mask and backend where
// that is not done. What it changed is unsynced and not saved yet.
func (t *tx) adoptSettings(ctx context.Context, settings Settings) (changed bool, err error) {
	if err := t.readOrBegin(ctx); err != nil {
		return false, err
	}
	begins, err := t.takesMask(settings.Layout.Mask())
	if err != nil {
		return false, err
	}
	next := t.file
	if err := t.kernel().choose(&next, settings.Backend); err != nil {
		return false, err
	}
	next, changed = planSettings(t.file, next, settings)
	if begins {
		if next, err = t.beginWith(ctx, next, settings); err != nil {
			return false, err
		}
		changed = true
	}
	if changed {
		next.Synced = false
	}
	t.file = next
	return changed, nil
}

// readOrBegin reads node.json, or has a new one begin where there is none. An uninstall that was
// interrupted comes to its end first.
func (t *tx) readOrBegin(ctx context.Context) error {
	err := t.read()
	if errors.Is(err, errUninstalling) {
		if err := t.finishUninstall(ctx); err != nil {
			return err
		}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	t.file.PoliciesHash = noFile
	return t.Store.Remove(state.PoliciesFile) // of an earlier life
}

// takesMask reports whether the node takes the mask, or chooses one where that is 0, because no
// endpoint has an ID in another one. ErrLayout where one has.
func (t *tx) takesMask(wanted uint32) (bool, error) {
	if t.file.Mask != 0 && (wanted == 0 || t.file.Mask == wanted) {
		return false, nil
	}
	empty, err := t.Store.Empty()
	switch {
	case err != nil:
		return false, err
	case !empty && t.file.Mask == 0:
		return false, fmt.Errorf("%w: %s is missing although there are attachments; %s", state.ErrDamaged, state.NodeFile, startOver)
	case !empty:
		return false, fmt.Errorf("%w: it is %#x and the node's endpoints were given IDs in %#x; podmarkd moves them once every network says so; without it set the mask back, or drain the node first", ErrLayout, wanted, t.file.Mask)
	}
	return true, nil
}

// beginWith gives f, of a node without endpoints, its mask and the tunnels that there are. No flow was
// judged, so nothing is restricted.
func (t *tx) beginWith(ctx context.Context, f nodeFile, settings Settings) (nodeFile, error) {
	layout, err := t.layoutToBegin(ctx, f, settings)
	if err != nil {
		return f, err
	}
	f.Mask, f.Epoch, f.Indexed = layout.Mask(), 1, true
	// Of another mask, or of an earlier life of podmark.
	if err := t.kernel().clearOtherEpochs(layout.ID(mark.None)); err != nil {
		return f, err
	}
	return t.fresh(f)
}
