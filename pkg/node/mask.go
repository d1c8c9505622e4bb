package node

import (
	"context"
	"errors"
	"io/fs"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/pkg/state"
)

// migration is a node on its way from one mask to another.
//
// A packet that IPVS takes is marked in INPUT and judged in OUTPUT, by other rules
// if they change in between. So the node first has rules that give marks of the
// new layout and understand both; when no packet carries an old one any more, it
// has rules of the new layout alone. IDs change where they must, so that no mark
// means one endpoint in one layout and another in the other.
type migration struct {
	// Mask is the former one.
	Mask uint32 `json:"mask"`
	// IDs are those of each attachment, by its hash.
	IDs map[string]migratedID `json:"ids"`
}

type migratedID struct {
	From mark.ID `json:"from"`
	To   mark.ID `json:"to"`
}

// ChangeMask moves the node's endpoints to another mask. Their IDs may change; no
// connection ends, and no packet is judged as another endpoint's. It reports whether
// there was anything to do. Errors: ErrExhausted when the mask has not room for
// all, and then nothing has changed; fs.ErrNotExist when podmark has never run here.
func (n Node) ChangeMask(ctx context.Context, layout mark.Layout) (moved bool, err error) {
	if f, err := n.load(); err != nil || f.Mask == layout.Mask() && f.Migration == nil {
		return false, err
	}
	err = n.transactExisting(ctx, func(t *tx) error {
		if t.file.Migration != nil { // what a crash left goes to its end first
			if err := t.sync(ctx); err != nil {
				return err
			}
		}
		if t.file.Mask == layout.Mask() {
			return nil
		}
		former, err := mark.NewLayout(t.file.Mask)
		if err != nil {
			return err
		}
		records, err := t.Store.List()
		if err != nil {
			return err
		}
		plan, err := planMask(former, layout, records)
		if err != nil {
			return err
		}
		for _, s := range plan {
			if err := t.migrate(ctx, s); err != nil {
				return err
			}
		}
		moved = true
		return nil
	})
	return moved, err
}

// migrate notes that the node goes over to a layout, and takes it there.
func (t *tx) migrate(ctx context.Context, s maskStep) error {
	t.file.Migration = &migration{Mask: t.file.Mask, IDs: s.ids}
	if t.file.Mask != s.layout.Mask() {
		// Every flow is judged again, by the same policies. None may seem to be judged.
		t.file.Mask, t.file.Epoch = s.layout.Mask(), 1
		if err := t.kernel().clearEpoch(s.layout.Mark(t.file.Epoch)); err != nil {
			return err
		}
	}
	t.file.Synced = false
	if err := t.save(); err != nil {
		return err
	}
	t.step("moving")
	return t.sync(ctx)
}

// finishMigration takes a node that is moving to where only the new layout is understood. By
// now the kernel understands both.
func (t *tx) finishMigration() error {
	untilSeen()
	for hash, id := range t.file.Migration.IDs {
		err := t.Store.Renumber(hash, id.To)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, state.ErrDamaged) {
			return err
		}
	}
	t.step("renumbered")
	if t.file.Migration.Mask != t.file.Mask {
		// Flows that were silent meanwhile carry bits that have no meaning now, or another epoch's.
		if err := t.clearFormer(); err != nil {
			return err
		}
	}
	if _, err := t.Store.RemoveTemporary(false); err != nil { // the former IDs
		return err
	}
	t.file.Migration = nil
	return t.save()
}

func (t *tx) clearFormer() error {
	former, errFormer := mark.NewLayout(t.file.Migration.Mask)
	layout, errLayout := mark.NewLayout(t.file.Mask)
	if err := errors.Join(errFormer, errLayout); err != nil {
		return err
	}
	return t.kernel().clearOtherEpochs(layout.Over(former).Mark(t.file.Epoch))
}

// untilSeen returns when every packet that was on its way through the hooks has
// left them. They are passed under rcu_read_lock, and the kernel's answer to this
// call comes after a grace period (membarrier(2), MEMBARRIER_CMD_GLOBAL).
func untilSeen() {
	const global = 1
	_, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0)
	// It does not wait on a single processor, nor with nohz_full.
	if errno != 0 || runtime.NumCPU() == 1 {
		time.Sleep(100 * time.Millisecond) // no packet takes that long
	}
}
