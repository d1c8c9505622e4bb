package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/attachment"
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
	unlock, err := n.lock(ctx)
	if err != nil {
		return false, err
	}
	defer unlock()
	f, err := n.load()
	if err == nil && f.Migration != nil { // what a crash left goes to its end first
		f, err = n.sync(ctx, f)
	}
	if err != nil || f.Mask == layout.Mask() {
		return false, err
	}
	former, err := mark.NewLayout(f.Mask)
	if err != nil {
		return false, err
	}
	records, err := n.Store.List()
	if err != nil {
		return false, err
	}
	// A mark that means "outside" in the new layout must be no endpoint's in the
	// former one: such an endpoint gets another ID there first.
	for _, step := range []mark.Layout{former, layout} {
		ids, err := reassign(records, former, step, layout.ID(mark.Outside))
		if err != nil {
			return false, err
		}
		if step == former && !slices.ContainsFunc(records, func(r attachment.Record) bool { return ids[r.Hash()].From != ids[r.Hash()].To }) {
			continue
		}
		if f, err = n.migrate(ctx, f, step, ids); err != nil {
			return false, err
		}
		for i, r := range records {
			records[i].ID = ids[r.Hash()].To
		}
	}
	return true, nil
}

// migrate notes that the node goes over to a layout, and takes it there.
func (n Node) migrate(ctx context.Context, f nodeFile, to mark.Layout, ids map[string]migratedID) (nodeFile, error) {
	f.Migration = &migration{Mask: f.Mask, IDs: ids}
	if f.Mask != to.Mask() {
		// Every flow is judged anew, by the same policies. None may seem to be judged.
		f.Mask, f.Epoch = to.Mask(), 1
		if err := n.kernel().clearEpoch(to.Mark(f.Epoch)); err != nil {
			return f, err
		}
	}
	f.Synced = false
	if err := n.save(f); err != nil {
		return f, err
	}
	n.step("moving")
	return n.sync(ctx, f)
}

// reassign gives every attachment an ID in layout: its own if it can keep it, else
// the lowest that is free. A mark of the one layout that is not that attachment's in
// the other one is not given, and neither is what is to mean "outside".
func reassign(records []attachment.Record, former, layout mark.Layout, outside mark.Mark) (map[string]migratedID, error) {
	if len(records) > layout.Capacity() {
		return nil, fmt.Errorf("%w: iptablesMarkMask %#x holds %d endpoints, and the node has %d; use a wider mask", state.ErrExhausted, layout.Mask(), layout.Capacity(), len(records))
	}
	if err := fits(former, records...); err != nil {
		return nil, err
	}
	owner := map[uint32]string{former.ID(mark.Outside).Value: "", outside.Value: ""}
	for _, r := range records {
		owner[former.ID(r.ID).Value] = r.Hash()
	}
	owner[outside.Value] = ""
	ids, taken := map[string]migratedID{}, map[mark.ID]bool{}
	usable := func(id mark.ID, hash string) bool {
		if id < mark.First || uint32(id) > layout.Max() || taken[id] {
			return false
		}
		whose, any := owner[layout.ID(id).Value]
		return !any || whose == hash
	}
	give := func(r attachment.Record, id mark.ID) {
		ids[r.Hash()], taken[id] = migratedID{r.ID, id}, true
	}
	for _, r := range records {
		if usable(r.ID, r.Hash()) {
			give(r, r.ID)
		}
	}
	next := mark.First
	for _, r := range records {
		if _, done := ids[r.Hash()]; done {
			continue
		}
		for !usable(next, r.Hash()) {
			if next++; uint32(next) > layout.Max() {
				return nil, fmt.Errorf("%w: iptablesMarkMask %#x overlaps the one in force, %#x, and has no ID left that means nobody else there; take a wider mask, or one with other bits", state.ErrExhausted, layout.Mask(), former.Mask())
			}
		}
		give(r, next)
	}
	return ids, nil
}

// finishMigration takes a node that is moving to where only the new layout is understood. By
// now the kernel understands both.
func (n Node) finishMigration(f nodeFile) (nodeFile, error) {
	untilSeen()
	for hash, id := range f.Migration.IDs {
		err := n.Store.Renumber(hash, id.To)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, state.ErrDamaged) {
			return f, err
		}
	}
	n.step("renumbered")
	if f.Migration.Mask != f.Mask {
		// Flows that were silent meanwhile carry bits that are nobody's now, or another epoch's.
		if err := n.clearFormer(f); err != nil {
			return f, err
		}
	}
	if _, err := n.Store.RemoveTemporary(false); err != nil { // the former IDs
		return f, err
	}
	f.Migration = nil
	return f, n.save(f)
}

func (n Node) clearFormer(f nodeFile) error {
	former, errFormer := mark.NewLayout(f.Migration.Mask)
	layout, errLayout := mark.NewLayout(f.Mask)
	if err := errors.Join(errFormer, errLayout); err != nil {
		return err
	}
	return n.kernel().clearOtherEpochs(layout.Over(former).Mark(f.Epoch))
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
